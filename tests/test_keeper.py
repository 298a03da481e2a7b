"""Live mode's connection to its keeper, as far as there needs to be none."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tinyvisor.errors import LauncherDied, TinyvisorError
from tinyvisor.runtime import keeper
from tinyvisor.runtime.keeper import Keeper


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(keeper, "PATIENCE", 0.05)
    return tmp_path / "web.keeper"


def test_there_is_none(path: Path) -> None:
    assert Keeper.connect(path) is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(os.fspath(path))
    assert Keeper.connect(path) is None


def test_one_that_takes_no_connection_is_not_waited_for_for_ever(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(os.fspath(path))
        listener.listen(0)
        with pytest.raises(LauncherDied, match="the keeper does not answer"):  # it is in the queue
            Keeper.connect(path)
        with pytest.raises(TinyvisorError, match="the keeper of project web takes no connection: it is stopped"):
            Keeper.connect(path)
