"""Kernel tests of the runtime's API run on both event loops. One runtime serves a module's tests where they can share it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.kernel.helpers import busybox_root
from tinyvisor.runtime import Runtime, engine, open_runtime


@pytest.fixture(scope="module", params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
async def shared(anyio_backend: str) -> AsyncIterator[Runtime]:
    """A runtime for tests that only look at their own container."""
    async with open_runtime() as runtime:
        yield runtime


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    """A root with nothing in it but busybox and its links."""
    return busybox_root(tmp_path / "busybox")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where tarballs are unpacked to, instead of the machine's cache."""
    directory = tmp_path / "cache"
    monkeypatch.setattr(engine, "cache_directory", lambda: directory)
    return directory
