"""Commands to a live supervisor, in every state a service can be in. In the mock clock's time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.bench import ALWAYS, Bench, bench, service
from tests.fake_runtime import OK, Script, failure
from tinyvisor.errors import HostError, LaunchError, SpecError, TinyvisorError
from tinyvisor.spec import Backoff, Dependency, Healthcheck, Hook, Project, RestartPolicy, Schedule, Service, Tcp
from tinyvisor.state import CommandResult, Exit, ServiceExited, ServiceStarted, ServiceStopped
from tinyvisor.supervisor import Difference, difference

pytestmark = pytest.mark.anyio
SLOW_BACKOFF = RestartPolicy(condition="always", backoff=Backoff(initial=50))


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


def project(*services: Service) -> Project:
    return Project(name="test", services={item.name: item for item in services})


def told(results: Iterable[CommandResult]) -> dict[str, tuple[str, str, str]]:
    return {result.name: (result.did, result.before, result.after) for result in results}


async def settle() -> None:
    await wait_all_tasks_blocked()


# ---- start, stop, restart ----


async def test_stop_and_start() -> None:
    b = bench(service("a", ALWAYS), service("b"))
    async with b.live() as supervisor:
        assert told(supervisor.stop(["a"])) == {"a": ("stop", "running", "stopping")}
        await supervisor.wait(["a"])
        assert b.states() == {"a": "stopped", "b": "running"}
        await trio.sleep(1000)
        assert b.states()["a"] == "stopped"
        assert told(supervisor.stop(["a"])) == {"a": ("nothing", "stopped", "stopped")}
        assert told(supervisor.start(["a"])) == {"a": ("wait", "stopped", "waiting")}
        await supervisor.wait(["a"], until="running")
        assert told(supervisor.start(["a"])) == {"a": ("nothing", "running", "running")}
    assert b.runtime.times("up", "b") == [0]
    assert len(b.runtime.times("up", "a")) == 2


async def test_only_what_was_asked_for_is_started_and_what_it_needs() -> None:
    b = bench(
        service("web", depends_on=["db"]), service("db"), service("job"), service("other", depends_on=["web"]), only=["web"]
    )
    async with b.live() as supervisor:
        assert b.states() == {"web": "running", "db": "running", "job": "stopped", "other": "stopped"}
        await trio.sleep(1000)
        supervisor.restart(["db"])
        await settle()
        assert b.states()["other"] == "stopped"
        supervisor.start(["job"])
        await settle()
        assert b.states() == {"web": "running", "db": "running", "job": "running", "other": "stopped"}
    with pytest.raises(SpecError, match='no service "wbe"'):
        bench(service("web"), only=["wbe"])


async def test_start_when_all_has_just_ended_is_refused() -> None:
    """`run` has not returned yet, and takes no more tasks."""
    b = bench(service("a"))
    async with b.live() as supervisor:
        supervisor.kill(["a"])
        await supervisor.wait()
        with pytest.raises(TinyvisorError, match="not running"):
            supervisor.start(["a"])


async def test_restart_gives_a_new_container() -> None:
    b = bench(service("a"))
    async with b.live() as supervisor:
        assert told(supervisor.restart(["a"])) == {"a": ("stop", "running", "stopping")}
        await supervisor.wait(["a"], until="running")
        assert [event.pid for event in b.of(ServiceStarted)] == [101, 102]
        assert b.of(ServiceStopped) == []


@pytest.mark.parametrize("command", ["start", "restart"])
async def test_a_back_off_is_skipped_on_request(command: str) -> None:
    b = bench(service("a", SLOW_BACKOFF), scripts={"a": [Script(seconds=0), Script()]})
    async with b.live() as supervisor:
        assert b.states() == {"a": "backoff"}
        assert told(getattr(supervisor, command)(["a"])) == {"a": ("wait", "backoff", "waiting")}
        await settle()
        assert b.states() == {"a": "running"}
    assert b.runtime.times("up", "a") == [0, 0]


async def test_a_service_that_waits_for_a_dependency_can_be_stopped_and_started() -> None:
    """Others wedge here: the second start makes a second copy, or nothing ever comes (process-compose#530)."""
    b = bench(service("app", depends_on=["db"]), service("db"), scripts={"db": [Script(launch_seconds=60)]})
    async with b.live() as supervisor:
        assert told(supervisor.stop(["app"])) == {"app": ("finish", "waiting", "stopped")}
        assert told(supervisor.restart(["app"])) == {"app": ("wait", "stopped", "waiting")}
        assert told(supervisor.restart(["app"])) == {"app": ("wait", "waiting", "waiting")}
        await supervisor.wait(["app"], until="running")
        assert b.runtime.order("up") == ["db", "app"]


async def test_a_launch_can_be_stopped_and_restarted() -> None:
    b = bench(service("a"), scripts={"a": [Script(launch_seconds=100), Script(launch_seconds=100), Script()]})
    async with b.live() as supervisor:
        assert told(supervisor.restart(["a"])) == {"a": ("cancel", "starting", "stopping")}
        await settle()
        assert told(supervisor.stop(["a"])) == {"a": ("cancel", "starting", "stopping")}
        assert told(supervisor.start(["a"])) == {"a": ("wait", "stopping", "stopping")}
        await settle()
        assert b.states() == {"a": "running"}


async def test_who_waits_says_for_what_and_who_backs_off_says_why() -> None:
    conditions = {"db": Dependency(condition="service_healthy"), "job": Dependency(condition="service_completed_successfully")}
    more = {name: Dependency(condition="service_started") for name in ("x", "y")}
    b = bench(
        service("app", depends_on=conditions), service("wide", depends_on=conditions | more), service("a", SLOW_BACKOFF),
        service("db", healthcheck=Healthcheck(test=("no",), interval=1e6, start_period=1e6)), service("job"),
        service("x"), service("y"),
        scripts={
            "a": [Script(seconds=0, exit=failure(3))], "job": [Script(seconds=60)],
            "db": [Script(exec=lambda now, command: (0.0, failure(3), b""))],
            "x": [Script(launch_seconds=60)], "y": [Script(launch_seconds=60)],
        },
    )  # fmt: skip
    async with b.live() as supervisor:
        await settle()
        reasons = {summary.name: summary.reason for summary in supervisor.summaries()}
        assert reasons["app"] == "waits for db to be healthy, job to complete"
        assert reasons["wide"] == "waits for db to be healthy, job to complete, x to start, 1 more"
        assert "3" in reasons["a"]
        assert (reasons["db"], reasons["job"]) == ("", "")
        await trio.sleep(61)
        assert supervisor.summaries(["app"])[0].reason == "waits for db to be healthy"


@pytest.mark.parametrize(
    "result, text",
    [
        (CommandResult("a", "wait", "stopped", "waiting"), "a: start (stopped → waiting)"),
        (CommandResult("a", "wait", "stopping", "stopping"), "a: start once it is down (stopping)"),
        (CommandResult("a", "later", "running", "running"), "a: stop once what needs it is down (running)"),
        (CommandResult("a", "nothing", "exited", "exited"), "a: nothing to do (exited)"),
        (CommandResult("a", "nothing", "exited", "exited", "nothing runs"), "a: nothing runs (exited)"),
        (CommandResult("a", "stop", "running", "stopping"), "a: stop (running → stopping)"),
    ],
)
def test_results_for_people(result: CommandResult, text: str) -> None:
    assert result.describe() == text


async def ends_after(b: Bench, seconds: float) -> None:
    before = len(b.of(ServiceExited))
    await trio.sleep(seconds - 0.1)
    assert len(b.of(ServiceExited)) == before
    await trio.sleep(0.2)
    assert len(b.of(ServiceExited)) == before + 1


@pytest.mark.parametrize("verb", ["stop", "restart"])
async def test_a_grace_that_is_asked_for_is_that_stop_s_alone(verb: str) -> None:
    b = bench(service("a"), service("b"), scripts={"a": [Script(stop_seconds=5)] * 2})
    async with b.live() as supervisor:
        await settle()
        getattr(supervisor, verb)(["a"], 1)
        await ends_after(b, 1)
        supervisor.start(["a"])
        await settle()
        supervisor.stop(["a"])
        await ends_after(b, 5)


async def test_a_grace_for_the_end_of_all() -> None:
    b = bench(service("a"), scripts={"a": [Script(stop_seconds=5)]})
    async with b.live() as supervisor:
        await settle()
        supervisor.request_stop(1)
        await ends_after(b, 1)


async def test_a_slow_stop_blocks_nobody_and_a_start_meanwhile_comes_after_it() -> None:
    b = bench(service("slow"), service("b"), scripts={"slow": [Script(stop_seconds=5), Script()]})
    async with b.live() as supervisor:
        supervisor.stop(["slow"])
        assert told(supervisor.start(["slow"])) == {"slow": ("wait", "stopping", "stopping")}
        supervisor.restart(["b"])
        await supervisor.wait(["b"], until="running")
        assert b.states() == {"slow": "stopping", "b": "running"}
        await supervisor.wait(["slow"], until="running")
    assert b.runtime.times("up", "slow") == [0, 5]


async def test_a_stop_of_several_is_in_reverse_order_and_leaves_the_others_alone() -> None:
    b = bench(
        service("db"), service("app", depends_on=["db"]), service("web", depends_on=["app"]), service("other", depends_on=["db"]),
        scripts={name: [Script(stop_seconds=2)] for name in ("db", "app")},
    )  # fmt: skip
    async with b.live() as supervisor:
        assert told(supervisor.stop(["db", "app"])) == {
            "db": ("later", "running", "running"),
            "app": ("stop", "running", "stopping"),
        }
        await supervisor.wait(["db"])
        assert b.states() == {"db": "stopped", "app": "stopped", "web": "running", "other": "running"}
        assert (b.runtime.times("stop", "app"), b.runtime.times("stop", "db")) == ([0], [2])


async def test_a_start_starts_what_is_needed_first() -> None:
    services = service("db"), service("app", depends_on=["db"]), service("web", depends_on=["app"]), service("other")
    b = bench(*services, linger=True)
    async with b.live() as supervisor:
        supervisor.stop(["db", "app", "web", "other"])
        await supervisor.wait()
        assert list(told(supervisor.start(["web"]))) == ["db", "app", "web"]
        await supervisor.wait(["web"], until="running")
        assert b.states() == {"db": "running", "app": "running", "web": "running", "other": "stopped"}


async def test_a_stopped_dependency_fails_who_waits_and_brings_it_back() -> None:
    services = service("app", depends_on=["db"]), service("db")
    b = bench(*services, scripts={"db": [Script(launch_seconds=9), Script()]}, linger=True)
    async with b.live() as supervisor:
        supervisor.stop(["db"])
        await settle()
        assert b.states() == {"app": "failed", "db": "stopped"}
        assert b.supervisor.summaries()[0].reason == "it depends on db, which has been stopped"
        supervisor.start(["db"])
        await settle()
        assert b.states() == {"app": "running", "db": "running"}


async def test_reset_failed() -> None:
    policy = RestartPolicy(condition="on-failure", max_attempts=0)
    b = bench(service("a", policy), service("b"), scripts={"a": [Script(seconds=0, exit=failure())]})
    async with b.live() as supervisor:
        assert b.states()["a"] == "failed"
        assert told(supervisor.reset_failed()) == {
            "a": ("finish", "failed", "stopped"),
            "b": ("nothing", "running", "running"),
        }
        assert b.states() == {"a": "stopped", "b": "running"}


async def test_kill_is_a_stop_and_another_signal_is_only_sent() -> None:
    dies = Script(signal_exit=Exit(status="signaled", signal=15))
    b = bench(service("a", ALWAYS), service("b", ALWAYS), scripts={"a": [dies, Script()]})
    async with b.live() as supervisor:
        assert told(supervisor.kill(["a"], 15)) == {"a": ("signal", "running", "running")}
        await trio.sleep(1)
        assert b.states()["a"] == "running"
        assert len(b.runtime.times("up", "a")) == 2
        assert told(supervisor.kill(["b"])) == {"b": ("kill", "running", "stopping")}
        await supervisor.wait(["b"])
        await trio.sleep(100)
        assert b.states() == {"a": "running", "b": "stopped"}
        (result,) = supervisor.kill(["b"], 1)
        assert (result.did, result.reason) == ("nothing", "nothing runs")
        assert result.describe() == "b: nothing runs (stopped)"


async def test_what_is_done_by_hand_is_remembered_for_the_next_supervisor() -> None:
    unless = RestartPolicy(condition="unless-stopped")
    services = service("a", ALWAYS), service("b", unless), service("c", unless), service("d")
    b = bench(*services)
    async with b.live() as supervisor:
        supervisor.stop(["a", "b", "d"])
        await supervisor.wait(["a", "b", "d"])
        stopped = supervisor.stopped_by_hand()
    assert stopped == supervisor.stopped_by_hand() == {"a", "b", "d"}
    b = bench(*services, stopped=stopped)
    async with b.live() as supervisor:
        assert b.states() == {"a": "running", "b": "stopped", "c": "running", "d": "stopped"}


async def test_names_that_are_none_do_nothing() -> None:
    b = bench(service("a"), service("b"))
    async with b.live() as supervisor:
        for command in (supervisor.start, supervisor.stop, supervisor.restart, supervisor.kill, supervisor.reset_failed):
            with pytest.raises(SpecError, match='there is no service "nope"'):
                command(["a", "nope"])
        with pytest.raises(SpecError, match='there is no service "nope"'):
            await supervisor.wait(["nope"])
        assert b.states() == {"a": "running", "b": "running"}


async def test_nothing_is_started_outside_of_run_or_while_everything_stops() -> None:
    b = bench(service("a"), scripts={"a": [Script(stop_seconds=5)]})
    with pytest.raises(TinyvisorError, match="the supervisor is not running"):
        b.supervisor.start(["a"])
    async with b.live() as supervisor:
        supervisor.request_stop()
        with pytest.raises(TinyvisorError, match="the project is being stopped"):
            supervisor.restart(["a"])
        assert told(supervisor.stop(["a"])) == {"a": ("nothing", "stopping", "stopping")}
    with pytest.raises(TinyvisorError, match="the supervisor is not running"):
        b.supervisor.start(["a"])


async def test_lingering_ends_with_the_stop_only() -> None:
    b = bench(service("a"), scripts={"a": [Script(seconds=1), Script(seconds=1)]}, linger=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.run)
        await trio.sleep(100)
        assert b.states() == {"a": "exited"}
        b.supervisor.start(["a"])
        await trio.sleep(100)
        b.supervisor.request_stop()
    assert b.took == 200
    assert len(b.runtime.times("up", "a")) == 2


async def test_waiting_for_health_or_an_end_that_comes_first() -> None:
    b = bench(
        service("a"), service("b"), scripts={"a": [Script(launch_seconds=3)], "b": [Script(error=LaunchError("b", "x", 1))]}
    )
    async with b.live() as supervisor:
        summaries = await supervisor.wait(until="healthy")
        assert [(summary.name, summary.state) for summary in summaries] == [("a", "running"), ("b", "failed")]


# ---- scale ----


async def test_scale_up_and_down() -> None:
    b = bench(service("web", scale=2), service("db"))
    async with b.live() as supervisor:
        assert b.states() == {"web-1": "running", "web-2": "running", "db": "running"}
        assert {name: did for name, (did, _, _) in told(supervisor.scale("web", 3)).items()} == {
            "web-1": "nothing", "web-2": "nothing", "web-3": "add", "db": "nothing",
        }  # fmt: skip
        await settle()
        assert b.states()["web-3"] == "running"
        supervisor.scale("web", 1)
        await settle()
        assert b.states() == {"web-1": "running", "db": "running"}
        supervisor.scale("web", 0)
        await settle()
        assert b.states() == {"db": "running"}
        supervisor.scale("web", 2)
        await supervisor.wait(["web"], until="running")
        assert [summary.name for summary in await supervisor.wait(["web"], until="running")] == ["web-1", "web-2"]
    assert b.runtime.times("up", "db") == [0]


async def test_scaling_what_was_not_scaled_leaves_the_first_alone() -> None:
    b = bench(service("web"))
    async with b.live() as supervisor:
        supervisor.scale("web", 3)
        await settle()
        assert b.states() == {"web": "running", "web-2": "running", "web-3": "running"}
    assert len(b.runtime.times("up", "web")) == 1


async def test_scaling_up_while_the_same_instance_is_still_going_down() -> None:
    b = bench(service("web", ALWAYS, scale=2), scripts={"web-2": [Script(stop_seconds=5), Script()]})
    async with b.live() as supervisor:
        supervisor.scale("web", 1)
        await trio.sleep(1)
        supervisor.scale("web", 2)
        await supervisor.wait(["web-2"], until="running")
        assert b.runtime.times("up", "web-2") == [0, 5]


async def test_a_dependency_on_a_scaled_service_means_all_of_it() -> None:
    b = bench(
        service("app", depends_on=["web"]), service("web", scale=2),
        scripts={"web-1": [Script(launch_seconds=1)], "web-2": [Script(launch_seconds=3)]},
    )  # fmt: skip
    async with b.live():
        await trio.sleep(10)
    assert b.runtime.times("up", "app") == [3]


async def test_what_can_not_be_scaled() -> None:
    b = bench(service("web"), service("side", network_mode="service:web"), service("a"), service("a-2"))
    async with b.live() as supervisor:
        for name, count, problem in (
            ("web", 2, "side joins the network of web, of which there must be one"),
            ("a", 2, '"a-2" would be an instance of both a and a-2'),
            ("a", -1, "expected 0 to 1000"),
            ("a", 1001, "expected 0 to 1000"),
            ("nope", 1, 'there is no service "nope"'),
        ):
            with pytest.raises(SpecError, match=problem):
                supervisor.scale(name, count)
        assert list(b.states()) == ["web", "side", "a", "a-2"]


# ---- reload ----


def test_the_difference() -> None:
    before = project(service("same"), service("other"), service("gone")).services
    after = project(service("new"), service("other", mem_limit=1 << 20), service("same")).services
    assert difference(before, after) == Difference(("new",), ("gone",), ("other",), ("same",))


async def test_a_reload_changes_what_changed_and_nothing_else() -> None:
    b = bench(service("same"), service("other"), service("gone"), service("adjusted"), linger=True)
    async with b.live() as supervisor:
        results = supervisor.reload(
            project(service("same"), service("other", mem_limit=1 << 20), service("new"), service("adjusted", ALWAYS))
        )
        assert told(results) == {
            "gone": ("remove", "running", "stopping"),
            "same": ("nothing", "running", "running"),
            "other": ("change", "running", "stopping"),
            "new": ("add", "stopped", "waiting"),
            "adjusted": ("adjust", "running", "running"),
        }
        await settle()
        assert b.states() == {"same": "running", "other": "running", "new": "running", "adjusted": "running"}
        assert b.runtime.running["other"]._spec.mem_limit == 1 << 20
        supervisor.kill(["adjusted"], 1)  # still has its old container, and the new policy
    assert {name: len(b.runtime.times("up", name)) for name in ("same", "other", "gone", "new", "adjusted")} == {
        "same": 1, "other": 2, "gone": 1, "new": 1, "adjusted": 1,
    }  # fmt: skip


async def test_a_reload_of_the_same_project_does_nothing() -> None:
    services = service("a"), service("b", ALWAYS, depends_on=["a"]), service("c", scale=2)
    b = bench(*services)
    async with b.live() as supervisor:
        supervisor.stop(["b"])
        await supervisor.wait(["b"])
        before = list(b.events)
        assert {result.did for result in supervisor.reload(project(*services))} == {"nothing"}
        await settle()
        assert b.events == before


async def test_a_reload_does_not_wake_what_was_stopped_by_hand_and_wakes_what_had_failed() -> None:
    b = bench(service("hand"), service("bad"), scripts={"bad": [Script(seconds=0, exit=failure()), Script()]}, linger=True)
    async with b.live() as supervisor:
        supervisor.stop(["hand"])
        await supervisor.wait(["hand"])
        supervisor.reload(project(service("hand", hostname="other"), service("bad", hostname="other")))
        await settle()
        assert b.states() == {"hand": "stopped", "bad": "running"}
        supervisor.start(["hand"])
        await settle()
        assert b.runtime.running["hand"]._spec.hostname == "other"


async def test_a_reload_keeps_a_scale_that_was_set_by_command() -> None:
    b = bench(service("web", scale=2), service("a"))
    async with b.live() as supervisor:
        supervisor.scale("web", 3)
        await settle()
        supervisor.reload(project(service("web", scale=2), service("a", hostname="x")))
        await settle()
        assert list(b.states()) == ["web-1", "web-2", "web-3", "a"]
        supervisor.reload(project(service("web", scale=1), service("a", hostname="x")))
        await settle()
        assert list(b.states()) == ["web-1", "a"]


async def test_what_is_removed_is_stopped_in_order() -> None:
    b = bench(service("db"), service("app", depends_on=["db"]), service("x"), scripts={"app": [Script(stop_seconds=3)]})
    async with b.live() as supervisor:
        assert told(supervisor.reload(project(service("x"))))["db"] == ("remove", "running", "running")
        await trio.sleep(10)
        assert b.states() == {"x": "running"}
    assert (b.runtime.times("stop", "app"), b.runtime.times("stop", "db")) == ([0], [3])


async def test_new_dependencies_count_from_now_on() -> None:
    b = bench(service("app"), service("db", SLOW_BACKOFF), scripts={"db": [Script(seconds=0), Script()]})
    async with b.live() as supervisor:
        supervisor.reload(
            project(service("app", hostname="new", depends_on=["cache"]), service("cache"), service("db", SLOW_BACKOFF))
        )
        await settle()
        assert b.runtime.order("up")[-2:] == ["cache", "app"]


async def test_a_reload_that_can_not_be_changes_nothing(tmp_path: Path) -> None:
    b = bench(service("a"), log_dir=tmp_path)
    async with b.live() as supervisor:
        with pytest.raises(SpecError, match=r"a cycle: (a → b → a|b → a → b)"):
            supervisor.reload(project(service("a", depends_on=["b"]), service("b", depends_on=["a"])))
        (tmp_path / "b.log").mkdir()
        with pytest.raises(HostError, match=r"b\.log"):
            supervisor.reload(project(service("c"), service("a", hostname="x"), service("b")))
        await settle()
        assert b.states() == {"a": "running"}
        assert b.runtime.order("stop") == []


async def test_logs_come_and_go_with_their_services(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    b = bench(service("a"), service("b"), log_dir=tmp_path)
    async with b.live() as supervisor:
        held = len(os.listdir("/proc/self/fd"))
        supervisor.reload(project(service("a"), service("c")))
        await settle()
        assert sorted(os.listdir(tmp_path)) == ["a.log", "b.log", "c.log"]
        assert len(os.listdir("/proc/self/fd")) == held
    assert len(os.listdir("/proc/self/fd")) == before


# ---- chaos ----

NAMES = ("a", "b", "c", "d")
policies = st.builds(RestartPolicy, schedule=st.builds(Schedule, interval=st.just(20))) | st.builds(
    RestartPolicy,
    condition=st.sampled_from(["no", "always", "on-failure", "unless-stopped"]),
    max_attempts=st.sampled_from([None, 2]),
    start_limit_burst=st.sampled_from([0, 3]),
)
probes = st.sampled_from(
    [
        lambda now, command: (0.0, OK, b"fine"),
        lambda now, command: (0.0, OK if now < 3 else failure(), b""),
        lambda now, command: (math.inf, OK, b""),
        lambda now, command: (0.3, failure(), b"x" * 9000),
    ]
)
scripts = st.builds(
    Script,
    seconds=st.sampled_from([0.0, 0.5, 7.0, math.inf]),
    exit=st.sampled_from([OK, failure()]),
    launch_seconds=st.sampled_from([0.0, 0.0, 3.0]),
    error=st.sampled_from([None, None, None, LaunchError("x", "mount", 1)]),
    launch_ignores_cancel=st.booleans(),
    stop_seconds=st.sampled_from([0.0, 1.0, math.inf]),
    signal_exit=st.sampled_from([None, failure(9)]),
    output=st.sampled_from([(), ((0.5, "stdout", b"ready\n"),)]),
    exec=probes,
    says=st.sampled_from([(), ((0.2, b"READY=1"), (1.0, b"WATCHDOG=1"), (4.0, b"STOPPING=1")), ((0.0, b"WATCHDOG=trigger"),)]),
    newline=st.sampled_from([(), ((0.3, b"x\n"),), ((0.3, b""),)]),
)
ready: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{}, {"ready_log": "ready"}, {"ready_notify": True}, {"ready_fd": 3}, {"ready_log": "ready", "start_timeout": 0.4}]
)


