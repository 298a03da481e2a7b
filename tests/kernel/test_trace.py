"""Tracing for real: nothing is missed, nothing is disturbed, nothing is left. What strace sees of the same programs is the
measure where it is installed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.kernel.command import Running, tinyvisor
from tests.kernel.helpers import BOUND, ON_TRIO, read_until, skip, status, wait_for_the_end_of, waiting, workload
from tinyvisor.errors import ContainerError, LaunchError, SpecError, TinyvisorError
from tinyvisor.profile import Action, Profile, Rule
from tinyvisor.runtime import PIPE, Runtime
from tinyvisor.runtime.seccomp import compile_profile
from tinyvisor.runtime.tracer import this_machine
from tinyvisor.spec import Volume
from tinyvisor.state import Exit
from tinyvisor.trace import CLASSES, Counted, End, Event, Signal, Summary, Syscall, Unfinished

pytestmark = [pytest.mark.kernel, pytest.mark.anyio]


async def traced(runtime: Runtime, *command: str, **arguments: Any) -> tuple[Exit, list[Event]]:
    """Runs a command to its end."""
    with anyio.fail_after(BOUND):
        async with runtime.trace(command, **arguments) as (container, events):
            found = [event async for event in events]
            return await container.wait(), found


def calls(events: Iterable[Event], *names: str) -> list[Syscall]:
    return [event for event in events if isinstance(event, Syscall) and (not names or event.name in names)]


THREADS = """
import os, subprocess, threading
go = []
def work():
    for _ in range(50): os.getppid()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
subprocess.run(["/bin/true"], check=True)
def replace():
    while not go: pass  # the leader dies of it, wherever it is: it shall be past all of its calls but the wait
    os.execv("/bin/echo", ["echo", "by a thread"])
