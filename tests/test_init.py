"""`tinyvisor-launcher init`, the same PID 1 by itself: tested as tini is, and on what its like got wrong.

Source of the traps: tini#138, #164, PR#64; dumb-init#51, #136, #260, PR#10, PR#25; catatonit#4, #5; podman#18095;
bubblewrap#146; systemd PR#4855.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests import launcher_harness as harness
from tests.launcher_harness import ALL_SIGNALS, PATIENCE, UNCATCHABLE, pidfd_of, read_all, read_until, wait_for_end

probe = harness.probe
sanitized = harness.sanitized

IGNORED_BY_DEFAULT = (signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH)
STOPPING = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
TERMINATING = tuple(number for number in ALL_SIGNALS if number not in (*IGNORED_BY_DEFAULT, *STOPPING))
FORWARDED = tuple(number for number in ALL_SIGNALS if number not in (*UNCATCHABLE, signal.SIGCHLD))
ENDS_LISTENING = signal.SIGTERM


def under_init(*command: str | Path, options: Sequence[str] = ()) -> list[str]:
    return [str(harness.installed()), "init", *options, "--", *map(str, command)]


def run(*command: str | Path, options: Sequence[str] = (), **how: object) -> subprocess.CompletedProcess[str]:
    """Without our terminal, if we have one: what runs here must not take it."""
    usual = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "start_new_session": True, "timeout": PATIENCE}
    return subprocess.run(under_init(*command, options=options), **{**usual, **how})  # type: ignore[call-overload,no-any-return]


@contextlib.contextmanager
def started(command: Sequence[str], **how: object) -> Iterator[subprocess.Popen[bytes]]:
    """Its stdin and stdout are pipes. All its session is killed at the end, where it is still there."""
    process = subprocess.Popen(  # type: ignore[call-overload]
        command, **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "start_new_session": True, **how}
    )
    try:
        yield process
    finally:
        for pid in session_members(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.kill()
        process.communicate()


def session_members(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[3]) == session:
                    found.append(int(entry.name))
    return found


def output(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    return process.stdout.fileno()


def end_input(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.stdin = None


@contextlib.contextmanager
def all_signals_blocked() -> Iterator[None]:
    """What is started here inherits it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- exit status ----


def test_all_exit_codes(probe: Path) -> None:
    wrong = {code: run(probe, "exit", str(code)).returncode for code in range(256)}
    assert wrong == {code: code for code in range(256)}


def test_all_terminating_signals_are_128_and_more(probe: Path) -> None:
    assert len(TERMINATING) == 56
    codes = {number: run(probe, "die", str(number)).returncode for number in TERMINATING}
    assert codes == {number: 128 + number for number in TERMINATING}


def test_missing_command_is_127() -> None:
    result = run("no-such-command-anywhere")
    assert result.returncode == 127
    assert "no-such-command-anywhere: No such file or directory" in result.stderr
    assert run("/no/such/file").returncode == 127


def test_command_that_cannot_be_executed_is_126(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("#!/bin/sh\n")
    assert run(file).returncode == 126
    assert run(tmp_path).returncode == 126
    assert run(file / "below").returncode == 126  # not a directory: as bash and env have it
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    assert run(script).returncode == 127


@pytest.mark.parametrize(
    "options",
    [["-x"], ["-p", "x"], ["-p"], ["-p", "65"], ["-p", "-1"], ["-t", "soon"], ["-t", "-1"], ["-t", "99999999999"], ["-t", ""]],
)
def test_wrong_options_are_125(options: list[str]) -> None:
    result = run("true", options=options)
    assert result.returncode == 125
    assert "usage:" in result.stderr


def test_no_command_is_125() -> None:
    assert run().returncode == 125


def test_options_of_the_command_are_its_own() -> None:
    assert run("sh", "-c", 'echo "$@"', "sh", "-g", "--", "-s").stdout == "-g -- -s\n"


# ---- what the command inherits ----


def signal_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if re.match(r"Sig(Blk|Ign|Cgt)|ShdPnd", line)]


IGNORED = (signal.SIGHUP, signal.SIGCHLD, signal.SIGTSTP, signal.SIGTTOU, signal.SIGUSR2, 40)
BLOCKED = (signal.SIGUSR1, signal.SIGTERM, signal.SIGCHLD, signal.SIGTTIN, 50)


