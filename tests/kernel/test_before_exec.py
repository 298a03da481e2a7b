"""Containers of which all is there but the workload, until somebody says so."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from tests.kernel.helpers import BOUND, ON_TRIO, workload
from tests.kernel.test_capture import no_fd_is_left
from tests.kernel.test_live import lines, project, spec  # noqa: F401 - a fixture
from tinyvisor.errors import LaunchError, NotLaunched, SpecError
from tinyvisor.runtime import PIPE, Container, Runtime, open_runtime
from tinyvisor.runtime.launches import Manner
from tinyvisor.runtime.stdio import Streams
from tinyvisor.spec import Secret, Spec

pytestmark = [pytest.mark.kernel, pytest.mark.anyio, ON_TRIO]


class Gate:
    """What is waited for: told once all is there, and opened."""

    def __init__(self) -> None:
        self.there, self._open = anyio.Event(), anyio.Event()

    def open(self) -> None:
        self._open.set()

    async def __call__(self) -> None:
        self.there.set()
        await self._open.wait()


async def fail() -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("terminal", [False, True])
async def test_it_is_as_any_other_once_it_runs(shared: Runtime, terminal: bool) -> None:
    """Its streams, its user, what was made for it, and the clock of its timeout."""
    gate, found = Gate(), []
    script = "id -u; cat /run/secrets/word; echo; test -S $NOTIFY_SOCKET && echo socket; read line; echo $line; exec sleep 1000"
    one = Spec(
        command=("sh", "-c", script), name="one", tty=terminal, stdin_open=True, user="1234:5678", notify_socket=True,
        secrets=(Secret(target="word", content=b"secret", uid=1234),), timeout=0.3, mem_limit=64 << 20,
    )  # fmt: skip

    async def run() -> None:
        async with shared.start(one, stdin=PIPE, stdout=PIPE, stderr=PIPE, before_exec=gate) as container:
            if container.terminal is not None:
                os.write(container.terminal, b"a line\n")
            elif container.stdin is not None:
                await container.stdin.send(b"a line\n")
            found.extend([line.strip() for line in await lines(container, 5 if terminal else 4)])
            exit = await container.wait()
            assert (exit.reason, exit.wall >= 0.3) == ("killed after timeout 300ms", True)
            assert 0 <= container.since_end < BOUND

    with no_fd_is_left(), anyio.fail_after(BOUND):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await gate.there.wait()
            (container,) = shared.containers.values()
            assert Path(f"/proc/{workload(container)}/comm").read_text() == "tinyvisor-init\n", "before its exec"
            await anyio.sleep(0.35)  # longer than it may run
            gate.open()
    assert sorted(set(found)) == [b"1234", b"a line", b"secret", b"socket"]


WALLS = (
    "grep -E 'Cap|NoNew|Sec' /proc/self/status; echo x > /tmp/x; echo x > /etc/x; ls /proc/self/fd; wc -l < /proc/self/mountinfo"
)


@pytest.mark.parametrize("fields", [{}, {"read_only": True}, {"capabilities": frozenset({"SYS_PTRACE"}), "userns_mode": "host"}])
async def test_its_walls_are_those_of_any_other(shared: Runtime, fields: dict[str, Any]) -> None:
    found = []
    for gate in (None, anyio.lowlevel.checkpoint):
        script = spec("one", f"({WALLS}) 2>&1", **fields)
        async with shared.start(script, stdout=PIPE, before_exec=gate) as container:
            assert container.stdout is not None
            found.append([line async for line in container.stdout])
    assert found[0] == found[1]
    assert b"0" in b"".join(found[0])


async def test_a_cancelled_one_leaves_nothing(shared: Runtime) -> None:
    gate = Gate()

    async def run(name: str) -> None:
        async with shared.start(["true"], name=name, stdout=PIPE, before_exec=gate):
            raise AssertionError("it has begun")

    with no_fd_is_left(), anyio.fail_after(BOUND):
        async with anyio.create_task_group() as group:
            group.start_soon(run, "held")
            await gate.there.wait()
            (container,) = shared.containers.values()
            group.cancel_scope.cancel()
        assert not Path(f"/proc/{container.pid}").exists()
        assert shared.containers == {}
        async with shared.start(["true"], name="held"):
            pass


async def test_what_goes_wrong_meanwhile_is_told(shared: Runtime) -> None:
    with no_fd_is_left(), anyio.fail_after(BOUND):
        with pytest.raises(ZeroDivisionError):
            async with shared.start(["true"], name="held", before_exec=fail):
                raise AssertionError("it has begun")
        with pytest.raises(LaunchError, match="exec /no/such: No such file"):
            async with shared.start(["/no/such"], name="held", before_exec=anyio.lowlevel.checkpoint):
                raise AssertionError("it has begun")
        with pytest.raises(LaunchError, match="/proc/no"):
            async with shared.start(["true"], name="held", working_dir="/proc/no", before_exec=fail):
                raise AssertionError("it has begun")
        with pytest.raises(SpecError, match="notification_fd"):
            async with shared.start(["true"], notification_fd=3, before_exec=fail):
                raise AssertionError("it has begun")
    assert shared.containers == {}


async def test_one_that_is_killed_meanwhile_was_never_launched(shared: Runtime) -> None:
    async def kill() -> None:
        (container,) = shared.containers.values()
        os.kill(container.pid, signal.SIGKILL)
        await container.wait_gone()

    with no_fd_is_left(), anyio.fail_after(BOUND):
        with pytest.raises(NotLaunched):
            async with shared.start(["true"], name="held", before_exec=kill):
                raise AssertionError("it has begun")


# ---- live: what the next supervisor finds ----


@contextlib.asynccontextmanager
async def killed_with(project: str, how: Any) -> AsyncIterator[Runtime]:  # noqa: F811
    """The runtime after one that ended while a container waited for its command, and `how` was done with it."""
    with pytest.raises(ZeroDivisionError):
        async with open_runtime(name=project, live=True) as runtime:
            with contextlib.ExitStack() as stack:
                streams = Streams(None, PIPE, PIPE, runtime._launches.null, staged=True)
                stack.callback(streams.close)
                one, waiting = spec("a", "echo up; exec sleep 1000"), Streams(None, None, None, runtime._launches.null)
                manner = Manner(events=True, park=True, live=runtime.live, later=streams)
                container = await runtime._launches.launch(one, waiting, manner)
                stack.callback(container.close)
                await container.wait_parked()
                await how(runtime, container, one, streams)
            raise ZeroDivisionError
    with anyio.fail_after(BOUND):
        async with open_runtime(name=project, live=True) as runtime:
            yield runtime


async def nothing(runtime: Runtime, container: Container, one: Spec, streams: Streams) -> None:
    streams.close_given()


async def end(runtime: Runtime, container: Container, one: Spec, streams: Streams) -> None:
    streams.close_given()
    os.kill(container.pid, signal.SIGKILL)
    await container.wait_gone()


async def begin(runtime: Runtime, container: Container, one: Spec, streams: Streams) -> None:
    """And all that it said was heard by nobody."""
    assert runtime._launches.hand_over(container, one, streams)
    assert streams.stdout is not None
    await anyio.wait_readable(streams.stdout.fileno())


async def begin_unrecorded(runtime: Runtime, container: Container, one: Spec, streams: Streams) -> None:
    """It was heard, and could not be written down: the disk was full."""
    assert runtime.live is not None
    with pytest.MonkeyPatch.context() as patch:
        problems: list[str] = []
        runtime.live.records.on_problem = problems.append
        patch.setattr("tinyvisor.runtime.records.os.rename", _full)
        await begin(runtime, container, one, streams)
        await container.wait_started()
    assert len(problems) == 1


def _full(*paths: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("how", [nothing, end])
async def test_one_that_waits_for_its_command_is_none(project: str, how: Any) -> None:  # noqa: F811
    async with killed_with(project, how) as runtime:
        assert runtime.adoptable == ()
        assert runtime.containers == {}
        assert runtime.live is not None
        assert runtime.live.records.get("a", "container") is None
        assert [entry.name for path in runtime._tree.paths for entry in os.scandir(path) if entry.is_dir()] == []
        async with runtime.start(spec("a", "exec sleep 1000")) as container:
            assert container.pid


@pytest.mark.parametrize("how", [begin, begin_unrecorded])
async def test_one_that_has_begun_is_adopted(project: str, how: Any) -> None:  # noqa: F811
    async with killed_with(project, how) as runtime, runtime.adopt("a") as container:
        assert await lines(container, 1) == [b"up\n"]
        assert (await container.stop(grace=0)).status == "stopped"
