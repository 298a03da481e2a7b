"""Containers made ahead: each is used once, nothing of one run is in another, and none is left."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.kernel.helpers import BOUND, ON_TRIO, cgroups, status, until, wait_for_the_end_of
from tests.kernel.test_capture import no_fd_is_left
from tinyvisor.errors import LauncherDied, LaunchError, RunFailed, SpecError
from tinyvisor.runtime import Runtime, open_runtime
from tinyvisor.runtime import launcher as wire
from tinyvisor.runtime.idmap import IDS, Ranges
from tinyvisor.runtime.leases import read_ranges
from tinyvisor.runtime.pool import WarmRuns
from tinyvisor.runtime.warm import Warm
from tinyvisor.spec import Limits, Spec
from tinyvisor.state import Result

pytestmark = [pytest.mark.kernel, pytest.mark.anyio]

WHO = "hostname; echo $$; ls -A /tmp /dev/shm; touch /tmp/$(hostname) /dev/shm/x"


def inits(runtime: Runtime) -> list[int]:
    launcher = runtime._launcher.pid
    return [int(child) for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


async def full(pool: WarmRuns, size: int) -> None:
    await until(lambda: pool.ready >= size)


async def parked(runtime: Runtime, size: int) -> list[int]:
    """The inits of so many containers that wait, once they do: their children are before their exec."""
    found: list[int] = []

    def are_there() -> bool:
        found[:] = [pid for pid in inits(runtime) if has_child(pid)]
        return len(found) >= size

    await until(are_there)
    return found


def has_child(pid: int) -> bool:
    """And not only one that makes its namespaces, and is killed: the workload is process 2 of the container."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return bool(children) and status(children[0])["NSpid"].split()[-1] == "2"
    except (OSError, KeyError):
        return False


async def test_each_is_used_once(shared: Runtime) -> None:
    """By its namespaces, its name, and what is in its file systems; with more runs than are ready, too."""
    found: list[str] = []

    async def one(pool: WarmRuns) -> None:
        with anyio.fail_after(BOUND):
            result = await pool.run(["sh", "-c", WHO], capture_stdout=True)
        assert result.status == "ok"
        found.append((result.stdout or b"").decode())

    with no_fd_is_left():
        async with shared.pool(["true"], size=3) as pool:
            for _ in range(5):
                async with anyio.create_task_group() as group:
                    for _ in range(6):
                        group.start_soon(one, pool)
    assert len(found) == 30
    assert len({text.split()[0] for text in found}) == 30
    for text in found:
        assert text.splitlines()[1:] == ["2", "/dev/shm:", "", "/tmp:"]
    assert shared.containers == {}


async def test_a_run_is_as_a_cold_one(shared: Runtime) -> None:
    spec = Spec(command=("cat",), user="1234:5678", pids_limit=5, mem_limit=64 << 20, timeout=BOUND, environment={"A": "spec"})
    async with shared.pool(spec, size=1) as pool:
        for _ in range(3):
            await full(pool, 1)
            result = await pool.run(stdin=b"x" * 200_000, capture_stdout=True)
            assert (result.status, result.stdout, result.pids_peak) == ("ok", b"x" * 200_000, 1)
            assert set(result.limits_enforced) == {"pids_limit", "mem_limit", "timeout"}
            await full(pool, 1)
            result = await pool.run(["sh", "-c", "id -u; echo $A $B; echo e >&2; exit 3"], environment={"B": "run"},
                                    capture_stdout=True, capture_stderr=True)  # fmt: skip
            assert (result.status, result.exit_code, result.stderr) == ("nonzero_exit", 3, b"e\n")
            assert result.stdout == b"1234\nrun\n"
            with pytest.raises(RunFailed):
                await pool.run(["false"], check=True)
            await full(pool, 1)
            with pytest.raises(LaunchError, match="exec /no/such: No such file"):
                await pool.run(["/no/such"])


async def test_its_time_begins_with_its_command(shared: Runtime) -> None:
    async with shared.pool(["true"], size=1, limits=Limits(wall=0.3)) as pool:
        await parked(shared, 1)
        await anyio.sleep(0.4)  # longer than it may run
        assert (await pool.run(["true"])).status == "ok"
        await full(pool, 1)
        assert (await pool.run(["sleep", "60"])).reason == "killed after timeout 300ms"
    async with shared.pool(["true"], size=1, limits=Limits(wall=BOUND, cpu_time=0.2)) as pool:
        await full(pool, 1)
        assert (await pool.run(["sh", "-c", "while :; do :; done"])).reason == "killed after cpu_time 200ms"


