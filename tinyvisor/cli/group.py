"""The root command. It knows every command's name and summary, so that help needs none of their modules."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import click

COMMANDS: Mapping[str, tuple[str, str]] = {
    "up": ("tinyvisor.cli.up:up", "Start the services of a project and watch them until they end."),
    "run": ("tinyvisor.cli.run:run", "Run one command in a container, like docker run --rm."),
    "batch": ("tinyvisor.cli.batch:batch", "Run many jobs, each in a container of its own."),
    "config": ("tinyvisor.cli.config:config", "Check a project and print it in normal form."),
    "schema": ("tinyvisor.cli.config:schema", "Print the JSON Schema of the configuration files."),
    "plan": ("tinyvisor.cli.config:plan", "Print the launch steps of every service; runs nothing."),
    "doctor": ("tinyvisor.cli.doctor:doctor", "Say what this host offers, what it lacks, and the cure."),
}
"""name → (where it is, its summary)."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="tinyvisor", message="%(prog)s %(version)s")
def cli() -> None:
    """Run many sandboxed processes on Linux: containers from the host's own files, with limits that the kernel keeps."""
