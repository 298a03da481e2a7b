"""Which seccomp filter a spec gets. A profile is compiled once per content, set of capabilities, and rules before it."""

from __future__ import annotations

import errno
import functools
import os

from tinyvisor.errors import HostError, SpecError
from tinyvisor.profile import (
    LET_THROUGH,
    Action,
    Condition,
    Profile,
    Rule,
    default_profile_text,
    parse_profile,
    read_profile_text,
)
from tinyvisor.runtime.host import has_seccomp, kernel_version, tells_refusals
from tinyvisor.runtime.seccomp import ALLOW, HANDOVER, MACHINES, NEEDED, Filter, Machine, Refusals, compile_profile
from tinyvisor.spec import Spec, SyscallRule
from tinyvisor.trace import parse_calls

_CURE = 'see `tinyvisor doctor`, or take "seccomp=unconfined" in "security_opt"'


def filter_for(spec: Spec) -> Filter | None:
    """The filter that ``spec.seccomp`` and ``spec.on_syscall`` make, for this machine; None where there is nothing to filter.

    Raises:
        SpecError: the profile can't be read, is wrong, or refuses what is needed to start the workload; a rule names no call.
        HostError: there are no filters for this machine, or its kernel takes none.
    """
    rules = tuple(rule for rule in spec.on_syscall if not rule.reads)
    if spec.seccomp == "unconfined" and not rules:
        return None
    refusals = None
    if spec.seccomp_action or rules:
        but = frozenset(("execve", "exit_group") if spec.no_new_privs else ("exit_group", *NEEDED))
        refusals = Refusals(spec.seccomp_action or "errno", but)
    try:
        filter = _compiled(_text(spec), spec.possible_capabilities, rules, refusals)
    except OSError as error:
        raise SpecError("security_opt", f"{spec.seccomp}: {os.strerror(error.errno or 0)}") from None
    except ValueError as error:
        raise SpecError("security_opt", f"{spec.seccomp}: {error}") from None
    needed = NEEDED[:1] if spec.no_new_privs else NEEDED
    refused = [name for name in filter.refused if name in needed]
    if refused:
        why = "the workload is started" if spec.no_new_privs else "without no-new-privileges, rights are dropped"
        what = "the profile" if not rules else "profile and on_syscall"
        raise SpecError("security_opt", f"{spec.seccomp}: {what} must allow {', '.join(refused)}: {why} under it")
    return filter


def _text(spec: Spec) -> str | None:
    if isinstance(spec.seccomp, str):
        return default_profile_text() if spec.seccomp == "default" else None
    return read_profile_text(spec.seccomp)


@functools.lru_cache(maxsize=64)
def _compiled(
    text: str | None, capabilities: frozenset[str], on_syscall: tuple[SyscallRule, ...], refusals: Refusals | None
) -> Filter:
    system = os.uname()
    if system.machine not in MACHINES:
        raise HostError(f"there are no seccomp filters for {system.machine}", _CURE)
    if not has_seccomp():
        raise HostError("this kernel takes no seccomp filters", _CURE)
    machine = MACHINES[system.machine]
    profile = parse_profile(text) if text is not None else Profile(ALLOW)
    if on_syscall:
        assert refusals is not None
        rules = tuple(_rule(rule, machine, refusals) for rule in on_syscall)
        profile = Profile(profile.default, (*rules, *profile.rules), profile.architectures, profile.flags)
    filter = compile_profile(
        profile, machine, capabilities=capabilities, kernel=kernel_version(system.release), refusals=refusals
    )
    if filter.notifies and not tells_refusals():
        raise HostError(
            "this kernel can't tell of refused system calls", 'leave out "seccomp.action" and "on_syscall", or use Linux 5.5'
        )
    return filter


def _rule(rule: SyscallRule, machine: Machine, refusals: Refusals) -> Rule:
    try:
        names = parse_calls(rule.syscall, machine.numbers).among(machine.numbers)
    except ValueError as error:
        raise SpecError("on_syscall", str(error)) from None
    if rule.action == "log":
        # Till the exec, init sleeps, and would not answer.
        unseen = {*refusals.but, *HANDOVER} & set(names)
        if unseen and rule.syscall in unseen:
            raise SpecError(
                "on_syscall", f"{rule.syscall} can't be noted: the launch itself makes that call; see `tinyvisor trace`"
            )
        names = tuple(name for name in names if name not in unseen)
    actions = {"deny": Action("errno", errno.EPERM), "allow": ALLOW, "log": Action("notify", LET_THROUGH)}
    return Rule(names, actions[rule.action], tuple(Condition(*parts) for parts in rule.conditions()))
