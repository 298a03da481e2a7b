"""A container's standard streams: pipe ends as byte streams, and what may be handed to a container directly."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Protocol, TypeAlias

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream

from tinyvisor.errors import SpecError

PIPE: Final = -1
"""As a stdio argument: a pipe whose other end is the container's `stdin`, `stdout` or `stderr` attribute."""

STDOUT: Final = -2
"""As the stderr argument: the same as stdout."""


class HasFileno(Protocol):
    def fileno(self) -> int: ...


Stdio: TypeAlias = "int | HasFileno | None"
"""None is /dev/null; `PIPE`; or an fd or file, which the container gets as it is, with no copying in between."""


class ReceivePipe(ByteReceiveStream):
    """The reading end of a container's stdout or stderr.

    Raises `anyio.EndOfStream` once every writer is gone, `anyio.ClosedResourceError` after `aclose`.
    Cancellation: a cancelled `receive` has read nothing.
    """

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.lowlevel.checkpoint_if_cancelled()
        while self._fd >= 0:
            try:
                data = os.read(self._fd, max_bytes)
            except BlockingIOError:
                await anyio.wait_readable(self._fd)
            else:
                if not data:
                    raise anyio.EndOfStream
                await anyio.lowlevel.cancel_shielded_checkpoint()
                return data
        raise anyio.ClosedResourceError

    def receive_nowait(self, max_bytes: int = 65536) -> bytes:
        """What is there now; nothing where that is nothing, or the end."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self._fd, max_bytes) if self._fd >= 0 else b""
        return b""

    async def lines(self, max_bytes: int = 65536) -> AsyncIterator[bytes]:
        """Line by line, each with its newline but for an unfinished last one; a longer one comes in pieces of `max_bytes`.

        Also what ``async for`` over the pipe gives.
        """
        rest = b""
        with contextlib.suppress(anyio.EndOfStream):
            while True:
                *whole, rest = (rest + await self.receive()).split(b"\n")
                for line in whole:
                    for at in range(0, len(line) + 1, max_bytes):
                        yield (line + b"\n")[at : at + max_bytes]
                while len(rest) >= max_bytes:
                    yield rest[:max_bytes]
                    rest = rest[max_bytes:]
        if rest:
            yield rest

    def __aiter__(self) -> AsyncIterator[bytes]:  # type: ignore[override]
        return self.lines()

    def fileno(self) -> int:
        return self._fd

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """`aclose` without the await."""
        self._fd = _close(self._fd)


class SendPipe(ByteSendStream):
    """The writing end of a container's stdin.

    Raises `anyio.BrokenResourceError` once every reader is gone. Cancellation: a cancelled `send` may have written a part.
    """

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd

    def send_nowait(self, item: bytes) -> bytes:
        """Writes what the pipe takes now; returns the rest."""
        with contextlib.suppress(BlockingIOError):
            return item[os.write(self._fd, item) :]
        return item

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        view = memoryview(item)
        while len(view):
            if self._fd < 0:
                raise anyio.ClosedResourceError
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                await anyio.wait_writable(self._fd)
            except BrokenPipeError as exc:
                raise anyio.BrokenResourceError from exc

    def fileno(self) -> int:
        return self._fd

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """`aclose` without the await."""
        self._fd = _close(self._fd)


def _close(fd: int) -> int:
    if fd >= 0:
        anyio.notify_closing(fd)
        os.close(fd)
    return -1


class Streams:
    """The three fds that a container gets, and our ends of those that are pipes.

    `given` are to be sent to the launcher; `close_given` drops the copies that were made for that. Our ends are closed
    by `close`.
    """

    def __init__(self, stdin: Stdio, stdout: Stdio, stderr: Stdio, null: int) -> None:
        self.stdin: SendPipe | None = None
        self.stdout: ReceivePipe | None = None
        self.stderr: ReceivePipe | None = None
        self._temporary: list[int] = []
        try:
            given_in = self._open(stdin, null, "stdin", 1, SendPipe)
            given_out = self._open(stdout, null, "stdout", 0, ReceivePipe)
            given_err = given_out if stderr == STDOUT else self._open(stderr, null, "stderr", 0, ReceivePipe)
        except BaseException:
            self.close_given()
            self.close()
            raise
        self.given = (given_in, given_out, given_err)

    def _open(self, stdio: Stdio, null: int, name: str, ours: int, stream: Callable[[int], Any]) -> int:
        if stdio is None:
            return null
        if stdio != PIPE:
            fd = stdio if isinstance(stdio, int) else stdio.fileno()
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                raise SpecError(name, "a directory of the host would be a way out of the container's root")
            return fd
        pipe = os.pipe2(os.O_CLOEXEC)
        self._temporary.append(pipe[1 - ours])
        setattr(self, name, stream(pipe[ours]))
        return pipe[1 - ours]

    def close_given(self) -> None:
        while self._temporary:
            os.close(self._temporary.pop())

    def close(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()
