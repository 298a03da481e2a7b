"""The command line: help that stays light, options, exit codes, messages. Nothing here starts a container."""

from __future__ import annotations

import errno
import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import click
import pytest

from tests.kernel.command import ROOT, arguments, environment, tinyvisor
from tinyvisor import __main__ as entry
from tinyvisor.cli import group, project, services, values
from tinyvisor.cli.daemon import _hand_over, take_over, words_anew
from tinyvisor.cli.failures import ExitCodes, expected, lines
from tinyvisor.cli.foreground import write_result
from tinyvisor.cli.run import build_spec, run
from tinyvisor.cli.services import Starting, _Holding
from tinyvisor.cli.summary import format_plain, summary_rows
from tinyvisor.cli.up import wants_colour
from tinyvisor.client import Client
from tinyvisor.config import load
from tinyvisor.errors import ConfigError, ConfigProblem, HostError, InternalError, LaunchError, SpecError, TinyvisorError
from tinyvisor.policy import Phase
from tinyvisor.spec import CAPABILITIES, DEFAULT_NAMESPACES, Spec, SyscallRule, Tmpfs, Ulimit, Volume
from tinyvisor.state import Exit, ServiceSummary

# ---- the root command ----


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["up", "--help"],
        ["batch", "--help"],
        ["trace", "--help"],
        ["profile", "learn", "--help"],
        ["plan", "--help"],
        ["ps", "-p", "nobody"],
        ["logs", "-p", "nobody"],
    ],
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    heavy = {"trio", "anyio", "h11", "pydantic", "ruamel", "rich", "ptrace"}
    code = f"""
import sys
from tinyvisor.__main__ import main
try:
    main({words!r})
except SystemExit as exc:
    print("exit", exc.code, sorted({heavy!r} & sys.modules.keys()))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ended.stdout.splitlines()[-1] == f"exit {int('nobody' in words)} []"


def test_help_lists_every_command() -> None:
    ended = tinyvisor("--help")
    for name in group.COMMANDS:
        assert f"  {name} " in ended.stdout


@pytest.mark.parametrize("name", group.COMMANDS)
def test_every_command_has_help_that_starts_with_its_summary(name: str) -> None:
    command = group.cli.get_command(click.Context(group.cli), name)
    assert command is not None
    assert command.help is not None
    assert command.name == name
    assert command.help.split(".")[0].split()[:3] == group.COMMANDS[name][1].split()[:3]


def test_unknown_command_is_2() -> None:
    ended = tinyvisor("fly")
    assert ended.returncode == 2
    assert "No such command 'fly'" in ended.stderr
    assert "Did you mean 'config'?" in tinyvisor("conifg").stderr


def test_reader_that_goes_away_is_no_news() -> None:
    process = subprocess.Popen(arguments("schema"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert errors == b""
    assert process.returncode != 0


# ---- failures ----

LAUNCH = LaunchError("web", "exec foo", errno.ENOENT)


def test_expected_errors_are_taken_out_of_their_groups() -> None:
    first, second = TinyvisorError("one"), HostError("no io", "mount it")
    nested = ExceptionGroup("", [first, ExceptionGroup("", [second])])
    assert expected(nested) == [first, second]
    assert expected(first) == [first]


@pytest.mark.parametrize(
    "bug",
    [
        ValueError("x"),
        InternalError("x"),
        ExceptionGroup("", [TinyvisorError("one"), ValueError("x")]),
        ExceptionGroup("", [InternalError("x")]),
    ],
)
def test_a_bug_is_not_expected(bug: Exception) -> None:
    assert expected(bug) is None


@pytest.mark.parametrize(
    "step, number, code",
    [
        ("exec foo", errno.ENOENT, 127),
        ("exec foo", errno.ENOTDIR, 127),
        ("exec foo", errno.EACCES, 126),
        ("exec foo", errno.ENOEXEC, 126),
        ("enter /nowhere", errno.ENOENT, 125),
    ],
)
def test_failed_exec_is_as_in_shells(step: str, number: int, code: int) -> None:
    error = LaunchError("web", step, number)
    assert ExitCodes(ours=125, passes_on=True).of([error]) == code
    assert ExitCodes().of([error]) == 2


def test_errors_are_lines() -> None:
    problem = ConfigError([ConfigProblem(Path("a.yaml"), 1, 2, "mem_limit", "wrong")])
    twice = [TinyvisorError("same"), TinyvisorError("same")]
    assert list(lines([problem, *twice], ExitCodes())) == ["a.yaml:1:2: mem_limit: wrong", "tinyvisor: same"]
    assert list(lines([LAUNCH], ExitCodes())) == ["tinyvisor: web: exec foo: No such file or directory"]
    assert list(lines([LAUNCH], ExitCodes(passes_on=True))) == ["tinyvisor: exec foo: No such file or directory"]


def invoke(monkeypatch: pytest.MonkeyPatch, callback: Callable[[], object]) -> int:
    """What the root command makes of a command's outcome."""
    command = click.Command("stub", callback=callback)
    monkeypatch.setattr(group.LazyGroup, "get_command", lambda self, ctx, name: command)
    return entry._invoke(["stub"], ExitCodes())


