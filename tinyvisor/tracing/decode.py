"""A system call's registers and what they point to → text, as strace shows it. Pure: memory is what the caller hands in.

In two halves: what the kernel reads is decoded when the call is entered (another thread may change it, an exec takes it
away), what it writes when it has returned. Nothing here trusts what it reads: a length, a pointer, a string are the
program's to choose, and each has a bound.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Mapping
from typing import Protocol

from tinyvisor.tracing.flags import CHOICES, FLAGS, OPEN, RESTARTS
from tinyvisor.tracing.signatures import SIGNATURES
from tinyvisor.units import signal_name

PATH_MAX = 4096
MAX_ITEMS = 32
"""Words of an argv, elements of an array that are shown."""

AT_FDCWD = -100
_PAGE = 4096
_ERRNO = {number: errno.errorcode[number] for number in errno.errorcode} | {11: "EAGAIN", 35: "EDEADLK", 95: "EOPNOTSUPP"}
_ERRNO |= dict(RESTARTS)
_MAX_ERRNO = 4095


class Memory(Protocol):
    """A process's memory."""

    def read(self, address: int, size: int, /) -> bytes:
        """What is there, up to the first byte that can't be read."""


class Call:
    """A system call between its entry and its return.

    Attributes:
        name, raw: of the call; as many registers as it has arguments.
        paths: those that it names: (the directory's fd, or None, which is the current directory; the path).
        address: of a socket, or ``""``.
        unread: there is a path or an address that could not be read, to its end.
    """

    __slots__ = ("_kinds", "_memory", "_texts", "address", "index", "limit", "name", "paths", "raw", "result", "unread", "x86")

    def __init__(self, name: str, registers: tuple[int, ...], memory: Memory, limit: int, *, x86: bool = True) -> None:
        """Reads what the kernel is about to read.

        Args:
            registers: six, 64 bits each.
            limit: bytes that are shown of data and strings; paths are always whole.
            x86: structures are laid out as there, or else as on arm64.
        """
        kinds = _COMPILED.get(name, _UNKNOWN)
        self.name: str = name
        self.raw: tuple[int, ...] = registers[: len(kinds)]
        self.paths: list[tuple[int | None, bytes]] = []
        self.address: str = ""
        self.unread: bool = False
        self.limit: int = limit
        self.x86: bool = x86
        self.result: int = 0
        self.index: int = 0
        self._memory = memory
        self._kinds = kinds
        self._texts: list[str] = []
        for index, (kind, late) in enumerate(kinds):
            self.index = index
            self._texts.append("" if late else kind(registers[index], self))

    def finish(self, result: int) -> tuple[str, ...]:
        """The arguments as text, after the return; a call that failed has written nothing."""
        self.result = result
        for index, (kind, late) in enumerate(self._kinds):
            if late:
                self.index = index
                value = self.raw[index]
                self._texts[index] = kind(value, self) if result >= 0 else _address(value)
        return self._shown()

    def begun(self) -> tuple[str, ...]:
        """The arguments that are known before the return, up to the first that is not."""
        known = next((index for index, (_, late) in enumerate(self._kinds) if late), len(self._kinds))
        return tuple(text for text in self._texts[:known] if text)

    def unfinished(self) -> tuple[str, ...]:
        """The arguments of a call that never returned."""
        for index, (_, late) in enumerate(self._kinds):
            if late:
                self._texts[index] = _address(self.raw[index])
        return self._shown()

    def _shown(self) -> tuple[str, ...]:
        texts = self._texts
        while texts and not texts[-1]:  # the mode of an open that makes nothing
            texts.pop()
        return tuple(texts)

    # ---- for the kinds ----

    def read(self, address: int, size: int) -> bytes:
        return self._memory.read(address, size)

    def string(self, address: int, limit: int) -> tuple[bytes, bool] | None:
        """The bytes up to a NUL, and whether that was within `limit`; None where nothing can be read."""
        found = bytearray()
        while len(found) < limit:
            at = address + len(found)
            wanted = min(256, limit - len(found), _PAGE - at % _PAGE)  # not over a page that is not there
            data = self._memory.read(at, wanted)
            end = data.find(b"\0")
            if end >= 0:
                return bytes(found + data[:end]), True
            found += data
            if len(data) < wanted:
                break
        return (bytes(found), False) if found else None

    def argument(self, offset: int) -> int:
        """A neighbour of the argument that is being decoded."""
        index = self.index + offset
        return self.raw[index] if 0 <= index < len(self.raw) else 0


