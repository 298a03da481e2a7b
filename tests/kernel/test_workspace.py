"""Files put into a job's directory and collected from it: whatever the job plants there, only its own regular files come out."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.kernel.helpers import BOUND, read_until, until
from tests.kernel.test_capture import no_fd_is_left, run
from tinyvisor.errors import LaunchError, SpecError
from tinyvisor.job import Job
from tinyvisor.runtime import PIPE, Runtime, open_runtime
from tinyvisor.runtime.launches import Manner
from tinyvisor.runtime.stdio import Streams
from tinyvisor.runtime.workspace import MAX_DEPTH, Workspace
from tinyvisor.spec import Limits, Spec
from tinyvisor.state import Result

pytestmark = [pytest.mark.kernel, pytest.mark.anyio]


async def collect(runtime: Runtime, script: str, *patterns: str, **arguments: Any) -> Result:
    """What is collected of what a shell script leaves."""
    with no_fd_is_left():
        result = await run(runtime, "bash", "-c", script, collect=patterns, capture_stderr=True, **arguments)
    assert result.status == "ok", result
    return result


# ---- in ----


async def test_files_are_there_as_they_were_given(shared: Runtime, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\necho run\n")
    (tmp_path / "script").chmod(0o4777)
    (tmp_path / "plain").write_bytes(b"plain")
    (tmp_path / "plain").chmod(0o600)
    files: dict[str, bytes | Path] = {
        "main.py": b"print(1)", "a/b/c.txt": b"nested", "./x//y": b"odd", "empty": b"", "ä ß\n": b"unicode",
        os.fsdecode(b"\xff\xfe"): b"bytes", "script": tmp_path / "script", "plain": tmp_path / "plain", "big": bytes(1 << 20),
    }  # fmt: skip
    script = "./script; stat -c '%a %n' * a/b/c.txt a/b; pwd; cat x/y"
    result = await run(
        shared, "bash", "-c", script, files=files, collect=["**"], capture_stdout=True, environment={"LC_ALL": "C"}
    )
    assert result.stdout is not None
    lines = result.stdout.decode("utf-8", "surrogateescape").splitlines()
    assert lines[0] == "run"
    assert lines[-2:] == ["/work", "odd"]
    assert {"644 main.py", "755 script", "644 plain", "644 a/b/c.txt", "755 a/b", "755 a"} <= set(lines)
    assert result.files == {
        "main.py": b"print(1)", "a/b/c.txt": b"nested", "x/y": b"odd", "empty": b"", "ä ß\n": b"unicode",
        "\udcff\udcfe": b"bytes", "script": b"#!/bin/sh\necho run\n", "plain": b"plain", "big": bytes(1 << 20),
    }  # fmt: skip
    assert result.uncollected == {}


async def test_modes_do_not_depend_on_our_umask(shared: Runtime) -> None:
    before = os.umask(0o077)
    try:
        result = await run(shared, "stat", "-c", "%a", ".", "a", "a/b", files={"a/b": b""}, user="1234", capture_stdout=True)
    finally:
        os.umask(before)
    assert result.stdout == b"755\n755\n644\n"


@pytest.mark.parametrize("user, ids", [(None, "0:0"), ("1234:5678", "1234:5678"), ("nobody", "65534:65534")])
async def test_the_jobs_user_owns_its_files(shared: Runtime, user: str | None, ids: str) -> None:
    script = "stat -c %u:%g . a a/b p; echo x > new && echo y > a/b && rm p && echo writable"
    files: dict[str, bytes | Path] = {"a/b": b"", "p": Path("/etc/passwd")}
    result = await run(shared, "sh", "-c", script, files=files, user=user, capture_stdout=True, capture_stderr=True)
    assert result.stdout == f"{ids}\n{ids}\n{ids}\n{ids}\nwritable\n".encode()


async def test_the_user_is_the_roots_own(shared: Runtime, busybox: Path) -> None:
    (busybox / "etc/passwd").write_text("judge:x:777:888::/:/bin/sh\n")
    result = await run(shared, "stat", "-c", "%u:%g", "f", rootfs=busybox, files={"f": b""}, user="judge", capture_stdout=True)
    assert result.stdout == b"777:888\n"


async def test_files_go_where_the_working_directory_is(shared: Runtime) -> None:
    result = await run(shared, "pwd", files={"f": b"x"}, working_dir="/srv/job", collect=["f"], capture_stdout=True)
    assert (result.stdout, result.files) == (b"/srv/job\n", {"f": b"x"})


async def test_the_directory_hides_what_the_root_has_there(shared: Runtime, busybox: Path) -> None:
    (busybox / "work").mkdir()
    (busybox / "work/secret").write_text("x")
    result = await run(shared, "ls", "-a", rootfs=busybox, files={"f": b""}, capture_stdout=True)
    assert (result.stdout or b"").split() == [b".", b"..", b"f"]


async def test_the_directory_is_nosuid_and_nodev(shared: Runtime) -> None:
    result = await run(shared, "grep", " /work ", "/proc/self/mountinfo", files={"f": b""}, capture_stdout=True)
    options = (result.stdout or b"").split()[5].split(b",")
    assert {b"nosuid", b"nodev"} <= set(options)


@pytest.mark.parametrize(
    "files, limits, message",
    [
        ({"big": bytes(2 << 20)}, Limits(disk="1m"), "put big: No space left on device"),
        ({f"f{n}": b"" for n in range(50)}, Limits(files=20), "put f1[0-9]: No space left on device"),
        ({"a": b"", "a/b": b""}, Limits(), "put a/b: "),
        ({"a/b": b"", "a": b""}, Limits(), "put a: Is a directory"),
        ({"x" * 256: b""}, Limits(), "put x+: File name too long"),
        ({"f": Path("/no/such/file")}, Limits(), "put /no/such/file: No such file"),
    ],
)
async def test_what_can_not_be_put_is_said(shared: Runtime, files: Any, limits: Limits, message: str) -> None:
    with no_fd_is_left(), pytest.raises(LaunchError, match=message):
        await run(shared, "true", files=files, limits=limits)
    assert shared.containers == {}


@pytest.mark.parametrize("path", ["/dev/zero", "/dev", "fifo"])
async def test_a_source_that_would_never_end_is_refused(shared: Runtime, tmp_path: Path, path: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    with no_fd_is_left(), pytest.raises((SpecError, LaunchError), match="is not a regular file"):
        await run(shared, "true", files={"f": tmp_path / path})


async def test_files_count_against_no_other_limit(shared: Runtime) -> None:
    """The directory's pages are charged to who wrote them: us. The job starts with all of its own memory."""
    result = await run(shared, "true", files={"big": bytes(64 << 20)}, limits=Limits(memory="16m", disk="100m"))
    assert result.status == "ok"


