"""The supervisor with a scripted runtime, in the mock clock's time: nothing here waits for real."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.bench import ALWAYS, Bench, bench, service
from tests.fake_runtime import OK, FakeContainer, FakeRuntime, Pipe, Script, failure
from tinyvisor.errors import ContainerError, HostError, InternalError, LauncherDied, LaunchError, SpecError
from tinyvisor.logtarget import LINEWISE
from tinyvisor.runner import CHUNK
from tinyvisor.runtime.logfile import MAX_PIECE, Block, Stream
from tinyvisor.spec import Backoff, Logging, Project, RestartPolicy, Service, Spec
from tinyvisor.state import (
    Event,
    Exit,
    LogLost,
    ServiceBackoff,
    ServiceExited,
    ServiceFailed,
    ServiceFinished,
    ServiceStarted,
    ServiceStopped,
    ServiceStopping,
    ServiceSummary,
    StopHeldUp,
)
from tinyvisor.supervisor import Supervisor, exit_code
from tinyvisor.turns import LAUNCH_PATIENCE

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


# ---- the end by itself ----


async def test_nothing_to_run_is_over_at_once() -> None:
    assert await bench().run() == {}


async def test_services_run_side_by_side_and_it_ends_with_the_last() -> None:
    b = bench(service("a"), service("b"), scripts={"a": [Script(seconds=3)], "b": [Script(seconds=5, exit=failure(3))]})
    summaries = await b.run()
    assert b.took == 5
    assert summaries["a"] == ServiceSummary(name="a", state="exited", exit=OK)
    assert summaries["b"] == ServiceSummary(name="b", state="failed", exit=failure(3), reason="exit 3")
    assert b.runtime.most_running == 2


async def test_the_summary_adds_up_all_runs() -> None:
    def used(seconds: float, peak: int | None) -> Exit:
        return Exit(status="nonzero_exit", exit_code=1, wall=seconds, cpu_user=0.5, cpu_system=0.25, memory_peak=peak)

    exits = [used(1, 10), used(2, 30), used(3, 20), used(4, None)]
    policy = RestartPolicy(condition="on-failure", max_attempts=3)
    b = bench(service("a", policy), scripts={"a": [Script(seconds=exit.wall, exit=exit) for exit in exits]})
    summary = (await b.run())["a"]
    assert (summary.wall, summary.cpu, summary.memory_peak, summary.restarts) == (10, 3, 30, 3)
    assert summary.exit == exits[-1]
    assert summary.reason == "gave up after 3 restarts in a row: exit 1"


async def test_events_in_order() -> None:
    policy = RestartPolicy(condition="on-failure")
    b = bench(service("a", policy), scripts={"a": [Script(seconds=1, exit=failure()), Script(seconds=1)]})
    await b.run()
    assert b.events == [
        ServiceStarted("a", 101),
        ServiceExited("a", failure()),
        ServiceBackoff("a", pytest.approx(0.1), 1, "exit 1"),  # type: ignore[arg-type]
        ServiceStarted("a", 102),
        ServiceExited("a", OK),
        ServiceFinished("a"),
    ]


async def test_task_status_is_told_while_launches_are_under_way() -> None:
    b = bench(service("a"), scripts={"a": [Script(launch_seconds=3, seconds=1)]})
    async with trio.open_nursery() as nursery:
        await nursery.start(b.supervisor.run)
        assert not b.runtime.running
        assert b.supervisor.summaries()[0].state in ("waiting", "starting")


# ---- restart and back-off ----


async def test_back_off_by_the_clock() -> None:
    b = bench(service("a", ALWAYS), scripts={"a": [Script(seconds=0, exit=failure())]})
    await b.run_until(3.5)
    assert b.runtime.times("up", "a") == pytest.approx([0, 0.1, 0.3, 0.7, 1.5, 3.1])
    assert b.took == 3.5
    assert b.events[-1] == ServiceStopped("a")  # a back-off that is pending is not waited for


async def test_jitter_is_asked_for() -> None:
    b = bench(service("a", ALWAYS), scripts={"a": [Script(seconds=0)]}, jitter=lambda: 1.0)
    await b.run_until(0.2)
    assert b.runtime.times("up", "a") == pytest.approx([0, 0.08])


async def test_a_good_run_resets_the_delay() -> None:
    bad = Script(seconds=0, exit=failure())
    b = bench(service("a", ALWAYS), scripts={"a": [bad, bad, Script(seconds=10, exit=failure()), bad, Script()]})
    await b.run_until(20)
    assert [round(event.delay, 6) for event in b.of(ServiceBackoff)] == [0.1, 0.2, 0.1, 0.2]


async def test_one_crash_looper_delays_nobody() -> None:
    loop = RestartPolicy(condition="always", backoff=Backoff(initial=0))
    b = bench(service("loop", loop), service("a"), scripts={"loop": [Script(seconds=0.01)], "a": [Script(seconds=1)]})
    await b.run_until(2)
    assert b.runtime.times("down", "a") == [1]
    assert len(b.runtime.times("up", "loop")) > 100


async def test_the_start_limit_ends_in_failed() -> None:
    policy = RestartPolicy(condition="always", start_limit_burst=3, start_limit_interval=60, backoff=Backoff(initial=1))
    summary = (await bench(service("a", policy), scripts={"a": [Script(seconds=0)]}).run())["a"]
    assert (summary.state, summary.restarts) == ("failed", 2)
    assert summary.reason == "started 3 times within 1m00s: exit 0"


async def test_a_failed_launch_is_retried() -> None:
    policy = RestartPolicy(condition="on-failure")
    error = LaunchError("a", "mount tmpfs on /tmp", 1)
    b = bench(service("a", policy), scripts={"a": [Script(error=error), Script(error=error), Script(seconds=1)]})
    summary = (await b.run())["a"]
    assert (summary.state, summary.restarts, summary.exit) == ("exited", 2, OK)
    assert b.of(ServiceBackoff)[0].reason == "mount tmpfs on /tmp: Operation not permitted"


@pytest.mark.parametrize("error", [HostError("cgroup controller io", "enable it"), SpecError("user", "no such user")])
async def test_what_can_not_work_is_not_retried(error: Exception) -> None:
    b = bench(service("a", ALWAYS), service("b"), scripts={"a": [Script(error=error)], "b": [Script(seconds=1)]})
    summaries = await b.run()
    assert (summaries["a"].state, summaries["a"].reason, summaries["a"].exit) == ("failed", str(error), None)
    assert summaries["b"].state == "exited"
    assert b.of(ServiceFailed) == [ServiceFailed("a", str(error))]


async def test_a_container_that_ends_in_our_trouble_is_a_failure() -> None:
    error = ContainerError("a", "its cgroup could not be removed: Device or resource busy")
    b = bench(service("a"), service("b"), scripts={"a": [Script(seconds=1, wait_error=error)], "b": [Script(seconds=2)]})
    summaries = await b.run()
    assert summaries["a"].state == "failed"
    assert summaries["a"].exit == Exit(status="sandbox_error", reason=error.problem)
    assert summaries["b"].state == "exited"


# ---- launches ----


async def test_launches_at_once_are_limited() -> None:
    services = [service(f"s{number}") for number in range(20)]
    scripts = {item.name: [Script(launch_seconds=1, seconds=10)] for item in services}
    b = bench(*services, scripts=scripts, max_launches=4)
    await b.run()
    assert b.runtime.most_launching == 4
    assert b.runtime.most_running == 20
    assert b.took == 15


async def test_stuck_launches_use_up_no_turn_for_long() -> None:
    stuck = {f"stuck{number}": [Script(launch_seconds=1000)] for number in range(3)}
    b = bench(*map(service, stuck), service("a"), scripts=stuck | {"a": [Script(seconds=1)]}, max_launches=2)
    await b.run_until(100)
    assert b.runtime.times("up", "a")[0] <= LAUNCH_PATIENCE
    assert b.took == 100


async def test_a_slow_launch_delays_nobody_while_there_are_turns() -> None:
    b = bench(service("slow"), service("a"), scripts={"slow": [Script(launch_seconds=60, seconds=1)], "a": [Script(seconds=1)]})
    await b.run()
    assert b.runtime.times("up", "a") == [0]
    assert b.took == 61


async def test_a_stop_cancels_a_launch() -> None:
    b = bench(service("a"), scripts={"a": [Script(launch_seconds=1000)]})
    summary = (await b.run_until(1))["a"]
    assert (summary.state, b.took) == ("stopped", 1)
    assert b.events == [ServiceStopping("a", False), ServiceStopped("a")]


async def test_a_stop_while_waiting_for_a_turn() -> None:
    slow = [Script(launch_seconds=1000)]
    b = bench(service("a"), service("b"), scripts={"a": slow, "b": slow}, max_launches=1)
    await b.run_until(1)
    assert b.took == 1
    assert len(b.runtime.order("launch")) == 1


async def test_a_launch_that_comes_through_after_its_stop_is_taken_down() -> None:
    b = bench(service("a", ALWAYS), scripts={"a": [Script(launch_seconds=5, launch_ignores_cancel=True)]})
    summary = (await b.run_until(1))["a"]
    assert summary.state == "stopped"
    assert b.runtime.order("kill") == ["a"]
    assert b.took == 5
    assert not b.of(ServiceStarted)


async def test_stdin_is_a_pipe_only_where_it_stays_open() -> None:
    asked = {}

    class Runtime(FakeRuntime):
        def start(self, spec: Spec, **stdio: Any) -> Any:
            asked[spec.name] = {name: stdio[name] for name in ("stdin", "stdout", "stderr")}
            return super().start(spec, **stdio)

    project = Project(name="p", services={"a": service("a"), "b": service("b", stdin_open=True)})
    scripts = {"a": [Script(seconds=1)], "b": [Script(seconds=1)]}
    await Supervisor(Runtime(scripts), project, log_dir=None).run()
    assert asked == {
        "a": {"stdin": None, "stdout": -1, "stderr": -1},
        "b": {"stdin": -1, "stdout": -1, "stderr": -1},
    }


# ---- dependencies ----


async def test_a_dependency_has_started_first() -> None:
    b = bench(
        service("app", depends_on=["db"]),
        service("db"),
        scripts={"db": [Script(launch_seconds=2, seconds=1)], "app": [Script(seconds=1)]},
    )
    await b.run()
    assert b.runtime.times("up", "db") == [2]
    assert b.runtime.times("launch", "app") == [2]


async def test_started_once_is_started() -> None:
    """A dependency in back-off does not hold back who needed its start only."""
    b = bench(
        service("app", ALWAYS, depends_on=["db"]),
        service("db", RestartPolicy(condition="always", backoff=Backoff(initial=50))),
        scripts={"db": [Script(seconds=0)], "app": [Script(seconds=1)]},
    )
    await b.run_until(10)
    assert len(b.runtime.times("up", "app")) > 2


async def test_a_dependency_that_never_starts_fails_its_dependents_in_turn() -> None:
    error = LaunchError("db", "mount", 2)
    b = bench(
        service("web", depends_on=["app"]),
        service("app", depends_on=["db"]),
        service("db"),
        scripts={"db": [Script(error=error)]},
    )
    summaries = await b.run()
    assert summaries["app"].reason == "it depends on db, which has failed: mount: No such file or directory"
    assert summaries["web"].reason.startswith("it depends on app, which has failed: it depends on db")
    assert {summary.state for summary in summaries.values()} == {"failed"}


async def test_a_dependency_that_starts_at_last_releases_its_dependents() -> None:
    policy = RestartPolicy(condition="on-failure")
    error = LaunchError("db", "mount", 2)
    b = bench(
        service("app", depends_on=["db"]),
        service("db", policy),
        scripts={"db": [Script(error=error), Script(error=error), Script(seconds=1)], "app": [Script(seconds=1)]},
    )
    summaries = await b.run()
    assert {summary.state for summary in summaries.values()} == {"exited"}
    assert b.runtime.times("up", "app") == pytest.approx([0.3])


@pytest.mark.parametrize(
    "services, problem",
    [
        ([service("a", depends_on=["b"])], 'a needs "b", and there is no such service'),
        ([service("a", network_mode="service:b")], 'a needs "b", and there is no such service'),
        ([service("a", depends_on=["a"])], "a cycle: a → a"),
        ([service("a", depends_on=["b"]), service("b", network_mode="service:a")], "a cycle: "),
    ],
)
def test_a_graph_that_can_not_work_is_refused(services: list[Service], problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        bench(*services)


def test_exit_code_from_must_be_a_service() -> None:
    with pytest.raises(SpecError, match='no service "b"'):
        bench(service("a"), exit_code_from="b")


async def test_a_long_chain_of_dependencies() -> None:
    services = [service("s0"), *(service(f"s{n}", depends_on=[f"s{n - 1}"]) for n in range(1, 1100))]
    b = bench(*services)
    await b.run_until(1)
    assert b.runtime.order("up") == [item.name for item in services]
    assert b.runtime.order("down") == [item.name for item in reversed(services)]


# ---- a network that is joined ----


def pair(restart: RestartPolicy = ALWAYS, **spec: Any) -> tuple[Service, Service]:
    return service("web", ALWAYS), service("client", restart, network_mode="service:web", **spec)


async def test_the_provider_runs_before_it_is_joined() -> None:
    b = bench(*pair(), scripts={"web": [Script(launch_seconds=2)]})
    await b.run_until(3)
    assert b.runtime.times("launch", "client") == [2]


async def test_a_restart_of_the_provider_restarts_who_joined_it() -> None:
    b = bench(*pair(RestartPolicy()), scripts={"web": [Script(seconds=5, exit=failure()), Script()]})
    summaries = await b.run_until(10)
    assert b.runtime.times("up", "web") == pytest.approx([0, 5.1])
    assert b.runtime.times("down", "client") == pytest.approx([5.1, 10])
    assert b.runtime.times("up", "client") == pytest.approx([0, 5.1])
    assert b.of(ServiceStopping, "client")[0] == ServiceStopping("client", True)
    assert summaries["client"].restarts == 1


async def test_such_restarts_go_down_a_chain() -> None:
    b = bench(
        service("a", ALWAYS),
        service("b", network_mode="service:a"),
        service("c", network_mode="service:b"),
        scripts={"a": [Script(seconds=5), Script()]},
    )
    await b.run_until(10)
    assert [len(b.runtime.times("up", name)) for name in "abc"] == [2, 2, 2]
    assert b.runtime.order("up")[3:] == ["a", "b", "c"]


async def test_a_slow_stop_of_one_who_joined_delays_neither_provider_nor_siblings() -> None:
    slow = service("slow", network_mode="service:web", stop_grace_period=3)
    b = bench(*pair(), slow, scripts={"web": [Script(seconds=5), Script()], "slow": [Script(stop_seconds=math.inf)]})
    await b.run_until(20)
    assert b.runtime.times("up", "client")[1] == pytest.approx(5.1)
    assert b.runtime.times("up", "slow")[1] == pytest.approx(8.1)


async def test_the_provider_restarts_while_one_that_joined_is_launching() -> None:
    b = bench(*pair(), scripts={"web": [Script(seconds=1), Script()], "client": [Script(launch_seconds=2), Script()]})
    await b.run_until(10)
    assert b.runtime.times("up", "client") == [2, 2]
    assert b.of(ServiceBackoff, "client") == []


async def test_a_provider_that_goes_away_under_a_launch_is_no_failure() -> None:
    """The client's launch ends in the provider's back-off, with nothing to join."""
    client = service("client", RestartPolicy(), network_mode="service:web")
    web = service("web", RestartPolicy(condition="always", backoff=Backoff(initial=5)))
    b = bench(web, client, scripts={"web": [Script(seconds=1), Script()], "client": [Script(launch_seconds=2), Script()]})
    summaries = await b.run_until(10)
    assert b.runtime.times("up", "client") == [6]
    assert (summaries["client"].state, summaries["client"].restarts) == ("stopped", 0)


async def test_a_joined_launch_that_fails_by_itself_is_a_failure() -> None:
    error = LaunchError("client", "mount", 2)
    b = bench(*pair(RestartPolicy(condition="on-failure")), scripts={"client": [Script(error=error), Script(seconds=1)]})
    summaries = await b.run_until(5)
    assert [event.reason for event in b.of(ServiceBackoff)] == ["mount: No such file or directory"]
    assert summaries["client"].restarts == 1


async def test_a_provider_that_goes_away_while_a_turn_is_waited_for() -> None:
    """Whether it is the client's first launch or its second that waits for the blocked turn, depends on the scheduler."""
    web = service("web", RestartPolicy(condition="always", backoff=Backoff(initial=5)))
    client = service("client", RestartPolicy(condition="on-failure", max_attempts=1), network_mode="service:web")
    scripts = {
        "web": [Script(seconds=1), Script()],
        "block": [Script(launch_seconds=4)],
        "client": [Script(seconds=0.5, exit=failure()), Script()],
    }
    b = bench(web, service("block", depends_on=["web"]), client, scripts=scripts, max_launches=1)
    await b.run_until(10)
    assert not any(0 < time < 6 for time in b.runtime.times("launch", "client"))
    assert b.runtime.times("up", "client")[-1] >= 6
    assert b.of(ServiceFailed) == []


