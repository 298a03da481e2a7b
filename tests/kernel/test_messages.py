"""kill -9 and SIGSTOP at each message of the protocol between supervisor, launcher and inits: before it is sent, when it has been
sent, when it has come. Root's and an ordinary user's.

A supervisor (this file, run as such; see test_kill) does a bit of everything, and something happens at its n-th instant of that
kind. Nothing may be left of it: processes, cgroups, files, mounts, ranges of ids. Who was only stopped goes on as if nothing
had been. Each instant has one of the `ACTIONS` in turn; TINYVISOR_FAULTS=all: each has all, more than a thousand
in all; TINYVISOR_FAULT_ROUNDS=N: over and over again till there were N of root's and N of the user's.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.kernel import test_kill
from tests.kernel.helpers import BOUND, skip
from tests.kernel.test_kill import Nursery, Say, Victim, children, make_spec, read, wait_until_empty
from tests.kernel.test_rootless import TINYVISOR
from tests.kernel.user import User, ordinary_user
from tinyvisor.errors import ContainerError, HostError, LaunchError
from tinyvisor.places import run_directory
from tinyvisor.runtime import PIPE, Container, Runtime, open_runtime
from tinyvisor.spec import DEFAULT_NAME

pytestmark = pytest.mark.kernel

ALL = os.environ.get("TINYVISOR_FAULTS") == "all"
ROUNDS = int(os.environ.get("TINYVISOR_FAULT_ROUNDS", "1")) if ALL else 0
MODULE = "tests.kernel.test_messages"
PAUSE = 0.004
"""Seconds for which somebody is stopped who is to go on."""

ACTIONS = (
    "kill-supervisor", "kill-launcher", "kill-inits", "kill-supervisor-and-launcher", "stop-supervisor-and-kill-supervisor",
    "stop-supervisor", "stop-launcher", "stop-inits", "stop-inits-and-kill-supervisor", "stop-launcher-and-kill-supervisor",
)  # fmt: skip


KILL_IT = (
    "kill-supervisor",
    "kill-supervisor-and-launcher",
    "stop-inits-and-kill-supervisor",
    "stop-launcher-and-kill-supervisor",
)

# ---- the program to which it happens ----


def _launchers() -> list[int]:
    return [child for child in children(os.getpid()) if read(f"/proc/{child}/cmdline").startswith(b"tinyvisor-launcher\0")]


def _act(action: str) -> None:
    launchers = _launchers()
    inits = [init for launcher in launchers for init in children(launcher)]
    how, _, who = action.partition("-")
    both = who.endswith("-and-kill-supervisor")
    who = who.removesuffix("-and-kill-supervisor").removesuffix("-and-launcher")
    if action == "kill-supervisor-and-launcher":
        _send(launchers, signal.SIGKILL)
    pids = {"supervisor": [os.getpid()], "launcher": launchers, "inits": inits}[who]
    _send(pids, signal.SIGKILL if how == "kill" else signal.SIGSTOP)
    if how == "stop" and who != "supervisor" and not both:
        threading.Timer(PAUSE, _send, (pids, signal.SIGCONT)).start()
    if both and who != "supervisor":
        os.kill(os.getpid(), signal.SIGKILL)


def _send(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _at(instant: int, action: str, say: Say) -> None:
    """`action` at the n-th instant at which a message is about to be sent, has been, or has come."""
    seen = 0

    def pass_by() -> None:
        nonlocal seen
        seen += 1
        if seen == instant:
            say(f"hit {' '.join(map(str, _launchers()))}")
            _act(action)

    def tapped(name: str) -> Callable[..., Any]:
        real = getattr(socket.socket, name)

        def call(self: socket.socket, *arguments: Any) -> Any:
            ours = self.type == socket.SOCK_SEQPACKET
            if ours and name != "recvmsg":
                pass_by()
            result = real(self, *arguments)
            if ours:
                pass_by()
            return result

        return call

    for name in ("send", "sendmsg", "recvmsg"):
        setattr(socket.socket, name, tapped(name))


async def _work(name: str, forgiving: bool) -> None:
    """A bit of everything. `forgiving`: inits may be killed, and who makes an ordinary user's user namespaces."""
    failures = (ContainerError, HostError) if forgiving else ()

    def check(status: str, expected: str) -> None:
        assert status == expected or (forgiving and status == "signaled"), (status, expected)

    async with open_runtime(name=name) as runtime:
        for part in (_run, _fail, _live, _exec, _park):
            with contextlib.suppress(*failures):
                await part(runtime, name, check)


