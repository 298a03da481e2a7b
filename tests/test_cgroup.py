"""cgroups: where they may be made on various hosts, what is written, and sweeping on the real kernel."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvisor.errors import HostError, SpecError
from tinyvisor.runtime import cgroup
from tinyvisor.runtime.cgroup import (
    LEAF,
    USED,
    CgroupTree,
    Hierarchy,
    Layout,
    LimitWrite,
    Swept,
    detect,
    device_number,
    limit_writes,
    occupied,
    read_layout,
    remove_cgroup,
    sweep,
)
from tinyvisor.runtime.projectlock import ProjectLock
from tinyvisor.runtime.usage import read_usage, readback_files
from tinyvisor.spec import Blkio, Spec

SINGLE = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids")

# Ten v1 mounts with one controller each, and a v2 mount that offers none of ours.
HYBRID = (
    """\
22 27 0:21 / /proc rw,relatime - proc proc rw
23 27 0:22 / /sys rw,relatime - sysfs sysfs rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
"""
    + "".join(
        f"{32 + n} 31 0:{29 + n} / /sys/fs/cgroup/{name} rw,relatime - cgroup cgroup rw,{name}\n" for n, name in enumerate(SINGLE)
    )
    + """\
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
)
HYBRID_SELF = """\
9:name=systemd:/
8:pids:/
7:blkio:/
6:freezer:/
5:devices:/
4:memory:/jobs/fecaf1e6
3:cpuset:/
2:cpuacct:/
1:cpu:/
0::/
"""

PURE = """\
23 28 0:22 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
28 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
32 23 0:27 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
"""
PURE_SELF = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/run:4.scope\n"

SYSTEMD_HYBRID = """\
24 29 0:22 / /sys rw shared:7 - sysfs sysfs rw
29 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
33 24 0:28 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,mode=755
34 33 0:29 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw
35 33 0:30 / /sys/fs/cgroup/systemd rw,nosuid shared:11 - cgroup cgroup rw,xattr,name=systemd
38 33 0:33 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:15 - cgroup cgroup rw,cpu,cpuacct
39 33 0:34 / /sys/fs/cgroup/pids rw,nosuid shared:16 - cgroup cgroup rw,pids
40 33 0:35 / /sys/fs/cgroup/memory rw,nosuid shared:17 - cgroup cgroup rw,memory
41 33 0:36 / /sys/fs/cgroup/net_cls,net_prio rw shared:18 - cgroup cgroup rw,net_cls,net_prio
"""
SYSTEMD_HYBRID_SELF = """\
6:cpu,cpuacct:/system.slice/ssh.service
5:memory:/system.slice/ssh.service
4:pids:/system.slice/ssh.service
1:name=systemd:/system.slice/ssh.service
0::/system.slice/ssh.service
"""

DOCKER_V2 = """\
700 600 0:90 / /sys ro,nosuid,nodev,noexec - sysfs sysfs ro
600 500 0:80 / / rw,relatime - overlay overlay rw,lowerdir=/a,upperdir=/b
701 700 0:27 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate
"""
DOCKER_V1_HOST_NS = """\
700 600 0:90 / /sys ro,nosuid - sysfs sysfs ro
600 500 0:80 / / rw,relatime - overlay overlay rw
702 700 0:91 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
703 702 0:34 /docker/c0ffee /sys/fs/cgroup/pids ro master:16 - cgroup cgroup rw,pids
704 702 0:35 /docker/c0ffee /sys/fs/cgroup/memory ro master:17 - cgroup cgroup rw,memory
"""
DOCKER_V1_PRIVATE_NS = DOCKER_V1_HOST_NS.replace(" /docker/c0ffee ", " / ")


def by_name(layout: Layout) -> dict[str, tuple[int, str]]:
    return {item.name: (item.version, item.directory) for item in layout.controllers}


def spec(**limits: object) -> Spec:
    return Spec(command=("true",), **limits)  # type: ignore[arg-type]


def writes(layout: Layout, **limits: object) -> list[LimitWrite]:
    return limit_writes(spec(**limits), layout, device={"/dev/sda": "8:0", "/dev/sdb": "8:16"}.__getitem__)


# ---- detection ----


