"""`tinyvisor run` on the real kernel: exit codes, stdio, signals, terminals."""

from __future__ import annotations

import json
import os
import re
import signal
import termios
from pathlib import Path

import pytest

from tests.kernel.command import Running, tinyvisor, wait_until_foreground
from tinyvisor.spec import CAPABILITIES

pytestmark = pytest.mark.kernel

ALL_CAPABILITIES = (1 << len(CAPABILITIES)) - 1
MINE = int(re.findall(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())[0], 16)


# ---- exit codes ----


@pytest.mark.parametrize("code", [0, 1, 2, 3, 63, 64, 124, 125, 126, 127, 128, 129, 137, 254, 255])
def test_exit_code_is_the_commands(code: int) -> None:
    assert tinyvisor("run", "bash", "-c", f"exit {code}").returncode == code


@pytest.mark.parametrize("number", [1, 2, 6, 9, 11, 15, 34, 64])
def test_death_by_signal_is_128_and_the_signal(number: int) -> None:
    assert tinyvisor("run", "bash", "-c", f"kill -{number} $$; sleep 60").returncode == 128 + number


def test_unknown_command_is_127() -> None:
    ended = tinyvisor("run", "no-such-command")
    assert ended.returncode == 127
    assert ended.stderr == "tinyvisor: exec no-such-command: No such file or directory\n"


def test_path_through_a_file_is_127() -> None:
    assert tinyvisor("run", "/bin/bash/x").returncode == 127


@pytest.mark.parametrize("command", ["/etc/passwd", "/tmp"])
def test_what_is_no_program_is_126(command: str) -> None:
    ended = tinyvisor("run", command)
    assert ended.returncode == 126
    assert ended.stderr == f"tinyvisor: exec {command}: Permission denied\n"


@pytest.mark.parametrize(
    "words, message",
    [
        ((), "Missing argument 'COMMAND"),
        (("--no-such-option", "true"), "No such option"),
        (("-m", "64q", "true"), '"64q" is not a size'),
        (("--name", "a/b", "true"), "tinyvisor: name: 'a/b' is not a name"),
        (("-u", "no-such-user", "true"), "no-such-user"),
        (("--rootfs", "/no/such/root", "true"), "/no/such/root"),
        (("-w", "/etc/passwd", "true"), "/etc/passwd"),
        (("-v", "/no/such/path:/x", "true"), "/no/such/path"),
        (("-it", "true"), "the input device is not a TTY"),
        (("--result", "/no/such/directory/x", "true"), "can't be written"),
    ],
)
def test_our_own_failures_are_125(words: tuple[str, ...], message: str) -> None:
    ended = tinyvisor("run", *words)
    assert ended.returncode == 125, ended.stderr
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


# ---- stdio ----


def test_stdin_is_passed_with_i() -> None:
    ended = tinyvisor("run", "-i", "cat", input="one\ntwo\n")
    assert (ended.stdout, ended.stderr, ended.returncode) == ("one\ntwo\n", "", 0)


def test_stdin_is_empty_without_i() -> None:
    assert tinyvisor("run", "cat", input="one\n").stdout == ""


def test_stdio_is_ours_itself(tmp_path: Path) -> None:
    ended = tinyvisor("run", "-i", "bash", "-c", "readlink /proc/self/fd/1; echo error >&2; ls /proc/self/fd", input="")
    assert ended.stdout.startswith("pipe:[")
    assert ended.stdout.split()[1:] == ["0", "1", "2", "3"]  # 3 is ls's own
    assert ended.stderr == "error\n"


def test_options_end_at_the_command() -> None:
    assert tinyvisor("run", "-m", "64m", "python3", "-c", "print(1)").stdout == "1\n"
    assert tinyvisor("run", "--", "echo", "-m", "--", "x").stdout == "-m -- x\n"


# ---- options ----


def test_environment(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# comment\nFROM_FILE=file\nBOTH=file\n")
    words = ("run", "-e", "GIVEN=x=y", "-e", "TAKEN", "-e", "UNSET", "-e", "BOTH=option", "--env-file", file, "env")
    ended = tinyvisor(*words, env={"TAKEN": "here", "OTHER": "secret"})
    found = dict(line.split("=", 1) for line in ended.stdout.splitlines())
    assert found.pop("HOSTNAME").startswith("run-")
    assert found == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "GIVEN": "x=y",
        "TAKEN": "here",
        "FROM_FILE": "file",
        "BOTH": "option",
    }


def test_user_and_working_directory() -> None:
    script = "id -u; id -g; pwd; touch x && echo writable"
    assert tinyvisor("run", "-u", "1234:5678", "-w", "/work", "bash", "-c", script).stdout.split() == [
        "1234",
        "5678",
        "/work",
        "writable",
    ]
    assert tinyvisor("run", "-u", "nobody", "id", "-un").stdout == "nobody\n"


