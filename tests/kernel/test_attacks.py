"""Attacks from inside, as root, with no capability or with one that was asked for: what must not be reached, what must not be
used up, and whom it must not delay.

Each attack is tried for real; the host's side is looked at from outside. Sources: the CVEs named; kernel Documentation;
capabilities(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pty
import resource
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.kernel.command import arguments, environment
from tests.kernel.helpers import (
    BOUND,
    ON_TRIO,
    busybox_root,
    cgroups,
    python,
    read_until,
    run,
    shell,
    skip,
    status,
    waiting,
    workload,
)
from tests.kernel.test_exec import output
from tests.kernel.test_landlock import ABI, tried, writes
from tinyvisor.errors import LaunchError, SpecError, TinyvisorError
from tinyvisor.runtime import PIPE, STDOUT, Container, Runtime, open_runtime
from tinyvisor.spec import CAPABILITIES, SERVICE_CAPABILITIES, Secret, Spec, Tmpfs, Ulimit, Volume

pytestmark = [pytest.mark.kernel, pytest.mark.anyio, ON_TRIO]

LIMITS: dict[str, Any] = {"pids_limit": 64, "mem_limit": 256 << 20}
SERVICE: dict[str, Any] = {"root_capabilities": SERVICE_CAPABILITIES}
"""What `up` adds: wherever a capability could make a difference, an attack is tried with these, too."""
SECRET = "correct-horse-battery-staple"
X86 = os.uname().machine == "x86_64"
SECCOMP = ["default", "unconfined"]
"""Where the filter would answer for another wall, that wall is tried by itself, too."""

PRELUDE = """
import ctypes, errno, fcntl, os, signal, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *arguments):
    "The result of a system call, or its error's name."
    words = [a if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]
def mount(source, target, kind, flags=0, data=None):
    ctypes.set_errno(0)
    libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
    return "ok" if libc.mount(source, target, kind, flags, data) == 0 else errno.errorcode[ctypes.get_errno()]
def attempt(function, *arguments):
    try:
        return function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
"""


async def inside(runtime: Runtime, code: str, **spec: Any) -> str:
    """What Python code prints in a container, with the names of `PRELUDE`."""
    return await python(runtime, PRELUDE + code, **(LIMITS | spec))


def marker(tmp_path: Path) -> Path:
    """A file that only the host has."""
    path = tmp_path / "of-the-host"
    path.write_text(SECRET)
    return path


@pytest.fixture(autouse=True)
def the_host_is_unharmed() -> Iterator[None]:
    """What an attack could have changed on the host is as it was."""
    files = (
        "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hostname", "/proc/sys/kernel/panic",
        "/proc/sys/vm/overcommit_memory", "/proc/sys/fs/suid_dumpable", "/proc/sys/user/max_user_namespaces", "/proc/mounts",
    )  # fmt: skip

    def state() -> dict[str, str]:
        return {file: Path(file).read_text() for file in files if os.path.exists(file)}

    before = state()
    yield
    deadline = time.monotonic() + 5
    while state() != before and time.monotonic() < deadline:  # other programs mount and unmount, too
        time.sleep(0.05)
    assert state() == before


# ---- PID 1 ----


@pytest.mark.hostroot
async def test_init_holds_no_right_and_no_fd_of_the_host(shared: Runtime) -> None:
    """PID 1 has CAP_KILL, a signalfd and a socket, and in its mounts there is nothing that could be written."""
    async with waiting(shared, **LIMITS) as container:
        init = Path(f"/proc/{container.pid}")
        targets = sorted(os.readlink(init / "fd" / fd).partition(":")[0] for fd in os.listdir(init / "fd"))
        assert targets == ["anon_inode", "socket"], "a signalfd and the socket to the supervisor"
        facts = status(container.pid)
        kill = f"{1 << 5:016x}"
        assert (facts["CapEff"], facts["CapPrm"], facts["CapInh"], facts["NoNewPrivs"]) == (kill, kill, "0" * 16, "1")
        assert os.readlink(init / "exe").startswith("/memfd:")
        sources = {line.rpartition(" - ")[2].split()[0] for line in (init / "mountinfo").read_text().splitlines()}
        points = {line.split()[4] for line in (init / "mountinfo").read_text().splitlines()}
        assert not points & {"/sys", "/mnt", "/var", "/boot", "/new", "/lower", "/upper", "/t", "/t/dev"}
        host_mounts = [line for line in (init / "mountinfo").read_text().splitlines() if " - ext4 " in line or " - 9p " in line]
        assert all(" ro," in line for line in host_mounts), "of the host there are only its programs"
        assert sources <= {"tmpfs", "proc", "devpts", "none", *(line.rpartition(" - ")[2].split()[0] for line in host_mounts)} | {
            "overlay"
        }


async def test_a_workload_that_may_ptrace_gains_nothing_by_init(shared: Runtime) -> None:
    """CAP_SYS_PTRACE gives power over PID 1: so PID 1 has none to give, and what it knew of others is gone."""
    async with waiting(shared, name="other", environment={"PASSWORD": SECRET}):
        out = await inside(
            shared,
            """
word = sys.argv[1].encode() if len(sys.argv) > 1 else bytes(reversed(b"elpats-yrettab-esroh-tcerroc"))
found = 0
with open("/proc/1/maps") as maps, open("/proc/1/mem", "rb", 0) as memory:
    for line in maps:
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if " r" in line and "[vvar" not in line and "[vsyscall" not in line:
            memory.seek(start)
            found += attempt(lambda: memory.read(end - start).count(word)) or 0
print("found", found)
exe = os.open("/proc/1/exe", os.O_RDONLY)
print("exe", {attempt(os.open, path, os.O_RDWR) for path in ("/proc/1/exe", f"/proc/self/fd/{exe}")} <= {"EACCES", "ETXTBSY"})
print("root", os.stat("/proc/1/root").st_ino == os.stat("/").st_ino, os.listdir("/proc/1/root") == os.listdir("/"))
print("caps", [line.split()[1] for line in open("/proc/1/status") if line.startswith("CapPrm")])
""",
            capabilities={"SYS_PTRACE"},
            userns_mode="host",
        )
    assert out.splitlines() == ["found 0", "exe True", "root True True", "caps ['0000000000000020']"]


AT_ONCE = r"""
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void)
{
	char text[4096] = {0}, *caps;
	if (ptrace(0x4206, 1, 0, 0) < 0 || ptrace(0x4207, 1, 0, 0) < 0) /* PTRACE_SEIZE, PTRACE_INTERRUPT */
		return 2;
	waitpid(1, NULL, __WALL);
	(void)!read(open("/proc/1/status", O_RDONLY), text, sizeof text - 1);
	caps = strstr(text, "CapPrm:");
	return caps && printf("%.24s\n", caps) > 0 ? 0 : 3;
}
"""


async def test_a_workload_that_ptraces_init_at_once_comes_too_late(shared: Runtime, tmp_path: Path) -> None:
    """With its first instruction: init was woken by the same exec, and may have got no further."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        skip("needs a C compiler")
    (tmp_path / "at_once.c").write_text(AT_ONCE)
    subprocess.run([compiler, "-O2", "-static", "-o", tmp_path / "at_once", tmp_path / "at_once.c"], check=True)
    volumes = (Volume(tmp_path, "/volume", read_only=True),)
    spec = Spec(
        command=("/volume/at_once",),
        volumes=volumes,
        capabilities=frozenset({"SYS_PTRACE"}),
        pids_limit=5,
        timeout=BOUND,
        userns_mode="host",
    )
    async with shared.map([spec] * 150, concurrency=8, capture_stdout=True) as results:
        found = {(result.status, result.stdout) async for result in results}
    assert found == {("ok", b"CapPrm:\t0000000000000020\n")}


