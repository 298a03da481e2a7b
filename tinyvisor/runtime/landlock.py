"""What Landlock holds in a container: a spec and the kernel's ABI → a launch step, or why there is none. Pure.

A rule allows what it allows for all that is below a path, mounts included, and nothing can be taken out of it again: where the
root itself can be written, there is nothing to hold. So there are two walls, each where it brings something:

  writes   of a container that is ``read_only``, for the day when a mount turns out not to be
  sockets  abstract ones, with the host's network: they have no file and no mode, and whoever listens is reached (CVE-2020-15257)

Signals are not held: the pid namespace does that, and a program that is exec'ed into a container is a domain of its own.
Source: kernel Documentation/userspace-api/landlock.rst, uapi/linux/landlock.h.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from typing import Final, Literal

from tinyvisor.runtime.steps import Landlock
from tinyvisor.spec import Spec

Wall = Literal["writes", "sockets"]

_SINCE: Final[dict[Wall, int]] = {"writes": 2, "sockets": 6}
"""The ABI that a wall takes. ABI 1 lets nobody rename or link from one directory to another."""
_WHAT: Final[dict[Wall, str]] = {
    "writes": "around what can't be written (read_only)",
    "sockets": "around the host's abstract sockets",
}

# LANDLOCK_ACCESS_FS_*: WRITE_FILE, then REMOVE_DIR to MAKE_SYM, REFER; TRUNCATE; IOCTL_DEV. Scopes: ABSTRACT_UNIX_SOCKET.
_WRITES: Final = ((2, 1 << 1 | sum(1 << bit for bit in range(4, 14))), (3, 1 << 14), (5, 1 << 15))
_ABSTRACT_SOCKETS: Final = 1


def landlock_step(spec: Spec, abi: int, workspace: str | None = None) -> Landlock | None:
    """The step that puts up the walls that `spec` gets; None where that is none.

    Args:
        abi: the kernel's; 0: it has no Landlock.
        workspace: where a directory of the runtime's is mounted, to be written.
    """
    walls = {wall for wall in _wanted(spec) if _without(wall, spec, abi) is None}
    if not walls:
        return None
    scopes = _ABSTRACT_SOCKETS if "sockets" in walls else 0
    if "writes" not in walls:
        return Landlock(0, scopes, (), ())
    rights = sum(bits for since, bits in _WRITES if abi >= since)
    return Landlock(rights, scopes, tuple(_outermost(_writable(spec, workspace))), ("/dev", "/proc"))


def left_out(spec: Spec, abi: int) -> Iterator[str]:
    """The walls that `spec` would get, and does not, each with the reason: a line each."""
    for wall in _wanted(spec):
        why = _without(wall, spec, abi)
        if why is not None:
            yield f"no Landlock {_WHAT[wall]}: {why}"


def _wanted(spec: Spec) -> tuple[Wall, ...]:
    wanted: dict[Wall, bool] = {"writes": spec.read_only, "sockets": spec.in_host_network}
    return tuple(wall for wall, applies in wanted.items() if applies)


def _without(wall: Wall, spec: Spec, abi: int) -> str | None:
    """Why there is no such wall. A domain keeps its processes from tracing those outside of it, and one with rules about files
    from mounting: who asks for the capability to do that wants to."""
    if spec.landlock == "unconfined":
        return '"security_opt" says landlock=unconfined'
    if "SYS_PTRACE" in spec.capabilities:
        return "with it, programs exec'ed here could not be traced or trace, which SYS_PTRACE in cap_add is for"
    if wall == "writes" and "SYS_ADMIN" in spec.capabilities:
        return "with it, nothing could be mounted, which SYS_ADMIN in cap_add is for"
    if abi < _SINCE[wall]:
        return f"it takes Landlock's ABI {_SINCE[wall]}, and this kernel has {f'ABI {abi}' if abi else 'none'}"
    return None


def _writable(spec: Spec, workspace: str | None) -> Iterator[str]:
    """What a plan of a ``read_only`` container mounts to be written (`plan._root`, `plan._mounts`)."""
    read_only = {posixpath.normpath(volume.target) for volume in spec.volumes if volume.read_only}
    yield from (path for path in ("/tmp", "/run", "/dev/shm") if path not in read_only)
    yield from (volume.target for volume in spec.volumes if not volume.read_only)
    yield from (tmpfs.target for tmpfs in spec.tmpfs)
    if workspace is not None:
        yield workspace


def _outermost(paths: Iterable[str]) -> Iterator[str]:
    """Those that are not below another one, whose rule is theirs, too. So nothing on the way to one of them can be written from
    inside: it can't have been made a link to elsewhere when a program that is exec'ed gets its walls."""
    kept: list[str] = []
    for path in sorted({posixpath.normpath(path) for path in paths}):
        if not any(path.startswith(f"{above}/") for above in kept):
            kept.append(path)
            yield path
