"""seccomp profiles: the OCI's JSON (and Docker's additions to it) → checked dataclasses.

What a profile means is said here; `tinyvisor.runtime.seccomp` makes a program of it. Rules are taken in their order and the
first one that fits decides; libseccomp instead lets a rule without conditions win over those with some.

Pure but for reading files. Source: OCI runtime-spec config-linux.md "Seccomp", schema/defs-linux.json; seccomp(2); moby
profiles/seccomp for `includes` and `excludes`.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tinyvisor.spec import CAPABILITIES

MAX_FILE = 1 << 20
"""Bytes of a profile."""

_T = TypeVar("_T")


LET_THROUGH, KILL = 0xFFFE, 0xFFFF
"""runtime/launcher/launcher.h, ANSWER_*."""


class Action(NamedTuple):
    """What is done with a system call.

    Attributes:
        kind: a value of `ACTIONS`; or ``notify``: init is told, which then does what `data` says.
        data: of ``errno`` the errno, 0..4095; of ``trace`` what the tracer is told, 0..65535; of ``notify`` an errno,
            `LET_THROUGH` or `KILL`; else 0.
    """

    kind: str
    data: int = 0

    def lets_through(self) -> bool:
        """Whether the call is made; with ``trace`` that is the tracer's to say."""
        return self.kind in ("allow", "log", "trace") or self == ("notify", LET_THROUGH)


