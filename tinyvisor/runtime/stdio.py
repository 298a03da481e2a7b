"""A container's standard streams: pipe ends as byte streams, and what may be handed to a container directly."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import subprocess
from collections.abc import AsyncIterator, Callable, Iterable
from io import UnsupportedOperation
from typing import Any, Final, Protocol, TypeAlias

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream

from tinyvisor.errors import SpecError
from tinyvisor.runtime.stage import Stage
from tinyvisor.runtime.waited import Waited

PIPE: Final = -1
"""As a stdio argument: a pipe whose other end is the container's `stdin`, `stdout` or `stderr` attribute."""

STDOUT: Final = -2
"""As the stderr argument: the same as stdout."""


class HasFileno(Protocol):
    def fileno(self) -> int: ...


Stdio: TypeAlias = "int | HasFileno | None"
"""None or `subprocess.DEVNULL` is /dev/null; `PIPE`; or an fd or file, which the container gets as it is, with no copying in
between."""


class ReceivePipe(ByteReceiveStream):
    """The reading end of a container's stdout or stderr.

    ``async for`` over it gives lines. What was read for a line and is no part of it, the next call gets, whichever that is.

    Raises `anyio.EndOfStream` once every writer is gone, `anyio.ClosedResourceError` after `aclose`.
    Cancellation: a cancelled `receive` has read nothing.

    Attributes:
        stage: where what has been read is kept until it is in a log, which is the reader's to say; ours to close.
    """

    def __init__(self, fd: int, stage: Stage | None = None) -> None:
        os.set_blocking(fd, False)
        self._fd = self._own = fd
        self.stage = stage
        self._waited = Waited(fd, self._close_fds)
        self._ahead = bytearray()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.lowlevel.checkpoint_if_cancelled()
        if self._ahead:
            await anyio.lowlevel.cancel_shielded_checkpoint()
            return self._take(max_bytes)
        return await self._read(max_bytes)

    async def _read(self, max_bytes: int) -> bytes:
        while self._fd >= 0:
            data = self._read_nowait(max_bytes)
            if data is None:
                await self._waited.readable()
                continue
            if not data:
                raise anyio.EndOfStream
            await anyio.lowlevel.cancel_shielded_checkpoint()
            return data
        raise anyio.ClosedResourceError

    def _read_nowait(self, max_bytes: int) -> bytes | None:
        """None: there is nothing yet. Not waited for where the exception is handled, which would keep its frames alive."""
        try:
            return os.read(self._fd, max_bytes) if self.stage is None else self.stage.receive(self._fd, max_bytes)
        except BlockingIOError:
            return None

    def receive_nowait(self, max_bytes: int = 65536) -> bytes:
        """What is there now; nothing where that is nothing, or the end."""
        if self._ahead:
            return self._take(max_bytes)
        with contextlib.suppress(BlockingIOError):
            return os.read(self._fd, max_bytes) if self._fd >= 0 else b""
        return b""

    async def receive_line(self, max_bytes: int = 65536) -> bytes:
        """The next line with its newline, which an unfinished last one has not; a longer one comes in pieces of `max_bytes`."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        searched = 0
        while (end := self._ahead.find(b"\n", searched, max_bytes)) < 0 and len(self._ahead) < max_bytes:
            searched = len(self._ahead)
            try:
                data = await self._read(65536)
            except anyio.EndOfStream:
                if not self._ahead:
                    raise
                break
            self._ahead += data
        return self._take(max_bytes if end < 0 else end + 1)

    def _take(self, max_bytes: int) -> bytes:
        data = bytes(self._ahead[:max_bytes])
        del self._ahead[:max_bytes]
        return data

    def lines(self, max_bytes: int = 65536) -> AsyncIterator[bytes]:
        """`receive_line` until the end of the stream; what ``async for`` over the pipe gives, too. May be left and taken up
        again.

        Args:
            max_bytes: > 0.
        """
        if max_bytes < 1:
            raise ValueError("max_bytes: expected 1 or more")
        return _Lines(self, max_bytes)

    def __aiter__(self) -> AsyncIterator[bytes]:  # type: ignore[override]
        return self.lines()

    def fileno(self) -> int:
        return self._fd

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """`aclose` without the await."""
        self._ahead.clear()
        self._fd = -1
        self._waited.close()

    def _close_fds(self) -> None:
        os.close(self._own)
        if self.stage is not None:
            self.stage.close()


class _Lines(AsyncIterator[bytes]):
    """No generator: one that is left early would have to be closed, and keep to itself what it has read."""

    def __init__(self, pipe: ReceivePipe, max_bytes: int) -> None:
        self._pipe = pipe
        self._max_bytes = max_bytes

    async def __anext__(self) -> bytes:
        try:
            return await self._pipe.receive_line(self._max_bytes)
        except anyio.EndOfStream:
            raise StopAsyncIteration from None


class SendPipe(ByteSendStream):
    """The writing end of a container's stdin.

    Raises `anyio.BrokenResourceError` once every reader is gone. Cancellation: a cancelled `send` may have written a part.
    """

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._waited = Waited(fd, functools.partial(os.close, fd))

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
                await self._waited.writable()
            except BrokenPipeError as exc:
                raise anyio.BrokenResourceError from exc

    def fileno(self) -> int:
        return self._fd

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """`aclose` without the await."""
        self._fd = -1
        self._waited.close()


def _given_fd(stdio: object, name: str) -> int:
    if isinstance(stdio, bool) or not (isinstance(stdio, int) or hasattr(stdio, "fileno")):
        raise SpecError(name, f"expected an fd, a file or one of this argument's other kinds, got {stdio!r:.100}")
    try:
        fd = stdio if isinstance(stdio, int) else stdio.fileno()
        mode = os.fstat(fd).st_mode
    except UnsupportedOperation:  # io.BytesIO
        raise SpecError(name, f"{stdio!r:.100} has no file descriptor that could be given to a container") from None
    except (OSError, ValueError) as exc:  # ValueError: a closed file
        raise SpecError(name, f"can't be given to a container: {exc}") from None
    if stat.S_ISDIR(mode):
        raise SpecError(name, "a directory of the host would be a way out of the container's root")
    return int(fd)


def own_pipes(fds: Iterable[int], uid: int, gid: int) -> None:
    """Gives pipes to a user of the host, as runc does: so it can open /dev/stdout anew. What has a name stays whose it is."""
    for fd in set(fds):
        if stat.S_ISFIFO(os.fstat(fd).st_mode) and os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:"):
            with contextlib.suppress(PermissionError):  # rootless, and another user's: not ours to give away, but it can be used
                os.fchown(fd, uid, gid)


class Streams:
    """The three fds that a container gets, and our ends of those that are pipes.

    `given` are to be sent to the launcher; `close_given` drops the copies that were made for that. Our ends are closed
    by `close`.
    """

    def __init__(self, stdin: Stdio, stdout: Stdio, stderr: Stdio, null: int, *, staged: bool = False) -> None:
        """`staged`: with a stage for each that we read."""
        self._staged = staged
        self.stdin: SendPipe | None = None
        self.stdout: ReceivePipe | None = None
        self.stderr: ReceivePipe | None = None
        self._temporary: list[int] = []
        try:
            given_in = self._open(stdin, null, "stdin", 1, SendPipe)
            given_out = self._open(stdout, null, "stdout", 0, self._receive)
            given_err = given_out if stderr == STDOUT else self._open(stderr, null, "stderr", 0, self._receive)
        except BaseException:
            self.close_given()
            self.close()
            raise
        self.given: tuple[int, int, int] = (given_in, given_out, given_err)

    def _open(self, stdio: Stdio, null: int, name: str, ours: int, stream: Callable[[int], Any]) -> int:
        if stdio is None or stdio == subprocess.DEVNULL:
            return null
        if stdio != PIPE:
            return _given_fd(stdio, name)
        pipe = os.pipe2(os.O_CLOEXEC)
        self._temporary.append(pipe[1 - ours])
        setattr(self, name, stream(pipe[ours]))
        return pipe[1 - ours]

    def _receive(self, fd: int) -> ReceivePipe:
        return ReceivePipe(fd, Stage.create() if self._staged else None)

    @classmethod
    def again(cls, stdin: SendPipe | None, stdout: ReceivePipe | None, stderr: ReceivePipe | None) -> Streams:
        """Of a container that runs already; these are our ends."""
        streams = cls(None, None, None, -1)
        streams.stdin, streams.stdout, streams.stderr = stdin, stdout, stderr
        return streams

    def close_given(self) -> None:
        while self._temporary:
            os.close(self._temporary.pop())

    def close(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()
