"""The control API against a supervisor on the fake runtime."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.bench import Bench, bench, service
from tests.fake_runtime import Script, failure
from tinyvisor.control import MAX_BODY, MAX_CLIENTS, MAX_HEAD, WRITE_PATIENCE, Control, Feed, is_welcome, listening
from tinyvisor.errors import ConfigError, ConfigProblem, HostError, TinyvisorError
from tinyvisor.logs import MISSING, LogReader, so_far
from tinyvisor.metrics import Tally
from tinyvisor.runtime.logfile import LogFile
from tinyvisor.spec import Logging, Project
from tinyvisor.state import Event, Exit

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock(autojump_threshold=0.01)}


@dataclass
class Rig:
    """A control socket's clients, without the socket file.

    Attributes:
        project: what the files say at the next reload, or what is wrong with them.
    """

    control: Control
    bench: Bench
    nursery: trio.Nursery
    problems: list[str]
    project: Project | ConfigError | Exception

    def connect(self) -> trio.SocketStream:
        ours, theirs = socket.socketpair()
        self.nursery.start_soon(self.control.serve_client, trio.socket.from_stdlib_socket(theirs))
        ours.setblocking(False)
        return trio.SocketStream(trio.socket.from_stdlib_socket(ours))

    async def raw(self, data: bytes) -> bytes:
        async with self.connect() as stream:
            await stream.send_all(data)
            return await read_all(stream)

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        content = b"" if body is None else json.dumps(body).encode()
        answer = await self.raw(request(method, path, content))
        head, _, rest = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(rest)


def request(method: str, path: str, body: bytes = b"") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def read_all(stream: trio.SocketStream) -> bytes:
    found = b""
    while data := await stream.receive_some():
        found += data
    return found


@asynccontextmanager
async def rig(tmp_path: Path, *services: Any, **options: Any) -> AsyncIterator[Rig]:
    feed, tally, problems = Feed(), Tally(), list[str]()

    def on_event(event: Event) -> None:
        feed.event(event)
        tally.event(event)

    b = bench(*services, log_dir=tmp_path, on_event=on_event, on_output=feed.output, **options)

    def reread() -> Project:
        if isinstance(found.project, Exception):
            raise found.project
        return found.project

    about = {"paths": ["/x"], "log_dir": str(tmp_path)}
    control = Control(
        b.supervisor, "test", feed=feed, reread=reread, log_dir=tmp_path, tally=tally, about=about, on_problem=problems.append
    )
    async with trio.open_nursery() as nursery:
        found = Rig(control, b, nursery, problems, Project(name="test", services={}))
        async with b.live():
            yield found
        control.finish(b.supervisor.summaries())
        await control.drained(math.inf)  # threads take no time of the mock clock
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_ps_and_inspect(tmp_path: Path) -> None:
    async with rig(tmp_path, service("a"), service("b", scale=2)) as r:
        assert (await r.ask("GET", "/v1/project"))[1]["name"] == "test"
        status, found = await r.ask("GET", "/v1/services")
        assert status == 200
        assert [(item["name"], item["state"]) for item in found] == [("a", "running"), ("b-1", "running"), ("b-2", "running")]
        assert all(item["pid"] > 100 for item in found)
        _, found = await r.ask("GET", "/v1/services/b")
        assert [item["processes"] for item in found] == [[f"b-{n}[{item['pid']}]"] for n, item in enumerate(found, 1)]
        assert [item["config"]["command"] for item in found] == [["x"], ["x"]]
        assert [(item["started_at"] is None, item["next_at"]) for item in found] == [(False, None)] * 2
        _, found = await r.ask("GET", "/v1/stats?service=a")
        assert found[0]["name"] == "a"
        assert found[0]["memory"] == 4096


async def test_commands(tmp_path: Path) -> None:
    async with rig(tmp_path, service("a"), service("b")) as r:
        status, found = await r.ask("POST", "/v1/services/stop", {"services": ["a"]})
        assert (status, found[0]["name"], found[0]["before"]) == (200, "a", "running")
        _, found = await r.ask("GET", "/v1/wait?service=a")
        assert found[0]["state"] == "stopped"
        assert r.bench.states()["b"] == "running"
        await r.ask("POST", "/v1/services/start", {"services": ["a"]})
        _, found = await r.ask("GET", "/v1/wait?service=a&until=running")
        assert found[0]["state"] == "running"
        await r.ask("POST", "/v1/services/kill", {"services": ["b"], "signal": "HUP"})
        await wait_all_tasks_blocked()
        assert r.bench.runtime.order("signal 1") == ["b"]
        _, found = await r.ask("POST", "/v1/scale", {"service": "a", "count": 2})
        await wait_all_tasks_blocked()
        assert set(r.bench.states()) == {"a", "a-2", "b"}
        assert (await r.ask("POST", "/v1/services/restart", {"services": ["a-2"]}))[0] == 200
        assert (await r.ask("POST", "/v1/services/reset-failed"))[0] == 200


async def test_reload_with_problems_changes_nothing(tmp_path: Path) -> None:
    async with rig(tmp_path, service("a")) as r:
        r.project = ConfigError([ConfigProblem(Path("a.yaml"), 3, 1, "comand", "unknown key")])
        assert await r.ask("POST", "/v1/reload") == (422, {"problems": ["a.yaml:3:1: comand: unknown key"]})
        r.project = Project(name="other", services={})
        assert (await r.ask("POST", "/v1/reload"))[0] == 422
        assert r.bench.states() == {"a": "running"}
        r.project = Project(name="test", services={"b": service("b")})
        status, found = await r.ask("POST", "/v1/reload")
        assert status == 200
        assert found["difference"] == {"added": ["b"], "removed": ["a"], "changed": [], "unchanged": []}
        await r.bench.supervisor.wait(["b"], "running")


async def test_down_answers_when_all_is_down(tmp_path: Path) -> None:
    async with rig(tmp_path, service("a"), scripts={"a": [Script(stop_seconds=5)]}) as r:
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await r.ask("POST", "/v1/down"))

        r.nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        assert not answers
    assert [(status, found[0]["state"]) for status, found in answers] == [(200, "stopped")]


async def test_who_asked_for_the_end_gets_all_of_the_answer_also_where_he_is_late(tmp_path: Path) -> None:
    """More than a socket's buffers hold, of a thousand services."""
    many = tuple(service(f"s{number}") for number in range(1000))
    async with trio.open_nursery() as nursery:
        drained: list[float] = []
        async with rig(tmp_path, *many) as r:
            waiting = r.connect()
            await waiting.send_all(request("POST", "/v1/down"))
            await r.bench.supervisor.wait(until="down")
            r.control.finish(r.bench.supervisor.summaries())

            async def drain() -> None:
                await r.control.drained(1.0)
                drained.append(trio.current_time())

            nursery.start_soon(drain)
            await trio.sleep(5)
            assert not drained
            head, _, rest = (await read_all(waiting)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert len(json.loads(rest)) == 1000
            await waiting.aclose()
            await wait_all_tasks_blocked()
            assert drained


async def test_events_stream(tmp_path: Path) -> None:
    async with rig(tmp_path, service("a")) as r, r.connect() as stream:
        await stream.send_all(request("GET", "/v1/events"))
        await wait_all_tasks_blocked()
        r.bench.supervisor.stop(["a"])
        text = b""
        while b"event: ServiceStopped\n" not in text:
            text += await stream.receive_some()
        assert text.index(b"event: ServiceStopping\n") < text.index(b"event: ServiceExited\n")


async def told_events(r: Rig, query: str) -> list[tuple[str, str]]:
    answer = (await r.raw(request("GET", f"/v1/events?{query}"))).decode()
    told = [json.loads(data) for data in re.findall(r"^data: (.*)$", answer, re.MULTILINE)]
    return [(it["event"], it["name"]) for it in told]


async def test_past_events_as_far_as_they_are_known(tmp_path: Path) -> None:
    async with rig(tmp_path, service("a"), service("b", scale=2)) as r:
        began = "2000-01-01T00:00:00Z"
        now = (datetime.now(UTC) + timedelta(seconds=1)).isoformat().replace("+00:00", "Z")
        started = {("ServiceStarted", name) for name in ("a", "b-1", "b-2")}
        assert set(await told_events(r, f"since={began}&until={now}")) == started
        assert await told_events(r, f"since={began}&until={began}") == []
        assert await told_events(r, f"until={began}") == []
        assert set(await told_events(r, f"since={began}&until={now}&service=b")) == started - {("ServiceStarted", "a")}
        async with r.connect() as stream:
            await stream.send_all(request("GET", f"/v1/events?since={began}&service=b-2"))
            await wait_all_tasks_blocked()
            r.bench.supervisor.stop(["a", "b"])
            text = b""
            while b"event: ServiceStopped\n" not in text:
                text += await stream.receive_some()
            assert re.findall(rb"event: (.*)\n", text) == [
                b"ServiceStarted",
                b"ServiceStopping",
                b"ServiceExited",
                b"ServiceStopped",
            ]
        for query in ("since=yesterday", "until=2026-02-31T00:00:00Z"):
            assert (await r.ask("GET", f"/v1/events?{query}"))[0] == 400


async def test_no_more_events_are_kept_than_a_reader_takes_at_once() -> None:
    from tinyvisor.control import MAX_QUEUED
    from tinyvisor.state import ServiceStopped

    feed = Feed()
    for number in range(MAX_QUEUED + 3):
        feed.event(ServiceStopped(str(number)))
    with feed.listen("2000-01-01T00:00:00Z") as listener:
        told = await listener.take()
    assert [it["name"] for it in told] == [str(number) for number in range(3, MAX_QUEUED + 3)]


async def test_reader_that_does_not_read_is_told_what_it_missed() -> None:
    feed = Feed()
    from tinyvisor.control import MAX_QUEUED
    from tinyvisor.state import ServiceStopped

    with feed.listen() as listener:
        for _ in range(MAX_QUEUED + 3):
            feed.event(ServiceStopped("a"))
        told = await listener.take()
        assert len(told) == MAX_QUEUED + 1
        assert (told[-1]["event"], told[-1]["events"]) == ("lost", 3)
        feed.close()
        assert await listener.take() == []


async def test_logs_and_following_them(tmp_path: Path) -> None:
    output = ((0.0, "stdout", b"one\ntwo\n"), (60.0, "stderr", b"three\n"))
    async with rig(tmp_path, service("a"), scripts={"a": [Script(output=output)]}) as r:
        await wait_all_tasks_blocked()
        answer = await r.raw(request("GET", "/v1/logs?tail=1"))
        assert b'"text": "two"' in answer
        assert b'"text": "one"' not in answer
        async with r.connect() as stream:
            await stream.send_all(request("GET", "/v1/logs?service=a&follow=1"))
            text = b""
            while b'"text": "three"' not in text:
                text += await stream.receive_some()
        assert text.index(b'"one"') < text.index(b'"two"') < text.index(b'"three"')


async def test_logs_that_are_kept_elsewhere_and_raw_ones(tmp_path: Path) -> None:
    logging = {"a": Logging(driver="none"), "b": Logging(driver="raw")}
    services = [service(name, logging=it) for name, it in logging.items()]
    scripts = {name: [Script(output=((0.0, "stderr", b"of " + name.encode() + b"\n"),))] for name in logging}
    async with rig(tmp_path, *services, scripts=scripts) as r:
        await wait_all_tasks_blocked()
        answer = await r.raw(request("GET", "/v1/logs"))
        assert b'{"time": "", "name": "b", "stream": "stdout", "full": true, "text": "of b"}' in answer
        assert b"of a" not in answer
        status, problem = await r.ask("GET", "/v1/logs?service=a")
        assert (status, problem) == (409, {"problems": ["a logs to none: nothing of it is kept here"]})


@pytest.mark.parametrize("files", [2, 3])
@pytest.mark.parametrize("pause", [1, 5, 30])
def test_a_reader_that_was_too_slow_says_so_where_something_is_missing(tmp_path: Path, files: int, pause: int) -> None:
    """Three records a file; it looks after every `pause` of them."""
    log, reader, seen = LogFile(tmp_path / "a.log", max_size=120, max_files=files), LogReader(tmp_path / "a.log"), []
    try:
        for number in range(10, 99):
            log.write("stdout", b"%d\n" % number)
            if number % pause == 0:
                seen += [int(record.text) if record.text != MISSING else -1 for record in reader.read()]
        while records := reader.read():
            seen += [int(record.text) if record.text != MISSING else -1 for record in records]
    finally:
        log.close()
        reader.close()
    gaps = [seen[index + 1] - seen[index - 1] for index, number in enumerate(seen) if number < 0]
    numbers = [number for number in seen if number > 0]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 98
    assert all(gap > 1 for gap in gaps)
    assert len(numbers) + sum(gap - 1 for gap in gaps) == numbers[-1] - numbers[0] + 1, "nothing is missing but what was told"
    assert bool(gaps) == (pause > 1)


def test_reader_goes_through_rotations_without_a_gap(tmp_path: Path) -> None:
    log, reader, seen = LogFile(tmp_path / "a.log", max_size=200, max_files=3), LogReader(tmp_path / "a.log"), []
    try:
        for number in range(40):
            log.write("stdout", b"%d\n" % number)
            if number % 3 == 2:
                while records := reader.read():
                    seen += records
        seen += list(so_far([reader]))
        assert [int(record.text) for record in seen] == list(range(40))
        fresh = LogReader(tmp_path / "a.log")
        assert [int(record.text) for record in so_far([fresh], tail=2)] == [38, 39]
        fresh.close()
    finally:
        reader.close()
        log.close()


async def test_exec_gives_output_back(tmp_path: Path) -> None:
    script = Script(exec=lambda seconds, command: (0.0, failure(3), b"hello " + command[0].encode()))
    async with rig(tmp_path, service("a"), service("b"), scripts={"a": [script]}) as r:
        status, found = await r.ask(
            "POST", "/v1/services/a/exec", {"command": ["ls"], "user": "nobody", "environment": {"A": "1"}}
        )
        assert (status, found["output"], found["exit"]["exit_code"]) == (200, "hello ls", 3)
        assert r.bench.runtime.executed == [("a", ("ls",), "nobody", None, {"A": "1"})]
        r.bench.supervisor.stop(["b"])
        await r.bench.supervisor.wait(["b"])
        assert (await r.ask("POST", "/v1/services/b/exec", {"command": ["ls"]}))[0] == 409


async def test_exec_gets_the_callers_own_fds(tmp_path: Path) -> None:
    script = Script(exec=lambda seconds, command: (0.0, Exit(status="ok", exit_code=0), b"into the pipe"))
    async with rig(tmp_path, service("a"), scripts={"a": [script]}) as r, r.connect() as stream:
        reading, writing = os.pipe()
        try:
            body = request("POST", "/v1/services/a/exec", b'{"command": ["x"]}')
            with socket.socket(fileno=os.dup(stream.socket.fileno())) as raw:
                socket.send_fds(raw, [body], [0, writing, writing])
            answer = await read_all(stream)
            assert answer.startswith(b"HTTP/1.1 200")
            assert os.read(reading, 100) == b"into the pipe"
        finally:
            os.close(writing)
            assert os.read(reading, 1) == b""  # the daemon has let go of its copies
            os.close(reading)


async def test_a_terminal_can_be_handed_to_a_socket_only(tmp_path: Path) -> None:
    async with rig(tmp_path, service("a")) as r, r.connect() as stream:
        with open(os.devnull) as null, socket.socket(fileno=os.dup(stream.socket.fileno())) as raw:
            body = request("POST", "/v1/services/a/exec", b'{"command": ["x"], "terminal": [30, 100]}')
            socket.send_fds(raw, [body], [null.fileno()])
        answer = await read_all(stream)
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"the fd is no socket" in answer


async def test_exec_hands_out_the_other_side_of_a_terminal(tmp_path: Path) -> None:
    script = Script(exec=lambda seconds, command: (0.0, failure(4), b"on a screen"))
    async with rig(tmp_path, service("a"), scripts={"a": [script]}) as r, r.connect() as stream:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs, socket.socket(fileno=os.dup(stream.socket.fileno())) as raw:
                body = request("POST", "/v1/services/a/exec", b'{"command": ["x"], "terminal": [30, 100]}')
                socket.send_fds(raw, [body], [theirs.fileno()])
            answer = await read_all(stream)
            assert b'"exit_code": 4' in answer or b'"exit_code":4' in answer, answer
            _, (master,), _, _ = socket.recv_fds(ours, 1, 1)
            assert ours.recv(1) == b"", "the daemon has let go of its copy"
        assert os.read(master, 100) == b"on a screen"
        os.close(master)


@pytest.mark.parametrize(
    "method, path, body, status",
    [
        ("POST", "/v1/services/a/exec", {"command": ["x"], "terminal": [30]}, 400),
        ("POST", "/v1/services/a/exec", {"command": ["x"], "terminal": [30, -1]}, 400),
        ("POST", "/v1/services/a/exec", {"command": ["x"], "terminal": [30, 100]}, 400),
        ("GET", "/", None, 404),
        ("GET", "/v1/services/nobody", None, 404),
        ("GET", "/v1/logs?service=..%2f..%2fetc", None, 404),
        ("GET", "/v1/services/..%2fa", None, 404),
        ("GET", "/v1/logs?tail=-1", None, 400),
        ("GET", "/v1/logs?since=yesterday", None, 400),
        ("GET", "/v1/logs?until=2026-01-02T03:04:05Z&follow=1", None, 400),
        ("GET", "/v1/wait?until=never", None, 400),
        ("DELETE", "/v1/services/a", None, 405),
        ("GET", "/v1/down", None, 405),
        ("POST", "/v1/services/stop", [1], 400),
        ("POST", "/v1/services/stop", {"services": "a"}, 400),
        ("POST", "/v1/services/stop", {"services": ["nobody"]}, 404),
        ("POST", "/v1/services/stop", {"timeout": -1}, 400),
        ("POST", "/v1/services/restart", {"timeout": "1"}, 400),
        ("POST", "/v1/down", {"timeout": float("inf")}, 400),
        ("POST", "/v1/services/kill", {"services": ["a"], "signal": "WRONG"}, 400),
        ("POST", "/v1/scale", {"service": "a", "count": True}, 400),
        ("POST", "/v1/scale", {"service": "a", "count": -1}, 400),
        ("POST", "/v1/services/a/exec", {"command": []}, 400),
        ("POST", "/v1/services/a/exec", {"command": ["x"], "environment": {"A": 1}}, 400),
    ],
)
async def test_refused(tmp_path: Path, method: str, path: str, body: Any, status: int) -> None:
    async with rig(tmp_path, service("a")) as r:
        found, answer = await r.ask(method, path, body)
        assert (found, len(answer["problems"])) == (status, 1)
        assert "\n" not in answer["problems"][0]
        assert r.bench.states() == {"a": "running"}


@pytest.mark.parametrize(
    "data, status",
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 2 * MAX_HEAD, b"431"),
        (request("POST", "/v1/down", b"{" + b" " * MAX_BODY), b"413"),
        (request("POST", "/v1/down", b"{"), b"400"),
        (request("POST", "/v1/down", b"[" * 100_000), b"400"),
        (b"GET /v1/project HTT", b"408"),
        (request("POST", "/v1/down", b"{}")[:-1], b"408"),
    ],
)
async def test_what_is_no_request(tmp_path: Path, data: bytes, status: bytes) -> None:
    async with rig(tmp_path, service("a")) as r:
        answer = await r.raw(data)
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert r.bench.states() == {"a": "running"}


