"""`tinyvisor exec`: one more command in a running container, on our own stdio."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from tinyvisor.cli.services import client_for, project_option
from tinyvisor.cli.values import environment
from tinyvisor.units import parse_duration


@click.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@project_option
@click.option("-u", "--user", metavar="USER[:GROUP]", help="Default: the container's.")
@click.option("-w", "--workdir", metavar="DIR", help="Default: the container's.")
@click.option("-e", "--env", "variables", multiple=True, metavar="VAR[=VALUE]", help="Set a variable.")
@click.option("--timeout", metavar="TIME", help="Kill it after so long.")
@click.argument("service")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(
    project_name: str | None,
    user: str | None,
    workdir: str | None,
    variables: Sequence[str],
    timeout: str | None,
    service: str,
    command: Sequence[str],
) -> int:
    """Run a command in a running service's container.

    The command gets our stdin, stdout and stderr themselves; it ends when we do. Exits with its code.
    """
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
    found = client_for(project_name).post(f"/v1/services/{service}/exec", body, fds=(0, 1, 2))["exit"]
    if found["reason"]:
        click.echo(f"tinyvisor: {found['reason']}", err=True)
    if found["signal"] is not None:
        return 128 + int(found["signal"])
    return 125 if found["exit_code"] is None else int(found["exit_code"])
