"""The commands that ask a project's daemon about its services, or change them."""

from __future__ import annotations

import contextlib
import json
import select
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from tinyvisor.cli.completion import complete_count, complete_project, complete_service, complete_signal
from tinyvisor.cli.failures import ExitCodes
from tinyvisor.cli.parsed import Option, Parsed, SignalCommand
from tinyvisor.cli.summary import format_plain, ps_rows, summary_rows
from tinyvisor.client import Client, Refusal, abandoned, find_project, is_abandoned, known_projects, log_directory_of
from tinyvisor.errors import TinyvisorError
from tinyvisor.units import parse_duration

STATES = ("scheduled", "waiting", "starting", "running", "backoff", "stopping", "exited", "failed", "stopped")
"""`policy.Phase`, whose import takes longer than the answer."""
UNPROCESSABLE = 422
UNUSABLE = 2
"""What a daemon says that has not started."""
HOLDING_PATIENCE = 1.0
"""Seconds that a stop may take before it is said what it waits for."""
STARTING_PATIENCE = 3.0
"""And a start."""
MAX_TOLD = 5
"""Services that are named at once while a start takes its time."""

project_option: Option = click.option(
    "-p",
    "--project-name",
    metavar="NAME",
    shell_complete=complete_project,
    help="Default: the one that runs from this directory.",
)
json_option: Option = click.option("--json", "as_json", is_flag=True, help="JSON for programs.")
services_argument: Option = click.argument("services", metavar="[SERVICE]...", nargs=-1, shell_complete=complete_service)
grace_option: Option = click.option(
    "-t",
    "--timeout",
    "grace",
    type=Parsed("duration", parse_duration),
    help="Kill what is not down after so long (10, 1m30s). Default: each service's stop_grace_period.",
)
service_argument: Option = click.argument("service", shell_complete=complete_service)


def client_for(project_name: str | None) -> Client:
    """The daemon that is meant. What it refuses exits with 1."""
    context = click.get_current_context(silent=True)
    if context is not None and isinstance(context.obj, ExitCodes):
        context.obj.ours = 1
    return Client(find_project(project_name, Path.cwd()))


def show(rows: Sequence[Sequence[str]]) -> None:
    """A table for people."""
    click.echo(format_plain(rows))


def show_json(values: Any) -> None:
    click.echo(json.dumps(values, indent=2))


@click.command()
@json_option
def ls(as_json: bool) -> None:
    """List the projects that run on this host, ours to command.

    Also those whose daemon is dead, and whose containers run on: tinyvisor up -d takes them over.
    """
    found = [project for name in known_projects() if (project := _project(name)) is not None]
    if as_json:
        return show_json(found)
    rows = [(it["name"], it["status"], str(it["pid"] or "-"), ", ".join(it["paths"])) for it in found]
    return show([("project", "status", "pid", "files"), *rows])


def _project(name: str) -> dict[str, Any] | None:
    """None where nothing of it is left but a record."""
    client = Client(name)
    try:
        about = client.get("/v1/project")
        states = Counter(item["state"] for item in client.get("/v1/services"))
    except TinyvisorError:
        return {"name": name, "status": "daemon dead", "pid": None, "paths": []} if is_abandoned(name) else None
    status = ", ".join(f"{state}({count})" for state, count in sorted(states.items()))
    return {"name": name, "status": status, "pid": about["pid"], "paths": about.get("paths") or []}


@click.command()
@project_option
@json_option
@click.option("-a", "--all", is_flag=True, expose_value=False, help="As it does anyway.")
@click.option("-q", "--quiet", is_flag=True, help="Only names.")
@click.option("--status", "states", multiple=True, type=click.Choice(STATES), help="Only those that stand so.")
@services_argument
def ps(project_name: str | None, as_json: bool, quiet: bool, states: Sequence[str], services: Sequence[str]) -> None:
    """List the services of a running project."""
    found = client_for(project_name).get("/v1/services", {"service": list(services)})
    found = [item for item in found if not states or item["state"] in states]
    if as_json:
        return show_json(found)
    if quiet:
        return click.echo("".join(f"{item['name']}\n" for item in found), nl=False)
    return show(ps_rows(found))


@click.command()
@project_option
@service_argument
def inspect(project_name: str | None, service: str) -> None:
    """Print all there is to know of a service, as JSON."""
    show_json(client_for(project_name).get(f"/v1/services/{service}"))


@click.command()
@project_option
@json_option
@services_argument
def start(project_name: str | None, as_json: bool, services: Sequence[str]) -> None:
    """Start services that are down, and what they depend on."""
    _command(client_for(project_name), "start", services, as_json)


