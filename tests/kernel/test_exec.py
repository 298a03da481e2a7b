"""One more program in a running container: the same world, rights and limits as its workload, whoever lies in wait inside."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.kernel.helpers import BOUND, cgroup_of, namespace, read_until, status, wait_for_the_end_of, waiting, workload
from tests.kernel.test_capture import no_fd_is_left
from tinyvisor.errors import ContainerError, LaunchError, SpecError
from tinyvisor.runtime import PIPE, STDOUT, Container, Runtime, open_runtime
from tinyvisor.runtime.plan import capability_mask
from tinyvisor.spec import Spec, Tmpfs
from tinyvisor.state import Exit

pytestmark = [pytest.mark.kernel, pytest.mark.anyio]


async def output(container: Container, *command: str, **arguments: Any) -> tuple[Exit, str]:
    """What a program that is exec'ed in a container prints, both streams together."""
    with anyio.fail_after(BOUND):
        async with container.open_exec(command, stdout=PIPE, stderr=STDOUT, **arguments) as process:
            assert process.stdout is not None
            data = b"".join([chunk async for chunk in process.stdout])
            return await process.wait(), data.decode(errors="replace")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# ---- ends ----


@pytest.mark.parametrize("code", [0, 1, 2, 126, 127, 128, 137, 255])
async def test_exit_codes(shared: Runtime, code: int) -> None:
    async with waiting(shared) as container:
        exit = await container.exec(["sh", "-c", f"exit {code}"])
        assert (exit.exit_code, exit.signal, exit.status) == (code, None, "nonzero_exit" if code else "ok")


@pytest.mark.parametrize("number", [1, 6, 9, 15, 34, 64])
async def test_signals(shared: Runtime, number: int) -> None:
    async with waiting(shared) as container:
        exit = await container.exec(["bash", "-c", f"kill -{number} $$; sleep 60"])
        assert (exit.exit_code, exit.signal, exit.status) == (None, number, "signaled")


