"""The launcher by its wire: hostile requests, what ends what, what a workload and its PID 1 are like.

No engine and no event loop here; tests/launcher_harness.py speaks the protocol itself.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import re
import signal
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from tests import launcher_harness as harness
from tests.launcher_harness import (
    ALL_SIGNALS,
    UNCATCHABLE,
    Launcher,
    Running,
    Supervisor,
    fds_of,
    has_ended,
    header,
    init_step,
    raw_step,
    read_until,
    root_steps,
    status_of,
    wait_for_end,
    workload_steps,
)
from tinyvisor.runtime import launcher as wire
from tinyvisor.runtime import steps as s
from tinyvisor.runtime.launcher import Gone
from tinyvisor.runtime.steps import KEPT, NAMESPACE_FLAGS, NODEV, NOEXEC, NOSUID
from tinyvisor.runtime.syscalls import landlock_abi

pytestmark = [pytest.mark.kernel, pytest.mark.hostroot]

probe = harness.probe
sanitized = harness.sanitized

HEADER = wire._REQUEST.size
ORPHANS = 100_000
PSS_LIMIT = 64  # KiB
DROP_ALL = (s.BoundingSet(0), s.SetIdentity(0, 0, ()), s.Capabilities(0, 0, ()))


@pytest.fixture
def launcher(probe: Path) -> Iterator[Launcher]:
    with Launcher(programs=probe.parent) as launcher:
        yield launcher


@pytest.fixture(params=["installed", "sanitized"])
def either(request: pytest.FixtureRequest, probe: Path) -> Iterator[Launcher]:
    """The installed launcher, and the one with sanitizers; their last word is checked at the end."""
    path = request.getfixturevalue("sanitized") if request.param == "sanitized" else None
    with Launcher(path, probe.parent) as launcher:
        yield launcher


def exit_code(gone: Gone) -> int:
    assert gone.error == 0, (gone, os.strerror(gone.error))
    assert gone.exited
    return os.waitstatus_to_exitcode(gone.status)


def listening(launcher: Launcher, *more: str, how: s.Step | None = None, **environment: str) -> Running:
    """A container that says which signals come, until SIGTERM."""
    container = launcher.launch("/probe/probe", "listen", "ready", *more, how=how, environment=tuple(environment.items()))
    read_until(container.wait_started().output, b"ready\n")
    return container


# ---- hostile requests ----


def padded(message: bytes) -> bytes:
    """With a length in the header that fits."""
    return message[:8] + len(message).to_bytes(4, "little") + message[12:]


PIVOT, LINK = raw_step(s.PivotRoot.op), raw_step(s.Link.op, (), (b"a", b"b"))
BAD_MESSAGES: dict[str, tuple[bytes, int]] = {
    "empty": (b"", errno.EBADMSG),
    "one byte": (b"x", errno.EBADMSG),
    "garbage": (bytes(range(256)) * 4, errno.EBADMSG),
    "half a header": (header()[:20], errno.EBADMSG),
    "truncated": (padded(header(type=wire.PREPARE, counts=(1, 0, 0, 0)) + LINK[:-3]), errno.EBADMSG),
    "largest garbage": (os.urandom(1) + b"\xff" * (65536 - 1), errno.EBADMSG),
    "over 64 KiB": (padded(header(type=wire.PREPARE) + bytes(65536 - HEADER + 1)), errno.EMSGSIZE),
    "far over 64 KiB": (padded(header(type=wire.PREPARE) + bytes(150_000)), errno.EMSGSIZE),
    "unknown step": (padded(header(type=wire.PREPARE, counts=(1, 0, 0, 0)) + raw_step(63)), errno.ENOSYS),
    "launch without fds": (header(), errno.EBADF),
    "claims fds": (header(fds=4), errno.EBADF),
    "steps past the end": (header(type=wire.PREPARE, counts=(1, 0, 0, 0)), errno.EBADMSG),
    "too many steps": (padded(header(type=wire.PREPARE, counts=(2000, 0, 0, 0)) + raw_step(6) * 2000), errno.E2BIG),
    "body in a memfd that did not come": (header(type=wire.PREPARE, flags=wire.BODY_IN_MEMFD), errno.EBADF),
    "body in a memfd and here": (padded(header(type=wire.PREPARE, flags=wire.BODY_IN_MEMFD) + PIVOT), errno.EBADMSG),
    "wrong version": (header(type=wire.PREPARE, version=wire.VERSION + 1), errno.EPROTONOSUPPORT),
}  # fmt: skip


def refusal(launcher: Launcher) -> int:
    """The errno of the refusal that comes next."""
    event = launcher.receive()
    assert event.type == wire.REFUSED
    return event.a


def test_bad_messages_are_refused_and_the_launcher_lives_on(either: Launcher) -> None:
    either.settle()
    before = fds_of(either.process.pid)
    for name, (message, error) in BAD_MESSAGES.items():
        either.send(message)
        assert refusal(either) == error, name
        assert either.run("/probe/probe", "fds") == b"0\n1\n2\n", name
    either.settle()
    assert fds_of(either.process.pid) == before


@contextlib.contextmanager
def devnulls(count: int) -> Iterator[list[int]]:
    fds = [os.open(os.devnull, os.O_RDWR) for _ in range(count)]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def send_with_fds(launcher: Launcher, message: bytes, fds: Sequence[int]) -> None:
    launcher.control.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


@pytest.mark.parametrize("count, error", [(1, errno.EBADF), (64, errno.EBADF), (65, errno.EMSGSIZE), (253, errno.EMSGSIZE)])
def test_fds_that_nobody_asked_for_are_closed(either: Launcher, count: int, error: int) -> None:
    either.settle()
    before = fds_of(either.process.pid)
    with devnulls(count) as fds:
        for _ in range(3):
            send_with_fds(either, header(type=wire.PREPARE), fds)
            assert refusal(either) == error
            send_with_fds(either, b"garbage", fds)
            assert refusal(either) in (errno.EBADMSG, errno.EMSGSIZE)
    either.settle()
    assert fds_of(either.process.pid) == before


def test_as_many_fds_as_there_may_be(either: Launcher) -> None:
    either.settle()
    before = fds_of(either.process.pid)
    with devnulls(wire.MAX_FDS) as fds:
        send_with_fds(either, header(type=wire.PREPARE, fds=wire.MAX_FDS), fds)
        assert either.wait_for(wire.PREPARED, 7).a == 0
    either.settle()
    assert fds_of(either.process.pid) == before


def test_only_so_many_fds_are_kept(either: Launcher) -> None:
    with devnulls(20) as fds:
        assert either.prepare(fds=fds, flags=wire.KEEP_FDS).a == 0
        before = fds_of(either.process.pid)
        either.request(wire.encode_request(wire.PREPARE, 7, (), fds=20, flags=wire.KEEP_FDS), fds)
        assert refusal(either) == errno.E2BIG
        either.settle()
        assert fds_of(either.process.pid) == before
        assert either.prepare(fds=fds[:12], flags=wire.KEEP_FDS).a == 0
        assert len(fds_of(either.process.pid)) == len(before) + 12


def memfd(content: bytes) -> int:
    fd = os.memfd_create("body", os.MFD_CLOEXEC)
    os.write(fd, content)
    return fd


BODY = raw_step(s.Directory.op, (0o755, 0, 0), (b"/t/made",))


@contextlib.contextmanager
def other_bodies(directory: Path) -> Iterator[dict[str, tuple[int, int]]]:
    """What is sent for a body, and the length that the header claims."""
    length = HEADER + len(BODY)
    directory.mkdir()
    pipe, sockets = os.pipe(), socket.socketpair()
    hostname = os.stat("/etc/hostname").st_size
    bodies = {
        "shorter than it says": (memfd(BODY[:-1]), length),
        "longer than it says": (memfd(BODY + b"x"), length),
        "empty": (memfd(b""), length),
        "says nothing": (memfd(BODY), 0),
        "says less than a header": (memfd(BODY), HEADER - 1),
        "says 4 GiB": (memfd(BODY), 2**32 - 1),
        "says more than there may be": (memfd(bytes(wire.MAX_REQUEST + 1 - HEADER)), wire.MAX_REQUEST + 1),
        "directory": (os.open(directory, os.O_RDONLY), HEADER + directory.stat().st_size),
        "pipe": (pipe[0], length),
        "pipe, and says empty": (pipe[0], HEADER),
        "socket": (sockets[0].fileno(), length),
        "without rights": (os.open("/etc/hostname", os.O_PATH), HEADER + hostname),
        "a device without an end": (os.open("/dev/zero", os.O_RDONLY), length),
    }
    try:
        yield bodies
    finally:
        for one in sockets:
            one.close()
        for fd in {pipe[1], *(fd for name, (fd, _) in bodies.items() if name != "socket")}:
            os.close(fd)


def test_lying_bodies_are_refused_and_the_launcher_lives_on(either: Launcher, tmp_path: Path) -> None:
    either.settle()
    before = fds_of(either.process.pid)
    with other_bodies(tmp_path / "directory") as bodies:
        for name, (body, length) in bodies.items():
            either.send(header(type=wire.PREPARE, flags=wire.BODY_IN_MEMFD, length=length, counts=(1, 0, 0, 0)), [body])
            assert refusal(either) == errno.EBADMSG, name
    either.settle()
    assert fds_of(either.process.pid) == before
    assert either.run("true") == b""


def test_a_body_in_a_memfd_is_read(either: Launcher) -> None:
    body = memfd(BODY)
    try:
        either.send(header(type=wire.PREPARE, flags=wire.BODY_IN_MEMFD, length=HEADER + len(BODY), counts=(1, 0, 0, 0)), [body])
        assert either.wait_for(wire.PREPARED, 7).a == 0
    finally:
        os.close(body)
    assert either.run("sh", "-c", "ls -d /t", init=[s.BindTemplate("/t/made", "/t", 0)]) == b"/t\n"


def test_megabytes_of_command_arrive(either: Launcher) -> None:
    words = ["sh", "-c", "echo $# ${#1} ${#9}", "sh", *["x" * 100_000] * 20]
    assert either.run(*words) == b"20 100000 100000\n"
    # Too much for the kernel, but not for us: its own errno, and no harm.
    gone = either.launch("true", *["x" * 1000] * 3500).wait_gone()
    assert (gone.section, gone.error) == (2, errno.E2BIG)
    assert either.run("true") == b""


def test_a_request_leaves_nothing_in_the_launcher(launcher: Launcher) -> None:
    """Neither a good one nor a refused one: secrets of one container are not the next one's to inherit."""
    secret = os.urandom(16).hex()
    container = launcher.launch("true", environment=(("SECRET", secret),)).wait_started()
    assert exit_code(container.wait_gone()) == 0
    launcher.send(b"garbage" + secret.encode())
    assert refusal(launcher) == errno.EBADMSG
    launcher.send(padded(header(type=wire.PREPARE) + secret.encode() * 5000))
    assert refusal(launcher) == errno.EMSGSIZE
    other = listening(launcher)
    for pid in (launcher.process.pid, other.pid):
        assert secret.encode() not in memory_of(pid)
    other.kill()
    assert other.wait_gone().exited is False


