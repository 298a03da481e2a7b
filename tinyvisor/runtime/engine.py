"""The runtime: one launcher, the cgroups of one project, and the containers in them. Written on anyio alone."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import socket
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from tinyvisor.errors import ContainerError, HostError, LauncherDied, LaunchError, RunFailed, SpecError
from tinyvisor.job import Job
from tinyvisor.places import privileged, run_directory
from tinyvisor.runtime import launcher as wire
from tinyvisor.runtime.adoption import Adoption
from tinyvisor.runtime.ahead import launch_ahead, open_traced, watch_for
from tinyvisor.runtime.asked import check_count, check_made_ahead, spec_of
from tinyvisor.runtime.beside import beside
from tinyvisor.runtime.cgroup import CgroupTree, settled, sweep
from tinyvisor.runtime.container import Container
from tinyvisor.runtime.execs import open_exec, open_socket
from tinyvisor.runtime.host import Host, probe
from tinyvisor.runtime.idmap import IdMap
from tinyvisor.runtime.keeper import KeptLauncher, Kind
from tinyvisor.runtime.launcher import LauncherProcess
from tinyvisor.runtime.launcherworld import LauncherWorld
from tinyvisor.runtime.launches import Launches, Manner
from tinyvisor.runtime.leases import Leases, read_mapped, read_ranges
from tinyvisor.runtime.live import Live
from tinyvisor.runtime.oneshot import COLLECT_LIMIT, DeliverCancel, Input, Run
from tinyvisor.runtime.plan import Around
from tinyvisor.runtime.pool import Pool, WarmRuns
from tinyvisor.runtime.projectlock import ProjectLock, state_in
from tinyvisor.runtime.remains import close_the_gone_to_groups, close_to_groups, forget_remains
from tinyvisor.runtime.results import Results, open_results
from tinyvisor.runtime.shapes import Shapes
from tinyvisor.runtime.shortage import SHORT, as_launch_error
from tinyvisor.runtime.stdio import Stdio, Streams
from tinyvisor.runtime.tracer import STRING_LIMIT, Events, ReadingRules, check_installed, wanted_calls
from tinyvisor.runtime.trees import Trees
from tinyvisor.runtime.usage import read_stats
from tinyvisor.runtime.userns import UserNamespaces
from tinyvisor.runtime.warm import Warm, make_pool
from tinyvisor.runtime.workspace import Workspace
from tinyvisor.spec import DEFAULT_NAME, Limits, Spec, check_name
from tinyvisor.state import Exit, Result, Stats
from tinyvisor.units import parse_size

_runs = itertools.count()


@contextlib.asynccontextmanager
async def open_runtime(*, name: str | None = None, warm: int | None = None, live: bool = False) -> AsyncIterator[Runtime]:
    """A runtime with a launcher of its own. Leaving it, in whatever way, kills every container in it.

    Args:
        name: the project's name, which its cgroups carry; only one runtime of a name can be open at a time. None makes
            one up.
        warm: so many containers are kept ready for `Runtime.run` and `Runtime.map`, once two runs in a row were alike but for
            command, environment, input and output; each is used once. None: one, while such runs come one after the other and
            have nothing of the host's in them (`rootfs`, `volumes`, `files`, a profile of their own), and not in a live runtime;
            it is made beside a run, on another CPU, and ended where no other comes within a second. 0: none.
        live: containers that were `start`ed outlive this process, however it ends, and so they do an exception that leaves the
            runtime. The next live runtime of that name has them (`Runtime.adoptable`), of an ordinary user's in the same user
            namespace. Needs a `name`.

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
        check_count("warm", warm, 0)
    runtime = Runtime(name, probe(), live)
    error: BaseException | None = None
    try:
        runtime._open()
        async with anyio.create_task_group() as group:
            group.start_soon(runtime._serve)
            try:
                await runtime._prepare_first()
                async with beside() as tasks:
                    make = functools.partial(make_pool, runtime._launches)
                    runtime._warm = Warm(0 if warm is None and live else warm, make, tasks)
                    runtime._launches.give_way, runtime._launches.is_alone = runtime._warm.give_way, runtime._warm.another
                    with contextlib.closing(runtime._warm):
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

    def __init__(self, name: str, host: Host, live: bool = False) -> None:
        self.name = name
        self.host: Host = host
        self.live: Live | None = None
        self._wants_live = live
        self._adoption = Adoption()
        self._detached = False
        # What `_open` makes, if it comes so far; `_aclose` asks.
        self._launches: Launches
        self._launcher: LauncherProcess
        self._warm: Warm
        # Shielded: a cancelled program still waits for the end of its containers, and hears of it here.
        self._serving = anyio.CancelScope(shield=True)
        self._stack = contextlib.ExitStack()

    # ---- life ----

    def _open(self) -> None:
        if os.geteuid() != 0:
            raise HostError("containers need root, or a user namespace", "start the program by `tinyvisor unshare PROGRAM`")
        stack, locks = self._stack, run_directory()
        with state_in(locks):
            self.live = live = Live(locks, self.name) if self._wants_live else None
        adopting = live is not None and live.adopted
        if live is not None and adopting and not privileged():  # its cgroups are below those that the supervisor was in
            self.host = probe(live.launcher)
        host = self.host
        stack.enter_context(settled(host.layout))
        self._detached = adopting  # a failure to take them over leaves them as they are
        with state_in(locks):
            fd = live.take(Kind.LOCK) if live is not None else -1
            self._lock = stack.enter_context(ProjectLock(locks, self.name, fd))
        close_to_groups(self.name)
        sweep(host.layout, locks, mine=None if adopting else self.name, forget=functools.partial(forget_remains, locks))
        close_the_gone_to_groups(locks)
        self._tree = CgroupTree.open(host.layout, self.name)
        stack.callback(self._remove_tree)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, null)
        mapped = read_mapped()
        with state_in(locks):
            fd = live.take(Kind.LEASES) if live is not None else -1
            self._leases = Leases(locks, read_ranges(), fd)
        stack.callback(self._leases.close)
        # Above those of all supervisors before us in this boot.
        world = LauncherWorld(itertools.count(time.monotonic_ns() if self._wants_live else 1), live)
        userns = UserNamespaces(host, world, self._leases, mapped)
        stack.callback(userns.close)
        around = Around(host.nested, host.tty_group, host.groups_fixed, self._wants_live, host.landlock)
        trees = Trees(host.release, mapped)
        self._launches = launches = Launches(self, null, live, world, trees, userns, Shapes(self._tree, around))
        if live is None:
            world.launcher = self._launcher = LauncherProcess(launches.heard, nested=host.nested)
            return
        with state_in(locks):
            keeper = live.keeper if adopting else live.start(self._lock.fd, self._leases.fd, nested=host.nested)
        assert keeper is not None
        world.launcher = self._launcher = KeptLauncher(keeper, launches.heard)
        if adopting:
            self._adoption.take_over(live, self, launches, self._leases, self._tree)
            self._detached = False

    async def _prepare_first(self) -> None:
        """What every container needs."""
        if self.live is not None and self.live.adopted:
            await self._adoption.end_never_started(self.live)
            return
        world, nested = self._launches.world, self.host.nested
        await world.set_up(self.name, self._tree, self._lock.fd, self._leases.fd, nested=nested)
        if self.live is not None:
            self.live.ready(self._launcher.pid)

    async def _serve(self) -> None:
        try:
            with self._serving:
                await self._launcher.serve()
        except Exception as exc:  # not only LauncherDied: after a bug, too, nobody shall wait for what can't be heard
            self._launches.world.lose(exc)
            self._launches.lose_all()
            if not isinstance(exc, LauncherDied):
                raise

    def _leave_running(self) -> None:
        """An exception leaves the runtime: what lives goes on."""
        self._detached = self._detached or (self.live is not None and self._launches.world.dead is None)

    def _remove_tree(self) -> None:
        """The launcher has done it already, unless it was killed."""
        if self._detached:
            self._tree.close()
            self._lock.keep = True
        else:
            self._lock.keep = bool(self._tree.remove())

    async def _aclose(self) -> None:
        launches = getattr(self, "_launches", None)
        launcher = getattr(self, "_launcher", None)
        if launches is not None:
            launches.world.left = True
        try:
            if isinstance(launcher, KeptLauncher) and self._detached:
                launcher.detach()
            elif launcher is not None:
                await launcher.aclose()
                if self.live is not None:
                    self.live.remove()
            elif self.live is not None:
                self.live.release()
        finally:
            if launches is not None:
                launches.lose_all()
            self._adoption.close()
            self._stack.close()

    # ---- containers ----

    @property
    def containers(self) -> Mapping[int, Container]:
        """Those that run, by number; exec'ed processes, too."""
        return self._launches.containers

    @property
    def root_ids(self) -> IdMap | None:
        """What the owners in an unpacked root are here; None: as in the tarball."""
        return self._launches.trees.root_ids

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
        spec = spec_of(command, limits, changes)
        return _Scope(self._launches, functools.partial(self._start, spec, stdin, stdout, stderr, terminal, before_exec))

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
        with as_launch_error(spec):
            streams = Streams(stdin, stdout, stderr, self._launches.null, staged=self.live is not None)
        if before_exec is None:
            return await self._launches.launch(spec, streams, Manner(terminal=terminal, events=True, live=self.live))
        return await launch_ahead(self._launches, spec, streams, terminal, before_exec)

    @property
    def adoptable(self) -> tuple[str, ...]:
        """Names of containers that the runtime before this one has left, until they are adopted."""
        return tuple(self._adoption.waiting)

    def adopt(self, name: str) -> AbstractAsyncContextManager[Container]:
        """One of `adoptable` as the scope that `start` gives. It runs, or has ended meanwhile; its output is what nobody has
        read before.

        Raises:
            SpecError: none of that name was left, or it has been adopted already.
            NotLaunched: it never came to be.
            LaunchError: a step failed.
        Cancellation: as `start`.
        """
        return _Scope(self._launches, functools.partial(self._adoption.adopt, name))

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
        spec = spec_of(command, limits, changes)
        check_count("string_limit", string_limit, 0)
        calls = wanted_calls(filter)
        if "SYS_PTRACE" in spec.capabilities:
            raise SpecError("cap_add", "who is traced can't trace: SYS_PTRACE and a tracer exclude each other")
        check_made_ahead(spec)
        check_installed()
        rules = ReadingRules.of(spec)
        if rules.told and summary:
            raise SpecError("on_syscall", "what is read is not read where calls are only counted: leave out one of both")
        watch = watch_for(spec, calls, rules, seccomp_bpf)
        how = {"limit": string_limit, "counting": summary, "interleaved": interleaved and not summary}
        stdio = (stdin, stdout, stderr)
        async with open_traced(self._launches, spec, stdio, terminal, calls, rules, watch, **how) as traced:
            yield traced

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
        spec = spec_of(command, limits, changes)
        if files or collect:
            Job(spec=spec, files=files or {}, collect=collect)  # type: ignore[arg-type] # for its checks
        one = Run(
            spec=spec, stdin=stdin, stdout=stdout, stderr=stderr, capture_stdout=capture_stdout, capture_stderr=capture_stderr,
            files=files or {}, collect=tuple(collect), collect_limit=collect_limit, directory=working_directory,
            deliver_cancel=deliver_cancel,
        )  # fmt: skip
        if deliver_cancel is not None and not callable(deliver_cancel):
            raise SpecError("deliver_cancel", f"expected an async function, got {deliver_cancel!r:.100}")
        if working_directory is not None and working_directory not in self._launches.workspaces.open_ones:
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
            check_count("concurrency", concurrency, 1)
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
        check_count("inodes", inodes, 1)
        check_count("mode", mode, 0)
        try:
            size = parse_size(size)
        except ValueError as exc:
            raise SpecError("size", str(exc)) from None
        check_count("size", size, 1)  # 0 is no limit, to a tmpfs
        async with self._launches.workspaces.open(size, inodes, mode) as workspace:
            yield workspace

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
        check_count("size", size, 1)
        spec = spec_of(command, changes.pop("limits", None), changes)
        if spec.name != DEFAULT_NAME:
            raise SpecError("name", "several containers can't have it at once; leave it out")
        if spec.network_mode.startswith("service:"):
            raise SpecError("network_mode", "a container made ahead can't join another's network")
        check_made_ahead(spec)
        pool = make_pool(self._launches, spec, size)
        try:
            async with beside(pool.keep_full):
                yield WarmRuns(self._run, spec, pool)
        finally:
            await self._launches.wait_cleaned_up()

    async def _run(self, run: Run, pool: Pool | None = None) -> Result:
        with self._warm.run(run, pool) as pool:
            try:
                return await run.carry_out(self._launches, pool)
            except LaunchError as error:  # nothing of the command's has run
                if error.errno not in SHORT or not run.can_be_repeated or not await self._warm.give_way():
                    raise
            return await run.carry_out(self._launches)

    # ---- what a container asks for ----

    def kill(self, container: Container) -> None:
        """SIGKILL for everything in it."""
        self._launches.kill(container)

    def stats(self, container: Container) -> Stats:
        """What its cgroups count."""
        return read_stats(self._tree.layout, self._tree.fds, container.name)

    def heard_end(self, container: Container, event: wire.Event) -> None:
        """Its init says that it has ended."""
        self._launches.heard_end(container, event)

    def exec(
        self, container: Container, spec: Spec, stdin: Stdio, stdout: Stdio, stderr: Stdio, terminal: tuple[int, int]
    ) -> AbstractAsyncContextManager[Container]:
        """One more process in a running container, as a scope; see `Container.open_exec`."""
        return open_exec(self._launches, container, spec, stdin, stdout, stderr, terminal)

    async def open_socket(self, container: Container, domain: int) -> socket.socket:
        """See `Container.open_socket`."""
        return await open_socket(self._launches, container, domain)


class _Scope(AbstractAsyncContextManager[Container]):
    """A container that runs, until the scope is left. No generator: thousands of them are entered for as long as they run."""

    __slots__ = ("_container", "_launches", "_make")

    def __init__(self, launches: Launches, make: Callable[[], Awaitable[Container]]) -> None:
        self._launches = launches
        self._make: Callable[[], Awaitable[Container]] | None = make
        self._container: Container | None = None

    async def __aenter__(self) -> Container:
        make, self._make = self._make, None
        if make is None:
            raise RuntimeError("entered before")
        container = self._container = await make()
        await self._launches.wait_started(container)
        return container

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        container, self._container = self._container, None
        if container is not None:
            await self._launches.leave(container, failed=kind is not None)
