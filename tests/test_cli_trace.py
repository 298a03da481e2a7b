"""What `trace` and `profile` say to what makes no sense, and what they do without running anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinyvisor.__main__ import main
from tinyvisor.trace import Syscall, to_json


def outcome(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    written = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, written.out, written.err


@pytest.mark.parametrize(
    "words, code, problem",
    [
        (["trace", "ls", "-l"], 125, "put -- before the command"),
        (["trace", "12", "--", "ls"], 125, "put -- before the command"),
        (["trace"], 125, "Missing argument"),
        (["trace", "-o", "/nosuch/file", "--", "true"], 125, "/nosuch/file can't be written: No such file or directory"),
        (["trace", "99999999"], 125, "there is no process 99999999"),
        (["trace", "-m", "64m", "99999999"], 125, "--memory is for a new container"),
        (["trace", "-e", "signal=none", "--", "true"], 125, '"signal=" is not known; expected trace=CALLS'),
        (["trace", "-c", "--files", "--", "true"], 125, "they are different tables"),
        (["profile", "learn"], 125, "give a COMMAND, or --from"),
        (["profile", "learn", "--from", "x", "true"], 125, "give a COMMAND, or --from"),
        (["profile", "learn", "--merge", "--", "true"], 125, "--merge adds to a file"),
        (["profile", "learn", "-o", "/nosuch/x", "--", "true"], 125, "/nosuch/x can't be written"),
        (["profile", "learn", "--from", "/nosuch"], 125, "/nosuch: No such file or directory"),
        (["profile", "check", "/nosuch", "--", "true"], 125, "No such file or directory"),
        (["profile", "check", "/nosuch"], 125, "give a COMMAND"),
        (["profile", "diff", "/nosuch", "default"], 2, "/nosuch: No such file or directory"),
    ],
)
def test_mistakes(words: list[str], code: int, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    found, _, err = outcome(capsys, *words)
    assert problem in err
    assert found == code


def test_a_profile_from_a_trace_merged_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, one, other = tmp_path / "trace.jsonl", tmp_path / "one.json", tmp_path / "other.json"
    for file, name in ((one, "read"), (other, "write")):
        trace.write_text(to_json(Syscall(time=0, pid=1, tid=1, name=name, result=0)) + "\n")
        assert outcome(capsys, "profile", "learn", "--from", trace, "-o", file)[0] == 0
    assert outcome(capsys, "profile", "diff", one, other) == (1, "- read\n+ write\n", "")
    assert outcome(capsys, "profile", "learn", "--merge", "--from", trace, "-o", one)[0] == 0
    assert outcome(capsys, "profile", "diff", one, other) == (1, "- read\n", "")
    assert outcome(capsys, "profile", "diff", one, one) == (0, "", "")
    assert "+ socket(" in outcome(capsys, "profile", "diff", one, "default")[1]
    code, out, _ = outcome(capsys, "profile", "learn", "--from", trace)
    assert (code, json.loads(out)["defaultAction"]) == (0, "SCMP_ACT_ERRNO")


def test_a_trace_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text("{}\n")
    assert f"{trace}:1:1: no line of trace --json" in outcome(capsys, "profile", "learn", "--from", trace)[2]
    trace.write_text("")
    assert "nothing was learned" in outcome(capsys, "profile", "learn", "--from", trace)[2]
    assert f"{trace}: not JSON" in outcome(capsys, "profile", "diff", trace, "default")[2]
