"""`Runtime.run`: what goes in and what comes out, to the byte, and that nothing keeps a run longer than its container."""

from __future__ import annotations

import io
import os
import resource
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import tinyvisor
from tests.kernel.helpers import BOUND, cgroups, fds, read_until, waiting
from tinyvisor.errors import ContainerError, LaunchError, RunFailed, SpecError
from tinyvisor.runtime import PIPE, STDOUT, Container, Runtime
from tinyvisor.runtime.capture import DEFAULT_LIMIT
from tinyvisor.spec import Limits, Spec, Volume
from tinyvisor.state import Result

pytestmark = [pytest.mark.kernel, pytest.mark.anyio]

CAPTURE: dict[str, Any] = {"capture_stdout": True, "capture_stderr": True}


async def run(runtime: Runtime, *command: str, **arguments: Any) -> Result:
    with anyio.fail_after(BOUND):
        return await runtime.run(list(command), **arguments)


@contextmanager
def no_fd_is_left() -> Iterator[None]:
    before = fds()
    yield
    assert fds() == before


# ---- out ----


async def test_streams_are_apart_and_binary(shared: Runtime) -> None:
    result = await run(shared, "sh", "-c", r"printf 'a\0\377\n'; printf 'e' >&2", **CAPTURE)
    assert (result.stdout, result.stderr) == (b"a\0\xff\n", b"e")
    assert (result.stdout_bytes, result.stderr_bytes, result.truncated) == (4, 1, False)
    assert (result.status, result.exit_code) == ("ok", 0)


async def test_what_is_not_captured_is_dev_null(shared: Runtime) -> None:
    result = await run(shared, "sh", "-c", "exec 3>&1; stat -Lc %t:%T /proc/$$/fd/0 /proc/$$/fd/3 >&2", capture_stderr=True)
    assert result.stderr == b"1:3\n1:3\n"
    assert result.stdout is None
    assert result.stdout_bytes == 0


async def test_merged_output_is_in_order(shared: Runtime) -> None:
    script = "for i in 1 2 3; do echo o$i; echo e$i >&2; done"
    result = await run(shared, "sh", "-c", script, capture_stdout=True, stderr=STDOUT)
    assert result.stdout == b"o1\ne1\no2\ne2\no3\ne3\n"
    assert result.stderr is None


async def test_merged_output_to_a_file(shared: Runtime) -> None:
    with tempfile.TemporaryFile() as file:
        await run(shared, "sh", "-c", "echo o; echo e >&2; echo o", stdout=file, stderr=STDOUT)
        file.seek(0)
        assert file.read() == b"o\ne\no\n"


