"""seccomp profiles and programs: every program is run by the simulator and compared with its profile, read directly, and with
what libseccomp makes of the same rules. Nothing here needs a kernel."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import json
import os
import random
import re
import struct
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernel.helpers import skip
from tinyvisor.errors import HostError, SpecError
from tinyvisor.profile import (
    ACTIONS,
    OPERATORS,
    Action,
    Condition,
    Profile,
    Rule,
    Selector,
    default_profile_text,
    parse_profile,
    read_profile_text,
)
from tinyvisor.runtime import filters
from tinyvisor.runtime import seccomp as sc
from tinyvisor.runtime.seccomp import ALLOW, ENOSYS, KILL_PROCESS, MACHINES, Filter, Machine, Simulator, compile_profile, decide
from tinyvisor.runtime.syscall_numbers import NUMBERS
from tinyvisor.spec import CAPABILITIES, Spec

X86, ARM = MACHINES["x86_64"], MACHINES["aarch64"]
EPERM = Action("errno", errno.EPERM)
NAME_OF = {machine.audit: {number: name for name, number in machine.numbers.items()} for machine in MACHINES.values()}
U64 = (1 << 64) - 1
HALVES = (0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
EDGES = tuple(high << 32 | low for high in HALVES for low in HALVES)


def profile(*rules: Rule, default: Action = EPERM) -> Profile:
    return Profile(default, rules)


def compiled(*rules: Rule, default: Action = EPERM, machine: Machine = X86) -> Filter:
    return compile_profile(profile(*rules, default=default), machine)


def said(rules: Sequence[Rule], default: Action, machine: Machine, number: int, arguments: Sequence[int]) -> Action:
    """What a profile says, by reading it: nothing here is shared with the compiler."""
    name = NAME_OF[machine.audit].get(number)
    newest = max((machine.numbers[name] for rule in rules for name in rule.names if name in machine.numbers), default=0)
    if machine is X86 and number >= 0x40000000:
        return default if default.kind in ("kill_process", "kill_thread", "trap") else ENOSYS
    for rule in rules:
        if name in rule.names and all(item.holds(arguments[item.index]) for item in rule.conditions):
            return rule.action
    return ENOSYS if default.kind == "errno" and number > max(newest, 423) else default


# ---- operators ----


@pytest.mark.parametrize("operator", sorted(OPERATORS.values()))
@pytest.mark.parametrize("index", range(6))
def test_operators_at_every_edge_of_both_halves(operator: str, index: int) -> None:
    python = {
        "!=": int.__ne__, "<": int.__lt__, "<=": int.__le__, "==": int.__eq__, ">=": int.__ge__, ">": int.__gt__, "&": int.__eq__
    }[operator]  # fmt: skip
    for value in EDGES:
        condition = Condition(index, operator, value)
        simulator = Simulator(compiled(Rule(("ioctl",), ALLOW, (condition,))).program)
        for argument in {*EDGES, value, max(value - 1, 0), min(value + 1, U64), value ^ 1 << 32, value ^ 1 << 63}:
            arguments = [~argument & U64] * 6
            arguments[index] = argument
            wanted = ALLOW if python(argument, value) else EPERM
            assert simulator.run(X86.audit, 16, arguments) == wanted, (value, argument)
            assert condition.holds(argument) == (wanted == ALLOW)


@pytest.mark.parametrize("mask", [0, 1, 0xFFFFFFFF, 0xFFFFFFFF00000000, 1 << 32, 0x8000000080000000, 0x7E020000, U64])
def test_masks(mask: int) -> None:
    for value in {edge & mask for edge in EDGES}:
        simulator = Simulator(compiled(Rule(("ioctl",), ALLOW, (Condition(1, "&", value, mask),))).program)
        for argument in EDGES:
            assert simulator.run(X86.audit, 16, (0, argument)) == (ALLOW if argument & mask == value else EPERM)


def test_all_conditions_must_hold() -> None:
    rule = Rule(("ioctl",), ALLOW, (Condition(0, "==", 5), Condition(3, ">", 1 << 40), Condition(1, "!=", 7)))
    simulator = Simulator(compiled(rule).program)
    good = [5, 8, 0, (1 << 40) + 1, 0, 0]
    assert simulator.run(X86.audit, 16, good) == ALLOW
    for index, wrong in ((0, 5 | 1 << 32), (3, 1 << 40), (1, 7)):
        assert simulator.run(X86.audit, 16, [wrong if at == index else word for at, word in enumerate(good)]) == EPERM


def test_the_first_rule_that_fits_decides() -> None:
    rules = (
        Rule(("ioctl",), Action("errno", 5), (Condition(1, "==", 1),)),
        Rule(("ioctl",), Action("log"), (Condition(1, "<=", 1),)),
        Rule(("ioctl",), ALLOW),
        Rule(("ioctl",), KILL_PROCESS, (Condition(1, "==", 9),)),
    )
    simulator = Simulator(compiled(*rules).program)
    assert [simulator.run(X86.audit, 16, (0, word)) for word in (0, 1, 2, 9)] == [
        Action("log"), Action("errno", 5), ALLOW, ALLOW,
    ]  # fmt: skip


# ---- actions ----


@pytest.mark.parametrize(
    "action, value",
    [
        (Action("kill_process"), 0x80000000), (Action("kill_thread"), 0), (Action("trap"), 0x30000), (Action("log"), 0x7FFC0000),
        (Action("errno", 4095), 0x50FFF), (Action("errno", 0), 0x50000), (Action("trace", 65535), 0x7FF0FFFF),
        (ALLOW, 0x7FFF0000),
    ],
)  # fmt: skip
def test_actions_are_the_kernels_numbers(action: Action, value: int) -> None:
    """linux/seccomp.h SECCOMP_RET_*."""
    filter = compiled(default=action)
    assert struct.pack("=HBBI", 0x06, 0, 0, value) in [filter.program[at : at + 8] for at in range(0, len(filter.program), 8)]
    assert decide(filter, X86, "read") == action
    assert decide(compiled(Rule(("read",), action), default=Action("errno", 77)), X86, "read") == action


@pytest.mark.parametrize("default", [Action(kind) for kind in ACTIONS.values() if kind != "errno"] + [EPERM, ENOSYS])
@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_other_abis_are_refused_whatever_the_default(default: Action, machine: Machine) -> None:
    simulator = Simulator(compiled(Rule(("read",), ALLOW), default=default, machine=machine).program)
    for arch in (0x40000003, 0x40000028, 0, 0xFFFFFFFF, (X86.audit if machine is ARM else ARM.audit), machine.audit ^ 1):
        for number in (0, 3, 63, 1 << 30, 0xFFFFFFFF):
            assert simulator.run(arch, number) == KILL_PROCESS
    for number in (1 << 30, 1 << 30 | 63, 1 << 30 | 520, 1 << 31, 0xFFFFFFFF):
        got = simulator.run(machine.audit, number)
        assert not got.lets_through() or (machine is ARM and got == default), "the kernel of arm64 has no numbers up there"


def test_calls_that_the_profile_is_too_old_for() -> None:
    newest = X86.numbers["openat2"]
    simulator = Simulator(compiled(Rule(("read", "openat2"), ALLOW)).program)
    assert [simulator.run(X86.audit, newest + step) for step in (-1, 0, 1, 2, 9999)] == [EPERM, ALLOW, ENOSYS, ENOSYS, ENOSYS]
    simulator = Simulator(compiled(Rule(("read",), ALLOW)).program)
    assert [simulator.run(X86.audit, number) for number in (1, 257, 423, 424)] == [EPERM, EPERM, EPERM, ENOSYS]
    for default in (KILL_PROCESS, ALLOW, Action("trap"), Action("log")):
        simulator = Simulator(compiled(Rule(("read",), Action("errno", 5)), default=default).program)
        assert simulator.run(X86.audit, 460) == default, "only an errno is replaced by another"


# ---- programs against profiles ----


def values() -> st.SearchStrategy[int]:
    return st.sampled_from(EDGES) | st.integers(0, U64) | st.integers(0, 40)


@st.composite
def conditions(draw: st.DrawFn) -> tuple[Condition, ...]:
    found = []
    for index in draw(st.lists(st.integers(0, 5), max_size=3, unique=True)):
        operator, value = draw(st.sampled_from(sorted(OPERATORS.values()))), draw(values())
        mask = draw(values()) if operator == "&" else U64
        found.append(Condition(index, operator, value & mask, mask))
    return tuple(found)


ACTION = st.sampled_from([Action(kind, 9 if kind in ("errno", "trace") else 0) for kind in ACTIONS.values()])
NAMES = st.sampled_from([*sorted(NUMBERS["x86_64"]), "chown32", "frobnicate"])
RULES = st.lists(
    st.builds(Rule, st.lists(NAMES, min_size=1, max_size=40).map(tuple), ACTION, conditions()), max_size=12
)  # fmt: skip


def near(rules: Sequence[Rule], index: int, random: random.Random) -> int:
    """An argument that a comparison could be wrong about."""
    chosen = [item.value for rule in rules for item in rule.conditions if item.index == index] or list(EDGES)
    return (random.choice(chosen) + random.choice((0, 0, 1, -1, 1 << 32, -1 << 32))) & U64


@settings(deadline=None, max_examples=100)
@given(RULES, ACTION, st.sampled_from(sorted(MACHINES)), st.randoms(use_true_random=False))
def test_programs_do_what_profiles_say(rules: list[Rule], default: Action, name: str, random: random.Random) -> None:
    machine = MACHINES[name]
    simulator = Simulator(compile_profile(profile(*rules, default=default), machine).program)
    named = {machine.numbers[name] for rule in rules for name in rule.names if name in machine.numbers}
    numbers = {0, 1, 423, 424, 472, 1 << 30, (1 << 30) - 1, 0xFFFFFFFF, *named, *(number + 1 for number in named)}
    for number in numbers:
        for _ in range(4):
            arguments = [near(rules, index, random) for index in range(6)]
            assert simulator.run(machine.audit, number, arguments) == said(rules, default, machine, number, arguments)


def generated(seed: int, machine: Machine) -> tuple[list[Rule], Action, random.Random]:
    """A profile by a seed."""
    chance = random.Random(seed)
    actions = [Action(kind, 9 if kind in ("errno", "trace") else 0) for kind in ACTIONS.values()]
    names = chance.sample(sorted(machine.numbers), 60)
    rules = []
    for _ in range(chance.randrange(1, 40)):
        group = chance.sample(names, chance.randrange(1, 12))
        action = chance.choice(actions)
        found = []
        for index in chance.sample(range(6), chance.choice((0, 0, 1, 1, 2, 3))):
            operator, value = chance.choice(sorted(OPERATORS.values())), chance.choice(EDGES)
            mask = chance.choice(EDGES[1:]) if operator == "&" else U64
            found.append(Condition(index, operator, value & mask, mask))
        rules.append(Rule(tuple(group), action, tuple(found)))
    return rules, chance.choice(actions), chance


@pytest.mark.parametrize("name", sorted(MACHINES))
@pytest.mark.parametrize("block", range(10))
def test_thousands_of_profiles(name: str, block: int) -> None:
    machine = MACHINES[name]
    for seed in range(block * 100, block * 100 + 100):
        rules, default, chance = generated(seed, machine)
        simulator = Simulator(compile_profile(profile(*rules, default=default), machine).program)
        numbers = {machine.numbers[name] for rule in rules for name in rule.names}
        for number in numbers | {number + 1 for number in numbers}:
            arguments = [near(rules, index, chance) for index in range(6)]
            assert simulator.run(machine.audit, number, arguments) == said(rules, default, machine, number, arguments), seed


def test_far_jumps() -> None:
    """Every call has conditions of its own, so that the tree is much longer than a conditional jump."""
    for machine in MACHINES.values():
        rules = [
            Rule((name,), Action("errno", number % 4000), (Condition(number % 6, ">=", number << 32 | number),))
            for name, number in machine.numbers.items()
        ]
        filter = compile_profile(profile(*rules, default=Action("trap")), machine)
        assert len(filter.program) // 8 > 2000
        simulator = Simulator(filter.program)
        for name, number in machine.numbers.items():
            for argument in (number << 32 | number, (number << 32 | number) - 1 & U64, number, number << 33):
                arguments = [argument] * 6
                assert simulator.run(machine.audit, number, arguments) == said(
                    rules, Action("trap"), machine, number, arguments
                ), name


def test_more_than_the_kernel_takes() -> None:
    rules = [
        Rule((name,), Action("errno", 1 + at), (Condition(0, ">=", number << 32 | at), Condition(1, ">=", number << 32 | at)))
        for name, number in X86.numbers.items()
        for at in range(2)
    ]
    with pytest.raises(ValueError, match=r"the profile needs [0-9]+ instructions; the kernel takes 4096 at most"):
        compiled(*rules, default=Action("trap"))


def test_frequent_calls_are_near_and_none_is_far() -> None:
    filter = compile_profile(parse_profile(default_profile_text()), X86)
    simulator = Simulator(filter.program)
    steps = {}
    for name in X86.numbers:
        decide(filter, X86, name)
        simulator.run(X86.audit, X86.numbers[name])
        steps[name] = simulator.steps
    frequent = [steps[name] for name in sc._FREQUENT]
    assert max(frequent) <= 12
    assert sum(frequent) / len(frequent) < sum(steps.values()) / len(steps)
    assert max(steps.values()) <= 24
    assert len(filter.program) // 8 < 200, "what is installed at every start must be small"


def test_words_that_are_loaded_already_are_not_loaded_again() -> None:
    families = [Rule(("socket",), ALLOW, (Condition(0, "&", number, 0xFFFFFFFF),)) for number in (1, 2, 10, 16)]
    code = Simulator(compiled(*families).program).code
    assert sum(item.code == sc.LD_ABS and item.k >= 16 for item in code) == 1


# ---- against libseccomp ----


class Comparison(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("datum_a", ctypes.c_uint64), ("datum_b", ctypes.c_uint64))


SCMP = {"!=": 1, "<": 2, "<=": 3, "==": 4, ">=": 5, ">": 6, "&": 7}


@pytest.fixture(scope="module")
def libseccomp() -> ctypes.CDLL:
    name = ctypes.util.find_library("seccomp")
    if name is None:
        skip("needs libseccomp.so.2: apt install libseccomp2")
    library = ctypes.CDLL(name)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    for function, arguments in (
        ("seccomp_arch_add", (ctypes.c_uint32,)), ("seccomp_arch_remove", (ctypes.c_uint32,)),
        ("seccomp_arch_exist", (ctypes.c_uint32,)), ("seccomp_attr_set", (ctypes.c_int, ctypes.c_uint32)),
        ("seccomp_rule_add_array", (ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(Comparison))),
        ("seccomp_export_bpf", (ctypes.c_int,)), ("seccomp_release", ()),
    ):  # fmt: skip
        getattr(library, function).argtypes = (ctypes.c_void_p, *arguments)
    return library


def of_one_meaning(rules: Sequence[Rule], default: Action, chance: random.Random) -> list[Rule]:
    """Rules that both read alike, and that libseccomp 2.5 compiles right. A call has one rule, of another action than the
    default; or several, each with one == on the same argument. (Of several rules with <, > and their like for one call, its
    programs take ways that no rule describes.)"""
    kept: dict[str, list[Rule]] = {}
    for rule in rules:
        for name in rule.names:
            if rule.action != default and name not in kept:
                kept[name] = [Rule((name,), rule.action, rule.conditions)]
                if [item.operator for item in rule.conditions] == ["=="]:
                    more = chance.sample(EDGES, 4)
                    kept[name] += [
                        Rule((name,), rule.action, (Condition(rule.conditions[0].index, "==", value),)) for value in more
                    ]
    return [rule for rules in kept.values() for rule in rules]


def of_libseccomp(library: ctypes.CDLL, rules: Sequence[Rule], default: Action, machine: Machine) -> bytes:
    """libseccomp's program for the same rules, exported."""

    def number(action: Action) -> int:
        return sc._RETURNS[action.kind] | action.data

    context = library.seccomp_init(number(default))
    assert context
    try:
        for other in MACHINES.values():
            if other is not machine and library.seccomp_arch_exist(context, other.audit) == 0:
                assert library.seccomp_arch_remove(context, other.audit) == 0
        assert library.seccomp_arch_add(context, machine.audit) in (0, -errno.EEXIST)
        assert library.seccomp_attr_set(context, 2, number(KILL_PROCESS)) == 0  # SCMP_FLTATR_ACT_BADARCH
        for rule in rules:
            found = [
                Comparison(
                    item.index, SCMP[item.operator], *((item.mask, item.value) if item.operator == "&" else (item.value, 0))
                )
                for item in rule.conditions
            ]
            for name in rule.names:
                # With one architecture in the filter a native number is that one's; a pseudo number is resolved by name.
                call = library.seccomp_syscall_resolve_name(name.encode())
                array = (Comparison * 6)(*found)
                assert library.seccomp_rule_add_array(context, number(rule.action), call, len(found), array) in (0, -errno.EEXIST)
        with tempfile.TemporaryFile() as file:
            assert library.seccomp_export_bpf(context, file.fileno()) == 0
            file.seek(0)
            return file.read()
    finally:
        library.seccomp_release(context)


