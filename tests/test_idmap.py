"""Maps and ranges of ids. Pure."""

from __future__ import annotations

import contextlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvisor.errors import HostError, SpecError
from tinyvisor.runtime.idmap import (
    DEFAULT_END,
    DEFAULT_RANGES,
    DEFAULT_START,
    FEW_IDS,
    IDS,
    NOBODY,
    Extent,
    Mapped,
    Ranges,
    auto_map,
    find_ranges,
    keep_id_map,
    map_text,
    mapped,
    user_map,
)

BASES = st.integers(1 << 20, 1 << 30)


@given(BASES, BASES, st.integers(0, 65535))
def test_auto(uid: int, gid: int, inside: int) -> None:
    made = auto_map(uid, gid)
    assert (made.uid(inside), made.gid(inside)) == (uid + inside, gid + inside)
    assert map_text(made.uids) == f"0 {uid} 65536"


@given(BASES, BASES, st.integers(1, 1 << 19), st.integers(1, 1 << 19))
def test_keep_id(uid: int, gid: int, kept_uid: int, kept_gid: int) -> None:
    """The kept one is the same, all others are in the range, and no two are one."""
    made = keep_id_map(uid, gid, kept_uid, kept_gid)
    assert (made.uid(kept_uid), made.gid(kept_gid)) == (kept_uid, kept_gid)
    assert made.uid(0) == uid
    for extents, kept, base in ((made.uids, kept_uid, uid), (made.gids, kept_gid, gid)):
        assert sum(count for _, _, count in extents) == IDS + (kept >= IDS)
        assert all(count > 0 for _, _, count in extents)
        assert {outside - inside for inside, outside, _ in extents if inside != kept or outside != kept} <= {base}
        ends = sorted((inside, inside + count) for inside, _, count in extents)
        assert all(end <= start for (_, end), (start, _) in pairwise(ends))


def test_what_keep_id_writes() -> None:
    made = keep_id_map(1000000, 2000000, 1000, 65535)
    assert map_text(made.uids) == "0 1000000 1000\n1000 1000 1\n1001 1001001 64535"
    assert map_text(made.gids) == "0 2000000 65535\n65535 65535 1"
    assert map_text(keep_id_map(1000000, 2000000, 70000, 1).uids) == "0 1000000 65536\n70000 70000 1"


@pytest.mark.parametrize("inside", [65536, 2**32 - 2])
def test_ids_that_are_not_mapped(inside: int) -> None:
    with pytest.raises(SpecError, match=f'user: uid {inside} is not one of .*"userns_mode: host"'):
        auto_map(1 << 20, 1 << 20).uid(inside)
    with pytest.raises(SpecError, match=f"user: gid {inside}"):
        auto_map(1 << 20, 1 << 20).gid(inside)


# ---- ranges ----


def test_the_default_ranges() -> None:
    """Above what systemd gives to containers, below its foreign ids, and below 2**31, which some file systems can't hold."""
    for text in ("", "root:100000:65536\n", "# tinyvisor:1:2\n", "\n\n", "tinyvisor2:1:65536"):
        assert find_ranges(text, text) == DEFAULT_RANGES
    assert len(DEFAULT_RANGES) == 4094
    assert DEFAULT_RANGES[0] == (DEFAULT_START, DEFAULT_START) == (1879048192, 1879048192)
    assert DEFAULT_RANGES[4093][0] + IDS == DEFAULT_END == 2147352576
    with pytest.raises(IndexError):
        DEFAULT_RANGES[4094]


def test_ranges_of_the_files() -> None:
    subuid = "root:100000:65536\ntinyvisor:1000000:131072\n 977:5000000:200000\ntinyvisor:3000000:10\n"
    subgid = "tinyvisor:2000000:655360\n"
    found = find_ranges(subuid, subgid, 977)
    assert len(found) == 5
    assert [found[slot] for slot in range(5)] == [
        (1000000, 2000000), (1065536, 2065536), (5000000, 2131072), (5065536, 2196608), (5131072, 2262144),
    ]  # fmt: skip
    assert len(find_ranges(subuid, subgid)) == 2
    assert found.source == "/etc/subuid and /etc/subgid"


@pytest.mark.parametrize(
    "subuid, subgid, problem",
    [
        ("tinyvisor:1000000:65536", "", "/etc/subgid gives the user tinyvisor no range of 65536 ids; usermod --add-subgids"),
        ("tinyvisor:1000000:65535", "tinyvisor:1000000:65536", "/etc/subuid gives .*; usermod --add-subuids 1000000-66535999"),
        ("x:1:2\ntinyvisor:1000000", "", '/etc/subuid:2: "tinyvisor:1000000" is no range'),
        ("tinyvisor:0:65536", "", "is no range"),
        ("tinyvisor:-1:65536", "", "is no range"),
        ("tinyvisor:4294967295:1", "", "is no range"),
        ("tinyvisor:1:99999999999", "", "is no range"),
        ("tinyvisor:1:2:3", "", "is no range"),
        ("tinyvisor:1000000:131072\ntinyvisor:1065536:65536", "tinyvisor:1:999999", "at 1000000 and 1065536 overlap"),
    ],
)
def test_ranges_that_make_no_sense(subuid: str, subgid: str, problem: str) -> None:
    with pytest.raises(HostError, match=problem):
        find_ranges(subuid, subgid)


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text(subuid: str, subgid: str) -> None:
    with contextlib.suppress(HostError):
        assert len(find_ranges(subuid, "tinyvisor:" + subgid)) > 0


