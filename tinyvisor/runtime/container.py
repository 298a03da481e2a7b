"""One running container, as a scope: how it is signalled, stopped, waited for and what came of it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import termios
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from tinyvisor.errors import ContainerError, InternalError, LauncherDied, LaunchError
from tinyvisor.runtime import launcher as wire
from tinyvisor.runtime.cgroup import Usage
from tinyvisor.runtime.stdio import ReceivePipe, SendPipe, Streams
from tinyvisor.runtime.verdict import Outcome, judge
from tinyvisor.spec import Spec
from tinyvisor.state import Exit

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PROCESSES = 1000
"""How many processes `Container.processes` names at most."""


class Container:
    """A container between its start and its end. Made by `Runtime.start` only.

    Attributes:
        spec: what it was started with.
        id: the launcher's number for it, never given twice by one runtime.
        pid: its init, as the host numbers it; the number is the container's own until `wait` returns.
        stdin, stdout, stderr: our ends of the pipes that were asked for.
        terminal: the master side of its pty, where ``spec.tty``.
    """

    def __init__(
        self,
        spec: Spec,
        id: int,
        streams: Streams,
        kill: Callable[[Container], None],
        describe: Callable[[int, int], str],
        limits_enforced: tuple[str, ...],
        readback: tuple[tuple[int, str], ...],
        events: tuple[socket.socket, socket.socket] | None,
    ) -> None:
        self.spec = spec
        self.id = id
        self.pid = 0
        self.terminal: int | None = None
        self.readback = readback
        self._streams = streams
        self._kill = kill
        self._describe = describe
        self._limits_enforced = limits_enforced
        self._events = events[0] if events else None
        self._init_end = events[1] if events else None
        self._gone = anyio.Event()
        self._exit: Exit | None = None
        self._error: Exception | None = None
        self._started = False
        self._started_at = time.monotonic()
        self._stopped = False
        self._held_up_by: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def stdin(self) -> SendPipe | None:
        return self._streams.stdin

    @property
    def stdout(self) -> ReceivePipe | None:
        return self._streams.stdout

    @property
    def stderr(self) -> ReceivePipe | None:
        return self._streams.stderr

    async def wait(self) -> Exit:
        """Waits until the container is empty and gone, and says how it ended. Any number of tasks may wait.

        Raises:
            LauncherDied: the launcher was killed; the kernel killed the container with it.
        Cancellation: the container goes on.
        """
        await self._gone.wait()
        if self._error is not None:
            raise self._error
        if self._exit is None:
            raise InternalError(f"{self.name}: gone without an exit")
        return self._exit

    @property
    def exit(self) -> Exit | None:
        """How it ended; None while it runs."""
        return self._exit

    async def signal(self, number: int, *, all: bool = False) -> None:
        """Sends a signal to the workload (its group where ``spec.signal_group``), or to every process of the container.

        Nothing happens once the workload has ended.
        """
        command = wire.encode_signal(number, wire.SCOPE_ALL if all else wire.SCOPE_WORKLOAD)
        while self._events is not None and not self._gone.is_set():
            try:
                self._events.send(command, socket.MSG_NOSIGNAL)
                return
            except BlockingIOError:
                with contextlib.suppress(anyio.ClosedResourceError):
                    await anyio.wait_writable(self._events)
            except OSError:
                return  # init is gone, or will never read again: the end is on its way

    async def stop(self, *, signal: int | None = None, grace: float | None = None) -> Exit:
        """Sends `signal` (default: the spec's), waits `grace` seconds (default: the spec's), then kills what is left.

        ``Exit.held_up_by`` names the processes that had to be killed.

        Cancellation: kills at once, and waits for the end all the same.
        """
        self._stopped = self._stopped or not self._gone.is_set()
        try:
            with anyio.move_on_after(self.spec.stop_grace_period if grace is None else grace):
                await self.signal(self.spec.stop_signal if signal is None else signal)
                return await self.wait()
            self._held_up_by = self.processes()
        finally:
            if not self._gone.is_set():
                self.kill()
                await wire.shielded(self._gone.wait)
        return await self.wait()

    def kill(self) -> None:
        """SIGKILL for everything in the container, now. `wait` says when it is gone."""
        if not self._gone.is_set():
            self._stopped = True
            self._kill(self)

    def processes(self) -> tuple[str, ...]:
        """What runs in the container besides init, as ``"comm[pid]"`` with the host's numbers; `MAX_PROCESSES` at most."""
        found: list[str] = []
        for pid in _descendants(self.pid):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", errors="replace") as file:
                name = "".join(char if char.isprintable() else "?" for char in file.read().strip())  # it is theirs to choose
                found.append(f"{name}[{pid}]")
            if len(found) == MAX_PROCESSES:
                break
        return tuple(found)

    def resize(self, rows: int, columns: int) -> None:
        """Tells the container's terminal its size; nothing where it has none."""
        if self.terminal is not None:
            fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    # ---- for the runtime ----

    async def wait_started(self) -> None:
        """Until the workload has been exec'ed.

        Raises:
            LaunchError: a step failed.
        """
        while self._events is not None and not self._started and not self._gone.is_set():
            with contextlib.suppress(anyio.ClosedResourceError):  # it was gone before we woke up
                await anyio.wait_readable(self._events)
            self._read_events()
        if self._error is not None:
            raise self._error

    def _read_events(self) -> None:
        if self._events is None or self._gone.is_set():
            return
        with contextlib.suppress(BlockingIOError):
            received = wire.receive_event(self._events)
            while received is not None and not self._started:
                event, fds = received
                if event.type == wire.STARTED:
                    self.pid = event.a
                    self._started = True
                    self._started_at = time.monotonic()
                    return
                if event.type == wire.PTY and fds and self.terminal is None:
                    self.terminal = fds.pop()
                for fd in fds:
                    os.close(fd)
                received = wire.receive_event(self._events)

    def finish(self, gone: wire.Gone, usage: Usage) -> None:
        """The launcher has reaped init: nothing of the container is left."""
        if gone.error:
            self._error = LaunchError(self.name, self._describe(gone.section, gone.step), gone.error)
        elif gone.cleanup_error:
            self._error = ContainerError(self.name, f"its cgroup could not be removed: {os.strerror(gone.cleanup_error)}")
        elif not gone.exited and not self._started and not self._stopped and self._events is not None:
            self._error = ContainerError(self.name, "its init was killed while it was starting")
        outcome = Outcome(
            wait_status=gone.status if gone.exited else None,
            timed_out=gone.timed_out,
            wall=gone.wall if gone.exited else time.monotonic() - self._started_at,  # init had no time to say
            cpu_user=gone.user,
            cpu_system=gone.system,
            usage=usage,
            stopped=self._stopped,
            limits_enforced=self._limits_enforced,
            held_up_by=self._held_up_by,
        )
        self._exit = judge(self.spec, outcome)
        self._set_gone()

    async def wait_gone(self) -> None:
        """As `wait`, without an opinion on how it went."""
        await self._gone.wait()

    def refuse(self, error: Exception) -> None:
        """It never started, or its launcher is gone."""
        self._error = error
        self._set_gone()

    def lose(self) -> None:
        """The launcher died, and took the container with it."""
        self.refuse(LauncherDied(f"{self.name}: the launcher was killed, and the container with it"))

    def _set_gone(self) -> None:
        if self._events is not None:
            anyio.notify_closing(self._events)
            self._events.close()
        self._gone.set()

    def close_given(self) -> None:
        """The launcher has its own copies of the fds now."""
        if self._init_end is not None:
            self._init_end.close()
        self._streams.close_given()

    def close(self) -> None:
        """Gives back the fds: ours, those meant for init, the terminal."""
        self.close_given()
        self._streams.close()
        if self.terminal is not None:
            os.close(self.terminal)
            self.terminal = None


def _descendants(pid: int) -> Iterator[int]:
    """Every process below `pid`: orphans are children of init, so this finds all of a container."""
    queue = [pid]
    while queue:
        parent = queue.pop()
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{thread}/children") as file:
                    children = [int(child) for child in file.read().split()]
                yield from children
                queue += children
