"""What a container is, feature by feature: the kernel is asked, from inside and from outside, not the runtime."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import json
import lzma
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.kernel.helpers import (
    BOUND,
    ON_TRIO,
    cgroups,
    ids_of,
    namespace,
    python,
    read_until,
    run,
    shell,
    status,
    wait_for_the_end_of,
    waiting,
    workload,
)
from tinyvisor.errors import ContainerError, LauncherDied, LaunchError, SpecError, TinyvisorError
from tinyvisor.runtime import PIPE, STDOUT, Runtime, open_runtime
from tinyvisor.runtime.plan import capability_mask
from tinyvisor.spec import (
    DEFAULT_MASKED_PATHS,
    DEFAULT_NAMESPACES,
    DEFAULT_READONLY_PATHS,
    SERVICE_CAPABILITIES,
    Spec,
    Tmpfs,
    Ulimit,
    Volume,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = [pytest.mark.kernel, pytest.mark.anyio, ON_TRIO]

NOTHING = "0000000000000000"
FATAL = sorted(set(range(1, 65)) - {signal.SIGCHLD, signal.SIGCONT, *range(signal.SIGSTOP, signal.SIGTTOU + 1), 23, 28})
"""Signals whose default is the end: all but CHLD, CONT, STOP, TSTP, TTIN, TTOU, URG (23) and WINCH (28)."""


def mounts_of(mountinfo: str) -> dict[str, tuple[str, set[str]]]:
    """Mount point → (file system type, options of the mount)."""
    found = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        found[fields[4]] = (right.split()[0], set(fields[5].split(",")))
    return found


# ---- processes ----


async def test_the_workload_is_pid_2_below_init(shared: Runtime) -> None:
    async with waiting(shared, name="pid.one") as container:
        init, child = status(container.pid), status(workload(container))
        assert init["Name"] == "tinyvisor-init"
        assert Path(f"/proc/{container.pid}/cmdline").read_bytes().rstrip(b"\0").decode() == "tinyvisor-init: pid.one"
        assert init["NSpid"].split()[-1] == "1"
        assert child["NSpid"].split()[-1] == "2"
        assert child["NSsid"].split()[-1] == child["NSpgid"].split()[-1] == "2", "the leader of its own session"
        assert int(child["PPid"]) == container.pid


async def test_init_keeps_nothing_of_the_workload(shared: Runtime) -> None:
    async with waiting(shared) as container:
        fds = {os.readlink(f"/proc/{container.pid}/fd/{fd}").split(":")[0] for fd in os.listdir(f"/proc/{container.pid}/fd")}
        assert fds == {"socket", "anon_inode"}


async def test_only_stdio_is_open(shared: Runtime) -> None:
    reader, writer = os.pipe()
    try:
        os.set_inheritable(writer, True)
        async with waiting(shared) as container:
            assert container.stdin is not None
            assert container.stdout is not None
            assert container.stderr is not None
            process = f"/proc/{workload(container)}/fd"
            ours = [os.fstat(pipe.fileno()).st_ino for pipe in (container.stdin, container.stdout, container.stderr)]
            assert [os.stat(f"{process}/{fd}").st_ino for fd in sorted(os.listdir(process), key=int)] == ours
        async with shared.start(Spec(command=("/bin/sleep", "1000"))) as container:
            process = f"/proc/{workload(container)}/fd"
            with anyio.fail_after(BOUND):
                while sorted(os.listdir(process)) != ["0", "1", "2"]:  # noqa: ASYNC110 - the dynamic linker opens libraries
                    await anyio.sleep(0.01)
            assert {os.stat(f"{process}/{fd}").st_rdev for fd in "012"} == {os.makedev(1, 3)}
    finally:
        os.close(reader)
        os.close(writer)


async def test_the_null_device_on_stdio_can_not_be_changed(shared: Runtime) -> None:
    """Root inside owns the device's inode: through a writable mount it could change the mode for the whole host."""
    report = "print(error.errno, os.readlink('/proc/self/fd/0'), os.write(0, b'x'))"
    code = f"import os\ntry: os.fchmod(0, 0o666)\nexcept OSError as error: {report}"
    assert (await python(shared, code)).split() == [str(errno.EROFS), "/dev/null", "1"]
    with open(os.devnull, "r+b") as null:
        _, out, err = await run(shared, "python3", "-c", code, stdin=null)
        assert out.split() == [str(errno.EROFS), "/dev/null", "1"], err


async def test_stdio_is_what_was_given(shared: Runtime, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("given")
    with open(tmp_path / "in") as stdin, open(tmp_path / "out", "wb") as stdout, anyio.fail_after(BOUND):
        spec = Spec(command=("/bin/sh", "-c", "cat; echo trouble >&2"))
        async with shared.start(spec, stdin=stdin, stdout=stdout, stderr=STDOUT) as container:
            assert (await container.wait()).status == "ok"
    assert (tmp_path / "out").read_text() == "giventrouble\n"


async def test_signals_are_as_after_boot(anyio_backend: str) -> None:
    old = signal.signal(signal.SIGUSR1, signal.SIG_IGN), signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM})
    try:
        async with open_runtime() as runtime, waiting(runtime) as container:
            found = status(workload(container))
            assert [found[key] for key in ("SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd")] == [NOTHING] * 5
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGUSR1, old[0])
        signal.signal(signal.SIGPIPE, old[1])


# ---- names ----


@pytest.mark.parametrize("hostname", [None, "other.example"])
async def test_hostname(shared: Runtime, hostname: str | None) -> None:
    before = os.uname().nodename
    _, out, _ = await shell(shared, "uname -n; cat /etc/hostname; grep -c $(uname -n) /etc/hosts", name="ours", hostname=hostname)
    assert out.split() == [hostname or "ours", hostname or "ours", "1"]
    assert os.uname().nodename == before


# ---- root ----


@pytest.mark.parametrize("method", ["pivot", "chroot"])
async def test_root(shared: Runtime, busybox: Path, method: Any) -> None:
    script = "ls /; cd ../../..; pwd; echo here > /tmp/mark; echo ready; read line"
    spec = {"rootfs": busybox, "root_method": method}
    async with waiting(shared, script=script, **spec) as container:
        for pid in (container.pid, workload(container)):
            root = Path(f"/proc/{pid}/root")
            assert (root / "tmp/mark").read_text() == "here\n"
            assert sorted(os.listdir(root)) == ["bin", "dev", "etc", "proc", "tmp"]
    _, out, _ = await shell(shared, "ls /; cd ../../..; pwd", **spec)
    assert out.split() == ["bin", "dev", "etc", "proc", "tmp", "/"]
    assert os.listdir(busybox / "tmp") == os.listdir(busybox / "etc") == []


@pytest.mark.hostroot
async def test_nothing_of_the_old_root_is_left_to_see(shared: Runtime, busybox: Path) -> None:
    for spec in ({}, {"rootfs": busybox}):
        _, out, _ = await shell(shared, "cat /proc/self/mountinfo", **spec)
        found = mounts_of(out)
        assert {"/", "/proc", "/dev", "/dev/pts", "/dev/shm"} <= found.keys()
        assert not [point for point in found if point.startswith(("/new", "/t/", "/lower", "/upper"))]
        assert not {"cgroup", "cgroup2", "sysfs", "devtmpfs"} & {kind for kind, _ in found.values()}