async def test_a_workload_that_may_ptrace_is_started_as_any_other(shared: Runtime) -> None:
    """Init traces it till its exec, and no longer."""
    spec = Spec(command=("true",), capabilities=frozenset({"SYS_PTRACE"}), pids_limit=5, userns_mode="host")
    result = await shared.run(spec.with_(command=("cat", "/proc/self/status")), capture_stdout=True)
    words = dict(line.split(":\t", 1) for line in (result.stdout or b"").decode().splitlines() if ":\t" in line)
    assert (words["TracerPid"], words["SigBlk"], words["SigPnd"], words["ShdPnd"]) == ("0", "0" * 16, "0" * 16, "0" * 16)
    for number in (0, 5, 255):
        assert (await shared.run(spec.with_(command=("sh", "-c", f"exit {number}")))).exit_code == number
    for number in (5, 9, 15, 19):
        result = await shared.run(spec.with_(command=("sh", "-c", f"kill -{number} $$; sleep 0.05"), timeout=0.2))
        assert result.signal == (9 if number == 19 else number)
    with pytest.raises(LaunchError, match="exec /no/such: No such file"):
        await shared.run(spec.with_(command=("/no/such",)))
    with pytest.raises(LaunchError, match="/proc/no"):
        await shared.run(spec.with_(working_dir="/proc/no"))
    changes: Any = ({"namespaces": (spec.namespaces | {"time"}) - {"user"}}, {"user": "1234"}, {"no_new_privs": False})
    for fields in changes:
        assert (await shared.run(spec.with_(**fields))).status == "ok"
    async with shared.pool(spec, size=2) as pool:
        for _ in range(5):
            assert (await pool.run(["true"])).status == "ok"
    for _ in range(20):
        async with shared.start(spec.with_(command=("sleep", "1000"), tty=True)) as container:
            assert (await container.stop(signal=9)).signal == 9


async def test_signals_to_init_from_inside(shared: Runtime) -> None:
    """None ends or stops it; those that can be forwarded come back to the workload, which here ignores them."""
    async with waiting(shared, name="attacked") as neighbour:
        out = await inside(
            shared,
            """
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
for _ in range(50):
    for number in signal.valid_signals():
        attempt(os.kill, 1, number)
attempt(os.kill, -1, signal.SIGSTOP)
print(open("/proc/1/stat").read().split()[2] in "SRD")
""",
        )
        assert out == "True\n"
        assert neighbour.exit is None


FLOOD = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
for _ in range(4):
    if os.fork() == 0:
        while True:
            for number in (1, 2, 3, 10, 12, 13, 14, 15, 34, 35, 36, 63, 64):
                try:
                    os.kill(1, number)
                except OSError:
                    pass
while True:
    signal.pause()
"""
STORM = """
import os
for _ in range(6):
    if os.fork() == 0:
        break
while True:
    try:
        if os.fork() == 0:
            if os.fork() == 0:
                os._exit(0)
            os._exit(0)
        os.wait()
    except OSError:
        pass
"""
FORKS = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""


@pytest.mark.parametrize("code", [FLOOD, STORM, FORKS], ids=["signals", "orphans", "forks"])
async def test_a_flood_does_not_keep_init_from_its_timer(shared: Runtime, code: str) -> None:
    """Signals, orphans and forks without end: the time limit holds all the same."""
    exit, _, _ = await run(shared, "python3", "-c", code, timeout=0.5, **LIMITS)
    assert exit.status == "time_limit"


@pytest.mark.parametrize("code", [FLOOD, STORM, FORKS], ids=["signals", "orphans", "forks"])
async def test_a_flood_does_not_keep_stop_from_ending_it(shared: Runtime, code: str) -> None:
    """Signals, orphans and forks without end: stop ends it, and the neighbour does not notice."""
    spec = Spec(command=("python3", "-c", "print('ready', flush=True)\n" + code), name="flood", **LIMITS)
    with anyio.fail_after(BOUND):
        async with waiting(shared, name="neighbour") as neighbour, shared.start(spec, stdout=PIPE) as container:
            await read_until(container.stdout, "ready\n")
            assert (await shared.run(Spec(command=("/bin/true",), name="between"))).status == "ok"
            exit = await container.stop(grace=0.2)
            assert exit.status == "stopped"
            assert neighbour.exit is None
    assert {path.name for path in cgroups(shared)} <= {"neighbour"}


async def test_orphans_get_no_more_than_their_time(shared: Runtime) -> None:
    """The workload has ended; its storm must not keep the container alive for ever."""
    code = "import os\nif os.fork():\n    os._exit(7)\n" + STORM
    exit, _, _ = await run(shared, "python3", "-c", code, orphan_grace_period=0.3, **LIMITS)
    assert exit.exit_code == 7


async def test_a_stopped_workload_can_be_stopped(shared: Runtime) -> None:
    """SIGSTOP to itself: the grace period passes, then it is killed."""
    async with waiting(shared, script="echo ready; kill -STOP $$") as container:
        with anyio.fail_after(BOUND):
            exit = await container.stop(grace=0.1)
    assert exit.status == "stopped"


async def test_a_workload_in_disguise(shared: Runtime) -> None:
    """Its names are its own; nobody takes it for what it says, and what is shown of it can't steer a terminal."""
    code = """
import ctypes, signal, sys, os
signal.signal(signal.SIGTERM, signal.SIG_IGN)
libc = ctypes.CDLL(None)
libc.prctl(15, b"\\x1b[2Jevil\\n", 0, 0, 0)
if os.fork() == 0:
    libc.prctl(15, b"tinyvisor-launcher", 0, 0, 0)
print("ready", flush=True)
while True:
    signal.pause()
"""
    spec = Spec(command=("python3", "-c", code), name="disguise", **LIMITS)
    async with shared.start(spec, stdout=PIPE) as container:
        assert container.stdout is not None
        assert await read_until(container.stdout, "ready\n")
        with anyio.fail_after(BOUND):
            exit = await container.stop(grace=0.05)
    assert exit.held_up_by
    assert all(word.isprintable() for word in exit.held_up_by)
    assert (await shared.run(Spec(command=("/bin/true",)))).status == "ok"


# ---- ways out of the root ----