Check = Callable[[str, str], None]


async def _run(runtime: Runtime, name: str, check: Check) -> None:
    result = await runtime.run(make_spec("sh", "-c", "exit 3", name=f"{name}.1"), capture_stdout=True)
    check(result.status, "nonzero_exit")


async def _fail(runtime: Runtime, name: str, check: Check) -> None:
    with contextlib.suppress(LaunchError):
        check((await runtime.run(make_spec("/no/such/program", name=f"{name}.2"))).status, "no program")


async def _live(runtime: Runtime, name: str, check: Check) -> None:
    script = "trap 'exit 7' USR1; echo ready; while :; do sleep 1000 & wait; done"
    async with runtime.start(make_spec("sh", "-c", script, name=f"{name}.3"), stdout=PIPE) as container:
        await _ready(container)
        await container.signal(signal.SIGUSR1)
        check((await container.wait()).status, "nonzero_exit")
    async with runtime.start(make_spec("sleep", "1000", name=f"{name}.4", tty=True)) as container:
        check((await container.stop(grace=0)).status, "stopped")


async def _ready(container: Container) -> None:
    assert container.stdout is not None
    async for _ in container.stdout:
        return


async def _exec(runtime: Runtime, name: str, check: Check) -> None:
    async with runtime.start(make_spec("sleep", "1000", name=f"{name}.5")) as container:
        check((await container.exec(["true"])).status, "ok")


async def _park(runtime: Runtime, name: str, check: Check) -> None:
    async with runtime.pool(make_spec("true", name=f"{name}.6").with_(name=DEFAULT_NAME), size=1) as pool:
        check((await pool.run()).status, "ok")


def _supervise(kind: str, name: str, seed: int, say: Say) -> None:
    if kind == "sweep":
        test_kill.sweep()
        return
    action, _, instant = kind.partition(":")
    _at(int(instant), action, say)
    trio.run(_work, name, action.startswith("kill-inits"))


# ---- the test's side ----


class Home:
    """Where a supervisor leaves what it leaves: the system's places."""

    def __init__(self) -> None:
        self.nursery = Nursery(command=(sys.executable, "-m", MODULE))
        self.run_directory = run_directory()

    def close(self) -> None:
        self.nursery.close()

    def files(self, victim: Victim) -> list[str]:
        """Cgroups, run files, ranges of ids that are locked."""
        return [*victim.files(), *self._leases()]

    def _leases(self) -> list[str]:
        try:
            file = (self.run_directory / "id-ranges").stat()
        except FileNotFoundError:
            return []
        name = f" {os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino} "
        return [line for line in Path("/proc/locks").read_text().splitlines() if name in line]

    def sweep(self) -> None:
        """As whoever starts one next does."""
        with contextlib.closing(self.nursery.fork("sweep")) as sweeper:
            sweeper.said("end", BOUND)


