"""`Spec` + what the host offers → the list of launch steps. Pure: the same input gives the same plan, on any machine.

The order is the security argument, so read it top down:
  init      a mount namespace, cgroup with its limits, root, mounts, masks, then nothing but that root: all with full rights,
            none of the container's code running yet. Then the user namespace and the others, which belong to it: the mount
            namespace is made anew, as a copy whose mounts nobody inside can change any more
  workload  joins the cgroup, takes its limits, closes every fd, drops capabilities, becomes the user, execs
  cleanup   run by the launcher when the last process is gone: read the counters, remove the cgroup
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyvisor.holes import holes
from tinyvisor.runtime import steps as s
from tinyvisor.runtime.cgroup import Hierarchy, Layout, LimitWrite
from tinyvisor.runtime.identity import Identity
from tinyvisor.runtime.idmap import TTY_GROUP, IdMap, map_text
from tinyvisor.runtime.landlock import landlock_step, left_out
from tinyvisor.runtime.rootfs import HostView, hosts_file
from tinyvisor.runtime.seccomp import Filter
from tinyvisor.runtime.steps import NAMESPACE_FLAGS, NODEV, NOEXEC, NOSUID, RDONLY, Step
from tinyvisor.runtime.usage import readback_files
from tinyvisor.spec import (
    CAPABILITIES,
    DEFAULT_PATH,
    NOTIFY_DIRECTORY,
    NOTIFY_SOCKET,
    SECRETS,
    ULIMITS,
    Spec,
    Tmpfs,
    Volume,
)

ROOT_USER = Identity(uid=0, gid=0, groups=(), home="/root")


@dataclass(frozen=True, slots=True)
class Tree:
    """A host path that the supervisor opens as a detached tree and sends with the request.

    Attributes:
        path: on the host.
        read_only: all of it.
        recursive: with what is mounted below.
    """

    path: Path
    read_only: bool = False
    recursive: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """One launch. `trees` are to be opened in order: the first has slot `steps.FIRST_TREE`.

    Attributes:
        holes: what the spec or the kernel makes it lack of what a container has by default, a line each.
    """

    init: tuple[Step, ...]
    workload: tuple[Step, ...]
    cleanup: tuple[Step, ...]
    trees: tuple[Tree, ...]
    holes: tuple[str, ...] = ()

    def describe(self) -> str:
        """The plan as text, a step a line: what `tinyvisor plan` prints."""
        lines = []
        for title in ("init", "workload", "cleanup"):
            lines.append(f"{title}:")
            lines += [f"  {index:2} {step.describe()}" for index, step in enumerate(getattr(self, title))]
        lines += ["holes:", *(f"   - {hole}" for hole in self.holes)] if self.holes else []
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class Limits:
    """How the container's cgroups are made: the host's part of a plan.

    Attributes:
        layout: the hierarchies; hierarchy n's project directory is the launcher's kept fd n.
        writes: limits, in the order in which they must be written.
        cpu_usage: (hierarchy, file) that counts CPU time, where that is limited.
        cpus: how many CPUs there are to use at once.
    """

    layout: Layout
    writes: tuple[LimitWrite, ...] = ()
    cpu_usage: tuple[int, str] | None = None
    cpus: int = 1

    def used(self) -> tuple[tuple[int, Hierarchy], ...]:
        """The hierarchies in which the container gets a cgroup: those of its limits, and those that count what it uses."""
        wanted = {write.hierarchy for write in self.writes} | {self.layout.index("pids"), self.layout.index("memory")}
        if self.cpu_usage is not None:
            wanted.add(self.cpu_usage[0])
        return tuple((index, hierarchy) for index, hierarchy in enumerate(self.layout.hierarchies) if index in wanted)

    def born_in(self, name: str) -> tuple[int, str, str] | None:
        """(hierarchy, path, label) of the v2 cgroup that the workload starts in: the container's or, where that has none, the
        project's, which has the wall around devices."""
        for index, hierarchy in self.used():
            if hierarchy.version == 2:
                return index, name, hierarchy.label
        wall = self.layout.index("devices")
        if wall is None or self.layout.hierarchies[wall].version == 1:
            return None
        return wall, ".", f"{self.layout.hierarchies[wall].label}, the project's"

    def joined(self, name: str) -> Iterator[tuple[int, str, str]]:
        """(hierarchy, file, label) of the v1 cgroups that the workload joins: the container's and, if it has none there, the
        project's with the wall around devices."""
        for index, hierarchy in self.used():
            if hierarchy.version == 1:
                yield index, f"{name}/tasks", hierarchy.label
        wall = self.layout.index("devices")
        if wall is not None and self.layout.hierarchies[wall].version == 1 and wall not in dict(self.used()):
            yield wall, "tasks", f"{self.layout.hierarchies[wall].label}, the project's"

    def readback(self) -> tuple[tuple[int, str], ...]:
        """(hierarchy, file) of the counters to read at the end, in the order in which they come back."""
        used = {index for index, _ in self.used()}
        limited = any(write.controller == "pids" for write in self.writes)
        return tuple(
            (index, file) for index, file in readback_files(self.layout) if index in used and (limited or file != "pids.events")
        )


