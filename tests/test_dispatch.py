"""Which node gets which job, how many, and what becomes of those of a lost node: without a cluster."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvisor.cluster.dispatch import MESSAGES, MOST, MOST_LOSSES, Dispatch, Ticket


def dispatch(*slots: int, jobs: int = 0) -> Dispatch:
    """Nodes "n0", "n1" …, and jobs that are called by their number."""
    made = Dispatch()
    for number, count in enumerate(slots):
        made.join(f"n{number}", count)
    for key in range(jobs):
        made.add(Ticket(key, f"job {key}"))
    return made


def take(made: Dispatch, name: str) -> list[int]:
    return [ticket.key for ticket in made.take(name)]


def finish_all(made: Dispatch, name: str, took: float) -> None:
    keys = list(made.nodes[name].held)
    for key in keys:
        assert made.finish(name, key) is not None
    made.learn(name, [took] * len(keys))


def test_at_first_a_node_gets_what_it_can_run_at_once() -> None:
    made = dispatch(2, 3, jobs=10)
    assert take(made, "n0") == [0, 1]
    assert take(made, "n1") == [2, 3, 4]
    assert take(made, "n0") == []
    assert not made.has_room("n0")


def test_short_jobs_come_in_large_chunks_and_long_ones_alone() -> None:
    for seconds, least, most in ((0.0, MOST, MOST), (0.001, 1900, MOST), (0.01, 190, 210), (1.0, 2, 4), (600.0, 2, 2)):
        made = dispatch(2, jobs=3000)
        take(made, "n0")
        finish_all(made, "n0", seconds)
        assert least <= len(take(made, "n0")) <= most, seconds


def test_a_node_of_many_slots_is_filled_whatever_the_bound() -> None:
    made = dispatch(MOST + 1, jobs=MOST + 10)
    take(made, "n0")
    finish_all(made, "n0", 0.001)
    for key in range(MOST + 10, 2 * MOST + 20):
        made.add(Ticket(key, None))
    assert len(take(made, "n0")) == MOST + 1


def test_the_length_of_jobs_follows_the_latest() -> None:
    made = dispatch(1, jobs=3000)
    take(made, "n0")
    finish_all(made, "n0", 0.001)
    for _ in range(10):
        made.learn("n0", [100.0])
    assert made.capacity(made.nodes["n0"]) == 1


def test_a_node_that_joins_late_is_thought_as_fast_as_the_others() -> None:
    made = dispatch(1, jobs=500)
    take(made, "n0")
    finish_all(made, "n0", 0.01)
    made.join("late", 1)
    assert len(take(made, "late")) > 50


def test_many_nodes_send_no_more_messages_than_some_and_have_as_much_to_do_in_between() -> None:
    few, many = dispatch(*[1] * 10), dispatch(*[1] * 1000)
    assert len(few.nodes) / few.interval <= MESSAGES
    assert len(many.nodes) / many.interval == pytest.approx(MESSAGES)
    for made in (few, many):
        made.learn("n0", [0.1])
        node = made.nodes["n0"]
        assert made.capacity(node) * 0.1 >= 2 * made.interval


def test_a_job_takes_as_many_slots_as_it_needs_of_the_node() -> None:
    made = Dispatch()
    made.join("n0", 4, cpus=4.0, memory=100)
    for key, needs in enumerate(({"cpus": 2.0}, {"memory": 50}, {"cpus": 0.1}, {}, {})):
        made.add(Ticket(key, None, **needs))  # type: ignore[arg-type]
    assert take(made, "n0") == [0, 1]
    assert not made.has_room("n0")
    made.finish("n0", 0)
    assert made.wanted == 0, "there are jobs enough for what is free"
    assert take(made, "n0") == [2, 3]
    made.finish("n0", 1)
    assert take(made, "n0") == [4]
    assert made.wanted == 1


def test_long_jobs_that_fill_a_node_go_to_one_each() -> None:
    made = Dispatch()
    for name in ("n0", "n1", "n2"):
        made.join(name, 16, cpus=16.0, memory=64 << 30)
    for key in range(3):
        made.add(Ticket(key, None, cpus=16.0, memory=1 << 40))
    assert [take(made, name) for name in ("n0", "n1", "n2")] == [[0], [1], [2]]
    for name in ("n0", "n1", "n2"):
        finish_all(made, name, 600.0)
    assert made.idle
    assert made.wanted == 48


def test_long_jobs_after_short_ones_do_not_wait_for_each_other_while_a_node_is_idle() -> None:
    made = dispatch(1, 1, jobs=1)
    take(made, "n0")
    finish_all(made, "n0", 0.01)
    for key in range(10, 16):
        made.add(Ticket(key, None, again=key != 12))
    assert len(take(made, "n0")) == 6
    assert take(made, "n1") == []
    assert made.should_return("n0")
    assert not made.should_return("n1")
    for key in range(11, 16):
        made.give_back("n0", key)
    assert not made.should_return("n0")
    assert take(made, "n0") == []
    assert take(made, "n1") == [11]
    assert made.capacity(made.nodes["n0"]) == 1


def test_what_nobody_else_could_begin_stays() -> None:
    made = dispatch(1, 1, jobs=2)
    for name in ("n0", "n1"):
        take(made, name)
    finish_all(made, "n0", 0.01)
    for key in range(10, 16):
        made.add(Ticket(key, None))
    take(made, "n0")
    assert not made.should_return("n0"), "the other one is busy"
    finish_all(made, "n1", 100.0)
    assert made.should_return("n0")
    made.add(Ticket(20, None))
    assert not made.should_return("n0"), "there are others for who is idle"


def test_a_node_of_which_nothing_is_known_counts_jobs() -> None:
    made = dispatch(2)
    for key in range(3):
        made.add(Ticket(key, None, cpus=100.0, memory=1 << 50))
    assert take(made, "n0") == [0, 1]


def test_jobs_are_asked_for_as_there_is_room() -> None:
    made = dispatch(2, 2)
    assert made.wanted == 4
    made.add(Ticket(0, None))
    assert made.wanted == 3
    take(made, "n0")
    assert made.wanted == 3
    assert Dispatch().wanted == 0


def test_the_jobs_of_a_lost_node_run_elsewhere_and_first() -> None:
    made = dispatch(2, 2, jobs=6)
    take(made, "n0")
    assert made.lose("n0") == []
    assert sorted(take(made, "n1")) == [0, 1]
    assert not made.idle


def test_what_must_not_run_twice_is_not_run_again() -> None:
    made = dispatch(2)
    made.add(Ticket(1, "once", again=False))
    made.add(Ticket(2, "any"))
    take(made, "n0")
    (verdict,) = made.lose("n0")
    assert (verdict.ticket.key, verdict.status) == (1, "unknown")
    assert "n0 was lost" in verdict.reason
    made.join("n1", 2)
    assert take(made, "n1") == [2]


def test_a_result_of_a_job_that_is_no_longer_the_nodes_is_none() -> None:
    made = dispatch(1, 1, jobs=1)
    take(made, "n0")
    assert made.finish("n1", 0) is None
    assert made.finish("n0", 0) is not None
    assert made.finish("n0", 0) is None
    assert made.idle


def test_a_node_that_gives_up_is_nobodys_fault() -> None:
    made = dispatch(3, jobs=3)
    for number in range(2 * MOST_LOSSES):
        held = take(made, f"n{number}")
        assert len(held) == 3
        assert made.leave(f"n{number}") == []
        made.join(f"n{number + 1}", 3)


def play(made: Dispatch, killers: set[int], most_deaths: int = 100) -> tuple[dict[int, str], int]:
    """Runs everything: a node with a killer among its jobs dies, and another one comes in its place. Results, and deaths."""
    ended: dict[int, str] = {}
    deaths = 0
    while not made.idle:
        for name in list(made.nodes):
            take(made, name)
            held = set(made.nodes[name].held)
            if held & killers:
                deaths += 1
                assert deaths <= most_deaths
                for verdict in made.lose(name):
                    assert verdict.ticket.key not in ended
                    ended[verdict.ticket.key] = verdict.status
                made.join(f"{name}'", 4)
                continue
            for key in held:
                assert key not in ended
                assert made.finish(name, key) is not None
                ended[key] = "ok"
            made.learn(name, [0.01] * len(held))
    return ended, deaths


def test_a_job_that_kills_its_node_is_found_and_given_up() -> None:
    """It takes three nodes with it, and nobody else's result."""
    ended, deaths = play(dispatch(4, 4, jobs=300), killers={77})
    assert Counter(ended.values()) == {"ok": 299, "sandbox_error": 1}
    assert ended[77] == "sandbox_error"
    assert deaths == MOST_LOSSES


