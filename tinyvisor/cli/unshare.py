"""`tinyvisor unshare`: a program as root of the user namespace that tinyvisor makes for an ordinary user."""

from __future__ import annotations

import os

import click

from tinyvisor.errors import TinyvisorError


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
def unshare(command: tuple[str, ...]) -> None:
    """Run a program as root of your user namespace, without being root.

    For programs that use tinyvisor's API, and for looking at files whose owners are among your ids. As root it is just run.
    """
    from tinyvisor.runtime.rootless import enter

    enter()
    try:
        os.execvp(command[0], command)
    except OSError as exc:
        raise TinyvisorError(f"{command[0]}: {exc.strerror}") from None
