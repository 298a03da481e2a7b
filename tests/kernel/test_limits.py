"""Limits hold, are counted, and leave nothing: the cgroup files are asked."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.kernel.helpers import BOUND, cgroup_of, cgroups, read_until, run, shell, until, wait_for_the_end_of, waiting, workload
from tinyvisor.errors import HostError, LaunchError, SpecError
from tinyvisor.places import run_directory
from tinyvisor.runtime import PIPE, Container, Runtime, engine, open_runtime
from tinyvisor.runtime.cgroup import Layout, remove_cgroup
from tinyvisor.runtime.host import probe
from tinyvisor.spec import Blkio, Spec

pytestmark = [pytest.mark.kernel, pytest.mark.anyio]

GUARD = 256 << 20
"""Bytes: around everything that takes memory, whatever it is about."""

HOG = "data = []\nwhile True: data.append(b'x' * (1 << 20))"


# ---- processes ----


@contextlib.asynccontextmanager
async def bomb(runtime: Runtime, limit: int, name: str = "bomb") -> AsyncIterator[Container]:
    """The classic, in bash; its complaints can be read from stderr. The workload itself forks but once and waits."""
    script = "(a() { a | a & }; a) & read line"
    spec = Spec(command=("bash", "-c", script), name=name, pids_limit=limit, mem_limit=GUARD)
    async with runtime.start(spec, stdin=PIPE, stderr=PIPE) as container:
        yield container


async def test_pids_limit_holds_a_fork_bomb(shared: Runtime) -> None:
    async with bomb(shared, 20) as container, anyio.create_task_group() as group:
        directory = cgroup_of(shared, "pids", "bomb")
        peak = directory / "pids.peak"
        samples: list[int] = []

        async def sample() -> None:
            with contextlib.suppress(FileNotFoundError):  # it has been stopped, and we are not cancelled yet
                while True:
                    samples.append(int((directory / "pids.current").read_text()))
                    await anyio.sleep(0.001)

        group.start_soon(sample)
        await read_until(container.stderr, "Resource temporarily unavailable")
        assert (directory / "pids.max").read_text() == "20\n"
        for number in range(5):  # its neighbours and we go on
            with anyio.fail_after(BOUND):
                assert (await shell(shared, "exit 7", name=f"neighbour{number}"))[0].exit_code == 7
        await until(lambda: len(samples) >= 100 and (not peak.exists() or peak.read_text() == "20\n"))
        pids = [int(word.split("[")[1].rstrip("]")) for word in container.processes()]
        assert pids
        group.cancel_scope.cancel()
        with anyio.fail_after(BOUND):
            exit = await container.stop(grace=0)
        assert max(samples) <= 20
        assert (exit.status, exit.pids_peak in (20, None), exit.pids_limit_hits > 0) == ("stopped", True, True)
        assert exit.limits_enforced == ("pids_limit", "mem_limit")
        assert not directory.exists()
        await wait_for_the_end_of(*pids)


async def test_pids_limit_counts_the_containers_own_processes(shared: Runtime) -> None:
    exit, out, err = await shell(shared, "echo alone", pids_limit=1)
    assert (exit.status, out, err, exit.pids_peak in (1, None)) == ("ok", "alone\n", "", True)
    exit, _, err = await shell(shared, "(true); echo no", pids_limit=1)
    assert exit.status == "pids_limit", exit
    assert exit.pids_limit_hits >= 1
    assert "fork" in err


# ---- memory ----


async def test_mem_limit(shared: Runtime) -> None:
    exit, _, _ = await run(shared, "python3", "-c", HOG, mem_limit=32 << 20)
    assert (exit.status, exit.oom_killed, exit.signal, exit.limits_enforced) == (
        "memory_limit", True, signal.SIGKILL, ("mem_limit",)
    )  # fmt: skip
    assert exit.memory_peak is None or (30 << 20) < exit.memory_peak <= 32 << 20


async def test_an_oom_killed_child_does_not_fail_its_parent(shared: Runtime) -> None:
    script = f'python3 -c "{HOG}"; echo $?; exit 0'
    exit, out, _ = await shell(shared, script, mem_limit=32 << 20)
    assert (exit.status, exit.exit_code, exit.oom_killed, out.split()[-1]) == ("ok", 0, True, "137")
    exit, _, _ = await shell(shared, script.replace("exit 0", "exit 3"), mem_limit=32 << 20)
    assert (exit.status, exit.exit_code, exit.oom_killed) == ("memory_limit", 3, True)


async def test_mem_limit_includes_swap(shared: Runtime) -> None:
    async with waiting(shared, mem_limit=32 << 20):
        directory = cgroup_of(shared, "memory")
        found = {file: (directory / file).read_text().strip() for file in MEMORY if (directory / file).exists()}
        assert found == {file: MEMORY[file] for file in found}
        assert found


MEMORY = {
    "memory.limit_in_bytes": str(32 << 20), "memory.memsw.limit_in_bytes": str(32 << 20),
    "memory.max": str(32 << 20), "memory.swap.max": "0",
}  # fmt: skip


async def test_tmpfs_counts_as_memory(shared: Runtime) -> None:
    exit, _, _ = await shell(shared, "head -c 64M /dev/zero > /tmp/big", mem_limit=16 << 20)
    assert exit.oom_killed
    assert exit.status == "memory_limit"


async def test_kernel_memory_counts_as_memory(shared: Runtime) -> None:
    """Of directories without contents, whose inodes are all that they take."""
    directories = "import os\nfor n in range(60000): os.mkdir(f'/tmp/{n}')\n"
    exit, _, err = await run(shared, "python3", "-c", directories, mem_limit=24 << 20)
    assert exit.status == "memory_limit" or "Cannot allocate memory" in err, (exit, err)


# ---- cpu ----


def throttled(directory: Path) -> int:
    text = (directory / "cpu.stat").read_text()
    return int(dict(line.split() for line in text.splitlines())["nr_throttled"])


async def test_cpus(shared: Runtime) -> None:
    # So few that also on a machine that is busy with other things it gets at them.
    async with waiting(shared, script="echo ready; while :; do :; done", cpus=0.05) as container:
        directory = cgroup_of(shared, "cpu")
        files = {"cpu.max": "5000 100000", "cpu.cfs_quota_us": "5000", "cpu.cfs_period_us": "100000"}
        found = {file: (directory / file).read_text().strip() for file in files if (directory / file).exists()}
        assert found
        assert found == {file: files[file] for file in found}
        with anyio.fail_after(BOUND):
            while throttled(directory) < 3:  # noqa: ASYNC110 - nobody tells us
                await anyio.sleep(0.01)
            exit = await container.stop(grace=0)
    assert exit.limits_enforced == ("cpus",)
    assert exit.cpu_user + exit.cpu_system > 0  # how it is split is sampled by ticks, the sum is exact


async def test_cpuset(shared: Runtime) -> None:
    ours = os.sched_getaffinity(0)
    chosen = {max(ours)}
    async with waiting(shared, cpuset=chosen) as container:
        assert os.sched_getaffinity(workload(container)) == chosen
        assert (await container.stop()).limits_enforced == ("cpuset",)
    async with waiting(shared) as container:
        assert os.sched_getaffinity(workload(container)) == ours
    with pytest.raises(LaunchError, match="run on CPUs 8000: Invalid argument"):
        await shell(shared, "exit 0", cpuset={8000})


# ---- disks ----


@pytest.fixture
def disk() -> str:
    for line in Path("/proc/partitions").read_text().splitlines()[2:]:
        name = line.split()[3]
        if Path(f"/dev/{name}").is_block_device() and Path(f"/sys/block/{name}").exists():
            return f"/dev/{name}"
    pytest.skip("needs a disk")


async def test_blkio(shared: Runtime, disk: str) -> None:
    number = os.stat(disk).st_rdev
    device = f"{os.major(number)}:{os.minor(number)}"
    async with waiting(shared, blkio=Blkio(read_bps=((disk, 1 << 20),), write_iops=((disk, 100),))):
        directory = cgroup_of(shared, "io")
        if (directory / "io.max").exists():
            assert (directory / "io.max").read_text() == f"{device} rbps={1 << 20} wbps=max riops=max wiops=100\n"
        else:
            assert (directory / "blkio.throttle.read_bps_device").read_text() == f"{device} {1 << 20}\n"
            assert (directory / "blkio.throttle.write_iops_device").read_text() == f"{device} 100\n"


@pytest.mark.parametrize("path, problem", [("/dev/null", "is not a block device"), ("/dev/missing", "No such file")])
async def test_blkio_of_what_is_no_disk(shared: Runtime, path: str, problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        await shell(shared, "exit 0", blkio=Blkio(read_bps=((path, 1),)))


# ---- a controller that is missing ----

LIMITS: dict[str, dict[str, Any]] = {
    "pids": {"pids_limit": 20},
    "memory": {"mem_limit": GUARD},
    "cpu": {"cpus": 0.5},
    "io": {"blkio": Blkio(weight=100)},
}


def not_there(layout: Layout, name: str) -> Layout:
    return replace(layout.without([name], ""), missing=layout.missing)


def not_writable(layout: Layout, name: str) -> Layout:
    return layout.without([name], "Read-only file system")


@pytest.mark.parametrize("how", [not_there, not_writable])
@pytest.mark.parametrize("name", LIMITS)
async def test_a_missing_controller_is_named(anyio_backend: str, monkeypatch: pytest.MonkeyPatch, name: str, how: Any) -> None:
    host = probe()
    monkeypatch.setattr(engine, "probe", lambda: replace(host, layout=how(host.layout, name)))
    async with open_runtime() as runtime:
        with pytest.raises(HostError, match=f"cgroup controller (blk)?{name}") as caught:
            await shell(runtime, "exit 0", **LIMITS[name])
        assert ("Read-only" in caught.value.lacks) == (how is not_writable)
        assert caught.value.cure
        assert (runtime.containers, cgroups(runtime)) == ({}, [])
        exit, _, _ = await shell(runtime, "exit 3")
        assert exit.exit_code == 3, "what does not need it runs"


NESTED = """
import subprocess, trio
from tinyvisor.errors import HostError
from tinyvisor.runtime import open_runtime
from tinyvisor.spec import Spec

