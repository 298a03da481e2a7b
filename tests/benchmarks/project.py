"""Projects that the benchmarks run by the real command, ``tinyvisor up``. What was started is gone when it is over."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinyvisor.places import run_directory

Found = dict[str, Any]

TINYVISOR = (sys.executable, "-P", "-m", "tinyvisor")
LIMIT = 300.0  # seconds for anything


def tinyvisor(*words: str | Path) -> str:
    """What it says."""
    ended = subprocess.run([*TINYVISOR, *map(str, words)], capture_output=True, text=True, timeout=LIMIT, check=False)
    if ended.returncode:
        raise RuntimeError(f"tinyvisor {' '.join(map(str, words))}: {ended.stderr[-500:]}")
    return ended.stdout


@contextlib.contextmanager
def in_background(scratch: Path, services: dict[str, Found]) -> Iterator[tuple[str, int, float]]:
    """A project that runs: its name, the daemon's pid, and the seconds until all of it ran. Its logs are in `scratch`/logs."""
    name = f"benchmark-{os.getpid()}"
    file = scratch / "services.yaml"
    file.write_text(json.dumps({"services": services}))
    begin = time.perf_counter()
    tinyvisor("up", "-d", "-p", name, "--log-dir", scratch / "logs", file)
    seconds = time.perf_counter() - begin
    try:
        yield name, json.loads((run_directory() / f"{name}.json").read_text())["pid"], seconds
    finally:
        if (run_directory() / f"{name}.json").exists():
            tinyvisor("down", "-p", name)
        # Not removed: ext4 makes no file for some time where one has just been, and looks for long for another place.
        (scratch / "logs").rename(tempfile.mkdtemp(dir=scratch))


@contextlib.contextmanager
def in_foreground(scratch: Path, services: dict[str, Found]) -> Iterator[subprocess.Popen[bytes]]:
    """``tinyvisor up`` of a project, which shows what it does to nobody. Its logs are in `scratch`/logs."""
    file = scratch / "services.yaml"
    file.write_text(json.dumps({"services": services}))
    words = [*TINYVISOR, "up", "--log-dir", str(scratch / "logs"), str(file)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(LIMIT)
        shutil.rmtree(scratch / "logs", ignore_errors=True)
