"""The plan: what it holds, and above all in which order. Nothing here needs a kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvisor.errors import SpecError
from tinyvisor.runtime import launcher as wire
from tinyvisor.runtime import steps as s
from tinyvisor.runtime.cgroup import Hierarchy, Layout, limit_writes
from tinyvisor.runtime.identity import Identity
from tinyvisor.runtime.idmap import auto_map
from tinyvisor.runtime.plan import (
    ROOT_USER,
    Around,
    Limits,
    Plan,
    Tree,
    Watch,
    capability_mask,
    counters,
    dev_template,
    exec_plan,
    exec_step,
    made_fds,
    parked_steps,
    plan,
    socket_steps,
)
from tinyvisor.runtime.rootfs import HostView
from tinyvisor.runtime.seccomp import Filter
from tinyvisor.runtime.steps import NAMESPACE_FLAGS, NODEV, NOEXEC, NOSUID, RDONLY, Step
from tinyvisor.spec import CAPABILITIES, DEFAULT_NAMESPACES, Secret, Spec, SyscallRule, Tmpfs, Ulimit, Volume

BASE = 1 << 20
OF_THE_HOST = Around()
OWN: dict[str, Any] = {"capabilities": {"CHOWN"}}
"""So that it has a user namespace of its own (`keeps_user`)."""
VIEW = HostView(("/usr",), (("/bin", "usr/bin"),))
SEPARATE = Layout(
    hierarchies=(
        Hierarchy(1, "/sys/fs/cgroup/pids", None, ("pids",)),
        Hierarchy(1, "/sys/fs/cgroup/memory", None, ("memory",)),
        Hierarchy(1, "/sys/fs/cgroup/cpu", None, ("cpu",)),
    )
)
UNIFIED = Layout(
    hierarchies=(Hierarchy(2, "/sys/fs/cgroup", None, ("pids", "memory", "cpu", "io", "cpuacct")),), unified="/sys/fs/cgroup"
)


def planned(
    layout: Layout = UNIFIED,
    *,
    identity: Identity = ROOT_USER,
    terminal: tuple[int, int] = (24, 80),
    early: bool = False,
    idmapped: frozenset[str] = frozenset({"/usr", "/etc", "/dev"}),
    watch: Watch | None = None,
    around: Around = OF_THE_HOST,
    workspace: str | None = None,
    **fields: Any,
) -> Plan:
    spec = Spec(**{"command": ("true",), "name": "web", **fields})
    limits = Limits(layout, tuple(limit_writes(spec, layout, device=lambda path: "8:0")))
    return plan(
        spec,
        limits=limits,
        view=VIEW if spec.rootfs is None else None,
        seccomp=None if spec.seccomp == "unconfined" else Filter(bytes(24), 4, ("frobnicate",)),
        identity=identity,
        resolv_conf=b"nameserver ::1\n",
        terminal=terminal,
        early=early,
        ids=None if spec.userns == "host" else auto_map(BASE, BASE + 65536),
        idmapped=idmapped,
        watch=watch,
        around=around,
        workspace=workspace,
    )


def of(steps: tuple[Step, ...], kind: type[Any]) -> list[Any]:
    return [step for step in steps if isinstance(step, kind)]


def position(steps: tuple[Step, ...], kind: type[Step]) -> int:
    found = [index for index, step in enumerate(steps) if isinstance(step, kind)]
    assert len(found) == 1, found
    return found[0]


def targets(steps: tuple[Step, ...]) -> list[str]:
    return [step.target for step in steps if isinstance(step, s.Mount | s.Bind | s.BindTemplate)]


DEFAULT = """\
init:
   0 ids of the host: uids 0 1048576 65536; gids 0 1114112 65536
   1 new namespaces: ipc, mount, uts
   2 new namespace: net, or one as new; bring up loopback
   3 make cgroup cgroup2/web
   4 start the workload in cgroup cgroup2/web
   5 what is made from here on belongs to the container's root
   6 root: a new tmpfs (size=256.0M, nr_inodes=65536, nosuid, nodev)
   7 make directory /root (mode 0700)
   8 make directory /home (mode 0755)
   9 make directory /var (mode 0755)
  10 make directory /var/tmp (mode 1777)
  11 make directory /opt (mode 0755)
  12 make directory /tmp (mode 1777)
  13 make directory /run (mode 0755)
  14 bind the shared /usr on /usr (idmapped, ro, nosuid, nodev)
  15 link /bin -> usr/bin
  16 bind the shared /etc on /etc (idmapped, ro, nosuid, nodev, noexec)
  17 mount proc on /proc (nosuid, nodev, noexec)
  18 bind the shared /dev on /dev (idmapped, ro, nosuid, noexec)
  19 mount devpts on /dev/pts (newinstance, ptmxmode=0666, mode=0620, gid=5, nosuid, noexec)
  20 mount tmpfs on /dev/shm (mode=1777, size=67108864, nr_inodes=16384, nosuid, nodev, noexec)
  21 write /run/hosts (75 bytes)
  22 write /run/hostname (4 bytes)
  23 write /run/resolv.conf (15 bytes)
  24 mask /proc/kcore
  25 make /proc/sys read-only
  26 what is made from here on belongs to the host's root
  27 detach the launcher's world; an empty, read-only shell around the new root is left
  28 enter the container's root (/container)
  29 set hostname web
  30 init as web
