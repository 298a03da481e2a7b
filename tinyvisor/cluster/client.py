"""A batch over the workers of a Dask cluster, from the side of the batch. On anyio; Dask's own loop is in its own thread.

Dask brings messages to the workers it knows, and tells who joins and who is lost; which node gets which job is `Dispatch`'s to
say. Each node is spoken to by one task of ours with one message at a time: jobs there, results back.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import os
import secrets
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final
from weakref import WeakKeyDictionary

import anyio
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from tinyvisor.cluster import frames
from tinyvisor.cluster.dispatch import Dispatch, Ticket
from tinyvisor.cluster.files import KEPT, Content, Files, Piece, Sending, Sent, pieces, size_of
from tinyvisor.errors import HostError, SpecError, TinyvisorError
from tinyvisor.job import Job
from tinyvisor.runtime.beside import beside
from tinyvisor.runtime.launcher import shielded
from tinyvisor.runtime.results import Results
from tinyvisor.spec import Spec
from tinyvisor.state import Result

CHUNK: Final = 4 << 20
"""Bytes of jobs and pieces of files in one message, but for a single larger one."""
UNREAD: Final = 32 << 20
"""Bytes of results that wait to be taken; then no node is asked for more."""
BRIEF, AHEAD, LONG = 0.25, 1.0, 5.0
"""Seconds that a node without results may keep us waiting: while it has room for more jobs, while it has some that it can't have
begun, and else."""
MOMENT: Final = 0.02
"""Seconds that a node with room for more jobs is kept waiting for their being read."""
RECONCILE: Final = 10.0
"""Seconds between two looks at who is in the cluster, besides being told."""
MOST_DEATHS: Final = 5
"""Times in a row that a node's process may end without a result before the node is given up."""
CLOSE_PATIENCE: Final = 5.0
"""Seconds that leaving waits until the nodes say that nothing is left on them. They go on killing without us."""
PRIORITY: Final = 100
"""Of our messages among a worker's tasks: they are brief."""


class SchedulerLost(TinyvisorError):
    """The connection to the scheduler broke, or it has ended."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node, for a progress display.

    Attributes:
        held: jobs that it has, and `slots`, how many of them it runs at once.
        finished: results it has given.
    """

    label: str
    slots: int
    held: int
    finished: int