def test_single_controller_mounts_beside_an_empty_v2() -> None:
    layout = detect(HYBRID, HYBRID_SELF, "hugetlb\n")
    assert [item.label for item in layout.hierarchies] == ["pids", "memory", "cpu", "blkio", "cpuacct", "cgroup2"]
    assert [item.version for item in layout.hierarchies] == [1] * 5 + [2]
    assert layout.hierarchies[5].controllers == ("devices",)
    assert by_name(layout)["io"] == (1, "/sys/fs/cgroup/blkio")
    assert by_name(layout)["cpuacct"] == (1, "/sys/fs/cgroup/cpuacct")
    assert layout.hierarchies[1].own == "/sys/fs/cgroup/memory/jobs/fecaf1e6"
    assert layout.unified == "/sys/fs/cgroup/unified"


def test_where_there_is_no_v2_devices_are_the_controllers() -> None:
    v1 = "".join(line for line in HYBRID.splitlines(keepends=True) if " - cgroup2 " not in line)
    layout = detect(v1, HYBRID_SELF, "")
    assert (layout.hierarchies[-1].controllers, layout.hierarchies[-1].version) == (("devices",), 1)
    assert by_name(layout)["devices"] == (1, "/sys/fs/cgroup/devices")


def test_pure_v2_as_root_uses_the_top() -> None:
    layout = detect(PURE, PURE_SELF, "cpuset cpu io memory hugetlb pids rdma misc\n")
    assert [(item.version, item.directory, item.label) for item in layout.hierarchies] == [(2, "/sys/fs/cgroup", "cgroup2")]
    assert set(by_name(layout)) == {*USED, "cpuset", "cpuacct", "freezer", "devices"}
    assert {layout.index(name) for name in USED} == {0}


def test_pure_v2_without_root_uses_our_own_cgroup() -> None:
    layout = detect(PURE, PURE_SELF, "memory pids", root=False)
    own = "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/app.slice/run:4.scope"
    assert layout.unified == layout.hierarchies[0].directory == own
    assert layout.index("cpu") is None
    settled = detect(PURE, PURE_SELF.rstrip("\n") + f"/{LEAF}\n", "memory pids", root=False)
    assert settled.unified == own, "beside us, not below us"


def test_co_mounted_controllers_are_one_hierarchy() -> None:
    layout = detect(SYSTEMD_HYBRID, SYSTEMD_HYBRID_SELF, "")
    assert [item.label for item in layout.hierarchies] == ["pids", "memory", "cpu,cpuacct", "cgroup2"]
    assert layout.hierarchies[2].own == "/sys/fs/cgroup/cpu,cpuacct/system.slice/ssh.service"
    assert layout.index("io") is None
    assert (2, "cpuacct.usage_user") in readback_files(layout)


def test_docker_with_a_cgroup_namespace_on_v2() -> None:
    layout = detect(DOCKER_V2, "0::/\n", "cpuset cpu io memory pids")
    assert layout.hierarchies[0].own == layout.hierarchies[0].directory == "/sys/fs/cgroup"


@pytest.mark.parametrize("root", [True, False])
def test_docker_on_v1_with_and_without_a_cgroup_namespace(root: bool) -> None:
    shared = detect(DOCKER_V1_HOST_NS, "4:memory:/docker/c0ffee\n3:pids:/docker/c0ffee\n", root=root)
    private = detect(DOCKER_V1_PRIVATE_NS, "4:memory:/\n3:pids:/\n", root=root)
    assert shared == private
    assert [item.directory for item in shared.hierarchies] == ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory"]


def test_a_mount_from_outside_our_cgroup_namespace_does_not_show_our_cgroup() -> None:
    outside = PURE.replace("0:27 / ", "0:27 /../.. ")
    assert detect(outside, "0::/\n", "pids").hierarchies[0].own is None
    assert detect(outside, "0::/\n", "pids", root=False).hierarchies == ()


def test_our_cgroup_beside_the_mounted_part_is_not_shown() -> None:
    layout = detect(DOCKER_V1_HOST_NS, "4:memory:/docker/c0ffee2\n3:pids:/docker/c0ffee/sub\n")
    assert [item.own for item in layout.hierarchies] == ["/sys/fs/cgroup/pids/sub", None]


