"""``python -m tests.benchmarks --scale``: what becomes of the price when there is much of everything.

Each measure is taken at a tenth of its size and then at it, so that what grows is seen to grow. A measure is one table and
one entry of the JSON; whatever it started, wrote or opened is gone when it is over, also when it failed.

Real-time priority (chrt) makes times less noisy, but keeps the kernel's own threads from taking away what has ended: with it
the growth of cgroups and network namespaces means nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import trio

from tests.benchmarks.contenders import COMMAND
from tests.benchmarks.counts import Census, activity, parent
from tests.benchmarks.floor import Floor
from tests.benchmarks.memory import AT_ONCE, open_idle
from tinyvisor.batch import Batch, Policy
from tinyvisor.jobs import OUTPUT_LIMIT, Invalid, NumberedJob, Reader
from tinyvisor.journal import Journal
from tinyvisor.runtime import Runtime, open_runtime
from tinyvisor.spec import Spec
from tinyvisor.state import Exit, Result
from tinyvisor.units import format_size, parse_size

Found = dict[str, Any]
Lines = Sequence[tuple[str, Callable[[Found], str]]]

WINDOW = 2.0  # seconds of idleness that are looked at
REST = 2.0  # seconds after which what has ended is no longer on its way out
LINE = "0123456789" * 9 + "012345678"  # and its newline: 100 bytes
CHUNK = 256 << 10
LIMIT = 3600.0  # seconds for one measure
FLOOR_COUNT = 400
FDS = 64  # besides one for each container; and ranges of ids for others than those that idle


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much of everything; 0 leaves a measure out.

    Attributes:
        idle: containers at once.
        runs: runs in a row.
        output: bytes.
        jobs: of a batch.
    """

    idle: int = 5000
    runs: int = 10_000
    output: int = 256 << 20
    jobs: int = 20_000

    def __post_init__(self) -> None:
        for name, least in (("idle", 100), ("runs", 100), ("output", 1 << 20), ("jobs", 100)):
            value = getattr(self, name)
            if value and value < least:
                raise ValueError(f"--{name}: expected {least} or more, or 0 for none, got {value}")


QUICK = Sizes(idle=200, runs=400, output=16 << 20, jobs=400)
"""For a look at whether all of it works."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `chosen_sizes` reads."""
    group = parser.add_argument_group("--scale", "each also at a tenth of its size; 0 for none")
    usual = Sizes()
    group.add_argument("--scale", action="store_true", help="what becomes of the price at scale, instead of the contenders")
    group.add_argument("--quick", action="store_true", help="small sizes, which say little")
    group.add_argument("--idle", type=int, metavar="N", help=f"containers at once (default {usual.idle})")
    group.add_argument("--runs", type=int, metavar="N", help=f"runs in a row (default {usual.runs})")
    group.add_argument(
        "--output",
        type=parse_size,
        metavar="SIZE",
        help=f"of one container; twice that is in memory for a moment (default {format_size(usual.output)})",
    )
    group.add_argument("--jobs", type=int, metavar="N", help=f"of a batch (default {usual.jobs})")


def chosen_sizes(options: argparse.Namespace) -> Sizes:
    """Raises:
    ValueError: one is too small to say anything.
    """
    given = {name: value for name in ("idle", "runs", "output", "jobs") if (value := getattr(options, name)) is not None}
    return replace(QUICK if options.quick else Sizes(), **given)


# --- What is made of times and counts. ---


def edge_rates(times: Sequence[float], begin: float) -> tuple[float, float]:
    """Events per second in the first and in the last tenth of them, of which there are 10 or more.

    Args:
        times: seconds, ascending.
        begin: when the first was begun.
    """
    count = len(times) // 10
    first, last = times[count - 1] - begin, times[-1] - times[-1 - count]
    return count / first, count / last


def growth(before: Found, after: Found) -> Found:
    """Differences; None where one is not known."""
    return {name: None if value is None or after[name] is None else after[name] - value for name, value in before.items()}


def _rates(times: Sequence[float], begin: float) -> Found:
    first, last = edge_rates(times, begin)
    total = times[-1] - begin
    return {
        "count": len(times),
        "rate": len(times) / total,
        "first_rate": first,
        "last_rate": last,
        "last_to_first": last / first,
    }


def _clock_array(count: int) -> array[float]:
    """Takes its memory now: what is put into it is no growth."""
    return array("d", bytes(8 * count))


def _check(ended: Exit) -> None:
    if ended.exit_code != 0:
        raise RuntimeError(f"tinyvisor: {ended}")


# --- Many at once. ---