ACTIONS = {
    "SCMP_ACT_KILL": "kill_thread", "SCMP_ACT_KILL_THREAD": "kill_thread", "SCMP_ACT_KILL_PROCESS": "kill_process",
    "SCMP_ACT_TRAP": "trap", "SCMP_ACT_ERRNO": "errno", "SCMP_ACT_TRACE": "trace", "SCMP_ACT_LOG": "log",
    "SCMP_ACT_ALLOW": "allow",
}  # fmt: skip
OPERATORS = {
    "SCMP_CMP_NE": "!=", "SCMP_CMP_LT": "<", "SCMP_CMP_LE": "<=", "SCMP_CMP_EQ": "==", "SCMP_CMP_GE": ">=", "SCMP_CMP_GT": ">",
    "SCMP_CMP_MASKED_EQ": "&",
}  # fmt: skip
FLAGS = {"SECCOMP_FILTER_FLAG_TSYNC": 0, "SECCOMP_FILTER_FLAG_LOG": 2, "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4}
"""linux/seccomp.h. TSYNC is nothing to do: there is one thread when the filter is installed."""

_MAX_DATA = {"errno": 4095, "trace": 65535}


@dataclass(frozen=True, slots=True)
class Condition:
    """A comparison of one argument, unsigned and of 64 bits.

    Attributes:
        index: of the argument, 0..5.
        operator: a value of `OPERATORS`.
        value: what it is compared with; for ``&`` after the mask was put on.
        mask: for ``&``.
    """

    index: int
    operator: str
    value: int
    mask: int = (1 << 64) - 1

    def holds(self, argument: int) -> bool:
        """Whether it is true of an argument."""
        match self.operator:
            case "!=":
                return argument != self.value
            case "<":
                return argument < self.value
            case "<=":
                return argument <= self.value
            case ">=":
                return argument >= self.value
            case ">":
                return argument > self.value
            case _:
                return argument & self.mask == self.value


@dataclass(frozen=True, slots=True)
class Selector:
    """Where a rule is for: which capabilities the container keeps, on which machine and kernel.

    Attributes:
        capabilities: names without CAP_.
        arches: in Docker's words: amd64, arm64.
        min_kernel: (major, minor), or None.
    """

    capabilities: frozenset[str] = frozenset()
    arches: frozenset[str] = frozenset()
    min_kernel: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """What is done with some system calls where all conditions hold.

    Attributes:
        names: of system calls; those that a machine doesn't have are passed over there.
        includes: must all hold for the rule to be there at all.
        excludes: the rule is left out where any of it holds.
    """

    names: tuple[str, ...]
    action: Action
    conditions: tuple[Condition, ...] = ()
    includes: Selector = Selector()
    excludes: Selector = Selector()

    def applies(self, capabilities: frozenset[str], arch: str, kernel: tuple[int, int]) -> bool:
        """Whether it is for a container that keeps `capabilities`."""
        wanted, unwanted = self.includes, self.excludes
        if (wanted.arches and arch not in wanted.arches) or arch in unwanted.arches:
            return False
        if wanted.min_kernel and kernel < wanted.min_kernel:
            return False
        if unwanted.min_kernel and kernel >= unwanted.min_kernel:
            return False
        return wanted.capabilities <= capabilities and not unwanted.capabilities & capabilities


@dataclass(frozen=True, slots=True)
class Profile:
    """A whole profile.

    Attributes:
        default: for what no rule fits.
        rules: the first that fits decides.
        architectures: ``SCMP_ARCH_…``, for the record: filters are for the machine's own one, the others are refused.
        flags: SECCOMP_FILTER_FLAG_* bits.
    """

    default: Action
    rules: tuple[Rule, ...] = ()
    architectures: tuple[str, ...] = ()
    flags: int = 0


# ---- JSON ----


def parse_profile(text: str) -> Profile:
    """The profile that a JSON text describes.

    Raises:
        ValueError: what is wrong, with its JSON path: ``syscalls[3].args[0].op: …``.
    """
    try:
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("not a profile: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    return _profile(_Value(document, ""))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f'the key "{twice}" is given twice in one object')
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


class _Value(NamedTuple):
    """A JSON value and where it is."""

    json: Any
    path: str

    def wrong(self, problem: str) -> ValueError:
        return ValueError(f"{self.path}: {problem}" if self.path else problem)

    def shown(self) -> str:
        text = json.dumps(self.json)
        return text if len(text) <= 60 else f"{text[:57]}..."

    def members(self, known: Iterable[str]) -> dict[str, _Value]:
        """An object's members but for those that are null."""
        if not isinstance(self.json, dict):
            raise self.wrong(f"expected an object, got {self.shown()}")
        dot = f"{self.path}." if self.path else ""
        for key in self.json:
            if key not in known:
                raise _Value(None, f"{dot}{key}").wrong(f"there is no such key; expected {', '.join(known)}")
        return {key: _Value(value, f"{dot}{key}") for key, value in self.json.items() if value is not None}

    def items(self, read: Callable[[_Value], _T]) -> tuple[_T, ...]:
        if not isinstance(self.json, list):
            raise self.wrong(f"expected a list, got {self.shown()}")
        return tuple(read(_Value(item, f"{self.path}[{number}]")) for number, item in enumerate(self.json))

    def text(self) -> str:
        if not isinstance(self.json, str):
            raise self.wrong(f"expected text, got {self.shown()}")
        return self.json

    def number(self, highest: int) -> int:
        if not isinstance(self.json, int) or isinstance(self.json, bool) or not 0 <= self.json <= highest:
            raise self.wrong(f"expected a whole number from 0 to {highest}, got {self.shown()}")
        return self.json

    def one_of(self, known: dict[str, _T]) -> _T:
        if not isinstance(self.json, str) or self.json not in known:
            raise self.wrong(f"expected one of {', '.join(known)}, got {self.shown()}")
        return known[self.json]


def _profile(value: _Value) -> Profile:
    found = value.members(
        ("defaultAction", "defaultErrnoRet", "architectures", "archMap", "flags", "syscalls", "listenerPath", "listenerMetadata")
    )
    for key in ("listenerPath", "listenerMetadata"):
        if key in found:
            raise found[key].wrong("not supported: calls can't be handed to another process (SCMP_ACT_NOTIFY)")
    return Profile(
        default=_action(value, found, "defaultAction", "defaultErrnoRet"),
        rules=found["syscalls"].items(_rule) if "syscalls" in found else (),
        architectures=found["architectures"].items(_architecture) if "architectures" in found else (),
        flags=functools.reduce(int.__or__, found["flags"].items(lambda flag: flag.one_of(FLAGS)), 0) if "flags" in found else 0,
    )


def _action(value: _Value, found: dict[str, _Value], key: str, data_key: str) -> Action:
    if key not in found:
        raise value.wrong(f'"{key}" is required')
    if found[key].json == "SCMP_ACT_NOTIFY":
        raise found[key].wrong("SCMP_ACT_NOTIFY is not supported: calls can't be handed to another process")
    kind = found[key].one_of(ACTIONS)
    if kind not in _MAX_DATA:
        if data_key in found:
            raise found[data_key].wrong(f"has no meaning for {found[key].json}")
        return Action(kind)
    return Action(kind, found[data_key].number(_MAX_DATA[kind]) if data_key in found else errno.EPERM)


def _architecture(value: _Value) -> str:
    if not re.fullmatch(r"SCMP_ARCH_[A-Z0-9_]+", value.text()):
        raise value.wrong(f"expected a name such as SCMP_ARCH_X86_64, got {value.shown()}")
    return value.text()


def _rule(value: _Value) -> Rule:
    found = value.members(("names", "action", "errnoRet", "args", "comment", "includes", "excludes"))
    names = found["names"].items(_name) if "names" in found else ()
    if not names:
        raise value.wrong('"names" is required, with at least one system call')
    conditions = found["args"].items(_condition) if "args" in found else ()
    for number, condition in enumerate(conditions):
        if condition.index in [other.index for other in conditions[:number]]:
            place = _Value(None, f"{found['args'].path}[{number}].index")
            raise place.wrong("a second condition on this argument; runc takes that as either of them: write a rule for each")
    return Rule(
        names=names,
        action=_action(value, found, "action", "errnoRet"),
        conditions=conditions,
        includes=_selector(found["includes"]) if "includes" in found else Selector(),
        excludes=_selector(found["excludes"]) if "excludes" in found else Selector(),
    )


def _name(value: _Value) -> str:
    if not re.fullmatch(r"[a-z0-9_]{1,64}", value.text()):
        raise value.wrong(f"expected the name of a system call, got {value.shown()}")
    return value.text()


def _condition(value: _Value) -> Condition:
    found = value.members(("index", "value", "valueTwo", "op"))
    for key in ("index", "value", "op"):
        if key not in found:
            raise value.wrong(f'"{key}" is required')
    operator = found["op"].one_of(OPERATORS)
    index, number = found["index"].number(5), found["value"].number((1 << 64) - 1)
    second = found["valueTwo"].number((1 << 64) - 1) if "valueTwo" in found else 0
    if operator == "&":
        if second & ~number:
            raise found["valueTwo"].wrong('has bits that "value", the mask, takes away: it would never hold')
        return Condition(index, "&", second, number)
    if second:
        raise found["valueTwo"].wrong(f"has no meaning for {found['op'].json}")
    return Condition(index, operator, number)


def _selector(value: _Value) -> Selector:
    found = value.members(("caps", "arches", "minKernel"))
    return Selector(
        capabilities=frozenset(found["caps"].items(_capability)) if "caps" in found else frozenset(),
        arches=frozenset(found["arches"].items(_Value.text)) if "arches" in found else frozenset(),
        min_kernel=_kernel(found["minKernel"]) if "minKernel" in found else None,
    )


def _capability(value: _Value) -> str:
    name = value.text().removeprefix("CAP_")
    if name not in CAPABILITIES:
        raise value.wrong(f"{value.shown()} is not a capability; see capabilities(7)")
    return name


def _kernel(value: _Value) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,4})\.([0-9]{1,4})", value.text())
    if match is None:
        raise value.wrong(f"expected a version such as 4.8, got {value.shown()}")
    return int(match[1]), int(match[2])


# ---- where the text comes from ----


@functools.cache
def default_profile_text() -> str:
    """Our own profile, which a container has unless it says otherwise."""
    return files("tinyvisor").joinpath("seccomp-default.json").read_text(encoding="utf-8")


def read_profile_text(path: Path) -> str:
    """The text of a profile in a file.

    Raises:
        ValueError: not a regular file, too large, or not UTF-8.
        OSError: as open and read say.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:  # a FIFO would block
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("not a regular file")
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ValueError(f"larger than {MAX_FILE >> 20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
