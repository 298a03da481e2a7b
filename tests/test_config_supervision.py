"""The keys of a YAML file that say how a service is supervised: what is accepted, what is refused, the words and places."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.test_config import problems, service, write
from tinyvisor import config
from tinyvisor.config import load, normalised, to_json, to_yaml
from tinyvisor.errors import ConfigError
from tinyvisor.spec import Dependency, Healthcheck, Hook, Http, Project, Schedule, Secret, Tcp


def one(directory: Path, text: str, environ: dict[str, str] | None = None) -> Any:
    return service(directory, f"command: x\n{text}", environ)


# ---- accepted ----


@pytest.mark.parametrize(
    "text, check",
    [
        ("healthcheck: {test: [CMD, probe, -x]}", Healthcheck(test=("probe", "-x"))),
        ("healthcheck: {test: [CMD-SHELL, 'a | b']}", Healthcheck(test=("/bin/sh", "-c", "a | b"))),
        ("healthcheck: {test: 'a | b'}", Healthcheck(test=("/bin/sh", "-c", "a | b"))),
        ("healthcheck: {test: [NONE]}", None),
        ("healthcheck: {test: x, disable: true}", None),
        ("healthcheck: {disable: yes}", None),
        (
            "healthcheck: {test: [CMD, x], interval: 1m30s, timeout: 5s, retries: 2, start_period: 1m, start_interval: 500ms}",
            Healthcheck(test=("x",), interval=90, timeout=5, retries=2, start_period=60, start_interval=0.5),
        ),
    ],
)
def test_healthcheck(tmp_path: Path, text: str, check: Healthcheck | None) -> None:
    assert one(tmp_path, text).healthcheck == check


def test_probes(tmp_path: Path) -> None:
    for text, http in (
        ("http://localhost", Http(port=80)),
        ("http://LocalHost:8080/health?a=b", Http(port=8080, path="/health?a=b")),
        ("http://[::1]:8080/", Http(port=8080, host="::1")),
        ("http://10.1.2.3/x", Http(port=80, host="10.1.2.3", path="/x")),
    ):
        assert one(tmp_path, f'healthcheck: {{http: "{text}", retries: 1}}').healthcheck == Healthcheck(http=http, retries=1)
    text = "healthcheck: {http: {port: 80, headers: [A=b, C=], status: [200, 204]}}"
    http = Http(port=80, headers={"A": "b", "C": ""}, status=frozenset({200, 204}))
    assert one(tmp_path, text.replace("C=", "C=d")).healthcheck == Healthcheck(http=replace(http, headers={"A": "b", "C": "d"}))
    for text, tcp in (
        ("5432", Tcp(port=5432)),
        ("'127.0.0.2:5432'", Tcp(port=5432, host="127.0.0.2")),
        ("'[::1]:80'", Tcp(port=80, host="::1")),
        ("{port: 80, host: localhost}", Tcp(port=80)),
    ):
        assert one(tmp_path, f"healthcheck: {{tcp: {text}}}").healthcheck == Healthcheck(tcp=tcp)


def test_readiness_gives_the_container_its_means(tmp_path: Path) -> None:
    found = one(tmp_path, "ready_notify: true\nwatchdog: 1m30s")
    assert (found.ready_notify, found.watchdog, found.tells_health) == (True, 90, True)
    assert (found.spec.notify_socket, found.spec.watchdog, found.spec.notification_fd) == (True, 90, None)
    found = one(tmp_path, "ready_fd: 3")
    assert (found.ready_fd, found.tells_health, found.spec.notification_fd, found.spec.notify_socket) == (3, True, 3, False)
    found = one(tmp_path, "watchdog: 5s")
    assert (found.tells_health, found.spec.notify_socket) == (False, True)


def test_a_start_has_a_time_limit(tmp_path: Path) -> None:
    for given, meant in (("", 90), ("start_timeout: 5m", 300), ("start_timeout: 0", None)):
        assert one(tmp_path, f"ready_fd: 3\n{given}").start_timeout == meant


def test_secrets(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("-")
    text = """
