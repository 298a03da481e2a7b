"""The words: what a `Spec` refuses, and how it says so."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvisor.errors import SpecError
from tinyvisor.spec import (
    Backoff,
    Blkio,
    RestartPolicy,
    Spec,
    Tmpfs,
    Ulimit,
    Volume,
    parse_capability,
    parse_signal,
)


def test_defaults_isolate() -> None:
    spec = Spec(command=("true",))
    assert spec.no_new_privs
    assert not spec.capabilities
    assert spec.network_mode == "none"
    assert {"pid", "mount", "net"} <= spec.namespaces


def test_collections_are_frozen() -> None:
    items: Any = {"command": ["a", "b"], "namespaces": ["pid", "mount"], "cpuset": [1], "capabilities": ["KILL"], "rootfs": "/x"}
    spec = Spec(**items)
    assert spec.command == ("a", "b")
    assert spec.namespaces == frozenset({"pid", "mount"})
    assert spec.rootfs == Path("/x")


BAD: list[tuple[str, Any]] = [
    ("command", ()),
    ("command", ("",)),
    ("command", "ls -l"),
    ("command", ("a\0",)),
    ("command", (1,)),
    ("command", None),
    ("name", "a/b"),
    ("name", "a\nb"),
    ("name", ""),
    ("name", "a" * 64),
    ("name", "-a"),
    ("name", 5),
    ("environment", {"": "x"}),
    ("environment", {"A=B": "x"}),
    ("environment", {"A": "x\0"}),
    ("environment", {"A": 1}),
    ("environment", {1: "x"}),
    ("environment", "A=1"),
    ("working_dir", "relative"),
    ("working_dir", "/a/../b"),
    ("user", "a b"),
    ("user", 5),
    ("group_add", ("a b",)),
    ("group_add", (5,)),
    ("group_add", ("a:b",)),
    ("hostname", "a b"),
    ("hostname", 5),
    ("rootfs", 5),
    ("root_method", "switch"),
    ("read_only", "yes"),
    ("volumes", ("/a:/b",)),
    ("tmpfs", ("/a",)),
    ("namespaces", {"pid", "mount", "nett"}),
    ("namespaces", {"pid"}),
    ("namespaces", "pid"),
    ("namespaces", {"pid", "mount", 5}),
    ("network_mode", "bridge"),
    ("network_mode", "service:a/b"),
    ("pids_limit", 0),
    ("pids_limit", -1),
    ("pids_limit", "20"),
    ("pids_limit", True),
    ("mem_limit", 0),
    ("mem_limit", "64m"),
    ("cpus", 0),
    ("cpus", float("nan")),
    ("cpus", float("inf")),
    ("cpus", 0.001),
    ("cpuset", {-1}),
    ("cpuset", {"1"}),
    ("ulimits", {"nofil": Ulimit(1, 1)}),
    ("ulimits", 5),
    ("shm_size", 0),
    ("umask", 0o1000),
    ("umask", "022"),
    ("oom_score_adj", 1001),
    ("stop_signal", 0),
    ("stop_signal", 65),
    ("stop_signal", "TERM"),
    ("stop_grace_period", -1),
    ("stop_grace_period", float("nan")),
    ("orphan_grace_period", "5s"),
    ("timeout", 0),
    ("timeout", float("inf")),
    ("tty", 1),
]


@pytest.mark.parametrize("name, value", BAD)
def test_a_wrong_value_is_a_spec_error_at_its_field(name: str, value: Any) -> None:
    values: Any = {"command": ("true",), name: value}
    with pytest.raises(SpecError) as caught:
        Spec(**values)
    assert caught.value.field == name
    assert "\n" not in caught.value.problem


def test_a_target_is_mounted_once() -> None:
    with pytest.raises(SpecError, match=r'"/x" is mounted twice'):
        Spec(command=("true",), volumes=(Volume(Path("/a"), "/x"),), tmpfs=(Tmpfs("/x"),))


def test_with_changes_and_checks() -> None:
    spec = Spec(command=("true",))
    assert spec.with_(pids_limit=5).pids_limit == 5
    with pytest.raises(SpecError, match=r"pids_limit"):
        spec.with_(pids_limit=-5)
    with pytest.raises(SpecError, match=r"pid_limit: there is no such field"):
        spec.with_(pid_limit=5)


PARTS: list[tuple[Any, dict[str, Any]]] = [
    (Volume, {"source": "rel", "target": "/x"}),
    (Volume, {"source": "/a\0", "target": "/x"}),
    (Volume, {"source": "/a", "target": "x"}),
    (Volume, {"source": "/a", "target": 5}),
    (Tmpfs, {"target": "/x", "size": 0}),
    (Tmpfs, {"target": "/x", "size": "1m"}),
    (Tmpfs, {"target": "/x", "mode": 0o10000}),
    (Ulimit, {"soft": 2, "hard": 1}),
    (Ulimit, {"soft": -1, "hard": 1}),
    (Ulimit, {"soft": -2, "hard": -2}),
    (Ulimit, {"soft": "1", "hard": 1}),
    (Blkio, {"weight": 9}),
    (Blkio, {"read_bps": (("sda", 1),)}),
    (Blkio, {"write_iops": (("/dev/sda", 0),)}),
    (Backoff, {"initial": 2, "max": 1}),
    (Backoff, {"initial": "1s"}),
    (Backoff, {"factor": 0.5}),
    (Backoff, {"jitter": 2}),
    (Backoff, {"reset_after": -1}),
    (RestartPolicy, {"condition": "maybe"}),
    (RestartPolicy, {"max_attempts": -1}),
    (RestartPolicy, {"success_exit_codes": {256}}),
    (RestartPolicy, {"success_exit_codes": {"1"}}),
    (RestartPolicy, {"start_limit_burst": -1}),
]


@pytest.mark.parametrize("kind, values", PARTS)
def test_parts_check_their_values(kind: Any, values: Any) -> None:
    with pytest.raises(SpecError):
        kind(**values)


@pytest.mark.parametrize("text, number", [(15, 15), ("15", 15), ("TERM", 15), ("sigterm", 15), ("RTMIN", 34), ("RTMIN+3", 37)])
def test_signal(text: int | str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "FOO", "TERM+1", "RTMIN+", "RTMIN+x", "RTMIN+99", "-1", "²"])
def test_bad_signal(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a signal"):
        parse_signal(text)


def test_capability() -> None:
    assert parse_capability("cap_net_raw") == parse_capability("NET_RAW") == "NET_RAW"
    assert parse_capability("all") == "ALL"
    with pytest.raises(ValueError, match=r'"NET_ROW" is not a capability'):
        parse_capability("NET_ROW")


JUNK = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text() | st.integers()) | st.binary()


@given(st.sampled_from(sorted(Spec.__dataclass_fields__)), JUNK)
def test_any_value_is_accepted_or_a_spec_error(name: str, value: Any) -> None:
    values: Any = {"command": ("true",), name: value}
    with contextlib.suppress(SpecError):
        Spec(**values)
