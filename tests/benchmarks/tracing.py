"""What a tracer costs: programs untraced, under strace, and under ours, interleaved, all in containers of one runtime.

The tracer's start, some 0.1 s of Python, is not in it: it is measured by itself. What a filter costs at calls that it does not
stop at is measured by a program that makes many of them.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from tinyvisor.runtime import Runtime, open_runtime

_Ways: TypeAlias = dict[str, Callable[[], Awaitable[float]]]
PROGRAMS = {
    "20,000 reads and writes": ("dd", "if=/dev/zero", "of=/dev/null", "bs=1", "count=10000", "status=none"),
    "300 short children": ("sh", "-c", "i=0; while [ $i -lt 300 ]; do /bin/true; i=$((i+1)); done"),
    "ls -R /usr/share": ("ls", "-R", "/usr/share"),
    "import json": ("python3", "-c", "import json"),
    "a compile": ("sh", "-c", "cd /tmp && echo 'int main(void) { return 7; }' > a.c && cc -O2 -c a.c"),
}
UNTOUCHED = ("dd", "if=/dev/zero", "of=/dev/null", "bs=1", "count=500000", "status=none")
"""A million calls that nobody asks for."""


async def _run(runtime: Runtime, *command: str) -> float:
    start = time.perf_counter()
    await runtime.run(command, seccomp="unconfined")  # ls may find what it may not read
    return time.perf_counter() - start


async def _trace(runtime: Runtime, command: tuple[str, ...], **options: Any) -> float:
    async with runtime.trace(command, seccomp="unconfined", **options) as (_, events):
        start = time.perf_counter()
        async for _ in events:
            pass
        return time.perf_counter() - start


async def _start(runtime: Runtime) -> float:
    start = time.perf_counter()
    async with runtime.trace(["true"], filter="none", seccomp="unconfined"):
        return time.perf_counter() - start


def _ways(runtime: Runtime, command: tuple[str, ...]) -> _Ways:
    ways: _Ways = {
        "untraced": lambda: _run(runtime, *command),
        "tinyvisor -c": lambda: _trace(runtime, command, summary=True),
        "tinyvisor, all calls": lambda: _trace(runtime, command),
        "tinyvisor, execve": lambda: _trace(runtime, command, filter="execve"),
    }
    if shutil.which("strace"):
        ways["strace -c"] = lambda: _run(runtime, "strace", "-f", "-c", "-o", "/dev/null", *command)
        ways["strace, all calls"] = lambda: _run(runtime, "strace", "-f", "-o", "/dev/null", *command)
        ways["strace, execve"] = lambda: _run(
            runtime, "strace", "-f", "-o", "/dev/null", "--seccomp-bpf", "-e", "trace=execve", *command
        )
    return ways


async def measure_tracing(rounds: int) -> list[dict[str, Any]]:
    """A row for each program and way, printed, too.

    Returns:
        dicts of ``program``, ``way``, ``wall`` (seconds, the median), ``ratio`` (to untraced, the median over the rounds).
    """
    rows: list[dict[str, Any]] = []
    async with open_runtime() as runtime:
        start = statistics.median([await _start(runtime) for _ in range(rounds)])
        print(f"{'start of the tracer':<50}{start * 1e3:>10.0f} ms")
        for program, command in PROGRAMS.items():
            if shutil.which(command[0]) and (program != "a compile" or shutil.which("cc")):
                rows += await _measure(program, _ways(runtime, command), rounds)
        untouched: _Ways = {
            "untraced": lambda: _run(runtime, *UNTOUCHED),
            "tinyvisor, execve": lambda: _trace(runtime, UNTOUCHED, filter="execve"),
        }
        rows += await _measure("a million other calls", untouched, rounds)
    return rows


async def _measure(program: str, ways: _Ways, rounds: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    walls: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            walls[way].append(await run())
    for way, taken in walls.items():
        beside = way.replace("tinyvisor", "strace")
        ratios = [one / base for one, base in zip(taken, walls["untraced"], strict=True)]
        to_strace = [one / base for one, base in zip(taken, walls.get(beside, ()), strict=False)] if beside != way else []
        wall, ratio = statistics.median(taken), statistics.median(ratios)
        rows.append({"program": program, "way": way, "wall": wall, "ratio": ratio})
        shown = f"{statistics.median(to_strace):>9.1f}x strace" if to_strace else ""
        print(f"{program:<26}{way:<24}{wall * 1e3:>10.0f} ms{ratio:>9.1f}x{shown}")
    return rows
