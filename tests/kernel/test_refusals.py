"""What init is told of refused system calls, and what a container can do with that: nothing to anybody but itself."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.kernel.helpers import BOUND, ON_TRIO, python, read_until, run, waiting, workload
from tests.kernel.test_attacks import PRELUDE
from tests.kernel.test_seccomp import NUMBER
from tinyvisor.errors import LaunchError, SpecError
from tinyvisor.runtime import PIPE, Runtime
from tinyvisor.spec import DEFAULT_NAMESPACES, Spec, SyscallRule
from tinyvisor.state import Violation

pytestmark = [pytest.mark.kernel, pytest.mark.anyio, ON_TRIO]

LIMITS: dict[str, Any] = {"pids_limit": 64, "mem_limit": 1 << 30}


def calls(*named: str, after: str = "") -> tuple[str, ...]:
    """A program that prints what these calls come to."""
    lines = [f"print(next(iter({{call({NUMBER[name]}, {arguments})}})), flush=True)" for name, _, arguments in map(_parts, named)]
    return ("python3", "-c", "\n".join([PRELUDE, *lines, after]))


def _parts(text: str) -> tuple[str, str, str]:
    return text.partition(" ")


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {}, "privileges": {"no_new_privs": False}, "user": {"user": "1000:1000", "no_new_privs": False},
    "ids": {"userns_mode": "host"}, "forked": {"namespaces": DEFAULT_NAMESPACES | {"time"}},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
async def test_refused_calls_are_told(shared: Runtime, variant: str) -> None:
    """In children and threads, too."""
    command = calls("keyctl 0, -1, 1", "mount 0, 0, 0, 0, 0", "keyctl 0, -1, 1", "clone3 0, 0", after=AFTER)
    exit, out, err = await run(shared, *command, seccomp_action="errno", **VARIANTS[variant], **LIMITS)
    assert out.split() == ["EPERM", "EPERM", "EPERM", "ENOSYS", "EPERM", "EPERM"], err
    assert exit.violations == (Violation("keyctl", "EPERM", 3), Violation("mount", "EPERM", 2)), "ENOSYS is no refusal"
    assert (exit.status, exit.exit_code) == ("seccomp", 3)
    assert exit.reason == "exit 3 after keyctl, mount were refused by its seccomp filter"


AFTER = f"""
import threading
if not os.fork():
    print(call({NUMBER["mount"]}, 0, 0, 0, 0, 0), flush=True)
    os._exit(0)
