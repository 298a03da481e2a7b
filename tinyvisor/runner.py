"""One instance of a service: its state, its task, its container from launch to end, what it has used. On trio.

An event is fed into the service's table (`policy.decide`) the moment it happens, synchronously; the task sees the new phase
when it wakes. What a change means for others is the supervisor's to settle: it is told of each.
"""

from __future__ import annotations

import errno
import functools
import math
import os
import re
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import anyio
import trio

from tinyvisor import cron, health, pattern, resume, stored
from tinyvisor.errors import ContainerError, HostError, InternalError, LauncherDied, NotLaunched, SpecError, TinyvisorError
from tinyvisor.health import Health
from tinyvisor.inside import Executor, explain, run_inside
from tinyvisor.listener import Listener, Messages, Pipe, Told
from tinyvisor.logtarget import LINEWISE, Log, open_log
from tinyvisor.policy import (
    NEW,
    Action,
    DelayElapsed,
    DependencyLost,
    Exited,
    Fired,
    Launched,
    LaunchFailed,
    NotReady,
    Ready,
    ServiceEvent,
    StartRequested,
    State,
    Unfit,
    decide,
    fate,
    is_lost,
    is_met,
)
from tinyvisor.probe import run_probe
from tinyvisor.resume import WITH_CONTAINER, Standing
from tinyvisor.runtime import PIPE
from tinyvisor.runtime.logfile import Block, Lines, Lost, Stream
from tinyvisor.runtime.records import Records
from tinyvisor.runtime.stage import Place, Stage
from tinyvisor.runtime.stdio import ReceivePipe
from tinyvisor.spec import Condition, Dependency, Healthcheck, Hook, Service, Spec
from tinyvisor.state import (
    DependencyMissing,
    Event,
    Exit,
    HealthChanged,
    HookFailed,
    LogLost,
    NotifyRefused,
    Probe,
    ServiceAdopted,
    ServiceBackoff,
    ServiceExited,
    ServiceFailed,
    ServiceFinished,
    ServiceScheduled,
    ServiceStarted,
    ServiceStopped,
    ServiceStopping,
    ServiceSummary,
    Stats,
    StopHeldUp,
)
from tinyvisor.tap import Tap
from tinyvisor.turns import Turn, Turns
from tinyvisor.units import format_duration

DRAIN_PATIENCE: Final = 2.0
NEWS_PATIENCE: Final = 0.1

FLUSH_INTERVAL: Final = 0.05
"""Seconds between two tries to get rid of what a log's socket did not take."""

FLUSH_PATIENCE: Final = 0.5
"""Seconds that it has for the last of it."""

AHEAD: Final = 0.05
"""Seconds before the end of a back-off at which the next container is begun, up to the exec: so little that what it is given (an
image, volumes, secrets) is what there is at the end."""

LEAST_AHEAD: Final = 0.005
"""Seconds that it takes; where less is left, it is launched when it is due."""

AHEAD_PATIENCE: Final = 1.0
"""Seconds after that end at which one that is not there yet is given up for a launch that can be seen."""

CHUNK: Final = 64 << 10
"""Bytes read from a pipe at once, which is what a pipe holds: a larger one, or larger reads, move no more (measured), and it
bounds how long a flood, of newlines at worst, keeps the others waiting: some milliseconds."""

PROBES_KEPT: Final = 5
"""Runs of a healthcheck that are remembered, as moby does."""

LOOKING_BUDGET: Final = 1.0
"""CPU seconds that the search for ``ready_log`` may take of one container's output. A container writes what it likes."""

CLOCK_PATIENCE: Final = 60.0
"""How late a schedule may be when the wall clock is set, or the machine has slept."""


class ByteReceive(Protocol):
    """The read end of a pipe, as anyio's `ByteReceiveStream`."""

    async def receive(self, max_bytes: int = ..., /) -> bytes: ...

    async def aclose(self) -> None: ...


class HasFileno(Protocol):
    """The write end of a pipe."""

    def fileno(self) -> int: ...


class Process(Protocol):
    """A command in a running container, as a scope has it."""

    @property
    def terminal(self) -> int | None: ...

    async def wait(self) -> Exit: ...


class Container(Executor, Protocol):
    """What the supervisor needs of a running container."""

    def open_exec(
        self,
        command: tuple[str, ...],
        *,
        environment: Mapping[str, str] | None = None,
        terminal: tuple[int, int] = ...,
        **changes: Any,
    ) -> AbstractAsyncContextManager[Process]: ...

    @property
    def pid(self) -> int: ...

    @property
    def stdin(self) -> HasFileno | None: ...

    @property
    def stdout(self) -> ByteReceive | None: ...

    @property
    def stderr(self) -> ByteReceive | None: ...

    @property
    def terminal(self) -> int | None: ...

    terminal_stage: Stage | None

    async def wait(self) -> Exit: ...

    @property
    def since_end(self) -> float: ...

    async def stop(self, *, grace: float | None = None) -> Exit: ...

    async def signal(self, number: int) -> None: ...

    async def stats(self) -> Stats: ...

    def processes(self) -> tuple[str, ...]: ...

    @property
    def notify(self) -> Messages | None: ...

    @property
    def notification(self) -> Pipe | None: ...

    async def open_socket(self, domain: int = ..., /) -> socket.socket: ...

    def kill(self) -> None: ...


