"""From what the kernel said to a verdict: a table."""

from __future__ import annotations

import errno
import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvisor.runtime.usage import Usage
from tinyvisor.runtime.verdict import Outcome, judge, limit_behind
from tinyvisor.spec import Spec
from tinyvisor.state import Exit, Violation

NOTHING = Usage()
KILLED, TERMINATED = int(signal.SIGKILL), int(signal.SIGTERM)  # as wait statuses, too


def code(number: int) -> int:
    """The wait status of an exit."""
    return number << 8


def judged(wait_status: int | None, spec: dict[str, Any] | None = None, usage: Usage = NOTHING, **facts: Any) -> Exit:
    given: dict[str, Any] = {"timed_out": False, "stopped": False, "limits_enforced": ()} | facts
    outcome = Outcome(wait_status=wait_status, wall=1.5, cpu_user=0.25, cpu_system=0.125, usage=usage, **given)
    return judge(Spec(command=("true",), **(spec or {})), outcome)


LIMITED = {"mem_limit": 64 << 20, "pids_limit": 20, "timeout": 0.3}
REFUSED = (Violation("mount", "EPERM", 3), Violation("bpf", "EACCES", 1), Violation("mount", "EINVAL", 1), Violation("", "", 2))
NOTED = (Violation("connect", "allowed", 1),)
FATAL = (*REFUSED, Violation("ptrace", "killed", 1))
MANY = tuple(Violation(f"a{n}", "EPERM", 1) for n in range(7))
OOM, FORKS = Usage(oom_kills=1), Usage(pids_limit_hits=7)


@pytest.mark.parametrize(
    "wait_status, spec, usage, facts, status, returncode, reason",
    [
        (code(0), {}, Usage(), {}, "ok", 0, ""),
        (code(3), {}, Usage(), {}, "nonzero_exit", 3, "exit 3"),
        (code(137), {}, Usage(), {}, "nonzero_exit", 137, "exit 137"),
        (TERMINATED, {}, Usage(), {}, "signaled", 143, "ended by SIGTERM"),
        (KILLED, {}, Usage(), {}, "signaled", 137, "ended by SIGKILL"),
        (11 | 0x80, {}, Usage(), {}, "signaled", 139, "ended by SIGSEGV"),
        (None, {}, Usage(), {}, "signaled", 137, "ended by SIGKILL"),
        # a limit that was reached, and only where it was asked for
        (KILLED, LIMITED, Usage(), {"timed_out": True}, "time_limit", 137, "killed after timeout 300ms"),
        (KILLED, LIMITED, OOM, {}, "memory_limit", 137, "the kernel's OOM killer struck at mem_limit 64.0M"),
        (code(1), LIMITED, OOM, {}, "memory_limit", 1, "the kernel's OOM killer struck at mem_limit 64.0M"),
        (code(0), LIMITED, OOM, {}, "ok", 0, ""),
        (KILLED, {}, OOM, {}, "signaled", 137, "ended by SIGKILL"),
        (code(254), LIMITED, FORKS, {}, "pids_limit", 254, "exit 254 after 7 forks refused by pids_limit 20"),
        (code(0), LIMITED, FORKS, {}, "ok", 0, ""),
        (code(254), {}, FORKS, {}, "nonzero_exit", 254, "exit 254"),
        # on request
        (KILLED, {}, Usage(), {"stopped": True}, "stopped", 137, "stopped on request (SIGKILL)"),
        (code(0), {}, Usage(), {"stopped": True}, "stopped", 0, "stopped on request (exit 0)"),
        (KILLED, LIMITED, FORKS, {"stopped": True}, "stopped", 137, "stopped on request (SIGKILL)"),
        # several at once: what came first to end it
        (KILLED, LIMITED, OOM, {"stopped": True}, "memory_limit", 137, "the kernel's OOM killer struck at mem_limit 64.0M"),
        (KILLED, LIMITED, OOM, {"timed_out": True, "stopped": True}, "time_limit", 137, "killed after timeout 300ms"),
        # the seccomp filter
        (31, {}, Usage(), {}, "seccomp", 159, "ended by SIGSYS: a system call that its seccomp filter kills for"),
        (31, {"seccomp": "unconfined"}, Usage(), {}, "signaled", 159, "ended by SIGSYS"),
        (31, {}, Usage(), {"sent_sigsys": True}, "signaled", 159, "ended by SIGSYS"),
        (code(1), {}, Usage(), {"violations": REFUSED[:1]}, "seccomp", 1, "exit 1 after mount was refused by its seccomp filter"),
        (
            code(1),
            {},
            Usage(),
            {"violations": REFUSED},
            "seccomp",
            1,
            "exit 1 after mount, bpf, others were refused by its seccomp filter",
        ),
        (6, {}, Usage(), {"violations": REFUSED[:1]}, "seccomp", 134, "SIGABRT after mount was refused by its seccomp filter"),
        (code(0), {}, Usage(), {"violations": REFUSED}, "ok", 0, ""),
        (code(1), {}, Usage(), {"violations": NOTED}, "nonzero_exit", 1, "exit 1"),
        (
            KILLED,
            {},
            Usage(),
            {"violations": FATAL, "refused": True},
            "seccomp",
            137,
            "killed for calling ptrace, which its seccomp filter refuses",
        ),
        (
            KILLED,
            {},
            Usage(),
            {"violations": FATAL, "refused": True, "stopped": True},
            "stopped",
            137,
            "stopped on request (SIGKILL)",
        ),
        (
            code(1),
            {},
            Usage(),
            {"violations": MANY},
            "seccomp",
            1,
            "exit 1 after a0, a1, a2, a3, a4, … were refused by its seccomp filter",
        ),
        (KILLED, LIMITED, OOM, {"violations": REFUSED}, "memory_limit", 137, "the kernel's OOM killer struck at mem_limit 64.0M"),
        (
            code(254),
            LIMITED,
            FORKS,
            {"violations": REFUSED},
            "pids_limit",
            254,
            "exit 254 after 7 forks refused by pids_limit 20",
        ),
    ],
)
def test_verdict(
    wait_status: int | None, spec: dict[str, Any], usage: Usage, facts: dict[str, Any], status: str, returncode: int, reason: str
) -> None:
    exit = judged(wait_status, spec, usage, **facts)
    assert (exit.status, exit.returncode, exit.reason) == (status, returncode, reason)


