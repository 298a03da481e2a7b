"""What keeps an ordinary user from a user namespace, in words. That it works is for tests/kernel/test_rootless.py."""

from __future__ import annotations

import errno
import os

import pytest

from tinyvisor.errors import HostError
from tinyvisor.runtime import rootless

DEBIAN = "/proc/sys/kernel/unprivileged_userns_clone"
UBUNTU = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An ordinary user who is refused; what the kernel's files say."""
    files: dict[str, str] = {}
    monkeypatch.setattr(rootless, "_read", lambda path, missing="": files.get(path, missing))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("threading.active_count", lambda: 1)  # of other tests some may be left
    return files


def refuse(monkeypatch: pytest.MonkeyPatch, flags: int, number: int) -> None:
    def unshare(wanted: int) -> None:
        if wanted & flags:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(rootless, "unshare", unshare)
    monkeypatch.setattr(rootless, "_map_own_ids", lambda map_: None)


@pytest.mark.parametrize(
    "number, sysctl, lacks, cure",
    [
        (errno.ENOSPC, {}, "no more user namespaces are allowed (user.max_user_namespaces)", "sysctl user.max_user_namespaces="),
        (errno.EPERM, {DEBIAN: "0\n"}, "user namespaces are root's alone", "sysctl kernel.unprivileged_userns_clone=1"),
        (errno.EPERM, {}, "a user namespace can't be made (Operation not permitted)", "seccomp=unconfined"),
    ],
)
def test_no_user_namespace(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch, number: int, sysctl: dict[str, str], lacks: str, cure: str
) -> None:
    files.update(sysctl)
    refuse(monkeypatch, rootless.CLONE_NEWUSER, number)
    with pytest.raises(HostError) as caught:
        rootless.enter()
    assert caught.value.lacks.startswith(lacks)
    assert cure in caught.value.cure


@pytest.mark.parametrize("sysctl, lacks", [({UBUNTU: "1\n"}, "AppArmor gives"), ({}, "a mount namespace can't be made")])
def test_no_rights_in_it(files: dict[str, str], monkeypatch: pytest.MonkeyPatch, sysctl: dict[str, str], lacks: str) -> None:
    """Ubuntu's way: the namespace is made, and nothing can be done in it."""
    files.update(sysctl)
    monkeypatch.setenv("TINYVISOR_ROOTLESS", "")
    refuse(monkeypatch, rootless.CLONE_NEWNS, errno.EACCES)
    with pytest.raises(HostError) as caught:
        rootless.enter()
    assert caught.value.lacks.startswith(lacks)
    assert ("apparmor_restrict_unprivileged_userns=0" in caught.value.cure) == bool(sysctl)


def test_root_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.delattr(rootless, "unshare")
    rootless.enter()


def test_a_program_with_threads(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threading.active_count", lambda: 2)
    with pytest.raises(HostError, match=r"threads .*; start it by `tinyvisor unshare PROGRAM`"):
        rootless.enter()