# ---- out ----


async def test_patterns(shared: Runtime) -> None:
    files = "a.txt b.txt c.dat .hidden logs/1 logs/deep/2 logs/deep/er/3.txt"
    script = f"mkdir -p logs/deep/er out; for f in {files}; do echo $f > $f; done"
    result = await collect(
        shared, script, "*.txt", "logs/*", "c.dat", "nothing*", "missing", "out", "[ab].???", "**/3.txt", "./logs//1"
    )
    assert set(result.files) == {"a.txt", "b.txt", "c.dat", "logs/1", "logs/deep/er/3.txt"}
    assert result.files["logs/deep/er/3.txt"] == b"logs/deep/er/3.txt\n"
    assert result.uncollected == {"nothing*": "nothing fits it", "missing": "does not exist", "out": "a directory"}


async def test_everything(shared: Runtime) -> None:
    result = await collect(shared, "mkdir -p a/b; touch x .y a/z a/b/.w", "**")
    assert set(result.files) == {"x", ".y", "a/z", "a/b/.w"}
    assert result.uncollected == {}


PLANT = """
ln -s /etc/shadow link; ln -s /etc etc; ln -s /proc/self/root root; ln -s . loop; ln -s nowhere dangling; ln -s real internal
ln -s /proc/1/fd/3 magic
mkfifo fifo
echo real > real; ln real hard
mkdir dir; ln -s ../../../../../../etc/shadow dir/up; ln -s /proc/self/fd/0 dir/fd
python3 -c "import socket; s = socket.socket(socket.AF_UNIX); s.bind('sock')"
"""


