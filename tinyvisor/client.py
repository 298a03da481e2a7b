"""Talks to a project's daemon over its control socket (`control` has the table of requests). Standard library only, and
without http.client, whose import (email, ssl) is felt at every ``ps``: the answers are our own daemon's, one per connection.

Which daemon is meant is looked up in the run directory, and in those that root has opened for groups: each has a socket
NAME.sock, and a NAME.json that says which files it was started with. Whether it lives is known by connecting, and by nothing
else.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import quote, urlencode

from tinyvisor.errors import TinyvisorError
from tinyvisor.places import control_directories, log_directory, run_directory
from tinyvisor.processes import is_alive

HERE: Final = ("configs", "tinyvisor.yaml", "")
"""What of the current directory a project may have been started with."""


ANEW: Final = "anew"
"""In NAME.json: the process, as `processes.identify` describes it, while it starts anew."""
ANEW_PATIENCE: Final = 30.0
ANEW_LOOK: Final = 0.05


class Refusal(TinyvisorError):
    """The daemon said no.

    Attributes:
        status: of HTTP.
        problems: a line each.
    """

    def __init__(self, status: int, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.status = status
        self.problems: tuple[str, ...] = tuple(problems)


def find_project(name: str | None, here: Path) -> str:
    """The project called `name`, or the one that runs from the files in the directory `here`; where there is none, the one that
    was started from `here`, or by a name in it. Not from further above: whoever says `down` there means less than all below.

    Raises:
        TinyvisorError: none or several run from there.
    """
    if name is not None:
        return name
    wanted = {os.path.normpath(here / part) for part in HERE}
    exact: dict[str, None] = {}
    near: dict[str, None] = {}
    for file in _records():
        try:
            record = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        if wanted & set(record["paths"]):
            exact[file.stem] = None
        elif here != Path("/") and (
            record.get("directory") == os.fspath(here) or any(Path(path).parent == here for path in record["paths"])
        ):
            near[file.stem] = None
    found = list(exact or near)
    if len(found) > 1:
        found = [project for project in found if is_running(project)] or found[:1]
    if len(found) == 1:
        return found[0]
    if found:
        raise TinyvisorError(f"several projects run from here: {', '.join(found)}; choose one with -p NAME")
    raise TinyvisorError("no project runs from this directory; start it with tinyvisor up -d, or name another with -p NAME")


def log_directory_of(project: str) -> Path:
    """Where the logs are of a project that runs or has been left; of others, where they would be."""
    try:
        return Path(json.loads((run_directory() / f"{project}.json").read_text())["log_dir"])
    except (OSError, ValueError, KeyError):
        return log_directory() / project


def known_projects() -> list[str]:
    """Those whose daemons have left word in directories that we may read; some may have been killed."""
    return sorted({file.stem for file in _records()})


def _records() -> list[Path]:
    return [file for directory in control_directories() for file in sorted(directory.glob("*.json"))]


def is_running(project: str) -> bool:
    """Whether its daemon takes connections."""
    try:
        _connect(project).close()
    except TinyvisorError:
        return False
    return True


def is_abandoned(project: str) -> bool:
    """Whether its containers run, and no daemon: in live mode, when that was killed."""
    return launcher_of(project) != 0 and not _listens(project) and not starts_anew(project)


def launcher_of(project: str) -> int:
    """The pid of what runs its containers in live mode; 0 where there is none."""
    try:
        launcher = json.loads((run_directory() / f"{project}.live" / "_runtime.json").read_text())["launcher"]
        return int(launcher["pid"]) if is_alive(launcher) else 0
    except (OSError, ValueError, KeyError):
        return 0


def starts_anew(project: str) -> bool:
    """Whether its daemon is just starting again, in place (`upgrade`): it is there, and will take connections."""
    try:
        daemon = json.loads((run_directory() / f"{project}.json").read_text())[ANEW]
    except (OSError, ValueError, KeyError):
        return False
    return is_alive(daemon) and not _listens(project)


def abandoned(project: str) -> str:
    """What is wrong then, with the cure."""
    return (
        f'the daemon of "{project}" is dead, and its containers run on: "tinyvisor up -d" takes them over,'
        ' "tinyvisor down" stops them'
    )


def _listens(project: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        return connection.connect_ex(os.fspath(run_directory() / f"{project}.sock")) == 0


def _connect(project: str) -> socket.socket:
    deadline = time.monotonic() + ANEW_PATIENCE
    while True:
        try:
            return _connect_now(project)
        except TinyvisorError:
            if not starts_anew(project):
                raise
            if time.monotonic() > deadline:
                raise TinyvisorError(f'the daemon of "{project}" is starting anew, and takes long; try again') from None
        time.sleep(ANEW_LOOK)


def _connect_now(project: str) -> socket.socket:
    own, *shared = control_directories()
    closed = []
    for directory in (own, *shared):
        path = directory / f"{project}.sock"
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(os.fspath(path))
        except OSError as error:
            connection.close()
            if isinstance(error, PermissionError) and directory != own:
                closed.append(str(directory))
            elif not isinstance(error, (FileNotFoundError, NotADirectoryError, ConnectionRefusedError)):
                raise TinyvisorError(f"{path}: {error.strerror or error}") from None
        else:
            return connection
    if is_abandoned(project):
        raise TinyvisorError(abandoned(project))
    where = f" where we may look, which is not in {', '.join(closed)}" if closed else ""
    raise TinyvisorError(f'no daemon runs the project "{project}"{where}; start it with tinyvisor up -d')


class Client:
    """One project's daemon. Every request has a connection of its own.

    All methods raise:
        TinyvisorError: there is no such daemon, or it went away.
        Refusal: it could not do what was asked.
    """

    def __init__(self, project: str) -> None:
        self.project = project

    def get(
        self,
        path: str,
        query: Mapping[str, Any] | None = None,
        meanwhile: Callable[[socket.socket], None] | None = None,
    ) -> Any:
        """The answer's JSON.

        Args:
            meanwhile: as of `post`.
        """
        with self._request("GET", path, query, meanwhile=meanwhile) as response:
            return json.loads(b"".join(response))

    def text(self, path: str) -> str:
        """The answer as it is."""
        with self._request("GET", path) as response:
            return b"".join(response).decode()

    def post(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        fds: Sequence[int] = (),
        meanwhile: Callable[[socket.socket], None] | None = None,
    ) -> Any:
        """The answer's JSON.

        Args:
            fds: sent along.
            meanwhile: called between question and answer, with the connection, which can be read from once that comes.
        """
        with self._request("POST", path, body=body, fds=fds, meanwhile=meanwhile) as response:
            return json.loads(b"".join(response))

    def stream(self, path: str, query: Mapping[str, Any] | None = None, *, accept: str = "*/*") -> Iterator[Any]:
        """JSON objects as they come, from JSON Lines or Server-Sent Events, until the daemon ends the stream.

        Args:
            accept: ``"text/event-stream"`` for what streams only where it is asked to.
        """
        with self._request("GET", path, query, accept=accept) as response:
            rest = b""
            for data in response:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    text = line.removeprefix(b"data: ")
                    if text.startswith(b"{"):
                        yield json.loads(text)

    def pidfd(self) -> int:
        """The daemon's process, as an fd that polls readable when it has ended."""
        try:
            return os.pidfd_open(self.get("/v1/project")["pid"])
        except ProcessLookupError:
            raise TinyvisorError(f'the daemon of "{self.project}" has just ended') from None

    @contextmanager
    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        fds: Sequence[int] = (),
        meanwhile: Callable[[socket.socket], None] | None = None,
        accept: str = "*/*",
    ) -> Iterator[Iterator[bytes]]:
        target = quote(path) + (f"?{urlencode(query, doseq=True)}" if query else "")
        asked = json.dumps(body or {}).encode() if method == "POST" else b""
        headers = ("Host: tinyvisor", f"Accept: {accept}", f"Content-Length: {len(asked)}")
        head = "\r\n".join((f"{method} {target} HTTP/1.1", *headers, "", "")).encode()
        with _connect(self.project) as connection:
            try:
                _send(connection, head + asked, fds)
                if meanwhile is not None:
                    meanwhile(connection)
                with connection.makefile("rb") as answer:
                    status, content = _receive(answer)
                    if status != 200:
                        raise Refusal(status, json.loads(b"".join(content))["problems"])
                    yield content
            except (ConnectionError, ValueError) as error:
                problem = str(error) or type(error).__name__
                raise TinyvisorError(f'the daemon of "{self.project}" went away ({problem})') from None


