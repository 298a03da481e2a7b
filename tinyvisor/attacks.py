"""Attacks from inside a container that harm nobody where they succeed: what each tries, which wall should hold it, and where it
is known not to. `audit` runs them; the tests do, too, in every profile. Pure: programs as text.

A program prints a line "open: what was reached" for each thing that it got, and "held" at its end. It goes no further than
to the point where it could: a file is opened for writing and not written to, a call is made with arguments that fail only
once the right to make it has been seen. Sources: the CVEs named; capabilities(7); kernel Documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from tinyvisor.spec import CAPABILITIES, SERVICE_CAPABILITIES

PROFILES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "default": {},
        "service": {"root_capabilities": SERVICE_CAPABILITIES},
        "another user": {"user": "1000:1000"},
        "chroot": {"root_method": "chroot"},
        "host ids": {"userns_mode": "host"},
        "chroot, no filter": {"root_method": "chroot", "seccomp": "unconfined"},
        "no filter": {"seccomp": "unconfined"},
        "service, no filter": {"root_capabilities": SERVICE_CAPABILITIES, "seccomp": "unconfined"},
        "all capabilities": {"capabilities": frozenset(CAPABILITIES)},
        "host network": {"network_mode": "host"},
        "nothing but namespaces": {
            "capabilities": frozenset(CAPABILITIES), "seccomp": "unconfined", "userns_mode": "host", "no_new_privs": False,
        },
    }
)  # fmt: skip
"""The default container, what `up` makes of it, and the ways out of its walls: name → fields of `Spec`."""

NAKED = "nothing but namespaces"
"""The profile in which an attack has to succeed, or its program would prove nothing."""


@dataclass(frozen=True, slots=True)
class Attack:
    """One thing that is tried.

    Attributes:
        name: unique, as tables show it.
        tries: what it does, one line.
        wall: what holds it in the default container.
        program: its code; for Python behind `PRELUDE`.
        language: what the root needs to have: /bin/sh, or python3 with ctypes.
        open_in: profiles in which it may succeed; in `NAKED` it does.
    """

    name: str
    tries: str
    wall: str
    program: str
    language: Literal["python", "sh"] = "python"
    open_in: frozenset[str] = frozenset()


PRELUDE = """
import ctypes, errno, os, signal, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(name, *arguments):
    "A system call by its name; fails as a function of os does."
    if name not in N:
        raise OSError(errno.ENOSYS, "not on this machine")
    result = libc.syscall(ctypes.c_long(N[name]), *[a if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments])
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result
REFUSED = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EROFS}
def tried(what, function, *arguments, refused=None):
    "With `refused`: all other errors come behind the check of the right, and count as success."
    try:
        result = function(*arguments)
    except OSError as error:
        if refused is None or error.errno in refused:
            return None
        print("open:", what, "(%s)" % errno.errorcode.get(error.errno, error.errno))
        return None
    print("open:", what)
    return result
def mounted(source, target, kind=None, flags=0, data=None):
    libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
    if libc.mount(source, target, kind, flags, data):
        raise OSError(ctypes.get_errno(), "mount")
def quietly(function, *arguments):
    try:
        return function(*arguments)
    except OSError:
        return None
