"""The host view: the root of a container for which none was given. The host's programs and libraries, and an /etc of its own.

`write_etc` copies from the host's /etc by a list of names, never the whole, and only what every user of the host may read
anyway; a file that holds a private key is left out even then. Symbolic links stay links: nothing outside /etc is read, except
for certificates (openSUSE keeps them in /var/lib).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TOP: Final = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_STORES: Final = ("/nix/store", "/gnu/store")  # NixOS and Guix: what /bin and /usr/bin link to

# Names below /etc; a directory is taken with all that is in it; "*" matches as in the shell.
_COPIED: Final = (
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ld-musl-*.path",
    "alternatives", "static", "os-release", "localtime", "timezone", "locale.conf", "host.conf", "gai.conf",
    "protocols", "services", "rpc", "mime.types", "shells", "inputrc", "terminfo", "fonts", "java-*",
    "ssl/certs", "ssl/cert.pem", "ssl/ca-bundle.pem", "ssl/openssl.cnf", "ca-certificates", "crypto-policies",
    "pki/tls/certs", "pki/tls/cert.pem", "pki/tls/openssl.cnf", "pki/ca-trust/extracted", "pki/java",
)  # fmt: skip
_KEPT_LINKS: Final = ("/usr", "/etc", *_TOP, *_STORES)
_FOLLOWED: Final = ("/var/lib/ca-certificates",)
_MAX_FILE: Final = 4 << 20  # bytes
_MAX_ENTRIES: Final = 6000  # the caller's tmpfs has a bound, too

PASSWD: Final = b"""\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
bin:x:2:2:bin:/bin:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/:/usr/sbin/nologin
"""
# tty is 5 everywhere: devpts is mounted with gid=5. 65534 is nogroup on Debian and nobody on Fedora.
GROUP: Final = b"""\
root:x:0:
daemon:x:1:
bin:x:2:
tty:x:5:
nogroup:x:65534:
nobody:x:65534:
"""
# Not the host's: its modules (systemd, sss, ldap, mdns) talk to daemons that are not in the container.
_NSSWITCH: Final = b"""\
passwd: files
group: files
shadow: files
hosts: files dns
networks: files
protocols: files
services: files
ethers: files
rpc: files
"""
# What differs from container to container is written to its own /run.
_LINKS: Final = {
    "hosts": "../run/hosts",
    "hostname": "../run/hostname",
    "resolv.conf": "../run/resolv.conf",
    "mtab": "../proc/self/mounts",
}


@dataclass(frozen=True, slots=True)
class HostView:
    """What of the host's root is seen.

    Attributes:
        binds: absolute paths of directories to bind, read-only, at the same place.
        links: (path, target) of symbolic links to make.
    """

    binds: tuple[str, ...]
    links: tuple[tuple[str, str], ...]


def host_view(root: Path = Path("/")) -> HostView:
    """The view of this host: /usr, and /bin and the like as they are here, links (merged /usr) or directories.

    Args:
        root: looked at instead of /, for tests.
    """
    binds, links = ["/usr"], []
    for path in _TOP:
        here = root / path[1:]
        target = os.readlink(here) if here.is_symlink() else None
        if target is not None and _is_below(_absolute(path, target), ("/usr",)):
            links.append((path, target))
        elif here.is_dir():  # also by a link to elsewhere, which would dangle inside
            binds.append(path)
    binds += [store for store in _STORES if (root / store[1:]).is_dir()]
    return HostView(tuple(binds), tuple(links))


def hosts_file(hostname: str) -> bytes:
    """/etc/hosts: loopback, and the container's own name on it, since there is no other network."""
    name = hostname.encode("utf-8", "surrogateescape")
    return b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t" + name + b"\n"


def resolv_conf_for(network_mode: str, host_resolv: bytes) -> bytes:
    """/etc/resolv.conf: the host's, where the network is the host's; empty where nobody could be asked."""
    return host_resolv[: 64 << 10] if network_mode == "host" else b""


