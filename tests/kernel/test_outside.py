"""A supervisor seen from outside, on the real kernel: systemd's socket, metrics on a port, a group's socket, PID 1."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.kernel.command import BOUND, Running, arguments, environment
from tests.kernel.test_daemon import WAIT, Directory, wait_gone
from tinyvisor.places import run_directory, shared_directory

pytestmark = pytest.mark.kernel
GROUP = 54321
ASKING = """\
import os, socket, sys
os.setgroups([int(sys.argv[1])]); os.setgid(12345); os.setuid(12345)
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[2])
s.send(b"GET /v1/project HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
print(s.makefile().read())
"""


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    found = Directory(tmp_path)
    yield found
    found.run("down", "-p", found.name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_in_front_below_systemd(directory: Directory, tmp_path: Path) -> None:
    directory.write("web", WAIT)
    port = free_port()
    words: list[str | Path] = [
        "up",
        "--linger",
        "-p",
        directory.name,
        "--metrics-port",
        str(port),
        "--log-dir",
        tmp_path / "logs",
    ]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.settimeout(BOUND)
        told = ""
        given = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000000"}
        with Running([*words, tmp_path / "configs"], env=given) as running:
            while "READY=1" not in told:
                told += ear.recv(4096).decode() + "\n"
            assert "STATUS=1 running" in told
            assert "WATCHDOG=1" in told
            assert directory.ps()["web"]["state"] == "running", "commands are taken in front, too"
            assert directory.run("stop", "web").returncode == 0
            assert directory.run("start", "web").returncode == 0
            assert directory.run("wait", "--until", "running").returncode == 0
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=BOUND) as answer:
                text = answer.read().decode()
            labels = f'{{container="web",project="{directory.name}",service="web"'
            assert f'tinyvisor_service_state{labels},state="running"}} 1.0' in text
            assert f"tinyvisor_service_restarts_total{labels}}} 1.0" in text
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/services", timeout=BOUND)
            running.signal(signal.SIGTERM)
            while "STOPPING=1" not in told:
                told += ear.recv(4096).decode() + "\n"
            assert running.end() == 0
    assert not list(run_directory().glob(f"{directory.name}.*"))


def test_daemon_with_a_group_below_systemd(directory: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group's members may ask, at their socket and nowhere else, and nobody else there; SIGTERM is told as it is obeyed."""
    directory.write("web", WAIT)
    words = ["up", "-d", "-p", directory.name, "--log-dir", str(tmp_path / "logs"), "--socket-group"]
    unknown = directory.run(*words, "no-such-group")
    assert unknown.returncode == 2
    assert 'a group "no-such-group"' in unknown.stderr
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.settimeout(BOUND)
        with monkeypatch.context() as patch:
            patch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
            ended = directory.run(*words, str(GROUP))
        assert ended.returncode == 0, ended.stderr
        there = shared_directory(str(GROUP))
        path = there / f"{directory.name}.sock"
        assert (there.stat().st_mode & 0o777, there.stat().st_gid) == (0o750, GROUP)
        for group, place, answer in ((GROUP, path, "200"), (GROUP + 1, path, ""), (GROUP, run_directory() / path.name, "")):
            asked = [sys.executable, "-c", ASKING, str(group), str(place)]
            asking = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=BOUND)
            assert asking.stdout.startswith(f"HTTP/1.1 {answer}") if answer else "PermissionError" in asking.stderr
        daemon = directory.daemon()
        os.kill(daemon, signal.SIGTERM)
        told = ""
        while "STOPPING=1" not in told:
            told += ear.recv(4096).decode()
        assert "READY=1" in told
        wait_gone(daemon)
    assert list(there.iterdir()) == []
    other = ["run", "true"]
    for live in (["--live"], ["--no-live"]):
        assert directory.run(*words, str(GROUP), *live).returncode == 0
        daemon = directory.daemon()
        os.kill(daemon, signal.SIGKILL)
        wait_gone(daemon)
        assert len(list(there.iterdir())) == 2, "nobody else knows of them"
        if "--live" in live:
            directory.run(*other)
            assert len(list(there.iterdir())) == 2, "its containers run on"
            assert directory.up().returncode == 0, "the next one, for no group"
            assert list(there.iterdir()) == []
            directory.run("down", "-p", directory.name)
    while (run_directory() / f"{directory.name}.lock").exists():  # its launcher's to remove
        time.sleep(0.005)
    directory.run(*other)
    assert list(there.iterdir()) == []
    there.rmdir()


def test_as_pid_1_orphans_are_reaped_and_a_signal_stops(directory: Directory, tmp_path: Path) -> None:
    directory.write("web", WAIT)
    words = arguments("up", "-p", directory.name, "--log-dir", tmp_path / "logs", tmp_path / "configs")
    before = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    with subprocess.Popen([*before, *words], stdout=subprocess.PIPE, env=environment(), text=True) as running:
        try:
            assert running.stdout is not None
            while "ready" not in running.stdout.readline():
                pass
            first = children(running.pid)[0]
            assert Path(f"/proc/{first}/comm").read_text().startswith("tinyvisor-")
            supervisor = children(first)
            assert len(supervisor) == 1
            enter = ["nsenter", "--target", str(first), "--pid", "--mount", "sh", "-c", "(exec sleep 0.01) & exit 0"]
            subprocess.run(enter, check=True, stdin=subprocess.DEVNULL)
            deadline = time.monotonic() + BOUND
            while children(first) != supervisor:  # the orphan: first alive, then dead, then gone
                assert time.monotonic() < deadline
                time.sleep(0.005)
            os.kill(first, signal.SIGTERM)
            rest = running.stdout.read()
            assert "web stopped (exit 0)" in rest
            assert running.wait(BOUND) == 0
        finally:
            with suppress(ProcessLookupError):
                running.kill()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
