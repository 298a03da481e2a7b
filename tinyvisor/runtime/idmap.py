"""Which ids of the host stand behind a container's: maps of user namespaces, and the ranges that they are made of. Pure.

Ranges come from /etc/subuid and /etc/subgid, where they have entries for the user ``tinyvisor``. Without, they are
1879048192 to 2147352575: above what systemd gives to containers (524288 and up) and below its foreign ids (2147352576 and up),
which no distribution gives out (systemd UIDS-GIDS.md). Podman's and Docker's entries start at 100000, so those are below, too.
Sources: user_namespaces(7), subuid(5), podman-run(1) ``--userns``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from tinyvisor.errors import HostError, SpecError

IDS = 65536
"""Ids of one container: 0 to 65535."""
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
    raise SpecError("user", f'{kind} {inside} is not one of the container\'s, 0 to {IDS - 1}; use "userns_mode: host"')


def auto_map(uid: int, gid: int) -> IdMap:
    """0 to 65535 on the ranges that start at these ids of the host."""
    return IdMap(((0, uid, IDS),), ((0, gid, IDS),))


def keep_id_map(uid: int, gid: int, kept_uid: int, kept_gid: int) -> IdMap:
    """As `auto_map`, but one user and one group are inside what they are on the host."""
    return IdMap(_keeping(uid, kept_uid), _keeping(gid, kept_gid))


def _keeping(start: int, kept: int) -> tuple[Extent, ...]:
    if kept >= IDS:
        return ((0, start, IDS), (kept, kept, 1))
    extents = ((0, start, kept), (kept, kept, 1), (kept + 1, start + kept + 1, IDS - 1 - kept))
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
    """

    uids: tuple[tuple[int, int], ...]
    gids: tuple[tuple[int, int], ...]
    source: str

    def __len__(self) -> int:
        """Containers that can run at once."""
        return min(sum(count // IDS for _, count in ranges) for ranges in (self.uids, self.gids))

    def __getitem__(self, slot: int) -> tuple[int, int]:
        if not 0 <= slot < len(self):
            raise IndexError(slot)
        return _start(self.uids, slot), _start(self.gids, slot)


def _start(ranges: tuple[tuple[int, int], ...], slot: int) -> int:
    for first, count in ranges:
        if slot < count // IDS:
            return first + slot * IDS
        slot -= count // IDS
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


def _check_apart(entries: tuple[tuple[int, int], ...], file: str) -> None:
    ordered = sorted(entries)
    for (first, count), (second, _) in pairwise(ordered):
        if first + count > second:
            raise HostError(f"{file}: the ranges of {SUBID_USER} at {first} and {second} overlap", "correct them")


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
