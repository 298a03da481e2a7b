"""What runs in a Dask worker: the functions that a batch submits, and the plugin that has the node's process.

No container is run here, and nothing is parsed that one has written: results pass through as bytes. Everything here is called
in Dask's threads, but for the plugin's hooks, which its event loop calls.

A session lives as long as the key of its `hold` task is wanted. Dask tells us at once when it no longer is: its client has
released or cancelled it, or is gone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import distributed
from distributed.utils import sync

from tinyvisor import interpreter
from tinyvisor.cluster import frames

NAME: Final = "tinyvisor"
REPLY: Final = 8 << 20
"""Bytes of results in one reply at most, but for a single larger one."""
CLAIM: Final = 10.0
"""Seconds after which a session ends that nobody holds: who opened it was killed before the next word."""
LINGER: Final = 60.0
"""Seconds that the node's process lives on without a session: the next batch need not wait for another."""
ENDING: Final = 30.0
"""Seconds that the end of a session is waited for."""

Reply = tuple[str, bytes, str]
"""``"on"``, or why there will be no more (``"unfit"``, ``"died"``, ``"gone"``); records of results; why, in words."""


class _Session:
    """What a node has said to one batch, until it is fetched."""

    def __init__(self, slots: int, key: str, directory: Path) -> None:
        self.slots, self.key, self.directory = slots, key, directory
        self.results: deque[bytes] = deque()
        self.size = self.held = 0
        self.state, self.reason = "on", ""
        self.ended = threading.Event()
        self.closing = False
        self.last: tuple[int, Reply] | None = None


