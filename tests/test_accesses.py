"""Files and addresses that were gone for, as tables and as configuration."""

from __future__ import annotations

import pytest

from tinyvisor import accesses
from tinyvisor.accesses import Addresses, Files
from tinyvisor.trace import End, Syscall


def call(name: str, *paths: str, flags: str = "", error: str = "", address: str = "") -> Syscall:
    args = {"open": ("p", flags), "openat": ("AT_FDCWD", "p", flags), "openat2": ("d", "p", f"{{flags={flags}}}")}.get(name, ())
    return Syscall(
        time=0, pid=2, tid=2, name=name, args=args, paths=paths, result=-1 if error else 0, errno=error, address=address
    )


def files(*events: Syscall) -> Files:
    found = Files()
    for event in events:
        found.add(event)
    found.add(End(time=0, pid=1, tid=1))
    return found


@pytest.mark.parametrize(
    "event, kind",
    [
        (call("openat", "/x", flags="O_RDONLY|O_CLOEXEC"), "read"),
        (call("openat", "/x", flags="O_WRONLY"), "written"),
        (call("open", "/x", flags="O_RDWR"), "written"),
        (call("openat2", "/x", flags="O_RDONLY|O_CREAT"), "written"),
        (call("execve", "/x"), "read"),
        (call("unlinkat", "/x"), "written"),
        (call("mkdir", "/x", error="EEXIST"), "read"),
        (call("mkdir", "/x", error="EROFS"), "denied"),
        (call("openat", "/x", flags="O_RDWR", error="EACCES"), "denied"),
        (call("stat", "/x", error="ENOENT"), "missing"),
        (call("stat", "/x/y/..", error="ENOTDIR"), "missing"),
        (call("openat", "/x", flags="O_RDONLY", error="EMFILE"), "failed"),
    ],
)
def test_kinds_of_access(event: Syscall, kind: str) -> None:
    (access,) = files(event).paths.values()
    assert {name: getattr(access, name) for name in access.__slots__ if getattr(access, name)} == {kind: 1}


def test_table_and_json() -> None:
    found = files(call("stat", "/b/./c"), call("rename", "/a\x1b", "/b/c"), call("stat", "/b/c", error="ENOENT"))
    assert found.rows() == [
        ("path", "read", "written", "missing", "denied", "failed"),
        ("/a\\x1b", "", "1", "", "", ""),
        ("/b/c", "1", "1", "1", "", ""),
    ]
    assert found.to_json()["/b/c"] == {"read": 1, "written": 1, "missing": 1, "denied": 0, "failed": 0}


def test_lines_for_files() -> None:
    there = ("/srv/app", "/srv/app/conf", "/opt/x", "/proc/1", "/etc/x", "/seen", "/a:b")
    host = ({path: path for path in there} | {"/link": "/srv/linked"}).get
    found = files(
        *(call("stat", path, error="ENOENT") for path in ("/srv/app", "/srv/app/conf", "/nosuch", "/proc/1", "/etc/x", "/a:b")),
        call("stat", "/link", error="ENOENT"),
        call("stat", "/seen", error="ENOENT"),
        call("stat", "/seen"), call("creat", "/var/lib/x/1"), call("creat", "/var/lib/x/y/2"), call("creat", "/dev/null"),
    )  # fmt: skip
    assert found.lines(host) == [
        "volumes:",
        '- "/srv/app:/srv/app:ro"',
        '- "/srv/linked:/srv/linked:ro"',
        "tmpfs:",
        '- "/var/lib/x"',
        "read_only: true",
    ]
    assert files(call("creat", "/x")).lines(host) == [], "the root itself is written to"
    assert files().lines(host) == ["read_only: true"]


def test_addresses() -> None:
    found = Addresses()
    for event in (
        call("connect", address="10.0.0.1:80", error="ENETUNREACH"), call("connect", address="10.0.0.1:80", error="EINPROGRESS"),
        call("bind", address="0.0.0.0:8000"), call("connect", address="unix:/run/x\n", error="ENOENT"), call("read"),
    ):  # fmt: skip
        found.add(event)
    assert found.rows() == [
        ("address", "call", "times", "errors"),
        ("0.0.0.0:8000", "bind", "1", ""),
        ("10.0.0.1:80", "connect", "2", "ENETUNREACH 1"),
        ("unix:/run/x\\n", "connect", "1", "ENOENT 1"),
    ]
    assert found.lines() == ["network_mode: host"]
    assert found.to_json()[1] == {"call": "connect", "address": "10.0.0.1:80", "times": 2, "errors": {"ENETUNREACH": 1}}
    inside = Addresses()
    inside.add(call("connect", address="127.0.0.1:80"))
    inside.add(call("bind", address="192.168.0.1:80"))
    assert inside.lines() == ["network_mode: none"]


def test_made_up_names_do_not_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accesses, "MAX_KEPT", 10)
    found, addresses = files(*(call("stat", f"/{number}") for number in range(30))), Addresses()
    for number in range(30):
        addresses.add(call("connect", address=f"10.0.0.1:{number}"))
    assert (len(found.paths), found.others) == (10, 20)
    assert (len(addresses.tried), addresses.others) == (10, 20)
    assert found.rows()[-1][0] == "(20 accesses of others)"
    assert addresses.rows()[-1][0] == "(20 calls for others)"