def test_while_suspects_run_alone_the_other_nodes_go_on() -> None:
    made = dispatch(2, 2, jobs=2)
    for name in ("n0", "n2"):
        take(made, name)
        made.lose(name)
        made.join("n2", 2)
    for key in range(10, 20):
        made.add(Ticket(key, None))
    draining = [node.name for node in made.nodes.values() if node.draining]
    assert len(draining) == 1
    (other,) = made.nodes.keys() - set(draining)
    assert take(made, other) == [10, 11]
    assert len(take(made, draining[0])) == 1
    assert take(made, draining[0]) == []
    assert not made.has_room(draining[0])


@given(
    jobs=st.integers(1, 60),
    nodes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    killers=st.sets(st.integers(0, 59), max_size=3),
    once=st.sets(st.integers(0, 59), max_size=5),
)
def test_every_job_ends_exactly_once(jobs: int, nodes: list[int], killers: set[int], once: set[int]) -> None:
    made = dispatch(*nodes)
    for key in range(jobs):
        made.add(Ticket(key, None, again=key not in once))
    ended, deaths = play(made, killers)
    assert set(ended) == set(range(jobs))
    assert {key for key, status in ended.items() if status == "sandbox_error"} == {k for k in killers - once if k < jobs}
    assert all(ended[key] == "unknown" for key in killers & once if key < jobs)
    assert deaths <= MOST_LOSSES * len(killers)
