"""Health: the decisions, then a supervisor that acts on them. In the mock clock's time."""

from __future__ import annotations

import math
import os
import time
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.bench import ALWAYS, bench, service
from tests.fake_runtime import OK, FakeContainer, Script, failure
from tinyvisor import health, pattern
from tinyvisor.errors import LauncherDied, LaunchError
from tinyvisor.health import Health
from tinyvisor.inside import OUTPUT_LIMIT
from tinyvisor.runner import PROBES_KEPT
from tinyvisor.spec import Dependency, Healthcheck, Hook, RestartPolicy, Service, Spec
from tinyvisor.state import (
    Exit,
    HealthChanged,
    HookFailed,
    ServiceBackoff,
    ServiceFailed,
    ServiceStarted,
    ServiceStopping,
)

pytestmark = pytest.mark.anyio
CHECK = Healthcheck(test=("probe",), interval=10, timeout=3, retries=3, start_period=20, start_interval=2)
NEW = Health(status="starting", passed=False)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


def fail(state: Health, elapsed: float = 100.0) -> Health:
    return health.judge(CHECK, state, passed=False, why="exit 1", elapsed=elapsed)


def succeed(state: Health, elapsed: float = 100.0) -> Health:
    return health.judge(CHECK, state, passed=True, why="", elapsed=elapsed)


# ---- decisions ----


def test_a_container_starts_with_what_its_service_asks_for() -> None:
    spec = Spec(command=("x",))
    assert health.at_start(Service(spec=spec)) == health.UNKNOWN
    assert health.at_start(Service(spec=spec, healthcheck=CHECK)) == NEW
    assert health.at_start(Service(spec=spec, ready_log="up")) == Health(status="starting", ready=False, began=False)


def test_so_many_failures_in_a_row_make_it_unhealthy_and_one_success_healthy() -> None:
    state = fail(fail(succeed(NEW)))
    assert (state.status, state.failures) == ("healthy", 2)
    state = fail(fail(succeed(state)))
    assert state.status == "healthy"
    state = fail(state)
    assert (state.status, state.reason) == ("unhealthy", "its healthcheck failed 3 times in a row: exit 1")
    assert succeed(state) == Health(status="healthy")


def test_failures_in_the_start_period_do_not_count_until_the_first_success() -> None:
    state = NEW
    for _ in range(9):
        state = fail(state, elapsed=19.9)
    assert state == NEW
    state = succeed(state, elapsed=19.9)
    for _ in range(3):
        state = fail(state, elapsed=19.9)
    assert state.status == "unhealthy"


def test_the_start_interval_ends_with_the_start_period_or_the_first_success() -> None:
    assert health.delay(CHECK, NEW, elapsed=0) == 2
    assert health.delay(CHECK, NEW, elapsed=20) == 10
    assert health.delay(CHECK, succeed(NEW, 2), elapsed=2) == 10


def test_line_and_probe_are_both_needed() -> None:
    state = Health(status="starting", passed=False, ready=False)
    assert succeed(state).status == "starting"
    assert health.became_ready(state).status == "starting"
    assert health.became_ready(succeed(state)).status == "healthy"
    assert succeed(health.became_ready(state)).status == "healthy"


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 50))))
def test_unhealthy_only_after_so_many_failures_and_healthy_only_after_a_success(probes: list[tuple[bool, float]]) -> None:
    state, row, ever = NEW, 0, False
    for passed, elapsed in sorted(probes, key=lambda probe: probe[1]):
        state = succeed(state, elapsed) if passed else fail(state, elapsed)
        ever = ever or passed
        row = 0 if passed else row + 1
        assert state.status != "healthy" or ever
        assert state.status != "unhealthy" or row >= CHECK.retries
        assert (state.status == "unhealthy") == bool(state.reason)


# ---- a line that a container chooses ----


