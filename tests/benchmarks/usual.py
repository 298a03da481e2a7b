"""What hosts usually have, and this one may not, for this process and its children alone: run state in memory, compiled Python;
and id ranges for thousands of containers."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from tinyvisor.places import run_directory
from tinyvisor.runtime.host import file_system
from tinyvisor.runtime.idmap import DEFAULT_END, DEFAULT_START, IDS, SUBID_USER
from tinyvisor.runtime.leases import read_ranges
from tinyvisor.runtime.syscalls import unshare

NEW_MOUNT = 0x00020000
FILES = (Path("/etc/subuid"), Path("/etc/subgid"))
HIGH = 1 << 31
"""Above what any distribution gives out, and no range of a container's by default. For processes that own no files."""


def entries(count: int) -> str:
    """Lines of /etc/subuid for `count` containers: what there is without any lines, and as many above it as it takes."""
    usual = (DEFAULT_END - DEFAULT_START) // IDS
    starts = ((DEFAULT_START, min(count, usual)), (HIGH, max(0, count - usual)))
    return "".join(f"{SUBID_USER}:{start}:{ranges * IDS}\n" for start, ranges in starts if ranges)


def have_ranges(count: int) -> None:
    """There are ranges for `count` containers afterwards: where the host's are fewer, by files that are mounted over its own in a
    mount namespace of this process, which must have one thread yet. The host's files stay as they are.

    Raises:
        RuntimeError: the host has no such files.
        OSError: we may not.
    """
    if len(read_ranges()) >= count:
        return
    for file in FILES:
        if not file.is_file():
            raise RuntimeError(f"{count} containers need ranges of ids, and there is no {file} to mount over; touch {file}")
    _leave_mounts()
    with tempfile.NamedTemporaryFile("w") as text:  # what is mounted stays when its name has gone
        text.write(entries(count))
        text.flush()
        for file in FILES:
            subprocess.run(["mount", "--bind", text.name, file], check=True)


def have_a_usual_host() -> None:
    """/run is in memory, and what Python has compiled is kept. This process must have one thread yet.

    Raises:
        OSError: we may not.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    directory = run_directory()
    directory.mkdir(parents=True, exist_ok=True)
    fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    kind = file_system(fd)
    os.close(fd)
    if kind != "tmpfs":
        _leave_mounts()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", "tmpfs", directory], check=True)


def _leave_mounts() -> None:
    unshare(NEW_MOUNT)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
