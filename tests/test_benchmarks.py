"""The benchmarks' arithmetic and parsers: what they print is only as true as this. No time is measured here."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from tests.benchmarks.__main__ import compare, process_ratio
from tests.benchmarks.cluster import Run, saturation, summarize
from tests.benchmarks.contenders import RUN_PROCESS, Contender, Sample, _in_turns
from tests.benchmarks.counts import Activity, parse_cgroups, parse_descendants, parse_field, parse_objects
from tests.benchmarks.scale import QUICK, Sizes, add_options, chosen_sizes, edge_rates, growth, json_line
from tests.benchmarks.usual import entries
from tinyvisor.runtime.idmap import IDS, MAX_ID, find_ranges

STATUS = "Name:\tinit\nVmHWM:\t     900 kB\nVmRSS:\t     268 kB\nvoluntary_ctxt_switches:\t17\nnonvoluntary_ctxt_switches:\t3\n"
SLABINFO = """\
slabinfo - version: 2.1
# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> <batchcount> <sharedfactor>
net_namespace_x        9     63   4288    7    8 : tunables    0    0    0 : slabdata      9      9      0
net_namespace         44     63   4288    7    8 : tunables    0    0    0 : slabdata      9      9      0
"""
CGROUPS = (
    "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t34\t1\ncpuacct\t1\t34\t1\nmemory\t4\t572\t1\nnet_cls\t0\t16\t1\n"
)


@pytest.mark.parametrize(
    ("name", "value"), [("VmRSS", 268 * 1024), ("voluntary_ctxt_switches", 17), ("nonvoluntary_ctxt_switches", 3)]
)
def test_a_field_is_a_whole_line(name: str, value: int) -> None:
    assert parse_field(STATUS, name) == value


def test_a_missing_field_is_an_error() -> None:
    with pytest.raises(ValueError, match="VmSwap"):
        parse_field(STATUS, "VmSwap")


def test_objects_are_of_the_cache_that_was_asked_for() -> None:
    assert parse_objects(SLABINFO, "net_namespace") == 44
    assert parse_objects(SLABINFO, "mem_cgroup") is None


def test_cgroups_are_counted_once_for_each_hierarchy_of_v1() -> None:
    assert parse_cgroups(CGROUPS) == 34 + 572


def test_cgroups_of_v2_are_the_living_and_the_dying() -> None:
    stat = "nr_descendants 15\nnr_subsys_pids 900\nnr_dying_descendants 4\nnr_dying_subsys_pids 80\n"
    assert parse_descendants(stat) == 19


def test_activity_is_a_difference() -> None:
    assert Activity(3.0, 12) - Activity(1.0, 5) == Activity(2.0, 7)


def test_edge_rates_are_of_the_first_and_the_last_tenth() -> None:
    slowing_down = [*(number + 1.0 for number in range(15)), *(15.0 + 4 * number for number in range(1, 6))]
    assert edge_rates(slowing_down, 0.0) == (1.0, 0.25)
    assert edge_rates([10.0 + number / 2 for number in range(1, 31)], 10.0) == (2.0, 2.0)


def test_growth_of_what_is_not_known_is_not_known() -> None:
    before = {"fds": 7, "rss": 4096, "netns": None, "slab": 3}
    assert growth(before, {"fds": 7, "rss": 1024, "netns": 5, "slab": None}) == {
        "fds": 0,
        "rss": -3072,
        "netns": None,
        "slab": None,
    }


def test_json_lines_are_as_dockers() -> None:
    now = datetime(2024, 5, 17, 9, 30, 1, 250, tzinfo=UTC)
    line = json_line(b'a "quoted" \xff line\n', "stdout", now)
    assert line.endswith("}\n")
    assert line.count("\n") == 1
    assert json.loads(line) == {
        "log": 'a "quoted" \ufffd line\n',
        "stream": "stdout",
        "time": "2024-05-17T09:30:01.000250+00:00",
    }


# --- Sizes. ---


def sizes(*words: str) -> Sizes:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return chosen_sizes(parser.parse_args(words))


def test_sizes_are_the_usual_ones_where_nothing_is_said() -> None:
    assert sizes() == Sizes()
    assert sizes("--quick") == QUICK


def test_sizes_that_are_given_go_before_those_of_quick() -> None:
    chosen = sizes("--quick", "--output", "1g", "--idle", "0")
    assert (chosen.output, chosen.idle, chosen.runs) == (1 << 30, 0, QUICK.runs)


@pytest.mark.parametrize("words", [("--idle", "99"), ("--runs", "-1"), ("--output", "1k"), ("--jobs", "5")])
def test_sizes_that_say_nothing_are_refused(words: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=words[0]):
        sizes(*words)


# --- Ratios. ---


@pytest.mark.parametrize("count", [1, 4094, 4095, 5064])
def test_ranges_are_enough_for_so_many_and_apart(count: int) -> None:
    ranges = find_ranges(entries(count), entries(count))
    starts = sorted(ranges[slot][0] for slot in range(count))
    assert len(ranges) == count
    assert all(after - before >= IDS for before, after in pairwise(starts))
    assert starts[-1] + IDS - 1 <= MAX_ID


def test_process_ratio_is_to_its_own_turns_and_else_to_the_rounds() -> None:
    samples = {"floor": Sample(4.0), "warm": Sample(1.0, process=2.0), RUN_PROCESS: Sample(8.0)}
    assert process_ratio(samples, "warm") == 0.5
    assert process_ratio(samples, "floor") == 0.5
    assert process_ratio(samples, RUN_PROCESS) == 1.0
    assert process_ratio({"floor": Sample(4.0)}, "floor") is None


def contender(name: str, walls: list[float], asked: list[tuple[str, int, int]], **options: float) -> Contender:
    left = iter(walls)

    async def measure(count: int, concurrency: int) -> Sample:
        asked.append((name, count, concurrency))
        return Sample(next(left))

    return Contender(name, measure, **options)  # type: ignore[arg-type]


def test_ratios_are_taken_within_a_round_and_the_order_turns() -> None:
    asked: list[tuple[str, int, int]] = []
    contenders = [
        contender("floor", [9.0, 1.0, 10.0, 2.0], asked),  # the first round warms up, and is not counted
        contender("slow", [9.0, 2.0, 40.0, 6.0], asked, share=0.5),
        contender("together", [], asked, alone=False),
    ]

    async def measure() -> list[dict[str, object]]:
        return await compare(contenders, count=100, concurrency=1, rounds=3)

    floor, slow = trio.run(measure, clock=MockClock(autojump_threshold=0))
    assert (floor["name"], floor["wall"], floor["ratio"], floor["rate"]) == ("floor", 2.0, 1.0, 0.5)
    assert (slow["name"], slow["wall"], slow["ratio"], slow["process_ratio"]) == ("slow", 6.0, 3.0, None)
    assert slow["walls"] == [2.0, 40.0, 6.0]
    assert asked[:2] == [("floor", 10, 1), ("slow", 5, 1)]
    assert asked[2:] == [
        ("floor", 100, 1),
        ("slow", 50, 1),
        ("slow", 50, 1),
        ("floor", 100, 1),
        ("floor", 100, 1),
        ("slow", 50, 1),
    ]


def test_what_is_only_for_one_at_a_time_is_left_out_of_many_at_once() -> None:
    asked: list[tuple[str, int, int]] = []
    contenders = [contender("floor", [1.0, 1.0], asked), contender("alone", [], asked, together=False)]

    async def measure() -> list[dict[str, object]]:
        return await compare(contenders, count=100, concurrency=16, rounds=1)

    rows = trio.run(measure, clock=MockClock(autojump_threshold=0))
    assert [row["name"] for row in rows] == ["floor"]
    assert [count for _, count, _ in asked] == [16, 100]


def test_in_turns_each_is_first_as_often_and_only_when_all_is_ready() -> None:
    calls: list[str] = []

    def action(name: str) -> object:
        async def call() -> None:
            calls.append(name)

        return call

    async def measure() -> Sample:
        return await _in_turns(4, action("ready"), action("first"), action("second"))  # type: ignore[arg-type]

    sample = trio.run(measure)
    assert calls[::2] == ["ready"] * 8
    assert calls[1::2] == ["first", "second", "second", "first"] * 2
    assert sample.process is not None


# --- A cluster. ---


def test_a_clusters_ratio_is_taken_within_a_round() -> None:
    alone = [Run(0.1, each, {"client": 2.0}, 0) for each in (1.0, 10.0, 2.0)]
    cluster = [Run(1.0, each, {"client": 1.0, "scheduler": 0.5}, 7) for each in (2.0, 11.0, 2.0)]
    found = summarize(alone, cluster)
    assert (found["alone"], found["cluster"], found["ratio"]) == (2.0, 2.0, 1.1)
    assert found["best"] == 2.0
    assert (found["cpu_alone"], found["cpu"], found["messages"]) == (2.0, {"client": 1.0, "scheduler": 0.5}, 7)


def test_what_a_scheduler_does_without_jobs_is_not_the_messages_doing() -> None:
    row = {"cluster": 0.1, "cpu": {"client": 0.0005, "scheduler": 0.004}, "scheduler_idle": 0.02, "messages": 10}
    found = saturation(row, 101)
    assert found["client"] == pytest.approx(2000)
    assert found["message"] == pytest.approx((0.4 - 0.2) / 10)
    assert found["most_messages"] == pytest.approx(50)