async def main():
    async with open_runtime(name="test-nested") as runtime:
        try:
            exit = await runtime.run(Spec(command=("true",), name="case", pids_limit=10))
        except HostError as error:
            print("refused:", error.lacks)
            print((await runtime.run(Spec(command=("true",), name="case"))).status, "without a limit")
            subprocess.run(["sh", "-c", error.cure.partition("move them below it: ")[2]])
        else:
            print(exit.status, exit.limits_enforced, *runtime._tree.paths)

trio.run(main)
trio.run(main)
"""


def test_inside_a_container_that_has_a_cgroup_namespace() -> None:
    """Its top is not the root of all cgroups: nothing can be limited below it while its own processes are there."""
    unified = probe().layout.unified
    if unified is None or "pids" not in Path(unified, "cgroup.controllers").read_text().split():
        pytest.skip("needs controllers on cgroup v2")
    Path(unified, "cgroup.subtree_control").write_text("+pids +memory")
    outer = Path(unified, f"tinyvisor-nested-{os.getpid()}")
    outer.mkdir()
    try:
        inside = 'umount -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec "$0" -c "$1"'
        script = 'echo $$ > "$0/cgroup.procs" && exec unshare --cgroup --mount sh -c "$@"'
        nested = subprocess.run(
            ["sh", "-c", script, outer, inside, sys.executable, NESTED],
            capture_output=True,
            text=True,
            timeout=BOUND,
            check=False,
        )
        assert nested.returncode == 0, nested.stderr
        refused, unlimited, ran = nested.stdout.splitlines()
        assert refused == "refused: cgroup controller pids can't be used: /sys/fs/cgroup has processes of its own"
        assert unlimited == "ok without a limit"
        assert ran == "ok ('pids_limit',) /sys/fs/cgroup/tinyvisor/test-nested"
        assert [child.name for child in outer.iterdir() if child.is_dir()] == ["init"]
    finally:
        assert remove_cgroup(str(outer))


# ---- nothing stays ----


async def test_cgroups_are_removed(anyio_backend: str) -> None:
    async with open_runtime(name="test-removal") as runtime:
        paths = [Path(path) for path in runtime._tree.paths]
        async with waiting(runtime, pids_limit=20, mem_limit=GUARD, cpus=1.0):
            assert {path.name for path in cgroups(runtime)} == {"case"}
            layout = runtime._tree.layout
            assert len(cgroups(runtime)) == len({layout.index(name) for name in ("pids", "memory", "cpu")} - {None})
        assert cgroups(runtime) == []
        assert all(path.is_dir() for path in paths)
        assert (run_directory() / "test-removal.lock").exists()
    assert not [path for path in paths if path.exists()]
    assert not (run_directory() / "test-removal.lock").exists()


CRASHING = """
import anyio, sys
from tinyvisor.runtime import open_runtime
from tinyvisor.spec import Spec

