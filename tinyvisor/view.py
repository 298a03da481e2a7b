"""The output of many containers on one terminal, which may be slow, stopped or gone.

Nothing here ever waits for the terminal but one thread of its own. It takes what has gathered since it last looked, up
to a bound; beyond the bound lines are skipped and counted, and a line in their place says how many. The log files have
them all.

Containers are not trusted with the terminal: of the control characters and escape sequences that they print, tabs and
colours are let through, nothing else.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

from tinyvisor.clean import RESET, clean, clean_lines
from tinyvisor.state import (
    DependencyMissing,
    Event,
    Exit,
    HealthChanged,
    HookFailed,
    LogLost,
    NotifyRefused,
    ServiceAdopted,
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
from tinyvisor.units import format_duration

LIMIT: Final = 256 << 10
"""Bytes that wait for the terminal at most, and as many again of events and of what is just being written."""

_TOLD_APART: Final = (StopHeldUp, LogLost, HealthChanged, HookFailed, NotifyRefused, DependencyMissing)
"""What may come between an exit and its consequence."""

_LINE_COST: Final = 64  # what a waiting line takes besides its text, roughly

_COLOURS: Final = ("36", "33", "32", "35", "34", "96", "93", "92", "95", "94")
"""SGR codes for the prefixes, in compose's order: cyan, yellow, green, magenta, blue, then their bright kin."""


def describe_event(event: Event, last: Exit | None = None) -> str | None:
    """One line for people; None where the event that follows says it all.

    Args:
        last: of the `ServiceExited` that came just before for the same service.
    """
    name = event.name
    match event:
        case ServiceStarted(_, pid):
            return f"{name} started (pid {pid})"
        case ServiceAdopted(_, pid):
            return f"{name} goes on (pid {pid})"
        case ServiceExited():
            return None
        case ServiceBackoff(_, delay, attempt, reason):
            return f"{_why(name, last, reason)}; restart {attempt} in {_delay(delay)}"
        case ServiceFinished():
            return f"{name} has finished" if last is None else f"{name}{_how(last)}"
        case ServiceFailed(_, reason):
            return f"{name} failed: {reason}"
        case ServiceStopping(_, restarts):
            return f"restarting {name}" if restarts else f"stopping {name}"
        case ServiceStopped():
            return f"{name} stopped" if last is None else f"{name} stopped ({last.describe()})"
        case StopHeldUp(_, processes):
            return f"{name}: killed, still there after its grace period: {', '.join(processes)}"
        case ServiceScheduled(_, delay, reason):
            before = _run_before(name, last, reason)
            return f"{before}next run in {_delay(delay)}" if before else f"{name} runs in {_delay(delay)}"
        case HealthChanged(_, health, reason):
            return f"{name} is {health}: {reason}" if reason else f"{name} is {health}"
        case DependencyMissing(_, reason):
            return f"{name} starts all the same: {reason}"
        case HookFailed(_, hook, reason):
            return f"{name}: a {hook} command failed: {reason}"
        case NotifyRefused(_, what, reason):
            return f"{name}: {what} on its NOTIFY_SOCKET is passed over: {reason}"
        case LogLost(_, lines, size, reason):
            return f"{name}: {lines:,} lines ({size:,} bytes) are missing in its log: {reason}"


def _why(name: str, last: Exit | None, reason: str) -> str:
    """Why it is started again; a container that we stopped has nothing to say about it."""
    if last is None:
        return f"{name} could not start: {reason}"
    return f"{name}: {reason}" if last.status == "stopped" else f"{name}{_how(last)}"


def _run_before(name: str, last: Exit | None, reason: str) -> str:
    if last is not None and last.status != "stopped":
        return f"{name}{_how(last)}; "
    return f"{name} did not run: {reason}; " if reason else ""


def _how(exit: Exit) -> str:
    plain = exit.status in ("ok", "nonzero_exit")
    return f" exited with code {exit.exit_code}" if plain else f": {exit.reason or exit.describe()}"


def _delay(seconds: float) -> str:
    return f"{max(seconds, 0):.1f}s" if seconds < 60 else format_duration(seconds)


@dataclass(frozen=True, slots=True)
class Style:
    """How lines look.

    Attributes:
        colour: colours of ours and of the containers.
        prefix: every line starts with its service's name.
        timestamps: every line of output carries the time.
    """

    colour: bool = False
    prefix: bool = True
    timestamps: bool = False


@dataclass(frozen=True, slots=True)
class _Lines:
    kind: Literal["output", "event"]
    name: str
    text: bytes  # without the last newline
    number: int = 1
    time: int = 0

    @property
    def cost(self) -> int:
        return len(self.text) + self.number * _LINE_COST

    def first(self, room: int) -> _Lines | None:
        """Of them so many that they cost no more than `room`: about the most, were they all of one length."""
        if self.cost <= room:
            return self
        size = len(self.text) * room // self.cost
        while size > 0 and (end := self.text.rfind(b"\n", 0, size)) >= 0:
            first = replace(self, text=self.text[:end], number=self.text.count(b"\n", 0, end) + 1)
            if first.cost <= room:
                return first
            size = end * 3 // 4
        return None


