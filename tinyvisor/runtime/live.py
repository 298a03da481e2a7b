"""Live mode: what the runtime does so that its containers outlive it, and the next one finds them.

Before a launch is on its way the keeper has its fds and the container's record is written; a report of its end is recorded
before it is taken from the socket. So whenever we are killed, the next supervisor finds each container in one of these: not
launched, waiting for its command, starting, running, ended with its report still in the socket, ended with its report in the
record.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tinyvisor import places, stored
from tinyvisor.errors import ContainerError, HostError, TinyvisorError
from tinyvisor.processes import identify, start_time
from tinyvisor.runtime import launcher as wire
from tinyvisor.runtime.container import Container, Host
from tinyvisor.runtime.idmap import IdMap
from tinyvisor.runtime.keeper import PROJECT, Keeper, Kind, wait_ended
from tinyvisor.runtime.leases import Ids, Leases
from tinyvisor.runtime.provisions import Provisions
from tinyvisor.runtime.records import RUNTIME, Records
from tinyvisor.runtime.rootfs import HostView
from tinyvisor.runtime.stage import Stage
from tinyvisor.runtime.stdio import ReceivePipe, SendPipe, Streams
from tinyvisor.spec import Spec
from tinyvisor.state import Exit

SECTION: Final = "container"


def keeper_path(directory: Path, project: str) -> Path:
    """Where a project's keeper listens."""
    return directory / f"{project}.keeper"


def records_path(directory: Path, project: str) -> Path:
    """Where a project's records are."""
    return directory / f"{project}.live"


