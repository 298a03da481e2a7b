"""``python tests/world.py COMMAND...``: runs a command in a world of its own, so that two test runs don't see each other.

Tests look for what is left behind on the whole machine: processes, mounts, cgroups, files of ours. With ``pytest -n 2`` each
worker is started by this, and to it the machine is: its own pid, mount, cgroup, uts and ipc namespaces, a cgroup of each
hierarchy as that one's top, an empty /run and directories of ours elsewhere, a directory for temporary files. Only the file
in which ranges of ids are locked is everybody's. Needs root, and cgroup v1 for what has limits: on v2 alone a cgroup that has
processes can have no children with limits.

It imports nothing but the standard library: it is run before there is anything to test.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

RUN, RANGES = Path("/run/tinyvisor"), "id-ranges"
OURS = (Path("/var/log/tinyvisor"), Path("/var/cache/tinyvisor"))
NEW_MOUNT, NEW_CGROUP, NEW_UTS, NEW_IPC, NEW_PID = 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x20000000  # linux/sched.h
BIND, RECURSIVE, PRIVATE = 4096, 16384, 1 << 18  # linux/mount.h
PR_SET_PDEATHSIG = 1
PATIENCE = 10.0  # seconds, until a cgroup whose processes have been killed is empty

libc = ctypes.CDLL(None, use_errno=True)


def call(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def mount(source: Path | str, target: Path | str, kind: str | None = None, flags: int = 0, options: str = "") -> None:
    words = [os.fsencode(source), os.fsencode(target), kind.encode() if kind else None]
    call(libc.mount(*words, ctypes.c_ulong(flags), options.encode()), f"mount on {target}")


def tops() -> dict[Path, Path]:
    """Mount point of each hierarchy → the cgroup that we are in."""
    own = [line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines()]
    found: dict[Path, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split()[:3]
        root, point = before.split()[3:5]
        if kind in ("cgroup", "cgroup2"):
            known = options.split(",") if kind == "cgroup" else [""]
            for names, path in own:
                if set(names.split(",")) <= set(known):
                    found[Path(point)] = Path(point, os.path.relpath(path, root))
    return found


def possible() -> bool:
    """Whether kernel tests find all they need in such a world."""
    mounts = [line.partition(" - ")[2].split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return os.geteuid() == 0 and any(kind == "cgroup" and "pids" in options.split(",") for kind, _, options in mounts)


def make_cgroups() -> dict[Path, Path]:
    """Mount point → a new cgroup below ours."""
    made = {}
    for point, top in tops().items():
        made[point] = top / f"world-{os.getpid()}"
        made[point].mkdir()
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (made[point] / name).exists():
                (made[point] / name).write_text((top / name).read_text())
    return made


def remove_cgroups(cgroups: dict[Path, Path]) -> None:
    deadline = time.monotonic() + PATIENCE
    for top in cgroups.values():
        while top.exists() and time.monotonic() < deadline:
            for directory, _, _ in os.walk(top, topdown=False):
                try:
                    os.rmdir(directory)
                except OSError:
                    time.sleep(0.01)


def in_child(main: Callable[[], int]) -> int:
    """Runs it in a child that does not outlive us, and returns how that ended, as a shell would say it."""
    child = os.fork()
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        status = 125
        try:
            status = main()
        finally:
            os._exit(status)
    while (ended := os.wait())[0] != child:  # as PID 1 we have others' orphans, too
        pass
    code = os.waitstatus_to_exitcode(ended[1])
    return 128 - code if code < 0 else code


def enter(cgroups: dict[Path, Path]) -> None:
    for top in cgroups.values():
        (top / "cgroup.procs").write_text(str(os.getpid()))
    RUN.mkdir(mode=0o700, exist_ok=True)
    (RUN / RANGES).touch(mode=0o600)
    for directory in OURS:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    call(libc.unshare(NEW_MOUNT | NEW_CGROUP | NEW_UTS | NEW_IPC | NEW_PID), "unshare")
    mount("none", "/", flags=RECURSIVE | PRIVATE)
    for point, top in cgroups.items():
        mount(top, point, flags=BIND)
    ranges = os.open(RUN / RANGES, os.O_PATH)
    mount("tmpfs", "/run", "tmpfs", options="mode=755")
    RUN.mkdir(mode=0o700)
    (RUN / RANGES).touch(mode=0o600)
    mount(f"/proc/self/fd/{ranges}", RUN / RANGES, flags=BIND)
    os.close(ranges)
    for directory in OURS:
        mount("tmpfs", directory, "tmpfs", options="mode=700")


def main(command: list[str]) -> int:
    temporary = tempfile.mkdtemp(prefix="world-")
    os.chmod(temporary, 0o1777)
    os.environ["TMPDIR"] = temporary
    cgroups = make_cgroups()

    def execute() -> int:
        os.execvp(command[0], command)

    def first() -> int:
        mount("proc", "/proc", "proc")
        return in_child(execute)

    def world() -> int:
        enter(cgroups)
        return in_child(first)

    try:
        return in_child(world)
    finally:
        remove_cgroups(cgroups)
        shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
