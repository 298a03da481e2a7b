"""From one supervisor to the next, with a scripted runtime in the mock clock's time: the first is killed, and what it has written
down by then is all that the second knows."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.bench import ALWAYS, Bench, bench, service
from tests.fake_runtime import OK, FakeContainer, Script, failure
from tinyvisor import resume, stored
from tinyvisor.errors import InternalError, NotLaunched, TinyvisorError
from tinyvisor.policy import Phase, State, Then, decide
from tinyvisor.resume import WITH_CONTAINER, Standing
from tinyvisor.runner import Live
from tinyvisor.runtime.records import Records
from tinyvisor.spec import Backoff, Dependency, Healthcheck, Hook, RestartPolicy, Service, Spec
from tinyvisor.state import HealthChanged, ServiceAdopted, ServiceStarted

anyio_only = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


class Succession:
    """One supervisor after another, of one project."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.adopted: list[str] = []
        self._number = 0

    @property
    def records(self) -> Path:
        return self.path / str(self._number)

    def make(self, *services: Service, adoptable: Collection[str] = (), unlaunched: Collection[str] = (), **more: Any) -> Bench:
        """`adoptable`: those that have a container, whose `scripts` tell its further life."""

        @asynccontextmanager
        async def adopt(name: str) -> AsyncIterator[FakeContainer]:
            self.adopted.append(name)
            if name in unlaunched:
                raise NotLaunched(name)
            async with found.runtime.start(Spec(command=("x",), name=name)) as container:
                yield container

        self.live = Live(Records(self.records), adopt, adoptable, trio.current_time)
        found = bench(*services, live=self.live, **more)
        found.runtime.on_hold = self.live.records.update
        return found

    async def kill_after(self, first: Bench, seconds: float, *commands: Any) -> None:
        """Runs `first`, gives it commands at its start, and kills it."""
        async with trio.open_nursery() as nursery:
            await nursery.start(first.supervisor.run)
            for command in commands:
                await trio.sleep(0.001)
                command(first.supervisor)
            await trio.sleep(seconds)
            shutil.copytree(self.records, self.path / str(self._number + 1))
            self._number += 1
            nursery.cancel_scope.cancel()

    def standing(self, name: str) -> Standing:
        found = Records(self.records)
        return resume.decode(name, found.get(name, "standing"), found.get(name, "service"))


@pytest.fixture
def succession(tmp_path: Path) -> Succession:
    return Succession(tmp_path)


@anyio_only
async def test_what_runs_is_adopted_and_not_started(succession: Succession) -> None:
    await succession.kill_after(succession.make(service("a", ALWAYS)), 5)
    second = succession.make(service("a", ALWAYS), adoptable=["a"], scripts={"a": [Script(seconds=1, exit=failure(4)), Script()]})
    summaries = await second.run_until(3)
    assert succession.adopted == ["a"]
    assert second.of(ServiceAdopted) == [ServiceAdopted("a", 101)]
    assert second.of(ServiceStarted) == [ServiceStarted("a", 102)]
    assert summaries["a"].restarts == 1


@anyio_only
async def test_that_it_is_there_again_is_told_to_who_waits(succession: Succession) -> None:
    services = [service("db"), service("web", depends_on={"db": Dependency()}, network_mode="service:db")]
    await succession.kill_after(succession.make(service("db")), 1)
    second = succession.make(*services, adoptable=["db"])
    async with second.live() as supervisor:
        with trio.fail_after(1):
            await supervisor.wait(until="running")
        assert second.states() == {"db": "running", "web": "running"}
    await succession.kill_after(succession.make(service("db")), 1)
    third = succession.make(service("db"), adoptable=["db"])
    async with third.live() as supervisor:
        with trio.fail_after(1):
            await supervisor.wait(until="running")


@anyio_only
async def test_a_row_of_restarts_goes_on(succession: Succession) -> None:
    """0, 0.1, 0.3, 0.7, 1.5, 3.1: killed in the delay before 1.5, and again later."""
    scripts = {"a": [Script(seconds=0, exit=failure())]}
    start = trio.current_time()
    await succession.kill_after(succession.make(service("a", ALWAYS), scripts=scripts), 1)
    second = succession.make(service("a", ALWAYS), scripts=scripts)
    await succession.kill_after(second, 1)
    third = succession.make(service("a", ALWAYS), scripts=scripts)
    summaries = await third.run_until(5)
    times = [round(time - start, 6) for time, what, _ in second.runtime.history + third.runtime.history if what == "launch"]
    assert times == pytest.approx([1.5, 3.1, 6.3])
    assert summaries["a"].restarts == 6
    assert not succession.adopted


