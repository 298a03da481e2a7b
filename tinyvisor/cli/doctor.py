"""`tinyvisor doctor`: what this host offers and lacks."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

import click

SIGNS = {"ok": ("ok  ", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(as_json: bool) -> int:
    """Say what this host offers, what it lacks, and the cure.

    Exits with 1 when a container with nothing but defaults could not run here.
    """
    from tinyvisor.errors import HostError
    from tinyvisor.runtime.host import Check, checks, probe
    from tinyvisor.runtime.launcher import launcher_path

    refused = _refusal()
    try:
        found = checks(probe(), launcher_path())
    except HostError as exc:
        found = [*checks(probe()), Check("launcher", "fail", exc.lacks, exc.cure)]
    if refused is not None:
        found = [Check("rootless", "fail", *refused), *(check for check in found if check.name != "root")]
    if as_json:
        click.echo(json.dumps([asdict(check) for check in found], indent=2))
    else:
        for check in found:
            sign, colour = SIGNS[check.level]
            click.echo(f"{click.style(sign, fg=colour)}  {check.name}: {check.text}")
            if check.cure:
                click.echo(f"      → {check.cure}")
    return int(any(check.level == "fail" for check in found))


def _refusal() -> tuple[str, str] | None:
    """Why we can't be root of a user namespace, and the cure; None where we are now. Tried in a child first: whoever has made one
    and got no rights in it sees nothing of the host as it is."""
    from tinyvisor.errors import HostError
    from tinyvisor.runtime.rootless import enter

    if os.geteuid() == 0:
        return None
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            enter()
        except HostError as exc:
            os.write(writing, json.dumps([exc.lacks, exc.cure]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    if told:
        lacks, cure = json.loads(told)
        return lacks, cure
    enter()
    return None
