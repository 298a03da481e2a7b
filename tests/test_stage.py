"""Output on its way from the pipe to the log, and a supervisor that is killed at any point of it."""

from __future__ import annotations

import os
import pty
import tty
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tinyvisor.runtime.logfile import Lines, LogFile
from tinyvisor.runtime.stage import GIVE_BACK, START, Place, Stage


class Killed(Exception):
    pass


class Writer:
    """What the supervisor does with one stream; a new one, on the same fds, is the next supervisor.

    Args:
        die_at: where it is killed: ``read``, ``begun``, ``torn`` (in the midst of the write), ``written``, ``settled``.
    """

    def __init__(self, log: Path, stage: int, die_at: str = "", max_size: int = 1 << 20) -> None:
        self.stage = Stage(stage)
        self.log = LogFile(log, max_size=max_size, max_files=4, clock=lambda: 0)
        self.lines = Lines()
        self.die_at = die_at
        if self.stage.unfinished is not None:
            self.log.take_back(self.stage.unfinished)

    def pump(self, source: int) -> None:
        blocks = self.lines.feed(self.stage.receive(source, 1 << 14))
        self._reach("read")
        for block in blocks:
            self._log(block)

    def _log(self, block: bytes) -> None:
        self.stage.begin(len(block), self.log.place())
        self._reach("begun")
        if self.die_at == "torn":
            with open(self.log.path, "ab") as file:
                file.write(b"1970-01-01T00:00:00.000000Z stdout F hal")
        self._reach("torn")
        self.log.write("stdout", block)
        self._reach("written")
        self.stage.settle()
        self._reach("settled")

    def _reach(self, point: str) -> None:
        if point == self.die_at:
            raise Killed


@pytest.fixture
def stage() -> Iterator[int]:
    made = Stage.create()
    yield made.fd
    os.close(made.fd)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    os.set_blocking(ends[0], False)
    yield ends
    for end in ends:
        os.close(end)


def logged(path: Path) -> bytes:
    files = [path.with_name(f"{path.name}.{number}") for number in (3, 2, 1)] + [path]
    records = [line for file in files if file.exists() for line in file.read_bytes().splitlines()]
    assert all(len(record.split(b" ", 3)) == 4 for record in records)
    return b"".join(record.split(b" ", 3)[3] + (b"\n" if record.split(b" ", 3)[2] == b"F" else b"") for record in records)


@pytest.mark.parametrize("point", ["read", "begun", "torn", "written", "settled"])
@pytest.mark.parametrize("max_size", [1 << 20, 100], ids=["", "rotates"])
def test_killed_at_any_point_each_byte_is_logged_once(
    tmp_path: Path, stage: int, pipe: tuple[int, int], point: str, max_size: int
) -> None:
    log = tmp_path / "web.log"
    os.write(pipe[1], b"one\ntwo")
    Writer(log, stage, max_size=max_size).pump(pipe[0])
    os.write(pipe[1], b" and\nthree\nfo")
    with pytest.raises(Killed):
        killed = Writer(log, stage, point, max_size)
        killed.pump(pipe[0])  # what of a line the one before has left
        killed.pump(pipe[0])
    os.write(pipe[1], b"ur\n")
    last = Writer(log, stage, max_size=max_size)
    with suppress(BlockingIOError):
        while True:
            last.pump(pipe[0])
    assert logged(log) == b"one\ntwo and\nthree\nfour\n"


def test_the_rest_of_a_line_waits_in_the_stage(tmp_path: Path, stage: int, pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"no end")
    Writer(tmp_path / "a.log", stage).pump(pipe[0])
    assert logged(tmp_path / "a.log") == b""
    assert Stage(stage).receive(pipe[0], 100) == b"no end"


def test_nothing_yet_and_the_end(stage: int) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    found = Stage(stage)
    with pytest.raises(BlockingIOError):
        found.receive(reading, 100)
    os.close(writing)
    assert found.receive(reading, 100) == b""
    os.close(reading)


def test_a_terminal_s(stage: int) -> None:
    master, slave = pty.openpty()
    tty.setraw(slave)
    os.write(slave, b"hello")
    assert Stage(stage).receive(master, 100) == b"hello"
    assert Stage(stage).receive(master, 100) == b"hello", "not settled"
    os.close(slave)
    os.close(master)


def test_memory_is_given_back(stage: int, pipe: tuple[int, int]) -> None:
    found = Stage(stage)
    for _ in range(64):
        os.write(pipe[1], bytes(16 << 10))
        size = len(found.receive(pipe[0], 16 << 10))
        found.begin(size, Place())
        found.settle()
    assert os.fstat(stage).st_size == START + (1 << 20)
    assert os.fstat(stage).st_blocks * 512 <= GIVE_BACK + (16 << 10) + START