class NodePlugin(distributed.WorkerPlugin):  # type: ignore[misc]
    """Has the node's process, from the first session until there has been none for a while."""

    name = NAME

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._starting = threading.Lock()
        self._sessions: dict[bytes, _Session] = {}
        self._holds: dict[str, bytes] = {}
        self._claimed: set[bytes] = set()
        self._opening: dict[str, bytes] = {}
        self._process: _Process | None = None
        self._timer: threading.Timer | None = None

    # Dask's hooks.

    def setup(self, worker: Any) -> None:
        pass

    def teardown(self, worker: Any) -> None:
        """The worker closes: everything ends."""
        with self._lock:
            process, self._process = self._process, None
            self._stop_timer()
            self._end_all("the worker was closed")
            self._changed.notify_all()
        if process is not None:
            process.close()

    def transition(self, key: Any, start: Any, finish: Any, **more: Any) -> None:
        """Nobody wants a session any more: its containers are killed now."""
        over = finish in ("cancelled", "released", "forgotten", "error")
        if (id := self._holds.get(key)) is not None:
            if over:
                self.close(id)
            else:
                self._claimed.add(id)
        elif over and (id := self._opening.pop(key, None)) is not None:
            self._close_unclaimed(id)

    # Sessions.

    def open(self, id: bytes, own: str, key: str, settings: Mapping[str, Any]) -> str:
        """Begins a session; why it can't, or nothing.

        Args:
            own: the key of who calls; while it is wanted the session is, too.
            key: of the `hold` that is to keep it from then on.
        """
        self._opening[own] = id
        with self._starting:
            known = self._process
            process = known or _Process(self)
            if process.refusal:
                return process.refusal
            begun = self._begin(process, id, own, key, settings)
            if not begun and process is known:  # it has just ended
                process = _Process(self)
                begun = self._begin(process, id, own, key, settings)
            if not begun:
                return process.refusal or f"the node's process ended with {process.describe()}"
        timer = threading.Timer(CLAIM, self._close_unclaimed, (id,))
        timer.daemon = True
        timer.start()
        return ""

    def _begin(self, process: _Process, id: bytes, own: str, key: str, settings: Mapping[str, Any]) -> bool:
        """Whether the process is there to begin a session. Where nobody waits for that any more, it is as good as ended."""
        with self._lock:
            if process.gone or process.refusal:
                return False
            self._process = process
            if own not in self._opening:
                self._linger()
                return True
            self._stop_timer()
            self._sessions[id] = _Session(settings["slots"], key, Path(settings["directory"]))
            self._holds[key] = id
            process.send(frames.frame(frames.OPEN, id, frames.pack(settings)))
            return True

    def _linger(self) -> None:
        self._stop_timer()
        self._timer = threading.Timer(LINGER, self._hang_up_unused)
        self._timer.daemon = True
        self._timer.start()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _hang_up_unused(self) -> None:
        with self._lock:
            if self._process is not None and all(session.ended.is_set() for session in self._sessions.values()):
                self._process.hang_up()
                self._process = None

    def _close_unclaimed(self, id: bytes) -> None:
        if id not in self._claimed:
            self.close(id)

    def hold(self, id: bytes) -> None:
        """Until the session has ended."""
        with self._lock:
            session = self._sessions.get(id)
        if session is not None:
            session.ended.wait()

    def close(self, id: bytes) -> None:
        """Kills what a session runs, and forgets what it has not told yet. Does not wait."""
        with self._lock:
            session = self._sessions.get(id)
            if session is None:
                return
            session.results.clear()
            session.closing = True
            if session.ended.is_set():
                self._forget(id)
                return
            process = self._process
        if process is not None:
            process.send(frames.frame(frames.CLOSE, id))

    def end(self, id: bytes) -> bool:
        """`close`, and whether nothing of it is left, now or soon."""
        with self._lock:
            session = self._sessions.get(id)
        self.close(id)
        return session is None or session.ended.wait(ENDING)

    def exchange(self, id: bytes, number: int, jobs: bytes, count: int, more: bool, patience: float, gather: float) -> Reply:
        """Gives the node jobs and pieces of files, and waits for results.

        Args:
            number: of the exchange; what was answered to it is answered again.
            count: of the jobs.
            more: the batch has more jobs: the reply should come before the node runs out of them.
            patience: seconds to wait for the first result.
            gather: seconds to wait for more of them, while the node has enough to do.
        """
        with self._lock:
            session = self._sessions.get(id)
            if session is None:
                return "gone", b"", "the session has ended"
            if session.last is not None and session.last[0] == number:
                return session.last[1]
            session.held += count
        process = self._process
        if jobs and process is not None:
            process.send(frames.frame(frames.JOBS, id, jobs))
        enough = session.slots if more else 0
        with self._changed:
            self._changed.wait_for(lambda: session.results or session.state != "on", patience)
            if session.results:
                self._changed.wait_for(lambda: session.held <= enough or session.size >= REPLY or session.state != "on", gather)
            taken = [session.results.popleft()] if session.results else []
            size = sum(map(len, taken))
            while session.results and size + len(session.results[0]) <= REPLY:
                size += len(session.results[0])
                taken.append(session.results.popleft())
            session.size -= size
            reply = ("on" if session.results else session.state, b"".join(taken), session.reason)
            session.last = (number, reply)
            if reply[0] != "on" and session.ended.is_set():
                self._forget(id)
        if size and process is not None:
            process.send(frames.frame(frames.TAKEN, id, frames.pack_count(size)))
        return reply

    # What the node says; called by the thread that reads.

    def heed(self, kind: int, id: bytes, payload: bytes) -> None:
        """A frame has come."""
        with self._changed:
            session = self._sessions.get(id)
            if session is None:
                return
            if kind in (frames.RESULT, frames.BACK, frames.ROOT):
                session.results.append(payload)
                session.size += len(payload)
                session.held -= kind != frames.ROOT
            elif kind == frames.UNFIT:
                session.state, session.reason = "unfit", payload.decode(errors="replace")
            elif kind == frames.CLOSED:
                self._end(id, "gone", "the session has ended")
                if all(each.ended.is_set() for each in self._sessions.values()):
                    self._linger()
            self._changed.notify_all()

    def hung_up(self, process: _Process) -> None:
        """The node's process has ended."""
        with self._changed:
            process.gone = True
            if self._process is process:
                self._process = None
                self._end_all(f"the node's process ended with {process.describe()}")
            self._changed.notify_all()

    def _end_all(self, reason: str) -> None:
        for id, session in list(self._sessions.items()):
            if not session.ended.is_set():
                self._end(id, "died", reason)

    def _end(self, id: bytes, state: str, reason: str) -> None:
        session = self._sessions[id]
        if session.state == "on":
            session.state, session.reason = state, reason
        shutil.rmtree(session.directory, ignore_errors=True)
        session.ended.set()
        if session.closing:
            self._forget(id)

    def _forget(self, id: bytes) -> None:
        session = self._sessions.pop(id)
        del self._holds[session.key]
        self._claimed.discard(id)