PRIVILEGED = """
AT = -100
calls = {
    "unshare mount": (272, 0x20000), "unshare user": (272, 0x10000000), "unshare pid": (272, 0x20000000),
    "unshare net": (272, 0x40000000), "unshare cgroup": (272, 0x2000000), "unshare ipc": (272, 0x8000000),
    "clone user": (56, 0x10000000 | 17, 0, 0, 0, 0),
    "umount": (166, b"/proc", 2), "umount root": (166, b"/", 2), "pivot_root": (155, b".", b"."), "chroot": (161, b"/"),
    "open_tree": (428, AT, b"/", 1), "open_tree /proc": (428, AT, b"/proc", 1), "fsopen": (430, b"tmpfs", 0),
    "mount_setattr": (442, AT, b"/proc/sys", 0, struct.pack("=4Q", 0, 1, 0, 0), 32),
    "mknod block": (133, b"/tmp/disk", 0o60600, os.makedev(254, 0)), "mknod mem": (133, b"/tmp/mem", 0o20600, os.makedev(1, 1)),
    "open_by_handle_at": (304, AT, struct.pack("=Ii8s", 8, 1, bytes(8)), 0),
    "sethostname": (170, b"evil", 4), "settimeofday": (164, bytes(16), 0), "swapon": (167, b"/tmp/x", 0),
    "init_module": (175, bytes(16), 16, b""), "finit_module": (313, 0, b"", 0), "delete_module": (176, b"ext4", 0),
    "kexec_load": (246, 0, 0, 0, 0), "reboot": (169, 0xfee1dead, 672274793, 0, 0), "acct": (163, b"/tmp/acct"),
    "quotactl": (179, 0, 0, 0, 0), "iopl": (172, 3), "ioperm": (173, 0, 1, 1), "syslog": (103, 3, bytes(64), 64),
    "setns": (308, os.open("/proc/self/ns/mnt", os.O_RDONLY), 0), "vhangup": (153,),
    "clock_settime": (227, 0, bytes(16)), "nice": (141, 0, 0, -10), "ioprio": (251, 1, 0, 1 << 13),
    "fanotify": (300, 0, 0), "lookup_dcookie": (212, 0, bytes(8), 8),
}
for name, arguments in calls.items():
    print(name, "=", call(*arguments))
print("mount =", mount(b"none", b"/tmp", b"tmpfs"))
print("bind =", mount(b"/", b"/tmp", None, 4096))
print("remount =", mount(None, b"/proc/sys", None, 32 | 4096))
print("cgroup =", mount(b"none", b"/tmp", b"cgroup", 0, b"freezer"))
print("proc =", mount(b"none", b"/tmp", b"proc"))
"""


@pytest.mark.skipif(not X86, reason="has system calls by their number on x86-64")
@pytest.mark.parametrize("seccomp", SECCOMP)
@pytest.mark.parametrize("shape", [{}, {"root_method": "chroot"}, SERVICE], ids=["pivot", "chroot", "service"])
async def test_every_privileged_call_is_refused(shared: Runtime, shape: dict[str, Any], seccomp: str) -> None:
    """Fifty calls that need a capability, with the filter and without it: root of a service may chroot, and no more."""
    out = await inside(shared, PRIVILEGED, seccomp=seccomp, **shape)
    lines = dict(line.split(" = ") for line in out.splitlines())
    missing = {"ENOSYS", "ENODEV", "EAFNOSUPPORT"}
    refused = {name: answer in {"EPERM", "EACCES"} | missing for name, answer in lines.items()}
    assert refused.pop("quotactl") or lines["quotactl"] in ("ENODEV", "EFAULT", "ENOTBLK")
    for checked_first in ("finit_module", "lookup_dcookie", "open_by_handle_at", "fanotify"):
        refused.pop(checked_first, None)
    assert lines["open_by_handle_at"] in {"EPERM", "ESTALE", "ENOTDIR"}
    assert [name for name, ok in refused.items() if not ok] == (["chroot"] if shape is SERVICE else []), lines


@pytest.mark.hostroot
async def test_capabilities_of_a_service_count_inside_only(shared: Runtime, tmp_path: Path) -> None:
    """Its root becomes and gives files to those of its own ids, opens ports of its own network, and has no other capability to
    get: nor raw and packet sockets, attributes of the host's, power over PID 1."""
    tmp_path.chmod(0o777)
    (tmp_path / "of-nobody").write_text(SECRET)
    (tmp_path / "of-nobody").chmod(0o600)
    os.chown(tmp_path / "of-nobody", 1 << 20, 1 << 20)
    code = """
import socket
def bound(port):
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))
def became(uid):
    child = os.fork()
    if child == 0:
        os._exit({"EINVAL": 3}.get(attempt(os.setresuid, uid, uid, uid), 0))
    return os.WEXITSTATUS(os.waitpid(child, 0)[1])
path = "/volume/own"
open(path, "w").close()
print("ok", attempt(os.chown, path, 7, 8), attempt(bound, 80), became(65533), attempt(os.chmod, path, 0o6755))
print("ids", attempt(os.chown, path, 1 << 20, -1), became(1 << 20), attempt(open, "/volume/of-nobody"))
print("ids", attempt(os.chown, "/volume/of-nobody", 0, 0), attempt(os.chmod, "/volume/of-nobody", 0o666))
print("raw", attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1), attempt(socket.socket, 17, socket.SOCK_RAW, 0))
print("attributes", attempt(os.setxattr, path, "trusted.x", b"x"))
print("ambient", [libc.prctl(47, 2, number, 0, 0) for number in (12, 13, 19, 21, 27, 38)])
print("pid 1", attempt(os.kill, 1, 9), attempt(os.kill, 1, 0))
"""
    out = await inside(shared, code, volumes=(Volume(tmp_path, "/volume"),), **SERVICE)
    assert out.splitlines() == [
        "ok None None 0 None", "ids EINVAL 3 EACCES", "ids EPERM EOVERFLOW", "raw EPERM EAFNOSUPPORT", "attributes EPERM",
        f"ambient {[-1] * 6}", "pid 1 EPERM EPERM",
    ]  # fmt: skip


WORLD = ["container", "t"]
"""The places in the root of a container's mount namespace; what the launcher has on the second is gone."""

ESCAPE = """
os.makedirs("/tmp/jail", exist_ok=True)
here = os.open("/", os.O_RDONLY)
os.chroot("/tmp/jail")
os.fchdir(here)
for _ in range(64):
    os.chdir("..")
os.chroot(".")
print(sorted(os.listdir("/")))
found = list(os.walk("/"))
around = [path for path, _, _ in found if "container" not in path]
print({attempt(os.mkdir, f"{path}/x") for path in around})
print(sorted({name for path, names, _ in found for name in names if path == "/t" or path.startswith("/t/")}))
print([path for path, _, files in found if "of-the-host" in files or "vmlinuz" in files])
"""


@pytest.mark.parametrize("method", ["pivot", "chroot"])
async def test_a_chroot_escape_ends_in_an_empty_world(shared: Runtime, tmp_path: Path, method: str) -> None:
    """With CAP_SYS_CHROOT, as root of a service has it, the root can be left: what is around it is empty, read-only and nobody
    else's."""
    marker(tmp_path)
    out = await inside(shared, ESCAPE, root_method=method, **SERVICE)
    around, written, templates, host = out.splitlines()
    assert around == str(WORLD)
    assert written == "{'EROFS'}"
    assert templates == "[]", "what all containers share is out of reach"
    assert host == "[]"


async def test_sys_admin_alone_finds_no_host_behind_the_root(shared: Runtime, tmp_path: Path) -> None:
    """SYS_ADMIN is a hole that one makes (it can mount devtmpfs); but what was there before is gone, not hidden."""
    marker(tmp_path)
    out = await inside(
        shared,
        """
for _ in range(8):
    points = [line.split()[4] for line in open("/proc/self/mountinfo")] if os.path.exists("/proc/self") else []
    for point in reversed([p for p in points if p != "/" and not p.startswith("/usr")]):
        libc.umount2(point.encode(), 2)
print(sorted(os.listdir("/proc")), sorted(os.listdir("/dev")), sorted(os.listdir("/etc")))
print("root", libc.umount2(b"/", 2))
print([path for path, _, files in os.walk("/") if "of-the-host" in files])
""",
        capabilities={"SYS_ADMIN"},
        userns_mode="host",
    )
    lines = out.splitlines()
    assert lines[0] == "[] [] []", "below the mounts there are only mount points"
    assert lines[-1] == "[]"


