"""A terminal between ours and one that somebody else opened for us, with the standard library alone: raw mode, both directions,
the size."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import termios
import tty
from collections.abc import Iterator

CHUNK = 64 << 10
DEFAULT_SIZE = (24, 80)


def size() -> tuple[int, int]:
    """Rows and columns of our terminal."""
    for fd in (1, 0, 2):
        with contextlib.suppress(OSError):
            columns, rows = os.get_terminal_size(fd)
            return (rows, columns) if rows and columns else DEFAULT_SIZE
    return DEFAULT_SIZE


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """Every key is the container's, Ctrl-C and Ctrl-Z, too."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSADRAIN)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal has been hung up: there is nothing to restore
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def write_out(data: bytes) -> None:
    """All of it to our stdout, however slow that is."""
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def relay(ours: socket.socket, until: socket.socket) -> None:
    """Waits for a pty's master side to come over `ours`, and joins our stdin and stdout to it until `until` can be read from.

    Our terminal is as it was before, however it ends.
    """
    ready, _, _ = select.select([ours, until], [], [])
    fds = socket.recv_fds(ours, 1, 1)[1] if ours in ready else []
    if not fds:  # it could not be started: the answer says why
        return
    master = fds[0]
    try:
        os.set_blocking(master, False)
        interactive = os.isatty(0)
        with raw(0) if interactive else contextlib.nullcontext(), resized(master):
            _Relay(master, interactive).run(until.fileno())
    finally:
        os.close(master)


@contextlib.contextmanager
def resized(master: int) -> Iterator[None]:
    def resize(*_: object) -> None:
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", *size(), 0, 0))

    before = signal.signal(signal.SIGWINCH, resize)
    try:
        resize()  # it may have changed since it was asked for
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


class _Relay:
    """Between us and `master`. What was typed and not taken yet keeps us from reading more, and so does our own slow reader from
    reading more output: as on any terminal."""

    def __init__(self, master: int, interactive: bool) -> None:
        self._master = master
        self._typed = b""
        self._poll = select.poll()
        self._open = {0, master} if interactive else {master}

    def run(self, until: int) -> None:
        self._poll.register(until, select.POLLIN)
        while True:
            self._watch()
            ready = {fd for fd, _ in self._poll.poll()}
            if until in ready:
                while self._read():
                    pass
                return
            if 0 in ready:
                self._type()
            self._hand_over()
            if self._master in ready and self._read() == b"":  # all that had it open have gone; the answer is on its way
                self._close(self._master)

    def _watch(self) -> None:
        if 0 in self._open:
            self._poll.register(0, 0 if self._typed else select.POLLIN)
        if self._master in self._open:
            self._poll.register(self._master, select.POLLIN | (select.POLLOUT if self._typed else 0))

    def _close(self, fd: int) -> None:
        self._open.discard(fd)
        self._poll.unregister(fd)

    def _type(self) -> None:
        with contextlib.suppress(OSError):
            self._typed = self._typed or os.read(0, CHUNK)
        if not self._typed:  # hung up
            self._close(0)

    def _hand_over(self) -> None:
        try:
            while self._typed:
                self._typed = self._typed[os.write(self._master, self._typed) :]
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self._typed = b""

    def _read(self) -> bytes | None:
        """Shows what there is; None where there is nothing now, empty where there is no more."""
        try:
            data = os.read(self._master, CHUNK)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return b""
        write_out(data)
        return data
