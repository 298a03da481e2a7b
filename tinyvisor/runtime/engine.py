"""The runtime: one launcher, the cgroups of one project, and the containers in them. Written on anyio alone."""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread

from tinyvisor.errors import HostError, LauncherDied, LaunchError, SpecError, TinyvisorError
from tinyvisor.runtime import launcher as wire
from tinyvisor.runtime import plan as planning
from tinyvisor.runtime import steps as s
from tinyvisor.runtime.cgroup import PARENT, CgroupTree, ProjectLock, Usage, default_lock_dir, limit_writes, read_usage, sweep
from tinyvisor.runtime.container import Container
from tinyvisor.runtime.host import Host, probe
from tinyvisor.runtime.identity import Identity, read_in_root, resolve
from tinyvisor.runtime.launcher import LauncherProcess, Section, shielded
from tinyvisor.runtime.rootfs import GROUP, PASSWD, HostView, host_view, write_etc
from tinyvisor.runtime.stdio import PIPE, Stdio, Streams
from tinyvisor.runtime.steps import Step
from tinyvisor.runtime.syscalls import new_tmpfs, open_tree
from tinyvisor.runtime.unpack import unpack
from tinyvisor.spec import Spec, check_name
from tinyvisor.state import Exit

# What a plan depends on, but for the name and the exec step; `ulimits` is a mapping and is added by its items.
_shape_of = operator.attrgetter(
    *(item.name for item in fields(Spec) if item.name not in ("command", "environment", "name", "ulimits"))
)
_PLACEHOLDER = "\udcf7"  # one byte, 0xf7, that is in no UTF-8 text and, four in a row, in no number of a plan
_MIN_PLACEHOLDER = 4
_runs = itertools.count()


def cache_directory() -> Path:
    """Where unpacked roots live: /var/cache/tinyvisor for root, else $XDG_CACHE_HOME/tinyvisor."""
    if os.geteuid() == 0:
        return Path("/var/cache/tinyvisor")
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tinyvisor"


@dataclass(frozen=True, slots=True)
class _Shape:
    """An encoded plan but for the name and the exec step."""

    init: Section
    workload: Section
    cleanup: Section
    trees: tuple[planning.Tree, ...]
    readback: tuple[tuple[int, str], ...]

    def named(self, name: str) -> _Shape:
        raw, holes = name.encode(), _PLACEHOLDER.encode("utf-8", "surrogateescape") * len(name)

        def fill(section: Section) -> Section:
            return Section(section.count, section.body.replace(holes, raw))

        return _Shape(fill(self.init), fill(self.workload), fill(self.cleanup), self.trees, self.readback)


@contextlib.asynccontextmanager
async def open_runtime(*, name: str | None = None) -> AsyncIterator[Runtime]:
    """A runtime with a launcher of its own. Leaving it, in whatever way, kills every container in it.

    Args:
        name: the project's name, which its cgroups carry; only one runtime of a name can be open at a time. None makes
            one up.

    Raises:
        HostError: this host can't run containers, with the cure.
        TinyvisorError: a runtime of that name is open elsewhere.
    Cancellation: leaves nothing behind.
    """
    name = f"run-{os.getpid()}-{next(_runs)}" if name is None else name
    check_name("name", name)
    runtime = Runtime(name, probe())
    error: BaseException | None = None
    try:
        runtime._open()
        async with anyio.create_task_group() as group:
            group.start_soon(runtime._serve)
            try:
                await runtime._prepare_first()
                yield runtime
            except BaseException as exc:  # raised again below, where the task group can't wrap it
                error = exc
            runtime._serving.cancel()
    except anyio.get_cancelled_exc_class():
        if error is None:
            raise
    finally:
        await runtime._aclose()
    if error is not None:
        raise error


