"""What a tracer costs: programs untraced, under strace, and under ours, interleaved, all in containers of one runtime."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from tinyvisor.runtime import Runtime, open_runtime

PROGRAMS = {
    "20,000 reads and writes": ("dd", "if=/dev/zero", "of=/dev/null", "bs=1", "count=10000", "status=none"),
    "300 short children": ("sh", "-c", "i=0; while [ $i -lt 300 ]; do /bin/true; i=$((i+1)); done"),
}
STRACE = ("strace", "-f", "-o", "/dev/null")


async def _run(runtime: Runtime, *command: str) -> None:
    await runtime.run(command, check=True, seccomp="unconfined")


async def _trace(runtime: Runtime, filter: str, command: tuple[str, ...]) -> None:
    async with runtime.trace(command, filter=filter, seccomp="unconfined") as (_, events):
        async for _ in events:
            pass


def _ways(runtime: Runtime, command: tuple[str, ...]) -> dict[str, Callable[[], Awaitable[None]]]:
    ways: dict[str, Callable[[], Awaitable[None]]] = {
        "untraced": lambda: _run(runtime, *command),
        "tinyvisor, all calls": lambda: _trace(runtime, "all", command),
        "tinyvisor, execve": lambda: _trace(runtime, "execve", command),
    }
    if shutil.which("strace"):
        ways["strace, all calls"] = lambda: _run(runtime, *STRACE, *command)
        ways["strace, execve"] = lambda: _run(runtime, *STRACE, "--seccomp-bpf", "-e", "trace=execve", *command)
    return ways


async def measure_tracing(rounds: int) -> list[dict[str, Any]]:
    """A row for each program and way, printed, too.

    Returns:
        dicts of ``program``, ``way``, ``wall`` (seconds, the median), ``ratio`` (to untraced, the median over the rounds).
    """
    rows: list[dict[str, Any]] = []
    async with open_runtime() as runtime:
        for program, command in PROGRAMS.items():
            walls: dict[str, list[float]] = {}
            for _ in range(rounds):
                for way, run in _ways(runtime, command).items():
                    start = time.perf_counter()
                    await run()
                    walls.setdefault(way, []).append(time.perf_counter() - start)
            for way, taken in walls.items():
                ratios = [one / base for one, base in zip(taken, walls["untraced"], strict=True)]
                wall, ratio = statistics.median(taken), statistics.median(ratios)
                rows.append({"program": program, "way": way, "wall": wall, "ratio": ratio})
                print(f"{program:<26}{way:<24}{wall * 1e3:>10.0f} ms{ratio:>9.1f}x")
    return rows
