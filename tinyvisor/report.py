"""What came of a batch: counts that grow with no job, and a report of them as HTML or Markdown. Pure.

Ids, reasons and outputs are hostile text: all that comes from a job is cleaned of control characters and escaped.
"""

from __future__ import annotations

import heapq
import html
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tinyvisor.clean import clean
from tinyvisor.jobs import NumberedJob, describe
from tinyvisor.state import Result
from tinyvisor.units import format_duration, format_size

SLOWEST = 20
FAILURES = 50
"""Failed jobs that are listed: the first ones."""
MAX_TEXT = 300
"""Characters of a line of output that is shown."""

_SECONDS = tuple(base * scale for scale in (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0) for base in (1, 2, 5))
_BYTES = tuple(float(1 << shift) for shift in range(20, 38))


def _duration(seconds: float) -> str:
    return f"{seconds:.0f}s" if 1 <= seconds < 60 else format_duration(seconds)


class Histogram:
    """Counts by size, between fixed edges that grow like a logarithm."""

    def __init__(self, edges: Sequence[float], show: Callable[[float], str]) -> None:
        self._edges, self._show = edges, show
        self._counts = [0] * (len(edges) + 1)

    def add(self, value: float) -> None:
        self._counts[bisect_right(self._edges, value)] += 1

    def rows(self) -> list[tuple[str, int]]:
        """(range, count) from the first range that has any to the last."""
        filled = [index for index, count in enumerate(self._counts) if count]
        return [(self._range(index), self._counts[index]) for index in range(filled[0], filled[-1] + 1)] if filled else []

    def _range(self, index: int) -> str:
        if index == 0:
            return f"below {self._show(self._edges[0])}"
        if index == len(self._edges):
            return f"{self._show(self._edges[-1])} and more"
        return f"{self._show(self._edges[index - 1])} – {self._show(self._edges[index])}"


@dataclass(slots=True)
class Tally:
    """What has come of a batch's jobs so far. Its size does not depend on how many they are.

    Attributes:
        counts: of the jobs that were run now, by status.
        earlier: of those that a results file had already, by status.
        retried: attempts that were followed by another.
        invalid: jobs that were passed over because they are wrong.
        slowest: (wall seconds, index, job in words, status), as a heap.
        failures: the first jobs that were not ok: (job in words, status, why).
    """

    counts: Counter[str] = field(default_factory=Counter)
    earlier: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    invalid: int = 0
    slowest: list[tuple[float, int, str, str]] = field(default_factory=list)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    wall: Histogram = field(default_factory=lambda: Histogram(_SECONDS, _duration))
    cpu: Histogram = field(default_factory=lambda: Histogram(_SECONDS, _duration))
    memory: Histogram = field(default_factory=lambda: Histogram(_BYTES, lambda size: format_size(int(size)).replace(".0", "")))

    def add(self, job: NumberedJob, result: Result) -> None:
        """A job has finished."""
        self.counts[result.status] += 1
        self.wall.add(result.wall)
        self.cpu.add(result.cpu_user + result.cpu_system)
        if result.memory_peak is not None:
            self.memory.add(result.memory_peak)
        if len(self.slowest) < SLOWEST or result.wall > self.slowest[0][0]:
            entry = (result.wall, -job.index, describe(job), result.status)
            (heapq.heappushpop if len(self.slowest) == SLOWEST else heapq.heappush)(self.slowest, entry)
        if result.status != "ok" and len(self.failures) < FAILURES:
            self.failures.append((describe(job), result.status, why(result)))

    def skip(self, status: str) -> None:
        """A job had finished before."""
        self.earlier[status] += 1

    @property
    def finished(self) -> int:
        """Jobs that were run now or before."""
        return self.counts.total() + self.earlier.total()

    @property
    def all_ok(self) -> bool:
        return not self.invalid and set(self.counts + self.earlier) <= {"ok"}

    def by_status(self) -> list[tuple[str, int]]:
        """(status, jobs), ok first, then the most frequent ones."""
        both = self.counts + self.earlier
        return sorted(both.items(), key=lambda item: (item[0] != "ok", -item[1], item[0]))


def why(result: Result) -> str:
    """One line on a result that is not ok: the reason, and the last line of stderr."""
    reason = result.reason or result.describe()
    lines = (result.stderr or b"")[-(4 << 10) :].rstrip().rsplit(b"\n", 1)[-1]
    last = clean(lines, colour=False).strip()[:MAX_TEXT]
    text = clean(reason.encode("utf-8", "replace"), colour=False)
    return f"{text}: {last}" if last else text


def summary_line(tally: Tally, seconds: float) -> str:
    """``1,000 jobs in 3.2s: 990 ok, 10 nonzero_exit (20 of them before, 3 retried)``."""
    jobs = tally.finished
    counts = ", ".join(f"{count:,} {status}" for status, count in tally.by_status()) or "nothing was run"
    notes = [
        f"{count:,} {what}"
        for count, what in ((tally.earlier.total(), "of them before"), (tally.retried, "retried"), (tally.invalid, "invalid"))
        if count
    ]
    return f"{jobs:,} job{'s' * (jobs != 1)} in {format_duration(seconds)}: {counts}" + (
        f" ({', '.join(notes)})" if notes else ""
    )


