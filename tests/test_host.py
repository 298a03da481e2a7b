"""What `probe` finds here, and what `checks` says about hosts that lack something."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from tinyvisor.runtime import host as module
from tinyvisor.runtime import syscalls
from tinyvisor.runtime.cgroup import Controller, Hierarchy, Layout
from tinyvisor.runtime.host import Check, Host, checks, kernel_version, probe
from tinyvisor.runtime.idmap import Ranges, find_ranges
from tinyvisor.spec import DEFAULT_NAMESPACES


@pytest.fixture
def good(tmp_path: Path) -> Host:
    """A host that has everything."""
    names = ("pids", "memory", "cpu", "io", "cpuacct", "devices")
    directory = str(tmp_path)
    return Host(
        kernel=(6, 1), release="6.1.0", machine="x86_64", euid=0, cpus=4,
        layout=Layout(
            (Hierarchy(2, directory, directory, names),), tuple(Controller(name, 2, directory) for name in names), directory
        ),
        calls=frozenset(module._CALLS), namespaces=DEFAULT_NAMESPACES | {"user", "time"},
        user_namespaces=True,
        nested=False, tty_group=5, groups_fixed=False,
        overlay=True, swap=True, swap_accounting=True, pids_peak=True, seccomp=True, landlock=7,
    )  # fmt: skip


SLOWNESS = 20 if "QEMU" in Path("/proc/cpuinfo").read_text() else 1  # emulated processors are slow


def levels(found: list[Check], level: str) -> set[str]:
    return {check.name for check in found if check.level == level}


def check(host: Host, name: str) -> Check:
    return next(item for item in checks(host) if item.name == name)


def test_this_host() -> None:
    host = probe()
    assert host.euid == os.geteuid()
    assert host.cpus == len(os.sched_getaffinity(0))
    assert os.uname().release.startswith(f"{host.kernel[0]}.{host.kernel[1]}")
    assert {"pid", "mount"} <= host.namespaces


def test_probing_is_cheap_and_leaves_no_fd() -> None:
    before = len(os.listdir("/proc/self/fd"))
    times = []
    for _ in range(20):
        started = time.perf_counter()
        probe()
        times.append(time.perf_counter() - started)
    assert min(times) < 0.005 * SLOWNESS
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_call_that_no_kernel_has_is_not_supported() -> None:
    assert not syscalls.supported(100_000)


@pytest.mark.parametrize(
    "release, expected",
    [
        ("6.18.44-fc-v782", (6, 18)),
        ("5.15.0-91-generic", (5, 15)),
        ("6.1-rc3", (6, 1)),
        ("4.18.0-553.el8_10.x86_64", (4, 18)),
        ("x", (0, 0)),
    ],
)
def test_kernel_versions(release: str, expected: tuple[int, int]) -> None:
    assert kernel_version(release) == expected


# ---- doctor ----


def test_a_good_host(good: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "run_directory", lambda: tmp_path / "tinyvisor")
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (1024, 524288))
    monkeypatch.setattr("tinyvisor.runtime.devices.problem", lambda: None)
    found = checks(good, Path("/proc/self/exe"))
    assert {item.level for item in found} == {"ok"}
    assert all(item.cure == "" and item.text for item in found)
    assert len({item.name for item in found}) == len(found)


def test_an_old_kernel(good: Host) -> None:
    old = replace(good, kernel=(5, 10), release="5.10.0", calls=good.calls - {"mount_setattr"})
    assert check(old, "kernel") == Check(
        "kernel", "fail", "Linux 5.10.0 on x86_64, 4 CPUs lacks mount_setattr", "use Linux 5.12 or later"
    )


def test_a_seccomp_filter_around_us(good: Host) -> None:
    found = check(replace(good, calls=good.calls - {"clone3", "open_tree"}), "kernel")
    assert found.level == "fail"
    assert "clone3, open_tree can't be used" in found.text
    assert "seccomp" in found.cure


def test_filters_are_part_of_the_defaults(good: Host) -> None:
    assert check(replace(good, seccomp=False), "seccomp").level == "fail"
    found = check(replace(good, machine="riscv64"), "seccomp")
    assert (found.level, found.text) == ("fail", "there are no filters for riscv64, only for x86_64, aarch64")
    assert "seccomp=unconfined" in found.cure


def test_not_root(good: Host) -> None:
    assert check(replace(good, euid=1000), "root").level == "fail"
    assert check(replace(good, euid=1000, calls=good.calls - {"fsmount"}), "kernel").level == "ok", "it is refused, not missing"


def test_missing_namespaces(good: Host) -> None:
    found = check(replace(good, namespaces=DEFAULT_NAMESPACES - {"ipc"}), "namespaces")
    assert (found.level, "no ipc namespaces" in found.text) == ("fail", True)


def test_what_only_some_containers_need_is_a_warning(good: Host) -> None:
    poor = replace(good, overlay=False, user_namespaces=False, swap_accounting=False, pids_peak=False, layout=Layout())
    found = checks(poor)
    expected = {"overlayfs", "swap", "pids_peak", "cgroup pids", "cgroup memory", "cgroup cpu", "cgroup io"}
    assert expected <= levels(found, "warn")
    assert not levels(found, "fail") & expected
    assert all(item.cure for item in found if item.level != "ok")


def test_user_namespaces_are_what_every_container_needs(good: Host) -> None:
    found = check(replace(good, user_namespaces=False), "user namespaces")
    assert (found.level, "userns_mode: host" in found.text, bool(found.cure)) == ("fail", True, True)


def test_id_ranges_are_told(good: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    found = check(good, "id ranges")
    assert (found.level, "containers at once" in found.text) == ("ok", True)

    def wrong() -> Ranges:
        return find_ranges("tinyvisor:100000:10\n", "")

    monkeypatch.setattr(module, "read_ranges", wrong)
    found = check(good, "id ranges")
    assert (found.level, "no range of 65536 ids" in found.text, "usermod" in found.cure) == ("fail", True, True)


def test_a_missing_controller_names_the_limit_and_the_cure(good: Host) -> None:
    found = check(replace(good, layout=Layout()), "cgroup memory")
    assert "mem_limit can't be enforced" in found.text
    assert "mount -t cgroup2" in found.cure


def test_cgroups_that_can_not_be_written(good: Host) -> None:
    gone = Layout((), (Controller("pids", 1, "/nowhere"),))
    found = check(replace(good, layout=gone), "cgroup pids")
    assert (found.level, "can't be written" in found.text) == ("warn", True)


def test_a_cgroup_that_has_processes_is_seen_before_a_limit_needs_it(good: Host, tmp_path: Path) -> None:
    (tmp_path / "cgroup.type").write_text("domain\n")
    (tmp_path / "cgroup.procs").write_text("1\n")
    found = check(good, "cgroup pids")
    assert (found.level, "pids_limit can't be enforced" in found.text) == ("warn", True)
    assert f"mkdir {tmp_path}/init" in found.cure
    (tmp_path / "cgroup.procs").write_text("")
    assert check(good, "cgroup pids").level == "ok"


def test_swap_that_is_not_accounted_matters_only_where_there_is_swap(good: Host) -> None:
    assert check(replace(good, swap_accounting=False), "swap").level == "warn"
    assert check(replace(good, swap_accounting=False, swap=False), "swap").level == "ok"


def test_few_open_files(good: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (256, 1024))
    assert check(good, "open files").level == "warn"
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (256, resource.RLIM_INFINITY))
    assert check(good, "open files").level == "ok"


def test_a_run_directory_that_can_not_be_made(good: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(module, "run_directory", lambda: tmp_path / "file/tinyvisor")
    assert check(good, "run state").level == "fail"


def test_launchers(good: Host, tmp_path: Path) -> None:
    def launcher(content: bytes, mode: int = 0o755) -> Check:
        path = tmp_path / "launcher"
        path.write_bytes(content)
        path.chmod(mode)
        return next(item for item in checks(good, path) if item.name == "launcher")

    header = Path("/proc/self/exe").read_bytes()[:64]
    foreign = header[:18] + b"\xfe\xca" + header[20:]
    assert launcher(header).level == "ok"
    assert "is not executable" in launcher(header, 0o644).text
    assert "is not a program for" in launcher(foreign).text
    assert "is not a program for" in launcher(b"#!/bin/sh\n").text
    assert launcher(b"").level == "fail"
    missing = next(item for item in checks(good, tmp_path / "missing") if item.name == "launcher")
    assert (missing.level, "No such file" in missing.text) == ("fail", True)


@pytest.mark.parametrize(
    "files, euid, expected",
    [
        ({}, 1000, True),
        ({"/proc/sys/user/max_user_namespaces": "0\n"}, 0, False),
        ({"/proc/sys/kernel/unprivileged_userns_clone": "0\n"}, 1000, False),
        ({"/proc/sys/kernel/unprivileged_userns_clone": "0\n"}, 0, True),
        ({"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"}, 1000, False),
        ({"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"}, 0, True),
    ],
)
def test_user_namespaces(monkeypatch: pytest.MonkeyPatch, files: dict[str, str], euid: int, expected: bool) -> None:
    defaults = {"/proc/sys/user/max_user_namespaces": "1000\n"}
    monkeypatch.setattr(module, "_read", lambda path, missing="": {**defaults, **files}.get(path, missing))
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    assert module._user_namespaces() is expected


@pytest.mark.parametrize(
    "version, always, file", [(1, "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"), (2, "memory.max", "memory.swap.max")]
)
def test_swap_accounting_is_seen_in_a_cgroup_that_has_the_controller(
    tmp_path: Path, version: int, always: str, file: str
) -> None:
    kind: Literal[1, 2] = 1 if version == 1 else 2
    layout = Layout((Hierarchy(kind, str(tmp_path), None, ("memory",)),), (Controller("memory", kind, str(tmp_path)),))
    assert module._swap_accounting(layout) is None
    (tmp_path / "without").mkdir()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / always).touch()
    assert module._swap_accounting(layout) is False
    (tmp_path / "a" / file).touch()
    assert module._swap_accounting(layout) is True
    assert module._swap_accounting(Layout()) is None
