"""Live mode: the keeper's other end. The keeper (launcher/keeper.c) is the launcher's parent and holds the fds that the next
supervisor needs; whoever is connected to it is the project's supervisor, and there is one at most.

All of it is synchronous and short: the keeper does nothing but answer, so that an fd is held before the launch that it belongs
to is on its way.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Final

import anyio

from tinyvisor.errors import HostError, InternalError, LauncherDied, TinyvisorError
from tinyvisor.runtime import launcher as wire
from tinyvisor.runtime.launcher import Event, LauncherProcess

VERSION: Final = 1
PATIENCE: Final = 10.0
"""Seconds for what the keeper does in microseconds, when the machine is busy."""

_PUT, _DROP, _LIST, _END, _HELLO, _BUSY, _ENTRY, _DONE = range(1, 9)
_MESSAGE: Final = struct.Struct("=IHHQII")


MAX_PUT: Final = 8


class Kind(IntEnum):
    """What a kept fd is; below 16. The first three of the project (`PROJECT`) are the keeper's own."""

    CONTROL, LAUNCHER, KEEPER, LOCK, LEASES, EVENTS, STDIN, STDOUT, STDERR, TERMINAL, STAGED_OUT, STAGED_ERR = range(12)
    NOTIFY, NOTIFICATION = 12, 13


PROJECT: Final = 0
"""In place of a container's id."""