OUT = """
import errno, os
os.mkdir("/tmp/d")
os.chroot("/tmp/d")
for _ in range(20):
    os.chdir("..")
os.chroot(".")
def refused(path):
    try:
        os.mkdir(path + "/new-one")
    except OSError as error:
        return error.errno == errno.EROFS
assert refused(".")
for name in os.listdir("."):
    if name == "container":
        assert "proc" in os.listdir(name), "it is the container's root"
    else:
        assert refused(name) and os.listdir(name) == [], os.listdir(name)
"""


@pytest.mark.parametrize("method", ["pivot", "chroot"])
async def test_out_of_the_root_there_is_nothing(shared: Runtime, method: Any) -> None:
    """Who has CAP_SYS_CHROOT can leave a root; what is there is empty and read-only."""
    await python(shared, OUT, capabilities={"SYS_CHROOT"}, root_method=method)


async def test_host_mounts_stay_as_they_are(shared: Runtime, busybox: Path, tmp_path: Path) -> None:
    table = Path("/proc/self/mountinfo")
    before = table.read_text()
    volumes, tmpfs = (Volume(tmp_path, "/work"),), (Tmpfs("/scratch"),)
    async with waiting(shared, rootfs=busybox, volumes=volumes, tmpfs=tmpfs) as container:
        assert table.read_text() == before
        assert "/work" in mounts_of(Path(f"/proc/{container.pid}/mountinfo").read_text())
    assert table.read_text() == before


async def test_proc_shows_less_where_asked(shared: Runtime) -> None:
    """`proc-opts`: of all others' processes nothing, and nothing but processes; also to what is executed in it."""
    look = "ls /proc; id -u; cat /proc/self/comm /proc/self/oom_score_adj"
    fields: dict[str, Any] = {"proc_opts": "hidepid=2,subset=pid", "oom_score_adj": 7, "cpu_time": BOUND, "mem_limit": 64 << 20}
    for user in (None, "100:100"):
        async with waiting(shared, user=user, **fields) as container:
            with tempfile.TemporaryFile("w+") as told:
                assert (await container.exec(["sh", "-c", look], stdout=told, user="123")).status == "ok"
                told.seek(0)
                *shown, uid, comm, score = told.read().split()
            assert ({"self", "thread-self"} <= {*shown}, uid, comm, score) == (True, "123", "cat", "7")
            assert not {"1", "2", "sys", "meminfo", "kcore"} & {*shown}, "neither init, nor the workload, nor the kernel's files"


async def test_proc_is_its_own(shared: Runtime) -> None:
    _, out, _ = await shell(shared, "stat -c %d /proc; ls -d /proc/[0-9]*")
    device, *processes = out.split()
    assert int(device) != os.stat("/proc").st_dev
    assert set(processes) <= {"/proc/1", "/proc/2", "/proc/3", "/proc/4"}


async def test_dev_is_minimal(shared: Runtime) -> None:
    script = "cd /dev; for i in *; do stat -c '%N %a %t:%T' $i; done; chmod 600 null 2>&1; touch new 2>&1"
    _, out, _ = await shell(shared, script)
    lines = [line.replace("'", "") for line in out.splitlines()]
    devices = {"full": "1:7", "null": "1:3", "random": "1:8", "tty": "5:0", "urandom": "1:9", "zero": "1:5"}
    links = {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}
    expected = [f"{name} 666 {number}" for name, number in devices.items()]
    expected += [f"{name} -> /proc/self/fd{end} 777 0:0" for name, end in links.items()]
    expected += ["ptmx -> pts/ptmx 777 0:0", "mqueue 755 0:0", "pts 755 0:0", "shm 1777 0:0"]
    assert sorted(lines[:-2]) == sorted(expected)
    assert all(line.endswith("Read-only file system") for line in lines[-2:]), lines[-2:]


@pytest.mark.hostroot
async def test_devices_work_only_in_dev(shared: Runtime, busybox: Path, tmp_path: Path) -> None:
    volumes = (Volume(tmp_path, "/work"),)
    for rootfs, places in ((None, "/tmp /dev/shm /work /run"), (busybox, "/tmp /dev/shm /work /")):
        script = f"for d in {places}; do mknod $d/node c 1 3 && echo x > $d/node; rm $d/node; done"
        script = script if rootfs is None else script.replace("mknod", "busybox mknod")
        _, _, err = await shell(
            shared, script, rootfs=rootfs, volumes=volumes, capabilities={"MKNOD", "DAC_OVERRIDE"}, userns_mode="host"
        )
        assert err.lower().count("permission denied") == 4, err
        _, out, _ = await shell(shared, "cat /proc/self/mountinfo", rootfs=rootfs, volumes=volumes)
        masks = (*DEFAULT_MASKED_PATHS, "/dev", "/dev/pts")
        assert not [point for point, (_, options) in mounts_of(out).items() if "nodev" not in options and point not in masks]


async def test_devpts_works(shared: Runtime) -> None:
    code = "import os, pty\na, b = pty.openpty()\nprint(os.ttyname(b))\nos.write(b, b'hi')\nprint(os.read(a, 2).decode())"
    assert (await python(shared, code, user="1000:1000")).split() == ["/dev/pts/0", "hi"]


async def test_shm_size(shared: Runtime) -> None:
    script = "df -B1 --output=size /dev/shm | tail -1; head -c 9M /dev/zero > /dev/shm/x"
    _, out, err = await shell(shared, script, shm_size=8 << 20)
    assert int(out) == 8 << 20
    assert "No space left on device" in err


LOOK = """
import json, os, stat, sys
def attempt(call):
    try:
        return call()
    except OSError as error:
        return error.errno
def look(path):
    mode = os.stat(path).st_mode
    kind = "directory" if stat.S_ISDIR(mode) else "device" if stat.S_ISCHR(mode) else "file"
    if kind == "directory":
        writable = not os.statvfs(path).f_flag & os.ST_RDONLY
        return [kind, os.listdir(path), "writable" if writable else 30]
    return [kind, os.stat(path).st_rdev if kind == "device" else attempt(lambda: open(path, "rb").read().hex()),
            attempt(lambda: os.write(os.open(path, os.O_WRONLY), b""))]
print(json.dumps({path: look(path) for path in sys.argv[1:] if os.path.exists(path)}))
"""


async def looked_at(runtime: Runtime, *paths: str, **spec: Any) -> dict[str, list[Any]]:
    exit, out, err = await run(runtime, "python3", "-c", LOOK, *paths, **spec)
    assert exit.status == "ok", err
    return dict(json.loads(out))