@pytest.mark.parametrize("name", sorted(MACHINES))
@pytest.mark.parametrize("block", range(10))
def test_programs_do_what_libseccomps_do(libseccomp: ctypes.CDLL, name: str, block: int) -> None:
    """Where both have the same meaning: one action per call, none that is the default's."""
    machine, compared = MACHINES[name], 0
    for seed in range(block * 100, block * 100 + 100):
        rules, default, chance = generated(seed, machine)
        rules = of_one_meaning(rules, default, chance)
        rules = [rule for rule in rules if libseccomp.seccomp_syscall_resolve_name(rule.names[0].encode()) >= 0]
        mine = Simulator(compile_profile(profile(*rules, default=default), machine).program)
        theirs = Simulator(of_libseccomp(libseccomp, rules, default, machine))
        numbers = {machine.numbers[name] for rule in rules for name in rule.names}
        newest = max(numbers, default=0)
        for number in numbers | {number + 1 for number in numbers if number < newest}:
            for _ in range(3):
                arguments = [near(rules, index, chance) for index in range(6)]
                assert mine.run(machine.audit, number, arguments) == theirs.run(machine.audit, number, arguments), (seed, number)
                compared += 1
        for arch in (0x40000003, 0x40000028, machine.audit ^ 1):
            assert mine.run(arch, 0) == theirs.run(arch, 0) == KILL_PROCESS
    assert compared > 1000


