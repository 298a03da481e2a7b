"""Reads the log files that `runtime.logfile` writes, across their rotations, while they grow.

The file is the buffer: a reader that is slow holds up nobody, and loses what rotation deletes meanwhile, nothing else. Where that
is, a line of ours says so.
"""

from __future__ import annotations

import errno
import json
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from heapq import merge
from pathlib import Path
from typing import Final, NamedTuple

from tinyvisor.runtime import rotation

CHUNK: Final = 64 << 10
MAX_TAIL: Final = 10_000
MAX_TAIL_BYTES: Final = 8 << 20
"""What of the last lines is held in memory at most; older ones go."""


class Record(NamedTuple):
    """A line of a service's output, or a piece of one.

    Attributes:
        time: RFC 3339 in UTC, as it is in the file; empty where that has none.
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
    """A line of a log file, in either format; None where it is none of ours, such as one torn by a full disk."""
    if line.startswith(b"{"):
        return _parse_json(name, line)
    parts = line.split(b" ", 3)
    if len(parts) != 4 or parts[1] not in (b"stdout", b"stderr") or parts[2] not in (b"F", b"P") or not parts[0].isascii():
        return None
    return Record(parts[0].decode(), name, parts[1].decode(), parts[2] == b"F", parts[3])


def _parse_json(name: str, line: bytes) -> Record | None:
    try:
        found = json.loads(line)
        text, stream, time = found["log"], found["stream"], found["time"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not (isinstance(text, str) and isinstance(time, str) and time.isascii() and stream in ("stdout", "stderr")):
        return None
    return Record(time, name, stream, text.endswith("\n"), text.removesuffix("\n").encode("utf-8", "surrogatepass"))


MISSING: Final = b"tinyvisor: output is missing here: it was rotated away before it was read"


class LogReader:
    """Reads one instance's log from the oldest file that is there. `close` it.

    Where it comes to a file and is known to have missed one before, it puts in a record of `MISSING`. Of a log that keeps one
    file only, that is never known.

    Args:
        raw: the file has the output and nothing else: every line is taken for one of stdout.
    """

    def __init__(self, path: Path, *, raw: bool = False) -> None:
        self._raw = raw
        self._name = path.name.removesuffix(".log")
        self._path = path
        self._file: rotation.Readable | None = None
        self._identity: str | None = None
        self._next: str | None = None  # the file after that one, once there is one
        self._missed = False
        self._rest = b""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self) -> list[Record]:
        """What comes next, some `CHUNK` bytes; empty when there is nothing yet.

        Raises:
            OSError: a file can't be read.
        """
        while self._file is not None or self._open_next():
            self._note_next()
            data = self._read_file()
            if not data:
                if not self._open_next():
                    return []
                continue
            *lines, self._rest = (self._rest + data).split(b"\n")
            found = [record for line in lines if (record := self._parse(line)) is not None]
            if found and self._missed:
                self._missed = False
                return [Record(found[0].time, self._name, "stderr", True, MISSING), *found]
            if found:
                return found
        return []

    def _note_next(self) -> None:
        """As long as ours is still there: which one it was that came next can't be told later."""
        if self._next is None:
            identities = [identity for identity, _ in rotation.files(self._path)]
            if self._identity in identities[1:]:
                self._next = identities[identities.index(self._identity) - 1]

    def _parse(self, line: bytes) -> Record | None:
        return Record("", self._name, "stdout", True, line) if self._raw else parse(self._name, line)

    def _read_file(self) -> bytes:
        assert self._file is not None
        try:
            return self._file.read(CHUNK) or b""
        except (EOFError, zlib.error) as error:  # not ours, or damaged
            raise OSError(errno.EIO, f"{self._path.name}.*.gz can't be unpacked: {error}") from None

    def _open_next(self) -> bool:
        """The file after the one that we have read; False where that is the current one."""
        files = list(rotation.files(self._path))
        identities = [identity for identity, _ in files]
        index = identities.index(self._identity) if self._file is not None and self._identity in identities else len(files)
        if index == 0:
            return False
        identity, path = files[index - 1]
        file = rotation.open_log(path, identity)
        if file is None:  # rotated away under us: the next look finds it under its new name
            return False
        if self._file is not None and self._identity not in identities:  # what came between is gone, but for the very next one
            self._missed = self._missed or (identity != self._next if self._next is not None else len(files) > 1)
        self.close()
        self._file, self._identity, self._next, self._rest = file, identity, None, b""
        return True


def so_far(readers: Iterable[LogReader], *, since: str = "", until: str = "", tail: int | None = None) -> Iterator[Record]:
    """What the files hold now, by time. The readers stand at their ends afterwards.

    Args:
        since, until: RFC 3339 times in UTC; nothing older, nothing younger, but what has no time.
        tail: only so many of the last records, 0 to `MAX_TAIL`.
    """
    ordered: Iterator[Record] = merge(*map(_all, readers), key=_time)
    wanted = (record for record in ordered if not record.time or is_between(record.time, since, until))
    return wanted if tail is None else iter(_last(wanted, tail))


def is_between(time: str, since: str, until: str) -> bool:
    """Of RFC 3339 times in UTC, with any number of digits behind the second; an empty one is no bound."""
    time = time.rstrip("Z")
    return time >= since.rstrip("Z") and (not until or time <= until.rstrip("Z"))


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
