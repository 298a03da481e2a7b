"""The lock that tells the living from the dead: whose holder is gone has left what may be cleared away. Synchronous."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tinyvisor.errors import HostError, TinyvisorError
from tinyvisor.spec import check_name


class ProjectLock:
    """Held for as long as a run of a project lives: a context manager. Entering is sync; it waits, for at most 5 s, only
    where a `sweep` is at work on the same project.

    An flock belongs to the open file description, so a launcher that inherits `fd` keeps the project locked until both
    are gone, however they end. The file stays behind after a crash; a clean end unlinks it.

    Attributes:
        fd: the locked file; -1 when not held.
        keep: do not unlink the file at the end, since there is something left for a later `sweep`.

    Raises:
        TinyvisorError: on entering; another run holds the lock.
    """

    def __init__(self, lock_dir: Path, project: str, fd: int = -1) -> None:
        """`fd`: held already, for the supervisor before us; ours to close."""
        check_name("project", project)
        self.project: str = project
        self.path: Path = lock_dir / f"{project}.lock"
        self.fd: int = fd
        self.keep = False

    def __enter__(self) -> Self:
        if self.fd >= 0:
            replace_content(self.fd, f"{os.getpid()}\n")
            return self
        private_directory(self.path.parent)
        deadline = time.monotonic() + 5.0
        grace = time.monotonic() + 0.05  # a sweeper may not have written yet that it is one
        while (fd := _lock(self.path, create=True)) is None:
            holder = _holder(self.path).strip()
            now = time.monotonic()
            # Empty: it is gone by now, or its holder has yet to say who it is.
            if now > deadline or (now > grace and holder and not holder.startswith("sweep")):
                raise TinyvisorError(f"project {self.project} is already running (pid {holder.split()[-1] if holder else '?'})")
            time.sleep(0.005)
        self.fd = fd
        replace_content(fd, f"{os.getpid()}\n")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        fd, self.fd = self.fd, -1
        os.close(fd)
        if not self.keep:
            # Closing unlocks only if nobody inherited the lock: ask, before the name is given away.
            with stale_lock(self.path) as stale:
                if stale is not None:
                    os.unlink(self.path)


def _lock(path: Path, *, create: bool) -> int | None:
    """The file, open and locked, or None where another holds it (or, without `create`, where it is not there)."""
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0), 0o600)
        except FileNotFoundError:
            if create:
                raise
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between open and flock its last holder may have unlinked it, and another made a new one of the same name.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False)):
                    return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


@contextmanager
def stale_lock(path: Path) -> Iterator[int | None]:
    """The file where nobody held the lock, None where somebody does; in the context, nobody else gets it."""
    fd = _lock(path, create=False)
    if fd is None:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def private_directory(path: Path) -> None:
    """Makes it where it is missing. Raises `HostError` where others could write to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise HostError(f"{path} must be a directory that only its owner, uid {os.geteuid()}, can write", "remove it")


@contextmanager
def state_in(directory: Path) -> Iterator[None]:
    """What can't be written there is this host's fault, with the cure."""
    try:
        yield
    except OSError as exc:
        raise HostError(f"{exc.filename or directory}: {os.strerror(exc.errno or 0)}", f"make {directory} writable") from exc


def _holder(path: Path) -> str:
    with suppress(FileNotFoundError):
        return path.read_text(errors="surrogateescape")
    return ""


@contextmanager
def unclaimed(lock_dir: Path, project: str) -> Iterator[bool]:
    """Whether there is no lock file, so that nobody runs the project and nothing is left for a `sweep`; in the context, nobody
    else begins to."""
    path = lock_dir / f"{project}.lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        yield False
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # somebody has just begun, with the file that we have made
        os.close(fd)
        yield False
        return
    try:
        replace_content(fd, f"sweep {os.getpid()}\n")
        yield True
        os.unlink(path)
    finally:
        os.close(fd)


def replace_content(fd: int, text: str) -> None:
    """Says in the lock's file who holds it."""
    os.ftruncate(fd, 0)
    os.pwrite(fd, text.encode(), 0)
