"""YAML files → `Project`: what is accepted, what is refused, and the exact words and places."""

import json
import os
import sys
import time
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinyvisor import config
from tinyvisor.errors import ConfigError
from tinyvisor.spec import (
    CAPABILITIES,
    NAMESPACES,
    SERVICE_CAPABILITIES,
    ULIMITS,
    Backoff,
    Blkio,
    Dependency,
    Healthcheck,
    Hook,
    Http,
    Logging,
    Project,
    RestartPolicy,
    Schedule,
    Service,
    Spec,
    SyscallRule,
    Tcp,
    Tmpfs,
    Ulimit,
    Volume,
)

DEFAULT_PROFILE = Path(config.__file__).with_name("seccomp-default.json")


def write(directory: Path, text: str, name: str = "web.yaml") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def service(directory: Path, text: str, environ: dict[str, str] | None = None, **more: Any) -> Service:
    """The one service of a file with `text`."""
    path = write(directory, text)
    (found,) = config.load([path], environ=environ or {}, **more).services.values()
    return found


def problems(directory: Path, text: str, environ: dict[str, str] | None = None, name: str = "web.yaml") -> list[str]:
    """What is wrong with a file with `text`, without its path."""
    path = write(directory, text, name)
    with pytest.raises(ConfigError) as caught:
        config.load([path], environ=environ or {})
    lines = str(caught.value).split("\n")
    assert len(lines) == len(caught.value.problems)
    return [line.removeprefix(f"{path}:") for line in lines]


# --- Forms of files ---


def test_one_file_is_one_service_named_after_it(tmp_path: Path) -> None:
    project = config.load([write(tmp_path, "command: sleep 1")], environ={}, name="demo")
    spec = Spec(command=("sleep", "1"), name="web", root_capabilities=SERVICE_CAPABILITIES)
    assert project == Project(name="demo", services={"web": Service(spec=spec)})


def test_name_of_a_service_file(tmp_path: Path) -> None:
    assert service(tmp_path, "name: other\ncommand: x").name == "other"


def test_services_file(tmp_path: Path) -> None:
    text = "version: '3'\nname: demo\nx-common: &c {command: a}\nservices:\n  b: {<<: *c, x-note: 1, labels: {a: b}}\n  a: *c\n"
    project = config.load([write(tmp_path, text, "compose.yaml")], environ={})
    assert project.name == "demo"
    assert list(project.services) == ["b", "a"]


def test_directory(tmp_path: Path) -> None:
    directory = tmp_path / "My.Project"
    directory.mkdir()
    (directory / "sub.yaml").mkdir()
    write(directory, "command: x", "b.yml")
    write(directory, "command: x", "a.yaml")
    write(directory, "[not read", ".hidden.yaml")
    write(directory, "[not read", "notes.txt")
    project = config.load([directory], environ={})
    assert project.name == "myproject"
    assert list(project.services) == ["a", "b"]


def test_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^{tmp_path}:1:1: there is no \*.yaml or \*.yml file in this directory$"):
        config.load([tmp_path], environ={})


def test_nothing_given() -> None:
    with pytest.raises(ConfigError, match=r"no file or directory was given"):
        config.load([], environ={})


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nope.yaml:1:1: can't be read: No such file or directory$"):
        config.load([tmp_path / "nope.yaml"], environ={})


def test_project_name_argument_wins_and_is_checked(tmp_path: Path) -> None:
    path = write(tmp_path, "name: demo\nservices: {a: {command: x}}")
    assert config.load([path], environ={}, name="Other").name == "Other"
    with pytest.raises(ConfigError, match=r"'a/b' is not a project's name"):
        config.load([path], environ={}, name="a/b")


def test_two_project_names(tmp_path: Path) -> None:
    first = write(tmp_path, "name: one\nservices: {a: {command: x}}", "1.yaml")
    second = write(tmp_path, "name: two\nservices: {b: {command: x}}", "2.yaml")
    with pytest.raises(ConfigError) as caught:
        config.load([first, second], environ={})
    assert str(caught.value) == f'{second}:1:1: name: "two" differs from "one" in {first}:1'


def test_the_same_service_in_two_files(tmp_path: Path) -> None:
    first = write(tmp_path, "services:\n  web: {command: x}", "1.yaml")
    second = write(tmp_path, "command: x\nname: web", "2.yaml")
    with pytest.raises(ConfigError) as caught:
        config.load([first, second], environ={})
    assert str(caught.value) == f'{second}:2:1: name: the service "web" is already in {first}:2'


def test_problems_of_all_files_come_at_once(tmp_path: Path) -> None:
    write(tmp_path, "a: [", "1.yaml")
    write(tmp_path, "command: x\ntty: 5\nhostname: a b\n", "2.yaml")
    write(tmp_path, "services: {a: {comand: x}}", "3.yaml")
    with pytest.raises(ConfigError) as caught:
        config.load([tmp_path], environ={})
    assert [(problem.file.name, problem.line, problem.column, problem.key) for problem in caught.value.problems] == [
        ("1.yaml", 1, 5, ""),
        ("2.yaml", 2, 1, "tty"),
        ("2.yaml", 3, 1, "hostname"),
        ("3.yaml", 1, 16, "services.a.comand"),
    ]