@dataclass(frozen=True, slots=True)
class Around:
    """What we are in ourselves, as far as plans differ by it (`Host`).

    Attributes:
        nested: a user namespace.
        tty_group: the group that owns terminals, where the container's ids are ours.
        groups_fixed: the container can't be taken out of the groups that we are in.
        live: a runtime whose containers are taken over by the next one, which has none of the fds that it did not give away.
        landlock: its ABI; 0: the kernel has none.
    """

    nested: bool = False
    tty_group: int = TTY_GROUP
    groups_fixed: bool = False
    live: bool = False
    landlock: int = 0


@dataclass(frozen=True, slots=True)
class Watch:
    """A tracer is to have the container from its first instruction on.

    Attributes:
        stops: a filter that stops it at the calls that are asked for; None where it is stopped at every call.
    """

    stops: Filter | None = None


def plan(
    spec: Spec,
    *,
    limits: Limits,
    view: HostView | None,
    seccomp: Filter | None,
    name: str | None = None,
    identity: Identity = ROOT_USER,
    resolv_conf: bytes | None = None,
    terminal: tuple[int, int] = (24, 80),
    workspace: str | None = None,
    early: bool = False,
    ids: IdMap | None = None,
    idmapped: frozenset[str] = frozenset(),
    watch: Watch | None = None,
    around: Around = Around(),
) -> Plan:
    """The launch steps for `spec`.

    Args:
        view: the host view; used where the spec has no rootfs.
        seccomp: what ``spec.seccomp`` names, compiled (`filters.filter_for`).
        name: stands in for ``spec.name`` everywhere (the launch cache plans with a placeholder).
        identity: who ``spec.user`` is, inside.
        resolv_conf: content, where the network is the host's.
        terminal: rows and columns of a tty.
        workspace: what is mounted on the working directory: a path in the launcher's world, or "" for a tree that comes as the
            last fd.
        early: its end is told as soon as it is empty, while its PID 1 and its mounts are still on their way out.
        ids: of the user namespace; given where ``spec.userns`` is not ``host``. They are in the first step of init and in no
            other.
        idmapped: targets of the shared trees that can be idmapped. A user namespace for that comes as the last fd.
        watch: a tracer will have it.
        around: where we are.
    """
    assert (ids is None) == (spec.userns == "host")
    name = name if name is not None else spec.name
    trees = [Tree(spec.rootfs, recursive=False)] if spec.rootfs else []
    trees += [Tree(volume.source, volume.read_only) for volume in spec.volumes]
    made = s.FIRST_TREE + len(trees)
    last = made + len(made_fds(spec))
    maps = _Maps(last + (workspace == ""), idmapped) if ids else _Maps()
    # Cgroups prove that it is empty; a host directory in it would still be mounted for a moment, and could not be unmounted.
    early = early and bool(limits.used()) and spec.rootfs is None and not spec.volumes
    init = [
        *([ids_step(ids, identity)] if ids else []),
        *_namespaces(spec, around, keeps_network(spec, around, workspace)),
        *_make_cgroups(limits, name),  # before their owner changes: a container that had its cgroups could lift its limits
        *([s.Owner(root=True)] if ids else []),
        *_root(spec, view, name, resolv_conf, maps, around),
        *_mounts(spec),
        *_own_files(spec, made),
        *_workspace(spec, workspace, last, maps),
        *(s.Mask(path) for path in spec.masked_paths),
        *(s.ReadOnly(path) for path in spec.readonly_paths),
        *(_working_directory(spec, identity) if workspace is None else ()),
        *_seal(spec),
        *([s.Owner(root=False)] if ids else []),
        s.DetachWorld(),
        *_user_namespace(spec, around),
        s.Enter(CONTAINER_ROOT),
        # In the mount namespace that it is used in: its name is looked for there.
        *([s.Pty(*_owner(spec, identity), *terminal)] if spec.tty else []),
        *_identity_of_host(spec, name, keeps_network(spec, around, workspace)),
        *_cpu_time(spec, limits, name),
        _init(spec, name, seccomp, early=early),
    ]
    cleanup = [*_readback(limits, name), *_remove_cgroups(limits, name)]
    user = maps.slot if keeps_user(spec, around) else 0
    wall = landlock_step(spec, around.landlock, None if workspace is None else spec.working_dir or "/")
    workload = _workload(spec, limits, name, identity, seccomp, watch.stops if watch else None, around, wall, made, user)
    return Plan(tuple(init), tuple(workload), tuple(cleanup), tuple(trees), tuple(_holes(spec, around)))


