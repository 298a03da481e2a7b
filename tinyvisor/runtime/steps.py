"""Launch steps: what the C launcher can do, one small frozen dataclass per step; those of every launch are made quickly. Pure.

Each class mirrors one row of the table in launcher/steps.c (`op`, how many numbers and strings go over the wire); a test
compares both. `describe()` says in one line what the step does: it is what `tinyvisor plan` prints and what a
`LaunchError` names.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from typing import ClassVar

from tinyvisor.record import record
from tinyvisor.units import format_size

# linux/sched.h CLONE_NEW*
NAMESPACE_FLAGS = {
    "time": 0x80, "mount": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000,
    "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000,
}  # fmt: skip

# linux/mount.h MOUNT_ATTR_*
RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
_ATTRIBUTES = ((RDONLY, "ro"), (NOSUID, "nosuid"), (NODEV, "nodev"), (NOEXEC, "noexec"))

KEPT = 0x100
"""Slot numbers with this bit name an fd that the launcher keeps; others name one that comes with the request."""

FIRST_TREE = 4
"""Slots 0..3 of a launch are the event socket, stdin, stdout, stderr; detached trees follow."""

MAPPED = 0xFFFFFFFF
"""As an owner: the container's user, whom the step `Ids` names."""

INIT_SIGNAL_GROUP, INIT_FORK, INIT_EARLY, INIT_TRACE, INIT_REFUSALS = 1, 2, 4, 8, 32


class Step:
    """Base of all steps."""

    __slots__ = ()
    op: ClassVar[int]

    def numbers(self) -> tuple[int, ...]:
        """The unsigned 64-bit numbers on the wire."""
        return ()

    def strings(self) -> tuple[str | bytes, ...]:
        """The strings on the wire."""
        return ()

    def describe(self) -> str:
        """One line for people."""
        raise NotImplementedError


def _namespaces(flags: int) -> str:
    return ", ".join(sorted(name for name, flag in NAMESPACE_FLAGS.items() if flags & flag))


def _with_attributes(attributes: int, *more: str) -> str:
    words = [*more, *(word for bit, word in _ATTRIBUTES if attributes & bit)]
    return f" ({', '.join(words)})" if words else ""


@record
class Unshare(Step):
    op = 1
    flags: int

    def numbers(self) -> tuple[int, ...]:
        return (self.flags,)

    def describe(self) -> str:
        return f"new namespaces: {_namespaces(self.flags)}"


@record
class Join(Step):
    """Joins namespaces of the container that the request names. Its user namespace, which is found as the owner of `owned`, one
    flag, is only opened: `EnterUser` enters it."""

    op = 2
    flags: int
    whose: str
    owned: int = 0

    def numbers(self) -> tuple[int, ...]:
        return self.flags, self.owned

    def describe(self) -> str:
        return f"join the {_namespaces(self.flags)} namespace of {self.whose}"


@record
class RootTmpfs(Step):
    op = 3
    size: int
    inodes: int
    attributes: int

    def numbers(self) -> tuple[int, ...]:
        return self.size, self.inodes, self.attributes

    def describe(self) -> str:
        limits = (f"size={format_size(self.size)}", f"nr_inodes={self.inodes}")
        return f"root: a new tmpfs{_with_attributes(self.attributes, *limits)}"


@record
class RootTree(Step):
    op = 4
    slot: int
    attributes: int
    path: str

    def numbers(self) -> tuple[int, ...]:
        return self.slot, self.attributes

    def describe(self) -> str:
        return f"root: {self.path}{_with_attributes(self.attributes)}"


@record
class RootOverlay(Step):
    op = 5
    slot: int
    size: int
    inodes: int
    attributes: int
    path: str
    user_attributes: bool = False  # "user.*" instead of "trusted.*"

    def numbers(self) -> tuple[int, ...]:
        return self.slot, self.size, self.inodes, self.attributes, self.user_attributes

    def describe(self) -> str:
        limits = (f"size={format_size(self.size)}", f"nr_inodes={self.inodes}")
        return f"root: overlay of a tmpfs over {self.path}{_with_attributes(self.attributes, *limits)}"


@record
class Directory(Step):
    op = 6
    target: str
    mode: int = 0o755
    uid: int = 0
    gid: int = 0

    def numbers(self) -> tuple[int, ...]:
        return self.mode, self.uid, self.gid

    def strings(self) -> tuple[str | bytes, ...]:
        return (self.target,)

    def describe(self) -> str:
        return f"make directory {self.target} (mode {self.mode:04o})"