async def measure_idle(count: int, floor: Floor) -> Found:
    """`count` sleeping containers at once.

    Returns:
        what `memory.Idle.weigh` does; ``rate`` and those of the first and last tenth of the starts; what `WINDOW` seconds
        with nothing going on took: ``idle_cpu`` (seconds), and ``idle_wakeups`` of ``inits``, ``launcher`` and ``python``,
        which wakes up once to end them; ``stop``: seconds until nothing was left of any of them; ``floor`` and
        ``floor_beside``: seconds that the kernel alone takes for a container, before, and beside all of them.
    """
    before_all = floor.containers(FLOOR_COUNT, AT_ONCE)
    async with open_idle(count) as idle:
        found: Found = idle.weigh() | _rates(idle.started, idle.begin)
        await trio.sleep(REST)
        groups = {"inits": idle.pids, "launcher": (idle.launcher,), "python": (os.getpid(),)}
        # Ourselves last, and then first: looking at the others takes CPU time.
        before = {name: activity(pids) for name, pids in groups.items()}
        await trio.sleep(WINDOW)
        spent = {name: activity(groups[name]) - before[name] for name in reversed(groups)}
        found["idle_cpu"] = {name: spent[name].cpu for name in groups}
        found["idle_wakeups"] = {name: spent[name].wakeups for name in groups}
        found |= {"floor": before_all, "floor_beside": floor.containers(FLOOR_COUNT, AT_ONCE)}
        begin = time.perf_counter()
    found["stop"] = time.perf_counter() - begin
    return found


def print_idle(rows: Sequence[Found]) -> None:
    """The table of `measure_idle`."""

    def activity_of(name: str) -> Callable[[Found], str]:
        return lambda row: f"{row['idle_wakeups'][name]} x, {row['idle_cpu'][name] * 1e3:.1f} ms"

    lines: Lines = (
        ("started per second", lambda row: f"{row['rate']:.0f}"),
        ("  first tenth", lambda row: f"{row['first_rate']:.0f}"),
        ("  last tenth", lambda row: f"{row['last_rate']:.0f}"),
        ("  last to first", lambda row: f"{row['last_to_first']:.2f}"),
        ("the floor's ms each, before", lambda row: f"{row['floor'] * 1e3:.2f}"),
        ("  beside them", lambda row: f"{row['floor_beside'] * 1e3:.2f}"),
        ("KB each", lambda row: f"{(row['per_container'] + row['python_per_container']) / 1024:.1f}"),
        ("  launcher and init", lambda row: f"{row['per_container'] / 1024:.1f}"),
        ("  Python", lambda row: f"{row['python_per_container'] / 1024:.1f}"),
        *((f"woken in {WINDOW:g} s: {name}", activity_of(name)) for name in ("inits", "launcher", "python")),
        ("seconds to stop them all", lambda row: f"{row['stop']:.2f}"),
    )
    _print_table("idle containers", "count", lines, rows)


def _print_table(title: str, size: str, lines: Lines, rows: Sequence[Found]) -> None:
    """A column for each of `rows`."""
    print(f"\n{title:<34}" + "".join(f"{row[size]:>16}" for row in rows))
    for name, show in lines:
        print(f"{name:<34}" + "".join(f"{show(row):>16}" for row in rows))


# --- Many in a row. ---


async def measure_runs(count: int) -> Found:
    """`count` runs, one after another, in one runtime.

    Returns:
        rates as above; ``census``: what there was after a tenth, at the end, and `REST` seconds later; ``growth`` between
        the tenth and the end, and ``growth_at_rest``.
    """
    times = _clock_array(count)
    spec = Spec(command=COMMAND)
    async with open_runtime(name="benchmark-runs") as runtime:
        launcher = await _launcher(runtime)
        census: dict[str, Found] = {}
        begin = time.perf_counter()
        for number in range(count):
            _check(await runtime.run(spec))
            times[number] = time.perf_counter()
            if number + 1 == count // 10:
                census["tenth"] = Census.take(launcher).to_json()
        census["end"] = Census.take(launcher).to_json()
        await trio.sleep(REST)
        census["rest"] = Census.take(launcher).to_json()
    return _rates(times, begin) | {
        "census": census,
        "growth": growth(census["tenth"], census["end"]),
        "growth_at_rest": growth(census["tenth"], census["rest"]),
    }


async def _launcher(runtime: Runtime) -> int:
    async with runtime.start(["sleep", "1000"]) as container:
        return parent(container.pid)


