"""`tinyvisor top --ui`: a live table of services and the output of one of them, on textual (the extra ``tui``).

The screen never waits for the daemon: two threads ask it and leave what they get in a `Board`, at which a timer looks. What
containers write is text, whatever is in it.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any, ClassVar, Final, Protocol

from rich.text import Text
from textual.app import App, ComposeResult, SuspendNotSupported
from textual.binding import BindingType
from textual.containers import Vertical
from textual.widgets import DataTable, Footer, Header, RichLog
from textual.worker import get_current_worker

from tinyvisor import interpreter
from tinyvisor.cli.board import HEADINGS, HISTORY, Board
from tinyvisor.client import Client
from tinyvisor.errors import TinyvisorError

PERIOD: Final = 1.0
"""Seconds between two questions about what is used."""

GLANCE: Final = 0.2
"""Seconds between two looks at the board."""

TAIL: Final = 1000
_STATES: Final = {"running": "green", "failed": "red", "backoff": "yellow", "stopping": "yellow", "starting": "cyan"}


class Source(Protocol):
    """Whom the screen asks. All but `shell` in threads; all raise `TinyvisorError`."""

    name: str

    def look(self) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
        """Services and stats."""
        ...

    def records(self) -> Iterator[Mapping[str, Any]]:
        """Of all logs, as they come."""
        ...

    def command(self, verb: str, name: str) -> str:
        """What it did, a line."""
        ...

    def shell(self, name: str) -> int:
        """On our terminal, which is free meanwhile; its exit code."""
        ...


class Daemon:
    """A project's daemon."""

    def __init__(self, client: Client) -> None:
        self.name: str = client.project
        self._client = client

    def look(self) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
        return self._client.get("/v1/services"), self._client.get("/v1/stats")

    def records(self) -> Iterator[Mapping[str, Any]]:
        return self._client.stream("/v1/logs", {"tail": TAIL, "follow": 1})

    def command(self, verb: str, name: str) -> str:
        return "\n".join(it["text"] for it in self._client.post(f"/v1/services/{verb}", {"services": [name]}))

    def shell(self, name: str) -> int:
        words = interpreter.command("tinyvisor", "exec", "-it", "-p", self.name, name, "sh")
        return subprocess.run(words, check=False).returncode


class Screen(App[None]):
    """The whole of it."""

    TITLE = "tinyvisor"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    DataTable { height: 1fr; }
    #pane { height: 1fr; border-top: solid $primary; }
    RichLog { background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        ("s", "command('stop')", "Stop"),
        ("t", "command('start')", "Start"),
        ("r", "command('restart')", "Restart"),
        ("k", "command('kill')", "Kill"),
        ("e", "shell", "Shell"),
        ("q", "quit", "Quit"),
    ]

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source
        self._board = Board()
        self._news = threading.Lock()  # the threads write to the board, the timer reads it
        self._shown: tuple[str, int] = ("", 0)
        self._gone = threading.Event()
        self.sub_title: str = source.name

    def compose(self) -> ComposeResult:
        yield Header()
        yield DataTable(cursor_type="row", zebra_stripes=True)
        with Vertical(id="pane"):
            yield RichLog(markup=False, highlight=False, wrap=True, max_lines=1000)
        yield Footer()

    def on_mount(self) -> None:
        table = self.query_one(DataTable)
        for heading, key in zip(HEADINGS, HEADINGS._fields, strict=True):
            table.add_column(heading, key=key, width=HISTORY if key == "curve" else None)
        self.set_interval(GLANCE, self.glance)
        self.run_worker(self._keep_looking, thread=True)
        threading.Thread(target=self._keep_reading, daemon=True).start()  # in a read that only the daemon ends

    def on_unmount(self) -> None:
        self._gone.set()

    # ---- in threads ----

    def _keep_looking(self) -> None:
        worker = get_current_worker()
        while not worker.is_cancelled and not self._gone.is_set():
            try:
                found = self._source.look()
            except TinyvisorError as error:
                with suppress(RuntimeError):  # the screen has just been left
                    self.call_from_thread(self.exit, return_code=1, message=f"tinyvisor: {error}")
                return
            with self._news:
                self._board.update(*found, time.monotonic())
            self._gone.wait(PERIOD)

    def _keep_reading(self) -> None:
        with suppress(TinyvisorError):  # it went away, which the other thread says
            for record in self._source.records():
                if self._gone.is_set():
                    return
                with self._news:
                    self._board.take(record)

    # ---- the screen ----

    @property
    def chosen(self) -> str:
        """The instance under the cursor; empty where there is none."""
        table = self.query_one(DataTable)
        return str(table.get_row_at(table.cursor_row)[0]) if table.is_valid_row_index(table.cursor_row) else ""

    def glance(self) -> None:
        """Shows what there is."""
        with self._news:
            rows = self._board.rows()
        table = self.query_one(DataTable)
        names = [row.name for row in rows]
        if names != [str(key.value) for key in table.rows]:
            chosen = self.chosen
            table.clear()
            for row in rows:
                table.add_row(*row, key=row.name)
            table.move_cursor(row=names.index(chosen) if chosen in names else 0)
        for row in rows:
            for key, cell in zip(HEADINGS._fields, row, strict=True):
                table.update_cell(row.name, key, _cell(key, cell), update_width=True)
        self._show_lines(self.chosen)

    def _show_lines(self, name: str) -> None:
        log = self.query_one(RichLog)
        if name != self._shown[0]:
            log.clear()
            self.query_one("#pane").border_title = Text(name)
            self._shown = (name, 0)
        with self._news:
            lines, number = self._board.lines(name, self._shown[1])
        for line in lines:
            log.write(Text(line))
        self._shown = (name, number)

    def on_data_table_row_highlighted(self) -> None:
        self._show_lines(self.chosen)

    def action_command(self, verb: str) -> None:
        """Does it to what is under the cursor."""
        if name := self.chosen:
            self.run_worker(lambda: self._command(verb, name), thread=True)

    def _command(self, verb: str, name: str) -> None:
        try:
            text, severe = self._source.command(verb, name), False
        except TinyvisorError as error:
            text, severe = str(error), True
        with suppress(RuntimeError):
            self.call_from_thread(self.notify, text, severity="error" if severe else "information", markup=False)

    def free_terminal(self) -> AbstractContextManager[None]:
        """Ours for something else, for as long as it is held."""
        return self.suspend()

    def action_shell(self) -> None:
        """A shell in what is under the cursor."""
        name = self.chosen
        if not name:
            return
        try:
            with self.free_terminal():
                code = self._source.shell(name)
        except SuspendNotSupported:
            self.notify("this terminal can't be left for a shell", severity="error")
        else:
            if code:
                self.notify(f"{name}: the shell ended with {code}", severity="warning", markup=False)


def _cell(key: str, text: str) -> Text:
    style = _STATES.get(text.split(" ")[0], "") if key == "state" else "cyan" if key == "curve" else ""
    return Text(text, style=style, justify="right" if key in ("pid", "cpu", "memory", "pids", "restarts") else "left")


def show(client: Client) -> int:
    """Until it is left; the exit code."""
    screen = Screen(Daemon(client))
    screen.run()
    return screen.return_code or 0
