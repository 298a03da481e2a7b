"""Profiles learned from real programs: they run again under them, and can't do what they never did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.kernel.command import tinyvisor
from tests.kernel.helpers import BOUND, skip

pytestmark = [pytest.mark.kernel]

REDIS = """redis-server --port 0 --unixsocket /tmp/s --save "" >/tmp/log &
until redis-cli -s /tmp/s ping 2>/tmp/err | grep -q PONG; do sleep 0.1; done
redis-cli -s /tmp/s set a b; redis-cli -s /tmp/s get a; redis-cli -s /tmp/s shutdown nosave; wait"""
NGINX = """printf 'pid /tmp/pid; events {} http { access_log off; client_body_temp_path /tmp/a; proxy_temp_path /tmp/b;
fastcgi_temp_path /tmp/c; uwsgi_temp_path /tmp/d; scgi_temp_path /tmp/e;
server { listen 127.0.0.1:8080; return 200 hello; } }' >/tmp/conf
nginx -e stderr -c /tmp/conf -g 'daemon off;' &
until exec 3<>/dev/tcp/127.0.0.1/8080; do sleep 0.1; done 2>/dev/null
printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3 | tail -1; kill -QUIT $(cat /tmp/pid); wait"""
PROGRAMS = {
    "python": (
        "python3", "-c", "import json, threading, subprocess as s; threading.Thread(target=print).start(); s.run(['true'])",
    ),
    "bash": ("bash", "-c", "for i in 1 2; do /bin/true; done; echo $(echo x) | cat; : > /tmp/x"),
    "git": ("sh", "-c", "cd /tmp && git init -q . && echo a > a && git add a && git status --short"),
    "redis-server": ("bash", "-c", REDIS),
    "nginx": ("bash", "-c", NGINX),
    "gcc": ("sh", "-c", "cd /tmp && echo 'int main(void) { return 0; }' > a.c && gcc a.c && ./a.out"),
}  # fmt: skip
OPTIONS = {"nginx": ("-u", "1234")}  # as root it wants to become somebody else
DIFFER = ("python", "redis-server", "nginx")
"""What threads and processes do depends on who is faster."""
OTHERS = {
    "socket": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "prctl": "import ctypes, os; assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0, 'not permitted'",
    "symlink": "import os; os.symlink('a', '/tmp/b')",
}  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_runs_again_under_what_was_learned(program: str, tmp_path: Path) -> None:
    command = PROGRAMS[program]
    if not shutil.which(program if program != "python" else "python3"):
        skip(f"needs {program}")
    profile, options = tmp_path / "profile.json", ("--timeout", f"{BOUND:.0f}s", *OPTIONS.get(program, ()))
    for more in ([], ["--merge"])[: 1 + (program in DIFFER)]:
        learned = tinyvisor("profile", "learn", "-o", profile, *more, *options, "--", *command)
        assert learned.returncode == 0, learned.stderr
    checked = tinyvisor("profile", "check", *options, profile, "--", *command)
    assert (checked.returncode, checked.stdout) == (0, learned.stdout), checked.stderr
    assert "refused" not in checked.stderr
    rules = json.loads(profile.read_text())
    assert rules["defaultAction"] == "SCMP_ACT_ERRNO"


def test_what_it_never_did_is_refused(tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    base = "import ctypes, os, socket; print(1); socket.socket(socket.AF_UNIX); ctypes.CDLL(None).prctl(15, b'me', 0, 0, 0)\n"
    assert tinyvisor("profile", "learn", "-o", profile, "--", "python3", "-c", base).returncode == 0
    allowed = tinyvisor("run", "--", "python3", "-c", "\n".join([base, *OTHERS.values()]))
    assert allowed.returncode == 0, "under the default profile it could"
    run = tinyvisor("run", "--security-opt", f"seccomp={profile}", "--", "python3", "-c", base)
    assert (run.returncode, run.stdout) == (0, "1\n"), run.stderr
    tries = [f"try:\n    {code}\nexcept (OSError, AssertionError) as error: print(error)" for code in OTHERS.values()]
    checked = tinyvisor("profile", "check", profile, "--", "python3", "-c", "\n".join([base, *tries]))
    assert checked.returncode == 1
    assert checked.stdout.count("not permitted") == len(OTHERS), checked.stdout
    for name in OTHERS:
        assert f"refused {name}" in checked.stderr


def test_from_a_trace_and_to_stdout(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    assert tinyvisor("trace", "--json", "-o", trace, "--", "true").returncode == 0
    from_trace = tinyvisor("profile", "learn", "--from", trace)
    live = tinyvisor("profile", "learn", "--", "sh", "-c", "echo hello")
    assert "execve" in json.loads(from_trace.stdout)["syscalls"][0]["names"]
    assert "write" in json.loads(live.stdout)["syscalls"][0]["names"], "the command's own stdout is not in the profile"
    assert live.stderr == "hello\n"
