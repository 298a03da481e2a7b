"""The tracer: seizes processes, follows what they start, writes an event per system call. Single-threaded and blocking.

The only module that imports python-ptrace. From there come ptrace(2) itself and its constants; the loop is our own, because
python-ptrace's does not know PTRACE_SEIZE: group-stops would be lost, a tracer that dies would leave its tracees behind, a
new thread would be told from a signal by guessing. A thread is between stops either running or, in a group-stop, listening;
what it is in is what the kernel says at each stop (PTRACE_GET_SYSCALL_INFO), never what we remember. Every request may find
the thread killed (ESRCH): its end is then on its way to waitpid.

Nothing polls: all sleep in one waitpid, out of which a thread that reads stdin signals when there is a word, again and again
until it is heard: a signal may come just before the wait begins. What a stop costs, the program waits, twice for each of its
calls: so the requests that each stop takes are made here, without the checks that python-ptrace puts around them, and where
only counts are wanted (`Counting`) nothing is decoded.

Sources: ptrace(2), kernel/ptrace.c, kernel/signal.c (do_jobctl_trap, ptrace_signal), Linux 5.12 on.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import json
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from time import perf_counter
from typing import Any

from ptrace.binding import func
from ptrace.error import PtraceError

from tinyvisor.profile import Condition
from tinyvisor.trace import STOP, Counted, End, Event, Signal, Unfinished, syscall_json, to_json
from tinyvisor.tracing.decode import Call, split_result
from tinyvisor.tracing.flags import CHILD_CODES, FAULT_CODES, SIGNAL_CODES

# linux/ptrace.h: what python-ptrace has no name for
SEIZE, INTERRUPT, LISTEN, GET_SYSCALL_INFO = 0x4206, 0x4207, 0x4208, 0x420E
EVENT_SECCOMP, EVENT_STOP = 7, 128
O_TRACESECCOMP, O_EXITKILL = 1 << 7, 1 << 20
ENTRY, EXIT, SECCOMP = 1, 2, 3
_CONT, _SYSCALL = func.PTRACE_CONT, func.PTRACE_SYSCALL
_HOT = ((signal.SIGTRAP | 0x80) << 8 | 0x7F, EVENT_SECCOMP << 16 | signal.SIGTRAP << 8 | 0x7F)
"""What waitpid says of who stops at a call."""

_WALL = func.THREAD_TRACE_FLAGS
_STOPS = frozenset((signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU))
_ENTERED = struct.Struct("=7Q")
_INFO_SIZE, _INFO, _RET_DATA = 96, 24, 80  # of struct ptrace_syscall_info: bytes asked for; where these begin
_IS_ERROR = _INFO + 8
_NUMBERED = struct.Struct("=I16xQ")  # from byte 4 on: the ABI, and the call's number
_X32 = 1 << 30
_X86 = os.uname().machine == "x86_64"
_FLUSH_SIZE = 32 << 10
_FLUSH_AFTER = 0.02
"""Seconds that an event waits for others, so that a busy program's are written together."""


@dataclass(frozen=True, slots=True)
class ReadRule:
    """A `spec.SyscallRule` that is about what pointers point to."""

    names: frozenset[str]
    action: str
    path: str
    address: str
    conditions: tuple[Condition, ...]

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> ReadRule:
        conditions = tuple(Condition(*parts) for parts in found["conditions"])
        return cls(frozenset(found["names"]), found["action"], found["path"], found["address"], conditions)

    def fits(self, call: Call, paths: tuple[str, ...]) -> bool:
        """What can't be read is denied, and never allowed."""
        if call.name not in self.names:
            return False
        if not all(one.index < len(call.raw) and one.holds(call.raw[one.index]) for one in self.conditions):
            return False
        nowhere = any(given and not path.startswith("/") for (_, given), path in zip(call.paths, paths, strict=True))
        if call.unread or nowhere:
            return self.action == "deny"
        if self.path and not any(fnmatchcase(os.path.normpath(path), self.path) for path in paths):
            return False
        return not self.address or bool(call.address and fnmatchcase(call.address, self.address))


