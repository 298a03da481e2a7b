"""A host that has run out: of space, inodes, processes, files, cgroups, or of what may be written. One line says so, nothing is
left, and what does not need it goes on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.kernel.command import ROOT, Running, environment, tinyvisor
from tests.kernel.helpers import BOUND, busybox_root, cgroup_of, cgroups, until
from tinyvisor.errors import LaunchError
from tinyvisor.runtime import PIPE, Runtime, open_runtime
from tinyvisor.spec import Spec

pytestmark = [pytest.mark.kernel, pytest.mark.anyio]

TRUE = Spec(command=("true",))


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "trio"


@contextlib.contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """A tmpfs, for as long as the block."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tinyvisor-test", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize(
    "fields, step",
    [
        ({"storage_inodes": 1}, r"make directory /root \(mode 0700\): No space left"),
        ({"storage_size": 4096}, r"write /run/hostname \(.*\): No space left"),
        ({"rootfs": "busybox", "storage_inodes": 1}, "root: overlay of a tmpfs over .*: No space left"),
        ({"rootfs": "busybox", "storage_inodes": 11, "working_dir": "/a/b/c/d/e"}, "make directory /a/b/c/d/e .*: No space left"),
    ],
)
async def test_a_writable_layer_without_room_for_the_start(
    shared: Runtime, tmp_path: Path, fields: dict[str, Any], step: str
) -> None:
    if "rootfs" in fields:
        fields = fields | {"rootfs": busybox_root(tmp_path / "root")}
    with pytest.raises(LaunchError, match=step):
        await shared.run(TRUE.with_(**fields))
    assert (shared.containers, cgroups(shared)) == ({}, [])
    assert (await shared.run(TRUE)).status == "ok"


@pytest.mark.parametrize(
    "fields, room, step",
    [
        ({}, 0, "clone the container's init"),
        ({"capabilities": {"CHOWN"}}, 1, "new user namespace, and owned by it"),
        ({}, 1, "start the workload"),
        ({"userns_mode": "host"}, 1, "start the workload"),
        ({"capabilities": {"CHOWN"}}, 2, None),
    ],
)
async def test_no_more_processes(anyio_backend: str, fields: dict[str, Any], room: int, step: str | None) -> None:
    """`room`: how many may be made beside the launcher, which is in a cgroup that has no place for more."""
    async with open_runtime(warm=0) as runtime:
        spec = TRUE.with_(**fields)
        assert (await runtime.run(spec)).status == "ok"
        async with room_for(runtime, room):
            if step is None:
                assert (await runtime.run(spec)).status == "ok"
            else:
                with pytest.raises(LaunchError, match=f"{step}.*: Resource temporarily unavailable"):
                    await runtime.run(spec)
            assert (runtime.containers, cgroups(runtime)) == ({}, [])
        assert (await runtime.run(spec)).status == "ok"


async def test_what_is_made_unasked_takes_nobody_s_place(anyio_backend: str) -> None:
    """There is room for one container at a time, and nothing else is noticed of the next one's being made."""
    async with open_runtime() as runtime, room_for(runtime, 2):
        for _ in range(5):
            assert (await runtime.run(["cat"], stdin=b"x", capture_stdout=True)).stdout == b"x"
            await until(lambda: not on_their_way_out(runtime._launcher.pid))


def on_their_way_out(launcher: int) -> list[str]:
    """Inits of runs that are over; who waits for a run has a child."""
    found = []
    for init in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if not Path(f"/proc/{init}/task/{init}/children").read_text():
                found.append(init)
    return found


@contextlib.asynccontextmanager
async def room_for(runtime: Runtime, processes: int) -> AsyncIterator[None]:
    """The launcher in a cgroup in which so many more can be made."""
    if any(hierarchy.version == 2 for _, hierarchy in runtime._launches.shapes.limits(TRUE.with_(pids_limit=1)).used()):
        pytest.skip("a process can't be put beside cgroups that have controllers")
    group = cgroup_of(runtime, "pids", "").parent / f"tinyvisor-faults-{os.getpid()}"
    home = group.parent
    group.mkdir()
    try:
        (group / "pids.max").write_text(str(processes + 1))
        (group / "cgroup.procs").write_text(str(runtime._launcher.pid))
        yield
    finally:
        (home / "cgroup.procs").write_text(str(runtime._launcher.pid))
        with anyio.fail_after(BOUND):
            while True:
                with contextlib.suppress(OSError):
                    group.rmdir()
                    break
                await anyio.sleep(0.005)


