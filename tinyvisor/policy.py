"""What a service does next: a state × event table. Commands, restart, back-off, start limit, dependencies, schedule, stop.

Pure: no clock, no random source, no I/O. Times (seconds of any monotonic clock) and the jitter's random number come
in as arguments, so that every decision can be tested and repeated. The supervisor carries the actions out.

Source: compose-spec 05-services.md#restart, #depends_on; moby restartmanager/restartmanager.go for the back-off that a good
run resets; systemd.unit(5) StartLimitIntervalSec= for the start limit, systemd.service(5) RestartPreventExitStatus=.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeVar

from tinyvisor.errors import InternalError
from tinyvisor.record import record
from tinyvisor.spec import Backoff, Condition, RestartPolicy
from tinyvisor.state import Exit
from tinyvisor.units import format_duration, signal_name

Phase = Literal["scheduled", "waiting", "starting", "running", "backoff", "stopping", "exited", "failed", "stopped"]
"""``scheduled`` for its time; ``waiting`` for dependencies; ``exited``: done fine; ``failed``: given up; ``stopped``: on
request."""

DOWN: Final[frozenset[Phase]] = frozenset({"exited", "failed", "stopped"})
"""Nothing runs and nothing will, until a start is requested."""

Then = Literal["stop", "start", "retry", "fail"]
"""What follows a stop. ``start``: again, as if it had never run; ``retry``: as after a failure; ``fail``: nothing more."""


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
        uncounted: in ``waiting``: the start limit leaves this start alone.
        then: in ``stopping``: what follows.
        ran: a container has run since it was last asked to start.
        completed: the last of these has ended well.
        lost: in ``failed``: only because of a dependency, so it comes back with it.
        reason: in ``failed`` and ``backoff``: why, one line.
    """

    phase: Phase
    attempt: int = 0
    launches: int = 0
    started_at: float = 0.0
    due: float = 0.0
    starts: tuple[float, ...] = ()
    uncounted: bool = False
    then: Then = "stop"
    ran: bool = False
    completed: bool = False
    lost: bool = False
    reason: str = ""

    @property
    def down(self) -> bool:
        return self.phase in DOWN

    @property
    def restarts(self) -> bool:
        """Whether it is being stopped only to come back."""
        return self.phase == "stopping" and self.then in ("start", "retry")


NEW: Final = State(phase="stopped")
"""A service that nobody has asked for yet."""


# --- Commands ---


@record
class StartRequested:
    """Somebody wants it up. Forgets past failures, as ``systemctl reset-failed`` does. Runs what is scheduled now."""


@record
class Resumed:
    """The supervisor has started, and before that somebody had stopped the service: only ``always`` starts it again."""


@record
class StopRequested:
    """Somebody wants it down, with its grace period."""


@record
class KillRequested:
    """Somebody wants it down now."""


@record
class RestartRequested:
    """Somebody wants it up in a new container."""


@record
class ReplaceRequested:
    """What the service is has changed: a new container, unless somebody has stopped it."""


@record
class ResetRequested:
    """Past failures are forgotten; nothing is started."""


# --- Dependencies ---


@record
class Ready:
    """Every dependency is there."""


@record
class DependencyLost:
    """A dependency will not be there unless somebody does something."""

    reason: str


@record
class DependencyBack:
    """Somebody did."""


@record
class DependencyReplaced:
    """What runs is of no use any more (the network it joined is gone): replace it, without counting it as a failure."""


# --- The container ---


@record
class Launched:
    """The container runs."""


@record
class LaunchFailed:
    """The launch came to nothing; `final` where trying again can't help (the host lacks something)."""

    reason: str
    final: bool = False


@record
class NotReady:
    """The launch did not come about because a dependency went away meanwhile."""


@record
class Unfit:
    """The container runs and is no good: unhealthy, or a post_start hook failed. `then`: None leaves it to the condition."""

    reason: str
    then: Literal["retry", "fail"] | None = None


@record
class Exited:
    """The container is gone; its workload ended `ago` seconds before we heard of it."""

    exit: Exit
    ago: float = 0.0