@record
class Link(Step):
    op = 7
    target: str
    to: str

    def strings(self) -> tuple[str | bytes, ...]:
        return self.target, self.to

    def describe(self) -> str:
        return f"link {self.target} -> {self.to}"


@record
class File(Step):
    op = 8
    target: str
    content: bytes
    mode: int = 0o644
    replace: bool = False

    def numbers(self) -> tuple[int, ...]:
        return self.mode, int(self.replace)

    def strings(self) -> tuple[str | bytes, ...]:
        return self.target, self.content

    def describe(self) -> str:
        return f"write {self.target} ({len(self.content)} bytes)"


@record
class Node(Step):
    op = 9
    target: str
    mode: int
    device: int

    def numbers(self) -> tuple[int, ...]:
        return stat.S_IFCHR | self.mode, self.device

    def strings(self) -> tuple[str | bytes, ...]:
        return (self.target,)

    def describe(self) -> str:
        return f"make device {self.target} ({self.device >> 8}:{self.device & 255}, mode {self.mode:04o})"


@record
class Mount(Step):
    op = 10
    type: str
    target: str
    options: str
    attributes: int

    def numbers(self) -> tuple[int, ...]:
        return (self.attributes,)

    def strings(self) -> tuple[str | bytes, ...]:
        return self.type, self.target, self.options

    def describe(self) -> str:
        return f"mount {self.type} on {self.target}{_with_attributes(self.attributes, *filter(None, self.options.split(',')))}"


@record
class Bind(Step):
    """Attaches a detached tree that the supervisor opened in the host's mount namespace, and idmapped where it says so."""

    op = 11
    slot: int
    target: str
    attributes: int
    source: str
    idmapped: bool = False

    def numbers(self) -> tuple[int, ...]:
        return self.slot, self.attributes

    def strings(self) -> tuple[str | bytes, ...]:
        return (self.target,)

    def describe(self) -> str:
        idmapped = ("idmapped",) if self.idmapped else ()
        return f"bind {self.source} on {self.target}{_with_attributes(self.attributes, *idmapped)}"


@record
class BindTemplate(Step):
    """Attaches a copy of a tree in the launcher's own mount namespace.

    Attributes:
        ids: slot of a user namespace through whose map its owners are seen; 0: as they are.
    """

    op = 12
    template: str
    target: str
    attributes: int
    ids: int = 0

    def numbers(self) -> tuple[int, ...]:
        return self.attributes, self.ids

    def strings(self) -> tuple[str | bytes, ...]:
        return self.template, self.target

    def describe(self) -> str:
        idmapped = ("idmapped",) if self.ids else ()
        return (
            f"bind the shared {self.template.removeprefix('/t')} on {self.target}{_with_attributes(self.attributes, *idmapped)}"
        )


@record
class Mask(Step):
    op = 13
    target: str

    def strings(self) -> tuple[str | bytes, ...]:
        return (self.target,)

    def describe(self) -> str:
        return f"mask {self.target}"


@record
class ReadOnly(Step):
    op = 14
    target: str

    def strings(self) -> tuple[str | bytes, ...]:
        return (self.target,)

    def describe(self) -> str:
        return f"make {self.target} read-only"


@record
class Remount(Step):
    op = 15
    target: str
    attributes: int

    def numbers(self) -> tuple[int, ...]:
        return (self.attributes,)

    def strings(self) -> tuple[str | bytes, ...]:
        return (self.target,)

    def describe(self) -> str:
        return f"remount {self.target}{_with_attributes(self.attributes)}"


@record
class DetachWorld(Step):
    """The launcher has pivoted, once for all containers: launcher/mounts.c."""

    op = 16

    def describe(self) -> str:
        return "detach the launcher's world; an empty, read-only shell around the new root is left"


@record
class Hostname(Step):
    op = 18
    hostname: str

    def strings(self) -> tuple[str | bytes, ...]:
        return (self.hostname,)

    def describe(self) -> str:
        return f"set hostname {self.hostname}"


@record
class LoopbackUp(Step):
    op = 19

    def describe(self) -> str:
        return "bring up loopback"


@record
class Network(Step):
    """A network namespace of the host's with loopback up: a new one, or one that containers had before and in which nothing has
    ever happened (launcher/networks.c). Only for who has no capability in it."""

    op = 27

    def describe(self) -> str:
        return "new namespace: net, or one as new; bring up loopback"


@record
class _OfCgroup(Step):
    """Steps about one path of a hierarchy: the kept fd of the project's directory, below that, and the hierarchy's label."""

    slot: int
    path: str
    where: str

    def numbers(self) -> tuple[int, ...]:
        return (self.slot,)

    def strings(self) -> tuple[str | bytes, ...]:
        return (self.path,)


