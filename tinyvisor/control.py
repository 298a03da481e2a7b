"""The daemon's control API: HTTP/1.1 with JSON on a unix socket. On trio.

=========================================  =======================================================================
``GET /v1/project``                        name, pid, version, paths
``GET /v1/services?service=``              how every instance stands: `ServiceSummary`, with its pid
``GET /v1/services/NAME``                  the same of a service's instances, with what they are made of, their probes and
                                           processes
``GET /v1/wait?service=&until=``           the same, once they are ``down`` (default), ``running`` or ``healthy``
``GET /v1/stats?service=&interval=``       `Stats` of what runs; as Server-Sent Events again and again
``GET /v1/events?service=&since=&until=``  Server-Sent Events, from now on, or with those of the last `MAX_QUEUED` that are
                                           not older; ``lost`` says how many a slow reader missed
``GET /v1/logs?service=&tail=&since=&until=&follow=1``  the log files' records, as JSON Lines or Server-Sent Events
``GET /v1/openapi.json``                   all this for programs (`openapi`)
``POST /v1/services/start``                ``{"services": [NAME…]}``, none means all; so too ``stop``, ``restart``,
                                           ``reset-failed``, and ``kill`` with ``signal``; ``stop`` and ``restart`` with a
                                           ``timeout``: seconds until what is left is killed
``POST /v1/scale``                         ``{"service": NAME, "count": N}``
``POST /v1/reload``                        reads the configuration anew; 422 with its problems changes nothing
``POST /v1/services/NAME/exec``            ``{"command": […], "user", "environment", "working_dir", "timeout"}``; three fds,
                                           or a socket for a terminal's other side, and ``"terminal": [rows, columns]``
                                           sent along with the request are the command's stdio, else its output comes back
``POST /v1/services/NAME/attach``          one fd, a socket: a byte comes there with the write side of the service's stdin or
                                           terminal, then its output; answers at its end
``POST /v1/upgrade``                       with an fd, for the outcome as of ``up -d``: the daemon starts anew, in place, and its
                                           containers go on; 422 as ``reload``
``POST /v1/down``                          stops everything, and answers when it is down; ``timeout`` as with ``stop``
``GET /metrics``                           for Prometheus, where the extra ``metrics`` is installed
=========================================  =======================================================================

Who may connect: our own user and root, as the kernel says (SO_PEERCRED), and at a socket that was opened for a group, its
members (SO_PEERGROUPS). They can do what we can.

Bounds, each with what happens when it is reached:

- clients at once (`MAX_CLIENTS`): the one that has not yet asked for anything for the longest is closed; where all have
  asked, the new one.
- scrapes at once on a port of their own (`MAX_SCRAPES`), which take no client's place: as with clients. One takes
  `SCRAPE_PATIENCE` at most.
- a request's line and headers (`MAX_HEAD`), its body (`MAX_BODY`), the time it takes to come (`REQUEST_PATIENCE`): refused.
- a client that does not take what we send for `WRITE_PATIENCE`: closed. Events it could not take are counted (`MAX_QUEUED`);
  who is attached and lets more than `tap.LIMIT` bytes gather is told so and no longer is.
- at the end, who asked for it (`down`, `wait`) has `END_PATIENCE` to take the answer, all others what the daemon gives them.

A request that fails is answered; a bug in one is a 500 and a traceback for `on_problem`, and the daemon goes on.
One request per connection: the answer says ``Connection: close``.
"""

from __future__ import annotations

import array
import errno
import json
import math
import os
import re
import socket
import stat
import struct
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar, cast, get_args
from urllib.parse import parse_qs, unquote

import h11
import trio

from tinyvisor.errors import ConfigError, ContainerError, HostError, LaunchError, SpecError, TinyvisorError
from tinyvisor.inside import run_inside
from tinyvisor.logs import MAX_TAIL, LogReader, Record, is_between, so_far
from tinyvisor.metrics import Tally
from tinyvisor.release import version
from tinyvisor.runner import Container
from tinyvisor.spec import LOG_FILES, Project, parse_signal
from tinyvisor.state import CommandResult, Event, Exit, ServiceSummary
from tinyvisor.supervisor import Supervisor, Until, difference
from tinyvisor.tap import Tap
from tinyvisor.units import MAX_DURATION

MAX_CLIENTS: Final = 256
MAX_SCRAPES: Final = 16
MAX_HEAD: Final = 16 << 10
MAX_BODY: Final = 256 << 10
MAX_QUEUED: Final = 1024
REQUEST_PATIENCE: Final = 10.0
WRITE_PATIENCE: Final = 10.0
SCRAPE_PATIENCE: Final = 15.0
END_PATIENCE: Final = 30.0
BACKLOG: Final = 128
STDIO: Final = 3
SO_PEERGROUPS: Final = 59
"""Of asm-generic/socket.h; Python has no name for it."""
JSON: Final = "application/json"
JSON_LINES: Final = "application/jsonl"
EVENT_STREAM: Final = "text/event-stream"
PROMETHEUS: Final = "text/plain"
INTERVALS: Final = (0.1, 3600.0)
"""Seconds between two samples of a stream of stats: the least, the most."""

