"""A trio program that embeds both: a service that runs beside it, and a batch of jobs that use the service.

Usage: python examples/embed.py   (as root)
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import trio

from tinyvisor import PIPE, Container, Job, Limits, Spec, Volume, open_runtime

SERVER = """
import socketserver
class Square(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b'%d\\n' % (int(self.rfile.readline()) ** 2))
server = socketserver.ThreadingUnixStreamServer('/shared/socket', Square)
print('listening', flush=True)
server.serve_forever()
"""
CLIENT = """
import socket, sys
with socket.socket(socket.AF_UNIX) as s:
    s.connect('/shared/socket')
    s.sendall(sys.stdin.buffer.readline())
    print(s.makefile().readline(), end='')
"""


async def listening(service: Container) -> None:
    assert service.stdout is not None
    async for line in service.stdout:
        if line == b"listening\n":
            return
    raise RuntimeError("the service did not start")


def jobs(client: Spec, count: int) -> Iterator[Job]:
    for number in range(count):
        yield Job(spec=client, id=str(number), stdin=b"%d\n" % number)


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="tinyvisor-embed-") as shared:
        volumes = (Volume(Path(shared), "/shared"),)
        service = Spec(command=("python3", "-c", SERVER), name="service", volumes=volumes)
        limits = Limits(memory="64m", wall="20s").spec_fields()
        client = Spec(command=("python3", "-c", CLIENT), volumes=volumes, **limits)
        async with open_runtime() as rt, rt.start(service, stdout=PIPE) as container:
            await listening(container)
            async with rt.map(jobs(client, 20), concurrency=4, capture_stdout=True) as results:
                squares = {int(result.id): int(result.stdout or b"-1") async for result in results}
            print(sum(squares.values()), "is the sum of", len(squares), "squares")
            print("service:", (await container.stop(grace=2)).status)


if __name__ == "__main__":
    trio.run(main)
