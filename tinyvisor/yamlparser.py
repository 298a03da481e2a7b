"""YAML text as nodes, by ruamel.yaml's events. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from tinyvisor.yamlnode import MAX_DEPTH, MAX_NODES, NULL, Entry, Mark, Node, TextError

_CORE = "tag:yaml.org,2002:"
_CORE_TAGS = {
    "null": NULL.pattern,
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "str": r"(?s:.*)",
}
_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_nodes(text: str, report: Callable[[Mark, str], None]) -> Node:
    """As `yamlfile.parse_yaml`, for whatever printable text."""
    try:
        return _Composer(YAML(typ="safe", pure=True).parse(text), report).document()
    except TextError:
        raise
    except YAMLError as error:
        place = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        mark = Mark(place.line + 1, place.column + 1) if place else Mark(1, 1)
        raise TextError(mark, f"not YAML: {_in_words(getattr(error, 'problem', None))}") from None
    except Exception as error:  # The parser leaks ValueError, IndexError and others on input such as "\UFFFFFFFF".
        raise TextError(Mark(1, 1), f"not YAML: {error}") from error


_IN_WORDS = {
    "cannot start any token": "unexpected character; indent with spaces, and quote text that starts with a special character",
    "found '<stream end>'": "the file ends inside a list or mapping",
    "expected <block end>": "the indentation does not fit the lines above",
    "mapping values are not allowed here": 'unexpected ":"; quote text that has a colon and a space in it',
    "could not find expected ':'": 'expected ":" after a key',
    "end of stream": "a quote is not closed",
}


def _in_words(problem: str | None) -> str:
    """The parser's English where it is clear, else ours."""
    for sign, words in _IN_WORDS.items():
        if problem and sign in problem:
            return words
    return " ".join(problem.split()) if problem else "it can't be parsed"


class _Composer:
    """Builds nodes from the parser's events, counting as it goes."""

    def __init__(self, events: Iterator[Any], report: Callable[[Mark, str], None]) -> None:
        self._events = events
        self._report = report
        self._anchors: dict[str, tuple[Node, int, int]] = {}  # node, how many nodes it is, how deep it goes
        self._count = 0
        self._height = 0  # of the node composed last

    def document(self) -> Node:
        root: Node | None = None
        for event in self._events:
            if isinstance(event, DocumentStartEvent) and root is not None:
                raise TextError(_mark(event), 'more than one YAML document; remove the "---" or make it two files')
            if isinstance(event, (ScalarEvent, AliasEvent, SequenceStartEvent, MappingStartEvent)):
                root = self._node(event, 1)
        return root or Node(Mark(1, 1), None)

    def _node(self, event: Any, depth: int) -> Node:
        self._grow(event, 1, depth)
        if isinstance(event, AliasEvent):
            return self._alias(event, depth)
        before = self._count
        if isinstance(event, ScalarEvent):
            node, self._height = Node(_mark(event), self._scalar(event)), 0
        elif isinstance(event, SequenceStartEvent):
            node = self._sequence(event, depth)
        else:
            node = self._mapping(event, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = (node, self._count - before + 1, self._height)
        return node

    def _grow(self, event: Any, nodes: int, depth: int) -> None:
        self._count += nodes
        if self._count > MAX_NODES:
            raise TextError(_mark(event), f"more than {MAX_NODES} keys and values, aliases counted each time")
        if depth > MAX_DEPTH:
            raise TextError(_mark(event), f"nested deeper than {MAX_DEPTH}")

    def _alias(self, event: Any, depth: int) -> Node:
        if event.anchor not in self._anchors:
            raise TextError(_mark(event), f'the alias "*{event.anchor}" has no "&{event.anchor}" before it')
        node, count, self._height = self._anchors[event.anchor]
        self._grow(event, count - 1, depth + self._height)
        return node

    def _sequence(self, event: Any, depth: int) -> Node:
        self._check_tag(event, "seq")
        items: list[Node] = []
        height = 0
        while not isinstance(item := next(self._events), SequenceEndEvent):
            items.append(self._node(item, depth + 1))
            height = max(height, self._height)
        self._height = height + 1
        return Node(_mark(event), items)

    def _mapping(self, event: Any, depth: int) -> Node:
        self._check_tag(event, "map")
        entries: dict[str, Entry] = {}
        merged: dict[str, Entry] = {}
        height = 0
        while not isinstance(start := next(self._events), MappingEndEvent):
            key = self._node(start, depth + 1)
            height = max(height, self._height)
            value = self._node(next(self._events), depth + 1)
            height = max(height, self._height)
            if key.value == "<<" and getattr(start, "style", None) is None:
                self._merge(merged, value)
            elif not isinstance(key.value, str):
                self._report(key.mark, "a key must be text")
            elif key.value in entries:
                first = entries[key.value].mark
                self._report(key.mark, f'the key "{key.value}" is given twice; first in line {first.line}')
            else:
                entries[key.value] = Entry(_mark(start), value)
        self._height = height + 1
        return Node(_mark(event), {**entries, **{key: entry for key, entry in merged.items() if key not in entries}})

    def _merge(self, merged: dict[str, Entry], value: Node) -> None:
        """``<<``: a mapping, or a list of them of which the first wins (yaml.org/type/merge.html)."""
        for source in value.value if isinstance(value.value, list) else [value]:
            if isinstance(source.value, dict):
                for key, entry in source.value.items():
                    merged.setdefault(key, entry)
            else:
                self._report(source.mark, 'expected a mapping (an alias such as "*name") after "<<"')

    def _scalar(self, event: Any) -> str | None:
        text: str = event.value
        if _SURROGATE.search(text):  # JSON writes one character outside the BMP as two escapes
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        tag = event.tag
        if tag is None or tag == "!":
            plain = tag is None and not event.style
            return None if plain and NULL.fullmatch(text) else text
        name = str(tag).removeprefix(_CORE)
        if not self._check_tag(event, *_CORE_TAGS):
            return text
        if not re.fullmatch(_CORE_TAGS[name], text):
            self._report(_mark(event), f'"{text}" does not fit its tag !!{name}')
        return None if name == "null" else text

    def _check_tag(self, event: Any, *known: str) -> bool:
        tag = str(event.tag) if event.tag is not None else "!"
        if tag == "!" or (tag.startswith(_CORE) and tag.removeprefix(_CORE) in known):
            return True
        self._report(_mark(event), f'the YAML tag "{tag.replace(_CORE, "!!")}" is not supported')
        return False


def _mark(event: Any) -> Mark:
    return Mark(event.start_mark.line + 1, event.start_mark.column + 1)