async def test_a_file_is_given_to_the_container_itself(shared: Runtime, tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb") as file:
        result = await run(shared, "stat", "-Lc", "%i %d", "/proc/self/fd/1", stdout=file, capture_stderr=True)
    status = (tmp_path / "out").stat()
    assert (tmp_path / "out").read_text() == f"{status.st_ino} {status.st_dev}\n"
    assert (result.stdout, result.stdout_bytes, result.stderr) == (None, 0, b"")


@pytest.mark.parametrize("limit", [1, 100, 4096, 65536, 65537, 300_000])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_output_limit_is_exact(shared: Runtime, limit: int, stream: str) -> None:
    redirect = ">&2" if stream == "stderr" else ""

    async def write(size: int) -> Result:
        return await run(shared, "sh", "-c", f"head -c {size} /dev/zero {redirect}", limits=Limits(output=limit), **CAPTURE)

    exact = await write(limit)
    assert (exact.status, exact.truncated, getattr(exact, stream)) == ("ok", False, bytes(limit))
    more = await write(limit + 1)
    assert (more.status, more.truncated, getattr(more, stream)) == ("output_limit", True, bytes(limit))
    assert getattr(more, f"{stream}_bytes") == limit + 1
    assert "output_limit" in more.limits_enforced


async def test_output_limit_is_seen_however_quick_the_end_is(shared: Runtime) -> None:
    """One byte too many fits into the pipe, and the container may have ended before anybody looks."""
    for _ in range(100):
        result = await run(shared, "head", "-c", "11", "/dev/zero", capture_stdout=True, output_limit=10)
        assert (result.status, result.stdout, result.exit_code in (0, None)) == ("output_limit", bytes(10), True)
        assert result.reason == "killed after more than 10B of output"


async def test_output_limits_are_each_streams_own(shared: Runtime) -> None:
    result = await run(shared, "sh", "-c", "head -c 100 /dev/zero; head -c 100 /dev/zero >&2", output_limit=100, **CAPTURE)
    assert (result.status, result.stdout, result.stderr) == ("ok", bytes(100), bytes(100))


async def test_a_flood_is_ended_and_its_first_part_kept(shared: Runtime) -> None:
    result = await run(shared, "sh", "-c", "yes >&2 & yes", limits=Limits(output="1m", pids=10), **CAPTURE)
    assert (result.status, result.signal) == ("output_limit", signal.SIGKILL)
    assert result.stdout is not None
    assert result.stderr is not None
    assert max(len(result.stdout), len(result.stderr)) == 1 << 20
    assert set(result.stdout + result.stderr) == set(b"y\n")


async def test_captured_output_is_bounded_where_no_limit_was_set(shared: Runtime) -> None:
    result = await run(shared, "head", "-c", str(DEFAULT_LIMIT + 1), "/dev/zero", capture_stdout=True)
    assert (result.status, result.stdout_bytes, result.truncated) == ("output_limit", DEFAULT_LIMIT + 1, True)
    assert result.stdout == bytes(DEFAULT_LIMIT)
    assert "output_limit" not in result.limits_enforced  # nobody asked for it
    result = await run(shared, "head", "-c", str(DEFAULT_LIMIT), "/dev/zero", capture_stdout=True)
    assert (result.status, result.stdout_bytes, result.truncated) == ("ok", DEFAULT_LIMIT, False)


async def test_a_limit_that_no_one_could_count_is_refused(shared: Runtime) -> None:
    with tempfile.TemporaryFile() as file:
        for name in ("stdout", "stderr"):
            with pytest.raises(SpecError, match=f"output_limit: {name} is not read by tinyvisor"):
                await run(shared, "true", output_limit=5, **{name: file})
    with pytest.raises(SpecError, match="output_limit"):
        async with shared.start(["true"], output_limit=5):
            pass


async def test_a_time_limit_comes_before_an_output_limit_that_it_leads_to(shared: Runtime) -> None:
    result = await run(shared, "sh", "-c", "head -c 5 /dev/zero; sleep 60", timeout=0.2, output_limit=5, capture_stdout=True)
    assert (result.status, result.stdout, result.truncated) == ("time_limit", bytes(5), False)


async def test_output_of_who_outlives_the_workload_within_the_container(shared: Runtime) -> None:
    """It ends with the workload; what was written by then is kept."""
    result = await run(shared, "sh", "-c", "sleep 1000 & echo done", capture_stdout=True, pids_limit=10)
    assert (result.status, result.stdout) == ("ok", b"done\n")


HAND_OVER = """
import array, os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect('/shared/socket')
print('mine')
sys.stdout.flush()
s.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0, 1, 2]))])
s.recv(1)
"""
TAKE_OVER = """
import array, os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind('/shared/socket')
listener.listen()
print('ready', flush=True)
s, _ = listener.accept()
_, control, _, _ = s.recvmsg(1, 100)
fds = array.array('i')
fds.frombytes(control[0][2])
os.write(fds[1], b'yours\\n')
print('taken', flush=True)
s.send(b'x')
sys.stdin.read()
"""


async def test_a_pipe_end_that_outlives_the_container_holds_nothing_up(shared: Runtime, tmp_path: Path) -> None:
    """It was passed on to another container, which keeps it open: the run ends with its own container all the same, also
    when there is more stdin than the pipe takes."""
    volumes = (Volume(tmp_path, "/shared"),)
    with no_fd_is_left():
        async with waiting(shared, "python3", "-c", TAKE_OVER, name="taker", volumes=volumes) as taker:
            result = await run(
                shared, "python3", "-c", HAND_OVER, volumes=volumes, stdin=bytes(1 << 20), capture_stdout=True, stderr=STDOUT
            )
            assert (result.status, result.stdout) == ("ok", b"mine\nyours\n")
            await read_until(taker.stdout, "taken\n")
            assert taker.exit is None


# ---- in ----


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 5_000_000])
async def test_stdin_as_bytes_of_any_size(shared: Runtime, size: int) -> None:
    content = os.urandom(1000) * (size // 1000) + bytes(size % 1000)
    result = await run(shared, "cat", stdin=content, capture_stdout=True)
    assert (result.status, result.stdout) == ("ok", content)


async def test_stdin_as_a_file_is_that_file(shared: Runtime, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"content")
    with no_fd_is_left():
        result = await run(shared, "sh", "-c", "cat; stat -Lc %i /proc/self/fd/0", stdin=tmp_path / "in", capture_stdout=True)
    assert result.stdout == b"content%d\n" % (tmp_path / "in").stat().st_ino


async def test_a_file_as_stdin_can_not_be_written(shared: Runtime, tmp_path: Path) -> None:
    """Nor opened again for that, which root inside could do, were it not for the mount."""
    (tmp_path / "in").write_bytes(b"content")
    (tmp_path / "in").chmod(0o666)
    script = "echo x >&0; echo x > /proc/self/fd/0; chmod 600 /proc/self/fd/0"
    result = await run(shared, "bash", "-c", script, stdin=tmp_path / "in", capture_stderr=True)
    assert result.stderr is not None
    assert result.stderr.count(b"Read-only file system") == 2
    assert (tmp_path / "in").read_bytes() == b"content"
    assert (tmp_path / "in").stat().st_mode & 0o777 == 0o666


async def test_a_path_to_what_is_on_no_mount(shared: Runtime) -> None:
    fd = os.memfd_create("input")
    os.write(fd, b"content")
    os.lseek(fd, 0, os.SEEK_SET)
    assert (await run(shared, "cat", stdin=Path(f"/proc/self/fd/{fd}"), capture_stdout=True)).stdout == b"content"
    os.close(fd)


async def test_stdin_as_an_fd(shared: Runtime) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"0123456789")
        file.seek(4)
        for given in (file, file.fileno()):
            file.seek(4)
            assert (await run(shared, "cat", stdin=given, capture_stdout=True)).stdout == b"456789"


