"""Working directories that several runs share: each is mounted in the launcher's world, where their containers find it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator

import anyio

from tinyvisor.errors import LauncherDied, LaunchError
from tinyvisor.runtime import steps as s
from tinyvisor.runtime.launcherworld import LauncherWorld
from tinyvisor.runtime.workspace import Workspace


class Workspaces:
    """Makes them.

    Attributes:
        open_ones: those that can be given to a run.
    """

    def __init__(self, world: LauncherWorld) -> None:
        self.open_ones: set[Workspace] = set()
        self._world = world
        self._free: list[int] = []  # numbers that were used before
        self._numbers = itertools.count()

    @contextlib.asynccontextmanager
    async def open(self, size: int, inodes: int, mode: int) -> AsyncIterator[Workspace]:
        """One, as a scope; see `Runtime.working_directory`."""
        self._world.check_open()
        number = self._free.pop() if self._free else next(self._numbers)
        target = f"/t/work/{number}"
        try:
            workspace = Workspace(size=size, inodes=inodes, mode=mode & 0o7777, template=target)
        except OSError as exc:
            self._free.append(number)
            raise LaunchError("working_directory", "make it", exc.errno or 0) from None
        try:
            steps = (s.Directory("/t/work"), s.Directory(target), s.Bind(0, target, 0, "a working directory"))
            with anyio.CancelScope(shield=True):
                await self._world.prepare(steps, fds=[workspace.fd])
            self.open_ones.add(workspace)
            try:
                yield workspace
            finally:
                self.open_ones.remove(workspace)  # first: no more runs get what is below the mount
                if self._world.dead is None:
                    with contextlib.suppress(LauncherDied), anyio.CancelScope(shield=True):
                        await self._world.prepare([s.Unmount(target)])
                        self._free.append(number)
        finally:
            workspace.close()