workload:
   0 new session
   1 enter the user namespace of its ids
   2 new namespaces: cgroup
   3 umask 0022
   4 capability bounding set 0x0, securebits locked
   5 close every fd but stdio
   6 become uid 0, gid 0, no other groups
   7 drop all capabilities
   8 enter /
   9 no_new_privs
  10 seccomp: default profile, 3 instructions, without frobnicate
  11 exec true
cleanup:
   0 read cgroup2/web/pids.peak
   1 read cgroup2/web/memory.peak
   2 read cgroup2/web/memory.events
   3 read cgroup2/web/cpu.stat
   4 remove cgroup2/web
"""


def test_the_default_plan() -> None:
    assert planned(masked_paths=("/proc/kcore",), readonly_paths=("/proc/sys",)).describe().partition("holes:\n")[0] == DEFAULT


# ---- the order is the security argument ----

EVERYTHING: dict[str, Any] = {
    "rootfs": Path("/images/x"),
    "volumes": (Volume(Path("/host/a"), "/a"), Volume(Path("/host/b"), "/proc/x", True)),
    "tmpfs": (Tmpfs("/a/b"),),
    "namespaces": DEFAULT_NAMESPACES | {"time"},
    "working_dir": "/work",
    "pids_limit": 20,
    "mem_limit": 1 << 26,
    "cpus": 0.5,
    "cpuset": frozenset({0}),
    "ulimits": {"nofile": Ulimit(10, 20), "core": Ulimit(0, 0)},
    "oom_score_adj": 100,
    "capabilities": frozenset({"NET_BIND_SERVICE"}),
    "tty": True,
}


@pytest.mark.parametrize("layout", [SEPARATE, UNIFIED])
@pytest.mark.parametrize("root_method", ["pivot", "chroot"])
def test_order(layout: Layout, root_method: str) -> None:
    made = planned(layout, root_method=root_method, **EVERYTHING)
    init, workload = made.init, made.workload
    entered = position(init, s.DetachWorld)
    last_mount = max(index for index, step in enumerate(init) if isinstance(step, s.Mount | s.Bind | s.BindTemplate))
    masked = [index for index, step in enumerate(init) if isinstance(step, s.Mask | s.ReadOnly)]
    assert isinstance(init[0], s.Ids)
    assert isinstance(init[1], s.Unshare)
    owners = [index for index, step in enumerate(init) if isinstance(step, s.Owner)]
    cgroups = [index for index, step in enumerate(init) if isinstance(step, s.CgroupMake | s.CgroupWrite)]
    assert max(cgroups) < owners[0], "a container that owned its cgroups could lift its limits"
    assert owners[0] < position(init, s.RootOverlay)
    assert last_mount < min(masked), "a volume can't cover a mask"
    assert max(masked) < owners[1] < entered
    assert entered < position(init, s.UserNamespace) < position(init, s.Enter), "all mounts are made when they are locked"
    assert position(init, s.Enter) < position(init, s.Pty) < position(init, s.Init) == len(init) - 1

    limits = max(index for index, step in enumerate(workload) if isinstance(step, s.Rlimit | s.Affinity | s.OomScoreAdj))
    order = [
        s.Session, s.EnterUser, s.BoundingSet, s.CloseFds, s.SetIdentity, s.Capabilities, s.WorkingDir, s.NoNewPrivs, s.Seccomp,
        s.Exec,
    ]  # fmt: skip
    positions = [position(workload, kind) for kind in order]
    assert positions == sorted(positions)
    assert limits < positions[0], "limits are taken while there is the right to"
    assert positions[-1] == len(workload) - 1
    joined = [index for index, step in enumerate(workload) if isinstance(step, s.CgroupJoin)]
    cgroup_namespace = next(index for index, step in enumerate(workload) if isinstance(step, s.Unshare))
    assert not joined or max(joined) < cgroup_namespace, "its root is the cgroup that was joined"


@pytest.mark.parametrize("layout", [SEPARATE, UNIFIED])
def test_every_plan_can_be_encoded_and_is_well_below_the_bounds(layout: Layout) -> None:
    made = planned(layout, **EVERYTHING)
    sections = [wire.encode(getattr(made, name)) for name in ("init", "workload", "cleanup")]
    assert sum(section.steps for section in sections) < 200
    assert all(step.describe() and "\n" not in step.describe() for step in (*made.init, *made.workload, *made.cleanup))


# ---- cgroups ----


def test_cgroups_of_separate_hierarchies() -> None:
    made = planned(SEPARATE, pids_limit=20, mem_limit=1 << 20)
    assert [step.describe() for step in made.init if isinstance(step, s.CgroupMake | s.CgroupWrite | s.CgroupInto)] == [
        "make cgroup pids/web",
        "make cgroup memory/web",
        "write '20' to pids/web/pids.max",
        "write '1048576' to memory/web/memory.limit_in_bytes",
        "write '1048576' to memory/web/memory.memsw.limit_in_bytes where it exists",
    ]
    assert [step.path for step in of(made.workload, s.CgroupJoin)] == ["web/tasks", "web/tasks"]
    assert [step.slot for step in of(made.cleanup, s.Remove)] == [s.KEPT, s.KEPT | 1]


def test_the_projects_wall_around_devices_is_joined_where_it_is_the_controllers() -> None:
    devices = Hierarchy(1, "/sys/fs/cgroup/devices", None, ("devices",))
    made = planned(Layout(hierarchies=(*SEPARATE.hierarchies, devices)), pids_limit=20)
    assert [(step.slot, step.path) for step in of(made.workload, s.CgroupJoin)] == [
        (s.KEPT, "web/tasks"), (s.KEPT | 1, "web/tasks"), (s.KEPT | 3, "tasks"),
    ]  # fmt: skip
    assert of(made.init, s.CgroupInto) == []
    one = Hierarchy(1, "/sys/fs/cgroup/all", None, ("pids", "memory", "devices"))
    made = planned(Layout(hierarchies=(one,)))
    assert [step.path for step in of(made.workload, s.CgroupJoin)] == ["web/tasks"], "below it"


def test_a_cgroup_is_made_only_where_it_is_of_use() -> None:
    assert [step.where for step in of(planned(SEPARATE).init, s.CgroupMake)] == ["pids", "memory"]
    assert [step.where for step in of(planned(SEPARATE, cpus=0.5).init, s.CgroupMake)] == ["pids", "memory", "cpu"]
    assert of(planned(Layout()).init, s.CgroupMake) == of(planned(Layout()).cleanup, Step) == []


def test_the_unified_hierarchy_is_entered_by_birth() -> None:
    made = planned(UNIFIED, pids_limit=20)
    assert len(of(made.init, s.CgroupInto)) == 1
    assert of(made.workload, s.CgroupJoin) == []
    assert position(made.init, s.CgroupMake) < position(made.init, s.CgroupWrite) < position(made.init, s.CgroupInto)


# ---- root ----


def test_a_given_root() -> None:
    made = planned(rootfs=Path("/images/x"))
    assert made.trees == (Tree(Path("/images/x"), recursive=False),)
    assert [step.slot for step in of(made.init, s.RootOverlay)] == [s.FIRST_TREE]
    assert {step.target: step.replace for step in of(made.init, s.File)} == {
        "/etc/hosts": True, "/etc/hostname": True, "/etc/resolv.conf": True,
    }  # fmt: skip


@pytest.mark.parametrize("rootfs", [None, Path("/images/x")])
def test_a_read_only_root(rootfs: Path | None) -> None:
    made = planned(rootfs=rootfs, read_only=True, working_dir="/missing")
    assert of(made.init, s.RootOverlay) == []
    assert {"/tmp", "/run", "/dev/shm"} <= {step.target for step in of(made.init, s.Mount) if step.type == "tmpfs"}
    assert of(made.init, s.Remount) == [s.Remount("/", RDONLY)]
    sealed = position(made.init, s.Remount)
    assert not [step for step in made.init[sealed:] if isinstance(step, s.Mount | s.Bind | s.Directory | s.File | s.Link)]
    assert "/missing" not in [step.target for step in of(made.init, s.Directory)]
    assert [step.target for step in of(made.init, s.File) if step.target.startswith("/etc")] == []


@pytest.mark.parametrize("no_new_privs", [True, False])
@pytest.mark.parametrize("rootfs", [None, Path("/images/x")])
def test_mounts_give_no_devices_and_no_set_id_programs(rootfs: Path | None, no_new_privs: bool) -> None:
    made = planned(rootfs=rootfs, no_new_privs=no_new_privs, volumes=(Volume(Path("/a"), "/a"),), tmpfs=(Tmpfs("/t"),))
    for step in made.init:
        if not isinstance(step, s.Mount | s.Bind | s.BindTemplate | s.RootTmpfs | s.RootOverlay):
            continue
        assert step.attributes & NODEV or getattr(step, "target", "") == "/dev", step
        programs = isinstance(step, s.Bind | s.RootTmpfs | s.RootOverlay) or step.target == "/usr"
        assert bool(step.attributes & NOSUID) == (no_new_privs or not programs), step


def test_mounts_are_made_from_the_top_down_and_keep_their_trees() -> None:
    volumes = (Volume(Path("/1"), "/a/b/c"), Volume(Path("/2"), "/a"), Volume(Path("/3"), "/a/b/", True))
    made = planned(rootfs=Path("/images/x"), volumes=volumes, tmpfs=(Tmpfs("/a/b/d"), Tmpfs("/z")))
    mine = [step for step in made.init if isinstance(step, s.Mount | s.Bind) and step.target[:2] in ("/a", "/z")]
    assert [step.target for step in mine] == ["/a", "/z", "/a/b/", "/a/b/c", "/a/b/d"]
    assert [str(made.trees[step.slot - s.FIRST_TREE].path) for step in mine if isinstance(step, s.Bind)] == ["/2", "/3", "/1"]
    assert [tree.read_only for tree in made.trees] == [False, False, False, True]
    assert [bool(step.attributes & RDONLY) for step in mine if isinstance(step, s.Bind)] == [False, True, False]


def test_tmpfs_options() -> None:
    step = next(
        step for step in of(planned(tmpfs=(Tmpfs("/x", 1 << 20, 10, 0o700, False),)).init, s.Mount) if step.target == "/x"
    )
    assert (step.options, step.attributes) == ("mode=700,size=1048576,nr_inodes=10", NOSUID | NODEV | NOEXEC)


def test_the_shared_dev() -> None:
    steps = dev_template("/t/dev", console=True)
    assert {step.target: step.device for step in of(steps, s.Node)} == {
        "/t/dev/null": 0x103, "/t/dev/zero": 0x105, "/t/dev/full": 0x107,
        "/t/dev/random": 0x108, "/t/dev/urandom": 0x109, "/t/dev/tty": 0x500,
    }  # fmt: skip
    assert [step.target for step in of(steps, s.File)] == ["/t/dev/console"]
    assert of(dev_template("/t/dev", console=False), s.File) == []


def test_in_a_user_namespace(tmp_path: Path) -> None:
    """Devices are the host's, an overlay keeps its notes where we may write them, terminals have a group that there is, and who
    can't leave its groups does not try to."""
    steps = dev_template("/t/dev", console=False, bound=True)
    assert of(steps, s.Node) == []
    assert [(bind.slot, bind.target, bind.source) for bind in of(steps, s.Bind)][:2] == [
        (0, "/t/dev/null", "/dev/null"),
        (1, "/t/dev/zero", "/dev/zero"),
    ]
    for nested in (False, True):
        around = Around(nested=nested, tty_group=0 if nested else 5, groups_fixed=nested)
        made = planned(rootfs=tmp_path, userns_mode="host", around=around)
        assert of(made.init, s.RootOverlay)[0].user_attributes == nested
        assert of(made.init, s.Devpts)[0].numbers() == (0 if nested else 5,)
        identity = of(made.workload, s.SetIdentity)[0]
        assert identity.keep_groups == nested
        assert identity.describe().endswith("the groups that we are in" if nested else "no other groups")