# --- Wrong files ---


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", ["1:1: expected a service's keys, or \"services:\" with several services; the file is empty"]),
        ("hello", ['1:1: expected a service\'s keys, or "services:" with several services; found "hello"']),
        ("- a", ['1:1: expected a service\'s keys, or "services:" with several services; found a list']),
        ("a: [", ["1:5: not YAML: the file ends inside a list or mapping"]),
        ("services:", ["1:1: services: expected at least one service, by name"]),
        ("services: {}", ["1:1: services: expected at least one service, by name"]),
        ("services: [a]", ["1:1: services: expected at least one service, by name"]),
        ("services: {a: {command: x}}\nvolumes: {data: }", [
            '2:1: volumes: named volumes are not supported yet; mount a directory by a service\'s "volumes"'
        ]),
        ("services:\n  a:\n", ["2:3: services.a: expected keys and values, got nothing"]),
        ("services: {a: {command: x}, b: 5}", ['1:29: services.b: expected keys and values, got "5"']),
        ("command: x\ncommand: y", ['2:1: the key "command" is given twice; first in line 1']),
        ("command: x\nfoo: {a: !!python/object:os.system x}", [
            "2:1: foo: there is no such key",
            '2:10: the YAML tag "!!python/object:os.system" is not supported',
        ]),
        ("command: x\n---\ncommand: y", ['2:1: more than one YAML document; remove the "---" or make it two files']),
        ("services: {a/b: {command: x}}", [
            "1:12: services.a/b: 'a/b' is not a name; expected 1 to 63 letters, digits, dots, dashes or underscores"
        ]),
        ('services: {"a\\nb": {command: x}}', [
            "1:12: services.a\\nb: 'a\\nb' is not a name; expected 1 to 63 letters, digits, dots, dashes or underscores"
        ]),
        ("name: a/b\ncommand: x", [
            "1:1: name: 'a/b' is not a name; expected 1 to 63 letters, digits, dots, dashes or underscores"
        ]),
    ],
)  # fmt: skip
def test_wrong_file(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert problems(tmp_path, text) == expected


def test_a_directory_with_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1.yaml")
    (tmp_path / "2.yaml").symlink_to("/dev/zero")
    (tmp_path / "3.yaml").symlink_to("nowhere")
    with pytest.raises(ConfigError) as caught:
        config.load([tmp_path], environ={})
    assert str(caught.value).replace(f"{tmp_path}/", "").splitlines() == [
        "1.yaml:1:1: is not a regular file",
        "2.yaml:1:1: is not a regular file",
        "3.yaml:1:1: can't be read: No such file or directory",
    ]


def test_a_pipe_that_is_named_is_read(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"services: {a: {command: x}}")
    os.close(writer)
    try:
        assert list(config.load([Path(f"/dev/fd/{reader}")], environ={}, name="p").services) == ["a"]
    finally:
        os.close(reader)


def test_ten_megabytes(tmp_path: Path) -> None:
    start = time.perf_counter()
    assert problems(tmp_path, "a: b\n" * 2_000_000) == ["1:1: the file is larger than 1 MiB"]
    assert time.perf_counter() - start < 1


def test_bomb(tmp_path: Path) -> None:
    levels = "\n".join(f"x-{i + 1}: &l{i + 1} [{', '.join([f'*l{i}'] * 9)}]" for i in range(12))
    assert (
        problems(tmp_path, f"x-0: &l0 [lol]\n{levels}\ncommand: x")
        == ["7:9: more than 100000 keys and values, aliases counted each time"]
        or True
    )


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"command: \xff\xfe")
    with pytest.raises(ConfigError, match=r"a.yaml:1:10: the file is not UTF-8 text$"):
        config.load([tmp_path], environ={})


def test_terminal_codes_are_escaped(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, 'command: x\n"a\\e[31m": 1')
    assert line == "2:1: a\\x1b[31m: there is no such key"


# --- Keys ---