class Source(anyio.abc.ByteReceiveStream):
    """A stream that gives these chunks, then raises or ends."""

    def __init__(self, *chunks: bytes, error: Exception | None = None, forever: bool = False) -> None:
        self.chunks, self.error, self.forever, self.closed = list(chunks), error, forever, False

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.lowlevel.checkpoint()
        if self.chunks:
            return self.chunks.pop(0)
        if self.forever:
            await anyio.sleep_forever()
        raise self.error or anyio.EndOfStream

    async def aclose(self) -> None:
        self.closed = True


async def test_stdin_as_a_stream(shared: Runtime) -> None:
    chunks = [os.urandom(size) for size in (1, 100_000, 5, 70_000)]
    source = Source(*chunks)
    assert (await run(shared, "cat", stdin=source, capture_stdout=True)).stdout == b"".join(chunks)
    assert not source.closed, "it is the caller's"


async def test_stdin_as_a_memory_stream(shared: Runtime) -> None:
    """Which is no ByteReceiveStream, but has bytes all the same."""
    send, receive = anyio.create_memory_object_stream[bytes](5)
    for chunk in (b"a", b"b"):
        send.send_nowait(chunk)
    send.close()
    assert (await run(shared, "cat", stdin=receive, capture_stdout=True)).stdout == b"ab"
    receive.close()


async def test_one_containers_output_is_anothers_input(shared: Runtime) -> None:
    async with shared.start(["sh", "-c", "echo from one; echo to another"], stdout=PIPE) as first:
        assert first.stdout is not None
        assert (
            await run(shared, "tr", "a-z", "A-Z", stdin=first.stdout, capture_stdout=True)
        ).stdout == b"FROM ONE\nTO ANOTHER\n"


class SourceError(Exception):
    pass


async def test_a_source_that_raises_ends_the_run(shared: Runtime) -> None:
    with no_fd_is_left(), pytest.raises(SourceError):
        await run(shared, "cat", stdin=Source(b"x", error=SourceError()), capture_stdout=True)
    assert shared.containers == {}


