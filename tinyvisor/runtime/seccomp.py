"""seccomp profile → classic BPF program, and a simulator that says what such a program does. Pure.

A program first looks at the architecture: the calls of another one have other numbers, so they kill the process. Then a
decision tree over ranges of numbers, in which what programs call all the time is nearer to the root; then, for few calls,
comparisons of arguments, both halves of them. The kernel runs the tree once per number when the filter is installed and
remembers what is always allowed (5.11), so a tree also makes the installation cheap.

Source: seccomp(2), linux/seccomp.h, linux/filter.h, linux/audit.h, kernel/seccomp.c (seccomp_check_filter,
seccomp_is_const_allow); runc libcontainer/seccomp/patchbpf for ENOSYS.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from tinyvisor.profile import KILL, LET_THROUGH, Action, Condition, Profile, Rule
from tinyvisor.runtime.syscall_numbers import NUMBERS

MAX_INSTRUCTIONS = 4096
"""linux/bpf_common.h BPF_MAXINSNS."""

ALLOW, KILL_PROCESS, ENOSYS = Action("allow"), Action("kill_process"), Action("errno", errno.ENOSYS)

# linux/seccomp.h SECCOMP_RET_*
_RETURNS = {
    "kill_process": 0x80000000, "kill_thread": 0, "trap": 0x30000, "errno": 0x50000, "notify": 0x7FC00000, "trace": 0x7FF00000,
    "log": 0x7FFC0000, "allow": 0x7FFF0000,
}  # fmt: skip
_KINDS = {value: kind for kind, value in _RETURNS.items()}

# linux/filter.h, linux/bpf_common.h: the few instructions that are used here
LD_ABS, JA, JEQ, JGT, JGE, AND, RET = 0x20, 0x05, 0x15, 0x25, 0x35, 0x54, 0x06
_INSTRUCTION = struct.Struct("=HBBI")
_NUMBER, _ARCH, _ARGUMENTS, _DATA_SIZE = 0, 4, 16, 64  # offsets in struct seccomp_data
_FAR = 255  # the longest conditional jump

_LAST_OF_OLD = 423  # above, numbers are given out in the order of time, and on all machines alike

_FREQUENT = (
    "read", "write", "close", "openat", "fstat", "newfstatat", "lseek", "mmap", "munmap", "mprotect", "brk", "madvise", "futex",
    "clock_nanosleep", "poll", "ppoll", "epoll_wait", "epoll_pwait", "recvfrom", "sendto", "recvmsg", "sendmsg", "readv",
    "writev", "pread64", "pwrite64", "rt_sigaction", "rt_sigprocmask", "getpid", "gettid", "sched_yield",
)  # fmt: skip
_WEIGHT = 8


@dataclass(frozen=True, slots=True)
class Machine:
    """An architecture that filters can be made for.

    Attributes:
        numbers: of its system calls.
        audit: AUDIT_ARCH_* (linux/audit.h), of little-endian 64-bit machines all.
        docker: its name in a profile's ``arches``.
        others: ``SCMP_ARCH_…`` of what else its kernel can run; refused.
        x32: whether numbers with bit 30 are a second set of calls.
    """

    numbers: Mapping[str, int]
    audit: int
    docker: str
    others: tuple[str, ...]
    x32: bool = False


MACHINES: Mapping[str, Machine] = {
    "x86_64": Machine(NUMBERS["x86_64"], 0xC000003E, "amd64", ("SCMP_ARCH_X86", "SCMP_ARCH_X32"), x32=True),
    "aarch64": Machine(NUMBERS["aarch64"], 0xC00000B7, "arm64", ("SCMP_ARCH_ARM",)),
}
"""By their names in uname -m."""

_NAMES = frozenset().union(*NUMBERS.values())


@dataclass(frozen=True, slots=True)
class Filter:
    """A compiled profile.

    Attributes:
        program: struct sock_filter, 8 bytes each.
        flags: SECCOMP_FILTER_FLAG_* bits.
        ignored: of the profile: names of calls that are none on any machine, and architectures that are refused on this one.
        refused: system calls, of those in `NEEDED`, that it never lets through.
        passes: system calls that it always lets through, whatever their arguments.
        asks_tracer: it leaves some to a tracer (SCMP_ACT_TRACE), which for one without a tracer are ENOSYS.
        second: a program to be installed behind `program`, where that has to let through what handing over its listener takes.
    """

    program: bytes
    flags: int = 0
    ignored: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    passes: frozenset[str] = frozenset()
    asks_tracer: bool = False
    second: bytes = b""

    @property
    def notifies(self) -> bool:
        """It has a listener, which is init's."""
        return bool(self.flags & NEW_LISTENER)


