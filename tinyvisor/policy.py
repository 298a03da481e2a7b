"""What a service does next: a state × event table. Restart, back-off, start limit, stop.

Pure: no clock, no random source, no I/O. Times (seconds of any monotonic clock) and the jitter's random number come
in as arguments, so that every decision can be tested and repeated. The supervisor carries the actions out.

Source: compose-spec 05-services.md#restart; moby restartmanager/restartmanager.go for the back-off that a good run
resets; systemd.unit(5) StartLimitIntervalSec= for the start limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeVar

from tinyvisor.errors import InternalError
from tinyvisor.spec import Backoff, RestartPolicy
from tinyvisor.state import Exit
from tinyvisor.units import format_duration

Phase = Literal["waiting", "starting", "running", "backoff", "stopping", "exited", "failed", "stopped"]
"""``waiting`` for dependencies; ``exited``: done fine; ``failed``: given up; ``stopped``: on request."""

DOWN: Final[frozenset[Phase]] = frozenset({"exited", "failed", "stopped"})
"""Nothing runs and nothing will, until a start is requested."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Where one service stands.

    Attributes:
        phase: see `Phase`.
        attempt: restarts in a row, reset by a run of ``backoff.reset_after``.
        launches: launches ever tried.
        started_at: when the running container started; meaningful in ``running`` only.
        due: when the delay is over; meaningful in ``backoff`` only.
        starts: times of the latest counted starts, oldest first, at most ``start_limit_burst`` of them.
        again: in ``stopping``: start again afterwards. In ``waiting``: such a start, which the start limit leaves alone.
        reason: in ``failed`` and ``backoff``: why, one line.
    """

    phase: Phase
    attempt: int = 0
    launches: int = 0
    started_at: float = 0.0
    due: float = 0.0
    starts: tuple[float, ...] = ()
    again: bool = False
    reason: str = ""

    @property
    def down(self) -> bool:
        return self.phase in DOWN


NEW: Final = State(phase="stopped")
"""A service that nobody has asked for yet."""


@dataclass(frozen=True, slots=True)
class StartRequested:
    """Somebody wants it up. Forgets past failures, as ``systemctl reset-failed`` does."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Somebody wants it down, with its grace period."""


@dataclass(frozen=True, slots=True)
class KillRequested:
    """Somebody wants it down now."""


@dataclass(frozen=True, slots=True)
class RestartRequested:
    """What runs is of no use any more (the network it joined is gone): replace it, without counting it as a failure."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Every dependency is there."""


@dataclass(frozen=True, slots=True)
class DependencyLost:
    """A dependency will never be there."""

    reason: str


@dataclass(frozen=True, slots=True)
class Launched:
    """The container runs."""


@dataclass(frozen=True, slots=True)
class LaunchFailed:
    """The launch came to nothing; `final` where trying again can't help (the host lacks something)."""

    reason: str
    final: bool = False


@dataclass(frozen=True, slots=True)
class NotReady:
    """The launch did not come about because a dependency went away meanwhile."""


@dataclass(frozen=True, slots=True)
class Exited:
    """The container is gone."""

    exit: Exit


@dataclass(frozen=True, slots=True)
class DelayElapsed:
    """`State.due` has come."""


ServiceEvent = (
    StartRequested
    | StopRequested
    | KillRequested
    | RestartRequested
    | Ready
    | DependencyLost
    | Launched
    | LaunchFailed
    | NotReady
    | Exited
    | DelayElapsed
)

Action = Literal["nothing", "wait", "launch", "cancel", "stop", "kill", "delay", "finish"]
"""What the supervisor has to do. ``wait``: for dependencies; ``cancel``: the launch; ``delay``: until `State.due`."""

_E = TypeVar("_E")
_Result = tuple[State, Action]


@dataclass(frozen=True, slots=True)
class _Given:
    policy: RestartPolicy
    now: float
    random: float


_Handler = Callable[[_Given, State, ServiceEvent], _Result]


