"""`up -d`: the parent, which starts the daemon and waits for its word, and the daemon itself, on trio.

The daemon is a new process, not a fork of this one: no state of an event loop or of threads is shared. What it has to say
about its start goes to its parent through a pipe, one JSON object; everything later is in its own log.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tinyvisor import interpreter
from tinyvisor.errors import TinyvisorError
from tinyvisor.spec import Project

if TYPE_CHECKING:
    from tinyvisor.cli.outside import Outside
    from tinyvisor.cli.standby import Standby

LOG: Final = "_daemon.log"
"""Its own log, beside the services': no service can be called so."""

DAEMON_FD: Final = "--daemon-fd"
PROJECT_FD: Final = "--project-fd"
ONLY: Final = "--only"

LOG_SIZE: Final = 1 << 20
LOG_FILES: Final = 3
DRAIN_PATIENCE: Final = 2.0
GC_THRESHOLD: Final = 5_000


UPGRADE_PATIENCE: Final = 0.5
"""Seconds that clients have to take their answers before the daemon starts anew."""


def start_daemon(
    arguments: Sequence[str],
    name: str,
    log_dir: Path,
    *,
    standby: Standby,
    project: Project | None = None,
    quiet: bool = False,
) -> int:
    """Starts ``tinyvisor up`` with `arguments` in the background, for the project `name`.

    Args:
        standby: what becomes the daemon.
        project: as it has been read; None: the daemon reads it. A thousand services take 0.4 s to read, and what reads them takes
            10 MB, which a daemon then need not have before its first reload.

    Returns:
        0 when all services run, or have ended well; 1 when one has failed (the others go on); 2 when nothing was started.
    """
    from tinyvisor.cli.services import Starting
    from tinyvisor.client import Client, is_running

    if is_running(name):
        raise TinyvisorError(f'the project "{name}" is running already; change it with tinyvisor reload')
    try:
        log_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        log = os.open(log_dir / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise TinyvisorError(f"{log_dir / LOG}: {error.strerror}") from None
    reading, writing = os.pipe()
    given = [] if project is None else [_hand_over(project)]
    try:
        words = [word for fd in given for word in (PROJECT_FD, fd)]
        standby.become(["up", DAEMON_FD, writing, *words, *arguments], output=log)
    except OSError:
        raise TinyvisorError("the daemon ended before it had started") from None
    finally:
        for fd in (writing, log, *given):
            os.close(fd)
    try:
        if not quiet:
            Starting(Client(name), ()).watch(reading)
        code, pid = wait_for_word(reading, log_dir, quiet=quiet)
    except KeyboardInterrupt:
        print(f'"{name}" goes on in the background: see tinyvisor ps, tinyvisor down', file=sys.stderr)
        raise
    if code != 2 and not quiet:
        print(f'"{name}" runs in the background (pid {pid}); its logs are in {log_dir}')
    return code


def import_all() -> None:
    """What `run_daemon` and what it calls import one by one else."""
    import tinyvisor.cli.failures
    import tinyvisor.cli.group
    import tinyvisor.cli.outside
    import tinyvisor.cli.up
    import tinyvisor.client
    import tinyvisor.control
    import tinyvisor.metrics
    import tinyvisor.runtime.rootless
    import tinyvisor.supervisor
    import tinyvisor.view  # noqa: F401


def _hand_over(project: Project) -> int:
    fd = os.memfd_create("tinyvisor-project")
    with open(fd, "wb", closefd=False) as file:
        pickle.dump(project, file)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def take_over(fd: int) -> Project:
    """The project that the daemon's parent, which is the same program, has read."""
    with open(fd, "rb") as file:
        project = pickle.load(file)
    assert isinstance(project, Project)
    return project


def wait_for_word(fd: int, log_dir: Path, *, quiet: bool = False) -> tuple[int, int]:
    """The outcome of a daemon's start, as `start_daemon` returns it, and its pid. What there is to say about it is printed,
    where `quiet` only of a start that failed.
    """
    with open(fd, "rb") as pipe:
        word = pipe.read()
    if not word:
        raise TinyvisorError(f"the daemon ended before it had started; {log_dir / LOG} may say why")
    told = json.loads(word)
    code = int(told["code"])
    for line in told["lines"] if code == 2 or not quiet else ():
        print(line, file=sys.stderr)
    return code, int(told["pid"])


def run_daemon(
    project: Project,
    *,
    log_dir: Path,
    word_fd: int,
    reread: Callable[[], Project],
    paths: Sequence[Path],
    outside: Outside,
    live: bool = False,
    only: Sequence[str] = (),
    as_left: bool = False,
) -> int:
    """Runs `project` until somebody ends it: the daemon's whole life.

    Args:
        word_fd: where the outcome of the start goes; closed then.
        live: the containers outlive the daemon, and those of the one before it are taken over.
        only, as_left: as `Supervisor` has them.
    """
    import trio

    from tinyvisor.cli.failures import ExitCodes, expected, lines
    from tinyvisor.client import launcher_of
    from tinyvisor.runtime import rootless

    word = _Word(word_fd)
    with suppress(OSError):
        Path("/proc/self/comm").write_text("tinyvisor")  # as a foreground `up` is called, for pgrep(1) and top(1)
    # What is there now stays, and so does what comes for each service, next to none of it in cycles: to look for them as often as
    # by default is a tenth of our time in the start of a thousand services.
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    try:
        rootless.enter(launcher_of(project.name) if live else 0)
        trio.run(_Daemon(project, log_dir, word, reread, paths, outside, live, only, as_left).run)
    except Exception as error:
        problems = expected(error)
        word.say(2, lines(problems, ExitCodes()) if problems else [f"tinyvisor: a bug; {log_dir / LOG} has the traceback"])
        raise
    return 0


class _Word:
    """What the parent waits for; said once."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)
        self._fd = fd

    def say(self, code: int, lines: Any) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            # Also a client's, of an upgrade, which may have sent anything: it is not what a daemon ends by.
            with suppress(OSError), open(fd, "wb") as pipe:
                pipe.write(json.dumps({"code": code, "pid": os.getpid(), "lines": list(lines)}).encode())


class _Started:
    """A task status of trio's that others can wait for."""

    def __init__(self) -> None:
        import trio

        self._event = trio.Event()
        self.wait = self._event.wait

    def started(self, value: object = None) -> None:
        self._event.set()


class _Daemon:
    def __init__(
        self,
        project: Project,
        log_dir: Path,
        word: _Word,
        reread: Callable[[], Project],
        paths: Sequence[Path],
        outside: Outside,
        live: bool,
        only: Sequence[str],
        as_left: bool,
    ) -> None:
        from tinyvisor.runtime.logfile import LogFile

        self._project = project
        self._log_dir = log_dir
        self._word = word
        self._reread = reread
        self._paths = [os.path.normpath(path.absolute()) for path in paths]
        self._log = LogFile(log_dir / LOG, max_size=LOG_SIZE, max_files=LOG_FILES)
        self._exits: dict[str, Any] = {}
        self._live = live
        self._only = only
        self._as_left = as_left
        self._outside = outside

    async def run(self) -> None:
        import trio

        from tinyvisor.cli.outside import write_record
        from tinyvisor.client import is_abandoned, starts_anew
        from tinyvisor.control import Control, Feed, listening
        from tinyvisor.metrics import Tally
        from tinyvisor.places import run_directory
        from tinyvisor.runner import Live
        from tinyvisor.runtime import open_runtime
        from tinyvisor.runtime.launcher import VERSION
        from tinyvisor.supervisor import Supervisor

        name, feed, tally = self._project.name, Feed(), Tally()

        def on_event(event: Any) -> None:
            feed.event(event)
            tally.event(event)
            self._note(event)

        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            anew = starts_anew(name)  # we are who does
            left = not anew and is_abandoned(name)
            if anew or left:  # whose fds all come at once
                _allow_many_files()
            async with open_runtime(name=name, live=self._live) as runtime:  # holds the project's lock
                _allow_many_files()  # us; the launcher is there by now, whose limit is the containers'
                live = None
                if runtime.live is not None:
                    runtime.live.records.on_problem = self._say
                    runtime.live.writes_starts = False  # the runner's word of it comes at once
                    live = Live(runtime.live.records, runtime.adopt, runtime.adoptable)
                supervisor = Supervisor(
                    runtime,
                    self._project,
                    log_dir=self._log_dir,
                    on_event=on_event,
                    on_output=feed.output,
                    only=self._only,
                    linger=True,
                    live=live,
                    as_left=self._as_left,
                )
                ask, asked = trio.open_memory_channel[int](1)
                control = Control(
                    supervisor,
                    name,
                    feed=feed,
                    reread=self._reread,
                    log_dir=self._log_dir,
                    tally=tally,
                    about={"paths": self._paths, "log_dir": str(self._log_dir), "live": self._live, "launcher_version": VERSION},
                    on_problem=self._say,
                    on_upgrade=ask.send_nowait if self._live else None,
                )
                with listening(run_directory() / f"{name}.sock") as listener:
                    record = run_directory() / f"{name}.json"
                    content = {
                        "name": name,
                        "pid": os.getpid(),
                        "paths": self._paths,
                        "directory": os.getcwd(),
                        "log_dir": str(self._log_dir),
                    }
                    write_record(record, content)
                    try:
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(self._heed, signals, supervisor)
                            await nursery.start(self._outside.serve, control, supervisor, feed, content)
                            nursery.start_soon(control.serve, listener)
                            nursery.start_soon(self._upgrade_when_asked, asked, control)
                            started = _Started()
                            nursery.start_soon(self._report, supervisor, started, anew, left)
                            control.finish(await supervisor.run(task_status=started))
                            await control.drained(DRAIN_PATIENCE)
                            nursery.cancel_scope.cancel()
                    except BaseException:
                        if not self._live:  # else what is left is found by it
                            record.unlink(missing_ok=True)
                        raise
                    record.unlink(missing_ok=True)
        self._say("ended")
        self._log.close()

    async def _upgrade_when_asked(self, asked: Any, control: Any) -> None:
        """Starts anew, in place: the same process, and for the containers as if we had been killed."""
        import trio

        from tinyvisor.cli.outside import write_record
        from tinyvisor.client import ANEW
        from tinyvisor.places import run_directory
        from tinyvisor.processes import identify

        fd = await asked.receive()
        with trio.move_on_after(UPGRADE_PATIENCE):
            await control.drained(UPGRADE_PATIENCE)
        self._say("starting anew")
        record = run_directory() / f"{self._project.name}.json"
        with suppress(OSError, ValueError):  # without it we are taken for dead until we listen again
            write_record(record, json.loads(record.read_text()) | {ANEW: identify(os.getpid())})
        os.set_inheritable(fd, True)
        command = interpreter.command("tinyvisor", *words_anew(sys.argv[1:], fd))
        os.execv(command[0], command)

    async def _report(self, supervisor: Any, started: _Started, anew: bool, left: bool) -> None:
        only: Sequence[str] = ()
        if anew or left:
            await started.wait()
        if left and not self._as_left:
            only, stopped = self._only, supervisor.stopped_by_hand()
            # As an `up -d` does where the daemon lives.
            if names := [summary.name for summary in supervisor.summaries(only) if summary.name in stopped]:
                supervisor.start(names)
        # Who waits for an upgrade waits for no service.
        summaries = supervisor.summaries() if anew else await supervisor.wait(only, until="running")
        failed = [summary for summary in summaries if summary.state == "failed"]
        self._word.say(int(bool(failed)), [f"tinyvisor: {it.name} failed: {it.reason}" for it in failed])

    async def _heed(self, signals: AsyncIterator[int], supervisor: Any) -> None:
        """The first signal stops, every other one kills."""
        first = True
        async for number in signals:
            self._say(f"{signal.Signals(number).name}: {'stopping in order' if first else 'killing everything'}")
            supervisor.request_stop() if first else supervisor.request_kill()
            first = False

    def _note(self, event: Any) -> None:
        from tinyvisor.state import ServiceExited
        from tinyvisor.view import describe_event

        if isinstance(event, ServiceExited):
            self._exits[event.name] = event.exit
            return
        text = describe_event(event, self._exits.pop(event.name, None))
        if text is not None:
            self._say(text)

    def _say(self, text: str) -> None:
        for line in text.splitlines():
            self._log.write("stderr", f"{line}\n".encode("utf-8", "replace"))


def words_anew(words: Sequence[str], fd: int) -> list[str]:
    """A daemon's arguments for when it starts anew: `fd` is where its word goes, and the project is read again."""
    rest = list(words)
    rest[rest.index(DAEMON_FD) + 1] = str(fd)
    for option in (PROJECT_FD, ONLY):  # what was started is known by its record
        while option in rest:
            at = rest.index(option)
            del rest[at : at + 2]
    return rest


def _allow_many_files() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