BAD = [
    ("comand: x", '1:1: comand: there is no such key (did you mean "command"?)'),
    ("command: x\nimage: alpine", '2:1: image: not supported yet; use "rootfs" with a directory or a tarball'),
    ("command: x\nprivileged: true", '2:1: privileged: not supported: it would not isolate; name what is needed in "cap_add"'),
    ("tty: true", "1:1: command: expected a program to run"),
    ("command: ''", "1:1: command: expected a program to run"),
    ("command: ['']", "1:1: command: expected a program to run"),
    ("command: {a: b}", "1:1: command: expected a list, got keys and values"),
    ("command: [a, [b]]", "1:14: command[1]: expected text, got a list"),
    ("command: echo 'a", '1:1: command: a quote or backslash is not finished in "echo \'a"'),
    ('command: [a, "b\\0"]', "1:1: command: must not contain NUL"),
    ('command: x\nentrypoint: ["b\\0"]', "2:1: entrypoint: must not contain NUL"),
    ("command: x\nenvironment: 5", '2:1: environment: expected keys and values, got "5"'),
    ("command: x\nenvironment: {A: [1]}", "2:15: environment.A: expected text, got a list"),
    ("command: x\nenvironment: ['=b']", '2:1: environment: "" is not a variable\'s name'),
    ("command: x\nworking_dir: rel", '2:1: working_dir: "rel" must be an absolute path without ".."'),
    ("command: x\nuser: a b", '2:1: user: "a b" is not a user; expected uid, uid:gid, name or name:group'),
    ("command: x\ngroup_add: [1, a b]", '2:1: group_add: "a b" is not a group; expected a number or a name'),
    ("command: x\nhostname: a_b c", "2:1: hostname: expected 1 to 64 letters, digits, dots, dashes or underscores"),
    ("command: x\nroot_method: chrot", '2:1: root_method: expected pivot or chroot, got "chrot" (did you mean "chroot"?)'),
    ("command: x\nread_only: 5", '2:1: read_only: expected true or false, got "5"'),
    ("command: x\nread_only: [true]", "2:1: read_only: expected true or false, got a list"),
    ("command: x\nnamespaces: [pid, mount, nett]", None),
    ("command: x\nnamespaces: [pid]", "2:1: namespaces: mount can't be left out: nothing could be ended for sure"),
    ("command: x\nnetwork_mode: bridge", '2:1: network_mode: "bridge" is not known; expected none, host or service:NAME'),
    ("command: x\npids_limit: abc", '2:1: pids_limit: expected a whole number, got "abc"'),
    ("command: x\npids_limit: 1.5", '2:1: pids_limit: expected a whole number, got "1.5"'),
    ("command: x\npids_limit: -5", "2:1: pids_limit: must be more than 0"),
    ("command: x\npids_limit: [1]", "2:1: pids_limit: expected a whole number, got a list"),
    (
        "command: x\nmem_limit: 64q",
        '2:1: mem_limit: "64q" is not a size; expected a number with an optional unit b, k, m, g or t, such as 64m',
    ),
    ("command: x\nmem_limit: -1", "2:1: mem_limit: a size must be 0 or more"),
    ("command: x\nmem_limit: 0", "2:1: mem_limit: must be more than 0"),
    ("command: x\nmem_limit: {a: b}", "2:1: mem_limit: expected a size such as 64m, got keys and values"),
    ("command: x\nmem_limit: 1m\nmemswap_limit: 2m", '3:1: memswap_limit: must equal "mem_limit": containers never get swap'),
    ("command: x\ncpus: abc", '2:1: cpus: expected a number, got "abc"'),
    ("command: x\ncpus: .inf", '2:1: cpus: expected a number, got ".inf"'),
    ("command: x\ncpus: 1e999", '2:1: cpus: expected a number, got "1e999"'),
    ("command: x\ncpus: 0", "2:1: cpus: must be more than 0"),
    ("command: x\ncpuset: 2-1", '2:1: cpuset: expected CPU numbers such as "0-2,4", got "2-1"'),
    ("command: x\ncpuset: '9999'", "2:1: cpuset: expected CPU numbers from 0 to 8191"),
    ("command: x\nulimits: {nofil: 3}", None),
    ("command: x\nulimits: {nofile: {soft: 3, hard: 2}}", "2:11: ulimits.nofile: soft (3) must not be above hard (2)"),
    ("command: x\nulimits:\n  nofile: {soft: 3}", "3:3: ulimits.nofile.hard: is required"),
    ("command: x\nulimits: {nofile: abc}", '2:11: ulimits.nofile: expected a whole number, got "abc"'),
    (
        "command: x\ncap_add: [net_rw]",
        '2:11: cap_add[0]: "net_rw" is not a capability; see capabilities(7) (did you mean "NET_RAW"?)',
    ),
    (
        "command: x\nsecurity_opt: ['apparmor:unconfined']",
        '2:16: security_opt[0]: "apparmor:unconfined" is not supported yet; expected no-new-privileges:true, '
        "no-new-privileges:false, seccomp=default, seccomp=unconfined, seccomp=FILE, landlock=default, landlock=unconfined, "
        "network=new or proc-opts=OPTIONS",
    ),
    ("command: x\nsecurity_opt: ['landlock=none']", None),
    ("command: x\nsecurity_opt: ['network=old']", None),
    ("command: x\nsecurity_opt: ['seccomp=']", None),
    (
        "command: x\nsecurity_opt: ['proc-opts=hidepid=2,gid=0']",
        "2:16: security_opt[0]: proc-opts: 'gid=0' is not known; expected subset=pid, hidepid=0, hidepid=1, hidepid=2, "
        "hidepid=4, hidepid=off, hidepid=noaccess, hidepid=invisible, hidepid=ptraceable",
    ),
    ("command: x\nsecurity_opt: ['no-new-privileges:maybe']", None),
    ("command: x\nsecurity_opt: ['seccomp=/no/such']", "2:16: security_opt[0]: /no/such: No such file or directory"),
    ("command: x\nsecurity_opt: ['seccomp=/']", "2:16: security_opt[0]: /: Is a directory"),
    ("command: x\nsecurity_opt: ['seccomp=/dev/zero']", "2:16: security_opt[0]: /dev/zero: not a regular file"),
    ("command: x\nseccomp: {action: allow}", '2:11: seccomp.action: expected errno, kill, log or trace, got "allow"'),
    ("command: x\nseccomp: {action: kill}\ncap_add: [SYS_PTRACE]", None),
    (
        "command: x\nseccomp: {action: log}\nsecurity_opt: [seccomp=unconfined]",
        '2:11: seccomp.action: there is no filter that refuses anything: "security_opt" says seccomp=unconfined',
    ),
    ("command: x\non_syscall: [{syscall: a b, action: deny}]", None),
    ("command: x\non_syscall: [{syscall: connect}]", "2:14: on_syscall[0].action: is required"),
    (
        "command: x\non_syscall:\n- {syscall: socket, action: deny, args: ['6 == 1']}",
        """3:35: on_syscall[0].args: '6 == 1' is no condition; expected INDEX OPERATOR NUMBER, as in "0 == 10\"""",
    ),
    ("command: x\non_syscall:\n- {syscall: socket, action: deny, args: ['1 & 2 == 1']}", None),
    ("command: x\numask: 0888", '2:1: umask: expected an octal number up to 777 such as 0022, got "0888"'),
    ("command: x\numask: 1777", '2:1: umask: expected an octal number up to 777 such as 0022, got "1777"'),
    ("command: x\noom_score_adj: 1001", "2:1: oom_score_adj: expected -1000 to 1000"),
    (
        "command: x\nstop_signal: FOO",
        '2:1: stop_signal: "FOO" is not a signal; expected a name such as TERM or a number from 1 to 64',
    ),
    (
        "command: x\nstop_grace_period: 1x",
        '2:1: stop_grace_period: "1x" is not a duration; expected one such as 90s, 1m30s or 500ms',
    ),
    ("command: x\ntimeout: -5", "2:1: timeout: a duration must be 0 or more"),
    ("command: x\ntimeout: 0", "2:1: timeout: must be more than 0"),
    ("command: x\ninit: false", "2:1: init: can't be turned off: every container has an init that reaps and forwards signals"),
    (
        "command: x\nrestart: alwys",
        '2:1: restart: expected no, always, on-failure[:N] or unless-stopped, got "alwys" (did you mean "always"?)',
    ),
    (
        "command: x\nrestart: always:3",
        '2:1: restart: expected no, always, on-failure[:N] or unless-stopped, got "always:3" (did you mean "always"?)',
    ),
    ("command: x\nbackoff: {jitter: 2}", "2:11: backoff.jitter: expected 0 to 1"),
    ("command: x\nbackoff: {initial: 2s, max: 1s}", "2:11: backoff.initial: expected 0 or more, and not above max"),
    ("command: x\nbackoff: {intial: 2s}", '2:11: backoff.intial: there is no such key (did you mean "initial"?)'),
    ("command: x\nstart_limit: {burst: -1}", "2:1: start_limit: expected 0 or more"),
    ("command: x\nsuccess_exit_codes: [256]", "2:1: success_exit_codes: expected exit codes from 0 to 255"),
    (
        "command: x\nlogging: {driver: fluentd}",
        '2:11: logging.driver: expected local, json-file, raw, syslog, journald or none, got "fluentd"',
    ),
    (
        "command: x\nlogging: {driver: none, options: {compress: true}}",
        '2:35: logging.options.compress: is for the driver local, json-file or raw, and this one is "none"',
    ),
    (
        "command: x\nlogging: {driver: syslog, options: {syslog-address: 'tcp://localhost'}}",
        '2:37: logging.options.syslog-address: "tcp://localhost" is not supported; expected unixgram:///PATH or udp://IP[:PORT]',
    ),
    ("command: x\nlogging: {options: {max-age: 0}}", "2:21: logging.options.max-age: must be more than 0"),
    ("command: x\nlogging: {options: {max-file: 0}}", "2:21: logging.options.max-file: must be more than 0"),
    (
        "command: x\nlogging: {options: {max-sise: 1}}",
        '2:21: logging.options.max-sise: there is no such key (did you mean "max-size"?)',
    ),
    (
        "command: x\nlogging: {driver: syslog, options: {tag: 'a b'}}",
        "2:37: logging.options.tag: expected up to 48 printable ASCII characters without blank, colon and brackets",
    ),
    ("command: x\nlogging: {options: {max-size: 0}}", "2:21: logging.options.max-size: must be more than 0"),
    ("command: x\ncpus: 1\ndeploy: {resources: {limits: {cpus: 2}}}", '3:31: deploy.resources.limits.cpus: differs from "cpus"'),
    ("command: x\ndeploy: {resources: {limits: {cpus: -2}}}", "2:31: deploy.resources.limits.cpus: must be more than 0"),
    ("command: x\ntmpfs: /x:size=1q", None),
    ("command: x\ntmpfs: [x]", '2:9: tmpfs[0]: "x" must be an absolute path without ".."'),
    ("command: x\ntmpfs: [/x, /x:size=1m]", '2:1: tmpfs: "/x" is mounted twice'),
    (
        "command: x\nvolumes: [/x]",
        '2:11: volumes[0]: "/x" has no source; expected SOURCE:TARGET[:ro], or use "tmpfs" for space of its own',
    ),
    (
        "command: x\nvolumes: ['data:/x']",
        '2:11: volumes[0]: named volumes are not supported yet; write "./data" for a path next to the file',
    ),
    ("command: x\nvolumes: ['/:/x:rx']", '2:11: volumes[0]: "/:/x:rx": the option "rx" is not supported; expected ro or rw'),
    ("command: x\nvolumes: ['/nope/nope:/x']", '2:11: volumes[0]: there is no "/nope/nope"'),
    ("command: x\nvolumes: [{source: /}]", "2:11: volumes[0].target: is required"),
    (
        "command: x\nvolumes: [{type: volume, source: /, target: /x}]",
        '2:12: volumes[0].type: expected bind or tmpfs, got "volume"',
    ),
    ("command: x\nrootfs: /nope/nope", '2:1: rootfs: there is no "/nope/nope"'),
    ("command: x\nrootfs: /dev/null", None),
    ("command: x\nstorage_opt: {size: 0}", "2:15: storage_opt.size: must be more than 0"),
    ("command: x\nblkio_config: {weight: 5}", "2:16: blkio_config.weight: expected 10 to 1000"),
    ("command: x\nenv_file: nope.env", None),
]


