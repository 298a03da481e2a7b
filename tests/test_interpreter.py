"""Where another interpreter of ours takes its modules from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tinyvisor import interpreter

TRAPS = ("json.py", "errno.py", "runpy.py", "ptrace/__init__.py", "tinyvisor/__init__.py")


@pytest.fixture
def trapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose modules leave a mark."""
    for trap in TRAPS:
        path = tmp_path / trap
        path.parent.mkdir(exist_ok=True)
        path.write_text("open('sprung', 'a').write(__name__)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry or str(tmp_path / "nowhere") for entry in sys.path])
    return tmp_path / "sprung"


def test_the_working_directory_is_not_looked_into(trapped: Path) -> None:
    ended = subprocess.run(interpreter.command("tinyvisor", "schema"), capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("{")
    assert not trapped.exists()
    subprocess.run([sys.executable, "-m", "tinyvisor", "schema"], capture_output=True, check=False)
    assert trapped.exists(), "no trap: nothing was tested"


def test_arguments_are_handed_on(trapped: Path) -> None:
    ended = subprocess.run(interpreter.command("tinyvisor", "no such"), capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "no such" in ended.stderr
