"""A terminal between ours and a container's: raw mode, both directions, the size. On trio."""

from __future__ import annotations

import contextlib
import errno
import os

import trio

from tinyvisor.cli.relay import CHUNK, raw, size, write_out
from tinyvisor.runtime import Container

REOPEN_PATIENCE = 0.1
"""Seconds between two looks at a terminal that every process of a living container has closed."""


async def attach(container: Container, *, interactive: bool) -> None:
    """Joins our stdin and stdout to the container's terminal until its last output is out.

    Args:
        interactive: our stdin is a terminal, which is put into raw mode meanwhile, and passed on.

    Cancellation: our terminal is as it was before; output may be lost.
    """
    master = container.terminal
    assert master is not None
    os.set_blocking(master, False)
    container.resize(*size())  # it may have changed since the start was asked for
    with raw(0) if interactive else contextlib.nullcontext():
        async with trio.open_nursery() as nursery:
            if interactive:
                nursery.start_soon(_copy_in, master)
            await _copy_out(master, container)
            nursery.cancel_scope.cancel()


async def _copy_in(master: int) -> None:
    while True:
        await trio.lowlevel.wait_readable(0)
        try:
            data = os.read(0, CHUNK)
        except OSError as exc:
            if exc.errno != errno.EIO:  # hung up
                raise
            return
        if not data or not await _write_master(master, data):
            return


async def _write_master(master: int, data: bytes) -> bool:
    """False once there is nobody to write to."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(master, view) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(master)
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise
            return False
    return True


async def _copy_out(master: int, container: Container) -> None:
    """Until no process has the terminal open and the container has ended."""
    while True:
        await trio.lowlevel.wait_readable(master)
        try:
            data = os.read(master, CHUNK)
        except BlockingIOError:
            continue
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise
            data = b""
        if data:
            # From a thread: our stdout may be slow, and making it non-blocking would show in all who share it.
            await trio.to_thread.run_sync(write_out, data, abandon_on_cancel=True)
        elif container.exit is not None:
            return
        else:
            with trio.move_on_after(REOPEN_PATIENCE):
                await container.wait()
