"""The log file: its format, its rotation, its patience with a full disk."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvisor.runtime.logfile import MAX_PIECE, Block, Lines, LogFile, Lost, Stream, as_cri, as_json, as_raw, timestamp

NOON = 1767355445_678901234  # 2026-01-02T12:04:05.678901234Z
STAMP = b"2026-01-02T12:04:05.678901Z"
RECORD = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z (stdout|stderr) ([FP]) ([^\n]*)\n")
Open = Callable[..., LogFile]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "web.log"


@pytest.fixture
def new(path: Path) -> Iterator[Open]:
    """Opens log files, and closes them."""
    opened = []

    def new(max_size: int = 1 << 20, max_files: int = 3, clock: Callable[[], int] = lambda: NOON) -> LogFile:
        opened.append(LogFile(path, max_size=max_size, max_files=max_files, clock=clock))
        return opened[-1]

    yield new
    for log in opened:
        log.close()


class Disk:
    """Stands in for os.write: takes `room` bytes more, then says `error`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 1 << 40
        self.error = errno.ENOSPC
        self.most = 1 << 40
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, fd: int, data: bytes) -> int:
        if not self.room:
            raise OSError(self.error, os.strerror(self.error))
        done = self._write(fd, data[: min(self.room, self.most)])
        self.room -= done
        return done


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def full(*lines: bytes) -> Block:
    return b"".join(line + b"\n" for line in lines)


def files(path: Path) -> list[Path]:
    """Oldest first."""
    numbered = [path.with_name(f"{path.name}.{number}") for number in range(9, 0, -1)]
    return [file for file in [*numbered, path] if file.exists()]


def read(path: Path) -> list[tuple[bytes, bytes, bytes]]:
    """(stream, tag, content) of every record of all files; fails on anything that is not a whole record."""
    records = []
    for file in files(path):
        data = file.read_bytes()
        found = list(RECORD.finditer(data))
        assert b"".join(match[0] for match in found) == data
        records += [(match[1], match[2], match[3]) for match in found]
    return records


def content(path: Path, stream: bytes) -> bytes:
    return b"".join(data + (b"\n" if tag == b"F" else b"") for name, tag, data in read(path) if name == stream)


# ---- cutting ----


def test_lines_are_cut_at_newlines_whatever_the_chunks() -> None:
    lines = Lines()
    assert lines.feed(b"on") == []
    assert lines.feed(b"e\ntwo\n\nthr") == [b"one\ntwo\n\n"]
    assert lines.flush() == [b"thr"]
    assert lines.flush() == []


def test_a_long_line_is_cut_into_parts() -> None:
    lines = Lines()
    assert lines.feed(b"a" * MAX_PIECE) == []
    assert lines.feed(b"\n") == full(b"a" * MAX_PIECE).splitlines(keepends=True)
    assert lines.feed(b"b" * (2 * MAX_PIECE)) == [b"b" * MAX_PIECE]
    assert lines.feed(b"c\n" + b"d" * (MAX_PIECE + 1)) == [b"b" * MAX_PIECE, b"c\n", b"d" * MAX_PIECE]
    assert lines.flush() == [b"d"]


