"""Many jobs with a limit on how many run at once: results as they come, the source asked no sooner than a slot is free.

Written on anyio alone."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import Generic, TypeVar

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from tinyvisor.runtime.beside import beside

T = TypeVar("T")
R = TypeVar("R")


class Results(AsyncIterator[R], Generic[R]):
    """Results in the order in which they came about.

    Raises:
        Exception: what the source or a run raised; nothing runs any more then.
    """

    def __init__(self, stream: MemoryObjectReceiveStream[R]) -> None:
        self._stream = stream
        self._error: Exception | None = None

    def fail(self, error: Exception) -> None:
        self._error = self._error or error

    async def __anext__(self) -> R:
        try:
            return await self._stream.receive()
        except anyio.EndOfStream:
            if self._error is not None:
                raise self._error from None
            raise StopAsyncIteration from None


@contextlib.asynccontextmanager
async def open_results(
    run: Callable[[T], Awaitable[R]], jobs: Iterable[T] | AsyncIterable[T], concurrency: int
) -> AsyncIterator[Results[R]]:
    """Runs `jobs`, `concurrency` at once; as many results at most wait to be taken before no more jobs are, and those that run
    then wait with theirs. Leaving it cancels what runs."""
    send, receive = anyio.create_memory_object_stream[R](concurrency)
    results = Results(receive)
    source, turn, working = _iterate(jobs), anyio.Lock(), anyio.CancelScope()

    async def work() -> None:
        try:
            async with turn:  # one asks the source at a time
                job = await anext(source)
            while True:
                await send.send(await run(job))
                async with turn:
                    job = await anext(source)
        except StopAsyncIteration:
            return
        except Exception as exc:
            results.fail(exc)
            working.cancel()

    async def work_all() -> None:
        with send, working:
            async with anyio.create_task_group() as group:
                for _ in range(concurrency):
                    group.start_soon(work)

    try:
        with receive:
            async with beside(work_all):
                yield results
    finally:
        with anyio.CancelScope(shield=True):
            await source.aclose()


async def _iterate(jobs: Iterable[T] | AsyncIterable[T]) -> AsyncGenerator[T, None]:
    if isinstance(jobs, AsyncIterable):
        try:
            async for job in jobs:
                yield job
        finally:
            if isinstance(jobs, AsyncGenerator):  # given in place, most often: nobody else closes it
                await jobs.aclose()
    else:
        for job in jobs:
            yield job