threading.Thread(target=replace).start()
go.append(1)
threading.Event().wait()
"""


ONE_BY_ONE = THREADS.replace("thread.start()\nfor thread in threads: thread.join()", "thread.start(); thread.join()")


@ON_TRIO
@pytest.mark.parametrize("filter", ["all", "getppid,execve"])
async def test_threads_forks_and_an_exec_by_a_thread(shared: Runtime, filter: str) -> None:
    """With every call stopped at, and with a filter that stops at two."""
    exit, events = await traced(shared, "python3", "-c", THREADS, filter=filter)
    assert exit.status == "ok"
    assert len({call.tid for call in calls(events, "getppid")}) == 4
    assert len(calls(events, "getppid")) == 200
    assert all(call.result == 1 and not call.errno for call in calls(events, "getppid"))
    names = [call.args[0].rpartition("/")[2] for call in calls(events, "execve") if not call.errno]
    assert names == ['python3"', 'true"', 'echo"']
    assert {call.pid for call in calls(events, "execve")} == {2, 7}, "the container's own numbers"
    first = calls(events)[0]
    assert first.name == "execve"
    assert first.args[1].startswith('["python3", "-c"')
    ends = [event for event in events if isinstance(event, End)]
    assert {(end.pid, end.exit_code) for end in ends} == {(2, 0), (7, 0)}
    if filter != "all":
        assert {call.name for call in calls(events)} == {"getppid", "execve"}


@ON_TRIO
async def test_counts_are_those_of_the_events(shared: Runtime) -> None:
    """Threads, forks, an exec by a thread, calls that never return; with a filter and without."""
    command = ("python3", "-c", ONE_BY_ONE)
    for filter in ("getppid,execve,exit,exit_group,clone,clone3,openat", "!%memory,futex,%clock"):
        _, events = await traced(shared, *command, filter=filter)
        _, counted = await traced(shared, *command, filter=filter, summary=True)
        assert all(isinstance(event, Counted) for event in counted)
        one, other = Summary(), Summary()
        for summary, found in ((one, events), (other, counted)):
            for event in found:
                summary.add(event)
        assert {name: (count.calls, count.errors) for name, count in other.counts.items() if name not in NOISE} == {
            name: (count.calls, count.errors) for name, count in one.counts.items() if name not in NOISE
        }
        assert other.counts["execve"].calls >= 3
        assert all(count.seconds > 0 for count in other.counts.values())


@ON_TRIO
async def test_numbers_that_are_made_up_are_counted_together(shared: Runtime) -> None:
    code = "import ctypes; call = ctypes.CDLL(None).syscall\nfor number in range(10_000, 13_000): call(number)"
    _, counted = await traced(shared, "python3", "-c", code, summary=True)
    of = {event.name: event.calls for event in counted if isinstance(event, Counted)}
    assert 1000 < of["others"] < 2000 + len(of)
    assert of["others"] + sum(calls for name, calls in of.items() if name.startswith("syscall_1")) == 3000


INTERLEAVED = """
import os, threading
reading, writing = os.pipe()
thread = threading.Thread(target=os.read, args=(reading, 7))
thread.start()
while "read" not in open(f"/proc/self/task/{thread.native_id}/wchan").read(): pass
os.getppid()
os.write(writing, b"x"); thread.join()
"""


@ON_TRIO
async def test_lines_in_straces_order(shared: Runtime) -> None:
    _, events = await traced(shared, "python3", "-c", INTERLEAVED, filter="read,write,getppid", interleaved=True)
    cut = next(event for event in events if isinstance(event, Unfinished) and event.tid != event.pid)
    after = events[events.index(cut) + 1 :]
    assert re.fullmatch(r"read\(\d+, <unfinished ...>", cut.describe())
    resumed = next(event for event in after if isinstance(event, Syscall) and event.tid == cut.tid)
    assert resumed.describe() == '<... read resumed>"x", 7) = 1'
    assert after.index(calls(after, "getppid")[-1]) < after.index(resumed)
    told = [event for event in events if isinstance(event, Unfinished)]
    assert len(told) == sum(event.resumed is not None for event in calls(events)), "each is told of again"
    _, events = await traced(shared, "python3", "-c", INTERLEAVED, filter="read,write,getppid")
    assert not [event for event in events if isinstance(event, Unfinished)]


@ON_TRIO
async def test_threads_that_are_killed_in_their_stops(shared: Runtime) -> None:
    """At any moment of their calls, many times: the tracer goes on, and no end is lost."""
    code = """
import os, threading
for _ in range(15):
    child = os.fork()
    if not child:
        def work():
            while True: os.getppid()
        for _ in range(3): threading.Thread(target=work, daemon=True).start()
        os.getppid()
        os._exit(7)  # under the others' feet
    assert os.waitpid(child, 0)[1] == 7 << 8
"""
    exit, events = await traced(shared, "python3", "-c", code, filter="getppid,exit_group")
    assert exit.status == "ok"
    ends = {event.tid for event in events if isinstance(event, End)}
    assert ends >= {event.tid for event in events if isinstance(event, Syscall)}
    assert sum(event.tid == event.pid and event.exit_code == 7 for event in events if isinstance(event, End)) == 15


@ON_TRIO
async def test_thousands_of_children(shared: Runtime) -> None:
    script = "i=0; while [ $i -lt 1000 ]; do (exit 7) & i=$((i+1)); done; wait"
    exit, events = await traced(shared, "/bin/sh", "-c", script, filter="exit_group")
    assert exit.status == "ok"
    assert len(calls(events, "exit_group")) == 1001
    assert sum(event.exit_code == 7 for event in events if isinstance(event, End)) == 1000


@ON_TRIO
async def test_refused_calls_are_seen(shared: Runtime) -> None:
    """Unless it is asked for, no filter hides what the container's profile refuses."""
    code = "import ctypes, os; ctypes.CDLL(None).mount(0, 0, 0, 0, 0); os.getppid()"
    _, events = await traced(shared, "python3", "-c", code, filter="mount,getppid")
    assert [(call.name, call.errno) for call in calls(events)] == [("mount", "EPERM"), ("getppid", "")]
    _, events = await traced(shared, "python3", "-c", code, filter="mount,getppid", seccomp_bpf=True)
    assert [call.name for call in calls(events)] == ["getppid"]


