"""`record`: a frozen dataclass with slots, made in a fraction of the time.

`dataclasses` compiles six functions for each class. Of modules with dozens of small classes that is most of what their import
takes, and of a command's start a noticeable part. Here all share functions that look at the fields; to make an instance takes
some microseconds longer, so what is made thousands of times a second is a dataclass proper. `fields`, `asdict`, `replace`, match
and pickle work as with those.
"""

from __future__ import annotations

from dataclasses import MISSING, FrozenInstanceError, dataclass, field, fields
from typing import Any, TypeVar, cast, dataclass_transform

_T = TypeVar("_T")
_set = object.__setattr__


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[_T]) -> type[_T]:
    """Defaults are plain values, fields may have ``compare=False``; ``__post_init__`` is called."""
    cls.__doc__ = cls.__doc__ or cls.__name__  # else its signature is made up
    made: Any = dataclass(init=False, repr=False, eq=False, slots=True)(cls)
    made.__record_names__ = tuple(it.name for it in fields(made))
    made.__record_defaults__ = tuple(it.default for it in fields(made) if it.default is not MISSING)
    made.__record_compared__ = tuple(it.name for it in fields(made) if it.compare)
    for method in (__init__, __repr__, __eq__, __hash__, __setattr__, __delattr__, __getstate__, __setstate__):
        setattr(made, method.__name__, method)
    return cast("type[_T]", made)


def _compared(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, name) for name in self.__record_compared__)


def __init__(self: Any, *values: Any, **named: Any) -> None:
    names = self.__record_names__
    missing = len(names) - len(values)
    if not named and 0 < missing <= len(self.__record_defaults__):
        values += self.__record_defaults__[-missing:]
    elif named or missing:
        values = _completed(type(self), values, named)
    for name, value in zip(names, values, strict=True):
        _set(self, name, value)
    if hasattr(self, "__post_init__"):
        self.__post_init__()


def _completed(cls: Any, values: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    names, defaults = cls.__record_names__, cls.__record_defaults__
    found = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True)) | dict(zip(names, values, strict=False)) | named
    if len(values) > len(names) or len(found) < len(names) or not named.keys() <= set(names[len(values) :]):
        got = ", ".join([*map(repr, values), *(f"{name}={value!r}" for name, value in named.items())])
        raise TypeError(f"{cls.__name__}() takes {', '.join(names)}, each once; got {got}")
    return tuple(found[name] for name in names)


def __repr__(self: Any) -> str:
    shown = (f"{name}={getattr(self, name)!r}" for name in self.__record_names__)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def __eq__(self: Any, other: object) -> Any:
    return _compared(self) == _compared(other) if type(other) is type(self) else NotImplemented


def __hash__(self: Any) -> int:
    return hash(_compared(self))


def __setattr__(self: Any, name: str, value: object) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def __delattr__(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def __getstate__(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, name) for name in self.__record_names__)


def __setstate__(self: Any, state: tuple[Any, ...]) -> None:
    for name, value in zip(self.__record_names__, state, strict=True):
        _set(self, name, value)