ROUND_ABOUT = """
def look():
    return [path for path, _, files in os.walk("/") if "of-the-host" in files or "vmlinuz" in files]
def in_a_child(function):
    sys.stdout.flush()
    if os.fork() == 0:
        attempt(function)
        os._exit(0)
    os.wait()
def enter():
    fd = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    print("setns", libc.setns(fd, 0), sorted(os.listdir("/")), look(), flush=True)
def move():
    os.mkdir("/tmp/new")
    mount(b"none", b"/tmp/new", b"tmpfs")
    os.chdir("/tmp/new")
    moved = mount(b".", b"/", None, 8192)
    os.chroot(".")
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    print("move", moved, look(), flush=True)
in_a_child(enter)
in_a_child(move)
"""


@pytest.mark.parametrize("method", ["pivot", "chroot"])
async def test_moved_mounts_and_its_own_namespace_anew_show_no_host(shared: Runtime, tmp_path: Path, method: str) -> None:
    """MS_MOVE over the root, and setns into the mount namespace that it is in, which makes that one's root its own: with the
    rights to both they lead into the empty world around."""
    marker(tmp_path)
    out = await inside(shared, ROUND_ABOUT, root_method=method, capabilities={"SYS_ADMIN", "SYS_CHROOT"}, userns_mode="host")
    assert out.splitlines() == [f"setns 0 {WORLD} []", "move ok []"]


@pytest.mark.parametrize("mode", ["auto", "host"])
@pytest.mark.parametrize("capabilities", [(), ("MKNOD",)], ids=["", "MKNOD"])
async def test_no_device_can_be_opened(shared: Runtime, tmp_path: Path, capabilities: tuple[str, ...], mode: str) -> None:
    """With CAP_MKNOD of the host's a node can be made, but nothing that can be written honours it."""
    disk = Path("/proc/partitions").read_text().split()[4:6]
    out = await inside(
        shared,
        f"""
device = os.makedev({disk[0]}, {disk[1]})
for line in open("/proc/self/mountinfo"):
    point, options = line.split()[4], line.split()[5].split(",")
    if "nodev" not in options and "ro" not in options and not line.split(" - ")[1].startswith("devpts"):
        print("honours devices:", point)
for directory in ("/", "/tmp", "/run", "/dev/shm", "/var/tmp", "/root", "/home", "/volume", "/dev", "/dev/pts", "/usr", "/etc"):
    for kind, number in ((0o60000, device), *((0o20000, os.makedev(*n)) for n in ((1, 1), (10, 200), (5, 1)))):
        made = attempt(os.mknod, directory + "/node", kind | 0o600, number)
        opened = attempt(os.open, directory + "/node", os.O_RDWR)
        print(directory, made, opened if isinstance(opened, str) else "OPENED")
        attempt(os.unlink, directory + "/node")
""",
        capabilities=set(capabilities),
        volumes=(Volume(tmp_path, "/volume"),),
        userns_mode=mode,
    )
    assert "OPENED" not in out
    assert "honours" not in out
    assert ("/tmp None EACCES" in out) == (bool(capabilities) and mode == "host" and not shared.host.nested)


DEVICES = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
os.mkdir("/tmp/honours")
assert libc.mount(b"x", b"/tmp/honours", b"tmpfs", 0, b"") == 0, os.strerror(ctypes.get_errno())
for kind, major, minor in ((0o60000, {0}, {1}), (0o20000, 1, 1), (0o20000, 1, 11), (0o20000, 10, 200), (0o20000, 1, 3)):
    os.mknod("/tmp/honours/node", kind | 0o600, os.makedev(major, minor))
    opened = attempt(os.open, "/tmp/honours/node", os.O_RDONLY | os.O_NONBLOCK)
    print(opened if isinstance(opened, str) else "OPENED")
    os.unlink("/tmp/honours/node")
