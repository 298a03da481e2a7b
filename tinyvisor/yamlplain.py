"""The part of YAML that most files are written in, parsed an order of magnitude faster than all of YAML can be in Python.

Block mappings and sequences of plain or simply quoted scalars, flow collections, comments: one line each; or JSON as a whole.
Where a text has anything else in it, or anything wrong, there is no answer, and the full parser reads it and words the problem;
where there is one, it is the full parser's, places included: the tests compare them. Pure.
"""

from __future__ import annotations

import re
from typing import NoReturn

from tinyvisor.yamlnode import MAX_DEPTH, MAX_NODES, NULL, Entry, Mark, Node

_FOREIGN = re.compile("[\t\r\x85\u2028\u2029\ufeff]|^(?:---|\\.\\.\\.)", re.MULTILINE)
"""Other white space and line ends, and what separates documents."""

_QUOTED = r""""([^"\\\n]*)"|'([^'\n]*)'(?!')"""
_KEY = r"""(?:"([^"\\\n]{1,100})"|'([^'\n]{1,100})'|([A-Za-z0-9_][A-Za-z0-9_./-]{0,100})):"""
_WORD = r"(?:-+[A-Za-z0-9_./]|[A-Za-z0-9_./~$])[A-Za-z0-9_./~$+=@-]*"

_SKIPPED = re.compile(r"(?: *(?:#[^\n]*)?(?:\n|\Z))*?(?= *[^ #\n]|\Z)")
_INDENT = re.compile(r" *")
_DASH = re.compile(r"- +(?=[^ #\n])")
_PAIR = re.compile(rf"{_KEY}(?: +(?=[^ #\n])|(?P<bare>(?: +#[^\n]*| *)(?:\n|\Z)))")
_END = re.compile(r"(?: +#[^\n]*| *)(?:\n|\Z)")
_SCALAR = re.compile(rf"{_QUOTED}|((?:[A-Za-z0-9_./~$+=(]|-(?=[^ \n]))(?:[^\n#: ]|:(?=[^ \n])|(?<! )#| (?! *#| *\n| *\Z))*)")
_FLOW = re.compile(rf"(?P<space>[ \n]*)(?:{_KEY}(?=[ \n])|{_QUOTED}|({_WORD}(?: {_WORD})*)|([\[\]{{}},]))")


def parse_plain(text: str) -> Node | None:
    """The nodes of `text`; None where it needs the full parser."""
    if _FOREIGN.search(text):
        return None
    try:
        return _Text(text).document()
    except _Doubt:
        return None


class _Doubt(Exception):
    """What this can't be sure of."""


def _doubt() -> NoReturn:
    raise _Doubt


