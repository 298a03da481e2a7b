"""What click does not parse by itself: option values with a parser of ours, and `kill`'s signals."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import click

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any, str]
else:
    _ParamType = click.ParamType  # generic from 8.4 on only


Option: TypeAlias = "Callable[[Any], Any]"
"""What a command is given an option or an argument by."""


class Parsed(_ParamType):
    """An option whose text goes through a parser."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


_SIGNAL = re.compile(r"-([0-9]+|[A-Z][A-Z0-9+-]+)")


class SignalCommand(click.Command):
    """A command whose ``-s SIGNAL`` is also ``-9`` or ``-HUP``, as kill(1) has it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        words = [f"--signal={found[1]}" if (found := _SIGNAL.fullmatch(arg)) else arg for arg in args[:end]]
        return super().parse_args(ctx, words + args[end:])
