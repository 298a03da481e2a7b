"""What a supervisor is asked to offer, and can't."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel.command import environment
from tinyvisor import client, places
from tinyvisor.cli import outside
from tinyvisor.client import find_project, known_projects
from tinyvisor.errors import HostError, TinyvisorError
from tinyvisor.runtime import remains
from tinyvisor.runtime.projectlock import ProjectLock, unclaimed


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


def test_a_project_is_found_from_where_it_was_started_and_from_right_above_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "SYSTEM", tmp_path / "tinyvisor")
    monkeypatch.setattr(places, "privileged", lambda: True)
    run = places.run_directory()
    run.mkdir()
    home, files = tmp_path / "home", tmp_path / "files"

    def record(name: str, path: Path, directory: Path) -> None:
        outside.write_record(run / f"{name}.json", {"name": name, "paths": [str(path)], "directory": str(directory)})

    record("web", files / "web" / "c", home)
    assert [find_project(None, place) for place in (home, files / "web", files / "web" / "c")] == ["web"] * 3
    for elsewhere in (files / "web" / "c" / "deeper", files / "we", files, Path("/")):
        with pytest.raises(TinyvisorError, match="no project runs from this directory"):
            find_project(None, elsewhere)
    monkeypatch.setattr(client, "is_running", lambda name: True)
    record("db", files / "db" / "tinyvisor.yaml", home)
    with pytest.raises(TinyvisorError, match="several projects run from here: db, web; choose one with -p NAME"):
        find_project(None, home)
    assert find_project(None, files / "db") == "db"
    record("own", home / "configs", files)
    assert find_project(None, home) == "own"  # what is configured here goes before what is only near


def test_what_a_killed_supervisor_has_left_for_groups_goes_with_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "SYSTEM", tmp_path / "tinyvisor")
    monkeypatch.setattr(remains, "privileged", lambda: True)
    (tmp_path / "tinyvisor.file").touch()
    for group in ("staff", "100"):
        places.shared_directory(group).mkdir()
        for project in ("web", "other"):
            outside.write_record(places.shared_directory(group) / f"{project}.json", {"name": project})
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(places.shared_directory(group) / f"{project}.sock"))
    remains.forget_remains(tmp_path / "tinyvisor", "web")
    for group in ("staff", "100"):
        assert sorted(path.name for path in places.shared_directory(group).iterdir()) == ["other.json", "other.sock"]
    monkeypatch.setattr(remains, "privileged", lambda: False)
    remains.forget_remains(tmp_path / "tinyvisor", "other")
    assert len(list(places.shared_directory("staff").iterdir())) == 2, "root's alone"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another")
def test_who_is_no_member_is_told_where_it_was_not_looked(tmp_path: Path) -> None:
    for parent in [tmp_path, *tmp_path.parents[:3]]:
        parent.chmod(parent.stat().st_mode | 0o111)
    tmp_path.chmod(0o755)
    (tmp_path / "tinyvisor.staff").mkdir(mode=0o700)
    (tmp_path / "tinyvisor.file").touch()
    code = (
        "import os, sys; from pathlib import Path; from tinyvisor import client, places\n"
        "places.SYSTEM = Path(sys.argv[1], 'tinyvisor'); os.setuid(12345)\n"
        "try: client._connect('web')\nexcept client.TinyvisorError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path], env=environment(), capture_output=True, text=True, check=True)
    assert f'no daemon runs the project "web" where we may look, which is not in {tmp_path}/tinyvisor.staff;' in run.stdout


# ---- what the killed have left ----


def test_what_the_gone_have_left_for_groups_is_removed_by_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But what runs, has yet to be swept, or is nobody's of ours stays."""
    monkeypatch.setattr(places, "SYSTEM", tmp_path / "tinyvisor")
    monkeypatch.setattr(remains, "privileged", lambda: True)
    locks, staff = tmp_path / "tinyvisor", tmp_path / "tinyvisor.staff"
    staff.mkdir()
    for name in ("gone.sock", "gone.json", "torn.json.new", "runs.sock", "unswept.json", "note.txt", "-x.sock"):
        (staff / name).touch()
    with ProjectLock(locks, "runs"):
        (locks / "unswept.lock").touch()
        remains.close_the_gone_to_groups(locks)
        assert sorted(path.name for path in locks.iterdir()) == ["runs.lock", "unswept.lock"]
    assert sorted(path.name for path in staff.iterdir()) == ["-x.sock", "note.txt", "runs.sock", "unswept.json"]


def test_who_begins_while_what_is_left_is_removed_has_it_first_or_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with unclaimed(tmp_path, "web") as is_gone:
        assert is_gone
        assert (tmp_path / "web.lock").read_text().startswith("sweep "), "for which a start waits"
        with unclaimed(tmp_path, "web") as again:
            assert not again
    assert not (tmp_path / "web.lock").exists()

    def overtaken(fd: int, how: int) -> None:
        raise BlockingIOError

    monkeypatch.setattr(fcntl, "flock", overtaken)
    with unclaimed(tmp_path, "web") as is_gone:
        assert not is_gone
    assert (tmp_path / "web.lock").exists(), "it is theirs"