# --- The clock ---


@record
class DelayElapsed:
    """`State.due` has come."""


@record
class Fired:
    """The schedule's time has come."""


ServiceEvent = (
    StartRequested
    | Resumed
    | StopRequested
    | KillRequested
    | RestartRequested
    | ReplaceRequested
    | ResetRequested
    | Ready
    | DependencyLost
    | DependencyBack
    | DependencyReplaced
    | Launched
    | LaunchFailed
    | NotReady
    | Unfit
    | Exited
    | DelayElapsed
    | Fired
)

Action = Literal["nothing", "wait", "launch", "cancel", "stop", "kill", "delay", "schedule", "finish"]
"""What the supervisor has to do. ``wait``: for dependencies; ``cancel``: the launch; ``delay``: until `State.due`;
``schedule``: until the schedule's next time."""

MAX_CREDIT: Final = 0.02
"""Seconds by which a back-off may have begun before we heard of the end. It is init's word, which a workload that may trace it
could forge; and the clean-up takes a fraction of that."""

_E = TypeVar("_E")
_Result = tuple[State, Action]


@record
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
    return _TABLE[type(event)][_PHASES.index(state.phase)](_Given(policy, now, random), state, event)


def is_success(policy: RestartPolicy, exit: Exit) -> bool:
    """Whether the workload itself ended well: a limit or a signal is a failure whatever the exit code."""
    return exit.status in ("ok", "nonzero_exit") and (exit.exit_code == 0 or exit.exit_code in policy.success_exit_codes)


def is_listed(codes: Set[int | str], exit: Exit) -> bool:
    """Whether the exit code, or the name of the signal that ended it, is among `codes`."""
    return (signal_name(exit.signal) if exit.signal is not None else exit.exit_code) in codes


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


def is_met(condition: Condition, state: State, healthy: bool) -> bool:
    """Whether a dependency in `state` fulfils `condition`; `healthy`: its container runs and is.

    Started once is started, so that a crash of the dependency holds nobody back, until somebody stops or starts it.
    """
    match condition:
        case "service_healthy":
            return healthy and state.phase == "running"
        case "service_completed_successfully":
            return state.completed
    return state.ran and (state.phase != "stopping" or state.then != "stop")


def is_lost(condition: Condition, state: State) -> bool:
    """Whether it is not, and will not be unless somebody does something."""
    return state.down and not is_met(condition, state, healthy=False)


def fate(state: State) -> str:
    """How a service that is down has ended, after "has"."""
    match state:
        case State(phase="failed", reason=reason):
            return f"failed: {reason}"
        case State(phase="exited"):
            return "ended"
    return "been stopped"


# --- What a pair of the table does ---


def _illegal(given: _Given, state: State, event: ServiceEvent) -> _Result:
    raise InternalError(f"a service that is {state.phase} was told {event}")