class _Text:
    """A text, and how far it is read: `_at`, in line `_line`, which begins at `_start` and is indented by `_indent`."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = self._start = self._indent = 0
        self._line = 1
        self._count = 0

    def document(self) -> Node:
        self._next_line()
        if self._text.startswith(("[", "{"), self._at):
            root = self._flow(1, may_break=True)
            self._end_line()
        else:
            root = self._block(1)
        if self._at < len(self._text):
            _doubt()
        return root

    def _node(self, mark: Mark, value: str | list[Node] | dict[str, Entry] | None) -> Node:
        self._count += 1
        if self._count > MAX_NODES:
            _doubt()
        return Node(mark, value)

    def _mark(self) -> Mark:
        return Mark(self._line, self._at - self._start + 1)

    # ---- lines ----

    def _next_line(self) -> None:
        """To the next line that has something in it, after its indentation; `_indent` is -1 where there is none."""
        skipped = _SKIPPED.match(self._text, self._at)
        if skipped is None:
            _doubt()
        self._line += self._text.count("\n", self._at, skipped.end())
        self._at = self._start = skipped.end()
        indent = _INDENT.match(self._text, self._at)
        assert indent is not None
        self._at = indent.end()
        self._indent = self._at - self._start if self._at < len(self._text) else -1

    def _end_line(self) -> None:
        end = _END.match(self._text, self._at)
        if end is None:
            _doubt()
        self._at = end.end()
        self._line += 1
        self._next_line()

    # ---- what has lines of its own ----

    def _block(self, depth: int) -> Node:
        if depth >= MAX_DEPTH:
            _doubt()
        return self._sequence(depth) if self._text.startswith("- ", self._at) else self._mapping(depth)

    def _sequence(self, depth: int) -> Node:
        indent, mark, items = self._indent, self._mark(), []
        while self._indent == indent and (dash := _DASH.match(self._text, self._at)):
            self._at = dash.end()
            items.append(self._inline(depth + 1))
            self._end_line()
        if not items or self._indent > indent:
            _doubt()
        return self._node(mark, items)

    def _mapping(self, depth: int) -> Node:
        indent, mark = self._indent, self._mark()
        entries: dict[str, Entry] = {}
        while self._indent == indent:
            place, pair = self._mark(), _PAIR.match(self._text, self._at)
            if pair is None:
                _doubt()
            key = self._key(pair.group(1, 2, 3), entries)
            self._at = pair.end()
            if pair["bare"] is None:
                value = self._inline(depth + 1)
                self._end_line()
            else:
                self._line += 1
                self._next_line()
                if self._indent <= indent and not (self._indent == indent and self._text.startswith("- ", self._at)):
                    _doubt()  # nothing, which is null
                value = self._block(depth + 1)
            entries[key] = Entry(place, value)
        if self._indent > indent:
            _doubt()
        return self._node(mark, entries)

    def _key(self, found: tuple[str | None, ...], entries: dict[str, Entry]) -> str:
        """Of double quoted, single quoted and plain text the one that is there."""
        double, single, plain = found
        key = double or single or plain
        self._count += 1
        if key is None or key in entries or (plain is not None and NULL.fullmatch(plain)):
            _doubt()
        return key

    def _inline(self, depth: int) -> Node:
        """What the rest of the line has in it."""
        if self._text.startswith(("[", "{"), self._at):
            return self._flow(depth, may_break=False)
        mark, found = self._mark(), _SCALAR.match(self._text, self._at)
        if found is None:
            _doubt()
        self._at = found.end()
        return self._node(mark, _value(found[found.lastindex or 1], plain=found.lastindex == 3))

    # ---- [flow, {collections: too}] ----

    def _flow(self, depth: int, *, may_break: bool) -> Node:
        return self._in_flow(self._token(may_break), depth, may_break)

    def _token(self, may_break: bool) -> re.Match[str]:
        found = _FLOW.match(self._text, self._at)
        if found is None:
            _doubt()
        begin = found.end("space")
        if "\n" in found["space"]:
            if not may_break:
                _doubt()
            self._line += found["space"].count("\n")
            self._start = self._text.rindex("\n", 0, begin) + 1
        self._at = begin
        return found

    def _in_flow(self, found: re.Match[str], depth: int, may_break: bool) -> Node:
        mark, kind = self._mark(), found.lastindex
        self._at = found.end()
        if kind in (5, 6, 7):
            return self._node(mark, _value(found[kind], plain=kind == 7))
        if depth >= MAX_DEPTH:
            _doubt()
        match found[8]:
            case "[":
                return self._node(mark, self._flow_sequence(depth, may_break))
            case "{":
                return self._node(mark, self._flow_mapping(depth, may_break))
        _doubt()

    def _flow_sequence(self, depth: int, may_break: bool) -> list[Node]:
        items: list[Node] = []
        found = self._token(may_break)
        while found[8] != "]":
            items.append(self._in_flow(found, depth + 1, may_break))
            found = self._after_item("]", may_break)
        self._at = found.end()
        return items

    def _flow_mapping(self, depth: int, may_break: bool) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        found = self._token(may_break)
        while found[8] != "}":
            if found.lastindex not in (2, 3, 4):
                _doubt()
            place, key = self._mark(), self._key(found.group(2, 3, 4), entries)
            self._at = found.end()
            entries[key] = Entry(place, self._in_flow(self._token(may_break), depth + 1, may_break))
            found = self._after_item("}", may_break)
        self._at = found.end()
        return entries

    def _after_item(self, closing: str, may_break: bool) -> re.Match[str]:
        """The next item's first token, after a comma; or what closes them."""
        found = self._token(may_break)
        if found[8] == closing:
            return found
        if found[8] != ",":
            _doubt()
        self._at = found.end()
        found = self._token(may_break)
        if found[8] == closing:  # a comma that nothing comes after
            _doubt()
        return found


def _value(text: str, *, plain: bool) -> str | None:
    return None if plain and NULL.fullmatch(text) else text
