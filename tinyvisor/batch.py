"""Jobs with a concurrency limit: retries, a memory budget, a results file, results as they come. anyio only.

A `Batch` holds the jobs that run and one more that it has read; everything else about a job is in its line of the results
file. So the number of jobs does not show in its memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import anyio
import anyio.to_thread

from tinyvisor.errors import TinyvisorError
from tinyvisor.job import Job
from tinyvisor.jobs import NumberedJob
from tinyvisor.journal import Journal, format_line
from tinyvisor.outputs import OutputDir
from tinyvisor.report import Tally
from tinyvisor.spec import Spec
from tinyvisor.state import Result

LARGE = 256 << 10
"""Bytes that are written by a thread: the other jobs don't wait for the disk so long."""


class Runtime(Protocol):
    """What a batch needs of a runtime; `tinyvisor.open_runtime` gives one."""

    def map(
        self,
        jobs: AsyncIterable[Spec | Job],
        *,
        concurrency: int | None = None,
        capture_stdout: bool = False,
        capture_stderr: bool = False,
    ) -> AbstractAsyncContextManager[AsyncIterator[Result]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a batch is run.

    Attributes:
        concurrency: jobs at once, >= 1.
        memory_budget: bytes that the mem_limits of all running jobs together stay within; every job must have one, and none
            may be larger. None: no budget.
        retries: further attempts at a job, >= 0.
        retry_on: the statuses after which there is one.
        fail_fast: the first job that is not ok ends the batch.
    """

    concurrency: int
    memory_budget: int | None = None
    retries: int = 0
    retry_on: frozenset[str] = frozenset({"sandbox_error"})
    fail_fast: bool = False


class Batch:
    """Runs the jobs that `jobs` gives, as it gives them. One use.

    Args:
        jobs: asked for the next job when the one before it has started.
        journal: gets a line per finished job; jobs that are in it already are counted and passed over.
        outputs: get what each job wrote.
        on_finished: called with each job's last result, after it was written down.

    Attributes:
        tally: what has come of the jobs so far.
        running: the jobs that were started, by index, in that order.
        failed_fast: `Policy.fail_fast` has ended it.
    """

    def __init__(
        self,
        runtime: Runtime,
        jobs: AsyncIterable[NumberedJob],
        policy: Policy,
        *,
        journal: Journal | None = None,
        outputs: OutputDir | None = None,
        on_finished: Callable[[NumberedJob, Result], None] = lambda job, result: None,
    ) -> None:
        self.tally: Tally = Tally()
        self.running: dict[int, NumberedJob] = {}
        self.failed_fast: bool = False
        self._runtime, self._jobs, self._policy = runtime, jobs, policy
        self._journal, self._outputs, self._on_finished = journal, outputs, on_finished
        self._scope = anyio.CancelScope()
        self._taken, self._changed = _Bell(), _Bell()
        self._retries: deque[NumberedJob] = deque()
        self._next: NumberedJob | None = None
        self._ended = False
        self._failure: TinyvisorError | None = None
        self._memory = 0

    def stop(self) -> None:
        """Starts nothing more and kills what runs; `run` returns soon. What was killed is in no results file."""
        self._scope.cancel()

    async def run(self) -> None:
        """Until every job has finished, or `stop`.

        Raises:
            TinyvisorError: what `jobs` raised, once the jobs before it have finished; results can't be written. May come in
                an `ExceptionGroup`.
            HostError, LauncherDied: the runtime can't go on. May come in an `ExceptionGroup`.

        Cancellation: kills what runs.
        """
        with self._scope:
            async with anyio.create_task_group() as group:
                group.start_soon(self._read)
                async with self._runtime.map(
                    _Feed(self), concurrency=self._policy.concurrency, capture_stdout=True, capture_stderr=True
                ) as results:
                    async for result in results:
                        await self._finish(result.job, result)
                group.cancel_scope.cancel()
        self.running.clear()  # what `stop` has killed
        if self._failure is not None and not self._scope.cancel_called:
            raise self._failure

    # What goes in.

    async def _read(self) -> None:
        """Keeps one job ready."""
        source = self._jobs.__aiter__()
        try:
            async for job in source:
                status = self._journal.status(job) if self._journal else None
                if status is not None:
                    self.tally.skip(status)
                    continue
                if job.retry == "never" and self._journal is not None and self._journal.has_begun(job):
                    reason = "it had begun when the batch was interrupted, and must not run twice"
                    await self._conclude(job, Result(status="unknown", reason=reason, id=job.id, job=job))
                    continue
                self._next = job
                self._changed.ring()
                while self._next is not None:
                    await self._taken.wait()
        except TinyvisorError as error:
            self._failure = error
        finally:
            if hasattr(source, "aclose"):  # a generator that is left to the collector would be finished anywhere
                await source.aclose()
        self._ended = True
        self._changed.ring()

    async def take(self) -> NumberedJob | None:
        """The next job to start, when there is memory for it; None when there will be no more."""
        while True:
            job = self._retries[0] if self._retries else self._next
            if job is not None and self._fits(job):
                return self._start(job)
            if job is None and self._ended and not self.running:
                return None
            await self._changed.wait()

    def _fits(self, job: NumberedJob) -> bool:
        budget = self._policy.memory_budget
        return budget is None or self._memory + (job.spec.mem_limit or 0) <= budget

    def _start(self, job: NumberedJob) -> NumberedJob:
        if self._retries:
            self._retries.popleft()
        else:
            self._next = None
            self._taken.ring()
        if job.retry == "never" and self._journal is not None:
            self._journal.begin(job)
        self.running[job.index] = job
        self._memory += job.spec.mem_limit or 0
        return job

    # What comes out.

    async def _finish(self, job: NumberedJob, result: Result) -> None:
        again = result.status in self._policy.retry_on and job.attempt <= self._policy.retries and job.retry != "never"
        if again:
            self._retries.append(job.again())
            self.tally.retried += 1
        del self.running[job.index]
        self._memory -= job.spec.mem_limit or 0
        self._changed.ring()
        if not again:
            await self._conclude(job, result)

    async def _conclude(self, job: NumberedJob, result: Result) -> None:
        await self._write_down(job, result)
        self.tally.add(job, result)
        self._on_finished(job, result)
        if self._policy.fail_fast and result.status != "ok":
            self.failed_fast = True
            self.stop()

    async def _write_down(self, job: NumberedJob, result: Result) -> None:
        """Outputs first: a job that has its line has its outputs, too."""
        size = len(result.stdout or b"") + len(result.stderr or b"") + sum(map(len, result.files.values()))
        files = None
        if self._outputs is not None:
            files = await _written(self._outputs.save, result, job, thread=size > LARGE)
        if self._journal is not None:
            line = format_line(result, job, files=files)
            slow = not self._journal.regular
            await _written(self._journal.append, line, thread=slow or len(line) > LARGE, abandon=slow)


async def _written(write: Callable[..., Any], *arguments: Any, thread: bool, abandon: bool = False) -> Any:
    if thread:
        return await anyio.to_thread.run_sync(write, *arguments, abandon_on_cancel=abandon)
    return write(*arguments)


class _Bell:
    """Wakes those who wait when it rings; costs nothing where nobody does."""

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def ring(self) -> None:
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()


class _Feed:
    """The jobs of a `Batch` as the runtime asks for them. No generator: nobody has to close it."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __aiter__(self) -> _Feed:
        return self

    async def __anext__(self) -> Spec | Job:
        job = await self._batch.take()
        if job is None:
            raise StopAsyncIteration
        return job