def raises(exc: BaseException) -> Callable[[], object]:
    def callback() -> object:
        raise exc

    return callback


@pytest.mark.parametrize("words", ["completion bash", "ls", "ls --json", "man up", "--help"])
def test_output_that_can_not_be_written(words: str) -> None:
    command = f"{shlex.quote(sys.executable)} -m tinyvisor {words}"
    full = subprocess.run(["sh", "-c", f"{command} > /dev/full"], env=environment(), capture_output=True, text=True, cwd=ROOT)
    assert (full.returncode, full.stderr) == (1, "tinyvisor: standard output: No space left on device\n")
    closed = subprocess.run(["sh", "-c", f"{command} >&- <&-"], env=environment(), capture_output=True, text=True, cwd=ROOT)
    assert (closed.returncode, closed.stderr) == (0, "")


def test_outcomes_are_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(monkeypatch, lambda: None) == 0
    assert invoke(monkeypatch, lambda: 7) == 7
    assert invoke(monkeypatch, raises(ExceptionGroup("", [HostError("no io", "mount it")]))) == 2
    assert invoke(monkeypatch, raises(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err.splitlines()[0] == "tinyvisor: no io; mount it"


def test_bugs_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        invoke(monkeypatch, raises(ZeroDivisionError()))
    with pytest.raises(InternalError):
        invoke(monkeypatch, raises(InternalError("x")))


# ---- which project ----


def test_default_is_configs_else_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TinyvisorError, match=r"no configs/ and no tinyvisor\.yaml"):
        project.default_paths()
    Path("tinyvisor.yaml").touch()
    assert project.default_paths() == (Path("tinyvisor.yaml"),)
    Path("configs").mkdir()
    assert project.default_paths() == (Path("configs"),)


@pytest.mark.parametrize("command", ["up", "config"])
def test_nothing_to_read_is_2(tmp_path: Path, command: str) -> None:
    ended = tinyvisor(command, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("tinyvisor: there is no configs/")


@pytest.mark.parametrize("words", [["up"], ["config"], ["plan"]])
def test_wrong_configuration_is_2_with_every_place(tmp_path: Path, words: list[str]) -> None:
    file = tmp_path / "web.yaml"
    file.write_text("command: [sleep, 1]\nmem_limit: 64q\nread_onyl: true\n")
    ended = tinyvisor(*words, file)
    assert ended.returncode == 2
    assert ended.stdout == ""
    found = ended.stderr.splitlines()
    assert [line.split(": ")[0] for line in found] == [f"{file}:2:1", f"{file}:3:1"]


def write_project(directory: Path, text: str) -> Path:
    file = directory / "web.yaml"
    file.write_text(text)
    return file


def test_env_file_goes_before_dotenv_and_after_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_project(tmp_path, "command: [echo, $A, $B, $C]\n")
    (tmp_path / ".env").write_text("A=dotenv\nB=dotenv\nC=dotenv\n")
    (tmp_path / "other").write_text("A=file\nB=file\n")
    monkeypatch.setenv("A", "environment")
    loaded = project.load_project([file], None, tmp_path / "other")
    assert loaded.services["web"].spec.command == ("echo", "environment", "file", "dotenv")
    with pytest.raises(TinyvisorError, match="missing"):
        project.load_project([file], None, tmp_path / "missing")


# ---- config, schema, plan, doctor ----


def test_config_prints_what_can_be_read_again(tmp_path: Path) -> None:
    file = write_project(tmp_path, "command: sleep 1\nmem_limit: 64m\n")
    ended = tinyvisor("config", "-p", "demo", file)
    assert (ended.returncode, ended.stderr) == (0, "")
    again = tmp_path / "again.yaml"
    again.write_text(ended.stdout)
    assert project.load_project([again], None, None) == project.load_project([file], "demo", None)
    document = json.loads(tinyvisor("config", "--json", "-p", "demo", file).stdout)
    assert document["name"] == "demo"
    assert document["services"]["web"]["mem_limit"] == 64 << 20


def test_schema_is_json() -> None:
    assert "json-schema.org" in json.loads(tinyvisor("schema").stdout)["$schema"]


def test_plan_prints_the_steps(tmp_path: Path) -> None:
    file = write_project(tmp_path, "services: {web: {command: sleep 1}, other: {command: sleep 2, user: '12345'}}\n")
    text = tinyvisor("plan", file).stdout
    assert [line for line in text.splitlines() if line.startswith("#")] == ["# web", "# other"]
    assert "exec sleep" in text
    assert "become uid 12345, gid 0" in tinyvisor("plan", file, "other").stdout
    wrong = tinyvisor("plan", file, "nobody")
    assert (wrong.returncode, wrong.stderr) == (2, 'tinyvisor: there is no service "nobody"; there are web, other\n')


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root")
def test_plan_needs_no_root() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "import os; os.setgid(65534); os.setuid(65534); from tinyvisor.cli.config import plan_of\n"
         "from tinyvisor.spec import Spec; from tinyvisor.runtime.cgroup import read_layout\n"
         "from tinyvisor.runtime.rootfs import host_view\n"
         "print(plan_of(Spec(command=('true',)), read_layout(), host_view()).describe())"],
        capture_output=True, text=True, cwd=ROOT, env=environment(), check=False,
    )  # fmt: skip
    if "ModuleNotFoundError" in ended.stderr or "PermissionError" in ended.stderr:
        pytest.skip("nobody can't read this checkout")
    assert "exec true" in ended.stdout, ended.stderr


