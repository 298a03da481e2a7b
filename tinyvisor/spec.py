"""What the user wants, as frozen dataclasses in compose terms. Wrong values raise `SpecError` at construction.

Pure: nothing here looks at the host. Units are seconds (float) and bytes (int).
Source: compose-spec 05-services.md, deploy.md; OCI runtime-spec config.md for root, namespaces and masked paths.
"""

from __future__ import annotations

import math
import os
import re
import signal as signals
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, fields, replace
from functools import cache
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

from tinyvisor.errors import SpecError
from tinyvisor.pattern import compile_line
from tinyvisor.units import parse_duration, parse_size, signal_name

RootMethod = Literal["pivot", "chroot"]
RestartCondition = Literal["no", "always", "on-failure", "unless-stopped"]
Condition = Literal["service_started", "service_healthy", "service_completed_successfully"]
OnUnhealthy = Literal["none", "restart", "stop"]
Overlap = Literal["skip", "queue"]
LOG_FILES = ("local", "json-file", "raw")
"""Drivers that write files."""

LogDriver = Literal["local", "json-file", "raw", "syslog", "journald", "none"]
UsernsMode = Literal["auto", "host", "keep-id"]

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
"""A container's, service's or project's name: it becomes a cgroup directory and a log file."""

DEFAULT_NAME = "container"
"""What a spec is called that was given no name; each of its containers is then called after its number, too."""

NAMESPACES = frozenset({"pid", "mount", "uts", "ipc", "net", "cgroup", "user", "time"})
DEFAULT_NAMESPACES = frozenset({"pid", "mount", "uts", "ipc", "net", "cgroup", "user"})

ULIMITS: Mapping[str, int] = MappingProxyType(
    {
        "cpu": 0, "fsize": 1, "data": 2, "stack": 3, "core": 4, "rss": 5, "nproc": 6, "nofile": 7,
        "memlock": 8, "as": 9, "locks": 10, "sigpending": 11, "msgqueue": 12, "nice": 13, "rtprio": 14, "rttime": 15,
    }
)  # fmt: skip
"""ulimit name → RLIMIT number (asm-generic/resource.h)."""

CAPABILITIES: tuple[str, ...] = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip
"""Capability names without CAP_, at the index that linux/capability.h gives them."""

SERVICE_CAPABILITIES = frozenset(
    {
        "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID",
        "SYS_CHROOT",
    }
)  # fmt: skip
"""What root has in a service that has a user namespace: Docker's list (moby daemon/pkg/oci/defaults.go) without MKNOD and
AUDIT_WRITE, which count nowhere but in the host's user namespace, and NET_RAW: a network of the container's own has nothing but
loopback, over any other it has no power, and it opens packet sockets, of which the kernel has had many a hole."""

# moby daemon/pkg/oci/defaults.go, and dynamic_debug, which uid 0 can write; paths that a kernel lacks are passed over.
DEFAULT_MASKED_PATHS = (
    "/proc/acpi", "/proc/asound", "/proc/dynamic_debug", "/proc/interrupts", "/proc/kcore", "/proc/keys",
    "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
)  # fmt: skip
DEFAULT_READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

PROC_OPTIONS = (
    "subset=pid", "hidepid=0", "hidepid=1", "hidepid=2", "hidepid=4", "hidepid=off", "hidepid=noaccess", "hidepid=invisible",
    "hidepid=ptraceable",
)  # fmt: skip
"""Source: proc(5) "Mount options"."""


def check_proc_options(text: str) -> None:
    """Raises ValueError for what is not a list of `PROC_OPTIONS`."""
    for option in text.split(",") if text else ():
        if option not in PROC_OPTIONS:
            raise ValueError(f"proc-opts: {option!r} is not known; expected {', '.join(PROC_OPTIONS)}")


MAX_CPUS = 8192
"""As many as Linux can have (NR_CPUS); what the cgroup's files take ends above."""

