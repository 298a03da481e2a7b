"""Tarballs: what comes out, what is refused, and that whoever asks gets a whole one."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import lzma
import os
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinyvisor.runtime import unpack as module
from tinyvisor.runtime.unpack import RootfsError, unpack

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ROOT = os.geteuid() == 0
Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", **fields: object) -> Member:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(content), 0o644, 1_000_000_000
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def directory(name: str, mode: int = 0o755, **fields: int) -> Member:
    return member(name, b"", type=tarfile.DIRTYPE, mode=mode, **fields)


def symlink(name: str, target: str) -> Member:
    return member(name, type=tarfile.SYMTYPE, linkname=target)


def hardlink(name: str, target: str) -> Member:
    return member(name, type=tarfile.LNKTYPE, linkname=target)


def tar(*members: Member, format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Unpacks bytes."""

    def make(content: bytes, **limits: Any) -> Path:
        tarball = tmp_path / "root.tar"
        tarball.write_bytes(content)
        return unpack(tarball, tmp_path / "cache", **limits)

    return make


@pytest.fixture
def refuse(make: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    """Unpacks bytes that must be refused, and returns why; nothing may be left in the cache, nor outside."""

    def refuse(content: bytes, **limits: int) -> str:
        with pytest.raises(RootfsError) as caught:
            make(content, **limits)
        assert os.listdir(tmp_path / "cache") == []
        assert sorted(os.listdir(tmp_path)) == ["cache", "root.tar"]
        prefix = f"{tmp_path}/root.tar: "
        assert str(caught.value).startswith(prefix)
        assert "\n" not in str(caught.value)
        return str(caught.value).removeprefix(prefix)

    return refuse


# ---- what comes out ----

SAMPLE = tar(
    directory("./", 0o755),
    directory("bin/", 0o755),
    member("bin/busybox", b"#!" * 100_000, mode=0o4755),
    hardlink("bin/sh", "bin/busybox"),
    symlink("init", "/bin/busybox"),
    directory("tmp", 0o1777),
    directory("closed", 0o500),
    member("closed/file", b"hello", mode=0o600, mtime=1234567890.5),
    member("made/on/the/way", b""),
    member("dev/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    member("./dev/pipe", type=tarfile.FIFOTYPE),
)


@pytest.mark.parametrize(
    "compress",
    [bytes, gzip.compress, lzma.compress, zstd.compress, lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:])],
)
def test_a_root_file_system(make: Callable[..., Path], compress: Callable[[bytes], bytes]) -> None:
    root = make(compress(SAMPLE))
    assert root.name == "rootfs"
    assert (root / "bin/sh").read_bytes() == b"#!" * 100_000
    assert (root / "bin/sh").stat().st_ino == (root / "bin/busybox").stat().st_ino
    assert stat.S_IMODE((root / "bin/busybox").stat().st_mode) == 0o4755
    assert os.readlink(root / "init") == "/bin/busybox"
    assert stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777
    assert stat.S_IMODE((root / "closed").stat().st_mode) == 0o500
    assert (root / "closed").stat().st_mtime == 1_000_000_000
    assert (root / "closed/file").stat().st_mtime == 1234567890.5
    assert (root / "init").lstat().st_mtime == 1_000_000_000
    assert stat.S_IMODE((root / "made/on").stat().st_mode) == 0o755
    assert os.listdir(root / "dev") == [] if (root / "dev").exists() else True
    assert stat.S_IMODE(root.parent.stat().st_mode) == 0o700  # keeps set-uid programs from the host's users


@pytest.mark.skipif(not ROOT, reason="needs root")
def test_owners_and_capabilities(make: Callable[..., Path]) -> None:
    capability = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"  # cap_net_raw=ep
    headers = {"SCHILY.xattr.security.capability": capability.decode("latin-1"), "SCHILY.xattr.user.other": "x"}
    root = make(
        tar(
            directory("home", uid=1000, gid=100),
            member("ping", b"x", uid=7, gid=8, mode=0o6755, pax_headers=headers),
            member("link", type=tarfile.SYMTYPE, linkname="ping", uid=9, gid=10),
        )
    )
    assert ((root / "home").stat().st_uid, (root / "home").stat().st_gid) == (1000, 100)
    assert ((root / "ping").stat().st_uid, (root / "ping").stat().st_gid) == (7, 8)
    assert stat.S_IMODE((root / "ping").stat().st_mode) == 0o6755
    assert ((root / "link").lstat().st_uid, (root / "link").lstat().st_gid) == (9, 10)
    assert os.listxattr(root / "ping") == ["security.capability"]
    assert os.getxattr(root / "ping", "security.capability") == capability


