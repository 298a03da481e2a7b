"""A runtime without a kernel: containers that follow a script, in the clock's time. Fits `supervisor.Runtime`."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
import trio

from tinyvisor.errors import ContainerError, TinyvisorError
from tinyvisor.runtime.stage import Stage
from tinyvisor.spec import Spec
from tinyvisor.state import Exit, Stats

OK = Exit(status="ok", exit_code=0)
KILLED = Exit(status="stopped", signal=9)
STOPPED = Exit(status="stopped", signal=15)
PIPE_CHUNKS = 4
"""Chunks that a pipe holds before its writer waits."""


def failure(code: int = 1) -> Exit:
    return Exit(status="nonzero_exit", exit_code=code)


@dataclass(frozen=True)
class FakeProcess:
    terminal: int
    exit: Exit

    async def wait(self) -> Exit:
        await trio.lowlevel.checkpoint()
        return self.exit


@dataclass(frozen=True, kw_only=True)
class Script:
    """What one container does.

    Attributes:
        seconds: it runs for so long, then ends with `exit`.
        launch_seconds: until it runs, or fails with `error`.
        error: raised instead of running.
        launch_ignores_cancel: the launch can't be cancelled, as one that is on its last step.
        stop_seconds: from the stop signal to its end; infinity ignores the signal until the grace is over.
        output: (seconds after the start, stream, bytes), in order.
        flood: written to stdout again and again until the end.
        leaks_pipe: its stdout stays open after its end.
        wait_error: raised by `wait` at its end.
        exec: what a command that is run inside does, from the seconds since the start and the command: (seconds, how it
            ends, output). Raising is a start that fails.
        says: (seconds after the start, message to its NOTIFY_SOCKET), in order.
        newline: (seconds after the start, bytes on its notification fd), in order; ``b""`` closes it.
        heard_late: seconds that its clean-up is said to have taken.
        signal_exit: how a signal other than the stop signal ends it; None: not at all.
    """

    seconds: float = math.inf
    exit: Exit = OK
    launch_seconds: float = 0.0
    error: Exception | None = None
    launch_ignores_cancel: bool = False
    stop_seconds: float = 0.0
    output: tuple[tuple[float, str, bytes], ...] = ()
    flood: bytes = b""
    leaks_pipe: bool = False
    wait_error: Exception | None = None
    exec: Callable[[float, tuple[str, ...]], tuple[float, Exit, bytes]] = lambda seconds, command: (0.0, OK, b"")
    signal_exit: Exit | None = None
    heard_late: float = 0.0
    says: tuple[tuple[float, bytes], ...] = ()
    newline: tuple[tuple[float, bytes], ...] = ()


class Messages:
    """A notify socket."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[bytes](PIPE_CHUNKS)

    async def send(self, data: bytes) -> None:
        await self._send.send(data)

    async def receive(self) -> bytes:
        return await self._receive.receive()


