"""The user namespaces of containers: which ids of the host each has, and what can be idmapped to them."""

from __future__ import annotations

import errno
import os
from collections.abc import Hashable

from tinyvisor.errors import HostError, LaunchError
from tinyvisor.runtime import plan as planning
from tinyvisor.runtime import steps as s
from tinyvisor.runtime.host import Host
from tinyvisor.runtime.identity import invoking_user
from tinyvisor.runtime.idmap import IDS, IdMap, Mapped, auto_map, keep_id_map, map_text
from tinyvisor.runtime.launcherworld import LauncherWorld
from tinyvisor.runtime.leases import Ids, Leases
from tinyvisor.runtime.rootfs import host_view
from tinyvisor.runtime.syscalls import idmap, new_tmpfs, open_tree
from tinyvisor.runtime.trees import identity_in
from tinyvisor.spec import Spec


class UserNamespaces:
    """Makes them, one for each container, or, where files of the host's are in them, one for all such."""

    def __init__(self, host: Host, world: LauncherWorld, leases: Leases, mapped: Mapped | None) -> None:
        """`mapped`: the ids of the namespace that we are root of; None in the host's."""
        self._host = host
        self._world = world
        self._leases = leases
        self._mapped = mapped
        self._shared: dict[Hashable, Ids] = {}  # of containers that get files of the host's, in a user namespace
        self._idmapped: frozenset[str] | None = None  # None: not tried yet

    @property
    def idmapped(self) -> frozenset[str]:
        """Of the trees that containers share."""
        return self._idmapped or frozenset()

    async def lease(self, spec: Spec) -> Ids | None:
        """Ids of the host for one container, to be given back; None where they are the host's own.

        Raises:
            HostError: none are left, or this host has no user namespaces.
            LaunchError: no file descriptor is left for them.
            SpecError: there is no user to keep.
        """
        if spec.userns == "host":
            return None
        self._world.check_open()
        if not self._host.user_namespaces:
            raise HostError(
                "user namespaces are not allowed here (user.max_user_namespaces)",
                'sysctl user.max_user_namespaces=100000, or use "userns_mode: host"',
            )
        kept = invoking_user() if spec.userns == "keep-id" else None
        if self._mapped is not None and self._shares_ids(spec, self._mapped):
            return await self._shared_ids(self._mapped, kept, spec.name)
        slot = self._leases.take()
        try:
            # Where there are few, its user's are among them. Only the host view, whose names we know, has few.
            who = identity_in(spec, None) if self._leases.size < IDS else planning.ROOT_USER
            ids = slot.maps.get((kept, who))
            if ids is None:
                map_ = (
                    keep_id_map(slot.uid, slot.gid, *kept)
                    if kept
                    else auto_map(slot.uid, slot.gid, self._leases.size, [who.uid], [who.gid, *who.groups])
                )
                slot.forget_maps(but=7)
                ids = slot.maps[kept, who] = Ids(map_, await self._make(map_, spec.name), slot)
            if self._idmapped is None:
                self._idmapped = self._try_idmaps(ids.fd)
            return ids
        except BaseException:
            self._leases.give_back(slot)
            raise

    def give_back(self, ids: Ids | None) -> None:
        """No process of the container's is left, or there never was one."""
        if ids is not None and ids.slot is not None:
            self._leases.give_back(ids.slot)

    def check_tmpfs(self, what: str) -> None:
        """Raises `HostError` where one can't be idmapped."""
        if self._idmapped is not None and "/etc" not in self._idmapped:
            release = self._host.release
            raise HostError(f"{what}: Linux {release} can't idmap a tmpfs", 'use "userns_mode: host" or Linux 6.3')

    def close(self) -> None:
        """Those that are shared; the others are the leases'."""
        for ids in self._shared.values():
            os.close(ids.fd)

    @staticmethod
    def _shares_ids(spec: Spec, mapped: Mapped) -> bool:
        """Whether it gets files whose owners can't be mapped, or there are no ids to separate containers by."""
        return bool(spec.rootfs or spec.volumes) or spec.userns == "keep-id" or not len(mapped.ranges())

    async def _shared_ids(self, mapped: Mapped, kept: tuple[int, int] | None, name: str) -> Ids:
        if kept not in self._shared:
            map_ = mapped.shared_map(kept)
            fd = await self._make(map_, name)
            if kept in self._shared:  # meanwhile, by another
                os.close(fd)
            else:
                self._shared[kept] = Ids(map_, fd, None)
        if self._idmapped is None:
            self._idmapped = self._try_idmaps(self._shared[kept].fd)
        return self._shared[kept]

    async def _make(self, map_: IdMap, name: str) -> int:
        projects = "" if self._host.nested else "0 0 1"  # nested, nobody enters it, and our own may have no projects to map
        step = s.IdMap(map_.uid(0), map_text(map_.uids), map_text(map_.gids), projects)
        fds = await self._world.prepare([step])
        if not fds:  # the kernel drops what we have no number for
            raise LaunchError(name, step.describe(), errno.EMFILE)
        return fds[0]

    def _try_idmaps(self, userns: int) -> frozenset[str]:
        """Which of the trees that containers share can be idmapped. They are read-only, and can be used all the same."""
        binds = [] if self._host.nested else host_view().binds  # nobody can: mount_setattr(2), EPERM
        found = [path for path in binds if _can_be_idmapped(open_tree(path, recursive=True, read_only=True), userns)]
        if _can_be_idmapped(new_tmpfs(size=1 << 12, inodes=1), userns):
            found += ["/etc"] if self._host.nested else ["/etc", "/dev"]  # nested, the devices are the host's
        return frozenset(found)


def _can_be_idmapped(tree: int, userns: int) -> bool:
    try:
        idmap(tree, userns, recursive=True)
    except OSError:  # EINVAL: its file system does not know how
        return False
    finally:
        os.close(tree)
    return True
