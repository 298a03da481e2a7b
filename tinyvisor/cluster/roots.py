"""Root file systems on a node: each by the SHA-256 of its tarball, received and unpacked once for all workers and batches.

``<digest>/rootfs`` is there when it is whole (`runtime.unpack`). Who receives it holds the flock of ``<digest>.receiving``;
who uses it holds a shared flock of its directory, and what nobody uses is removed, oldest first, when there is too much. Locks
end with their holder, so what a killed process was at is found and removed by the next one. Blocking; nothing here waits.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from tinyvisor.errors import TinyvisorError
from tinyvisor.runtime.idmap import IdMap
from tinyvisor.runtime.unpack import entry_name, remove, unpack

LIMIT: Final = 32 << 30
"""Bytes of unpacked roots that are kept at most, and of one tarball; and no more than half of what the disk has room for."""

_DIGEST: Final = re.compile("[0-9a-f]{64}")
_ENTRY: Final = re.compile("[0-9a-f]{64}(-[0-9]+)?")


class RootRefused(TinyvisorError):
    """A root can't be had; nothing of it is left."""


def check_digest(text: str) -> str:
    """`text`, which becomes a file's name. Raises ValueError."""
    if not _DIGEST.fullmatch(text):
        raise ValueError(f"not a SHA-256: {text!r:.100}")
    return text