async def test_only_one_asks_for_an_upgrade(tmp_path: Path) -> None:
    asked: list[int] = []

    def on_upgrade(fd: int) -> None:
        if asked:
            raise trio.WouldBlock
        asked.append(fd)

    async with rig(tmp_path, service("a")) as r:
        r.control._on_upgrade = on_upgrade
        before = len(os.listdir("/proc/self/fd"))
        for status in (b"200", b"409"):
            ours, theirs = socket.socketpair()
            r.nursery.start_soon(r.control.serve_client, trio.socket.from_stdlib_socket(theirs))
            with open(os.devnull, "wb") as word:
                socket.send_fds(ours, [request("POST", "/v1/upgrade")], [word.fileno()])
                ours.setblocking(False)
                async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
                    assert (await read_all(stream)).startswith(b"HTTP/1.1 " + status)
        os.close(*asked)
        assert len(os.listdir("/proc/self/fd")) == before


async def test_a_head_request_has_no_body_in_its_answer(tmp_path: Path) -> None:
    async with rig(tmp_path, service("a")) as r:
        for path in ("/v1/project", "/metrics", "/nowhere"):
            head, _, body = (await r.raw(request("HEAD", path))).partition(b"\r\n\r\n")
            assert (head.split()[1] in (b"404", b"405"), body) == (True, b"")
        assert (r.bench.states(), r.problems) == ({"a": "running"}, [])


