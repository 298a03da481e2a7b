"""A job's working directory: a tmpfs of its own, filled before the job starts and read when it has ended.

What is in it after a start is the job's, so nothing is looked up but beneath it, and no link is followed (openat2(2)
RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS): a planted link, FIFO or device is named, never opened through.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

from tinyvisor.errors import SpecError
from tinyvisor.runtime.syscalls import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    new_tmpfs,
    openat2,
)

DEFAULT_DIRECTORY = "/work"
MAX_DEPTH = 64
"""Directories below each other that a ``**`` looks into."""

_STRICT = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
_KINDS = (
    (stat.S_ISLNK, "a symbolic link"), (stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip


class Workspace:
    """The directory, mounted nowhere until a container gets it.

    Attributes:
        fd: of its root.
        template: where a copy of it can be had in the launcher's mount namespace; "" where it can be used once only.
    """

    def __init__(self, *, size: int, inodes: int, mode: int = 0o755, template: str = "") -> None:
        """Args: bytes and inodes at most; mode of the root; see Attributes. Raises OSError."""
        self.fd: int = new_tmpfs(size=size, inodes=inodes, mode=mode)
        self.template: str = template

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    # ---- in ----

    def own(self, uid: int, gid: int) -> None:
        """Gives its root to a user."""
        os.chown(f"/proc/self/fd/{self.fd}", uid, gid)

    def put(self, files: Mapping[str, bytes | Path], uid: int, gid: int) -> None:
        """Writes files, and the directories that lead to them, as that user's. What has a file's name is replaced.

        Raises:
            OSError: with the path: no space or inodes left, a link is in the way, a source can't be read.
            SpecError: a source is no regular file.
        """
        for path, content in files.items():
            try:
                self._put(path, content, uid, gid)
            except OSError as exc:
                source = isinstance(content, str | os.PathLike) and exc.filename == os.fspath(content)
                raise OSError(exc.errno, exc.strerror, exc.filename if source else path) from None

    def _put(self, path: str, content: bytes | Path, uid: int, gid: int) -> None:
        *directories, name = [part for part in path.split("/") if part not in ("", ".")]
        with self._make(directories, uid, gid) as parent:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=parent)
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=parent)
            with open(fd, "wb", buffering=0) as file:
                os.fchown(fd, uid, gid)
                os.fchmod(fd, 0o644)  # whatever the program's umask is
                if isinstance(content, bytes):
                    _write(file, content)
                    return
                with _open_source(content) as source:
                    os.fchmod(fd, stat.S_IMODE(os.fstat(source.fileno()).st_mode) & 0o755 | 0o644)
                    while block := source.read(1 << 20):
                        _write(file, block)

    @contextlib.contextmanager
    def _make(self, directories: list[str], uid: int, gid: int) -> Iterator[int]:
        fd = os.dup(self.fd)
        try:
            for name in directories:
                try:
                    os.mkdir(name, 0o755, dir_fd=fd)
                    made = True
                except FileExistsError:
                    made = False
                fd, above = _open_directory(fd, name), fd
                os.close(above)
                if made:  # by fd: in a directory that is shared, the name may be another's by now
                    os.fchown(fd, uid, gid)
                    os.fchmod(fd, 0o755)
            yield fd
        finally:
            os.close(fd)

    # ---- out ----

    def collect(self, patterns: tuple[str, ...], limit: int) -> tuple[dict[str, bytes], dict[str, str]]:
        """The regular files that fit the patterns, `limit` bytes in all, and by path or pattern why something is not there."""
        files: dict[str, bytes] = {}
        missing: dict[str, str] = {}
        left = limit
        for pattern in patterns:
            found = False
            parts = [part for part in pattern.split("/") if part not in ("", ".")]
            for path in self._fitting(parts, missing):
                found = True
                if path in files or path in missing:
                    continue
                content = self._read(path, left)
                if isinstance(content, bytes):
                    files[path] = content
                    left -= len(content)
                else:
                    missing[path] = content
            if not found and pattern not in missing:
                missing[pattern] = "nothing fits it" if _is_pattern(pattern) else "does not exist"
        return files, missing

    def _fitting(self, parts: list[str], missing: dict[str, str]) -> Iterator[str]:
        with contextlib.closing(_Directory(self.fd)) as root:
            yield from _walk(root, parts, "", missing, 0)

    def _read(self, path: str, limit: int) -> bytes | str:
        """The content, or why there is none."""
        try:
            handle = openat2(self.fd, os.fsencode(path), os.O_PATH | os.O_NOFOLLOW, resolve=_STRICT)
            try:
                # Looked at before it is opened: that alone would wake a FIFO's writer, or reach a device's driver.
                status = os.fstat(handle)
                if not stat.S_ISREG(status.st_mode):
                    return _kind_of(status.st_mode)
                if status.st_size > limit:
                    return "larger than what may be collected"
                with open(os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC), "rb") as file:
                    return file.read(status.st_size)  # somebody who shares the directory may still be writing to it
            finally:
                os.close(handle)
        except OSError as exc:
            return _reason(exc)


class _Directory:
    """An open directory of the workspace."""

    def __init__(self, fd: int) -> None:
        self.fd = _open_directory(fd, ".")

    def below(self, name: str) -> _Directory:
        """Raises OSError where that is no directory, or one that can't be had without following a link."""
        return _Directory._at(_open_directory(self.fd, name))

    @classmethod
    def _at(cls, fd: int) -> _Directory:
        directory = cls.__new__(cls)
        directory.fd = fd
        return directory

    def names(self) -> list[str]:
        return sorted(os.listdir(self.fd))

    def is_directory(self, name: str) -> bool:
        with contextlib.suppress(OSError):
            return stat.S_ISDIR(os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode)
        return False

    def has(self, name: str) -> bool:
        with contextlib.suppress(OSError):
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
            return True
        return False

    def close(self) -> None:
        os.close(self.fd)


