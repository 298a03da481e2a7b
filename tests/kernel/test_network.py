"""Network namespaces that are used again: only those that nobody could tell from new ones."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.helpers import ON_TRIO, namespace, python, read_until, until, waiting, workload
from tinyvisor.runtime import PIPE, Runtime, open_runtime
from tinyvisor.spec import Spec, Volume

pytestmark = [pytest.mark.kernel, pytest.mark.hostroot, pytest.mark.anyio, ON_TRIO]

NETWORK = """
import socket
with socket.socket(socket.AF_UNIX) as any:
    print(int.from_bytes(any.getsockopt(socket.SOL_SOCKET, 71, 8), "little"))
"""
"""SO_NETNS_COOKIE (5.14): never the same for two, where inode numbers are given out anew."""

USED = {
    "a packet on loopback": 'socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))',
    "a packet on loopback, v6": 'socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b"x", ("::1", 9))',
    "a connection that lingers": """
server = socket.create_server(("127.0.0.1", 8000))
client, (peer, _) = socket.create_connection(("127.0.0.1", 8000)), server.accept()
peer.close(), client.close()
""",
    "a packet that goes nowhere": """
try:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 9))
except OSError as error:
    assert error.errno == 101, error  # ENETUNREACH: no interface has counted it
""",
    "a flow label": """
import struct
asking = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
address = socket.inet_pton(socket.AF_INET6, "::1")
label = address + struct.pack("=IBBHHHI", socket.htonl(0x12345), 0, 255, 1, 0, 60, 0)  # struct in6_flowlabel_req: get, create
asking.setsockopt(socket.IPPROTO_IPV6, 32, label)  # IPV6_FLOWLABEL_MGR; outlives the socket
""",
    "a key for TCP Fast Open": "socket.socket().setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 1)",
    "a route that was looked up": 'socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).connect(("::1", 9))',
    "a group that was left, v6": """
import struct
group = socket.inet_pton(socket.AF_INET6, "ff05::1234") + struct.pack("=I", 1)  # struct ipv6_mreq: on lo
socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
""",
}


async def network_of(runtime: Runtime, before: str = "", **spec: Any) -> int:
    return int((await python(runtime, f"{NETWORK}\n{before}", capabilities=frozenset(), **spec)).splitlines()[0])


async def kept(runtime: Runtime) -> int:
    """One that a container was in and that the next one gets: made when the launcher has nothing else to do."""
    last = await network_of(runtime)
    for _ in range(100):
        last, before = await network_of(runtime), last
        if last == before:
            return last
    raise AssertionError("none is ever used again")


async def test_it_is_used_again_where_nothing_has_happened(shared: Runtime) -> None:
    network = await kept(shared)
    quiet = 'list(map(socket.socket.close, socket.socketpair())); socket.create_server(("127.0.0.1", 0)).close()'
    assert await network_of(shared, quiet) == network
    assert await network_of(shared) == network, "what never left the process is nothing that happened in it"


@pytest.mark.parametrize("what", USED)
async def test_it_is_not_where_something_has(shared: Runtime, what: str) -> None:
    network = await kept(shared)
    assert await network_of(shared, USED[what]) == network
    assert await network_of(shared) != network
    assert await kept(shared) != network, "nor later"


async def test_no_report_of_a_group_that_was_left_is_sent_to_the_next_one(shared: Runtime) -> None:
    """The standard versions of IGMP send it up to some seconds later, when no witness tells of it."""
    network = await kept(shared)
    leave = """
group = socket.inet_aton("239.1.2.3") + socket.inet_aton("127.0.0.1")
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
for file in "ipv4/conf/lo/force_igmp_version", "ipv6/conf/lo/force_mld_version":
    print(open(f"/proc/sys/net/{file}").read().strip())
