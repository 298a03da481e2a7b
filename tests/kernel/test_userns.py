"""User namespaces: whose a container's ids are, on both sides; whose files it makes; and that its root is nobody outside."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.kernel.helpers import BOUND, ON_TRIO, namespace, python, read_until, run, shell, skip, status, waiting, workload
from tests.kernel.test_attacks import PRELUDE
from tinyvisor.errors import HostError, SpecError
from tinyvisor.places import run_directory
from tinyvisor.runtime import Runtime, open_runtime
from tinyvisor.runtime.idmap import IDS, Ranges
from tinyvisor.runtime.leases import Leases, read_ranges
from tinyvisor.spec import CAPABILITIES, DEFAULT_NAMESPACES, Spec, Tmpfs, Volume

pytestmark = [pytest.mark.kernel, pytest.mark.hostroot, pytest.mark.anyio, ON_TRIO]

LIMITS: dict[str, Any] = {"pids_limit": 64, "mem_limit": 256 << 20}
ALL: dict[str, Any] = {"capabilities": frozenset(CAPABILITIES), "seccomp": "unconfined", **LIMITS}
FILES = {"mount": "mnt"} | {name: name for name in ("uts", "ipc", "net", "cgroup")}
GET_OWNER = 0xB701  # linux/nsfs.h NS_GET_USERNS


def base(pid: int) -> int:
    """Where the ids of a process's user namespace start on the host."""
    inside, outside, count = map(int, Path(f"/proc/{pid}/uid_map").read_text().split())
    assert (inside, count) == (0, IDS)
    assert Path(f"/proc/{pid}/gid_map").read_text().split()[::2] == ["0", str(IDS)]
    return outside


def owner(pid: int, file: str) -> int:
    """The user namespace that a process's namespace belongs to."""
    fd = os.open(f"/proc/{pid}/ns/{file}", os.O_RDONLY)
    try:
        userns = fcntl.ioctl(fd, GET_OWNER)
    finally:
        os.close(fd)
    try:
        return os.fstat(userns).st_ino
    finally:
        os.close(userns)


@pytest.fixture
def on_ext4(tmp_path: Path) -> Path:
    """A directory on a file system that can be idmapped."""
    tmp_path.chmod(0o755)
    return tmp_path


# ---- ids and namespaces ----


@pytest.mark.parametrize("method", ["pivot", "chroot"])
async def test_namespaces_belong_to_the_user_namespace(shared: Runtime, method: str) -> None:
    async with waiting(shared, root_method=method, capabilities={"CHOWN"}) as container:
        pid, init = workload(container), container.pid
        user, host = namespace(pid, "user"), namespace("self", "user")
        assert user != host == namespace(init, "user")
        assert {name: owner(pid, file) for name, file in FILES.items()} == dict.fromkeys(FILES, user) | {"mount": host}
        assert owner(pid, "pid") == host, "made before; nothing of it is the container's to change"
        assert {name for name, file in FILES.items() if namespace(init, file) != namespace(pid, file)} == {"cgroup"}
        first = base(pid)
        assert container.ids is not None
        assert first == container.ids.map.uid(0)
        assert status(pid)["Uid"].split() == status(pid)["Gid"].split() == [str(first)] * 4
        assert status(init)["Uid"].split() == ["0"] * 4, "out of reach for whom it serves"


async def test_mounts_are_the_user_namespaces_where_its_root_may_mount(shared: Runtime) -> None:
    """Or where there is nothing else by which to find it, for an exec."""
    only: dict[str, Any] = {"capabilities": {"CHOWN"}, "namespaces": {"pid", "mount", "user"}}
    for fields in ({"capabilities": {"SYS_ADMIN"}}, only):
        async with waiting(shared, **fields) as container:
            assert owner(workload(container), "mnt") == namespace(workload(container), "user") != namespace("self", "user")
            script = f'read inside outside count < /proc/self/uid_map; test "$outside" = {base(workload(container))}'
            assert (await container.exec(["sh", "-c", script])).status == "ok"


