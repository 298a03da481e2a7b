"""A seccomp profile out of what a program did: what it may do again, and nothing else. Pure.

What it tried in vain gives the same answer again: a call that only ever gave EPERM is left out, which gives EPERM; one that
only ever gave ENOSYS gets ENOSYS, so that a libc falls back as it did.

A filter sees numbers, not what pointers point to: the flags of clone3 are in memory. Who made threads and processes by it, and
no namespaces, gets ENOSYS for it from then on, and clone(2) with conditions on its flags, which every libc falls back to. Who
made more of it keeps it, whole.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tinyvisor.profile import OPERATORS, Action, Condition, Profile
from tinyvisor.trace import Event, Syscall

ALWAYS = ("exit", "exit_group", "restart_syscall", "rt_sigreturn")
"""What comes of ends, signals and stops, whenever those come."""

NAMESPACES = 0x7E020000
"""CLONE_NEW* that clone(2) takes."""

_LOW = 0xFFFFFFFF
_DECIDING = {
    "clone": (0, NAMESPACES), "unshare": (0, _LOW), "setns": (1, _LOW), "socket": (0, _LOW), "socketpair": (0, _LOW),
    "ioctl": (1, _LOW), "prctl": (0, _LOW), "personality": (0, _LOW), "ptrace": (0, _LOW), "keyctl": (0, _LOW), "bpf": (0, _LOW),
    "fcntl": (1, _LOW),
}  # fmt: skip
"""Calls that are many in one: which argument says which, and the bits of it that count. The kernel takes the low half."""

_MORE = ("CLONE_NEW", "CLONE_INTO_CGROUP", "0x")
"""Flags of clone3 that clone(2) does not have, or that are rights."""

_OPERATOR_NAMES = {short: name for name, short in OPERATORS.items()}
_NO_CONDITION: tuple[Condition, ...] = ()


@dataclass(slots=True)
class Learned:
    """What is allowed, and what is answered with ENOSYS.

    Attributes:
        allowed: name → conditions, of which one must hold; an empty one always does.
        missing: calls that don't exist for the program.
        foreign: calls of another architecture; a profile can't allow them.
    """

    allowed: dict[str, set[tuple[Condition, ...]]] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)

    def add(self, event: Event) -> None:
        """Takes one more event into account."""
        if not isinstance(event, Syscall) or event.errno == "EPERM":
            return
        if event.name.startswith(("other_", "x32_", "syscall_")):
            self.foreign.add(event.name)
        elif event.errno == "ENOSYS":
            self.missing.add(event.name)
        elif event.name == "clone3" and _is_plain(event):
            self.missing.add(event.name)
            self.allow("clone", (Condition(0, "&", 0, NAMESPACES),))
        else:
            self.allow(event.name, _condition(event))

    def allow(self, name: str, conditions: tuple[Condition, ...] = _NO_CONDITION) -> None:
        self.allowed.setdefault(name, set()).add(conditions)

    def merge(self, other: Learned) -> None:
        """What either allows."""
        for name, cases in other.allowed.items():
            self.allowed.setdefault(name, set()).update(cases)
        self.missing |= other.missing
        self.foreign |= other.foreign

    def cases(self) -> frozenset[tuple[str, tuple[Condition, ...]]]:
        """All that is allowed; conditions are left out where the call is allowed without."""
        found = set()
        for name, cases in self.allowed.items():
            found |= {(name, case) for case in ([_NO_CONDITION] if _NO_CONDITION in cases else cases)}
        return frozenset(found)

    def document(self, architecture: str) -> dict[str, Any]:
        """The OCI's JSON; the same for the same calls, in whatever order they came.

        Args:
            architecture: ``SCMP_ARCH_…``.
        """
        cases = self.cases()
        rules: list[dict[str, Any]] = [
            {"names": sorted({name for name, case in cases if not case} | set(ALWAYS)), "action": "SCMP_ACT_ALLOW"}
        ]
        for name, case in sorted(cases - {(name, _NO_CONDITION) for name in self.allowed}, key=_order):
            rules.append({"names": [name], "action": "SCMP_ACT_ALLOW", "args": [_argument(one) for one in case]})
        missing = sorted(self.missing - self.allowed.keys())
        if missing:
            rules.append({"names": missing, "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS})
        return {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": errno.EPERM,
            "architectures": [architecture],
            "syscalls": rules,
        }


def learn(events: Iterable[Event]) -> Learned:
    """What all of `events` come to."""
    learned = Learned()
    for event in events:
        learned.add(event)
    return learned


def of_profile(profile: Profile, *, arch: str, kernel: tuple[int, int]) -> Learned:
    """What a profile allows a container without capabilities, as far as its rules say so: not by its default.

    Args:
        arch: in Docker's words: amd64.
        kernel: (major, minor).
    """
    learned = Learned()
    for rule in profile.rules:
        if not rule.applies(frozenset(), arch, kernel):
            continue
        for name in rule.names:
            if rule.action.kind in ("allow", "log"):
                learned.allow(name, rule.conditions)
            elif rule.action == Action("errno", errno.ENOSYS):
                learned.missing.add(name)
    return learned


def differences(one: Profile, other: Profile, *, arch: str, kernel: tuple[int, int]) -> list[str]:
    """What `other` allows and `one` doesn't (``+ socket(arg0 == 0x2)``), and the other way round (``-``). Sorted; empty where
    they allow the same.

    Args:
        arch, kernel: as `of_profile`.
    """
    lines = []
    if one.default != other.default:
        lines.append(f"~ default: {_shown_action(one.default)} -> {_shown_action(other.default)}")
    before = of_profile(one, arch=arch, kernel=kernel).cases()
    after = of_profile(other, arch=arch, kernel=kernel).cases()
    changed = [(case, "-") for case in before - after] + [(case, "+") for case in after - before]
    return lines + [f"{sign} {describe(*case)}" for case, sign in sorted(changed, key=lambda item: (_order(item[0]), item[1]))]


def describe(name: str, conditions: tuple[Condition, ...]) -> str:
    """``socket(arg0 & 0xffffffff == 0x2)``."""
    if not conditions:
        return name
    return f"{name}({', '.join(map(_shown_condition, conditions))})"


def _shown_action(action: Action) -> str:
    return f"{action.kind} {errno.errorcode.get(action.data, action.data)}" if action.kind == "errno" else action.kind


def _shown_condition(condition: Condition) -> str:
    if condition.operator == "&":
        return f"arg{condition.index} & {condition.mask:#x} == {condition.value:#x}"
    return f"arg{condition.index} {condition.operator} {condition.value:#x}"


def _condition(call: Syscall) -> tuple[Condition, ...]:
    if call.name not in _DECIDING:
        return _NO_CONDITION
    index, mask = _DECIDING[call.name]
    if index >= len(call.raw):
        return _NO_CONDITION
    return (Condition(index, "&", call.raw[index] & mask, mask),)


def _is_plain(clone3: Syscall) -> bool:
    """Whether clone(2) could have done it."""
    match = re.match(r"\{flags=([A-Z0-9_x|]*),", clone3.args[0]) if clone3.args else None
    return match is not None and not any(word.startswith(_MORE) for word in match[1].split("|"))


def _argument(condition: Condition) -> dict[str, Any]:
    found: dict[str, Any] = {"index": condition.index, "op": _OPERATOR_NAMES[condition.operator]}
    if condition.operator == "&":
        return found | {"value": condition.mask, "valueTwo": condition.value}
    return found | {"value": condition.value}


def _order(case: tuple[str, tuple[Condition, ...]]) -> tuple[Any, ...]:
    return case[0], [(one.index, one.operator, one.value, one.mask) for one in case[1]]