@pytest.mark.parametrize(
    "fields, joined",
    [
        (OWN, {"pid", "mount", "uts", "ipc", "net", "user"}),
        ({}, {"pid", "mount", "uts", "ipc", "net"}),
        ({"userns_mode": "host"}, {"pid", "mount", "uts", "ipc", "net"}),
        ({"network_mode": "host"} | OWN, {"pid", "mount", "uts", "ipc", "user"}),
        ({"network_mode": "service:other"} | OWN, {"pid", "mount", "uts", "ipc", "net", "user"}),
        ({"namespaces": DEFAULT_NAMESPACES - {"ipc"} | {"time"}} | OWN, {"pid", "mount", "uts", "net", "user"}),
    ],
)
def test_what_is_executed_joins_what_is_the_containers_own(fields: dict[str, Any], joined: set[str]) -> None:
    """What it shares with us is ours already; a user namespace has no right over the host's network."""
    spec = Spec(command=("true",), **fields)
    made = exec_plan(spec, limits=Limits(UNIFIED), seccomp=Filter(bytes(24), 4, ()), name="web", identity=ROOT_USER)
    (step,) = of(made.init, s.Join)
    assert step.flags == sum(s.NAMESPACE_FLAGS[name] for name in joined)
    ours = "user" in joined
    assert step.owned == (s.NAMESPACE_FLAGS["net" if "ipc" not in joined else "ipc"] if ours else 0)
    entered = [] if fields == {"userns_mode": "host"} else [s.EnterUser(0 if ours else s.FIRST_TREE)]
    assert list(of(made.workload, s.EnterUser)) == entered, "what is kept comes along"