def mounts():
    "(place, options, type) of all that is mounted, the topmost last."
    found = []
    for line in open("/proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        found.append((before.split()[4], before.split()[5].split(","), after.split()[0]))
    return found
def shown(path):
    "Whether it is there and the host's, and not in a layer of the container's own."
    inside = [(len(place), kind) for place, _, kind in mounts() if place == "/" or path == place or path.startswith(place + "/")]
    return os.path.exists(path) and max(inside)[1] not in ("overlay", "tmpfs")
def scratch():
    "An empty directory that can be mounted on."
    for place in ("/tmp", "/run", "/dev/shm", "/var/tmp"):
        path = place + "/audit"
        if quietly(os.mkdir, path) is None and os.path.isdir(path):
            return path
    raise SystemExit("there is no directory that can be written")
"""


def _in(*profiles: str) -> frozenset[str]:
    return frozenset((*profiles, *(["chroot, no filter", "service, no filter"] if "no filter" in profiles else []), NAKED))


ATTACKS: tuple[Attack, ...] = (
    # ---- PID 1 and other processes ----
    Attack(
        "files of PID 1",
        "reads /proc/1/exe, root, cwd, mem, maps, environ, fds and namespaces (CVE-2019-5736, CVE-2024-21626)",
        "PID 1 is not dumpable and of another user namespace; its program is a sealed memfd",
        """
for name in ("exe", "root", "cwd", "fd/0", "fd/3", "fd/4", "ns/mnt", "ns/user"):
    tried("/proc/1/" + name, os.readlink, "/proc/1/" + name)
def read(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 1)
    finally:
        os.close(fd)
for name in ("exe", "maps", "environ", "root/etc/passwd", "fd/3", "auxv", "stack", "syscall", "io"):
    tried("/proc/1/" + name, read, "/proc/1/" + name)
for flags in (os.O_RDONLY, os.O_RDWR):
    tried("/proc/1/mem", os.open, "/proc/1/mem", flags)
""",
        open_in=_in(),
    ),
    Attack(
        "tracing PID 1",
        "PTRACE_SEIZE, process_vm_readv and pidfd_getfd on PID 1",
        "PID 1 is not dumpable and of another user namespace; seccomp for process_vm_readv",
        """
buffer = ctypes.create_string_buffer(8)
word = struct.pack("QQ", ctypes.addressof(buffer), 8)
tried("ptrace", call, "ptrace", 0x4206, 1, 0, 0)
tried("process_vm_readv", call, "process_vm_readv", 1, word, 1, word, 1, 0, refused=REFUSED | {errno.ESRCH})
pidfd = quietly(call, "pidfd_open", 1, 0)
if pidfd is not None:
    tried("pidfd_getfd", call, "pidfd_getfd", pidfd, 3, 0)
""",
        open_in=_in(),
    ),
    Attack(
        "power over PID 1",
        "changes PID 1's limits, priority, CPUs and OOM score to what they are",
        "PID 1 is of another user namespace",
        """
tried("oom_score_adj", os.open, "/proc/1/oom_score_adj", os.O_WRONLY)
tried("CPUs", lambda: os.sched_setaffinity(1, os.sched_getaffinity(1)))
tried("priority", lambda: os.setpriority(os.PRIO_PROCESS, 1, os.getpriority(os.PRIO_PROCESS, 1)))
limits = bytes(16)
if quietly(call, "prlimit64", 1, 7, 0, limits) is not None:
    tried("limits", call, "prlimit64", 1, 7, limits, 0)
""",
        open_in=_in("host ids"),
    ),
    Attack(
        "processes of others",
        "looks in /proc for a process that is neither PID 1 nor its own",
        "the pid namespace",
        """
cd /proc || exit 1
for pid in [0-9]*; do
    [ "$pid" = 1 ] || [ "$pid" = $$ ] || [ ! -d "$pid" ] || {
        parent=
        while read -r key value; do [ "$key" != PPid: ] || parent=$value; done 2>/dev/null <"$pid/status"
        [ "$parent" = $$ ] || [ "$parent" = 1 ] || [ -z "$parent" ] || echo "open: process $pid, child of $parent"
    }
done
echo held
""",
        "sh",
    ),
    Attack(
        "namespaces of PID 1",
        "setns into the namespaces that PID 1 has and its own processes don't",
        "PID 1 is of another user namespace, which owns what it is in",
        """
for name in ("user", "cgroup", "mnt", "net", "pid"):
    fd = quietly(os.open, "/proc/1/ns/" + name, os.O_RDONLY)
    if fd is not None:
        tried(name, call, "setns", fd, 0, refused=REFUSED | {errno.EINVAL})
""",
        open_in=_in(),
    ),
    Attack(
        "leaked file descriptors",
        "looks for open files beyond stdin, stdout and stderr, and for a working directory outside (CVE-2024-21626)",
        "close_range before the last steps; the working directory is checked",
        """
for fd in os.listdir("/proc/self/fd"):
    target = quietly(os.readlink, "/proc/self/fd/" + fd)
    if target is not None and int(fd) > 2:
        print("open:", fd, target)
    elif target is not None and os.path.isdir("/proc/self/fd/" + fd):
        print("open: a directory,", fd, target)
if not os.getcwd().startswith("/"):
    print("open: the working directory is", os.getcwd())
""",
    ),
    # ---- the kernel's own files ----
    Attack(
        "sysctls",
        "opens core_pattern, modprobe, sysrq-trigger and others for writing, around the read-only mount and by a new /proc, too",
        "read-only mounts that are locked; their files are not this user namespace's root's",
        """
def attack(proc):
    for name in ("sys/kernel/core_pattern", "sys/kernel/modprobe", "sysrq-trigger", "sys/vm/overcommit_memory",
                 "sys/fs/suid_dumpable", "sys/user/max_user_namespaces", "irq/default_smp_affinity"):
        if os.path.exists(proc + "/" + name):
            tried(proc + "/" + name, os.open, proc + "/" + name, os.O_WRONLY)
attack("/proc")
attack("/proc/self/root/proc")
attack("/proc/1/root/proc")
attack("/proc/self/cwd/proc")
attack("/proc/self/task/../../../proc")
for place in ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq"):
    quietly(mounted, None, place.encode(), None, 32 | 4096)
    quietly(lambda: libc.umount2(place.encode(), 2))
attack("/proc")
place = scratch()
if quietly(lambda: (mounted(b"none", place.encode(), b"proc"), True)):
    attack(place)
""",
        open_in=_in(),
    ),
    Attack(
        "writable files of /proc",
        "opens every file of /proc but those of processes for writing",
        "masks and read-only mounts; pressure files are for everybody and cost who opens them",
        """
for base, directories, files in os.walk("/proc"):
    if base == "/proc":
        directories[:] = [name for name in directories if not name.isdigit() and name not in ("self", "thread-self", "pressure")]
    for name in files:
        if os.path.islink(base + "/" + name):  # into its own process
            continue
        fd = quietly(os.open, base + "/" + name, os.O_WRONLY | os.O_NONBLOCK)
        if fd is not None:
            if os.fstat(fd).st_rdev != os.makedev(1, 3):
                print("open:", base + "/" + name)
            os.close(fd)
""",
        open_in=_in(),
    ),
    Attack(
        "secrets and side channels of the kernel",
        "reads kcore, keys, timer_list, interrupts, sched_debug, kallsyms' addresses, under the masks, too",
        "masks; they are locked",
        """
for again in range(2):
    for name in ("kcore", "keys", "timer_list", "interrupts", "sched_debug", "latency_stats", "acpi", "scsi", "asound"):
        path = "/proc/" + name
        if os.path.isdir(path):
            if os.listdir(path):
                print("open:", path)
        elif quietly(lambda: os.read(os.open(path, os.O_RDONLY), 1)):
            print("open:", path)
        quietly(lambda: libc.umount2(path.encode(), 2))
addresses = quietly(lambda: open("/proc/kallsyms").readline().split()[0])
if addresses and int(addresses, 16):
    print("open: addresses of the kernel")
if quietly(os.listdir, "/sys/devices/virtual/powercap") or quietly(os.listdir, "/sys/devices/system/cpu/cpu0/thermal_throttle"):
    print("open: power and heat")
""",
        open_in=_in(),
    ),
    Attack(
        "/sys",
        "lists /sys, mounts a new one",
        "there is none; who did not see all of one can't mount one",
        """
if quietly(os.listdir, "/sys"):
    print("open: /sys")
tried("a new /sys", mounted, b"none", scratch().encode(), b"sysfs")
""",
        open_in=_in(),
    ),
    Attack(
        "the kernel's log",
        "syslog(2), /dev/kmsg, /proc/kmsg",
        "seccomp; there is no such device",
        """
tried("syslog", call, "syslog", 10, 0, 0)
for path in ("/dev/kmsg", "/proc/kmsg"):
    tried(path, os.open, path, os.O_RDONLY | os.O_NONBLOCK)
""",
        open_in=_in("no filter"),
    ),
    # ---- files and devices ----
    Attack(
        "programs of the host",
        "opens programs and /etc for writing by every path, sets their modes to what they are, remounts what they are on",
        "read-only mounts that are locked",
        """
import sys
def attack(path):
    fd = os.open(path, os.O_RDONLY)
    for name in (path, "/proc/self/fd/%d" % fd, "/proc/self/root" + path):
        tried(name, os.open, name, os.O_WRONLY, refused=REFUSED | {errno.ETXTBSY})
    mode = os.stat(path).st_mode
    tried("mode of " + path, os.chmod, path, mode & 0o7777)
    tried("attributes of " + path, os.removexattr, path, "user.x", refused=REFUSED | {errno.ENOTSUP})
paths = {os.path.realpath(path) for path in ("/usr/bin/env", "/bin/sh", "/etc/passwd", sys.executable)}
for path in filter(shown, paths):
    attack(path)
    for place, _, kind in mounts():
        if path.startswith(place + "/"):
            quietly(mounted, None, place.encode(), None, 32 | 4096)
            quietly(call, "mount_setattr", -100, place.encode(), 0, struct.pack("4Q", 0, 1, 0, 0), 32)
    attack(path)
""",
        open_in=_in(),
    ),
    Attack(
        "leases on the host's files",
        "F_SETLEASE on programs: whoever opens one then waits for the container, up to 45 s",
        "seccomp",
        """
import fcntl
for path in ("/usr/bin/env", "/bin/sh", "/usr/bin/whoami", "/etc/passwd"):
    path = os.path.realpath(path)
    if shown(path):
        fd = os.open(path, os.O_RDONLY)
        for high in (0, 1 << 32):
            if tried(path, call, "fcntl", fd, 1024 | high, fcntl.F_RDLCK) is not None:
                call("fcntl", fd, 1024, fcntl.F_UNLCK)
                break
""",
        open_in=_in("no filter", "all capabilities"),
    ),
    Attack(
        "devices",
        "makes nodes of a disk, /dev/mem and /dev/net/tun, on a file system of its own where it can, and opens them",
        "no CAP_MKNOD; nodev on all that can be written; a BPF program on the cgroup",
        """
disk = os.makedev(259, 0)
for line in list(open("/proc/partitions"))[2:3]:
    disk = os.makedev(*map(int, line.split()[:2]))
places = ["/", "/tmp", "/run", "/dev", "/dev/shm", "/dev/pts", "/var/tmp"]
place = scratch()
if quietly(lambda: (mounted(b"none", place.encode(), b"devtmpfs"), True)):
    print("open: all devices by devtmpfs")
    libc.umount2(place.encode(), 2)  # it is the host's: nothing is made there
if quietly(lambda: (mounted(b"none", place.encode(), b"tmpfs"), True)):
    places.append(place)
for place in places:
    node = place.rstrip("/") + "/audit-node"
    for name, number in (("disk", disk), ("memory", os.makedev(1, 1)), ("tun", os.makedev(10, 200))):
        quietly(os.mknod, node, 0o60600 if name == "disk" else 0o20600, number)
        if quietly(os.stat, node) is not None:
            absent = REFUSED | {errno.ENXIO, errno.ENODEV}
            tried("%s on %s" % (name, place), os.open, node, os.O_RDONLY | os.O_NONBLOCK, refused=absent)
        quietly(os.unlink, node)
""",
        open_in=_in(),
    ),
    Attack(
        "files by handle",
        "open_by_handle_at, which knows no root (docker's shocker)",
        "no CAP_DAC_READ_SEARCH; seccomp",
        """
handle, mount_id = bytearray(struct.pack("Ii", 128, 0) + bytes(128)), bytes(4)
whole = (ctypes.c_char * len(handle)).from_buffer(handle)
libc.syscall(ctypes.c_long(N["name_to_handle_at"]), -100, b"/usr", whole, mount_id, 0)
fd = os.open("/usr" if os.path.isdir("/usr") else "/", os.O_RDONLY)
known = struct.unpack_from("I", handle)[0] < 128
tried("open_by_handle_at", call, "open_by_handle_at", fd, bytes(handle) if known else struct.pack("Ii8s", 8, 1, bytes(8)), 0,
      refused=REFUSED | {errno.EOPNOTSUPP} | (set() if known else {errno.ESTALE}))
""",
        open_in=_in("no filter", "all capabilities"),
    ),
    Attack(
        "what is around the root",
        "leaves the root by chroot and an open directory, looks for files and for what can be written there",
        "no CAP_SYS_CHROOT; around the root there is an empty, read-only shell",
        """
here = os.open("/", os.O_RDONLY)
place = scratch()
if quietly(lambda: (os.chroot(place), True)):
    os.fchdir(here)
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    for base, names, files in os.walk("/"):
        names[:] = [name for name in names if base != "/" or name not in ("container", "new")]
        if files:
            print("open:", base, files[:3])
        if quietly(lambda: (os.mkdir(base + "/audit"), True)):
            print("open: can write", base)
            os.rmdir(base + "/audit")
""",
    ),
    Attack(
        "what is below the mounts",
        "unmounts all there is, and looks at what comes to light",
        "no CAP_SYS_ADMIN; mounts are locked; the old root is detached, not hidden",
        """
points = [place for place, _, _ in mounts()]
held_files = {path: set(os.listdir(path)) for path in ("/proc", "/dev", "/etc") if os.path.isdir(path)}
for place in reversed(points):
    if place != "/" and not place.startswith(("/usr", "/lib", "/bin")):
        libc.umount2(place.encode(), 2)
libc.umount2(b"/", 2)
for path, before in held_files.items():
    more = set(quietly(os.listdir, path) or ()) - before
    if more and path != "/proc":
        print("open:", path, sorted(more)[:3])
if os.path.isdir("/boot") and os.listdir("/boot"):
    print("open: /boot")
""",
    ),
    # ---- limits ----
    Attack(
        "cgroup limits",
        "mounts cgroup hierarchies, opens its own limits and release_agent for writing (CVE-2022-0492)",
        "no CAP_SYS_ADMIN; the files are not this user namespace's root's",
        """
place = scratch()
names = [line.split(":")[1].encode() for line in open("/proc/self/cgroup")]  # no others: a new hierarchy would be the machine's
kinds = [(b"cgroup2", None)] + [(b"cgroup", name) for name in names if name and b"=" not in name]
for kind, data in kinds:
    if quietly(lambda: (mounted(b"none", place.encode(), kind, 0, data), True)):
        for base, names, files in os.walk(place):
            for name in files:
                if name in ("pids.max", "memory.max", "memory.limit_in_bytes", "release_agent", "cgroup.procs", "devices.allow",
                            "freezer.state", "cpu.max", "cgroup.subtree_control"):
                    tried(base[len(place):] + "/" + name, os.open, base + "/" + name, os.O_WRONLY, refused=REFUSED)
        libc.umount2(place.encode(), 2)
if os.path.isdir("/sys/fs/cgroup"):
    for base, _, files in os.walk("/sys/fs/cgroup"):
        if "cgroup.procs" in files:
            tried(base + "/cgroup.procs", os.open, base + "/cgroup.procs", os.O_WRONLY)
""",
        open_in=_in(),
    ),
    Attack(
        "user namespaces",
        "makes a user namespace by unshare and clone, also from outside of the root where it can leave it",
        "seccomp; the root is a chroot, and to who is in one the kernel gives none",
        """
def attack(what):
    for number in (0x10000000, 0x10000000 | 0x20000):
        child = os.fork()
        if child == 0:
            tried("unshare " + what, call, "unshare", number)
            os._exit(0)
        os.waitpid(child, 0)
import sys
sys.stdout.reconfigure(line_buffering=True)
attack("inside")
here = os.open("/", os.O_RDONLY)
if quietly(lambda: (os.chroot(scratch()), True)):
    os.fchdir(here)
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    attack("from outside of the root")
""",
        open_in=_in("all capabilities", "service, no filter"),
    ),
    Attack(
        "limits of its own",
        "raises hard limits, takes a better priority, real-time scheduling and I/O before all others",
        "no CAP_SYS_RESOURCE or CAP_SYS_NICE of the host's",
        """
import resource
for name in ("NOFILE", "NPROC", "MEMLOCK", "SIGPENDING", "MSGQUEUE", "RTPRIO"):
    soft, hard = resource.getrlimit(getattr(resource, "RLIMIT_" + name))
    if hard not in (resource.RLIM_INFINITY, 1 << 20, 1 << 30):
        more = struct.pack("QQ", soft, hard + 1)
        tried(name, call, "prlimit64", 0, getattr(resource, "RLIMIT_" + name), more, 0)
tried("priority", os.setpriority, os.PRIO_PROCESS, 0, -1)
tried("real-time scheduling", os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1))
tried("real-time I/O", call, "ioprio_set", 1, 0, 1 << 13)
""",
        open_in=_in(),
    ),
    # ---- what is the whole machine's ----
    Attack(
        "kernel modules",
        "init_module, finit_module, delete_module, kexec_load with what is no module",
        "no CAP_SYS_MODULE, no CAP_SYS_BOOT; seccomp",
        """