# ---- the simulator ----


def program(*instructions: tuple[int, int, int, int]) -> bytes:
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


GOOD_END = (0x06, 0, 0, 0x7FFF0000)


@pytest.mark.parametrize(
    "code",
    [
        b"", bytes(7), program((0x20, 0, 0, 0)), program((0x20, 0, 0, 2), GOOD_END), program((0x20, 0, 0, 64), GOOD_END),
        program((0x15, 1, 0, 0), GOOD_END), program((0x15, 0, 1, 0), GOOD_END), program((0x05, 0, 0, 1), GOOD_END),
        program((0x28, 0, 0, 0), GOOD_END), program((0x16, 0, 0, 0), GOOD_END), program(GOOD_END) * 4097,
    ],
)  # fmt: skip
def test_the_simulator_refuses_what_the_kernel_refuses(code: bytes) -> None:
    with pytest.raises(ValueError, match=r"no program|not valid|no return"):
        Simulator(code)


@pytest.mark.parametrize(
    "jump, number, taken",
    [
        ((0x15, 1, 0, 5), 5, True), ((0x15, 1, 0, 5), 6, False), ((0x25, 1, 0, 5), 5, False), ((0x25, 1, 0, 5), 6, True),
        ((0x35, 1, 0, 5), 5, True), ((0x35, 1, 0, 5), 4, False), ((0x25, 1, 0, 5), 0x80000000, True), ((0x05, 0, 0, 1), 0, True),
    ],
)  # fmt: skip
def test_jumps(jump: tuple[int, int, int, int], number: int, taken: bool) -> None:
    simulator = Simulator(program((0x20, 0, 0, 0), jump, (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)))
    assert simulator.run(0, number) == (ALLOW if taken else EPERM)
    assert simulator.steps == 3


