"""What systemd is told, and the units."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.bench import Bench, bench, service
from tests.fake_runtime import Script
from tests.kernel.command import tinyvisor
from tinyvisor.cli.systemd import Notifier, keep_telling, unit
from tinyvisor.control import Feed
from tinyvisor.errors import TinyvisorError
from tinyvisor.spec import RestartPolicy, Schedule

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


class Ear:
    """systemd's end."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)
        self.words: list[str] = []

    def heard(self) -> list[str]:
        """All so far."""
        try:
            while True:
                self.words += self.socket.recv(4096).decode().split("\n")
        except BlockingIOError:
            return self.words


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[Ear]:
    found = Ear(str(tmp_path / "notify"))
    yield found
    found.socket.close()


def environ(tmp_path: Path, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": str(tmp_path / "notify"), "HOME": "/"} | more


def test_it_is_for_us_alone(tmp_path: Path, ear: Ear) -> None:
    given = environ(tmp_path, WATCHDOG_USEC="3000000", WATCHDOG_PID=str(os.getpid()))
    notifier = Notifier(given)
    assert given == {"HOME": "/"}
    assert notifier.watchdog == 1.5
    notifier.tell("READY=1", "STATUS=fine")
    assert ear.heard() == ["READY=1", "STATUS=fine"]
    assert Notifier(environ(tmp_path, WATCHDOG_USEC="3000000", WATCHDOG_PID="1")).watchdog is None
    assert Notifier(environ(tmp_path, WATCHDOG_USEC="nonsense")).watchdog is None


def test_nobody_who_listens_is_no_failure(tmp_path: Path) -> None:
    assert not Notifier({})
    assert not Notifier({"NOTIFY_SOCKET": "vsock:1:2"})
    Notifier({}).tell("READY=1")
    Notifier(environ(tmp_path)).tell("READY=1")


def test_reader_that_is_stuck_holds_nothing_up(tmp_path: Path, ear: Ear) -> None:
    notifier = Notifier(environ(tmp_path))
    for _ in range(5000):  # more than a socket's buffer holds
        notifier.tell("WATCHDOG=1")
    assert 0 < len(ear.heard()) < 5000


def test_abstract_address() -> None:
    ear = Ear(f"\0tinyvisor-{os.getpid()}")
    Notifier({"NOTIFY_SOCKET": f"@tinyvisor-{os.getpid()}"}).tell("READY=1")
    assert ear.heard() == ["READY=1"]
    ear.socket.close()


def listened(tmp_path: Path, *services: Any, **options: Any) -> tuple[Bench, Notifier, Feed]:
    feed = Feed()
    return bench(*services, on_event=feed.event, **options), Notifier(environ(tmp_path, WATCHDOG_USEC="20000000")), feed


async def test_ready_status_watchdog_stopping(tmp_path: Path, ear: Ear) -> None:
    script = Script(launch_seconds=3, stop_seconds=7)
    b, notifier, feed = listened(tmp_path, service("a"), service("b"), scripts={"a": [script]})
    async with b.live() as supervisor, trio.open_nursery() as nursery:
        nursery.start_soon(keep_telling, notifier, supervisor, feed)
        await trio.sleep(2)
        assert "READY=1" not in ear.heard()
        await trio.sleep(2)
        assert ear.heard()[-1] == "STATUS=2 running"
        assert ear.words.count("READY=1") == 1
        await trio.sleep(21)
        assert ear.heard().count("WATCHDOG=1") == 3
        assert "STOPPING=1" not in ear.words
        supervisor.request_stop()
        await trio.sleep(6)
        told = ear.heard()
        assert (
            told[told.index("STOPPING=1") + 1] == "STATUS=stopping: 1 stopping, 1 stopped"
            or "STATUS=stopping: 2 stopping" in told
        )
        assert told.count("EXTEND_TIMEOUT_USEC=15000000") == 2, "the stop takes its time, and is not stuck"
        nursery.cancel_scope.cancel()


async def test_what_waits_for_its_time_keeps_nobody_waiting(tmp_path: Path, ear: Ear) -> None:
    nightly = service("nightly", RestartPolicy(schedule=Schedule(interval=1000.0)))
    b, notifier, feed = listened(tmp_path, nightly, service("a"), scripts={"nightly": [Script(seconds=0)]})
    async with b.live() as supervisor, trio.open_nursery() as nursery:
        nursery.start_soon(keep_telling, notifier, supervisor, feed)
        await trio.sleep(1)
        assert {"READY=1", "STATUS=1 scheduled, 1 running"} <= set(ear.heard()), ear.words
        nursery.cancel_scope.cancel()


# ---- units ----


@pytest.mark.parametrize("user", [False, True])
def test_unit_is_one_that_systemd_takes(tmp_path: Path, user: bool) -> None:
    (tmp_path / "a project").mkdir()
    ended = tinyvisor("systemd", *(["--user"] if user else []), "-p", "web", tmp_path / "a project")
    assert ended.returncode == 0
    assert f'up --linger -p web -- "{tmp_path}/a project"\n' in ended.stdout
    for line in ("Type=notify", "Delegate=yes", "WatchdogSec=30", f"WantedBy={'default' if user else 'multi-user'}.target"):
        assert f"\n{line}\n" in ended.stdout
    if not user and shutil.which("systemd-analyze"):
        file = tmp_path / "web.service"
        file.write_text(ended.stdout)
        check = subprocess.run(["systemd-analyze", "verify", "--man=no", file], capture_output=True, text=True, check=False)
        assert "web.service:" not in check.stderr, check.stderr


def test_names_of_paths_stay_what_they_are() -> None:
    text = unit(["/x"], "web", ['/a b/"c"/100%/$HOME'], user=False)
    assert r'-- "/a b/\"c\"/100%%/$$HOME"' in text
    with pytest.raises(TinyvisorError, match="unit"):
        unit(["/x"], "web", ["/a\nExecStop=rm"], user=False)


def test_name_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "a project").mkdir()
    ended = tinyvisor("systemd", tmp_path / "a project")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "a project" in ended.stderr


def test_template() -> None:
    ended = tinyvisor("systemd", "--template")
    assert "up --linger -p %i -- %E/tinyvisor/%i\n" in ended.stdout
    assert tinyvisor("systemd", "--template", "-p", "x").returncode == 2
