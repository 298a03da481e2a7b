"""``python -m tests.benchmarks --supervision``: what it takes to keep services running: many of them, restarts, logs.

Beside supervisord and s6 where they are installed. All of it is the real command, ``tinyvisor up``; whatever a measure started
is gone when it is over, also when it failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import statistics
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from hatch_build import find_compiler
from tests.benchmarks.counts import activity, children, pss
from tests.benchmarks.logs import measure_logs, print_logs
from tests.benchmarks.memory import open_idle
from tests.benchmarks.project import LIMIT, in_background, tinyvisor
from tinyvisor.places import run_directory

Found = dict[str, Any]

ROUNDS = 3
WINDOW = 5.0  # seconds of idleness that are looked at
ASKED = 5  # times that `ps` is timed
BACKOFF = 0.05  # seconds
RESTARTS = 20
SIDE_BY_SIDE = 100
POLL = 0.002  # seconds: nobody tells when another supervisor has started something
S6_PAUSE = 1.0  # seconds, at least, from one start to the next: s6-supervise(8)


def _seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def _sleepers(number: int) -> int:
    """How many processes of ``sleep NUMBER`` there are."""
    wanted, count = f"sleep\0{number}\0".encode(), 0
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                count += Path(f"/proc/{entry}/cmdline").read_bytes().endswith(wanted)
    return count


def _family(pid: int) -> list[int]:
    """A process and all below it but the services themselves."""
    found = [pid]
    for child in children(pid):
        if b"sleep" not in Path(f"/proc/{child}/cmdline").read_bytes():
            found += _family(child)
    return found


# --- Many services. ---


async def measure_services(count: int, scratch: Path) -> Found:
    """`count` services that sleep.

    Returns:
        medians of `ROUNDS`; ``up_to_bare``: of the rounds' ratios. Seconds: ``bare`` (as many containers by the API alone,
        `memory.AT_ONCE` at a time), ``up``, ``down``, ``ps`` of all, ``ps_of_one``; bytes: ``memory`` of the supervisor,
        ``memory_of_one`` with one service; ``idle``: the share of one CPU that the supervisor takes when nothing happens.
    """
    one, bare, many = _ps_and_memory(scratch, 1), [], []
    for _ in range(ROUNDS):
        async with open_idle(count) as idle:
            bare.append(idle.started[-1] - idle.begin)
        many.append(_ps_and_memory(scratch, count))
    medians = {key: statistics.median(round_[key] for round_ in many) for key in many[0]}
    return {
        "count": count, "bare": statistics.median(bare), **medians, "ps_of_one": one["ps"], "memory_of_one": one["memory"],
        "up_to_bare": statistics.median(round_["up"] / alone for round_, alone in zip(many, bare, strict=True)),
    }  # fmt: skip


def _ps_and_memory(scratch: Path, count: int) -> Found:
    services = {f"s{number:05}": {"command": ["sleep", "1000000"]} for number in range(count)}
    with in_background(scratch, services) as (name, pid, up):
        listed = json.loads(tinyvisor("ps", "-p", name, "--json"))
        if [service["state"] for service in listed] != ["running"] * count:
            raise RuntimeError("not all of it runs")
        ps = statistics.median(_seconds(lambda: tinyvisor("ps", "-p", name)) for _ in range(ASKED))
        before = activity([pid])
        time.sleep(WINDOW)
        idle = (activity([pid]) - before).cpu / WINDOW
        memory = pss(pid)
        down = _seconds(lambda: tinyvisor("down", "-p", name))
    return {"up": up, "ps": ps, "idle": idle, "memory": memory, "down": down}


def print_services(found: Found) -> None:
    """The table of `measure_services`."""
    each = (found["memory"] - found["memory_of_one"]) / found["count"]
    print(f"\n{found['count']} services")
    for what, value, remark in (
        ("up -d, s", f"{found['up']:.2f}", f"{found['up_to_bare']:.2f} x the containers alone ({found['bare']:.2f})"),
        ("memory, MB", f"{found['memory'] / 1e6:.1f}", f"{each / 1e3:.1f} KB each"),
        ("idle, of one CPU", f"{found['idle']:.2%}", ""),
        ("ps, s", f"{found['ps']:.3f}", f"{found['ps'] / found['ps_of_one']:.2f} x that of one service"),
        ("down, s", f"{found['down']:.2f}", ""),
    ):
        print(f"  {what:<20}{value:>10}  {remark}".rstrip())


# --- Supervisors side by side. ---


@dataclass(frozen=True, slots=True)
class Supervisor:
    """One of those that are compared.

    Attributes:
        start: starts it with these services (name → command) and a delay before restarts; returns its pid.
        stop: ends it.
        pause: seconds that it waits before a restart, whatever it is told.
    """

    name: str
    start: Callable[[Path, dict[str, list[str]]], int]
    stop: Callable[[Path, int], None]
    pause: float


def _start_tinyvisor(scratch: Path, services: dict[str, list[str]]) -> int:
    name = f"benchmark-{os.getpid()}"
    backoff = {"initial": BACKOFF, "factor": 1, "jitter": 0}
    volumes = [f"{scratch}:{scratch}"]
    described = {
        service: {"command": command, "restart": "always", "backoff": backoff, "volumes": volumes if len(services) == 1 else []}
        for service, command in services.items()
    }
    (scratch / "services.yaml").write_text(json.dumps({"services": described}))
    tinyvisor("up", "-d", "-p", name, "--log-dir", scratch / "logs", scratch / "services.yaml")
    return int(json.loads((run_directory() / f"{name}.json").read_text())["pid"])


def _stop_tinyvisor(scratch: Path, pid: int) -> None:
    tinyvisor("down", "-p", f"benchmark-{os.getpid()}")


def _start_supervisord(scratch: Path, services: dict[str, list[str]]) -> int:
    programs = "".join(
        f"[program:{name}]\ncommand={' '.join(command)}\nautorestart=true\nstartsecs=0\nstartretries=1000000\n"
        "stdout_logfile=NONE\nstderr_logfile=NONE\n"
        for name, command in services.items()
    )
    (scratch / "supervisord.conf").write_text(
        f"[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={scratch}/pid\n{programs}"
    )
    words = ["supervisord", "-c", str(scratch / "supervisord.conf")]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid


def _start_s6(scratch: Path, services: dict[str, list[str]]) -> int:
    for name, command in services.items():
        (scratch / "s6" / name).mkdir(parents=True)
        (scratch / "s6" / name / "run").write_text(f"#!/bin/sh\nexec {' '.join(command)}\n")
        (scratch / "s6" / name / "run").chmod(0o755)
    return subprocess.Popen(["s6-svscan", str(scratch / "s6")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid


def _terminate(scratch: Path, pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    os.waitpid(pid, 0)
    shutil.rmtree(scratch / "s6", ignore_errors=True)


SUPERVISORS = (
    Supervisor("tinyvisor", _start_tinyvisor, _stop_tinyvisor, BACKOFF),
    Supervisor("supervisord", _start_supervisord, _terminate, 0.0),
    Supervisor("s6-svscan", _start_s6, _terminate, S6_PAUSE),
)


def measure_side_by_side(scratch: Path) -> list[Found]:
    """`SIDE_BY_SIDE` services, and one that crashes `RESTARTS` times.

    Returns:
        for each supervisor that is installed: ``name``; ``up``: seconds until all run; ``memory``: bytes of all its processes;
        ``restart``: the median of the seconds from a crash to running again, less its pause.
    """
    found = []
    for number, supervisor in enumerate(SUPERVISORS):
        if supervisor.name != "tinyvisor" and shutil.which(supervisor.name) is None:
            continue
        found.append(
            {"name": supervisor.name} | _sleep_under(supervisor, scratch, 1_000_100 + number) | _crash_under(supervisor, scratch)
        )
    return found


def _sleep_under(supervisor: Supervisor, scratch: Path, number: int) -> Found:
    begin = time.perf_counter()
    pid = supervisor.start(scratch, {f"s{service}": ["sleep", str(number)] for service in range(SIDE_BY_SIDE)})
    try:
        while _sleepers(number) < SIDE_BY_SIDE:
            if time.perf_counter() - begin > LIMIT:
                raise TimeoutError(f"{supervisor.name} does not start {SIDE_BY_SIDE} services")
            time.sleep(POLL)
        return {"up": time.perf_counter() - begin, "memory": sum(map(pss, _family(pid)))}
    finally:
        supervisor.stop(scratch, pid)


def _crash_under(supervisor: Supervisor, scratch: Path) -> Found:
    stamps, program = scratch / "stamps", scratch / "stamp"
    stamps.write_bytes(b"")
    stamps.chmod(0o666)
    toolchain = find_compiler()
    if toolchain is None:
        raise RuntimeError("needs a C compiler; apt install gcc musl-tools")
    source = Path(__file__).with_name("stamp.c")
    subprocess.run([*toolchain.command, "-O2", *toolchain.static, str(source), "-o", str(program)], check=True, timeout=LIMIT)
    pid, begin = supervisor.start(scratch, {"crasher": [str(program), str(stamps)]}), time.perf_counter()
    try:
        while stamps.stat().st_size < 16 * (RESTARTS + 1):
            if time.perf_counter() - begin > LIMIT:
                raise TimeoutError(f"{supervisor.name} does not restart what crashes")
            time.sleep(POLL)
    finally:
        supervisor.stop(scratch, pid)
    times = list(struct.iter_unpack("qq", stamps.read_bytes()))
    gaps = [(after[0] - before[1]) / 1e9 - supervisor.pause for before, after in pairwise(times)]
    return {"restart": statistics.median(gaps)}


def print_side_by_side(rows: list[Found]) -> None:
    """The table of `measure_side_by_side`."""
    print(f"\n{f'{SIDE_BY_SIDE} services':<16}{'up, s':>10}{'memory, MB':>14}{'restart, ms over its pause':>30}")
    for row in rows:
        print(f"{row['name']:<16}{row['up']:>10.2f}{row['memory'] / 1e6:>14.1f}{row['restart'] * 1e3:>30.2f}")


# --- All of it. ---


async def measure_supervision(count: int, scratch: Path) -> Found:
    """All of it, each told as soon as it is there."""
    found: Found = {"services": await measure_services(count, scratch)}
    print_services(found["services"])
    found["side_by_side"] = measure_side_by_side(scratch)
    print_side_by_side(found["side_by_side"])
    found["logs"] = measure_logs(scratch)
    print_logs(found["logs"])
    return found
