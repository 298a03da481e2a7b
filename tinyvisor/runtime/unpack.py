"""Tarball → directory in a content-addressed cache, made once, however many ask for it at once.

``<cache>/<sha256>/rootfs`` is complete from the moment it is there. It is made as ``<sha256>.tmp`` under the flock of
``<sha256>.lock``: who holds the lock knows that a ``.tmp`` is a dead process's and removes it.

The tarball is hostile. The standard library parses its headers, within bounds; extraction is our own, since tarfile's
"data" filter can't make a root file system (absolute links, set-uid) and was got round more than once (CVE-2024-12718,
CVE-2025-4138, CVE-2025-4330, CVE-2025-4517). Every name is resolved beneath the new root by the kernel (openat2), the last
component never follows a link, and the files made are ours until the rename.
Sources: pax(1); GNU tar "Basic Tar Format"; openat2(2); docker pkg/archive for what is in real root file systems.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gzip
import hashlib
import lzma
import os
import shutil
import stat
import sys
import tarfile
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from typing import IO, Final, cast

from tinyvisor.errors import SpecError, TinyvisorError
from tinyvisor.runtime.idmap import IdMap
from tinyvisor.runtime.syscalls import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_MEMBERS: Final = 1_000_000
MAX_BYTES: Final = 16 << 30
_MAX_HEADERS: Final = 1 << 20  # bytes of extended headers before one member
_MAX_DIGITS: Final = 1000
_CHUNK: Final = 1 << 20
_MAX_ID: Final = 2**32 - 2
_MAX_TIME: Final = 2**34
_CAPABILITY: Final = "security.capability"
_SCOPED: Final = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS

# What the parsers say about a file that is not what it seems; RecursionError: a chain of a thousand pax headers.
_DAMAGED: Final = (
    tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, zstd.ZstdError,
    ValueError, ArithmeticError, LookupError, RecursionError,
)  # fmt: skip


class RootfsError(TinyvisorError):
    """A tarball can't be unpacked; nothing of it is left in the cache."""

    def __init__(self, tarball: Path, problem: str) -> None:
        super().__init__(f"{tarball}: {problem}")
        self.tarball = tarball
        self.problem = problem


class _Refused(Exception):
    """Why the tarball is not taken; becomes a `RootfsError`."""


def entry_name(digest: str, ids: IdMap | None) -> str:
    """What a tarball's directory is called in the cache."""
    return digest if ids is None else f"{digest}-{ids.count}"


