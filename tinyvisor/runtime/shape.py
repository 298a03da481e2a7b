"""A launch as bytes, cached: containers whose specs differ in nothing but name, command and environment share it. Pure."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from tinyvisor.runtime.launcher import Section
from tinyvisor.runtime.plan import Tree
from tinyvisor.spec import Spec

# What a plan depends on, but for the name and the exec step; `ulimits` is a mapping and is added by its items, and of `secrets`
# only whether there are any: what they are is nobody's to keep.
shape_of: Callable[[Spec], Any] = operator.attrgetter(
    *(item.name for item in fields(Spec) if item.name not in ("command", "environment", "name", "ulimits", "secrets"))
)
PLACEHOLDER = "\udcf7"  # one byte, 0xf7, that is in no UTF-8 text and, four in a row, in no number of a plan
MIN_PLACEHOLDER = 4
_PLACEHOLDER = PLACEHOLDER.encode("utf-8", "surrogateescape")
HOLE = _PLACEHOLDER * MIN_PLACEHOLDER  # a number of a filter's can be that


@dataclass(frozen=True, slots=True)
class Shape:
    """An encoded plan but for the name, the exec step, and the step that says which ids it has.

    Attributes:
        counters: init's steps beside `init`, of a container made ahead.
        parked: the workload's steps that a container made ahead has behind it.
        workload: the others.
    """

    init: Section
    counters: Section
    parked: Section
    workload: Section
    cleanup: Section
    trees: tuple[Tree, ...]
    readback: tuple[tuple[int, str], ...]

    def named(self, name: str) -> Shape:
        raw, holes = name.encode(), _PLACEHOLDER * len(name)
        encoded = (self.init, self.counters, self.parked, self.workload, self.cleanup)
        init, counters, parked, workload, cleanup = [Section(steps, body.replace(holes, raw)) for steps, body in encoded]
        return Shape(init, counters, parked, workload, cleanup, self.trees, self.readback)

    def with_exec(self, exec_: bytes, *, parked: bool = False) -> Section:
        """The workload's section, or what is left of it for a container that was parked."""
        rest = Section(self.workload.steps + 1, self.workload.body + exec_)
        return rest if parked else self.parked + rest