def test_mounts_that_are_covered_do_not_count() -> None:
    covered = PURE + "50 23 0:99 / /sys/fs rw - tmpfs tmpfs rw\n"
    assert detect(covered, PURE_SELF, "pids") == Layout()
    stacked = PURE + "50 32 0:99 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    assert detect(stacked, PURE_SELF, "pids") == Layout()


def test_a_mount_point_with_a_space() -> None:
    layout = detect(PURE.replace("/sys/fs/cgroup ", "/my\\040cgroups "), PURE_SELF, "pids")
    assert layout.hierarchies[0].directory == "/my cgroups"


def test_nothing_mounted() -> None:
    assert detect("27 1 254:0 / / rw - ext4 /dev/vda rw\n", "0::/\n") == Layout()


@given(st.text(), st.text(), st.text())
def test_detection_never_raises(mountinfo: str, self_cgroup: str, controllers: str) -> None:
    detect(mountinfo, self_cgroup, controllers)


def test_without_takes_away_a_hierarchy_that_has_nothing_left() -> None:
    layout = detect(SYSTEMD_HYBRID, SYSTEMD_HYBRID_SELF).without(["pids"], "because")
    assert [item.label for item in layout.hierarchies] == ["memory", "cpu,cpuacct", "cgroup2"]
    assert layout.controller("pids") is None
    assert [item[:2] for item in layout.missing] == [("pids", "because")]


def test_layouts_can_be_keys() -> None:
    assert len({detect(HYBRID, HYBRID_SELF), detect(HYBRID, HYBRID_SELF)}) == 1


# ---- limits ----

V1 = detect(HYBRID, HYBRID_SELF)
V2 = detect(PURE, PURE_SELF, "cpu io memory pids")


def test_no_limit_no_write() -> None:
    assert writes(Layout()) == []


def test_limits_on_v1() -> None:
    assert writes(V1, pids_limit=20, mem_limit=64 << 20, cpus=1.5) == [
        LimitWrite("pids", 0, "pids.max", "20"),
        LimitWrite("memory", 1, "memory.limit_in_bytes", "67108864"),
        LimitWrite("memory", 1, "memory.memsw.limit_in_bytes", "67108864", optional=True),
        LimitWrite("cpu", 2, "cpu.cfs_period_us", "100000"),
        LimitWrite("cpu", 2, "cpu.cfs_quota_us", "150000"),
    ]


def test_limits_on_v2() -> None:
    assert writes(V2, pids_limit=20, mem_limit=64 << 20, cpus=0.01) == [
        LimitWrite("pids", 0, "pids.max", "20"),
        LimitWrite("memory", 0, "memory.max", "67108864"),
        LimitWrite("memory", 0, "memory.swap.max", "0", optional=True),
        LimitWrite("cpu", 0, "cpu.max", "1000 100000"),
    ]


BLKIO = Blkio(weight=500, read_bps=(("/dev/sda", 1000), ("/dev/sdb", 2000)), write_iops=(("/dev/sda", 30),))


def test_io_limits_on_v1() -> None:
    assert [(write.file, write.content) for write in writes(V1, blkio=BLKIO)] == [
        ("blkio.bfq.weight", "500"),
        ("blkio.throttle.read_bps_device", "8:0 1000"),
        ("blkio.throttle.read_bps_device", "8:16 2000"),
        ("blkio.throttle.write_iops_device", "8:0 30"),
    ]


def test_io_limits_on_v2_are_one_line_a_device() -> None:
    assert [(write.file, write.content) for write in writes(V2, blkio=BLKIO)] == [
        ("io.bfq.weight", "500"),
        ("io.max", "8:0 rbps=1000 wiops=30"),
        ("io.max", "8:16 rbps=2000"),
    ]


@pytest.mark.parametrize("weight, expected", [(10, "1"), (500, "4950"), (1000, "10000")])
def test_io_weight_is_converted_where_bfq_is_missing(weight: int, expected: str) -> None:
    found = limit_writes(spec(blkio=Blkio(weight=weight)), V2, exists=lambda hierarchy, file: file == "io.weight")
    assert [(write.file, write.content) for write in found] == [("io.weight", expected)]


