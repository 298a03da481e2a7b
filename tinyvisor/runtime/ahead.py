"""Launches in two parts: all but the workload, and, when something else has happened, the workload."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from tinyvisor.errors import ContainerError, NotLaunched, SpecError
from tinyvisor.runtime.container import Container
from tinyvisor.runtime.filters import filter_for
from tinyvisor.runtime.launches import Launches, Manner
from tinyvisor.runtime.plan import Watch
from tinyvisor.runtime.shortage import as_launch_error
from tinyvisor.runtime.stdio import Stdio, Streams
from tinyvisor.runtime.tracer import Events, NoSuchTask, ReadingRules, TracerProcess, only_child, stopping_filter, this_machine
from tinyvisor.spec import Spec
from tinyvisor.trace import Calls


async def launch_ahead(
    launches: Launches, spec: Spec, streams: Streams, terminal: tuple[int, int], before_exec: Callable[[], Awaitable[object]]
) -> Container:
    """A launch up to the exec, which is on its way when this returns. The streams are the container's to close."""
    container = None
    live = launches.live
    try:
        if spec.notification_fd is not None:
            raise SpecError("notification_fd", "can't be had by a container that is made ahead")
        with as_launch_error(spec):
            waiting = Streams(None, None, None, launches.null)
        manner = Manner(terminal=terminal, events=True, park=True, live=live, later=streams)
        container = await launches.launch(spec, waiting, manner)
        await container.wait_parked()
        go = launches.prepared_hand_over(container, spec, streams)
        await before_exec()
        if go is None or not go():
            raise NotLaunched(spec.name)
    except BaseException:
        try:
            if container is not None:
                if live is not None:
                    live.forget(container)
                await launches.end(container)
        finally:
            streams.close_given()
            streams.close()
        raise
    return container


@contextlib.asynccontextmanager
async def open_traced(
    launches: Launches,
    spec: Spec,
    stdio: tuple[Stdio, Stdio, Stdio],
    terminal: tuple[int, int],
    calls: Calls,
    rules: ReadingRules,
    watch: Watch,
    **how: Any,
) -> AsyncIterator[tuple[Container, Events]]:
    """A container with a tracer that has it from its first instruction on, as a scope; see `Runtime.trace`.

    Args:
        how: of `TracerProcess`.
    """
    with as_launch_error(spec):
        streams = Streams(*stdio, launches.null)
        waiting = Streams(None, None, None, launches.null)
    container = tracer = None
    try:
        container = await launches.launch(spec, waiting, Manner(terminal=terminal, events=True, park=True, watch=watch))
        await container.wait_parked()
        with as_launch_error(spec):
            pids, filtered = [only_child(container.pid)], watch.stops is not None
            tracer = TracerProcess(calls, pids=pids, launching=True, filtered=filtered, rules=rules, **how)
        try:
            await tracer.wait_ready()
        except NoSuchTask:
            await container.wait()  # its start has failed at the last moment: that says why
            raise
        if not launches.hand_over(container, spec, streams):
            raise ContainerError(container.name, "was killed while it was starting")
        await container.wait_started()
        yield container, Events(tracer)
    finally:
        streams.close_given()
        if container is None:
            streams.close()
        else:
            try:
                if tracer is not None:
                    await tracer.aclose()  # first: who is dead stays a zombie until its tracer has looked
            finally:
                await launches.end(container)
                streams.close()


def watch_for(spec: Spec, calls: Calls, rules: ReadingRules, seccomp_bpf: bool) -> Watch:
    """How the workload is stopped for its tracer; see `Runtime.trace`."""
    machine = this_machine()
    if rules.names and not calls.everything:
        calls = Calls(rules.names.union(calls.among(machine.numbers)), inverted=False)
    if calls.everything or not spec.no_new_privs or os.uname().machine != "x86_64":
        return Watch()
    profile = filter_for(spec)
    if profile is not None and profile.asks_tracer:  # what it leaves to a tracer is ENOSYS: we are another one
        return Watch()
    if not seccomp_bpf and profile is not None and not profile.passes.issuperset(calls.among(machine.numbers)):
        return Watch()
    return Watch(stopping_filter(calls, machine))