async def test_masked_paths_show_nothing(shared: Runtime, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/secret").write_text("secret")
    masks = (*DEFAULT_MASKED_PATHS, "/work/secret", "/work/more", "/work/missing")
    found = await looked_at(shared, *masks, volumes=(Volume(tmp_path, "/work"),), masked_paths=masks)
    assert set(found) == {path for path in DEFAULT_MASKED_PATHS if os.path.exists(path)} | {"/work/secret", "/work/more"}
    for path, (kind, content, write) in found.items():
        if kind == "directory":
            assert (content, write) == ([], errno.EROFS), path
        else:
            assert (kind, content) == ("device", os.makedev(1, 3)), path
    assert sorted(os.listdir(tmp_path)) == ["more", "secret"]


@pytest.mark.parametrize("mode", ["auto", "host"])
async def test_readonly_paths_can_not_be_written(shared: Runtime, tmp_path: Path, mode: str) -> None:
    (tmp_path / "file").write_text("text")
    paths = (*DEFAULT_READONLY_PATHS, "/work/file", "/work/missing")
    more = ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/irq/default_smp_affinity")
    found = await looked_at(shared, *paths, *more, volumes=(Volume(tmp_path, "/work"),), readonly_paths=paths, userns_mode=mode)
    assert set(found) == {path for path in (*DEFAULT_READONLY_PATHS, *more) if os.path.exists(path)} | {"/work/file"}
    # Who is root on the host gets as far as the mount; others' root may not even write the kernel's files.
    theirs = mode == "auto" or shared.host.nested
    assert {write for _, _, write in found.values()} - {errno.EROFS} <= ({errno.EACCES} if theirs else set())
    assert found["/work/file"][1] == b"text".hex()
    mounts = mounts_of((await shell(shared, "cat /proc/self/mountinfo"))[1])
    assert all("ro" in mounts[path][1] for path in DEFAULT_READONLY_PATHS if os.path.exists(path))


# ---- rights ----


async def test_all_capabilities_are_dropped(shared: Runtime) -> None:
    async with waiting(shared) as container:
        found = status(workload(container))
        assert {key: found[key] for key in found if key.startswith("Cap")} == dict.fromkeys(
            ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), NOTHING
        )
        assert found["NoNewPrivs"] == "1"


async def test_that_they_are_is_locked(shared: Runtime) -> None:
    """Where none is kept: neither who is root nor who becomes it, or stops to be, can have any."""
    code = "import ctypes; prctl = ctypes.CDLL(None).prctl; print(prctl(27), prctl(28, 0), prctl(8, 1))"
    assert await python(shared, code) == "207 -1 0\n", "but who only asks to keep what he has may"
    assert await python(shared, code, capabilities={"CHOWN"}) == "0 -1 0\n"


@pytest.mark.parametrize("user", [None, "1000:1000"])
async def test_listed_capabilities_are_kept(shared: Runtime, user: str | None) -> None:
    kept = {"NET_BIND_SERVICE", "CHOWN", "CHECKPOINT_RESTORE"}
    async with waiting(shared, capabilities=kept, user=user) as container:
        found = status(workload(container))
        assert {found[key] for key in found if key.startswith("Cap")} == {f"{capability_mask(kept):016x}"}
    bind = "import socket; socket.socket().bind(('127.0.0.1', 80))"
    await python(shared, bind, capabilities=kept, user=user)
    exit, _, err = await run(shared, "python3", "-c", bind, user=user)
    assert (exit.exit_code, "PermissionError" in err) == (1, True)


async def test_roots_capabilities_are_roots_alone(shared: Runtime) -> None:
    """In no set that outlives it: who was root has none of them, and only a set-id program gives another user any."""
    mask, hidden = f"{capability_mask(SERVICE_CAPABILITIES):016x}", ("CapInh", "CapAmb")
    kept: dict[str, Any] = {"root_capabilities": SERVICE_CAPABILITIES}
    async with waiting(shared, **kept) as container:
        found = status(workload(container))
        assert [found[key] for key in ("CapPrm", "CapEff", "CapBnd", *hidden)] == [mask, mask, mask, NOTHING, NOTHING]
    code = "import os; os.setuid(5); print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('Cap')])"
    assert await python(shared, code, **kept) == f"{NOTHING} {NOTHING} {NOTHING} {mask} {NOTHING}\n", "bounding: the most"
    async with waiting(shared, user="5", **kept) as container:
        found = status(workload(container))
        assert {found[key] for key in found if key.startswith("Cap")} == {NOTHING}


async def test_set_id_programs_give_what_is_roots(shared: Runtime, tmp_path: Path) -> None:
    """As in Docker; where they are asked for."""
    tmp_path.chmod(0o755)
    (tmp_path / "grep").write_bytes(Path("/usr/bin/grep").read_bytes())
    (tmp_path / "grep").chmod(0o4755)
    kept: dict[str, Any] = {"root_capabilities": {"CHOWN", "KILL"}, "no_new_privs": False, "user": "5"}
    command = ("/volume/grep", "CapEff", "/proc/self/status")
    _, out, _ = await run(shared, *command, volumes=(Volume(tmp_path, "/volume"),), **kept)
    assert int(out.split()[1], 16) == capability_mask({"CHOWN", "KILL"})


@pytest.mark.parametrize("no_new_privs", [True, False])
async def test_set_uid_programs(shared: Runtime, busybox: Path, tmp_path: Path, no_new_privs: bool) -> None:
    """The launcher's binary is static and starts a child with the ids that it has itself."""
    launcher = Path(str(sys.modules["tinyvisor"].__path__[0]), "_bin/tinyvisor-launcher")
    shutil.copy(launcher, busybox / "bin/setuid")
    (busybox / "bin/setuid").chmod(0o4755)
    command = ("/bin/setuid", "init", "--", "/bin/cat")
    async with waiting(shared, *command, rootfs=busybox, user="1000:1000", no_new_privs=no_new_privs) as container:
        found = status(workload(container))
        assert found["Uid"].split() == ids_of(container, *([1000] * 4 if no_new_privs else [1000, 0, 0, 0]))
        assert (found["NoNewPrivs"], found["CapPrm"]) == (str(int(no_new_privs)), NOTHING)
    _, out, _ = await shell(shared, "cat /proc/self/mountinfo", rootfs=busybox, no_new_privs=no_new_privs)
    assert ("nosuid" in mounts_of(out)["/"][1]) is no_new_privs


# ---- users ----

PASSWD = "root:x:0:0::/root:/bin/sh\nalice:x:1001:1002::/home/alice:/bin/sh\n:x:1:1::/:\nnonsense\n"
GROUP = "root:x:0:\nstaff:x:50:alice\nwheel:x:10:bob,alice\nprimary:x:1002:\nextra:x:77:\n"


@pytest.fixture
def with_users(busybox: Path) -> Path:
    (busybox / "etc/passwd").write_text(PASSWD)
    (busybox / "etc/group").write_text(GROUP)
    return busybox


@pytest.mark.parametrize(
    "user, group_add, uid, gid, groups, home",
    [
        (None, (), 0, 0, [], "/root"),
        ("1234", (), 1234, 0, [0], "/"),
        ("1234:4321", (), 1234, 4321, [4321], "/"),
        ("1001", (), 1001, 1002, [10, 50, 1002], "/home/alice"),
        ("alice", (), 1001, 1002, [10, 50, 1002], "/home/alice"),
        ("alice:staff", (), 1001, 50, [50], "/home/alice"),
        pytest.param(
            *("alice", ("extra", "4000000000"), 1001, 1002, [10, 50, 77, 1002, 4000000000], "/home/alice"),
            marks=pytest.mark.hostroot,
        ),
    ],
)
async def test_user(
    shared: Runtime, with_users: Path, user: str | None, group_add: Any, uid: int, gid: int, groups: list[int], home: str
) -> None:
    mode = "host" if max(groups, default=0) > 65535 else "auto"
    async with waiting(shared, rootfs=with_users, user=user, group_add=group_add, userns_mode=mode) as container:
        pid = workload(container)
        found = status(pid)
        assert found["Uid"].split() == ids_of(container, uid) * 4
        assert found["Gid"].split() == ids_of(container, gid) * 4
        assert sorted(found["Groups"].split(), key=int) == ids_of(container, *groups)
        assert f"HOME={home}" in Path(f"/proc/{pid}/environ").read_text().split("\0")