class Runtime(Protocol):
    """What the supervisor needs of a runtime."""

    def start(
        self,
        spec: Spec,
        /,
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        before_exec: Callable[[], Awaitable[object]] | None = None,
    ) -> AbstractAsyncContextManager[Container]: ...


@dataclass(frozen=True, slots=True)
class Live:
    """What outlives us, and what the supervisor before us has left.

    Attributes:
        records: each instance's file has two sections of ours, which make a `resume.Standing`: ``service``, what it is, and
            ``standing``.
        adopt: its container, as `Runtime.start` gives it.
        adoptable: instances that have one.
        monotonic: seconds of the kernel's clock.
    """

    records: Records
    adopt: Callable[[str], AbstractAsyncContextManager[Container]]
    adoptable: Collection[str] = ()
    monotonic: Callable[[], float] = time.monotonic


OnEvent = Callable[[Event], None]
OnOutput = Callable[[str, Stream, Block], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all runners share.

    Attributes:
        log_dir: None keeps no logs.
        jitter: gives random numbers in 0..1.
        wall: seconds since the epoch.
        on_change: told of each change of a runner's state or health.
        live: None where nothing outlives us.
    """

    runtime: Runtime
    turns: Turns
    events: Events
    on_output: OnOutput
    log_dir: Path | None
    jitter: Callable[[], float]
    wall: Callable[[], float]
    on_change: Callable[[Runner], None]
    live: Live | None = None


MAX_AWAITED: Final = 3
"""Dependencies that are named where a service waits for more."""
_AWAITED: Final[Mapping[Condition, str]] = {
    "service_started": "start",
    "service_healthy": "be healthy",
    "service_completed_successfully": "complete",
}


@dataclass(frozen=True, slots=True)
class Need:
    """A dependency, and the runners that it means: all instances of the service called `name`; none where it is not there."""

    name: str
    terms: Dependency
    runners: tuple[Runner, ...]


@dataclass(frozen=True, slots=True)
class _Unmet:
    reason: str
    lost: bool
    required: bool


class Runner:
    """One instance of a service.

    Attributes:
        name: the instance's.
        group: the service's.
        busy: its task runs.
        stop_wanted: somebody wants it down, as soon as what depends on it and is wanted down as well is down.
        leaving: it is forgotten once it is down.
        generation: containers that have run.
        probes: the latest runs of its healthcheck, oldest first.
        taps: get its container's output as it comes, and its end.
        grace: seconds that its container has to end when it is stopped; None: as its service says.
    """

    __slots__ = (
        "_adopting",
        "_ahead",
        "_armed_at",
        "_around",
        "_begun",
        "_by_hand",
        "_container",
        "_dependents",
        "_fired_at",
        "_flushing",
        "_greeted",
        "_holders",
        "_launch_seconds",
        "_launching",
        "_listener",
        "_log",
        "_looking",
        "_noted",
        "_pumps",
        "_seen",
        "_starting",
        "_stop_wanted",
        "_totals",
        "_tried_ahead",
        "_watching",
        "_woken",
        "busy",
        "generation",
        "grace",
        "group",
        "has_begun",
        "health",
        "leaving",
        "name",
        "needs",
        "probes",
        "service",
        "state",
        "taps",
    )  # fmt: skip

    def __init__(self, group: str, service: Service, around: Surroundings) -> None:
        self.name: str = service.name
        self.group: str = group
        self.service: Service = service
        self.state: State = NEW
        self.health: Health = health.UNKNOWN
        self.has_begun: bool = False
        self.busy: bool = False
        self.leaving: bool = False
        self.needs: tuple[Need, ...] = ()
        self.generation: int = 0
        self.probes: tuple[Probe, ...] = ()
        self.grace: float | None = None
        self._stop_wanted = False
        self._by_hand = False  # and not only since all is to end
        self._adopting = False  # our next container is there already
        self._greeted = False
        self._noted: Service | None = None
        self.taps: list[Tap] = []
        self._around = around
        self._dependents: tuple[Runner, ...] = ()
        self._holders: list[Runner] = []
        self._seen: dict[Runner, int] = {}  # the generations of what we depend on when our launch began
        self._log: Log | None = None
        self._flushing: _Flushing | None = None
        self._woken: trio.Event | None = None
        self._launching = trio.CancelScope()
        self._ahead: _Ahead | None = None  # our next container is made, or being made, and we back off
        self._tried_ahead = -math.inf  # what was due when that was tried last
        self._watching = trio.CancelScope()
        self._starting: trio.CancelScope | None = None  # until it is ready, or should have been
        self._container: Container | None = None
        self._pumps: trio.Nursery | None = None
        self._looking: _Looking | None = None
        self._listener: Listener | None = None
        self._armed_at = 0.0  # the wall clock when it last began to wait for its time
        self._fired_at: float | None = None  # and when that last came
        self._launch_seconds = self._begun = 0.0
        self._totals = _Totals()

    async def run(self) -> None:
        while not self.state.down:
            match self.state.phase:
                case "scheduled":
                    await self._wait_for_time()
                case "waiting":
                    await self._wait_until_ready()
                case "backoff" if self._can_run_ahead():
                    await self._run_ahead()
                case "backoff":
                    await self._wait_until_due(self.service)
                case "starting" | "stopping":  # stopped by a callback in the very step that started it
                    self.feed(await self._run_container())
                case "running" if self._adopting:
                    self.feed(await self._run_container())
                case phase:
                    raise InternalError(f"{self.name} is {phase} without a container")
        self.busy = False
        self._around.on_change(self)

    def feed(self, event: ServiceEvent) -> Action:
        """Decides, and does at once what needs no waiting; the rest is the task's, which is woken."""
        before = self.state
        self.has_begun = self.has_begun or isinstance(event, StartRequested)
        now, jitter = trio.current_time(), self._around.jitter()
        self.state, action = decide(self.service.restart, before, event, now=now, random=jitter)
        if action == "schedule":
            self._armed_at = self._around.wall()
        if self.state != before and not self._is_foregone(event):
            # First: what we do next may be what we die in. A launch writes it with the container, before that there is none.
            self.note(write=action != "launch" or self._ahead is not None)
        self._act(action)
        self.wake()
        self._around.events.emit(self._news(before, event, action))
        if self.state != before:
            self._around.on_change(self)
        return action

    def wake(self) -> None:
        if self._woken is not None:
            self._woken.set()
        if self._ahead is not None and not self._ahead.due and not self._fits(self._ahead):
            self._launching.cancel()

    @property
    def stop_wanted(self) -> bool:
        return self._stop_wanted

    @stop_wanted.setter
    def stop_wanted(self, wanted: bool) -> None:
        if (wanted, wanted) != (self._stop_wanted, self._by_hand):
            self._stop_wanted = self._by_hand = wanted
            self.note()

    def stop_with_all(self) -> None:
        """Like setting `stop_wanted`, but it is the supervisor that is to end: the next one wants it up again."""
        self._stop_wanted = True

    # ---- from one supervisor to the next ----

    def note(self, *, write: bool = True) -> None:
        """Writes down where we stand; or with what is written next."""
        live = self._around.live
        if live is None:
            return
        has_container = self.state.phase in WITH_CONTAINER or self._ahead is not None
        changed: dict[str, Any] = {} if has_container else {"container": None}
        if self._noted is not self.service:
            self._noted = self.service
            changed["service"] = stored.to_json(self.service)
        totals = self._totals
        standing = resume.encode(
            group=self.group,
            state=resume.shifted(self.state, live.monotonic() - trio.current_time()),
            health=self.health,
            has_begun=self.has_begun,
            stop_wanted=self._by_hand,
            leaving=self.leaving,
            generation=self.generation,
            seen={other.name: generation for other, generation in self._seen.items()},
            greeted=self._greeted,
            armed_at=self._armed_at,
            fired_at=self._fired_at,
            last=totals.last,
            wall=totals.wall,
            cpu=totals.cpu,
            memory_peak=totals.memory_peak,
        )
        (live.records.try_update if write else live.records.stage)(self.name, standing=standing, **changed)

    def _is_foregone(self, event: ServiceEvent) -> bool:
        """Whether the next supervisor finds it out by itself: that a back-off is over; that what it has no word of is wanted."""
        return isinstance(event, DelayElapsed) or (isinstance(event, StartRequested) and self._noted is None)

    def restore(self, standing: Standing) -> None:
        """Stands where the supervisor before us has left it; `restore_seen` when all do. Nothing happens yet."""
        live = self._around.live
        assert live is not None
        self.state = resume.shifted(standing.state, trio.current_time() - live.monotonic())
        self._adopting = self.name in live.adoptable
        self._noted = self.service
        self.health = standing.health
        self.has_begun = standing.has_begun
        self._stop_wanted = self._by_hand = standing.stop_wanted
        self.leaving = standing.leaving
        self.generation = standing.generation
        self._greeted = standing.greeted
        self._armed_at, self._fired_at = standing.armed_at, standing.fired_at
        self._totals = _Totals(standing.last, standing.wall, standing.cpu, standing.memory_peak)

    def restore_seen(self, seen: Mapping[str, int]) -> None:
        """Once it is known who `needs` whom."""
        others = {other.name: other for need in self.needs for other in need.runners}
        self._seen = {others[name]: generation for name, generation in seen.items() if name in others}

    def take_up(self, standing: Standing) -> None:
        """Feeds what has happened meanwhile."""
        event = resume.next_event(standing, has_container=self._adopting)
        if event is not None:
            self.feed(event)

    def signal(self, number: int) -> bool:
        """Sends a signal to the workload; False where nothing runs."""
        if self._container is None or self._pumps is None:
            return False
        self._pumps.start_soon(self._container.signal, number)
        return True

    @property
    def container(self) -> Container | None:
        """What runs; None between two containers, and at the end as soon as it is gone."""
        return self._container

    @property
    def is_up(self) -> bool:
        """Whether its container can be joined. It is gone a little earlier than its output has been read."""
        return self.state.phase == "running" and self._container is not None

    def is_cut_off(self) -> bool:
        """Whether it runs with a container that has been replaced: in its network, or with ``restart: true``."""
        return self.state.phase == "running" and any(
            (need.name == self.service.network_provider and other.is_up)
            or (need.terms.restart and is_met(need.terms.condition, other.state, other.is_well))
            for need in self.needs
            for other in need.runners
            if other.generation != self._seen.get(other, other.generation)
        )

    @property
    def is_well(self) -> bool:
        return self.is_up and self.health.well

    def is_free_to_stop(self) -> bool:
        """Whether nobody that needs it, and is to stop as well, is left. What has no container yet need not wait for that."""
        if self.state.phase == "running":
            return not self._is_held()
        return not self.state.down and (self.state.phase != "stopping" or self.state.restarts)

    def _is_held(self) -> bool:
        """Goes on where it stopped looking the last time: thousands may depend on one, and each tells when it is down."""
        while self._holders:
            if self._holders[-1].stop_wanted and not self._holders[-1].state.down:
                return True
            self._holders.pop()
        self._holders = [other for other in self._dependents if other.stop_wanted and not other.state.down]
        return bool(self._holders)

    @property
    def dependents(self) -> tuple[Runner, ...]:
        """Those that need it."""
        return self._dependents

    @dependents.setter
    def dependents(self, dependents: tuple[Runner, ...]) -> None:
        self._dependents, self._holders = dependents, []

    def may_come_back(self) -> bool:
        """Whether it has failed because of a dependency, and need not any more."""
        return self.state.lost and not any(unmet.lost and unmet.required for unmet in self._unmet())

    # ---- its log ----

    def make_log(self, service: Service) -> Log | None:
        """A log as `service` says.

        Raises:
            HostError: it can't be written.
        """
        return open_log(service.logging, self.name, self._around.log_dir)

    def use_log(self, log: Log | None) -> None:
        """Writes to `log` from now on."""
        self.close_log()
        self._log = log

    def close_log(self) -> None:
        if self._log is not None:
            self._tell_lost(self._log.close())
            self._log = None

    # ---- what there is to tell ----

    def summary(self) -> ServiceSummary:
        totals, last = self._totals, self._totals.last
        return ServiceSummary(
            name=self.name,
            state=self.state.phase,
            exit=last,
            restarts=max(0, self.state.launches - 1),
            wall=totals.wall,
            cpu=totals.cpu,
            memory_peak=totals.memory_peak,
            held_up_by=last.held_up_by if last is not None else (),
            health=self.health.status,
            reason=self._reason(),
            service=self.group if self.group != self.name else "",
            status=self._listener.status if self._listener is not None else "",
            uptime=trio.current_time() - self.state.started_at if self.is_up else None,
            due=self._due(),
        )

    def _due(self) -> float | None:
        match self.state.phase:
            case "backoff":
                return max(0.0, self.state.due - trio.current_time())
            case "scheduled":
                return max(0.0, self._next_time() - self._around.wall())
        return None

    def _reason(self) -> str:
        """Why it does not run, where there is more to say of it than its phase."""
        match self.state.phase:
            case "failed" | "backoff" | "scheduled":
                return self.state.reason
            case "waiting":
                awaited = [
                    f"{other.name} to {_AWAITED[need.terms.condition]}"
                    for need in self.needs
                    for other in need.runners
                    if not is_met(need.terms.condition, other.state, other.is_well)
                ]
                more = len(awaited) - MAX_AWAITED
                shown = awaited[:MAX_AWAITED] + ([f"{more} more"] if more > 0 else [])
                return f"waits for {', '.join(shown)}" if shown else ""
        return ""

    def _act(self, action: Action) -> None:
        match action:
            case "launch" if self._ahead is None:
                self._launching = trio.CancelScope()
            case "cancel":
                self._launching.cancel()
            case "stop":
                self._watching.cancel()
            case "kill" if self._container is not None:
                self._container.kill()

    def _news(self, before: State, event: ServiceEvent, action: Action) -> list[Event]:
        """What there is to tell of a step, in order."""
        news: list[Event] = []
        if isinstance(event, Launched) and self._container is not None:
            news.append(ServiceStarted(self.name, self._container.pid, self._launch_seconds))
        if isinstance(event, Exited):
            news.append(ServiceExited(self.name, event.exit))
            if event.exit.held_up_by:
                news.append(StopHeldUp(self.name, event.exit.held_up_by))
        if action in ("cancel", "stop", "kill") and before.phase != "stopping":
            news.append(ServiceStopping(self.name, self.state.restarts))
        if action == "delay":
            delay = self.state.due - trio.current_time()
            news.append(ServiceBackoff(self.name, delay, self.state.attempt, self.state.reason))
        if action == "schedule":
            news.append(ServiceScheduled(self.name, max(0.0, self._next_time() - self._around.wall()), self.state.reason))
        if action == "finish":
            news.append(self._verdict())
        return news

    def _verdict(self) -> Event:
        match self.state.phase:
            case "exited":
                return ServiceFinished(self.name)
            case "failed":
                return ServiceFailed(self.name, self.state.reason)
        return ServiceStopped(self.name)

    # ---- before the launch ----

    async def _wait_woken(self) -> None:
        woken = self._woken = trio.Event()
        await woken.wait()
        self._woken = None

    async def _wait_until_ready(self) -> None:
        while self.state.phase == "waiting":
            unmet = list(self._unmet())
            lost = next((each.reason for each in unmet if each.lost and each.required), None)
            if lost is not None:
                self.feed(DependencyLost(lost))
            elif all(each.lost for each in unmet):
                self._around.events.emit([DependencyMissing(self.name, each.reason) for each in unmet])
                if self.state.phase == "waiting":  # the callback may have stopped us
                    self.feed(Ready())
            else:
                await self._wait_woken()

    def _unmet(self) -> Iterator[_Unmet]:
        """What is missing for a start."""
        for need in self.needs:
            terms, joined = need.terms, need.name == self.service.network_provider
            if not need.runners:
                yield _Unmet(f"it depends on {need.name}, which is not there", True, terms.required)
            for other in need.runners:
                if joined and not other.is_up:
                    what = f"its network is that of {other.name}, which has {fate(other.state)}"
                    yield _Unmet(what, other.state.down, True)
                elif not is_met(terms.condition, other.state, other.is_well):
                    what = f"it depends on {other.name}, which has {fate(other.state)}"
                    yield _Unmet(what, is_lost(terms.condition, other.state), terms.required)

    async def _wait_until_due(self, service: Service) -> None:
        """Or until it does not back off any more, or is not to be `service` any more."""
        if await self._backs_off_until(self.state.due, service):
            self.feed(DelayElapsed())

    async def _backs_off_until(self, time: float, service: Service) -> bool:
        with trio.move_on_at(time):
            while self.state.phase == "backoff" and self.service == service:
                await self._wait_woken()
        return self.state.phase == "backoff" and self.service == service

    async def _wait_for_time(self) -> None:
        """By the wall clock, which may be set meanwhile; ours stands still while the machine sleeps."""
        while self.state.phase == "scheduled":
            left = self._next_time() - self._around.wall()
            if left <= 0:
                self._fired_at = self._around.wall()
                self.feed(Fired())
                return
            with trio.move_on_after(min(left, CLOCK_PATIENCE)):
                await self._wait_woken()

    def _next_time(self) -> float:
        """When its schedule comes next; in the past where one run is queued behind the last one."""
        schedule = self.service.restart.schedule
        assert schedule is not None
        armed_at = min(self._armed_at, self._around.wall())  # the clock may have been set back
        last = self._fired_at
        if schedule.interval is not None:
            if last is None:
                return armed_at
            missed = math.ceil((armed_at - last) / schedule.interval)
            return last + schedule.interval * (1 if schedule.overlap == "queue" else max(1, missed))
        assert schedule.cron is not None
        since = armed_at if last is None or schedule.overlap == "skip" else min(last, armed_at)
        return cron.next_time(cron.parse(schedule.cron), since, cron.zone(schedule.timezone))

    # ---- the container ----

    async def _run_container(self) -> ServiceEvent:
        """From launch to end. The scope is cancelled by a stop during the launch, never later."""
        with self._launching:
            async with self._around.turns.turn() as turn:
                return await self._launch(turn)
        return LaunchFailed("stopped before it had started")

    async def _launch(self, turn: Turn) -> ServiceEvent:
        adopted, self._adopting = self._adopting, False
        if not adopted:
            self._begin_launch()
            if self._has_lost_provider():  # while we waited for our turn
                return NotReady()
        service, launched = self.service, False
        try:
            async with self._container_of(service, adopted, turn) as container:
                turn.end()
                if self.state.phase == "stopping" and not adopted:  # the cancellation came too late for the launch
                    return LaunchFailed("stopped before it had started")
                launched, self._ahead = True, None
                self._launch_seconds = trio.current_time() - self._begun
                exit = await self._attend(service, container, adopted)
        except (InternalError, LauncherDied):
            raise
        except TinyvisorError as error:
            if launched:
                raise
            return NotReady() if isinstance(error, NotLaunched) else await self._launch_failed(error)
        self._totals.add(exit)
        return Exited(exit, container.since_end)

    def _begin_launch(self) -> None:
        self._begun = trio.current_time()
        self._seen = {other: other.generation for need in self.needs for other in need.runners}
        self._greeted = False

    def _container_of(self, service: Service, adopted: bool, turn: Turn) -> AbstractAsyncContextManager[Container]:
        if adopted:
            assert self._around.live is not None
            return self._around.live.adopt(self.name)
        stdin = PIPE if service.spec.stdin_open else None
        before_exec = None if self._ahead is None else functools.partial(self._wait_to_exec, self._ahead, turn)
        return self._around.runtime.start(service.spec, stdin=stdin, stdout=PIPE, stderr=PIPE, before_exec=before_exec)

    # ---- the next container, made while we back off ----

    def _can_run_ahead(self) -> bool:
        """Once in a back-off: who needs nothing but time, and nothing that is not there yet."""
        service, due = self.service, self.state.due
        return (
            due != self._tried_ahead
            and due - trio.current_time() >= LEAST_AHEAD
            and service.network_provider is None
            and service.spec.notification_fd is None
        )

    async def _run_ahead(self) -> None:
        """The launch is begun before its time; what comes of it until our state says ``starting`` is nobody else's business."""
        service = self.service
        if not await self._backs_off_until(self.state.due - AHEAD, service):
            return
        self._tried_ahead = self.state.due
        if any(self._unmet()):
            return
        self._launching = trio.CancelScope(deadline=self.state.due + AHEAD_PATIENCE)
        self._ahead = ahead = _Ahead(service)
        try:
            event = await self._run_container()
        finally:
            self._ahead = None
        if ahead.due:
            self.feed(event)
        else:
            self.note()

    async def _wait_to_exec(self, ahead: _Ahead, turn: Turn) -> None:
        """All is there but the workload, whose time may come; else this does not return."""
        turn.end()
        self._launching.deadline = math.inf
        await self._wait_until_due(ahead.service)
        given_up = self._launching.cancel_called  # a stop, with a start behind it
        if self.state.phase == "waiting" and not given_up and self._fits(ahead) and not any(self._unmet()):
            self._begin_launch()
            ahead.due = True
            self.feed(Ready())
            ahead.due = self.state.phase in ("starting", "stopping")  # the start limit may be against it
        if self.state.phase != "starting":
            self._launching.cancel()
            await trio.sleep_forever()

    def _fits(self, ahead: _Ahead) -> bool:
        return self.state.phase in ("backoff", "waiting") and self.service == ahead.service

    async def _launch_failed(self, error: TinyvisorError) -> ServiceEvent:
        """A network that went away under the launch is not this service's failure, and the news of it may come later."""
        if self._provider is not None:
            await trio.sleep(NEWS_PATIENCE)
            if self._has_lost_provider():
                return NotReady()
        problem = error.problem if isinstance(error, ContainerError) else str(error)
        return LaunchFailed(problem, final=isinstance(error, (HostError, SpecError)))

    @property
    def _provider(self) -> Runner | None:
        name = self.service.network_provider
        return next((need.runners[0] for need in self.needs if need.name == name and need.runners), None) if name else None

    def _has_lost_provider(self) -> bool:
        provider = self._provider
        return provider is not None and not (provider.is_up and provider.generation == self._seen.get(provider))

    async def _attend(self, service: Service, container: Container, adopted: bool) -> Exit:
        found = adopted and self.health.ready
        self._looking = None if service.ready_log is None or found else _Looking(service.ready_log)
        self.probes = ()
        async with trio.open_nursery() as pumps:
            flushing = self._flushing = _Flushing() if self._log is not None and self._log.waits else None
            if flushing is not None:
                pumps.start_soon(self._keep_flushing, flushing)
            for stream, source in _sources(container):
                pumps.start_soon(self._pump, stream, source)
            self._container, self._pumps = container, pumps
            if adopted:
                self._around.events.emit([ServiceAdopted(self.name, container.pid)])
            else:
                self.generation += 1
                self.health = health.at_start(service)
            try:
                exit = await self._wait_end(service, container)
            finally:
                self._container = self._pumps = None
                self.health = health.UNKNOWN
                if flushing is not None:
                    flushing.ended = True
                    flushing.unflushed.set()
            pumps.cancel_scope.deadline = trio.current_time() + DRAIN_PATIENCE
            if flushing is not None:
                flushing.scope.deadline = trio.current_time() + FLUSH_PATIENCE
        for tap in self.taps:
            tap.end(exit)
        return exit

    async def _wait_end(self, service: Service, container: Container) -> Exit:
        """A stop, when it comes, cancels the wait and not the container."""
        self._watching = trio.CancelScope()
        if self.state.phase == "starting":
            self.feed(Launched())
        else:  # adopted: its state is the same, but others can see now that it is there
            self._around.on_change(self)
        if self.state.phase == "stopping":
            self._watching.cancel()
        try:
            exit = await self._keep_company(service, container)
            if exit is not None:
                return exit
            if service.pre_stop:
                await self._take_leave(service, container)
            return await container.stop(grace=self.grace)
        except ContainerError as error:  # e.g. its cgroup can't be removed
            return Exit(status="sandbox_error", reason=error.problem)
        finally:
            self.grace = None

    async def _keep_company(self, service: Service, container: Container) -> Exit | None:
        """Until its end; None: until it is to be stopped."""
        self._listener = None
        greets = service.post_start and not self._greeted
        speaks = container.notify is not None or container.notification is not None
        is_awaited = service.start_timeout is not None and not self.health.began
        if not (greets or speaks or is_awaited or service.healthcheck is not None):  # most have none: memory
            with self._watching:
                return await _wait(container)
            return None
        async with trio.open_nursery() as company:
            if greets:
                company.start_soon(self._greet, service.post_start, container)
            if speaks:
                self._hear(service, container, company)
            if is_awaited:
                company.start_soon(self._await_ready, service)
            if service.healthcheck is not None:
                company.start_soon(self._keep_probing, service, service.healthcheck, container)
            exit = None
            with self._watching:
                exit = await _wait(container)
            company.cancel_scope.cancel()
        return exit

    # ---- hooks ----

    async def _greet(self, hooks: Iterable[Hook], container: Container) -> None:
        for number, hook in enumerate(hooks, 1):
            problem = await self._run_hook(hook, container)
            if problem:
                self._around.events.emit([HookFailed(self.name, "post_start", problem)])
                self._condemn(Unfit(f"post_start command {number} failed: {problem}"))
                return
        self._greeted = True
        self.note()

    async def _take_leave(self, service: Service, container: Container) -> None:
        """The pre_stop hooks, as long as there is somebody to take leave of."""
        with trio.move_on_after(service.spec.stop_grace_period if self.grace is None else self.grace) as patience:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_at_end, container, nursery.cancel_scope)
                for hook in service.pre_stop:
                    problem = await self._run_hook(hook, container)
                    await trio.lowlevel.checkpoint()  # where the container's end was the hook's, that is no failure of it
                    if problem:
                        self._around.events.emit([HookFailed(self.name, "pre_stop", problem)])
                nursery.cancel_scope.cancel()
        if patience.cancelled_caught:
            self._around.events.emit([HookFailed(self.name, "pre_stop", "it outlived the grace period")])

    async def _run_hook(self, hook: Hook, container: Container) -> str:
        """Why it failed, or ``""``."""
        environment = dict(hook.environment) or None
        exit, output = await run_inside(
            container, hook.command, user=hook.user, working_dir=hook.working_dir, environment=environment
        )
        return "" if exit.status == "ok" else explain(exit, output)

    def _condemn(self, unfit: Unfit) -> None:
        if self.state.phase in ("running", "stopping"):
            self.feed(unfit)

    # ---- health ----

    async def _await_ready(self, service: Service) -> None:
        """Its start has failed where it does not say in time that it is ready."""
        assert service.start_timeout is not None
        with trio.CancelScope(deadline=self.state.started_at + service.start_timeout) as starting:
            self._starting = starting
            await trio.sleep_forever()
        self._starting = None
        if not self.health.began:
            given = round(starting.deadline - self.state.started_at, 3)
            why = f": {self.health.reason}" if self.health.reason else ""
            self._condemn(Unfit(f"it was not ready within {format_duration(given)}{why}"))

    def _extend_start(self, seconds: float) -> None:
        if self._starting is not None:
            self._starting.deadline = max(self._starting.deadline, trio.current_time() + seconds)

    async def _keep_probing(self, service: Service, check: Healthcheck, container: Container) -> None:
        start = self.state.started_at
        while True:
            await trio.sleep(health.delay(check, self.health, elapsed=trio.current_time() - start))
            begun, time_of_day = trio.current_time(), self._around.wall()
            exit, output = await self._probe(check, container)
            now = trio.current_time()
            self.probes = (*self.probes, Probe(time_of_day, now - begun, exit, output))[-PROBES_KEPT:]
            passed, why = exit.status == "ok", explain(exit, output)
            self._set_health(service, health.judge(check, self.health, passed=passed, why=why, elapsed=now - start))

    async def _probe(self, check: Healthcheck, container: Container) -> tuple[Exit, bytes]:
        if check.test:
            return await run_inside(container, check.test, timeout=check.timeout)
        return await run_probe(container, check), b""

    def _hear(self, service: Service, container: Container, company: trio.Nursery) -> None:
        """What it says of itself, by other ways than its output."""
        told = Told(
            ready=lambda: self._change_readiness(service, health.became_ready),
            stopping=lambda: self._change_readiness(service, health.withdrew),
            needs=self._extend_start,
            mute=lambda reason: self._set_health(service, health.gave_up_looking(self.health, reason)),
            hangs=lambda reason: self._condemn(Unfit(reason)),
            refused=lambda what, why: self._around.events.emit([NotifyRefused(self.name, what, why)]),
        )
        is_ready = self.health.ready  # which it may have told the supervisor before us
        self._listener = listener = Listener(
            told, watchdog=service.watchdog, waits_for_ready=service.ready_notify and not is_ready
        )
        if container.notify is not None:
            company.start_soon(listener.listen, container.notify)
            if service.watchdog is not None:
                company.start_soon(listener.watch)
        if container.notification is not None and not is_ready:
            company.start_soon(listener.await_newline, container.notification)

    def _change_readiness(self, service: Service, change: Callable[[Health], Health]) -> None:
        if service.tells_ready:
            self._set_health(service, change(self.health))

    def _set_health(self, service: Service, after: Health) -> None:
        before, self.health = self.health, after
        if after.began and self._starting is not None:
            self._starting.cancel()
        if after != before:
            self.note()
        if after.status == before.status:
            return
        if after.status != "starting":
            self._around.events.emit([HealthChanged(self.name, after.status, after.reason)])
        self._around.on_change(self)
        action = self.service.on_unhealthy
        if after.status == "unhealthy" and action != "none":
            self._condemn(Unfit(after.reason, "retry" if action == "restart" else "fail"))

    def _look(self, block: Block) -> None:
        """For the line that says it is ready."""
        looking = self._looking
        if looking is None or self._container is None:
            return
        for line in block.removesuffix(b"\n").split(b"\n"):
            if looking.budget <= 0:
                self._looking = None
                reason = f"the search for ready_log took more than {LOOKING_BUDGET:.0f} s of CPU time"
                self._set_health(self.service, health.gave_up_looking(self.health, reason))
                return
            if looking.found_in(line):
                self._looking = None
                self._set_health(self.service, health.became_ready(self.health))
                return

    # ---- output ----

    async def _pump(self, stream: Stream, source: ByteReceive) -> None:
        lines = Lines()
        stage = source.stage if isinstance(source, ReceivePipe) else None
        if stage is not None and stage.unfinished is not None and self._log is not None:
            self._log.take_back(stage.unfinished)
        try:
            while True:
                data = await source.receive(self._most())
                for tap in self.taps:
                    tap.put(data)
                for block in lines.feed(data):
                    self._put(stream, block, stage)
        except anyio.EndOfStream:
            pass
        except OSError as error:
            if error.errno != errno.EIO:  # how a terminal says that nobody has its other side open any more
                raise
        finally:
            for block in lines.flush():
                self._put(stream, block, stage)
            await source.aclose()

    def _most(self) -> int:
        """Bytes to be read at once, as whoever gets them likes it."""
        return min(
            CHUNK,
            LINEWISE if self._looking is not None else CHUNK,
            self._log.most if self._log is not None else CHUNK,
        )

    def _put(self, stream: Stream, block: Block, stage: Stage | None) -> None:
        if stage is not None:
            stage.begin(len(block), self._log.place() if self._log is not None else Place())
        if self._log is not None:
            self._tell_lost(self._log.write(stream, block))
        if stage is not None:
            stage.settle()
        if self._log is not None and self._log.waits and self._log.flush() and self._flushing is not None:
            self._flushing.unflushed.set()
        self._around.on_output(self.name, stream, block)
        if self._looking is not None:
            self._look(block)

    async def _keep_flushing(self, flushing: _Flushing) -> None:
        """For a log that takes its time. It gets some for the last lines, too."""
        with flushing.scope:
            while not flushing.ended:
                await flushing.unflushed.wait()
                while self._log is not None and self._log.flush():  # noqa: ASYNC110 - a socket that may be replaced meanwhile
                    await trio.sleep(FLUSH_INTERVAL)
                flushing.unflushed = trio.Event()

    def _tell_lost(self, lost: Lost | None) -> None:
        if lost is not None:
            self._around.events.emit([LogLost(self.name, lost.lines, lost.bytes, lost.reason)])


