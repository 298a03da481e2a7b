"""What is called with arguments that make no sense, or when all is over; and kinds of input."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.kernel.helpers import ON_TRIO, waiting
from tinyvisor import open_runtime
from tinyvisor.errors import SpecError, TinyvisorError
from tinyvisor.runtime import Runtime

pytestmark = [pytest.mark.kernel, pytest.mark.anyio, ON_TRIO]


async def test_other_calls_name_the_argument_as_run_does(shared: Runtime) -> None:
    with pytest.raises(SpecError, match=r"^jobs: expected an iterable of Spec or Job objects"):
        shared.map(5)  # type: ignore[arg-type] # what is tried
    async with waiting(shared) as container:
        with pytest.raises(SpecError, match=r"^command: expected a list of words"):
            await container.exec("true")
    async with shared.pool(size=1) as pool:
        with pytest.raises(SpecError, match=r"^mem_limit: is a pool's"):
            await pool.run(["true"], mem_limit=1 << 20)
        with pytest.raises(SpecError, match=r"^command: expected a list"):
            await pool.run("true")
    with pytest.raises(SpecError, match=r"^name: a live runtime needs one"):
        async with open_runtime(live=True):
            pass


async def test_what_was_left_starts_nothing(anyio_backend: str) -> None:
    """The numbers of its file descriptors are others' by now."""
    async with open_runtime() as runtime:
        assert (await runtime.run(["true"])).status == "ok"

    async def start() -> None:
        async with runtime.start(["true"]):
            pass

    attempts: list[Callable[[], Awaitable[object]]] = [functools.partial(runtime.run, ["true"]), start]
    for userns in ("auto", "host"):
        attempts.append(functools.partial(runtime.run, ["true"], userns_mode=userns))
    for attempt in attempts:
        with pytest.raises(TinyvisorError, match="the runtime has been left"):
            await attempt()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_input_is_bytes_of_any_kind(shared: Runtime, kind: Any) -> None:
    for size in (3, 1 << 20):  # in the pipe at once, and not
        result = await shared.run(["wc", "-c"], stdin=kind(b"x" * size), capture_stdout=True)
        assert result.stdout == b"%d\n" % size