@dataclass(frozen=True, slots=True)
class Task:
    """What the tracer is asked for; a line of JSON on its stdin.

    Attributes:
        pids: processes to seize.
        trees: processes whose descendants are seized.
        launching: the one in `pids` has not yet exec'ed what is to be traced. It, and all it starts, die with us; who ran before
            us runs on.
        names: number of a call → its name.
        wanted: names of calls that are reported; None for all.
        audit: AUDIT_ARCH_* that the numbers are of.
        filtered: a seccomp filter stops the program at what is wanted; else it stops at everything.
        limit: bytes that are shown of strings and data.
        counting: only counts are wanted, at the end.
        rules: which calls are denied, or told of although nobody asks: the first that fits decides.
        interleaved: calls that another thread's event comes in the way of are told of twice, as strace does.
    """

    names: dict[int, str]
    audit: int
    pids: tuple[int, ...] = ()
    trees: tuple[int, ...] = ()
    launching: bool = False
    wanted: frozenset[str] | None = None
    filtered: bool = False
    limit: int = 32
    counting: bool = False
    interleaved: bool = False
    rules: tuple[ReadRule, ...] = ()

    @classmethod
    def from_json(cls, line: bytes) -> Task:
        fields: dict[str, Any] = json.loads(line)
        fields["names"] = {number: name for name, number in fields["names"].items()}
        fields["wanted"] = None if fields["wanted"] is None else frozenset(fields["wanted"])
        fields["rules"] = tuple(ReadRule.from_json(rule) for rule in fields["rules"])
        return cls(**{**fields, "pids": tuple(fields["pids"]), "trees": tuple(fields["trees"])})


class _IoVector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


# PyDLL: the GIL is nobody else's business, and giving it away twice a stop is dear. But a wait lets the other thread run.
_libc = ctypes.PyDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)
_ptrace.restype = ctypes.c_long
_waitpid = ctypes.CDLL(None, use_errno=True).waitpid
_waitpid.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_waitpid.restype = ctypes.c_int
_vm_read = _libc.process_vm_readv
_vm_read.argtypes = (
    ctypes.c_int, ctypes.POINTER(_IoVector), ctypes.c_ulong, ctypes.POINTER(_IoVector), ctypes.c_ulong, ctypes.c_ulong,
)  # fmt: skip
_vm_read.restype = ctypes.c_ssize_t


class ThreadMemory:
    """A thread's memory, by process_vm_readv(2)."""

    _buffer = ctypes.create_string_buffer(64 << 10)
    _address = ctypes.addressof(_buffer)
    _local = _IoVector(_address, 0)
    _remote = _IoVector(0, 0)

    def __init__(self, tid: int) -> None:
        self._tid = tid

    def read(self, address: int, size: int) -> bytes:
        size = min(size, len(self._buffer))  # the kernel copies page by page, up to one that is not there
        self._local.size = self._remote.size = size
        self._remote.base = address & (1 << 64) - 1
        count = _vm_read(self._tid, self._local, 1, self._remote, 1, 0)
        return ctypes.string_at(self._address, count) if count > 0 else b""


class Thread:
    """One thread that is traced.

    Attributes:
        tid: as we number it.
        inner_pid, inner_tid: as its own pid namespace does.
        call: the one that it is in, where that is wanted.
        tally: what counts that call, where only counts are wanted.
        denied: the call is not made.
        resumed: arguments of the call that were told of already.
        launching: it has not yet exec'ed what is to be traced.
    """

    __slots__ = (
        "call", "denied", "entered", "inner_pid", "inner_tid", "launching", "memory", "paths", "resumed", "started", "tally",
        "tid",
    )  # fmt: skip

    def __init__(self, tid: int, launching: bool = False, *, named: bool = True) -> None:
        self.tid: int = tid
        self.inner_pid: int
        self.inner_tid: int
        self.inner_pid, self.inner_tid = _inner_numbers(tid) if named else (0, 0)
        self.memory: ThreadMemory = ThreadMemory(tid)
        self.call: Call | None = None
        self.denied: bool = False
        self.tally: Tally | None = None
        self.resumed: int | None = None
        self.paths: tuple[str, ...] = ()
        self.entered: float = 0.0
        self.started: float = 0.0
        self.launching: bool = launching