services:
  a: {command: x, secrets: [key, word]}
  b:
    command: x
    secrets:
    - {source: word, target: /run/secrets/password, uid: 5, gid: "6", mode: 0400}
    - {file: ./key.pem}
    - {environment: WORD, target: other}
secrets: {key: {file: key.pem}}
"""
    more = "services: {c: {command: x, secrets: [key]}}\nsecrets: {word: {environment: WORD}, key: {file: ./key.pem}}"
    paths = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    paths[0].write_text(text)
    paths[1].write_text(more)
    project = load(paths, environ={"WORD": "pa$$w\udcff"}, name="p")
    key = Secret(target="key", file=tmp_path / "key.pem")
    word = Secret(target="word", content=b"pa$$w\xff", environment="WORD")
    assert project.services["a"].spec.secrets == (key, word)
    assert project.services["b"].spec.secrets == (
        replace(word, target="password", uid=5, gid=6, mode=0o400), replace(key, target="key.pem"), replace(word, target="other"),
    )  # fmt: skip
    assert project.services["c"].spec.secrets == (key,)
    for shown in (to_yaml(project), to_json(project), repr(project), str(normalised(project))):
        assert "pa$" not in shown
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(project))
    assert load([again], environ={"WORD": "pa$$w\udcff"}, name="p").services == project.services


def test_secrets_of_the_project_that_are_nowhere(tmp_path: Path) -> None:
    text = "services: {a: {command: x, secrets: [one, three, foru]}}\nsecrets:\n  one: {file: none}\n  two: {}\n"
    text += "  three: {external: true, environment: PATH}\n  four: {file: a, environment: b}\n  five: {environment: NONE}\n"
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load([path], environ={"PATH": "x"})
    assert [str(problem).removeprefix(f"{path}:") for problem in caught.value.problems] == [
        '1:50: services.a.secrets[2]: there is no secret "foru" (did you mean "four"?)',
        f'3:3: secrets.one: there is no "{tmp_path}/none"',
        "4:3: secrets.two: expected either file or environment",
        '5:11: secrets.three.external: not supported: there is nothing outside to keep secrets; use "file" or "environment"',
        "6:3: secrets.four: expected either file or environment",
        '7:3: secrets.five: the variable "NONE" is not set',
    ]


def test_health(tmp_path: Path) -> None:
    found = one(tmp_path, "healthcheck: {test: x}\non_unhealthy: restart\nready_log: '^listening on .*:\\d+'")
    assert (found.on_unhealthy, found.ready_log) == ("restart", r"^listening on .*:\d+")


def test_exit_codes(tmp_path: Path) -> None:
    found = one(tmp_path, "restart_prevent_exit_codes: [0, 9, TERM, sigkill]\nrestart_force_exit_codes: RTMIN+3").restart
    assert found.restart_prevent_exit_codes == {0, 9, "SIGTERM", "SIGKILL"}
    assert found.restart_force_exit_codes == {"SIGRTMIN+3"}


def test_hooks(tmp_path: Path) -> None:
    text = "post_start: [{command: [a, b]}]\n"
    text += "pre_stop:\n- command: c 'd e'\n  user: 5:6\n  working_dir: /w\n  environment: [A=1, B, C]\n- {command: f}\n"
    found = one(tmp_path, text, {"B": "2"})
    assert found.post_start == (Hook(command=("a", "b")),)
    first = Hook(command=("c", "d e"), user="5:6", working_dir="/w", environment={"A": "1", "B": "2"})
    assert found.pre_stop == (first, Hook(command=("f",)))


@pytest.mark.parametrize(
    "text, schedule",
    [
        ("{cron: '*/5 9-17 * * mon-fri'}", Schedule(cron="*/5 9-17 * * mon-fri")),
        (
            "{cron: '@daily', timezone: Europe/Berlin, overlap: queue}",
            Schedule(cron="@daily", timezone="Europe/Berlin", overlap="queue"),
        ),
        ("{interval: 5m}", Schedule(interval=300)),
    ],
)
def test_schedule(tmp_path: Path, text: str, schedule: Schedule) -> None:
    assert one(tmp_path, f"schedule: {text}\nrestart: on-failure").restart.schedule == schedule


@pytest.mark.parametrize("text", ["scale: 3", "deploy: {replicas: 3}", "scale: 3\ndeploy: {replicas: 3}"])
def test_scale(tmp_path: Path, text: str) -> None:
    assert one(tmp_path, text).scale == 3


@pytest.mark.parametrize("text", ["labels: {a: 1, b: }", "labels: [a=1, b]"])
def test_labels(tmp_path: Path, text: str) -> None:
    assert one(tmp_path, text).labels == {"a": "1", "b": ""}


def test_dependencies(tmp_path: Path) -> None:
    text = """