def test_loads_and_masks() -> None:
    """struct seccomp_data: nr, arch, instruction pointer, six arguments."""
    arguments = [0x1111111122222222 * (index + 1) for index in range(6)]
    words = struct.unpack("<16I", struct.pack("<IIQ6Q", 7, 0xC000003E, 0, *arguments))
    for offset in range(0, 64, 4):
        wanted = words[offset // 4]
        simulator = Simulator(
            program((0x20, 0, 0, offset), (0x15, 0, 3, wanted), (0x54, 0, 0, 0xF0F), (0x15, 0, 1, wanted & 0xF0F), GOOD_END)
            + program((0x06, 0, 0, 0))
        )
        assert simulator.run(0xC000003E, 7, arguments) == ALLOW


def test_an_action_that_the_kernel_does_not_know_kills() -> None:
    assert Simulator(program((0x06, 0, 0, 0x12345678))).run(0, 0) == KILL_PROCESS


# ---- numbers ----


def headers() -> Iterator[Path]:
    yield from Path("/usr/include").glob("*/asm/unistd_64.h")
    yield from Path("/usr/include").glob("asm/unistd_64.h")


def test_numbers_are_those_of_the_headers_here() -> None:
    found = [path for path in headers() if os.uname().machine in MACHINES]
    if not found:
        skip("needs the kernel's headers: apt install linux-libc-dev")
    defined = {match[1]: int(match[2]) for match in re.finditer(r"(?m)^#define __NR_(\w+)\s+([0-9]+)\s*$", found[0].read_text())}
    mine = NUMBERS[os.uname().machine]
    newest = max(mine.values())
    assert len(defined) > 300
    assert {name: number for name, number in defined.items() if mine.get(name) != number and number <= newest} == {}


def test_numbers_of_the_generic_table() -> None:
    """arm64 has asm-generic's numbers: three that everybody knows, and the ends of each run."""
    assert [ARM.numbers[name] for name in ("io_setup", "openat", "read", "execve", "accept4", "wait4", "kexec_file_load")] == [
        0, 56, 63, 221, 242, 260, 294,
    ]  # fmt: skip
    for table in NUMBERS.values():
        assert len(set(table.values())) == len(table)
        assert max(table.values()) == 471


# ---- the default profile ----

NONE: frozenset[str] = frozenset()
ALL = frozenset(CAPABILITIES)
NET_ADMIN, NET_RAW = frozenset({"NET_ADMIN"}), frozenset({"NET_RAW"})
NEVER = (
    "add_key", "request_key", "keyctl", "io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd", "kexec_load",
    "kexec_file_load", "pivot_root", "swapon", "swapoff", "uselib", "ustat", "sysfs", "_sysctl", "create_module", "query_module",
    "get_kernel_syms", "nfsservctl", "modify_ldt", "move_pages", "migrate_pages", "open_tree_attr", "afs_syscall", "vserver",
    "tuxcall", "security", "getpmsg", "putpmsg", "epoll_ctl_old", "epoll_wait_old",
)  # fmt: skip
SYS_ADMIN = (
    "clone3", "mount", "umount2", "mount_setattr", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick", "setns",
    "unshare", "sethostname", "setdomainname", "bpf", "perf_event_open", "fanotify_init", "quotactl", "quotactl_fd", "syslog",
    "lookup_dcookie", "lsm_get_self_attr", "lsm_set_self_attr", "lsm_list_modules",
)  # fmt: skip
WIDENED = {
    "SYS_ADMIN": {*SYS_ADMIN}, "BPF": {"bpf"}, "PERFMON": {"perf_event_open"}, "DAC_READ_SEARCH": {"open_by_handle_at"},
    "SYS_BOOT": {"reboot"}, "SYS_CHROOT": {"chroot"}, "SYS_MODULE": {"init_module", "finit_module", "delete_module"},
    "SYS_PACCT": {"acct"}, "SYS_PTRACE": {"kcmp", "pidfd_getfd", "process_madvise"}, "SYS_RAWIO": {"iopl", "ioperm"},
    "SYS_TIME": {"settimeofday", "clock_settime"}, "SYS_TTY_CONFIG": {"vhangup"}, "SYSLOG": {"syslog"},
    "SYS_NICE": {"get_mempolicy", "set_mempolicy", "set_mempolicy_home_node", "mbind"},
}  # fmt: skip
"""Capability → the calls that it adds, whatever their arguments."""
BY_ARGUMENT = {"clone", "personality", "socket", "socketpair", "ioctl"}


def default_filter(capabilities: frozenset[str] = NONE, machine: Machine = X86) -> Filter:
    return compile_profile(parse_profile(default_profile_text()), machine, capabilities=capabilities)


def variants() -> Iterator[list[int]]:
    """Arguments of every kind, so that none of them is a way in."""
    yield from ([edge] * 6 for edge in EDGES[::3])
    chance = random.Random(1)
    yield from ([chance.getrandbits(64) & chance.getrandbits(64) for _ in range(6)] for _ in range(10))


def allowed(capabilities: frozenset[str], machine: Machine) -> set[str]:
    simulator = Simulator(default_filter(capabilities, machine).program)
    found = {name for name, number in machine.numbers.items() if simulator.run(machine.audit, number) == ALLOW}
    for name in machine.numbers.keys() - BY_ARGUMENT:
        some = variants() if capabilities in (NONE, ALL) else ([U64] * 6,)
        answers = {simulator.run(machine.audit, machine.numbers[name], arguments) for arguments in ([0] * 6, *some)}
        assert len(answers) == 1, f"{name} depends on its arguments"
    return found


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_what_each_capability_adds(machine: Machine) -> None:
    plain = allowed(NONE, machine)
    assert not plain & {*NEVER, *set().union(*WIDENED.values())}
    assert not allowed(ALL, machine) & {*NEVER}
    for capability in CAPABILITIES:
        added = {name for name in WIDENED.get(capability, ()) if name in machine.numbers}
        assert allowed(frozenset({capability}), machine) - plain - BY_ARGUMENT == added, capability


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_the_refused_get_eperm_and_clone3_and_the_unborn_enosys(machine: Machine) -> None:
    simulator = Simulator(default_filter(machine=machine).program)
    newest = machine.numbers["removexattrat"]
    for name, number in machine.numbers.items():
        for arguments in variants():
            answer = simulator.run(machine.audit, number, arguments)
            if name in (*NEVER, *SYS_ADMIN):
                assert answer == (ENOSYS if name == "clone3" or number > newest else EPERM), name
    for number in (newest + 1, 500, 1000, (1 << 30) - 1):
        assert simulator.run(machine.audit, number) == ENOSYS


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_clone_makes_no_namespace(machine: Machine) -> None:
    simulator = Simulator(default_filter(machine=machine).program)
    widened = Simulator(default_filter(frozenset({"SYS_ADMIN"}), machine).program)
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        for more in (0, 17, 0x3D0F00, 0x7E020000, 0xFFFFFFFF, 1 << 32, U64 & ~0xFFFFFFFF, U64):
            assert simulator.run(machine.audit, machine.numbers["clone"], (flag | more,)) == EPERM
            assert widened.run(machine.audit, machine.numbers["clone"], (flag | more,)) == ALLOW
    for flags in (17, 0x3D0F00, 0x1200011, 0x4111):  # pthread_create, fork, vfork of glibc
        assert simulator.run(machine.audit, machine.numbers["clone"], (flags, U64, U64, U64, U64)) == ALLOW


@pytest.mark.parametrize("high", [0, 1, 0x80000000, 0xFFFFFFFF])
def test_terminals_can_not_be_typed_into(high: int) -> None:
    """The kernel cuts the request to 32 bits."""
    for capabilities in (NONE, ALL):
        filter = default_filter(capabilities)
        for request in (0x5412, 0x541C):
            assert decide(filter, X86, "ioctl", (0, high << 32 | request)) == EPERM
        for request in (0x5401, 0x5413, 0x5411, 0x541B, 0x541D, 0x80045430, 0):
            assert decide(filter, X86, "ioctl", (0x5412, high << 32 | request, 0x5412)) == ALLOW


@pytest.mark.parametrize("call", ["socket", "socketpair"])
@pytest.mark.parametrize("high", [0, 1, 0xFFFFFFFF])
def test_socket_families(call: str, high: int) -> None:
    unknown = Action("errno", errno.EAFNOSUPPORT)

    simulators = {names: Simulator(default_filter(frozenset(names)).program) for names in (NONE, ALL, NET_ADMIN, NET_RAW)}

    def families(capabilities: frozenset[str], protocol: int = 0) -> set[int]:
        run, number = simulators[capabilities].run, X86.numbers[call]
        answers = {family: run(X86.audit, number, (high << 32 | family, 2, high << 32 | protocol)) for family in range(50)}
        assert set(answers.values()) <= {ALLOW, unknown}
        return {family for family, answer in answers.items() if answer == ALLOW}

    if call == "socketpair":
        assert families(ALL) == families(NONE) == {1}
        return
    assert families(NONE) == {1, 2, 10, 16}
    assert families(ALL) == {1, 2, 10, 16, 17}
    assert [protocol for protocol in range(64) if 16 in families(NONE, protocol)] == [0, 4, 9, 16]
    assert all(16 in families(NET_ADMIN, protocol) for protocol in range(64))
    assert families(NET_RAW) == {1, 2, 10, 16, 17}


def test_personalities() -> None:
    filter = default_filter()
    good = {0, 8, 0x20000, 0x20008, 0xFFFFFFFF}
    for word in {*EDGES, *good, *(word | 1 << 32 for word in good), 0x40000, 0x400000, 0x20009}:
        assert (decide(filter, X86, "personality", (word,)) == ALLOW) == (word & 0xFFFFFFFF in good), hex(word)


def test_the_default_profile_is_complete() -> None:
    found = parse_profile(default_profile_text())
    for machine in MACHINES.values():
        for capabilities in (NONE, ALL):
            filter = compile_profile(found, machine, capabilities=capabilities)
            assert (filter.ignored, filter.refused, filter.flags) == ((), (), 4)
    assert {"ptrace", "process_vm_readv"} <= allowed(NONE, X86)
    assert decide(compile_profile(found, X86, kernel=(4, 7)), X86, "ptrace") == EPERM


# ---- profiles ----


def test_every_part_of_a_profile() -> None:
    text = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"],
        "archMap": [{"architecture": "SCMP_ARCH_X86_64"}],
        "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
        "syscalls": [
            {"names": ["read", "chown32", "frobnicate"], "action": "SCMP_ACT_ALLOW", "comment": "x", "args": None},
            {
                "names": ["ioctl"],
                "action": "SCMP_ACT_TRACE",
                "errnoRet": 7,
                "args": [
                    {"index": 1, "value": 18446744073709551615, "op": "SCMP_CMP_GT"},
                    {"index": 0, "value": 15, "valueTwo": 3, "op": "SCMP_CMP_MASKED_EQ"},
                    {"index": 2, "value": 1, "op": "SCMP_CMP_MASKED_EQ"},
                ],
                "includes": {"caps": ["CAP_SYS_ADMIN"], "arches": ["amd64"], "minKernel": "5.10"},
                "excludes": {"caps": ["CAP_BPF"], "arches": [], "minKernel": "9.0"},
            },
        ],
    }
    found = parse_profile(json.dumps(text))
    assert found == Profile(
        default=ENOSYS,
        rules=(
            Rule(("read", "chown32", "frobnicate"), ALLOW),
            Rule(
                ("ioctl",),
                Action("trace", 7),
                (Condition(1, ">", U64), Condition(0, "&", 3, 15), Condition(2, "&", 0, 1)),
                Selector(frozenset({"SYS_ADMIN"}), frozenset({"amd64"}), (5, 10)),
                Selector(frozenset({"BPF"}), frozenset(), (9, 0)),
            ),
        ),
        architectures=("SCMP_ARCH_X86_64", "SCMP_ARCH_X32"),
        flags=6,
    )
    filter = compile_profile(found, X86)
    assert (filter.flags, filter.ignored) == (6, ("chown32", "frobnicate", "SCMP_ARCH_X32"))


