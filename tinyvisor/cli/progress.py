"""What a batch says of itself on stderr: lines, and on a terminal below them how far it is.

A thread of its own writes, so that a slow or stopped terminal delays no job: of the display only the newest state is kept,
and lines beyond a bound are counted instead. rich is imported only for the display.
"""

from __future__ import annotations

import io
import os
import select
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from tinyvisor.clean import clean
from tinyvisor.units import format_duration

LIMIT: Final = 256 << 10
"""Characters of lines that wait for the terminal at most."""
PAUSE: Final = 0.05
"""Seconds between two writes at least."""

_STYLES: Final = {"ok": "green"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """How far a batch is.

    Attributes:
        finished: jobs, those of earlier runs included.
        total: None where it is not known.
        seconds: since the start.
        rate: jobs per second, lately.
        counts: (status, jobs).
        running: how many run; `names` are some of them.
        nodes: of a cluster, what each is called and its jobs per second, lately.
    """

    finished: int
    total: int | None
    seconds: float
    rate: float
    counts: Sequence[tuple[str, int]]
    running: int
    names: Sequence[str]
    nodes: Sequence[tuple[str, float]] = ()


def headline(snapshot: Snapshot) -> str:
    """``1,234/20,000  1,310/s  ETA 14s``."""
    of = f"/{snapshot.total:,}" if snapshot.total is not None else ""
    parts = [f"{snapshot.finished:,}{of}", _rate(snapshot.rate), format_duration(snapshot.seconds)]
    if snapshot.total is not None and snapshot.rate:
        parts.append(f"ETA {format_duration(max(0, snapshot.total - snapshot.finished) / snapshot.rate)}")
    return "  ".join(parts)


def _rate(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"


def underline(snapshot: Snapshot) -> str:
    """What runs; of a cluster, where: ``2 nodes: 650/s a, 652/s b``."""
    if snapshot.nodes:
        count = len(snapshot.nodes)
        each = ", ".join(f"{_rate(rate)} {name}" for name, rate in snapshot.nodes)
        return f"{count} node{'s' if count != 1 else ''}: {each}"
    more = ", …" if snapshot.running > len(snapshot.names) else ""
    return f"{snapshot.running} running: {', '.join(snapshot.names)}{more}"


def render(snapshot: Snapshot, *, width: int, colour: bool) -> str:
    """Two lines of `width` columns at most: bar, rate, ETA and counts; what runs."""
    from rich.console import Console, Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    cells = [Text(headline(snapshot), no_wrap=True)]
    for status, count in snapshot.counts:
        cells.append(Text(f"{count:,} {status}", style=_STYLES.get(status, "red"), no_wrap=True))
    bar = ProgressBar(total=snapshot.total or None, completed=snapshot.finished, width=20) if snapshot.total else Text("")
    grid.add_row(bar, *cells)
    below = clean(underline(snapshot).encode("utf-8", "replace"), colour=False)
    running = Text(below, style="dim", no_wrap=True, overflow="ellipsis")
    out = io.StringIO()
    console = Console(
        file=out, width=max(width, 20), force_terminal=colour, no_color=not colour, highlight=False, legacy_windows=False
    )
    console.print(Group(grid, running), crop=True, no_wrap=True, overflow="ellipsis", end="")
    lines = out.getvalue().rstrip("\n").split("\n")
    return "\n".join((lines[0], lines[-1]))


class Board:
    """Writes to `fd` between entering and leaving it as a context manager. `say` and `show` never wait.

    Leaving waits until the lines are written, which a stopped terminal can hold up: KeyboardInterrupt ends that.

    Args:
        live: `fd` is a terminal that shows `Snapshot` objects below the lines.
    """

    def __init__(self, fd: int, *, live: bool, colour: bool, limit: int = LIMIT) -> None:
        self.live = live
        self._fd, self._colour, self._limit = fd, colour, limit
        self._ready = threading.Condition()
        self._lines: list[str] = []
        self._size = 0
        self._skipped = 0
        self._snapshot: Snapshot | None = None
        self._shown: Snapshot | None = None
        self._closing = False
        self._deaf = False
        self._height = 0
        self._thread = threading.Thread(target=self._run, name="tinyvisor-board", daemon=True)

    def __enter__(self) -> Board:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        with self._ready:
            self._closing = True
            self._ready.notify()
        self._thread.join()

    def say(self, text: str) -> None:
        """A line; what it has that a terminal would obey is taken out."""
        with self._ready:
            if self._deaf:
                return
            if self._size + len(text) > self._limit:
                self._skipped += 1
            else:
                self._lines.append(clean(text.encode("utf-8", "replace"), colour=False))
                self._size += len(text)
            self._ready.notify()

    def show(self, snapshot: Snapshot) -> None:
        """The display from now on; the one before it is forgotten where it was not drawn yet."""
        with self._ready:
            self._snapshot = snapshot
            self._ready.notify()

    def _run(self) -> None:
        while True:
            with self._ready:
                while not (self._lines or self._skipped or self._snapshot or self._closing):
                    self._ready.wait()
                lines, skipped, snapshot, closing = self._lines, self._skipped, self._snapshot, self._closing
                self._lines, self._size, self._skipped, self._snapshot = [], 0, 0, None
            if skipped:
                lines.append(f"[... {skipped:,} lines skipped, the terminal is slower than the jobs]")
            text = "".join(f"{line}\n" for line in lines)
            self._shown = None if closing else snapshot or self._shown
            try:
                self._write(self._redrawn(text, self._shown))
            except OSError:  # whoever read us has gone, or the disk is full: the jobs go on
                with self._ready:
                    self._deaf = True
            if closing:
                return
            with self._ready:
                self._ready.wait_for(lambda: self._closing, PAUSE)

    def _redrawn(self, text: str, snapshot: Snapshot | None) -> str:
        """`text` in the place of the display, and the display below it."""
        if not self.live or (self._height == 0 and snapshot is None):
            return text
        up = f"\x1b[{self._height - 1}A" if self._height > 1 else ""
        erased = f"\r{up}\x1b[J" if self._height else ""
        below = ""
        if snapshot is not None:
            below = render(snapshot, width=self._columns() - 1, colour=self._colour)
        self._height = below.count("\n") + 1 if below else 0
        return f"{erased}{text}{below}"

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._fd).columns or 80
        except OSError:
            return 80

    def _write(self, text: str) -> None:
        rest = memoryview(text.encode("utf-8", "replace"))
        while rest and not self._deaf:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # somebody who shares the terminal has made it non-blocking
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()
