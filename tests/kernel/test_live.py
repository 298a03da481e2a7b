"""Live mode: containers outlive their supervisor, and the next one has them as if nothing had happened."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

from tests.kernel.command import environment, tinyvisor
from tests.kernel.helpers import BOUND, ON_TRIO, read_until, until
from tests.kernel.test_daemon import Directory
from tinyvisor.client import Client
from tinyvisor.errors import HostError, LauncherDied, NotLaunched, SpecError, TinyvisorError
from tinyvisor.places import run_directory
from tinyvisor.processes import is_alive
from tinyvisor.runtime import PIPE, Container, Runtime, open_runtime
from tinyvisor.runtime.cgroup import project_path, read_layout
from tinyvisor.runtime.devices import _attached
from tinyvisor.runtime.launches import Manner
from tinyvisor.runtime.live import keeper_path, records_path
from tinyvisor.runtime.stdio import ReceivePipe, Streams
from tinyvisor.spec import Secret, Spec

SEND = "import os, socket, time; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(os.environ['NOTIFY_SOCKET']); "
ROOT = Path(__file__).resolve().parents[2]
SEED = int(os.environ.get("TINYVISOR_TEST_SEED", time.time_ns() % 10**9))
LATEST = 0.15
"""Seconds after its start at which a supervisor is killed at the latest."""

pytestmark = pytest.mark.kernel


# ---- the program that is killed: this file, run as such ----


async def _follow(runtime: Runtime, name: str, scope: contextlib.AbstractAsyncContextManager[Container]) -> None:
    """A container to its end; it says 7, unless it is one that goes on."""
    with contextlib.suppress(NotLaunched):
        async with scope as container:
            if name.startswith("long"):
                assert container.pid
            exit = await container.wait()
            assert exit.exit_code == 7, exit
    assert runtime.live is not None
    runtime.live.records.forget(name)


async def _supervise(project: str, round: int, launches: int) -> None:
    async with open_runtime(name=project, live=True) as runtime, trio.open_nursery() as nursery:
        for name in runtime.adoptable:
            nursery.start_soon(_follow, runtime, name, runtime.adopt(name))
        for number in range(launches):
            name, script = (f"long-{round}", "sleep 1000") if number == 1 else (f"short-{round}-{number}", "exit 7")
            spec = Spec(command=("sh", "-c", script), name=name)
            gate = trio.lowlevel.checkpoint if number % 2 else None  # one that waits for its command, if only for a moment
            nursery.start_soon(_follow, runtime, name, runtime.start(spec, stdout=PIPE, stderr=PIPE, before_exec=gate))
        if launches:
            await trio.sleep_forever()
        await until(lambda: not runtime.adoptable and not any(it.name.startswith("short") for it in runtime.containers.values()))
        left = [container for container in runtime.containers.values() if container.name.startswith("long")]
        for container in left:
            await container.wait_started()
            assert Path(f"/proc/{container.pid}/comm").read_text().startswith("tinyvisor-init")
        print(len(left), flush=True)
        nursery.cancel_scope.cancel()


def _kill_again_and_again(project: str, rounds: int) -> None:
    luck = random.Random(SEED)
    for round in range(rounds):
        pid = os.fork()
        if pid == 0:
            trio.run(_supervise, project, round, 6)
        time.sleep(luck.random() * LATEST)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    trio.run(_supervise, project, rounds, 0)


# ---- in one process ----

_numbers = itertools.count()


@pytest.fixture
def project() -> Iterator[str]:
    name = f"live-{os.getpid()}-{next(_numbers)}"
    yield name
    assert [path.name for path in run_directory().glob(f"{name}*")] == []
    assert [path for item in read_layout().hierarchies if (path := Path(project_path(item, name))).exists()] == []


@contextlib.asynccontextmanager
async def crashed(project: str, *specs: Spec) -> AsyncIterator[list[int]]:
    """After a supervisor that has started these and ended by an exception; their pids."""
    pids = []
    with pytest.raises(ZeroDivisionError):
        async with open_runtime(name=project, live=True) as runtime, contextlib.AsyncExitStack() as stack:
            for spec in specs:
                container = await stack.enter_async_context(runtime.start(spec, stdin=PIPE, stdout=PIPE, stderr=PIPE))
                pids.append(container.pid)
            raise ZeroDivisionError
    try:
        yield pids
    finally:
        async with open_runtime(name=project, live=True):
            pass


@contextlib.contextmanager
def open_directory(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def spec(name: str, script: str, **more: Any) -> Spec:
    return Spec(command=("sh", "-c", script), name=name, **more)


async def lines(container: Container, count: int) -> list[bytes]:
    if container.terminal is not None:
        pipe = ReceivePipe(os.dup(container.terminal), container.terminal_stage)
        container.terminal_stage = None
    else:
        assert container.stdout is not None
        pipe = container.stdout
    found = [await pipe.receive_line() for _ in range(count)]
    if container.terminal is not None:
        pipe.close()
    return found


@ON_TRIO
@pytest.mark.anyio
@pytest.mark.parametrize("terminal", [False, True])
async def test_all_there_is_to_a_container_is_taken_over(project: str, terminal: bool) -> None:
    """Its streams, signals, exec, stats, its end; and its lines from the first on, since nobody has logged any."""
    script = "trap 'exit 9' USR1; echo 1; echo 2; read word; echo $word; while :; do sleep 1000 & wait; done"
    one = spec("web", script, tty=terminal, stdin_open=True, mem_limit=64 << 20)
    with anyio.fail_after(BOUND):
        async with crashed(project, one) as pids, open_runtime(name=project, live=True) as runtime:
            assert runtime.adoptable == ("web",)
            async with runtime.adopt("web") as container:
                assert [container.pid] == pids
                with pytest.raises(SpecError, match='no container "web" was left'):
                    async with runtime.adopt("web"):
                        pass
                if terminal:
                    assert container.terminal is not None
                    os.write(container.terminal, b"word\n")
                else:
                    assert container.stdin is not None
                    await container.stdin.send(b"word\n")
                wanted = [b"1", b"2", b"word", b"word"] if terminal else [b"1", b"2", b"word"]  # a terminal echoes
                assert [line.strip() for line in await lines(container, len(wanted))] == sorted(wanted)
                assert (await container.exec(["sh", "-c", "exit 5"])).exit_code == 5
                assert (await container.stats()).memory
                await container.signal("USR1")
                assert (await container.wait()).exit_code == 9


@ON_TRIO
@pytest.mark.anyio
async def test_what_it_says_of_itself_meanwhile_is_heard(project: str) -> None:
    code = SEND + "s.send(b'ONE'); os.write(3, b'one'); input(); s.send(b'TWO'); os.write(3, b'two'); time.sleep(1000)"
    one = Spec(command=("python3", "-c", code), name="web", notify_socket=True, notification_fd=3, stdin_open=True)
    with anyio.fail_after(BOUND):
        async with crashed(project, one), open_runtime(name=project, live=True) as runtime, runtime.adopt("web") as container:
            assert container.notify is not None
            assert container.notification is not None
            assert container.stdin is not None
            assert await container.notify.receive() == b"ONE"
            assert await container.notification.receive() == b"one"
            await container.stdin.send(b"\n")
            assert await container.notify.receive() == b"TWO"
            assert await container.notification.receive() == b"two"


@ON_TRIO
@pytest.mark.anyio
async def test_ids_that_are_in_use_are_not_given_again_and_the_wall_stands(project: str) -> None:
    with anyio.fail_after(BOUND):
        async with crashed(project, spec("a", "sleep 1000")), open_runtime(name=project, live=True) as runtime:
            for hierarchy in runtime._tree.layout.hierarchies:
                if hierarchy.version == 2 and "devices" in hierarchy.controllers:
                    with open_directory(project_path(hierarchy, project)) as directory:
                        assert _attached(directory) == 1, "one wall around devices, whoever has come"
            async with runtime.adopt("a") as one, runtime.start(spec("b", "sleep 1000")) as other:
                assert one.ids is not None
                assert other.ids is not None
                assert one.ids.map != other.ids.map
                await one.stop(grace=0)
            async with runtime.start(spec("c", "sleep 1000")) as third:
                assert third.ids is not None
                assert third.ids.map in (one.ids.map, other.ids.map)


@ON_TRIO
@pytest.mark.anyio
async def test_an_exec_ends_with_who_asked_and_the_container_goes_on(project: str) -> None:
    with anyio.fail_after(BOUND):
        with pytest.raises(ZeroDivisionError):
            async with open_runtime(name=project, live=True) as runtime, runtime.start(spec("a", "exec sleep 1000")) as container:
                async with container.open_exec(["sh", "-c", "echo up; sleep 1000"], stdout=PIPE) as process:
                    await read_until(process.stdout, "up\n")
                    inside = os.pidfd_open(process.pid)
                    raise ZeroDivisionError
        await anyio.wait_readable(inside)
        os.close(inside)
        async with open_runtime(name=project, live=True) as runtime, runtime.adopt("a") as container:
            assert len(container.processes()) == 1


@ON_TRIO
@pytest.mark.anyio
async def test_the_keeper_keeps_nothing_of_what_has_ended(project: str) -> None:
    with anyio.fail_after(BOUND):
        async with open_runtime(name=project, live=True) as runtime:
            keeper = _keeper_of(runtime)

            def fds() -> int:
                return len(os.listdir(f"/proc/{keeper}/fd"))

            async with runtime.start(spec("first", "sleep 1000"), stdout=PIPE, stderr=PIPE):
                before = fds() - 5
            await until(lambda: fds() == before)
            async with runtime.start(spec("a", "sleep 1000"), stdout=PIPE, stderr=PIPE) as container:
                assert fds() == before + 5
                own = await container.exec(["sh", "-c", "test $(ls /proc/1/fd | wc -l) -le 6 && ls /proc/self/fd | wc -l"])
                assert own.exit_code == 0
            await until(lambda: fds() == before)


def _keeper_of(runtime: Runtime) -> int:
    return int(Path(f"/proc/{runtime._launcher.pid}/stat").read_text().rpartition(")")[2].split()[1])


@ON_TRIO
@pytest.mark.anyio
@pytest.mark.parametrize("victim", ["keeper", "launcher"])
async def test_killed_whole_nothing_is_left(project: str, victim: str) -> None:
    """Supervisor, and keeper or launcher: the next runtime, whichever it is, clears away what is left."""
    with anyio.fail_after(BOUND):
        with pytest.raises(ZeroDivisionError):
            async with open_runtime(name=project, live=True) as runtime, runtime.start(spec("a", "sleep 1000")) as container:
                pids = {"keeper": _keeper_of(runtime), "launcher": runtime._launcher.pid}
                fds = [os.pidfd_open(pid) for pid in (container.pid, *pids.values())]
                raise ZeroDivisionError
        os.kill(pids[victim], signal.SIGKILL)
        for fd in fds:
            await anyio.wait_readable(fd)
            os.close(fd)
        os.waitpid(pids["keeper"], 0)  # a child of ours: a dead supervisor's are its host's to reap
        async with open_runtime():
            pass


RUN = """
import sys, trio
from tinyvisor.runtime import open_runtime
async def main():
    async with open_runtime(name=sys.argv[1], live=True) as runtime:
        await runtime.run(["sh", "-c", "echo up; exec sleep 1000"], stdout=sys.stdout)