def _odd_signals() -> None:
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)


@pytest.mark.parametrize("prepare", [None, _odd_signals])
def test_mask_and_dispositions_are_the_callers(prepare: Callable[[], None] | None) -> None:
    how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True, "preexec_fn": prepare}
    direct = subprocess.run(["cat", "/proc/self/status"], check=True, **how)  # type: ignore[call-overload]
    through = run("cat", "/proc/self/status", preexec_fn=prepare, capture_output=False, stdout=subprocess.PIPE)
    assert signal_lines(through.stdout) == signal_lines(direct.stdout)
    assert len(signal_lines(direct.stdout)) == 4
    if prepare:
        sets = {line[3:6]: int(line.split()[1], 16) for line in signal_lines(through.stdout)}
        assert all(sets["Ign"] >> number - 1 & 1 for number in IGNORED)
        assert all(sets["Blk"] >> number - 1 & 1 for number in BLOCKED)


def test_fds_environment_and_directory_are_the_callers(tmp_path: Path, probe: Path) -> None:
    held, other = os.pipe()
    try:
        assert run(probe, "fds", pass_fds=[held]).stdout.split() == ["0", "1", "2", str(held)]
    finally:
        os.close(held)
        os.close(other)
    assert run("pwd", cwd=tmp_path).stdout.strip() == str(tmp_path)
    assert run("env", env={"PATH": "/usr/bin:/bin", "A": "b"}).stdout.splitlines() == ["PATH=/usr/bin:/bin", "A=b"]


def test_stdio_may_be_closed(probe: Path) -> None:
    closed = run(probe, "exit", "5", preexec_fn=lambda: os.closerange(0, 3), capture_output=False)
    assert closed.returncode == 5


def test_works_while_sigchld_is_ignored() -> None:
    """The kernel would reap by itself then, and tell nobody: init must not wait for ever."""
    assert run("sh", "-c", "exit 9", preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)).returncode == 9


# ---- forwarding ----


def _listen_to_all(command: Sequence[str]) -> list[int]:
    """Sends every signal there is to the process itself, one after the other; those that its workload got."""
    with started(command) as process:
        read_until(output(process), b"ready\n")
        for number in FORWARDED:
            if number != ENDS_LISTENING:
                os.kill(process.pid, number)
                assert read_until(output(process), b"\n") == f"{number}\n".encode()
        os.kill(process.pid, ENDS_LISTENING)
        rest = read_all(output(process))
        assert process.wait(PATIENCE) == 0
    return [int(line) for line in rest.split()]


def test_every_signal_is_forwarded(probe: Path) -> None:
    assert len(FORWARDED) == 61
    assert _listen_to_all(under_init(probe, "listen")) == [ENDS_LISTENING]


def test_every_signal_is_forwarded_to_the_group(probe: Path) -> None:
    command = under_init("sh", "-c", f"{probe} listen second & exec {probe} listen first", options=["-g"])
    with started(command) as process:
        seen = read_until(output(process), b"first\n")
        if b"second\n" not in seen:
            read_until(output(process), b"second\n")
        for number in FORWARDED:
            if number != ENDS_LISTENING:
                os.kill(process.pid, number)
                got = b""
                while got.count(b"\n") < 2:
                    got += read_until(output(process), b"\n")
                assert got == f"{number}\n{number}\n".encode()
        os.kill(process.pid, ENDS_LISTENING)
        assert read_all(output(process)) == b"15\n15\n"


def test_without_g_only_the_command_gets_it(probe: Path) -> None:
    command = under_init("sh", "-c", f"{probe} listen second & echo $!; exec {probe} pids")
    with started(command) as process:
        seen = b""
        while not (b"second\n" in seen and b"ready\n" in seen):
            seen += read_until(output(process), b"\n")
        other = int(re.findall(rb"^(\d+)$", seen, re.M)[0])
        pid, parent, group = map(int, re.findall(rb"^(\d+) (\d+) (\d+)$", seen, re.M)[0])
        assert (parent, group) == (process.pid, pid), "a group of its own, led by itself"
        with pidfd_of(other):
            os.kill(process.pid, signal.SIGUSR1)
            os.kill(process.pid, ENDS_LISTENING)
            assert process.wait(PATIENCE) == 0
            os.kill(other, signal.SIGUSR2)
            os.kill(other, ENDS_LISTENING)
            assert sorted(read_all(output(process)).split()) == [b"10", b"12", b"15", b"15"]


