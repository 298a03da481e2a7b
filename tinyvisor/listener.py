"""Hears what a container says of itself: on its NOTIFY_SOCKET, on its notification fd, and by not saying anything. On trio.

A container may send as much as it likes. What waits to be heard is the kernel's to bound, and its memory the sender's; `RATE`
messages a second are heard at most, so that one that floods costs little more than a quiet one. What they cause is bounded, too:
it becomes ready once, is stopping once, and each thing that is refused is told of once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import anyio
import trio

from tinyvisor import notify
from tinyvisor.notify import REFUSED
from tinyvisor.units import format_duration

RATE: Final = 50
"""Messages a second, and as many at once."""

MAX_BEFORE_NEWLINE: Final = 64 << 10
"""Bytes on the notification fd in which there must be a newline."""


class Messages(Protocol):
    """A container's notify socket."""

    async def receive(self) -> bytes: ...


class Pipe(Protocol):
    """The read end of a container's notification fd."""

    async def receive(self, max_bytes: int = ..., /) -> bytes: ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Who is told.

    Attributes:
        ready, stopping: it has said so; once each.
        needs: it is not ready yet, and asks for so many seconds from now.
        mute: it will never say that it is ready, because of this.
        hangs: its watchdog has run out, or it says so itself; in one line. Once.
        refused: (key, why): it asked for what is not done; once for each key.
    """

    ready: Callable[[], None]
    stopping: Callable[[], None]
    needs: Callable[[float], None]
    mute: Callable[[str], None]
    hangs: Callable[[str], None]
    refused: Callable[[str, str], None]


class Listener:
    """Of one container.

    Attributes:
        status: what it last said of itself, one line.
    """

    def __init__(self, told: Told, *, watchdog: float | None, waits_for_ready: bool) -> None:
        """
        Args:
            watchdog: seconds within which it must say that it lives; None: it need not.
            waits_for_ready: that begins once it is ready, by a message.
        """
        self.status: str = ""
        self._told = told
        self._period = watchdog
        self._waits_for_ready = waits_for_ready
        self._alive_at = trio.current_time()
        self._changed = trio.Event()
        self._ready = self._stopping = self._hangs = False
        self._refused: set[str] = set()

    async def listen(self, messages: Messages) -> None:
        """To the end of the container."""
        budget, since = float(RATE), trio.current_time()
        while True:
            self._take(await messages.receive())
            now = trio.current_time()
            budget = min(RATE, budget + (now - since) * RATE) - 1
            since = now
            if budget < 1:
                await trio.sleep(1 / RATE)

    async def await_newline(self, pipe: Pipe) -> None:
        """As s6's notification-fd has it: what stands before the newline is nobody's, and then the pipe is closed."""
        try:
            seen = 0
            while seen < MAX_BEFORE_NEWLINE:
                data = await pipe.receive(4096)
                if b"\n" in data:
                    self._told.ready()
                    return
                seen += len(data)
            self._told.mute(f"there was no newline in the first {MAX_BEFORE_NEWLINE} bytes on its ready_fd")
        except anyio.EndOfStream:
            self._told.mute("it closed its ready_fd without a newline")
        finally:
            await pipe.aclose()

    async def watch(self) -> None:
        """Until the watchdog has run out, or is over because it is stopping."""
        while not self._stopping and not self._hangs:
            self._changed = trio.Event()
            with trio.move_on_at(self._due()):
                await self._changed.wait()
            if trio.current_time() >= self._due() and not self._stopping:
                assert self._period is not None
                self._hang(f"it has sent no WATCHDOG=1 for {format_duration(self._period)}")

    def _due(self) -> float:
        if self._period is None or (self._waits_for_ready and not self._ready):
            return float("inf")
        return self._alive_at + self._period

    def _take(self, message: bytes) -> None:
        found = notify.parse(message)
        for key in found.refused:
            self._refuse(key, REFUSED[key])
        if found.problem:
            self._refuse("a message", found.problem)
        if found.status is not None:
            self.status = found.status
        if found.watchdog is not None and self._period is not None:
            self._period = found.watchdog
        if found.alive or found.ready:
            self._alive_at = trio.current_time()
        if found.extends is not None and not self._ready:
            self._told.needs(found.extends)
        if found.ready and not self._ready:
            self._ready = True
            self._told.ready()
        if found.stopping and not self._stopping:
            self._stopping = True
            self._told.stopping()
        if found.failed and self._period is not None:
            self._hang("it has sent WATCHDOG=trigger")
        self._changed.set()

    def _hang(self, reason: str) -> None:
        if not self._hangs:
            self._hangs = True
            self._told.hangs(reason)

    def _refuse(self, what: str, why: str) -> None:
        if what not in self._refused:
            self._refused.add(what)
            self._told.refused(what, why)
