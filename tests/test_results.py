"""Many jobs with a limit on how many run at once, with runs that are only made up: order, back-pressure, errors, ends."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tinyvisor.runtime.results import open_results

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Gate:
    """Runs that end when they are told to; it knows what was asked of the source, what runs, what was cancelled."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.running: list[int] = []
        self.cancelled: list[int] = []
        self.most = 0
        self._ends: dict[int, anyio.Event] = {}

    def jobs(self, count: int) -> Iterator[int]:
        for number in range(count):
            self.asked.append(number)
            yield number

    async def run(self, job: int) -> int:
        self.running.append(job)
        self.most = max(self.most, len(self.running))
        self._ends[job] = anyio.Event()
        try:
            await self._ends[job].wait()
            return job
        except anyio.get_cancelled_exc_class():
            self.cancelled.append(job)
            raise
        finally:
            self.running.remove(job)

    def end(self, job: int) -> None:
        self._ends[job].set()


async def settle() -> None:
    """Until every task has had its turn: nothing here waits for anything but other tasks."""
    for _ in range(50):
        await anyio.lowlevel.checkpoint()


async def instantly(job: int) -> int:
    await anyio.lowlevel.checkpoint()
    return job


async def at_once(job: int) -> int:
    return job


# ---- order and back-pressure ----


async def test_all_results_come(anyio_backend: str) -> None:
    async with open_results(instantly, range(1000), 7) as results:
        assert sorted([result async for result in results]) == list(range(1000))


async def test_no_jobs_no_results(anyio_backend: str) -> None:
    async with open_results(instantly, [], 3) as results:
        assert [result async for result in results] == []
        assert [result async for result in results] == []


async def test_one_at_a_time_is_in_order(anyio_backend: str) -> None:
    async with open_results(instantly, range(100), 1) as results:
        assert [result async for result in results] == list(range(100))


async def test_results_come_as_they_end(anyio_backend: str) -> None:
    gate = Gate()
    async with open_results(gate.run, gate.jobs(4), 4) as results:
        await settle()
        for job in (2, 0, 3, 1):
            gate.end(job)
            assert await anext(results) == job


async def test_the_source_is_asked_when_a_slot_is_free(anyio_backend: str) -> None:
    gate = Gate()
    async with open_results(gate.run, gate.jobs(100), 3) as results:
        await settle()
        assert gate.asked == [0, 1, 2]
        gate.end(1)
        await settle()
        assert gate.asked == [0, 1, 2, 3]
        assert await anext(results) == 1
        await settle()
        assert gate.asked == [0, 1, 2, 3], "taking a result frees no slot: one was free already"
    assert sorted(gate.cancelled) == [0, 2, 3]


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_results_that_nobody_takes_stop_the_work(anyio_backend: str, concurrency: int) -> None:
    asked: list[int] = []

    def jobs() -> Iterator[int]:
        for number in range(10_000):
            asked.append(number)
            yield number

    async with open_results(instantly, jobs(), concurrency) as results:
        await settle()
        # The buffer's, and those that each slot has in its hand.
        assert len(asked) == 2 * concurrency
        for taken in range(1, 20):
            await anext(results)
            await settle()
            assert len(asked) == 2 * concurrency + taken


async def test_no_more_run_than_may(anyio_backend: str) -> None:
    gate = Gate()
    async with open_results(gate.run, gate.jobs(30), 5) as results:
        found: list[int] = []
        while len(found) < 30:
            await settle()
            gate.end(gate.running[-1])
            found.append(await anext(results))
    assert gate.most == 5
    assert sorted(found) == list(range(30))


async def test_memory_is_flat(anyio_backend: str) -> None:
    """Jobs whose results together are twenty times what may be held."""

    async def run(job: int) -> bytes:
        return bytes(10_000)

    count = 0
    async with open_results(run, range(20_000), 8) as results:
        async for _ in results:
            count += 1
            if count == 1000:
                gc.collect()
                tracemalloc.start()
                before = tracemalloc.get_traced_memory()[0]
            elif count == 20_000:
                gc.collect()
                after, peak = tracemalloc.get_traced_memory()
                tracemalloc.stop()
    assert count == 20_000
    assert peak - before < 10_000_000
    assert after - before < 1_000_000


# ---- sources ----