_OF_A_NETWORK = frozenset({"NET_ADMIN", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_RAW"})

MAX_SCALE = 1000
"""Copies of one service."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def parse_signal(value: int | str) -> int:
    """A signal's number from ``15``, ``"TERM"``, ``"SIGTERM"``, ``"RTMIN+3"``.

    Raises:
        ValueError: no such signal.
    """
    text = str(value).strip().upper().removeprefix("SIG")
    base, plus, offset = text.partition("+")
    try:
        number = int(text) if text.isdigit() else signals.Signals[f"SIG{base}"] + (int(offset) if plus else 0)
    except (KeyError, ValueError):
        raise ValueError(f'"{value}" is not a signal; expected a name such as TERM or a number from 1 to 64') from None
    if (plus and base != "RTMIN") or not 1 <= number <= 64:
        raise ValueError(f'"{value}" is not a signal; expected a name such as TERM or a number from 1 to 64')
    return int(number)


def _is_signal(name: str) -> bool:
    """Whether it is one's name as `units.signal_name` has it."""
    try:
        return signal_name(parse_signal(name)) == name
    except ValueError:
        return False


def parse_capability(value: str) -> str:
    """``"cap_net_raw"`` → ``"NET_RAW"``; ``"ALL"`` stays.

    Raises:
        ValueError: no such capability.
    """
    name = value.strip().upper().removeprefix("CAP_")
    if name != "ALL" and name not in CAPABILITIES:
        raise ValueError(f'"{value}" is not a capability; see capabilities(7)')
    return name


_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "text"),
    "bool": ((bool,), "True or False"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bytes": ((bytes,), "bytes"),
    "Path": ((str, os.PathLike), "a path"),
    "str | Path": ((str, os.PathLike), "a path, default or unconfined"),
    "Mapping[str, str]": ((Mapping,), "a mapping"),
    "Mapping[str, Ulimit]": ((Mapping,), "a mapping"),
    "Mapping[str, Dependency]": ((Mapping, frozenset, set, list, tuple), "a mapping, or names"),
    "frozenset[str]": ((frozenset, set, list, tuple), "a set"),
    "frozenset[int]": ((frozenset, set, list, tuple), "a set"),
    "frozenset[int | str]": ((frozenset, set, list, tuple), "a set"),
    "tuple[Hook, ...]": ((list, tuple), "a list of Hook objects"),
    "tuple[tuple[str, int], ...]": ((list, tuple), "a list of devices and rates"),
}
_PARTS = frozenset({"Spec", "Blkio", "Backoff", "Schedule", "RestartPolicy", "Http", "Tcp", "Healthcheck", "Logging"})
"""Classes of this module that are the kind of a field."""

_KIND_OF: dict[type, tuple[tuple[str, tuple[type, ...], str], ...]] = {}


def _check_kinds(value: Any, where: str = "") -> None:
    """Raises `SpecError` for a field whose value is not of the annotated type; what is inside collections is not looked at.

    Args:
        where: what the error says: the field's name behind ``"backoff."``; nothing but ``"volumes"``.
    """
    for name, types, words in _KIND_OF.get(type(value)) or _kinds(type(value)):
        given = getattr(value, name)
        fits = isinstance(given, types) and ((given is not True and given is not False) or bool in types)
        if not fits or (type(given) is float and given != given):
            at = f"{where}{name}" if not where or where.endswith(".") else where
            raise SpecError(at, f"expected {words}, got {given!r:.100}")


def _kinds(of: type[Any]) -> tuple[tuple[str, tuple[type, ...], str], ...]:
    found = []
    for item in fields(of):
        kind, optional = str(item.type).removesuffix(" | None"), str(item.type).endswith(" | None")
        types, words = ((globals()[kind],), f"a {kind} object") if kind in _PARTS else _KINDS.get(kind, ((), ""))
        if types:
            found.append((item.name, (*types, type(None)) if optional else types, words))
    kinds = _KIND_OF[of] = tuple(found)
    return kinds


@dataclass(frozen=True, slots=True)
class Volume:
    """A host path seen inside (bind mount, with everything mounted below it).

    Attributes:
        source: absolute host path; must exist at start.
        target: absolute path inside; made where missing.
        read_only: applies to everything mounted below, too.
    """

    source: Path
    target: str
    read_only: bool = False

    def __post_init__(self) -> None:
        _check_kinds(self, "volumes")
        _absolute("volumes", self.target)
        if not Path(self.source).is_absolute():
            raise SpecError("volumes", f'the source "{self.source}" must be an absolute path')
        _no_nul("volumes", str(self.source))
        object.__setattr__(self, "source", Path(self.source))


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """A tmpfs of its own inside the container, nosuid and nodev.

    Attributes:
        target: absolute path inside.
        size: bytes, > 0.
        inodes: files and directories at most, > 0.
        mode: of its root directory.
        executable: whether programs may be run from it.
    """

    target: str
    size: int = 64 << 20
    inodes: int = 65536
    mode: int = 0o1777
    executable: bool = True

    def __post_init__(self) -> None:
        _check_kinds(self, "tmpfs")
        _absolute("tmpfs", self.target)
        _positive("tmpfs", self.size)
        _positive("tmpfs", self.inodes)
        if not 0 <= self.mode <= 0o7777:
            raise SpecError("tmpfs", "expected a mode from 0 to 0o7777")


SECRETS = "/run/secrets"
"""Where a container has its secrets, each a file."""

NOTIFY_DIRECTORY = "/run/notify"
NOTIFY_SOCKET = f"{NOTIFY_DIRECTORY}/socket"

MAX_SECRET = 512_000
"""Bytes of one secret, as in Docker's swarm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A file below `SECRETS`, on a tmpfs of the container's own that is read-only and, where the kernel can, never swapped.

    Attributes:
        target: the file's name there.
        file: absolute host path that it is read from at each start; must be a regular file of `MAX_SECRET` bytes at most.
        content: what it is, where there is no `file`; shown nowhere, and not to be stored (``metadata["stored"]``).
        environment: the variable that `content` came from.
        digest: stands in for `content` where two are compared; made of it. With one of these two, `content` may be unknown, and
            the secret can't be had then.
        uid, gid: its owner, inside; None: the container's user.
        mode: permission bits.
    """

    target: str
    file: Path | None = None
    content: bytes | None = field(default=None, repr=False, compare=False, metadata={"stored": False})
    environment: str | None = None
    digest: str = field(default="", repr=False)
    uid: int | None = None
    gid: int | None = None
    mode: int = 0o444

    def __post_init__(self) -> None:
        _check_kinds(self, "secrets")
        _no_nul("secrets", self.target)
        if not self.target or "/" in self.target or self.target in (".", "..") or len(os.fsencode(self.target)) > 255:
            raise SpecError("secrets", f'"{self.target}" is not the name of a file in {SECRETS}')
        if (self.file is None) == (self.content is None and self.environment is None and not self.digest):
            raise SpecError("secrets", "expected either a file or a content")
        if self.file is not None:
            if not Path(self.file).is_absolute():
                raise SpecError("secrets", f'"{self.file}" must be an absolute path')
            _no_nul("secrets", str(self.file))
            object.__setattr__(self, "file", Path(self.file))
        if self.content is not None:
            if len(self.content) > MAX_SECRET:
                raise SpecError("secrets", f"expected {MAX_SECRET} bytes at most")
            from hashlib import sha256  # here, since few need it and it is slow to import

            object.__setattr__(self, "digest", sha256(self.content).hexdigest())
        for name in ("uid", "gid"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1 << 32:
                raise SpecError("secrets", f"expected a {name} of 0 or more, got {value!r}")
        if not 0 <= self.mode <= 0o777:
            raise SpecError("secrets", "expected a mode from 0 to 0o777")


@dataclass(frozen=True, slots=True)
class Ulimit:
    """A resource limit pair; -1 is unlimited. Units are setrlimit(2)'s."""

    soft: int
    hard: int

    def __post_init__(self) -> None:
        _check_kinds(self, "ulimits")
        if self.soft < -1 or self.hard < -1:
            raise SpecError("ulimits", "expected 0 or more, or -1 for unlimited")
        if self.hard != -1 and (self.soft == -1 or self.soft > self.hard):
            raise SpecError("ulimits", f"soft ({self.soft}) must not be above hard ({self.hard})")


@dataclass(frozen=True, slots=True)
class Blkio:
    """Block I/O limits, by device.

    Attributes:
        weight: 10..1000, or None.
        read_bps, write_bps: (device path, bytes per second) pairs.
        read_iops, write_iops: (device path, operations per second) pairs.
    """

    weight: int | None = None
    read_bps: tuple[tuple[str, int], ...] = ()
    write_bps: tuple[tuple[str, int], ...] = ()
    read_iops: tuple[tuple[str, int], ...] = ()
    write_iops: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        _check_kinds(self, "blkio_config.")
        if self.weight is not None and not 10 <= self.weight <= 1000:
            raise SpecError("blkio_config.weight", "expected 10 to 1000")
        for name in ("read_bps", "write_bps", "read_iops", "write_iops"):
            for pair in getattr(self, name):
                if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                    raise SpecError(f"blkio_config.device_{name}", f"expected a device and a rate, got {pair!r:.100}")
                _absolute(f"blkio_config.device_{name}", pair[0])
                _positive(f"blkio_config.device_{name}", pair[1])


SeccompAction = Literal["errno", "kill", "log", "trace"]
LandlockMode = Literal["default", "unconfined"]
RuleAction = Literal["deny", "allow", "log"]
_ARGUMENT = re.compile(
    r"\s*([0-5])\s*(==|!=|<=|<|>=|>|&)\s*(0x[0-9a-fA-F]{1,16}|[0-9]{1,20})(?:\s*==\s*(0x[0-9a-fA-F]{1,16}|[0-9]{1,20}))?\s*"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyscallRule:
    """What is done with some system calls, before the profile is asked; of several that fit, the first decides.

    The filter sees numbers only, never what a pointer points to: nobody can change those between check and use. Rules with `path`
    or `address` are for a tracer (`Runtime.trace`, `tinyvisor trace`), which is asked for what the others let pass, and reads
    memory: another thread, or who moves a link, may change what was read before the kernel reads it again. They tell what a
    program does without something; they are no wall against one that is hostile.

    Attributes:
        syscall: names and classes as in strace: ``"connect"``, ``"%network,ptrace"``, ``"/^mq_"``.
        action: ``"deny"``: EPERM, or what `Spec.seccomp_action` says; ``"allow"``: even where the profile refuses it;
            ``"log"``: it is made, and in `Exit.violations` as ``allowed``.
        args: conditions, of which all must hold: ``"INDEX OPERATOR NUMBER"``, e.g. ``"0 == 10"``, ``"2 & 0x40 == 0x40"``;
            unsigned and of 64 bits, with == != < <= > >=, and & for a mask.
        path: a pattern as of fnmatch(3), for any of the paths that the call names, as the container sees them, absolute, with no
            links followed; ``""``: whatever it is. What can't be read is denied.
        address: likewise, for a socket's: ``"127.0.0.1:*"``, ``"unix:/run/*"``. Not seen: sendmmsg's, io_uring's.

    Raises:
        SpecError: ``on_syscall.NAME``, for a value that is not one.
    """

    syscall: str
    action: str
    args: tuple[str, ...] = ()
    path: str = ""
    address: str = ""

    @property
    def reads(self) -> bool:
        """It is for a tracer."""
        return bool(self.path or self.address)

    def __post_init__(self) -> None:
        _check_kinds(self, "on_syscall.")
        for name in ("path", "address"):
            _no_nul(f"on_syscall.{name}", getattr(self, name))
        if not re.fullmatch(r"!?[\x21-\x7e]{1,4096}", self.syscall):
            raise SpecError("on_syscall.syscall", f"expected names of system calls, got {self.syscall!r}")
        if self.action not in get_args(RuleAction):
            raise SpecError("on_syscall.action", f"{self.action!r} is not known; expected deny, allow or log")
        if isinstance(self.args, str) or not isinstance(self.args, Iterable):
            raise SpecError("on_syscall.args", f"expected a list, got {self.args!r}")
        object.__setattr__(self, "args", tuple(self.args))
        self.conditions()

    def conditions(self) -> tuple[tuple[int, str, int, int], ...]:
        """`args` as (index, operator, value, mask)."""
        return tuple(map(_argument, self.args))


def _argument(text: object) -> tuple[int, str, int, int]:
    match = _ARGUMENT.fullmatch(text) if isinstance(text, str) else None
    if match is None or (match[2] == "&") != (match[4] is not None):
        raise SpecError("on_syscall.args", f'{text!r} is no condition; expected INDEX OPERATOR NUMBER, as in "0 == 10"')
    number, second = int(match[3], 0), int(match[4] or "0", 0)
    if max(number, second) >> 64 or second & ~number:
        raise SpecError("on_syscall.args", f"{text!r} can't hold: numbers are of 64 bits, and of the mask no other bits are left")
    if match[2] == "&":
        return int(match[1]), "&", second, number
    return int(match[1]), match[2], number, (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One container. Every field is keyword-only; `with_` makes a changed copy.

    Attributes:
        command: the program and its arguments, without NUL; the program is searched in PATH inside the container.
        name: unique among the running containers of one runtime; the default one gets a number appended.
        environment: the workload's whole environment; PATH, HOME and HOSTNAME are filled in where missing.
        working_dir: absolute path inside; None is ``/``.
        user: ``"uid"``, ``"uid:gid"``, ``"name"``, ``"name:group"`` (looked up in the container's /etc/passwd and
            /etc/group); None is root.
        group_add: supplementary groups, numbers or names.
        hostname: None takes `name`.
        rootfs: a directory or tarball; None is the host view.
        root_method: ``pivot`` or ``chroot``: two words for the same. The launcher has pivoted, once for all containers, away from
            the host's root.
        read_only: no writable layer: the root is read-only, /tmp, /run, /dev/shm stay writable tmpfs.
        storage_size, storage_inodes: bound of the writable layer, bytes and inodes.
        volumes, tmpfs: mounted in the order of their depth.
        secrets: files in `SECRETS`.
        notify_socket: there is a socket in ``/run/notify`` for the messages of sd_notify(3), and NOTIFY_SOCKET says so.
        watchdog: seconds within which it is to send ``WATCHDOG=1`` there, as WATCHDOG_USEC says, >= 0.001; None: never.
        notification_fd: 3..255: a pipe's write end, to say by a newline that it is ready; None: none.
        namespaces: those to make new; ``pid`` and ``mount`` can't be left out (nothing could be cleaned up for sure).
        userns_mode: which ids of the host the container's are. ``"auto"``: 0 to 65535 are a range of its own, and its root is
            nobody outside; ``"host"``: the same, without a user namespace; ``"keep-id"``: as auto, but the user who started us
            (not root: the one behind sudo) is the same inside, and the default `user`. None: ``auto`` where `namespaces` has
            ``user``, else ``host``.
        network_mode: ``"none"``: loopback only; ``"host"``: no isolation; ``"service:NAME"``: NAME's namespace.
        pids_limit: processes and threads at most, > 0; None unlimited.
        mem_limit: bytes, > 0, with no swap on top; None unlimited.
        cpus: CPU time per wall time, > 0; None unlimited.
        cpuset: CPU numbers to run on; empty is all.
        blkio: block I/O limits; None unlimited.
        ulimits: by name as in `ULIMITS`.
        shm_size: bytes of /dev/shm.
        capabilities: kept capabilities, names without CAP_; all others are dropped. Whoever the user is has them.
        root_capabilities: kept where the user is root, some of `SERVICE_CAPABILITIES`; of another user's programs only set-id
            ones of root's get them, without `no_new_privs`. None may be given where root inside is the host's.
        no_new_privs: set-id programs and file capabilities give nothing.
        seccomp: ``"default"`` (our profile), ``"unconfined"``, or the path of a profile in the OCI's JSON.
        seccomp_action: what happens on a call that the filter refuses, which is then in `Exit.violations`: ``"errno"``: it fails
            as the profile says; ``"kill"``: its process is killed; ``"log"``: it is made all the same; ``"trace"``: left to a
            tracer, ENOSYS without one, and not in `Exit.violations`. None: as the profile says, and nothing is noted.
        on_syscall: rules that come before the profile's.
        proc_opts: how /proc is mounted, as proc(5) has it: ``"hidepid=2,subset=pid"``; empty: as it comes.
        landlock: ``"default"``: where the kernel has it, a second wall around what ``read_only`` says, and one around the host's
            abstract sockets with ``network_mode`` host; ``"unconfined"``: none.
        new_network: its network namespace is made anew, also where it could have one in which others were and nothing happened
            (SECURITY.md): a fifth more for a start.
        masked_paths, readonly_paths: absolute paths inside; missing ones are passed over.
        umask: of the workload.
        oom_score_adj: -1000..1000; None is inherited.
        stop_signal: a signal number.
        stop_grace_period: seconds between `stop_signal` and the kill, >= 0.
        orphan_grace_period: seconds that the other processes get to finish once the workload has ended, >= 0.
        signal_group: signals go to the workload's process group instead of the workload alone.
        tty: stdio is a pseudo-terminal of the container's own.
        stdin_open: stdin stays open; otherwise it is /dev/null.
        timeout: wall seconds after which everything is killed and the status is ``time_limit``; None unlimited.
        cpu_time: CPU seconds, user and system of all processes together, after which everything is killed and the status
            is ``time_limit``; None unlimited.
        output_limit: bytes of stdout and stderr each that are kept; a container that writes more is killed and its status is
            ``output_limit``. For output that tinyvisor reads (`Runtime.run` with ``capture_...``); None unlimited.
    """

    command: tuple[str, ...]
    name: str = DEFAULT_NAME
    environment: Mapping[str, str] = field(default_factory=dict)
    working_dir: str | None = None
    user: str | None = None
    group_add: tuple[str, ...] = ()
    hostname: str | None = None
    rootfs: Path | None = None
    root_method: RootMethod = "pivot"
    read_only: bool = False
    storage_size: int = 256 << 20
    storage_inodes: int = 65536
    volumes: tuple[Volume, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    secrets: tuple[Secret, ...] = ()
    notify_socket: bool = False
    watchdog: float | None = None
    notification_fd: int | None = None
    namespaces: frozenset[str] = DEFAULT_NAMESPACES
    userns_mode: str | None = None
    network_mode: str = "none"
    pids_limit: int | None = None
    mem_limit: int | None = None
    cpus: float | None = None
    cpuset: frozenset[int] = frozenset()
    blkio: Blkio | None = None
    ulimits: Mapping[str, Ulimit] = field(default_factory=dict)
    shm_size: int = 64 << 20
    capabilities: frozenset[str] = frozenset()
    root_capabilities: frozenset[str] = frozenset()
    no_new_privs: bool = True
    seccomp: str | Path = "default"
    seccomp_action: str | None = None
    on_syscall: tuple[SyscallRule, ...] = ()
    proc_opts: str = ""
    landlock: str = "default"
    new_network: bool = False
    masked_paths: tuple[str, ...] = DEFAULT_MASKED_PATHS
    readonly_paths: tuple[str, ...] = DEFAULT_READONLY_PATHS
    umask: int = 0o022
    oom_score_adj: int | None = None
    stop_signal: int = int(signals.SIGTERM)
    stop_grace_period: float = 10.0
    orphan_grace_period: float = 0.0
    signal_group: bool = False
    tty: bool = False
    stdin_open: bool = False
    timeout: float | None = None
    cpu_time: float | None = None
    output_limit: int | None = None

    def __post_init__(self) -> None:
        _check_kinds(self)
        _tuples(self, ("command", "group_add", "volumes", "tmpfs", "secrets", "masked_paths", "readonly_paths", "on_syscall"))
        for name in ("namespaces", "cpuset", "capabilities", "root_capabilities"):
            object.__setattr__(self, name, frozenset(getattr(self, name)))
        if self.rootfs is not None:
            _no_nul("rootfs", os.fspath(self.rootfs))
            object.__setattr__(self, "rootfs", Path(self.rootfs))
        if self.seccomp not in ("default", "unconfined"):
            object.__setattr__(self, "seccomp", Path(self.seccomp))
        self._check_process()
        self._check_root()
        self._check_limits()
        self._check_isolation()

    def with_(self, **changes: Any) -> Spec:
        """A copy with `changes`; raises `SpecError` as construction does. Cheap where only `command`, `environment` or `name`
        changes: what is known to be right is not checked again."""
        if changes.keys() <= _CHEAP.keys():
            return self._with(changes)
        check_fields(changes.keys())
        return replace(self, **changes)

    def _with(self, changes: Mapping[str, Any]) -> Spec:
        copy = object.__new__(Spec)
        for put, value in zip(_PUTS, _values(self), strict=True):
            put(copy, value)
        for name, value in changes.items():
            if name != "command" and not isinstance(value, Mapping if name == "environment" else str):
                raise SpecError(name, f"expected {'a mapping' if name == 'environment' else 'text'}, got {value!r}")
            object.__setattr__(copy, name, value)
        if "command" in changes:
            _tuples(copy, ("command",))
        for name in changes:
            _CHEAP[name](copy)
        return copy

    def _check_command(self) -> None:
        for word in self.command:
            _no_nul("command", word)
        if not self.command or not self.command[0]:
            raise SpecError("command", "expected a program to run")

    def _check_environment(self) -> None:
        _check_environment(self.environment)

    def _check_name(self) -> None:
        check_name("name", self.name)

    def _check_process(self) -> None:
        self._check_command()
        self._check_environment()
        self._check_name()
        if self.hostname is not None and not re.fullmatch(r"[a-zA-Z0-9_.-]{1,64}", self.hostname):
            raise SpecError("hostname", "expected 1 to 64 letters, digits, dots, dashes or underscores")
        if self.working_dir is not None:
            _absolute("working_dir", self.working_dir)
        _check_user(self.user)
        for group in self.group_add:
            if not isinstance(group, str) or not re.fullmatch(r"[a-zA-Z0-9_.$-]+", group):
                raise SpecError("group_add", f'"{group}" is not a group; expected a number or a name')
        if not 1 <= self.stop_signal <= 64:
            raise SpecError("stop_signal", "expected a signal from 1 to 64")
        for name in ("stop_grace_period", "orphan_grace_period"):
            if not 0 <= getattr(self, name) < 1e9:
                raise SpecError(name, "expected seconds, 0 or more")
        if not 0 <= self.umask <= 0o777:
            raise SpecError("umask", "expected 0 to 0o777")

    def _check_root(self) -> None:
        if self.root_method not in get_args(RootMethod):
            raise SpecError("root_method", "expected pivot or chroot")
        _positive("storage_opt.size", self.storage_size)
        _positive("storage_opt.inodes", self.storage_inodes)
        _positive("shm_size", self.shm_size)
        for name, kind in (("volumes", Volume), ("tmpfs", Tmpfs), ("secrets", Secret)):
            for item in getattr(self, name):
                if not isinstance(item, kind):
                    raise SpecError(name, f"expected {kind.__name__} objects, got {item!r}")
        targets = [volume.target for volume in self.volumes] + [tmpfs.target for tmpfs in self.tmpfs]
        names = [secret.target for secret in self.secrets]
        if len(set(names)) < len(names):
            raise SpecError("secrets", f'there are two called "{next(name for name in names if names.count(name) > 1)}"')
        for there, own in ((self.secrets, SECRETS), (self.notify_socket, NOTIFY_DIRECTORY)):
            taken = next((target for target in targets if _is_at_or_below(target, own)), None)
            if there and taken is not None:
                raise SpecError("volumes", f'"{taken}" is where {"the secrets are" if own == SECRETS else "NOTIFY_SOCKET is"}')
        for target in targets:
            if targets.count(target) > 1:
                raise SpecError("volumes", f'"{target}" is mounted twice')
        for name, default in (("masked_paths", DEFAULT_MASKED_PATHS), ("readonly_paths", DEFAULT_READONLY_PATHS)):
            paths = getattr(self, name)
            for path in () if paths is default else paths:
                _absolute(name, path)

    def _check_limits(self) -> None:
        if self.watchdog is not None and not (self.notify_socket and 0.001 <= self.watchdog < 1e9):
            raise SpecError("watchdog", "expected 1 ms or more" if self.notify_socket else "needs notify_socket")
        if self.notification_fd is not None and not 3 <= self.notification_fd <= 255:
            raise SpecError("notification_fd", "expected an fd from 3 to 255")
        for name in ("pids_limit", "mem_limit", "cpus", "timeout", "cpu_time", "output_limit"):
            value = getattr(self, name)
            if value is not None:
                _positive(name, value)
        if self.cpus is not None and not 0.01 <= self.cpus <= MAX_CPUS:
            raise SpecError("cpus", f"expected 0.01 to {MAX_CPUS}")
        for name in self.ulimits:
            if name not in ULIMITS:
                raise SpecError("ulimits", f'"{name}" is not a limit; expected one of {", ".join(ULIMITS)}')
        for cpu in self.cpuset:
            if isinstance(cpu, bool) or not isinstance(cpu, int) or not 0 <= cpu < MAX_CPUS:
                raise SpecError("cpuset", f"expected CPU numbers from 0 to {MAX_CPUS - 1}")
        if self.oom_score_adj is not None and not -1000 <= self.oom_score_adj <= 1000:
            raise SpecError("oom_score_adj", "expected -1000 to 1000")

    def _check_isolation(self) -> None:
        unknown = self.namespaces - NAMESPACES
        if unknown:
            raise SpecError(
                "namespaces", f'"{min(map(str, unknown))}" is not a namespace; expected {", ".join(sorted(NAMESPACES))}'
            )
        missing = {"pid", "mount"} - self.namespaces
        if missing:
            raise SpecError("namespaces", f"{min(missing)} can't be left out: nothing could be ended for sure")
        self._check_userns()
        if self.network_mode not in ("none", "host") and not re.fullmatch(rf"service:{NAME.pattern}", self.network_mode):
            raise SpecError("network_mode", f'"{self.network_mode}" is not known; expected none, host or service:NAME')
        _no_nul("security_opt", str(self.seccomp))
        try:
            check_proc_options(self.proc_opts)
        except ValueError as error:
            raise SpecError("security_opt", str(error)) from None
        if self.landlock not in get_args(LandlockMode):
            raise SpecError("landlock", f'"{self.landlock}" is not known; expected default or unconfined')
        self._check_refusals()
        for capability in self.capabilities:
            if capability not in CAPABILITIES:
                raise SpecError("cap_add", f'"{capability}" is not a capability; see capabilities(7)')
        self._check_root_capabilities()

    def _check_root_capabilities(self) -> None:
        other = sorted(map(str, self.root_capabilities - SERVICE_CAPABILITIES))
        if other:
            raise SpecError("root_capabilities", f'"{other[0]}" is none of {", ".join(sorted(SERVICE_CAPABILITIES))}')
        if self.root_capabilities and self.userns == "host":
            raise SpecError("root_capabilities", "root inside is the host's: what it is to have is named in capabilities")

    def _check_refusals(self) -> None:
        if self.seccomp_action is not None and self.seccomp_action not in get_args(SeccompAction):
            raise SpecError("seccomp.action", f'"{self.seccomp_action}" is not known; expected errno, kill, log or trace')
        for rule in self.on_syscall:
            if not isinstance(rule, SyscallRule):
                raise SpecError("on_syscall", f"expected SyscallRule objects, got {rule!r}")
        filtering = [rule for rule in self.on_syscall if not rule.reads]
        if self.seccomp_action is not None and self.seccomp == "unconfined" and not filtering:
            raise SpecError("seccomp.action", 'there is no filter that refuses anything: "security_opt" says seccomp=unconfined')
        if (self.seccomp_action or self.on_syscall) and "SYS_PTRACE" in self.capabilities:
            raise SpecError("cap_add", "SYS_PTRACE has power over init, which says what becomes of refused system calls")

    def _check_userns(self) -> None:
        if self.userns_mode is not None and self.userns_mode not in get_args(UsernsMode):
            raise SpecError("userns_mode", f'"{self.userns_mode}" is not known; expected auto, host or keep-id')
        if self.userns_mode in ("auto", "keep-id") and "user" not in self.namespaces:
            raise SpecError("userns_mode", f'{self.userns_mode} needs a user namespace, which "namespaces" leaves out')
        if self.userns_mode == "host" and "user" in self.namespaces and self.namespaces != DEFAULT_NAMESPACES:
            raise SpecError("userns_mode", 'host is without the user namespace that "namespaces" asks for')
        useless = (
            sorted(_OF_A_NETWORK & self.possible_capabilities) if self.network_mode == "host" and self.userns != "host" else ()
        )
        if useless:
            raise SpecError("cap_add", f'{useless[0]} has no power over the host\'s network; use "userns_mode: host", too')

    @property
    def possible_capabilities(self) -> frozenset[str]:
        """All that any program in it could have."""
        return self.capabilities | self.root_capabilities

    @property
    def in_host_network(self) -> bool:
        """Whether its network is the host's."""
        return self.network_mode == "host" or (self.network_mode == "none" and "net" not in self.namespaces)

    @property
    def userns(self) -> UsernsMode:
        """`userns_mode`, or what `namespaces` says where it is not given."""
        if self.userns_mode is None:
            return "auto" if "user" in self.namespaces else "host"
        return cast(UsernsMode, self.userns_mode)


_FIELD_NAMES = frozenset(item.name for item in fields(Spec))
_ELSEWHERE = {"cwd": "working_dir", "env": "environment", "memory": "mem_limit", "cap_add": "capabilities"}
"""What a field is called by subprocess and docker."""


def check_fields(names: Set[str]) -> None:
    """Raises `SpecError` for a name that no field of `Spec` has."""
    unknown = min(names - _FIELD_NAMES, default=None)
    if unknown is not None:
        from difflib import get_close_matches  # only where something is wrong

        near = [_ELSEWHERE[unknown]] if unknown in _ELSEWHERE else get_close_matches(unknown[:64], _FIELD_NAMES, n=1)
        raise SpecError(unknown, "there is no such field" + "".join(f' (did you mean "{name}"?)' for name in near))


# The slots' own functions: an eighth of what dataclasses.replace costs, whose checks of every field are not needed again.
_values = attrgetter(*(item.name for item in fields(Spec)))
_PUTS: tuple[Callable[[Spec, Any], None], ...] = tuple(getattr(Spec, item.name).__set__ for item in fields(Spec))
_CHEAP: Mapping[str, Callable[[Spec], None]] = {
    "command": Spec._check_command,
    "environment": Spec._check_environment,
    "name": Spec._check_name,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one job, as `Runtime.run` takes them: numbers in base units, or text with units. None is unlimited.

    Attributes:
        memory: bytes or ``"64m"``, with no swap on top (`Spec.mem_limit`).
        pids: processes and threads at once (`Spec.pids_limit`).
        wall: seconds or ``"2s"``, from exec (`Spec.timeout`).
        cpu_time: CPU seconds or ``"500ms"`` of all processes together (`Spec.cpu_time`).
        cpus: CPU time per wall time (`Spec.cpus`).
        output: bytes or ``"1m"`` of stdout and stderr each (`Spec.output_limit`).
        disk: bytes or ``"256m"`` of the writable layer, and of the directory that ``files`` makes (`Spec.storage_size`).
        files: files and directories in them (`Spec.storage_inodes`).
        open_files: file descriptors per process (ulimit nofile).

    Raises:
        SpecError: ``limits.NAME``, for a value that is not one.
    """

    memory: int | str | None = None
    pids: int | None = None
    wall: float | str | None = None
    cpu_time: float | str | None = None
    cpus: float | None = None
    output: int | str | None = None
    disk: int | str | None = None
    files: int | None = None
    open_files: int | None = None

    def __post_init__(self) -> None:
        for name, parse in (
            ("memory", parse_size), ("output", parse_size), ("disk", parse_size),
            ("wall", parse_duration), ("cpu_time", parse_duration),
        ):  # fmt: skip
            self._parse(name, parse)
        for name in ("pids", "files", "open_files"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise SpecError(f"limits.{name}", f"expected a whole number, got {value!r}")
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None:
                _positive(f"limits.{item.name}", value)

    def _parse(self, name: str, parse: Callable[[Any], float]) -> None:
        value = getattr(self, name)
        if value is not None:
            try:
                object.__setattr__(self, name, parse(value))
            except ValueError as exc:
                raise SpecError(f"limits.{name}", str(exc)) from None

    def spec_fields(self) -> dict[str, Any]:
        """What they are called in a `Spec`; those that are None are left out."""
        names = (
            ("mem_limit", self.memory), ("pids_limit", self.pids), ("timeout", self.wall), ("cpu_time", self.cpu_time),
            ("cpus", self.cpus), ("output_limit", self.output), ("storage_size", self.disk), ("storage_inodes", self.files),
        )  # fmt: skip
        found: dict[str, Any] = {name: value for name, value in names if value is not None}
        if self.open_files is not None:
            found["ulimits"] = {"nofile": Ulimit(self.open_files, self.open_files)}
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long to wait before the next restart: ``initial * factor ** n``, at most `max`, jittered.

    Attributes:
        initial: seconds before the first restart, >= 0.
        factor: >= 1.
        max: seconds at most, >= initial.
        jitter: 0..1, the share of the delay that is random (delay * (1 - jitter * u), u in 0..1).
        reset_after: seconds of running after which the count starts anew, >= 0.
    """

    initial: float = 0.1
    factor: float = 2.0
    max: float = 60.0
    jitter: float = 0.2
    reset_after: float = 10.0

    def __post_init__(self) -> None:
        _check_kinds(self, "backoff.")
        if not 0 <= self.initial <= self.max:
            raise SpecError("backoff.initial", "expected 0 or more, and not above max")
        if not 1 <= self.factor <= 1000:
            raise SpecError("backoff.factor", "expected 1 to 1000")
        if not 0 <= self.jitter <= 1:
            raise SpecError("backoff.jitter", "expected 0 to 1")
        if self.reset_after < 0:
            raise SpecError("backoff.reset_after", "expected seconds, 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When a service is run that does its work and ends. Exactly one of `cron` and `interval` is given.

    Attributes:
        cron: five fields as in crontab(5), or ``@hourly`` and the like.
        interval: seconds from one start to the next, >= 1; the first run is at once.
        timezone: an IANA name such as ``Europe/Berlin``, in which `cron` is meant.
        overlap: what becomes of a time that comes while it still runs: ``skip`` it, or ``queue`` one run behind.
    """

    cron: str | None = None
    interval: float | None = None
    timezone: str = "UTC"
    overlap: Overlap = "skip"

    def __post_init__(self) -> None:
        _check_kinds(self, "schedule.")
        if (self.cron is None) == (self.interval is None):
            raise SpecError("schedule", "expected either cron or interval")
        if self.interval is not None and not 1 <= self.interval < 1e9:
            raise SpecError("schedule.interval", "expected seconds, 1 or more")
        if self.overlap not in get_args(Overlap):
            raise SpecError("schedule.overlap", "expected skip or queue")
        from tinyvisor.cron import parse, zone  # zoneinfo takes its time, and few have a schedule

        try:
            zone(self.timezone)
        except ValueError as error:
            raise SpecError("schedule.timezone", str(error)) from None
        if self.cron is not None:
            try:
                parse(self.cron)
            except ValueError as error:
                raise SpecError("schedule.cron", str(error)) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """When a service is started again.

    Attributes:
        condition: as compose's ``restart``.
        max_attempts: restarts in a row at most (``on-failure:N``); None unlimited. Running for `backoff.reset_after`
            ends the row.
        backoff: the delay.
        success_exit_codes: exit codes that count as success; 0 always does.
        restart_prevent_exit_codes, restart_force_exit_codes: exit codes, and names of signals such as ``SIGTERM``, after
            which the service is never, or always, started again whatever the condition; never goes before always.
        start_limit_burst, start_limit_interval: more than `burst` starts within `interval` seconds make the service
            `failed` (systemd's StartLimitBurst=); burst 0 turns it off.
        schedule: once it has ended and is not started again, it waits for its next time.
    """

    condition: RestartCondition = "no"
    max_attempts: int | None = None
    backoff: Backoff = Backoff()
    success_exit_codes: frozenset[int] = frozenset()
    restart_prevent_exit_codes: frozenset[int | str] = frozenset()
    restart_force_exit_codes: frozenset[int | str] = frozenset()
    start_limit_burst: int = 0
    start_limit_interval: float = 10.0
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        _check_kinds(self)
        if self.condition not in get_args(RestartCondition):
            raise SpecError("restart", "expected no, always, on-failure[:N] or unless-stopped")
        if self.max_attempts is not None and self.max_attempts < 0:
            raise SpecError("restart", "expected 0 or more attempts")
        for name in ("success_exit_codes", "restart_prevent_exit_codes", "restart_force_exit_codes"):
            object.__setattr__(self, name, frozenset(getattr(self, name)))
        for code in self.success_exit_codes:
            if isinstance(code, bool) or not isinstance(code, int) or not 0 <= code <= 255:
                raise SpecError("success_exit_codes", "expected exit codes from 0 to 255")
        for name in ("restart_prevent_exit_codes", "restart_force_exit_codes"):
            for each in getattr(self, name):
                if not (_is_signal(each) if isinstance(each, str) else isinstance(each, int) and 0 <= each <= 255):
                    words = "expected exit codes from 0 to 255 and names of signals such as SIGTERM"
                    raise SpecError(name, f"{words}, got {each!r:.100}")
        if self.start_limit_burst < 0 or self.start_limit_interval < 0:
            raise SpecError("start_limit", "expected 0 or more")
        if self.schedule is not None and self.condition in ("always", "unless-stopped"):
            raise SpecError("schedule", f"with restart: {self.condition} it would never end; expected no or on-failure")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependency:
    """What a service needs of another one before it is started.

    Attributes:
        condition: as in compose-spec 05-services.md#depends_on.
        required: without, the service is started all the same once the other can't come any more, or is not there.
        restart: when the other runs in a new container, this one gets a new one, too. (Compose does so only after commands
            of its own.)
    """

    condition: Condition = "service_started"
    required: bool = True
    restart: bool = False

    def __post_init__(self) -> None:
        _check_kinds(self, "depends_on.")
        if self.condition not in get_args(Condition):
            raise SpecError("depends_on", f"expected {', '.join(get_args(Condition))}")


_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tcp:
    """A port that takes connections, in the container's network.

    Attributes:
        port: 1..65535.
        host: an IP address.
    """

    port: int
    host: str = _LOOPBACK

    def __post_init__(self) -> None:
        _check_kinds(self, "healthcheck.tcp.")
        _check_endpoint("healthcheck.tcp", self.host, self.port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Http:
    """A GET in the container's network, by HTTP/1.1 without TLS; redirects are an answer like others.

    Attributes:
        port: 1..65535.
        host: an IP address.
        path: with the query, in ASCII.
        headers: by name; ``Host`` is filled in.
        status: the codes of a good answer; empty: 200 to 399.
    """

    port: int
    host: str = _LOOPBACK
    path: str = "/"
    headers: Mapping[str, str] = field(default_factory=dict)
    status: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        _check_kinds(self, "healthcheck.http.")
        _check_endpoint("healthcheck.http", self.host, self.port)
        if not re.fullmatch(r"/[!-~]*", self.path):
            raise SpecError("healthcheck.http.path", f"expected a path such as /health, got {self.path!r:.100}")
        for name, value in self.headers.items():
            _no_nul("healthcheck.http.headers", name)
            _no_nul("healthcheck.http.headers", value)
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not re.fullmatch(r"([!-~]([ -~]*[!-~])?)?", value):
                raise SpecError("healthcheck.http.headers", f"{name!r:.100} can't be sent")
        names = [name.lower() for name in self.headers]
        for name in names:
            if name in ("content-length", "transfer-encoding"):
                raise SpecError("healthcheck.http.headers", f"{name} can't be sent: a GET has no body")
            if names.count(name) > 1:
                raise SpecError("healthcheck.http.headers", f"{name} is there twice")
        object.__setattr__(self, "status", frozenset(self.status))
        for code in self.status:
            if isinstance(code, bool) or not isinstance(code, int) or not 200 <= code <= 599:
                raise SpecError("healthcheck.http.status", "expected codes from 200 to 599")

    def __str__(self) -> str:
        return f"http://{Tcp(port=self.port, host=self.host)}{self.path}"

    def is_good(self, status: int) -> bool:
        return status in self.status if self.status else 200 <= status <= 399


def _check_endpoint(where: str, host: str, port: int) -> None:
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise SpecError(f"{where}.port", f"expected a port from 1 to 65535, got {port!r}")
    from ipaddress import ip_address  # here, since few need it and it is slow to import

    try:
        ip_address(host)
    except ValueError:
        raise SpecError(f"{where}.host", f"expected an IP address, got {host!r:.100}; names are not looked up") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Healthcheck:
    """What is asked again and again whether all is well: a command inside the container, or a port of its. One of the three.

    Attributes:
        test: a program and its arguments; exit code 0 says yes.
        http: a good answer says yes.
        tcp: a connection says yes.
        interval: seconds from the end of one run to the start of the next, > 0.
        timeout: seconds after which a run is killed and has failed, > 0.
        retries: failures in a row that make the container unhealthy, >= 1.
        start_period: seconds after the start in which failures do not count until the first success, >= 0.
        start_interval: `interval` until then, > 0.
    """

    test: tuple[str, ...] = ()
    http: Http | None = None
    tcp: Tcp | None = None
    interval: float = 30.0
    timeout: float = 30.0
    retries: int = 3
    start_period: float = 0.0
    start_interval: float = 5.0

    def __post_init__(self) -> None:
        _check_kinds(self, "healthcheck.")
        if self.test or (self.http is None and self.tcp is None):
            object.__setattr__(self, "test", _command("healthcheck.test", self.test))
        if bool(self.test) + (self.http is not None) + (self.tcp is not None) != 1:
            raise SpecError("healthcheck", "expected one of test, http and tcp")
        for name in ("interval", "timeout", "start_interval"):
            _positive(f"healthcheck.{name}", getattr(self, name))
        if self.retries < 1:
            raise SpecError("healthcheck.retries", "expected 1 or more")
        if self.start_period < 0:
            raise SpecError("healthcheck.start_period", "expected seconds, 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """A command that is run inside the container.

    Attributes:
        command: the program and its arguments.
        user, working_dir: None takes the container's.
        environment: on top of the container's.
    """

    command: tuple[str, ...]
    user: str | None = None
    working_dir: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_kinds(self)
        object.__setattr__(self, "command", _command("command", self.command))
        if self.working_dir is not None:
            _absolute("working_dir", self.working_dir)
        _check_user(self.user)
        _check_environment(self.environment)


SYSLOG_FACILITIES: tuple[str, ...] = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
    "", "", "", "", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
)  # fmt: skip
"""Facilities at their numbers (syslog(3), RFC 5424 6.2.1); empty: not to be used."""


def parse_syslog_address(text: str) -> str | tuple[str, int]:
    """A socket's path, or an IP address and a port.

    Raises:
        ValueError: neither.
    """
    if text.startswith("unixgram:///") and "\0" not in text and len(os.fsencode(text)) < 12 + 100:
        return text.removeprefix("unixgram://")
    from ipaddress import ip_address

    match = re.fullmatch(r"udp://(\[[0-9a-fA-F:.]+\]|[0-9.]+)(?::([0-9]{1,5}))?", text)
    if match is not None and 0 < int(match[2] or "514") < 65536:
        try:
            return str(ip_address(match[1].strip("[]"))), int(match[2] or "514")
        except ValueError:
            pass
    raise ValueError(f'"{text:.100}" is not supported; expected unixgram:///PATH or udp://IP[:PORT]')


@dataclass(frozen=True, slots=True, kw_only=True)
class Logging:
    """Where a service's output goes, in compose's words.

    Attributes:
        driver: ``local``: a file of the CRI's records, the bytes as they came behind time and stream; ``json-file``: one of
            JSON lines; ``raw``: one of the output and nothing else, so without times; ``syslog``; ``journald``; ``none``.
        max_size: bytes after which a file is rotated, > 0.
        max_files: files kept, the current one included, >= 1.
        max_age: seconds after its first record after which a file is rotated, > 0; None: never for that.
        compress: rotated files by gzip.
        max_rate: bytes of output a second, > 0; what is more is counted and not kept; None: all of it is.
        syslog_address: ``unixgram:///PATH`` or ``udp://IP:PORT``.
        syslog_format: ``rfc3164`` or ``rfc5424``; None: the first to a path, the second by UDP.
        syslog_facility: as in syslog(3), ``daemon`` or ``local0``.
        tag: how it is called there; empty: the instance's name.
    """

    driver: LogDriver = "local"
    max_size: int = 10 << 20
    max_files: int = 5
    max_age: float | None = None
    compress: bool = False
    max_rate: int | None = None
    syslog_address: str = "unixgram:///dev/log"
    syslog_format: str | None = None
    syslog_facility: str = "daemon"
    tag: str = ""

    def __post_init__(self) -> None:
        _check_kinds(self, "logging.")
        if self.driver not in get_args(LogDriver):
            raise SpecError("logging.driver", f"expected {', '.join(get_args(LogDriver))}")
        for name, key in (("max_size", "max-size"), ("max_age", "max-age"), ("max_rate", "max-rate")):
            if getattr(self, name) is not None:
                _positive(f"logging.options.{key}", getattr(self, name))
        if self.max_files < 1:
            raise SpecError("logging.options.max-file", "must be more than 0")
        try:
            parse_syslog_address(self.syslog_address)
        except ValueError as error:
            raise SpecError("logging.options.syslog-address", str(error)) from None
        if self.syslog_format not in (None, "rfc3164", "rfc5424"):
            raise SpecError("logging.options.syslog-format", "expected rfc3164 or rfc5424")
        if not self.syslog_facility or self.syslog_facility not in SYSLOG_FACILITIES:
            known = ", ".join(filter(None, SYSLOG_FACILITIES))
            raise SpecError("logging.options.syslog-facility", f"expected one of {known}")
        if not re.fullmatch(r"[!-9;-Z\\^-~]{0,48}", self.tag):
            raise SpecError(
                "logging.options.tag", "expected up to 48 printable ASCII characters without blank, colon and brackets"
            )


@cache
def _local_logging() -> Logging:
    return Logging()


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A container that is kept in the state its policy asks for.

    Attributes:
        spec: the container; ``spec.name`` is the service's name.
        restart: when to start it again.
        depends_on: what it needs before it is started, by name; a set of names needs them started.
        healthcheck: says whether it is healthy; None: it is, once it is ready. Of the three ways to be that, one at most.
        ready_log: a regular expression; it is not healthy before a line of its output (its first
            `pattern.LINE_LIMIT` bytes) has a match.
        ready_notify: it is not healthy before it has sent ``READY=1`` to its NOTIFY_SOCKET.
        ready_fd: 3..255; it is not healthy before it has written a newline to that fd.
        start_timeout: seconds in which it must have said that it is ready, where it has a way to; else it is ended, as a
            failure. None: it may take for ever.
        watchdog: seconds; once it is ready, more than these without ``WATCHDOG=1`` on its NOTIFY_SOCKET end it, as a failure.
        on_unhealthy: what becomes of it then. ``restart``: as after a failure, with the same delay and limits, whatever
            ``restart.condition``; ``stop``: it has failed.
        post_start: run one after another once it has started; one that fails ends the container, as a failure.
        pre_stop: run one after another before it is sent its stop signal, within ``spec.stop_grace_period``.
        scale: copies, >= 0, called NAME-1 to NAME-N; None: one, called NAME.
        labels: for others to read.
        logging: where its output goes.
    """

    spec: Spec
    restart: RestartPolicy = RestartPolicy()
    depends_on: Mapping[str, Dependency] = field(default_factory=dict)
    healthcheck: Healthcheck | None = None
    ready_log: str | None = None
    ready_notify: bool = False
    ready_fd: int | None = None
    start_timeout: float | None = 90.0
    watchdog: float | None = None
    on_unhealthy: OnUnhealthy = "none"
    post_start: tuple[Hook, ...] = ()
    pre_stop: tuple[Hook, ...] = ()
    scale: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    logging: Logging = field(default_factory=_local_logging)

    def __post_init__(self) -> None:
        _check_kinds(self)
        for name in self.depends_on:
            check_name("depends_on", name)
        if not isinstance(self.depends_on, Mapping):
            object.__setattr__(self, "depends_on", {name: Dependency() for name in sorted(self.depends_on)})
        for dependency in self.depends_on.values():
            if not isinstance(dependency, Dependency):
                raise SpecError("depends_on", f"expected Dependency objects, got {dependency!r:.100}")
        for name in ("post_start", "pre_stop"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            for hook in getattr(self, name):
                if not isinstance(hook, Hook):
                    raise SpecError(name, f"expected Hook objects, got {hook!r:.100}")
        for label in (*self.labels.keys(), *self.labels.values()):
            _no_nul("labels", label)
        if self.on_unhealthy not in get_args(OnUnhealthy):
            raise SpecError("on_unhealthy", "expected none, restart or stop")
        if self.on_unhealthy != "none" and not self.tells_health:
            raise SpecError("on_unhealthy", "needs a healthcheck, or a way to say that it is ready")
        if self.scale is not None and not 0 <= self.scale <= MAX_SCALE:
            raise SpecError("scale", f"expected 0 to {MAX_SCALE}")
        self._check_readiness()
        if self.ready_log is not None:
            try:
                compile_line(self.ready_log)
            except ValueError as error:
                raise SpecError("ready_log", str(error)) from None

    def _check_readiness(self) -> None:
        """And gives the container what it needs to say that it is ready, or alive."""
        ways = {"ready_log": self.ready_log is not None, "ready_notify": self.ready_notify, "ready_fd": self.ready_fd is not None}
        given = [name for name, is_given in ways.items() if is_given]
        if len(given) > 1:
            raise SpecError(given[1], f"is one way to be ready, {given[0]} another")
        if self.ready_fd is not None and not 3 <= self.ready_fd <= 255:
            raise SpecError("ready_fd", "expected an fd from 3 to 255")
        for name in ("start_timeout", "watchdog"):
            seconds = getattr(self, name)
            if seconds is not None and not 0.001 <= seconds < 1e9:
                raise SpecError(name, "expected 1 ms or more")
        means = {
            "notify_socket": self.ready_notify or self.watchdog is not None,
            "watchdog": self.watchdog,
            "notification_fd": self.ready_fd,
        }
        if any(getattr(self.spec, name) != value for name, value in means.items()):
            object.__setattr__(self, "spec", self.spec.with_(**means))

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def network_provider(self) -> str | None:
        """The service whose network it joins."""
        kind, _, name = self.spec.network_mode.partition(":")
        return name if kind == "service" else None

    @property
    def needs(self) -> Mapping[str, Dependency]:
        """`depends_on`, and the service whose network it joins."""
        provider = self.network_provider
        return {provider: Dependency(), **self.depends_on} if provider else self.depends_on

    @property
    def tells_health(self) -> bool:
        return self.healthcheck is not None or self.tells_ready

    @property
    def tells_ready(self) -> bool:
        return self.ready_log is not None or self.ready_notify or self.ready_fd is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """What a configuration directory says: a name and its services, in the order they were read."""

    name: str
    services: Mapping[str, Service]

    @property
    def instances(self) -> tuple[str, ...]:
        """The names of all copies of all services."""
        return tuple(name for service in self.services.values() for name in instances(service, service.scale))


def instances(service: Service, count: int | None) -> dict[str, Service]:
    """The copies of `service` that run when there are to be `count`, by name: NAME-1 to NAME-`count`; None: one, NAME.

    Raises:
        SpecError: `count` is out of range, or the names get too long.
    """
    if count is None:
        return {service.name: service}
    if not 0 <= count <= MAX_SCALE:
        raise SpecError("scale", f"expected 0 to {MAX_SCALE}")
    names = [f"{service.name}-{number}" for number in range(1, count + 1)]
    if service.scale is None and names:
        names[0] = service.name  # the one that runs already is not touched by a later `scale`
    return {name: replace(service, spec=service.spec.with_(name=name)) for name in names}


def check_name(where: str, name: str) -> None:
    """Raises `SpecError` for `where` unless `name` fits `NAME`."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise SpecError(where, f"{name!r} is not a name; expected 1 to 63 letters, digits, dots, dashes or underscores")


_NO_LIST = (str, bytes, Mapping, set, frozenset)
"""What can be iterated over, but has other items than one may think, or no order."""


def _command(where: str, words: Iterable[str]) -> tuple[str, ...]:
    if isinstance(words, _NO_LIST) or not isinstance(words, Iterable):
        raise SpecError(where, f"expected a list, got {words!r:.100}")
    command = tuple(words)
    for word in command:
        _no_nul(where, word)
    if not command or not command[0]:
        raise SpecError(where, "expected a program to run")
    return command


def _check_user(user: str | None) -> None:
    if user is not None and not re.fullmatch(r"[a-zA-Z0-9_.$-]+(:[a-zA-Z0-9_.$-]+)?", user):
        raise SpecError("user", f'"{user}" is not a user; expected uid, uid:gid, name or name:group')


def _check_environment(environment: Mapping[str, str]) -> None:
    for key, value in environment.items():
        if not isinstance(key, str) or not key or "=" in key:
            raise SpecError("environment", f'"{key}" is not a variable\'s name')
        _no_nul("environment", key)
        _no_nul("environment", value)


def _tuples(spec: Spec, names: Iterable[str]) -> None:
    for name in names:
        value = getattr(spec, name)
        if type(value) is not tuple:
            if isinstance(value, _NO_LIST) or not isinstance(value, Iterable):
                raise SpecError(name, f"expected a list, got {value!r:.100}")
            object.__setattr__(spec, name, tuple(value))


def _absolute(where: str, path: str) -> None:
    _no_nul(where, path)
    if not path.startswith("/") or ".." in path.split("/"):
        raise SpecError(where, f'"{path}" must be an absolute path without ".."')


def _is_at_or_below(path: str, directory: str) -> bool:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    own = directory.strip("/").split("/")
    return parts[: len(own)] == own


def _no_nul(where: str, text: str) -> None:
    if not isinstance(text, str):
        raise SpecError(where, f"expected text, got {text!r}")
    if "\0" in text:
        raise SpecError(where, "must not contain NUL")
    if not text.isascii():
        check_encodable(where, text)


def check_encodable(where: str, text: str) -> None:
    """Raises `SpecError` for text that no bytes stand for: a lone surrogate but those that `os.fsdecode` makes."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise SpecError(where, f"{text!r:.100} has characters that can't be encoded") from None


def _positive(where: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SpecError(where, f"expected a number, got {value!r}")
    if not 0 < value < math.inf:
        raise SpecError(where, "must be more than 0" if not value > 0 else "must be finite")
