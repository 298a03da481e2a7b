"""Expected errors as lines and exit codes. Pure."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tinyvisor.errors import ConfigError, ContainerError, InternalError, LaunchError, TinyvisorError

NOT_FOUND, NOT_EXECUTABLE = 127, 126


@dataclass
class ExitCodes:
    """What a failure of ours exits with. The root command's ``obj``; a command may change it.

    Attributes:
        ours: bad usage, configuration or host.
        passes_on: the command hands on its container's exit code, so an exec that fails is 126 or 127 as in shells.
    """

    ours: int = 2
    passes_on: bool = False

    def of(self, errors: Sequence[TinyvisorError]) -> int:
        """The exit code for `errors`."""
        for error in errors:
            if self.passes_on and isinstance(error, LaunchError) and error.step.startswith("exec "):
                return NOT_FOUND if error.errno in (errno.ENOENT, errno.ENOTDIR) else NOT_EXECUTABLE
        return self.ours


def expected(exc: Exception) -> list[TinyvisorError] | None:
    """The errors that `exc` is or, as a group, consists of; None where any of them is a bug."""
    if isinstance(exc, TinyvisorError):
        return None if isinstance(exc, InternalError) else [exc]
    if not isinstance(exc, ExceptionGroup):
        return None
    found: list[TinyvisorError] = []
    for part in exc.exceptions:
        errors = expected(part)
        if errors is None:
            return None
        found += errors
    return found


def lines(errors: Sequence[TinyvisorError], codes: ExitCodes) -> Iterator[str]:
    """`errors` for people, each once. A configuration's problems carry file and line, and stay as they are."""
    seen = set()
    for error in errors:
        text = error.problem if codes.passes_on and isinstance(error, ContainerError) else str(error)
        if text not in seen:
            seen.add(text)
            yield text if isinstance(error, ConfigError) else f"tinyvisor: {text}"