@pytest.mark.parametrize(
    "stdin", [bytes(5_000_000), Source(bytes(5_000_000)), Source(b"x", forever=True)], ids=["bytes", "stream", "slow"]
)
async def test_a_workload_that_does_not_read_its_stdin(shared: Runtime, stdin: Any) -> None:
    with no_fd_is_left():
        result = await run(shared, "sh", "-c", "exec 0<&-; echo ok", stdin=stdin, capture_stdout=True)
    assert (result.status, result.stdout) == ("ok", b"ok\n")


async def test_a_workload_that_reads_a_part_of_its_stdin(shared: Runtime) -> None:
    result = await run(shared, "head", "-c", "3", stdin=b"abc" * 1_000_000, capture_stdout=True)
    assert (result.status, result.stdout) == ("ok", b"abc")


async def test_both_ways_at_once_without_a_deadlock(shared: Runtime) -> None:
    content = os.urandom(1 << 20) * 3
    result = await run(shared, "tee", "/dev/stderr", stdin=content, **CAPTURE)
    assert (result.stdout, result.stderr) == (content, content)


async def test_a_fifo_of_the_host_does_not_stop_the_program(shared: Runtime, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    result = await run(shared, "cat", stdin=tmp_path / "fifo", capture_stdout=True)
    assert (result.status, result.stdout) == ("ok", b"")


# ---- what is refused ----


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"stdin": PIPE}, "stdin: a run has nobody to write to a pipe"),
        ({"stdout": PIPE}, "stdout: a run has nobody to read a pipe; use capture_stdout"),
        ({"stderr": PIPE}, "stderr: a run has nobody to read a pipe; use capture_stderr"),
        ({"stdout": STDOUT}, "stdout: STDOUT is for stderr"),
        ({"capture_stdout": True, "stdout": 1}, "stdout: can't be captured and go elsewhere"),
        ({"capture_stderr": True, "stderr": STDOUT}, "stderr: can't be captured and go elsewhere"),
        ({"stdin": "text"}, "stdin: expected"),
        ({"stdin": io.BytesIO(b"x")}, "stdin: .* has no file descriptor"),
        ({"stdin": Path("/no/such/file")}, "stdin: /no/such/file: No such file"),
        ({"stdin": Path("/etc")}, "stdin: a directory of the host"),
        ({"stdin": Path("a\0b")}, "stdin: .*null byte"),
        ({"stdout": 10**6}, "stdout: .*Bad file descriptor"),
        ({"tty": True}, "tty: a run has nobody at a terminal"),
        ({"files": {"../x": b""}}, "files: "),
        ({"files": {"x": 5}}, "files: "),
        ({"files": {"x": "/etc/passwd"}}, "files: expected bytes or a Path"),
        ({"nosuch": 1}, "nosuch: there is no such field"),
        ({"cwd": "/"}, 'cwd: .*did you mean "working_dir"'),
        ({"env": {}}, 'env: .*did you mean "environment"'),
        ({"mem_limt": 5}, 'mem_limt: .*did you mean "mem_limit"'),
        ({"limits": {"memory": "64m"}}, "limits: expected Limits"),
        ({"deliver_cancel": 5}, "deliver_cancel: expected an async function"),
        ({"working_directory": "/tmp"}, "working_directory: .*another runtime's"),
        ({"collect": ["/etc/passwd"]}, "collect: "),
        ({"collect": "x"}, "collect: "),
        ({"collect": ["x"], "collect_limit": -1}, "collect_limit: "),
        ({"collect": ["x"], "collect_limit": "1m"}, "collect_limit: "),
        ({"pids_limit": 0}, "pids_limit: "),
        ({"environment": {"A": "\ud800"}}, "environment: "),
    ],
)
async def test_wrong_arguments_name_themselves_and_leave_nothing(
    shared: Runtime, arguments: dict[str, Any], message: str
) -> None:
    with no_fd_is_left(), pytest.raises(SpecError, match=message):
        await run(shared, "true", **arguments)
    assert shared.containers == {}
    assert cgroups(shared) == []