def error_name(number: int) -> str:
    """``2`` → ``"ENOENT"``, also those that only a tracer sees."""
    return _ERRNO.get(number, f"ERRNO_{number}")


def split_result(value: int) -> tuple[int, str]:
    """A register's value → what the call returned, and the error's name."""
    signed = _signed(value, 64)
    if -_MAX_ERRNO <= signed < 0:
        return -1, error_name(-signed)
    return signed, ""


# ---- text ----

_ESCAPES = {ord("\n"): "\\n", ord("\t"): "\\t", ord("\r"): "\\r", ord("\v"): "\\v", ord("\f"): "\\f"}
_PRINTED = [chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else "" for byte in range(256)]


def quote(data: bytes) -> str:
    """In double quotes, with what is not printable ASCII escaped as in C: ``"a\\n\\0"``."""
    if data.isascii() and b'"' not in data and b"\\" not in data:
        text = data.decode("ascii")
        if text.isprintable():
            return f'"{text}"'
    shown = []
    for index, byte in enumerate(data):
        if _PRINTED[byte]:
            shown.append(_PRINTED[byte])
        elif byte in b'"\\':
            shown.append("\\" + chr(byte))
        elif byte in _ESCAPES:
            shown.append(_ESCAPES[byte])
        else:
            digit_follows = index + 1 < len(data) and 48 <= data[index + 1] <= 55
            shown.append(f"\\{byte:03o}" if digit_follows else f"\\{byte:o}")
    return f'"{"".join(shown)}"'


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _bits(value: int, names: Mapping[int, str], *, zero: str = "0") -> str:
    if not value:
        return zero
    shown, left = [], value
    for bit, name in names.items():
        if bit and left & bit == bit:
            shown.append(name)
            left &= ~bit
    return "|".join([*shown, *([hex(left)] if left else [])])


def _address(value: int) -> str:
    return hex(value) if value else "NULL"


# ---- numbers ----


def _int(value: int, call: Call) -> str:
    return str(_signed(value, 32))


def _uint(value: int, call: Call) -> str:
    return str(value & 0xFFFFFFFF)


def _long(value: int, call: Call) -> str:
    return str(_signed(value, 64))


def _size(value: int, call: Call) -> str:
    return str(value)


def _offset(value: int, call: Call) -> str:
    return hex(value) if value else "0"


def _octal(value: int, call: Call) -> str:
    return f"0{value & 0xFFFF:o}" if value & 0xFFFF else "000"


def _hex(value: int, call: Call) -> str:
    return hex(value) if value else "0"


def _pointer(value: int, call: Call) -> str:
    return _address(value)


def _dir(value: int, call: Call) -> str:
    number = _signed(value, 32)
    return "AT_FDCWD" if number == AT_FDCWD else str(number)


def _signal(value: int, call: Call) -> str:
    number = _signed(value, 32)
    return signal_name(number) if 0 < number <= 64 else str(number)


def _of(names: Mapping[int, str], bits: int = 32) -> Callable[[int, Call], str]:
    def show(value: int, call: Call) -> str:
        value &= (1 << bits) - 1
        return _bits(value, names)

    return show


def _one_of(names: Mapping[int, str]) -> Callable[[int, Call], str]:
    def show(value: int, call: Call) -> str:
        number = _signed(value, 32)
        return names.get(number) or names.get(value & 0xFFFFFFFF) or (hex(number) if number > 255 else str(number))

    return show


def open_flags(value: int) -> str:
    """``O_RDONLY|O_CLOEXEC``."""
    shown, left = [("O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE")[value & 3]], value & 0xFFFFFFFF & ~3
    for bits, name in ((0o20200000, "O_TMPFILE"), (0o4010000, "O_SYNC")):
        if left & bits == bits:
            shown.append(name)
            left &= ~bits
    return "|".join(shown + ([_bits(left, OPEN)] if left else []))


def _access(value: int, call: Call) -> str:
    return _bits(value & 0xFFFFFFFF, FLAGS["access"], zero="F_OK")


def _open(value: int, call: Call) -> str:
    return open_flags(value)