def test_doctor_says_what_is_there() -> None:
    ended = tinyvisor("doctor")
    found = json.loads(tinyvisor("doctor", "--json").stdout)
    assert ended.returncode == int(any(check["level"] == "fail" for check in found))
    assert {"kernel", "root", "launcher"} <= {check["name"] for check in found}
    for check in found:
        assert f"{check['name']}: {check['text']}" in ended.stdout
        assert check["cure"] in ended.stdout


# ---- run's options ----


def spec_of(*words: str, environ: Mapping[str, str] | None = None) -> Spec:
    params: dict[str, Any] = run.make_context("run", list(words)).params
    command, tty, stdin_open = params.pop("command"), params.pop("tty"), params.pop("interactive")
    return build_spec(command, params, environ or {}, tty=tty, stdin_open=stdin_open)


def test_no_options_are_the_defaults() -> None:
    name = f"run-{os.getpid()}"
    assert spec_of("true") == Spec(command=("true",), name=name)


@pytest.mark.parametrize(
    "words, changes",
    [
        (["--name", "web"], {"name": "web"}),
        (["-h", "host"], {"hostname": "host"}),
        (["--rootfs", "/srv/root", "--read-only", "--root-method", "chroot"],
         {"rootfs": Path("/srv/root"), "read_only": True, "root_method": "chroot"}),
        (["--storage-opt", "size=1g", "--storage-opt", "inodes=1000"], {"storage_size": 1 << 30, "storage_inodes": 1000}),
        (["-v", "/:/host:ro", "-v", "/usr:/x"],
         {"volumes": (Volume(Path("/"), "/host", read_only=True), Volume(Path("/usr"), "/x"))}),
        (["--tmpfs", "/x:size=1m"], {"tmpfs": (Tmpfs("/x", size=1 << 20),)}),
        (["--shm-size", "1m"], {"shm_size": 1 << 20}),
        (["-e", "A=b=c", "-e", "TAKEN", "-e", "UNSET", "-e", "EMPTY="],
         {"environment": {"A": "b=c", "TAKEN": "here", "EMPTY": ""}}),
        (["-w", "/srv", "-u", "nobody:7"], {"working_dir": "/srv", "user": "nobody:7"}),
        (["--cap-add", "cap_chown", "--cap-add", "KILL", "--cap-drop", "kill"], {"capabilities": {"CHOWN"}}),
        (["--cap-add", "ALL", "--cap-drop", "SYS_ADMIN"], {"capabilities": set(CAPABILITIES) - {"SYS_ADMIN"}}),
        (["--cap-drop", "ALL"], {}),
        (["--cap-drop", "ALL", "--cap-add", "CHOWN"], {"capabilities": {"CHOWN"}}),
        (["--security-opt", "seccomp=unconfined", "--security-opt", "no-new-privileges:false"],
         {"seccomp": "unconfined", "no_new_privs": False}),
        (["--security-opt", "proc-opts=subset=pid"], {"proc_opts": "subset=pid"}),
        (["--security-opt", "landlock=unconfined"], {"landlock": "unconfined"}),
        (["--security-opt", "network=new"], {"new_network": True}),
        (["--security-opt", "seccomp=tinyvisor/seccomp-default.json"],
         {"seccomp": Path("tinyvisor/seccomp-default.json").absolute()}),
        (["--seccomp-action", "kill", "--on-syscall", "bind=deny", "--on-syscall", "open=log:/etc/*"],
         {"seccomp_action": "kill",
          "on_syscall": (SyscallRule(syscall="bind", action="deny"), SyscallRule(syscall="open", action="log", path="/etc/*"))}),
        (["--pids-limit", "5", "-m", "64m", "--cpus", "1.5", "--cpuset-cpus", "0-2,4"],
         {"pids_limit": 5, "mem_limit": 64 << 20, "cpus": 1.5, "cpuset": {0, 1, 2, 4}}),
        (["--ulimit", "nofile=1:2", "--ulimit", "core=0"], {"ulimits": {"nofile": Ulimit(1, 2), "core": Ulimit(0, 0)}}),
        (["--network", "host"], {"network_mode": "host"}),
        (["--namespaces", "+user,-ipc"], {"namespaces": (DEFAULT_NAMESPACES | {"user"}) - {"ipc"}}),
        (["--timeout", "1m30s", "--stop-signal", "INT", "--stop-timeout", "2.5"],
         {"timeout": 90.0, "stop_signal": 2, "stop_grace_period": 2.5}),
        (["--oom-score-adj", "-5"], {"oom_score_adj": -5}),
        (["--rm"], {}),
        (["-it"], {"tty": True, "stdin_open": True}),
    ],
)  # fmt: skip
def test_options_are_the_specs_fields(words: list[str], changes: dict[str, Any]) -> None:
    fields = {"command": ("true",), "name": f"run-{os.getpid()}"} | changes
    assert spec_of(*words, "true", environ={"TAKEN": "here"}) == Spec(**fields)