NEW_LISTENER = 8
"""SECCOMP_FILTER_FLAG_NEW_LISTENER."""

HANDOVER = ("sendmsg", "seccomp")
"""What a launch does between a filter with a listener and the exec: it gives the listener away, and installs `Filter.second`."""


_ANOTHER_LISTENER = (Condition(1, "&", NEW_LISTENER, NEW_LISTENER),)
"""Of seccomp(2): of two filters that want to notify, the kernel asks the newer one's listener, which could let through what ours
refuses. Itself it allows none beside ours; but what an exec'ed program leaves behind outlives that."""


@dataclass(frozen=True, slots=True)
class Refusals:
    """What is done with calls that a profile refuses, when it is not simply what the profile says.

    Answers with ENOSYS are no refusals: they say that a kernel is older, and a libc then does without.

    Attributes:
        action: ``errno``: what the profile says, noted by init; ``kill``: noted, and its process is killed; ``log``: noted, and
            let through; ``trace``: left to a tracer.
        but: calls for which nobody may wait, since a launch makes them before its init listens.
    """

    action: str
    but: frozenset[str]

    def of(self, action: Action) -> Action:
        """What becomes of a profile's action."""
        if action.lets_through() or action.kind == "notify" or action == ENOSYS:
            return action
        if self.action == "trace":
            return Action("trace")
        if self.action == "log":
            return Action("notify", LET_THROUGH)
        if self.action == "kill" or action.kind == "kill_process":
            return Action("notify", KILL)
        return Action("notify", action.data) if action.kind == "errno" else action

    def unnoted(self, action: Action) -> Action:
        """As `of`, of a call for which nobody may wait."""
        if action.lets_through() or action == ENOSYS:
            return action
        return {"kill": KILL_PROCESS, "log": ALLOW}.get(self.action, action)

    def of_decision(self, decision: _Decision, *, noted: bool) -> _Decision:
        of = self.of if noted else self.unnoted
        if isinstance(decision, Action):
            return of(decision)
        return tuple((conditions, of(action)) for conditions, action in decision)


NEEDED = ("execve", "chdir", "getcwd", "setgroups", "setresgid", "setresuid", "capset", "prctl")
"""What a launch does after the filter is there: the first always, all of them without no_new_privs."""

_WAITING = frozenset((
    "clock_gettime", "close", "close_range", "dup2", "dup3", "execve", "exit_group", "fstat", "madvise", "newfstatat", "poll",
    "ppoll", "pread64", "recvmsg", "rt_sigprocmask", "sendmsg",
))  # fmt: skip
"""What the child of a container made ahead does from when it is parked to its exec (launcher/init.c, wait_for_run)."""


def may_wait(filter: Filter, machine: Machine) -> bool:
    """Whether a container made ahead can be parked behind its filter: nobody refuses or answers anything of the waiting."""
    return not filter.notifies and _WAITING & machine.numbers.keys() <= filter.passes


def compile_profile(
    profile: Profile,
    machine: Machine,
    *,
    capabilities: frozenset[str] = frozenset(),
    kernel: tuple[int, int] = (6, 1),
    refusals: Refusals | None = None,
) -> Filter:
    """The program for `profile`.

    Calls that the profile names get what it says. Newer ones than the newest that it names get ENOSYS where the default is an
    errno, so that a libc that tries them falls back to older ones. Those of another architecture kill the process, those of
    x32 get ENOSYS, unless the default is worse.

    Args:
        capabilities: kept by the container; without CAP_.
        kernel: (major, minor), for a profile's ``minKernel``.
        refusals: what becomes of refused calls; None: what the profile says.

    Raises:
        ValueError: the program would be too long for the kernel.
    """
    rules = [rule for rule in profile.rules if rule.applies(capabilities, machine.docker, kernel)]
    second, hands_over = None, False
    if refusals is not None and any(
        refusals.of(action).kind == "notify" for action in (profile.default, *(r.action for r in rules))
    ):
        hands_over = True
        second = _without_handover(rules, profile.default, machine, refusals)
        rules.insert(0, Rule(HANDOVER, ALLOW))  # nobody listens yet
    decisions: dict[str, list[_Case]] = {}
    for rule in rules:
        for name in rule.names:
            decisions.setdefault(name, []).append((rule.conditions, rule.action))
    known = {name: _simplified(cases, profile.default) for name, cases in decisions.items() if name in machine.numbers}
    default = profile.default
    if refusals is not None:
        known |= {name: default for name in refusals.but - known.keys() if name in machine.numbers}
        known = {name: refusals.of_decision(case, noted=name not in refusals.but) for name, case in known.items()}
        default = refusals.of(default)
    if hands_over:
        known["seccomp"] = ((_ANOTHER_LISTENER, Action("errno", errno.EBUSY)), ((), ALLOW))
    assembler = _Assembler()
    assembler.prologue(machine.audit, assembler.tree(_ranges(known, machine, default, profile.default), default))
    if len(assembler.code) > MAX_INSTRUCTIONS:
        raise ValueError(f"the profile needs {len(assembler.code)} instructions; the kernel takes {MAX_INSTRUCTIONS} at most")
    return Filter(
        program=assembler.program(),
        flags=profile.flags | (NEW_LISTENER if assembler.returns("notify") else 0),
        ignored=(*sorted(decisions.keys() - _NAMES), *(arch for arch in profile.architectures if arch in machine.others)),
        refused=tuple(name for name in NEEDED if not _may_pass(known.get(name, default), default)),
        passes=frozenset(name for name in machine.numbers if _always_passes(known.get(name, default))),
        asks_tracer=assembler.returns("trace") or "trace" in {profile.default.kind, *(rule.action.kind for rule in rules)},
        second=second.program if second is not None else b"",
    )


