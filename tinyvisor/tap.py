"""Output of a container as it comes, prompts without a newline included, for who is attached to it. On trio.

Whoever puts something in never waits. A reader that lets more than `LIMIT` bytes gather has lost its place: it gets no more.
"""

from __future__ import annotations

from typing import Final

import trio

from tinyvisor.state import Exit

LIMIT: Final = 1 << 20
"""Bytes."""


class Tap:
    """One reader's side of it.

    Attributes:
        exit: how the container ended; None as long as it runs, or some of its output has not come.
        overflowed: the reader was too slow.
    """

    def __init__(self) -> None:
        self.exit: Exit | None = None
        self.overflowed: bool = False
        self._gathered = bytearray()
        self._news = trio.Event()

    def put(self, data: bytes) -> None:
        """What was read from the container."""
        if len(self._gathered) + len(data) > LIMIT:
            self.overflowed = True
        if not self.overflowed:
            self._gathered += data
        self._news.set()

    def end(self, exit: Exit) -> None:
        """There is no more."""
        self.exit = exit
        self._news.set()

    async def take(self) -> bytes:
        """What has gathered since the last time; empty at the end, or once it has overflowed."""
        while not self._gathered and self.exit is None and not self.overflowed:
            self._news = trio.Event()
            await self._news.wait()
        await trio.lowlevel.checkpoint()
        data = bytes(self._gathered)
        self._gathered.clear()
        return data
