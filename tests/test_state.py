"""What comes back, and as JSON."""

from __future__ import annotations

import base64
import json
from dataclasses import fields
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tinyvisor.job import Job
from tinyvisor.spec import Spec
from tinyvisor.state import Exit, Result, Violation


def decoded(value: Any) -> bytes | None:
    """A stream or file of a result's JSON."""
    if value is None:
        return None
    return base64.b64decode(value["base64"]) if isinstance(value, dict) else str(value).encode()


@given(
    stdout=st.none() | st.binary(max_size=50),
    stderr=st.none() | st.binary(max_size=50) | st.text(max_size=20).map(lambda text: text.encode("utf-8", "replace")),
    files=st.dictionaries(
        st.binary(min_size=1, max_size=20).map(lambda name: name.decode("utf-8", "surrogateescape")), st.binary()
    ),
    reason=st.text(),
)
def test_json_and_back(stdout: bytes | None, stderr: bytes | None, files: dict[str, bytes], reason: str) -> None:
    result = Result(
        status="nonzero_exit", exit_code=3, reason=reason, wall=0.25, stdout=stdout, stderr=stderr, files=files,
        uncollected={"x": "a FIFO"}, limits_enforced=("pids_limit",),
        violations=(Violation("mount", "EPERM", 3),), job=Job(spec=Spec(command=("true",)), stdin=b"\xff"),
    )  # fmt: skip
    back = json.loads(json.dumps(result.to_json()))
    assert set(back) == {item.name for item in fields(Result)} - {"job"}
    back["stdout"], back["stderr"] = decoded(back["stdout"]), decoded(back["stderr"])
    back["files"] = {path: decoded(content) for path, content in back["files"].items()}
    for name in ("limits_enforced", "held_up_by"):
        back[name] = tuple(back[name])
    back["violations"] = tuple(map(Violation.from_json, back["violations"]))
    assert Result(**back) == result


def test_a_result_is_its_exit_and_more() -> None:
    exit = Exit(status="signaled", signal=9, wall=1.5, oom_killed=True, limits_enforced=("mem_limit",))
    result = Result.of(exit, id="x", stdout=b"out")
    assert {item.name: getattr(result, item.name) for item in fields(Exit)} == {
        item.name: getattr(exit, item.name) for item in fields(Exit)
    }
    assert (result.id, result.stdout, result.returncode) == ("x", b"out", 137)


def test_the_job_is_not_part_of_what_is_compared_or_shown() -> None:
    """It may be large, or the caller's own kind."""
    assert Result(status="ok", job=object()) == Result(status="ok", job=object())
    assert "secret" not in repr(Result(status="ok", job="secret"))