def _without_handover(rules: Sequence[Rule], default: Action, machine: Machine, refusals: Refusals) -> Filter | None:
    """What refuses `HANDOVER` where the rules do; None where they let it pass."""
    own = tuple(
        Rule(tuple(name for name in rule.names if name in HANDOVER), refusals.unnoted(rule.action), rule.conditions)
        for rule in rules
    )
    rest = Profile(ALLOW, (*(rule for rule in own if rule.names), Rule(HANDOVER, refusals.unnoted(default))))
    second = compile_profile(rest, machine)
    return None if second.program == compile_profile(Profile(ALLOW), machine).program else second


_Case: TypeAlias = tuple[tuple[Condition, ...], Action]
_Decision: TypeAlias = Action | tuple[_Case, ...]
"""What is done with one call: always the same, or cases of which the first that holds counts, and else the default."""


def _simplified(cases: Iterable[_Case], default: Action) -> _Decision:
    """Without what can't be reached, and without cases that say no more than what follows them."""
    kept: list[_Case] = []
    for conditions, action in cases:
        conditions = tuple(condition for condition in conditions if condition.mask)  # those with none hold always
        if not conditions:
            default = action
            break
        kept.append((conditions, action))
    while kept and kept[-1][1] == default:
        kept.pop()
    return (*kept, ((), default)) if kept else default


def _may_pass(decision: _Decision, default: Action) -> bool:
    actions = [decision] if isinstance(decision, Action) else [action for _, action in decision]
    return any(action.lets_through() for action in actions)


def _always_passes(decision: _Decision) -> bool:
    return isinstance(decision, Action) and decision.kind in ("allow", "log")


class _Range(NamedTuple):
    """Numbers from `first` up to the next range's."""

    first: int
    decision: _Decision
    weight: int


def _ranges(known: Mapping[str, _Decision], machine: Machine, default: Action, said: Action) -> list[_Range]:
    """The whole 32-bit number line; neighbours differ. `said`: the profile's own default."""
    newest = max((machine.numbers[name] for name in known), default=0)
    newer = ENOSYS if said.kind == "errno" else default
    x32 = said if said.kind in ("kill_process", "kill_thread", "trap") else ENOSYS
    starts: dict[int, _Decision] = {0: default, max(newest, _LAST_OF_OLD) + 1: newer}
    if machine.x32:
        starts[1 << 30] = x32
    numbers = {machine.numbers[name]: decision for name, decision in known.items()}
    for number in sorted(numbers):
        starts[number] = numbers[number]
        starts.setdefault(number + 1, default)
    frequent = {machine.numbers[name] for name in _FREQUENT if name in machine.numbers}
    ranges: list[_Range] = []
    for first in sorted(starts):
        weight = _WEIGHT * (first in frequent)
        if ranges and ranges[-1].decision == starts[first]:
            ranges[-1] = ranges[-1]._replace(weight=ranges[-1].weight + weight)
        else:
            ranges.append(_Range(first, starts[first], weight + 1))
    return ranges


# ---- assembler ----


class Instruction(NamedTuple):
    """struct sock_filter."""

    code: int
    jt: int
    jf: int
    k: int


_Target: TypeAlias = Action | int
"""Where a jump goes: to the end with an action, or to a label, which is an index from the program's end."""


