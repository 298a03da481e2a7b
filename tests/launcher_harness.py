"""The launcher, driven by hand and without an event loop, for the tests of it: what can be sent, and what comes back.

`Launcher` starts `serve` as LauncherProcess does. `probe` is a small static C program that runs as a workload. Every wait
is for an event and has a bound (`PATIENCE`). Run as a program, this file is a supervisor that can be killed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import pytest

from hatch_build import ROOT, compile_launcher, find_compiler
from tinyvisor.runtime import launcher as wire
from tinyvisor.runtime import steps as s
from tinyvisor.runtime.launcher import Event, Gone, launcher_path
from tinyvisor.runtime.steps import NAMESPACE_FLAGS, NODEV, NOEXEC, NOSUID, Step
from tinyvisor.runtime.syscalls import open_tree

PATIENCE = 20.0  # seconds; nothing here takes that long
HOST_DIRECTORIES = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
ALL_SIGNALS = tuple(range(1, 65))
UNCATCHABLE = (signal.SIGKILL, signal.SIGSTOP)
SANITIZER_EXIT = 99
SANITIZER = {"ASAN_OPTIONS": f"detect_leaks=0:exitcode={SANITIZER_EXIT}", "UBSAN_OPTIONS": "print_stacktrace=1"}

PROBE = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void mask(int how, uint64_t set) { syscall(SYS_rt_sigprocmask, how, &set, NULL, sizeof set); }

/* Raw, as libc keeps two signals to itself. */
static void standard(int signal)
{
	const uint64_t action[4] = {0};

	syscall(SYS_rt_sigaction, signal, action, NULL, sizeof(uint64_t));
}

static int die(int signal)
{
	setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
	standard(signal);
	mask(SIG_SETMASK, 0);
	kill(getpid(), signal);
	return 1;
}

/* Prints every signal that comes, until SIGTERM. */
static int listen_(const char *ready)
{
	uint64_t all = ~0ull;
	long signal;

	mask(SIG_SETMASK, all);
	puts(ready);
	do {
		signal = syscall(SYS_rt_sigtimedwait, &all, NULL, NULL, sizeof all);
		if (signal > 0)
			printf("%ld\n", signal);
	} while (signal != SIGTERM);
	return 0;
}

static int fds(void)
{
	for (int fd = 0; fd < 4096; fd++)
		if (fcntl(fd, F_GETFD) >= 0)
			printf("%d\n", fd);
	return 0;
}

static int try_open(const char *path)
{
	char target[256];
	int fd;

	printf("readlink %d\n", readlink(path, target, sizeof target) < 0 ? errno : 0);
	printf("read %d\n", open(path, O_RDONLY) < 0 ? errno : 0);
	fd = open(path, O_WRONLY);
	if (fd >= 0 && write(fd, "#", 1) == 1)
		printf("write 0\n");
	else
		printf("write %d\n", errno);
	return 0;
}

/* Zombies whose parent this is. */
static int zombies(int parent)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	int found = 0;

	while ((entry = readdir(proc))) {
		char path[300], text[512], *end, state;
		int fd, ppid;
		ssize_t n;
		snprintf(path, sizeof path, "/proc/%s/stat", entry->d_name);
		if (*entry->d_name < '0' || *entry->d_name > '9' || (fd = open(path, O_RDONLY)) < 0)
			continue;
		n = read(fd, text, sizeof text - 1);
		close(fd);
		text[n < 0 ? 0 : n] = 0;
		end = strrchr(text, ')');
		found += end && sscanf(end, ") %c %d", &state, &ppid) == 2 && state == 'Z' && ppid == parent;
	}
	closedir(proc);
	return found;
}

/* Makes orphans a hundred at a time: most are zombies already when they lose their parent, the last of each is alive. */
static int orphans(int count)
{
	for (int made = 0; made < count; made += 100) {
		pid_t child = fork();
		if (child == 0) {
			const pid_t parent = getpid();
			for (int i = 0; i < 99; i++) {
				pid_t one;
				while ((one = vfork()) < 0)
					usleep(1000);
				if (one == 0)
					_exit(0);
			}
			while ((child = fork()) < 0)
				usleep(1000);
			while (child == 0 && getppid() == parent)
				usleep(100);
			_exit(0);
		}
		if (child > 0)
			waitpid(child, NULL, 0);
		else
			made -= 100;
	}
	while (zombies(getppid()))
		usleep(1000);
	return 0;
}

/* Many children, and this process with them, end at one moment. */
static int burst(int count)
{
	int hold[2], ready[2];
	char byte;

	if (pipe(hold) || pipe(ready))
		return 1;
	for (int i = 0; i < count; i++)
		if (fork() == 0) {
			close(hold[1]);
			(void)!write(ready[1], "", 1);
			(void)!read(hold[0], &byte, 1);
			_exit(i & 127);
		}
	for (int i = 0; i < count; i++)
		(void)!read(ready[0], &byte, 1);
	_exit(42);
}

/* Leaves a child behind that says who adopted it, waits for the end of stdin, and says so again. */
static int leave(int status)
{
	pid_t self = getpid();
	char byte;

	if (fork())
		return status;
	while (getppid() == self)
		usleep(100);
	printf("adopted by %d\n", (int)getppid());
	while (read(0, &byte, 1) > 0)
		;
	printf("done under %d\n", (int)getppid());
	return 0;
}

/* Leaves a child that prints every signal until `last` comes. */
static int guard(int last)
{
	int ready[2], signal;
	uint64_t all = ~0ull;
	char byte;

	if (pipe(ready))
		return 1;
	if (fork())
		return read(ready[0], &byte, 1) == 1 ? 3 : 1;
	mask(SIG_SETMASK, all);
	(void)!write(ready[1], "", 1);
	do {
		signal = (int)syscall(SYS_rt_sigtimedwait, &all, NULL, NULL, sizeof all);
		if (signal > 0)
			printf("%d\n", signal);
	} while (signal != last);
	return 0;
}

static void on_continue(int signal)
{
	(void)signal;
	(void)!write(1, "continued\n", 10);
}

/* Reads a line, and says when it goes on after a stop. */
static int read_line(void)
{
	char line[100];

	sigaction(SIGCONT, &(struct sigaction){.sa_handler = on_continue, .sa_flags = SA_RESTART}, NULL);
	puts("reading");
	return fgets(line, sizeof line, stdin) ? printf("got:%s", line), 0 : 1;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	int number = argc > 2 ? atoi(argv[2]) : 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!strcmp(what, "exit")) return number;
	if (!strcmp(what, "die")) return die(number);
	if (!strcmp(what, "listen")) return listen_(argc > 2 ? argv[2] : "ready");
	if (!strcmp(what, "fds")) return fds();
	if (!strcmp(what, "open")) return try_open(argv[2]);
	if (!strcmp(what, "orphans")) return orphans(number);
	if (!strcmp(what, "burst")) return burst(number);
	if (!strcmp(what, "leave")) return leave(number);
	if (!strcmp(what, "read")) return read_line();
	if (!strcmp(what, "guard")) return guard(number);
	if (!strcmp(what, "pids")) return printf("%d %d %d\n", (int)getpid(), (int)getppid(), (int)getpgrp()), listen_("ready");
	return 125;
}
"""


