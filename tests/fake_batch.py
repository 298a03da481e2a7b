"""A runtime without a kernel for batches: each job does what a function says, on either event loop. Fits `batch.Runtime`."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import anyio.lowlevel

from tinyvisor.job import Job
from tinyvisor.jobs import NumberedJob
from tinyvisor.spec import Spec
from tinyvisor.state import Result

Behaviour = Callable[[NumberedJob], Awaitable[Result]]


async def succeed(job: NumberedJob) -> Result:
    """Ends after a few rounds of the event loop, later jobs sooner."""
    for _ in range(job.index * 7 % 5):
        await anyio.lowlevel.checkpoint()
    return Result(status="ok", exit_code=0, wall=0.01, stdout=f"{job.id}\n".encode(), stderr=b"", memory_peak=1 << 20)


def fails(*ids: str, status: Any = "nonzero_exit", code: int | None = 3) -> Behaviour:
    """Those fail, the others succeed."""

    async def behave(job: NumberedJob) -> Result:
        if job.id in ids:
            return Result(status=status, exit_code=code, stderr=b"first\nlast line\n", stdout=b"", reason="because")
        return await succeed(job)

    return behave


class FakeRuntime:
    """`map` as the runtime's: bounded, with back-pressure on both sides.

    Attributes:
        running: jobs that run now.
        most: that ran at once.
        memory, most_memory: of their mem_limits.
        started: ids in the order of their starts.
        killed: ids of jobs that were cancelled.
        asked: jobs that the source was asked for.
    """

    def __init__(self, behave: Behaviour = succeed) -> None:
        self.behave = behave
        self.running: set[str] = set()
        self.most = self.memory = self.most_memory = self.asked = 0
        self.started: list[str] = []
        self.killed: list[str] = []
        self.captures: tuple[bool, bool] | None = None

    @asynccontextmanager
    async def map(
        self,
        jobs: AsyncIterable[Spec | Job],
        *,
        concurrency: int | None = None,
        capture_stdout: bool = False,
        capture_stderr: bool = False,
    ) -> AsyncIterator[AsyncIterator[Result]]:
        self.captures = (capture_stdout, capture_stderr)
        send, receive = anyio.create_memory_object_stream[Result](0)
        source, lock = aiter(jobs), anyio.Lock()

        async def slot() -> None:
            while True:
                async with lock:
                    self.asked += 1
                    try:
                        job = await anext(source)
                    except StopAsyncIteration:
                        return
                assert isinstance(job, NumberedJob)
                result = await self._run(job)
                await send.send(replace(result, id=job.id, job=job))

        async def all_slots() -> None:
            async with send, anyio.create_task_group() as group:
                for _ in range(concurrency or 4):
                    group.start_soon(slot)

        async with receive, anyio.create_task_group() as group:
            group.start_soon(all_slots)
            yield receive
            group.cancel_scope.cancel()

    async def _run(self, job: NumberedJob) -> Result:
        self.started.append(job.id)
        self.running.add(job.id)
        self.memory += job.spec.mem_limit or 0
        self.most, self.most_memory = max(self.most, len(self.running)), max(self.most_memory, self.memory)
        try:
            return await self.behave(job)
        except anyio.get_cancelled_exc_class():
            self.killed.append(job.id)
            raise
        finally:
            self.running.remove(job.id)
            self.memory -= job.spec.mem_limit or 0
