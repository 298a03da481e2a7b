"""tinyvisor as an ordinary user, who has root's rights nowhere: in a user namespace of its own."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.helpers import BOUND, skip
from tests.kernel.user import FIRST_ID, GID, GROUP, REPOSITORY, UID, User, ordinary_user
from tinyvisor.runtime.plan import capability_mask
from tinyvisor.runtime.syscalls import landlock_abi
from tinyvisor.spec import SERVICE_CAPABILITIES

pytestmark = [pytest.mark.kernel, pytest.mark.hostroot]


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    """With 65,536 ids, and cgroups."""
    if shutil.which("newuidmap") is None:
        skip("needs newuidmap (uidmap)")
    with ordinary_user(tmp_path, delegated=True) as user:
        yield user


@pytest.fixture
def poor(tmp_path: Path) -> Iterator[User]:
    """With no id but its own, and no cgroup."""
    with ordinary_user(tmp_path, ids=0) as user:
        yield user


def ok(ended: subprocess.CompletedProcess[str]) -> str:
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_root_inside_is_nobody_of_the_host(user: User) -> None:
    """Not even the user: a range of ids of its own, which no other container has at the same time."""
    maps = 'cat /proc/self/uid_map /proc/self/gid_map; id -u; id -G; grep -h "Cap[^A]" /proc/self/status'
    lines = ok(user.tinyvisor("run", "--", "sh", "-c", maps, timeout=BOUND)).splitlines()
    first, count = (int(word) for word in lines[0].split()[1:])
    assert 1 < first < 65537
    assert lines[:4] == [*lines[2:4], *lines[2:4]]  # uids and gids alike
    assert count == 255
    assert lines[4:6] == ["0", "0"]
    assert {line.split()[1] for line in lines[6:]} == {"0" * 16}

    seen = []
    for _ in range(2):
        seen.append(subprocess.Popen(user.command(*TINYVISOR, "run", "--", "sh", "-c", "echo; sleep 99"), stdout=subprocess.PIPE))
    try:
        inits = []
        for process in seen:
            assert process.stdout is not None
            assert process.stdout.read(1) == b"\n"
            inits.append(_workload(process.pid))
        uids = [int(_status(pid, "Uid").split()[0]) for pid in inits]
        assert len({*uids}) == 2
        assert all(FIRST_ID <= uid < FIRST_ID + 65536 for uid in uids)
        assert [_status(pid, "Groups") for pid in inits] == ["", ""], "the user's groups are left"
        for process in seen:
            process.kill()  # -9: nothing is left, which is looked for after every test
        for pid in inits:
            _wait_for_the_end_of(pid)
    finally:
        for process in seen:
            process.kill()
            process.communicate()


TINYVISOR = (sys.executable, "-P", "-m", "tinyvisor")


def _status(pid: int, key: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{key}:"))


def _workload(supervisor: int) -> int:
    """supervisor → launcher → init → workload"""
    pid = supervisor
    for _ in range(3):
        (pid,) = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return pid


def _wait_for_the_end_of(pid: int) -> None:
    deadline = time.monotonic() + BOUND
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(landlock_abi() < 6, reason="needs Landlock's ABI 6, of Linux 6.12")
def test_landlock_needs_no_root(poor: User) -> None:
    """Both of its walls, by a user with a single id."""
    name = f"tinyvisor-test-{os.getpid()}"
    script = f"""
import socket
open("/tmp/x", "w").write("x")
try:
    socket.socket(socket.AF_UNIX).connect("\\0{name}")
except OSError as error:
    print(error.strerror)
"""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen()
        words = ("run", "--read-only", "--network", "host")
        for option, said in (("landlock=default", "Operation not permitted\n"), ("landlock=unconfined", "")):
            ended = poor.tinyvisor(*words, "--security-opt", option, "--", "python3", "-c", script, timeout=BOUND)
            assert ok(ended) == said


LIMITED = """
from tinyvisor.runtime import rootless

rootless.enter()
import trio
from tinyvisor import Limits, open_runtime

