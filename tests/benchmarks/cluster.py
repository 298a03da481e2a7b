"""``python -m tests.benchmarks --cluster``: a batch on a Dask cluster of this machine beside the same batch without one.

Both run the same jobs, as many at once, from a file of JSON Lines to a results file, in turns. What a job costs is taken between
the first result and the last; what comes before the first, a process of Python on each worker, is a figure of its own.
All of it shares the CPUs of one machine: that a second worker adds less than the first is the machine's limit before Dask's.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from tests.benchmarks.counts import process_cpu
from tests.benchmarks.scale import _check, _jobs
from tests.kernel.machines import LOOPBACK, Machines
from tinyvisor.batch import Batch, Policy
from tinyvisor.batch import Runtime as Runs
from tinyvisor.cluster.client import Cluster
from tinyvisor.cluster.connect import Credentials, Place, connected
from tinyvisor.jobs import NumberedJob
from tinyvisor.journal import Journal
from tinyvisor.runtime import open_runtime
from tinyvisor.state import Result

WORKERS = (1, 2)
COMMANDS = {"10 ms": ("sleep", "0.01"), "true": ("true",)}
IDLE = 5.0  # seconds without jobs, for what Dask does by itself
ENDLESS = 16  # jobs that are cancelled
QUIET = {
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "10s",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
}

Found = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """One batch.

    Attributes:
        first: seconds until the first result.
        each: seconds for each of the others.
        cpu: seconds of CPU for each job, by who took them.
        messages: sent through the scheduler.
    """

    first: float
    each: float
    cpu: dict[str, float]
    messages: int


class _Counter:
    """A client whose submissions are counted."""

    def __init__(self, client: Any) -> None:
        self.count, self._submit = 0, client.submit
        client.submit = self

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        self.count += 1
        return self._submit(*arguments, **more)


@contextmanager
def _client(machines: Machines) -> Iterator[Any]:
    files = [Path(word) for word in machines.certificates[1::2]]
    with connected(Place(file=machines.file), Credentials(*files)) as client:
        client.wait_for_workers(len(machines.processes) - 1)
        yield client


@asynccontextmanager
async def _both(workers: int) -> AsyncIterator[tuple[dict[str, Runs], Machines, _Counter]]:
    with tempfile.TemporaryDirectory(prefix="tinyvisor-cluster-") as directory:
        with Machines(Path(directory), LOOPBACK, *workers * [LOOPBACK], env=QUIET) as machines, _client(machines) as client:
            async with open_runtime(name="benchmark-cluster") as runtime:
                yield {"alone": runtime, "cluster": Cluster(client)}, machines, _Counter(client)


def _groups(machines: Machines) -> dict[str, list[int]]:
    """The processes whose CPU time is taken; the nodes' are the workers' children."""
    scheduler, *workers = (process.pid for process in machines.processes)
    return {
        "client": [os.getpid()],
        "scheduler": [scheduler],
        "workers": workers,
        "nodes": machines.nodes(),
    }


async def _run(runtime: Runs, file: Path, count: int, at_once: int, groups: Callable[[], dict[str, list[int]]]) -> Run:
    times: list[float] = []
    before: dict[str, float] = {}

    def on_finished(job: NumberedJob, result: Result) -> None:
        _check(result)
        times.append(time.perf_counter())
        if len(times) == 1:
            before.update(_cpu(groups()))
        if len(times) == count:
            spent.update({name: seconds - before.get(name, 0.0) for name, seconds in _cpu(groups()).items()})

    spent: dict[str, float] = {}
    with Journal(file.with_suffix(".results")) as journal:
        begin = time.perf_counter()
        await Batch(runtime, _jobs(file), Policy(concurrency=at_once), journal=journal, on_finished=on_finished).run()
    file.with_suffix(".results").unlink()
    if len(times) != count:
        raise RuntimeError(f"{len(times)} jobs of {count} finished")
    cpu = {name: seconds / (count - 1) for name, seconds in spent.items()}
    return Run(times[0] - begin, (times[-1] - times[0]) / (count - 1), cpu, 0)


def _cpu(groups: dict[str, list[int]]) -> dict[str, float]:
    return {name: sum(map(process_cpu, pids)) for name, pids in groups.items()}


async def _compare(workers: int, jobs: int, rounds: int, scratch: Path) -> list[Found]:
    rows = []
    async with _both(workers) as (runtimes, machines, counter):
        await trio.sleep(1.0)
        before = _cpu(_groups(machines))["scheduler"]
        await trio.sleep(IDLE)
        idle = (_cpu(_groups(machines))["scheduler"] - before) / IDLE
        for name, command in COMMANDS.items():
            file = scratch / "cluster.jsonl"
            file.write_text("".join(json.dumps({"id": f"j{number}", "command": command}) + "\n" for number in range(jobs)))
            taken: dict[str, list[Run]] = {"alone": [], "cluster": []}
            order = list(runtimes)
            for _ in range(rounds):
                for which in order:
                    sent = counter.count
                    run = await _run(runtimes[which], file, jobs, workers, lambda: _groups(machines))
                    taken[which].append(Run(run.first, run.each, run.cpu, counter.count - sent))
                order.reverse()
            file.unlink()
            rows.append({"jobs": name, "workers": workers, "scheduler_idle": idle, **summarize(taken["alone"], taken["cluster"])})
        cancel = [await _cancel(runtimes["cluster"], workers) for _ in range(rounds)]
        rows[-1]["cancel"] = max(cancel)
    return rows


async def _cancel(runtime: Any, workers: int) -> float:
    """Seconds until nothing of a batch is left on the nodes, and they have said so."""
    from tinyvisor.spec import Spec

    specs = [Spec(command=("sleep", "0" if number < workers else "1000")) for number in range(ENDLESS)]
    async with runtime.map(specs) as results:
        for _ in range(workers):
            await anext(results)
        begin = time.perf_counter()
    return time.perf_counter() - begin


def summarize(alone: Sequence[Run], cluster: Sequence[Run]) -> Found:
    """Medians over the rounds; ``ratio`` is taken within each, ``best`` of the fastest round of both: the least disturbed."""

    def cpu(runs: Sequence[Run], name: str) -> float:
        return statistics.median(run.cpu[name] for run in runs)

    return {
        "alone": statistics.median(run.each for run in alone),
        "cluster": statistics.median(run.each for run in cluster),
        "ratio": statistics.median(after.each / before.each for before, after in zip(alone, cluster, strict=True)),
        "best": min(run.each for run in cluster) / min(run.each for run in alone),
        "ratios": [after.each / before.each for before, after in zip(alone, cluster, strict=True)],
        "first_alone": statistics.median(run.first for run in alone),
        "first_cluster": statistics.median(run.first for run in cluster),
        "cpu_alone": cpu(alone, "client"),
        "cpu": {name: cpu(cluster, name) for name in cluster[0].cpu},
        "messages": statistics.median(run.messages for run in cluster),
    }


def saturation(row: Found, jobs: int) -> Found:
    """What follows from one row for many nodes: jobs per second that one client, and one scheduler, can take at most.

    Returns:
        ``client``: jobs per second that keep it busy; ``message``: seconds of the scheduler for each message;
        ``most_messages``: per second that keep it busy.
    """
    seconds = row["cluster"] * (jobs - 1)
    message = max(0.0, row["cpu"]["scheduler"] * (jobs - 1) - row["scheduler_idle"] * seconds) / row["messages"]
    return {"client": 1 / row["cpu"]["client"], "message": message, "most_messages": 1 / message if message else None}


async def measure_cluster(jobs: int, rounds: int, scratch: Path) -> list[Found]:
    """All rows: by number of workers and by length of jobs; each is told as it is there."""
    found = []
    for workers in WORKERS:
        for row in await _compare(workers, jobs, rounds, scratch):
            row |= saturation(row, jobs)
            print_row(row)
            found.append(row)
    return found


def print_row(row: Found) -> None:
    """One row, in lines."""
    cpu, count = row["cpu"], row["workers"]
    print(f"\n{row['jobs']} jobs, {count} at once; the cluster has {count} workers of one thread")
    for name in ("alone", "cluster"):
        each, first = row[name], row[f"first_{name}"]
        print(f"  {name:<8}{1e3 * each:9.2f} ms each{1 / each:8.0f} per second, the first after {first:.2f} s")
    low, high = min(row["ratios"]), max(row["ratios"])
    print(f"  ratio   {row['ratio']:9.3f}, in single rounds {low:.2f} to {high:.2f}; of the fastest {row['best']:.3f}")
    shares = ", ".join(f"{name} {1e3 * each:.2f}" for name, each in cpu.items())
    print(f"  Python's CPU ms for each: alone {1e3 * row['cpu_alone']:.2f}; {shares}")
    idle = row["scheduler_idle"] * row["cluster"] * 1e3
    print(f"  scheduler: {cpu['scheduler'] * 1e3:.3f} s of CPU for 1,000 jobs, {idle:.3f} s of it without any")
    print(f"  {row['messages']:.0f} messages, {1e3 * row['message']:.2f} ms of the scheduler's CPU each")
    if "cancel" in row:
        print(f"  cancelled: nothing is left after {row['cancel']:.2f} s at most")
