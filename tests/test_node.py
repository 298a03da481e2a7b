"""A node's session over a runtime that only waits: what runs at once, and what waits for what."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tinyvisor.cluster import frames
from tinyvisor.cluster.node import UNTAKEN, _Session
from tinyvisor.cluster.room import Room
from tinyvisor.cluster.roots import Roots
from tinyvisor.errors import HostError
from tinyvisor.job import Job
from tinyvisor.spec import Spec
from tinyvisor.state import Result

ID = b"8 bytes."
DIGEST = 64 * "a"


class FakeNode:
    """What a session asks of its node and its runtime. A job runs until the test lets it end."""

    def __init__(self, roots: Roots | None = None) -> None:
        self.runtime = self
        self.room = Room(100, None)
        self.roots = roots or Roots(Path("/nowhere"))
        self.running: dict[str, trio.Event] = {}
        self.said: list[tuple[int, bytes]] = []
        self.output = b""
        self.root: Path | None = None

    def send(self, data: bytes) -> None:
        _, kind, _ = frames.HEADER.unpack_from(data)
        self.said.append((kind, data[frames.HEADER.size :]))

    async def run_job(self, job: Job, **more: Any) -> Result:
        name = job.spec.command[0]
        self.root = job.spec.rootfs
        if name == "unfit":
            raise HostError("cgroup controller memory", "mount it")
        self.running[name] = trio.Event()
        try:
            await self.running[name].wait()
        finally:
            del self.running[name]
        return Result(status="ok", exit_code=0, stdout=self.output, job=job)

    async def end(self, name: str) -> None:
        self.running[name].set()
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def session(node: FakeNode, **settings: Any) -> AsyncIterator[_Session]:
    given = {"slots": 2, "memory_budget": None, "stdout": True, "stderr": False, "directory": "/nowhere"} | settings
    async with trio.open_nursery() as nursery:
        made = _Session(node, ID, given)  # type: ignore[arg-type]
        nursery.start_soon(made.run)
        yield made
        made.close()
    assert node.running == {}
    assert node.said[-1] == (frames.CLOSED, b"")


async def add(made: _Session, *names: str, **spec: Any) -> None:
    jobs = (Spec(command=(name,), **spec) for name in names)
    made.add(b"".join(frames.encode_job(ord(job.command[0][0]), job, {}) for job in jobs))
    await trio.testing.wait_all_tasks_blocked()


def test_slots() -> None:
    async def main() -> None:
        node = FakeNode()
        async with session(node) as made:
            await add(made, "a", "b", "c", "d")
            assert set(node.running) == {"a", "b"}
            await node.end("b")
            assert set(node.running) == {"a", "c"}
            ((record, _),) = frames.unpack(node.said[0][1])
            assert record["key"] == ord("b")

    trio.run(main)


def test_what_was_not_begun_is_given_back_when_it_is_asked_for() -> None:
    async def main() -> None:
        node = FakeNode()
        async with session(node) as made:
            await add(made, "a", "b", "c", "d")
            made.add(frames.encode_recall())
            back = [record["back"] for kind, payload in node.said for record, _ in frames.unpack(payload) if kind == frames.BACK]
            assert back == [ord("c"), ord("d")]
            await node.end("a")
            assert set(node.running) == {"b"}

    trio.run(main)


def test_memory_budget() -> None:
    async def main() -> None:
        node = FakeNode()
        async with session(node, slots=9, memory_budget=100) as made:
            await add(made, "a", "b", "c", mem_limit=50)
            assert set(node.running) == {"a", "b"}
            await add(made, "big", mem_limit=500)
            await node.end("a")
            assert set(node.running) == {"b", "c"}
            await node.end("b")
            await node.end("c")
            assert set(node.running) == {"big"}, "alone"

    trio.run(main)


def test_results_that_nobody_takes_hold_up_what_comes_next() -> None:
    async def main() -> None:
        node = FakeNode()
        node.output = bytes(UNTAKEN)
        async with session(node, slots=1) as made:
            await add(made, "a", "b")
            await node.end("a")
            assert not node.running
            made.taken(len(node.said[0][1]))
            await trio.testing.wait_all_tasks_blocked()
            assert set(node.running) == {"b"}

    trio.run(main)


def test_a_job_that_the_host_can_not_run_ends_the_session() -> None:
    async def main() -> None:
        node = FakeNode()
        async with session(node) as made:
            await add(made, "a", "unfit")
        assert node.said[0] == (frames.UNFIT, b"cgroup controller memory; mount it")

    trio.run(main)


def test_a_file_that_has_not_come_is_named(tmp_path: Path) -> None:
    """Its job gets a path of which the runtime says that nothing is there."""

    async def main() -> None:
        node = FakeNode()
        seen: list[Job] = []

        async def run_job(job: Job, **more: Any) -> Result:
            seen.append(job)
            return Result(status="ok")

        node.run_job = run_job  # type: ignore[method-assign]
        async with session(node, directory=str(tmp_path / "store")) as made:
            job = Job(spec=Spec(command=("a",)), stdin=Path("/elsewhere"))
            made.add(frames.encode_job(1, job, {Path("/elsewhere"): DIGEST}))
            await trio.testing.wait_all_tasks_blocked()
        assert seen[0].stdin == tmp_path / "store" / DIGEST

    trio.run(main)


def tarball() -> tuple[bytes, str]:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        member = tarfile.TarInfo("file")
        member.size = 5000
        tar.addfile(member, io.BytesIO(bytes(5000)))
    return made.getvalue(), hashlib.sha256(made.getvalue()).hexdigest()


async def said(node: FakeNode) -> str:
    """How it stands with the root that was asked for last."""
    while True:
        kind, payload = node.said[-1] if node.said else (0, b"")
        if kind == frames.ROOT:
            ((record, _),) = frames.unpack(payload)
            node.said.clear()
            return str(record["state"])
        await trio.sleep(0.01)


def test_a_root_comes_once_and_then_is_here(tmp_path: Path) -> None:
    """For another batch on the host, too, which waits while it is on its way."""
    content, digest = tarball()

    async def main() -> None:
        node, other = FakeNode(Roots(tmp_path)), FakeNode(Roots(tmp_path))
        async with session(node) as made, session(other) as late:
            made.add(frames.encode_root(digest))
            assert await said(node) == "missing"
            late.add(frames.encode_root(digest))
            await trio.sleep(0.01)
            assert other.said == []
            made.add(frames.encode_piece(digest, content[:700], last=False, root=True))
            made.add(frames.encode_piece(digest, content[700:], last=True, root=True))
            assert await said(node) == "here"
            assert await said(other) == "here"
            spec = Spec(command=("a",), rootfs=Path("/elsewhere"))
            for one, its in ((made, node), (late, other)):
                one.add(frames.encode_job(1, spec, {Path("/elsewhere"): digest}))
                await trio.testing.wait_all_tasks_blocked()
                assert its.root == tmp_path / digest / "rootfs"
            assert Roots(tmp_path).prune(0) > 0, "it is in use"
        assert Roots(tmp_path).prune(0) == 0

    trio.run(main)


def test_a_root_that_is_no_good_is_said_and_who_waits_may_bring_another(tmp_path: Path) -> None:
    content, digest = tarball()

    async def main() -> None:
        node, other = FakeNode(Roots(tmp_path)), FakeNode(Roots(tmp_path))
        async with session(other) as late:
            async with session(node) as made:
                made.add(frames.encode_root(digest))
                assert await said(node) == "missing"
                late.add(frames.encode_root(digest))
                made.add(frames.encode_piece(digest, content + b"more", last=True, root=True))
                assert "changed on its way" in await said(node)
                assert await said(other) == "missing"
            late.add(frames.encode_piece(digest, content[:100], last=False, root=True))
        assert {path.name for path in tmp_path.iterdir()} <= {"lock"}

    trio.run(main)


def test_a_file_that_is_not_needed_any_more_is_gone(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"x").hexdigest()

    async def main() -> None:
        async with session(FakeNode(), directory=str(tmp_path / "store")) as made:
            await trio.testing.wait_all_tasks_blocked()
            made.add(frames.encode_piece(digest, b"x", last=True))
            assert (tmp_path / "store" / digest).exists()
            made.add(frames.encode_drop(digest))
            assert not (tmp_path / "store" / digest).exists()
            for record in (frames.encode_drop("../x"), frames.encode_piece("../x", b"x", last=True)):
                with pytest.raises(ValueError, match="not a SHA-256"):
                    made.add(record)

    trio.run(main)