@anyio_only
async def test_a_good_run_counts_from_its_start(succession: Succession) -> None:
    bad = Script(seconds=0, exit=failure())
    policy = replace(ALWAYS, backoff=Backoff(reset_after=10))
    await succession.kill_after(succession.make(service("a", policy), scripts={"a": [bad, bad, bad, Script()]}), 8)
    second = succession.make(service("a", policy), adoptable=["a"], scripts={"a": [Script(seconds=4, exit=failure()), Script()]})
    await second.run_until(6)
    assert second.runtime.times("launch", "a") == pytest.approx([0, 4.1])


@anyio_only
async def test_totals_and_the_last_exit_are_kept(succession: Succession) -> None:
    first = succession.make(service("a"), service("b"), scripts={"a": [Script(seconds=1, exit=failure(7))]})
    await succession.kill_after(first, 2)
    summaries = await succession.make(service("a"), service("b"), adoptable=["b"]).run_until(1)
    assert (summaries["a"].state, summaries["a"].exit, summaries["a"].reason) == ("failed", failure(7), "exit 7")


@anyio_only
async def test_who_was_stopped_by_a_command_stays_so(succession: Succession) -> None:
    services = [service("a", ALWAYS), service("b")]
    await succession.kill_after(succession.make(*services), 1, lambda it: it.stop(["a"]))
    second = succession.make(*services, adoptable=["b"])
    await second.run_until(1)
    assert second.runtime.order("launch") == ["b"]
    assert second.states()["a"] == "stopped"


@anyio_only
async def test_killed_while_all_was_being_stopped_all_is_wanted_again(succession: Succession) -> None:
    services = [service("quick"), service("slow")]
    scripts = {"slow": [Script(stop_seconds=5)]}
    await succession.kill_after(succession.make(*services, scripts=scripts), 1, lambda it: it.request_stop())
    assert {name: succession.standing(name).state.phase for name in ("quick", "slow")} == {"quick": "stopped", "slow": "stopping"}
    second = succession.make(*services, adoptable=["slow"], scripts=scripts)
    async with second.live() as supervisor:
        await supervisor.wait(until="running")
        assert second.states() == {"quick": "running", "slow": "running"}
    assert second.runtime.order("stop")[0] == "slow", "what was half stopped is stopped first"


@anyio_only
async def test_a_stop_goes_on(succession: Succession) -> None:
    scripts = {"a": [Script(stop_seconds=5)]}
    await succession.kill_after(succession.make(service("a", ALWAYS), scripts=scripts), 1, lambda it: it.stop(["a"]))
    second = succession.make(service("a", ALWAYS), adoptable=["a"], scripts=scripts)
    await second.run()
    assert second.runtime.order("stop") == ["a"]
    assert second.states() == {"a": "stopped"}


@anyio_only
async def test_a_launch_that_only_waited_for_its_turn_is_made_and_not_counted(succession: Succession) -> None:
    """Nothing is written of it before there is a container to be written of."""
    first = succession.make(
        service("a"), service("b"), scripts={"a": [Script(launch_seconds=5)], "b": [Script(launch_seconds=5)]}
    )
    first.runtime.on_hold = lambda name: succession.live.records.update(name) if name == "a" else None
    await succession.kill_after(first, 1)
    assert Records(succession.records).names() == ("a",)
    second = succession.make(service("a"), service("b"))
    summaries = await second.run_until(1)
    assert sorted(second.runtime.order("launch")) == ["a", "b"]
    assert (summaries["a"].restarts, summaries["b"].restarts) == (0, 0)


@anyio_only
async def test_a_restart_that_only_waited_for_its_turn_goes_on_where_it_backed_off(succession: Succession) -> None:
    scripts = {"a": [Script(seconds=0, exit=failure()), Script(launch_seconds=5)]}
    first = succession.make(service("a", replace(ALWAYS, backoff=Backoff(initial=0.001))), scripts=scripts)
    holds = []

    def hold(name: str) -> None:
        holds.append(name)
        if len(holds) == 1:
            succession.live.records.update(name)

    first.runtime.on_hold = hold
    await succession.kill_after(first, 1)
    assert (len(holds), succession.standing("a").state.phase) == (2, "backoff")
    second = succession.make(service("a", ALWAYS))
    summaries = await second.run_until(1)
    assert second.runtime.order("launch") == ["a"]
    assert summaries["a"].restarts == 1


