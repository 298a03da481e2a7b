"""Which runs find a container that was made ahead of them, without having asked for a pool. Written on anyio alone."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any, Protocol

import anyio
from anyio.abc import TaskGroup

from tinyvisor.runtime.container import Container
from tinyvisor.runtime.launches import Launches, Manner
from tinyvisor.runtime.oneshot import Run
from tinyvisor.runtime.plan import made_fds
from tinyvisor.runtime.pool import Demand, Pool
from tinyvisor.runtime.shape import shape_of
from tinyvisor.runtime.stdio import Streams
from tinyvisor.runtime.workspace import DEFAULT_DIRECTORY, Workspace
from tinyvisor.spec import DEFAULT_NAME, Spec

IN_A_ROW = 0.1
"""Seconds between the end of a run and the start of the next one, at most, for them to come one after the other."""

UNUSED = 0.5
"""Seconds in which no run came, once or twice that, after which a container is ended that was made for one."""


class MakePool(Protocol):
    """Makes pools; see `make_pool`."""

    def __call__(self, spec: Spec, size: int, /, *, workspace: bool, demand: Demand | None = None) -> Pool: ...


class Warm:
    """Makes containers ahead, once two runs in a row were alike but for command, environment, input and output.

    With a `size` so many are kept ready. With None it is one, while runs come one after the other: it is made beside a run, so
    that the next is on its way while that ends, and where that does not come it is ended, and nothing more is made. That must be
    nothing that anybody could notice but by the clock: so there is none for a spec with files of the host's, which could be
    others by then.

    Attributes:
        pool: the one that is kept full now.
    """

    patience = UNUSED

    def __init__(self, size: int | None, make: MakePool, tasks: TaskGroup, cpus: int | None = None) -> None:
        """
        Args:
            make: `make_pool`, of the launches.
            tasks: in which pools are kept full.
            cpus: how many there are for this; None: those of this process.
        """
        self._size = size
        self._unasked = size is None
        self._make = make
        self._spare_cpu = (len(os.sched_getaffinity(0)) if cpus is None else cpus) > 1
        self._tasks = tasks
        self.pool: Pool | None = None
        self._key: Any = None  # of the pool's runs
        self._before: Any = None  # of the run before
        self._ended = -math.inf  # when that was over
        self._under_way = 0
        self._crowd = self._was_crowd = False  # several at once, since none ran; and before that

    @contextlib.contextmanager
    def run(self, run: Run, pool: Pool | None = None) -> Iterator[Pool | None]:
        """For as long as it takes. Gives the pool to look into: `pool`, where the run has one of its own."""
        self._under_way += 1
        if self._under_way == 1:
            self._was_crowd, self._crowd = self._crowd, False
        else:
            self._crowd = True
        try:
            yield pool if pool is not None or self._size == 0 else self._pool_for(run)
        finally:
            self._under_way -= 1
            self._ended = anyio.current_time()

    def close(self) -> None:
        """Nothing more is made."""
        self._size = 0

    async def give_way(self) -> bool:
        """What was made unasked is ended, and nothing more made, since somebody needs what it has; False: there is nothing."""
        pool = self.pool
        if not self._unasked or pool is None or pool.over:
            return False
        self.close()
        await pool.drain()
        return True

    def _pool_for(self, run: Run) -> Pool | None:
        key = self._key_of(run)
        if self.pool is not None and self.pool.over:
            if self.pool.error is not None and self._size is None:
                self._size = 0  # what is wrong is for those to say that ask for something
            self.pool = self._key = None
        if key is None or self._size == 0:
            return None
        before, self._before = self._before, key
        if key != self._key:
            if before != key or not self._in_a_row():
                return None
            self._replace(run, key)
        return self.pool

    def _replace(self, run: Run, key: Any) -> None:
        if self.pool is not None:
            self.pool.stop()
        demand = self if self._size is None else None
        self.pool = self._make(run.spec, self._size or 1, workspace=run.needs_workspace, demand=demand)
        self._key = key
        self._tasks.start_soon(self.pool.keep_full)

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


def make_pool(launches: Launches, spec: Spec, size: int, *, workspace: bool = False, demand: Demand | None = None) -> Pool:
    """Containers of that spec, each with a working directory of its own where `workspace`. The caller has it `keep_full`."""
    if workspace and spec.working_dir is None:
        spec = spec.with_(working_dir=DEFAULT_DIRECTORY)

    async def make() -> tuple[Container, Workspace | None]:
        directory = None
        if workspace:
            directory = Workspace(size=spec.storage_size, inodes=spec.storage_inodes)
        try:
            ids = await launches.lease(spec)
            try:
                if directory is not None:
                    uid, gid = await launches.owner(spec)
                    directory.own(*((ids.map.uid(uid), ids.map.gid(gid)) if ids else (uid, gid)))
                streams = Streams(None, None, None, launches.null)
            except BaseException:
                launches.give_back(ids)
                raise
            manner = Manner(events=True, workspace=directory, park=True, early=True)
            return await launches.launch(spec, streams, manner, ids), directory
        except BaseException:
            if directory is not None:
                directory.close()
            raise

    return Pool(size, make, launches.hand_over_run, launches.end, demand)