@st.composite
def projects(draw: st.DrawFn) -> Project:
    found: list[Service] = []
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True).map(sorted)):
        needs = {}
        for other in found:
            conditions = ["service_started", "service_completed_successfully", *["service_healthy"] * other.tells_health]
            if draw(st.booleans()):
                terms = st.builds(
                    Dependency, condition=st.sampled_from(conditions), required=st.booleans(), restart=st.booleans()
                )
                needs[other.name] = draw(terms)
        single = [item.name for item in found if item.scale is None]
        check = draw(
            st.none()
            | st.sampled_from(
                [
                    Healthcheck(test=("probe",), interval=1, timeout=2, retries=2),
                    Healthcheck(tcp=Tcp(port=1), interval=1, retries=2),
                ]
            )
        )
        hooks = st.sampled_from([(), (Hook(command=("hook",)),)])
        found.append(
            service(
                name,
                draw(policies),
                needs,
                scale=draw(st.sampled_from([None, None, 1, 2])),
                stop_grace_period=3,
                network_mode=draw(st.sampled_from(["none", *(f"service:{other}" for other in single)])),
                healthcheck=check,
                on_unhealthy=draw(st.sampled_from(["none", "restart", "stop"])) if check else "none",
                **draw(ready),
                watchdog=draw(st.sampled_from([None, None, 2.0])),
                post_start=draw(hooks),
                pre_stop=draw(hooks),
            )
        )
    return project(*found)