@pytest.mark.parametrize("spec", [{"user": "mallory"}, {"user": "alice:mallory"}, {"group_add": ("mallory",)}])
async def test_unknown_user_starts_nothing(shared: Runtime, with_users: Path, spec: Any) -> None:
    fds = os.listdir("/proc/self/fd")
    with pytest.raises(SpecError, match="mallory"):
        await shell(shared, "exit 0", rootfs=with_users, **spec)
    assert (shared.containers, cgroups(shared), os.listdir("/proc/self/fd")) == ({}, [], fds)


async def test_users_of_the_host_view_are_those_of_its_passwd(shared: Runtime) -> None:
    _, out, _ = await shell(shared, "id -un; id -gn", user="nobody:nogroup")
    assert out.split() == ["nobody", "nogroup"]
    _, passwd, _ = await shell(shared, "cat /etc/passwd")
    inside, host = ({line.split(":")[0] for line in text.splitlines()} for text in (passwd, Path("/etc/passwd").read_text()))
    for name in sorted(host - inside)[:1]:
        with pytest.raises(SpecError, match=name):
            await shell(shared, "exit 0", user=name)


# ---- what the workload starts with ----


async def test_process_attributes(shared: Runtime) -> None:
    ulimits = {"nofile": Ulimit(100, 200), "core": Ulimit(0, 0), "nproc": Ulimit(50, 60), "stack": Ulimit(1 << 20, 1 << 21)}
    async with waiting(shared, ulimits=ulimits, umask=0o027, oom_score_adj=500) as container:
        pid = workload(container)
        limits = {line[:26].strip(): line[26:].split()[:2] for line in Path(f"/proc/{pid}/limits").read_text().splitlines()}
        assert limits["Max open files"] == ["100", "200"]
        assert limits["Max core file size"] == ["0", "0"]
        assert limits["Max processes"] == ["50", "60"]
        assert limits["Max stack size"] == [str(1 << 20), str(1 << 21)]
        assert status(pid)["Umask"] == "0027"
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "500\n"


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "HOSTNAME": "case"}),
        (
            {"PATH": "/bin", "HOME": "/h", "HOSTNAME": "x", "EMPTY": "", "TEXT": "ä = \n'"},
            {"PATH": "/bin", "HOME": "/h", "HOSTNAME": "x", "EMPTY": "", "TEXT": "ä = \n'"},
        ),
    ],
)
async def test_environment(shared: Runtime, given: dict[str, str], expected: dict[str, str]) -> None:
    async with waiting(shared, environment=given) as container:
        text = Path(f"/proc/{workload(container)}/environ").read_text()
        assert dict(item.split("=", 1) for item in text.rstrip("\0").split("\0")) == expected


@pytest.mark.parametrize("path", ["/tmp", "/tmp/new", "/tmp/a/b/c", "/tmp/new/", "//tmp//twice", "/", None])
async def test_working_dir(shared: Runtime, busybox: Path, path: str | None) -> None:
    for spec in ({}, {"rootfs": busybox, "user": "1000:1000"}):
        exit, out, err = await shell(shared, "pwd -P; [ $(id -u) = 0 ] || touch file", working_dir=path, **spec)
        assert out.strip() == os.path.normpath(path or "/").replace("//", "/"), err
        made = path not in (None, "/", "/tmp")
        assert not spec or exit.exit_code == (0 if made else 1), "a directory that is made is the user's"


async def test_working_dir_on_a_read_only_root(shared: Runtime, busybox: Path) -> None:
    for spec in ({}, {"rootfs": busybox}):
        with pytest.raises(LaunchError, match="enter /missing: No such file") as caught:
            await shell(shared, "exit 0", working_dir="/missing", read_only=True, **spec)
        assert (caught.value.step, caught.value.errno) == ("enter /missing", errno.ENOENT)
    with pytest.raises(LaunchError, match="make directory /usr/missing"):
        await shell(shared, "exit 0", working_dir="/usr/missing")
    assert "missing" not in os.listdir(busybox)
    assert (shared.containers, cgroups(shared)) == ({}, [])


@pytest.mark.parametrize("fd", [3, 4, 5, 6, 7, 8, 9])
async def test_working_dir_is_never_a_way_out(shared: Runtime, fd: int) -> None:
    """CVE-2024-21626: a directory of the host behind an fd that was left open."""
    with pytest.raises(LaunchError) as caught:
        await run(shared, "/bin/true", working_dir=f"/proc/self/fd/{fd}")
    assert caught.value.errno in (errno.EXDEV, errno.ENOENT, errno.EPERM)


