"""The launcher's own world: what it is asked to make for all containers, mounts and fds, and what it answers.

Steps for the launcher itself, not for a container: the cgroups' fds, the shared /dev, the host view, directories, user
namespaces. And whether there is still somebody to ask.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import anyio

from tinyvisor.errors import HostError, LauncherDied, TinyvisorError
from tinyvisor.places import project_files, run_directory
from tinyvisor.runtime import launcher as wire
from tinyvisor.runtime import plan as planning
from tinyvisor.runtime import steps as s
from tinyvisor.runtime.cgroup import PARENT, CgroupTree
from tinyvisor.runtime.launcher import LauncherProcess
from tinyvisor.runtime.live import Live
from tinyvisor.runtime.rootfs import HostView, host_view, write_etc
from tinyvisor.runtime.steps import Step
from tinyvisor.runtime.syscalls import new_tmpfs, open_tree
from tinyvisor.runtime.thread import in_thread


class LauncherWorld:
    """What the launcher has besides its containers.

    Attributes:
        launcher: who opens the runtime sets it.
        ids: numbers of requests, never given twice.
        dead: why nothing is heard of it any more.
        left: the runtime has been.
    """

    def __init__(self, ids: Iterator[int], live: Live | None) -> None:
        self.launcher: LauncherProcess
        self.ids = ids
        self.dead: Exception | None = None
        self.left = False
        self._live = live
        self._view: HostView | None = live.view if live is not None and live.adopted else None
        self._view_lock = anyio.Lock()
        self._replies = {0: _Reply()}  # it has left the host's mounts

    def check_open(self) -> None:
        """Raises `TinyvisorError`, or `LauncherDied`, where nothing can be started any more."""
        if self.left:
            raise TinyvisorError("the runtime has been left, and starts nothing any more")
        if self.dead is not None:
            raise LauncherDied("the launcher is gone") from self.dead

    def heard(self, event: wire.Event, fds: list[int]) -> bool:
        """Whether it was an answer to us."""
        reply = self._replies.get(event.id)
        if reply is None:
            return False
        reply.set(event, fds)
        return True

    def lose(self, error: Exception) -> None:
        """Nothing will be heard any more."""
        self.dead = error
        for reply in self._replies.values():
            reply.set(error)

    async def prepare(
        self, steps: Iterable[Step], *, fds: Iterable[int] = (), flags: int = 0, epilogue: Iterable[Step] = ()
    ) -> list[int]:
        """Has the launcher itself run steps, in its own world. Returns the fds that it answers with."""
        steps, fds, id_ = tuple(steps), tuple(fds), next(self.ids)
        reply = self._replies[id_] = _Reply()
        sections = (wire.encode(steps), wire.EMPTY, wire.EMPTY, wire.encode(epilogue))
        try:
            self.launcher.send(wire.encode_request(wire.PREPARE, id_, sections, fds=len(fds), flags=flags), fds)
            await reply.wait("prepare the launcher", steps)
            return reply.take_fds()
        finally:
            del self._replies[id_]
            reply.close()

    async def set_up(self, project: str, tree: CgroupTree, lock: int, leases: int, *, nested: bool) -> None:
        """What every container needs: the fds of the cgroups, and the shared /dev; and what the launcher clears away at its end.

        Args:
            lock, leases: fds that are locked for as long as the launcher lives.
        """
        await self._replies[0].wait("leave the host's mounts")
        locks = os.open(run_directory(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        fds = [*tree.fds, *tree.parent_fds, lock, leases, locks]
        epilogue = self._epilogue(project, tree, s.KEPT | len(fds) - 1)
        try:
            await self.prepare((), fds=fds, flags=wire.KEEP_FDS, epilogue=epilogue)
        finally:
            os.close(locks)
        for path, console in (("/t/dev", False), ("/t/dev-tty", True)):
            with contextlib.ExitStack() as stack:
                devices = [_open_device(name, stack) for name, _, _ in planning.DEVICES] if nested else []
                template = planning.dev_template(path, console=console, bound=nested)
                await self.prepare((s.Directory(path), *template), fds=devices)

    def _epilogue(self, project: str, tree: CgroupTree, locks: int) -> list[Step]:
        parents, hierarchies = len(tree.fds), tree.layout.hierarchies
        steps: list[Step] = [s.Remove(s.KEPT | parents + n, project, item.label) for n, item in enumerate(hierarchies)]
        steps += [s.Remove(s.KEPT | parents + n, f"../{PARENT}", item.label, patient=False) for n, item in enumerate(hierarchies)]
        if self._live is None:  # else there is more to be swept, which is not the launcher's
            steps += [s.Remove(locks, file, str(run_directory())) for file in project_files(project)]
            # Last, and only when the others are gone: what has a lock file, the next run sweeps.
            steps.append(s.Remove(locks, f"{project}.lock", str(run_directory())))
        return steps

    async def host_view(self) -> HostView:
        """The host view's trees in the launcher's world: made once, when the first container needs them."""
        if self._view is not None:
            return self._view
        async with self._view_lock:
            if self._view is None:
                view = host_view()
                with contextlib.ExitStack() as stack:
                    etc = new_tmpfs(size=16 << 20, inodes=8192)
                    stack.callback(os.close, etc)
                    await in_thread(write_etc, Path(f"/proc/self/fd/{etc}"))
                    trees = [etc]
                    for path in view.binds:
                        trees.append(open_tree(path, recursive=True, read_only=True))
                        stack.callback(os.close, trees[-1])
                    targets = ("/etc", *view.binds)
                    binds = [s.Bind(slot, f"/t{target}", 0, target) for slot, target in enumerate(targets)]
                    with anyio.CancelScope(shield=True):  # done once or not at all: the mounts can't be taken back
                        await self.prepare(binds, fds=trees)
                self._view = view
                if self._live is not None:
                    self._live.set_view(view)
            return self._view


def _open_device(name: str, stack: contextlib.ExitStack) -> int:
    fd = open_tree(f"/dev/{name}", recursive=False, read_only=False)
    stack.callback(os.close, fd)
    return fd


class _Reply:
    """What the launcher said to a prepare request."""

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._answer: wire.Event | Exception | None = None
        self._fds: list[int] = []

    def set(self, answer: wire.Event | Exception, fds: Iterable[int] = ()) -> None:
        self._answer = answer
        self._fds += fds
        self._event.set()

    def take_fds(self) -> list[int]:
        fds, self._fds = self._fds, []
        return fds

    def close(self) -> None:
        for fd in self.take_fds():
            os.close(fd)

    async def wait(self, what: str, steps: tuple[Step, ...] = ()) -> None:
        await self._event.wait()
        if isinstance(self._answer, Exception):
            raise self._answer
        assert self._answer is not None
        error = self._answer.a
        if error:
            at = self._answer.b
            step = steps[at].describe() if self._answer.type == wire.PREPARED and at < len(steps) else f"{what} (byte {at})"
            raise HostError(f"{step}: {os.strerror(error)}", "see `tinyvisor doctor`")
