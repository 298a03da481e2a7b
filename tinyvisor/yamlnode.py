"""What configuration text is read as: nodes, each with its place in the file. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

MAX_NODES = 100_000
"""Keys and values of one file, aliases expanded."""
MAX_DEPTH = 40
NULL = re.compile("~|null|Null|NULL|")
"""A plain scalar that is no text."""


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