async def test_a_directory_of_the_host_is_no_stdin(shared: Runtime, tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(SpecError, match="stdin: a directory of the host"):
            await run(shared, "/bin/true", stdin=directory, working_dir="/proc/self/fd/0")
    finally:
        os.close(directory)


# ---- how it ends ----


async def test_every_exit_code(shared: Runtime) -> None:
    codes: dict[int, tuple[str, int | None, int]] = {}
    limit = anyio.CapacityLimiter(16)

    async def one(code: int) -> None:
        async with limit:
            exit = await shared.run(Spec(command=("/bin/sh", "-c", f"exit {code}"), name=f"code{code}"))
            codes[code] = exit.status, exit.exit_code, exit.returncode

    with anyio.fail_after(BOUND):
        async with anyio.create_task_group() as group:
            for code in range(256):
                group.start_soon(one, code)
    assert codes == {code: ("nonzero_exit" if code else "ok", code, code) for code in range(256)}


async def test_every_fatal_signal(shared: Runtime) -> None:
    ended: dict[int, tuple[str, int | None, int | None, int]] = {}
    limit = anyio.CapacityLimiter(8)

    async def one(number: int) -> None:
        async with limit, waiting(shared, name=f"signal{number}", ulimits={"core": Ulimit(0, 0)}) as container:
            await container.signal(number)
            exit = await container.wait()
            ended[number] = exit.status, exit.exit_code, exit.signal, exit.returncode

    with anyio.fail_after(BOUND):
        async with anyio.create_task_group() as group:
            for number in FATAL:
                group.start_soon(one, number)
    assert ended == {number: ("signaled", None, number, 128 + number) for number in FATAL}


@pytest.mark.parametrize(
    "command, error",
    [
        ("nowhere", errno.ENOENT),
        ("/tmp/nowhere", errno.ENOENT),
        ("/etc/passwd", errno.EACCES),
        ("/tmp", errno.EACCES),
        ("/etc/passwd/x", errno.ENOTDIR),
        ("/work/garbage", errno.ENOEXEC),
        ("/work/script", errno.ENOENT),
    ],
)
async def test_a_command_that_can_not_be_executed(shared: Runtime, tmp_path: Path, command: str, error: int) -> None:
    for name, content in (("garbage", "no program"), ("script", "#!/no/such/interpreter\n")):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    with pytest.raises(LaunchError) as caught:
        await run(shared, command, volumes=(Volume(tmp_path, "/work"),))
    assert (caught.value.errno, caught.value.step, caught.value.name) == (error, f"exec {command}", "case")
    assert str(caught.value) == f"case: exec {command}: {os.strerror(error)}"
    assert (shared.containers, cgroups(shared)) == ({}, [])


async def test_the_path_inside_is_searched(shared: Runtime, busybox: Path) -> None:
    (busybox / "only-inside").symlink_to("/bin/busybox")
    (busybox / "bin/only-inside").write_text("not executable")
    _, out, _ = await run(shared, "only-inside", "echo", "found", rootfs=busybox, environment={"PATH": "/bin:/"})
    assert out == ""  # the applet "only-inside" does not exist: but it was busybox that said so
    with pytest.raises(LaunchError, match="exec only-inside: Permission denied"):
        await run(shared, "only-inside", rootfs=busybox)


async def test_time_limit(shared: Runtime) -> None:
    exit, _, _ = await shell(shared, "trap '' TERM; sleep 1000 & wait", timeout=0.3)
    assert (exit.status, exit.signal, exit.limits_enforced) == ("time_limit", signal.SIGKILL, ("timeout",))
    assert 0.3 <= exit.wall < 0.3 + BOUND / 10
    exit, _, _ = await shell(shared, "exit 3", timeout=100.0)
    assert (exit.status, exit.exit_code) == ("nonzero_exit", 3)


async def test_stop_handled(shared: Runtime) -> None:
    script = "trap 'echo bye; exit 7' TERM; sleep 1000 & echo ready; wait"
    async with waiting(shared, script=script) as container:
        with anyio.fail_after(BOUND):
            exit = await container.stop()
            assert (exit.status, exit.exit_code, exit.held_up_by) == ("stopped", 7, ())
            assert await read_until(container.stdout, "\n") == "bye\n"
            assert await container.stop() is exit is await container.wait() is container.exit


async def test_stop_with_another_signal(shared: Runtime) -> None:
    async with waiting(shared, stop_signal=int(signal.SIGQUIT), ulimits={"core": Ulimit(0, 0)}) as container:
        assert (await container.stop()).signal == signal.SIGQUIT
    async with waiting(shared, stop_signal=int(signal.SIGQUIT)) as container:
        assert (await container.stop(signal=signal.SIGRTMIN)).signal == signal.SIGRTMIN


async def test_stop_ignored(shared: Runtime) -> None:
    script = "trap '' TERM; sleep 1000 & echo ready; read line"
    async with waiting(shared, script=script) as container:
        children = Path(f"/proc/{workload(container)}/task/{workload(container)}/children").read_text().split()
        pids = {f"sh[{workload(container)}]", f"sleep[{children[0]}]"}
        with anyio.fail_after(BOUND):
            exit = await container.stop(grace=0.1)
        assert (exit.status, exit.signal, set(exit.held_up_by)) == ("stopped", signal.SIGKILL, pids)
        assert container.processes() == ()
        assert not os.path.exists(f"/proc/{children[0]}")


async def test_stop_cancelled_kills(shared: Runtime) -> None:
    async with waiting(shared, script="trap '' TERM; echo ready; read line") as container:
        with anyio.fail_after(BOUND):
            with anyio.move_on_after(0.05) as scope:
                await container.stop(grace=1000)
            assert scope.cancelled_caught
            assert (await container.wait()).signal == signal.SIGKILL


async def test_stop_after_the_end(shared: Runtime) -> None:
    async with shared.start(Spec(command=("/bin/sh", "-c", "exit 3"))) as container:
        exit = await container.wait()
        assert (exit.status, exit.exit_code) == ("nonzero_exit", 3)
        with anyio.fail_after(BOUND):
            assert await container.stop() is exit
            await container.signal(signal.SIGTERM)
            container.kill()


async def test_kill(shared: Runtime) -> None:
    async with waiting(shared, script="trap '' TERM; sleep 1000 & echo ready; read line") as container:
        pids = [container.pid, workload(container)]
        container.kill()
        with anyio.fail_after(BOUND):
            exit = await container.wait()
        assert (exit.status, exit.signal) == ("stopped", signal.SIGKILL)
        assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


async def test_leaving_the_scope_kills(shared: Runtime) -> None:
    async with waiting(shared) as container:
        pid = container.pid
    assert not os.path.exists(f"/proc/{pid}")
    assert (shared.containers, cgroups(shared)) == ({}, [])


async def test_a_name_is_used_once_at_a_time(shared: Runtime) -> None:
    async with waiting(shared):
        with pytest.raises(SpecError, match='"case" is running already'):
            await shell(shared, "exit 0")
    assert (await shell(shared, "exit 0"))[0].status == "ok"


@pytest.mark.parametrize("grace", [30.0, 0.0])
async def test_orphans_get_time_to_finish(shared: Runtime, tmp_path: Path, grace: float) -> None:
    # Not one long sleep: a signal to a shell's child that has not exec'ed yet may be lost on it.
    orphan = "trap 'echo bye > /work/$0; exit' TERM; echo $0; while :; do sleep 0.01; done"
    script = f'for i in 1 2; do sh -c "{orphan}" $i & read line; done; exit 3'.replace("$0", "\\$0")
    spec = Spec(command=("/bin/sh", "-c", script), orphan_grace_period=grace, volumes=(Volume(tmp_path, "/work"),), name="case")
    with anyio.fail_after(BOUND):
        async with shared.start(spec, stdin=PIPE, stdout=PIPE) as container:
            assert container.stdin is not None
            for number in ("1", "2"):
                await read_until(container.stdout, f"{number}\n")
                await container.stdin.send(b"\n")
            exit = await container.wait()
    assert (exit.status, exit.exit_code) == ("nonzero_exit", 3)
    assert sorted(os.listdir(tmp_path)) == (["1", "2"] if grace else [])


async def test_orphans_that_do_not_finish_are_killed(shared: Runtime) -> None:
    script = "(trap '' TERM; echo ready; sleep 1000) & read line; exit 0"
    async with waiting(shared, script=script, orphan_grace_period=0.1) as container:
        assert container.stdin is not None
        await container.stdin.send(b"\n")
        with anyio.fail_after(BOUND):
            assert (await container.wait()).status == "ok"


@pytest.mark.parametrize("group", [True, False])
async def test_signal_group(shared: Runtime, group: bool) -> None:
    script = """
        sh -c 'trap "echo child; exit" USR1; sleep 1000 & echo child ready; wait' &
        trap 'echo parent' USR1; read line; echo ready; while kill -0 $!; do wait $!; done; echo end; read line"""
    spec = Spec(command=("/bin/sh", "-c", script), signal_group=group, name="case")
    with anyio.fail_after(BOUND):
        async with shared.start(spec, stdin=PIPE, stdout=PIPE) as container:
            assert container.stdin is not None
            await read_until(container.stdout, "child ready\n")
            await container.stdin.send(b"\n")
            await read_until(container.stdout, "ready\n")
            await container.signal(signal.SIGUSR1)
            if group:
                words = await read_until(container.stdout, "end\n")
                assert {"child", "parent"} <= set(words.split())
            else:
                assert (await read_until(container.stdout, "parent\n")).split() == ["parent"]
                await container.signal(signal.SIGUSR1, all=True)
                assert "child" in (await read_until(container.stdout, "end\n")).split()


# ---- network ----


@contextlib.contextmanager
def listening() -> Iterator[int]:
    """A port of the host's loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


LOOPBACK = """
import socket, sys
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname(), 20)
server.accept()[0].sendall(b"ping")
print(client.recv(4).decode(), ",".join(sorted(name for _, name in socket.if_nameindex())))
client = socket.socket()
print(client.connect_ex(("127.0.0.1", int(sys.argv[1]))))
print(socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect_ex(("192.0.2.1", 9)))
"""


async def test_network_none_has_loopback_only(shared: Runtime) -> None:
    with listening() as port:
        _, out, err = await run(shared, "python3", "-c", LOOPBACK, str(port))
    assert out.split() == ["ping", "lo", str(errno.ECONNREFUSED), str(errno.ENETUNREACH)], err


async def test_network_host(shared: Runtime) -> None:
    with listening() as port:
        _, out, err = await run(shared, "python3", "-c", LOOPBACK, str(port), network_mode="host")
        assert out.split()[:3] == ["ping", ",".join(sorted(name for _, name in socket.if_nameindex())), "0"], err
    _, out, _ = await shell(shared, "cat /etc/resolv.conf", network_mode="host")
    assert out == Path("/etc/resolv.conf").read_text()


async def test_network_of_another_container(shared: Runtime) -> None:
    listen = "import socket; server = socket.create_server(('127.0.0.1', 8000)); print('ready', flush=True)"
    server = f"{listen}\nwhile True: server.accept()[0].sendall(b'hi')"
    spec = Spec(command=("python3", "-c", server), name="provider")
    with anyio.fail_after(BOUND):
        async with shared.start(spec, stdout=PIPE) as provider:
            await read_until(provider.stdout, "ready\n")
            client = "import socket; print(socket.create_connection(('127.0.0.1', 8000)).recv(2).decode())"
            assert await python(shared, client, network_mode="service:provider", capabilities={"NET_RAW"}) == "hi\n"
            async with (
                waiting(shared, name="one", network_mode="service:provider") as one,
                waiting(shared, name="two", network_mode="service:one") as two,
            ):
                assert len({namespace(workload(item), "net") for item in (provider, one, two)}) == 1
                assert namespace(provider.pid, "net") != namespace("self", "net")


async def test_network_of_a_container_that_is_not_there(shared: Runtime) -> None:
    with pytest.raises(TinyvisorError, match='case: network_mode: service "nobody" is not running'):
        await shell(shared, "exit 0", network_mode="service:nobody")
    assert (shared.containers, cgroups(shared)) == ({}, [])


# ---- namespaces ----

FILES = {"mount": "mnt"} | {name: name for name in ("pid", "uts", "ipc", "net", "cgroup", "user", "time")}


@pytest.mark.parametrize("left_out", ["", "uts", "ipc", "net", "cgroup"])
async def test_namespaces(shared: Runtime, left_out: str) -> None:
    before = os.uname().nodename
    async with waiting(shared, namespaces=DEFAULT_NAMESPACES - {left_out}, name="ns.test") as container:
        pid = workload(container)
        new = {name for name, file in FILES.items() if namespace(pid, file) != namespace("self", file)}
        assert new == DEFAULT_NAMESPACES - {left_out}
    assert os.uname().nodename == before


async def test_the_cgroup_namespace_hides_where_it_is(shared: Runtime) -> None:
    _, out, _ = await shell(shared, "cat /proc/self/cgroup")
    assert not [line for line in out.splitlines() if "tinyvisor" in line]
    _, out, _ = await shell(shared, "cat /proc/self/cgroup", namespaces=DEFAULT_NAMESPACES - {"cgroup"})
    assert [line for line in out.splitlines() if line.endswith(f"/tinyvisor/{shared.name}/case")]


async def test_time_namespace(shared: Runtime) -> None:
    async with waiting(shared, namespaces=DEFAULT_NAMESPACES | {"time"}) as container:
        assert namespace(workload(container), "time") != namespace("self", "time")
        assert (await container.stop()).signal == signal.SIGTERM


# ---- mounts ----


async def test_volumes(shared: Runtime, tmp_path: Path) -> None:
    for name in ("rw", "ro", "nested"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "single").write_text("single")
    volumes = (
        Volume(tmp_path / "nested", "/a/b/rw/nested"),
        Volume(tmp_path / "rw", "/a/b/rw"),
        Volume(tmp_path / "ro", "/a/ro/", read_only=True),
        Volume(tmp_path / "single", "/a/c/single"),
        Volume(tmp_path / "single", "/a/c/single.ro", read_only=True),
    )
    script = """
        cat /a/b/rw/file /a/b/rw/nested/file /a/ro/file /a/c/single /a/c/single.ro
        echo new > /a/b/rw/new; echo new > /a/b/rw/nested/new; echo new > /a/c/single
        echo new > /a/ro/new; echo new > /a/ro/file; echo new > /a/c/single.ro"""
    _, out, err = await shell(shared, script, volumes=volumes)
    assert out == "rwnestedrosinglesingle"
    assert err.count("Read-only file system") == err.count("\n") == 3, err
    assert [(tmp_path / name).read_text() for name in ("rw/new", "nested/new", "single")] == ["new\n"] * 3
    assert sorted(os.listdir(tmp_path / "ro")) == ["file"]
    assert sorted(os.listdir(tmp_path / "rw")) == ["file", "nested", "new"], "the place to mount on was made in the volume"


async def test_a_read_only_volume_is_read_only_all_the_way_down(shared: Runtime, tmp_path: Path) -> None:
    below = tmp_path / "volume/below"
    below.mkdir(parents=True)
    (tmp_path / "mounted").mkdir()
    subprocess.run(["mount", "--bind", tmp_path / "mounted", below], check=True)
    try:
        volumes = (Volume(tmp_path / "volume", "/ro", read_only=True), Volume(tmp_path / "volume", "/rw"))
        _, _, err = await shell(shared, "echo x > /rw/below/x; echo x > /ro/below/y; echo x > /ro/y", volumes=volumes)
        assert err.count("Read-only file system") == err.count("\n") == 2, err
        assert os.listdir(below) == ["x"]
    finally:
        subprocess.run(["umount", below], check=True)


async def test_what_a_volume_can_not_be(shared: Runtime, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=f"open {tmp_path}/missing: No such file"):
        await shell(shared, "exit 0", volumes=(Volume(tmp_path / "missing", "/work"),))
    with pytest.raises(LaunchError, match=r"bind .* on /usr/missing .*: Read-only file system"):
        await shell(shared, "exit 0", volumes=(Volume(tmp_path, "/usr/missing"),))
    with pytest.raises(LaunchError, match=r"bind .* on /etc/passwd"):
        await shell(shared, "exit 0", volumes=(Volume(tmp_path, "/etc/passwd"),))
    (tmp_path / "to-root").symlink_to("/")
    work = Volume(tmp_path, "/work")
    for spec in (
        {"volumes": (Volume(tmp_path, "/"),)}, {"tmpfs": (Tmpfs("/"),)}, {"volumes": (work,), "tmpfs": (Tmpfs("/work/to-root"),)},
        {"masked_paths": ("/",)}, {"readonly_paths": ("/",)}, {"volumes": (Volume(tmp_path, "/dev"),)},
    ):  # fmt: skip
        with pytest.raises(LaunchError) as caught:
            await shell(shared, "exit 0", **spec)
        whole = "/dev" in str(spec)
        assert caught.value.errno == (errno.ENOENT if whole else errno.EBUSY), caught.value
        assert not whole or caught.value.step == "start the workload"
    assert (shared.containers, cgroups(shared)) == ({}, [])


async def test_tmpfs_has_its_limits(shared: Runtime, tmp_path: Path) -> None:
    mounts = (Tmpfs("/small", size=1 << 20, inodes=10, mode=0o700), Tmpfs("/noexec", executable=False))
    script = """
        head -c 2M /dev/zero > /small/big; wc -c < /small/big; rm /small/big
        for i in 1 2 3 4 5 6 7 8 9 10 11 12; do touch /small/$i; done; stat -c %a /small
        cp /bin/true /noexec; /noexec/true; cat /proc/self/mountinfo"""
    _, out, err = await shell(shared, script, tmpfs=mounts, volumes=(Volume(tmp_path, "/small/work"),))
    size, mode = out.split()[:2]
    assert (int(size), mode) == (1 << 20, "700")
    assert err.count("No space left on device") == 1 + 12 - 8, err  # 10 are the root, work, and 8 files
    assert "Permission denied" in err
    assert {"nosuid", "nodev"} <= mounts_of(out.split("\n", 2)[2])["/small"][1]


@pytest.mark.parametrize("kind", ["host view", "overlay"])
async def test_the_writable_layer_has_its_limits(shared: Runtime, busybox: Path, kind: str) -> None:
    rootfs = busybox if kind == "overlay" else None
    script = "dd if=/dev/zero of=/big bs=1M count=9; stat -c %s /big"
    _, out, err = await shell(shared, script, rootfs=rootfs, storage_size=8 << 20)
    assert int(out) <= 8 << 20
    assert "No space left on device" in err
    script = "i=0; while touch /tmp/$i; do i=$((i+1)); [ $i -lt 1000 ] || break; done; echo $i"
    _, out, err = await shell(shared, script, rootfs=rootfs, storage_inodes=200)
    assert 100 < int(out) <= 200
    assert "No space left on device" in err


async def test_an_overlay_never_writes_to_its_directory(shared: Runtime, busybox: Path) -> None:
    (busybox / "etc/file").write_text("old")
    before = {str(path): path.lstat() for path in [busybox, *busybox.rglob("*")]}
    script = "echo new > /etc/file; rm /bin/ls; mkdir /made; chmod 700 /tmp; cat /etc/file; [ -e /bin/ls ] || echo gone"
    exit, out, _ = await shell(shared, script, rootfs=busybox, working_dir="/work/dir", volumes=(Volume(busybox, "/vol", True),))
    assert (exit.status, out.split()) == ("ok", ["new", "gone"])
    after = {str(path): path.lstat() for path in [busybox, *busybox.rglob("*")]}
    assert {path: (info.st_ino, info.st_mtime_ns, info.st_mode) for path, info in before.items()} == {
        path: (info.st_ino, info.st_mtime_ns, info.st_mode) for path, info in after.items()
    }


@pytest.mark.parametrize("kind", ["host view", "directory"])
async def test_read_only(shared: Runtime, busybox: Path, tmp_path: Path, kind: str) -> None:
    (busybox / "run").mkdir()
    spec: dict[str, Any] = {"read_only": True, "rootfs": busybox if kind == "directory" else None}
    script = "for d in / /etc /bin /proc; do touch $d/new; done; for d in /tmp /run /dev/shm; do touch $d/new && echo $d; done"
    _, out, err = await shell(shared, script, **spec)
    assert out.split() == ["/tmp", "/run", "/dev/shm"], err
    assert err.count("Read-only file system") >= 3, err
    assert os.listdir(busybox / "tmp") == os.listdir(busybox / "run") == os.listdir(busybox / "etc") == []


@pytest.mark.parametrize("kind", ["tar", "gz", "xz", "zst"])
async def test_root_from_a_tarball(shared: Runtime, busybox: Path, tmp_path: Path, cache: Path, kind: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(busybox, ".")
    compress: dict[str, Callable[[bytes], bytes]] = {"tar": bytes, "gz": gzip.compress, "xz": lzma.compress, "zst": zstd.compress}
    tarball = tmp_path / f"root.tar.{kind}"
    tarball.write_bytes(compress[kind](buffer.getvalue()))
    for _ in range(2):
        _, out, _ = await shell(shared, "ls /; touch /etc/new", rootfs=tarball)
        assert out.split() == ["bin", "dev", "etc", "proc", "tmp"]
    assert list(cache.rglob("new")) == []


async def test_a_root_that_is_not_there(shared: Runtime, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="does not exist"):
        await shell(shared, "exit 0", rootfs=tmp_path / "missing")


# ---- terminal ----


class Screen:
    """What comes out of a container's terminal."""

    def __init__(self, fd: int) -> None:
        self.fd, self.text = fd, ""
        os.set_blocking(fd, False)

    async def until(self, end: str) -> str:
        with anyio.fail_after(BOUND):
            while end not in self.text:
                await anyio.wait_readable(self.fd)
                self.text += os.read(self.fd, 4096).decode()
        found, _, self.text = self.text.partition(end)
        return found


