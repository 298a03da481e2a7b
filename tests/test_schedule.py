"""Services that are run again and again at their time. In the mock clock's time, with a wall clock that goes with it."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.bench import Bench, bench, service
from tests.fake_runtime import Script, failure
from tinyvisor.errors import LaunchError
from tinyvisor.spec import Backoff, Dependency, Project, RestartPolicy, Schedule, Service
from tinyvisor.state import ServiceBackoff, ServiceScheduled, ServiceStopping

pytestmark = pytest.mark.anyio

MIDNIGHT = 1_767_225_600.0  # 2026-01-01T00:00Z


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


class Wall:
    """A wall clock that can be set."""

    def __init__(self, start: float = MIDNIGHT) -> None:
        self.offset = start - trio.current_time()

    def __call__(self) -> float:
        return trio.current_time() + self.offset


def timed(seconds: float, start: float = MIDNIGHT, condition: Any = "no", name: str = "job", **schedule: Any) -> Bench:
    """A job that takes so long each time."""
    policy = RestartPolicy(condition=condition, schedule=Schedule(**schedule))
    return bench(service(name, policy), scripts={name: [Script(seconds=seconds)]}, wall=Wall(start))


def since(b: Bench, name: str = "job") -> list[float]:
    """When it was launched, counted from the start of the supervisor."""
    return [round(time - b.start, 3) for time, what, of in b.runtime.history if (what, of) == ("up", name)]


async def test_by_the_wall_clock() -> None:
    b = timed(10, start=MIDNIGHT + 30, cron="*/5 * * * *")
    await b.run_until(1000)
    assert since(b) == [270, 570, 870]
    assert b.of(ServiceScheduled) == [
        ServiceScheduled("job", 270, ""),
        ServiceScheduled("job", 290, ""),
        ServiceScheduled("job", 290, ""),
        ServiceScheduled("job", 290, ""),
    ]


async def test_an_interval_starts_at_once_and_counts_from_start_to_start() -> None:
    b = timed(10, interval=60)
    await b.run_until(200)
    assert since(b) == [0, 60, 120, 180]


async def test_times_that_come_while_it_runs_are_skipped() -> None:
    b = timed(150, interval=60)
    await b.run_until(500)
    assert since(b) == [0, 180, 360]
    b = timed(400, start=MIDNIGHT + 30, cron="*/5 * * * *")
    await b.run_until(1500)
    assert since(b) == [270, 870, 1470]


async def test_one_run_is_queued_behind_however_many_times_came() -> None:
    b = timed(150, interval=60, overlap="queue")
    await b.run_until(500)
    assert since(b) == [0, 150, 300, 450]
    b = timed(400, start=MIDNIGHT + 30, cron="*/5 * * * *", overlap="queue")
    await b.run_until(1500)
    assert since(b) == [270, 670, 1070, 1470]


async def test_an_hour_in_a_time_zone() -> None:
    b = timed(1, cron="0 3 * * *", timezone="Europe/Berlin")
    await b.run_until(3 * 86400)
    assert since(b) == [2 * 3600, 26 * 3600, 50 * 3600]


async def test_a_wall_clock_that_is_set_is_noticed() -> None:
    b = timed(1, cron="0 1 * * *")
    wall = b.supervisor._around.wall
    assert isinstance(wall, Wall)
    async with b.live():
        await trio.sleep(100)
        wall.offset += 3600 - 110  # ten seconds are left, by the new time
        await trio.sleep(70)
        assert len(since(b)) == 1


async def test_a_run_that_fails_is_told_and_comes_again() -> None:
    schedule = Schedule(interval=60)
    fails, works = Script(seconds=1, exit=failure(3)), Script(seconds=1)
    b = bench(service("job", RestartPolicy(schedule=schedule)), scripts={"job": [fails, works]}, wall=Wall())
    summaries = await b.run_until(100)
    assert since(b) == [0, 60]
    assert [event.reason for event in b.of(ServiceScheduled)] == ["", "exit 3", ""]
    assert summaries["job"].state == "stopped"


async def test_a_run_that_fails_is_restarted_as_its_policy_says() -> None:
    policy = RestartPolicy(condition="on-failure", max_attempts=2, backoff=Backoff(initial=2), schedule=Schedule(interval=60))
    b = bench(service("job", policy), scripts={"job": [Script(seconds=1, exit=failure(3))]}, wall=Wall())
    await b.run_until(70)
    assert since(b) == pytest.approx([0, 3, 8, 60, 63, 68])
    assert len(b.of(ServiceBackoff)) == 4


async def test_a_start_by_hand_runs_it_now_and_a_stop_until_told() -> None:
    b = timed(10, cron="0 5 * * *")
    b.supervisor._linger = True
    async with b.live() as supervisor:
        assert b.states() == {"job": "scheduled"}
        assert supervisor.start(["job"])[0].after == "waiting"
        await trio.sleep(20)
        assert (since(b), b.states()) == ([0], {"job": "scheduled"})
        supervisor.stop(["job"])
        await trio.sleep(10 * 3600)
        assert (since(b), b.states()) == ([0], {"job": "stopped"})
        supervisor.start(["job"])
        assert b.states() == {"job": "scheduled"}
        await trio.sleep(86400)
        assert len(since(b)) == 2


async def test_a_stop_does_not_wait_for_its_time() -> None:
    b = timed(1, cron="0 5 * * *")
    assert (await b.run_until(5))["job"].state == "stopped"
    assert b.took == 5
    assert b.of(ServiceStopping) == []


async def test_who_needs_it_completed_waits_for_its_first_run() -> None:
    job = service("job", RestartPolicy(schedule=Schedule(cron="*/5 * * * *")))
    app = service("app", depends_on={"job": Dependency(condition="service_completed_successfully")})
    b = bench(app, job, scripts={"job": [Script(seconds=10)]}, wall=Wall())
    await b.run_until(400)
    assert since(b, "app") == [310]


async def test_a_run_whose_dependency_has_failed_is_left_out() -> None:
    def item() -> Service:
        return service("job", RestartPolicy(schedule=Schedule(interval=60)), depends_on=["db"])

    b = bench(
        service("db"),
        item(),
        scripts={"db": [Script(error=LaunchError("db", "mount", 2))], "job": [Script(seconds=1)]},
        wall=Wall(),
    )
    async with b.live():
        await trio.sleep(100)
        assert b.states() == {"db": "failed", "job": "scheduled"}
        assert since(b) == []
        assert b.of(ServiceScheduled)[-1].reason == "it depends on db, which has failed: mount: No such file or directory"


async def test_when_it_comes_next_is_told() -> None:
    b = bench(service("job", RestartPolicy(schedule=Schedule(interval=60))), scripts={"job": [Script(seconds=5)]}, wall=Wall())
    async with b.live() as supervisor:
        await trio.sleep(20)
        assert supervisor.summaries()[0].due == 40


async def test_a_changed_schedule_is_taken_over() -> None:
    def job(interval: float) -> Service:
        return service("job", RestartPolicy(schedule=Schedule(interval=interval)))

    b = bench(job(3600), scripts={"job": [Script(seconds=1)]}, wall=Wall())
    async with b.live() as supervisor:
        await trio.sleep(10)
        supervisor.reload(Project(name="test", services={"job": job(60)}))
        await trio.sleep(60)
        assert since(b) == [0, 60]
