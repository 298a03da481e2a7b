"""What `logs` and `ls` make of their words and answers; no daemon."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import click
import pytest
from click.testing import CliRunner

from tinyvisor import client
from tinyvisor.cli import services
from tinyvisor.cli.daemon import _Daemon, _Started
from tinyvisor.cli.watch import last_lines, logs, point_in_time
from tinyvisor.client import Client, is_abandoned, starts_anew
from tinyvisor.errors import TinyvisorError
from tinyvisor.processes import identify
from tinyvisor.state import ServiceSummary

NOW = 1_767_323_045.0  # 2026-01-02T03:04:05Z


@pytest.mark.parametrize(
    "text, expected",
    [
        ("10s", "2026-01-02T03:03:55.000Z"),
        ("250ms", "2026-01-02T03:04:04.750Z"),
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000000Z"),
        ("2026-01-02T03:04:05.25Z", "2026-01-02T03:04:05.250000Z"),
        ("2026-01-02T03:04:05+02:00", "2026-01-02T01:04:05.000000Z"),
        ("2026-01-02", "2026-01-02T00:00:00.000000Z"),
        ("2026-01-02 03:04", "2026-01-02T03:04:00.000000Z"),
    ],
)
def test_points_in_time(text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    assert point_in_time(text, NOW, "--since") == expected


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "2026-01-02T", "0001-01-01T00:00:00+23:00", "-1s"])
def test_what_is_no_time_is_said_so_for_both_kinds(text: str) -> None:
    with pytest.raises(click.BadParameter, match=f'"{text.replace("+", ".")}".*2026-01-02T03:04:05Z'):
        point_in_time(text, NOW, "--since")


@pytest.mark.parametrize("text, expected", [("all", {}), ("0", {"tail": 0}), ("10000", {"tail": 10000})])
def test_last_lines(text: str, expected: dict[str, int]) -> None:
    assert last_lines(text) == expected


@pytest.mark.parametrize("text", ["-1", "10001", "some", "", "9" * 5000, "²"])
def test_last_lines_that_can_not_be(text: str) -> None:
    with pytest.raises(click.BadParameter, match="0 to 10000, or all"):
        last_lines(text)


@pytest.mark.parametrize(
    "words, line", [([], "web | hi"), (["--no-log-prefix"], "hi"), (["-t"], "T web | hi"), (["-t", "--no-log-prefix"], "T hi")]
)
def test_lines(words: list[str], line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "stream", lambda self, path, query: iter([{"time": "T", "name": "web", "text": "hi"}]))
    assert CliRunner().invoke(logs, ["-p", "x", *words]).output == f"{line}\n"


def test_projects_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(self: Client, path: str) -> Any:
        if self.project != "web":
            raise TinyvisorError("no daemon")
        states = [{"state": "running"}, {"state": "failed"}, {"state": "running"}]
        return {"pid": 42, "paths": ["/a", "/b"]} if path == "/v1/project" else states

    monkeypatch.setattr(Client, "get", get)
    monkeypatch.setattr(services, "known_projects", lambda: ["gone", "left", "web"])
    monkeypatch.setattr(services, "is_abandoned", lambda name: name == "left")
    table = CliRunner().invoke(services.ls, []).output.splitlines()
    assert [line.split("  ")[0].strip() for line in table] == ["project", "left", "web"]
    assert table[2].split() == ["web", "failed(1),", "running(2)", "42", "/a,", "/b"]
    found = json.loads(CliRunner().invoke(services.ls, ["--json"]).output)
    assert [(it["name"], it["status"], it["pid"]) for it in found] == [
        ("left", "daemon dead", None), ("web", "failed(1), running(2)", 42),
    ]  # fmt: skip
    monkeypatch.setattr(services, "known_projects", list)
    assert CliRunner().invoke(services.ls, ["--json"]).output == "[]\n"


def test_a_daemon_that_starts_anew_is_not_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "run_directory", lambda: tmp_path)
    monkeypatch.setattr(client, "control_directories", lambda: [tmp_path])
    monkeypatch.setattr(client, "ANEW_PATIENCE", 0.0)
    me = identify(1)
    (tmp_path / "web.live").mkdir()
    (tmp_path / "web.live" / "_runtime.json").write_text(json.dumps({"launcher": me}))
    (tmp_path / "web.json").write_text(json.dumps({"pid": 1}))
    assert is_abandoned("web")
    with pytest.raises(TinyvisorError, match="is dead"):
        Client("web").get("/v1/services")
    (tmp_path / "web.json").write_text(json.dumps({"pid": 1, "anew": me}))
    assert starts_anew("web")
    assert not is_abandoned("web")
    with pytest.raises(TinyvisorError, match="is starting anew"):
        Client("web").get("/v1/services")
    (tmp_path / "web.json").write_text(json.dumps({"pid": 1, "anew": me | {"start": me["start"] + 1}}))
    assert is_abandoned("web"), "its number is another's"


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_an_upgrade_waits_for_no_service() -> None:
    class Supervisor:
        def summaries(self) -> tuple[ServiceSummary, ...]:
            return ServiceSummary(name="a", state="waiting"), ServiceSummary(name="b", state="failed", reason="exit 1")

    said: list[Any] = []
    daemon = object.__new__(_Daemon)
    daemon._word = cast(Any, SimpleNamespace(say=lambda *words: said.append(words)))
    started = _Started()
    started.started()
    await daemon._report(Supervisor(), started, True, False)
    assert said == [(1, ["tinyvisor: b failed: exit 1"])]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
@pytest.mark.parametrize("only, starts", [((), ["a", "b"]), (("b", "c"), ["b"]), (("c",), None)])
async def test_who_takes_over_starts_what_was_stopped_and_waits_for_what_is_asked_for(only: Any, starts: Any) -> None:
    done: list[Any] = []

    class Supervisor:
        def summaries(self, names: Any) -> tuple[ServiceSummary, ...]:
            return tuple(ServiceSummary(name=name, state="stopped") for name in names or ("a", "b", "c"))

        def stopped_by_hand(self) -> frozenset[str]:
            return frozenset(("a", "b"))

        def start(self, names: Any) -> None:
            done.append(names)

        async def wait(self, names: Any, until: str) -> tuple[ServiceSummary, ...]:
            done.append((names, until))
            return ()

    daemon = object.__new__(_Daemon)
    daemon._word = cast(Any, SimpleNamespace(say=lambda *words: None))
    daemon._as_left = False
    daemon._only = only
    started = _Started()
    started.started()
    await daemon._report(Supervisor(), started, False, True)
    assert done == [*([starts] if starts else []), (only, "running")]
