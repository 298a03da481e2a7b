"""Counters out of the files of both versions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.test_cgroup import PURE, PURE_SELF, V1, V2
from tinyvisor.runtime.cgroup import detect
from tinyvisor.runtime.usage import Usage, read_usage, readback_files


def test_cpu_time_is_counted_on_v2_without_the_cpu_controller() -> None:
    assert (0, "cpu.stat") in readback_files(detect(PURE, PURE_SELF, "pids"))
    assert (0, "cpu.stat") in readback_files(V2.without(["cpu"], "because"))


def test_readback_files_are_unique_and_read_where_they_are() -> None:
    assert readback_files(V1) == [
        (0, "pids.peak"), (0, "pids.events"), (1, "memory.max_usage_in_bytes"), (1, "memory.oom_control"),
        *((4, f"cpuacct.usage{part}") for part in ("", "_user", "_sys")),
    ]  # fmt: skip
    assert {file for _, file in readback_files(V2)} == {"pids.peak", "pids.events", "memory.peak", "memory.events", "cpu.stat"}


def test_usage_from_v1() -> None:
    contents = {
        "pids.peak": b"21\n", "pids.events": b"max 7\n", "memory.max_usage_in_bytes": b"4096\n",
        "memory.oom_control": b"oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        "cpuacct.usage_user": b"1500000000\n", "cpuacct.usage_sys": b"250000000\n",
    }  # fmt: skip
    assert read_usage(contents) == Usage(21, 7, 4096, 2, 1.5, 0.25)


def test_usage_from_v2() -> None:
    contents = {
        "pids.peak": b"3\n", "pids.events": b"max 0\n", "memory.peak": b"8192\n",
        "memory.events": b"low 0\nhigh 0\nmax 5\noom 2\noom_kill 1\noom_group_kill 0\n",
        "cpu.stat": b"usage_usec 30\nuser_usec 20\nsystem_usec 10\nnice_usec 0\n",
    }  # fmt: skip
    assert read_usage(contents) == Usage(3, 0, 8192, 1, 2e-5, 1e-5)


def test_usage_from_nothing() -> None:
    assert read_usage({}) == Usage()


@given(st.dictionaries(st.sampled_from([file for _, file in readback_files(V1) + readback_files(V2)]), st.binary()))
def test_usage_never_raises(contents: dict[str, bytes]) -> None:
    read_usage(contents)
