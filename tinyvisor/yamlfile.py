"""Configuration text: YAML with the position of every key, `${VAR}` interpolation, and env files.

Every scalar stays the text that the user wrote (``0022`` and ``1.10`` keep their zeros); what it means is for the field that
takes it. Whatever the input, time and memory are bounded: by size before reading, by node count while parsing, with aliases
counted as often as they are used. Pure but for reading files.

Source: YAML 1.2 chapter 10.3 (core schema), compose-spec 12-interpolation.md, Docker's "env file syntax".
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Callable, Mapping
from pathlib import Path

from tinyvisor.yamlnode import Mark, Node, TextError
from tinyvisor.yamlparser import parse_nodes

MAX_FILE = 1 << 20
"""Bytes of one file."""
MAX_EXPANSION = 4 << 20
"""Characters that the variables of one file may grow to."""

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


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
    return parse_nodes(text, report)


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
