"""Containers on their way: from a spec to the request that the launcher gets, and from what it says to their end.

What a launch needs is found out first, which may wait; from the choice of its name on nothing is waited for, so that what was
found still holds when the request is sent.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tinyvisor.errors import HostError, LauncherDied, LaunchError, NotLaunched, SpecError, TinyvisorError
from tinyvisor.runtime import container as containers
from tinyvisor.runtime import launcher as wire
from tinyvisor.runtime import plan as planning
from tinyvisor.runtime.asked import check_untraced
from tinyvisor.runtime.container import Container
from tinyvisor.runtime.filters import filter_for
from tinyvisor.runtime.identity import Identity
from tinyvisor.runtime.idmap import IdMap
from tinyvisor.runtime.launcher import Section, shielded
from tinyvisor.runtime.launcherworld import LauncherWorld
from tinyvisor.runtime.leases import Ids
from tinyvisor.runtime.live import Live
from tinyvisor.runtime.plan import made_fds
from tinyvisor.runtime.provisions import Provisions
from tinyvisor.runtime.rootfs import HostView
from tinyvisor.runtime.shape import Shape
from tinyvisor.runtime.shapes import Draft, Shapes
from tinyvisor.runtime.shortage import as_launch_error
from tinyvisor.runtime.stdio import Streams, own_pipes
from tinyvisor.runtime.trees import Trees, identity_in
from tinyvisor.runtime.usage import read_counters
from tinyvisor.runtime.userns import UserNamespaces
from tinyvisor.runtime.verdict import limits_enforced
from tinyvisor.runtime.workspace import Workspace
from tinyvisor.runtime.workspaces import Workspaces
from tinyvisor.spec import DEFAULT_NAME, Spec

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a container is launched, besides what it is.

    Attributes:
        terminal: rows and columns.
        events: with a socket of its own, over which it can be signalled and says when it has started.
        workspace: mounted on the working directory.
        park: it waits for its command.
        early, watch: as in `plan.plan`.
        live: holds it for the next runtime.
        later: the streams that it will be given with its command; the caller's to close.
    """

    terminal: tuple[int, int] = (24, 80)
    events: bool = False
    workspace: Workspace | None = None
    park: bool = False
    early: bool = False
    watch: planning.Watch | None = None
    live: Live | None = None
    later: Streams | None = None