def decide(policy: RestartPolicy, state: State, event: ServiceEvent, *, now: float, random: float = 0.0) -> _Result:
    """The next state, and what to do about it.

    Args:
        now: seconds of one monotonic clock, never less than in the call before.
        random: 0..1, for the jitter.

    Raises:
        InternalError: the event can't happen in this state; the caller lost track.
    """
    return _TABLE[state.phase][type(event)](_Given(policy, now, random), state, event)


def is_success(policy: RestartPolicy, exit: Exit) -> bool:
    """Whether the workload itself ended well: a limit or a signal is a failure whatever the exit code."""
    return exit.status in ("ok", "nonzero_exit") and (exit.exit_code == 0 or exit.exit_code in policy.success_exit_codes)


def backoff_delay(backoff: Backoff, attempt: int, random: float = 0.0) -> float:
    """Seconds before restart number `attempt` (0, 1, …) of a row."""
    if backoff.initial == 0:
        return 0.0
    try:
        full = min(backoff.max, backoff.initial * backoff.factor**attempt)
    except OverflowError:  # 1000.0 ** 103
        full = backoff.max
    return full * (1 - backoff.jitter * random)


def explain(exit: Exit) -> str:
    """One line for people: the runtime's reason where it gave one."""
    return exit.reason or exit.describe()


def _illegal(given: _Given, state: State, event: ServiceEvent) -> _Result:
    raise InternalError(f"a service that is {state.phase} was told {event}")


