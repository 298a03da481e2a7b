"""`tinyvisor up` on the real kernel: the examples in configs/, and what signals and slow readers do."""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Traces, kernel_refusal, wait_for_no_leaks
from tests.kernel.command import ROOT, Running, tinyvisor

pytestmark = pytest.mark.kernel


def cgroup_files(project: str, service: str, name: str) -> list[Path]:
    """A service's file `name` in whichever hierarchy has it."""
    found = Path("/sys/fs/cgroup").glob(f"**/tinyvisor/{project}/{service}/{name}")
    return sorted(found)


def summary(text: str) -> dict[str, list[str]]:
    """The cells of the table, by service; the reason last."""
    table = text[text.rindex("\nservice ") :].splitlines()[2:]
    return {cells[0]: cells[1:] for line in table if (cells := re.split(r"\s{2,}", line.strip()))}


def lines_of(text: str, service: str) -> list[str]:
    return re.findall(rf"^{service} *\| (.*)$", text, re.MULTILINE)


# ---- the examples ----


@dataclass(frozen=True)
class Walk:
    """What came of `up configs/`, ended by one Ctrl-C when everything had been seen.

    Attributes:
        text: all of the output.
        code: exit code.
        bomb_peak: most processes that the fork bomb ever had, as the kernel counted.
        leaks: what was left.
    """

    text: str
    code: int
    bomb_peak: int
    leaks: list[str]
    logs: Path


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    if (refusal := kernel_refusal()) is not None:
        pytest.skip(refusal)
    before = Traces.take()
    project, logs = f"walk-{os.getpid()}", tmp_path_factory.mktemp("logs")
    with Running(["up", ROOT / "configs", "-p", project, "--log-dir", logs]) as running:
        running.expect_all(r"^forkbomb +\| .*Resource temporarily unavailable")
        peak = _peak(project)
        running.expect_all(
            r"^crasher failed: ",
            r"^hog failed: ",
            r"^orphans exited",
            r"^forkbomb failed: ",
            r"^stubborn +\| ",
            r"^poller +\| web says",
        )
        running.signal(signal.SIGINT)
        code = running.end()
        text = running.text
    return Walk(text, code, peak, wait_for_no_leaks(before), logs)


def _peak(project: str) -> int:
    peaks = cgroup_files(project, "forkbomb", "pids.peak") or cgroup_files(project, "forkbomb", "pids.current")
    return int(peaks[0].read_text())


def test_configs_crasher_is_restarted_five_times_under_backoff(walk: Walk) -> None:
    delays = re.findall(r"^crasher exited with code 1; restart (\d) in ([\d.]+)s$", walk.text, re.MULTILINE)
    assert [number for number, _ in delays] == ["1", "2", "3", "4", "5"]
    for (_, delay), full in zip(delays, (0.1, 0.2, 0.4, 0.8, 1.6), strict=True):
        assert 0.8 * full - 0.051 <= float(delay) <= full + 0.051  # shown with one digit
    row = summary(walk.text)["crasher"]
    assert row[:3] == ["failed", "1", "5"]
    assert row[-1] == "gave up after 5 restarts in a row: exit 1"
    assert lines_of(walk.text, "crasher") == ["here I go again"] * 6


def test_configs_forkbomb_is_held_at_20_and_its_neighbours_are_not_bothered(walk: Walk) -> None:
    assert 1 < walk.bomb_peak <= 20
    row = summary(walk.text)["forkbomb"]
    assert row[:2] == ["failed (time_limit)", "SIGKILL"]
    assert row[-1] == "killed after timeout 8.0s"
    during = walk.text[walk.text.index("Resource temporarily") : walk.text.index("forkbomb failed")]
    assert len(lines_of(during, "tick")) >= 3
    assert len(lines_of(during, "poller")) >= 1


def test_configs_hog_ends_as_memory_limit(walk: Walk) -> None:
    row = summary(walk.text)["hog"]
    assert row[:2] == ["failed (memory_limit)", "SIGKILL"]
    assert "mem_limit 32.0M" in row[-1]
    held = [int(line.split()[1]) for line in lines_of(walk.text, "hog")]
    assert held
    assert max(held) < 32


def test_configs_orphans_leave_no_zombie(walk: Walk) -> None:
    assert lines_of(walk.text, "orphans") == ["300 orphans have come and gone; zombies left: 0"]
    assert summary(walk.text)["orphans"][:3] == ["exited", "0", "0"]


def test_configs_tick_says_goodbye(walk: Walk) -> None:
    ticks = lines_of(walk.text, "tick")
    assert ticks[0] == "tick 1"
    assert ticks[-1] == f"goodbye after {len(ticks) - 1} ticks"
    assert summary(walk.text)["tick"][:2] == ["stopped", "0"]


