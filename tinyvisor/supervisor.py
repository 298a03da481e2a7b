"""Keeps a project's services in the state their policies ask for: one trio task per instance (`runner`), which owns its
container from launch to end.

Decisions are `policy.decide`'s; the runners carry them out. What one runner's change means for others (dependencies there,
a container to follow, whose turn it is to stop) is settled in `Supervisor._react`, without an await, so that no order of
tasks can leave it half done. Commands are synchronous, too: each says what it has set in motion, and nothing can get between.

Bounds, each with what happens when it is reached:

- launches at once: the next one waits; one that takes longer than `turns.LAUNCH_PATIENCE` no longer counts, so a stuck
  launch delays others by that at most, and only while all turns are stuck.
- events and output go to two callbacks, called synchronously and in order. There is no queue that could fill up; a
  callback must not block, and drops what it can't take. The log files are complete all the same.
- a pipe that stays open after its container's end (its write end was passed to another container): read for
  `runner.DRAIN_PATIENCE` and closed.
- a `TinyvisorError` of one container (its launch failed, the host lacks a controller) is that service's failure. Any
  other exception, a callback's too, is a bug or the launcher's death: it cancels all services, whose containers are
  killed (with `Live` they are left to the next supervisor), and comes out of `run` (in an `ExceptionGroup`).
"""

from __future__ import annotations

import random
import signal as signals
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import Path
from typing import Final, Literal

import trio

from tinyvisor.errors import SpecError, TinyvisorError
from tinyvisor.policy import (
    DependencyBack,
    DependencyReplaced,
    KillRequested,
    ReplaceRequested,
    ResetRequested,
    RestartRequested,
    Resumed,
    ServiceEvent,
    StartRequested,
    StopRequested,
    is_lost,
)
from tinyvisor.resume import Standing, decode
from tinyvisor.runner import Container, Events, Live, Need, OnEvent, OnOutput, Runner, Runtime, Surroundings
from tinyvisor.runtime.records import SUPERVISOR
from tinyvisor.spec import Project, Service, instances
from tinyvisor.state import CommandResult, Probe, ServiceSummary
from tinyvisor.tap import Tap
from tinyvisor.turns import Turns

MAX_LAUNCHES: Final = 16

Until = Literal["down", "running", "healthy"]

_IN_PLACE: Final = frozenset({"restart", "depends_on", "on_unhealthy", "scale", "labels", "logging", "start_timeout"})
"""What of a `Service` can change under a running container."""


def exit_code(summaries: Iterable[ServiceSummary], exit_code_from: str | None = None) -> int:
    """What ``up`` exits with: 1 where a service failed for good, else 0; or the named service's last status, the first of its
    instances' that is not 0."""
    if exit_code_from is None:
        return int(any(summary.state == "failed" for summary in summaries))
    own = [summary.exit for summary in summaries if exit_code_from in (summary.name, summary.service)]
    codes = [last.returncode if last is not None else 125 for last in own]
    return next(filter(None, codes), 0)