@given(st.lists(st.integers(1, 400000), min_size=1, max_size=5), st.lists(st.integers(1, 400000), min_size=1, max_size=5))
def test_slots_never_overlap(uids: list[int], gids: list[int]) -> None:
    def apart(counts: list[int]) -> tuple[tuple[int, int], ...]:
        return tuple((1000000 * (number + 1), count) for number, count in enumerate(counts))

    found = Ranges(apart(uids), apart(gids), "here")
    for which, ranges in ((0, found.uids), (1, found.gids)):
        starts = sorted(found[slot][which] for slot in range(len(found)))
        assert all(second - first >= IDS for first, second in pairwise(starts))
        assert all(any(first <= start and start + IDS <= first + count for first, count in ranges) for start in starts)


# ---- few ids, and those of a user namespace ----

ANY_ID = st.integers(0, 2**32 - 2)


def outside_of(extents: tuple[Extent, ...]) -> list[int]:
    return [id_ for _, first, count in extents for id_ in range(first, first + count)]


@given(st.lists(ANY_ID, max_size=300), st.lists(ANY_ID, max_size=3))
def test_few_ids(uids: list[int], gids: list[int]) -> None:
    """The first ones, those that are wanted, and nobody; no two are one, and none is of another range."""
    made = auto_map(5000, 7000, FEW_IDS, uids, gids)
    for extents, first in ((made.uids, 5000), (made.gids, 7000)):
        outside = outside_of(extents)
        assert len({*outside}) == len(outside)
        assert {*outside} <= set(range(first, first + FEW_IDS))
        assert len({*outside_of(tuple((outer, inner, count) for inner, outer, count in extents))}) == len(outside)
        assert extents[0][:2] == (0, first)
    assert made.gid(NOBODY) > 7000
    assert all(made.gid(gid) >= 7000 for gid in gids)
    if len(uids) < FEW_IDS // 2:
        assert all(made.uid(uid) >= 5000 for uid in uids)


def test_few_ids_that_are_missed() -> None:
    with pytest.raises(SpecError, match="uid 1000 is not one of the container's, 0 to 254"):
        auto_map(5000, 5000, FEW_IDS).uid(1000)
    assert auto_map(0, 0, 1).uids == ((0, 0, 1),)


COUNTS = st.lists(st.integers(1, 300_000), max_size=4)


def as_mapped(counts: list[int]) -> tuple[tuple[int, int], ...]:
    starts = [1 + sum(counts[:n]) for n in range(len(counts))]
    return ((0, 1), *zip(starts, counts, strict=True))


@given(COUNTS, COUNTS, st.integers(1, 100_000), st.integers(1, 100_000))
def test_the_ids_of_a_user_namespace(uids: list[int], gids: list[int], kept_uid: int, kept_gid: int) -> None:
    """Whatever it has: who shares ids and who has a range of its own never meet, and no extent goes across one of the outer map,
    which the kernel would refuse."""
    have = Mapped(as_mapped(uids), as_mapped(gids))
    shared, ranges = have.shared_map(), have.ranges()
    maps = [shared]
    if have.count > 1:
        kept = have.shared_map((kept_uid, kept_gid))
        assert kept.uid(kept_uid) == kept.gid(kept_gid) == 0
        maps.append(kept)
    for map_ in maps:
        for extents, outer in ((map_.uids, have.uids), (map_.gids, have.gids)):
            assert all(any(start <= first and first + n <= start + count for start, count in outer) for _, first, n in extents)
            assert max(outside_of(extents)) < have.shared
    assert shared.uid(0) == shared.gid(0) == 0
    starts = sorted(ranges[slot][0] for slot in range(min(len(ranges), 300)))
    assert all(start >= have.shared for start in starts)
    assert all(second - first >= ranges.size for first, second in pairwise(starts))


def test_what_a_user_of_65536_ids_has() -> None:
    have = mapped("         0       1000          1\n         1     100000      65536\n", "0 1000 1\n1 100000 65536\n")
    assert (have.count, have.shared, len(have.ranges()), have.ranges().size) == (65537, 32768, 128, FEW_IDS)
    assert map_text(have.shared_map().uids) == "0 0 1\n1 1 32766\n65534 32767 1"
    assert map_text(have.shared_map((1000, 1000)).uids) == "0 1 1000\n1000 0 1\n1001 1002 31766"
    many = Mapped(((0, 1), (1, 40 * IDS)), ((0, 1), (1, 40 * IDS)))
    assert (many.shared, len(many.ranges()), many.ranges().size) == (IDS, 39, IDS)


def test_a_user_without_ids() -> None:
    have = mapped("0 1000 1\n", "0 1000 1\n")
    assert (have.count, len(have.ranges()), have.shared_map().uids) == (1, 0, ((0, 0, 1),))
    with pytest.raises(HostError, match="keep-id needs more ids than the user's own; usermod"):
        have.shared_map((1000, 1000))
    with pytest.raises(HostError, match="no root"):
        mapped("1000 1000 1\n", "1000 1000 1\n")
    assert mapped("0 1 10\n100 200 5\n", "0 1 10\n").count == 10


def test_the_map_of_a_user() -> None:
    subid = "root:1:2\nme:100000:65536\n1000:300000:10\n"
    made = user_map(1000, 1001, "me", subid, subid)
    assert map_text(made.uids) == "0 1000 1\n1 100000 65536\n65537 300000 10"
    assert made.gids[0] == (0, 1001, 1)
    assert user_map(1000, 1001, "other", "", "").uids == ((0, 1000, 1),)
    for subuid, subgid, problem in (
        (subid, "", "/etc/subgid gives me no ids, and the other file does; usermod --add-subgids"),
        ("", subid, "/etc/subuid gives me no ids"),
        ("me:1:x\n", "", '/etc/subuid:1: "me:1:x" is no range'),
        ("me:100:50\nme:120:9\n", "me:1:9\n", "overlap"),
    ):
        with pytest.raises(HostError, match=problem):
            user_map(1000, 1000, "me", subuid, subgid)
