"""cgroup v1, v2 and both at once behind one small interface: where we may make cgroups, which files to write for a limit,
and clearing away what a crashed run left. What is read afterwards is in `usage`.

`detect` and `limit_writes` are pure. A container's own cgroup is made, joined, read and
removed by the launcher; here are only the two directories above it, ``tinyvisor/<project>`` in each hierarchy. Everything
is synchronous: these are short operations on kernel memory, except where a docstring says so.

A controller that can't be used is never an error by itself, only once a limit needs it. Names are v2's: v1's ``blkio`` is
``io`` here.
Sources: kernel Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/*.rst; cgroup_namespaces(7); runc libcontainer/cgroups.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, Self

from tinyvisor import places
from tinyvisor.errors import HostError, SpecError
from tinyvisor.runtime.devices import wall_off
from tinyvisor.runtime.projectlock import replace_content, stale_lock
from tinyvisor.spec import NAME, Blkio, Spec, check_name

PARENT: Final = "tinyvisor"
LEAF: Final = "tinyvisor-supervisor"
CONTROLLERS: Final = ("pids", "memory", "cpu", "io", "cpuacct", "cpuset", "freezer", "devices")
USED: Final = ("pids", "memory", "cpu", "io", "cpuacct", "devices")
"""Controllers in whose hierarchies we make cgroups; the order of `Layout.hierarchies`. Devices are v2's alone (BPF), and the
project's: containers have no cgroup of their own for that."""