def test_configs_stubborn_is_killed_and_named(walk: Walk) -> None:
    assert re.search(r"^stubborn: killed, still there after its grace period: bash\[\d+\]", walk.text, re.MULTILINE)
    row = summary(walk.text)["stubborn"]
    assert row[:2] == ["stopped", "SIGKILL"]
    assert "bash[" in row[-1]


def test_configs_poller_reaches_web_and_stops_before_it(walk: Walk) -> None:
    assert "web says: hello from the web container" in lines_of(walk.text, "poller")
    assert any('"GET / HTTP/1.1" 200' in line for line in lines_of(walk.text, "web"))
    assert walk.text.index("poller stopped") < walk.text.index("stopping web")


def test_configs_end_with_one_since_some_have_failed(walk: Walk) -> None:
    assert walk.code == 1
    assert "Ctrl-C: stopping in order; once more kills everything" in walk.text


def test_configs_leave_nothing(walk: Walk) -> None:
    assert walk.leaks == []


def test_configs_are_logged(walk: Walk) -> None:
    assert sorted(path.stem for path in walk.logs.glob("*.log")) == sorted(path.stem for path in (ROOT / "configs").iterdir())
    assert " stdout F tick 1\n" in (walk.logs / "tick.log").read_text()


# ---- small projects ----


def write(directory: Path, **services: str) -> list[str | Path]:
    """`up` with a project in `directory`, a file per service."""
    project = directory / "project"
    project.mkdir()
    for name, text in services.items():
        (project / f"{name}.yaml").write_text(text)
    return ["up", project, "-p", f"up-{os.getpid()}", "--log-dir", directory / "logs"]


def shell(script: str, *more: str) -> str:
    """A service's file."""
    indented = script.replace("$", "$$").replace("\n", "\n    ")
    return "\n".join(["command:", "  - bash", "  - -c", f"  - |\n    {indented}", *more, ""])


WAIT = "trap 'exit 0' TERM; echo ready; sleep 1000 & wait"
DEAF = "trap '' TERM; echo ready; while true; do sleep 1; done"


def test_up_ends_by_itself(tmp_path: Path) -> None:
    ended = tinyvisor(*write(tmp_path, one=shell("echo hello"), three=shell("echo error >&2")))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "one   | hello\n" in ended.stdout
    assert "three | error\n" in ended.stdout
    assert "one exited with code 0\n" in ended.stdout
    assert summary(ended.stdout)["one"][:3] == ["exited", "0", "0"]


def test_failed_service_is_1_and_disturbs_nobody(tmp_path: Path) -> None:
    ended = tinyvisor(*write(tmp_path, bad=shell("exit 3"), good=shell("sleep 0.3; echo fine")))
    assert ended.returncode == 1
    assert "fine" in ended.stdout
    assert summary(ended.stdout)["bad"][:2] == ["failed", "3"]


def test_command_that_is_not_there_is_a_failed_service(tmp_path: Path) -> None:
    ended = tinyvisor(*write(tmp_path, bad="command: no-such-command\n", good=shell("echo fine")))
    assert ended.returncode == 1
    assert summary(ended.stdout)["bad"][-1] == "exec no-such-command: No such file or directory"


def test_abort_on_container_failure(tmp_path: Path) -> None:
    words = write(tmp_path, bad=shell("exit 3"), good=shell(WAIT))
    ended = tinyvisor(*words, "--abort-on-container-failure")
    assert ended.returncode == 1
    assert summary(ended.stdout)["good"][0] == "stopped"


def test_exit_code_from(tmp_path: Path) -> None:
    words = write(tmp_path, job=shell("exit 7"), helper=shell(WAIT))
    ended = tinyvisor(*words, "--exit-code-from", "job")
    assert ended.returncode == 7
    assert summary(ended.stdout)["helper"][0] == "stopped"
    wrong = tinyvisor(*words, "--exit-code-from", "nobody")
    assert wrong.returncode == 2
    assert 'there is no service "nobody"' in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_stops_and_is_0(tmp_path: Path, number: signal.Signals) -> None:
    with Running(write(tmp_path, one=shell(WAIT), two=shell(WAIT))) as running:
        running.expect_all(r"^one \| ready", r"^two \| ready")
        running.signal(number)
        assert running.end() == 0
        assert {row[0] for row in summary(running.text).values()} == {"stopped"}


