"""Random commands, crashes, kills and reloads at once, on the real kernel; at the end nothing is left and nothing was lost.

TINYVISOR_CHAOS=N takes N times as many steps as a run in CI does, TINYVISOR_CHAOS_SEED repeats one.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.kernel.helpers import BOUND, ON_TRIO
from tinyvisor.errors import SpecError, TinyvisorError
from tinyvisor.runtime import open_runtime
from tinyvisor.spec import (
    Backoff,
    Condition,
    Dependency,
    Healthcheck,
    Hook,
    Http,
    Logging,
    Project,
    RestartPolicy,
    Secret,
    Service,
    Spec,
    Tcp,
)
from tinyvisor.state import Event, ServiceExited, ServiceStarted
from tinyvisor.supervisor import Supervisor

pytestmark = [pytest.mark.kernel, pytest.mark.anyio, ON_TRIO]

LENGTH = int(os.environ.get("TINYVISOR_CHAOS", "1"))
SEED = int(os.environ.get("TINYVISOR_CHAOS_SEED", time.time_ns() % 1_000_000))
STEPS = 60 * LENGTH

SCRIPTS = (
    "exit 0",
    "exit 3",
    "sleep 0.05; kill -9 $$",
    "trap 'exit 0' TERM; sleep 1000 & wait",
    "trap '' TERM; while true; do sleep 0.1; done",  # does not want to end
    "setsid sleep 1000 & setsid sleep 1000 & exec sleep 1000",  # leaves others behind
    "while true; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done",  # floods
    ":(){ :|:& };:",
    "printf '\\n' >&9; exec sleep 1000",
)
READY: tuple[dict[str, Any], ...] = (
    {},
    {"ready_fd": 9},
    {"ready_notify": True},
    {"ready_log": "xxx"},
    {"ready_fd": 9, "start_timeout": 0.05},
)
WHAT = ("start", "start", "stop", "restart", "kill", "signal", "reset_failed", "scale", "reload", "murder", "exec")
NAMES = ("a", "b", "c", "d", "e")


def service(choose: random.Random, name: str, others: list[Service], key: Path) -> Service:
    policy = RestartPolicy(
        condition=choose.choice(["no", "always", "on-failure"]),
        backoff=Backoff(initial=0.02, max=0.1),
        max_attempts=choose.choice([None, 3]),
    )
    needs = {}
    for other in others:
        if choose.random() < 0.4:
            condition: Condition = "service_healthy" if other.tells_health else "service_started"
            needs[other.name] = Dependency(condition=condition, required=choose.random() < 0.5, restart=choose.random() < 0.3)
    check: dict[str, Any] = choose.choice([{}, {"test": ("true",)}, {"tcp": Tcp(port=1)}, {"http": Http(port=1)}])
    files = Logging(max_size=20_000, compress=True, max_files=3), Logging(driver="json-file", max_size=9000)
    logging = choose.choice([*files, Logging(driver="syslog")])
    return Service(
        spec=Spec(
            command=("bash", "-c", choose.choice(SCRIPTS)),
            name=name,
            userns_mode=choose.choice(["auto", "host"]),
            pids_limit=20,
            stop_grace_period=0.1,
            secrets=choose.choice([(), (Secret(target="key", file=key),)]),
        ),
        restart=policy,
        depends_on=needs,
        healthcheck=Healthcheck(**check, interval=0.05, timeout=0.2, retries=2) if check else None,
        on_unhealthy=choose.choice(["none", "restart", "stop"]) if check else "none",
        post_start=choose.choice([(), (Hook(command=("true",)),)]),
        pre_stop=choose.choice([(), (Hook(command=("sleep", "0.01")),)]),
        logging=logging,
        watchdog=choose.choice([None, None, 0.2]),
        **choose.choice(READY),
    )


def project(choose: random.Random, key: Path) -> Project:
    found: list[Service] = []
    for name in NAMES:
        if choose.random() < 0.8 or not found:
            found.append(service(choose, name, found, key))
    return Project(name="chaos", services={item.name: item for item in found})


async def step(choose: random.Random, supervisor: Supervisor, key: Path) -> None:
    names = [choose.choice(NAMES)]
    what = choose.choice(WHAT)
    try:
        match what:
            case "reload":
                supervisor.reload(project(choose, key))
            case "scale":
                supervisor.scale(names[0], choose.randrange(3))
            case "signal":
                supervisor.kill(names, choose.choice([1, 15, 19, 18]))
            case "murder":  # behind everybody's back
                for container in supervisor.containers(names).values():
                    if container is not None and container.pid:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(container.pid, signal.SIGKILL)
            case "exec":
                for container in supervisor.containers(names).values():
                    if container is not None:
                        await container.exec(("true",), timeout=0.2)
            case _:
                getattr(supervisor, what)(names)
    except SpecError:
        pass  # there is none of that name now, or its scale can't be that
    except TinyvisorError:
        assert what == "exec"  # it has just ended


async def test_random_commands_crashes_kills_and_reloads_leave_nothing(tmp_path: Path) -> None:
    choose = random.Random(SEED)
    key = tmp_path / "key"
    key.write_text("secret")
    events: list[Event] = []
    most = 0
    with trio.fail_after(BOUND * LENGTH):
        async with open_runtime(name=f"chaos-{os.getpid()}") as runtime, trio.open_nursery() as nursery:
            supervisor = Supervisor(
                runtime,
                project(choose, key),
                log_dir=tmp_path / "logs",
                on_event=events.append,
                linger=True,
            )
            await nursery.start(supervisor.run)
            for _ in range(STEPS):
                await step(choose, supervisor, key)
                most = max(most, len(runtime.containers))
                await trio.sleep(choose.choice([0, 0, 0.01, 0.05]))
            supervisor.request_stop()
            await supervisor.wait()
            assert not runtime.containers, f"seed {SEED}"
    assert most > 1, f"seed {SEED}"
    started = [event for event in events if isinstance(event, ServiceStarted)]
    exited = [event for event in events if isinstance(event, ServiceExited)]
    assert len(started) == len(exited) > 5, f"seed {SEED}"
    assert all(event.exit.status not in ("sandbox_error", "unknown") for event in exited), f"seed {SEED}"
    assert {summary.state for summary in supervisor.summaries()} <= {"exited", "failed", "stopped"}, f"seed {SEED}"