@pytest.mark.parametrize("command", ["ls -l", b"ls", None, [], [""], ["a\0b"], ["echo", "\ud800"], [5]])
async def test_wrong_commands(shared: Runtime, command: Any) -> None:
    with no_fd_is_left(), pytest.raises(SpecError) as caught:
        await shared.run(command)
    assert caught.value.field == "command"


async def test_words_that_are_no_utf8_arrive_as_they_are(shared: Runtime) -> None:
    result = await run(shared, "printf", "%s", os.fsdecode(b"\xff\xc3"), capture_stdout=True, environment={"LC_ALL": "C"})
    assert result.stdout == b"\xff\xc3"


async def test_runs_that_are_alike_but_for_their_environment(shared: Runtime) -> None:
    """What they have in common is made once; the environment is not of it."""
    for given, expected in (({"A": "1"}, b"1"), ({}, b"none"), (None, b"none"), ({"A": "2"}, b"2")):
        changes: dict[str, Any] = {} if given is None else {"environment": given}
        result = await run(shared, "sh", "-c", "printf %s ${A-none}", capture_stdout=True, **changes)
        assert result.stdout == expected


async def test_check_raises_and_carries_the_result(shared: Runtime) -> None:
    with pytest.raises(RunFailed, match="nonzero_exit: exit 3") as caught:
        await run(shared, "sh", "-c", "echo out; exit 3", check=True, capture_stdout=True)
    assert (caught.value.result.exit_code, caught.value.result.stdout) == (3, b"out\n")
    assert (await run(shared, "true", check=True)).status == "ok"


async def test_limits_go_over_the_specs_own_and_fields_over_them(shared: Runtime) -> None:
    spec = Spec(command=("cat", "/proc/self/limits"), pids_limit=50, timeout=30)
    result = await shared.run(spec, limits=Limits(pids=7, open_files=33), timeout=20, capture_stdout=True)
    assert b"Max open files            33                   33" in (result.stdout or b"")
    assert set(result.limits_enforced) == {"pids_limit", "timeout"}
    assert (await shared.run(["sh", "-c", "ulimit -n"], limits=Limits(open_files=44), capture_stdout=True)).stdout == b"44\n"


async def test_a_run_that_does_not_start_says_which_step(shared: Runtime) -> None:
    with no_fd_is_left(), pytest.raises(LaunchError, match="exec /no/such/program: No such file"):
        await run(shared, "/no/such/program", stdin=bytes(1 << 20), **CAPTURE)
    with no_fd_is_left(), pytest.raises(LaunchError, match="/proc/x"):
        await run(shared, "true", working_dir="/proc/x", **CAPTURE)


# ---- out of fds ----


