"""Every step of a launch made to fail, by what it is told and by what the kernel answers; and a host that has run out.

A launch that fails names the step, and nothing is left of it; one that does not fail is the same container as ever.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import re
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from hatch_build import find_compiler
from tests.conftest import SETTLE
from tests.kernel.helpers import BOUND, busybox_root, cgroups, fds, read_until, skip, until
from tests.kernel.test_pool import has_child, inits
from tinyvisor.errors import LaunchError, TinyvisorError
from tinyvisor.places import in_user_namespace
from tinyvisor.runtime import PIPE, Runtime, open_runtime
from tinyvisor.runtime import plan as planning
from tinyvisor.runtime import steps as s
from tinyvisor.runtime.steps import Step
from tinyvisor.runtime.syscall_numbers import NUMBERS
from tinyvisor.spec import DEFAULT_NAME, DEFAULT_NAMESPACES, Secret, Spec, Tmpfs, Ulimit, Volume

pytestmark = [pytest.mark.kernel, pytest.mark.anyio]

X86 = os.uname().machine == "x86_64"
ALL = os.environ.get("TINYVISOR_FAULTS") == "all"
NAME_OF = {number: name for name, number in NUMBERS["x86_64"].items()}
TELLS_NO_ERROR = ("setfsuid", "setfsgid", "mmap")
"""What failed is seen, but not why: these give no errno, or to nobody who could pass it on."""
LOOK = """
cat /proc/self/status /proc/self/mountinfo /proc/self/limits /proc/self/cgroup /proc/self/oom_score_adj /proc/self/timens_offsets
cat /proc/sys/kernel/hostname /proc/net/dev /proc/net/if_inet6
echo $(ls /proc/self/fd) $PWD; stat -c '%n %u:%g %a' / /etc /dev/shm /tmp /run
for n in user mnt net ipc uts pid cgroup time; do readlink /proc/self/ns/$n; done; echo the end
"""


def rich(directory: Path) -> Spec:
    """With something of every kind of step, and a program that says what it is in."""
    root = busybox_root(directory / "root", ("cat", "ls", "readlink", "sh", "stat"))
    for name in ("in", "out"):
        (directory / name).mkdir()
    return Spec(
        command=("/bin/sh", "-c", LOOK), name="case", rootfs=root, hostname="rich", working_dir="/work/deep", umask=0o27,
        volumes=(Volume(directory / "in", "/data/in", read_only=True), Volume(directory / "out", "/data/out")),
        tmpfs=(Tmpfs("/scratch"), Tmpfs("/scratch/below", executable=True)), user="12:34", group_add=("56",),
        ulimits={"nofile": Ulimit(100, 200), "core": Ulimit(0, 0)}, pids_limit=20, mem_limit=64 << 20, cpus=1.5,
        cpuset=frozenset({0}), oom_score_adj=100, capabilities=frozenset({"CHOWN"}), cpu_time=60, timeout=60,
        environment={"A": "b"},
        masked_paths=("/proc/acpi", "/proc/kcore", "/proc/none"), readonly_paths=("/proc/sys", "/proc/none"),
    )  # fmt: skip


PROVISIONS: dict[str, Any] = {
    "secrets": (Secret(target="key", content=b"word"),), "notify_socket": True, "notification_fd": 7,
}  # fmt: skip
"""More steps, whose calls are those of other steps."""

HOST_VIEW = Spec(
    command=("/bin/sh", "-c", LOOK), name="case", userns_mode="host", root_method="chroot", no_new_privs=False, read_only=True,
    namespaces=(DEFAULT_NAMESPACES - {"user"}) | {"time"}, network_mode="none", mem_limit=64 << 20, user="12:34",
)  # fmt: skip
"""What `rich` can't have, too."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "trio"


def left(runtime: Runtime) -> dict[str, Any]:
    """What may not grow."""
    launcher = runtime._launcher.pid
    assert runtime._leases is not None
    return {
        "containers": len(runtime.containers),
        "cgroups": cgroups(runtime),
        "our fds": len(fds()),
        "the launcher's fds": len(os.listdir(f"/proc/{launcher}/fd")),
        "its children": frozenset(Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()),
        "its mounts": len(Path(f"/proc/{launcher}/mountinfo").read_text().splitlines()),
        "ids": len(runtime._leases._mine) - len(runtime._leases._free),
        "kept for the next supervisor": runtime.live
        and (runtime.live.keeper and runtime.live.keeper._held, runtime.live.recorded()),
        "what runs": [container.processes() for container in runtime.containers.values()],
    }


async def growth(runtime: Runtime, before: dict[str, Any]) -> list[str]:
    """What there is more of than there was, once what is on its way out has gone."""
    grown: list[str] = []
    with anyio.move_on_after(SETTLE):
        while grown := _more(before, left(runtime)):  # noqa: ASYNC110 - nobody tells us of it
            await anyio.sleep(0.001)
    return grown


