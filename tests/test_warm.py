"""Which runs find a container that was made ahead. With pools of nothing, in the mock clock's time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from anyio.abc import TaskGroup
from trio.testing import MockClock

from tinyvisor.errors import HostError
from tinyvisor.runtime.beside import beside
from tinyvisor.runtime.container import Container
from tinyvisor.runtime.oneshot import Run
from tinyvisor.runtime.pool import Demand, Pool
from tinyvisor.runtime.stdio import Streams
from tinyvisor.runtime.warm import IN_A_ROW, UNUSED, Warm
from tinyvisor.spec import Secret, Spec, Volume

pytestmark = pytest.mark.anyio
TRUE = Spec(command=("true",))
STREAMS = cast(Streams, None)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


class Parked:
    """A container that takes its command at once."""

    def __init__(self) -> None:
        self.gone = False
        self._then: Any = lambda: None

    def kill(self) -> None:
        self.gone = True

    def call_when_gone(self, then: Any) -> None:
        self._then = then

    def end(self) -> None:
        self.gone = True
        self._then()


class World:
    """Counts what is made and what is ended unused."""

    def __init__(self, tasks: TaskGroup, size: int | None = None, cpus: int = 2) -> None:
        self.made: list[Parked] = []
        self.ended: list[Parked] = []
        self.error: Exception | None = None
        self.warm = Warm(size, self._pool, tasks, cpus)

    def _pool(self, spec: Spec, size: int, *, workspace: bool, demand: Demand | None = None) -> Pool:
        async def make() -> tuple[Container, None]:
            if self.error:
                raise self.error
            await trio.sleep(0.001)
            self.made.append(Parked())
            return cast(Container, self.made[-1]), None

        async def end(container: Container) -> None:
            self.ended.append(cast(Parked, container))

        return Pool(size, make, lambda *_: True, end, demand)

    async def run(self, spec: Spec = TRUE, seconds: float = 0.01, **more: Any) -> bool:
        """Whether it found one."""
        with self.warm.run(Run(spec=spec, **more)) as pool:
            taken = pool.take(spec, STREAMS) if pool is not None else None
            await trio.sleep(seconds)
            if taken:
                cast(Parked, taken[0]).end()
        return taken is not None


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with beside() as tasks:
        yield World(tasks)


async def test_the_third_in_a_row_finds_one_and_so_do_all_after_it(world: World) -> None:
    assert [await world.run(command) for command in [TRUE] * 3] == [False, False, True]
    assert await world.run(TRUE.with_(command=("false",), environment={"A": "b"}))
    await trio.sleep(3 * UNUSED)
    assert len(world.made) == 3
    assert world.ended == world.made[2:]
    assert not await world.run()


async def test_the_next_is_made_beside_a_run(world: World) -> None:
    await world.run()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.run, TRUE, 10 * UNUSED)
        await trio.sleep(0.002)
        assert len(world.made) == 1
        await trio.sleep(9 * UNUSED)
        assert not world.ended
    assert await world.run()


async def test_who_comes_later_is_not_in_a_row(world: World) -> None:
    for _ in range(4):
        assert not await world.run()
        await trio.sleep(IN_A_ROW + 0.01)
    assert not world.made


async def test_nothing_is_made_where_several_run(world: World) -> None:
    for _ in range(3):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(world.run)
    assert not world.made
    for _ in range(3):
        await world.run()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.run, TRUE, 0.4)
        await trio.sleep(0.1)
        made = len(world.made)
        assert await world.run()  # it is there
        assert not await world.run()
        assert len(world.made) == made
    await world.run()
    assert await world.run()


async def test_another_kind_of_run_takes_over_when_it_has_come_twice(world: World) -> None:
    other = TRUE.with_(pids_limit=7)
    for _ in range(3):
        await world.run()
    assert [await world.run(spec) for spec in (other, TRUE, other, TRUE)] == [False, True, False, True]
    assert [await world.run(other) for _ in range(3)] == [False, False, True]
    await trio.sleep(0.01)
    assert len(world.made) - len(world.ended) - 4 == 1


async def test_one_cpu_has_none_to_spare() -> None:
    async with beside() as tasks:
        world = World(tasks, cpus=1)
        assert not any([await world.run() for _ in range(5)])
    assert not world.made


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({"rootfs": Path("/srv")}, {}),
        ({"volumes": (Volume(source=Path("/srv"), target="/srv"),)}, {}),
        ({"seccomp": Path("/profile.json")}, {}),
        ({"network_mode": "host"}, {}),
        ({"name": "x"}, {}),
        ({"secrets": (Secret(target="x", content=b"y"),)}, {}),
        ({}, {"files": {"x": b"y"}}),
        ({}, {"collect": ("x",)}),
    ],
    ids=lambda item: next(iter(item), ""),
)
async def test_what_could_change_meanwhile_is_never_made_unasked(world: World, changes: Any, more: Any) -> None:
    spec = TRUE.with_(**changes)
    assert not any([await world.run(spec, **more) for _ in range(5)])
    assert not world.made


async def test_an_error_is_for_who_asks(world: World) -> None:
    world.error = HostError("no", "none")
    assert not any([await world.run() for _ in range(5)])
    world.error = None
    assert not any([await world.run() for _ in range(5)])
    assert not world.made


async def test_it_gives_way(world: World) -> None:
    assert not await world.warm.give_way()
    for _ in range(3):
        await world.run()
    await trio.sleep(0.01)
    assert len(world.made) == 2
    assert await world.warm.give_way()
    assert world.ended == world.made[1:]
    assert not await world.warm.give_way()


@pytest.mark.parametrize("size", [0, 2])
async def test_a_size_is_a_size(size: int) -> None:
    async with beside() as tasks:
        world = World(tasks, size, cpus=1)
        for _ in range(3):
            await world.run()
            await trio.sleep(2 * IN_A_ROW)
        await trio.sleep(5 * UNUSED)
        assert not world.ended
        assert len(world.made) == (size and size + 1)
        assert not await world.warm.give_way()
    assert len(world.ended) == size
