"""Builds floor.c, gives it cgroups to make its own in, runs it. Everything is gone again when the scope is left."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from hatch_build import CompileError, find_compiler

NAME = "tinyvisor-floor"
SOURCE = Path(__file__).with_name("floor.c")
LIMIT = 300.0  # seconds for one run

PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "pid namespace": (("pidns",), ()),
    "user namespace, idmapped mounts": (("user",), ()),
    "net namespace": (("net",), ()),
    "loopback up": (("loopback",), ()),
    "ipc namespace": (("ipc",), ()),
    "uts namespace": (("uts",), ()),
    "cgroups: make, join, remove": (("cgroup", "readback"), ("readback",)),
    "cgroups: read counters": (("readback",), ()),
    "cgroup namespace": (("cgroupns",), ()),
    "directories and files": (("files",), ()),
    "/etc": (("etc",), ()),
    "/dev": (("dev", "devpts", "shm"), ("devpts", "shm")),
    "/dev/pts": (("devpts",), ()),
    "/dev/shm": (("shm",), ()),
    "/proc": (("proc", "masks", "readonly"), ("masks", "readonly")),
    "masked paths": (("masks",), ()),
    "read-only paths": (("readonly",), ()),
    "what is around the root detached": (("detach",), ()),
    "capabilities, no_new_privs": (("caps",), ()),
    "exec": (("exec",), ()),
}
"""What costs what: part → (left out in one run, left out in the run to compare with)."""

EVERYTHING = tuple(sorted({part for without, _ in PARTS.values() for part in without}))


def _hierarchies() -> dict[str, Path]:
    """Controller, or ``cgroup2`` for the v2 hierarchy → the mount point."""
    found: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        point, (kind, _, options) = Path(before.split()[4]), after.split()[:3]
        if kind == "cgroup":
            found.update((option, point) for option in options.split(",") if option in ("pids", "memory"))
        elif kind == "cgroup2":
            found["cgroup2"] = point
    return found


def _enable(directory: Path) -> None:
    with contextlib.suppress(OSError):  # already so, or not ours to change: the mkdir below it shows
        Path(directory, "cgroup.subtree_control").write_text("+pids +memory")


def _remove_below(directory: Path) -> None:
    """The cgroup and its children; what was killed a moment ago may keep them busy."""
    deadline = time.monotonic() + 5
    while directory.exists():
        for path in (*(child for child in directory.iterdir() if child.is_dir()), directory):
            with contextlib.suppress(OSError):
                path.rmdir()
        if directory.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{directory} can't be removed")
            time.sleep(0.01)


class Floor:
    """The compiled program. Made by `open_floor` only."""

    def __init__(self, program: Path, cgroups: Sequence[str]) -> None:
        self._program = program
        self._cgroups = cgroups

    def containers(self, iterations: int, concurrency: int, *, without: Sequence[str] = ()) -> float:
        """Seconds per container: the whole run's time, divided.

        `without`: parts; without ``newnet``, network namespaces are used again, whatever was done in them.
        """
        left_out = [f"--no-{part}" for part in without]
        return self._run([*left_out, *self._cgroups, str(iterations), str(concurrency)]).seconds

    def variants(self, iterations: int, variants: Sequence[tuple[str, ...]]) -> list[float]:
        """Seconds that the median container takes, one after another, for each tuple of parts left out.

        They are mixed, container by container: differences of a few µs can be seen although the machine is busy.
        """
        options: list[str] = []
        for variant in variants:
            options += ["--or", *(f"--no-{part}" for part in variant)]
        return self._run([*self._cgroups, *options[1:], str(iterations * len(variants)), "1"]).medians

    def commands(self, iterations: int, concurrency: int, command: Sequence[str]) -> float:
        """Seconds per run of a command, started as cheaply as can be; "{}" in it is the iteration."""
        return self._run([str(iterations), str(concurrency), "--", *command]).seconds

    def _run(self, arguments: list[str]) -> _Result:
        run = subprocess.run(
            [self._program, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False
        )
        if run.returncode:
            raise RuntimeError(f"floor {' '.join(arguments)}: {run.stderr.strip()[-500:]}")
        found = json.loads(run.stdout.splitlines()[-1])
        return _Result(found["ns_per_iteration"] / 1e9, [ns / 1e9 for ns in found["median_ns"]])


class _Result(NamedTuple):
    seconds: float
    medians: list[float]


@contextlib.contextmanager
def open_floor() -> Iterator[Floor]:
    """The floor, ready to run.

    Raises:
        CompileError: no compiler, or floor.c does not compile.
    """
    toolchain = find_compiler()
    if toolchain is None:
        raise CompileError("the floor needs a C compiler; apt install gcc musl-tools")
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{NAME}-")))
        options = ("-std=gnu17", "-O2", "-Wall", "-Wextra", "-Werror", *toolchain.static, "-s")
        command = [*toolchain.command, *options, str(SOURCE), "-o", str(scratch / "floor")]
        subprocess.run(command, check=True, timeout=LIMIT)
        hierarchies = _hierarchies()
        if {"pids", "memory"} <= hierarchies.keys():
            chosen = {"--pids": hierarchies["pids"], "--memory": hierarchies["memory"]}
        else:
            chosen = {"--cgroup2": hierarchies["cgroup2"]}
            _enable(hierarchies["cgroup2"])
        cgroups: list[str] = []
        for option, point in chosen.items():
            directory = point / NAME
            stack.callback(_remove_below, directory)
            directory.mkdir(exist_ok=True)
            _enable(directory)
            cgroups += [option, str(directory)]
        yield Floor(scratch / "floor", cgroups)