@pytest.mark.parametrize(
    "capabilities, arch, kernel, applies",
    [
        ({"SYS_ADMIN"}, "amd64", (5, 10), True),
        ({"SYS_ADMIN", "KILL"}, "amd64", (8, 99), True),
        ({"SYS_ADMIN", "BPF"}, "amd64", (5, 10), False),
        ({"KILL"}, "amd64", (5, 10), False),
        ({"SYS_ADMIN"}, "arm64", (5, 10), False),
        ({"SYS_ADMIN"}, "amd64", (5, 9), False),
        ({"SYS_ADMIN"}, "amd64", (9, 0), False),
    ],
)
def test_what_a_rule_is_for(capabilities: set[str], arch: str, kernel: tuple[int, int], applies: bool) -> None:
    includes = Selector(frozenset({"SYS_ADMIN"}), frozenset({"amd64"}), (5, 10))
    rule = Rule(("read",), ALLOW, (), includes, Selector(frozenset({"BPF"}), frozenset({"s390"}), (9, 0)))
    assert rule.applies(frozenset(capabilities), arch, kernel) is applies
    assert not Rule(("read",), ALLOW, excludes=Selector(arches=frozenset({"amd64"}))).applies(NONE, "amd64", (6, 1))


def with_rule(**changes: Any) -> str:
    rule = {"names": ["read"], "action": "SCMP_ACT_ALLOW"} | changes
    return json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["x"], "action": "SCMP_ACT_LOG"}, rule]})


