"""The next container is made while its service backs off, up to the exec. With a scripted runtime, in the mock clock's time."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.bench import ALWAYS, Bench, bench, service
from tests.fake_runtime import Script, failure
from tests.test_commands import project, settle, told
from tests.test_resume import Succession
from tinyvisor.errors import HostError, LaunchError
from tinyvisor.runner import AHEAD, AHEAD_PATIENCE, LEAST_AHEAD
from tinyvisor.spec import Backoff, Dependency, Healthcheck, RestartPolicy
from tinyvisor.state import Event, ServiceBackoff, ServiceStarted, ServiceStopped

pytestmark = pytest.mark.anyio
CRASH = Script(seconds=0, exit=failure())
SECOND = RestartPolicy(condition="always", backoff=Backoff(initial=1, factor=1))


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


def crashing(*then: Script, **more: Any) -> Bench:
    """Service ``a`` crashes at once, and after a second does what `then` says; ``b`` runs."""
    return bench(service("a", SECOND), service("b"), scripts={"a": [CRASH, *(then or (Script(),))]}, **more)


async def until_made(b: Bench) -> None:
    await trio.sleep(1 - AHEAD / 2)
    assert b.runtime.ahead == {"a"}
    assert b.states()["a"] == "backoff"


async def test_it_is_made_shortly_before_it_is_due_and_runs_when_it_is() -> None:
    b = crashing(CRASH, Script())
    await b.run_until(3)
    assert b.runtime.times("ahead", "a") == pytest.approx([1 - AHEAD, 2 - AHEAD])
    assert b.runtime.times("up", "a") == pytest.approx([0, 1, 2])
    assert not b.runtime.order("discard")
    assert [event.seconds for event in b.of(ServiceStarted, "a")] == [0, 0, 0], "how long it took from when it was due"


@pytest.mark.parametrize(("delay", "made"), [(0, False), (LEAST_AHEAD / 2, False), (AHEAD / 2, True)])
async def test_a_short_back_off(delay: float, made: bool) -> None:
    policy = RestartPolicy(condition="always", backoff=Backoff(initial=delay))
    b = bench(service("a", policy), scripts={"a": [CRASH, Script()]})
    await b.run_until(1)
    assert b.runtime.times("up", "a") == pytest.approx([0, delay])
    assert b.runtime.times("ahead", "a") == ([0] if made else [])


async def test_a_back_off_counts_from_the_workload_s_end() -> None:
    b = bench(service("a", SECOND), scripts={"a": [Script(seconds=5, heard_late=0.015), Script()]})
    await b.run_until(10)
    assert b.runtime.times("up", "a") == pytest.approx([0, 5.985])
    assert b.of(ServiceBackoff)[0].delay == pytest.approx(0.985)


# ---- commands ----


@pytest.mark.parametrize("command", ["stop", "kill"])
@pytest.mark.parametrize("making", [0.0, math.inf])
async def test_it_is_gone_before_a_stop_is_over(command: str, making: float) -> None:
    b = crashing()
    b.runtime.ahead_seconds, b.runtime.discard_seconds = making, 0.25
    async with b.live() as supervisor:
        await until_made(b)
        assert told(getattr(supervisor, command)(["a"])) == {"a": ("finish", "backoff", "stopped")}
        before = trio.current_time()
        with trio.fail_after(1):
            await supervisor.wait(["a"])
        assert trio.current_time() - before == pytest.approx(0.25)
        assert not b.runtime.ahead
        await trio.sleep(5)
        assert b.states()["a"] == "stopped"
        supervisor.start(["a"])
        await settle()
        assert b.states()["a"] == "running"
    assert b.runtime.order("up").count("a") == 2


async def test_a_start_right_after_a_stop_waits_for_its_end() -> None:
    b = crashing()
    b.runtime.discard_seconds = 0.25
    async with b.live() as supervisor:
        await until_made(b)
        supervisor.stop(["a"])
        supervisor.start(["a"])
        with trio.fail_after(1):
            await supervisor.wait(["a"], until="running")
    assert b.runtime.times("launch", "a") == pytest.approx([0, 1 - AHEAD / 2 + 0.25])


@pytest.mark.parametrize("command", ["start", "restart"])
async def test_a_start_uses_it(command: str) -> None:
    b = crashing()
    async with b.live() as supervisor:
        await until_made(b)
        getattr(supervisor, command)(["a"])
        await settle()
        assert b.states()["a"] == "running"
    assert b.runtime.times("up", "a") == pytest.approx([0, 1 - AHEAD / 2])
    assert not b.runtime.order("discard")


async def test_a_reload_that_changes_it_discards_it() -> None:
    b = crashing()
    async with b.live() as supervisor:
        await until_made(b)
        supervisor.reload(project(service("a", SECOND), service("b")))
        assert not b.runtime.order("discard"), "nothing has changed"
        supervisor.reload(project(service("a", SECOND, command=("y",)), service("b")))
        await settle()
        assert b.states()["a"] == "running"
        assert b.runtime.running["a"]._spec.command == ("y",)
    assert b.runtime.order("discard") == ["a"]


async def test_what_changes_without_a_new_container_takes_no_notice_of_the_delay() -> None:
    """It still backs off, and is launched when it is due."""
    b = crashing()
    async with b.live() as supervisor:
        await until_made(b)
        supervisor.reload(project(service("a", SECOND, labels={"x": "y"}), service("b")))
        await settle()
        assert (b.states()["a"], b.runtime.order("discard")) == ("backoff", ["a"])
        await supervisor.wait(["a"], until="running")
    assert b.runtime.times("up", "a") == pytest.approx([0, 1])
    assert len(b.runtime.order("ahead")) == 1


async def test_who_is_scaled_away_is_forgotten_when_it_is_gone() -> None:
    b = bench(service("a", SECOND, scale=2), scripts={"a-1": [Script()], "a-2": [CRASH, Script()]})
    b.runtime.discard_seconds = 0.25
    async with b.live() as supervisor:
        await trio.sleep(1 - AHEAD / 2)
        assert b.runtime.ahead == {"a-2"}
        supervisor.scale("a", 1)
        await settle()
        assert b.states() == {"a-1": "running", "a-2": "stopped"}
        await trio.sleep(0.25)
        await settle()
        assert b.states() == {"a-1": "running"}


async def test_it_can_be_stopped_by_whom_its_start_is_told() -> None:
    def stop(event: Event) -> None:
        if isinstance(event, ServiceBackoff) and event.attempt == 2:
            b.supervisor.stop(["a"])

    b = crashing(CRASH, on_event=stop)
    await b.run_until(5)
    assert b.runtime.times("launch", "a") == pytest.approx([0, 1])
    assert b.of(ServiceStopped, "a") == [ServiceStopped("a")]


# ---- what may be in its way ----


async def test_a_stop_of_all_leaves_nothing() -> None:
    for request in ("request_stop", "request_kill"):
        b = crashing()
        b.runtime.discard_seconds = 0.25
        await b.run_until(1 - AHEAD / 2, request)
        assert b.took == pytest.approx(1 - AHEAD / 2 + 0.25)


async def test_cancellation_leaves_nothing() -> None:
    b = crashing()
    with trio.move_on_after(1 - AHEAD / 2):
        await b.supervisor.run()
    assert (b.runtime.ahead, b.runtime.order("discard")) == (set(), ["a"])


async def test_the_start_limit_counts_and_discards() -> None:
    policy = replace(SECOND, start_limit_burst=2, start_limit_interval=60)
    b = bench(service("a", policy), scripts={"a": [CRASH]})
    summary = (await b.run())["a"]
    assert (summary.state, summary.restarts) == ("failed", 1)
    assert (b.runtime.order("ahead"), b.runtime.order("discard")) == (["a", "a"], ["a"])


@pytest.mark.parametrize("at", [0.5, 1 - AHEAD / 2])
async def test_a_dependency_that_is_missing_is_waited_for(at: float) -> None:
    """Where it goes away in time, none is made; where it does so too late, what was made is discarded."""
    slow = replace(ALWAYS, backoff=Backoff(initial=3))
    b = bench(
        service("db", slow, healthcheck=Healthcheck(test=("probe",), interval=1, start_interval=1)),
        service("a", SECOND, depends_on={"db": Dependency(condition="service_healthy")}),
        scripts={"a": [Script(seconds=5, exit=failure()), Script()], "db": [Script(seconds=6 + at, exit=failure()), Script()]},
    )
    async with b.live() as supervisor:
        await supervisor.wait(["a"], until="running")
        await trio.sleep(6.5)
        assert b.states() == {"a": "waiting", "db": "backoff"}
        assert b.runtime.order("discard") == b.runtime.order("ahead") == ([] if at == 0.5 else ["a"])
        await trio.sleep(5)
        assert b.states() == {"a": "running", "db": "running"}


@pytest.mark.parametrize("error", [LaunchError("a", "make its root", 28), HostError("no cpuset", "mount it")])
async def test_one_that_can_not_be_made_is_launched_when_it_is_due(error: Exception) -> None:
    b = crashing()
    b.runtime.ahead_error = error
    async with b.live() as supervisor:
        await trio.sleep(1 - AHEAD / 2)
        assert (b.states()["a"], b.runtime.order("discard")) == ("backoff", ["a"])
        await supervisor.wait(["a"], until="running")
    assert b.runtime.times("up", "a") == pytest.approx([0, 1])
    assert len(b.of(ServiceBackoff)) == 1, "what failed was no start"


async def test_one_that_takes_its_time_is_late() -> None:
    b = crashing()
    b.runtime.ahead_seconds = 2 * AHEAD
    await b.run_until(3)
    assert b.runtime.times("up", "a") == pytest.approx([0, 1 + AHEAD])


async def test_one_that_takes_for_ever_is_given_up_for_a_launch() -> None:
    b = crashing(Script(launch_seconds=50))
    b.runtime.ahead_seconds = math.inf
    async with b.live() as supervisor:
        await trio.sleep(1 + AHEAD_PATIENCE)
        assert b.states()["a"] == "backoff"
        await trio.sleep(2 * AHEAD)
        assert b.states()["a"] == "starting"
        await supervisor.wait(["a"], until="running")
    assert b.runtime.order("discard") == ["a"]


async def test_a_failed_launch_is_one_also_when_it_was_made_ahead() -> None:
    failing = Script(error=LaunchError("a", "exec /x", 2))
    b = crashing(failing, Script())
    await b.run_until(5)
    assert b.of(ServiceBackoff)[1].reason == "exec /x: No such file or directory"
    assert b.runtime.times("up", "a") == pytest.approx([0, 2])


async def test_who_joins_a_network_is_not_made_ahead() -> None:
    """Whose it will be is not known before."""
    joined = service("a", SECOND, network_mode="service:net", depends_on={"net": Dependency()})
    b = bench(service("net"), joined, scripts={"a": [CRASH, Script()]})
    await b.run_until(3)
    assert b.runtime.times("up", "a") == pytest.approx([0, 1])
    assert not b.runtime.order("ahead")


async def test_all_turns_may_be_taken() -> None:
    """By launches that hang: it waits for one as any launch does, and is late."""
    after = Dependency(condition="service_completed_successfully")
    b = bench(
        service("a", SECOND), service("b", depends_on={"c": after}), service("c"),
        scripts={"a": [CRASH, Script()], "b": [Script(launch_seconds=1)], "c": [Script(seconds=0.5)]}, max_launches=1,
    )  # fmt: skip
    await b.run_until(3)
    assert b.runtime.times("up", "b") == pytest.approx([1.5])
    assert b.runtime.times("up", "a") == pytest.approx([0, 1.5])
    assert b.runtime.most_launching == 1


# ---- from one supervisor to the next ----


async def test_the_next_supervisor_makes_another(tmp_path: Path) -> None:
    succession, start = Succession(tmp_path), trio.current_time()
    first = succession.make(service("a", SECOND), scripts={"a": [CRASH]})
    await succession.kill_after(first, 1 - AHEAD / 2)
    assert (first.runtime.order("ahead"), succession.standing("a").state.phase) == (["a"], "backoff")
    second = succession.make(service("a", SECOND))
    summaries = await second.run_until(3)
    assert not succession.adopted
    assert [round(time - start, 6) for time, what, _ in second.runtime.history if what in ("ahead", "up")][1:] == [1]
    assert summaries["a"].restarts == 1


async def test_what_is_written_of_its_container_stays_until_it_is_discarded(tmp_path: Path) -> None:
    succession = Succession(tmp_path)
    b = succession.make(service("a", ALWAYS), scripts={"a": [CRASH, CRASH, CRASH, CRASH, Script()]})
    assert b.supervisor._around.live is not None
    records = b.supervisor._around.live.records
    async with b.live() as supervisor:
        await trio.sleep(1.5 - AHEAD / 2)
        assert b.runtime.ahead == {"a"}
        records.update("a", container={"id": 7})
        supervisor.reload(project(service("a", ALWAYS)))
        assert records.get("a", "container") == {"id": 7}
        supervisor.stop(["a"])
        await supervisor.wait(["a"])
        assert records.get("a", "container") is None