def links_of(pid: str) -> set[str]:
    """What its fds are; one that it closes meanwhile it does not hold."""
    links = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            links.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return links


async def test_a_parked_one_holds_nothing_of_earlier_requests(shared: Runtime) -> None:
    """Neither the pipes of the runs before, nor their files; what its child holds goes at its exec."""
    (secret, ours) = os.pipe()
    try:
        await shared.run(["true"], stdin=secret)
        async with shared.pool(["true"], size=2):
            for pid in await parked(shared, 2):
                child = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
                for who in (str(pid), child):
                    links = links_of(who)
                    assert os.readlink(f"/proc/self/fd/{secret}") not in links
                    launchers = {os.readlink(link) for link in Path(f"/proc/{shared._launcher.pid}/fd").iterdir()}
                    assert not [link for link in links - launchers if link.startswith("pipe:")], links
                assert "secret" not in Path(f"/proc/{pid}/environ").read_text()
        result = await shared.run(["sh", "-c", "ls /proc/self/fd"], capture_stdout=True)
        assert result.stdout == b"0\n1\n2\n3\n"
    finally:
        os.close(secret)
        os.close(ours)


async def test_one_that_is_killed_from_outside_is_passed_over(shared: Runtime) -> None:
    with no_fd_is_left():
        async with shared.pool(["true"], size=3) as pool:
            pids = await parked(shared, 3)
            for pid in pids[:2]:
                os.kill(pid, signal.SIGKILL)
            await until(lambda: pool.ready == 1)
            results = [await pool.run(["echo", str(n)], capture_stdout=True) for n in range(5)]
            assert [(result.status, result.stdout) for result in results] == [("ok", b"%d\n" % n) for n in range(5)]
            for pid in await parked(shared, 3):
                os.kill(pid, signal.SIGKILL)
            await wait_for_the_end_of(*pids)
            await until(lambda: not pool.ready)
            assert (await pool.run(["true"])).status == "ok"
    assert shared.containers == {}


async def test_an_init_that_is_killed_in_a_run_ends_it_as_in_a_cold_one(shared: Runtime) -> None:
    results: dict[str, Result] = {}

    async def run(name: str, how: Any) -> None:
        results[name] = await how(["sh", "-c", "sleep 1000; true"])

    async with shared.pool(["true"], size=1) as pool:
        for name, how in (("warm", pool.run), ("cold", shared.run)):
            await parked(shared, 1)
            async with anyio.create_task_group() as group:
                group.start_soon(run, name, how)
                await until(lambda: any(_runs(pid, "sleep") and _is_idle(pid) for pid in inits(shared)))
                (pid,) = [pid for pid in inits(shared) if _runs(pid, "sleep")]
                os.kill(pid, signal.SIGKILL)
    assert (results["warm"].status, results["warm"].signal) == ("signaled", 9)
    assert (results["cold"].status, results["cold"].signal) == ("signaled", 9)


def _is_idle(init: int) -> bool:
    """It has said that the workload runs: it holds no more than it keeps, and sleeps."""
    status = Path(f"/proc/{init}/status").read_text()
    return "State:\tS" in status and len(os.listdir(f"/proc/{init}/fd")) <= 8


def _runs(init: int, name: str) -> bool:
    try:
        (child,) = Path(f"/proc/{init}/task/{init}/children").read_text().split()
        (grandchild,) = Path(f"/proc/{child}/task/{child}/children").read_text().split()
        return Path(f"/proc/{grandchild}/comm").read_text().strip() == name
    except (OSError, ValueError):
        return False


async def test_a_shape_that_fails_says_so_at_each_run(shared: Runtime) -> None:
    with no_fd_is_left():
        async with shared.pool(["true"], size=2, working_dir="/proc/no") as pool:
            for _ in range(3):
                with pytest.raises(LaunchError, match="/proc/no"):
                    await pool.run(["true"])
            await until(lambda: not pool.ready)
    assert shared.containers == {}
    assert (await shared.run(["true"])).status == "ok"