def _inner_numbers(tid: int) -> tuple[int, int]:
    found = {}
    with contextlib.suppress(OSError), open(f"/proc/{tid}/status", "rb") as file:
        for line in file:
            if line.startswith((b"NStgid:", b"NSpid:")):
                found[line[:5]] = int(line.split()[-1])
    return found.get(b"NStgi", 0), found.get(b"NSpid", 0)  # 0: it was killed meanwhile


class Output:
    """Lines for whoever reads our stdout. Blocks where nobody does: then the program waits, and nothing is lost.

    Attributes:
        due: time to `flush`.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lines: list[str] = []
        self._size = 0
        self._ticking = False
        self.due: bool = False

    def write(self, line: str) -> None:
        self._lines.append(line)
        self._size += len(line)
        if self._size >= _FLUSH_SIZE:
            self.flush()
        elif not self._ticking:
            self._tick(_FLUSH_AFTER)

    def tick(self, number: int, frame: object) -> None:
        """SIGALRM: what has been written has waited long enough. It comes again while that lasts."""
        self.due = True

    def _tick(self, seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
        self._ticking = seconds > 0

    def flush(self) -> None:
        self.due = False
        if not self._lines:  # since the last time: let it rest
            self._tick(0)
            return
        data = memoryview("".join(line + "\n" for line in self._lines).encode())
        self._lines.clear()
        self._size = 0
        while data:
            data = data[os.write(self._fd, data) :]


class Tracer:
    """The threads that are traced, and what comes of each of their stops.

    Attributes:
        detaching: each is let go of at its next stop.
        words: what was said on stdin, b"" for its end; None: nothing yet.
    """

    def __init__(self, task: Task, output: Output) -> None:
        self._task = task
        self._output = output
        self._threads: dict[int, Thread] = {}
        self.detaching: bool = False
        self.words: bytes | None = None
        self._ruled = frozenset(name for rule in task.rules for name in rule.names)
        self._open: Thread | None = None  # whose call was entered last, and not told of since
        self._info = bytearray(_INFO_SIZE)
        self._info_address = ctypes.addressof(ctypes.c_char.from_buffer(self._info))
        self._status = ctypes.c_int()
        self._options = (
            func.PTRACE_O_TRACESYSGOOD | func.PTRACE_O_TRACEFORK | func.PTRACE_O_TRACEVFORK | func.PTRACE_O_TRACECLONE
            | func.PTRACE_O_TRACEEXEC | (O_EXITKILL if task.launching else 0) | (O_TRACESECCOMP if task.filtered else 0)
        )  # fmt: skip

    # ---- seizing ----

    def seize(self) -> None:
        """All that the task asks for, each thread stopped once, so that from then on it stops at what is wanted.

        Raises:
            PtraceError: the first of `Task.pids` can't be traced; with its errno.
        """
        for pid in self._task.pids:
            self._seize_process(pid, must=True)
            if pid not in self._threads:
                raise PtraceError(f"process {pid} is gone", errno=errno.ESRCH, pid=pid)
        before = -1
        while before != len(self._threads):  # what is started by those that we did not have yet
            before = len(self._threads)
            for root in self._task.trees:
                for pid in _descendants(root):
                    self._seize_process(pid, must=False)

    def _seize_process(self, pid: int, *, must: bool) -> None:
        before = -1
        while before != len(self._threads):
            before = len(self._threads)
            for tid in _numbers_in(f"/proc/{pid}/task"):
                if tid not in self._threads:
                    self._seize_thread(tid, must=must and tid == pid)

    def _seize_thread(self, tid: int, *, must: bool) -> None:
        try:
            func.ptrace(SEIZE, tid, 0, self._options)
        except PtraceError as error:
            if must:
                raise
            if _tracer_of(tid) == os.getpid():  # a child of one that is ours already
                self._threads.setdefault(tid, self._thread(tid))
            elif _tracer_of(tid):
                raise Traced(tid, _tracer_of(tid)) from error
            return
        self._threads[tid] = self._thread(tid, self._task.launching)
        if not (self._task.launching and self._task.filtered):  # that one is stopped by its filter
            self._request(INTERRUPT, tid)
            if self._task.launching:  # else they come by as they come
                self.handle(*os.waitpid(tid, _WALL))

    def _thread(self, tid: int, launching: bool = False) -> Thread:
        return Thread(tid, launching)

    def detach(self) -> None:
        """Lets go of every thread at its next stop, which comes at once."""
        self.detaching = True
        for tid in tuple(self._threads):
            self._request(INTERRUPT, tid)

    # ---- stops ----

    def follow(self) -> None:
        """Answers stops until nobody is left: all have ended, or were let go of."""
        status, address, threads, output = self._status, ctypes.addressof(self._status), self._threads, self._output
        while True:
            tid = _waitpid(-1, address, _WALL)
            if tid > 0:
                word = status.value
                thread = threads.get(tid)
                if thread is not None and word in _HOT and not self.detaching:
                    self._at_call(thread)
                    request = _CONT if thread.call is None and thread.tally is None and self._task.filtered else _SYSCALL
                    if _ptrace(request, tid, 0, 0) < 0 and ctypes.get_errno() != errno.ESRCH:  # killed
                        raise PtraceError(f"ptrace({request}): errno {ctypes.get_errno()}", ctypes.get_errno(), tid)
                else:
                    self.handle(tid, word)
            elif ctypes.get_errno() == errno.ECHILD:
                break
            if self.words is not None and not self.detaching:
                self.detach()
            if output.due:
                output.flush()
        self.finish()

    def finish(self) -> None:
        """There is nothing more to come."""

    def handle(self, tid: int, status: int) -> None:
        """One answer of waitpid's."""
        thread = self._threads.get(tid)
        if thread is None:  # its first stop; its parent's event may come later
            thread = self._threads[tid] = self._thread(tid)
        if not os.WIFSTOPPED(status):
            self._end(thread, status)
            return
        number, event = status >> 8 & 0xFF, status >> 16
        if number == signal.SIGTRAP | 0x80 or event == EVENT_SECCOMP:
            self._at_call(thread)
        elif event == func.PTRACE_EVENT_EXEC:
            thread = self._at_exec(thread)
        elif event == EVENT_STOP and number in _STOPS:
            if not self.detaching:
                self._emit_signal(thread, number, stopped=True)
                self._request(LISTEN, tid)  # stays stopped, and still hears SIGCONT
                return
        elif not event:
            self._emit_signal(thread, number)
            self._resume(thread, number)
            return
        self._resume(thread)

    def _resume(self, thread: Thread, number: int = 0) -> None:
        if self.detaching:
            self._unfinished(thread)
            self._request(func.PTRACE_DETACH, thread.tid, number)
            del self._threads[thread.tid]
        elif self._task.filtered and thread.call is None and thread.tally is None:
            self._request(func.PTRACE_CONT, thread.tid, number)
        else:
            self._request(func.PTRACE_SYSCALL, thread.tid, number)

    def _request(self, request: int, tid: int, data: int = 0) -> bool:
        try:
            func.ptrace(request, tid, 0, data)
        except PtraceError as error:
            if error.errno != errno.ESRCH:  # killed
                raise
            return False
        return True

    def _at_call(self, thread: Thread) -> None:
        if _ptrace(GET_SYSCALL_INFO, thread.tid, _INFO_SIZE, self._info_address) < 0:
            return
        data = self._info
        if data[0] == EXIT:
            if thread.call is not None:
                value = int.from_bytes(data[_INFO : _INFO + 8], "little")
                if thread.denied:  # a filter may have been asked about the number -1, and have said something else
                    value = self._deny(thread)
                self._returned(thread, value)
        elif data[0] in (ENTRY, SECCOMP):
            if data[0] == SECCOMP and int.from_bytes(data[_RET_DATA : _RET_DATA + 4], "little") != STOP:
                self._refuse(thread)
            number, *registers = _ENTERED.unpack_from(data, _INFO)
            self._entered(thread, self._name(number, int.from_bytes(data[4:8], "little")), tuple(registers))

    def _refuse(self, thread: Thread) -> None:
        """A filter of the program's own asks for a tracer. It has none, and without us gets ENOSYS, which is in rax by now."""
        with contextlib.suppress(PtraceError):
            registers = func.ptrace_getregs(thread.tid)
            registers.orig_rax = (1 << 64) - 1
            func.ptrace_setregs(thread.tid, registers)

    def _name(self, number: int, audit: int) -> str:
        if audit != self._task.audit:
            return f"other_{number}"  # of the 32-bit table
        if number & _X32:
            return f"x32_{number & ~_X32}"
        return self._task.names.get(number) or f"syscall_{number}"

    def _entered(self, thread: Thread, name: str, registers: tuple[int, ...]) -> None:
        wanted = self._task.wanted
        unwanted = wanted is not None and name not in wanted and name not in self._ruled
        if unwanted or (thread.launching and name not in ("execve", "execveat")):
            thread.call = None
            return
        thread.entered = time.time()
        thread.call = Call(name, registers, thread.memory, self._task.limit, x86=_X86)
        thread.paths = tuple(os.fsdecode(_located(thread.tid, *found)) for found in thread.call.paths)
        thread.resumed, thread.denied = None, False
        if name in self._ruled and not thread.launching:
            self._apply_rules(thread)
        if self._task.interleaved and thread.call is not None:
            self._interrupt(thread)
            self._open = thread
        thread.started = time.perf_counter()

    def _apply_rules(self, thread: Thread) -> None:
        call = thread.call
        assert call is not None
        rule = next((rule for rule in self._task.rules if rule.fits(call, thread.paths)), None)
        if rule is not None and rule.action == "deny":
            self._deny(thread, entered=True)
        wanted = self._task.wanted
        if wanted is not None and call.name not in wanted and (rule is None or rule.action == "allow"):
            thread.call = None

    def _deny(self, thread: Thread, *, entered: bool = False) -> int:
        """The call is not made, and fails with EPERM, which is what it returns; `entered`: its return is still to come."""
        failed = (1 << 64) - errno.EPERM
        thread.denied = entered
        try:
            registers = func.ptrace_getregs(thread.tid)
            if entered:
                registers.orig_rax = (1 << 64) - 1
            registers.rax = failed
            func.ptrace_setregs(thread.tid, registers)
        except PtraceError as error:
            if error.errno != errno.ESRCH:  # killed: then it makes no call either
                raise
        return failed

    def _interrupt(self, by: Thread | None) -> None:
        """An event of another thread's: whose call is open is told of as unfinished."""
        thread, self._open = self._open, None
        if thread is not None and thread is not by and thread.call is not None and not thread.launching:
            args = thread.call.begun()
            thread.resumed = len(args)
            self._emit(
                Unfinished(
                    time=thread.entered, pid=thread.inner_pid, tid=thread.inner_tid, name=thread.call.name, args=args
                )
            )  # fmt: skip

    def _returned(self, thread: Thread, value: int) -> None:
        call, thread.call = thread.call, None
        duration = time.perf_counter() - thread.started
        if call is None or thread.launching:
            return
        result, error = split_result(value)
        self._emit_call(thread, call, call.finish(value if not error else -1), result, error, duration)

    def _unfinished(self, thread: Thread) -> None:
        call, thread.call = thread.call, None
        if call is not None and not thread.launching:
            self._emit_call(thread, call, call.unfinished(), None, "", time.perf_counter() - thread.started)

    def _emit_call(
        self, thread: Thread, call: Call, args: tuple[str, ...], result: int | None, error: str, duration: float
    ) -> None:
        if self._open is not None:
            self._interrupt(thread)
        self._output.write(
            syscall_json(
                thread.entered, thread.inner_pid, thread.inner_tid, call.name, args, call.raw, result, error, duration,
                thread.paths, call.address, thread.resumed,
            )
        )  # fmt: skip

    def _at_exec(self, thread: Thread) -> Thread:
        """All threads but the one that called are gone, and it has the leader's number now."""
        former = ctypes.c_ulong()
        with contextlib.suppress(PtraceError):
            func.ptrace(func.PTRACE_GETEVENTMSG, thread.tid, 0, ctypes.addressof(former))
        caller = self._threads.pop(former.value, None) if former.value != thread.tid else None
        if caller is not None:
            self._unfinished(thread)
            for name in ("call", "tally", "entered", "started", "paths", "resumed"):
                setattr(thread, name, getattr(caller, name))
            self._open = thread if self._open is caller else self._open
        thread.launching = False
        return thread

    def _end(self, thread: Thread, status: int) -> None:
        del self._threads[thread.tid]
        self._unfinished(thread)
        if thread.launching:
            return
        self._interrupt(None)
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        self._emit(
            End(
                time=time.time(), pid=thread.inner_pid, tid=thread.inner_tid, exit_code=code, signal=number,
                core=os.WIFSIGNALED(status) and os.WCOREDUMP(status),
            )
        )  # fmt: skip

    def _emit_signal(self, thread: Thread, number: int, *, stopped: bool = False) -> None:
        if thread.launching:
            return
        self._interrupt(None)
        code, sender = "", 0
        if not stopped:
            with contextlib.suppress(PtraceError):
                info = ctypes.create_string_buffer(128)
                func.ptrace(func.PTRACE_GETSIGINFO, thread.tid, 0, ctypes.addressof(info))
                code_number = int.from_bytes(info.raw[8:12], "little", signed=True)
                code = _code_name(number, code_number)
                if code_number <= 0 or number == signal.SIGCHLD:
                    sender = int.from_bytes(info.raw[16:20], "little", signed=True)
        self._emit(
            Signal(
                time=time.time(), pid=thread.inner_pid, tid=thread.inner_tid, signal=number, code=code, sender=sender,
                stopped=stopped,
            )
        )  # fmt: skip

    def _emit(self, event: Event) -> None:
        self._output.write(to_json(event))