# ---- programs ----


@functools.cache
def installed() -> Path:
    """The launcher that is tested: the one that the build installed."""
    return launcher_path()


_built: dict[str, Path] = {}


def _must_build(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], None]) -> Path:
    """Built once per session, for whichever module asks first."""
    if name not in _built:
        path = factory.mktemp("built") / name
        build(path)
        _built[name] = path
    return _built[name]


def _compile_probe(output: Path) -> None:
    compiler = find_compiler()
    if compiler is None:
        if os.environ.get("TINYVISOR_MUST_WORK") == "1":
            pytest.fail("no C compiler", pytrace=False)
        pytest.skip("no C compiler; apt install gcc musl-tools")
    source = output.with_suffix(".c")
    source.write_text(PROBE)
    command = [*compiler.command, "-std=gnu17", "-O1", "-Wall", *compiler.static, str(source), "-o", str(output)]
    subprocess.run(command, check=True, capture_output=True)
    source.unlink()


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static program for the inside of containers; see its `main`."""
    return _must_build(tmp_path_factory, "probe", _compile_probe)


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The launcher with AddressSanitizer and UBSan."""
    return _must_build(tmp_path_factory, "tinyvisor-launcher", lambda path: compile_launcher(path, sanitize=True))


# ---- processes ----


def wait_for_end(pidfd: int, seconds: float = PATIENCE) -> bool:
    """Whether the process ended within this time."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def has_ended(pidfd: int) -> bool:
    return wait_for_end(pidfd, 0)


@contextlib.contextmanager
def pidfd_of(pid: int) -> Iterator[int]:
    """A pidfd whose process is killed at the end, where it is still there."""
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


def status_of(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def wait_for_sleep(pid: int) -> dict[str, str]:
    """Returns when the process is blocked and off the run queue, which state "S" alone doesn't say; its status."""
    deadline = time.monotonic() + PATIENCE
    while Path(f"/proc/{pid}/syscall").read_text().startswith("running"):
        assert time.monotonic() < deadline, status_of(pid)
        os.sched_yield()
    return status_of(pid)


