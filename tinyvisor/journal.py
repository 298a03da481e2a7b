"""The results file of a batch: JSON Lines, one line per finished job, and what of it a later batch need not run again.

A line is written at once, in one write(2) to a file opened for appending, so that whatever kills us tears the last line at
most. Resuming cuts a torn line off; its job runs again. A job counts as done when the file has its digest: the same id, and
the same command, files, limits and defaults.

Jobs that must not run twice are written down before they start, too, by their digests in a file beside it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

from tinyvisor.digests import WIDTH, Digests
from tinyvisor.errors import TinyvisorError
from tinyvisor.jobs import NumberedJob
from tinyvisor.state import Result, Status

STATUSES: tuple[str, ...] = get_args(Status)
STDOUT = Path("-")

_START = b'{"id": "'
_LINE = re.compile(
    rb'\{"id": "(?:[^"\\]|\\.)*", "index": [0-9]+, "attempt": [0-9]+, "digest": "([0-9a-f]{%d})", "status": "([a-z_]+)".*\}\n'
    % (2 * WIDTH),
    re.DOTALL,
)


def format_line(result: Result, job: NumberedJob, *, files: Mapping[str, Any] | None = None) -> bytes:
    """One line: `Result.to_json` after what a resumed batch looks for.

    Args:
        files: stand in the place of what was collected.
    """
    line = {
        "id": job.id,
        "index": job.index,
        "attempt": job.attempt,
        "digest": job.digest.hex(),
        "status": result.status,
    }
    more = result.to_json()
    if files is not None:
        more["files"] = dict(files)
    return json.dumps(line | {key: value for key, value in more.items() if key not in line}).encode() + b"\n"


class Journal:
    """A results file that is open for appending, and locked against other batches; closed as a context manager.

    Args:
        path: ``-`` is our stdout.
        resume: what it has is kept, and is in `done`.

    Attributes:
        done: digest → number of the status in `STATUSES`, from 1.
        regular: it is a file; to a pipe or terminal a write can take for ever.

    Raises:
        TinyvisorError: it can't be opened or read, it is no results file, it has results but `resume` is not set, or
            another batch has it. Nothing was changed.
    """

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        self.path = path
        self.done: Digests = Digests()
        self._begun = Digests()
        self._begun_fd = -1
        try:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
            self._fd = os.dup(1) if path == STDOUT else os.open(path, flags, 0o644)
        except OSError as error:
            raise TinyvisorError(f"{path} can't be opened for results: {error.strerror}") from None
        try:
            self.regular: bool = stat.S_ISREG(os.fstat(self._fd).st_mode) and path != STDOUT
            if self.regular:
                self._lock()
                self._take_over(resume)
                self._read_begun(resume)
            elif resume:
                raise TinyvisorError(f"{path} is not a file: there is nothing in it to resume")
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._fd)
        if self._begun_fd >= 0:
            os.close(self._begun_fd)

    @property
    def begun_path(self) -> Path:
        """Where the jobs are that have begun and must not run twice; the file is there once there was one."""
        return self.path.with_name(f"{self.path.name}.begun")

    def begin(self, job: NumberedJob) -> None:
        """To be called before a job starts that must not run twice.

        Raises:
            TinyvisorError: it can't be written down; the job must not be started.
        """
        if not self.regular:
            return
        try:
            if self._begun_fd < 0:
                self._begun_fd = os.open(self.begun_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if os.write(self._begun_fd, job.digest.hex().encode() + b"\n") != 2 * WIDTH + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise TinyvisorError(f"{self.begun_path} can't be written: {error.strerror}") from None

    def has_begun(self, job: NumberedJob) -> bool:
        """Whether `begin` was called for `job` before we were opened, by whoever was interrupted."""
        return bool(self._begun.get(job.digest))

    def status(self, job: NumberedJob) -> str | None:
        """How `job` ended before; None where it has not."""
        number = self.done.get(job.digest)
        return STATUSES[number - 1] if number else None

    def append(self, line: bytes) -> None:
        """Writes a line of `format_line`, whole or not at all.

        Raises:
            TinyvisorError: it can't be written.
        """
        before = os.fstat(self._fd).st_size if self.regular else 0
        rest = memoryview(line)
        try:
            while rest:  # once, but for a disk that is nearly full
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            if self.regular:
                os.ftruncate(self._fd, before)
            raise TinyvisorError(f"{self.path}: results can't be written: {error.strerror}") from None

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                raise TinyvisorError(f"{self.path} can't be locked: {error.strerror}") from None
            raise TinyvisorError(f"{self.path} is being written by another batch") from None

    def _take_over(self, resume: bool) -> None:
        """Checks what is there, and cuts off a torn last line."""
        size = os.fstat(self._fd).st_size
        if size and not resume:
            raise TinyvisorError(f"{self.path} is not empty; go on with --resume, or remove it")
        if size and os.pread(self._fd, 1, 0) != _START[:1]:
            raise self._foreign(1)
        end = 0
        with open(self._fd, "rb", closefd=False) as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    if not (line.startswith(_START) or _START.startswith(line)):
                        raise self._foreign(number)
                    os.ftruncate(self._fd, end)
                    return
                digest, status = _done(line) or (b"", "")
                if status not in STATUSES:
                    raise self._foreign(number)
                self.done.put(digest, STATUSES.index(status) + 1)
                end += len(line)

    def _read_begun(self, resume: bool) -> None:
        try:
            if not resume:
                self.begun_path.unlink(missing_ok=True)
            elif self.begun_path.exists():
                for line in self.begun_path.read_bytes().split(b"\n"):
                    if re.fullmatch(rb"[0-9a-f]{%d}" % (2 * WIDTH), line):  # not one that was torn
                        self._begun.put(bytes.fromhex(line.decode()))
        except OSError as error:
            raise TinyvisorError(f"{self.begun_path}: {error.strerror}") from None

    def _foreign(self, number: int) -> TinyvisorError:
        return TinyvisorError(f"{self.path}:{number}: this is no result of a batch; give another file to --results")


def _done(line: bytes) -> tuple[bytes, str] | None:
    """The digest and status of a line; None where it is not one of ours, as we or a JSON tool would write it."""
    match = _LINE.fullmatch(line)
    if match is not None:
        return bytes.fromhex(match[1].decode()), match[2].decode()
    try:
        found = json.loads(line)
        digest = bytes.fromhex(found["digest"])
        return (digest, str(found["status"])) if len(digest) == WIDTH and isinstance(found["id"], str) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
