"""A service's log file: append, rotate by size and age, survive a full disk.

The format is the CRI's, one record a line, so that the tools that read Kubernetes' logs read these (`as_json` is another, of
Docker's)::

    2026-01-02T03:04:05.678901Z stdout F a whole line
    2026-01-02T03:04:05.678901Z stderr P a piece; no newline follows it

The workload's bytes are kept as they came: what a stream wrote is its records' contents, with a newline after each F. The time
is that of the reading: what was read at once has the same.

Output comes in blocks, which become records by a few operations over all of one, so that a line costs some tens of nanoseconds;
an object for each would cost a microsecond.

Writes are synchronous: one write(2) to the page cache for each block, and never an fsync. A workload that makes dirty pages
faster than the disk takes them is slowed by the kernel, and the caller with it; a thread per write would cost more than what
it hides.

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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from tinyvisor.runtime import rotation
from tinyvisor.runtime.stage import Place

Stream = Literal["stdout", "stderr"]

Block: TypeAlias = bytes
"""Output of one stream, never empty: whole lines with their newlines, none of more than `MAX_PIECE` bytes besides; or a part of a
longer line, or of an unfinished one, without a newline."""

MAX_PIECE: Final = 16 << 10
"""A longer line is cut into parts of so many bytes, as containerd does."""

_MOST_EACH: Final = 80
"""Bytes that a byte, a newline, becomes with `as_json`; less otherwise."""

_LEAST: Final = 4 << 10  # fewer at once would cost more than what a log of such small files is worth

# O_NONBLOCK: a FIFO in the file's place must not make open(2) wait for a reader.
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

Encoder: TypeAlias = Callable[[bytes, Stream, Block], bytes]
"""The records of a time, as `timestamp` makes it, a stream and a block: a line for each of its lines."""


def as_cri(time: bytes, stream: Stream, block: Block) -> bytes:
    """``2026-01-02T03:04:05.678901Z stdout F a whole line``"""
    head = b"%s %s " % (time, stream.encode())
    if not block.endswith(b"\n"):
        return b"%sP %s\n" % (head, block)
    head += b"F "
    return head + block[:-1].replace(b"\n", b"\n" + head) + b"\n"


def as_json(time: bytes, stream: Stream, block: Block) -> bytes:
    """Docker's json-file: bytes that are no UTF-8 are replaced, a whole line has its newline."""
    tail = b'", "stream": "%s", "time": "%s"}\n' % (stream.encode(), time)
    text = _escape(block.removesuffix(b"\n")).replace(b"\n", rb"\n" + tail + _JSON_HEAD)
    return _JSON_HEAD + text + (rb"\n" if block.endswith(b"\n") else b"") + tail


_JSON_HEAD: Final = b'{"log": "'
_PLAIN: Final = bytes(range(ord(" "), 0x7F)) + b"\t\n"


def _escape(lines: bytes) -> bytes:
    """As JSON has it between quotes, but for the newlines, which stay."""
    if not lines.translate(None, _PLAIN):  # several times as fast
        return lines.replace(b"\\", rb"\\").replace(b'"', rb"\"").replace(b"\t", rb"\t")
    text = json.dumps(lines.decode("utf-8", "replace"))[1:-1].encode()
    # Its newlines are now a backslash and an n, which is also how a backslash's own escape and an n after it go on.
    return text.replace(rb"\\", b"\0").replace(rb"\n", b"\n").replace(b"\0", rb"\\")


def as_raw(time: bytes, stream: Stream, block: Block) -> bytes:
    """Both streams as they came."""
    return block


