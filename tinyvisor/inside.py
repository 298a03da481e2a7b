"""Commands that are run inside a container: probes and hooks. On trio.

The container's root may make them do anything: write without end, leave a process behind that holds their output open,
never end. So their output is read to the end and kept only at its start, and what holds it open is not waited for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, Protocol

import anyio
import trio

from tinyvisor.errors import ContainerError, InternalError, LauncherDied, TinyvisorError
from tinyvisor.runtime.stdio import ReceivePipe
from tinyvisor.state import Exit

OUTPUT_LIMIT: Final = 4096
"""Bytes kept of a command's output, as moby does."""

_CHUNK: Final = 16 << 10
_LEFT_OPEN: Final = 0.1


class Executor(Protocol):
    """A running container, to who wants a command run in it."""

    async def exec(
        self,
        command: tuple[str, ...],
        /,
        *,
        user: str | None = None,
        working_dir: str | None = None,
        environment: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> Exit: ...


async def run_inside(
    container: Executor,
    command: tuple[str, ...],
    *,
    user: str | None = None,
    working_dir: str | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> tuple[Exit, bytes]:
    """Runs `command`; how it ended, ``sandbox_error`` where it could not be started, and its first `OUTPUT_LIMIT` bytes.

    Args:
        timeout: seconds after which it is killed; None waits for its end.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pipe, output = ReceivePipe(reading), bytearray()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_collect, pipe, output)
            try:
                exit = await container.exec(
                    command,
                    user=user,
                    working_dir=working_dir,
                    environment=environment,
                    timeout=timeout,
                    stdout=writing,
                    stderr=writing,
                )
            except (InternalError, LauncherDied):
                raise
            except TinyvisorError as error:  # a value here, or the nursery would wrap it
                problem = error.problem if isinstance(error, ContainerError) else str(error)
                exit = Exit(status="sandbox_error", reason=problem)
            finally:
                os.close(writing)
            nursery.cancel_scope.deadline = trio.current_time() + _LEFT_OPEN
    finally:
        pipe.close()
    return exit, bytes(output)


async def _collect(pipe: ReceivePipe, output: bytearray) -> None:
    with suppress(anyio.EndOfStream):
        while True:
            data = await pipe.receive(_CHUNK)
            output += data[: OUTPUT_LIMIT - len(output)]


def explain(exit: Exit, output: bytes) -> str:
    """Why it failed, one line: the verdict, and the last line that it wrote."""
    how = exit.reason or exit.describe()
    lines = output.decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"{how}: {last[:200]}" if last else how
