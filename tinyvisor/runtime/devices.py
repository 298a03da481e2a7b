"""Which devices can be opened, by a BPF program on a cgroup: a second wall behind mounts that honour none.

It is attached once, to the project's cgroup of the v2 hierarchy, and holds for all containers below. The hierarchy may be one
without controllers, as on hosts that have these on v1. Where there is none, the project's cgroup of v1's controller has the same
list. Making device nodes is left to capabilities: a node that can't be opened is harmless.
Sources: bpf(2); kernel Documentation/admin-guide/cgroup-v2.rst "Device controller", cgroup-v1/devices.rst; uapi/linux/bpf.h
(struct bpf_cgroup_dev_ctx, BPF_CGROUP_DEVICE, since 4.15); OCI runtime-spec config-linux.md "Default Devices".
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_NR_BPF: Final = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD, _PROG_ATTACH, _PROG_QUERY = 5, 8, 16
_TYPE_CGROUP_DEVICE, _ATTACH_DEVICE = 15, 6
_CHARACTER, _MAKE_NODE = 2, 1
_LAST_MINOR: Final = 2**20 - 1
ALLOWED: Final = (
    (1, 3, 3), (1, 5, 5), (1, 7, 9),  # null, zero, full, random, urandom
    (5, 0, 0), (5, 2, 2), (136, 0, _LAST_MINOR),  # tty, ptmx, pts
)  # fmt: skip
"""(major, first minor, last minor) of character devices."""

_LOAD, _MOVE, _AND, _SHIFT, _SET, _EXIT = 0x61, 0xBF, 0x57, 0x77, 0xB7, 0x95
_IF_EQUAL, _IF_NOT_EQUAL, _IF_LESS, _IF_GREATER = 0x15, 0x55, 0xA5, 0x25
_RESULT, _CONTEXT, _TYPE, _ACCESS, _MAJOR, _MINOR = range(6)  # registers


EVERYTHING: Final = "a *:* rwm"
"""The whole of v1's list where nothing is refused."""


def controller_rules() -> Iterator[tuple[str, str]]:
    """(file, line) to write to v1's controller, one after another."""
    yield "devices.deny", "a"
    yield from (("devices.allow", f"{kind} *:* m") for kind in "bc")
    for major, first, last in ALLOWED:
        minors = ["*"] if last == _LAST_MINOR else range(first, last + 1)
        yield from (("devices.allow", f"c {major}:{minor} rw") for minor in minors)


def program() -> bytes:
    """Instructions of eight bytes. Result: 1 allows."""
    return b"".join(_instructions())


def _instructions() -> Iterator[bytes]:
    for register, offset in ((_TYPE, 0), (_MAJOR, 4), (_MINOR, 8)):
        yield _instruction(_LOAD, register, _CONTEXT, offset)
    yield _instruction(_MOVE, _ACCESS, _TYPE)
    yield _instruction(_AND, _TYPE, value=0xFFFF)
    yield _instruction(_SHIFT, _ACCESS, value=16)
    yield _instruction(_SET, _RESULT, value=1)
    yield _instruction(_IF_NOT_EQUAL, _ACCESS, skip=1, value=_MAKE_NODE)
    yield _instruction(_EXIT)
    yield _instruction(_IF_NOT_EQUAL, _TYPE, skip=4 * len(ALLOWED), value=_CHARACTER)
    for major, first, last in ALLOWED:
        yield _instruction(_IF_NOT_EQUAL, _MAJOR, skip=3, value=major)
        yield _instruction(_IF_LESS, _MINOR, skip=2, value=first)
        yield _instruction(_IF_GREATER, _MINOR, skip=1, value=last)
        yield _instruction(_EXIT)
    yield _instruction(_SET, _RESULT, value=0)
    yield _instruction(_EXIT)


def _instruction(code: int, to: int = 0, source: int = 0, skip: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | to, skip, value)


def wall_off(cgroup: str, version: int = 2) -> None:
    """Puts the wall around a cgroup of ours, which takes it along when it is removed. One that is there already, of a supervisor
    whose containers we take over, is enough: of many programs each would be asked, and there is room for 64.

    Raises:
        OSError: the kernel's answer: EPERM without CAP_BPF or behind a seccomp filter, EINVAL without CONFIG_CGROUP_BPF.
    """
    if version == 1:
        if EVERYTHING in Path(cgroup, "devices.list").read_text().splitlines():
            for file, line in controller_rules():
                Path(cgroup, file).write_text(line)
        return
    program_fd = _load()
    try:
        directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not _attached(directory):
                _bpf(_PROG_ATTACH, struct.pack("=IIII", directory, program_fd, _ATTACH_DEVICE, 2))  # BPF_F_ALLOW_MULTI
        finally:
            os.close(directory)
    finally:
        os.close(program_fd)


def _attached(directory: int) -> int:
    """How many programs are attached to this very cgroup; 0 where the kernel does not say."""
    query = struct.Struct("=IIIIQI4x")
    try:
        buffer = _bpf_buffer(_PROG_QUERY, query.pack(directory, _ATTACH_DEVICE, 0, 0, 0, 0))
    except OSError as error:
        if error.errno == errno.ENOSPC:  # there are some, and we have given it no room for their ids
            return 1
        return 0
    return int(query.unpack(buffer)[5])


def problem() -> str | None:
    """Why there can be no such program; None where there can."""
    try:
        os.close(_load())
    except OSError as error:
        return f"bpf(2): {error.strerror}"
    return None


def _load() -> int:
    code = program()
    instructions, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"MIT")
    return _bpf(
        _PROG_LOAD,
        struct.pack(
            "=IIQQIIQII16s", _TYPE_CGROUP_DEVICE, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(licence),
            0, 0, 0, 0, 0, b"tinyvisor_devs",
        ),
    )  # fmt: skip


def _bpf(command: int, attributes: bytes) -> int:
    return _call(command, ctypes.create_string_buffer(attributes, len(attributes)))


def _bpf_buffer(command: int, attributes: bytes) -> bytes:
    """The attributes as the kernel has filled them in."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    _call(command, buffer)
    return buffer.raw


def _call(command: int, buffer: ctypes.Array[ctypes.c_char]) -> int:
    number = _NR_BPF.get(os.uname().machine)
    if number is None:
        raise OSError(38, f"no bpf(2) for {os.uname().machine}")
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(ctypes.c_long(number), ctypes.c_int(command), buffer, ctypes.c_uint(len(buffer)))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "bpf")
    return result