@dataclass(slots=True)
class _Flushing:
    """Of a log that takes its time, while its container runs."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    unflushed: trio.Event = field(default_factory=trio.Event)
    ended: bool = False


@dataclass(slots=True)
class _Ahead:
    """A launch of `service` that was begun during a back-off; `due`: and is one as any other since."""

    service: Service
    due: bool = False


class _Looking:
    """For a line; `budget`: CPU seconds left for it."""

    def __init__(self, text: str) -> None:
        self.budget = LOOKING_BUDGET
        self._pattern: re.Pattern[bytes] = pattern.compile_line(text)

    def found_in(self, line: bytes) -> bool:
        start = time.thread_time()
        found = self._pattern.search(line[: pattern.LINE_LIMIT]) is not None
        self.budget -= time.thread_time() - start
        return found


@dataclass(slots=True)
class _Totals:
    """What all containers of one service have used, and how the last one ended."""

    last: Exit | None = None
    wall: float = 0.0
    cpu: float = 0.0
    memory_peak: int | None = None

    def add(self, exit: Exit) -> None:
        self.last = exit
        self.wall += exit.wall
        self.cpu += exit.cpu_user + exit.cpu_system
        if exit.memory_peak is not None:
            self.memory_peak = max(exit.memory_peak, self.memory_peak or 0)


class Events:
    """Hands events on in the order in which they happened, also where the callback itself causes new ones."""

    def __init__(self, callback: OnEvent) -> None:
        self._callback = callback
        self._pending: deque[Event] = deque()
        self._busy = False

    def emit(self, events: Iterable[Event]) -> None:
        self._pending.extend(events)
        if self._busy:
            return
        self._busy = True
        try:
            while self._pending:
                self._callback(self._pending.popleft())
        finally:
            self._busy = False


async def _wait(container: Container) -> Exit:
    """Its end; our trouble with it is a value, for a nursery would wrap it."""
    try:
        return await container.wait()
    except ContainerError as error:  # e.g. its cgroup can't be removed
        return Exit(status="sandbox_error", reason=error.problem)


async def _cancel_at_end(container: Container, scope: trio.CancelScope) -> None:
    await _wait(container)
    scope.cancel()


def _sources(container: Container) -> Iterator[tuple[Stream, ByteReceive]]:
    """Where a container's output comes from. A terminal has one stream only, and its fd is the container's to close."""
    if container.terminal is not None:
        stage, container.terminal_stage = container.terminal_stage, None
        yield "stdout", ReceivePipe(os.dup(container.terminal), stage)
    if container.stdout is not None:
        yield "stdout", container.stdout
    if container.stderr is not None:
        yield "stderr", container.stderr