@pytest.mark.parametrize("options", [[], ["-g"]])
def test_no_signal_is_lost_between_fork_and_exec(probe: Path, options: list[str]) -> None:
    """It is sent at once, so that it arrives anywhere between init's own exec and the command's."""
    for attempt in range(150):
        with all_signals_blocked():
            process = subprocess.Popen(
                under_init(probe, "listen", options=options), stdout=subprocess.PIPE, start_new_session=True
            )
        try:
            for _ in range(attempt * 20):
                pass  # a little later each time
            os.kill(process.pid, signal.SIGUSR1)
            seen = read_until(output(process), b"10\n")
            assert seen == b"ready\n10\n"
            os.kill(process.pid, ENDS_LISTENING)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            process.communicate()


def test_real_time_signals_are_counted(probe: Path) -> None:
    with started(under_init(probe, "listen")) as process:
        read_until(output(process), b"ready\n")
        for _ in range(50):
            os.kill(process.pid, signal.SIGRTMIN)
        os.kill(process.pid, ENDS_LISTENING)
        lines = read_all(output(process)).split()
    # SIGTERM, the lower number, may overtake those that were not forwarded yet; none was merged.
    assert lines[-1] == b"15"
    assert set(lines[:-1]) <= {str(int(signal.SIGRTMIN)).encode()}


def test_stop_and_continue_without_a_terminal_do_not_stop_init(probe: Path) -> None:
    """Who stopped the command continues it; init, stopped too, would wait for somebody who doesn't know that."""
    with started(under_init(probe, "pids")) as process:
        pid = int(read_until(output(process), b"ready\n").split()[0])
        os.kill(pid, signal.SIGSTOP)
        wait_for_state(pid, "T")
        os.kill(pid, signal.SIGCONT)
        os.kill(process.pid, ENDS_LISTENING)
        assert process.wait(PATIENCE) == 0


def wait_for_state(pid: int, state: str) -> None:
    """The kernel tells only a parent of a stop, and here the parent is another process: so this has to look again."""
    deadline = time.monotonic() + PATIENCE
    while harness.status_of(pid)["State"][0] != state:
        assert time.monotonic() < deadline, harness.status_of(pid)
        os.sched_yield()


# ---- reaping ----


def test_reaps_orphans_as_subreaper(probe: Path) -> None:
    assert run(probe, "orphans", "2000", options=["-s"], timeout=60).returncode == 0


def test_without_s_orphans_go_elsewhere(probe: Path) -> None:
    with started(under_init(probe, "leave", "4")) as process:
        adopted = int(read_until(output(process), b"\n").split()[-1])
        assert adopted != process.pid
        assert process.wait(PATIENCE) == 4
        end_input(process)
        read_all(output(process))


@pytest.mark.parametrize("options", [[], ["-s"]])
def test_children_that_end_at_once_cannot_hang_it(probe: Path, options: list[str]) -> None:
    for _ in range(30):
        assert run(probe, "burst", "40", options=options).returncode == 42


def test_children_of_what_init_replaced_are_reaped() -> None:
    """One has ended before, one ends while init runs; neither is taken for the command."""
    command = ["sh", "-c", 'true & sleep 0.01 & exec "$@"', "sh", *under_init("sh", "-c", "sleep 0.03; exit 5")]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, start_new_session=True, check=False).returncode == 5


# ---- the end ----


def test_waits_for_the_others_if_asked(probe: Path) -> None:
    with started(under_init(probe, "leave", "6", options=["-s", "-t", "60000"])) as process:
        assert read_until(output(process), b"\n") == f"adopted by {process.pid}\n".encode()
        end_input(process)
        assert read_all(output(process)) == f"done under {process.pid}\n".encode()
        assert process.wait(PATIENCE) == 6


def test_waits_no_longer_than_asked(probe: Path) -> None:
    start = time.monotonic()
    with started(under_init(probe, "leave", "6", options=["-s", "-t", "150"])) as process:
        read_until(output(process), b"\n")
        assert process.wait(PATIENCE) == 6
        assert 0.15 <= time.monotonic() - start < PATIENCE / 2


def test_does_not_wait_if_not_asked(probe: Path) -> None:
    with started(under_init(probe, "leave", "6", options=["-s"])) as process:
        assert process.wait(PATIENCE) == 6


