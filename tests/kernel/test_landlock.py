"""Landlock's walls, each tried with the wall before it taken away; and what ordinary programs do behind them."""

from __future__ import annotations

import ast
import functools
import os
import shutil
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.kernel.helpers import ON_TRIO, python, run, shell, skip, waiting
from tests.kernel.test_exec import output
from tinyvisor.errors import SpecError
from tinyvisor.runtime import Container, Runtime
from tinyvisor.runtime.syscalls import landlock_abi
from tinyvisor.spec import Tmpfs, Volume

ABI = landlock_abi()

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.anyio,
    ON_TRIO,
    pytest.mark.skipif(ABI < 2, reason="this kernel's Landlock is not used"),
]
of_abi_6 = pytest.mark.skipif(ABI < 6, reason="needs Landlock's ABI 6, of Linux 6.12")


# What is tried in a directory that `tried` made: the names of the errors, "ok" for none.
WRITES = """
import errno, os, socket, stat, sys
def attempt(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"
def bind(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
def linked(path):
    open("/tmp/own", "w").close()
    os.link("/tmp/own", path)
at = sys.argv[1] + "/"
print({name: attempt(*call) for name, call in {
    "write": (os.open, at + "file", os.O_WRONLY),
    "append": (os.open, at + "file", os.O_RDWR | os.O_APPEND),
    "cut": (os.truncate, at + "file", 1),
    "by proc": (os.open, "/proc/self/fd/%d" % os.open(at + "file", os.O_RDONLY), os.O_WRONLY),
    "create": (os.open, at + "new", os.O_WRONLY | os.O_CREAT),
    "nameless": (os.open, at, os.O_WRONLY | os.O_TMPFILE),
    "mkdir": (os.mkdir, at + "directory"),
    "symlink": (os.symlink, "/", at + "link"),
    "fifo": (os.mkfifo, at + "fifo"),
    "socket": (bind, at + "socket"),
    "device": (os.mknod, at + "whiteout", stat.S_IFCHR, 0),
    "rename": (os.rename, at + "file", at + "other"),
    "move in": (linked, at + "moved"),
    "rmdir": (os.rmdir, at + "empty"),
    "unlink": (os.unlink, at + "spare"),
}.items()})
"""


def tried(path: Path) -> Path:
    """A directory for `WRITES`, which everybody may write."""
    path.mkdir()
    (path / "file").write_text("of the host")
    (path / "spare").touch()
    (path / "empty").mkdir()
    for each in (path, *path.iterdir()):
        each.chmod(0o777)
    return path


async def writes(runtime: Runtime, where: str, **spec: Any) -> dict[str, str]:
    exit, out, err = await run(runtime, "python3", "-c", WRITES, where, **spec)
    assert exit.returncode == 0, err
    return results(out)


def results(text: str) -> dict[str, str]:
    found = ast.literal_eval(text)
    assert isinstance(found, dict)
    return {name: error for name, error in found.items() if name != "cut" or ABI >= 3}


async def test_without_it_those_mounts_would_be_written_to(unsealed: Runtime, tmp_path: Path) -> None:
    """test_attacks' test_a_mount_that_turns_out_to_be_writable can fail."""
    volumes = (Volume(tried(tmp_path / "one"), "/one", read_only=True),)
    found = await writes(unsealed, "/one", read_only=True, volumes=volumes, landlock="unconfined")
    assert {name for name, error in found.items() if error != "ok"} == {"move in"}, found
    assert (tmp_path / "one/new").exists()


async def test_the_root_itself(unsealed: Runtime, busybox: Path) -> None:
    """The host view's tmpfs and an image's directory; what is named in the plan can be written."""
    script = "touch /x; mkdir /etc/x /bin/x; for at in /tmp /run /dev/shm /a/b; do echo x >$at/x || exit 1; done; echo written"
    tmpfs = (Tmpfs("/a/b"),)
    for rootfs in (None, busybox):
        _, out, err = await shell(unsealed, script, read_only=True, tmpfs=tmpfs, rootfs=rootfs)
        assert out == "written\n", err
        assert err.count("ermission denied") + err.count("ead-only file system") == 3, err
    assert not (busybox / "x").exists()
    _, out, _ = await shell(unsealed, "mkdir /x && echo made", read_only=True, landlock="unconfined")
    assert out == "made\n"