def test_bytes_of_attributes_and_names_survive(make: Callable[..., Path]) -> None:
    name = os.fsdecode(b"caf\xe9\n")
    assert os.listdir(make(tar(member(name, b"x"), format=tarfile.GNU_FORMAT))) == [name]


def test_long_names(make: Callable[..., Path]) -> None:
    path = "/".join(["d" * 200] * 10 + ["file"])
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        assert (make(tar(member(path, b"x"), format=format)) / path).read_bytes() == b"x"


def test_a_later_member_takes_an_earlier_ones_place(make: Callable[..., Path]) -> None:
    root = make(
        tar(
            member("a", b"1"), hardlink("keep", "a"), member("a", b"22"),
            symlink("b", "nowhere"), member("b", b"b"),
            directory("c"), symlink("c", "a"),
            symlink("d", "e"), directory("e"), directory("d"), member("d/in", b"d"),
        )
    )  # fmt: skip
    assert (root / "a").read_bytes() == b"22"
    assert (root / "keep").read_bytes() == b"1"  # the old file was replaced, not written to
    assert (root / "b").read_bytes() == b"b"
    assert os.readlink(root / "c") == "a"
    assert (root / "d/in").is_file()
    assert os.listdir(root / "e") == []


def test_sparse_files(tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.write(b"start")
        file.seek(5 << 20)
        file.write(b"middle")
        file.truncate(9 << 20)
    for format in ("gnu", "posix"):
        tarball = tmp_path / f"{format}.tar"
        subprocess.run(["tar", f"--format={format}", "-S", "-C", tmp_path, "-cf", tarball, "big"], check=True)
        assert tarball.stat().st_size < 1 << 20
        copy = unpack(tarball, tmp_path / "cache") / "big"
        assert copy.read_bytes() == big.read_bytes()
        assert copy.stat().st_blocks * 512 < 1 << 20


def test_an_absolute_link_is_a_link_in_the_root(make: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    root = make(tar(symlink("out", f"{tmp_path}/outside"), directory(f"{tmp_path}/outside"[1:]), member("out/file", b"x")))
    assert os.listdir(tmp_path / "outside") == []
    assert (root / str(tmp_path)[1:] / "outside/file").read_bytes() == b"x"


# ---- what is refused ----


@pytest.mark.parametrize(
    "bad, why",
    [
        (member("../x"), 'member "../x": it has ".." in its path'),
        (member("a/../../x"), 'member "a/../../x": it has ".." in its path'),
        (member("/etc/x"), 'member "/etc/x": it is an absolute path'),
        (directory(".."), 'member "..": it has ".." in its path'),
        (symlink("../x", "y"), 'member "../x": it has ".." in its path'),
        (member("disk", type=tarfile.BLKTYPE), 'member "disk": device nodes and FIFOs are not unpacked'),
        (member("etc/null", type=tarfile.CHRTYPE), 'member "etc/null": device nodes and FIFOs are not unpacked'),
        (member("pipe", type=tarfile.FIFOTYPE), 'member "pipe": device nodes and FIFOs are not unpacked'),
        (hardlink("x", "../../etc/passwd"), 'member "x": its target has ".." in its path'),
        (hardlink("x", "/etc/passwd"), 'member "x": its target is an absolute path'),
        (hardlink("x", "etc/passwd"), 'member "x": its target "etc/passwd" is not in the tarball before it'),
        (hardlink("x", "there"), 'member "x": a hard link to a directory'),
        (hardlink("x", "x"), 'member "x": a hard link to itself or to the root'),
        (member("there", b"x"), 'member "there": Directory not empty'),
        (member("there/file/x", b"x"), 'member "there/file/x": Not a directory'),
        (member("./", b"x"), 'member "./": it must be a directory'),
        (member("new\nline/../x"), 'member "new\\nline/../x": it has ".." in its path'),
        (member("a" * 256), f'member "{"a" * 197}...": File name too long'),
        (member("x", uid=2**32 - 1), 'member "x": owner 4294967295:0 is out of range'),
        (member("x", type=b"V"), "member \"x\": type b'V' is not known"),
    ],
)  # fmt: skip
def test_hostile_members(refuse: Callable[..., str], bad: Member, why: str) -> None:
    assert refuse(tar(directory("there"), member("there/file", b"x"), bad)) == why


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT])
def test_a_nul_in_a_name(refuse: Callable[..., str], format: int) -> None:
    assert "has a NUL in its name" in refuse(tar(member("x", pax_headers={"path": "a\0b"}), format=format))