def _holes(spec: Spec, around: Around) -> Iterator[str]:
    """Each is one that the user has made, or this kernel."""
    yield from holes(spec)
    yield from left_out(spec, around.landlock)


def exec_step(spec: Spec, identity: Identity, name: str) -> s.Exec:
    """The last step of the workload: the only one that a batch of equal jobs differs in."""
    environment = {"PATH": DEFAULT_PATH, "HOME": identity.home, "HOSTNAME": spec.hostname or name}
    if spec.tty:
        environment["TERM"] = "xterm"
    if spec.notify_socket:
        environment["NOTIFY_SOCKET"] = NOTIFY_SOCKET
    if spec.watchdog is not None:
        environment["WATCHDOG_USEC"] = str(round(spec.watchdog * 1e6))
    environment.update(spec.environment)
    return s.Exec(spec.command, tuple(environment.items()))


MAX_COUNTERS = 8
"""launcher.h MAX_COUNTERS."""

DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
"""Name, major, minor. Source: OCI runtime-spec config-linux.md "Default Devices"."""


def dev_template(path: str, *, console: bool, bound: bool = False) -> tuple[Step, ...]:
    """Steps, run once by the launcher itself, that make the /dev which all containers share, read-only.

    Args:
        bound: the devices are the host's, which come as fds: where we are in a user namespace, none can be made.
    """
    links = (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2"))
    return (
        s.Mount("tmpfs", path, "mode=755,size=64k,nr_inodes=64", NOSUID | NOEXEC),
        *(
            s.Bind(slot, f"{path}/{name}", NOSUID | NOEXEC, f"/dev/{name}")
            if bound
            else s.Node(f"{path}/{name}", 0o666, major << 8 | minor)
            for slot, (name, major, minor) in enumerate(DEVICES)
        ),
        *(s.Link(f"{path}/{name}", to) for name, to in (*links, ("ptmx", "pts/ptmx"))),
        *(s.Directory(f"{path}/{name}") for name in ("pts", "shm", "mqueue")),
        *([s.File(f"{path}/console", b"", 0o600)] if console else []),
    )


# ---- init ----


@dataclass(frozen=True, slots=True)
class _Maps:
    """Slot of the user namespace for idmapped mounts, and for which shared trees."""

    slot: int = 0
    trees: frozenset[str] = frozenset()

    def of(self, target: str) -> int:
        return self.slot if target in self.trees else 0


def ids_step(ids: IdMap, identity: Identity) -> s.Ids:
    """The first step of a container with a user namespace.

    Raises:
        SpecError: its user, or one of the groups, is not mapped.
    """
    for group in identity.groups:
        ids.gid(group)
    user = ids.uid(identity.uid), ids.gid(identity.gid)
    maps = map_text(ids.uids), map_text(ids.gids)
    tty = ids.gid(TTY_GROUP if any(first <= TTY_GROUP < first + count for first, _, count in ids.gids) else 0)
    return s.Ids((ids.uid(0), ids.gid(0)), user, tty, *maps)


def _own_namespaces(spec: Spec) -> frozenset[str]:
    """Those that init has of its own. The pid namespace comes with the clone, the cgroup namespace after the cgroup."""
    shared = {"net"} if spec.network_mode != "none" else set()
    return spec.namespaces - {"pid", "cgroup", "user"} - shared


def keeps_user(spec: Spec, around: Around) -> bool:
    """Whether it enters a user namespace that is kept for its ids, after other containers that had these.

    What a container could leave there are keys, which the default profile lets nobody have, and what takes a capability. Its
    other namespaces are the host's then: without capabilities inside it makes no difference whose they are. Making one for
    each took a tenth of a start.
    """
    plain = spec.seccomp == "default" and spec.seccomp_action is None and not spec.on_syscall and not spec.possible_capabilities
    return plain and spec.userns != "host" and not around.nested and not around.live


def keeps_network(spec: Spec, around: Around, workspace: str | None = None) -> bool:
    """Whether its network namespace may be one in which other containers were, and nothing has happened (launcher/networks.c).

    For that it must be the host's, with no capability inside that has a say in it, and there must be no place that others see:
    by a unix socket there it could hand out an open /proc/net/tcp, which would show what goes on in the next one's network.
    """
    meets_others = bool(spec.volumes or spec.rootfs or workspace)  # one that several runs share has a name
    return keeps_user(spec, around) and "net" in _own_namespaces(spec) and not meets_others and not spec.new_network


def _owned_namespaces(spec: Spec) -> frozenset[str]:
    """Those that belong to the container's own user namespace, so that capabilities inside count there.

    The mounts do where root inside may mount, in a copy in which the kernel has locked what is there (mount_namespaces(7)). Else
    they stay the host's: no capability of the container's has a say over them, and the copy is spared.
    """
    own = _own_namespaces(spec) - {"time"}
    return own if "SYS_ADMIN" in spec.capabilities or own == {"mount"} else own - {"mount"}


def _flags(names: Iterable[str]) -> int:
    return sum(NAMESPACE_FLAGS[name] for name in set(names))


def _namespaces(spec: Spec, around: Around, keeps_network: bool) -> Iterator[Step]:
    of_host = spec.userns == "host" or keeps_user(spec, around)
    kept = {"net"} if keeps_network else set()
    yield s.Unshare(_flags(_own_namespaces(spec) - kept if of_host else {"mount"}))
    if kept:
        yield s.Network()
    if spec.network_mode.startswith("service:"):
        yield s.Join(NAMESPACE_FLAGS["net"], spec.network_mode.removeprefix("service:"))


def _make_cgroups(limits: Limits, name: str) -> Iterator[Step]:
    for index, hierarchy in limits.used():
        yield s.CgroupMake(s.KEPT | index, name, hierarchy.label)
    for write in limits.writes:
        where = limits.layout.hierarchies[write.hierarchy].label
        yield s.CgroupWrite(s.KEPT | write.hierarchy, f"{name}/{write.file}", write.content, write.optional, where)
    yield from _born_in(limits, name)


def _born_in(limits: Limits, name: str) -> Iterator[Step]:
    cgroup = limits.born_in(name)
    if cgroup is not None:
        index, path, label = cgroup
        yield s.CgroupInto(s.KEPT | index, path, label)


def _no_suid(spec: Spec) -> int:
    return NOSUID if spec.no_new_privs else 0


def _root(spec: Spec, view: HostView | None, name: str, resolv_conf: bytes | None, maps: _Maps, around: Around) -> Iterator[Step]:
    attributes = NODEV | _no_suid(spec)
    if spec.rootfs is None:
        assert view is not None
        yield s.RootTmpfs(spec.storage_size, spec.storage_inodes, attributes)
        yield from _host_view(spec, view, maps)
    elif spec.read_only:
        # Made read-only at the end (_seal): mount points may have to be made first, where the file system lets us.
        yield s.RootTree(s.FIRST_TREE, attributes, str(spec.rootfs))
    else:
        sizes = spec.storage_size, spec.storage_inodes
        yield s.RootOverlay(s.FIRST_TREE, *sizes, attributes, str(spec.rootfs), user_attributes=around.nested)
    yield s.Mount("proc", "/proc", spec.proc_opts, NOSUID | NOEXEC | NODEV)
    yield s.BindTemplate("/t/dev-tty" if spec.tty else "/t/dev", "/dev", RDONLY | NOSUID | NOEXEC, maps.of("/dev"))
    yield s.Devpts(around.tty_group)
    yield s.Mount("tmpfs", "/dev/shm", f"mode=1777,size={spec.shm_size},nr_inodes=16384", NOSUID | NOEXEC | NODEV)
    if spec.read_only:
        for target, mode in (("/tmp", 0o1777), ("/run", 0o755)):
            yield _tmpfs(Tmpfs(target, spec.storage_size, spec.storage_inodes, mode))
    yield from _generated_files(spec, name, resolv_conf)


def _host_view(spec: Spec, view: HostView, maps: _Maps) -> Iterator[Step]:
    for path, mode in (("/root", 0o700), ("/home", 0o755), ("/var", 0o755), ("/var/tmp", 0o1777), ("/opt", 0o755)):
        yield s.Directory(path, mode)
    yield s.Directory("/tmp", 0o1777)
    yield s.Directory("/run")
    for path in view.binds:
        yield s.BindTemplate(f"/t{path}", path, RDONLY | NODEV | _no_suid(spec), maps.of(path))
    for path, to in view.links:
        yield s.Link(path, to)
    yield s.BindTemplate("/t/etc", "/etc", RDONLY | NODEV | NOSUID | NOEXEC, maps.of("/etc"))


def _generated_files(spec: Spec, name: str, resolv_conf: bytes | None) -> Iterator[Step]:
    """/etc/hosts and the like: in the host view they are links into /run; into an image's writable layer they are
    written as they are, and a read-only image keeps its own."""
    hostname = spec.hostname or name
    contents = {"hosts": hosts_file(hostname), "hostname": f"{hostname}\n".encode("utf-8", "surrogateescape")}
    if resolv_conf is not None:
        contents["resolv.conf"] = resolv_conf
    if spec.rootfs is None:
        yield from (s.File(f"/run/{file}", content) for file, content in contents.items())
    elif not spec.read_only:
        yield from (s.File(f"/etc/{file}", content, replace=True) for file, content in contents.items())


def _mounts(spec: Spec) -> Iterator[Step]:
    first = s.FIRST_TREE + (spec.rootfs is not None)
    mounts: list[tuple[Volume | Tmpfs, int]] = [(volume, first + index) for index, volume in enumerate(spec.volumes)]
    mounts += [(tmpfs, 0) for tmpfs in spec.tmpfs]
    for mount, slot in sorted(mounts, key=lambda item: item[0].target.rstrip("/").count("/")):
        if isinstance(mount, Tmpfs):
            yield _tmpfs(mount)
        else:
            attributes = NODEV | _no_suid(spec) | (RDONLY if mount.read_only else 0)
            yield s.Bind(slot, mount.target, attributes, str(mount.source), maps_volumes(spec))


def made_fds(spec: Spec) -> tuple[str, ...]:
    """What comes behind the trees, in order, each an fd: what the runtime makes for this one container."""
    wanted = (("secrets", spec.secrets), ("notify_socket", spec.notify_socket), ("notification_fd", spec.notification_fd))
    return tuple(name for name, value in wanted if value)


def _own_files(spec: Spec, first: int) -> Iterator[Step]:
    attributes = RDONLY | NOSUID | NODEV | NOEXEC
    made = made_fds(spec)
    if spec.secrets:
        names = ", ".join(secret.target for secret in spec.secrets)
        yield s.Bind(first + made.index("secrets"), SECRETS, attributes, f"secrets ({names})")
    if spec.notify_socket:
        yield s.Bind(first + made.index("notify_socket"), NOTIFY_DIRECTORY, attributes, "the notify socket's directory")


def maps_volumes(spec: Spec) -> bool:
    """Whether a file's owner is the same number in a volume and on the host. With ``keep-id``, as with Podman's, volumes are as
    they are: only the kept user's files are somebody's inside."""
    return spec.userns == "auto"


def _workspace(spec: Spec, workspace: str | None, slot: int, maps: _Maps) -> Iterator[Step]:
    target = spec.working_dir or "/"
    if workspace:
        yield s.BindTemplate(workspace, target, NODEV | NOSUID, maps.slot)
    elif workspace is not None:
        yield s.Bind(slot, target, NODEV | NOSUID, "the job's files")


def _tmpfs(tmpfs: Tmpfs) -> Step:
    options = f"mode={tmpfs.mode:o},size={tmpfs.size},nr_inodes={tmpfs.inodes}"
    return s.Mount("tmpfs", tmpfs.target, options, NOSUID | NODEV | (0 if tmpfs.executable else NOEXEC))


def _owner(spec: Spec, identity: Identity) -> tuple[int, int]:
    """The workload's uid and gid as the host numbers them."""
    return (identity.uid, identity.gid) if spec.userns == "host" else (s.MAPPED, s.MAPPED)


def _working_directory(spec: Spec, identity: Identity) -> Iterator[Step]:
    if spec.working_dir not in (None, "/") and not spec.read_only:
        yield s.Directory(str(spec.working_dir), 0o755, *_owner(spec, identity))


def _seal(spec: Spec) -> Iterator[Step]:
    if spec.read_only:
        yield s.Remount("/", RDONLY)


def _user_namespace(spec: Spec, around: Around) -> Iterator[Step]:
    if spec.userns != "host" and not keeps_user(spec, around):
        yield s.UserNamespace(_flags(_owned_namespaces(spec)))
        if "time" in spec.namespaces:
            yield s.Unshare(_flags({"time"}))


def _identity_of_host(spec: Spec, name: str, keeps_network: bool) -> Iterator[Step]:
    if "uts" in spec.namespaces:
        yield s.Hostname(spec.hostname or name)
    if "net" in spec.namespaces and spec.network_mode == "none" and not keeps_network:
        yield s.LoopbackUp()


def _cpu_time(spec: Spec, limits: Limits, name: str) -> Iterator[Step]:
    if spec.cpu_time is not None and limits.cpu_usage is not None:
        hierarchy, file = limits.cpu_usage
        # Not spec.cpus: a period's share may be used up at once, by as many as there are.
        most = [limits.cpus, *([len(spec.cpuset)] if spec.cpuset else []), *([spec.pids_limit] if spec.pids_limit else [])]
        label = limits.layout.hierarchies[hierarchy].label
        yield s.CpuTime(s.KEPT | hierarchy, f"{name}/{file}", max(1, round(spec.cpu_time * 1000)), min(most), label)


def _init(spec: Spec, name: str, seccomp: Filter | None, *, early: bool) -> Step:
    flags = s.INIT_SIGNAL_GROUP if spec.signal_group else 0
    if "time" in spec.namespaces:
        flags |= s.INIT_FORK  # the first process of a time namespace can't share its parent's memory
    if early:
        flags |= s.INIT_EARLY
    if seccomp and seccomp.notifies:
        flags |= s.INIT_REFUSALS
    if "SYS_PTRACE" in spec.capabilities and spec.userns == "host":
        flags |= s.INIT_TRACE
    return s.Init(flags, round(spec.orphan_grace_period * 1000), spec.stop_signal, _milliseconds(spec.timeout), name)


def _milliseconds(timeout: float | None) -> int:
    return 0 if timeout is None else max(1, round(timeout * 1000))


def parked_steps(spec: Spec, plan: Plan, watch: Watch | None, *, under_filter: bool) -> int:
    """How many of the workload's steps a container made ahead has behind it.

    All but the exec; unless there is one that has to know what comes with the command (a terminal, a tracer, Landlock's rule for
    what stdout is), or a filter that may refuse the waiting itself: then those up to the closing of fds.

    Args:
        under_filter: `seccomp.may_wait`; or there is none.
    """
    if not under_filter or watch is not None or spec.tty or any(isinstance(step, s.Landlock) for step in plan.workload):
        return next(index for index, step in enumerate(plan.workload) if isinstance(step, s.CloseFds))
    return len(plan.workload) - 1


CONTAINER_ROOT = "/container"
"""Where a container's root is in its mount namespace (launcher/mounts.c)."""


def exec_plan(
    spec: Spec,
    *,
    limits: Limits,
    seccomp: Filter | None,
    name: str,
    identity: Identity,
    ids: IdMap | None = None,
    terminal: tuple[int, int] = (24, 80),
    around: Around = Around(),
    workspace: str | None = None,
) -> Plan:
    """One more process in the running container `name`: it joins what its init has made, and takes the workload's steps.

    ``spec`` is the container's with the command, user, environment, working_dir, tty and timeout of the process; `ids` are the
    container's, `terminal` as in `plan`. Where it `keeps_user`, that user namespace comes as the one fd. `workspace` is where the
    container has a directory of the runtime's, if it has one.
    """
    owner = (ids.uid(identity.uid), ids.gid(identity.gid)) if ids else (identity.uid, identity.gid)
    own = {"pid", *_own_namespaces(spec) - {"time"}}
    own |= {"net"} if spec.network_mode.startswith("service:") else set()
    # What it shares with us it need not join, nor may it everywhere: a user namespace has no rights over the host's network.
    found = spec.userns != "host" and not keeps_user(spec, around)
    joined, owned = (own | {"user"}, sorted(_owned_namespaces(spec))[:1]) if found else (own, [])
    user = s.FIRST_TREE if keeps_user(spec, around) else 0
    init = [
        *_born_in(limits, name),
        s.Join(_flags(joined), name, _flags(owned)),
        s.Enter(CONTAINER_ROOT),
        *([s.Pty(*owner, *terminal, console=False)] if spec.tty else []),
        s.Init(
            (s.INIT_SIGNAL_GROUP if spec.signal_group else 0) | (s.INIT_REFUSALS if seccomp and seccomp.notifies else 0),
            0, spec.stop_signal, _milliseconds(spec.timeout), name,
        ),
    ]  # fmt: skip
    wall = landlock_step(spec, around.landlock, workspace)
    workload = _workload(spec, limits, name, identity, seccomp, None, around, wall, user=user)
    return Plan(tuple(init), tuple(workload), (), ())


def socket_steps(spec: Spec, name: str, domain: int, type: int) -> tuple[Step, ...]:
    """A socket in the network of the running container `name`, which is one of its own or another container's."""
    assert joins_network(spec)
    return s.Join(NAMESPACE_FLAGS["net"], name), s.Socket(domain, type)


def joins_network(spec: Spec) -> bool:
    """Whether the container's network is another one than ours."""
    return "net" in _own_namespaces(spec) or spec.network_mode.startswith("service:")


# ---- workload ----


def capability_mask(names: Iterable[str]) -> int:
    """The kernel's bit mask of the capabilities."""
    return sum(1 << CAPABILITIES.index(name) for name in names)


def _workload(
    spec: Spec,
    limits: Limits,
    name: str,
    identity: Identity,
    seccomp: Filter | None,
    stops: Filter | None,
    around: Around,
    wall: s.Landlock | None,
    made: int = 0,
    user: int = 0,
) -> Iterator[Step]:
    rules = [rule for rule in spec.on_syscall if not rule.reads]
    assert (seccomp is None) == (spec.seccomp == "unconfined" and not rules)
    yield from (s.CgroupJoin(s.KEPT | index, file, label) for index, file, label in limits.joined(name))
    cgroup = [s.Unshare(NAMESPACE_FLAGS["cgroup"])] if "cgroup" in spec.namespaces else []  # its root: what was just joined
    if spec.userns == "host":
        yield from cgroup
    if spec.oom_score_adj is not None:
        yield s.OomScoreAdj(spec.oom_score_adj)
    for limit, value in sorted(spec.ulimits.items()):
        yield s.Rlimit(ULIMITS[limit], value.soft, value.hard, limit)
    if spec.cpuset:
        yield s.Affinity(spec.cpuset)
    yield s.Session()
    if _may_use_keys(spec):
        yield s.Keyring()
    if spec.userns != "host":  # what comes before takes rights of the host's: limits may be raised
        yield s.EnterUser(user)
        yield from cgroup
    yield s.Umask(spec.umask)
    kept = spec.possible_capabilities if identity.uid == 0 else spec.capabilities
    # A set-id program gives no more than this. Where none gives anything, what is root's alone is nobody's.
    yield s.BoundingSet(capability_mask(kept if spec.no_new_privs else spec.possible_capabilities))
    if spec.notification_fd is not None:
        yield s.PassFd(made + made_fds(spec).index("notification_fd"), spec.notification_fd)
    yield s.CloseFds()
    if wall:
        yield wall
    if seccomp and not spec.no_new_privs:
        yield from _seccomp(spec, seccomp)  # while there is CAP_SYS_ADMIN; what follows is `seccomp.NEEDED`
    yield s.SetIdentity(identity.uid, identity.gid, identity.groups, keep_groups=around.groups_fixed)
    yield s.Capabilities(capability_mask(kept), capability_mask(spec.capabilities), tuple(sorted(kept)))
    yield s.WorkingDir(spec.working_dir or "/")
    if spec.no_new_privs:
        yield s.NoNewPrivs()
    if stops:
        yield s.Seccomp(stops.program, stops.flags, "stops for the tracer")  # first: the profile may refuse a second filter
    if seccomp and spec.no_new_privs:
        yield from _seccomp(spec, seccomp)
    yield exec_step(spec, identity, name)


def _may_use_keys(spec: Spec) -> bool:
    """Whether anything but our own profile has a say in it."""
    return spec.seccomp != "default" or bool(spec.on_syscall) or spec.seccomp_action not in (None, "errno", "kill")


def _seccomp(spec: Spec, filter: Filter) -> Iterator[Step]:
    profile = (
        "default profile"
        if spec.seccomp == "default"
        else "no profile"
        if spec.seccomp == "unconfined"
        else f"profile {spec.seccomp}"
    )
    profile += f", {len(spec.on_syscall)} rules before it" if spec.on_syscall else ""
    profile += f", on refusal {spec.seccomp_action}" if spec.seccomp_action else ""
    yield s.Seccomp(filter.program, filter.flags, profile, filter.ignored)
    if filter.second:
        yield s.Seccomp(filter.second, 0, "what handing over the first one's listener took")


# ---- cleanup ----


def _readback(limits: Limits, name: str) -> Iterator[Step]:
    for hierarchy, file in limits.readback():
        yield s.Read(s.KEPT | hierarchy, f"{name}/{file}", limits.layout.hierarchies[hierarchy].label)


def counters(spec: Spec, limits: Limits, name: str) -> tuple[Step, ...]:
    """What the init of a container made ahead does besides: it opens what it will read back, outside of the run's time. Who has
    power over it (SYS_PTRACE) would have it over these files, too."""
    files = limits.readback()
    if "SYS_PTRACE" in spec.capabilities or len(files) > MAX_COUNTERS:
        return ()
    return tuple(s.Counter(s.KEPT | index, f"{name}/{file}", limits.layout.hierarchies[index].label) for index, file in files)


def _remove_cgroups(limits: Limits, name: str) -> Sequence[Step]:
    return [s.Remove(s.KEPT | index, name, hierarchy.label) for index, hierarchy in limits.used()]