def switches(status: dict[str, str]) -> tuple[str, str]:
    """How often it was switched away from: each sleep counts."""
    return status["voluntary_ctxt_switches"], status["nonvoluntary_ctxt_switches"]


def fds_of(pid: int) -> dict[int, str]:
    """What a process has open."""
    found = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found[int(fd)] = os.readlink(f"/proc/{pid}/fd/{fd}")
    return found


def read_until(fd: int, wanted: bytes, seconds: float = PATIENCE) -> bytes:
    """Reads until this has been seen, and returns all of it.

    Raises:
        AssertionError: the end, or the time, came first.
    """
    seen = b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while wanted not in seen:
        assert poll.poll(seconds * 1000), f"no {wanted!r} in time, but {seen!r}"
        try:
            data = os.read(fd, 65536)
        except OSError:  # EIO: nobody has the other side of the pty
            data = b""
        assert data, f"no {wanted!r} before the end, but {seen!r}"
        seen += data
    return seen


def read_all(fd: int, seconds: float = PATIENCE) -> bytes:
    """Reads to the end."""
    seen = b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while poll.poll(seconds * 1000):
        data = os.read(fd, 65536)
        if not data:
            return seen
        seen += data
    raise AssertionError(f"no end in time, but {seen!r}")


# ---- the launcher ----


class Running:
    """A container: what its init says, and the workload's output."""

    def __init__(self, launcher: Launcher, id: int, events: socket.socket, output: int) -> None:
        self._launcher = launcher
        self.id = id
        self.events = events
        self.output = output
        self.pid = 0

    def wait_started(self) -> Running:
        """Raises AssertionError where it never is."""
        received = wire.receive_event(self.events)
        assert received is not None, f"never started: {self.wait_gone()}"
        assert received[0].type == wire.STARTED
        assert received[0].id == self.id
        self.pid = received[0].a
        return self

    def receive_terminal(self) -> int:
        received = wire.receive_event(self.events)
        assert received is not None
        assert received[0].type == wire.PTY
        return received[1][0]

    def signal(self, number: int, scope: int = wire.SCOPE_WORKLOAD) -> None:
        self.events.send(wire.encode_signal(number, scope))

    def kill(self) -> None:
        self._launcher.send(wire.encode_request(wire.KILL, self.id, pid=self.pid))

    def wait_gone(self) -> Gone:
        return self._launcher.wait_gone(self.id)

    def read_output(self, seconds: float = PATIENCE) -> bytes:
        """All of stdout and stderr, to the end."""
        return read_all(self.output, seconds)

    def close(self) -> None:
        self.events.close()
        if self.output >= 0:
            os.close(self.output)
            self.output = -1


