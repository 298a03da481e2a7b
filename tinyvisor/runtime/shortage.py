"""Errors of our own system calls for one container, as that container's failure."""

from __future__ import annotations

import errno
from typing import Final

from tinyvisor.errors import LaunchError
from tinyvisor.spec import Spec

SHORT: Final = frozenset((errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EUSERS))
"""What a start fails with where processes, memory, files, cgroups or namespaces are used up."""


class as_launch_error:
    """Out of file descriptors or memory: one container's failure, not the program's."""

    __slots__ = ("_spec",)

    def __init__(self, spec: Spec) -> None:
        self._spec = spec

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *rest: object) -> None:
        if isinstance(error, OSError):
            raise LaunchError(self._spec.name, "prepare the launch", error.errno or 0) from error