async def test_terminal(shared: Runtime) -> None:
    script = """
        stty -echo; tty; stty size; trap 'stty size; echo resized' WINCH; echo ready
        while ! read line; do :; done; echo got $line"""
    spec = Spec(command=("/bin/sh", "-c", script), tty=True, user="1000:1000", name="case")
    async with shared.start(spec, terminal=(30, 100)) as container:
        assert container.terminal is not None
        screen = Screen(container.terminal)
        assert (await screen.until("ready")).split() == ["/dev/pts/0", "30", "100"]
        pid = workload(container)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        assert int(fields[4]) != 0, "it has a controlling terminal"
        assert {os.stat(f"/proc/{pid}/fd/{fd}").st_rdev for fd in "012"} == {os.makedev(136, 0)}
        container.resize(11, 22)
        assert (await screen.until("resized")).split() == ["11", "22"]
        os.write(container.terminal, b"typed\n")
        await screen.until("got typed")
        with anyio.fail_after(BOUND):
            assert (await container.wait()).status == "ok"


async def test_terminal_keys_are_signals(shared: Runtime) -> None:
    async with shared.start(Spec(command=("/bin/cat",), tty=True, name="case")) as container:
        assert container.terminal is not None
        os.write(container.terminal, b"echo\n")
        await Screen(container.terminal).until("echo")
        os.write(container.terminal, b"\x03")
        with anyio.fail_after(BOUND):
            assert (await container.wait()).signal == signal.SIGINT


