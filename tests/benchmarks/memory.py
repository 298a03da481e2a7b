"""Own memory per idle container: the launcher and the inits, without the workloads."""

from __future__ import annotations

import re
from pathlib import Path

import trio

from tinyvisor.runtime import open_runtime
from tinyvisor.spec import Spec

SLEEP = ("sleep", "1000000")


def _kilobytes(file: str, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path(file).read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def pss(pid: int | str) -> int:
    """Proportional set size in bytes: shared pages are shared out among those who have them."""
    return _kilobytes(f"/proc/{pid}/smaps_rollup", "Pss")


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def idle_memory(count: int) -> dict[str, float]:
    """Starts `count` sleeping containers and weighs them.

    Returns:
        ``containers``; bytes: ``launcher`` (the process), ``per_container`` (all of launcher and inits, divided),
        ``python_per_container`` (growth of this process).
    """
    started = trio.Semaphore(0)

    async with open_runtime(name="benchmark-memory") as runtime, trio.open_nursery() as nursery:
        pids: list[int] = []
        limiter = trio.CapacityLimiter(16)

        async def hold(number: int) -> None:
            await limiter.acquire()
            async with runtime.start(Spec(command=SLEEP, name=f"idle-{number:06}")) as container:
                limiter.release()
                pids.append(container.pid)
                started.release()
                await trio.sleep_forever()

        before = pss("self")
        for number in range(count):
            nursery.start_soon(hold, number)
        for _ in range(count):
            await started.acquire()
        grown = pss("self") - before
        launcher = _parent(pids[0])
        own = pss(launcher)
        total = own + sum(map(pss, pids))
        nursery.cancel_scope.cancel()
    return {
        "containers": count,
        "launcher": own,
        "per_container": total / count,
        "python_per_container": grown / count,
    }
