"""Completion in shells, and manual pages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tests.kernel.command import ROOT, environment, tinyvisor
from tinyvisor.cli import completion, man
from tinyvisor.cli.group import COMMANDS, cli
from tinyvisor.cli.services import scale, stop
from tinyvisor.errors import TinyvisorError


def complete(*words: str) -> list[str]:
    """What zsh's side of it is told: type, value and help, three lines each."""
    asked = environment() | {
        "_TINYVISOR_COMPLETE": "zsh_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    run = subprocess.run(
        [sys.executable, "-m", "tinyvisor"], env=environment(asked), capture_output=True, text=True, check=True, cwd=ROOT
    )
    return run.stdout.splitlines()[1::3]


def test_commands_and_options_complete() -> None:
    assert complete("tinyvisor", "re") == ["restart", "reset-failed", "reload"]
    assert "--abort-on-container-failure" in complete("tinyvisor", "up", "--a")
    assert complete("tinyvisor", "kill", "-s", "us") == ["USR1", "USR2"]
    assert complete("tinyvisor", "completion", "f") == ["fish"]


def test_commands_complete_without_their_modules() -> None:
    code = (
        "import sys, click\nfrom tinyvisor.cli.group import cli\n"
        "print(len(cli.shell_complete(click.Context(cli), '')), [it for it in sys.modules if it.startswith('tinyvisor.cli.')])"
    )
    run = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout == f"{len(COMMANDS)} ['tinyvisor.cli.group']\n"


def test_bash_asks_and_takes_the_answer(tmp_path: Path) -> None:
    program = tmp_path / "tinyvisor"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tinyvisor "$@"\n')
    program.chmod(0o755)
    asking = (
        "source <(tinyvisor completion bash); COMP_WORDS=(tinyvisor do); COMP_CWORD=1; "
        '$(complete -p tinyvisor | sed "s/.*-F //; s/ .*//") tinyvisor; echo "${COMPREPLY[@]}"'
    )
    env = environment() | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    run = subprocess.run(["bash", "-c", asking], env=env, capture_output=True, text=True, check=True, cwd=ROOT)
    assert (run.stdout, run.stderr) == ("down doctor\n", "")


def items(command: click.Command, name: str, given: dict[str, object], incomplete: str) -> list[tuple[str, str]]:
    parameter = next(it for it in command.params if it.name == name)
    context = click.Context(command)
    context.params = given
    return [(it.value, it.type) for it in parameter.shell_complete(context, incomplete)]


def test_services_complete_as_they_are_now(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Client:
        def __init__(self, project: str) -> None:
            asked.append(project)

        def get(self, path: str) -> list[dict[str, str]]:
            if asked[-1] == "gone":
                raise TinyvisorError("went away")
            return [{"name": "web", "service": ""}, {"name": "w-1", "service": "w"}, {"name": "db", "service": ""}]

    monkeypatch.setattr("tinyvisor.client.Client", Client)
    given: dict[str, object] = {"project_name": "x"}
    assert items(stop, "services", given, "w") == [("web", "plain"), ("w", "plain"), ("w-1", "plain")]
    assert items(stop, "services", given | {"services": ("web",)}, "we") == []
    assert items(scale, "counts", given, "w") == [("web=", "nospace"), ("w=", "nospace")]
    assert items(stop, "services", {"project_name": "gone"}, "") == []


@pytest.mark.parametrize("shell, line", [("zsh", "#compdef tinyvisor"), ("fish", "complete --no-files --command tinyvisor")])
def test_scripts_for_other_shells(shell: str, line: str) -> None:
    text = completion.script(shell)
    assert line in text
    assert f"{completion.VARIABLE}={shell}_complete" in text
    if shutil.which(shell):
        subprocess.run([shell, "-n", "/dev/stdin"], input=text, text=True, check=True)


def test_wrong_shell_is_2() -> None:
    assert tinyvisor("completion", "tcsh").returncode == 2


# ---- man ----


def test_every_command_has_a_page_with_all_of_its_options() -> None:
    found = man.pages()
    for name in COMMANDS:
        text = found[f"tinyvisor-{name}"]
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert option.opts[-1].replace("-", r"\-") in text
        assert f"tinyvisor\\-{name.replace('-', chr(92) + '-')}" in found["tinyvisor"]
    assert any(name.startswith("tinyvisor-profile-") for name in found)
    for text in found.values():
        for line in text.splitlines():
            assert not re.match(r"\.(?!TH|SH|PP|TP|nf|fi)|'", line), line


def test_nothing_in_a_text_is_a_request() -> None:
    assert man.escape(".so /etc/passwd") == r"\&.so /etc/passwd"
    assert man.escape(r"a\b-c'") == r"a\eb\-c\(aq"


@pytest.mark.skipif(not shutil.which("man") or not shutil.which("groff"), reason="no man here; apt install man-db groff")
def test_man_takes_the_pages_without_a_warning(tmp_path: Path) -> None:
    files = [
        file for file in man.write_pages(tmp_path) if file.name in ("tinyvisor.1", "tinyvisor-up.1", "tinyvisor-completion.1")
    ]
    assert len(files) == 3
    env = environment() | {"LC_ALL": "C.UTF-8", "MANROFFOPT": "-ww", "MANWIDTH": "100"}
    run = subprocess.run(["man", "-l", *files], env=env, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    assert run.stderr == ""
    assert "Start the services of a project" in run.stdout


def test_man_prints_a_page() -> None:
    assert tinyvisor("man", "up").stdout == man.pages()["tinyvisor-up"]
    assert tinyvisor("man", "nothing").returncode == 2
