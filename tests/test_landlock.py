"""Which walls of Landlock's a container gets: by its spec, by the kernel's ABI. Nothing here needs a kernel."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.test_plan import UNIFIED, of, planned, position
from tinyvisor.runtime import steps as s
from tinyvisor.runtime.landlock import landlock_step, left_out
from tinyvisor.runtime.plan import ROOT_USER, Around, Limits, exec_plan
from tinyvisor.runtime.seccomp import Filter
from tinyvisor.runtime.steps import RDONLY
from tinyvisor.spec import DEFAULT_NAMESPACES, Spec, Tmpfs, Volume

EXECUTE, READ_FILE, READ_DIR = 1, 1 << 2, 1 << 3
HERE = Around(landlock=7)


def wall(abi: int = 7, **fields: Any) -> s.Landlock | None:
    return landlock_step(Spec(command=("true",), **fields), abi)


def without(abi: int = 7, **fields: Any) -> list[str]:
    return list(left_out(Spec(command=("true",), **fields), abi))


def test_there_is_none_where_it_would_hold_nothing() -> None:
    """A rule for a root that can be written is one for everything."""
    every: tuple[dict[str, Any], ...] = ({}, {"rootfs": "/x"}, {"network_mode": "service:web"}, {"landlock": "unconfined"})
    for fields in every:
        assert wall(**fields) is None
        assert without(0, **fields) == []
    assert "landlock" not in planned(around=HERE).describe()


@pytest.mark.parametrize(
    "abi, rights",
    [(0, None), (1, None), (2, 0x3FF2), (3, 0x7FF2), (4, 0x7FF2), (5, 0xFFF2), (6, 0xFFF2), (7, 0xFFF2), (99, 0xFFF2)],
)
def test_what_the_kernel_knows_is_asked_for(abi: int, rights: int | None) -> None:
    """Never more, which it would refuse; reading and executing are nobody's business here."""
    step = wall(abi, read_only=True)
    assert (step.rights if step else None) == rights
    both = wall(abi, read_only=True, network_mode="host")
    assert (both.scopes if both else 0) == (1 if abi >= 6 else 0)
    alone = wall(abi, network_mode="host")
    assert (alone is not None) == (abi >= 6)
    assert rights is None or not rights & (READ_FILE | READ_DIR | EXECUTE)


def test_a_wall_that_is_missing_is_told_of() -> None:
    assert without(7, read_only=True, network_mode="host") == []
    assert without(0, read_only=True) == [
        "no Landlock around what can't be written (read_only): it takes Landlock's ABI 2, and this kernel has none"
    ]
    assert without(2, read_only=True, network_mode="host") == [
        "no Landlock around the host's abstract sockets: it takes Landlock's ABI 6, and this kernel has ABI 2"
    ]
    (line,) = without(read_only=True, landlock="unconfined")
    assert line.endswith('"security_opt" says landlock=unconfined')


def test_what_asks_for_the_right_to_mount_or_trace_gets_it() -> None:
    assert wall(read_only=True, capabilities={"SYS_ADMIN"}) is None
    mounting = wall(read_only=True, network_mode="host", capabilities={"SYS_ADMIN"})
    assert mounting == s.Landlock(0, 1, (), ()), "rules about sockets keep nobody from mounting"
    assert wall(read_only=True, network_mode="host", capabilities={"SYS_PTRACE"}) is None
    assert "SYS_ADMIN" in without(read_only=True, capabilities={"SYS_ADMIN"})[0]
    assert len(without(read_only=True, network_mode="host", capabilities={"SYS_PTRACE"})) == 2
    assert wall(read_only=True, capabilities={"NET_ADMIN", "CHOWN", "SYS_CHROOT"}) is not None


def test_the_hosts_network_by_its_other_name() -> None:
    step = wall(namespaces=DEFAULT_NAMESPACES - {"net"})
    assert step == s.Landlock(0, 1, (), ())
    assert wall(namespaces=DEFAULT_NAMESPACES - {"net"}, network_mode="service:web") is None


def test_what_can_be_written() -> None:
    volumes = (Volume(Path("/a"), "/data/"), Volume(Path("/b"), "/data/in", True), Volume(Path("/c"), "/tmp/c"))
    step = wall(read_only=True, volumes=volumes, tmpfs=(Tmpfs("/scratch"), Tmpfs("/data/./x")))
    assert step is not None
    assert step.below == ("/data", "/dev/shm", "/run", "/scratch", "/tmp")
    assert step.files == ("/dev", "/proc")
    assert step.strings() == ("/data\0/dev/shm\0/run\0/scratch\0/tmp\0", "/dev\0/proc\0")
    step = wall(read_only=True, volumes=(Volume(Path("/b"), "/tmp/", True), Volume(Path("/b"), "/runs")))
    assert step is not None
    assert step.below == ("/dev/shm", "/run", "/runs")