MIDDLE = '"$@" & echo "init $!"; wait'


@contextlib.contextmanager
def with_a_parent(*command: str) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """The parent, which can be killed; a pidfd of init, and one of its command."""
    with started(["sh", "-c", MIDDLE, "sh", *command]) as parent:
        seen = read_until(output(parent), b"ready\n")
        if b"init " not in seen:
            seen += read_until(output(parent), b"init ")
        found, pids = re.search(rb"init (\d+)\n", seen), re.search(rb"^(\d+) (\d+) \d+$", seen, re.M)
        assert found
        assert pids
        with pidfd_of(int(found[1])) as init, pidfd_of(int(pids[1])) as workload:
            yield parent, init, workload


def test_end_of_the_parent_is_a_signal(probe: Path) -> None:
    with with_a_parent(*under_init(probe, "pids", options=["-p", "10"])) as (parent, init, _):
        parent.kill()
        read_until(output(parent), b"10\n")
        signal.pidfd_send_signal(init, ENDS_LISTENING)
        assert wait_for_end(init)


def test_kill_at_the_end_of_the_parent_leaves_nothing(probe: Path) -> None:
    with with_a_parent(*under_init(probe, "pids", options=["-p", "9"])) as (parent, init, workload):
        parent.kill()
        assert wait_for_end(init)
        assert wait_for_end(workload)


def test_without_p_the_end_of_the_parent_is_nothing(probe: Path) -> None:
    with with_a_parent(*under_init(probe, "pids")) as (parent, init, _):
        parent.kill()
        parent.wait()
        signal.pidfd_send_signal(init, signal.SIGUSR1)
        read_until(output(parent), b"10\n")


def test_idle_init_sleeps(probe: Path) -> None:
    with started(under_init(probe, "listen")) as process:
        read_until(output(process), b"ready\n")
        os.kill(process.pid, signal.SIGUSR1)  # once round its loop: what it still has to load, it has loaded now
        read_until(output(process), b"10\n")
        before = harness.wait_for_sleep(process.pid)
        with pidfd_of(process.pid) as pidfd:
            assert not wait_for_end(pidfd, 1.2), "longer than tini's second"
            assert harness.switches(harness.status_of(process.pid)) == harness.switches(before)


def test_sanitized_build_behaves(probe: Path, sanitized: Path) -> None:
    for command, code in (("exit 7", 7), ("die 6", 134), ("burst 20", 42), ("orphans 200", 0)):
        result = subprocess.run(
            [sanitized, "init", "-s", "-g", "-t", "1000", "--", str(probe), *command.split()],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, start_new_session=True, env=harness.SANITIZER, check=False,
        )  # fmt: skip
        assert (result.returncode, result.stderr) == (code, "")
    assert _listen_to_all([str(sanitized), "init", "--", str(probe), "listen"]) == [ENDS_LISTENING]


# ---- the terminal ----


