"""What a container is given beside its root: secrets, a notify socket, a notification pipe; and sockets in its network."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tests.kernel.helpers import BOUND, ON_TRIO, fds, shell, until
from tinyvisor.errors import ContainerError, LaunchError, SpecError
from tinyvisor.runtime import PIPE, Runtime
from tinyvisor.runtime.provisions import MAX_DATAGRAM, _knows_noswap
from tinyvisor.spec import MAX_SECRET, Secret, Spec, Ulimit

pytestmark = [pytest.mark.kernel, pytest.mark.anyio, ON_TRIO]

USERNS = pytest.mark.parametrize("userns", ["auto", "host"])
SEND = "import os, socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(os.environ['NOTIFY_SOCKET']); "


# ---- secrets ----


@USERNS
async def test_secrets_are_files_on_a_read_only_tmpfs(shared: Runtime, tmp_path: Path, userns: str) -> None:
    (tmp_path / "key").write_bytes(b"from a file")
    secrets = (
        Secret(target="key", file=tmp_path / "key"),
        Secret(target="word", content=b"from a variable", uid=7, gid=8, mode=0o400),
    )
    script = (
        "cd /run/secrets; cat key; echo; cat word 2>/dev/null; stat -c '%n %u:%g %a' key word .; "
        "grep ' /run/secrets ' /proc/self/mountinfo"
    )
    _, out, _ = await shell(shared, script, secrets=secrets, userns_mode=userns, user="5:6")
    key, *stats, mount = out.splitlines()
    assert (key, stats) == ("from a file", ["key 5:6 444", "word 7:8 400", ". 0:0 755"])
    options = mount.split(" - ")
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(options[0].split()[5].split(","))
    assert options[1].startswith("tmpfs ")
    assert ("noswap" in options[1]) == _knows_noswap()


@USERNS
async def test_root_inside_can_change_nothing_of_them(shared: Runtime, userns: str) -> None:
    attack = (
        "cd /run/secrets; echo x > key; rm -f key; mv key y; chmod 777 key; touch more; mount -o remount,bind,rw .; "
        "mount -o remount,rw .; umount .; cat key; ls"
    )
    secrets = (Secret(target="key", content=b"kept\n"),)
    _, out, _ = await shell(shared, attack, secrets=secrets, userns_mode=userns)
    assert out == "kept\nkey\n"


async def test_a_secret_that_cannot_be_read_fails_the_start_and_leaves_nothing(shared: Runtime, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * (MAX_SECRET + 1))
    os.mkfifo(tmp_path / "fifo")
    before = fds()
    for name, reason in (
        ("none", "No such file"),
        ("large", rf"File too large \(more than {MAX_SECRET} bytes\)"),
        ("fifo", r"Invalid argument \(not a regular file\)"),
        (".", r"Invalid argument \(not a regular file\)"),
    ):
        with pytest.raises(LaunchError, match=rf"read the secret key from {tmp_path}.*{reason}"):
            await shell(shared, "true", secrets=(Secret(target="key", file=tmp_path / name),), notify_socket=True)
    with pytest.raises(SpecError, match="not known any more"):
        await shell(shared, "true", secrets=(Secret(target="key", environment="KEY"),))
    with pytest.raises(SpecError, match="99999"):
        await shell(shared, "true", secrets=(Secret(target="key", content=b"", uid=99999),), userns_mode="auto")
    assert fds() == before


# ---- the notify socket ----


@USERNS
async def test_what_a_container_sends_to_its_notify_socket_comes_whole(shared: Runtime, userns: str) -> None:
    code = (
        SEND
        + "s.send(b'READY=1\\nSTATUS=up'); s.send(b'x' * 5000); print(os.environ['WATCHDOG_USEC'], os.listdir('/run/notify'))"
    )
    spec = Spec(
        command=("python3", "-c", code), name="case", userns_mode=userns, user="1234", notify_socket=True, watchdog=1.5,
        read_only=True,
    )  # fmt: skip
    before = fds()
    with anyio.fail_after(BOUND):
        async with shared.start(spec, stdout=PIPE) as container:
            assert container.notify is not None
            assert await container.notify.receive() == b"READY=1\nSTATUS=up"
            assert await container.notify.receive() == b"x" * MAX_DATAGRAM
            assert (await container.wait()).returncode == 0
            assert container.stdout is not None
            assert await container.stdout.receive() == b"1500000 ['socket']\n"
    assert fds() == before


@USERNS
async def test_nothing_inside_gets_at_the_socket_but_to_send(shared: Runtime, userns: str) -> None:
    """No unlink or new name, no second socket in its place, no fd of theirs in the supervisor, nobody else's socket."""
    code = (
        SEND
        + """
import array
for attack in (
    lambda: os.unlink('/run/notify/socket'), lambda: os.rename('/run/notify/socket', '/run/notify/other'),
    lambda: os.chmod('/run/notify/socket', 0), lambda: os.symlink('/', '/run/notify/link'),
    lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).bind('/run/notify/more'),
):
    try:
        attack()
    except OSError:
        continue
    s.send(b'BROKEN')
reading, writing = os.pipe()
s.sendmsg([b'FDSTORE=1'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [writing] * 200))])
os.close(writing)
assert os.read(reading, 1) == b''  # once the message is read, nobody has it: BARRIER=1 works by this
s.send(b'DONE')
"""
    )
    before = fds()
    with anyio.fail_after(BOUND):
        spec = Spec(command=("python3", "-c", code), name="case", userns_mode=userns, notify_socket=True)
        async with shared.start(spec) as container:
            assert container.notify is not None
            assert [await container.notify.receive() for _ in range(2)] == [b"FDSTORE=1", b"DONE"]
            assert (await container.wait()).returncode == 0
        await until(lambda: fds() == before)  # a thread closes theirs


