"""Keeps a project's services in the state their policies ask for: one trio task per service, which owns its container
from launch to end.

Decisions are `policy.decide`'s; this file carries them out. An event is fed into a service's table the moment it
happens, synchronously; the service's task sees the new phase when it wakes. What one service's change means for others
(dependencies there, a network to join again, whose turn it is to stop) is settled in `Supervisor._react`, also without
an await, so that no order of tasks can leave it half done.

Bounds, each with what happens when it is reached:

- launches at once: the next one waits; one that takes longer than `LAUNCH_PATIENCE` no longer counts, so a stuck launch
  delays others by that at most, and only while all turns are stuck.
- events and output go to two callbacks, called synchronously and in order. There is no queue that could fill up; a
  callback must not block, and drops what it can't take. The log files are complete all the same.
- a pipe that stays open after its container's end (its write end was passed to another container): read for
  `DRAIN_PATIENCE` and closed.
- a `TinyvisorError` of one container (its launch failed, the host lacks a controller) is that service's failure. Any
  other exception, a callback's too, is a bug or the launcher's death: it cancels all services, whose containers are
  killed, and comes out of `run` (in an `ExceptionGroup`).
"""

from __future__ import annotations

import errno
import os
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final, Protocol

import anyio
import trio

from tinyvisor.errors import ContainerError, HostError, InternalError, LauncherDied, SpecError, TinyvisorError
from tinyvisor.policy import (
    NEW,
    Action,
    DelayElapsed,
    DependencyLost,
    Exited,
    KillRequested,
    Launched,
    LaunchFailed,
    NotReady,
    Ready,
    RestartRequested,
    ServiceEvent,
    StartRequested,
    State,
    StopRequested,
    decide,
)
from tinyvisor.runtime import PIPE
from tinyvisor.runtime.logfile import Lines, LogFile, Lost, Piece, Stream
from tinyvisor.runtime.stdio import ReceivePipe
from tinyvisor.spec import Project, Service, Spec
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

MAX_LAUNCHES: Final = 16
LAUNCH_PATIENCE: Final = 5.0
DRAIN_PATIENCE: Final = 2.0
NEWS_PATIENCE: Final = 0.1

CHUNK: Final = 16 << 10
"""Bytes read from a pipe at once."""

BATCH: Final = 1024
"""Lines handed on at once. With `CHUNK` it bounds how long a flood, of newlines at worst, keeps the others waiting: some
milliseconds."""


class ByteReceive(Protocol):
    """The read end of a pipe, as anyio's `ByteReceiveStream`."""

    async def receive(self, max_bytes: int = ..., /) -> bytes: ...

    async def aclose(self) -> None: ...


class Container(Protocol):
    """What the supervisor needs of a running container."""

    @property
    def pid(self) -> int: ...

    @property
    def stdout(self) -> ByteReceive | None: ...

    @property
    def stderr(self) -> ByteReceive | None: ...

    @property
    def terminal(self) -> int | None: ...

    async def wait(self) -> Exit: ...

    async def stop(self) -> Exit: ...

    def kill(self) -> None: ...


class Runtime(Protocol):
    """What the supervisor needs of a runtime."""

    def start(
        self, spec: Spec, /, *, stdin: int | None = None, stdout: int | None = None, stderr: int | None = None
    ) -> AbstractAsyncContextManager[Container]: ...


OnEvent = Callable[[Event], None]
OnOutput = Callable[[str, Stream, bytes], None]


def exit_code(summaries: Iterable[ServiceSummary], exit_code_from: str | None = None) -> int:
    """What ``up`` exits with: 1 where a service failed for good, else 0; or the named service's last status."""
    if exit_code_from is None:
        return int(any(summary.state == "failed" for summary in summaries))
    last = next(summary.exit for summary in summaries if summary.name == exit_code_from)
    return last.returncode if last is not None else 125