_CHUNK: Final = 64 << 10
_RECORDS: Final = 256
"""Log records sent at once."""

_T = TypeVar("_T")
_SUMMARY: Final = tuple(item.name for item in fields(ServiceSummary))

_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")


class Refused(Exception):
    """What a request is answered with where it can't be done.

    Attributes:
        status: of HTTP.
        problems: a line each.
    """

    def __init__(self, status: int, *problems: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__("; ".join(problems))
        self.status = status
        self.problems = problems
        self.headers = headers


class _Gone(Exception):
    """The client is not there any more, or does not take what we send."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks.

    Attributes:
        name: the NAME in the path.
        streams: it asks for Server-Sent Events.
        fds: what came along; closed when the request is over.
    """

    method: str
    path: str
    query: Mapping[str, list[str]]
    body: Mapping[str, Any]
    fds: tuple[int, ...] = ()
    name: str = ""
    streams: bool = False

    def services(self) -> list[str]:
        return self.query.get("service", [])

    def parameter(self, key: str, default: str = "") -> str:
        return self.query.get(key, [default])[-1]

    def take(self, key: str, kind: type[_T] | tuple[type[_T], ...], default: Any = None) -> Any:
        """A field of the body; `default` where it is not there or null.

        Raises:
            Refused: it is of another type.
        """
        value = self.body.get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or isinstance(value, bool):
            raise Refused(400, f"{key}: not what was expected")
        return value

    def texts(self, key: str) -> list[str]:
        values = self.take(key, list, [])
        if not all(isinstance(value, str) for value in values):
            raise Refused(400, f"{key}: expected a list of texts")
        return cast("list[str]", values)


class Feed:
    """A supervisor's `on_event` and `on_output`, handed on to whoever listens. Never blocks."""

    def __init__(self) -> None:
        self._listeners: dict[_Listener, None] = {}
        self._followers: dict[trio.Event, frozenset[str]] = {}
        self._latest: deque[tuple[str, Event]] = deque(maxlen=MAX_QUEUED)
        self.closed: bool = False

    def event(self, event: Event) -> None:
        time = _now()
        self._latest.append((time, event))
        if self._listeners:
            told = _told(time, event)
            for listener in self._listeners:
                listener.put(told)

    def output(self, name: str, stream: str, block: bytes) -> None:
        if self._followers:
            for waiting, names in list(self._followers.items()):
                if name in names:
                    waiting.set()

    def close(self) -> None:
        """Nothing more will come."""
        self.closed = True
        for listener in self._listeners:
            listener.wake()
        for waiting in self._followers:
            waiting.set()

    @contextmanager
    def listen(self, since: str = "") -> Iterator[_Listener]:
        """From now on; or from `since` on (RFC 3339, UTC), as far as that is still known."""
        listener = _Listener(self)
        for when, event in self._latest if since else ():
            if is_between(when, since, ""):
                listener.put(_told(when, event))
        self._listeners[listener] = None
        try:
            yield listener
        finally:
            del self._listeners[listener]

    @contextmanager
    def following(self, names: Iterable[str]) -> Iterator[trio.Event]:
        """An event that is set at the next output of any of `names`."""
        waiting = trio.Event()
        self._followers[waiting] = frozenset(names)
        try:
            if self.closed:
                waiting.set()
            yield waiting
        finally:
            del self._followers[waiting]


def _told(time: str, event: Event) -> dict[str, Any]:
    return {"time": time, "event": type(event).__name__, **asdict(event)}


class _Listener:
    """One reader of events, and what it has not taken yet."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._queue: list[dict[str, Any]] = []
        self._lost = 0
        self._news = trio.Event()

    def put(self, told: dict[str, Any]) -> None:
        if len(self._queue) < MAX_QUEUED:
            self._queue.append(told)
        else:
            self._lost += 1
        self._news.set()

    def wake(self) -> None:
        self._news.set()

    async def take(self) -> list[dict[str, Any]]:
        """What has come since the last time; empty at the end."""
        while not self._queue and not self._feed.closed:
            self._news = trio.Event()
            await self._news.wait()
        queue, lost = self._queue, self._lost
        self._queue, self._lost = [], 0
        return [*queue, {"time": _now(), "event": "lost", "events": lost}] if lost else queue


class Control:
    """What the control socket offers of one supervisor.

    Args:
        feed: gets the supervisor's events and output.
        reread: the project as its files say now; raises `ConfigError`. Called in a thread.
        log_dir: the supervisor's.
        tally: gets the supervisor's events, too; None has no metrics.
        about: what ``GET /v1/project`` tells besides the name and the pid.
        on_problem: told of bugs, a traceback each.
        on_upgrade: told to start anew, with the fd, which is its own then; None where the containers would not outlive that.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        name: str,
        *,
        feed: Feed,
        reread: Callable[[], Project],
        log_dir: Path,
        tally: Tally | None = None,
        about: Mapping[str, Any] | None = None,
        on_problem: Callable[[str], None] = lambda text: None,
        on_upgrade: Callable[[int], None] | None = None,
    ) -> None:
        self._on_upgrade = on_upgrade
        self._supervisor = supervisor
        self._name = name
        self._feed = feed
        self._reread = reread
        self._log_dir = log_dir
        self._tally = tally
        self._about = dict(about or {})
        self._on_problem = on_problem
        self._reloading = trio.Lock()
        self._summaries: tuple[ServiceSummary, ...] = ()
        self._end = trio.Event()
        self._clients: dict[_Client, None] = {}
        self._nobody = trio.Event()
        self._scrapes: dict[_Client, None] = {}

    def finish(self, summaries: tuple[ServiceSummary, ...]) -> None:
        """The supervisor has ended: streams end, and who waits for that is answered."""
        self._summaries = summaries
        self._end.set()
        self._feed.close()

    async def drained(self, patience: float) -> None:
        """Waits until no client that has asked for something is left; after `patience` seconds only for those whose question was
        the end: they get its answer, which may be some megabytes, as long as they take it, for `END_PATIENCE`."""
        with trio.move_on_after(patience):
            await self._without(lambda client: client.has_asked)
        with trio.move_on_after(max(0.0, END_PATIENCE - patience)):
            await self._without(lambda client: client.awaits_end)

    async def _without(self, kind: Callable[[_Client], bool]) -> None:
        while any(map(kind, self._clients)):
            self._nobody = trio.Event()
            await self._nobody.wait()

    async def serve(self, listener: socket.socket, group: int | None = None) -> None:
        """Serves until cancelled.

        Args:
            group: a gid, whose members are welcome, too.

        Cancellation: clients are cut off; what runs by their `exec` is killed.
        """
        server = trio.socket.from_stdlib_socket(listener)
        async with trio.open_nursery() as nursery:
            while True:
                connection = await _accept(server)
                if is_welcome(connection, group) and _make_room(self._clients, MAX_CLIENTS):
                    nursery.start_soon(self.serve_client, connection)
                else:
                    connection.close()

    async def serve_metrics(self, listener: socket.socket) -> None:
        """Serves ``GET /metrics`` and nothing else to whoever can connect, until cancelled."""
        server = trio.socket.from_stdlib_socket(listener)
        async with trio.open_nursery() as nursery:
            while True:
                connection = await _accept(server)
                if _make_room(self._scrapes, MAX_SCRAPES):
                    client = _Client(connection, public=True)
                    client.scope.deadline = trio.current_time() + SCRAPE_PATIENCE  # it may be anybody's, who takes his time
                    nursery.start_soon(self._serve, client, self._scrapes)
                else:
                    connection.close()

    async def serve_client(self, connection: trio.socket.SocketType) -> None:
        """Answers one request."""
        await self._serve(_Client(connection), self._clients)

    async def _serve(self, client: _Client, among: dict[_Client, None]) -> None:
        among[client] = None
        try:
            with client.scope:
                await self._attempt(client)
        finally:
            client.close()
            among.pop(client, None)
            self._nobody.set()

    async def _attempt(self, client: _Client) -> None:
        """To answer: what goes wrong even in that is the client's loss, and nobody else's."""
        try:
            await self._answer(client)
        except (_Gone, OSError):
            pass
        except Exception:
            self._on_problem(traceback.format_exc())

    async def _answer(self, client: _Client) -> None:
        try:
            request = await client.receive()
            answer = await self._respond(request, client)
            if answer is not None:
                await client.send_json(200, answer)
        except Refused as refused:
            await client.send_json(refused.status, _problems(*refused.problems), refused.headers)
        except ConfigError as error:
            await client.send_json(422, _problems(*map(str, error.problems)))
        except SpecError as error:
            await client.send_json(400, _problems(str(error)))
        except TinyvisorError as error:
            await client.send_json(409, _problems(str(error)))
        except (_Gone, OSError):
            raise
        except Exception:
            self._on_problem(traceback.format_exc())
            await client.send_json(500, _problems("a bug in tinyvisor; the daemon's log has the traceback"))

    async def _respond(self, request: Request, client: _Client) -> Any:
        handler, name = _route(request.method, request.path)
        if client.public and handler is not Control._metrics:
            raise Refused(404, "there is no such path")
        request = replace(request, name=name)
        known = {*self._supervisor.services, *(summary.name for summary in self._supervisor.summaries())}
        for service in (*request.services(), *request.texts("services"), *([name] if name else [])):
            if service not in known:
                raise Refused(404, f'there is no service "{service}"')
        return await handler(self, request, client)

    # ---- what there is to know ----

    async def _project(self, request: Request, client: _Client) -> Any:
        return {"name": self._name, "pid": os.getpid(), "version": version(), **self._about}

    async def _services(self, request: Request, client: _Client) -> Any:
        return self._standing(request.services())

    async def _inspect(self, request: Request, client: _Client) -> Any:
        from tinyvisor.config import normal_service  # which takes its time, and of most daemons nothing else needs it

        services = self._supervisor.instances((request.name,))
        configs = await trio.to_thread.run_sync(lambda: {name: normal_service(it) for name, it in services.items()})
        containers = self._supervisor.containers((request.name,))
        return [
            found
            | {
                "started_at": None if found["uptime"] is None else _rfc3339(time.time() - found["uptime"]),
                "next_at": None if found["due"] is None else _rfc3339(time.time() + found["due"]),
                "probes": [_probe(probe) for probe in self._supervisor.probes(found["name"])],
                "processes": _processes(containers[found["name"]]),
                "config": configs.get(found["name"]),
            }
            for found in self._standing((request.name,))
        ]

    async def _wait(self, request: Request, client: _Client) -> Any:
        until = request.parameter("until", "down")
        if until not in get_args(Until):
            raise Refused(400, f"until: expected {', '.join(get_args(Until))}")
        names, client.awaits_end = request.services(), True
        summaries = await client.attend(lambda: self._supervisor.wait(names, cast(Until, until)))
        return self._standing(summary.name for summary in summaries)

    async def _openapi(self, request: Request, client: _Client) -> Any:
        from tinyvisor.openapi import document  # pydantic's schemas take their time, and few ask

        return await trio.to_thread.run_sync(document)

    async def _stats(self, request: Request, client: _Client) -> Any:
        interval = _interval(request.parameter("interval", "1"))
        if not request.streams:
            return await self._sample(request.services())

        async def stream() -> None:
            await client.send_head(200, EVENT_STREAM)
            while not self._end.is_set():
                sample = {"time": _now(), "stats": await self._sample(request.services())}
                await client.send_data(_as_event("stats", sample))
                with trio.move_on_after(interval):
                    await self._end.wait()
            await client.send_end()

        return await client.attend(stream)

    async def _sample(self, names: Iterable[str]) -> list[dict[str, Any]]:
        found = []
        with suppress(SpecError):  # a service that a reload has taken away since it was asked for
            for name, container in self._supervisor.containers(names).items():
                if container is not None:
                    with suppress(ContainerError):  # it has just ended
                        found.append({"name": name, **asdict(await container.stats())})
        return found

    def _standing(self, names: Iterable[str]) -> list[dict[str, Any]]:
        names = tuple(names)
        containers = self._supervisor.containers(names)
        found = []
        for summary in self._supervisor.summaries(names):
            running = containers[summary.name]
            # Not asdict, which copies all that there is, and there may be thousands.
            standing = {name: getattr(summary, name) for name in _SUMMARY}
            standing["exit"] = None if summary.exit is None else asdict(summary.exit)
            found.append(standing | {"pid": None if running is None else running.pid})
        return found

    async def _metrics(self, request: Request, client: _Client) -> None:
        from tinyvisor.metrics import NotInstalled, expose

        if self._tally is None:
            raise Refused(501, "this supervisor keeps no metrics")
        told = {name: container for name, container in self._supervisor.containers().items() if container is not None}
        stats = {}
        for name, container in told.items():
            with suppress(ContainerError):  # it has just ended
                stats[name] = await container.stats()
        render = partial(
            expose, self._name, self._supervisor.summaries(), stats, deepcopy(self._tally),
            clients=len(self._clients), version=version(),
        )  # fmt: skip
        try:
            kind, text = await trio.to_thread.run_sync(render)  # thousands of services take their time
        except NotInstalled as error:
            raise Refused(501, str(error)) from None
        await client.send_whole(200, kind, text)

    # ---- streams ----

    async def _events(self, request: Request, client: _Client) -> None:
        since, until, services = _time(request, "since"), _time(request, "until"), request.services()
        left = datetime.fromisoformat(until).timestamp() - time.time() if until else math.inf
        end = trio.current_time() + left
        names: set[str] = set()

        def is_wanted(told: Mapping[str, Any]) -> bool:
            return is_between(told["time"], "", until) and (not services or told.get("name") in (None, *names))

        with self._feed.listen(since) as listener:

            async def stream() -> None:
                await client.send_head(200, EVENT_STREAM)
                while told := await _before(end, listener.take):
                    names.update(self._instances(services))
                    await client.send_data(b"".join(_as_event(item["event"], item) for item in told if is_wanted(item)))
                await client.send_end()

            await client.attend(stream)

    def _instances(self, names: Iterable[str]) -> list[str]:
        """Of services that may have been taken away since they were asked for."""
        with suppress(SpecError):
            return [summary.name for summary in self._supervisor.summaries(names)]
        return []

    async def _logs(self, request: Request, client: _Client) -> None:
        tail, since, until = request.parameter("tail"), _time(request, "since"), _time(request, "until")
        if tail and not (tail.isascii() and tail.isdecimal() and len(tail) < 6 and int(tail) <= MAX_TAIL):
            raise Refused(400, f"tail: expected 0 to {MAX_TAIL}")
        loggings = {name: it.logging for name, it in self._supervisor.instances(request.services()).items()}
        elsewhere = {name: logging.driver for name, logging in loggings.items() if logging.driver not in LOG_FILES}
        if elsewhere and request.services():
            problem = ", ".join(f"{name} logs to {driver}" for name, driver in elsewhere.items())
            raise Refused(409, f"{problem}: nothing of it is kept here")
        names = [name for name in loggings if name not in elsewhere]
        follow = request.parameter("follow", "0")
        if follow not in ("0", "1", "false", "true"):
            raise Refused(400, "follow: expected 0 or 1")
        if until and follow in ("1", "true"):
            raise Refused(400, "until: does not go with follow")
        told = _as_log_events if request.streams else _as_lines
        with ExitStack() as stack:
            readers = [
                stack.enter_context(closing(LogReader(self._log_dir / f"{name}.log", raw=loggings[name].driver == "raw")))
                for name in names
            ]
            records = so_far(readers, since=since, until=until, tail=int(tail) if tail else None)

            async def stream() -> None:
                await client.send_head(200, EVENT_STREAM if request.streams else JSON_LINES)
                while some := await trio.to_thread.run_sync(lambda: list(islice(records, _RECORDS))):
                    await client.send_data(told(some))
                if follow in ("1", "true"):
                    await self._follow(names, readers, client, told)
                await client.send_end()

            await client.attend(stream)

    async def _follow(
        self, names: list[str], readers: list[LogReader], client: _Client, told: Callable[[Iterable[Record]], bytes]
    ) -> None:
        ending = False
        while True:
            with self._feed.following(names) as news:  # from before we look, so that nothing falls between
                some = sorted(record for reader in readers for record in reader.read())
                if some:
                    await client.send_data(told(some))
                elif ending:
                    return
                else:
                    await news.wait()
                    ending = self._feed.closed

    # ---- commands ----

    async def _start(self, request: Request, client: _Client) -> Any:
        return _results(self._supervisor.start(request.texts("services")))

    async def _stop(self, request: Request, client: _Client) -> Any:
        return _results(self._supervisor.stop(request.texts("services"), _grace(request)))

    async def _restart(self, request: Request, client: _Client) -> Any:
        return _results(self._supervisor.restart(request.texts("services"), _grace(request)))

    async def _kill(self, request: Request, client: _Client) -> Any:
        try:
            signal = parse_signal(request.take("signal", (str, int), "KILL"))
        except ValueError as error:
            raise Refused(400, f"signal: {error}") from None
        return _results(self._supervisor.kill(request.texts("services"), signal))

    async def _reset_failed(self, request: Request, client: _Client) -> Any:
        return _results(self._supervisor.reset_failed(request.texts("services")))

    async def _scale(self, request: Request, client: _Client) -> Any:
        service, count = request.take("service", str), request.take("count", int)
        if service is None or count is None:
            raise Refused(400, "expected service and count")
        return _results(self._supervisor.scale(service, count))

    async def _reload(self, request: Request, client: _Client) -> Any:
        async with self._reloading:
            project = await trio.to_thread.run_sync(self._reread)
            if project.name != self._name:
                raise Refused(422, f'name: the project that runs is "{self._name}"; expected the same')
            changes = difference(self._supervisor.services, project.services)
            return {"difference": asdict(changes), "results": _results(self._supervisor.reload(project))}

    async def _upgrade(self, request: Request, client: _Client) -> Any:
        if self._on_upgrade is None:
            raise Refused(409, "its containers would not outlive that; start the project with tinyvisor up -d --live")
        if len(request.fds) != 1:
            raise Refused(400, "expected an fd")
        await trio.to_thread.run_sync(self._reread)  # what is wrong now would be wrong then
        word = os.dup(request.fds[0])
        try:
            self._on_upgrade(word)
        except trio.WouldBlock:
            os.close(word)
            raise Refused(409, "it is about to start anew already") from None
        return {"pid": os.getpid()}

    async def _down(self, request: Request, client: _Client) -> Any:
        grace = _grace(request)
        client.awaits_end = True
        self._supervisor.request_stop(grace)
        await client.attend(self._end.wait)
        return [asdict(summary) for summary in self._summaries]

    async def _exec(self, request: Request, client: _Client) -> Any:
        command, environment = request.texts("command"), request.take("environment", dict, {})
        if not command:
            raise Refused(400, "command: expected at least one word")
        if not all(isinstance(value, str) for value in environment.values()):
            raise Refused(400, "environment: expected texts")
        terminal = request.take("terminal", list)
        if terminal is not None and not (len(terminal) == 2 and all(type(it) is int and 0 <= it < 65536 for it in terminal)):
            raise Refused(400, "terminal: expected [rows, columns]")
        if len(request.fds) not in ((1,) if terminal else (0, STDIO)):
            raise Refused(400, "expected one fd, a socket" if terminal else f"expected {STDIO} fds or none")
        if terminal and not stat.S_ISSOCK(os.fstat(request.fds[0]).st_mode):
            raise Refused(400, "terminal: the fd is no socket")
        running = [it for it in self._supervisor.containers((request.name,)).values() if it is not None]
        if not running:
            raise Refused(409, f"{request.name} is not running")
        options: dict[str, Any] = {
            "user": request.take("user", str),
            "working_dir": request.take("working_dir", str),
            "environment": environment or None,
            "timeout": request.take("timeout", (int, float)),
        }
        return await client.attend(lambda: _run(running[0], tuple(command), request.fds, options, terminal))

    async def _attach(self, request: Request, client: _Client) -> Any:
        if len(request.fds) != 1 or not stat.S_ISSOCK(os.fstat(request.fds[0]).st_mode):
            raise Refused(400, "expected one fd, a socket")
        with self._supervisor.tapped(request.name) as (container, tap):
            with socket.socket(fileno=os.dup(request.fds[0])) as theirs:
                theirs.setblocking(False)
                _introduce(theirs, container)
                await client.attend(lambda: _hand_over(tap, theirs))
        if tap.exit is None:
            raise Refused(409, f"{request.name}: its output came faster than it was read; tinyvisor logs has all of it")
        return {"exit": asdict(tap.exit)}