def _ignore(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return state, "nothing"


def _begin(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return State(phase="waiting", launches=state.launches), "wait"


def _launch(given: _Given, state: State, event: ServiceEvent) -> _Result:
    burst, interval = given.policy.start_limit_burst, given.policy.start_limit_interval
    starts = state.starts
    if burst and not state.again:
        starts = tuple(start for start in starts if given.now - start < interval)
        if len(starts) >= burst:
            return _failed(state, f"started {burst} times within {format_duration(interval)}{_because(state.reason)}")
        starts = (*starts, given.now)
    return replace(state, phase="starting", launches=state.launches + 1, starts=starts, again=False), "launch"


def _launched(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return replace(state, phase="running", started_at=given.now, reason=""), "nothing"


def _launch_failed(given: _Given, state: State, event: ServiceEvent) -> _Result:
    event = _as(LaunchFailed, event)
    if event.final or given.policy.condition == "no":
        return _failed(state, event.reason)
    return _restart(given, state, event.reason, success=False)


def _unlaunched(given: _Given, state: State, event: ServiceEvent) -> _Result:
    # The start limit has counted this start already, hence `again`.
    return replace(state, phase="waiting", launches=state.launches - 1, again=True), "wait"


def _exited(given: _Given, state: State, event: ServiceEvent) -> _Result:
    exit = _as(Exited, event).exit
    if exit.status == "stopped":  # through the runtime's own door, behind our back: still somebody's wish
        return _stopped(given, state, event)
    success = is_success(given.policy, exit)
    condition = given.policy.condition
    if condition == "no" or (condition == "on-failure" and success):
        return _ended(state, explain(exit), success)
    return _restart(given, _rested(given, state), explain(exit), success)


def _rested(given: _Given, state: State) -> State:
    """A run of `reset_after` ends the row of restarts."""
    return replace(state, attempt=0) if given.now - state.started_at >= given.policy.backoff.reset_after else state


def _restart(given: _Given, state: State, reason: str, success: bool) -> _Result:
    limit = given.policy.max_attempts
    if limit is not None and state.attempt >= limit:
        return _ended(state, f"gave up after {limit} restarts in a row{_because(reason)}" if limit else reason, success)
    due = given.now + backoff_delay(given.policy.backoff, state.attempt, given.random)
    return replace(state, phase="backoff", attempt=state.attempt + 1, due=due, reason=reason), "delay"


def _retry(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return replace(state, phase="waiting"), "wait"


def _give_up(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return _failed(state, _as(DependencyLost, event).reason)


def _cancel(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return replace(state, phase="stopping"), "cancel"


def _stop(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return replace(state, phase="stopping"), "stop"


def _stop_for_good(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return replace(state, again=False), "nothing"


def _kill(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return replace(state, phase="stopping", again=False), "kill"


def _replace(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return replace(_rested(given, state), phase="stopping", again=True), "stop"


def _begin_afterwards(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return State(phase="stopping", launches=state.launches, again=True), "nothing"


def _stopped_now(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return replace(state, phase="stopped", again=False, reason=""), "finish"


def _stopped(given: _Given, state: State, event: ServiceEvent) -> _Result:
    if state.again:
        return replace(state, phase="waiting", reason=""), "wait"
    return _stopped_now(given, state, event)


def _failed(state: State, reason: str) -> _Result:
    return replace(state, phase="failed", again=False, reason=reason), "finish"


def _ended(state: State, reason: str, success: bool) -> _Result:
    return (replace(state, phase="exited", reason=""), "finish") if success else _failed(state, reason)


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def _as(kind: type[_E], event: object) -> _E:
    assert isinstance(event, kind)
    return event


_FINISHED: Final[Mapping[type[ServiceEvent], _Handler]] = {
    StartRequested: _begin,
    StopRequested: _ignore,
    KillRequested: _ignore,
    RestartRequested: _ignore,  # a network that comes back does not wake what had ended
    Ready: _illegal,
    DependencyLost: _illegal,
    Launched: _illegal,
    LaunchFailed: _illegal,
    NotReady: _illegal,
    Exited: _illegal,
    DelayElapsed: _illegal,
}

_TABLE: Final[Mapping[Phase, Mapping[type[ServiceEvent], _Handler]]] = {
    "waiting": {
        StartRequested: _begin,
        StopRequested: _stopped_now,
        KillRequested: _stopped_now,
        RestartRequested: _ignore,
        Ready: _launch,
        DependencyLost: _give_up,
        Launched: _illegal,
        LaunchFailed: _illegal,
        NotReady: _illegal,
        Exited: _illegal,
        DelayElapsed: _illegal,
    },
    "starting": {
        StartRequested: _ignore,
        StopRequested: _cancel,
        KillRequested: _cancel,
        RestartRequested: _ignore,
        Ready: _illegal,
        DependencyLost: _illegal,
        Launched: _launched,
        LaunchFailed: _launch_failed,
        NotReady: _unlaunched,
        Exited: _illegal,
        DelayElapsed: _illegal,
    },
    "running": {
        StartRequested: _ignore,
        StopRequested: _stop,
        KillRequested: _kill,
        RestartRequested: _replace,
        Ready: _illegal,
        DependencyLost: _illegal,
        Launched: _illegal,
        LaunchFailed: _illegal,
        NotReady: _illegal,
        Exited: _exited,
        DelayElapsed: _illegal,
    },
    "backoff": {
        StartRequested: _begin,
        StopRequested: _stopped_now,
        KillRequested: _stopped_now,
        RestartRequested: _ignore,  # a start is on its way, and skipping the delay would make a loop of two crashes fast
        Ready: _illegal,
        DependencyLost: _illegal,
        Launched: _illegal,
        LaunchFailed: _illegal,
        NotReady: _illegal,
        Exited: _illegal,
        DelayElapsed: _retry,
    },
    "stopping": {
        StartRequested: _begin_afterwards,
        StopRequested: _stop_for_good,
        KillRequested: _kill,
        RestartRequested: _ignore,
        Ready: _illegal,
        DependencyLost: _illegal,
        Launched: _illegal,  # whoever sees a launch succeed after all takes it down and says LaunchFailed
        LaunchFailed: _stopped,
        NotReady: _stopped,
        Exited: _stopped,
        DelayElapsed: _illegal,
    },
    "exited": _FINISHED,
    "failed": _FINISHED,
    "stopped": _FINISHED,
}
