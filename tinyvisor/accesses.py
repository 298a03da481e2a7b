"""Which files and addresses a program went for, and the lines of a configuration that follow from it. Pure."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tinyvisor.trace import Event, Syscall

MAX_KEPT = 100_000
"""Different paths, or addresses, that are told apart: a program that makes up names must not fill our memory."""

_WRITING = frozenset(
    (
        "acct", "chmod", "chown", "creat", "fchmodat", "fchmodat2", "fchownat", "futimesat", "lchown", "link", "linkat",
        "lremovexattr", "lsetxattr", "mkdir", "mkdirat", "mknod", "mknodat", "removexattr", "removexattrat", "rename", "renameat",
        "renameat2", "rmdir", "setxattr", "setxattrat", "symlink", "symlinkat", "truncate", "unlink", "unlinkat", "utime",
        "utimensat", "utimes",
    )
)  # fmt: skip
_OPEN_FLAGS = {"open": 1, "openat": 2, "openat2": 2}
_OPEN_TO_WRITE = ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_TMPFILE")
_MISSING = frozenset(("ENOENT", "ENOTDIR"))
_DENIED = frozenset(("EACCES", "EPERM", "EROFS"))
_GIVEN = ("/proc", "/sys", "/dev", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
"""What a container has of its own, or read-only in the host view: nothing can be mounted below."""

_NO_NETWORK = ("unix:", "127.", "[::1]:", "[::ffff:127.", "0.0.0.0:", "[::]:")
"""Reachable, or listened on, without any network."""


@dataclass(slots=True)
class Access:
    """How often something was gone for, by what came of it.

    Attributes:
        read: looked at, opened, executed.
        written: opened for writing, made, changed, removed.
        missing: it was not there.
        denied: EACCES, EPERM, EROFS.
        failed: any other error.
    """

    read: int = 0
    written: int = 0
    missing: int = 0
    denied: int = 0
    failed: int = 0


@dataclass(slots=True)
class Files:
    """The paths that a program named.

    Attributes:
        paths: as the container has them, without ``.`` and ``..``.
        others: accesses of those past `MAX_KEPT`.
    """

    paths: dict[str, Access] = field(default_factory=dict)
    others: int = 0

    def add(self, event: Event) -> None:
        if not isinstance(event, Syscall) or not event.paths:
            return
        kind = _kind(event)
        for path in event.paths:
            path = posixpath.normpath(path) if path else path
            access = self.paths.get(path)
            if access is None:
                if len(self.paths) >= MAX_KEPT:
                    self.others += 1
                    continue
                access = self.paths[path] = Access()
            setattr(access, kind, getattr(access, kind) + 1)

    def rows(self) -> list[tuple[str, ...]]:
        """A table with its heading."""
        names = Access.__slots__
        rows: list[tuple[str, ...]] = [("path", *names)]
        rows += [
            (printable(path), *(str(getattr(access, name) or "") for name in names))
            for path, access in sorted(self.paths.items())
        ]
        return rows + ([(f"({self.others} accesses of others)", *[""] * len(names))] if self.others else [])

    def lines(self, on_host: Callable[[str], str | None]) -> list[str]:
        """YAML for a service: what was missing and the host has as volumes, directories that were written to as tmpfs.

        Args:
            on_host: what a path is on the host, without symbolic links; None where it is not there.
        """
        absent = [path for path, it in self.paths.items() if it.missing and not it.read and not it.written]
        missed = [real for path in absent if (real := on_host(path)) is not None and _nameable(real)]
        written = [posixpath.dirname(path) for path, access in self.paths.items() if access.written and _nameable(path)]
        lines = _listed("volumes", [f"{path}:{path}:ro" for path in _outermost(missed)])
        lines += _listed("tmpfs", _outermost(path for path in written if path != "/"))
        return [*lines, "read_only: true"] if "/" not in written else lines

    def to_json(self) -> dict[str, Any]:
        return {path: {name: getattr(access, name) for name in Access.__slots__} for path, access in sorted(self.paths.items())}


@dataclass(slots=True)
class Addresses:
    """The addresses that a program went for.

    Attributes:
        tried: (call, address) → what came of it: an errno's name, or ``""`` → how often.
        others: calls for those past `MAX_KEPT`.
    """

    tried: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    others: int = 0

    def add(self, event: Event) -> None:
        if not isinstance(event, Syscall) or not event.address:
            return
        key = (event.name, event.address)
        if key not in self.tried and len(self.tried) >= MAX_KEPT:
            self.others += 1
            return
        results = self.tried.setdefault(key, {})
        error = "" if event.errno == "EINPROGRESS" else event.errno
        results[error] = results.get(error, 0) + 1

    def rows(self) -> list[tuple[str, ...]]:
        """A table with its heading."""
        rows: list[tuple[str, ...]] = [("address", "call", "times", "errors")]
        for (call, address), results in sorted(self.tried.items(), key=lambda item: item[0][::-1]):
            errors = ", ".join(f"{error} {count}" for error, count in sorted(results.items()) if error)
            rows.append((printable(address), call, str(sum(results.values())), errors))
        return rows + ([(f"({self.others} calls for others)", "", "", "")] if self.others else [])

    def lines(self) -> list[str]:
        """YAML for a service: whether it needs a network."""
        outside = any(
            call in ("connect", "sendto", "sendmsg") and not address.startswith(_NO_NETWORK) for call, address in self.tried
        )
        return [f"network_mode: {'host' if outside else 'none'}"]

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {"call": call, "address": address, "times": sum(results.values()), "errors": {k: v for k, v in results.items() if k}}
            for (call, address), results in sorted(self.tried.items())
        ]


def printable(text: str) -> str:
    """What may go to a terminal, or one cell of a table: the rest is escaped as in Python."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _kind(call: Syscall) -> str:
    if call.errno in _MISSING:
        return "missing"
    if call.errno in _DENIED:
        return "denied"
    if call.errno and call.errno != "EEXIST":
        return "failed"
    if call.name in _WRITING:
        return "read" if call.errno else "written"  # EEXIST: it is there, and nothing was made
    at = _OPEN_FLAGS.get(call.name)
    flags = call.args[at] if at is not None and at < len(call.args) else ""
    return "written" if any(word in flags for word in _OPEN_TO_WRITE) else "read"


def _nameable(path: str) -> bool:
    """Whether a volume can be written down for it."""
    given = any(path == given or path.startswith(f"{given}/") for given in _GIVEN)
    return path.startswith("/") and path.isprintable() and ":" not in path and "$" not in path and not given


def _outermost(paths: Iterable[str]) -> list[str]:
    """Without those that are below another."""
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(path.startswith(f"{other}/") for other in kept):
            kept.append(path)
    return kept


def _listed(key: str, values: list[str]) -> list[str]:
    return [f"{key}:", *(f"- {json.dumps(value, ensure_ascii=False)}" for value in values)] if values else []