class Live:
    """One project's keeper and records.

    Attributes:
        records: other sections than ours are the caller's to use.
        adopted: there were a keeper and a launcher already, and these are they.
        writes_starts: false where the caller updates a container's record as soon as it has started, which says it then, too.
    """

    def __init__(self, directory: Path, project: str) -> None:
        if not places.can_live():
            raise HostError("in a user namespace of others' making containers can't outlive their supervisor", "use --no-live")
        self._path = keeper_path(directory, project)
        self._records_path = records_path(directory, project)
        self.records: Records
        self.keeper: Keeper | None = Keeper.connect(self._path)
        if self.keeper is not None:
            self.records = Records(self._records_path)
            if self._is_unfinished(self.keeper):
                self._end_unfinished(self.keeper)
                self.keeper = None
        self.adopted: bool = self.keeper is not None
        if self.keeper is not None and not self._is_in_reach():
            self.keeper.close()
            raise TinyvisorError(f'the containers of "{project}" are in another user namespace: tinyvisor up -d takes them over')
        self.writes_starts = True
        self._held: dict[int, int] = {}

    @property
    def launcher(self) -> int:
        """Its pid, of what is taken over."""
        found = self.records.get(RUNTIME, "launcher")
        assert found is not None
        return int(found["pid"])

    def _is_in_reach(self) -> bool:
        """An ordinary user's, that is to be in the same user namespace."""
        try:
            theirs, ours = (os.stat(f"/proc/{it}/ns/user") for it in (self.launcher, "self"))
        except OSError:  # also EACCES, from outside
            return False
        return places.owner() is None or theirs.st_ino == ours.st_ino

    def _is_unfinished(self, keeper: Keeper) -> bool:
        """Whether its supervisor was killed before it had made ready, so that nothing was launched."""
        if not self.records.strange and self.records.get(RUNTIME, "launcher") is not None:
            return False
        if not self.records.strange and all(id_ == PROJECT for id_, _ in keeper.kept):
            return True
        keeper.close()
        what = self.records.strange[0] if self.records.strange else f"{self.records.directory}/{RUNTIME}.json"
        raise TinyvisorError(
            f"{what} is missing, or of another version of tinyvisor: use that one, or kill the project's tinyvisor-keeper,"
            " which kills its containers"
        )

    @staticmethod
    def _end_unfinished(keeper: Keeper) -> None:
        keeper.end()
        ended = keeper.take(PROJECT, Kind.KEEPER)
        try:
            keeper.close()
            wait_ended(ended)
        finally:
            os.close(ended)

    def start(self, lock: int, leases: int, *, nested: bool) -> Keeper:
        """A new keeper. `lock`: the project's, which we hold."""
        self.records = Records(self._records_path)
        self.records.clear()
        self.keeper = Keeper.start(self._path, nested=nested)
        self.keeper.put(PROJECT, {Kind.LOCK: lock, Kind.LEASES: leases})
        return self.keeper

    def take(self, kind: Kind) -> int:
        """One of the project's fds, from the supervisor before us; -1 where there was none."""
        return self.keeper.take(PROJECT, kind) if self.keeper is not None else -1

    def ready(self, launcher: int) -> None:
        """The launcher can launch."""
        assert self.keeper is not None
        process = identify(launcher)
        self.records.update(RUNTIME, launcher={**process, "version": wire.VERSION})

    @property
    def view(self) -> HostView | None:
        """The host view that the launcher has."""
        found = self.records.get(RUNTIME, "view")
        return None if found is None else HostView(tuple(found["binds"]), tuple((path, link) for path, link in found["links"]))

    def set_view(self, view: HostView) -> None:
        self.records.try_update(RUNTIME, view={"binds": view.binds, "links": view.links})

    def release(self) -> None:
        """We go, the containers stay."""
        if self.keeper is not None:
            self.keeper.close()

    @staticmethod
    def forget_remains(directory: Path, project: str) -> None:
        """What is left of a project of which nothing runs: its keeper was killed, too."""
        keeper_path(directory, project).unlink(missing_ok=True)
        shutil.rmtree(records_path(directory, project), ignore_errors=True)

    def remove(self) -> None:
        """Nothing is left of the project."""
        self.records.remove()
        self._path.unlink(missing_ok=True)

    # ---- containers ----

    def hold(self, container: Container, streams: Streams, *, parked: bool = False) -> None:
        """Before its launch.

        Args:
            parked: it waits for its command. The next supervisor does not know what that was to be, and ends it, unless it has
                started by then.

        Raises:
            OSError: its record can't be written.
            HostError: the keeper has no room. Nothing is kept.
        """
        assert self.keeper is not None
        if container.spec.tty:
            container.terminal_stage = Stage.create()
        fds = _fds_of(container, streams)
        self.keeper.put(container.id, fds)
        self._held[container.id] = len(fds)
        try:
            self.records.update(container.name, **{SECTION: _record(container, parked)})
        except BaseException:
            self.drop(container)
            raise
        self.watch(container)

    def watch(self, container: Container) -> None:
        """Notes what it says of its start. That it has started stays in its socket, where the next supervisor hears it again,
        also where the record could not be written."""

        def before(event: wire.Event, fds: list[int]) -> None:
            assert self.keeper is not None
            if event.type == wire.STARTED:
                note = self._note if self.writes_starts else self._stage
                note(container, pid=event.a, start=_start_time(event.a))
            elif event.type == wire.PTY and fds and container.terminal is None:
                try:
                    self.keeper.put(container.id, {Kind.TERMINAL: fds[0]})
                except HostError as error:  # it has no room: not what all the others end by
                    container.fail(error)
                else:
                    self._held[container.id] = self._held.get(container.id, 0) + 1

        container.keep_by(before)

    def note_end(self, container: Container) -> None:
        """It is gone, and its report will be taken from the socket now."""
        if container.id in self._held:
            error = container.error
            problem = None if error is None else error.problem if isinstance(error, ContainerError) else str(error)
            self._note(container, exit=stored.to_json(container.exit), problem=problem)

    def forget(self, container: Container) -> None:
        """It was not to be."""
        self.records.try_update(container.name, **{SECTION: None})

    def drop(self, container: Container) -> None:
        """Nobody needs its fds any more."""
        held = self._held.pop(container.id, None)
        if held is not None and self.keeper is not None:
            self.keeper.drop(container.id, held)

    def _note(self, container: Container, **more: Any) -> None:
        if self._stage(container, **more):
            self.records.try_update(container.name)

    def _stage(self, container: Container, **more: Any) -> bool:
        """False where the record is another's by now."""
        return self.records.extend(container.name, SECTION, {"id": container.id}, **more)

    # ---- adoption ----

    def recorded(self) -> list[str]:
        """Names of containers that there are, or were until their supervisor's end."""
        return [name for name in self.records.names() if self.records.get(name, SECTION) is not None]

    def never_started(self, container: Container) -> bool:
        """Whether it has been waiting for its command, of which its supervisor died; also where that was just on its way."""
        record = self.records.get(container.name, SECTION)
        return record is not None and bool(record.get("parked")) and not container.has_started

    def adopt(
        self,
        name: str,
        host: Host,
        leases: Leases,
        make: Callable[[Spec, Streams, tuple[socket.socket, socket.socket] | None, int], Container],
    ) -> Container:
        """The container as an object again.

        Raises:
            TinyvisorError: its record makes no sense to this version.
        """
        assert self.keeper is not None
        record = self.records.get(name, SECTION)
        assert record is not None
        try:
            spec = stored.from_json(Spec, record["spec"])
        except (ValueError, KeyError, TypeError) as exc:
            path = self.records.directory / f"{name}.json"
            problem = f"{path}: not as this version of tinyvisor writes it ({exc}); use the one that wrote it"
            raise TinyvisorError(problem) from None
        id_ = record["id"]
        self._held[id_] = sum(1 for kept, _ in self.keeper.kept if kept == id_)
        events = self.keeper.take(id_, Kind.EVENTS)
        pair = None
        if events >= 0:
            ours, theirs = socket.socket(fileno=events), socket.socket(socket.AF_UNIX)
            ours.setblocking(False)
            theirs.close()
            pair = (ours, theirs)
        container = make(spec, self._streams(id_, spec), pair, id_)
        container.ids = _ids(record["ids"], leases)
        container.provide(Provisions.again(self.keeper.take(id_, Kind.NOTIFY), self.keeper.take(id_, Kind.NOTIFICATION)))
        if spec.tty:
            terminal, staged = self.keeper.take(id_, Kind.TERMINAL), self.keeper.take(id_, Kind.STAGED_OUT)
            container.terminal = terminal if terminal >= 0 else None
            container.terminal_stage = Stage(staged) if staged >= 0 else None
        container.resume(record.get("pid", 0))
        if "exit" in record or pair is None:
            exit = record.get("exit")
            problem = record.get("problem") or "its end was not recorded"
            container.resume_ended(None if exit is None else stored.from_json(Exit, exit), problem)
        else:
            self.watch(container)
        return container

    def _streams(self, id_: int, spec: Spec) -> Streams:
        assert self.keeper is not None
        stdin, pipes = self.keeper.take(id_, Kind.STDIN), []
        for kind, staged in ((Kind.STDOUT, Kind.STAGED_OUT), (Kind.STDERR, Kind.STAGED_ERR)):
            fd = self.keeper.take(id_, kind)
            stage = -1 if spec.tty else self.keeper.take(id_, staged)
            pipes.append(ReceivePipe(fd, Stage(stage) if stage >= 0 else None) if fd >= 0 else None)
        return Streams.again(SendPipe(stdin) if stdin >= 0 else None, *pipes)

    def forget_strangers(self) -> None:
        """What is kept of containers that no record knows: they have ended, and their supervisor just before it had said so."""
        assert self.keeper is not None
        counts: dict[int, int] = {}
        for id_, _ in self.keeper.kept:
            if id_ not in self._held and id_ != PROJECT:
                counts[id_] = counts.get(id_, 0) + 1
        for key in [key for key in self.keeper.kept if key[0] in counts]:
            os.close(self.keeper.kept.pop(key))
        for id_, count in counts.items():
            self.keeper.drop(id_, count)