def test_init_forgets_what_the_workload_was_given(launcher: Launcher) -> None:
    secret = os.urandom(16).hex()
    container = listening(launcher, SECRET=secret)
    assert secret.encode() not in memory_of(container.pid)
    container.kill()
    container.wait_gone()


def memory_of(pid: int) -> bytes:
    """All that a process can write to."""
    found = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line):
                start, end = (int(address, 16) for address in match.groups())
                if "tinyvisor-reports" in line:
                    end = start + 4096 * 16
                memory.seek(start)
                found.append(memory.read(end - start) or b"")
    return b"".join(found)


def test_kill_of_unknown_containers_is_nothing(either: Launcher) -> None:
    container = listening(either)
    either.send(wire.encode_request(wire.KILL, container.id + 1, pid=container.pid))
    either.send(wire.encode_request(wire.KILL, container.id, pid=os.getpid()))
    either.send(wire.encode_request(wire.KILL, container.id, pid=1))
    either.send(wire.encode_request(wire.KILL, container.id, pid=2**31 + 5))
    either.send(wire.encode_request(wire.KILL, 999_999))
    either.settle()
    container.signal(signal.SIGTERM)
    assert exit_code(container.wait_gone()) == 0


def test_odd_commands_are_nothing_to_an_init(either: Launcher) -> None:
    container = listening(either)
    command = struct.Struct("=IHHii")
    packed = partial(command.pack, wire.MAGIC, wire.VERSION)
    for message in (
        b"x", os.urandom(16), bytes(4096), command.pack(wire.MAGIC, wire.VERSION + 1, 1, 9, 0), packed(2, 9, 0),
        *(packed(1, number, scope) for number in (0, -1, 65, 2**31 - 1, -(2**31)) for scope in (0, 1, 2)),
    ):  # fmt: skip
        container.events.send(message)
    container.signal(signal.SIGTERM)
    assert container.read_output() == b"15\n"
    assert exit_code(container.wait_gone()) == 0