@dataclass(slots=True)
class Tally:
    """As `trace.Counted`."""

    calls: int = 0
    errors: int = 0
    seconds: float = 0.0


MAX_KINDS = 1024
"""Calls that are counted apart, before those of unknown numbers are counted together."""

REST = "others"


class Counting(Tracer):
    """Only counts, told at the end."""

    def __init__(self, task: Task, output: Output) -> None:
        super().__init__(task, output)
        self._tallies: dict[int, Tally | None] = {}  # by number; None: not wanted
        self._others: dict[str, Tally] = {}  # of another ABI

    def _thread(self, tid: int, launching: bool = False) -> Thread:
        return Thread(tid, launching, named=False)

    def _at_call(self, thread: Thread) -> None:
        if _ptrace(GET_SYSCALL_INFO, thread.tid, _INFO_SIZE, self._info_address) < 0:
            return
        data = self._info
        tally = thread.tally
        if data[0] == EXIT:
            if tally is not None:
                tally.seconds += perf_counter() - thread.started
                tally.calls += 1
                tally.errors += data[_IS_ERROR]
                thread.tally = None
        elif data[0] in (ENTRY, SECCOMP):
            if data[0] == SECCOMP and int.from_bytes(data[_RET_DATA : _RET_DATA + 4], "little") != STOP:
                self._refuse(thread)
            thread.tally = self._tally(thread, *_NUMBERED.unpack_from(data, 4))
            thread.started = perf_counter()

    def _tally(self, thread: Thread, audit: int, number: int) -> Tally | None:
        if audit == self._task.audit and number in self._tallies and not thread.launching:
            return self._tallies[number]
        name, wanted = self._name(number, audit), self._task.wanted
        if thread.launching:
            return Tally() if name in ("execve", "execveat") else None  # counted where it works: _at_exec
        known = audit == self._task.audit and number in self._task.names
        if not known and name not in self._others and len(self._others) >= MAX_KINDS:
            name = REST  # it makes numbers up, and our memory counts against no limit of its
        tally = None if wanted is not None and name not in wanted else self._others.setdefault(name, Tally())
        if known:
            self._tallies[number] = tally
        return tally

    def _at_exec(self, thread: Thread) -> Thread:
        was_launching = thread.launching
        thread = super()._at_exec(thread)
        if was_launching:
            name = "execve"
            wanted = self._task.wanted is None or name in self._task.wanted
            thread.tally = self._others.setdefault(name, Tally()) if wanted else None
        return thread

    def _emit_signal(self, thread: Thread, number: int, *, stopped: bool = False) -> None:
        """Signals and ends count for nothing."""

    def _unfinished(self, thread: Thread) -> None:
        tally, thread.tally = thread.tally, None
        if tally is not None:
            tally.calls += 1
            tally.seconds += perf_counter() - thread.started

    def _emit(self, event: Event) -> None:
        """As `_emit_signal`."""

    def finish(self) -> None:
        for name, tally in sorted(self._others.items()):
            if tally.calls:
                self._output.write(to_json(Counted(name=name, calls=tally.calls, errors=tally.errors, seconds=tally.seconds)))


