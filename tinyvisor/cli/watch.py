"""The commands that watch a running project: what it writes, what happens, what it uses."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from tinyvisor.cli.services import client_for, json_option, project_option, services_argument, show, show_json
from tinyvisor.units import format_duration, format_size, parse_duration
from tinyvisor.view import clean

PERIOD = 1.0
"""Seconds between two looks of ``stats --watch``."""


@click.command()
@project_option
@json_option
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@click.option("-n", "--tail", type=click.IntRange(0, 10_000), metavar="N", help="Only the last N lines.")
@click.option("--since", metavar="TIME", help="2026-01-02T03:04:05Z, or how long ago: 10m.")
@click.option("--timestamps", is_flag=True, help="Lines with the time.")
@services_argument
def logs(
    project_name: str | None,
    as_json: bool,
    follow: bool,
    tail: int | None,
    since: str | None,
    timestamps: bool,
    services: Sequence[str],
) -> None:
    """Show what services have written."""
    query: dict[str, Any] = {"service": list(services)}
    query |= {"tail": tail} if tail is not None else {}
    query |= {"since": point_in_time(since, time.time())} if since else {}
    query |= {"follow": 1} if follow else {}
    client = client_for(project_name)
    for record in client.stream("/v1/logs", query):
        if as_json:
            line = json.dumps(record)
        else:
            text = clean(record["text"].encode(), colour=False)
            line = f"{record['time']} " * timestamps + f"{record['name']} | {text}"
        click.echo(line)  # flushes


def point_in_time(text: str, now: float) -> str:
    """RFC 3339 in UTC, as it is or from so long before `now`."""
    if text[:4].isdecimal() and "T" in text:
        return text
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now - parse_duration(text)))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--since") from None


@click.command()
@project_option
@json_option
def events(project_name: str | None, as_json: bool) -> None:
    """Show what happens, from now on."""
    for event in client_for(project_name).stream("/v1/events"):
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
@click.option("--watch", is_flag=True, help="Again every second; with --json, JSON Lines.")
@services_argument
def stats(project_name: str | None, as_json: bool, watch: bool, services: Sequence[str]) -> None:
    """Show what services use."""
    client = client_for(project_name)
    while True:
        found = client.get("/v1/stats", {"service": list(services)})
        if not as_json:
            show([("service", "cpu", "memory", "memory peak", "pids", "oom kills"), *map(_stats_row, found)])
        elif watch:
            click.echo(json.dumps(found))
        else:
            show_json(found)
        if not watch:
            return
        time.sleep(PERIOD)


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
@json_option
@services_argument
def top(project_name: str | None, as_json: bool, services: Sequence[str]) -> None:
    """List the processes of services."""
    client = client_for(project_name)
    groups = services or dict.fromkeys(item["service"] or item["name"] for item in client.get("/v1/services"))
    found = {item["name"]: item for name in groups for item in client.get(f"/v1/services/{name}")}.values()
    if as_json:
        show_json([{"name": item["name"], "processes": item["processes"]} for item in found])
    else:
        show([("service", "process"), *((item["name"], process) for item in found for process in item["processes"])])