@pytest.mark.parametrize("target", ["../../../../../../../../tmp", "/", "/tmp", "..", "../.."])
def test_a_planted_link_leads_nowhere_outside(make: Callable[..., Path], tmp_path: Path, target: str) -> None:
    root = make(tar(directory("tmp"), symlink("planted", target), member("planted/landed", b"x"), directory("planted/more")))
    landed = [path.relative_to(root) for path in root.rglob("landed")]
    assert landed
    assert not (tmp_path / "landed").exists()
    assert not Path("/landed").exists()
    assert not Path("/tmp/landed").exists()


def test_links_through_links_and_to_the_link_itself(refuse: Callable[..., str]) -> None:
    assert "Too many levels of symbolic links" in refuse(tar(symlink("a", "b"), symlink("b", "a"), member("a/x", b"x")))
    assert "is a link to what is not there" in refuse(tar(symlink("a", "/not/there"), member("a/x", b"x")))


def test_a_hard_link_through_a_planted_link(refuse: Callable[..., str]) -> None:
    assert "is not in the tarball before it" in refuse(tar(symlink("out", "/etc"), directory("etc"), hardlink("x", "out/passwd")))


def test_a_file_is_not_written_through_a_planted_link(make: Callable[..., Path], tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("safe")
    root = make(
        tar(symlink("x", str(victim)), member("x", b"owned"), symlink("y", str(victim)), hardlink("z", "y"), member("z", b"o"))
    )
    assert victim.read_text() == "safe"
    assert not (root / "x").is_symlink()


def test_directory_modes_are_not_applied_through_a_link(make: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir(mode=0o700)
    make(tar(directory("d", 0o777), symlink("d", str(tmp_path / "victim"))))
    assert stat.S_IMODE((tmp_path / "victim").stat().st_mode) == 0o700


def test_too_many_members(make: Callable[..., Path], refuse: Callable[..., str]) -> None:
    content = tar(*(member(f"f{n}") for n in range(5)))
    assert refuse(content, max_members=4) == "has more than 4 members"
    assert len(os.listdir(make(content, max_members=5))) == 5


def test_too_many_bytes(make: Callable[..., Path], refuse: Callable[..., str]) -> None:
    content = tar(member("a", bytes(600)), member("b", bytes(600)))
    assert refuse(content, max_bytes=1199) == 'member "b": unpacked, all is more than 1199 bytes'
    make(content, max_bytes=1200)


def test_a_bomb(refuse: Callable[..., str]) -> None:
    bomb = gzip.compress(tar(member("a", b"x")) + bytes(64 << 20))
    assert "when decompressed" in refuse(bomb, max_bytes=1 << 20, max_members=10)


def test_a_lie_about_the_size(refuse: Callable[..., str]) -> None:
    content = bytearray(tar(member("a", b"x"), format=tarfile.GNU_FORMAT))
    info = member("a")[0]
    info.size = 1 << 60
    content[:512] = info.tobuf(tarfile.GNU_FORMAT)
    assert "more than" in refuse(bytes(content))
    info.size = -512  # CVE-2025-8194: tarfile alone would read the same header for ever
    content[:512] = info.tobuf(tarfile.GNU_FORMAT)
    assert "negative size" in refuse(bytes(content))


def test_immense_headers(refuse: Callable[..., str]) -> None:
    assert "has a header of more than" in refuse(tar(member("x", pax_headers={"comment": "y" * (2 << 20)})))
    started = time.monotonic()
    assert "senseless header" in refuse(tar(member("x", pax_headers={"comment": "1" * 500_000})))  # CVE-2024-6232
    assert time.monotonic() - started < 5


def test_a_chain_of_headers(refuse: Callable[..., str]) -> None:
    info = member("x", pax_headers={"comment": "y"})[0]
    header = info.tobuf(tarfile.PAX_FORMAT)[:1024]
    assert "damaged" in refuse(header * 1020 + tar(member("x")))


@pytest.mark.parametrize(
    "content", [b"", b"hello", bytes(range(256)) * 40, b"\x1f\x8bnonsense", b"\xfd7zXZ\0nonsense", b"\x28\xb5\x2f\xfdnonsense"]
)
def test_no_tarball(refuse: Callable[..., str], content: bytes) -> None:
    assert "is damaged, or no tarball" in refuse(content)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress, zstd.compress])
