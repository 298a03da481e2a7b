"""Who the workload runs as: ``user`` and ``group_add`` → numbers, from the container's own passwd and group. Pure but for
`read_in_root` and `invoking_user`.

The rules are Docker's and runc's (github.com/moby/sys/user, GetExecUser). Both files belong to the container: they may be
hostile, and a line that makes no sense is passed over.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from tinyvisor import places
from tinyvisor.errors import SpecError
from tinyvisor.runtime.syscalls import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2

MAX_ID = 2**32 - 2  # 2**32 - 1 is "no change" to setuid(2) and friends
MAX_GROUPS = 65536  # NGROUPS_MAX


@dataclass(frozen=True, slots=True)
class Identity:
    """What the workload becomes.

    Attributes:
        uid, gid: 0..2**32-2.
        groups: for setgroups(2). The primary group is among them: without it a set-group-id program could shed the group
            and with it the group's *negative* permissions (CVE-2022-36109).
        home: absolute path inside.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


@dataclass(frozen=True, slots=True)
class _User:
    name: bytes
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class _Group:
    name: bytes
    gid: int
    members: bytes


def resolve(user: str | None, group_add: tuple[str, ...], passwd: bytes, group: bytes) -> Identity:
    """The numbers behind ``user``.

    Args:
        user: ``"uid"``, ``"uid:gid"``, ``"name"``, ``"name:group"``; None is uid 0. A number is always a number, even
            where somebody is called so. A number without a passwd entry gets gid 0.
        group_add: more groups, numbers or names.
        passwd, group: contents of the container's files, b"" where it has none.

    Raises:
        SpecError: a name that is not in the file, or an id out of range.
    """
    who, _, with_group = (user or "").partition(":")
    entry = _find_user(who, passwd)
    gid = entry.gid
    supplementary: list[int] = []
    if with_group:
        gid = _find_group("user", with_group, group)
    elif entry.name:
        supplementary = [item.gid for item in _groups(group) if entry.name in item.members.split(b",")]
    added = [_find_group("group_add", name, group) for name in group_add]
    groups = tuple(dict.fromkeys((gid, *supplementary, *added)))
    if len(groups) > MAX_GROUPS:
        raise SpecError("user", f"is in {len(groups)} groups; the kernel takes {MAX_GROUPS}")
    return Identity(entry.uid, gid, groups, entry.home)


def invoking_user() -> tuple[int, int]:
    """The uid and gid of who started us: the one behind sudo, where we are root by it, or whose user namespace we are in.

    Raises:
        SpecError: that is root, whose ids no container gets.
    """
    uid, gid = places.owner() or (os.getuid(), os.getgid())
    if uid == 0:
        uid, gid = (_id(os.environ.get(name, "").encode()) or 0 for name in ("SUDO_UID", "SUDO_GID"))
    if uid == 0 or gid == 0:
        raise SpecError(
            "userns_mode", "keep-id keeps the user who calls sudo; we were started by root, whose ids are not given away"
        )
    return uid, gid


def read_in_root(root_fd: int, path: str, limit: int = 1 << 20) -> bytes:
    """The contents of a regular file below `root_fd`, where `path` and every symbolic link are resolved inside that root.

    The container controls the root: the file is looked at through an O_PATH fd before it is opened, since opening a device
    has effects and opening a FIFO may block, and it is read up to `limit` bytes.

    Raises:
        OSError: the kernel's answer; EINVAL not a regular file; EFBIG more than `limit` bytes.
    """
    handle = openat2(root_fd, os.fsencode(path), os.O_PATH, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        fd = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    finally:
        os.close(handle)
    with open(fd, "rb", buffering=0) as file:
        content = _read_up_to(file.fileno(), limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes", path)
    return content


def _read_up_to(fd: int, size: int) -> bytes:
    parts: list[bytes] = []
    while size and (part := os.read(fd, min(size, 1 << 16))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _find_user(who: str, passwd: bytes) -> _User:
    number = _number("user", who or "0")
    name = os.fsencode(who)
    for entry in _users(passwd):
        if entry.uid == number if number is not None else entry.name == name:
            return entry
    if number is None:
        raise SpecError("user", f'"{who}" is not in the container\'s /etc/passwd')
    return _User(b"", number, 0, "/")


def _find_group(field: str, who: str, group: bytes) -> int:
    number = _number(field, who)
    if number is not None:
        return number
    name = os.fsencode(who)
    for entry in _groups(group):
        if entry.name == name:
            return entry.gid
    raise SpecError(field, f'group "{who}" is not in the container\'s /etc/group')


def _number(field: str, text: str) -> int | None:
    if not (text.isascii() and text.isdigit()):
        return None
    number = _id(text.encode())
    if number is None:
        raise SpecError(field, f"{text[:40]} is not an id; expected 0 to {MAX_ID}")
    return number


def _id(text: bytes) -> int | None:
    # bytes.isdigit is ASCII only; the length check comes before int(), which is slow on long digit strings
    if not text.isdigit() or len(text) > 10:
        return None
    number = int(text)
    return number if number <= MAX_ID else None


def _users(passwd: bytes) -> Iterator[_User]:
    for line in passwd.split(b"\n"):
        parts = line.split(b":", 7)
        if len(parts) < 6 or not parts[0]:
            continue
        uid, gid = _id(parts[2]), _id(parts[3])
        if uid is not None and gid is not None:
            yield _User(parts[0], uid, gid, _home(parts[5]))


def _groups(group: bytes) -> Iterator[_Group]:
    for line in group.split(b"\n"):
        parts = line.split(b":", 4)
        if len(parts) < 3 or not parts[0]:
            continue
        gid = _id(parts[2])
        if gid is not None:
            yield _Group(parts[0], gid, parts[3] if len(parts) > 3 else b"")


def _home(path: bytes) -> str:
    return os.fsdecode(path) if path.startswith(b"/") and b"\0" not in path and len(path) < 4096 else "/"
