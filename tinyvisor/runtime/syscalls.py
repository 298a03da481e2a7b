"""System calls that the standard library lacks, as thin functions that raise OSError.

Numbers from 424 on are the same on every architecture (include/uapi/asm-generic/unistd.h), so none is asked for here.
Sources: open_tree(2), mount_setattr(2), openat2(2), move_mount(2); uapi/linux/{mount,openat2}.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from functools import cache
from typing import Any, Final

NR_OPEN_TREE: Final = 428
NR_MOVE_MOUNT: Final = 429
NR_FSOPEN: Final = 430
NR_FSCONFIG: Final = 431
NR_FSMOUNT: Final = 432
NR_PIDFD_OPEN: Final = 434
NR_CLONE3: Final = 435
NR_CLOSE_RANGE: Final = 436
NR_OPENAT2: Final = 437
NR_MOUNT_SETATTR: Final = 442
NR_LANDLOCK_CREATE_RULESET: Final = 444

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000

OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC

MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40

FSOPEN_CLOEXEC: Final = 1
FSMOUNT_CLOEXEC: Final = 1
FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_CMD_CREATE: Final = 6

MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
MOUNT_ATTR_IDMAP: Final = 0x100000
MS_PRIVATE: Final = 1 << 18

_STATX_BTIME: Final = 0x800

FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

_RETRIES = 128

_libc = ctypes.CDLL(None, use_errno=True)


def _prepare(*argtypes: type[ctypes._SimpleCData[Any]]) -> ctypes._NamedFuncPointer:
    # Item access makes a function object of its own each time, so each call gets its own fixed argument types: one shared
    # object without them would pass Python ints as 32-bit C ints.
    function = _libc["syscall"]
    function.argtypes = (ctypes.c_long, *argtypes)
    function.restype = ctypes.c_long
    return function


_open_tree = _prepare(ctypes.c_long, ctypes.c_char_p, ctypes.c_ulong)
_move_mount = _prepare(ctypes.c_long, ctypes.c_char_p, ctypes.c_long, ctypes.c_char_p, ctypes.c_ulong)
_fsopen = _prepare(ctypes.c_char_p, ctypes.c_ulong)
_fsconfig = _prepare(ctypes.c_long, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_long)
_fsmount = _prepare(ctypes.c_long, ctypes.c_ulong, ctypes.c_ulong)
_openat2 = _prepare(ctypes.c_long, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
_mount_setattr = _prepare(ctypes.c_long, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_size_t)
_fallocate = _libc["fallocate"]
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)


def _failed(path: bytes | None = None) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), *([os.fsdecode(path)] if path else []))


def sys_open_tree(dir_fd: int, path: bytes, flags: int) -> int:
    """open_tree(2), Linux 5.2."""
    _no_nul(path)
    fd: int = _open_tree(NR_OPEN_TREE, dir_fd, path, flags)
    if fd < 0:
        raise _failed(path)
    return fd


def move_mount(from_fd: int, from_path: bytes, to_fd: int, to_path: bytes, flags: int) -> None:
    """move_mount(2), Linux 5.2."""
    _no_nul(from_path)
    _no_nul(to_path)
    if _move_mount(NR_MOVE_MOUNT, from_fd, from_path, to_fd, to_path, flags) < 0:
        raise _failed(to_path)


def mount_setattr(dir_fd: int, path: bytes, flags: int, *, attr_set: int = 0, attr_clr: int = 0, propagation: int = 0) -> None:
    """mount_setattr(2), Linux 5.12."""
    _no_nul(path)
    attributes = _mount_attr(attr_set, attr_clr, propagation)
    if _mount_setattr(NR_MOUNT_SETATTR, dir_fd, path, flags, attributes, len(attributes)) < 0:
        raise _failed(path)


def openat2(dir_fd: int, path: bytes, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2), Linux 5.6; always O_CLOEXEC.

    Raises:
        OSError: the kernel's answer. EAGAIN (a rename raced with a ``..`` in a scoped look-up) is tried again first, a
            bounded number of times: somebody who renames all day long gets an error, not a hang.
    """
    _no_nul(path)
    how = _open_how(flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(_RETRIES):
        fd: int = _openat2(NR_OPENAT2, dir_fd, path, how, len(how))
        if fd >= 0:
            return fd
        if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            break
    raise _failed(path)


def open_tree(path: str | os.PathLike[str], *, recursive: bool, read_only: bool) -> int:
    """A detached copy of the mount at `path`, private, as a close-on-exec fd to hand to the launcher.

    The caller must be in the mount namespace that holds `path` (EINVAL otherwise). Symbolic links in `path` are followed.

    Args:
        recursive: with everything mounted below it.
        read_only: the whole copy, submounts included (a bind remount would leave those writable).

    Raises:
        OSError: the kernel's answer; no fd is left open.
    """
    encoded = os.fsencode(path)
    fd = sys_open_tree(AT_FDCWD, encoded, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else 0))
    try:
        # A copy of a shared mount is its peer: without MS_PRIVATE, mounts made in the container would appear on the host.
        attributes = MOUNT_ATTR_RDONLY if read_only else 0
        mount_setattr(fd, b"", AT_EMPTY_PATH | AT_RECURSIVE, attr_set=attributes, propagation=MS_PRIVATE)
    except BaseException:
        os.close(fd)
        raise
    return fd