_V2_ALWAYS: Final = ("cpuacct", "freezer", "devices")  # cpu.stat, cgroup.freeze, BPF: no controllers of their own there
PERIOD: Final = 100_000  # µs
_REMOVE_SECONDS: Final = 2.0
_TRIES: Final = 100  # of making a directory below one that others remove when it is empty


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A mounted cgroup hierarchy in which we make cgroups.

    Attributes:
        version: 1 or 2.
        directory: below which we make them.
        own: the cgroup that we are in; None where this mount does not show it.
        controllers: those of `CONTROLLERS` that it serves.
    """

    version: Literal[1, 2]
    directory: str
    own: str | None
    controllers: tuple[str, ...]

    @property
    def label(self) -> str:
        """Its name for people: ``"pids"``, ``"cpu,cpuacct"``, ``"cgroup2"``."""
        return "cgroup2" if self.version == 2 else ",".join(map(_v1_name, self.controllers))


@dataclass(frozen=True, slots=True)
class Controller:
    """Where a controller is to be had: `version` 1 or 2, and the `directory` below which cgroups may be made."""

    name: str
    version: Literal[1, 2]
    directory: str


@dataclass(frozen=True, slots=True)
class Layout:
    """What this host's cgroup mounts offer us.

    Attributes:
        hierarchies: those that serve a controller of `USED`, each once, in that order.
        controllers: all of `CONTROLLERS` that there are.
        unified: directory of the v2 hierarchy, with or without controllers; None where it is not mounted.
        missing: (controller, reason, cure) where a controller is there but can't be used.
    """

    hierarchies: tuple[Hierarchy, ...] = ()
    controllers: tuple[Controller, ...] = ()
    unified: str | None = None
    missing: tuple[tuple[str, str, str], ...] = ()

    def controller(self, name: str) -> Controller | None:
        return next((item for item in self.controllers if item.name == name), None)

    def index(self, name: str) -> int | None:
        """The hierarchy that serves a controller of `USED`."""
        return next((index for index, item in enumerate(self.hierarchies) if name in item.controllers), None)

    def without(self, names: Iterable[str], reason: str, cure: str = "see `tinyvisor doctor`") -> Layout:
        """The layout with some controllers gone; a hierarchy that has none of `USED` left goes with them."""
        gone = frozenset(names)
        left = (replace(item, controllers=tuple(c for c in item.controllers if c not in gone)) for item in self.hierarchies)
        return replace(
            self,
            hierarchies=tuple(item for item in left if any(name in USED for name in item.controllers)),
            controllers=tuple(item for item in self.controllers if item.name not in gone),
            missing=(*self.missing, *((name, reason, cure) for name in CONTROLLERS if name in gone)),
        )


# ---- detection ----


@dataclass(frozen=True, slots=True)
class _Mount:
    id: str
    parent: str
    root: str
    point: str
    type: str
    super_options: frozenset[str]


def detect(mountinfo: str, self_cgroup: str, v2_controllers: str = "", *, root: bool = True) -> Layout:
    """The layout, from the texts of files.

    Args:
        mountinfo, self_cgroup: /proc/self/mountinfo and /proc/self/cgroup.
        v2_controllers: ``cgroup.controllers`` of `Layout.unified`.
        root: as root, cgroups are made at the top of each mount: our own cgroup has processes in it (us), and v2 gives
            such a cgroup no children with controllers. Otherwise they are made below our own cgroup.
    """
    mounts = _parse_mountinfo(mountinfo)
    by_id = {mount.id: mount for mount in mounts}
    mounts = [mount for mount in mounts if mount.type in ("cgroup", "cgroup2") and _visible(mount, mounts, by_id)]
    own = _parse_self_cgroup(self_cgroup)
    found: dict[str, Hierarchy] = {}
    unified: Hierarchy | None = None
    for mount in mounts:
        hierarchy = _hierarchy(mount, own, v2_controllers, root)
        if hierarchy is None:
            continue
        if hierarchy.version == 2:
            unified = unified or hierarchy
        else:
            for name in hierarchy.controllers:
                found.setdefault(name, hierarchy)
    if unified is not None:
        for name in unified.controllers:
            found.setdefault(name, unified)
    if unified is not None:  # a BPF program there, rather than the controller
        serves = any(found.get(name) is unified for name in USED)
        found["devices"] = unified if serves else replace(unified, controllers=("devices",))
    used = dict.fromkeys(found[name] for name in USED if name in found)
    return Layout(
        hierarchies=tuple(used),
        controllers=tuple(Controller(name, found[name].version, found[name].directory) for name in CONTROLLERS if name in found),
        unified=unified.directory if unified else None,
    )


def read_layout(pid: int | None = None) -> Layout:
    """`detect` for this process, or for another, whose cgroups we are to use."""
    mountinfo = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    self_cgroup = _read(f"/proc/{'self' if pid is None else pid}/cgroup")
    root = places.privileged()
    layout = detect(mountinfo, self_cgroup, root=root)
    if layout.unified is None:
        return layout
    return detect(mountinfo, self_cgroup, _read(f"{layout.unified}/cgroup.controllers"), root=root)


@contextmanager
def settled(layout: Layout) -> Iterator[None]:
    """While it lasts, this process is in a child `LEAF` of its v2 cgroup, where that was delegated to it and it is alone in it: a
    cgroup with processes has no children with controllers. Nothing is left afterwards; by kill -9 the empty child is, which the
    next one takes over."""
    hierarchy = next((item for item in layout.hierarchies if item.version == 2 and "pids" in item.controllers), None)
    if hierarchy is None or hierarchy.own is None:
        yield
        return
    top = hierarchy.directory
    if can_settle(top):
        with suppress(FileExistsError):
            os.mkdir(f"{top}/{LEAF}", 0o755)
        _write(f"{top}/{LEAF}/cgroup.procs", "0")
    try:
        yield
    finally:
        _leave(top)


def can_settle(directory: str) -> bool:
    """Whether `settled` would move us."""
    if places.privileged() or not os.access(directory, os.W_OK) or not os.access(f"{directory}/cgroup.procs", os.W_OK):
        return False
    return occupied(directory) and _pids(f"{directory}/cgroup.procs") == {os.getpid()}


def _leave(top: str) -> None:
    leaf = f"{top}/{LEAF}"
    if _pids(f"{leaf}/cgroup.procs") != {os.getpid()}:  # we are not there, or another is, who needs it
        return
    with suppress(OSError):  # EBUSY: so does another runtime of this process
        for name in _read(f"{top}/cgroup.subtree_control").split():
            _write(f"{top}/cgroup.subtree_control", f"-{name}")
        _write(f"{top}/cgroup.procs", "0")
        os.rmdir(leaf)


def _hierarchy(mount: _Mount, own: Mapping[str, str], v2_controllers: str, root: bool) -> Hierarchy | None:
    if mount.type == "cgroup2":
        offered = {*v2_controllers.split(), *_V2_ALWAYS}
        path = own.get("")
    else:
        offered = {"io" if name == "blkio" else name for name in mount.super_options}
        path = next((own[name] for name in mount.super_options if name in own), None)
    controllers = tuple(name for name in CONTROLLERS if name in offered)
    inside = _below(mount, path)
    directory = mount.point if root else inside and inside.removesuffix(f"/{LEAF}")
    if directory is None or not controllers:
        return None
    return Hierarchy(2 if mount.type == "cgroup2" else 1, directory, inside, controllers)


def _below(mount: _Mount, path: str | None) -> str | None:
    """Where the cgroup `path` is below the mount. Both are relative to the root of our cgroup namespace: a mount made
    outside of it has a root such as ``/../..``, which tells not how our own cgroup is called from there."""
    if path is None or mount.root.startswith("/..") or path.startswith("/.."):
        return None
    root = mount.root.rstrip("/")
    if path != root and not path.startswith(f"{root}/"):
        return None
    return mount.point + path[len(root) :].rstrip("/")


def _parse_self_cgroup(text: str) -> dict[str, str]:
    """Controller → path; v2 is ``""``."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        names, colon, path = rest.partition(":")
        if colon:
            paths.update(dict.fromkeys(names.split(","), path.removesuffix(" (deleted)")))
    return paths


