"""A Dask scheduler and its workers, as processes of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.kernel.command import BOUND, environment

LOOPBACK: tuple[tuple[str, ...], str] = ((), "127.0.0.1")


class Machines:
    """A scheduler and workers of one thread, each a process, with certificates that only `certificates` fits.

    Args:
        hosts: of the scheduler and the workers, each what to put before a command to run it there, and its address.

    Attributes:
        file: the scheduler file.
        processes: the scheduler's and the workers'.
    """

    def __init__(self, directory: Path, *hosts: tuple[tuple[str, ...], str], env: Mapping[str, str] | None = None) -> None:
        self.file = directory / "scheduler.json"
        self.processes: list[subprocess.Popen[bytes]] = []
        self._directory, self._hosts, self._environment = directory, hosts, environment(env)
        self.certificates = certificates(directory)

    def __enter__(self) -> Machines:
        words = ("--nthreads", "1", "--no-nanny", "--local-directory", self._directory)
        try:
            for number, (before, address) in enumerate(self._hosts):
                what, more = ("worker", words) if number else ("scheduler", ("--port", "0"))
                command = [*before, sys.executable, "-m", f"distributed.cli.dask_{what}", "--host", address, "--no-dashboard"]
                self._start([*command, "--scheduler-file", self.file, *more, *self.certificates])
            until(lambda: self.file.exists() and self.file.read_text().endswith("}"))
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, words: Sequence[str | Path]) -> None:
        with (self._directory / "dask.log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(words, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )

    def lose(self, number: int) -> None:
        self.processes[number].kill()
        self.processes[number].wait(BOUND)

    def nodes(self) -> list[int]:
        """The processes that run containers."""
        found: list[int] = []
        for process in self.processes:
            for file in Path(f"/proc/{process.pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):  # a thread that has just ended
                    found += map(int, file.read_text().split())
        return found

    def end_nodes(self) -> None:
        """Their workers start others."""
        nodes = self.nodes()
        for pid in nodes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        until(lambda: not any(map(lives, nodes)))

    def __exit__(self, *exc: object) -> None:
        """The nodes end by themselves when their workers do."""
        nodes = self.nodes()
        for process in reversed(self.processes):
            process.kill()
            process.wait(BOUND)
        until(lambda: not any(map(lives, nodes)))


def lives(pid: int) -> bool:
    """Whether a process has not ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def certificates(directory: Path) -> list[str | Path]:
    """The options for a CA of our own and a certificate that it has signed, which here are one."""
    from distributed import Security

    made = Security.temporary()
    found: list[str | Path] = []
    for option, text in (("ca-file", made.tls_ca_file), ("cert", made.tls_client_cert), ("key", made.tls_client_key)):
        path = directory / f"{option}.pem"
        path.write_text(text)
        found += [f"--tls-{option}", path]
    return found


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