async def main():
    async with open_runtime() as rt:
        limits = Limits(memory="32m", pids=5)
        for script in ("head -c 99m /dev/zero | tail -c 99m", "(for i in 1 2 3 4 5 6 7; do sleep 1 & done); exit 3"):
            r = await rt.run(["bash", "-c", script], limits=limits, capture_stderr=True, cpus=0.9)
            print(r.oom_killed, r.memory_peak is None or r.memory_peak <= 32 << 20, b"fork" in r.stderr, *r.limits_enforced)

trio.run(main)
"""


def test_limits_are_kept(user: User) -> None:
    """In one program, so that it can be run under emulation, too."""
    told = ok(user.run(sys.executable, "-P", "-c", LIMITED, timeout=2 * BOUND)).splitlines()
    assert told == ["True True False pids_limit mem_limit cpus", "False True True pids_limit mem_limit cpus"]
    assert [path for cgroup in user.cgroups for path in Path(cgroup).glob("tinyvisor*")] == []


def test_files_of_the_user(user: User) -> None:
    """They can't be idmapped: root inside is the user, and with keep-id the user is; what the user may not, nobody inside may."""
    (user.home / "work").mkdir(mode=0o777)
    os.chown(user.home / "work", UID, GID)
    made = "id -u; touch /work/by-{0}; stat -c %u:%g /work/by-{0} /work; cat /host/shadow"
    for mode, inside in (("auto", "0"), ("keep-id", str(UID)), ("host", "0")):
        words = ["run", "--userns", mode, "-v", f"{user.home}/work:/work", "-v", "/etc:/host:ro", "--", "sh", "-c"]
        ended = user.tinyvisor(*words, made.format(mode), timeout=BOUND)
        owner = f"{inside}:{GID}" if mode == "keep-id" else "0:0"
        assert ended.stdout.splitlines() == [inside, owner, owner], ended.stderr
        assert "Permission denied" in ended.stderr
        status = (user.home / "work" / f"by-{mode}").stat()
        assert (status.st_uid, status.st_gid) == (UID, GID)


def test_a_root_from_a_tarball(user: User) -> None:
    """With the owners that it gives: others of the user's ids."""
    if shutil.which("busybox") is None:
        skip("needs busybox (busybox-static)")
    tarball = user.home / "root.tar"
    with tarfile.open(tarball, "w") as archive:
        archive.add(os.path.realpath("/bin/busybox"), "bin/busybox")
        for name, owner in (("www", 33), ("nobody", 65534)):
            member = tarfile.TarInfo(name)
            member.uid = member.gid = owner
            archive.addfile(member)
    script = "/bin/busybox stat -c %u:%g /www /nobody; /bin/busybox touch /new && /bin/busybox rm /www && /bin/busybox mkdir /www"
    words = ["run", "--rootfs", str(tarball), "--", "/bin/busybox", "sh", "-c", script]
    assert ok(user.tinyvisor(*words, timeout=BOUND)).split() == ["33:33", "65534:65534"]
    (entry,) = (user.home / ".cache/tinyvisor").glob("*/rootfs")
    assert (entry / "www").stat().st_uid == FIRST_ID + 32


def test_with_no_id_but_its_own(poor: User) -> None:
    script = "id -u; cat /proc/self/uid_map /proc/self/setgroups; touch /work/new"
    ended = poor.tinyvisor("run", "-v", f"{poor.home}:/work", "--", "sh", "-c", script, timeout=BOUND)
    assert ok(ended).split() == ["0", "0", "0", "1", "deny"]
    assert (poor.home / "new").stat().st_uid == UID
    for words, error in (
        (["--user", "nobody"], "gid 65534 is not one of the container's"),
        (["--userns", "keep-id"], "keep-id needs more ids than the user's own; usermod --add-subuids"),
        (["-m", "64m"], "cgroup controller memory can't be used: .*Permission denied; (have root delegate|start it in)"),
    ):
        ended = poor.tinyvisor("run", *words, "--", "true", timeout=BOUND)
        assert ended.returncode == 125
        assert re.search(error, ended.stderr), ended.stderr
        assert ended.stderr.count("\n") == 1
    told = ok(poor.tinyvisor("doctor", timeout=BOUND))
    assert f"rootless: uid {UID} is root of a user namespace with no other ids" in told
    assert re.search(
        r"^warn  cgroup memory: .*: mem_limit can't be enforced\n      → (have root delegate|start it in)", told, re.M
    )