def _parse_mountinfo(text: str) -> list[_Mount]:
    mounts = []
    for line in text.splitlines():
        left, dash, right = line.partition(" - ")
        fields, more = left.split(" "), right.split(" ")
        if dash and len(fields) >= 6 and len(more) >= 3:
            options = frozenset(more[2].split(","))
            mounts.append(_Mount(fields[0], fields[1], _unescape(fields[3]), _unescape(fields[4]), more[0], options))
    return mounts


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _visible(mount: _Mount, mounts: list[_Mount], by_id: Mapping[str, _Mount]) -> bool:
    """Whether a path walk still reaches it: nothing is mounted on top of it, nor over a directory that leads to it."""
    if any(other.parent == mount.id and other.point == mount.point for other in mounts):
        return False
    current: _Mount | None = mount
    while current is not None and current.parent != current.id:
        prefix = current
        if any(
            other is not prefix and other.parent == prefix.parent and prefix.point.startswith(f"{other.point.rstrip('/')}/")
            for other in mounts
        ):
            return False
        current = by_id.get(current.parent)
    return True


# ---- limits ----


@dataclass(frozen=True, slots=True)
class LimitWrite:
    """One write into a container's cgroup, in the order given.

    Attributes:
        controller: as in `CONTROLLERS`.
        hierarchy: index in `Layout.hierarchies`.
        file: below the container's cgroup.
        content: one write(2).
        optional: the file may be missing (swap accounting is off).
    """

    controller: str
    hierarchy: int
    file: str
    content: str
    optional: bool = False


def limit_writes(
    spec: Spec,
    layout: Layout,
    *,
    device: Callable[[str], str] | None = None,
    exists: Callable[[int, str], bool] = lambda hierarchy, file: True,
) -> list[LimitWrite]:
    """The writes that make `spec`'s limits.

    Args:
        layout: of the `CgroupTree` in use, so that what could not be enabled is known.
        device: device path → ``"MAJ:MIN"``; None is `device_number`, which asks the file system.
        exists: whether a container's cgroup has a file; `CgroupTree.has` in real life. Only asked where kernels differ.

    Raises:
        HostError: a limit is asked for and its controller is missing.
    """
    writes: list[LimitWrite] = []
    if spec.pids_limit is not None:
        writes.append(LimitWrite("pids", _need(layout, "pids"), "pids.max", str(spec.pids_limit)))
    if spec.mem_limit is not None:
        writes += _memory(spec.mem_limit, layout)
    if spec.cpus is not None:
        writes += _cpu(spec.cpus, layout)
    if spec.blkio is not None and spec.blkio != Blkio():
        writes += _io(spec.blkio, layout, device or device_number, exists)
    return writes


def cpu_usage_file(layout: Layout) -> tuple[int, str]:
    """(hierarchy, file) that counts a container's CPU time: ``cpuacct.usage`` in ns (v1), ``cpu.stat`` (v2, always there).

    Raises:
        HostError: nothing counts it.
    """
    index = _need(layout, "cpuacct")
    return index, "cpuacct.usage" if layout.hierarchies[index].version == 1 else "cpu.stat"


