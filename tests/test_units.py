"""Sizes and durations."""

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvisor.units import MAX_SIZE, format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    "text, size",
    [
        (0, 0),
        (5, 5),
        ("5", 5),
        ("5b", 5),
        ("64m", 64 << 20),
        ("64 MiB", 64 << 20),
        ("64MB", 64 << 20),
        ("1.5g", 3 << 29),
        ("2T", 2 << 40),
        (" 1k ", 1024),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_size(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "m", "64q", "-1", "1e3", "64 m m", "٣m", -1, True, None, 1.5, MAX_SIZE + 1, "9" * 400, "9" * 5000 + "t"]
)
def test_bad_size(text: Any) -> None:
    with pytest.raises(ValueError, match=r"size"):
        parse_size(text)


@given(st.integers(0, MAX_SIZE))
def test_every_size_in_bytes_is_exact(size: int) -> None:
    assert parse_size(str(size)) == parse_size(size) == size


@pytest.mark.parametrize(
    "text, seconds",
    [(90, 90), (1.5, 1.5), ("90", 90), ("0.5", 0.5), ("90s", 90), ("1m30s", 90), ("500ms", 0.5), ("1d2h", 93600), ("1.5h", 5400)],
)
def test_duration(text: float | str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert isinstance(parse_duration(text), float)


@pytest.mark.parametrize(
    "text", ["", "s", "1x", "30s1m", "1s1s", "-1", "-1s", "1 m", -1, True, None, math.nan, math.inf, 10**400, "9" * 500, "٣s"]
)
def test_bad_duration(text: Any) -> None:
    with pytest.raises(ValueError, match=r"duration"):
        parse_duration(text)


def test_formats() -> None:
    assert [format_size(size) for size in (0, 1023, 1024, 64 << 20, 3 << 40)] == ["0B", "1023B", "1.0K", "64.0M", "3.0T"]
    assert [format_duration(seconds) for seconds in (0.0132, 3.25, 130, 7325)] == ["13ms", "3.2s", "2m10s", "2h02m"]


@given(st.text())
def test_any_text_is_a_value_or_a_value_error(text: str) -> None:
    for parse in (parse_size, parse_duration):
        with contextlib.suppress(ValueError):
            assert parse(text) >= 0