@pytest.mark.parametrize(
    "words, command",
    [
        (["-m", "64m", "python3", "-c", "x"], ("python3", "-c", "x")),
        (["--", "ls", "-la"], ("ls", "-la")),
        (["ls", "--", "-m"], ("ls", "--", "-m")),
        (["ls", "--help"], ("ls", "--help")),
        (["--", "--weird"], ("--weird",)),
    ],
)
def test_options_end_at_the_command(words: list[str], command: tuple[str, ...]) -> None:
    assert spec_of(*words).command == command


@pytest.mark.parametrize(
    "words, message",
    [
        (["--namespaces", "+user,ipc", "x"], "mixes both forms"),
        (["--namespaces", "pid,mount,moon", "x"], "moon"),
        (["--storage-opt", "colour=red", "x"], "size=BYTES"),
        (["--cpuset-cpus", "3-1", "x"], "0-2,4"),
        (["--ulimit", "nofile", "x"], "nofile"),
        (["--stop-signal", "NONE", "x"], "not a signal"),
        (["--timeout", "soon", "x"], "not a duration"),
        (["--cap-add", "FLY", "x"], "not a capability"),
        (["--security-opt", "apparmor=x", "x"], "seccomp=FILE"),
        (["--security-opt", "seccomp=/no/such", "x"], "/no/such: No such file or directory"),
        (["--security-opt", "seccomp=README.md", "x"], "README.md: not JSON"),
        (["--memory", "0", "x"], "--memory: must be more than 0"),
        (["--cpus", "1e9", "x"], "--cpus: expected 0.01 to 8192"),
        (["-w", "here", "x"], '--workdir: "here" must be an absolute path'),
        (["-e", "", "x"], "'' has no variable's name"),
        (["-v", "named:/x", "x"], "named"),
        (["-e", "=x", "x"], "has no variable's name"),
        (["--tmpfs", "/a", "--tmpfs", "/a", "x"], "mounted twice"),
    ],
)
def test_wrong_options_say_what_is_right(words: list[str], message: str) -> None:
    with pytest.raises((click.UsageError, SpecError)) as caught:
        spec_of(*words)
    assert message in (caught.value.message if isinstance(caught.value, click.UsageError) else str(caught.value))


