"""The process that runs the containers of one Dask worker: ``tinyvisor.cluster.node``, started by it with a socket as stdin.

It has one runtime for as long as it lives, and a session for every batch that wants jobs run here. It ends, and with it
everything in its containers, when the other end of the socket is closed: however the worker came to its end. On trio.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from tinyvisor.cluster import frames
from tinyvisor.errors import HostError
from tinyvisor.job import Job
from tinyvisor.runtime import Runtime, open_runtime
from tinyvisor.runtime.host import checks, probe
from tinyvisor.runtime.launcher import launcher_path
from tinyvisor.runtime.rootless import enter

UNTAKEN: Final = 16 << 20
"""Bytes of results that may wait to be fetched; then no more jobs are started."""

_CHUNK: Final = 256 << 10


def refusal() -> str:
    """Why this host can't run containers; empty where it can."""
    found = checks(probe(), launcher_path())
    return "; ".join(f"{check.name}: {check.text} ({check.cure})" for check in found if check.level == "fail")


class Store:
    """Files that jobs share, each by the digest of what it has, in a directory that is its maker's to remove."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._unfinished: dict[str, Any] = {}

    def add(self, digest: str, piece: bytes, *, last: bool) -> None:
        """The next piece of a file. One that has come whole and has another digest was changed on its way, and is none."""
        hashed = self._unfinished.setdefault(digest, hashlib.sha256())
        hashed.update(piece)
        self._directory.mkdir(mode=0o700, exist_ok=True)
        path = self._directory / f"{digest}.part"
        with path.open("ab") as file:
            file.write(piece)
        if last:
            del self._unfinished[digest]
            if hashed.hexdigest() == digest:
                path.rename(self._directory / digest)
            else:
                path.unlink()

    def path(self, digest: str) -> Path:
        """A file that has come. Others have a path, too, and whoever opens it says that there is none."""
        return self._directory / digest


@dataclass(slots=True)
class _Waiting:
    key: int
    job: Job


class _Session:
    """The jobs of one batch.

    Args:
        settings: ``slots``, ``memory_budget`` (or None), ``stdout`` and ``stderr`` (captured?), ``directory`` for a `Store`.
    """

    def __init__(self, node: _Node, id: bytes, settings: Mapping[str, Any]) -> None:
        self._node, self._id = node, id
        self._slots: int = settings["slots"]
        self._budget: int | None = settings["memory_budget"]
        self._capture = {"capture_stdout": settings["stdout"], "capture_stderr": settings["stderr"]}
        self._store = Store(Path(settings["directory"]))
        self._waiting: deque[_Waiting] = deque()
        self._running = self._memory = self._untaken = 0
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._unfit = ""

    async def run(self) -> None:
        """Until `close`; then nothing of it is left."""
        with self._scope:
            async with trio.open_nursery() as self._nursery:
                self._fill()
                await trio.sleep_forever()
        if self._unfit:
            self._node.send(frames.frame(frames.UNFIT, self._id, self._unfit.encode()))
        self._node.send(frames.frame(frames.CLOSED, self._id))

    def close(self) -> None:
        """Kills what runs."""
        self._waiting.clear()
        self._scope.cancel()

    def add(self, payload: bytes) -> None:
        """Jobs to run, in their order, and pieces of files."""
        for record, blobs in frames.unpack(payload):
            if "digest" in record:
                self._store.add(record["digest"], blobs[0], last=record["last"])
            else:
                self._waiting.append(_Waiting(*frames.decode_job(record, blobs, self._store.path)))
        self._fill()

    def taken(self, count: int) -> None:
        """So many bytes of results have left."""
        self._untaken -= count
        self._fill()

    def _fill(self) -> None:
        while self._nursery is not None and self._waiting and self._running < self._slots and self._untaken < UNTAKEN:
            size = self._waiting[0].job.spec.mem_limit or 0
            if self._budget is not None and self._running and self._memory + size > self._budget:
                return
            self._running += 1
            self._memory += size
            self._nursery.start_soon(self._run, self._waiting.popleft())

    async def _run(self, one: _Waiting) -> None:
        started = trio.current_time()
        try:
            result = await self._node.runtime.run_job(one.job, **self._capture)
        except HostError as error:  # nothing of the job has run
            self._unfit = str(error)
            self.close()
            return
        self._running -= 1
        self._memory -= one.job.spec.mem_limit or 0
        record = frames.encode_result(one.key, result, trio.current_time() - started)
        self._untaken += len(record)
        self._node.send(frames.frame(frames.RESULT, self._id, record))
        self._fill()


class _Node:
    """One runtime, and who uses it."""

    def __init__(self, runtime: Runtime, stream: trio.SocketStream) -> None:
        self.runtime = runtime
        self._stream = stream
        self._sessions: dict[bytes, _Session] = {}
        self._out: deque[bytes] = deque()
        self._written = trio.Event()

    def send(self, data: bytes) -> None:
        """Bounded by what sessions may have untaken."""
        self._out.append(data)
        self._written.set()

    async def serve(self) -> None:
        """Until the other end is closed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write)
            async for kind, id, payload in _frames(self._stream):
                self._heed(kind, id, payload, nursery)
            nursery.cancel_scope.cancel()

    def _heed(self, kind: int, id: bytes, payload: bytes, nursery: trio.Nursery) -> None:
        session = self._sessions.get(id)
        if kind == frames.OPEN:
            ((settings, _),) = frames.unpack(payload)
            self._sessions[id] = _Session(self, id, settings)
            nursery.start_soon(self._run, id)
        elif session is None:
            return  # it has just ended by itself
        elif kind == frames.JOBS:
            session.add(payload)
        elif kind == frames.TAKEN:
            session.taken(frames.unpack_count(payload))
        elif kind == frames.CLOSE:
            session.close()

    async def _run(self, id: bytes) -> None:
        try:
            await self._sessions[id].run()
        finally:
            del self._sessions[id]

    async def _write(self) -> None:
        while True:
            await self._written.wait()
            self._written = trio.Event()
            data = b"".join(self._out)
            self._out.clear()
            await self._stream.send_all(data)