async def test_leaving_ends_them(shared: Runtime) -> None:
    for wait in (False, True):
        with no_fd_is_left(), anyio.fail_after(BOUND):
            async with shared.pool(["true"], size=4) as pool:
                if wait:
                    await full(pool, 4)
        assert shared.containers == {}
        assert inits(shared) == []
        assert cgroups(shared) == []


async def test_what_the_body_raises_comes_out_as_itself(shared: Runtime) -> None:
    with pytest.raises(KeyError):
        async with shared.pool(["true"], size=1):
            raise KeyError
    assert shared.containers == {}


async def test_cancelled_runs(shared: Runtime) -> None:
    with no_fd_is_left(), anyio.fail_after(BOUND):
        async with shared.pool(["true"], size=2) as pool:
            for delay in (0, 0.0005, 0.001, 0.002, 0.005, 0.02):
                await full(pool, 1)
                with anyio.move_on_after(delay) as scope:
                    await pool.run(["sleep", "1000"], stdin=bytes(1 << 20), capture_stdout=True)
                assert scope.cancelled_caught
    assert shared.containers == {}


@pytest.mark.parametrize(
    "arguments",
    [{"size": 0}, {"size": "8"}, {"network_mode": "service:x"}, {"pids_limit": 0}, {"name": "x"}],
    ids=lambda item: str(item),
)
async def test_wrong_pools(shared: Runtime, arguments: Any) -> None:
    with pytest.raises(SpecError) as caught:
        async with shared.pool(["true"], **arguments):
            pass
    assert caught.value.field in arguments


async def test_files_need_a_directory_that_is_made_before(shared: Runtime) -> None:
    async with shared.pool(["true"], size=1) as pool:
        wrong: dict[str, Any] = {"files": {"a": b""}, "collect": ["a"]}
        for name, value in wrong.items():
            with no_fd_is_left(), pytest.raises(SpecError, match=f"{name}: a pool's containers"):
                await pool.run(["true"], **{name: value})


# ---- a warm runtime ----


async def test_equal_runs_warm_up_and_a_new_shape_takes_over(anyio_backend: str) -> None:
    with anyio.fail_after(BOUND), no_fd_is_left():
        async with open_runtime(warm=2) as runtime:
            names = set()

            async def one(**fields: Any) -> None:
                result = await runtime.run(["hostname"], capture_stdout=True, **fields)
                assert result.status == "ok"
                assert result.stdout not in names
                names.add(result.stdout)

            for _ in range(3):
                await one()
            await parked(runtime, 2)
            await until(lambda: len(inits(runtime)) == 2)  # the last run's own may still take its namespaces down
            first = runtime._warm.pool
            await one(pids_limit=7)  # once is no habit
            assert runtime._warm.pool is first
            for _ in range(3):
                await one(pids_limit=7)
            assert runtime._warm.pool is not first
            await parked(runtime, 2)
            await until(lambda: len(inits(runtime)) == 2)
            assert len((await runtime.run(["ls", "/tmp"], pids_limit=7, capture_stdout=True)).stdout or b"") == 0
            for n in range(4):
                result = await runtime.run(["sh", "-c", f"ls; echo {n} > f"], collect=["*"], capture_stdout=True)
                assert (result.stdout, result.files) == (b"", {"f": b"%d\n" % n})


async def test_runs_one_after_the_other_have_the_next_made_beside_them(
    anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Warm, "patience", 2)  # seen before it goes, on a slow machine, too
    with anyio.fail_after(BOUND), no_fd_is_left():
        async with open_runtime() as runtime:
            found = [(await runtime.run(["sh", "-c", WHO], capture_stdout=True)).stdout for _ in range(4)]
            assert len(set(found)) == len(found)
            await until(lambda: [has_child(pid) for pid in inits(runtime)] == [True])
            assert (await runtime.run(["sh", "-c", WHO], capture_stdout=True)).stdout not in found
            await until(lambda: not inits(runtime) and not cgroups(runtime))


