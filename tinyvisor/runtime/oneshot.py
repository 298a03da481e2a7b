"""One run of a container from start to end: its input, its files, what is kept of its output. Written on anyio alone."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeGuard

import anyio
from anyio.abc import ByteReceiveStream

from tinyvisor.errors import LaunchError, SpecError
from tinyvisor.runtime.capture import DEFAULT_LIMIT, Capture, Feed, communicate
from tinyvisor.runtime.container import Container
from tinyvisor.runtime.launcher import shielded
from tinyvisor.runtime.launches import Launches, Manner
from tinyvisor.runtime.leases import Ids
from tinyvisor.runtime.stdio import PIPE, STDOUT, Stdio, Streams
from tinyvisor.runtime.syscalls import open_tree
from tinyvisor.runtime.thread import in_thread
from tinyvisor.runtime.workspace import DEFAULT_DIRECTORY, Workspace
from tinyvisor.spec import Spec
from tinyvisor.state import Exit, Result

Input: TypeAlias = "bytes | bytearray | memoryview | Path | ByteReceiveStream | Stdio"
"""What a run's stdin may be: all of it, a file of the host, a stream to read it from, or as `Stdio`."""

DeliverCancel: TypeAlias = Callable[[Container], Awaitable[object]]

COLLECT_LIMIT = 64 << 20
"""Bytes of files that one run gives back, where nothing else is said."""

_SMALL = 256 << 10  # bytes that are written without a thread


class Parked(Protocol):
    """Containers that wait for a command: see `pool.Pool`."""

    def take(self, spec: Spec, streams: Streams, /) -> tuple[Container, Workspace | None] | None: ...


