"""Tallies and reports: counts, bounds, and that nothing of a job's own text means anything."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_outputs import job
from tinyvisor.report import FAILURES, SLOWEST, Histogram, Tally, summary_line, to_html, to_markdown, why
from tinyvisor.state import Result

HOSTILE = "<script>alert(1)</script> | `x` [a](javascript:b) ![c](https://d) **e** &amp; \"' \x1b[2J\u202e"


def tally() -> Tally:
    found = Tally()
    for number in range(1, 101):
        found.add(job(f"j{number}", index=number), Result(status="ok", exit_code=0, wall=number / 100, memory_peak=number << 20))
    return found


def test_counts_and_summary() -> None:
    found = tally()
    found.skip("ok")
    assert found.all_ok
    assert summary_line(found, 3.21) == "101 jobs in 3.2s: 101 ok (1 of them before)"
    found.add(job("x"), Result(status="nonzero_exit", exit_code=1))
    found.skip("time_limit")
    found.retried, found.invalid = 3, 1
    assert not found.all_ok
    assert found.by_status() == [("ok", 101), ("nonzero_exit", 1), ("time_limit", 1)]
    assert summary_line(found, 61) == (
        "103 jobs in 1m01s: 101 ok, 1 nonzero_exit, 1 time_limit (2 of them before, 3 retried, 1 invalid)"
    )
    assert summary_line(Tally(), 0) == "0 jobs in 0ms: nothing was run"


def test_passed_over_is_not_all_ok() -> None:
    found = Tally(invalid=1)
    assert not found.all_ok


def test_the_slowest_are_kept_and_no_more() -> None:
    found = tally()
    assert len(found.slowest) == SLOWEST
    assert sorted(name for _, _, name, _ in found.slowest) == sorted(f"j{number}" for number in range(81, 101))
    for number in range(2 * FAILURES):
        found.add(job("x"), Result(status="signaled", signal=9, reason=str(number)))
    assert [reason for _, _, reason in found.failures] == list(map(str, range(FAILURES)))


@given(st.lists(st.floats(0, 1e9)))
def test_histograms_count_everything(values: list[float]) -> None:
    histogram = Histogram((1.0, 10.0, 100.0), str)
    for value in values:
        histogram.add(value)
    rows = histogram.rows()
    assert sum(count for _, count in rows) == len(values)
    assert not rows or (rows[0][1] and rows[-1][1])


def test_histogram_ranges() -> None:
    histogram = Histogram((1.0, 10.0), lambda edge: f"{edge:.0f}")
    for value in (0.5, 1.0, 9.9, 10.0, 11.0):
        histogram.add(value)
    assert histogram.rows() == [("below 1", 1), ("1 – 10", 2), ("10 and more", 2)]


def test_why_is_one_harmless_line() -> None:
    result = Result(status="nonzero_exit", exit_code=2, stderr=b"first\n\x1b[31mlast\x1b[0m \x1b]0;title\x07line\n\n")
    assert why(result) == "exit 2: last line"
    assert why(Result(status="time_limit", reason="killed after 2s")) == "killed after 2s"
    assert len(why(Result(status="signaled", signal=9, stderr=b"x" * 100_000))) < 400


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile() -> Tally:
    found = tally()
    result = Result(status="nonzero_exit", exit_code=1, reason=HOSTILE, stderr=HOSTILE.encode(), wall=99)
    found.add(job(HOSTILE), result)
    return found


def test_html_holds_nothing_of_theirs() -> None:
    text = to_html(hostile(), title="<b>Title</b>", seconds=1)
    page = Page()
    page.feed(text)
    assert page.tags == {"html", "meta", "title", "style", "h1", "h2", "p", "table", "tr", "th", "td", "div"}
    assert page.attributes <= {"lang", "charset", "http-equiv", "content", "class", "style"}
    assert "<script>alert(1)</script>" in page.text
    assert "<b>Title</b>" in page.text
    assert not re.search(r"[\x1b\u202e]", text)
    assert "http:" not in text.replace("https://d", "")
    assert "default-src 'none'" in text


def test_html_has_the_figures() -> None:
    text = to_html(hostile(), title="x", seconds=1)
    assert "<td>ok</td><td>100</td>" in text
    for heading in ("By status", "Not ok", "Slowest", "Wall time", "CPU time", "Memory peak"):
        assert f"<h2>{heading}</h2>" in text


def test_markdown_holds_nothing_of_theirs() -> None:
    text = to_markdown(hostile(), title="x", seconds=1)
    assert not re.search(r"[\x1b\u202e]", text)
    assert "<" not in text
    rows = [line for line in text.splitlines() if "script" in line]
    assert len(rows) == 2  # not ok, slowest
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == 4  # as many cells as there should be
        assert not re.search(r"(?<!\\)[`\[\]*_~]", row)
        assert "javascript\\:" in row


def test_markdown_has_the_figures() -> None:
    text = to_markdown(tally(), title="Batch", seconds=1)
    assert text.startswith("# Batch\n\n100 jobs in 1\\.0s\\: 100 ok\n")
    assert "| ok | 100 |" in text
    assert re.search(r"^500ms – 1s +50 +█+$", text, re.MULTILINE)


@pytest.mark.parametrize("render", [to_html, to_markdown])
def test_a_report_of_nothing(render: object) -> None:
    assert "nothing was run" in render(Tally(), title="x", seconds=0)  # type: ignore[operator]