def print_runs(rows: Sequence[Found]) -> None:
    """The tables of `measure_runs`."""
    for row in rows:
        print(
            f"\n{row['count']} runs in a row: {row['rate']:.0f} per second, first tenth {row['first_rate']:.0f}, "
            f"last {row['last_rate']:.0f}, ratio {row['last_to_first']:.2f}"
        )
        print(f"{'':<24}{'after a tenth':>15}{'at the end':>15}{'at rest':>15}{'growth':>12}")
        for name, grown in row["growth_at_rest"].items():
            figures = [row["census"][when][name] for when in ("tenth", "end", "rest")]
            shown = [_amount(name, figure) for figure in figures]
            print(f"{name.replace('_', ' '):<24}" + "".join(f"{text:>15}" for text in shown) + f"{_amount(name, grown):>12}")


def _amount(name: str, value: int | None) -> str:
    if value is None:
        return "not known"
    return f"{value / 1024:.0f} KB" if name.endswith("_rss") else str(value)


# --- Much output. ---


def writer(size: int) -> tuple[str, ...]:
    """A command that writes `size` bytes of lines."""
    return ("sh", "-c", f"yes {LINE} | head -c {size}")


async def measure_output(size: int, rounds: int, scratch: Path) -> Found:
    """`size` bytes of lines out of one container, and out of the same command without one, in turns.

    Returns:
        ``size``, and ``seconds`` (the median of `rounds`) by way.
    """
    command = writer(size)
    async with open_runtime(name="benchmark-output") as runtime:

        async def captured() -> int:
            result = await runtime.run(command, capture_stdout=True, output_limit=size)
            _check(result)
            return len(result.stdout or b"")

        async def into_file() -> int:
            with _scratch_file(scratch) as file:
                _check(await runtime.run(command, stdout=file))
                return os.fstat(file.fileno()).st_size

        async def bare_pipe() -> int:
            return await trio.to_thread.run_sync(_read_pipe, command)

        async def bare_file() -> int:
            with _scratch_file(scratch) as file:
                await trio.run_process(command, stdout=file)
                return os.fstat(file.fileno()).st_size

        async def json_lines() -> int:
            with _scratch_file(scratch) as file:
                return await trio.to_thread.run_sync(_log_as_json, command, file)

        ways: dict[str, Callable[[], Awaitable[int]]] = {
            "captured": captured,
            "to a file": into_file,
            "bare pipe": bare_pipe,
            "bare file": bare_file,
            "JSON lines": json_lines,
        }
        walls: dict[str, list[float]] = {name: [] for name in ways}
        _check(await runtime.run(COMMAND))  # the first pays for what all share
        for _ in range(rounds):
            for name, way in ways.items():
                begin = time.perf_counter()
                written = await way()
                walls[name].append(time.perf_counter() - begin)
                if written != size:
                    raise RuntimeError(f"{name}: {written} bytes of {size} came through")
    return {"size": size, "seconds": {name: statistics.median(taken) for name, taken in walls.items()}}


def _scratch_file(scratch: Path) -> IO[bytes]:
    """Has no name, so there is nothing to be removed."""
    return os.fdopen(os.open(scratch, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), "w+b")


def _read_pipe(command: Sequence[str]) -> int:
    """All of it in memory in one piece, as a run gives it."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        chunks = []
        while chunk := os.read(process.stdout.fileno(), CHUNK):
            chunks.append(chunk)
    return len(b"".join(chunks))


def json_line(line: bytes, stream: str, now: datetime) -> str:
    """As docker's json-file driver writes it."""
    return json.dumps({"log": line.decode(errors="replace"), "stream": stream, "time": now.isoformat()}) + "\n"


def _log_as_json(command: Sequence[str], file: IO[bytes]) -> int:
    """Returns how many bytes were logged, not how many that took."""
    size = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=CHUNK) as process:
        assert process.stdout is not None
        for line in process.stdout:
            size += len(line)
            file.write(json_line(line, "stdout", datetime.now(UTC)).encode())
        file.flush()
    return size


def print_output(rows: Sequence[Found]) -> None:
    """The table of `measure_output`."""

    def rate_of(name: str) -> Callable[[Found], str]:
        return lambda row: f"{row['size'] / 1e6 / row['seconds'][name]:.0f}"

    shown = [row | {"text": format_size(row["size"])} for row in rows]
    _print_table("output, MB per second", "text", [(name, rate_of(name)) for name in rows[0]["seconds"]], shown)


# --- Many jobs. ---