# --- The report. ---


@dataclass(frozen=True, slots=True)
class _Table:
    title: str
    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""


def _tables(tally: Tally) -> Iterable[_Table]:
    counts = [(status, f"{count:,}") for status, count in tally.by_status()]
    yield _Table("By status", ("status", "jobs"), counts, _note(tally))
    if tally.failures:
        total = sum(count for status, count in tally.counts.items() if status != "ok")
        note = f"The first {len(tally.failures)} of {total:,}." if total > len(tally.failures) else ""
        yield _Table("Not ok", ("job", "status", "why"), list(tally.failures), note)
    slowest = [(name, status, format_duration(wall)) for wall, _, name, status in sorted(tally.slowest, reverse=True)]
    if slowest:
        yield _Table("Slowest", ("job", "status", "wall"), slowest)


def _note(tally: Tally) -> str:
    notes = []
    if tally.earlier:
        notes.append(
            f"{tally.earlier.total():,} of them had finished in an earlier run: they are counted here, and nowhere else below."
        )
    if tally.retried:
        notes.append(f"{tally.retried:,} attempts were retried; the last one of each job counts.")
    if tally.invalid:
        notes.append(f"{tally.invalid:,} invalid jobs were passed over.")
    return " ".join(notes)


def _histograms(tally: Tally) -> list[tuple[str, list[tuple[str, int]]]]:
    named = (("Wall time", tally.wall), ("CPU time", tally.cpu), ("Memory peak", tally.memory))
    return [(title, rows) for title, histogram in named if (rows := histogram.rows())]


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin-bottom:1rem}td,th{text-align:left;padding:.15rem .8rem .15rem 0;vertical-align:top}"
    "th{border-bottom:1px solid #888}td{overflow-wrap:anywhere}.bar{background:#4a7dbd;height:.9rem;min-width:1px}"
    ".chart td:first-child,.number{white-space:nowrap}.chart td:nth-child(3){width:24rem}"
    "@media(prefers-color-scheme:dark){body{background:#16181c;color:#ddd}}"
)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def to_html(tally: Tally, *, title: str, seconds: float) -> str:
    """One page without scripts and without anything from elsewhere."""
    parts = [
        "<!doctype html>",
        f'<html lang="en"><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>{_html(title)}</title><style>{_STYLE}</style>",
        f"<h1>{_html(title)}</h1><p>{_html(summary_line(tally, seconds))}</p>",
    ]
    for table in _tables(tally):
        head = "".join(f"<th>{_html(text)}</th>" for text in table.headings)
        rows = "".join("<tr>" + "".join(f"<td>{_html(cell)}</td>" for cell in row) + "</tr>\n" for row in table.rows)
        note = f"<p>{_html(table.note)}</p>" if table.note else ""
        parts.append(f"<h2>{table.title}</h2>{note}<table><tr>{head}</tr>\n{rows}</table>")
    for name, counts in _histograms(tally):
        most = max(count for _, count in counts)
        rows = "".join(
            f'<tr><td>{_html(label)}</td><td class="number">{count:,}</td>'
            f'<td><div class="bar" style="width:{100 * count / most:.1f}%"></div></td></tr>\n'
            for label, count in counts
        )
        parts.append(f'<h2>{name}</h2><table class="chart">{rows}</table>')
    return "\n".join((*parts, "</html>\n"))


BAR = 40


def to_markdown(tally: Tally, *, title: str, seconds: float) -> str:
    """The same as a Markdown text."""
    parts = [f"# {_markdown(title)}", _markdown(summary_line(tally, seconds))]
    for table in _tables(tally):
        parts.append(f"## {table.title}")
        if table.note:
            parts.append(_markdown(table.note))
        rows = [table.headings, ("---",) * len(table.headings), *(tuple(map(_markdown, row)) for row in table.rows)]
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    for name, counts in _histograms(tally):
        most, width = max(count for _, count in counts), max(len(label) for label, _ in counts)
        digits = max(len(f"{count:,}") for _, count in counts)
        lines = (f"{label:<{width}}  {count:>{digits},}  {'█' * -(-BAR * count // most)}".rstrip() for label, count in counts)
        parts.append(f"## {name}\n\n```\n" + "\n".join(lines) + "\n```")
    return "\n\n".join(parts) + "\n"


_SPECIAL = re.compile(r"([\\`*_\[\]#.|~:@$])")


def _plain(text: str) -> str:
    """Printable characters only, on one line."""
    return "".join(char if char.isprintable() else "�" for char in text)


def _html(text: str) -> str:
    return html.escape(_plain(text))


def _markdown(text: str) -> str:
    """Nothing in it means anything: no link, no HTML, no new cell."""
    return _SPECIAL.sub(r"\\\1", html.escape(_plain(text), quote=False))
