"""Configuration text: YAML with the position of every key, `${VAR}` interpolation, and env files.

Every scalar stays the text that the user wrote (``0022`` and ``1.10`` keep their zeros); what it means is for the field that
takes it. Whatever the input, time and memory are bounded: by size before reading, by node count while parsing, with aliases
counted as often as they are used. Pure but for reading files.

Source: YAML 1.2 chapter 10.3 (core schema), compose-spec 12-interpolation.md, Docker's "env file syntax".
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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

MAX_FILE = 1 << 20
"""Bytes of one file."""
MAX_NODES = 100_000
"""Keys and values of one file, aliases expanded."""
MAX_DEPTH = 40
MAX_EXPANSION = 4 << 20
"""Characters that the variables of one file may grow to."""

_CORE = "tag:yaml.org,2002:"
_CORE_TAGS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "str": r"(?s:.*)",
}
_NULL = re.compile(_CORE_TAGS["null"])
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Mark(NamedTuple):
    """A place in a file, 1-based."""

    line: int
    column: int


class TextError(ValueError):
    """Text that can't be read; `mark` says where."""

    def __init__(self, mark: Mark, problem: str) -> None:
        super().__init__(problem)
        self.mark = mark


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it starts.

    Attributes:
        value: text, None (YAML's null), a list of nodes, or a dict of entries.
    """

    mark: Mark
    value: str | list[Node] | dict[str, Entry] | None

    def plain(self) -> Any:
        """Nested dicts and lists of text and None."""
        if isinstance(self.value, dict):
            return {key: entry.node.plain() for key, entry in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value

    def find(self, path: tuple[str | int, ...]) -> tuple[Mark, int]:
        """The place of the key or item at `path`, as far as it exists, and how many steps of `path` exist."""
        node, mark = self, self.mark
        for depth, step in enumerate(path):
            if isinstance(node.value, dict) and step in node.value:
                mark, node = node.value[str(step)]
            elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                mark = node.mark
            else:
                return mark, depth
        return mark, len(path)

    def at(self, path: tuple[str | int, ...]) -> Node:
        """The node at `path`, which must exist."""
        node = self
        for step in path:
            if isinstance(node.value, dict):
                node = node.value[str(step)].node
            elif isinstance(node.value, list):
                node = node.value[int(step)]
        return node


class Entry(NamedTuple):
    """One key's value in a mapping; `mark` is the key's place."""

    mark: Mark
    node: Node


def read_text(path: Path) -> str:
    """A file's text, at most `MAX_FILE` bytes of UTF-8.

    Raises:
        TextError: too large, or not UTF-8.
        OSError: as open and read say.
    """
    with open(path, "rb") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise TextError(Mark(1, 1), f"the file is larger than {MAX_FILE >> 20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise TextError(Mark(line, column), "the file is not UTF-8 text") from None


def parse_yaml(text: str, report: Callable[[Mark, str], None]) -> Node:
    """The nodes of one YAML document. `report` gets what is wrong but leaves the rest readable (a key given twice, a tag).

    Raises:
        TextError: not YAML, more than one document, too many nodes, or too deep.
    """
    unprintable = _UNPRINTABLE.search(text)
    if unprintable:
        start = unprintable.start()
        mark = Mark(text.count("\n", 0, start) + 1, start - text.rfind("\n", 0, start))
        raise TextError(mark, f"not YAML: the character U+{ord(unprintable[0]):04X} is not allowed")
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
            return None if plain and _NULL.fullmatch(text) else text
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


_NAME = re.compile(r"[_a-zA-Z][_a-zA-Z0-9]*")
_OPERATOR = re.compile(r":?[-?+]")
_SPECIAL = re.compile(r"[${}]")
_MAX_NESTED = 20


class Variables:
    """Replaces `$VAR`, `${VAR}`, `${VAR:-default}`, `:?`, `:+` and the forms without colon; `$$` is a dollar.

    One object serves one file: together its results are at most `MAX_EXPANSION` characters.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = values
        self._room = MAX_EXPANSION

    def expand(self, text: str, unset: Callable[[str], None]) -> str:
        """`text` with variables replaced; `unset` gets the name of each that has neither value nor default.

        Raises:
            ValueError: a bad form, a variable required by ``:?``, or too much text.
        """
        if "$" not in text:
            return text
        return _Expansion(text, self.values, unset, self._take).run()

    def _take(self, length: int) -> None:
        self._room -= length
        if self._room < 0:
            raise ValueError("the variables of this file expand to too much text")


class _Expansion:
    """One text being expanded: a recursive descent over ``${…}``, each character read once."""

    def __init__(self, text: str, values: Mapping[str, str], unset: Callable[[str], None], take: Callable[[int], None]) -> None:
        self._text, self._values, self._unset, self._take = text, values, unset, take
        self._at = 0

    def run(self) -> str:
        return self._words(0, True)

    def _words(self, nested: int, wanted: bool) -> str:
        """Text up to the end, or in a default up to its closing brace. What is not `wanted` is only passed over."""
        out: list[str] = []
        braces = 0
        while match := _SPECIAL.search(self._text, self._at):
            self._put(out, self._text[self._at : match.start()])
            self._at = match.end()
            if match[0] == "$":
                self._put(out, self._variable(nested, wanted))
                continue
            if match[0] == "}" and nested and not braces:
                return "".join(out)
            braces += 1 if match[0] == "{" else -1 if braces else 0
            self._put(out, match[0])
        if nested:
            raise ValueError(f'"{_short(self._text)}" has a "${{" that is not closed')
        self._put(out, self._text[self._at :])
        self._at = len(self._text)
        return "".join(out)

    def _put(self, out: list[str], text: str) -> None:
        self._take(len(text))
        out.append(text)

    def _variable(self, nested: int, wanted: bool) -> str:
        if self._text.startswith("$", self._at):
            self._at += 1
            return "$"
        braced = self._text.startswith("{", self._at)
        match = _NAME.match(self._text, self._at + braced)
        if match is None:
            raise ValueError(f'"{_short(self._text)}" has a "$" without a name; write "$$" for a dollar')
        self._at = match.end()
        if not braced:
            return self._value(match[0], wanted)
        operator = _OPERATOR.match(self._text, self._at)
        if operator:
            self._at = operator.end()
            return self._operate(match[0], operator[0], nested, wanted)
        if not self._text.startswith("}", self._at):
            raise ValueError(f'"{_short(self._text)}" has a bad "${{{match[0]}…}}"; expected }} or one of :- - :? ? :+ +')
        self._at += 1
        return self._value(match[0], wanted)

    def _value(self, name: str, wanted: bool) -> str:
        if wanted and name not in self._values:
            self._unset(name)
        return self._values.get(name, "")

    def _operate(self, name: str, operator: str, nested: int, wanted: bool) -> str:
        if nested >= _MAX_NESTED:
            raise ValueError(f"variables are nested deeper than {_MAX_NESTED}")
        given = bool(self._values.get(name)) if operator[0] == ":" else name in self._values
        alternative = operator[-1] == "+"
        word = self._words(nested + 1, wanted and given is alternative)
        if operator[-1] == "?" and not given and wanted:
            raise ValueError(f'the variable "{name}" is required' + (f": {word}" if word else ""))
        if alternative:
            return word if given else ""
        return self._values[name] if given else word


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


_ENV_BLANK = re.compile(r"[ \t]*(#[^\n]*)?(\n|\Z)")
_ENV_LINE = re.compile(
    r"[ \t]*(?:export[ \t]+)?(?P<name>[A-Za-z_][A-Za-z0-9_.\-]*)[ \t]*"
    r"(?:(?P<assign>[=:])[ \t]*(?:'(?P<single>[^']*)'|\"(?P<double>(?:[^\"\\]|\\.)*)\"|(?P<bare>(?!['\"])[^\n]*)))?"
    r"[ \t]*(?:#[^\n]*)?(?:\n|\Z)",
    re.DOTALL,
)
_ENV_COMMENT = re.compile(r"[ \t]+#.*")
_ENV_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "$": "$$"}