os.wait()
thread = threading.Thread(target=lambda: print(call({NUMBER["keyctl"]}, 0, -1, 1)))
thread.start(); thread.join()
raise SystemExit(3)
"""


async def test_nothing_is_told_where_nobody_asks(shared: Runtime) -> None:
    exit, out, _ = await run(shared, *calls("keyctl 0, -1, 1"))
    assert (out, exit.violations, exit.status) == ("EPERM\n", (), "ok")
    async with waiting(shared) as container:
        assert not _listeners(container.pid)


async def test_let_through_and_told(shared: Runtime) -> None:
    exit, out, _ = await run(shared, *calls("personality 0xffffffff", "mount 0, 0, 0, 0, 0"), seccomp_action="log", **LIMITS)
    assert exit.violations == (Violation("mount", "allowed", 1),)
    assert out.split()[1] in ("EFAULT", "EPERM"), "what the kernel itself says"
    assert (exit.status, exit.reason) == ("ok", "")


@pytest.mark.parametrize("by", ["workload", "thread", "child"])
async def test_who_calls_is_killed(shared: Runtime, by: str) -> None:
    code = {
        "workload": "mount()", "thread": "t = threading.Thread(target=mount); t.start(); t.join()",
        "child": "pid = os.fork() or mount(); assert os.waitpid(pid, 0)[1] == 9",
    }[by]  # fmt: skip
    code = f"{PRELUDE}\nimport threading\ndef mount(): call({NUMBER['mount']}, 0, 0, 0, 0, 0)\n{code}\nprint('after')"
    exit, out, err = await run(shared, "python3", "-c", code, seccomp_action="kill", **LIMITS)
    assert exit.violations == (Violation("mount", "killed", 1),), err
    if by == "child":
        assert (exit.status, out) == ("ok", "after\n")
    else:
        assert (exit.status, exit.signal, out) == ("seccomp", signal.SIGKILL, "")
        assert exit.reason == "killed for calling mount, which its seccomp filter refuses"


async def test_left_to_a_tracer(shared: Runtime) -> None:
    exit, out, _ = await run(shared, *calls("mount 0, 0, 0, 0, 0"), seccomp_action="trace")
    assert (out, exit.violations) == ("ENOSYS\n", ())


async def test_more_kinds_than_are_told_apart(shared: Runtime) -> None:
    rules = (SyscallRule(syscall="/^(get|set)[a-z]*[ug]id$", action="log"), SyscallRule(syscall="%clock,%ipc", action="log"))
    names = sorted(name for name in NUMBER if name.startswith(("msg", "sem", "shm", "clock_")))[:20]
    command = calls(*(f"{name} -1, -1, -1, -1, -1" for name in names))
    exit, _, err = await run(shared, *command, on_syscall=rules, seccomp="unconfined")
    assert (len(exit.violations), exit.violations[-1].syscall) == (17, ""), err
    assert sum(item.count for item in exit.violations) >= len(names)


async def test_containers_made_ahead_and_execs(shared: Runtime) -> None:
    with anyio.fail_after(BOUND):
        async with shared.pool(size=1, seccomp_action="errno", **LIMITS) as pool:
            for _ in range(2):
                result = await pool.run(calls("mount 0, 0, 0, 0, 0"), capture_stdout=True)
                assert (result.stdout, result.violations) == (b"EPERM\n", (Violation("mount", "EPERM", 1),))
        async with waiting(shared, seccomp_action="kill") as container:
            async with container.open_exec(calls("mount 0, 0, 0, 0, 0")) as process:
                exit = await process.wait()
            assert (exit.status, exit.violations) == ("seccomp", (Violation("mount", "killed", 1),))
            assert container.exit is None


async def test_rules_before_the_profile(shared: Runtime) -> None:
    rules = (
        SyscallRule(syscall="socket", action="deny", args=("0 == 10",)),  # AF_INET6
        SyscallRule(syscall="socket", action="log", args=("0 == 2", "1 & 0xf == 1")),
        SyscallRule(syscall="personality", action="allow"),
        SyscallRule(syscall="mkdir,sendmsg", action="deny"),
    )
    command = calls("socket 10, 1, 0", "socket 2, 0x80001, 0", "socket 2, 2, 0", "personality 0x40000", "mkdir b'/tmp/x', 0o777",
                    "sendmsg 0, 0, 0", "seccomp 9, 0, 0")  # fmt: skip
    exit, out, err = await run(shared, *command, on_syscall=rules)
    found = ["ok" if word.isdigit() else word for word in out.split()]
    assert found == ["EPERM", "ok", "ok", "ok", "EPERM", "EPERM", "EINVAL"], err
    told = {(item.syscall, item.answer) for item in exit.violations}
    assert told == {("socket", "EPERM"), ("socket", "allowed"), ("mkdir", "EPERM")}, "handing over takes sendmsg: not told of"
    with pytest.raises(SpecError, match="on_syscall: execve can't be noted: the launch itself makes that call"):
        await run(shared, "true", on_syscall=(SyscallRule(syscall="execve", action="log"),))
    with pytest.raises(SpecError, match=r'on_syscall: "conect" is no system call here; did you mean "connect"'):
        await run(shared, "true", on_syscall=(SyscallRule(syscall="conect", action="log"),))
    with pytest.raises(SpecError, match="must allow execve"):
        await run(shared, "true", on_syscall=(SyscallRule(syscall="execve", action="deny"),))


@pytest.mark.parametrize("action", ["errno", "kill", "log"])
async def test_a_profile_that_refuses_what_handing_over_takes(shared: Runtime, tmp_path: Path, action: str) -> None:
    path = tmp_path / "profile.json"
    names = ["sendmsg", "seccomp", "recvmsg", "poll", "ppoll", "exit_group", "dup3"]
    rule = {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": 76}
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    exit, out, _ = await run(
        shared, *calls("sendmsg 0, 0, 0", after="os.kill(os.getpid(), 9)"), seccomp=path, seccomp_action=action
    )
    assert (out, exit.signal) == {
        "errno": ("ENOTUNIQ\n", 9), "kill": ("", 31), "log": ("ENOTSOCK\n", 9)
    }.get(action), exit  # fmt: skip
    with anyio.fail_after(BOUND):
        with pytest.raises(LaunchError, match="exec nosuch"):
            await shared.run(["nosuch"], seccomp=path, seccomp_action=action)


# ---- against root inside ----


def _listeners(pid: int) -> list[str]:
    directory = Path(f"/proc/{pid}/fd")
    return [fd.name for fd in directory.iterdir() if "seccomp" in str(fd.readlink())]


async def test_the_listener_is_inits_alone(shared: Runtime) -> None:
    async with waiting(shared, seccomp_action="errno") as container:
        assert len(_listeners(container.pid)) == 1
        assert not _listeners(workload(container))
    code = f"""
