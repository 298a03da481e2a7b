"""What one service needs of another: conditions, and what a change of one means for the others. In the mock clock's time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.bench import ALWAYS, bench, service
from tests.fake_runtime import OK, Script, failure
from tinyvisor.errors import LaunchError, SpecError
from tinyvisor.spec import Backoff, Condition, Dependency, Healthcheck, RestartPolicy, Service
from tinyvisor.state import DependencyMissing, Exit, ServiceStarted, ServiceStopping

pytestmark = pytest.mark.anyio
SLOW_BACKOFF = RestartPolicy(condition="always", backoff=Backoff(initial=5, jitter=0))


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


def on(name: str, condition: Condition = "service_started", **more: Any) -> dict[str, Dependency]:
    return {name: Dependency(condition=condition, **more)}


def healthy_from(seconds: float, until: float = math.inf) -> Script:
    """A container whose probe succeeds from then on, and until then."""
    return Script(exec=lambda now, command: (0.0, OK if seconds <= now < until else failure(), b""))


def checked(name: str, restart: RestartPolicy | None = None, **more: Any) -> Service:
    return service(name, restart, healthcheck=Healthcheck(test=("probe",), interval=1, retries=1), **more)


HEALTHY: Condition = "service_healthy"
COMPLETED: Condition = "service_completed_successfully"


# ---- completed ----


async def test_a_job_has_to_be_completed() -> None:
    b = bench(service("app", depends_on=on("init", COMPLETED)), service("init"), scripts={"init": [Script(seconds=3)]})
    await b.run_until(10)
    assert b.runtime.times("up", "app") == [3]


async def test_a_job_that_fails_fails_who_needs_it() -> None:
    services = service("app", depends_on=on("init", COMPLETED)), service("init")
    b = bench(*services, scripts={"init": [Script(seconds=3, exit=failure(4))]})
    summaries = await b.run()
    assert summaries["app"].reason == "it depends on init, which has failed: exit 4"
    assert not b.runtime.times("launch", "app")


async def test_a_job_that_fails_and_is_retried_completes_in_the_end() -> None:
    policy = RestartPolicy(condition="on-failure", backoff=Backoff(initial=2, jitter=0))
    services = service("app", depends_on=on("init", COMPLETED)), service("init", policy)
    b = bench(*services, scripts={"init": [Script(seconds=1, exit=failure()), Script(seconds=1)]})
    await b.run_until(10)
    assert b.runtime.times("up", "app") == [4]


async def test_a_job_is_not_run_again_for_a_start_and_a_failed_one_is() -> None:
    services = service("app", depends_on=on("init", COMPLETED)), service("init")
    b = bench(*services, scripts={"init": [Script(seconds=1, exit=failure()), Script(seconds=1)]}, linger=True)
    async with b.live() as supervisor:
        await trio.sleep(5)
        assert b.states() == {"app": "failed", "init": "failed"}
        assert [result.name for result in supervisor.start(["app"])] == ["init", "app"]
        await supervisor.wait(["app"], until="running")
        assert b.states() == {"app": "running", "init": "exited"}
        supervisor.restart(["app"])
        await supervisor.wait(["app"], until="running")
        assert len(b.runtime.times("up", "init")) == 2


async def test_a_restart_does_not_start_what_waits_for_a_failed_job() -> None:
    """docker/compose#12098."""
    services = service("app", depends_on=on("init", COMPLETED)), service("init")
    b = bench(*services, scripts={"init": [Script(seconds=1, exit=failure())]}, linger=True)
    async with b.live() as supervisor:
        await trio.sleep(5)
        supervisor.restart(["app"])
        await trio.sleep(5)
        assert b.states()["app"] == "failed"
        assert not b.runtime.times("launch", "app")


# ---- healthy ----


async def test_healthy_is_waited_for() -> None:
    b = bench(service("app", depends_on=on("db", HEALTHY)), checked("db"), scripts={"db": [healthy_from(4)]})
    await b.run_until(10)
    assert b.runtime.times("up", "app") == [4]