@dataclass(frozen=True, slots=True)
class Difference:
    """What another version of a project changes: names of services, in order."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    unchanged: tuple[str, ...]


def difference(before: Mapping[str, Service], after: Mapping[str, Service]) -> Difference:
    """What has to be done to come from one to the other."""
    both = [name for name in after if name in before]
    return Difference(
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed=tuple(name for name in both if after[name] != before[name]),
        unchanged=tuple(name for name in both if after[name] == before[name]),
    )


def needs_new_container(before: Service, after: Service) -> bool:
    """Whether a running container of `before` is not one of `after`. A schedule starts anew only with a new container."""
    names = {item.name for item in fields(Service)} - _IN_PLACE
    return before.restart.schedule != after.restart.schedule or any(
        getattr(before, name) != getattr(after, name) for name in names
    )


class Supervisor:
    """Runs `project` once.

    Commands (`start`, `stop`, `restart`, `kill`, `reset_failed`, `scale`, `reload`) are legal while `run` runs, whatever a
    service is doing; none waits, and none concerns any other service than it says. They take names of services (all their
    instances) and of instances; what they return, one result per instance, is what is done at once. `wait` waits.

    Args:
        runtime: where containers come from; stays open until `run` has returned.
        project: its ``depends_on`` and ``network_mode: service:NAME`` must name services of it, without a cycle.
        log_dir: gets one log file per instance, NAME.log; None keeps no logs.
        on_event: told of every event; must not block.
        on_output: told of all output as ``(instance, stream, block)``: whole lines with their newlines, of at most 16 KiB each,
            or a part of a longer or unfinished one; must not block.
        abort_on_container_failure: stop everything when one service fails for good.
        exit_code_from: stop everything when this service has ended, with all of its instances.
        linger: `run` goes on until `request_stop` or `request_kill`, also while nothing runs.
        stopped: instances that somebody had stopped when the supervisor before this one ended (`stopped_by_hand`). Of
            these only those with ``restart: always`` are started.
        only: services, or instances, that are started with what they depend on; all others are as if somebody had stopped them.
            Empty: all are started.
        max_launches: launches at once, >= 1.
        jitter: gives random numbers in 0..1.
        wall: seconds since the epoch, for schedules.
        live: containers outlive us, and `run` goes on from where the supervisor before us has left them; what of the project
            has changed since is then done as by `reload`.
        as_left: it is not, until somebody says `reload`.

    Raises:
        SpecError: a name that is no service, or a cycle.
    """

    def __init__(
        self,
        runtime: Runtime,
        project: Project,
        *,
        log_dir: Path | None,
        on_event: OnEvent = lambda event: None,
        on_output: OnOutput = lambda name, stream, block: None,
        abort_on_container_failure: bool = False,
        exit_code_from: str | None = None,
        linger: bool = False,
        stopped: Collection[str] = (),
        only: Collection[str] = (),
        max_launches: int = MAX_LAUNCHES,
        jitter: Callable[[], float] = random.random,
        wall: Callable[[], float] = time.time,
        live: Live | None = None,
        as_left: bool = False,
    ) -> None:
        if exit_code_from is not None and exit_code_from not in project.services:
            raise SpecError("exit_code_from", f'there is no service "{exit_code_from}"')
        check_graph(project)
        self._abort_on_failure = abort_on_container_failure
        self._exit_code_from = exit_code_from
        self._linger = linger
        self._stopped_before = frozenset(stopped)
        self._only = tuple(only)
        self._as_left = as_left
        self._turns = Turns(max_launches)
        self._around = Surroundings(
            runtime=runtime,
            turns=self._turns,
            events=Events(on_event),
            on_output=on_output,
            log_dir=log_dir,
            jitter=jitter,
            wall=wall,
            on_change=self._changed,
            live=live,
        )
        self._nursery: trio.Nursery | None = None
        self._stopping = False
        self._by_hand: frozenset[str] = frozenset()
        self._news = trio.Event()
        self._unsettled: deque[Runner] = deque()
        self._settling = False
        self._services = dict(project.services)
        self._counts = {name: service.scale for name, service in project.services.items()}
        self._runners = {name: Runner(group, service, self._around) for group, name, service in self._expanded()}
        self._link()
        self._select(self._only)  # raises

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> tuple[ServiceSummary, ...]:
        """Starts everything, and returns when nothing runs and nothing is going to.

        `task_status` is told once every service has its task; launches are then still under way.

        Raises:
            HostError: the log directory can't be used. Nothing was started.

        Cancellation: everything is killed, without grace; with `live` what runs is left as it is.
        """
        try:
            standings = self._restore()
            for runner in self._runners.values():
                runner.use_log(runner.make_log(runner.service))
            async with self._turns.open(), trio.open_nursery() as self._nursery:
                if self._linger:
                    self._nursery.start_soon(self.wait_stopping)
                if standings:
                    self._take_up(standings)
                else:
                    self._note()
                    self._begin()
                task_status.started()
        finally:
            self._nursery = None
            for runner in self._runners.values():
                runner.close_log()
        return self.summaries()

    def _begin(self) -> None:
        """Those that are wanted are started, the others noted as stopped."""
        chosen = self._only and not self._stopping
        wanted = set(self._with_dependencies(self._select(self._only)) if chosen else self._runners.values())
        for runner in list(self._runners.values()):
            if runner in wanted:
                runner.feed(Resumed() if runner.name in self._stopped_before else StartRequested())
            else:
                runner.stop_wanted = True
                runner.note()

    def _restore(self) -> dict[str, Standing]:
        """What the supervisor before us has left, by instance; empty where there was none. Its runners replace ours."""
        live = self._around.live
        if live is None:
            return {}
        get = live.records.get
        standings = {
            name: decode(name, get(name, "standing"), get(name, "service"))
            for name in live.records.names()
            if get(name, "standing") is not None
        }
        if not standings:
            return {}
        self._runners = {name: Runner(it.group, it.service, self._around) for name, it in standings.items()}
        for name, runner in self._runners.items():
            runner.restore(standings[name])
        self._link(leaving=True)
        for name, runner in self._runners.items():
            runner.restore_seen(standings[name].seen)
        return standings

    def _take_up(self, standings: Mapping[str, Standing]) -> None:
        """All that happened while nobody looked, and then what has changed of the project."""
        live = self._around.live
        assert live is not None
        before = live.records.get(SUPERVISOR, "scaled") or {}
        for name, (of_project, count) in before.items():
            if name in self._services and self._services[name].scale == of_project:
                self._counts[name] = count
        for name, standing in standings.items():
            self._runners[name].take_up(standing)
        if self._as_left:
            self._link()
            for runner in list(self._runners.values()):
                self._changed(runner)
        else:
            self._become(self._services, self._counts)

    def _note(self) -> None:
        """For the next supervisor: how many instances somebody wanted of what."""
        if self._around.live is not None:
            scaled = {name: (service.scale, self._counts[name]) for name, service in self._services.items()}
            self._around.live.records.try_update(SUPERVISOR, scaled=scaled)

    def request_stop(self, grace: float | None = None) -> None:
        """Stops everything: dependents before what they depend on, otherwise all at once. Asking again changes nothing.

        Args:
            grace: as in `stop`.
        """
        if not self._stopping:
            for runner in self._runners.values():
                runner.grace = grace
            self.stopped_by_hand()
            self._stopping = True
            for runner in self._runners.values():
                runner.stop_with_all()
            for runner in list(self._runners.values()):
                self._changed(runner)
            self._tell()

    def request_kill(self) -> None:
        """Kills everything now, in no order."""
        self.stopped_by_hand()
        self._stopping = True
        for runner in list(self._runners.values()):
            runner.stop_with_all()
            runner.feed(KillRequested())
        self._tell()

    @property
    def stopping(self) -> bool:
        """Whether everything is to end."""
        return self._stopping

    async def wait_stopping(self) -> None:
        """Until everything is to end, by whoever's request."""
        while not self._stopping:
            await self._news.wait()

    # ---- what there is to know ----

    def summaries(self, names: Iterable[str] = ()) -> tuple[ServiceSummary, ...]:
        """How every instance stands that `names` mean (none: all of them), in the project's order.

        Raises:
            SpecError: there is no such service.
        """
        return tuple(runner.summary() for runner in self._select(names))

    def stopped_by_hand(self) -> frozenset[str]:
        """Instances that are down, or on their way, because somebody said so: what the next supervisor wants to know."""
        if not self._stopping:  # then all are wanted down, and only what was so before counts
            self._by_hand = frozenset(
                runner.name for runner in self._runners.values() if runner.stop_wanted and not runner.leaving
            )
        return self._by_hand

    @property
    def services(self) -> Mapping[str, Service]:
        """What the project consists of now, by name."""
        return dict(self._services)

    def containers(self, names: Iterable[str] = ()) -> dict[str, Container | None]:
        """The container of every instance that `names` mean (none: of all); None where nothing runs.

        Raises:
            SpecError: there is no such service.
        """
        return {runner.name: runner.container for runner in self._select(names)}

    def instances(self, names: Iterable[str] = ()) -> dict[str, Service]:
        """What every instance is that `names` mean (none: all of them).

        Raises:
            SpecError: there is no such service.
        """
        return {runner.name: runner.service for runner in self._select(names)}

    def probes(self, name: str) -> tuple[Probe, ...]:
        """The latest runs of the healthcheck of instance `name`'s container, oldest first.

        Raises:
            SpecError: there is no such instance.
        """
        return tuple(probe for runner in self._select((name,)) for probe in runner.probes)

    @contextmanager
    def tapped(self, name: str) -> Iterator[tuple[Container, Tap]]:
        """The container of the first of `name`'s instances that runs, and its output from now on.

        Raises:
            SpecError: there is no such service.
            TinyvisorError: nothing of it runs.
        """
        runner = next((runner for runner in self._select((name,)) if runner.container is not None), None)
        if runner is None or runner.container is None:
            raise TinyvisorError(f"{name} is not running")
        tap = Tap()
        runner.taps.append(tap)
        try:
            yield runner.container, tap
        finally:
            runner.taps.remove(tap)

    async def wait(self, names: Iterable[str] = (), until: Until = "down") -> tuple[ServiceSummary, ...]:
        """Waits until each of `names` (none: all) is down; or runs, or runs and is healthy, where it does not end first, or
        wait for the time of its schedule.

        Raises:
            SpecError: there is no such service.
        """
        runners, late = self._select(names), 0
        while True:
            # Who was late the last time is looked at first: it mostly still is, and there may be thousands.
            order = chain(range(late, len(runners)), range(late))
            found = next((place for place in order if not _is(runners[place], until)), None)
            if found is None:
                break
            late = found
            await self._news.wait()
        return tuple(runner.summary() for runner in runners)

    # ---- commands ----

    def start(self, names: Iterable[str]) -> tuple[CommandResult, ...]:
        """Starts what is down, and what it depends on and can't go without; skips delays, forgets failures.

        Raises:
            SpecError: there is no such service; nothing was done. So for all commands.
            TinyvisorError: `run` does not run, or is being stopped. So for all commands that start something.
        """
        self._check_live()
        chosen = self._select(names)
        for runner in chosen:
            runner.stop_wanted = False
        return tuple(self._command(runner, StartRequested()) for runner in self._with_dependencies(chosen))

    def stop(self, names: Iterable[str], grace: float | None = None) -> tuple[CommandResult, ...]:
        """Stops them, until they are started by a command: among them dependents first, otherwise all at once.

        Args:
            grace: seconds that each has, instead of its ``stop_grace_period``; who is being stopped already has what it had.
        """
        chosen = self._select(names)
        for runner in chosen:
            runner.stop_wanted = True
            runner.grace = grace
        return tuple(
            self._command(runner, StopRequested()) if runner.is_free_to_stop() or runner.state.down else _later(runner)
            for runner in chosen
        )

    def restart(self, names: Iterable[str], grace: float | None = None) -> tuple[CommandResult, ...]:
        """Gives them new containers; starts those that are down.

        Args:
            grace: as in `stop`, for the old ones.
        """
        self._check_live()
        chosen = self._select(names)
        for runner in chosen:
            runner.stop_wanted = False
            runner.grace = grace
        return tuple(self._command(runner, RestartRequested()) for runner in chosen)

    def kill(self, names: Iterable[str], signal: int = signals.SIGKILL) -> tuple[CommandResult, ...]:
        """SIGKILL ends them as `stop` does, without grace. Any other signal is sent, and what comes of it is theirs.

        Args:
            signal: 1..64.
        """
        chosen = self._select(names)
        if signal != signals.SIGKILL:
            return tuple(_signalled(runner, signal) for runner in chosen)
        for runner in chosen:
            runner.stop_wanted = True
        return tuple(self._command(runner, KillRequested()) for runner in chosen)

    def reset_failed(self, names: Iterable[str] = ()) -> tuple[CommandResult, ...]:
        """Forgets past failures (of all, without `names`): what has failed counts as stopped, and rows of restarts and the
        start limit begin anew."""
        return tuple(self._command(runner, ResetRequested()) for runner in self._select(names))

    def scale(self, name: str, count: int) -> tuple[CommandResult, ...]:
        """Runs `count` instances of a service: the missing ones are started, those with the highest numbers stopped.

        Raises:
            SpecError: there is no such service, `count` is out of range, or others need it to be one. Nothing was done.
            HostError: a log file can't be used. Nothing was done.
        """
        self._check_live()
        if name not in self._services:
            raise SpecError("scale", f'there is no service "{name}"')
        counts = self._counts | {name: count}
        _check_counts(self._services, counts)
        return self._become(self._services, counts)

    def reload(self, project: Project) -> tuple[CommandResult, ...]:
        """Makes this the project that runs. What has not changed is not touched; what has gets a new container where a
        running one can't be what it should, unless somebody has stopped it.

        Raises:
            SpecError: a name that is no service, or a cycle. Nothing was done.
            HostError: a log file can't be used. Nothing was done.
        """
        self._check_live()
        check_graph(project)
        changed = {name for name in project.services if project.services[name].scale != _scale(self._services.get(name))}
        counts = {name: self._counts.get(name, service.scale) for name, service in project.services.items()}
        counts |= {name: project.services[name].scale for name in changed}
        _check_counts(project.services, counts)
        return self._become(dict(project.services), counts)

    def _become(self, services: dict[str, Service], counts: dict[str, int | None]) -> tuple[CommandResult, ...]:
        before = (self._services, self._counts)
        self._services, self._counts = services, counts
        wanted = {name: (group, service) for group, name, service in self._expanded()}
        runners = {name: self._runners.get(name) or Runner(group, it, self._around) for name, (group, it) in wanted.items()}
        logs = {}
        try:
            for name, runner in runners.items():
                if name not in self._runners or runner.service.logging != wanted[name][1].logging:
                    logs[name] = runner.make_log(wanted[name][1])
        except TinyvisorError:
            self._services, self._counts = before
            for log in logs.values():
                if log is not None:
                    log.close()
            raise
        added = [name for name in runners if name not in self._runners or self._runners[name].leaving]
        removed = [runner for name, runner in self._runners.items() if name not in runners and not runner.leaving]
        changed = {name for name, runner in runners.items() if needs_new_container(runner.service, wanted[name][1])}
        adjusted = {name for name, runner in runners.items() if runner.service != wanted[name][1]} - changed
        self._runners = runners | {name: it for name, it in self._runners.items() if name not in runners}
        for name, runner in runners.items():
            runner.group, runner.service = wanted[name]
            if name in logs:
                runner.use_log(logs[name])
        for name in added:
            runners[name].leaving = runners[name].stop_wanted = False
        for runner in removed:
            runner.leaving = runner.stop_wanted = True
        self._link()
        results = [self._remove(runner) for runner in removed]
        for name, runner in runners.items():
            if name in added:
                results.append(self._command(runner, StartRequested(), "add"))
            elif name in changed:
                results.append(self._command(runner, ReplaceRequested(), "change"))
            else:
                phase = runner.state.phase
                results.append(CommandResult(name, "adjust" if name in adjusted else "nothing", phase, phase))
        self._note()
        for runner in list(self._runners.values()):
            runner.note()  # what it is may have changed
            self._changed(runner)
        return tuple(results)

    def _remove(self, runner: Runner) -> CommandResult:
        before = runner.state.phase
        if runner.is_free_to_stop():
            runner.feed(StopRequested())
        return CommandResult(runner.name, "remove", before, runner.state.phase)

    def _command(self, runner: Runner, event: ServiceEvent, did: str = "") -> CommandResult:
        before = runner.state
        action = runner.feed(event)
        if action == "nothing" and runner.state != before:
            action_name = "forget" if isinstance(event, ResetRequested) else "wait"
        else:
            action_name = action
        return CommandResult(runner.name, did or action_name, before.phase, runner.state.phase)

    def _select(self, names: Iterable[str]) -> list[Runner]:
        """The runners that `names` mean, each once, in the project's order; all where there are none."""
        names = dict.fromkeys(names)  # there may be thousands, as runners
        for name in names:
            if name not in self._services and name not in self._runners:
                raise SpecError("service", f'there is no service "{name}"')
        return [runner for runner in self._runners.values() if not names or runner.name in names or runner.group in names]

    def _with_dependencies(self, chosen: Iterable[Runner]) -> list[Runner]:
        """`chosen`, and what of their dependencies has to be started for them, before them."""
        found: dict[Runner, None] = {}
        pending = [(runner, False) for runner in reversed(list(chosen))]
        while pending:
            runner, done = pending.pop()
            if runner in found:
                continue
            if done:
                found[runner] = None
                continue
            pending.append((runner, True))
            for need in runner.needs:
                joined = need.name == runner.service.network_provider
                for other in need.runners:
                    lost = other.state.down if joined else is_lost(need.terms.condition, other.state)
                    if lost and (joined or need.terms.required) and not other.leaving:
                        other.stop_wanted = False
                        pending.append((other, False))
        return list(found)

    def _check_live(self) -> None:
        if self._nursery is None or not self._nursery.child_tasks:  # `run` is about to return, and takes no more tasks
            raise TinyvisorError("the supervisor is not running")
        if self._stopping:
            raise TinyvisorError("the project is being stopped")

    # ---- what a change means for others ----

    def _expanded(self) -> Iterator[tuple[str, str, Service]]:
        """Service, instance, and what the instance is."""
        for group, service in self._services.items():
            for name, copy in instances(service, self._counts[group]).items():
                yield group, name, copy

    def _link(self, *, leaving: bool = False) -> None:
        """`leaving`: what leaves is told, too, whom it needs."""
        groups: dict[str, list[Runner]] = {}
        dependents: dict[Runner, list[Runner]] = {runner: [] for runner in self._runners.values()}
        for runner in self._runners.values():
            if leaving or not runner.leaving:
                groups.setdefault(runner.group, []).append(runner)
        for runner in self._runners.values():
            if leaving or not runner.leaving:  # what leaves keeps what it knew, for the order of the stop
                terms = sorted(runner.service.needs.items())
                runner.needs = tuple(Need(name, term, tuple(groups.get(name, ()))) for name, term in terms)
            for need in runner.needs:
                for other in need.runners:
                    dependents.setdefault(other, []).append(runner)
        for runner, found in dependents.items():
            runner.dependents = tuple(found)

    def _changed(self, runner: Runner) -> None:
        """A worklist instead of recursion: a chain of dependencies may be longer than Python's stack."""
        self._unsettled.append(runner)
        if self._settling:
            return
        self._settling = True
        try:
            while self._unsettled:
                self._react(self._unsettled.popleft())
        finally:
            self._settling = False
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    def _react(self, runner: Runner) -> None:
        """What the state that `runner` is in means for the others."""
        if not runner.state.down and not runner.busy and self._nursery is not None:
            runner.busy = True
            self._nursery.start_soon(runner.run)
        for candidate in (runner, *runner.dependents):
            candidate.wake()
            if not self._stopping and candidate.is_cut_off():
                candidate.feed(DependencyReplaced())
            if not self._stopping and candidate.may_come_back():
                candidate.feed(DependencyBack())
        if self._ends_all(runner):
            self.request_stop()
        for candidate in (runner, *(other for need in runner.needs for other in need.runners)):
            if candidate.stop_wanted and candidate.is_free_to_stop():
                candidate.feed(StopRequested())
        if runner.leaving and runner.state.down and not runner.busy:
            self._forget(runner)

    def _forget(self, runner: Runner) -> None:
        if self._runners.get(runner.name) is runner:
            runner.close_log()
            del self._runners[runner.name]
            if self._around.live is not None:
                self._around.live.records.forget(runner.name)
            self._link()

    def _ends_all(self, runner: Runner) -> bool:
        failed = self._abort_on_failure and runner.state.phase == "failed"
        if failed or runner.group != self._exit_code_from:
            return failed
        return all(other.has_begun and other.state.down for other in self._runners.values() if other.group == runner.group)