def device_number(path: str) -> str:
    """``"/dev/sda1"`` → ``"8:0"``: limits are the whole disk's, the kernel refuses a partition (ENODEV).

    Raises:
        SpecError: not a block device.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise SpecError("blkio_config", f"{path}: {error.strerror}") from error
    if not stat.S_ISBLK(status.st_mode):
        raise SpecError("blkio_config", f"{path} is not a block device")
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    device = os.path.realpath(f"/sys/dev/block/{number}")
    if os.path.exists(f"{device}/partition"):
        return _read(f"{os.path.dirname(device)}/dev").strip() or number
    return number


def _need(layout: Layout, name: str) -> int:
    index = layout.index(name)
    if index is None:
        raise missing_controller(layout, name)
    return index


def missing_controller(layout: Layout, name: str) -> HostError:
    """The error for a controller that is not there, with its cure."""
    mounted_v1 = any(item.version == 1 for item in layout.controllers)
    shown = _v1_name(name) if mounted_v1 else name
    for unusable, reason, cure in layout.missing:
        if unusable == name:
            return HostError(f"cgroup controller {shown} can't be used: {reason}", cure)
    if mounted_v1:
        where = f"/sys/fs/cgroup/{shown}"
        cure = f"mount it: mkdir -p {where} && mount -t cgroup -o {shown} {shown} {where}"
    elif layout.unified is None:
        cure = "no cgroups are mounted: mount -t cgroup2 none /sys/fs/cgroup"
    else:
        cure = (
            f"{layout.unified}/cgroup.controllers does not offer it: delegate it from above (systemd: Delegate=yes), "
            f"or boot without cgroup_disable={shown}"
        )
    return HostError(f"cgroup controller {shown} is missing", cure)


def _v1_name(name: str) -> str:
    return "blkio" if name == "io" else name


def _memory(limit: int, layout: Layout) -> Iterator[LimitWrite]:
    # memory.oom.group stays 0: the kernel kills one process, as without us, and the container may live on; that it
    # happened is reported from memory.events. Killing all at once would leave the workload no status of its own.
    index = _need(layout, "memory")
    if layout.hierarchies[index].version == 2:
        yield LimitWrite("memory", index, "memory.max", str(limit))
        yield LimitWrite("memory", index, "memory.swap.max", "0", optional=True)
    else:
        # In this order: memsw must never be below the limit without swap.
        yield LimitWrite("memory", index, "memory.limit_in_bytes", str(limit))
        yield LimitWrite("memory", index, "memory.memsw.limit_in_bytes", str(limit), optional=True)


def _cpu(cpus: float, layout: Layout) -> Iterator[LimitWrite]:
    index = _need(layout, "cpu")
    quota = max(1000, round(cpus * PERIOD))  # the kernel takes no less than 1 ms
    if layout.hierarchies[index].version == 2:
        yield LimitWrite("cpu", index, "cpu.max", f"{quota} {PERIOD}")
    else:
        yield LimitWrite("cpu", index, "cpu.cfs_period_us", str(PERIOD))
        yield LimitWrite("cpu", index, "cpu.cfs_quota_us", str(quota))


_RATES: Final = (("read_bps", "rbps"), ("write_bps", "wbps"), ("read_iops", "riops"), ("write_iops", "wiops"))


def _io(blkio: Blkio, layout: Layout, device: Callable[[str], str], exists: Callable[[int, str], bool]) -> Iterator[LimitWrite]:
    index = _need(layout, "io")
    version = layout.hierarchies[index].version
    if blkio.weight is not None:
        yield _weight(blkio.weight, index, version, exists)
    if version == 1:
        for name, _ in _RATES:
            for path, rate in getattr(blkio, name):
                yield LimitWrite("io", index, f"blkio.throttle.{name}_device", f"{device(path)} {rate}")
        return
    lines: dict[str, list[str]] = {}
    for name, key in _RATES:
        for path, rate in getattr(blkio, name):
            lines.setdefault(device(path), []).append(f"{key}={rate}")
    for number, rates in lines.items():
        yield LimitWrite("io", index, "io.max", " ".join([number, *rates]))


def _weight(weight: int, index: int, version: int, exists: Callable[[int, str], bool]) -> LimitWrite:
    # io.weight has another range, 1..10000; the conversion is runc's (ConvertBlkIOToIOWeightValue). BFQ takes ours as it is.
    files = (
        {"blkio.bfq.weight": weight, "blkio.weight": weight}
        if version == 1
        else {"io.bfq.weight": weight, "io.weight": 1 + (weight - 10) * 9999 // 990}
    )
    for file, value in files.items():
        if exists(index, file):
            return LimitWrite("io", index, file, str(value))
    raise HostError("blkio_config.weight: the kernel offers no I/O weights", "use a kernel with the BFQ scheduler, or io.weight")


# ---- the project's directories ----


class CgroupTree:
    """``tinyvisor/<project>`` in each hierarchy.

    Attributes:
        layout: what can really be used: controllers that could not be enabled are in its `missing`.
        fds: O_PATH directory fds of the project, one for each of ``layout.hierarchies``, close-on-exec.
        parent_fds: the same for the ``tinyvisor`` directories above.
        paths: the project's directories.
    """

    def __init__(self, layout: Layout, project: str, fds: tuple[int, ...], parent_fds: tuple[int, ...]) -> None:
        self.layout: Layout = layout
        self.project: str = project
        self.fds: tuple[int, ...] = fds
        self.parent_fds: tuple[int, ...] = parent_fds
        self.paths: tuple[str, ...] = tuple(project_path(hierarchy, project) for hierarchy in layout.hierarchies)

    @classmethod
    def open(cls, layout: Layout, project: str) -> Self:
        """Makes the directories; those that are there already are used. Hold the project's `ProjectLock`."""
        check_name("project", project)
        usable, fds = layout, []
        try:
            for hierarchy in layout.hierarchies:
                opened, failed = _open(hierarchy, project)
                fds += opened
                for name, (reason, cure) in failed.items():
                    usable = usable.without([name], reason, cure)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return cls(usable, project, tuple(fds[1::2]), tuple(fds[::2]))

    def has(self, hierarchy: int, file: str) -> bool:
        """Whether containers' cgroups have `file`: they have what the project's directory has."""
        try:
            os.stat(file, dir_fd=self.fds[hierarchy])
        except FileNotFoundError:
            return False
        return True

    def close(self) -> None:
        """Closes the fds and leaves the directories."""
        fds = (*self.fds, *self.parent_fds)
        self.fds = self.parent_fds = ()
        for fd in fds:
            os.close(fd)

    def remove(self) -> tuple[str, ...]:
        """Kills what is left in there, removes the directories and closes the fds; at most some seconds, sync.

        Returns:
            Directories that could not be removed. Then keep the project's lock file (`ProjectLock.keep`): without it no
            later run takes the directories for its own to sweep.
        """
        self.close()
        left = tuple(path for path in self.paths if not remove_cgroup(path))
        _remove_parents(self.layout)
        return left


