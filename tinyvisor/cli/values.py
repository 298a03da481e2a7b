"""Option values as docker run has them → what `Spec` takes. Pure.

Every parser raises ValueError (`SpecError` is one), which click shows as the option's error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tinyvisor.errors import SpecError
from tinyvisor.spec import DEFAULT_NAMESPACES
from tinyvisor.units import parse_size


def parse_namespaces(text: str) -> frozenset[str]:
    """``"pid,mount,net"`` is the whole set; ``"+user,-net"`` changes the default one."""
    words = [word.strip() for word in text.split(",")]
    signed = [word for word in words if word[:1] in ("+", "-")]
    if not signed:
        return frozenset(words)
    if len(signed) != len(words):
        raise ValueError(f'"{text}" mixes both forms; expected names such as pid,mount or changes such as +user,-net')
    added = {word[1:] for word in words if word[0] == "+"}
    return (DEFAULT_NAMESPACES | added) - {word[1:] for word in words if word[0] == "-"}


def parse_storage(text: str) -> tuple[str, int]:
    """``"size=1g"``, ``"inodes=10000"`` → the `Spec` field and its value."""
    key, _, value = text.partition("=")
    if key == "size":
        return "storage_size", parse_size(value)
    if key == "inodes" and value.isdecimal():
        return "storage_inodes", int(value)
    raise ValueError(f'"{text}" is not known; expected size=BYTES or inodes=COUNT')


def environment(given: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """``VAR=x`` as it is, ``VAR`` from `environ` where it is set there.

    Raises:
        SpecError: there is no name.
    """
    found: dict[str, str] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not name:
            raise SpecError("environment", f"{item!r:.100} has no variable's name; expected VAR or VAR=VALUE")
        if equals:
            found[name] = value
        elif name in environ:
            found[name] = environ[name]
    return found
