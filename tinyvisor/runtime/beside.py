"""A task that works for as long as a block of code is in, and no longer. Written on anyio alone."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import anyio
from anyio.abc import TaskGroup


@contextlib.asynccontextmanager
async def beside(*tasks: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[TaskGroup]:
    """Runs `tasks`, and those that are started in the group, while the body runs; then cancels them and waits for their end.

    Raises: what the body raises, as itself: a task group would wrap it.
    """
    error: BaseException | None = None
    try:
        async with anyio.create_task_group() as group:
            for task in tasks:
                group.start_soon(task)
            try:
                yield group
            except BaseException as exc:  # raised again below, where the task group can't wrap it
                error = exc
            group.cancel_scope.cancel()
    except anyio.get_cancelled_exc_class():
        if error is None:
            raise
    if error is not None:
        raise error