def project_path(hierarchy: Hierarchy, project: str) -> str:
    return f"{hierarchy.directory}/{PARENT}/{project}"


_Failed = dict[str, tuple[str, str]]
"""Controller → reason and cure."""


def _open(hierarchy: Hierarchy, project: str) -> tuple[list[int], _Failed]:
    """Makes and opens the two directories; returns the fds, none where it is of no use, and controllers that failed."""
    path = project_path(hierarchy, project)
    fds: list[int] = []
    try:
        failed = _make(hierarchy, project)
        if "devices" in hierarchy.controllers:
            failed |= _wall_off(path, hierarchy.version)
        if any(name not in failed for name in USED if name in hierarchy.controllers):
            for directory in (os.path.dirname(path), path):
                fds.append(os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            return fds, failed
    except OSError as error:  # a read-only or foreign hierarchy: only a limit that needs it shall fail
        for fd in fds:
            os.close(fd)
        why = f"{error.filename}: {error.strerror}", cure_for_read_only(hierarchy.version)
        failed = dict.fromkeys(hierarchy.controllers, why)
    for directory in (path, os.path.dirname(path)):
        with suppress(OSError):
            os.rmdir(directory)
    return [], failed


def _wall_off(path: str, version: int) -> _Failed:
    try:
        wall_off(path, version)
    except OSError as error:
        if version == 1:
            return {"devices": (f"{error.filename}: {error.strerror}", "run as root of the host")}
        return {"devices": (f"bpf(2): {error.strerror}", "run as root, with a kernel that has CONFIG_CGROUP_BPF")}
    return {}


def _make(hierarchy: Hierarchy, project: str) -> _Failed:
    """Makes the directories; returns v2 controllers that could not be enabled."""
    levels = (hierarchy.directory, f"{hierarchy.directory}/{PARENT}", project_path(hierarchy, project))
    for attempt in range(_TRIES):
        failed: _Failed = {}
        try:
            for level, path in enumerate(levels):
                if level:
                    with suppress(FileExistsError):
                        os.mkdir(path, 0o755)
                if hierarchy.version == 2:
                    wanted = (name for name in USED if name in hierarchy.controllers and name not in _V2_ALWAYS)
                    names: list[str] = [name for name in wanted if name not in failed]
                    failed |= _enable(path, names, ours=level > 0)
                elif level and "cpuset" in hierarchy.controllers:
                    _init_cpuset(path)
            return failed
        except OSError as error:  # the run that just ended took the parent away, and another may have made it anew
            if error.errno not in (errno.ENOENT, errno.ENODEV) or attempt == _TRIES - 1:
                raise
    raise AssertionError("unreachable")


def _enable(path: str, names: list[str], *, ours: bool = False) -> _Failed:
    # At the top this holds against systemd, too: a controller that a child has enabled can't be disabled above it (EBUSY).
    file = f"{path}/cgroup.subtree_control"
    enabled = Path(file).read_text().split()  # not _read: a directory that is gone is news
    if occupied(path):
        # Not left to the kernel, which refuses memory and io only: with pids enabled there, no child could have a process.
        return dict.fromkeys(names, (f"{path} has processes of its own", cure_for_occupied(path)))
    failed: _Failed = {}
    for name in names:
        if name in enabled:
            continue
        try:
            _write(file, f"+{name}")
        except FileNotFoundError:
            if ours or not os.path.exists(path):  # ours: we had enabled it above, so above is not what it was
                raise
            failed[name] = f"{file}: the parent does not offer it", "delegate it from above (systemd: Delegate=yes)"
        except OSError as error:
            if error.errno == errno.ENODEV:  # removed between open and write
                raise
            failed[name] = (
                f"{file}: {error.strerror}",
                cure_for_occupied(path) if error.errno == errno.EBUSY else cure_for_read_only(2),
            )
    return failed


def occupied(directory: str) -> bool:
    """Whether a v2 cgroup can't have children with controllers because it has processes itself ("no internal processes";
    cgroup-v2.rst). So it is at the top of a container, where its first process is. The root of all cgroups is exempt, and is
    known by the lack of a cgroup.type."""
    return os.path.exists(f"{directory}/cgroup.type") and bool(_read(f"{directory}/cgroup.procs").strip())


def cure_for_read_only(version: int) -> str:
    """What to do where no cgroups can be made."""
    if places.privileged():
        return "mount /sys/fs/cgroup writable; in a container, run that one privileged"
    if version == 2:
        return _SCOPE
    return "have root delegate one: mkdir CGROUP; chown -R USER CGROUP; echo SHELL-PID >CGROUP/cgroup.procs"


_SCOPE: Final = "start it in a cgroup that is yours: systemd-run --user --scope -p Delegate=yes tinyvisor ..."


def cure_for_occupied(directory: str) -> str:
    if not places.privileged():
        return f"nothing else may run in it; {_SCOPE}"
    return (
        f"move them below it: mkdir {directory}/init; "
        f"for p in $(cat {directory}/cgroup.procs); do echo $p > {directory}/init/cgroup.procs; done 2>/dev/null"
    )


def _init_cpuset(path: str) -> None:
    """cpuset mounted together with a controller that we use: nobody can join a cgroup whose CPUs and nodes are empty."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not _read(f"{path}/{name}").strip():
            _write(f"{path}/{name}", _read(f"{os.path.dirname(path)}/{name}").strip())
    _write(f"{path}/cgroup.clone_children", "1")  # containers' cgroups take both from here


def _remove_parents(layout: Layout) -> None:
    for hierarchy in layout.hierarchies:
        with suppress(OSError):  # another project is in it
            os.rmdir(f"{hierarchy.directory}/{PARENT}")


# ---- clearing away ----


@dataclass(frozen=True, slots=True)
class Swept:
    """What `sweep` did: projects whose remains are gone, and those where something could not be removed."""

    removed: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def sweep(
    layout: Layout, lock_dir: Path, *, mine: str | None = None, forget: Callable[[str], None] = lambda project: None
) -> Swept:
    """Clears away what crashed runs left: processes, cgroups, lock files. Sync; up to seconds where something resists.

    A run is dead if its lock file is there and nobody holds the lock. A cgroup without a lock file in `lock_dir` is left
    alone: it belongs to someone with another /run, such as a container that sees these cgroups.

    Args:
        mine: a project whose lock the caller holds; its remains are cleared, too, and its lock file stays.
        forget: told of each project of which nothing is left, while nobody else can have it.
    """
    removed: list[str] = []
    left: list[str] = []
    for path in sorted(lock_dir.glob("*.lock")):
        project = path.name.removesuffix(".lock")
        if not NAME.fullmatch(project):
            continue
        if project == mine:
            (removed if _remove_project(layout, project) else left).append(project)
            forget(project)
            continue
        with stale_lock(path) as stale:
            if stale is None:
                continue
            replace_content(stale, f"sweep {os.getpid()}\n")  # so that a run that starts now waits instead of giving up
            if _remove_project(layout, project):
                forget(project)
                os.unlink(path)
                removed.append(project)
            else:
                left.append(project)
    if removed:
        _remove_parents(layout)
    return Swept(tuple(removed), tuple(left))


def _remove_project(layout: Layout, project: str) -> bool:
    results = [remove_cgroup(project_path(hierarchy, project)) for hierarchy in layout.hierarchies]
    return all(results)


def remove_cgroup(path: str, *, seconds: float = _REMOVE_SECONDS) -> bool:
    """Kills everything in a cgroup and below, then removes it; sync, for at most `seconds`.

    Removal is tried again while it says EBUSY: a killed process leaves its cgroup only at the end of its exit.

    Returns:
        Whether it is gone.
    """
    deadline = time.monotonic() + seconds
    pause = 0.0005
    while True:
        try:
            if _remove_tree(path):
                return True
            kill_cgroup(path)
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                return False
            if error.errno not in (errno.ENOENT, errno.ENODEV):  # it went away while we looked
                raise
        if time.monotonic() >= deadline:
            return _remove_tree(path)
        time.sleep(pause)
        pause = min(pause * 2, 0.02)


def kill_cgroup(path: str) -> None:
    """SIGKILL to every process in a cgroup and below, where nothing may fork from now on; a fork that raced with it needs another
    call."""
    with suppress(FileNotFoundError):  # v1, and v2 before 5.14
        return _write(f"{path}/cgroup.kill", "1")
    with suppress(FileNotFoundError):  # a fork bomb would outrun us
        _write(f"{path}/pids.max", "0")
    for directory, _, _ in os.walk(path):
        _kill_members(f"{directory}/cgroup.procs")
    return None


def _kill_members(procs: str) -> None:
    # A number may be another process's by now. A pidfd can't: open them, then look which are still members. 0 stands for a
    # process outside our pid namespace.
    pidfds: dict[int, int] = {}
    try:
        for pid in sorted(_pids(procs) - {0, os.getpid()})[:512]:
            with suppress(ProcessLookupError, OSError):
                pidfds[pid] = os.pidfd_open(pid)
        for pid in _pids(procs) & pidfds.keys():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfds[pid], signal.SIGKILL)
    finally:
        for fd in pidfds.values():
            os.close(fd)


def _pids(procs: str) -> set[int]:
    return {int(word) for word in _read(procs).split()}


def _remove_tree(path: str) -> bool:
    for directory, _, _ in os.walk(path, topdown=False):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
                return False
            raise
    return not os.path.exists(path)


def _read(path: str) -> str:
    """A kernel file's text, ``""`` where it is gone (ENODEV: its cgroup was removed while it was open)."""
    try:
        return Path(path).read_text(errors="surrogateescape")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return ""
        raise


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