async def test_who_joined_lives_on_when_the_provider_is_done() -> None:
    b = bench(
        service("web"),
        service("client", network_mode="service:web"),
        scripts={"web": [Script(seconds=1)], "client": [Script(seconds=5)]},
    )
    summaries = await b.run()
    assert {summary.state for summary in summaries.values()} == {"exited"}
    assert b.took == 5


async def test_who_would_join_a_network_that_is_gone_for_good_fails() -> None:
    b = bench(
        service("web"),
        service("client", ALWAYS, network_mode="service:web"),
        scripts={"web": [Script(seconds=1)], "client": [Script(seconds=5)]},
    )
    assert (await b.run())["client"].reason == "its network is that of web, which has ended"


async def test_who_has_ended_is_not_woken_by_the_provider() -> None:
    b = bench(*pair(RestartPolicy()), scripts={"web": [Script(seconds=5), Script()], "client": [Script(seconds=1)]})
    assert (await b.run_until(10))["client"].state == "exited"
    assert b.runtime.times("up", "client") == [0]


# ---- stop ----


async def test_dependents_are_stopped_first_and_the_rest_at_once() -> None:
    slow = [Script(stop_seconds=2)]
    b = bench(
        service("db"), service("app", depends_on=["db"]), service("web", depends_on=["app"]), service("side"),
        scripts={"app": slow, "web": slow, "db": slow, "side": slow},
    )  # fmt: skip
    await b.run_until(1)
    assert [b.runtime.times("stop", name)[0] for name in ("web", "side", "app", "db")] == [1, 1, 3, 5]
    assert b.took == 7


