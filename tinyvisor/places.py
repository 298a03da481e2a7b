"""Where things live, and whose they are.

An ordinary user's tinyvisor runs as root of a user namespace of its own (`tinyvisor.runtime.rootless`): its uid there says
nothing about whose directories it may use. Source: XDG Base Directory Specification.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

VARIABLE: Final = "TINYVISOR_ROOTLESS"
"""``UID:GID`` of the user, as the host has them; set for what runs in such a namespace."""
SYSTEM: Final = Path("/run/tinyvisor")
_WHOLE: Final = ["0", "0", "4294967295"]


def in_user_namespace() -> bool:
    """Whether the ids that we see are not the host's."""
    try:
        return Path("/proc/self/uid_map").read_text().split() != _WHOLE
    except OSError:  # a kernel without
        return False


def owner() -> tuple[int, int] | None:
    """uid and gid, on the host, of the user whose namespace we are root of; None where we are as we were started."""
    uid, _, gid = os.environ.get(VARIABLE, "").partition(":")
    if not (uid.isdigit() and gid.isdigit()) or not in_user_namespace():
        return None
    return int(uid), int(gid)


def privileged() -> bool:
    """Whether the directories of the system are ours to use."""
    return os.geteuid() == 0 and owner() is None


def can_live() -> bool:
    """Whether containers may outlive their supervisor: not in a user namespace that somebody else has made, which the next
    supervisor would know nothing of."""
    return os.geteuid() != 0 or not in_user_namespace() or owner() is not None


def _uid() -> int:
    user = owner()
    return user[0] if user else os.geteuid()


def run_directory() -> Path:
    """/run/tinyvisor for root, else $XDG_RUNTIME_DIR/tinyvisor."""
    if privileged():
        return SYSTEM
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{_uid()}") / "tinyvisor"


def project_files(name: str) -> tuple[str, str]:
    """In the run directory while a supervisor of project `name` runs: its control socket, and what it is found by. The launcher
    removes them where a killed supervisor could not."""
    return f"{name}.sock", f"{name}.json"


def shared_directory(group: str) -> Path:
    """Where root's sockets for the members of `group` are: /run/tinyvisor.GROUP."""
    return SYSTEM.with_name(f"{SYSTEM.name}.{group}")


def shared_files(project: str) -> list[Path]:
    """Where a supervisor of root's may have opened it for groups. Only who holds the project's lock may remove them."""
    names = [name for file in project_files(project) for name in (file, f"{file}.new")]
    return [directory / name for directory in SYSTEM.parent.glob(f"{SYSTEM.name}.*") for name in names]


def shared_projects() -> list[str]:
    """Those that are open for groups, or were when their supervisors were killed."""
    files = [file.name.removesuffix(".new") for file in SYSTEM.parent.glob(f"{SYSTEM.name}.*/*")]
    return sorted({name for name, dot, suffix in (file.rpartition(".") for file in files) if dot and suffix in ("sock", "json")})


def control_directories() -> list[Path]:
    """Where a daemon that we may talk to has its socket: our own, then what root has opened for groups."""
    return [run_directory(), *sorted(SYSTEM.parent.glob(f"{SYSTEM.name}.*"))]


def log_directory() -> Path:
    """/var/log/tinyvisor for root, else $XDG_STATE_HOME/tinyvisor."""
    if privileged():
        return Path("/var/log/tinyvisor")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "tinyvisor"


def cache_directory() -> Path:
    """Where unpacked roots live: /var/cache/tinyvisor for root, else $XDG_CACHE_HOME/tinyvisor."""
    if privileged():
        return Path("/var/cache/tinyvisor")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinyvisor"