class Supervisor:
    """Runs `project` once.

    Args:
        runtime: where containers come from; stays open until `run` has returned.
        project: its ``depends_on`` and ``network_mode: service:NAME`` must name services of it, without a cycle.
        log_dir: gets one log file per service, NAME.log; None keeps no logs.
        on_event: told of every event; must not block.
        on_output: told of every line as ``(service, stream, line)``, without its newline, a long one in pieces of at
            most 16 KiB; must not block.
        abort_on_container_failure: stop everything when one service fails for good.
        exit_code_from: stop everything when this service has ended.
        max_launches: launches at once, >= 1.
        jitter: gives random numbers in 0..1.

    Raises:
        SpecError: a name that is no service, or a cycle.
    """

    def __init__(
        self,
        runtime: Runtime,
        project: Project,
        *,
        log_dir: Path | None,
        on_event: OnEvent = lambda event: None,
        on_output: OnOutput = lambda name, stream, line: None,
        abort_on_container_failure: bool = False,
        exit_code_from: str | None = None,
        max_launches: int = MAX_LAUNCHES,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        if exit_code_from is not None and exit_code_from not in project.services:
            raise SpecError("exit_code_from", f'there is no service "{exit_code_from}"')
        _check_graph(project)
        self._log_dir = log_dir
        self._abort_on_failure = abort_on_container_failure
        self._exit_code_from = exit_code_from
        self._turns = _Turns(max_launches)
        events = _Events(on_event)
        self._stopping = False
        self._unsettled: deque[_Runner] = deque()
        self._settling = False
        self._runners = {
            name: _Runner(service, runtime, self._turns, events, on_output, jitter, self._changed)
            for name, service in project.services.items()
        }
        self._link(project.services)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> tuple[ServiceSummary, ...]:
        """Starts everything, and returns when nothing runs and nothing is going to.

        `task_status` is told once every service has its task; launches are then still under way.

        Raises:
            HostError: the log directory can't be used. Nothing was started.

        Cancellation: everything is killed, without grace.
        """
        runners = self._runners.values()
        try:
            for runner in runners:
                runner.open_log(self._log_dir)
            async with self._turns.open(), trio.open_nursery() as nursery:
                for runner in runners:
                    runner.feed(StartRequested())
                for runner in runners:
                    nursery.start_soon(runner.run)
                task_status.started()
        finally:
            for runner in runners:
                runner.close_log()
        return self.summaries()

    def request_stop(self) -> None:
        """Stops everything: dependents before what they depend on, otherwise all at once. Asking again changes nothing."""
        if not self._stopping:
            self._stopping = True
            for runner in self._runners.values():
                self._changed(runner)

    def request_kill(self) -> None:
        """Kills everything now, in no order."""
        self._stopping = True
        for runner in self._runners.values():
            runner.feed(KillRequested())

    def summaries(self) -> tuple[ServiceSummary, ...]:
        """How every service stands, in the project's order."""
        return tuple(runner.summary() for runner in self._runners.values())

    def _link(self, services: Mapping[str, Service]) -> None:
        for name, runner in self._runners.items():
            provider = _provider(services[name])
            runner.provider = self._runners[provider] if provider else None
            runner.dependencies = tuple(self._runners[other] for other in sorted(_needs(services[name])))
            for dependency in runner.dependencies:
                dependency.dependents.append(runner)

    def _changed(self, runner: _Runner) -> None:
        """A worklist instead of recursion: a chain of dependencies may be longer than Python's stack."""
        self._unsettled.append(runner)
        if self._settling:
            return
        self._settling = True
        try:
            while self._unsettled:
                self._react(self._unsettled.popleft())
        finally:
            self._settling = False

    def _react(self, runner: _Runner) -> None:
        """What the state that `runner` is in means for the others."""
        for dependent in runner.dependents:
            dependent.wake()
        for candidate in (runner, *runner.dependents):
            if not self._stopping and candidate.is_cut_off():
                candidate.feed(RestartRequested())
        if self._ends_all(runner):
            self.request_stop()
        if self._stopping:
            for candidate in (runner, *runner.dependencies):
                if candidate.is_free_to_stop():
                    candidate.feed(StopRequested())

    def _ends_all(self, runner: _Runner) -> bool:
        failed = self._abort_on_failure and runner.state.phase == "failed"
        ended = runner.name == self._exit_code_from and runner.has_begun and runner.state.down
        return failed or ended


class _Runner:
    """One service: its state, its task, its container, what it has used."""

    def __init__(
        self,
        service: Service,
        runtime: Runtime,
        turns: _Turns,
        events: _Events,
        on_output: OnOutput,
        jitter: Callable[[], float],
        on_change: Callable[[_Runner], None],
    ) -> None:
        self.name = service.name
        self.state = NEW
        self.has_begun = False
        self.provider: _Runner | None = None
        self.dependencies: tuple[_Runner, ...] = ()
        self.dependents: list[_Runner] = []
        self.generation = 0  # containers that have run
        self._joined = 0  # the provider's generation when our launch began
        self._service = service
        self._runtime = runtime
        self._turns = turns
        self._events = events
        self._on_output = on_output
        self._jitter = jitter
        self._on_change = on_change
        self._log: LogFile | None = None
        self._woken = trio.Event()
        self._launching = trio.CancelScope()
        self._watching = trio.CancelScope()
        self._container: Container | None = None
        self._totals = _Totals()

    async def run(self) -> None:
        while not self.state.down:
            match self.state.phase:
                case "waiting":
                    await self._wait_until_ready()
                case "backoff":
                    await self._wait_until_due()
                case "starting" | "stopping":  # stopped by a callback in the very step that started it
                    self.feed(await self._run_container())
                case phase:
                    raise InternalError(f"{self.name} is {phase} without a container")

    def feed(self, event: ServiceEvent) -> None:
        """Decides, and does at once what needs no waiting; the rest is the task's, which is woken."""
        before = self.state
        self.has_begun = self.has_begun or isinstance(event, StartRequested)
        self.state, action = decide(self._service.restart, before, event, now=trio.current_time(), random=self._jitter())
        self._act(action)
        self.wake()
        self._events.emit(self._news(before, event, action))
        if self.state != before:
            self._on_change(self)

    def wake(self) -> None:
        self._woken.set()

    @property
    def is_up(self) -> bool:
        """Whether its container can be joined. It is gone a little earlier than its output has been read."""
        return self.state.phase == "running" and self._container is not None

    def is_cut_off(self) -> bool:
        """Whether it runs in the network namespace of a container that has been replaced."""
        provider = self.provider
        return provider is not None and self.state.phase == "running" and provider.is_up and provider.generation != self._joined

    def is_free_to_stop(self) -> bool:
        """Whether nobody that needs it is left. What has no container yet need not wait for that."""
        if self.state.phase == "running":
            return all(dependent.state.down for dependent in self.dependents)
        return not self.state.down and (self.state.phase != "stopping" or self.state.again)

    def open_log(self, directory: Path | None) -> None:
        if directory is None:
            return
        path = directory / f"{self.name}.log"
        try:
            self._log = LogFile(path, max_size=self._service.log_max_size, max_files=self._service.log_max_files)
        except OSError as error:
            problem = f"a log file at {path} ({error.strerror or error})"
            raise HostError(problem, "make the directory writable or choose another") from error

    def close_log(self) -> None:
        if self._log is not None:
            self._tell_lost(self._log.close())
            self._log = None

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
            reason=self.state.reason if self.state.phase == "failed" else "",
        )

    def _act(self, action: Action) -> None:
        match action:
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
            news.append(ServiceStarted(self.name, self._container.pid))
        if isinstance(event, Exited):
            news.append(ServiceExited(self.name, event.exit))
            if event.exit.held_up_by:
                news.append(StopHeldUp(self.name, event.exit.held_up_by))
        if action in ("cancel", "stop", "kill") and before.phase != "stopping":
            news.append(ServiceStopping(self.name, self.state.again))
        if action == "delay":
            delay = self.state.due - trio.current_time()
            news.append(ServiceBackoff(self.name, delay, self.state.attempt, self.state.reason))
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

    async def _wait_woken(self) -> None:
        self._woken = trio.Event()
        await self._woken.wait()

    async def _wait_until_ready(self) -> None:
        while self.state.phase == "waiting":
            missing = [reason for reason in map(self._missing, self.dependencies) if reason is not None]
            lost = next((reason for reason in missing if reason), None)
            if lost is not None:
                self.feed(DependencyLost(lost))
            elif not missing:
                self._launching = trio.CancelScope()
                self.feed(Ready())
            else:
                await self._wait_woken()

    def _missing(self, dependency: _Runner) -> str | None:
        """None where `dependency` is there; ``""`` while it may come; why it never will."""
        if dependency is self.provider:
            if dependency.is_up:
                return None
            return f"its network is that of {dependency.name}, which has {_fate(dependency)}" if dependency.state.down else ""
        if dependency.generation:
            return None
        return f"it depends on {dependency.name}, which has {_fate(dependency)}" if dependency.state.down else ""

    async def _wait_until_due(self) -> None:
        with trio.move_on_at(self.state.due):
            while self.state.phase == "backoff":
                await self._wait_woken()
        if self.state.phase == "backoff":
            self.feed(DelayElapsed())

    async def _run_container(self) -> ServiceEvent:
        """From launch to end. The scope is cancelled by a stop during the launch, never later."""
        with self._launching:
            async with self._turns.turn() as turn:
                return await self._launch(turn)
        return LaunchFailed("stopped before it had started")

    async def _launch(self, turn: _Turn) -> ServiceEvent:
        self._joined = self.provider.generation if self.provider is not None else 0
        if self._has_lost_provider():  # while we waited for our turn
            return NotReady()
        spec, launched = self._service.spec, False
        try:
            stdin = PIPE if spec.stdin_open else None
            async with self._runtime.start(spec, stdin=stdin, stdout=PIPE, stderr=PIPE) as container:
                turn.end()
                if self.state.phase == "stopping":  # the cancellation came too late for the launch
                    return LaunchFailed("stopped before it had started")
                launched = True
                exit = await self._attend(container)
        except (InternalError, LauncherDied):
            raise
        except TinyvisorError as error:
            if launched:
                raise
            return await self._launch_failed(error)
        self._totals.add(exit)
        return Exited(exit)

    async def _launch_failed(self, error: TinyvisorError) -> ServiceEvent:
        """A network that went away under the launch is not this service's failure, and the news of it may come later."""
        if self.provider is not None:
            await trio.sleep(NEWS_PATIENCE)
            if self._has_lost_provider():
                return NotReady()
        return LaunchFailed(_problem(error), final=isinstance(error, (HostError, SpecError)))

    def _has_lost_provider(self) -> bool:
        return self.provider is not None and not (self.provider.is_up and self.provider.generation == self._joined)

    async def _attend(self, container: Container) -> Exit:
        async with trio.open_nursery() as pumps:
            for stream, source in _sources(container):
                pumps.start_soon(self._pump, stream, source)
            self._container = container
            self.generation += 1
            try:
                exit = await self._wait_end(container)
            finally:
                self._container = None
            pumps.cancel_scope.deadline = trio.current_time() + DRAIN_PATIENCE
        return exit

    async def _wait_end(self, container: Container) -> Exit:
        """A stop, when it comes, cancels the wait and not the container."""
        self._watching = trio.CancelScope()
        self.feed(Launched())
        try:
            with self._watching:
                return await container.wait()
            return await container.stop()
        except ContainerError as error:  # e.g. its cgroup can't be removed
            return Exit(status="sandbox_error", reason=error.problem)

    async def _pump(self, stream: Stream, source: ByteReceive) -> None:
        lines = Lines()
        try:
            while True:
                pieces = lines.feed(await source.receive(CHUNK))
                self._put(stream, pieces[:BATCH])
                for start in range(BATCH, len(pieces), BATCH):
                    await trio.lowlevel.cancel_shielded_checkpoint()  # what has been read is not thrown away
                    self._put(stream, pieces[start : start + BATCH])
        except anyio.EndOfStream:
            pass
        except OSError as error:
            if error.errno != errno.EIO:  # how a terminal says that nobody has its other side open any more
                raise
        finally:
            self._put(stream, lines.flush())
            await source.aclose()

    def _put(self, stream: Stream, pieces: list[Piece]) -> None:
        if self._log is not None:
            self._tell_lost(self._log.write(stream, pieces))
        for piece in pieces:
            self._on_output(self.name, stream, piece.data)

    def _tell_lost(self, lost: Lost | None) -> None:
        if lost is not None:
            self._events.emit([LogLost(self.name, lost.lines, lost.bytes, lost.reason)])


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


