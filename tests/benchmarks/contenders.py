"""What is measured: the floor, tinyvisor, `trio.run_process`, and other programs where they are installed.

Each makes `count` short-lived things, `concurrency` at a time, and says how long it took. Other programs are started by
the floor's C loop, so that they pay for no Python, or by xargs. All of them run /bin/true.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import trio

from tests.benchmarks.counts import children, parent, state
from tests.benchmarks.floor import Floor
from tinyvisor.runtime import Runtime, open_runtime
from tinyvisor.spec import Spec
from tinyvisor.state import Exit

Action: TypeAlias = "Callable[[], Awaitable[object]]"

COMMAND = ("/bin/true",)
RUN_PROCESS = "trio.run_process"
POOL = 2  # one that is used, and the one that is made meanwhile
POLL = 0.001  # seconds: nobody is told that a container has been parked


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement.

    Attributes:
        wall: seconds per container.
        cpu: seconds of this Python process per container; None where Python has no part in it.
        process: `wall` of `trio.run_process` where it was measured in turns with this one; None where it was not.
    """

    wall: float
    cpu: float | None = None
    process: float | None = None


@dataclass(frozen=True, slots=True)
class Contender:
    """One line of the table.

    Attributes:
        share: of the asked count, for slow ones.
        alone, together: whether it is measured one at a time, and several at once.
    """

    name: str
    measure: Callable[[int, int], Awaitable[Sample]]
    share: float = 1.0
    alone: bool = True
    together: bool = True

    def takes_part(self, concurrency: int) -> bool:
        return self.alone if concurrency == 1 else self.together


async def _in_workers(count: int, concurrency: int, one: Callable[[int], Awaitable[object]]) -> Sample:
    """Runs `one(worker)` `count` times, by `concurrency` tasks."""
    numbers = iter(range(count))

    async def work(worker: int) -> None:
        for _ in numbers:
            await one(worker)

    wall, cpu = time.perf_counter(), time.process_time()
    async with trio.open_nursery() as nursery:
        for worker in range(concurrency):
            nursery.start_soon(work, worker)
    return Sample((time.perf_counter() - wall) / count, (time.process_time() - cpu) / count)


def _check(ended: Exit) -> None:
    if ended.exit_code != 0:
        raise RuntimeError(f"tinyvisor: {ended}")


async def _launcher_of(runtime: Runtime) -> int:
    async with runtime.start(["sleep", "1000"]) as container:
        return parent(container.pid)


def _is_parked(init: int) -> bool:
    """Whether it has come as far as to sleep until somebody gives it a command."""
    try:
        below = children(init)
        return len(below) == 1 and state(below[0]) == "S"
    except (FileNotFoundError, ProcessLookupError):
        return False  # the one before it, on its way out


async def _in_turns(count: int, ready: Action, first: Action, second: Action) -> Sample:
    """Calls both `count` times, one after the other and each first as often, when all is `ready`.

    Returns:
        `first`'s median wall and mean CPU time; `second`'s median wall as ``process``.
    """
    walls: tuple[list[float], list[float]] = ([], [])
    cpu = 0.0
    for number in range(count):
        for which in ((0, 1), (1, 0))[number % 2]:
            await ready()
            begin, began = time.perf_counter(), time.process_time()
            await (first, second)[which]()
            walls[which].append(time.perf_counter() - begin)
            cpu += 0.0 if which else time.process_time() - began
    return Sample(statistics.median(walls[0]), cpu / count, statistics.median(walls[1]))


async def _measure_warm(runtime: Runtime, launcher: int, count: int) -> Sample:
    """The latency of runs that find a container parked, in turns with `trio.run_process`."""
    async with runtime.pool(Spec(command=COMMAND), size=POOL) as pool:

        async def wait_full() -> None:
            while True:
                inits = children(launcher)
                if pool.ready == POOL == len(inits) and all(map(_is_parked, inits)):
                    return
                await trio.sleep(POLL)

        async def run_warm() -> None:
            _check(await pool.run(COMMAND))

        async def run_process() -> None:
            await trio.run_process(COMMAND)

        return await _in_turns(count, wait_full, run_warm, run_process)


async def _measure_map(runtime: Runtime, count: int, concurrency: int) -> Sample:
    wall, cpu = time.perf_counter(), time.process_time()
    async with runtime.map(itertools.repeat(Spec(command=COMMAND), count), concurrency=concurrency) as results:
        async for result in results:
            _check(result)
    return Sample((time.perf_counter() - wall) / count, (time.process_time() - cpu) / count)


def _by_xargs(command: tuple[str, ...]) -> Callable[[int, int], Awaitable[Sample]]:
    async def measure(count: int, concurrency: int) -> Sample:
        numbers = "".join(f"{number}\n" for number in range(count)).encode()
        wall = time.perf_counter()
        await trio.run_process(["xargs", "-P", str(concurrency), "-n", "1", *command], stdin=numbers)
        return Sample((time.perf_counter() - wall) / count)

    return measure


