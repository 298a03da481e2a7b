"""``user`` and ``group_add`` against passwd and group files that may be hostile, and reading those from a hostile root."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvisor.errors import SpecError
from tinyvisor.runtime.identity import MAX_GROUPS, MAX_ID, Identity, read_in_root, resolve

PASSWD = b"""\
root:x:0:0:root:/root:/bin/sh
# a comment
nonsense
web:x:33:33:www:/var/www:/usr/sbin/nologin
web:x:34:34:second:/elsewhere:/bin/sh
1000:x:77:77:a name of digits:/digits:/bin/sh
short:x:5:6
bad:x:12a:5::/:
huge:x:99999999999999999999999:5::/:
minus:x:-1:-1::/:
nobody:x:4294967295:4294967295::/:
relative:x:50:51::home/relative:
ada:x:1815:100::/home/ada
"""
GROUP = b"""\
root:x:0:
wheel:x:10:root,ada
users:x:100:ada
web:x:33:
video:x:44:web,ada,adalbert
bad:x:zz:ada
audio:x:29
"""


@pytest.mark.parametrize(
    "user, expected",
    [
        (None, Identity(0, 0, (0, 10), "/root")),
        ("root", Identity(0, 0, (0, 10), "/root")),
        ("0", Identity(0, 0, (0, 10), "/root")),
        ("web", Identity(33, 33, (33, 44), "/var/www")),
        ("33", Identity(33, 33, (33, 44), "/var/www")),
        ("ada", Identity(1815, 100, (100, 10, 44), "/home/ada")),
        ("ada:web", Identity(1815, 33, (33,), "/home/ada")),
        ("ada:44", Identity(1815, 44, (44,), "/home/ada")),
        ("ada:4000", Identity(1815, 4000, (4000,), "/home/ada")),
        ("5000", Identity(5000, 0, (0,), "/")),
        ("5000:web", Identity(5000, 33, (33,), "/")),
        ("1000", Identity(1000, 0, (0,), "/")),  # a number is a number, whoever is called so
        (str(MAX_ID), Identity(MAX_ID, 0, (0,), "/")),
        ("relative", Identity(50, 51, (51,), "/")),
        (":web", Identity(0, 33, (33,), "/root")),
    ],
)
def test_users(user: str | None, expected: Identity) -> None:
    assert resolve(user, (), PASSWD, GROUP) == expected


def test_more_groups_by_name_and_number_without_doubles() -> None:
    assert resolve("web", ("audio", "44", "4000", "33"), PASSWD, GROUP).groups == (33, 44, 29, 4000)
    assert resolve("ada:web", ("audio",), PASSWD, GROUP).groups == (33, 29)


def test_an_image_without_files() -> None:
    assert resolve(None, (), b"", b"") == Identity(0, 0, (0,), "/")
    assert resolve("7:8", ("9",), b"", b"") == Identity(7, 8, (8, 9), "/")


@pytest.mark.parametrize("user", ["eve", "short", "bad", "huge", "minus", "nobody", "ada:nogroup", "ada:bad", "nonsense", "#"])
def test_a_name_that_is_not_there(user: str) -> None:
    with pytest.raises(SpecError, match="is not in the container's /etc/") as caught:
        resolve(user, (), PASSWD, GROUP)
    assert caught.value.field == "user"


@pytest.mark.parametrize("user", [str(MAX_ID + 1), str(2**32), "9" * 5000, f"0:{2**32 - 1}"])
def test_ids_out_of_range(user: str) -> None:
    with pytest.raises(SpecError, match="is not an id; expected 0 to 4294967294"):
        resolve(user, (), PASSWD, GROUP)


def test_an_unknown_group_to_add() -> None:
    with pytest.raises(SpecError, match="group_add"):
        resolve("web", ("nogroup",), PASSWD, GROUP)


def test_digits_of_other_scripts_are_no_number() -> None:
    with pytest.raises(SpecError, match="is not in"):
        resolve("٣٣", (), PASSWD, GROUP)


def test_more_groups_than_the_kernel_takes() -> None:
    group = b"".join(b"g%d:x:%d:ada\n" % (n, n) for n in range(MAX_GROUPS + 1))
    with pytest.raises(SpecError, match="65536"):
        resolve("ada", (), PASSWD, group)


@given(st.binary(), st.binary(), st.sampled_from([None, "a", "7", "a:b", "7:7"]))
def test_hostile_files_give_an_identity_in_range_or_a_spec_error(passwd: bytes, group: bytes, user: str | None) -> None:
    try:
        identity = resolve(user, ("8",), passwd + b"\na:x:" + passwd, group + b"\nb:x:" + group)
    except SpecError:
        return
    assert all(0 <= number <= MAX_ID for number in (identity.uid, identity.gid, *identity.groups))
    assert identity.home.startswith("/")
    assert "\0" not in identity.home


# ---- reading in a root ----


@contextmanager
def raises(number: int) -> Iterator[None]:
    with pytest.raises(OSError, match=re.escape(os.strerror(number)) if number not in MESSAGES else MESSAGES[number]) as caught:
        yield
    assert caught.value.errno == number


MESSAGES = {errno.EINVAL: "not a regular file", errno.EFBIG: "larger than"}


@pytest.fixture
def root(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    path = tmp_path / "root"
    (path / "etc").mkdir(parents=True)
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
    yield path, fd
    os.close(fd)


def test_a_file_in_the_root(root: tuple[Path, int]) -> None:
    path, fd = root
    (path / "etc/passwd").write_bytes(PASSWD)
    assert read_in_root(fd, "etc/passwd") == read_in_root(fd, "/etc/passwd") == PASSWD


@pytest.mark.parametrize("target", ["/secret", "../../../../secret", "../../secret"])
def test_links_stay_in_the_root(root: tuple[Path, int], target: str) -> None:
    path, fd = root
    (path.parent / "secret").write_text("outside")
    (path / "secret").write_text("inside")
    (path / "etc/passwd").symlink_to(target)
    assert read_in_root(fd, "etc/passwd") == b"inside"


def test_an_absolute_link_to_a_file_of_the_host(root: tuple[Path, int]) -> None:
    path, fd = root
    (path / "etc/passwd").symlink_to("/etc/passwd")
    with raises(errno.ELOOP):
        read_in_root(fd, "etc/passwd")  # it is a link to itself, in there


def test_magic_links_are_not_followed(root: tuple[Path, int]) -> None:
    process = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)
    try:
        with raises(errno.ELOOP):
            read_in_root(process, "root/etc/passwd")
    finally:
        os.close(process)


def test_what_is_no_file_is_refused_without_being_opened(root: tuple[Path, int]) -> None:
    path, fd = root
    os.mkfifo(path / "etc/passwd")
    (path / "etc/group").mkdir()
    for name in ("etc/passwd", "etc/group"):
        with raises(errno.EINVAL):
            read_in_root(fd, name)


def test_missing(root: tuple[Path, int]) -> None:
    with pytest.raises(FileNotFoundError):
        read_in_root(root[1], "etc/passwd")


def test_files_are_read_up_to_the_limit(root: tuple[Path, int]) -> None:
    path, fd = root
    with (path / "etc/passwd").open("wb") as file:
        file.truncate(100)
    assert len(read_in_root(fd, "etc/passwd", limit=100)) == 100
    os.truncate(path / "etc/passwd", 1 << 40)
    with raises(errno.EFBIG):
        read_in_root(fd, "etc/passwd")


def test_no_fd_is_left_open(root: tuple[Path, int]) -> None:
    path, fd = root
    (path / "etc/passwd").write_bytes(PASSWD)
    before = len(os.listdir("/proc/self/fd"))
    read_in_root(fd, "etc/passwd")
    for name, number in (("etc", errno.EINVAL), ("nothing", errno.ENOENT)):
        with raises(number):
            read_in_root(fd, name)
    with raises(errno.EFBIG):
        read_in_root(fd, "etc/passwd", limit=1)
    assert len(os.listdir("/proc/self/fd")) == before
