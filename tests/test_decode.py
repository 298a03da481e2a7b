"""Registers and recorded memory → text."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvisor.runtime.syscall_numbers import NUMBERS
from tinyvisor.tracing.decode import Call, error_name, open_flags, quote, show_address, split_result
from tinyvisor.tracing.flags import CHOICES, FLAGS, OPEN
from tinyvisor.tracing.signatures import SIGNATURES


class Recorded:
    """Memory as it was: address → bytes; what is not there can't be read."""

    def __init__(self, contents: dict[int, bytes]) -> None:
        self.contents = contents

    def read(self, address: int, size: int) -> bytes:
        for start, data in self.contents.items():
            if start <= address < start + len(data):
                return data[address - start :][:size]
        return b""


def shown(
    name: str, *registers: int, result: int = 0, limit: int = 32, x86: bool = True, memory: dict[str, bytes] | None = None
) -> str:
    """`memory`: what ``m1000`` names is at 0x1000."""
    contents = {int(key[1:], 16): data for key, data in (memory or {}).items()}
    six = tuple(value & (1 << 64) - 1 for value in (*registers, *[0] * (6 - len(registers))))
    call = Call(name, six, Recorded(contents), limit, x86=x86)
    return f"{name}({', '.join(call.finish(result))})"


IPV4 = bytes.fromhex("020000507f000001") + bytes(8)
IPV6 = bytes.fromhex("0a0001bb00000000") + bytes(15) + b"\1" + bytes(4)