def _make_room(clients: dict[_Client, None], most: int) -> bool:
    """Whether there is a place for one more; for that, who has not yet asked for anything for the longest is cut off."""
    if len(clients) < most:
        return True
    idle = next((client for client in clients if not client.has_asked), None)
    if idle is None:
        return False
    clients.pop(idle)
    idle.scope.cancel()
    return True


_Handler = Callable[[Control, Request, "_Client"], Awaitable[Any]]

_ROUTES: Final[Mapping[str, tuple[tuple[str, _Handler], ...]]] = {
    "GET": (
        ("/v1/project", Control._project),
        ("/v1/openapi.json", Control._openapi),
        ("/v1/services", Control._services),
        ("/v1/services/*", Control._inspect),
        ("/v1/wait", Control._wait),
        ("/v1/stats", Control._stats),
        ("/v1/events", Control._events),
        ("/v1/logs", Control._logs),
        ("/metrics", Control._metrics),
    ),
    "POST": (
        ("/v1/services/start", Control._start),
        ("/v1/services/stop", Control._stop),
        ("/v1/services/restart", Control._restart),
        ("/v1/services/kill", Control._kill),
        ("/v1/services/reset-failed", Control._reset_failed),
        ("/v1/services/*/exec", Control._exec),
        ("/v1/services/*/attach", Control._attach),
        ("/v1/scale", Control._scale),
        ("/v1/reload", Control._reload),
        ("/v1/upgrade", Control._upgrade),
        ("/v1/down", Control._down),
    ),
}


