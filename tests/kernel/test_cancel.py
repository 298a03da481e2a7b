"""Cancellation at every await: nothing is left, and the runtime works on.

With trio each operation is stepped through: cancelled where it waits for the first time, then for the second, until it ends
before its turn. With asyncio it is cancelled after so many rounds of the event loop, by anyio's scopes and by asyncio's own
`Task.cancel`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from tests.kernel.helpers import BOUND, cgroups, fds, read_until, waiting
from tinyvisor.errors import LaunchError
from tinyvisor.places import run_directory
from tinyvisor.runtime import PIPE, STDOUT, Runtime, open_runtime
from tinyvisor.runtime.cgroup import project_path, read_layout
from tinyvisor.runtime.warm import Warm
from tinyvisor.spec import Spec, Tmpfs, Volume

pytestmark = pytest.mark.kernel

MOST_STEPS = 1000
TRUE = Spec(command=("/bin/true",), name="true")
SLEEP = Spec(
    command=("sh", "-c", "echo ready; sleep 1000 & wait"), name="sleeper", pids_limit=10, tmpfs=(Tmpfs("/scratch"),),
    volumes=(Volume(Path("/usr"), "/volume", read_only=True),),
)  # fmt: skip
STUBBORN = SLEEP.with_(command=("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"))

Operation = Callable[[Runtime], Awaitable[Any]]


# ---- what is cancelled ----


async def run(runtime: Runtime) -> None:
    await runtime.run(TRUE)


async def run_long(runtime: Runtime) -> None:
    with anyio.move_on_after(0.05):
        await runtime.run(SLEEP)


async def start(runtime: Runtime) -> None:
    async with runtime.start(SLEEP, stdin=PIPE, stdout=PIPE, stderr=STDOUT):
        pass


async def start_with_terminal(runtime: Runtime) -> None:
    async with runtime.start(SLEEP.with_(tty=True)) as container:
        assert container.terminal is not None


async def start_two(runtime: Runtime) -> None:
    async with runtime.start(SLEEP), runtime.start(SLEEP.with_(name="other", stop_grace_period=0.0), stdout=PIPE):
        pass


async def fail_to_start(runtime: Runtime) -> None:
    with contextlib.suppress(LaunchError):
        await runtime.run(SLEEP.with_(command=("/no/such/program",)))


async def wait(runtime: Runtime) -> None:
    async with runtime.start(TRUE, stdout=PIPE) as container:
        await container.wait()


async def wait_with_others(runtime: Runtime) -> None:
    async with runtime.start(TRUE) as container, anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(container.wait)


async def stop(runtime: Runtime) -> None:
    async with runtime.start(SLEEP, stdout=PIPE) as container:
        await read_until(container.stdout, "ready\n")
        await container.stop()


async def stop_by_force(runtime: Runtime) -> None:
    async with runtime.start(STUBBORN, stdout=PIPE) as container:
        await read_until(container.stdout, "ready\n")
        assert (await container.stop(grace=0.02)).held_up_by


async def signal(runtime: Runtime) -> None:
    async with runtime.start(SLEEP, stdout=PIPE) as container:
        for _ in range(3):
            await container.signal(28)
        await container.signal(15, all=True)
        await container.wait()


async def read_to_the_end(runtime: Runtime) -> None:
    spec = TRUE.with_(command=("sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.002; done"))
    async with runtime.start(spec, stdout=PIPE) as container:
        assert container.stdout is not None
        async for _ in container.stdout:
            pass


async def write(runtime: Runtime) -> None:
    async with runtime.start(TRUE.with_(command=("wc", "-c")), stdin=PIPE) as container:
        assert container.stdin is not None
        for _ in range(3):
            await container.stdin.send(bytes(200_000))
        await container.stdin.aclose()
        await container.wait()


async def run_with_everything(runtime: Runtime) -> None:
    files: dict[str, bytes | Path] = {"in": b"x", "a/big": bytes(400_000), "host": Path("/etc/passwd")}
    spec = TRUE.with_(command=("sh", "-c", "cat > out; cat in; cat in >&2"), user="1234", cpu_time=60)
    result = await runtime.run(
        spec, stdin=bytes(200_000), files=files, collect=["out", "a/*"], capture_stdout=True, capture_stderr=True
    )
    assert (result.stdout, result.stderr, len(result.files["out"])) == (b"x", b"x", 200_000)


async def run_from_a_file(runtime: Runtime) -> None:
    await runtime.run(TRUE.with_(command=("cat",)), stdin=Path("/etc/passwd"), capture_stdout=True, output_limit=5)


async def run_to_the_users_end(runtime: Runtime) -> None:
    with anyio.move_on_after(0.02):
        await runtime.run(SLEEP, deliver_cancel=lambda container: container.stop(grace=0.01))


async def share_a_directory(runtime: Runtime) -> None:
    async with runtime.working_directory() as directory:
        for _ in range(2):
            await runtime.run(TRUE, working_directory=directory, files={"f": b""}, collect=["*"])


async def exec_in_it(runtime: Runtime) -> None:
    async with runtime.start(SLEEP, stdout=PIPE) as container:
        await container.exec(["true"])
        async with container.open_exec(["sleep", "1000"], stdin=PIPE, stdout=PIPE) as process:
            with anyio.move_on_after(0.005):
                await process.wait()


async def fail_to_exec(runtime: Runtime) -> None:
    async with runtime.start(SLEEP) as container:
        with contextlib.suppress(LaunchError):
            await container.exec(["/no/such/program"])


async def map_all(runtime: Runtime) -> None:
    async with runtime.map([TRUE.with_(name=f"job{n}") for n in range(5)], concurrency=2, capture_stdout=True) as results:
        assert len([result async for result in results]) == 5


async def map_some(runtime: Runtime) -> None:
    async with runtime.map([TRUE.with_(name=f"job{n}") for n in range(5)], concurrency=2) as results:
        await anext(results)


async def use_a_pool(runtime: Runtime) -> None:
    async with runtime.pool(["true"], size=2) as pool:
        for _ in range(4):
            await pool.run(["cat"], stdin=bytes(100_000), capture_stdout=True)


async def as_a_task(runtime: Runtime) -> None:
    async with anyio.create_task_group() as group:
        container = await group.start(runtime.run_container, SLEEP)
        await container.stats()
        container.kill()


OPERATIONS: tuple[Operation, ...] = (
    run, run_long, fail_to_start, start, start_with_terminal, start_two, wait, wait_with_others, stop, stop_by_force, signal,
    read_to_the_end, write, run_with_everything, run_from_a_file, run_to_the_users_end, share_a_directory, exec_in_it,
    fail_to_exec, map_all, map_some, use_a_pool, as_a_task,
)  # fmt: skip


async def nothing_is_left(runtime: Runtime, before: dict[str, str]) -> None:
    assert runtime.containers == {}
    assert runtime._launches.names == {}
    assert cgroups(runtime) == []
    # A run is over when its container is empty; its PID 1 may be on its way out.
    while children(runtime._launcher.pid):  # noqa: ASYNC110 - the kernel has no event for it
        await anyio.sleep(0.001)
    assert fds() == before
    assert (await runtime.run(TRUE)).status == "ok"


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def _warm_up(runtime: Runtime) -> dict[str, str]:
    """What is opened once and stays, is open now; threads that were needed once are gone or idle."""
    await runtime.run(TRUE)
    await run_with_everything(runtime)
    return fds()


# ---- trio ----


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope when a task has been run so many times, which is at its next wait."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self.scope, self.left, self.task = scope, step, trio.lowlevel.current_task()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()


async def _cancel_at(step: int, operation: Callable[[], Awaitable[Any]]) -> bool:
    """Whether the operation was still going on at that step."""
    with trio.CancelScope() as scope:
        instrument = CancelAtStep(scope, step)
        trio.lowlevel.add_instrument(instrument)
        try:
            await operation()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return instrument.left <= 0


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_every_step_of_an_operation(operation: Operation) -> None:
    async def main() -> int:
        with trio.fail_after(BOUND):
            async with open_runtime(warm=0) as runtime:
                before = await _warm_up(runtime)
                for step in range(1, MOST_STEPS):
                    going_on = await _cancel_at(step, partial(operation, runtime))
                    await nothing_is_left(runtime, before)
                    if not going_on:
                        return step
        raise AssertionError("no end in sight")

    steps = trio.run(main)
    assert steps > 1, "it was cancelled nowhere"


def test_every_step_of_a_run_beside_which_the_next_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Warm, "patience", 0.01)

    async def main() -> int:
        with trio.fail_after(BOUND):
            async with open_runtime() as runtime:
                before = await _warm_up(runtime)
                for step in range(1, MOST_STEPS):
                    for _ in range(3):
                        await runtime.run(TRUE)
                    going_on = await _cancel_at(step, partial(runtime.run, TRUE))
                    while children(runtime._launcher.pid):  # noqa: ASYNC110 - see above
                        await anyio.sleep(0.001)
                    await nothing_is_left(runtime, before)
                    if not going_on:
                        return step
        raise AssertionError("no end in sight")

    assert trio.run(main) > 1


def test_every_step_of_the_first_start() -> None:
    """It prepares the host view, which later ones only use."""

    async def first(step: int) -> bool:
        async with open_runtime(warm=0) as runtime:
            before = fds()
            going_on = await _cancel_at(step, partial(start, runtime))
            assert fds() == before
            await nothing_is_left(runtime, before)
        return going_on

    async def main() -> None:
        with trio.fail_after(BOUND):
            for step in range(1, MOST_STEPS):
                if not await first(step):
                    return

    trio.run(main)


def test_two_first_starts_and_one_is_cancelled() -> None:
    """The other gets the host view all the same."""

    async def main(step: int) -> bool:
        async with open_runtime(warm=0) as runtime, trio.open_nursery() as nursery:
            nursery.start_soon(runtime.run, TRUE)
            return await _cancel_at(step, partial(start, runtime))

    for step in range(1, MOST_STEPS):
        if not trio.run(main, step):
            return


def test_every_step_of_a_runtime() -> None:
    """Opened, used and closed; what is left is looked for outside."""
    name = f"cancelled-{os.getpid()}"
    paths = [project_path(hierarchy, name) for hierarchy in read_layout().hierarchies]
    paths.append(str(run_directory() / f"{name}.lock"))

    async def whole() -> None:
        async with open_runtime(name=name) as runtime, runtime.start(SLEEP, stdout=PIPE) as container:
            await read_until(container.stdout, "ready\n")

    async def main() -> None:
        with trio.fail_after(BOUND):
            await whole()
            before, own = fds(), children(os.getpid())
            for step in range(1, MOST_STEPS):
                going_on = await _cancel_at(step, whole)
                assert fds() == before
                assert children(os.getpid()) == own
                assert not [path for path in paths if os.path.exists(path)]
                if not going_on:
                    return

    trio.run(main)


# ---- asyncio ----


async def _after_rounds(rounds: int, cancel: Callable[[], object]) -> None:
    for _ in range(rounds):
        await asyncio.sleep(0)
    cancel()


async def _cancel_by_scope(rounds: int, operation: Callable[[], Awaitable[Any]]) -> bool:
    with anyio.CancelScope() as scope:
        canceller = asyncio.create_task(_after_rounds(rounds, scope.cancel))
        await operation()
    done = canceller.done()
    canceller.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await canceller
    return done


async def _cancel_by_task(rounds: int, operation: Callable[[], Awaitable[Any]]) -> bool:
    async def call() -> None:
        await operation()

    task = asyncio.create_task(call())
    canceller = asyncio.create_task(_after_rounds(rounds, task.cancel))
    with contextlib.suppress(asyncio.CancelledError):
        await task
    done = canceller.done()
    canceller.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await canceller
    return done


@pytest.mark.parametrize("cancel", [_cancel_by_scope, _cancel_by_task], ids=["scope", "task"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_rounds_of_asyncio(operation: Operation, cancel: Callable[[int, Callable[[], Awaitable[Any]]], Awaitable[bool]]) -> None:
    luck = random.Random(operation.__name__)

    async def main() -> None:
        with anyio.fail_after(BOUND):
            async with open_runtime(warm=0) as runtime:
                before = await _warm_up(runtime)
                # Each of the first rounds, then ever longer leaps: the later ones only wait for the kernel.
                rounds = 0
                for _ in range(MOST_STEPS):
                    going_on = await cancel(rounds, partial(operation, runtime))
                    await nothing_is_left(runtime, before)
                    if not going_on:
                        return
                    rounds += 1 if rounds < 20 else luck.randint(1, max(2, rounds // 4))
            raise AssertionError("no end in sight")

    anyio.run(main, backend="asyncio")
    gc.collect()  # a coroutine that was never awaited would be warned of here


@pytest.mark.parametrize("cancel", [_cancel_by_scope, _cancel_by_task], ids=["scope", "task"])
def test_rounds_of_a_whole_runtime(cancel: Callable[[int, Callable[[], Awaitable[Any]]], Awaitable[bool]]) -> None:
    async def whole() -> None:
        async with open_runtime(warm=0) as runtime, runtime.start(SLEEP, stdout=PIPE) as container:
            await read_until(container.stdout, "ready\n")

    async def main() -> None:
        with anyio.fail_after(BOUND):
            await whole()
            before, own, rounds = fds(), children(os.getpid()), 0
            while await cancel(rounds, whole):
                assert fds() == before
                assert children(os.getpid()) == own
                rounds += 1 + rounds // 8

    anyio.run(main, backend="asyncio")


# ---- both ----


class BodyError(Exception):
    pass


@pytest.mark.anyio
async def test_an_exception_in_the_body_of_a_start_comes_out_as_itself(shared: Runtime) -> None:
    with pytest.raises(BodyError):
        async with shared.start(SLEEP):
            raise BodyError
    assert shared.containers == {}


@pytest.mark.anyio
@pytest.mark.parametrize("error", [BodyError, KeyboardInterrupt, SystemExit])
async def test_an_exception_in_the_body_of_a_runtime_comes_out_as_itself(anyio_backend: str, error: type[BaseException]) -> None:
    with pytest.raises(error):
        async with open_runtime(warm=0) as runtime, runtime.start(SLEEP):
            raise error


@pytest.mark.anyio
async def test_an_exception_is_not_lost_when_the_program_is_cancelled_too(anyio_backend: str) -> None:
    with anyio.CancelScope() as scope:
        with pytest.raises(BodyError):
            async with open_runtime(warm=0) as runtime, runtime.start(SLEEP):
                scope.cancel()
                raise BodyError
        with anyio.CancelScope(shield=True), pytest.raises(BodyError):
            async with open_runtime(warm=0):
                try:
                    await anyio.lowlevel.checkpoint()
                finally:
                    raise BodyError


@pytest.mark.anyio
async def test_groups_of_the_body_stay_what_they_are(anyio_backend: str) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with open_runtime(warm=0) as runtime, anyio.create_task_group() as group:
            await runtime.run(TRUE)
            group.start_soon(_raise, BodyError())
            await anyio.sleep_forever()
    assert [type(error) for error in caught.value.exceptions] == [BodyError]


async def _raise(error: Exception) -> None:
    raise error


@pytest.mark.anyio
async def test_a_time_limit_around_one_run_ends_that_job_only(shared: Runtime) -> None:
    async with waiting(shared, name="neighbour") as neighbour:
        for _ in range(5):
            with anyio.move_on_after(0.02) as scope:
                await shared.run(SLEEP)
            assert scope.cancelled_caught
            assert [container.name for container in shared.containers.values()] == ["neighbour"]
        assert neighbour.stdin is not None
        await neighbour.stdin.aclose()
        with anyio.fail_after(BOUND):
            assert (await neighbour.wait()).status == "ok"


@pytest.mark.anyio
async def test_a_cancelled_program_waits_for_its_containers(anyio_backend: str) -> None:
    started: list[int] = []
    all_started = anyio.Event()

    async def sleep_in(runtime: Runtime, name: str) -> None:
        async with runtime.start(STUBBORN.with_(name=name)) as container:
            started.append(container.pid)
            if len(started) == 20:
                all_started.set()
            await anyio.sleep_forever()

    with anyio.fail_after(BOUND):
        with anyio.CancelScope() as scope:
            async with open_runtime(warm=0) as runtime, anyio.create_task_group() as group:
                for number in range(20):
                    group.start_soon(sleep_in, runtime, f"sleeper{number}")
                await all_started.wait()
                scope.cancel()
    assert scope.cancelled_caught
    assert [pid for pid in started if os.path.exists(f"/proc/{pid}")] == []


@pytest.mark.anyio
async def test_a_cancelled_wait_leaves_the_container_alone(shared: Runtime) -> None:
    async with waiting(shared) as container:
        for _ in range(3):
            with anyio.move_on_after(0.01):
                await container.wait()
        assert container.exit is None
        assert container.stdin is not None
        await container.stdin.aclose()
        assert (await container.wait()).status == "ok"


@pytest.mark.anyio
async def test_a_cancelled_stop_kills_at_once(shared: Runtime) -> None:
    async with shared.start(STUBBORN, stdout=PIPE) as container:
        await read_until(container.stdout, "ready\n")
        with anyio.fail_after(BOUND), anyio.move_on_after(0.02):
            await container.stop(grace=1000)
        assert container.exit is not None
        assert container.exit.status == "stopped"


@pytest.mark.anyio
async def test_a_cancelled_receive_has_read_nothing(shared: Runtime) -> None:
    async with waiting(shared) as container:
        assert container.stdin is not None
        assert container.stdout is not None
        for number in range(20):
            with anyio.move_on_after(0.001):
                await container.stdout.receive()
                pytest.fail("there was nothing to read")
            await container.stdin.send(b"%d\n" % number)
            assert await read_until(container.stdout, "\n") == f"{number}\n"


@pytest.mark.anyio
async def test_a_scope_that_outlives_its_runtime(anyio_backend: str) -> None:
    """The wrong way round; it ends all the same."""
    async with contextlib.AsyncExitStack() as stack:
        async with open_runtime(warm=0) as runtime:
            container = await stack.enter_async_context(runtime.start(SLEEP, stdout=PIPE))
        with anyio.fail_after(BOUND), pytest.raises(Exception, match="launcher"):
            await container.wait()