def with_condition(**changes: Any) -> str:
    condition = {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"} | changes
    return with_rule(args=[{key: value for key, value in condition.items() if value is not ...}])


BAD = [
    ("", "not JSON: Expecting value in line 1, column 1"),
    ("{", "not JSON: Expecting property name"),
    ("[" * 100_000, "not a profile: nested too deeply"),
    ("[]", "expected an object, got []"),
    ("{}", '"defaultAction" is required'),
    ('{"defaultAction": NaN}', "NaN is not JSON"),
    ('{"defaultAction": "SCMP_ACT_LOG", "defaultAction": "SCMP_ACT_ALLOW"}', 'the key "defaultAction" is given twice'),
    ('{"defaultAction": "allow"}', "defaultAction: expected one of SCMP_ACT_KILL, "),
    ('{"defaultAction": ["SCMP_ACT_LOG"]}', "defaultAction: expected one of SCMP_ACT_KILL, "),
    ('{"defaultAction": "SCMP_ACT_NOTIFY"}', "defaultAction: SCMP_ACT_NOTIFY is not supported: calls can't be handed"),
    ('{"defaultAction": "SCMP_ACT_LOG", "defaultErrnoRet": 1}', "defaultErrnoRet: has no meaning for SCMP_ACT_LOG"),
    ('{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096}', "defaultErrnoRet: expected a whole number from 0 to 4095"),
    ('{"defaultAction": "SCMP_ACT_TRACE", "defaultErrnoRet": 65536}', "defaultErrnoRet: expected a whole number from 0 to 65535"),
    ('{"defaultAction": "SCMP_ACT_LOG", "sycalls": []}', "sycalls: there is no such key; expected defaultAction, "),
    ('{"defaultAction": "SCMP_ACT_LOG", "listenerPath": "/x"}', "listenerPath: not supported"),
    ('{"defaultAction": "SCMP_ACT_LOG", "architectures": "x"}', 'architectures: expected a list, got "x"'),
    ('{"defaultAction": "SCMP_ACT_LOG", "architectures": ["amd64"]}', "architectures[0]: expected a name such as SCMP_ARCH_"),
    ('{"defaultAction": "SCMP_ACT_LOG", "flags": ["X"]}', "flags[0]: expected one of SECCOMP_FILTER_FLAG_TSYNC, "),
    ('{"defaultAction": "SCMP_ACT_LOG", "syscalls": {}}', "syscalls: expected a list, got {}"),
    ('{"defaultAction": "SCMP_ACT_LOG", "syscalls": [1]}', "syscalls[0]: expected an object, got 1"),
    (with_rule(names=[]), 'syscalls[1]: "names" is required'),
    (with_rule(names=None), 'syscalls[1]: "names" is required'),
    (with_rule(names="read"), 'syscalls[1].names: expected a list, got "read"'),
    (with_rule(names=["read", "SYS read"]), 'syscalls[1].names[1]: expected the name of a system call, got "SYS read"'),
    (with_rule(names=[5]), "syscalls[1].names[0]: expected text, got 5"),
    (with_rule(name="read"), "syscalls[1].name: there is no such key; expected names, action, "),
    (with_rule(action=None), 'syscalls[1]: "action" is required'),
    (with_rule(action="SCMP_ACT_NOTIFY"), "syscalls[1].action: SCMP_ACT_NOTIFY is not supported"),
    (with_rule(errnoRet=5), "syscalls[1].errnoRet: has no meaning for SCMP_ACT_ALLOW"),
    (with_rule(action="SCMP_ACT_ERRNO", errnoRet=True), "syscalls[1].errnoRet: expected a whole number from 0 to 4095, got true"),
    (with_rule(action="SCMP_ACT_ERRNO", errnoRet=1.5), "syscalls[1].errnoRet: expected a whole number from 0 to 4095, got 1.5"),
    (with_rule(includes={"capabilities": []}), "syscalls[1].includes.capabilities: there is no such key; expected caps, "),
    (with_rule(includes={"caps": ["CAP_NO"]}), 'syscalls[1].includes.caps[0]: "CAP_NO" is not a capability'),
    (with_rule(excludes={"minKernel": "six"}), 'syscalls[1].excludes.minKernel: expected a version such as 4.8, got "six"'),
    (with_condition(index=6), "syscalls[1].args[0].index: expected a whole number from 0 to 5, got 6"),
    (with_condition(index=...), 'syscalls[1].args[0]: "index" is required'),
    (with_condition(value=-1), "syscalls[1].args[0].value: expected a whole number from 0 to 18446744073709551615, got -1"),
    (with_condition(value=1 << 64), "syscalls[1].args[0].value: expected a whole number from 0 to 18446744073709551615"),
    (with_condition(value="1"), "syscalls[1].args[0].value: expected a whole number from 0 to 18446744073709551615"),
    (with_condition(op="=="), 'syscalls[1].args[0].op: expected one of SCMP_CMP_NE, '),
    (with_condition(valueTwo=5), "syscalls[1].args[0].valueTwo: has no meaning for SCMP_CMP_EQ"),
    (with_condition(op="SCMP_CMP_MASKED_EQ", valueTwo=2), 'syscalls[1].args[0].valueTwo: has bits that "value", the mask, takes'),
    (
        with_rule(args=[{"index": 1, "value": 1, "op": "SCMP_CMP_GE"}, {"index": 1, "value": 5, "op": "SCMP_CMP_LE"}]),
        "syscalls[1].args[1].index: a second condition on this argument; runc takes that as either of them",
    ),
]  # fmt: skip


@pytest.mark.parametrize("text, problem", BAD, ids=[problem for _, problem in BAD])
def test_bad_profiles(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}.*$"):  # one line: a dot is no newline
        parse_profile(text)


@settings(deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(
    st.sampled_from(["defaultAction", "syscalls", "names", "args", "index", "action", "includes", "caps", "flags"]), inner
)))  # fmt: skip
def test_no_json_is_a_traceback(document: Any) -> None:
    try:
        parse_profile(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": document}))
    except ValueError as error:
        assert str(error)  # noqa: PT017 - any problem will do


def test_files_that_are_no_profiles(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b" " * ((1 << 20) + 1))
    (tmp_path / "binary").write_bytes(b"\xff")
    for name, problem in (("fifo", "not a regular file"), ("large", "larger than 1 MiB"), ("binary", "not UTF-8 text")):
        with pytest.raises(ValueError, match=problem):
            read_profile_text(tmp_path / name)
    (tmp_path / "good").write_bytes(b"\xef\xbb\xbf" + default_profile_text().encode())
    assert read_profile_text(tmp_path / "good") == default_profile_text()


# ---- which filter a spec gets ----


def spec(seccomp: str | Path, **fields: Any) -> Spec:
    return Spec(command=("true",), seccomp=seccomp, **fields)


def written(directory: Path, **document: Any) -> Path:
    path = directory / "profile.json"
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ERRNO", **document}))
    return path


def test_filters_are_made_once() -> None:
    first = filters.filter_for(spec("default"))
    assert first is filters.filter_for(spec("default"))
    assert first is not filters.filter_for(spec("default", capabilities={"SYS_ADMIN"}))
    assert filters.filter_for(spec("unconfined")) is None


def test_a_changed_file_is_a_changed_filter(tmp_path: Path) -> None:
    allow = {"names": ["execve"], "action": "SCMP_ACT_ALLOW"}
    first = filters.filter_for(spec(written(tmp_path, syscalls=[allow])))
    assert first is filters.filter_for(spec(written(tmp_path, syscalls=[allow])))
    assert first != filters.filter_for(spec(written(tmp_path, syscalls=[allow | {"names": ["execve", "read"]}])))


def test_profiles_that_no_workload_could_be_started_under(tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.raises(SpecError, match=r"security_opt: .*profile.json: the profile must allow execve: the workload is started"):
        filters.filter_for(spec(path))
    path = written(tmp_path, syscalls=[{"names": ["execve", "chdir", "prctl", "getcwd"], "action": "SCMP_ACT_ALLOW"}])
    assert filters.filter_for(spec(path)) is not None
    with pytest.raises(SpecError, match=r"must allow setgroups, setresgid, setresuid, capset: without no-new-privileges"):
        filters.filter_for(spec(path, no_new_privs=False))


def test_problems_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"^security_opt: /no/such: No such file or directory$"):
        filters.filter_for(spec("/no/such"))
    with pytest.raises(SpecError, match=r"^security_opt: .*/profile.json: syscalls: expected a list, got 5$"):
        filters.filter_for(spec(written(tmp_path, syscalls=5)))


def test_a_kernel_without_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "has_seccomp", lambda: False)
    filters._compiled.cache_clear()
    with pytest.raises(HostError, match="this kernel takes no seccomp filters; see `tinyvisor doctor`"):
        filters.filter_for(spec("default"))
    assert filters.filter_for(spec("unconfined")) is None


