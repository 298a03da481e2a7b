"""What the kernel counts in a container's cgroups, while it runs and when it has ended. Pure but for `read_stats`.

Sources: kernel Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst, cgroup-v1/cpuacct.rst.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from tinyvisor.runtime.cgroup import Layout
from tinyvisor.state import Stats


@dataclass(frozen=True, slots=True)
class Usage:
    """What the kernel counted for a container; None where it does not count.

    Attributes:
        pids_peak: processes and threads at once.
        pids_limit_hits: forks that were refused.
        memory_peak: bytes.
        oom_kills: processes killed for want of memory.
        cpu_user, cpu_system: seconds; None where the container has no cgroup in v1's cpuacct hierarchy.
    """

    pids_peak: int | None = None
    pids_limit_hits: int = 0
    memory_peak: int | None = None
    oom_kills: int = 0
    cpu_user: float | None = None
    cpu_system: float | None = None


# (controller, version) → files of the container's cgroup. pids.peak is there from 6.1 on, memory.peak from 5.19 on.
_READBACK: Final[Mapping[tuple[str, int], tuple[str, ...]]] = {
    ("pids", 1): ("pids.peak", "pids.events"),
    ("pids", 2): ("pids.peak", "pids.events"),
    ("memory", 1): ("memory.max_usage_in_bytes", "memory.oom_control"),
    ("memory", 2): ("memory.peak", "memory.events"),
    ("cpuacct", 2): ("cpu.stat",),  # always there: only throttling needs the cpu controller
    ("cpuacct", 1): ("cpuacct.usage", "cpuacct.usage_user", "cpuacct.usage_sys"),
}


def readback_files(layout: Layout) -> list[tuple[int, str]]:
    """(hierarchy, file) of every counter to read when a container has ended; each may be missing. Names are unique."""
    return [
        (index, file)
        for index, hierarchy in enumerate(layout.hierarchies)
        for name in hierarchy.controllers
        for file in _READBACK.get((name, hierarchy.version), ())
    ]


# (controller, version) → (field of `Stats`, file) of what a running container uses now.
_CURRENT: Final[Mapping[tuple[str, int], tuple[str, str]]] = {
    ("pids", 1): ("pids", "pids.current"),
    ("pids", 2): ("pids", "pids.current"),
    ("memory", 1): ("memory", "memory.usage_in_bytes"),
    ("memory", 2): ("memory", "memory.current"),
}


def read_stats(layout: Layout, fds: Sequence[int], name: str) -> Stats:
    """What a running container's cgroups count; `fds` are the project's directories, in the order of the hierarchies."""
    contents: dict[str, bytes] = {}
    now: dict[str, int | None] = {}
    for index, file in readback_files(layout):
        with suppress(OSError):
            contents[file] = _read_at(fds[index], f"{name}/{file}")
    for index, hierarchy in enumerate(layout.hierarchies):
        for field, file in (_CURRENT[key] for c in hierarchy.controllers if (key := (c, hierarchy.version)) in _CURRENT):
            with suppress(OSError):
                now[field] = _single(_read_at(fds[index], f"{name}/{file}"))
    usage = read_usage(contents)
    return Stats(
        cpu_user=usage.cpu_user,
        cpu_system=usage.cpu_system,
        memory=now.get("memory"),
        memory_peak=usage.memory_peak,
        pids=now.get("pids"),
        pids_peak=usage.pids_peak,
        oom_kills=usage.oom_kills,
        pids_limit_hits=usage.pids_limit_hits,
    )


def _read_at(directory: int, path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def read_counters(data: bytes, readback: Sequence[tuple[int, str]]) -> Usage:
    """`Usage` out of what the launcher read: a 32-bit size and the bytes, for each file; size ~0 for a missing one."""
    contents: dict[str, bytes] = {}
    at = 0
    for _, file in readback:
        size = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if size != 0xFFFFFFFF:
            contents[file] = data[at : at + size]
            at += size
    return read_usage(contents)


def read_usage(contents: Mapping[str, bytes]) -> Usage:
    """`Usage` from the contents of `readback_files`, by file name; files may be missing."""
    get = contents.get
    user, system = _cpu_seconds(contents)
    return Usage(
        pids_peak=_single(get("pids.peak")),
        pids_limit_hits=_keyed(get("pids.events")).get("max", 0),
        memory_peak=_single(get("memory.peak", get("memory.max_usage_in_bytes"))),
        oom_kills=_keyed(get("memory.events", get("memory.oom_control"))).get("oom_kill", 0),
        cpu_user=user,
        cpu_system=system,
    )


def _cpu_seconds(contents: Mapping[str, bytes]) -> tuple[float | None, float | None]:
    if "cpu.stat" in contents:
        cpu = _keyed(contents["cpu.stat"])
        if "user_usec" in cpu:
            return cpu["user_usec"] / 1e6, _seconds(cpu.get("system_usec"), 1e6)
    return _split(*map(_single, map(contents.get, _READBACK["cpuacct", 1])))


def _split(total: int | None, user: int | None, system: int | None) -> tuple[float | None, float | None]:
    """v1's sum is exact and its parts are sampled by ticks: the sum, in their ratio."""
    if total is None:
        return _seconds(user, 1e9), _seconds(system, 1e9)
    parts = (user or 0) + (system or 0)
    share = (user or 0) / parts if parts else 1.0
    return total * share / 1e9, total * (1 - share) / 1e9


def _single(content: bytes | None) -> int | None:
    if content is None:
        return None
    text = content.strip()
    return int(text) if text.isdigit() and len(text) <= 20 else None


@lru_cache(maxsize=256)  # "max 0", "oom_kill 0": nearly always the same few
def _keyed(content: bytes | None) -> Mapping[str, int]:
    pairs = [line.split() for line in (content or b"").splitlines()]
    values = {pair[0].decode("latin-1"): _single(pair[1]) for pair in pairs if len(pair) == 2}
    return {key: value for key, value in values.items() if value is not None}


def _seconds(count: int | None, per_second: float) -> float | None:
    return None if count is None else count / per_second
