"""What a supervisor is asked to offer, and can't."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tinyvisor import places
from tinyvisor.cli import outside
from tinyvisor.client import find_project, known_projects
from tinyvisor.errors import HostError, TinyvisorError


def test_only_root_has_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "privileged", lambda: False)
    with pytest.raises(TinyvisorError, match="needs root"):
        outside._gid("root")


def test_group_by_name_or_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "privileged", lambda: True)
    assert outside._gid("root") == 0
    assert outside._gid("4711") == 4711
    with pytest.raises(HostError, match=r'a group "no-such"; groupadd no-such'):
        outside._gid("no-such")


def test_port_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HostError, match=f"port {port} of 127.0.0.1"), outside._on_loopback(port):
            pass


def test_directory_that_is_not_ours_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "SYSTEM", tmp_path / "tinyvisor")
    places.shared_directory("staff").symlink_to(tmp_path)
    with pytest.raises(HostError, match=r"tinyvisor\.staff as a directory of ours"):
        outside._directory("staff", 0)


def test_members_find_projects_where_root_has_put_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "SYSTEM", tmp_path / "tinyvisor")
    monkeypatch.setattr(places, "privileged", lambda: False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "user"))
    shared = places.shared_directory("staff")
    shared.mkdir()
    outside.write_record(shared / "web.json", {"name": "web", "paths": [str(tmp_path / "configs")]})
    assert known_projects() == ["web"]
    assert find_project(None, tmp_path) == "web"