# ---- namespaces and network ----


@pytest.mark.parametrize("left_out", ["uts", "ipc", "net", "cgroup"])
def test_a_namespace_that_is_left_out(left_out: str) -> None:
    for fields in ({}, OWN):
        made = planned(namespaces=DEFAULT_NAMESPACES - {left_out}, **fields)
        flags = [
            step.flags for step in (*of(made.init, s.Unshare), *of(made.init, s.UserNamespace), *of(made.workload, s.Unshare))
        ]
        flags += [NAMESPACE_FLAGS["net"]] * len(of(made.init, s.Network))
        assert sum(flags) == sum(NAMESPACE_FLAGS[name] for name in DEFAULT_NAMESPACES - {"pid", "user", left_out})
    assert len(of(made.init, s.Hostname)) == (left_out != "uts")
    assert len(of(made.init, s.LoopbackUp)) == (left_out != "net")


def test_mounts_belong_to_the_user_namespace_only_where_that_matters() -> None:
    mount, uts = NAMESPACE_FLAGS["mount"], NAMESPACE_FLAGS["uts"]
    for fields, owned in (
        ({"capabilities": {"SYS_ADMIN"}, "namespaces": {"pid", "mount", "uts", "user"}}, mount | uts),
        ({"namespaces": {"pid", "mount", "uts", "user"}}, uts),
        ({"namespaces": {"pid", "mount", "user"}}, mount),  # an exec finds the user namespace as the owner of another
        ({"namespaces": {"pid", "mount", "net", "user"}, "network_mode": "service:db"}, mount),  # its net is that one's
    ):
        made = planned(**OWN | fields)
        assert [step.flags for step in of(made.init, s.UserNamespace)] == [owned]
        assert of(made.init, s.Unshare)[0].flags == mount, "what it is made in"