# ---- hostile images ----


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A directory of the host that nothing inside may change, named as /etc is."""
    directory = tmp_path / "canary"
    for name in ("etc", "work", "pts"):
        (directory / name).mkdir(parents=True)
    for name in ("hosts", "etc/hosts", "hostname", "passwd"):
        (directory / name).write_text("canary")

    def look() -> list[tuple[str, int, int, int, bytes]]:
        paths = [directory, *sorted(directory.rglob("*"))]
        return [
            (str(path), info.st_ino, info.st_mode, info.st_mtime_ns, path.read_bytes() if path.is_file() else b"")
            for path, info in ((path, path.lstat()) for path in paths)
        ]

    before, mounts = look(), Path("/proc/self/mountinfo").read_text()
    yield directory
    assert look() == before
    assert Path("/proc/self/mountinfo").read_text() == mounts


def absolute(target: Path) -> str:
    return str(target)


def upwards(target: Path) -> str:
    return "../" * 20 + str(target)[1:]


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("link", [absolute, upwards])
@pytest.mark.parametrize("name", ["proc", "dev", "etc", "tmp", "run", "work", "etc/hosts", "etc/hostname"])
async def test_links_of_an_image_lead_nowhere_outside(
    shared: Runtime, busybox: Path, canary: Path, name: str, link: Callable[[Path], str], read_only: bool
) -> None:
    """It lands inside, or does not start at all."""
    place = busybox / name
    if place.is_dir():
        place.rmdir()
    place.symlink_to(link(canary / name.removeprefix("etc/")))
    volume = canary.parent / "volume"
    volume.mkdir()
    spec: dict[str, Any] = {"volumes": (Volume(volume, "/work"),), "tmpfs": (Tmpfs("/tmp"), Tmpfs("/work/deep/tmp"))}
    script = """
        exec 2> /dev/null
        for d in proc dev etc tmp run work etc/hosts; do touch /$d/new; cp /bin/busybox /$d; mkdir -p /$d/dir; done; exit 0"""
    with contextlib.suppress(LaunchError):
        exit, _, _ = await shell(shared, script, rootfs=busybox, read_only=read_only, working_dir="/work/new", **spec)
        assert exit.exit_code in (0, 1, 2)


async def test_a_volume_on_a_link_lands_inside(shared: Runtime, busybox: Path, canary: Path, tmp_path: Path) -> None:
    (busybox / "work").symlink_to("../../../etc")
    volume = tmp_path / "volume"
    volume.mkdir()
    _, out, _ = await shell(shared, "cd /work; touch made; ls; pwd -P", rootfs=busybox, volumes=(Volume(volume, "/work"),))
    assert out.split() == ["made", "/etc"]
    assert os.listdir(volume) == ["made"]


async def test_masks_do_not_trust_the_image(shared: Runtime, busybox: Path) -> None:
    """CVE-2025-31133: /dev/null of the image is a link to what a mask would then open for writing."""
    (busybox / "dev/null").symlink_to("/proc/sys/kernel/core_pattern")
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    masks = [path for path in DEFAULT_MASKED_PATHS if os.path.isfile(path)]
    files = " ".join(["/dev/null", *masks])
    script = f"stat -c '%t:%T' {files}; for f in {files}; do echo evil > $f; done"
    _, out, _ = await shell(shared, script, rootfs=busybox)
    assert set(out.split()) == {"1:3"}
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


async def test_masks_follow_links_inside_only(shared: Runtime, busybox: Path, canary: Path) -> None:
    (busybox / "secret").symlink_to(canary / "passwd")
    (busybox / "locked").symlink_to(upwards(canary))
    exit, _, _ = await shell(shared, "exit 0", rootfs=busybox, masked_paths=("/secret", "/locked/x"), readonly_paths=("/locked",))
    assert exit.status == "ok"


async def test_the_console_of_an_image_is_not_trusted(shared: Runtime, busybox: Path, canary: Path) -> None:
    """CVE-2025-52565: the places of a pty's mounts are links."""
    (busybox / "dev/pts").symlink_to(canary / "pts")
    (busybox / "dev/console").symlink_to(canary / "passwd")
    spec = Spec(command=("/bin/sh", "-c", "readlink /proc/self/fd/0"), rootfs=busybox, tty=True)
    async with shared.start(spec) as container:
        assert container.terminal is not None
        await Screen(container.terminal).until("/dev/pts/0")


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(5, 0))


