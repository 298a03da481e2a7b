"""What runs at once on a node, of several batches, by CPUs and memory."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from tinyvisor.cluster.room import Room, Share
from tinyvisor.cluster.worker import measure, slots_of


class Batch:
    """Jobs that run until they are ended."""

    def __init__(self, room: Room, *jobs: tuple[float | None, int | None], slots: int = 4) -> None:
        self.room = room
        self.waiting = deque(room.share(cpus, memory, slots) for cpus, memory in jobs)
        self.shares: list[Share] = []
        room.join(self)

    @property
    def running(self) -> int:
        return len(self.shares)

    def head(self) -> Share | None:
        return self.waiting[0] if self.waiting else None

    def start(self, share: Share) -> None:
        assert self.waiting.popleft() == share
        self.shares.append(share)

    def end(self) -> None:
        self.room.give_back(self.shares.pop(0))


PLAIN = (None, None)


def test_jobs_that_say_nothing_take_a_slot_each() -> None:
    room = Room(4, None)
    batch = Batch(room, *9 * [PLAIN])
    room.fill()
    assert batch.running == 4
    more = Batch(Room(4, None), *9 * [PLAIN], slots=6)
    more.room.fill()
    assert more.running == 6, "what the batch wants at once is no question of CPUs"


def test_cpus_are_counted() -> None:
    room = Room(4, None)
    batch = Batch(room, (2, None), (1.5, None), (0.5, None), (0.1, None))
    room.fill()
    assert batch.running == 3
    batch.end()
    assert batch.running == 3


def test_memory_is_counted() -> None:
    room = Room(4, 100)
    batch = Batch(room, (None, 60), (None, 40), (None, 1))
    room.fill()
    assert batch.running == 2
    batch.end()
    assert batch.running == 2


def test_one_that_is_larger_than_the_node_runs_alone() -> None:
    room = Room(2, 100)
    batch = Batch(room, (8, None), (None, 500), PLAIN, slots=2)
    for left in (2, 1, 0):
        room.fill()
        assert (batch.running, len(batch.waiting)) == (1, left)
        batch.end()


def test_batches_share_a_node_evenly() -> None:
    room = Room(4, None)
    one = Batch(room, *20 * [PLAIN])
    room.fill()
    other = Batch(room, *20 * [PLAIN])
    room.fill()
    assert (one.running, other.running) == (4, 0)
    for _ in range(2):
        one.end()
    assert (one.running, other.running) == (2, 2)


def test_small_jobs_do_not_for_ever_pass_a_large_one() -> None:
    room = Room(4, None)
    small = Batch(room, *20 * [PLAIN])
    room.fill()
    large = Batch(room, (4, None))
    for _ in range(4):
        assert large.running == 0
        small.end()
    assert (small.running, large.running) == (0, 1)


def test_a_batch_that_ends_makes_room() -> None:
    room = Room(1, None)
    large = Batch(room, (4, None), (4, None), slots=1)
    room.fill()
    small = Batch(room, PLAIN, PLAIN, slots=1)
    room.fill()
    assert (large.running, small.running) == (1, 0)
    large.end()
    assert (large.running, small.running) == (0, 1), "in turns"
    large.waiting.clear()
    small.end()
    assert small.running == 1
    room.leave(large)
    small.end()
    assert (small.running, len(small.waiting)) == (0, 0)


@given(
    cpus=st.floats(0.1, 64),
    jobs=st.lists(st.tuples(st.none() | st.floats(0.001, 64), st.none() | st.integers(1, 200)), max_size=30),
)
def test_everything_runs_and_nothing_over_the_bounds(cpus: float, jobs: list[tuple[float | None, int | None]]) -> None:
    room = Room(cpus, 100)
    batch = Batch(room, *jobs)
    room.fill()
    ended = 0
    while batch.running:
        used = sum(share.cpus for share in batch.shares), sum(share.memory for share in batch.shares)
        assert batch.running == 1 or (used[0] <= round(cpus * 1000) and used[1] <= 100)
        batch.end()
        ended += 1
    assert ended == len(jobs)


def test_what_the_operator_says_goes_before_what_dask_knows() -> None:
    assert measure({}, 8, 64 << 30) == {"cpus": 8.0, "memory": 64 << 30}
    assert measure({"CPU": 2.5, "MEMORY": 1e9, "GPU": 1}, 8, 64 << 30) == {"cpus": 2.5, "memory": 10**9}
    assert measure({}, 0, None) == {"cpus": 1.0, "memory": None}
    assert [slots_of(text, 16.0) for text in (None, "3", "150%", "1%")] == [16, 3, 24, 1]
    assert slots_of(None, 0.5) == 1
