"""The root command. It knows every command's name and summary, so that help needs none of their modules."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

COMMANDS: Mapping[str, tuple[str, str]] = {
    "up": ("tinyvisor.cli.up:up", "Start the services of a project and watch them until they end."),
    "down": ("tinyvisor.cli.services:down", "Stop a project and its daemon; returns when everything is gone."),
    "upgrade": ("tinyvisor.cli.services:upgrade", "Restart a project's daemon in place; its containers go on."),
    "ls": ("tinyvisor.cli.services:ls", "List the projects that run on this host, ours to command."),
    "ps": ("tinyvisor.cli.services:ps", "List the services of a running project."),
    "logs": ("tinyvisor.cli.watch:logs", "Show what services have written."),
    "start": ("tinyvisor.cli.services:start", "Start services that are down, and what they depend on."),
    "stop": ("tinyvisor.cli.services:stop", "Stop services, and wait until they are down."),
    "restart": ("tinyvisor.cli.services:restart", "Give services new containers."),
    "kill": ("tinyvisor.cli.services:kill", "Send services a signal."),
    "reset-failed": ("tinyvisor.cli.services:reset_failed", "Forget past failures and restarts."),
    "scale": ("tinyvisor.cli.services:scale", "Set how many instances of a service run."),
    "reload": ("tinyvisor.cli.services:reload", "Read the configuration anew and change what has changed."),
    "wait": ("tinyvisor.cli.services:wait", "Wait until services are down, running or healthy."),
    "exec": ("tinyvisor.cli.exec:exec_", "Run a command in a running service's container."),
    "attach": ("tinyvisor.cli.attach:attach", "Join our terminal to a service's."),
    "inspect": ("tinyvisor.cli.services:inspect", "Print all there is to know of a service, as JSON."),
    "stats": ("tinyvisor.cli.watch:stats", "Show what services use."),
    "events": ("tinyvisor.cli.watch:events", "Show what happens, from now on."),
    "metrics": ("tinyvisor.cli.watch:metrics", "Print a project's metrics, as Prometheus is told them."),
    "top": ("tinyvisor.cli.watch:top", "List the processes of services; or watch all of them on a screen."),
    "run": ("tinyvisor.cli.run:run", "Run one command in a container, like docker run --rm."),
    "trace": ("tinyvisor.cli.trace:trace", "Run a command and show its system calls, like strace -f; or attach."),
    "profile": ("tinyvisor.cli.profile:profile", "Make seccomp profiles from what programs do; try and compare them."),
    "batch": ("tinyvisor.cli.batch:batch", "Run many jobs, each in a container of its own."),
    "unshare": ("tinyvisor.cli.unshare:unshare", "Run a program as root of your user namespace, without being root."),
    "config": ("tinyvisor.cli.config:config", "Check a project and print it in normal form."),
    "schema": ("tinyvisor.cli.config:schema", "Print the JSON Schema of the configuration files."),
    "plan": ("tinyvisor.cli.config:plan", "Print the launch steps of every service; runs nothing."),
    "audit": ("tinyvisor.cli.audit:audit", "Try to break out of a container, and say which wall held."),
    "systemd": ("tinyvisor.cli.systemd:systemd", "Print a systemd unit that runs a project."),
    "completion": ("tinyvisor.cli.completion:completion", "Print what makes a shell complete commands and services."),
    "man": ("tinyvisor.cli.man:man", "Show the manual pages, or write them to a directory."),
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

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Click's, with the near word that it has for options only."""
        if not ctx.resilient_parsing and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            from difflib import get_close_matches  # only where something is wrong

            near = get_close_matches(args[0][:64].lower(), COMMANDS, n=1)
            ctx.fail(f"No such command {args[0]!r}.{f' Did you mean {near[0]!r}?' if near else ''}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names of commands without their modules; the rest is click's."""
        from click.shell_completion import CompletionItem

        if not incomplete.startswith("-"):
            return [CompletionItem(name, help=text) for name, (_, text) in COMMANDS.items() if name.startswith(incomplete)]
        return click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="tinyvisor", message="%(prog)s %(version)s")
@click.option("-p", "--project-name", metavar="NAME", help="The project, for every command that has this option.")
@click.pass_context
def cli(context: click.Context, project_name: str | None) -> None:
    """Run many sandboxed processes on Linux: containers from the host's own files, with limits that the kernel keeps."""
    verb = context.invoked_subcommand
    if project_name is None or verb is None:
        return
    command = context.command.get_command(context, verb) if isinstance(context.command, click.Group) else None
    if command is not None and all(parameter.name != "project_name" for parameter in command.params):
        context.fail(f"{verb} has no project: -p does not go with it")
    context.default_map = {verb: {"project_name": project_name}}