async def test_an_unhealthy_one_may_still_become_healthy() -> None:
    b = bench(service("app", depends_on=on("db", HEALTHY)), checked("db"), scripts={"db": [healthy_from(100)]})
    async with b.live() as supervisor:
        await trio.sleep(50)
        assert (supervisor.summaries()[1].health, b.states()["app"]) == ("unhealthy", "waiting")
        await trio.sleep(51)
        assert (supervisor.summaries()[1].health, b.states()["app"]) == ("healthy", "running")


async def test_who_runs_goes_on_when_its_dependency_gets_ill_and_waits_when_it_has_to_start_again() -> None:
    ill = healthy_from(0, until=5)
    services = service("app", ALWAYS, depends_on=on("db", HEALTHY)), checked("db")
    b = bench(*services, scripts={"db": [ill], "app": [Script(seconds=10), Script()]})
    async with b.live():
        await trio.sleep(8)
        assert b.states()["app"] == "running"
        await trio.sleep(10)
        assert b.states()["app"] == "waiting"


async def test_a_restart_of_the_dependency_is_waited_for_until_it_is_healthy() -> None:
    """docker/compose#13780: restart ignored what up honoured."""
    services = service("app", depends_on=on("db", HEALTHY)), checked("db")
    b = bench(*services, scripts={"db": [healthy_from(3)]})
    async with b.live() as supervisor:
        await trio.sleep(5)
        supervisor.restart(["db", "app"])
        await trio.sleep(2)
        assert b.states() == {"app": "waiting", "db": "running"}
        await trio.sleep(2)
        assert b.states() == {"app": "running", "db": "running"}


async def test_one_that_ends_will_never_be_healthy() -> None:
    b = bench(service("app", depends_on=on("db", HEALTHY)), checked("db"), scripts={"db": [Script(seconds=0.5)]})
    assert (await b.run())["app"].reason == "it depends on db, which has ended"


def test_healthy_of_what_does_not_say_is_refused() -> None:
    with pytest.raises(SpecError, match="app needs db healthy, which has no healthcheck and no ready_log"):
        bench(service("app", depends_on=on("db", HEALTHY)), service("db"))


# ---- failing and coming back ----


async def test_dependents_come_back_with_a_dependency_that_had_failed() -> None:
    """systemd#18856: others leave them blocked by the first failure."""
    error = LaunchError("db", "mount", 2)
    services = service("web", depends_on=["app"]), service("app", depends_on=["db"]), service("db"), service("x")
    b = bench(*services, scripts={"db": [Script(error=error), Script()]})
    async with b.live() as supervisor:
        assert b.states() == {"web": "failed", "app": "failed", "db": "failed", "x": "running"}
        supervisor.start(["db"])
        await wait_all_tasks_blocked()
        assert b.states() == {"web": "running", "app": "running", "db": "running", "x": "running"}


async def test_who_was_stopped_meanwhile_does_not_come_back() -> None:
    error = LaunchError("db", "mount", 2)
    b = bench(service("app", depends_on=["db"]), service("db"), scripts={"db": [Script(error=error), Script()]}, linger=True)
    async with b.live() as supervisor:
        supervisor.stop(["app"])
        supervisor.start(["db"])
        await wait_all_tasks_blocked()
        assert b.states() == {"app": "failed", "db": "running"}


async def test_who_failed_by_itself_does_not_come_back() -> None:
    services = service("app", depends_on=["db"]), service("db")
    b = bench(*services, scripts={"app": [Script(seconds=1, exit=failure())]}, linger=True)
    async with b.live() as supervisor:
        await trio.sleep(2)
        supervisor.restart(["db"])
        await trio.sleep(2)
        assert b.states() == {"app": "failed", "db": "running"}


# ---- not required ----


async def test_what_is_not_required_is_waited_for_while_it_may_come() -> None:
    services = service("app", depends_on=on("db", required=False)), service("db")
    b = bench(*services, scripts={"db": [Script(launch_seconds=3)]})
    await b.run_until(5)
    assert b.runtime.times("up", "app") == [3]
    assert b.of(DependencyMissing) == []


