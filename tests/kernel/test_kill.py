"""Nothing outlives its scope, also not kill -9: of the supervisor, the launcher, an init, at any instant.

The supervisors that are killed here are forks of one small program (this file, run as such), so that a kill costs no start of
an interpreter. What belongs to a supervisor is found without asking it: a workload by a variable in its environment, an init
by its title, a launcher by its command line.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pty
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

from tests.kernel.helpers import BOUND, cgroups, waiting
from tinyvisor.errors import ContainerError, HostError, LauncherDied, LaunchError
from tinyvisor.places import run_directory
from tinyvisor.runtime import PIPE, STDOUT, Container, Runtime, open_runtime
from tinyvisor.runtime.cgroup import project_path, read_layout
from tinyvisor.spec import DEFAULT_NAME, Spec, Tmpfs, Volume

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).resolve().parents[2]
SEED = int(os.environ.get("TINYVISOR_TEST_SEED", time.time_ns() % 10**9))
VARIABLE = "TINYVISOR_KILL_TEST"
SOON = 10.0
"""Seconds in which everything must be gone; on an idle machine it is gone in some milliseconds."""
LATEST = 0.25  # seconds after its start at which a supervisor is killed


Say = Callable[[str], None]
Supervise = Callable[[str, str, int, Say], None]

# ---- the program that is killed ----

STORM = "while :; do (sleep 0.01 &) ; (:) ; done"


def make_spec(*command: str, name: str, **fields: Any) -> Spec:
    """Its project is told by the name: PROJECT.NUMBER."""
    environment = {VARIABLE: name.partition(".")[0]}
    return Spec(command=command, name=name, environment=environment, pids_limit=30, mem_limit=64 << 20, **fields)


async def _job(runtime: Runtime, luck: random.Random, name: str) -> None:
    """One container of a random kind."""
    kind = luck.randrange(8)
    if kind == 0:
        await runtime.run(make_spec("/bin/true", name=name))
    elif kind == 1:
        script, volume = "echo x >/scratch/x; sleep 0.02 & wait", Volume(ROOT, "/volume", read_only=True)
        await runtime.run(make_spec("sh", "-c", script, name=name, tmpfs=(Tmpfs("/scratch"),), volumes=(volume,)))
    elif kind == 2:
        async with runtime.start(make_spec("sh", "-c", STORM, name=name)) as container:
            await trio.sleep(luck.random() / 20)
            await container.stop(grace=0)
    elif kind == 3:
        async with runtime.start(make_spec("sleep", "1000", name=name, tty=True)) as container:
            await trio.sleep(luck.random() / 50)
            await container.stop(grace=0.01)
    elif kind == 4:
        spec = make_spec("sh", "-c", "trap '' TERM; while :; do echo flood; done", name=name)
        async with runtime.start(spec, stdin=PIPE, stdout=PIPE, stderr=STDOUT) as container:
            assert container.stdout is not None
            with contextlib.suppress(anyio.EndOfStream):
                for _ in range(luck.randrange(20)):
                    await container.stdout.receive()
            await container.stop(grace=0.01)
    elif kind == 5:
        async with runtime.start(make_spec("sleep", "1000", name=name)) as container, trio.open_nursery() as nursery:
            nursery.start_soon(_exec, container, "sh", "-c", STORM)
            with trio.move_on_after(luck.random() / 20):
                for _ in range(10):
                    await _exec(container, "/bin/true")
            nursery.cancel_scope.cancel()
    elif kind == 6:
        spec = make_spec("/bin/true", name=name)
        async with runtime.pool(spec.with_(name=DEFAULT_NAME), size=2) as pool:
            for _ in range(luck.randrange(6)):
                with trio.move_on_after(luck.random() / 20):
                    await pool.run(["sh", "-c", luck.choice(["true", "sleep 1000 & wait"])])
    else:
        with trio.move_on_after(luck.random() / 20):
            await runtime.run(make_spec("sh", "-c", "sleep 1000 & sleep 1000 & wait", name=name))


async def _exec(container: Container, *command: str) -> None:
    with contextlib.suppress(ContainerError):  # its container has ended
        await container.exec(command)


async def _work(name: str, luck: random.Random, say: Say) -> None:
    async def worker(number: int) -> None:
        while True:
            with contextlib.suppress(ContainerError, HostError):  # its init was killed, or who made the user namespace
                await _job(runtime, luck, f"{name}.{number}")

    async with open_runtime(name=name) as runtime:
        say("open")
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(worker, number)


async def _wait_for_many(name: str, say: Say) -> None:
    """Containers that all end when their common stdin does; they are `SLEEPERS`, and a child has all our fds."""
    fifo = os.open(os.environ["TINYVISOR_KILL_FIFO"], os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(fifo, True)
    async with open_runtime(name=name) as runtime:
        async with trio.open_nursery() as nursery, contextlib.AsyncExitStack() as stack:
            for number in range(SLEEPERS):
                spec = make_spec("cat", name=f"{name}.{number}")
                container = await stack.enter_async_context(runtime.start(spec, stdin=fifo))
                nursery.start_soon(container.wait)
            child = os.fork()
            if child == 0:
                os.close(0)
                while True:
                    signal.pause()
            say(f"child {child}")
            say("open")
            await trio.sleep_forever()


SLEEPERS = 400  # their ends are more than the socket to the supervisor holds


async def _hold(name: str, say: Say) -> None:
    """Containers that wait for a command, that have been given one, and programs that were exec'ed."""
    async with open_runtime(name=name, warm=3) as runtime, trio.open_nursery() as nursery:
        spec = make_spec("sleep", "1000", name=name)
        async with runtime.pool(spec.with_(name=DEFAULT_NAME), size=5) as pool, runtime.start(spec) as container:
            nursery.start_soon(pool.run)
            for _ in range(3):
                nursery.start_soon(container.exec, ["sh", "-c", "setsid sleep 1000 & sleep 1000"])
                await runtime.run(["true"])
            say("open")
            await trio.sleep_forever()