def records(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """A stream's lines and parts of lines, one by one, and whether a newline follows: what blocks come to, taken slowly."""
    *whole, last = data.split(b"\n")
    for line, ended in [*((line, True) for line in whole), (last, False)]:
        parts = [line[start : start + MAX_PIECE] for start in range(0, len(line), MAX_PIECE)] or [b""]
        yield from ((part, False) for part in parts[:-1])
        if ended or parts[-1]:
            yield parts[-1], ended


SPECIAL = b'\\n"\t\r\x00\x7f\xc3\xa4\xe2\x82\xff'
chunks = st.lists(
    st.binary(max_size=40)
    | st.lists(st.sampled_from([*(bytes([byte]) for byte in SPECIAL), b"n", b"\n", b"\\n", b"\\\\n"]), max_size=30).map(b"".join)
    | st.tuples(st.integers(1, 3), st.integers(-1, 1)).map(lambda size: b"x" * (size[0] * MAX_PIECE + size[1]))
    | st.just(b"\n"),
    max_size=12,
)


@given(chunks)
def test_blocks_are_what_the_lines_are_one_by_one_whatever_the_chunks(chunks: list[bytes]) -> None:
    lines = Lines()
    blocks = [block for chunk in chunks for block in lines.feed(chunk)] + lines.flush()
    assert b"".join(blocks) == b"".join(chunks)
    assert all(blocks)
    assert all(block.endswith(b"\n") or b"\n" not in block for block in blocks)
    assert [record for block in blocks for record in records(block)] == list(records(b"".join(chunks)))


def line_as_json(time: bytes, stream: Stream, line: bytes, ended: bool) -> bytes:
    text = line.decode("utf-8", "replace") + "\n" * ended
    return json.dumps({"log": text, "stream": stream, "time": time.decode()}).encode() + b"\n"


def line_as_cri(time: bytes, stream: Stream, line: bytes, ended: bool) -> bytes:
    return b"%s %s %s %s\n" % (time, stream.encode(), b"F" if ended else b"P", line)


def line_as_raw(time: bytes, stream: Stream, line: bytes, ended: bool) -> bytes:
    return line + b"\n" * ended


FORMATS = [(as_cri, line_as_cri), (as_json, line_as_json), (as_raw, line_as_raw)]


@pytest.mark.parametrize("encode, encode_line", FORMATS, ids=["cri", "json", "raw"])
@given(chunks=chunks)
def test_a_block_is_stored_as_its_lines_are_one_by_one(
    encode: Callable[[bytes, Stream, Block], bytes],
    encode_line: Callable[[bytes, Stream, bytes, bool], bytes],
    chunks: list[bytes],
) -> None:
    lines = Lines()
    blocks = [block for chunk in chunks for block in lines.feed(chunk)] + lines.flush()
    stored = b"".join(encode(STAMP, "stderr", block) for block in blocks)
    assert stored == b"".join(encode_line(STAMP, "stderr", *record) for record in records(b"".join(chunks)))


# ---- format ----


def test_a_record_is_the_cri_s(new: Open, path: Path) -> None:
    log = new()
    log.write("stdout", full(b"whole"))
    log.write("stdout", b"part")
    log.write("stderr", full(b"\xff\x00 bytes", b""))
    expected = b"%b stdout F whole\n%b stdout P part\n%b stderr F \xff\x00 bytes\n%b stderr F \n" % ((STAMP,) * 4)
    assert path.read_bytes() == expected


@pytest.mark.parametrize(
    "nanoseconds, text",
    [(0, b"1970-01-01T00:00:00.000000Z"), (NOON, STAMP), (1_999_999_999, b"1970-01-01T00:00:01.999999Z")],
)
def test_timestamps(nanoseconds: int, text: bytes) -> None:
    assert timestamp(nanoseconds) == text


# ---- files ----


def test_modes_whatever_was_missing(new: Open, path: Path) -> None:
    before = os.umask(0)
    try:
        new()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o7777 == 0o640
    assert path.parent.stat().st_mode & 0o7777 == 0o750


def test_the_fd_is_not_inherited(new: Open) -> None:
    assert not os.get_inheritable(new()._fd)


def test_an_existing_file_is_appended_to(new: Open, path: Path) -> None:
    new().write("stdout", full(b"one"))
    new().write("stdout", full(b"two"))
    assert content(path, b"stdout") == b"one\ntwo\n"


def test_a_symbolic_link_is_refused(new: Open, path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        new()
    assert not (tmp_path / "victim").exists()


def test_what_is_no_file_is_refused_without_waiting(new: Open, path: Path) -> None:
    path.parent.mkdir()
    os.mkfifo(path)
    with pytest.raises(OSError, match="No such device or address"):
        new()
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(OSError, match="not a regular file"):
        new()
    os.close(reader)


def test_a_file_where_the_directory_should_be(new: Open, path: Path) -> None:
    path.parent.write_bytes(b"")
    with pytest.raises(OSError, match="Not a directory"):
        new()


def test_no_fd_is_left_open(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    log = LogFile(path, max_size=100, max_files=2)
    for _ in range(50):
        log.write("stdout", full(b"x" * 50))
    log.close()
    log.close()
    assert len(os.listdir("/proc/self/fd")) == before


# ---- rotation ----

PREFIX = len(STAMP) + len(" stdout F \n")


def test_rotation_keeps_the_newest_files(new: Open, path: Path) -> None:
    log = new(max_size=2 * (PREFIX + 2), max_files=3)
    for number in range(10, 19):
        log.write("stdout", full(b"%d" % number))
    assert [file.name for file in files(path)] == ["web.log.2", "web.log.1", "web.log"]
    assert content(path, b"stdout") == b"14\n15\n16\n17\n18\n"


def test_one_file_starts_anew(new: Open, path: Path) -> None:
    log = new(max_size=PREFIX + 1, max_files=1)
    for line in (b"a", b"b", b"c"):
        log.write("stdout", full(line))
    assert files(path) == [path]
    assert content(path, b"stdout") == b"c\n"


def test_files_of_a_larger_setting_are_removed(new: Open, path: Path) -> None:
    log = new(max_size=PREFIX + 1, max_files=5)
    log.write("stdout", full(*(b"%d" % number for number in range(5))))
    assert len(files(path)) == 5
    new(max_size=PREFIX + 1, max_files=2).write("stdout", full(b"5"))
    assert [file.name for file in files(path)] == ["web.log.1", "web.log"]
    assert content(path, b"stdout") == b"4\n5\n"


def test_a_record_longer_than_a_file_gets_one_of_its_own(new: Open, path: Path) -> None:
    log = new(max_size=100, max_files=5)
    log.write("stdout", full(b"a", b"b" * 500, b"c"))
    assert [file.stat().st_size for file in files(path)] == [PREFIX + 1, PREFIX + 500, PREFIX + 1]


writes = st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.lists(st.binary(max_size=60), max_size=6)), max_size=20)


@given(writes=writes, max_size=st.integers(1, 300))
def test_no_record_is_torn_or_out_of_order(writes: list[tuple[Stream, list[bytes]]], max_size: int) -> None:
    kept = {name: Lines() for name in ("stdout", "stderr")}
    expected = []
    with tempfile.TemporaryDirectory() as directory:
        log = LogFile(Path(directory, "x.log"), max_size=max_size, max_files=1000)
        for stream, chunks in writes:
            for block in kept[stream].feed(b"".join(chunks)):
                log.write(stream, block)
                expected += [(stream.encode(), b"F" if ended else b"P", line) for line, ended in records(block)]
        log.close()
        names = sorted(os.listdir(directory), key=lambda name: -int(name.removeprefix("x.log").removeprefix(".") or 0))
        data = [Path(directory, name).read_bytes() for name in names]
    assert [match.groups() for file in data for match in RECORD.finditer(file)] == expected
    assert all(len(file) <= max_size or file.count(b"\n") == 1 for file in data)
    assert all(file.endswith(b"\n") for file in data if file)


# ---- trouble ----


def test_a_full_disk_is_counted_and_told_once(new: Open, path: Path, disk: Disk) -> None:
    log = new()
    assert log.write("stdout", full(b"before")) is None
    disk.room = 0
    assert log.write("stdout", full(b"one", b"two")) is None
    assert log.write("stderr", b"three") is None
    disk.room = 1 << 20
    lost = log.write("stdout", full(b"after"))
    assert lost == Lost(lines=3, bytes=len(b"one\ntwo\nthree"), reason="No space left on device")
    assert log.write("stdout", full(b"more")) is None
    assert read(path) == [
        (b"stdout", b"F", b"before"),
        (b"stderr", b"F", b"tinyvisor: 3 lines (13 bytes) are missing here: No space left on device"),
        (b"stdout", b"F", b"after"),
        (b"stdout", b"F", b"more"),
    ]
    assert log.close() is None


def test_a_disk_that_fills_up_in_a_record_leaves_no_half_of_it(new: Open, path: Path, disk: Disk) -> None:
    log = new()
    log.write("stdout", full(b"before"))
    disk.room = 10
    log.write("stdout", full(b"lost"))
    disk.room = 1 << 20
    assert log.write("stdout", full(b"after")) == Lost(1, 5, "No space left on device")
    assert [record[2] for record in read(path)][::2] == [b"before", b"after"]


def test_short_writes_are_continued(new: Open, path: Path, disk: Disk) -> None:
    disk.most = 7
    new().write("stdout", full(b"a line that takes several writes"))
    assert content(path, b"stdout") == b"a line that takes several writes\n"


def test_what_was_never_told_is_told_at_the_end(new: Open, disk: Disk) -> None:
    log = new()
    disk.room, disk.error = 0, errno.EDQUOT
    log.write("stdout", full(b"lost"))
    assert log.close() == Lost(1, 5, "Disk quota exceeded")
    assert log.close() is None


def test_the_notice_alone_may_be_what_fits(new: Open, path: Path, disk: Disk) -> None:
    """The first file takes the notice, the record behind it goes to the next and is lost again."""
    notice = len(STAMP) + len(" stderr F tinyvisor: 1 lines (5 bytes) are missing here: No space left on device\n")
    log = new(max_size=notice)
    disk.room = 0
    log.write("stdout", full(b"lost"))
    disk.room = notice
    assert log.write("stdout", full(b"again")) == Lost(1, 5, "No space left on device")
    assert log.close() == Lost(1, 6, "No space left on device")
    assert [record[2] for record in read(path)] == [b"tinyvisor: 1 lines (5 bytes) are missing here: No space left on device"]


def test_a_rotation_that_fails_is_tried_again(new: Open, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = new(max_size=PREFIX + 1)
    log.write("stdout", full(b"a"))

    def refuse(*args: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        assert log.write("stdout", full(b"b")) is None
        assert log.write("stdout", full(b"c")) is None
    assert path.stat().st_size == PREFIX + 1
    assert log.write("stdout", full(b"d")) == Lost(2, 4, "Input/output error")
    assert content(path, b"stdout") == b"a\nd\n"


def test_a_directory_that_vanishes_costs_output_only(new: Open, path: Path) -> None:
    log = new(max_size=PREFIX + 1)
    log.write("stdout", full(b"a"))
    path.unlink()
    path.parent.rmdir()
    log.write("stdout", full(b"b"))
    path.parent.mkdir()
    assert log.write("stdout", full(b"c")) == Lost(1, 2, "No such file or directory")
    assert content(path, b"stdout") == b"c\n"


def test_the_clock_is_asked_for_every_write(new: Open, path: Path) -> None:
    ticks = itertools.count(NOON, 1_000_000_000)
    log = new(clock=lambda: next(ticks))
    log.write("stdout", full(b"a", b"b"))
    log.write("stdout", full(b"c"))
    assert [line[17:19] for line in path.read_bytes().splitlines()] == [b"05", b"05", b"06"]
