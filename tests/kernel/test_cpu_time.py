"""`cpu_time`: by what the kernel's own counters say, however many processes it is spread over and however short their lives."""

from __future__ import annotations

import os
from typing import Any

import anyio
import pytest

from tests.kernel.helpers import BOUND, cgroup_of, read_until, waiting
from tests.kernel.test_capture import run
from tinyvisor.runtime import PIPE, Runtime
from tinyvisor.spec import Limits
from tinyvisor.state import Result

pytestmark = [pytest.mark.kernel, pytest.mark.anyio]

GUARD: dict[str, Any] = {"pids_limit": 40, "mem_limit": 256 << 20, "timeout": BOUND}
CPUS = len(os.sched_getaffinity(0))
LIMIT = 0.3  # s
SLACK = 0.05 + 0.025 * CPUS
"""Seconds: the counters move with the scheduler's ticks, on each CPU, and init has to be given one to look."""

BURN = "while True: pass"
PROCESSES = "import os\nfor _ in range(4): os.fork()\nwhile True: pass"
THREADS = """
import hashlib, threading
def burn():
    while True: hashlib.sha256(bytes(1 << 20))
for _ in range(4): threading.Thread(target=burn).start()
"""
FORKS = """
import os
while True:
    if os.fork() == 0: os._exit(0)
    os.wait()
"""
STORM = """
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    try:
        if os.fork() == 0:
            sum(range(10000))
            os._exit(0)
    except OSError:
        pass
"""
ORPHANS = """
import os
while True:
    if os.fork() == 0:
        if os.fork() == 0: sum(range(10000))
        os._exit(0)
    os.wait()
"""
SLEEPY = """
import time
while True:
    start = time.process_time()
    while time.process_time() < start + 0.001: pass
    time.sleep(0.001)
"""
SESSIONS = """
import os
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        break
while True: pass
"""
WORKLOADS = {
    "one": BURN, "processes": PROCESSES, "threads": THREADS, "forks": FORKS, "storm": STORM, "orphans": ORPHANS, "sleepy": SLEEPY,
    "sessions": SESSIONS,
}  # fmt: skip


def used(result: Result) -> float:
    """As the cgroup counted it, to the very end."""
    return result.cpu_user + result.cpu_system


@pytest.mark.parametrize("workload", WORKLOADS)
async def test_it_is_ended_when_its_time_is_used_up(shared: Runtime, workload: str) -> None:
    result = await run(shared, "python3", "-c", WORKLOADS[workload], limits=Limits(cpu_time=LIMIT), **GUARD)
    assert (result.status, result.signal, result.reason) == ("time_limit", 9, "killed after cpu_time 300ms")
    assert "cpu_time" in result.limits_enforced
    assert used(result) >= LIMIT, "not a moment too soon"
    assert used(result) <= LIMIT + SLACK


@pytest.mark.parametrize(
    "fields", [{"cpus": 0.5}, {"cpus": 1.5}, {"cpuset": {0}}, {"pids_limit": 1}, {"cpus": 0.5, "cpuset": {0}}], ids=str
)
async def test_on_top_of_other_cpu_limits(shared: Runtime, fields: dict[str, Any]) -> None:
    result = await run(shared, "python3", "-c", BURN, cpu_time=LIMIT, **GUARD | fields)
    assert (result.status, result.reason) == ("time_limit", "killed after cpu_time 300ms")
    assert LIMIT <= used(result) <= LIMIT + SLACK
    assert set(fields) < set(result.limits_enforced)


@pytest.mark.parametrize("limit", [0.001, 0.01, 1.0])
async def test_small_and_large_ones(shared: Runtime, limit: float) -> None:
    result = await run(shared, "python3", "-c", BURN, cpu_time=limit, **GUARD)
    assert result.status == "time_limit"
    assert limit <= used(result) <= limit + SLACK


async def test_who_waits_uses_none(shared: Runtime) -> None:
    """Far longer than the limit, by the wall's clock."""
    result = await run(shared, "sleep", "0.6", cpu_time=0.2, **GUARD)
    assert (result.status, result.exit_code) == ("ok", 0)
    assert used(result) < 0.2


async def test_the_wall_is_another_limit(shared: Runtime) -> None:
    result = await run(shared, "sleep", "60", limits=Limits(cpu_time=5), **GUARD | {"timeout": 0.2})
    assert result.reason == "killed after timeout 200ms"
    result = await run(shared, "python3", "-c", BURN, limits=Limits(cpu_time=0.1), **GUARD)
    assert result.reason == "killed after cpu_time 100ms"


async def test_an_own_end_in_time_stands(shared: Runtime) -> None:
    code = "import time\nwhile time.process_time() < 0.1: pass\nraise SystemExit(7)"
    result = await run(shared, "python3", "-c", code, cpu_time=10, **GUARD)
    assert (result.status, result.exit_code) == ("nonzero_exit", 7)
    assert used(result) >= 0.1


async def test_it_is_not_the_others_that_pay(shared: Runtime) -> None:
    async with waiting(shared, name="neighbour", cpu_time=LIMIT) as neighbour:
        result = await run(shared, "python3", "-c", PROCESSES, cpu_time=LIMIT, **GUARD)
        assert result.status == "time_limit"
        assert neighbour.exit is None


async def test_init_sleeps_while_nothing_can_have_been_used_up(shared: Runtime) -> None:
    """It looks a few times, and the less often the more is left."""
    async with shared.start(["sh", "-c", "echo ready; cat"], stdin=PIPE, stdout=PIPE, cpu_time=1000, pids_limit=5) as container:
        await read_until(container.stdout, "ready\n")

        def switches() -> int:
            with open(f"/proc/{container.pid}/status") as file:
                return sum(int(line.split()[1]) for line in file if "ctxt_switches" in line)

        before = switches()
        await anyio.sleep(0.3)
        assert switches() - before <= 5


async def test_the_counter_is_the_containers_cgroup(shared: Runtime) -> None:
    async with waiting(shared, cpu_time=10):
        directory = cgroup_of(shared, "cpuacct")
        assert directory.is_dir()
        assert len((directory / "cgroup.procs").read_text().split()) == 1
