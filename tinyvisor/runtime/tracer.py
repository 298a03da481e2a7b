"""The tracer's process, from outside: starts it, reads its events, ends it. Written on anyio alone.

The process runs `tinyvisor.tracing`; python-ptrace is imported there and nowhere else. What was started for it dies
with it (PTRACE_O_EXITKILL), what ran before runs on without it, and it ends when our end of its stdin is closed: nothing is
ever half-traced.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import signal
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from tinyvisor import interpreter
from tinyvisor.errors import HostError, SpecError, TinyvisorError
from tinyvisor.profile import Action, Profile, Rule
from tinyvisor.runtime.launcher import reap, shielded
from tinyvisor.runtime.seccomp import MACHINES, Filter, Machine, compile_profile
from tinyvisor.runtime.stdio import ReceivePipe
from tinyvisor.spec import Spec
from tinyvisor.trace import STOP, Calls, Event, from_json, parse_calls

DETACH_PATIENCE = 10.0
"""Seconds that letting go of running processes may take. One that sleeps where no signal reaches it (in a vfork) can't be let
go in order; then the tracer is killed, and the kernel lets go."""

STRING_LIMIT = 32
"""Bytes that are shown of strings and data, as in strace."""

_CHUNK = 256 << 10


def this_machine() -> Machine:
    """The tables of the machine we run on.

    Raises:
        HostError: there are none.
    """
    machine = os.uname().machine
    if machine not in MACHINES:
        raise HostError(f"there is no table of system calls for {machine}", "trace on x86_64 or aarch64")
    return MACHINES[machine]


def check_installed() -> None:
    """Raises HostError where python-ptrace is not installed; imports nothing."""
    if importlib.util.find_spec("ptrace") is None:
        raise HostError("tracing needs python-ptrace, which is not installed", "pip install 'tinyvisor[trace]'")


def wanted_calls(filter: str) -> Calls:
    """The calls that `filter` names. Raises SpecError where it names what is none."""
    try:
        return parse_calls(filter, this_machine().numbers)
    except ValueError as exc:
        raise SpecError("filter", str(exc)) from None


@dataclass(frozen=True, slots=True)
class ReadingRules:
    """Those of a spec's rules that a tracer is for.

    Attributes:
        names: of the calls that they are about.
        told: as the tracer is told of them, in order.
    """

    names: frozenset[str] = frozenset()
    told: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, spec: Spec) -> ReadingRules:
        """Raises SpecError where one names no call; HostError where no call can be refused."""
        machine = this_machine()
        told: list[Mapping[str, Any]] = []
        for rule in spec.on_syscall:
            if not rule.reads:
                continue
            try:
                names = parse_calls(rule.syscall, machine.numbers).among(machine.numbers)
            except ValueError as exc:
                raise SpecError("on_syscall", str(exc)) from None
            conditions = [list(parts) for parts in rule.conditions()]
            told.append(
                {"names": names, "action": rule.action, "path": rule.path, "address": rule.address, "conditions": conditions}
            )
        if told and os.uname().machine != "x86_64":
            raise HostError("on_syscall: no tracer refuses calls on this machine", 'leave out "path" and "address"')
        return cls(frozenset(name for rule in told for name in rule["names"]), tuple(told))


def stopping_filter(calls: Calls, machine: Machine) -> Filter:
    """A seccomp program that stops the program at these calls, for its tracer, and lets all others run at full speed."""
    rule = Rule(calls.among(machine.numbers), Action("trace", STOP))
    return compile_profile(Profile(Action("allow"), (rule,)), machine)


class NoSuchTask(TinyvisorError):
    """What was to be traced is gone."""


class TracerProcess:
    """One tracer, started synchronously from this thread.

    Args (of the constructor):
        pids: to seize, as we number them.
        trees: whose descendants are seized.
        launching: the one in `pids` has yet to exec what is to be traced.
        calls: that are reported.
        filtered: the program has `stopping_filter`.
        limit: bytes that are shown of strings and data.
        counting, interleaved: `summary` and `interleaved` of `Runtime.trace`.
        rules: which of what it traces is refused, besides.
    """

    def __init__(
        self,
        calls: Calls,
        *,
        pids: Sequence[int] = (),
        trees: Sequence[int] = (),
        launching: bool = False,
        filtered: bool = False,
        limit: int = STRING_LIMIT,
        counting: bool = False,
        interleaved: bool = False,
        rules: ReadingRules = ReadingRules(),
    ) -> None:
        machine = this_machine()
        task = {
            "pids": list(pids), "trees": list(trees), "launching": launching, "filtered": filtered, "limit": limit,
            "names": dict(machine.numbers), "audit": machine.audit, "counting": counting, "interleaved": interleaved,
            "rules": rules.told,
            "wanted": None if calls.everything else calls.among(machine.numbers),
        }  # fmt: skip
        self._ended = False
        self._launching = launching
        self._ready = False
        self._let_go = False
        self._lines: deque[bytes] = deque()
        self._rest = b""
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as undo:
            control, self._control = os.pipe2(os.O_CLOEXEC)
            theirs.callback(os.close, control)
            undo.callback(os.close, self._control)
            reading, writing = os.pipe2(os.O_CLOEXEC)
            theirs.callback(os.close, writing)
            self._pipe = ReceivePipe(reading)
            undo.callback(self._pipe.close)
            self._process = subprocess.Popen(
                interpreter.command("tinyvisor.tracing"),
                stdin=control,
                stdout=writing,
                start_new_session=True,  # the terminal's Ctrl-C is not for it
            )
            undo.callback(self._process.wait)
            undo.callback(self._process.kill)
            self._pidfd = os.pidfd_open(self._process.pid)
            undo.callback(os.close, self._pidfd)
            theirs.close()
            with contextlib.suppress(BrokenPipeError):  # it has died: `wait_ready` says so
                os.write(self._control, json.dumps(task).encode() + b"\n")
            undo.pop_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait_ready(self) -> None:
        """Until all that was asked for is seized.

        Raises:
            NoSuchTask: it is gone.
            TinyvisorError: it can't be, and why.
        """
        line = await self._line()
        word: Mapping[str, Any] = json.loads(line) if line else {"event": "died"}
        if word["event"] == "ready":
            self._ready = True
            return
        self._ended = True
        if word["event"] != "refused":
            raise TinyvisorError("the tracer ended before it had begun")
        if "by" in word:
            raise TinyvisorError(f"it can't be traced: process {word['by']} traces it already")
        kind = NoSuchTask if word["errno"] == errno.ESRCH else TinyvisorError
        raise kind(f"it can't be traced: {os.strerror(word['errno'])}")

    async def event(self) -> Event | None:
        """The next one; None at the end of all.

        Raises:
            TinyvisorError: the tracer was killed.
        Cancellation: no event is lost.
        """
        if self._ended:
            return None
        line = await self._line()
        if line == b'{"event": "end"}':
            self._ended = True
            return None
        if line is None:
            self._ended = True
            raise TinyvisorError("the tracer was killed" + (", and what it traced with it" if self._launching else ""))
        return from_json(line)

    async def _line(self) -> bytes | None:
        if self._lines:
            await anyio.lowlevel.checkpoint_if_cancelled()
            return self._lines.popleft()
        while not self._lines:
            try:
                data = await self._pipe.receive(_CHUNK)
            except anyio.EndOfStream:
                return None
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._lines.extend(lines)
        return self._lines.popleft()

    async def let_go(self) -> None:
        """Has it let go of everything, which runs on; what is to be told of it still comes."""
        await anyio.lowlevel.checkpoint()
        if self._ready and not self._ended and not self._let_go:
            self._let_go = True
            with contextlib.suppress(BrokenPipeError):
                os.write(self._control, b"detach\n")

    async def detach(self) -> None:
        """Lets go of everything, which runs on; events that nobody read are lost.

        Cancellation: shielded; it is bounded by `DETACH_PATIENCE`.
        """
        if self._ready and not self._ended:
            with contextlib.suppress(BrokenPipeError, TinyvisorError):
                if not self._let_go:
                    os.write(self._control, b"detach\n")
                await shielded(self._drain)

    async def _drain(self) -> None:
        with anyio.move_on_after(DETACH_PATIENCE):
            while await self.event() is not None:
                pass

    def kill(self) -> None:
        """Now, and what it traces with it."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def aclose(self) -> None:
        """Kills it, unless it has ended, and waits for its end. Cancellation: shielded."""
        self.kill()
        try:
            await reap(self._process, self._pidfd)
        finally:
            os.close(self._control)
            self._pipe.close()