async def measure_jobs(count: int, rounds: int, scratch: Path) -> Found:
    """A batch of `count` jobs, from a file of JSON Lines to a results file, and a `Runtime.map` of as many specs with the same
    captures; in turns, `rounds` times. The progress display is not in it.

    Returns:
        ``map`` and ``batch``: rates as above, medians; ``ratio``: of the batch's rate to the map's within a round;
        ``growth``: of the last batch, between its tenth and its end.
    """
    taken: list[tuple[Found, Found]] = []
    file = scratch / "jobs.jsonl"
    with open(file, "w") as lines:
        for number in range(count):
            lines.write(json.dumps({"id": f"job-{number}", "command": list(COMMAND)}) + "\n")
    try:
        async with open_runtime(name="benchmark-batch") as runtime:
            launcher = await _launcher(runtime)
            for _ in range(rounds):
                mapped = await _map(runtime, count)
                taken.append((mapped, await _batch(runtime, launcher, file, count)))
    finally:
        file.unlink()
    return {
        "count": count,
        "map": statistics.median(mapped["rate"] for mapped, _ in taken),
        "batch": statistics.median(batch["rate"] for _, batch in taken),
        "batch_last_to_first": statistics.median(batch["last_to_first"] for _, batch in taken),
        "ratio": statistics.median(batch["rate"] / mapped["rate"] for mapped, batch in taken),
        "growth": taken[-1][1]["growth"],
    }


async def _map(runtime: Runtime, count: int) -> Found:
    """A spec like a batch's jobs have, made once: what each job's own costs is the batch's."""
    times = _clock_array(count)
    jobs = itertools.repeat(Spec(command=COMMAND, output_limit=OUTPUT_LIMIT), count)
    begin = time.perf_counter()
    async with runtime.map(jobs, concurrency=AT_ONCE, capture_stdout=True, capture_stderr=True) as results:
        number = 0
        async for result in results:
            _check(result)
            times[number] = time.perf_counter()
            number += 1
    return _rates(times, begin)


async def _batch(runtime: Runtime, launcher: int, file: Path, count: int) -> Found:
    times = _clock_array(count)
    census: list[Found] = []
    number = 0

    def on_finished(job: NumberedJob, result: Result) -> None:
        nonlocal number
        _check(result)
        times[number] = time.perf_counter()
        number += 1
        if number == count // 10:
            census.append(Census.take(launcher).to_json())

    results = file.with_suffix(".results")
    try:
        begin = time.perf_counter()
        with Journal(results) as journal:
            batch = Batch(runtime, _jobs(file), Policy(concurrency=AT_ONCE), journal=journal, on_finished=on_finished)
            await batch.run()
        census.append(Census.take(launcher).to_json())
    finally:
        results.unlink(missing_ok=True)
    if number != count:
        raise RuntimeError(f"batch: {number} jobs of {count} finished")
    return _rates(times, begin) | {"growth": growth(*census)}


async def _jobs(file: Path) -> AsyncIterator[NumberedJob]:
    for number, job in enumerate(Reader(environ={}).file(file)):
        if isinstance(job, Invalid):
            raise RuntimeError(f"{file}: {job.problems}")
        if number % AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
        yield job


def print_jobs(rows: Sequence[Found]) -> None:
    """The table of `measure_jobs`."""

    def growth_of(name: str) -> Callable[[Found], str]:
        return lambda row: _amount(name, row["growth"][name])

    lines: Lines = (
        ("map, per second", lambda row: f"{row['map']:.0f}"),
        ("batch, per second", lambda row: f"{row['batch']:.0f}"),
        ("  last tenth to first", lambda row: f"{row['batch_last_to_first']:.2f}"),
        ("  to map", lambda row: f"{row['ratio']:.2f}"),
        *(
            (f"grown from a tenth on: {title}", growth_of(name))
            for title, name in (("Python", "python_rss"), ("launcher", "launcher_rss"), ("netns", "network_namespaces"))
        ),
    )
    _print_table(f"jobs, {AT_ONCE} at once", "count", lines, rows)


# --- All of it. ---


def _allow_fds(count: int) -> None:
    """Raises:
    RuntimeError: we may not have so many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise RuntimeError(f"{count} fds are needed, but the hard limit is {hard}; raise it with `ulimit -Hn {count}`")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


async def measure_scale(sizes: Sizes, *, floor: Floor, rounds: int, scratch: Path) -> Found:
    """All measures that have a size, each told as soon as it is there.

    Returns:
        by measure, a list: at a tenth, and in full.
    """
    _allow_fds(sizes.idle + FDS)
    measures: tuple[tuple[str, int, Callable[[int], Awaitable[Found]], Callable[[Sequence[Found]], None]], ...] = (
        ("idle", sizes.idle, lambda size: measure_idle(size, floor), print_idle),
        ("runs", sizes.runs, measure_runs, print_runs),
        ("output", sizes.output, lambda size: measure_output(size, rounds, scratch), print_output),
        ("jobs", sizes.jobs, lambda size: measure_jobs(size, rounds if size < sizes.jobs else 1, scratch), print_jobs),
    )
    found: Found = {}
    for name, size, measure, show in measures:
        if size:
            found[name] = []
            for part in (size // 10, size):
                with trio.fail_after(LIMIT):
                    found[name].append(await measure(part))
            show(found[name])
    return found