@dataclass(slots=True, kw_only=True)
class Run:
    """What is to be run, and what is wanted back; see `Runtime.run`."""

    spec: Spec
    stdin: Input = None
    stdout: Stdio = None
    stderr: Stdio = None
    capture_stdout: bool = False
    capture_stderr: bool = False
    files: Mapping[str, bytes | Path] = field(default_factory=dict)
    collect: tuple[str, ...] = ()
    collect_limit: int = COLLECT_LIMIT
    directory: Workspace | None = None
    deliver_cancel: DeliverCancel | None = None
    id: str = ""
    job: Any = None

    @property
    def needs_workspace(self) -> bool:
        """Of its own."""
        return self.directory is None and bool(self.files or self.collect)

    @property
    def can_be_repeated(self) -> bool:
        """After a failed start: what comes as a stream may have been read from."""
        return not _is_stream(self.stdin)

    async def carry_out(self, launches: Launches, pool: Parked | None = None) -> Result:
        """Runs it. Raises and cancels as `Runtime.run` says."""
        self._check()
        if isinstance(self.stdin, bytearray | memoryview):
            self.stdin = bytes(self.stdin)
        spec = self.spec
        if spec.working_dir is None and (self.needs_workspace or self.directory):
            spec = spec.with_(working_dir=DEFAULT_DIRECTORY)
        with contextlib.ExitStack() as stack:
            try:
                streams = self._streams(launches.null, stack)
            except OSError as exc:
                raise LaunchError(spec.name, "open its standard streams", exc.errno or 0) from None
            feed_rest = self._prefill(streams)
            container, workspace = await self._start(launches, pool, spec, streams, stack)
            captures = self._captures(spec, streams)
            feed = Feed(streams.stdin, feed_rest, container.kill) if streams.stdin and feed_rest is not None else None
            try:
                exit = await communicate(container, captures.values(), feed)
            except anyio.get_cancelled_exc_class():
                if self.deliver_cancel is not None:
                    await self._deliver(self.deliver_cancel, container)
                raise
            finally:
                await launches.end(container)
            return await self._result(exit, captures, workspace)

    def _check(self) -> None:
        if isinstance(self.collect_limit, bool) or not isinstance(self.collect_limit, int) or self.collect_limit < 0:
            raise SpecError("collect_limit", f"expected bytes, 0 or more, got {self.collect_limit!r}")
        for name, given, captured in (("stdout", self.stdout, self.capture_stdout), ("stderr", self.stderr, self.capture_stderr)):
            if captured and given is not None:
                raise SpecError(name, "can't be captured and go elsewhere")
            if name == "stdout" and given == STDOUT:
                raise SpecError(name, "STDOUT is for stderr, which then goes where stdout does")
            if given == PIPE:
                raise SpecError(name, f"a run has nobody to read a pipe; use capture_{name}, or start")
            if self.spec.output_limit is not None and given not in (None, STDOUT):
                raise SpecError("output_limit", f"{name} is not read by tinyvisor; limit the file's size with ulimits fsize")
        if self.spec.tty:
            raise SpecError("tty", "a run has nobody at a terminal; use start")
        if self.stdin == PIPE:
            raise SpecError("stdin", "a run has nobody to write to a pipe; give it bytes or a stream, or use start")

    def _streams(self, null: int, stack: contextlib.ExitStack) -> Streams:
        stdin: Any = self.stdin
        if isinstance(stdin, bytes) or _is_stream(stdin):
            stdin = PIPE
        elif isinstance(stdin, Path):
            stdin = stack.enter_context(_open(stdin))
        streams = Streams(stdin, PIPE if self.capture_stdout else self.stdout, PIPE if self.capture_stderr else self.stderr, null)
        stack.callback(streams.close)
        stack.callback(streams.close_given)
        return streams

    def _prefill(self, streams: Streams) -> bytes | ByteReceiveStream | None:
        """Puts what fits into the pipe now: most input needs no task to feed it. Returns what is left."""
        if isinstance(self.stdin, bytes) and streams.stdin is not None:
            rest = streams.stdin.send_nowait(self.stdin)
            if not rest:
                streams.stdin.close()
            return rest or None
        return self.stdin if _is_stream(self.stdin) else None

    async def _start(
        self, launches: Launches, pool: Parked | None, spec: Spec, streams: Streams, stack: contextlib.ExitStack
    ) -> tuple[Container, Workspace | None]:
        taken = pool.take(spec, streams) if pool is not None and not self.files else None
        if taken is not None:
            if taken[1] is not None:
                stack.callback(taken[1].close)
            return taken
        workspace = self.directory
        if workspace is None and self.needs_workspace:
            try:
                workspace = Workspace(size=spec.storage_size, inodes=spec.storage_inodes)
            except OSError as exc:
                raise LaunchError(spec.name, "make the working directory", exc.errno or 0) from None
            stack.callback(workspace.close)
        ids = None
        if workspace is not None:
            ids = await launches.lease(spec)
            try:
                await self._fill(launches, spec, workspace, ids)
            except BaseException:
                launches.give_back(ids)
                raise
        manner = Manner(events=self.deliver_cancel is not None, workspace=workspace, early=True)
        return await launches.launch(spec, streams, manner, ids), workspace

    async def _fill(self, launches: Launches, spec: Spec, workspace: Workspace, ids: Ids | None) -> None:
        uid, gid = await launches.owner(spec)
        if workspace is not self.directory:  # one that is shared is idmapped for each
            uid, gid = (ids.map.uid(uid), ids.map.gid(gid)) if ids else (uid, gid)
            workspace.own(uid, gid)
        sizes = [len(content) if isinstance(content, bytes) else _SMALL for content in self.files.values()]
        try:
            if sum(sizes) < _SMALL:
                workspace.put(self.files, uid, gid)
            else:
                await in_thread(workspace.put, self.files, uid, gid)
        except OSError as exc:
            raise LaunchError(spec.name, f"put {exc.filename}", exc.errno or 0) from None

    def _captures(self, spec: Spec, streams: Streams) -> dict[str, Capture]:
        limit = spec.output_limit or DEFAULT_LIMIT
        pipes = (("stdout", streams.stdout), ("stderr", streams.stderr))
        return {name: Capture(pipe, limit) for name, pipe in pipes if pipe is not None}

    async def _deliver(self, deliver: DeliverCancel, container: Container) -> None:
        """As in trio.run_process: the user's own way to end it, and then we wait for that."""

        async def call() -> None:
            await deliver(container)
            await container.wait_gone()

        await shielded(call)

    async def _result(self, exit: Exit, captures: dict[str, Capture], workspace: Workspace | None) -> Result:
        more: dict[str, Any] = {"id": self.id, "job": self.job}
        for name, capture in captures.items():
            more[name], more[f"{name}_bytes"] = capture.kept, capture.size
        more["truncated"] = any(capture.exceeded for capture in captures.values())
        if self.collect and workspace is not None:
            more["files"], more["uncollected"] = await in_thread(workspace.collect, self.collect, self.collect_limit)
        return Result.of(exit, **more)


def _is_stream(stdin: object) -> TypeGuard[ByteReceiveStream]:
    """Also a memory object stream of bytes, which is no `ByteReceiveStream`."""
    return stdin is not None and hasattr(stdin, "receive")


@contextlib.contextmanager
def _open(path: Path) -> Any:
    try:
        fd = _open_read_only(path)
    except (OSError, ValueError) as exc:  # ValueError: no path at all
        raise SpecError("stdin", f"{path}: {exc.strerror if isinstance(exc, OSError) else exc}") from None
    try:
        yield fd
    finally:
        os.close(fd)


def _open_read_only(path: Path) -> int:
    """Through a read-only mount of its own: root inside could open /proc/self/fd/0 anew, for writing."""
    # O_NONBLOCK: a FIFO must not make the whole program wait for its writer.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        os.set_blocking(fd, True)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        tree = open_tree(f"/proc/self/fd/{fd}", recursive=False, read_only=True)
    except OSError as exc:
        if exc.errno == errno.EINVAL:  # on no mount of ours, as a memfd's /proc/self/fd/N: nothing of the host's
            return fd
        os.close(fd)
        raise
    os.close(fd)
    try:
        return os.open(f"/proc/self/fd/{tree}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(tree)