class Terminal:
    """A terminal with a program in it, which leads its session."""

    def __init__(self, *command: str) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, [])
                os.execvpe(command[0], command, {"PATH": os.environ["PATH"], "TERM": "dumb", "PS1": "", "PS2": ""})
            finally:
                os._exit(127)
        self.status: int | None = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in session_members(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.status is None:
            os.waitpid(self.pid, 0)
        os.close(self.master)

    def write(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, text: str) -> str:
        return read_until(self.master, text.encode()).decode()

    def foreground(self) -> int:
        return os.tcgetpgrp(self.master)

    def wait_end(self) -> int:
        """Its exit code."""
        with pidfd_of(self.pid) as pidfd:
            assert wait_for_end(pidfd)
            self.status = os.waitpid(self.pid, 0)[1]
        return os.waitstatus_to_exitcode(self.status)


CTRL_C, CTRL_Z = "\x03", "\x1a"
BASH = ("bash", "--norc", "--noprofile", "--noediting", "-i")


@contextlib.contextmanager
def shell() -> Iterator[Terminal]:
    """An interactive bash with no prompt and no echo, that tells of stopped jobs at once; $init is ours."""
    with Terminal(*BASH) as terminal:
        terminal.write(f"stty -echo; set -b; PS1=; init='{harness.installed()} init'; echo rea''dy\n")
        terminal.expect("ready\r\n")
        yield terminal


READS = """sh -c 'echo pid:$$; read line; echo "got:$line"'"""


def test_control_c_reaches_only_the_foreground_job() -> None:
    with shell() as terminal:
        terminal.write(f"$init -- {' '.join(BASH)}\n")
        terminal.write("PS1=; echo in''ner\n")
        terminal.expect("inner\r\n")
        for _ in range(3):
            terminal.write("sh -c 'echo run''ning; exec sleep 1000'\n")
            terminal.expect("running\r\n")
            terminal.write(CTRL_C)
            terminal.write("echo code:$?\n")
            terminal.expect("code:130\r\n")
        terminal.write("exit 3\n")
        terminal.write("echo outer:$?\n")
        terminal.expect("outer:3\r\n")


def test_shell_under_init_has_job_control() -> None:
    with shell() as terminal:
        terminal.write(f"$init -- {' '.join(BASH)}\n")
        terminal.write("PS1=; set -b; echo in''ner\n")
        terminal.expect("inner\r\n")
        terminal.write(READS + "\n")
        terminal.expect("pid:")
        terminal.write(CTRL_Z)
        terminal.expect("Stopped")
        terminal.write("jobs; echo inner''-again\n")
        terminal.expect("inner-again\r\n")
        terminal.write("fg >/dev/null\n")
        terminal.write("hello\n")
        terminal.expect("got:hello\r\n")
        terminal.write("sleep 1000 & kill %1; wait; echo code:$?\n")
        terminal.expect("code:0\r\n")
        terminal.write("exit 4\n")
        terminal.write("echo outer:$?\n")
        terminal.expect("outer:4\r\n")


def test_control_z_stops_init_and_fg_resumes_it(probe: Path) -> None:
    with shell() as terminal:
        terminal.write(f"$init -- {probe} read\n")
        terminal.expect("reading\r\n")
        for _ in range(3):
            terminal.write(CTRL_Z)
            terminal.expect("Stopped")
            terminal.write("echo outer''-shell\n")
            terminal.expect("outer-shell\r\n")
            terminal.write("fg\n")
            terminal.expect("continued\r\n")
        terminal.write("hello\n")
        terminal.expect("got:hello\r\n")
        terminal.write("echo code:$?\n")
        terminal.expect("code:0\r\n")


def test_control_z_with_input_from_elsewhere() -> None:
    """The terminal is not stdin; what it says still counts (catatonit opens /dev/tty, tini looks at stdin)."""
    with shell() as terminal:
        terminal.write("$init -- sh -c 'echo run''ning; read line < /dev/tty; echo got:$line' < /dev/null 2>&1 | cat\n")
        terminal.expect("running\r\n")
        terminal.write(CTRL_Z)
        terminal.expect("Stopped")
        terminal.write("fg > /dev/null\n")
        terminal.write("hello\n")
        terminal.expect("got:hello\r\n")


def test_bg_leaves_the_terminal_to_the_shell(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with shell() as terminal:
        terminal.write(f"$init -- sh -c 'echo run''ning; read line < {fifo}; echo got:$line'\n")
        terminal.expect("running\r\n")
        terminal.write(CTRL_Z)
        terminal.expect("Stopped")
        terminal.write("bg\n")
        terminal.write(f"echo hello > {fifo}\n")
        terminal.expect("got:hello\r\n")
        assert terminal.foreground() == terminal.pid
        terminal.write("wait; echo code:$?\n")
        terminal.expect("code:0\r\n")


def test_background_job_does_not_take_the_terminal(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with shell() as terminal:
        terminal.write(f"$init -- sh -c 'echo run''ning; read line < {fifo}' &\n")
        terminal.expect("running\r\n")
        assert terminal.foreground() == terminal.pid
        terminal.write("echo still''-here\n")
        terminal.expect("still-here\r\n")
        terminal.write(f"echo > {fifo}; wait; echo code:$?\n")
        terminal.expect("code:0\r\n")


def test_background_job_that_reads_stops_and_fg_gives_it_the_terminal() -> None:
    with shell() as terminal:
        terminal.write(f"$init -- {READS} &\n")
        terminal.expect("Stopped")
        terminal.write("fg\n")
        terminal.write("hello\n")
        terminal.expect("got:hello\r\n")
        terminal.write("echo code:$?\n")
        terminal.expect("code:0\r\n")


def test_running_background_job_gets_the_terminal_when_it_needs_it(tmp_path: Path) -> None:
    """`fg` of a job that runs sends no signal: nobody tells init."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with shell() as terminal:
        terminal.write(f"""$init -- sh -c 'echo run''ning; read go < {fifo}; read line; echo "got:$go:$line"' &\n""")
        terminal.expect("running\r\n")
        terminal.write(f"(exec 9<> {fifo}; echo go >&9; exec sleep 1000) & fg %1\n")
        terminal.write("hello\n")
        terminal.expect("got:go:hello\r\n")
        terminal.write("kill %2\n")


def test_script_around_init_stops_and_goes_on_with_it() -> None:
    """The job is the script: stopping init alone would leave the shell waiting. After init, the terminal is the script's."""
    with shell() as terminal:
        inner = "echo running; read line; echo got:\\$line"
        terminal.write(f"sh -c '{harness.installed()} init -- sh -c \"{inner}\"; read more; echo more:$more'\n")
        terminal.expect("running\r\n")
        terminal.write(CTRL_Z)
        terminal.expect("Stopped")
        terminal.write("fg > /dev/null\n")
        terminal.write("hello\n")
        terminal.expect("got:hello\r\n")
        terminal.write("again\n")
        terminal.expect("more:again\r\n")


def test_control_z_with_no_shell_around_is_nothing() -> None:
    """Init leads the session: nobody could continue what is stopped, so it goes on (as an orphaned group does)."""
    with Terminal(*under_init("sh", "-c", "echo run''ning; read line; echo got:$line; exit 8")) as terminal:
        terminal.expect("running\r\n")
        terminal.write(CTRL_Z)
        terminal.write("hello\n")
        terminal.expect("got:hello\r\n")
        assert terminal.wait_end() == 8


def test_hang_up_reaches_the_command(probe: Path) -> None:
    with Terminal(*under_init("sh", "-c", 'trap "exit 9" HUP; echo run""ning; while :; do read line; done')) as terminal:
        terminal.expect("running\r\n")
        os.kill(terminal.pid, signal.SIGHUP)
        assert terminal.wait_end() == 9


# ---- as PID 1 ----


def in_pid_namespace(*command: str | Path, options: Sequence[str] = ()) -> list[str]:
    return ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *under_init(*command, options=options)]


def run_in_pid_namespace(*command: str | Path, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        in_pid_namespace(*command, options=options),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, start_new_session=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.kernel
def test_as_pid_1_it_reaps_without_being_asked(probe: Path) -> None:
    assert run_in_pid_namespace(probe, "orphans", "2000").returncode == 0


@pytest.mark.kernel
def test_as_pid_1_it_forwards_what_the_inside_sends() -> None:
    """From inside, PID 1 gets only signals that it handles; all of them, then (pid_namespaces(7))."""
    numbers = (1, 2, 3, 6, 10, 12, 14, 15, 28, 34, 64)
    traps = "; ".join(f"trap 'seen=x$seen; echo {number}' {number}" for number in numbers)
    sends = "; ".join(f'before=$seen; kill -{number} 1; while [ "$seen" = "$before" ]; do :; done' for number in numbers)
    result = run_in_pid_namespace("bash", "-c", f"seen=; {traps}; {sends}")
    assert (result.returncode, result.stdout.split()) == (0, [str(number) for number in numbers])


@pytest.mark.kernel
def test_as_pid_1_it_tells_the_others_to_end(probe: Path) -> None:
    start = time.monotonic()
    result = run_in_pid_namespace(probe, "guard", "15", options=["-t", "60000"])
    assert (result.returncode, result.stdout) == (3, "15\n")
    assert time.monotonic() - start < PATIENCE, "it waited although nothing was left"


@pytest.mark.kernel
def test_as_pid_1_it_ends_those_who_do_not(probe: Path) -> None:
    start = time.monotonic()
    result = run_in_pid_namespace(probe, "guard", "64", options=["-t", "150"])
    assert (result.returncode, result.stdout) == (3, "15\n")
    assert time.monotonic() - start >= 0.15


@pytest.mark.kernel
def test_as_pid_1_it_does_not_wait_if_not_asked(probe: Path) -> None:
    result = run_in_pid_namespace(probe, "guard", "64")
    assert (result.returncode, result.stdout) == (3, "")