def test_hostname_is_set_and_is_ones_own() -> None:
    before = os.uname().nodename
    assert tinyvisor("run", "--name", "web", "cat", "/proc/sys/kernel/hostname").stdout == "web\n"
    assert tinyvisor("run", "--hostname", "other", "cat", "/proc/sys/kernel/hostname").stdout == "other\n"
    assert os.uname().nodename == before


def test_read_only_root() -> None:
    ended = tinyvisor("run", "--read-only", "bash", "-c", "touch /tmp/fine && touch /opt/x")
    assert ended.returncode == 1
    assert "Read-only file system" in ended.stderr


def test_volumes_and_tmpfs(tmp_path: Path) -> None:
    (tmp_path / "greeting").write_text("hello\n")
    script = (
        "cat /in/greeting; touch /in/x; echo written > /out/file; stat -f -c %T /scratch; df --output=size /scratch | tail -1"
    )
    ended = tinyvisor(
        "run", "-v", f"{tmp_path}:/in:ro", "-v", f"{tmp_path}:/out", "--tmpfs", "/scratch:size=1m", "bash", "-c", script
    )
    assert ended.stdout.split() == ["hello", "tmpfs", "1024"]
    assert "Read-only file system" in ended.stderr
    assert (tmp_path / "file").read_text() == "written\n"
    assert not (tmp_path / "x").exists()


def test_ulimit_and_cpus_and_oom_score() -> None:
    script = "ulimit -Sn; ulimit -Hn; nproc; cat /proc/self/oom_score_adj"
    words = ("run", "--ulimit", "nofile=100:200", "--cpuset-cpus", "0", "--oom-score-adj", "500", "bash", "-c", script)
    assert tinyvisor(*words).stdout.split() == ["100", "200", "1", "500"]


def test_capabilities() -> None:
    show = ("grep", "CapEff", "/proc/self/status")
    assert tinyvisor("run", *show).stdout.split()[1] == "0" * 16
    assert tinyvisor("run", "--cap-add", "chown", "--cap-add", "CAP_KILL", *show).stdout.split()[1] == f"{1 | 1 << 5:016x}"
    assert tinyvisor("run", "--cap-add", "KILL", "--cap-drop", "KILL", *show).stdout.split()[1] == "0" * 16


@pytest.mark.skipif(MINE != ALL_CAPABILITIES, reason="this machine's root has not all capabilities")
def test_all_capabilities_but_one() -> None:
    ended = tinyvisor("run", "--cap-add", "ALL", "--cap-drop", "CHOWN", "grep", "CapEff", "/proc/self/status")
    assert int(ended.stdout.split()[1], 16) == ALL_CAPABILITIES & ~1


def test_network_is_loopback_or_the_hosts() -> None:
    count = ("bash", "-c", "grep -c : /proc/net/dev")
    assert tinyvisor("run", *count).stdout == "1\n"
    mine = os.stat("/proc/self/ns/net").st_ino
    assert tinyvisor("run", "--network", "host", "readlink", "/proc/self/ns/net").stdout == f"net:[{mine}]\n"


def test_namespaces_can_be_left_out() -> None:
    mine = os.stat("/proc/self/ns/ipc").st_ino
    assert tinyvisor("run", "--namespaces", "-ipc", "readlink", "/proc/self/ns/ipc").stdout == f"ipc:[{mine}]\n"


# ---- limits and results ----


