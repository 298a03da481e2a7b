"""The launcher's other end: the wire protocol (encode requests, decode events) and the process itself.

The format is launcher/launcher.h's: one request or event is one SOCK_SEQPACKET message, fixed header first, native byte
order (both ends are one machine). Written on anyio alone.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
import struct
import subprocess
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import anyio

from tinyvisor.errors import HostError, InternalError, LauncherDied
from tinyvisor.runtime.steps import Step

MAGIC = 0x4C565954
VERSION = 12
MAX_REQUEST = 4 << 20
MAX_INLINE = 48 << 10
"""Bytes of a request that go into the message itself; more goes into a memfd (the launcher's own bound is 64 KiB)."""
MAX_FDS = 64

PREPARE, LAUNCH, KILL, RUN = 1, 2, 3, 4
BODY_IN_MEMFD, KEEP_FDS, PARK, EXEC, ASK, TELL = 1, 2, 4, 8, 16, 32
SECTIONS = ("launcher", "init", "workload", "cleanup")
STARTED, PTY, GONE, REFUSED, PREPARED, PARKED, SOCKET, ENDED = range(1, 9)
SCOPE_WORKLOAD, SCOPE_GROUP, SCOPE_ALL = 0, 1, 2

_REQUEST = struct.Struct("=IHHIIQQI4HHH")
_STEP = struct.Struct("=HBBI")
_LENGTH = struct.Struct("=I")
_EVENT = struct.Struct("=IHHQiiII")
_GONE = struct.Struct("=6i2q16x2I128s2i2q")  # passed over: CPU time so far, as init told the launcher
_REFUSED = struct.Struct("=HHI")
_EXITED, _TIMED_OUT, _CPU_TIMED_OUT, _KILLED_FOR_REFUSED, _STARTED = 1, 2, 4, 16, 64
_COMMAND = struct.Struct("=IHHii")
_MAX_EVENT = _EVENT.size + _GONE.size + (32 << 10)
_CLOEXEC, _PEEK, _NOSIGNAL = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_PEEK), int(socket.MSG_NOSIGNAL)  # enums are slow
TITLE_ROOM = " " * 80
_GONE_MESSAGE = "the launcher is gone; its containers were killed with it"


class Section(NamedTuple):
    """Encoded steps: how many, and their bytes."""

    steps: int = 0
    body: bytes = b""

    def __add__(self, other: Section) -> Section:  # type: ignore[override] # one behind the other, and no longer tuple
        return Section(self.steps + other.steps, self.body + other.body)


EMPTY = Section()


class Event(NamedTuple):
    """What the launcher or an init said; the meaning of the numbers is in launcher.h (enum event_type)."""

    type: int
    id: int
    a: int
    b: int
    data: bytes


class Gone(NamedTuple):
    """How a container ended, as the launcher reports it (launcher.h, struct gone).

    Attributes:
        section, step, error: the launch step that failed; error is an errno, 0 where none did.
        exited: the workload was reaped by its init, which then said `status` (a wait status) and `wall` (seconds).
        ended: when that was, in seconds of the kernel's monotonic clock.
        timed_out: its time was up.
        cpu_timed_out: its CPU time was used up.
        init_status: wait status of init itself.
        cleanup_error: errno of what could not be removed, 0 where all is gone.
        user, system: seconds of CPU time, of all its processes.
        counters: the files that were read back.
        refused_in_all: calls that the workload's filter handed to init.
        refused: the first kinds of them: (number, answer, how often); an answer is an errno or one of `seccomp.ANSWERS`.
        killed_for_refused: init killed the workload for one.
        started: the workload was exec'ed, of which its init was asked to say nothing (`TELL`).
    """

    section: int
    step: int
    error: int
    exited: bool
    timed_out: bool
    cpu_timed_out: bool
    status: int
    wall: float
    ended: float
    init_status: int
    cleanup_error: int
    user: float
    system: float
    counters: bytes
    refused_in_all: int = 0
    refused: tuple[tuple[int, int, int], ...] = ()
    killed_for_refused: bool = False
    started: bool = False


def encode(steps: Iterable[Step]) -> Section:
    """Steps as the launcher reads them."""
    parts = [encode_step(step) for step in steps]
    return Section(len(parts), b"".join(parts))


def encode_step(step: Step) -> bytes:
    """One step: header, 64-bit numbers, strings each with its length and a NUL behind."""
    numbers, strings = step.numbers(), step.strings()
    parts = [struct.pack(f"={len(numbers)}Q", *numbers)]
    for string in strings:
        raw = string.encode("utf-8", "surrogateescape") if isinstance(string, str) else string
        parts += (_LENGTH.pack(len(raw)), raw, b"\0")
    body = b"".join(parts)
    return _STEP.pack(step.op, len(numbers), len(strings), _STEP.size + len(body)) + body


