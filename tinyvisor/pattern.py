"""Regular expressions for lines that a container chooses. Pure.

Python's matcher backtracks, and a hostile line can make it do so for hours. So the line is cut, and a pattern is refused in
which a part that repeats holds one that repeats, or a choice; or which can be matched in more than `MAX_WAYS` ways from one
place in a line: every part of varying length, and every choice, multiplies them.
"""

from __future__ import annotations

import importlib
import re
import warnings
from typing import Any, Final

LINE_LIMIT: Final = 512
"""Bytes of a line that are looked at."""

MAX_LENGTH: Final = 200
MAX_WAYS: Final = 4 * LINE_LIMIT**2

_NESTED: Final = "can take too long on some lines: a part that repeats holds another one, or a choice"
_LOOKING: Final = {"ASSERT", "ASSERT_NOT", "GROUPREF", "GROUPREF_EXISTS"}
_REPEATS: Final = {"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"}


def compile_line(text: str) -> re.Pattern[bytes]:
    """`text` as a pattern for `search` in the first `LINE_LIMIT` bytes of a line.

    Raises:
        ValueError: no regular expression, or one that may take too long.
    """
    if not 0 < len(text) <= MAX_LENGTH:
        raise ValueError(f"expected a regular expression of 1 to {MAX_LENGTH} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what will mean something else one day
            compiled = re.compile(text.encode())
            tree = importlib.import_module("re._parser").parse(text.encode())
    except (re.error, Warning, OverflowError, RecursionError) as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    if _ways(tree, inside=False) > MAX_WAYS:
        raise ValueError("can take too long on some lines: too many parts of varying length")
    return compiled


def _ways(tree: Any, *, inside: bool) -> int:
    """In how many ways the parts in a row can be matched, at most; `inside` of a part that repeats."""
    found = 1
    for operation, argument in tree:
        name = str(operation)
        if name in _LOOKING:
            raise ValueError("must not look around or back")
        if name in _REPEATS or name == "BRANCH":
            if inside:
                raise ValueError(_NESTED)
            found *= sum(_ways(each, inside=False) for each in argument[1]) if name == "BRANCH" else _repeated(*argument)
        elif name == "SUBPATTERN":
            found *= _ways(argument[-1], inside=inside)
        elif name == "ATOMIC_GROUP":
            found *= _ways(argument, inside=inside)
    return found


def _repeated(least: int, most: int, part: Any) -> int:
    if most <= 1:
        return 1 + _ways(part, inside=False)
    _ways(part, inside=True)
    return min(int(most) - int(least) + 1, LINE_LIMIT)