def test_truncated_anywhere(refuse: Callable[..., str], compress: Callable[[bytes], bytes]) -> None:
    whole = tar(member("a", b"x" * 1000), member("b", b"y" * 1000), member("c", b"z"))
    content = compress(whole)
    ends = range(512, 512 * 9, 512) if compress is bytes else range(1, len(content), 7)
    for end in ends:
        assert "damaged" in refuse(content[:end])


def test_a_damaged_header_in_the_middle_is_not_the_end(refuse: Callable[..., str]) -> None:
    content = bytearray(tar(member("a", b"x"), member("b", b"y")))
    content[1024 + 150] ^= 0xFF  # in b's checksum
    assert "byte 1024 is wrong" in refuse(bytes(content))


def test_a_wrong_checksum_of_the_compression(refuse: Callable[..., str]) -> None:
    content = bytearray(gzip.compress(SAMPLE))
    content[-8] ^= 0xFF
    assert "CRC" in refuse(bytes(content))


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, why in (("pipe", "is not a regular file"), ("missing", "No such file"), (".", "Is a directory")):
        with pytest.raises(RootfsError, match=why):
            unpack(tmp_path / name, tmp_path / "cache")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_any_damage_ends_well(tmp_path: Path, damage: list[tuple[int, int]]) -> None:
    content = bytearray(
        tar(directory("d", 0o700), member("d/a", b"x" * 600, mode=0o4755), symlink("l", "/d"), hardlink("h", "d/a"))
    )
    for at, value in damage:
        content[at % 4096] = value
    (tmp_path / "root.tar").write_bytes(content)
    before = len(os.listdir("/proc/self/fd"))
    try:
        unpack(tmp_path / "root.tar", tmp_path / "cache")
    except RootfsError:
        assert not [name for name in os.listdir(tmp_path / "cache") if len(name) != 64]
    assert sorted(os.listdir(tmp_path)) == ["cache", "root.tar"]
    assert len(os.listdir("/proc/self/fd")) == before


