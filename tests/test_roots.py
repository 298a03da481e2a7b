"""Roots on a node: received once, shared, bounded, and nothing left of what was not finished. Without containers."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from tinyvisor.cluster.roots import Reception, Root, RootRefused, Roots, check_digest
from tinyvisor.runtime.unpack import RootfsError


def tarball(size: int = 0, name: str = "file") -> tuple[bytes, str]:
    """A tarball of one file, and its digest."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = size
        member.uid, member.gid = os.geteuid(), os.getegid()
        tar.addfile(member, io.BytesIO(os.urandom(size)))
    return made.getvalue(), hashlib.sha256(made.getvalue()).hexdigest()


def receive(roots: Roots, digest: str) -> Reception:
    found = roots.receive(digest)
    assert found is not None
    return found


def obtain(roots: Roots, content: bytes, digest: str) -> Root:
    reception = receive(roots, digest)
    try:
        for at in range(0, len(content), 1000):
            reception.add(content[at : at + 1000])
        return reception.finish()
    finally:
        reception.close()


def names(roots: Roots) -> set[str]:
    return {path.name for path in roots.directory.iterdir()} - {"lock"}


def test_one_brings_it_and_all_use_it(tmp_path: Path) -> None:
    """Each `Roots` stands for a process."""
    one, other = Roots(tmp_path / "roots"), Roots(tmp_path / "roots")
    content, digest = tarball(5000)
    assert one.use(digest) is None
    reception = receive(one, digest)
    assert other.receive(digest) is None
    reception.add(content)
    root = reception.finish()
    reception.close()
    shared = other.use(digest)
    assert shared is not None
    assert shared.path == root.path
    assert (root.path / "file").stat().st_size == 5000
    assert names(one) == {digest}
    assert tmp_path.joinpath("roots").stat().st_mode & 0o777 == 0o700
    root.close()
    shared.close()


def test_one_that_was_not_finished_leaves_nothing_and_others_may_bring_it(tmp_path: Path) -> None:
    roots = Roots(tmp_path)
    content, digest = tarball()
    reception = receive(roots, digest)
    reception.add(content[:100])
    reception.close()
    assert names(roots) == set()
    obtain(roots, content, digest).close()


@pytest.mark.parametrize("sent", [b"", b"more"])
def test_one_that_is_another_than_was_said_is_none(tmp_path: Path, sent: bytes) -> None:
    roots = Roots(tmp_path)
    content, digest = tarball()
    with pytest.raises(RootRefused, match="changed on its way"):
        obtain(roots, content[: len(content) // 2] + sent, digest)
    assert names(roots) == set()


def test_one_that_is_no_tarball_leaves_nothing(tmp_path: Path) -> None:
    roots = Roots(tmp_path)
    with pytest.raises(RootfsError, match="no tarball"):
        obtain(roots, b"not really", hashlib.sha256(b"not really").hexdigest())
    assert names(roots) == set()


def test_what_nobody_uses_goes_when_there_is_too_much_the_oldest_first(tmp_path: Path) -> None:
    roots = Roots(tmp_path, limit=250_000)
    made = [tarball(100_000) for _ in range(3)]
    for number, (content, digest) in enumerate(made[:2]):
        root = obtain(roots, content, digest)
        root.close()
        os.utime(root.path.parent, (number, number))
    again = roots.use(made[0][1])  # now the other one is the oldest
    assert again is not None
    again.close()
    obtain(roots, *made[2]).close()
    assert names(roots) == {made[0][1], made[2][1]}


def test_what_is_used_stays_and_what_has_no_room_beside_it_is_refused(tmp_path: Path) -> None:
    roots = Roots(tmp_path, limit=250_000)
    made = [tarball(100_000) for _ in range(3)]
    used = [obtain(roots, content, digest) for content, digest in made[:2]]
    with pytest.raises(RootRefused, match="more than 250000 bytes"):
        obtain(roots, *made[2])
    assert names(roots) == {made[0][1], made[1][1]}
    used.pop().close()
    obtain(roots, *made[2]).close()
    assert names(roots) == {made[0][1], made[2][1]}
    used.pop().close()


def test_a_tarball_that_is_too_large_is_not_kept_while_it_comes(tmp_path: Path) -> None:
    roots = Roots(tmp_path, limit=10_000)
    reception = receive(roots, 64 * "a")
    for _ in range(100):
        reception.add(bytes(1000))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 10_000
    with pytest.raises(RootRefused, match="room"):
        reception.finish()
    reception.close()
    assert names(roots) == set()


def test_what_killed_processes_have_left_is_removed_and_what_living_ones_do_is_not(tmp_path: Path) -> None:
    roots = Roots(tmp_path)
    left, busy = 64 * "b", 64 * "c"
    (tmp_path / f"{left}.part").write_bytes(b"x")
    (tmp_path / f"{left}.tmp/rootfs").mkdir(parents=True)
    (tmp_path / f"{left}.12345678.gone/rootfs/a").mkdir(parents=True)
    reception = receive(roots, busy)
    reception.add(b"half")
    content, digest = tarball()
    obtain(roots, content, digest).close()
    assert names(roots) == {digest, f"{busy}.part", f"{busy}.receiving"}
    reception.close()


@pytest.mark.parametrize("text", ["", "../" + 61 * "a", 63 * "a", 65 * "a", 64 * "A", 64 * "a" + "\n", 32 * "a/"])
def test_a_digest_is_nothing_but_a_name(tmp_path: Path, text: str) -> None:
    roots = Roots(tmp_path / "roots")
    for use in (check_digest, roots.use, roots.receive):
        with pytest.raises(ValueError, match="not a SHA-256"):
            use(text)
    assert not (tmp_path / "roots").exists()
