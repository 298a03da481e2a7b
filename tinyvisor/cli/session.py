"""Runs a project under a `View`: the runtime, the supervisor, and what signals mean. On trio."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tinyvisor.cli.daemon import DRAIN_PATIENCE
from tinyvisor.cli.outside import Outside, write_record
from tinyvisor.cli.signals import ENDING, heeded
from tinyvisor.control import Control, Feed, listening
from tinyvisor.metrics import Tally
from tinyvisor.places import run_directory
from tinyvisor.runtime import open_runtime
from tinyvisor.runtime.logfile import Block, Stream
from tinyvisor.spec import Project
from tinyvisor.state import Event, ServiceSummary
from tinyvisor.supervisor import Supervisor
from tinyvisor.view import View


def run_project(
    project: Project,
    view: View,
    *,
    log_dir: Path,
    paths: Sequence[Path],
    reread: Callable[[], Project],
    outside: Outside,
    only: Sequence[str] = (),
    exit_code_from: str | None = None,
    abort_on_container_failure: bool = False,
    linger: bool = False,
) -> tuple[ServiceSummary, ...]:
    """Runs all services until nothing is left to run, or a signal has ended them. Commands are taken meanwhile, as by a daemon.

    Args:
        only: as `Supervisor` has it.
        linger: goes on while nothing runs.
    """

    files = [os.path.normpath(path.absolute()) for path in paths]

    async def run() -> tuple[ServiceSummary, ...]:
        feed, tally = Feed(), Tally()

        def on_event(event: Event) -> None:
            for each in (view.event, feed.event, tally.event):
                each(event)

        def on_output(name: str, stream: Stream, block: Block) -> None:
            view.output(name, stream, block)
            feed.output(name, stream, block)

        with trio.open_signal_receiver(*heeded(ENDING)) as signals:
            async with open_runtime(name=project.name) as runtime:  # holds the project's lock
                supervisor = Supervisor(
                    runtime,
                    project,
                    log_dir=log_dir,
                    on_event=on_event,
                    on_output=on_output,
                    only=only,
                    exit_code_from=exit_code_from,
                    abort_on_container_failure=abort_on_container_failure,
                    linger=linger,
                )
                control = Control(
                    supervisor,
                    project.name,
                    feed=feed,
                    reread=reread,
                    log_dir=log_dir,
                    tally=tally,
                    about={"paths": files, "log_dir": str(log_dir)},
                    on_problem=view.say,
                )
                content = {"name": project.name, "pid": os.getpid(), "paths": files, "directory": os.getcwd()}
                async with _served(control, supervisor, feed, outside, content):
                    summaries = await _supervise(supervisor, view, signals)
                    control.finish(summaries)
                return summaries

    return trio.run(run)


@asynccontextmanager
async def _served(
    control: Control, supervisor: Supervisor, feed: Feed, outside: Outside, content: Mapping[str, Any]
) -> AsyncIterator[None]:
    """Takes commands; at the end, who waits for an answer gets it."""
    record = run_directory() / f"{content['name']}.json"
    with listening(run_directory() / f"{content['name']}.sock") as listener:
        write_record(record, content)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(outside.serve, control, supervisor, feed, content)
                nursery.start_soon(control.serve, listener)
                yield
                await control.drained(DRAIN_PATIENCE)
                nursery.cancel_scope.cancel()
        finally:
            record.unlink(missing_ok=True)


async def _supervise(supervisor: Supervisor, view: View, signals: AsyncIterator[int]) -> tuple[ServiceSummary, ...]:
    token = trio.lowlevel.current_trio_token()

    def stop() -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(supervisor.request_stop)

    view.on_closed = stop
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_heed, signals, supervisor, view)
        summaries = await supervisor.run()
        nursery.cancel_scope.cancel()
    return summaries


async def _heed(signals: AsyncIterator[int], supervisor: Supervisor, view: View) -> None:
    """The first signal stops, every other one kills."""
    first = True
    async for number in signals:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        if first:
            view.say(f"{name}: stopping in order; once more kills everything")
            supervisor.request_stop()
        else:
            view.say(f"{name} again: killing everything")
            supervisor.request_kill()
        first = False
