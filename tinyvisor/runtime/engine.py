"""The runtime: one launcher, the cgroups of one project, and the containers in them. Written on anyio alone."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import socket
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from tinyvisor.errors import (
    ContainerError,
    HostError,
    LauncherDied,
    LaunchError,
    NotLaunched,
    RunFailed,
    SpecError,
    TinyvisorError,
)
from tinyvisor.job import Job
from tinyvisor.places import cache_directory, privileged, project_files, run_directory, shared_files, shared_projects
from tinyvisor.runtime import launcher as wire
from tinyvisor.runtime import plan as planning
from tinyvisor.runtime import steps as s
from tinyvisor.runtime.beside import beside
from tinyvisor.runtime.cgroup import PARENT, CgroupTree, cpu_usage_file, limit_writes, remove_cgroup, settled, sweep
from tinyvisor.runtime.container import Container
from tinyvisor.runtime.filters import filter_for
from tinyvisor.runtime.host import Host, file_system, probe
from tinyvisor.runtime.identity import Identity, invoking_user, read_in_root, resolve
from tinyvisor.runtime.idmap import IDS, IdMap, Mapped, auto_map, keep_id_map, map_text
from tinyvisor.runtime.keeper import KeptLauncher, Kind
from tinyvisor.runtime.launcher import LauncherProcess, Section, shielded
from tinyvisor.runtime.leases import Ids, Leases, read_mapped, read_ranges
from tinyvisor.runtime.live import Live
from tinyvisor.runtime.oneshot import COLLECT_LIMIT, DeliverCancel, Input, Run
from tinyvisor.runtime.plan import made_fds
from tinyvisor.runtime.pool import Demand, Pool, WarmRuns
from tinyvisor.runtime.projectlock import ProjectLock, unclaimed
from tinyvisor.runtime.provisions import Provisions
from tinyvisor.runtime.results import Results, open_results
from tinyvisor.runtime.rootfs import GROUP, PASSWD, HostView, host_view, write_etc
from tinyvisor.runtime.seccomp import MACHINES, Filter, may_wait
from tinyvisor.runtime.shape import HOLE, MIN_PLACEHOLDER, PLACEHOLDER, Shape, shape_of
from tinyvisor.runtime.stdio import Stdio, Streams, own_pipes
from tinyvisor.runtime.steps import Step
from tinyvisor.runtime.syscalls import idmap, new_tmpfs, open_tree
from tinyvisor.runtime.thread import in_thread
from tinyvisor.runtime.tracer import (
    STRING_LIMIT,
    Events,
    NoSuchTask,
    ReadingRules,
    TracerProcess,
    check_installed,
    only_child,
    stopping_filter,
    this_machine,
    wanted_calls,
)
from tinyvisor.runtime.unpack import unpack
from tinyvisor.runtime.usage import Usage, read_stats, read_usage
from tinyvisor.runtime.warm import Warm
from tinyvisor.runtime.workspace import DEFAULT_DIRECTORY, Workspace
from tinyvisor.spec import DEFAULT_NAME, Limits, Spec, check_fields, check_name
from tinyvisor.state import Exit, Result, Stats
from tinyvisor.trace import Calls
from tinyvisor.units import parse_size

_runs = itertools.count()


@dataclass(frozen=True, slots=True)
class _Parked:
    """What a container made ahead is given its command with; `describe` puts (spec, section, step) of a failure in words."""

    shape: Shape
    identity: Identity
    describe: Callable[[Spec, int, int], str]


@contextlib.asynccontextmanager
async def open_runtime(*, name: str | None = None, warm: int | None = None, live: bool = False) -> AsyncIterator[Runtime]:
    """A runtime with a launcher of its own. Leaving it, in whatever way, kills every container in it.

    Args:
        name: the project's name, which its cgroups carry; only one runtime of a name can be open at a time. None makes
            one up.
        warm: so many containers are kept ready for `Runtime.run` and `Runtime.map`, once two runs in a row were alike but for
            command, environment, input and output; each is used once. None: one, while such runs come one after the other and
            have nothing of the host's in them (`rootfs`, `volumes`, `files`, a profile of their own); it is made beside a run,
            on another CPU, and ended where the next does not come within a second. 0: none.
        live: containers that were `start`ed outlive this process, however it ends, and so they do an exception that leaves the
            runtime. The next live runtime of that name has them (`Runtime.adoptable`). Root only; needs a `name`.

    Raises:
        HostError: this host can't run containers, with the cure.
        SpecError: a value that is none. Nothing was created.
        TinyvisorError: a runtime of that name is open elsewhere.
    Cancellation: leaves nothing behind.
    """
    if live and name is None:
        raise SpecError("name", "a live runtime needs one, by which the next finds what it has left")
    name = f"run-{os.getpid()}-{next(_runs)}" if name is None else name
    check_name("name", name)
    if warm is not None:
        _check_count("warm", warm, 0)
    runtime = Runtime(name, probe(), warm, live)
    error: BaseException | None = None
    try:
        runtime._open()
        async with anyio.create_task_group() as group:
            group.start_soon(runtime._serve)
            try:
                await runtime._prepare_first()
                async with beside() as tasks:
                    runtime._warm.open(tasks)
                    yield runtime
            except BaseException as exc:  # raised again below, where the task group can't wrap it
                error = exc
                runtime._leave_running()
            runtime._serving.cancel()  # last: who ends a container waits for what is heard there
    except anyio.get_cancelled_exc_class():
        if error is None:
            raise
    finally:
        await runtime._aclose()
    if error is not None:
        raise error


async def run(command: Spec | Sequence[str], **arguments: Any) -> Result:
    """`Runtime.run` with a runtime of its own, for a single run: opening one costs more than a run does.

    Args, Raises, Cancellation: as `Runtime.run` and `open_runtime`.
    """
    async with open_runtime() as runtime:
        return await runtime.run(command, **arguments)


class Runtime:
    """Starts containers. Made by `open_runtime` only.

    Attributes:
        name: the project's name.
        host: what this host offers.
        live: what is kept for the next one; None where nothing is.
    """

    def __init__(self, name: str, host: Host, warm: int | None = 0, live: bool = False) -> None:
        self.name = name
        self.host = host
        self.live: Live | None = None
        self._wants_live = live
        self._adoptable: dict[str, Container] = {}
        self._never_started: list[Container] = []
        self._detached = False
        self.null: int = -1
        self.containers: dict[int, Container] = {}
        # Above those of all supervisors before us in this boot.
        self._ids = itertools.count(time.monotonic_ns() if live else 1)
        self._names: dict[str, Container] = {}
        self._shapes: dict[tuple[Any, ...], Shape] = {}
        self._prepared: dict[int, _Reply] = {}
        self._parked: dict[int, _Parked] = {}
        self._working_directories: set[Workspace] = set()
        self._directories: list[int] = []  # their numbers that are free again
        self._directory_numbers = itertools.count()
        self._warm = Warm(0 if warm is None and live else warm, self._pool)
        self._view: HostView | None = None
        self._leases: Leases | None = None
        self._mapped: Mapped | None = None
        self._shared: dict[Hashable, Ids] = {}  # of containers that get files of the host's, in a user namespace
        self._around = planning.Around(host.nested, host.tty_group, host.groups_fixed, live, host.landlock)
        self._idmapped: frozenset[str] | None = None  # of the shared trees; None: not tried yet
        self._view_lock = anyio.Lock()
        self._dead: Exception | None = None
        self._left = False
        # Shielded: a cancelled program still waits for the end of its containers, and hears of it here.
        self._serving = anyio.CancelScope(shield=True)
        self._stack = contextlib.ExitStack()

    # ---- life ----

    def _open(self) -> None:
        if os.geteuid() != 0:
            raise HostError("containers need root, or a user namespace", "start the program by `tinyvisor unshare PROGRAM`")
        stack, locks = self._stack, run_directory()
        stack.enter_context(settled(self.host.layout))
        with _state_in(locks):
            self.live = Live(locks, self.name) if self._wants_live else None
        adopting = self.live is not None and self.live.adopted
        self._detached = adopting  # a failure to take them over leaves them as they are
        with _state_in(locks):
            fd = self.live.take(Kind.LOCK) if self.live is not None else -1
            self._lock = stack.enter_context(ProjectLock(locks, self.name, fd))
        _close_to_groups(self.name)
        sweep(self.host.layout, locks, mine=None if adopting else self.name, forget=functools.partial(_forget_remains, locks))
        _close_the_gone_to_groups(locks)
        self._tree = CgroupTree.open(self.host.layout, self.name)
        stack.callback(self._remove_tree)
        self.null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, self.null)
        self._mapped = read_mapped()
        with _state_in(locks):
            fd = self.live.take(Kind.LEASES) if self.live is not None else -1
            self._leases = Leases(locks, read_ranges(), fd)
        stack.callback(self._leases.close)
        stack.callback(self._close_shared)
        self._prepared[0] = _Reply()
        if self.live is None:
            self._launcher = LauncherProcess(self._on_event, nested=self.host.nested)
            return
        with _state_in(locks):
            keeper = self.live.keeper if adopting else self.live.start(self._lock.fd, self._leases.fd)
        assert keeper is not None
        self._launcher = KeptLauncher(keeper, self._on_event)
        if adopting:
            self._take_over(self.live)

    def _take_over(self, live: Live) -> None:
        """The containers of the supervisor before us."""
        assert self._leases is not None
        self._view = live.view

        def make(spec: Spec, streams: Streams, pair: tuple[socket.socket, socket.socket] | None, id_: int) -> Container:
            readback = self._limits(spec).readback()
            return Container(spec, spec.name, id_, streams, self, _describe_adopted, _enforced(spec), readback, pair)

        for name in live.recorded():
            container = live.adopt(name, self, self._leases, make)
            never_started = live.never_started(container)
            if never_started:
                self._never_started.append(container)
            else:
                self._adoptable[name] = container
            container.call_when_gone(functools.partial(self.give_back, container.ids))
            if container.gone:
                continue
            self.containers[container.id] = self._names[name] = container
            if not container.pid:
                self._launcher.send(wire.encode_request(wire.KILL, container.id, flags=wire.ASK))
            if never_started:
                self.kill(container)
        live.forget_strangers()
        self._end_unrecorded()
        self._detached = False

    def _end_unrecorded(self) -> None:
        """Runs of the supervisor before us, which nobody waits for any more and whose ids we are about to give to others."""
        for path in self._tree.paths:
            with os.scandir(path) as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            for name in names:
                if name not in self._adoptable and name not in self._names:
                    remove_cgroup(f"{path}/{name}")

    def _leave_running(self) -> None:
        """An exception leaves the runtime: what lives goes on."""
        self._detached = self._detached or (self.live is not None and self._dead is None)

    def _close_shared(self) -> None:
        for ids in self._shared.values():
            os.close(ids.fd)

    def _remove_tree(self) -> None:
        """The launcher has done it already, unless it was killed."""
        if self._detached:
            self._tree.close()
            self._lock.keep = True
        else:
            self._lock.keep = bool(self._tree.remove())

    async def _aclose(self) -> None:
        self._left = True
        try:
            if hasattr(self, "_launcher") and isinstance(self._launcher, KeptLauncher) and self._detached:
                self._launcher.detach()
            elif hasattr(self, "_launcher"):
                await self._launcher.aclose()
                if self.live is not None:
                    self.live.remove()
            elif self.live is not None:
                self.live.release()
        finally:
            for container in tuple(self.containers.values()):
                self._forget(container)
                container.lose()
            while self._adoptable:  # nobody has
                self._adoptable.popitem()[1].close()
            self._stack.close()

    async def _serve(self) -> None:
        try:
            with self._serving:
                await self._launcher.serve()
        except Exception as exc:  # not only LauncherDied: after a bug, too, nobody shall wait for what can't be heard
            self._dead = exc
            for container in tuple(self.containers.values()):
                self._forget(container)
                container.lose()
            for reply in self._prepared.values():
                reply.set(exc)
            if not isinstance(exc, LauncherDied):
                raise

    async def _prepare_first(self) -> None:
        """What every container needs: the fds of the cgroups, and the shared /dev."""
        if self.live is not None and self.live.adopted:
            await self._end_never_started(self.live)
            return
        await self._prepared[0].wait("leave the host's mounts")
        locks = os.open(run_directory(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        assert self._leases is not None
        fds = [*self._tree.fds, *self._tree.parent_fds, self._lock.fd, self._leases.fd, locks]
        parents, hierarchies = len(self._tree.fds), self._tree.layout.hierarchies
        last = s.KEPT | len(fds) - 1
        epilogue: list[Step] = [s.Remove(s.KEPT | parents + n, self.name, item.label) for n, item in enumerate(hierarchies)]
        epilogue += [
            s.Remove(s.KEPT | parents + n, f"../{PARENT}", item.label, patient=False) for n, item in enumerate(hierarchies)
        ]
        if self.live is None:  # else there is more to be swept, which is not the launcher's
            epilogue += [s.Remove(last, file, str(run_directory())) for file in project_files(self.name)]
            # Last, and only when the others are gone: what has a lock file, the next run sweeps.
            epilogue.append(s.Remove(last, f"{self.name}.lock", str(run_directory())))
        try:
            await self._prepare((), fds=fds, flags=wire.KEEP_FDS, epilogue=epilogue)
        finally:
            os.close(locks)
        for path, console in (("/t/dev", False), ("/t/dev-tty", True)):
            with contextlib.ExitStack() as stack:
                devices = [_open_device(name, stack) for name, _, _ in planning.DEVICES] if self.host.nested else []
                template = planning.dev_template(path, console=console, bound=self.host.nested)
                await self._prepare((s.Directory(path), *template), fds=devices)
        if self.live is not None:
            self.live.ready(self._launcher.pid)

    async def _end_never_started(self, live: Live) -> None:
        """Their names are free then."""
        while self._never_started:
            container = self._never_started[-1]
            await shielded(container.wait_gone)
            live.forget(container)
            container.close()
            live.drop(container)
            self._never_started.pop()

    async def _prepare(
        self, steps: Iterable[Step], *, fds: Iterable[int] = (), flags: int = 0, epilogue: Iterable[Step] = ()
    ) -> list[int]:
        """Has the launcher itself run steps, in its own world. Returns the fds that it answers with."""
        steps, fds, id_ = tuple(steps), tuple(fds), next(self._ids)
        reply = self._prepared[id_] = _Reply()
        sections = (wire.encode(steps), wire.EMPTY, wire.EMPTY, wire.encode(epilogue))
        try:
            self._launcher.send(wire.encode_request(wire.PREPARE, id_, sections, fds=len(fds), flags=flags), fds)
            await reply.wait("prepare the launcher", steps)
            return reply.take_fds()
        finally:
            del self._prepared[id_]
            reply.close()

    async def _prepared_view(self) -> HostView:
        """The host view's trees in the launcher's world: made once, when the first container needs them."""
        if self._view is not None:
            return self._view
        async with self._view_lock:
            if self._view is None:
                view = host_view()
                with contextlib.ExitStack() as stack:
                    etc = new_tmpfs(size=16 << 20, inodes=8192)
                    stack.callback(os.close, etc)
                    await in_thread(write_etc, Path(f"/proc/self/fd/{etc}"))
                    trees = [etc]
                    for path in view.binds:
                        trees.append(open_tree(path, recursive=True, read_only=True))
                        stack.callback(os.close, trees[-1])
                    targets = ("/etc", *view.binds)
                    binds = [s.Bind(slot, f"/t{target}", 0, target) for slot, target in enumerate(targets)]
                    with anyio.CancelScope(shield=True):  # done once or not at all: the mounts can't be taken back
                        await self._prepare(binds, fds=trees)
                self._view = view
                if self.live is not None:
                    self.live.set_view(view)
            return self._view

    # ---- ids ----

    async def lease(self, spec: Spec) -> Ids | None:
        """Ids of the host for one container, to be given back; None where they are the host's own.

        Raises:
            HostError: none are left, or this host has no user namespaces.
            LaunchError: no file descriptor is left for them.
            SpecError: there is no user to keep.
        """
        if spec.userns == "host":
            return None
        assert self._leases is not None
        self._check_open()
        if not self.host.user_namespaces:
            raise HostError(
                "user namespaces are not allowed here (user.max_user_namespaces)",
                'sysctl user.max_user_namespaces=100000, or use "userns_mode: host"',
            )
        kept = invoking_user() if spec.userns == "keep-id" else None
        if self._mapped is not None and self._shares_ids(spec):
            return await self._shared_ids(self._mapped, kept, spec.name)
        try:
            slot = self._leases.take()
        except HostError:
            if not await self._warm.give_way():
                raise
            slot = self._leases.take()
        try:
            # Where there are few, its user's are among them. Only the host view, whose names we know, has few.
            who = self._identity(spec, None) if self._leases.size < IDS else planning.ROOT_USER
            ids = slot.maps.get((kept, who))
            if ids is None:
                map_ = (
                    keep_id_map(slot.uid, slot.gid, *kept)
                    if kept
                    else auto_map(slot.uid, slot.gid, self._leases.size, [who.uid], [who.gid, *who.groups])
                )
                slot.forget_maps(but=7)
                ids = slot.maps[kept, who] = Ids(map_, await self._user_namespace(map_, spec.name), slot)
            if self._idmapped is None:
                self._idmapped = self._try_idmaps(ids.fd)
            return ids
        except BaseException:
            self._leases.give_back(slot)
            raise

    def _shares_ids(self, spec: Spec) -> bool:
        """Whether it gets files whose owners can't be mapped, or there are no ids to separate containers by."""
        assert self._mapped is not None
        return bool(spec.rootfs or spec.volumes) or spec.userns == "keep-id" or not len(self._mapped.ranges())

    async def _shared_ids(self, mapped: Mapped, kept: tuple[int, int] | None, name: str) -> Ids:
        if kept not in self._shared:
            map_ = mapped.shared_map(kept)
            fd = await self._user_namespace(map_, name)
            if kept in self._shared:  # meanwhile, by another
                os.close(fd)
            else:
                self._shared[kept] = Ids(map_, fd, None)
        if self._idmapped is None:
            self._idmapped = self._try_idmaps(self._shared[kept].fd)
        return self._shared[kept]

    def give_back(self, ids: Ids | None) -> None:
        """No process of the container's is left, or there never was one."""
        if ids is not None and ids.slot is not None and self._leases is not None:
            self._leases.give_back(ids.slot)

    async def _user_namespace(self, map_: IdMap, name: str) -> int:
        projects = "" if self.host.nested else "0 0 1"  # nested, nobody enters it, and our own may have no projects to map
        step = s.IdMap(map_.uid(0), map_text(map_.uids), map_text(map_.gids), projects)
        fds = await self._prepare([step])
        if not fds:  # the kernel drops what we have no number for
            raise LaunchError(name, step.describe(), errno.EMFILE)
        return fds[0]

    def _try_idmaps(self, userns: int) -> frozenset[str]:
        """Which of the trees that containers share can be idmapped. They are read-only, and can be used all the same."""
        binds = [] if self.host.nested else host_view().binds  # nobody can: mount_setattr(2), EPERM
        found = [path for path in binds if _can_be_idmapped(open_tree(path, recursive=True, read_only=True), userns)]
        if _can_be_idmapped(new_tmpfs(size=1 << 12, inodes=1), userns):
            found += ["/etc"] if self.host.nested else ["/etc", "/dev"]  # nested, the devices are the host's
        return frozenset(found)

    # ---- containers ----

    def start(
        self,
        command: Spec | Sequence[str],
        *,
        limits: Limits | None = None,
        stdin: Stdio = None,
        stdout: Stdio = None,
        stderr: Stdio = None,
        terminal: tuple[int, int] = (24, 80),
        before_exec: Callable[[], Awaitable[object]] | None = None,
        **changes: Any,
    ) -> AbstractAsyncContextManager[Container]:
        """A container as a scope: entered once the workload has been exec'ed, left when everything in it is gone.

        Args:
            command: a `Spec`, or a program and its arguments.
            limits, changes: as in `run`.
            stdin, stdout, stderr: None is /dev/null; `PIPE`; an fd or file that the container gets directly; for
                stderr `STDOUT`, too. Not used with ``spec.tty``.
            terminal: rows and columns of the pty.
            before_exec: called and waited for when all is there but the workload, which is exec'ed then; what it raises, the
                launch ends by. Not with ``notification_fd``.

        Raises:
            LaunchError: a step failed; nothing is left of the container.
            NotLaunched: it was killed while it waited for `before_exec`.
            HostError: this host can't enforce a limit that was asked for. Nothing was created.
            SpecError: a name is in use, or a user or a path is unknown. Nothing was created.
        Cancellation: kills everything in the container and waits for it to be gone.
        """
        spec = self._spec(command, limits, changes)
        return _Scope(self, functools.partial(self._start, spec, stdin, stdout, stderr, terminal, before_exec))

    async def _start(
        self,
        spec: Spec,
        stdin: Stdio,
        stdout: Stdio,
        stderr: Stdio,
        terminal: tuple[int, int],
        before_exec: Callable[[], Awaitable[object]] | None,
    ) -> Container:
        if spec.output_limit is not None:
            raise SpecError("output_limit", "start hands out the pipes themselves; count what you read, or use run")
        if self.live is not None and spec.name == DEFAULT_NAME:
            raise SpecError("name", "a container that outlives us needs one")
        with _as_launch_error(spec):
            streams = Streams(stdin, stdout, stderr, self.null, staged=self.live is not None)
        if before_exec is None:
            return await self.launch(spec, streams, terminal=terminal, events=True, live=self.live)
        return await self._launch_ahead(spec, streams, terminal, before_exec)

    async def _launch_ahead(
        self, spec: Spec, streams: Streams, terminal: tuple[int, int], before_exec: Callable[[], Awaitable[object]]
    ) -> Container:
        """A launch up to the exec, which is on its way when this returns."""
        container = None
        try:
            if spec.notification_fd is not None:
                raise SpecError("notification_fd", "can't be had by a container that is made ahead")
            with _as_launch_error(spec):
                waiting = Streams(None, None, None, self.null)
            container = await self.launch(spec, waiting, terminal=terminal, events=True, park=True, live=self.live, later=streams)
            await container.wait_parked()
            go = self._prepared_hand_over(container, spec, streams)
            await before_exec()
            if go is None or not go():
                raise NotLaunched(spec.name)
        except BaseException:
            try:
                if container is not None:
                    if self.live is not None:
                        self.live.forget(container)
                    await self.end(container)
            finally:
                streams.close_given()
                streams.close()
            raise
        return container

    @property
    def adoptable(self) -> tuple[str, ...]:
        """Names of containers that the runtime before this one has left, until they are adopted."""
        return tuple(self._adoptable)

    def adopt(self, name: str) -> AbstractAsyncContextManager[Container]:
        """One of `adoptable` as the scope that `start` gives. It runs, or has ended meanwhile; its output is what nobody has
        read before.

        Raises:
            SpecError: none of that name was left, or it has been adopted already.
            NotLaunched: it never came to be.
            LaunchError: a step failed.
        Cancellation: as `start`.
        """
        return _Scope(self, functools.partial(self._adopt, name))

    async def _adopt(self, name: str) -> Container:
        if name not in self._adoptable:
            raise SpecError("name", f'no container "{name}" was left to be adopted')
        return self._adoptable.pop(name)

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
        if failed and self.live is not None and self._dead is None and container.id in self.containers:
            container.close()
        else:
            await self.end(container)

    @contextlib.asynccontextmanager
    async def trace(
        self,
        command: Spec | Sequence[str],
        *,
        filter: str = "all",
        string_limit: int = STRING_LIMIT,
        seccomp_bpf: bool = False,
        summary: bool = False,
        interleaved: bool = False,
        limits: Limits | None = None,
        stdin: Stdio = None,
        stdout: Stdio = None,
        stderr: Stdio = None,
        terminal: tuple[int, int] = (24, 80),
        **changes: Any,
    ) -> AsyncIterator[tuple[Container, Events]]:
        """`start` with a tracer, a process of its own, that has the workload from its first instruction on, and all it starts.

        ``async with rt.trace(["ls"], filter="%file") as (container, events): async for event in events: ...``. A traced
        program can't trace others.

        Args:
            filter: which calls are reported, in strace's words: ``"%file,%network,execve"``, ``"!futex"``; see
                `tinyvisor.trace.parse_calls`.
            string_limit: bytes that are shown of strings and data, 0 or more; paths are always whole.
            seccomp_bpf: stop the program at nothing but those calls, also where its profile refuses some of them, which are
                then not seen. Without it, that is done where it makes no difference.
            summary: only count: the events are a `tinyvisor.trace.Counted` for each kind of call, at the end. Costs a fraction.
            interleaved: a call that another thread's event comes in the way of is told of twice, as in strace's output:
                as `tinyvisor.trace.Unfinished`, and when it returns.

        Raises:
            HostError: python-ptrace is not installed, or as `start`.
            SpecError: `filter` makes no sense; the capability SYS_PTRACE; or as `start`. Nothing was created.
            TinyvisorError: the workload can't be traced.
            LaunchError: as `start`.
        Cancellation: kills everything in the container and waits for it to be gone. So does leaving, and the tracer's death.
        """
        spec = self._spec(command, limits, changes)
        _check_count("string_limit", string_limit, 0)
        calls = wanted_calls(filter)
        if "SYS_PTRACE" in spec.capabilities:
            raise SpecError("cap_add", "who is traced can't trace: SYS_PTRACE and a tracer exclude each other")
        self._check_made_ahead(spec)
        check_installed()
        rules = ReadingRules.of(spec)
        if rules.told and summary:
            raise SpecError("on_syscall", "what is read is not read where calls are only counted: leave out one of both")
        watch = self._watch(spec, calls, rules, seccomp_bpf)
        with _as_launch_error(spec):
            streams = Streams(stdin, stdout, stderr, self.null)
            waiting = Streams(None, None, None, self.null)
        container = tracer = None
        try:
            container = await self.launch(spec, waiting, terminal=terminal, events=True, park=True, watch=watch)
            await container.wait_parked()
            with _as_launch_error(spec):
                tracer = TracerProcess(
                    calls, pids=[only_child(container.pid)], launching=True, filtered=watch.stops is not None, limit=string_limit,
                    counting=summary, interleaved=interleaved and not summary, rules=rules,
                )  # fmt: skip
            try:
                await tracer.wait_ready()
            except NoSuchTask:
                await container.wait()  # its start has failed at the last moment: that says why
                raise
            if not self._hand_over(container, spec, streams):
                raise ContainerError(container.name, "was killed while it was starting")
            await container.wait_started()
            yield container, Events(tracer)
        finally:
            streams.close_given()
            if container is None:
                streams.close()
            else:
                try:
                    if tracer is not None:
                        await tracer.aclose()  # first: who is dead stays a zombie until its tracer has looked
                finally:
                    await self.end(container)
                    streams.close()

    def _watch(self, spec: Spec, calls: Calls, rules: ReadingRules, seccomp_bpf: bool) -> planning.Watch:
        machine = this_machine()
        if rules.names and not calls.everything:
            calls = Calls(rules.names.union(calls.among(machine.numbers)), inverted=False)
        if calls.everything or not spec.no_new_privs or os.uname().machine != "x86_64":
            return planning.Watch()
        profile = filter_for(spec)
        if profile is not None and profile.asks_tracer:  # what it leaves to a tracer is ENOSYS: we are another one
            return planning.Watch()
        if not seccomp_bpf and profile is not None and not profile.passes.issuperset(calls.among(machine.numbers)):
            return planning.Watch()
        return planning.Watch(stopping_filter(calls, machine))

    async def run_container(
        self, command: Spec | Sequence[str], *, task_status: TaskStatus[Container] = TASK_STATUS_IGNORED, **arguments: Any
    ) -> Exit:
        """`start` as a task, for ``await nursery.start(rt.run_container, spec)``, which gives the `Container`; returns how it
        ended. Args, Raises, Cancellation: as `start`."""
        async with self.start(command, **arguments) as container:
            task_status.started(container)
            return await container.wait()

    async def run(
        self,
        command: Spec | Sequence[str],
        *,
        limits: Limits | None = None,
        check: bool = False,
        capture_stdout: bool = False,
        capture_stderr: bool = False,
        stdin: Input = None,
        stdout: Stdio = None,
        stderr: Stdio = None,
        files: Mapping[str, bytes | Path] | None = None,
        collect: Sequence[str] = (),
        collect_limit: int = COLLECT_LIMIT,
        working_directory: Workspace | None = None,
        deliver_cancel: DeliverCancel | None = None,
        **changes: Any,
    ) -> Result:
        """Runs a container from start to end. Arguments that `trio.run_process` has mean the same here.

        Args:
            command: a `Spec`, or a program and its arguments.
            limits: over the spec's own.
            check: raise `RunFailed` unless the status is ``ok``.
            capture_stdout, capture_stderr: keep the output, ``output_limit`` bytes of each (default 64 MiB); a container that
                writes more is killed, its status is ``output_limit``.
            stdin: all of it as bytes (or bytearray, memoryview), a file of the host (`Path`), a byte stream; an fd or file that
                the container gets directly; None is /dev/null.
            stdout, stderr: an fd or file that the container gets directly, with no copying in between; ``stderr=STDOUT``
                merges it into stdout. None, where it is not captured, is /dev/null.
            files: put into the working directory before the start: contents or a file of the host, by relative path.
            collect: relative paths and patterns (``*``, ``?``, ``[..]``, ``**``) of regular files to fetch from the working
                directory afterwards, `collect_limit` bytes in all. Links, FIFOs, devices are named in ``uncollected``.
            working_directory: one of `working_directory`, which several runs share; without it `files` and `collect` get one
                of their own. It is mounted on ``spec.working_dir``, default ``/work``.
            deliver_cancel: called with the container when the run is cancelled, and waited for until the container has
                ended, instead of a kill at once; e.g. ``lambda container: container.stop(grace=2)``.
            changes: any field of `Spec`.

        Raises:
            RunFailed: with `check`; carries the result.
            LaunchError, HostError, SpecError: as `start`.
        Cancellation: kills everything in the container and waits for it to be gone.

        When it returns, no process of the container's is left but its PID 1, and no cgroup; that one and its namespaces may
        take some hundred microseconds more, beside what comes next. Leaving the runtime waits for them.
        """
        spec = self._spec(command, limits, changes)
        if files or collect:
            Job(spec=spec, files=files or {}, collect=collect)  # type: ignore[arg-type] # for its checks
        one = Run(
            spec=spec, stdin=stdin, stdout=stdout, stderr=stderr, capture_stdout=capture_stdout, capture_stderr=capture_stderr,
            files=files or {}, collect=tuple(collect), collect_limit=collect_limit, directory=working_directory,
            deliver_cancel=deliver_cancel,
        )  # fmt: skip
        if deliver_cancel is not None and not callable(deliver_cancel):
            raise SpecError("deliver_cancel", f"expected an async function, got {deliver_cancel!r:.100}")
        if working_directory is not None and working_directory not in self._working_directories:
            raise SpecError("working_directory", "has been left, or is another runtime's")
        result = await self._run(one)
        if check and result.status != "ok":
            raise RunFailed(spec.name, result)
        return result

    def map(
        self,
        jobs: Iterable[Spec | Job] | AsyncIterable[Spec | Job],
        *,
        concurrency: int | None = None,
        capture_stdout: bool = False,
        capture_stderr: bool = False,
        cluster: Any = None,
    ) -> AbstractAsyncContextManager[Results[Result]]:
        """Runs many jobs, each in a fresh container, as a scope: ``async with rt.map(jobs) as results: async for r in results``.

        The source is asked for the next job when a slot is free, and at most `concurrency` results wait to be taken: memory is
        bounded whatever the number of jobs. Results come as jobs end; ``r.job`` is the very object that was given.

        Args:
            jobs: may be endless, may be async.
            concurrency: how many run at once, > 0; default twice the number of CPUs. With a cluster it is for each worker, and
                by default its number of threads.
            capture_stdout, capture_stderr: as in `run`.
            cluster: a connected `distributed.Client`: the jobs run on its workers and not here, as `cluster.client.Cluster.map`
                says.

        Raises:
            HostError, LauncherDied, and what the source raises: out of the iteration, when nothing runs any more. A job that
                could not be started (`LaunchError`, `SpecError`) is a result with the status ``sandbox_error``.
        Cancellation, and leaving the scope: kills what runs.
        """
        if concurrency is not None:
            _check_count("concurrency", concurrency, 1)
        if not isinstance(jobs, Iterable | AsyncIterable):
            raise SpecError("jobs", f"expected an iterable of Spec or Job objects, sync or async, got {jobs!r:.100}")
        if cluster is not None:
            from tinyvisor.cluster.client import Cluster

            workers = Cluster(cluster, slots=None if concurrency is None else str(concurrency))
            return workers.map(jobs, capture_stdout=capture_stdout, capture_stderr=capture_stderr)
        concurrency = 2 * len(os.sched_getaffinity(0)) if concurrency is None else concurrency

        async def run(item: Spec | Job) -> Result:
            return await self.run_job(item, capture_stdout=capture_stdout, capture_stderr=capture_stderr)

        return open_results(run, jobs, concurrency)

    async def run_job(self, item: Spec | Job, *, capture_stdout: bool = False, capture_stderr: bool = False) -> Result:
        """What `map` does with each of its jobs.

        Raises:
            HostError, LauncherDied: as `map`; nothing of the job has run, or is left.
            SpecError: it is no job.
        Cancellation: as `run`.
        """
        job = item if isinstance(item, Job) else None
        spec = job.spec if job else item
        if not isinstance(spec, Spec):
            raise SpecError("jobs", f"expected Spec or Job objects, got {item!r}")
        one = Run(spec=spec, capture_stdout=capture_stdout, capture_stderr=capture_stderr, job=item)
        if job is not None:
            one.id, one.stdin, one.files, one.collect = job.id, job.stdin, job.files, job.collect
        try:
            return await self._run(one)
        except (ContainerError, SpecError) as exc:
            return Result(status="sandbox_error", reason=str(exc), id=one.id, job=item)

    @contextlib.asynccontextmanager
    async def working_directory(
        self, *, size: int | str = 256 << 20, inodes: int = 65536, mode: int = 0o755
    ) -> AsyncIterator[Workspace]:
        """An empty directory that several runs use in turn (or at once): compile in it, then run what came of it many times.

        Args:
            size: bytes or ``"64m"``; it counts against no container's ``mem_limit`` once its writer has ended.
            inodes: files and directories at most.
            mode: of the directory, which belongs to root.

        Raises:
            SpecError: a value that is none. Nothing was created.
            LauncherDied: there is nobody to make it.
        """
        _check_count("inodes", inodes, 1)
        _check_count("mode", mode, 0)
        try:
            size = parse_size(size)
        except ValueError as exc:
            raise SpecError("size", str(exc)) from None
        _check_count("size", size, 1)  # 0 is no limit, to a tmpfs
        self._check_open()
        number = self._directories.pop() if self._directories else next(self._directory_numbers)
        target = f"/t/work/{number}"
        try:
            workspace = Workspace(size=size, inodes=inodes, mode=mode & 0o7777, template=target)
        except OSError as exc:
            self._directories.append(number)
            raise LaunchError("working_directory", "make it", exc.errno or 0) from None
        try:
            steps = (s.Directory("/t/work"), s.Directory(target), s.Bind(0, target, 0, "a working directory"))
            with anyio.CancelScope(shield=True):
                await self._prepare(steps, fds=[workspace.fd])
            self._working_directories.add(workspace)
            try:
                yield workspace
            finally:
                self._working_directories.remove(workspace)  # first: no more runs get what is below the mount
                if self._dead is None:
                    with contextlib.suppress(LauncherDied), anyio.CancelScope(shield=True):
                        await self._prepare([s.Unmount(target)])
                        self._directories.append(number)
        finally:
            workspace.close()

    @contextlib.asynccontextmanager
    async def pool(
        self, command: Spec | Sequence[str] = ("/bin/true",), size: int = 8, **changes: Any
    ) -> AsyncIterator[WarmRuns]:
        """Keeps `size` containers made ahead, each for one run: a fresh container for the price of an exec.

        Args:
            command: a spec; its command and environment are only defaults.
            size: > 0.
            changes: as in `run`, ``limits`` too.
        """
        _check_count("size", size, 1)
        spec = self._spec(command, changes.pop("limits", None), changes)
        if spec.name != DEFAULT_NAME:
            raise SpecError("name", "several containers can't have it at once; leave it out")
        if spec.network_mode.startswith("service:"):
            raise SpecError("network_mode", "a container made ahead can't join another's network")
        self._check_made_ahead(spec)
        pool = self._pool(spec, size, workspace=False)
        async with beside(pool.keep_full):
            yield WarmRuns(self._run, spec, pool)

    async def _run(self, run: Run, pool: Pool | None = None) -> Result:
        if pool is not None:
            return await run.carry_out(self, pool)
        with self._warm.run(run) as pool:
            return await run.carry_out(self, pool)

    def _pool(self, spec: Spec, size: int, *, workspace: bool, demand: Demand | None = None) -> Pool:
        if workspace and spec.working_dir is None:
            spec = spec.with_(working_dir=DEFAULT_DIRECTORY)

        async def make() -> tuple[Container, Workspace | None]:
            directory = None
            if workspace:
                directory = Workspace(size=spec.storage_size, inodes=spec.storage_inodes)
            try:
                ids = await self.lease(spec)
                try:
                    if directory is not None:
                        uid, gid = await self.owner(spec)
                        directory.own(*((ids.map.uid(uid), ids.map.gid(gid)) if ids else (uid, gid)))
                    streams = Streams(None, None, None, self.null)
                except BaseException:
                    self.give_back(ids)
                    raise
                options: dict[str, Any] = {"events": True, "workspace": directory, "park": True, "early": True, "ids": ids}
                return await self.launch(spec, streams, **options), directory
            except BaseException:
                if directory is not None:
                    directory.close()
                raise

        return Pool(size, make, self._hand_over, self.end, demand)

    def _hand_over(self, container: Container, spec: Spec, streams: Streams) -> bool:
        go = self._prepared_hand_over(container, spec, streams)
        return go is not None and go()

    def _prepared_hand_over(self, container: Container, spec: Spec, streams: Streams) -> Callable[[], bool] | None:
        """What gives it its command; False then, or None now: it is gone."""
        parked = self._parked.pop(container.id, None)
        if parked is None:
            return None
        container.describe_with(functools.partial(parked.describe, spec))
        exec_ = wire.encode_step(planning.exec_step(spec, parked.identity, container.name))
        sections = (wire.EMPTY, wire.EMPTY, parked.shape.with_exec(exec_, parked=True))
        self._own_pipes(streams, container.ids, parked.identity)
        return functools.partial(container.unpark, spec, wire.encode_request(wire.RUN, container.id, sections, fds=3), streams)

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

    async def owner(self, spec: Spec) -> tuple[int, int]:
        """The workload's uid and gid, inside."""
        if spec.user is None and spec.userns != "keep-id":
            return 0, 0
        spec = await self._with_directory(spec)
        with _as_launch_error(spec), contextlib.ExitStack() as stack:
            trees = [planning.Tree(spec.rootfs, recursive=False)] if spec.rootfs else []
            identity = self._identity(spec, self._open_tree(spec, trees[0], stack) if trees else None)
        return identity.uid, identity.gid

    def _spec(self, command: Spec | Sequence[str], limits: Limits | None, changes: dict[str, Any]) -> Spec:
        if limits is not None:
            if not isinstance(limits, Limits):
                raise SpecError("limits", f"expected Limits, got {limits!r:.100}")
            changes = {**limits.spec_fields(), **changes}
        if isinstance(command, Spec):
            return command.with_(**changes) if changes else command
        if isinstance(command, str | bytes):
            raise SpecError("command", "expected a list of words; for a shell's text use ['sh', '-c', text]")
        check_fields(changes.keys())
        if "environment" in changes:  # can't be hashed
            rest = {name: value for name, value in changes.items() if name != "environment"}
            return self._spec(command, None, rest).with_(environment=changes["environment"])
        try:
            if isinstance(command, list | tuple):
                return _with_command(tuple(changes.items()), tuple(command))
            template = _template(tuple(changes.items()))
        except TypeError:  # something else that can't, such as ulimits
            return Spec(command=command, **changes)  # type: ignore[arg-type] # made a tuple there
        return template.with_(command=command)

    async def launch(
        self,
        spec: Spec,
        streams: Streams,
        *,
        terminal: tuple[int, int] = (24, 80),
        events: bool = False,
        workspace: Workspace | None = None,
        park: bool = False,
        early: bool = False,
        ids: Ids | None = None,
        watch: planning.Watch | None = None,
        live: Live | None = None,
        later: Streams | None = None,
    ) -> Container:
        """Sends a launch on its way. The streams are the container's to close from here on, whatever comes, and the ids its to
        give back.

        Args:
            events: with a socket of its own, over which it can be signalled and says when it has started.
            workspace: mounted on the working directory.
            park: it waits for its command.
            early, watch: as in `plan.plan`.
            ids: what `lease` gave; None: it is asked for them.
            live: holds it for the next runtime.
            later: the streams that it will be given with its command; the caller's to close.
        """
        try:
            ids = ids or await self.lease(spec)
            with _as_launch_error(spec):
                view = await self._prepared_view() if spec.rootfs is None else None
                spec = await self._with_directory(spec)
            # No await from here on: a name that is free now is ours below.
            self._check_open()
            container = self._send_launch(spec, view, streams, terminal, events, workspace, park, early, ids, watch, live, later)
        except BaseException:
            self.give_back(ids)
            streams.close_given()
            streams.close()
            raise
        container.call_when_gone(functools.partial(self.give_back, ids))
        container.close_given()
        self.containers[container.id] = self._names[container.name] = container
        return container

    def _send_launch(
        self,
        spec: Spec,
        view: HostView | None,
        streams: Streams,
        terminal: tuple[int, int],
        events: bool,
        workspace: Workspace | None,
        park: bool,
        early: bool,
        ids: Ids | None,
        watch: planning.Watch | None,
        live: Live | None,
        later: Streams | None,
    ) -> Container:
        if watch is None:
            _check_untraced(spec)
        id_ = next(self._ids)
        name = f"{DEFAULT_NAME}-{id_}" if spec.name == DEFAULT_NAME else spec.name
        if name in self._names:
            raise SpecError("name", f'a container named "{name}" is running already')
        if workspace is not None and workspace.template and workspace not in self._working_directories:
            raise SpecError("working_directory", "has been left, or is another runtime's")
        other = self._provider(spec)
        seccomp = filter_for(spec)
        with _as_launch_error(spec), contextlib.ExitStack() as stack:
            if workspace is not None and workspace.template and ids is not None:
                self._check_tmpfs_idmap("working_directory")
            trees = [self._open_tree(spec, tree, stack, ids) for tree in self._trees(spec)]
            identity = self._identity(spec, trees[0] if spec.rootfs else None)
            provisions = None
            if made_fds(spec):
                provisions = Provisions(spec, ids, identity)
                trees += provisions.fds
                kept = stack.enter_context(contextlib.ExitStack())
                kept.callback(provisions.close)
                kept.callback(provisions.close_given)
            if workspace is not None and not workspace.template:
                trees.append(workspace.fd)
            if ids is not None:
                trees.append(ids.fd)
            template = workspace.template if workspace else None
            shape = self._shape(spec, view, identity, seccomp, terminal, template, early, watch, name, ids)
            first = _encoded_ids(ids.map, identity) if ids else wire.EMPTY
            describe = functools.partial(self._describe, spec, view, identity, seccomp, template, ids, watch)
            container = self._container(spec, name, id_, streams, shape, describe, events)
            try:
                container.ids = ids
                container.workspace = None if workspace is None else spec.working_dir or "/"
                if provisions is not None:
                    kept.pop_all()
                    container.provide(provisions)
                self._own_pipes(streams, ids, identity)
                if park:

                    def describe_another(spec: Spec, section: int, step: int) -> str:
                        return self._describe(spec, view, identity, seccomp, template, ids, watch, section, step)

                    self._parked[id_] = _Parked(shape, identity, describe_another)
                    workload = shape.parked
                else:
                    workload = shape.with_exec(wire.encode_step(planning.exec_step(spec, identity, name)))
                init = first + shape.init + shape.counters if park and early else first + shape.init
                sections = (wire.EMPTY, init, workload, shape.cleanup)
                if live is not None:
                    live.hold(container, later or streams, parked=park)
            except BaseException:
                self._parked.pop(id_, None)
                container.abandon()
                raise
            # From here on that is done there.
            self._send(container, sections, trees, other, wire.PARK if park else 0)
        return container

    @staticmethod
    def _check_made_ahead(spec: Spec) -> None:
        if made := made_fds(spec):
            raise SpecError(made[0], "can't be had by a container that is made ahead, or traced from its start")

    def _own_pipes(self, streams: Streams, ids: Ids | None, identity: Identity) -> None:
        given = set(streams.given) - {self.null}
        owner = (ids.map.uid(identity.uid), ids.map.gid(identity.gid)) if ids and given else (identity.uid, identity.gid)
        if given and owner != (0, 0):
            own_pipes(given, *owner)

    def _container(
        self,
        spec: Spec,
        name: str,
        id_: int,
        streams: Streams,
        shape: Shape,
        describe: Callable[[int, int], str],
        events: bool,
    ) -> Container:
        pair = None
        if events:
            pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            pair[0].setblocking(False)
        return Container(spec, name, id_, streams, self, describe, _enforced(spec), shape.readback, pair)

    def _send(
        self, container: Container, sections: tuple[Section, ...], trees: list[int], other: Container | None, flags: int
    ) -> None:
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
            self._launcher.send(request, fds)
        except BaseException as exc:
            self._parked.pop(container.id, None)
            container.abandon()
            if self.live is not None:
                self.live.drop(container)
            if isinstance(exc, ValueError):
                raise SpecError("command", str(exc)) from None
            raise

    # ---- what a container asks for ----

    def kill(self, container: Container) -> None:
        """SIGKILL for everything in it."""
        with contextlib.suppress(LauncherDied):
            self._launcher.send(wire.encode_request(wire.KILL, container.id, pid=container.pid))

    def stats(self, container: Container) -> Stats:
        """What its cgroups count."""
        return read_stats(self._tree.layout, self._tree.fds, container.name)

    @contextlib.asynccontextmanager
    async def exec(
        self, container: Container, spec: Spec, stdin: Stdio, stdout: Stdio, stderr: Stdio, terminal: tuple[int, int]
    ) -> AsyncIterator[Container]:
        """One more process in a running container, as a scope; see `Container.open_exec`."""
        self._check_open()
        _check_untraced(spec)
        await container.wait_started()  # by now, but for a run's
        identity = await self._exec_identity(spec)
        # No await from here on: what runs now still does when the launcher is asked.
        if container.gone or not container.pid:
            raise ContainerError(container.name, "is not running")
        with _as_launch_error(spec):
            streams = Streams(stdin, stdout, stderr, self.null)
            try:
                if container.ids is not None:
                    planning.ids_step(container.ids.map, identity)  # for its check
                self._own_pipes(streams, container.ids, identity)
                limits = self._limits(container.spec)  # all of its cgroups are joined, whatever they limit
                plan = planning.exec_plan(
                    spec,
                    limits=limits,
                    seccomp=filter_for(spec),
                    name=container.name,
                    identity=identity,
                    ids=container.ids.map if container.ids else None,
                    terminal=terminal,
                    around=self._around,
                    workspace=container.workspace,
                )
                shape = Shape(wire.encode(plan.init), wire.EMPTY, wire.EMPTY, wire.encode(plan.workload), wire.EMPTY, (), ())
                given = [container.ids.fd] if container.ids is not None and planning.keeps_user(spec, self._around) else []

                def describe(section: int, step: int) -> str:
                    return _step_in((plan.init, plan.workload)[section - 1], step)

                process = self._container(spec, container.name, next(self._ids), streams, shape, describe, True)
            except BaseException:
                streams.close_given()
                streams.close()
                raise
            self._send(process, (wire.EMPTY, shape.init, shape.workload), given, container, wire.EXEC)
        process.close_given()
        self.containers[process.id] = process
        container.execs = (*container.execs, process)
        process.call_when_gone(lambda: _forget_exec(container, process))
        try:
            await process.wait_started()
            yield process
        finally:
            await self.end(process)

    async def open_socket(self, container: Container, domain: int) -> socket.socket:
        """See `Container.open_socket`."""
        self._check_open()
        await container.wait_started()
        if container.gone or not container.pid:
            raise ContainerError(container.name, "is not running")
        if not planning.joins_network(container.spec):
            with _as_launch_error(container.spec):
                return socket.socket(domain, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        steps = planning.socket_steps(container.spec, container.name, domain, socket.SOCK_STREAM)
        streams = Streams(None, None, None, self.null)
        shape = Shape(wire.encode(steps), wire.EMPTY, wire.EMPTY, wire.EMPTY, wire.EMPTY, (), ())
        with _as_launch_error(container.spec):
            process = self._container(
                container.spec, container.name, next(self._ids), streams, shape, lambda section, step: _step_in(steps, step), True
            )
        self._send(process, (wire.EMPTY, shape.init, wire.EMPTY), [], container, wire.EXEC)
        process.close_given()
        self.containers[process.id] = process
        try:
            await process.wait()
            return process.take_socket()
        finally:
            await self.end(process)

    async def _exec_identity(self, spec: Spec) -> Identity:
        spec = await self._with_directory(spec)
        with contextlib.ExitStack() as stack:
            tree = planning.Tree(spec.rootfs, recursive=False) if spec.rootfs else None
            return self._identity(spec, self._open_tree(spec, tree, stack) if tree else None)

    def _check_open(self) -> None:
        if self._left:
            raise TinyvisorError("the runtime has been left, and starts nothing any more")
        if self._dead is not None:
            raise LauncherDied("the launcher is gone") from self._dead

    async def _with_directory(self, spec: Spec) -> Spec:
        """A tarball is replaced by the directory that it was unpacked to."""
        if spec.rootfs is None or spec.rootfs.is_dir():
            return spec
        if not spec.rootfs.exists():
            raise SpecError("rootfs", f"{spec.rootfs} does not exist")
        work = functools.partial(unpack, spec.rootfs, cache_directory(), ids=self.root_ids)
        return spec.with_(rootfs=await anyio.to_thread.run_sync(work))

    @property
    def root_ids(self) -> IdMap | None:
        """What the owners in an unpacked root are here; None: as in the tarball."""
        return self._mapped.shared_map() if self._mapped else None

    def _provider(self, spec: Spec) -> Container | None:
        """The container whose network is joined."""
        if not spec.network_mode.startswith("service:"):
            return None
        name = spec.network_mode.removeprefix("service:")
        provider = self._names.get(name)
        if provider is None or not provider.pid:  # before that, its namespaces would still be the launcher's
            raise TinyvisorError(f'{spec.name}: network_mode: service "{name}" is not running')
        if provider.spec.in_host_network:
            raise SpecError("network_mode", f'"{name}" is in the host\'s network; use host')
        return provider

    def _trees(self, spec: Spec) -> list[planning.Tree]:
        trees = [planning.Tree(spec.rootfs, recursive=False)] if spec.rootfs else []
        return trees + [planning.Tree(volume.source, volume.read_only) for volume in spec.volumes]

    def _open_tree(self, spec: Spec, tree: planning.Tree, stack: contextlib.ExitStack, ids: Ids | None = None) -> int:
        """As the container is to see it."""
        try:
            fd = open_tree(str(tree.path), recursive=tree.recursive, read_only=tree.read_only)
        except OSError as exc:
            raise LaunchError(spec.name, f"open {tree.path}", exc.errno or 0) from None
        stack.callback(os.close, fd)
        # The root first, which is the image's: its files have owners of its own, whoever is kept.
        if ids is not None and ids.slot is not None and (planning.maps_volumes(spec) or not tree.recursive):
            try:
                idmap(fd, ids.fd, recursive=tree.recursive)
            except OSError as exc:
                raise HostError(
                    f"{spec.name}: {tree.path} can't be idmapped: {file_system(fd)} on Linux {self.host.release}"
                    f"{', or what is mounted below it' if tree.recursive else ''}: {os.strerror(exc.errno or 0)}",
                    'use "userns_mode: host" or another file system',
                ) from None
        return fd

    def _check_tmpfs_idmap(self, what: str) -> None:
        if self._idmapped is not None and "/etc" not in self._idmapped:
            raise HostError(f"{what}: Linux {self.host.release} can't idmap a tmpfs", 'use "userns_mode: host" or Linux 6.3')

    def _identity(self, spec: Spec, root: int | None) -> Identity:
        user = spec.user
        if user is None and spec.userns == "keep-id":
            user = "{}:{}".format(*invoking_user())
        if user is None and not spec.group_add:
            return planning.ROOT_USER
        if root is None:
            return resolve(user, spec.group_add, PASSWD, GROUP)
        contents = []
        for path in ("etc/passwd", "etc/group"):
            try:
                contents.append(read_in_root(root, path))
            except OSError:
                contents.append(b"")
        return resolve(user, spec.group_add, *contents)

    def _shape(
        self,
        spec: Spec,
        view: HostView | None,
        identity: Identity,
        seccomp: Filter | None,
        terminal: tuple[int, int],
        workspace: str | None,
        early: bool,
        watch: planning.Watch | None,
        name: str,
        ids: Ids | None,
    ) -> Shape:
        # The program, too: a profile's file may have changed.
        program = (seccomp.program, seccomp.second) if seccomp else ()
        key = (
            len(name), identity, terminal, workspace, early, program, bool(spec.secrets), shape_of(spec), *spec.ulimits.items()
        )  # fmt: skip
        shape = self._shapes.get(key) if watch is None else None
        if shape is None:
            holed = any(HOLE in part for part in program)
            if len(name) < MIN_PLACEHOLDER or spec.network_mode == "host" or holed or watch is not None:
                plan = self._plan(spec, view, identity, seccomp, name, terminal, workspace, early, ids, watch)
                return self._encode(spec, plan, seccomp, name, watch)
            if len(self._shapes) >= 256:
                self._shapes.clear()
            placeholder = PLACEHOLDER * len(name)
            plan = self._plan(spec, view, identity, seccomp, placeholder, terminal, workspace, early, ids)
            shape = self._shapes[key] = self._encode(spec, plan, seccomp, placeholder)
        return shape.named(name)

    def _encode(
        self, spec: Spec, plan: planning.Plan, seccomp: Filter | None, name: str, watch: planning.Watch | None = None
    ) -> Shape:
        under_filter = seccomp is None or may_wait(seccomp, MACHINES[os.uname().machine])
        split = planning.parked_steps(spec, plan, watch, under_filter=under_filter)
        workload = (wire.encode(plan.workload[:split]), wire.encode(plan.workload[split:-1]))
        init = plan.init if spec.userns == "host" else plan.init[1:]  # the ids are each container's own
        limits = self._limits(spec)
        counters = wire.encode(planning.counters(spec, limits, name))
        return Shape(wire.encode(init), counters, *workload, wire.encode(plan.cleanup), plan.trees, limits.readback())

    def _plan(
        self,
        spec: Spec,
        view: HostView | None,
        identity: Identity,
        seccomp: Filter | None,
        name: str,
        terminal: tuple[int, int] = (24, 80),
        workspace: str | None = None,
        early: bool = False,
        ids: Ids | None = None,
        watch: planning.Watch | None = None,
    ) -> planning.Plan:
        return planning.plan(
            spec,
            limits=self._limits(spec),
            view=view,
            seccomp=seccomp,
            name=name,
            identity=identity,
            resolv_conf=_resolv_conf() if spec.network_mode == "host" else None,
            terminal=terminal,
            workspace=workspace,
            early=early,
            ids=ids.map if ids else None,
            idmapped=self._idmapped or frozenset(),
            watch=watch,
            around=self._around,
        )

    def _limits(self, spec: Spec) -> planning.Limits:
        layout = self._tree.layout
        usage = cpu_usage_file(layout) if spec.cpu_time is not None else None
        writes = tuple(limit_writes(spec, layout, exists=self._tree.has))
        return planning.Limits(layout, writes, usage, os.cpu_count() or 1)

    def _describe(
        self,
        spec: Spec,
        view: HostView | None,
        identity: Identity,
        seccomp: Filter | None,
        workspace: str | None,
        ids: Ids | None,
        watch: planning.Watch | None,
        section: int,
        step: int,
    ) -> str:
        """The failed step in words: the plan is made again, which a start that went well never pays for."""
        plan = self._plan(spec, view, identity, seccomp, spec.name, workspace=workspace, ids=ids, watch=watch)
        return _step_in((plan.init, plan.workload)[section - 1], step)

    # ---- events ----

    def _on_event(self, event: wire.Event, fds: list[int]) -> None:
        if event.type == wire.PREPARED and event.id in self._prepared:
            self._prepared[event.id].set(event, fds)
            return
        for fd in fds:  # who asked was cancelled
            os.close(fd)
        if event.type == wire.PREPARED:
            return
        container = self.containers.get(event.id)
        if event.type == wire.REFUSED and event.id in self._prepared:
            self._prepared[event.id].set(event)
        elif container is not None:
            self._forget(container)
            if event.type == wire.GONE:
                gone = wire.decode_gone(event.data)
                container.finish(gone, _usage(gone.counters, container.readback))
            elif event.a == errno.ESRCH:
                container.refuse(NotLaunched(container.name))
            else:
                container.refuse(LaunchError(container.name, "clone the container's init", event.a))
            if self.live is not None:
                self.live.note_end(container)

    def _forget(self, container: Container) -> None:
        del self.containers[container.id]
        self._parked.pop(container.id, None)
        if self._names.get(container.name) is container:  # not an exec in it
            del self._names[container.name]


class _Scope(AbstractAsyncContextManager[Container]):
    """A container that runs, until the scope is left. No generator: thousands of them are entered for as long as they run."""

    __slots__ = ("_container", "_make", "_runtime")

    def __init__(self, runtime: Runtime, make: Callable[[], Awaitable[Container]]) -> None:
        self._runtime = runtime
        self._make: Callable[[], Awaitable[Container]] | None = make
        self._container: Container | None = None

    async def __aenter__(self) -> Container:
        make, self._make = self._make, None
        if make is None:
            raise RuntimeError("entered before")
        container = self._container = await make()
        await self._runtime.wait_started(container)
        return container

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        container, self._container = self._container, None
        if container is not None:
            await self._runtime.leave(container, failed=kind is not None)


def _forget_exec(container: Container, process: Container) -> None:
    container.execs = tuple(other for other in container.execs if other is not process)


def _check_untraced(spec: Spec) -> None:
    if any(rule.reads for rule in spec.on_syscall):
        raise SpecError("on_syscall", "paths and addresses are read by a tracer: use `tinyvisor trace`, or Runtime.trace")


def _check_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SpecError(name, f"expected a whole number, {least} or more, got {value!r}")


@functools.lru_cache(maxsize=256)
def _encoded_ids(map_: IdMap, identity: Identity) -> Section:
    """Ranges are used again."""
    return wire.encode([planning.ids_step(map_, identity)])


@functools.lru_cache(maxsize=256)
def _template(changes: tuple[tuple[str, Any], ...]) -> Spec:
    """A spec to be copied with another command: most runs of a program differ in nothing else."""
    return Spec(command=("true",), **dict(changes))


@functools.lru_cache(maxsize=16)  # commands may be large
def _with_command(changes: tuple[tuple[str, Any], ...], command: tuple[str, ...]) -> Spec:
    """Many differ in their input only."""
    return _template(changes).with_(command=command)


def _open_device(name: str, stack: contextlib.ExitStack) -> int:
    fd = open_tree(f"/dev/{name}", recursive=False, read_only=False)
    stack.callback(os.close, fd)
    return fd


def _can_be_idmapped(tree: int, userns: int) -> bool:
    try:
        idmap(tree, userns, recursive=True)
    except OSError:  # EINVAL: its file system does not know how
        return False
    finally:
        os.close(tree)
    return True


def _describe_adopted(section: int, step: int) -> str:
    """Of a launch that the supervisor before us began; its plan went with it."""
    return f"step {step} of its {wire.SECTIONS[section]}"


def _step_in(steps: tuple[Step, ...], index: int) -> str:
    return steps[index].describe() if index < len(steps) else "start the workload"


def _resolv_conf() -> bytes | None:
    try:
        return Path("/etc/resolv.conf").read_bytes()
    except OSError:
        return None  # a host without one resolves without one


def _forget_remains(directory: Path, project: str) -> None:
    """What is left of a project of which nothing runs."""
    Live.forget_remains(directory, project)
    _close_to_groups(project)


def _close_to_groups(project: str) -> None:
    """Removes what a killed supervisor has left for groups. Its launcher, too, knows nothing of that."""
    for path in shared_files(project) if privileged() else ():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def _close_the_gone_to_groups(locks: Path) -> None:
    """The same of projects that may never be started again. Their launchers have removed all else, the locks included."""
    for project in shared_projects() if privileged() else ():
        with contextlib.suppress(SpecError):  # nothing of ours is called so
            check_name("project", project)
            with unclaimed(locks, project) as is_gone:
                if is_gone:
                    _close_to_groups(project)


@contextlib.contextmanager
def _state_in(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise HostError(f"{exc.filename or directory}: {os.strerror(exc.errno or 0)}", f"make {directory} writable") from exc


class _as_launch_error:
    """Out of file descriptors or memory: one container's failure, not the program's."""

    __slots__ = ("_spec",)

    def __init__(self, spec: Spec) -> None:
        self._spec = spec

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *rest: object) -> None:
        if isinstance(error, OSError):
            raise LaunchError(self._spec.name, "prepare the launch", error.errno or 0) from error


def _usage(data: bytes, readback: tuple[tuple[int, str], ...]) -> Usage:
    """The counters out of what the launcher read: a 32-bit size and the bytes, for each file; size ~0 for a missing one."""
    contents: dict[str, bytes] = {}
    at = 0
    for _, file in readback:
        size = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if size != 0xFFFFFFFF:
            contents[file] = data[at : at + size]
            at += size
    return read_usage(contents)


def _enforced(spec: Spec) -> tuple[str, ...]:
    wanted = (
        ("pids_limit", spec.pids_limit), ("mem_limit", spec.mem_limit), ("cpus", spec.cpus), ("cpuset", spec.cpuset or None),
        ("blkio_config", spec.blkio), ("timeout", spec.timeout), ("cpu_time", spec.cpu_time), ("output_limit", spec.output_limit),
    )  # fmt: skip
    return tuple(name for name, value in wanted if value is not None)


class _Reply:
    """What the launcher said to a prepare request."""

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._answer: wire.Event | Exception | None = None
        self._fds: list[int] = []

    def set(self, answer: wire.Event | Exception, fds: Iterable[int] = ()) -> None:
        self._answer = answer
        self._fds += fds
        self._event.set()

    def take_fds(self) -> list[int]:
        fds, self._fds = self._fds, []
        return fds

    def close(self) -> None:
        for fd in self.take_fds():
            os.close(fd)

    async def wait(self, what: str, steps: tuple[Step, ...] = ()) -> None:
        await self._event.wait()
        if isinstance(self._answer, Exception):
            raise self._answer
        assert self._answer is not None
        error = self._answer.a
        if error:
            at = self._answer.b
            step = steps[at].describe() if self._answer.type == wire.PREPARED and at < len(steps) else f"{what} (byte {at})"
            raise HostError(f"{step}: {os.strerror(error)}", "see `tinyvisor doctor`")
