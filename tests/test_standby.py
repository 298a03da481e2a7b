"""The process that becomes a daemon."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel.command import BOUND, environment
from tinyvisor.cli.standby import Standby


def test_it_becomes_what_it_is_told_and_outlives_who_told_it(tmp_path: Path) -> None:
    output = os.open(tmp_path / "output", os.O_RDWR | os.O_CREAT, 0o600)
    with Standby() as standby:
        pidfd = os.pidfd_open(standby._process.pid)
        standby.become(["schema"], output=output)
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    assert waiting.poll(BOUND * 1000)
    ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    assert ended is not None
    assert ended.si_status == 0
    os.close(pidfd)
    os.close(output)
    assert "$defs" in json.loads((tmp_path / "output").read_text())


def test_nothing_is_left_where_there_is_nothing_to_become() -> None:
    with pytest.raises(ZeroDivisionError), Standby() as standby:
        raise ZeroDivisionError
    assert standby._process.returncode == -signal.SIGKILL


def test_it_ends_with_who_started_it() -> None:
    standby = Standby()
    standby._socket.close()
    assert standby._process.wait(BOUND) == 0
    standby.discard()


def test_it_has_all_that_a_daemon_imports_before_it_runs_anything() -> None:
    """What is imported later is in the way of the first start."""
    code = """
import ast, sys
from pathlib import Path
from tinyvisor.cli import daemon
daemon.import_all()
tree = ast.parse(Path(daemon.__file__).read_text())
found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
print(sorted(found - sys.modules.keys() - {"tinyvisor.cli.standby", "tinyvisor.cli.services"}))  # its parent's
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=BOUND, check=True, env=environment()
    )
    assert ended.stdout == "[]\n"
