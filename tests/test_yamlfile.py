"""YAML with positions and bounds, variables, env files."""

import contextlib
import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvisor.yamlfile import MAX_FILE, Variables, parse_env, parse_yaml, read_text
from tinyvisor.yamlnode import TextError


def parsed(text: str) -> tuple[Any, list[str]]:
    problems = []
    node = parse_yaml(text, lambda mark, problem: problems.append(f"{mark.line}:{mark.column}: {problem}"))
    return node.plain(), problems


def refused(text: str) -> str:
    with pytest.raises(TextError) as caught:
        parsed(text)
    assert "\n" not in str(caught.value)
    return f"{caught.value.mark.line}:{caught.value.mark.column}: {caught.value}"


def test_scalars_keep_their_text() -> None:
    values, problems = parsed("[0022, 1.10, yes, no, ~, null, '', '~', true, !!str 5, !!int 5, ! null]")
    assert values == ["0022", "1.10", "yes", "no", None, None, "", "~", "true", "5", "5", "null"]
    assert problems == []


def test_positions() -> None:
    root = parse_yaml("a:\n  b: [x,\n    y]\nc: 1\n", lambda mark, problem: pytest.fail(problem))
    assert root.find(("a", "b")) == ((2, 3), 2)
    assert root.find(("a", "b", 1)) == ((3, 5), 3)
    assert root.find(("a", "nope", "deeper")) == ((1, 1), 1)
    assert root.at(("a", "b", 1)).value == "y"


def test_merge_keys() -> None:
    text = "x: &x {a: 1, b: 1}\ny: &y {b: 2, c: 2}\nz:\n  <<: [*x, *y]\n  c: 3\n"
    assert parsed(text)[0]["z"] == {"a": "1", "b": "1", "c": "3"}
    assert parsed("<<: text")[1] == ['1:5: expected a mapping (an alias such as "*name") after "<<"']


@pytest.mark.parametrize(
    "text, problem",
    [
        ("a: 1\na: 2", '2:1: the key "a" is given twice; first in line 1'),
        ("{a: 1, a: 2}", '1:8: the key "a" is given twice; first in line 1'),
        ("? [a]\n: b", "1:3: a key must be text"),
        ("a: !!python/object/apply:os.system [id]", '1:4: the YAML tag "!!python/object/apply:os.system" is not supported'),
        ("a: !reset null", '1:4: the YAML tag "!reset" is not supported'),
        ("a: !!int x", '1:4: "x" does not fit its tag !!int'),
        ("a: !!map [x]", '1:4: the YAML tag "!!map" is not supported'),
    ],
)
def test_problems_that_leave_the_rest_readable(text: str, problem: str) -> None:
    assert parsed(text)[1] == [problem]


@pytest.mark.parametrize(
    "text, problem",
    [
        ("a: [", "1:5: not YAML: the file ends inside a list or mapping"),
        ("a: b: c", '1:5: not YAML: unexpected ":"; quote text that has a colon and a space in it'),
        (
            "\ta: 1",
            "1:1: not YAML: unexpected character; indent with spaces, and quote text that starts with a special character",
        ),
        ("- a\nb: c", "2:1: not YAML: the indentation does not fit the lines above"),
        ("a\n---\nb", '2:1: more than one YAML document; remove the "---" or make it two files'),
        ("a: &a [*a]", '1:8: the alias "*a" has no "&a" before it'),
        ("a: x\0y", "1:5: not YAML: the character U+0000 is not allowed"),
        ("[" * 1000, "1:41: nested deeper than 40"),
        ("- " * 1000, "1:81: nested deeper than 40"),
    ],
)
def test_refused(text: str, problem: str) -> None:
    assert refused(text) == problem


@pytest.mark.parametrize(
    "text", ['"\\UFFFFFFFF"', '"\\ud83d', "a: 'b", "%YAML 9.9\n---\na", "&a &b c", "*", "!<", "a: |9x", "\ufeff\ufeff"]
)
def test_whatever_the_parser_raises_is_one_error(text: str) -> None:
    with contextlib.suppress(TextError):
        parsed(text)


def bomb(first: str, item: Callable[[str], str]) -> str:
    names = "abcdefghijklmnop"
    levels = [f"{name}: &{name} {item(before)}" for before, name in pairwise(names)]
    return "\n".join([f"a: &a {first}", *levels])


@pytest.mark.parametrize(
    "text",
    [
        bomb("[x,x,x,x,x,x,x,x,x]", lambda name: "[" + ",".join([f"*{name}"] * 9) + "]"),
        bomb("{k: x}", lambda name: "{" + ",".join(f"k{i}: *{name}" for i in range(9)) + "}"),
        bomb("{k: x}", lambda name: "{<<: [" + ",".join([f"*{name}"] * 9) + "]}"),
        "a: &a [" + "x," * 1000 + "]\nb: [" + "*a," * 1000 + "]",
    ],
)
def test_a_bomb_is_refused_at_once(text: str) -> None:
    start = time.perf_counter()
    assert "more than 100000 keys and values, aliases counted each time" in refused(text)
    assert time.perf_counter() - start < 5


