"""Fds that are closed while tasks wait for them."""

from __future__ import annotations

import os
from functools import partial

import anyio
import anyio.lowlevel
import pytest

from tinyvisor.runtime.waited import Waited

pytestmark = pytest.mark.anyio


async def _until_closed(waited: Waited) -> None:
    with pytest.raises(anyio.ClosedResourceError):
        while True:
            await waited.readable()
            await anyio.lowlevel.checkpoint()


async def _write(fd: int) -> None:
    await anyio.wait_all_tasks_blocked()
    os.write(fd, b"x")


@pytest.mark.parametrize("steps", range(6))
async def test_its_number_is_no_others_before_all_have_woken_up(steps: int) -> None:
    """Closed so many steps of the event loop after it became readable, while its tasks are still to wake up."""
    ours, theirs = os.pipe()
    waited = Waited(ours, partial(os.close, ours))
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(_until_closed, waited)
            await anyio.wait_all_tasks_blocked()
            os.write(theirs, b"x")
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            waited.close()
            another, its_end = os.pipe()  # the lowest numbers that are free
            group.start_soon(_write, its_end)
            await anyio.wait_readable(another)
    for fd in (theirs, another, its_end):
        os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(ours)


async def test_closing_wakes_up_and_happens_once() -> None:
    ours, theirs = os.pipe()
    closed: list[int] = []
    waited = Waited(ours, partial(closed.append, ours))
    async with anyio.create_task_group() as group:
        group.start_soon(_until_closed, waited)
        await anyio.wait_all_tasks_blocked()
        waited.close()
        waited.close()
        assert closed == []
    assert closed == [ours]
    with pytest.raises(anyio.ClosedResourceError):
        await waited.writable()
    assert closed == [ours]
    os.close(ours)
    os.close(theirs)


async def test_who_is_cancelled_waits_no_more() -> None:
    ours, theirs = os.pipe()
    waited = Waited(ours, partial(os.close, ours))
    with anyio.move_on_after(0):
        await waited.readable()
    waited.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(ours)
    os.close(theirs)