async def test_a_slow_stop_delays_only_what_it_needs() -> None:
    b = bench(
        service("db"), service("slow", depends_on=["db"], stop_grace_period=100),
        service("cache"), service("app", depends_on=["cache"]),
        scripts={"slow": [Script(stop_seconds=50)]},
    )  # fmt: skip
    await b.run_until(1)
    assert b.runtime.times("down", "cache") == [1]
    assert b.runtime.times("down", "db") == [51]


async def test_each_has_its_own_grace_and_what_outlives_it_is_named() -> None:
    b = bench(service("a", ALWAYS, stop_grace_period=4), service("b"), scripts={"a": [Script(stop_seconds=math.inf)]})
    summaries = await b.run_until(1)
    assert b.took == 5
    assert summaries["a"].state == "stopped"
    held_up = StopHeldUp("a", (f"a[{b.of(ServiceStarted, 'a')[0].pid}]",))
    assert summaries["a"].held_up_by == held_up.processes
    assert b.events[-3:] == [ServiceExited("a", b.of(ServiceExited)[-1].exit), held_up, ServiceStopped("a")]


@pytest.mark.parametrize("only", [(), ("b",)])
async def test_a_stop_before_the_start_starts_nothing(only: tuple[str, ...]) -> None:
    b = bench(service("a"), service("b", depends_on=["a"]), only=only)
    b.supervisor.request_stop()
    summaries = await b.run()
    assert {summary.state for summary in summaries.values()} == {"stopped"}
    assert not b.runtime.history