def test_no_io_weights_at_all() -> None:
    with pytest.raises(HostError, match="no I/O weights"):
        limit_writes(spec(blkio=Blkio(weight=10)), V1, exists=lambda hierarchy, file: False)


@pytest.mark.parametrize(
    "layout, cure",
    [
        (Layout(), "no cgroups are mounted"),
        (detect(SYSTEMD_HYBRID, SYSTEMD_HYBRID_SELF), "mount -t cgroup -o blkio blkio /sys/fs/cgroup/blkio"),
        (detect(PURE, PURE_SELF, "memory"), "/sys/fs/cgroup/cgroup.controllers does not offer it"),
        (V2.without(["io"], "/sys/fs/cgroup/cgroup.subtree_control: Device or resource busy"), "Device or resource busy"),
    ],
)
def test_a_limit_without_its_controller_says_which_and_the_cure(layout: Layout, cure: str) -> None:
    with pytest.raises(HostError, match=cure) as caught:
        writes(layout, blkio=BLKIO)
    assert "cgroup controller" in caught.value.lacks
    assert ("blkio" in caught.value.lacks) == (layout.hierarchies[:1] != () and layout.hierarchies[0].version == 1)


@pytest.mark.parametrize("path", ["/dev/null", "/nowhere"])
def test_not_a_block_device(path: str) -> None:
    with pytest.raises(SpecError, match="blkio_config"):
        device_number(path)


# ---- handing controllers down on v2 ----


def fake_cgroup(path: Path, *, procs: str = "", enabled: str = "", root: bool = False) -> Path:
    path.mkdir()
    files = {"cgroup.procs": procs, "cgroup.subtree_control": enabled} | ({} if root else {"cgroup.type": "domain\n"})
    for name, content in files.items():
        (path / name).write_text(content)
    return path


def test_only_the_root_may_have_processes_and_children_with_controllers(tmp_path: Path) -> None:
    assert not occupied(str(fake_cgroup(tmp_path / "root", procs="1\n", root=True)))
    assert occupied(str(fake_cgroup(tmp_path / "slice", procs="1\n2\n")))
    assert not occupied(str(fake_cgroup(tmp_path / "empty")))
    assert not occupied(str(tmp_path / "gone"))


def test_an_occupied_cgroup_is_left_as_it_is(tmp_path: Path) -> None:
    """The kernel would let it enable pids, and then no cgroup below could have a process."""
    path = fake_cgroup(tmp_path / "slice", procs="1\n")
    failed = cgroup._enable(str(path), ["pids", "memory"])
    assert failed.keys() == {"pids", "memory"}
    assert (path / "cgroup.subtree_control").read_text() == ""


@pytest.mark.parametrize(
    "problem, cure",
    [
        (errno.EBUSY, "move them below it: mkdir {}/init"),
        (errno.EROFS, "writable"),
        (errno.EACCES, "writable"),
        (errno.ENOENT, "Delegate"),
    ],
)
def test_what_can_not_be_enabled_is_named_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: int, cure: str
) -> None:
    path = str(fake_cgroup(tmp_path / "slice", enabled="memory\n"))

    def refuse(file: str, text: str) -> None:
        assert (file, text) == (f"{path}/cgroup.subtree_control", "+pids")
        raise OSError(problem, os.strerror(problem), file)

    monkeypatch.setattr(cgroup, "_write", refuse)
    failed = cgroup._enable(path, ["memory", "pids"])
    assert failed.keys() == {"pids"}
    layout = V2.without(["pids"], *failed["pids"])
    with pytest.raises(HostError, match=cure.format(path)) as caught:
        writes(layout, pids_limit=3)
    assert "cgroup controller pids can't be used" in caught.value.lacks
    assert f"{path}/cgroup.subtree_control" in caught.value.lacks
    assert len(writes(layout, mem_limit=1 << 20)) == 2, "what does not need it is not affected"