def _ignore(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return state, "nothing"


def _begin(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return State(phase="waiting", launches=state.launches), "wait"


def _start(given: _Given, state: State, event: ServiceEvent) -> _Result:
    if given.policy.schedule is None:
        return _begin(given, state, event)
    return State(phase="scheduled", launches=state.launches), "schedule"


def _resume(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return _start(given, state, event) if given.policy.condition == "always" else (state, "nothing")


def _fire(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return replace(state, phase="waiting", attempt=0, completed=False, reason=""), "wait"


def _launch(given: _Given, state: State, event: ServiceEvent) -> _Result:
    burst, interval = given.policy.start_limit_burst, given.policy.start_limit_interval
    starts = state.starts
    if burst and not state.uncounted:
        starts = tuple(start for start in starts if given.now - start < interval)
        if len(starts) >= burst:
            return _failed(state, f"started {burst} times within {format_duration(interval)}{_because(state.reason)}")
        starts = (*starts, given.now)
    return replace(state, phase="starting", launches=state.launches + 1, starts=starts, uncounted=False), "launch"


def _launched(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return replace(state, phase="running", started_at=given.now, ran=True, completed=False, reason=""), "nothing"


def _launch_failed(given: _Given, state: State, event: ServiceEvent) -> _Result:
    event = _as(LaunchFailed, event)
    if event.final:
        return _failed(state, event.reason)
    if given.policy.condition == "no":
        return _ended(given, state, event.reason, success=False)
    return _restart(given, state, event.reason, success=False)


def _unlaunched(given: _Given, state: State, event: ServiceEvent) -> _Result:
    # The start limit has counted this start already.
    return replace(state, phase="waiting", launches=state.launches - 1, uncounted=True), "wait"


def _exited(given: _Given, state: State, event: ServiceEvent) -> _Result:
    exit, policy = _as(Exited, event).exit, given.policy
    if exit.status == "stopped" and policy.condition != "always":
        return _stopped_now(given, state, event)  # through the runtime's own door, behind our back: still somebody's wish
    success = is_success(policy, exit)
    state = replace(state, completed=success)
    ends = policy.condition == "no" or (policy.condition == "on-failure" and success)
    if is_listed(policy.restart_prevent_exit_codes, exit):
        ends = True
    elif is_listed(policy.restart_force_exit_codes, exit):
        ends = False
    if ends:
        return _ended(given, state, explain(exit), success)
    return _restart(given, _rested(given, state), explain(exit), success, _ago(event))


def _rested(given: _Given, state: State) -> State:
    """A run of `reset_after` ends the row of restarts."""
    return replace(state, attempt=0) if given.now - state.started_at >= given.policy.backoff.reset_after else state


def _restart(given: _Given, state: State, reason: str, success: bool, ago: float = 0.0) -> _Result:
    limit = given.policy.max_attempts
    if limit is not None and state.attempt >= limit:
        why = f"gave up after {limit} restarts in a row{_because(reason)}" if limit else reason
        return _ended(given, state, why, success)
    delay = backoff_delay(given.policy.backoff, state.attempt, given.random)
    due = given.now + max(0.0, delay - ago)
    return replace(state, phase="backoff", attempt=state.attempt + 1, due=due, reason=reason), "delay"


def _ago(event: ServiceEvent) -> float:
    return max(0.0, min(event.ago, MAX_CREDIT)) if isinstance(event, Exited) else 0.0


def _retry(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return replace(state, phase="waiting"), "wait"


def _give_up(given: _Given, state: State, event: ServiceEvent) -> _Result:
    reason = _as(DependencyLost, event).reason
    if given.policy.schedule is not None:  # the next time may be a better one
        return _ended(given, state, reason, success=False)
    state, action = _failed(state, reason)
    return replace(state, lost=True), action


def _come_back(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return _begin(given, state, event) if state.lost else _illegal(given, state, event)


def _stay_down(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return replace(state, lost=False), "nothing"


def _cancel(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return replace(state, phase="stopping", then="stop"), "cancel"


def _cancel_and_start(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return State(phase="stopping", launches=state.launches, then="start"), "cancel"


def _stop(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return replace(state, phase="stopping", then="stop"), "stop"


def _stop_and_start(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return State(phase="stopping", launches=state.launches, then="start"), "stop"


def _start_afterwards(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return State(phase="stopping", launches=state.launches, then="start"), "nothing"


def _replace_afterwards(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return (state, "nothing") if state.then == "stop" else _start_afterwards(given, state, event)


def _stop_for_good(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return replace(state, then="stop"), "nothing"


def _kill(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return replace(state, phase="stopping", then="stop"), "kill"


def _rejoin(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return replace(_rested(given, state), phase="stopping", then="start"), "stop"


def _condemn(given: _Given, state: State, event: ServiceEvent) -> _Result:
    event = _as(Unfit, event)
    then = event.then or ("fail" if given.policy.condition == "no" else "retry")
    return replace(_rested(given, state), phase="stopping", then=then, reason=event.reason), "stop"


def _stopped_now(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return State(phase="stopped", launches=state.launches), "finish"


def _stopped(given: _Given, state: State, event: ServiceEvent) -> _Result:
    match state.then:
        case "start":
            return replace(state, phase="waiting", then="stop", uncounted=True, reason=""), "wait"
        case "retry":
            return _restart(given, replace(state, then="stop"), state.reason, success=False, ago=_ago(event))
        case "fail":
            return _ended(given, replace(state, then="stop"), state.reason, success=False)
    return _stopped_now(given, state, event)


def _forget(given: _Given, state: State, event: ServiceEvent) -> _Result:
    return replace(state, attempt=0, starts=()), "nothing"


def _failed(state: State, reason: str) -> _Result:
    return replace(state, phase="failed", uncounted=False, reason=reason), "finish"


def _ended(given: _Given, state: State, reason: str, success: bool) -> _Result:
    if given.policy.schedule is not None:
        return replace(state, phase="scheduled", uncounted=False, reason="" if success else reason), "schedule"
    return (replace(state, phase="exited", reason=""), "finish") if success else _failed(state, reason)


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def _as(kind: type[_E], event: object) -> _E:
    assert isinstance(event, kind)
    return event


# --- The table ---

_no, _ok = _illegal, _ignore
_halt, _later, _again, _redo, _swap = _stopped_now, _start_afterwards, _stop_and_start, _cancel_and_start, _replace_afterwards
_PHASES: Final[tuple[Phase, ...]] = (
    "scheduled", "waiting", "starting", "running", "backoff", "stopping", "exited", "failed", "stopped",
)  # fmt: skip
_TABLE: Final[Mapping[type[ServiceEvent], tuple[_Handler, ...]]] = {
    #                    scheduled waiting   starting        running    backoff  stopping        exited   failed       stopped
    StartRequested:     (_begin,   _begin,   _ok,            _ok,       _begin,  _later,         _start,  _start,      _start),
    RestartRequested:   (_begin,   _begin,   _redo,          _again,    _begin,  _later,         _start,  _start,      _start),
    ReplaceRequested:   (_start,   _begin,   _redo,          _again,    _begin,  _swap,          _start,  _start,      _ok),
    Resumed:            (_ok,      _ok,      _ok,            _ok,       _ok,     _ok,            _ok,     _ok,         _resume),
    StopRequested:      (_halt,    _halt,    _cancel,        _stop,     _halt,   _stop_for_good, _ok,     _stay_down,  _ok),
    KillRequested:      (_halt,    _halt,    _cancel,        _kill,     _halt,   _kill,          _ok,     _stay_down,  _ok),
    ResetRequested:     (_forget,  _forget,  _forget,        _forget,   _forget, _forget,        _ok,     _halt,       _ok),
    Ready:              (_no,      _launch,  _no,            _no,       _no,     _no,            _no,     _no,         _no),
    DependencyLost:     (_no,      _give_up, _no,            _no,       _no,     _no,            _no,     _no,         _no),
    DependencyBack:     (_no,      _no,      _no,            _no,       _no,     _no,            _no,     _come_back,  _no),
    DependencyReplaced: (_ok,      _ok,      _ok,            _rejoin,   _ok,     _ok,            _ok,     _ok,         _ok),
    Launched:           (_no,      _no,      _launched,      _no,       _no,     _no,            _no,     _no,         _no),
    LaunchFailed:       (_no,      _no,      _launch_failed, _no,       _no,     _stopped,       _no,     _no,         _no),
    NotReady:           (_no,      _no,      _unlaunched,    _no,       _no,     _stopped,       _no,     _no,         _no),
    Unfit:              (_no,      _no,      _no,            _condemn,  _no,     _ok,            _no,     _no,         _no),
    Exited:             (_no,      _no,      _no,            _exited,   _no,     _stopped,       _no,     _no,         _no),
    DelayElapsed:       (_no,      _no,      _no,            _no,       _retry,  _no,            _no,     _no,         _no),
    Fired:              (_fire,    _no,      _no,            _no,       _no,     _no,            _no,     _no,         _no),
}  # fmt: skip
"""Launched in ``stopping`` can't be: whoever sees a launch succeed after all takes it down and says LaunchFailed."""
