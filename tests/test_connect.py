"""How a cluster is named, and what is said where there is none. Nothing is connected to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernel.command import tinyvisor
from tinyvisor.cluster.connect import Place, parse_place


@pytest.mark.parametrize(
    "text, place",
    [
        ("local:4", Place(local=4)),
        ("tcp://host:8786", Place(address="tcp://host:8786")),
        ("tls://[::1]:8786", Place(address="tls://[::1]:8786")),
        ("/shared/scheduler.json", Place(file=Path("/shared/scheduler.json"))),
    ],
)
def test_places(text: str, place: Place) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize("text", ["", "local:", "local:0", "local:x", "http://host", "tcp://"])
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(ValueError, match="is no cluster; expected local:N"):
        parse_place(text)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--cluster", "http://x"], '"http://x" is no cluster'),
        (["--cluster", "missing.json"], "missing.json can't be read: No such file or directory"),
        (["--cluster", "jobs.jsonl"], "jobs.jsonl was not written by a scheduler"),
        (["--cluster", "tls://127.0.0.1:1"], "wants certificates; give --tls-ca-file, --tls-cert and --tls-key"),
        (["--cluster", "tls://h:1", "--tls-ca-file", "a", "--tls-cert", "b"], "go together"),
        (["--tls-ca-file", "a", "--tls-cert", "b", "--tls-key", "c"], "and with --cluster"),
        (
            ["--cluster", "tls://h:1", "--tls-ca-file", "a", "--tls-cert", "b", "--tls-key", "c"],
            "tls: the certificates can't be used",
        ),
    ],
)
def test_one_line_says_what_is_wrong(tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "jobs.jsonl").write_text('{"command": "true"}\n')
    ended = tinyvisor("batch", *words, "jobs.jsonl", cwd=tmp_path)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.splitlines()) <= 4, ended.stderr