async def test_who_can_leave_nothing_in_it_enters_a_user_namespace_that_is_kept(shared: Runtime) -> None:
    """The next container with these ids does, and so does an exec; what belongs to it is the cgroup namespace alone."""
    found = []
    specs: list[dict[str, Any]] = [{}, {}, {"user": "0"}, {"capabilities": {"CHOWN"}}, {"seccomp": "unconfined"}]
    for fields in specs:
        async with waiting(shared, **fields) as container:
            pid = workload(container)
            found.append((base(pid), namespace(pid, "user")))
            if not fields:
                owners = {name: owner(pid, file) for name, file in FILES.items()}
                assert owners == dict.fromkeys(FILES, namespace("self", "user")) | {"cgroup": namespace(pid, "user")}
                script = f'test "$(readlink /proc/self/ns/user)" = "user:[{namespace(pid, "user")}]"'
                assert (await container.exec(["sh", "-c", script])).status == "ok"
                assert int(status(pid)["CapBnd"], 16) == 0
    assert len({first for first, _ in found}) == 1
    users = [user for _, user in found]
    assert users[0] == users[1] == users[2], "kept"
    assert len({*users}) == 3, "their own"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="has system calls by their number on x86-64")
async def test_what_the_kept_one_could_be_left_in_is_refused(shared: Runtime) -> None:
    """Keys, sysctls, namespaces below it, to make it deny setgroups for good, and a map of projects, which takes no capability;
    signals that wait end with their process."""
    code = (
        PRELUDE
        + """
print(call(248, b"user", b"left", b"x", 1, -4), call(250, 0, -4, 1), call(249, b"user", b"left", 0, -4))
print(call(272, 0x10000000), call(56, 0x10000000 | 17, 0, 0, 0, 0))
for path in ("/proc/self/setgroups", "/proc/self/uid_map", "/proc/sys/user/max_net_namespaces", "/proc/self/projid_map"):
    fd = attempt(os.open, path, os.O_WRONLY)
    print(fd if isinstance(fd, str) else attempt(os.write, fd, b"0 4096 77" if "proj" in path else b"deny"))
"""
    )
    out = await python(shared, code)
    refused = {"EPERM", "EACCES", "ENOSYS", "EROFS", "ENOENT"}
    assert {word for line in out.splitlines() for word in line.split()} <= refused, out


async def test_host_and_namespaces_say_the_same(shared: Runtime) -> None:
    for fields in ({"userns_mode": "host"}, {"namespaces": DEFAULT_NAMESPACES - {"user"}}):
        async with waiting(shared, **fields) as container:
            assert namespace(workload(container), "user") == namespace("self", "user")
            assert container.ids is None
            assert {owner(workload(container), file) for file in FILES.values()} == {namespace("self", "user")}


async def test_running_containers_share_no_ids(shared: Runtime) -> None:
    async with contextlib.AsyncExitStack() as stack:
        other = await stack.enter_async_context(open_runtime(warm=0))
        containers = [
            await stack.enter_async_context(waiting(runtime, name=f"one{number}"))
            for runtime in (shared, other)
            for number in range(3)
        ]
        starts = [base(workload(container)) for container in containers]
        assert len(set(starts)) == 6
        assert all(start % 1 == 0 and abs(start - more) >= IDS for start in starts for more in starts if start != more)
    async with waiting(shared) as container:
        assert base(workload(container)) in starts[:3], "what was given back is used again"


async def test_what_is_kept_for_ranges_does_not_grow(anyio_backend: str) -> None:
    def held() -> int:
        return sum(os.readlink(f"/proc/self/fd/{fd}").startswith("user:") for fd in os.listdir("/proc/self/fd") if _is_open(fd))

    before = held()
    async with open_runtime(warm=0) as runtime:
        true = Spec(command=("true",))
        for _ in range(5):
            assert (await runtime.run(true)).status == "ok"
        assert held() == before + 1
        async with runtime.map([true] * 20, concurrency=4) as results:
            assert {result.status async for result in results} == {"ok"}
        assert held() <= before + 4
        with pytest.raises(SpecError):
            await runtime.run(true.with_(user="nobody-here"))
        with anyio.move_on_after(0):
            await runtime.run(true)
        assert runtime._leases is not None
        assert len(runtime._leases._free) == len(runtime._leases._mine), "whatever came: all are given back"
    assert held() == before


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