class Cluster:
    """Runs batches on the workers of a `distributed.Client`, as `Runtime.map` does on this machine.

    Args:
        client: connected; with a loop in a thread of its own, or our own thread's.
        slots: jobs at once on each worker, ``"8"`` or ``"150%"`` of its CPUs; None is one for each. A worker's CPUs and memory
            are its resources ``CPU`` and ``MEMORY``, else its threads and its memory limit; jobs with ``cpus`` and
            ``mem_limit`` run at once as far as these go.
        memory_budget: bytes that the mem_limits of a worker's running jobs stay within; a larger one runs alone.
        say: gets a line when a node is refused or lost.
    """

    def __init__(
        self,
        client: Any,
        *,
        slots: str | None = None,
        memory_budget: int | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.client = client
        self.slots: str | None = slots
        self.memory_budget: int | None = memory_budget
        self.say: Callable[[str], None] = say
        self._batch: _Batch | None = None

    @property
    def nodes(self) -> list[NodeView]:
        """Those that take jobs now."""
        if self._batch is None:
            return []
        found = self._batch.dispatch.nodes.values()
        return [NodeView(node.label, node.slots, len(node.held), node.finished) for node in found]

    @contextlib.asynccontextmanager
    async def map(
        self,
        jobs: Iterable[Spec | Job] | AsyncIterable[Spec | Job],
        *,
        concurrency: int | None = None,
        capture_stdout: bool = False,
        capture_stderr: bool = False,
    ) -> AsyncIterator[Results[Result]]:
        """As `Runtime.map`. A job's files, its root and its seccomp profile are read here; volumes are directories of the nodes.

        Args:
            concurrency: not used: what runs at once is the nodes' to say.

        Raises:
            HostError: no node of the cluster can run the jobs; what each said.
            SchedulerLost: results that have not come are lost; what ran is killed.
            Exception: what the source raises.
        Cancellation, and leaving the scope: kills what runs, on all nodes.
        """
        send, receive = anyio.create_memory_object_stream[Result](0)
        results: Results[Result] = Results(receive)
        settings = {"stdout": capture_stdout, "stderr": capture_stderr, "memory_budget": self.memory_budget}
        with _Calls(self.client) as calls, receive:
            batch = self._batch = _Batch(self, calls, jobs, settings, send, results)
            async with beside(calls.listen):
                try:
                    async with beside(batch.run):
                        yield results
                finally:
                    await shielded(batch.close)
                    calls.stop()


# --- Between our loop and Dask's. ---


class _Calls:
    """Runs coroutines in Dask's loop and waits for them in ours, whichever that is: an eventfd wakes us."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._loop = client.loop.asyncio_loop
        self._done: deque[Callable[[], None]] = deque()
        self._waking = threading.Lock()
        self._fd = -1
        self._listening = anyio.CancelScope(shield=True)

    def __enter__(self) -> _Calls:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return self

    def __exit__(self, *exc: object) -> None:
        with self._waking:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def post(self, function: Callable[[], None]) -> None:
        """Has `function` called in our loop, from whatever thread."""
        self._done.append(function)
        with self._waking:  # its number may be another file's as soon as it is closed
            if self._fd >= 0:
                os.eventfd_write(self._fd, 1)

    async def listen(self) -> None:
        """Calls what was posted, until `stop`. Cancellation: has no effect, for those who clean up have calls to make."""
        with self._listening:
            while True:
                await anyio.wait_readable(self._fd)
                os.eventfd_read(self._fd)
                while self._done:
                    self._done.popleft()()

    def stop(self) -> None:
        """Ends `listen`."""
        self._listening.cancel()

    async def __call__(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """What `coroutine` returns or raises. Cancellation: cancels it."""
        event = anyio.Event()
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:  # the loop has ended
            coroutine.close()
            raise SchedulerLost("the connection to the cluster is closed") from None
        future.add_done_callback(lambda _: self.post(event.set))
        try:
            await event.wait()
        finally:
            future.cancel()
        try:
            return future.result()
        except (concurrent.futures.CancelledError, asyncio.CancelledError):
            raise SchedulerLost("the connection to the scheduler is lost; nothing that ran is left on the nodes") from None

    async def submit(self, address: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function` returns on the worker at `address`. Cancellation: nobody waits for it any more."""
        return await self(_submit(self.client, address, function, arguments))


def _key(function: Callable[..., Any]) -> str:
    return f"tinyvisor-{function.__name__}-{secrets.token_hex(8)}"


async def _submit(client: Any, address: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    future = _future(client, address, function, arguments, _key(function))
    try:
        return await future
    finally:
        future.release()


def _future(client: Any, address: str, function: Callable[..., Any], arguments: tuple[Any, ...], key: str) -> Any:
    return client.submit(
        function, *arguments, workers=[address], allow_other_workers=False, pure=False, key=key, priority=PRIORITY
    )


# --- One batch. ---


@dataclass(slots=True, eq=False)
class _Link:
    """What we have of one worker.

    Attributes:
        session: its id; made anew with every process of the node.
        hold: the future that keeps the session.
        outbox: records, and pieces of files, that the node is to get; with each how many jobs it is.
        sent: the files that it has, or will have before anything else.
        roots: by digest, those that its jobs need.
        ready: its jobs whose root has come.
    """

    address: str
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    session: bytes = b""
    hold: Any = None
    deaths: int = 0
    label: str = ""
    outbox: deque[tuple[bytes | Piece, int]] = field(default_factory=deque)
    sent: Sent = field(default_factory=Sent)
    roots: dict[str, Sending] = field(default_factory=dict)
    ready: deque[Ticket] = field(default_factory=deque)

    def begin(self) -> None:
        """A new session, which has nothing."""
        self.session = secrets.token_bytes(8)
        self.outbox.clear()
        self.sent = Sent()
        self.roots.clear()
        self.ready.clear()


class _Batch:
    def __init__(
        self,
        cluster: Cluster,
        calls: _Calls,
        jobs: Iterable[Spec | Job] | AsyncIterable[Spec | Job],
        settings: dict[str, Any],
        send: MemoryObjectSendStream[Result],
        results: Results[Result],
    ) -> None:
        self.dispatch = Dispatch()
        self._cluster, self._calls, self._jobs, self._settings = cluster, calls, jobs, settings
        self._send, self._results = send, results
        self._keys = itertools.count()
        self._files = Files()
        self._links: dict[str, _Link] = {}
        self._refused: dict[str, str] = {}
        self._opening = 0
        self._unread: deque[tuple[Result, int]] = deque()
        self._size = 0
        self._changed = _Bell()
        self._exhausted = False
        self._group: TaskGroup | None = None
        self._heard: Handler | None = None
        self._lost = False

    async def run(self) -> None:
        """Until every job has a result that was taken."""
        with self._send:
            try:
                async with anyio.create_task_group() as self._group:
                    self._group.start_soon(self._follow)
                    self._group.start_soon(self._read)
                    await self._deliver()
                    self._group.cancel_scope.cancel()
            except Exception as error:
                self._lost = isinstance(_first(error), SchedulerLost)
                self._results.fail(_first(error))

    async def close(self) -> None:
        """Kills what runs, and waits a while until the nodes have said so. Without a scheduler they kill by themselves."""
        self._files.close()
        links = [link for link in self._links.values() if link.hold is not None]
        for link in links:
            link.hold.release()
        if self._lost:
            return
        with anyio.move_on_after(CLOSE_PATIENCE):
            if self._heard is not None:
                with contextlib.suppress(Exception):
                    await self._calls(_unsubscribe(self._calls.client, self._heard))
            async with anyio.create_task_group() as group:
                for link in links:
                    group.start_soon(self._end, link)

    async def _end(self, link: _Link) -> None:
        from tinyvisor.cluster import worker

        with contextlib.suppress(Exception):  # a lost node or scheduler: it ends without us
            await self._calls.submit(link.address, worker.end_session, link.session)

    # What goes in.

    async def _read(self) -> None:
        source = self._jobs if isinstance(self._jobs, AsyncIterable) else _each(self._jobs)
        iterator = aiter(source)
        try:
            while True:
                while not (wanted := self.dispatch.wanted):
                    await self._changed.wait()
                for _ in range(wanted):  # asked once for many: with many nodes it is work
                    self._add(await anext(iterator))
        except StopAsyncIteration:
            self._exhausted = True
            self._changed.ring()
        finally:
            if hasattr(iterator, "aclose"):
                await shielded(iterator.aclose)

    def _add(self, job: Any) -> None:
        spec = job.spec if isinstance(job, Job) else job
        if not isinstance(spec, Spec):
            raise SpecError("jobs", f"expected Spec or Job objects, got {job!r}")
        again = not (isinstance(job, Job) and job.retry == "never")
        self.dispatch.add(Ticket(next(self._keys), job, again, cpus=spec.cpus or 0.0, memory=spec.mem_limit or 0))
        self._changed.ring()

    # What comes out.

    async def _deliver(self) -> None:
        while True:
            while self._unread:
                result, size = self._unread.popleft()
                await self._send.send(result)
                self._size -= size
                self._changed.ring()
            if self._exhausted and self.dispatch.idle:
                return
            await self._changed.wait()

    def _give(self, result: Result, size: int = 0) -> None:
        self._unread.append((result, size))
        self._size += size
        self._changed.ring()

    # Who is there.

    async def _follow(self) -> None:
        """Workers come and go."""
        self._heard = lambda event: self._calls.post(lambda: self._heed(event))
        await self._calls(_subscribe(self._calls.client, self._heard))
        said = False
        while True:
            present = await self._calls(_workers(self._calls.client))
            for address in self._links.keys() - present:
                self._lose(address)
            for address in present - self._links.keys():
                self._meet(address)
            missing = not self.dispatch.nodes and (not present or self._refused.keys() >= present)
            if missing and not said:
                self._cluster.say("waiting for workers: the cluster has none that takes jobs")
            said = missing
            await anyio.sleep(RECONCILE)

    def _heed(self, event: Any) -> None:
        address = event.get("worker")
        if event.get("action") == "add-worker" and address not in self._links:
            self._meet(address)
        elif event.get("action") == "remove-worker" and address in self._links:
            self._lose(address)

    def _meet(self, address: str) -> None:
        assert self._group is not None
        link = self._links[address] = _Link(address, label=address)
        self._group.start_soon(self._attend, link)

    def _lose(self, address: str) -> None:
        """A worker is no longer in the cluster. Its task ends; a new one at its address is another."""
        link = self._links.pop(address)
        self._refused.pop(address, None)
        link.scope.cancel()
        if link.hold is not None:
            link.hold.release()
        if address in self.dispatch.nodes:
            held = len(self.dispatch.nodes[address].held)
            self._cluster.say(f"{link.label} is lost, with {held} jobs")
            self._judge(address)

    def _judge(self, address: str, *, blame: bool = True) -> None:
        verdicts = self.dispatch.lose(address) if blame else self.dispatch.leave(address)
        for verdict in verdicts:
            self._give(_verdict(verdict.ticket.job, verdict.status, verdict.reason))
        self._changed.ring()

    # One node.

    async def _attend(self, link: _Link) -> None:
        with link.scope:
            while link.deaths < MOST_DEATHS:
                if not await self._open(link):
                    return
                state, reason = await self._converse(link)
                finished = self.dispatch.nodes[link.address].finished
                self._judge(link.address, blame=state != "unfit")
                link.hold.release()
                link.hold = None
                if state == "unfit":
                    self._refuse(link, reason)
                    return
                link.deaths = 1 if finished else link.deaths + 1
                self._cluster.say(f"{link.label}: {reason}")
            self._refuse(link, f"its process has ended {link.deaths} times in a row")

    async def _open(self, link: _Link) -> bool:
        link.begin()
        self._opening += 1
        try:
            arguments = (_our_version(), self._cluster.slots, self._settings)
            answer, link.hold = await self._calls(_open(self._calls.client, link.address, link.session, arguments))
        except (TinyvisorError, anyio.get_cancelled_exc_class()):
            raise
        except Exception as error:  # whatever it is that Dask could not do there: e.g. tinyvisor is not installed
            answer = {"why": f"{type(error).__name__}: {error}", "host": link.address}
        finally:
            self._opening -= 1
        link.label = f"{answer['host']} ({link.address})"
        if answer["why"]:
            self._refuse(link, answer["why"])
            return False
        cpus, memory = answer["cpus"], answer["memory"] or 0
        self.dispatch.join(link.address, answer["slots"], link.label, cpus=cpus, memory=memory)
        self._changed.ring()
        return True

    def _refuse(self, link: _Link, reason: str) -> None:
        """It takes no jobs. When no node does, nothing can go on."""
        self._refused[link.address] = f"{link.label}: {reason}"
        self._cluster.say(f"{link.label} takes no jobs: {reason}")
        if not self.dispatch.nodes and not self._opening and self._refused.keys() >= self._links.keys():
            raise HostError(
                "no node can run the jobs: " + "; ".join(self._refused.values()), "see `tinyvisor doctor` on the nodes"
            )

    async def _converse(self, link: _Link) -> tuple[str, str]:
        """Until the node has no more to say; how that came about."""
        from tinyvisor.cluster import worker

        node = self.dispatch.nodes[link.address]
        for number in itertools.count():
            while self._size > UNREAD or not (node.held or link.outbox or self._can_take(link)):
                await self._changed.wait()
            await self._read_ahead(link)
            chunk, count = await self._load(link)
            more = not self._exhausted or self.dispatch.waiting
            patience = 0.0 if link.outbox else self._patience(link, more=more)
            gather = 0.0 if link.outbox else self.dispatch.interval
            state, records, reason = await self._calls.submit(
                link.address, worker.exchange, link.session, number, chunk, count, more, patience, gather
            )
            self._take(link, records)
            if state != "on":
                return state, reason
            if not records and patience and self.dispatch.should_return(link.address):
                link.outbox.append((frames.encode_recall(), 0))
        raise AssertionError

    def _patience(self, link: _Link, *, more: bool) -> float:
        node = self.dispatch.nodes[link.address]
        return BRIEF if more and self.dispatch.has_room(link.address) else AHEAD if node.load > node.slots else LONG

    def _can_take(self, link: _Link) -> bool:
        return self.dispatch.waiting and self.dispatch.has_room(link.address)

    async def _read_ahead(self, link: _Link) -> None:
        """What has just come has made room for jobs: waits for a moment until they are read, so that they go now."""
        with anyio.move_on_after(MOMENT):
            while self.dispatch.wanted and self.dispatch.has_room(link.address) and not self._exhausted:
                await self._changed.wait()

    async def _load(self, link: _Link) -> tuple[bytes, int]:
        """What goes to a node next, and how many jobs are in it. Files go before the first job that needs them, once."""
        chunk, size, count = [], 0, 0
        tickets = self.dispatch.take(link.address)
        while size < CHUNK:
            if not link.outbox:
                ticket = link.ready.popleft() if link.ready else None if link.sent.needed > KEPT else next(tickets, None)
                if ticket is None:
                    break
                await self._pack(link, ticket)
                continue
            item, jobs = link.outbox.popleft()
            record = item if isinstance(item, bytes) else await anyio.to_thread.run_sync(item.read)
            count += jobs
            chunk.append(record)
            size += len(record)
        self._changed.ring()
        return b"".join(chunk), count

    async def _pack(self, link: _Link, ticket: Ticket) -> None:
        """Puts a job into the node's outbox. One whose files can't be read has its result at once; one whose root is not there
        waits for it."""
        try:
            content = await self._files.content(ticket.job)
        except OSError as error:
            self._fail(link, ticket, f"read {error.filename or 'a file'}: {error.strerror or error}")
            return
        except SpecError as error:
            self._fail(link, ticket, str(error))
            return
        if content.root and (root := self._root(link, content)).state != "here":
            if root.state == "asked":
                root.waiting.append(ticket)
            else:
                self._fail(link, ticket, root.state)
            return
        files = {digest: path for digest, path in content.large.items() if digest in content.stored}
        new = link.sent.need(ticket.key, {digest: size_of(path) for digest, path in files.items()})
        link.outbox += ((frames.encode_drop(digest), 0) for digest in link.sent.drop())
        for digest in new:
            link.outbox += ((piece, 0) for piece in pieces(files[digest], digest))
        link.outbox.append((frames.encode_job(ticket.key, ticket.job, content.files), 1))

    def _fail(self, link: _Link, ticket: Ticket, reason: str) -> None:
        self.dispatch.finish(link.address, ticket.key)
        self._give(_verdict(ticket.job, "sandbox_error", reason))

    def _root(self, link: _Link, content: Content) -> Sending:
        if content.root not in link.roots:
            link.roots[content.root] = Sending(content.large[content.root])
            link.outbox.append((frames.encode_root(content.root), 0))
        return link.roots[content.root]

    def _take(self, link: _Link, records: bytes) -> None:
        took = []
        for record, blobs in frames.unpack(records):
            if "root" in record:
                self._heed_root(link, record["root"], record["state"])
                continue
            if "back" in record:
                link.sent.release(record["back"])
                self.dispatch.give_back(link.address, record["back"])
                self._changed.ring()
                continue
            link.sent.release(record["key"])
            ticket = self.dispatch.finish(link.address, record["key"])
            if ticket is not None:
                took.append(record["took"])
                self._give(frames.decode_result(record, blobs, ticket.job), sum(map(len, blobs)))
        self.dispatch.learn(link.address, took)

    def _heed_root(self, link: _Link, digest: str, state: str) -> None:
        root = link.roots[digest]
        if state == "missing":
            link.outbox += ((piece, 0) for piece in pieces(root.path, digest, root=True))
            return
        root.state = state
        link.ready += root.waiting
        root.waiting.clear()


def _first(error: Exception) -> Exception:
    """The first one in a group: whichever of our tasks failed, it is one batch."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _verdict(job: Any, status: Any, reason: str) -> Result:
    return Result(status=status, reason=reason, id=job.id if isinstance(job, Job) else "", job=job)


async def _each(jobs: Iterable[Spec | Job]) -> AsyncIterator[Spec | Job]:
    for job in jobs:
        yield job


def _our_version() -> str:
    try:
        return version("tinyvisor")
    except PackageNotFoundError:  # run from its source
        return ""


class _Bell:
    """Wakes those who wait when it rings."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def ring(self) -> None:
        self._event.set()
        self._event = anyio.Event()

    async def wait(self) -> None:
        await self._event.wait()


# --- In Dask's loop. ---

TOPIC: Final = "all"
"""Where a scheduler tells who joins and who leaves."""


Handler = Callable[[Any], None]

_HANDLERS: WeakKeyDictionary[Any, set[Handler]] = WeakKeyDictionary()
"""A client has one handler for a topic; its batches share it."""


async def _subscribe(client: Any, handler: Handler) -> None:
    handlers = _HANDLERS.setdefault(client, set())
    handlers.add(handler)
    if len(handlers) == 1:
        client.subscribe_topic(TOPIC, lambda event: [each(event[1]) for each in tuple(handlers)])


async def _unsubscribe(client: Any, handler: Handler) -> None:
    handlers = _HANDLERS[client]
    handlers.discard(handler)
    if not handlers:
        client.unsubscribe_topic(TOPIC)


async def _workers(client: Any) -> set[str]:
    return set((await client.scheduler.identity(n_workers=-1))["workers"])


async def _open(client: Any, address: str, session: bytes, arguments: tuple[Any, ...]) -> tuple[dict[str, Any], Any]:
    """A session: what the worker says to it, and the future that holds it, which is there before the other one is let go."""
    from tinyvisor.cluster import worker

    own, key = _key(worker.open_session), _key(worker.hold)
    opening = _future(client, address, worker.open_session, (session, own, key, *arguments), own)
    try:
        answer = await opening
        held = None if answer["why"] else _future(client, address, worker.hold, (session,), key)
        return answer, held
    finally:
        opening.release()
