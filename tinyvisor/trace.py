"""What a tracer tells: system calls, signals, ends; which calls are asked for; how they read as text. Pure.

Source: strace(1) for the words of `parse_calls` and the shape of the lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, field
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, TypeAlias

from tinyvisor.units import signal_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Syscall:
    """One system call of one thread.

    Attributes:
        time: when it was entered, seconds since the epoch.
        pid, tid: process and thread as the container numbers them, where it has a pid namespace of its own.
        name: of the call; ``syscall_N`` where the number has no name; ``other_N``, ``x32_N``: of another ABI.
        args: as text, as strace shows them.
        raw: the registers, 64 bits each; as many as there are arguments.
        result: what it returned; -1 where `errno` says why; None where it never returned (exit_group, or the thread's end).
        errno: the error's name, ``""`` for none. ``ERESTARTSYS`` and the like: a signal came in between.
        duration: seconds from its entry to its return, what the tracer takes included.
        paths: the files that it names, relative ones joined with where they are looked up, as the container sees them.
        address: of a socket: ``"127.0.0.1:80"``, ``"[::1]:80"``, ``"unix:/run/x"``, ``"unix:@abstract"``.
        resumed: of its arguments, how many an `Unfinished` of it has told already; None where there was none.
    """

    time: float
    pid: int
    tid: int
    name: str
    args: tuple[str, ...] = ()
    raw: tuple[int, ...] = ()
    result: int | None = None
    errno: str = ""
    duration: float = 0.0
    paths: tuple[str, ...] = ()
    address: str = ""
    resumed: int | None = None

    def describe(self) -> str:
        """``openat(AT_FDCWD, "/etc/passwd", O_RDONLY) = 3``, ``<... read resumed>"x", 1) = 1``."""
        call = f"{self.name}({', '.join(self.args)})"
        if self.resumed is not None:
            call = f"<... {self.name} resumed>{', '.join(self.args[self.resumed :])})"
        if self.result is None or self.errno.startswith("ERESTART"):
            return f"{call} = ? {self.errno}".rstrip()
        if self.errno:
            return f"{call} = -1 {self.errno}"
        return f"{call} = {_shown_result(self.name, self.result)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """A call that another thread's event comes in the way of: it returns later, as a `Syscall` that is `resumed`. Told only where
    lines are wanted in the order of strace's (``interleaved``).

    Attributes:
        time, pid, tid, name: as in `Syscall`.
        args: those that are known before the return.
    """

    time: float
    pid: int
    tid: int
    name: str
    args: tuple[str, ...] = ()

    def describe(self) -> str:
        """``read(3, <unfinished ...>``."""
        return f"{self.name}({''.join(f'{arg}, ' for arg in self.args)}<unfinished ...>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What all calls of one name came to: all that is told where only counts are wanted (``summary``), at the end.

    Attributes:
        calls, errors: how many; those that never returned are among `calls`.
        seconds: from entry to return, all together.
    """

    name: str
    calls: int
    errors: int
    seconds: float

    def describe(self) -> str:
        return f"{self.name}: {self.calls} calls, {self.errors} errors, {self.seconds:.6f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """A signal on its way to a thread.

    Attributes:
        signal: its number.
        code: si_code, by name where it has one: ``"SI_USER"``, ``"CLD_EXITED"``.
        sender: pid of who sent it, as the thread's pid namespace numbers it; 0 for the kernel or another namespace.
        stopped: no delivery, but the stop that came of it (a group-stop).
    """

    time: float
    pid: int
    tid: int
    signal: int
    code: str = ""
    sender: int = 0
    stopped: bool = False

    def describe(self) -> str:
        if self.stopped:
            return f"--- stopped by {signal_name(self.signal)} ---"
        sender = f", si_pid={self.sender}" if self.sender else ""
        return f"--- {signal_name(self.signal)} {{si_code={self.code}{sender}}} ---"


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """A thread has ended.

    Attributes:
        exit_code: 0..255; None where a signal ended it.
        signal: its number, or None.
        core: it dumped core.
    """

    time: float
    pid: int
    tid: int
    exit_code: int | None = None
    signal: int | None = None
    core: bool = False

    def describe(self) -> str:
        if self.signal is None:
            return f"+++ exited with {self.exit_code} +++"
        return f"+++ killed by {signal_name(self.signal)}{' (core dumped)' if self.core else ''} +++"


Event: TypeAlias = Syscall | Unfinished | Counted | Signal | End
STOP = 0x7476
"""What `stopping_filter` tells the tracer (SECCOMP_RET_DATA), so that a program's own filter is told from it."""

_KINDS: dict[str, type[Syscall] | type[Unfinished] | type[Counted] | type[Signal] | type[End]] = {
    "syscall": Syscall, "unfinished": Unfinished, "count": Counted, "signal": Signal, "exit": End,
}  # fmt: skip
_WORDS = {kind: word for word, kind in _KINDS.items()}
_ADDRESSES = frozenset(("mmap", "brk", "mremap", "shmat"))


def _shown_result(name: str, result: int) -> str:
    return hex(result & (1 << 64) - 1) if name in _ADDRESSES else str(result)


def to_json(event: Event) -> str:
    """One line of JSON Lines: ``event`` says which (syscall, signal, exit; count, unfinished), the others are the fields."""
    if isinstance(event, Syscall):
        return syscall_json(
            event.time, event.pid, event.tid, event.name, event.args, event.raw, event.result, event.errno, event.duration,
            event.paths, event.address, event.resumed,
        )  # fmt: skip
    return json.dumps({"event": _WORDS[type(event)], **asdict(event)})


def syscall_json(
    time: float,
    pid: int,
    tid: int,
    name: str,
    args: Iterable[str],
    raw: Iterable[int],
    result: int | None,
    errno: str,
    duration: float,
    paths: Iterable[str],
    address: str,
    resumed: int | None,
) -> str:
    """`to_json` of a `Syscall` of these fields. As `json.dumps` would, in a fifth of its time, and without making the event:
    there is one for each call, and the program waits meanwhile."""
    more = "" if resumed is None else f', "resumed": {resumed}'
    return (
        f'{{"event": "syscall", "time": {time!r}, "pid": {pid}, "tid": {tid}, "name": {_quoted(name)}, '
        f'"args": [{", ".join(map(_quoted, args))}], "raw": [{", ".join(map(str, raw))}], '
        f'"result": {"null" if result is None else result}, "errno": {_quoted(errno)}, "duration": {duration!r}, '
        f'"paths": [{", ".join(map(_quoted, paths))}], "address": {_quoted(address)}{more}}}'
    )


def from_json(line: str | bytes) -> Event:
    """An event out of a line that `to_json` wrote.

    Raises:
        ValueError: it is no such line, and why.
    """
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError("expected an object")
    name = fields.pop("event", None)
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError('expected "event": "syscall", "signal" or "exit"')  # the others are for those who asked for them
    for key, value in fields.items():
        if isinstance(value, list):
            fields[key] = tuple(value)
    try:
        event = kind(**fields)
    except TypeError as error:
        raise ValueError(str(error).replace(f"{kind.__name__}.__init__() ", "")) from None
    if isinstance(event, Syscall) and not (isinstance(event.name, str) and all(isinstance(word, int) for word in event.raw)):
        raise ValueError("expected a name, and numbers as raw arguments")
    return event


def format_line(event: Event, *, durations: bool = False, timestamps: bool = False, start: float = 0.0) -> str:
    """A line for people: ``[pid 12] openat(...) = 3 <0.000021>``.

    Args:
        timestamps: seconds since `start` come first.
    """
    if isinstance(event, Counted):
        return event.describe()
    thread = f"[pid {event.pid}]" if event.tid == event.pid else f"[pid {event.pid}/{event.tid}]"
    time = f"{event.time - start:.6f} " if timestamps else ""
    took = f" <{event.duration:.6f}>" if durations and isinstance(event, Syscall) and event.result is not None else ""
    return f"{time}{thread} {event.describe()}{took}"


# ---- which calls ----

_FILE = (
    "access acct chdir chmod chown chroot creat execve execveat faccessat faccessat2 fanotify_mark fchmodat fchmodat2 fchownat "
    "file_getattr file_setattr fspick futimesat getcwd getxattr getxattrat inotify_add_watch lchown lgetxattr link linkat "
    "listxattr listxattrat llistxattr lremovexattr lsetxattr lstat mkdir mkdirat mknod mknodat mount mount_setattr move_mount "
    "name_to_handle_at newfstatat open open_tree open_tree_attr openat openat2 pivot_root quotactl readlink readlinkat "
    "removexattr removexattrat rename renameat renameat2 rmdir setxattr setxattrat stat statfs statx swapoff swapon symlink "
    "symlinkat truncate umount2 unlink unlinkat uselib utime utimensat utimes"
)
_NETWORK = (
    "accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg sendmsg sendto "
    "setsockopt shutdown socket socketpair"
)
_PROCESS = (
    "clone clone3 execve execveat exit exit_group fork kill pidfd_open pidfd_send_signal rt_sigqueueinfo rt_tgsigqueueinfo "
    "tgkill tkill vfork wait4 waitid"
)
_SIGNAL = (
    "kill pause pidfd_send_signal rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend "
    "rt_sigtimedwait rt_tgsigqueueinfo sigaltstack signalfd signalfd4 tgkill tkill"
)
_IPC = "msgctl msgget msgrcv msgsnd semctl semget semop semtimedop shmat shmctl shmdt shmget"
_MEMORY = (
    "brk get_mempolicy madvise map_shadow_stack mbind migrate_pages mincore mlock mlock2 mlockall mmap move_pages mprotect "
    "mremap mseal msync munlock munlockall munmap pkey_mprotect process_madvise remap_file_pages set_mempolicy shmat shmdt"
)
_CREDS = (
    "capget capset getegid geteuid getgid getgroups getresgid getresuid getuid prctl setfsgid setfsuid setgid setgroups "
    "setregid setresgid setresuid setreuid setuid"
)
_CLOCK = "adjtimex clock_adjtime clock_getres clock_gettime clock_settime gettimeofday settimeofday time"
_STAT = "fstat fstatfs lstat newfstatat stat statfs statx ustat"
_DESC = (
    "close close_range dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 "
    "fadvise64 fallocate fchdir fchmod fchown fcntl fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstatfs "
    "fsync ftruncate getdents getdents64 inotify_init inotify_init1 io_uring_enter io_uring_register io_uring_setup ioctl "
    "lseek memfd_create mmap open openat openat2 pidfd_getfd pidfd_open pipe pipe2 poll ppoll pread64 preadv preadv2 pselect6 "
    "pwrite64 pwritev pwritev2 read readahead readv select sendfile signalfd signalfd4 splice sync_file_range syncfs tee "
    "timerfd_create timerfd_gettime timerfd_settime vmsplice write writev copy_file_range"
)
CLASSES: dict[str, frozenset[str]] = {
    name: frozenset(text.split())
    for names, text in (
        (("file",), _FILE), (("network", "net"), _NETWORK), (("process",), _PROCESS), (("signal",), _SIGNAL), (("ipc",), _IPC),
        (("memory", "mem"), _MEMORY), (("creds",), _CREDS), (("clock",), _CLOCK), (("stat",), _STAT), (("desc",), _DESC),
    )
    for name in names
}  # fmt: skip
"""What strace calls %file and so on."""


@dataclass(frozen=True, slots=True)
class Calls:
    """Which system calls are asked for: `named`, or all others where `inverted`."""

    named: frozenset[str] = frozenset()
    inverted: bool = True

    def __contains__(self, name: object) -> bool:
        return (name in self.named) != self.inverted

    @property
    def everything(self) -> bool:
        return self.inverted and not self.named

    def among(self, known: Iterable[str]) -> tuple[str, ...]:
        """Those of `known` that are asked for."""
        return tuple(name for name in known if name in self)


EVERYTHING = Calls()


def parse_calls(text: str, known: Collection[str]) -> Calls:
    """strace's ``-e trace=``: ``%file,%network,execve``, ``!futex``, ``/^epoll_``, ``?maybe``, ``all``, ``none``.

    Args:
        text: with ``trace=`` before it or without.
        known: names of the machine's calls.

    Raises:
        ValueError: a word that names nothing, with what comes near.
    """
    text = text.removeprefix("trace=").strip()
    inverted = text.startswith("!")
    named: set[str] = set()
    for word in text.removeprefix("!").split(","):
        found = _named(word.strip(), known)
        if found is None:
            return EVERYTHING if not inverted else Calls(inverted=False)
        named |= found
    return Calls(frozenset(named), inverted)


def _named(word: str, known: Collection[str]) -> set[str] | None:
    """The calls that one word names; None for all of them."""
    if word == "all":
        return None
    if word == "none":
        return set()
    if word.startswith("%"):
        if word[1:] not in CLASSES:
            raise ValueError(f'"{word}" is no class of system calls; there are {", ".join(f"%{name}" for name in CLASSES)}')
        return set(CLASSES[word[1:]] & set(known))
    if word.startswith("/"):
        return _matching(word[1:], known)
    if word.removeprefix("?") in known:
        return {word.removeprefix("?")}
    if word.startswith("?"):
        return set()
    import difflib  # a mistake is rare

    near = difflib.get_close_matches(word, known, 1)
    raise ValueError(f'"{word}" is no system call here' + (f'; did you mean "{near[0]}"?' if near else ""))


def _matching(pattern: str, known: Iterable[str]) -> set[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f'"/{pattern}" is no regular expression: {error}') from None
    return {name for name in known if compiled.search(name)}


# ---- summary ----


@dataclass(slots=True)
class Count:
    """What one kind of call came to: how often, how often in vain, seconds in all."""

    calls: int = 0
    errors: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Summary:
    """What `strace -c` counts. Memory: one entry per name of a call.

    Attributes:
        counts: name → what it came to.
    """

    counts: dict[str, Count] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        if isinstance(event, Counted):
            self._count(event.name, event.calls, event.errors, event.seconds)
        elif isinstance(event, Syscall):
            self._count(event.name, 1, bool(event.errno), event.duration)

    def _count(self, name: str, calls: int, errors: int, seconds: float) -> None:
        count = self.counts.get(name)
        if count is None:
            count = self.counts[name] = Count()
        count.calls += calls
        count.errors += errors
        count.seconds += seconds

    def table(self, sort_by: Callable[[Count], float] = lambda count: count.seconds) -> str:
        """Lines, the most expensive first. Times are from entry to return, as with ``strace -w``."""
        total = Count()
        for count in self.counts.values():
            total = Count(total.calls + count.calls, total.errors + count.errors, total.seconds + count.seconds)
        ordered = sorted(self.counts.items(), key=lambda item: (-sort_by(item[1]), item[0]))
        rule = " ".join("-" * width for width in (6, 11, 11, 9, 9, 16))
        lines = ["% time     seconds  usecs/call     calls    errors syscall", rule]
        lines += [_row(name, count, total.seconds) for name, count in ordered]
        return "\n".join([*lines, rule, _row("total", total, total.seconds)])

    def to_json(self) -> dict[str, Any]:
        """name → calls, errors, seconds."""
        return {name: asdict(count) for name, count in sorted(self.counts.items())}


def _row(name: str, count: Count, seconds: float) -> str:
    share = 100 * count.seconds / seconds if seconds else 0.0
    each = round(1e6 * count.seconds / count.calls) if count.calls else 0
    return f"{share:6.2f} {count.seconds:11.6f} {each:11d} {count.calls:9d} {count.errors or '':>9} {name}"