async def test_who_floods_waits_and_what_is_exec_ed_has_no_notify_socket(shared: Runtime) -> None:
    code = (
        SEND
        + "s.setblocking(False)\ntry:\n    while True: s.send(b'x' * 4000)\n"
        + "except BlockingIOError: print('full', flush=True)\nimport time; time.sleep(1000)"
    )
    spec = Spec(command=("python3", "-c", code), name="case", notify_socket=True, watchdog=3)
    with anyio.fail_after(BOUND):
        async with shared.start(spec, stdout=PIPE) as container:
            assert container.stdout is not None
            assert await container.stdout.receive() == b"full\n"
            async with container.open_exec(["sh", "-c", "echo $NOTIFY_SOCKET$WATCHDOG_USEC."], stdout=PIPE) as process:
                assert process.stdout is not None
                assert await process.stdout.receive() == b".\n"
            container.kill()
            await container.wait()


# ---- the notification fd ----


async def test_any_number_with_a_listener_and_few_files(shared: Runtime) -> None:
    """Also that of the socket by which the filter's listener comes to init; neither is left."""
    few: dict[str, Any] = {"seccomp_action": "errno", "ulimits": {"nofile": Ulimit(64, 64)}}
    for number in range(3, 64):
        one = Spec(command=("ls", "/proc/self/fd"), name="case", notification_fd=number, **few)
        with anyio.fail_after(BOUND):
            async with shared.start(one, stdout=PIPE) as container:
                assert (await container.wait()).status == "ok"
                assert container.stdout is not None
                found = {int(word) for word in (await container.stdout.receive()).split()}
                assert found == {0, 1, 2, number, 3 if number > 3 else 4}, "the last one is the directory's"


@pytest.mark.parametrize("number", [3, 10, 255])
async def test_a_newline_on_an_fd_and_no_other_fd_is_there(shared: Runtime, number: int) -> None:
    code = (
        "import os\nfound = []\nfor fd in range(3, 1024):\n    try: os.fstat(fd); found.append(fd)\n    except OSError: pass\n"
        f"os.write({number}, b'{{}}\\n'.replace(b'{{}}', str(found).encode()))"
    )
    spec = Spec(command=("python3", "-c", code), name="case", notification_fd=number)
    with anyio.fail_after(BOUND):
        async with shared.start(spec) as container:
            assert container.notification is not None
            assert await container.notification.receive_line() == f"[{number}]\n".encode()
            with pytest.raises(anyio.EndOfStream):  # neither init nor the launcher holds it
                await container.notification.receive()
            assert (await container.wait()).returncode == 0


