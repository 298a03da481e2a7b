"""A service's log file: append, rotate by size and age, survive a full disk.

The format is the CRI's, one record a line, so that the tools that read Kubernetes' logs read these (`as_json` is another, of
Docker's)::

    2026-01-02T03:04:05.678901Z stdout F a whole line
    2026-01-02T03:04:05.678901Z stderr P a piece; no newline follows it

The workload's bytes are kept as they came: what a stream wrote is its records' contents, with a newline after each F. The time
is that of the reading.

Writes are synchronous: one write(2) to the page cache for each piece of output, and never an fsync. A workload that
makes dirty pages faster than the disk takes them is slowed by the kernel, and the caller with it; a thread per write
would cost more than what it hides.

Source: kubernetes design-proposals-archive node/kubelet-cri-logging.md; cri-api constants.go (LogTagPartial, LogTagFull).
"""

from __future__ import annotations

import calendar
import errno
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from tinyvisor.runtime import rotation
from tinyvisor.runtime.stage import Place

Stream = Literal["stdout", "stderr"]

MAX_PIECE: Final = 16 << 10
"""A longer line is cut into pieces of so many bytes, as containerd does."""

# O_NONBLOCK: a FIFO in the file's place must not make open(2) wait for a reader.
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Piece(NamedTuple):
    """A line without its newline, or a part of one.

    Attributes:
        data: at most `MAX_PIECE` bytes.
        full: a newline followed it.
    """

    data: bytes
    full: bool


Encoder: TypeAlias = Callable[[bytes, Stream, Piece], bytes]
"""A record of a time, as `timestamp` makes it, a stream and a piece; one line."""


def as_cri(time: bytes, stream: Stream, piece: Piece) -> bytes:
    """``2026-01-02T03:04:05.678901Z stdout F a whole line``"""
    return b"%s %s %c %s\n" % (time, stream.encode(), b"F" if piece.full else b"P", piece.data)


def as_json(time: bytes, stream: Stream, piece: Piece) -> bytes:
    """Docker's json-file: bytes that are no UTF-8 are replaced, a whole line has its newline."""
    text = piece.data.decode("utf-8", "replace") + ("\n" if piece.full else "")
    return json.dumps({"log": text, "stream": stream, "time": time.decode()}).encode() + b"\n"


def as_raw(time: bytes, stream: Stream, piece: Piece) -> bytes:
    """Both streams as they came."""
    return piece.data + b"\n" if piece.full else piece.data


