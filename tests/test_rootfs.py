"""The host view: what is bound, and an /etc that works and tells no secrets."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tinyvisor.runtime.identity import resolve
from tinyvisor.runtime.rootfs import HostView, host_view, hosts_file, resolv_conf_for, write_etc
from tinyvisor.runtime.syscalls import new_tmpfs, open_tree

LINKS = {
    "hosts": "../run/hosts",
    "hostname": "../run/hostname",
    "resolv.conf": "../run/resolv.conf",
    "mtab": "../proc/self/mounts",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "host-etc"
    path.mkdir()
    return path


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    path = tmp_path / "etc"
    path.mkdir()
    return path


def put(path: Path, content: str = "x", mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(mode)


# ---- the view ----


def test_merged_usr(tmp_path: Path) -> None:
    (tmp_path / "usr/lib32").mkdir(parents=True)
    (tmp_path / "bin").symlink_to("usr/bin")
    (tmp_path / "lib").symlink_to("/usr/lib")
    (tmp_path / "sbin").symlink_to("./usr/./bin")
    assert host_view(tmp_path) == HostView(("/usr",), (("/bin", "usr/bin"), ("/sbin", "./usr/./bin"), ("/lib", "/usr/lib")))


def test_separate_directories(tmp_path: Path) -> None:
    for name in ("usr", "bin", "sbin", "lib", "lib64"):
        (tmp_path / name).mkdir()
    assert host_view(tmp_path) == HostView(("/usr", "/bin", "/sbin", "/lib", "/lib64"), ())


def test_stores_of_nix_and_guix(tmp_path: Path) -> None:
    for name in ("usr", "bin", "nix/store", "gnu/store"):
        (tmp_path / name).mkdir(parents=True)
    assert host_view(tmp_path).binds == ("/usr", "/bin", "/nix/store", "/gnu/store")


def test_a_link_that_would_dangle_inside_is_bound_instead(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "bin").symlink_to("elsewhere")
    (tmp_path / "sbin").symlink_to("usr/../elsewhere")
    (tmp_path / "usr").mkdir()
    (tmp_path / "lib").symlink_to("missing")
    assert host_view(tmp_path) == HostView(("/usr", "/bin", "/sbin"), ())


def test_this_host_has_a_shell_in_its_view() -> None:
    view = host_view()
    shell = os.path.realpath("/bin/sh")
    assert any(shell.startswith(f"{path}/") for path in view.binds)


# ---- /etc ----


def test_this_hosts_etc(etc: Path) -> None:
    write_etc(etc)
    assert {name: os.readlink(etc / name) for name in LINKS} == LINKS
    for directory, names, files in os.walk(etc):
        for name in names + files:
            path = Path(directory, name)
            mode = path.lstat().st_mode
            assert not path.name.startswith(("shadow", "gshadow", "sudoers", "ssh_host"))
            if stat.S_ISREG(mode):
                assert stat.S_IMODE(mode) == 0o644
                assert b"PRIVATE KEY-----" not in path.read_bytes()
            elif stat.S_ISDIR(mode):
                assert stat.S_IMODE(mode) & 0o777 == 0o755
            else:
                assert stat.S_ISLNK(mode)
    passwd, group = (etc / "passwd").read_bytes(), (etc / "group").read_bytes()
    assert (resolve(None, (), passwd, group).home, resolve("nobody", ("tty",), passwd, group).groups) == ("/root", (65534, 5))
    for name in ("ld.so.cache", "protocols"):
        if Path("/etc", name).exists():
            assert (etc / name).read_bytes() == Path("/etc", name).read_bytes()


def test_users_of_the_host_are_not_told(etc: Path) -> None:
    write_etc(etc)
    names = {line.split(":")[0] for line in (etc / "passwd").read_text().splitlines()}
    assert names == {"root", "daemon", "bin", "nobody"}
    assert pwd.getpwuid(0).pw_name in names


def test_certificates_of_debian(source: Path, etc: Path) -> None:
    put(source / "ssl/certs/ca-certificates.crt", "BUNDLE")
    (source / "ssl/certs/A.pem").symlink_to("/usr/share/ca-certificates/mozilla/A.crt")
    (source / "ssl/certs/0a.0").symlink_to("A.pem")
    put(source / "ssl/openssl.cnf")
    put(source / "ssl/private/key.pem", "secret", 0o600)
    write_etc(etc, source=source)
    assert (etc / "ssl/certs/ca-certificates.crt").read_text() == "BUNDLE"
    assert os.readlink(etc / "ssl/certs/A.pem") == "/usr/share/ca-certificates/mozilla/A.crt"
    assert os.readlink(etc / "ssl/certs/0a.0") == "A.pem"
    assert sorted(os.listdir(etc / "ssl")) == ["certs", "openssl.cnf"]


def test_certificates_of_fedora(source: Path, etc: Path) -> None:
    put(source / "pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "BUNDLE")
    put(source / "pki/tls/private/host.key", "secret")
    put(source / "pki/entitlement/1-key.pem", "secret")
    (source / "pki/tls/certs").mkdir()
    (source / "pki/tls/certs/ca-bundle.crt").symlink_to("/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem")
    (source / "ssl").mkdir()
    (source / "ssl/certs").symlink_to("../pki/tls/certs")
    write_etc(etc, source=source)
    assert os.readlink(etc / "ssl/certs") == "../pki/tls/certs"
    assert os.readlink(etc / "pki/tls/certs/ca-bundle.crt") == "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"
    assert (etc / "pki/ca-trust/extracted/pem/tls-ca-bundle.pem").read_text() == "BUNDLE"
    assert sorted(os.listdir(etc / "pki")) == ["ca-trust", "tls"]
    assert os.listdir(etc / "pki/tls") == ["certs"]


def test_certificates_of_opensuse(source: Path, etc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/etc/ssl/certs is a link to /var/lib/ca-certificates/pem, which is not in the view: it is copied."""
    monkeypatch.setattr("tinyvisor.runtime.rootfs._FOLLOWED", (str(tmp_path / "var"),))
    put(tmp_path / "var/pem/A.pem", "A")
    (tmp_path / "var/pem/0a.0").symlink_to("A.pem")
    (tmp_path / "var/pem/out").symlink_to("/root/secret")
    put(tmp_path / "var/bundle.pem", "BUNDLE")
    (source / "ssl").mkdir()
    (source / "ssl/certs").symlink_to(tmp_path / "var/pem")
    (source / "ssl/ca-bundle.pem").symlink_to(tmp_path / "var/bundle.pem")
    write_etc(etc, source=source)
    assert (etc / "ssl/certs/0a.0").read_text() == (etc / "ssl/certs/A.pem").read_text() == "A"
    assert (etc / "ssl/ca-bundle.pem").read_text() == "BUNDLE"
    assert not os.path.lexists(etc / "ssl/certs/out")