async def test_what_is_executed_and_what_is_made_ahead(unsealed: Runtime, tmp_path: Path) -> None:
    spec: dict[str, Any] = {"read_only": True, "volumes": (Volume(tried(tmp_path / "one"), "/one", read_only=True),)}
    async with waiting(unsealed, **spec) as container:
        exit, text = await output(container, "python3", "-c", WRITES, "/one")
        assert exit.status == "ok", text
        assert [name for name, error in results(text).items() if error != "EACCES"] == ["move in"], text
        exit, text = await output(container, "sh", "-c", "echo x >/tmp/x && kill -0 2 && cat /tmp/x")
        assert (exit.status, text) == ("ok", "x\n"), "signals are not held"
    async with unsealed.pool(size=1, read_only=True) as pool:
        result = await pool.run(["sh", "-c", "echo x >/tmp/x; echo x >/x"], capture_stderr=True)
        assert b"/x: Permission denied" in (result.stderr or b"")
        assert b"/tmp" not in (result.stderr or b"")


async def test_a_shared_directory_and_a_volume_that_is_a_file(unsealed: Runtime, tmp_path: Path) -> None:
    (tmp_path / "file").touch(0o666)
    (tmp_path / "file").chmod(0o666)
    result = await unsealed.run(
        ["sh", "-c", "cat in >out; echo x >/data/file; mkdir /x || echo held"], read_only=True, capture_stdout=True,
        files={"in": b"given"}, collect=["out"], volumes=(Volume(tmp_path / "file", "/data/file"),),
    )  # fmt: skip
    assert (result.stdout, result.files) == (b"held\n", {"out": b"given"})
    assert (tmp_path / "file").read_text() == "x\n"


@pytest.mark.parametrize("own", [True, False])
async def test_what_deliver_cancel_executes_writes_to_the_runs_directory(unsealed: Runtime, own: bool) -> None:
    """Its own, or one that runs share; and to nothing else that is read-only."""
    said: list[str] = []

    async def deliver(container: Container) -> None:
        try:
            said.append((await output(container, "sh", "-c", "echo x >new && mkdir sub && cat new && echo x >/x"))[1])
        finally:
            await container.stop(grace=0)

    async with unsealed.working_directory() as shared_by_runs:
        directory: dict[str, Any] = {"files": {"there": b""}} if own else {"working_directory": shared_by_runs}
        reader, writer = os.pipe()
        with open(reader, "rb", buffering=0), open(writer, "wb") as started:
            async with anyio.create_task_group() as group:
                options = {"read_only": True, "stdout": started, "deliver_cancel": deliver, **directory}
                group.start_soon(functools.partial(unsealed.run, ["sh", "-c", "echo; sleep 1000"], **options))
                await anyio.wait_readable(reader)
                group.cancel_scope.cancel()
    assert said == ["x\nsh: 1: cannot create /x: Permission denied\n"]


async def test_paths_that_the_user_can_not_reach(shared: Runtime, tmp_path: Path) -> None:
    """They are opened before it becomes that user."""
    volumes = (Volume(tried(tmp_path / "one"), "/root/one"),)
    for no_new_privs in (True, False):
        spec: dict[str, Any] = {"read_only": True, "volumes": volumes, "user": "1000:1000", "no_new_privs": no_new_privs}
        exit, out, err = await shell(shared, "echo x 2>/dev/null >/root/one/x || echo x >/tmp/x && id -u", **spec)
        assert (exit.status, out) == ("ok", "1000\n"), err


# ---- what has to work behind it ----

