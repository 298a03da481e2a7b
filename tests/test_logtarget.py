"""Logs that are no files, and what a flood, a slow and a dead syslog do to them."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.bench import bench, service
from tests.fake_runtime import Script
from tinyvisor import logtarget
from tinyvisor.logtarget import MAX_MESSAGE, MAX_WAITING, Limited, Log, SocketLog, open_log
from tinyvisor.runtime.logfile import Block, Lost, Stream
from tinyvisor.runtime.stage import Place
from tinyvisor.spec import Logging
from tinyvisor.state import LogLost


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


class Server:
    """A syslog; a restart gets it another socket at the same path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.address = f"unixgram://{path}"
        self.socket = self._bind()

    def _bind(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        made.bind(str(self.path))
        return made

    def stop(self) -> None:
        self.socket.close()
        self.path.unlink(missing_ok=True)

    def start(self) -> None:
        self.socket = self._bind()

    def take(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self.socket.recv(1 << 16))
            except BlockingIOError:
                return found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "log")
    yield server
    server.stop()


def full(*lines: bytes) -> Block:
    return b"".join(line + b"\n" for line in lines)


def syslog(server: Server, **options: Any) -> Log:
    log = open_log(Logging(driver="syslog", syslog_address=server.address, **options), "web", None)
    assert log is not None
    return log


# ---- formats ----


def test_a_local_syslog_gets_rfc_3164(server: Server) -> None:
    log = syslog(server)
    log.write("stdout", full(b"hello \x1b[2J\x00<1>x"))
    log.write("stderr", full(b""))
    out, err = server.take()
    assert re.fullmatch(rb"<30>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d web\[\d+\]: hello \x1b\[2J\x00<1>x", out)
    assert re.fullmatch(rb"<27>.* web\[\d+\]: ", err)
    assert log.close() is None


def test_words_of_the_configuration(server: Server) -> None:
    log = syslog(server, syslog_format="rfc5424", syslog_facility="local7", tag="shop")
    log.write("stdout", full(b"hello"))
    (message,) = server.take()
    assert re.fullmatch(rb"<190>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z - shop \d+ - - hello", message)
    log.close()


def test_udp_carries_rfc_5424_with_the_host_s_name() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(60)
        log = open_log(Logging(driver="syslog", syslog_address=f"udp://127.0.0.1:{server.getsockname()[1]}"), "web", None)
        assert log is not None
        log.write("stdout", full(b"hello"))
        assert re.fullmatch(rb"<30>1 \S+ \S+ web \d+ - - hello", server.recv(1000))
        log.close()


def test_the_journal_gets_fields_that_nobody_can_forge(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logtarget, "JOURNAL", str(server.path))
    log = open_log(Logging(driver="journald", tag="shop"), "web-1", None)
    assert log is not None
    log.write("stdout", b"PRIORITY=0")
    log.write("stdout", full(b"a"))
    own = b"PRIORITY=6\nCONTAINER_NAME=web-1\nSYSLOG_IDENTIFIER=shop\nCONTAINER_TAG=shop\n"
    assert server.take() == [
        own + b"CONTAINER_PARTIAL_MESSAGE=true\nMESSAGE\n\x0a\0\0\0\0\0\0\0PRIORITY=0\n",
        own + b"MESSAGE\n\x01\0\0\0\0\0\0\0a\n",
    ]
    log.close()


def test_a_long_line_is_cut_for_syslog(server: Server) -> None:
    log = syslog(server)
    log.write("stdout", full(b"x" * (MAX_MESSAGE + 1)))
    assert [len(message.partition(b"]: ")[2]) for message in server.take()] == [MAX_MESSAGE, 1]
    log.close()


def test_none_is_no_log(tmp_path: Path) -> None:
    assert open_log(Logging(driver="none"), "web", tmp_path) is None
    assert list(tmp_path.iterdir()) == []


# ---- slow and dead ----


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def plain(stream: Stream, line: bytes, full: bool) -> list[bytes]:
    return [line]


def test_a_syslog_that_does_not_read_holds_up_nobody_and_what_it_misses_is_counted(server: Server) -> None:
    log = SocketLog(plain, str(server.path))
    number, line = 5000, b"x" * 999
    for _ in range(number):
        assert log.write("stdout", full(line)) is None
    assert log._size <= MAX_WAITING + len(line)
    got: list[bytes] = []
    while log.flush() or not got:
        got += server.take()
    got += server.take()
    told = log.write("stdout", full(b"again"))
    assert told is not None
    assert told.lines == number - len(got)
    assert told.bytes == 1000 * told.lines
    notice, last = server.take()
    assert notice.startswith(b"tinyvisor: %d lines (%d bytes) are missing here: " % (told.lines, told.bytes))
    assert last == b"again"
    assert log.close() is None


def test_a_syslog_that_restarts_misses_nothing(server: Server) -> None:
    clock = Clock()
    log = SocketLog(plain, str(server.path), clock)
    log.write("stdout", full(b"a"))
    assert server.take() == [b"a"]
    server.stop()
    log.write("stdout", full(b"b"))
    assert not log.flush()  # nobody is there to wait for
    server.start()
    log.write("stdout", full(b"c"))
    assert server.take() == []  # it is not tried again for every line
    clock.now += logtarget.RETRY
    log.write("stdout", full(b"d"))
    assert server.take() == [b"b", b"c", b"d"]
    assert log.close() is None


