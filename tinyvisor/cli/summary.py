"""The table of `ps`, and at the end of `up`. Pure but for the printing; rich is imported only where there is a terminal, and the
dataclasses nowhere: a row comes from a `ServiceSummary` as JSON, for `ps` must not wait for them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tinyvisor.clean import clean
from tinyvisor.units import format_duration, format_size, signal_name

Summary = Mapping[str, Any]

HEADINGS = ("service", "status", "exit", "restarts", "wall", "cpu", "memory peak", "reason")
PS_HEADINGS = ("service", "status", "uptime", "pid", "restarts", "exit", "reason")
_NUMBERS = frozenset({"uptime", "pid", "restarts", "wall", "cpu", "memory peak"})
_STYLES = {"failed": "red", "exited": "green"}


def print_summary(summaries: Sequence[Summary], *, colour: bool) -> None:
    """Prints the table to stdout, drawn by rich on a terminal, plain elsewhere."""
    table = summary_rows(summaries)
    if sys.stdout.isatty():
        _print_rich(table, colour)
    else:
        print("\n" + format_plain(table))


def summary_rows(summaries: Sequence[Summary]) -> list[tuple[str, ...]]:
    """The headings and a row per service; the reason's column only where there is one."""
    rows = [HEADINGS, *map(_row, summaries)]
    return rows if any(row[-1] for row in rows[1:]) else [row[:-1] for row in rows]


def ps_rows(found: Sequence[Summary]) -> list[tuple[str, ...]]:
    """The headings and a row per service: how it is now. What ended containers have used is for `summary_rows`."""
    rows = [PS_HEADINGS, *map(_ps_row, found)]
    return rows if any(row[-1] for row in rows[1:]) else [row[:-1] for row in rows]


def format_plain(rows: Sequence[Sequence[str]]) -> str:
    """Columns under each other, for pipes and files."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = [heading in _NUMBERS for heading in rows[0]]
    columns = list(zip(widths, right, strict=True))
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width) for cell, (width, number) in zip(row, columns, strict=True)
        ).rstrip()
        for row in rows
    )


def _row(summary: Summary) -> tuple[str, ...]:
    last = summary["exit"]
    memory = summary["memory_peak"]
    cells = (
        summary["name"],
        _status(summary),
        _exit(last),
        str(summary["restarts"]),
        format_duration(summary["wall"]),
        format_duration(summary["cpu"]),
        format_size(memory) if memory is not None else "-",
        _reason(summary),
    )
    return _cleaned(cells)


def _ps_row(item: Summary) -> tuple[str, ...]:
    uptime, pid = item.get("uptime"), item["pid"]  # of a daemon from before an upgrade of this program there is no uptime
    cells = (
        item["name"],
        _status(item),
        "-" if uptime is None else format_duration(uptime),
        "-" if pid is None else str(pid),
        str(item["restarts"]),
        _exit(item["exit"]),
        _reason(item) or item["status"],
    )
    return _cleaned(cells)


def _cleaned(cells: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(clean(cell.encode("utf-8", "replace"), colour=False) for cell in cells)


def _status(summary: Summary) -> str:
    """The state, and the verdict where it says more."""
    last = summary["exit"]
    if summary["state"] == "running" and summary["health"]:
        return f"running ({summary['health']})"
    if summary.get("due") is not None:
        return f"{summary['state']} (next in {format_duration(summary['due'])})"
    if summary["state"] != "failed" or last is None or last["status"] in ("ok", "nonzero_exit", "signaled", "stopped"):
        return str(summary["state"])
    return f"{summary['state']} ({last['status']})"


def _exit(exit: Mapping[str, Any] | None) -> str:
    if exit is None:
        return "-"
    return str(exit["exit_code"]) if exit["signal"] is None else signal_name(exit["signal"])


def _reason(summary: Summary) -> str:
    if summary["held_up_by"]:
        return f"killed after its grace period: {', '.join(summary['held_up_by'])}"
    return str(summary["reason"])


def _print_rich(rows: Sequence[Sequence[str]], colour: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in rows[0]:
        table.add_column(heading, justify="right" if heading in _NUMBERS else "left", overflow="fold")
    for row in rows[1:]:
        # Text, not str: a reason may hold what rich would take for markup.
        style = _STYLES.get(row[1].split()[0], "")
        table.add_row(*(Text(cell, style=style if index == 1 else "") for index, cell in enumerate(row)))
    console = Console(no_color=not colour, highlight=False)
    console.print()
    console.print(table)
