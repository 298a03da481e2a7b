"""Batches over a runtime without a kernel, on both event loops: limits, retries, ends, memory."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tests.fake_batch import FakeRuntime, fails, succeed
from tinyvisor.batch import Batch, Policy
from tinyvisor.digests import WIDTH
from tinyvisor.errors import HostError, TinyvisorError
from tinyvisor.job import Job
from tinyvisor.jobs import Draft, Invalid, NumberedJob, Reader, Template
from tinyvisor.journal import Journal
from tinyvisor.outputs import OutputDir
from tinyvisor.spec import Spec
from tinyvisor.state import Result

pytestmark = pytest.mark.anyio
BOUND = 60.0
FOUR = Policy(concurrency=4)


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def jobs(count: int, **fields: Any) -> Iterable[NumberedJob]:
    reader, template = Reader(Draft(fields=fields), environ={}), Template("true {}")
    for number in range(1, count + 1):
        for job in reader.argument(template, str(number), Path("argument"), number):
            assert not isinstance(job, Invalid)
            yield job


async def stream(found: Iterable[NumberedJob]) -> AsyncIterator[NumberedJob]:
    for job in found:
        yield job


async def run(runtime: FakeRuntime, found: Iterable[NumberedJob], policy: Policy = FOUR, **more: Any) -> Batch:
    batch = Batch(runtime, stream(found), policy, **more)
    with anyio.fail_after(BOUND):
        await batch.run()
    assert not batch.running
    assert not runtime.running
    return batch


def ids(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_bytes().splitlines()]


async def test_every_job_runs_once_and_never_too_many_at_once() -> None:
    runtime = FakeRuntime()
    finished = []
    batch = await run(runtime, jobs(100), on_finished=lambda job, result: finished.append((job.id, result.stdout)))
    assert sorted(finished) == sorted((str(n), f"{n}\n".encode()) for n in range(1, 101))
    assert 1 < runtime.most <= 4
    assert runtime.captures == (True, True)
    assert batch.tally.by_status() == [("ok", 100)]
    assert batch.tally.all_ok


async def test_no_jobs_are_no_trouble() -> None:
    batch = await run(FakeRuntime(), ())
    assert batch.tally.finished == 0
    assert batch.tally.all_ok


async def test_a_job_runs_before_the_next_one_comes() -> None:
    """A stream of jobs: each line is answered before the next one is written."""
    answered = anyio.Event()

    def on_finished(job: NumberedJob, result: Result) -> None:
        nonlocal answered
        answered.set()
        answered = anyio.Event()

    async def questions() -> AsyncIterator[NumberedJob]:
        for job in jobs(5):
            event = answered
            yield job
            await event.wait()

    batch = Batch(FakeRuntime(), questions(), Policy(concurrency=4), on_finished=on_finished)
    with anyio.fail_after(BOUND):
        await batch.run()
    assert batch.tally.finished == 5


async def test_the_source_is_one_job_ahead_at_most() -> None:
    given = 0
    release = anyio.Event()

    def counted() -> Iterable[NumberedJob]:
        nonlocal given
        for job in jobs(100):
            given += 1
            yield job

    async def hold(job: NumberedJob) -> Result:
        await release.wait()
        return await succeed(job)

    runtime = FakeRuntime(hold)
    batch = Batch(runtime, stream(counted()), Policy(concurrency=3))
    with anyio.fail_after(BOUND):
        async with anyio.create_task_group() as group:
            group.start_soon(batch.run)
            await anyio.wait_all_tasks_blocked()
            assert len(runtime.running) == len(batch.running) == 3
            assert given == 4
            release.set()
    assert given == 100


async def test_memory_budget_is_kept_and_used() -> None:
    found = list(jobs(30, mem_limit=10)) + list(jobs(10, mem_limit=25))
    found = [job for pair in zip(found[:20], found[20:], strict=True) for job in pair]
    runtime = FakeRuntime()
    await run(runtime, [job_with(job, index) for index, job in enumerate(found, 1)], Policy(concurrency=10, memory_budget=45))
    assert runtime.most_memory in (35, 40, 45)
    assert runtime.most > 1


def job_with(job: NumberedJob, index: int) -> NumberedJob:
    from dataclasses import replace

    return replace(job, index=index, id=str(index))


async def test_sandbox_errors_are_retried_and_others_on_request() -> None:
    def flaky(succeeds_in: int, status: Any) -> FakeRuntime:
        async def behave(job: NumberedJob) -> Result:
            if job.id == "2" and job.attempt < succeeds_in:
                return Result(status=status, reason="no")
            return await succeed(job)

        return FakeRuntime(behave)

    seen: list[tuple[str, int, str]] = []

    def note(job: NumberedJob, result: Result) -> None:
        if job.id == "2":
            seen.append((job.id, job.attempt, result.status))

    batch = await run(flaky(3, "sandbox_error"), jobs(4), Policy(concurrency=2, retries=2), on_finished=note)
    assert (batch.tally.all_ok, batch.tally.retried) == (True, 2)
    batch = await run(flaky(3, "sandbox_error"), jobs(4), Policy(concurrency=2, retries=1), on_finished=note)
    assert batch.tally.by_status() == [("ok", 3), ("sandbox_error", 1)]
    batch = await run(flaky(2, "time_limit"), jobs(4), Policy(concurrency=2, retries=1), on_finished=note)
    assert batch.tally.by_status() == [("ok", 3), ("time_limit", 1)]
    more = Policy(concurrency=2, retries=1, retry_on=frozenset({"time_limit"}))
    batch = await run(flaky(2, "time_limit"), jobs(4), more, on_finished=note)
    assert seen == [("2", 3, "ok"), ("2", 2, "sandbox_error"), ("2", 1, "time_limit"), ("2", 2, "ok")]


async def test_the_last_job_of_all_is_retried() -> None:
    runtime = FakeRuntime(fails("3", status="sandbox_error"))
    batch = await run(runtime, jobs(3), Policy(concurrency=3, retries=5))
    assert runtime.started.count("3") == 6
    assert batch.tally.finished == 3


async def test_retries_within_a_memory_budget() -> None:
    runtime = FakeRuntime(fails("1", "4", status="sandbox_error"))
    await run(runtime, jobs(5, mem_limit=10), Policy(concurrency=5, retries=2, memory_budget=10))
    assert (runtime.most, runtime.most_memory) == (1, 10)
    assert len(runtime.started) == 5 + 4


async def test_fail_fast_kills_what_runs_and_starts_nothing(tmp_path: Path) -> None:
    async def behave(job: NumberedJob) -> Result:
        if job.id == "5":
            return Result(status="nonzero_exit", exit_code=1)
        if job.index > 5:
            await anyio.sleep_forever()
        return await succeed(job)

    runtime = FakeRuntime(behave)
    with Journal(tmp_path / "results") as journal:
        batch = await run(runtime, jobs(100), Policy(concurrency=4, fail_fast=True), journal=journal)
    assert batch.failed_fast
    assert not batch.tally.all_ok
    assert len(runtime.started) <= 10
    recorded = ids(tmp_path / "results")
    assert "5" in recorded
    assert runtime.killed
    assert not set(runtime.killed) & set(recorded)


async def test_stop_kills_what_runs_and_the_rest_can_be_resumed(tmp_path: Path) -> None:
    async def behave(job: NumberedJob) -> Result:
        if job.index == 20:
            batch.stop()
        if job.index >= 18:
            await anyio.sleep_forever()
        return await succeed(job)

    runtime = FakeRuntime(behave)
    with Journal(tmp_path / "results") as journal, anyio.fail_after(BOUND):
        batch = Batch(runtime, stream(jobs(50)), Policy(concurrency=4), journal=journal)
        await batch.run()
    first = ids(tmp_path / "results")
    assert {"18", "19", "20"} <= set(runtime.killed)
    assert len(first) == len(set(first)) <= 17

    again = FakeRuntime()
    with Journal(tmp_path / "results", resume=True) as journal:
        batch = await run(again, jobs(50), journal=journal)
    assert sorted(first + again.started, key=int) == [str(n) for n in range(1, 51)]
    assert batch.tally.earlier.total() == len(first)
    assert batch.tally.finished == 50


async def test_what_must_not_run_twice_does_not(tmp_path: Path) -> None:
    """Neither after a failure nor after an interruption, where its result is that nothing is known; once, like all others."""

    def found() -> Iterable[NumberedJob]:
        return (replace(job, retry="never") if job.id in ("1", "3", "5") else job for job in jobs(6))

    runtime = FakeRuntime(fails("1", status="sandbox_error"))
    with Journal(tmp_path / "r") as journal:
        batch = Batch(runtime, stream(found()), Policy(concurrency=1, retries=5), journal=journal)

        async def stop_in_the_third(job: NumberedJob) -> Result:
            if job.id == "3":
                batch.stop()
                await anyio.sleep_forever()
            return await fails("1", status="sandbox_error")(job)

        runtime.behave = stop_in_the_third
        await batch.run()
    assert runtime.started == ["1", "2", "3"]
    runtime = FakeRuntime()
    for _ in range(2):
        with Journal(tmp_path / "r", resume=True) as journal:
            await run(runtime, found(), Policy(concurrency=1), journal=journal)
    assert runtime.started == ["4", "5", "6"]
    lines = {line["id"]: line for line in map(json.loads, (tmp_path / "r").read_bytes().splitlines())}
    assert {id: line["status"] for id, line in lines.items()} == {
        "1": "sandbox_error", "2": "ok", "3": "unknown", "4": "ok", "5": "ok", "6": "ok",
    }  # fmt: skip
    assert "must not run twice" in lines["3"]["reason"]
    assert sorted(ids(tmp_path / "r")) == ["1", "2", "3", "4", "5", "6"]


async def test_a_bad_source_lets_the_others_finish() -> None:
    async def source() -> AsyncIterator[NumberedJob]:
        for job in jobs(3):
            yield job
        raise TinyvisorError("line 4 is wrong")

    batch = Batch(FakeRuntime(), source(), Policy(concurrency=2))
    with anyio.fail_after(BOUND), pytest.raises(TinyvisorError, match="line 4 is wrong"):
        await batch.run()
    assert batch.tally.finished == 3


async def test_a_broken_runtime_ends_the_batch() -> None:
    async def behave(job: NumberedJob) -> Result:
        if job.id == "2":
            raise HostError("no memory controller", "mount it")
        await anyio.sleep_forever()
        raise AssertionError

    with anyio.fail_after(BOUND), pytest.raises(ExceptionGroup) as caught:
        await Batch(FakeRuntime(behave), stream(jobs(9)), Policy(concurrency=3)).run()
    assert caught.group_contains(HostError)


async def test_a_full_disk_ends_the_batch(tmp_path: Path) -> None:
    with Journal(Path("/dev/full")) as journal, anyio.fail_after(BOUND), pytest.raises(ExceptionGroup) as caught:
        await Batch(FakeRuntime(), stream(jobs(9)), Policy(concurrency=3), journal=journal).run()
    assert caught.group_contains(TinyvisorError, match="results can't be written: No space left")


async def test_outputs_are_there_when_the_line_is(tmp_path: Path) -> None:
    async def behave(job: NumberedJob) -> Result:
        return Result(status="ok", exit_code=0, stdout=b"x" * (1 << 20), stderr=b"", files={"out/a.txt": b"collected"})

    def look(job: NumberedJob, result: Result) -> None:
        assert (tmp_path / "out" / f"{job.id}.out").stat().st_size == 1 << 20
        assert (tmp_path / "out" / job.id / "out" / "a.txt").read_bytes() == b"collected"

    with Journal(tmp_path / "results") as journal, OutputDir(tmp_path / "out") as outputs:
        await run(FakeRuntime(behave), jobs(5), journal=journal, outputs=outputs, on_finished=look)
    for line in (tmp_path / "results").read_text().splitlines():
        found = json.loads(line)
        assert found["files"] == {"out/a.txt": {"file": f"{found['id']}/out/a.txt"}}
        assert len(found["stdout"]) == 1 << 20


async def test_cancelled_from_outside() -> None:
    async def hold(job: NumberedJob) -> Result:
        await anyio.sleep_forever()
        raise AssertionError

    runtime = FakeRuntime(hold)
    with anyio.fail_after(BOUND), anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(Batch(runtime, stream(jobs(50)), Policy(concurrency=3)).run)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    assert sorted(runtime.killed) == ["1", "2", "3"]


class Bare:
    """A runtime that does nothing at all, one job at a time."""

    @asynccontextmanager
    async def map(self, jobs: AsyncIterable[Spec | Job], **options: Any) -> AsyncIterator[AsyncIterator[Result]]:
        async def results() -> AsyncGenerator[Result, None]:
            async for job in jobs:
                assert isinstance(job, NumberedJob)
                code = int(job.index % 10 == 0)
                yield Result(status="nonzero_exit" if code else "ok", exit_code=code, wall=job.index % 7, job=job)

        async with aclosing(results()) as found:
            yield found


@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
@pytest.mark.timeout(600)
async def test_a_million_jobs_take_no_more_memory_than_a_few(tmp_path: Path, anyio_backend: str) -> None:
    few, many = 2_000, 20_000
    peaks: dict[int, int] = {}
    spec = Spec(command=("true",))

    def measured() -> Iterable[NumberedJob]:
        for index in range(1, many + 1):
            if index in (few, many):
                gc.collect()
                peaks[index] = tracemalloc.get_traced_memory()[1]
            yield NumberedJob(spec=spec, id=str(index), index=index, digest=index.to_bytes(WIDTH, "big"))

    tracemalloc.start()
    try:
        with Journal(tmp_path / "results") as journal:
            batch = Batch(Bare(), stream(measured()), FOUR, journal=journal)
            await batch.run()
    finally:
        tracemalloc.stop()
    assert batch.tally.by_status() == [("ok", many - many // 10), ("nonzero_exit", many // 10)]
    assert peaks[many] - peaks[few] < 32 << 10, peaks  # two bytes per job show
