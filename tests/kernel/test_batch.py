"""`tinyvisor batch` as it is typed: real containers, real signals, real kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.kernel.command import BOUND, Running, arguments, environment, results, tinyvisor, write

pytestmark = pytest.mark.kernel


def test_a_batch_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("from a file\n")
    jobs = tmp_path / "jobs.yaml"
    jobs.write_text("""
defaults: {mem_limit: 64m, pids_limit: 20, timeout: 30s}
jobs:
- id: files
  command: [sh, -c, "cat a.txt sub/b.txt; cat; echo made > out.txt; ln -s /etc/passwd link"]
  files: {a.txt: "$inline\\n", sub/b.txt: {file: data.txt}}
  stdin: input
  collect: [out.txt, link, missing]
- {id: code, command: [sh, -c, "echo sorry >&2; exit 3"]}
- {id: slow, command: [sleep, "1000"], timeout: 200ms}
- {id: memory, command: [python3, -c, "x = bytearray(1 << 28)"]}
- {id: flood, command: [sh, -c, "yes"], output_limit: 1000}
- {id: missing, command: [/no/such/program]}
- {id: twice, command: [hostname], repeat: 2}
""")
    ended = tinyvisor(
        "batch", "-j", "3", "--results", tmp_path / "r", "--output-dir", tmp_path / "out", "--report", tmp_path / "r.html", jobs
    )
    assert ended.returncode == 1, ended.stderr
    found = results(tmp_path / "r")
    assert {id: each["status"] for id, each in found.items()} == {
        "files": "ok", "code": "nonzero_exit", "slow": "time_limit", "memory": "memory_limit", "flood": "output_limit",
        "missing": "sandbox_error", "twice#1": "ok", "twice#2": "ok",
    }  # fmt: skip
    assert found["files"]["stdout"] == "$inline\nfrom a file\ninput"
    assert found["files"]["files"] == {"out.txt": {"file": "files/out.txt"}}
    assert set(found["files"]["uncollected"]) == {"link", "missing"}
    assert (tmp_path / "out" / "files" / "out.txt").read_text() == "made\n"
    assert (tmp_path / "out" / "code.err").read_text() == "sorry\n"
    assert len(found["flood"]["stdout"]) <= 1000
    assert "/no/such/program" in found["missing"]["reason"]
    assert found["memory"]["oom_killed"]
    assert "code: nonzero_exit: exit 3: sorry" in ended.stderr
    assert "8 jobs in" in ended.stderr
    assert "<td>sandbox_error</td>" in (tmp_path / "r.html").read_text()


def test_each_with_options(tmp_path: Path) -> None:
    ended = tinyvisor(
        "batch", "--each", "sh -c 'echo $1 $VAR; pwd; id -u' x {}", "-e", "VAR=value", "-w", "/tmp", "-u", "65534",
        "--results", "-", "a b", "$(reboot)",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert {json.loads(line)["stdout"] for line in ended.stdout.splitlines()} == {
        "a b value\n/tmp\n65534\n",
        "$(reboot) value\n/tmp\n65534\n",
    }


def test_lines_of_stdin_are_answered_one_by_one() -> None:
    with subprocess.Popen(
        arguments("batch", "--results", "-", "-q", "-"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for number in range(5):
                process.stdin.write(json.dumps({"command": ["echo", str(number)]}).encode() + b"\n")
                process.stdin.flush()
                assert json.loads(process.stdout.readline())["stdout"] == f"{number}\n"
            process.stdin.close()
            assert process.wait(BOUND) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_batch_is_resumed(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """Jobs wait for a file that comes only before the second run."""
    gate = tmp_path / "gate"
    gate.mkdir()
    wait = ["sh", "-c", "until [ -e /gate/open ]; do sleep 0.05; done"]
    jobs = [{"id": f"quick{n}", "command": ["true"]} for n in range(5)] + [{"id": f"slow{n}", "command": wait} for n in range(4)]
    file = write(tmp_path / "jobs.jsonl", *jobs)
    words = ("batch", "-j", "2", "--verbose", "--results", tmp_path / "r", "--resume", "-v", f"{gate}:/gate:ro", file)
    with Running(words) as running:
        running.expect_all(*(f"^quick{n}: ok" for n in range(5)))
        running.signal(number)
        assert running.end() == code
        assert "go on with --resume" in running.text
    assert set(results(tmp_path / "r")) == {f"quick{n}" for n in range(5)}
    (gate / "open").touch()
    ended = tinyvisor(*words)
    assert ended.returncode == 0, ended.stderr
    assert len(results(tmp_path / "r")) == 9
    assert "(5 of them before)" in ended.stderr


def test_kill_9_at_any_time_loses_no_job_and_runs_none_twice(tmp_path: Path) -> None:
    """The supervisor is killed again and again; each job has one result in the end."""
    file = write(tmp_path / "jobs.jsonl", *({"id": str(n), "command": ["echo", "x" * 5000]} for n in range(60)))
    words = ("batch", "-j", "2", "--results", tmp_path / "r", "--resume", "--verbose", file)
    for _ in range(3):
        with Running(words) as running:
            for _ in range(5):
                running.expect("ok in")
            running.signal(signal.SIGKILL)
            running.process.wait(BOUND)
    ended = tinyvisor(*words)
    assert ended.returncode == 0, ended.stderr
    counts = Counter(json.loads(line)["id"] for line in (tmp_path / "r").read_text().splitlines())
    assert counts == Counter(str(n) for n in range(60))
    assert "of them before" in ended.stderr


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.mkdir()
    file = write(
        tmp_path / "jobs.jsonl",
        {"id": "quick", "command": ["true"]},
        {"id": "bad", "command": ["sh", "-c", "printf '\\033[2Jgone' >&2; exit 1"]},
        {"id": "waiting", "command": ["sh", "-c", "until [ -e /gate/open ]; do sleep 0.05; done"]},
    )
    with Running(("batch", "-j", "2", "-v", f"{gate}:/gate:ro", file), terminal=True) as running:
        running.expect_all("bad: nonzero_exit: exit 1: gone", "2/3", "1 ok", "1 nonzero_exit", "1 running: waiting")
        assert "\x1b[2J" not in running.text
        (gate / "open").touch()
        assert running.end() == 1
        assert "3 jobs in" in running.text


def test_a_job_can_not_reach_the_results(tmp_path: Path) -> None:
    """What root in a container finds of the batch: nothing but its own stdio; not the results file, not the job file."""
    script = "ls -l /proc/self/fd/ /proc/1/fd/ 2>&1; find / -xdev -name 'results-of-batch*' 2>/dev/null; true"
    file = write(tmp_path / "jobs-of-batch.jsonl", {"id": "x", "command": ["sh", "-c", script], "stdin": "y"})
    ended = tinyvisor("batch", "--results", tmp_path / "results-of-batch", "--output-dir", tmp_path / "out", file)
    assert ended.returncode == 0, ended.stderr
    seen = results(tmp_path / "results-of-batch")["x"]["stdout"]
    assert "of-batch" not in seen
    assert str(tmp_path) not in seen


def test_the_results_are_nobody_elses_to_write(tmp_path: Path) -> None:
    file = write(tmp_path / "jobs.jsonl", {"id": "x", "command": ["true"]})
    assert tinyvisor("batch", "--results", tmp_path / "r", file).returncode == 0
    assert (tmp_path / "r").stat().st_mode & 0o022 == 0
    assert os.access(tmp_path / "r", os.R_OK)