class _Entry(NamedTuple):
    """A way in for who has loaded `word` of the arguments, (offset, mask); None where it does not matter."""

    target: _Target
    word: tuple[int, int] | None = None


class _Assembler:
    """Writes from the last instruction to the first: all jumps go forward, so where they lead is known by then.

    Attributes:
        code: the program, last instruction first.
    """

    def __init__(self) -> None:
        self.code: list[Instruction] = []
        self._returns: dict[Action, int] = {}
        self._blocks: dict[_Decision, _Target] = {}
        self._loads: dict[_Entry, int] = {}

    def returns(self, kind: str) -> bool:
        """Whether some call ends with such an action."""
        return any(action.kind == kind for action in self._returns)

    def program(self) -> bytes:
        return b"".join(_INSTRUCTION.pack(*instruction) for instruction in reversed(self.code))

    def prologue(self, audit: int, tree: _Target) -> None:
        self._near(tree, room=_FAR)  # so near that it comes next
        self._emit(LD_ABS, _NUMBER)
        self._return(KILL_PROCESS)
        self._emit(JEQ, audit, 1, 0)
        self._emit(LD_ABS, _ARCH)

    def tree(self, ranges: Sequence[_Range], default: Action) -> _Target:
        """Code that finds the accumulator's number in `ranges`."""
        if len(ranges) == 1:
            return self._block(ranges[0].decision)
        if len(ranges) == 3 and ranges[0].decision == ranges[2].decision and ranges[2].first == ranges[1].first + 1:
            return self._jump(JEQ, ranges[1].first, self._block(ranges[1].decision), self._block(ranges[0].decision))
        middle = _middle(ranges)
        above = self.tree(ranges[middle:], default)
        below = self.tree(ranges[:middle], default)
        return self._jump(JGE, ranges[middle].first, above, below)

    def _emit(self, code: int, k: int, jt: int = 0, jf: int = 0) -> int:
        self.code.append(Instruction(code, jt, jf, k))
        return len(self.code) - 1

    def _distance(self, label: int) -> int:
        """From the instruction that comes next."""
        return len(self.code) - label - 1

    def _return(self, action: Action) -> int:
        self._returns[action] = self._emit(RET, _RETURNS[action.kind] | action.data)
        return self._returns[action]

    def _near(self, target: _Target, *, room: int) -> int:
        """A label that a conditional jump can reach over `room` more instructions; one more where there is none yet."""
        if isinstance(target, Action):
            label = self._returns.get(target)
            return label if label is not None and self._distance(label) + room <= _FAR else self._return(target)
        distance = self._distance(target)
        return target if distance + room <= _FAR else self._emit(JA, distance)

    def _jump(self, code: int, k: int, yes: _Target, no: _Target) -> int:
        yes = self._near(yes, room=1)  # `no` may need one
        no = self._near(no, room=0)
        return self._emit(code, k, self._distance(yes), self._distance(no))

    def _block(self, decision: _Decision) -> _Target:
        if isinstance(decision, Action):
            return decision
        if decision not in self._blocks:
            entry = _Entry(decision[-1][1])
            for conditions, action in reversed(decision[:-1]):
                entry = self._case(conditions, action, entry)
            self._blocks[decision] = self._enter(entry)
        return self._blocks[decision]

    def _case(self, conditions: Sequence[Condition], action: Action, otherwise: _Entry) -> _Entry:
        entry = _Entry(action)
        for condition in reversed(conditions):
            entry = self._condition(condition, entry, otherwise)
        return entry

    def _condition(self, condition: Condition, yes: _Entry, no: _Entry) -> _Entry:
        match condition.operator:
            case "==" | "&":
                return self._equal(condition, yes, no)
            case "!=":
                return self._equal(condition, no, yes)
            case ">=":
                return self._above(condition, JGE, yes, no)
            case ">":
                return self._above(condition, JGT, yes, no)
            case "<":
                return self._above(condition, JGE, no, yes)
            case _:
                return self._above(condition, JGT, no, yes)

    def _equal(self, condition: Condition, yes: _Entry, no: _Entry) -> _Entry:
        for shift in (0, 32):  # the low half is written first and looked at last
            mask, value = condition.mask >> shift & 0xFFFFFFFF, condition.value >> shift & 0xFFFFFFFF
            if mask:
                word = _word(condition, shift, mask)
                yes = _Entry(self._jump(JEQ, value, self._enter(yes, word), self._enter(no, word)), word)
        return yes

    def _above(self, condition: Condition, code: int, yes: _Entry, no: _Entry) -> _Entry:
        high, low = _word(condition, 32), _word(condition, 0)
        last = self._jump(code, condition.value & 0xFFFFFFFF, self._enter(yes, low), self._enter(no, low))
        lower = self._enter(_Entry(last, low))
        equal = self._jump(JEQ, condition.value >> 32, lower, self._enter(no, high))
        return _Entry(self._jump(JGT, condition.value >> 32, self._enter(yes, high), equal), high)

    def _enter(self, entry: _Entry, word: tuple[int, int] | None = None) -> _Target:
        """Where to go in for who has loaded `word`: several tests of one word load it once."""
        if entry.word is None or entry.word == word:
            return entry.target
        if entry not in self._loads:
            offset, mask = entry.word
            self._near(entry.target, room=_FAR)  # so near that it comes next
            if mask != 0xFFFFFFFF:
                self._emit(AND, mask)
            self._loads[entry] = self._emit(LD_ABS, offset)
        return self._loads[entry]