async def test_what_a_job_plants_is_named_and_not_followed(shared: Runtime) -> None:
    names = ("link", "etc/shadow", "root/etc/shadow", "loop/real", "dangling", "internal", "magic", "dir/up", "dir/fd", "etc/*")
    result = await collect(shared, PLANT, "fifo", "sock", "real", "hard", "dir", *names)
    assert result.files == {"real": b"real\n", "hard": b"real\n"}
    link = "a symbolic link"
    assert {path: reason for path, reason in result.uncollected.items() if path not in names} == {
        "fifo": "a FIFO", "sock": "a socket", "dir": "a directory", "etc": link, "root": link, "loop": link,
    }  # fmt: skip
    for name in ("link", "dangling", "internal", "magic", "dir/up", "dir/fd"):
        assert result.uncollected[name] == link
    assert set(names) <= set(result.uncollected)


async def test_what_a_job_plants_is_not_followed_by_patterns_either(shared: Runtime) -> None:
    result = await collect(shared, PLANT, "**", "*/*", "*/**/shadow")
    assert result.files == {"real": b"real\n", "hard": b"real\n"}
    assert set(result.uncollected) == {
        "link", "etc", "root", "loop", "dangling", "internal", "magic", "fifo", "sock", "dir/up", "dir/fd", "*/**/shadow",
    }  # fmt: skip


@pytest.mark.hostroot
async def test_devices_can_not_be_planted_nor_read(shared: Runtime) -> None:
    script = "mknod null c 1 3; mknod mem c 1 1; mknod disk b 8 0; true"
    for userns_mode, what in (("host", "a device"), ("auto", "does not exist")):
        result = await collect(shared, script, "null", "mem", "disk", capabilities={"MKNOD"}, userns_mode=userns_mode)
        assert result.files == {}
        assert result.uncollected == {"null": what, "mem": what, "disk": what}


async def test_a_fifos_writer_is_not_woken(shared: Runtime) -> None:
    """It is looked at, not opened."""
    async with swapping(shared, FIFO) as directory:
        for _ in range(5):
            assert directory.collect(("f", "*"), 100) == ({}, {"f": "a FIFO"})
        assert os.stat("f", dir_fd=directory.fd)
        with pytest.raises(FileNotFoundError):
            os.stat("woken", dir_fd=directory.fd)


async def test_sparse_giants_are_too_large_and_cost_nothing(shared: Runtime) -> None:
    result = await collect(shared, "truncate -s 1T giant; truncate -s 5 five", "giant", "five", collect_limit=5)
    assert result.files == {"five": bytes(5)}
    assert result.uncollected == {"giant": "larger than what may be collected"}
    result = await collect(shared, "truncate -s 200M giant", "giant")
    assert result.uncollected == {"giant": "larger than what may be collected"}


async def test_the_limit_is_of_all_together_and_exact(shared: Runtime) -> None:
    script = "head -c 6 /dev/zero > a; head -c 4 /dev/zero > b; touch c; echo > d"
    result = await collect(shared, script, "a", "b", "c", "d", collect_limit=10)
    assert set(result.files) == {"a", "b", "c"}
    assert result.uncollected == {"d": "larger than what may be collected"}
    assert set((await collect(shared, script, "*", collect_limit=9)).files) == {"a", "c", "d"}
    assert set((await collect(shared, script, "*", collect_limit=0)).files) == {"c"}
    assert len((await collect(shared, script, "*", collect_limit=10**15)).files) == 4