"""


@pytest.mark.hostroot
async def test_devices_are_walled_off_where_mounts_honour_them(shared: Runtime) -> None:
    """Even with all that makes the first wall fall: the rights to mount and to make nodes, over the host's. So it is for what is
    executed in the container."""
    disk = Path("/proc/partitions").read_text().split()[4:6]
    wall = shared.host.layout.controller("devices")
    if wall is None:
        skip("needs cgroup v2 to be mounted somewhere")
    rights: dict[str, Any] = {"capabilities": {"SYS_ADMIN", "MKNOD"}, "userns_mode": "host", "seccomp": "unconfined"}
    code = DEVICES.format(*disk)
    assert (await inside(shared, code, **rights)).split() == [*["EPERM"] * 4, "OPENED"]
    async with shared.start(Spec(command=("sleep", "99"), **rights)) as container:
        with tempfile.TemporaryFile() as out:
            await container.exec(["python3", "-c", PRELUDE + code], stdout=out)
            out.seek(0)
            assert out.read().split() == [*[b"EPERM"] * 4, b"OPENED"]


@pytest.mark.hostroot
async def test_devices_are_walled_off_by_the_controller_where_there_is_no_cgroup2(shared: Runtime) -> None:
    """As on hosts with cgroup v1 only, which is what is seen in a mount namespace without the other."""
    unified = shared.host.layout.unified
    if unified is None or not Path("/sys/fs/cgroup/devices/devices.list").exists():
        pytest.skip("needs cgroup v2 beside the devices controller of v1")
    disk = Path("/proc/partitions").read_text().split()[4:6]
    options = ("--cap-add", "SYS_ADMIN", "--cap-add", "MKNOD", "--userns", "host", "--security-opt", "seccomp=unconfined")
    words = arguments("run", *options, "--", "python3", "-c", PRELUDE + DEVICES.format(*disk))
    without = ("unshare", "--mount", "--propagation", "private", "sh", "-c", 'umount "$0" && exec "$@"', unified)
    before = {path for path in Path("/sys/fs/cgroup/devices").rglob("*") if path.is_dir()}
    with anyio.fail_after(BOUND):
        ended = await anyio.run_process([*without, *words], env=environment(), check=False)
    assert ended.stdout.split() == [*[b"EPERM"] * 4, b"OPENED"], ended.stderr
    assert {path for path in Path("/sys/fs/cgroup/devices").rglob("*") if path.is_dir()} == before


# ---- images that lie ----

LIES = {
    "null device is core_pattern": {"dev/null": "/proc/sys/kernel/core_pattern"},  # CVE-2025-31133
    "console is a pts": {"dev/console": "/dev/pts/0", "dev/pts/0": "/proc/sys/kernel/core_pattern"},  # CVE-2025-52565
    "proc is a link": {"proc": "etc"},  # CVE-2019-19921
    "proc is a link up": {"proc": "../../../../../../../tmp"},
    "proc is dangling": {"proc": "nowhere/at/all"},
    "proc leads to itself": {"proc": "proc"},
    "dev is proc": {"dev": "proc"},
    "dev is sysctl": {"dev": "/proc/sys/kernel"},
    "etc is sysctl": {"etc": "/proc/sys/kernel"},
    "etc is init": {"etc": "/proc/1"},
    "etc is an fd": {"etc": "/proc/self/fd"},
    "tmp is the host's": {"tmp": "/proc/1/root/tmp"},
    "hosts is core_pattern": {"etc/hosts": "/proc/sys/kernel/core_pattern"},
    "passwd is core_pattern": {"etc/passwd": "/proc/sys/kernel/core_pattern"},
    "work is etc": {"work": "../../../../etc", "data": "/proc/sys"},  # CVE-2021-30465
}


@pytest.mark.parametrize("lie", LIES)
async def test_an_image_that_lies(shared: Runtime, tmp_path: Path, lie: str) -> None:
    """It starts, with all that is masked masked, or it does not; nothing of the host is touched."""
    root = busybox_root(tmp_path / "root")
    for path, target in LIES[lie].items():
        place = root / path
        if place.is_dir() and not place.is_symlink():
            place.rmdir()
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
    volume = tmp_path / "volume"
    volume.mkdir()
    script = """
        for f in $(busybox find / -name core_pattern -o -name sysrq-trigger -o -name modprobe 2>/dev/null); do
            (echo '|/evil' >$f) 2>/dev/null && echo "wrote $f"
        done
        busybox mount | busybox grep -c . ; true
    """
    for read_only in (False, True):
        spec = {"rootfs": root, "read_only": read_only, "working_dir": "/work/deep", "volumes": (Volume(volume, "/data/in"),)}
        with contextlib.suppress(LaunchError):
            exit, out, _ = await shell(shared, script, **LIMITS, **spec)
            assert "wrote" not in out
            assert exit.returncode == 0
    assert shared.containers == {}
    assert (await shared.run(Spec(command=("/bin/true",)))).status == "ok"


async def test_mount_targets_in_a_volume_that_somebody_else_turns_into_links(shared: Runtime, tmp_path: Path) -> None:
    """A running container swaps directories for links (CVE-2021-30465) while others mount there; renames also make openat2
    say EAGAIN. Nothing lands outside the new container's root."""
    common, inner, outside = tmp_path / "common", tmp_path / "inner", tmp_path / "outside"
    for directory in (common, inner, outside):
        directory.mkdir()
    (inner / "proof").write_text("inner")
    swap = """
import os
print("ready", flush=True)
os.chdir("/common")
while True:
    for target in ("../../../../../../outside", "/proc/1/root", "/proc/self/fd", "/", "..", "/etc", "/nowhere"):
        for function, arguments in ((os.symlink, (target, "b")), (os.rename, ("a", "c")), (os.rename, ("b", "a")),
                                    (os.rename, ("a", "d")), (os.rename, ("c", "a")), (os.mkdir, ("a",)), (os.unlink, ("d",))):
            try:
                function(*arguments)
            except OSError:
                pass
"""
    attacker = Spec(command=("python3", "-c", swap), name="attacker", volumes=(Volume(common, "/common"),), **LIMITS)
    started = 0
    with anyio.fail_after(BOUND):
        async with shared.start(attacker, stdout=PIPE) as running:
            await read_until(running.stdout, "ready\n")
            for number in range(60):
                victim = Spec(
                    command=("sh", "-c", "cat /proc/self/mountinfo"), name=f"victim{number}",
                    volumes=(Volume(common, "/common"), Volume(inner, "/common/a/x/y")), **LIMITS,
                )  # fmt: skip
                with contextlib.suppress(LaunchError):
                    async with shared.start(victim, stdout=PIPE) as container:
                        started += 1
                        await container.wait()
    assert list(outside.iterdir()) == []
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(tmp_path) in line]
    assert sorted(path.name for path in inner.iterdir()) == ["proof"]
    assert started, "a race is lost now and then, not always"


async def test_a_working_directory_is_inside(shared: Runtime) -> None:
    """CVE-2024-21626: a host directory that somebody left open."""
    for fd in (*range(12), 200, 201):
        for process in ("self", "1"):
            with contextlib.suppress(LaunchError):
                out = await inside(
                    shared,
                    "os.chdir('../' * 40); print(os.stat('.').st_ino == os.stat('/').st_ino, os.getcwd())",
                    working_dir=f"/proc/{process}/fd/{fd}",
                    read_only=True,
                )
                assert out == "True /\n"


# ---- what is handed in ----


async def test_a_directory_as_stdio_is_refused(shared: Runtime) -> None:
    """CVE-2024-21626: a directory of the host would be a way out; none is handed in."""
    for flags in (os.O_RDONLY, os.O_PATH):
        fd = os.open("/", flags | os.O_DIRECTORY)
        try:
            for name in ("stdin", "stdout", "stderr"):
                with pytest.raises(SpecError, match="directory"):
                    stdio: dict[str, Any] = {name: fd}
                    await shared.run(Spec(command=("/bin/true",)), **stdio)
        finally:
            os.close(fd)


async def test_one_fd_for_all_of_stdio(shared: Runtime, tmp_path: Path) -> None:
    """One file for all three: the container has these three and no other."""
    with open(tmp_path / "log", "w+") as log:
        spec = Spec(command=("sh", "-c", "echo out; echo err >&2; ls /proc/self/fd"), **LIMITS)
        assert (await shared.run(spec, stdin=log, stdout=log, stderr=log)).status == "ok"
    assert (tmp_path / "log").read_text().split() == ["out", "err", "0", "1", "2", "3"]


async def test_closed_stdio(shared: Runtime) -> None:
    """A workload that closes all three: its end is seen, with its exit code."""
    exit, out, err = await shell(shared, "exec <&- >&- 2>&-; sleep 0.01; exit 3", **LIMITS)
    assert (exit.exit_code, out, err) == (3, "", "")


HOST_SHELL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.write(1, b"shell\\n")
while line := sys.stdin.readline():
    os.write(1, b"RAN " + line.encode())
"""


@pytest.mark.skipif(not X86, reason="has system calls by their number on x86-64")
@pytest.mark.parametrize("seccomp", SECCOMP)
@pytest.mark.parametrize("given", ["stdin", "all"])
async def test_nothing_can_be_typed_into_the_hosts_terminal(shared: Runtime, given: str, seccomp: str) -> None:
    """CVE-2017-5226: TIOCSTI on a terminal that was passed in; with its high bits set (CVE-2019-10063), by TIOCLINUX
    (CVE-2023-28100), and after an attempt to make it the controlling terminal."""
    master, slave = pty.openpty()
    host = subprocess.Popen([sys.executable, "-c", HOST_SHELL], stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    try:
        attributes = termios.tcgetattr(slave)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        assert _read_pty(master, b"shell\r\n")
        code = """
import termios
answers = [call(16, 0, termios.TIOCSCTTY, steal) for steal in (0, 1)]
answers.append(attempt(os.open, "/dev/tty", os.O_RDWR))
attempt(os.setsid)
if os.fork() == 0:
    os.setsid()
    answers += [call(16, 0, termios.TIOCSCTTY, steal) for steal in (0, 1)]
    again = attempt(os.open, "/proc/self/fd/0", os.O_RDWR)
    answers.append(attempt(os.open, "/dev/tty", os.O_RDWR))
    for fd in [0] + [again] * isinstance(again, int):
        for letter in b"echo injected\\n":
            byte = bytes([letter])
            for request in (termios.TIOCSTI, termios.TIOCSTI | 1 << 32, termios.TIOCSTI | 7 << 40):
                answers.append(call(16, fd, request, byte))
        for request in (0x541C, 0x541C | 1 << 32):
            for data in (b"\\x02" + bytes(10), b"\\x03" + bytes(10)):
                answers.append(call(16, fd, request, data))
    sys.stderr.write(" ".join(map(str, answers)))
    os._exit(0)