def make_endless(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))


def make_directory(path: Path) -> None:
    path.mkdir()


def make_link_out(path: Path) -> None:
    path.symlink_to("/../../../proc/self/fd/0")


def make_huge(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)


MAKES_DEVICES = [pytest.param(make, marks=pytest.mark.hostroot) for make in (make_device, make_endless)]


@pytest.mark.parametrize("make", [make_fifo, *MAKES_DEVICES, make_directory, make_link_out, make_huge])
async def test_a_strange_passwd_blocks_nobody(shared: Runtime, busybox: Path, make: Callable[[Path], None]) -> None:
    for name in ("passwd", "group"):
        make(busybox / "etc" / name)
    with anyio.fail_after(BOUND / 2):
        with pytest.raises(SpecError, match='"alice" is not in'):
            await shell(shared, "exit 0", rootfs=busybox, user="alice")
        async with waiting(shared, rootfs=busybox, user="1000:1001") as container:
            found = status(workload(container))
            assert [found["Uid"].split()[0], found["Gid"].split()[0]] == ids_of(container, 1000, 1001)


# ---- the runtime ----


async def test_one_runtime_of_a_name_at_a_time(anyio_backend: str) -> None:
    async with open_runtime(name="only-one"):
        with pytest.raises(TinyvisorError, match="only-one is already running"):
            async with open_runtime(name="only-one"):
                pass
    async with open_runtime(name="only-one") as runtime:
        assert (await shell(runtime, "exit 0"))[0].status == "ok"


async def test_a_dead_launcher_is_said_to_be_so(anyio_backend: str) -> None:
    async with open_runtime() as runtime:
        async with waiting(runtime) as container:
            pids = [container.pid, workload(container)]
            os.kill(runtime._launcher.pid, signal.SIGKILL)
            with anyio.fail_after(BOUND):
                with pytest.raises(LauncherDied):
                    await container.wait()
        with pytest.raises(LauncherDied):
            await shell(runtime, "exit 0")
        await wait_for_the_end_of(*pids)


async def test_a_killed_init_takes_its_container_along(shared: Runtime) -> None:
    async with waiting(shared, script="sleep 1000 & echo ready; read line") as container:
        child = workload(container)
        os.kill(container.pid, signal.SIGKILL)
        with anyio.fail_after(BOUND), contextlib.suppress(ContainerError):
            assert (await container.wait()).signal == signal.SIGKILL
        assert not os.path.exists(f"/proc/{child}")


async def test_many_at_once(shared: Runtime) -> None:
    with anyio.fail_after(BOUND):
        async with anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(shared.run, Spec(command=("/bin/true",), name=f"many{number}"))
    assert (shared.containers, cgroups(shared)) == ({}, [])
