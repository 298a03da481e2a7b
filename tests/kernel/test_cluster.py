"""`--cluster` and `Runtime.map(cluster=...)`: a Dask cluster on this machine, real containers, real kills."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.command import BOUND, Running, environment, results, tinyvisor, write
from tests.kernel.helpers import busybox_root
from tests.kernel.machines import LOOPBACK, Machines, certificates, until

pytestmark = pytest.mark.kernel

COUNT = 60
VARYING = frozenset({"wall", "cpu_user", "cpu_system", "memory_peak", "pids_peak"})
"""What differs from run to run."""


def mixed(directory: Path, count: int) -> list[dict[str, Any]]:
    """Jobs that end in all the ways, and use all that a job can have."""
    (directory / "data.txt").write_text("from a file\n")
    with (directory / "large").open("wb") as file:
        file.writelines(number.to_bytes(4, "big") for number in range(2_000_000))
    kinds: list[dict[str, Any]] = [
        {"command": ["true"]},
        {"command": ["sh", "-c", "echo out; echo err >&2; exit 3"]},
        {"command": ["cat"], "stdin": {"base64": "AP+A"}},
        {
            "command": ["sh", "-c", "cat a b/c; cp a out; ln -s out link"],
            "files": {"a": "text\n", "b/c": {"file": "data.txt"}},
            "collect": ["out", "link", "missing"],
        },
        {"command": ["sh", "-c", "kill -TERM $$"]},
        {"command": ["sh", "-c", "ls /proc/self/fd | wc -l; ls -l /proc/[0-9]*/fd 2>&1 | grep -c socket"]},
        {"command": ["yes"], "output_limit": 1000},
        {"command": ["/no/such/program"]},
        {"command": ["sh", "-c", "echo $VAR; pwd; id -u"], "environment": {"VAR": "ü"}, "user": "65534", "working_dir": "/tmp"},
        {
            "command": ["cat", "/data/data.txt"],
            "volumes": [f"{directory}:/data:ro"],
            "pids_limit": 5,
            "tmpfs": "/scratch:size=1m",
        },
        {"command": ["sh", "-c", "ulimit -n"], "ulimits": {"nofile": 77}, "mem_limit": "64m", "read_only": True},
    ]
    rare: list[dict[str, Any]] = [
        {"command": ["sleep", "1000"], "timeout": "200ms"},
        {"command": ["python3", "-c", "x = bytearray(1 << 28)"], "mem_limit": "32m"},
        {"command": ["head", "-c", "300000", "/dev/zero"]},
    ]
    rare += 4 * [
        {
            "command": ["sh", "-c", "sha256sum a; sha256sum"],
            "files": {"a": {"file": "large"}},
            "stdin": {"file": "large"},
        }
    ]
    jobs = [kinds[number % len(kinds)] for number in range(count - len(rare))] + rare
    return [{"id": f"j{number}", **job} for number, job in enumerate(jobs)]


def comparable(path: Path) -> dict[str, dict[str, Any]]:
    """What does not differ from run to run; of a flood nobody knows how much of it was read."""
    found = {}
    for id, each in results(path).items():
        gone = VARYING | ({"stdout_bytes"} if each["status"] == "output_limit" else set())
        found[id] = {key: value for key, value in each.items() if key not in gone}
        found[id]["reason"] = re.sub("container-[0-9]+", "container", each["reason"])
    return found


CRIPPLED = (
    "unshare", "--mount", "sh", "-c",
    "grep -w -e cgroup -e cgroup2 /proc/mounts | cut -d' ' -f2 | sort -r | xargs -n1 umount -l; exec \"$@\"", "-",
)  # fmt: skip
"""Runs a command where no limit can be enforced: there are no cgroups."""


class Network:
    """Hosts on one switch: network namespaces, which `sleep` holds. The first one has the switch."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._holders: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Network:
        try:
            for _ in range(self._count):
                self._holders.append(subprocess.Popen(["unshare", "--net", "sleep", "infinity"]))
            for holder in self._holders:
                until(lambda pid=holder.pid: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")  # type: ignore[misc]
            self._ip(0, "link add switch type bridge")
            for number in range(1, self._count):
                self._ip(0, f"link add port{number} master switch type veth peer name eth0 netns {self._holders[number].pid}")
                self._ip(0, f"link set port{number} up")
            for number in range(self._count):
                device = "eth0" if number else "switch"
                self._ip(number, "link set lo up")
                self._ip(number, f"address add {self[number][1]}/24 dev {device}")
                self._ip(number, f"link set {device} up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __getitem__(self, number: int) -> tuple[tuple[str, ...], str]:
        return ("nsenter", f"--net=/proc/{self._holders[number].pid}/ns/net"), f"10.77.0.{number + 1}"

    def cut(self, number: int) -> None:
        """Its cable is pulled out."""
        self._ip(0, f"link set port{number} down")

    def _ip(self, number: int, words: str) -> None:
        subprocess.run([*self[number][0], "ip", *words.split()], check=True, timeout=BOUND)

    def __exit__(self, *exc: object) -> None:
        for holder in self._holders:
            holder.kill()
            holder.wait(BOUND)


OWN_CACHE = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o mode=755 cache /var/cache && exec "$@"', "-")
"""Runs a command with a /var/cache of its own: another host's, as far as roots go."""


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    worker = (OWN_CACHE, "127.0.0.1")
    with Machines(tmp_path_factory.mktemp("machines"), LOOPBACK, worker, worker) as machines:
        yield machines


@pytest.fixture
def machines(started: Machines) -> Iterator[Machines]:
    """Nodes live on for the next batch, but here for no other test."""
    yield started
    started.end_nodes()


def containers() -> list[str]:
    """What runs in one of the workers."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text().startswith("tinyvisor-init"):
                found.append(path.parent.name)
    return found


WAITING = ["sh", "-c", "touch /gate/$ID; until [ -e /gate/open ]; do sleep 0.05; done"]


def gated(gate: Path, count: int, **more: Any) -> list[dict[str, Any]]:
    """Jobs that say that they run, and wait until the gate is open."""
    gate.mkdir()
    gate.chmod(0o777)
    rest = {"command": WAITING, "volumes": [f"{gate}:/gate"], "userns_mode": "host", **more}
    return [{"id": f"w{number}", "environment": {"ID": f"w{number}"}, **rest} for number in range(count)]


def test_the_results_are_those_of_one_machine(tmp_path: Path) -> None:
    """And nobody's modules are imported out of the working directory, on the way to root."""
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("json", "pickle", "multiprocessing", "distributed", "trio"):
        mark = f"import sys; print(__name__, sys.orig_argv, file=open({str(tmp_path / 'sprung')!r}, 'a'))"
        (trap / f"{name}.py").write_text(mark)
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "tinyvisor"
    script.write_text("from tinyvisor.__main__ import main\nif __name__ == '__main__': main()\n")
    file = write(tmp_path / "jobs.jsonl", *mixed(tmp_path, COUNT))
    alone = tinyvisor("batch", "-j", "2", "--results", tmp_path / "alone", file)
    assert alone.returncode == 1, alone.stderr
    words = ["batch", "--cluster", "local:2", "--results", tmp_path / "r", "--output-dir", tmp_path / "out", file]
    ended = subprocess.run(
        [sys.executable, str(script), *map(str, words)],
        cwd=trap,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )
    assert not (tmp_path / "sprung").exists(), (tmp_path / "sprung").read_text()
    assert ended.returncode == 1, ended.stderr
    assert comparable(tmp_path / "r") == {
        id: each | ({"files": {"out": {"file": f"{id}/out"}}} if each["files"] else {})
        for id, each in comparable(tmp_path / "alone").items()
    }
    assert f"{COUNT} jobs in" in ended.stderr
    assert "Warning" not in ended.stderr
    assert sorted(re.findall(r"\d+ (?:ok|[a-z_]+)", alone.stderr.splitlines()[-1])) == sorted(
        re.findall(r"\d+ (?:ok|[a-z_]+)", ended.stderr.splitlines()[-1])
    )


def test_what_ends_a_batch_ends_its_containers_on_the_nodes(machines: Machines, tmp_path: Path) -> None:
    """Ctrl-C, then kill -9; the workers live on, and the batch is resumed on them."""
    gate = tmp_path / "gate"
    file = write(tmp_path / "jobs.jsonl", {"id": "first", "command": ["true"]}, *gated(gate, 6))
    place = ["--cluster", machines.file, *machines.certificates]
    words = ["batch", *place, "--results", tmp_path / "r", "--resume", "--verbose", file]
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
        with Running(words) as running:
            until(lambda: len(list(gate.iterdir())) == 2)
            assert len(containers()) >= 2
            running.signal(number)
            assert running.end() == code
            if number == signal.SIGINT:
                assert containers() == []
                assert "go on with --resume" in running.text
            else:
                until(lambda: containers() == [])
        for ready in gate.iterdir():
            ready.unlink()
    (gate / "open").touch()
    ended = tinyvisor(*words)
    assert ended.returncode == 0, ended.stderr
    assert len(results(tmp_path / "r")) == 7
    assert all(process.poll() is None for process in machines.processes)


API = """
import itertools, sys, anyio, distributed
from pathlib import Path
from tinyvisor import Job, Spec, open_runtime

async def main(client):
    async with open_runtime() as rt:
        with anyio.fail_after(60):
            specs = [Spec(command=("sh", "-c", f"echo {n}; exit {n % 2}")) for n in range(40)]
            async with rt.map(specs, cluster=client, capture_stdout=True) as results:
                found = [result async for result in results]
            assert sorted((specs.index(r.job), r.stdout, r.exit_code) for r in found) == [
                (n, b"%d\\n" % n, n % 2) for n in range(40)
            ]
            assert not rt.containers
            path = Path(sys.argv[1])
            path.write_bytes(bytes(9_000_000))
            files = [Job(spec=Spec(command=("wc", "-c")), stdin=path) for _ in range(6)]
            async with rt.map(files, cluster=client, capture_stdout=True) as results:
                assert {result.stdout async for result in results} == {b"9000000\\n"}
            endless = (Job(spec=Spec(command=("sleep", "1000" if n else "0")), id=str(n)) for n in itertools.count())
            async with rt.map(endless, cluster=client, concurrency=3) as results:
                assert (await anext(results)).id == "0"

if __name__ == "__main__":
    keys = dict(zip(("tls_ca_file", "tls_client_cert", "tls_client_key"), sys.argv[3:]))
    security = distributed.Security(require_encryption=True, **keys)
    with distributed.Client(scheduler_file=sys.argv[2], security=security) as client:
        anyio.run(main, client, backend="asyncio")
"""


def test_map_in_a_program(machines: Machines, tmp_path: Path) -> None:
    """On asyncio; the command is on trio. Nothing is left when a scope is left early."""
    script = tmp_path / "program.py"
    script.write_text(API)
    words = [script, tmp_path / "large", machines.file, *machines.certificates[1::2]]
    ended = subprocess.run(
        [sys.executable, "-W", "error", *map(str, words)],
        env=environment(), capture_output=True, text=True, timeout=BOUND, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
    assert not list(machines.file.parent.rglob("tinyvisor-*"))
    assert containers() == []


def test_who_has_no_certificate_gets_nothing(machines: Machines, tmp_path: Path) -> None:
    file = write(tmp_path / "jobs.jsonl", {"id": "x", "command": ["true"]})
    (tmp_path / "other").mkdir()
    ended = tinyvisor("batch", "--cluster", machines.file, *certificates(tmp_path / "other"), file)
    assert ended.returncode == 2
    assert re.fullmatch("tinyvisor: the cluster can't be reached.*\n", ended.stderr), ended.stderr


PRIVATE = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs own $0 && cp -a $1 $0 && shift && exec "$@"')
"""Runs a command that alone sees a copy of a directory (the second word after this) in another (the first)."""


def test_roots_and_profiles_that_only_the_batchs_host_has(machines: Machines, tmp_path: Path) -> None:
    """What a job does to its root does not show in the next one's, though both have it from one cache."""
    (tmp_path / "here").mkdir()
    files = tmp_path / "files"
    root = busybox_root(files / "directory")
    (root / "bin/mine").write_text("#!/bin/sh\necho mine\n")
    (root / "bin/mine").chmod(0o4711)
    (root / "linked").hardlink_to(root / "bin/mine")
    os.chown(root / "bin/mine", 12, 34)
    (root / "bin/mine").chmod(0o4711)
    subprocess.run(["tar", "-C", root, "-czf", files / "root.tgz", "."], check=True, timeout=BOUND)
    refuse = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}
    (files / "p.json").write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refuse]}))
    (files / "damaged.tar").write_text("not really")
    here = tmp_path / "here/files"
    script = "stat -c %a,%u,%g,%h /bin/mine; rm -r /bin; echo /*"
    roots = {"directory": here / "directory", "tarball": here / "root.tgz", "again": here / "directory"}
    jobs = [
        {"id": f"{name}{number}", "command": ["sh", "-c", script], "rootfs": str(path), "userns_mode": mode}
        for name, path in roots.items()
        for number, mode in enumerate(("host", "auto"))
    ]
    jobs += [
        {"id": "profile", "command": ["mkdir", "/tmp/x"], "security_opt": [f"seccomp={here / 'p.json'}"]},
        {"id": "damaged", "command": ["true"], "rootfs": str(here / "damaged.tar")},
    ]
    file = write(tmp_path / "jobs.jsonl", *jobs)
    words = ["batch", "--cluster", machines.file, *machines.certificates, "--results", tmp_path / "r", file]
    with Running(words, before=(*PRIVATE, str(tmp_path / "here"), str(files))) as running:
        assert running.end() == 1, running.text
    assert not here.exists()
    found = results(tmp_path / "r")
    for name in roots:
        for number in range(2):
            assert found[f"{name}{number}"]["stdout"] == "4711,12,34,2\n/dev /etc /linked /proc /tmp\n"
    assert found["profile"]["exit_code"] == 1
    assert "Operation not permitted" in found["profile"]["stderr"]
    assert found["damaged"]["status"] == "sandbox_error"
    assert "no tarball" in found["damaged"]["reason"]


