"""What comes back: how a container ended, what it used, what happened to a service. Frozen values."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from operator import attrgetter
from typing import Any, Final, Literal

from tinyvisor.record import record
from tinyvisor.units import signal_name as signal_name

Status = Literal[
    "ok",
    "nonzero_exit",
    "signaled",
    "time_limit",
    "memory_limit",
    "output_limit",
    "pids_limit",
    "seccomp",
    "stopped",
    "sandbox_error",
    "unknown",
]
"""Why a container ended, from what the kernel said. ``stopped``: we ended it on request. ``unknown``: of a job that must not
run twice, where it is not known whether it has run."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A system call that the seccomp filter does not simply allow, and what came of it.

    Attributes:
        syscall: its name; ``""`` for all others, where there were too many kinds to tell apart.
        answer: the errno's name; ``"killed"``; ``"allowed"``: it was only to be noted. ``""`` where `syscall` is.
        count: how often, > 0.
    """

    syscall: str
    answer: str
    count: int

    @property
    def refused(self) -> bool:
        return self.answer != "allowed"

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Violation:
        """Out of what `dataclasses.asdict` makes of one."""
        return cls(**found)


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
        violations: what its seccomp filter refused, or was to note; empty unless `Spec.seccomp_action` or `Spec.on_syscall` ask
            for it.
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
    violations: tuple[Violation, ...] = ()

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


_EXIT_FIELDS = tuple(item.name for item in fields(Exit))
_exit_values = attrgetter(*_EXIT_FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What a running container uses, as its cgroup counts it now; None where the kernel does not count it.

    Attributes:
        cpu_user, cpu_system: seconds so far.
        memory, memory_peak: bytes, now and at most so far.
        pids, pids_peak: processes and threads, now and at most so far.
        oom_kills: processes killed for want of memory so far.
        pids_limit_hits: forks refused by ``pids_limit`` so far.
    """

    cpu_user: float | None = None
    cpu_system: float | None = None
    memory: int | None = None
    memory_peak: int | None = None
    pids: int | None = None
    pids_peak: int | None = None
    oom_kills: int = 0
    pids_limit_hits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(Exit):
    """How one job ended, and what it gave back. A job that could not be started has the status ``sandbox_error``, and a
    `reason` that names the step.

    Attributes:
        id: the job's own, empty where it has none.
        stdout, stderr: what was written there, up to ``output_limit``; None where it was not captured.
        stdout_bytes, stderr_bytes: how much of it was read, what was not kept included.
        truncated: something of it was not kept.
        files: what was collected, by the path relative to the working directory.
        uncollected: by pattern or path, why it was not collected, e.g. ``"a symbolic link"``; a pattern that nothing fits is
            here, too.
        job: the `Spec` or `Job` it comes from.
    """

    id: str = ""
    stdout: bytes | None = None
    stderr: bytes | None = None
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    truncated: bool = False
    files: Mapping[str, bytes] = field(default_factory=dict)
    uncollected: Mapping[str, str] = field(default_factory=dict)
    job: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, exit: Exit, **more: Any) -> Result:
        """`exit` with what it gave back."""
        return cls(**dict(zip(_EXIT_FIELDS, _exit_values(exit), strict=True)), **more)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict with the field names above but `job`. Bytes become text, or where they are not UTF-8
        ``{"base64": ...}``."""
        found: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "job"}
        found["stdout"], found["stderr"] = _text(self.stdout), _text(self.stderr)
        found["files"] = {path: _text(content) for path, content in self.files.items()}
        found["uncollected"] = dict(self.uncollected)
        found["violations"] = [asdict(item) for item in self.violations]
        return found


def _text(content: bytes | None) -> str | dict[str, str] | None:
    if content is None:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode()}


@record
class ServiceStarted:
    """A service's container runs; `pid` is its init's on the host, `seconds` what the launch took."""

    name: str
    pid: int
    seconds: float = field(default=0.0, compare=False)


@record
class ServiceAdopted:
    """A service's container, which a supervisor that is no more had started, is ours now."""

    name: str
    pid: int


@record
class ServiceExited:
    """A service's container is gone and its output has been read to the end. What comes of it is the next event."""

    name: str
    exit: Exit


@record
class ServiceBackoff:
    """A service is started again after `delay` seconds, its restart number `attempt` in a row, because of `reason`."""

    name: str
    delay: float
    attempt: int
    reason: str


@record
class ServiceFinished:
    """A service has done its work and is not started again."""

    name: str