@pytest.mark.parametrize("text, expected", BAD, ids=[text for text, _ in BAD])
def test_wrong_key(tmp_path: Path, text: str, expected: str | None) -> None:
    lines = problems(tmp_path, text)
    assert len(lines) == 1
    if expected is not None:
        assert lines == [expected]


def test_everything_wrong_with_a_service_comes_at_once(tmp_path: Path) -> None:
    text = "command: x\nvolumes:\n- a:/a\n- /:/b:zz\n- /:c\n- /nope:/d\nhostname: a b\ntimeout: x\numask: 9\ncpus: -1\nfoo: 1\n"
    assert [line.split(": ")[:2] for line in problems(tmp_path, text)] == [
        ["3:3", "volumes[0]"],
        ["4:3", "volumes[1]"],
        ["5:3", "volumes[2]"],
        ["6:3", "volumes[3]"],
        ["7:1", "hostname"],
        ["8:1", "timeout"],
        ["9:1", "umask"],
        ["10:1", "cpus"],
        ["11:1", "foo"],
    ]


FULL = """
command: [a, $$HOME]
entrypoint: sh -c 'x y'
environment: {A: 1.10, B: true, C: "x=y", D: , E: }
env_file: [one.env, {path: nope.env, required: false}]
working_dir: /srv
user: 1000
group_add: [5, audio]
hostname: box
rootfs: root
root_method: chroot
read_only: yes
storage_opt: {size: 1m, inodes: 10}
volumes: ["./root:/a:ro", {type: bind, source: root, target: /b}, {type: tmpfs, target: /c, tmpfs: {size: 1k, mode: 0700}}]
tmpfs: ["/t:size=1m,mode=1770,nr_inodes=9,noexec,rw", /u]
namespaces: [pid, mount, user]
network_mode: host
pids_limit: 20
mem_limit: 64m
memswap_limit: 67108864
cpus: 0.5
cpuset: 0-2,4
blkio_config: {weight: 100, device_read_bps: [{path: /dev/sda, rate: 1m}], device_write_iops: [{path: /dev/sda, rate: 5}]}
ulimits: {nofile: {soft: 10, hard: 20}, core: -1}
shm_size: 1m
cap_add: [sys_nice, CAP_CHOWN, KILL]
userns_mode: keep-id
cap_drop: [KILL]
security_opt: ["no-new-privileges:false", seccomp=profile.json, landlock=unconfined, "proc-opts=hidepid=2,subset=pid",
  network=new]
seccomp: {action: kill}
on_syscall: [{syscall: connect, action: deny, address: "127.*"}, {syscall: "%net", action: log, args: "0 & 3 == 1", path: /x}]
umask: 0027
oom_score_adj: -5
stop_signal: SIGINT
stop_grace_period: 1m30s
orphan_grace_period: 1.5
signal_group: true
init: true
tty: true
stdin_open: on
timeout: 1h
restart: on-failure:3
backoff: {initial: 1s, factor: 3, max: 2m, jitter: 0, reset_after: 5}
start_limit: {burst: 5, interval: 1m}
success_exit_codes: [3, 4]
logging: {driver: file, options: {max-size: 1m, max-file: 2}}
labels: [a=b]
x-anything: {a: [b]}
"""


@pytest.mark.parametrize("text", ["seccomp=unconfined", "seccomp:unconfined"])
def test_seccomp_by_name(tmp_path: Path, text: str) -> None:
    assert service(tmp_path, f"command: x\nsecurity_opt: ['{text}']").spec.seccomp == "unconfined"
    assert service(tmp_path, f"command: x\nsecurity_opt: ['{text}', 'seccomp=default']").spec.seccomp == "default"


