"""seccomp in containers: what the kernel says to root inside, under the default profile, under one of one's own, and under none,
which shows that the calls would have been possible."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.kernel.helpers import BOUND, ON_TRIO, python, read_until, run, shell, skip, status, waiting, workload
from tests.kernel.test_attacks import PRELUDE
from tinyvisor.errors import SpecError
from tinyvisor.runtime import PIPE, Runtime
from tinyvisor.runtime.syscall_numbers import NUMBERS
from tinyvisor.spec import DEFAULT_NAMESPACES, Spec, Volume

pytestmark = [pytest.mark.kernel, pytest.mark.anyio, ON_TRIO]

LIMITS: dict[str, Any] = {"pids_limit": 64, "mem_limit": 1 << 30}
NUMBER = NUMBERS.get(os.uname().machine, NUMBERS["x86_64"])
X86 = os.uname().machine == "x86_64"
NEW_NAMESPACES = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)

# Name, arguments, what happens under no filter: an errno, or None for success. On thread keyrings, so that nothing stays.
CALLS: tuple[tuple[str, str, str | None], ...] = (
    ("keyctl", "0, -1, 1", None),
    ("add_key", "b'user', b'tinyvisor', b'x', 1, -1", None),
    ("request_key", "b'user', b'tinyvisor-none', 0, 0", "ENOKEY"),
    ("userfaultfd", "1", None),
    ("unshare", "0", None),
    ("setns", "-1, 0", "EBADF"),
    ("open_tree", "-100, b'/', 0", None),
    ("mount_setattr", "-100, b'/', 0, 0, 0", "EINVAL"),
    ("clone3", "0, 0", "EINVAL"),
    ("personality", "0x40000", None),
    ("personality", "0x40000 | 1 << 32", None),
    ("ioctl", "0, 0x5412, b'x'", "ENOTTY"),
    ("ioctl", "0, 0x5412 | 1 << 32, b'x'", "ENOTTY"),
    ("ioctl", "0, 0x5412 | 0xffffffff << 32, b'x'", "ENOTTY"),
    ("ioctl", "0, 0x541c | 1 << 63, b'x'", "ENOTTY"),
    ("fanotify_init", "0x200, 0", None),
)


async def inside(runtime: Runtime, code: str, **spec: Any) -> str:
    return await python(runtime, PRELUDE + code, **(LIMITS | spec))


async def answers(runtime: Runtime, calls: list[tuple[str, str]], **spec: Any) -> list[str]:
    """Of each call an errno's name, or "ok"."""
    lines = [f"print(next(iter({{call({NUMBER[name]}, {arguments})}})))" for name, arguments in calls]
    found = (await inside(runtime, "\n".join(lines), **spec)).split()
    return ["ok" if word.isdigit() else word for word in found]


async def test_refused_calls(shared: Runtime) -> None:
    found = await answers(shared, [(name, arguments) for name, arguments, _ in CALLS])
    assert found == ["ENOSYS" if name == "clone3" else "EPERM" for name, _, _ in CALLS]


async def test_without_a_filter_they_are_possible(shared: Runtime) -> None:
    found = await answers(shared, [(name, arguments) for name, arguments, _ in CALLS], seccomp="unconfined")
    for (name, arguments, otherwise), answer in zip(CALLS, found, strict=True):
        assert answer in (otherwise or "ok", "ENOSYS"), (name, arguments)  # ENOSYS: this kernel was built without
    assert found.count("ENOSYS") <= 2


@pytest.mark.parametrize("seccomp", ["default", "unconfined"])
async def test_calls_that_the_kernel_may_lack(shared: Runtime, seccomp: str) -> None:
    """Under no filter they give what a kernel gives that has them, or lacks them; under the filter always the same."""
    calls = [("io_uring_setup", "1, bytes(120)"), ("bpf", "-1, 0, 0"), ("perf_event_open", "0, 0, -1, -1, 0")]
    calls += [("socket", f"{family}, 5, 0") for family in ("38", "38 | 1 << 32")] + [("socket", "40, 1, 0")]
    found = await answers(shared, calls, seccomp=seccomp)
    if seccomp == "default":
        assert found == ["EPERM"] * 3 + ["EAFNOSUPPORT"] * 3
    else:
        assert found[0] in ("ok", "ENOSYS", "EPERM")
        assert set(found[3:]) <= {"ok", "EAFNOSUPPORT"}


