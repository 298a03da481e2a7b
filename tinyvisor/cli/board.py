"""What the screen of `top --ui` shows, from what a daemon tells: rows with CPU shares and their history, and the last lines of
output. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from tinyvisor.clean import clean
from tinyvisor.units import format_size

HISTORY: Final = 30
"""Samples that the curve shows."""

LINES: Final = 500
"""Of each service's output that are kept."""

_LEVELS: Final = "▁▂▃▄▅▆▇█"


class Row(NamedTuple):
    """One instance; all text."""

    name: str
    state: str
    pid: str
    cpu: str
    curve: str
    memory: str
    pids: str
    restarts: str


HEADINGS: Final = Row("service", "state", "pid", "cpu %", "cpu", "memory", "pids", "restarts")


@dataclass
class _Usage:
    """Of one container, by its pid."""

    pid: int
    at: float
    seconds: float
    shares: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))


class Board:
    """Remembers what it takes to say how much of a CPU a service uses now."""

    def __init__(self) -> None:
        self._usage: dict[str, _Usage] = {}
        self._stats: dict[str, Mapping[str, Any]] = {}
        self._services: list[Mapping[str, Any]] = []
        self._lines: dict[str, deque[str]] = {}
        self._written: dict[str, int] = {}

    def update(self, services: Iterable[Mapping[str, Any]], stats: Iterable[Mapping[str, Any]], now: float) -> None:
        """What was told at `now`, seconds of a clock that is never set."""
        self._services = list(services)
        self._stats = {item["name"]: item for item in stats}
        pids = {item["name"]: item["pid"] for item in self._services}
        for name in self._usage.keys() - self._stats.keys():
            del self._usage[name]
        for name, item in self._stats.items():
            if item["cpu_user"] is None or pids.get(name) is None:
                continue
            seconds, before = item["cpu_user"] + item["cpu_system"], self._usage.get(name)
            if before is None or before.pid != pids[name]:  # a new container begins at 0
                self._usage[name] = _Usage(pids[name], now, seconds)
            elif now > before.at:
                before.shares.append(max(0.0, seconds - before.seconds) / (now - before.at))
                before.at, before.seconds = now, seconds

    def rows(self) -> list[Row]:
        """In the project's order."""
        return [self._row(item) for item in self._services]

    def _row(self, item: Mapping[str, Any]) -> Row:
        name, usage = item["name"], self._usage.get(item["name"])
        stats = self._stats.get(name, {})
        memory, pids = stats.get("memory"), stats.get("pids")
        return Row(
            name,
            f"{item['state']} ({item['health']})" if item["health"] else item["state"],
            "-" if item["pid"] is None else str(item["pid"]),
            "-" if usage is None or not usage.shares else f"{usage.shares[-1]:.0%}".removesuffix("%"),
            curve(usage.shares if usage is not None else ()),
            "-" if memory is None else format_size(memory),
            "-" if pids is None else str(pids),
            str(item["restarts"]),
        )

    def take(self, record: Mapping[str, Any]) -> None:
        """A record of a log."""
        name = record["name"]
        self._lines.setdefault(name, deque(maxlen=LINES)).append(clean(record["text"].encode(), colour=False))
        self._written[name] = self._written.get(name, 0) + 1

    def lines(self, name: str, since: int = 0) -> tuple[list[str], int]:
        """The last lines of `name` that came after number `since`, and the number of the last one."""
        number = self._written.get(name, 0)
        kept = list(self._lines.get(name, ()))
        return kept[max(0, len(kept) - (number - since)) :], number


def curve(shares: Iterable[float]) -> str:
    """One character for each share of a CPU; the highest is a whole CPU, or more where more was used."""
    found = list(shares)
    top = max([1.0, *found])
    return "".join(_LEVELS[min(len(_LEVELS) - 1, int(share / top * len(_LEVELS)))] for share in found)