@pytest.mark.parametrize(
    "fields, kept",
    [
        ({}, True),
        ({"user": "5", "userns_mode": "keep-id"}, True),
        ({"capabilities": {"CHOWN"}}, False),
        ({"root_capabilities": {"CHOWN"}}, False),
        ({"root_capabilities": {"CHOWN"}, "user": "5"}, False),  # root's, who may be exec'ed into it
        ({"seccomp": "unconfined"}, False),
        ({"seccomp": "profile.json"}, False),
        ({"seccomp_action": "log"}, False),
        ({"on_syscall": (SyscallRule(syscall="keyctl", action="allow"),)}, False),
        ({"around": Around(nested=True, tty_group=0)}, False),
        ({"around": Around(live=True)}, False),
    ],
)
def test_a_user_namespace_is_kept_where_nothing_can_be_left_in_it(fields: dict[str, Any], kept: bool) -> None:
    made = planned(**fields)
    assert len(of(made.init, s.UserNamespace)) == (not kept)
    assert of(made.workload, s.EnterUser) == [s.EnterUser(s.FIRST_TREE if kept else 0)]
    whose = {name for name in ("mount", "uts", "ipc", "net") if of(made.init, s.Unshare)[0].flags & NAMESPACE_FLAGS[name]}
    assert whose == ({"mount", "uts", "ipc"} if kept else {"mount"}), "the host's"
    assert len(of(made.init, s.Network)) == kept
    assert len(of(made.init, s.LoopbackUp)) == (not kept), "by the step itself"


@pytest.mark.parametrize("fields", [{"network_mode": "host"}, {"network_mode": "service:db"}, {"userns_mode": "host"}])
def test_whose_network_is_not_one_of_its_own_or_roots_has_none_that_is_used_again(fields: dict[str, Any]) -> None:
    assert of(planned(**fields).init, s.Network) == []


@pytest.mark.parametrize(
    "fields, meets",
    [
        ({"volumes": (Volume(Path("/data"), "/data", read_only=True),)}, True),
        ({"new_network": True}, True),
        ({"rootfs": Path("/images/a")}, True),
        ({"workspace": "/t/work/0"}, True),
        ({"workspace": ""}, False),
        ({"tmpfs": (Tmpfs("/scratch"),)}, False),
    ],
)
def test_who_may_meet_others_in_a_directory_or_asks_for_it_has_a_new_network(fields: dict[str, Any], meets: bool) -> None:
    made = planned(**fields)
    net = NAMESPACE_FLAGS["net"]
    assert (len(of(made.init, s.Network)), len(of(made.init, s.LoopbackUp))) == ((0, 1) if meets else (1, 0))
    assert bool(of(made.init, s.Unshare)[0].flags & net) == meets


def test_network_modes() -> None:
    net = NAMESPACE_FLAGS["net"]
    for mode in ("host", "service:db"):
        made = planned(network_mode=mode, **OWN)
        assert not of(made.init, s.UserNamespace)[0].flags & net
        assert of(made.init, s.LoopbackUp) == []
        assert of(made.init, s.Join) == ([s.Join(net, "db")] if mode != "host" else [])
        assert not of(planned(network_mode=mode).init, s.Unshare)[0].flags & net
    assert of(planned(**OWN).init, s.UserNamespace)[0].flags & net


def test_a_container_without_a_user_namespace() -> None:
    """As one with: but for the namespace, nothing changes hands."""
    with_, without = planned(**OWN), planned(userns_mode="host", **OWN)
    assert of(without.init, s.Unshare)[0].flags == sum(NAMESPACE_FLAGS[name] for name in ("mount", "uts", "ipc", "net"))
    left = [step for step in with_.init if not isinstance(step, s.Ids | s.Owner | s.UserNamespace | s.BindTemplate | s.Unshare)]
    assert left == [step for step in without.init if not isinstance(step, s.BindTemplate | s.Unshare)]
    assert {step.ids for step in of(without.init, s.BindTemplate)} == {0}
    assert type(without.workload[0]) is s.Unshare
    assert of(without.workload, s.EnterUser) == []
    assert planned(namespaces={"pid", "mount"}).init[0] == s.Unshare(NAMESPACE_FLAGS["mount"]), "the same, said otherwise"


