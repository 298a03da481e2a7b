"""Processes as they can be recognised later: a number alone may be another's by then."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def boot_id() -> str:
    """Of the kernel that runs: another after each boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot: with its number it names the process. Source: proc(5), stat 22.

    Raises:
        OSError: it is gone.
    """
    fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)  # by the shortest way: it is done in each start
    try:
        return int(os.read(fd, 4096).rpartition(b")")[2].split()[19])
    finally:
        os.close(fd)


def identify(pid: int) -> dict[str, Any]:
    """What `is_alive` recognises it by.

    Raises:
        OSError: it is gone.
    """
    return {"pid": pid, "start": start_time(pid), "boot": boot_id()}


def is_alive(process: Mapping[str, Any]) -> bool:
    """Whether a process that `identify` has described runs: not after a reboot, nor where its number has been given anew, nor as
    a zombie."""
    try:
        pid = int(process["pid"])
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return bool(state not in "ZX" and process["boot"] == boot_id() and start_time(pid) == process["start"])
    except (OSError, KeyError, ValueError, IndexError):
        return False