import os, socket
print(sorted(os.listdir("/proc/self/fd"))[:-1], call({NUMBER["pidfd_open"]}, 1, 0) != "EPERM")
print(call({NUMBER["pidfd_getfd"]}, os.pidfd_open(1), 3, 0))
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))
allow = Program(1, struct.pack("=HBBI", 6, 0, 0, 0x7fff0000))
print(libc.syscall({NUMBER["seccomp"]}, 1, 8, ctypes.byref(allow)), ctypes.get_errno())
print(call({NUMBER["mount"]}, 0, 0, 0, 0, 0))
"""
    lines = (await python(shared, PRELUDE + code, seccomp_action="errno")).splitlines()
    assert lines[1:] == ["EPERM", "-1 16", "EPERM"], "no fd of init's; no second listener (EBUSY), which would be asked first"
    with pytest.raises(SpecError, match="SYS_PTRACE has power over init"):
        Spec(command=("true",), capabilities=frozenset({"SYS_PTRACE"}), seccomp_action="errno")


async def test_who_outlives_the_listener_makes_no_other(shared: Runtime) -> None:
    """What an exec'ed program leaves behind: its filter has nobody to ask any more, and would ask a newer one's listener."""
    code = f"""
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))
allow = Program(1, struct.pack("=HBBI", 6, 0, 0, 0x7fff0000))
if not os.fork():
    while call({NUMBER["mount"]}, 0, 0, 0, 0, 0) == "EPERM": pass
    print(call({NUMBER["mount"]}, 0, 0, 0, 0, 0), libc.syscall({NUMBER["seccomp"]}, 1, 8, ctypes.byref(allow)),
          ctypes.get_errno(), libc.syscall({NUMBER["seccomp"]}, 1, 0, ctypes.byref(allow)), flush=True)
"""
    async with waiting(shared, seccomp_action="errno", **LIMITS) as container:
        with anyio.fail_after(BOUND):
            async with container.open_exec(["python3", "-c", PRELUDE + code], stdout=PIPE) as process:
                await process.wait()
                assert process.stdout is not None
                assert await process.stdout.receive() == b"ENOSYS -1 16 0\n"


async def test_a_flood_holds_up_nobody_else(shared: Runtime) -> None:
    """Signals, reaping and the stop take their turns, and what init does for it is bounded."""
    code = f"""
import signal
signal.signal(signal.SIGHUP, lambda *_: os.write(1, b"hup\\n"))
def flood():
    while True: libc.syscall({NUMBER["mount"]}, 0, 0, 0, 0, 0)
for _ in range(4):
    if not os.fork(): flood()
for _ in range(100):  # killed while they wait
    child = os.fork()
    if not child: flood()
    os.kill(child, 9); os.waitpid(child, 0)
