"""`tinyvisor batch` over a runtime without a kernel: options, inputs, exit codes, signals, what is told."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import click
import pytest

from tests.fake_batch import FakeRuntime, fails, succeed
from tests.kernel.command import BOUND, ROOT, environment
from tinyvisor import __main__ as entry
from tinyvisor.cli import batchrun
from tinyvisor.cli.batch import cpus, parse_concurrency, parse_report, parse_statuses
from tinyvisor.cli.failures import ExitCodes
from tinyvisor.cli.progress import Board, Snapshot, headline, render
from tinyvisor.jobs import NumberedJob
from tinyvisor.spec import Spec, Tmpfs, Volume
from tinyvisor.state import Result

Command = Callable[..., int]


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def batch(runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs the command in this process, in `tmp_path`; its exit code."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[FakeRuntime]:
        yield runtime

    def run(*words: str | Path) -> int:
        return entry._invoke(["batch", *map(str, words)], ExitCodes())

    monkeypatch.setattr(batchrun, "open_runtime", opened)
    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture
def stdin() -> Iterator[Callable[..., int]]:
    """Makes stdin a pipe that has these bytes. Its writer is closed unless it is to be kept, and then the test's."""
    saved = os.dup(0)

    def give(data: bytes, *, keep: bool = False) -> int:
        reader, writer = os.pipe()
        os.dup2(reader, 0)
        os.close(reader)
        os.write(writer, data)
        if not keep:
            os.close(writer)
        return writer

    yield give
    os.dup2(saved, 0)
    os.close(saved)


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def lines(*entries: dict[str, Any]) -> str:
    return "".join(json.dumps(each) + "\n" for each in entries)


JOBS = lines(*({"id": f"j{number}", "command": ["true"]} for number in range(1, 6)))


# ---- options ----


def test_concurrency() -> None:
    assert parse_concurrency("8") == 8
    assert parse_concurrency("200%") == 2 * cpus()
    assert parse_concurrency("1%") == 1
    for text in ("0", "-1", "many", "0%", "1.5"):
        with pytest.raises(ValueError, match="not a number of jobs"):
            parse_concurrency(text)


def test_cpus_are_those_that_we_may_use() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from tinyvisor.cli.batch import cpus; print(cpus())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ended.stdout == "1\n"


def test_statuses_and_reports() -> None:
    assert parse_statuses("time_limit, signaled") == {"time_limit", "signaled"}
    with pytest.raises(ValueError, match='"ok" is not a status'):
        parse_statuses("ok")
    with pytest.raises(ValueError, match="neither"):
        parse_report("report.pdf")


