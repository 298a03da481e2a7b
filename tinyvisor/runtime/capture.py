"""What goes into a running container's stdin and what is kept of its output, without ever waiting for a stream longer than
the container lives: a pipe's end may have been passed on to somebody who outlives it. Written on anyio alone."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING

import anyio
from anyio.abc import ByteReceiveStream

from tinyvisor.runtime.stdio import ReceivePipe, SendPipe
from tinyvisor.state import Exit

if TYPE_CHECKING:
    from tinyvisor.runtime.container import Container

DEFAULT_LIMIT = 64 << 20
"""Bytes that are kept of a captured stream where the spec has no ``output_limit``: nothing grows without bound."""

_CHUNK = 256 << 10
_MOST_LEFT = 1 << 20  # a pipe's largest size without CAP_SYS_RESOURCE: more than that was not there when the container ended


class Capture:
    """One output stream, kept up to `limit` bytes.

    Attributes:
        size: bytes read, kept or not.
    """

    def __init__(self, pipe: ReceivePipe, limit: int) -> None:
        self.size: int = 0
        self._pipe = pipe
        self._limit = limit
        self._chunks: list[bytes] = []

    @property
    def kept(self) -> bytes:
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)

    @property
    def exceeded(self) -> bool:
        return self.size > self._limit

    def _take(self, data: bytes) -> None:
        room = self._limit - self.size
        self.size += len(data)
        if room > 0:
            self._chunks.append(data[:room])

    async def read(self, on_exceeded: Callable[[], None]) -> None:
        """To the end of the stream. Calls `on_exceeded` once, when there is more than the limit; then reads on."""
        told = False
        with contextlib.suppress(anyio.EndOfStream):
            while True:
                self._take(await self._pipe.receive(_CHUNK))
                if self.exceeded and not told:
                    told = True
                    on_exceeded()

    def read_rest(self) -> None:
        """What is in the pipe now, without waiting."""
        left = _MOST_LEFT
        while left > 0 and (data := self._pipe.receive_nowait(_CHUNK)):
            self._take(data)
            left -= len(data)


class Feed:
    """The rest of stdin, sent as the container reads; then its end.

    Attributes:
        error: what the source raised; the container was killed for it.
    """

    def __init__(self, pipe: SendPipe, source: bytes | ByteReceiveStream, on_error: Callable[[], None]) -> None:
        self.error: Exception | None = None
        self._pipe = pipe
        self._source = source
        self._on_error = on_error

    async def send(self) -> None:
        with contextlib.suppress(anyio.BrokenResourceError):  # it does not want to read it
            if isinstance(self._source, bytes):
                await self._pipe.send(self._source)
            else:
                await self._send_stream(self._source)
        self._pipe.close()

    async def _send_stream(self, source: ByteReceiveStream) -> None:
        while True:
            try:
                chunk = await source.receive()
            except anyio.EndOfStream:
                return
            except Exception as exc:
                self.error = exc
                self._on_error()
                return
            await self._pipe.send(chunk)


async def communicate(container: Container, captures: Iterable[Capture], feed: Feed | None) -> Exit:
    """Feeds and reads until the container is gone, and says how it ended.

    Cancellation: stops feeding and reading; the container goes on.
    """
    captures = tuple(captures)
    jobs: list[Callable[[], Coroutine[None, None, None]]] = [feed.send] if feed else []
    jobs += [functools.partial(capture.read, container.exceed_output) for capture in captures]
    if len(jobs) == 1:
        with anyio.CancelScope() as scope:
            container.call_when_gone(scope.cancel)
            await jobs[0]()
    elif jobs:
        async with anyio.create_task_group() as group:
            container.call_when_gone(group.cancel_scope.cancel)
            for job in jobs:
                group.start_soon(job)
    await container.wait_ended()
    for capture in captures:
        capture.read_rest()
        if capture.exceeded:  # it may have ended before we saw that
            container.exceed_output()
    if feed is not None and feed.error is not None:
        raise feed.error
    return container.ended()
