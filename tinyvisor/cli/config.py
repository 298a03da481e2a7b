"""`tinyvisor config`, `schema`, `plan`: what a configuration means, without running any of it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tinyvisor.cli.project import load_project, paths_argument, project_options
from tinyvisor.errors import TinyvisorError
from tinyvisor.spec import Project, Spec

if TYPE_CHECKING:
    from tinyvisor.runtime.cgroup import Layout
    from tinyvisor.runtime.identity import Identity
    from tinyvisor.runtime.idmap import IdMap
    from tinyvisor.runtime.plan import Plan
    from tinyvisor.runtime.rootfs import HostView


@click.command()
@paths_argument
@project_options
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def config(
    paths: Sequence[Path], project_name: str | None, env_file: Path | None, profiles: Sequence[str], as_json: bool
) -> None:
    """Check a project and print it in normal form.

    Variables and defaults are filled in, units are seconds and bytes. Exits with 2 and every problem as
    file:line:column when something is wrong. What opens a container is told on stderr.
    """
    project = load_project(paths, project_name, env_file, profiles)

    from tinyvisor.config import to_json, to_yaml
    from tinyvisor.holes import holes

    for spec in specs_of(project, None):
        for hole in holes(spec):
            click.echo(f"tinyvisor: {spec.name}: a hole: {hole}", err=True)
    click.echo(to_json(project) if as_json else to_yaml(project), nl=as_json)


@click.command()
def schema() -> None:
    """Print the JSON Schema of the configuration files."""
    from tinyvisor.config import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("service", required=False)
@project_options
def plan(path: Path, service: str | None, project_name: str | None, env_file: Path | None, profiles: Sequence[str]) -> None:
    """Print the launch steps of every service, or of SERVICE, as they would be on this host, and what opens it. Runs nothing,
    needs no root."""
    project = load_project((path,), project_name, env_file, profiles)

    from tinyvisor.runtime.cgroup import read_layout
    from tinyvisor.runtime.rootfs import host_view

    layout, view = read_layout(), host_view()
    for spec in specs_of(project, service):
        click.echo(f"# {spec.name}")
        click.echo(plan_of(spec, layout, view).describe())


def specs_of(project: Project, service: str | None) -> list[Spec]:
    """Of all services, or of one.

    Raises:
        TinyvisorError: there is no such service.
    """
    if service is not None and service not in project.services:
        raise TinyvisorError(f'there is no service "{service}"; there are {", ".join(project.services)}')
    return [each.spec for name, each in project.services.items() if service in (None, name)]


def plan_of(spec: Spec, layout: Layout, view: HostView) -> Plan:
    """The launch steps for `spec`.

    Raises:
        HostError: this host can't enforce a limit of it.
        SpecError: its seccomp profile can't be used, or there is no user to keep.
    """
    from tinyvisor.runtime.cgroup import limit_writes
    from tinyvisor.runtime.filters import filter_for
    from tinyvisor.runtime.plan import Around, Limits, plan
    from tinyvisor.runtime.syscalls import landlock_abi

    return plan(
        spec,
        limits=Limits(layout, tuple(limit_writes(spec, layout))),
        view=view if spec.rootfs is None else None,
        seccomp=filter_for(spec),
        identity=_identity(spec),
        resolv_conf=_read("/etc/resolv.conf") if spec.network_mode == "host" else None,
        ids=_ids(spec),
        idmapped=frozenset(("/etc", "/dev", *view.binds)),
        around=Around(landlock=landlock_abi()),
    )


def _ids(spec: Spec) -> IdMap | None:
    """Those of the first container: which ranges are in use is not looked at."""
    from tinyvisor.runtime.identity import invoking_user
    from tinyvisor.runtime.idmap import auto_map, keep_id_map
    from tinyvisor.runtime.leases import read_ranges

    if spec.userns == "host":
        return None
    first = read_ranges()[0]
    return auto_map(*first) if spec.userns == "auto" else keep_id_map(*first, *invoking_user())


def _identity(spec: Spec) -> Identity:
    """As the runtime finds it. In a tarball, which is not unpacked for this, only numbers are known."""
    from tinyvisor.runtime.identity import invoking_user, read_in_root, resolve
    from tinyvisor.runtime.plan import ROOT_USER
    from tinyvisor.runtime.rootfs import GROUP, PASSWD

    user = spec.user
    if user is None and spec.userns == "keep-id":
        user = "{}:{}".format(*invoking_user())
    if user is None and not spec.group_add:
        return ROOT_USER
    if spec.rootfs is None:
        return resolve(user, spec.group_add, PASSWD, GROUP)
    contents = []
    root = os.open(spec.rootfs, os.O_PATH | os.O_CLOEXEC)
    try:
        for path in ("etc/passwd", "etc/group"):
            try:
                contents.append(read_in_root(root, path))
            except OSError:
                contents.append(b"")
    finally:
        os.close(root)
    return resolve(user, spec.group_add, *contents)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # none, or not for us: no names are resolved then, and a plan can be made all the same
        return b""
