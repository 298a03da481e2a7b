"""The output directory: names that ids become, and that nothing leads out of it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvisor.digests import WIDTH
from tinyvisor.errors import TinyvisorError
from tinyvisor.jobs import NumberedJob
from tinyvisor.outputs import OutputDir, file_name
from tinyvisor.spec import Spec
from tinyvisor.state import Result


def job(id: str, *, index: int = 1, attempt: int = 1, command: tuple[str, ...] = ("true",)) -> NumberedJob:
    digest = hashlib.blake2b(repr((id, command)).encode(), digest_size=WIDTH).digest()
    return NumberedJob(spec=Spec(command=command), id=id, index=index, attempt=attempt, digest=digest)


def result(**more: object) -> Result:
    return Result(status="ok", exit_code=0, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "id, name",
    [
        ("case-1_a.b", "case-1_a.b"),
        ("x#3", "x#3"),
        ("a/b", "a%2Fb"),
        ("..", "%2E."),
        (".hidden", "%2Ehidden"),
        ("a b%", "a%20b%25"),
        ("ä", "%C3%A4"),
        ("a.out", "a%2Eout"),
    ],
)
def test_names(id: str, name: str) -> None:
    assert file_name(id) == name


IDS = st.text(min_size=1, max_size=200)


@given(IDS, IDS)
def test_names_are_safe_and_all_different(one: str, two: str) -> None:
    one, two = (text.encode("utf-8", "replace").decode() for text in (one, two))
    for id in (one, two):
        name = file_name(id)
        assert 0 < len(name) <= 200
        assert "/" not in name
        assert "\0" not in name
        assert not name.startswith(".")
    if one != two:
        # Neither does a file of one stand where the other's directory is.
        assert {file_name(one) + end for end in ("", ".out", ".err")}.isdisjoint(
            file_name(two) + end for end in ("", ".out", ".err")
        )


def test_everything_is_written(tmp_path: Path) -> None:
    with OutputDir(tmp_path / "new" / "dir") as outputs:
        found = outputs.save(result(stdout=b"out", stderr=b"err", files={"a": b"1", "b/c/d": b"2"}), job("x/y"))
        assert outputs.save(result(stdout=None, stderr=b""), job("z")) == {}
    root = tmp_path / "new" / "dir"
    assert found == {"a": {"file": "x%2Fy/a"}, "b/c/d": {"file": "x%2Fy/b/c/d"}}
    assert {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()} == {
        "x%2Fy.out": b"out", "x%2Fy.err": b"err", "x%2Fy/a": b"1", "x%2Fy/b/c/d": b"2", "z.err": b"",
    }  # fmt: skip


def test_a_directory_with_something_in_it_is_for_resuming(tmp_path: Path) -> None:
    (tmp_path / "x.out").write_text("old, and longer")
    with pytest.raises(TinyvisorError, match="not empty; go on with --resume"):
        OutputDir(tmp_path)
    with OutputDir(tmp_path, resume=True) as outputs:
        outputs.save(result(stdout=b"new"), job("x"))
    assert (tmp_path / "x.out").read_bytes() == b"new"
    with pytest.raises(TinyvisorError, match="can't be made or opened"):
        OutputDir(tmp_path / "x.out" / "below")


@pytest.mark.parametrize("path", ["../out", "/etc/x", "a/../../x", "a//b", ".", "a/", "a\0b", ""])
def test_collected_names_do_not_lead_out(tmp_path: Path, path: str) -> None:
    with OutputDir(tmp_path / "dir") as outputs, pytest.raises(TinyvisorError, match="can't be written"):
        outputs.save(result(files={path: b"bad"}), job("x"))
    assert not [found for found in tmp_path.rglob("*") if found.is_file()]


def test_links_are_not_followed(tmp_path: Path) -> None:
    """A job can have the directory as a volume."""
    outside, inside = tmp_path / "outside", tmp_path / "dir"
    outside.mkdir()
    inside.mkdir()
    (outside / "file").write_text("precious")
    (inside / "x.out").symlink_to(outside / "file")
    (inside / "x").symlink_to(outside)
    os.mkfifo(inside / "x.err")
    with OutputDir(inside, resume=True) as outputs:
        outputs.save(result(stdout=b"new", stderr=b"new"), job("x"))
        with pytest.raises(TinyvisorError, match="can't be written"):
            outputs.save(result(files={"file": b"bad"}), job("x"))
    assert (outside / "file").read_text() == "precious"
    assert (inside / "x.out").read_bytes() == (inside / "x.err").read_bytes() == b"new"
