"""The walk-through that a container has to pass, typed into a shell step by step, with three kinds of root: the host view,
busybox and Debian."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.kernel.helpers import BOUND, busybox_root, cgroup_of, cgroups, read_until, shell, until, wait_for_the_end_of, workload
from tinyvisor.runtime import PIPE, STDOUT, Container, Runtime
from tinyvisor.spec import Spec, Volume

pytestmark = [pytest.mark.kernel, pytest.mark.anyio]

ONLY_INSIDE = "only-inside"


@pytest.fixture(scope="session")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Debian root of a few packages, as mmdebstrap unpacks them."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("needs mmdebstrap: apt install mmdebstrap")
    root = tmp_path_factory.mktemp("debian") / "root"
    smaller = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "zoneinfo", "info")]
    options = [*smaller, '--aptopt=Acquire::Retries "0"', '--aptopt=Acquire::Check-Valid-Until "false"']
    source = "deb http://deb.debian.org/debian stable main"
    packages = "--include=bash,dash,coreutils,grep,hostname,mount,procps"
    command = ["mmdebstrap", "--mode=root", "--variant=extract", packages, *options, "stable", str(root), source]
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"mmdebstrap can't make a Debian root here: {str(error.stderr)[-300:]}")
    return root


@pytest.fixture(params=["host view", "busybox", "debian"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    if request.param == "host view":
        return None
    made: Path = request.getfixturevalue("debian") if request.param == "debian" else busybox_root(tmp_path / "root")
    write_command(made / "bin")
    return made


def write_command(directory: Path) -> None:
    command = directory / ONLY_INSIDE
    command.write_text("#!/bin/sh\necho found $0\n")
    command.chmod(0o755)


def shell_of(root: Path | None) -> str:
    return "bash" if root is None or (root / "bin/bash").exists() else "sh"


class Typist:
    """Types into a container's shell and reads what it answers."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.lines = 0

    async def __call__(self, line: str) -> str:
        assert self.container.stdin is not None
        self.lines += 1
        end = f"--- {self.lines}\n"
        await self.container.stdin.send(f"{line}\necho '--- {self.lines}'\n".encode())
        return (await read_until(self.container.stdout, end)).removesuffix(end)


@contextlib.asynccontextmanager
async def run_bash(runtime: Runtime, root: Path | None, **spec: Any) -> AsyncIterator[Typist]:
    whole = Spec(command=(shell_of(root),), rootfs=root, stdin_open=True, **{"name": "walker", **spec})
    async with runtime.start(whole, stdin=PIPE, stdout=PIPE, stderr=STDOUT) as container:
        yield Typist(container)


async def test_run_bash_shows_only_its_own_processes_pid_1_first(shared: Runtime, root: Path | None) -> None:
    async with run_bash(shared, root) as typing:
        processes = [int(line) for line in (await typing("ls /proc")).split() if line.isdigit()]
        assert sorted(processes)[:2] == [1, 2]
        assert len(processes) == 3, "init, the shell, and ls"
        assert await typing("cat /proc/1/comm") == "tinyvisor-init\n"
        assert (await typing("cat /proc/1/cmdline")).rstrip("\0") == "tinyvisor-init: walker"
        assert await typing("echo $$") == "2\n"


async def test_hostname_inside_leaves_the_hosts_alone(shared: Runtime, root: Path | None) -> None:
    before = os.uname().nodename
    async with run_bash(shared, root, capabilities={"SYS_ADMIN"}) as typing:
        assert await typing("hostname") == "walker\n", "set automatically"
        assert await typing("hostname changed; hostname") == "changed\n"
        assert os.uname().nodename == before
    assert os.uname().nodename == before
    async with run_bash(shared, root) as typing:
        assert await typing("hostname changed 2> /dev/null || hostname") == "walker\n", "without the capability"


async def test_inside_a_given_root_ls_shows_that_root(shared: Runtime, root: Path | None) -> None:
    async with run_bash(shared, root) as typing:
        seen = (await typing("ls /")).split()
        assert "walker-was-here" not in seen
        assert seen == sorted(os.listdir(root or f"/proc/{typing.container.pid}/root"))