class Lines:
    """Cuts a stream of chunks into pieces. Holds at most `MAX_PIECE` bytes."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[Piece]:
        """The pieces that `chunk` completes."""
        *whole, rest = (self._rest + chunk).split(b"\n")
        pieces: list[Piece] = []
        for line in whole:  # up to one for every byte: the usual case is kept short
            if len(line) <= MAX_PIECE:
                pieces.append(Piece(line, True))
            else:
                pieces += _cut(line, full=True)
        # A rest of exactly MAX_PIECE stays: its newline may be next, and then it is a whole line.
        *parts, last = _cut(rest, full=False)
        self._rest = last.data
        return pieces + parts

    def flush(self) -> list[Piece]:
        """What the stream ended with after its last newline, if anything."""
        rest, self._rest = self._rest, b""
        return [Piece(rest, False)] if rest else []


def _cut(line: bytes, *, full: bool) -> list[Piece]:
    if len(line) <= MAX_PIECE:
        return [Piece(line, full)]
    parts = [line[start : start + MAX_PIECE] for start in range(0, len(line), MAX_PIECE)]
    return [Piece(part, False) for part in parts[:-1]] + [Piece(parts[-1], full)]


@dataclass(frozen=True, slots=True)
class Lost:
    """Output that could not be written.

    Attributes:
        lines: pieces.
        bytes: of their contents.
        reason: the kernel's first answer in words, e.g. ``"No space left on device"``.
    """

    lines: int
    bytes: int
    reason: str

    @classmethod
    def of(cls, pieces: Iterable[Piece], reason: str) -> Lost:
        """These, with their newlines."""
        sizes = [len(piece.data) + piece.full for piece in pieces]
        return cls(len(sizes), sum(sizes), reason)


class LogFile:
    """`path`, `path`.1 … `path`.N, the newest without a number. Not shared: one writer at a time.

    With `compress`, the rotated ones become `path`.1.gz … by and by, in a thread; see `rotation`.

    A record is never torn over two files. A file is at most `max_size` bytes long, or one record where that is longer;
    a line of more than `MAX_PIECE` is several records, and a rotation may come between them.

    When it can't be written (disk full, quota, I/O error, directory gone), what comes is counted and thrown away, and
    the next `write` that works first says so in the file, once. Nothing is raised and nothing waits.

    Args:
        path: its directory is made (0750) where missing.
        max_size: bytes, > 0.
        max_files: the current one included, >= 1.
        max_age: seconds, > 0; a file whose first record is older is rotated before the next one. None: not for that.
        compress: the rotated ones.
        encode: how a record is written.
        clock: nanoseconds since the epoch.

    Raises:
        OSError: it can't be opened, is a symbolic link (ELOOP), or is not a regular file.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_size: int,
        max_files: int,
        max_age: float | None = None,
        compress: bool = False,
        encode: Encoder = as_cri,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.path = path
        self._max_size = max_size
        self._max_files = max_files
        self._max_age = None if max_age is None else round(max_age * 1e9)
        self._compress = compress
        self._encode = encode
        self._clock = clock
        self._fd = -1
        self._size = 0
        self._inode = 0
        self._born: int | None = None
        self._lost: Lost | None = None
        _make_directory(path.parent)
        self._open()
        if compress:
            rotation.compress_soon(path)  # what an earlier end has left

    def write(self, stream: Stream, pieces: Iterable[Piece]) -> Lost | None:
        """Appends `pieces`, all with the time of now. Returns what was lost before, once it works again."""
        now = self._clock()
        time = timestamp(now)
        batch = list(pieces)
        records = [self._encode(time, stream, piece) for piece in batch]
        if not records:
            return None
        recovered = self._lost
        if recovered is not None:
            records.insert(0, self._encode(time, "stderr", notice(recovered)))
        self._age(now)
        done, problem = self._append(records)
        if recovered is not None and done:
            self._lost, done = None, done - 1
        elif recovered is not None:
            recovered = None
        if problem is not None:
            self._lose(batch[done:], problem)
        return recovered

    def place(self) -> Place:
        """Where the next record goes, for `take_back`."""
        return Place(self._inode, self._size) if self._fd >= 0 else Place()

    def take_back(self, place: Place) -> None:
        """Removes what has been written since the log ended at `place`: by a writer that was killed meanwhile, one batch.

        Where that batch has been rotated more than once, it stays.
        """
        with suppress(OSError):  # then what it has written is there twice
            if place.inode == self._inode and self._fd >= 0:
                self._cut(self._fd, place.size)
                self._size = min(self._size, place.size)
                return
            before = os.open(self.path.with_name(f"{self.path.name}.1"), _FLAGS & ~(os.O_CREAT | os.O_APPEND))
            try:
                if os.fstat(before).st_ino == place.inode and self._fd >= 0:
                    self._cut(before, place.size)
                    self._cut(self._fd, 0)
                    self._size = 0
            finally:
                os.close(before)

    @staticmethod
    def _cut(fd: int, size: int) -> None:
        if os.fstat(fd).st_size > size:
            os.ftruncate(fd, size)

    def lose(self, lost: Lost) -> None:
        """Counts what somebody else threw away before it came here."""
        before = self._lost or Lost(0, 0, lost.reason)
        self._lost = Lost(before.lines + lost.lines, before.bytes + lost.bytes, before.reason)

    def close(self) -> Lost | None:
        """Closes the file. Returns what was lost and not yet told."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
        lost, self._lost = self._lost, None
        return lost

    def _age(self, now: int) -> None:
        """Rotates what is too old. Where that fails, `_append` finds the file closed, and says why."""
        if self._max_age is None:
            return
        if self._size and self._born is not None and now - self._born >= self._max_age:
            with suppress(OSError):
                self._rotate()
        if not self._size or self._born is None:
            self._born = now

    def _append(self, records: list[bytes]) -> tuple[int, OSError | None]:
        """Writes as much as it can in as few writes as rotation allows. Returns how many records are whole in a file."""
        done = 0
        try:
            while done < len(records):
                if self._fd < 0:
                    self._open()
                count, length = self._fitting(records, done)
                if not count:
                    self._rotate()
                    continue
                self._write_all(b"".join(records[done : done + count]), length)
                done += count
        except OSError as error:
            return done, error
        return done, None

    def _fitting(self, records: list[bytes], start: int) -> tuple[int, int]:
        """How many records from `start` on fit into the file, and their bytes. An empty file takes any record."""
        count = length = 0
        for record in islice(records, start, None):
            if self._size + length + len(record) > self._max_size and self._size + length > 0:
                break
            count, length = count + 1, length + len(record)
        return count, length

    def _write_all(self, data: bytes, length: int) -> None:
        """All of `data` or nothing: a full disk leaves no half record behind."""
        start, written = self._size, 0
        try:
            while written < length:
                written += os.write(self._fd, data[written:] if written else data)
        except OSError:
            if written:
                # Giving back blocks needs none. Where even that fails, the torn end stays and the size is still right.
                with suppress(OSError):
                    os.ftruncate(self._fd, start)
                    written = 0
            self._size = start + written
            raise
        self._size = start + length

    def _open(self) -> None:
        fd = os.open(self.path, _FLAGS, 0o640)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file", str(self.path))
        self._fd, self._size, self._inode = fd, status.st_size, status.st_ino
        self._born = _first_time(self.path) if self._size and self._max_age is not None else None

    def _rotate(self) -> None:
        """Renames the files one number up; those above `max_files`, also of an earlier and larger setting, go first.

        Where a rename fails, the current file stays closed and the next write tries again: growing without bound would
        be worse than losing output.
        """
        os.close(self._fd)
        self._fd = -1
        rotation.shift(self.path, self._max_files)
        self._open()
        if self._compress:
            rotation.compress_soon(self.path)

    def _lose(self, pieces: list[Piece], problem: OSError) -> None:
        self.lose(Lost.of(pieces, problem.strerror or str(problem)))


def timestamp(nanoseconds: int) -> bytes:
    """RFC 3339 in UTC with microseconds: ``2026-01-02T03:04:05.678901Z``."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode() + b".%06dZ" % (rest // 1000)


def notice(lost: Lost) -> Piece:
    """A line for where they are missing."""
    return Piece(f"tinyvisor: {lost.lines} lines ({lost.bytes} bytes) are missing here: {lost.reason}".encode(), True)


_TIME: Final = re.compile(rb'(?:^|"time": ?")(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)')


def _first_time(path: Path) -> int | None:
    """Of its first record, in nanoseconds since the epoch; None where it has none."""
    with suppress(OSError, ValueError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            found = _TIME.search(file.readline(8 * MAX_PIECE))
        if found is not None:
            return calendar.timegm(time.strptime(found[1].decode(), "%Y-%m-%dT%H:%M:%S")) * 1_000_000_000
    return None


def _make_directory(path: Path) -> None:
    if not path.is_dir():
        _make_directory(path.parent)
        with suppress(FileExistsError):  # by somebody else, just now; if it is a file, open() says so
            os.mkdir(path, 0o750)
