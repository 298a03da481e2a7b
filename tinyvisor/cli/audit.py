"""`tinyvisor audit`: attacks that harm nobody, tried on this host in containers of a given kind."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from tinyvisor.cli.config import specs_of
from tinyvisor.cli.project import load_project
from tinyvisor.cli.run import container_fields, container_options, with_options
from tinyvisor.cli.summary import format_plain
from tinyvisor.errors import TinyvisorError
from tinyvisor.spec import Spec

if TYPE_CHECKING:
    from tinyvisor.audit import Finding

OPEN = 1
COLOURS = {"held": "green", "open": "red", "not run": "yellow"}


@click.command(context_settings={"help_option_names": ["--help"]})
@with_options(container_options("--env", "-e"))
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.argument("service", required=False)
@click.pass_context
def audit(context: click.Context, /, file: Path | None, service: str | None, as_json: bool, **options: Any) -> int:
    """Try to break out of a container, and say which wall held.

    The container is the default one, changed by options as for `run`; or each service of FILE, or SERVICE of it. Each attack
    runs as root inside (or as the container's user) in a container of its own, and goes no further than to where it could do
    harm; volumes are not written to. The programs need python3 or /bin/sh in the container's root.

    Exits with 0 when nothing is open, else with 1; with 2 when none could be run.
    """
    given = [name for name in options if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
    if file is not None and given:
        raise click.UsageError("options are for a container that no FILE describes")
    if file is not None:
        specs = specs_of(load_project((file,), None, None), service)
    else:
        specs = [Spec(command=("true",), **container_fields(options, os.environ))]
    return _print_json(specs) if as_json else _print(specs)


def _print(specs: Sequence[Spec]) -> int:
    from tinyvisor.audit import unlimited
    from tinyvisor.holes import holes

    code = 0
    for spec, findings in _carry_out(specs):
        if len(specs) > 1:
            click.echo(f"# {spec.name}")
        rows = [("attack", "result", "what should hold it"), *((each.attack, each.result, each.wall) for each in findings)]
        lines = format_plain(rows).splitlines()
        click.echo(lines[0])
        for each, line in zip(findings, lines[1:], strict=True):
            click.echo(line.replace(f"  {each.result} ", click.style(f"  {each.result} ", fg=COLOURS[each.result]), 1))
            if each.detail:
                click.echo(f"    {each.detail}")
        if spec.network_mode.startswith("service:"):
            click.echo("tried with no network, not with the other service's")
        for hole in holes(spec):
            click.echo(f"a hole: {hole}")
        if unlimited(spec):
            click.echo(f"without a limit: {', '.join(unlimited(spec))}")
        count = {result: sum(each.result == result for each in findings) for result in COLOURS}
        click.echo(", ".join(f"{number} {result}" for result, number in count.items() if number or result != "not run"))
        code = OPEN if count["open"] else code
    return code


def _print_json(specs: Sequence[Spec]) -> int:
    from tinyvisor.audit import unlimited
    from tinyvisor.holes import holes

    found = [
        {"name": spec.name, "holes": holes(spec), "unlimited": unlimited(spec), "attacks": [each.to_json() for each in findings]}
        for spec, findings in _carry_out(specs)
    ]
    click.echo(json.dumps(found, indent=2))
    return OPEN if any(each["result"] == "open" for one in found for each in one["attacks"]) else 0  # type: ignore[index]


def _carry_out(specs: Sequence[Spec]) -> list[tuple[Spec, list[Finding]]]:
    import trio

    from tinyvisor.audit import audit as carry_out
    from tinyvisor.runtime import open_runtime, rootless

    async def run() -> list[tuple[Spec, list[Finding]]]:
        async with open_runtime() as runtime:
            return [(spec, [finding async for finding in carry_out(runtime, spec)]) for spec in specs]

    rootless.enter()
    found = trio.run(run)
    for spec, findings in found:
        if all(each.result == "not run" for each in findings):
            raise TinyvisorError(f"{spec.name}: no attack could be run: {findings[-1].detail}")
    return found
