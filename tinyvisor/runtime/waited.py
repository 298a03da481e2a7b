"""An fd that tasks wait for, and that may be closed meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio


class Waited:
    """Closes an fd behind the last task that waits for it.

    Under asyncio, who wakes up from anyio's ``wait_readable`` unregisters the fd by its number. Were it closed by then, and the
    number another's, then that one's wait would never end.

    Args:
        fd: or what has one.
        close: called once, by `close` or by the last task that wakes up after it.
    """

    __slots__ = ("_close", "_closed", "_fd", "_tasks")

    def __init__(self, fd: Any, close: Callable[[], None]) -> None:
        self._fd, self._close = fd, close
        self._tasks = 0
        self._closed = False

    def readable(self) -> Awaitable[None]:
        """Raises `anyio.ClosedResourceError` when it is closed."""
        return self._wait(anyio.wait_readable)

    def writable(self) -> Awaitable[None]:
        """Raises `anyio.ClosedResourceError` when it is closed."""
        return self._wait(anyio.wait_writable)

    async def _wait(self, wait: Callable[[Any], Awaitable[None]]) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        self._tasks += 1
        try:
            await wait(self._fd)
        finally:
            self._tasks -= 1
            if self._closed and not self._tasks:
                self._close()

    def close(self) -> None:
        """Wakes up who waits. More than once is as once."""
        if self._closed:
            return
        self._closed = True
        if self._tasks:
            anyio.notify_closing(self._fd)
        else:
            self._close()