def test_aliases_do_not_hide_depth() -> None:
    levels = "\n".join(f"a{i + 1}: &a{i + 1} [*a{i}]" for i in range(100))
    assert refused("a0: &a0 [x]\n" + levels).endswith("nested deeper than 40")


def test_json_escapes_of_large_characters() -> None:
    assert parsed(r'"\ud83d\ude00"') == ("\N{GRINNING FACE}", [])


@settings(max_examples=300)
@given(st.text() | st.text(alphabet="abc:-[]{},&*!|>'\"%@`?#<~ \n\t"))
def test_any_text_is_nodes_or_a_text_error(text: str) -> None:
    with contextlib.suppress(TextError):
        parsed(text)


def test_read_text(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_text(path) == "a: 1"
    path.write_bytes(b"a: 1\nb: \xff")
    with pytest.raises(TextError, match=r"not UTF-8") as caught:
        read_text(path)
    assert caught.value.mark == (2, 4)
    path.write_bytes(b"x" * (MAX_FILE + 1))
    with pytest.raises(TextError, match=r"larger than 1 MiB"):
        read_text(path)


VALUES = {"A": "1", "EMPTY": "", "_x9": "under"}


@pytest.mark.parametrize(
    "text, result",
    [
        ("no", "no"),
        ("$A-${A}-$_x9", "1-1-under"),
        ("$$A $${A} $$$A", "$A ${A} $1"),
        ("${U:-d}${U-d}${EMPTY:-d}${EMPTY-d}${A:-d}${A-d}", "ddd11"),
        ("${U:+a}${U+a}${EMPTY:+a}${EMPTY+a}${A:+a}${A+a}", "aaa"),
        ("${A:?x}${EMPTY?x}", "1"),
        ("${U:-${V:-${A}}}", "1"),
        ('${U:-{"k": {}}}', '{"k": {}}'),
        ("${U-a$$b}", "a$b"),
        ("${A:-${U:?unused}}", "1"),
        ("{$A}}", "{1}}"),
    ],
)
def test_variables(text: str, result: str) -> None:
    assert Variables(VALUES).expand(text, pytest.fail) == result


def test_unset_variables_are_told() -> None:
    names: list[str] = []
    assert Variables({}).expand("<$A${B}${C:+x$D}>", names.append) == "<>"
    assert names == ["A", "B"]


@pytest.mark.parametrize(
    "text, problem",
    [
        ("$", 'a "$" without a name'),
        ("$1", 'a "$" without a name'),
        ("${}", 'a "$" without a name'),
        ("${A", 'a bad "${A…}"'),
        ("${A!x}", 'a bad "${A…}"'),
        ("${A:x}", 'a bad "${A…}"'),
        ("${U:-x", "that is not closed"),
        ("${U:?say $A}", '"U" is required: say 1'),
        ("${EMPTY:?}", '"EMPTY" is required'),
        ("${U-" * 50 + "}" * 50, "nested deeper than 20"),
    ],
)
def test_bad_variables(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        Variables(VALUES).expand(text, pytest.fail)


def test_variables_can_not_grow_without_bound() -> None:
    with pytest.raises(ValueError, match=r"too much text"):
        Variables({"A": "x" * 100_000}).expand("$A" * 100_000, pytest.fail)
    lines = "\n".join(["A=xxxxxxxxxx", *["A=$A$A"] * 100])
    with pytest.raises(TextError, match=r"too much text"):
        parse_env(lines, {})


@given(st.text() | st.text(alphabet="${}:-?+A "))
def test_any_text_expands_or_is_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        Variables(VALUES).expand(text, lambda name: None)


def test_env_file() -> None:
    text = (
        "# a comment\n\nA=1\nexport B = two words # comment\nC='$A # \"not\"'\n"
        'D="$A\\n\\$A \\"q\\"\nline" # c\nE=\nF=x#y\nG: colon\nHOME\nNOT_THERE\r\nH=${A:-x}${Z:-y}\n'
    )
    assert parse_env(text, {"HOME": "/root"}) == {
        "A": "1", "B": "two words", "C": '$A # "not"', "D": '1\n$A "q"\nline', "E": "", "F": "x#y", "G": "colon",
        "HOME": "/root", "H": "1y",
    }  # fmt: skip


def test_the_environment_wins_inside_an_env_file() -> None:
    assert parse_env("A=file\nB=$A\n", {"A": "real"}) == {"A": "file", "B": "real"}


@pytest.mark.parametrize("text, line", [("A=1\n1=2", 2), ("A='x\n", 1), ("A='a\nb'\nB=\"x\" y", 3), ("=x", 1), ("A=$", 1)])
def test_bad_env_file(text: str, line: int) -> None:
    with pytest.raises(TextError) as caught:
        parse_env(text, {})
    assert caught.value.mark == (line, 1)


@given(st.text() | st.text(alphabet="A=:'\"\\$#\n \r"))
def test_any_env_text_is_variables_or_a_text_error(text: str) -> None:
    with contextlib.suppress(TextError):
        parse_env(text, {})
