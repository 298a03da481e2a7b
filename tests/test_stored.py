"""Dataclasses as JSON and back."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvisor import stored
from tinyvisor.policy import State
from tinyvisor.spec import (
    Backoff,
    Blkio,
    Dependency,
    Healthcheck,
    Hook,
    RestartPolicy,
    Schedule,
    Secret,
    Service,
    Spec,
    Tmpfs,
    Ulimit,
    Volume,
)
from tinyvisor.state import Exit

FULL = Service(
    spec=Spec(
        command=("sh", "-c", "echo $X"),
        name="web",
        environment={"X": "ü"},
        rootfs=Path("/images/web"),
        seccomp=Path("/profiles/web.json"),
        volumes=(Volume(Path("/data"), "/data", read_only=True),),
        tmpfs=(Tmpfs("/scratch", size=1 << 20),),
        cpuset=frozenset({3, 1}),
        blkio=Blkio(read_bps=(("/dev/sda", 1 << 20),)),
        ulimits={"nofile": Ulimit(10, 20)},
        cpus=1,
        stop_grace_period=0.5,
    ),
    restart=RestartPolicy(
        condition="on-failure",
        backoff=Backoff(initial=0.5),
        restart_force_exit_codes=frozenset({3, "SIGKILL", 1}),
        schedule=Schedule(interval=3.0),
    ),
    depends_on={"db": Dependency(condition="service_healthy", restart=True)},
    healthcheck=Healthcheck(test=("true",)),
    post_start=(Hook(command=("x",), environment={"A": "b"}),),
    labels={"a": "b"},
)


def test_what_a_secret_is_is_not_stored() -> None:
    for source in ({"environment": "KEY"}, {}):
        secret = Secret(target="key", content=b"top secret", **source)  # type: ignore[arg-type]
        found = json.dumps(stored.to_json(Spec(command=("true",), secrets=(secret,))))
        assert "top secret" not in found
        assert base64.b64encode(b"top secret").decode() not in found
        (known,) = stored.from_json(Spec, json.loads(found)).secrets
        assert (known, known.content) == (secret, None), "equal: a reload finds no change"


def again(kind: Any, value: Any) -> Any:
    return stored.from_json(kind, json.loads(json.dumps(stored.to_json(value))))


@pytest.mark.parametrize(
    "value",
    [
        FULL,
        Service(spec=Spec(command=("true",))),
        State(phase="backoff", attempt=3, due=1.5, starts=(1.0, 2.0), reason="exit 1"),
        Exit(status="ok", exit_code=0, held_up_by=("a[1]",), memory_peak=1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_same_comes_back(value: Any) -> None:
    assert again(type(value), value) == value


@given(
    st.builds(
        Spec,
        command=st.tuples(st.text('abc\\"ü', min_size=1)),
        environment=st.dictionaries(st.text("AB", min_size=1), st.text("aü\n'")),
    )
)
def test_any_text_comes_back(spec: Spec) -> None:
    assert again(Spec, spec) == spec


def test_what_has_its_default_is_left_out() -> None:
    assert stored.to_json(Spec(command=("true",))) == {"": "Spec", "command": ["true"]}


def test_a_number_that_equals_a_default_of_another_type_is_not_lost() -> None:
    assert again(Spec, Spec(command=("true",), pids_limit=1)).pids_limit == 1
    assert stored.to_json(Exit(status="ok", exit_code=0))["exit_code"] == 0


def test_fields_of_another_version_are_passed_over() -> None:
    found = stored.from_json(Exit, {"": "Exit", "status": "ok", "exit_code": 0, "colour": "blue"})
    assert found == Exit(status="ok", exit_code=0)


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {"": "Exit"},
        {"": "Exit", "status": "fine"},
        {"": "Exit", "status": "ok", "exit_code": "0"},
        {"": "Exit", "status": "ok", "wall": True},
        {"": "Exit", "status": "ok", "held_up_by": "a"},
    ],
)
def test_what_is_none_is_refused(content: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        stored.from_json(Exit, content)


def test_the_class_checks_too() -> None:
    with pytest.raises(ValueError, match="command"):
        stored.from_json(Spec, {"command": []})