trio.run(main)
"""


@ON_TRIO
@pytest.mark.anyio
async def test_a_run_of_a_killed_supervisor_ends_with_the_next_one(project: str) -> None:
    """Only what was started is to outlive it. Nobody would ever end the others, and their ids are free to be given again."""
    with anyio.fail_after(BOUND):
        async with await anyio.open_process(
            [sys.executable, "-c", RUN, project], stderr=None, env=environment(), cwd=ROOT
        ) as killed:
            assert killed.stdout is not None
            assert await killed.stdout.receive() == b"up\n"
            killed.kill()
        async with open_runtime(name=project, live=True) as runtime:
            assert runtime.adoptable == ()
            assert [entry.name for path in runtime._tree.paths for entry in os.scandir(path) if entry.is_dir()] == []


@ON_TRIO
@pytest.mark.anyio
async def test_a_keeper_without_room_costs_a_start_and_nothing_else(project: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with anyio.fail_after(BOUND):
        async with open_runtime(name=project, live=True) as runtime:
            assert runtime.live is not None
            assert runtime.live.keeper is not None
            one = spec(
                "a",
                "exec sleep 1000",
                tty=True,
                notify_socket=True,
                notification_fd=3,
                secrets=(Secret(target="x", content=b""),),
            )
            async with runtime.start(one):
                pass
            before = sorted(os.listdir("/proc/self/fd"))
            monkeypatch.setattr(runtime.live.keeper, "_room", 0)
            gc.disable()  # which would tidy up some of it, some time
            try:
                with pytest.raises(HostError, match="no more than 0 open files can be kept"):
                    async with runtime.start(one):
                        pass
                assert sorted(os.listdir("/proc/self/fd")) == before
            finally:
                gc.enable()


@ON_TRIO
@pytest.mark.anyio
async def test_a_terminal_that_cannot_be_kept_is_that_container_s_failure(project: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nobody looks at what it says before its end is told."""
    with anyio.fail_after(BOUND):
        async with open_runtime(name=project, live=True) as runtime:
            assert runtime.live is not None
            assert runtime.live.keeper is not None
            streams = Streams(None, None, None, runtime._launches.null)
            container = await runtime._launches.launch(
                spec("a", "true", tty=True), streams, Manner(events=True, live=runtime.live)
            )
            monkeypatch.setattr(runtime.live.keeper, "_room", 0)
            with pytest.raises(HostError, match="no more than 0 open files can be kept"):
                await container.wait()
            await runtime._launches.end(container)
            assert (await runtime.run(["true"])).status == "ok"


