"""Frozen dataclasses as JSON and back, by their type hints: what a supervisor leaves to the next one. Pure.

Fields that have their default are left out, and so are those that are not to be stored (``metadata["stored"]`` is false). What is
not known is passed over, so that another version of tinyvisor, which has fields that this one has not, reads the same thing as
long as they are at their defaults.
"""

from __future__ import annotations

import base64
import operator
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import PurePath
from typing import Any, TypeVar, Union, get_args, get_origin

_T = TypeVar("_T")

_PLAIN = frozenset((str, int, float, bool, types.NoneType))
"""Most of what there is, and the same in JSON."""


def to_json(value: Any) -> Any:
    """What `from_json` makes the same value of."""
    if type(value) in _PLAIN:
        return value
    if is_dataclass(value) and not isinstance(value, type):
        found = {"": type(value).__name__}
        names, defaults, items_of = _stored_fields(type(value))
        for name, default, item in zip(names, defaults, items_of(value), strict=True):
            if item is not default and not (item == default and type(item) is type(default)):
                found[name] = to_json(item)
        return found
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, frozenset | set):
        return [to_json(item) for item in sorted(value, key=lambda item: (isinstance(item, str), item))]
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, PurePath):
        return {"path": str(value)}
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    return value


def from_json(kind: type[_T], value: Any) -> _T:
    """`value` as a `kind`.

    Raises:
        ValueError: it is none.
        SpecError: as the class's own checks.
    """
    return typing.cast(_T, _decode(kind, value))


@cache
def _stored_fields(kind: Any) -> tuple[tuple[str, ...], tuple[Any, ...], Callable[[Any], tuple[Any, ...]]]:
    """Names of the fields that are stored, the default of each or what nothing else equals, and what gets all of their values:
    several times in each start, of some sixty fields."""
    stored = [item for item in fields(kind) if item.init and item.metadata.get("stored", True)]
    names = tuple(item.name for item in stored)
    defaults = tuple(item.default if item.default_factory is MISSING else item.default_factory() for item in stored)
    if len(names) < 2:  # attrgetter would give the value itself, or refuse
        return names, defaults, lambda value: tuple(getattr(value, name) for name in names)
    return names, defaults, operator.attrgetter(*names)


def _decode(kind: Any, value: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _decode_union(arguments, value)
    if is_dataclass(kind):
        return _decode_dataclass(kind, value)
    if origin is typing.Literal:
        return _checked(value in arguments, kind, value)
    if origin is not None and issubclass(origin, Mapping):
        _checked(isinstance(value, dict), kind, value)
        return {_decode(arguments[0], key): _decode(arguments[1], item) for key, item in value.items()}
    if origin in (frozenset, tuple, list):
        return _decode_items(origin, arguments, kind, value)
    if isinstance(kind, type) and issubclass(kind, PurePath):
        return kind(_checked(isinstance(value, dict) and "path" in value, kind, value)["path"])
    if kind is bytes:
        return base64.b64decode(_checked(isinstance(value, dict) and "base64" in value, kind, value)["base64"])
    if kind is types.NoneType:
        return _checked(value is None, kind, value)
    if kind is float:
        return float(_checked(isinstance(value, int | float) and not isinstance(value, bool), kind, value))
    return _checked(type(value) is kind, kind, value)


def _decode_items(origin: Any, arguments: tuple[Any, ...], kind: Any, value: Any) -> Any:
    _checked(isinstance(value, list), kind, value)
    if origin is tuple and arguments[-1] is not Ellipsis:
        _checked(len(value) == len(arguments), kind, value)
        return tuple(_decode(each, item) for each, item in zip(arguments, value, strict=True))
    return origin(_decode(arguments[0], item) for item in value)


def _decode_union(kinds: tuple[Any, ...], value: Any) -> Any:
    named = value.get("") if isinstance(value, dict) else None
    for kind in kinds:
        if named is not None and not (is_dataclass(kind) and getattr(kind, "__name__", "") == named):
            continue
        try:
            return _decode(kind, value)
        except ValueError:
            if named is not None:
                raise
    return _checked(False, " | ".join(str(kind) for kind in kinds), value)


def _decode_dataclass(kind: Any, value: Any) -> Any:
    _checked(isinstance(value, dict), kind, value)
    hints = _hints(kind)
    found = {item.name: _decode(hints[item.name], value[item.name]) for item in fields(kind) if item.init and item.name in value}
    missing = [
        item.name
        for item in fields(kind)
        if item.init and item.name not in found and item.default is MISSING and item.default_factory is MISSING
    ]
    _checked(not missing, kind, value)
    return kind(**found)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _checked(right: bool, kind: Any, value: Any) -> Any:
    if not right:
        raise ValueError(f"expected {kind}, got {value!r:.100}")
    return value