def test_namespaces() -> None:
    assert values.parse_namespaces("pid, mount") == {"pid", "mount"}
    assert values.parse_namespaces("-net,-cgroup") == DEFAULT_NAMESPACES - {"net", "cgroup"}


def test_result_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(path, Exit(status="ok", exit_code=0))
    assert json.loads(path.read_text())["status"] == "ok"
    with pytest.raises(TinyvisorError, match="can't be written"):
        write_result(tmp_path, Exit(status="ok"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}.*"))


def test_profiles_by_option_or_by_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tinyvisor.yaml"
    file.write_text("services: {a: {command: x}, b: {command: x, profiles: [b]}, c: {command: x, profiles: [c, d]}}")
    monkeypatch.setenv("TINYVISOR_PROFILES", " b, ,d ")
    assert list(project.load_project([file], None, None).services) == ["a", "b", "c"]
    assert list(project.load_project([file], None, None, ["c"]).services) == ["a", "c"]
    monkeypatch.delenv("TINYVISOR_PROFILES")
    assert list(project.load_project([file], None, None).services) == ["a"]


@pytest.mark.parametrize("command", ["config", "plan"])
def test_profiles_are_for_every_command_that_reads_a_project(tmp_path: Path, command: str) -> None:
    file = tmp_path / "tinyvisor.yaml"
    file.write_text("services: {a: {command: x}, bee: {command: x, profiles: [b]}}")
    assert "bee" not in tinyvisor(command, file).stdout
    assert "bee" in tinyvisor(command, file, "--profile", "b").stdout


# ---- up's table ----

SUMMARIES = (
    ServiceSummary(name="web", state="stopped", exit=Exit(status="stopped", signal=15), wall=12.0, cpu=0.05, memory_peak=9 << 20),
    ServiceSummary(
        name="hog",
        state="failed",
        exit=Exit(status="memory_limit", signal=9),
        restarts=2,
        wall=0.5,
        cpu=0.2,
        memory_peak=32 << 20,
        reason="the OOM killer\x1b[2J struck",
    ),
    ServiceSummary(name="stubborn", state="stopped", exit=Exit(status="stopped", signal=9), held_up_by=("bash[7]",)),
    ServiceSummary(name="never", state="failed", reason="enter /x: No such file or directory"),
)


def test_summary_table() -> None:
    assert format_plain(summary_rows([asdict(each) for each in SUMMARIES])).splitlines() == [
        "service   status                 exit     restarts   wall    cpu  memory peak  reason",
        "web       stopped                SIGTERM         0  12.0s   50ms         9.0M",
        "hog       failed (memory_limit)  SIGKILL         2  500ms  200ms        32.0M  the OOM killer struck",
        "stubborn  stopped                SIGKILL         0    0ms    0ms            -  killed after its grace period: bash[7]",
        "never     failed                 -               0    0ms    0ms            -  enter /x: No such file or directory",
    ]


def test_summary_of_what_runs_says_how_it_is() -> None:
    rows = summary_rows(
        [
            asdict(ServiceSummary(name="web", state="running", health="unhealthy")),
            asdict(ServiceSummary(name="a", state="running")),
        ]
    )
    assert [row[1] for row in rows[1:]] == ["running (unhealthy)", "running"]


def test_summary_has_reasons_only_where_there_is_one() -> None:
    rows = summary_rows([asdict(ServiceSummary(name="web", state="exited", exit=Exit(status="ok", exit_code=0)))])
    assert rows[0][-1] == "memory peak"
    assert rows[1][1:4] == ("exited", "0", "0")


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert wants_colour(False)
    assert not wants_colour(True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour(False)
    monkeypatch.setenv("NO_COLOR", "")
    assert wants_colour(False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert not wants_colour(False)


@pytest.mark.parametrize("word", ["-9", "-KILL", "-RTMIN+1"])
def test_signals_as_kill_has_them(word: str) -> None:
    for words in ([word, "web"], ["web", word], ["-p", "x", word, "web"]):
        parsed = services.kill.make_context("kill", words).params
        assert (parsed["signal"], parsed["services"]) == (word[1:], ("web",))
    assert services.kill.make_context("kill", ["--", "-9"]).params["services"] == ("-9",)


def test_a_project_may_be_named_before_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert entry._invoke(["-p", "nobody", "stop"], ExitCodes()) == 1
    assert 'no daemon runs the project "nobody"' in capfd.readouterr().err
    assert entry._invoke(["-p", "nobody", "stop", "-p", "else"], ExitCodes()) == 1
    assert 'no daemon runs the project "else"' in capfd.readouterr().err
    assert entry._invoke(["-p", "nobody", "doctor"], ExitCodes()) == 2
    assert "doctor has no project" in capfd.readouterr().err


def test_the_states_that_ps_knows_are_the_policy_s() -> None:
    assert set(services.STATES) == set(get_args(Phase))


def test_a_word_is_a_path_or_a_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("web", "configs", "empty"):
        (tmp_path / name).mkdir()
    for file in ("configs/web.yaml", "db", "web/main.py"):
        (tmp_path / file).touch()
    words = ["configs", "web", "db", "empty", "cache", "./web", "new.yaml", "/x"]
    paths, names = project.split_words(words)
    assert [str(path) for path in paths] == ["configs", "db", "web", "new.yaml", "/x"]
    assert names == ["web", "empty", "cache"]


def test_what_is_neither_a_path_nor_a_service_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text("command: [x]\nscale: 2\n")
    (tmp_path / "debug.yaml").write_text("command: [x]\nprofiles: [more]\n")
    found, everything = (load([tmp_path], environ={}, profiles=profiles) for profiles in ([], ["*"]))
    project.check_services(["web", "web-2"], found, [tmp_path], lambda: everything)
    with pytest.raises(TinyvisorError, match=r'no file or directory "wbe", and no such service in .*did you mean "web"'):
        project.check_services(["wbe"], found, [tmp_path], lambda: everything)
    with pytest.raises(TinyvisorError, match='"debug" has a profile that is not active; give it with --profile'):
        project.check_services(["debug"], found, [tmp_path], lambda: everything)


def test_a_daemon_that_starts_anew_reads_its_project_anew() -> None:
    words = ["up", "--daemon-fd", "7", "--project-fd", "8", "-p", "web", "--only", "a", "--only", "b", "--", "/configs"]
    assert words_anew(words, 5) == ["up", "--daemon-fd", "5", "-p", "web", "--", "/configs"]
    assert words_anew(words_anew(words, 5), 6) == ["up", "--daemon-fd", "6", "-p", "web", "--", "/configs"]


def test_a_project_is_handed_to_the_daemon_as_it_was_read(tmp_path: Path) -> None:
    file = tmp_path / "web.yaml"
    file.write_text("command: [x]\nenvironment: {A: b}\nsecrets: [{environment: WORD, target: word}]\nlabels: {a: b}\n")
    found = load([file], environ={"WORD": "secret"})
    assert found.services["web"].spec.secrets[0].content == b"secret"
    assert take_over(_hand_over(found)) == found


def test_who_waits_for_a_start_is_told_once_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tinyvisor.cli.services.STARTING_PATIENCE", 0)
    ours, theirs = socket.socketpair()
    waiting = [{"name": f"w{number}", "state": "waiting", "reason": "waits for db to start"} for number in range(7)]
    crashes = {"name": "db", "state": "backoff", "reason": "exit 1"}
    answers = [[{"name": "a", "state": "running", "reason": ""}, crashes], [crashes], [crashes, *waiting]]

    class Daemon(Client):
        def get(self, path: str, query: object = None, meanwhile: object = None) -> Any:
            if len(answers) == 1:
                theirs.send(b"HTTP/1.1 200 OK")
            return answers.pop(0)

    with ours, theirs:
        Starting(Daemon("p"), ()).watch(ours)
    assert capsys.readouterr().err.splitlines() == [
        "db: waits to be started again: exit 1",
        *(f"w{number}: waits for db to start" for number in range(5)),
        "and 2 more",
    ]


def test_who_is_told_what_holds_up_a_stop_of_thousands_reads_the_answer_when_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon has something to say about each of them, and ends while it is asked."""
    monkeypatch.setattr("tinyvisor.cli.services.HOLDING_PATIENCE", 0)
    ours, theirs = socket.socketpair()
    asked: list[str] = []

    class Daemon(Client):
        def get(self, path: str, query: object = None, meanwhile: object = None) -> Any:
            asked.append(path)
            if path == "/v1/services":
                return [{"name": f"s{number}", "state": "stopping"} for number in range(1000)]
            if len(asked) == 2:
                theirs.send(b"HTTP/1.1 200 OK")
            return [{"processes": ["sleep[7]"]}]

    with ours, theirs:
        _Holding(Daemon("p"), ()).watch(ours)
    assert asked == ["/v1/services", "/v1/services/s0"]