services:
  web:
    command: x
    depends_on:
      db: {condition: service_healthy, restart: true}
      init: {condition: service_completed_successfully}
      tracing: {required: false}
  db: {command: x, healthcheck: {test: x}}
  init: {command: x}
"""
    found = config.load([write(tmp_path, text)], environ={}).services["web"].depends_on
    assert found == {
        "db": Dependency(condition="service_healthy", restart=True),
        "init": Dependency(condition="service_completed_successfully"),
        "tracing": Dependency(required=False),
    }


# ---- refused ----

BAD = [
    ("healthcheck: {}", '2:1: healthcheck.test: is required, or "http" or "tcp"'),
    ("healthcheck: {interval: 1s}", '2:1: healthcheck.test: is required, or "http" or "tcp"'),
    (
        "healthcheck: {test: [curl, x]}",
        '2:15: healthcheck.test: expected NONE, CMD and a program, or CMD-SHELL and one line, got "curl x"',
    ),
    (
        "healthcheck: {test: [CMD]}",
        '2:15: healthcheck.test: expected NONE, CMD and a program, or CMD-SHELL and one line, got "CMD"',
    ),
    (
        "healthcheck: {test: [CMD-SHELL, a, b]}",
        '2:15: healthcheck.test: expected NONE, CMD and a program, or CMD-SHELL and one line, got "CMD-SHELL a b"',
    ),
    ("healthcheck: {test: {a: b}}", "2:15: healthcheck.test: expected a list, got keys and values"),
    ("healthcheck: {test: x, interval: 0}", "2:24: healthcheck.interval: must be more than 0"),
    (
        "healthcheck: {test: x, timeout: soon}",
        '2:24: healthcheck.timeout: "soon" is not a duration; expected one such as 90s, 1m30s or 500ms',
    ),
    ("healthcheck: {test: x, retries: 0}", "2:24: healthcheck.retries: expected 1 or more"),
    ("healthcheck: {test: x, start_interval: 0s}", "2:24: healthcheck.start_interval: must be more than 0"),
    (
        "healthcheck: {test: x, start_periud: 1}",
        '2:24: healthcheck.start_periud: there is no such key (did you mean "start_period"?)',
    ),
    (
        "healthcheck: {http: /health}",
        '2:15: healthcheck.http: expected http://HOST[:PORT][/PATH], got "/health"',
    ),
    (
        'healthcheck: {http: "https://localhost/"}',
        '2:15: healthcheck.http: TLS is not spoken here; use "test" with a program of the container, or "tcp"',
    ),
    (
        'healthcheck: {http: "http://db/x"}',
        "2:15: healthcheck.http: expected an IP address, got 'db'; names are not looked up",
    ),
    ('healthcheck: {http: "http://[::1/x"}', '2:15: healthcheck.http: expected http://HOST[:PORT][/PATH], got "http://[::1/x"'),
    (
        "healthcheck: {http: {port: 80, path: health}}",
        "2:32: healthcheck.http.path: expected a path such as /health, got 'health'",
    ),
    ('healthcheck: {http: {port: 80, path: "/a b"}}', "2:32: healthcheck.http.path: expected a path such as /health, got '/a b'"),
    (
        "healthcheck: {http: {port: 80, headers: {Content-Length: 5}}}",
        "2:32: healthcheck.http.headers: content-length can't be sent: a GET has no body",
    ),
    ("healthcheck: {http: {port: 80, headers: {Host: a, host: b}}}", "2:32: healthcheck.http.headers: host is there twice"),
    ('healthcheck: {http: {port: 80, headers: {A: "x\\ny"}}}', "2:32: healthcheck.http.headers: 'A' can't be sent"),
    ("healthcheck: {http: {port: 80, status: 100}}", "2:32: healthcheck.http.status: expected codes from 200 to 599"),
    ("healthcheck: {http: {path: /}}", "2:15: healthcheck.http.port: is required"),
    ("healthcheck: {tcp: 0}", "2:15: healthcheck.tcp: expected a port from 1 to 65535, got 0"),
    ("healthcheck: {tcp: {port: 65536}}", "2:21: healthcheck.tcp.port: expected a port from 1 to 65535, got 65536"),
    ("healthcheck: {tcp: 'db:5432'}", "2:15: healthcheck.tcp: expected an IP address, got 'db'; names are not looked up"),
    ("healthcheck: {tcp: a b}", '2:15: healthcheck.tcp: expected a port or HOST:PORT, got "a b"'),
    ("healthcheck: {tcp: 80, test: x}", "2:1: healthcheck: expected one of test, http and tcp"),
    ("healthcheck: {tcp: 80, http: {port: 80}}", "2:1: healthcheck: expected one of test, http and tcp"),
    ("ready_fd: 2", "2:1: ready_fd: expected an fd from 3 to 255"),
    ("ready_notify: true\nready_fd: 3", "3:1: ready_fd: is one way to be ready, ready_notify another"),
    ("ready_log: x\nready_notify: true", "3:1: ready_notify: is one way to be ready, ready_log another"),
    ("watchdog: 0", "2:1: watchdog: expected 1 ms or more"),
    ("start_timeout: 1us", "2:1: start_timeout: expected 1 ms or more"),
    ("ready_notify: true\nvolumes: ['/tmp:/run/notify/x']", '3:1: volumes: "/run/notify/x" is where NOTIFY_SOCKET is'),
    ("secrets: [a]", '2:11: secrets[0]: there is no secret "a"'),
    ("secrets: [{source: a, file: b}]", "2:11: secrets[0]: expected one of source, file and environment"),
    ("secrets: [{target: a}]", "2:11: secrets[0]: expected one of source, file and environment"),
    ("secrets: [{environment: NONE}]", '2:11: secrets[0]: the variable "NONE" is not set'),
    ("secrets: [{file: /etc/passwd, target: /etc/x}]", '2:11: secrets[0]: "/etc/x" is not the name of a file in /run/secrets'),
    ("secrets: [{file: /etc/passwd, mode: 1777}]", "2:11: secrets[0]: expected a mode from 0 to 0o777"),
    (
        "secrets: [{file: /etc/passwd}, {file: /etc/passwd}]",
        '2:1: secrets: there are two called "passwd"',
    ),
    (
        "secrets: [{file: /etc/passwd}]\ntmpfs: [/run/secrets]",
        '3:1: tmpfs: "/run/secrets" is where the secrets are',
    ),
    ("on_unhealthy: restart", "2:1: on_unhealthy: needs a healthcheck, or a way to say that it is ready"),
    (
        "healthcheck: {test: x}\non_unhealthy: kill",
        '3:1: on_unhealthy: expected none, restart or stop, got "kill"',
    ),
    ("ready_log: '('", "2:1: ready_log: is not a regular expression: missing ), unterminated subpattern at position 0"),
    (
        "ready_log: '(a+)+'",
        "2:1: ready_log: can take too long on some lines: a part that repeats holds another one, or a choice",
    ),
    (
        "restart_prevent_exit_codes: [256]",
        "2:1: restart_prevent_exit_codes: expected exit codes from 0 to 255 and names of signals such as SIGTERM, got 256",
    ),
    (
        "restart_force_exit_codes: [1, TRM]",
        '2:31: restart_force_exit_codes[1]: expected an exit code or a signal\'s name, got "TRM"',
    ),
    ("post_start: [{}]", "2:14: post_start[0].command: is required"),
    ("pre_stop: [{command: []}]", "2:13: pre_stop[0].command: expected a program to run"),
    (
        "pre_stop: [{command: x}, {command: x, user: 'a b'}]",
        '2:39: pre_stop[1].user: "a b" is not a user; expected uid, uid:gid, name or name:group',
    ),
    ("post_start: [{command: x, working_dir: a}]", '2:27: post_start[0].working_dir: "a" must be an absolute path without ".."'),
    ("post_start: [{command: x, privileged: true}]", None),
    ("post_start: x", '2:1: post_start: expected a list, got "x"'),
    ("schedule: {}", "2:1: schedule: expected either cron or interval"),
    ("schedule: {cron: '@daily', interval: 5}", "2:1: schedule: expected either cron or interval"),
    ("schedule: {interval: 10ms}", "2:12: schedule.interval: expected seconds, 1 or more"),
    (
        "schedule: {cron: '61 * * * *'}",
        '2:12: schedule.cron: "61" is not a minute; expected 0 to 59, ranges, lists and /steps',
    ),
    ("schedule: {cron: '0 0 30 2 *'}", '2:12: schedule.cron: "0 0 30 2 *" never comes: no such month is that long'),
    (
        "schedule: {cron: '@daily', timezone: Mars/Base}",
        '2:28: schedule.timezone: "Mars/Base" is not a time zone; expected a name such as Europe/Berlin',
    ),
    (
        "schedule: {interval: 5, overlap: allow}",
        '2:25: schedule.overlap: "allow" is not supported: a service has one container at a time; expected skip or queue',
    ),
    (
        "restart: always\nschedule: {interval: 5}",
        "3:1: schedule: with restart: always it would never end; expected no or on-failure",
    ),
    ("scale: -1", "2:1: scale: expected 0 to 1000"),
    ("scale: two", '2:1: scale: expected a whole number, got "two"'),
    ("deploy: {replicas: 5000}", "2:10: deploy.replicas: expected 0 to 1000"),
    ("scale: 2\ndeploy: {replicas: 3}", '3:10: deploy.replicas: differs from "scale"'),
    (
        "profiles: [a b]",
        "2:12: profiles[0]: 'a b' is not a profile's name; expected letters, digits, dots, dashes or underscores",
    ),
    ("labels: 5", '2:1: labels: expected keys and values, got "5"'),
]


@pytest.mark.parametrize("text, expected", BAD, ids=[text for text, _ in BAD])
def test_wrong_key(tmp_path: Path, text: str, expected: str | None) -> None:
    lines = problems(tmp_path, f"command: x\n{text}")
    assert len(lines) == 1
    if expected is not None:
        assert lines == [expected]


def test_a_condition_that_is_none(tmp_path: Path) -> None:
    text = "services:\n  web: {command: x, depends_on: {db: {condition: service_helthy}}}\n  db: {command: x}\n"
    assert problems(tmp_path, text) == [
        "2:39: services.web.depends_on.db.condition: expected service_started, service_healthy or "
        'service_completed_successfully, got "service_helthy" (did you mean "service_healthy"?)'
    ]


def test_every_key_is_in_the_schema() -> None:
    schema = config.json_schema()["$defs"]
    keys = {
        "healthcheck", "on_unhealthy", "ready_log", "restart_prevent_exit_codes", "restart_force_exit_codes", "schedule",
        "post_start", "pre_stop", "scale", "profiles", "labels", "ready_notify", "ready_fd", "start_timeout", "watchdog",
        "secrets",
    }  # fmt: skip
    assert keys <= schema["_Service"]["properties"].keys()
    assert schema["_Healthcheck"]["properties"].keys() == {
        "test", "http", "tcp", "interval", "timeout", "retries", "start_period", "start_interval", "disable",
    }  # fmt: skip
    assert schema["_Schedule"]["properties"].keys() == {"cron", "interval", "timezone", "overlap"}


# ---- between services ----


def test_instances_with_one_name(tmp_path: Path) -> None:
    text = "services:\n  web: {command: x, scale: 2}\n  web-2: {command: x}\n"
    assert problems(tmp_path, text) == ['3:3: services.web-2.scale: "web-2" would be an instance of both "web" and "web-2"']


def test_the_network_of_several_can_not_be_joined(tmp_path: Path) -> None:
    text = "services:\n  web: {command: x, scale: 2}\n  side: {command: x, network_mode: 'service:web'}\n"
    assert problems(tmp_path, text) == ['3:22: services.side.network_mode: there must be one "web" to join, and its scale is 2']


@pytest.mark.parametrize("how", ["network_mode: host", "namespaces: [pid, mount]"])
def test_the_hosts_network_is_not_joined_behind_a_service(tmp_path: Path, how: str) -> None:
    text = f"services:\n  web: {{command: x, {how}}}\n  side: {{command: x, network_mode: 'service:web'}}\n"
    assert problems(tmp_path, text) == ['3:22: services.side.network_mode: "web" is in the host\'s network; use host']


PROFILES = """
services:
  web: {command: x}
  debug: {command: x, profiles: [debug, all]}
  test: {command: x, profiles: test, depends_on: [web]}
  both: {command: x, profiles: [test], depends_on: {debug: {required: false}}}
