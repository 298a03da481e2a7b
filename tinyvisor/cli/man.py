"""Manual pages, made from the commands themselves: what ``--help`` says, for man(1). The build puts them into the wheel, so that
``man tinyvisor-up`` works where pip has installed it.

Source: man-pages(7), groff_man(7), man(7).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click

from tinyvisor.cli.group import COMMANDS, cli
from tinyvisor.errors import TinyvisorError

FILES: Mapping[str, str] = {
    "/run/tinyvisor, $XDG_RUNTIME_DIR/tinyvisor": "Locks, control sockets, running projects: root's, an ordinary user's.",
    "/run/tinyvisor.GROUP": "Control sockets that root has opened for a group.",
    "/var/log/tinyvisor, $XDG_STATE_HOME/tinyvisor": "The services' output, one directory for each project.",
    "/var/cache/tinyvisor, $XDG_CACHE_HOME/tinyvisor": "Unpacked root file systems.",
}
ENVIRONMENT: Mapping[str, str] = {
    "TINYVISOR_PROFILES": "What --profile says, with commas.",
    "TINYVISOR_SOCKET_GROUP": "What --socket-group says.",
    "NO_COLOR": "No colours.",
    "NOTIFY_SOCKET, WATCHDOG_USEC": "Of systemd: up says there when it is ready, how it stands, and that it lives.",
}
STATUS: Mapping[str, str] = {
    "0": "All went well.",
    "1": "A service failed, or the daemon refused.",
    "2": "The command line, the configuration or the host is at fault.",
    "other": "run and exec exit with their command's code; 126, 127 and 128 + signal as in shells.",
}


@click.command()
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write all pages there, e.g. to /usr/local/share/man/man1.",
)
@click.argument("words", metavar="[COMMAND]...", nargs=-1)
def man(directory: Path | None, words: Sequence[str]) -> int:
    """Show the manual pages, or write them to a directory.

    On a terminal by man(1), elsewhere as they are.
    """
    if directory is not None:
        write_pages(directory)
        return 0
    name, found = "-".join(("tinyvisor", *words)), pages()
    if name not in found:
        raise click.UsageError(f'there is no command "{" ".join(words)}"')
    if sys.stdout.isatty() and shutil.which("man"):
        return subprocess.run(["man", "-l", "-"], input=found[name].encode(), check=False).returncode
    click.echo(found[name], nl=False)
    return 0


def write_pages(directory: Path) -> list[Path]:
    """All pages, as NAME.1.

    Raises:
        TinyvisorError: they can't be written.
    """
    written = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in pages().items():
            written.append(directory / f"{name}.1")
            written[-1].write_text(text)
    except OSError as error:
        raise TinyvisorError(f"{error.filename}: {error.strerror}") from None
    return written


def pages() -> dict[str, str]:
    """Every command's page, by its name."""
    root = click.Context(cli, info_name="tinyvisor")
    found = {"tinyvisor": "\n".join(_root_page(root)) + "\n"}
    for name in COMMANDS:
        command = cli.get_command(root, name)
        assert command is not None
        found |= _pages_of(command, click.Context(command, root, info_name=name))
    return found


def _pages_of(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    yield context.command_path.replace(" ", "-"), "\n".join(_page(command, context)) + "\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _pages_of(child, click.Context(child, context, info_name=name))


def _root_page(context: click.Context) -> Iterator[str]:
    yield from _head(context, cli)
    yield ".SH COMMANDS"
    for name, (_, summary) in COMMANDS.items():
        yield from _item(rf"\fB{escape(f'tinyvisor-{name}')}\fR(1)", summary)
    for title, entries in (("EXIT STATUS", STATUS), ("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES)):
        yield f".SH {title}"
        for term, text in entries.items():
            yield from _item(rf"\fB{escape(term)}\fR", text)


def _page(command: click.Command, context: click.Context) -> Iterator[str]:
    yield from _head(context, command)
    if isinstance(command, click.Group):
        yield ".SH COMMANDS"
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            full = f"{context.command_path} {name}".replace(" ", "-")
            yield from _item(rf"\fB{escape(full)}\fR(1)", child.get_short_help_str(limit=200))
    yield ".SH SEE ALSO"
    yield r"\fBtinyvisor\fR(1)"


def _head(context: click.Context, command: click.Command) -> Iterator[str]:
    """Name, synopsis, description and options."""
    name = context.command_path.replace(" ", "-")
    paragraphs = (command.help or "").replace("\r", "").strip().split("\n\n")
    yield f'.TH "{name.upper()}" 1 "" tinyvisor "tinyvisor"'
    yield ".SH NAME"
    yield rf"{escape(name)} \- {escape(_joined(paragraphs[0]).rstrip('.'))}"
    yield ".SH SYNOPSIS"
    yield rf"\fB{escape(context.command_path)}\fR {escape(' '.join(command.collect_usage_pieces(context)))}"
    if len(paragraphs) > 1:
        yield ".SH DESCRIPTION"
    for paragraph in paragraphs[1:]:
        yield from _paragraph(paragraph)
    yield ".SH OPTIONS"
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield from _item(rf"\fB{escape(record[0])}\fR", record[1])


def _paragraph(text: str) -> Iterator[str]:
    """One; as it is where click was told so by a \\b line."""
    yield ".PP"
    if not text.lstrip().startswith("\b"):
        yield escape(_joined(text))
        return
    yield ".nf"
    yield from (escape(line) for line in text.replace("\b", "").strip("\n").split("\n"))
    yield ".fi"


def _item(term: str, text: str) -> Iterator[str]:
    yield from (".TP", term, escape(_joined(text)) or r"\&")


def _joined(text: str) -> str:
    return " ".join(text.split())


def escape(text: str) -> str:
    """`text` as roff's own: nothing in it is a request, and hyphens can be searched for and copied."""
    found = text.replace("\\", r"\e").replace("-", r"\-").replace("`", r"\(ga").replace("'", r"\(aq").replace("~", r"\(ti")
    found = found.replace("^", r"\(ha")
    return rf"\&{found}" if found.startswith(".") else found


def installed_files() -> dict[str, str]:
    """What belongs beside the program, by path below the installation's prefix: pages, and completion for shells."""
    from tinyvisor.cli.completion import script

    return {f"share/man/man1/{name}.1": text for name, text in pages().items()} | {
        "share/bash-completion/completions/tinyvisor": script("bash"),
        "share/zsh/site-functions/_tinyvisor": script("zsh"),
        "share/fish/vendor_completions.d/tinyvisor.fish": script("fish"),
    }