def _is(runner: Runner, until: Until) -> bool:
    if runner.state.down:
        return not runner.busy  # nor is there a container that was made ahead
    if until == "down":
        return False
    return runner.state.phase == "scheduled" or (runner.is_up and (until == "running" or runner.is_well))


def _later(runner: Runner) -> CommandResult:
    """It is stopped once its dependents are down, or is already being."""
    phase = runner.state.phase
    return CommandResult(runner.name, "nothing" if phase == "stopping" else "later", phase, phase)


def _signalled(runner: Runner, signal: int) -> CommandResult:
    phase = runner.state.phase
    if runner.signal(signal):
        return CommandResult(runner.name, "signal", phase, phase)
    return CommandResult(runner.name, "nothing", phase, phase, "nothing runs")


def _scale(service: Service | None) -> int | None:
    return service.scale if service is not None else None


def check_graph(project: Project) -> None:
    """Raises `SpecError` for a dependency that is not there, a cycle, or two instances with one name."""
    services = project.services
    graph = {name: set(service.needs) & services.keys() for name, service in services.items()}
    for name, service in services.items():
        for other, terms in sorted(service.needs.items()):
            if other not in services and (terms.required or other == service.network_provider):
                raise SpecError("depends_on", f'{name} needs "{other}", and there is no such service')
            if other in services and terms.condition == "service_healthy" and not services[other].tells_health:
                raise SpecError("depends_on", f"{name} needs {other} healthy, which has no healthcheck and no ready_log")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise SpecError("depends_on", f"a cycle: {' → '.join(reversed(error.args[1]))}") from None
    _check_counts(services, {name: service.scale for name, service in services.items()})


def _check_counts(services: Mapping[str, Service], counts: Mapping[str, int | None]) -> None:
    owners: dict[str, str] = {}
    for group, service in services.items():
        for name in instances(service, counts[group]):
            if name in owners:
                raise SpecError("scale", f'"{name}" would be an instance of both {owners[name]} and {group}')
            owners[name] = group
        provider = service.network_provider
        if provider is not None and counts.get(provider) not in (None, 1):
            raise SpecError("scale", f"{group} joins the network of {provider}, of which there must be one")