def _more(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """An init that was on its way out before may be gone."""
    now = after | {"its children": after["its children"] | before["its children"]}
    return [f"; {key}: {before[key]} -> {now[key]}" for key in now if now[key] != before[key]]


# ---- wrong arguments ----

LONG = "/" + "x" * 300
NOT_KEPT = s.KEPT | 31
NO_FLAG = 1 << 31

WRONG: dict[type[Step], dict[str, Any]] = {
    s.Unshare: {"flags": 1}, s.RootTmpfs: {"attributes": NO_FLAG}, s.RootTree: {"slot": NOT_KEPT},
    s.RootOverlay: {"slot": NOT_KEPT},
    s.Directory: {"target": LONG}, s.Link: {"target": LONG}, s.File: {"target": LONG}, s.Mount: {"type": "no-such-type"},
    s.Bind: {"slot": NOT_KEPT}, s.BindTemplate: {"template": "/t/none"}, s.Mask: {"target": LONG}, s.ReadOnly: {"target": LONG},
    s.Remount: {"target": LONG}, s.Hostname: {"hostname": "x" * 65}, s.CgroupMake: {"path": "no/such/parent"},
    s.CgroupWrite: {"content": "nonsense"}, s.CgroupInto: {"path": "none"}, s.CgroupJoin: {"path": "none/tasks"},
    s.UserNamespace: {"flags": 1}, s.Enter: {"root": LONG}, s.CpuTime: {"path": "none"}, s.Rlimit: {"soft": 2, "hard": 1},
    s.OomScoreAdj: {"score": 5000},
    s.Affinity: {"cpus": frozenset({8191})}, s.SetIdentity: {"groups": (0,) * 1025},
    s.Capabilities: {"mask": 1 << 21, "ambient": 1 << 21}, s.Seccomp: {"program": b"1234567"}, s.WorkingDir: {"path": LONG},
    s.Exec: {"command": (LONG,)}, s.PassFd: {"number": 2}, s.Landlock: {"below": (LONG,)},
}  # fmt: skip
"""What each step is told that can't be done."""

NEVER = {
    s.Ids, s.Owner, s.Devpts, s.DetachWorld, s.LoopbackUp, s.Network, s.Init, s.Session, s.Keyring, s.EnterUser, s.Umask,
    s.BoundingSet,
    s.CloseFds, s.NoNewPrivs, s.Pty,
}  # fmt: skip
"""Steps whose data can't be wrong; they fail by the kernel's answers only."""


def test_every_step_can_be_made_to_fail_or_is_known_not_to() -> None:
    steps = {value for value in vars(s).values() if isinstance(value, type) and issubclass(value, Step) and hasattr(value, "op")}
    of_the_launcher = {s.Node, s.IdMap, s.Unmount, s.Read, s.Remove}
    of_an_exec = {s.Join, s.Socket}
    ahead = {s.Counter}
    assert steps == {*WRONG, *NEVER, *of_the_launcher, *of_an_exec, *ahead}


@pytest.mark.parametrize("kind", ["rich", "host view"])
async def test_every_step_fails_by_what_it_is_told(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = rich(tmp_path).with_(**PROVISIONS) if kind == "rich" else HOST_VIEW
    real, at = planning.plan, 0
    broken: Step | None = None

    def wrong_plan(*arguments: Any, **named: Any) -> planning.Plan:
        nonlocal broken
        plan = real(*arguments, **named)
        steps = [*plan.init, *plan.workload]
        if at >= len(steps):
            raise EOFError  # past the last step
        changes = WRONG.get(type(steps[at]))
        broken = replace(steps[at], **changes) if changes else None  # type: ignore[type-var]
        steps[at] = broken or steps[at]
        return replace(plan, init=tuple(steps[: len(plan.init)]), workload=tuple(steps[len(plan.init) :]))

    async with open_runtime(warm=0) as runtime:
        assert (await runtime.run(spec)).status == "ok"
        assert await failed_step(runtime, spec.with_(command=(LONG,))) == s.Exec((LONG,), ()).describe()
        before, done = left(runtime), set()
        monkeypatch.setattr(planning, "plan", wrong_plan)
        with contextlib.suppress(EOFError):
            while True:
                runtime._launches.shapes.clear()
                failed = await failed_step(runtime, spec)
                if broken is not None and not isinstance(broken, s.Exec):  # that one is made for each run
                    assert failed == broken.describe()
                    done.add(type(broken))
                else:
                    assert failed is None
                assert await growth(runtime, before) == []
                at += 1
    assert len(done) >= 15


async def failed_step(runtime: Runtime, spec: Spec) -> str | None:
    try:
        result = await runtime.run(spec)
    except LaunchError as exc:
        return exc.step
    assert result.status == "ok"
    return None


# ---- the kernel's answers ----


class Injector:
    """injector.c at work on a runtime's launcher."""

    def __init__(self, program: Path, launcher: int) -> None:
        self._process = subprocess.Popen([program, str(launcher)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._expect("ok")

    def __enter__(self) -> Injector:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # the end of its input ends it

    def arm(self, role: str, number: int, error: int) -> None:
        self._say(f"arm {role} {number} {error}")
        self._expect("ok")

    def leave(self) -> None:
        """Workloads are another tracer's."""
        self._say("leave")
        self._expect("ok")

    def report(self) -> str | None:
        """The name of the call that was made to fail; None: there were fewer calls than that."""
        self._say("report")
        word, number = self._line().split()
        return NAME_OF[int(number)] if word == "hit" else None

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

    def _expect(self, line: str) -> None:
        assert self._line() == line


@pytest.fixture(scope="module")
def injector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = find_compiler()
    if compiler is None or not X86:
        skip("needs a C compiler on x86-64")
    program = tmp_path_factory.mktemp("injector") / "injector"
    source = Path(__file__).with_name("injector.c")
    subprocess.run(
        [*compiler.command, "-std=gnu17", "-O2", "-Wall", "-Werror", *compiler.static, source, "-o", program], check=True
    )
    return program


def same(text: str) -> list[str]:
    """What `LOOK` printed, without what differs from one container to the next."""
    found = []
    for line in text.splitlines():
        if re.match(
            r"(Pid|Ngid|Tgid|PPid|NS\w+|Vm\w+|Rss\w+|Hugetlb\w+|\w+_ctxt_switches|Mems_allowed|FDSize|Threads|SigQ):|State:", line
        ):
            continue
        line = re.sub(r"^\d+ \d+ \d+:\d+ ", "", line)  # a mount's numbers
        line = re.sub(r"\b([ug]id=)\d{8,}", r"\1", line)  # of another range
        host = line.partition(":")[0]
        if re.fullmatch(r"\w+:\[\d+\]", line):
            line = f"{host}: {'the host' if line == os.readlink(f'/proc/self/ns/{host}') else 'own'}"
        found.append(line)
    return found


Launch = Callable[[], Awaitable[list[str]]]
Launcher = Callable[[Runtime], AbstractAsyncContextManager[Launch]]


async def outcome(launch: Launch, expected: list[str], error: int) -> str:
    """ "" where all is as it must be."""
    try:
        with anyio.fail_after(BOUND / 4):
            found = await launch()
    except LaunchError as exc:
        return "" if exc.step and exc.errno == error else f"another error: {exc}"
    except TinyvisorError as exc:
        return f"{type(exc).__name__}: {exc}"
    except TimeoutError:
        return "hangs"
    if found == expected:
        return ""
    return "another container: " + "; ".join(
        [f"-{line}" for line in expected if line not in found] + [f"+{line}" for line in found if line not in expected]
    )


async def sweep(program: Path, launcher: Launcher, cases: list[tuple[str, int, int, int]], *, live: bool = False) -> list[str]:
    """What went wrong. Cases: the role, the error, the first of its calls and how many on the next one is."""
    wrong: list[str] = []
    name = f"faults-{os.getpid()}" if live else None
    async with open_runtime(name=name, live=live) as runtime, launcher(runtime) as launch:
        expected = await launch()
        assert await launch() == expected
        with Injector(program, runtime._launcher.pid) as injector:
            if isinstance(launcher, functools.partial) and launcher.func is traces:
                injector.leave()
            before = left(runtime)
            for role, error, first, step in cases:
                for number in itertools.count(first, step):
                    injector.arm(role, number, error)
                    problem = await outcome(launch, expected, error)
                    call = injector.report()
                    if call is None:
                        assert problem == ""
                        assert number > MOST_STEPS[role]
                        break
                    if call in TELLS_NO_ERROR and problem.startswith("another error"):
                        problem = ""
                    problem += "".join(await growth(runtime, before))
                    if problem:
                        wrong.append(f"{role} {number} {call} {errno.errorcode[error]}: {problem}")
    return wrong


# Deterministic samples: of the workload's calls all, of init's three in four, most with one error only.
ERRORS = (errno.ENOMEM, errno.EPERM, errno.EINTR)
WORKLOAD = [("workload", errno.ENOMEM, 1, 1), ("workload", errno.EPERM, 1, 3), ("workload", errno.EINTR, 2, 3)]
INIT = [("init", errno.ENOMEM, 1, 2), ("init", errno.EPERM, 2, 8), ("init", errno.EINTR, 6, 8)]
LAUNCHER = [("launcher", error, 1, 1) for error in (errno.ENOMEM, errno.EINTR)]  # nobody refuses it what it does for itself
MOST_STEPS = {"workload": 20, "init": 30, "launcher": 8}
"""There are at least so many calls of each."""
FEW = [("workload", errno.ENOMEM, 1, 2), ("init", errno.ENOMEM, 1, 3), ("init", errno.EPERM, 2, 9)]
SOME = [("workload", errno.ENOMEM, 2, 6), ("init", errno.EPERM, 4, 17), ("launcher", errno.ENOMEM, 1, 4)]


@contextlib.asynccontextmanager
async def runs(spec: Spec, runtime: Runtime) -> AsyncIterator[Launch]:
    async def launch() -> list[str]:
        result = await runtime.run(spec, capture_stdout=True)
        assert result.status == "ok", result
        return same((result.stdout or b"").decode())

    yield launch


@contextlib.asynccontextmanager
async def execs(spec: Spec, runtime: Runtime) -> AsyncIterator[Launch]:
    """In one container that lives on."""

    async def launch() -> list[str]:
        async with container.open_exec(spec.command, stdout=PIPE) as process:
            out = await read_until(process.stdout, "the end\n")
            assert (await process.wait()).status == "ok"
        return same(out)

    async with runtime.start(spec.with_(command=("cat",)), stdin=PIPE) as container:
        yield launch


@contextlib.asynccontextmanager
async def starts(spec: Spec, runtime: Runtime) -> AsyncIterator[Launch]:
    """With a terminal."""

    async def launch() -> list[str]:
        text = ""
        async with runtime.start(spec.with_(tty=True)) as container:
            assert container.terminal is not None
            while "the end" not in text:
                await anyio.wait_readable(container.terminal)
                text += os.read(container.terminal, 1 << 16).decode()
        return same(text)

    yield launch


@contextlib.asynccontextmanager
async def parks(spec: Spec, runtime: Runtime) -> AsyncIterator[Launch]:
    """Made ahead, and then given its command."""

    async def launch() -> list[str]:
        async with runtime.pool(spec.with_(name=DEFAULT_NAME), size=1) as warm:
            pool = warm._pool
            await until(lambda: bool(pool._ready) or pool.error is not None)
            if pool.error is not None:
                raise pool.error
            container, _ = pool._ready[0]
            await until(lambda: container.gone or any(map(has_child, inits(runtime))))
            if container._error is not None:  # a run would start cold, and not see it
                raise container._error
            pool.size = 0  # none is made in its place, whose calls would count
            result = await warm.run(capture_stdout=True)
        assert result.status == "ok", result
        return same((result.stdout or b"").decode())

    yield launch


@contextlib.asynccontextmanager
async def keeps(spec: Spec, runtime: Runtime) -> AsyncIterator[Launch]:
    """To outlive us."""

    async def launch() -> list[str]:
        async with runtime.start(spec, stdout=PIPE) as container:
            out = await read_until(container.stdout, "the end\n")
            assert (await container.wait()).status == "ok"
        assert runtime.live is not None
        runtime.live.records.forget(spec.name)  # as whoever has started it does once it knows of its end
        return same(out)

    yield launch


@contextlib.asynccontextmanager
async def traces(spec: Spec, runtime: Runtime) -> AsyncIterator[Launch]:
    """Its workload is the tracer's, and can't be the injector's."""

    async def launch() -> list[str]:
        async with runtime.trace(spec, filter="execve", stdout=PIPE) as (container, _):
            out = await read_until(container.stdout, "the end\n")
            assert (await container.wait()).status == "ok"
        return same(out)

    yield launch


WAYS: dict[str, tuple[Callable[..., Any], str, list[tuple[str, int, int, int]]]] = {
    "rich": (runs, "rich", WORKLOAD + INIT + LAUNCHER),
    "host view": (runs, "host view", FEW),
    "terminal": (starts, "host view", FEW[1:]),
    "exec": (execs, "rich", [*WORKLOAD, ("init", errno.ENOMEM, 1, 1)]),
    "made ahead": (parks, "rich", SOME),
    "live": (keeps, "rich", SOME),
    "traced": (traces, "rich", [("init", errno.ENOMEM, 3, 24)]),
}
if in_user_namespace():  # test_rootless
    WAYS = {"an ordinary user's": (runs, "rich", SOME)}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("how, kind, cases", WAYS.values(), ids=WAYS)
async def test_every_call_of_a_launch_fails(
    injector: Path, tmp_path: Path, how: Callable[..., Any], kind: str, cases: list[tuple[str, int, int, int]]
) -> None:
    """TINYVISOR_FAULTS=all: every one, with every error."""
    spec = HOST_VIEW if kind == "host view" else rich(tmp_path)
    if ALL:
        cases = [(role, error, 1, 1) for role in {role for role, *_ in cases} for error in ERRORS] + LAUNCHER
    wrong = await sweep(injector, functools.partial(how, spec), cases, live=how is keeps)
    assert wrong == [], "\n".join(wrong)
