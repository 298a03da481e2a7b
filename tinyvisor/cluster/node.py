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
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from tinyvisor.cluster import frames
from tinyvisor.cluster.room import Room, Share
from tinyvisor.cluster.roots import Reception, Root, Roots, check_digest
from tinyvisor.errors import HostError, TinyvisorError
from tinyvisor.job import Job
from tinyvisor.places import cache_directory
from tinyvisor.runtime import Runtime, open_runtime
from tinyvisor.runtime.host import checks, probe
from tinyvisor.runtime.launcher import launcher_path
from tinyvisor.runtime.rootless import enter

LOOK: Final = 0.1
"""Seconds between two looks at whether another process has brought a root."""
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
        hashed = self._unfinished.setdefault(check_digest(digest), hashlib.sha256())
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

    def drop(self, digest: str) -> None:
        """No job needs it any more, or not for a long time."""
        self.path(digest).unlink(missing_ok=True)

    def path(self, digest: str) -> Path:
        """A file that has come. Others have a path, too, and whoever opens it says that there is none."""
        return self._directory / check_digest(digest)


class _Roots:
    """The roots of one batch: asked for, on their way, in use.

    Args:
        say: tells how it stands with one: ``"here"``, ``"missing"``, whereupon its tarball is sent, or why it can't be had.
    """

    def __init__(self, roots: Roots, say: Callable[[str, str], None]) -> None:
        self._roots, self._say = roots, say
        self._receptions: dict[str, Reception] = {}
        self._used: dict[str, Root] = {}

    def path(self, digest: str) -> Path:
        """Of one that is here."""
        return self._used[digest].path

    async def find(self, digest: str) -> None:
        """Says whether a root is here, once no other process is bringing it."""
        while True:
            try:
                root = self._roots.use(digest)
                reception = None if root else self._roots.receive(digest)
                if reception is not None and (root := self._roots.use(digest)) is not None:  # it has come in between
                    reception.close()
            except OSError as error:
                self._say(digest, f"{self._roots.directory}: {error.strerror}")
                return
            if root is not None:
                self._used[digest] = root
                self._say(digest, "here")
                return
            if reception is not None:
                self._receptions[digest] = reception
                self._say(digest, "missing")
                return
            await trio.sleep(LOOK)

    def add(self, digest: str, piece: bytes) -> None:
        """The next piece of one that is missing."""
        self._receptions[digest].add(piece)

    async def unpack(self, digest: str) -> None:
        """All pieces are there. Cancellation: waits until it is unpacked."""
        reception = self._receptions[digest]
        try:
            self._used[digest] = await trio.to_thread.run_sync(reception.finish)
            state = "here"
        except (TinyvisorError, OSError) as error:
            state = str(error)
        finally:
            del self._receptions[digest]
            reception.close()
        self._say(digest, state)

    def close(self) -> None:
        """No container has one any more."""
        for reception in self._receptions.values():
            reception.close()
        for root in self._used.values():
            root.close()


@dataclass(slots=True)
class _Waiting:
    key: int
    job: Job