@click.command()
@project_option
@json_option
@services_argument
@grace_option
def stop(project_name: str | None, as_json: bool, services: Sequence[str], grace: float | None) -> None:
    """Stop services, and wait until they are down.

    While they take their time, it says which processes are waited for.
    """
    client = client_for(project_name)
    _command(client, "stop", services, as_json, timeout=grace)
    _wait_down(client, services, quiet=as_json)


@click.command()
@project_option
@json_option
@services_argument
@grace_option
def restart(project_name: str | None, as_json: bool, services: Sequence[str], grace: float | None) -> None:
    """Give services new containers."""
    _command(client_for(project_name), "restart", services, as_json, timeout=grace)


@click.command(cls=SignalCommand)
@project_option
@json_option
@click.option(
    "-s",
    "--signal",
    default="KILL",
    metavar="SIGNAL",
    shell_complete=complete_signal,
    help="Default: KILL, which also keeps them down. Also -9, -HUP.",
)
@services_argument
def kill(project_name: str | None, as_json: bool, signal: str, services: Sequence[str]) -> None:
    """Send services a signal."""
    client = client_for(project_name)
    _command(client, "kill", services, as_json, signal=signal)
    if signal.upper().removeprefix("SIG") in ("KILL", "9"):
        _wait_down(client, services, quiet=as_json)


@click.command("reset-failed")
@project_option
@json_option
@services_argument
def reset_failed(project_name: str | None, as_json: bool, services: Sequence[str]) -> None:
    """Forget past failures and restarts."""
    _command(client_for(project_name), "reset-failed", services, as_json)


def _command(client: Client, verb: str, services: Sequence[str], as_json: bool, **more: Any) -> None:
    show_results(client.post(f"/v1/services/{verb}", {"services": services, **more}), as_json)


def show_results(results: Sequence[Mapping[str, Any]], as_json: bool = False) -> None:
    """What has become of a command, a line for each instance."""
    if as_json:
        show_json(results)
    else:
        for result in results:
            click.echo(result["text"])


def _wait_down(client: Client, services: Sequence[str], *, quiet: bool) -> None:
    watch = None if quiet else _Holding(client, services).watch
    for item in client.get("/v1/wait", {"service": list(services)}, meanwhile=watch):
        if item["held_up_by"] and not quiet:
            click.echo(f"{item['name']}: killed, still there after its grace period: {', '.join(item['held_up_by'])}")


class _Holding:
    """Says, while somebody waits for a stop, which processes hold it up: once for each set of them."""

    def __init__(self, client: Client, services: Sequence[str]) -> None:
        self._client = client
        self._services = services
        self._said: dict[str, list[str]] = {}

    def watch(self, answer: socket.socket) -> None:
        """Until the answer comes."""
        while not select.select([answer], [], [], HOLDING_PATIENCE)[0]:
            with contextlib.suppress(TinyvisorError):  # it has just ended: the answer is on its way
                self._look(answer)

    def _look(self, answer: socket.socket) -> None:
        """Of thousands only till the answer comes: the daemon does not wait for ever for it to be read."""
        for item in self._client.get("/v1/services", {"service": list(self._services)}):
            if item["state"] != "stopping":
                continue
            if select.select([answer], [], [], 0)[0]:
                return
            found = self._client.get(f"/v1/services/{item['name']}")[0]["processes"]
            if found and found != self._said.get(item["name"]):
                self._said[item["name"]] = found
                click.echo(f"{item['name']}: waiting for {', '.join(found)}", err=True)


class Starting:
    """Says, while somebody waits until all `services` run, which don't, and why: once for each reason."""

    def __init__(self, client: Client, services: Sequence[str]) -> None:
        self._client = client
        self._services = services
        self._said: dict[str, str] = {}

    def watch(self, answer: socket.socket | int) -> None:
        """Until the answer comes."""
        while not select.select([answer], [], [], STARTING_PATIENCE)[0]:
            with contextlib.suppress(TinyvisorError):  # it does not listen yet, or has just ended
                self._look()

    def _look(self) -> None:
        found = self._client.get("/v1/services", {"service": list(self._services)})
        texts = {item["name"]: _hindrance(item) for item in found if item["state"] in ("waiting", "backoff")}
        new = [name for name, text in texts.items() if self._said.get(name) != text]
        self._said |= texts
        for name in new[:MAX_TOLD]:
            click.echo(f"{name}: {texts[name]}", err=True)
        if len(new) > MAX_TOLD:
            click.echo(f"and {len(new) - MAX_TOLD} more", err=True)


def _hindrance(item: Mapping[str, Any]) -> str:
    """Why a service does not run yet."""
    if item["state"] == "backoff":
        return f"waits to be started again: {item['reason']}"
    return item["reason"] or "waits to be started"