def _receive(answer: IO[bytes]) -> tuple[int, Iterator[bytes]]:
    """The status, and the body as it comes: our daemon says how long it is, or sends it in chunks.

    Raises:
        ValueError: it broke off.
    """
    status = _line(answer).split()
    if len(status) < 2:
        raise ValueError("it gave no answer")
    headers = {}
    while line := _line(answer).strip():
        name, _, value = line.partition(b":")
        headers[name.lower()] = value.strip()
    if b"content-length" in headers:
        return int(status[1]), iter((_exactly(answer, int(headers[b"content-length"])),))
    return int(status[1]), _chunks(answer)


def _chunks(answer: IO[bytes]) -> Iterator[bytes]:
    while size := int(_line(answer), 16):
        yield _exactly(answer, size)
        _line(answer)


def _line(answer: IO[bytes]) -> bytes:
    line = answer.readline(65536)
    if not line.endswith(b"\n"):
        raise ValueError("the answer broke off")
    return line


def _exactly(answer: IO[bytes], size: int) -> bytes:
    data = answer.read(size)
    if len(data) != size:
        raise ValueError("the answer broke off")
    return data


def _send(connection: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    sent = socket.send_fds(connection, [data], list(fds)) if fds else 0
    if sent < len(data):  # sendall sends even nothing, and who has answered already may have closed the connection
        connection.sendall(data[sent:])