@pytest.mark.parametrize(
    "expected, call, memory",
    [
        ('openat(AT_FDCWD, "/etc/passwd", O_RDONLY|O_CLOEXEC)', ("openat", -100, 0x1000, 0o2000000),
         {"m1000": b"/etc/passwd\0"}),
        ('openat(5, "a", O_WRONLY|O_CREAT|O_TRUNC, 0644)', ("openat", 5, 0x1000, 0o1101, 0o644), {"m1000": b"a\0"}),
        ("openat(AT_FDCWD, NULL, O_RDWR|O_SYNC)", ("openat", -100, 0, 0o4010002), {}),
        ('open("/tmp", O_RDWR|O_TMPFILE, 0600)', ("open", 0x1000, 0o20200002, 0o600), {"m1000": b"/tmp\0"}),
        ('openat2(AT_FDCWD, "x", {flags=O_RDONLY|O_PATH, mode=00, resolve=RESOLVE_IN_ROOT}, 24)',
         ("openat2", -100, 0x1000, 0x2000, 24), {"m1000": b"x\0", "m2000": struct.pack("=QQQ", 0o10000000, 0, 0x10)}),
        ("mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)", ("mmap", 0, 4096, 3, 0x22, -1, 0), {}),
        ("mmap(0x7000, 1, 0, MAP_SHARED, 3, 0x1000)", ("mmap", 0x7000, 1, 0, 1, 3, 0x1000), {}),
        ("socket(AF_INET6, SOCK_STREAM|SOCK_NONBLOCK|SOCK_CLOEXEC, 0)", ("socket", 10, 0o2004001, 0), {}),
        ('connect(3, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("127.0.0.1")}, 16)',
         ("connect", 3, 0x1000, 16), {"m1000": IPV4}),
        ('bind(3, {sa_family=AF_INET6, sin6_port=htons(443), inet_pton(AF_INET6, "::1")}, 28)',
         ("bind", 3, 0x1000, 28), {"m1000": IPV6}),
        ('bind(3, {sa_family=AF_UNIX, sun_path=@"ab"}, 5)', ("bind", 3, 0x1000, 5), {"m1000": b"\1\0\0ab"}),
        ("bind(3, 0x1000, -1)", ("bind", 3, 0x1000, -1), {}),
        ('execve("/bin/sh", ["sh", "-c"], 0x3000 /* 1 vars */)', ("execve", 0x1000, 0x2000, 0x3000),
         {"m1000": b"/bin/sh\0", "m2000": struct.pack("=QQQ", 0x4000, 0x4003, 0), "m3000": struct.pack("=QQ", 0x4000, 0),
          "m4000": b"sh\0-c\0"}),
        ("execve(0x1, 0x2, 0x3)", ("execve", 1, 2, 3), {}),
        ("clone(CLONE_CHILD_CLEARTID|CLONE_CHILD_SETTID|SIGCHLD, NULL, NULL, 0x9, 0)", ("clone", 0x1200011, 0, 0, 9, 0), {}),
        ("clone3({flags=CLONE_VM|CLONE_VFORK, exit_signal=SIGCHLD, stack=0x5000, stack_size=16}, 88)", ("clone3", 0x1000, 88),
         {"m1000": struct.pack("=11Q", 0x4100, 0, 0, 0, 17, 0x5000, 16, 0, 0, 0, 0)}),
        ("unshare(CLONE_NEWNS|CLONE_NEWUSER)", ("unshare", 0x10020000), {}),
        ("kill(-1, SIGKILL)", ("kill", -1, 9), {}),
        ("rt_sigprocmask(SIG_BLOCK, [HUP CHLD], NULL, 8)", ("rt_sigprocmask", 0, 0x1000, 0, 8),
         {"m1000": struct.pack("=Q", 0x10001)}),
        ("fcntl(3, F_SETFD, FD_CLOEXEC)", ("fcntl", 3, 2, 1), {}),
        ("fcntl(3, F_GETFL)", ("fcntl", 3, 3), {}),
        ("futex(0x10, FUTEX_WAIT_PRIVATE, 2, 0, NULL, 0)", ("futex", 16, 128, 2), {}),
        ("ioctl(0, TCGETS, 0x10)", ("ioctl", 0, 0x5401, 16), {}),
        ("ioctl(0, 0x1234, 0x10)", ("ioctl", 0, 0x1234, 16), {}),
        ('prctl(PR_SET_NAME, "me", 0, 0, 0)', ("prctl", 15, 0x1000), {"m1000": b"me\0"}),
        ("access(0x1, F_OK)", ("access", 1, 0), {}),
        ('write(1, "hi\\n"..., 100)', ("write", 1, 0x1000, 100), {"m1000": b"hi\n"}),
        ('write(1, "", 0)', ("write", 1, 0x1000, 0), {}),
        ("poll([{fd=3, events=POLLIN}], 1, -1)", ("poll", 0x1000, 1, -1), {"m1000": struct.pack("=ihh", 3, 1, 0)}),
        ("landlock_restrict_self(4, 0)", ("landlock_restrict_self", 4, 0), {}),
        ("close_range(3, 4294967295, CLOSE_RANGE_CLOEXEC)", ("close_range", 3, 0xFFFFFFFF, 4), {}),
        ("syscall_999(0x1, 0, 0, 0, 0, 0)", ("syscall_999", 1), {}),
        ("nanosleep({tv_sec=1, tv_nsec=5}, NULL)", ("nanosleep", 0x1000, 0), {"m1000": struct.pack("=qq", 1, 5)}),
        ("prlimit64(0, RLIMIT_NOFILE, {rlim_cur=5, rlim_max=RLIM64_INFINITY}, NULL)", ("prlimit64", 0, 7, 0x1000, 0),
         {"m1000": struct.pack("=QQ", 5, (1 << 64) - 1)}),
    ],
)  # fmt: skip
def test_what_the_kernel_reads(expected: str, call: Any, memory: dict[str, bytes]) -> None:
    assert shown(*call, memory=memory) == expected


