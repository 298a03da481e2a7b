"""Which runs find a container that was made ahead of them, without having asked for a pool. Written on anyio alone."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any, Protocol

import anyio
from anyio.abc import TaskGroup

from tinyvisor.runtime.oneshot import Run
from tinyvisor.runtime.plan import made_fds
from tinyvisor.runtime.pool import Demand, Pool
from tinyvisor.runtime.shape import shape_of
from tinyvisor.spec import DEFAULT_NAME, Spec

IN_A_ROW = 0.1
"""Seconds between the end of a run and the start of the next one, at most, for them to come one after the other."""

UNUSED = 0.5
"""Seconds in which no run came, once or twice that, after which a container is ended that was made for one."""


class MakePool(Protocol):
    """Pools of the runtime's; see `Pool`."""

    def __call__(self, spec: Spec, size: int, /, *, workspace: bool, demand: Demand | None = None) -> Pool: ...


class Warm:
    """Makes containers ahead, once two runs in a row were alike but for command, environment, input and output.

    With a `size` so many are kept ready. With None it is one, while runs come one after the other: it is made beside a run, so
    that the next is on its way while that ends, and where that does not come it is ended, and nothing more is made. That must be
    nothing that anybody could notice but by the clock: so there is none for a spec with files of the host's, which could be
    others by then.
    """

    patience = UNUSED

    def __init__(self, size: int | None, make: MakePool, cpus: int | None = None) -> None:
        """`cpus`: how many there are for this; None: those of this process."""
        self._size = size
        self._make = make
        self._spare_cpu = (len(os.sched_getaffinity(0)) if cpus is None else cpus) > 1
        self._tasks: TaskGroup | None = None
        self._pool: Pool | None = None
        self._key: Any = None  # of the pool's runs
        self._before: Any = None  # of the run before
        self._ended = -math.inf  # when that was over
        self._under_way = 0
        self._crowd = self._was_crowd = False  # several at once, since none ran; and before that

    def open(self, tasks: TaskGroup) -> None:
        """From here on containers are made, in that group."""
        self._tasks = tasks

    @contextlib.contextmanager
    def run(self, run: Run) -> Iterator[Pool | None]:
        """For as long as it takes. Gives the pool to look into."""
        if self._size == 0:
            yield None
            return
        self._under_way += 1
        if self._under_way == 1:
            self._was_crowd, self._crowd = self._crowd, False
        else:
            self._crowd = True
        try:
            yield self._pool_for(run)
        finally:
            self._under_way -= 1
            self._ended = anyio.current_time()

    async def give_way(self) -> bool:
        """What was made unasked is ended, since somebody needs what it has; False: there is nothing."""
        pool = self._pool
        if self._size is not None or pool is None or pool.over:
            return False
        await pool.drain()
        return True

    def _pool_for(self, run: Run) -> Pool | None:
        key = self._key_of(run)
        if self._pool is not None and self._pool.over:
            if self._pool.error is not None and self._size is None:
                self._size = 0  # what is wrong is for those to say that ask for something
            self._pool = self._key = None
        if key is None or self._tasks is None or self._size == 0:
            return None
        before, self._before = self._before, key
        if key != self._key:
            if before != key or not self._in_a_row():
                return None
            self._replace(run, key, self._tasks)
        return self._pool

    def _replace(self, run: Run, key: Any, tasks: TaskGroup) -> None:
        if self._pool is not None:
            self._pool.stop()
        demand = self if self._size is None else None
        self._pool = self._make(run.spec, self._size or 1, workspace=run.needs_workspace, demand=demand)
        self._key = key
        tasks.start_soon(self._pool.keep_full)

    def another(self) -> bool:
        """Not where others run, too: then the next would take the CPU from them."""
        return self._under_way == 1

    def lasts(self) -> bool:
        """A run that takes long may have another behind it."""
        return self._under_way > 0

    def _in_a_row(self) -> bool:
        return self._size is not None or (
            self.another() and not self._was_crowd and anyio.current_time() - self._ended < IN_A_ROW
        )

    def _key_of(self, run: Run) -> Any:
        spec = run.spec
        if run.directory is not None or run.files or spec.name != DEFAULT_NAME or spec.network_mode != "none":
            return None
        if made_fds(spec):  # each container's own
            return None
        if self._size is None and not (self._spare_cpu and self._is_its_own(run)):
            return None
        return (run.needs_workspace, shape_of(spec), *spec.ulimits.items())

    @staticmethod
    def _is_its_own(run: Run) -> bool:
        """Nothing of the host's is in it that may change between two runs."""
        spec = run.spec
        return spec.rootfs is None and not spec.volumes and isinstance(spec.seccomp, str) and not run.needs_workspace