# ---- steps that fail ----


def failure(launcher: Launcher, init: Sequence[s.Step], workload: Sequence[s.Step], trees: Sequence[int] = ()) -> Gone:
    container = launcher.launch_sections(init, workload, trees=trees)
    assert wire.receive_event(container.events) is None, "it can't have started"
    gone = container.wait_gone()
    assert not gone.exited
    return gone


def workload(*command: str) -> list[s.Step]:
    return [*workload_steps(), s.Exec(command, (("PATH", "/usr/bin:/bin"),))]


RETURN_ALLOW = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)


@pytest.mark.parametrize(
    "program, flags",
    [
        (b"", 0), (RETURN_ALLOW[:7], 0), (RETURN_ALLOW + b"\0", 0), (RETURN_ALLOW * 4097, 0), (RETURN_ALLOW * 100_000, 0),
        (RETURN_ALLOW, 1), (RETURN_ALLOW, 8), (RETURN_ALLOW, 1 << 32), (RETURN_ALLOW, 1 << 63),
        (bytes(8), 0), (b"\xff" * 8, 0),
    ],
)  # fmt: skip
def test_what_is_no_filter_is_refused(either: Launcher, program: bytes, flags: int) -> None:
    """By size and by flags, which could start threads of listeners; the program itself is the kernel's to check."""
    steps = [*workload_steps(), s.NoNewPrivs(), s.Seccomp(program, flags, ""), s.Exec(("true",), (("PATH", "/usr/bin"),))]
    gone = failure(either, [*root_steps(), s.PivotRoot(), s.Enter("/container"), init_step()], steps)
    assert (gone.section, gone.step, gone.error) == (2, len(steps) - 2, errno.EINVAL)


@pytest.mark.parametrize("count", [1, 4096])
@pytest.mark.parametrize("flags", [0, 2, 4, 6])
def test_a_filter_is_the_workloads_alone(either: Launcher, count: int, flags: int) -> None:
    steps = [*workload_steps(), s.NoNewPrivs(), s.Seccomp(RETURN_ALLOW * count, flags, "")]
    steps.append(s.Exec(("sh", "-c", "grep -h Seccomp: /proc/1/status /proc/self/status"), (("PATH", "/usr/bin:/bin"),)))
    container = either.launch_sections([*root_steps(), s.PivotRoot(), s.Enter("/container"), init_step()], steps).wait_started()
    assert container.read_output().split() == [b"Seccomp:", b"0", b"Seccomp:", b"2"]
    assert exit_code(container.wait_gone()) == 0
    assert status_of(either.process.pid)["Seccomp"] == status_of(os.getpid())["Seccomp"]


def test_a_filter_needs_a_right_or_no_new_privs(either: Launcher) -> None:
    steps = [*workload_steps(), *DROP_ALL, s.Seccomp(RETURN_ALLOW, 0, ""), s.Exec(("true",), (("PATH", "/usr/bin"),))]
    gone = failure(either, [*root_steps(), s.PivotRoot(), s.Enter("/container"), init_step()], steps)
    assert gone.error == errno.EACCES


@pytest.mark.parametrize("action", [0x50001, 0x30000])
def test_a_filter_that_lets_nothing_through_ends_the_start(either: Launcher, action: int) -> None:
    """Neither exec nor exit: the child must not try for ever, with its init asleep until it is gone."""
    steps = [*workload_steps(), s.NoNewPrivs(), s.Seccomp(struct.pack("=HBBI", 0x06, 0, 0, action), 0, "")]
    steps.append(s.Exec(("true",), (("PATH", "/usr/bin"),)))
    container = either.launch_sections([*root_steps(), s.PivotRoot(), s.Enter("/container"), init_step()], steps)
    assert container.wait_gone().exited is (action == 0x30000)