def _mode(value: int, call: Call) -> str:
    flags = call.argument(-1)
    return _octal(value, call) if flags & 0o100 or flags & 0o20200000 == 0o20200000 else ""


_SHARING = {0: "0", 1: "MAP_SHARED", 2: "MAP_PRIVATE", 3: "MAP_SHARED_VALIDATE"}


def _mmap(value: int, call: Call) -> str:
    others = value & 0xFFFFFFFF & ~3
    return _SHARING[value & 3] + (f"|{_bits(others, FLAGS['mmap'])}" if others else "")


def _clone(value: int, call: Call) -> str:
    signal = value & 0xFF if call.name == "clone" else 0
    flags = value & 0xFFFFFFFF & ~(0xFF if call.name == "clone" else 0)
    return "|".join([*([_bits(flags, FLAGS["clone"])] if flags else []), *([signal_name(signal)] if signal else [])]) or "0"


def _sock_type(value: int, call: Call) -> str:
    kind = CHOICES["sock_type"].get(value & 0xF, str(value & 0xF))
    flags = value & 0xFFFFFFFF & ~0xF
    return f"{kind}|{_bits(flags, FLAGS['sock_flags'])}" if flags else kind


def _sock_option(value: int, call: Call) -> str:
    if _signed(call.argument(-1), 32) == 1:
        return CHOICES["sock_option"].get(value & 0xFFFFFFFF, str(_signed(value, 32)))
    return str(_signed(value, 32))


def _futex(value: int, call: Call) -> str:
    name = CHOICES["futex"].get(value & 0x7F, hex(value & 0x7F))
    return name + ("_PRIVATE" if value & 0x80 else "") + ("|FUTEX_CLOCK_REALTIME" if value & 0x100 else "")


def _fcntl_argument(value: int, call: Call) -> str:
    command = call.argument(-1) & 0xFFFFFFFF
    if command in (1, 3, 9, 11, 1025, 1032, 1034):  # F_GETFD and its like take none
        return ""
    if command == 2:  # F_SETFD
        return "FD_CLOEXEC" if value == 1 else hex(value)
    if command == 4:  # F_SETFL
        return open_flags(value)
    return _long(value, call) if command in (0, 1030, 8, 10, 1024, 1031, 1033) else _address(value)


def _prctl_argument(value: int, call: Call) -> str:
    if call.argument(-1) & 0xFFFFFFFF == 15:  # PR_SET_NAME
        return _text(value, call)
    return _hex(value, call)


# ---- what is pointed to ----


def _path(value: int, call: Call) -> str:
    found = call.string(value, PATH_MAX) if value else None
    call.unread |= bool(value) and (found is None or not found[1])
    if found is None:
        return _address(value)
    at_directory = call.index and call._kinds[call.index - 1][0] is _dir
    directory = _signed(call.argument(-1), 32) if at_directory else AT_FDCWD
    call.paths.append((None if directory == AT_FDCWD else directory, found[0]))
    return quote(found[0]) + ("" if found[1] else "...")


def _text(value: int, call: Call) -> str:
    found = call.string(value, PATH_MAX) if value else None
    if found is None:
        return _address(value)
    return quote(found[0][: call.limit]) + ("" if found[1] and len(found[0]) <= call.limit else "...")


def _option_text(value: int, call: Call) -> str:
    return _text(value, call)


def _shown_data(value: int, size: int, call: Call) -> str:
    data = call.read(value, min(size, call.limit)) if value and size > 0 else b""
    if not data:
        return '""' if value and not size else _address(value)
    return quote(data) + ("..." if size > len(data) else "")


def _data(value: int, call: Call) -> str:
    size = call.argument(1)
    if call.name in _READS:
        size = min(size, call.result)
    return _shown_data(value, size, call)


_READS = frozenset(
    (
        "read", "pread64", "recvfrom", "readlink", "readlinkat", "getrandom", "getxattr", "lgetxattr", "fgetxattr", "listxattr",
        "llistxattr", "flistxattr", "listxattrat", "mq_timedreceive",
    )
)  # fmt: skip
"""Whose data is as long as the result says."""


def _numbers(value: int, call: Call, form: str) -> tuple[int, ...] | None:
    size = struct.calcsize(form)
    data = call.read(value, size) if value else b""
    return struct.unpack(form, data) if len(data) == size else None