async def test_a_bug_is_an_answer_and_not_the_end(tmp_path: Path) -> None:
    async with rig(tmp_path, service("a")) as r:
        r.project = ZeroDivisionError("a bug")
        assert (await r.ask("POST", "/v1/reload"))[0] == 500
        assert "ZeroDivisionError: a bug" in r.problems[0]
        assert (await r.ask("GET", "/v1/project"))[0] == 200


async def test_idle_clients_make_room(tmp_path: Path) -> None:
    async with rig(tmp_path, service("a")) as r:
        path = tmp_path / "run" / "x.sock"
        path.parent.mkdir(0o700)
        with listening(path) as listener:
            r.nursery.start_soon(r.control.serve, listener)
            idle = [await trio.open_unix_socket(path) for _ in range(MAX_CLIENTS + 50)]
            async with await trio.open_unix_socket(path) as stream:
                await stream.send_all(request("GET", "/v1/project"))
                assert (await read_all(stream)).startswith(b"HTTP/1.1 200")
            for each in idle:
                await each.aclose()


def test_the_socket_is_ours_alone(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    path = directory / "x.sock"
    with pytest.raises(HostError), listening(path):
        pass
    directory.mkdir(0o700)
    with listening(path):
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(TinyvisorError, match="another supervisor"), listening(path):
            pass
    assert not path.exists()
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    with listening(path):
        pass
    path.write_text("a file")
    with pytest.raises(TinyvisorError, match="no socket"), listening(path):
        pass
    assert path.read_text() == "a file"
    path.unlink()
    directory.chmod(0o777)
    with pytest.raises(HostError), listening(path):
        pass


_words = st.sampled_from(
    (
        *(
            b"GET ",
            b"POST ",
            b"/v1/services",
            b"/v1/",
            b" HTTP/1.1\r\n",
            b"Host: x\r\n",
            b"\r\n",
            b"Content-Length: ",
            b"9",
            b"{}",
        ),
        *(b"Transfer-Encoding: chunked\r\n", b"\0", b"\xff", b"Expect: 100-continue\r\n", b'{"services": ["a"]}'),
    )
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(_words | st.binary(max_size=20), max_size=12).map(b"".join), min_size=1, max_size=5))
def test_garbage_is_harmless(tmp_path: Path, pieces: list[bytes]) -> None:
    async def main() -> None:
        async with rig(tmp_path, service("a")) as r:
            for piece in pieces:
                answer = await r.raw(piece)
                assert not answer or answer.startswith(b"HTTP/1.1 ")
                assert b"HTTP/1.1 500" not in answer
            assert not r.problems
            assert (await r.ask("GET", "/v1/project"))[0] == 200

    trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes others")