@anyio_only
async def test_a_launch_that_was_not_sent_is_made_and_not_counted(succession: Succession) -> None:
    policy = RestartPolicy()
    slow = {"a": [Script(launch_seconds=5)]}
    await succession.kill_after(succession.make(service("a", policy), scripts=slow), 1)
    assert succession.standing("a").state.phase == "starting"
    second = succession.make(service("a", policy))
    summaries = await second.run_until(1)
    assert second.runtime.order("launch") == ["a"]
    assert summaries["a"].restarts == 0


@anyio_only
async def test_a_launch_that_never_came_about_is_no_failure(succession: Succession) -> None:
    slow = {"a": [Script(launch_seconds=5)]}
    await succession.kill_after(succession.make(service("a"), scripts=slow), 1)
    second = succession.make(service("a"), adoptable=["a"], unlaunched=["a"])
    summaries = await second.run_until(1)
    assert (succession.adopted, second.runtime.order("launch")) == (["a"], ["a"])
    assert summaries["a"].restarts == 0


@anyio_only
async def test_who_still_waited_for_its_first_start_is_started(succession: Succession) -> None:
    """Nothing is written of it: that it is wanted is what the project says."""
    services = [service("db"), service("web", depends_on={"db": Dependency()})]
    await succession.kill_after(succession.make(*services, scripts={"db": [Script(launch_seconds=5)]}), 1)
    assert Records(succession.records).names() == ("db",)
    second = succession.make(*services)
    await second.run_until(1)
    assert second.runtime.order("up") == ["db", "web"]


@anyio_only
async def test_a_start_by_a_command_is_not_forgotten(succession: Succession) -> None:
    """By a supervisor that has found the service ended, and is killed while that waits."""

    def probing(exit: Any) -> Script:
        return Script(exec=lambda seconds, command: (0.0, exit, b""))

    check = Healthcheck(test=("probe",), interval=1, retries=1)
    healthy = {"db": Dependency(condition="service_healthy")}
    services = [service("db", healthcheck=check), service("job", depends_on=healthy)]
    scripts = {"job": [Script(seconds=1)]}
    await succession.kill_after(succession.make(*services, scripts=scripts | {"db": [probing(OK)]}), 4)
    assert succession.standing("job").state.phase == "exited"
    second = succession.make(*services, scripts=scripts | {"db": [probing(failure())]}, adoptable=["db"])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(succession.kill_after, second, 5)
        await trio.sleep(3)
        second.supervisor.start(["job"])
        assert second.states() == {"db": "running", "job": "waiting"}
    third = succession.make(*services, scripts=scripts | {"db": [probing(OK)]}, adoptable=["db"])
    await third.run_until(5)
    assert "job" in third.runtime.order("up")


@anyio_only
async def test_what_has_changed_is_changed_as_by_reload(succession: Succession) -> None:
    before = [service("same"), service("other"), service("gone"), service("adjusted", labels={"a": "b"})]
    await succession.kill_after(succession.make(*before), 1)
    names = ["same", "other", "gone", "adjusted"]
    after = [service("same"), service("other", command=("y",)), service("new"), service("adjusted", labels={"a": "c"})]
    second = succession.make(*after, adoptable=names)
    async with second.live() as supervisor:
        await supervisor.wait(until="running")
        assert sorted(second.states()) == ["adjusted", "new", "other", "same"]
        assert sorted(succession.adopted) == sorted(names)
        assert sorted(second.runtime.order("stop")) == ["gone", "other"]
        assert not (succession.records / "gone.json").exists()
    assert json.loads((succession.records / "other.json").read_text())["service"]["spec"]["command"] == ["y"]


@anyio_only
async def test_what_is_no_more_in_the_project_is_stopped_in_order(succession: Succession) -> None:
    """What `down` does about a supervisor that is dead."""
    services = [service("db"), service("web", depends_on={"db": Dependency()})]
    await succession.kill_after(succession.make(*services), 1)
    second = succession.make(adoptable=["db", "web"], scripts={"web": [Script(stop_seconds=3)]})
    async with second.live():
        await trio.sleep(5)
        assert second.states() == {}
    assert second.runtime.order("stop") == ["web", "db"]


