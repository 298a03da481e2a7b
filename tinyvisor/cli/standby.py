"""A process that becomes a daemon: it imports what one needs while its parent reads the project, which takes as long.

What it is to do comes through a socket; where nothing comes, for the project is wrong or runs already, it ends.
"""

from __future__ import annotations

import json
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType

from tinyvisor import interpreter

MODULE = "tinyvisor.cli.standby"
MAX_FDS = 8


class Standby:
    """One such process, as a scope: left before `become`, it is gone."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                interpreter.command(MODULE, str(theirs.fileno())),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )

    def __enter__(self) -> Standby:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.discard()

    def discard(self) -> None:
        """Ends it, unless it has become something."""
        self._socket.close()
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()

    def become(self, words: Sequence[str | int], *, output: int) -> None:
        """Has it run ``tinyvisor WORDS``; it outlives us.

        Args:
            words: an int is an fd, which it gets, and as a word the number that it has there; `MAX_FDS` - 2 at most.
            output: an fd for stdout and stderr.

        Raises:
            OSError: it has ended.
        """
        fds = [word for word in words if isinstance(word, int)]
        numbered = [word if isinstance(word, str) else fds.index(word) for word in words]
        content = os.memfd_create("tinyvisor-words")
        try:
            with open(content, "w", closefd=False) as file:
                json.dump(numbered, file)
            socket.send_fds(self._socket, [b"\0"], [content, output, *fds])
        finally:
            os.close(content)
        self._process.returncode = 0  # it outlives us: there is nothing to wait for


def _wait(connection: socket.socket) -> list[str] | None:
    """The words; None: there are none to come."""
    message, fds, _, _ = socket.recv_fds(connection, 1, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
    if not message:
        return None
    content, output, *given = fds
    for fd in (1, 2):
        os.dup2(output, fd)
    os.close(output)
    os.lseek(content, 0, os.SEEK_SET)
    with open(content) as file:
        return [word if isinstance(word, str) else str(given[word]) for word in json.load(file)]


def main() -> None:
    from tinyvisor.cli.daemon import import_all

    with socket.socket(fileno=int(sys.argv[1])) as connection:
        import_all()
        words = _wait(connection)
    if words is not None:
        sys.argv[1:] = words
        runpy.run_module("tinyvisor", run_name="__main__")


if __name__ == "__main__":
    main()