def test_a_group_is_let_in_where_it_is_meant_to_be(tmp_path: Path) -> None:
    directory, path, group = tmp_path / "run", tmp_path / "run" / "x.sock", 54321
    directory.mkdir(0o750)
    os.chown(directory, 0, group)
    for parent in [tmp_path, *tmp_path.parents[:3]]:
        parent.chmod(parent.stat().st_mode | 0o111)
    code = "import os, socket, sys; os.setgroups(eval(sys.argv[1])); os.setgid(int(sys.argv[2])); os.setuid(12345)\n"
    code += "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[3]); print(s.recv(1) == b'y')"
    with listening(path, group) as listener:
        assert (path.stat().st_mode & 0o777, path.stat().st_gid) == (0o660, group)
        for groups, gid, welcome in (([1, group], 7, True), ([], group, True), ([1], 7, False)):
            words = [sys.executable, "-c", code, repr(groups), str(gid), str(path)]
            with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as asking:
                if welcome:
                    listener.settimeout(20)
                    connection = listener.accept()[0]
                    with connection:
                        assert is_welcome(connection, group)  # type: ignore[arg-type]
                        assert not is_welcome(connection)  # type: ignore[arg-type]
                        assert not is_welcome(connection, group + 1)  # type: ignore[arg-type]
                        connection.send(b"y")
                assert asking.communicate()[0] == ("True\n" if welcome else "")


