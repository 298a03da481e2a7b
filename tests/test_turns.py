"""Turns at launching, in the mock clock's time."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tinyvisor.turns import LAUNCH_PATIENCE, Turns

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


async def test_each_counts_until_it_is_over_or_its_time_is_up() -> None:
    given: list[tuple[str, float]] = []
    turns = Turns(2)

    async def launch(name: str, seconds: float, ends_itself: bool) -> None:
        async with turns.turn() as turn:
            given.append((name, trio.current_time()))
            await trio.sleep(seconds)
            if ends_itself:
                turn.end()
                await trio.sleep(100)

    async with trio.open_nursery() as nursery, turns.open():
        start = trio.current_time()
        # a and b are stuck from 0 and 1 on; c, which is quick, and d come when a's time is up, e when b's is.
        for name, begins, seconds, ends in (
            ("a", 0, 99, False),
            ("b", 1, 99, False),
            ("c", 2, 0.5, True),
            ("d", 3, 99, False),
            ("e", 4, 0, True),
        ):
            await trio.sleep(start + begins - trio.current_time())
            nursery.start_soon(launch, name, seconds, ends)
        await trio.sleep(200)
    times = {name: round(time - start, 6) for name, time in given}
    assert times == {"a": 0, "b": 1, "c": LAUNCH_PATIENCE, "d": LAUNCH_PATIENCE + 0.5, "e": LAUNCH_PATIENCE + 1}


async def test_none_is_given_back_twice() -> None:
    """Not one that has ended when its time is up, nor one that ends itself after that."""
    turns = Turns(1)
    async with turns.open():
        async with turns.turn() as first:
            await trio.sleep(LAUNCH_PATIENCE + 1)
            async with turns.turn() as second:
                first.end()
                with trio.move_on_after(LAUNCH_PATIENCE / 2) as waiting:
                    async with turns.turn():
                        pass
                assert waiting.cancelled_caught, "the second one's is still its own"
                second.end()
                await trio.sleep(2 * LAUNCH_PATIENCE)
                async with turns.turn():
                    assert second.until == 0