async def test_asking_twice_or_too_late_changes_nothing() -> None:
    b = bench(service("a"), scripts={"a": [Script(stop_seconds=2)]})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.run)
        await trio.sleep(1)
        b.supervisor.request_stop()
        await trio.sleep(1)
        b.supervisor.request_stop()
    b.supervisor.request_stop()
    b.supervisor.request_kill()
    assert b.runtime.order("stop") == ["a"]


async def test_a_crash_while_others_are_being_stopped_is_not_restarted() -> None:
    b = bench(
        service("db", ALWAYS), service("app", depends_on=["db"], stop_grace_period=20),
        scripts={"db": [Script(seconds=5, exit=failure())], "app": [Script(stop_seconds=10)]},
    )  # fmt: skip
    summaries = await b.run_until(1)
    assert b.runtime.times("up", "db") == [0]
    assert summaries["db"].state == "stopped"
    assert b.took == 11


async def test_a_stop_ends_a_restart_that_was_under_way() -> None:
    b = bench(*pair(stop_grace_period=60), scripts={"web": [Script(seconds=5), Script()], "client": [Script(stop_seconds=10)]})
    summaries = await b.run_until(7)
    assert summaries["client"].state == "stopped"
    assert b.runtime.times("up", "client") == [0]
    assert b.took == pytest.approx(15.1)