"""
    assert (await python(shared, f"{NETWORK}\n{leave}", capabilities=frozenset())).split() == [str(network), "1", "1"]
    assert await network_of(shared) == network


async def test_it_is_not_while_a_socket_of_it_is_somebody_elses(shared: Runtime) -> None:
    """Who has it could reach what listens on the next container's loopback."""
    network = await kept(shared)
    hold = "held = socket.socket(); print(held.fileno(), 'there', flush=True); import sys; sys.stdin.read()"
    async with shared.start(
        Spec(command=("python3", "-c", f"{NETWORK}\n{hold}"), name="first"), stdin=PIPE, stdout=PIPE
    ) as first:
        number, fd, _ = (await read_until(first.stdout, "there\n")).split()
        assert int(number) == network
        with socket.socket(fileno=taken(workload(first), int(fd))) as held:
            first.kill()
            await first.wait()
            assert int.from_bytes(held.getsockopt(socket.SOL_SOCKET, 71, 8), "little") == network
            assert await kept(shared) != network
    assert await kept(shared) != network


def taken(pid: int, fd: int) -> int:
    """A copy of another process's fd."""
    libc, pidfd = ctypes.CDLL(None, use_errno=True), os.pidfd_open(pid)
    try:
        copy: int = libc.syscall(438, pidfd, fd, 0)  # pidfd_getfd, 5.6
    finally:
        os.close(pidfd)
    assert copy >= 0, os.strerror(ctypes.get_errno())
    return copy


async def test_who_meets_others_in_a_directory_gets_none(shared: Runtime, tmp_path: Path) -> None:
    """An open /proc/net/tcp that was handed out through a socket there shows the ports, and "unix" the abstract names, of whoever
    is in that network later; and nothing counts it."""
    network = await kept(shared)
    assert await network_of(shared, volumes=(Volume(tmp_path, "/out"),)) != network
    assert await network_of(shared) == network


async def test_it_is_not_after_one_whose_standard_stream_is_a_socket(shared: Runtime) -> None:
    """By which an open file of /proc/net could have left."""
    network = await kept(shared)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with shared.start(Spec(command=("python3", "-c", NETWORK), name="first"), stdin=theirs, stdout=PIPE) as first:
            assert int(await read_until(first.stdout, "\n")) == network
            await first.wait()
    assert await kept(shared) != network


@pytest.mark.parametrize("how", ["exec", "service:", "a socket"])
async def test_it_is_not_where_others_were_let_in(shared: Runtime, how: str) -> None:
    """They may be in it when the container is long gone."""
    network = await kept(shared)
    command = ("python3", "-c", f"{NETWORK}\nimport sys; sys.stdout.flush(); sys.stdin.read()")
    async with shared.start(Spec(command=command, name="first"), stdin=PIPE, stdout=PIPE) as first:
        assert int(await read_until(first.stdout, "\n")) == network
        if how == "exec":
            assert (await first.exec(["/bin/true"])).returncode == 0
        elif how == "a socket":
            (await first.open_socket()).close()
        else:
            async with waiting(shared, name="second", network_mode="service:first") as second:
                first.kill()
                await first.wait()
                assert await network_of(shared) != network, "the second is still in it"
                assert namespace(workload(second), "net") > 0
    assert await kept(shared) != network


def children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def networks_held(pid: int) -> int:
    """How many fds of network namespaces a process has."""
    return sum(link.readlink().name.startswith("net:") for link in Path(f"/proc/{pid}/fd").iterdir())


async def test_a_container_made_ahead_keeps_none_alive(anyio_backend: str) -> None:
    """It was cloned with all of the launcher's, and may wait for days."""
    async with open_runtime(warm=0) as runtime:
        await kept(runtime)
        launcher = runtime._launcher.pid
        assert networks_held(launcher) > 0
        async with runtime.pool(["/bin/true"], 1):
            await until(lambda: any(children(init) for init in children(launcher)))  # others are on their way out
            (waits,) = (init for init in children(launcher) if children(init))
            assert [networks_held(pid) for pid in (waits, *children(waits))] == [0, 0]


async def test_what_is_kept_ends_with_the_runtime(anyio_backend: str) -> None:
    async with open_runtime(warm=0) as runtime:
        network = await kept(runtime)
    async with open_runtime(warm=0) as runtime:
        assert await kept(runtime) != network
    with socket.socket() as ours:
        assert ours.getsockopt(socket.SOL_SOCKET, 71, 8) != network.to_bytes(8, "little")
