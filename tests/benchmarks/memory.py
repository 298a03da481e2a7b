"""Many containers that do nothing, and their own memory: the launcher and the inits, without the workloads."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import trio

from tests.benchmarks.counts import parent, pss
from tinyvisor.runtime import open_runtime
from tinyvisor.spec import Spec

SLEEP = ("sleep", "1000000")
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Idle:
    """Containers that sleep.

    Attributes:
        pids: of their inits.
        launcher: its pid.
        begin: when the first start was asked for, and `started`, when each was over: `time.perf_counter`.
        python: bytes by which this process has grown.
    """

    pids: tuple[int, ...]
    launcher: int
    begin: float
    started: tuple[float, ...]
    python: int

    def weigh(self) -> dict[str, float]:
        """Returns:
        ``containers``; bytes: ``launcher`` (the process), ``per_container`` (all of launcher and inits, divided),
        ``python_per_container`` (growth of this process).
        """
        own, count = pss(self.launcher), len(self.pids)
        total = own + sum(map(pss, self.pids))
        return {
            "containers": count,
            "launcher": own,
            "per_container": total / count,
            "python_per_container": self.python / count,
        }


@contextlib.asynccontextmanager
async def open_idle(count: int) -> AsyncIterator[Idle]:
    """`count` sleeping containers, started `AT_ONCE` at a time. Left, everything of them is gone."""
    async with open_runtime(name="benchmark-memory") as runtime, trio.open_nursery() as nursery:
        pids: list[int] = []
        times: list[float] = []
        started = trio.Semaphore(0)
        limiter = trio.CapacityLimiter(AT_ONCE)

        async def hold(number: int) -> None:
            await limiter.acquire()
            async with runtime.start(Spec(command=SLEEP, name=f"idle-{number:06}")) as container:
                limiter.release()
                times.append(time.perf_counter())
                pids.append(container.pid)
                started.release()
                await trio.sleep_forever()

        async with runtime.start(Spec(command=SLEEP)):
            pass  # the first pays for what all share
        before, begin = pss("self"), time.perf_counter()
        for number in range(count):
            nursery.start_soon(hold, number)
        for _ in range(count):
            await started.acquire()
        yield Idle(tuple(pids), parent(pids[0]), begin, tuple(times), pss("self") - before)
        nursery.cancel_scope.cancel()


async def idle_memory(count: int) -> dict[str, float]:
    """Starts `count` sleeping containers and weighs them: see `Idle.weigh`."""
    async with open_idle(count) as idle:
        return idle.weigh()