class Launcher:
    """`tinyvisor-launcher serve`, with this process as its supervisor.

    As a context manager it closes the control socket at the end, waits for the launcher's end, and checks that it went well.
    """

    def __init__(self, path: Path | None = None, programs: Path | None = None) -> None:
        """`programs`: a directory that is /probe in containers."""
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(PATIENCE)
        self._programs = programs
        self._next = 1
        self._gone: dict[int, Gone] = {}
        self._containers: list[Running] = []
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        program = wire.sealed_copy(path or installed())
        with theirs:
            self.process = subprocess.Popen(
                ["tinyvisor-launcher", "serve", str(theirs.fileno()), str(os.getpid()), " " * 80],
                executable=f"/proc/self/fd/{program}",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(), program),
                env=SANITIZER,
                start_new_session=True,
            )
        os.close(program)
        self.pidfd = os.pidfd_open(self.process.pid)

    def __enter__(self) -> Launcher:
        try:
            ready = self.receive()
            assert (ready.type, ready.a) == (wire.PREPARED, 0)
            self._prepare_view()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        was_killed = self.process.poll() == -signal.SIGKILL
        status, errors = self.close()
        if kind is None:
            assert errors == b"", errors.decode()
            assert was_killed or status == 0

    def close(self) -> tuple[int, bytes]:
        """Ends it; its exit status, and what it wrote to stderr."""
        self.control.close()
        for container in self._containers:
            container.close()
        if not wait_for_end(self.pidfd):
            self.process.kill()
        os.close(self.pidfd)
        os.close(self._null)
        _, errors = self.process.communicate()
        return self.process.returncode, errors

    # ---- messages ----

    def send(self, message: bytes, fds: Sequence[int] = ()) -> None:
        """As one message, whatever it is."""
        socket.send_fds(self.control, [message], fds)

    def request(self, request: bytes, fds: Sequence[int] = ()) -> None:
        """As LauncherProcess does it: long ones by a memfd."""
        wire.send_request(self.control, request, fds)

    def receive(self) -> Event:
        received = wire.receive_event(self.control)
        assert received is not None, "the launcher is gone"
        return received[0]

    def wait_for(self, type: int, id: int) -> Event:
        """The next event but those that say that containers are gone, which has to be this one."""
        while (event := self.receive()).type == wire.GONE:
            self._gone[event.id] = wire.decode_gone(event.data)
        assert (event.type, event.id) == (type, id)
        return event

    def wait_gone(self, id: int) -> Gone:
        while id not in self._gone:
            event = self.receive()
            assert event.type == wire.GONE, event
            self._gone[event.id] = wire.decode_gone(event.data)
        return self._gone.pop(id)

    def new_id(self) -> int:
        self._next += 1
        return self._next

    def prepare(
        self, steps: Sequence[Step] = (), fds: Sequence[int] = (), *, flags: int = 0, cleanup: Sequence[Step] = ()
    ) -> Event:
        """Has the launcher itself run steps; its answer."""
        id = self.new_id()
        sections = (wire.encode(steps), wire.EMPTY, wire.EMPTY, wire.encode(cleanup))
        self.request(wire.encode_request(wire.PREPARE, id, sections, fds=len(fds), flags=flags), fds)
        return self.wait_for(wire.PREPARED, id)

    def settle(self) -> None:
        """Returns when everything sent before has been dealt with, to the last close."""
        assert self.prepare().a == 0

    def _prepare_view(self) -> None:
        directories = {f"/t/{name}": Path("/", name) for name in HOST_DIRECTORIES if _is_real(Path("/", name))}
        if self._programs:
            directories["/t/probe"] = self._programs
        trees: list[int] = []
        try:
            for path in directories.values():
                trees.append(open_tree(path, recursive=False, read_only=True))
            binds = [s.Bind(slot, target, 0, target) for slot, target in enumerate(directories)]
            prepared = self.prepare(binds, trees)
            assert prepared.a == 0, os.strerror(prepared.a)
        finally:
            for tree in trees:
                os.close(tree)

    # ---- containers ----

    def launch_sections(
        self, init: Sequence[Step], workload: Sequence[Step], *, cleanup: Sequence[Step] = (), stdin: int | None = None,
        trees: Sequence[int] = (), other: Running | None = None,
    ) -> Running:  # fmt: skip
        """Launches without waiting; stdout and stderr are a pipe. `other` is the container that a Join step names."""
        id = self.new_id()
        events, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        events.settimeout(PATIENCE)
        output, write = os.pipe2(os.O_CLOEXEC)
        container = Running(self, id, events, output)
        self._containers.append(container)
        sections = (wire.EMPTY, wire.encode(init), wire.encode(workload), wire.encode(cleanup))
        joined = {"other": other.id, "pid": other.pid} if other else {}
        fds = (theirs.fileno(), self._null if stdin is None else stdin, write, write, *trees)
        try:
            self.request(wire.encode_request(wire.LAUNCH, id, sections, fds=len(fds), **joined), fds)
        finally:
            theirs.close()
            os.close(write)
        return container

    def launch(
        self, *command: str, init: Sequence[Step] = (), workload: Sequence[Step] = (), cleanup: Sequence[Step] = (),
        environment: tuple[tuple[str, str], ...] = (), stdin: int | None = None, how: Step | None = None,
    ) -> Running:  # fmt: skip
        """A container with a view of the host's programs; `init` and `workload` are more steps, `how` the Init step."""
        first = [*root_steps(probe=self._programs is not None), *init, s.DetachWorld(), s.Enter("/container"), how or init_step()]
        second = [*workload_steps(*workload), s.Exec(command, (("PATH", "/usr/bin:/bin"), *environment))]
        return self.launch_sections(first, second, cleanup=cleanup, stdin=stdin)

    def run(self, *command: str, init: Sequence[Step] = (), workload: Sequence[Step] = ()) -> bytes:
        """Runs a command that must succeed; what it wrote."""
        container = self.launch(*command, init=init, workload=workload).wait_started()
        output, gone = container.read_output(), container.wait_gone()
        assert (gone.error, gone.exited, gone.status, gone.init_status) == (0, True, 0, 0), (gone, output)
        return output