@pytest.mark.parametrize(
    "text",
    [
        "ready",
        r"listening on .*:\d+",
        "(?:up|ready)",
        r"^\d{4}-\d{2} ok",
        "(?i)READY",
        "a?b",
        r"on .*:?\d+$",
        r"\d{1,3}\.\d{1,3}\.\d{1,3}:\d+",
    ],
)
def test_patterns_that_are_fine(text: str) -> None:
    pattern.compile_line(text)


@pytest.mark.parametrize(
    "text, problem",
    [
        ("", "expected a regular expression of 1 to 200 characters"),
        ("x" * 201, "expected a regular expression of 1 to 200 characters"),
        ("(", "is not a regular expression: missing )"),
        ("(a+)+", "a part that repeats holds another one, or a choice"),
        ("(a|ab)*", "a part that repeats holds another one, or a choice"),
        ("(?:a?){30}", "a part that repeats holds another one, or a choice"),
        ("(?:(x|yy)b){2,}", "a part that repeats holds another one, or a choice"),
        (".*a.*b.*c", "too many parts of varying length"),
        ("a?" * 21 + "b", "too many parts of varying length"),
        ("(?:ab|c)" * 21, "too many parts of varying length"),
        (r"(a)\1", "must not look around or back"),
        ("(?=a+)b", "must not look around or back"),
    ],
)
def test_patterns_that_are_not(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem.replace("(", r"\(").replace(")", r"\)")):
        pattern.compile_line(text)


@pytest.mark.parametrize("text", [r".*a.*Z", "a*a*Z", r"\w+\d+Z", "(?:ab)+(?:ab)+Z", "a?b?a*a*Z"])
def test_the_worst_line_takes_bounded_work(text: str) -> None:
    """Where backtracking has no bounds, this would not end in our lifetime."""
    compiled = pattern.compile_line(text)
    for unit in (b"a", b"1", b"ab"):
        assert compiled.search((unit * pattern.LINE_LIMIT)[: pattern.LINE_LIMIT]) is None


# ---- probes ----


def checked(restart: RestartPolicy | None = None, **more: Any) -> Service:
    check = {"interval": 1.0, "timeout": 3.0, "retries": 2} | more.pop("check", {})
    return service("a", restart, healthcheck=Healthcheck(test=("probe", "-x"), **check), **more)


def ill(since: float = 0.0, until: float = math.inf, **more: Any) -> Script:
    """A container whose probe fails between these times."""
    return Script(exec=lambda now, command: (0.0, failure(3) if since <= now < until else OK, b"no\n"), **more)


async def test_probes_come_at_their_interval_and_tell_changes_only() -> None:
    b = bench(checked(), scripts={"a": [ill(since=2.5, until=5.5)]})
    async with b.live() as supervisor:
        assert supervisor.summaries()[0].health == "starting"
        await trio.sleep(10.5)
        assert supervisor.summaries()[0].health == "healthy"
    assert b.runtime.times("exec", "a") == list(range(1, 11))
    assert b.runtime.executed[0][:2] == ("a", ("probe", "-x"))
    assert b.of(HealthChanged) == [
        HealthChanged("a", "healthy", ""),
        HealthChanged("a", "unhealthy", "its healthcheck failed 2 times in a row: exit 3: no"),
        HealthChanged("a", "healthy", ""),
    ]
    assert b.supervisor.summaries()[0].health == ""


async def test_the_start_period_by_the_clock() -> None:
    item = checked(check={"start_period": 5.0, "start_interval": 0.5, "interval": 2.0})
    b = bench(item, scripts={"a": [ill(until=2.9)]})
    await b.run_until(8.0)
    assert b.runtime.times("exec", "a") == [0.5, 1, 1.5, 2, 2.5, 3, 5, 7]
    assert b.of(HealthChanged) == [HealthChanged("a", "healthy", "")]