async def test_what_is_not_required_may_fail() -> None:
    services = service("app", depends_on=on("db", required=False)), service("db")
    b = bench(*services, scripts={"db": [Script(error=LaunchError("db", "mount", 2))], "app": [Script(seconds=1)]})
    summaries = await b.run()
    assert summaries["app"].state == "exited"
    assert b.of(DependencyMissing) == [
        DependencyMissing("app", "it depends on db, which has failed: mount: No such file or directory")
    ]


async def test_what_is_not_required_may_not_be_there() -> None:
    b = bench(service("app", depends_on=on("tracing", required=False)), scripts={"app": [Script(seconds=1)]})
    assert (await b.run())["app"].state == "exited"
    assert b.of(DependencyMissing) == [DependencyMissing("app", "it depends on tracing, which is not there")]


# ---- restart: true ----


async def test_a_restart_of_the_dependency_restarts_who_asked_for_it() -> None:
    services = service("app", depends_on=on("db", restart=True)), service("other", depends_on=["db"]), service("db")
    b = bench(*services)
    async with b.live() as supervisor:
        supervisor.restart(["db"])
        await wait_all_tasks_blocked()
        assert set(b.states().values()) == {"running"}
    assert [len(b.runtime.times("up", name)) for name in ("app", "other", "db")] == [2, 1, 2]
    assert b.of(ServiceStopping, "app")[0] == ServiceStopping("app", True)


async def test_so_does_its_crash_once_it_is_back_and_healthy() -> None:
    services = service("app", depends_on=on("db", HEALTHY, restart=True)), checked("db", SLOW_BACKOFF)
    crash = Script(seconds=4, exit=failure(), exec=lambda now, command: (0.0, OK, b""))
    b = bench(*services, scripts={"db": [crash, healthy_from(2)]})
    await b.run_until(20)
    assert b.runtime.times("up", "db") == [0, 9]
    assert b.runtime.times("up", "app") == [1, 11]


async def test_such_a_restart_is_no_failure_of_its_own() -> None:
    strict = RestartPolicy(condition="on-failure", max_attempts=0, start_limit_burst=1, start_limit_interval=1000)
    services = service("app", strict, depends_on=on("db", restart=True)), service("db")
    b = bench(*services)
    async with b.live() as supervisor:
        for _ in range(5):
            supervisor.restart(["db"])
            await wait_all_tasks_blocked()
        assert set(b.states().values()) == {"running"}
    assert len(b.of(ServiceStarted, "app")) == 6


async def test_restarts_go_down_a_chain_once_each() -> None:
    services = (
        service("a"),
        service("b", depends_on=on("a", restart=True)),
        service("c", depends_on={**on("a", restart=True), **on("b", restart=True)}),
    )
    b = bench(*services)
    async with b.live() as supervisor:
        supervisor.restart(["a"])
        await trio.sleep(100)
        assert set(b.states().values()) == {"running"}
    assert [len(b.runtime.times("up", name)) for name in "ab"] == [2, 2]
    assert 2 <= len(b.runtime.times("up", "c")) <= 3


async def test_what_ended_stays_ended_when_its_dependency_restarts() -> None:
    services = service("job", depends_on=on("db", restart=True)), service("db")
    b = bench(*services, scripts={"job": [Script(seconds=1)]})
    async with b.live() as supervisor:
        await trio.sleep(2)
        supervisor.restart(["db"])
        await trio.sleep(2)
        assert b.states() == {"job": "exited", "db": "running"}


# ---- as fast as the graph allows ----


async def test_starts_are_in_parallel_and_stops_in_reverse() -> None:
    slow = [Script(launch_seconds=1, stop_seconds=1, exit=Exit(status="ok", exit_code=0))]
    names = {"base": [], "left": ["base"], "right": ["base"], "top": ["left", "right"]}
    b = bench(*(service(name, depends_on=needs) for name, needs in names.items()), scripts=dict.fromkeys(names, slow))
    await b.run_until(10)
    assert {name: b.runtime.times("up", name) for name in names} == {"base": [1], "left": [2], "right": [2], "top": [3]}
    assert {name: b.runtime.times("stop", name) for name in names} == {"top": [10], "left": [11], "right": [11], "base": [12]}