def test_a_kernel_that_tells_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "tells_refusals", lambda: False)
    filters._compiled.cache_clear()
    try:
        assert filters.filter_for(spec("default")) is not None
        assert filters.filter_for(spec("default", seccomp_action="trace")) is not None
        with pytest.raises(HostError, match=r"can't tell of refused system calls; leave out"):
            filters.filter_for(spec("default", seccomp_action="kill"))
    finally:
        filters._compiled.cache_clear()


def test_a_machine_without_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "x", "6.1", "x", "riscv64")))
    filters._compiled.cache_clear()
    try:
        with pytest.raises(HostError, match="no seccomp filters for riscv64; see `tinyvisor doctor`"):
            filters.filter_for(spec("default"))
    finally:
        filters._compiled.cache_clear()


def test_what_a_tracer_wants_to_know_of_a_profile() -> None:
    conditional = Rule(("socket",), Action("allow"), (Condition(0, "==", 1),))
    profile = Profile(Action("errno", 1), (Rule(("read",), Action("allow")), Rule(("write",), Action("log")), conditional))
    filter = compile_profile(profile, MACHINES["x86_64"])
    assert filter.passes == {"read", "write"}
    assert not filter.asks_tracer
    asking = compile_profile(Profile(Action("allow"), (Rule(("read",), Action("trace", 7)),)), MACHINES["x86_64"])
    assert "read" not in asking.passes
    assert "write" in asking.passes
    assert asking.asks_tracer
    assert compile_profile(Profile(Action("trace")), MACHINES["x86_64"]).asks_tracer