@pytest.mark.skipif(landlock_abi() < 2, reason="this kernel's Landlock is not used")
@pytest.mark.parametrize(
    "step, error",
    [
        (s.Landlock(0, 0, (), ()), errno.ENOMSG), (s.Landlock(1 << 63, 0, (), ()), errno.EINVAL),
        (s.Landlock(2, 1 << 40, (), ()), errno.EINVAL if landlock_abi() >= 6 else errno.E2BIG),
        (s.Landlock(2, 0, ("/no/such",), ()), errno.ENOENT), (s.Landlock(2, 0, ("/dev",), ("/no/such",)), errno.ENOENT),
        (s.Landlock(2, 0, ("",), ()), errno.ENOENT), (s.Landlock(2, 0, ("/proc/self/root",), ()), errno.ELOOP),
        (s.Landlock(2, 0, ("../../../no/such",), ()), errno.ENOENT),
        (s.Landlock(2, 0, ("/dev", "../../..", "/proc"), ("/dev/null",)), 0), (s.Landlock(2, 0, (), ()), 0),
    ],
)  # fmt: skip
def test_walls_of_landlocks(either: Launcher, step: s.Landlock, error: int) -> None:
    """Every path is found below the root, and is no magic link; what the kernel does not know it refuses itself."""
    steps = [*workload_steps(), s.CloseFds(), step, s.NoNewPrivs(), s.Exec(("sh", "-c", "exit 5"), (("PATH", "/usr/bin:/bin"),))]
    before = [*root_steps(), s.PivotRoot(), s.Enter("/container"), init_step()]
    if error:
        gone = failure(either, before, steps)
        assert (gone.section, gone.step, gone.error) == (2, steps.index(step), error)
    else:
        assert exit_code(either.launch_sections(before, steps).wait_started().wait_gone()) == 5


@pytest.mark.skipif(landlock_abi() < 2, reason="this kernel's Landlock is not used")
def test_walls_need_a_right_or_no_new_privs(either: Launcher) -> None:
    before = [*root_steps(), s.PivotRoot(), s.Enter("/container"), init_step()]
    steps = [*workload_steps(), *DROP_ALL, s.Landlock(2, 0, (), ()), s.Exec(("true",), (("PATH", "/usr/bin"),))]
    assert failure(either, before, steps).error == errno.EPERM


@pytest.mark.parametrize(
    "command, error, code",
    [
        ("no-such-command", errno.ENOENT, 127),
        ("/no/such/file", errno.ENOENT, 127),
        ("", errno.ENOENT, 127),
        ("/usr", errno.EACCES, 126),
        ("/proc/self/status", errno.EACCES, 126),
        ("/dev/null", errno.EACCES, 126),
        ("/usr/bin/env/x", errno.ENOTDIR, 126),
    ],
)
def test_exec_fails_with_step_errno_and_code(either: Launcher, command: str, error: int, code: int) -> None:
    steps = workload(command)
    gone = failure(either, [*root_steps(), s.PivotRoot(), s.Enter("/container"), init_step()], steps)
    assert (gone.section, gone.step, gone.error) == (2, len(steps) - 1, error)
    assert os.waitstatus_to_exitcode(gone.init_status) == code
    assert either.run("true") == b""


def test_no_exec_at_all(either: Launcher) -> None:
    gone = failure(either, [*root_steps(), s.PivotRoot(), s.Enter("/container"), init_step()], [s.Session()])
    assert (gone.section, gone.step, gone.error) == (2, 1, errno.ENOEXEC)


def test_bind_of_what_is_no_tree(either: Launcher, tmp_path: Path) -> None:
    """The slot's fd comes with the request and is valid; only the kernel can tell what it is."""
    mounts = Path("/proc/self/mountinfo").read_text()
    pipe = os.pipe()
    for fd in (pipe[0], os.open("/usr", os.O_PATH), os.open("/", os.O_PATH | os.O_DIRECTORY), memfd(b"x")):
        init = [*root_steps(), s.Bind(s.FIRST_TREE, "/mnt", NODEV, "nothing"), s.PivotRoot(), s.Enter("/container"), init_step()]
        gone = failure(either, init, workload("true"), [fd])
        assert (gone.section, gone.step) == (1, len(root_steps()))
        assert gone.error in (errno.EINVAL, errno.EBADF)
        init = [s.Unshare(0x20000), s.RootTree(s.FIRST_TREE, NODEV, "nothing"), init_step()]
        gone = failure(either, init, workload("true"), [fd])
        assert (gone.section, gone.step, gone.error) == (1, 1, errno.EINVAL)
        os.close(fd)
    os.close(pipe[1])
    assert Path("/proc/self/mountinfo").read_text() == mounts, "the host's own mounts kept their flags"


