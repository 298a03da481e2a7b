"""What this host offers, found by asking the kernel rather than by its version (distributions backport, seccomp filters
forbid), and what that means to the user: `checks` is what `tinyvisor doctor` prints.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tinyvisor.errors import HostError
from tinyvisor.places import owner, privileged, run_directory
from tinyvisor.runtime import devices, syscalls
from tinyvisor.runtime.cgroup import (
    Layout,
    can_settle,
    cure_for_occupied,
    cure_for_read_only,
    missing_controller,
    occupied,
    read_layout,
)
from tinyvisor.runtime.idmap import TTY_GROUP
from tinyvisor.runtime.leases import read_mapped, read_ranges
from tinyvisor.runtime.seccomp import MACHINES
from tinyvisor.spec import DEFAULT_NAMESPACES

_NS_FILES: Final = {"pid": "pid", "mount": "mnt", "uts": "uts", "ipc": "ipc", "net": "net", "cgroup": "cgroup", "user": "user"}
_CALLS: Final = {
    "open_tree": syscalls.NR_OPEN_TREE,
    "fsmount": syscalls.NR_FSMOUNT,
    "clone3": syscalls.NR_CLONE3,
    "close_range": syscalls.NR_CLOSE_RANGE,
    "openat2": syscalls.NR_OPENAT2,
    "pidfd_open": syscalls.NR_PIDFD_OPEN,
    "mount_setattr": syscalls.NR_MOUNT_SETATTR,
}
MIN_KERNEL: Final = (5, 12)  # mount_setattr, the youngest call that we can't do without
_WANTED_FILES: Final = 4096


@dataclass(frozen=True, slots=True)
class Host:
    """This host, as seen by this process.

    Attributes:
        kernel: (major, minor).
        release, machine: as uname -r and -m say it.
        euid: effective user id.
        cpus: CPUs that this process may run on.
        layout: cgroups.
        calls: names of the system calls that we need and that can be used.
        namespaces: as in `tinyvisor.spec.NAMESPACES`.
        user_namespaces: this user may make them.
        nested: we are in a user namespace ourselves: no devices can be made, and the host's file systems not be idmapped.
        tty_group: the group that owns terminals; 0 where there is no such group in there.
        groups_fixed: processes in there can't leave the groups that we are in (user_namespaces(7), /proc/PID/setgroups).
        overlay: overlayfs is there, or a module of it is.
        swap: the host swaps.
        swap_accounting: the memory controller counts swap; None where there is no cgroup to look at.
        pids_peak: the pids controller keeps the peak (6.1); None likewise.
        seccomp: the kernel takes filters (CONFIG_SECCOMP_FILTER).
        landlock: version of its ABI; 0: the kernel has none.
    """

    kernel: tuple[int, int]
    release: str
    machine: str
    euid: int
    cpus: int
    layout: Layout
    calls: frozenset[str]
    namespaces: frozenset[str]
    user_namespaces: bool
    nested: bool
    tty_group: int
    groups_fixed: bool
    overlay: bool
    swap: bool
    swap_accounting: bool | None
    pids_peak: bool | None
    seccomp: bool
    landlock: int


@dataclass(frozen=True, slots=True)
class Check:
    """A line of `tinyvisor doctor`.

    Attributes:
        name: what was looked at.
        level: ``"fail"``: a container with nothing but defaults could not run.
        text: what was found.
        cure: what to do about it; empty where nothing needs to be done.
    """

    name: str
    level: Literal["ok", "warn", "fail"]
    text: str
    cure: str = ""


def probe(pid: int | None = None) -> Host:
    """Looks at the host: a handful of small kernel files, about a millisecond.

    Args:
        pid: as in `read_layout`.
    """
    system = os.uname()
    layout = read_layout(pid)
    inside = read_mapped()
    return Host(
        kernel=kernel_version(system.release),
        release=system.release,
        machine=system.machine,
        euid=os.geteuid(),
        cpus=len(os.sched_getaffinity(0)),
        layout=layout,
        calls=frozenset(name for name, number in _CALLS.items() if syscalls.supported(number)),
        namespaces=_namespaces(),
        user_namespaces=_user_namespaces(),
        nested=inside is not None,
        tty_group=TTY_GROUP if inside is None or inside.count > TTY_GROUP else 0,
        groups_fixed=inside is not None and _read("/proc/self/setgroups").strip() == "deny",
        overlay=_overlay(system.release),
        swap=_read("/proc/swaps").count("\n") > 1,
        swap_accounting=_swap_accounting(layout),
        pids_peak=_in_a_cgroup(layout, "pids", "pids.peak"),
        seccomp=has_seccomp(),
        landlock=syscalls.landlock_abi(),
    )


_ACTIONS = "/proc/sys/kernel/seccomp/actions_avail"


def has_seccomp() -> bool:
    """Whether the kernel takes seccomp filters."""
    return os.path.exists(_ACTIONS)  # 4.14


def tells_refusals() -> bool:
    """Whether a filter can hand calls to somebody (SECCOMP_RET_USER_NOTIF, 5.0)."""
    try:
        return "user_notif" in Path(_ACTIONS).read_text().split()
    except OSError:
        return False


def file_system(fd: int) -> str:
    """The type of the file system that a path or a detached tree was opened on: ``"ext4"``."""
    # A detached tree is in no mountinfo of ours; its file system's device is.
    device = os.fstat(fd).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in _read("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == number:
            return after.split()[0]
    return "its file system"


def kernel_version(release: str) -> tuple[int, int]:
    """``"6.18.44-fc"`` → ``(6, 18)``; (0, 0) where it says nothing of the kind."""
    parts = release.replace("-", ".").split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (IndexError, ValueError):
        return 0, 0


def _namespaces() -> frozenset[str]:
    found = {name for name, file in _NS_FILES.items() if os.path.exists(f"/proc/self/ns/{file}")}
    return frozenset(found | ({"time"} if os.path.exists("/proc/self/ns/time_for_children") else set()))


def _user_namespaces() -> bool:
    if _read("/proc/sys/user/max_user_namespaces", "0").strip() == "0":
        return False
    if os.geteuid() == 0:
        return True
    debian = _read("/proc/sys/kernel/unprivileged_userns_clone", "1").strip()
    ubuntu = _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "0").strip()
    return debian != "0" and ubuntu != "1"


def _overlay(release: str) -> bool:
    if "\toverlay\n" in _read("/proc/filesystems"):
        return True
    modules = Path("/lib/modules", release, "kernel/fs/overlayfs")  # mounting loads it
    return any(modules.glob("overlay.ko*"))


def _swap_accounting(layout: Layout) -> bool | None:
    memory = layout.controller("memory")
    file = "memory.memsw.limit_in_bytes" if memory is not None and memory.version == 1 else "memory.swap.max"
    return _in_a_cgroup(layout, "memory", file)


def _in_a_cgroup(layout: Layout, controller: str, file: str) -> bool | None:
    """Whether cgroups have `file`. The top one of a hierarchy lacks most: any other is looked at."""
    index = layout.index(controller)
    if index is None:
        return None
    hierarchy = layout.hierarchies[index]
    candidates = [hierarchy.own] if hierarchy.own not in (None, hierarchy.directory) else []
    try:
        with os.scandir(hierarchy.directory) as entries:
            candidates += (entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return None
    for directory in candidates[:64]:
        # One without the controller says nothing: on v2 its parent may not have handed it down.
        if os.path.exists(f"{directory}/{_ALWAYS[controller, hierarchy.version]}"):
            return os.path.exists(f"{directory}/{file}")
    return None


_ALWAYS: Final = {
    ("pids", 1): "pids.max",
    ("pids", 2): "pids.max",
    ("memory", 1): "memory.limit_in_bytes",
    ("memory", 2): "memory.max",
}


def _read(path: str, missing: str = "") -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return missing


# ---- doctor ----


def checks(host: Host, launcher: Path | None = None) -> list[Check]:
    """What `host` means for the user, line by line.

    Args:
        launcher: the launcher's binary; None leaves it out.
    """
    found = [_check_kernel(host), _check_root(host), _check_namespaces(host), _check_user_namespaces(host)]
    found += [_check_id_ranges(), _check_overlay(host)]
    found += _check_cgroups(host)
    found.append(_check_devices(host))
    found.append(_check_seccomp(host))
    found.append(_check_landlock(host))
    found.append(_check_swap(host))
    found.append(_check_peaks(host))
    found.append(_check_files())
    found.append(_check_run_directory())
    if launcher is not None:
        found.append(_check_launcher(launcher))
    return found


def _check_kernel(host: Host) -> Check:
    missing = sorted(_CALLS.keys() - host.calls)
    text = f"Linux {host.release} on {host.machine}, {host.cpus} CPUs"
    if not missing or (host.euid != 0 and host.kernel >= MIN_KERNEL):  # to others than root it refuses some of them
        return Check("kernel", "ok", text)
    if host.kernel < MIN_KERNEL:
        return Check("kernel", "fail", f"{text} lacks {', '.join(missing)}", "use Linux 5.12 or later")
    cure = "a seccomp filter forbids them: when in a container, run it with a newer engine or seccomp=unconfined"
    return Check("kernel", "fail", f"{text}: {', '.join(missing)} can't be used", cure)


def _check_root(host: Host) -> Check:
    user = owner()
    if host.euid != 0:
        return Check("root", "fail", f"running as uid {host.euid}", "run as root, or by `tinyvisor unshare`")
    if user is None:
        return Check("root", "ok", "running as root")
    who = f"rootless: uid {user[0]} is root of a user namespace"
    if host.groups_fixed:
        cure = f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER, where USER is uid {user[0]}"
        return Check("root", "warn", f"{who} with no other ids: containers have one, and the user's groups", cure)
    return Check("root", "ok", who)


def _check_namespaces(host: Host) -> Check:
    missing = sorted(DEFAULT_NAMESPACES - host.namespaces)
    if missing:
        return Check("namespaces", "fail", f"the kernel has no {', '.join(missing)} namespaces", "use a kernel that has them")
    return Check("namespaces", "ok", ", ".join(sorted(host.namespaces)))


def _check_user_namespaces(host: Host) -> Check:
    if host.user_namespaces:
        return Check("user namespaces", "ok", "allowed")
    if _read("/proc/sys/user/max_user_namespaces", "0").strip() == "0":
        cure = "sysctl user.max_user_namespaces=10000"
    elif _read("/proc/sys/kernel/unprivileged_userns_clone", "1").strip() == "0":
        cure = "sysctl kernel.unprivileged_userns_clone=1"
    else:
        cure = "run as root, or sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    return Check("user namespaces", "fail", "not allowed: containers need `userns_mode: host`", cure)


def _check_id_ranges() -> Check:
    try:
        ranges = read_ranges()
    except HostError as error:
        return Check("id ranges", "fail", error.lacks, error.cure)
    if not len(ranges):
        return Check("id ranges", "warn", "none: all containers have the user's own id", "give the user ids, see above")
    (first, _), count = ranges[0], len(ranges)
    return Check("id ranges", "ok", f"for {count} containers at once, {ranges.size} ids each, from {first} on ({ranges.source})")


def _check_seccomp(host: Host) -> Check:
    if not host.seccomp:
        cure = 'use a kernel with CONFIG_SECCOMP_FILTER, or "seccomp=unconfined" in "security_opt"'
        return Check("seccomp", "fail", "the kernel takes no filters", cure)
    if host.machine not in MACHINES:
        cure = 'use "seccomp=unconfined" in "security_opt"'
        return Check("seccomp", "fail", f"there are no filters for {host.machine}, only for {', '.join(MACHINES)}", cure)
    return Check("seccomp", "ok", "filters")


def _check_landlock(host: Host) -> Check:
    if host.landlock >= 6:
        return Check("landlock", "ok", f"ABI {host.landlock}")
    if host.landlock >= 2:
        text = f"ABI {host.landlock}: no wall around the host's abstract sockets with network_mode: host"
        return Check("landlock", "warn", text, "use Linux 6.12 or later")
    text = "none" if host.landlock == 0 else "ABI 1, under which files can't be moved to other directories: not used"
    cure = "use Linux 6.12 or later, with CONFIG_SECURITY_LANDLOCK and landlock in the list of the boot parameter lsm="
    return Check("landlock", "warn", f"{text}: mounts that are read-only are the only wall of read_only containers", cure)


def _check_overlay(host: Host) -> Check:
    if host.overlay:
        return Check("overlayfs", "ok", "there")
    cure = "modprobe overlay, or use read_only: true with a rootfs"
    return Check("overlayfs", "warn", "missing: a given rootfs can't be writable; the host view can", cure)


def _check_cgroups(host: Host) -> Iterator[Check]:
    for name in _LIMITS:
        controller = host.layout.controller(name)
        if controller is None:
            error = missing_controller(host.layout, name)
            yield Check(f"cgroup {name}", "warn", f"{error.lacks}: {_LIMITS[name]} can't be enforced", error.cure)
        elif not _writable(controller.directory):
            text = f"v{controller.version}, {controller.directory} can't be written: {_LIMITS[name]} can't be enforced"
            yield Check(f"cgroup {name}", "warn", text, cure_for_read_only(controller.version))
        elif controller.version == 2 and occupied(controller.directory) and not can_settle(controller.directory):
            text = f"v2, {controller.directory} has processes of its own: {_LIMITS[name]} can't be enforced"
            yield Check(f"cgroup {name}", "warn", text, cure_for_occupied(controller.directory))
        else:
            yield Check(f"cgroup {name}", "ok", f"v{controller.version}, {controller.directory}")


def _check_devices(host: Host) -> Check:
    controller = host.layout.controller("devices")
    if controller is None:
        cure = "mount cgroup2: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified"
        return Check("devices", "warn", "no second wall, no cgroup v2 is mounted: mounts without devices are the only one", cure)
    if controller.version == 1:
        if not _writable(controller.directory):
            what = f"no second wall, {controller.directory} can't be written: mounts without devices are the only one"
            return Check("devices", "warn", what, "run as root of the host")
        return Check("devices", "ok", "walled off twice: by mounts without them, and by the devices controller")
    problem = devices.problem() if _writable(controller.directory) else f"{controller.directory} can't be written"
    if problem is not None:
        cure = "run as root, with a kernel that has CONFIG_CGROUP_BPF; in a container, run that one privileged"
        return Check("devices", "warn", f"no second wall, {problem}: mounts without devices are the only one", cure)
    return Check("devices", "ok", "walled off twice: by mounts without them, and by a BPF program")


_LIMITS: Final = {
    "pids": "pids_limit",
    "memory": "mem_limit",
    "cpu": "cpus",
    "io": "blkio_config",
    "cpuacct": "cpu_time",
}


def _check_swap(host: Host) -> Check:
    if not host.swap:
        return Check("swap", "ok", "the host has none: mem_limit is exact")
    if host.swap_accounting is False:
        return Check(
            "swap", "warn", "not accounted: mem_limit can be evaded by swapping", "boot with swapaccount=1, or swapoff -a"
        )
    return Check("swap", "ok", "accounted" if host.swap_accounting else "in use; accounting not known")


def _check_peaks(host: Host) -> Check:
    if host.pids_peak is False:
        return Check("pids_peak", "warn", "not counted by this kernel: results lack it", "use Linux 6.1 or later")
    return Check("pids_peak", "ok", "counted" if host.pids_peak else "not known yet")


def _check_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    if hard != resource.RLIM_INFINITY and hard < _WANTED_FILES:
        cure = f"ulimit -Hn {_WANTED_FILES * 16}, or LimitNOFILE= of the service"
        return Check("open files", "warn", f"at most {limit}: enough for about {hard // 4} containers at once", cure)
    return Check("open files", "ok", f"{soft}, can be raised to {limit}")


def _check_run_directory() -> Check:
    directory = run_directory()
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if existing.is_dir() and _writable(str(existing)):
        return Check("run state", "ok", str(directory))
    cure = "make it writable" if privileged() else "log in so that XDG_RUNTIME_DIR is set, or set it"
    return Check("run state", "fail", f"{directory} can't be made: {existing} can't be written", cure)


def _check_launcher(launcher: Path) -> Check:
    cure = "reinstall tinyvisor on this machine: pip install --force-reinstall tinyvisor"
    try:
        mode = launcher.stat().st_mode
        architecture = _elf_architecture(launcher)
    except OSError as error:
        return Check("launcher", "fail", f"{launcher}: {error.strerror}", cure)
    if architecture is None or architecture != _elf_architecture(Path("/proc/self/exe")):
        return Check("launcher", "fail", f"{launcher} is not a program for {os.uname().machine}", cure)
    if not (stat.S_ISREG(mode) and mode & 0o111):
        return Check("launcher", "fail", f"{launcher} is not executable", cure)
    return Check("launcher", "ok", str(launcher))


def _elf_architecture(path: Path) -> bytes | None:
    """Class, byte order and machine of an ELF header: the same as the running Python's, or it is no use."""
    with path.open("rb") as file:
        header = file.read(20)
    return header[4:6] + header[18:20] if header[:4] == b"\x7fELF" and len(header) == 20 else None


def _writable(path: str) -> bool:
    return os.access(path, os.W_OK | os.X_OK, effective_ids=True)
