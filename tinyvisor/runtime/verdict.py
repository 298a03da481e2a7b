"""What the kernel said about an ended container → `Exit`. Pure: the status comes from events, never from "137"."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from signal import SIGSYS

from tinyvisor.runtime.usage import Usage
from tinyvisor.spec import Spec
from tinyvisor.state import Exit, Status, Violation, signal_name
from tinyvisor.units import format_duration, format_size

NAMED = 5
"""Refused calls that a reason names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The raw facts.

    Attributes:
        wait_status: of the workload as init reaped it; None where init was killed before it could say.
        timed_out: init's timer for `Spec.timeout` fired.
        cpu_timed_out: init saw that `Spec.cpu_time` was used up.
        output_exceeded: the limit (bytes) that its output went above, for which it was killed; None: it did not.
        wall: seconds from exec to the workload's end.
        cpu_user, cpu_system: seconds, of all the container's processes.
        usage: what the cgroup counted.
        stopped: we were asked to end it, and did so before it ended by itself.
        limits_enforced: names of the limits in force.
        held_up_by: what outlived a stop's grace period.
        violations: what its filter handed to init.
        refused: init killed the workload for a call that its filter refuses.
        sent_sigsys: we were asked to send it that signal, which else is a filter's.
    """

    wait_status: int | None
    timed_out: bool
    wall: float
    cpu_user: float
    cpu_system: float
    usage: Usage
    stopped: bool
    limits_enforced: tuple[str, ...]
    held_up_by: tuple[str, ...] = ()
    cpu_timed_out: bool = False
    output_exceeded: int | None = None
    violations: tuple[Violation, ...] = ()
    refused: bool = False
    sent_sigsys: bool = False


def limits_enforced(spec: Spec) -> tuple[str, ...]:
    """Names of the limits in force."""
    wanted = (
        ("pids_limit", spec.pids_limit), ("mem_limit", spec.mem_limit), ("cpus", spec.cpus), ("cpuset", spec.cpuset or None),
        ("blkio_config", spec.blkio), ("timeout", spec.timeout), ("cpu_time", spec.cpu_time), ("output_limit", spec.output_limit),
    )  # fmt: skip
    return tuple(name for name, value in wanted if value is not None)


def limit_behind(spec: Spec, error: int, cpus: int) -> str:
    """Which of the spec's own limits a step may have failed for, on a host with so many CPUs; empty where none comes to mind."""
    if error == errno.ENOMEM and spec.mem_limit is not None:
        return f"mem_limit is {format_size(spec.mem_limit)}, of which a start itself takes some"
    if error == errno.EINVAL and spec.cpuset and min(spec.cpuset) >= cpus:
        return f"cpuset: this host has CPUs 0 to {cpus - 1}"
    return ""


def judge(spec: Spec, outcome: Outcome) -> Exit:
    """The verdict. An OOM kill of some child does not fail a workload that then exits with 0; `oom_killed` still says so."""
    status_word = outcome.wait_status if outcome.wait_status is not None else 9
    code = os.waitstatus_to_exitcode(status_word)
    status, reason = _status(spec, outcome, code)
    return Exit(
        status=status,
        exit_code=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        reason=reason,
        wall=outcome.wall,
        # The cgroup knows of processes that nobody reaped, too, where it counts at all.
        cpu_user=outcome.cpu_user if outcome.usage.cpu_user is None else outcome.usage.cpu_user,
        cpu_system=outcome.cpu_system if outcome.usage.cpu_system is None else outcome.usage.cpu_system,
        memory_peak=outcome.usage.memory_peak,
        pids_peak=outcome.usage.pids_peak,
        oom_killed=outcome.usage.oom_kills > 0,
        pids_limit_hits=outcome.usage.pids_limit_hits,
        limits_enforced=outcome.limits_enforced,
        held_up_by=outcome.held_up_by,
        violations=outcome.violations,
    )


def _status(spec: Spec, outcome: Outcome, code: int) -> tuple[Status, str]:
    how = signal_name(-code) if code < 0 else f"exit {code}"
    if outcome.timed_out and spec.timeout is not None:
        return "time_limit", f"killed after timeout {format_duration(spec.timeout)}"
    if outcome.cpu_timed_out and spec.cpu_time is not None:
        return "time_limit", f"killed after cpu_time {format_duration(spec.cpu_time)}"
    if outcome.output_exceeded is not None:
        return "output_limit", f"killed after more than {format_size(outcome.output_exceeded)} of output"
    if outcome.usage.oom_kills and code != 0 and spec.mem_limit is not None:
        return "memory_limit", f"the kernel's OOM killer struck at mem_limit {format_size(spec.mem_limit)}"
    if outcome.stopped:
        return "stopped", f"stopped on request ({how})"
    if outcome.refused:
        return "seccomp", f"killed for calling {_names(outcome, 'killed')}, which its seccomp filter refuses"
    if code == 0:
        return "ok", ""
    if outcome.usage.pids_limit_hits and spec.pids_limit is not None:
        return "pids_limit", f"{how} after {outcome.usage.pids_limit_hits} forks refused by pids_limit {spec.pids_limit}"
    if code == -SIGSYS and spec.seccomp != "unconfined" and not outcome.sent_sigsys:
        return "seccomp", "ended by SIGSYS: a system call that its seccomp filter kills for"
    if any(item.refused for item in outcome.violations):
        return (
            "seccomp",
            f"{how} after {_names(outcome)} {'was' if _kinds(outcome) == 1 else 'were'} refused by its seccomp filter",
        )
    if code < 0:
        return "signaled", f"ended by {how}"
    return "nonzero_exit", how


def _kinds(outcome: Outcome) -> int:
    return len({item.syscall for item in outcome.violations if item.refused})


def _names(outcome: Outcome, answer: str | None = None) -> str:
    """Of what was refused: `NAMED` at most."""
    refused = [item for item in outcome.violations if item.refused and item.answer == (answer or item.answer)]
    names = list(dict.fromkeys(item.syscall or "others" for item in refused))
    return ", ".join([*names[:NAMED], *(["…"] if len(names) > NAMED else [])])