async def test_a_probe_that_hangs_has_failed_and_the_next_comes_an_interval_later() -> None:
    hang = Script(exec=lambda now, command: (math.inf, OK, b"waiting"))
    b = bench(checked(), scripts={"a": [hang]})
    async with b.live() as supervisor:
        await trio.sleep(9.5)
        assert b.runtime.times("exec", "a") == [1, 5, 9]
        assert supervisor.summaries()[0].health == "unhealthy"
        assert supervisor.probes("a")[0].exit.status == "time_limit"
        assert supervisor.probes("a")[0].seconds == 3


async def test_a_probe_that_can_not_be_started_has_failed() -> None:
    def refuse(now: float, command: tuple[str, ...]) -> tuple[float, Exit, bytes]:
        raise LaunchError("a", "exec probe", 2)

    b = bench(checked(), scripts={"a": [Script(exec=refuse)]})
    await b.run_until(3)
    assert b.of(HealthChanged) == [
        HealthChanged("a", "unhealthy", "its healthcheck failed 2 times in a row: exec probe: No such file or directory")
    ]


async def test_the_latest_probes_are_kept_with_their_first_output() -> None:
    chatty = Script(exec=lambda now, command: (0.0, OK, b"%d" % now + b"x" * 50_000))
    begin = trio.current_time()
    b = bench(checked(), scripts={"a": [chatty]}, wall=lambda: 1000.0 + trio.current_time() - begin)
    async with b.live() as supervisor:
        await trio.sleep(20.5)
        probes = supervisor.probes("a")
    assert [probe.time for probe in probes] == [1016, 1017, 1018, 1019, 1020]
    assert len(probes) == PROBES_KEPT
    assert {len(probe.output) for probe in probes} == {OUTPUT_LIMIT}
    assert probes[-1].output.startswith(b"20x")


async def test_a_bug_in_a_probe_comes_out() -> None:
    def crash(now: float, command: tuple[str, ...]) -> tuple[float, Exit, bytes]:
        raise LauncherDied("gone")

    b = bench(checked(), scripts={"a": [Script(exec=crash)]})
    with pytest.RaisesGroup(LauncherDied, flatten_subgroups=True):
        await b.run()


@pytest.mark.parametrize("seconds", [0.5, 1.0, 1.5, 3.9])
async def test_a_probe_under_way_delays_no_end(seconds: float) -> None:
    hang = Script(exec=lambda now, command: (math.inf, OK, b""), seconds=seconds)
    b = bench(checked(), scripts={"a": [hang]})
    await b.run()
    assert b.took == seconds


async def test_a_probe_under_way_delays_no_stop() -> None:
    b = bench(checked(), scripts={"a": [Script(exec=lambda now, command: (math.inf, OK, b""))]})
    await b.run_until(1.5)
    assert b.took == 1.5


# ---- what becomes of it ----


async def test_none_leaves_it_alone() -> None:
    b = bench(checked(), scripts={"a": [ill()]})
    await b.run_until(50)
    assert len(b.of(ServiceStarted)) == 1
    assert len(b.of(HealthChanged)) == 1


async def test_unhealthy_restart_has_the_same_back_off_whatever_the_condition() -> None:
    b = bench(checked(on_unhealthy="restart"), scripts={"a": [ill(), ill(), Script()]})
    await b.run_until(50)
    assert b.runtime.times("stop", "a") == pytest.approx([2, 4.1, 50])
    assert b.runtime.times("up", "a") == pytest.approx([0, 2.1, 4.3])
    reason = "its healthcheck failed 2 times in a row: exit 3: no"
    assert b.of(ServiceBackoff) == [
        ServiceBackoff("a", pytest.approx(0.1), 1, reason),  # type: ignore[arg-type]
        ServiceBackoff("a", pytest.approx(0.2), 2, reason),  # type: ignore[arg-type]
    ]
    assert b.of(ServiceStopping)[0] == ServiceStopping("a", True)


