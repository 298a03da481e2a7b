"""Probes of a port of a container's: a TCP connection, or a GET over HTTP/1.1. On trio.

They are made in the container's network and by nothing of the container's: the launcher makes a socket there and hands it over,
the rest is done here. So who answers is not trusted. It may be slow, never end its headers, or send informational answers for
ever: all of a probe has one deadline, and of an answer `MAX_ANSWER` bytes are read at most; the body is not read. A redirect is
an answer and not followed, an address is an IP address and not looked up. What it says of itself comes to a person as one short
line of printable characters.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Final, Protocol

import trio

from tinyvisor.errors import ContainerError, InternalError, LauncherDied, TinyvisorError
from tinyvisor.spec import Healthcheck, Http, Tcp
from tinyvisor.state import Exit
from tinyvisor.units import format_duration

if TYPE_CHECKING:
    import h11

MAX_ANSWER: Final = 32 << 10
"""Bytes of an answer's status lines and headers, informational ones included."""

_CHUNK: Final = 4096
_SHOWN: Final = 100


class Connectable(Protocol):
    """A running container, to who wants to reach one of its ports."""

    async def open_socket(self, domain: int = ..., /) -> socket.socket: ...


class _Failed(Exception):
    """The probe has failed, for this reason."""


async def run_probe(container: Connectable, check: Healthcheck) -> Exit:
    """How it went: ``ok``; ``nonzero_exit`` with the reason; ``time_limit``; ``sandbox_error`` where there was no socket.

    Cancellation: the connection is closed.
    """
    target = check.http or check.tcp
    assert target is not None
    try:
        with trio.move_on_after(check.timeout) as timeout:
            await _probe(container, target)
    except (InternalError, LauncherDied):
        raise
    except TinyvisorError as error:
        return Exit(status="sandbox_error", reason=error.problem if isinstance(error, ContainerError) else str(error))
    except _Failed as failure:
        return Exit(status="nonzero_exit", exit_code=1, reason=f"{target}: {failure}")
    if timeout.cancelled_caught:
        return Exit(status="time_limit", reason=f"{target}: no answer within {format_duration(check.timeout)}")
    return Exit(status="ok", exit_code=0)


async def _probe(container: Connectable, target: Http | Tcp) -> None:
    domain = socket.AF_INET6 if ":" in target.host else socket.AF_INET
    with trio.socket.from_stdlib_socket(await container.open_socket(domain)) as sock:
        try:
            await sock.connect((target.host, target.port))
            if isinstance(target, Http):
                await _get(sock, target)
        except OSError as error:
            raise _Failed(os.strerror(error.errno or errno.EIO)) from None


async def _get(sock: trio.socket.SocketType, target: Http) -> None:
    import h11  # here, since few need it

    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_ANSWER)
    own = {name.lower() for name in target.headers}
    headers = list(target.headers.items())
    headers += [
        (name, value)
        for name, value in (
            ("Host", str(Tcp(port=target.port, host=target.host))),
            ("User-Agent", "tinyvisor"),
            ("Connection", "close"),
        )
        if name.lower() not in own
    ]
    try:
        data = connection.send(h11.Request(method="GET", target=target.path, headers=headers)) or b""
        data += connection.send(h11.EndOfMessage()) or b""
        while data:
            data = data[await sock.send(data) :]
        status = await _status(sock, connection)
    except h11.LocalProtocolError as error:
        raise _Failed(f"what the headers ask for can't be sent: {error}") from None
    except h11.RemoteProtocolError as error:
        raise _Failed(f"what answers does not speak HTTP: {_shown(str(error))}") from None
    if not target.is_good(status):
        raise _Failed(f"status {status}")


async def _status(sock: trio.socket.SocketType, connection: h11.Connection) -> int:
    import h11

    left = MAX_ANSWER
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Response):
            return event.status_code
        if isinstance(event, h11.ConnectionClosed):
            raise _Failed("it closed the connection without an answer")
        if event is h11.NEED_DATA:
            if not left:
                raise _Failed(f"its answer's headers have more than {MAX_ANSWER} bytes")
            data = await sock.recv(min(left, _CHUNK))
            left -= len(data)
            if not data and left == MAX_ANSWER:
                raise _Failed("it closed the connection without an answer")
            connection.receive_data(data)


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() and char.isascii() else "?" for char in text[:_SHOWN])