tried("init_module", call, "init_module", bytes(16), 16, b"", refused=REFUSED)
tried("delete_module", call, "delete_module", b"no-such-module", 0, refused=REFUSED)
tried("kexec_load", call, "kexec_load", 0, 0, 0, 1 << 31, refused=REFUSED)
""",
        open_in=_in(),
    ),
    Attack(
        "the clock",
        "settimeofday with no time to set",
        "no CAP_SYS_TIME; seccomp",
        """
tried("settimeofday", call, "settimeofday", 0, 0)
""",
        open_in=_in(),
    ),
    Attack(
        "swap, accounting, quotas",
        "swapon, acct and quotactl of files that are not there",
        "no CAP_SYS_ADMIN, no CAP_SYS_PACCT; seccomp",
        """
tried("swapon", call, "swapon", b"/no/such/file", 0, refused=REFUSED)
tried("acct", call, "acct", b"/no/such/file", refused=REFUSED)
""",
        open_in=_in(),
    ),
    Attack(
        "ports and memory of the machine",
        "iopl, ioperm, /dev/mem, /dev/port",
        "no CAP_SYS_RAWIO; seccomp; no such devices",
        """
tried("iopl", call, "iopl", 3)
tried("ioperm", call, "ioperm", 0x80, 1, 1)
for path in ("/dev/mem", "/dev/port", "/dev/kvm", "/dev/fuse", "/dev/net/tun"):
    tried(path, os.open, path, os.O_RDONLY)