def parse_env(text: str, environ: Mapping[str, str], unset: Callable[[str], None] = lambda name: None) -> dict[str, str]:
    """The variables of an env file. A name without a value takes the one in `environ`, or is left out.

    Raises:
        TextError: a line that is not NAME=VALUE, or a bad ``${…}``.
    """
    text = text.replace("\r\n", "\n")
    values: dict[str, str] = {}
    variables = Variables(ChainMap({}, dict(environ), values))
    at, line = 0, 1
    while at < len(text):
        match = _ENV_BLANK.match(text, at) or _ENV_LINE.match(text, at)
        if match is None:
            raise TextError(Mark(line, 1), "expected NAME=VALUE, with every quote closed")
        if match.re is _ENV_LINE:
            try:
                value = _env_value(match, variables, unset)
            except ValueError as error:
                raise TextError(Mark(line, 1), str(error)) from None
            if value is None:
                value = environ.get(match["name"])
            if value is not None:
                values[match["name"]] = value
        line += text.count("\n", at, match.end())
        at = match.end()
    return values


def _env_value(match: re.Match[str], variables: Variables, unset: Callable[[str], None]) -> str | None:
    if match["assign"] is None:
        return None
    if match["single"] is not None:
        return match["single"]
    if match["double"] is not None:
        text = _ENV_ESCAPE.sub(lambda escape: _ESCAPES.get(escape[1], escape[1]), match["double"])
    else:
        text = _ENV_COMMENT.sub("", " " + match["bare"]).strip()
    return variables.expand(text, unset)