def test_links_of_nixos(source: Path, etc: Path) -> None:
    (source / "static").symlink_to("/nix/store/abc-etc/etc")
    (source / "os-release").symlink_to("/etc/static/os-release")
    write_etc(etc, source=source)
    assert os.readlink(etc / "static") == "/nix/store/abc-etc/etc"
    assert os.readlink(etc / "os-release") == "/etc/static/os-release"


@pytest.mark.parametrize("target", ["/root/secret", "../../root/secret", "/usr/../root/secret", "/etc/../home/x", "/usrx/y"])
def test_links_to_elsewhere_are_left_out(source: Path, etc: Path, target: str) -> None:
    (source / "localtime").symlink_to(target)
    write_etc(etc, source=source)
    assert not os.path.lexists(etc / "localtime")


def test_secrets_and_oddities_are_left_out(source: Path, etc: Path) -> None:
    for name in ("shadow", "gshadow", "sudoers", "ssh/ssh_host_key", "machine-id", "krb5.keytab", "environment"):
        put(source / name)
    put(source / "java-17/jmxremote.password", "secret", 0o640)
    put(source / "java-17/java.security", "fine")
    put(source / "ssl/certs/host.pem", "-----BEGIN CERTIFICATE-----\n-----BEGIN RSA PRIVATE KEY-----\n")
    os.mkfifo(source / "protocols")
    with (source / "services").open("wb") as file:
        file.truncate(1 << 40)
    write_etc(etc, source=source)
    assert sorted(os.listdir(etc)) == sorted([*LINKS, "passwd", "group", "nsswitch.conf", "java-17", "ssl"])
    assert os.listdir(etc / "java-17") == ["java.security"]
    assert os.listdir(etc / "ssl/certs") == []


def test_the_hosts_own_files_do_not_stand_in_for_generated_ones(source: Path, etc: Path) -> None:
    for name in ("passwd", "group", "nsswitch.conf", "hosts", "resolv.conf"):
        put(source / name, "the host's")
    write_etc(etc, source=source)
    assert "the host's" not in "".join((etc / name).read_text() for name in ("passwd", "group", "nsswitch.conf"))


def test_alternatives_without_manual_pages(source: Path, etc: Path) -> None:
    (source / "alternatives").mkdir()
    (source / "alternatives/awk").symlink_to("/usr/bin/mawk")
    (source / "alternatives/awk.1.gz").symlink_to("/usr/share/man/man1/mawk.1.gz")
    write_etc(etc, source=source)
    assert os.listdir(etc / "alternatives") == ["awk"]