async def test_kill_skips_order_and_grace() -> None:
    b = bench(
        service("db"), service("app", depends_on=["db"]), scripts={name: [Script(stop_seconds=9)] for name in ("db", "app")}
    )
    summaries = await b.run_until(1, "request_kill")
    assert b.took == 1
    assert {summary.state for summary in summaries.values()} == {"stopped"}


async def test_kill_during_a_stop() -> None:
    b = bench(
        service("a"), service("b"), service("late"), scripts={"a": [Script(stop_seconds=9)], "late": [Script(launch_seconds=99)]}
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.run)
        await trio.sleep(1)
        b.supervisor.request_stop()
        await trio.sleep(1)
        b.supervisor.request_kill()
    assert b.took == 2
    assert len(b.of(ServiceStopping, "a")) == 1


@pytest.mark.parametrize("request_", ["request_stop", "request_kill"])
@pytest.mark.parametrize("kind", [ServiceStarted, ServiceExited, ServiceBackoff, ServiceFailed, ServiceFinished])
async def test_a_callback_may_ask_for_the_stop(request_: str, kind: type[Event]) -> None:
    """Every event keeps its place, although the callback causes new ones."""

    def ask(event: Event) -> None:
        if isinstance(event, kind):
            getattr(b.supervisor, request_)()

    services = service("fine"), service("loop", ALWAYS), service("bad"), service("app", depends_on=["bad"])
    scripts = {"fine": [Script(seconds=1)], "loop": [Script(seconds=2)], "bad": [Script(seconds=3, exit=failure())]}
    b = bench(*services, scripts=scripts, on_event=ask)
    await b.run()
    for name in ("fine", "loop", "bad", "app"):
        own = [event for event in b.events if event.name == name]
        assert isinstance(own[-1], ServiceFinished | ServiceFailed | ServiceStopped)
        assert not any(isinstance(event, ServiceFinished | ServiceFailed | ServiceStopped) for event in own[:-1])


# ---- as compose's options ----


async def test_abort_on_container_failure() -> None:
    scripts = {"bad": [Script(seconds=2, exit=failure(4))], "fine": [Script(seconds=1)]}
    b = bench(service("bad"), service("fine"), service("web", ALWAYS), scripts=scripts, abort_on_container_failure=True)
    summaries = await b.run()
    assert b.took == 2
    assert {name: summary.state for name, summary in summaries.items()} == {"bad": "failed", "fine": "exited", "web": "stopped"}
    assert exit_code(summaries.values()) == 1


async def test_a_failure_that_is_restarted_aborts_nothing() -> None:
    policy = RestartPolicy(condition="on-failure")
    scripts = {"flaky": [Script(seconds=1, exit=failure()), Script(seconds=1)], "a": [Script(seconds=10)]}
    b = bench(service("flaky", policy), service("a"), scripts=scripts, abort_on_container_failure=True)
    assert exit_code((await b.run()).values()) == 0
    assert b.took == 10


@pytest.mark.parametrize("exit, code", [(OK, 0), (failure(7), 7), (Exit(status="signaled", signal=9), 137)])
async def test_exit_code_from(exit: Exit, code: int) -> None:
    b = bench(service("tests"), service("web", ALWAYS), scripts={"tests": [Script(seconds=3, exit=exit)]}, exit_code_from="tests")
    summaries = await b.run()
    assert b.took == 3
    assert summaries["web"].state == "stopped"
    assert exit_code(summaries.values(), "tests") == code


async def test_exit_code_from_a_service_with_instances() -> None:
    scripts = {"t-1": [Script(seconds=3)], "t-2": [Script(seconds=1, exit=failure(4))]}
    b = bench(service("t", scale=2), scripts=scripts, exit_code_from="t")
    summaries = await b.run()
    assert exit_code(summaries.values(), "t") == 4
    assert {summary.service for summary in summaries.values()} == {"t"}


def test_the_exit_code_of_what_never_ran() -> None:
    assert exit_code([ServiceSummary(name="a", state="failed")], "a") == 125


# ---- output ----


def contents(path: Path, stream: bytes) -> bytes:
    """What one stream of a service wrote, out of its log file."""
    data = b""
    for record in path.read_bytes().splitlines():
        _, name, tag, line = record.split(b" ", 3)
        if name == stream:
            data += line + b"\n" * (tag == b"F")
    return data


