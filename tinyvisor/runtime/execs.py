"""What enters a container that runs: one more process, or one that only fetches a socket of its network."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator

from tinyvisor.errors import ContainerError
from tinyvisor.runtime import launcher as wire
from tinyvisor.runtime import plan as planning
from tinyvisor.runtime.asked import check_untraced
from tinyvisor.runtime.container import Container
from tinyvisor.runtime.filters import filter_for
from tinyvisor.runtime.launches import Launches
from tinyvisor.runtime.shapes import step_in
from tinyvisor.runtime.shortage import as_launch_error
from tinyvisor.runtime.stdio import Stdio, Streams
from tinyvisor.spec import Spec


@contextlib.asynccontextmanager
async def open_exec(
    launches: Launches,
    container: Container,
    spec: Spec,
    stdin: Stdio,
    stdout: Stdio,
    stderr: Stdio,
    terminal: tuple[int, int],
) -> AsyncIterator[Container]:
    """One more process in a running container, as a scope; see `Container.open_exec`."""
    launches.world.check_open()
    check_untraced(spec)
    await container.wait_started()  # by now, but for a run's
    identity = await launches.trees.identity(spec)
    # No await from here on: what runs now still does when the launcher is asked.
    _check_runs(container)
    shapes, ids = launches.shapes, container.ids
    with as_launch_error(spec):
        streams = Streams(stdin, stdout, stderr, launches.null)
        try:
            if ids is not None:
                planning.ids_step(ids.map, identity)  # for its check
            launches.own_pipes(streams, ids, identity)
            limits = shapes.limits(container.spec)  # all of its cgroups are joined, whatever they limit
            plan = planning.exec_plan(
                spec,
                limits=limits,
                seccomp=filter_for(spec),
                name=container.name,
                identity=identity,
                ids=ids.map if ids else None,
                terminal=terminal,
                around=shapes.around,
                workspace=container.workspace,
            )
            sections = (wire.EMPTY, wire.encode(plan.init), wire.encode(plan.workload))
            given = [ids.fd] if ids is not None and planning.keeps_user(spec, shapes.around) else []

            def describe(section: int, step: int) -> str:
                return step_in((plan.init, plan.workload)[section - 1], step)

            process = launches.make(spec, container.name, next(launches.world.ids), streams, (), describe, True)
        except BaseException:
            streams.close_given()
            streams.close()
            raise
        launches.send(process, sections, given, container, wire.EXEC)
    process.close_given()
    launches.containers[process.id] = process
    container.execs = (*container.execs, process)
    process.call_when_gone(lambda: _forget(container, process))
    try:
        await process.wait_started()
        yield process
    finally:
        await launches.end(process)


async def open_socket(launches: Launches, container: Container, domain: int) -> socket.socket:
    """See `Container.open_socket`."""
    launches.world.check_open()
    await container.wait_started()
    _check_runs(container)
    if not planning.joins_network(container.spec):
        with as_launch_error(container.spec):
            return socket.socket(domain, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    steps = planning.socket_steps(container.spec, container.name, domain, socket.SOCK_STREAM)
    streams = Streams(None, None, None, launches.null)
    sections = (wire.EMPTY, wire.encode(steps), wire.EMPTY)

    def describe(section: int, step: int) -> str:
        return step_in(steps, step)

    with as_launch_error(container.spec):
        process = launches.make(container.spec, container.name, next(launches.world.ids), streams, (), describe, True)
    launches.send(process, sections, [], container, wire.EXEC)
    process.close_given()
    launches.containers[process.id] = process
    try:
        await process.wait()
        return process.take_socket()
    finally:
        await launches.end(process)


def _check_runs(container: Container) -> None:
    if container.gone or not container.pid:
        raise ContainerError(container.name, "is not running")


def _forget(container: Container, process: Container) -> None:
    container.execs = tuple(other for other in container.execs if other is not process)