def _fds_of(container: Container, streams: Streams) -> dict[Kind, int]:
    """What the next supervisor needs of it; a terminal comes later."""
    fds = {Kind.EVENTS: container.event_socket}
    if streams.stdin is not None:
        fds[Kind.STDIN] = streams.stdin.fileno()
    if container.notify is not None:
        fds[Kind.NOTIFY] = container.notify.fileno()
    if container.notification is not None:
        fds[Kind.NOTIFICATION] = container.notification.fileno()
    if container.terminal_stage is not None:
        return {**fds, Kind.STAGED_OUT: container.terminal_stage.fd}
    outputs = ((streams.stdout, Kind.STDOUT, Kind.STAGED_OUT), (streams.stderr, Kind.STDERR, Kind.STAGED_ERR))
    for pipe, kind, staged in outputs:
        if pipe is not None:
            fds[kind] = pipe.fileno()
        if pipe is not None and pipe.stage is not None:
            fds[staged] = pipe.stage.fd
    return fds


def _record(container: Container, parked: bool) -> dict[str, Any]:
    ids = container.ids
    return {
        "id": container.id,
        **({"parked": True} if parked else {}),
        "spec": stored.to_json(container.spec),
        "ids": None
        if ids is None
        else {"uids": ids.map.uids, "gids": ids.map.gids, "slot": (ids.slot.uid, ids.slot.gid) if ids.slot else None},
    }


def _ids(record: Any, leases: Leases) -> Ids | None:
    if record is None:
        return None
    uids, gids = (tuple((first, outside, count) for first, outside, count in record[kind]) for kind in ("uids", "gids"))
    return Ids(IdMap(uids, gids), -1, leases.restore(*record["slot"]) if record["slot"] else None)


def _start_time(pid: int) -> int | None:
    try:
        return start_time(pid)
    except OSError:  # it has ended already
        return None