HELD = 1 + 3 + 3 + 4  # the container, its execs, the warm runtime's, the pool's and its run: at least


def _supervise(kind: str, name: str, seed: int, say: Say) -> None:
    """In the fork: works until it is killed, or its launcher is."""
    if kind == "many":
        trio.run(_wait_for_many, name, say)
    elif kind == "hold":
        trio.run(_hold, name, say)
    else:
        trio.run(_work, name, random.Random(seed), say)


def _until_the_launcher_dies(supervise: Supervise, kind: str, name: str, seed: int, say: Say) -> None:
    try:
        supervise(kind, name, seed, say)
    except BaseException as exc:
        group = exc
        while isinstance(group, BaseExceptionGroup):
            died, other = group.split(LauncherDied)
            if other is not None:
                raise
            assert died is not None
            group = died.exceptions[0]
        if not isinstance(group, LauncherDied):
            raise
        say("LauncherDied")


def main(supervise: Supervise = _supervise) -> None:
    """Reads lines "KIND NAME SEED" and forks a supervisor for each; its lines go to stdout: "PID WORDS".

    One that has ended is a zombie till the next line, so that its number is its own while it is looked for.
    """
    for line in sys.stdin:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        kind, name, seed = line.split()
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a test that is killed leaves nothing either
            os.setsid()
            pid = os.getpid()

            def say(words: str, pid: int = pid) -> None:
                os.write(1, f"{pid} {words}\n".encode())

            try:
                say("born")
                _until_the_launcher_dies(supervise, kind, name, int(seed), say)
            except BaseException as exc:
                say(f"error {exc!r}")
                raise
            finally:
                say("end")
                os._exit(0)


# ---- the test's side ----


class Nursery:
    """The program that forks supervisors, and what they say."""

    def __init__(
        self, fifo: Path | None = None, command: Sequence[str] = (sys.executable, "-m", "tests.kernel.test_kill")
    ) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TINYVISOR_KILL_FIFO": str(fifo)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=ROOT, start_new_session=True
        )
        self.pid = self._process.pid
        self._rest = b""
        self._said: dict[int, list[str]] = {}
        self._count = 0

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _receive(self, deadline: float) -> None:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"nothing was said in time; so far: {self._said}"
        self._rest += os.read(self._process.stdout.fileno(), 65536)
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            pid, _, words = line.decode().partition(" ")
            self._said.setdefault(int(pid), []).append(words)

    def fork(self, kind: str = "work") -> Victim:
        assert self._process.stdin is not None
        self._said.clear()
        self._count += 1
        name = f"kill-{os.getpid()}-{self._count}"
        self._process.stdin.write(f"{kind} {name} {SEED + self._count}\n".encode())
        self._process.stdin.flush()
        deadline = time.monotonic() + BOUND
        while True:  # others, killed since, may have something left to say
            for pid, lines in self._said.items():
                if "born" in lines:
                    return Victim(self, pid, name)
            self._receive(deadline)

    def said(self, pid: int, word: str, wait: float = 0.0) -> str | None:
        """The rest of a line that begins with `word`; with `wait`, it must come within so many seconds."""
        deadline = time.monotonic() + wait
        while True:
            assert self._process.stdout is not None
            while select.select([self._process.stdout], [], [], 0)[0]:
                self._receive(deadline)
            lines = self._said.get(pid, [])
            assert not [line for line in lines if line.startswith("error")], lines
            for line in lines:
                if line.split()[0] == word:
                    return line.removeprefix(word).strip()
            if not wait:
                return None
            self._receive(deadline)


