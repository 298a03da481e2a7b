"""What a program did → a profile; what the profile then does."""

from __future__ import annotations

import errno
import json
from typing import Any

import pytest

from tinyvisor.learned import NAMESPACES, Learned, differences, learn, of_profile
from tinyvisor.profile import Action, Profile, default_profile_text, parse_profile
from tinyvisor.runtime.seccomp import MACHINES, compile_profile, decide
from tinyvisor.trace import End, Syscall

X86 = MACHINES["x86_64"]
HERE: Any = {"arch": "amd64", "kernel": (6, 1)}


def call(name: str, *raw: int, error: str = "") -> Syscall:
    return Syscall(time=0, pid=2, tid=2, name=name, raw=raw, result=-1 if error else 0, errno=error)


def profile_of(*events: Syscall) -> Profile:
    return parse_profile(json.dumps(learn(events).document("SCMP_ARCH_X86_64")))


def answer(profile: Profile, name: str, *arguments: int) -> Action:
    return decide(compile_profile(profile, X86), X86, name, arguments)


ALLOW, EPERM, ENOSYS = Action("allow"), Action("errno", errno.EPERM), Action("errno", errno.ENOSYS)


def test_what_was_done_is_allowed_and_nothing_else() -> None:
    profile = profile_of(call("execve", 1, 2, 3), call("read", 0, 1, 2), call("openat", 1, 2, 3, error="ENOENT"))
    for name in ("execve", "read", "openat", "exit", "exit_group", "rt_sigreturn", "restart_syscall"):
        assert answer(profile, name) == ALLOW
    allowed = {name for name in X86.numbers if answer(profile, name) == ALLOW}
    assert len(allowed) == 7


def test_in_vain_stays_in_vain() -> None:
    profile = profile_of(
        call("read"), call("mount", error="EPERM"), call("clone3", error="ENOSYS"), call("kill", error="EPERM"), call("kill")
    )
    assert answer(profile, "mount") == EPERM
    assert answer(profile, "clone3") == ENOSYS
    assert answer(profile, "kill") == ALLOW, "once it worked"
    both = profile_of(call("clone3", error="ENOSYS"), call("clone3"))
    assert answer(both, "clone3") == ALLOW


@pytest.mark.parametrize(
    "flags, plain",
    [
        ("CLONE_VM|CLONE_VFORK|CLONE_CLEAR_SIGHAND", True), ("0", True), ("CLONE_VM|CLONE_NEWPID", False),
        ("CLONE_INTO_CGROUP", False), ("CLONE_VM|0x8000000000", False), (None, False),
    ],
)  # fmt: skip
def test_clone3_whose_flags_a_filter_does_not_see(flags: str | None, plain: bool) -> None:
    shown = "0x7ffd00" if flags is None else f"{{flags={flags}, exit_signal=SIGCHLD, stack=NULL, stack_size=0}}"
    event = Syscall(time=0, pid=2, tid=2, name="clone3", raw=(0x7FFD00, 88), args=(shown, "88"), result=7)
    profile = profile_of(call("read"), event)
    assert answer(profile, "clone3", 0x7FFD00, 88) == (ENOSYS if plain else ALLOW)
    assert answer(profile, "clone", 0x1200011) == (ALLOW if plain else EPERM)
    assert answer(profile, "clone", 0x20000000) == EPERM


def test_arguments_that_matter() -> None:
    profile = profile_of(
        call("socket", 1), call("socket", 0xFFFFFFFF00000002), call("ioctl", 0, 0x5401, 7), call("prctl", 15),
        call("clone", 0x1200011), call("unshare", 0x20000), call("setns", 3, 0x40000000),
        call("fcntl", 3, 1, 0),
    )  # fmt: skip
    assert answer(profile, "socket", 1) == answer(profile, "socket", 2) == answer(profile, "socket", 1 << 32 | 1) == ALLOW
    assert answer(profile, "socket", 16) == answer(profile, "socket", 1 << 32 | 16) == EPERM
    assert answer(profile, "ioctl", 9, 0x5401) == ALLOW
    assert answer(profile, "ioctl", 0, 0x5412) == EPERM
    assert answer(profile, "fcntl", 5, 1) == ALLOW
    assert answer(profile, "fcntl", 5, 1024) == answer(profile, "fcntl", 5, 1024 | 1 << 32) == EPERM, "leases"
    assert answer(profile, "prctl", 15) == ALLOW
    assert answer(profile, "prctl", 22) == EPERM
    assert answer(profile, "clone", 0x3D0F00) == ALLOW, "threads and processes alike"
    assert answer(profile, "clone", NAMESPACES) == answer(profile, "clone", 0x10000000) == EPERM
    assert answer(profile, "unshare", 0x20000) == ALLOW
    assert answer(profile, "unshare", 0x10020000) == EPERM
    assert answer(profile, "setns", 9, 0x40000000) == ALLOW
    assert answer(profile, "setns", 9, 0) == EPERM


def test_the_same_calls_in_any_order_give_the_same_text() -> None:
    events = [call("read"), call("socket", 2), call("socket", 1), call("write"), call("clone3", error="ENOSYS")]
    texts = {json.dumps(learn(order).document("SCMP_ARCH_X86_64")) for order in (events, events[::-1], events + events)}
    assert len(texts) == 1


def test_merging_allows_what_either_does() -> None:
    one = of_profile(profile_of(call("read"), call("socket", 1), call("clone3", error="ENOSYS")), **HERE)
    one.merge(learn([call("write"), call("socket", 2)]))
    one.add(End(time=0, pid=1, tid=1))
    merged = parse_profile(json.dumps(one.document("SCMP_ARCH_X86_64")))
    assert all(answer(merged, *each) == ALLOW for each in (("read",), ("write",), ("socket", 1), ("socket", 2)))
    assert answer(merged, "socket", 3) == EPERM
    assert answer(merged, "clone3") == ENOSYS
    one.allow("socket")
    assert answer(parse_profile(json.dumps(one.document("SCMP_ARCH_X86_64"))), "socket", 3) == ALLOW


def test_calls_of_other_architectures_are_told() -> None:
    learned = learn([call("other_4"), call("x32_1"), call("read")])
    assert learned.foreign == {"other_4", "x32_1"}
    assert learned.allowed.keys() == {"read"}
    empty = Learned()
    empty.merge(learned)
    assert empty.foreign == learned.foreign


def test_differences() -> None:
    one, other = profile_of(call("read"), call("socket", 1)), profile_of(call("write"), call("socket", 1), call("socket", 2))
    assert differences(one, one, **HERE) == []
    assert differences(one, other, **HERE) == ["- read", "+ socket(arg0 & 0xffffffff == 0x2)", "+ write"]
    default = parse_profile(default_profile_text())
    lines = differences(one, default, **HERE)
    assert "+ openat" in lines
    assert not any(line.startswith("+ mount") for line in lines)
    assert differences(one, Profile(Action("kill_process"), one.rules), **HERE) == ["~ default: errno EPERM -> kill_process"]