async def _frames(stream: trio.SocketStream) -> AsyncIterator[tuple[int, bytes, bytes]]:
    buffer = bytearray()
    try:
        while data := await stream.receive_some(_CHUNK):
            buffer += data
            at = 0
            while len(buffer) - at >= frames.HEADER.size:
                length, kind, id = frames.HEADER.unpack_from(buffer, at)
                end = at + frames.HEADER.size + length
                if len(buffer) < end:
                    break
                yield kind, id, bytes(buffer[end - length : end])
                at = end
            del buffer[:at]
    except trio.BrokenResourceError:
        pass  # the worker is gone


async def serve(stream: trio.SocketStream, why: str = "") -> None:
    """Tells whether containers can be run here, or `why` not, and then runs them until the other end is closed."""
    why = why or refusal()
    if not why:
        try:
            async with open_runtime() as runtime:
                await stream.send_all(frames.frame(frames.READY))
                await _Node(runtime, stream).serve()
                return
        except HostError as error:
            why = str(error)
    await stream.send_all(frames.frame(frames.REFUSED, payload=why.encode()))


def main() -> None:
    """On the socket that is our stdin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    own = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)

    why = ""
    try:
        enter()
    except HostError as error:
        why = str(error)

    async def run() -> None:
        async with trio.SocketStream(trio.socket.from_stdlib_socket(own)) as stream:
            await serve(stream, why)

    try:
        trio.run(run)
    except* (trio.BrokenResourceError, ConnectionError):
        pass  # the worker has gone while we were writing to it
    except* struct.error as error:
        raise SystemExit(f"tinyvisor node: not a frame: {error}") from None


if __name__ == "__main__":
    main()
