"""One running container, as a scope: how it is signalled, stopped, waited for and what came of it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import socket
import struct
import termios
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from signal import SIGSYS
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.lowlevel

from tinyvisor.errors import ContainerError, InternalError, LauncherDied, LaunchError, SpecError
from tinyvisor.runtime import launcher as wire
from tinyvisor.runtime.capture import DEFAULT_LIMIT
from tinyvisor.runtime.leases import Ids
from tinyvisor.runtime.provisions import NotifySocket, Provisions
from tinyvisor.runtime.seccomp import MACHINES, describe_refused
from tinyvisor.runtime.stage import Stage
from tinyvisor.runtime.stdio import ReceivePipe, SendPipe, Stdio, Streams
from tinyvisor.runtime.tracer import STRING_LIMIT, Events, attached
from tinyvisor.runtime.usage import Usage
from tinyvisor.runtime.verdict import Outcome, judge, limit_behind
from tinyvisor.runtime.waited import Waited
from tinyvisor.spec import Spec, parse_signal
from tinyvisor.state import Exit, Stats, Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PROCESSES = 1000
"""How many processes `Container.processes` names at most."""


_NO_PAGE = 125 << 8
"""Wait status of an init that had no place to say more: init_main in launcher/init.c."""

_NOT_AN_EXECS = {"secrets": (), "notify_socket": False, "watchdog": None, "notification_fd": None}
"""What the container's own process has to itself, or its mounts are there for already."""

_OF_AN_EXEC = frozenset(
    ("user", "group_add", "working_dir", "tty", "timeout", "umask", "ulimits", "stop_signal", "stop_grace_period")
)


class Host(Protocol):
    """What a container asks of its runtime."""

    def kill(self, container: Container, /) -> None: ...

    def exec(
        self, container: Container, spec: Spec, stdin: Stdio, stdout: Stdio, stderr: Stdio, terminal: tuple[int, int], /
    ) -> AbstractAsyncContextManager[Container]: ...

    def stats(self, container: Container, /) -> Stats: ...

    def heard_end(self, container: Container, event: wire.Event, /) -> None: ...

    async def open_socket(self, container: Container, domain: int, /) -> socket.socket: ...