def _walk(directory: _Directory, parts: list[str], prefix: str, missing: dict[str, str], depth: int) -> Iterator[str]:
    """Paths that fit `parts`. Directories are what a last part names only where it is written out."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        if rest:
            yield from _walk(directory, rest, prefix, missing, depth)
        for name in directory.names():
            if directory.is_directory(name):
                yield from _descend(directory, name, parts, prefix, missing, depth, named=False)
            elif not rest:
                yield prefix + name
        return
    names = [name for name in directory.names() if fnmatchcase(name, part)] if _is_pattern(part) else [part]
    for name in names:
        if rest:
            yield from _descend(directory, name, rest, prefix, missing, depth, named=not _is_pattern(part))
        elif directory.has(name) and not (_is_pattern(part) and directory.is_directory(name)):
            yield prefix + name


def _descend(
    directory: _Directory, name: str, parts: list[str], prefix: str, missing: dict[str, str], depth: int, *, named: bool
) -> Iterator[str]:
    if depth == MAX_DEPTH:
        missing[prefix + name] = f"more than {MAX_DEPTH} directories deep"
        return
    try:
        below = directory.below(name)
    except OSError as exc:
        # Many things may be where a pattern stands for a directory; what is in the way of a name that was given is named.
        if exc.errno != errno.ENOENT and (named or exc.errno not in (errno.ENOTDIR, errno.ELOOP)):
            missing[prefix + name] = _reason(exc)
        return
    with contextlib.closing(below):
        yield from _walk(below, parts, f"{prefix}{name}/", missing, depth + 1)


@contextlib.contextmanager
def _open_source(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):  # it might never end, or wait for a writer
        os.close(fd)
        raise SpecError("files", f"{path} is not a regular file")
    with open(fd, "rb", buffering=0) as file:
        yield file


def _write(file: IO[bytes], content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


def _reason(exc: OSError) -> str:
    reasons = {errno.ELOOP: "a symbolic link", errno.EXDEV: "on another file system", errno.ENOTDIR: "not a directory"}
    return reasons.get(exc.errno or 0) or os.strerror(exc.errno or 0)


def _open_directory(fd: int, name: str) -> int:
    return openat2(fd, os.fsencode(name), os.O_RDONLY | os.O_DIRECTORY, resolve=_STRICT)


def _is_pattern(text: str) -> bool:
    return any(char in text for char in "*?[")


def _kind_of(mode: int) -> str:
    return next((name for test, name in _KINDS if test(mode)), "not a regular file")