PATHS = st.lists(st.sampled_from(["a", "b", "..", ".", "", "a\n"]), min_size=1, max_size=4).map("/".join)
PLAIN = st.sampled_from(["a", "b", "a/b", "b/a", "a/b/a", "b/kept"])
MODES = st.sampled_from([0, 0o700, 0o7777])
HOSTILE = st.one_of(
    st.builds(directory, PLAIN, MODES),
    st.builds(member, PLAIN, st.binary(max_size=3), mode=MODES),
    st.builds(symlink, PLAIN, PLAIN | PATHS | st.sampled_from(["/../../../outside", "../../../outside"])),
    st.builds(hardlink, PLAIN, PLAIN | st.just("a/kept")),
    st.builds(member, PATHS, mode=MODES),
    st.builds(hardlink, PLAIN, PATHS | st.just("../../../outside/kept")),
    st.builds(member, PLAIN, type=st.sampled_from([tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(st.lists(HOSTILE, max_size=8))
def test_no_members_reach_outside(tmp_path: Path, members: list[Member]) -> None:
    """Names and links that lead out, one behind the other: nothing but the cache is written to, or linked into it."""
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o711, exist_ok=True)
    kept = outside / "kept"
    kept.write_bytes(b"kept")
    before = (outside.stat().st_mode, kept.stat().st_mode)
    (tmp_path / "root.tar").write_bytes(tar(*members))
    with contextlib.suppress(RootfsError):
        unpack(tmp_path / "root.tar", tmp_path / "cache")
    assert (outside.stat().st_mode, kept.stat().st_mode, kept.stat().st_nlink, kept.read_bytes()) == (*before, 1, b"kept")
    assert os.listdir(outside) == ["kept"]
    assert sorted(os.listdir(tmp_path)) == ["cache", "outside", "root.tar"]


# ---- the cache ----


def test_unpacked_once(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(SAMPLE)
    monkeypatch.setattr(module, "_Extractor", None)
    assert make(SAMPLE) == root
    assert sorted(os.listdir(root.parent.parent)) == [root.parent.name]  # no lock, no temporary file


def test_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tarball = tmp_path / "root.tar"
    tarball.write_bytes(SAMPLE)
    later = time.time_ns() + 10_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)
    root = unpack(tarball, tmp_path / "cache")
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert unpack(tarball, tmp_path / "cache") == root
    monkeypatch.undo()
    tarball.write_bytes(tar(member("other")))
    assert os.listdir(unpack(tarball, tmp_path / "cache")) == ["other"]


def test_a_fresh_file_is_hashed_again(make: Callable[..., Path]) -> None:
    """Its times may stay the same when it is written to once more within a clock tick."""
    assert not list(make(SAMPLE).parent.parent.glob("*.key"))


def test_a_tarball_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tarball = tmp_path / "root.tar"
    tarball.write_bytes(SAMPLE)
    finish = module._Source.finish

    def change(source: module._Source) -> None:
        finish(source)
        os.utime(tarball)

    monkeypatch.setattr(module._Source, "finish", change)
    with pytest.raises(RootfsError, match="changed while it was being read"):
        unpack(tarball, tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == []


def test_many_threads_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tarball = tmp_path / "root.tar"
    tarball.write_bytes(gzip.compress(tar(*(member(f"d{n % 7}/f{n}", b"x" * n) for n in range(300)))))
    runs, results, run = [], [], module._Extractor.run

    def count(extractor: module._Extractor, file: io.BufferedReader) -> None:
        runs.append(1)
        run(extractor, file)

    monkeypatch.setattr(module._Extractor, "run", count)

    def work() -> None:
        root = unpack(tarball, tmp_path / "cache")
        results.append((root, sum(1 for path in root.rglob("f*"))))

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 1
    assert len(results) == 12
    assert len(set(results)) == 1
    assert results[0][1] == 300


PROGRAM = "import sys, pathlib; from tinyvisor.runtime.unpack import unpack; print(unpack(*map(pathlib.Path, sys.argv[1:])))"


def test_processes_that_are_killed_leave_nothing_that_hurts(tmp_path: Path) -> None:
    tarball, cache = tmp_path / "root.tar", tmp_path / "cache"
    tarball.write_bytes(tar(*(member(f"d{n % 50}/f{n}", b"x" * 100) for n in range(4_000))))
    command = [sys.executable, "-c", PROGRAM, str(tarball), str(cache)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not list(cache.glob("*.tmp/rootfs/d1/*")):
        assert time.monotonic() < deadline
        assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert list(cache.glob("*.tmp"))
    others = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    roots = {other.communicate()[0].strip() for other in others}
    assert len(roots) == 1
    root = Path(roots.pop())
    assert sum(1 for _ in root.rglob("f*")) == 4_000
    assert [path.name for path in cache.iterdir() if path.suffix != ".key"] == [root.parent.name]


def test_a_failure_says_where(tmp_path: Path) -> None:
    (tmp_path / "root.tar").write_bytes(SAMPLE)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(RootfsError, match="cache: File exists"):
        unpack(tmp_path / "root.tar", tmp_path / "cache")
