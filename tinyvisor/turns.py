"""Launches at once are limited, and a stuck one does not hold up the others for long. On trio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

LAUNCH_PATIENCE: Final = 5.0


class Turns:
    """At most `limit` launches at once, but each counts for `LAUNCH_PATIENCE` at most."""

    def __init__(self, limit: int) -> None:
        self._limiter = trio.CapacityLimiter(limit)
        self._nursery: trio.Nursery | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Turns are given only inside."""
        async with trio.open_nursery() as self._nursery:
            yield
            self._nursery.cancel_scope.cancel()

    def turn(self) -> Turn:
        """A scope: waits for a turn, which is over when its time is up, it is ended, or the block is left."""
        assert self._nursery is not None
        return Turn(self._limiter, self._nursery)


class Turn:
    """Kept for as long as the container runs that was launched: so it holds next to nothing then."""

    __slots__ = ("_limiter", "_nursery", "_over")

    def __init__(self, limiter: trio.CapacityLimiter, nursery: trio.Nursery) -> None:
        self._limiter = limiter
        self._nursery = nursery
        self._over: trio.Event | None = None

    async def __aenter__(self) -> Turn:
        await self._limiter.acquire_on_behalf_of(self)
        self._over = trio.Event()
        self._nursery.start_soon(self._expire, self._over)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.end()

    def end(self) -> None:
        over, self._over = self._over, None
        if over is not None:
            over.set()
            self._limiter.release_on_behalf_of(self)

    async def _expire(self, over: trio.Event) -> None:
        with trio.move_on_after(LAUNCH_PATIENCE):
            await over.wait()
        self.end()
