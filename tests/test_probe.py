"""Probes of ports, against servers that mean well and others. The sockets are real, and this machine's own."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from tests.conftest import SLOWNESS
from tinyvisor.errors import LaunchError
from tinyvisor.probe import MAX_ANSWER, run_probe
from tinyvisor.spec import Healthcheck, Http, Tcp
from tinyvisor.state import Exit

pytestmark = pytest.mark.anyio
LONG = 30.0 * SLOWNESS
SHORT = 0.1
Serve = Callable[[trio.SocketStream], Awaitable[None]]


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


class Here:
    """A container whose network is this one."""

    async def open_socket(self, domain: int = socket.AF_INET) -> socket.socket:
        await trio.lowlevel.checkpoint()
        return socket.socket(domain, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)


@asynccontextmanager
async def server(serve: Serve, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Its port."""

    async def answer(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await serve(stream)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host=host)
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def answering(*parts: bytes) -> Serve:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some(4096)
        for part in parts:
            await stream.send_all(part)

    return serve


async def http(serve: Serve, timeout: float = LONG, **fields: object) -> Exit:
    async with server(serve) as port:
        return await run_probe(Here(), Healthcheck(http=Http(port=port, **fields), timeout=timeout))  # type: ignore[arg-type]


@pytest.mark.parametrize(("status", "good"), [(200, True), (204, True), (302, True), (399, True), (400, False), (503, False)])
async def test_good_answers(status: int, good: bool) -> None:
    exit = await http(answering(b"HTTP/1.1 %d Because\r\nLocation: http://192.0.2.1/\r\n\r\n" % status))
    assert (exit.status == "ok") == good
    assert good or exit.reason.endswith(f"/: status {status}")


async def test_the_request_is_what_was_asked_for() -> None:
    seen: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        seen.append(await stream.receive_some(4096))
        await stream.send_all(b"HTTP/1.1 418 x\r\n\r\n")

    exit = await http(serve, path="/health?a=b", headers={"Host": "example.org", "X-Y": "z"}, status=frozenset({418}))
    assert exit.status == "ok"
    lines = seen[0].split(b"\r\n")
    assert lines[0] == b"GET /health?a=b HTTP/1.1"
    assert {b"Host: example.org", b"X-Y: z", b"Connection: close"} <= set(lines)
    assert sum(line.lower().startswith(b"host:") for line in lines) == 1


async def test_informational_answers_come_before_the_answer() -> None:
    exit = await http(answering(b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"))
    assert exit.status == "ok"


async def endless(stream: trio.SocketStream, first: bytes, again: bytes) -> None:
    await stream.receive_some(4096)
    await stream.send_all(first)
    while True:
        await stream.send_all(again)


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 100),  # headers without end
        (b"HTTP/1.1 200 OK\r\nX: ", b"y" * 1000),  # one
        (b"HTTP/1.1 200 ", b"O" * 1000),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
        (b"", b"\r\n" * 1000),
    ],
)
async def test_an_answer_without_end_is_read_to_a_bound(first: bytes, again: bytes) -> None:
    exit = await http(lambda stream: endless(stream, first, again))
    assert exit.status == "nonzero_exit"
    assert len(exit.reason) < 300


async def test_a_body_without_end_is_not_read() -> None:
    exit = await http(lambda stream: endless(stream, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n"))
    assert exit.status == "ok"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "it closed the connection without an answer"),
        (b"HTTP/1.1 200", "does not speak HTTP"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak HTTP"),
        (b"\x1b[2J\x1b]0;x\x07\xff\x00 200 OK\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 99999 OK\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "does not speak HTTP"),
    ],
)
async def test_what_is_no_answer(answer: bytes, reason: str) -> None:
    exit = await http(answering(answer))
    assert exit.status == "nonzero_exit"
    assert reason in exit.reason
    assert exit.reason.isprintable()


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\nX: "])
async def test_who_does_not_answer_in_time(first: bytes) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(first)
        await trio.sleep_forever()

    exit = await http(serve, timeout=SHORT)
    assert (exit.status, "no answer within" in exit.reason) == ("time_limit", True)


async def drip(stream: trio.SocketStream) -> None:
    await stream.send_all(b"HTTP/1.1 200 OK\r\n")
    while True:
        await stream.send_all(b"X: y\r\n")
        await trio.sleep(SHORT / 10)


async def test_who_goes_on_and_on_slowly() -> None:
    exit = await http(drip, timeout=SHORT)
    assert exit.status == "time_limit"


async def test_who_does_not_take_the_request() -> None:
    """And never will: a backlog that is full takes no more connections."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        for target in ({"tcp": Tcp(port=full.getsockname()[1])}, {"http": Http(port=full.getsockname()[1])}):
            exit = await run_probe(Here(), Healthcheck(timeout=SHORT, **target))
            assert exit.status == "time_limit"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_port_that_takes_connections_and_one_that_does_not(host: str) -> None:
    async with server(answering(), host) as port:
        check = Healthcheck(tcp=Tcp(port=port, host=host), timeout=LONG)
        assert (await run_probe(Here(), check)).status == "ok"
    exit = await run_probe(Here(), check)
    assert exit.status == "nonzero_exit"
    assert exit.reason.endswith(f":{port}: Connection refused")


async def test_without_a_socket_there_is_no_verdict() -> None:
    class Nowhere:
        async def open_socket(self, domain: int = 0) -> socket.socket:
            await trio.lowlevel.checkpoint()
            raise LaunchError("a", "make a socket", 24)

    exit = await run_probe(Nowhere(), Healthcheck(tcp=Tcp(port=1)))
    assert (exit.status, exit.reason) == ("sandbox_error", "make a socket: Too many open files")


def test_the_bound_is_above_what_servers_send() -> None:
    assert MAX_ANSWER >= 16 << 10