async def test_cgroups_that_somebody_removed(anyio_backend: str) -> None:
    async with open_runtime(warm=0) as runtime:
        assert (await runtime.run(TRUE)).status == "ok"
        for path in runtime._tree.paths:
            os.rmdir(path)
        with pytest.raises(LaunchError, match=r"make cgroup .*: No such"):
            await runtime.run(TRUE)
        assert runtime.containers == {}


async def test_1024_open_files(anyio_backend: str) -> None:
    """As many containers as there are files for; the next one is told, and when there is room again all is well."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, limits[1]))
    started = 0
    try:
        async with open_runtime(warm=0) as runtime, contextlib.AsyncExitStack() as stack:
            cat = Spec(command=("cat",), userns_mode="host")
            with pytest.raises(LaunchError, match=r"prepare the launch: Too many open files|open .*: Too many open files"):
                while True:
                    await stack.enter_async_context(runtime.start(cat, stdin=PIPE, stdout=PIPE, stderr=PIPE))
                    started += 1
            assert len(runtime.containers) == started
            await stack.aclose()
            assert cgroups(runtime) == []
            async with runtime.map([TRUE] * 200, concurrency=100, capture_stdout=True) as results:
                assert {result.status async for result in results} == {"ok"}
            async with runtime.map([TRUE] * 400, concurrency=400, capture_stdout=True) as results:
                found = {(result.status, result.reason.rpartition(": ")[2]) async for result in results}
            assert ("ok", "") in found
            assert found <= {("ok", ""), ("sandbox_error", "Too many open files")}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert started > 150


# ---- the command ----


def test_a_state_directory_that_can_not_be_written(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o ro,mode=755 none /run/tinyvisor && exec "$@"'
    for command in (["run", "true"], ["batch", "--each", "true {}", "x"]):
        ended = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-m", "tinyvisor", *command],
            capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=BOUND, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert ended.returncode == (125 if command[0] == "run" else 2), ended
        assert re.fullmatch(
            r"(0 jobs .*\n)?tinyvisor: /run/tinyvisor/\S+: Read-only file system; make /run/tinyvisor writable\n", ended.stderr
        )


def test_no_space_for_results(tmp_path: Path) -> None:
    with mounted(tmp_path / "full", "size=8k") as full:
        lines = [json.dumps({"id": f"job{number}", "command": ["true"]}) for number in range(200)]
        ended = tinyvisor("batch", "-j", "4", "--results", full / "results.jsonl", "-", input="\n".join(lines))
        kept = (full / "results.jsonl").read_text().splitlines()
    assert ended.returncode == 2
    assert "results can't be written: No space left on device" in ended.stderr
    assert kept
    assert {json.loads(line)["status"] for line in kept} == {"ok"}


def talker(config: Path) -> None:
    script = (
        "echo ready; until [ -e /work/go ]; do sleep 0.02; done; i=0; while [ $$i -lt 2000 ]; do echo kept $$i; i=$$((i+1)); done"
    )
    (config / "work").mkdir(parents=True)
    lines = [f"command: [sh, -c, {json.dumps(script)}]", "volumes: [./work:/work]", "logging: {options: {max-size: 10k}}"]
    (config / "talker.yaml").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("how", ["full", "gone"])
def test_no_more_place_for_logs(tmp_path: Path, how: str) -> None:
    """The service goes on; who looks at it sees everything, and is told what its log lacks."""
    talker(tmp_path / "configs")
    with mounted(tmp_path / "logs", "size=16k") as logs, Running(["up", "--log-dir", logs / "deep", tmp_path / "configs"]) as up:
        up.expect("ready")
        if how == "gone":
            shutil.rmtree(logs / "deep")
        else:
            with contextlib.suppress(OSError):
                (logs / "filler").write_bytes(bytes(1 << 20))
        (tmp_path / "configs/work/go").touch()
        up.expect("kept 1999")
        assert up.end() == 0
    # It may be told before the last line: what is small still fits into the file's last page.
    assert re.search(
        rf"lines \(.* bytes\) are missing in its log: {'No space left' if how == 'full' else 'No such file'}", up.text
    )


def test_logs_that_can_not_be_written(tmp_path: Path) -> None:
    talker(tmp_path / "configs")
    with mounted(tmp_path / "logs", "ro") as logs:
        ended = tinyvisor("up", "--log-dir", logs, tmp_path / "configs")
    assert ended.returncode == 2
    assert "a log file at" in ended.stderr
    assert "(Read-only file system); make the directory writable" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