def test_a_service_in_the_background(user: User) -> None:
    (user.home / "web.yml").write_text("command: sh -c 'echo hello; exec sleep 99'\nuser: '1234:1234'\npids_limit: 9\n")
    start = user.tinyvisor("up", "-d", str(user.home / "web.yml"), "-p", "mine", timeout=BOUND)
    try:
        assert start.returncode == 0, start.stderr
        assert "running" in ok(user.tinyvisor("ps", "-p", "mine", timeout=BOUND))
        assert ok(user.tinyvisor("exec", "-p", "mine", "web", "id", "-u", timeout=BOUND)) == "1234\n"
        assert "hello" in ok(user.tinyvisor("logs", "-p", "mine", timeout=BOUND))
        assert (user.home / ".local/state/tinyvisor/mine").is_dir()
    finally:
        ended = user.tinyvisor("down", "-p", "mine", timeout=BOUND)
    assert ended.returncode == 0, ended.stderr


def test_a_daemon_is_killed_and_the_next_one_goes_on(user: User) -> None:
    """In the user namespace that the first one made, and with its cgroups, also where the user has logged in anew."""
    (user.home / "web.yml").write_text("command: sh -c 'echo hello; exec sleep 99'\npids_limit: 9\n")

    def up() -> str:
        return ok(user.tinyvisor("up", "-d", str(user.home / "web.yml"), "-p", "mine", timeout=BOUND))

    def standing() -> dict[str, Any]:
        (found,) = json.loads(ok(user.tinyvisor("ps", "-p", "mine", "--json", timeout=BOUND)))
        return dict(found)

    up()
    try:
        before, record = standing(), user.run_directory / "tinyvisor" / "mine.json"
        cgroups = _cgroups(before["pid"])
        for kill in (True, False):
            daemon = os.pidfd_open(json.loads(record.read_text())["pid"])
            if kill:
                _kill(daemon)
                user.cgroups, user.elsewhere = user.elsewhere, user.cgroups
                up()
            else:
                ok(user.tinyvisor("upgrade", "-p", "mine", timeout=BOUND))
                os.close(daemon)
            after = standing()
            assert (after["pid"], after["state"], after["restarts"]) == (before["pid"], "running", 0)
        ok(user.tinyvisor("restart", "-p", "mine", timeout=BOUND))
        ok(user.tinyvisor("wait", "--until", "running", "-p", "mine", timeout=BOUND))
        after = standing()
        assert after["pid"] != before["pid"]
        assert _cgroups(after["pid"]) == cgroups
        daemon = os.pidfd_open(json.loads(record.read_text())["pid"])
        _kill(daemon)
    finally:
        ended = user.tinyvisor("down", "-p", "mine", timeout=BOUND)
    assert (ended.returncode, "web " in ended.stdout) == (0, True), ended.stderr


def _kill(pidfd: int) -> None:
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    assert waiting.poll(BOUND * 1000)
    os.close(pidfd)