async def test_deep_trees_have_a_bound(shared: Runtime) -> None:
    code = "import os\nfor n in range(500):\n open('f', 'w').close(); os.mkdir('d'); os.chdir('d')"
    with no_fd_is_left():
        result = await run(shared, "python3", "-c", code, collect=["**", "**/f"])
    assert len(result.files) == MAX_DEPTH + 1
    assert list(result.uncollected) == ["d/" * MAX_DEPTH + "d"]
    assert result.uncollected["d/" * MAX_DEPTH + "d"] == f"more than {MAX_DEPTH} directories deep"


async def test_a_deep_path_that_is_written_out_is_found(shared: Runtime) -> None:
    path = "/".join(["d"] * MAX_DEPTH)
    assert (await collect(shared, f"mkdir -p {path}; echo x > {path}/f", f"{path}/f")).files == {f"{path}/f": b"x\n"}


async def test_ten_thousand_files(shared: Runtime) -> None:
    """TINYVISOR_FAULTS=all: a hundred thousand, which takes ten seconds. One more than there may be is its own trouble."""
    count = 100_000 if os.environ.get("TINYVISOR_FAULTS") == "all" else 10_000
    code = f"import os\nos.mkdir('d')\nfor n in range({count}):\n with open(f'd/{{n}}', 'w') as f: f.write(str(n))"
    limits = Limits(files=count + 2, disk="1g")
    result = await run(shared, "python3", "-c", code, collect=["d/*"], limits=limits)
    assert result.status == "ok"
    assert result.files == {f"d/{n}": str(n).encode() for n in range(count)}
    result = await run(shared, "python3", "-c", code, limits=Limits(files=count, disk="1g"))
    assert result.status == "nonzero_exit", "errno.ENOSPC"


async def test_names_that_are_no_utf8(shared: Runtime) -> None:
    code = r"import os; [open(name, 'w').close() for name in (b'\xff', b'a\nb', b'\xe4\xf6', b'-', b'*', b' ')]"
    result = await run(shared, "python3", "-c", code, collect=["*", "\udcff"])
    assert set(result.files) == {"\udcff", "a\nb", "\udce4\udcf6", "-", "*", " "}


async def test_files_without_read_permission_come_too(shared: Runtime) -> None:
    script = "mkdir d; echo x > d/f; chmod 0 d/f d"
    assert (await collect(shared, script, "d/f", user="1234")).files == {"d/f": b"x\n"}


async def test_what_is_mounted_inside_is_not_looked_into(shared: Runtime) -> None:
    """By a job that may mount."""
    script = "mkdir m; mount -t tmpfs none m && echo x > m/f && touch mine && mount --bind /etc . && cd . && ls passwd"
    result = await collect(shared, script, "m/f", "**", "passwd", capabilities={"SYS_ADMIN"})
    assert result.files == {"mine": b""}
    assert result.uncollected == {"m/f": "does not exist", "passwd": "does not exist"}


async def test_what_a_running_job_mounts_is_not_looked_into_either(shared: Runtime) -> None:
    """As long as it runs its mounts are there: by a job of which we have the directory that it has."""
    directory = Workspace(size=1 << 20, inodes=100)
    code = "mkdir m && mount -t tmpfs none m && echo x > m/f && echo ready && cat"
    streams = Streams(PIPE, PIPE, None, shared._launches.null)
    spec = Spec(command=("sh", "-c", code), working_dir="/work", capabilities=frozenset({"SYS_ADMIN"}), userns_mode="host")
    container = await shared._launches.launch(spec, streams, Manner(workspace=directory))
    try:
        await read_until(container.stdout, "ready\n")
        files, missing = directory.collect(("m/f", "**"), 100)
        assert files == {}
        assert missing["m"] == "on another file system"
    finally:
        await shared._launches.end(container)
        directory.close()


async def test_collected_after_any_end(shared: Runtime) -> None:
    for script, status in (("exit 3", "nonzero_exit"), ("kill -9 $$", "signaled"), ("sleep 60", "time_limit")):
        result = await run(
            shared, "bash", "-c", f"echo x > f; {script}", collect=["f"], timeout=0.3 if "sleep" in script else None
        )
        assert (result.status, result.files) == (status, {"f": b"x\n"})


