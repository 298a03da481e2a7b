"""Pipe ends as byte streams: lines, what is read ahead, what is closed, and what may be a container's stdio at all."""

from __future__ import annotations

import gc
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvisor.errors import SpecError
from tinyvisor.runtime.stdio import PIPE, STDOUT, ReceivePipe, SendPipe, Streams


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def pipe(anyio_backend: str) -> AsyncIterator[tuple[ReceivePipe, int]]:
    """The reading end, and the fd of the other."""
    theirs, ours = os.pipe2(os.O_CLOEXEC)
    end = ReceivePipe(theirs)
    yield end, ours
    end.close()
    os.close(ours)


def filled(content: bytes) -> ReceivePipe:
    """The reading end of a pipe that holds this and is at its end then."""
    theirs, ours = os.pipe2(os.O_CLOEXEC)
    with open(ours, "wb", buffering=0) as file:
        assert file.write(content) == len(content)
    return ReceivePipe(theirs)


# ---- lines ----


@pytest.mark.anyio
@pytest.mark.parametrize(
    "content, lines",
    [
        (b"", []),
        (b"\n", [b"\n"]),
        (b"a\nb\n", [b"a\n", b"b\n"]),
        (b"a\nb", [b"a\n", b"b"]),
        (b"no newline at all", [b"no newline at all"]),
        (b"\n\n\n", [b"\n", b"\n", b"\n"]),
        (b"dos\r\nmac\r\r\n", [b"dos\r\n", b"mac\r\r\n"]),
        (b"\0\n\0\0", [b"\0\n", b"\0\0"]),
        (b"\xff\xfe\n", [b"\xff\xfe\n"]),
        (b"x\x0b\x0c\x1c\x85y\n", [b"x\x0b\x0c\x1c\x85y\n"]),  # what str.splitlines would take for ends
    ],
)
async def test_lines(anyio_backend: str, content: bytes, lines: list[bytes]) -> None:
    pipe = filled(content)
    assert [line async for line in pipe] == lines
    with pytest.raises(anyio.EndOfStream):
        await pipe.receive_line()
    await pipe.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 16, 17, 24])
async def test_a_long_line_comes_in_pieces(anyio_backend: str, length: int) -> None:
    pipe = filled(b"x" * length + b"\nnext\n")
    found = [piece async for piece in pipe.lines(8)]
    pipe.close()
    assert b"".join(found) == b"x" * length + b"\nnext\n"
    assert max(map(len, found)) <= 8
    assert found[-1] == b"next\n"
    assert len(found) == 2 + length // 8


@given(st.lists(st.binary(max_size=40), max_size=30), st.integers(1, 50))
def test_lines_are_those_of_the_whole(chunks: list[bytes], most: int) -> None:
    """However they come, and whatever is asked for in between."""
    content = b"\n".join(chunks)
    *whole, rest = content.split(b"\n")
    expected = [line + b"\n" for line in whole] + [rest] * bool(rest)
    pieces = [line[at : at + most] for line in expected for at in range(0, len(line), most)]

    async def main() -> list[bytes]:
        theirs, ours = os.pipe2(os.O_CLOEXEC)
        pipe = ReceivePipe(theirs)
        found: list[bytes] = []

        async def write() -> None:
            with open(ours, "wb", buffering=0) as file:
                for at in range(0, len(content), 7):
                    file.write(content[at : at + 7])
                    await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            group.start_soon(write)
            found += [piece async for piece in pipe.lines(most)]
        pipe.close()
        return found

    assert anyio.run(main, backend="trio") == pieces


@pytest.mark.anyio
async def test_what_was_read_ahead_is_lost_to_nobody(anyio_backend: str) -> None:
    """Leaving the loop, and going on in another way."""
    pipe = filled(b"one\ntwo\nready\nrest\nand more")
    async for line in pipe:
        if line == b"ready\n":
            break
    assert await pipe.receive_line() == b"rest\n"
    assert await pipe.receive(3) == b"and"
    assert pipe.receive_nowait(1) == b" "
    assert [line async for line in pipe] == [b"more"]
    pipe.close()


