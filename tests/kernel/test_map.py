"""`Runtime.map` with real containers; its order and back-pressure are tests/test_results.py's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.kernel.helpers import BOUND, cgroups
from tests.kernel.test_capture import no_fd_is_left
from tinyvisor.errors import SpecError
from tinyvisor.job import Job
from tinyvisor.runtime import Runtime
from tinyvisor.spec import Spec

pytestmark = [pytest.mark.kernel, pytest.mark.anyio]


def nothing_runs(runtime: Runtime) -> None:
    assert runtime.containers == {}
    assert cgroups(runtime) == []


async def test_each_result_is_its_jobs(shared: Runtime) -> None:
    specs = [Spec(command=("sh", "-c", f"echo {n}; exit {n % 3}")) for n in range(100)]
    with no_fd_is_left(), anyio.fail_after(BOUND):
        async with shared.map(specs, concurrency=8, capture_stdout=True) as results:
            found = [result async for result in results]
    assert {id(result.job) for result in found} == {id(spec) for spec in specs}
    for result in found:
        number = specs.index(result.job)
        assert (result.stdout, result.exit_code) == (b"%d\n" % number, number % 3)
    nothing_runs(shared)


async def test_jobs_that_can_not_start_are_results(shared: Runtime, tmp_path: Path) -> None:
    true = Spec(command=("true",))
    jobs = [
        Job(spec=true.with_(command=("/no/such",)), id="step"),
        Job(spec=true, stdin=tmp_path / "missing", id="stdin"),
        Job(spec=true, files={"a": tmp_path / "missing"}, id="file"),
        Job(spec=true.with_(user="nobody-here"), id="user"),
        Job(spec=true.with_(rootfs=tmp_path / "missing"), id="root"),
        Job(spec=true.with_(tty=True), id="tty"),
        Job(spec=true, id="fine"),
    ]
    with no_fd_is_left():
        async with shared.map(jobs, concurrency=3) as results:
            found = {result.id: result async for result in results}
    assert {id for id, result in found.items() if result.status == "sandbox_error"} == {job.id for job in jobs} - {"fine"}
    assert found["fine"].status == "ok"
    assert "exec /no/such: No such file" in found["step"].reason
    assert all(found[job.id].job is job for job in jobs)
    nothing_runs(shared)


async def test_leaving_early_kills_what_runs(shared: Runtime) -> None:
    def specs() -> Iterator[Spec]:
        yield Spec(command=("true",))
        while True:
            yield Spec(command=("sleep", "1000"))

    with no_fd_is_left(), anyio.fail_after(BOUND):
        async with shared.map(specs(), concurrency=5) as results:
            assert (await anext(results)).status == "ok"
        nothing_runs(shared)


async def test_what_the_source_raises_kills_what_runs_first(shared: Runtime) -> None:
    async def specs() -> AsyncIterator[Spec]:
        yield Spec(command=("sleep", "1000"))
        await anyio.sleep(0.02)
        raise LookupError

    with anyio.fail_after(BOUND):
        async with shared.map(specs(), concurrency=5) as results:
            with pytest.raises(LookupError):
                await anext(results)
            nothing_runs(shared)


async def test_a_source_that_waits_for_results(shared: Runtime) -> None:
    """Each job is made of the result before."""
    send, receive = anyio.create_memory_object_stream[Spec](1)
    with anyio.fail_after(BOUND):
        async with send, receive, shared.map(receive, concurrency=2, capture_stdout=True) as results:
            text = b"0"
            for _ in range(5):
                await send.send(Spec(command=("sh", "-c", f"echo $(({text.decode()} + 1))")))
                text = ((await anext(results)).stdout or b"").strip()
    assert text == b"5"


@pytest.mark.parametrize("concurrency", [0, -1, True, "4", 1.5])
async def test_wrong_concurrency(shared: Runtime, concurrency: Any) -> None:
    with pytest.raises(SpecError, match="concurrency: expected a whole number"):
        async with shared.map([], concurrency=concurrency):
            pass


async def test_what_is_no_job_is_an_error(shared: Runtime) -> None:
    wrong: Any = [["true"]]
    async with shared.map(wrong) as results:
        with pytest.raises(SpecError, match="jobs: expected Spec or Job objects"):
            await anext(results)


async def test_one_name_can_not_run_twice_at_once(shared: Runtime) -> None:
    specs = [Spec(command=("sleep", "0.2"), name="same")] * 2
    async with shared.map(specs, concurrency=2) as results:
        found = sorted([(result.status, result.reason) async for result in results])
    assert found == [("ok", ""), ("sandbox_error", 'name: a container named "same" is running already')]