async def test_stats_stream_until_a_service_goes(tmp_path: Path) -> None:
    async with rig(tmp_path, service("a"), service("b")) as r, r.connect() as stream:
        await stream.send_all(request("GET", "/v1/stats?interval=5").replace(b"Host: x", b"Accept: text/event-stream\r\nHost: x"))
        await trio.sleep(1)
        r.bench.supervisor.stop(["a"])
        await trio.sleep(6)
        text = (await stream.receive_some()).decode() + (await stream.receive_some()).decode()
        samples = [json.loads(line.removeprefix("data: "))["stats"] for line in text.splitlines() if line.startswith("data: ")]
        assert [[it["name"] for it in sample] for sample in samples[:2]] == [["a", "b"], ["b"]]


async def test_who_does_not_read_is_closed_and_holds_nothing_up(tmp_path: Path) -> None:
    """More than a socket's buffers hold, to a client that takes none of it."""
    output = tuple((0.0, "stdout", b"x" * 16000 + b"\n") for _ in range(100))
    async with rig(tmp_path, service("a"), scripts={"a": [Script(output=output)]}) as r, r.connect() as stream:
        await trio.sleep(1)
        await stream.send_all(request("GET", "/v1/logs"))
        await trio.sleep(WRITE_PATIENCE / 2)
        assert (await r.ask("GET", "/v1/project"))[0] == 200
        await trio.sleep(WRITE_PATIENCE)
        assert not (await read_all(stream)).endswith(b"0\r\n\r\n"), "cut off"