@pytest.mark.parametrize("problem", [errno.ENODEV, errno.ENOENT])
def test_a_parent_that_another_run_takes_away_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: int
) -> None:
    """Between two steps ``tinyvisor`` is removed (ENODEV) and made anew by a third, which has enabled nothing yet (ENOENT)."""
    enabled: list[str] = []

    def write(file: str, text: str) -> None:
        enabled.append(os.path.relpath(file, tmp_path))
        if len(enabled) == 3:
            raise OSError(problem, os.strerror(problem), file)

    monkeypatch.setattr(cgroup, "_write", write)
    levels = ["top", "top/tinyvisor", "top/tinyvisor/web"]
    for level in levels:
        fake_cgroup(tmp_path / level)
    assert cgroup._make(Hierarchy(2, str(tmp_path / "top"), None, ("pids",)), "web") == {}
    assert enabled == [f"{level}/cgroup.subtree_control" for level in levels * 2]


# ---- the real kernel ----


def hand_down(hierarchy: Hierarchy) -> list[str]:
    """Enables the controllers below the top; returns those that were not."""
    file = Path(hierarchy.directory, "cgroup.subtree_control")
    enabled = file.read_text().split()
    offered = Path(hierarchy.directory, "cgroup.controllers").read_text().split()  # cpuacct is none of them, and always there
    new: list[str] = [name for name in USED if name in offered and name not in enabled]
    for name in new:
        file.write_text(f"+{name}")
    return new


def container(tree: CgroupTree, name: str = "one") -> Path:
    """A container's cgroup where the pids controller is. On v2 nothing runs in the directory above it."""
    index = tree.layout.index("pids")
    assert index is not None
    path = Path(tree.paths[index], name)
    path.mkdir()
    return path


@pytest.fixture
def layout() -> Iterator[Layout]:
    """The host's hierarchies, each moved below a cgroup of our own."""
    found = read_layout()
    name = f"tinyvisor-test-{os.getpid()}-{time.monotonic_ns()}"
    moved: list[Hierarchy] = []
    made: list[str] = []
    handed_down: dict[str, list[str]] = {}
    try:
        for item in found.hierarchies:
            directory = f"{item.directory}/{name}"
            try:
                os.mkdir(directory)
            except OSError as error:
                reason = f"no cgroups can be made: {error}"
                if os.environ.get("TINYVISOR_MUST_WORK") == "1":
                    pytest.fail(reason)
                pytest.skip(reason)
            made.append(directory)
            if item.version == 2:
                handed_down[f"{item.directory}/cgroup.subtree_control"] = hand_down(item)
            moved.append(replace(item, directory=directory, own=None))
        if not moved:
            pytest.skip("no cgroup controllers")
        yield replace(found, hierarchies=tuple(moved))
    finally:
        for directory in made:
            assert remove_cgroup(directory)
        for file, names in handed_down.items():
            for name in names:
                Path(file).write_text(f"-{name}")


def start_in(path: str, *command: str) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(["sh", "-c", f"read go; exec {' '.join(command)}"], stdin=subprocess.PIPE)
    Path(path, "cgroup.procs").write_text(str(child.pid))
    assert child.stdin is not None
    child.stdin.write(b"\n")
    child.stdin.close()
    return child


CRASH = """
import os, subprocess, sys
from pathlib import Path
from tinyvisor.runtime.cgroup import *
from tinyvisor.runtime.projectlock import ProjectLock

directories, lock_dir = sys.argv[1].split(":"), Path(sys.argv[2])
with ProjectLock(lock_dir, "dead"):
    tree = CgroupTree.open(Layout(tuple(Hierarchy(1, path, None, ("pids",)) for path in directories)), "dead")
    child = subprocess.Popen(["sleep", "300"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    for path in tree.paths:
        os.makedirs(f"{path}/web/inner")
        Path(path, "web/inner/cgroup.procs").write_text(str(child.pid))
    print(child.pid, flush=True)
    sys.stdin.read()
"""
"""A run that makes cgroups with processes in them, and then waits to be killed."""