@pytest.mark.parametrize(
    "step, error",
    [
        (s.Mount("no-such-fs", "/mnt", "", 0), errno.ENODEV),
        (s.Mount("tmpfs", "/mnt", "size=lots", 0), errno.EINVAL),
        (s.Mount("tmpfs", "/mnt", "no_such_option", 0), errno.EINVAL),
        (s.Mount("tmpfs", "/mnt", "x=" + "y" * 5000, 0), errno.E2BIG),
        (s.Join(0x40000000, "nobody"), errno.ESRCH),
        (s.CgroupMake(KEPT | 31, "x", "nowhere"), errno.EBADF),
        (s.CgroupInto(KEPT | 31, "x", "nowhere"), errno.EBADF),
        (s.BindTemplate("/t/nothing", "/mnt", 0), errno.ENOENT),
        (s.Remount("/nothing", 1), errno.ENOENT),
        (s.Hostname("x" * 65), errno.EINVAL),
        (s.File("/usr/file", b""), errno.EROFS),
        (s.Directory("/" + "/".join(["d"] * 1500) + "/" + "x" * 256), errno.ENAMETOOLONG),
        (s.Directory("/" + "x/" * 2100 + "d"), errno.ENAMETOOLONG),
        (s.Pty(0, 0, 24, 80), errno.ENOENT),
        (s.UserNamespace(0x20000), errno.EINVAL),
        (s.Unshare(1), errno.EINVAL),
        (s.Mount("tmpfs", "/", "", 0), errno.EBUSY),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, s.Step) else errno.errorcode[value],
)
def test_init_steps_fail_with_step_and_errno(launcher: Launcher, step: s.Step, error: int) -> None:
    gone = failure(launcher, [*root_steps(), step, s.PivotRoot(), s.Enter("/container"), init_step()], workload("true"))
    assert (gone.section, gone.step, errno.errorcode[gone.error]) == (1, len(root_steps()), errno.errorcode[error])


def test_deep_directories_are_made(either: Launcher) -> None:
    """As deep as a path can be."""
    path = "/" + "d/" * 2000 + "e"
    assert either.run("sh", "-c", f"cd {'d/' * 2000}e && echo here", init=[s.Directory(path)]) == b"here\n"


def test_prepare_fails_with_step_and_errno(either: Launcher) -> None:
    steps = [s.Directory("/t/fine"), s.Mount("no-such-fs", "/t/fine", "", 0), s.Directory("/t/never")]
    event = either.prepare(steps)
    assert (event.a, event.b) == (errno.ENODEV, 1)
    assert either.run("true") == b""


def test_an_event_socket_that_is_none(either: Launcher) -> None:
    """What init says is lost then, and nothing else."""
    read, write = os.pipe()
    with devnulls(1) as (null,):
        sections = [
            wire.EMPTY,
            wire.encode([*root_steps(), s.PivotRoot(), s.Enter("/container"), init_step()]),
            wire.encode(workload("true")),
        ]
        either.request(wire.encode_request(wire.LAUNCH, 7, sections, fds=4), [read, null, null, null])
    os.close(read)
    os.close(write)
    assert exit_code(either.wait_gone(7)) == 0


NEW_NET = NAMESPACE_FLAGS["net"]


def join(launcher: Launcher, other: Running) -> Running:
    """A container in the other's network, which prints which that is."""
    init = [*root_steps(), s.Join(NEW_NET, "other"), s.PivotRoot(), s.Enter("/container"), init_step()]
    return launcher.launch_sections(init, workload("readlink", "/proc/self/ns/net"), other=other)


def test_a_network_is_joined(either: Launcher) -> None:
    other = listening(either)
    container = join(either, other)
    assert container.read_output().decode().strip() == os.readlink(f"/proc/{other.pid}/ns/net")
    assert os.readlink(f"/proc/{other.pid}/ns/net") != os.readlink("/proc/self/ns/net")
    assert exit_code(container.wait_gone()) == 0
    other.kill()
    other.wait_gone()


def test_nobody_joins_what_has_not_started_or_is_gone(either: Launcher) -> None:
    """A container that isn't set up is in the launcher's own namespaces still: joining it would be joining the host."""
    other = either.launch("/probe/probe", "listen")
    assert other.pid == 0
    assert join(either, other).wait_gone().error == errno.ESRCH
    other.wait_started()
    other.kill()
    other.wait_gone()
    assert join(either, other).wait_gone().error == errno.ESRCH


# ---- what ends what ----


def test_closing_the_socket_ends_everything(either: Launcher) -> None:
    running = [either.launch("sleep", "1000").wait_started() for _ in range(10)]
    pidfds = [os.pidfd_open(container.pid) for container in running]
    either.control.close()
    assert wait_for_end(either.pidfd)
    assert all(has_ended(pidfd) for pidfd in pidfds), "it waits for them"
    for pidfd in pidfds:
        os.close(pidfd)
    assert either.process.wait() == 0


def test_killing_the_launcher_ends_everything(launcher: Launcher) -> None:
    running = [launcher.launch("sh", "-c", "sleep 1000 & exec sleep 1000").wait_started() for _ in range(10)]
    starting = [launcher.launch("sleep", "1000") for _ in range(10)]
    pidfds = [os.pidfd_open(container.pid) for container in running]
    launcher.process.kill()
    assert all(wait_for_end(pidfd) for pidfd in pidfds)
    for pidfd in pidfds:
        os.close(pidfd)
    launcher.process.wait()
    for container in (*running, *starting):
        assert container.read_output() == b"", "all who could write are gone"


def test_killing_the_supervisor_ends_everything() -> None:
    with Supervisor(3) as supervisor:
        supervisor.process.kill()
        assert wait_for_end(supervisor.launcher)
        assert all(has_ended(init) for init in supervisor.inits)


def test_a_child_that_holds_the_socket_does_not_keep_it_alive() -> None:
    """EOF doesn't come then: the launcher watches the supervisor itself."""
    with Supervisor(3, forks=True) as supervisor:
        supervisor.process.kill()
        assert wait_for_end(supervisor.launcher)
        assert all(has_ended(init) for init in supervisor.inits)
        assert not has_ended(supervisor.child)


