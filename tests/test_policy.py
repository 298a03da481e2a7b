"""Every decision of the table, by example and by property."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvisor.errors import InternalError
from tinyvisor.policy import (
    DOWN,
    MAX_CREDIT,
    NEW,
    Action,
    DelayElapsed,
    DependencyBack,
    DependencyLost,
    DependencyReplaced,
    Exited,
    Fired,
    KillRequested,
    Launched,
    LaunchFailed,
    NotReady,
    Phase,
    Ready,
    ReplaceRequested,
    ResetRequested,
    RestartRequested,
    Resumed,
    ServiceEvent,
    StartRequested,
    State,
    StopRequested,
    Unfit,
    backoff_delay,
    decide,
    is_lost,
    is_met,
    is_success,
)
from tinyvisor.spec import Backoff, Condition, RestartPolicy, Schedule
from tinyvisor.state import Exit, Status

OK = Exit(status="ok", exit_code=0)
BAD = Exit(status="nonzero_exit", exit_code=3)
NO, ALWAYS = RestartPolicy(), RestartPolicy(condition="always")
ON_FAILURE = RestartPolicy(condition="on-failure")
PHASES: tuple[Phase, ...] = get_args(Phase)
SCHEDULED = RestartPolicy(schedule=Schedule(interval=60))
COMMANDS: tuple[ServiceEvent, ...] = (
    StartRequested(), Resumed(), StopRequested(), KillRequested(), RestartRequested(), ReplaceRequested(), ResetRequested(),
    DependencyReplaced(),
)  # fmt: skip
"""Legal in every state."""
EVENTS: tuple[ServiceEvent, ...] = (
    *COMMANDS, Ready(), DependencyLost("gone"), DependencyBack(), Launched(), LaunchFailed("no"), NotReady(),
    Unfit("ill", "retry"), Exited(BAD), DelayElapsed(), Fired(),
)  # fmt: skip
LEGAL: dict[Phase, set[type[ServiceEvent]]] = {
    "scheduled": {Fired},
    "waiting": {Ready, DependencyLost},
    "starting": {Launched, LaunchFailed, NotReady},
    "running": {Exited, Unfit},
    "backoff": {DelayElapsed},
    "stopping": {LaunchFailed, NotReady, Exited, Unfit},
    "exited": set(),
    "failed": {DependencyBack},
    "stopped": set(),
}
"""Besides the commands."""

statuses = st.sampled_from(get_args(Status))
exits = st.builds(Exit, status=statuses, exit_code=st.integers(0, 255), signal=st.none()) | st.builds(
    Exit, status=st.just("signaled"), signal=st.sampled_from([9, 15])
)
backoffs = st.builds(
    lambda initial, extra, factor, jitter, reset: Backoff(
        initial=initial, factor=factor, max=initial + extra, jitter=jitter, reset_after=reset
    ),
    st.floats(0, 100), st.floats(0, 1e6), st.floats(1, 1000), st.floats(0, 1), st.floats(0, 100),
)  # fmt: skip
codes = st.frozensets(st.integers(0, 5) | st.sampled_from(["SIGTERM", "SIGKILL"]), max_size=2)
conditions = ["no", "always", "on-failure", "unless-stopped"]
policies = st.builds(
    lambda condition, schedule, **more: RestartPolicy(
        condition=condition, schedule=schedule if condition in ("no", "on-failure") else None, **more
    ),
    condition=st.sampled_from(conditions),
    schedule=st.none() | st.just(Schedule(interval=60)),
    restart_prevent_exit_codes=codes,
    restart_force_exit_codes=codes,
    max_attempts=st.none() | st.integers(0, 5),
    backoff=backoffs,
    success_exit_codes=st.frozensets(st.integers(0, 255), max_size=3),
    start_limit_burst=st.integers(0, 4),
    start_limit_interval=st.floats(0, 50),
)


def play(policy: RestartPolicy, *events: ServiceEvent, state: State = NEW, now: float = 0.0) -> tuple[State, Action]:
    action: Action = "nothing"
    for event in events:
        state, action = decide(policy, state, event, now=now)
    return state, action


def running(policy: RestartPolicy) -> State:
    return play(policy, StartRequested(), Ready(), Launched())[0]


# ---- the table itself ----


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_pair_is_defined(phase: Phase, event: ServiceEvent) -> None:
    state = State(phase=phase, launches=1, lost=True)
    if event in COMMANDS or type(event) in LEGAL[phase]:
        after, action = decide(ON_FAILURE, state, event, now=1.0)
        assert after.phase in PHASES
        assert action in get_args(Action)
    else:
        with pytest.raises(InternalError, match=phase):
            decide(ON_FAILURE, state, event, now=1.0)


def test_the_events_above_are_all_there_are() -> None:
    assert {type(event) for event in EVENTS} == set(get_args(ServiceEvent))


# ---- by example ----


def test_the_way_up() -> None:
    assert play(NO, StartRequested()) == (State(phase="waiting"), "wait")
    assert play(NO, StartRequested(), Ready()) == (State(phase="starting", launches=1), "launch")
    state, action = play(NO, StartRequested(), Ready(), Launched(), now=7.0)
    assert (state.phase, state.started_at, action) == ("running", 7.0, "nothing")


@pytest.mark.parametrize(
    "condition, exit, phase",
    [
        ("no", OK, "exited"),
        ("no", BAD, "failed"),
        ("on-failure", OK, "exited"),
        ("on-failure", BAD, "backoff"),
        ("always", OK, "backoff"),
        ("always", BAD, "backoff"),
        ("unless-stopped", OK, "backoff"),
        ("unless-stopped", BAD, "backoff"),
    ],
)
def test_restart_by_condition(condition: Any, exit: Exit, phase: Phase) -> None:
    policy = RestartPolicy(condition=condition)
    state, action = play(policy, Exited(exit), state=running(policy))
    assert state.phase == phase
    assert action == ("delay" if phase == "backoff" else "finish")


@pytest.mark.parametrize("status", ["signaled", "time_limit", "memory_limit", "output_limit", "pids_limit", "sandbox_error"])
def test_a_limit_or_a_signal_is_a_failure_whatever_the_exit_code(status: Status) -> None:
    exit = Exit(status=status, exit_code=0)
    assert not is_success(RestartPolicy(success_exit_codes=frozenset({0})), exit)
    assert play(ON_FAILURE, Exited(exit), state=running(ON_FAILURE))[0].phase == "backoff"
    assert play(NO, Exited(exit), state=running(NO))[0].phase == "failed"


def test_success_exit_codes_add_to_0() -> None:
    policy = RestartPolicy(success_exit_codes=frozenset({3}))
    assert [is_success(policy, Exit(status="nonzero_exit", exit_code=code)) for code in (3, 4)] == [True, False]
    assert is_success(policy, OK)
    assert play(policy, Exited(BAD), state=running(policy))[0].phase == "exited"


def test_the_reason_of_a_failure_is_the_runtime_s_where_it_gave_one() -> None:
    exit = Exit(status="memory_limit", signal=9, reason="killed by the OOM killer")
    assert play(NO, Exited(exit), state=running(NO))[0].reason == "killed by the OOM killer"
    assert play(NO, Exited(BAD), state=running(NO))[0].reason == "exit 3"


def test_back_off_doubles_to_a_minute_and_a_good_run_resets_it() -> None:
    state, delays, now = running(ALWAYS), [], 0.0
    for _ in range(12):
        state, _ = decide(ALWAYS, state, Exited(BAD), now=now)
        delays.append(round(state.due - now, 6))
        state, _ = play(ALWAYS, DelayElapsed(), Ready(), Launched(), state=state, now=now)
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60, 60]
    state, _ = decide(ALWAYS, state, Exited(BAD), now=now + 9.9)
    assert state.attempt == 13
    state, _ = play(ALWAYS, DelayElapsed(), Ready(), Launched(), state=state, now=100.0)
    state, _ = decide(ALWAYS, state, Exited(BAD), now=110.0)
    assert (state.attempt, state.due) == (1, 110.1)


def test_jitter_only_shortens() -> None:
    assert backoff_delay(Backoff(initial=1, jitter=0.2), 0, random=0.0) == 1
    assert backoff_delay(Backoff(initial=1, jitter=0.2), 0, random=1.0) == pytest.approx(0.8)


def test_on_failure_n_is_given_up_after_n_restarts() -> None:
    policy = RestartPolicy(condition="on-failure", max_attempts=2)
    state = running(policy)
    for _ in range(2):
        state, action = play(policy, Exited(BAD), DelayElapsed(), Ready(), Launched(), state=state)
    state, action = play(policy, Exited(BAD), state=state)
    assert (state.phase, action, state.launches) == ("failed", "finish", 3)
    assert state.reason == "gave up after 2 restarts in a row: exit 3"


def test_max_attempts_with_always_ends_as_the_last_run_did() -> None:
    policy = RestartPolicy(condition="always", max_attempts=0)
    assert play(policy, Exited(OK), state=running(policy))[0].phase == "exited"
    failed, _ = play(policy, Exited(BAD), state=running(policy))
    assert (failed.phase, failed.reason) == ("failed", "exit 3")


def test_a_launch_that_fails_is_retried_like_a_failure() -> None:
    starting, _ = play(ON_FAILURE, StartRequested(), Ready())
    state, action = decide(ON_FAILURE, starting, LaunchFailed("mount: no"), now=5.0)
    assert (state.phase, action, state.due, state.reason) == ("backoff", "delay", 5.1, "mount: no")
    assert decide(NO, starting, LaunchFailed("mount: no"), now=5.0)[0].phase == "failed"


def test_a_launch_that_can_not_work_is_not_retried() -> None:
    starting, _ = play(ALWAYS, StartRequested(), Ready())
    state, action = decide(ALWAYS, starting, LaunchFailed("no cgroup controller io", final=True), now=0.0)
    assert (state.phase, action, state.reason) == ("failed", "finish", "no cgroup controller io")


def test_start_limit() -> None:
    policy = RestartPolicy(condition="always", start_limit_burst=3, start_limit_interval=10, backoff=Backoff(initial=0))
    state, now = NEW, 0.0
    state, _ = play(policy, StartRequested())
    for now in (0.0, 1.0, 2.0):
        state, action = play(policy, Ready(), Launched(), Exited(OK), DelayElapsed(), state=state, now=now)
    state, action = decide(policy, state, Ready(), now=9.9)
    assert (state.phase, action) == ("failed", "finish")
    assert state.reason == "started 3 times within 10.0s: exit 0"


def test_start_limit_forgets_what_is_older_than_its_interval() -> None:
    policy = RestartPolicy(condition="always", start_limit_burst=1, start_limit_interval=10)
    state = running(policy)
    state, _ = play(policy, Exited(OK), DelayElapsed(), state=state)
    assert decide(policy, state, Ready(), now=10.0)[0].phase == "starting"
    assert decide(policy, state, Ready(), now=9.0)[0].phase == "failed"


def test_a_stop_on_request_never_restarts() -> None:
    for policy in (NO, ALWAYS, ON_FAILURE):
        for request, action in ((StopRequested(), "stop"), (KillRequested(), "kill")):
            state, done = decide(policy, running(policy), request, now=0.0)
            assert (state.phase, done) == ("stopping", action)
            assert play(policy, Exited(BAD), state=state)[0].phase == "stopped"


def test_a_stop_during_the_launch_cancels_it() -> None:
    starting, _ = play(ALWAYS, StartRequested(), Ready())
    state, action = decide(ALWAYS, starting, StopRequested(), now=0.0)
    assert (state.phase, action) == ("stopping", "cancel")
    assert decide(ALWAYS, state, LaunchFailed("cancelled"), now=0.0)[0].phase == "stopped"


@pytest.mark.parametrize("phase", ["scheduled", "waiting", "backoff"])
def test_a_stop_without_a_container_is_done_at_once(phase: Phase) -> None:
    for uncounted in (False, True):
        state, action = decide(ALWAYS, State(phase=phase, uncounted=uncounted), StopRequested(), now=0.0)
        assert (state, action) == (NEW, "finish")


def test_who_follows_a_replaced_dependency_skips_delay_and_count() -> None:
    policy = RestartPolicy(condition="no", start_limit_burst=1)
    state, action = decide(policy, running(policy), DependencyReplaced(), now=1.0)
    assert (state.phase, state.then, action) == ("stopping", "start", "stop")
    state, action = decide(policy, state, Exited(BAD), now=1.0)
    assert (state.phase, state.attempt, action) == ("waiting", 0, "wait")
    state, action = decide(policy, state, Ready(), now=1.0)
    assert (state.phase, action) == ("starting", "launch")


@pytest.mark.parametrize(
    "phase, after, action",
    [
        ("scheduled", "waiting", "wait"),
        ("waiting", "waiting", "wait"),
        ("starting", "stopping", "cancel"),
        ("running", "stopping", "stop"),
        ("backoff", "waiting", "wait"),
        ("stopping", "stopping", "nothing"),
        ("exited", "waiting", "wait"),
        ("failed", "waiting", "wait"),
        ("stopped", "waiting", "wait"),
    ],
)
def test_a_restart_on_request_is_possible_in_every_state(phase: Phase, after: Phase, action: Action) -> None:
    before = State(phase=phase, attempt=7, launches=9, starts=(1.0,), reason="why", ran=True)
    state, done = decide(ALWAYS, before, RestartRequested(), now=3.0)
    assert (state.phase, done) == (after, action)
    assert (state.attempt, state.launches, state.starts, state.ran, state.reason) == (0, 9, (), False, "")
    if after == "stopping":
        assert play(ALWAYS, Exited(OK), state=state)[0].phase == "waiting"


def test_what_changed_is_replaced_unless_somebody_has_stopped_it() -> None:
    assert decide(ALWAYS, NEW, ReplaceRequested(), now=0.0) == (NEW, "nothing")
    stopping, _ = play(ALWAYS, StopRequested(), state=running(ALWAYS))
    assert play(ALWAYS, ReplaceRequested(), Exited(OK), state=stopping)[0].phase == "stopped"
    restarting, _ = play(ALWAYS, RestartRequested(), state=running(ALWAYS))
    assert play(ALWAYS, ReplaceRequested(), Exited(OK), state=restarting)[0].phase == "waiting"
    for phase in ("failed", "exited", "backoff", "waiting"):
        assert decide(ALWAYS, State(phase=phase), ReplaceRequested(), now=0.0)[0].phase == "waiting"


@pytest.mark.parametrize("condition, phase", [("no", "stopped"), ("on-failure", "stopped"), ("unless-stopped", "stopped")])
def test_what_somebody_has_stopped_stays_so_under_the_next_supervisor(condition: Any, phase: Phase) -> None:
    assert play(RestartPolicy(condition=condition), Resumed())[0].phase == phase
    assert play(ALWAYS, Resumed())[0].phase == "waiting"


def test_failures_are_forgotten_on_request() -> None:
    state = State(phase="failed", attempt=3, launches=4, starts=(1.0,), reason="why")
    assert decide(NO, state, ResetRequested(), now=0.0) == (State(phase="stopped", launches=4), "finish")
    for phase in ("running", "backoff", "waiting", "starting", "stopping", "scheduled"):
        state = State(phase=phase, attempt=3, launches=4, starts=(1.0,), reason="why")
        after, action = decide(NO, state, ResetRequested(), now=0.0)
        assert (after, action) == (replace(state, attempt=0, starts=()), "nothing")


def test_a_stop_beats_a_restart_and_a_start_beats_a_stop() -> None:
    restarting, _ = decide(ALWAYS, running(ALWAYS), RestartRequested(), now=0.0)
    assert play(ALWAYS, StopRequested(), Exited(OK), state=restarting)[0].phase == "stopped"
    assert play(ALWAYS, KillRequested(), Exited(OK), state=restarting)[0].phase == "stopped"
    assert play(ALWAYS, StopRequested(), StartRequested(), Exited(OK), state=restarting)[0].phase == "waiting"


def test_a_start_request_forgets_failures_and_skips_the_delay() -> None:
    for phase in ("backoff", "failed", "exited", "stopped"):
        state = State(phase=phase, attempt=7, launches=9, starts=(1.0, 2.0), reason="why")
        assert decide(ALWAYS, state, StartRequested(), now=3.0) == (State(phase="waiting", launches=9), "wait")


# ---- what is no good ----


@pytest.mark.parametrize(
    "condition, then, phase",
    [("no", "retry", "backoff"), ("always", "fail", "failed"), ("no", None, "failed"), ("on-failure", None, "backoff")],
)
def test_what_is_unfit_is_stopped_and_counts_as_a_failure(condition: Any, then: Any, phase: Phase) -> None:
    policy = RestartPolicy(condition=condition)
    state, action = decide(policy, running(policy), Unfit("ill", then), now=1.0)
    assert (state.phase, action) == ("stopping", "stop")
    state, action = decide(policy, state, Exited(OK), now=2.0)
    assert (state.phase, state.reason, state.completed) == (phase, "ill", False)


def test_unhealthy_again_and_again_is_given_up() -> None:
    policy = RestartPolicy(condition="always", max_attempts=2)
    state = running(policy)
    for _ in range(2):
        state, _ = play(policy, Unfit("ill", "retry"), Exited(OK), DelayElapsed(), Ready(), Launched(), state=state)
    state, _ = play(policy, Unfit("ill", "retry"), Exited(OK), state=state)
    assert (state.phase, state.reason) == ("failed", "gave up after 2 restarts in a row: ill")


# ---- exit codes that decide ----


@pytest.mark.parametrize(
    "condition, exit, phase",
    [
        ("always", BAD, "failed"),
        ("always", Exit(status="signaled", signal=15), "failed"),
        ("on-failure", Exit(status="nonzero_exit", exit_code=4), "backoff"),
        ("no", Exit(status="nonzero_exit", exit_code=5), "backoff"),
        ("no", Exit(status="signaled", signal=9), "backoff"),
        ("no", Exit(status="signaled", signal=6), "failed"),
        ("on-failure", Exit(status="nonzero_exit", exit_code=7), "backoff"),
        ("no", Exit(status="nonzero_exit", exit_code=8), "failed"),
    ],
)
def test_prevent_and_force(condition: Any, exit: Exit, phase: Phase) -> None:
    policy = RestartPolicy(
        condition=condition,
        success_exit_codes=frozenset({7}),
        restart_prevent_exit_codes=frozenset({3, 8, "SIGTERM"}),
        restart_force_exit_codes=frozenset({5, 7, 8, "SIGKILL"}),
    )
    assert play(policy, Exited(exit), state=running(policy))[0].phase == phase


# ---- the schedule ----


def test_a_scheduled_service_waits_for_its_time_runs_and_waits_again() -> None:
    state, action = play(SCHEDULED, StartRequested())
    assert (state.phase, action) == ("scheduled", "schedule")
    state, action = play(SCHEDULED, Fired(), Ready(), Launched(), Exited(BAD), state=state)
    assert (state.phase, action, state.reason) == ("scheduled", "schedule", "exit 3")
    state, action = play(SCHEDULED, Fired(), Ready(), Launched(), Exited(OK), state=state)
    assert (state.phase, action, state.reason, state.completed) == ("scheduled", "schedule", "", True)
    assert play(SCHEDULED, StartRequested(), state=state)[0].phase == "waiting"  # now
    assert play(SCHEDULED, StopRequested(), state=state)[0].phase == "stopped"


def test_a_scheduled_run_that_fails_is_restarted_within_its_limits() -> None:
    policy = RestartPolicy(condition="on-failure", max_attempts=1, schedule=Schedule(cron="@daily"))
    state, _ = play(policy, StartRequested(), Fired(), Ready(), Launched(), Exited(BAD))
    assert state.phase == "backoff"
    state, _ = play(policy, DelayElapsed(), Ready(), Launched(), Exited(BAD), state=state)
    assert (state.phase, state.reason) == ("scheduled", "gave up after 1 restarts in a row: exit 3")
    assert play(policy, Fired(), state=state)[0].attempt == 0


def test_a_scheduled_run_without_its_dependency_is_left_out() -> None:
    state, action = play(SCHEDULED, StartRequested(), Fired(), DependencyLost("it depends on db"))
    assert (state.phase, action, state.reason, state.lost) == ("scheduled", "schedule", "it depends on db", False)


# ---- dependencies ----


def dependency(*events: ServiceEvent, policy: RestartPolicy = ALWAYS) -> State:
    return play(policy, *events)[0]


UP = (StartRequested(), Ready(), Launched())


@pytest.mark.parametrize(
    "condition, state, met, lost",
    [
        ("service_started", NEW, False, True),
        ("service_started", dependency(StartRequested()), False, False),
        ("service_started", dependency(*UP), True, False),
        ("service_started", dependency(*UP, Exited(BAD)), True, False),
        ("service_started", dependency(*UP, Exited(BAD), policy=NO), True, False),
        ("service_started", dependency(*UP, StopRequested()), False, False),
        ("service_started", dependency(*UP, StopRequested(), Exited(OK)), False, True),
        ("service_started", dependency(*UP, RestartRequested()), False, False),
        ("service_started", dependency(*UP, DependencyReplaced()), True, False),
        ("service_healthy", dependency(*UP, Exited(BAD)), False, False),
        ("service_healthy", dependency(*UP, Exited(OK), policy=NO), False, True),
        ("service_completed_successfully", dependency(*UP), False, False),
        ("service_completed_successfully", dependency(*UP, Exited(OK), policy=NO), True, False),
        ("service_completed_successfully", dependency(*UP, Exited(BAD), policy=NO), False, True),
        ("service_completed_successfully", dependency(*UP, Exited(BAD)), False, False),
        ("service_completed_successfully", dependency(*UP, Exited(OK), StartRequested(), policy=NO), False, False),
    ],
)
def test_conditions(condition: Condition, state: State, met: bool, lost: bool) -> None:
    assert (is_met(condition, state, healthy=False), is_lost(condition, state)) == (met, lost)


def test_healthy_is_running_and_well() -> None:
    assert is_met("service_healthy", dependency(*UP), healthy=True)
    assert not is_met("service_healthy", dependency(*UP), healthy=False)
    assert not is_met("service_healthy", dependency(*UP, StopRequested()), healthy=True)


def test_who_failed_for_a_dependency_comes_back_with_it_unless_stopped_meanwhile() -> None:
    failed, _ = play(NO, StartRequested(), DependencyLost("db has failed"))
    assert decide(NO, failed, DependencyBack(), now=0.0) == (State(phase="waiting"), "wait")
    stopped, _ = decide(NO, failed, StopRequested(), now=0.0)
    with pytest.raises(InternalError):
        decide(NO, stopped, DependencyBack(), now=0.0)
    with pytest.raises(InternalError):
        decide(NO, State(phase="failed", reason="its own fault"), DependencyBack(), now=0.0)


def test_a_launch_without_its_dependency_does_not_count() -> None:
    policy = RestartPolicy(start_limit_burst=1)
    state, action = play(policy, StartRequested(), Ready(), NotReady())
    assert (state.phase, state.launches, state.attempt, action) == ("waiting", 0, 0, "wait")
    assert play(policy, Ready(), state=state)[0].phase == "starting"


def test_a_lost_dependency_is_a_failure() -> None:
    state, action = play(ALWAYS, StartRequested(), DependencyLost("it depends on db, which has failed"))
    assert (state.phase, action, state.reason) == ("failed", "finish", "it depends on db, which has failed")


def test_stopped_through_another_door_is_a_stop_that_only_always_does_not_accept() -> None:
    for condition, phase in (("no", "stopped"), ("on-failure", "stopped"), ("unless-stopped", "stopped"), ("always", "backoff")):
        policy = RestartPolicy(condition=condition)  # type: ignore[arg-type]
        assert play(policy, Exited(Exit(status="stopped", signal=9)), state=running(policy))[0].phase == phase


# ---- by property ----


@given(backoffs, st.integers(0, 10_000), st.floats(0, 1))
def test_a_delay_is_within_its_bounds(backoff: Backoff, attempt: int, random: float) -> None:
    full = backoff_delay(backoff, attempt)
    assert backoff.initial <= full <= backoff.max
    assert full * (1 - backoff.jitter) - 1e-9 <= backoff_delay(backoff, attempt, random) <= full
    assert math.isfinite(full)


@given(backoffs, st.integers(0, 500))
def test_delays_without_jitter_never_get_shorter(backoff: Backoff, attempt: int) -> None:
    assert backoff_delay(backoff, attempt) <= backoff_delay(backoff, attempt + 1)


@st.composite
def histories(draw: st.DrawFn) -> tuple[RestartPolicy, list[tuple[State, ServiceEvent, State, Action, float]]]:
    """A policy, and a walk of legal events through its table."""
    policy, state, now, alive = draw(policies), NEW, 0.0, False
    steps = []
    for _ in range(draw(st.integers(1, 60))):
        own = [event for event in EVENTS if type(event) in LEGAL[state.phase]]
        if state.phase == "stopping":  # a launch that was cancelled, or a container
            own = [event for event in own if isinstance(event, Exited | Unfit) == alive]
        if not state.lost:
            own = [event for event in own if not isinstance(event, DependencyBack)]
        event = draw(st.sampled_from(own * 4 + list(COMMANDS)))  # commands are rare, or nothing else would ever happen
        if isinstance(event, Exited):
            event = Exited(draw(exits), draw(st.floats(-1, 100)))
        if isinstance(event, LaunchFailed):
            event = LaunchFailed("no", final=draw(st.booleans()))
        now = max(now + draw(st.floats(0, 30)), state.due if isinstance(event, DelayElapsed) else 0.0)
        after, action = decide(policy, state, event, now=now, random=draw(st.floats(0, 1)))
        steps.append((state, event, after, action, now))
        state = after
        if isinstance(event, Launched | Exited):
            alive = isinstance(event, Launched)
        # No launch while a container is alive, and no other phase either than these two.
        assert not alive or (action != "launch" and state.phase in ("running", "stopping"))
    return policy, steps


@given(histories())
def test_a_back_off_counts_from_the_end_as_far_as_that_is_credible(history: tuple[RestartPolicy, Any]) -> None:
    policy = replace(history[0], backoff=replace(history[0].backoff, jitter=0))
    for before, event, _, action, now in history[1]:
        if isinstance(event, Exited) and action == "delay":
            after, _ = decide(policy, before, event, now=now)
            full = backoff_delay(policy.backoff, after.attempt - 1)
            credit = min(max(event.ago, 0), MAX_CREDIT)
            assert after.due == pytest.approx(max(now, now + full - credit))


@given(histories())
def test_nothing_restarts_after_a_stop_until_a_start(history: tuple[RestartPolicy, Any]) -> None:
    stopped = False
    for before, event, after, action, _ in history[1]:
        if isinstance(event, StopRequested | KillRequested):
            stopped = True
        if isinstance(event, StartRequested | RestartRequested | Resumed):
            stopped = False
        if isinstance(event, ReplaceRequested) and before.phase in ("exited", "failed"):
            stopped = False  # what had ended by itself was not stopped by a stop
        assert not (stopped and action in ("launch", "delay", "wait", "schedule"))
        assert not (stopped and after.restarts)


@given(histories())
def test_down_is_final_until_a_command(history: tuple[RestartPolicy, Any]) -> None:
    starts = StartRequested | RestartRequested | ReplaceRequested | Resumed | DependencyBack | ResetRequested
    for before, event, after, action, _ in history[1]:
        if before.phase in DOWN and not isinstance(event, starts):
            assert after.phase == before.phase
            assert action == "nothing"


@given(histories())
def test_every_state_has_a_way_down_and_a_way_up(history: tuple[RestartPolicy, Any]) -> None:
    policy = replace(history[0], start_limit_burst=0)
    for _, _, after, _, now in history[1]:
        for ending in (Exited(OK), LaunchFailed("cancelled")):
            down, _ = decide(policy, after, StopRequested(), now=now)
            if down.phase == "stopping":
                down, _ = decide(policy, down, ending, now=now)
            assert down.phase in DOWN
            up, _ = decide(policy, after, StartRequested(), now=now)
            if up.phase == "stopping":
                up, _ = decide(policy, up, ending, now=now)
            if up.phase == "scheduled":
                up, _ = decide(policy, up, Fired(), now=now)
            if up.phase == "waiting":
                up, _ = decide(policy, up, Ready(), now=now)
            if up.phase == "starting":
                up, _ = decide(policy, up, Launched(), now=now)
            assert up.phase == "running"


@given(histories())
def test_no_more_restarts_in_a_row_than_allowed(history: tuple[RestartPolicy, Any]) -> None:
    policy, row = history[0], 0
    for before, event, after, action, now in history[1]:
        rested = before.phase == "running" and now - before.started_at >= policy.backoff.reset_after
        if after.attempt == 0 or (rested and isinstance(event, Exited | DependencyReplaced | Unfit)):
            row = 0
        row += action == "delay"
        assert policy.max_attempts is None or row <= policy.max_attempts


@given(histories())
def test_no_more_counted_starts_than_the_start_limit(history: tuple[RestartPolicy, Any]) -> None:
    policy, starts = history[0], list[float]()
    for before, _, after, action, now in history[1]:
        if not after.starts:
            starts = []
        if action == "launch" and not before.uncounted:
            starts.append(now)
        window = [start for start in starts if now - start < policy.start_limit_interval]
        if policy.start_limit_burst:
            assert len(window) <= policy.start_limit_burst


@given(histories())
def test_actions_fit_the_phase(history: tuple[RestartPolicy, Any]) -> None:
    phases: dict[Action, Collection[Phase]] = {
        "wait": {"waiting"}, "launch": {"starting"}, "cancel": {"stopping"}, "stop": {"stopping"},
        "kill": {"stopping"}, "delay": {"backoff"}, "schedule": {"scheduled"}, "finish": DOWN, "nothing": set(PHASES),
    }  # fmt: skip
    for before, _, after, action, now in history[1]:
        assert after.phase in phases[action]
        assert after.due >= now or action != "delay"
        assert action != "nothing" or after.phase == before.phase or before.phase == "starting"
        assert after.phase != "failed" or after.reason
        assert len(after.starts) <= history[0].start_limit_burst


@given(histories())
def test_without_jitter_the_random_number_changes_nothing(history: tuple[RestartPolicy, Any]) -> None:
    policy = replace(history[0], backoff=replace(history[0].backoff, jitter=0))
    for before, event, _, _, now in history[1]:
        assert decide(policy, before, event, now=now, random=0.0) == decide(policy, before, event, now=now, random=1.0)