@ON_TRIO
@pytest.mark.anyio
async def test_the_keeper_s_death_is_told(project: str) -> None:
    with anyio.fail_after(BOUND):
        async with open_runtime(name=project, live=True) as runtime, runtime.start(spec("a", "sleep 1000")) as container:
            os.kill(_keeper_of(runtime), signal.SIGKILL)
            assert (await container.wait()).signal == signal.SIGKILL
            await until(lambda: runtime._launches.world.dead is not None)
            with pytest.raises(LauncherDied):
                await runtime.run(["true"])


@ON_TRIO
@pytest.mark.anyio
async def test_there_is_one_supervisor_and_others_can_not_even_ask(project: str) -> None:
    with anyio.fail_after(BOUND):
        async with open_runtime(name=project, live=True), crashed(f"{project}x", spec("a", "sleep 1000")):
            for name in (project, f"{project}x"):
                path = keeper_path(run_directory(), name)
                assert path.stat().st_mode & 0o777 == 0o600
                assert records_path(run_directory(), name).stat().st_mode & 0o777 == 0o700
                connect = f"socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect({str(path)!r})"
                code = f"import os, socket; os.setuid(65534); {connect}"
                stranger = await trio.run_process([sys.executable, "-c", code], check=False, capture_stderr=True)
                assert b"PermissionError" in stranger.stderr
            with pytest.raises(TinyvisorError, match=rf"already running \(pid {os.getpid()}\)"):
                async with open_runtime(name=project, live=True):
                    pass
            with pytest.raises(TinyvisorError, match="already running"):
                async with open_runtime(name=f"{project}x"):
                    pass