def test_ids_are_in_one_step_only() -> None:
    """What two containers of one shape differ in: the others can be encoded once."""
    who = Identity(5, 6, (6,), "/")
    made = planned(identity=who, working_dir="/work", tty=True)
    assert made.init[0] == s.Ids(
        (BASE, BASE + 65536), (BASE + 5, BASE + 65536 + 6), BASE + 65536 + 5, f"0 {BASE} 65536", f"0 {BASE + 65536} 65536"
    )
    step = next(step for step in of(made.init, s.Directory) if step.target == "/work")
    assert (step.uid, step.gid) == (s.MAPPED, s.MAPPED)
    assert (of(made.init, s.Pty)[0].uid, of(made.init, s.Pty)[0].gid) == (s.MAPPED, s.MAPPED)
    assert (of(made.workload, s.SetIdentity)[0].uid, of(made.workload, s.SetIdentity)[0].groups) == (5, (6,))
    for wrong in (Identity(65536, 6, (6,), "/"), Identity(5, 70000, (), "/"), Identity(5, 6, (6, 80000), "/")):
        with pytest.raises(SpecError, match=r"user: [ug]id [678]\d{4} is not one of the container's, 0 to 65535"):
            planned(identity=wrong)
        assert planned(identity=wrong, userns_mode="host")


def test_which_trees_are_idmapped() -> None:
    volumes = (Volume(Path("/a"), "/a"),)
    made = planned(volumes=volumes, idmapped=frozenset({"/usr"}))
    slot = s.FIRST_TREE + 1
    assert {step.target: step.ids for step in of(made.init, s.BindTemplate)} == {"/usr": slot, "/etc": 0, "/dev": 0}
    assert [step.idmapped for step in of(made.init, s.Bind)] == [True]
    kept = planned(volumes=volumes, userns_mode="keep-id")
    assert [step.idmapped for step in of(kept.init, s.Bind)] == [False], "as with podman: they are as they are"


@pytest.mark.parametrize("layout", [SEPARATE, UNIFIED])
def test_what_takes_rights_of_the_host_is_done_before_they_are_gone(layout: Layout) -> None:
    workload = planned(layout, **EVERYTHING).workload
    entered = position(workload, s.EnterUser)
    host = s.CgroupJoin | s.OomScoreAdj | s.Rlimit
    assert all(index < entered for index, step in enumerate(workload) if isinstance(step, host))
    assert isinstance(workload[entered + 1], s.Unshare), "the cgroup namespace is owned by the user namespace, too"


def test_the_first_process_of_a_time_namespace_is_forked() -> None:
    assert not of(planned().init, s.Init)[0].flags & s.INIT_FORK
    assert of(planned(namespaces=DEFAULT_NAMESPACES | {"time"}).init, s.Init)[0].flags & s.INIT_FORK


def test_init_has_no_rights_left_when_a_workload_runs_that_may_trace_it() -> None:
    assert not of(planned().init, s.Init)[0].flags & s.INIT_TRACE
    assert of(planned(capabilities={"SYS_PTRACE"}, userns_mode="host").init, s.Init)[0].flags & s.INIT_TRACE
    assert not of(planned(capabilities={"SYS_PTRACE"}).init, s.Init)[0].flags & s.INIT_TRACE, "it has none over the host's ids"


def test_who_is_to_be_traced_waits_for_the_tracer() -> None:
    watched = planned(watch=Watch())
    assert watched.workload == planned().workload, "it is stopped at every call, and needs no filter for that"
    stopping = planned(watch=Watch(Filter(bytes(8)))).workload
    kinds = [type(step) for step in stopping]
    assert [step.program for step in of(stopping, s.Seccomp)] == [bytes(8), bytes(24)], "the profile may refuse a second filter"
    assert kinds.index(s.NoNewPrivs) < kinds.index(s.Seccomp)


def test_what_is_gone_when_it_is_empty() -> None:
    def early(layout: Layout = SEPARATE, **fields: Any) -> bool:
        return bool(of(planned(layout, early=True, **fields).init, s.Init)[0].flags & s.INIT_EARLY)

    assert early()
    assert not of(planned().init, s.Init)[0].flags & s.INIT_EARLY, "only where it is asked for"
    assert early(UNIFIED, tmpfs=(Tmpfs("/a"),))
    assert not early(rootfs=Path("/images/x")), "somebody may want to unmount it"
    assert not early(volumes=(Volume(Path("/host/a"), "/a"),))
    assert not early(Layout()), "nothing would prove that it is empty"


# ---- seccomp ----