class Runtime:
    """Starts containers. Made by `open_runtime` only.

    Attributes:
        name: the project's name.
        host: what this host offers.
    """

    def __init__(self, name: str, host: Host) -> None:
        self.name = name
        self.host = host
        self.containers: dict[int, Container] = {}
        self._ids = itertools.count(1)
        self._names: dict[str, Container] = {}
        self._shapes: dict[tuple[Any, ...], _Shape] = {}
        self._prepared: dict[int, _Reply] = {}
        self._view: HostView | None = None
        self._view_lock = anyio.Lock()
        self._dead: Exception | None = None
        # Shielded: a cancelled program still waits for the end of its containers, and hears of it here.
        self._serving = anyio.CancelScope(shield=True)
        self._stack = contextlib.ExitStack()

    # ---- life ----

    def _open(self) -> None:
        if os.geteuid() != 0:
            raise HostError("tinyvisor needs root for now", "run it as root; rootless containers are on their way")
        stack, locks = self._stack, default_lock_dir()
        self._lock = stack.enter_context(ProjectLock(locks, self.name))
        sweep(self.host.layout, locks, mine=self.name)
        self._tree = CgroupTree.open(self.host.layout, self.name)
        stack.callback(self._remove_tree)
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, self._null)
        self._prepared[0] = _Reply()
        self._launcher = LauncherProcess(self._on_event)

    def _remove_tree(self) -> None:
        """The launcher has done it already, unless it was killed."""
        self._lock.keep = bool(self._tree.remove())

    async def _aclose(self) -> None:
        try:
            if hasattr(self, "_launcher"):
                await self._launcher.aclose()
        finally:
            for container in tuple(self.containers.values()):
                self._forget(container)
                container.lose()
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
        await self._prepared[0].wait("leave the host's mounts")
        locks = os.open(default_lock_dir(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        fds = [*self._tree.fds, *self._tree.parent_fds, self._lock.fd, locks]
        parents, hierarchies = len(self._tree.fds), self._tree.layout.hierarchies
        last = s.KEPT | len(fds) - 1
        epilogue: list[Step] = [s.Remove(s.KEPT | parents + n, self.name, item.label) for n, item in enumerate(hierarchies)]
        epilogue += [
            s.Remove(s.KEPT | parents + n, f"../{PARENT}", item.label, patient=False) for n, item in enumerate(hierarchies)
        ]
        # Last, and only when the others are gone: what has a lock file, the next run sweeps.
        epilogue.append(s.Remove(last, f"{self.name}.lock", str(default_lock_dir())))
        try:
            await self._prepare((), fds=fds, flags=wire.KEEP_FDS, epilogue=epilogue)
        finally:
            os.close(locks)
        steps = (s.Directory("/t/dev"), *planning.dev_template("/t/dev", console=False))
        await self._prepare((*steps, s.Directory("/t/dev-tty"), *planning.dev_template("/t/dev-tty", console=True)))

    async def _prepare(
        self, steps: Iterable[Step], *, fds: Iterable[int] = (), flags: int = 0, epilogue: Iterable[Step] = ()
    ) -> None:
        """Has the launcher itself run steps, in its own world."""
        steps, fds, id_ = tuple(steps), tuple(fds), next(self._ids)
        reply = self._prepared[id_] = _Reply()
        sections = (wire.encode(steps), wire.EMPTY, wire.EMPTY, wire.encode(epilogue))
        try:
            self._launcher.send(wire.encode_request(wire.PREPARE, id_, sections, fds=len(fds), flags=flags), fds)
            await reply.wait("prepare the launcher", steps)
        finally:
            del self._prepared[id_]

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
                    await _in_thread(lambda: write_etc(Path(f"/proc/self/fd/{etc}")))
                    trees = [etc]
                    for path in view.binds:
                        trees.append(open_tree(path, recursive=True, read_only=True))
                        stack.callback(os.close, trees[-1])
                    targets = ("/etc", *view.binds)
                    binds = [s.Bind(slot, f"/t{target}", 0, target) for slot, target in enumerate(targets)]
                    with anyio.CancelScope(shield=True):  # done once or not at all: the mounts can't be taken back
                        await self._prepare(binds, fds=trees)
                self._view = view
            return self._view

    # ---- containers ----

    @contextlib.asynccontextmanager
    async def start(
        self, spec: Spec, *, stdin: Stdio = None, stdout: Stdio = None, stderr: Stdio = None, terminal: tuple[int, int] = (24, 80)
    ) -> AsyncIterator[Container]:
        """A container as a scope: entered once the workload has been exec'ed, left when everything in it is gone.

        Args:
            stdin, stdout, stderr: None is /dev/null; `PIPE`; an fd or file that the container gets directly; for
                stderr `STDOUT`, too. Not used with ``spec.tty``.
            terminal: rows and columns of the pty.

        Raises:
            LaunchError: a step failed; nothing is left of the container.
            HostError: this host can't enforce a limit that was asked for. Nothing was created.
            SpecError: a name is in use, or a user or a path is unknown. Nothing was created.
        Cancellation: kills everything in the container and waits for it to be gone.
        """
        with _as_launch_error(spec):
            events = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        events[0].setblocking(False)
        try:
            container = await self._launch(spec, stdin, stdout, stderr, terminal, events)
        except BaseException:
            for end in events:
                end.close()
            raise
        try:
            await container.wait_started()
            yield container
        finally:
            await self._end(container)

    async def run(self, spec: Spec, *, stdin: Stdio = None, stdout: Stdio = None, stderr: Stdio = None) -> Exit:
        """Runs a container from start to end; the quickest way for a job that nobody talks to.

        Args, Raises, Cancellation: as `start`, but for `PIPE`, which nobody would read.
        """
        if PIPE in (stdin, stdout, stderr) or spec.tty:
            raise SpecError("stdout", "run has nobody to read a pipe or a terminal; use start")
        container = await self._launch(spec, stdin, stdout, stderr, (24, 80), None)
        try:
            return await container.wait()
        finally:
            await self._end(container)

    async def _end(self, container: Container) -> None:
        try:
            if container.id in self.containers:
                container.kill()
                await shielded(container.wait_gone)
        finally:
            container.close()

    async def _launch(
        self,
        spec: Spec,
        stdin: Stdio,
        stdout: Stdio,
        stderr: Stdio,
        terminal: tuple[int, int],
        events: tuple[socket.socket, socket.socket] | None,
    ) -> Container:
        view = await self._prepared_view() if spec.rootfs is None else None
        spec = await self._with_directory(spec)
        # No await from here on: a name that is free now is ours below.
        self._check_open()
        if spec.name in self._names:
            raise SpecError("name", f'a container named "{spec.name}" is running already')
        other = self._provider(spec)
        with _as_launch_error(spec), contextlib.ExitStack() as stack:
            trees = [self._open_tree(spec, tree, stack) for tree in self._trees(spec)]
            identity = self._identity(spec, trees[0] if spec.rootfs else None)
            shape = self._shape(spec, view, identity, terminal)
            exec_ = wire.encode_step(planning.exec_step(spec, identity, spec.name))
            id_ = next(self._ids)
            streams = Streams(stdin, stdout, stderr, self._null)
            describe = functools.partial(self._describe, spec, view, identity)
            container = Container(spec, id_, streams, self._kill, describe, _enforced(spec), shape.readback, events)
            fds = (events[1].fileno() if events else self._null, *streams.given, *trees)
            workload = Section(shape.workload.count + 1, shape.workload.body + exec_)
            try:
                request = wire.encode_request(
                    wire.LAUNCH,
                    id_,
                    (wire.EMPTY, shape.init, workload, shape.cleanup),
                    fds=len(fds),
                    pid=other.pid if other else 0,
                    other=other.id if other else 0,
                )
                self._launcher.send(request, fds)
            except BaseException as exc:
                container.close()
                if isinstance(exc, ValueError):
                    raise SpecError("command", str(exc)) from None
                raise
        container.close_given()
        self.containers[id_] = container
        self._names[spec.name] = container
        return container

    def _check_open(self) -> None:
        if self._dead is not None:
            raise LauncherDied("the launcher is gone") from self._dead

    async def _with_directory(self, spec: Spec) -> Spec:
        """A tarball is replaced by the directory that it was unpacked to."""
        if spec.rootfs is None or spec.rootfs.is_dir():
            return spec
        if not spec.rootfs.exists():
            raise SpecError("rootfs", f"{spec.rootfs} does not exist")
        return spec.with_(rootfs=await anyio.to_thread.run_sync(unpack, spec.rootfs, cache_directory()))

    def _provider(self, spec: Spec) -> Container | None:
        """The container whose network is joined."""
        if not spec.network_mode.startswith("service:"):
            return None
        name = spec.network_mode.removeprefix("service:")
        provider = self._names.get(name)
        if provider is None or not provider.pid:  # before that, its namespaces would still be the launcher's
            raise TinyvisorError(f'{spec.name}: network_mode: service "{name}" is not running')
        return provider

    def _trees(self, spec: Spec) -> list[planning.Tree]:
        trees = [planning.Tree(spec.rootfs, recursive=False)] if spec.rootfs else []
        return trees + [planning.Tree(volume.source, volume.read_only) for volume in spec.volumes]

    def _open_tree(self, spec: Spec, tree: planning.Tree, stack: contextlib.ExitStack) -> int:
        try:
            fd = open_tree(str(tree.path), recursive=tree.recursive, read_only=tree.read_only)
        except OSError as exc:
            raise LaunchError(spec.name, f"open {tree.path}", exc.errno or 0) from None
        stack.callback(os.close, fd)
        return fd

    def _identity(self, spec: Spec, root: int | None) -> Identity:
        if spec.user is None and not spec.group_add:
            return planning.ROOT_USER
        if root is None:
            return resolve(spec.user, spec.group_add, PASSWD, GROUP)
        contents = []
        for path in ("etc/passwd", "etc/group"):
            try:
                contents.append(read_in_root(root, path))
            except OSError:
                contents.append(b"")
        return resolve(spec.user, spec.group_add, *contents)

    def _shape(self, spec: Spec, view: HostView | None, identity: Identity, terminal: tuple[int, int]) -> _Shape:
        if len(spec.name) < _MIN_PLACEHOLDER or spec.network_mode == "host":
            return self._encode(spec, self._plan(spec, view, identity, spec.name, terminal))
        key = (len(spec.name), identity, terminal, _shape_of(spec), *spec.ulimits.items())
        shape = self._shapes.get(key)
        if shape is None:
            if len(self._shapes) >= 256:
                self._shapes.clear()
            placeholder = _PLACEHOLDER * len(spec.name)
            shape = self._shapes[key] = self._encode(spec, self._plan(spec, view, identity, placeholder, terminal))
        return shape.named(spec.name)

    def _encode(self, spec: Spec, plan: planning.Plan) -> _Shape:
        sections = (wire.encode(plan.init), wire.encode(plan.workload[:-1]), wire.encode(plan.cleanup))
        return _Shape(*sections, plan.trees, self._limits(spec).readback())

    def _plan(
        self, spec: Spec, view: HostView | None, identity: Identity, name: str, terminal: tuple[int, int] = (24, 80)
    ) -> planning.Plan:
        limits = self._limits(spec)
        resolv_conf = _resolv_conf() if spec.network_mode == "host" else None
        return planning.plan(
            spec, limits=limits, view=view, name=name, identity=identity, resolv_conf=resolv_conf, terminal=terminal
        )

    def _limits(self, spec: Spec) -> planning.Limits:
        layout = self._tree.layout
        return planning.Limits(layout, tuple(limit_writes(spec, layout, exists=self._tree.has)))

    def _describe(self, spec: Spec, view: HostView | None, identity: Identity, section: int, step: int) -> str:
        """The failed step in words: the plan is made again, which a start that went well never pays for."""
        plan = self._plan(spec, view, identity, spec.name)
        steps = (plan.init, plan.workload)[section - 1]
        return steps[step].describe() if step < len(steps) else "start the workload"

    def _kill(self, container: Container) -> None:
        with contextlib.suppress(LauncherDied):
            self._launcher.send(wire.encode_request(wire.KILL, container.id, pid=container.pid))

    # ---- events ----

    def _on_event(self, event: wire.Event) -> None:
        if event.type == wire.PREPARED:
            if event.id in self._prepared:  # else: who asked was cancelled
                self._prepared[event.id].set(event)
            return
        container = self.containers.get(event.id)
        if event.type == wire.REFUSED and event.id in self._prepared:
            self._prepared[event.id].set(event)
        elif container is not None:
            self._forget(container)
            if event.type == wire.GONE:
                gone = wire.decode_gone(event.data)
                container.finish(gone, _usage(gone.counters, container.readback))
            else:
                container.refuse(LaunchError(container.name, "clone the container's init", event.a))

    def _forget(self, container: Container) -> None:
        del self.containers[container.id]
        del self._names[container.name]


def _resolv_conf() -> bytes | None:
    try:
        return Path("/etc/resolv.conf").read_bytes()
    except OSError:
        return None  # a host without one resolves without one


@contextlib.contextmanager
def _as_launch_error(spec: Spec) -> Iterator[None]:
    """Out of file descriptors or memory: one container's failure, not the program's."""
    try:
        yield
    except OSError as exc:
        raise LaunchError(spec.name, "prepare the launch", exc.errno or 0) from exc


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
        ("blkio_config", spec.blkio), ("timeout", spec.timeout),
    )  # fmt: skip
    return tuple(name for name, value in wanted if value is not None)


async def _in_thread(function: Callable[[], None]) -> None:
    """Waits for the thread's end whatever comes, also asyncio's own Task.cancel: it works on an fd that is closed afterwards."""
    errors: list[Exception] = []

    def call() -> None:
        try:
            function()
        except Exception as exc:
            errors.append(exc)

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, call)
    if errors:
        raise errors[0]


class _Reply:
    """What the launcher said to a prepare request."""

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._answer: wire.Event | Exception | None = None

    def set(self, answer: wire.Event | Exception) -> None:
        self._answer = answer
        self._event.set()

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
