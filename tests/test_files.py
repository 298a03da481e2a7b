"""What goes to nodes with jobs: files, roots and profiles by their digests, and which of them a node keeps."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import subprocess
from pathlib import Path

import pytest
import trio

from tinyvisor.cluster.files import PIECE, SMALL, Content, Files, Sent, pack, pieces
from tinyvisor.errors import SpecError
from tinyvisor.job import Job
from tinyvisor.runtime.unpack import unpack
from tinyvisor.spec import Spec


def content(*jobs: Spec | Job) -> list[Content]:
    async def main() -> list[Content]:
        files = Files()
        found = [await files.content(job) for job in jobs]
        for each in found:
            for digest, path in each.large.items():
                assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
        files.close()
        return found

    return trio.run(main)


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_small_files_go_with_their_job_and_large_ones_by_digest(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"s" * SMALL)
    large.write_bytes(b"l" * (SMALL + 1))
    job = Job(spec=Spec(command=("x",)), stdin=large, files={"a": small, "b": b"given"})
    (found,) = content(job)
    assert found.files == {small: b"s" * SMALL, large: digest_of(large.read_bytes())}
    assert found.stored == set(found.large) == {digest_of(large.read_bytes())}
    assert found.root == ""


def test_a_file_that_has_changed_is_another(tmp_path: Path) -> None:
    path = tmp_path / "large"

    async def main() -> None:
        files = Files()
        digests = set()
        for letter in (b"a", b"b"):
            path.write_bytes(letter * (SMALL + 1))
            os.utime(path, (0, ord(letter)))
            digests.add((await files.content(Job(spec=Spec(command=("x",)), stdin=path))).files[path])
        assert len(digests) == 2

    trio.run(main)


def test_roots_and_profiles_go_by_digest_however_small(tmp_path: Path) -> None:
    tarball, profile = tmp_path / "root.tar", tmp_path / "p.json"
    tarball.write_bytes(b"tar")
    profile.write_bytes(b"{}")
    spec = Spec(command=("x",), rootfs=tarball, seccomp=profile)
    (found,) = content(spec)
    assert found.files == {tarball: digest_of(b"tar"), profile: digest_of(b"{}")}
    assert found.root == digest_of(b"tar")
    assert found.stored == {digest_of(b"{}")}
    (found,) = content(Job(spec=spec, stdin=tarball, files={"a": tarball}))
    assert found.files[tarball] == found.root
    assert found.stored == {digest_of(b"{}")} or found.stored == {digest_of(b"{}"), found.root}


def test_a_directory_is_packed_once_and_alike_ones_are_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
        for path in (tmp_path / name / "file", tmp_path / name):
            os.utime(path, (5, 5))
    specs = [Spec(command=("x",), rootfs=tmp_path / name) for name in "aab"]
    one, again, other = content(*specs)
    assert one.root == again.root == other.root
    assert one.large == again.large


def test_a_root_that_is_not_there_is_said_as_on_one_machine(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, problem in (("nothing", "does not exist"), ("fifo", "no regular file")):
        with pytest.raises(SpecError, match=problem):
            content(Spec(command=("x",), rootfs=tmp_path / name))
    with pytest.raises(FileNotFoundError):
        content(Spec(command=("x",), seccomp=tmp_path / "nothing"))


def test_what_is_packed_is_unpacked_as_it_was(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "deep/er").mkdir(parents=True)
    (root / "deep/er/file").write_bytes(bytes(range(256)) * 100)
    (root / "deep/er/file").chmod(0o4755)
    os.link(root / "deep/er/file", root / "hard")
    (root / "link").symlink_to("/etc/shadow")
    (root / os.fsdecode(b"\xff\n")).write_bytes(b"odd")
    (root / "closed").mkdir(mode=0o500)
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(root / "socket"))
    os.utime(root / "deep", ns=(0, 1_234_567_890_123_456_789))
    tarball = tmp_path / "tarball"
    with tarball.open("w+b") as file:
        pack(root, file)
    second = io.BytesIO()
    pack(root, second)
    assert tarball.read_bytes() == second.getvalue()
    found = unpack(tarball, tmp_path / "cache")
    (root / "fifo").unlink()
    (root / "socket").unlink()

    def tree(top: Path) -> str:
        words = ["find", ".", "!", "-path", ".", "-printf", r"%P %y %m %U %G %s %n %l\n"]
        lines = subprocess.run(words, cwd=top, capture_output=True, check=True).stdout.splitlines()
        return "\n".join(repr(line) for line in sorted(lines) if b" d " not in line)

    assert tree(found) == tree(root)
    assert (found / "closed").stat().st_mode & 0o7777 == 0o500
    assert (found / "deep").stat().st_mtime_ns // 1000 == 1_234_567_890_123_456
    assert (found / "hard").samefile(found / "deep/er/file")


def test_pieces_are_all_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for size, count in ((0, 1), (1, 1), (PIECE, 1), (PIECE + 1, 2)):
        path.write_bytes(bytes(size))
        found = pieces(path, "d")
        assert [piece.last for piece in found] == [False] * (count - 1) + [True]
        assert [piece.at for piece in found] == [number * PIECE for number in range(count)]


# --- What a node keeps. ---


def test_a_file_is_sent_once_and_again_when_it_was_dropped() -> None:
    sent = Sent()
    assert sent.need(1, {"a": 10, "b": 5}) == ["a", "b"]
    assert sent.need(2, {"a": 10}) == []
    assert sent.needed == 15
    assert sent.drop(kept=0) == [], "both are needed"
    sent.release(1)
    assert sent.needed == 10
    assert sent.drop(kept=0) == ["b"]
    sent.release(2)
    assert sent.drop(kept=10) == []
    assert sent.drop(kept=9) == ["a"]
    assert sent.needed == 0
    assert sent.need(3, {"a": 10}) == ["a"]


def test_what_was_needed_last_long_ago_goes_first() -> None:
    sent = Sent()
    for key, name in enumerate("abcab"):
        sent.need(key, {name: 10})
        sent.release(key)
    assert sent.drop(kept=10) == ["c", "a"]


def test_a_job_without_files_is_none_of_its_business() -> None:
    sent = Sent()
    assert sent.need(1, {}) == []
    sent.release(1)
    sent.release(77)
    assert sent.needed == 0
