"""crontab(5) expressions, and when they come next. Pure: the time is given.

Where clocks are turned, a time of day that is left out comes at the first instant after the gap, and one that comes twice
counts the first time. An hour field that begins with ``*`` means real time instead: such a job neither pauses nor repeats.
As crontab(5) has it, of two restricted day fields either will do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_MACROS: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS: Final = (
    ("minute", 0, 59, ()), ("hour", 0, 23, ()), ("day", 1, 31, ()), ("month", 1, 12, _MONTHS), ("weekday", 0, 7, _DAYS),
)  # fmt: skip
_LONGEST: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_HORIZON: Final = 366 * 12  # days; 29 February is left out once a century, so it may be eight years away
_LONGEST_GAP: Final = timedelta(hours=26)  # Samoa left out a whole day


@dataclass(frozen=True, slots=True)
class Cron:
    """An expression, understood.

    Attributes:
        either_day: both `days` and `weekdays` are restricted, and either will do.
        real_time: the hour field begins with ``*``.
    """

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool
    real_time: bool

    def fits(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        by_day, by_weekday = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return by_day or by_weekday if self.either_day else by_day and by_weekday


def parse(text: str) -> Cron:
    """The meaning of ``"*/5 9-17 * * mon-fri"`` or ``"@daily"``.

    Raises:
        ValueError: no such expression, or one that never comes.
    """
    words = _MACROS.get(text.strip().lower(), text).split()
    if len(words) != len(_FIELDS):
        raise ValueError(f'expected five fields (minute hour day month weekday) or @daily and the like, got "{text}"')
    minutes, hours, days, months, weekdays = (_field(word, *bounds) for word, bounds in zip(words, _FIELDS, strict=True))
    either_day = not words[2].startswith("*") and not words[4].startswith("*")
    if not either_day and all(min(days) > _LONGEST[month - 1] for month in months):
        raise ValueError(f'"{text}" never comes: no such month is that long')
    return Cron(
        minutes=tuple(sorted(minutes)),
        hours=tuple(sorted(hours)),
        days=frozenset(days),
        months=frozenset(months),
        weekdays=frozenset(day % 7 for day in weekdays),
        either_day=either_day,
        real_time=words[1].startswith("*"),
    )


def zone(name: str) -> ZoneInfo:
    """The time zone called `name`.

    Raises:
        ValueError: there is none.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f'"{name}" is not a time zone; expected a name such as Europe/Berlin') from None


def next_time(cron: Cron, after: float, where: ZoneInfo) -> float:
    """The first time later than `after`, both in seconds since the epoch.

    Raises:
        ValueError: there is none.
    """
    instant = datetime.fromtimestamp(after, UTC)
    first = (instant - _LONGEST_GAP).astimezone(where).date()
    for offset in range(_HORIZON):
        day = first + timedelta(days=offset)
        if cron.fits(day):
            found = min((time for time in _times(cron, day, where) if time > instant), default=None)
            if found is not None:
                return found.timestamp()
    raise ValueError("this schedule never comes")


def _times(cron: Cron, day: date, where: ZoneInfo) -> Iterator[datetime]:
    for hour in cron.hours:
        for minute in cron.minutes:
            local = datetime(day.year, day.month, day.day, hour, minute, tzinfo=where)
            early, late = local.astimezone(UTC), local.replace(fold=1).astimezone(UTC)
            if late < early:  # a gap: fold=0 reads the clock from before it, fold=1 the one from after it
                if not cron.real_time:
                    yield _end_of_gap(late, early, where)
                continue
            yield early
            if cron.real_time and late != early:
                yield late


def _end_of_gap(before: datetime, after: datetime, where: ZoneInfo) -> datetime:
    """The instant between the two at which the clock is turned, to the second."""
    offset = before.astimezone(where).utcoffset()
    low, high = int(before.timestamp()), int(after.timestamp())
    while high - low > 1:
        middle = (low + high) // 2
        if datetime.fromtimestamp(middle, where).utcoffset() == offset:
            low = middle
        else:
            high = middle
    return datetime.fromtimestamp(high, UTC)


def _field(text: str, name: str, lowest: int, highest: int, names: tuple[str, ...]) -> set[int]:
    found: set[int] = set()
    for part in text.lower().split(","):
        span, slash, step = part.partition("/")
        first, dash, last = span.partition("-")
        try:
            if span == "*":
                start, end = lowest, min(highest, 6) if name == "weekday" else highest
            else:
                start = _number(first, lowest, names)
                end = _number(last, lowest, names) if dash else highest if slash else start
            width = _number(step, 0, ()) if slash else 1
        except ValueError:
            raise ValueError(f'"{part}" is not a {name}; expected {lowest} to {highest}, ranges, lists and /steps') from None
        if not lowest <= start <= end <= highest or not 1 <= width <= highest:
            raise ValueError(f'"{part}" is not a {name}; expected {lowest} to {highest}, ranges, lists and /steps')
        found.update(range(start, end + 1, width))
    return found


def _number(text: str, lowest: int, names: tuple[str, ...]) -> int:
    if text in names:
        return names.index(text) + lowest
    if not re.fullmatch(r"[0-9]{1,2}", text):
        raise ValueError
    return int(text)