async def main():
    async with open_runtime(name="test-crashed") as runtime:
        async with runtime.start(Spec(command=("sleep", "1000"), name="victim", pids_limit=10, mem_limit=64 << 20)) as container:
            print(runtime._launcher.pid, container.pid, *runtime._tree.paths, flush=True)
            await anyio.sleep_forever()

anyio.run(main)
"""


async def test_what_a_crashed_run_left_is_swept(anyio_backend: str) -> None:
    # Both are stopped before they are killed, so that neither can clean up after the other.
    with subprocess.Popen([sys.executable, "-c", CRASHING], stdout=subprocess.PIPE, text=True) as crashing:
        assert crashing.stdout is not None
        launcher, init, *paths = crashing.stdout.readline().split()
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in (crashing.pid, int(launcher)):
                os.kill(pid, number)
    await wait_for_the_end_of(int(launcher), int(init))
    left = [path for path in paths if Path(path, "victim").is_dir()]
    assert left
    async with open_runtime(name="test-after-crash") as runtime:
        assert not [path for path in paths if Path(path).exists()]
        assert not (run_directory() / "test-crashed.lock").exists()
        assert (await shell(runtime, "exit 3", name="victim"))[0].exit_code == 3


async def test_a_live_run_is_not_swept(anyio_backend: str) -> None:
    async with open_runtime(name="test-alive") as alive, waiting(alive, pids_limit=10) as container:
        async with open_runtime() as other:
            assert (await shell(other, "exit 3"))[0].exit_code == 3
        assert cgroup_of(alive, "pids").is_dir()
        assert (await container.stop()).signal == signal.SIGTERM