@ON_TRIO
async def test_a_filter_that_asks_for_a_tracer_gets_no_answer_from_ours(shared: Runtime, tmp_path: Path) -> None:
    """SECCOMP_RET_TRACE without a tracer is ENOSYS; ours must not let through what it was not asked about."""
    machine = this_machine()
    own = compile_profile(Profile(Action("allow"), (Rule(("getppid",), Action("trace", 5)),)), machine).program
    code = f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
class Program(ctypes.Structure): _fields_ = [("size", ctypes.c_ushort), ("code", ctypes.c_char_p)]
program = {own!r}
assert libc.prctl(22, 2, ctypes.byref(Program(len(program) // 8, program))) == 0
print(libc.syscall({machine.numbers["getppid"]}), ctypes.get_errno(), os.getuid())
"""
    for filter in ("getuid", "getppid,getuid", "all"):
        with anyio.fail_after(BOUND):
            async with shared.trace(["python3", "-c", code], filter=filter, seccomp="unconfined") as (_, events):
                found = [event async for event in events]
        assert [call.errno for call in calls(found, "getppid")] == ([] if filter == "getuid" else ["ENOSYS"])
        assert calls(found, "getuid")[-1].result == 0
    profile = tmp_path / "profile.json"
    rule = {"names": ["getppid"], "action": "SCMP_ACT_TRACE"}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    _, events_ = await traced(
        shared, "python3", "-c", "import os; os.getuid(); os.getppid()", filter="getppid", seccomp=profile, seccomp_bpf=True
    )
    assert [call.errno for call in calls(events_)] == ["ENOSYS"]


@ON_TRIO
async def test_signals_stops_and_faults_are_as_without_a_tracer(shared: Runtime) -> None:
    code = """
import ctypes, os, signal, time
signal.signal(signal.SIGUSR1, lambda number, frame: None)
signal.signal(signal.SIGALRM, signal.SIG_IGN)
signal.raise_signal(signal.SIGUSR1)
child = os.fork()
if not child:
    os.kill(os.getpid(), signal.SIGSTOP)
    ctypes.string_at(0)
_, status = os.waitpid(child, os.WUNTRACED)
assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGSTOP, status
with open(f"/proc/{child}/stat") as file: assert file.read().split()[2] in "tT"
os.kill(child, signal.SIGCONT)
assert os.waitpid(child, 0)[1] & 0x7f == signal.SIGSEGV
print("fine")
"""
    exit, events = await traced(shared, "python3", "-c", code, filter="none")
    assert exit.status == "ok", events
    seen = [(event.signal, event.code, event.stopped) for event in events if isinstance(event, Signal)]
    assert (signal.SIGUSR1, "SI_TKILL", False) in seen
    assert (signal.SIGSTOP, "SI_USER", False) in seen
    assert (signal.SIGSTOP, "", True) in seen
    assert (signal.SIGCONT, "SI_USER", False) in seen
    assert (signal.SIGSEGV, "SEGV_MAPERR", False) in seen
    assert any(isinstance(event, End) and event.signal == signal.SIGSEGV for event in events)


@ON_TRIO
async def test_signals_and_stop_reach_a_traced_container(shared: Runtime) -> None:
    script = "trap 'echo hup' HUP; echo ready; while :; do sleep 0.01; done"
    with anyio.fail_after(BOUND):
        async with shared.trace(["/bin/sh", "-c", script], filter="none", stdout=PIPE) as (container, events):
            async with anyio.create_task_group() as group:

                async def drain() -> None:
                    async for _ in events:
                        pass

                group.start_soon(drain)
                await read_until(container.stdout, "ready\n")
                await container.signal("HUP")
                await read_until(container.stdout, "hup\n")
                exit = await container.stop(grace=0)
            assert exit.status == "stopped"


@pytest.mark.parametrize("whose", ["tracer", "container"])
async def test_a_killed_tracer_takes_the_container_with_it(shared: Runtime, whose: str) -> None:
    with anyio.fail_after(BOUND):
        async with shared.trace(["/bin/sh", "-c", "sleep 1000 & sleep 1001"], filter="execve") as (container, events):
            while calls([await anext(events)], "execve") == [] or len(container.processes()) < 3:
                pass
            pids = [int(re.findall(r"\d+", process)[-1]) for process in container.processes()]
            assert all(status(pid)["TracerPid"] == str(events.tracer_pid) for pid in pids)
            if whose == "tracer":
                os.kill(events.tracer_pid, signal.SIGKILL)
                with pytest.raises(TinyvisorError, match="the tracer was killed, and what it traced with it"):
                    async for _ in events:
                        pass
            else:
                container.kill()
            await container.wait()
            await wait_for_the_end_of(*pids)
    await wait_for_the_end_of(events.tracer_pid)


@pytest.mark.parametrize("when", [0.0, 0.005, 0.02, 0.1, 0.2])
async def test_cancelled_at_any_time_nothing_is_left(shared: Runtime, when: float) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with anyio.move_on_after(when):
        async with shared.trace(["/bin/sh", "-c", "while :; do /bin/true; done"]) as (_, events):
            await anext(events)
            await anyio.sleep_forever()  # and nobody reads: the tracer is stuck in a full pipe
    assert set(os.listdir("/proc/self/fd")) == before
    assert not shared.containers
    assert not subprocess.run(["pgrep", "-f", "tinyvisor.tracing", "-P", str(os.getpid())], capture_output=True).stdout


async def test_what_can_not_be_traced_is_an_error_and_leaves_nothing(shared: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match=r'filter: "opennat" is no system call here; did you mean "openat"'):
        await traced(shared, "true", filter="opennat")
    with pytest.raises(SpecError, match="who is traced can't trace"):
        await traced(shared, "true", capabilities=frozenset({"SYS_PTRACE"}))
    with pytest.raises(LaunchError, match="exec nosuch: No such file"):
        await traced(shared, "nosuch")
    with pytest.raises(LaunchError, match="enter /nosuch"):
        await traced(shared, "true", working_dir="/nosuch", read_only=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TinyvisorError, match=r"python-ptrace, which is not installed; pip install 'tinyvisor\[trace\]'"):
        await traced(shared, "true")
    assert not shared.containers


@ON_TRIO
async def test_root_inside_gets_at_nothing_of_the_tracer(shared: Runtime) -> None:
    """It is in no namespace of the container's; what a program shows it is shown escaped; it can't trace itself away."""
    code = r"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.ptrace(0, 0, 0, 0), open("/proc/self/status").read().split("TracerPid:")[1].split()[0])
libc.access(b"/\x1b[2J\n\xff", 0)
libc.access(ctypes.c_void_p(1), 0)
libc.write(1, ctypes.c_void_p(8), ctypes.c_size_t(1 << 63))
libc.execve(b"/nosuch", ctypes.c_void_p(3), ctypes.c_void_p(5))
print(sorted(name for name in os.listdir("/proc") if name.isdecimal()))
"""
    with anyio.fail_after(BOUND):
        async with shared.trace(["python3", "-c", code], stdout=PIPE, seccomp="unconfined") as (container, events):
            found = [event async for event in events]
            text = await read_until(container.stdout, "]\n")
    assert text.split("\n")[0] == "-1 0", "the tracer has no number in there"
    assert text.split("\n")[1] == "['1', '2']"
    shown = [call.describe() for call in calls(found, "access", "write", "execve")]
    assert r'access("/\33[2J\n\377", F_OK) = -1 ENOENT' in shown
    assert "access(0x1, F_OK) = -1 EFAULT" in shown
    assert f"write(1, 0x8, {1 << 63}) = -1 EFAULT" in shown
    assert 'execve("/nosuch", 0x3, 0x5) = -1 ENOENT' in shown


# ---- attaching ----


async def test_attach_and_let_go(shared: Runtime) -> None:
    code = """
import os, threading, time
def work():
    while True: os.getppid(); time.sleep(0.001)
threading.Thread(target=work).start()
os.fork()
print("ready", flush=True)
work()
"""
    async with waiting(shared, "python3", "-c", code) as container:
        main = workload(container)
        for _ in range(2):
            async with container.trace(filter="getppid") as events:
                found: set[int] = set()
                with anyio.fail_after(BOUND):
                    while len(found) < 3:
                        event = await anext(events)
                        assert isinstance(event, Syscall)
                        found.add(event.tid)
                with pytest.raises(TinyvisorError, match="traces it already"):
                    async with container.trace():
                        pass
            assert status(main)["TracerPid"] == "0"
        async with container.trace() as events:
            os.kill(events.tracer_pid, signal.SIGKILL)
            with pytest.raises(TinyvisorError, match="was killed"):
                async for _ in events:
                    pass
        assert container.exit is None, "who ran before runs on"
        assert status(main)["State"][0] in "RS"
        await container.stop(grace=0)
        with pytest.raises(ContainerError, match="is not running"):
            async with container.trace():
                pass


# ---- against strace ----

PROGRAMS: dict[str, tuple[str, ...]] = {
    "shell": ("sh", "-c", "for i in 1 2 3; do /bin/true; done; cat /etc/nosuch; x=$(echo x); exit 3"),
    "threads": ("python3", "-I", "-S", "-c", ONE_BY_ONE),
    "git": ("git", "--version"),
    "network": (
        "python3", "-I", "-S", "-c",
        "import socket as s; a = s.create_server(('127.0.0.1', 0)); b = s.create_connection(a.getsockname()); a.accept(); "
        "s.socketpair(); s.socket(s.AF_UNIX).connect_ex('/nosuch')",
    ),
    "bash": (
        "bash", "-c",
        "trap 'echo bye' EXIT; f() { local x=$(</etc/passwd); [[ $x == *root* ]] && echo $((6 * 7)); }; f; (cd /; ls >/dev/null)",
    ),
    "ls": ("ls", "-lR", "/usr/share/python3"),
    "find": ("find", "/etc", "-name", "*.conf", "-size", "-9k"),
    "tar": ("sh", "-c", "cd /tmp && tar -cf a.tar -C /etc passwd group && tar -xf a.tar && rm a.tar passwd group"),
    "sed, awk": ("sh", "-c", "sed -n 's/:.*//p' /etc/passwd > /tmp/x; awk '{ n += length($0) } END { print n }' /tmp/x"),
    "perl": ("perl", "-e", "my $pid = fork; exit 7 unless $pid; waitpid $pid, 0; print $? >> 8; rename '/tmp/nosuch', '/tmp/x'"),
    "sqlite": (
        "python3", "-I", "-S", "-c",
        "import sqlite3; d = sqlite3.connect('/tmp/d'); d.execute('create table t (a)'); d.commit()",
    ),
    "gcc": ("sh", "-c", "cd /tmp && echo 'int main(void) { return 7; }' > a.c && gcc -O2 -c a.c; rm -f a.o a.c"),
}  # fmt: skip
NOISE = frozenset(("futex", "restart_syscall", "rt_sigreturn")) | CLASSES["memory"]
"""How often depends on who is faster: the stack of a thread that is gone is taken for the next one."""


NUMBERS = frozenset(("clone", "clone3", "fork", "getpid", "getppid", "gettid", "set_tid_address", "vfork", "wait4"))
"""Whose results are numbers of processes: with strace among them they are others."""


def _sequences(lines: Iterable[tuple[int, str, str]]) -> list[list[tuple[str, str]]]:
    """Per thread, in the order of their numbers: (name, result); numbers of processes and addresses are all one."""
    threads: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for tid, name, result in lines:
        if name not in NOISE:
            if not result.startswith("-1 ") and (result == "?" or name in NUMBERS or not -1 <= int(result, 0) < 1 << 16):
                result = "N"
            one = (name, result if result.startswith("-1 ") or result == "N" else str(int(result, 0)))
            # glibc's name for a temporary file: a number that would make some letters likelier is drawn again, one in 22.
            if name != "getrandom" or threads[tid][-1:] != [one]:
                threads[tid].append(one)
    return [threads[tid] for tid in sorted(threads)]


async def _strace(runtime: Runtime, command: tuple[str, ...], directory: Path) -> list[list[tuple[str, str]]]:
    """What strace says of it, in a container like ours."""
    volume = Volume(source=directory, target="/out")
    with anyio.fail_after(BOUND):
        await runtime.run(["strace", "-f", "-o", "/out/trace", *command], seccomp="unconfined", volumes=(volume,))
    return _parsed((directory / "trace").read_text(errors="replace"))


def _parsed(text: str) -> list[list[tuple[str, str]]]:
    found: list[tuple[int, str, str]] = []
    unfinished: dict[str, str] = {}
    for line in text.splitlines():
        tid, _, rest = line.partition(" ")
        rest = rest.strip()
        if rest.endswith("<unfinished ...>"):
            unfinished[tid] = rest.partition("(")[0]
            continue
        if match := re.match(r"<\.\.\. (\w+) resumed>", rest):
            unfinished.pop(tid, None)
            name = match[1]
        elif match := re.match(r"(\w+)\(", rest):
            name = match[1]
        else:
            continue
        result = re.findall(r"= (-1 E\w+|0x[0-9a-f]+|-?\d+|\?)", rest)[-1]
        result = re.sub(r"^0(\d+)$", r"0o\1", result)  # a mask

        found.append((int(tid), name, result))
    return _sequences(found + [(int(tid), name, "?") for tid, name in unfinished.items() if name != "execve"])


@ON_TRIO
@pytest.mark.parametrize("program", PROGRAMS)
async def test_strace_sees_the_same(shared: Runtime, program: str, tmp_path: Path) -> None:
    if not shutil.which("strace"):
        pytest.skip("strace is not installed: apt install strace")
    command = PROGRAMS[program]
    if not shutil.which(command[0]):
        skip(f"needs {command[0]}")
    wanted = await _strace(shared, command, tmp_path)
    _, events = await traced(shared, *command, seccomp="unconfined", volumes=(Volume(source=tmp_path, target="/out"),))
    lines = [
        (call.tid, call.name, f"-1 {call.errno}" if call.errno else "?" if call.result is None else str(call.result))
        for call in calls(events)
    ]
    found = _sequences(lines)
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours == theirs


# ---- the command ----


def test_command(tmp_path: Path) -> None:
    out = tmp_path / "trace.jsonl"
    run = tinyvisor(
        "trace", "--json", "-o", out, "-e", "trace=%file", "--env", "A=b", "--", "sh", "-c", "cat /etc/nosuch; exit 3"
    )
    assert run.returncode == 3, run.stderr
    assert "No such file" in run.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert any(line.get("paths") == ["/etc/nosuch"] and line["errno"] == "ENOENT" for line in lines)
    assert out.stat().st_mode & 0o777 == 0o600
    run = tinyvisor("trace", "-c", "-o", "-", "--", "true")
    assert re.search(r"^ *[\d.]+ +[\d.]+ +\d+ +1 +execve$", run.stdout, re.MULTILINE)
    assert tinyvisor("trace", "--", "nosuch").returncode == 127


def test_command_attaches_and_lets_go() -> None:
    with subprocess.Popen([sys.executable, "-c", "import os, time\nwhile 1: os.getppid(); time.sleep(0.01)"]) as process:
        try:
            with Running(["trace", "-e", "getppid", str(process.pid)]) as command:
                command.expect(r"getppid\(\) = \d+")
                command.signal(signal.SIGINT)
                assert command.end() == 0
            assert process.poll() is None
            assert status(process.pid)["TracerPid"] == "0"
        finally:
            process.kill()


BUSY = "import os\nwhile True: os.getppid()"


@contextlib.contextmanager
def stuck(*words: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`tinyvisor trace` whose output nobody reads, and its tracer, which waits for that."""
    command = [sys.executable, "-m", "tinyvisor", "trace", *words]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            deadline, tracer = time.monotonic() + BOUND, 0
            while not tracer or "pipe_write" not in Path(f"/proc/{tracer}/wchan").read_text():
                assert time.monotonic() < deadline
                for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                    if b"tinyvisor.tracing" in Path(f"/proc/{child}/cmdline").read_bytes():
                        tracer = int(child)
                time.sleep(0.01)
            yield process, tracer
        finally:
            process.kill()


@ON_TRIO
async def test_kill_9_of_the_command_that_runs_it() -> None:
    """With every pipe full: what was started for it ends, and so does the tracer. The rest is looked for after every test."""
    with stuck("--", "python3", "-c", BUSY) as (process, tracer):
        pids = [int(pid) for pid in os.listdir("/proc") if pid.isdecimal() and _tracer(pid) == str(tracer)]
        assert pids
        process.kill()
        await wait_for_the_end_of(tracer, *pids)


@ON_TRIO
async def test_kill_9_of_the_command_that_has_attached() -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY]) as busy:
        try:
            with stuck(str(busy.pid)) as (process, tracer):
                assert _tracer(busy.pid) == str(tracer)
                process.kill()
                await wait_for_the_end_of(tracer)
            assert _tracer(busy.pid) == "0"
            assert busy.poll() is None
            assert status(busy.pid)["State"][0] in "RS"
        finally:
            busy.kill()


def _tracer(pid: int | str) -> str | None:
    with contextlib.suppress(OSError):
        return status(pid)["TracerPid"]
    return None


def test_files_and_addresses_as_configuration(tmp_path: Path) -> None:
    """What the command suggests is what makes the program work, and is all that it needs."""
    missing = tmp_path / "settings"
    missing.write_text("fine")
    code = f"""
import os, socket
os.chdir("/var"); os.makedirs("lib/app/data", exist_ok=True); open("lib/app/data/x", "w").close()
s = socket.socket(); s.settimeout(1)
print(s.connect_ex(("192.0.2.1", 80)), s.connect_ex(("127.0.0.1", 9)))
try: print(open({str(missing)!r}).read())
except OSError as error: print(error)
"""
    run = tinyvisor("trace", "--files", "--net", "-o", "-", "--", "python3", "-c", code)
    assert run.returncode == 0, run.stderr
    table, text = run.stdout.split("# for a service's file:\n")
    assert re.search(rf"^{missing} +1 *$", table, re.MULTILINE)
    assert re.search(r"^/var/lib/app/data/x +1 +1 *$", table, re.MULTILINE), (
        "relative paths are told from where they are looked up"
    )
    assert re.search(r"^192\.0\.2\.1:80 +connect +1 +ENETUNREACH 1 *$", table, re.MULTILINE)
    assert text.endswith("read_only: true\nnetwork_mode: host\n")
    service = tmp_path / "app.yaml"
    service.write_text(f"command: [python3, -c, {json.dumps(code)}]\n" + text.replace("network_mode: host", "network_mode: none"))
    again = tinyvisor("up", service)
    assert "fine" in again.stdout, again.stdout + again.stderr
    assert again.returncode == 0
    found = json.loads(tinyvisor("trace", "--files", "--json", "-o", "-", "--", "true").stdout)
    assert found["files"]["/usr/bin/true"]["read"] == 1