def _word(condition: Condition, shift: int, mask: int = 0xFFFFFFFF) -> tuple[int, int]:
    return _ARGUMENTS + 8 * condition.index + shift // 8, mask


def _middle(ranges: Sequence[_Range]) -> int:
    """Where both sides weigh the same, as nearly as can be."""
    total, below = sum(item.weight for item in ranges), 0
    best, found = total, 1
    for index in range(1, len(ranges)):
        below += ranges[index - 1].weight
        if abs(total - 2 * below) < best:
            best, found = abs(total - 2 * below), index
    return found


# ---- simulator ----


class Simulator:
    """Runs a seccomp program as the kernel would.

    Attributes:
        steps: instructions executed by the last `run`.
    """

    def __init__(self, program: bytes) -> None:
        """Raises ValueError for a program that the kernel would not take."""
        if len(program) % _INSTRUCTION.size or not 0 < len(program) // _INSTRUCTION.size <= MAX_INSTRUCTIONS:
            raise ValueError(f"{len(program)} bytes are no program")
        self.code: list[Instruction] = [Instruction(*fields) for fields in _INSTRUCTION.iter_unpack(program)]
        self.steps: int = 0
        for at, (code, jt, jf, k) in enumerate(self.code):
            if code == LD_ABS:
                good = k % 4 == 0 and k < _DATA_SIZE
            elif code == JA:
                good = at + 1 + k < len(self.code)
            elif code in (JEQ, JGT, JGE):
                good = at + 1 + max(jt, jf) < len(self.code)
            else:
                good = code in (AND, RET)
            if not good:
                raise ValueError(f"instruction {at} is not valid: {self.code[at]}")
        if self.code[-1].code != RET:
            raise ValueError("the last instruction is no return")

    def run(self, arch: int, number: int, arguments: Sequence[int] = ()) -> Action:
        """What the program says to a call.

        Args:
            arch: AUDIT_ARCH_*.
            number: of the call, 32 bits.
            arguments: 64 bits each; missing ones are 0.
        """
        words = [*arguments, *[0] * (6 - len(arguments))]
        data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, arch, 0, *(word & (1 << 64) - 1 for word in words))
        at = accumulator = self.steps = 0
        while True:
            code, jt, jf, k = self.code[at]
            at += 1
            self.steps += 1
            match code:
                case 0x20:  # LD_ABS
                    (accumulator,) = struct.unpack_from("<I", data, k)
                case 0x54:  # AND
                    accumulator &= k
                case 0x05:  # JA
                    at += k
                case 0x15:  # JEQ
                    at += jt if accumulator == k else jf
                case 0x25:  # JGT
                    at += jt if accumulator > k else jf
                case 0x35:  # JGE
                    at += jt if accumulator >= k else jf
                case _:
                    return _decoded(k)


def _decoded(value: int) -> Action:
    kind = _KINDS.get(value & 0xFFFF0000, "kill_process")  # what the kernel makes of an action that it doesn't know
    return Action(kind, value & 0xFFFF if kind in ("errno", "notify", "trace") else 0)


def describe_refused(number: int, answer: int, numbers: Mapping[str, int]) -> tuple[str, str]:
    """(name, what came of it) of a call that a listener got, as `state.Violation` has them."""
    name = next((name for name, own in numbers.items() if own == number), f"syscall_{number}")
    if answer in (KILL, LET_THROUGH):
        return name, "killed" if answer == KILL else "allowed"
    return name, errno.errorcode.get(answer, f"errno {answer}")


def decide(filter: Filter, machine: Machine, name: str, arguments: Sequence[int] = ()) -> Action:
    """What a compiled profile does with a call of the machine's own architecture."""
    return Simulator(filter.program).run(machine.audit, machine.numbers[name], arguments)