def new_tmpfs(*, size: int, inodes: int, mode: int = 0o755, noswap: bool = False) -> int:
    """A new tmpfs that is mounted nowhere, nosuid and nodev, as a close-on-exec fd; it goes with its last user.

    Args:
        size: bytes.
        inodes: files and directories at most.
        mode: of its root directory.
        noswap: its pages are never swapped out; Linux 6.4, EINVAL before and in a user namespace.

    Raises:
        OSError: the kernel's answer; no fd is left open.
    """
    context: int = _fsopen(NR_FSOPEN, b"tmpfs", FSOPEN_CLOEXEC)
    if context < 0:
        raise _failed(b"tmpfs")
    try:
        options = ((b"size", b"%d" % size), (b"nr_inodes", b"%d" % inodes), (b"mode", b"%o" % mode))
        for key, value in options:
            if _fsconfig(NR_FSCONFIG, context, FSCONFIG_SET_STRING, key, value, 0) < 0:
                raise _failed(b"tmpfs")
        if noswap and _fsconfig(NR_FSCONFIG, context, FSCONFIG_SET_FLAG, b"noswap", None, 0) < 0:
            raise _failed(b"tmpfs")
        if _fsconfig(NR_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0) < 0:
            raise _failed(b"tmpfs")
        fd: int = _fsmount(NR_FSMOUNT, context, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
        if fd < 0:
            raise _failed(b"tmpfs")
        return fd
    finally:
        os.close(context)


def unshare(flags: int) -> None:
    """unshare(2), Linux 2.6.16; `os.unshare` is Python 3.12's."""
    if _libc.unshare(ctypes.c_int(flags)) < 0:
        raise _failed()


def setns(fd: int, kind: int) -> None:
    """setns(2), Linux 3.0; `os.setns` is Python 3.12's."""
    if _libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)) < 0:
        raise _failed()


def birth_time(fd: int) -> int:
    """When a file was made, in nanoseconds since the epoch; 0 where its file system, or the libc, does not tell. statx(2)."""
    found = ctypes.create_string_buffer(256)
    statx = getattr(_libc, "statx", None)
    if statx is None or statx(fd, b"", AT_EMPTY_PATH, _STATX_BTIME, found) < 0:
        return 0
    (known,) = struct.unpack_from("=I", found)
    seconds, nanoseconds = struct.unpack_from("=qI", found, 80)
    return int(seconds * 1_000_000_000 + nanoseconds) if known & _STATX_BTIME else 0


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Gives the memory or disk of these bytes back; they read as zeros. fallocate(2), Linux 2.6.38."""
    if _fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, length) < 0:
        raise _failed()


def idmap(tree: int, userns: int, *, recursive: bool) -> None:
    """Has the owners in a detached tree that is not idmapped yet be seen through the map of a user namespace.

    Raises:
        OSError: the kernel's answer; EINVAL: a file system in it does not know how.
    """
    attributes = struct.pack("=QQQQ", MOUNT_ATTR_IDMAP, 0, 0, userns)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    if _mount_setattr(NR_MOUNT_SETATTR, tree, b"", flags, attributes, len(attributes)) < 0:
        raise _failed()


def supported(number: int) -> bool:
    """Whether the call can be used: asked with arguments that can't succeed, so that nothing happens.

    EPERM can't come from these arguments: it is a seccomp filter around us, such as an older Docker's.
    """
    probe = _prepare(ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long)
    return bool(probe(number, -1, 0, 0, 0, 0) >= 0) or ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM)


def landlock_abi() -> int:
    """The version of Landlock's ABI; 0 where it is not there: not built in, not among the modules of the boot (EOPNOTSUPP), or
    behind a seccomp filter around us."""
    probe = _prepare(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_ulong)
    return max(0, int(probe(NR_LANDLOCK_CREATE_RULESET, None, 0, 1)))  # LANDLOCK_CREATE_RULESET_VERSION


def _no_nul(path: bytes) -> None:
    if b"\0" in path:  # the kernel would silently use what stands before it
        raise ValueError("embedded null byte")


@cache
def _mount_attr(attr_set: int, attr_clr: int, propagation: int) -> bytes:
    return struct.pack("=QQQQ", attr_set, attr_clr, propagation, 0)


@cache
def _open_how(flags: int, mode: int, resolve: int) -> bytes:
    return struct.pack("=QQQ", flags, mode, resolve)
