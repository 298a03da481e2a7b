"""How the kernel tests run things in containers and look at them from outside."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import anyio
import pytest

from tests.conftest import SLOWNESS
from tinyvisor.runtime import PIPE, Container, Runtime
from tinyvisor.runtime.stdio import ReceivePipe, Stdio
from tinyvisor.spec import Spec
from tinyvisor.state import Exit

BOUND = 60.0 * SLOWNESS
"""Seconds after which a test gives up; nothing waits for it to pass."""

ON_TRIO = pytest.mark.parametrize("anyio_backend", ["trio"], scope="module")
"""For modules that are about what a container can do, and not about the API: that runs on both event loops elsewhere."""

BUSYBOX = Path("/bin/busybox")
APPLETS = (
    "cat", "chmod", "cp", "dd", "df", "echo", "env", "head", "hostname", "id", "ls", "mkdir", "mount", "ps", "pwd", "readlink",
    "rm", "sh", "sleep", "stat", "touch", "true", "umount",
)  # fmt: skip


async def run(runtime: Runtime, *command: str, stdin: Stdio = None, name: str = "case", **fields: Any) -> tuple[Exit, str, str]:
    """Runs a command in a container to its end, and returns what it wrote."""
    with anyio.fail_after(BOUND):
        async with runtime.start(Spec(command=command, name=name, **fields), stdin=stdin, stdout=PIPE, stderr=PIPE) as container:
            written: dict[str, str] = {}
            async with anyio.create_task_group() as group:
                group.start_soon(_read_all, container.stdout, "out", written)
                group.start_soon(_read_all, container.stderr, "err", written)
            return await container.wait(), written["out"], written["err"]


async def shell(runtime: Runtime, script: str, **spec: Any) -> tuple[Exit, str, str]:
    """`run` for a script of the container's /bin/sh."""
    return await run(runtime, "/bin/sh", "-c", script, **spec)


async def python(runtime: Runtime, code: str, **spec: Any) -> str:
    """What Python code prints in a container; the code must succeed."""
    exit, out, err = await run(runtime, "python3", "-c", code, **spec)
    assert exit.returncode == 0, err
    return out


async def _read_all(pipe: ReceivePipe | None, name: str, written: dict[str, str]) -> None:
    assert pipe is not None
    written[name] = (await _read_until(pipe, None)).decode(errors="replace")


async def _read_until(pipe: ReceivePipe, end: bytes | None) -> bytes:
    data = b""
    with contextlib.suppress(anyio.EndOfStream):
        while end is None or end not in data:
            data += await pipe.receive()
    return data


async def read_until(pipe: ReceivePipe | None, end: str) -> str:
    """What comes out of a pipe, up to and with `end`."""
    assert pipe is not None
    with anyio.fail_after(BOUND):
        text = (await _read_until(pipe, end.encode())).decode(errors="replace")
    assert end in text, f"ended without {end!r}: {text!r}"
    return text


@contextlib.asynccontextmanager
async def waiting(
    runtime: Runtime, *command: str, script: str = "", name: str = "case", **fields: Any
) -> AsyncIterator[Container]:
    """A container to look at from outside: it runs `command` (default: ``cat``), which copies its stdin, or a script, which
    is ready once it has printed "ready". A start is over before exec is: /proc/<pid>/environ is empty for a moment."""
    command = ("/bin/sh", "-c", script) if script else command or ("/bin/cat",)
    async with runtime.start(Spec(command=command, name=name, **fields), stdin=PIPE, stdout=PIPE, stderr=PIPE) as container:
        if not script:
            assert container.stdin is not None
            await container.stdin.send(b"ready\n")
        await read_until(container.stdout, "ready\n")
        yield container


def workload(container: Container) -> int:
    """The host's number of the workload."""
    return int(Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()[0])


def status(pid: int | str) -> dict[str, str]:
    """/proc/<pid>/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def ids_of(container: Container, *inside: int) -> list[str]:
    """Uids (and gids, which start at the same id here) of a container, as the host writes them."""
    return [str(container.ids.map.uid(number) if container.ids else number) for number in inside]


def namespace(pid: int | str, name: str) -> int:
    """The inode number of a process's namespace, which is its identity."""
    return os.stat(f"/proc/{pid}/ns/{name}").st_ino


async def until(condition: Callable[[], bool]) -> None:
    """For what nobody tells us of."""
    with anyio.fail_after(BOUND):
        while not condition():  # noqa: ASYNC110 - see above
            await anyio.sleep(0.002)


async def wait_for_the_end_of(*pids: int) -> None:
    """Until the kernel and whoever reaps them have taken these processes away."""
    with anyio.fail_after(BOUND):
        while any(Path(f"/proc/{pid}").exists() for pid in pids):  # noqa: ASYNC110 - see above
            await anyio.sleep(0.005)


def fds() -> dict[str, str]:
    """Ours, but for the directory that is read to find out, and what an open runtime keeps for each range of ids."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    passed_over = (f"/proc/{os.getpid()}/fd", "user:[")
    return {fd: target for fd, target in found.items() if not target.startswith(passed_over)}


def skip(reason: str) -> NoReturn:
    """Skips the test; a failure where everything must work."""
    if os.environ.get("TINYVISOR_MUST_WORK") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def cgroup_of(runtime: Runtime, controller: str, name: str = "case") -> Path:
    """The directory of a container's cgroup; skips the test where the host has no such controller."""
    index = runtime._tree.layout.index(controller)
    if index is None:
        skip(f"needs the cgroup controller {controller}")
    return Path(runtime._tree.paths[index], name)


def cgroups(runtime: Runtime) -> list[Path]:
    """The cgroups of a runtime's containers."""
    return [child for path in runtime._tree.paths for child in Path(path).iterdir() if child.is_dir()]


def busybox_root(root: Path, applets: Iterable[str] = APPLETS) -> Path:
    """Makes a root directory with a static busybox; skips the test where the host has none."""
    if not BUSYBOX.exists():
        skip("needs /bin/busybox: apt install busybox-static")
    (root / "bin").mkdir(parents=True)
    for directory in ("dev", "etc", "proc", "tmp"):
        (root / directory).mkdir()
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for applet in applets:
        (root / "bin" / applet).symlink_to("busybox")
    return root
