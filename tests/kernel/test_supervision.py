"""What only the real kernel shows of health, hooks, dependencies and instances: commands that run inside a container."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from tests.kernel.command import Running, tinyvisor
from tests.kernel.test_up import WAIT, lines_of, shell, summary, write
from tinyvisor.runtime import Container
from tinyvisor.runtime.plan import capability_mask
from tinyvisor.spec import SERVICE_CAPABILITIES

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not hasattr(Container, "exec"), reason="the runtime can't run commands inside a container yet"),
]

FAST = "interval: 200ms, timeout: 5s, retries: 2"


def stop(running: Running) -> dict[str, list[str]]:
    """Ends it by Ctrl-C; the table."""
    running.signal(signal.SIGINT)
    running.end()
    return summary(running.text)


# ---- health ----


def test_who_needs_it_healthy_starts_once_its_probe_succeeds(tmp_path: Path) -> None:
    web = shell("sleep 0.7; touch /tmp/up; " + WAIT, f"healthcheck: {{test: test -e /tmp/up, {FAST}, start_period: 1m}}")
    app = shell(WAIT, "depends_on: {web: {condition: service_healthy}}")
    with Running(write(tmp_path, web=web, app=app)) as running:
        running.expect(r"^app \| ready")
        assert running.text.index("web is healthy") < running.text.index("app started")
        assert {row[0] for row in stop(running).values()} == {"stopped"}


def test_unhealthy_is_restarted_until_it_is_given_up(tmp_path: Path) -> None:
    more = (f"healthcheck: {{test: [CMD, 'false'], {FAST}}}", "on_unhealthy: restart", "restart: on-failure:2")
    ended = tinyvisor(*write(tmp_path, ill=shell(WAIT, *more)))
    assert ended.returncode == 1
    assert (
        len(re.findall(r"^ill is unhealthy: its healthcheck failed 2 times in a row: exit 1$", ended.stdout, re.MULTILINE)) == 3
    )
    row = summary(ended.stdout)["ill"]
    assert (row[0], row[2]) == ("failed", "2")
    assert row[-1].startswith("gave up after 2 restarts in a row: its healthcheck failed")


def test_a_probe_is_inside_with_the_container_s_rights_and_limits(tmp_path: Path) -> None:
    tell = "for n in pid mnt net ipc uts; do readlink /proc/self/ns/$n; done; grep -E '^(CapEff|NoNewPrivs)' /proc/self/status"
    script = f"({tell}; cat /proc/self/cgroup) > /out/own; echo ready; {WAIT}"
    probe = shell(
        script,
        f"volumes: ['{tmp_path}:/out']",
        "healthcheck:",
        f"  test: ({tell.replace('$', '$$')}; cat /proc/self/cgroup) > /out/probe",
        "  interval: 200ms",
    )
    with Running(write(tmp_path, one=probe)) as running:
        running.expect("^one is healthy")
        assert stop(running)["one"][0] == "stopped"
    assert (tmp_path / "probe").read_text() == (tmp_path / "own").read_text()
    assert "pid:[" in (tmp_path / "own").read_text()
    assert f"CapEff:\t{capability_mask(SERVICE_CAPABILITIES):016x}\n" in (tmp_path / "own").read_text()


@pytest.mark.parametrize(
    "probe",
    [
        "yes",  # writes without end
        "sleep 1000",  # never ends
        "setsid sleep 1000 & trap '' TERM INT HUP; while true; do sleep 1; done",  # and does not want to
    ],
)
def test_a_probe_that_attacks_is_ended_and_has_failed(tmp_path: Path, probe: str) -> None:
    more = (
        f'healthcheck: {{test: "{probe}", interval: 100ms, timeout: 300ms, retries: 1}}',
        "on_unhealthy: stop",
        "pids_limit: 20",
    )
    ended = tinyvisor(*write(tmp_path, evil=shell(WAIT, *more)))
    assert ended.returncode == 1
    assert re.search(r"^evil is unhealthy: its healthcheck failed once: ", ended.stdout, re.MULTILINE)
    assert summary(ended.stdout)["evil"][0].startswith("failed")


def test_what_a_probe_leaves_behind_holds_up_nothing(tmp_path: Path) -> None:
    probe = 'healthcheck: {test: "setsid sleep 1000 & exit 0", interval: 200ms}'
    with Running(write(tmp_path, one=shell(WAIT, probe, "pids_limit: 50"))) as running:
        running.expect("^one is healthy")
        running.signal(signal.SIGINT)
        assert running.end() == 0


def test_ready_by_a_line(tmp_path: Path) -> None:
    web = shell("echo starting; sleep 0.3; echo 'listening on port 80' >&2; " + WAIT, r"ready_log: 'listening on .*:?\d+$$'")
    app = shell(WAIT, "depends_on: {web: {condition: service_healthy}}")
    with Running(write(tmp_path, web=web, app=app)) as running:
        running.expect(r"^app \| ready")
        assert running.text.index("web is healthy") < running.text.index("app started")
        stop(running)


# ---- hooks ----


def test_hooks_run_inside_at_their_time(tmp_path: Path) -> None:
    script = (
        "until test -e /tmp/greeted; do sleep 0.05; done; cat /tmp/greeted; trap 'cat /tmp/left; exit 0' TERM; sleep 1000 & wait"
    )
    more = (
        "post_start:",
        "- {command: [sh, -c, 'echo hello $$NAME as $$(id -u) > /tmp/greeted'], environment: {NAME: world}, user: '1234'}",
        "pre_stop:",
        "- {command: sh -c 'pwd > /tmp/left', working_dir: /usr}",
    )
    with Running(write(tmp_path, one=shell(script, *more))) as running:
        running.expect(r"^one \| hello world as 1234")
        assert stop(running)["one"][:2] == ["stopped", "0"]
        assert lines_of(running.text, "one")[-1] == "/usr"


def test_a_hook_that_is_not_there_is_the_service_s_failure(tmp_path: Path) -> None:
    ended = tinyvisor(*write(tmp_path, one=shell(WAIT, "post_start: [{command: no-such-command}]")))
    assert ended.returncode == 1
    assert "no-such-command" in summary(ended.stdout)["one"][-1]


# ---- dependencies, instances, profiles ----


def test_a_job_is_completed_first(tmp_path: Path) -> None:
    init = shell("sleep 0.3; echo done > /out/done", f"volumes: ['{tmp_path}:/out']")
    app = shell(
        "cat /out/done", f"volumes: ['{tmp_path}:/out']", "depends_on: {init: {condition: service_completed_successfully}}"
    )
    ended = tinyvisor(*write(tmp_path, init=init, app=app))
    assert (ended.returncode, lines_of(ended.stdout, "app")) == (0, ["done"])


def test_instances_have_their_own_names(tmp_path: Path) -> None:
    ended = tinyvisor(*write(tmp_path, web=shell("cat /proc/sys/kernel/hostname", "scale: 3")))
    assert ended.returncode == 0
    assert [lines_of(ended.stdout, f"web-{number}") for number in (1, 2, 3)] == [["web-1"], ["web-2"], ["web-3"]]
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["web-1.log", "web-2.log", "web-3.log"]


@pytest.mark.parametrize("how", ["option", "variable", "neither"])
def test_profiles(tmp_path: Path, how: str) -> None:
    words = write(tmp_path, web=shell("echo web"), debug=shell("echo debug", "profiles: [debug]"))
    more = ["--profile", "debug"] if how == "option" else []
    ended = tinyvisor(*words, *more, env={"TINYVISOR_PROFILES": "other, debug"} if how == "variable" else None)
    assert ended.returncode == 0
    assert lines_of(ended.stdout, "web") == ["web"]
    assert lines_of(ended.stdout, "debug") == ([] if how == "neither" else ["debug"])


def test_a_prevented_restart_and_a_forced_one(tmp_path: Path) -> None:
    counted = "echo x >> /out/$NAME; test $(wc -l < /out/$NAME) -lt 3 || exit 0; "
    volume = f"volumes: ['{tmp_path}:/out']"
    forced = shell("NAME=forced; " + counted + "kill -9 $$", volume, "restart_force_exit_codes: [KILL]", "signal_group: false")
    prevented = shell("NAME=prevented; " + counted + "exit 5", volume, "restart: always", "restart_prevent_exit_codes: [5]")
    ended = tinyvisor(*write(tmp_path, forced=forced, prevented=prevented))
    assert ended.returncode == 1
    rows = summary(ended.stdout)
    assert (rows["forced"][0], rows["forced"][2]) == ("exited", "2")
    assert (rows["prevented"][0], rows["prevented"][2]) == ("failed", "0")
    assert os.path.exists(tmp_path / "forced")


# ---- probes without a program, and what a container says itself ----

NOTIFY = "import os, socket, time; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(os.environ['NOTIFY_SOCKET']); "


def program(code: str, *more: str) -> str:
    return "\n".join((f"command: [python3, -u, -c, {json.dumps(code)}]", "stop_grace_period: 1s", *more))


def test_ports_are_probed_from_outside_and_in_the_container_s_network(tmp_path: Path) -> None:
    """Two servers on one port, which nobody could reach from here; what they answer is their own."""
    serve = (
        "import http.server as h; h.BaseHTTPRequestHandler.do_GET = lambda self: (self.send_response({0}), self.end_headers()); "
        'h.HTTPServer(("127.0.0.1", 8080), h.BaseHTTPRequestHandler).serve_forever()'
    )
    fast = "interval: 50ms, retries: 1, start_interval: 50ms"
    early = f"{fast}, start_period: 1m"
    web = program(serve.format(204), f'healthcheck: {{http: "http://localhost:8080/health", {early}}}', "pids_limit: 5")
    # Until it listens it is not well either; then by its answer.
    ill = program(serve.format(503), f"healthcheck: {{http: {{port: 8080, status: 204}}, {fast}}}")
    tcp = shell(WAIT, "network_mode: service:web", f"healthcheck: {{tcp: 8080, {early}}}")
    app = shell(WAIT, "depends_on: {web: {condition: service_healthy}, tcp: {condition: service_healthy}}")
    with Running(write(tmp_path, web=web, ill=ill, tcp=tcp, app=app)) as running:
        running.expect_all(r"^app \| ready", r"^ill is unhealthy: its healthcheck failed once: http://127.0.0.1:8080/: ")
        stop(running)


def test_readiness_by_a_message_by_a_newline_and_a_watchdog_that_runs_out(tmp_path: Path) -> None:
    web = program(NOTIFY + "s.send(b'STATUS=soon'); s.send(b'READY=1\\nMAINPID=1'); time.sleep(1000)", "ready_notify: true")
    db = program("import os, time; os.write(3, b'\\n'); time.sleep(1000)", "ready_fd: 3", "user: '1234'", "read_only: true")
    more = ("watchdog: 300ms", "ready_notify: true", "restart: on-failure:1", "userns_mode: host")
    hung = program(NOTIFY + "s.send(b'READY=1'); time.sleep(1000)", *more)
    app = shell(WAIT, "depends_on: {web: {condition: service_healthy}, db: {condition: service_healthy}}")
    with Running(write(tmp_path, web=web, db=db, hung=hung, app=app)) as running:
        running.expect_all(r"^app +\| ready", r"^hung failed: ", r"^web: MAINPID on its NOTIFY_SOCKET is passed over")
        rows = stop(running)
    assert (rows["hung"][0], rows["hung"][2]) == ("failed", "1")
    assert "it has sent no WATCHDOG=1 for 300ms" in rows["hung"][-1]


def test_a_secret_is_in_the_container_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("of-a-file")
    script = "cat /run/secrets/*; env; cat /proc/self/mountinfo"
    more = ("secrets: [{environment: WORD, target: a}, {file: ../key}]", "logging: {driver: json-file}")
    words = write(tmp_path, one=shell(script, *more))
    env = {"WORD": "of-a-variable"}
    ended = tinyvisor(*words, env=env)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("of-a-variableof-a-file") == 1
    assert ended.stdout.count("of-a-") == 2
    assert '"log": "of-a-variableof-a-file' in (tmp_path / "logs" / "one.log").read_text()
