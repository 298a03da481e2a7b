"""An ordinary user, with ids of its own to give away, in whose place a test runs programs. No account is made: what the user is
known by is only in a mount namespace that ends with the program."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tinyvisor.runtime.cgroup import Hierarchy, read_layout, remove_cgroup

REPOSITORY = Path(__file__).parents[2]
UID, GID, GROUP = 12345, 12346, 12347
FIRST_ID = 3_000_000
_FILES = ("/etc/passwd", "/etc/subuid", "/etc/subgid")


class User:
    """A user who is in the group `GROUP`, too.

    Attributes:
        home: what it may write to.
        cgroups: that were delegated to it; its programs start in them.
        elsewhere: others, as of another session of its.
        run_directory: what is XDG_RUNTIME_DIR to its programs.
    """

    def __init__(self, directory: Path, ids: int, cgroups: list[str], elsewhere: list[str]) -> None:
        self.home = directory / "home"
        self.run_directory = directory / "run"
        self.elsewhere = elsewhere
        self._directory = directory
        self.cgroups = cgroups
        given = f"tester:{FIRST_ID}:{ids}\n" if ids else ""
        contents = [Path("/etc/passwd").read_text() + f"tester:x:{UID}:{GID}::{self.home}:/bin/sh\n", given, given]
        for name in ("home", "run"):
            (directory / name).mkdir(mode=0o700)
            os.chown(directory / name, UID, GID)
        for file, content in zip(_FILES, contents, strict=True):
            (directory / Path(file).name).write_text(content)

    def command(self, *words: str, **variables: str) -> list[str]:
        """The words that run a program as the user: it can be read, our interpreter and the repository, too."""
        environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.home), "LANG": "C.UTF-8",
            "XDG_RUNTIME_DIR": str(self.run_directory), "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1",
            **variables,
        }  # fmt: skip
        script = [f"mount --bind {shlex.quote(str(self._directory / Path(file).name))} {file}" for file in _FILES]
        script += _open_up([Path(sys.prefix), Path(sys.base_prefix), REPOSITORY, self._directory])
        script += [f"echo $$ >{cgroup}/cgroup.procs" for cgroup in self.cgroups]
        script.append(f"cd {shlex.quote(str(self.home))}")
        script.append(
            f"exec setpriv --reuid {UID} --regid {GID} --groups {GID},{GROUP} env -i "
            + shlex.join([*(f"{name}={value}" for name, value in environment.items()), *words])
        )
        return ["unshare", "--mount", "--propagation", "private", "sh", "-ec", "\n".join(script)]

    def run(self, *words: str, timeout: float, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs it to its end."""
        return subprocess.run(
            self.command(*words, **variables),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def tinyvisor(self, *words: str, timeout: float, **variables: str) -> subprocess.CompletedProcess[str]:
        """`tinyvisor` with these arguments."""
        return self.run(sys.executable, "-P", "-m", "tinyvisor", *words, timeout=timeout, **variables)


@contextmanager
def ordinary_user(directory: Path, *, ids: int = 65536, delegated: bool = False) -> Iterator[User]:
    """Args:
    directory: empty; the user can get at it.
    ids: as many subordinate ids it has; 0 is none.
    delegated: cgroups are delegated to it, and gone afterwards.
    """
    directory.chmod(0o755)
    hierarchies = read_layout().hierarchies if delegated else ()
    cgroups, elsewhere = ([_delegate(hierarchy, session) for hierarchy in hierarchies] for session in (1, 2))
    try:
        yield User(directory, ids, cgroups, elsewhere)
    finally:
        for cgroup in cgroups + elsewhere:
            remove_cgroup(cgroup)
        shutil.rmtree(directory / "home")


def _delegate(hierarchy: Hierarchy, session: int) -> str:
    """Source: cgroups(7), "Delegation"."""
    cgroup = Path(hierarchy.directory, f"tinyvisor-user-{os.getpid()}-{session}")
    cgroup.mkdir()
    os.chown(cgroup, UID, GID)
    for name in ("cgroup.procs", "tasks", "cgroup.subtree_control", "cgroup.threads"):
        with suppress(FileNotFoundError):
            os.chown(cgroup / name, UID, GID)
    if hierarchy.version == 2:
        parent = Path(hierarchy.directory, "cgroup.subtree_control")
        for name in ("pids", "memory", "cpu", "io"):
            with suppress(OSError):
                parent.write_text(f"+{name}")
    elif "cpuset" in hierarchy.controllers:
        for name in ("cpuset.cpus", "cpuset.mems"):
            (cgroup / name).write_text(Path(hierarchy.directory, name).read_text())
    return str(cgroup)


def _open_up(paths: list[Path]) -> Iterator[str]:
    """Lines of a shell: where a directory above is closed to others, it is replaced by one with nothing in it but the path."""
    closed: dict[Path, set[Path]] = {}
    for path in paths:
        for parent in reversed(path.resolve().parents):
            if not parent.stat().st_mode & 0o001:
                closed.setdefault(parent, set()).add(path.resolve())
                break
    yield "mount -t tmpfs tmpfs /mnt"
    for number, (parent, needed) in enumerate(closed.items()):
        yield f"mkdir /mnt/{number}; mount --rbind {parent} /mnt/{number}; mount -t tmpfs -o mode=755 tmpfs {parent}"
        for path in sorted(needed):
            yield f"mkdir -p {path}; mount --rbind /mnt/{number}/{path.relative_to(parent)} {path}"
    yield "umount -l /mnt"
