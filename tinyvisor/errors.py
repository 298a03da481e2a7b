"""The exception tree. A container that exits, is killed or runs out of memory is a value (`state.Exit`), never an exception."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class TinyvisorError(Exception):
    """Base of every error this package raises on purpose."""


class SpecError(TinyvisorError, ValueError):
    """A `Spec` (or a part of one) was given a value that it cannot have. Nothing was created.

    Attributes:
        field: the field's name, in compose terms, e.g. ``"mem_limit"``.
        problem: what is wrong and what was expected, one line.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field: str = field
        self.problem: str = problem


class ConfigProblem:
    """One thing wrong in a configuration file.

    Attributes:
        file: the file as the user named it.
        line, column: 1-based; 1, 1 where the whole file is meant.
        key: dotted path of the key, ``""`` where the whole file is meant.
        problem: what is wrong, with "did you mean" where there is a near word.
    """

    __slots__ = ("column", "file", "key", "line", "problem")

    def __init__(self, file: Path, line: int, column: int, key: str, problem: str) -> None:
        self.file: Path = file
        self.line: int = line
        self.column: int = column
        self.key: str = key
        self.problem: str = problem

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        return f"{self.file}:{self.line}:{self.column}: {key}{self.problem}"

    def __repr__(self) -> str:
        return f"ConfigProblem({str(self)!r})"


class ConfigError(TinyvisorError):
    """The configuration is wrong; every problem found is in `problems`. Nothing was started."""

    def __init__(self, problems: list[ConfigProblem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems: tuple[ConfigProblem, ...] = tuple(problems)


class HostError(TinyvisorError):
    """This host lacks something that was asked for.

    Attributes:
        lacks: what is missing, e.g. ``"cgroup controller io"``.
        cure: what to do about it, one line.
    """

    def __init__(self, lacks: str, cure: str) -> None:
        super().__init__(f"{lacks}; {cure}")
        self.lacks: str = lacks
        self.cure: str = cure


class ContainerError(TinyvisorError):
    """Something went wrong with one container. `name` says which."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name
        self.problem = problem


class LaunchError(ContainerError):
    """A launch step failed; what the earlier steps made is gone again.

    Attributes:
        step: the failed step in words, e.g. ``"mount tmpfs on /tmp (size=16m)"``.
        errno: the kernel's answer.
    """

    def __init__(self, name: str, step: str, errno: int, behind: str = "") -> None:
        """`behind`: what may be the reason."""
        super().__init__(name, f"{step}: {os.strerror(errno)}{f' ({behind})' if behind else ''}")
        self.step: str = step
        self.errno: int = errno


class NotLaunched(ContainerError):
    """It was killed while all was there but its workload; or it was to be adopted, and the supervisor before us was killed just
    before it launched it. Nothing of it has run."""

    def __init__(self, container: str) -> None:
        super().__init__(container, "was never launched")


class RunFailed(ContainerError):
    """A run with ``check=True`` did not end with the status ``ok``. Nothing is left of it.

    Attributes:
        result: the `state.Result`.
    """

    def __init__(self, name: str, result: Any) -> None:
        super().__init__(name, f"{result.status}: {result.reason}" if result.reason else result.status)
        self.result = result


class LauncherDied(TinyvisorError):
    """The launcher process ended under us; every container it held was killed by the kernel."""


class InternalError(TinyvisorError):
    """A bug in tinyvisor: please report it."""