@anyio_only
async def test_a_scale_by_command_is_kept_until_the_project_says_otherwise(succession: Succession) -> None:
    await succession.kill_after(succession.make(service("w", scale=1)), 1, lambda it: it.scale("w", 3))
    names = ["w", "w-2", "w-3"]
    assert sorted(Records(succession.records).names()) != []
    adoptable = list(Records(succession.records).names())
    second = succession.make(service("w", scale=1), adoptable=adoptable)
    await succession.kill_after(second, 1)
    assert len(second.states()) == len(names)
    third = succession.make(service("w", scale=2), adoptable=adoptable)
    async with third.live():
        await trio.sleep(1)
        assert len(third.states()) == 2


@anyio_only
async def test_health_and_what_was_greeted_are_kept(succession: Succession) -> None:
    def failing(seconds: float, command: tuple[str, ...]) -> tuple[float, Any, bytes]:
        return (0.0, OK, b"") if command == ("hook",) else (0.0, failure(), b"")

    check = Healthcheck(test=("probe",), interval=10, retries=3)
    one = service("a", healthcheck=check, post_start=(Hook(command=("hook",)),))
    first = succession.make(one, scripts={"a": [Script(exec=failing)]})
    await succession.kill_after(first, 25)
    assert succession.standing("a").health.failures == 2
    second = succession.make(one, adoptable=["a"], scripts={"a": [Script(exec=failing)]})
    await second.run_until(12)
    assert [event.health for event in second.of(HealthChanged)] == ["unhealthy"]
    assert ("hook",) not in [command for _, command, *_ in second.runtime.executed]


@anyio_only
async def test_who_joined_a_container_that_has_been_replaced_meanwhile_is_told(succession: Succession) -> None:
    services = [service("db", ALWAYS), service("web", depends_on={"db": Dependency(restart=True)})]
    await succession.kill_after(succession.make(*services), 1)
    second = succession.make(
        *services, adoptable=["db", "web"], scripts={"db": [Script(seconds=0, exit=failure()), Script()], "web": [Script()]}
    )
    await second.run_until(2)
    assert second.runtime.order("launch").count("web") == 2


@anyio_only
async def test_what_makes_no_sense_is_refused_and_nothing_is_started(succession: Succession) -> None:
    await succession.kill_after(succession.make(service("a")), 1)
    Records(succession.records).update("a", standing={"group": 3})
    second = succession.make(service("a"))
    with pytest.raises(TinyvisorError, match="makes no sense to this version"):
        await second.run()
    assert not second.runtime.history


# ---- pure ----

PHASES = get_args(Phase)


@given(st.sampled_from(PHASES), st.sampled_from(get_args(Then)), st.booleans(), st.booleans(), st.booleans())
def test_what_follows_is_legal_and_leads_somewhere(
    phase: Phase, then: Then, stopped: bool, leaving: bool, has_container: bool
) -> None:
    state = State(phase=phase, then=then, launches=1)
    one = Standing(group="a", service=service("a"), state=state, stop_wanted=stopped, leaving=leaving)
    event = resume.next_event(one, has_container=has_container)
    if event is not None:
        try:
            state, _ = decide(RestartPolicy(), state, event, now=1.0)
        except InternalError as error:
            raise AssertionError(f"{phase}: {event}") from error
    assert has_container or state.phase not in WITH_CONTAINER


@given(st.builds(State, phase=st.sampled_from(PHASES), attempt=st.integers(0, 9), starts=st.tuples(st.floats(0, 1e6))))
def test_a_standing_comes_back(state: State) -> None:
    one = Standing(group="g", service=service("a"), state=state, last=failure(3), seen={"b": 2}, generation=4, has_begun=True)
    values = {name: getattr(one, name) for name in Standing.__slots__ if name != "service"}
    content, service_ = json.loads(json.dumps([resume.encode(**values), stored.to_json(one.service)]))
    assert resume.decode("a", content, service_) == one


def test_times_are_those_of_another_clock() -> None:
    running = State(phase="running", started_at=5.0, due=math.inf, starts=(1.0,))
    assert resume.shifted(running, 10.0) == State(phase="running", started_at=15.0, starts=(11.0,))
    assert resume.shifted(State(phase="backoff", due=3.0), -1.0).due == 2.0
