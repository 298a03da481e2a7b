"""Ranges of ids that are in use: no two running containers of this host share one, whichever supervisors they belong to.

A supervisor locks what it takes in one file: the bytes of the lock are the ids themselves (gids a terabyte further on). Such a
lock (fcntl(2) F_OFD_SETLK) belongs to the open file, which the launcher holds, too: it ends with the last of both, however
they end. What was taken once is kept for the next container, so that a start costs no system call.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import struct
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tinyvisor.errors import HostError
from tinyvisor.places import in_user_namespace, owner
from tinyvisor.runtime.idmap import SUBID_USER, IdMap, Mapped, Ranges, find_ranges, mapped
from tinyvisor.runtime.projectlock import private_directory

FILE = "id-ranges"
_GIDS = 1 << 40  # where gids start in the file


@dataclass(slots=True, eq=False)
class Slot:
    """One range, taken.

    Attributes:
        uid, gid: its first ones.
        maps: made for it before, with the fd of a user namespace that has the map, by what they were made for.
    """

    uid: int
    gid: int
    maps: dict[Hashable, Ids] = field(default_factory=dict)

    def forget_maps(self, *, but: int = 0) -> None:
        """Closes their fds, if there are more than `but`; no container may have the slot."""
        if len(self.maps) > but:
            for ids in self.maps.values():
                os.close(ids.fd)
            self.maps.clear()


@dataclass(frozen=True, slots=True, eq=False)
class Ids:
    """A container's ids, while it runs.

    Attributes:
        map: what they are on the host.
        fd: of a user namespace with that map, for idmapped mounts; nobody is in it.
        slot: to be given back; None where all containers that get files of the host's have these ids (`idmap.Mapped`).
    """

    map: IdMap
    fd: int
    slot: Slot | None


def read_mapped() -> Mapped | None:
    """The ids of the user namespace that we are root of; None in the host's.

    Raises:
        HostError: it has no root.
    """
    return mapped(_read("/proc/self/uid_map"), _read("/proc/self/gid_map")) if in_user_namespace() else None


def read_ranges() -> Ranges:
    """What this host gives us.

    Raises:
        HostError: as `idmap.find_ranges` and `read_mapped`.
    """
    inside = read_mapped()
    if inside is not None:
        return inside.ranges()
    try:
        uid = pwd.getpwnam(SUBID_USER).pw_uid
    except KeyError:
        uid = None
    return find_ranges(_read("/etc/subuid"), _read("/etc/subgid"), uid)


class Leases:
    """The ranges that one supervisor has. `fd` is the file with its locks, for the launcher to hold; `size`: ids of one range.

    Raises:
        HostError: `directory` is not ours alone.
    """

    def __init__(self, directory: Path, ranges: Ranges, fd: int = -1) -> None:
        """`fd`: of the supervisor before us, with its locks; ours to close. What of these is not `restore`d is free."""
        private_directory(directory)
        self.path: Path = directory / FILE
        self.fd: int = fd if fd >= 0 else os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._ranges = ranges
        self.size: int = ranges.size
        self._user = SUBID_USER if owner() is None else "who runs it"
        self._free: list[Slot] = []
        self._next = 0
        self._mine: set[int] = set()  # our own locks would not stand in our way

    def take(self) -> Slot:
        """One that no running container has; the one that was given back last, where there is one.

        Raises:
            HostError: all are taken.
        """
        if self._free:
            return self._free.pop()
        count = len(self._ranges)
        for number in self._others(count):
            uid, gid = self._ranges[number]
            if self._lock(uid, gid):
                self._mine.add(number)
                self._next = number + 1
                return Slot(uid, gid)
        raise HostError(
            f"all {count} ranges of {self._ranges.size} ids ({self._ranges.source}) are in use by running containers",
            f'add ranges for the user {self._user} to /etc/subuid and /etc/subgid, or use "userns_mode: host"',
        )

    def restore(self, uid: int, gid: int) -> Slot:
        """One that a running container has, to be given back when that has ended."""
        self._mine.update(number for number in range(len(self._ranges)) if self._ranges[number] == (uid, gid))
        return Slot(uid, gid)

    def _others(self, count: int) -> Iterator[int]:
        for offset in range(count):
            number = (self._next + offset) % count
            if number not in self._mine:
                yield number

    def give_back(self, slot: Slot) -> None:
        """No process has its ids any more."""
        self._free.append(slot)

    def close(self) -> None:
        """The locks stay for as long as the launcher lives."""
        for slot in self._free:
            slot.forget_maps()
        self._free.clear()
        os.close(self.fd)

    def _lock(self, uid: int, gid: int) -> bool:
        return self._set(fcntl.F_WRLCK, uid) and (self._set(fcntl.F_WRLCK, _GIDS + gid) or not self._set(fcntl.F_UNLCK, uid))

    def _set(self, kind: int, start: int) -> bool:
        try:
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi", kind, os.SEEK_SET, start, self._ranges.size, 0))
        except BlockingIOError:
            return False
        return True


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:  # there is none, as on hosts without shadow's tools
        return ""