def encode_request(
    type: int, id: int, sections: Sequence[Section] = (), *, fds: int = 0, flags: int = 0, pid: int = 0, other: int = 0
) -> bytes:
    """A whole request. `sections` are in `SECTIONS`' order; `fds` is how many go with it, a body's memfd not counted.

    Raises:
        ValueError: it is larger than the launcher takes (`MAX_REQUEST` bytes).
    """
    padded = [*sections, *[EMPTY] * (4 - len(sections))]
    body = b"".join([section.body for section in padded])
    length = _REQUEST.size + len(body)
    if length > MAX_REQUEST:
        raise ValueError(f"command and environment are too large: {length} bytes, at most {MAX_REQUEST}")
    if length > MAX_INLINE:
        flags |= BODY_IN_MEMFD
    counts = [section.steps for section in padded]
    return _REQUEST.pack(MAGIC, VERSION, type, length, flags, id, other, pid, *counts, fds, 0) + body


def encode_signal(number: int, scope: int) -> bytes:
    """A command for an init: send a signal to its workload, the workload's group, or all of the container."""
    return _COMMAND.pack(MAGIC, VERSION, 1, number, scope)


def decode_event(message: bytes) -> Event:
    """Raises `InternalError` for a message that no launcher of this version sends."""
    if len(message) < _EVENT.size:
        raise InternalError(f"short event from the launcher: {len(message)} bytes")
    magic, version, type_, id_, a, b, length, _ = _EVENT.unpack_from(message)
    if magic != MAGIC or version != VERSION or length != len(message) - _EVENT.size:
        raise InternalError("garbled event from the launcher")
    return Event(type_, id_, a, b, message[_EVENT.size :])


def decode_gone(data: bytes) -> Gone:
    """The data of a GONE event."""
    if len(data) < _GONE.size:
        raise InternalError(f"short report from the launcher: {len(data)} bytes")
    (
        _pid, section, step, error, flags, status, wall, ended_at, refused_in_all, kinds, refused, init_status, cleanup_error,
        user, system,
    ) = _GONE.unpack_from(data)  # fmt: skip
    ended = bool(flags & _EXITED), bool(flags & _TIMED_OUT), bool(flags & _CPU_TIMED_OUT)
    return Gone(
        section, step, error, *ended, status, wall / 1e9, ended_at / 1e9, init_status, cleanup_error, user / 1e6, system / 1e6,
        data[_GONE.size :], refused_in_all, tuple(_REFUSED.iter_unpack(refused[: kinds * _REFUSED.size])) if kinds else (),
        bool(flags & _KILLED_FOR_REFUSED), bool(flags & _STARTED),
    )  # fmt: skip


def receive_event(sock: socket.socket, *, peek: bool = False) -> tuple[Event, list[int]] | None:
    """The next event and the fds that came with it; None where the other end is gone.

    Args:
        peek: it stays where it is, and so do its fds: these are copies.

    Raises:
        BlockingIOError: there is none yet.
    """
    try:
        message, control, _flags, _ = sock.recvmsg(_MAX_EVENT, 64, _CLOEXEC | (_PEEK if peek else 0))
    except ConnectionError:
        return None
    if not message:
        return None
    return decode_event(message), received_fds(control) if control else []