def node_of(ids: set[str]) -> int | None:
    """The process that has the runtime of a container with one of these ids in its environment."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if any(f"ID={id}".encode() in path.read_bytes().split(b"\0") for id in ids):
                pid, above = int(path.parent.name), ""
                while above != "tinyvisor-launc":
                    pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                    above = Path(f"/proc/{pid}/comm").read_text().strip()
                return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def test_a_job_that_kills_its_node_is_given_up_and_no_other(machines: Machines, tmp_path: Path) -> None:
    """One that must not run twice is killed with its node: nobody knows what it has done."""
    gate = tmp_path / "gate"
    jobs = [{"id": f"q{number}", "command": ["echo", str(number)]} for number in range(60)]
    killer, once = gated(gate, 2)
    jobs[30:30] = [killer, {**once, "retry": "never"}]
    file = write(tmp_path / "jobs.jsonl", *jobs)
    place = ["--cluster", machines.file, *machines.certificates]
    deaths = 0
    with Running(["batch", *place, "-j", "4", "--results", tmp_path / "r", file]) as running:
        while running.process.poll() is None:
            node = node_of({"w0", "w1"})
            if node is not None:
                os.kill(node, signal.SIGKILL)
                deaths += 1
                running.expect("the node's process ended with signal 9")
            time.sleep(0.01)
        assert running.end() == 1, running.text
    found = results(tmp_path / "r")
    assert {id: each["status"] for id, each in found.items() if each["status"] != "ok"} == {
        "w0": "sandbox_error",
        "w1": "unknown",
    }
    assert set(found) == {job["id"] for job in jobs}
    assert "3 nodes were lost while it was running" in found["w0"]["reason"]
    assert deaths in (3, 4)


def test_lost_hosts_lose_no_job_and_one_without_limits_takes_none(tmp_path: Path) -> None:
    """Hosts with addresses of their own: one is killed, one cut off, where neither side hears the other's end, on one there are
    no cgroups, and one does all the work. Without it that ends the batch."""
    gate = tmp_path / "gate"
    jobs = [*gated(gate, 3), *({"id": f"q{number}", "command": ["echo", str(number)]} for number in range(60))]
    file = write(tmp_path / "jobs.jsonl", *({**job, "mem_limit": "64m"} for job in jobs))
    soon = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "11s"}  # less is refused
    with Network(5) as network:
        crippled = ((*network[4][0], *CRIPPLED), network[4][1])
        with Machines(tmp_path, *(network[number] for number in range(4)), crippled, env=soon) as machines:
            words = ["batch", "--cluster", machines.file, *machines.certificates, "--results"]
            with Running([*words, tmp_path / "r", file], before=network[0][0], env=soon) as running:
                until(lambda: len(list(gate.iterdir())) == 3)
                machines.lose(1)
                network.cut(2)
                running.expect_all(
                    r"10\.77\.0\.2:.* is lost, with [0-9]+ jobs",
                    r"10\.77\.0\.3:.* is lost, with [0-9]+ jobs",
                    r"10\.77\.0\.5:.* takes no jobs: .*cgroup controller memory",
                )
                (gate / "open").touch()
                assert running.end() == 0, running.text
            found = results(tmp_path / "r")
            assert set(found) == {job["id"] for job in jobs}
            assert all(found[f"q{number}"]["stdout"] == f"{number}\n" for number in range(60))
            until(lambda: containers() == [])
            machines.lose(3)
            with Running([*words, tmp_path / "none", file], before=network[0][0]) as running:
                assert running.end() == 2
            running.expect("no node can run the jobs: .*cgroup controller memory")
            assert results(tmp_path / "none") == {}


def test_a_lost_scheduler_is_said_and_nothing_is_left(machines: Machines, tmp_path: Path) -> None:
    """The last one."""
    gate = tmp_path / "gate"
    file = write(tmp_path / "jobs.jsonl", *gated(gate, 2))
    with Running(["batch", "--cluster", machines.file, *machines.certificates, "--results", tmp_path / "r", file]) as running:
        until(lambda: len(list(gate.iterdir())) == 2)
        machines.lose(0)
        assert running.end() == 2
    assert "the connection to the scheduler is lost" in running.text
    assert "Traceback" not in running.text
    until(lambda: containers() == [])