PATHS = st.lists(st.sampled_from(["a", "b", "tmp", "run", "dev", "shm", "."]), min_size=1, max_size=3).map(
    lambda parts: "/" + "/".join(parts)
)


@given(st.lists(st.tuples(PATHS, st.booleans()), max_size=5), st.lists(PATHS, max_size=3), st.booleans())
def test_it_holds_just_what_the_mounts_hold(volumes: list[tuple[str, bool]], tmpfs: list[str], host_view: bool) -> None:
    """No mount that can be written is behind the wall, and nothing is before it where there is no such mount."""
    targets = [posixpath.normpath(path) for path in (*(path for path, _ in volumes), *tmpfs)]
    assume(len(set(targets)) == len(targets))
    made = planned(
        around=HERE, read_only=True, rootfs=None if host_view else Path("/x"),
        volumes=tuple(Volume(Path("/v"), path, read_only) for path, read_only in volumes), tmpfs=tuple(map(Tmpfs, tmpfs)),
    )  # fmt: skip
    (step,) = of(made.workload, s.Landlock)

    def names(path: str) -> list[str]:
        return [part for part in path.split("/") if part not in ("", ".")]

    def covered(target: str) -> bool:
        return any(names(target)[: len(names(path))] == names(path) for path in step.below)

    mounts = [mount for mount in made.init if isinstance(mount, s.Mount | s.Bind | s.BindTemplate | s.Devpts)]
    topmost = {"/" + "/".join(names(getattr(mount, "target", "/dev/pts"))): mount for mount in mounts}
    writable = {path for path, mount in topmost.items() if not getattr(mount, "attributes", 0) & RDONLY}
    assert {path for path in writable if not covered(path)} <= {"/proc", "/dev/pts"}, "whose files can be written"
    assert set(step.below) <= writable


def test_a_directory_of_the_runtimes_can_be_written() -> None:
    step = landlock_step(Spec(command=("true",), read_only=True, working_dir="/work"), 7, "/work")
    assert step is not None
    assert "/work" in step.below
    assert "/work" not in (wall(read_only=True, working_dir="/work") or step).below


@pytest.mark.parametrize("no_new_privs", [True, False])
def test_it_is_put_up_while_paths_can_be_opened_and_before_any_filter(no_new_privs: bool) -> None:
    workload = planned(around=HERE, read_only=True, no_new_privs=no_new_privs, network_mode="host").workload
    order = [s.EnterUser, s.CloseFds, s.Landlock, s.SetIdentity, s.Capabilities, s.WorkingDir, s.Exec]
    positions = [position(workload, kind) for kind in order]
    assert positions == sorted(positions)
    assert position(workload, s.Landlock) < position(workload, s.Seccomp)


def test_what_is_executed_has_the_same_walls() -> None:
    fields: dict[str, Any] = {"read_only": True, "network_mode": "host", "tmpfs": (Tmpfs("/x"),)}
    spec = Spec(command=("true",), **fields)
    made = exec_plan(spec, limits=Limits(UNIFIED), seccomp=Filter(bytes(24), 4, ()), name="web", identity=ROOT_USER, around=HERE)
    assert of(made.workload, s.Landlock) == of(planned(around=HERE, **fields).workload, s.Landlock) != []


# ---- what `tinyvisor plan` shows ----


def test_walls_and_holes_are_in_the_plan() -> None:
    text = planned(around=HERE, read_only=True, network_mode="host").describe()
    wall = (
        "landlock: write only below /dev/shm, /run, /tmp, and to what there is below /dev, /proc; connect to no abstract sockets "
        "but its own\n"
    )
    assert wall in text
    hole = "network_mode: host: all that listens on the host can be reached, on its loopback address, too"
    assert text.endswith(f"\nholes:\n   - {hole}\n")
    assert "holes" not in planned(around=HERE, read_only=True).describe()


def test_every_opt_out_is_a_hole() -> None:
    opened = planned(
        around=HERE, userns_mode="host", seccomp="unconfined", no_new_privs=False, read_only=True, landlock="unconfined",
        namespaces=DEFAULT_NAMESPACES - {"ipc", "user", "net"},
    )  # fmt: skip
    starts = [
        "network_mode: host", "userns_mode: host", "namespaces: it shares the host's: ipc",
        "security_opt: no-new-privileges:false", "security_opt: seccomp=unconfined", *["no Landlock"] * 2,
    ]  # fmt: skip
    assert len(opened.holes) == len(starts)
    assert all(hole.startswith(start) for hole, start in zip(opened.holes, starts, strict=True)), opened.holes