class Keeper:
    """A connection to a project's keeper. Made by `start` and `connect`.

    Attributes:
        kept: the fds that were there when we came, ours to close, by container and kind.
    """

    def __init__(self, connection: socket.socket, path: Path) -> None:
        self.path = path
        self.kept: dict[tuple[int, int], int] = {}
        self._connection = connection
        self._held = 0
        connection.settimeout(PATIENCE)
        try:
            self._room = self._greeted()
            self._list()
        except BaseException:
            self.close()
            raise

    @classmethod
    def start(cls, path: Path, *, nested: bool = False) -> Keeper:
        """A new one, which listens at `path`, and its launcher (see `LauncherProcess`). Hold the project's lock.

        Raises:
            HostError: it could not be started.
            OSError: `path` can't be used.
        """
        with contextlib.ExitStack() as stack:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.enter_context(theirs)
            listener = stack.enter_context(_listening(path))
            program = wire.sealed_copy(wire.launcher_path())
            stack.callback(os.close, program)
            process = subprocess.Popen(
                [
                    "tinyvisor-launcher",
                    "keep-nested" if nested else "keep",
                    str(theirs.fileno()),
                    str(os.getpid()),
                    wire.TITLE_ROOM,
                ],
                executable=f"/proc/self/fd/{program}",
                stdin=listener.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # the daemon's log would be held open for ever, its rotated files, too
                pass_fds=(theirs.fileno(), program),
                env={},
                start_new_session=True,
            )
        try:
            started = cls(ours, path)
        except (OSError, LauncherDied) as exc:
            process.kill()
            process.wait()
            raise HostError(f"the launcher did not start ({exc})", "see `tinyvisor doctor`") from exc
        process.returncode = 0  # nothing for Popen to wait for: KeptLauncher does, or it outlives us
        return started

    @classmethod
    def connect(cls, path: Path) -> Keeper | None:
        """The one that listens at `path`; None where there is none.

        Raises:
            TinyvisorError: it has a supervisor already, is of a version that we can't talk to, or takes no connection.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # Not settimeout: with that, a full queue is an error at once.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(PATIENCE))
            connection.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        except BlockingIOError:
            connection.close()
            raise TinyvisorError(
                f"the keeper of project {path.stem} takes no connection: it is stopped, or too many wait for it;"
                " wake its tinyvisor-keeper (kill -CONT), or kill it, which kills its containers"
            ) from None
        except BaseException:
            connection.close()
            raise
        return cls(connection, path)

    def put(self, id: int, fds: Mapping[Kind, int]) -> None:
        """Has it hold copies of `fds`, at most `MAX_PUT`.

        Raises:
            HostError: it has no room for more.
            LauncherDied: it is gone, and the containers with it.
        """
        if self._held + len(fds) > self._room:
            raise HostError(
                f"live mode: no more than {self._room} open files can be kept", "raise the hard limit of open files (ulimit -Hn)"
            )
        kinds = sum(kind << 4 * place for place, kind in enumerate(fds))
        self._send(_PUT, id, kinds, list(fds.values()))
        self._held += len(fds)

    def drop(self, id: int, count: int) -> None:
        """Has it forget all that it holds of a container: `count` fds."""
        with contextlib.suppress(LauncherDied):
            self._send(_DROP, id)
        self._held -= count

    def end(self) -> None:
        """Has it forget everything. Once we have closed what is ours of that, the launcher kills and cleans up all it has."""
        with contextlib.suppress(LauncherDied):
            self._send(_END, PROJECT)

    def take(self, id: int, kind: Kind) -> int:
        """A kept fd, the caller's from now on; -1 where there is none."""
        return self.kept.pop((id, kind), -1)

    def close(self) -> None:
        """We are not its supervisor any more."""
        self._connection.close()
        for fd in self.kept.values():
            os.close(fd)
        self.kept.clear()

    def _greeted(self) -> int:
        message, fds = self._receive()
        _close_all(fds)
        _, version, type_, _, kind, number = message
        if type_ == _BUSY:
            raise TinyvisorError(f"project {self.path.stem} is already running (pid {number})")
        if version != VERSION or type_ != _HELLO or kind != wire.VERSION:
            raise TinyvisorError(
                f"project {self.path.stem} was started by another version of tinyvisor, whose launcher this one can't talk to;"
                " end it with that version's tinyvisor down, or kill its tinyvisor-keeper, which kills its containers"
            )
        return number

    def _list(self) -> None:
        self._send(_LIST, PROJECT)
        while True:
            (_, _, type_, id_, kind, number), fds = self._receive()
            if type_ == _DONE:
                self._held = number
                return
            if len(fds) != 1:
                _close_all(fds)
                raise HostError("no more files can be opened", "raise the limit of open files (ulimit -n)")
            if (id_, kind) in self.kept:  # a terminal: put, and its supervisor ended before it had said so
                os.close(self.kept[id_, kind])
            self.kept[id_, kind] = fds[0]

    def _send(self, type_: int, id: int, kinds: int = 0, fds: Sequence[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        message = _MESSAGE.pack(wire.MAGIC, VERSION, type_, id, kinds, len(fds))
        try:
            self._connection.sendmsg([message], rights, socket.MSG_NOSIGNAL)
        except (ConnectionError, TimeoutError) as exc:
            raise LauncherDied("the keeper is gone, and its containers with it") from exc

    def _receive(self) -> tuple[tuple[int, int, int, int, int, int], list[int]]:
        try:
            data, control, _flags, _ = self._connection.recvmsg(_MESSAGE.size, 64, socket.MSG_CMSG_CLOEXEC)
        except (ConnectionError, TimeoutError) as exc:
            raise LauncherDied("the keeper does not answer") from exc
        fds = wire.received_fds(control)
        if len(data) != _MESSAGE.size or data[:4] != wire.MAGIC.to_bytes(4, "little"):
            _close_all(fds)
            if not data:
                raise LauncherDied("the keeper is gone, and its containers with it")
            raise InternalError("garbled message from the keeper")
        return _MESSAGE.unpack(data), fds


class KeptLauncher(LauncherProcess):
    """A launcher whose parent is a keeper. What it reports of a container's end stays in the socket until `on_event` has
    returned: should we end before, the next supervisor gets it again."""

    def __init__(self, keeper: Keeper, on_event: Callable[[Event, list[int]], None]) -> None:
        self._keeper = keeper
        self._launcher_pidfd = keeper.take(PROJECT, Kind.LAUNCHER)
        pid = pid_of(self._launcher_pidfd)
        self._attach(on_event, socket.socket(fileno=keeper.take(PROJECT, Kind.CONTROL)), pid, keeper.take(PROJECT, Kind.KEEPER))
        if min(self._launcher_pidfd, self._pidfd) < 0:
            raise InternalError("the keeper holds no launcher")

    def _take(self) -> bool:
        peeked = wire.receive_event(self._socket, peek=True)
        if peeked is None:
            return False
        event, fds = peeked
        self._on_event(event, fds)  # which closes them, or takes them
        taken = wire.receive_event(self._socket)
        if taken is not None:
            _close_all(taken[1])
        return True

    def detach(self) -> None:
        """Lets go of them: they go on."""
        self._keeper.close()
        self._close_socket()
        os.close(self._launcher_pidfd)
        os.close(self._pidfd)

    async def aclose(self) -> None:
        """Ends the keeper and the launcher with all that it has, and waits for it.

        Cancellation: shielded; the launcher's own end is bounded.
        """
        self._keeper.end()
        self._keeper.close()
        self._close_socket()
        os.close(self._launcher_pidfd)
        pidfd, self._pidfd = self._pidfd, -1
        try:
            await wire.shielded(lambda: anyio.wait_readable(pidfd))
        finally:
            # It may be a child of ours, also where another runtime of this process has started it.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222 - it has ended already
            anyio.notify_closing(pidfd)
            os.close(pidfd)


def _timeval(seconds: float) -> bytes:
    """struct timeval, native."""
    return struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))


def pid_of(pidfd: int) -> int:
    """The process's number, -1 where it is gone."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("Pid:")), -1)


def wait_ended(pidfd: int) -> None:
    """Blocks until the process has ended, for at most `PATIENCE`."""
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    waiting.poll(PATIENCE * 1000)


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """Only we and root can connect."""
    with contextlib.suppress(FileNotFoundError):  # a crash has left it
        path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        os.fchmod(listener.fileno(), 0o600)  # before bind: the file never has another mode
        listener.bind(os.fspath(path))
        listener.listen(16)
        yield listener


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
