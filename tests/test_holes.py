"""Each opt-out is shown as the hole that it is; the default container has none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.command import tinyvisor
from tinyvisor.holes import holes
from tinyvisor.spec import DEFAULT_NAMESPACES, Spec, SyscallRule, Volume

TRUE = Spec(command=("true",))


def test_the_default_container_has_none() -> None:
    assert holes(TRUE) == ()
    limited = TRUE.with_(
        proc_opts="subset=pid", network_mode="service:db", seccomp_action="kill",
        volumes=(Volume(Path("/x"), "/x", read_only=True),),
        on_syscall=(SyscallRule(syscall="connect", action="deny"),), namespaces=DEFAULT_NAMESPACES | {"time"},
    )  # fmt: skip
    assert holes(limited) == ()


@pytest.mark.parametrize(
    "fields, begins",
    [
        ({"network_mode": "host"}, "network_mode: host: all that listens"),
        ({"userns_mode": "host"}, "userns_mode: host: root inside is root outside"),
        ({"userns_mode": "keep-id"}, "userns_mode: keep-id: "),
        ({"namespaces": DEFAULT_NAMESPACES - {"ipc", "uts"}}, "namespaces: it shares the host's: ipc, uts"),
        ({"capabilities": {"NET_RAW", "CHOWN"}}, "cap_add: rights over its own namespaces: CHOWN, NET_RAW"),
        ({"no_new_privs": False}, "security_opt: no-new-privileges:false: "),
        ({"seccomp": "unconfined"}, "security_opt: seccomp=unconfined: "),
        ({"seccomp": "/p.json"}, "security_opt: seccomp=/p.json: "),
        ({"seccomp_action": "log"}, "seccomp.action: log: "),
        (
            {"on_syscall": (SyscallRule(syscall="bpf", action="allow"),)},
            "on_syscall: let through before the profile is asked: bpf",
        ),
        ({"masked_paths": ()}, "masked_paths, readonly_paths: not kept from it: /proc/"),
        ({"volumes": (Volume(Path("/srv"), "/x"),)}, "volumes: it can write /srv: "),
    ],
)
def test_each_opt_out_is_one(fields: dict[str, Any], begins: str) -> None:
    (hole,) = holes(TRUE.with_(**fields))
    assert hole.startswith(begins)


def test_rights_over_the_host() -> None:
    assert "cap_add: rights over the host: SYS_ADMIN" in holes(TRUE.with_(userns_mode="host", capabilities={"SYS_ADMIN"}))


def test_plan_and_config_show_them(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text("command: [true]\nnetwork_mode: host\n")
    (tmp_path / "shut.yaml").write_text("command: [true]\n")
    shown = tinyvisor("plan", tmp_path)
    assert re.findall(r"^holes:\n   - (.*?): all that", shown.stdout, re.MULTILINE) == ["network_mode: host"]
    told = tinyvisor("config", tmp_path)
    assert told.returncode == 0
    assert told.stderr.startswith("tinyvisor: web: a hole: network_mode: host: all that listens on the host")
    assert told.stderr.count("\n") == 1
    assert "hole" not in told.stdout