async def test_why_none_can_be_made_is_said(anyio_backend: str) -> None:
    """By the number that its maker's system call gave, which is another process than the launcher."""
    async with open_runtime(warm=0) as runtime:
        inject = ("-e", "trace=unshare", "-e", "inject=unshare:error=ENOSPC")
        command = ["strace", "-f", "-o", "/dev/null", *inject, "-p", str(runtime._launcher.pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
            try:
                assert strace.stderr is not None
                assert "attached" in strace.stderr.readline()
                with pytest.raises(HostError, match="make a user namespace: No space left on device"), anyio.fail_after(BOUND):
                    await runtime.run(Spec(command=("true",)))
            finally:
                strace.terminate()
        assert (await runtime.run(Spec(command=("true",)))).status == "ok"


async def test_running_out(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = read_ranges()
    few = Ranges(((one[4000][0], IDS),), ((one[4000][1], IDS),), "a test")
    monkeypatch.setattr("tinyvisor.runtime.engine.read_ranges", lambda: few)
    async with open_runtime(warm=0) as runtime:
        async with waiting(runtime, name="first"):
            with pytest.raises(HostError, match=r"all 1 ranges of 65536 ids \(a test\) are in use.*userns_mode: host"):
                await runtime.run(Spec(command=("true",)))
            assert (await runtime.run(Spec(command=("true",), userns_mode="host"))).status == "ok"
        assert (await runtime.run(Spec(command=("true",)))).status == "ok"


SUPERVISOR = """
import anyio, sys
from tinyvisor.runtime import open_runtime
from tinyvisor.spec import Spec
async def main():
    async with open_runtime(warm=0) as runtime, runtime.start(Spec(command=("sleep", "1000"))) as container:
        print(container.ids.map.uid(0), container.pid, flush=True)
        await anyio.sleep_forever()
anyio.run(main, backend="trio")
"""


async def test_ranges_come_back_when_the_supervisor_is_killed(anyio_backend: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", SUPERVISOR], stdout=subprocess.PIPE, env=environment)
    try:
        assert process.stdout is not None
        start, _pid = map(int, process.stdout.readline().split())
        own = Ranges(((start, IDS),), ((start, IDS),), "a test")
        leases = Leases(run_directory(), own)
        with pytest.raises(HostError, match="in use"):
            leases.take()
        process.send_signal(signal.SIGKILL)
        with anyio.fail_after(BOUND):
            while True:  # the launcher ends last, and with it the lock
                with contextlib.suppress(HostError):
                    leases.take()
                    break
                await anyio.sleep(0.005)
        leases.close()
    finally:
        process.kill()
        process.communicate()


# ---- files ----


async def test_what_is_shown_of_the_host_is_roots(shared: Runtime) -> None:
    places = "/ /usr /usr/bin /etc /etc/passwd /dev /dev/null /dev/pts /dev/pts/ptmx /dev/shm /tmp /run /run/hosts /root /work/d"
    for user, working_dir in (None, "0:0"), ("5:6", "5:6"):
        _, out, err = await shell(shared, f"stat -c %u:%g {places}", working_dir="/work/d", user=user)
        assert out.split() == ["0:0"] * (len(places.split()) - 1) + [working_dir], err


async def test_owners_in_a_volume_are_the_same_on_both_sides(shared: Runtime, on_ext4: Path) -> None:
    volume = on_ext4 / "volume"
    volume.mkdir()
    volume.chmod(0o777)
    for name, ids in ("root", (0, 0)), ("user", (1234, 5678)), ("beyond", (70000, 70000)):
        (volume / name).write_text(name)
        os.chown(volume / name, *ids)
        (volume / name).chmod(0o600)
    volumes = (Volume(volume, "/volume"),)
    look = "cd /volume; stat -c %n:%u:%g root user beyond; cat root; cat user; cat beyond; touch new-$(id -u); mkdir made/dir"
    _, out, err = await shell(shared, look, volumes=volumes)
    assert out.split() == ["root:0:0", "user:1234:5678", "beyond:65534:65534", "root"]
    assert err.count("Permission denied") == 2, "root without capabilities, as ever"
    _, out, _ = await shell(shared, look, volumes=volumes, user="1234:5678")
    assert out.split()[3:] == ["user"]
    _, out, _ = await shell(shared, look, volumes=volumes, capabilities={"DAC_OVERRIDE"})
    assert out.split()[3:] == ["rootuser"], "its root has no power over what is not mapped"
    found = {name: ((volume / name).stat().st_uid, (volume / name).stat().st_gid) for name in ("new-0", "new-1234")}
    assert found == {"new-0": (0, 0), "new-1234": (1234, 5678)}
    _, _, err = await shell(shared, "chown 7:8 /volume/root && chown 70000 /volume/root", volumes=volumes, capabilities={"CHOWN"})
    assert ((volume / "root").stat().st_uid, "Invalid argument" in err) == (7, True)


async def test_places_to_mount_on_are_made_as_roots(shared: Runtime, on_ext4: Path) -> None:
    for name in ("outer", "inner"):
        (on_ext4 / name).mkdir()
    volumes = (Volume(on_ext4 / "outer", "/outer"), Volume(on_ext4 / "inner", "/outer/a/b"))
    _, out, _ = await shell(shared, "stat -c %u:%g /outer/a /outer/a/b", volumes=volumes, tmpfs=(Tmpfs("/outer/t"),))
    assert out.split() == ["0:0", "0:0"]
    assert [(on_ext4 / "outer" / name).stat().st_uid for name in ("a", "a/b", "t")] == [0, 0, 0]


@pytest.mark.parametrize("read_only", [False, True])
async def test_a_given_root_keeps_its_owners(shared: Runtime, busybox: Path, read_only: bool) -> None:
    (busybox / "etc/owned").write_text("mine")
    os.chown(busybox / "etc/owned", 1234, 5678)
    (busybox / "etc/owned").chmod(0o600)
    spec: dict[str, Any] = {"rootfs": busybox, "read_only": read_only}
    _, out, _ = await shell(shared, "stat -c %u:%g / /bin /etc /etc/owned", **spec)
    assert out.split() == ["0:0", "0:0", "0:0", "1234:5678"]
    _, out, _ = await shell(shared, "cat /etc/owned", user="1234", **spec)
    assert out == "mine"
    if not read_only:
        script = "echo yours > /etc/owned; cat /etc/owned; stat -c %u:%g /etc/owned; rm /etc/owned; ls /etc"
        _, out, _ = await shell(shared, script, capabilities={"DAC_OVERRIDE"}, **spec)
        assert out.split()[:2] == ["yours", "1234:5678"]
        assert "owned" not in out.split()[2:]
    assert (busybox / "etc/owned").read_text() == "mine"


async def test_a_set_id_program_of_a_volume_is_that_users(shared: Runtime, on_ext4: Path) -> None:
    """It gives ids of the container's, and made inside it has its maker's on the host, as ever with a volume."""
    launcher = Path(str(sys.modules["tinyvisor"].__path__[0]), "_bin/tinyvisor-launcher")
    program = on_ext4 / "program"
    shutil.copy(launcher, program)
    program.chmod(0o4755)
    spec: dict[str, Any] = {"volumes": (Volume(on_ext4, "/v"),), "user": "1000:1000"}
    for no_new_privs, inside in (True, 1000), (False, 0):
        async with waiting(shared, "/v/program", "init", "--", "/bin/cat", no_new_privs=no_new_privs, **spec) as container:
            assert status(workload(container))["Uid"].split()[1] == str(base(workload(container)) + inside)
    await shell(shared, "cp /bin/true /v/made; chmod 4755 /v/made", **spec | {"user": None})
    made = (on_ext4 / "made").stat()
    assert (made.st_uid, stat.S_IMODE(made.st_mode)) == (0, 0o4755)


async def test_a_file_system_that_can_not_be_idmapped_is_named(shared: Runtime, busybox: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for fields in ({"volumes": (Volume(Path("/proc/sys/kernel"), "/v"),)}, {"rootfs": Path("/proc/sys")}):
        with pytest.raises(HostError, match=r'case: /proc/sys.* can\'t be idmapped: proc on Linux .*use "userns_mode: host"'):
            await shell(shared, "true", **fields)
    assert (shared.containers, len(os.listdir("/proc/self/fd"))) == ({}, len(before))
    _, out, _ = await shell(shared, "ls /v", volumes=(Volume(Path("/proc/sys/kernel"), "/v", True),), userns_mode="host")
    assert "core_pattern" in out


async def test_pipes_can_be_opened_anew(shared: Runtime) -> None:
    """By /dev/stdout and its like, as many programs and images do."""
    for fields in ({}, {"user": "1000:1000"}, {"user": "1000:1000", "userns_mode": "host"}):
        _, out, err = await shell(shared, "echo out > /dev/stdout; echo err > /dev/stderr", **fields)
        assert (out, err) == ("out\n", "err\n")


async def test_a_directory_that_several_runs_use(shared: Runtime) -> None:
    async with shared.working_directory(mode=0o777) as directory, waiting(shared):
        kinds: tuple[dict[str, Any], ...] = ({}, {"user": "7:8"}, {"userns_mode": "host"})
        for fields in kinds:
            script = "cat given; touch new-$(id -u); stat -c %n:%u:%g *"
            spec = Spec(command=("sh", "-c", script), **fields)
            result = await shared.run(spec, files={"given": b""}, working_directory=directory, capture_stdout=True)
            found = set((result.stdout or b"").decode().split())
            assert {"new-0:0:0"} <= found
        assert found == {"given:0:0", "new-0:0:0", "new-7:7:8"}


# ---- what comes later into a container ----


async def test_what_is_executed_in_it_has_its_ids(shared: Runtime) -> None:
    async with waiting(shared) as container:
        pid = workload(container)
        for user, inside in (None, 0), ("5:6", 5):
            fields: dict[str, Any] = {"user": user} if user else {}
            async with container.open_exec(["cat"], stdin=-1, **fields) as process:
                (own,) = _children(process.pid)
                for file in ("user", "mnt", "net", "pid", "ipc", "uts"):
                    assert namespace(own, file) == namespace(pid, file)
                assert owner(own, "cgroup") == namespace(pid, "user")
                assert status(own)["Uid"].split() == [str(base(pid) + inside)] * 4
                assert status(own)["CapPrm"] == "0" * 16
        with pytest.raises(SpecError, match="uid 70000 is not one of the container's"):
            await container.exec(["true"], user="70000")


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_containers_made_ahead_have_ids_of_their_own(shared: Runtime) -> None:
    command = ["sh", "-c", "cat /proc/self/uid_map; echo > /dev/stderr; stat -c %u ."]
    starts = set()
    async with waiting(shared) as running, shared.pool(user="5:6", size=3) as pool:
        with anyio.fail_after(BOUND):
            while pool.ready < 3:  # noqa: ASYNC110 - nobody tells us
                await anyio.sleep(0.001)
        for _ in range(3):
            result = await pool.run(command, capture_stdout=True, capture_stderr=True)
            assert (result.status, result.stderr) == ("ok", b"\n")
            starts.add(int((result.stdout or b"").split()[1]))
        assert base(workload(running)) not in starts


async def test_a_terminal_is_its_users(shared: Runtime) -> None:
    spec = Spec(command=("sh", "-c", "tty; stat -c %u:%g $(tty) /dev/console; echo ready; read x"), tty=True, user="5:6")
    async with shared.start(spec) as container:
        assert container.terminal is not None
        text = ""
        while "ready" not in text:
            await anyio.wait_readable(container.terminal)
            text += os.read(container.terminal, 4096).decode()
    assert text.split()[:3] == ["/dev/pts/0", "5:6", "5:6"]


# ---- keep-id ----


async def test_keep_id(shared: Runtime, on_ext4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Volumes are as they are, as Podman has it: the kept user's files are that user's, all others nobody's."""
    monkeypatch.delenv("SUDO_UID", raising=False)
    with pytest.raises(SpecError, match="userns_mode: keep-id keeps the user who calls sudo"):
        await shell(shared, "true", userns_mode="keep-id")
    monkeypatch.setenv("SUDO_UID", "1234")
    monkeypatch.setenv("SUDO_GID", "5678")
    (on_ext4 / "mine").write_text("")
    os.chown(on_ext4 / "mine", 1234, 5678)
    on_ext4.chmod(0o777)
    (on_ext4 / "roots").write_text("")
    volumes = (Volume(on_ext4, "/v"),)
    script = "id -u; id -g; stat -c %u:%g /v/mine /v/roots /usr /tmp; touch /v/new; echo ready; read x"
    async with waiting(
        shared, script="exec cat /proc/self/fd/0 & " + script, volumes=volumes, userns_mode="keep-id"
    ) as container:
        assert status(workload(container))["Uid"].split()[0] == "1234"
    _, out, _ = await shell(shared, script, volumes=volumes, userns_mode="keep-id")
    assert out.split()[:6] == ["1234", "5678", "1234:5678", "65534:65534", "0:0", "0:0"]
    assert ((on_ext4 / "new").stat().st_uid, (on_ext4 / "new").stat().st_gid) == (1234, 5678)
    _, out, _ = await shell(shared, "id -u; cat /proc/self/uid_map", userns_mode="keep-id", user="0")
    assert out.split()[0] == "0"
    assert out.split()[4:7] == ["1234", "1234", "1"]


# ---- what its root may not do, with all capabilities and no filter ----


async def test_its_capabilities_count_inside(shared: Runtime) -> None:
    """What they are for works, as far as it is the container's own."""
    out = await python(
        shared,
        PRELUDE
        + """
import socket
print(call(170, b"inside", 6), mount(b"none", b"/tmp", b"tmpfs"), mount(b"/usr", b"/opt", None, 4096))
print(attempt(socket.socket().bind, ("127.0.0.1", 80)))
print(attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()))
print(attempt(os.chown, "/root", 5, 6))
""",
        **ALL,
    )
    assert out.splitlines() == ["0 ok ok", "None", "None", "None"]
    assert os.uname().nodename != "inside"


OUTSIDE = """
for path in (
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/overcommit_memory", "/proc/sysrq-trigger",
    "/proc/sys/fs/suid_dumpable", "/proc/irq/default_smp_affinity",
):
    if os.path.exists(path):
        print("write", attempt(lambda: os.open(path, os.O_WRONLY)))
for name in ("mnt", "net", "pid", "ipc", "uts", "cgroup", "user"):
    fd = attempt(os.open, f"/proc/1/ns/{name}", os.O_RDONLY)
    print("init's", name, fd if isinstance(fd, str) else call(308, fd, 0))
for name in ("maps", "environ", "exe", "fd/3"):
    print("init's", name, attempt(os.open, f"/proc/1/{name}", os.O_RDONLY))
print("attach", call(101, 16, 1, 0, 0))
print("kill", attempt(os.kill, 1, 9))
print("limit", call(302, 1, 7, struct.pack("QQ", 0, 0), 0))
points = [line.split()[4] for line in open("/proc/self/mountinfo")]
for point in ("/usr", "/etc", "/dev", "/proc/sys"):
    print("writable", point, mount(None, point.encode(), None, 32 | 4096))
    print("attribute", point, call(442, -100, point.encode(), 0, struct.pack("=4Q", 0, 1, 0, 0), 32))
for point in points:
    if point != "/":
        print("umount", point, "EINVAL" if libc.umount2(point.encode(), 2) else "GONE")
for kind, data in ((b"cgroup", b"pids"), (b"cgroup", b"memory"), (b"cgroup2", None)):
    if mount(b"none", b"/mnt" if os.path.isdir("/mnt") else b"/opt", kind, 0, data) == "ok":
        here = "/mnt" if os.path.isdir("/mnt") else "/opt"
        for base, names, files in os.walk(here):
            print("cgroup", attempt(os.mkdir, base + "/x"), *{attempt(os.open, f"{base}/{f}", os.O_WRONLY) for f in files})
        libc.umount2(here.encode(), 2)
print("mknod", attempt(os.mknod, "/tmp/disk", 0o60600, os.makedev(254, 0)))
print("time", call(227, 0, bytes(16)))
print("module", call(175, bytes(16), 16, b""))
print("reboot", call(169, 0xfee1dead, 672274793, 0, 0))
print("nice", call(141, 0, 0, -10))
print("handle", call(304, -100, struct.pack("=Ii8s", 8, 1, bytes(8)), 0))
print("userns", call(272, 0x10000000))
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="has system calls by their number on x86-64")
@pytest.mark.parametrize("method", ["pivot", "chroot"])
@pytest.mark.parametrize("without", [(), ("SYS_ADMIN",)], ids=["", "may not mount"])
async def test_its_root_is_not_the_hosts(shared: Runtime, method: str, without: tuple[str, ...]) -> None:
    """With every capability: not the kernel's files, nor others' namespaces; no mount loses its lock; init can't be touched."""
    out = await python(
        shared, PRELUDE + OUTSIDE, root_method=method, **ALL | {"capabilities": frozenset(CAPABILITIES).difference(without)}
    )
    refused = {"EPERM", "EACCES", "EROFS", "EINVAL", "ENOENT", "EBUSY", "ESTALE", "ENOTDIR", "ENOSYS"}
    allowed = {"kill None"}  # it is PID 1: the kernel drops what it has no handler for
    wrong = [line for line in out.splitlines() if line not in allowed and not set(line.split()[1:]) & refused]
    assert wrong == [], out
    for word in ("write", "attach", "writable", "umount", "mknod", "userns"):
        assert word in out


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="has system calls by their number on x86-64")
async def test_mounts_of_the_host_are_locked_for_who_leaves_the_root(shared: Runtime) -> None:
    """Outside of the chroot the kernel gives a user namespace again, with every capability in it; and a copy of the mounts."""
    out = await python(
        shared,
        PRELUDE
        + """
top = os.open("/", os.O_RDONLY)
os.mkdir("/tmp/jail")
os.chroot("/tmp/jail")
os.fchdir(top)
for _ in range(9):
    os.chdir("..")
os.chroot(".")
print("new", call(272, 0x10020000))
points = [line.split()[4] for line in open("/container/proc/self/mountinfo")]
print(len(points) > 9, {call(166, point.encode(), 2) for point in points if point != "/"})
print({mount(None, f"/container{point}".encode(), None, 32 | 4096) for point in ("/usr", "/etc", "/dev", "/proc/sys")})
""",
        capabilities=frozenset(CAPABILITIES) - {"SYS_ADMIN"},
        seccomp="unconfined",
        **LIMITS,
    )
    assert out.splitlines() == ["new 0", "True {'EINVAL'}", "{'EPERM'}"]


async def test_a_neighbour_and_the_host_are_out_of_reach_of_all_capabilities(shared: Runtime, on_ext4: Path) -> None:
    """Even by a volume that both have: a process of another's ids is nobody's to signal or look into."""
    async with waiting(shared, name="neighbour", volumes=(Volume(on_ext4, "/v"),)) as neighbour:
        async with waiting(shared, name="attacker", volumes=(Volume(on_ext4, "/v"),), **ALL) as attacker:
            assert base(workload(neighbour)) != base(workload(attacker))
        assert neighbour.exit is None


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="has system calls by their number on x86-64")
async def test_keyrings_are_not_shared(shared: Runtime) -> None:
    """Root's keyrings on the host, and those of the container that had these ids before."""
    libc = ctypes.CDLL(None)
    name = f"tinyvisor-{os.getpid()}".encode()
    key = libc.syscall(248, b"user", name, b"secret", 6, -4)  # add_key to KEY_SPEC_USER_KEYRING
    if key < 0:
        skip("needs the kernel's keyrings")
    try:
        code = (
            PRELUDE + f"print(call(250, 10, -4, b'user', {name!r}, 0), isinstance(call(248, b'user', b'own', b'x', 1, -4), int))"
        )
        starts = []
        for _ in range(2):
            out = await python(shared, code + "\nprint(open('/proc/self/uid_map').read())", seccomp="unconfined", **LIMITS)
            starts.append(out.split()[3])
            assert out.split()[:2] == ["ENOKEY", "True"]
            look = PRELUDE + "print(call(250, 10, -4, b'user', b'own', 0))"
            assert (await python(shared, look, seccomp="unconfined", **LIMITS)) == "ENOKEY\n"
        assert len(set(starts)) == 1, "the same ids: it is the namespace that keeps them apart"
        assert libc.syscall(250, 10, -4, b"user", b"own", 0) < 0
    finally:
        libc.syscall(250, 9, key, -4)  # keyctl(KEYCTL_UNLINK)


async def test_pending_signals_are_counted_by_themselves(shared: Runtime) -> None:
    """Queued signals of a container's root use up nothing of the host's root, nor of a neighbour's."""
    code = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {40})
for _ in range(500):
    signal.pthread_kill(__import__("threading").get_ident(), 40)
print("ready", flush=True)
input()  # what says that we are up
input()
"""

    def queued(pid: int | str) -> int:
        return int(status(pid)["SigQ"].split("/")[0])

    before = queued("self")
    async with (
        waiting(shared, "python3", "-c", code, name="queues", **LIMITS) as container,
        waiting(shared, name="neighbour", **LIMITS) as neighbour,
    ):
        assert queued(workload(container)) >= 500
        assert queued(workload(neighbour)) < 100
        assert queued("self") < before + 100


async def test_limits_that_were_raised_hold(shared: Runtime) -> None:
    """Taken while there is the right to; a container can't do it for itself."""
    from tinyvisor.spec import Ulimit

    hard = int(_limit("nofile"))
    lower = int(status("self")["CapEff"], 16) >> 24 & 1  # CAP_SYS_RESOURCE, which root may lack
    spec: dict[str, Any] = {"ulimits": {"nofile": Ulimit(hard, hard)}, "oom_score_adj": -500 if lower else 500}
    async with waiting(shared, **spec) as container:
        assert Path(f"/proc/{workload(container)}/oom_score_adj").read_text() == f"{spec['oom_score_adj']}\n"
    _, out, err = await shell(shared, f"ulimit -Hn; ulimit -Hn {hard + 1} || echo no", **spec, capabilities={"SYS_RESOURCE"})
    assert out.split() == [str(hard), "no"], err


def _limit(name: str) -> str:
    import resource

    return str(resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))[1])


async def test_the_network_of_another_can_be_joined(shared: Runtime) -> None:
    async with waiting(shared, name="db") as provider:
        async with waiting(shared, name="web", network_mode="service:db") as container:
            assert namespace(workload(container), "net") == namespace(workload(provider), "net")
            assert namespace(workload(container), "user") != namespace(workload(provider), "user")
        exit, _, _ = await run(shared, "true", network_mode="service:db", name="web")
        assert exit.status == "ok"
        assert await read_until_ready(provider)


async def read_until_ready(container: Any) -> bool:
    await container.stdin.send(b"more\n")
    return await read_until(container.stdout, "more\n") == "more\n"