@pytest.mark.kernel
def test_a_tree_is_made_and_removed(layout: Layout) -> None:
    before = len(os.listdir("/proc/self/fd"))
    tree = CgroupTree.open(layout, "web")
    assert tree.layout == layout
    assert len(tree.fds) == len(tree.parent_fds) == len(tree.paths) == len(layout.hierarchies)
    for fd, parent, path in zip(tree.fds, tree.parent_fds, tree.paths, strict=True):
        assert os.path.samestat(os.fstat(fd), os.stat(path))
        assert os.path.samestat(os.fstat(parent), os.stat(os.path.dirname(path)))
        assert not os.get_inheritable(fd)
        os.mkdir("one", dir_fd=fd)
    for write in limit_writes(spec(pids_limit=20, mem_limit=64 << 20, cpus=0.5), tree.layout, exists=tree.has):
        if not write.optional or tree.has(write.hierarchy, write.file):
            file = Path(tree.paths[write.hierarchy], "one", write.file)
            file.write_text(write.content)
            assert file.read_text().strip() == write.content
    assert tree.remove() == ()
    assert not any(os.path.exists(os.path.dirname(path)) for path in tree.paths)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.kernel
def test_the_counters_are_there_and_count(layout: Layout) -> None:
    tree = CgroupTree.open(layout, "web")
    try:
        child = start_in(str(container(tree)), sys.executable, "-c", "'import os; os.fork() or os._exit(0); os.wait()'")
        assert child.wait() == 0
        contents = {}
        for hierarchy, file in readback_files(tree.layout):
            path = Path(tree.paths[hierarchy], "one", file)
            if path.exists():
                contents[file] = path.read_bytes()
        assert ("pids.peak" in contents) == tree.has(tree.layout.index("pids") or 0, "pids.peak")
        assert read_usage(contents).pids_peak == (2 if "pids.peak" in contents else None)  # Linux 6.1
    finally:
        assert tree.remove() == ()


@pytest.mark.kernel
def test_removing_kills_what_is_left_even_a_fork_bomb(layout: Layout) -> None:
    tree = CgroupTree.open(layout, "web")
    directory = container(tree)
    (directory / "pids.max").write_text("50")
    bomb = start_in(str(directory), "sh", "-c", "'a() { a | a & }; a; sleep 300'")
    deadline = time.monotonic() + 10
    while int((directory / "pids.current").read_text()) < 40 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert tree.remove() == ()
    bomb.wait(10)


@pytest.mark.kernel
def test_two_projects_and_the_last_one_takes_the_parent(layout: Layout) -> None:
    one, two = CgroupTree.open(layout, "one"), CgroupTree.open(layout, "two")
    assert one.remove() == ()
    assert all(os.path.isdir(path) for path in two.paths)
    assert two.remove() == ()
    assert not os.path.exists(os.path.dirname(two.paths[0]))


