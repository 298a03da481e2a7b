"""Runs a batch: its inputs, what signals mean, what is told of it. On trio."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import trio

from tinyvisor.batch import Batch, Policy, Runtime
from tinyvisor.cli import pid1
from tinyvisor.cli.progress import Board, Snapshot
from tinyvisor.cli.signals import ENDING, heeded
from tinyvisor.cli.wholefile import check_place, write_whole
from tinyvisor.errors import ConfigError, ConfigProblem, TinyvisorError
from tinyvisor.jobs import MAX_LINE, Invalid, NumberedJob, Reader, Template, describe
from tinyvisor.journal import Journal
from tinyvisor.outputs import OutputDir
from tinyvisor.report import Tally, summary_line, to_html, to_markdown, why
from tinyvisor.runtime import open_runtime, rootless
from tinyvisor.state import Result
from tinyvisor.units import format_duration

if TYPE_CHECKING:
    from tinyvisor.cluster.client import Cluster
    from tinyvisor.cluster.connect import Credentials, Place

MOST_PROBLEMS = 100
"""Problems of the input that are told at once."""
CHUNK = 64 << 10
CHECKPOINT = 64
"""Jobs that are read, or found done already, between two looks at what else there is to do."""
REFRESH = 0.2
"""Seconds between two looks of the progress display."""
WINDOW = 50
"""Looks that the rate is taken over."""
SHOWN = 8
"""Running jobs that the progress display names."""

Found = NumberedJob | Invalid


# --- What goes in. ---


class Inputs:
    """The jobs of a command line, in its order. Regular files are checked first, then read again as their jobs are run.

    Args:
        words: files of jobs, ``-`` for stdin; the arguments where there is a `template`.
        skip_invalid: bad jobs are told and passed over.

    Attributes:
        total: how many jobs there are; None until `check`, and where some come from a stream.
        on_invalid: called for each job that is passed over.
    """

    def __init__(self, reader: Reader, words: Sequence[str], *, template: Template | None, skip_invalid: bool) -> None:
        self.total: int | None = None
        self.on_invalid: Callable[[Invalid], None] = lambda invalid: None
        self._reader, self._words, self._template, self._skip = reader, tuple(words), template, skip_invalid
        self._streams = ("-",) if template and not words else () if template else tuple(filter(_is_stream, words))

    def check(self, say: Callable[[str], None]) -> None:
        """Reads everything that can be read twice.

        Args:
            say: gets a line for each problem of a job that is passed over.

        Raises:
            ConfigError: some of it is wrong.
        """
        problems: list[ConfigProblem] = []
        good = 0
        for item in self._known():
            if not isinstance(item, Invalid):
                good += 1
            elif self._skip and not item.file:
                for problem in item.problems:
                    say(str(problem))
            else:
                problems += item.problems
                if len(problems) >= MOST_PROBLEMS:
                    break
        if problems:
            raise ConfigError(problems)
        self._reader.rewind()
        self.total = None if self._streams else good

    def _known(self) -> Iterator[Found]:
        if self._template is not None:
            yield from self._arguments(self._template)
        else:
            for word in self._words:
                if word not in self._streams:
                    yield from self._reader.file(Path(word))

    def _arguments(self, template: Template) -> Iterator[Found]:
        for number, argument in enumerate(self._words, 1):
            yield from self._reader.argument(template, argument, Path("argument"), number)

    async def jobs(self) -> AsyncGenerator[NumberedJob, None]:
        """The jobs, as far as they are good.

        Raises:
            ConfigError: one is not, and they are not to be passed over.
        """
        if self._template is not None and self._words:
            sources: list[Iterator[Found] | str] = [self._arguments(self._template)]
        else:
            sources = [word if word in self._streams else self._reader.file(Path(word)) for word in self._words or ("-",)]
        for source in sources:
            if isinstance(source, str):
                async with contextlib.aclosing(self._stream(source)) as found:
                    async for item in found:
                        if self._is_good(item):
                            yield item
                continue
            for count, item in enumerate(source):
                if count % CHECKPOINT == 0:
                    await trio.lowlevel.checkpoint()
                if self._is_good(item):
                    yield item

    def _is_good(self, item: Found) -> TypeGuard[NumberedJob]:
        if not isinstance(item, Invalid):
            return True
        if not self._skip or item.file:
            raise ConfigError(list(item.problems))
        self.on_invalid(item)
        return False

    async def _stream(self, word: str) -> AsyncGenerator[Found, None]:
        path = Path(word)
        fd = 0
        if word != "-":
            try:  # from a thread: a FIFO waits for its writer
                fd = await trio.to_thread.run_sync(os.open, word, os.O_RDONLY | os.O_CLOEXEC, abandon_on_cancel=True)
            except OSError as error:
                yield Invalid((ConfigProblem(path, 1, 1, "", f"can't be read: {error.strerror}"),), file=True)
                return
        try:
            async with contextlib.aclosing(read_lines(fd)) as lines:
                number = 0
                async for line in lines:
                    number += 1
                    for item in self._line(path, number, line):
                        yield item
        finally:
            if fd:
                os.close(fd)

    def _line(self, path: Path, number: int, line: bytes) -> Iterator[Found]:
        if self._template is None:
            return self._reader.line(path, number, line)
        argument = os.fsdecode(line.removesuffix(b"\n"))
        return self._reader.argument(self._template, argument, path, number)


def _is_stream(word: str) -> bool:
    """Whether it can be read only once."""
    if word == "-":
        return True
    try:
        return not stat.S_ISREG(os.stat(word).st_mode) and not os.path.isdir(word)
    except OSError:
        return False  # whoever reads it says so


async def read_lines(fd: int) -> AsyncGenerator[bytes, None]:
    """Lines as they come, each with its newline; of one that is longer than `MAX_LINE` so much that this shows."""
    rest = bytearray()
    too_long = False
    count = 0
    while data := await _read_some(fd):
        *lines, last = data.split(b"\n")
        for line in lines:
            if not too_long:
                yield bytes(rest) + line + b"\n"
            rest.clear()
            too_long = False
            count += 1
            if count % CHECKPOINT == 0:
                await trio.lowlevel.checkpoint()
        if not too_long:
            rest += last
            if len(rest) > MAX_LINE:
                yield bytes(rest)
                rest.clear()
                too_long = True
    if rest:
        yield bytes(rest)


async def _read_some(fd: int) -> bytes:
    while True:
        try:
            await trio.lowlevel.wait_readable(fd)
        except OSError as error:
            if error.errno != errno.EPERM:  # a file is always readable, and epoll does not take it
                raise
        try:
            return os.read(fd, CHUNK)
        except BlockingIOError:
            continue
        except OSError as error:
            raise TinyvisorError(f"the input can't be read: {error.strerror}") from None


# --- The run. ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the options say of the batch as a whole; the names are theirs."""

    policy: Policy
    results: Path | None = None
    resume: bool = False
    output_dir: Path | None = None
    report: Path | None = None
    verbose: bool = False
    quiet: bool = False
    memory_budget: int | None = None
    cluster: Place | None = None
    credentials: Credentials | None = None
    jobs: str | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any], *, concurrency: int, credentials: Credentials | None = None) -> Settings:
        policy = Policy(
            concurrency=concurrency,
            memory_budget=None if options["cluster"] else options["memory_budget"],  # there it is each node's
            retries=options["retries"],
            retry_on=Policy(concurrency=1).retry_on | options["retry_on"],
            fail_fast=options["fail_fast"],
        )
        names = ("results", "resume", "output_dir", "report", "verbose", "quiet", "memory_budget", "cluster", "jobs")
        return cls(policy=policy, credentials=credentials, **{name: options[name] for name in names})