def test_a_host_with_too_many_files(source: Path, etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyvisor.runtime.rootfs._MAX_ENTRIES", 10)
    for number in range(50):
        put(source / f"terminfo/{number}")
    write_etc(etc, source=source)
    assert len(os.listdir(etc / "terminfo")) == 9
    assert (etc / "passwd").exists()


def test_an_empty_host_etc(source: Path, etc: Path) -> None:
    write_etc(etc, source=source)
    assert sorted(os.listdir(etc)) == sorted([*LINKS, "passwd", "group", "nsswitch.conf"])


def test_modes_do_not_depend_on_the_umask(source: Path, etc: Path) -> None:
    put(source / "ssl/certs/A.pem", mode=0o444)
    before = os.umask(0o077)
    try:
        write_etc(etc, source=source)
    finally:
        os.umask(before)
    assert stat.S_IMODE((etc / "passwd").stat().st_mode) == 0o644
    assert stat.S_IMODE((etc / "ssl/certs/A.pem").stat().st_mode) == 0o644
    assert stat.S_IMODE((etc / "ssl").stat().st_mode) == stat.S_IMODE((etc / "ssl/certs").stat().st_mode) == 0o755


# ---- contents ----


def test_hosts() -> None:
    lines = hosts_file("web").decode().splitlines()
    assert "127.0.0.1\tlocalhost" in lines
    assert "127.0.1.1\tweb" in lines
    assert hosts_file("\udcf7" * 3).endswith(b"\t\xf7\xf7\xf7\n")


@pytest.mark.parametrize("mode, expected", [("host", b"nameserver 10.0.0.1\n"), ("none", b""), ("service:web", b"")])
def test_resolv_conf(mode: str, expected: bytes) -> None:
    assert resolv_conf_for(mode, b"nameserver 10.0.0.1\n") == expected


# ---- trees ----


@pytest.mark.kernel
def test_etc_goes_into_a_detached_tmpfs() -> None:
    fd = new_tmpfs(size=16 << 20, inodes=8192)
    try:
        write_etc(Path(f"/proc/self/fd/{fd}"))
        assert os.stat("passwd", dir_fd=fd).st_mode & 0o777 == 0o644
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


@pytest.mark.kernel
def test_a_detached_tmpfs_has_its_bounds() -> None:
    fd = new_tmpfs(size=1 << 20, inodes=10, mode=0o700)
    try:
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o700
        status = os.statvfs(fd)
        assert (status.f_blocks * status.f_frsize, status.f_files) == (1 << 20, 10)
        assert status.f_flag & os.ST_NOSUID
        assert status.f_flag & os.ST_NODEV
    finally:
        os.close(fd)


@pytest.mark.kernel
@pytest.mark.parametrize("recursive", [True, False])
@pytest.mark.parametrize("read_only", [True, False])
def test_a_tree(tmp_path: Path, recursive: bool, read_only: bool) -> None:
    put(tmp_path / "file")
    before = Path("/proc/self/mountinfo").read_text()
    fd = open_tree(tmp_path, recursive=recursive, read_only=read_only)
    try:
        assert os.listdir(f"/proc/self/fd/{fd}") == ["file"]
        assert not os.get_inheritable(fd)
        assert bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY) == read_only
        assert not os.statvfs(tmp_path).f_flag & os.ST_RDONLY
    finally:
        os.close(fd)
    assert Path("/proc/self/mountinfo").read_text() == before


@pytest.mark.kernel
def test_a_recursive_tree_is_read_only_all_through() -> None:
    """In a mount namespace of its own: a tmpfs in a tmpfs, whose tree must be private and read-only in both."""
    program = """
import os, subprocess
from tinyvisor.runtime.syscalls import open_tree
mounts = "mount -t tmpfs a /mnt && mount --make-shared /mnt && mkdir /mnt/in && mount -t tmpfs b /mnt/in"
subprocess.run(mounts, shell=True, check=True)
whole, top = open_tree("/mnt", recursive=True, read_only=True), open_tree("/mnt", recursive=False, read_only=False)
for path in ("x", "in/x"):
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, dir_fd=whole))
    except OSError as error:
        print(error.strerror)
os.close(os.open("/mnt/in/x", os.O_CREAT | os.O_WRONLY))
print(os.listdir(f"/proc/self/fd/{whole}/in"), os.listdir(f"/proc/self/fd/{top}/in"))
subprocess.run("mount -t tmpfs c /mnt/in", shell=True, check=True)
print(os.listdir(f"/proc/self/fd/{whole}/in"))
"""
    command = ["unshare", "--mount", sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["Read-only file system"] * 2 + ["['x'] []", "['x']"]


def test_a_tree_of_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_tree(tmp_path / "missing", recursive=True, read_only=True)
    with pytest.raises(ValueError, match="null"):
        open_tree(f"{tmp_path}\0x", recursive=True, read_only=True)