def test_killing_init_ends_its_container_only(either: Launcher) -> None:
    first, second = (either.launch("sh", "-c", "sleep 1000 & exec sleep 1000").wait_started() for _ in range(2))
    os.kill(first.pid, signal.SIGKILL)
    gone = first.wait_gone()
    assert (gone.exited, gone.error, os.waitstatus_to_exitcode(gone.init_status)) == (False, 0, -signal.SIGKILL)
    assert first.read_output() == b""
    with harness.pidfd_of(second.pid) as pidfd:
        assert not has_ended(pidfd)
    second.wait_gone()


def test_kill_request_ends_the_container(either: Launcher) -> None:
    container = either.launch("sh", "-c", "trap '' TERM INT HUP; sleep 1000 & wait").wait_started()
    container.kill()
    assert os.waitstatus_to_exitcode(container.wait_gone().init_status) == -signal.SIGKILL
    container = either.launch("sleep", "1000")  # before its pid is known
    container.kill()
    assert container.wait_gone().exited is False


def test_launcher_does_not_outlive_a_supervisor_that_is_gone_at_the_start() -> None:
    """Started with the pid of somebody else: its own parent may have died and been replaced."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        command = [str(harness.installed()), "serve", str(theirs.fileno()), "1"]
        pid = os.posix_spawn(command[0], command, {}, file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), theirs.fileno())])
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_supervisor_that_closes_its_end_of_a_container_changes_nothing(either: Launcher) -> None:
    container = listening(either)
    container.events.close()
    os.kill(container.pid, signal.SIGUSR1)
    read_until(container.output, b"10\n")
    os.kill(container.pid, signal.SIGTERM)
    assert exit_code(container.wait_gone()) == 0


def test_busy_cleanup_is_tried_by_time(launcher: Launcher) -> None:
    """However much else the launcher is asked meanwhile. What is busy here is a mount point in its own world."""
    mount = s.Mount("tmpfs", "/t/busy", "size=64k", 0)
    assert launcher.prepare([mount]).a == 0
    container = launcher.launch("true", cleanup=[s.Remove(KEPT, "/t/busy", "here")]).wait_started()
    assert container.read_output() == b""
    start = time.monotonic()
    for _ in range(2000):
        launcher.settle()
    gone = container.wait_gone()
    assert gone.cleanup_error == errno.EBUSY
    assert time.monotonic() - start > 1


def test_cleanup_removes_and_reads(either: Launcher) -> None:
    either.prepare([s.Directory("/t/there"), s.File("/t/file", b"content")])
    cleanup = [
        s.Read(KEPT, "/t/file", "here"), s.Read(KEPT, "/t/missing", "here"), s.Remove(KEPT, "/t/there", "here"),
        s.Remove(KEPT, "/t/file", "here"), s.Remove(KEPT, "/t/missing", "here"),
    ]  # fmt: skip
    gone = either.launch("true", cleanup=cleanup).wait_gone()
    assert (gone.cleanup_error, gone.counters) == (0, b"\x07\0\0\0content\xff\xff\xff\xff")
    gone = either.launch("true", cleanup=cleanup[:2]).wait_gone()
    assert gone.counters == b"\xff" * 8


def test_many_at_once(either: Launcher) -> None:
    either.settle()
    before = fds_of(either.process.pid)
    running = [either.launch("/probe/probe", "exit", str(code)) for code in range(64)]
    assert [exit_code(container.wait_gone()) for container in running] == list(range(64))
    either.settle()
    assert fds_of(either.process.pid) == before


# ---- what a workload starts with ----


@contextlib.contextmanager
def odd_signals() -> Iterator[None]:
    """Blocked, ignored and handled ones, in this process."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGCHLD, signal.SIGTERM, 40])
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGUSR2, 45)}
    before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: None)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_signals_of_the_workload_are_as_new(probe: Path, sanitized: Path) -> None:
    for path in (None, sanitized):
        with odd_signals():
            with Launcher(path, probe.parent) as launcher:
                lines = launcher.run("cat", "/proc/self/status").decode().splitlines()
        sets = dict(line.split(":\t") for line in lines if re.match("Sig|Shd", line))
        assert {name: sets[name] for name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn")} == dict.fromkeys(
            ("SigPnd", "ShdPnd", "SigBlk", "SigIgn"), "0" * 16
        )
        assert sets["SigCgt"] == "0" * 16


def test_workload_has_only_its_stdio(either: Launcher) -> None:
    with devnulls(30) as fds:
        for fd in fds:
            os.set_inheritable(fd, True)
        assert either.prepare(fds=fds[:4], flags=wire.KEEP_FDS).a == 0
        assert either.run("/probe/probe", "fds") == b"0\n1\n2\n"
        assert either.run("sh", "-c", "/probe/probe fds") == b"0\n1\n2\n"


def test_workload_is_alone_and_leads(either: Launcher) -> None:
    container = either.launch("/probe/probe", "pids").wait_started()
    assert read_until(container.output, b"ready\n").splitlines()[0] == b"2 1 2"
    assert status_of(container.pid)["NSpid"].split()[1:] == ["1"]
    container.signal(signal.SIGTERM)
    container.wait_gone()


# ---- PID 1 ----


def test_init_holds_two_fds_and_is_not_dumpable(either: Launcher) -> None:
    container = listening(either)
    found = fds_of(container.pid)
    assert set(found) == {3, 4}
    assert found[3].startswith("socket:")
    assert found[4] == "anon_inode:[signalfd]"
    container.signal(signal.SIGTERM)
    container.wait_gone()


