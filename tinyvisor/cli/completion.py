"""Shell completion, by click's own mechanism: the shell asks ``tinyvisor`` itself, with ``_TINYVISOR_COMPLETE`` set. What there
is to complete is asked of the daemons: names of services as they are now."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

VARIABLE = "_TINYVISOR_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


def complete_service(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Services and instances of the project that is meant; nothing where there is none."""
    given = context.params.get(parameter.name or "") or ()
    names = [name for name in _services(context.params.get("project_name")) if name not in given]
    return [name for name in names if name.startswith(incomplete)]


def complete_count(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """SERVICE= for ``scale``; the number is the user's."""
    from click.shell_completion import CompletionItem

    names = [name for name in _services(context.params.get("project_name"), instances=False) if name.startswith(incomplete)]
    return [CompletionItem(f"{name}=", type="nospace") for name in names]


def complete_project(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Projects whose daemons are there."""
    from tinyvisor.client import known_projects

    return [name for name in known_projects() if name.startswith(incomplete)]


def complete_signal(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Signals, without SIG where none is typed."""
    prefix = "" if incomplete.upper().startswith("SIG") else "SIG"
    return [name for it in signal.Signals if (name := it.name.removeprefix(prefix)).startswith(incomplete.upper())]


def _services(project: str | None, *, instances: bool = True) -> list[str]:
    from tinyvisor.client import Client, find_project
    from tinyvisor.errors import TinyvisorError

    try:
        found = Client(find_project(project, Path.cwd())).get("/v1/services")
    except TinyvisorError:
        return []
    names = [name for it in found for name in (it["service"], it["name"] if instances or not it["service"] else "") if name]
    return list(dict.fromkeys(names))


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands, options, and names of services that run.

    \b
    bash: tinyvisor completion bash > ~/.local/share/bash-completion/completions/tinyvisor
    zsh:  tinyvisor completion zsh > "${fpath[1]}/_tinyvisor"
    fish: tinyvisor completion fish > ~/.config/fish/completions/tinyvisor.fish
    """
    click.echo(script(shell))


def script(shell: str) -> str:
    """The shell's part of it. It takes no notice of which commands there are."""
    from click.shell_completion import ShellComplete, get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    # Not its own `source`: bash's runs bash to see how old it is.
    return ShellComplete.source(found(click.Command("tinyvisor"), {}, "tinyvisor", VARIABLE))