@record
class CgroupMake(_OfCgroup):
    op = 20

    def describe(self) -> str:
        return f"make cgroup {self.where}/{self.path}"


@record
class CgroupWrite(Step):
    op = 21
    slot: int
    path: str
    content: str
    optional: bool
    where: str

    def numbers(self) -> tuple[int, ...]:
        return self.slot, int(self.optional)

    def strings(self) -> tuple[str | bytes, ...]:
        return self.path, self.content

    def describe(self) -> str:
        return f"write {self.content!r} to {self.where}/{self.path}{' where it exists' if self.optional else ''}"


@record
class CgroupInto(_OfCgroup):
    """cgroup v2: the workload is born there (CLONE_INTO_CGROUP)."""

    op = 22

    def describe(self) -> str:
        return f"start the workload in cgroup {self.where}/{self.path}"


@record
class Pty(Step):
    op = 23
    uid: int
    gid: int
    rows: int
    columns: int
    console: bool = True

    def numbers(self) -> tuple[int, ...]:
        return self.uid, self.gid, self.rows, self.columns, self.console

    def describe(self) -> str:
        bound = ", bind it on /dev/console" if self.console else ""
        return f"make a pseudo-terminal ({self.columns}x{self.rows}){bound}"


@record
class Socket(Step):
    """A socket in the network that was joined; its fd is the answer."""

    op = 26
    domain: int
    type: int

    def numbers(self) -> tuple[int, ...]:
        return self.domain, self.type

    def describe(self) -> str:
        return "make a socket"


@record
class Devpts(Step):
    """Pseudo-terminals of the container's own; `gid` is inside."""

    op = 36
    gid: int

    def numbers(self) -> tuple[int, ...]:
        return (self.gid,)

    def describe(self) -> str:
        return f"mount devpts on /dev/pts (newinstance, ptmxmode=0666, mode=0620, gid={self.gid}, nosuid, noexec)"


@record
class Ids(Step):
    """What the container's ids are on the host: the only step in which two of one shape differ.

    Attributes:
        root, user, tty: (uid, gid) of root and of the workload, and the gid of the group tty.
        uid_map, gid_map: as in /proc/PID/uid_map.
    """

    op = 33
    root: tuple[int, int]
    user: tuple[int, int]
    tty: int
    uid_map: str
    gid_map: str

    def numbers(self) -> tuple[int, ...]:
        return *self.root, *self.user, self.tty

    def strings(self) -> tuple[str | bytes, ...]:
        return self.uid_map, self.gid_map

    def describe(self) -> str:
        uids, gids = (" and ".join(text.split("\n")) for text in (self.uid_map, self.gid_map))
        return f"ids of the host: uids {uids}; gids {gids}"


@record
class Owner(Step):
    op = 34
    root: bool

    def numbers(self) -> tuple[int, ...]:
        return (int(self.root),)

    def describe(self) -> str:
        return f"what is made from here on belongs to {'the container' if self.root else 'the host'}'s root"


@record
class IdMap(Step):
    """Makes a user namespace that nobody is in, as `owner`, a uid of the host; its fd comes with the answer.

    Attributes:
        projid_map: of project ids, where there is to be one: else whoever enters can write it, once and for all.
    """

    op = 35
    owner: int
    uid_map: str
    gid_map: str
    projid_map: str = ""

    def numbers(self) -> tuple[int, ...]:
        return (self.owner,)

    def strings(self) -> tuple[str | bytes, ...]:
        return self.uid_map, self.gid_map, self.projid_map

    def describe(self) -> str:
        return "make a user namespace"


@record
class UserNamespace(Step):
    """A user namespace with the maps of `Ids`, and others that belong to it. All but the user namespace are joined."""

    op = 24
    flags: int

    def numbers(self) -> tuple[int, ...]:
        return (self.flags,)

    def describe(self) -> str:
        return f"new user namespace, and owned by it: {_namespaces(self.flags)}; join these"


