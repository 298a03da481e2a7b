"""Runs one container in the foreground: stdio handed over as it is, or a terminal between ours and its; signals passed
on; the result written. On trio."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeAlias

import trio

from tinyvisor.cli import pid1, relay, terminal
from tinyvisor.cli.failures import expected
from tinyvisor.cli.signals import heeded
from tinyvisor.cli.wholefile import check_place, write_whole
from tinyvisor.errors import TinyvisorError
from tinyvisor.runtime import Container, Runtime, open_runtime, rootless
from tinyvisor.spec import Spec
from tinyvisor.state import Exit

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)

START_PATIENCE = 0.5
"""Seconds that a signal waits for the start to be over: the command may run already, and we have not heard yet. Then it
ends the start; and so it does where the command is gone and its last output is stuck in our terminal."""


Opener: TypeAlias = "Callable[..., AbstractAsyncContextManager[Container]]"
"""Called with a runtime, a spec, and what else `Runtime.start` takes."""


def run_foreground(
    spec: Spec, *, result: Path | None = None, stop_timeout: float | None = None, opener: Opener = Runtime.start
) -> Exit | int:
    """Runs `spec` to its end.

    Args:
        opener: starts the container.
        result: gets the `Exit` as JSON, also where the start failed.
        stop_timeout: seconds between a SIGTERM of ours and the kill; None only passes the signal on.

    Returns:
        How it ended, or 128 + the signal that we got before it had started.

    Raises:
        TinyvisorError: it could not be started, or `result` can't be written. May come in an `ExceptionGroup`.
    """
    if spec.tty and spec.stdin_open and not os.isatty(0):
        raise TinyvisorError("the input device is not a TTY; leave out -t, or -i")
    if result is not None:
        check_place(result)
    sys.stdout.flush()
    with _reported(result):
        pid1.leave()
        rootless.enter()
        foreground = _Foreground(spec, stop_timeout, opener)
        trio.run(foreground.run)
        if foreground.exit is None:
            return 128 + foreground.interrupted
        if result is not None:
            write_result(result, foreground.exit)
        return foreground.exit


def write_result(path: Path, exit: Exit) -> None:
    """Writes JSON to `path`, whole or not at all.

    Raises:
        TinyvisorError: it can't be written.
    """
    write_whole(path, json.dumps(exit.to_json(), indent=2) + "\n")


@contextlib.contextmanager
def _reported(result: Path | None) -> Iterator[None]:
    """A start that fails has a result, too."""
    try:
        yield
    except Exception as exc:
        errors = expected(exc)
        if result is not None and errors:
            with contextlib.suppress(TinyvisorError):  # the failure itself is what there is to tell
                write_result(result, Exit(status="sandbox_error", reason="; ".join(map(str, errors))))
        raise


class _Foreground:
    """One container and the signals for it.

    Attributes:
        exit: how it ended; None where a signal came before it had started.
        interrupted: that signal.
    """

    def __init__(self, spec: Spec, stop_timeout: float | None, opener: Opener) -> None:
        self._opener = opener
        self.exit: Exit | None = None
        self.interrupted = 0
        self._spec = spec
        self._stop_timeout = stop_timeout
        self._container: Container | None = None
        self._started = trio.Event()

    async def run(self) -> None:
        window = (signal.SIGWINCH,) if self._spec.tty else ()
        with trio.open_signal_receiver(*heeded(FORWARDED), *window) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._forward, signals, nursery)
                await self._run_container()
                nursery.cancel_scope.cancel()

    async def _run_container(self) -> None:
        spec = self._spec
        stdin = 0 if spec.stdin_open and _is_open(0) else None
        stdout, stderr = (fd if _is_open(fd) else None for fd in (1, 2))
        if spec.tty:
            stdin = stdout = stderr = None
        streams: dict[str, Any] = {"stdin": stdin, "stdout": stdout, "stderr": stderr, "terminal": relay.size()}
        async with open_runtime() as runtime, self._opener(runtime, spec, **streams) as container:
            self._container = container
            self._started.set()
            try:
                if spec.tty:
                    await terminal.attach(container, interactive=spec.stdin_open)
                await container.wait()
            finally:
                self.exit = container.exit

    async def _forward(self, signals: AsyncIterator[int], nursery: trio.Nursery) -> None:
        async for number in signals:
            if number == signal.SIGWINCH:
                if self._container is not None:  # else `attach` sets the size
                    self._container.resize(*relay.size())
                continue
            with trio.move_on_after(START_PATIENCE):
                await self._started.wait()
            if self._container is None or self._container.exit is not None:
                self.interrupted = number
                nursery.cancel_scope.cancel()
                return
            await self._pass_on(number, self._container, nursery)

    async def _pass_on(self, number: int, container: Container, nursery: trio.Nursery) -> None:
        if number == signal.SIGTERM and self._stop_timeout is not None:
            nursery.start_soon(self._stop, container, self._stop_timeout)
        else:
            await container.signal(self._spec.stop_signal if number == signal.SIGTERM else number)

    async def _stop(self, container: Container, grace: float) -> None:
        await container.stop(grace=grace)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
