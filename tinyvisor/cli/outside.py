"""What a supervisor offers besides its own control socket: one for a group, metrics on a port, word to systemd. On trio."""

from __future__ import annotations

import grp
import json
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import trio

from tinyvisor.cli.systemd import Notifier, keep_telling
from tinyvisor.control import Control, Feed, listening
from tinyvisor.errors import HostError, TinyvisorError
from tinyvisor.metrics import NotInstalled
from tinyvisor.places import privileged, shared_directory
from tinyvisor.supervisor import Supervisor

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Outside:
    """What was asked for.

    Attributes:
        group: whose members may connect to a socket of their own; empty: nobody.
        metrics_port: of the loopback interface, with metrics for whoever can connect there; None: none.
    """

    group: str = ""
    metrics_port: int | None = None
    notifier: Notifier = field(default_factory=Notifier)

    async def serve(
        self,
        control: Control,
        supervisor: Supervisor,
        feed: Feed,
        record: Mapping[str, Any],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Until cancelled; `task_status` is told when all is open.

        Args:
            record: what clients find a project by; it has a ``name``.

        Raises:
            HostError: there is no such group, or the port can't be had.
            NotInstalled: prometheus-client is not there.
        """
        with ExitStack() as stack:
            async with trio.open_nursery() as nursery:
                if self.group:
                    gid = _gid(self.group)
                    directory = _directory(self.group, gid)
                    listener = stack.enter_context(listening(directory / f"{record['name']}.sock", gid))
                    stack.enter_context(_readable(directory / f"{record['name']}.json", record, gid))
                    nursery.start_soon(control.serve, listener, gid)
                if self.metrics_port is not None:
                    if find_spec("prometheus_client") is None:
                        raise NotInstalled
                    nursery.start_soon(control.serve_metrics, stack.enter_context(_on_loopback(self.metrics_port)))
                nursery.start_soon(keep_telling, self.notifier, supervisor, feed)
                task_status.started()


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(json.dumps(content) + "\n")
    temporary.replace(path)


def _gid(group: str) -> int:
    if not privileged():
        raise TinyvisorError("a socket for a group needs root: who else has a directory that a group can reach")
    try:
        return int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise HostError(f'a group "{group}"', f"groupadd {group}") from None


def _directory(group: str, gid: int) -> Path:
    """Where its members may look, and nobody but us may write."""
    directory = shared_directory(group)
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise HostError(f"{directory} as a directory of ours", f"remove {directory}")
        os.chown(directory, -1, gid)
        directory.chmod(0o750)
    except OSError as error:
        raise HostError(f"{directory} ({error.strerror})", f"make {directory.parent} writable") from None
    return directory


@contextmanager
def _readable(path: Path, record: Mapping[str, Any], gid: int) -> Iterator[None]:
    write_record(path, record)
    os.chown(path, -1, gid)
    path.chmod(0o640)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _on_loopback(port: int) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
            listener.listen()
        except OSError as error:
            raise HostError(f"port {port} of {LOOPBACK} for the metrics ({error.strerror})", "choose another port") from None
        listener.setblocking(False)
        yield listener
