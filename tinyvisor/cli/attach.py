"""`tinyvisor attach`: our stdin, stdout and terminal joined to those of a service that runs."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections.abc import Iterator

import click

from tinyvisor.cli.relay import CHUNK, raw, resized, write_out
from tinyvisor.cli.services import client_for, project_option, service_argument
from tinyvisor.errors import TinyvisorError

DETACH_KEYS = "ctrl-p,ctrl-q"


class _Detached(Exception):
    """The keys were typed."""


@click.command()
@project_option
@click.option("--no-stdin", is_flag=True, help="Show its output, and type nothing.")
@click.option("--detach-keys", default=DETACH_KEYS, metavar="KEYS", help=f"On a terminal: leave it. Default: {DETACH_KEYS}.")
@service_argument
def attach(project_name: str | None, no_stdin: bool, detach_keys: str, service: str) -> int:
    """Join our terminal to a service's: its output as it comes, and what we type.

    What we type goes to services with tty or stdin_open; the end of our stdin is not the end of theirs. Ctrl-C, too, is the
    service's where it has a terminal; else it leaves. Exits with the container's code when that ends. Who reads too slowly
    is let go: logs -f has everything.
    """
    keys = parse_keys(detach_keys)
    client = client_for(project_name)
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def meanwhile(connection: socket.socket) -> None:
            theirs.close()
            _join(ours, connection, keys, interactive=not no_stdin)

        try:
            exit = client.post(f"/v1/services/{service}/attach", fds=(theirs.fileno(),), meanwhile=meanwhile)["exit"]
        except _Detached:
            return 0
    if exit["reason"] and exit["status"] not in ("nonzero_exit", "stopped"):
        click.echo(f"tinyvisor: {exit['reason']}", err=True)
    if exit["signal"] is not None:
        return 128 + int(exit["signal"])
    return 125 if exit["exit_code"] is None else int(exit["exit_code"])


def parse_keys(text: str) -> bytes:
    """``"ctrl-p,ctrl-q"``, as docker has it: letters, or ctrl- and one of a-z @ [ \\ ] ^ _; empty: none.

    Raises:
        click.BadParameter: it is none of these.
    """
    found = bytearray()
    for word in filter(None, text.split(",")):
        key = word.removeprefix("ctrl-")
        code = ord(key.upper()) if len(key) == 1 and key.isascii() else -1
        if word == key and code >= 0:
            found += key.encode()
        elif word != key and 0x40 <= code < 0x60:
            found.append(code - 0x40)
        else:
            raise click.BadParameter(f'"{word}": expected a letter, or ctrl- and one', param_hint="--detach-keys")
    return bytes(found)


def _join(ours: socket.socket, answer: socket.socket, keys: bytes, *, interactive: bool) -> None:
    """Until the answer is there. Our terminal is as it was before, however it ends."""
    ready, _, _ = select.select([ours, answer], [], [])
    fds = socket.recv_fds(ours, 1, 1)[1] if ours in ready else []
    sink = fds[0] if fds else -1
    try:
        on_terminal = sink >= 0 and os.isatty(sink)
        typing = interactive and sink >= 0
        if sink >= 0:
            os.set_blocking(sink, False)
        with (
            raw(0) if typing and on_terminal and os.isatty(0) else contextlib.nullcontext(),
            resized(sink) if on_terminal else contextlib.nullcontext(),
        ):
            _Joint(ours, sink, _Keys(keys if on_terminal and os.isatty(0) else b""), typing=typing).run(answer)
    finally:
        if sink >= 0:
            os.close(sink)


class _Keys:
    """Looks for the keys that leave in what is typed; holds back what may be their beginning."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def feed(self, typed: bytes) -> bytes:
        """What is to be handed on.

        Raises:
            _Detached: they are complete.
        """
        if not self._keys:
            return typed
        found = bytearray()
        for byte in typed:
            self._held += bytes((byte,))
            while not self._keys.startswith(self._held):
                found.append(self._held[0])
                self._held = self._held[1:]
            if self._held == self._keys:
                raise _Detached
        return bytes(found)


class _Joint:
    """Between us and a container. Nothing more is read from our stdin until what was typed before has been taken."""

    def __init__(self, ours: socket.socket, sink: int, keys: _Keys, *, typing: bool) -> None:
        self._ours = ours
        self._sink = sink
        self._keys = keys
        self._typing = typing
        self._typed = b""
        self._open = True

    def run(self, answer: socket.socket) -> None:
        while True:
            poll = select.poll()  # anew: what is not asked for would say again and again that it has been closed
            for fd, events in self._wanted(answer):
                poll.register(fd, events)
            ready = {fd for fd, _ in poll.poll()}
            if self._ours.fileno() in ready:
                data = self._ours.recv(CHUNK)
                write_out(data)
                self._open = bool(data)  # else all has come, and so will the answer
            elif answer.fileno() in ready:
                return
            if 0 in ready:
                self._type()
            self._hand_over()

    def _wanted(self, answer: socket.socket) -> Iterator[tuple[int, int]]:
        if self._open:
            yield self._ours.fileno(), select.POLLIN
        yield answer.fileno(), select.POLLIN
        if self._typing and not self._typed:
            yield 0, select.POLLIN
        if self._typed:
            yield self._sink, select.POLLOUT

    def _type(self) -> None:
        try:
            data = os.read(0, CHUNK)
        except OSError:  # our terminal has been hung up
            data = b""
        self._typing = bool(data)
        self._typed = self._keys.feed(data)

    def _hand_over(self) -> None:
        try:
            while self._typed:
                self._typed = self._typed[os.write(self._sink, self._typed) :]
        except BlockingIOError:
            pass
        except OSError as error:  # nobody reads there any more
            if not isinstance(error, BrokenPipeError) and error.errno != errno.EIO:
                raise TinyvisorError(f"what was typed can't be handed on: {error.strerror}") from None
            self._typed, self._typing = b"", False
