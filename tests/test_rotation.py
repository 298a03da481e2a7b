"""Log files that are rotated by age, compressed, and read meanwhile."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tinyvisor.logs import LogReader, Record, so_far
from tinyvisor.runtime import rotation
from tinyvisor.runtime.logfile import LogFile, as_json, as_raw
from tinyvisor.runtime.rotation import wait_compressed
from tinyvisor.runtime.syscalls import birth_time

SECOND = 1_000_000_000
NOON = 1767355445 * SECOND


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> int:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "web.log"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def new(path: Path, clock: Clock) -> Iterator[Callable[..., LogFile]]:
    opened = []

    def new(**options: object) -> LogFile:
        opened.append(LogFile(path, **{"max_size": 1 << 20, "max_files": 3, "clock": clock, **options}))  # type: ignore[arg-type]
        return opened[-1]

    yield new
    for log in opened:
        log.close()
    wait_compressed(path)


def write(log: LogFile, *lines: bytes) -> None:
    assert log.write("stdout", b"".join(line + b"\n" for line in lines)) is None


def names(path: Path) -> set[str]:
    return {file.name.removeprefix(path.name) for file in path.parent.iterdir()}


def content(path: Path) -> list[bytes]:
    with closing(LogReader(path)) as reader:
        return texts(reader)


def texts(reader: LogReader) -> list[bytes]:
    found: list[Record] = []
    while some := reader.read():
        found += some
    return [record.text for record in found]


# ---- age ----


def test_a_file_is_rotated_once_its_first_record_is_too_old(new: Callable[..., LogFile], path: Path, clock: Clock) -> None:
    log = new(max_age=60)
    write(log, b"a")
    clock.pass_(59.9)
    write(log, b"b")
    assert names(path) == {""}
    clock.pass_(0.1)
    write(log, b"c")
    assert names(path) == {"", ".1"}
    clock.pass_(59)
    write(log, b"d")
    assert names(path) == {"", ".1"}
    clock.pass_(1)
    write(log, b"e")
    assert content(path) == [b"a", b"b", b"c", b"d", b"e"]
    assert path.read_bytes().endswith(b"F e\n")
    assert path.read_bytes().count(b"\n") == 1


@pytest.mark.parametrize("options", [{}, {"encode": as_json}])
def test_age_counts_from_the_first_record_also_for_the_next_run(
    new: Callable[..., LogFile], path: Path, clock: Clock, options: dict[str, object]
) -> None:
    write(new(**options), b"a")
    clock.pass_(40)
    log = new(max_age=60, **options)
    write(log, b"b")
    assert names(path) == {""}
    clock.pass_(20)
    write(log, b"c")
    assert names(path) == {"", ".1"}


def test_a_clock_that_is_set_back_rotates_nothing(new: Callable[..., LogFile], path: Path, clock: Clock) -> None:
    log = new(max_age=60)
    write(log, b"a")
    clock.pass_(-1e6)
    write(log, b"b")
    assert names(path) == {""}


def test_an_empty_file_is_not_old(new: Callable[..., LogFile], path: Path, clock: Clock) -> None:
    log = new(max_age=1)
    clock.pass_(100)
    write(log, b"a")
    assert names(path) == {""}


# ---- JSON lines ----


def test_raw_lines(new: Callable[..., LogFile], path: Path) -> None:
    log = new(encode=as_raw)
    for block in (b"a\n", b"\xff{"):
        log.write("stderr", block)
    log.write("stdout", b"\n")
    assert path.read_bytes() == b"a\n\xff{\n"
    with closing(LogReader(path, raw=True)) as reader:
        assert list(so_far([reader], since="2026-01-02T03:04:05Z")) == [
            ("", "web", "stdout", True, b"a"), ("", "web", "stdout", True, b"\xff{"),
        ]  # fmt: skip


def test_what_was_written_between_two_times(new: Callable[..., LogFile], clock: Clock, path: Path) -> None:
    log = new()
    for second in range(4):
        write(log, b"%d" % second)
        clock.pass_(1)
    with closing(LogReader(path)) as reader:
        found = so_far([reader], since="2026-01-02T12:04:06Z", until="2026-01-02T12:04:07.5Z")
        assert [record.text for record in found] == [b"1", b"2"]


def test_json_lines(new: Callable[..., LogFile], path: Path) -> None:
    log = new(encode=as_json)
    for block in ('"ü\u2028\n'.encode(), b"\xff{"):
        log.write("stderr", block)
    log.write("stdout", b'{"log": "forged"}\n')
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    time = "2026-01-02T12:04:05.000000Z"
    assert lines == [
        {"log": '"ü\u2028\n', "stream": "stderr", "time": time},
        {"log": "\ufffd{", "stream": "stderr", "time": time},
        {"log": '{"log": "forged"}\n', "stream": "stdout", "time": time},
    ]
    with closing(LogReader(path)) as reader:
        assert [(record.stream, record.full, record.text) for record in reader.read()] == [
            ("stderr", True, '"ü\u2028'.encode()), ("stderr", False, "\ufffd{".encode()), ("stdout", True, b'{"log": "forged"}'),
        ]  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"{}",
        b"[1]",
        b'{"log": 1, "stream": "stdout", "time": "x"}',
        b'{"log": "", "stream": "x", "time": "x"}',
        b"{" * 99999,
    ],
)
def test_what_is_no_record_is_passed_over(path: Path, line: bytes) -> None:
    path.write_bytes(line + b"\n2026-01-02T03:04:05.678901Z stdout F fine\n")
    assert content(path) == [b"fine"]


# ---- compression ----


def test_rotated_files_are_compressed_and_read_all_the_same(new: Callable[..., LogFile], path: Path) -> None:
    log = new(max_size=1000, max_files=4, compress=True)
    lines = [b"line %03d " % number + b"x" * 60 for number in range(60)]
    for line in lines:
        write(log, line)
    log.close()
    wait_compressed(path)
    assert names(path) == {"", ".1.gz", ".2.gz", ".3.gz"}
    found = content(path)
    assert len(found) >= 30
    assert found == lines[-len(found) :]
    assert gzip.decompress((path.parent / "web.log.1.gz").read_bytes()).count(b"\n") == 9


def test_compression_can_be_turned_on_and_off(new: Callable[..., LogFile], path: Path) -> None:
    lines = [b"%03d" % number for number in range(9)]
    plain = new(max_size=1, max_files=9)
    for line in lines[:3]:
        write(plain, line)
    new(max_size=1, max_files=9, compress=True).close()
    wait_compressed(path)
    assert names(path) == {"", ".1.gz", ".2.gz"}
    again = new(max_size=1, max_files=4)
    for line in lines[3:5]:
        write(again, line)
    assert names(path) == {"", ".1", ".2", ".3.gz"}
    assert content(path) == lines[1:5]


def test_what_a_crash_has_left_half_done_is_done_again(new: Callable[..., LogFile], path: Path) -> None:
    """Killed while it was writing the .gz, and between its rename and the other's removal."""
    log = new(max_size=1, max_files=5)
    for line in (b"a", b"b", b"c"):
        write(log, line)
    log.close()
    (path.parent / "web.log.gz.partial").write_bytes(b"half")
    (path.parent / "web.log.2.gz").write_bytes(gzip.compress((path.parent / "web.log.2").read_bytes()))
    assert content(path) == [b"a", b"b", b"c"]
    new(max_size=1, max_files=5, compress=True).close()
    wait_compressed(path)
    assert names(path) == {"", ".1.gz", ".2.gz"}
    assert content(path) == [b"a", b"b", b"c"]


