"""Records are frozen dataclasses, as `dataclasses` would make them."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, replace
from typing import Any

import pytest

from tinyvisor.record import record


@record
class Record:
    a: int
    b: str = "x"
    c: float = field(default=0.5, compare=False)


@dataclass(frozen=True, slots=True)
class Plain:
    a: int
    b: str = "x"
    c: float = field(default=0.5, compare=False)


@record
class Checked:
    a: int

    def __post_init__(self) -> None:
        if self.a < 0:
            raise ValueError("a")


def test_they_behave_as_dataclasses_do() -> None:
    for made, plain in (
        (Record(1), Plain(1)),
        (Record(1, c=2, b="y"), Plain(1, c=2, b="y")),
        (Record(1, "z", 3), Plain(1, "z", 3)),
    ):
        assert repr(made).replace("Record", "Plain") == repr(plain)
        assert asdict(made) == asdict(plain)
        assert hash(made) == hash(plain)
        assert replace(made, a=5) == Record(5, made.b)
        assert pickle.loads(pickle.dumps(made)) == made
        match made:
            case Record(a, b, c):
                assert (a, b, c) == (plain.a, plain.b, plain.c)
    assert [it.name for it in fields(Record)] == ["a", "b", "c"]
    assert not hasattr(Record(1), "__dict__")


def test_equal_is_what_is_of_the_same_kind_and_compared() -> None:
    assert Record(1) == Record(1, c=9)
    assert Record(1) != Record(2)
    different: Any = Plain(1)
    assert Record(1) != different


def test_they_can_not_be_changed() -> None:
    made: Any = Record(1)
    with pytest.raises(FrozenInstanceError):
        made.a = 2
    with pytest.raises(FrozenInstanceError):
        del made.a
    assert made.a == 1


@pytest.mark.parametrize("values, named", [((), {}), ((1, "x", 2, 3), {}), ((1,), {"a": 2}), ((1,), {"d": 2})])
def test_wrong_arguments_are_a_type_error(values: tuple[Any, ...], named: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"Record\(\)"):
        Record(*values, **named)


def test_they_check_themselves() -> None:
    with pytest.raises(ValueError, match="a"):
        Checked(-1)