def _is_real(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def root_steps(*, probe: bool = False) -> list[Step]:
    """A root with the host's programs, /proc and /dev/null; not entered yet."""
    new = sum(NAMESPACE_FLAGS[name] for name in ("mount", "uts", "ipc", "net"))
    steps: list[Step] = [s.Unshare(new), s.RootTmpfs(16 << 20, 4096, NODEV | NOSUID)]
    for name in HOST_DIRECTORIES:
        path = Path("/", name)
        if path.is_symlink():
            steps.append(s.Link(f"/{name}", os.readlink(path)))
        elif path.is_dir():
            steps.append(s.BindTemplate(f"/t/{name}", f"/{name}", 0))
    if probe:
        steps.append(s.BindTemplate("/t/probe", "/probe", 0))
    return [*steps, s.Mount("proc", "/proc", "", NOSUID | NOEXEC | NODEV), s.BindTemplate("/t/null", "/dev/null", 0)]


def workload_steps(*more: Step) -> list[Step]:
    return [s.Session(), s.CloseFds(), s.Umask(0o022), *more, s.WorkingDir("/")]


def init_step(*, flags: int = 0, grace: int = 0, signal: int = signal.SIGTERM, timeout: int = 0, name: str = "test") -> s.Init:
    return s.Init(flags, grace, signal, timeout, name)


def header(
    *, magic: int = wire.MAGIC, version: int = wire.VERSION, type: int = wire.LAUNCH, length: int = wire._REQUEST.size,
    flags: int = 0, id: int = 7, other: int = 0, pid: int = 0, counts: tuple[int, int, int, int] = (0, 0, 0, 0), fds: int = 0,
) -> bytes:  # fmt: skip
    """A request's header with anything in it."""
    return wire._REQUEST.pack(magic, version, type, length, flags, id, other, pid, *counts, fds, 0)


def raw_step(op: int, numbers: Sequence[int] = (), strings: Sequence[bytes] = (), **wrong: int) -> bytes:
    """A step with anything in it; `wrong` overrides `ints`, `count` (of strings), `length`."""
    body = struct.pack(f"={len(numbers)}Q", *numbers)
    body += b"".join(struct.pack("=I", len(string)) + string + b"\0" for string in strings)
    length = wrong.get("length", wire._STEP.size + len(body))
    return wire._STEP.pack(op, wrong.get("ints", len(numbers)), wrong.get("count", len(strings)), length) + body


# ---- a supervisor that can be killed ----


class Supervisor:
    """Another process that supervises a launcher with some containers, and has a child that holds its socket."""

    def __init__(self, containers: int, *, forks: bool = False) -> None:
        command = [sys.executable, "-m", "tests.launcher_harness", str(containers), str(int(forks))]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._stack = contextlib.ExitStack()
        try:
            assert self.process.stdout is not None
            line = read_until(self.process.stdout.fileno(), b"\n")
            launcher, child, *inits = map(int, line.split())
            self.launcher = self._stack.enter_context(pidfd_of(launcher))
            self.child = self._stack.enter_context(pidfd_of(child)) if forks else -1
            self.inits = [self._stack.enter_context(pidfd_of(pid)) for pid in inits]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.process.kill()
        self._stack.close()  # its child holds its stdout
        self.process.communicate()


def _supervise(containers: int, forks: bool) -> None:
    launcher = Launcher().__enter__()
    running = [launcher.launch("sleep", "1000").wait_started() for _ in range(containers)]
    child = os.fork() if forks else 0
    if forks and child == 0:
        signal.pause()
    print(launcher.process.pid, child, *(container.pid for container in running), flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    _supervise(int(sys.argv[1]), sys.argv[2] == "1")
