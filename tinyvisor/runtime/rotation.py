"""Names of rotated log files, and their compression.

`path`.1 is the newest of them, and has been `path` before. A thread of its own makes `path`.N.gz of `path`.N and renames it into
its place in one step, so that a reader finds one of both. What the file was told apart by is in the header of the .gz (FNAME,
RFC 1952): a reader that had got so far in `path`.N knows by it where to go on.
"""

from __future__ import annotations

import errno
import gzip
import os
import re
import stat
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_CHUNK: Final = 256 << 10
_LEVEL: Final = 6
_HEADER: Final = 10 + 21 + 9
_FIRST: Final = 256  # bytes of a file's first line that are looked at
_FNAME: Final = 8

_names = threading.Lock()
"""Held while names change: a file that is compressed meanwhile may get another one."""

_lock = threading.Lock()
_pending: dict[Path, Future[None]] = {}
_executor: ThreadPoolExecutor | None = None


def numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def compressed(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}.gz")


def shift(path: Path, max_files: int) -> None:
    """Gives every file the next number; those that come to `max_files`, also of an earlier and larger setting, go first.

    Raises:
        OSError: a rename failed; no file is lost.
    """
    with _names:
        last = max(1, max_files - 1)
        for number in count(last):
            if not _unlink(numbered(path, number)) + _unlink(compressed(path, number)) and number > last:
                break
        if max_files == 1:
            _unlink(path)
            return
        for number in range(last - 1, 0, -1):
            for name in (numbered, compressed):
                with suppress(FileNotFoundError):
                    os.rename(name(path, number), name(path, number + 1))
        with suppress(FileNotFoundError):
            os.rename(path, numbered(path, 1))


def compress_soon(path: Path) -> None:
    """Compresses what there is of `path`.N, one file after another, in a thread: never more than one task for a path waits."""
    global _executor
    with _lock:
        if path in _pending and not _pending[path].running():
            return
        if _executor is None:
            from concurrent.futures import ThreadPoolExecutor  # here, since few need it

            _executor = ThreadPoolExecutor(1, thread_name_prefix="tinyvisor-log")
        task = _pending[path] = _executor.submit(_compress_all, path)
    task.add_done_callback(lambda done: _forget(path, done))


def wait_compressed(path: Path) -> None:
    """Until nothing waits to be compressed of what had been rotated before."""
    task = _pending.get(path)
    if task is not None:
        task.result()


def _forget(path: Path, task: Future[None]) -> None:
    with _lock:
        if _pending.get(path) is task:
            del _pending[path]


def _compress_all(path: Path) -> None:
    partial = path.with_name(f"{path.name}.gz.partial")
    for number in count(1):
        if not (numbered(path, number).exists() or compressed(path, number).exists()):
            return
        try:
            _compress(path, number, partial)
        except FileNotFoundError:
            continue  # it is compressed already, or has just got another number, or is gone
        except OSError:
            _unlink(partial)  # e.g. a full disk: what is there stays as it is, until the next rotation
            return


def _compress(path: Path, number: int, partial: Path) -> None:
    fd = os.open(numbered(path, number), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as source:
        inode = os.fstat(fd).st_ino
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        identity = _identity(fd) or ""
        with open(os.open(partial, flags, 0o640), "wb") as target, gzip.GzipFile(identity, "wb", _LEVEL, target) as packed:
            while chunk := source.read(_CHUNK):
                packed.write(chunk)
        with _names:
            for now in count(1):
                found = _inode(numbered(path, now))
                if found == inode:
                    os.rename(partial, compressed(path, now))
                    os.unlink(numbered(path, now))
                    return
                if found is None and _inode(compressed(path, now)) is None:
                    os.unlink(partial)
                    raise FileNotFoundError(errno.ENOENT, "rotated away", str(path))


# ---- reading ----


def files(path: Path) -> Iterator[tuple[str, Path]]:
    """Of a log, the newest first, without the current one as long as that is empty: which file it is, or was before it was
    compressed, and its name now."""
    for number in count():
        name = numbered(path, number) if number else path
        identity = _read_from(name, _identity)
        if identity is None and number:
            name = compressed(path, number)
            identity = _read_from(name, _origin)
        if identity is not None:
            yield identity, name
        elif number:
            return


class _Unpacked(gzip.GzipFile):
    """One that closes what it reads."""

    def __init__(self, fd: int) -> None:
        self._packed = os.fdopen(fd, "rb")
        super().__init__(fileobj=self._packed, mode="rb")

    def close(self) -> None:
        super().close()
        self._packed.close()


class Readable(Protocol):
    """A file to be read from its start."""

    def read(self, size: int, /) -> bytes | None: ...

    def close(self) -> None: ...


def open_log(path: Path, identity: str) -> Readable | None:
    """What is in it, unpacked; None where that one has just got another name."""
    packed = path.suffix == ".gz"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    if (_origin if packed else _identity)(fd) != identity:
        os.close(fd)
        return None
    return _Unpacked(fd) if packed else os.fdopen(fd, "rb", buffering=0)


def _inode(path: Path) -> int | None:
    """Of a regular file."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_ino if path.is_file() and not path.is_symlink() else None


def _read_from(path: Path, read: Callable[[int], str | None]) -> str | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return None
        raise
    try:
        return read(fd) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)


def _identity(fd: int) -> str | None:
    """What a file is told apart by; None as long as it is empty. The inode alone would not do: what has been compressed is
    removed, and file systems give its number to the next file at once. Where they don't say when a file was made, its first line
    tells, which has the time, but for a raw one."""
    from tinyvisor.runtime.syscalls import birth_time  # here, since ctypes takes its time

    status, born = os.fstat(fd), birth_time(fd)
    if not status.st_size:
        return None
    mark = b"%d" % born if born else os.pread(fd, _FIRST, 0).partition(b"\n")[0]
    return f"{status.st_ino}-{zlib.crc32(mark):08x}"


def _origin(fd: int) -> str | None:
    """That of the file that this was made from."""
    header = os.pread(fd, _HEADER, 0)
    name = header[10:].partition(b"\0")[0]
    known = header[3:4] == bytes([_FNAME]) and re.fullmatch(rb"[0-9]+-[0-9a-f]{8}", name)
    return name.decode() if known else str(os.fstat(fd).st_ino)


def _unlink(path: Path) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True