async def test_unhealthy_restart_has_the_same_limits() -> None:
    for policy in (RestartPolicy(max_attempts=2), RestartPolicy(start_limit_burst=3, start_limit_interval=1000)):
        b = bench(checked(policy, on_unhealthy="restart"), scripts={"a": [ill()]})
        summary = (await b.run())["a"]
        assert (summary.state, summary.restarts) == ("failed", 2)
        assert summary.reason.endswith(": its healthcheck failed 2 times in a row: exit 3: no")


async def test_unhealthy_stop_is_a_failure() -> None:
    b = bench(checked(ALWAYS, on_unhealthy="stop"), scripts={"a": [ill()]})
    await b.run()
    assert b.of(ServiceFailed) == [ServiceFailed("a", "its healthcheck failed 2 times in a row: exit 3: no")]
    assert b.of(ServiceStopping) == [ServiceStopping("a", False)]


async def test_a_stop_by_hand_beats_an_unhealthy_restart() -> None:
    b = bench(checked(on_unhealthy="restart"), scripts={"a": [ill(stop_seconds=5)]}, linger=True)
    async with b.live() as supervisor:
        await trio.sleep(3)
        supervisor.stop(["a"])
        await trio.sleep(100)
        assert b.states() == {"a": "stopped"}


# ---- ready by a line ----


async def test_ready_by_a_line() -> None:
    output = ((1.0, "stdout", b"not yet\n"), (2.0, "stderr", b"listening on port 80"), (3.0, "stderr", b"80\n"))
    services = service("app", depends_on={"web": Dependency(condition="service_healthy")}), service("web", ready_log=r"port \d+$")
    b = bench(*services, scripts={"web": [Script(output=output)]})
    await b.run_until(10)
    assert b.runtime.times("up", "app") == [3]
    assert b.of(HealthChanged) == [HealthChanged("web", "healthy", "")]


async def test_each_container_has_to_say_it_again() -> None:
    says = Script(seconds=5, output=((1.0, "stdout", b"ready\n"),))
    b = bench(service("a", ALWAYS, ready_log="ready"), scripts={"a": [says, Script()]})
    async with b.live() as supervisor:
        await trio.sleep(2)
        assert supervisor.summaries()[0].health == "healthy"
        await trio.sleep(5)
        assert supervisor.summaries()[0].health == "starting"


async def test_only_the_start_of_a_long_line_is_looked_at() -> None:
    early, late = b"x" * 400 + b"ready\n", b"x" * 5000 + b"ready\n"
    for line, status in ((early, "healthy"), (late, "starting")):
        b = bench(service("a", ready_log="ready"), scripts={"a": [Script(output=((1.0, "stdout", line),))]})
        async with b.live() as supervisor:
            await trio.sleep(2)
            assert supervisor.summaries()[0].health == status


async def test_a_container_that_makes_the_search_slow_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1_000_000))
    monkeypatch.setattr(time, "thread_time", lambda: next(clock) * 0.3)
    lines = b"".join(b"aaaa %d\n" % number for number in range(100))
    b = bench(service("a", ready_log="a*a*b"), scripts={"a": [Script(output=((1.0, "stdout", lines),))]})
    await b.run_until(3)
    assert b.of(HealthChanged) == [HealthChanged("a", "unhealthy", "the search for ready_log took more than 1 s of CPU time")]
    assert len(b.lines) == 100
    assert next(clock) < 20


# ---- hooks ----

TIDY, NOTE = Hook(command=("tidy",), user="1000", working_dir="/srv", environment={"A": "1"}), Hook(command=("note",))


def commands(b: Any) -> list[tuple[str, ...]]:
    return [command for _, command, _, _, _ in b.runtime.executed]


async def test_post_start_commands_run_one_after_another() -> None:
    b = bench(service("a", post_start=(TIDY, NOTE)), scripts={"a": [Script(exec=lambda now, command: (2.0, OK, b""))]})
    await b.run_until(10)
    assert b.runtime.times("exec", "a") == [0, 2]
    assert b.runtime.executed == [("a", ("tidy",), "1000", "/srv", {"A": "1"}), ("a", ("note",), None, None, None)]


