"""Containers made ahead: init is parked with namespaces, cgroup and root ready, and waits for a command. Each is used once.

Written on anyio alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import fields
from typing import Any, Protocol

import anyio
import anyio.lowlevel

from tinyvisor.errors import RunFailed, SpecError, TinyvisorError
from tinyvisor.runtime.container import Container
from tinyvisor.runtime.oneshot import Run
from tinyvisor.runtime.stdio import Streams
from tinyvisor.runtime.workspace import Workspace
from tinyvisor.spec import Spec
from tinyvisor.state import Result

Member = tuple[Container, Workspace | None]


class Demand(Protocol):
    """Who knows what runs there will be.

    Attributes:
        patience: seconds in which nothing was taken, after which it is asked again.
    """

    patience: float

    def another(self) -> bool:
        """Whether one more is to be made now that one was taken."""

    def lasts(self) -> bool:
        """Whether what is ready is still of use."""


class Pool:
    """Parked containers of one shape: all of a spec but its command and environment.

    Attributes:
        size: how many are kept ready.
        error: why no more are made; a run then starts cold, and says for itself what is wrong.
        over: no more are made, and none is ready.
    """

    def __init__(
        self,
        size: int,
        make: Callable[[], Awaitable[Member]],
        hand_over: Callable[[Container, Spec, Streams], bool],
        end: Callable[[Container], Awaitable[None]],
        demand: Demand | None = None,
    ) -> None:
        """`demand`: says what is to be made; None: what is taken is replaced when it has ended."""
        self.size = size
        self.error: Exception | None = None
        self.over: bool = False
        self._demand = demand
        self._ended = anyio.Event()
        self._make = make
        self._hand_over = hand_over
        self._end = end
        self._ready: deque[Member] = deque()
        self._wanted = anyio.Event()
        self._scope = anyio.CancelScope()

    def __len__(self) -> int:
        return sum(not container.gone for container, _ in self._ready)

    def take(self, spec: Spec, streams: Streams) -> Member | None:
        """One of them, that runs `spec` now; None where none is ready."""
        while self._ready:
            container, workspace = self._ready.popleft()
            if self._hand_over(container, spec, streams):
                if self._demand is None:
                    container.call_when_gone(self._refill)
                elif self._demand.another():
                    self._refill()
                return container, workspace
            if workspace is not None:
                workspace.close()
            container.kill()  # it was killed from outside, or is about to end
        if self._demand is None or self._demand.another():
            self._refill()
        return None

    def _refill(self) -> None:
        self._wanted.set()

    async def keep_full(self) -> None:
        """Makes what is missing, until `stop`; then ends those that are left."""
        try:
            with self._scope:
                while True:
                    while len(self._ready) < self.size:
                        self._ready.append(await self._make())
                    self._wanted = anyio.Event()
                    await self._wait()
                    if not self._wanted.is_set():
                        break
                    await anyio.lowlevel.checkpoint()  # whose run has ended comes first
        except (TinyvisorError, OSError) as exc:
            self.error = exc
        finally:
            self.over = True
            try:
                await self._end_all()
            finally:
                self._ended.set()

    async def _wait(self) -> None:
        """Until one is missing, or none is needed any more."""
        lasts = True
        while lasts and not self._wanted.is_set():
            with anyio.move_on_after(self._demand.patience if self._demand else None):
                await self._wanted.wait()
            lasts = self._demand is None or self._demand.lasts()

    def stop(self) -> None:
        """No more of them: `keep_full` ends."""
        self._scope.cancel()

    async def drain(self) -> None:
        """Stops it, and waits until nothing of it is left."""
        self.stop()
        await self._ended.wait()

    async def _end_all(self) -> None:
        ready, self._ready = tuple(self._ready), deque()
        for container, workspace in ready:
            container.kill()
            if workspace is not None:
                workspace.close()
        for container, _ in ready:
            await self._end(container)


_OF_A_RUN = frozenset(item.name for item in fields(Run)) - {"spec", "id", "job", "directory"}


class WarmRuns:
    """Runs in containers of one pool; made by `Runtime.pool`."""

    def __init__(self, run: Callable[[Run, Pool], Awaitable[Result]], spec: Spec, pool: Pool) -> None:
        self._run = run
        self._spec = spec
        self._pool = pool
        self._last = spec

    def _with(self, changes: dict[str, Any]) -> Spec:
        """Mostly the last one again, with another input."""
        if "environment" in changes:  # perhaps the same mapping, and perhaps not with the same in it
            return self._spec.with_(**changes)
        command = changes.get("command", self._spec.command)
        if (tuple(command) if isinstance(command, list) else command) != self._last.command:
            self._last = self._spec.with_(**changes)
        return self._last

    @property
    def ready(self) -> int:
        """How many containers wait for a command now."""
        return len(self._pool)

    async def run(self, command: Sequence[str] | None = None, *, check: bool = False, **arguments: Any) -> Result:
        """As `Runtime.run`, in a container made ahead, or a new one where none is ready.

        Args:
            command: None is the spec's own.
            arguments: of `Runtime.run`, but of the spec's fields only ``environment``; what goes into the container's making
                is the pool's.
        """
        changes: dict[str, Any] = {"command": command} if command is not None else {}
        if "environment" in arguments:
            changes["environment"] = arguments.pop("environment")
        for name in ("files", "collect", "working_directory"):
            if arguments.get(name):
                raise SpecError(name, "a pool's containers are made before it is known; use run, with open_runtime(warm=...)")
        unknown = arguments.keys() - _OF_A_RUN
        if unknown:
            raise SpecError(min(unknown), "is a pool's, not a run's, or nothing that there is")
        spec = self._with(changes)
        result = await self._run(Run(spec=spec, **arguments), self._pool)
        if check and result.status != "ok":
            raise RunFailed(spec.name, result)
        return result