@pytest.mark.parametrize(
    "expected, call, result, memory",
    [
        ('read(3, "abc", 100)', ("read", 3, 0x1000, 100), 3, {"m1000": b"abcdef"}),
        ('read(3, "", 100)', ("read", 3, 0x1000, 100), 0, {}),
        ("read(3, 0x1000, 100)", ("read", 3, 0x1000, 100), -1, {"m1000": b"abc"}),
        ("pipe2([3, 4], O_CLOEXEC)", ("pipe2", 0x1000, 0o2000000), 0, {"m1000": struct.pack("=ii", 3, 4)}),
        ('stat("/", {st_mode=S_IFDIR|0755, st_size=7, ...})', ("stat", 0x1000, 0x2000), 0,
         {"m1000": b"/\0", "m2000": bytes(24) + struct.pack("=I", 0o40755) + bytes(20) + struct.pack("=Q", 7) + bytes(88)}),
        ('accept4(3, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("127.0.0.1")}, [16], SOCK_CLOEXEC)',
         ("accept4", 3, 0x1000, 0x2000, 0o2000000), 4, {"m1000": IPV4, "m2000": struct.pack("=i", 16)}),
        ("wait4(-1, [{WIFEXITED(s) && WEXITSTATUS(s) == 3}], WNOHANG, NULL)", ("wait4", -1, 0x1000, 1, 0), 5,
         {"m1000": struct.pack("=I", 0x300)}),
        ("wait4(-1, [{WIFSIGNALED(s) && WTERMSIG(s) == SIGKILL}], 0, NULL)", ("wait4", -1, 0x1000, 0, 0), 5,
         {"m1000": struct.pack("=I", 9)}),
        ('readv(3, [{iov_base="ab", iov_len=2}, {iov_base="c", iov_len=5}], 2)', ("readv", 3, 0x1000, 2), 3,
         {"m1000": struct.pack("=QQQQ", 0x2000, 2, 0x2002, 5), "m2000": b"abcdefg"}),
        ("epoll_wait(3, [{events=EPOLLIN, data=0x7}], 8, -1)", ("epoll_wait", 3, 0x1000, 8, -1), 1,
         {"m1000": struct.pack("=IQ", 1, 7)}),
        ('getcwd("/work", 4096)', ("getcwd", 0x1000, 4096), 6, {"m1000": b"/work\0"}),
        ('readlink("/x", "/y", 9)', ("readlink", 0x1000, 0x2000, 9), 2, {"m1000": b"/x\0", "m2000": b"/y??"}),
    ],
)  # fmt: skip
def test_what_the_kernel_writes(expected: str, call: Any, result: int, memory: dict[str, bytes]) -> None:
    assert shown(*call, result=result, memory=memory) == expected


def test_a_call_that_never_returned_has_written_nothing() -> None:
    call = Call("read", (3, 0x1000, 9, 0, 0, 0), Recorded({0x1000: b"abc"}), 32)
    assert call.unfinished() == ("3", "0x1000", "9")


def test_paths_are_whole_and_data_is_not() -> None:
    long = b"/" + b"x" * 4000
    call = Call("openat", (7, 0x1800, 0, 0, 0, 0), Recorded({0x1800: long + b"\0"}), 8)
    assert call.paths == [(7, long)]
    endless = Call("chdir", (0x1000, 0, 0, 0, 0, 0), Recorded({0x1000: b"x" * 9000}), 8)
    assert endless.paths == [(None, b"x" * 4096)]
    assert endless.finish(0)[0].endswith('x"...')
    assert shown("write", 1, 0x1000, 50, limit=4, memory={"m1000": b"abcdefgh" * 7}) == 'write(1, "abcd"..., 50)'
    assert shown("memfd_create", 0x1000, 1, limit=4, memory={"m1000": b"abcdefgh\0"}) == 'memfd_create("abcd"..., MFD_CLOEXEC)'


def test_a_string_up_to_a_page_that_is_not_there() -> None:
    assert shown("chdir", 0x1FFE, memory={"m1FFE": b"ab"}) == 'chdir("ab"...)'