class UsersHome(Home):
    """An ordinary user's, whose supervisors are forks in one user namespace. Its mounts count, too."""

    def __init__(self, user: User) -> None:
        command = user.command(*TINYVISOR, "unshare", sys.executable, "-P", "-m", MODULE)
        self.nursery = Nursery(command=command)
        self.user = user
        self.run_directory = user.home.with_name("run") / "tinyvisor"
        self.sweep()  # by then it is in there
        self._mounts = self._mounted()

    def _mounted(self) -> set[str]:
        return {*Path(f"/proc/{self.nursery.pid}/mountinfo").read_text().splitlines()}

    def files(self, victim: Victim) -> list[str]:
        cgroups = [str(path) for cgroup in self.user.cgroups for path in Path(cgroup).rglob("*") if path.name == victim.name]
        files = [str(path) for path in self.run_directory.glob(f"{victim.name}*")]
        return [*cgroups, *files, *self._leases(), *(self._mounted() ^ self._mounts)]


@pytest.fixture
def root() -> Iterator[Home]:
    with contextlib.closing(Home()) as home:
        yield home
        home.sweep()


@pytest.fixture
def user(tmp_path: Path) -> Iterator[Home]:
    if shutil.which("newuidmap") is None:
        skip("needs newuidmap (uidmap)")
    with ordinary_user(tmp_path, delegated=True) as user:
        with contextlib.closing(UsersHome(user)) as home:
            yield home


def _round(home: Home, action: str, instant: int) -> bool:
    """Whether there are that many instants."""
    with contextlib.closing(home.nursery.fork(f"{action}:{instant}")) as victim:
        if action in KILL_IT:
            hit = _wait_for_the_end(victim) == "killed"
            if "stop-launcher" in action:  # it would wait for this for ever
                _send([int(pid) for pid in (victim.said("hit") or "").split()], signal.SIGCONT)
        elif action == "stop-supervisor-and-kill-supervisor":
            hit = _wait_for_the_end(victim) == "stopped"
            victim.kill()
        else:
            if action == "stop-supervisor" and (hit := _wait_for_the_end(victim) == "stopped"):
                victim.kill(signal.SIGCONT)
            victim.said("end", BOUND)
            hit = victim.said("hit") is not None
            died = victim.said("LauncherDied") is not None
            assert not died or action == "kill-launcher"
        left = wait_until_empty(victim.processes)
        assert left == [], (action, instant)
        if wait_until_empty(lambda: home.files(victim), 0.0 if "launcher" in action else 0.2):
            home.sweep()  # it was killed before the launcher knew what there is to remove, or with it
        left = wait_until_empty(lambda: home.files(victim))
        assert left == [], (action, instant)
    return hit


def _wait_for_the_end(victim: Victim) -> str:
    """ "killed", "stopped", or "" where it has come to its end."""
    state = ""

    def look() -> list[str]:
        nonlocal state
        text = read(f"/proc/{victim.pid}/stat").rpartition(b") ")[2][:1]
        state = {b"T": "stopped", b"": "killed", b"Z": "killed"}.get(text, "")
        return [] if state else ["it goes on"]

    assert not wait_until_empty(look, BOUND)
    return "" if state == "killed" and victim.said("end") is not None else state


def _each_instant(home: Home, action: str) -> int:
    """How many there were."""
    instant = 1
    while _round(home, action, instant):
        instant += 1
    assert instant > 30
    return instant - 1


@pytest.mark.timeout(900 + ROUNDS)
@pytest.mark.parametrize("who, step", [("root", 4), pytest.param("user", 8, marks=pytest.mark.hostroot)])
def test_at_each_message(who: str, step: int, request: pytest.FixtureRequest) -> None:
    """A sample, another one each time."""
    home: Home = request.getfixturevalue(who)
    print(f"TINYVISOR_TEST_SEED={test_kill.SEED}")
    luck = random.Random(test_kill.SEED)
    if ALL:
        done = 0
        while done < ROUNDS:
            done += sum(_each_instant(home, action) for action in ACTIONS)
        print(f"{done} rounds")
        return
    rounds, instant = luck.randrange(len(ACTIONS)), 1 + luck.randrange(step)
    while _round(home, ACTIONS[rounds % len(ACTIONS)], instant):
        rounds, instant = rounds + 1, instant + step
    assert instant > 30


if __name__ == "__main__":
    test_kill.main(_supervise)
