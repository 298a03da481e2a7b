"""Part of ``python -m tests.benchmarks --supervision``: how much output of services comes into their logs, and what that takes.

Beside what only copies the same programs' output, as it is, from pipes to files: ``cat``, and a Python loop. The writers take
their part of the CPUs everywhere, so the ratios say more than the rates.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.counts import process_cpu
from tests.benchmarks.project import in_background, in_foreground, tinyvisor

Found = dict[str, Any]

SERVICES = (1, 10)  # that write at once
LINES = {10: 10_000_000, 100: 3_000_000}  # of so many bytes, by all of them together
DRIVERS = ("local", "json-file", "raw", "none")
ROUNDS = 3
COPIER = "Python copier"

Taken = tuple[float, float]
"""Seconds: from the first writer's start to the last one's end, and of CPU."""


@dataclass(frozen=True, slots=True)
class Flood:
    """Programs that write lines as quickly as they can, each its `lines` of `size` bytes, and their times into a file."""

    scratch: Path
    services: int
    size: int
    lines: int

    @property
    def stamps(self) -> Path:
        return self.scratch / "stamps"

    @property
    def command(self) -> list[str]:
        stamp = f"date +%s%N >> {self.stamps}"
        return ["sh", "-c", f"{stamp}; yes {'x' * (self.size - 1)} | head -c {self.size * self.lines}; {stamp}"]

    def begin(self) -> None:
        self.stamps.write_bytes(b"")
        self.stamps.chmod(0o666)

    def seconds(self) -> float:
        times = [int(stamp) for stamp in self.stamps.read_text().split()]
        if len(times) != 2 * self.services:
            raise RuntimeError(f"{len(times)} times of {2 * self.services}")
        return (max(times) - min(times)) / 1e9

    def project(self, driver: str) -> dict[str, Found]:
        options = {} if driver == "none" else {"max-size": "4g", "max-file": "1"}
        service = {
            "command": self.command,
            "volumes": [f"{self.scratch}:{self.scratch}"],
            "logging": {"driver": driver, "options": options},
        }
        return {f"s{number}": service for number in range(self.services)}

    def check_logs(self) -> None:
        found = sum(_count(path) for path in (self.scratch / "logs").rglob("s*.log"))
        if found != self.services * self.lines:
            raise RuntimeError(f"{found} lines of {self.services * self.lines} are in the logs")

    # ---- the ways ----

    def in_foreground(self, driver: str) -> Taken:
        self.begin()
        with in_foreground(self.scratch, self.project(driver)) as process:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            cpu = process_cpu(process.pid)  # without its children's, the services' own
            if process.wait():
                raise RuntimeError(f"tinyvisor up ended with {process.returncode}")
            if driver != "none":
                self.check_logs()
        return self.seconds(), cpu

    def live(self) -> Taken:
        self.begin()
        with in_background(self.scratch, self.project("local")) as (name, pid, _):
            tinyvisor("wait", "-p", name)
            cpu = process_cpu(pid)
            self.check_logs()
        return self.seconds(), cpu

    def cat(self) -> Taken:
        self.begin()
        cpu = 0.0
        with contextlib.ExitStack() as stack:
            cats = []
            for number in range(self.services):
                writer = stack.enter_context(subprocess.Popen(self.command, stdout=subprocess.PIPE))
                with open(self.scratch / f"s{number}.copy", "wb") as file:
                    cats.append(subprocess.Popen(["cat"], stdin=writer.stdout, stdout=file))
            for cat in cats:
                _, status, usage = os.wait4(cat.pid, 0)
                cat.returncode = os.waitstatus_to_exitcode(status)
                cpu += usage.ru_utime + usage.ru_stime
        self._remove_copies()
        return self.seconds(), cpu

    def copy(self) -> Taken:
        self.begin()
        before = process_cpu(os.getpid())
        with contextlib.ExitStack() as stack:
            poll, files = select.poll(), {}
            for number in range(self.services):
                writer = stack.enter_context(subprocess.Popen(self.command, stdout=subprocess.PIPE, bufsize=0))
                assert writer.stdout is not None
                poll.register(writer.stdout, select.POLLIN)
                files[writer.stdout.fileno()] = stack.enter_context(open(self.scratch / f"s{number}.copy", "wb", buffering=0))
            while files:
                for fd, _ in poll.poll():
                    chunk = os.read(fd, 64 << 10)
                    if chunk:
                        files[fd].write(chunk)
                    else:
                        poll.unregister(fd)
                        del files[fd]
        self._remove_copies()
        return self.seconds(), process_cpu(os.getpid()) - before

    def _remove_copies(self) -> None:
        found = 0
        for path in self.scratch.glob("s*.copy"):
            found += _count(path)
            path.unlink()
        if found != self.services * self.lines:
            raise RuntimeError(f"{found} lines of {self.services * self.lines} were copied")


def _count(path: Path) -> int:
    found = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            found += chunk.count(b"\n")
    return found


def measure_logs(scratch: Path, rounds: int = ROUNDS) -> list[Found]:
    """Services that write lines as quickly as they can: in the foreground, with nobody who looks, for each driver; and in the
    background, where their containers outlive the supervisor.

    Returns:
        for each number of ``services``, ``size`` of a line, and ``way``: ``lines`` a second; ``ratio``: of that to the Python
        loop's in the same round; ``cpu``: seconds of the supervisor, or of who copies, a line, without what no output takes.
        Medians over the rounds, in each of which all was measured in turn. A line that is missing is an error.
    """
    return [
        row for services in SERVICES for size, lines in LINES.items() for row in _measure(scratch, services, size, lines, rounds)
    ]


def _measure(scratch: Path, services: int, size: int, lines: int, rounds: int) -> list[Found]:
    flood, nothing = Flood(scratch, services, size, lines // services), Flood(scratch, services, size, 0)
    ways: dict[str, Callable[[], Taken]] = {"cat": flood.cat, COPIER: flood.copy}
    for driver in DRIVERS:
        ways[driver] = functools.partial(flood.in_foreground, driver)
    ways["local, -d"] = flood.live
    taken: dict[str, list[Taken]] = {way: [] for way in ways}
    idle: dict[str, list[float]] = {"foreground": [], "live": []}
    for _ in range(rounds):
        idle["foreground"].append(nothing.in_foreground("local")[1])
        idle["live"].append(nothing.live()[1])
        for way, measure in ways.items():
            taken[way].append(measure())
    off = {way: 0.0 if way in ("cat", COPIER) else statistics.median(idle["foreground"]) for way in ways}
    off["local, -d"] = statistics.median(idle["live"])
    return [
        {
            "services": services,
            "size": size,
            "way": way,
            "lines": lines / statistics.median(seconds for seconds, _ in found),
            "ratio": statistics.median(bare / own for (bare, _), (own, _) in zip(taken[COPIER], found, strict=True)),
            "cpu": (statistics.median(cpu for _, cpu in found) - off[way]) / lines,
        }
        for way, found in taken.items()
    ]


def print_logs(rows: list[Found]) -> None:
    """The table of `measure_logs`."""
    print(f"\n{'logs':<32}{'lines/s':>12}{'MB/s':>8}{'x the copier':>14}{'us of CPU a line':>18}")
    for row in rows:
        what = f"{row['services']} x {row['size']} B, {row['way']}"
        rates = f"{row['lines']:>12,.0f}{row['lines'] * row['size'] / 1e6:>8.0f}"
        print(f"{what:<32}{rates}{row['ratio']:>14.2f}{row['cpu'] * 1e6:>18.3f}")