def test_what_was_counted_is_handed_on() -> None:
    usage = Usage(pids_peak=3, pids_limit_hits=2, memory_peak=4096, oom_kills=2)
    exit = judged(code(0), usage=usage, limits_enforced=("cpus",), held_up_by=("sh[7]",), violations=NOTED)
    assert exit == Exit(
        status="ok", exit_code=0, wall=1.5, cpu_user=0.25, cpu_system=0.125, memory_peak=4096, pids_peak=3, oom_killed=True,
        pids_limit_hits=2, limits_enforced=("cpus",), held_up_by=("sh[7]",), violations=NOTED,
    )  # fmt: skip


@given(st.integers(0, 255))
def test_every_exit_code_is_exact(number: int) -> None:
    exit = judged(code(number))
    assert (exit.exit_code, exit.signal, exit.returncode, exit.describe()) == (number, None, number, f"exit {number}")


@given(st.integers(1, 64), st.booleans())
def test_every_signal_is_exact(number: int, dumped: bool) -> None:
    exit = judged(number | (0x80 if dumped else 0))
    assert (exit.exit_code, exit.signal, exit.returncode) == (None, number, 128 + number)
    assert exit.describe().startswith(("SIG", "signal "))


@pytest.mark.parametrize(
    ("spec", "error", "behind"),
    [
        ({"mem_limit": 4096}, errno.ENOMEM, "mem_limit is 4.0K, of which a start itself takes some"),
        ({"mem_limit": 4096}, errno.EPERM, ""),
        ({}, errno.ENOMEM, ""),
        ({"cpuset": {4, 99}}, errno.EINVAL, "cpuset: this host has CPUs 0 to 3"),
        ({"cpuset": {3, 99}}, errno.EINVAL, ""),
    ],
)
def test_a_start_that_its_own_limits_forbid_names_them(spec: dict[str, Any], error: int, behind: str) -> None:
    assert limit_behind(Spec(command=("true",), **spec), error, 4) == behind