@ON_TRIO
@pytest.mark.anyio
async def test_who_talks_nonsense_to_the_keeper_is_let_go(project: str) -> None:
    """Only we and root can; still it must not cost the containers."""
    magic = (0x4C565954).to_bytes(4, sys.byteorder)
    put = magic + struct.pack("=HHQII", 1, 1, 7, 0, 1)
    with anyio.fail_after(BOUND):
        async with crashed(project, spec("a", "exec sleep 1000")):
            for message, fds in (
                (b"", 0), (b"x" * 24, 0), (b"x" * 5000, 0), (put, 0), (put[:-1], 1), (put, 2), (put, 64),
                (magic + struct.pack("=HHQII", 2, 1, 7, 0, 1), 1), (magic + struct.pack("=HHQII", 1, 99, 0, 0, 0), 1),
            ):  # fmt: skip
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                    client.settimeout(BOUND)
                    client.connect(str(keeper_path(run_directory(), project)))
                    assert client.recv(100)[4:8] == struct.pack("=HH", 1, 5), "hello"
                    socket.send_fds(client, [message], [0] * fds)
                    assert client.recv(100) == b""
            async with open_runtime(name=project, live=True) as runtime, runtime.adopt("a") as container:
                assert (await container.exec(["true"])).status == "ok"


@ON_TRIO
@pytest.mark.anyio
async def test_records_of_another_version_are_left_alone_and_so_are_containers(project: str) -> None:
    with anyio.fail_after(BOUND):
        async with crashed(project, spec("a", "sleep 1000")) as (pid,):
            path = records_path(run_directory(), project) / "a.json"
            content = path.read_text()
            path.write_text(content.replace('"format": 1', '"format": 99'))
            with pytest.raises(TinyvisorError, match="of another version"):
                async with open_runtime(name=project, live=True):
                    pass
            path.write_text(content)
            assert is_alive(json.loads(content)["container"] | {"boot": json.loads(content)["boot"]})
            async with open_runtime(name=project, live=True) as runtime, runtime.adopt("a") as container:
                assert container.pid == pid


# ---- in others ----