PROGRAM = """
import ctypes, multiprocessing.shared_memory, os, pty, signal, socket, subprocess, tempfile
with tempfile.TemporaryDirectory() as top:
    os.chdir(top)
    os.makedirs("a/b"), os.makedirs("c")
    open("a/b/file", "w").write("x")
    os.rename("a/b/file", "c/file")
    os.link("c/file", "a/link")
    os.rename("a/b", "c/b")
    os.symlink("c", "s"), os.mkfifo("f"), os.truncate("s/file", 0)
    fd = os.open(".", os.O_RDWR | os.O_TMPFILE)
    os.link("/proc/self/fd/%d" % fd, "named", src_dir_fd=fd, follow_symlinks=True)  # with an fd, it does follow
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("socket"), server.listen()
        client.connect("socket")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("\\0own"), server.listen()
        client.connect("\\0own")
    for words in (["tar", "cf", "x.tar", "c"], ["tar", "xf", "x.tar", "-C", "a"], ["sh", "-c", "mkdir d; mv d c; >c/d/e"]):
        subprocess.run(words, check=True)
memory = multiprocessing.shared_memory.SharedMemory(create=True, size=4096)
memory.close(), memory.unlink()
memfd = os.memfd_create("x")
os.write(os.open("/proc/self/fd/%d" % memfd, os.O_RDWR), b"x")
ours, theirs = pty.openpty()
os.close(os.open(os.ttyname(theirs), os.O_RDWR))
for path in ("/dev/null", "/dev/full", "/proc/self/oom_score_adj", "/proc/self/task/%d/comm" % os.getpid()):
    open(path, "w").close()
child = os.fork()
if child == 0:
    ctypes.CDLL(None).ptrace(0, 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(0)
assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
assert ctypes.CDLL(None).ptrace(7, child, 0, 0) == 0
assert os.waitpid(child, 0)[1] == 0
assert os.readlink("/proc/%d/exe" % os.getpid())
open("/dev/stdout", "w").write("done\\n")
"""


async def test_ordinary_programs_work(shared: Runtime) -> None:
    assert await python(shared, PROGRAM, read_only=True, network_mode="host") == "done\n"
    if shutil.which("git") is None:
        skip("needs git")
    script = """
    cd /tmp && git init -q . && echo x >file && git add file && git -c user.name=x -c user.email=x commit -qm x && git gc -q &&
    mkdir other && git mv file other/ && git stash -q && git clone -q /tmp /run/copy && cat /run/copy/file
    """
    env = {"HOME": "/tmp", "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "x", "GIT_AUTHOR_EMAIL": "x"}
    env |= {"GIT_COMMITTER_NAME": "x", "GIT_COMMITTER_EMAIL": "x"}
    _, out, err = await shell(shared, script, read_only=True, environment=env)
    assert out == "x\n", err


async def test_what_it_was_given_open_it_may_open_anew(shared: Runtime, tmp_path: Path) -> None:
    """But not for writing what it was given for reading: nobody else stands between, where its ids are the host's."""
    for name in ("in", "out"):
        (tmp_path / name).write_text("")
    script = "echo out >>/dev/stdout; echo in >>/dev/stdin"
    spec: dict[str, Any] = {"read_only": True, "userns_mode": "host"}
    for landlock, written in (("default", ""), ("unconfined", "in\n")):
        with (tmp_path / "in").open() as given, (tmp_path / "out").open("w") as taken:
            await shared.run(["sh", "-c", script], stdin=given, stdout=taken, landlock=landlock, **spec)
        assert ((tmp_path / "in").read_text(), (tmp_path / "out").read_text()) == (written, "out\n")


async def test_who_asks_for_the_right_to_mount_may_mount(shared: Runtime) -> None:
    script = "mount -t tmpfs none /tmp && echo mounted"
    spec: dict[str, Any] = {"capabilities": {"SYS_ADMIN"}}
    for fields in ({"read_only": True}, {"network_mode": "host"}):
        _, out, err = await shell(shared, script, **spec, **fields)
        assert out == "mounted\n", err


async def test_what_is_executed_traces_only_where_that_is_asked_for(shared: Runtime) -> None:
    """Each is a domain of its own to the kernel, which no two others can be made part of."""
    for spec, returncode in (({}, 0), ({"read_only": True}, 1), ({"read_only": True, "capabilities": {"SYS_PTRACE"}}, 0)):
        async with waiting(shared, **spec) as container:
            exit, text = await output(container, "readlink", "/proc/2/exe")
            assert exit.returncode == returncode, text


# ---- abstract sockets ----


@of_abi_6
async def test_containers_of_one_network_see_each_others(shared: Runtime) -> None:
    server = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.bind('\\0x'); s.listen(); print('ready', flush=True); s.accept()"
    )
    client = "import socket; socket.socket(socket.AF_UNIX).connect('\\0x'); print('hi')"
    async with waiting(shared, "python3", "-c", server, name="provider"):
        assert await python(shared, client, network_mode="service:provider", name="client") == "hi\n"


async def test_the_hosts_network_is_not_joined_behind_anothers_name(shared: Runtime) -> None:
    async with waiting(shared, name="provider", network_mode="host"):
        with pytest.raises(SpecError, match='network_mode: "provider" is in the host\'s network; use host'):
            await shell(shared, "true", name="client", network_mode="service:provider")