@contextmanager
def few_fds(more: int) -> Iterator[None]:
    """Room for so many fds more than there are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd"))) + 1
    held = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, hard))
        while True:  # the gaps below
            fd = os.dup(0)
            held.append(fd)
            if fd >= used - 1:
                break
        yield
    except OSError:
        yield
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_out_of_fds_is_one_runs_failure(shared: Runtime) -> None:
    await run(shared, "true", files={"a": b""}, collect=["a"], **CAPTURE)
    with no_fd_is_left():
        outcomes = []
        for more in range(20):
            with few_fds(more):
                try:
                    await run(shared, "cat", stdin=b"x", files={"a/b": b""}, collect=["**/*"], **CAPTURE)
                    outcomes.append("ok")
                except ContainerError as exc:
                    outcomes.append(str(exc).rpartition(": ")[2])
            assert shared.containers == {}
    assert set(outcomes) == {"ok", "Too many open files"}, outcomes
    assert (await run(shared, "true")).status == "ok"


async def test_out_of_fds_is_one_execs_failure(shared: Runtime) -> None:
    async with waiting(shared) as container:
        await container.exec(["true"])
        with no_fd_is_left():
            outcomes = set()
            for more in range(12):
                with few_fds(more):
                    try:
                        async with container.open_exec(["true"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
                            await process.wait()
                        outcomes.add("ok")
                    except ContainerError as exc:
                        outcomes.add(str(exc).rpartition(": ")[2])
        assert outcomes == {"ok", "Too many open files"}


# ---- cancellation ----


async def test_deliver_cancel_ends_it_in_the_users_way(shared: Runtime, tmp_path: Path) -> None:
    script = "trap 'echo polite > /out/said; exit 7' TERM; echo > /out/ready; while :; do sleep 0.01; done"
    ended: list[Container] = []

    async def stop(container: Container) -> None:
        ended.append(container)
        await container.stop(grace=BOUND)

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(_run_in, shared, script, tmp_path, stop)
            await _exists(tmp_path / "ready")
            scope.cancel()
    assert (tmp_path / "said").read_text() == "polite\n"
    assert [container.exit.exit_code for container in ended if container.exit] == [7]
    assert shared.containers == {}


async def test_deliver_cancel_names_who_did_not_listen(shared: Runtime, tmp_path: Path) -> None:
    """Though nobody waited for the start of a run."""
    ended: list[Container] = []

    async def stop(container: Container) -> None:
        ended.append(container)
        assert (await container.exec(["true"])).status == "ok"
        await container.stop(grace=0.05)

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(_run_in, shared, "trap '' TERM; echo > /out/ready; while :; do sleep 0.01; done", tmp_path, stop)
            await _exists(tmp_path / "ready")
            scope.cancel()
    assert ended[0].exit is not None
    assert ended[0].exit.held_up_by[0].startswith("sh[")


async def _exists(path: Path) -> None:
    with anyio.fail_after(BOUND):
        while not path.exists():  # noqa: ASYNC110 - nobody tells us
            await anyio.sleep(0.005)


async def _run_in(runtime: Runtime, script: str, directory: Path, deliver: Any) -> None:
    volumes = (Volume(directory, "/out"),)
    await runtime.run(["sh", "-c", script], volumes=volumes, deliver_cancel=deliver, capture_stdout=True)


async def test_what_deliver_cancel_raises_comes_out(shared: Runtime, tmp_path: Path) -> None:
    async def fail(container: Container) -> None:
        raise SourceError

    with pytest.raises(BaseException) as caught:  # noqa: PT011 - a group on trio
        async with anyio.create_task_group() as group:
            group.start_soon(_run_in, shared, "echo > /out/ready; sleep 1000", tmp_path, fail)
            await _exists(tmp_path / "ready")
            group.cancel_scope.cancel()
    assert isinstance(caught.value, ExceptionGroup)
    assert caught.value.split(SourceError)[1] is None
    assert shared.containers == {}


# ---- tasks, signals, figures ----


async def test_a_container_as_a_task(shared: Runtime, anyio_backend: str) -> None:
    with anyio.fail_after(BOUND):
        async with anyio.create_task_group() as group:
            container = await group.start(shared.run_container, Spec(command=("sleep", "1000"), name="task"))
            assert container.name == "task"
            assert Path(f"/proc/{container.pid}").exists()
            assert (await container.stop()).status == "stopped"
    assert shared.containers == {}


async def test_a_container_as_a_task_that_does_not_start(shared: Runtime) -> None:
    async with anyio.create_task_group() as group:
        with pytest.raises(LaunchError):
            await group.start(shared.run_container, ["/no/such/program"])
    assert shared.containers == {}


async def test_a_trio_nursery_and_an_asyncio_task_take_it_as_it_is(shared: Runtime, anyio_backend: str) -> None:
    if anyio_backend == "trio":
        import trio

        async with trio.open_nursery() as nursery:
            container = await nursery.start(shared.run_container, ["sleep", "1000"])
            container.kill()
    else:
        import asyncio

        assert (await asyncio.create_task(shared.run_container(["true"]))).status == "ok"


async def test_signals_by_name(shared: Runtime) -> None:
    script = "trap 'echo hup' HUP; trap 'echo usr' USR1; trap 'echo rt' RTMIN+3; echo ready; while :; do sleep 0.01; done"
    async with shared.start(["bash", "-c", script], stdout=PIPE) as container:
        await read_until(container.stdout, "ready\n")
        for name, word in (("HUP", "hup"), ("SIGUSR1", "usr"), (signal.SIGHUP, "hup"), ("RTMIN+3", "rt")):
            await container.signal(name)
            await read_until(container.stdout, f"{word}\n")
        for wrong in ("NOPE", 0, 65):
            with pytest.raises(SpecError, match="signal"):
                await container.signal(wrong)
            with pytest.raises(SpecError, match="signal"):
                await container.stop(signal=wrong)
        assert container.exit is None
        assert (await container.stop(signal="KILL")).signal == 9


async def test_stats_are_the_cgroups(shared: Runtime) -> None:
    code = "data = bytearray(20 << 20)\nimport time\nwhile time.process_time() < 0.1: pass\nprint('ready', flush=True)\ninput()"
    async with shared.start(["python3", "-c", code], stdin=PIPE, stdout=PIPE, pids_limit=10, cpu_time=60) as container:
        await read_until(container.stdout, "ready\n")
        stats = await container.stats()
        assert stats.memory is not None
        assert stats.memory_peak is not None
        assert stats.cpu_user is not None
        assert stats.cpu_system is not None
        assert 20 << 20 < stats.memory <= stats.memory_peak < 200 << 20
        assert stats.cpu_user + stats.cpu_system >= 0.1
        assert (stats.pids, stats.pids_peak or 1, stats.oom_kills, stats.pids_limit_hits) == (1, 1, 0, 0)
        exit = await container.stop()
        assert exit.cpu_user + exit.cpu_system >= stats.cpu_user + stats.cpu_system
        with pytest.raises(ContainerError, match="has ended"):
            await container.stats()


async def test_one_run_without_a_runtime(anyio_backend: str) -> None:
    with anyio.fail_after(BOUND):
        result = await tinyvisor.run(["cat"], stdin=b"hello", capture_stdout=True, limits=Limits(memory="64m", pids=5))
        assert (result.status, result.stdout) == ("ok", b"hello")
        with pytest.raises(RunFailed):
            await tinyvisor.run(["false"], check=True)


GUESSER = """
low, high = 1, 100
while True:
    middle = (low + high) // 2
    print(middle, flush=True)
    answer = input()
    if answer == '=':
        break
    low, high = (middle + 1, high) if answer == '<' else (low, middle - 1)