def run_batch(inputs: Inputs, settings: Settings) -> int:
    """Checks the inputs and runs their jobs; the exit code.

    Raises:
        TinyvisorError: the input, the files to write, or this host are at fault. May come in an `ExceptionGroup`.
    """
    if settings.report is not None:
        check_place(settings.report)
    pid1.leave()  # before anything is read from stdin
    inputs.check(_complain)
    if settings.cluster is None:  # else each node does
        rootless.enter()
    with contextlib.ExitStack() as files:
        client = None
        journal = outputs = None
        if settings.output_dir is not None:
            outputs = files.enter_context(OutputDir(settings.output_dir, resume=settings.resume))
        if settings.results is not None:
            journal = files.enter_context(Journal(settings.results, resume=settings.resume))
        if settings.cluster is not None:
            from tinyvisor.cluster.connect import connected

            client = files.enter_context(connected(settings.cluster, settings.credentials))
        live = not settings.quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        with Board(2, live=live, colour=not os.environ.get("NO_COLOR")) as board:
            session = _Session(inputs, settings, board, journal, outputs, client)
            try:
                trio.run(session.run)
            finally:
                session.conclude()
    if session.interrupted:
        return 128 + session.interrupted
    return 0 if session.tally.all_ok else 1


def _complain(text: str) -> None:
    print(text, file=sys.stderr)


