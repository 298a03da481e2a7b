"""A job: what it refuses, before anything is started."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvisor.errors import SpecError
from tinyvisor.job import Job
from tinyvisor.spec import Spec

SPEC = Spec(command=("true",))


@pytest.mark.parametrize(
    "field, value",
    [
        ("spec", ["true"]),
        ("spec", None),
        ("id", 5),
        ("id", None),
        ("stdin", 5),
        ("stdin", bytearray(b"x")),
        ("stdin", "a\0b"),
        ("files", ["a"]),
        ("files", {5: b""}),
        ("files", {b"a": b""}),
        ("files", {"a": 5}),
        ("files", {"a": bytearray(b"x")}),
        ("files", {"a": None}),
        ("files", {"a": "b\0"}),
        ("collect", "out"),
        ("collect", b"out"),
        ("collect", (5,)),
        ("retry", "once"),
        ("retry", None),
    ],
)
def test_wrong_values_name_the_field(field: str, value: Any) -> None:
    arguments: dict[str, Any] = {"spec": SPEC, field: value}
    with pytest.raises(SpecError) as caught:
        Job(**arguments)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "path", ["", "/", ".", "./", "..", "../x", "a/../../x", "a/..", "/etc/passwd", "a\0b", "\ud800", "a/\udfff", "//x"]
)
@pytest.mark.parametrize("field", ["files", "collect"])
def test_paths_stay_below_the_working_directory(field: str, path: str) -> None:
    arguments: dict[str, Any] = {"spec": SPEC, field: {path: b""} if field == "files" else [path]}
    with pytest.raises(SpecError) as caught:
        Job(**arguments)
    assert caught.value.field == field


@pytest.mark.parametrize("path", ["a", "a/b", "./a", "a//b", ".hidden", "..a", "a..", "ä/ß", "a b", "\udcff", "a\nb", "*?[x]"])
def test_ordinary_and_odd_paths_are_fine(path: str) -> None:
    assert Job(spec=SPEC, files={path: b""}, collect=[path]).collect == (path,)  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [{"stdin": "/etc/shadow"}, {"files": {"answer": "/etc/shadow"}}])
def test_text_is_no_path(values: Any) -> None:
    """Who takes it for the content may have it from somebody else: whose it is would be given a file of the host."""
    with pytest.raises(SpecError, match="expected bytes or a Path"):
        Job(spec=SPEC, **values)


@given(st.text())
def test_what_is_taken_can_be_used(path: str) -> None:
    """No other error, then or later: a path that is taken has bytes, and parts that lead down."""
    try:
        Job(spec=SPEC, files={path: b""})
    except SpecError:
        return
    path.encode("utf-8", "surrogateescape")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    assert parts
    assert ".." not in parts
    assert not path.startswith("/")
