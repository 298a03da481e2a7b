"""What the `kernel` marker means: whether such a test can run here, and that it leaves nothing behind.

A kernel test needs root, a new mount and pid namespace, and a writable cgroup. Where one is missing it is skipped with the
reason; TINYVISOR_MUST_WORK=1 makes that a failure, so that a CI machine can't pass by skipping.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests import world
from tinyvisor.places import in_user_namespace, run_directory
from tinyvisor.runtime.cgroup import read_layout

settings.register_profile("tinyvisor", deadline=None)  # a busy machine is no failure
settings.load_profile("tinyvisor")

# Of the hundreds of commands that the tests start, each would compile all of us anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell starts a job in the background with these two ignored, and what the tests start would go by that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main() -> None:
    """The tests run in a child of a process that reaps: what a killed supervisor leaves behind is gone at once.

    Process 1 of a machine may take seconds for that, and that of a container may never do it.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    tests = os.fork()
    if tests == 0:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's reaches the child too
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.kill(tests, number))
    while (ended := os.waitpid(-1, 0))[0] != tests:
        pass
    os._exit(os.waitstatus_to_exitcode(ended[1]) & 0xFF)


SLOWNESS = 5 if "QEMU" in Path("/proc/cpuinfo").read_text() else 1  # of an emulated processor: it stretches every bound
SETTLE = 5.0 * SLOWNESS  # seconds at most for what the kernel or another process takes away in the background
LASTING = 1.0  # seconds
OF_THE_KERNEL = ("tests/kernel/", "tests/test_cgroup.py", "tests/test_init.py", "tests/test_rootfs.py")
RUN = run_directory()