def test_a_batch_that_a_crash_has_left_half_written_is_taken_back_before_it_is_compressed(
    new: Callable[..., LogFile], path: Path
) -> None:
    """Also where it was rotated meanwhile; what is compressed is found by nobody who takes back."""
    killed = new(max_size=200, max_files=9, compress=True)
    write(killed, b"before")
    place = killed.place()
    killed.write("stdout", b"".join(b"batch %d\n" % number for number in range(6)))
    wait_compressed(path)
    assert names(path) == {"", ".1"}, "not before it has been settled"
    log = new(max_size=200, max_files=9, compress=True)
    wait_compressed(path)
    log.take_back(place)
    assert content(path) == [b"before"]
    write(log, b"after")
    wait_compressed(path)
    assert names(path) == {"", ".1.gz"}
    assert content(path) == [b"before", b"after"]


def test_a_full_disk_leaves_what_there_is(new: Callable[..., LogFile], path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gzip.GzipFile, "write", full)
    log = new(max_size=1, max_files=5, compress=True)
    for line in (b"a", b"b", b"c"):
        write(log, line)
    wait_compressed(path)
    assert names(path) == {"", ".1", ".2"}
    assert content(path) == [b"a", b"b", b"c"]


def test_links_and_pipes_in_the_way_are_not_followed(new: Callable[..., LogFile], path: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    for name in ("web.log.1", "web.log.2.gz", "web.log.gz.partial"):
        (tmp_path / name).symlink_to(secret)
    log = new(max_size=1, max_files=5, compress=True)
    write(log, b"a")
    write(log, b"b")
    wait_compressed(path)
    assert secret.read_bytes() == b"secret"
    assert content(path)[-1] == b"b"


@pytest.mark.parametrize("damage", [b"", b"no gzip", gzip.compress(b"x" * 1000, mtime=0)[:-20]])
def test_a_damaged_file_is_an_error_and_no_crash(path: Path, damage: bytes) -> None:
    path.write_bytes(b"2026-01-02T03:04:05.678901Z stdout F fine\n")
    (path.parent / "web.log.1.gz").write_bytes(damage)
    if damage:
        with pytest.raises(OSError, match=r"gz"):
            content(path)
    else:
        assert content(path) == [b"fine"]


@pytest.mark.parametrize("seed", range(3))
def test_a_reader_sees_every_line_once_while_files_are_rotated_and_compressed(
    new: Callable[..., LogFile], path: Path, seed: int
) -> None:
    choose = random.Random(seed)
    log, seen, written = new(max_size=500, max_files=50, compress=True), list[bytes](), list[bytes]()
    with closing(LogReader(path)) as reader:
        for number in range(400):
            line = b"%d " % number + os.urandom(choose.randrange(30)).hex().encode()
            write(log, line)
            written.append(line)
            if choose.random() < 0.2:
                seen += [record.text for record in reader.read()]
            if choose.random() < 0.05:
                wait_compressed(path)
        wait_compressed(path)
        seen += texts(reader)
    assert seen == written


def test_raw_files_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    """By when they were made, for their inodes may be the same; also where the first line is empty, or not whole yet."""
    found = set()
    for name, content in (("a", b"tick\n"), ("b", b"tick\n"), ("c", b"\n\n"), ("d", b"\n\n")):
        (tmp_path / name).write_bytes(content)
        with (tmp_path / name).open("r+b") as file:
            if not birth_time(file.fileno()):
                pytest.skip("this file system does not know when a file was made")
            identity = rotation._identity(file.fileno())
            file.truncate(2)
            assert rotation._identity(file.fileno()) == identity
            assert identity is not None
            found.add(identity.partition("-")[2])
            file.truncate(0)
            assert rotation._identity(file.fileno()) is None
    assert len(found) == 4


def test_no_more_than_one_task_waits_for_a_log(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    begun, go, runs = threading.Event(), threading.Event(), []

    def slow(path: Path) -> None:
        runs.append(path)
        begun.set()
        assert go.wait(60)

    monkeypatch.setattr(rotation, "_compress_all", slow)
    rotation.compress_soon(path)
    assert begun.wait(60)
    for _ in range(100):
        rotation.compress_soon(path)
    go.set()
    wait_compressed(path)
    assert len(runs) == 2