commands = st.one_of(
    st.tuples(st.sampled_from(["start", "stop", "restart", "kill", "reset_failed"]), st.sampled_from(NAMES)),
    st.tuples(st.just("signal"), st.sampled_from(NAMES)),
    st.tuples(st.just("scale"), st.sampled_from(NAMES), st.integers(0, 3)),
    st.tuples(st.just("reload"), projects()),
)


def obey(b: Bench, command: tuple[Any, ...]) -> None:
    verb, *arguments = command
    try:
        if verb == "reload":
            b.supervisor.reload(*arguments)
        elif verb == "scale":
            b.supervisor.scale(*arguments)
        elif verb == "signal":
            b.supervisor.kill(arguments, 1)
        else:
            getattr(b.supervisor, verb)(arguments)
    except SpecError:
        pass  # no such service now, or a scale that can't be


@given(
    projects(),
    st.lists(st.tuples(st.sampled_from([0.0, 0.1, 1.0, 8.0]), commands), max_size=20),
    st.dictionaries(st.sampled_from([*NAMES, "a-1", "b-1", "b-2"]), st.lists(scripts, min_size=1, max_size=3)),
)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_commands_whatever_leave_anything_stuck(
    first: Project, orders: list[tuple[float, tuple[Any, ...]]], given_scripts: dict[str, list[Script]]
) -> None:
    b = bench(*first.services.values(), scripts=given_scripts, linger=True)

    async def main() -> float:
        async with b.live():
            for pause, order in orders:
                obey(b, order)
                await trio.sleep(pause)
            await trio.sleep(100)
            asked = trio.current_time()
        return trio.current_time() - asked

    took = trio.run(main, clock=MockClock(autojump_threshold=0))
    # Of each link of a chain: a launch that ignores its cancellation, pre_stop, the grace, what is left in the pipes.
    assert took <= 4 * (3 + 3 + 3 + 2)
    for summary in b.supervisor.summaries():
        assert summary.state in ("exited", "failed", "stopped")
        assert summary.health == ""
    assert len(b.of(ServiceStarted)) == len(b.of(ServiceExited))