def unpack(
    tarball: Path,
    cache: Path,
    *,
    ids: IdMap | None = None,
    digest: str | None = None,
    max_members: int = MAX_MEMBERS,
    max_bytes: int = MAX_BYTES,
) -> Path:
    """The root directory with the contents of `tarball`; unpacked if that was not done yet. Blocking, up to minutes.

    Args:
        tarball: tar, plain or compressed by gzip, xz or zstd; its name says nothing.
        cache: made with mode 0700, which keeps the set-uid programs in it from the host's users.
        ids: what the tarball's owners are here; None: the same. Where there is but one, all belongs to that.
        digest: its SHA-256, where the caller has just found it out.
        max_members: entries at most.
        max_bytes: of all files together, holes included.

    Raises:
        RootfsError: unreadable, damaged, hostile, or too large. Nothing is left in the cache.
    """
    try:
        # O_NONBLOCK: a FIFO is refused below, not waited for
        with open(os.open(tarball, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            cache.mkdir(parents=True, exist_ok=True, mode=0o700)
            digest = digest or _digest(file, cache)
            entry = cache / entry_name(digest, ids)
            if not entry.is_dir():
                with _locked(cache / f"{digest}.lock"):
                    if not entry.is_dir():
                        _make_entry(file, entry, ids, max_members, max_bytes)
            return entry / "rootfs"
    except _Refused as refused:
        raise RootfsError(tarball, str(refused)) from None
    except _DAMAGED as error:
        raise RootfsError(tarball, f"is damaged, or no tarball (plain, gzip, xz or zstd): {error}") from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename and str(error.filename) != str(tarball) else ""
        raise RootfsError(tarball, f"{where}{error.strerror or error}") from error


def _make_entry(file: BufferedReader, entry: Path, ids: IdMap | None, max_members: int, max_bytes: int) -> None:
    before = os.fstat(file.fileno())
    temporary = entry.with_name(f"{entry.name}.tmp")
    remove(temporary)
    try:
        root = temporary / "rootfs"
        temporary.mkdir(mode=0o700)
        root.mkdir(mode=0o755)
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(fd, 0o755)  # whatever the umask
            _Extractor(fd, max_members, max_bytes, ids).run(file)
            if _version(before) != _version(os.fstat(file.fileno())):
                raise _Refused("was changed while it was being read")
            # Else a power cut could leave the rename without the data, and an entry is never looked at again.
            _syncfs(fd)
        finally:
            os.close(fd)
        temporary.rename(entry)
    except BaseException:
        remove(temporary)
        raise
    _sync_directory(entry.parent)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits for the lock; at the end the file is gone again, so failures leave nothing and locks do not pile up."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            # Its holder may have unlinked it while we waited: then others lock another file of that name.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False)):
                    break
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)
        os.close(fd)


# ---- which tarball it is ----


def _digest(file: BufferedReader, cache: Path) -> str:
    """The file's SHA-256; remembered by inode, since hashing 100 MB at every start is felt."""
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise _Refused("is not a regular file")
    key = cache / f"{status.st_dev:x}-{status.st_ino:x}.key"
    version = _version(status)
    with suppress(OSError, UnicodeDecodeError):
        known = key.read_text().split()
        if known[:-1] == version and len(known[-1]) == 64:
            return known[-1]
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    now = os.fstat(file.fileno())
    # A file written to in the last moments may change again with its times staying the same.
    if _version(now) == version and time.time_ns() - now.st_ctime_ns > 2_000_000_000:
        _remember(key, " ".join([*version, digest]))
    return digest


def _version(status: os.stat_result) -> list[str]:
    return [str(status.st_size), str(status.st_mtime_ns), str(status.st_ctime_ns)]


def _remember(key: Path, text: str) -> None:
    temporary = key.with_name(f"{key.name}.{os.getpid()}-{time.monotonic_ns()}.tmp")
    try:
        temporary.write_text(text)
        temporary.rename(key)
    except OSError:  # only slower next time
        temporary.unlink(missing_ok=True)


# ---- reading ----


def _decompressed(file: BufferedReader) -> IO[bytes]:
    file.seek(0)
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=file, mode="rb"))
    if magic == b"\xfd7zXZ\0":
        return lzma.LZMAFile(file)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        return cast(IO[bytes], zstd.ZstdFile(file))
    plain = BufferedReader(FileIO(os.dup(file.fileno())))
    plain.seek(0)  # the offset is shared with `file`, which has read ahead
    return plain


