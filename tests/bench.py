"""A supervisor on the fake runtime, and what it said: for the tests of everything that it does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

from tests.fake_runtime import FakeRuntime, Script
from tinyvisor.runtime.logfile import Block, Stream
from tinyvisor.spec import Project, RestartPolicy, Service, Spec
from tinyvisor.state import Event, ServiceSummary
from tinyvisor.supervisor import Supervisor

ALWAYS = RestartPolicy(condition="always")
OF_SERVICE = {item.name for item in fields(Service)}


def service(name: str, restart: RestartPolicy | None = None, depends_on: Any = (), **more: Any) -> Service:
    """`more` goes to the `Service` or its `Spec`; `depends_on`: names, or `Dependency` by name."""
    own = {key: more.pop(key) for key in OF_SERVICE & more.keys()}
    return Service(
        spec=Spec(**{"command": ("x",)} | more, name=name), restart=restart or RestartPolicy(), depends_on=depends_on, **own
    )


@dataclass
class Bench:
    """A supervisor, its runtime, and what it said."""

    runtime: FakeRuntime
    supervisor: Supervisor = field(init=False)
    events: list[Event] = field(default_factory=list)
    lines: list[tuple[str, str, bytes]] = field(default_factory=list)
    start: float = field(init=False)

    def on_output(self, name: str, stream: Stream, block: Block) -> None:
        self.lines += ((name, stream, line) for line in block.removesuffix(b"\n").split(b"\n"))

    async def run(self) -> dict[str, ServiceSummary]:
        self.start = trio.current_time()
        summaries = await self.supervisor.run()
        assert not self.runtime.running
        assert not self.runtime.ahead
        return {summary.name: summary for summary in summaries}

    async def run_until(self, seconds: float, request: str = "request_stop") -> dict[str, ServiceSummary]:
        """Runs, and makes a request after so many seconds."""

        async def ask() -> None:
            await trio.sleep(seconds)
            getattr(self.supervisor, request)()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            result = await self.run()
            nursery.cancel_scope.cancel()
        return result

    @asynccontextmanager
    async def live(self) -> AsyncIterator[Supervisor]:
        """Runs in the background; at the end everything is stopped."""
        self.start = trio.current_time()
        async with trio.open_nursery() as nursery:
            await nursery.start(self.supervisor.run)
            await wait_all_tasks_blocked()
            yield self.supervisor
            self.supervisor.request_stop()
        assert not self.runtime.running
        assert not self.runtime.ahead

    def states(self) -> dict[str, str]:
        return {summary.name: summary.state for summary in self.supervisor.summaries()}

    @property
    def took(self) -> float:
        return round(trio.current_time() - self.start, 6)

    def of(self, kind: type[Event], name: str | None = None) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind) and name in (None, event.name)]


def bench(
    *services: Service,
    scripts: dict[str, list[Script]] | None = None,
    log_dir: Path | None = None,
    on_event: Callable[[Event], None] | None = None,
    **options: Any,
) -> Bench:
    bench = Bench(FakeRuntime(scripts or {}))
    project = Project(name="test", services={item.name: item for item in services})

    def take(event: Event) -> None:
        bench.events.append(event)
        if on_event is not None:
            on_event(event)

    options = {"on_output": bench.on_output, "jitter": lambda: 0.0} | options
    bench.supervisor = Supervisor(bench.runtime, project, log_dir=log_dir, on_event=take, **options)
    return bench
