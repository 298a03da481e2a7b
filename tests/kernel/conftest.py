"""Kernel tests of the runtime's API run on both event loops. One runtime serves a module's tests where they can share it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kernel.helpers import busybox_root
from tinyvisor.runtime import Runtime, open_runtime, trees
from tinyvisor.runtime import plan as planning
from tinyvisor.runtime import steps as s
from tinyvisor.runtime.plan import Plan
from tinyvisor.runtime.trees import Trees


@pytest.fixture(scope="module", params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
async def shared(anyio_backend: str) -> AsyncIterator[Runtime]:
    """A runtime for tests that only look at their own container, and for nothing that is left between them."""
    async with open_runtime(warm=0) as runtime:
        yield runtime


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    """A root with nothing in it but busybox and its links."""
    return busybox_root(tmp_path / "busybox")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where tarballs are unpacked to, instead of the machine's cache."""
    directory = tmp_path / "cache"
    monkeypatch.setattr(trees, "cache_directory", lambda: directory)
    return directory


def without_read_only_mounts(plan: Plan) -> Plan:
    """The same container, had its own mounts not been made read-only. What it shares with others is so twice."""

    def opened(step: s.Step) -> s.Step:
        return replace(step, attributes=step.attributes & ~s.RDONLY) if isinstance(step, s.Bind) else step

    return replace(plan, init=tuple(opened(step) for step in plan.init if not isinstance(step, s.Remount)))


@pytest.fixture
async def unsealed(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Runtime]:
    """A runtime whose containers have no read-only mounts of their own: what holds them is Landlock alone."""
    whole, wanted = planning.plan, Trees.of
    monkeypatch.setattr(Trees, "of", lambda self, spec: [replace(tree, read_only=False) for tree in wanted(self, spec)])
    monkeypatch.setattr(planning, "plan", lambda *args, **words: without_read_only_mounts(whole(*args, **words)))
    async with open_runtime() as runtime:
        yield runtime