""",
        open_in=_in(),
    ),
    Attack(
        "keyrings",
        "keyctl, add_key, request_key, on a keyring of this thread's own",
        "seccomp",
        """
tried("keyctl", call, "keyctl", 0, -1, 1)
tried("add_key", call, "add_key", b"user", b"tinyvisor-audit", b"x", 1, -1)
tried("request_key", call, "request_key", b"user", b"tinyvisor-audit-none", 0, 0, refused=REFUSED)
""",
        open_in=_in("no filter"),
    ),
    Attack(
        "rarely used system calls",
        "io_uring, bpf, perf_event_open, userfaultfd, fanotify, personality: where the kernel's holes have been",
        "seccomp",
        """
tried("io_uring_setup", call, "io_uring_setup", 1, bytes(120))
tried("bpf", call, "bpf", -1, 0, 0, refused=REFUSED)
tried("perf_event_open", call, "perf_event_open", 0, 0, -1, -1, 0, refused=REFUSED)
tried("userfaultfd", call, "userfaultfd", 1)
tried("fanotify_init", call, "fanotify_init", 0x200, 0)
tried("personality", call, "personality", 0x40000)
""",
        open_in=_in("no filter", "all capabilities"),
    ),
    Attack(
        "rare kinds of sockets",
        "AF_ALG, AF_VSOCK, AF_PACKET, AF_KEY, AF_NFC, AF_CAN, AF_BLUETOOTH, also with high bits set",
        "seccomp",
        """