async def test_a_job_of_map_has_its_files(shared: Runtime) -> None:
    jobs = [
        Job(spec=Spec(command=("cp", "in", "out")), id=str(n), files={"in": str(n).encode()}, collect=("out",)) for n in range(20)
    ]
    async with shared.map(jobs, concurrency=5) as results:
        found = {result.id: dict(result.files) async for result in results}
    assert found == {str(n): {"out": str(n).encode()} for n in range(20)}


# ---- a directory that jobs share ----


async def test_jobs_in_turn(shared: Runtime) -> None:
    """Compile, then run many times."""
    async with shared.working_directory() as directory:
        source: dict[str, bytes | Path] = {"source": b"#!/bin/sh\necho hi $1"}
        compiler = "cat source > program; chmod +x program"
        first = await run(shared, "sh", "-c", compiler, files=source, working_directory=directory)
        assert first.status == "ok"
        for number in range(5):
            result = await run(shared, "./program", str(number), working_directory=directory, capture_stdout=True)
            assert result.stdout == f"hi {number}\n".encode()
        result = await run(shared, "true", working_directory=directory, collect=["program"])
        assert result.files == {"program": b"#!/bin/sh\necho hi $1"}


async def test_jobs_at_once(shared: Runtime) -> None:
    async with shared.working_directory() as directory, anyio.create_task_group() as group:

        async def one(number: int) -> None:
            script = f"touch here.{number}; while [ $(ls here.* | wc -l) != 4 ]; do sleep 0.01; done"
            result = await run(
                shared, "sh", "-c", script, working_directory=directory, files={f"in.{number}": b""}, timeout=BOUND
            )
            assert result.status == "ok"

        for number in range(4):
            group.start_soon(one, number)


async def test_put_replaces_and_follows_no_link(shared: Runtime) -> None:
    async with shared.working_directory() as directory:
        script = "echo old > f; ln -s /etc/passwd link; ln -s /etc etc; mkdir d"
        await run(shared, "sh", "-c", script, working_directory=directory)
        files: dict[str, bytes | Path] = {"f": b"new", "link": b"mine", "d/x": b"x"}
        result = await run(shared, "true", working_directory=directory, files=files, collect=["f", "link", "d/x"])
        assert result.files == {"f": b"new", "link": b"mine", "d/x": b"x"}
        with no_fd_is_left(), pytest.raises(LaunchError, match="put etc/hacked: "):
            await run(shared, "true", working_directory=directory, files={"etc/hacked": b"x"})
    assert not Path("/etc/hacked").exists()


SWAP = """
import os
os.makedirs('a/d', exist_ok=True)
open('a/d/f', 'w').write('mine')
os.symlink('/etc', 'b')
print('ready', flush=True)
import ctypes
renameat2 = ctypes.CDLL(None).renameat2
while True:
    renameat2(-100, b'a/d', -100, b'b', 2)
"""


@pytest.mark.hostroot
async def test_directories_swapped_by_a_running_job(shared: Runtime) -> None:
    """The very name is a directory and a link to the host's /etc, in turn: while we look, and while we write."""
    secret = Path("/etc/passwd").read_bytes()
    async with swapping(shared, SWAP) as directory:
        seen: set[str] = set()
        for _ in range(300):
            files, missing = directory.collect(("a/d/f", "a/d/passwd", "a/*/*", "**/passwd"), 1 << 20)
            assert set(files.values()) <= {b"mine", b"put"}
            assert secret not in files.values()
            seen |= {missing.get("a/d", "there")}
            try:
                directory.put({"a/d/put": b"put", "a/d/passwd": b"put"}, 1234, 1234)
            except OSError:
                seen.add("refused")
        assert {"there", "a symbolic link"} <= seen, "the race was never run"
    assert Path("/etc/passwd").read_bytes() == secret
    assert Path("/etc/passwd").stat().st_uid == 0
    assert not Path("/etc/put").exists()


FIFO = """
import os
os.mkfifo('f')
print('ready', flush=True)
os.open('f', os.O_WRONLY)
os.mkdir('woken')
"""