@pytest.mark.parametrize(
    "condition, launches, state", [("no", 1, "failed"), ("on-failure", 3, "failed"), ("always", 3, "failed")]
)
async def test_a_post_start_command_that_fails_is_the_container_s_failure(condition: Any, launches: int, state: str) -> None:
    policy = RestartPolicy(condition=condition, max_attempts=2)
    script = Script(exec=lambda now, command: (1.0, failure(2), b"first\nlast words\n\n"))
    b = bench(service("a", policy, post_start=(NOTE, TIDY)), scripts={"a": [script]})
    summary = (await b.run())["a"]
    assert (summary.state, summary.restarts + 1) == (state, launches)
    assert summary.reason.endswith("post_start command 1 failed: exit 2: last words")
    assert b.of(HookFailed)[0] == HookFailed("a", "post_start", "exit 2: last words")
    assert set(commands(b)) == {("note",)}


async def test_pre_stop_commands_run_before_the_stop_signal() -> None:
    b = bench(service("a", pre_stop=(TIDY, NOTE)), scripts={"a": [Script(exec=lambda now, command: (2.0, OK, b""))]})
    await b.run_until(5)
    assert (b.runtime.times("exec", "a"), b.runtime.times("stop", "a")) == ([5, 7], [9])


async def test_a_pre_stop_command_that_fails_or_hangs_stops_no_stop() -> None:
    def act(now: float, command: tuple[str, ...]) -> tuple[float, Exit, bytes]:
        return (0.0, failure(), b"") if command == ("note",) else (math.inf, OK, b"")

    b = bench(service("a", pre_stop=(NOTE, TIDY), stop_grace_period=4), scripts={"a": [Script(exec=act)]})
    await b.run_until(5)
    assert b.runtime.times("stop", "a") == [9]
    assert [event.reason for event in b.of(HookFailed)] == ["exit 1", "it outlived the grace period"]


async def test_no_pre_stop_for_what_ends_by_itself_or_is_killed() -> None:
    hang = Script(exec=lambda now, command: (math.inf, OK, b""))
    b = bench(service("a", pre_stop=(NOTE,)), service("b", pre_stop=(NOTE,)), scripts={"a": [Script(seconds=1)], "b": [hang]})
    await b.run_until(5, "request_kill")
    assert commands(b) == []


async def test_a_kill_or_an_end_cuts_pre_stop_short() -> None:
    hang = Script(exec=lambda now, command: (math.inf, OK, b""))
    ends = Script(exec=lambda now, command: (math.inf, OK, b""), seconds=3)
    for script, took in ((hang, 2.0), (ends, 3.0)):
        b = bench(service("a", pre_stop=(NOTE, TIDY)), scripts={"a": [script]})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.run)
            await trio.sleep(1)
            b.supervisor.request_stop()
            if script is hang:
                await trio.sleep(1)
                b.supervisor.request_kill()
        assert b.took == took
        assert b.of(HookFailed) == []


async def test_no_fd_is_left_by_commands_inside() -> None:
    before = len(os.listdir("/proc/self/fd"))
    b = bench(checked(post_start=(NOTE,), pre_stop=(NOTE,)), scripts={"a": [ill()]})
    await b.run_until(30)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_output_that_is_held_open_by_what_a_command_left_behind_is_not_waited_for() -> None:
    held: list[int] = []

    class Keeping(FakeContainer):
        async def exec(self, command: tuple[str, ...], **more: Any) -> Exit:
            held.append(os.dup(more["stdout"]))
            return await super().exec(command, **more)

    b = bench(checked(), scripts={"a": [ill()]})
    b.runtime.container = Keeping
    await b.run_until(5)
    assert b.runtime.times("exec", "a") == pytest.approx([1, 2.1, 3.2, 4.3])
    assert b.of(HealthChanged)[0].health == "unhealthy"
    for fd in held:
        os.close(fd)