os.wait()
"""
        stdout = slave if given == "all" else None
        spec = Spec(command=("python3", "-c", PRELUDE + code), name="terminal", seccomp=seccomp, **LIMITS)
        async with shared.start(spec, stdin=slave, stdout=stdout, stderr=PIPE) as container:
            answers = await read_until(container.stderr, "")
            with contextlib.suppress(anyio.EndOfStream):
                while True:
                    assert container.stderr is not None
                    answers += (await container.stderr.receive()).decode()
            assert (await container.wait()).status == "ok"
        assert set(answers.split()) <= {"EPERM", "EIO", "ENOTTY", "EINVAL", "ENXIO", "EACCES", "ENOENT"}, answers
        os.write(master, b"typed\n")
        assert _read_pty(master, b"RAN typed\r\n") == b"RAN typed\r\n", "and nothing else was run"
    finally:
        host.kill()
        host.wait()
        os.close(master)
        os.close(slave)


def _read_pty(master: int, end: bytes) -> bytes:
    data = b""
    while end not in data:
        assert select.select([master], [], [], BOUND)[0], data
        data += os.read(master, 4096)
    return data


# ---- what is used up ----


async def test_a_fork_bomb_is_held_and_its_neighbours_are_not(shared: Runtime) -> None:
    """pids_limit holds it; ten others run meanwhile."""
    spec = Spec(command=("bash", "-c", "a() { a | a & }; a; wait"), name="bomb", pids_limit=20, mem_limit=64 << 20)
    with anyio.fail_after(BOUND):
        async with shared.start(spec) as bomb:
            for number in range(10):
                assert (await shared.run(Spec(command=("/bin/true",), name=f"calm{number}"))).status == "ok"
                assert len(bomb.processes()) <= 20
            exit = await bomb.stop(grace=0)
    assert exit.pids_peak is None or exit.pids_peak <= 20
    assert exit.limits_enforced == ("pids_limit", "mem_limit")


async def test_everything_that_can_be_filled_has_a_bound(shared: Runtime) -> None:
    """Every tmpfs is filled with bytes and with directories, to its size and inode limits."""
    size, inodes = 2 << 20, 200
    out = await inside(
        shared,
        """
import shutil
places = set()
for line in open("/proc/self/mountinfo"):
    before, _, after = line.partition(" - ")
    point, options, kind, more = before.split()[4], before.split()[5].split(","), after.split()[0], after.split()[2]
    if "ro" in options or kind in ("proc", "devpts"):
        continue
    if kind == "tmpfs" and not ("size=" in more and "nr_inodes=" in more):
        print("unbounded", point, more)
    places.add(point)
for place in sorted(places):
    block, count, names = bytes(65536), 0, 0
    def fill():
        global count
        with open(f"{place}/filled", "wb", 0) as file:
            while count < 400:
                count += file.write(block) // 65536
    why = attempt(fill)
    attempt(os.unlink, f"{place}/filled")
    def make():
        global names
        while names < 20000:
            os.mkdir(f"{place}/d{names}")
            names += 1
    print(place, why, count < 400, attempt(make), names < 20000)
    for number in range(names):
        os.rmdir(f"{place}/d{number}")
""",
        storage_size=size,
        storage_inodes=inodes,
        shm_size=size,
    )
    assert out.splitlines() == ["/ ENOSPC True ENOSPC True", "/dev/shm ENOSPC True ENOSPC True"]


async def test_every_tmpfs_has_both_limits(shared: Runtime) -> None:
    """Also where there are more of them: size and inodes, of all that the host's memory pays for."""
    look = """
for line in open("/proc/self/mountinfo"):
    before, _, after = line.partition(" - ")
    kind, _, options = after.split()[:3]
    if kind == "tmpfs":
        print(before.split()[4], "size=" in options and "nr_inodes=" in options)
"""
    more: dict[str, Any] = {"secrets": (Secret(target="key", content=b"word"),), "notify_socket": True}
    found: set[str] = set()
    for fields in ({"read_only": True, "tmpfs": (Tmpfs("/scratch"), Tmpfs("/work", size=1 << 20))}, {"working_dir": "/made"}):
        lines = (await inside(shared, look, **more, **fields)).splitlines()
        assert {line.split()[1] for line in lines} == {"True"}, lines
        found |= {line.split()[0] for line in lines}
    assert found >= {"/", "/dev", "/dev/shm", "/tmp", "/run", "/scratch", "/work", "/run/secrets"}, found


async def test_running_out_of_files(shared: Runtime) -> None:
    """All file descriptors that its ulimit allows: EMFILE, and nobody else notices."""
    out = await inside(
        shared,
        """
fds = []
try:
    while True:
        fds.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    print(error.errno == errno.EMFILE, len(fds) < 200)
""",
        ulimits={"nofile": Ulimit(100, 100)},
    )
    assert out == "True True\n"
    assert (await shared.run(Spec(command=("/bin/true",)))).status == "ok"


QUEUES = """
made, size = 0, struct.pack("8q", 0, 10, 8192, *bytes(5))
while isinstance(answer := call(240, b"q%d" % made, os.O_CREAT | os.O_RDWR, 0o600, size), int):
    made += 1
print(answer, made, flush=True)
"""