class Container:
    """A container between its start and its end. Made by `Runtime.start` only.

    Attributes:
        spec: what it was started with.
        name: ``spec.name``, or one made up where that was not given.
        id: the launcher's number for it, never given twice by one runtime.
        pid: its init, as the host numbers it; the number is the container's own until `wait` returns.
        stdin, stdout, stderr: our ends of the pipes that were asked for.
        terminal: the master side of its pty, where ``spec.tty``.
        ids: what its ids are on the host; None: the same.
        workspace: where a directory of the runtime's is mounted in it; None: there is none.
        execs: what was exec'ed in it and has not ended.
        notify: what receives the messages to its NOTIFY_SOCKET, where ``spec.notify_socket``.
        notification: the read end of its ``spec.notification_fd``.
        socket: an fd that a process made for `open_socket` alone has answered with.
        terminal_stage: in live mode, for who reads the terminal; who takes it closes it.
    """

    __slots__ = (
        "_before_event", "_describe", "_ended_at", "_error", "_events", "_exit", "_gone", "_held_up_by", "_host", "_init_end",
        "_limits_enforced", "_outcome", "_output_exceeded", "_provisions", "_sent_sigsys", "_started", "_started_at",
        "_stopped", "_streams", "_tells", "_unparked", "_waited", "_when_gone", "execs", "id", "ids", "name", "notification",
        "notify", "pid", "readback", "socket", "spec", "terminal", "terminal_stage", "workspace",
    )  # fmt: skip

    def __init__(
        self,
        spec: Spec,
        name: str,
        id: int,
        streams: Streams,
        host: Host,
        describe: Callable[[int, int], str],
        limits_enforced: tuple[str, ...],
        readback: tuple[tuple[int, str], ...],
        events: tuple[socket.socket, socket.socket] | None,
    ) -> None:
        self.spec: Spec = spec
        self.name: str = name
        self.id: int = id
        self.pid: int = 0
        self.terminal: int | None = None
        self.ids: Ids | None = None
        self.workspace: str | None = None
        self.readback: tuple[tuple[int, str], ...] = readback
        self._streams = streams
        self._host = host
        self._describe = describe
        self._limits_enforced = limits_enforced
        self._events = events[0] if events else None
        self._init_end = events[1] if events else None
        self._gone = anyio.Event()
        self._exit: Exit | None = None
        self._outcome: Outcome | None = None
        self._error: Exception | None = None
        self._started = self._unparked = self._tells = False
        self._started_at = time.monotonic()
        self._ended_at = 0.0
        self._stopped = False
        self._sent_sigsys = False
        self._held_up_by: tuple[str, ...] = ()
        self._output_exceeded: int | None = None
        self._waited = Waited(self._events, self._events.close) if self._events is not None else None
        self.execs: tuple[Container, ...] = ()
        self.notify: NotifySocket | None = None
        self.notification: ReceivePipe | None = None
        self.socket: int | None = None
        self._provisions: Provisions | None = None
        self.terminal_stage: Stage | None = None
        self._before_event: Callable[[wire.Event, list[int]], None] | None = None
        self._when_gone: list[Callable[[], None]] = []

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
        return self.ended()

    @property
    def since_end(self) -> float:
        """Seconds since the workload ended, as init saw it: the container is gone a little later. 0 before, and where init had no
        time to say."""
        return max(0.0, time.monotonic() - self._ended_at) if self._ended_at else 0.0

    @property
    def exit(self) -> Exit | None:
        """How it ended; None while it runs."""
        return self._exit

    async def signal(self, number: int | str, *, all: bool = False) -> None:
        """Sends a signal to the workload (its group where ``spec.signal_group``), or to every process of the container.

        Nothing happens once the workload has ended.

        Args:
            number: or the name: 1, ``"HUP"``, ``"SIGHUP"``, ``"RTMIN+3"``.

        Raises:
            SpecError: there is no such signal.
        """
        self._sent_sigsys |= _signal(number) == SIGSYS
        command = wire.encode_signal(_signal(number), wire.SCOPE_ALL if all else wire.SCOPE_WORKLOAD)
        while self._events is not None and self._waited is not None and not self._gone.is_set():
            try:
                self._events.send(command, socket.MSG_NOSIGNAL)
                return
            except BlockingIOError:
                with contextlib.suppress(anyio.ClosedResourceError):
                    await self._waited.writable()
            except OSError:
                return  # init is gone, or will never read again: the end is on its way

    async def stop(self, *, signal: int | str | None = None, grace: float | None = None) -> Exit:
        """Sends `signal` (default: the spec's), waits `grace` seconds (default: the spec's), then kills what is left.

        ``Exit.held_up_by`` names the processes that had to be killed.

        Cancellation: kills at once, and waits for the end all the same.
        """
        number = self.spec.stop_signal if signal is None else _signal(signal)
        self._stopped = self._stopped or not self._gone.is_set()
        try:
            with anyio.move_on_after(self.spec.stop_grace_period if grace is None else grace):
                await self.signal(number)
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
            self._host.kill(self)

    async def exec(
        self,
        command: Sequence[str],
        *,
        user: str | None = None,
        environment: Mapping[str, str] | None = None,
        working_dir: str | None = None,
        timeout: float | None = None,
        stdin: Stdio = None,
        stdout: Stdio = None,
        stderr: Stdio = None,
    ) -> Exit:
        """Runs one more program in the container, under the same limits and with the same rights, and waits for its end.

        Args:
            user, working_dir: None is the container's own.
            environment: added to the container's own.
            timeout: seconds after which it is killed, and the status is ``time_limit``.
            stdin, stdout, stderr: None is /dev/null; an fd or file that it gets directly.

        Raises:
            LaunchError: it could not be started, e.g. because the container has ended.
        Cancellation: kills the program (its process group), and waits for its end.
        """
        changes: dict[str, Any] = {"user": user, "working_dir": working_dir, "timeout": timeout}
        async with self.open_exec(
            command, environment=environment, stdin=stdin, stdout=stdout, stderr=stderr,
            **{name: value for name, value in changes.items() if value is not None},
        ) as process:  # fmt: skip
            return await process.wait()

    def open_exec(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        stdin: Stdio = None,
        stdout: Stdio = None,
        stderr: Stdio = None,
        terminal: tuple[int, int] = (24, 80),
        **changes: Any,
    ) -> AbstractAsyncContextManager[Container]:
        """`exec` as a scope: entered once the program runs, left when it has ended; leaving early kills it.

        Args:
            stdin, stdout, stderr: also `PIPE`. Not used with ``tty``.
            terminal: rows and columns of the pty that it gets with ``tty=True``; the other side is its `terminal`.
            changes: `Spec` fields of the program: ``user``, ``group_add``, ``working_dir``, ``tty``, ``timeout``, ``umask``,
                ``ulimits``, ``stop_signal``, ``stop_grace_period``.

        Raises:
            SpecError: an unknown field; or the container has the capability SYS_PTRACE and no user namespace.
        """
        if "SYS_PTRACE" in self.spec.capabilities and self.spec.userns == "host":
            # Till its last steps it has all rights, in the pid namespace of those who may take it over then.
            raise SpecError("cap_add", "SYS_PTRACE has power over a program that is exec'ed, before its rights are dropped")
        if isinstance(command, str | bytes):
            raise SpecError("command", "expected a list of words; for a shell's text use ['sh', '-c', text]")
        unknown = changes.keys() - _OF_AN_EXEC
        if unknown:
            raise SpecError(min(unknown), "an exec can't change that of a container")
        merged = {**self.spec.environment, **(environment or {})}
        spec = self.spec.with_(**{"timeout": None, "cpu_time": None, "tty": False, **_NOT_AN_EXECS, **changes})
        spec = spec.with_(command=command, environment=merged)
        return self._host.exec(self, spec, stdin, stdout, stderr, terminal)

    async def open_socket(self, domain: int = socket.AF_INET) -> socket.socket:
        """A stream socket in the container's network that is not connected yet, nonblocking: connect it to an address of the
        container's, such as 127.0.0.1. Nothing of the container is run for it. It is the caller's to close, and keeps that
        network alive as long as it is open.

        Args:
            domain: ``AF_INET`` or ``AF_INET6``.

        Raises:
            ContainerError: the container has ended.
            LaunchError: the kernel has none.
        Cancellation: nothing is left open.
        """
        return await self._host.open_socket(self, domain)

    @contextlib.asynccontextmanager
    async def trace(
        self, *, filter: str = "all", string_limit: int = STRING_LIMIT, summary: bool = False, interleaved: bool = False
    ) -> AsyncIterator[Events]:
        """The system calls of all that runs in the container from now on, what was exec'ed in it included, as a scope.

        Leaving it lets go of the container, which runs on, as it does where the tracer is killed.

        Args:
            filter, string_limit, summary, interleaved: as `Runtime.trace`; counts come once the container has ended, or after
                ``await events.let_go()``.

        Raises:
            HostError: python-ptrace is not installed.
            SpecError: `filter` makes no sense.
            ContainerError: it has ended.
            TinyvisorError: it is traced already.
        Cancellation: lets go of it.
        """
        self._read_events()  # init's number, where nobody waited for the start
        if self._gone.is_set() or not self.pid:
            raise ContainerError(self.name, "is not running")
        roots = (self.pid, *(process.pid for process in self.execs if process.pid))
        shown: dict[str, Any] = {"string_limit": string_limit, "summary": summary, "interleaved": interleaved}
        async with attached(filter, trees=roots, **shown) as events:
            yield events

    async def stats(self) -> Stats:
        """What it uses now.

        Raises:
            ContainerError: it has ended; `Exit` has the final figures.
        """
        if self._gone.is_set():
            raise ContainerError(self.name, "has ended")
        await anyio.lowlevel.checkpoint()
        return self._host.stats(self)

    def processes(self) -> tuple[str, ...]:
        """What runs in the container besides init, as ``"comm[pid]"`` with the host's numbers; `MAX_PROCESSES` at most."""
        self._read_events()  # init's number, where nobody waited for the start
        found: list[str] = []
        # A program that was exec'ed is a child of its own keeper, which is outside.
        for pid in itertools.chain(*map(_descendants, (self.pid, *(process.pid for process in self.execs)))):
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

    def exceed_output(self) -> None:
        """It wrote more than it may: it is killed for that, and judged by it where it has ended already."""
        self._output_exceeded = self.spec.output_limit or DEFAULT_LIMIT
        if self._outcome is not None:
            self._outcome = replace(self._outcome, output_exceeded=self._output_exceeded)
            self._exit = judge(self.spec, self._outcome)
        self.kill()

    def call_when_gone(self, function: Callable[[], None]) -> None:
        """Calls it once the container is gone, or now."""
        if self._gone.is_set():
            function()
        else:
            self._when_gone.append(function)

    @property
    def gone(self) -> bool:
        return self._gone.is_set()

    def ended(self) -> Exit:
        """What `wait` returns or raises, of a container that is gone: an await less."""
        if self._error is not None:
            raise self._error
        if self._exit is None:
            raise InternalError(f"{self.name}: gone without an exit")
        return self._exit

    def unpark(self, spec: Spec, request: bytes, streams: Streams, *, tells: bool = False) -> bool:
        """Gives a parked container its command and streams; False where it is gone, or as good as.

        Args:
            tells: its init was asked for its word to `wait_ended`.
        """
        if self._events is None or self._gone.is_set():
            return False
        try:
            wire.send_request(self._events, request, streams.given)
        except OSError:
            return False
        self._unparked = True
        self._tells = tells
        self.spec = spec
        self._streams = streams
        self._started_at = time.monotonic()
        streams.close_given()
        return True

    def keep_by(self, function: Callable[[wire.Event, list[int]], None]) -> None:
        """Calls it with each event of its socket while the next supervisor would still find that there, and copies of its fds.
        The last one, that it has started, stays there."""
        self._before_event = function

    def resume(self, pid: int, *, stopped: bool = False) -> None:
        """It runs already. `stopped`: somebody has asked it to end."""
        self.pid = pid
        self._started = bool(pid)
        self._stopped = stopped

    def resume_ended(self, exit: Exit | None, problem: str) -> None:
        """It has ended already; `problem`: what `wait` raises instead of an exit."""
        self._exit = exit
        if exit is None:
            self._error = ContainerError(self.name, problem)
        self._set_gone()

    @property
    def has_started(self) -> bool:
        """Whether the workload has been exec'ed, or so we heard."""
        self._read_events()
        return self._started

    @property
    def error(self) -> Exception | None:
        """What `wait` raises, once it is gone."""
        return self._error

    async def wait_started(self) -> None:
        """Until the workload has been exec'ed.

        Raises:
            LaunchError: a step failed.
        """
        await self._wait_until(lambda: self._started)

    async def wait_parked(self) -> None:
        """Until all that a container needs which is to tell is there but its command; `pid` is known then.

        Raises:
            LaunchError: a step failed.
        """
        await self._wait_until(lambda: bool(self.pid))

    async def _wait_until(self, reached: Callable[[], bool]) -> None:
        while self._waited is not None and not reached() and not self._gone.is_set():
            with contextlib.suppress(anyio.ClosedResourceError):  # it was gone before we woke up
                await self._waited.readable()
            self._read_events()
        if self._error is not None:
            raise self._error

    def _read_events(self) -> None:
        if self._events is None or self._started or self._gone.is_set():
            return
        with contextlib.suppress(BlockingIOError):
            received = self._receive_event()
            while received is not None and not self._started:
                event, fds = received
                if event.type == wire.STARTED:
                    self.pid = event.a
                    self._started = True
                    self._started_at = time.monotonic()
                    return
                if event.type == wire.PARKED:
                    self.pid = event.a
                if event.type == wire.PTY and self.terminal is None:
                    self.terminal = self._received(fds, "its terminal")
                if event.type == wire.SOCKET and self.socket is None:
                    self.socket = self._received(fds, "a socket")
                for fd in fds:
                    os.close(fd)
                received = self._receive_event()

    def _receive_event(self) -> tuple[wire.Event, list[int]] | None:
        assert self._events is not None
        if self._before_event is not None:
            peeked = wire.receive_event(self._events, peek=True)
            if peeked is not None:
                try:
                    self._before_event(*peeked)
                finally:
                    for fd in peeked[1]:
                        os.close(fd)
                if peeked[0].type == wire.STARTED:  # the last that it says
                    return peeked[0], []
        return wire.receive_event(self._events)

    @property
    def event_socket(self) -> int:
        """Our end; -1 where it has none."""
        return self._events.fileno() if self._events is not None else -1

    def _received(self, fds: list[int], what: str) -> int | None:
        if fds:
            return fds.pop()
        # The kernel dropped what we had no number for.
        self.fail(LaunchError(self.name, f"receive {what}", errno.EMFILE))
        return None

    def fail(self, error: Exception) -> None:
        """Ends it, for this reason, which is what `wait` raises then."""
        self._error = error
        self.kill()

    def finish(self, gone: wire.Gone, usage: Usage) -> None:
        """The launcher has reaped init, or is about to: nothing of the container is left."""
        self._conclude(gone, usage)
        self._set_gone()

    def conclude(self, gone: wire.Gone, usage: Usage) -> None:
        """By its init's word: nothing but that is left, and the launcher has yet to clean up."""
        if self._exit is None:
            self._conclude(gone, usage)

    def _conclude(self, gone: wire.Gone, usage: Usage) -> None:
        if gone.started or (gone.exited and self._unparked and self._before_event is None):
            self._started = True  # all that its socket could still say
        else:
            self._read_events()  # whether it had started, where nobody waited for that
        if gone.error:
            behind = limit_behind(self.spec, gone.error, os.cpu_count() or 1)
            self._error = LaunchError(self.name, self._describe(gone.section, gone.step), gone.error, behind)
        elif gone.cleanup_error:
            self._error = ContainerError(self.name, f"its cgroup could not be removed: {os.strerror(gone.cleanup_error)}")
        elif not gone.exited and gone.init_status == _NO_PAGE:
            self._error = LaunchError(self.name, "map the page in which its init reports", errno.ENOMEM)
        elif not gone.exited and not self._started and not self._stopped and self._events is not None:
            self._error = ContainerError(self.name, "its init was killed while it was starting")
        self._outcome = Outcome(
            wait_status=gone.status if gone.exited else None,
            timed_out=gone.timed_out,
            wall=gone.wall if gone.exited else time.monotonic() - self._started_at,  # init had no time to say
            cpu_user=gone.user,
            cpu_system=gone.system,
            usage=usage,
            stopped=self._stopped,
            limits_enforced=self._limits_enforced,
            held_up_by=self._held_up_by,
            cpu_timed_out=gone.cpu_timed_out,
            output_exceeded=self._output_exceeded,
            violations=_violations(gone) if gone.refused else (),
            refused=gone.killed_for_refused,
            sent_sigsys=self._sent_sigsys,
        )
        self._exit = judge(self.spec, self._outcome)
        self._ended_at = gone.ended if gone.exited else 0.0

    async def wait_gone(self) -> None:
        """As `wait`, without an opinion on how it went."""
        await self._gone.wait()

    async def wait_ended(self) -> None:
        """As `wait_gone`, but where its init was asked to say so, not for its end and the launcher's clean-up."""
        while self._tells and not self._gone.is_set() and not self._take_word():
            assert self._waited is not None
            with contextlib.suppress(anyio.ClosedResourceError):  # the launcher was quicker
                await self._waited.readable()
        if self._exit is None:
            await self._gone.wait()

    def _take_word(self) -> bool:
        """Its init's, or that none will come."""
        assert self._events is not None
        try:
            while (received := wire.receive_event(self._events)) is not None:
                if received[0].type == wire.ENDED and not self.execs:  # who was exec'ed is no child of init's
                    self._host.heard_end(self, received[0])
                    return True
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """The launcher has cleaned up behind `conclude`."""
        self._set_gone()

    def refuse(self, error: Exception) -> None:
        """It never started, or its launcher is gone."""
        self._error = error
        self._set_gone()

    def lose(self) -> None:
        """The launcher died, and took the container with it."""
        self.refuse(LauncherDied(f"{self.name}: the launcher was killed, and the container with it"))

    def _set_gone(self) -> None:
        if self._waited is not None:
            self._waited.close()
        self._gone.set()
        while self._when_gone:
            self._when_gone.pop()()

    @property
    def init_end(self) -> int | None:
        """The end of its socket that is init's; None where it has none."""
        return self._init_end.fileno() if self._init_end is not None else None

    @property
    def given(self) -> tuple[int, int, int]:
        """The fds that become its stdin, stdout, stderr."""
        return self._streams.given

    def describe_with(self, describe: Callable[[int, int], str]) -> None:
        """How a failed (section, step) is put in words."""
        self._describe = describe

    def abandon(self) -> None:
        """It was never sent: gives back its fds."""
        if self._events is not None:
            self._events.close()
        self.close()

    def close_given(self) -> None:
        """The launcher has its own copies of the fds now."""
        if self._init_end is not None:
            self._init_end.close()
            self._init_end = None
        self._streams.close_given()
        if self._provisions is not None:
            self._provisions.close_given()

    def take_socket(self) -> socket.socket:
        """What `socket` is, which is not this container's any more."""
        assert self.socket is not None
        fd, self.socket = self.socket, None
        taken = socket.socket(fileno=fd)
        taken.setblocking(False)  # it is that; Python does not look
        return taken

    def provide(self, provisions: Provisions) -> None:
        """What was made for it is its to close."""
        self._provisions = provisions
        self.notify, self.notification = provisions.notify, provisions.notification

    def close(self) -> None:
        """Gives back the fds: ours, those meant for init, the terminal."""
        self.close_given()
        self._streams.close()
        if self._provisions is not None:
            self._provisions.close(gone=self.gone)
        if self.socket is not None:
            os.close(self.socket)
            self.socket = None
        if self.terminal is not None:
            os.close(self.terminal)
            self.terminal = None
        if self.terminal_stage is not None:
            self.terminal_stage.close()
            self.terminal_stage = None


def _violations(gone: wire.Gone) -> tuple[Violation, ...]:
    numbers = MACHINES[os.uname().machine].numbers  # there was a filter, so it is one of them
    found = tuple(Violation(*describe_refused(number, answer, numbers), count) for number, answer, count in gone.refused)
    rest = gone.refused_in_all - sum(item.count for item in found)
    return (*found, Violation("", "", rest)) if rest > 0 else found


def _signal(value: int | str) -> int:
    try:
        return parse_signal(value)
    except ValueError as exc:
        raise SpecError("signal", str(exc)) from None


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
