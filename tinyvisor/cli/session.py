"""Runs a project under a `View`: the runtime, the supervisor, and what signals mean. On trio."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from tinyvisor.runtime import open_runtime
from tinyvisor.spec import Project
from tinyvisor.state import ServiceSummary
from tinyvisor.supervisor import Supervisor
from tinyvisor.view import View

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def heeded(numbers: tuple[signal.Signals, ...]) -> list[signal.Signals]:
    """Those that our caller did not want ignored, as nohup and a shell's ``&`` do."""
    return [number for number in numbers if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN]


def run_project(
    project: Project, view: View, *, log_dir: Path, exit_code_from: str | None, abort_on_container_failure: bool
) -> tuple[ServiceSummary, ...]:
    """Runs all services until nothing is left to run, or a signal has ended them."""

    async def run() -> tuple[ServiceSummary, ...]:
        with trio.open_signal_receiver(*heeded(ENDING)) as signals:
            async with open_runtime(name=project.name) as runtime:
                supervisor = Supervisor(
                    runtime,
                    project,
                    log_dir=log_dir,
                    on_event=view.event,
                    on_output=view.output,
                    exit_code_from=exit_code_from,
                    abort_on_container_failure=abort_on_container_failure,
                )
                return await _supervise(supervisor, view, signals)

    return trio.run(run)


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