# ---- refusals that init is told of ----


BUT = frozenset({"exit_group", *sc.NEEDED})


def _becomes(action: Action, mode: str, *, noted: bool) -> Action:
    """What is to come of a profile's action, read off the documentation."""
    if action.kind in ("allow", "log", "trace") or action == ENOSYS:
        return action
    if not noted:
        return {"kill": KILL_PROCESS, "log": ALLOW}.get(mode, action)
    match mode, action.kind:
        case "trace", _:
            return Action("trace")
        case "log", _:
            return Action("notify", 0xFFFE)
        case "kill", _:
            return Action("notify", 0xFFFF)
        case _, "kill_process":
            return Action("notify", 0xFFFF)
        case _, "errno":
            return Action("notify", action.data)
    return action


ANY_ACTION = st.sampled_from(
    [ALLOW, EPERM, ENOSYS, KILL_PROCESS, Action("errno", 76), Action("trap"), Action("kill_thread"), Action("log")]
)
ANY_RULE = st.builds(
    Rule,
    st.lists(st.sampled_from([*sorted(BUT), *sc.HANDOVER, "mount", "read", "keyctl", "mseal"]), min_size=1, max_size=4).map(
        tuple
    ),
    ANY_ACTION,
    st.sampled_from([(), (Condition(0, "==", 1),), (Condition(0, "&", 0, 4), Condition(1, ">", 1 << 33))]),
)


ANOTHER_LISTENER = Action("errno", errno.EBUSY)


@pytest.mark.parametrize("mode", ["errno", "kill", "log", "trace"])
@given(
    rules=st.lists(ANY_RULE, max_size=6),
    default=ANY_ACTION,
    first=st.sampled_from([0, 1, 4, 5]),
    second=st.sampled_from([0, U64]),
)
def test_what_becomes_of_refusals(mode: str, rules: list[Rule], default: Action, first: int, second: int) -> None:
    """And nothing that a launch does before its init listens is ever handed to the listener: it would wait for ever."""
    filter = compile_profile(Profile(default, tuple(rules)), X86, refusals=sc.Refusals(mode, BUT))
    for name in {*BUT, *sc.HANDOVER, "mount", "read", "keyctl", "getpid"}:
        number, arguments = X86.numbers[name], [first, second, 0, 0, 0, 0]
        found = Simulator(filter.program).run(X86.audit, number, arguments)
        profile_says = said(rules, default, X86, number, arguments)
        if name == "seccomp" and second == U64 and (filter.notifies or found == ANOTHER_LISTENER):
            assert found == ANOTHER_LISTENER
        elif name in sc.HANDOVER:
            assert found.kind != "notify"
            assert not filter.notifies or found == ALLOW
            if found == ALLOW and filter.second:
                found = Simulator(filter.second).run(X86.audit, number, arguments)
            expected = {_becomes(profile_says, mode, noted=noted) for noted in (False, True)}
            assert found in expected, name
        else:
            assert not filter.second or Simulator(filter.second).run(X86.audit, number, arguments) == ALLOW
            assert found == _becomes(profile_says, mode, noted=name not in BUT), name
    assert filter.notifies == any(
        instruction.k >> 16 == 0x7FC0 for instruction in Simulator(filter.program).code if instruction.code == 6
    )


def test_no_program_asks_a_listener_where_nobody_wants_to_know() -> None:
    spec = Spec(command=("true",))
    plain, told = filters.filter_for(spec), filters.filter_for(spec.with_(seccomp_action="errno"))
    assert plain is not None
    assert told is not None
    assert (plain.notifies, told.notifies, plain.second, told.second) == (False, True, b"", b"")
    assert len(told.program) <= len(plain.program) + 16 * 8
    assert filters.filter_for(spec.with_(seccomp="unconfined")) is None


@pytest.mark.parametrize(
    "number, answer, name, came_of_it",
    [
        (165, 1, "mount", "EPERM"),
        (165, 0xFFFF, "mount", "killed"),
        (9999, 0xFFFE, "syscall_9999", "allowed"),
        (0, 4000, "read", "errno 4000"),
    ],
)
def test_refused_calls_in_words(number: int, answer: int, name: str, came_of_it: str) -> None:
    assert sc.describe_refused(number, answer, X86.numbers) == (name, came_of_it)


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_a_container_made_ahead_waits_behind_the_default_filter(machine: Machine) -> None:
    default = compile_profile(parse_profile(default_profile_text()), machine)
    assert sc.may_wait(default, machine)
    for name in sorted(sc._WAITING & machine.numbers.keys()):
        refusing = compile_profile(profile(Rule((name,), Action("errno", errno.EPERM)), default=ALLOW), machine)
        assert not sc.may_wait(refusing, machine)