async def test_all_streams(shared: Runtime) -> None:
    async with waiting(shared) as container, container.open_exec(["cat"], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        await process.stdin.send(b"one\ntwo\n")
        await process.stdin.aclose()
        assert process.stdout is not None
        assert [line async for line in process.stdout] == [b"one\n", b"two\n"]
        assert (await process.wait()).status == "ok"


async def test_what_does_not_start_says_why(shared: Runtime) -> None:
    async with waiting(shared) as container:
        for command, arguments, message in (
            (["/no/such"], {}, "exec /no/such: No such file"),
            (["/etc/passwd"], {}, "exec /etc/passwd: Permission denied"),
            (["true"], {"working_dir": "/no/such"}, "/no/such: No such file"),
        ):
            with no_fd_is_left(), pytest.raises(LaunchError, match=message):
                await container.exec(command, **arguments)  # type: ignore[arg-type]
        wrong: Any
        for wrong in ({"user": "nobody-here"}, {"working_dir": "relative"}, {"environment": {"A=": "x"}}, {"timeout": -1}):
            with no_fd_is_left(), pytest.raises(SpecError):
                await container.exec(["true"], **wrong)
        with no_fd_is_left(), pytest.raises(SpecError):
            await container.exec(["echo", "\ud800"])
        with no_fd_is_left(), pytest.raises(SpecError, match="mem_limit: an exec can't change that"):
            container.open_exec(["true"], mem_limit=5)
        assert list(shared.containers) == [container.id]


async def test_a_timeout_is_its_own(shared: Runtime) -> None:
    async with waiting(shared, timeout=1000) as container:
        exit = await container.exec(["sh", "-c", "sleep 1000 & sleep 1000"], timeout=0.1)
        assert (exit.status, exit.signal, exit.reason) == ("time_limit", 9, "killed after timeout 100ms")
        assert container.exit is None
        assert await settled(container) == ["cat"]


async def settled(container: Container) -> list[str]:
    """What runs in it besides init, once what was killed has been reaped."""
    with anyio.fail_after(BOUND):
        while len(names := [name.partition("[")[0] for name in container.processes()]) > 1:  # noqa: ASYNC110 - nobody tells us
            await anyio.sleep(0.005)
    return names


async def test_leaving_early_kills_it_and_nothing_else(shared: Runtime) -> None:
    async with waiting(shared) as container:
        async with container.open_exec(["sh", "-c", "sleep 1000 & echo ready; sleep 1000"], stdout=PIPE) as process:
            await read_until(process.stdout, "ready\n")
            assert len(container.processes()) >= 3
        assert process.exit is not None
        assert process.exit.signal == 9
        assert await settled(container) == ["cat"]


async def test_cancelling_kills_it(shared: Runtime) -> None:
    async with waiting(shared) as container:
        for delay in (0.0, 0.001, 0.01, 0.05):
            with no_fd_is_left(), anyio.move_on_after(delay) as scope:
                await container.exec(["sh", "-c", "sleep 1000; true"])
            assert scope.cancelled_caught
        assert await settled(container) == ["cat"]
        assert list(shared.containers) == [container.id]


async def test_it_can_be_signalled_and_stopped(shared: Runtime) -> None:
    async with waiting(shared) as container:
        script = "trap 'echo hup' HUP; trap 'echo term; exit 5' TERM; echo ready; while :; do sleep 0.01; done"
        async with container.open_exec(["bash", "-c", script], stdout=PIPE) as process:
            await read_until(process.stdout, "ready\n")
            await process.signal("HUP")
            await read_until(process.stdout, "hup\n")
            exit = await process.stop(grace=BOUND)
            assert (exit.exit_code, exit.held_up_by) == (5, ())
        assert container.exit is None


async def test_it_can_not_signal_who_is_not_in_the_container(shared: Runtime) -> None:
    """Its parent is outside: 0, as its number is seen inside."""
    async with waiting(shared, name="bystander") as bystander, waiting(shared) as container:
        exit, text = await output(
            container, "python3", "-c", "import os; print(os.getppid(), flush=True); os.kill(-1, 9)", user="0"
        )
        assert text == "0\n"
        assert exit.signal in (None, 9)
        assert bystander.exit is None
        with anyio.fail_after(BOUND):
            assert (await container.wait()).signal == 9  # its fellows, it can


async def test_the_container_ends_and_the_exec_with_it(shared: Runtime) -> None:
    async with waiting(shared) as container, container.open_exec(["sleep", "1000"]) as process:
        container.kill()
        with anyio.fail_after(BOUND):
            assert (await container.wait()).status == "stopped"
            exit = await process.wait()
        assert (exit.status, exit.signal) == ("signaled", 9)


async def test_the_workload_ends_and_the_exec_with_it(shared: Runtime) -> None:
    async with waiting(shared) as container, container.open_exec(["sleep", "1000"]) as process:
        assert container.stdin is not None
        await container.stdin.aclose()
        with anyio.fail_after(BOUND):
            assert (await container.wait()).status == "ok"
            assert (await process.wait()).signal == 9


async def test_an_ended_container_takes_no_more(shared: Runtime) -> None:
    async with waiting(shared) as container:
        await container.stop()
        with no_fd_is_left(), pytest.raises(ContainerError, match="is not running"):
            await container.exec(["true"])


async def test_a_race_of_its_end_with_execs(shared: Runtime) -> None:
    """Each of them has an end, one way or the other."""
    ends: list[str] = []

    async def one(container: Container, number: int) -> None:
        try:
            exit = await container.exec(["sleep", "1000"] if number % 2 else ["true"])
            ends.append(exit.status)
        except ContainerError as exc:
            ends.append(type(exc).__name__)

    for number in range(10):
        with no_fd_is_left(), anyio.fail_after(BOUND):
            async with shared.start(["sleep", "1000"], name="racer", pids_limit=100) as container:
                async with anyio.create_task_group() as group:
                    for index in range(8):
                        group.start_soon(one, container, index)
                    await anyio.sleep(number / 1000)
                    container.kill()
        assert shared.containers == {}
    assert len(ends) == 80


async def test_its_launcher_dies(anyio_backend: str) -> None:
    with anyio.fail_after(BOUND):
        async with open_runtime() as runtime:
            async with waiting(runtime) as container, container.open_exec(["sleep", "1000"], stdout=PIPE) as process:
                pids = [container.pid, process.pid, workload(container), *children(process.pid)]
                os.kill(runtime._launcher.pid, signal.SIGKILL)
                with pytest.raises(Exception, match="launcher"):
                    await process.wait()
                await wait_for_the_end_of(*pids)


# ---- the same world ----

WORLD = """
import os
for name in sorted(os.listdir('/proc/self/ns')):
    print(name, os.readlink('/proc/self/ns/' + name))
for line in open('/proc/self/status'):
    if line.split(':')[0] in ('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs', 'Seccomp', 'SigBlk', 'SigIgn',
                              'Uid', 'Gid', 'Groups', 'Umask', 'Cpus_allowed', 'NSpid'):
        print(line.strip() if not line.startswith('NSpid') else 'NSpid %d' % len(line.split()))
print(open('/proc/self/cgroup').read())
print(open('/proc/self/mountinfo').read())
print(open('/proc/self/limits').read())
print(open('/proc/self/oom_score_adj').read())
print(sorted(os.listdir('/proc/self/fd')), os.getcwd(), os.stat('/').st_ino, os.stat('/').st_dev, os.umask(0))
print(os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid())
print(sorted(os.environ.items()), os.uname().nodename)
"""

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "user": {"user": "1234:5678", "group_add": ("77",), "umask": 0o027, "working_dir": "/tmp"},
    "capabilities": {"capabilities": {"CHOWN", "NET_RAW"}, "no_new_privs": False},
    "service": {"root_capabilities": {"CHOWN", "SETUID", "SYS_CHROOT"}},
    "limits": {"pids_limit": 20, "mem_limit": 256 << 20, "cpuset": {0}, "oom_score_adj": 300, "ulimits": {}},
    "read-only": {"read_only": True, "tmpfs": (Tmpfs("/scratch"),)},
    "chroot": {"root_method": "chroot"},
    "host network": {"network_mode": "host"},
    "few namespaces": {"namespaces": {"pid", "mount"}},
    "environment": {"environment": {"A": "b", "PATH": "/usr/bin:/bin"}, "hostname": "other"},
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_it_is_in_the_world_of_the_workload(shared: Runtime, shape: str) -> None:
    """Compared line by line; its cgroup namespace is one of its own with the same root."""
    code = f"exec({WORLD!r}); print('ready', flush=True); import sys; sys.stdin.read()"
    spec = Spec(command=("python3", "-c", code), name="world", **SHAPES[shape])
    async with shared.start(spec, stdin=PIPE, stdout=PIPE, stderr=STDOUT) as container:
        mine = (await read_until(container.stdout, "ready\n")).removesuffix("ready\n")
        exit, its = await output(container, "python3", "-c", WORLD)
        assert exit.status == "ok", its

        def comparable(text: str) -> list[str]:
            return [re.sub(r"^cgroup(_for_children)? cgroup:.*", "cgroup", line) for line in text.splitlines()]

        assert comparable(its) == comparable(mine)


async def test_capabilities_are_those_of_its_user(shared: Runtime) -> None:
    """Root's are root's, whoever the service runs as."""
    mask = capability_mask({"CHOWN", "KILL"})
    for own, other, expected in (("0", "5", 0), ("5", "0", mask), ("root", "root", mask), ("5", "7", 0)):
        async with waiting(shared, root_capabilities={"CHOWN", "KILL"}, user=own) as container:
            _, text = await output(container, "grep", "-E", "CapEff|CapInh", "/proc/self/status", user=other)
            assert [int(word, 16) for word in text.split()[1::2]] == [0, expected]


async def test_its_cgroups_are_the_containers_as_the_host_sees_it(shared: Runtime) -> None:
    async with (
        waiting(shared, pids_limit=20, mem_limit=64 << 20) as container,
        container.open_exec(["sleep", "1000"]) as process,
    ):
        (inside,) = children(process.pid)
        assert Path(f"/proc/{inside}/cgroup").read_text() == Path(f"/proc/{workload(container)}/cgroup").read_text()
        for controller in ("pids", "memory"):
            pids = (cgroup_of(shared, controller) / "cgroup.procs").read_text().split()
            assert sorted(map(int, pids)) == sorted([inside, workload(container)])
        assert namespace(inside, "pid") == namespace(workload(container), "pid")
        assert status(inside)["NoNewPrivs"] == "1"


async def test_masks_hold(shared: Runtime) -> None:
    async with waiting(shared) as container:
        _, text = await output(
            container, "sh", "-c", "cat /proc/keys; wc -c < /proc/timer_list; echo x > /proc/sys/kernel/hostname"
        )
        assert text.count("Read-only file system") + text.count("Permission denied") >= 1
        assert "Key" not in text


@pytest.mark.hostroot
async def test_its_own_fields(shared: Runtime) -> None:
    async with waiting(shared, environment={"A": "container", "B": "container"}) as container:
        script = "id -u; id -g; id -G; pwd; echo $A $B $C; umask; ulimit -n"
        exit, text = await output(
            container, "sh", "-c", script, user="1234:5678", group_add=("99",), working_dir="/tmp", umask=0o77,
            environment={"B": "exec", "C": "exec"},
        )  # fmt: skip
        assert exit.status == "ok"
        assert text.splitlines()[:6] == ["1234", "5678", "5678 99", "/tmp", "container exec exec", "0077"]


async def test_users_of_a_root(shared: Runtime, busybox: Path) -> None:
    (busybox / "etc/passwd").write_text("judge:x:777:888::/home:/bin/sh\n")
    for method in ("pivot", "chroot"):
        async with waiting(shared, rootfs=busybox, root_method=method) as container:
            exit, text = await output(container, "sh", "-c", "id -u; id -g; echo $HOME; ls /", user="judge")
            assert exit.status == "ok", text
            assert text.split()[:3] == ["777", "888", "/home"]
            assert "busybox" not in text
            assert (await output(container, "ls", "/../../.."))[1] == (await output(container, "ls", "/"))[1]


async def test_pids_limit_is_shared(shared: Runtime) -> None:
    async with waiting(shared, pids_limit=3) as container:
        async with container.open_exec(["sleep", "1000"]), container.open_exec(["sleep", "1000"]):
            exit, text = await output(container, "sh", "-c", "sleep 0 & sleep 0 & wait")
            assert "fork" in text
            assert exit.status != "ok"
            assert (await container.stats()).pids_limit_hits > 0


async def test_memory_limit_is_shared(shared: Runtime) -> None:
    async with waiting(shared, mem_limit=32 << 20) as container:
        exit, _ = await output(container, "python3", "-c", "b'x' * (100 << 20)")
        assert exit.signal == 9
        assert (await container.stats()).oom_kills == 1


async def test_its_cpu_time_is_the_containers(shared: Runtime) -> None:
    async with waiting(shared, cpu_time=0.2) as container:
        with anyio.fail_after(BOUND):
            exit = await container.exec(["sh", "-c", "while :; do :; done"])
            assert exit.signal == 9
            ended = await container.wait()
        assert (ended.status, ended.reason) == ("time_limit", "killed after cpu_time 200ms")


# ---- many ----


async def test_hundreds_at_once_and_no_zombie(shared: Runtime) -> None:
    limiter = anyio.CapacityLimiter(100)
    codes: list[int | None] = []

    async def one(container: Container, number: int) -> None:
        async with limiter:
            codes.append((await container.exec(["sh", "-c", f"exit {number % 256}"])).exit_code)

    async with waiting(shared) as container:
        await container.exec(["true"])
        with no_fd_is_left(), anyio.fail_after(BOUND):
            async with anyio.create_task_group() as group:
                for number in range(300):
                    group.start_soon(one, container, number)
        assert sorted(filter(None, codes)) == sorted(filter(None, (number % 256 for number in range(300))))
        assert len(codes) == 300
        assert await settled(container) == ["cat"]
        assert children(container.pid) == [workload(container)]
        assert list(shared.containers) == [container.id]
        assert children(shared._launcher.pid) == [container.pid]


async def test_orphans_of_an_exec_are_the_containers(shared: Runtime) -> None:
    """They go on, and when they end they are reaped."""
    async with waiting(shared) as container:
        assert (await container.exec(["sh", "-c", "setsid sleep 0.05 & exit 0"])).status == "ok"
        assert await settled(container) == ["cat"]
        assert children(container.pid) == [workload(container)]


async def test_what_left_the_group_outlives_a_cancelled_exec_but_not_the_container(shared: Runtime) -> None:
    async with waiting(shared) as container:
        async with container.open_exec(["sh", "-c", "setsid sh -c 'echo ready; exec sleep 1000' & wait"], stdout=PIPE) as process:
            await read_until(process.stdout, "ready\n")
            (shell,) = children(process.pid)
            (sleeper,) = children(shell)
            assert len(container.processes()) == 3
        assert Path(f"/proc/{sleeper}").exists()
        assert len(container.processes()) == 2
        await container.stop()
        assert not Path(f"/proc/{sleeper}").exists()


# ---- who lies in wait ----

AMBUSH = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
me, got, seen, tries = os.getpid(), set(), set(), 0
print('ready', flush=True)
known = set(os.listdir('/proc'))
os.set_blocking(0, False)
while True:
    try:
        if not os.read(0, 1): break
    except BlockingIOError:
        pass
    for pid in range(me + 1, me + 400):
        try:
            exe = os.readlink(f'/proc/{pid}/exe')
            if 'launcher' in exe or 'memfd' in exe: got.add('exe ' + exe)
        except (FileNotFoundError, ProcessLookupError):
            continue
        except PermissionError:
            seen.add(pid)
        for name in ('cwd', 'root'):
            try:
                target = os.readlink(f'/proc/{pid}/{name}')
                if target != '/' : got.add(name + ' ' + target)
            except OSError:
                pass
        try:
            for fd in os.listdir(f'/proc/{pid}/fd'):
                target = os.readlink(f'/proc/{pid}/fd/{fd}')
                if not target.startswith(('pipe:', '/dev/null', 'socket:')) and int(fd) > 2:
                    if 'launcher' in open(f'/proc/{pid}/comm').read() or 'tinyvisor' in open(f'/proc/{pid}/comm').read():
                        got.add(f'fd {fd} {target}')
        except OSError:
            pass
        try:
            comm = open(f'/proc/{pid}/comm').read().strip()
        except OSError:
            continue
        if comm.startswith('tinyvisor'):
            seen.add(pid)
            try:
                os.close(os.open(f'/proc/{pid}/mem', os.O_RDWR))
                if open(f'/proc/{pid}/comm').read().startswith('tinyvisor'): got.add('mem')
            except OSError:
                pass
            if libc.ptrace(0x4206, pid, 0, 0) == 0:  # PTRACE_SEIZE: after its exec it is one of us, and we may
                libc.ptrace(0x4207, pid, 0, 0)  # PTRACE_INTERRUPT
                try:
                    os.waitpid(pid, 0x40000000)  # __WALL
                    name = open(f'/proc/{pid}/comm').read().strip()
                    rights = open(f'/proc/{pid}/status').read().split('CapEff:')[1].split()[0]
                except OSError:  # it has ended meanwhile
                    continue
                if name.startswith('tinyvisor'): got.add(f'ptrace {name} {rights}')
                libc.ptrace(17, pid, 0, 0)
print('seen', len(seen))
print('got', sorted(got))
"""


@pytest.mark.parametrize("who", [{}, {"user": "1234"}], ids=["root", "user"])
async def test_nobody_inside_gets_at_the_newcomer_before_its_program(shared: Runtime, who: dict[str, Any]) -> None:
    """It shares its memory with somebody outside who has all rights, and has them itself until the last moment."""
    spec = Spec(command=("python3", "-c", AMBUSH), name="ambush", pids_limit=50, seccomp="unconfined", **who)
    async with shared.start(spec, stdin=PIPE, stdout=PIPE, stderr=STDOUT) as container:
        await read_until(container.stdout, "ready\n")
        with anyio.fail_after(BOUND):
            async with anyio.create_task_group() as group:
                limiter = anyio.CapacityLimiter(4)

                async def one() -> None:
                    async with limiter:
                        await container.exec(["/bin/true"])

                for _ in range(150):
                    group.start_soon(one)
        assert container.stdin is not None
        await container.stdin.aclose()
        text = await read_until(container.stdout, "]\n")
        assert "got []" in text, text
        assert "seen 0" not in text, "it never saw one: nothing was tested"


async def test_who_may_trace_everybody_gets_no_newcomer(shared: Runtime) -> None:
    """It would get at the rights that the newcomer still has, and at the host by them."""
    async with waiting(shared, capabilities={"SYS_PTRACE"}, userns_mode="host") as container:
        with no_fd_is_left(), pytest.raises(SpecError, match="cap_add: SYS_PTRACE"):
            await container.exec(["true"])
        assert list(shared.containers) == [container.id]


async def test_a_program_that_is_replaced_by_a_way_to_its_own_image(shared: Runtime) -> None:
    """CVE-2019-5736: what /proc/self/exe is for the newcomer must not be a file of the host that can be written."""
    script = """
        printf '#!/proc/self/exe\\n' > /tmp/a; chmod +x /tmp/a; ln -s /proc/self/exe /tmp/b; ln -s /proc/1/exe /tmp/c
        echo ready; cat
    """
    async with waiting(shared, script=script) as container:
        for program in ("/tmp/a", "/tmp/b", "/tmp/c", "/proc/self/exe", "/proc/1/exe"):
            try:
                exit, text = await output(container, program, timeout=5.0)
            except LaunchError:
                continue
            assert (exit.status, "usage: tinyvisor-launcher" in text) == ("nonzero_exit", True), text
        _, text = await output(
            container, "sh", "-c", "readlink /proc/1/exe; echo > /proc/1/exe; cat /proc/1/environ; readlink /proc/1/fd/3"
        )
        assert not re.search("memfd:|socket:", text)
        assert text.count("Permission denied") == 2


async def test_a_hostile_proc(shared: Runtime) -> None:
    """Nothing that an exec needs is looked up in the container's /proc, which who may mount can replace."""
    script = (
        "mount -t tmpfs none /proc && mkdir -p /proc/self/fd /proc/1/ns && ln -s /etc/passwd /proc/self/exe && echo ready && cat"
    )
    async with waiting(shared, script=script, capabilities={"SYS_ADMIN"}) as container:
        exit, text = await output(container, "/bin/sh", "-c", "echo fine; ls /proc")
        assert (exit.status, text) == ("ok", "fine\n1\nself\n")


@pytest.mark.parametrize("method", ["pivot", "chroot"])
async def test_a_hostile_root(shared: Runtime, method: str) -> None:
    """Who may mount can put something over the root, and the newcomer is in that then: the container's own, and nothing that
    lies under its root. An empty one has nothing to be exec'ed."""
    for fill, names in ((":", ""), ("cp -a /bin /lib* r; mount --bind /usr r/usr; mount --rbind /dev r/dev", "bin dev lib usr")):
        script = f"cd /tmp; mkdir -p r/usr r/dev; {fill}; mount --rbind r /; echo ready; cat"
        async with waiting(shared, script=script, capabilities={"SYS_ADMIN"}, root_method=method) as container:
            if not names:
                with no_fd_is_left(), pytest.raises(LaunchError, match="No such file"):
                    await container.exec(["/bin/sh", "-c", "true"])
                continue
            exit, text = await output(container, "/bin/sh", "-c", "ls /; ls /../../t /../../shell /../../container")
            found = {line for line in text.splitlines() if not line.startswith("ls:")}
            assert set(names.split()) <= found <= {*names.split(), "lib32", "lib64", "libx32"}
            assert text.count("No such file") == 3
            assert exit.exit_code == 2


async def test_a_root_without_the_program(shared: Runtime, busybox: Path) -> None:
    """It is looked for inside, also when the workload has taken it away."""
    script = "rm /bin/true; echo ready; cat"
    async with waiting(shared, script=script, rootfs=busybox) as container:
        with pytest.raises(LaunchError, match="No such file"):
            await container.exec(["/bin/true"])
