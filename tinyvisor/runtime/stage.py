"""Live mode: output that has been read and is not in the log file yet, where the death of the supervisor does not reach it.

A memfd, which the keeper holds, too. From a pipe the kernel itself moves the bytes there (splice(2)), at the file's own position,
which moves along in the same call: whenever we are killed, a byte is either still in the pipe or in here. What has been logged is
written at its beginning, together with what was being logged, and where in the log: the next supervisor takes back what of that
has come about, and writes it itself. So each byte is in the log exactly once. A terminal can't be spliced from: between read(2)
and write(2) are some microseconds.

Positions only grow; pages whose bytes have been logged are given back.
"""

from __future__ import annotations

import os
import stat
import struct
from typing import Final, NamedTuple

from tinyvisor.runtime.syscalls import punch_hole

START: Final = 4096
"""Where the output begins; before it is the header."""

GIVE_BACK: Final = 32 << 10
"""Bytes that have been logged, and are given back at once."""

_HEADER: Final = struct.Struct("=QQQQ")
_NONBLOCK: Final = 2  # SPLICE_F_NONBLOCK


class Place(NamedTuple):
    """Where a log ends: the file, and its bytes. Zeros: there is none."""

    inode: int = 0
    size: int = 0


class Stage:
    """Of one stream. `fd` is the caller's to close, after us.

    Attributes:
        unfinished: where the log ended when the writer before us, which was killed, began to write what it had; None where it
            was not writing.
    """

    __slots__ = ("_begun", "_end", "_given_back", "_read", "_settled", "fd", "unfinished")

    def __init__(self, fd: int) -> None:
        self.fd: int = fd
        self._settled, begun, inode, size = _HEADER.unpack(os.pread(fd, _HEADER.size, 0))
        self.unfinished: Place | None = Place(inode, size) if begun else None
        self._end = os.lseek(fd, 0, os.SEEK_CUR)
        self._read = self._settled
        self._begun = self._given_back = self._settled

    @classmethod
    def create(cls) -> Stage:
        """An empty one.

        Raises:
            OSError: out of files or memory.
        """
        fd = os.memfd_create("tinyvisor-output", os.MFD_CLOEXEC)
        os.pwrite(fd, _HEADER.pack(START, 0, 0, 0), 0)
        os.lseek(fd, START, os.SEEK_SET)
        return cls(fd)

    def receive(self, source: int, max_bytes: int) -> bytes:
        """What the writer before us has left, then what `source` has; empty at its end.

        Raises:
            BlockingIOError: there is nothing yet.
        """
        if self._read == self._end:
            self._end += _move(source, self.fd, max_bytes)
        data = os.pread(self.fd, min(max_bytes, self._end - self._read), self._read)
        self._read += len(data)
        return data

    def begin(self, size: int, place: Place) -> None:
        """The next `size` bytes are about to be written to a log that ends at `place`."""
        self._begun = self._settled + size
        os.pwrite(self.fd, _HEADER.pack(self._settled, self._begun, *place), 0)

    def settle(self) -> None:
        """They have been."""
        self._settled = self._begun
        os.pwrite(self.fd, _HEADER.pack(self._settled, 0, 0, 0), 0)
        whole = self._settled // START * START
        if whole - self._given_back >= GIVE_BACK:
            first = max(self._given_back // START * START, START)
            punch_hole(self.fd, first, whole - first)
            self._given_back = whole

    def close(self) -> None:
        os.close(self.fd)


def _move(source: int, to: int, max_bytes: int) -> int:
    if stat.S_ISFIFO(os.fstat(source).st_mode):
        return os.splice(source, to, max_bytes, flags=_NONBLOCK)
    data = os.read(source, max_bytes)
    return os.write(to, data) if data else 0