def test_a_filter_is_the_last_thing_before_exec() -> None:
    step = of(planned().workload, s.Seccomp)[0]
    assert (step.program, step.flags, step.numbers(), step.strings()) == (bytes(24), 4, (4,), (bytes(24),))
    assert [type(step) for step in planned().workload[-3:]] == [s.NoNewPrivs, s.Seccomp, s.Exec]


def test_without_no_new_privs_the_filter_comes_while_there_is_the_right_to_install_it() -> None:
    workload = planned(no_new_privs=False, capabilities={"SYS_ADMIN"}, namespaces=DEFAULT_NAMESPACES).workload
    order = [s.EnterUser, s.BoundingSet, s.CloseFds, s.Seccomp, s.SetIdentity, s.Capabilities, s.WorkingDir, s.Exec]
    positions = [position(workload, kind) for kind in order]
    assert positions == sorted(positions)
    assert of(workload, s.NoNewPrivs) == []


def test_unconfined() -> None:
    assert of(planned(seccomp="unconfined").workload, s.Seccomp) == []


def test_a_plan_never_lacks_the_filter_that_the_spec_asks_for() -> None:
    with pytest.raises(AssertionError):
        plan(Spec(command=("true",)), limits=Limits(UNIFIED), view=VIEW, seccomp=None)


def test_a_profile_is_named_in_the_plan() -> None:
    step = of(planned(seccomp="/etc/x.json").workload, s.Seccomp)[0]
    assert step.describe() == "seccomp: profile /etc/x.json, 3 instructions, without frobnicate"
    many = s.Seccomp(bytes(8), 0, "default profile", tuple("abcde"))
    assert many.describe() == "seccomp: default profile, 1 instructions, without a, b, c and 2 more"


# ---- init and workload ----


def test_init_times_are_milliseconds() -> None:
    step = of(planned(timeout=1.5, orphan_grace_period=0.25, signal_group=True, stop_signal=2).init, s.Init)[0]
    assert step == s.Init(s.INIT_SIGNAL_GROUP, 250, 2, 1500, "web")
    assert of(planned(timeout=0.0001).init, s.Init)[0].timeout == 1, "a limit is never rounded away"
    assert of(planned().init, s.Init)[0].timeout == 0


def test_terminal() -> None:
    made = planned(tty=True, identity=Identity(5, 6, (), "/"), terminal=(30, 100))
    assert of(made.init, s.Pty) == [s.Pty(s.MAPPED, s.MAPPED, 30, 100)]
    on_the_host = planned(tty=True, identity=Identity(5, 6, (), "/"), terminal=(30, 100), userns_mode="host")
    assert of(on_the_host.init, s.Pty) == [s.Pty(5, 6, 30, 100)]
    assert [step.template for step in of(made.init, s.BindTemplate) if step.target == "/dev"] == ["/t/dev-tty"]
    assert of(planned().init, s.Pty) == []


@given(st.frozensets(st.sampled_from(CAPABILITIES)))
def test_capabilities(names: frozenset[str]) -> None:
    mask = capability_mask(names)
    assert {name for bit, name in enumerate(CAPABILITIES) if mask >> bit & 1} == names
    made = planned(capabilities=names)
    assert [step.mask for step in made.workload if isinstance(step, s.BoundingSet | s.Capabilities)] == [mask, mask]
    assert of(made.workload, s.Capabilities)[0].ambient == mask


def test_capabilities_that_are_roots_alone() -> None:
    """As Docker's: nothing of them is inherited, and a set-id program may give them where set-id programs give anything."""
    fields: dict[str, Any] = {"capabilities": {"NET_RAW"}, "root_capabilities": {"CHOWN", "SETUID"}}
    explicit, all_ = capability_mask({"NET_RAW"}), capability_mask({"NET_RAW", "CHOWN", "SETUID"})
    other, limits, filter = Identity(5, 6, (), "/"), Limits(UNIFIED), Filter(bytes(24), 4, ())
    for identity, no_new_privs, bounding, kept in (
        (ROOT_USER, True, all_, all_),
        (ROOT_USER, False, all_, all_),
        (other, True, explicit, explicit),
        (other, False, all_, explicit),
    ):
        fields["no_new_privs"] = no_new_privs
        executed = exec_plan(Spec(command=("true",), **fields), limits=limits, seccomp=filter, name="web", identity=identity)
        for made in (planned(identity=identity, **fields), executed):
            (step,) = of(made.workload, s.Capabilities)
            assert (step.mask, step.ambient) == (kept, explicit)
            assert of(made.workload, s.BoundingSet)[0].mask == bounding
    assert "keep capabilities CHOWN, NET_RAW, SETUID\n" in planned(**fields).describe()


