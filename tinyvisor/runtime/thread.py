"""A blocking call in a worker thread, waited for to its end whatever comes. Written on anyio alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function`'s result. Waits for the thread also under asyncio's own Task.cancel, which anyio's shields don't stop: it works
    on fds that are closed afterwards.

    Cancellation: takes effect when the call has ended.
    """
    results: list[Any] = []
    errors: list[Exception] = []

    def call() -> None:
        try:
            results.append(function(*arguments))
        except Exception as exc:
            errors.append(exc)

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, call)
    if errors:
        raise errors[0]
    return results[0]