def _by_floor(floor: Floor, command: tuple[str, ...]) -> Callable[[int, int], Awaitable[Sample]]:
    async def measure(count: int, concurrency: int) -> Sample:
        return Sample(floor.commands(count, concurrency, command))

    return measure


def _top() -> Iterator[tuple[str, str | None]]:
    """/bin and the like: the path, and where it links to."""
    for path in map(Path, ("/bin", "/sbin", "/lib", "/lib32", "/lib64")):
        if path.exists():
            yield str(path), str(path.readlink()) if path.is_symlink() else None


def bwrap_command() -> tuple[str, ...]:
    """The nearest that bubblewrap has to our default."""
    words = [
        "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--ro-bind",
        "/usr",
        "/usr",
        "--ro-bind",
        "/etc",
        "/etc",
    ]
    for path, to in _top():
        words += ["--symlink", to, path] if to else ["--ro-bind", path, path]
    return (*words, "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--hostname", "bench", "--cap-drop", "ALL", *COMMAND)


def write_bundle(program: str, bundle: Path) -> None:
    """An OCI bundle out of the program's own default spec: no terminal, the host's /usr."""
    (bundle / "rootfs").mkdir(parents=True)
    subprocess.run([program, "spec"], cwd=bundle, check=True, timeout=60)
    path = bundle / "config.json"
    config = json.loads(path.read_text())
    config["process"].update(terminal=False, args=list(COMMAND))
    binds = ["/usr"]
    for name, to in _top():
        if to:
            Path(bundle, "rootfs", name.lstrip("/")).symlink_to(to)
        else:
            binds.append(name)
    options = ["rbind", "ro", "nosuid", "nodev"]
    config["mounts"] += [{"destination": name, "type": "bind", "source": name, "options": options} for name in binds]
    path.write_text(json.dumps(config))


def _others(scratch: Path) -> Iterator[tuple[str, tuple[str, ...], float]]:
    """The other programs that are installed: name, command, share."""
    if shutil.which("unshare"):
        words = ("unshare", "--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup", "--fork", "--mount-proc", "--kill-child")
        yield "unshare", (*words, *COMMAND), 0.5
    if shutil.which("bwrap"):
        yield "bwrap", bwrap_command(), 0.5
    for program in ("crun", "runc"):
        if shutil.which(program):
            bundle = scratch / program
            write_bundle(program, bundle)
            yield program, (program, "--root", f"{scratch / program}-state", "run", "--bundle", str(bundle), "{}"), 0.1


@contextlib.asynccontextmanager
async def open_contenders(floor: Floor, scratch: Path) -> AsyncIterator[list[Contender]]:
    """All that this host has. The first is the floor."""

    async def measure_floor(count: int, concurrency: int, without: tuple[str, ...] = ()) -> Sample:
        return Sample(floor.containers(count, concurrency, without=without))

    async def measure_run_process(count: int, concurrency: int) -> Sample:
        async def one(worker: int) -> None:
            await trio.run_process(COMMAND)

        return await _in_workers(count, concurrency, one)

    async with open_runtime(name="benchmark") as runtime:

        async def measure_tinyvisor(count: int, concurrency: int, **fields: Any) -> Sample:
            specs = [Spec(command=COMMAND, name=f"worker-{worker:04}", **fields) for worker in range(concurrency)]

            async def one(worker: int) -> None:
                _check(await runtime.run(specs[worker]))

            return await _in_workers(count, concurrency, one)

        async def measure_in_a_row(count: int, concurrency: int) -> Sample:
            async def one(worker: int) -> None:
                _check(await runtime.run(COMMAND))

            return await _in_workers(count, concurrency, one)

        async def measure_warm(count: int, concurrency: int) -> Sample:
            return await _measure_warm(runtime, launcher, count)

        async def measure_map(count: int, concurrency: int) -> Sample:
            return await _measure_map(runtime, count, concurrency)

        launcher = await _launcher_of(runtime)
        contenders = [
            Contender("floor", measure_floor),
            Contender("floor kept net", functools.partial(measure_floor, without=("newnet",))),
            Contender("tinyvisor", measure_tinyvisor),
            Contender("userns host", functools.partial(measure_tinyvisor, userns_mode="host")),
            Contender("unconfined", functools.partial(measure_tinyvisor, userns_mode="host", seccomp="unconfined")),
            Contender("in a row", measure_in_a_row, together=False),
            Contender("tinyvisor map", measure_map),
            Contender("tinyvisor warm", measure_warm, 0.5, together=False),
            Contender(RUN_PROCESS, measure_run_process),
        ]
        for name, command, share in _others(scratch):
            try:
                floor.commands(2, 2, command)
            except RuntimeError as exc:
                print(f"{name} is left out: {exc}", file=sys.stderr)
            else:
                contenders.append(Contender(name, _by_floor(floor, command), share))
                if name == "bwrap":
                    contenders.append(Contender("xargs -P bwrap", _by_xargs(command), share, alone=False))
        yield contenders
