"""An ordinary user's tinyvisor: it makes a user namespace in which it is root, and goes on in there.

Its ids are the user's own, as 0, and the ranges that /etc/subuid and /etc/subgid give the user, behind it; newuidmap and
newgidmap, which are set-uid, write the map, since the kernel lets the user map no id but his own. From then on everything is as
for root, but for what belongs to the host: no device can be made, no file system of the host's idmapped, and cgroups are to be
had only where they were delegated.
Sources: user_namespaces(7), newuidmap(1), subuid(5), cgroups(7) "Delegation"; Podman and Buildah ``unshare`` do the same.
"""

from __future__ import annotations

import errno
import os
import pwd
import subprocess
import threading
from pathlib import Path
from typing import Final

from tinyvisor import places
from tinyvisor.errors import HostError
from tinyvisor.runtime.idmap import IdMap, map_text, user_map
from tinyvisor.runtime.syscalls import setns, unshare

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
_APPARMOR: Final = "kernel.apparmor_restrict_unprivileged_userns"
_HELPERS: Final = (("newuidmap", "uids"), ("newgidmap", "gids"))


def enter(left: int = 0) -> None:
    """Makes this process root of a user namespace, and of a mount namespace; nothing, where it is root already. Blocking; some
    milliseconds. Child processes are told by the environment (`places.VARIABLE`).

    Args:
        left: a process of this user's, of a supervisor that is no more, whose user namespace it is to be.

    Raises:
        HostError: this host does not let us, or /etc/subuid makes no sense, with the cure. Where the namespace was made already,
            the process is of no more use.
    """
    if os.geteuid() == 0:
        return
    if threading.active_count() > 1:  # unshare(2) EINVAL
        raise HostError("a program with threads can't enter a user namespace", "start it by `tinyvisor unshare PROGRAM`")
    uid, gid = os.geteuid(), os.getegid()
    if left:
        _join(left)
    else:
        _make(_own_map(uid, gid))
    os.environ[places.VARIABLE] = f"{uid}:{gid}"
    _check_rights()


def _join(pid: int) -> None:
    """Whose namespace it is has all rights in there: user_namespaces(7)."""
    try:
        fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(fd, CLONE_NEWUSER)
        finally:
            os.close(fd)
    except OSError as exc:
        raise HostError(
            f"the user namespace of the containers that are left can't be entered ({exc.strerror})",
            "kill the project's tinyvisor-keeper, which kills them",
        ) from None


def _make(map_: IdMap) -> None:
    helper = None if len(map_.uids) == 1 else _Helper(map_)
    try:
        _unshare()
        if helper is None:
            _map_own_ids(map_)
        else:
            helper.map_ids()
    finally:
        if helper is not None:
            helper.close()


def _own_map(uid: int, gid: int) -> IdMap:
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    return user_map(uid, gid, name, _read("/etc/subuid"), _read("/etc/subgid"))


def _unshare() -> None:
    try:
        unshare(CLONE_NEWUSER)
    except OSError as exc:
        raise _refused(exc) from None


def _refused(error: OSError) -> HostError:
    """What forbids user namespaces."""
    if error.errno == errno.ENOSPC:
        return HostError(
            "no more user namespaces are allowed (user.max_user_namespaces)", "sysctl user.max_user_namespaces=10000"
        )
    if _read("/proc/sys/kernel/unprivileged_userns_clone", "1").strip() == "0":
        return HostError("user namespaces are root's alone here", "sysctl kernel.unprivileged_userns_clone=1")
    return HostError(
        f"a user namespace can't be made ({error.strerror})", "run as root; in a container, run that one with seccomp=unconfined"
    )


def _check_rights() -> None:
    """That we are root in there. Ubuntu gives the namespace and not the rights (AppArmor, since 23.10)."""
    try:
        unshare(CLONE_NEWNS)
    except OSError as exc:
        if _read(f"/proc/sys/{_APPARMOR.replace('.', '/')}", "0").strip() == "1":
            profile = f"a profile with `userns,` for {os.readlink('/proc/self/exe')}"
            raise HostError(
                "AppArmor gives user namespaces no rights here", f"sysctl {_APPARMOR}=0, or {profile}, or run as root"
            ) from None
        raise HostError(f"a mount namespace can't be made ({exc.strerror})", "run as root") from None


def _map_own_ids(map_: IdMap) -> None:
    """The one map that the kernel lets us write. Groups can't be left from then on: user_namespaces(7)."""
    for file, text in (("setgroups", "deny"), ("uid_map", map_text(map_.uids)), ("gid_map", map_text(map_.gids))):
        Path("/proc/self", file).write_text(text)


class _Helper:
    """A child that stays outside: only there newuidmap has the rights that it needs. It waits until there is something to map."""

    def __init__(self, map_: IdMap) -> None:
        words = [_words(program, getattr(map_, kind)) for program, kind in _HELPERS]
        reading, self._writing = os.pipe()
        user = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._writing)
            os._exit(_map_for(user, reading, words))
        os.close(reading)

    def map_ids(self) -> None:
        """Has it map our ids, and waits until that is done."""
        os.write(self._writing, b"x")
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        if status:
            number = os.waitstatus_to_exitcode(status)
            program = _HELPERS[0][0] if number == 1 else _HELPERS[1][0]
            raise HostError(
                f"{program} did not map our ids",
                "what it said is above; it must be installed (uidmap, shadow) with set-uid or the file capability cap_setuid",
            )

    def close(self) -> None:
        """Without `map_ids` it has nothing to do."""
        os.close(self._writing)
        if self._pid:
            os.waitpid(self._pid, 0)


def _map_for(user: int, reading: int, words: list[list[str]]) -> int:
    if not os.read(reading, 1):
        return 0
    for number, (program, *extents) in enumerate(words, 1):
        try:
            if subprocess.run([program, str(user), *extents], check=False).returncode:
                return number
        except OSError as exc:
            os.write(2, f"{program}: {exc.strerror}\n".encode())
            return number
    return 0


def _words(program: str, extents: tuple[tuple[int, int, int], ...]) -> list[str]:
    return [program, *(str(number) for extent in extents for number in extent)]


def _read(path: str, missing: str = "") -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return missing