@pytest.mark.kernel
def test_projects_that_come_and_go_at_once_do_not_take_each_others_parent(layout: Layout) -> None:
    errors: list[object] = []

    def work(name: str) -> None:
        for _ in range(40):
            try:
                tree = CgroupTree.open(layout, name)
                if tree.layout.missing:
                    errors.append(tree.layout.missing)
                errors.extend(tree.remove())
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=work, args=(f"p{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.mark.kernel
def test_what_a_killed_run_left_is_swept(layout: Layout, tmp_path: Path) -> None:
    directories = ":".join(item.directory for item in layout.hierarchies)
    run = subprocess.Popen(
        [sys.executable, "-c", CRASH, directories, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert run.stdin is not None
    assert run.stdout is not None
    orphan = os.pidfd_open(int(run.stdout.readline()))
    with ProjectLock(tmp_path, "mine"):
        mine = CgroupTree.open(layout, "mine")
        assert sweep(layout, tmp_path) == Swept()  # both live
        run.kill()
        run.wait()
        assert sweep(layout, tmp_path) == Swept(removed=("dead",))
        for path in mine.paths:
            assert os.listdir(os.path.dirname(path)).count("dead") == 0
            assert os.path.isdir(path)
        assert sweep(layout, tmp_path) == Swept()
        assert mine.remove() == ()
        assert select.select([orphan], [], [], 5)[0]  # it has ended
    os.close(orphan)
    run.stdin.close()
    run.stdout.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.kernel
def test_our_own_remains_are_swept_under_our_lock(layout: Layout, tmp_path: Path) -> None:
    CgroupTree.open(layout, "web").close()
    with ProjectLock(tmp_path, "web"):
        assert sweep(layout, tmp_path, mine="web") == Swept(removed=("web",))
        assert (tmp_path / "web.lock").exists()


@pytest.mark.kernel
def test_a_cgroup_without_a_lock_file_is_not_ours(layout: Layout, tmp_path: Path) -> None:
    tree = CgroupTree.open(layout, "web")
    assert sweep(layout, tmp_path) == Swept()
    assert all(os.path.isdir(path) for path in tree.paths)
    assert tree.remove() == ()


@pytest.mark.kernel
def test_a_controller_that_can_not_be_enabled_is_missing_and_not_fatal(layout: Layout) -> None:
    """v2 where the parent offers nothing; here a cgroup whose own parent hands nothing down."""
    if layout.unified is None:
        pytest.skip("no cgroup v2")
    directory = f"{layout.unified}/tinyvisor-test-{os.getpid()}-v2"
    os.makedirs(f"{directory}/below")
    try:
        broken = Layout((Hierarchy(2, f"{directory}/below", None, ("pids", "memory")),))
        before = len(os.listdir("/proc/self/fd"))
        tree = CgroupTree.open(broken, "web")
        assert not any((tree.layout.hierarchies, tree.fds, tree.parent_fds))
        assert {name for name, _, _ in tree.layout.missing} == {"pids", "memory"}
        with pytest.raises(HostError, match=r"cgroup.subtree_control: the parent does not offer it"):
            limit_writes(spec(pids_limit=3), tree.layout)
        assert tree.remove() == ()
        assert os.listdir(f"{directory}/below").count("tinyvisor") == 0
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        assert remove_cgroup(directory)


@pytest.mark.kernel
def test_a_cgroup_that_has_processes_is_named_with_a_cure_that_works(layout: Layout) -> None:
    """As in a container that has a cgroup namespace of its own: its top is not the root of all, and its processes are there."""
    unified = next((item for item in layout.hierarchies if item.version == 2 and "pids" in item.controllers), None)
    if unified is None:
        pytest.skip("needs controllers on cgroup v2")
    child = start_in(unified.directory, "sleep", "300")
    try:
        tree = CgroupTree.open(layout, "web")
        assert occupied(unified.directory)
        with pytest.raises(HostError, match="has processes of its own") as caught:
            limit_writes(spec(pids_limit=3), tree.layout)
        assert tree.remove() == ()
        subprocess.run(["sh", "-c", caught.value.cure.partition("move them below it: ")[2]], check=True)
        assert not occupied(unified.directory)
        tree = CgroupTree.open(layout, "web")
        assert [write.file for write in limit_writes(spec(pids_limit=3), tree.layout)] == ["pids.max"]
        assert all("pids" in Path(path, "cgroup.controllers").read_text().split() for path in tree.paths)
        (run := start_in(str(container(tree)), "true")).wait()
        assert run.returncode == 0
        assert tree.remove() == ()
    finally:
        child.kill()
        child.wait()


@pytest.mark.kernel
def test_the_root_of_all_cgroups_is_never_occupied() -> None:
    unified = read_layout().unified
    if unified is None or os.path.exists(f"{unified}/cgroup.type"):
        pytest.skip("needs the root of cgroup v2")
    assert Path(unified, "cgroup.procs").read_text()
    assert not occupied(unified)


@pytest.mark.kernel
def test_v2_kills_at_once(layout: Layout) -> None:
    if layout.unified is None:
        pytest.skip("no cgroup v2")
    directory = f"{layout.unified}/tinyvisor-test-{os.getpid()}-kill"
    os.makedirs(f"{directory}/below")
    child = start_in(f"{directory}/below", "sleep", "300")
    assert remove_cgroup(directory)
    assert child.wait(10) == -signal.SIGKILL


def test_a_hierarchy_that_can_not_be_written_is_missing_and_not_fatal(tmp_path: Path) -> None:
    tree = CgroupTree.open(Layout((Hierarchy(1, str(tmp_path / "gone"), None, ("pids",)),)), "web")
    assert tree.layout.hierarchies == ()
    assert [(name, "No such file or directory" in reason) for name, reason, _ in tree.layout.missing] == [("pids", True)]
    tree.close()