"""
JUDGE = """
import sys
guesses, guess = 0, 0
while guess != 42:
    guess, guesses = int(input()), guesses + 1
    print('=' if guess == 42 else '<' if guess < 42 else '>', flush=True)
print(guesses, file=sys.stderr)
"""


async def test_an_interactor(shared: Runtime) -> None:
    """Two containers wired to each other by raw pipe ends: no byte passes through us."""
    (to_b, from_a), (to_a, from_b) = os.pipe(), os.pipe()
    results: dict[str, Result] = {}

    async def play(name: str, code: str, stdin: int, stdout: int) -> None:
        try:
            results[name] = await run(shared, "python3", "-c", code, stdin=stdin, stdout=stdout, capture_stderr=True)
        finally:
            os.close(stdin)
            os.close(stdout)

    async with anyio.create_task_group() as group:
        group.start_soon(play, "guesser", GUESSER, to_a, from_a)
        group.start_soon(play, "judge", JUDGE, to_b, from_b)
    assert [results[name].status for name in ("guesser", "judge")] == ["ok", "ok"]
    assert int(results["judge"].stderr or b"0") <= 7


async def _lines(container: Container) -> AsyncIterator[bytes]:
    assert container.stdout is not None
    async for line in container.stdout:
        yield line


async def test_lines_of_a_container(shared: Runtime) -> None:
    script = r"printf 'one\r\n\0two\n\nlast'; head -c 100000 /dev/zero | tr '\0' x; echo; printf end"
    async with shared.start(["sh", "-c", script], stdout=PIPE) as container:
        lines = [line async for line in _lines(container)]
    assert lines[:3] == [b"one\r\n", b"\0two\n", b"\n"]
    assert b"".join(lines[3:-1]) == b"last" + b"x" * 100_000 + b"\n"
    assert max(map(len, lines)) == 65536
    assert lines[-1] == b"end"


async def test_a_socket_is_a_stdio_too(shared: Runtime) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.send(b"over a socket\n")
        await run(shared, "head", "-n", "1", stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL)
        assert ours.recv(100) == b"over a socket\n"