async def test_output_goes_to_callback_and_log(tmp_path: Path) -> None:
    output = ((0, "stdout", b"one\ntw"), (1, "stderr", b"oops\n"), (2, "stdout", b"o\nend"))
    b = bench(service("a"), scripts={"a": [Script(seconds=3, output=output)]}, log_dir=tmp_path / "logs")
    await b.run()
    assert b.lines == [("a", "stdout", b"one"), ("a", "stderr", b"oops"), ("a", "stdout", b"two"), ("a", "stdout", b"end")]
    assert contents(tmp_path / "logs/a.log", b"stdout") == b"one\ntwo\nend"
    assert contents(tmp_path / "logs/a.log", b"stderr") == b"oops\n"


async def test_output_comes_before_the_exit(tmp_path: Path) -> None:
    b = bench(service("a"), scripts={"a": [Script(seconds=0, output=((0, "stdout", b"last words\n"),))]})
    seen = []
    b.on_output = lambda name, stream, block: seen.append(len(b.of(ServiceExited)))  # type: ignore[method-assign]
    b.supervisor = Supervisor(
        b.runtime, Project(name="p", services={"a": service("a")}), log_dir=None, on_event=b.events.append, on_output=b.on_output
    )
    await b.run()
    assert seen in ([0], [])  # a container that is killed in its first instant may not have written


async def test_one_log_for_all_runs(tmp_path: Path) -> None:
    policy = RestartPolicy(condition="on-failure")
    runs = [Script(seconds=1, output=((0, "stdout", b"%d\n" % number),), exit=failure()) for number in range(3)]
    b = bench(service("a", policy), scripts={"a": [*runs, Script(seconds=1)]}, log_dir=tmp_path)
    await b.run()
    assert contents(tmp_path / "a.log", b"stdout") == b"0\n1\n2\n"


async def test_a_chunk_of_many_lines_is_complete(tmp_path: Path) -> None:
    data = b"".join(b"%d\n" % number for number in range(5000))
    b = bench(service("a"), scripts={"a": [Script(seconds=1, output=((0, "stdout", data),))]}, log_dir=tmp_path)
    await b.run()
    assert b"".join(line + b"\n" for _, _, line in b.lines) == data
    assert contents(tmp_path / "a.log", b"stdout") == data


async def test_long_lines_come_in_pieces(tmp_path: Path) -> None:
    line = bytes(range(32, 127)) * 1000
    b = bench(service("a"), scripts={"a": [Script(seconds=1, output=((0, "stdout", line + b"\n"),))]}, log_dir=tmp_path)
    await b.run()
    assert max(len(piece) for _, _, piece in b.lines) == MAX_PIECE
    assert b"".join(piece for _, _, piece in b.lines) == line
    assert contents(tmp_path / "a.log", b"stdout") == line + b"\n"


async def test_a_flood_delays_nobody() -> None:
    b = bench(
        service("flood"), service("a"),
        scripts={"flood": [Script(flood=b"x\n" * 10)], "a": [Script(seconds=0, output=((0, "stdout", b"hello\n"),))]},
    )  # fmt: skip

    def stop(name: str, stream: Stream, block: Block) -> None:
        Bench.on_output(b, name, stream, block)
        if len(b.lines) >= 10_000:  # a flood that is always ready keeps the mock clock from jumping: end it by its own output
            b.supervisor.request_stop()

    project = Project(name="p", services={"flood": service("flood"), "a": service("a")})
    b.supervisor = Supervisor(b.runtime, project, log_dir=None, on_event=b.events.append, on_output=stop)
    await b.run()
    assert b.of(ServiceFinished) == [ServiceFinished("a")]
    assert b.events.index(ServiceFinished("a")) < b.events.index(ServiceStopping("flood", False))


@pytest.mark.parametrize(
    "options, most",
    [
        ({}, CHUNK),
        ({"logging": Logging(driver="none")}, CHUNK),
        ({"logging": Logging(max_size=1 << 20)}, (1 << 20) // 80),
        ({"logging": Logging(max_size=1)}, 4096),
        ({"logging": Logging(max_size=1 << 20, max_rate=5)}, (1 << 20) // 80),
        ({"logging": Logging(driver="syslog", syslog_address="unixgram:///nowhere")}, LINEWISE),
        ({"ready_log": "never"}, LINEWISE),
    ],
)
async def test_so_much_is_read_at_once_as_who_gets_it_can_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], most: int
) -> None:
    asked, receive = [], Pipe.receive

    def spy(self: Pipe, max_bytes: int) -> Awaitable[bytes]:
        asked.append(max_bytes)
        return receive(self, max_bytes)

    monkeypatch.setattr(Pipe, "receive", spy)
    script = Script(seconds=1, output=((0, "stdout", b"y\n" * 3_000),))
    b = bench(service("a", **options), scripts={"a": [script]}, log_dir=tmp_path)
    await b.run()
    assert b.lines == [("a", "stdout", b"y")] * 3_000
    assert set(asked) == {most}