@pytest.mark.parametrize("user", [None, "1000:1000"])
async def test_no_new_namespace_by_clone(shared: Runtime, user: str | None) -> None:
    calls = [("clone", f"{flag | high | 17}, 0, 0, 0, 0") for flag in NEW_NAMESPACES for high in (0, 1 << 32, 1 << 63)]
    calls += [("unshare", f"{flag}") for flag in (*NEW_NAMESPACES, 0x80)]
    assert set(await answers(shared, calls, user=user)) == {"EPERM"}


@pytest.mark.parametrize("family", ["AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"])
async def test_ordinary_sockets(shared: Runtime, family: str) -> None:
    kind = "SOCK_RAW" if family == "AF_NETLINK" else "SOCK_STREAM"
    out = await inside(shared, f"import socket\nprint(socket.socket(socket.{family}, socket.{kind}).family)")
    assert int(out) > 0


async def test_the_hosts_uevents_are_not_heard(shared: Runtime) -> None:
    """The kernel tells every network namespace of its own user namespace of each device of the host, and asks for no capability
    (lib/kobject_uevent.c)."""
    out = await inside(shared, "import socket\nprint(attempt(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, 15))")
    assert out == "EAFNOSUPPORT\n"


CODE = """
import mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write({code!r})
enter = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
child = os.fork()
if child == 0:
    os._exit(enter() & 127)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(call({x32}), call({x32} | 1 << 31))
"""
GETPID_BY_INT80 = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"  # mov $20, %eax; int $0x80; ret


@pytest.mark.skipif(not X86, reason="int 0x80 and x32 are x86-64's")
async def test_the_other_abis(shared: Runtime) -> None:
    code = CODE.format(code=GETPID_BY_INT80, x32=0x40000000 | 39)
    refused = (await inside(shared, code)).split()
    possible = (await inside(shared, code, seccomp="unconfined")).split()
    if possible[0] == str(-signal.SIGSEGV):
        assert refused[0] == possible[0], "this kernel has no 32-bit calls"
    else:
        assert int(possible[0]) > 0
        assert refused[0] == str(-signal.SIGSYS)
    assert refused[1:] == ["ENOSYS", "ENOSYS"]


async def test_typing_into_ones_own_terminal(shared: Runtime) -> None:
    code = f"""
for request in (0x5412, 0x5412 | 1 << 32, 0x5412 | 7 << 40, 0x541c):
    print(call({NUMBER["ioctl"]}, 0, request, b"x"))
print(call({NUMBER["ioctl"]}, 0, 0x5413 | 1 << 32, bytes(8)))
"""
    async with shared.start(Spec(command=("python3", "-c", PRELUDE + code), name="case", tty=True, **LIMITS)) as container:
        assert container.terminal is not None
        out = b""
        with anyio.fail_after(BOUND):
            while out.count(b"\n") < 5:
                await anyio.wait_readable(container.terminal)
                out += os.read(container.terminal, 4096)
    assert out.split() == [b"EPERM"] * 4 + [b"0"], "the window's size is still told"


# ---- how it is installed ----


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"no_new_privs": False}, {"user": "1000:1000"}, {"user": "1000:1000", "no_new_privs": False},
        {"capabilities": {"NET_BIND_SERVICE"}, "user": "1000:1000", "no_new_privs": False},
        {"namespaces": DEFAULT_NAMESPACES | {"user"}}, {"namespaces": DEFAULT_NAMESPACES | {"user"}, "no_new_privs": False},
        {"namespaces": DEFAULT_NAMESPACES | {"time"}}, {"root_method": "chroot", "working_dir": "/tmp"}, {"tty": False},
    ],
    ids=lambda fields: str({name: value if name != "namespaces" else sorted(value) for name, value in fields.items()}),
)  # fmt: skip
async def test_every_process_inside_is_filtered(shared: Runtime, fields: dict[str, Any]) -> None:
    _, out, err = await shell(shared, "grep -E '^(Seccomp|NoNewPrivs|CapEff)' /proc/self/status", **fields)
    found = dict(line.split(":\t") for line in out.splitlines())
    assert (found["Seccomp"], found["NoNewPrivs"]) == ("2", str(int(fields.get("no_new_privs", True)))), err
    assert found.get("Seccomp_filters", "1") == "1"
    assert int(found["CapEff"], 16) == (1 << 10 if "capabilities" in fields else 0)


async def test_unconfined_means_none_and_init_has_none(shared: Runtime) -> None:
    async with waiting(shared, seccomp="unconfined") as container:
        assert status(workload(container))["Seccomp"] == "0"
    async with waiting(shared) as container:
        assert status(workload(container))["Seccomp"] == "2"
        assert status(container.pid)["Seccomp"] == "0", "it reaps and forwards, and runs nothing of the container's"
    assert status(shared._launcher.pid)["Seccomp"] == "0"


