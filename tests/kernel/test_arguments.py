"""Arguments of the API that make no sense: one line that says where, before anything is made; and kinds of input."""

from __future__ import annotations

import functools
import io
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.helpers import ON_TRIO, waiting
from tinyvisor import open_runtime
from tinyvisor.errors import SpecError, TinyvisorError
from tinyvisor.runtime import PIPE, STDOUT, Runtime

pytestmark = [pytest.mark.kernel, pytest.mark.anyio, ON_TRIO]


@pytest.mark.parametrize(
    "command, arguments, field, problem",
    [
        (None, {}, "command", "expected a list"),
        ("ls -l", {}, "command", "list of words"),
        ([], {}, "command", "a program to run"),
        (["ls"], {"nosuch": 1}, "nosuch", "no such field"),
        (["ls"], {"cwd": "/"}, "cwd", 'did you mean "working_dir"'),
        (["ls"], {"env": {}}, "env", 'did you mean "environment"'),
        (["ls"], {"mem_limt": 5}, "mem_limt", 'did you mean "mem_limit"'),
        (["ls"], {"limits": {"memory": "64m"}}, "limits", "expected Limits"),
        (["ls"], {"stdin": "text"}, "stdin", "expected an fd"),
        (["ls"], {"stdin": io.BytesIO(b"x")}, "stdin", "no file descriptor"),
        (["ls"], {"stdin": PIPE}, "stdin", "nobody to write"),
        (["ls"], {"stdout": PIPE}, "stdout", "nobody to read"),
        (["ls"], {"stdout": STDOUT}, "stdout", "is for stderr"),
        (["ls"], {"stdout": 1, "capture_stdout": True}, "stdout", "can't be captured"),
        (["ls"], {"files": {"a": "text or path?"}}, "files", "expected bytes or a Path"),
        (["ls"], {"collect": "*.txt"}, "collect", "expected a list"),
        (["ls"], {"deliver_cancel": 5}, "deliver_cancel", "expected an async function"),
        (["ls"], {"working_directory": "/tmp"}, "working_directory", "another runtime's"),
    ],
)
async def test_a_run_names_the_argument(
    shared: Runtime, command: Any, arguments: dict[str, Any], field: str, problem: str
) -> None:
    with pytest.raises(SpecError) as caught:
        await shared.run(command, **arguments)
    assert caught.value.field == field
    assert problem in caught.value.problem
    assert "\n" not in str(caught.value)
    assert shared.containers == {}


async def test_the_others_do_so_too(shared: Runtime) -> None:
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


async def test_a_path_of_the_host_is_a_file(shared: Runtime, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("given")
    result = await shared.run(["cat", "a"], files={"a": tmp_path / "in"}, capture_stdout=True)
    assert result.stdout == b"given"