async def _accept(server: trio.socket.SocketType) -> trio.socket.SocketType:
    while True:
        try:
            connection, _ = await server.accept()
        except OSError:  # too many open files, mostly: what is open may be closed by and by
            await trio.sleep(0.1)
        else:
            return connection


def _route(method: str, path: str) -> tuple[_Handler, str]:
    """Who answers, and the NAME in `path`."""
    allowed = []
    for verb, routes in _ROUTES.items():
        for pattern, handler in routes:
            found = re.fullmatch(pattern.replace("*", "([^/]+)"), path)
            if found is not None and verb == method:
                return handler, unquote(found[1]) if found.groups() else ""
            if found is not None:
                allowed.append(verb)
    if allowed:
        raise Refused(405, f"{path} takes {', '.join(allowed)}", headers=(("Allow", ", ".join(allowed)),))
    raise Refused(404, "there is no such path")


async def _run(
    container: Container, command: tuple[str, ...], fds: tuple[int, ...], options: dict[str, Any], terminal: list[int] | None
) -> Any:
    if not fds:
        exit, output = await run_inside(container, command, **options)
        return {"exit": asdict(exit), "output": output.decode("utf-8", "replace")}
    try:
        if terminal:
            exit = await _on_a_terminal(container, command, fds[0], options, (terminal[0], terminal[1]))
        else:
            exit = await container.exec(command, stdin=fds[0], stdout=fds[1], stderr=fds[2], **options)
    except LaunchError as error:  # 127 and 126 as in shells
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        code = (127 if missing else 126) if error.step.startswith("exec ") else 125
        exit = Exit(status="sandbox_error", exit_code=code, reason=error.problem)
    return {"exit": asdict(exit), "output": None}