async def test_async_sources(anyio_backend: str) -> None:
    async def jobs() -> AsyncIterator[int]:
        for number in range(20):
            await anyio.lowlevel.checkpoint()
            yield number

    async with open_results(instantly, jobs(), 3) as results:
        assert sorted([result async for result in results]) == list(range(20))


async def test_a_stream_is_a_source(anyio_backend: str) -> None:
    send, receive = anyio.create_memory_object_stream[int](0)
    async with anyio.create_task_group() as group, receive:
        group.start_soon(_send_all, send, 10)
        async with open_results(instantly, receive, 2) as results:
            assert sorted([result async for result in results]) == list(range(10))


async def _send_all(send: Any, count: int) -> None:
    async with send:
        for number in range(count):
            await send.send(number)


async def test_a_source_that_has_nothing_yet_stops_nobody(anyio_backend: str) -> None:
    """The results of those that run come all the same."""
    gate = Gate()
    send, receive = anyio.create_memory_object_stream[int](5)
    async with send, receive, open_results(gate.run, receive, 4) as results:
        await send.send(0)
        await settle()
        gate.end(0)
        assert await anext(results) == 0
        await send.send(1)
        await settle()
        gate.end(1)
        assert await anext(results) == 1


async def test_an_async_generator_is_closed(anyio_backend: str) -> None:
    """It was written in place, most often: nobody else can."""
    closed = []

    async def jobs() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            await anyio.lowlevel.checkpoint()
            closed.append(True)

    async with open_results(instantly, jobs(), 2) as results:
        await anext(results)
    assert closed == [True]


async def test_a_generator_is_closed(anyio_backend: str) -> None:
    closed = []

    def jobs() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    async with open_results(instantly, jobs(), 2) as results:
        await anext(results)
    gc.collect()
    assert closed == [True]


# ---- errors ----


class SourceError(Exception):
    pass


async def test_what_the_source_raises_comes_out_of_the_iteration(anyio_backend: str) -> None:
    def jobs() -> Iterator[int]:
        yield 1
        yield 2
        raise SourceError

    async with open_results(at_once, jobs(), 1) as results:
        assert [await anext(results), await anext(results)] == [1, 2]
        for _ in range(2):
            with pytest.raises(SourceError):
                await anext(results)


async def test_nothing_runs_any_more_when_an_error_comes_out(anyio_backend: str) -> None:
    gate = Gate()

    async def jobs() -> AsyncIterator[int]:
        yield 1
        yield 2
        await settle()
        raise SourceError

    async with open_results(gate.run, jobs(), 3) as results:
        with pytest.raises(SourceError):
            await anext(results)
        assert gate.running == []
        assert sorted(gate.cancelled) == [1, 2]


async def test_what_a_run_raises_comes_out_after_the_results_before_it(anyio_backend: str) -> None:
    async def run(job: int) -> int:
        if job == 2:
            raise SourceError(job)
        return job

    found = []
    async with open_results(run, range(10), 1) as results:
        with pytest.raises(SourceError):
            async for result in results:
                found.append(result)
    assert found == [0, 1]


@pytest.mark.parametrize("error", [SourceError, KeyboardInterrupt])
async def test_the_bodys_error_comes_out_as_itself(anyio_backend: str, error: type[BaseException]) -> None:
    gate = Gate()
    with pytest.raises(error):
        async with open_results(gate.run, gate.jobs(10), 2):
            await settle()
            raise error
    assert sorted(gate.cancelled) == [0, 1]


async def test_leaving_early_cancels_what_runs(anyio_backend: str) -> None:
    gate = Gate()
    async with open_results(gate.run, gate.jobs(10), 3) as results:
        await settle()
        gate.end(0)
        async for _ in results:
            break
    assert gate.running == []
    assert 0 not in gate.cancelled
    assert len(gate.cancelled) >= 2


async def test_cancellation_from_outside(anyio_backend: str) -> None:
    gate = Gate()
    with anyio.CancelScope() as scope:
        async with open_results(gate.run, gate.jobs(10), 3) as results:
            await settle()
            scope.cancel()
            await anext(results)
    assert scope.cancelled_caught
    assert gate.running == []


async def test_taking_results_after_the_scope_is_an_error_and_no_hang(anyio_backend: str) -> None:
    async with open_results(instantly, range(10), 2) as results:
        await anext(results)
    with anyio.fail_after(5), pytest.raises(anyio.ClosedResourceError):
        await anext(results)