class _Turns:
    """At most `limit` launches at once, but each counts for `LAUNCH_PATIENCE` at most."""

    def __init__(self, limit: int) -> None:
        self._limiter = trio.CapacityLimiter(limit)
        self._nursery: trio.Nursery | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Turns are given only inside."""
        async with trio.open_nursery() as self._nursery:
            yield
            self._nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[_Turn]:
        """Waits for a turn, which is over when its time is up, it is ended, or the block is left."""
        assert self._nursery is not None
        turn = _Turn(self._limiter)
        await self._limiter.acquire_on_behalf_of(turn)
        self._nursery.start_soon(turn.expire)
        try:
            yield turn
        finally:
            turn.end()


class _Turn:
    def __init__(self, limiter: trio.CapacityLimiter) -> None:
        self._limiter = limiter
        self._over = trio.Event()

    def end(self) -> None:
        if not self._over.is_set():
            self._over.set()
            self._limiter.release_on_behalf_of(self)

    async def expire(self) -> None:
        with trio.move_on_after(LAUNCH_PATIENCE):
            await self._over.wait()
        self.end()


class _Events:
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


def _sources(container: Container) -> Iterator[tuple[Stream, ByteReceive]]:
    """Where a container's output comes from. A terminal has one stream only, and its fd is the container's to close."""
    if container.terminal is not None:
        yield "stdout", ReceivePipe(os.dup(container.terminal))
    if container.stdout is not None:
        yield "stdout", container.stdout
    if container.stderr is not None:
        yield "stderr", container.stderr


def _problem(error: TinyvisorError) -> str:
    return error.problem if isinstance(error, ContainerError) else str(error)


def _check_graph(project: Project) -> None:
    graph = {name: _needs(service) for name, service in project.services.items()}
    for name, needs in graph.items():
        for other in sorted(needs - graph.keys()):
            raise SpecError("depends_on", f'{name} needs "{other}", and there is no such service')
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise SpecError("depends_on", f"a cycle: {' → '.join(error.args[1])}") from None


def _needs(service: Service) -> frozenset[str]:
    provider = _provider(service)
    return service.depends_on | ({provider} if provider else frozenset())


def _provider(service: Service) -> str | None:
    """The service whose network it joins."""
    kind, _, name = service.spec.network_mode.partition(":")
    return name if kind == "service" else None


def _fate(runner: _Runner) -> str:
    match runner.state:
        case State(phase="failed", reason=reason):
            return f"failed: {reason}"
        case State(phase="exited"):
            return "ended"
    return "been stopped"