for name, family in (("ALG", 38), ("VSOCK", 40), ("PACKET", 17), ("KEY", 15), ("NFC", 39), ("CAN", 29), ("BLUETOOTH", 31)):
    for high in (0, 1 << 32):
        if tried("AF_" + name, call, "socket", family | high, 3 if name in ("PACKET", "KEY") else 1 if name == "VSOCK" else 5, 0):
            break
""",
        open_in=_in("no filter", "all capabilities"),
    ),
    Attack(
        "other system call interfaces",
        "a call of the 32-bit interface and one of x32, which a filter by numbers would mistake",
        "seccomp: the first kills, the second fails",
        """
import mmap
if os.uname().machine == "x86_64":
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3")  # mov $20, %eax; int $0x80; ret
    child = os.fork()
    if child == 0:
        os._exit(0 if ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))() == os.getpid() else 1)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        print("open: int 0x80")
    if libc.syscall(ctypes.c_long(0x40000000 | 39)) == os.getpid():
        print("open: x32")
""",
        open_in=_in("no filter"),
    ),
    # ---- others on the network ----
    Attack(
        "the host's network",
        "looks for interfaces beside loopback",
        "the network namespace",
        """
while read -r line; do
    case $line in *Inter-*|*face*|lo:*|"") ;; *:*) echo "open: ${line%%:*}" ;; esac
