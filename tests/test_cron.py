"""crontab expressions: what they mean, and when they come, where clocks are turned as well."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvisor.cron import Cron, next_time, parse, zone


def times(text: str, start: str, count: int, where: str = "UTC") -> list[str]:
    """The next `count` times after `start`, local, with their offset from UTC."""
    local = zone(where)
    now = datetime.fromisoformat(start)
    after = (now if now.tzinfo else now.replace(tzinfo=local)).timestamp()
    found = []
    for _ in range(count):
        after = next_time(parse(text), after, local)
        found.append(datetime.fromtimestamp(after, local).isoformat(timespec="minutes"))
    return found


# ---- what they mean ----


@pytest.mark.parametrize(
    "text, start, expected",
    [
        ("* * * * *", "2026-01-01T00:00", ["2026-01-01T00:01", "2026-01-01T00:02"]),
        ("*/20 * * * *", "2026-01-01T23:30", ["2026-01-01T23:40", "2026-01-02T00:00"]),
        ("5/20 * * * *", "2026-01-01T00:00", ["2026-01-01T00:05", "2026-01-01T00:25", "2026-01-01T00:45", "2026-01-01T01:05"]),
        ("30 9-10 * * *", "2026-01-01T09:30", ["2026-01-01T10:30", "2026-01-02T09:30"]),
        ("0 0 1,15 * *", "2026-01-01T00:00", ["2026-01-15T00:00", "2026-02-01T00:00"]),
        ("0 12 * feb,MAR *", "2026-02-28T12:00", ["2026-03-01T12:00", "2026-03-02T12:00"]),
        ("0 0 * * mon-wed", "2026-01-01T00:00", ["2026-01-05T00:00", "2026-01-06T00:00", "2026-01-07T00:00", "2026-01-12T00:00"]),
        ("0 0 * * 7", "2026-01-01T00:00", ["2026-01-04T00:00"]),
        ("0 0 * * 0", "2026-01-01T00:00", ["2026-01-04T00:00"]),
        ("0 0 * * */2", "2026-01-01T00:00", ["2026-01-03T00:00", "2026-01-04T00:00", "2026-01-06T00:00"]),
        ("0 0 29 2 *", "2026-01-01T00:00", ["2028-02-29T00:00", "2032-02-29T00:00"]),
        ("0 0 29 2 *", "2096-03-01T00:00", ["2104-02-29T00:00"]),
        ("0 0 31 * *", "2026-01-31T00:00", ["2026-03-31T00:00", "2026-05-31T00:00"]),
        ("@hourly", "2026-01-01T00:30", ["2026-01-01T01:00"]),
        ("@Daily", "2026-01-01T00:30", ["2026-01-02T00:00"]),
        ("@weekly", "2026-01-01T00:30", ["2026-01-04T00:00"]),
        ("@monthly", "2026-01-01T00:30", ["2026-02-01T00:00"]),
        ("@yearly", "2026-01-01T00:30", ["2027-01-01T00:00"]),
    ],
)
def test_the_next_times(text: str, start: str, expected: list[str]) -> None:
    assert times(text, start, len(expected)) == [f"{item}+00:00" for item in expected]


def test_of_two_restricted_days_either_will_do() -> None:
    """crontab(5): "30 4 1,15 * 5" is the 1st, the 15th, and every Friday."""
    assert times("30 4 1,15 * 5", "2026-01-01T05:00", 4) == [
        "2026-01-02T04:30+00:00", "2026-01-09T04:30+00:00", "2026-01-15T04:30+00:00", "2026-01-16T04:30+00:00",
    ]  # fmt: skip


def test_seconds_are_rounded_up_to_the_next_minute() -> None:
    assert next_time(parse("* * * * *"), 60.5, zone("UTC")) == 120
    assert next_time(parse("* * * * *"), 59.999, zone("UTC")) == 60
    assert next_time(parse("* * * * *"), 60.0, zone("UTC")) == 120


@pytest.mark.parametrize(
    "text",
    [
        "", "* * * *", "* * * * * *", "@never", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *", "* * * 13 *", "* * * 0 *",
        "* * * * 8", "5-1 * * * *", "*/0 * * * *", "*/60 * * * *", "a * * * *", "1, * * * *", "-1 * * * *", "1-2-3 * * * *",
        "*/ * * * *", "mon * * * *", "* * * mon *", "1.5 * * * *", "٣ * * * *", "0 0 30 2 *", "0 0 31 4,6,9,11 *",
    ],
)  # fmt: skip
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|never comes"):
        parse(text)


@pytest.mark.parametrize("name", ["", "Nowhere", "../etc/passwd", "/etc/localtime", "Europe", "UTC\0"])
def test_time_zones_that_are_none(name: str) -> None:
    with pytest.raises(ValueError, match="is not a time zone"):
        zone(name)


# ---- where clocks are turned ----
# Berlin: 2026-03-29 02:00 → 03:00, 2026-10-25 03:00 → 02:00.


def test_a_time_that_is_left_out_comes_when_the_clock_has_been_turned() -> None:
    assert times("30 2 * * *", "2026-03-28T03:00", 2, "Europe/Berlin") == ["2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"]


def test_several_times_that_are_left_out_come_once() -> None:
    assert times("*/15 2 * * *", "2026-03-28T02:45", 2, "Europe/Berlin") == ["2026-03-29T03:00+02:00", "2026-03-30T02:00+02:00"]


def test_a_time_that_comes_twice_counts_the_first_time() -> None:
    assert times("30 2 * * *", "2026-10-24T03:00", 2, "Europe/Berlin") == ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]


def test_every_so_often_neither_pauses_nor_repeats() -> None:
    assert times("*/30 * * * *", "2026-03-29T01:15", 3, "Europe/Berlin") == [
        "2026-03-29T01:30+01:00", "2026-03-29T03:00+02:00", "2026-03-29T03:30+02:00",
    ]  # fmt: skip
    assert times("*/30 * * * *", "2026-10-25T01:45", 5, "Europe/Berlin") == [
        "2026-10-25T02:00+02:00", "2026-10-25T02:30+02:00", "2026-10-25T02:00+01:00", "2026-10-25T02:30+01:00",
        "2026-10-25T03:00+01:00",
    ]  # fmt: skip


def test_a_gap_at_midnight() -> None:
    """Beirut turns its clock at 00:00."""
    assert times("0 0 * * *", "2026-03-28T12:00", 2, "Asia/Beirut") == ["2026-03-29T01:00+03:00", "2026-03-30T00:00+03:00"]


def test_a_day_that_is_left_out() -> None:
    """Apia had no 30 December 2011."""
    assert times("0 12 * * *", "2011-12-29T13:00", 2, "Pacific/Apia") == ["2011-12-31T00:00+14:00", "2011-12-31T12:00+14:00"]


def test_half_an_hour_is_turned() -> None:
    """Lord Howe: 2026-10-04 02:00 → 02:30."""
    assert times("15 2 * * *", "2026-10-03T12:00", 2, "Australia/Lord_Howe") == [
        "2026-10-04T02:30+11:00", "2026-10-05T02:15+11:00",
    ]  # fmt: skip


expressions = st.builds(
    lambda minute, hour, weekday: f"{minute} {hour} * * {weekday}",
    st.sampled_from(["0", "30", "*/20", "59", "0,45"]),
    st.sampled_from(["*", "*/6", "2", "0", "23", "1-3"]),
    st.sampled_from(["*", "sun", "mon,sun"]),
)
zones = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Beirut", "Pacific/Apia"])


@settings(deadline=None)
@given(expressions, zones, st.integers(0, 366 * 86400).map(lambda offset: 1_767_225_600 + offset))
def test_it_is_later_it_fits_and_nothing_that_fits_is_before(text: str, name: str, after: int) -> None:
    cron, where = parse(text), zone(name)
    found = next_time(cron, after, where)
    assert found > after
    if not _is_turned(found, name):
        assert _fits(cron, found, where)
    for instant in range(after // 60 * 60 + 60, int(min(found, after + 86400)), 60):
        local = datetime.fromtimestamp(instant, where)
        assert not _fits(cron, instant, where) or (local.fold and not cron.real_time)


def _fits(cron: Cron, instant: float, where: object) -> bool:
    local = datetime.fromtimestamp(instant, where)  # type: ignore[arg-type]
    return cron.fits(local.date()) and local.hour in cron.hours and local.minute in cron.minutes and local.second == 0


def _is_turned(instant: float, name: str) -> bool:
    """Whether the clock is turned at this very moment."""
    before, after = (datetime.fromtimestamp(instant + shift, UTC).astimezone(zone(name)).utcoffset() for shift in (-1, 0))
    assert before is not None
    assert after is not None
    return after - before > timedelta(0)
