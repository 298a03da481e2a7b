"""Reads the log files that `runtime.logfile` writes, across their rotations, while they grow.

The file is the buffer: a reader that is slow holds up nobody, and loses what rotation deletes meanwhile, nothing else.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from heapq import merge
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

CHUNK: Final = 64 << 10
MAX_TAIL: Final = 10_000
MAX_TAIL_BYTES: Final = 8 << 20
"""What of the last lines is held in memory at most; older ones go."""


class Record(NamedTuple):
    """A line of a service's output, or a piece of one.

    Attributes:
        time: RFC 3339 in UTC, as it is in the file.
        full: a newline follows.
    """

    time: str
    name: str
    stream: str
    full: bool
    text: bytes

    def to_json(self) -> dict[str, object]:
        """With the field names above; bytes that are no UTF-8 are replaced."""
        return self._asdict() | {"text": self.text.decode("utf-8", "replace")}


def parse(name: str, line: bytes) -> Record | None:
    """A line of a log file; None where it is none of ours, such as one torn by a full disk."""
    parts = line.split(b" ", 3)
    if len(parts) != 4 or parts[1] not in (b"stdout", b"stderr") or parts[2] not in (b"F", b"P") or not parts[0].isascii():
        return None
    return Record(parts[0].decode(), name, parts[1].decode(), parts[2] == b"F", parts[3])


class LogReader:
    """Reads one instance's log from the oldest file that is there. `close` it."""

    def __init__(self, path: Path) -> None:
        self._name = path.name.removesuffix(".log")
        self._path = path
        self._fd = -1
        self._rest = b""

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self) -> list[Record]:
        """What comes next, some `CHUNK` bytes; empty when there is nothing yet.

        Raises:
            OSError: a file can't be read.
        """
        while self._fd >= 0 or self._open_next():
            data = os.read(self._fd, CHUNK)
            if not data:
                if not self._open_next():
                    return []
                continue
            *lines, self._rest = (self._rest + data).split(b"\n")
            found = [record for line in lines if (record := parse(self._name, line)) is not None]
            if found:
                return found
        return []

    def _open_next(self) -> bool:
        """The file after the one that we have read; False where that is the current one."""
        files = self._files()
        if not files:
            return False
        own = None if self._fd < 0 else os.fstat(self._fd).st_ino
        inodes = [inode for inode, _ in files]
        index = inodes.index(own) if own in inodes else len(files)
        if index == 0:
            return False
        fd = _open(files[index - 1][1])
        if fd < 0:  # rotated away under us: the next look finds it under its new name
            return False
        self.close()
        self._fd, self._rest = fd, b""
        return True

    def _files(self) -> list[tuple[int, Path]]:
        """Those that there are, the current one first."""
        found: list[tuple[int, Path]] = []
        for number in count():
            path = self._path if not number else self._path.with_name(f"{self._path.name}.{number}")
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                if number:
                    return found
                continue
            if stat.S_ISREG(status.st_mode):
                found.append((status.st_ino, path))
        raise AssertionError("unreachable")


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return -1


def so_far(readers: Iterable[LogReader], *, since: str = "", tail: int | None = None) -> Iterator[Record]:
    """What the files hold now, by time. The readers stand at their ends afterwards.

    Args:
        since: an RFC 3339 time in UTC; nothing older.
        tail: only so many of the last records, 0 to `MAX_TAIL`.
    """
    ordered: Iterator[Record] = merge(*map(_all, readers), key=_time)
    wanted = (record for record in ordered if not since or record.time.rstrip("Z") >= since.rstrip("Z"))
    return wanted if tail is None else iter(_last(wanted, tail))


def _last(records: Iterable[Record], number: int) -> deque[Record]:
    kept: deque[Record] = deque()
    size = 0
    for record in records:
        kept.append(record)
        size += len(record.text)
        while kept and (len(kept) > number or size > MAX_TAIL_BYTES):
            size -= len(kept.popleft().text)
    return kept


def _all(reader: LogReader) -> Iterator[Record]:
    while records := reader.read():
        yield from records


def _time(record: Record) -> str:
    return record.time