class _Source:
    """What tarfile reads from: forward only and bounded.

    A size in a header may be negative (CVE-2025-8194, an endless loop) or immense (tarfile reads a whole extended header into
    memory), and long runs of digits take its regular expressions quadratic time (CVE-2024-6232).
    """

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream, self._limit = stream, limit
        self._position = 0
        self._block = b""
        self.headers = 0  # bytes, since the last member

    def read(self, size: int) -> bytes:
        """For tarfile: headers."""
        self.headers += size
        if size < 0 or self.headers > _MAX_HEADERS:
            raise _Refused(f"has a header of more than {_MAX_HEADERS} bytes at byte {self._position}")
        self._block = self._read(size)
        if len(self._block) > _MAX_DIGITS and _longest_digits(self._block) > _MAX_DIGITS:
            raise _Refused(f"has a senseless header at byte {self._position}")
        return self._block

    def data(self, size: int) -> Iterator[bytes]:
        """Exactly `size` bytes, in chunks."""
        while size:
            chunk = self._read(min(size, _CHUNK))
            if not chunk:
                raise EOFError("it ends in the middle of a file")
            size -= len(chunk)
            yield chunk

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if position < self._position:
            raise _Refused(f"has a negative size in a header before byte {self._position}")
        for _ in self.data(position - self._position):
            pass

    def close(self) -> None:
        self._stream.close()

    def finish(self) -> None:
        """Raises unless it ended as tarballs do, with a block of zeros: tarfile takes a damaged header for the end, too. The
        rest is read so that the compression's checksum is."""
        if len(self._block) != 512 or self._block.strip(b"\0"):
            raise EOFError(f"it ends in the middle, or a header at byte {max(0, self._position - 512)} is wrong")
        while self._read(_CHUNK):
            pass

    def _read(self, size: int) -> bytes:
        parts = []
        while size and (part := self._stream.read(size)):
            parts.append(part)
            size -= len(part)
            self._position += len(part)
            if self._position > self._limit:
                raise _Refused(f"is more than {self._limit} bytes when decompressed")
        return b"".join(parts)


_DIGITS: Final = bytes.maketrans(bytes(range(256)), bytes(48 <= byte < 58 for byte in range(256)))


def _longest_digits(data: bytes) -> int:
    return max(map(len, data.translate(_DIGITS).split(b"\0")))


# ---- extracting ----


@dataclass(frozen=True, slots=True)
class _Meta:
    mode: int
    uid: int
    gid: int
    mtime_ns: int


