"""The trees of the host's that a container gets, its root and its volumes, and who is who in them."""

from __future__ import annotations

import contextlib
import functools
import os

import anyio.to_thread

from tinyvisor.errors import HostError, LaunchError, SpecError
from tinyvisor.places import cache_directory
from tinyvisor.runtime import plan as planning
from tinyvisor.runtime.host import file_system
from tinyvisor.runtime.identity import Identity, invoking_user, read_in_root, resolve
from tinyvisor.runtime.idmap import IdMap, Mapped
from tinyvisor.runtime.leases import Ids
from tinyvisor.runtime.rootfs import GROUP, PASSWD
from tinyvisor.runtime.shortage import as_launch_error
from tinyvisor.runtime.syscalls import idmap, open_tree
from tinyvisor.spec import Spec


class Trees:
    """Opens them."""

    def __init__(self, release: str, mapped: Mapped | None) -> None:
        """`release`: the kernel's, for what it can't do; `mapped`: the ids of the user namespace that we are root of."""
        self._release = release
        self._mapped = mapped

    @property
    def root_ids(self) -> IdMap | None:
        """What the owners in an unpacked root are here; None: as in the tarball."""
        return self._mapped.shared_map() if self._mapped else None

    async def with_directory(self, spec: Spec) -> Spec:
        """A tarball is replaced by the directory that it was unpacked to."""
        if spec.rootfs is None or spec.rootfs.is_dir():
            return spec
        if not spec.rootfs.exists():
            raise SpecError("rootfs", f"{spec.rootfs} does not exist")
        from tinyvisor.runtime.unpack import unpack  # tarfile and the like: only where there is one

        work = functools.partial(unpack, spec.rootfs, cache_directory(), ids=self.root_ids)
        return spec.with_(rootfs=await anyio.to_thread.run_sync(work))

    def of(self, spec: Spec) -> list[planning.Tree]:
        """The root first, where it is not the host view."""
        trees = [planning.Tree(spec.rootfs, recursive=False)] if spec.rootfs else []
        return trees + [planning.Tree(volume.source, volume.read_only) for volume in spec.volumes]

    def open(self, spec: Spec, tree: planning.Tree, stack: contextlib.ExitStack, ids: Ids | None = None) -> int:
        """As the container is to see it; `stack` closes it.

        Raises:
            LaunchError: it can't be opened.
            HostError: it can't be idmapped.
        """
        try:
            fd = open_tree(str(tree.path), recursive=tree.recursive, read_only=tree.read_only)
        except OSError as exc:
            raise LaunchError(spec.name, f"open {tree.path}", exc.errno or 0) from None
        stack.callback(os.close, fd)
        # The root first, which is the image's: its files have owners of its own, whoever is kept.
        if ids is not None and ids.slot is not None and (planning.maps_volumes(spec) or not tree.recursive):
            try:
                idmap(fd, ids.fd, recursive=tree.recursive)
            except OSError as exc:
                raise HostError(
                    f"{spec.name}: {tree.path} can't be idmapped: {file_system(fd)} on Linux {self._release}"
                    f"{', or what is mounted below it' if tree.recursive else ''}: {os.strerror(exc.errno or 0)}",
                    'use "userns_mode: host" or another file system',
                ) from None
        return fd

    async def identity(self, spec: Spec) -> Identity:
        """Of a spec by itself: its root is opened for that alone."""
        spec = await self.with_directory(spec)
        with contextlib.ExitStack() as stack:
            tree = planning.Tree(spec.rootfs, recursive=False) if spec.rootfs else None
            return identity_in(spec, self.open(spec, tree, stack) if tree else None)

    async def owner(self, spec: Spec) -> tuple[int, int]:
        """The workload's uid and gid, inside."""
        if spec.user is None and spec.userns != "keep-id":
            return 0, 0
        spec = await self.with_directory(spec)
        with as_launch_error(spec), contextlib.ExitStack() as stack:
            trees = [planning.Tree(spec.rootfs, recursive=False)] if spec.rootfs else []
            identity = identity_in(spec, self.open(spec, trees[0], stack) if trees else None)
        return identity.uid, identity.gid


def identity_in(spec: Spec, root: int | None) -> Identity:
    """Who the workload is; `root`: an fd of its root, None for the host view.

    Raises:
        SpecError: an unknown user or group.
    """
    user = spec.user
    if user is None and spec.userns == "keep-id":
        user = "{}:{}".format(*invoking_user())
    if user is None and not spec.group_add:
        return planning.ROOT_USER
    if root is None:
        return resolve(user, spec.group_add, PASSWD, GROUP)
    contents = []
    for path in ("etc/passwd", "etc/group"):
        try:
            contents.append(read_in_root(root, path))
        except OSError:
            contents.append(b"")
    return resolve(user, spec.group_add, *contents)