def test_options_are_what_jobs_are_by_default(batch: Command, runtime: FakeRuntime, tmp_path: Path) -> None:
    seen: list[NumberedJob] = []

    async def behave(job: NumberedJob) -> Result:
        seen.append(job)
        return await succeed(job)

    runtime.behave = behave
    (tmp_path / "d.yaml").write_text(
        "mem_limit: 1m\npids_limit: 3\nread_only: true\nstdin: hello\nenvironment: {A: file, B: file}\n"
    )
    (tmp_path / "jobs.jsonl").write_text(lines({"command": ["a"], "timeout": 1}, {"command": ["b"], "environment": {"C": "job"}}))
    options = (
        "--defaults", "d.yaml", "-m", "64m", "--timeout", "2s", "--cpu-time", "1s", "--output-limit", "5", "-v", "/usr:/x:ro",
        "--tmpfs", "/t:size=1m", "-e", "A=option", "-w", "/srv", "-u", "1:2", "--network", "host", "-j", "1",
    )  # fmt: skip
    assert batch(*options, "jobs.jsonl") == 0
    expected = Spec(
        command=("a",), mem_limit=64 << 20, pids_limit=3, read_only=True, timeout=1.0, cpu_time=1.0, output_limit=5,
        volumes=(Volume(Path("/usr"), "/x", read_only=True),), tmpfs=(Tmpfs("/t", size=1 << 20),),
        environment={"A": "option", "B": "file"}, working_dir="/srv", user="1:2", network_mode="host",
    )  # fmt: skip
    assert seen[0].spec.with_(name=expected.name) == expected
    assert seen[0].stdin == b"hello"
    assert (seen[1].spec.timeout, seen[1].spec.environment) == (2.0, {"A": "option", "B": "file", "C": "job"})


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "name a file of jobs"),
        (["--resume", "x"], "--resume needs --results"),
        (["-", "-"], "stdin can be read only once"),
        (["--verbose", "-q", "x"], "exclude each other"),
        (["-j", "0", "x"], "not a number of jobs"),
        (["--retry-on", "sometimes", "x"], "is not a status"),
        (["--each", "'", "x"], "--each: a quote or backslash is not finished"),
        (["--each", "echo", "--memory", "0", "x"], "mem_limit"),
        (["--each", "echo", "--memory-budget", "1m", "x"], "argument:1:1: is required with --memory-budget"),
        (["--defaults", "no.yaml", "x"], "no.yaml:1:1: can't be read"),
        (["no.jsonl"], "no.jsonl:1:1: can't be read: No such file"),
        (["--results", "/no/such/dir", "--each", "true", "x"], "can't be opened for results"),
    ],
)
def test_bad_usage_is_2(batch: Command, capfd: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert batch(*words) == 2
    assert message in capfd.readouterr().err


def test_help_names_every_exit_code() -> None:
    from tinyvisor.cli.batch import batch as command

    text = command.get_help(click.Context(command, info_name="batch"))
    assert "Exits with 0 when all jobs are ok, 1 when some are not, 2" in " ".join(text.split())


# ---- inputs ----


def test_files_run_in_order(batch: Command, runtime: FakeRuntime, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text("jobs: [{id: a, command: x}, {id: b, command: x}]\n")
    (tmp_path / "b.jsonl").write_text(JOBS)
    assert batch("-j", "1", "--results", "r", "a.yaml", "b.jsonl") == 0
    assert [(each["id"], each["index"]) for each in results(tmp_path / "r")] == [
        (id, index) for index, id in enumerate(("a", "b", "j1", "j2", "j3", "j4", "j5"), 1)
    ]
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(r"7 jobs in \S+: 7 ok\n", err)


def test_all_is_checked_before_anything_starts(
    batch: Command, runtime: FakeRuntime, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text(JOBS)
    (tmp_path / "b.jsonl").write_text('{"id": "j1", "command": "x"}\n\n{"comand": "x"}\n')
    assert batch("--results", "r", "a.jsonl", "b.jsonl") == 2
    assert runtime.started == []
    assert not (tmp_path / "r").exists()
    assert capfd.readouterr().err.splitlines() == [
        'b.jsonl:1:2: id: "j1" is the id of a job before this one',
        'b.jsonl:3:2: comand: there is no such key (did you mean "command"?)',
    ]


def test_so_many_problems_are_told(batch: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text("nonsense\n" * 1000)
    assert batch("a.jsonl") == 2
    assert len(capfd.readouterr().err.splitlines()) == batchrun.MOST_PROBLEMS


def test_invalid_jobs_are_skipped_on_request(
    batch: Command, runtime: FakeRuntime, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text("nonsense\n" + JOBS)
    assert batch("--skip-invalid", "a.jsonl") == 1
    assert sorted(runtime.started) == ["j1", "j2", "j3", "j4", "j5"]
    err = capfd.readouterr().err
    assert err.count("a.jsonl:1:1: not JSON") == 1
    assert re.search(r"5 jobs in \S+: 5 ok \(1 invalid\)$", err.strip())
    assert batch("--skip-invalid", "a.jsonl", "missing.yaml") == 2


def test_a_bad_line_of_stdin_stops_new_jobs(
    batch: Command, runtime: FakeRuntime, stdin: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stdin(lines({"command": "a"}, {"command": "b"}).encode() + b"nonsense\n" + lines({"command": "c"}).encode())
    assert batch("--results", "r", "-") == 2
    assert sorted(each["id"] for each in results(tmp_path / "r")) == ["1", "2"]
    assert "-:3:1: not JSON" in capfd.readouterr().err


def test_a_bad_line_of_stdin_is_skipped_on_request(
    batch: Command, runtime: FakeRuntime, stdin: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    stdin(b'{"command": "a"}\nnonsense\n{"command": "b"}')
    assert batch("--skip-invalid", "-") == 1
    assert sorted(runtime.started) == ["1", "3"]
    assert "-:2:1: not JSON" in capfd.readouterr().err


def test_stdin_is_run_line_by_line(batch: Command, runtime: FakeRuntime, stdin: Callable[..., int]) -> None:
    """The next line is written only when the job before it runs."""
    writer = stdin(b'{"command": "a"}\n', keep=True)

    async def behave(job: NumberedJob) -> Result:
        if job.index < 5:
            os.write(writer, b'{"command": "a"}\n')
        else:
            os.close(writer)
        return await succeed(job)

    runtime.behave = behave
    assert batch("-") == 0
    assert runtime.started == ["1", "2", "3", "4", "5"]


def test_stdin_may_be_a_file(batch: Command, runtime: FakeRuntime, tmp_path: Path, stdin: Callable[..., int]) -> None:
    (tmp_path / "jobs").write_text(JOBS)
    stdin(b"")
    fd = os.open(tmp_path / "jobs", os.O_RDONLY)
    os.dup2(fd, 0)
    os.close(fd)
    assert batch("-") == 0
    assert len(runtime.started) == 5


def test_a_fifo_is_a_stream(batch: Command, runtime: FakeRuntime, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    thread = threading.Thread(target=lambda: (tmp_path / "fifo").write_text(JOBS))
    thread.start()
    assert batch("fifo") == 0
    thread.join()
    assert len(runtime.started) == 5


def test_a_long_line_of_stdin(
    batch: Command, stdin: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for module in ("tinyvisor.jobs", "tinyvisor.cli.batchrun"):
        monkeypatch.setattr(f"{module}.MAX_LINE", 1000)
    monkeypatch.setattr(batchrun, "CHUNK", 100)
    stdin(b'{"command": "a"}\n' + b"x" * 5000 + b'\n{"command": "b"}\n')
    assert batch("--skip-invalid", "-") == 1
    err = capfd.readouterr().err
    assert err.count("the line is longer") == 1
    assert "2 ok (1 invalid)" in err


def test_each_argument_is_a_job(batch: Command, runtime: FakeRuntime, tmp_path: Path) -> None:
    commands: dict[str, tuple[str, ...]] = {}

    async def behave(job: NumberedJob) -> Result:
        commands[job.id] = job.spec.command
        return await succeed(job)

    runtime.behave = behave
    assert batch("--each", "cc {} -o '{.} x'", "--results", "r", "a.c", "b.c", "$(id)") == 0
    assert commands == {"1": ("cc", "a.c", "-o", "a x"), "2": ("cc", "b.c", "-o", "b x"), "3": ("cc", "$(id)", "-o", "$(id) x")}


def test_each_line_of_stdin_is_a_job(batch: Command, runtime: FakeRuntime, stdin: Callable[..., int]) -> None:
    seen: list[tuple[str, ...]] = []

    async def behave(job: NumberedJob) -> Result:
        seen.append(job.spec.command)
        return await succeed(job)

    runtime.behave = behave
    stdin(b"a b\n\n\xff\nlast")
    assert batch("-j1", "--each", "echo") == 0
    assert seen == [("echo", "a b"), ("echo", ""), ("echo", "\udcff"), ("echo", "last")]
    stdin(b"")
    assert batch("--each", "echo") == 0


# ---- ends ----


def test_a_failed_job_is_1_and_told_in_a_line(batch: Command, runtime: FakeRuntime, capfd: pytest.CaptureFixture[str]) -> None:
    runtime.behave = fails("2")
    assert batch("--each", "echo", "a", "b\x1b[2J") == 1
    told = capfd.readouterr().err.splitlines()
    assert told[0] == "2 (echo 'b\\x1b[2J'): nonzero_exit: because: last line"
    assert re.fullmatch(r"2 jobs in \S+: 1 ok, 1 nonzero_exit", told[1])


def test_verbose_and_quiet(batch: Command, runtime: FakeRuntime, capfd: pytest.CaptureFixture[str]) -> None:
    runtime.behave = fails("2")
    assert batch("--verbose", "-j1", "--each", "echo", "a", "b") == 1
    assert capfd.readouterr().err.splitlines()[0] == "1 (echo a): ok in 10ms"
    assert batch("-q", "--each", "echo", "a", "b") == 1
    assert capfd.readouterr() == ("", "")


def test_results_on_stdout(batch: Command, capfd: pytest.CaptureFixture[str]) -> None:
    assert batch("--results", "-", "--each", "echo", "a", "b") == 0
    assert {json.loads(line)["stdout"] for line in capfd.readouterr().out.splitlines()} == {"1\n", "2\n"}


def test_resume_runs_what_is_missing_or_changed(batch: Command, runtime: FakeRuntime, tmp_path: Path) -> None:
    runtime.behave = fails("j2")
    (tmp_path / "jobs.jsonl").write_text(JOBS)
    words = ("--results", "r", "--output-dir", "out", "jobs.jsonl")
    assert batch(*words) == 1
    assert batch(*words) == 2  # not without --resume
    (tmp_path / "r").write_bytes((tmp_path / "r").read_bytes()[:-20])
    whole = {json.loads(line)["id"] for line in (tmp_path / "r").read_text().splitlines()[:-1]}
    (torn,) = {f"j{number}" for number in range(1, 6)} - whole
    (tmp_path / "jobs.jsonl").write_text(JOBS.replace('"j4", "command": ["true"]', '"j4", "command": ["false"]'))
    runtime.started.clear()
    assert batch("--resume", *words) == 1  # j2 is not ok, now as before
    assert sorted(runtime.started) == sorted({torn, "j4"})
    assert (tmp_path / "out" / "j1.out").read_text() == "j1\n"


def test_report(batch: Command, tmp_path: Path) -> None:
    assert batch("--report", "r.html", "--each", "echo", "a") == 0
    assert batch("--report", "r.md", "--each", "echo", "a") == 0
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "r.md").read_text().startswith("# Batch report")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "r.md"]


@pytest.mark.parametrize("path", ["/no/such/r.md", "there.md"])
def test_a_report_that_can_not_be_written_is_said_before_anything_runs(
    batch: Command, runtime: FakeRuntime, tmp_path: Path, path: str
) -> None:
    (tmp_path / "there.md").mkdir()
    assert batch("--report", path, "--each", "echo", "a") == 2
    assert runtime.started == []


def test_fail_fast_and_retries(batch: Command, runtime: FakeRuntime) -> None:
    runtime.behave = fails("1")
    assert batch("--fail-fast", "-j1", "--each", "echo", "a", "b", "c") == 1
    assert runtime.started[0] == "1"
    assert "3" not in runtime.started
    runtime.started.clear()
    assert batch("--retries", "2", "--retry-on", "nonzero_exit", "-j1", "--each", "echo", "a", "b") == 1
    assert runtime.started.count("1") == 3


# ---- signals ----


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_kills_what_runs_and_the_rest_is_resumed(
    batch: Command, runtime: FakeRuntime, tmp_path: Path, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    async def behave(job: NumberedJob) -> Result:
        if job.index == 3:
            os.kill(os.getpid(), number)
        if job.index >= 3:
            await anyio.sleep_forever()
        return await succeed(job)

    runtime.behave = behave
    (tmp_path / "jobs.jsonl").write_text(JOBS)
    words = ("--results", "r", "--resume", "--report", "r.md", "jobs.jsonl")
    assert batch("-j2", *words) == 128 + number
    done = [each["id"] for each in results(tmp_path / "r")]
    assert set(done) <= {"j1", "j2"}
    assert "j3" in runtime.killed
    assert not set(runtime.killed) & set(done)
    assert "go on with --resume --results r" in capfd.readouterr().err
    assert (tmp_path / "r.md").exists()
    runtime.behave = succeed
    assert batch(*words) == 0
    assert sorted(each["id"] for each in results(tmp_path / "r")) == ["j1", "j2", "j3", "j4", "j5"]


def test_a_signal_while_stdin_is_silent(batch: Command, runtime: FakeRuntime, stdin: Callable[..., int]) -> None:
    writer = stdin(b'{"command": "a"}\n', keep=True)

    async def behave(job: NumberedJob) -> Result:
        os.kill(os.getpid(), signal.SIGINT)
        return await succeed(job)

    runtime.behave = behave
    assert batch("-") == 130
    os.close(writer)


STUCK = """
import sys, anyio
from contextlib import asynccontextmanager
from dataclasses import replace
from tests.fake_batch import FakeRuntime
from tinyvisor.__main__ import main
from tinyvisor.cli import batchrun

async def behave(job):
    print("runs", flush=True)
    try:
        await anyio.sleep_forever()
    finally:
        print("killing", flush=True)
        with anyio.CancelScope(shield=True):
            await anyio.sleep_forever()

@asynccontextmanager
async def opened():
    yield FakeRuntime(behave)

batchrun.open_runtime = opened
main(["batch", "-j1", "--each", "echo", "a"])
"""


def test_a_second_signal_does_not_wait() -> None:
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, cwd=ROOT, env=environment()) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"runs\n"
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == b"killing\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(BOUND) == 130
        finally:
            process.kill()


# ---- progress ----

SNAPSHOT = Snapshot(
    finished=1234, total=20_000, seconds=3.0, rate=1310.4, counts=[("ok", 1230), ("nonzero_exit", 4)], running=16,
    names=["a", "b\x1b[2J"],
)  # fmt: skip


def test_headline() -> None:
    assert headline(SNAPSHOT) == "1,234/20,000  1,310/s  3.0s  ETA 14.3s"
    stream = Snapshot(finished=5, total=None, seconds=70, rate=0.25, counts=[], running=0, names=[])
    assert headline(stream) == "5  0.2/s  1m10s"


def test_the_display_is_two_lines_that_fit() -> None:
    nodes = replace(SNAPSHOT, nodes=[("a\x1b[2J", 650.4), ("b", 0.25)])
    assert render(nodes, width=120, colour=False).split("\n")[1] == "2 nodes: 650/s a, 0.2/s b"
    text = render(SNAPSHOT, width=120, colour=False)
    first, second = text.split("\n")
    assert "1,234/20,000" in first
    assert "1,230 ok" in first
    assert "4 nonzero_exit" in first
    assert second == "16 running: a, b, …"
    for width in (1, 20, 40, 80):
        assert all(len(line) <= max(width, 20) for line in render(SNAPSHOT, width=width, colour=False).split("\n"))
    assert "\x1b[" in render(SNAPSHOT, width=120, colour=True)
    assert "\x1b[2J" not in render(SNAPSHOT, width=120, colour=True)


def written(pipe: int) -> str:
    data = b""
    while piece := os.read(pipe, 65536):
        data += piece
    os.close(pipe)
    return data.decode()


def test_the_display_is_erased_for_lines_and_at_the_end() -> None:
    reader, writer = os.pipe()
    with Board(writer, live=True, colour=False) as board:
        board.show(SNAPSHOT)
        first = b""
        while b"running" not in first:
            first += os.read(reader, 65536)
        board.say("a line\x1b[2J")
    os.close(writer)
    text = written(reader)
    assert text.startswith("\r\x1b[1A\x1b[Ja line\n")
    assert text.endswith(("a line\n", "\r\x1b[1A\x1b[J"))


def test_a_stopped_terminal_delays_nothing() -> None:
    """Nobody reads: lines are counted beyond a bound, and told when somebody does."""
    reader, writer = os.pipe()
    with Board(writer, live=False, colour=False, limit=1000) as board:
        for _ in range(10_000):
            board.say("x" * 100)
        thread = threading.Thread(target=lambda: texts.append(written(reader)))
        texts: list[str] = []
        thread.start()
    os.close(writer)
    thread.join()
    skipped = sum(int(number.replace(",", "")) for number in re.findall(r"\[\.\.\. ([0-9,]+) lines skipped", texts[0]))
    assert skipped + texts[0].count("x" * 100) == 10_000


def test_a_reader_that_has_gone_is_no_trouble() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with Board(writer, live=False, colour=False) as board:
        board.say("x")
        board.say("y")
    os.close(writer)