async def test_attached_output_comes_as_it_comes_and_input_goes_by_the_fd(tmp_path: Path) -> None:
    output = ((1.0, "stdout", b"prompt> "), (2.0, "stderr", b"bye\n"))
    async with rig(tmp_path, service("a"), scripts={"a": [Script(output=output, seconds=3.0, exit=failure(7))]}) as r:
        reading, writing = os.pipe()
        with open(writing, "wb") as r.bench.runtime.running["a"].stdin:
            async with r.connect() as stream:
                ours, theirs = socket.socketpair()
                with ours:
                    with theirs, socket.socket(fileno=os.dup(stream.socket.fileno())) as raw:
                        socket.send_fds(raw, [request("POST", "/v1/services/a/attach", b"{}")], [theirs.fileno()])
                    await wait_all_tasks_blocked()
                    first, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
                    assert first == b"\0"
                    os.write(fd, b"typed")
                    os.close(fd)
                    assert os.read(reading, 100) == b"typed"
                    await trio.sleep(1.5)
                    assert ours.recv(100) == b"prompt> ", "though it is no whole line"
                    answer = await read_all(stream)
                    assert ours.recv(100) == b"bye\n"
                    assert ours.recv(100) == b""
        os.close(reading)
        assert b'"exit_code": 7' in answer


async def test_who_is_attached_and_too_slow_is_told_so(tmp_path: Path) -> None:
    output = tuple((1.0, "stdout", b"x" * 15999 + b"\n") for _ in range(150))
    async with rig(tmp_path, service("a"), scripts={"a": [Script(output=output)]}) as r, r.connect() as stream:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs, socket.socket(fileno=os.dup(stream.socket.fileno())) as raw:
                socket.send_fds(raw, [request("POST", "/v1/services/a/attach", b"{}")], [theirs.fileno()])
            await trio.sleep(2)
            got = 0
            with suppress(BlockingIOError):
                while data := ours.recv(1 << 20, socket.MSG_DONTWAIT):
                    got += len(data)
                    await wait_all_tasks_blocked()
            answer = await read_all(stream)
        assert 0 < got < 150 * 16000
        assert answer.startswith(b"HTTP/1.1 409")
        assert b"faster than it was read" in answer
        assert r.bench.states() == {"a": "running"}