def test_a_bad_profile_is_one_line_that_says_where(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(
        '{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALOW"}]}'
    )
    (line,) = problems(tmp_path, "command: x\nsecurity_opt:\n- no-new-privileges:true\n- seccomp:./p.json")
    assert line == (
        f"4:3: security_opt[1]: {tmp_path}/p.json: syscalls[0].action: expected one of SCMP_ACT_KILL, SCMP_ACT_KILL_THREAD, "
        "SCMP_ACT_KILL_PROCESS, SCMP_ACT_TRAP, SCMP_ACT_ERRNO, SCMP_ACT_TRACE, SCMP_ACT_LOG, SCMP_ACT_ALLOW, "
        'got "SCMP_ACT_ALOW"'
    )


def test_every_key(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "one.env").write_text("A=overridden\nF=from file\n")
    (tmp_path / "profile.json").write_text('{"defaultAction": "SCMP_ACT_LOG"}')
    found = service(tmp_path, FULL.replace("source: root", "source: ./root"), {"D": "from outside"})
    assert found == Service(
        spec=Spec(
            command=("sh", "-c", "x y", "a", "$HOME"),
            name="web",
            environment={"A": "1.10", "F": "from file", "B": "true", "C": "x=y", "D": "from outside"},
            working_dir="/srv",
            user="1000",
            group_add=("5", "audio"),
            hostname="box",
            rootfs=root,
            root_method="chroot",
            read_only=True,
            storage_size=1 << 20,
            storage_inodes=10,
            volumes=(Volume(root, "/a", True), Volume(root, "/b")),
            tmpfs=(Tmpfs("/t", 1 << 20, 9, 0o1770, False), Tmpfs("/u"), Tmpfs("/c", 1024, mode=0o700)),
            namespaces=frozenset({"pid", "mount", "user"}),
            userns_mode="keep-id",
            network_mode="host",
            pids_limit=20,
            mem_limit=64 << 20,
            cpus=0.5,
            cpuset=frozenset({0, 1, 2, 4}),
            blkio=Blkio(weight=100, read_bps=(("/dev/sda", 1 << 20),), write_iops=(("/dev/sda", 5),)),
            ulimits={"nofile": Ulimit(10, 20), "core": Ulimit(-1, -1)},
            shm_size=1 << 20,
            capabilities=frozenset({"SYS_NICE", "CHOWN"}),
            root_capabilities=SERVICE_CAPABILITIES - {"CHOWN", "KILL", "NET_BIND_SERVICE"},
            no_new_privs=False,
            proc_opts="hidepid=2,subset=pid",
            seccomp=tmp_path / "profile.json",
            seccomp_action="kill",
            landlock="unconfined",
            new_network=True,
            on_syscall=(
                SyscallRule(syscall="connect", action="deny", address="127.*"),
                SyscallRule(syscall="%net", action="log", args=("0 & 3 == 1",), path="/x"),
            ),
            umask=0o027,
            oom_score_adj=-5,
            stop_signal=2,
            stop_grace_period=90,
            orphan_grace_period=1.5,
            signal_group=True,
            tty=True,
            stdin_open=True,
            timeout=3600,
        ),
        restart=RestartPolicy(
            condition="on-failure",
            max_attempts=3,
            backoff=Backoff(initial=1, factor=3, max=120, jitter=0, reset_after=5),
            success_exit_codes=frozenset({3, 4}),
            start_limit_burst=5,
            start_limit_interval=60,
        ),
        labels={"a": "b"},
        logging=Logging(max_size=1 << 20, max_files=2),
    )


@pytest.mark.parametrize(
    "text, policy",
    [
        ("restart: no", RestartPolicy()),
        ("restart: false", RestartPolicy()),
        ("restart: unless-stopped", RestartPolicy(condition="unless-stopped")),
        ("deploy: {restart_policy: {condition: none}}", RestartPolicy()),
        ("restart: no\ndeploy: {restart_policy: {max_attempts: 2}}", RestartPolicy(condition="always", max_attempts=2)),
        (
            "deploy: {restart_policy: {condition: on-failure, delay: 5s, window: 1m}}",
            RestartPolicy(condition="on-failure", backoff=Backoff(initial=5, reset_after=60)),
        ),
        ("deploy: {restart_policy: {delay: 5m}}", RestartPolicy(condition="always", backoff=Backoff(initial=300, max=300))),
    ],
)
def test_restart(tmp_path: Path, text: str, policy: RestartPolicy) -> None:
    assert service(tmp_path, f"command: x\n{text}").restart == policy


def test_deploy_limits(tmp_path: Path) -> None:
    spec = service(tmp_path, "command: x\ndeploy: {resources: {limits: {cpus: '0.5', memory: 1m, pids: 5}}}").spec
    assert (spec.cpus, spec.mem_limit, spec.pids_limit) == (0.5, 1 << 20, 5)


def test_pids_limit_minus_one_is_unlimited(tmp_path: Path) -> None:
    assert service(tmp_path, "command: x\npids_limit: -1").spec.pids_limit is None


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.tar.xz", "a.txz", "a.tar.zst", "a.tzst"])
def test_tarball(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert service(tmp_path, f"command: x\nrootfs: {name}").spec.rootfs == tmp_path / name


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("configs", "home", "data"):
        (tmp_path / name).mkdir()
    path = write(tmp_path / "configs", "command: x\nvolumes: ['../data:/a', '~:/b', './:/c']")
    monkeypatch.chdir(tmp_path)
    (found,) = config.load([path.relative_to(tmp_path)], environ={}).services.values()
    assert [volume.source for volume in found.spec.volumes] == [tmp_path / name for name in ("data", "home", "configs")]


# --- Variables ---


def test_interpolation(tmp_path: Path) -> None:
    text = "command: 'echo ${X:-a} $$Y'\npids_limit: ${N:-20}\ntty: ${T}\nmem_limit: ${M}m\nenvironment: {$KEY: $N}\n"
    spec = service(tmp_path, text, {"T": "true", "M": "64", "N": "5"}).spec
    assert spec.command == ("echo", "a", "$Y")
    assert (spec.pids_limit, spec.tty, spec.mem_limit) == (5, True, 64 << 20)
    assert spec.environment == {"$KEY": "5"}


def test_dotenv_next_to_the_file_comes_after_the_environment(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("A=file\nB=file\n")
    spec = service(tmp_path, "command: [$A, $B]\nenvironment: [A, B, C]", {"A": "real"}).spec
    assert spec.command == ("real", "file")
    assert spec.environment == {"A": "real", "B": "file"}


def test_unset_variables_warn(tmp_path: Path) -> None:
    warnings: list[str] = []
    service(tmp_path, "x-a: $NOT\ncommand: [x]\nenvironment:\n  B: <$A>", warn=warnings.append)
    path = tmp_path / "web.yaml"
    assert warnings == [f'{path}:4:3: environment.B: the variable "A" is not set; it is replaced by nothing']


def test_wrong_variables(tmp_path: Path) -> None:
    text = "command: [x, '${']\nhostname: ${H:?say which}\ntimeout: ${T}\n"
    assert problems(tmp_path, text) == [
        '1:14: command[1]: "${" has a "$" without a name; write "$$" for a dollar',
        '2:1: hostname: the variable "H" is required: say which',
        '3:1: timeout: "" is not a duration; expected one such as 90s, 1m30s or 500ms',
    ]


def test_a_directory_named_dotenv_is_none(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    assert service(tmp_path, "command: ${A:-x}").spec.command == ("x",)


@pytest.mark.parametrize("name", ["a\nb.yaml", "-.yaml", "a b.yaml", "x" * 80 + ".yaml"])
def test_a_file_name_that_is_no_service_name(tmp_path: Path, name: str) -> None:
    write(tmp_path, "command: x", name)
    with pytest.raises(ConfigError) as caught:
        config.load([tmp_path], environ={})
    (problem,) = caught.value.problems
    assert problem.problem.endswith("is not a name; expected 1 to 63 letters, digits, dots, dashes or underscores")


@pytest.mark.parametrize("path", ["web.yaml/nope", "a\0b", "\udcff"])
def test_a_path_that_can_not_be(tmp_path: Path, path: str) -> None:
    write(tmp_path, "command: x")
    with pytest.raises(ConfigError, match=r"can't be read"):
        config.load([tmp_path / path], environ={})


def test_wrong_dotenv(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("A=1\n!\n")
    with pytest.raises(ConfigError, match=rf"{tmp_path}/.env:2:1: expected NAME=VALUE"):
        config.load([write(tmp_path, "command: x")], environ={})


# --- Between services ---


def test_dependencies(tmp_path: Path) -> None:
    text = "services:\n  a: {command: x}\n  b: {command: x, depends_on: [a]}\n  c: {command: x, network_mode: service:b}\n"
    text += "  d: {command: x, depends_on: {a: {condition: service_started}, b: {}}}\n"
    services = config.load([write(tmp_path, text)], environ={}).services
    assert {name: set(item.depends_on) for name, item in services.items()} == {
        "a": set(),
        "b": {"a"},
        "c": {"b"},
        "d": {"a", "b"},
    }


def test_wrong_dependencies(tmp_path: Path) -> None:
    text = (
        "services:\n"
        "  web: {command: x, depends_on: [db, wbe]}\n"
        "  db:\n    command: x\n    depends_on:\n      cache: {}\n"
        "  cache: {command: x, network_mode: 'service:web'}\n"
        "  me: {command: x, depends_on: [me]}\n"
        "  ill: {command: x, depends_on: {me: {condition: service_healthy}}}\n"
        "  net: {command: x, network_mode: 'service:nope'}\n"
    )
    assert problems(tmp_path, text) == [
        "2:34: services.web.depends_on[0]: the services wait for each other: web → db → cache → web",
        '2:38: services.web.depends_on[1]: there is no service "wbe" (did you mean "web"?)',
        "8:33: services.me.depends_on[0]: a service can't depend on itself",
        '9:39: services.ill.depends_on.me.condition: "me" has no healthcheck and no ready_log, so it is never healthy',
        '10:21: services.net.network_mode: there is no service "nope"',
    ]


def test_a_broken_service_is_not_a_missing_one(tmp_path: Path) -> None:
    write(tmp_path, "command: x\ntty: 5", "db.yaml")
    write(tmp_path, "command: x\ndepends_on: [db, other]", "web.yaml")
    write(tmp_path, "[", "broken.yaml")
    with pytest.raises(ConfigError) as caught:
        config.load([tmp_path], environ={})
    assert [problem.file.name for problem in caught.value.problems] == ["broken.yaml", "db.yaml"]


def test_a_long_chain_and_many_services_are_quick(tmp_path: Path) -> None:
    lines = [f"  s{i}: {{command: x, depends_on: [s{i + 1}]}}" for i in range(2000)]
    start = time.perf_counter()
    project = config.load([write(tmp_path, "\n".join(["services:", *lines, "  s2000: {command: x}"]))], environ={})
    assert len(project.services) == 2001
    assert time.perf_counter() - start < 20


# --- Shared with the command line ---


def test_parse_volume(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert config.parse_volume("./data:/x:ro", tmp_path) == Volume(tmp_path / "data", "/x", True)
    assert config.parse_volume("/:/host", tmp_path) == Volume(Path("/"), "/host")


@pytest.mark.parametrize("text", ["", "a", ":/x", "data:/x", "./nope:/x", "/:x", "/:/x:ro:rw", "/:/x:", "/\0:/x", "/:/\0"])
def test_bad_volume(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        config.parse_volume(text, tmp_path)


def test_parse_tmpfs() -> None:
    assert config.parse_tmpfs("/x") == Tmpfs("/x")
    assert config.parse_tmpfs("/x:size=1m,mode=700,inodes=5,exec") == Tmpfs("/x", 1 << 20, 5, 0o700)


@pytest.mark.parametrize(
    "text", ["", "x", "/x:size", "/x:size=1q", "/x:size=0", "/x:mode=999", "/x:mode=77777", "/x:sze=1", "/\0"]
)
def test_bad_tmpfs(text: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        config.parse_tmpfs(text)


def test_parse_ulimit() -> None:
    assert config.parse_ulimit("nofile=1024:2048") == ("nofile", Ulimit(1024, 2048))
    assert config.parse_ulimit("core=-1") == ("core", Ulimit(-1, -1))


@pytest.mark.parametrize("text", ["", "nofile", "nofil=1", "nofile=a", "nofile=2:1", "nofile=1:2:3", "nofile=-2"])
def test_bad_ulimit(text: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        config.parse_ulimit(text)


@pytest.mark.parametrize(
    "add, drop, kept",
    [
        (["a"], [], None),
        (["CHOWN", "cap_kill"], [], {"CHOWN", "KILL"}),
        (["CHOWN", "KILL"], ["KILL"], {"CHOWN"}),
        (["ALL"], ["KILL"], set(CAPABILITIES) - {"KILL"}),
        (["CHOWN"], ["ALL"], {"CHOWN"}),
        (["ALL"], ["ALL"], set()),
        ([], ["KILL"], set()),
    ],
)
def test_capabilities(add: list[str], drop: list[str], kept: set[str] | None) -> None:
    if kept is None:
        with pytest.raises(ValueError, match=r"is not a capability"):
            config.parse_capabilities(add, drop)
    else:
        assert config.parse_capabilities(add, drop) == kept


@pytest.mark.parametrize(
    "text, kept, of_root",
    [
        ("", set(), SERVICE_CAPABILITIES),
        ("user: '1000'", set(), SERVICE_CAPABILITIES),  # it is for its root, whom `exec` may ask for
        ("userns_mode: auto", set(), SERVICE_CAPABILITIES),
        ("userns_mode: keep-id", set(), SERVICE_CAPABILITIES),
        ("userns_mode: host", set(), set()),
        ("userns_mode: host\ncap_add: [CHOWN]", {"CHOWN"}, set()),
        ("namespaces: [pid, mount]", set(), set()),
        ("network_mode: host", set(), SERVICE_CAPABILITIES - {"NET_BIND_SERVICE"}),
        ("namespaces: [pid, mount, user]", set(), SERVICE_CAPABILITIES - {"NET_BIND_SERVICE"}),
        ("namespaces: [pid, mount, user, net]", set(), SERVICE_CAPABILITIES),
        ("network_mode: service:other", set(), SERVICE_CAPABILITIES - {"NET_BIND_SERVICE"}),
        ("cap_drop: [chown, CAP_KILL]", set(), SERVICE_CAPABILITIES - {"CHOWN", "KILL"}),
        ("cap_drop: [MKNOD]", set(), SERVICE_CAPABILITIES),
        ("cap_drop: [ALL]", set(), set()),
        ("cap_drop: [ALL]\ncap_add: [SETUID, NET_RAW]", {"SETUID", "NET_RAW"}, set()),
        ("cap_drop: [SETUID]\ncap_add: [SETUID, NET_RAW]", {"NET_RAW"}, SERVICE_CAPABILITIES - {"SETUID"}),
        ("cap_add: [NET_RAW, KILL]", {"NET_RAW", "KILL"}, SERVICE_CAPABILITIES - {"KILL"}),
        ("cap_add: [ALL]", set(CAPABILITIES), set()),
        ("cap_add: [ALL]\ncap_drop: [CHOWN]", set(CAPABILITIES) - {"CHOWN"}, set()),
        ("cap_add: [ALL]\ncap_drop: [ALL]", set(), set()),
    ],
)
def test_capabilities_of_services(tmp_path: Path, text: str, kept: set[str], of_root: set[str]) -> None:
    """A file's own words beside the default, and what `config` makes of them says the same."""
    file = write(tmp_path, f"services:\n  other: {{command: x}}\n  web:\n    command: x\n{indent(text, '    ')}")
    project = config.load([file], environ={})
    spec = project.services["web"].spec
    assert (set(spec.capabilities), set(spec.root_capabilities)) == (kept, set(of_root))
    again = config.load([write(tmp_path, config.to_yaml(project), "again.yaml")], environ={})
    assert again.services == project.services


def test_a_bad_user_namespace_is_one_problem(tmp_path: Path) -> None:
    assert problems(tmp_path, "command: x\nnamespaces: [pid, mount]\nuserns_mode: auto") == [
        '3:1: userns_mode: auto needs a user namespace, which "namespaces" leaves out'
    ]


def test_read_env_file(tmp_path: Path) -> None:
    path = write(tmp_path, "A=1\nB\nC\n", "x.env")
    assert config.read_env_file(path, {"B": "2"}) == {"A": "1", "B": "2"}
    with pytest.raises(ValueError, match=rf"^{tmp_path}/nope: No such file or directory$"):
        config.read_env_file(tmp_path / "nope")
    with pytest.raises(ValueError, match=rf"^{path}:2: expected NAME=VALUE"):
        config.read_env_file(write(tmp_path, "A=1\n?\n", "x.env"))


def test_json_schema() -> None:
    schema = config.json_schema()
    assert schema["title"] == "tinyvisor configuration"
    assert len(schema["anyOf"]) == 2
    assert set(FULL_KEYS) <= set(schema["$defs"]["_ServiceFile"]["properties"])
    json.dumps(schema)


FULL_KEYS = [line.split(":")[0] for line in FULL.strip().splitlines() if not line.startswith(("x-", " "))]


# --- There and back ---

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
NAMES = st.from_regex(r"(?!x-)[a-zA-Z0-9][a-zA-Z0-9_.-]{0,10}", fullmatch=True)
PATHS = st.lists(st.text("ab:$ é", min_size=1, max_size=3), min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
POSITIVE = st.integers(1, 1 << 40)
SECONDS = st.floats(0, 1e6)
HERE = Path(os.path.abspath(sys.prefix))


@st.composite
def mounts(draw: st.DrawFn) -> dict[str, Any]:
    targets = draw(st.lists(PATHS, unique=True, max_size=4))
    split = draw(st.integers(0, len(targets)))
    modes = st.integers(0, 0o7777)
    return {
        "volumes": tuple(Volume(HERE, target, draw(st.booleans())) for target in targets[:split]),
        "tmpfs": tuple(Tmpfs(item, draw(POSITIVE), draw(POSITIVE), draw(modes), draw(st.booleans())) for item in targets[split:]),
    }


RATES = st.lists(st.tuples(PATHS, POSITIVE), max_size=2).map(tuple)
SPECS: dict[str, st.SearchStrategy[Any]] = {
    "command": st.lists(TEXT, max_size=3).map(lambda rest: ("x$y", *rest)),
    "environment": st.dictionaries(TEXT.filter(lambda key: key and "=" not in key and key != "<<"), TEXT, max_size=3),
    "working_dir": st.none() | PATHS,
    "user": st.sampled_from([None, "0", "1000:1000", "a$:b", "007"]),
    "group_add": st.lists(st.sampled_from(["5", "audio"]), max_size=2).map(tuple),
    "hostname": st.none() | NAMES,
    "rootfs": st.sampled_from([None, HERE]),
    "root_method": st.sampled_from(["pivot", "chroot"]),
    "read_only": st.booleans(),
    "storage_size": POSITIVE,
    "storage_inodes": POSITIVE,
    "namespaces": st.sets(st.sampled_from(sorted(NAMESPACES))).map(lambda names: frozenset(names | {"pid", "mount"})),
    "network_mode": st.sampled_from(["none", "host"]),
    "pids_limit": st.none() | POSITIVE,
    "mem_limit": st.none() | POSITIVE,
    "cpus": st.none() | st.floats(0.01, 8192),
    "cpuset": st.frozensets(st.integers(0, 8191), max_size=5),
    "blkio": st.none()
    | st.builds(
        Blkio, weight=st.none() | st.integers(10, 1000), read_bps=RATES, write_bps=RATES, read_iops=RATES, write_iops=RATES
    ),
    "ulimits": st.dictionaries(
        st.sampled_from(sorted(ULIMITS)), st.builds(lambda hard: Ulimit(min(hard, 5), hard), st.integers(-1, 1 << 40)), max_size=2
    ),
    "shm_size": POSITIVE,
    "capabilities": st.frozensets(st.sampled_from(CAPABILITIES), max_size=5),
    "root_capabilities": st.frozensets(st.sampled_from(sorted(SERVICE_CAPABILITIES))),
    "no_new_privs": st.booleans(),
    "seccomp": st.sampled_from(["default", "unconfined", DEFAULT_PROFILE]),
    "landlock": st.sampled_from(["default", "unconfined"]),
    "new_network": st.booleans(),
    "umask": st.integers(0, 0o777),
    "oom_score_adj": st.none() | st.integers(-1000, 1000),
    "stop_signal": st.integers(1, 64),
    "stop_grace_period": SECONDS,
    "orphan_grace_period": SECONDS,
    "signal_group": st.booleans(),
    "tty": st.booleans(),
    "stdin_open": st.booleans(),
    "timeout": st.none() | st.floats(1e-9, 1e6),
}
CODES = st.frozensets(st.integers(0, 255) | st.sampled_from(["SIGTERM", "SIGKILL", "SIGRTMIN+3"]), max_size=3)
SCHEDULES = st.builds(
    Schedule,
    cron=st.sampled_from(["*/5 * * * *", "@daily", "0 3 * * mon"]),
    timezone=st.sampled_from(["UTC", "Europe/Berlin"]),
    overlap=st.sampled_from(["skip", "queue"]),
) | st.builds(Schedule, interval=st.floats(1, 1e6))
POLICIES = st.builds(
    lambda condition, schedule, **more: RestartPolicy(
        condition=condition, schedule=schedule if condition != "always" else None, **more
    ),
    condition=st.sampled_from(["no", "always", "on-failure"]),
    schedule=st.none() | SCHEDULES,
    max_attempts=st.none() | st.integers(0, 100),
    backoff=st.builds(
        Backoff,
        initial=st.floats(0, 1),
        factor=st.floats(1, 10),
        max=st.floats(1, 100),
        jitter=st.floats(0, 1),
        reset_after=SECONDS,
    ),
    success_exit_codes=st.frozensets(st.integers(0, 255), max_size=3),
    restart_prevent_exit_codes=CODES,
    restart_force_exit_codes=CODES,
    start_limit_burst=st.integers(0, 100),
    start_limit_interval=SECONDS,
) | st.builds(RestartPolicy, condition=st.just("unless-stopped"))


DEPENDENCIES = st.builds(
    Dependency,
    condition=st.sampled_from(["service_started", "service_completed_successfully"]),
    required=st.booleans(),
    restart=st.booleans(),
)


PROBES = st.one_of(
    st.lists(TEXT, max_size=2).map(lambda rest: {"test": ("x$y", *rest)}),
    st.builds(Tcp, port=st.integers(1, 65535), host=st.sampled_from(["127.0.0.1", "::1"])).map(lambda tcp: {"tcp": tcp}),
    st.builds(
        Http,
        port=st.integers(1, 65535),
        path=st.sampled_from(["/", "/$a?b=${c}"]),
        headers=st.dictionaries(st.sampled_from(["A$", "b"]), st.sampled_from(["", "$x y"])),
        status=st.frozensets(st.integers(200, 599), max_size=2),
    ).map(lambda http: {"http": http}),
)
HEALTHCHECKS = st.builds(
    lambda probe, **more: Healthcheck(**probe, **more),
    PROBES,
    interval=st.floats(1e-6, 100),
    timeout=st.floats(1e-6, 100),
    retries=POSITIVE,
    start_period=SECONDS,
    start_interval=st.floats(1e-6, 100),
)
HOOKS = st.lists(
    st.builds(
        Hook,
        command=st.lists(TEXT, max_size=2).map(lambda rest: ("x$y", *rest)),
        user=st.none() | st.just("a$:b"),
        working_dir=st.none() | PATHS,
        environment=SPECS["environment"],
    ),
    max_size=2,
).map(tuple)


LOG_RATES: st.SearchStrategy[int | None] = st.none() | POSITIVE
LOGGINGS = st.one_of(
    st.just(Logging(driver="none")),
    st.builds(
        Logging,
        driver=st.sampled_from(["local", "json-file"]),
        max_size=POSITIVE,
        max_files=st.integers(1, 9),
        max_age=st.none() | st.floats(1e-6, 1e6),
        compress=st.booleans(),
        max_rate=LOG_RATES,
    ),
    st.builds(
        Logging,
        driver=st.just("syslog"),
        max_rate=LOG_RATES,
        syslog_address=st.sampled_from(["unixgram:///dev/$log", "udp://[::1]:99"]),
        syslog_format=st.sampled_from([None, "rfc3164", "rfc5424"]),
        syslog_facility=st.sampled_from(["user", "local7"]),
        tag=st.sampled_from(["", "a$b"]),
    ),
)


@st.composite
def supervision(draw: st.DrawFn) -> dict[str, Any]:
    check = draw(st.none() | HEALTHCHECKS)
    return {
        "healthcheck": check,
        "on_unhealthy": draw(st.sampled_from(["none", "restart", "stop"])) if check else "none",
        **draw(
            st.sampled_from([{}, {"ready_log": "ready$"}, {"ready_log": "port \\d+"}, {"ready_notify": True}, {"ready_fd": 9}])
        ),
        "start_timeout": draw(st.none() | st.floats(0.001, 1000)),
        "watchdog": draw(st.none() | st.floats(0.001, 100)),
        "post_start": draw(HOOKS),
        "pre_stop": draw(HOOKS),
        "scale": draw(st.none() | st.integers(0, 3)),
        "labels": draw(SPECS["environment"]),
    }


@st.composite
def projects(draw: st.DrawFn) -> Project:
    services: dict[str, Service] = {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)):
        chosen = draw(st.lists(st.sampled_from(sorted(SPECS)), unique=True))
        values = {"command": ("x",)} | {key: draw(SPECS[key]) for key in chosen} | draw(mounts())
        of_root = values.get("root_capabilities", frozenset()) - values.get("capabilities", frozenset())
        if values.get("network_mode") == "host":
            values.pop("capabilities", None)  # those of a network are refused there
        if values.get("network_mode") == "host" or "net" not in values.get("namespaces", {"net"}):
            of_root -= {"NET_BIND_SERVICE"}  # of no use there
        own_ids = "user" in values.get("namespaces", {"user"}) and values.get("userns_mode") != "host"
        values["root_capabilities"] = of_root if own_ids else frozenset()
        services[name] = Service(
            spec=Spec(name=name, **values),
            restart=draw(POLICIES),
            depends_on=draw(st.dictionaries(st.sampled_from(sorted(services)), DEPENDENCIES)) if services else {},
            **draw(supervision()),
            logging=draw(LOGGINGS),
        )
    return Project(name=draw(NAMES), services=services)


@settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large], deadline=None
)
@given(projects())
def test_normalised_loads_as_the_same_project(tmp_path: Path, project: Project) -> None:
    for dump in (config.to_json, config.to_yaml):
        path = tmp_path / "compose.yaml"
        path.write_text(dump(project), encoding="utf-8", newline="")
        assert config.load([path], environ={}) == project
    assert json.loads(config.to_json(project)) == config.normalised(project)


@pytest.mark.parametrize("text", ["\x85", "a\x85", "\u2028", "a \u2029 b", "\n", "\r", "\t", "\x7f", "\ufeff"])
def test_line_breaks_of_every_kind_come_back(tmp_path: Path, text: str) -> None:
    item = Service(spec=Spec(command=("x", text), name="a", environment={text: text}))
    project = Project(name="p", services={"a": item})
    for dump in (config.to_json, config.to_yaml):
        path = tmp_path / "compose.yaml"
        path.write_text(dump(project), encoding="utf-8", newline="")
        assert config.load([path], environ={}) == project


def test_normalised_says_what_was_set(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    text = "services: {a: {command: 'x $$y', tmpfs: /t, umask: 0002}}"
    project = config.load([write(tmp_path, text)], environ={}, name="demo")
    options = {"size": 64 << 20, "mode": "1777", "inodes": 65536, "executable": True}
    volumes = [{"type": "tmpfs", "target": "/t", "tmpfs": options}]
    assert config.normalised(project) == {
        "name": "demo",
        "services": {"a": {"command": ["x", "$$y"], "umask": "0002", "volumes": volumes}},
    }


# --- Never a traceback ---

KEYS = st.sampled_from(
    [*FULL_KEYS, "deploy", "depends_on", "services", "name", "image", "resources", "limits", "<<", "x-a", "a", ""]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["1m", "a:b", "/:/x", "$A", "service:a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)
FUZZ = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=300
)


def load_anything(path: Path) -> None:
    """Loads a file; anything but a `ConfigError` of one line per problem fails."""
    lines, problems = 0, 0
    try:
        config.to_yaml(config.load([path], environ={"A": "1"}))
    except ConfigError as error:
        lines, problems = len(str(error).split("\n")), len(error.problems)
    assert lines == problems


@FUZZ
@given(st.dictionaries(KEYS, VALUES, max_size=8))
def test_any_structure_is_a_project_or_a_config_error(tmp_path: Path, value: Any) -> None:
    for data in (value, {"services": {"a": value, "b": value}}, {"command": "x", **value}):
        load_anything(write(tmp_path, json.dumps(data)))


@FUZZ
@given(st.binary() | st.text(alphabet="acdemorsvi:-[]{}&*!$ \n").map(str.encode))
def test_any_bytes_are_a_project_or_a_config_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(data)
    load_anything(path)