class Traced(Exception):
    """Another tracer has it: (its tid, the tracer's)."""


def _code_name(number: int, code: int) -> str:
    names = {int(signal.SIGCHLD): CHILD_CODES, int(signal.SIGSEGV): FAULT_CODES}.get(number, {})
    return names.get(code) or SIGNAL_CODES.get(code) or str(code)


def _numbers_in(directory: str) -> list[int]:
    try:
        return [int(name) for name in os.listdir(directory) if name.isdecimal()]
    except OSError:
        return []


def _descendants(root: int) -> Iterator[int]:
    left = [root]
    while left:
        pid = left.pop()
        for tid in _numbers_in(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{tid}/children") as file:
                children = [int(word) for word in file.read().split()]
                yield from children
                left += children


def _tracer_of(tid: int) -> int:
    with contextlib.suppress(OSError), open(f"/proc/{tid}/status", "rb") as file:
        for line in file:
            if line.startswith(b"TracerPid:"):
                return int(line.split()[1])
    return 0


def _located(tid: int, directory: int | None, path: bytes) -> bytes:
    """A path as the thread's root has it: a relative one behind the directory that it is looked up in."""
    if path.startswith(b"/"):
        return path
    try:
        base = os.readlink(b"/proc/%d/cwd" % tid if directory is None else b"/proc/%d/fd/%d" % (tid, directory))
        root = os.readlink(b"/proc/%d/root" % tid)
    except OSError:
        return path
    if root != b"/" and (base + b"/").startswith(root + b"/"):
        base = base[len(root) :] or b"/"
    return os.path.join(base, path) if path else base


# ---- the process ----


def _listen(control: int, tracer: Tracer, launching: bool) -> None:
    """Has `tracer` hear the one word that is said, or that our starter is gone; a thread."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    words = os.read(control, 4096)
    if not words and launching:
        os._exit(1)  # O_EXITKILL
    tracer.words = words
    while not tracer.detaching:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        time.sleep(0.005)


def trace(task: Task, control: int, output: Output) -> None:
    """Traces to the end of all: none is left, we let go of them, or whoever started us is gone (then they are killed)."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, output.tick)
    signal.signal(signal.SIGUSR1, lambda number, frame: None)  # comes out of the wait
    tracer = (Counting if task.counting else Tracer)(task, output)
    tracer.seize()
    output.write('{"event": "ready"}')
    output.flush()
    threading.Thread(target=_listen, args=(control, tracer, task.launching), daemon=True).start()
    gc.freeze()  # what is here stays, and is not looked through again
    tracer.follow()
    output.write('{"event": "end"}')
    output.flush()


def main() -> None:
    """Reads a `Task` from stdin and writes events to stdout; a failure to start is a line, too."""
    output = Output(1)
    line = bytearray()
    while not line.endswith(b"\n"):  # byte by byte: what follows is for the loop
        byte = os.read(0, 1)
        if not byte:
            return
        line += byte
    try:
        trace(Task.from_json(bytes(line)), 0, output)
    except BrokenPipeError:
        os._exit(1)
    except Traced as error:
        output.write(json.dumps({"event": "refused", "errno": 1, "by": error.args[1]}))
        output.flush()
    except PtraceError as error:
        output.write(json.dumps({"event": "refused", "errno": error.errno or 0}))
        output.flush()