@pytest.mark.skipif(not X86, reason="has system calls by their number on x86-64")
async def test_message_queues_have_a_bound_of_their_own(shared: Runtime) -> None:
    """POSIX ones by their bytes (ulimits: msgqueue): what one container has used up is not what the next one lacks. But an
    ordinary user's containers have the user's limit together."""
    hold = "print(input(), flush=True)\ninput()"
    holds = hold if shared.host.nested else f"{QUEUES}{hold}"
    async with waiting(shared, "python3", "-c", PRELUDE + holds, name="one", **LIMITS):
        assert await inside(shared, "print(call(240, b'q0', os.O_RDWR, 0, 0))", name="two") == "ENOENT\n", "nor has it that one's"
        assert await inside(shared, QUEUES, name="two", ulimits={"msgqueue": Ulimit(300_000, 300_000)}) == "EMFILE 3\n"
        assert await inside(shared, QUEUES, name="two", ulimits={"msgqueue": Ulimit(0, 0)}) == "EMFILE 0\n"
        usual = (await inside(shared, QUEUES, name="two")).split()
        assert usual == ["EMFILE", str(resource.getrlimit(resource.RLIMIT_MSGQUEUE)[0] // 90_000)]


async def test_endless_output_that_nobody_reads(shared: Runtime) -> None:
    """The pipe is full; stop ends it all the same."""
    spec = Spec(command=("sh", "-c", "trap '' TERM; while :; do cat /dev/zero; done"), name="flood", **LIMITS)
    with anyio.fail_after(BOUND):
        async with shared.start(spec, stdout=PIPE, stderr=STDOUT) as flood:
            assert (await shared.run(Spec(command=("/bin/true",), name="calm"))).status == "ok"
            assert (await flood.stop(grace=0.05)).status == "stopped"


async def test_endless_output_that_is_read_slowly(shared: Runtime) -> None:
    """Ten gigabytes are on their way; stop does not wait for them."""
    spec = Spec(command=("sh", "-c", "head -c 10000000000 /dev/zero"), name="flood", **LIMITS)
    with anyio.fail_after(BOUND):
        async with shared.start(spec, stdout=PIPE) as flood:
            assert flood.stdout is not None
            for _ in range(5):
                assert await flood.stdout.receive(4096)
                await anyio.sleep(0.01)
            assert (await flood.stop(grace=5)).status == "stopped"
            left = 0
            with contextlib.suppress(anyio.EndOfStream):
                while True:
                    left += len(await flood.stdout.receive())
            assert left <= 1 << 20, "no more than a pipe holds"


async def test_the_launcher_keeps_nothing_of_launches_good_or_bad(anyio_backend: str, tmp_path: Path) -> None:
    """It lives for long: neither fds, nor mounts, nor memory may add up."""

    async def every_kind(runtime: Runtime, number: int) -> None:
        volumes = (Volume(tmp_path, "/volume"), Volume(Path("/usr"), "/other", read_only=True))
        good = Spec(command=("/bin/true",), name=f"good{number}", volumes=volumes, **LIMITS)
        await runtime.run(good)
        async with runtime.start(good.with_(tty=True)):
            pass
        with anyio.move_on_after(0.001):
            await runtime.run(good.with_(command=("sleep", "1000")))
        for wrong in (
            {"command": ("/no/such",)}, {"working_dir": "/proc/nowhere"}, {"user": "no-such-user"}, {"rootfs": Path("/no/such")},
            {"volumes": tuple(Volume(tmp_path, f"/v{n}") for n in range(80))}, {"volumes": (Volume(tmp_path, "/proc/x/y"),)},
            {"network_mode": "service:nobody"}, {"environment": {"A": "x" * (5 << 20)}},
        ):  # fmt: skip
            with contextlib.suppress(TinyvisorError):
                await runtime.run(good.with_(**wrong))

    def held(pid: int) -> tuple[int, int, int]:
        memory = int(status(pid)["RssAnon"].split()[0])
        return len(os.listdir(f"/proc/{pid}/fd")), len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines()), memory

    with anyio.fail_after(BOUND):
        async with open_runtime() as runtime:
            for number in range(3):
                await every_kind(runtime, number)
            fds, mounts, memory = held(runtime._launcher.pid)
            for number in range(30):
                await every_kind(runtime, number)
            after = held(runtime._launcher.pid)
    assert after[:2] == (fds, mounts)
    assert after[2] <= memory + 64, "KiB"


BOMBS = {
    "forks": FORKS,
    "memory": """
data = []
while True:
    data.append(b"x" * (1 << 20))
""",
    "inodes": """
import os
number = 0
while True:
    number += 1
    try:
        os.mkdir(f"/tmp/{number}")
    except OSError:
        pass
""",
    "output": """
while True:
    print("x" * 65536)
""",
    "zombies": """
import os, time
while True:
    try:
        os.fork() or os._exit(0)
    except OSError:
        time.sleep(0.01)
""",
}


async def test_all_bombs_at_once_beside_a_neighbour(shared: Runtime) -> None:
    """Forks, memory, inodes, output and zombies at once, each within its limits: a neighbour runs on, and all can be ended."""
    limits: dict[str, Any] = {
        "pids_limit": 40,
        "mem_limit": 48 << 20,
        "cpus": 0.2,
        "storage_size": 8 << 20,
        "storage_inodes": 5000,
    }

    async def slowest() -> float:
        times = []
        for _ in range(15):
            result = await shared.run(Spec(command=("true",)))
            assert result.status == "ok"
            times.append(result.wall)
        return sorted(times)[7]

    ended: dict[str, str] = {}
    started: dict[str, Container] = {}
    with anyio.fail_after(BOUND):
        quiet = await slowest()
        async with contextlib.AsyncExitStack() as stack:
            for name, code in BOMBS.items():
                spec = Spec(command=("python3", "-c", f"print('ready', flush=True)\n{code}"), name=name, **limits)
                bomb = started[name] = await stack.enter_async_context(shared.start(spec, stdout=PIPE))
                await read_until(bomb.stdout, "ready\n")
                stack.push_async_callback(_end, bomb, ended)
            loud = await slowest()
            await started["memory"].wait()  # it ends by itself, if slowly: it has a fifth of a processor
    assert ended == {**dict.fromkeys(BOMBS, "stopped"), "memory": "memory_limit"}
    assert loud < 100 * quiet + 1, (quiet, loud)
    assert cgroups(shared) == []


async def _end(container: Container, ended: dict[str, str]) -> None:
    ended[container.name] = (await container.stop(grace=0)).status


async def test_locks_on_files_that_both_see_are_a_channel(shared: Runtime) -> None:
    """The one thing here that is not held: who locks a program of the host tells others so. SECURITY.md names it."""
    lock = "import fcntl, os\nfd = os.open('/usr/bin/env', os.O_RDONLY)\nfcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
    async with waiting(shared, "python3", "-c", lock + "print(input(), flush=True)\ninput()", name="one", **LIMITS):
        out = await inside(shared, "print(attempt(lambda: exec(" + repr(lock) + ")))", name="two")
    assert out == "EAGAIN\n"


# ---- from one container to another ----


async def test_a_network_that_is_not_made_yet_can_not_be_joined(shared: Runtime) -> None:
    """Before its own is made, the provider is in the host's: whoever came too early would be there, too."""
    host = os.readlink("/proc/self/ns/net")
    joined: list[str] = []

    async def join() -> None:
        spec = Spec(command=("readlink", "/proc/self/ns/net"), name="early", network_mode="service:provider")
        with contextlib.suppress(TinyvisorError):
            async with shared.start(spec, stdout=PIPE) as container:
                joined.append(await read_until(container.stdout, "\n"))

    for _ in range(10):
        async with anyio.create_task_group() as group:
            group.start_soon(_start_and_end, shared)
            await anyio.lowlevel.checkpoint()
            group.start_soon(join)
    assert host not in map(str.strip, joined)


async def _start_and_end(runtime: Runtime) -> None:
    async with waiting(runtime, name="provider"):
        await anyio.sleep(0.01)


async def test_containers_share_no_channel_of_ipc(shared: Runtime) -> None:
    """SysV shared memory, abstract sockets, /dev/shm, /tmp, other processes: each has its own."""
    code = """
import socket
print(call(29, 0x1234, 4096, 0o1600) if os.uname().machine == "x86_64" else 0)
left = socket.socket(socket.AF_UNIX)
print(attempt(left.bind, "\\0abstract"))
open("/dev/shm/x", "w").write("x")
open("/tmp/x", "w").write("x")
print("ready", flush=True)
sys.stdin.read()
"""
    look = """
import socket
if os.uname().machine == "x86_64":
    print(call(29, 0x1234, 4096, 0))
else:
    print("ENOENT")
print(attempt(socket.socket(socket.AF_UNIX).connect, "\\0abstract"))
print(os.path.exists("/dev/shm/x"), os.path.exists("/tmp/x"), len([p for p in os.listdir("/proc") if p.isdigit()]))
"""
    async with waiting(shared, "python3", "-c", PRELUDE + code, name="one", **LIMITS):
        out = await inside(shared, look, name="two")
    assert out.splitlines() == ["ENOENT", "ECONNREFUSED", "False False 2"]


@pytest.mark.skipif(not X86, reason="has system calls by their number on x86-64")
async def test_containers_share_no_keys(shared: Runtime) -> None:
    """Root's keyrings are one for all that run as root: so nobody gets at any."""
    name = f"tinyvisor-{os.getpid()}".encode()
    try:
        await inside(shared, f"print(call(248, b'user', {name!r}, b'secret', 6, -4))")
        out = await inside(shared, f"print(call(250, 10, -4, b'user', {name!r}, 0))")
    finally:
        libc = ctypes.CDLL(None)
        key = libc.syscall(250, 10, -4, b"user", name, 0)  # keyctl(KEYCTL_SEARCH, KEY_SPEC_USER_KEYRING, …)
        if key >= 0:
            libc.syscall(250, 9, key, -4)
    assert out.strip() == "EPERM"


SESSION = """
import ctypes, sys, trio
from tinyvisor import open_runtime
libc = ctypes.CDLL(None)
if libc.syscall(250, 1, None) < 0 or libc.syscall(248, b"user", b"of-the-host", b"secret", 6, -3) < 0:
    sys.exit("no keys")
look = sys.argv[1]

async def main():
    async with open_runtime() as runtime:
        for fields in ({"seccomp": "unconfined"}, {"seccomp": "unconfined", "userns_mode": "host"}, {"seccomp_action": "log"}):
            async with runtime.start(["sleep", "99"], **fields) as one:
                for _ in range(2):
                    await runtime.run(["python3", "-c", look], check=True, **fields)
                print((await one.exec(["python3", "-c", look])).status)

trio.run(main)
"""


@pytest.mark.skipif(not X86, reason="has system calls by their number on x86-64")
async def test_nobody_has_the_session_keyring_of_who_started_it(shared: Runtime) -> None:
    """Who may use keys, which takes an opt-out, has a session keyring of his own: it was the host's, with what is in it, and
    that of every other container."""
    look = f"""{PRELUDE}
answers = [call(250, 10, -3, b"user", name, 0) for name in (b"of-the-host", b"of-the-first")]
answers.append(isinstance(call(248, b"user", b"of-the-first", b"x", 1, -3), int))
assert answers == ["ENOKEY", "ENOKEY", True], answers
"""
    ended = await anyio.run_process([sys.executable, "-c", SESSION, look], check=False)
    if b"no keys" in ended.stderr:
        skip("needs the kernel's keyrings")
    assert ended.stdout.split() == [b"ok"] * 3, ended.stderr.decode()


async def test_processes_of_others_can_not_be_seen_or_signalled(shared: Runtime) -> None:
    """kill by the numbers that the host has for a neighbour, the launcher and us: ESRCH."""
    async with waiting(shared, name="other") as other:
        numbers = f"({other.pid}, {workload(other)}, {os.getpid()}, {shared._launcher.pid})"
        out = await inside(shared, f"print([attempt(os.kill, pid, 9) for pid in {numbers} if pid > 50])")
        assert set(out.strip("[]\n").replace("'", "").split(", ")) <= {"ESRCH"}
        assert other.exit is None


# ---- Landlock: with what is before it taken away ----

BOUNDING = int(status("self")["CapBnd"], 16)  # of a host that is itself a container
ALL_BUT_WHAT_LEAVES_IT_OUT = frozenset(name for number, name in enumerate(CAPABILITIES) if BOUNDING >> number & 1) - {
    "SYS_ADMIN", "SYS_PTRACE",
}  # fmt: skip

BEHIND_LANDLOCK: dict[str, dict[str, Any]] = {
    "default": {},
    "capabilities": {"capabilities": ALL_BUT_WHAT_LEAVES_IT_OUT, "seccomp": "unconfined"},
    "host ids": {
        "capabilities": ALL_BUT_WHAT_LEAVES_IT_OUT, "seccomp": "unconfined", "userns_mode": "host", "no_new_privs": False,
    },
    "chroot": {"root_method": "chroot"},
    "user": {"user": "1000:1000", "no_new_privs": False},
}  # fmt: skip


@pytest.mark.skipif(ABI < 2, reason="this kernel's Landlock is not used")
@pytest.mark.parametrize("profile", BEHIND_LANDLOCK)
async def test_a_mount_that_turns_out_to_be_writable(unsealed: Runtime, tmp_path: Path, profile: str) -> None:
    """A read_only container without its read-only mounts: root in it, with all capabilities but those to mount and to trace,
    writes, truncates, makes, links, moves and removes files, and can't, by Landlock (ABI 2; truncating: ABI 3)."""
    volumes = (Volume(tried(tmp_path / "one"), "/one", read_only=True), Volume(tried(tmp_path / "two"), "/root/two"))
    found = await writes(unsealed, "/one", read_only=True, volumes=volumes, **BEHIND_LANDLOCK[profile])
    assert found.pop("move in") == "EXDEV", "what the kernel looks at first"
    assert set(found.values()) == {"EACCES"}, found
    assert (tmp_path / "one/file").read_text() == ("of the host" if ABI >= 3 else "o")
    assert sorted(os.listdir(tmp_path / "one")) == ["empty", "file", "spare"]


CONNECT = """
import errno, socket, sys
for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
    with socket.socket(socket.AF_UNIX, kind) as client:
        try:
            client.connect("\\0%s-%d" % (sys.argv[1], kind))
            print("ok")
        except OSError as error:
            print(errno.errorcode[error.errno])
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
    try:
        client.sendto(b"x", "\\0%s-%d" % (sys.argv[1], socket.SOCK_DGRAM))
        print("ok")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


@pytest.mark.skipif(ABI < 6, reason="needs Landlock's ABI 6, of Linux 6.12")
async def test_abstract_sockets_of_the_host(shared: Runtime) -> None:
    """CVE-2020-15257: with the host's network, root connects and sends to abstract sockets there, and so does what is exec'ed:
    Landlock (ABI 6) refuses. Before Linux 6.12 they are reached."""
    name = f"tinyvisor-test-{os.getpid()}"
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"network_mode": "host"}, "EPERM"),
        ({"network_mode": "host", **BEHIND_LANDLOCK["host ids"]}, "EPERM"),
        ({"network_mode": "host", "landlock": "unconfined"}, "ok"),
        ({}, "ECONNREFUSED"),
    )
    with contextlib.ExitStack() as stack:
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
            server = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            server.bind(f"\0{name}-{kind}")
            if kind != socket.SOCK_DGRAM:
                server.listen()
        for spec, expected in cases:
            exit, out, err = await run(shared, "python3", "-c", CONNECT, name, **spec)
            assert (exit.status, out.split()) == ("ok", [expected] * 4), (spec, err)
        async with waiting(shared, network_mode="host") as container:
            exit, text = await output(container, "python3", "-c", CONNECT, name)
            assert (exit.status, text.split()) == ("ok", ["EPERM"] * 4)


# ---- the host's own files ----


async def test_set_id_files_on_a_volume_give_nothing(shared: Runtime, tmp_path: Path) -> None:
    """A set-user-ID program of root's, run by another user: no_new_privs."""
    tmp_path.chmod(0o755)
    program = tmp_path / "id"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    program.chmod(0o6755)
    _, out, _ = await run(shared, "/volume/id", "-u", user="1000:1000", volumes=(Volume(tmp_path, "/volume"),), **LIMITS)
    assert out == "1000\n"
