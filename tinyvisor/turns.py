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

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Waits for a turn, which is over when its time is up, it is ended, or the block is left."""
        assert self._nursery is not None
        turn = Turn(self._limiter)
        await self._limiter.acquire_on_behalf_of(turn)
        self._nursery.start_soon(turn.expire)
        try:
            yield turn
        finally:
            turn.end()


class Turn:
    def __init__(self, limiter: trio.CapacityLimiter) -> None:
        self._limiter = limiter
        self._over = trio.Event()

    def end(self) -> None:
        if not self._over.is_set():
            self._over.set()
            self._limiter.release_on_behalf_of(self)

    async def expire(self) -> None:
        with trio.move_on_after(LAUNCH_PATIENCE):
            await self._over.wait()
        self.end()
