"""Which ids of the host stand behind a container's: maps of user namespaces, and the ranges that they are made of. Pure.

Ranges come from /etc/subuid and /etc/subgid, where they have entries for the user ``tinyvisor``. Without, they are
1879048192 to 2147352575: above what systemd gives to containers (524288 and up) and below its foreign ids (2147352576 and up),
which no distribution gives out (systemd UIDS-GIDS.md). Podman's and Docker's entries start at 100000, so those are below, too.

Where we are in a user namespace ourselves, as we are when an ordinary user starts us, all there is are its ids (`Mapped`).
Sources: user_namespaces(7), subuid(5), newuidmap(1), podman-run(1) ``--userns``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from tinyvisor.errors import HostError, SpecError

IDS = 65536
"""Ids of one container: 0 to 65535."""
FEW_IDS = 256
"""Ids of one container where there are not enough of them: the first ones, its user's, and `NOBODY`."""
NOBODY = 65534
TTY_GROUP = 5
"""Owns pseudo-terminals: the same in all distributions."""
DEFAULT_START, DEFAULT_END = 0x70000000, 0x7FFE0000
SUBID_USER = "tinyvisor"
MAX_ID = 2**32 - 2

Extent = tuple[int, int, int]
"""The first id inside, the first id of the host, how many."""


@dataclass(frozen=True, slots=True)
class IdMap:
    """The maps of a user namespace."""

    uids: tuple[Extent, ...]
    gids: tuple[Extent, ...]

    @property
    def count(self) -> int:
        """How many users it has."""
        return sum(count for _, _, count in self.uids)

    def uid(self, inside: int) -> int:
        """What a user of the container is on the host. Raises `SpecError` for one that is not mapped."""
        return _outside(self.uids, inside, "uid")

    def gid(self, inside: int) -> int:
        """Likewise for a group."""
        return _outside(self.gids, inside, "gid")


def _outside(extents: tuple[Extent, ...], inside: int, kind: str) -> int:
    for first, outside, count in extents:
        if first <= inside < first + count:
            return outside + inside - first
    last = max(first + count for first, _, count in extents if count > 1 or first == 0) - 1
    raise SpecError("user", f'{kind} {inside} is not one of the container\'s, 0 to {last}; use "userns_mode: host"')


def auto_map(uid: int, gid: int, size: int = IDS, uids: Iterable[int] = (), gids: Iterable[int] = ()) -> IdMap:
    """0 to 65535 on the ranges that start at these ids of the host; with a smaller size, the first ones, `NOBODY`, and those that
    are asked for, of which there may be `size` / 2."""
    return IdMap(_from_zero(uid, size, uids), _from_zero(gid, size, gids))


