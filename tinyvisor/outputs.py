"""The output directory of a batch: ``ID.out``, ``ID.err``, and what was collected below ``ID/``.

Ids and the names of collected files are not trusted: neither leads out of the directory, and no link in it is followed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tinyvisor.errors import TinyvisorError
from tinyvisor.jobs import NumberedJob
from tinyvisor.state import Result

MAX_NAME = 120
"""Bytes of a name that an id becomes."""

_UNSAFE = re.compile(rb"[^A-Za-z0-9_.,@+=#-]")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def file_name(id: str) -> str:
    """`id` as the beginning of a file name: other characters as ``%XX``, cut where it is long. No two ids get the same one."""
    raw = id.encode("utf-8", "surrogateescape")
    name = _UNSAFE.sub(lambda match: b"%%%02X" % match[0][0], raw).decode("ascii")
    if name.startswith("."):
        name = "%2E" + name[1:]
    for suffix in (".out", ".err"):  # "a" has a file a.out: what is collected for "a.out" can't be below it
        if name.endswith(suffix):
            name = name[: -len(suffix)] + "%2E" + suffix[1:]
    if len(name) > MAX_NAME:
        name = f"{name[:MAX_NAME]}~{hashlib.blake2b(raw, digest_size=8).hexdigest()}"
    return name


class OutputDir:
    """A directory that outputs are written to; closed as a context manager.

    Args:
        path: made where it is missing.
        resume: it may hold files, which are replaced when their jobs run again.

    Raises:
        TinyvisorError: it can't be made or opened, or is not empty.
    """

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise TinyvisorError(f"{path} can't be made or opened: {error.strerror}") from None
        if not resume and os.listdir(self._fd):
            os.close(self._fd)
            raise TinyvisorError(f"{path} is not empty; go on with --resume, or give another directory")

    def __enter__(self) -> OutputDir:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._fd)

    def save(self, result: Result, job: NumberedJob) -> Mapping[str, Mapping[str, str]]:
        """Writes all that `result` gave back; where its collected files are: path → ``{"file": path from the directory}``.

        Raises:
            TinyvisorError: it can't be written.
        """
        name = file_name(job.id)
        try:
            for suffix, contents in ((".out", result.stdout), (".err", result.stderr)):
                if contents is not None:
                    _write(self._fd, name + suffix, contents)
            if result.files:
                self._save_files(name, result.files)
        except OSError as error:
            raise TinyvisorError(f"{self.path / name}: outputs can't be written: {error.strerror}") from None
        return {path: {"file": f"{name}/{path}"} for path in result.files}

    def _save_files(self, name: str, files: Mapping[str, bytes]) -> None:
        for path, contents in files.items():
            with contextlib.ExitStack() as opened:
                *parents, last = _parts(path)
                fd = self._fd
                for parent in (name, *parents):
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(parent, 0o755, dir_fd=fd)
                    fd = os.open(parent, _DIRECTORY, dir_fd=fd)
                    opened.callback(os.close, fd)
                _write(fd, last, contents)


def _parts(path: str) -> list[str]:
    parts = path.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise OSError(errno.EINVAL, f"{path!r} is not a path below the working directory")
    return parts


def _write(directory: int, name: str, contents: bytes) -> None:
    """A new file in the place of an old one, of whatever kind that is."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
    fd = os.open(name, _FILE, 0o644, dir_fd=directory)
    try:
        rest = memoryview(contents)
        while rest:
            rest = rest[os.write(fd, rest) :]
    finally:
        os.close(fd)