def _struct(form: str, shown: str) -> Callable[[int, Call], str]:
    """A kind for a structure; `shown` is a format of its numbers."""

    def show(value: int, call: Call) -> str:
        numbers = _numbers(value, call, form)
        return _address(value) if numbers is None else shown.format(*numbers)

    return show


def _stat(value: int, call: Call) -> str:
    data = call.read(value, 144) if value else b""
    if len(data) < 144:
        return _address(value)
    mode = int.from_bytes(data[24:28], "little") if call.x86 else int.from_bytes(data[16:20], "little")
    return f"{{{_file_mode(mode)}, st_size={int.from_bytes(data[48:56], 'little')}, ...}}"


_FILE_TYPES = {1: "S_IFIFO", 2: "S_IFCHR", 4: "S_IFDIR", 6: "S_IFBLK", 8: "S_IFREG", 10: "S_IFLNK", 12: "S_IFSOCK"}


def _file_mode(mode: int) -> str:
    return f"st_mode={_FILE_TYPES.get(mode >> 12, hex(mode >> 12))}|0{mode & 0o7777:o}"


def _statx(value: int, call: Call) -> str:
    data = call.read(value, 48) if value else b""
    if len(data) < 48:
        return _address(value)
    mode = _file_mode(int.from_bytes(data[28:30], "little")).replace("st_", "stx_")
    return f"{{{mode}, stx_size={int.from_bytes(data[40:48], 'little')}, ...}}"


def _list(value: int, call: Call) -> str:
    """argv: pointers to strings, up to a NULL."""
    if not value:
        return "NULL"
    shown: list[str] = []
    for index in range(MAX_ITEMS + 1):
        data = call.read(value + 8 * index, 8)
        if len(data) < 8:
            return _address(value) if not shown else f"[{', '.join(shown)}, ...]"
        pointer = int.from_bytes(data, "little")
        if not pointer:
            break
        shown.append("..." if index == MAX_ITEMS else _text(pointer, call))
    return f"[{', '.join(shown)}]"


