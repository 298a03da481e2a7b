"""The programs in examples/ do what they say, run as their users run them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel.helpers import BOUND

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
AT_MOST = 62  # lines: they are to be read


def example(*words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDEVMODE": "1"}
    command = [sys.executable, *map(str, words)]
    ended = subprocess.run(command, cwd=EXAMPLES, env=environment, capture_output=True, text=True, timeout=BOUND, check=False)
    # asyncio's, in development mode: a step of the loop took longer than 0.1 s, as all do on a busy machine.
    ended.stderr = re.sub(r"^Executing <.*> took \d+\.\d+ seconds\n", "", ended.stderr, flags=re.MULTILINE)
    return ended


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_it_is_short_and_has_a_test_here(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= AT_MOST
    assert path.name in {"judge.py", "evaluate.py", "embed.py"}


@pytest.mark.parametrize("loop", ["trio", "asyncio"])
def test_the_readmes_first_program(tmp_path: Path, loop: str) -> None:
    code = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    programs = [block for block in code if "trio.run(main)" in block]
    assert len(programs) == 1
    text = (
        programs[0]
        if loop == "trio"
        else programs[0].replace("trio", "asyncio").replace("asyncio.run(main)", "asyncio.run(main())")
    )
    (tmp_path / "program.py").write_text(text)
    ended = example(tmp_path / "program.py")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("Result(status='ok'")
    assert r"stdout=b'42\n'" in ended.stdout


def test_judge() -> None:
    ended = example("judge.py")
    assert (ended.returncode, ended.stderr) == (0, "")
    verdicts, summary = ended.stdout.splitlines()
    assert verdicts.split() == ["WA" if number == 7 else "AC" for number in range(20)]
    assert summary == "19 AC, 1 WA"


SOLUTIONS = {
    "right": ("print(sum(map(int, input().split())))", "20 AC"),
    "wrong": ("print(-1)", "20 WA"),
    "crash": ("1 / 0", "20 RE"),
    "loop": ("while True: pass", "20 TLE"),
    "flood": ("while True: print('x' * 1000)", "20 OLE"),
    "hog": ("x = b'x' * (200 << 20)", "20 MLE"),
}


@pytest.mark.parametrize("name", SOLUTIONS)
def test_judge_of_python(tmp_path: Path, name: str) -> None:
    code, summary = SOLUTIONS[name]
    (tmp_path / "solution.py").write_text(code)
    ended = example("judge.py", tmp_path / "solution.py")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[1] == summary


def test_judge_of_what_does_not_compile(tmp_path: Path) -> None:
    (tmp_path / "solution.py").write_text("print(")
    ended = example("judge.py", tmp_path / "solution.py")
    assert ended.returncode == 1
    assert ended.stderr.startswith("CE: exit 1\n")
    assert "SyntaxError" in ended.stderr


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_judge_of_c(tmp_path: Path) -> None:
    (tmp_path / "solution.c").write_text("int main(void) { return *(volatile int *)0; }")
    assert example("judge.py", tmp_path / "solution.c").stdout.splitlines()[1] == "20 RE"


def test_evaluate() -> None:
    ended = example("evaluate.py")
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert lines[:3] == ["ok 42", "nonzero_exit exit 3", "output_limit killed after more than 64.0K of output"]
    assert lines[3].startswith("pids_limit exit 1 after ")
    assert lines[4:] == ["cancelled: True containers left: 0"]


def test_embed() -> None:
    ended = example("embed.py")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "2470 is the sum of 20 squares\nservice: stopped\n"