async def test_a_pipe_that_stays_open_elsewhere_holds_up_nothing_for_long(tmp_path: Path) -> None:
    script = Script(seconds=3, output=((0, "stdout", b"tail without newline"),), leaks_pipe=True)
    b = bench(service("a"), scripts={"a": [script]}, log_dir=tmp_path)
    summaries = await b.run()
    assert summaries["a"].state == "exited"
    assert b.took == 5
    assert contents(tmp_path / "a.log", b"stdout") == b"tail without newline"


async def test_a_full_disk_is_an_event_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tuple((number, "stdout", b"%d\n" % number) for number in range(5))
    b = bench(service("a"), scripts={"a": [Script(seconds=6, output=output)]}, log_dir=tmp_path)
    write, start = os.write, trio.current_time()

    def full(fd: int, data: bytes) -> int:
        if 1 <= trio.current_time() - start < 3 and b" stdout " in data:
            raise OSError(28, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", full)
    await b.run()
    assert b.of(LogLost) == [LogLost("a", lines=2, bytes=4, reason="No space left on device")]
    assert [line for _, _, line in b.lines] == [b"0", b"1", b"2", b"3", b"4"]
    assert contents(tmp_path / "a.log", b"stdout") == b"0\n3\n4\n"


async def test_logs_are_rotated_as_the_service_says(tmp_path: Path) -> None:
    output = tuple((number, "stdout", b"%d\n" % number) for number in range(6))
    item = Service(spec=Spec(command=("x",), name="a"), logging=Logging(max_size=80, max_files=2))
    await bench(item, scripts={"a": [Script(seconds=9, output=output)]}, log_dir=tmp_path).run()
    assert sorted(os.listdir(tmp_path)) == ["a.log", "a.log.1"]


async def test_a_log_directory_that_can_not_be_used_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    b = bench(service("a"), log_dir=tmp_path / "file" / "logs")
    with pytest.raises(HostError, match=r"a\.log \(Not a directory\)"):
        await b.run()
    assert not b.runtime.history


async def test_no_fd_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    b = bench(*(service(f"s{number}") for number in range(5)), log_dir=tmp_path)
    await b.run_until(1)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_terminal_is_read_to_its_end(tmp_path: Path) -> None:
    master, slave = os.openpty()

    class Runtime(FakeRuntime):
        def start(self, spec: Spec, **stdio: Any) -> Any:
            return Terminal(super().start(spec, **stdio))

    class Terminal:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def __aenter__(self) -> FakeContainer:
            container: FakeContainer = await self.inner.__aenter__()
            container.terminal = master
            os.write(slave, b"from the terminal\n")
            os.close(slave)
            return container

        async def __aexit__(self, *error: Any) -> Any:
            return await self.inner.__aexit__(*error)

    lines = []
    supervisor = Supervisor(
        Runtime({"a": [Script(seconds=1)]}),
        Project(name="p", services={"a": service("a", tty=True)}),
        log_dir=None,
        on_output=lambda name, stream, block: lines.append((stream, block)),
    )
    await supervisor.run()
    assert lines == [("stdout", b"from the terminal\r\n")]
    os.close(master)


# ---- bugs and cancellation ----


@pytest.mark.parametrize("error", [RuntimeError("a bug"), InternalError("a bug"), LauncherDied("gone"), OSError(24, "a bug")])
async def test_what_is_not_one_container_s_trouble_comes_out_and_ends_all(error: Exception) -> None:
    b = bench(service("a"), service("b", ALWAYS), scripts={"a": [Script(launch_seconds=1, error=error)]})
    with pytest.RaisesGroup(type(error), flatten_subgroups=True):
        await b.run()
    assert b.took == 1
    assert not b.runtime.running


async def test_the_launcher_s_death_under_a_container_comes_out() -> None:
    b = bench(service("a"), service("b"), scripts={"a": [Script(seconds=1, wait_error=LauncherDied("gone"))]})
    with pytest.RaisesGroup(LauncherDied, flatten_subgroups=True):
        await b.run()
    assert not b.runtime.running


@pytest.mark.parametrize("kind", [ServiceStarted, ServiceExited, ServiceFinished])
async def test_an_exception_in_on_event_is_a_bug(kind: type[Event]) -> None:
    def crash(event: Event) -> None:
        if isinstance(event, kind) and event.name == "a":
            raise ZeroDivisionError

    b = bench(service("a"), service("b"), scripts={"a": [Script(seconds=1)]}, on_event=crash)
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        await b.run()
    assert not b.runtime.running


async def test_an_exception_in_on_output_is_a_bug() -> None:
    def crash(name: str, stream: Stream, block: Block) -> None:
        raise ZeroDivisionError

    b = bench(service("a"), scripts={"a": [Script(output=((1, "stdout", b"x\n"),))]}, on_output=crash)
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        await b.run()
    assert not b.runtime.running


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.5, 1.5, 2.5, 4.5, 8.0])
async def test_cancellation_kills_everything(seconds: float, tmp_path: Path) -> None:
    b = bench(
        service("slow"), service("loop", ALWAYS), service("app", depends_on=["slow"]), service("deaf"),
        scripts={
            "slow": [Script(launch_seconds=2)],
            "loop": [Script(seconds=0.1)],
            "deaf": [Script(stop_seconds=math.inf, output=((1, "stdout", b"x"),))],
        },
        log_dir=tmp_path,
    )  # fmt: skip
    with trio.move_on_after(seconds) as scope:
        await b.run_until(4)
    assert scope.cancelled_caught
    assert not b.runtime.running
    assert b.took == seconds


