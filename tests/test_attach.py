"""What `attach` makes of keys, of readers that are slow, and of ends."""

from __future__ import annotations

import socket
import threading

import click
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tinyvisor.cli.attach import _Detached, _Joint, _Keys, parse_keys
from tinyvisor.state import Exit
from tinyvisor.tap import LIMIT, Tap


def test_detach_keys() -> None:
    assert parse_keys("ctrl-p,ctrl-q") == b"\x10\x11"
    assert parse_keys("ctrl-[,x") == b"\x1bx"
    assert parse_keys("") == b""
    for wrong in ("ctrl-", "ctrl-1", "pq", "ä", "meta-x"):
        with pytest.raises(click.BadParameter):
            parse_keys(wrong)


@given(st.lists(st.binary(max_size=4), max_size=6))
def test_what_is_typed_is_handed_on_but_for_the_keys(pieces: list[bytes]) -> None:
    keys, handed = _Keys(b"\x10\x11"), b""
    typed = b"".join(pieces)
    try:
        for piece in pieces:
            handed += keys.feed(piece)
    except _Detached:
        assert b"\x10\x11" in typed
    else:
        assert b"\x10\x11" not in typed
        assert handed in (typed, typed.removesuffix(b"\x10"))


def test_keys_are_found_in_any_pieces_and_none_are_none() -> None:
    keys = _Keys(b"\x10\x11")
    assert keys.feed(b"a\x10") == b"a"
    assert keys.feed(b"\x10b") == b"\x10\x10b"
    assert keys.feed(b"\x10\x10") == b"\x10"
    with pytest.raises(_Detached):
        keys.feed(b"\x11")
    assert _Keys(b"").feed(b"\x10\x11") == b"\x10\x11"


def test_all_output_is_shown_before_the_answer_counts(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    ours, theirs = socket.socketpair()
    answer, daemon = socket.socketpair()
    with ours, answer, daemon:

        def write() -> None:
            with theirs:
                theirs.sendall(b"x" * 300_000)
            daemon.send(b"HTTP/1.1 200")

        writer = threading.Thread(target=write)
        writer.start()
        _Joint(ours, -1, _Keys(b""), typing=False).run(answer)
        writer.join()
    assert len(capfdbinary.readouterr().out) == 300_000


def test_tap() -> None:
    async def main() -> None:
        tap = Tap()
        tap.put(b"a")
        tap.put(b"b")
        assert await tap.take() == b"ab"
        tap.put(b"x" * LIMIT)
        tap.put(b"y")
        tap.put(b"z")
        assert tap.overflowed
        assert await tap.take() == b"x" * LIMIT
        assert await tap.take() == b""
        other = Tap()
        other.put(b"rest")
        other.end(Exit(status="ok", exit_code=0))
        assert (await other.take(), await other.take(), other.exit) == (b"rest", b"", Exit(status="ok", exit_code=0))

    trio.run(main)
