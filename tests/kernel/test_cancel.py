"""Cancelled at whatever await, nothing is left behind, and the runtime goes on."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
import trio

from tinyvisor.runtime import PIPE, Runtime, open_runtime
from tinyvisor.runtime.cgroup import project_path, read_layout
from tinyvisor.spec import Spec

pytestmark = [pytest.mark.kernel, pytest.mark.anyio]

MAX_STEPS = 200
SLEEPER = Spec(command=("sh", "-c", "echo up; sleep 1000 & wait"), name="sleeper", pids_limit=20, mem_limit=64 << 20)


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope when the task that made this is about to take its n-th step."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self._task = trio.lowlevel.current_task()
        self._scope = scope
        self._left = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


async def at_every_step(action: Callable[[], Awaitable[None]], check: Callable[[], Awaitable[None]]) -> int:
    """Runs `action` again and again, cancelled one step later each time, until it comes to its end. Returns the steps."""
    for step in range(MAX_STEPS):
        with trio.CancelScope() as scope:
            if step == 0:
                scope.cancel()  # then the first await is it
            instrument = CancelAtStep(scope, step)
            trio.lowlevel.add_instrument(instrument)
            try:
                await action()
            finally:
                trio.lowlevel.remove_instrument(instrument)
        await check()
        if not scope.cancelled_caught:
            return step
    raise AssertionError(f"more than {MAX_STEPS} steps")


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def cgroups_of(runtime: Runtime) -> list[str]:
    """Cgroups of containers, as the kernel lists them."""
    return [
        entry.name
        for hierarchy in read_layout().hierarchies
        for entry in Path(project_path(hierarchy, runtime.name)).iterdir()
        if entry.is_dir()
    ]


async def assert_clean(runtime: Runtime, fds: int) -> None:
    assert not runtime.containers
    assert cgroups_of(runtime) == []
    assert Path(f"/proc/{runtime._launcher.pid}/task/{runtime._launcher.pid}/children").read_text() == ""
    assert open_fds() == fds


async def a_life(runtime: Runtime) -> None:
    """Every await there is between start and end."""
    async with runtime.start(SLEEPER, stdin=PIPE, stdout=PIPE) as container:
        assert container.stdin is not None
        assert container.stdout is not None
        assert await container.stdout.receive() == b"up\n"
        await container.stdin.send(b"hello")
        await container.signal(18)
        exit = await container.stop(signal=15, grace=5)
        assert exit.status == "stopped"
        assert await container.wait() == exit


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_life_cancelled_at_every_step() -> None:
    async with open_runtime() as runtime:
        await a_life(runtime)
        fds = open_fds()
        steps = await at_every_step(lambda: a_life(runtime), lambda: assert_clean(runtime, fds))
        assert steps > 5
        assert (await runtime.run(Spec(command=("true",)))).status == "ok"


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_run_cancelled_at_every_step() -> None:
    spec = Spec(command=("sh", "-c", "sleep 0.05"))
    async with open_runtime() as runtime:
        await runtime.run(spec)
        fds = open_fds()

        async def action() -> None:
            assert (await runtime.run(spec)).status == "ok"

        assert await at_every_step(action, lambda: assert_clean(runtime, fds)) >= 1
        assert (await runtime.run(spec)).status == "ok"


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_opening_a_runtime_cancelled_at_every_step() -> None:
    name = f"cancel-{os.getpid()}"
    fds = open_fds()

    async def action() -> None:
        async with open_runtime(name=name) as runtime:
            assert (await runtime.run(Spec(command=("true",)))).status == "ok"

    async def check() -> None:
        assert open_fds() == fds
        assert not [item for item in read_layout().hierarchies if os.path.exists(project_path(item, name))]
        assert not Path(f"/run/tinyvisor/{name}.lock").exists()

    assert await at_every_step(action, check) > 3


async def test_cancelled_after_any_time() -> None:
    """By the clock, for asyncio's sake, which has no instruments: some hit every phase."""
    async with open_runtime() as runtime:
        await a_life(runtime)
        fds = open_fds()
        for milliseconds in range(40):
            with anyio.move_on_after(milliseconds / 2000):
                await a_life(runtime)
            await assert_clean(runtime, fds)


async def test_a_timeout_around_one_run_ends_that_one_only() -> None:
    async with open_runtime() as runtime, runtime.start(SLEEPER.with_(name="other"), stdout=PIPE) as other:
        with anyio.move_on_after(0.05) as scope:
            await runtime.run(SLEEPER)
        assert scope.cancelled_caught
        assert list(runtime.containers.values()) == [other]
        assert os.path.exists(f"/proc/{other.pid}")
        assert other.exit is None


async def test_exceptions_come_out_as_themselves() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_runtime():
            raise KeyError("mine")
    with pytest.raises(KeyError, match="mine"):
        async with open_runtime() as runtime, runtime.start(SLEEPER):
            raise KeyError("mine")