class Pipe:
    """A bounded pipe; its reader is what `supervisor.ByteReceive` asks for."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[bytes](PIPE_CHUNKS)
        self._rest = b""

    async def write(self, data: bytes) -> None:
        await self._send.send(data)

    def close_write(self) -> None:
        self._send.close()

    async def receive(self, max_bytes: int = 65536, /) -> bytes:
        if not self._rest:
            try:
                self._rest = await self._receive.receive()
            except trio.EndOfChannel:
                raise anyio.EndOfStream from None
        else:
            await trio.lowlevel.checkpoint()
        data, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
        return data

    async def aclose(self) -> None:
        self._receive.close()
        await trio.lowlevel.checkpoint()


class FakeContainer:
    def __init__(self, runtime: FakeRuntime, spec: Spec, script: Script, pid: int) -> None:
        self.name = spec.name
        self.pid = pid
        self.terminal: int | None = None
        self.notify = Messages() if spec.notify_socket else None
        self.notification = Pipe() if spec.notification_fd is not None else None
        self.terminal_stage: Stage | None = None
        self.stdin: Any = None
        self.pipes = {"stdout": Pipe(), "stderr": Pipe()}
        self._runtime = runtime
        self._spec = spec
        self._script = script
        self._gone = trio.Event()
        self._exit: Exit | None = None
        self._stop_from = math.inf
        self._changed = trio.Event()
        self._started_at = trio.current_time()

    @property
    def stdout(self) -> Pipe | None:
        return self.pipes["stdout"]

    @property
    def stderr(self) -> Pipe | None:
        return self.pipes["stderr"]

    @property
    def since_end(self) -> float:
        return self._script.heard_late

    async def wait(self) -> Exit:
        await self._gone.wait()
        if self._script.wait_error is not None:
            raise self._script.wait_error
        assert self._exit is not None
        return self._exit

    async def stop(self, *, grace: float | None = None) -> Exit:
        self._runtime.note("stop", self.name)
        grace = self._spec.stop_grace_period if grace is None else grace
        with trio.move_on_after(min(grace, self._script.stop_seconds)):
            await self._gone.wait()
        if self._script.stop_seconds > grace:
            self._end(Exit(status="stopped", signal=9, held_up_by=(f"{self.name}[{self.pid}]",)))
        else:
            self._end(STOPPED)
        return await self.wait()

    async def signal(self, number: int) -> None:
        await trio.lowlevel.checkpoint()
        self._runtime.note(f"signal {number}", self.name)
        if self._script.signal_exit is not None:
            self._end(self._script.signal_exit)

    async def exec(
        self,
        command: tuple[str, ...],
        *,
        user: str | None = None,
        working_dir: str | None = None,
        environment: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> Exit:
        await trio.lowlevel.checkpoint()
        self._runtime.note("exec", self.name)
        self._runtime.executed.append((self.name, command, user, working_dir, environment))
        if self._gone.is_set():
            raise ContainerError(self.name, "is not running")
        seconds, exit, output = self._script.exec(trio.current_time() - self._started_at, command)
        assert stdout is not None
        os.write(stdout, output)
        with trio.move_on_after(min(seconds, math.inf if timeout is None else timeout)):
            await self._gone.wait()
            return KILLED
        return (
            exit if timeout is None or seconds < timeout else Exit(status="time_limit", signal=9, reason="killed after timeout")
        )

    @asynccontextmanager
    async def open_exec(
        self,
        command: tuple[str, ...],
        *,
        environment: Mapping[str, str] | None = None,
        terminal: tuple[int, int] = (24, 80),
        **changes: Any,
    ) -> AsyncIterator[FakeProcess]:
        """On a terminal, which shows the script's output."""
        self._runtime.note("exec", self.name)
        self._runtime.executed.append((self.name, command, changes.get("user"), changes.get("working_dir"), environment))
        _, exit, output = self._script.exec(trio.current_time() - self._started_at, command)
        master, slave = os.openpty()
        try:
            os.write(slave, output)
            yield FakeProcess(master, exit)
        finally:
            os.close(master)
            os.close(slave)

    async def open_socket(self, domain: int = socket.AF_INET) -> socket.socket:
        await trio.lowlevel.checkpoint()
        self._runtime.note("socket", self.name)
        raise ContainerError(self.name, "has no network")

    async def stats(self) -> Stats:
        await trio.lowlevel.checkpoint()
        return Stats(cpu_user=1.5, cpu_system=0.5, memory=4096, memory_peak=8192, pids=2, pids_peak=3)

    def processes(self) -> tuple[str, ...]:
        return (f"{self.name}[{self.pid}]",)

    def kill(self) -> None:
        if not self._gone.is_set():
            self._runtime.note("kill", self.name)
        self._end(KILLED)

    async def live(self) -> None:
        with trio.move_on_after(self._script.seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_script)
                nursery.start_soon(self._say)
                if self._script.flood:
                    nursery.start_soon(self._write_flood)
                await self._gone.wait()
                nursery.cancel_scope.cancel()
        self._end(self._script.exit)

    def _end(self, exit: Exit) -> None:
        if self._exit is not None:
            return
        self._exit = exit
        self._gone.set()
        self._runtime.left(self)
        for name, pipe in self.pipes.items():
            if not (self._script.leaks_pipe and name == "stdout"):
                pipe.close_write()

    async def _write_script(self) -> None:
        start = trio.current_time()
        with suppress(trio.ClosedResourceError):
            for when, stream, data in self._script.output:
                await trio.sleep_until(start + when)
                await self.pipes[stream].write(data)

    async def _say(self) -> None:
        start = trio.current_time()
        for when, message in self._script.says:
            await trio.sleep_until(start + when)
            if self.notify is not None:
                await self.notify.send(message)
        for when, data in self._script.newline:
            await trio.sleep_until(start + when)
            if self.notification is not None:
                with suppress(trio.BrokenResourceError):
                    await self.notification.write(data) if data else self.notification.close_write()

    async def _write_flood(self) -> None:
        with suppress(trio.ClosedResourceError):  # the container has just ended
            while True:
                await self.pipes["stdout"].write(self._script.flood)