def _from_zero(start: int, size: int, wanted: Iterable[int]) -> tuple[Extent, ...]:
    if size >= IDS or size == 1:
        return ((0, start, size),)
    far = sorted(id_ for id_ in {NOBODY, *wanted} if id_ >= size // 2)[: size // 2]
    near = size - len(far)
    return ((0, start, near), *((id_, start + near + n, 1) for n, id_ in enumerate(far) if id_ >= near))


def keep_id_map(uid: int, gid: int, kept_uid: int, kept_gid: int) -> IdMap:
    """As `auto_map`, but one user and one group are inside what they are on the host."""
    return IdMap(_keeping(uid, kept_uid, kept_uid), _keeping(gid, kept_gid, kept_gid))


def _keeping(start: int, kept: int, outside: int, size: int = IDS) -> tuple[Extent, ...]:
    if kept >= size:
        return ((0, start, size), (kept, outside, 1))
    extents = ((0, start, kept), (kept, outside, 1), (kept + 1, start + kept + 1, size - 1 - kept))
    return tuple(extent for extent in extents if extent[2])


def map_text(extents: tuple[Extent, ...]) -> str:
    """As it is written to /proc/PID/uid_map."""
    return "\n".join(" ".join(map(str, extent)) for extent in extents)


# ---- ranges ----


@dataclass(frozen=True, slots=True)
class Ranges:
    """What containers' ids are taken from: slot n's uids and gids start at ``self[n]``.

    Attributes:
        uids, gids: (first id, how many).
        source: for people.
        size: ids of one slot.
    """

    uids: tuple[tuple[int, int], ...]
    gids: tuple[tuple[int, int], ...]
    source: str
    size: int = IDS

    def __len__(self) -> int:
        """Containers that can run at once."""
        return min(sum(count // self.size for _, count in ranges) for ranges in (self.uids, self.gids))

    def __getitem__(self, slot: int) -> tuple[int, int]:
        return self._start(self.uids, slot), self._start(self.gids, slot)

    def _start(self, ranges: tuple[tuple[int, int], ...], slot: int) -> int:
        rest = slot
        for first, count in ranges:
            if 0 <= rest < count // self.size:
                return first + rest * self.size
            rest -= count // self.size
        raise IndexError(slot)


DEFAULT_RANGES = Ranges(
    ((DEFAULT_START, DEFAULT_END - DEFAULT_START),), ((DEFAULT_START, DEFAULT_END - DEFAULT_START),), "tinyvisor's own"
)


def find_ranges(subuid: str, subgid: str, uid: int | None = None) -> Ranges:
    """The ranges of the user ``tinyvisor``, or the default ones where there are none.

    Args:
        subuid, subgid: contents of /etc/subuid and /etc/subgid.
        uid: that user's number, by which entries may name it, too.

    Raises:
        HostError: there are entries, but they make no sense or hold no container.
    """
    names = {SUBID_USER, *([str(uid)] if uid is not None else [])}
    found = {file: tuple(_entries(text, names, file)) for file, text in (("/etc/subuid", subuid), ("/etc/subgid", subgid))}
    if not any(found.values()):
        return DEFAULT_RANGES
    for file, entries in found.items():
        if sum(count // IDS for _, count in entries) == 0:
            kind = file[-3:]
            raise HostError(
                f"{file} gives the user {SUBID_USER} no range of {IDS} ids",
                f"usermod --add-sub{kind}s 1000000-{1000000 + 1000 * IDS - 1} {SUBID_USER}",
            )
        _check_apart(entries, file)
    return Ranges(found["/etc/subuid"], found["/etc/subgid"], "/etc/subuid and /etc/subgid")


# ---- in a user namespace ----


@dataclass(frozen=True, slots=True)
class Mapped:
    """The ids of a user namespace that we are root of: 0, which is its user, and behind it what that user was given.

    Half of them, or 65536 where there are enough, are for all containers together that get files of the host's: no file system
    that belongs to the host can be idmapped from here, so root inside has to be the user whose files they are. The others are
    given out in ranges.

    Attributes:
        uids, gids: (first, how many), one behind the other from 0 on, as they were mapped: no map can go across.
    """

    uids: tuple[tuple[int, int], ...]
    gids: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        """How many ids there are."""
        return min(sum(count for _, count in extents) for extents in (self.uids, self.gids))

    @property
    def shared(self) -> int:
        """How many ids the containers have that share them."""
        return IDS if self.count >= 2 * IDS else max(1, self.count // 2)

    def ranges(self) -> Ranges:
        """Those for one container each; there may be none."""
        uids, gids = _behind(self.uids, self.shared), _behind(self.gids, self.shared)
        size = IDS if all(sum(count // IDS for _, count in ranges) >= 16 for ranges in (uids, gids)) else FEW_IDS
        return Ranges(uids, gids, "this user's", size)

    def shared_map(self, kept: tuple[int, int] | None = None) -> IdMap:
        """0 is 0; or, with `kept`, that uid and gid are.

        Raises:
            HostError: there are no ids but that one.
        """
        if kept is None:
            whole = auto_map(0, 0, self.shared)
            uids, gids = whole.uids, whole.gids
        elif self.count == 1:
            raise HostError(
                "userns_mode: keep-id needs more ids than the user's own",
                f"usermod --add-subuids 100000-{99999 + IDS} --add-subgids 100000-{99999 + IDS} USER",
            )
        else:
            uids, gids = (_keeping(1, id_, 0, self.shared - 1) for id_ in kept)
        return IdMap(tuple(_split(uids, self.uids)), tuple(_split(gids, self.gids)))


def _behind(extents: tuple[tuple[int, int], ...], first: int) -> tuple[tuple[int, int], ...]:
    cut = ((max(start, first), start + count) for start, count in extents)
    return tuple((start, end - start) for start, end in cut if end > start)


def _split(extents: tuple[Extent, ...], mapped: tuple[tuple[int, int], ...]) -> Iterator[Extent]:
    for inside, outside, count in extents:
        for start, length in mapped:
            first, end = max(outside, start), min(outside + count, start + length)
            if end > first:
                yield inside + first - outside, first, end - first


def mapped(uid_map: str, gid_map: str) -> Mapped:
    """From /proc/self/uid_map and gid_map.

    Raises:
        HostError: there is no 0.
    """
    found = Mapped(_from_zero_on(uid_map), _from_zero_on(gid_map))
    if found.count == 0:
        raise HostError("this user namespace has no root", "make one that has (unshare --map-root-user)")
    return found


def _from_zero_on(text: str) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for first, count in sorted((int(first), int(count)) for first, _, count in map(str.split, text.splitlines())):
        if first != sum(found[-1] if found else (0,)):
            break
        found.append((first, count))
    return tuple(found)


def user_map(uid: int, gid: int, name: str, subuid: str, subgid: str) -> IdMap:
    """The map of a user namespace that an ordinary user is root of: all the ranges that it was given follow.

    Args:
        uid, gid, name: the user's.
        subuid, subgid: contents of /etc/subuid and /etc/subgid.

    Raises:
        HostError: entries make no sense, or there are some for uids and none for gids.
    """
    names = {name, str(uid)}
    uids, gids = tuple(_entries(subuid, names, "/etc/subuid")), tuple(_entries(subgid, names, "/etc/subgid"))
    if bool(uids) != bool(gids):
        file, kind = ("/etc/subgid", "gid") if uids else ("/etc/subuid", "uid")
        raise HostError(f"{file} gives {name} no ids, and the other file does", f"usermod --add-sub{kind}s FIRST-LAST {name}")
    _check_apart(uids, "/etc/subuid")
    _check_apart(gids, "/etc/subgid")
    return IdMap(tuple(_own_first(uid, uids)), tuple(_own_first(gid, gids)))


def _own_first(own: int, ranges: tuple[tuple[int, int], ...]) -> Iterator[Extent]:
    yield 0, own, 1
    at = 1
    for first, count in ranges:
        yield at, first, count
        at += count


# ---- /etc/subuid ----


def _check_apart(entries: tuple[tuple[int, int], ...], file: str) -> None:
    ordered = sorted(entries)
    for (first, count), (second, _) in pairwise(ordered):
        if first + count > second:
            raise HostError(f"{file}: the ranges at {first} and {second} overlap", "correct them")


def _entries(text: str, names: set[str], file: str) -> Iterator[tuple[int, int]]:
    for number, line in enumerate(text.splitlines(), 1):
        name, _, rest = line.strip().partition(":")
        if name not in names:
            continue
        first, _, count = rest.partition(":")
        if not (_is_number(first) and _is_number(count) and int(first) > 0 and int(first) + int(count) - 1 <= MAX_ID):
            raise HostError(
                f'{file}:{number}: "{line.strip()}" is no range of ids', f"expected {name}:FIRST:COUNT, e.g. 1000000:65536"
            )
        yield int(first), int(count)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10