done </proc/net/dev
echo held
""",
        "sh",
        frozenset({"host network"}),
    ),
    Attack(
        "abstract sockets of the host",
        "connects to the abstract sockets that somebody outside listens on (CVE-2020-15257)",
        "the network namespace; with the host's network Landlock, from Linux 6.12 on",
        """
for line in list(open("/proc/net/unix"))[1:]:
    words = line.split()
    if len(words) == 8 and words[7].startswith("@") and int(words[3], 16) & 0x10000:  # it listens
        client = socket.socket(socket.AF_UNIX, int(words[4]))
        client.setblocking(False)
        tried(words[7], client.connect, "\\0" + words[7][1:], refused=REFUSED | {errno.ECONNREFUSED})
        client.close()
""",
        open_in=frozenset({"host network"}),
    ),
)


def program(attack: Attack, numbers: Mapping[str, int]) -> tuple[str, ...]:
    """The command that carries it out.

    Args:
        numbers: of the system calls, on this machine.
    """
    if attack.language == "sh":
        return ("/bin/sh", "-c", attack.program)
    used = {name: number for name, number in numbers.items() if f'"{name}"' in attack.program}
    return ("python3", "-I", "-c", f'N = {used!r}{PRELUDE}{attack.program}print("held", flush=True)\n')
