"""A node's process without containers, for ``python -m``: what a job gives back follows from all that it says, and nothing else.

The environment says where: ``FAKE_NODE`` is a directory, in which the cache is, and a file for each process, named by its pid.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import trio

from tinyvisor.cluster import frames, node
from tinyvisor.job import Job
from tinyvisor.runtime.results import Results, open_results
from tinyvisor.runtime.unpack import unpack
from tinyvisor.spec import Spec
from tinyvisor.state import Result

STATUSES: tuple[Any, ...] = ("ok", "ok", "ok", "nonzero_exit", "signaled", "time_limit", "memory_limit", "output_limit")
ROOT_FILE = "which"


def directory() -> Path:
    return Path(os.environ["FAKE_NODE"])


def _bytes(value: bytes | Path | None) -> str | None:
    return None if value is None else hashlib.sha256(value if isinstance(value, bytes) else value.read_bytes()).hexdigest()


def said(job: Job) -> dict[str, Any]:
    """All that a job says, with what files have in the place of their paths."""
    paths = {path for path in (job.spec.rootfs, job.spec.seccomp) if isinstance(path, Path)}
    root = job.spec.rootfs
    if root is not None and root.is_file():
        root = unpack(root, directory() / "alone")
    return {
        "command": job.spec.command,
        "spec": frames.encode_spec(job.spec, paths),
        "stdin": _bytes(job.stdin),
        "files": {name: _bytes(value) for name, value in job.files.items()},
        "collect": job.collect,
        "root": (root / ROOT_FILE).read_text() if root else None,
        "profile": _bytes(job.spec.seccomp) if isinstance(job.spec.seccomp, Path) else job.spec.seccomp,
    }


def outcome(job: Job) -> Result:
    """The same for jobs that say the same."""
    text = json.dumps(said(job), sort_keys=True)
    dice = random.Random(text)
    status = dice.choice(STATUSES)
    return Result(
        status=status,
        exit_code=0 if status == "ok" else 3 if status == "nonzero_exit" else None,
        signal=9 if status == "signaled" else None,
        reason=text[: dice.randrange(40)],
        wall=dice.random(),
        stdout=dice.randbytes(dice.choice((0, 10, 1000))),
        stderr=text.encode(),
        truncated=dice.random() < 0.1,
        files={name: dice.randbytes(9) for name in job.collect if dice.random() < 0.5},
        uncollected={name: "why not" for name in job.collect if dice.random() < 0.5},
        limits_enforced=("mem_limit",) if job.spec.mem_limit else (),
    )


class FakeRuntime:
    """What a node, and a batch, need of a runtime."""

    root_ids = None

    async def run_job(self, job: Job, **captures: bool) -> Result:
        await anyio.lowlevel.checkpoint()
        return outcome(job)

    def map(
        self,
        jobs: AsyncIterable[Spec | Job],
        *,
        concurrency: int | None = None,
        capture_stdout: bool = False,
        capture_stderr: bool = False,
    ) -> AbstractAsyncContextManager[AsyncIterator[Result]]:
        """As the runtime's."""

        async def run(job: Any) -> Result:
            result = outcome(job)
            return Result.of(result, **{name: getattr(result, name) for name in GIVEN}, id=job.id, job=job)

        found: AbstractAsyncContextManager[Results[Result]] = open_results(run, jobs, concurrency or 1)
        return found


GIVEN = ("stdout", "stderr", "truncated", "files", "uncollected")


def main() -> None:
    own = socket.socket(fileno=os.dup(0))
    (directory() / str(os.getpid())).touch()
    node.cache_directory = lambda: directory() / "cache"  # type: ignore[attr-defined]

    async def run() -> None:
        async with trio.SocketStream(trio.socket.from_stdlib_socket(own)) as stream:
            await stream.send_all(frames.frame(frames.READY))
            await node._Node(FakeRuntime(), stream).serve()  # type: ignore[arg-type]

    trio.run(run)


if __name__ == "__main__":
    main()
