"""JSON Lines as configuration text: one line → nested dicts and lists of text and None, as YAML gives them. Pure.

Reading is `json`'s and fast; places are looked up only in a line in which something is wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tinyvisor.yamlnode import MAX_DEPTH, Entry, Mark, Node, TextError

_BLANK = re.compile(r"[ \t\r\n]*")
_ATOM = re.compile(r"[^\s,\]}]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_TEXT = {True: "true", False: "false"}
_DECODER = json.JSONDecoder()


class _GivenTwice(ValueError):
    pass


def parse_line(text: str, line: int, report: Callable[[Mark, str], None]) -> Any:
    """The value of one line. Numbers stay the text that they are. `report` gets each key that is given twice.

    Raises:
        TextError: not JSON, or not text that can be encoded.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_int=str, parse_float=str, parse_constant=_refuse_constant)
        if "\\u" in text and _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
            raise TextError(Mark(line, 1), "not text: it has half of a surrogate pair")
        if text.count("[") + text.count("{") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
            raise TextError(Mark(line, 1), f"nested deeper than {MAX_DEPTH}")
        return _textual(value)
    except json.JSONDecodeError as error:
        raise TextError(Mark(line, error.pos + 1), f"not JSON: {error.msg[:1].lower()}{error.msg[1:]}") from None
    except RecursionError:
        raise TextError(Mark(line, 1), f"nested deeper than {MAX_DEPTH}") from None
    except _GivenTwice:
        locate(text, line, report)
        return None
    except TextError:
        raise
    except ValueError as error:
        raise TextError(Mark(line, 1), f"not JSON: {error}") from None


def locate(text: str, line: int, report: Callable[[Mark, str], None] = lambda mark, problem: None) -> Node:
    """The value of one line with its places. `text` is JSON for sure; columns count characters."""
    return _Scanner(text, line, report).value(0)[0]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _GivenTwice
    return found


def _textual(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _textual(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_textual(item) for item in value]
    return _TEXT[value] if isinstance(value, bool) else value


def _is_deeper(value: Any, depth: int) -> bool:
    """Level by level: what is nested too deep for a limit is nested too deep for recursion."""
    level = [value]
    for _ in range(depth + 1):
        nested = [item for item in level if isinstance(item, dict | list)]
        level = [item for each in nested for item in (each.values() if isinstance(each, dict) else each)]
    return bool(level)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


class _Scanner:
    """Goes over JSON once more to say where everything starts."""

    def __init__(self, text: str, line: int, report: Callable[[Mark, str], None]) -> None:
        self._text, self._line, self._report = text, line, report

    def value(self, at: int) -> tuple[Node, int]:
        at = self._skip(at)
        mark = Mark(self._line, at + 1)
        match self._text[at]:
            case "{":
                return self._object(at + 1, mark)
            case "[":
                return self._array(at + 1, mark)
            case '"':
                text, end = _DECODER.raw_decode(self._text, at)
                return Node(mark, text), end
        atom = _ATOM.match(self._text, at)
        assert atom is not None
        return Node(mark, None if atom[0] == "null" else atom[0]), atom.end()

    def _object(self, at: int, mark: Mark) -> tuple[Node, int]:
        found: dict[str, Entry] = {}
        at = self._skip(at)
        while self._text[at] != "}":
            at = self._skip(at + 1) if self._text[at] == "," else at
            place = Mark(self._line, at + 1)
            key, at = _DECODER.raw_decode(self._text, at)
            node, at = self.value(self._skip(at) + 1)
            if key in found:
                self._report(place, f'the key "{key}" is given twice; first in column {found[key].mark.column}')
            else:
                found[key] = Entry(place, node)
            at = self._skip(at)
        return Node(mark, found), at + 1

    def _array(self, at: int, mark: Mark) -> tuple[Node, int]:
        found: list[Node] = []
        at = self._skip(at)
        while self._text[at] != "]":
            node, at = self.value(at + 1 if self._text[at] == "," else at)
            found.append(node)
            at = self._skip(at)
        return Node(mark, found), at + 1

    def _skip(self, at: int) -> int:
        blank = _BLANK.match(self._text, at)
        return blank.end() if blank else at