def only_child(pid: int) -> int:
    """The number of init's child that is parked; 0 where it is gone."""
    with contextlib.suppress(OSError, ValueError):
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(child)
    return 0


class Events(AsyncIterator[Event]):
    """What happens in a traced container, as it happens: ``async for event in events``. Ends with the last process.

    Where nobody reads, the container waits: nothing is lost, and memory is bounded. Made by `Runtime.trace` and
    `Container.trace`.

    Raises TinyvisorError where the tracer was killed: with it a container that was started for it, and no other.
    """

    def __init__(self, tracer: TracerProcess) -> None:
        self._tracer = tracer

    @property
    def tracer_pid(self) -> int:
        """The tracer's process."""
        return self._tracer.pid

    async def let_go(self) -> None:
        """Lets go of what runs on: the events end once that is done. Not of what was started for the tracer."""
        await self._tracer.let_go()

    async def __anext__(self) -> Event:
        event = await self._tracer.event()
        if event is None:
            raise StopAsyncIteration
        return event


@contextlib.asynccontextmanager
async def attached(
    filter: str = "all",
    *,
    pids: Sequence[int] = (),
    trees: Sequence[int] = (),
    string_limit: int = STRING_LIMIT,
    summary: bool = False,
    interleaved: bool = False,
) -> AsyncIterator[Events]:
    """A tracer of what runs already, as a scope; leaving it lets go.

    Args:
        pids, trees: as `TracerProcess`.
        filter, string_limit, summary, interleaved: as `Runtime.trace`.

    Raises:
        HostError: python-ptrace is not installed.
        SpecError: `filter` makes no sense.
        TinyvisorError: a process is traced already, or is not there.
    """
    calls = wanted_calls(filter)
    check_installed()
    tracer = TracerProcess(
        calls, pids=pids, trees=trees, limit=string_limit, counting=summary, interleaved=interleaved and not summary
    )
    try:
        await tracer.wait_ready()
        yield Events(tracer)
    finally:
        try:
            await tracer.detach()
        finally:
            await tracer.aclose()