@record
class Init(Step):
    """How PID 1 behaves. Times are milliseconds, 0 for none."""

    op = 25
    flags: int
    orphan_grace: int
    orphan_signal: int
    timeout: int
    name: str

    def numbers(self) -> tuple[int, ...]:
        return self.flags, self.orphan_grace, self.orphan_signal, self.timeout

    def strings(self) -> tuple[str | bytes, ...]:
        return (self.name,)

    def describe(self) -> str:
        words = [f"init as {self.name}"]
        if self.flags & INIT_SIGNAL_GROUP:
            words.append("signals go to the group")
        if self.flags & INIT_EARLY:
            words.append("gone when it is empty")
        if self.flags & INIT_TRACE:
            words.append("drops its own rights before the workload runs")
        if self.flags & INIT_REFUSALS:
            words.append("notes what the seccomp filter refuses")
        if self.orphan_grace:
            words.append(f"orphans get {self.orphan_grace} ms")
        if self.timeout:
            words.append(f"time limit {self.timeout} ms")
        return ", ".join(words)


@record
class CpuTime(Step):
    """Has init enforce a limit of CPU time, as this cgroup file counts it.

    Attributes:
        limit: ms.
        cpus: how many the container can use at once, > 0: the limit can't be reached sooner than limit / cpus.
    """

    op = 30
    slot: int
    path: str
    limit: int
    cpus: int
    where: str

    def numbers(self) -> tuple[int, ...]:
        return self.slot, self.limit, self.cpus

    def strings(self) -> tuple[str | bytes, ...]:
        return (self.path,)

    def describe(self) -> str:
        return f"CPU time limit {self.limit} ms by {self.where}/{self.path}"


@record
class Unmount(Step):
    """Takes a tree out of the launcher's own mount namespace."""

    op = 31
    target: str

    def strings(self) -> tuple[str | bytes, ...]:
        return (self.target,)

    def describe(self) -> str:
        return f"unmount {self.target}"


@record
class Enter(Step):
    """Makes a directory of the mount namespace that was joined the root: see plan.CONTAINER_ROOT."""

    op = 32
    root: str

    def strings(self) -> tuple[str | bytes, ...]:
        return (self.root,)

    def describe(self) -> str:
        return f"enter the container's root ({self.root})"


@record
class CgroupJoin(_OfCgroup):
    op = 40

    def describe(self) -> str:
        return f"join cgroup by {self.where}/{self.path}"


@record
class Session(Step):
    op = 41

    def describe(self) -> str:
        return "new session"


@record
class Rlimit(Step):
    op = 42
    resource: int
    soft: int
    hard: int
    name: str

    def numbers(self) -> tuple[int, ...]:
        return self.resource, self.soft & (1 << 64) - 1, self.hard & (1 << 64) - 1

    def describe(self) -> str:
        return f"ulimit {self.name} {self.soft}:{self.hard}"


@record
class OomScoreAdj(Step):
    op = 43
    score: int

    def numbers(self) -> tuple[int, ...]:
        return (self.score & (1 << 64) - 1,)

    def describe(self) -> str:
        return f"oom_score_adj {self.score}"