def _cgroups(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


def test_what_another_user_namespace_has_is_out_of_reach_of_a_program(user: User) -> None:
    code = """
import os, tinyvisor, trio
async def main():
    async with tinyvisor.open_runtime(name="mine", live=True) as rt, rt.start(["sleep", "99"], name="web") as container:
        print(container.pid, flush=True)
        os.kill(os.getpid(), 9)
trio.run(main)
"""
    started = user.tinyvisor("unshare", sys.executable, "-c", code, timeout=BOUND)
    try:
        assert int(started.stdout) > 0, started.stderr
        ended = user.tinyvisor("unshare", sys.executable, "-c", code, timeout=BOUND)
        assert 'TinyvisorError: the containers of "mine" are in another user namespace: tinyvisor up -d takes' in ended.stderr
    finally:
        ok(user.tinyvisor("down", "-p", "mine", timeout=BOUND))
    assert not Path(f"/proc/{int(started.stdout)}").exists()


def test_a_batch(user: User) -> None:
    jobs = [{"id": str(n), "command": ["sh", "-c", f"exit {n % 3}"], "mem_limit": "32m"} for n in range(60)]
    (user.home / "jobs.jsonl").write_text("".join(f"{json.dumps(job)}\n" for job in jobs))
    user.tinyvisor("batch", str(user.home / "jobs.jsonl"), "-j", "16", "--results", str(user.home / "out"), timeout=BOUND)
    results = [json.loads(line) for line in (user.home / "out").read_text().splitlines()]
    assert {result["id"]: result["exit_code"] for result in results} == {str(n): n % 3 for n in range(60)}


def test_newuidmap_is_missing(user: User) -> None:
    ended = user.tinyvisor("run", "--", "true", timeout=BOUND, PATH="/nowhere")
    assert ended.returncode == 125
    assert "newuidmap: No such file or directory" in ended.stderr
    assert "newuidmap did not map our ids" in ended.stderr
    told = user.tinyvisor("doctor", timeout=BOUND, PATH="/nowhere")
    assert told.returncode == 1
    assert told.stdout.startswith(
        "FAIL  rootless: newuidmap did not map our ids\n      → what it said is above; it must be installed"
    )
    assert "warn  cgroup pids: " in told.stdout or "ok    cgroup pids: " in told.stdout, "and what else there is to say"


def test_the_program_that_uses_the_api(user: User) -> None:
    """By `unshare`; without it, one clear error."""
    code = "import tinyvisor, trio; print(trio.run(tinyvisor.run, ['id', '-u']).status)"
    assert ok(user.tinyvisor("unshare", sys.executable, "-c", code, timeout=BOUND)) == "ok\n"
    ended = user.run(sys.executable, "-c", code, timeout=BOUND)
    assert "HostError: containers need root, or a user namespace; start the program by `tinyvisor unshare PRO" in ended.stderr
    assert ok(user.tinyvisor("unshare", "id", "-u", timeout=BOUND)) == "0\n"
    assert user.tinyvisor("unshare", "cat", "/etc/shadow", timeout=BOUND).returncode == 1
    assert str(GROUP) not in ok(user.tinyvisor("run", "--", "cat", "/proc/self/status", timeout=BOUND))


MODULES = ["attacks", "faults", "limits seccomp", "live"]
if os.environ.get("TINYVISOR_ROOTLESS_TESTS") == "all":  # they pass, too, and take their time
    MODULES += ["container", "exec pool", "workspace capture", "userns provisions refusals"]


@pytest.mark.parametrize("modules", MODULES)
def test_what_holds_for_root_holds_here(user: User, modules: str) -> None:
    """The tests of the whole, but for those that need root of the host, once more; with trio alone, to save time. The faults:
    every kind of step that a launch has, and a sample of its system calls. TINYVISOR_ROOTLESS_TESTS=all: of more modules."""
    pytest_ = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--basetemp={user.home}/pytest", "-k", "not asyncio"]
    files = [str(REPOSITORY / f"tests/kernel/test_{module}.py") for module in modules.split()]
    ended = user.tinyvisor("unshare", *pytest_, *files, timeout=4 * BOUND, TMPDIR=str(user.home))
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    assert " passed" in ended.stdout


@pytest.mark.parametrize("who", ["user", "poor"])
def test_secrets_a_probe_and_readiness(who: str, request: pytest.FixtureRequest) -> None:
    user: User = request.getfixturevalue(who)
    serve = (
        "import os, socket, time; server = socket.create_server(('127.0.0.1', 8080)); "
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.sendto(b'READY=1', os.environ['NOTIFY_SOCKET']); time.sleep(99)"
    )
    services = {
        "web": {
            "command": ["python3", "-c", serve], "ready_notify": True, "stop_grace_period": "1s",
            "healthcheck": {"tcp": 8080, "interval": "50ms", "start_interval": "50ms", "start_period": "1m"},
        },
        "app": {
            "command": ["sh", "-c", "cat /run/secrets/*; stat -c %u /run/secrets/key; grep CapEff /proc/self/status"],
            "depends_on": {"web": {"condition": "service_healthy"}}, "secrets": [{"environment": "KEY", "target": "key"}],
        },
    }  # fmt: skip
    path = user.home / "project.yaml"
    path.write_text(json.dumps({"services": services}))
    ended = user.tinyvisor("up", str(path), "--exit-code-from", "app", timeout=BOUND, KEY="word\n")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.findall(r"^app \| (.*)$", ended.stdout, re.MULTILINE) == [
        "word",
        "0",
        f"CapEff:\t{capability_mask(SERVICE_CAPABILITIES):016x}",
    ]
