"""`tinyvisor doctor`: what this host offers and lacks."""

from __future__ import annotations

import json
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
    from tinyvisor.runtime.rootless import enter

    refused = []
    try:
        enter()
    except HostError as exc:
        refused.append(Check("rootless", "fail", exc.lacks, exc.cure))
    try:
        found = checks(probe(), launcher_path())
    except HostError as exc:
        found = [*checks(probe()), Check("launcher", "fail", exc.lacks, exc.cure)]
    found = refused + found
    if as_json:
        click.echo(json.dumps([asdict(check) for check in found], indent=2))
    else:
        for check in found:
            sign, colour = SIGNS[check.level]
            click.echo(f"{click.style(sign, fg=colour)}  {check.name}: {check.text}")
            if check.cure:
                click.echo(f"      → {check.cure}")
    return int(any(check.level == "fail" for check in found))