class View:
    """Writes lines to `fd` from a thread of its own, between entering and leaving it as a context manager.

    `output`, `event` and `say` never wait. Leaving waits until all is written, which a stopped terminal can hold up:
    KeyboardInterrupt ends that.

    Args:
        fd: a terminal, pipe or file.
        names: of all services, for the prefixes' width and colours.
        log_dir: where all the output is; named where lines are skipped.
        limit: bytes that may wait.
        on_closed: called once, by the thread, when the reader of `fd` has gone (EPIPE).
    """

    def __init__(
        self,
        fd: int,
        names: Iterable[str],
        *,
        log_dir: Path,
        style: Style = Style(),
        limit: int = LIMIT,
        on_closed: Callable[[], None] = lambda: None,
    ) -> None:
        names = tuple(names)
        self.on_closed = on_closed
        self._fd = fd
        self._log_dir = log_dir
        self._style = style
        self._limit = limit
        self._width = max(map(len, names), default=0)
        self._colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}
        self._exits: dict[str, Exit] = {}  # told together with the event that follows
        self._ready = threading.Condition()
        self._waiting: list[_Lines] = []
        self._size = 0
        self._skipped = 0
        self._closing = False
        self._deaf = False  # nobody reads us any more
        self._thread = threading.Thread(target=self._run, name="tinyvisor-view", daemon=True)

    def __enter__(self) -> View:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        with self._ready:
            self._closing = True
            self._ready.notify()
        self._thread.join()

    @property
    def deaf(self) -> bool:
        """Whether the reader of `fd` has gone."""
        return self._deaf

    def output(self, name: str, stream: str, block: bytes) -> None:
        """Lines of a service's output, the last one with or without its newline."""
        text, now = block.removesuffix(b"\n"), time.time_ns() if self._style.timestamps else 0
        self._put(_Lines("output", name, text, text.count(b"\n") + 1, now), self._limit)

    def event(self, event: Event) -> None:
        """What happened to a service."""
        if isinstance(event, ServiceExited):
            self._exits[event.name] = event.exit
            return
        told_apart = isinstance(event, _TOLD_APART)
        last = None if told_apart else self._exits.pop(event.name, None)
        text = describe_event(event, last)
        if text is not None:
            self.say(text, event.name)

    def say(self, text: str, name: str = "") -> None:
        """A line of our own, in the colour of service `name`."""
        line = text.replace("\n", "")  # whatever a container has put into it
        self._put(_Lines("event", name, line.encode("utf-8", "replace")), 2 * self._limit)

    def _put(self, lines: _Lines, limit: int) -> None:
        with self._ready:
            if self._deaf:
                return
            self._skipped += lines.number
            first = lines.first(limit - self._size)
            if first is not None:
                self._skipped -= first.number
                self._size += first.cost
                self._waiting.append(first)
            self._ready.notify()

    # ---- the thread ----

    def _run(self) -> None:
        lost = 0
        while (taken := self._take()) is not None:
            batch, skipped = taken
            data = b"".join(map(self._format, batch))
            skipped += lost
            if skipped:
                data += self._notice(skipped).encode("utf-8", "replace")
            try:
                self._write(data)
                lost = 0
            except OSError as exc:
                lost = skipped + sum(lines.number for lines in batch)  # e.g. a file on a full disk: the next line tries again
                if exc.errno in (errno.EPIPE, errno.EIO):
                    self._go_deaf(closed=exc.errno == errno.EPIPE)

    def _take(self) -> tuple[list[_Lines], int] | None:
        """What has gathered; None when all is done."""
        with self._ready:
            while not (self._waiting or self._skipped or self._closing):
                self._ready.wait()
            batch, skipped = self._waiting, self._skipped
            self._waiting, self._size, self._skipped = [], 0, 0
        return (batch, skipped) if batch or skipped else None

    def _go_deaf(self, *, closed: bool) -> None:
        with self._ready:
            self._deaf = True
            self._waiting, self._size = [], 0
        if closed:
            self.on_closed()

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # somebody who shares the terminal has made it non-blocking
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()

    def _format(self, lines: _Lines) -> bytes:
        if lines.kind == "event":
            text = clean(lines.text, colour=False)
            text = self._paint(text, f"2;{self._colours[lines.name]}" if lines.name in self._colours else "2")
            return f"{text}\n".encode("utf-8", "replace")
        head = f"{_timestamp(lines.time)} " if lines.time else ""
        if self._style.prefix:
            head = self._paint(f"{lines.name:<{self._width}} |", self._colours.get(lines.name, "")) + f" {head}"
        start, cleaned = head.encode(), clean_lines(lines.text, colour=self._style.colour)
        return start + cleaned.replace(b"\n", b"\n" + start) + b"\n"

    def _notice(self, skipped: int) -> str:
        text = f"[... {skipped:,} lines skipped, the terminal is slower than the output; all of it is in {self._log_dir}]"
        return self._paint(text, "1") + "\n"

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}{RESET}" if self._style.colour and code else text


def _timestamp(nanoseconds: int) -> str:
    """RFC 3339 in UTC with milliseconds."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest // 1_000_000:03}Z"
