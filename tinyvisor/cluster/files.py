"""What jobs name of the batch's own host, on its way to the nodes: files, roots and profiles, by their SHA-256."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tarfile
import tempfile
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import anyio
import anyio.to_thread

from tinyvisor.cluster import frames
from tinyvisor.errors import SpecError
from tinyvisor.job import Job
from tinyvisor.spec import Spec

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE: Final = 4 << 20
"""Bytes of a file in one message."""
SMALL: Final = 64 << 10
"""Bytes of a file that goes with each job that needs it; a larger one goes to each node once."""
REMEMBERED: Final = 10_000
"""Files whose digests are remembered."""
KEPT: Final = 4 << 30
"""Bytes of files on a node; then those go that no job there needs, and jobs with more of them wait."""

_CAPABILITY: Final = "security.capability"


@dataclass(slots=True)
class Content:
    """What a job needs besides itself.

    Attributes:
        files: by path: what it has, or the digest of that. Roots and profiles always by digest.
        large: by digest: where to read it.
        root: the digest of its root, which is one of `large`.
        stored: those of `large` that are files of the job's or its profile, and no root.
    """

    files: dict[Path, bytes | str] = field(default_factory=dict)
    large: dict[str, Path] = field(default_factory=dict)
    root: str = ""
    stored: set[str] = field(default_factory=set)


class Files:
    """The files of this host that jobs name. A root that is a directory is packed when it is first named."""

    def __init__(self) -> None:
        self._digests: dict[tuple[Path, int, int], str] = {}
        self._packed: dict[Path, tuple[IO[bytes], str]] = {}
        self._packing = anyio.Lock()

    async def content(self, job: Spec | Job) -> Content:
        """What goes with `job`.

        Raises:
            OSError: some of it can't be read.
            SpecError: its root is not there, or is no file or directory.
        """
        found = Content()
        spec = job.spec if isinstance(job, Job) else job
        if isinstance(job, Job):
            for path in {value for value in (job.stdin, *job.files.values()) if isinstance(value, Path)}:
                await self._add(found, path, SMALL)
        if isinstance(spec.seccomp, Path):
            await self._add(found, spec.seccomp, -1)
        if spec.rootfs is not None and spec.rootfs.is_dir():
            await self._add_directory(found, spec.rootfs)
        elif spec.rootfs is not None:
            await self._add_tarball(found, spec.rootfs)
        return found

    def close(self) -> None:
        """Nothing is left of what was packed."""
        for file, _ in self._packed.values():
            file.close()
        self._packed.clear()

    async def _add(self, found: Content, path: Path, small: int) -> None:
        content: bytes | str | None = self._digests.get(_version(path))
        if content is None:
            content = await anyio.to_thread.run_sync(self._read, path, small)
        found.files[path] = content
        if isinstance(content, str):
            found.large[content] = path
            found.stored.add(content)

    def _read(self, path: Path, small: int) -> bytes | str:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size <= small:
                return file.read()
            key = _version(path)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if len(self._digests) >= REMEMBERED:
                self._digests.clear()
            self._digests[key] = digest
            return digest

    async def _add_tarball(self, found: Content, path: Path) -> None:
        _check_tarball(path)
        stored = set(found.stored)
        await self._add(found, path, -1)
        found.root, found.stored = str(found.files[path]), stored

    async def _add_directory(self, found: Content, path: Path) -> None:
        async with self._packing:
            if path not in self._packed:
                self._packed[path] = await anyio.to_thread.run_sync(_packed, path)
        file, digest = self._packed[path]
        found.files[path] = found.root = digest
        found.large[digest] = Path(f"/proc/self/fd/{file.fileno()}")


def _check_tarball(path: Path) -> None:
    if not path.is_file():
        raise SpecError("rootfs", f"{path} is no regular file" if path.exists() else f"{path} does not exist")


def _version(path: Path) -> tuple[Path, int, int]:
    status = path.stat()
    return path, status.st_size, status.st_mtime_ns


def _packed(directory: Path) -> tuple[IO[bytes], str]:
    """A file without a name: also kill -9 leaves nothing of it."""
    file = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        pack(directory, file)
        file.seek(0)
        return file, hashlib.file_digest(file, "sha256").hexdigest()
    except BaseException:
        file.close()
        raise


def pack(directory: Path, file: IO[bytes]) -> None:
    """Writes a tarball of a root, zstd over pax, as `runtime.unpack` takes it: the same bytes for the same tree. Owners are
    numbers. Device nodes, FIFOs and sockets are not in it, nor is what is mounted below the directory, which no container sees.

    Raises:
        OSError: it can't be read, or changes while it is.
    """
    form: dict[str, Any] = {"format": tarfile.PAX_FORMAT, "encoding": "utf-8", "errors": "surrogateescape"}
    with zstd.ZstdFile(file, "w", level=1) as stream, tarfile.TarFile(fileobj=stream, mode="w", **form) as tar:
        for path, name in _tree(str(directory), ".", directory.stat().st_dev):
            _add(tar, path, name)


def _tree(path: str, name: str, device: int) -> Iterator[tuple[str, str]]:
    yield path, name
    with os.scandir(path) as entries:
        found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    for entry in found:
        below = f"{name}/{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            if entry.stat(follow_symlinks=False).st_dev == device:
                yield from _tree(entry.path, below, device)
            else:
                yield entry.path, below
        elif entry.is_symlink() or entry.is_file(follow_symlinks=False):
            yield entry.path, below


def _add(tar: tarfile.TarFile, path: str, name: str) -> None:
    tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
    member = tar.gettarinfo(path, name)
    member.uname = member.gname = ""
    if not member.isreg():
        tar.addfile(member)
        return
    with contextlib.suppress(OSError):  # it has none, or its file system knows of none
        value = os.getxattr(path, _CAPABILITY, follow_symlinks=False)
        member.pax_headers = {f"SCHILY.xattr.{_CAPABILITY}": value.decode("utf-8", "surrogateescape")}
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as content:
        tar.addfile(member, content)


# --- What a node has. ---


class Sent:
    """The files that a node has or will have before anything else, and which of its jobs need them. Pure.

    Attributes:
        needed: bytes of those that jobs need.
    """

    def __init__(self) -> None:
        self.needed: int = 0
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._users: dict[str, int] = {}
        self._of: dict[int, tuple[str, ...]] = {}
        self._total = 0

    def need(self, key: int, digests: dict[str, int]) -> list[str]:
        """A job needs files of so many bytes. Gives those that the node has not."""
        new = [digest for digest in digests if digest not in self._sizes]
        for digest, size in digests.items():
            if digest not in self._sizes:
                self._sizes[digest] = size
                self._total += size
            self._sizes.move_to_end(digest)
            if not self._users.get(digest):
                self.needed += self._sizes[digest]
            self._users[digest] = self._users.get(digest, 0) + 1
        if digests:
            self._of[key] = tuple(digests)
        return new

    def release(self, key: int) -> None:
        """A job has ended."""
        for digest in self._of.pop(key, ()):
            self._users[digest] -= 1
            if not self._users[digest]:
                del self._users[digest]
                self.needed -= self._sizes[digest]

    def drop(self, kept: int = KEPT) -> list[str]:
        """Those that the node is to remove, the ones first that were needed last long ago, until the rest is within `kept`."""
        dropped = []
        if self._total > kept:
            for digest in [digest for digest in self._sizes if digest not in self._users]:
                if self._total <= kept:
                    break
                self._total -= self._sizes.pop(digest)
                dropped.append(digest)
        return dropped


@dataclass(slots=True)
class Sending:
    """A root and a node: what it has said of it, and the jobs that wait for that.

    Attributes:
        state: ``"asked"``, ``"here"``, or why it can't be had.
    """

    path: Path
    state: str = "asked"
    waiting: deque[Any] = field(default_factory=deque)


@dataclass(frozen=True, slots=True)
class Piece:
    """Of a file that a node has not."""

    path: Path
    digest: str
    at: int
    last: bool
    root: bool = False

    def read(self) -> bytes:
        """Its record. Of a file that was cut short in the meantime it has less, which the node sees by the digest."""
        piece = b""
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            file.seek(self.at)
            piece = file.read(PIECE)
        return frames.encode_piece(self.digest, piece, last=self.last, root=self.root)


def pieces(path: Path, digest: str, *, root: bool = False) -> list[Piece]:
    """All of a file."""
    starts = range(0, max(size_of(path), 1), PIECE)
    return [Piece(path, digest, at, at == starts[-1], root) for at in starts]


def size_of(path: Path) -> int:
    """Bytes; 0 of a file that was there a moment ago: the job's result will say so."""
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