@functools.cache
def kernel_refusal() -> str | None:
    """Why kernel tests can't run here; None where they can."""
    if os.geteuid() != 0:
        return "needs root"
    probe = subprocess.run(
        ["unshare", "--mount", "--pid", "--uts", "--ipc", "--net", "--fork", "true"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if probe.returncode:
        return f"needs namespaces: {probe.stderr.strip()}"
    hierarchies = read_layout().hierarchies
    if not hierarchies:
        return "needs cgroups: none are mounted"
    for hierarchy in hierarchies:
        directory = Path(hierarchy.directory, f"tinyvisor-probe-{os.getpid()}")
        try:
            directory.mkdir()
            directory.rmdir()
        except OSError as exc:
            return f"needs cgroups: {exc}"
    return None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs: list[Any]) -> None:
    """With `-n` each worker has a machine of its own, as far as tests look at it."""
    if kernel_refusal() is None and world.possible():
        for spec in specs:
            spec.python = shlex.join([sys.executable, world.__file__, sys.executable])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n` tests go to processes by file, those of the kernel first, as they take the longest. Where there can be no worlds,
    all of those go to one process, one after the other, as they look at the whole machine."""
    from xdist.scheduler import LoadScopeScheduling

    apart = kernel_refusal() is None and world.possible()
    config.option.loadscopereorder = False  # tests/kernel is collected first

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "kernel" if nodeid.startswith(OF_THE_KERNEL) and not apart else nodeid.partition("::")[0]

    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("kernel") is not None and not item.nodeid.startswith(OF_THE_KERNEL):
            raise pytest.UsageError(f"{item.nodeid}: a kernel test; OF_THE_KERNEL in tests/conftest.py does not name its file")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("kernel") is None:
        return
    refusal = kernel_refusal()
    if item.get_closest_marker("hostroot") is not None and in_user_namespace():
        refusal = "needs to be root of the host"
    if refusal is None:
        return
    if os.environ.get("TINYVISOR_MUST_WORK") == "1":
        pytest.fail(f"TINYVISOR_MUST_WORK=1, but: {refusal}", pytrace=False)
    pytest.skip(refusal)


# ---- leaks ----


def _stat(pid: int | str) -> tuple[str, int]:
    """A process's name and its parent. Asked of every process, three times a test: hence so bare."""
    with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
        before, _, after = file.read().rpartition(b")")
    return os.fsdecode(before.partition(b"(")[2]), int(after.split(maxsplit=2)[1])


def _ancestors(pid: int) -> Iterator[int]:
    """`pid` itself, its parent, and so on up."""
    with suppress(OSError):  # one of them ended while we looked
        while pid > 0:
            yield pid
            pid = _stat(pid)[1]


def _is_ours(pid: int, family: frozenset[int]) -> bool:
    """Whether a process named tinyvisor-* can come from this run: not if it has a living supervisor that is no kin of us.

    An orphan's parent is process 1 or a subreaper, and both are our ancestors.
    """
    for ancestor in _ancestors(pid):
        if not _stat(ancestor)[0].startswith("tinyvisor-"):
            return ancestor in family or os.getpid() in _ancestors(ancestor)
    return False


def _processes() -> frozenset[str]:
    """Our children, and whatever is named as ours are; by number and name."""
    found, family = set(), frozenset(_ancestors(os.getpid()))
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):  # it ended while we looked
                name, parent = _stat(entry)
                if parent == os.getpid() or (name.startswith("tinyvisor-") and _is_ours(int(entry), family)):
                    found.add(f"{entry} ({name})")
    return frozenset(found)


def _projects_in_use() -> frozenset[str]:
    """Projects whose lock somebody holds: another run on this machine. Were it a leftover of ours, then the process that
    holds it, or our fd, is found as such."""
    held = {line.split()[5].rpartition(":")[2] for line in Path("/proc/locks").read_text().splitlines() if " FLOCK " in line}
    found = set()
    for lock in RUN.glob("*.lock"):
        with suppress(OSError):
            if str(lock.stat().st_ino) in held:
                found.add(lock.stem)
    return frozenset(found)


def _made_by_another_run(name: str) -> bool:
    """tinyvisor-<what>-<pid>…, as tests name what they make, of a living process that is not this one."""
    found = re.match(r"tinyvisor-[a-z]+-(\d+)", name)
    return found is not None and found[1] != str(os.getpid()) and Path("/proc", found[1]).exists()


def _cgroup_homes() -> frozenset[Path]:
    """Where we make cgroups: the top of each hierarchy, and the cgroup that we are in."""
    own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    homes = set()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup"):
            point, options = Path(before.split()[4]), after.split()[2].split(",")
            homes.add(point)
            homes.update(point / path.lstrip("/") for _, names, path in own if not names or set(names.split(",")) <= set(options))
    return frozenset(homes)


def _cgroups(in_use: frozenset[str]) -> frozenset[str]:
    """Directories named tinyvisor*, and everything below them."""
    found: set[str] = set()
    for home in _cgroup_homes():
        for top in home.glob("tinyvisor*"):
            if not top.is_dir() or _made_by_another_run(top.name):
                continue
            if top.name != "tinyvisor" or not in_use:
                found.add(str(top))
            for directory, children, _ in os.walk(top):
                if directory == str(top) and top.name == "tinyvisor":
                    children[:] = [child for child in children if child not in in_use]
                found.update(f"{directory}/{child}" for child in children)
    return frozenset(found)


def _mounts() -> frozenset[str]:
    return frozenset(Path("/proc/self/mountinfo").read_text().splitlines())


def _fds() -> frozenset[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the directory itself was one
            target = os.readlink(f"/proc/self/fd/{fd}")
            if target.startswith("user:"):
                continue  # one for each range of ids that an open runtime has had in use at once: see test_userns
            found.add(f"{fd} -> {target}")
    return frozenset(found)


LOCKS = "id-ranges"
"""Never removed: whoever locks in it must find what others have locked."""


def _run_files(in_use: frozenset[str]) -> frozenset[str]:
    return frozenset(str(path) for path in RUN.rglob("*") if path.name.removesuffix(".lock") not in in_use and path.name != LOCKS)


def _temporary_files() -> frozenset[str]:
    found = Path(tempfile.gettempdir()).glob("tinyvisor*")
    return frozenset(str(path) for path in found if not _made_by_another_run(path.name))


@dataclass(frozen=True, slots=True)
class Traces:
    """What there is of ours on this machine."""

    processes: frozenset[str]
    cgroups: frozenset[str]
    mounts: frozenset[str]
    fds: frozenset[str]
    run_files: frozenset[str]
    temporary_files: frozenset[str]

    @classmethod
    def take(cls) -> Traces:
        in_use = _projects_in_use()
        return cls(_processes(), _cgroups(in_use), _mounts(), _fds(), _run_files(in_use), _temporary_files())

    def leaks(self, later: Traces) -> list[str]:
        """What is there later and was not before, a line each; for mounts, what is gone too."""
        lines = []
        for item in fields(self):
            before, after = getattr(self, item.name), getattr(later, item.name)
            lines += [f"{item.name.replace('_', ' ')}: {trace}" for trace in sorted(after - before)]
        return lines + [f"mounts: gone: {mount}" for mount in sorted(self.mounts - later.mounts)]


def wait_for_no_leaks(before: Traces, seconds: float = SETTLE) -> list[str]:
    """The leaks that stay until `seconds` have passed; returns as soon as there are none.

    What was not there `LASTING` before that comes from another run on this machine: ours has ended.
    """
    deadline, since = time.monotonic() + seconds, dict[str, float]()
    while True:
        leaks, now = before.leaks(Traces.take()), time.monotonic()
        since = {leak: since.get(leak, now) for leak in leaks}
        if not leaks or now >= deadline:
            return [leak for leak, first in since.items() if now - first >= min(LASTING, seconds)]
        time.sleep(0.02)


@pytest.fixture
def leaks_since() -> Callable[[Traces], list[str]]:
    """For tests that check in the middle, e.g. after each of many kills."""
    return wait_for_no_leaks


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Around every kernel test: no process, cgroup, mount, fd or file is left of it."""
    if request.node.get_closest_marker("kernel") is None:
        yield
        return
    before = Traces.take()
    yield
    if leaks := wait_for_no_leaks(before):
        pytest.fail("left behind:\n" + "\n".join(leaks), pytrace=False)