@asynccontextmanager
async def swapping(runtime: Runtime, code: str) -> AsyncIterator[Workspace]:
    async with runtime.working_directory() as directory, anyio.create_task_group() as group:
        stdout, theirs = os.pipe()
        try:
            group.start_soon(lambda: run_quietly(runtime, code, directory, theirs))
            await anyio.wait_readable(stdout)
            yield directory
        finally:
            group.cancel_scope.cancel()
            os.close(stdout)
            os.close(theirs)


async def run_quietly(runtime: Runtime, code: str, directory: Workspace, stdout: int) -> None:
    await runtime.run(["python3", "-c", code], working_directory=directory, stdout=stdout, pids_limit=5, mem_limit=64 << 20)


async def launcher_mounts(runtime: Runtime) -> list[str]:
    return [line.split()[4] for line in Path(f"/proc/{runtime._launcher.pid}/mountinfo").read_text().splitlines()]


async def test_it_goes_from_the_launchers_world_and_its_number_is_given_again(anyio_backend: str) -> None:
    with anyio.fail_after(BOUND):
        async with open_runtime() as runtime:
            await runtime.run(["true"])
            before = sorted(await launcher_mounts(runtime))
            for _ in range(3):
                async with runtime.working_directory() as one, runtime.working_directory(size="1m") as two:
                    assert {one.template, two.template} == {"/t/work/0", "/t/work/1"}
                    assert (await run(runtime, "touch", "x", working_directory=two)).status == "ok"
                    inside = await run(runtime, "ls", working_directory=one, capture_stdout=True)
                    assert inside.stdout == b"", "a number's earlier contents"
                    assert len(await launcher_mounts(runtime)) == len(before) + 2
                assert sorted(await launcher_mounts(runtime)) == before


async def test_it_ends_while_jobs_are_in_it(shared: Runtime) -> None:
    async with anyio.create_task_group() as group:
        async with shared.working_directory() as directory:
            stdin, ours = os.pipe()
            group.start_soon(_copy_in, shared, directory, stdin)
            await until(lambda: bool(shared.containers))
        os.write(ours, b"still works")
        os.close(ours)
    os.close(stdin)


async def _copy_in(runtime: Runtime, directory: Workspace, stdin: int) -> None:
    script = "echo x > f; cat > g; cat g"
    result = await run(runtime, "sh", "-c", script, working_directory=directory, stdin=stdin, capture_stdout=True)
    assert result.stdout == b"still works"


async def test_its_size_is_a_limit(shared: Runtime) -> None:
    async with shared.working_directory(size="1m", inodes=10, mode=0o1777) as directory:
        script = "head -c 2M /dev/zero > big; for i in 1 2 3 4 5 6 7 8 9 10 11; do touch $i; done; stat -c %a ."
        result = await run(shared, "sh", "-c", script, working_directory=directory, capture_stdout=True, capture_stderr=True)
        assert (result.stderr or b"").count(b"No space left on device") >= 2
        assert result.stdout == b"1777\n"


@pytest.mark.parametrize("arguments", [{"size": 0}, {"size": "x"}, {"size": -1}, {"inodes": 0}, {"inodes": "5"}, {"mode": "755"}])
async def test_wrong_values_of_it(shared: Runtime, arguments: Any) -> None:
    with no_fd_is_left(), pytest.raises(SpecError) as caught:
        async with shared.working_directory(**arguments):
            pass
    assert caught.value.field in arguments


async def test_it_can_not_be_used_once_it_is_left(shared: Runtime, anyio_backend: str) -> None:
    """Below its mount is a directory of the launcher's own."""
    async with shared.working_directory() as directory:
        pass
    for files in ({}, {"a": b""}):
        with no_fd_is_left(), pytest.raises(SpecError, match="working_directory: has been left"):
            await run(shared, "true", working_directory=directory, files=files)
    assert shared.containers == {}
    async with open_runtime() as other, other.working_directory() as directory:
        with no_fd_is_left(), pytest.raises(SpecError, match="is another runtime's"):
            await run(shared, "true", working_directory=directory)
