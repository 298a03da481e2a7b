"""`top --ui`: the board behind it, and the screen itself, driven by textual's pilot and looked at by its screenshots."""

from __future__ import annotations

import asyncio
import html
import re
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable

from tests.kernel.command import Running, tinyvisor
from tinyvisor.cli.board import LINES, Board, curve
from tinyvisor.cli.screen import Screen
from tinyvisor.errors import TinyvisorError

PATIENCE = 20.0


def service(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "state": "running", "health": "", "pid": 7, "restarts": 0} | more


def stats(name: str, cpu: float, **more: Any) -> dict[str, Any]:
    return {"name": name, "cpu_user": cpu, "cpu_system": 0.0, "memory": 3 << 20, "pids": 2} | more


# ---- the board ----


def test_share_of_a_cpu_is_between_two_looks() -> None:
    board = Board()
    board.update([service("a")], [stats("a", 10.0)], now=100.0)
    assert board.rows()[0].cpu == "-", "one look says nothing"
    board.update([service("a")], [stats("a", 10.5)], now=101.0)
    board.update([service("a")], [stats("a", 14.5)], now=103.0)
    row = board.rows()[0]
    assert (row.cpu, len(row.curve), row.memory, row.pids) == ("200", 2, "3.0M", "2")


def test_new_container_begins_anew_and_what_is_down_shows_nothing() -> None:
    board = Board()
    board.update([service("a")], [stats("a", 10.0)], now=1.0)
    board.update([service("a")], [stats("a", 11.0)], now=2.0)
    board.update([service("a", pid=8, restarts=1)], [stats("a", 0.1)], now=3.0)
    assert (board.rows()[0].cpu, board.rows()[0].curve) == ("-", "")
    board.update([service("a", pid=None, state="stopped")], [], now=4.0)
    assert board.rows()[0][1:7] == ("stopped", "-", "-", "", "-", "-")
    board.update([service("a", health="healthy")], [stats("a", 1.0, cpu_user=None, memory=None, pids=None)], now=5.0)
    assert board.rows()[0][1:7] == ("running (healthy)", "7", "-", "", "-", "-")


def test_curve() -> None:
    assert curve([]) == ""
    assert curve([0.0, 0.5, 1.0]) == "▁▅█"
    assert curve([0.0, 4.0, 2.0]) == "▁█▅"


def test_lines_are_bounded_and_each_is_given_once() -> None:
    board = Board()
    for number in range(LINES + 10):
        board.take({"name": "a", "text": f"{number}\x1b[2J"})
    lines, last = board.lines("a")
    assert (lines[0], lines[-1], len(lines), last) == ("10", str(LINES + 9), LINES, LINES + 10)
    board.take({"name": "a", "text": "new"})
    assert board.lines("a", last) == (["new"], last + 1)
    assert board.lines("a", last + 1) == ([], last + 1)
    assert board.lines("b") == ([], 0)


# ---- the screen ----


class Fake:
    name = "demo"

    def __init__(self) -> None:
        self.commands: list[tuple[str, str]] = []
        self.services = [service("web", health="healthy"), service("db", restarts=3), service("job", state="failed", pid=None)]
        self.cpu = 0.0
        self.written = threading.Event()
        self.gone = False

    def look(self) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
        if self.gone:
            raise TinyvisorError('the daemon of "demo" went away')
        self.cpu += 0.25
        return list(self.services), [stats("web", self.cpu), stats("db", 0.0, memory=1 << 30)]

    def records(self) -> Iterator[Mapping[str, Any]]:
        yield {"name": "web", "text": "GET / 200 [bold]as it is[/bold]\x1b[2J"}
        yield {"name": "db", "text": "ready to accept connections"}
        self.written.wait(PATIENCE)

    def command(self, verb: str, name: str) -> str:
        if verb == "kill":
            raise TinyvisorError("the project is being stopped")
        self.commands.append((verb, name))
        return f"{name}: {verb} (running)"

    def shell(self, name: str) -> int:
        self.commands.append(("shell", name))
        return 127


def drive(source: Fake, steps: Callable[[Screen, Pilot[None]], Coroutine[Any, Any, None]]) -> Screen:
    screen = Screen(source)

    async def main() -> None:
        async with screen.run_test(size=(100, 30), notifications=True) as pilot:
            await steps(screen, pilot)
        source.written.set()

    asyncio.run(main())
    return screen


def text(screen: Screen) -> str:
    """What is to be seen, out of the screenshot."""
    found = html.unescape(re.sub(r"<[^>]+>", "", re.sub(r"</text>", "\n", screen.export_screenshot())))
    return found.replace("\xa0", " ")


async def until(screen: Screen, pilot: Pilot[None], *wanted: str) -> str:
    for _ in range(int(PATIENCE / 0.05)):
        await pilot.pause(0.05)
        if all(word in text(screen) for word in wanted):
            return text(screen)
    raise AssertionError(f"{wanted} never came in:\n{text(screen)}")


def test_table_and_log_of_what_is_under_the_cursor() -> None:
    async def steps(screen: Screen, pilot: Pilot[None]) -> None:
        seen = await until(screen, pilot, "web", "running (healthy)", "1.0G", "GET / 200 [bold]as it is[/bold]", "Restart")
        assert "ready to accept" not in seen
        assert "\x1b" not in seen
        await pilot.press("down")
        seen = await until(screen, pilot, "ready to accept connections")
        assert "GET / 200" not in seen
        source.services.append(service("new"))
        await until(screen, pilot, "new")
        assert screen.chosen == "db", "the cursor stays"
        assert screen.query_one(DataTable).row_count == 4

    source = Fake()
    drive(source, steps)


def test_keys_give_commands_and_say_what_came_of_it() -> None:
    async def steps(screen: Screen, pilot: Pilot[None]) -> None:
        screen.free_terminal = lambda: nullcontext()  # type: ignore[method-assign]
        await until(screen, pilot, "web", "db")
        await pilot.press("s")
        await until(screen, pilot, "web: stop (running)")
        await pilot.press("down", "r")
        await until(screen, pilot, "db: restart (running)")
        await pilot.press("e")
        await until(screen, pilot, "db: the shell ended with 127")
        await pilot.press("k")
        await until(screen, pilot, "the project is being stopped")
        await pilot.press("q")

    source = Fake()
    screen = drive(source, steps)
    assert source.commands == [("stop", "web"), ("restart", "db"), ("shell", "db")]
    assert not screen.return_code


def test_it_ends_with_the_daemon() -> None:
    async def steps(screen: Screen, pilot: Pilot[None]) -> None:
        await until(screen, pilot, "web")
        source.gone = True
        for _ in range(int(PATIENCE / 0.05)):
            await pilot.pause(0.05)
            if screen.return_code is not None:
                return
        raise AssertionError("it goes on")

    source = Fake()
    assert drive(source, steps).return_code == 1


def test_ui_needs_a_terminal_and_a_project() -> None:
    ended = tinyvisor("top", "--ui", "-p", "nobody")
    assert (ended.returncode, ended.stderr) == (2, "tinyvisor: --ui needs a terminal\n")
    with Running(["top", "--ui", "-p", "nobody"], terminal=True) as command:
        assert command.end() == 1
        assert 'no daemon runs the project "nobody"' in command.text


@pytest.mark.parametrize("words", [["--json"], ["web"]])
def test_ui_shows_everything(words: list[str]) -> None:
    assert "--ui shows all" in tinyvisor("top", "--ui", *words).stderr