class Victim:
    """A supervisor."""

    def __init__(self, nursery: Nursery, pid: int, name: str) -> None:
        self.nursery, self.pid, self.name = nursery, pid, name
        self.pidfd = os.pidfd_open(pid)

    def said(self, word: str, wait: float = 0.0) -> str | None:
        return self.nursery.said(self.pid, word, wait)

    def launchers(self) -> list[int]:
        """Told by their words, too: a number may be another process's by now."""
        return [child for child in children(self.pid) if self._is_launcher(read(f"/proc/{child}/cmdline").split(b"\0"))]

    def _is_launcher(self, words: list[bytes]) -> bool:
        serves = words[0] == b"tinyvisor-launcher" and words[1:2] in ([b"serve"], [b"serve-nested"])
        return serves and words[3:4] == [str(self.pid).encode()]

    def launcher(self) -> int | None:
        """A pidfd of its launcher, if it has one by now."""
        for pid in self.launchers():
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                if pid in self.launchers():
                    return pidfd
                os.close(pidfd)
        return None

    def inits(self) -> list[int]:
        return [init for launcher in self.launchers() for init in children(launcher)]

    def kill(self, number: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def close(self) -> None:
        self.kill()
        os.close(self.pidfd)

    # ---- what is left of it ----

    def processes(self) -> list[str]:
        mark = f"{VARIABLE}={self.name}".encode()
        found = [] if select.select([self.pidfd], [], [], 0)[0] else [f"supervisor {self.pid}{state_of(self.pid)}"]
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                words = read(f"/proc/{entry}/cmdline").split(b"\0")
                if self._is_launcher(words):
                    found.append(f"launcher or unborn init {entry}{state_of(entry)}")
                elif words[0].startswith((f"tinyvisor-init: {self.name}.".encode(), f"tinyvisor-exec: {self.name}.".encode())):
                    found.append(f"init {entry}")
                elif mark in read(f"/proc/{entry}/environ").split(b"\0"):
                    found.append(f"workload {entry} {words}")
        return found

    def files(self) -> list[str]:
        """Cgroups and run files."""
        paths = [project_path(hierarchy, self.name) for hierarchy in read_layout().hierarchies]
        return [path for path in (*paths, str(run_directory() / f"{self.name}.lock")) if os.path.exists(path)]


def read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def state_of(pid: int | str) -> str:
    """For who wonders why it is there: " T (stopped)"."""
    return "".join(line.partition(":")[2] for line in read(f"/proc/{pid}/status").decode().splitlines() if line[:5] == "State")


def children(pid: int) -> list[int]:
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        return [int(child) for task in tasks for child in read(f"/proc/{pid}/task/{task}/children").split()]
    except OSError:
        return []


def wait_until_empty(what: Callable[[], list[str]], seconds: float = SOON) -> list[str]:
    """What is still there when the time is up."""
    deadline = time.monotonic() + seconds
    while (left := what()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return left


def sweep() -> None:
    """Any runtime that is opened clears away what dead ones left."""

    async def open_and_close() -> None:
        async with open_runtime():
            pass

    trio.run(open_and_close)


@pytest.fixture
def swept_at_the_end() -> Iterator[None]:
    """The empty directory tinyvisor in each hierarchy stays behind when a supervisor is killed."""
    yield
    sweep()


def swept(victim: Victim) -> None:
    def left() -> list[str]:
        sweep()
        return victim.files()

    assert not wait_until_empty(left)  # tried again: the last that a dying process gives up may be the lock


@pytest.fixture(scope="module")
def victims() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def luck(request: pytest.FixtureRequest) -> random.Random:
    print(f"TINYVISOR_TEST_SEED={SEED}")  # shown where the test fails
    return random.Random(f"{SEED} {request.node.name}")


def no_processes_left(victim: Victim) -> None:
    left = wait_until_empty(victim.processes)
    assert not left, f"still running after {SOON} s"


def nothing_left(victim: Victim) -> None:
    no_processes_left(victim)
    assert not wait_until_empty(victim.files)


@pytest.mark.parametrize("batch", range(4))
def test_kill_the_supervisor(swept_at_the_end: None, victims: Nursery, luck: random.Random, batch: int) -> None:
    for _ in range(15):
        with contextlib.closing(victims.fork()) as victim:
            time.sleep(luck.uniform(0, LATEST))
            is_open = victim.said("open") is not None
            victim.kill()
            no_processes_left(victim)
            if is_open:
                assert not wait_until_empty(victim.files)
            else:  # the launcher may not have been told yet what there is to remove
                swept(victim)


@pytest.mark.parametrize("batch", range(2))
def test_kill_the_launcher(swept_at_the_end: None, victims: Nursery, luck: random.Random, batch: int) -> None:
    """The supervisor's calls raise `LauncherDied`; it clears away what the launcher can't any more, and goes on."""
    for _ in range(15):
        with contextlib.closing(victims.fork()) as victim:
            time.sleep(luck.uniform(0, LATEST))
            deadline = time.monotonic() + BOUND
            while (launcher := victim.launcher()) is None:
                assert victim.said("end") is None
                assert time.monotonic() < deadline
            signal.pidfd_send_signal(launcher, signal.SIGKILL)
            os.close(launcher)
            victim.said("LauncherDied", SOON)
            victim.said("end", SOON)
            nothing_left(victim)


@pytest.mark.parametrize("batch", range(2))
def test_kill_the_supervisor_and_the_launcher(swept_at_the_end: None, victims: Nursery, luck: random.Random, batch: int) -> None:
    """The kernel ends every process; the next runtime removes the cgroups."""
    for _ in range(15):
        with contextlib.closing(victims.fork()) as victim:
            time.sleep(luck.uniform(0, LATEST))
            launcher = victim.launcher()
            first, second = (victim.pidfd, launcher) if luck.random() < 0.5 else (launcher, victim.pidfd)
            for pidfd in (first, second):
                if pidfd is not None:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if launcher is not None:
                os.close(launcher)
            no_processes_left(victim)
            swept(victim)


@pytest.mark.parametrize("batch", range(2))
def test_kill_inits(swept_at_the_end: None, victims: Nursery, luck: random.Random, batch: int) -> None:
    """Each takes its own container along and nobody else; at last the supervisor goes."""
    for _ in range(5):
        with contextlib.closing(victims.fork()) as victim:
            victim.said("open", SOON)
            for _ in range(10):
                time.sleep(luck.uniform(0, 0.02))
                for init in victim.inits()[:2]:
                    with contextlib.suppress(OSError):
                        pidfd = os.pidfd_open(init)
                        try:
                            if init in victim.inits():  # so the number was its own when the pidfd was opened
                                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                        finally:
                            os.close(pidfd)
            assert victim.said("end") is None
            victim.kill()
            nothing_left(victim)


@pytest.mark.parametrize("who", ["supervisor", "launcher", "both"])
def test_kill_with_parked_containers_and_execs(swept_at_the_end: None, victims: Nursery, luck: random.Random, who: str) -> None:
    """What waits for a command can't be told by it: all that the launcher has below it is held on to, and must end."""
    for _ in range(5):
        with contextlib.ExitStack() as stack:
            victim = stack.enter_context(contextlib.closing(victims.fork("hold")))
            victim.said("open", SOON)
            _wait_for_inits(victim, HELD)
            time.sleep(luck.uniform(0, 0.02))
            pidfds = []
            for pid in [pid for init in victim.inits() for pid in (init, *_descendants(init))]:
                with contextlib.suppress(ProcessLookupError):
                    pidfds.append(os.pidfd_open(pid))
                    stack.callback(os.close, pidfds[-1])
            launcher = victim.launcher()
            assert launcher is not None
            stack.callback(os.close, launcher)
            if who != "supervisor":
                signal.pidfd_send_signal(launcher, signal.SIGKILL)
            if who != "launcher":
                victim.kill()
            _wait_for_the_end_of(pidfds)
            if who == "both":
                no_processes_left(victim)
                swept(victim)
            else:
                nothing_left(victim)


def _wait_for_inits(victim: Victim, count: int) -> None:
    assert not wait_until_empty(lambda: [] if len(victim.inits()) >= count else ["not all are there"])


def _wait_for_the_end_of(pidfds: list[int]) -> None:
    assert not wait_until_empty(lambda: [str(fd) for fd in pidfds if not select.select([fd], [], [], 0)[0]])


def _descendants(pid: int) -> list[int]:
    return [found for child in children(pid) for found in (child, *_descendants(child))]


def test_kill_a_stopped_supervisor(swept_at_the_end: None, victims: Nursery, luck: random.Random) -> None:
    for _ in range(10):
        with contextlib.closing(victims.fork()) as victim:
            victim.said("open", SOON)
            time.sleep(luck.uniform(0, 0.1))
            victim.kill(signal.SIGSTOP)
            time.sleep(luck.uniform(0, 0.05))
            victim.kill()
            nothing_left(victim)


def test_kill_a_supervisor_whose_child_holds_its_fds(swept_at_the_end: None, tmp_path: Path) -> None:
    """No end of a socket is closed by that. And the launcher is in the middle of reports that nobody will read."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with contextlib.ExitStack() as stack:
        nursery = stack.enter_context(contextlib.closing(Nursery(fifo)))
        end = open(fifo, "r+b", buffering=0)  # noqa: SIM115
        stack.callback(end.close)
        victim = stack.enter_context(contextlib.closing(nursery.fork("many")))
        child = os.pidfd_open(int(victim.said("child", BOUND) or 0))
        stack.callback(os.close, child)
        stack.callback(signal.pidfd_send_signal, child, signal.SIGKILL)
        victim.said("open", SOON)
        assert len(victim.inits()) == SLEEPERS
        victim.kill(signal.SIGSTOP)
        end.close()
        # All have ended; those that the launcher could not report before the socket was full are zombies.
        assert not wait_until_empty(lambda: [str(init) for init in victim.inits() if children(init)])
        assert len(victim.inits()) > SLEEPERS // 4
        victim.kill()
        nothing_left(victim)


# ---- a launcher that dies under a program that lives ----


@pytest.mark.anyio
async def test_a_dead_launcher_fails_every_wait_and_the_program_goes_on(anyio_backend: str) -> None:
    raised: list[str] = []
    containers: list[Container] = []

    async def wait(container: Container, what: str) -> None:
        with pytest.raises(LauncherDied):
            if what == "wait":
                await container.wait()
            else:
                await container.stop()
        raised.append(what)

    with anyio.fail_after(BOUND):
        async with open_runtime() as runtime:
            async with contextlib.AsyncExitStack() as stack, anyio.create_task_group() as group:
                for number in range(10):
                    script = "trap '' TERM; sleep 1000 & echo ready; wait; wait"
                    container = await stack.enter_async_context(waiting(runtime, script=script, name=f"job{number}"))
                    containers.append(container)
                    group.start_soon(wait, container, "wait")
                    if number % 2:
                        group.start_soon(wait, container, "stop")
                await anyio.lowlevel.checkpoint()
                pids = [container.pid for container in containers]
                os.kill(runtime._launcher.pid, signal.SIGKILL)
            assert sorted(raised) == ["stop"] * 5 + ["wait"] * 10
            assert runtime.containers == {}
            for _ in range(2):
                with pytest.raises(LauncherDied):
                    await runtime.run(Spec(command=("/bin/true",)))
                with pytest.raises(LauncherDied):
                    async with runtime.start(Spec(command=("/bin/true",))):
                        pass
            for container in containers:
                with pytest.raises(LauncherDied):
                    await container.wait()
                container.kill()
                await container.signal(signal.SIGTERM)
        assert not wait_until_empty(lambda: [str(pid) for pid in pids if read(f"/proc/{pid}/cmdline").startswith(b"tinyvisor")])
        async with open_runtime() as runtime:
            assert (await runtime.run(Spec(command=("/bin/true",)))).status == "ok"


@pytest.mark.anyio
async def test_a_launcher_that_dies_during_a_start(anyio_backend: str) -> None:
    """Whoever is on the way in when it happens hears of it, too."""
    outcomes: list[str] = []

    async def start(runtime: Runtime, number: int) -> None:
        try:
            await runtime.run(Spec(command=("/bin/true",), name=f"job{number}"))
            outcomes.append("ok")
        except LauncherDied:
            outcomes.append("died")

    for delay in (0.0, 0.005, 0.02):
        outcomes.clear()
        with anyio.fail_after(BOUND):
            async with open_runtime() as runtime:
                async with anyio.create_task_group() as group:
                    for number in range(60):
                        group.start_soon(start, runtime, number)
                    await anyio.sleep(delay)
                    os.kill(runtime._launcher.pid, signal.SIGKILL)
                assert (len(outcomes), runtime.containers) == (60, {})
                assert "died" in outcomes


@pytest.mark.anyio
async def test_a_killed_init_is_a_signal_and_its_neighbours_live(shared: Runtime) -> None:
    async with waiting(shared, name="neighbour") as neighbour:
        async with waiting(shared, name="killed") as container:
            os.kill(container.pid, signal.SIGKILL)
            with anyio.fail_after(BOUND):
                exit = await container.wait()
        assert (exit.status, exit.signal) == ("signaled", signal.SIGKILL)
        assert neighbour.exit is None
        assert {path.name for path in cgroups(shared)} == {"neighbour"}


# ---- host programs with ideas of their own about children ----

HOST = """
import os, signal, sys, threading, trio
from tinyvisor.errors import LauncherDied
from tinyvisor.runtime import PIPE, open_runtime
from tinyvisor.spec import Spec

async def main():
    async with open_runtime() as runtime:
        for code in (0, 3, 255):
            exit = await runtime.run(Spec(command=("sh", "-c", f"exit {code}"), name="job"))
            assert exit.exit_code == code, exit
        async with runtime.start(Spec(command=("cat",), name="cat"), stdin=PIPE) as container:
            if KILL:
                os.kill(runtime._launcher.pid, signal.SIGKILL)
            else:
                await container.stdin.aclose()
            try:
                exit = await container.wait()
                assert exit.status == "ok" and not KILL, exit
            except LauncherDied:
                assert KILL
        try:
            await runtime.run(Spec(command=("true",), name="again"))
            assert not KILL
        except LauncherDied:
            assert KILL
    print("fine")

def reap():
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            trio_is_slow.wait(0.001)

trio_is_slow = threading.Event()
"""


@pytest.mark.parametrize("kill", [False, True], ids=["", "launcher killed"])
@pytest.mark.parametrize(
    "habit",
    [
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        "signal.signal(signal.SIGCHLD, lambda *_: os.waitpid(-1, os.WNOHANG))",
        "threading.Thread(target=reap, daemon=True).start()",
        "signal.signal(signal.SIGPIPE, signal.SIG_DFL)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))",
        "os.close(0)",
        "os.close(2)",
        "os.close(0); os.close(2)",
    ],
)
def test_host_programs_habits(habit: str, kill: bool) -> None:
    program = f"KILL = {kill}\n{HOST}\n{habit}\ntrio.run(main)\n"
    if "lambda" in habit:
        program = program.replace("os.waitpid(-1, os.WNOHANG)", "reap_all()").replace(
            "trio_is_slow = threading.Event()",
            "def reap_all():\n    try:\n        while os.waitpid(-1, os.WNOHANG)[0]: pass\n    except ChildProcessError: pass",
        )
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True,
        timeout=BOUND, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


def test_a_hangup_of_the_terminal_ends_all(swept_at_the_end: None) -> None:
    """A supervisor on a terminal that goes away dies of SIGHUP, which it does not handle."""
    master, slave = pty.openpty()
    program = (
        "import sys, trio\nfrom tinyvisor.runtime import open_runtime\nfrom tinyvisor.spec import Spec\n"
        "async def main():\n    async with open_runtime() as rt:\n"
        f"        async with rt.start(Spec(command=('sleep', '1000'), environment={{'{VARIABLE}': 'hangup-{os.getpid()}'}})):\n"
        "            print('up', flush=True)\n            await trio.sleep_forever()\ntrio.run(main)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", f"import fcntl, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n{program}"],
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=ROOT,
    )  # fmt: skip
    os.close(slave)
    try:
        said = b""
        while b"up" not in said:
            assert select.select([master], [], [], BOUND)[0], said
            said += os.read(master, 1024)
    finally:
        os.close(master)
    assert process.wait(BOUND) == -signal.SIGHUP
    mark = f"{VARIABLE}=hangup-{os.getpid()}".encode()
    assert not wait_until_empty(lambda: [e for e in os.listdir("/proc") if e.isdigit() and mark in read(f"/proc/{e}/environ")])


@pytest.mark.anyio
async def test_a_launch_that_fails_leaves_nothing(shared: Runtime) -> None:
    for number in range(30):
        with pytest.raises(LaunchError):
            await shared.run(Spec(command=("/no/such/program",), name=f"bad{number}", pids_limit=10))
    assert (shared.containers, cgroups(shared)) == ({}, [])


if __name__ == "__main__":
    main()