@pytest.mark.parametrize("seccomp, mode", [("default", "2"), ("unconfined", "0")])
async def test_one_more_process_in_a_container_is_filtered_likewise(shared: Runtime, seccomp: str, mode: str) -> None:
    async with waiting(shared, seccomp=seccomp) as container:
        async with container.open_exec(["grep", "Seccomp:", "/proc/self/status"], stdout=PIPE) as process:
            assert (await read_until(process.stdout, "\n")).split() == ["Seccomp:", mode]


@pytest.mark.parametrize("no_new_privs", [True, False])
async def test_containers_made_ahead_are_filtered(shared: Runtime, tmp_path: Path, no_new_privs: bool) -> None:
    """Only once they have their command: a profile need not allow what waiting for it takes."""
    names = ["recvmsg", "poll", "ppoll", "madvise", "openat2"]
    path = profile(tmp_path, {"names": names, "action": "SCMP_ACT_KILL_PROCESS"})
    for seccomp in ("default", path):
        with anyio.fail_after(BOUND):
            async with shared.pool(size=2, seccomp=seccomp, no_new_privs=no_new_privs) as pool:
                for _ in range(4):
                    result = await pool.run(["grep", "Seccomp:", "/proc/self/status"], capture_stdout=True)
                    assert result.stdout == b"Seccomp:\t2\n"


async def test_it_can_not_be_taken_off(shared: Runtime) -> None:
    code = f"""
print(call({NUMBER["prctl"]}, 22, 0), call({NUMBER["prctl"]}, 22, 1 << 32))
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))
allow = Program(1, struct.pack("=HBBI", 6, 0, 0, 0x7fff0000))
print(libc.syscall({NUMBER["seccomp"]}, 1, 0, ctypes.byref(allow)))
print(call({NUMBER["keyctl"]}, 0, -1, 1), call({NUMBER["unshare"]}, 0))
"""
    assert (await inside(shared, code)).split() == ["EINVAL", "EINVAL", "0", "EPERM", "EPERM"]


SYSLOG = pytest.param("SYSLOG", "syslog", marks=pytest.mark.hostroot)  # whose log it is


@pytest.mark.parametrize("capability, call", [("SYS_ADMIN", "unshare"), ("SYS_CHROOT", "chroot"), SYSLOG])
async def test_capabilities_that_are_kept_widen_it(shared: Runtime, capability: str, call: str) -> None:
    calls = [(call, {"unshare": "0x4000000", "chroot": "b'/tmp'", "syslog": "10, 0, 0"}[call])]
    mode = "host" if call == "syslog" else "auto"  # the kernel's log is the host's
    assert await answers(shared, calls, capabilities={capability}, userns_mode=mode) == ["ok"]
    assert await answers(shared, calls, capabilities={"KILL"}, userns_mode=mode) == ["EPERM"]
    assert await answers(shared, calls, capabilities={capability}, seccomp="unconfined", userns_mode=mode) == ["ok"]


# ---- profiles of one's own ----


def profile(directory: Path, *rules: dict[str, Any], default: str = "SCMP_ACT_ALLOW", **more: Any) -> Path:
    path = directory / "profile.json"
    path.write_text(json.dumps({"defaultAction": default, "syscalls": rules, **more}))
    return path


@pytest.mark.parametrize("action", ["SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL", "SCMP_ACT_TRAP"])
async def test_a_profile_that_kills(shared: Runtime, tmp_path: Path, action: str) -> None:
    path = profile(tmp_path, {"names": ["mkdir", "mkdirat"], "action": action})
    exit, _, _ = await run(shared, "mkdir", "/tmp/x", seccomp=path)
    assert (exit.status, exit.signal) == ("seccomp", signal.SIGSYS)


@pytest.mark.parametrize("action, answer", [("SCMP_ACT_LOG", "ok"), ("SCMP_ACT_TRACE", "ENOSYS"), ("SCMP_ACT_ALLOW", "ok")])
async def test_a_profile_that_does_not(shared: Runtime, tmp_path: Path, action: str, answer: str) -> None:
    default = "SCMP_ACT_ALLOW" if action != "SCMP_ACT_ALLOW" else "SCMP_ACT_LOG"
    path = profile(tmp_path, {"names": ["sethostname", "personality"], "action": action}, default=default)
    assert await answers(shared, [("personality", "0xffffffff")], seccomp=path) == [answer]