@pytest.mark.parametrize(
    "data, text",
    [(b"", '""'), (b"a\n\t\r", r'"a\n\t\r"'), (b'"\\', r'"\"\\"'), (b"\0", r'"\0"'), (b"\x001", r'"\0001"'),
     (b"\x1b[2J\xff", r'"\33[2J\377"')],
)  # fmt: skip
def test_quoting(data: bytes, text: str) -> None:
    assert quote(data) == text


@given(st.binary())
def test_nothing_quoted_reaches_a_terminal(data: bytes) -> None:
    text = quote(data)
    assert text.isascii()
    assert text.isprintable()
    assert eval(f"b{text}") == data, "an escape is what it is in C"


def test_results_and_errors() -> None:
    assert split_result((1 << 64) - 2) == (-1, "ENOENT")
    assert split_result((1 << 64) - 11) == (-1, "EAGAIN")
    assert split_result((1 << 64) - 512) == (-1, "ERESTARTSYS")
    assert split_result((1 << 64) - 5000)[1] == ""
    assert split_result(0x7F0000000000) == (0x7F0000000000, "")
    assert (error_name(95), error_name(35), error_name(4000)) == ("EOPNOTSUPP", "EDEADLK", "ERRNO_4000")


def test_addresses() -> None:
    assert show_address(IPV4)[1] == "127.0.0.1:80"
    assert show_address(IPV6)[1] == "[::1]:443"
    assert show_address(b"\1\0/run/x\0junk")[1] == "unix:/run/x"
    assert show_address(b"\1\0\0ab")[1] == "unix:@ab"
    assert show_address(b"\1\0") == ("{sa_family=AF_UNIX}", "")
    assert show_address(b"\x10\0abc") == ('{sa_family=AF_NETLINK, sa_data="abc"}', "")


def test_open_flags() -> None:
    assert open_flags(0) == "O_RDONLY"
    assert open_flags(0o100000000 | 1) == "O_WRONLY|0x1000000"


def test_every_call_with_a_number_has_a_signature() -> None:
    """But for those that no kernel has had for long, or that programs can't make."""
    text = """
    _sysctl create_module get_kernel_syms query_module nfsservctl getpmsg putpmsg afs_syscall tuxcall security set_thread_area
    get_thread_area lookup_dcookie epoll_ctl_old epoll_wait_old vserver uretprobe uprobe
    """
    gone = set(text.split())
    for machine, numbers in NUMBERS.items():
        assert numbers.keys() - SIGNATURES.keys() <= gone, machine
    assert all(len(kinds) <= 6 for kinds in SIGNATURES.values())
    assert SIGNATURES.keys() <= NUMBERS["x86_64"].keys()


def test_names_of_constants() -> None:
    """Of those that the standard library knows, too."""
    import os
    import select
    import signal
    import socket

    known = {**vars(os), **vars(socket), **vars(select), **vars(signal)}
    for table in (OPEN, *FLAGS.values(), *CHOICES.values()):
        for number, name in table.items():
            if name in known and name not in ("O_LARGEFILE", "P_ALL"):
                assert number == int(known[name]), name


@given(st.sampled_from(sorted(SIGNATURES)), st.integers(0, 2**32), st.binary(max_size=200), st.integers(-1, 5000))
def test_no_registers_and_no_memory_confuse_it(name: str, seed: int, data: bytes, result: int) -> None:
    """Root inside chooses all of them."""
    rng = random.Random(seed)
    choices = (0, 1, 0x1000, 0x1008, 0xFFF, 2**64 - 1, 2**63, 2**32 - 1, rng.getrandbits(64), rng.getrandbits(16))
    registers = tuple(rng.choice(choices) for _ in range(6))
    for x86 in (True, False):
        call = Call(name, registers, Recorded({0x1000: data}), 32, x86=x86)
        texts = call.finish(result)
        assert all(text.isprintable() for text in texts)
        assert sum(map(len, texts)) < 60_000
        assert all(text.isprintable() for text in call.unfinished())
