"""Which runs get containers made ahead: those whose shape came twice in a row. Written on anyio alone."""

from __future__ import annotations

from typing import Any

from anyio.abc import TaskGroup

from tinyvisor.runtime.container import Container
from tinyvisor.runtime.launches import Launches
from tinyvisor.runtime.oneshot import Run
from tinyvisor.runtime.plan import made_fds
from tinyvisor.runtime.pool import Pool
from tinyvisor.runtime.shape import shape_of
from tinyvisor.runtime.stdio import Streams
from tinyvisor.runtime.workspace import DEFAULT_DIRECTORY, Workspace
from tinyvisor.spec import DEFAULT_NAME, Spec


class Warm:
    """The pool of the shape that runs have had of late.

    Attributes:
        size: how many are kept ready; 0: none.
        pool: the one that is kept full now.
    """

    def __init__(self, size: int, launches: Launches, tasks: TaskGroup) -> None:
        """`tasks`: in which pools are kept full."""
        self.size = size
        self.pool: Pool | None = None
        self._launches = launches
        self._tasks = tasks
        self._key: Any = None
        self._next_key: Any = None

    def pool_for(self, run: Run) -> Pool | None:
        """The pool of the run's shape; made when a shape comes twice in a row."""
        spec = run.spec
        if run.directory is not None or run.files or spec.name != DEFAULT_NAME or spec.network_mode != "none":
            return None
        if made_fds(spec):  # each container's own
            return None
        key = (run.needs_workspace, shape_of(spec), *spec.ulimits.items())
        if key == self._key:
            if self.pool is None:
                self.pool = make_pool(self._launches, spec, self.size, workspace=run.needs_workspace)
                self._tasks.start_soon(self.pool.keep_full)
            return self.pool
        if self._next_key == key:
            if self.pool is not None:
                self.pool.drain()
            self._key, self.pool = key, None
            return self.pool_for(run)
        self._next_key = key
        return None


def make_pool(launches: Launches, spec: Spec, size: int, *, workspace: bool) -> Pool:
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
            options: dict[str, Any] = {"events": True, "workspace": directory, "park": True, "early": True, "ids": ids}
            return await launches.launch(spec, streams, **options), directory
        except BaseException:
            if directory is not None:
                directory.close()
            raise

    return Pool(size, make, launches.hand_over, launches.end)