class _Extractor:
    """One tarball into one new directory, which nobody else writes to."""

    def __init__(self, root: int, max_members: int, max_bytes: int, ids: IdMap | None = None) -> None:
        self.root, self.max_members, self.max_bytes, self.ids = root, max_members, max_bytes, ids
        self.privileged = os.geteuid() == 0 and (ids is None or ids.count > 1)
        self.members = self.bytes = 0
        self.directories: dict[tuple[str, ...], _Meta] = {}
        self._parent: tuple[tuple[str, ...], int] | None = None  # the last one used: members come in order

    def run(self, file: BufferedReader) -> None:
        with closing(_Source(_decompressed(file), self.max_bytes + self.max_members * 2048)) as source:
            try:
                self._members(source)
                source.finish()
                self._finish_directories()
            finally:
                self._forget_parent()

    def _members(self, source: _Source) -> None:
        tar = tarfile.TarFile(fileobj=cast(IO[bytes], source), encoding="utf-8", errors="surrogateescape")
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            source.headers = 0
            self.members += 1
            if self.members > self.max_members:
                raise _Refused(f"has more than {self.max_members} members")
            try:
                self._member(member, source)
            except _Refused as refused:
                raise _Refused(f'member "{_printable(member.name)}": {refused}') from None
            except OSError as error:
                raise _Refused(f'member "{_printable(member.name)}": {error.strerror}') from error

    def _member(self, member: tarfile.TarInfo, source: _Source) -> None:
        path = _components(member.name, "it")
        meta = _meta(member)
        if member.ischr() or member.isblk() or member.isfifo():
            # Usual in root file systems, and of no use: a container's /dev is its own.
            if path[:1] != ("dev",):
                raise _Refused("device nodes and FIFOs are not unpacked")
        elif member.isdir():
            self._directory(path, meta)
        elif not path:
            raise _Refused("it must be a directory")
        elif member.issym():
            self._symlink(path, member.linkname, meta)
        elif member.islnk():
            self._hardlink(path, _components(member.linkname, "its target"))
        elif member.isreg():
            self._regular(path, member, meta, source)
        else:
            raise _Refused(f"type {member.type!r} is not known")

    def _directory(self, path: tuple[str, ...], meta: _Meta) -> None:
        self.directories[path] = meta
        if path:
            parent = self._open_parent(path)
            try:
                os.mkdir(path[-1], 0o700, dir_fd=parent)
            except FileExistsError:
                if not stat.S_ISDIR(os.stat(path[-1], dir_fd=parent, follow_symlinks=False).st_mode):
                    self._make_room(path[-1], parent)
                    os.mkdir(path[-1], 0o700, dir_fd=parent)

    def _symlink(self, path: tuple[str, ...], target: str, meta: _Meta) -> None:
        if not target or "\0" in target:
            raise _Refused("a symbolic link to nothing")
        parent = self._open_parent(path)
        self._make_room(path[-1], parent)
        os.symlink(target, path[-1], dir_fd=parent)
        if self.privileged:
            os.chown(path[-1], *self._owner(meta), dir_fd=parent, follow_symlinks=False)
        os.utime(path[-1], ns=(meta.mtime_ns, meta.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _hardlink(self, path: tuple[str, ...], target: tuple[str, ...]) -> None:
        if not target or target == path:
            raise _Refused("a hard link to itself or to the root")
        parent = self._open_parent(path)
        source = -1
        try:
            source = self._resolve(target[:-1], os.O_PATH | os.O_DIRECTORY)
            if stat.S_ISDIR(os.stat(target[-1], dir_fd=source, follow_symlinks=False).st_mode):
                raise _Refused("a hard link to a directory")
            self._make_room(path[-1], parent)
            os.link(target[-1], path[-1], src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            raise _Refused(f'its target "{_printable("/".join(target))}" is not in the tarball before it') from None
        finally:
            if source >= 0:
                os.close(source)

    def _regular(self, path: tuple[str, ...], member: tarfile.TarInfo, meta: _Meta, source: _Source) -> None:
        self.bytes += member.size
        if member.size < 0 or self.bytes > self.max_bytes:
            raise _Refused(f"unpacked, all is more than {self.max_bytes} bytes" if member.size > 0 else "negative size")
        parent = self._open_parent(path)
        self._make_room(path[-1], parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path[-1], flags, 0o600, dir_fd=parent)
        try:
            _write_data(fd, member, source)
            self._apply(fd, meta)
            capability = member.pax_headers.get(f"SCHILY.xattr.{_CAPABILITY}")
            if capability is not None and self.privileged:  # after the chown, which drops it
                _set_capability(fd, capability)
        finally:
            os.close(fd)

    def _owner(self, meta: _Meta) -> tuple[int, int]:
        if self.ids is None:
            return meta.uid, meta.gid
        try:
            return self.ids.uid(meta.uid), self.ids.gid(meta.gid)
        except SpecError:
            raise _Refused(
                f"owner {meta.uid}:{meta.gid} is not among your {self.ids.count} ids; add some in /etc/subuid and /etc/subgid"
            ) from None

    def _apply(self, fd: int, meta: _Meta) -> None:
        if self.privileged:
            os.fchown(fd, *self._owner(meta))
        os.fchmod(fd, meta.mode)  # after the chown, which clears set-uid
        os.utime(fd, ns=(meta.mtime_ns, meta.mtime_ns))

    def _finish_directories(self) -> None:
        """Modes and times at the end: files were made in them, and a mode may forbid that. Deepest first."""
        self._forget_parent()
        for path in sorted(self.directories, key=len, reverse=True):
            parent = self._open_parent(path) if path else self.root
            try:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(path[-1] if path else ".", flags, dir_fd=parent)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # a later member took its place
                    continue
                raise
            try:
                self._apply(fd, self.directories[path])
            finally:
                os.close(fd)

    def _make_room(self, name: str, parent: int) -> None:
        """A later member takes an earlier one's place, but not a directory's with something in it."""
        try:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=parent)
        except IsADirectoryError:
            os.rmdir(name, dir_fd=parent)

    def _open_parent(self, path: tuple[str, ...]) -> int:
        """The directory of `path`, made where missing; owned by `self`, valid until the next call."""
        wanted = path[:-1]
        if self._parent is not None:
            if self._parent[0] == wanted:
                return self._parent[1]
            self._forget_parent()
        try:
            fd = self._resolve(wanted, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            fd = self._make_directories(wanted)
        self._parent = wanted, fd
        return fd

    def _make_directories(self, path: tuple[str, ...]) -> int:
        fd = self._resolve((), os.O_PATH | os.O_DIRECTORY)
        for depth, name in enumerate(path, 1):
            try:
                with suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=fd)
                    os.chmod(name, 0o755, dir_fd=fd)  # whatever the umask; it is a directory that we have just made
            finally:
                os.close(fd)
            # From the root again, so that a link on the way is resolved in the root.
            try:
                fd = self._resolve(path[:depth], os.O_PATH | os.O_DIRECTORY)
            except FileNotFoundError:
                raise _Refused(f'"{_printable("/".join(path[:depth]))}" is a link to what is not there') from None
        return fd

    def _resolve(self, path: tuple[str, ...], flags: int) -> int:
        return openat2(self.root, os.fsencode("/".join(path) or "."), flags, resolve=_SCOPED)

    def _forget_parent(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None


def _components(name: str, what: str) -> tuple[str, ...]:
    if "\0" in name:
        raise _Refused(f"{what} has a NUL in its name")
    if name.startswith("/"):
        raise _Refused(f"{what} is an absolute path")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise _Refused(f'{what} has ".." in its path')
    return parts


def _meta(member: tarfile.TarInfo) -> _Meta:
    if not (0 <= member.uid <= _MAX_ID and 0 <= member.gid <= _MAX_ID):
        raise _Refused(f"owner {member.uid}:{member.gid} is out of range")
    mtime = member.mtime if 0 <= member.mtime < _MAX_TIME else 0  # a float; not a number fails both
    return _Meta(member.mode & 0o7777, member.uid, member.gid, int(mtime * 1_000_000_000))


def _write_data(fd: int, member: tarfile.TarInfo, source: _Source) -> None:
    # Where sparse is None, tarfile knows of no holes.
    regions: list[tuple[int, int]] | None = getattr(member, "sparse", None)
    if regions is None:
        for chunk in source.data(member.size):
            _write_all(fd, chunk)
        return
    end = 0
    for offset, size in regions:
        if not size:  # fills up the header, or says where the file ends
            continue
        if not (end <= offset and size >= 0 and offset + size <= member.size):
            raise _Refused("its map of holes makes no sense")
        end = offset + size
        os.lseek(fd, offset, os.SEEK_SET)
        for chunk in source.data(size):
            _write_all(fd, chunk)
    os.ftruncate(fd, member.size)


def _write_all(fd: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(fd, view) :]


def _set_capability(fd: int, value: str) -> None:
    try:
        os.setxattr(fd, _CAPABILITY, value.encode("utf-8", "surrogateescape"))
    except OSError as error:
        if error.errno != errno.ENOTSUP:  # such a file system gives no program capabilities at all
            raise


def _printable(name: str) -> str:
    text = name.encode("unicode_escape", "backslashreplace").decode("ascii")
    return text if len(text) <= 200 else f"{text[:197]}..."


# ---- files ----


def remove(tree: Path) -> None:
    """Removes what was unpacked, whatever its modes are; what is not there is fine. Raises OSError."""
    if os.geteuid() != 0:  # a directory may be closed to its owner
        for directory, names, _ in os.walk(tree):
            for name in names:
                path = os.path.join(directory, name)
                if not os.path.islink(path):
                    os.chmod(path, 0o700)
    with suppress(FileNotFoundError):
        shutil.rmtree(tree)


def _syncfs(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(fd) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