class _Session:
    """The jobs of one batch.

    Args:
        settings: ``slots``, ``memory_budget`` (or None), ``stdout`` and ``stderr`` (captured?), ``directory`` for a `Store`.

    Attributes:
        running: how many.
    """

    def __init__(self, node: _Node, id: bytes, settings: Mapping[str, Any]) -> None:
        self._node, self._id = node, id
        self._slots: int = settings["slots"]
        self._budget: int | None = settings["memory_budget"]
        self._capture = {"capture_stdout": settings["stdout"], "capture_stderr": settings["stderr"]}
        self._store = Store(Path(settings["directory"]))
        self._roots = _Roots(node.roots, self._say_root)
        self._waiting: deque[_Waiting] = deque()
        self.running = 0
        self._memory = self._untaken = 0
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._early: list[bytes] = []
        self._unfit = ""

    async def run(self) -> None:
        """Until `close`; then nothing of it is left."""
        self._node.room.join(self)
        try:
            with self._scope:
                async with trio.open_nursery() as self._nursery:
                    for payload in self._early:
                        self.add(payload)
                    await trio.sleep_forever()
        finally:
            self._waiting.clear()
            self._node.room.leave(self)
            self._roots.close()
        if self._unfit:
            self._node.send(frames.frame(frames.UNFIT, self._id, self._unfit.encode()))
        self._node.send(frames.frame(frames.CLOSED, self._id))

    def close(self) -> None:
        """Kills what runs."""
        self._waiting.clear()
        self._scope.cancel()

    def add(self, payload: bytes) -> None:
        """Jobs to run, in their order, and what they need."""
        if self._nursery is None:
            self._early.append(payload)
            return
        for record, blobs in frames.unpack(payload):
            if "key" in record:
                self._waiting.append(_Waiting(*frames.decode_job(record, blobs, self._store.path, self._roots.path)))
            elif "recall" in record:
                for one in self._waiting:
                    self._say(frames.BACK, frames.encode_back(one.key))
                self._waiting.clear()
            elif "drop" in record:
                self._store.drop(record["drop"])
            elif "piece" not in record:
                self._nursery.start_soon(self._roots.find, record["root"])
            elif not record["root"]:
                self._store.add(record["piece"], blobs[0], last=record["last"])
            else:
                self._roots.add(record["piece"], blobs[0])
                if record["last"]:
                    self._nursery.start_soon(self._roots.unpack, record["piece"])
        self._node.room.fill()

    def taken(self, count: int) -> None:
        """So many bytes of results have left."""
        self._untaken -= count
        self._node.room.fill()

    def _say(self, kind: int, record: bytes) -> None:
        self._untaken += len(record)
        self._node.send(frames.frame(kind, self._id, record))

    def _say_root(self, digest: str, state: str) -> None:
        self._say(frames.ROOT, frames.encode_root(digest, state=state))

    # What the room asks.

    def head(self) -> Share | None:
        """Of the next job; None while there is none, or what this batch may have at once runs."""
        if not self._waiting or self.running >= self._slots or self._untaken >= UNTAKEN:
            return None
        spec = self._waiting[0].job.spec
        if self._budget is not None and self.running and self._memory + (spec.mem_limit or 0) > self._budget:
            return None
        return self._node.room.share(spec.cpus, spec.mem_limit, self._slots)

    def start(self, share: Share) -> None:
        """Starts the next job."""
        assert self._nursery is not None
        one = self._waiting.popleft()
        self.running += 1
        self._memory += share.memory
        self._nursery.start_soon(self._run, one, share)

    async def _run(self, one: _Waiting, share: Share) -> None:
        started = trio.current_time()
        try:
            result = await self._node.runtime.run_job(one.job, **self._capture)
        except HostError as error:  # nothing of the job has run
            self._unfit = str(error)
            self.close()
            return
        else:
            self._say(frames.RESULT, frames.encode_result(one.key, result, trio.current_time() - started))
        finally:
            self.running -= 1
            self._memory -= share.memory
            self._node.room.give_back(share)


class _Node:
    """One runtime, and who uses it.

    Attributes:
        room: as the first session says; the others are of the same worker.
    """

    room: Room

    def __init__(self, runtime: Runtime, stream: trio.SocketStream) -> None:
        self.runtime = runtime
        self.roots = Roots(cache_directory() / "roots", runtime.root_ids)
        self._stream = stream
        self._sessions: dict[bytes, _Session] = {}
        self._out: deque[bytes] = deque()
        self._written = trio.Event()

    def send(self, data: bytes) -> None:
        """Bounded by what sessions may have untaken."""
        self._out.append(data)
        self._written.set()

    async def serve(self) -> None:
        """Until the other end is closed, or SIGTERM comes, as to all processes of a unit that is stopped."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write)
            nursery.start_soon(_cancel_on_sigterm, nursery.cancel_scope)
            async for kind, id, payload in _frames(self._stream):
                self._heed(kind, id, payload, nursery)
            nursery.cancel_scope.cancel()

    def _heed(self, kind: int, id: bytes, payload: bytes, nursery: trio.Nursery) -> None:
        session = self._sessions.get(id)
        if kind == frames.OPEN:
            ((settings, _),) = frames.unpack(payload)
            if not self._sessions:
                self.room = Room(settings["cpus"], settings["memory"])
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


async def _cancel_on_sigterm(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


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
            async with open_runtime(warm=0) as runtime:  # it stays when its batches are over
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