def received_fds(control: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """The fds among what came along with a message."""
    fds: list[int] = []
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received = array.array("i")
            received.frombytes(data)
            fds.extend(received)
    return fds


async def reap(process: subprocess.Popen[bytes], pidfd: int) -> None:
    """Waits for the end of a child, which is on its way, and closes its pidfd. Cancellation: shielded."""
    try:
        await shielded(lambda: anyio.wait_readable(pidfd))
    finally:
        # By pidfd: where the host program reaps children that it does not know, the number may be another's by now.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222 - it has ended already
        process.returncode = 0  # nothing is left for Popen to wait for
        anyio.notify_closing(pidfd)
        os.close(pidfd)


async def shielded(wait: Callable[[], Awaitable[None]]) -> None:
    """Waits to the end, whatever comes; to be called for ends that are on their way. asyncio's own Task.cancel does not stop at
    anyio's shields: it is heard, and takes effect afterwards."""
    cancelled: BaseException | None = None
    with anyio.CancelScope(shield=True):
        while True:
            try:
                await wait()
                break
            except anyio.get_cancelled_exc_class() as exc:
                cancelled = exc
    if cancelled is not None:
        raise cancelled


def launcher_path() -> Path:
    """Where the build put the launcher.

    Raises:
        HostError: this installation has none.
    """
    path = Path(str(files("tinyvisor") / "_bin" / "tinyvisor-launcher"))
    if not path.is_file():
        raise HostError(f"{path} is missing", "install tinyvisor with pip, which builds it (needs a C compiler or ziglang)")
    return path


def sealed_copy(path: Path) -> int:
    """The program in a memfd that nobody can change any more: no container can get at a file of the host through
    /proc/PID/exe (CVE-2019-5736)."""
    exec_flag = getattr(os, "MFD_EXEC", 0x10)  # 6.3; older kernels say EINVAL and need no flag
    try:
        fd = os.memfd_create("tinyvisor-launcher", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | exec_flag)
    except OSError:
        fd = os.memfd_create("tinyvisor-launcher", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, path.read_bytes())
        os.fchmod(fd, 0o500)
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


class LauncherProcess:
    """The launcher, started synchronously from this thread, and the queue of what is to be sent to it. `nested`: we are in a user
    namespace that is not the host's.

    Events arrive at `on_event`, called by `serve`, with the fds that came along, which are its to close. Never blocks; what the
    socket does not take at once is queued, in order, and `serve`'s flusher sends it.
    """

    def __init__(self, on_event: Callable[[Event, list[int]], None], path: Path | None = None, *, nested: bool = False) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = sealed_copy(path or launcher_path())
        try:
            self._process = subprocess.Popen(
                [
                    "tinyvisor-launcher",
                    "serve-nested" if nested else "serve",
                    str(theirs.fileno()),
                    str(os.getpid()),
                    TITLE_ROOM,
                ],
                executable=f"/proc/self/fd/{program}",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), program),
                env={},
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(program)
        try:
            pidfd = os.pidfd_open(self._process.pid)
        except ProcessLookupError:  # ended at once, where the host program ignores SIGCHLD
            pidfd = -1
        self._attach(on_event, ours, self._process.pid, pidfd)

    def _attach(self, on_event: Callable[[Event, list[int]], None], sock: socket.socket, pid: int, pidfd: int) -> None:
        """`pidfd`: of whose end is waited for."""
        self._on_event = on_event
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._queued = anyio.Event()
        self._gone = False
        self._socket = sock
        self._socket.setblocking(False)
        self._pidfd = pidfd
        self.pid = pid

    def send(self, request: bytes, fds: Sequence[int] = ()) -> None:
        """Sends a request now or, where the socket is full, later. The fds may be closed on return.

        Raises:
            LauncherDied: there is nobody to send it to.
            OSError: out of file descriptors or memory. Nothing was sent.
        """
        if self._gone:  # nobody flushes the queue any more
            raise LauncherDied(_GONE_MESSAGE)
        if not self._queue:
            try:
                send_request(self._socket, request, fds)
            except BlockingIOError:
                pass
            except ConnectionError as exc:
                raise LauncherDied(_GONE_MESSAGE) from exc
            else:
                return
        copies: list[int] = []
        try:
            for fd in fds:
                copies.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0))
        except OSError:
            _close_all(copies)
            raise
        self._queue.append((request, copies))
        self._queued.set()

    async def serve(self) -> None:
        """Hands every event to `on_event` until the launcher is gone, then raises `LauncherDied`."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._flush)
            while not self._gone:
                await anyio.wait_readable(self._socket)
                with contextlib.suppress(BlockingIOError):
                    while self._take():
                        pass
                    self._gone = True
            group.cancel_scope.cancel()
        raise LauncherDied(_GONE_MESSAGE)  # here, where the task group can't wrap it

    def _take(self) -> bool:
        """Hands on the next event; False where the launcher is gone."""
        received = receive_event(self._socket)
        if received is None:
            return False
        self._on_event(*received)
        return True

    async def _flush(self) -> None:
        while True:
            await self._queued.wait()
            while self._queue:
                await anyio.wait_writable(self._socket)
                request, fds = self._queue[0]
                try:
                    send_request(self._socket, request, fds)
                except BlockingIOError:
                    continue
                except ConnectionError:
                    return  # gone: the reader says so
                except OSError:  # out of fds or memory for the moment
                    await anyio.sleep(0.01)
                    continue
                self._queue.popleft()
                _close_all(fds)
            self._queued = anyio.Event()

    async def aclose(self) -> None:
        """Closes the socket, which makes the launcher kill and clean up all it has, and waits for its end.

        Cancellation: shielded; the launcher's own end is bounded.
        """
        self._close_socket()
        if self._pidfd < 0:
            return
        pidfd, self._pidfd = self._pidfd, -1
        await reap(self._process, pidfd)

    def _close_socket(self) -> None:
        self._socket.close()
        while self._queue:
            _close_all(self._queue.popleft()[1])


def send_request(sock: socket.socket, request: bytes, fds: Sequence[int]) -> None:
    """Sends a request at once, whole or not at all.

    Raises:
        BlockingIOError: the socket is full.
        ConnectionError: the other end is gone.
    """
    if len(request) <= MAX_INLINE:
        _send_message(sock, request, fds)
        return
    body = os.memfd_create("tinyvisor-request", os.MFD_CLOEXEC)
    try:
        with open(body, "wb", closefd=False) as file:
            file.write(request[_REQUEST.size :])
        _send_message(sock, request[: _REQUEST.size], [*fds, body])
    finally:
        os.close(body)


def _send_message(sock: socket.socket, message: bytes, fds: Sequence[int]) -> None:
    # MSG_NOSIGNAL: the host program may have SIGPIPE at its default. socket.send_fds passes no flags on.
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([message], rights, _NOSIGNAL)


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