async def test_what_is_made_for_one_container_is_not_made_ahead(shared: Runtime) -> None:
    for fields in ({"notification_fd": 3}, {"notify_socket": True}, {"secrets": (Secret(target="x", content=b""),)}):
        with pytest.raises(SpecError, match="made ahead"):
            async with shared.pool(["true"], size=1, **fields):
                pass


# ---- sockets ----

SERVER = (
    "import socket\ns = socket.create_server(('{0}', 80), family=socket.{1})\nprint('up', flush=True)\n"
    "while True: s.accept()[0].send(b'inside')"
)


@pytest.mark.parametrize(("userns", "domain", "host"), [("auto", "AF_INET", "127.0.0.1"), ("host", "AF_INET6", "::1")])
async def test_a_socket_is_in_the_container_s_network(shared: Runtime, userns: str, domain: str, host: str) -> None:
    spec = Spec(
        command=("python3", "-c", SERVER.format(host, domain)), name="case", userns_mode=userns,
        capabilities=frozenset({"NET_BIND_SERVICE"}), pids_limit=1,
    )  # fmt: skip
    before = fds()
    with anyio.fail_after(BOUND):
        async with shared.start(spec, stdout=PIPE) as container:
            assert container.stdout is not None
            assert await container.stdout.receive() == b"up\n"
            sock = await container.open_socket(getattr(socket, domain))
            with sock:
                assert not sock.getblocking()
                assert not os.get_inheritable(sock.fileno())
                sock.setblocking(True)  # on its loopback this takes no time
                sock.connect((host, 80))
                assert sock.recv(100) == b"inside"
            assert container.processes() == (
                f"python3[{int(Path(f'/proc/{container.pid}/task/{container.pid}/children').read_text())}]",
            )
            container.kill()
            await container.wait()
            with pytest.raises(ContainerError):
                await container.open_socket()
    assert fds() == before


async def test_the_socket_of_a_joined_network_is_its_provider_s(shared: Runtime) -> None:
    provider = Spec(command=("python3", "-c", SERVER.format("127.0.0.1", "AF_INET").replace("80", "8080")), name="provider")
    with anyio.fail_after(BOUND):
        async with shared.start(provider, stdout=PIPE) as one:
            assert one.stdout is not None
            assert await one.stdout.receive() == b"up\n"
            joined = Spec(command=("sleep", "1000"), name="joined", network_mode="service:provider")
            async with shared.start(joined) as two:
                with await two.open_socket() as sock:
                    sock.setblocking(True)
                    sock.connect(("127.0.0.1", 8080))
                    assert sock.recv(100) == b"inside"


async def test_a_socket_that_can_t_be_had_names_the_step_and_one_that_nobody_waits_for_is_closed(shared: Runtime) -> None:
    with anyio.fail_after(BOUND):
        async with shared.start(Spec(command=("sleep", "1000"), name="case")) as container:
            before = fds()
            with pytest.raises(LaunchError, match="make a socket: Address family not supported"):
                await container.open_socket(99)

            async def take() -> None:
                (await container.open_socket()).close()

            for checkpoints in range(6):
                async with anyio.create_task_group() as group:
                    group.start_soon(take)
                    for _ in range(checkpoints):
                        await anyio.lowlevel.checkpoint()
                    group.cancel_scope.cancel()
                assert list(shared.containers) == [container.id]
            # What was made and not taken is the process's, and closed with it.
            assert fds() == before


async def test_a_socket_of_the_host_s_network_is_one_of_ours(shared: Runtime) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, anyio.fail_after(BOUND):
        async with shared.start(Spec(command=("sleep", "1000"), name="case", network_mode="host")) as container:
            with await container.open_socket() as sock:
                sock.setblocking(True)
                sock.connect(server.getsockname())