class Launches:
    """Launches containers, and knows those that there are.

    Attributes:
        live: what is kept for the next runtime; None where nothing is.
        null: an fd of /dev/null.
        containers: those that the launcher has, exec'ed processes included, by its number for them; not those that have ended
            by their init's word, behind which it still cleans up.
        names: the containers among them, and of those.
        is_alone: whether there is one run and no other.
        world, trees, userns, shapes, workspaces: what launches are made of.
        give_way: ends what was made unasked, for its ids; false where there is nothing.
    """

    def __init__(
        self,
        host: containers.Host,
        null: int,
        live: Live | None,
        world: LauncherWorld,
        trees: Trees,
        userns: UserNamespaces,
        shapes: Shapes,
    ) -> None:
        """`host`: whom the containers ask."""
        self.null = null
        self.live = live
        self.world = world
        self.trees = trees
        self.userns = userns
        self.shapes = shapes
        self.workspaces: Workspaces = Workspaces(world)
        self.containers: dict[int, Container] = {}
        self.names: dict[str, Container] = {}
        self._cleaned_up_later: dict[int, Container] = {}
        self.give_way: Callable[[], Awaitable[bool]] = _nobody
        self.is_alone: Callable[[], bool] = lambda: False
        self._host = host
        self._parked: dict[int, tuple[Shape, Draft]] = {}  # what those made ahead are given their command with

    # ---- what a launch needs, and the launch ----

    async def lease(self, spec: Spec) -> Ids | None:
        """As `UserNamespaces.lease`."""
        for make_room in (self.wait_cleaned_up, self.give_way):
            try:
                return await self.userns.lease(spec)
            except HostError:
                if not await make_room() and make_room == self.give_way:
                    raise
        return await self.userns.lease(spec)

    def give_back(self, ids: Ids | None) -> None:
        """As `UserNamespaces.give_back`."""
        self.userns.give_back(ids)

    async def owner(self, spec: Spec) -> tuple[int, int]:
        """The workload's uid and gid, inside."""
        return await self.trees.owner(spec)

    async def launch(self, spec: Spec, streams: Streams, manner: Manner, ids: Ids | None = None) -> Container:
        """Sends a launch on its way. The streams are the container's to close from here on, whatever comes, and the ids its to
        give back.

        Args:
            ids: what `lease` gave; None: it is asked for them.
        """
        try:
            ids = ids or await self.lease(spec)
            with as_launch_error(spec):
                view = await self.world.host_view() if spec.rootfs is None else None
                spec = await self.trees.with_directory(spec)
            # No await from here on: a name that is free now is ours below.
            self.world.check_open()
            container = self._send_launch(spec, view, streams, manner, ids)
        except BaseException:
            self.userns.give_back(ids)
            streams.close_given()
            streams.close()
            raise
        container.call_when_gone(functools.partial(self.userns.give_back, ids))
        container.close_given()
        self.add(container)
        return container

    async def end(self, container: Container) -> None:
        """Kills it unless it is gone, waits for its end, gives back its fds."""
        try:
            if container.id in self.containers:
                container.kill()
                await shielded(container.wait_gone)
        finally:
            container.close()
            if self.live is not None:
                self.live.drop(container)

    # ---- from its start to its end ----

    def add(self, container: Container) -> None:
        """It is the launcher's from here on."""
        self.containers[container.id] = self.names[container.name] = container

    async def wait_started(self, container: Container) -> None:
        """Or ends it."""
        try:
            await container.wait_started()
        except BaseException:
            if self.live is not None:
                self.live.forget(container)
            await self.end(container)
            raise

    async def leave(self, container: Container, *, failed: bool) -> None:
        """Ends it, unless it is to outlive what has failed: what goes wrong with us is not its fault."""
        if failed and self.live is not None and self.world.dead is None and container.id in self.containers:
            container.close()
        else:
            await self.end(container)

    def kill(self, container: Container) -> None:
        """SIGKILL for everything in it."""
        with contextlib.suppress(LauncherDied):
            self.world.launcher.send(wire.encode_request(wire.KILL, container.id, pid=container.pid))

    def heard(self, event: wire.Event, fds: list[int]) -> None:
        """What the launcher says."""
        if event.type == wire.PREPARED and self.world.heard(event, fds):
            return
        for fd in fds:  # who asked was cancelled
            os.close(fd)
        if event.type == wire.PREPARED:
            return
        if event.id in self._cleaned_up_later:
            self._clean_up_is_over(self._cleaned_up_later.pop(event.id), wire.decode_gone(event.data).cleanup_error)
            return
        container = self.containers.get(event.id)
        if event.type == wire.REFUSED and self.world.heard(event, []):
            return
        if container is not None:
            self.forget(container)
            if event.type == wire.GONE:
                gone = wire.decode_gone(event.data)
                container.finish(gone, read_counters(gone.counters, container.readback))
            elif event.a == errno.ESRCH:
                container.refuse(NotLaunched(container.name))
            else:
                container.refuse(LaunchError(container.name, "clone the container's init", event.a))
            if self.live is not None:
                self.live.note_end(container)

    def heard_end(self, container: Container, event: wire.Event) -> None:
        """Its init says that nothing else of it is left. Its name and ids are its own until the launcher has cleaned up."""
        gone = wire.decode_gone(event.data)
        container.conclude(gone, read_counters(gone.counters, container.readback))
        self._cleaned_up_later[container.id] = self.containers.pop(container.id)

    def _clean_up_is_over(self, container: Container, error: int) -> None:
        if error:  # its run is over
            _log.warning("%s: its cgroup could not be removed: %s", container.name, os.strerror(error))
        self._free_name(container)
        container.release()

    async def wait_cleaned_up(self) -> bool:
        """Behind all that has ended so far; whether there was any. Cancellation: shielded; it is on its way."""
        ended = tuple(self._cleaned_up_later.values())
        for container in ended:
            self.kill(container)  # were its init's word not true, it would be now
            await shielded(container.wait_gone)
        return bool(ended)

    def forget(self, container: Container) -> None:
        """The launcher has it no more."""
        del self.containers[container.id]
        self._parked.pop(container.id, None)
        self._free_name(container)

    def _free_name(self, container: Container) -> None:
        if self.names.get(container.name) is container:  # not an exec in it
            del self.names[container.name]

    def lose_all(self) -> None:
        """No more is heard of them."""
        for container in tuple(self.containers.values()):
            self.forget(container)
            container.lose()
        while self._cleaned_up_later:
            self._clean_up_is_over(self._cleaned_up_later.popitem()[1], 0)

    # ---- made ahead ----

    def hand_over(self, container: Container, spec: Spec, streams: Streams) -> bool:
        """Gives one that was parked its command; False where it is gone."""
        go = self.prepared_hand_over(container, spec, streams)
        return go is not None and go()

    def hand_over_run(self, container: Container, spec: Spec, streams: Streams) -> bool:
        """As `hand_over`, for a run, of which nobody has to know that it has started.

        Its init's word for its end is quicker than the launcher's, and one more wait for Python: that is worth it for a run by
        itself. From who may trace its init it would be the workload's word.
        """
        tells = self.is_alone() and "SYS_PTRACE" not in spec.capabilities
        go = self.prepared_hand_over(container, spec, streams, tells=tells)
        return go is not None and go()

    def prepared_hand_over(
        self, container: Container, spec: Spec, streams: Streams, *, tells: bool = False
    ) -> Callable[[], bool] | None:
        """What gives it its command; False then, or None now: it is gone. `tells`: its init says that it has ended, and not that
        it has started."""
        parked = self._parked.pop(container.id, None)
        if parked is None:
            return None
        shape, draft = parked
        container.describe_with(functools.partial(self.shapes.describe, draft, spec))
        exec_ = wire.encode_step(planning.exec_step(spec, draft.identity, container.name))
        sections = (wire.EMPTY, wire.EMPTY, shape.with_exec(exec_, parked=True))
        self.own_pipes(streams, container.ids, draft.identity)
        request = wire.encode_request(wire.RUN, container.id, sections, fds=3, flags=wire.TELL if tells else 0)
        return functools.partial(container.unpark, spec, request, streams, tells=tells)

    # ---- the request ----

    def _send_launch(self, spec: Spec, view: HostView | None, streams: Streams, manner: Manner, ids: Ids | None) -> Container:
        if manner.watch is None:
            check_untraced(spec)
        id_ = next(self.world.ids)
        name = self._free_name_for(spec, id_)
        workspace, park, early = manner.workspace, manner.park, manner.early
        template = self._template(workspace)
        other = self._provider(spec)
        seccomp = filter_for(spec)
        with as_launch_error(spec), contextlib.ExitStack() as stack:
            if template and ids is not None:
                self.userns.check_tmpfs("working_directory")
            trees = [self.trees.open(spec, tree, stack, ids) for tree in self.trees.of(spec)]
            identity = identity_in(spec, trees[0] if spec.rootfs else None)
            provisions = None
            if made_fds(spec):
                provisions = Provisions(spec, ids, identity)
                trees += provisions.fds
                kept = stack.enter_context(contextlib.ExitStack())
                kept.callback(provisions.close)
                kept.callback(provisions.close_given)
            if workspace is not None and not template:
                trees.append(workspace.fd)
            if ids is not None:
                trees.append(ids.fd)
            draft = Draft(
                spec, name, view, identity, seccomp, manner.terminal, template, ids, self.userns.idmapped, early, manner.watch
            )
            shape = self.shapes.of(draft)
            first = _encoded_ids(ids.map, identity) if ids else wire.EMPTY
            describe = functools.partial(self.shapes.describe, draft, spec)
            container = self.make(spec, name, id_, streams, shape.readback, describe, manner.events)
            try:
                container.ids = ids
                container.workspace = None if workspace is None else spec.working_dir or "/"
                if provisions is not None:
                    kept.pop_all()
                    container.provide(provisions)
                self.own_pipes(streams, ids, identity)
                if park:
                    self._parked[id_] = shape, draft
                    workload = shape.parked
                else:
                    workload = shape.with_exec(wire.encode_step(planning.exec_step(spec, identity, name)))
                init = first + shape.init + shape.counters if park and early else first + shape.init
                sections = (wire.EMPTY, init, workload, shape.cleanup)
                if manner.live is not None:
                    manner.live.hold(container, manner.later or streams, parked=park)
            except BaseException:
                self._parked.pop(id_, None)
                container.abandon()
                raise
            # From here on that is done there.
            self.send(container, sections, trees, other, wire.PARK if park else 0)
        return container

    def _free_name_for(self, spec: Spec, id_: int) -> str:
        name = f"{DEFAULT_NAME}-{id_}" if spec.name == DEFAULT_NAME else spec.name
        if name in self.names:
            raise SpecError("name", f'a container named "{name}" is running already')
        return name

    def _template(self, workspace: Workspace | None) -> str | None:
        """What is mounted of a working directory that several use in turn."""
        template = workspace.template if workspace is not None else None
        if template and workspace not in self.workspaces.open_ones:
            raise SpecError("working_directory", "has been left, or is another runtime's")
        return template

    def _provider(self, spec: Spec) -> Container | None:
        """The container whose network is joined."""
        if not spec.network_mode.startswith("service:"):
            return None
        name = spec.network_mode.removeprefix("service:")
        provider = self.names.get(name)
        if provider is None or not provider.pid:  # before that, its namespaces would still be the launcher's
            raise TinyvisorError(f'{spec.name}: network_mode: service "{name}" is not running')
        if provider.spec.in_host_network:
            raise SpecError("network_mode", f'"{name}" is in the host\'s network; use host')
        return provider

    def own_pipes(self, streams: Streams, ids: Ids | None, identity: Identity) -> None:
        """The workload can open its pipes again by their names in /proc."""
        given = set(streams.given) - {self.null}
        owner = (ids.map.uid(identity.uid), ids.map.gid(identity.gid)) if ids and given else (identity.uid, identity.gid)
        if given and owner != (0, 0):
            own_pipes(given, *owner)

    def make(
        self,
        spec: Spec,
        name: str,
        id_: int,
        streams: Streams,
        readback: tuple[tuple[int, str], ...],
        describe: Callable[[int, int], str],
        events: bool,
    ) -> Container:
        """The object, before its request is sent."""
        pair = None
        if events:
            pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            pair[0].setblocking(False)
        return Container(spec, name, id_, streams, self._host, describe, limits_enforced(spec), readback, pair)

    def make_again(self, spec: Spec, streams: Streams, pair: tuple[socket.socket, socket.socket] | None, id_: int) -> Container:
        """The object of a container that the supervisor before us has launched."""
        readback = self.shapes.limits(spec).readback()
        return Container(spec, spec.name, id_, streams, self._host, _describe_adopted, limits_enforced(spec), readback, pair)

    def send(
        self, container: Container, sections: tuple[Section, ...], trees: list[int], other: Container | None, flags: int
    ) -> None:
        """Sends the request; what can't be sent is abandoned.

        Args:
            trees: and other fds that it gets besides its streams.
            other: whose network it joins, or in which it is exec'ed.
        """
        fds = (container.init_end if container.init_end is not None else self.null, *container.given, *trees)
        try:
            request = wire.encode_request(
                wire.LAUNCH,
                container.id,
                sections,
                fds=len(fds),
                pid=other.pid if other else 0,
                other=other.id if other else 0,
                flags=flags,
            )
            self.world.launcher.send(request, fds)
        except BaseException as exc:
            self._parked.pop(container.id, None)
            container.abandon()
            if self.live is not None:
                self.live.drop(container)
            if isinstance(exc, ValueError):
                raise SpecError("command", str(exc)) from None
            raise


@functools.lru_cache(maxsize=256)
def _encoded_ids(map_: IdMap, identity: Identity) -> Section:
    """Ranges are used again."""
    return wire.encode([planning.ids_step(map_, identity)])


def _describe_adopted(section: int, step: int) -> str:
    """Of a launch that the supervisor before us began; its plan went with it."""
    return f"step {step} of its {wire.SECTIONS[section]}"


async def _nobody() -> bool:
    return False