"""


@pytest.mark.parametrize(
    "profiles, names",
    [
        ([], ["web"]),
        (["debug"], ["web", "debug"]),
        (["test"], ["web", "test", "both"]),
        (["test", "all"], ["web", "debug", "test", "both"]),
        (["*"], ["web", "debug", "test", "both"]),
    ],
)
def test_profiles(tmp_path: Path, profiles: list[str], names: list[str]) -> None:
    assert list(config.load([write(tmp_path, PROFILES)], environ={}, profiles=profiles).services) == names


def test_a_dependency_in_another_profile(tmp_path: Path) -> None:
    text = "services:\n  web: {command: x, depends_on: [db]}\n  db: {command: x, profiles: [data, all]}\n"
    assert problems(tmp_path, text) == [
        '2:34: services.web.depends_on[0]: "db" is in the profile data, all, which is not active',
    ]


def test_a_profile_that_is_nowhere_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    config.load([write(tmp_path, PROFILES)], environ={}, profiles=["debgu"], warn=said.append)
    assert said == ['there is no profile "debgu" (did you mean "debug"?)']


def test_nothing_but_inactive_profiles(tmp_path: Path) -> None:
    path = write(tmp_path, "command: x\nprofiles: [a, b]")
    with pytest.raises(ConfigError, match=r":1:1: every service has a profile, and none is active of a, b$"):
        config.load([path], environ={})
    assert isinstance(config.load([path], environ={}, profiles=["b"]), Project)


def test_what_is_inactive_is_checked_all_the_same(tmp_path: Path) -> None:
    text = "services:\n  web: {command: x}\n  db: {command: x, profiles: [data], cpus: -1}\n"
    assert problems(tmp_path, text) == ["3:38: services.db.cpus: must be more than 0"]