def test_init_is_out_of_reach_from_inside(either: Launcher) -> None:
    lines = either.run("/probe/probe", "open", "/proc/1/exe", workload=DROP_ALL).decode().splitlines()
    tried = dict(line.split() for line in lines)
    assert tried == {"readlink": str(errno.EACCES), "read": str(errno.EACCES), "write": str(errno.EACCES)}
    for name in ("environ", "maps", "fd/3", "fdinfo/3", "cwd", "root", "mem", "auxv"):
        lines = either.run("/probe/probe", "open", f"/proc/1/{name}", workload=DROP_ALL).decode().splitlines()
        assert "read 0" not in lines, name
        assert "write 0" not in lines, name


def test_even_with_all_rights_the_program_cannot_be_changed(either: Launcher) -> None:
    lines = either.run("/probe/probe", "open", "/proc/1/exe").decode().splitlines()
    assert dict(line.split() for line in lines)["write"] in (str(errno.ETXTBSY), str(errno.EPERM))


def test_init_is_shown_with_its_name(either: Launcher) -> None:
    container = listening(either, how=init_step(name="web"))
    assert status_of(container.pid)["Name"] == "tinyvisor-init"
    assert Path(f"/proc/{container.pid}/cmdline").read_bytes().rstrip(b"\0") == b"tinyvisor-init: web"
    assert status_of(either.process.pid)["Name"] == "tinyvisor-launc"
    container.kill()
    container.wait_gone()


def test_workload_reads_the_end_of_a_pipe(either: Launcher) -> None:
    """Neither the launcher nor an init holds the writing end, or this would wait for ever."""
    read, write = os.pipe()
    container = either.launch("cat", stdin=read).wait_started()
    neighbour = listening(either)
    os.close(read)
    os.write(write, b"text")
    os.close(write)
    assert container.read_output() == b"text"
    assert exit_code(container.wait_gone()) == 0
    neighbour.kill()
    neighbour.wait_gone()


def test_exit_codes_and_signals_are_exact(launcher: Launcher) -> None:
    for first in range(0, 256, 64):  # not more at once than the socket has room for their ends, which nobody takes meanwhile
        running = [launcher.launch("/probe/probe", "exit", str(code)) for code in range(first, first + 64)]
        assert [exit_code(container.wait_gone()) for container in running] == list(range(first, first + 64))
    deadly = [number for number in ALL_SIGNALS if number not in (17, 18, 19, 20, 21, 22, 23, 28)]
    running = [launcher.launch("/probe/probe", "die", str(number)) for number in deadly]
    for number, container in zip(deadly, running, strict=True):
        gone = container.wait_gone()
        assert os.WTERMSIG(gone.status) == number
        assert os.waitstatus_to_exitcode(gone.init_status) == 128 + number


def test_every_signal_is_forwarded(either: Launcher) -> None:
    container = listening(either)
    for number in ALL_SIGNALS:
        if number in UNCATCHABLE or number == signal.SIGTERM:
            continue
        container.signal(number)
        assert read_until(container.output, b"\n") == f"{number}\n".encode()
        if number != signal.SIGCHLD:
            os.kill(container.pid, number)  # as somebody on the host might
            assert read_until(container.output, b"\n") == f"{number}\n".encode()
    container.signal(signal.SIGTERM)
    assert exit_code(container.wait_gone()) == 0


def test_signal_before_the_workload_is_there_is_not_lost(either: Launcher) -> None:
    for _ in range(30):
        container = either.launch("/probe/probe", "listen")
        container.signal(signal.SIGUSR1)  # it waits in the socket until init reads
        container.signal(signal.SIGTERM)
        gone = container.wait_gone()
        # Between exec and the workload's own first instruction the signal meets its default action.
        assert os.waitstatus_to_exitcode(gone.status) in (0, -signal.SIGUSR1, -signal.SIGTERM)
        assert gone.exited


def test_scopes(either: Launcher) -> None:
    """The workload alone, its group, or all there is."""
    script = "setsid /probe/probe listen other & /probe/probe listen group & exec /probe/probe listen self"
    container = either.launch("sh", "-c", script).wait_started()
    seen = b""
    while seen.count(b"\n") < 3:
        seen += read_until(container.output, b"\n")
    for scope, count in ((wire.SCOPE_WORKLOAD, 1), (wire.SCOPE_GROUP, 2), (wire.SCOPE_ALL, 3)):
        container.signal(signal.SIGUSR1, scope)
        container.signal(signal.SIGUSR2)  # only ever to one: what comes before it, is all
        seen = b""
        while seen.count(b"10\n") < count or b"12\n" not in seen:
            seen += read_until(container.output, b"\n")
        assert seen.count(b"10\n") == count
    container.signal(signal.SIGKILL, wire.SCOPE_ALL)
    assert os.WTERMSIG(container.wait_gone().status) == signal.SIGKILL


def test_signal_group_flag(either: Launcher) -> None:
    script = "/probe/probe listen group & exec /probe/probe listen self"
    container = either.launch("sh", "-c", script, how=init_step(flags=s.INIT_SIGNAL_GROUP)).wait_started()
    seen = b""
    while seen.count(b"\n") < 2:
        seen += read_until(container.output, b"\n")
    os.kill(container.pid, signal.SIGUSR1)
    while seen.count(b"10\n") < 2:
        seen += read_until(container.output, b"\n")
    os.kill(container.pid, signal.SIGTERM)
    assert exit_code(container.wait_gone()) == 0