def test_environment() -> None:
    who = Identity(5, 6, (), "/home/who")

    def environment(**fields: Any) -> dict[str, str]:
        return dict(exec_step(Spec(command=("true",), **fields), who, "web").environment)

    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert environment() == {"PATH": path, "HOME": "/home/who", "HOSTNAME": "web"}
    assert environment(hostname="h", tty=True) == {"PATH": path, "HOME": "/home/who", "HOSTNAME": "h", "TERM": "xterm"}
    own = {"PATH": "/x", "HOME": "/y", "HOSTNAME": "z", "A": ""}
    assert environment(environment=own) == own


def test_plans_are_equal_but_for_the_name() -> None:
    """What the launch cache relies on: the name is in there, and nothing else of it."""
    one, other = (planned(SEPARATE, name=name, **EVERYTHING) for name in ("aaaa", "bbbb"))

    def encoded(made: Plan) -> bytes:
        return b"".join(wire.encode(getattr(made, section)).body for section in ("init", "workload", "cleanup"))

    assert encoded(one) != encoded(other)
    assert encoded(one).replace(b"aaaa", b"bbbb") == encoded(other)


# ---- what is made for one container ----


def test_what_is_made_for_a_container_comes_behind_the_trees_and_before_the_ids() -> None:
    found = planned(
        rootfs=Path("/roots/a"), volumes=(Volume(Path("/data"), "/data"),), notification_fd=3, notify_socket=True, watchdog=2.5,
        secrets=(Secret(target="a", content=b"word"), Secret(target="b", file=Path("/b"))), tmpfs=(Tmpfs("/run"),),
    )  # fmt: skip
    assert len(found.trees) == 2
    first = s.FIRST_TREE + 2
    steps = [step for step in found.init if isinstance(step, s.Bind)]
    attributes = RDONLY | NOSUID | NODEV | NOEXEC
    assert steps[1:] == [
        s.Bind(first, "/run/secrets", attributes, "secrets (a, b)"),
        s.Bind(first + 1, "/run/notify", attributes, "the notify socket's directory"),
    ]
    # Over what the user mounts there, and before any right is given up.
    kinds = [type(step) for step in found.init]
    assert kinds.index(s.Mount, kinds.index(s.Bind)) < found.init.index(steps[1]) < kinds.index(s.DetachWorld)
    dev = next(step for step in found.init if isinstance(step, s.BindTemplate))
    assert dev.ids == first + 3
    at = found.workload.index(s.PassFd(first + 2, 3))
    assert isinstance(found.workload[at + 1], s.CloseFds)
    assert dict(found.workload[-1].environment)["NOTIFY_SOCKET"] == "/run/notify/socket"  # type: ignore[attr-defined]
    assert dict(found.workload[-1].environment)["WATCHDOG_USEC"] == "2500000"  # type: ignore[attr-defined]
    assert "bind secrets (a, b) on /run/secrets" in found.describe()
    assert "word" not in found.describe()


def test_without_them_nothing_is_there_of_them() -> None:
    found = planned()
    assert not any(isinstance(step, s.PassFd) for step in found.workload)
    assert "NOTIFY_SOCKET" not in found.describe()
    assert made_fds(Spec(command=("x",))) == ()


def test_a_socket_is_made_in_one_network_namespace_and_by_no_other_step() -> None:
    steps = socket_steps(Spec(command=("x",)), "web", 2, 1)
    assert steps == (s.Join(NAMESPACE_FLAGS["net"], "web"), s.Socket(2, 1))


# ---- made ahead ----


def behind(under_filter: bool = True, watch: Watch | None = None, around: Around = OF_THE_HOST, **fields: Any) -> Step:
    """The first step that one made ahead has yet to take."""
    made = planned(watch=watch, around=around, **fields)
    spec = Spec(**{"command": ("true",), "name": "web", **fields})
    return made.workload[parked_steps(spec, made, watch, under_filter=under_filter)]


@pytest.mark.parametrize("fields", [{}, {"user": "7"}, {"no_new_privs": False}, {"seccomp": "unconfined"}, OWN], ids=str)
def test_one_made_ahead_is_an_exec_away(fields: dict[str, Any]) -> None:
    assert isinstance(behind(**fields), s.Exec)


def test_one_made_ahead_waits_for_who_has_to_know_the_command() -> None:
    assert isinstance(behind(under_filter=False), s.CloseFds)
    assert isinstance(behind(watch=Watch()), s.CloseFds)
    assert isinstance(behind(tty=True), s.CloseFds)
    assert isinstance(behind(around=Around(landlock=6), read_only=True), s.CloseFds)


def test_counters_are_not_for_who_has_power_over_init() -> None:
    spec = Spec(command=("true",), pids_limit=5)
    limits = Limits(SEPARATE, tuple(limit_writes(spec, SEPARATE)))
    read = [step for step in planned(SEPARATE, pids_limit=5).cleanup if isinstance(step, s.Read)]
    assert [(step.numbers(), step.strings()) for step in counters(spec, limits, "web")] == [
        (step.numbers(), step.strings()) for step in read
    ]
    assert read
    assert counters(spec.with_(capabilities={"SYS_PTRACE"}), limits, "web") == ()
