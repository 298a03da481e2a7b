"""A batch over real workers of Dask, whose nodes do without containers, beside the same batch without a cluster."""

from __future__ import annotations

import json
import os
import signal
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import distributed
import pytest
import trio

from tests.fake_node import ROOT_FILE, FakeRuntime
from tinyvisor import interpreter
from tinyvisor.batch import Batch, Policy, Runtime
from tinyvisor.cluster.client import Cluster
from tinyvisor.cluster.connect import QUIET
from tinyvisor.jobs import Invalid, NumberedJob, Reader
from tinyvisor.journal import Journal
from tinyvisor.state import Result

COUNT = 5000
KILLED_AFTER = 1500
BOUND = 100.0


def kinds(directory: Path) -> list[dict[str, Any]]:
    """Jobs of all sorts, with files in `directory`."""
    (directory / "small").write_bytes(b"small")
    (directory / "large").write_bytes(bytes(range(256)) * 280)
    (directory / "profile.json").write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    for name in ("tree", "packed"):
        (directory / name).mkdir()
        (directory / name / ROOT_FILE).write_text(name)
    with tarfile.open(directory / "packed.tar", "w") as tar:
        tar.add(directory / "packed", ".")
    return [
        {"command": ["true"]},
        {"command": ["x", "\u00fc", "a b"], "environment": {"A": "b"}, "working_dir": "/w", "user": "1:2"},
        {"command": ["x"], "stdin": {"base64": "AP+A"}, "collect": ["out", "*.c"]},
        {"command": ["x"], "stdin": {"file": "small"}, "files": {"a": "text", "b": {"file": "large"}}, "collect": ["out"]},
        {"command": ["x"], "mem_limit": "64m", "cpus": 0.5, "pids_limit": 5, "timeout": "1s"},
        {"command": ["x"], "mem_limit": "64g", "cpus": 1000},
        {"command": ["x"], "volumes": ["/usr:/data:ro"], "tmpfs": "/s:size=1m", "ulimits": {"nofile": 77}},
        {"command": ["x"], "rootfs": "tree"},
        {"command": ["x"], "rootfs": "packed.tar", "security_opt": ["seccomp=profile.json"]},
    ]


def write_jobs(path: Path) -> Path:
    every = kinds(path.parent)
    with path.open("w") as file:
        for number in range(COUNT):
            kind = every[number % len(every)]
            file.write(json.dumps({"id": f"j{number}", **kind, "command": [*kind["command"], str(number)]}) + "\n")
    return path


async def jobs(path: Path) -> AsyncIterator[NumberedJob]:
    for job in Reader(environ={}).file(path):
        assert not isinstance(job, Invalid), job.problems
        yield job


def run(runtime: Runtime, path: Path, into: Path, on_finished: Any = lambda job, result: None) -> list[dict[str, Any]]:
    async def main() -> None:
        with Journal(into) as journal, trio.fail_after(BOUND):
            await Batch(runtime, jobs(path), Policy(concurrency=4), journal=journal, on_finished=on_finished).run()

    trio.run(main)
    return sorted((json.loads(line) for line in into.read_text().splitlines()), key=lambda line: int(line["id"][1:]))


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Of two workers, which are threads here; their nodes are processes, as always."""
    import dask

    (tmp_path / "nodes").mkdir()
    monkeypatch.setenv("FAKE_NODE", str(tmp_path / "nodes"))
    command = interpreter.command
    monkeypatch.setattr(interpreter, "command", lambda module: command("tests.fake_node"))
    options: dict[str, Any] = {"dashboard_address": None, "worker_dashboard_address": None, "memory_limit": "8GB"}
    options["scheduler_kwargs"] = {"dashboard_address": "127.0.0.1:0"}
    with dask.config.set(QUIET), distributed.LocalCluster(
        n_workers=2, threads_per_worker=4, processes=False, local_directory=str(tmp_path), **options
    ) as cluster, distributed.Client(cluster, set_as_default=False) as client:  # fmt: skip
        yield client


def test_5000_mixed_jobs_have_the_results_of_one_machine(client: Any, tmp_path: Path) -> None:
    """Though one node's process is killed on the way."""
    file = write_jobs(tmp_path / "jobs.jsonl")
    alone = run(FakeRuntime(), file, tmp_path / "alone")
    assert len(alone) == COUNT
    assert len({line["status"] for line in alone}) == 6
    finished = 0
    said: list[str] = []

    def on_finished(job: NumberedJob, result: Result) -> None:
        nonlocal finished
        finished += 1
        if finished == KILLED_AFTER:
            os.kill(int(next((tmp_path / "nodes").glob("[0-9]*")).name), signal.SIGKILL)

    clustered = run(Cluster(client, say=said.append), file, tmp_path / "clustered", on_finished)
    assert [line["id"] for line in clustered] == [line["id"] for line in alone]
    assert clustered == alone
    assert any("ended with signal 9" in line for line in said), said
    assert len(list((tmp_path / "nodes").glob("[0-9]*"))) == 3
    assert len([path for path in (tmp_path / "nodes/cache/roots").iterdir() if path.is_dir()]) == 2