def test_the_others_are_told_and_waited_for(either: Launcher) -> None:
    start = time.monotonic()
    container = either.launch("/probe/probe", "guard", "10", how=init_step(grace=60_000, signal=signal.SIGUSR1)).wait_started()
    assert container.read_output() == b"10\n"
    assert exit_code(container.wait_gone()) == 3
    assert time.monotonic() - start < harness.PATIENCE
    start = time.monotonic()
    container = either.launch("/probe/probe", "guard", "64", how=init_step(grace=150)).wait_started()
    assert container.read_output() == b"15\n"
    assert exit_code(container.wait_gone()) == 3
    assert time.monotonic() - start >= 0.15
    assert exit_code(either.launch("/probe/probe", "guard", "64").wait_gone()) == 3


def test_time_limit_is_exact_and_ends_all(either: Launcher) -> None:
    start = time.monotonic()
    container = either.launch("sh", "-c", "trap '' TERM; sleep 1000 & wait", how=init_step(timeout=200)).wait_started()
    gone = container.wait_gone()
    assert time.monotonic() - start >= 0.2
    assert (gone.timed_out, gone.exited, os.WTERMSIG(gone.status)) == (True, True, signal.SIGKILL)
    assert 0.2 <= gone.wall < 5
    for timeout in (60_000, 10**13, 2**64 - 1):  # ms; of the longer ones nanoseconds overflow
        gone = either.launch("true", how=init_step(timeout=timeout)).wait_gone()
        assert (gone.timed_out, exit_code(gone)) == (False, 0)


def test_children_that_end_at_once_cannot_hang_it(either: Launcher) -> None:
    running = [either.launch("/probe/probe", "burst", "60") for _ in range(15)]
    assert {exit_code(container.wait_gone()) for container in running} == {42}


@pytest.mark.timeout(120)
def test_no_zombie_is_left_of_a_hundred_thousand_orphans(launcher: Launcher) -> None:
    """The workload ends only when it sees no zombie of PID 1 any more."""
    running = [launcher.launch("/probe/probe", "orphans", str(ORPHANS // 2)).wait_started() for _ in range(2)]
    for container in running:
        assert container.read_output(100) == b""
        assert exit_code(container.wait_gone()) == 0


def pss(pid: int) -> int:
    """KiB, shared pages counted in part."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.M)
    assert match
    return int(match[1])


def wait_until_tidy(pid: int) -> None:
    """An init gives back what the start took once its container has lived for a moment; then its ppoll has no timeout."""
    deadline = time.monotonic() + harness.PATIENCE
    while (call := Path(f"/proc/{pid}/syscall").read_text().split())[0] == "running" or call[3] != "0x0":
        assert time.monotonic() < deadline, call
        time.sleep(0.002)


def test_init_is_small(launcher: Launcher) -> None:
    plain = listening(launcher)
    big = listening(launcher, *["x" * 1000] * 1000)  # a megabyte of command
    busy = launcher.launch("/probe/probe", "orphans", "1000").wait_started()
    for container in (plain, big):
        wait_until_tidy(container.pid)
    sizes = [pss(container.pid) for container in (plain, big)]
    assert max(sizes) < PSS_LIMIT, sizes
    assert exit_code(busy.wait_gone()) == 0
    for container in (plain, big):
        container.kill()
        container.wait_gone()


def test_idle_init_does_not_wake_up(launcher: Launcher) -> None:
    """Not while its neighbours come, work and go, for more than a second."""
    idle = listening(launcher)
    wait_until_tidy(idle.pid)
    idle.signal(signal.SIGUSR1)  # once round its loop: what it still has to load, it has loaded now
    read_until(idle.output, b"10\n")
    before = harness.wait_for_sleep(idle.pid)
    end = time.monotonic() + 1.2
    while time.monotonic() < end:
        launcher.run("/probe/probe", "orphans", "100")
    assert harness.switches(status_of(idle.pid)) == harness.switches(before)
    idle.kill()
    idle.wait_gone()


# ---- the terminal ----


def test_shell_in_a_container_has_job_control(either: Launcher) -> None:
    init = [
        *root_steps(), s.Directory("/dev/pts"), s.File("/dev/console", b"", 0o600),
        s.Mount("devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=0620", NOSUID | NOEXEC),
        s.Pty(0, 0, 33, 77), s.PivotRoot(), s.Enter("/container"), init_step(),
    ]  # fmt: skip
    command = ("bash", "--norc", "--noprofile", "--noediting", "-i")
    exec_ = s.Exec(command, (("PATH", "/usr/bin:/bin"), ("TERM", "dumb"), ("PS1", "")))
    container = either.launch_sections(init, [*workload_steps(), exec_])
    terminal = container.receive_terminal()
    try:
        container.wait_started()
        converse(
            terminal,
            ("stty -echo; set -b; PS1=; echo rea''dy\n", "ready\r\n"),
            ("stty size; tty\n", "33 77\r\n/dev/pts/0\r\n"),
            ("sh -c 'echo run''ning; exec sleep 1000'\n", "running\r\n"),
            ("\x03echo code:$?\n", "code:130\r\n"),
            ("sh -c 'echo run''ning; read line; echo got:$line'\n", "running\r\n"),
            ("\x1a", "Stopped"),
            ("echo shell\n", "shell\r\n"),
            ("fg >/dev/null\n", ""),
            ("hello\n", "got:hello\r\n"),
            ("exit 5\n", ""),
        )
        assert exit_code(container.wait_gone()) == 5
    finally:
        os.close(terminal)


def converse(terminal: int, *turns: tuple[str, str]) -> None:
    for said, answer in turns:
        os.write(terminal, said.encode())
        if answer:
            read_until(terminal, answer.encode())