async def test_cd_upwards_stays(shared: Runtime, root: Path | None) -> None:
    async with run_bash(shared, root) as typing:
        before = await typing("ls -di /")
        assert await typing("cd ../../..; pwd; cd /../../proc/../..; pwd; ls -di .") == "/\n/\n" + before.replace("/", ".")


async def test_a_command_that_exists_only_inside_is_found_by_the_inside_path(
    shared: Runtime, root: Path | None, tmp_path: Path
) -> None:
    assert shutil.which(ONLY_INSIDE) is None
    spec = Spec(command=(ONLY_INSIDE,), rootfs=root)
    if root is None:  # it has the host's commands: one is added
        write_command(tmp_path)
        spec = spec.with_(volumes=(Volume(tmp_path, "/opt/bin"),), environment={"PATH": "/nowhere:/opt/bin:/bin"})
    async with shared.start(spec, stdout=PIPE) as container:
        found = (await read_until(container.stdout, "\n")).split()
        assert found[0] == "found"
        assert found[1] in {f"{directory}/{ONLY_INSIDE}" for directory in ("/bin", "/usr/bin", "/opt/bin")}
        assert (await container.wait()).status == "ok"


async def test_from_outside_proc_pid_root_points_to_the_root(shared: Runtime, root: Path | None) -> None:
    async with run_bash(shared, root) as typing:
        await typing("echo mark > /tmp/walker-was-here")
        for pid in (typing.container.pid, workload(typing.container)):
            outside = Path(f"/proc/{pid}/root")
            assert (outside / "tmp/walker-was-here").read_text() == "mark\n"
            assert await typing("ls -di / | grep -o '[0-9]*'") == f"{outside.stat().st_ino}\n"
    assert root is None or not (root / "tmp/walker-was-here").exists()


async def test_mount_inside_shows_its_own_proc_and_the_hosts_table_stays_the_same(shared: Runtime, root: Path | None) -> None:
    def table() -> str:
        return Path("/proc/self/mountinfo").read_text()

    before = table()
    async with run_bash(shared, root, capabilities={"SYS_ADMIN"}) as typing:
        show = "mount" if "no mount" not in await typing("command -v mount || echo no mount") else "cat /proc/mounts"
        lines = (await typing(show)).splitlines()
        assert len([line for line in lines if line.startswith("proc ") and "/proc " in line and "rw" in line]) == 1
        assert os.stat("/proc").st_dev != os.stat(f"/proc/{typing.container.pid}/root/proc").st_dev
        if show == "mount":
            await typing("mount -t tmpfs walker /tmp && echo hidden > /tmp/x")
            assert "walker" in await typing("mount")
        assert table() == before
        assert not Path("/tmp/x").exists()
    assert table() == before


async def test_a_fork_bomb_is_held_at_20_processes_and_bothers_nobody(shared: Runtime, root: Path | None) -> None:
    bomb = (shell_of(root), "-c", "(a() { a | a & }; a) & read line")
    spec = Spec(command=bomb, rootfs=root, pids_limit=20, mem_limit=256 << 20, name="bomb")
    async with shared.start(spec, stdin=PIPE, stderr=PIPE) as container:
        complaint = "Resource temporarily unavailable"
        directory = cgroup_of(shared, "pids", "bomb")
        current: list[int] = []

        async def watch() -> None:
            while True:
                current.append(int((directory / "pids.current").read_text()))
                await anyio.sleep(0.001)

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            assert complaint in await read_until(container.stderr, complaint)
            for number in range(3):
                started = time.monotonic()
                exit, out, _ = await shell(shared, "echo alive", name=f"other{number}", rootfs=root)
                assert (exit.status, out) == ("ok", "alive\n")
                assert time.monotonic() - started < BOUND / 4
            await until(lambda: len(current) >= 100)
            group.cancel_scope.cancel()
        assert max(current) <= 20
        assert not (directory / "pids.peak").exists() or int((directory / "pids.peak").read_text()) == 20
        pids = [container.pid, *(int(word.partition("[")[2].rstrip("]")) for word in container.processes())]
        with anyio.fail_after(BOUND):
            exit = await container.stop(grace=0)
    assert exit.status == "stopped"
    assert exit.pids_limit_hits > 0
    assert (directory.exists(), cgroups(shared)) == (False, [])
    await wait_for_the_end_of(*pids)
