"""One run of a container with what goes in and what comes back: the unit of a batch. Frozen; pure."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tinyvisor.errors import SpecError
from tinyvisor.spec import Spec, check_encodable


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A `Spec`, its input, and what is wanted back.

    Attributes:
        spec: the container.
        id: the caller's name for it, given back in `Result.id`; need not be unique, unlike a running container's name.
        stdin: its whole input, or a file of the host to read it from; None is /dev/null.
        files: put into the working directory before it starts, by relative path: contents, or a file of the host.
        collect: relative paths and patterns (``*``, ``?``, ``[...]`` within a name; ``**`` for any directories) of regular
            files to fetch from the working directory afterwards.
        retry: ``"never"``: it is not run again where it has run, or may have: no retries, and after a crash or the loss of its
            node its result is ``unknown``. Empty: it may be run again.

    With `files` or `collect`, ``spec.working_dir`` (default ``/work``) is an empty directory of the job's own, of
    ``spec.storage_size`` bytes and ``spec.storage_inodes`` files at most, which hides what the root has there.

    Raises:
        SpecError: a path is absolute or leaves the working directory.
    """

    spec: Spec
    id: str = ""
    stdin: bytes | Path | None = None
    files: Mapping[str, bytes | Path] = field(default_factory=dict)
    collect: tuple[str, ...] = ()
    retry: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.spec, Spec):
            raise SpecError("spec", f"expected a Spec, got {self.spec!r}")
        if not isinstance(self.id, str):
            raise SpecError("id", f"expected text, got {self.id!r}")
        if self.stdin is not None and not isinstance(self.stdin, bytes):
            object.__setattr__(self, "stdin", _path("stdin", self.stdin))
        if not isinstance(self.files, Mapping):
            raise SpecError("files", f"expected a mapping of paths to contents, got {self.files!r}")
        for path, content in self.files.items():
            check_relative("files", path)
            if not isinstance(content, bytes):
                _path("files", content)
        if not isinstance(self.collect, list | tuple):
            raise SpecError("collect", f"expected a list of paths, got {self.collect!r:.100}")
        object.__setattr__(self, "collect", tuple(self.collect))
        for pattern in self.collect:
            check_relative("collect", pattern)
        if self.retry not in ("", "never"):
            raise SpecError("retry", f'expected "never" or nothing, got {self.retry!r}')


def _path(where: str, value: object) -> Path:
    if not isinstance(value, os.PathLike):  # no text: is it the content, or a path?
        raise SpecError(where, f"expected bytes or a Path, got {value!r:.100}")
    if "\0" in os.fspath(value):
        raise SpecError(where, "must not contain NUL")
    return Path(value)


def check_relative(where: str, path: object) -> None:
    """Raises `SpecError` for `where` unless it is a path, or a pattern, below a working directory."""
    if not isinstance(path, str) or not path or "\0" in path:
        raise SpecError(where, f"expected a relative path, got {path!r}")
    check_encodable(where, path)
    if path.startswith("/") or ".." in path.split("/") or not path.strip("./"):
        raise SpecError(where, f'"{path}" must be a path below the working directory')
