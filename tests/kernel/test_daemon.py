"""`tinyvisor up -d` and the commands that go with it, on the real kernel."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.command import BOUND, Running, arguments, environment, tinyvisor, wait_until_foreground
from tinyvisor.places import run_directory

pytestmark = pytest.mark.kernel

WAIT = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 1 & wait; done"


class Directory:
    """A directory with a project; its daemon is gone when the block is left."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = f"daemon-{os.getpid()}"
        (path / "configs").mkdir()

    def write(self, name: str, script: str, *more: str) -> None:
        lines = [f"command: [sh, -c, {json.dumps(script)}]", *more]
        (self.path / "configs" / f"{name}.yaml").write_text("\n".join(lines) + "\n")

    def run(self, *words: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
        return tinyvisor(*words, input=input, cwd=self.path)

    def up(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run("up", "-d", "-p", self.name, "--log-dir", str(self.path / "logs"), *options)

    def ps(self) -> dict[str, Any]:
        ended = self.run("ps", "--json")
        assert ended.returncode == 0, ended.stderr
        return {item["name"]: item for item in json.loads(ended.stdout)}

    def daemon(self) -> int:
        return int(json.loads(Path(run_directory(), f"{self.name}.json").read_text())["pid"])


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    found = Directory(tmp_path)
    yield found
    found.run("down", "-p", found.name)


def started(directory: Directory) -> None:
    ended = directory.up()
    assert ended.returncode == 0, ended.stderr


def has_ended(pid: int) -> bool:
    """Whether it is gone, or a zombie: a daemon is reaped by the host's PID 1, in its own time."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_gone(pid: int) -> None:
    fd = os.pidfd_open(pid)
    try:
        waiting = select.poll()
        waiting.register(fd, select.POLLIN)
        assert waiting.poll(BOUND * 1000)
    finally:
        os.close(fd)


def test_a_day_in_its_life(directory: Directory) -> None:
    directory.write("web", WAIT)
    started(directory)
    daemon, pid = directory.daemon(), directory.ps()["web"]["pid"]
    assert os.getsid(daemon) == daemon
    assert Path(f"/proc/{daemon}/comm").read_text() == "tinyvisor\n"
    assert os.readlink(f"/proc/{daemon}/fd/0") == "/dev/null"
    assert "pydantic" not in Path(f"/proc/{daemon}/maps").read_text(), "its parent has read the project"
    assert Path(f"/proc/{pid}/comm").read_text().startswith("tinyvisor-init")

    assert directory.run("exec", "web", "sh", "-c", "cat; exit 7", input="through").stdout == "through"
    assert directory.run("exec", "web", "sh", "-c", "exit 7").returncode == 7
    assert directory.run("exec", "web", "no-such-command").returncode == 127

    assert directory.run("stop", "web").returncode == 0
    assert (directory.ps()["web"]["state"], directory.ps()["web"]["exit"]["exit_code"]) == ("stopped", 0)
    assert not Path(f"/proc/{pid}").exists()
    assert "ready" in directory.run("logs", "-n", "2").stdout
    assert directory.run("start", "web").returncode == 0
    assert directory.run("wait", "--until", "running", "web").returncode == 0

    assert directory.run("scale", "web=2").returncode == 0
    assert directory.run("wait", "--until", "running").returncode == 0
    assert set(directory.ps()) == {"web", "web-2"}
    assert {item["name"] for item in json.loads(directory.run("stats", "--json").stdout)} == {"web", "web-2"}
    assert "sh[" in directory.run("top").stdout

    [found] = [item for item in json.loads(directory.run("inspect", "web").stdout) if item["name"] == "web"]
    assert found["config"]["command"][:2] == ["sh", "-c"]
    assert directory.run("ps", "-q", "--status", "running").stdout == "web\nweb-2\n"
    told = [json.loads(line) for line in directory.run("events", "--since", "1h", "--until", "0s", "--json").stdout.splitlines()]
    assert [it["event"] for it in told if it["name"] == "web-2"] == ["ServiceStarted"]
    assert directory.run("-p", directory.name, "kill", "-9", "web-2").returncode == 0
    assert directory.ps()["web-2"]["state"] == "stopped"
    assert directory.up().returncode == 0
    assert directory.ps()["web-2"]["state"] == "running", "up starts what somebody has stopped, as compose does"

    assert directory.run("down").returncode == 0
    assert has_ended(daemon)
    alone = directory.run("ps", "-p", directory.name)
    assert alone.returncode == 1
    assert alone.stderr == f'tinyvisor: no daemon runs the project "{directory.name}"; start it with tinyvisor up -d\n'


def test_reload_changes_what_has_changed(directory: Directory) -> None:
    directory.write("same", WAIT)
    directory.write("other", WAIT)
    started(directory)
    before = directory.ps()
    directory.write("other", WAIT + " # changed")
    directory.write("new", WAIT)
    ended = directory.up()
    assert (ended.returncode, ended.stdout) == (0, "+ new\n~ other\n"), "as reload, and then all of it runs"
    after = directory.ps()
    assert after["same"]["pid"] == before["same"]["pid"]
    assert after["new"]["state"] == "running"

    (directory.path / "configs" / "new.yaml").write_text("comand: [x]\n")
    ended = directory.run("reload")
    assert ended.returncode == 2
    assert ":1:1: comand: there is no such key" in ended.stderr
    assert directory.ps()["new"]["pid"] == after["new"]["pid"]


def test_logs_follow_until_the_end(directory: Directory) -> None:
    directory.write("web", WAIT)
    started(directory)
    with Running(["logs", "-f", "-p", directory.name]) as running:
        running.expect(r"^web \| ready")
        assert directory.run("down").returncode == 0
        running.expect(r"^web \| bye")
        assert running.process.wait(BOUND) == 0


def test_two_of_one_project_are_refused(directory: Directory) -> None:
    directory.write("web", WAIT)
    started(directory)
    (directory.path / "other.yaml").write_text("command: sleep 9\n")
    second = directory.run("up", "-d", "-p", directory.name, str(directory.path / "other.yaml"))
    assert second.returncode == 2
    assert f"is running already, from {directory.path / 'configs'}" in second.stderr
    in_front = directory.run("up", "-p", directory.name, "--log-dir", str(directory.path / "logs"))
    assert in_front.returncode == 2
    assert directory.ps()["web"]["state"] == "running"


def test_bad_configuration_starts_nothing(directory: Directory) -> None:
    (directory.path / "configs" / "web.yaml").write_text("comand: [x]\n")
    ended = directory.up()
    assert ended.returncode == 2
    assert ended.stderr.startswith("configs/web.yaml:1:1: comand: ")
    assert not (directory.path / "logs").exists()
    assert directory.run("ps").returncode == 1


def test_service_that_fails_is_1_and_the_others_go_on(directory: Directory) -> None:
    directory.write("web", WAIT)
    (directory.path / "configs" / "bad.yaml").write_text("command: [no-such-command]\n")
    ended = directory.up()
    assert ended.returncode == 1
    assert "bad failed: exec no-such-command: No such file or directory" in ended.stderr
    assert directory.ps()["web"]["state"] == "running"


def test_not_live_kill_9_takes_the_containers_along_and_the_next_one_starts(directory: Directory) -> None:
    directory.write("web", WAIT)
    assert directory.up("--no-live").returncode == 0
    refused = directory.run("upgrade")
    assert refused.returncode == 1
    assert "its containers would not outlive that" in refused.stderr
    daemon, pid = directory.daemon(), directory.ps()["web"]["pid"]
    container = os.pidfd_open(pid)
    os.kill(daemon, signal.SIGKILL)
    waiting = select.poll()
    waiting.register(container, select.POLLIN)
    assert waiting.poll(BOUND * 1000)
    os.close(container)
    ended = directory.run("ps", "-p", directory.name)
    assert ended.returncode == 1
    assert "no daemon runs" in ended.stderr
    started(directory)
    assert directory.ps()["web"]["state"] == "running"


def test_sigterm_stops_in_order(directory: Directory) -> None:
    directory.write("web", WAIT)
    started(directory)
    daemon = directory.daemon()
    os.kill(daemon, signal.SIGTERM)
    wait_gone(daemon)
    assert " stdout F bye\n" in (directory.path / "logs" / "web.log").read_text()


def test_exec_ends_with_who_asked(directory: Directory) -> None:
    directory.write("web", WAIT)
    started(directory)
    words = arguments("exec", "-p", directory.name, "web", "sh", "-c", "echo started; exec sleep 1000")
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment()) as asking:
        assert asking.stdout is not None
        assert asking.stdout.readline() == b"started\n"
        asking.kill()
        assert asking.stdout.read() == b""  # nobody holds the other end any more: the command is gone
    assert directory.ps()["web"]["state"] == "running"


def test_a_container_can_not_reach_the_socket(directory: Directory) -> None:
    directory.write("web", WAIT)
    started(directory)
    look = "ls -A /run/tinyvisor 2>/dev/null; ls -l /proc/*/fd 2>/dev/null | grep socket"
    ended = directory.run("exec", "web", "sh", "-c", look)
    assert ended.stdout == ""


def test_trace_attaches_to_a_service_and_lets_go(directory: Directory) -> None:
    directory.write("loop", "while :; do sleep 0.01; done")
    started(directory)
    pid = directory.ps()["loop"]["pid"]
    with Running(["trace", "-p", directory.name, "-e", "execve", "loop"]) as command:
        command.expect(r'execve\("/usr/bin/sleep", \["sleep", "0.01"\]')
        command.signal(signal.SIGINT)
        assert command.end() == 0
    assert directory.ps()["loop"]["pid"] == pid
    run = directory.run("trace", "-m", "64m", "loop")
    assert run.returncode != 0
    assert "--memory is for a new container" in run.stderr


def test_exec_on_a_terminal(directory: Directory) -> None:
    """As `docker exec -it`: job control, sizes, keys and output are the program's, and our terminal is afterwards as it was."""
    directory.write("web", WAIT)
    started(directory)
    with Running(["exec", "-it", "-p", directory.name, "web", "sh"], terminal=True) as command:
        before = termios.tcgetattr(command.slave)
        command.resize(33, 77)
        command.expect(r"# ")
        assert not termios.tcgetattr(command.slave)[3] & termios.ECHO, "raw: the echo is the program's"
        command.send("tty; stty size; stat -c %u:%g $(tty); echo $((6 * 7))\r")
        command.expect(r"/dev/pts/\d+\s+33 77\s+0:0\s+42")
        os.kill(command.process.pid, signal.SIGSTOP)
        command.resize(20, 60)
        os.kill(command.process.pid, signal.SIGCONT)
        command.send("stty size\r")
        command.expect(r"20 60")
        command.send(f"sleep 4{os.getpid()}\r")
        wait_until_foreground("sleep", f"4{os.getpid()}")
        command.send("\x03")
        command.send("head -c 300000 /dev/zero | tr '\\0' x; echo; exit 7\r")
        assert command.end() == 7
        assert command.text.count("x") > 300000
        assert termios.tcgetattr(command.slave) == before
    for words, code in ((["-t", "web", "true"], 0), (["-t", "web", "no-such-command"], 127), (["-t", "other", "true"], 1)):
        assert directory.run("exec", *words).returncode == code
    refused = directory.run("exec", "-it", "web", "true")
    assert refused.returncode != 0
    assert "the input device is not a TTY" in refused.stderr
    assert directory.ps()["web"]["state"] == "running"


def test_attach(directory: Directory) -> None:
    """As `docker attach`: a prompt that ends with no newline is there, keys are the service's, and its life goes on."""
    directory.write("shell", "exec sh", "tty: true", "stdin_open: true")
    directory.write("cat", "read line; echo got $$line >&2; exit 4", "stdin_open: true")
    directory.write("deaf", "trap 'echo bye; exit 0' TERM; while :; do echo tick; sleep 0.1 & wait; done")
    started(directory)
    with Running(["attach", "-p", directory.name, "shell"], terminal=True) as command:
        before = termios.tcgetattr(command.slave)
        command.resize(33, 77)
        command.send("\r")
        command.expect(r"# ")
        assert not termios.tcgetattr(command.slave)[3] & termios.ECHO
        command.send("stty size; echo $((6 * 7))\r")
        command.expect(r"\d+ \d+\s+42")
        command.send("\x10\x11")
        assert command.end() == 0
        assert termios.tcgetattr(command.slave) == before
    pid = directory.ps()["shell"]["pid"]
    with Running(["attach", "-p", directory.name, "shell"], terminal=True) as command:
        command.send("exit 3\r")
        assert command.end() == 3
    assert directory.ps()["shell"]["pid"] != pid
    assert "42" in directory.run("logs", "shell").stdout

    ended = directory.run("attach", "cat", input="a line\n")
    assert (ended.returncode, ended.stdout, ended.stderr) == (4, "got a line\n", "")
    ended = directory.run("attach", "cat")
    assert ended.returncode == 1
    assert "cat is not running" in ended.stderr
    with Running(["attach", "-p", directory.name, "deaf"]) as command:
        command.expect("tick")
        directory.run("stop", "deaf")
        command.expect("bye")
        assert command.end() == 0


def test_stop_says_what_holds_it_up(directory: Directory) -> None:
    directory.write("stubborn", "trap '' TERM; echo ready; while :; do sleep 1; done", "stop_grace_period: 2s")
    started(directory)
    ended = directory.run("stop", "stubborn")
    assert ended.returncode == 0
    assert re.search(r"^stubborn: waiting for .*sh\[\d+\]", ended.stderr, re.MULTILINE), ended.stderr
    assert re.search(r"^stubborn: killed, still there after its grace period: .*sh\[\d+\]", ended.stdout, re.MULTILINE)


def test_screen_of_a_project_and_a_shell_from_it(directory: Directory) -> None:
    directory.write("web", WAIT)
    started(directory)
    with Running(["top", "--ui", "-p", directory.name], terminal=True) as command:
        before = termios.tcgetattr(command.slave)
        command.expect_all("running", "ready")  # parts of a screen: in whatever order
        command.send("e")
        command.expect(r"\x1b\[\?1049l")  # out of the alternate screen
        command.expect(r"# ")
        command.send("echo $((111 * 1111)); exit\r")
        command.expect("123321")
        command.expect(r"\x1b\[\?1049h")
        command.send("q")
        assert command.end() == 0
        assert termios.tcgetattr(command.slave) == before


def test_stats_again_and_again(directory: Directory) -> None:
    directory.write("web", WAIT)
    started(directory)
    with Running(["stats", "--watch", "--json", "--interval", "100ms", "-p", directory.name]) as command:
        for _ in range(3):
            line = command.expect(r"^{.*}$")[0]
            assert json.loads(line)["name"] == "web"
        assert directory.run("down").returncode == 0
        assert command.end() == 0
