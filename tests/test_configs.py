"""The examples in configs/: they load, and their launch plans are the ones in tests/golden, on cgroup v1 and v2.

TINYVISOR_REGENERATE=1 pytest tests/test_configs.py writes the golden files anew; look at the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tinyvisor.config import load
from tinyvisor.profile import default_profile_text, parse_profile
from tinyvisor.runtime.cgroup import Layout, detect, limit_writes
from tinyvisor.runtime.identity import resolve
from tinyvisor.runtime.idmap import DEFAULT_RANGES, auto_map
from tinyvisor.runtime.plan import Limits, plan
from tinyvisor.runtime.rootfs import HostView
from tinyvisor.runtime.seccomp import MACHINES, compile_profile
from tinyvisor.spec import Project

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
GROUP = b"root:x:0:\nnogroup:x:65534:\n"
VIEW = HostView(("/usr",), (("/bin", "usr/bin"), ("/lib", "usr/lib"), ("/lib64", "usr/lib64"), ("/sbin", "usr/sbin")))


def v1() -> Layout:
    """Every controller in a hierarchy of its own, below a tmpfs."""
    names = ("cpu", "cpuacct", "memory", "blkio", "pids")
    mounts = ["20 1 0:20 / /sys/fs/cgroup rw - tmpfs tmpfs rw"]
    mounts += [f"{30 + n} 20 0:{30 + n} / /sys/fs/cgroup/{name} rw - cgroup {name} rw,{name}" for n, name in enumerate(names)]
    return detect("\n".join(mounts) + "\n", "".join(f"{n}:{name}:/\n" for n, name in enumerate(names, 1)))


def v2() -> Layout:
    return detect(
        "30 1 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/user.slice\n", "cpuset cpu io memory hugetlb pids rdma\n"
    )


@pytest.fixture(scope="module")
def project() -> Project:
    return load([ROOT / "configs"], environ={})


def test_every_file_is_one_service(project: Project) -> None:
    assert sorted(project.services) == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    assert project.name == "configs"


def test_nothing_of_this_machine_is_needed(project: Project) -> None:
    for service in project.services.values():
        assert service.spec.rootfs is None
        assert not service.spec.volumes
        assert service.spec.command[0] in ("bash", "python3", "sleep")


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs").glob("*.yaml")))
def test_plan_is_the_golden_one(project: Project, name: str, version: str) -> None:
    host = v1() if version == "v1" else v2()
    spec = project.services[name].spec
    identity = resolve(spec.user, spec.group_add, PASSWD, GROUP)
    seccomp = compile_profile(parse_profile(default_profile_text()), MACHINES["x86_64"], capabilities=spec.possible_capabilities)
    limits = Limits(host, tuple(limit_writes(spec, host)))
    ids, idmapped = auto_map(*DEFAULT_RANGES[0]), frozenset(("/usr", "/etc", "/dev"))
    text = plan(spec, limits=limits, view=VIEW, seccomp=seccomp, identity=identity, ids=ids, idmapped=idmapped).describe()
    path = GOLDEN / f"{name}.{version}.txt"
    if os.environ.get("TINYVISOR_REGENERATE") == "1":
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def test_no_golden_file_is_stale() -> None:
    names = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    assert {path.name.split(".")[0] for path in GOLDEN.iterdir()} == names
