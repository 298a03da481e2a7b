"""The notify socket, without a container."""

from __future__ import annotations

import os
import socket
import struct
import threading
from pathlib import Path

import anyio
import pytest

from tinyvisor.runtime.provisions import NotifySocket

pytestmark = pytest.mark.anyio
BOUND = 30


def closing() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tinyvisor-close"]


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


@pytest.mark.timeout(60)
async def test_files_that_take_their_time_to_be_closed_hold_up_nobody(tmp_path: Path) -> None:
    """SO_LINGER: who closes the last fd of such a connection waits for its peer; and that may be behind it, to be closed next."""
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    messages = NotifySocket(directory)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        lingering = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
        lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 600))
        lingering.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                lingering.send(bytes(1 << 16))
        sender.connect(os.fspath(tmp_path / "socket"))
        socket.send_fds(sender, [b"FDSTORE=1"], [lingering.fileno(), peer.fileno()])
        sender.send(b"READY=1")
        lingering.close()
        peer.close()
        with anyio.fail_after(BOUND):
            assert [await messages.receive() for _ in range(2)] == [b"FDSTORE=1", b"READY=1"]
        assert closing() == []
    messages.close()
    os.close(directory)


async def test_what_nobody_has_heard_is_not_left_to_the_last_copy(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    messages = NotifySocket(directory)
    kept = os.dup(messages.fileno())  # as a keeper has it
    reading, writing = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(os.fspath(tmp_path / "socket"))
        for _ in range(3):
            socket.send_fds(sender, [b"FDSTORE=1"], [writing])
    os.close(writing)
    messages.close(gone=True)
    for thread in closing():
        thread.join(BOUND)
    assert os.read(reading, 1) == b"", "nobody has it"
    for fd in (kept, reading, directory):
        os.close(fd)