@pytest.mark.anyio
async def test_a_loop_that_is_left_needs_no_closing(anyio_backend: str) -> None:
    """An async generator would warn, which is an error here."""
    pipe = filled(b"one\ntwo\n")
    async for _ in pipe:
        break
    gc.collect()
    await anyio.lowlevel.checkpoint()
    pipe.close()


@pytest.mark.anyio
async def test_a_cancelled_line_is_there_for_the_next(anyio_backend: str, pipe: tuple[ReceivePipe, int]) -> None:
    end, ours = pipe
    os.write(ours, b"half a ")
    for _ in range(3):
        with anyio.move_on_after(0.01) as scope:
            await end.receive_line()
        assert scope.cancelled_caught
    os.write(ours, b"line\n")
    assert await end.receive_line() == b"half a line\n"


@pytest.mark.anyio
async def test_lines_end_in_an_error_once_closed(anyio_backend: str) -> None:
    pipe = filled(b"one\ntwo\n")
    assert await pipe.receive_line() == b"one\n"
    await pipe.aclose()
    with pytest.raises(anyio.ClosedResourceError):
        await pipe.receive_line()
    with pytest.raises(anyio.ClosedResourceError):
        await pipe.receive()
    await pipe.aclose()


@pytest.mark.anyio
async def test_a_piece_has_a_size(anyio_backend: str) -> None:
    pipe = filled(b"x")
    with pytest.raises(ValueError, match="max_bytes"):
        pipe.lines(0)
    pipe.close()


@pytest.mark.anyio
async def test_sending_ends_with_the_reader(anyio_backend: str) -> None:
    theirs, ours = os.pipe2(os.O_CLOEXEC)
    pipe = SendPipe(ours)
    async with anyio.create_task_group() as group:
        group.start_soon(_close_when_full, theirs)
        with pytest.raises(anyio.BrokenResourceError):
            await pipe.send(bytes(1 << 20))
    pipe.close()
    with pytest.raises(anyio.ClosedResourceError):
        await pipe.send(b"x")


async def _close_when_full(fd: int) -> None:
    await anyio.wait_readable(fd)
    await anyio.lowlevel.checkpoint()
    os.close(fd)


# ---- what a container can be given ----


@pytest.fixture
def null() -> Iterator[int]:
    fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.anyio
@pytest.mark.parametrize("wrong", ["text", b"bytes", bytearray(b"x"), 1.5, object(), True, -4, 10**6])
@pytest.mark.parametrize("which", ["stdin", "stdout", "stderr"])
async def test_what_is_no_stdio_is_said_so_and_leaves_nothing(anyio_backend: str, null: int, which: str, wrong: Any) -> None:
    arguments: dict[str, Any] = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE, which: wrong}
    before = open_fds()
    with pytest.raises(SpecError) as caught:
        Streams(**arguments, null=null)
    assert caught.value.field == which
    assert open_fds() == before


@pytest.mark.anyio
async def test_only_stderr_can_be_merged(anyio_backend: str, null: int) -> None:
    with pytest.raises(SpecError, match="stdin"):
        Streams(STDOUT, None, None, null)
    with pytest.raises(SpecError, match="stdout"):
        Streams(None, STDOUT, None, null)


def test_closed_files_and_directories_are_refused(null: int, tmp_path: Path) -> None:
    with tempfile.TemporaryFile() as file:
        pass
    with pytest.raises(SpecError, match="stdin: can't be given to a container: I/O operation on closed file"):
        Streams(file, None, None, null)
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(SpecError, match="way out"):
            Streams(None, directory, None, null)
    finally:
        os.close(directory)


def test_none_and_devnull_are_dev_null(null: int) -> None:
    assert Streams(None, subprocess.DEVNULL, None, null).given == (null, null, null)


@pytest.mark.anyio
async def test_merged_output_is_one_fd(anyio_backend: str, null: int) -> None:
    before = open_fds()
    streams = Streams(None, PIPE, STDOUT, null)
    assert streams.given[1] == streams.given[2]
    assert streams.stderr is None
    streams.close_given()
    streams.close()
    assert open_fds() == before


def test_our_constants_are_those_of_subprocess() -> None:
    """So that either may be passed."""
    assert (PIPE, STDOUT) == (subprocess.PIPE, subprocess.STDOUT)