@record
class Affinity(Step):
    op = 44
    cpus: frozenset[int]

    def strings(self) -> tuple[str | bytes, ...]:
        mask = sum(1 << cpu for cpu in self.cpus)
        return (mask.to_bytes((max(self.cpus) // 64 + 1) * 8, "little"),)

    def describe(self) -> str:
        return f"run on CPUs {','.join(map(str, sorted(self.cpus)))}"


@record
class PassFd(Step):
    """Right before `CloseFds`, which leaves it open: what has that number by then is closed."""

    op = 56
    slot: int
    number: int

    def numbers(self) -> tuple[int, ...]:
        return self.slot, self.number

    def describe(self) -> str:
        return f"give it the notification fd {self.number}"


@record
class CloseFds(Step):
    op = 45

    def describe(self) -> str:
        return "close every fd but stdio"


@record
class Umask(Step):
    op = 46
    mask: int

    def numbers(self) -> tuple[int, ...]:
        return (self.mask,)

    def describe(self) -> str:
        return f"umask {self.mask:04o}"


@record
class BoundingSet(Step):
    op = 47
    mask: int

    def numbers(self) -> tuple[int, ...]:
        return (self.mask,)

    def describe(self) -> str:
        return f"capability bounding set {self.mask:#x}" + (", securebits locked" if not self.mask else "")


@record
class SetIdentity(Step):
    op = 48
    uid: int
    gid: int
    groups: tuple[int, ...]
    keep_groups: bool = False  # the kernel would not let us: user_namespaces(7), /proc/PID/setgroups

    def numbers(self) -> tuple[int, ...]:
        return self.uid, self.gid, self.keep_groups

    def strings(self) -> tuple[str | bytes, ...]:
        return (struct.pack(f"={len(self.groups)}I", *self.groups),)

    def describe(self) -> str:
        groups = f", groups {','.join(map(str, self.groups))}" if self.groups else ", no other groups"
        groups = ", the groups that we are in" if self.keep_groups else groups
        return f"become uid {self.uid}, gid {self.gid}{groups}"


@record
class Capabilities(Step):
    op = 49
    mask: int
    ambient: int  # of them: those that are kept by an exec whoever the user is; what only root has, it gets by being root
    names: tuple[str, ...]

    def numbers(self) -> tuple[int, ...]:
        return self.mask, self.ambient

    def describe(self) -> str:
        return f"keep capabilities {', '.join(self.names)}" if self.names else "drop all capabilities"


@record
class Keyring(Step):
    op = 57

    def describe(self) -> str:
        return "a session keyring of its own"


@record
class NoNewPrivs(Step):
    op = 50

    def describe(self) -> str:
        return "no_new_privs"


@record
class WorkingDir(Step):
    op = 51
    path: str

    def strings(self) -> tuple[str | bytes, ...]:
        return (self.path,)

    def describe(self) -> str:
        return f"enter {self.path}"


@dataclass(frozen=True, slots=True)
class Exec(Step):
    op = 52
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]

    def numbers(self) -> tuple[int, ...]:
        return len(self.command), len(self.environment)

    def strings(self) -> tuple[str | bytes, ...]:
        return (
            "\0".join((*self.command, "")),
            "".join([f"{key}={value}\0" for key, value in self.environment]),
        )

    def describe(self) -> str:
        program = self.command[0]
        return f"exec {program if program.isprintable() else repr(program)}"


@record
class EnterUser(Step):
    """Enters the user namespace that comes as fd `slot`; with 0, the one that `UserNamespace` made or `Join` found."""

    op = 53
    slot: int = 0

    def numbers(self) -> tuple[int, ...]:
        return (self.slot,)

    def describe(self) -> str:
        return "enter the user namespace of its ids" if self.slot else "enter the user namespace"


@record
class Landlock(Step):
    """Walls that neither root nor a mount's flags take away: see landlock.py. Before the filter, which may refuse the calls, and
    while there is CAP_SYS_ADMIN: paths are opened that the user may not be able to.

    Attributes:
        rights: to write, LANDLOCK_ACCESS_FS_*, that nobody has but below these; 0: files are not its matter.
        scopes: LANDLOCK_SCOPE_*.
        below: paths below which all of the rights are given.
        files: paths below which those of the rights are given that a file can be given.
    """

    op = 54
    rights: int
    scopes: int
    below: tuple[str, ...]
    files: tuple[str, ...]

    def numbers(self) -> tuple[int, ...]:
        return self.rights, self.scopes

    def strings(self) -> tuple[str | bytes, ...]:
        return "".join(f"{path}\0" for path in self.below), "".join(f"{path}\0" for path in self.files)

    def describe(self) -> str:
        words = []
        if self.rights:
            words.append(f"write only below {', '.join(self.below)}, and to what there is below {', '.join(self.files)}")
        if self.scopes:
            words.append("connect to no abstract sockets but its own")
        return f"landlock: {'; '.join(words)}"


@record
class Seccomp(Step):
    """Installs a filter: without no_new_privs, CAP_SYS_ADMIN must still be there."""

    op = 55
    program: bytes
    flags: int
    profile: str
    ignored: tuple[str, ...] = ()

    def numbers(self) -> tuple[int, ...]:
        return (self.flags,)

    def strings(self) -> tuple[str | bytes, ...]:
        return (self.program,)

    def describe(self) -> str:
        ignored = ""
        if self.ignored:
            shown, more = ", ".join(self.ignored[:3]), len(self.ignored) - 3
            ignored = f", without {shown}{f' and {more} more' if more > 0 else ''}"
        return f"seccomp: {self.profile}, {len(self.program) // 8} instructions{ignored}"


@record
class Counter(_OfCgroup):
    """A file of the cgroups that init reads back itself, as `Read` does where it has not."""

    op = 37

    def describe(self) -> str:
        return f"open {self.where}/{self.path}"


@record
class Read(_OfCgroup):
    op = 60

    def describe(self) -> str:
        return f"read {self.where}/{self.path}"


@dataclass(frozen=True, slots=True)
class Remove(Step):
    """Removes a cgroup or a file. Patient: tried anew for two seconds while it is busy."""

    op = 61
    slot: int
    path: str
    where: str
    patient: bool = True

    def numbers(self) -> tuple[int, ...]:
        return self.slot, int(self.patient)

    def strings(self) -> tuple[str | bytes, ...]:
        return (self.path,)

    def describe(self) -> str:
        return f"remove {self.where}/{self.path}"
