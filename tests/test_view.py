"""The view: what reaches the terminal, and that a slow one slows nobody."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvisor.clean import clean
from tinyvisor.state import (
    DependencyMissing,
    Exit,
    HealthChanged,
    HookFailed,
    LogLost,
    NotifyRefused,
    ServiceBackoff,
    ServiceExited,
    ServiceFailed,
    ServiceFinished,
    ServiceScheduled,
    ServiceStarted,
    ServiceStopped,
    ServiceStopping,
    StopHeldUp,
)
from tinyvisor.view import Style, View

LOGS = Path("/logs/demo")
PLAIN = Style()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        with contextlib.suppress(OSError):  # the test has closed it
            os.close(fd)


def read_all(reader: int) -> str:
    with open(reader, "rb", closefd=False) as file:
        return file.read().decode()


# ---- clean ----


@pytest.mark.parametrize(
    "dirty, harmless",
    [
        (b"plain \t text", "plain \t text"),
        ("grüße 世界 🎉".encode(), "grüße 世界 🎉"),
        (b"\x1b]0;new title\x07rest", "rest"),
        (b"\x1b]52;c;cm0gLXJmIC8=\x1b\\rest", "rest"),  # the clipboard
        (b"\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        (b"\x1b[2J\x1b[Hcleared", "cleared"),
        (b"\x1b[?1049hother screen", "other screen"),
        (b"\x1b[6nwhere", "where"),  # a report would be typed into the shell
        (b"\x1b[>4;1mkeys", "keys"),  # looks like a colour, sets xterm's key modes
        (b"\x1b[1 mspaced", "spaced"),
        (b'\x1bP$q"p\x1b\\rest', "rest"),
        (b"\x1b_app\x1b\\\x1b^pm\x1b\\\x1bXsos\x1b\\rest", "rest"),
        (b"\x1bcreset", "reset"),
        (b"\x1b(0charset", "charset"),
        (b"\x1b#8align", "align"),
        ("\x9b2Jc1 \x9d0;title\x07\x90dcs\x9cend".encode(), "c1 end"),
        (b"\x9b2Jraw", "�2Jraw"),  # not UTF-8
        (b"bell\x07 back\x08space del\x7f nul\x00 \x0e\x0f\x18\x1a", "bell backspace del nul "),
        (b"10%\r20%\r", "10% 20%"),
        (b"dos\r", "dos"),
        (b"unfinished \x1b[", "unfinished "),
        (b"unfinished \x1b]0;title", "unfinished 0;title"),
        (b"\x1b\x1b[2J[2J", "[2J"),
        (b"\x1b[\x07" + b"2J", "2J"),
        ("abc\u202edef\u2066".encode(), "abcdef"),
        (b"", ""),
    ],
)
def test_clean_strips_what_can_attack_a_terminal(dirty: bytes, harmless: str) -> None:
    assert clean(dirty, colour=True) == harmless
    assert clean(dirty, colour=False) == harmless


def test_clean_keeps_colours_and_ends_them_with_the_line() -> None:
    assert clean(b"\x1b[1;31mred\x1b[m and \x1b[38:5:208morange", colour=True) == (
        "\x1b[1;31mred\x1b[m and \x1b[38:5:208morange\x1b[0m"
    )
    assert clean(b"\x1b[1;31mred", colour=False) == "red"


@given(st.binary(max_size=200) | st.text(alphabet="\x1b[]()P\\^_X;?>02Jmhn\x07\x9b\x9c\x9d\r\tä", max_size=80).map(str.encode))
def test_clean_lets_nothing_through(line: bytes) -> None:
    text = clean(line, colour=True)
    rest = re.sub(r"\x1b\[[0-9;:]*m", "", text)
    assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]", rest)
    assert clean(text.encode(), colour=False) == rest


def test_clean_is_linear() -> None:
    for hostile in (b"\x1b]" * 8192, b"\x1b[" + b"0;" * 8192, b"\x1b[" * 8192, b"\x1bP" + b"x" * 16384, b"\x1b " * 8192):
        clean(hostile, colour=True)  # the suite's time limit is the bound


# ---- lines ----


def show(pipe: tuple[int, int], style: Style = PLAIN) -> View:
    return View(pipe[1], ["web", "crasher"], log_dir=LOGS, style=style)


def test_lines_are_prefixed_and_padded(pipe: tuple[int, int]) -> None:
    with show(pipe) as view:
        view.output("web", "stdout", b"hello")
        view.output("crasher", "stderr", b"ouch\x1b[2J")
    os.close(pipe[1])
    assert read_all(pipe[0]) == "web     | hello\ncrasher | ouch\n"


@pytest.mark.parametrize("ending", [b"\n", b""], ids=["whole", "part"])
def test_a_block_is_shown_line_by_line(pipe: tuple[int, int], ending: bytes) -> None:
    with show(pipe) as view:
        view.output("web", "stdout", b"one\n\n\tthree" + ending)
        view.output("web", "stdout", b"dos\r\n\x1b[2Jtwo\r\n" + ending)
        view.output("crasher", "stdout", "ä\nb".encode() + ending)
    os.close(pipe[1])
    text = read_all(pipe[0])
    assert text.startswith("web     | one\nweb     | \nweb     | \tthree\nweb     | dos\nweb     | two\n")
    assert text.endswith("crasher | ä\ncrasher | b\n")


def test_an_event_is_one_line_whatever_a_container_has_put_into_it(pipe: tuple[int, int]) -> None:
    with show(pipe) as view:
        view.event(HookFailed("web", "pre_stop", "exit 1\ncrasher started (pid 1)"))
    os.close(pipe[1])
    assert read_all(pipe[0]) == "web: a pre_stop command failed: exit 1crasher started (pid 1)\n"


def test_prefix_can_be_left_out_and_time_put_in(pipe: tuple[int, int]) -> None:
    with show(pipe, Style(prefix=False, timestamps=True)) as view:
        view.output("web", "stdout", b"hello")
    os.close(pipe[1])
    stamp, text = read_all(pipe[0]).split(" ", 1)
    assert text == "hello\n"
    assert len(stamp) == len("2026-01-02T03:04:05.678Z")
    assert stamp.endswith("Z")


def test_services_have_colours_of_their_own(pipe: tuple[int, int]) -> None:
    with show(pipe, Style(colour=True)) as view:
        view.output("web", "stdout", b"\x1b[31mred")
        view.output("crasher", "stdout", b"x")
    os.close(pipe[1])
    assert read_all(pipe[0]) == "\x1b[36mweb     |\x1b[0m \x1b[31mred\x1b[0m\n\x1b[33mcrasher |\x1b[0m x\n"


CRASH = Exit(status="nonzero_exit", exit_code=1, reason="exit 1")
HOG = Exit(status="memory_limit", signal=9, reason="the kernel's OOM killer struck at mem_limit 32.0M")


def test_events_are_lines_of_their_own(pipe: tuple[int, int]) -> None:
    with show(pipe) as view:
        for event in (
            ServiceStarted("web", 42),
            ServiceExited("crasher", CRASH),
            ServiceBackoff("crasher", 0.78, 3, "exit 1"),
            ServiceBackoff("crasher", 90.0, 4, "enter /nowhere: No such file or directory"),
            ServiceExited("web", HOG),
            ServiceBackoff("web", 0.1, 1, HOG.reason),
            ServiceExited("crasher", CRASH),
            ServiceFailed("crasher", "gave up after 5 restarts in a row: exit 1"),
            ServiceExited("web", Exit(status="ok", exit_code=0)),
            ServiceFinished("web"),
            ServiceStopping("web", False),
            ServiceExited("web", Exit(status="stopped", signal=9)),
            StopHeldUp("web", ("ba\x1b[2Jsh[7]", "sleep[8]")),
            ServiceStopped("web"),
            ServiceStopping("web", True),
            LogLost("web", 1234, 5678, "No space left on device"),
            HealthChanged("web", "healthy", ""),
            HealthChanged("web", "unhealthy", "its healthcheck failed once: \x1b[2Jexit 1"),
            ServiceStopping("web", True),
            ServiceExited("web", Exit(status="stopped", signal=15)),
            ServiceBackoff("web", 0.1, 1, "its healthcheck failed once: exit 1"),
            ServiceScheduled("crasher", 7200.0, ""),
            ServiceExited("crasher", CRASH),
            ServiceScheduled("crasher", 30.0, "exit 1"),
            ServiceScheduled("crasher", 30.0, "it depends on web, which has been stopped"),
            ServiceExited("crasher", Exit(status="stopped", signal=9)),
            ServiceScheduled("crasher", 30.0, ""),
            DependencyMissing("crasher", "it depends on web, which is not there"),
            ServiceExited("web", CRASH),
            HookFailed("web", "pre_stop", "exit 3"),
            NotifyRefused("web", "FDSTORE", "they are not kept"),
            ServiceFinished("web"),
        ):
            view.event(event)
    os.close(pipe[1])
    assert read_all(pipe[0]).splitlines() == [
        "web started (pid 42)",
        "crasher exited with code 1; restart 3 in 0.8s",
        "crasher could not start: enter /nowhere: No such file or directory; restart 4 in 1m30s",
        "web: the kernel's OOM killer struck at mem_limit 32.0M; restart 1 in 0.1s",
        "crasher failed: gave up after 5 restarts in a row: exit 1",
        "web exited with code 0",
        "stopping web",
        "web: killed, still there after its grace period: bash[7], sleep[8]",
        "web stopped (SIGKILL)",
        "restarting web",
        "web: 1,234 lines (5,678 bytes) are missing in its log: No space left on device",
        "web is healthy",
        "web is unhealthy: its healthcheck failed once: exit 1",
        "restarting web",
        "web: its healthcheck failed once: exit 1; restart 1 in 0.1s",
        "crasher runs in 2h00m",
        "crasher exited with code 1; next run in 30.0s",
        "crasher did not run: it depends on web, which has been stopped; next run in 30.0s",
        "crasher runs in 30.0s",
        "crasher starts all the same: it depends on web, which is not there",
        "web: a pre_stop command failed: exit 3",
        "web: FDSTORE on its NOTIFY_SOCKET is passed over: they are not kept",
        "web exited with code 1",
    ]


# ---- slow, full and broken terminals ----


def fill(writer: int) -> None:
    """Makes the next write to the pipe wait."""
    os.set_blocking(writer, False)
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"#" * size)
    os.set_blocking(writer, True)


@pytest.mark.parametrize("blocking", [True, False])
def test_stopped_terminal_skips_lines_and_says_how_many(pipe: tuple[int, int], blocking: bool) -> None:
    fill(pipe[1])
    os.set_blocking(pipe[1], blocking)
    view = View(pipe[1], ["web"], log_dir=LOGS, limit=10_000)
    text: list[str] = []
    reader = threading.Thread(target=lambda: text.append(read_all(pipe[0])))
    with view:
        for number in range(100_000):
            view.output("web", "stdout", b"line %d" % number)
        view.event(ServiceStarted("web", 1))  # has room of its own
        reader.start()
    os.close(pipe[1])
    reader.join()
    lines = text[0].lstrip("#").splitlines()
    shown = [line for line in lines if line.startswith("web | line ")]
    assert shown[0] == "web | line 0"
    skipped = [int(line.split()[1].replace(",", "")) for line in lines if line.startswith("[...")]
    assert len(shown) + sum(skipped) == 100_000
    assert "web started (pid 1)" in lines
    notice = f"[... {skipped[-1]:,} lines skipped, the terminal is slower than the output; all of it is in /logs/demo]"
    assert lines[-1] == notice


@pytest.mark.parametrize("empty", [0, 900], ids=["even", "uneven"])
def test_of_a_block_so_many_lines_are_shown_as_there_is_room_for(pipe: tuple[int, int], empty: int) -> None:
    block = b"\n" * empty + b"".join(b"line %d\n" % number for number in range(1000 - empty))
    view = View(pipe[1], ["web"], log_dir=LOGS, limit=10_000)
    view.output("web", "stdout", block)
    view.output("web", "stdout", block)
    assert 8500 < view._size <= 10_000
    with view:
        pass
    os.close(pipe[1])
    *shown, notice = read_all(pipe[0]).splitlines()
    assert shown[:100] == ["web | "] * 100 if empty else [f"web | line {number}" for number in range(100)]
    assert notice.startswith(f"[... {2000 - len(shown):,} lines skipped, ")


def test_waiting_lines_are_bounded(pipe: tuple[int, int]) -> None:
    fill(pipe[1])
    view = View(pipe[1], ["web"], log_dir=LOGS, limit=10_000)
    with view:
        for _ in range(1000):
            view.output("web", "stdout", b"x" * 1000)
            view.event(ServiceStarted("web", 1))
        assert view._size <= 20_000
        assert len(view._waiting) < 400
        reader = threading.Thread(target=read_all, args=(pipe[0],))
        reader.start()
    os.close(pipe[1])
    reader.join()


def test_closed_pipe_is_told_once_and_quiet(pipe: tuple[int, int]) -> None:
    closed = threading.Event()
    calls: list[None] = []

    def on_closed() -> None:
        calls.append(None)
        closed.set()

    os.close(pipe[0])
    with View(pipe[1], ["web"], log_dir=LOGS, on_closed=on_closed) as view:
        view.output("web", "stdout", b"one")
        assert closed.wait(30)
        view.output("web", "stdout", b"two")
    assert len(calls) == 1


def test_full_disk_loses_lines_but_not_the_view(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with View(full, ["web"], log_dir=LOGS) as view:
        view.output("web", "stdout", b"one")
    os.close(full)


def test_nothing_shown_is_nothing_written(pipe: tuple[int, int]) -> None:
    with show(pipe):
        pass
    os.close(pipe[1])
    assert read_all(pipe[0]) == ""