@click.command()
@project_option
@json_option
@click.argument("counts", metavar="SERVICE=N...", nargs=-1, required=True, shell_complete=complete_count)
def scale(project_name: str | None, as_json: bool, counts: Sequence[str]) -> None:
    """Set how many instances of a service run."""
    wanted = []
    for item in counts:
        name, _, number = item.rpartition("=")
        if not name or not (number.isascii() and number.isdecimal()):
            raise click.UsageError(f'"{item}": expected SERVICE=N')
        wanted.append((name, int(number)))
    client = client_for(project_name)
    results = [result for name, count in wanted for result in client.post("/v1/scale", {"service": name, "count": count})]
    show_results([result for result in results if result["did"] != "nothing"], as_json)


@click.command()
@project_option
@json_option
def reload(project_name: str | None, as_json: bool) -> int:
    """Read the configuration anew and change what has changed.

    Exits with 2 when the configuration is at fault, and then changes nothing.
    """
    return reload_project(client_for(project_name), as_json)


def reload_project(client: Client, as_json: bool = False) -> int:
    """Has it done, and shows what has changed; the exit code."""
    try:
        found = client.post("/v1/reload")
    except Refusal as refusal:
        if refusal.status != UNPROCESSABLE:
            raise
        click.echo(str(refusal), err=True)  # file, line and column, as `up` has them
        return 2
    if as_json:
        show_json(found)
        return 0
    for what, sign in (("added", "+"), ("removed", "-"), ("changed", "~")):
        for name in found["difference"][what]:
            click.echo(f"{sign} {name}")
    if not any(found["difference"][what] for what in ("added", "removed", "changed")):
        click.echo("nothing has changed")
    return 0


@click.command()
@project_option
@json_option
@click.option("--until", type=click.Choice(["down", "running", "healthy"]), default="down", help="Default: down.")
@services_argument
def wait(project_name: str | None, as_json: bool, until: str, services: Sequence[str]) -> int:
    """Wait until services are down, running or healthy.

    Exits with 1 when one has failed, or is down though it was to run.
    """
    found = client_for(project_name).get("/v1/wait", {"service": list(services), "until": until})
    if as_json:
        show_json(found)
    else:
        show(summary_rows(found))
    bad = ("failed",) if until == "down" else ("failed", "stopped", "exited")
    return int(any(item["state"] in bad for item in found))


@click.command()
@project_option
@json_option
@grace_option
def down(project_name: str | None, as_json: bool, grace: float | None) -> None:
    """Stop a project and its daemon; returns when everything is gone.

    Also what a daemon that was killed has left of a project that was started with --live.
    """
    client = client_for(project_name)
    if is_abandoned(client.project):
        take_over(client.project)
    with open(client.pidfd(), "rb") as daemon:
        found = client.post("/v1/down", {"timeout": grace}, meanwhile=None if as_json else _Holding(client, ()).watch)
        waiting = select.poll()
        waiting.register(daemon, select.POLLIN)
        waiting.poll()
    if as_json:
        show_json(found)
    else:
        show(summary_rows(found))


def take_over(project: str) -> None:
    """Has a new daemon look after what a dead one has left, as it is."""
    from tinyvisor.cli.daemon import start_daemon
    from tinyvisor.cli.standby import Standby

    log_dir = log_directory_of(project)
    arguments = ["-p", project, "--log-dir", str(log_dir), "--live", "--only-what-is-left"]
    with Standby() as standby:
        code = start_daemon(arguments, project, log_dir, standby=standby, quiet=True)
    if code == UNUSABLE:
        raise TinyvisorError(f'what is left of "{project}" could not be taken over')


@click.command()
@project_option
def upgrade(project_name: str | None) -> int:
    """Restart a project's daemon in place, with the code that is installed now; its containers go on.

    Only of a project that was started with --live.
    """
    import os

    from tinyvisor.cli.daemon import wait_for_word
    from tinyvisor.runtime.launcher import VERSION

    client = client_for(project_name)
    about = client.get("/v1/project")
    if about.get("launcher_version", VERSION) != VERSION:
        raise TinyvisorError(
            "its containers were started by another version of tinyvisor, whose launcher this one can't talk to; they go on as"
            " they are: tinyvisor down, then up -d, gives it new ones"
        )
    reading, writing = os.pipe()
    try:
        client.post("/v1/upgrade", fds=[writing])
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    code, pid = wait_for_word(reading, Path(about["log_dir"]))
    if code == UNUSABLE:
        raise TinyvisorError(abandoned(client.project))
    click.echo(f'"{client.project}" goes on (pid {pid})')
    return 0