async def test_a_profile_that_was_changed(shared: Runtime, tmp_path: Path) -> None:
    """The same file, the same shape of container: the filter is what the file says now."""
    for number in (errno.EOWNERDEAD, errno.ENOTUNIQ, errno.EOWNERDEAD):
        path = profile(tmp_path, {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": number})
        assert await answers(shared, [("personality", "0xffffffff")], seccomp=path) == [errno.errorcode[number]]
    path.unlink()
    with pytest.raises(SpecError, match=r"security_opt: .*: No such file or directory"):
        await run(shared, "true", seccomp=path)


@pytest.mark.parametrize("name", ["hole", "a-hole-in-it"])
async def test_numbers_of_a_filter_are_never_taken_for_a_name(shared: Runtime, tmp_path: Path, name: str) -> None:
    """A plan that is kept for later has a hole where the name goes, which looks like this number."""
    equal = {"index": 0, "value": 0xF7F7F7F7F7F7F7F7, "op": "SCMP_CMP_EQ"}
    path = profile(tmp_path, {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 76, "args": [equal]})
    for _ in range(2):
        calls = [("personality", f"{0xF7F7F7F7F7F7F7F7 - (1 << 64)}"), ("personality", "0xffffffff")]
        assert await answers(shared, calls, seccomp=path, name=name) == [errno.errorcode[76], "ok"]


async def test_conditions_of_64_bits(shared: Runtime, tmp_path: Path) -> None:
    above = {"index": 0, "value": 0x1FFFFFFFF, "op": "SCMP_CMP_GT"}
    path = profile(tmp_path, {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 76, "args": [above]})
    calls = [("personality", f"{word:#x}") for word in (0xFFFFFFFF, 0x1FFFFFFFF, 0x200000000, 0x2FFFFFFFF, -1)]
    assert await answers(shared, calls, seccomp=path) == ["ok", "ok", *[errno.errorcode[76]] * 3]


# ---- what must go on working ----


async def test_programs_that_do_a_bit_of_everything(shared: Runtime) -> None:
    out = await python(
        shared,
        """
import asyncio, concurrent.futures, multiprocessing, os, signal, socket, sqlite3, subprocess, tempfile, threading
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    print(sum(pool.map(lambda n: n * n, range(10))))
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(abs, [-1, -2]))
print(subprocess.run(["bash", "-c", "echo $((6*7)) | cat; trap 'echo usr1' USR1; kill -USR1 $$; sleep 0.01 & wait"],
      capture_output=True, text=True).stdout.split())
async def main():
    server = await asyncio.start_server(lambda r, w: (w.write(b"hello\\n"), w.close()), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    print(await reader.read())
    process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    print((await process.communicate(b"x"))[0])
asyncio.run(main())
with tempfile.TemporaryDirectory() as directory:
    database = sqlite3.connect(f"{directory}/x.db")
    database.execute("create table t (a)")
    print(database.execute("select count(*) from t").fetchall())
print(socket.getaddrinfo("localhost", 80)[0][4][1], socket.if_nameindex()[0][1], os.sched_getaffinity(0) != set())
""",
        **LIMITS,
    )
    assert out.splitlines() == [
        "285", "[1, 2]", "['42', 'usr1']", "b'hello\\n'", "b'x'", "[(0,)]", "80 lo True",
    ]  # fmt: skip


async def test_git_and_a_compiler(shared: Runtime) -> None:
    if shutil.which("git") is None:
        skip("needs git: apt install git")
    script = """
set -e
export HOME=/tmp GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
cd /tmp && git init -q one && cd one && echo x >file && git add . && git commit -qm first
git clone -q /tmp/one /tmp/two && git -C /tmp/two log --oneline | wc -l
if command -v gcc >/dev/null && [ -e /usr/include/stdio.h ]; then
    echo 'int puts(const char *); int main(void) { return puts("hello") < 0; }' >x.c && gcc -O2 x.c -o x && ./x
else
    echo hello
fi
"""
    exit, out, err = await shell(shared, script, **LIMITS)
    assert (exit.returncode, out) == (0, "1\nhello\n"), err


async def test_an_image_with_another_libc(shared: Runtime, busybox: Path, tmp_path: Path) -> None:
    script = (
        "mkdir /tmp/a && echo x >/tmp/a/b && cat /tmp/a/b | head -n 1 && ls -l /tmp/a >/dev/null && df / >/dev/null && sleep 0"
    )
    exit, out, err = await shell(shared, script, rootfs=busybox, volumes=(Volume(tmp_path, "/volume"),))
    assert (exit.returncode, out) == (0, "x\n"), err