async def test_what_was_made_unasked_gives_its_ids_to_who_asks(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = read_ranges()
    uids, gids = (tuple((pairs[number][which], IDS) for number in (4000, 4001)) for which in (0, 1))
    few = Ranges(uids, gids, "a test")
    monkeypatch.setattr("tinyvisor.runtime.engine.read_ranges", lambda: few)
    monkeypatch.setattr(Warm, "patience", BOUND)
    with anyio.fail_after(BOUND), no_fd_is_left():
        async with open_runtime() as runtime, runtime.start(["sleep", "1000"]):
            for _ in range(3):
                assert (await runtime.run(["true"])).status == "ok"
        async with open_runtime() as runtime:
            for _ in range(3):
                assert (await runtime.run(["true"])).status == "ok"
            await until(lambda: [has_child(pid) for pid in inits(runtime)] == [True])
            async with runtime.start(["sleep", "1000"]), runtime.start(["sleep", "1000"]):
                assert len(inits(runtime)) == 2
            assert (await runtime.run(["true"])).status == "ok"


async def test_it_is_left_in_whatever_way(anyio_backend: str) -> None:
    for number in range(12):
        with anyio.fail_after(BOUND), no_fd_is_left(), anyio.move_on_after(BOUND if number % 3 else number / 500):
            async with open_runtime(warm=3 if number < 8 else None) as runtime:
                for _ in range(number % 5):
                    await runtime.run(["true"])
                if number % 2:
                    await anyio.sleep(0.003 * number)


@pytest.mark.parametrize("warm", [-1, "2", True, 1.5])
async def test_wrong_warmth(anyio_backend: str, warm: Any) -> None:
    with pytest.raises(SpecError, match="warm: expected a whole number"):
        async with open_runtime(warm=warm):
            pass


async def test_its_launcher_is_killed(anyio_backend: str) -> None:
    with anyio.fail_after(BOUND), no_fd_is_left():
        async with open_runtime(warm=2) as runtime:
            for _ in range(3):
                await runtime.run(["true"])
            pids = await parked(runtime, 2)
            os.kill(runtime._launcher.pid, signal.SIGKILL)
            await wait_for_the_end_of(*pids)
            with pytest.raises(LauncherDied):
                for _ in range(3):
                    await runtime.run(["true"])


async def test_a_parked_one_has_no_process_in_its_limits(anyio_backend: str) -> None:
    """Its first is the command's own: a limit of one process is enough, and nothing is charged before."""
    with anyio.fail_after(BOUND):
        async with open_runtime() as runtime, runtime.pool(["true"], size=2, limits=Limits(pids=1, memory="32m")) as pool:
            await full(pool, 2)
            for _ in range(4):
                result = await pool.run(["cat", "/proc/self/stat"], capture_stdout=True)
                assert (result.status, result.pids_peak) == ("ok", 1)


def sleeps(pid: str) -> bool:
    return status(pid)["State"].startswith("S")


async def test_a_parked_one_is_confined_as_one_that_runs(anyio_backend: str, tmp_path: Path) -> None:
    """All but the exec is behind it; its filter, too, unless that may refuse what it does till then."""
    profile = tmp_path / "profile.json"
    profile.write_text('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["recvmsg"], "action": "SCMP_ACT_ERRNO"}]}')
    parts = ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Umask")
    own: dict[str, Any]
    with anyio.fail_after(BOUND):
        for own in ({"user": "7:8"}, {"user": "7:8", "seccomp": profile}):
            async with open_runtime() as runtime, runtime.pool(["true"], size=1, **own) as pool:
                (pid,) = await parked(runtime, 1)
                child = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
                await until(functools.partial(sleeps, child))
                waiting = status(child)
                links = links_of(child)
                result = await pool.run(["cat", "/proc/self/status"], capture_stdout=True)
                lines = dict(line.split(":\t", 1) for line in (result.stdout or b"").decode().splitlines())
                if "seccomp" in own:
                    assert (waiting["NoNewPrivs"], waiting["Seccomp"], lines["Seccomp"]) == ("0", "0", "2")
                else:
                    same = {part: waiting[part] for part in parts}
                    assert same == {part: lines[part].strip() for part in same}
                    assert waiting["Seccomp"] == "2"
                    assert all(link.endswith("/dev/null") or link.startswith("socket:") for link in links), links


ENDS: list[tuple[list[str], dict[str, Any]]] = [
    (["true"], {}),
    (["sh", "-c", "echo out; exit 3"], {"capture_stdout": True}),
    (["sh", "-c", "kill -9 $$"], {}),
    (["sh", "-c", "x=$(head -c 99m /dev/zero | tail -c 90m); echo $x"], {}),
]


@ON_TRIO
@pytest.mark.parametrize(
    ("runs", "limits"),
    [(ENDS, Limits(pids=4, memory="30m")), ([(["sleep", "60"], {})], Limits(wall=0.3))],
    ids=["ends", "timeout"],
)
async def test_a_run_by_itself_does_not_wait_for_the_launcher(
    shared: Runtime, runs: list[tuple[list[str], dict[str, Any]]], limits: Limits
) -> None:
    """Its init has all to say; the cgroups go and the slot is filled anew when the launcher comes to it."""
    launcher = shared._launcher.pid

    def facts(result: Result) -> list[Any]:
        names = "status exit_code signal reason oom_killed pids_peak limits_enforced stdout"
        return [getattr(result, name) for name in names.split()] + [(result.memory_peak or 0) > 0]

    cold = [facts(await shared.run(command, limits=limits, **how)) for command, how in runs]
    async with shared.pool(["true"], size=1, limits=limits) as pool:
        for (command, how), expected in zip(runs, cold, strict=True):
            await parked(shared, 1)
            (name,) = [container.name for container in shared.containers.values()]
            os.kill(launcher, signal.SIGSTOP)
            timer = threading.Timer(BOUND / 2, os.kill, (launcher, signal.SIGCONT))  # an end that waits for it is seen below
            timer.start()
            try:
                found = facts(await pool.run(command, **how))
                assert (found, shared.containers, pool.ready) == (expected, {}, 0)
                assert any(name in str(path) for path in cgroups(shared))
                assert name in shared._launches.names, "not to be given to another yet"
            finally:
                timer.cancel()
                os.kill(launcher, signal.SIGCONT)
            await full(pool, 1)
            assert not any(name in str(path) for path in cgroups(shared))
    assert (shared.containers, cgroups(shared)) == ({}, [])


FORGE = """
import ctypes, os, socket, sys
syscall = ctypes.CDLL(None, use_errno=True).syscall
init, said = os.pidfd_open(1), 0
for number in range(64):
    fd = syscall(438, init, number, 0)  # pidfd_getfd
    if fd >= 0:
        try:
            said += socket.socket(fileno=fd).send(bytes.fromhex(sys.argv[1])) > 0
        except OSError:
            pass
print(said, [fd for fd in os.listdir("/proc/self/fd") if fd > "2" and os.path.exists(f"/proc/self/fd/{fd}")
             and os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")], flush=True)
sys.stdin.read()
sys.exit(7)
"""


@ON_TRIO
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, 0),
        ({"capabilities": {"SYS_PTRACE"}}, 0),
        ({"userns_mode": "host"}, 0),
        ({"userns_mode": "host", "capabilities": {"SYS_PTRACE"}}, 1),  # it has power over its init: nobody listens to that
    ],
)
async def test_a_workload_can_not_say_that_it_has_ended(shared: Runtime, fields: dict[str, Any], said: int) -> None:
    """In its init's name, on a socket that only that one has."""
    gone = wire._GONE.pack(1, 0, 0, 0, 1 | 8, 0, 1, 1, 0, 0, b"", 0, 0, 0, 0)
    word = wire._EVENT.pack(wire.MAGIC, wire.VERSION, wire.ENDED, 0, 0, 0, len(gone), 0) + gone
    assert wire.decode_gone(wire.decode_event(word).data).exited, "else it would not be taken for one"
    (stdin, release), (heard, stdout) = os.pipe(), os.pipe()
    results: list[Result] = []

    async def run(pool: WarmRuns) -> None:
        results.append(await pool.run(["/usr/bin/python3", "-c", FORGE, word.hex()], stdin=stdin, stdout=stdout))

    try:
        async with shared.pool(["true"], size=1, seccomp="unconfined", **fields) as pool:
            await parked(shared, 1)
            async with anyio.create_task_group() as group:
                group.start_soon(run, pool)
                with anyio.fail_after(BOUND):
                    await anyio.wait_readable(heard)
                assert os.read(heard, 100) == b"%d []\n" % said
                await shared.run(["true"])  # what it has said is heard by now
                assert not results
                os.close(release)
                release = -1
        assert [(result.status, result.exit_code) for result in results] == [("nonzero_exit", 7)]
    finally:
        for fd in (stdin, release, heard, stdout):
            if fd >= 0:
                os.close(fd)