print("ready", flush=True)
while True: signal.pause()
"""
    async with waiting(shared, "python3", "-c", PRELUDE + code, seccomp_action="errno", **LIMITS) as container:
        await container.signal("HUP")
        await read_until(container.stdout, "hup\n")
        with anyio.fail_after(BOUND):
            exit = await container.stop(grace=0)
    assert exit.status == "stopped"
    (told,) = exit.violations
    assert (told.syscall, told.answer) == ("mount", "EPERM")
    assert told.count > 100


async def test_who_waits_for_an_answer_when_all_ends(shared: Runtime) -> None:
    """The workload's end is the container's, whoever floods on; a time limit, too."""
    code = f"""
def flood():
    while True: libc.syscall({NUMBER["mount"]}, 0, 0, 0, 0, 0)
for _ in range(3):
    if not os.fork(): flood()
"""
    exit, _, _ = await run(shared, "python3", "-c", PRELUDE + code, seccomp_action="errno", orphan_grace_period=0.01, **LIMITS)
    assert (exit.status, exit.exit_code) == ("ok", 0)
    exit, _, _ = await run(shared, "python3", "-c", PRELUDE + code + "flood()", seccomp_action="log", timeout=0.3, **LIMITS)
    assert exit.status == "time_limit"


async def test_traced_and_told(shared: Runtime) -> None:
    from tinyvisor.trace import Syscall

    with anyio.fail_after(BOUND):
        async with shared.trace(calls("mount 0, 0, 0, 0, 0"), filter="mount", seccomp_action="errno", stdout=PIPE) as (
            container,
            events,
        ):
            found = [event async for event in events]
            exit = await container.wait()
    assert [(call.name, call.errno) for call in found if isinstance(call, Syscall)] == [("mount", "EPERM")]
    assert exit.violations == (Violation("mount", "EPERM", 1),)


async def test_rules_about_what_pointers_point_to(shared: Runtime) -> None:
    """A tracer's: with every call stopped at, and where nobody asks for any."""
    from tinyvisor.trace import Syscall

    code = f"""
import socket
def attempt(function, *words):
    try: function(*words); print("ok", flush=True)
    except OSError as error: print(error.strerror, flush=True)
os.chdir("/etc")
attempt(os.stat, "/etc/../etc/./passwd"); attempt(os.stat, "passwd"); attempt(os.stat, "/etc/group")
attempt(os.open, "/etc/group", os.O_RDONLY)
attempt(socket.socket().connect, ("127.0.0.1", 9)); attempt(socket.socket().connect, ("127.0.0.2", 9))
print(call({NUMBER["newfstatat"]}, -100, 8, 0, 0))
"""
    rules = (
        SyscallRule(syscall="openat", action="log", path="/etc/gr*"),
        SyscallRule(syscall="%stat", action="deny", path="/etc/pass*"),
        SyscallRule(syscall="connect", action="allow", address="127.0.0.1:9"),
        SyscallRule(syscall="connect", action="deny", address="127.*"),
    )
    for filter in ("none", "all"):
        with anyio.fail_after(BOUND):
            async with shared.trace(
                ["python3", "-c", PRELUDE + code], filter=filter, on_syscall=rules, stdout=PIPE, userns_mode="host"
            ) as (container, events):
                found = [event async for event in events if isinstance(event, Syscall)]
                out = await read_until(container.stdout, "EPERM\n")
        denied = "Operation not permitted"
        assert out.splitlines() == [denied, denied, "ok", "ok", "Connection refused", denied, "EPERM"], "unread is denied, too"
        told = [(call.name, call.paths, call.address) for call in found if call.errno == "EPERM"]
        assert [name for name, _, _ in told] == ["newfstatat", "newfstatat", "connect", "newfstatat"]
        assert told[2][2] == "127.0.0.2:9"
        if filter == "none":
            assert [call.paths for call in found if not call.errno] == [("/etc/group",)], "and what is to be logged"
    with pytest.raises(SpecError, match="on_syscall: paths and addresses are read by a tracer"):
        await run(shared, "true", on_syscall=rules)
    with pytest.raises(SpecError, match="on_syscall: what is read is not read where calls are only counted"):
        async with shared.trace(["true"], on_syscall=rules, summary=True):
            pass