class Roots:
    """The cache of one user on this host.

    Args:
        directory: made with mode 0700: roots have set-uid programs.
        ids: as `unpack` has it.
        limit: instead of `LIMIT`.
    """

    def __init__(self, directory: Path, ids: IdMap | None = None, *, limit: int = LIMIT) -> None:
        self.directory: Path = directory
        self.ids: IdMap | None = ids
        self._limit = limit

    def use(self, digest: str) -> Root | None:
        """A root that is there, which stays for as long as it is in use; None where it is not."""
        entry = self._entry(digest)
        fd = _lock(entry, fcntl.LOCK_SH, os.O_RDONLY | os.O_DIRECTORY)
        if fd is None:
            return None
        os.utime(fd)
        return Root(entry / "rootfs", fd)

    def receive(self, digest: str) -> Reception | None:
        """Whoever gets this is to bring the tarball. None: another process has got it, and may have the root soon, or not."""
        self._entry(digest)
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = self.directory / f"{digest}.receiving"
        fd = _lock(lock, fcntl.LOCK_EX, os.O_RDWR | os.O_CREAT)
        return None if fd is None else Reception(self, digest, lock, fd)

    def unpack(self, tarball: Path, digest: str) -> Root:
        """The root of a tarball that has come. Minutes.

        Raises:
            RootfsError: as `unpack`.
            RootRefused: there is no room; roots that nobody uses have been removed.
        """
        with self._limited() as limit:
            path = unpack(tarball, self.directory, ids=self.ids, digest=digest, max_bytes=limit)
            (path.parent / "size").write_text(str(_size(path)))
            root = self.use(digest)
            assert root is not None
            if self.prune(limit) > limit:
                root.close()
                self.prune(0, only=path.parent.name)
                raise RootRefused(f"the roots in use on this node and this one take more than {limit} bytes")
        return root

    @contextmanager
    def _limited(self) -> Iterator[int]:
        """What may be kept now. Under a lock: those who remove nothing until all is measured would remove nothing."""
        fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield self.room(sum(map(_size_of, self._entries())))
        finally:
            os.close(fd)

    def room(self, own: int) -> int:
        """Bytes that something of ours may have which has `own` already."""
        found = os.statvfs(self.directory)
        return min(self._limit, (found.f_bavail * found.f_frsize + own) // 2)

    def prune(self, limit: int, *, only: str = "") -> int:
        """Removes what nobody uses until the rest is within `limit`, and what killed processes have left.

        Args:
            only: the name of an entry: no other is removed.

        Returns:
            how many bytes are left.
        """
        self._remove_leftovers()
        entries = sorted(self._entries(), key=_used)
        left = sum(map(_size_of, entries))
        for entry in entries:
            if left <= limit:
                break
            size = _size_of(entry)
            if (not only or entry.name == only) and self._remove(entry):
                left -= size
        return left

    def _remove(self, entry: Path) -> bool:
        fd = _lock(entry, fcntl.LOCK_EX, os.O_RDONLY | os.O_DIRECTORY)
        if fd is None:
            return False
        try:
            gone = entry.with_name(f"{entry.name}.{secrets.token_hex(4)}.gone")
            entry.rename(gone)
        finally:
            os.close(fd)
        remove(gone)
        return True

    def _remove_leftovers(self) -> None:
        for path in self._paths():
            if path.name.endswith(".gone"):
                remove(path)
            elif path.name.endswith((".part", ".tmp", ".lock")):
                digest = path.name[:64]
                if _DIGEST.fullmatch(digest) and (reception := self.receive(digest)) is not None:
                    try:
                        _remove_any(path)
                    finally:
                        reception.close()

    def _entries(self) -> list[Path]:
        return [path for path in self._paths() if _ENTRY.fullmatch(path.name)]

    def _paths(self) -> list[Path]:
        with suppress(FileNotFoundError):
            return list(self.directory.iterdir())
        return []

    def _entry(self, digest: str) -> Path:
        return self.directory / entry_name(check_digest(digest), self.ids)


class Root:
    """A root in use."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path: Path = path
        self._fd = fd

    def close(self) -> None:
        """No container has it any more."""
        os.close(self._fd)


class Reception:
    """A tarball on its way, until `close`: then nothing of it is left but the root that was made of it.

    Attributes:
        problem: why what comes is no good; empty where it is.
    """

    def __init__(self, roots: Roots, digest: str, lock: Path, fd: int) -> None:
        self.digest: str = digest
        self.problem: str = ""
        self._roots, self._lock, self._fd = roots, lock, fd
        self._hash, self._size = hashlib.sha256(), 0
        self._part = roots.directory / f"{digest}.part"
        self._file: BinaryIO | None = None

    def add(self, piece: bytes) -> None:
        """The next piece."""
        if self.problem:
            return
        try:
            if self._file is None:
                self._part.unlink(missing_ok=True)
                self._file = os.fdopen(os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")
            room = self._roots.room(self._size)
            self._size += len(piece)
            if self._size > room:
                self.problem = f"its tarball has more than the {room} bytes that there is room for"
                return
            self._file.write(piece)
            self._hash.update(piece)
        except OSError as error:
            self.problem = f"{self._roots.directory}: {error.strerror}"

    def finish(self) -> Root:
        """All pieces are there.

        Raises:
            RootRefused: it is no good.
            RootfsError: as `unpack`.
        """
        if self._file is not None:
            self._file.close()
        if not self.problem and self._hash.hexdigest() != self.digest:
            self.problem = "its tarball was changed on its way"
        if self.problem:
            raise RootRefused(self.problem)
        return self._roots.unpack(self._part, self.digest)

    def close(self) -> None:
        """Others may bring it."""
        with suppress(OSError):
            if self._file is not None:
                self._file.close()
        self._part.unlink(missing_ok=True)
        self._lock.unlink(missing_ok=True)
        os.close(self._fd)


def _lock(path: Path, kind: int, flags: int) -> int | None:
    """An fd with the lock; None where somebody else has it, or nothing is there (any more)."""
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False)):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _used(entry: Path) -> int:
    with suppress(FileNotFoundError):
        return entry.stat().st_mtime_ns
    return 0


def _size_of(entry: Path) -> int:
    """Of an entry; one whose maker was killed before it was measured is measured now."""
    with suppress(OSError, ValueError):
        return int((entry / "size").read_text())
    return _size(entry / "rootfs")


def _size(tree: Path) -> int:
    """Bytes of disk that it takes."""
    total = 0
    for directory, _, names in os.walk(tree):
        for name in (".", *names):
            with suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512
    return total


def _remove_any(path: Path) -> None:
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(path.lstat().st_mode):
            remove(path)
        else:
            path.unlink()