@dataclass
class FakeRuntime:
    """Attributes:
    scripts: by name, one after another; the last one is repeated. No script: runs until stopped.
    history: (time, what, name), with what in ahead, discard, launch, up, down, stop, kill, exec, signal N.
    ahead: names of containers that are made, or being made, but for the workload.
    ahead_seconds, ahead_error, discard_seconds: how long it takes to make one, or why there is none; how long to be rid of it.
    executed: (name, command, user, working_dir, environment) of all commands that were run inside.
    on_hold: called with the name when a launch is about to be sent: in live mode, its record is written then.
    """

    scripts: Mapping[str, Iterable[Script]] = field(default_factory=dict)
    history: list[tuple[float, str, str]] = field(default_factory=list)
    executed: list[tuple[str, tuple[str, ...], str | None, str | None, Mapping[str, str] | None]] = field(default_factory=list)
    container: type[FakeContainer] = FakeContainer
    running: dict[str, FakeContainer] = field(default_factory=dict)
    launching: int = 0
    most_launching: int = 0
    most_running: int = 0
    ahead: set[str] = field(default_factory=set)
    ahead_seconds: float = 0.0
    ahead_error: Exception | None = None
    discard_seconds: float = 0.0
    on_hold: Callable[[str], object] = lambda name: None

    def __post_init__(self) -> None:
        self._scripts = {name: list(scripts) for name, scripts in self.scripts.items()}
        self._pids = 100

    def note(self, what: str, name: str) -> None:
        self.history.append((trio.current_time(), what, name))

    def left(self, container: FakeContainer) -> None:
        self.note("down", container.name)
        del self.running[container.name]

    def times(self, what: str, name: str) -> list[float]:
        """When it happened, counted from the first thing that did."""
        return [round(time - self.history[0][0], 6) for time, noted, of in self.history if (noted, of) == (what, name)]

    def order(self, what: str) -> list[str]:
        return [name for _, noted, name in self.history if noted == what]

    @asynccontextmanager
    async def start(
        self,
        spec: Spec,
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        before_exec: Callable[[], Awaitable[object]] | None = None,
    ) -> AsyncIterator[FakeContainer]:
        if before_exec is not None:
            await self._make_ahead(spec, before_exec)
        scripts = self._scripts.get(spec.name) or [Script()]
        script = scripts.pop(0) if len(scripts) > 1 else scripts[0]
        await self._launch(spec, script)
        self._pids += 1
        container = self.container(self, spec, script, self._pids)
        self.running[spec.name] = container
        self.most_running = max(self.most_running, len(self.running))
        self.note("up", spec.name)
        try:
            # The nursery is open across the yield, as in the real runtime: a supervisor that left its scopes in another
            # order than it entered them would crash here.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(container.live)
                yield container
                container.kill()
        finally:
            container.kill()

    async def _make_ahead(self, spec: Spec, before_exec: Callable[[], Awaitable[object]]) -> None:
        """All but the launch as such, which then takes no less time than any other."""
        assert spec.name not in self.running, f"{spec.name} is running already"
        assert spec.name not in self.ahead, f"{spec.name} is made ahead already"
        self.note("ahead", spec.name)
        self.ahead.add(spec.name)
        try:
            await trio.sleep(self.ahead_seconds)
            if self.ahead_error is not None:
                raise self.ahead_error
            await before_exec()
        except BaseException:
            self.note("discard", spec.name)
            with trio.CancelScope(shield=True):
                await trio.sleep(self.discard_seconds)
            raise
        finally:
            self.ahead.remove(spec.name)

    async def _launch(self, spec: Spec, script: Script) -> None:
        assert spec.name not in self.running, f"{spec.name} is running already"
        assert spec.name not in self.ahead, f"{spec.name} is made ahead already"
        self.note("launch", spec.name)
        self.on_hold(spec.name)
        self.launching += 1
        self.most_launching = max(self.most_launching, self.launching)
        try:
            with trio.CancelScope(shield=script.launch_ignores_cancel):
                await trio.sleep(script.launch_seconds)
        finally:
            self.launching -= 1
        if script.error is not None:
            raise script.error
        kind, _, provider = spec.network_mode.partition(":")
        if kind == "service" and provider not in self.running:
            raise TinyvisorError(f'network_mode: service "{provider}" is not running')
