"""`ps` without click says what `ps` with click says."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import pytest

import tinyvisor.__main__ as entry
from tests.kernel.command import ROOT, environment
from tinyvisor.cli import quick, services
from tinyvisor.client import Client
from tinyvisor.errors import TinyvisorError
from tinyvisor.state import Exit, ServiceSummary

FOUND = [
    asdict(ServiceSummary(name="web", state="running", health="healthy", uptime=130.0)) | {"pid": 42},
    asdict(ServiceSummary(name="job", state="failed", exit=Exit(status="signaled", signal=9), reason="killed\x1b[2J"))
    | {"pid": None},
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []

    def get(self: Client, path: str, query: Any = None) -> Any:
        found.append((self.project, path, query))
        if self.project == "gone":
            raise TinyvisorError('no daemon runs the project "gone"')
        return json.loads(json.dumps(FOUND))

    monkeypatch.setattr(Client, "get", get)
    return found


@pytest.mark.parametrize(
    "words", [["-p", "x"], ["--project-name", "x", "web"], ["-p", "x", "--json"], ["web", "job", "-p", "x"], ["-p", "gone"]]
)
def test_both_say_the_same(words: list[str], asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    code = quick.ps(words)
    ours = (code, *capsys.readouterr())
    from tinyvisor.cli.failures import ExitCodes

    code = entry._invoke(["ps", *words], ExitCodes())
    assert ours == (code, *capsys.readouterr())
    assert asked[0] == asked[1]
    assert ours[0] == int("gone" in words)
    assert services.ps.name == "ps"


@pytest.mark.parametrize("words", [["--help"], ["-p"], ["-px"], ["--project-name=x"], ["--", "-x"], ["--what"]])
def test_the_rest_is_clicks(words: list[str]) -> None:
    assert quick.ps(words) is None


def test_it_imports_next_to_nothing() -> None:
    code = "import sys; from tinyvisor.__main__ import main\n"
    code += "try: main(['ps', '-p', 'nobody'])\nexcept SystemExit as e: print(e.code)\n"
    code += "print({'click', 'dataclasses', 'inspect', 'decimal', 'subprocess', 'tinyvisor.state', 'rich'} & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout == "1\nset()\n"


def test_ps_says_how_it_is_now(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    backing_off = ServiceSummary(
        name="flaky", state="backoff", restarts=3, due=2.5, exit=Exit(status="nonzero_exit", exit_code=1)
    )
    FOUND.append(asdict(backing_off) | {"pid": None})
    try:
        assert quick.ps(["-p", "x"]) == 0
    finally:
        FOUND.pop()
    assert capsys.readouterr().out.splitlines() == [
        "service  status                  uptime  pid  restarts  exit     reason",
        "web      running (healthy)        2m10s   42         0  -",
        "job      failed                       -    -         0  SIGKILL  killed",
        "flaky    backoff (next in 2.5s)       -    -         3  1",
    ]