def _environment(value: int, call: Call) -> str:
    """How many there are: what they say is long and often secret."""
    data = call.read(value, 8 * 1024) if value else b""
    count = next((index for index in range(len(data) // 8) if not any(data[8 * index : 8 * index + 8])), None)
    return _address(value) if count is None else f"{hex(value)} /* {count} vars */"


def _sockaddr(value: int, call: Call) -> str:
    size = _signed(call.argument(1), 32)
    if call._kinds[call.index][1]:  # the size is written, too
        found = _numbers(call.argument(1), call, "=i")
        size = found[0] if found else 0
    data = call.read(value, min(size, 128)) if value and size > 0 else b""
    if len(data) < 2:
        call.unread |= bool(value) and size > 0
        return _address(value)
    text, address = show_address(data)
    call.address = address or call.address
    return text


def show_address(data: bytes) -> tuple[str, str]:
    """struct sockaddr → as strace shows it, and as `Syscall.address` has it (``""`` where it is neither inet nor unix)."""
    family = int.from_bytes(data[:2], "little")
    name = CHOICES["family"].get(family, str(family))
    if family == 1:
        raw = data[2:]
        path = b"@" + raw[1:] if raw[:1] == b"\0" and len(raw) > 1 else raw.split(b"\0")[0]
        shown = "@" + quote(raw[1:]) if path[:1] == b"@" else quote(path)
        return (
            f"{{sa_family={name}, sun_path={shown}}}" if raw else f"{{sa_family={name}}}"
        ), f"unix:{os.fsdecode(path)}" * bool(path)
    if family == 2 and len(data) >= 8:
        port, host = int.from_bytes(data[2:4], "big"), ".".join(map(str, data[4:8]))
        return f'{{sa_family={name}, sin_port=htons({port}), sin_addr=inet_addr("{host}")}}', f"{host}:{port}"
    if family == 10 and len(data) >= 24:
        port, host = int.from_bytes(data[2:4], "big"), _ipv6(data[8:24])
        return f'{{sa_family={name}, sin6_port=htons({port}), inet_pton(AF_INET6, "{host}")}}', f"[{host}]:{port}"
    return f"{{sa_family={name}, sa_data={quote(data[2:])}}}", ""


def _ipv6(data: bytes) -> str:
    import ipaddress  # few need it

    return str(ipaddress.IPv6Address(data))


def _iovec(value: int, call: Call) -> str:
    return _vector(value, min(_signed(call.argument(1), 32), MAX_ITEMS), call)


def _vector(value: int, count: int, call: Call) -> str:
    data = call.read(value, 16 * count) if value and count > 0 else b""
    if not data:
        return _address(value)
    left = call.result if call._kinds[call.index][1] else None
    shown = []
    for base, size in struct.iter_unpack("=QQ", data[: len(data) // 16 * 16]):
        here = size if left is None else min(size, left)
        left = None if left is None else left - here
        shown.append(f"{{iov_base={_shown_data(base, here, call)}, iov_len={size}}}")
    return f"[{', '.join(shown)}]"


def _msghdr(value: int, call: Call) -> str:
    numbers = _numbers(value, call, "=QI4xQQQQI4x")
    if numbers is None:
        call.unread |= bool(value)
        return _address(value)
    name, name_size, vector, count, _, control_size, flags = numbers
    address = call.read(name, min(name_size, 128)) if name and name_size else b""
    shown = "NULL"
    call.unread |= bool(name and name_size) and len(address) < 2
    if len(address) >= 2:
        shown, found = show_address(address)
        call.address = found or call.address
    data = _vector(vector, min(count, MAX_ITEMS), call)
    return (
        f"{{msg_name={shown}, msg_namelen={name_size}, msg_iov={data}, msg_iovlen={count}, "
        f"msg_controllen={control_size}, msg_flags={_bits(flags, FLAGS['msg'])}}}"
    )


def _sigset(value: int, call: Call) -> str:
    numbers = _numbers(value, call, "=Q")
    return _address(value) if numbers is None else _signals(numbers[0])


def _signals(mask: int) -> str:
    inverted = mask.bit_count() > 32
    mask = ~mask & (1 << 64) - 1 if inverted else mask
    names = [signal_name(number).removeprefix("SIG") for number in range(1, 65) if mask >> (number - 1) & 1]
    return f"{'~' if inverted else ''}[{' '.join(names)}]"


def _sigaction(value: int, call: Call) -> str:
    numbers = _numbers(value, call, "=QQQQ")
    if numbers is None:
        return _address(value)
    handler = {0: "SIG_DFL", 1: "SIG_IGN"}.get(numbers[0], hex(numbers[0]))
    mask = numbers[3] if call.x86 else numbers[2]
    return f"{{sa_handler={handler}, sa_mask={_signals(mask)}, sa_flags={_bits(numbers[1], FLAGS['sa'])}}}"


def _status(value: int, call: Call) -> str:
    numbers = _numbers(value, call, "=I") if call.result > 0 else None
    if numbers is None:
        return _address(value)
    status = numbers[0]
    if os.WIFEXITED(status):
        return f"[{{WIFEXITED(s) && WEXITSTATUS(s) == {os.WEXITSTATUS(status)}}}]"
    if os.WIFSIGNALED(status):
        return f"[{{WIFSIGNALED(s) && WTERMSIG(s) == {signal_name(os.WTERMSIG(status))}}}]"
    return f"[{hex(status)}]"


def _pollfds(value: int, call: Call) -> str:
    count = min(call.argument(1) & 0xFFFFFFFF, MAX_ITEMS)
    data = call.read(value, 8 * count) if value and count else b""
    if not data:
        return _address(value)
    shown = [
        f"{{fd={fd}, events={_bits(events, FLAGS['poll'])}}}"
        for fd, events, _ in struct.iter_unpack("=ihh", data[: len(data) // 8 * 8])
    ]
    return f"[{', '.join(shown)}]"


def _epoll_form(call: Call) -> str:
    return "=IQ" if call.x86 else "=I4xQ"  # packed there


def _epoll_event(value: int, call: Call) -> str:
    numbers = _numbers(value, call, _epoll_form(call))
    return _address(value) if numbers is None else f"{{events={_bits(numbers[0], FLAGS['epoll'])}, data={hex(numbers[1])}}}"


def _epoll_events(value: int, call: Call) -> str:
    size = struct.calcsize(_epoll_form(call))
    return f"[{', '.join(_epoll_event(value + size * index, call) for index in range(min(call.result, MAX_ITEMS)))}]"


def _option(value: int, call: Call) -> str:
    """A socket's option: most are an int."""
    numbers = _numbers(value, call, "=i")
    return _address(value) if numbers is None else f"[{numbers[0]}]"


def _rlimit(value: int, call: Call) -> str:
    numbers = _numbers(value, call, "=QQ")
    if numbers is None:
        return _address(value)
    soft, hard = ("RLIM64_INFINITY" if number == (1 << 64) - 1 else str(number) for number in numbers)
    return f"{{rlim_cur={soft}, rlim_max={hard}}}"


def _utsname(value: int, call: Call) -> str:
    data = call.read(value, 390) if value else b""
    if len(data) < 390:
        return _address(value)
    names = [data[65 * index : 65 * index + 65].split(b"\0")[0] for index in range(2)]
    return f"{{sysname={quote(names[0])}, nodename={quote(names[1])}, ...}}"


def _clone_args(value: int, call: Call) -> str:
    numbers = _numbers(value, call, "=8Q")
    if numbers is None:
        return _address(value)
    flags, _, _, _, exit_signal, stack, stack_size, _ = numbers
    shown = signal_name(exit_signal) if 0 < exit_signal <= 64 else str(exit_signal)
    return f"{{flags={_bits(flags, FLAGS['clone'])}, exit_signal={shown}, stack={_address(stack)}, stack_size={stack_size}}}"


def _open_how(value: int, call: Call) -> str:
    numbers = _numbers(value, call, "=QQQ")
    if numbers is None:
        return _address(value)
    flags, mode, resolve = numbers
    return f"{{flags={open_flags(flags)}, mode=0{mode:o}, resolve={_bits(resolve, FLAGS['resolve'])}}}"


def _cpuset(value: int, call: Call) -> str:
    size = call.result if call.name == "sched_getaffinity" else call.argument(-1)
    data = call.read(value, min(size, 128)) if value and size > 0 else b""
    mask = int.from_bytes(data, "little")
    return f"[{' '.join(str(cpu) for cpu in range(mask.bit_length()) if mask >> cpu & 1)}]" if data else _address(value)


_RUSAGE = _struct("=qqqq", "{{ru_utime={0}.{1:06}, ru_stime={2}.{3:06}, ...}}")
_TIMESPEC = _struct("=qq", "{{tv_sec={}, tv_nsec={}}}")

_KINDS: Mapping[str, Callable[[int, Call], str]] = {
    **{name: _of(names, 64 if name == "clone" else 32) for name, names in FLAGS.items()},
    **{name: _one_of(names) for name, names in CHOICES.items()},
    "int": _int, "uint": _uint, "long": _long, "size": _size, "offset": _offset, "octal": _octal, "hex": _hex, "fd": _int,
    "addr": _pointer, "dir": _dir, "signal": _signal, "open": _open, "access": _access, "mode": _mode, "mmap": _mmap,
    "clone": _clone,
    "sock_type": _sock_type, "sock_option": _sock_option, "futex": _futex, "fcntl_argument": _fcntl_argument,
    "prctl_argument": _prctl_argument, "path": _path, "text": _text, "option_text": _option_text, "data": _data,
    "data_of_size": _data, "stat": _stat, "statx": _statx, "argv": _list, "envp": _environment, "sockaddr": _sockaddr,
    "iovec": _iovec, "msghdr": _msghdr, "sigset": _sigset, "sigaction": _sigaction, "status": _status, "pollfds": _pollfds,
    "epoll_event": _epoll_event, "epoll_events": _epoll_events, "option": _option, "rlimit": _rlimit, "utsname": _utsname,
    "clone_args": _clone_args, "open_how": _open_how, "cpuset": _cpuset, "timespec": _TIMESPEC,
    "timeval": _struct("=qq", "{{tv_sec={}, tv_usec={}}}"), "rusage": _RUSAGE,
    "fds": _struct("=ii", "[{}, {}]"), "int*": _struct("=i", "[{}]"),
}  # fmt: skip


def _compiled(kinds: tuple[str, ...]) -> tuple[tuple[Callable[[int, Call], str], bool], ...]:
    return tuple((_KINDS[kind.removeprefix(">")], kind.startswith(">")) for kind in kinds)


_COMPILED = {name: _compiled(kinds) for name, kinds in SIGNATURES.items()}
_UNKNOWN = _compiled(("hex",) * 6)
