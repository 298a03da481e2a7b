"""For tests of the command: runs it, alone or on a terminal, and waits for what it says."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.conftest import SLOWNESS

ROOT = Path(__file__).resolve().parents[2]
BOUND = 60.0 * SLOWNESS
"""Seconds that anything may take at most; nothing waits for so long when all is well."""


def arguments(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "tinyvisor", *map(str, words)]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    plain = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")}
    return plain | {"PYTHONPATH": str(ROOT), "TERM": "xterm"} | dict(extra or {})


def tinyvisor(
    *words: str | Path, input: str | None = None, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    return subprocess.run(
        arguments(*words),
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        capture_output=True,
        text=True,
        timeout=BOUND,
        env=environment(env),
        cwd=cwd,
        check=False,
    )


def results(path: Path) -> dict[str, dict[str, Any]]:
    """What a batch has written, by id: one line for each job."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({each["id"] for each in found}) == len(found)
    return {each["id"]: each for each in found}


def write(path: Path, *jobs: dict[str, Any]) -> Path:
    """Jobs as JSON Lines."""
    path.write_text("".join(json.dumps(job) + "\n" for job in jobs))
    return path


class Patience:
    """So many seconds of waiting, in turns of which each counts once: when everybody on the machine is stopped for a while, or
    gets no CPU, we do not take it for the other's silence.
    """

    def __init__(self, seconds: float = BOUND) -> None:
        self.left = seconds

    def take(self, seconds: float) -> bool:
        """Whether there is some left then."""
        self.left = max(0.0, self.left - seconds)
        return self.left > 0


class Running:
    """A command that runs, on pipes or on a terminal; killed when the block is left.

    Args:
        before: words of a program that execs the command, e.g. nsenter.
    """

    def __init__(
        self,
        words: Sequence[str | Path],
        *,
        terminal: bool = False,
        env: Mapping[str, str] | None = None,
        before: Sequence[str] = (),
    ) -> None:
        self.text = ""
        self._seen = 0
        if terminal:
            self._reader, theirs = pty.openpty()
            self.writer = self._reader
        else:
            self._reader, theirs = os.pipe()
            self.writer = -1
        self.resize(24, 80)
        self.process = subprocess.Popen(
            [*before, *arguments(*words)],
            stdin=theirs if terminal else subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            env=environment(env),
            start_new_session=True,
            preexec_fn=_take_terminal if terminal else None,
        )
        self.slave = os.dup(theirs) if terminal else -1  # keeps the terminal's settings readable
        os.close(theirs)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(BOUND)
        for fd in {self._reader, self.slave} - {-1}:
            os.close(fd)

    def expect(self, pattern: str) -> re.Match[str]:
        """Reads until `pattern` comes after what was found before."""
        patience = Patience()
        while (match := re.compile(pattern, re.MULTILINE).search(self.text, self._seen)) is None:
            if not self._read(patience):
                raise AssertionError(f"{pattern!r} never came, {self._how_it_is()}, after:\n{self.text}")
        self._seen = match.end()
        return match

    def expect_all(self, *patterns: str) -> None:
        """Reads until each pattern has come, in whatever order."""
        patience = Patience()
        while missing := [pattern for pattern in patterns if not re.search(pattern, self.text, re.MULTILINE)]:
            if not self._read(patience):
                raise AssertionError(f"{missing} never came, {self._how_it_is()}, in:\n{self.text}")

    def send(self, text: str) -> None:
        """Types."""
        os.write(self.writer, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        if self.writer >= 0:
            fcntl.ioctl(self.writer, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def end(self) -> int:
        """Reads to the end; the exit code."""
        patience = Patience()
        if self.slave >= 0:
            while self.process.poll() is None:
                if not self._read(Patience(0.05)):
                    assert patience.take(0.05), self.text
            while self._read(Patience(0)):
                pass
        else:
            while self._read(patience):
                pass
        return self.process.wait(BOUND)

    def stop_reading(self) -> None:
        """The reader goes away: the command's next write fails with EPIPE."""
        os.close(self._reader)
        self._reader = -1

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def _how_it_is(self) -> str:
        code = self.process.poll()
        return "and it goes on" if code is None else f"and it has ended with {code}"

    def _read(self, patience: Patience) -> bool:
        """False: it has ended, or patience has."""
        while not select.select([self._reader], [], [], min(1, patience.left))[0]:
            if not patience.take(1):
                return False
        try:
            data = os.read(self._reader, 65536)
        except OSError:  # EIO: nobody has the terminal any more
            return False
        self.text += data.decode(errors="replace")
        return bool(data)


def wait_until_foreground(*command: str) -> None:
    """Until the one process with this command line is its terminal's foreground group: before, keys go to the shell."""
    deadline = time.monotonic() + BOUND
    while not any(_in_foreground(entry, command) for entry in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < deadline, f"{command} never had the terminal"
        time.sleep(0.005)  # nobody tells


def _in_foreground(process: Path, command: Sequence[str]) -> bool:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")[:-1]
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return words == [word.encode() for word in command] and fields[2] == fields[5]  # pgrp, tpgid: proc_pid_stat(5)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
