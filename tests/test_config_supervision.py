"""The keys of a YAML file that say how a service is supervised: what is accepted, what is refused, the words and places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.test_config import problems, service, write
from tinyvisor import config
from tinyvisor.errors import ConfigError
from tinyvisor.spec import Dependency, Healthcheck, Hook, Project, Schedule


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
    ("healthcheck: {}", "2:1: healthcheck.test: is required"),
    ("healthcheck: {interval: 1s}", "2:1: healthcheck.test: is required"),
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
        '2:15: healthcheck.http: not supported yet; use "test" with a program of the container, such as curl',
    ),
    (
        "healthcheck: {tcp: 80}",
        '2:15: healthcheck.tcp: not supported yet; use "test" with a program of the container, such as nc',
    ),
    ("on_unhealthy: restart", "2:1: on_unhealthy: needs a healthcheck"),
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
        "2:1: restart_prevent_exit_codes: expected exit codes from 0 to 255 and names of signals",
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
    ("secrets: [a]", '2:1: secrets: not supported yet; mount a file by "volumes" with read_only'),
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
        "post_start", "pre_stop", "scale", "profiles", "labels",
    }  # fmt: skip
    assert keys <= schema["_Service"]["properties"].keys()
    assert schema["_Healthcheck"]["properties"].keys() == {
        "test", "interval", "timeout", "retries", "start_period", "start_interval", "disable",
    }  # fmt: skip
    assert schema["_Schedule"]["properties"].keys() == {"cron", "interval", "timezone", "overlap"}


# ---- between services ----


def test_instances_with_one_name(tmp_path: Path) -> None:
    text = "services:\n  web: {command: x, scale: 2}\n  web-2: {command: x}\n"
    assert problems(tmp_path, text) == ['3:3: services.web-2.scale: "web-2" would be an instance of both "web" and "web-2"']


def test_the_network_of_several_can_not_be_joined(tmp_path: Path) -> None:
    text = "services:\n  web: {command: x, scale: 2}\n  side: {command: x, network_mode: 'service:web'}\n"
    assert problems(tmp_path, text) == ['3:22: services.side.network_mode: there must be one "web" to join, and its scale is 2']


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