class Lines:
    """Cuts a stream of chunks into blocks. Holds at most `MAX_PIECE` bytes."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[Block]:
        """The blocks that `chunk` completes: one, unless it has no newline or a line that is too long."""
        data = self._rest + chunk
        blocks: list[Block] = []
        start = end = 0  # of the next block, as far as it is known to be whole lines
        while len(data) - end > MAX_PIECE:
            newline = data.rfind(b"\n", end, end + MAX_PIECE + 1)
            if newline >= 0:
                end = newline + 1
            else:
                blocks += (data[start:end], data[end : end + MAX_PIECE])
                start = end = end + MAX_PIECE
        # A rest of exactly MAX_PIECE stays: its newline may be next, and then it is a whole line.
        end = data.rfind(b"\n", end) + 1 or end
        blocks.append(data[start:end])
        self._rest = data[end:]
        return [block for block in blocks if block]

    def flush(self) -> list[Block]:
        """What the stream ended with after its last newline, if anything."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


@dataclass(frozen=True, slots=True)
class Lost:
    """Output that could not be written.

    Attributes:
        lines: and parts of lines.
        bytes: of them, with their newlines.
        reason: the kernel's first answer in words, e.g. ``"No space left on device"``.
    """

    lines: int
    bytes: int
    reason: str

    @classmethod
    def of(cls, block: Block, reason: str) -> Lost:
        """All of `block`."""
        return cls(block.count(b"\n") or 1, len(block), reason)

    def after(self, before: Lost | None) -> Lost:
        """Both, for the first one's reason."""
        return self if before is None else Lost(before.lines + self.lines, before.bytes + self.bytes, before.reason)


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

    Attributes:
        most: bytes that are better written at once at most: what they become is no more than `max_size`, unless that is very
            small, so that `take_back` finds all of it.

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
        self.most: int = max(_LEAST, max_size // _MOST_EACH)
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

    def write(self, stream: Stream, block: Block) -> Lost | None:
        """Appends `block`, all of it with the time of now. Returns what was lost before, once it works again."""
        now = self._clock()
        time = timestamp(now)
        self._age(now)
        recovered = self._lost
        first = self._encode(time, "stderr", notice(recovered)) if recovered is not None else b""
        records = first + self._encode(time, stream, block)
        done, problem = self._append(records)
        if done >= len(first):
            self._lost = None
        else:
            recovered = None
        if problem is not None:
            self._lose(block.split(b"\n", records.count(b"\n", len(first), done))[-1], problem)
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
        self._lost = lost.after(self._lost)

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

    def _append(self, records: bytes) -> tuple[int, OSError | None]:
        """Writes as much as it can in as few writes as rotation allows. Returns how many bytes are in a file: whole records."""
        done = 0
        try:
            while done < len(records):
                if self._fd < 0:
                    self._open()
                end = self._fitting(records, done)
                if end == done:
                    self._rotate()
                else:
                    self._write_all(records[done:end])
                    done = end
        except OSError as error:
            return done, error
        return done, None

    def _fitting(self, records: bytes, start: int) -> int:
        """Where those from `start` on end that fit into the file. An empty file takes any record."""
        room = max(0, self._max_size - self._size)
        if len(records) - start <= room:
            return len(records)
        end = records.rfind(b"\n", start, start + room) + 1
        if not end and not self._size:
            end = records.find(b"\n", start) + 1 or len(records)
        return end or start

    def _write_all(self, data: bytes) -> None:
        """All of `data` or nothing: a full disk leaves no half record behind."""
        start, written = self._size, 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError:
            if written:
                # Giving back blocks needs none. Where even that fails, the torn end stays and the size is still right.
                with suppress(OSError):
                    os.ftruncate(self._fd, start)
                    written = 0
            self._size = start + written
            raise
        self._size = start + written

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

    def _lose(self, block: Block, problem: OSError) -> None:
        self.lose(Lost.of(block, problem.strerror or str(problem)))


def timestamp(nanoseconds: int) -> bytes:
    """RFC 3339 in UTC with microseconds: ``2026-01-02T03:04:05.678901Z``."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode() + b".%06dZ" % (rest // 1000)


def notice(lost: Lost) -> Block:
    """A line for where they are missing."""
    return f"tinyvisor: {lost.lines} lines ({lost.bytes} bytes) are missing here: {lost.reason}\n".encode()


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
