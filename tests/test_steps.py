"""The Python steps against the launcher's own table."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import typing

import pytest

from tests import launcher_harness as harness
from tinyvisor.runtime import steps
from tinyvisor.runtime.launcher import SECTIONS, encode_step
from tinyvisor.runtime.steps import Step

# Not Step.__subclasses__(): a dataclass with slots is a second class, and the first may still be there.
CLASSES: list[type[Step]] = sorted(
    (kind for _, kind in inspect.getmembers(steps, inspect.isclass) if issubclass(kind, Step) and hasattr(kind, "op")),
    key=lambda kind: kind.op,
)

# The few whose names are the C table's in other words.
OTHER_NAMES = {"oom_score_adj": "OomScoreAdj", "identity": "SetIdentity"}


class Row(typing.NamedTuple):
    name: str
    ints: int
    strings: int
    sections: int


def test_a_program_with_a_strange_name_stays_on_its_line() -> None:
    assert steps.Exec(("a b", "x"), ()).describe() == "exec a b"
    assert steps.Exec(("a\nb\x1b[31m",), ()).describe() == r"exec 'a\nb\x1b[31m'"


def sample(kind: type[Step]) -> Step:
    """One of each, by the types of its fields."""
    values: dict[str, object] = {
        "int": 0x20000, "str": "x", "bytes": b"x\n", "bool": True, "frozenset[int]": frozenset({0, 65}),
        "tuple[int, ...]": (1, 2), "tuple[int, int]": (1, 2), "tuple[str, ...]": ("a", "b"),
        "tuple[tuple[str, str], ...]": (("K", "v"), ("L", "")),
    }  # fmt: skip
    assert dataclasses.is_dataclass(kind)
    step = kind(**{field.name: values[str(field.type)] for field in dataclasses.fields(kind)})
    assert isinstance(step, Step)
    return step


@pytest.fixture(scope="module")
def table() -> dict[int, Row]:
    """What the launcher prints: op, name, how many numbers and strings, a bit per section that may hold it."""
    run = subprocess.run([harness.installed(), "steps"], capture_output=True, text=True, check=True)
    rows = (line.split() for line in run.stdout.splitlines())
    return {int(op): Row(name, int(ints), int(strings), int(sections)) for op, name, ints, strings, sections in rows}


def test_ops_are_unique() -> None:
    assert len({kind.op for kind in CLASSES}) == len(CLASSES)


def test_both_sides_know_the_same_steps(table: dict[int, Row]) -> None:
    names = {op: OTHER_NAMES.get(row.name, row.name.title().replace("_", "")) for op, row in table.items()}
    assert names == {kind.op: kind.__name__ for kind in CLASSES}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_numbers_and_strings_are_as_many_as_the_launcher_expects(kind: type[Step], table: dict[int, Row]) -> None:
    step, row = sample(kind), table[kind.op]
    assert (len(step.numbers()), len(step.strings())) == (row.ints, row.strings)
    assert encode_step(step)[:4] == kind.op.to_bytes(2, "little") + bytes((row.ints, row.strings))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_describe_is_one_line(kind: type[Step]) -> None:
    text = sample(kind).describe()
    assert re.fullmatch(r"\S(.*\S)?", text), text


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_steps_are_frozen(kind: type[Step]) -> None:
    step = sample(kind)
    assert hash(step) == hash(sample(kind))
    assert step == sample(kind)


def test_every_step_has_a_section(table: dict[int, Row]) -> None:
    assert all(0 < row.sections < 1 << len(SECTIONS) for row in table.values())


def test_cleanup_steps_are_nothing_else(table: dict[int, Row]) -> None:
    """The launcher has no function for them that a container's init could run."""
    cleanup = 1 << SECTIONS.index("cleanup")
    assert {op for op, row in table.items() if row.sections & cleanup} == {60, 61}
    assert all(row.sections in (cleanup, row.sections & ~cleanup) for row in table.values())


def test_negative_numbers_become_unsigned() -> None:
    assert steps.OomScoreAdj(-1000).numbers() == (2**64 - 1000,)
    assert steps.Rlimit(7, -1, -1, "nofile").numbers() == (7, 2**64 - 1, 2**64 - 1)


def test_affinity_is_a_kernel_mask() -> None:
    assert steps.Affinity(frozenset({0, 9})).strings() == (b"\x01\x02" + bytes(6),)
    assert steps.Affinity(frozenset({64})).strings() == (bytes(8) + b"\x01" + bytes(7),)
