"""Regular expressions for lines that a container chooses. Pure.

Python's matcher backtracks, and a hostile line can make it do so for hours. So the line is cut, and a pattern is refused in
which a part that may repeat holds one that may repeat, or a choice; or which has more than `MAX_REPEATS` of them in a row.
What is left takes a time that grows with the third power of a line's length at most.
"""

from __future__ import annotations

import importlib
import re
import warnings
from typing import Any, Final

LINE_LIMIT: Final = 512
"""Bytes of a line that are looked at."""

MAX_LENGTH: Final = 200
MAX_REPEATS: Final = 2

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
    if _repeats(tree, inside=False) > MAX_REPEATS:
        raise ValueError(f"can take too long on some lines: more than {MAX_REPEATS} parts that repeat")
    return compiled


def _repeats(tree: Any, *, inside: bool) -> int:
    """Parts of varying length in a row."""
    found = 0
    for operation, argument in tree:
        name = str(operation)
        if name in _LOOKING:
            raise ValueError("must not look around or back")
        if name in _REPEATS:
            least, most, part = argument
            if inside:
                raise ValueError(_NESTED)
            if most > 1:
                found += 1 if least != most else 0
                _repeats(part, inside=True)
            else:
                found += 1 + _repeats(part, inside=False)
        elif name == "BRANCH":
            if inside:
                raise ValueError(_NESTED)
            found += sum(_repeats(branch, inside=False) for branch in argument[1])
        elif name == "SUBPATTERN":
            found += _repeats(argument[-1], inside=inside)
        elif name == "ATOMIC_GROUP":
            found += _repeats(argument, inside=inside)
    return found
