"""From a draft, all that a launch is planned from, to the bytes that the launcher gets. Those are cached: see `shape`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyvisor.runtime import launcher as wire
from tinyvisor.runtime import plan as planning
from tinyvisor.runtime.cgroup import CgroupTree, cpu_usage_file, limit_writes
from tinyvisor.runtime.identity import Identity
from tinyvisor.runtime.leases import Ids
from tinyvisor.runtime.rootfs import HostView
from tinyvisor.runtime.seccomp import MACHINES, Filter, may_wait
from tinyvisor.runtime.shape import HOLE, MIN_PLACEHOLDER, PLACEHOLDER, Shape, shape_of
from tinyvisor.runtime.steps import Step
from tinyvisor.spec import Spec

_MOST = 256  # that are cached


@dataclass(slots=True, eq=False)
class Draft:
    """A container to be, with all that was found out for it.

    Attributes:
        name: the spec's, or one made up where that was not given.
        view: the host view that it has for a root, if it has one.
        terminal: rows and columns.
        workspace: where the shared working directory is in the launcher's world, if it has one.
        idmapped: of the shared trees.
        early, watch: as in `plan.plan`.
    """

    spec: Spec
    name: str
    view: HostView | None
    identity: Identity
    seccomp: Filter | None
    terminal: tuple[int, int]
    workspace: str | None
    ids: Ids | None
    idmapped: frozenset[str]
    early: bool
    watch: planning.Watch | None


class Shapes:
    """Plans and encodes.

    Attributes:
        around: what all plans of this runtime have in common.
    """

    def __init__(self, tree: CgroupTree, around: planning.Around) -> None:
        self.around = around
        self._tree = tree
        self._shapes: dict[tuple[Any, ...], Shape] = {}

    def clear(self) -> None:
        """They are planned again."""
        self._shapes.clear()

    def of(self, draft: Draft) -> Shape:
        """The draft's, with its name in it."""
        spec, name, seccomp = draft.spec, draft.name, draft.seccomp
        # The program, too: a profile's file may have changed.
        program = (seccomp.program, seccomp.second) if seccomp else ()
        key = (
            len(name), draft.identity, draft.terminal, draft.workspace, draft.early, program, bool(spec.secrets), shape_of(spec),
            *spec.ulimits.items(),
        )  # fmt: skip
        watch = draft.watch
        shape = self._shapes.get(key) if watch is None else None
        if shape is None:
            holed = any(HOLE in part for part in program)
            if len(name) < MIN_PLACEHOLDER or spec.network_mode == "host" or holed or watch is not None:
                return self._encode(draft, name)
            if len(self._shapes) >= _MOST:
                self._shapes.clear()
            shape = self._shapes[key] = self._encode(draft, PLACEHOLDER * len(name))
        return shape.named(name)

    def describe(self, draft: Draft, spec: Spec, section: int, step: int) -> str:
        """The failed step in words: the plan is made again, which a start that went well never pays for.

        Args:
            spec: the draft's, or what its command came with.
        """
        plan = self._plan(draft, spec, spec.name)
        return step_in((plan.init, plan.workload)[section - 1], step)

    def limits(self, spec: Spec) -> planning.Limits:
        """How this host's cgroups keep them.

        Raises:
            HostError: they can't.
        """
        layout = self._tree.layout
        usage = cpu_usage_file(layout) if spec.cpu_time is not None else None
        writes = tuple(limit_writes(spec, layout, exists=self._tree.has))
        return planning.Limits(layout, writes, usage, os.cpu_count() or 1)

    def _encode(self, draft: Draft, name: str) -> Shape:
        spec, seccomp = draft.spec, draft.seccomp
        plan = self._plan(draft, spec, name, draft.terminal, draft.early)
        under_filter = seccomp is None or may_wait(seccomp, MACHINES[os.uname().machine])
        split = planning.parked_steps(spec, plan, draft.watch, under_filter=under_filter)
        workload = (wire.encode(plan.workload[:split]), wire.encode(plan.workload[split:-1]))
        init = plan.init if spec.userns == "host" else plan.init[1:]  # the ids are each container's own
        limits = self.limits(spec)
        counters = wire.encode(planning.counters(spec, limits, name))
        return Shape(wire.encode(init), counters, *workload, wire.encode(plan.cleanup), plan.trees, limits.readback())

    def _plan(
        self, draft: Draft, spec: Spec, name: str, terminal: tuple[int, int] = (24, 80), early: bool = False
    ) -> planning.Plan:
        return planning.plan(
            spec,
            limits=self.limits(spec),
            view=draft.view,
            seccomp=draft.seccomp,
            name=name,
            identity=draft.identity,
            resolv_conf=_resolv_conf() if spec.network_mode == "host" else None,
            terminal=terminal,
            workspace=draft.workspace,
            early=early,
            ids=draft.ids.map if draft.ids else None,
            idmapped=draft.idmapped,
            watch=draft.watch,
            around=self.around,
        )


def step_in(steps: tuple[Step, ...], index: int) -> str:
    """In words; behind the last one is the start of the workload."""
    return steps[index].describe() if index < len(steps) else "start the workload"


def _resolv_conf() -> bytes | None:
    try:
        return Path("/etc/resolv.conf").read_bytes()
    except OSError:
        return None  # a host without one resolves without one