async def test_it_runs_without_any_callback_or_log() -> None:
    runtime = FakeRuntime({"a": [Script(seconds=1, output=((0, "stdout", b"x\n"),))]})
    summaries = await Supervisor(runtime, Project(name="p", services={"a": service("a")}), log_dir=None).run()
    assert summaries[0].state == "exited"


async def test_an_idle_supervisor_wakes_up_for_nothing() -> None:
    class Steps(trio.abc.Instrument):
        count = 0

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            self.count += 1

    b, steps = bench(service("a"), service("b", depends_on=["a"])), Steps()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.run)
        await wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(steps)
        await trio.sleep(3600)
        trio.lowlevel.remove_instrument(steps)
        b.supervisor.request_stop()
    assert steps.count <= 4  # this task's own


# ---- any project, any script, any moment ----

scripts = st.builds(
    Script,
    seconds=st.sampled_from([0.0, 0.05, 1.0, 7.0, math.inf]),
    exit=st.sampled_from([OK, failure(), Exit(status="memory_limit", signal=9)]),
    launch_seconds=st.sampled_from([0.0, 0.0, 0.5, 20.0]),
    error=st.sampled_from([None, None, None, LaunchError("x", "mount", 1), HostError("it", "get it")]),
    launch_ignores_cancel=st.booleans(),
    stop_seconds=st.sampled_from([0.0, 1.0, math.inf]),
    output=st.just(((0.0, "stdout", b"x\n"),)),
    leaks_pipe=st.booleans(),
)
policies = st.builds(
    RestartPolicy,
    condition=st.sampled_from(["no", "always", "on-failure"]),
    max_attempts=st.sampled_from([None, 0, 2]),
    start_limit_burst=st.sampled_from([0, 2]),
)


@st.composite
def projects(draw: st.DrawFn) -> tuple[list[Service], dict[str, list[Script]]]:
    services: list[Service] = []
    for number in range(draw(st.integers(1, 5))):
        before = [item.name for item in services]
        earlier = st.sampled_from(before) if before else st.nothing()
        needs: frozenset[str] = draw(st.frozensets(earlier, max_size=min(2, number)))
        network = draw(st.just("none") | earlier.map(lambda name: f"service:{name}"))
        services.append(service(f"s{number}", draw(policies), needs, network_mode=network, stop_grace_period=3))
    return services, {item.name: draw(st.lists(scripts, min_size=1, max_size=3)) for item in services}


moments = st.integers(0, 300).map(lambda tenths: tenths / 10 + 0.0123)  # at no other thing's moment


def check_order(b: Bench, services: list[Service], stop: float, killed: float) -> None:
    """Nobody was launched before what it needs, and nobody that is needed was stopped."""
    up, ever, gone = set[str](), set[str](), dict[str, float]()
    for time, what, name in b.runtime.history:
        item = next(item for item in services if item.name == name)
        if what == "launch":
            assert item.depends_on.keys() <= ever
            provider = item.spec.network_mode.removeprefix("service:")
            # Its end may be an instant old: no supervisor can know sooner.
            assert provider in up or provider == "none" or gone[provider] == time
        if what == "stop" and stop <= time - b.start < killed:
            assert not any(
                name in other.depends_on or other.spec.network_mode == f"service:{name}" for other in services if other.name in up
            )
        if what == "up":
            up.add(name)
            ever.add(name)
        if what == "down":
            up.discard(name)
            gone[name] = time


@given(projects(), moments, st.none() | st.floats(0, 10), st.booleans(), st.integers(1, 3))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_it_always_ends_and_leaves_nothing(
    project: tuple[list[Service], dict[str, list[Script]]], stop: float, kill: float | None, abort: bool, turns: int
) -> None:
    b = bench(*project[0], scripts=project[1], abort_on_container_failure=abort, max_launches=turns)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.run)
            await trio.sleep(stop)
            b.supervisor.request_stop()
            if kill is not None:
                await trio.sleep(kill)
                b.supervisor.request_kill()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert not b.runtime.running
    # A launch that ignores its cancellation for 20 s, then each link of the chain: 3 s of grace and 2 s of draining.
    assert b.runtime.history == [] or b.runtime.history[-1][0] - b.start <= stop + (kill or 0) + 20 + 5 * 5
    check_order(b, project[0], stop, stop + (math.inf if kill is None else kill))
    for summary in b.supervisor.summaries():
        assert summary.state in ("exited", "failed", "stopped")
        assert (summary.state == "failed") == bool(summary.reason)
        own = [event for event in b.events if event.name == summary.name]
        assert isinstance(own[-1], ServiceFinished | ServiceFailed | ServiceStopped)
        assert len(b.of(ServiceStarted, summary.name)) == len(b.of(ServiceExited, summary.name))


def test_it_starts_no_thread() -> None:
    before = threading.active_count()
    b = bench(service("a"), scripts={"a": [Script(seconds=1)]})
    trio.run(b.run, clock=MockClock(autojump_threshold=0))
    assert threading.active_count() == before
