"""`tinyvisor exec`: one more command in a running container, on our own stdio."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

import click

from tinyvisor.cli.services import client_for, project_option, service_argument
from tinyvisor.cli.values import environment
from tinyvisor.client import Client
from tinyvisor.errors import TinyvisorError
from tinyvisor.units import parse_duration


@click.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@project_option
@click.option("-u", "--user", metavar="USER[:GROUP]", help="Default: the container's.")
@click.option("-w", "--workdir", metavar="DIR", help="Default: the container's.")
@click.option("-e", "--env", "variables", multiple=True, metavar="VAR[=VALUE]", help="Set a variable.")
@click.option("--timeout", metavar="TIME", help="Kill it after so long.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal, joined to ours.")
@click.option("-i", "--interactive", is_flag=True, help="As docker exec has it: stdin is always handed on.")
@service_argument
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(
    project_name: str | None,
    user: str | None,
    workdir: str | None,
    variables: Sequence[str],
    timeout: str | None,
    tty: bool,
    interactive: bool,
    service: str,
    command: Sequence[str],
) -> int:
    """Run a command in a running service's container.

    The command gets our stdin, stdout and stderr themselves, or a terminal; it ends when we do. Exits with its code.
    """
    if tty and interactive and not os.isatty(0):
        raise TinyvisorError("the input device is not a TTY; leave out -t, or -i")
    try:
        seconds = None if timeout is None else parse_duration(timeout)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--timeout") from None
    body: dict[str, Any] = {
        "command": list(command),
        "user": user,
        "working_dir": workdir,
        "environment": environment(variables, os.environ),
        "timeout": seconds,
    }
    sys.stdout.flush()
    client, path = client_for(project_name), f"/v1/services/{service}/exec"
    found = (_on_a_terminal(client, path, body) if tty else client.post(path, body, fds=(0, 1, 2)))["exit"]
    if found["reason"]:
        click.echo(f"tinyvisor: {found['reason']}", err=True)
    if found["signal"] is not None:
        return 128 + int(found["signal"])
    return 125 if found["exit_code"] is None else int(found["exit_code"])


def _on_a_terminal(client: Client, path: str, body: dict[str, Any]) -> Any:
    """The daemon makes the terminal in the container and sends us its other side."""
    from tinyvisor.cli.relay import relay, size

    ours, theirs = socket.socketpair()
    with ours, theirs:

        def meanwhile(connection: socket.socket) -> None:
            theirs.close()
            relay(ours, connection)

        return client.post(path, body | {"terminal": size()}, fds=(theirs.fileno(),), meanwhile=meanwhile)
