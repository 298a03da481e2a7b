"""The quick parser says what the full one says, or nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinyvisor.yamlfull import parse_full
from tinyvisor.yamlnode import MAX_DEPTH, MAX_NODES, Node, TextError
from tinyvisor.yamlplain import parse_plain

ROOT = Path(__file__).parents[1]
PIECES = (
    *("a", "b:", "c: ", "d: x", "- ", "-", "  ", " ", "\n", "\n  ", "\n    ", "\n- ", "\n  - ", "#", " # c", "{", "}", "[", "]"),
    *(", ", ",", ":", '"', "'", '"q"', "'s'", '"k": ', "''", "~", "null", "&x ", "*x", "!t ", "|", ">", "?", "%", "\\", "\t"),
    *("\r", "---", "...", "=", "<<: ", "é", "\u2028", "1.5", "-v", "--flag", "$X", "${Y:-z}", "http://h:80/#f", "a b", "@", "`"),
)


def full(text: str) -> tuple[Node | None, list[str]]:
    problems: list[str] = []
    try:
        return parse_full(text, lambda mark, problem: problems.append(problem)), problems
    except TextError as error:
        return None, [str(error)]


def check(text: str) -> bool:
    """Whether the quick one has read it; then as the full one has."""
    found = parse_plain(text)
    if found is not None:
        assert (found, []) == full(text)
    return found is not None


@settings(max_examples=600)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
@example("a: x\n  y\n")
@example("a: [x\n]")
@example('{"a": 1\n, "b": {"c": []}}')
@example("a:\n- x\n- y\nb:\n    c: d # e\n")
@example("a: x\n# c\n  y")
@example("a: b\n c: d")
@example("- a\n - b")
@example("a: 'x' y")
@example("a: 'x'#y")
@example("a: [x]#y")
@example("a: x #y\n  z")
@example("a: x:")
@example("null: x")
@example("{a: b, a: c}")
@example("[a: b]")
@example("[a,]")
@example("{a: b\n  c}")
def test_nothing_is_read_in_another_way(text: str) -> None:
    check(text)


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers() | st.text("ab -:#é'~[,", max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abn:", min_size=1, max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(VALUES, st.sampled_from([None, 2]))
def test_json_is_read_where_it_has_no_escapes(value: Any, indent: int | None) -> None:
    assert check(json.dumps(value, ensure_ascii=False, indent=indent)) == isinstance(value, (dict, list))


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\n",
        "services:\n  web:\n    command: [sleep, '10']  # long\n    image: alpine:3.19\n\n# c\n  db:\n    command: a 'b && c'",
        "ports:\n- 80:80\n- '443:443'\nenvironment:\n  A: ${B:-c}\n  C: --flag=x\n  D: http://h/#x",
        "[]",
        "{}",
        "# c\n\na: {b: c, d: [e f, -1]}",
        "- x\n- [y]\n",
        '{\n  "a": [\n    1,\n    "x"\n  ]\n}\n',
    ],
)
def test_what_files_mostly_have_is_read(text: str) -> None:
    assert check(text)


@pytest.mark.parametrize(
    "text", ["", "a", "a:", "a: &x b", "a: |\n  b", "a: 'b''c'", 'a: "\\n"', "a: !t b", "<<: {a: b}", "- a: b"]
)
def test_the_rest_is_left(text: str) -> None:
    assert not check(text)


def test_what_would_be_too_much_is_left() -> None:
    assert parse_plain("[" * MAX_DEPTH + "]" * MAX_DEPTH) is None
    assert parse_plain("[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2)) is not None
    assert parse_plain("[" + "x, " * MAX_NODES + "x]") is None


def test_examples_are_read_alike() -> None:
    read = [check(file.read_text()) for file in (ROOT / "configs").rglob("*.yaml")]
    assert any(read)