async def _on_a_terminal(
    container: Container, command: tuple[str, ...], fd: int, options: dict[str, Any], size: tuple[int, int]
) -> Exit:
    """The other side of its terminal goes to who asked, by the socket `fd`: what passes over it is not for us to carry."""
    given = {name: value for name, value in options.items() if value is not None}
    async with container.open_exec(command, tty=True, terminal=size, **given) as process:
        assert process.terminal is not None
        with socket.socket(fileno=os.dup(fd)) as theirs, suppress(OSError):  # gone: `attend` ends us
            socket.send_fds(theirs, [b"\0"], [process.terminal], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return await process.wait()


def _introduce(theirs: socket.socket, container: Container) -> None:
    """Sends what can be written to, where there is something."""
    fd = container.terminal if container.terminal is not None else container.stdin.fileno() if container.stdin is not None else -1
    with suppress(OSError):  # gone: `attend` ends us
        socket.send_fds(theirs, [b"\0"], [fd] if fd >= 0 else [], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


async def _hand_over(tap: Tap, theirs: socket.socket) -> None:
    """For as long as they take it: somebody may have stopped the terminal that shows it."""
    connection = trio.socket.from_stdlib_socket(theirs)
    while data := memoryview(await tap.take()):
        while data:
            try:
                data = data[await connection.send(data, socket.MSG_NOSIGNAL) :]
            except OSError:
                raise _Gone from None


def _grace(request: Request) -> float | None:
    grace = request.take("timeout", (int, float))
    if grace is not None and not 0 <= grace <= MAX_DURATION:
        raise Refused(400, "timeout: expected seconds, 0 or more")
    return cast("float | None", grace)


def _time(request: Request, key: str) -> str:
    value = request.parameter(key)
    if value and not _is_time(value):
        raise Refused(400, f"{key}: expected a time such as 2026-01-02T03:04:05Z")
    return value


def _is_time(text: str) -> bool:
    with suppress(ValueError):
        return _TIME.fullmatch(text) is not None and datetime.fromisoformat(text) is not None
    return False


async def _before(end: float, wait: Callable[[], Awaitable[list[_T]]]) -> list[_T]:
    """What `wait` gives; nothing where it has not come at `end`."""
    with trio.move_on_at(end):
        return await wait()
    return []


def _results(results: tuple[CommandResult, ...]) -> list[dict[str, Any]]:
    return [asdict(result) | {"text": result.describe()} for result in results]


def _probe(probe: Any) -> dict[str, Any]:
    return asdict(probe) | {"output": probe.output.decode("utf-8", "replace")}


def _processes(container: Container | None) -> list[str]:
    return [] if container is None else list(container.processes())


def _problems(*lines: str) -> dict[str, Any]:
    return {"problems": lines}


def _as_lines(records: Iterable[Record]) -> bytes:
    return "".join(json.dumps(record.to_json()) + "\n" for record in records).encode()


def _as_log_events(records: Iterable[Record]) -> bytes:
    return b"".join(_as_event("log", record.to_json()) for record in records)


def _as_event(name: str, value: Mapping[str, Any]) -> bytes:
    """Source: WHATWG HTML, "Server-sent events"; JSON has no newlines of its own."""
    return f"event: {name}\ndata: {json.dumps(value)}\n\n".encode()


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not INTERVALS[0] <= seconds <= INTERVALS[1]:
        raise Refused(400, f"interval: expected {INTERVALS[0]:g} to {INTERVALS[1]:g} seconds")
    return seconds


def _now() -> str:
    return _rfc3339(time.time())


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Client:
    """One connection.

    Attributes:
        scope: cancelled to cut it off.
        has_asked: its request is here.
        awaits_end: of something, which we owe it the news of.
        public: it may be anybody.
    """

    def __init__(self, connection: trio.socket.SocketType, *, public: bool = False) -> None:
        self.public = public
        self.scope = trio.CancelScope()
        self.has_asked = False
        self.awaits_end = False
        self._connection = connection
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._wants_head_only = False
        self._fds: list[int] = []

    def close(self) -> None:
        self._connection.close()
        while self._fds:
            os.close(self._fds.pop())

    async def receive(self) -> Request:
        """The request, whole.

        Raises:
            Refused: it is too long, too slow or makes no sense.
            _Gone: there is none.
        """
        with trio.move_on_after(REQUEST_PATIENCE):
            try:
                request = await self._receive()
            except h11.RemoteProtocolError as error:
                raise Refused(error.error_status_hint, f"not a request: {error}") from None
            self.has_asked = True
            return request
        raise Refused(408, f"the request took more than {REQUEST_PATIENCE:.0f} s")

    async def _receive(self) -> Request:
        head, body = await self._next_event(), bytearray()
        if not isinstance(head, h11.Request):
            raise _Gone
        self._wants_head_only = head.method == b"HEAD"
        while isinstance(event := await self._next_event(), h11.Data):
            body += event.data
            if len(body) > MAX_BODY:
                raise Refused(413, f"the body is longer than {MAX_BODY} bytes")
        path, _, query = head.target.decode("ascii", "replace").partition("?")
        try:
            parameters = parse_qs(query, keep_blank_values=True, max_num_fields=1000)
        except ValueError:
            raise Refused(400, "the query has too many parameters") from None
        accepted = b",".join(value for name, value in head.headers if name == b"accept")
        streams = EVENT_STREAM.encode() in accepted
        return Request(head.method.decode("ascii"), path, parameters, _parse(bytes(body)), tuple(self._fds), streams=streams)

    async def _next_event(self) -> h11.Event | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            self._http.receive_data(await self._read())
        return cast("h11.Event | type[h11.PAUSED]", event)

    async def _read(self) -> bytes:
        space = socket.CMSG_SPACE(STDIO * array.array("i").itemsize)
        data, ancillary, _, _ = await self._connection.recvmsg(_CHUNK, space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                self._fds += fds
        if len(self._fds) > STDIO:
            raise Refused(400, f"more than {STDIO} fds")
        return data

    async def attend(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Does `work` as long as the client is there.

        Raises:
            _Gone: it went.
        """
        result: list[_T] = []
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope)
            try:
                result.append(await work())
            except Exception as error:  # raised outside: the nursery would wrap it
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if not result:
            raise _Gone
        return result[0]

    async def _watch(self, scope: trio.CancelScope) -> None:
        with suppress(OSError, Refused):
            while await self._read():
                pass
        scope.cancel()

    async def send_json(self, status: int, value: Any, headers: Iterable[tuple[str, str]] = ()) -> None:
        """The whole answer."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            raise _Gone  # a stream that broke off: the client sees that it has no end
        await self.send_whole(status, JSON, json.dumps(value).encode() + b"\n", *headers)

    async def send_whole(self, status: int, kind: str, data: bytes, *headers: tuple[str, str]) -> None:
        await self.send_head(status, kind, ("Content-Length", str(len(data))), *headers)
        await self.send_data(data)
        await self.send_end()

    async def send_head(self, status: int, kind: str, *headers: tuple[str, str]) -> None:
        await self._send(h11.Response(status_code=status, headers=[("Content-Type", kind), ("Connection", "close"), *headers]))

    async def send_data(self, data: bytes) -> None:
        if not self._wants_head_only:  # to which h11 lets no body be sent
            await self._send(h11.Data(data=data))

    async def send_end(self) -> None:
        await self._send(h11.EndOfMessage())

    async def _send(self, event: h11.Event) -> None:
        data = memoryview(self._http.send(event) or b"")
        while data:
            with trio.move_on_after(WRITE_PATIENCE) as patience:
                data = data[await self._connection.send(data) :]
            if patience.cancelled_caught:
                raise _Gone


def _parse(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused(400, "the body is not a JSON object")
    return value


# ---- the socket ----


def is_welcome(connection: trio.socket.SocketType, group: int | None = None) -> bool:
    """Whether the other side is our own user, root, or of `group`, as it was when it connected."""
    try:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, gid = struct.unpack("iII", credentials)
        return uid in (0, os.geteuid()) or (group is not None and group in (gid, *_groups_of(connection)))
    except OSError:
        return False


def _groups_of(connection: trio.socket.SocketType) -> Iterable[int]:
    """256 at most, for Python asks for no more; who is in more is refused (ERANGE). Source: net/core/sock.c of Linux 4.13."""
    found = array.array("I")
    found.frombytes(connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1024))
    return found


@contextmanager
def listening(path: Path, group: int | None = None) -> Iterator[socket.socket]:
    """A socket at `path`, for who holds the project's lock; gone afterwards.

    Args:
        group: a gid, whose members may connect, too.

    Raises:
        TinyvisorError: somebody listens there, or it is something else.
        HostError: the directory is missing, or others than its owner may write to it.
    """
    _check_directory(path.parent)
    _remove_stale(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        os.fchmod(listener.fileno(), 0o600)  # before bind: the file never has another mode
        try:
            listener.bind(os.fspath(path))
            if group is not None:
                os.chown(path, -1, group)
                path.chmod(0o660)
        except OSError as error:
            raise HostError(f"a socket at {path} ({error.strerror or error})", "make the directory writable") from error
        try:
            listener.listen(BACKLOG)
            listener.setblocking(False)
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _check_directory(directory: Path) -> None:
    try:
        status = os.lstat(directory)
    except OSError as error:
        raise HostError(f"{directory} ({error.strerror})", "make it") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise HostError(f"{directory} as a directory that only we can write to", f"chown and chmod go-w {directory}")


def _remove_stale(path: Path) -> None:
    """What a killed daemon has left. That nobody listens is the kernel's word."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise TinyvisorError(f"{path} is in the way, and no socket") from None
            path.unlink()
            return
        except OSError as error:
            raise TinyvisorError(f"{path}: {error.strerror or error}") from error
    raise TinyvisorError(f"another supervisor listens at {path}")
