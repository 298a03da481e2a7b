"""The results file: what a line is, and that any beginning of a file can be resumed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_outputs import job
from tinyvisor.errors import TinyvisorError
from tinyvisor.jobs import NumberedJob
from tinyvisor.journal import STATUSES, Journal, format_line
from tinyvisor.state import Result, Status


def result(status: Status = "ok", stdout: bytes = b"", **more: object) -> Result:
    return Result(status=status, exit_code=0, stdout=stdout, stderr=b"", **more)  # type: ignore[arg-type]


def write(path: Path, jobs: Iterable[NumberedJob], *, resume: bool = False, stdout: bytes = b"") -> list[str]:
    """Runs those that are not done; their ids."""
    run = []
    with Journal(path, resume=resume) as journal:
        for each in jobs:
            if journal.status(each) is None:
                journal.append(format_line(result(stdout=stdout), each))
                run.append(each.id)
    return run


def test_a_line_has_all_of_a_result(tmp_path: Path) -> None:
    path = tmp_path / "results"
    found = result("time_limit", b"\xff", wall=2.5, files={"a": b"b"}, reason='quote " and \n line')
    with Journal(path) as journal:
        journal.append(format_line(found, job("x", index=7, attempt=2)))
        journal.append(format_line(found, job("y"), files={"a": {"file": "y/a"}}))
    first, second = map(json.loads, path.read_text().splitlines())
    assert first == found.to_json() | {
        "id": "x", "index": 7, "attempt": 2, "digest": job("x", index=7).digest.hex(), "held_up_by": [], "limits_enforced": [],
        "violations": [],
    }  # fmt: skip
    assert first["stdout"] == {"base64": "/w=="}
    assert second["files"] == {"a": {"file": "y/a"}}


def test_what_is_there_is_done_with_its_status(tmp_path: Path) -> None:
    path = tmp_path / "results"
    with Journal(path) as journal:
        for status in STATUSES:
            journal.append(format_line(result(status), job(f'"{status}\\')))  # type: ignore[arg-type]
    with Journal(path, resume=True) as journal:
        assert [journal.status(job(f'"{status}\\')) for status in STATUSES] == list(STATUSES)
        assert journal.status(job("other")) is None
        assert journal.status(job('"ok\\', command=("changed",))) is None


def test_a_file_that_a_json_tool_has_rewritten_is_still_ours(tmp_path: Path) -> None:
    path = tmp_path / "results"
    write(path, [job("a"), job("b")])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line, separators=(",", ":"), sort_keys=True) + "\n" for line in lines))
    assert write(path, [job("a"), job("b"), job("c")], resume=True) == ["c"]


def test_what_has_begun_is_known_to_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "results"
    with Journal(path) as journal:
        assert not journal.begun_path.exists()
        for name in ("a", "b"):
            journal.begin(job(name))
            assert not journal.has_begun(job(name))
    with journal.begun_path.open("ab") as file:
        file.write(b"0123")  # torn
    for _ in range(2):
        with Journal(path, resume=True) as journal:
            assert [journal.has_begun(job(name)) for name in "abc"] == [True, True, False]
    with Journal(path) as journal:
        assert not journal.begun_path.exists()
    with Journal(Path("-")) as journal:
        journal.begin(job("a"))


def test_what_can_not_be_written_down_must_not_begin(tmp_path: Path) -> None:
    with Journal(tmp_path / "results") as journal:
        journal.begun_path.mkdir()
        with pytest.raises(TinyvisorError, match=r"results\.begun can't be written"):
            journal.begin(job("a"))


@given(
    ids=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=5), unique=True, max_size=5),
    stdout=st.sampled_from([b"", b"x" * 50, b'\n{"id": "', b"\xff\n"]),
    data=st.data(),
)
def test_any_beginning_of_a_file_resumes_to_one_result_per_job(ids: list[str], stdout: bytes, data: st.DataObject) -> None:
    jobs = [job(id) for id in ids]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "results")
        write(path, jobs, stdout=stdout)
        whole = path.read_bytes()
        for _ in range(2):  # killed, resumed, and killed again
            os.truncate(path, data.draw(st.integers(0, path.stat().st_size)))
            kept = path.read_bytes().count(b"\n")
            assert write(path, jobs, resume=True, stdout=stdout) == ids[kept:]
            assert path.read_bytes() == whole
        counts = Counter(json.loads(line)["id"] for line in path.read_bytes().splitlines())
    assert counts == Counter(ids)


@pytest.mark.parametrize(
    "text, line",
    [
        ("notes\n", 1),
        ("notes without a newline", 1),
        ('{"other": "json"}\n', 1),
        ('{"other": "torn', 1),
        ("{\n", 1),
        ('{"id": "a", "digest": "00", "status": "ok"}\n', 1),
        ('{"id": "a", "digest": "' + "0" * 30 + '", "status": "fine"}\n', 1),
        ('{"id": "a", "digest": "' + "0" * 30 + '", "status": "ok"}\ngarbage\n', 2),
        ('{"id": "a", "digest": "' + "0" * 30 + '", "status": "ok"}\ngarbage', 2),
        ("[1]\n", 1),
        ("{" * 100_000 + "\n", 1),
    ],
)
def test_another_file_is_refused_and_stays(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "results"
    path.write_text(text)
    with pytest.raises(TinyvisorError, match=f"results:{line}: this is no result of a batch"):
        Journal(path, resume=True)
    assert path.read_text() == text


def test_results_are_not_mixed_by_accident(tmp_path: Path) -> None:
    path = tmp_path / "results"
    write(path, [job("a")])
    with pytest.raises(TinyvisorError, match="not empty; go on with --resume"):
        Journal(path)
    with Journal(path, resume=True), pytest.raises(TinyvisorError, match="being written by another batch"):
        Journal(path, resume=True)
    with pytest.raises(TinyvisorError, match="can't be opened for results: Is a directory"):
        Journal(tmp_path)
    with pytest.raises(TinyvisorError, match="nothing in it to resume"):
        Journal(Path("/dev/null"), resume=True)


def test_a_line_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = os.write
    line = format_line(result(stdout=b"x" * (1 << 20)), job("a"))

    def write(fd: int, data: bytes) -> int:
        calls.append(len(data))
        return original(fd, data)

    with Journal(tmp_path / "results") as journal:
        monkeypatch.setattr(os, "write", write)
        journal.append(line)
    assert calls == [len(line)]


def test_what_does_not_fit_on_the_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.write
    room = 20

    def full(fd: int, data: memoryview) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = original(fd, data[:room])
        room -= done
        return done

    path = tmp_path / "results"
    write(path, [job("a")])
    before = path.read_bytes()
    with Journal(path, resume=True) as journal:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(TinyvisorError, match="results can't be written: No space left"):
            journal.append(format_line(result(), job("b")))
    assert path.read_bytes() == before


def test_kill_9_leaves_a_file_that_can_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "results"
    code = f"""
import itertools
from pathlib import Path
from tests.test_journal import format_line, job, result
from tinyvisor.journal import Journal
with Journal(Path({str(path)!r})) as journal:
    for number in itertools.count():
        journal.append(format_line(result(stdout=b"x" * 100_000), job(str(number))))
        if number == 20:
            print("ready", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    with Journal(path, resume=True) as journal:
        done = len(journal.done)
        assert done >= 21
        assert all(journal.status(job(str(number))) == "ok" for number in range(done))
    assert path.read_bytes().count(b"\n") == done
