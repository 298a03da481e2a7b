"""The words: what a `Spec` refuses, and how it says so."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvisor.errors import SpecError
from tinyvisor.job import Job
from tinyvisor.spec import (
    Backoff,
    Blkio,
    Dependency,
    Healthcheck,
    Hook,
    Http,
    Limits,
    Logging,
    RestartPolicy,
    Schedule,
    Secret,
    Service,
    Spec,
    SyscallRule,
    Tcp,
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
    ("rootfs", "/a\0b"),
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
    ("landlock", "none"),
    ("landlock", True),
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


WHOLE: dict[Any, dict[str, Any]] = {
    Spec: {"command": ("true",)}, Limits: {}, Volume: {"source": "/a", "target": "/b"}, Tmpfs: {"target": "/x"},
    Secret: {"target": "x", "content": b"x"}, Ulimit: {"soft": 1, "hard": 2}, Blkio: {},
    SyscallRule: {"syscall": "x", "action": "deny"}, Backoff: {}, Schedule: {"interval": 5.0}, RestartPolicy: {}, Dependency: {},
    Tcp: {"port": 1}, Http: {"port": 1}, Healthcheck: {"test": ("x",)}, Hook: {"command": ("x",)}, Logging: {},
    Service: {"spec": Spec(command=("true",))}, Job: {"spec": Spec(command=("true",))},
}  # fmt: skip
ALIEN: tuple[Any, ...] = (object(), float("nan"), b"\xff", [None], {1: "a"}, {"a": 1}, [object()], -(10**30))
"""Fits nowhere."""


@pytest.mark.parametrize("kind, name", [(kind, item.name) for kind in WHOLE for item in fields(kind) if item.init])
def test_what_fits_nowhere_is_refused_in_one_line_that_says_where(kind: Any, name: str) -> None:
    kind(**WHOLE[kind])
    for value in ALIEN:
        if (name, value) in ((("content", b"\xff"), ("stdin", b"\xff"))):  # any bytes will do
            continue
        with pytest.raises(SpecError) as caught:
            kind(**WHOLE[kind] | {name: value})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind, name, value, field",
    [
        (Spec, "blkio", {}, "blkio"), (Volume, "read_only", 1, "volumes"), (Backoff, "factor", True, "backoff.factor"),
        (Blkio, "write_bps", ["/dev/sda"], "blkio_config.device_write_bps"), (Healthcheck, "retries", 1.5, "healthcheck.retries"),
        (RestartPolicy, "max_attempts", "3", "max_attempts"), (Service, "restart", "always", "restart"),
        (RestartPolicy, "restart_force_exit_codes", ["KILL"], "restart_force_exit_codes"), (Logging, "tag", 5, "logging.tag"),
        (Service, "depends_on", {"a": "service_healthy"}, "depends_on"), (Service, "pre_stop", [("true",)], "pre_stop"),
        (Spec, "command", {"true"}, "command"), (Job, "collect", "*.txt", "collect"), (Spec, "cpus", 8193, "cpus"),
    ],
)  # fmt: skip
def test_a_wrong_kind_is_a_spec_error_at_its_field(kind: Any, name: str, value: Any, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        kind(**WHOLE[kind] | {name: value})
    assert caught.value.field == field


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


# ---- changed copies ----

WORDS = st.text(max_size=5) | st.sampled_from(["true", "a\0", "\ud800", "\udcff", 5, None])
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "command": st.lists(WORDS, max_size=3) | st.tuples(WORDS) | st.sampled_from([None, "ls", b"ls", 5, ["true"], ("a", "b")]),
        "environment": st.dictionaries(WORDS, WORDS, max_size=3) | st.sampled_from([None, "A=1", 5, {}, {"A": "b"}]),
        "name": st.text(max_size=3) | st.sampled_from(["x", "a-b", None, 5, "a" * 64, "-", ""]),
    },
)


@given(CHANGES)
def test_the_cheap_way_to_change_is_the_same_as_the_careful_one(changes: dict[str, Any]) -> None:
    spec = Spec(command=("x",), environment={"K": "v"}, mem_limit=5, cpuset=frozenset({1}), ulimits={"core": Ulimit(0, 0)})
    before = replace(spec)

    def outcome(change: Callable[[], Spec]) -> object:
        try:
            return change()
        except SpecError as exc:
            return exc.field, exc.problem

    cheap, careful = outcome(lambda: spec.with_(**changes)), outcome(lambda: replace(spec, **changes))
    if isinstance(careful, Spec):
        assert cheap == careful
        assert isinstance(cheap, Spec)
        assert [type(getattr(cheap, item.name)) for item in fields(Spec)] == [
            type(getattr(careful, item.name)) for item in fields(Spec)
        ]
    else:  # where two are wrong, either may be named
        assert isinstance(cheap, tuple)
        assert cheap[0] in changes
        if len(changes) == 1:
            assert cheap == careful
    assert spec == before


@pytest.mark.parametrize("field, value", BAD)
def test_wrong_changes_are_refused_as_wrong_values_are(field: str, value: Any) -> None:
    with pytest.raises(SpecError) as at_construction:
        Spec(**{"command": ("true",), field: value})
    with pytest.raises(SpecError) as at_change:
        Spec(command=("true",)).with_(**{field: value})
    assert str(at_change.value) == str(at_construction.value)


def test_a_changed_field_that_there_is_not_is_named() -> None:
    with pytest.raises(SpecError, match="mem_limits: there is no such field"):
        Spec(command=("true",)).with_(mem_limits=5)


@pytest.mark.parametrize("field", ["command", "environment", "hostname", "working_dir", "user"])
def test_text_that_can_not_be_encoded_is_refused(field: str) -> None:
    """Else it would come up in the middle of a launch."""
    value: Any = {"command": ("true", "\ud800"), "environment": {"A": "\ud800"}, "working_dir": "/\ud800"}.get(field, "\ud800")
    with pytest.raises(SpecError) as caught:
        Spec(**{"command": ("true",), field: value})
    assert caught.value.field == field


def test_bytes_that_are_no_utf8_can_be_said() -> None:
    assert Spec(command=("echo", os.fsdecode(b"\xff"))).command[1] == "\udcff"


# ---- limits ----


@pytest.mark.parametrize(
    "field, value",
    [
        ("memory", "64q"), ("memory", -1), ("memory", 0), ("memory", "0"), ("memory", True), ("memory", 1.5), ("memory", b"64m"),
        ("pids", 0), ("pids", -1), ("pids", "5"), ("pids", 1.0), ("pids", True),
        ("wall", "2x"), ("wall", 0), ("wall", "0s"), ("wall", -1), ("wall", float("nan")), ("wall", float("inf")), ("wall", []),
        ("cpu_time", "x"), ("cpu_time", 0), ("cpu_time", float("nan")), ("cpu_time", False),
        ("cpus", "2"), ("cpus", 0), ("cpus", -0.5), ("cpus", float("inf")), ("cpus", True),
        ("output", "1x"), ("output", 0), ("output", -5), ("disk", "big"), ("disk", 0), ("disk", "0m"),
        ("files", 0), ("files", "1k"), ("files", 2.5), ("open_files", 0), ("open_files", "5"),
    ],
)  # fmt: skip
def test_wrong_limits_name_the_limit(field: str, value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        Limits(**{field: value})
    assert caught.value.field == f"limits.{field}"
    assert str(caught.value).startswith(f"limits.{field}: ")


def test_limits_are_spec_fields() -> None:
    limits = Limits(
        memory="64m", pids=20, wall="2s", cpu_time="500ms", cpus=0.5, output="1k", disk="1m", files=100, open_files=64
    )
    assert limits.spec_fields() == {
        "mem_limit": 64 << 20, "pids_limit": 20, "timeout": 2.0, "cpu_time": 0.5, "cpus": 0.5, "output_limit": 1024,
        "storage_size": 1 << 20, "storage_inodes": 100, "ulimits": {"nofile": Ulimit(64, 64)},
    }  # fmt: skip
    assert Limits().spec_fields() == {}
    Spec(command=("true",)).with_(**limits.spec_fields())


# ---- secrets ----


def test_a_secret_is_shown_nowhere_and_compared_all_the_same() -> None:
    secret = Secret(target="key", content=b"pass-word")
    assert "pass-word" not in repr(secret)
    assert secret.digest not in repr(secret)
    assert secret == Secret(target="key", content=b"pass-word")
    assert secret != Secret(target="key", content=b"other")
    assert replace(secret, content=b"other") == Secret(target="key", content=b"other")
    assert "pass-word" not in repr(Service(spec=Spec(command=("x",), secrets=(secret,))))


@pytest.mark.parametrize(
    "fields",
    [
        {"target": "a/b", "content": b""}, {"target": "..", "content": b""}, {"target": "", "content": b""},
        {"target": "a\0", "content": b""}, {"target": "x" * 256, "content": b""}, {"target": "a"},
        {"target": "a", "content": b"", "file": Path("/x")}, {"target": "a", "file": Path("x")},
        {"target": "a", "content": "text"},
        {"target": "a", "content": b"x" * 512_001}, {"target": "a", "content": b"", "uid": -1},
        {"target": "a", "content": b"", "mode": 0o1777}, {"target": "a", "content": b"", "gid": True},
    ],
)  # fmt: skip
def test_what_is_no_secret(fields: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        Secret(**fields)


def test_what_a_container_has_for_itself_can_t_be_mounted_over() -> None:
    secrets = (Secret(target="key", content=b""),)
    for target in ("/run/secrets", "/run/./secrets/", "/run//secrets/key"):
        with pytest.raises(SpecError, match="where the secrets are"):
            Spec(command=("x",), secrets=secrets, tmpfs=(Tmpfs(target),))
    with pytest.raises(SpecError, match="where NOTIFY_SOCKET is"):
        Spec(command=("x",), notify_socket=True, volumes=(Volume(Path("/x"), "/run/notify"),))
    Spec(command=("x",), tmpfs=(Tmpfs("/run/secrets"), Tmpfs("/run")))
    Spec(command=("x",), secrets=secrets, tmpfs=(Tmpfs("/run"), Tmpfs("/run/secret")))
    with pytest.raises(SpecError, match="needs notify_socket"):
        Spec(command=("x",), watchdog=2)
    with pytest.raises(SpecError, match="from 3 to 255"):
        Spec(command=("x",), notification_fd=2)
