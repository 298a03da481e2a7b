"""The commands that watch a running project: what it writes, what happens, what it uses."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import click

from tinyvisor.clean import clean
from tinyvisor.cli.services import client_for, json_option, project_option, services_argument, show, show_json
from tinyvisor.cli.summary import format_plain
from tinyvisor.errors import TinyvisorError
from tinyvisor.units import format_duration, format_size, parse_duration

A_TIME = "2026-01-02T03:04:05Z"
MAX_TAIL = 10_000
STATS = ("service", "cpu", "memory", "memory peak", "pids", "oom kills")


@click.command()
@project_option
@json_option
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@click.option("-n", "--tail", metavar="N", help="Only the last N lines, up to 10000, or all. Default: all.")
@click.option("--since", metavar="TIME", help="2026-01-02T03:04:05Z, also in parts, or how long ago: 10m.")
@click.option("--until", metavar="TIME", help="No later than that; does not go with -f.")
@click.option("-t", "--timestamps", is_flag=True, help="Lines with the time.")
@click.option("--no-log-prefix", is_flag=True, help="Lines without their service's name.")
@services_argument
def logs(
    project_name: str | None,
    as_json: bool,
    follow: bool,
    tail: str | None,
    since: str | None,
    until: str | None,
    timestamps: bool,
    no_log_prefix: bool,
    services: Sequence[str],
) -> None:
    """Show what services have written."""
    if follow and until:
        raise click.UsageError("--until does not go with --follow")
    query: dict[str, Any] = {"service": list(services), **times(since, until)}
    query |= last_lines(tail) if tail is not None else {}
    query |= {"follow": 1} if follow else {}
    client = client_for(project_name)
    for record in client.stream("/v1/logs", query):
        if as_json:
            line = json.dumps(record)
        else:
            text = clean(record["text"].encode(), colour=False)
            line = f"{record['time']} " * timestamps + f"{record['name']} | " * (not no_log_prefix) + text
        click.echo(line)  # flushes


def times(since: str | None, until: str | None) -> dict[str, str]:
    """What is asked of the daemon for ``--since`` and ``--until``."""
    now = time.time()
    return {key: point_in_time(text, now, f"--{key}") for key, text in (("since", since), ("until", until)) if text}


def point_in_time(text: str, now: float, option: str) -> str:
    """RFC 3339 in UTC, of a time, whole or in parts (in the local zone where it names none), or so long before `now`."""
    if text[:4].isdecimal() and text[4:5] == "-":
        from datetime import UTC, datetime

        try:
            return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        except (ValueError, OverflowError):
            raise click.BadParameter(f'"{text}" is not a time; expected one such as {A_TIME}', param_hint=option) from None
    try:
        then = now - parse_duration(text)
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(then)) + f".{int(then % 1 * 1000):03}Z"
    except ValueError:
        problem = f'"{text}" is neither a time such as {A_TIME} nor a duration such as 90s or 1m30s'
        raise click.BadParameter(problem, param_hint=option) from None


def last_lines(text: str) -> dict[str, int]:
    """What is asked of the daemon for ``--tail``."""
    if text == "all":
        return {}
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= MAX_TAIL):
        raise click.BadParameter(f'"{text}": expected 0 to {MAX_TAIL}, or all', param_hint="--tail")
    return {"tail": int(text)}


@click.command()
@project_option
@json_option
@click.option("-f", "--follow", is_flag=True, expose_value=False, help="As it does anyway.")
@click.option("--since", metavar="TIME", help="Begin with the latest 1024 that are not older. 2026-01-02T03:04:05Z, or 10m.")
@click.option("--until", metavar="TIME", help="End then; 0s: now.")
@services_argument
def events(project_name: str | None, as_json: bool, since: str | None, until: str | None, services: Sequence[str]) -> None:
    """Show what happens, from now on."""
    query = {"service": list(services), **times(since, until)}
    for event in client_for(project_name).stream("/v1/events", query):
        if as_json:
            click.echo(json.dumps(event))
        else:
            click.echo(clean(_event_line(event).encode(), colour=False))


def _event_line(event: Mapping[str, Any]) -> str:
    more = {key: value for key, value in event.items() if key not in ("time", "event", "name")}
    if isinstance(more.get("exit"), dict):
        more["exit"] = more["exit"]["status"]
    details = " ".join(f"{key}={value}" for key, value in more.items() if value not in ("", [], None))
    return f"{event['time']} {event['event']} {event.get('name', '')} {details}".rstrip()


@click.command()
@project_option
@json_option
@click.option("--watch", is_flag=True, help="Again and again; with --json, JSON Lines.")
@click.option("--interval", metavar="TIME", default="1s", help="Between two looks, 100ms to 1h. Default: 1s.")
@services_argument
def stats(project_name: str | None, as_json: bool, watch: bool, interval: str, services: Sequence[str]) -> None:
    """Show what services use."""
    client = client_for(project_name)
    if not watch:
        found = client.get("/v1/stats", {"service": list(services)})
        return show_json(found) if as_json else show([STATS, *map(_stats_row, found)])
    try:
        seconds = parse_duration(interval)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--interval") from None
    before: dict[str, tuple[float, Any]] = {}
    for sample in client.stream("/v1/stats", {"service": list(services), "interval": seconds}, accept="text/event-stream"):
        if as_json:
            for item in sample["stats"]:
                click.echo(json.dumps({"time": sample["time"], **item}))
            continue
        now, rows = time.monotonic(), []
        for item in sample["stats"]:
            rows.append((*_stats_row(item), _share(before.get(item["name"]), now, item)))
        before = {item["name"]: (now, item) for item in sample["stats"]}
        again = "\x1b[H\x1b[2J" if sys.stdout.isatty() else ""
        click.echo(again + format_plain([(*STATS, "cpu %"), *rows]))
    return None


def _share(before: tuple[float, Any] | None, now: float, item: Mapping[str, Any]) -> str:
    """Of one CPU, since the last look; a service that has a new container counts from then on."""
    if before is None or item["cpu_user"] is None or before[1]["cpu_user"] is None:
        return "-"
    used = item["cpu_user"] + item["cpu_system"] - before[1]["cpu_user"] - before[1]["cpu_system"]
    return f"{max(0.0, used) / max(now - before[0], 1e-3):.0%}"


def _stats_row(item: Mapping[str, Any]) -> tuple[str, ...]:
    cpu = None if item["cpu_user"] is None else item["cpu_user"] + item["cpu_system"]
    return (
        item["name"],
        "-" if cpu is None else format_duration(cpu),
        *("-" if item[key] is None else format_size(item[key]) for key in ("memory", "memory_peak")),
        "-" if item["pids"] is None else str(item["pids"]),
        str(item["oom_kills"]),
    )


@click.command()
@project_option
@click.option("--grafana", is_flag=True, help="Print a dashboard for Grafana that shows them; asks no daemon.")
def metrics(project_name: str | None, grafana: bool) -> None:
    """Print a project's metrics, as Prometheus is told them.

    For Prometheus itself: tinyvisor up --metrics-port PORT. They need prometheus-client: pip install 'tinyvisor[metrics]'.
    """
    if grafana:
        from importlib.resources import files

        click.echo((files("tinyvisor") / "grafana.json").read_text(), nl=False)
    else:
        click.echo(client_for(project_name).text("/metrics"), nl=False)


@click.command()
@project_option
@json_option
@click.option("--ui", is_flag=True, help="A live screen: what services use, their output, keys to stop, start, restart, exec.")
@services_argument
def top(project_name: str | None, as_json: bool, ui: bool, services: Sequence[str]) -> int | None:
    """List the processes of services; or watch all of them on a screen.

    The screen needs textual: pip install 'tinyvisor[tui]'.
    """
    if ui:
        return _screen(project_name, as_json, services)
    client = client_for(project_name)
    groups = services or dict.fromkeys(item["service"] or item["name"] for item in client.get("/v1/services"))
    found = {item["name"]: item for name in groups for item in client.get(f"/v1/services/{name}")}.values()
    if as_json:
        show_json([{"name": item["name"], "processes": item["processes"]} for item in found])
    else:
        show([("service", "process"), *((item["name"], process) for item in found for process in item["processes"])])
    return None


def _screen(project_name: str | None, as_json: bool, services: Sequence[str]) -> int:
    if as_json or services:
        raise click.UsageError("--ui shows all services, and no JSON")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise TinyvisorError("--ui needs a terminal")
    client = client_for(project_name)
    client.get("/v1/project")  # else it would be a screen that says at once that there is none
    if find_spec("textual") is None:
        raise TinyvisorError("--ui needs textual: pip install 'tinyvisor[tui]'")
    from tinyvisor.cli.screen import show as show_screen

    return show_screen(client)