def test_second_signal_kills(tmp_path: Path) -> None:
    with Running(write(tmp_path, deaf=shell(DEAF, "stop_grace_period: 10m"))) as running:
        running.expect(r"^deaf \| ready")
        running.signal(signal.SIGINT)
        running.expect("^stopping deaf")
        running.signal(signal.SIGINT)
        running.expect("Ctrl-C again: killing everything")
        assert running.end() == 0
        assert summary(running.text)["deaf"][:2] == ["stopped", "SIGKILL"]


def test_kill_9_leaves_nothing(tmp_path: Path) -> None:
    with Running(write(tmp_path, one=shell(DEAF), two=shell(DEAF))) as running:
        running.expect_all(r"^one \| ready", r"^two \| ready")
        running.signal(signal.SIGKILL)
        running.process.wait(60)  # the fixture looks for what is left


def test_terminal_has_colours_and_its_ctrl_c_stops(tmp_path: Path) -> None:
    with Running(write(tmp_path, one=shell(WAIT), two=shell(WAIT)), terminal=True) as running:
        running.expect_all(r"\x1b\[36mone \|\x1b\[0m ready", r"\x1b\[33mtwo \|\x1b\[0m ready")
        running.send("\x03")
        assert running.end() == 0
        assert re.search(r"\x1b\[1mservice", running.text)


@pytest.mark.parametrize("how", ["option", "variable"])
def test_no_colour(tmp_path: Path, how: str) -> None:
    words = [*write(tmp_path, one=shell("echo hello")), *(["--no-color"] if how == "option" else [])]
    with Running(words, terminal=True, env={"NO_COLOR": "1"} if how == "variable" else None) as running:
        assert running.end() == 0
        assert "one | hello" in running.text
        assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", running.text)


def test_prefix_and_time(tmp_path: Path) -> None:
    ended = tinyvisor(*write(tmp_path, one=shell("echo hello")), "--no-log-prefix", "--timestamps")
    assert re.search(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z hello$", ended.stdout, re.MULTILINE)


def test_container_can_not_attack_the_terminal(tmp_path: Path) -> None:
    script = r"printf '\033]0;title\007\033[2J\033[31mred\033[6n\n'"
    with Running(write(tmp_path, evil=shell(script)), terminal=True) as running:
        assert running.end() == 0
        assert re.search(r"\x1b\[36mevil \|\x1b\[0m \x1b\[31mred\x1b\[0m\r", running.text)
        assert not re.search(r"\x1b\]|\x1b\[2J|\x1b\[6n", running.text)


def test_reader_that_does_not_read_slows_no_container(tmp_path: Path) -> None:
    script = (
        "for n in {1..40000}; do echo line $n of a rather long output that nobody reads; done; echo done > /out/done; " + WAIT
    )
    words = write(tmp_path, flood=shell(script, f"volumes: ['{tmp_path}:/out']"))
    with Running(words) as running:
        _wait_for(tmp_path / "done")  # it has written everything, and we have read nothing
        running.signal(signal.SIGTERM)
        assert running.end() == 0
        notice = re.search(r"^\[\.\.\. ([\d,]+) lines skipped, .* all of it is in (.*)\]$", running.text, re.MULTILINE)
        assert notice is not None
        shown, skipped = len(lines_of(running.text, "flood")), re.findall(r"^\[\.\.\. ([\d,]+) lines", running.text, re.MULTILINE)
        assert shown + sum(int(number.replace(",", "")) for number in skipped) >= 40001
    log = Path(notice[2], "flood.log").read_text()
    assert len(re.findall(r" stdout F line \d+ of", log)) + _rotated(Path(notice[2])) == 40000


def _rotated(directory: Path) -> int:
    return sum(len(re.findall(r" F line \d+ of", path.read_text())) for path in directory.glob("flood.log.*"))


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_reader_that_goes_away_stops_everything(tmp_path: Path) -> None:
    script = "trap 'echo bye; exit 0' TERM; while true; do echo line; sleep 0.05; done"
    with Running(write(tmp_path, one=shell(script))) as running:
        running.expect("line")
        running.stop_reading()
        assert running.process.wait(60) == 0
    assert " stdout F bye\n" in (tmp_path / "logs" / "one.log").read_text()


def test_log_directory_that_can_not_be_is_2(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    ended = tinyvisor(*write(tmp_path, one=shell("echo never")))
    assert ended.returncode == 2
    assert ended.stderr.startswith("tinyvisor: ")
    assert "never" not in ended.stdout


def test_one_project_runs_once(tmp_path: Path) -> None:
    words = write(tmp_path, one=shell(WAIT))
    with Running(words) as running:
        running.expect("ready")
        second = tinyvisor(*words)
        assert second.returncode == 2
        assert second.stderr.startswith("tinyvisor: ")
        running.signal(signal.SIGTERM)
        assert running.end() == 0
