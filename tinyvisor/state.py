"""What comes back: how a container ended, what it used, what happened to a service. Frozen values."""

from __future__ import annotations

import signal as signals
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal[
    "ok", "nonzero_exit", "signaled", "time_limit", "memory_limit", "output_limit", "pids_limit", "stopped", "sandbox_error"
]
"""Why a container ended, from what the kernel said. ``stopped``: we ended it on request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How one container ended and what it used.

    Attributes:
        status: the verdict.
        exit_code: 0..255 as the workload gave it; None where a signal ended it.
        signal: the signal's number; None where it exited.
        reason: one line for people, e.g. ``"killed by the OOM killer at mem_limit 64.0M"``.
        wall: seconds from exec to the workload's end.
        cpu_user, cpu_system: seconds, of all processes of the container.
        memory_peak: bytes, None where no memory controller was at hand.
        pids_peak: processes and threads at once, None where the kernel does not count it.
        oom_killed: the kernel's OOM killer struck inside the container's limit.
        pids_limit_hits: forks refused by `pids_limit`.
        limits_enforced: names of the limits that the kernel was holding.
        held_up_by: processes that outlived the grace period of a stop, as ``"comm[pid]"``.
    """

    status: Status
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    wall: float = 0.0
    cpu_user: float = 0.0
    cpu_system: float = 0.0
    memory_peak: int | None = None
    pids_peak: int | None = None
    oom_killed: bool = False
    pids_limit_hits: int = 0
    limits_enforced: tuple[str, ...] = ()
    held_up_by: tuple[str, ...] = ()

    @property
    def returncode(self) -> int:
        """The shell's number: the exit code, or 128 + signal."""
        if self.signal is not None:
            return 128 + self.signal
        return self.exit_code if self.exit_code is not None else 125

    def describe(self) -> str:
        """``exit 3``, ``SIGKILL``: for tables."""
        return signal_name(self.signal) if self.signal is not None else f"exit {self.exit_code}"

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict with the field names above."""
        return asdict(self)


def signal_name(number: int) -> str:
    """``15`` → ``"SIGTERM"``, ``37`` → ``"SIGRTMIN+3"``."""
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signals.SIGRTMIN}" if number > signals.SIGRTMIN else f"signal {number}"