def test_killed_at_any_instant(project: str) -> None:
    """Each container that was launched is there, or has ended with its status; nothing is lost and nothing left."""
    rounds = 6
    words = [sys.executable, "-m", "tests.kernel.test_live", project, str(rounds)]
    ended = subprocess.run(
        words, capture_output=True, text=True, timeout=BOUND, env=environment({"TINYVISOR_TEST_SEED": str(SEED)}), cwd=ROOT
    )
    assert ended.returncode == 0, f"TINYVISOR_TEST_SEED={SEED}\n{ended.stderr}"
    assert 0 <= int(ended.stdout) <= rounds


WAIT = "trap 'exit {code}' USR1; while :; do sleep 1000 & wait; done"


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    found = Directory(tmp_path)
    yield found
    if list(run_directory().glob(f"{found.name}.*")):
        found.run("down", "-p", found.name)


def test_a_daemon_is_killed_and_the_next_one_goes_on(directory: Directory) -> None:
    directory.write("count", "i=0; while :; do i=$$((i+1)); printf 'line '; echo $$i; sleep 0.005; done")
    directory.write("dies", WAIT.format(code=7))
    directory.write("comes-back", WAIT.format(code=3), "restart: always", "backoff: {initial: 10ms}")
    directory.write("stopped", WAIT.format(code=0))
    assert directory.up().returncode == 0
    assert directory.run("stop", "stopped", "-p", directory.name).returncode == 0
    client = Client(directory.name)

    def ps() -> dict[str, Any]:
        return {item["name"]: item for item in client.get("/v1/services")}

    before = ps()
    assert _open_files(before["count"]["pid"]) == _open_files(os.getpid()), "the daemon's own limit is not the containers'"
    _kill(directory.daemon())
    told = directory.run("up", "-p", directory.name, "--log-dir", str(directory.path / "logs")).stderr
    assert told.startswith(f'tinyvisor: the daemon of "{directory.name}" is dead, and its containers run on: ')
    with pytest.raises(TinyvisorError, match="is dead, and its containers run on"):
        ps()
    for name in ("dies", "comes-back"):
        _end_workload(before[name]["pid"])

    assert directory.up().returncode in (0, 1), "1 where it knows by then that one has failed"
    assert ps()["stopped"]["state"] == "running", "as with one that runs"
    assert [item["state"] for item in client.get("/v1/wait", {"service": "dies"})] == ["failed"]
    while (after := ps())["comes-back"]["state"] != "running":
        client.get("/v1/wait", {"service": "comes-back", "until": "running"})
    assert after["count"]["pid"] == before["count"]["pid"]
    assert (after["dies"]["state"], after["dies"]["exit"]["exit_code"]) == ("failed", 7)
    assert (after["comes-back"]["restarts"], after["comes-back"]["exit"]["exit_code"]) == (1, 3)
    assert after["comes-back"]["pid"] != before["comes-back"]["pid"]

    daemon = directory.daemon()
    assert directory.run("upgrade", "-p", directory.name).stdout == f'"{directory.name}" goes on (pid {daemon})\n'
    assert ps()["count"]["pid"] == before["count"]["pid"]
    _kill(daemon)
    (directory.path / "configs" / "dies.yaml").write_text("nothing that makes sense\n")
    container = os.pidfd_open(before["count"]["pid"])
    ended = tinyvisor("down", "-t", "0", "-p", directory.name, cwd=directory.path / "logs")
    assert (ended.returncode, "count " in ended.stdout, "dies " in ended.stdout) == (0, True, True), ended
    assert "failed" not in ended.stderr
    _wait_ended(container)
    records = (directory.path / "logs" / "count.log").read_bytes().splitlines()
    assert [record.split(b" ", 3)[2:] for record in records] == [
        [b"F", b"line %d" % number] for number in range(1, len(records) + 1)
    ]
    assert [path.name for path in run_directory().glob(f"{directory.name}*")] == []


def _open_files(pid: int) -> list[str]:
    return next(
        line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if line.startswith("Max open files")
    ).split()


def _kill(daemon: int) -> None:
    fd = os.pidfd_open(daemon)
    os.kill(daemon, signal.SIGKILL)
    _wait_ended(fd)


def _wait_ended(fd: int) -> None:
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    assert waiting.poll(BOUND * 1000)
    os.close(fd)


def _end_workload(init: int) -> None:
    fd = os.pidfd_open(init)
    os.kill(int(Path(f"/proc/{init}/task/{init}/children").read_text().split()[0]), signal.SIGUSR1)
    _wait_ended(fd)


if __name__ == "__main__":
    _kill_again_and_again(sys.argv[1], int(sys.argv[2]))