@dataclass(slots=True)
class _Session:
    """One batch under a `Board`.

    Attributes:
        interrupted: the signal that ended it, 0 where none did.
    """

    inputs: Inputs
    settings: Settings
    board: Board
    journal: Journal | None
    outputs: OutputDir | None
    client: Any = None
    tally: Tally = field(default_factory=Tally)
    interrupted: int = 0
    _started: float = 0.0
    _seconds: float = 0.0
    _cluster: Cluster | None = None

    async def run(self) -> None:
        self._started = trio.current_time()
        try:
            with trio.open_signal_receiver(*heeded(ENDING)) as signals:
                async with self._runtime() as runtime:
                    batch = Batch(
                        runtime,
                        self.inputs.jobs(),
                        self.settings.policy,
                        journal=self.journal,
                        outputs=self.outputs,
                        on_finished=self._tell,
                    )
                    self.tally = batch.tally
                    self.inputs.on_invalid = self._skip
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._heed, signals, batch)
                        nursery.start_soon(self._watch, batch)
                        await batch.run()
                        nursery.cancel_scope.cancel()
        finally:
            self._seconds = trio.current_time() - self._started

    @contextlib.asynccontextmanager
    async def _runtime(self) -> AsyncIterator[Runtime]:
        """Where jobs run."""
        if self.client is None:
            async with open_runtime() as runtime:
                yield runtime
        else:
            from tinyvisor.cluster.client import Cluster

            budget = self.settings.memory_budget
            self._cluster = Cluster(self.client, slots=self.settings.jobs, memory_budget=budget, say=self._say)
            yield self._cluster

    async def _heed(self, signals: AsyncIterator[int], batch: Batch) -> None:
        """The first signal kills what runs, the second one does not wait until it is gone: the launcher sees to that."""
        async for number in signals:
            if self.interrupted:
                os._exit(128 + self.interrupted)
            self.interrupted = number
            name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            hint = f"; go on with --resume --results {self.settings.results}" if self.journal and self.journal.regular else ""
            self._say(f"{name}: killing {len(batch.running)} running jobs{hint}")
            batch.stop()

    async def _watch(self, batch: Batch) -> None:
        """Keeps the progress display up to date, as fast as it takes it."""
        if not self.board.live:
            return
        seen: deque[tuple[float, int]] = deque([(trio.current_time(), 0)], maxlen=WINDOW)
        nodes: deque[tuple[float, dict[str, int]]] = deque([(trio.current_time(), {})], maxlen=WINDOW)
        while True:
            await trio.sleep(REFRESH)
            now, done = trio.current_time(), batch.tally.counts.total()
            rate = (done - seen[0][1]) / (now - seen[0][0])
            seen.append((now, done))
            then, before = nodes[0]
            current = {node.label: node.finished for node in self._cluster.nodes} if self._cluster else {}
            nodes.append((now, current))
            names = [describe(job) for _, job in zip(range(SHOWN), batch.running.values(), strict=False)]
            self.board.show(
                Snapshot(
                    finished=batch.tally.finished,
                    total=self.inputs.total,
                    seconds=now - self._started,
                    rate=rate,
                    counts=batch.tally.by_status(),
                    running=len(batch.running),
                    names=names,
                    nodes=[(label, (count - before.get(label, 0)) / (now - then)) for label, count in current.items()],
                )
            )

    def _tell(self, job: NumberedJob, result: Result) -> None:
        if result.status != "ok":
            attempts = f" in attempt {job.attempt}" if job.attempt > 1 else ""
            self._say(f"{describe(job)}: {result.status}{attempts}: {why(result)}")
        elif self.settings.verbose:
            self._say(f"{describe(job)}: ok in {format_duration(result.wall)}")

    def _skip(self, invalid: Invalid) -> None:
        self.tally.invalid += 1
        if self.inputs.total is None:  # else `check` has said it
            for problem in invalid.problems:
                self._say(str(problem))

    def _say(self, text: str) -> None:
        if not self.settings.quiet:
            self.board.say(text)

    def conclude(self) -> None:
        """The summary and the report, of whatever has finished.

        Raises:
            TinyvisorError: the report can't be written.
        """
        self._say(summary_line(self.tally, self._seconds))
        path = self.settings.report
        if path is not None:
            render = to_html if path.suffix == ".html" else to_markdown
            write_whole(path, render(self.tally, title="Batch report", seconds=self._seconds))
