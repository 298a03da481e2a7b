"""Launches at once are limited, and a stuck one does not hold up the others for long. On trio."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

LAUNCH_PATIENCE: Final = 5.0


class Turns:
    """At most `limit` launches at once, but each counts for `LAUNCH_PATIENCE` at most."""

    def __init__(self, limit: int) -> None:
        self._limiter = trio.CapacityLimiter(limit)
        self._given: deque[Turn] = deque()  # the oldest first; what is over leaves from there
        self._some = trio.Event()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Turns end by themselves only inside."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._expire)
            yield
            nursery.cancel_scope.cancel()

    def turn(self) -> Turn:
        """A scope: waits for a turn, which is over when its time is up, it is ended, or the block is left."""
        return Turn(self)

    async def take(self, turn: Turn) -> None:
        await self._limiter.acquire_on_behalf_of(turn)
        turn.until = trio.current_time() + LAUNCH_PATIENCE
        self._given.append(turn)
        self._some.set()

    def give_back(self, turn: Turn) -> None:
        self._limiter.release_on_behalf_of(turn)
        while self._given and not self._given[0].until:
            self._given.popleft()

    async def _expire(self) -> None:
        """One task for all: one for each turn was a tenth of a start."""
        while True:
            await self._some.wait()
            while self._given:
                await trio.sleep_until(self._given[0].until)
                while self._given and self._given[0].until <= trio.current_time():
                    self._given[0].end()
            self._some = trio.Event()


class Turn:
    """Kept for as long as the container runs that was launched: so it holds next to nothing then.

    Attributes:
        until: when it is over at the latest; 0 before it is given, and once it is over.
    """

    __slots__ = ("_turns", "until")

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.until: float = 0.0

    async def __aenter__(self) -> Turn:
        await self._turns.take(self)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.end()

    def end(self) -> None:
        if self.until:
            self.until = 0.0
            self._turns.give_back(self)