@record
class ServiceFailed:
    """A service is given up."""

    name: str
    reason: str


@record
class ServiceStopping:
    """A service is being stopped; with `restarts` it comes back once it is down."""

    name: str
    restarts: bool


@record
class ServiceStopped:
    """A service was stopped on request and nothing of it is left."""

    name: str


@record
class StopHeldUp:
    """These processes, as ``"comm[pid]"``, outlived the grace period of a stop and were killed."""

    name: str
    processes: tuple[str, ...]


@record
class ServiceScheduled:
    """A service is run again `delay` seconds from now; `reason`: why its run before failed, empty where it did not."""

    name: str
    delay: float
    reason: str


@record
class HealthChanged:
    """A running service has become ``healthy`` or ``unhealthy``, because of `reason`."""

    name: str
    health: str
    reason: str


@record
class DependencyMissing:
    """A service starts without a dependency that is not required."""

    name: str
    reason: str


@record
class HookFailed:
    """A command of ``post_start`` or ``pre_stop`` failed."""

    name: str
    hook: str
    reason: str


@record
class NotifyRefused:
    """A service has asked for something on its NOTIFY_SOCKET that is not done: `what`, because of `reason`. Told once of each."""

    name: str
    what: str
    reason: str


@record
class LogLost:
    """So much of a service's output could not be written to its log file, because of `reason` (e.g. a full disk)."""

    name: str
    lines: int
    bytes: int
    reason: str


Event = (
    ServiceStarted
    | ServiceAdopted
    | ServiceExited
    | ServiceBackoff
    | ServiceFinished
    | ServiceFailed
    | ServiceStopping
    | ServiceStopped
    | StopHeldUp
    | ServiceScheduled
    | HealthChanged
    | DependencyMissing
    | HookFailed
    | NotifyRefused
    | LogLost
)
"""What a supervisor tells its one consumer, in the order in which it happened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSummary:
    """One instance's line in the table at the end.

    Attributes:
        service: whose instance it is, where it is not called so itself.
        state: the phase it is in, as `policy.Phase`; ``exited``, ``failed`` or ``stopped`` once it is over.
        exit: how its last container ended; None where none ever did.
        restarts: launches after the first.
        wall, cpu: seconds, over all its containers.
        memory_peak: bytes, the highest of all its containers; None where it was not measured.
        held_up_by: what outlived the grace period of its last stop, as ``"comm[pid]"``.
        health: of what runs: ``starting``, ``healthy`` or ``unhealthy``; empty where it does not say.
        reason: why it failed or backs off, why its last scheduled run failed, or what it waits for, one line; else empty.
        status: what it last said of itself (sd_notify's STATUS=), one line.
        uptime: seconds that its container has run for; None where none runs.
        due: seconds until it is started, where it backs off or waits for its time; None otherwise.
    """

    name: str
    state: str
    exit: Exit | None = None
    restarts: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    memory_peak: int | None = None
    held_up_by: tuple[str, ...] = ()
    health: str = ""
    reason: str = ""
    service: str = ""
    status: str = ""
    uptime: float | None = None
    due: float | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """One run of a healthcheck.

    Attributes:
        time: when it started, seconds since the epoch.
        seconds: how long it took.
        exit: how it ended.
        output: its first bytes, 4096 at most.
    """

    time: float
    seconds: float
    exit: Exit
    output: bytes


_DONE: Final = {
    "nothing": "nothing to do",
    "wait": "start",
    "schedule": "wait for its time",
    "cancel": "cancel its launch",
    "later": "stop once what needs it is down",
    "finish": "stop",
    "forget": "forget failures",
}
"""`CommandResult.did` for people, where its word is not theirs."""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command did to one service, at once; what it set in motion goes on.

    Attributes:
        name: the service's, or its instance's.
        did: what is done now. ``wait``: for dependencies; ``schedule``: for its time; ``cancel``: a launch under way;
            ``later``: once what depends on it is down; ``finish``: it is down; ``forget``: past failures; ``nothing``: it
            was so already, or see `reason`.
        before, after: its phase.
        reason: where nothing could be done: why.
    """

    name: str
    did: str
    before: str
    after: str
    reason: str = ""

    def describe(self) -> str:
        """One line for people."""
        how = self.before if self.before == self.after else f"{self.before} → {self.after}"
        done = "start once it is down" if (self.did, self.after) == ("wait", "stopping") else _DONE.get(self.did, self.did)
        return f"{self.name}: {self.reason or done} ({how})"