def test_timeout_kills_and_says_so(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    ended = tinyvisor("run", "--timeout", "200ms", "--result", result, "sleep", "60")
    assert ended.returncode == 137
    assert ended.stderr == "tinyvisor: killed after timeout 200ms\n"
    assert json.loads(result.read_text())["status"] == "time_limit"


def test_memory_limit_says_so() -> None:
    ended = tinyvisor("run", "-m", "32m", "python3", "-c", "b'x' * (100 << 20)")
    assert ended.returncode == 137
    assert "mem_limit 32.0M" in ended.stderr


def test_result_is_json(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    assert tinyvisor("run", "--result", result, "--pids-limit", "5", "bash", "-c", "exit 3").returncode == 3
    found = json.loads(result.read_text())
    assert (found["status"], found["exit_code"], found["signal"]) == ("nonzero_exit", 3, None)
    assert found["limits_enforced"] == ["pids_limit"]
    assert found["wall"] > 0
    assert os.listdir(tmp_path) == ["result.json"]


def test_result_of_a_failed_start(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    assert tinyvisor("run", "--result", result, "no-such-command").returncode == 127
    found = json.loads(result.read_text())
    assert found["status"] == "sandbox_error"
    assert "no-such-command" in found["reason"]


# ---- signals ----

WATCH = """
import os, signal
watched = {signal.Signals[f"SIG{name}"] for name in "INT TERM HUP QUIT USR1 USR2 WINCH".split()}
signal.pthread_sigmask(signal.SIG_BLOCK, watched)
print("ready", flush=True)
while True:
    name = signal.Signals(signal.sigwait(watched)).name
    size = os.get_terminal_size() if os.isatty(1) else ""
    print("got", name, size, flush=True)
"""
"""Says which signals arrive; unlike a shell's traps, at once and always."""


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2"])
def test_signals_are_passed_on(name: str) -> None:
    with Running(["run", "python3", "-c", WATCH]) as running:
        running.expect("ready")
        running.signal(signal.Signals[f"SIG{name}"])
        running.expect(f"got SIG{name}")


def test_untrapped_signal_ends_it() -> None:
    with Running(["run", "bash", "-c", "echo ready; exec sleep 60"]) as running:
        running.expect("ready")
        running.signal(signal.SIGTERM)
        assert running.end() == 128 + 15


def test_stop_signal_and_timeout() -> None:
    with Running(["run", "--stop-signal", "USR1", "--stop-timeout", "100ms", "python3", "-c", WATCH]) as running:
        running.expect("ready")
        running.signal(signal.SIGTERM)
        running.expect("got SIGUSR1")
        assert running.end() == 128 + 9


def test_kill_9_of_the_command_leaves_nothing() -> None:
    with Running(["run", "bash", "-c", "echo ready; sleep 60"]) as running:
        running.expect("ready")
        running.signal(signal.SIGKILL)
        assert running.end() == -9  # the fixture looks for what is left


# ---- terminals ----


def test_tty_is_a_terminal_of_its_own() -> None:
    with Running(["run", "-it", "bash", "-c", "tty; stty size; test -t 0 && test -t 1 && test -t 2"], terminal=True) as running:
        running.expect(r"/dev/(console|pts/0)\r\n24 80\r\n")
        assert running.end() == 0


def test_tty_follows_the_window() -> None:
    with Running(["run", "-it", "python3", "-c", WATCH], terminal=True) as running:
        running.expect("ready")
        running.resize(40, 132)
        running.expect(r"got SIGWINCH os.terminal_size\(columns=132, lines=40\)")
        running.resize(10, 20)
        running.expect(r"got SIGWINCH os.terminal_size\(columns=20, lines=10\)")


def test_terminal_is_raw_meanwhile_and_restored_afterwards() -> None:
    with Running(["run", "-it", "bash", "-c", "echo ready; read -r line; echo got $line; exit 4"], terminal=True) as running:
        before = termios.tcgetattr(running.slave)
        running.expect("ready")
        assert not termios.tcgetattr(running.slave)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
        running.send("hello\r")
        running.expect("got hello")
        assert running.end() == 4
        assert termios.tcgetattr(running.slave) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_terminal_is_restored_after_a_signal(number: signal.Signals) -> None:
    with Running(["run", "-it", "bash", "-c", "echo ready; exec sleep 60"], terminal=True) as running:
        before = termios.tcgetattr(running.slave)
        running.expect("ready")
        running.signal(number)
        assert running.end() == 128 + number
        assert termios.tcgetattr(running.slave) == before


def test_keys_make_signals_inside() -> None:
    with Running(["run", "-it", "bash", "-c", "echo ready; exec sleep 60"], terminal=True) as running:
        running.expect("ready")
        running.send("\x03")
        assert running.end() == 130


def test_interactive_shell_has_job_control() -> None:
    with Running(["run", "-it", "-e", "PS1=prompt> ", "bash", "--norc", "--noprofile", "-i"], terminal=True) as running:
        running.expect("prompt> ")
        job = f"sleep 4{os.getpid()}"
        running.send(f"{job} &\r")
        running.expect(r"\[1\] \d+")
        running.send("fg\r")
        running.expect(f"fg\r\n.*{job}\r\n")
        wait_until_foreground(*job.split())
        running.send("\x1a")
        running.expect(r"\[1\]\+  Stopped")
        running.send("jobs; fg\r")  # not kill and wait: bash's wait doesn't wait for a job that it knows as stopped
        running.expect(f"{job}\r\n.*{job}\r\n")
        wait_until_foreground(*job.split())
        running.send("\x03")
        running.expect(r"\^C[\s\S]*prompt> ")
        running.send("echo d''one\r")
        running.expect("done")
        running.send("\x04")
        assert running.end() == 0
        assert "no job control" not in running.text


def test_large_output_is_whole() -> None:
    script = "stty -onlcr; seq 1 30000; echo the end"
    with Running(["run", "-it", "bash", "-c", script], terminal=True) as running:
        running.expect("the end")
        assert running.end() == 0
    assert running.text.replace("\r", "").split() == [*map(str, range(1, 30001)), "the", "end"]


def test_terminal_that_everybody_closed_is_no_end() -> None:
    script = "echo one; exec <&- >&- 2>&-; sleep 0.2; echo two >/dev/tty; exit 5"
    with Running(["run", "-it", "bash", "-c", script], terminal=True) as running:
        running.expect("one")
        running.expect("two")
        assert running.end() == 5


def test_tty_without_input_needs_no_terminal() -> None:
    ended = tinyvisor("run", "-t", "bash", "-c", "test -t 1 && echo yes")
    assert (ended.stdout, ended.returncode) == ("yes\n", 0)