class _Process:
    """The node's process and the thread that reads what it says. Made in whatever thread; returns when it is ready.

    Attributes:
        refusal: why no container can run here; then it has ended.
        gone: it has ended, or will soon, and its sessions with it.
    """

    def __init__(self, plugin: NodePlugin) -> None:
        self._plugin = plugin
        self.gone: bool = False
        self._sending = threading.Lock()
        ours, theirs = socket.socketpair()
        self._socket = ours
        try:
            self._process = subprocess.Popen(
                interpreter.command("tinyvisor.cluster.node"),
                stdin=theirs.fileno(),
                stdout=sys.stderr.fileno() if _has_fileno(sys.stderr) else subprocess.DEVNULL,
                start_new_session=True,  # the terminal's Ctrl-C is not for it
                env=os.environ | {"PYTHONSAFEPATH": "1"},
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._reader = ours.makefile("rb", buffering=1 << 20)
        self.refusal: str = self._first_word()
        if self.refusal:
            self.close()
        else:
            threading.Thread(target=self._read, name="tinyvisor-node", daemon=True).start()

    def _first_word(self) -> str:
        word = self._next()
        if word is None:
            return f"the node's process ended with {self.describe()}"
        kind, _, payload = word
        return payload.decode(errors="replace") if kind == frames.REFUSED else ""

    def _next(self) -> tuple[int, bytes, bytes] | None:
        with contextlib.suppress(OSError, ValueError):
            header = self._reader.read(frames.HEADER.size)
            if len(header) == frames.HEADER.size:
                length, kind, id = frames.HEADER.unpack(header)
                payload = self._reader.read(length)
                if len(payload) == length:
                    return kind, id, payload
        return None

    def _read(self) -> None:
        while (word := self._next()) is not None:
            self._plugin.heed(*word)
        self.describe()
        self._plugin.hung_up(self)
        self._reader.close()
        self._socket.close()

    def send(self, data: bytes) -> None:
        """To a process that has gone: nothing happens, the thread that reads sees it."""
        with self._sending, contextlib.suppress(OSError):
            self._socket.sendall(data)

    def hang_up(self) -> None:
        """It ends by itself, with everything it runs."""
        self.gone = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """`hang_up`, and waits for its end."""
        self.hang_up()
        self.describe()

    def describe(self) -> str:
        """Waits for its end; how it was."""
        try:
            code = self._process.wait(ENDING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return f"signal {-code}" if code < 0 else f"exit {code}"


def _has_fileno(stream: Any) -> bool:
    try:
        stream.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    return True


# --- What a batch submits. Each runs on the worker that it names. ---


def _plugin(worker: Any) -> NodePlugin | None:
    plugin = worker.plugins.get(NAME)
    return plugin if isinstance(plugin, NodePlugin) else None


def open_session(id: bytes, own: str, key: str, version: str, slots: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Begins a session: ``slots`` and ``host``; or ``why`` it can't be.

    Args:
        own, key: our own, and that of the `hold` that will keep it.
        slots: as ``--jobs`` has it, ``"8"`` or ``"150%"`` of the worker's CPUs; None is one for each.
    """
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    worker = distributed.get_worker()
    with contextlib.suppress(PackageNotFoundError):
        ours = version_of("tinyvisor")
        if version and ours != version:
            return {"why": f"it has tinyvisor {ours}, and the batch is of {version}", "host": socket.gethostname()}
    plugin = _plugin(worker)
    if plugin is None:
        sync(worker.loop, worker.plugin_add, plugin=NodePlugin(), name=NAME)
        plugin = _plugin(worker)
        assert plugin is not None
    size = measure(worker.state.total_resources, worker.state.nthreads, worker.memory_manager.memory_limit)
    given = {**size, "slots": slots_of(slots, size["cpus"])}
    directory = str(Path(worker.local_directory, f"tinyvisor-{id.hex()}"))
    why = plugin.open(id, own, key, {**settings, **given, "directory": directory})
    return {"why": why, "host": socket.gethostname(), **given}


def measure(resources: Mapping[str, float], threads: int, memory: int | None) -> dict[str, Any]:
    """``cpus`` and ``memory`` (bytes, or None) that a worker's jobs may use at once: its resources CPU and MEMORY, where whoever
    started it has said so, else its threads and its memory limit."""
    cpus = resources.get("CPU", 0.0)
    limit = resources.get("MEMORY", memory or 0)
    return {"cpus": float(cpus if cpus > 0 else max(1, threads)), "memory": int(limit) or None}


def slots_of(text: str | None, cpus: float) -> int:
    """Jobs at once, of those that say nothing of CPUs."""
    if text is None:
        return max(1, int(cpus))
    return max(1, int(int(text[:-1]) * cpus / 100)) if text.endswith("%") else int(text)


def hold(id: bytes) -> None:
    """Keeps a session; takes no part in what the worker can run at once."""
    plugin = _plugin(distributed.get_worker())
    if plugin is not None:
        distributed.secede()
        plugin.hold(id)


def exchange(id: bytes, number: int, jobs: bytes, count: int, more: bool, patience: float, gather: float) -> Reply:
    """See `NodePlugin.exchange`."""
    plugin = _plugin(distributed.get_worker())
    if plugin is None:
        return "gone", b"", "the worker was started anew"
    return plugin.exchange(id, number, jobs, count, more, patience, gather)


def end_session(id: bytes) -> bool:
    """Whether nothing of a session is left on this node, now or soon."""
    plugin = _plugin(distributed.get_worker())
    return plugin is None or plugin.end(id)