def write_etc(directory: Path, *, source: Path = Path("/etc")) -> None:
    """Fills `directory`, which is new and ours alone, with the host view's /etc. Blocking; some ten milliseconds.

    Args:
        source: read instead of /etc, for tests.

    Raises:
        OSError: `directory` can't be written.
    """
    copier = _Copier()
    for name in _expand(source):
        copier.copy(str(source), str(directory), name)
    for name, content in (("passwd", PASSWD), ("group", GROUP), ("nsswitch.conf", _NSSWITCH)):
        _write(f"{directory}/{name}", content)
    for name, target in _LINKS.items():
        os.symlink(target, directory / name)


def _expand(source: Path) -> Iterator[str]:
    for pattern in _COPIED:
        if "*" not in pattern:
            yield pattern
        else:
            yield from sorted(path.name for path in source.glob(pattern))


class _Copier:
    """Works on strings: hundreds of certificates' links are most of the work, and every first start waits for it."""

    def __init__(self) -> None:
        self.left = _MAX_ENTRIES

    def copy(self, source: str, directory: str, name: str) -> None:
        """Copies what is called `name` below /etc; passes over what is missing or not for everybody."""
        here, there = f"{source}/{name}", f"{directory}/{name}"
        try:
            mode = os.lstat(here).st_mode
        except OSError:
            return
        _make_directory(os.path.dirname(there))
        self._copy(f"/etc/{name}", here, there, stat.S_IFMT(mode))

    def _copy(self, path: str, here: str, there: str, kind: int) -> None:
        """`path` is what links are relative to: where it is inside, or, in a copied tree from elsewhere, where that is."""
        if self.left <= 0:
            return
        self.left -= 1
        if kind == stat.S_IFLNK:
            self._link(path, here, there)
        elif kind == stat.S_IFDIR:
            self._directory(path, here, there)
        elif kind == stat.S_IFREG:
            _copy_file(here, there)

    def _link(self, path: str, here: str, there: str) -> None:
        target = os.readlink(here)
        absolute = _absolute(path, target)
        if _is_below(path, _FOLLOWED):  # in a copied tree: only what stays in it, which a relative link does here, too
            if _is_below(absolute, _FOLLOWED) and not target.startswith("/"):
                os.symlink(target, there)
        elif _is_below(absolute, _KEPT_LINKS):
            os.symlink(target, there)
        elif _is_below(real := os.path.realpath(absolute), _FOLLOWED):
            self._copy(real, real, there, stat.S_IFDIR if os.path.isdir(real) else stat.S_IFREG)

    def _directory(self, path: str, here: str, there: str) -> None:
        try:
            with os.scandir(here) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            return
        _make_directory(there)
        for entry in found:
            # Manual pages have alternatives, too: many, and of no use here.
            if not (path == "/etc/alternatives" and entry.name.endswith(".gz")):
                self._copy(f"{path}/{entry.name}", entry.path, f"{there}/{entry.name}", _kind(entry))


def _kind(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return stat.S_IFLNK
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    return stat.S_IFREG if entry.is_file(follow_symlinks=False) else 0


def _make_directory(path: str) -> None:
    if os.path.isdir(path):
        return
    _make_directory(os.path.dirname(path))
    os.mkdir(path)
    os.chmod(path, 0o755)  # whatever the umask


def _copy_file(here: str, there: str) -> None:
    with suppress(PermissionError, FileNotFoundError):
        fd = os.open(here, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb", buffering=0) as file:
            status = os.fstat(fd)
            if not (stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH and status.st_size <= _MAX_FILE):
                return
            content = file.read(_MAX_FILE)
        if b"PRIVATE KEY-----" not in content:
            _write(there, content)


def _write(path: str, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(fd, "wb") as file:
        os.fchmod(fd, 0o644)  # whatever the umask
        file.write(content)


def _absolute(link: str, target: str) -> str:
    """Where a link leads, by its text."""
    return os.path.normpath(os.path.join(os.path.dirname(link), target))


def _is_below(path: str, directories: tuple[str, ...]) -> bool:
    return any(path == directory or path.startswith(f"{directory}/") for directory in directories)
