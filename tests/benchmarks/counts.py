"""What the kernel counts: memory, CPU time and wake-ups of processes, and how much there is of what containers are made of.

Each figure is a pure function of a file's text, and a function that reads the file.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

SLAB = Path("/sys/kernel/slab")


def parse_field(text: str, name: str) -> int:
    """The number after ``Name:`` in the format of /proc/PID/status and smaps; kB become bytes.

    Raises:
        ValueError: there is none.
    """
    found = re.search(rf"^{name}:\s+(\d+)( kB)?$", text, re.MULTILINE)
    if found is None:
        raise ValueError(f'no "{name}:" in {text[:60]!r}')
    return int(found[1]) * (1024 if found[2] else 1)


def parse_objects(slabinfo: str, cache: str) -> int | None:
    """Objects in use of one cache of /proc/slabinfo; None where the kernel has merged it with others."""
    found = re.search(rf"^{cache}\s+(\d+)", slabinfo, re.MULTILINE)
    return int(found[1]) if found else None


def parse_cgroups(cgroups: str) -> int:
    """Cgroups of all v1 hierarchies in /proc/cgroups, those too that were removed and are held by something yet."""
    found: dict[str, int] = {}
    for line in cgroups.splitlines():
        if not line.startswith("#"):
            _, hierarchy, count, _ = line.split()
            found[hierarchy] = int(count)
    found.pop("0", None)  # not on v1
    return sum(found.values())


def parse_descendants(stat: str) -> int:
    """The same for the v2 hierarchy, from the cgroup.stat of its root."""
    counts = dict(line.split() for line in stat.splitlines())
    return int(counts["nr_descendants"]) + int(counts["nr_dying_descendants"])


def pss(pid: int | str) -> int:
    """Proportional set size in bytes: shared pages are shared out among those who have them; 0 where it has ended."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return parse_field(text, "Pss") if "Pss:" in text else 0


def rss(pid: int | str) -> int:
    """Resident set size in bytes."""
    return parse_field(Path(f"/proc/{pid}/status").read_text(), "VmRSS")


def open_fds(pid: int | str) -> int:
    """How many fds it has; the one that looks is not counted."""
    return len(os.listdir(f"/proc/{pid}/fd")) - (pid in ("self", os.getpid()))


def parent(pid: int) -> int:
    """Its parent's number."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def state(pid: int) -> str:
    """``"S"``: it sleeps."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def children(pid: int) -> list[int]:
    """Of its main thread."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def processes() -> int:
    """All of the host's."""
    return sum(name.isdecimal() for name in os.listdir("/proc"))


def cgroups() -> int:
    """All of the host's, those too that were removed but something holds yet."""
    count = parse_cgroups(Path("/proc/cgroups").read_text())
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            return count + parse_descendants(Path(before.split()[4], "cgroup.stat").read_text())
    return count


def network_namespaces() -> int | None:
    """All of the host's, those too that nobody is in any more and that wait to be taken down; None where it can't be known."""
    with contextlib.suppress(FileNotFoundError):  # it counts what each CPU has ready as in use; this gives it back
        (SLAB / "net_namespace/shrink").write_text("1")
    return parse_objects(Path("/proc/slabinfo").read_text(), "net_namespace")


@dataclass(frozen=True, slots=True)
class Activity:
    """What processes did so far. Differences tell what they did in between.

    Attributes:
        cpu: seconds on a CPU.
        wakeups: how often they gave up a CPU by themselves, to wait: once for each time that they were woken.
    """

    cpu: float
    wakeups: int

    def __sub__(self, other: Activity) -> Activity:
        return Activity(self.cpu - other.cpu, self.wakeups - other.wakeups)


def activity(pids: Iterable[int]) -> Activity:
    """Of all threads of all of them."""
    cpu, wakeups = 0, 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            cpu += int(Path(thread, "schedstat").read_text().split()[0])
            wakeups += parse_field(Path(thread, "status").read_text(), "voluntary_ctxt_switches")
    return Activity(cpu / 1e9, wakeups)


def process_cpu(pid: int) -> float:
    """Seconds on a CPU of all its threads, those too that have ended. Source: clock_getcpuclockid(3), as glibc makes it."""
    return time.clock_gettime((~pid << 3) | 2)


@dataclass(frozen=True, slots=True)
class Census:
    """What could grow. Bytes, or numbers; `launcher`'s and of the process that asks, the rest is the host's."""

    python_rss: int
    launcher_rss: int
    python_fds: int
    launcher_fds: int
    launcher_children: int
    processes: int
    cgroups: int
    network_namespaces: int | None

    @classmethod
    def take(cls, launcher: int) -> Census:
        """Now."""
        return cls(
            python_rss=rss("self"),
            launcher_rss=rss(launcher),
            python_fds=open_fds("self"),
            launcher_fds=open_fds(launcher),
            launcher_children=len(children(launcher)),
            processes=processes(),
            cgroups=cgroups(),
            network_namespaces=network_namespaces(),
        )

    def to_json(self) -> dict[str, int | None]:
        return asdict(self)