def test_a_syslog_that_is_not_there_is_told_of_at_the_end(tmp_path: Path) -> None:
    log = SocketLog(plain, str(tmp_path / "none"))
    log.write("stdout", full(b"a", b"bc"))
    assert log.close() == Lost(2, 5, f"{tmp_path}/none: No such file or directory")


# ---- a rate ----


class Kept:
    """A log that remembers."""

    waits = False
    most = 1 << 16

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.lost: list[Lost] = []

    def write(self, stream: Stream, block: Block) -> Lost | None:
        self.lines += block.removesuffix(b"\n").split(b"\n")
        return None

    def lose(self, lost: Lost) -> None:
        self.lost.append(lost)

    def place(self) -> Place:
        return Place()

    def take_back(self, place: Place) -> None:
        raise AssertionError("nobody was killed")

    def flush(self) -> bool:
        return False

    def close(self) -> Lost | None:
        return None


def test_more_than_the_rate_is_counted_and_told_once_a_second() -> None:
    kept, clock = Kept(), Clock()
    log = Limited(kept, 10, clock)
    log.write("stdout", full(b"aaaa", b"bbbb", b"c", b"d"))
    clock.now = 0.9
    log.write("stdout", full(b"e"))
    assert (kept.lines, kept.lost) == ([b"aaaa", b"bbbb"], [])
    clock.now = 1.0
    log.write("stdout", full(b"f"))
    reason = "more than 10B a second"
    assert (kept.lines[2:], kept.lost) == ([b"f"], [Lost(3, 6, reason)])
    log.write("stdout", full(b"g" * 9, b"h"))
    log.close()
    assert kept.lost[1:] == [Lost(2, 12, reason)]


def test_a_line_of_more_than_a_second_s_share_passes_alone() -> None:
    kept, clock = Kept(), Clock()
    log = Limited(kept, 10, clock)
    log.write("stdout", full(b"a" * 50, b"b"))
    log.write("stdout", full(b"c"))
    assert kept.lines == [b"a" * 50]


sizes = st.lists(st.tuples(st.integers(0, 12), st.sampled_from([0.0, 0.3, 1.0]), st.booleans()), max_size=30)


@given(sizes, st.integers(1, 30))
def test_a_rate_s_lines_are_those_that_it_lets_through_one_by_one(lines: list[tuple[int, float, bool]], rate: int) -> None:
    """Of a line each: how many bytes, what time passes before it, and whether it comes in one block with the one before."""
    blocks: list[tuple[float, list[bytes]]] = []
    for number, (size, pause, joined) in enumerate(lines):
        line = (b"%d" % number).ljust(size, b".")
        if joined and blocks:
            blocks[-1][1].append(line)
        else:
            blocks.append((pause, [line]))
    found = []
    for at_once in (True, False):
        kept, clock = Kept(), Clock()
        log = Limited(kept, rate, clock)
        for pause, block in blocks:
            clock.now += pause
            for part in [full(*block)] if at_once else map(full, block):
                log.write("stdout", part)
        log.close()
        found.append((kept.lines, kept.lost))
        assert len(kept.lines) + sum(lost.lines for lost in kept.lost) == len(lines)
    assert found[0] == found[1]


# ---- in the supervisor ----


@pytest.mark.anyio
async def test_a_flood_is_bounded_in_the_file_and_told(tmp_path: Path) -> None:
    flood = Script(seconds=1, output=((0.5, "stdout", (b"y" * 99 + b"\n") * 5000),))
    b = bench(service("a", logging=Logging(max_rate=1000)), scripts={"a": [flood]}, log_dir=tmp_path)
    await b.run()
    told = b.of(LogLost)
    assert 1 <= len(told) <= 4
    assert all(event.reason == "more than 1000B a second" for event in told)
    kept = (tmp_path / "a.log").read_bytes().count(b"y\n")
    assert 10 <= kept < 100
    assert kept + sum(event.lines for event in told) == sum(name == "a" for name, _, _ in b.lines)


@pytest.mark.anyio
async def test_a_dead_syslog_delays_no_restart_and_a_stuck_one_by_a_bound(server: Server, tmp_path: Path) -> None:
    say = Script(seconds=1, output=((0.5, "stdout", b"x\n" * 3),))
    dead = service("dead", logging=Logging(driver="syslog", syslog_address=f"unixgram://{tmp_path}/none"))
    fine = service("fine", logging=Logging(driver="syslog", syslog_address=server.address))
    stuck = service("stuck", logging=Logging(driver="syslog", syslog_address=server.address))
    b = bench(
        dead,
        fine,
        stuck,
        scripts={"dead": [say], "fine": [say], "stuck": [Script(seconds=1, output=((0.9, "stdout", b"x\n" * 9999),))]},
    )
    await b.run()
    assert b.took == pytest.approx(1 + 0.5, abs=0.06)
    lost = {event.name: event for event in b.of(LogLost)}
    assert (lost["dead"].lines, lost["dead"].reason) == (3, f"{tmp_path}/none: No such file or directory")
    assert "fine" not in lost
    assert lost["stuck"].lines > 1000
