"""What is measured: the floor, tinyvisor, `trio.run_process`, and other programs where they are installed.

Each makes `count` short-lived things, `concurrency` at a time, and says how long it took. Other programs are started by
the floor's C loop, so that they pay for no Python. All of them run /bin/true.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.benchmarks.floor import Floor
from tinyvisor.runtime import open_runtime
from tinyvisor.spec import Spec

COMMAND = ("/bin/true",)


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement.

    Attributes:
        wall: seconds per container.
        cpu: seconds of this Python process per container; None where Python has no part in it.
    """

    wall: float
    cpu: float | None = None


@dataclass(frozen=True, slots=True)
class Contender:
    """One line of the table. `share`: of the asked count, for slow ones."""

    name: str
    measure: Callable[[int, int], Awaitable[Sample]]
    share: float = 1.0


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
    """All that this host has. The first is the floor, the second tinyvisor."""

    async def measure_floor(count: int, concurrency: int) -> Sample:
        return Sample(floor.containers(count, concurrency))

    async def measure_run_process(count: int, concurrency: int) -> Sample:
        async def one(worker: int) -> None:
            await trio.run_process(COMMAND)

        return await _in_workers(count, concurrency, one)

    async with open_runtime(name="benchmark") as runtime:

        async def measure_tinyvisor(count: int, concurrency: int) -> Sample:
            specs = [Spec(command=COMMAND, name=f"worker-{worker:04}") for worker in range(concurrency)]

            async def one(worker: int) -> None:
                exit = await runtime.run(specs[worker])
                if exit.exit_code != 0:
                    raise RuntimeError(f"tinyvisor: {exit}")

            return await _in_workers(count, concurrency, one)

        contenders = [
            Contender("floor", measure_floor),
            Contender("tinyvisor", measure_tinyvisor),
            Contender("trio.run_process", measure_run_process),
        ]
        for name, command, share in _others(scratch):
            try:
                floor.commands(2, 2, command)
            except RuntimeError as exc:
                print(f"{name} is left out: {exc}", file=sys.stderr)
            else:
                contenders.append(Contender(name, _by_floor(floor, command), share))
        yield contenders
