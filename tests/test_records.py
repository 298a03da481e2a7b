"""Records of what outlives its supervisor, and how processes are recognised."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tinyvisor.errors import HostError
from tinyvisor.processes import identify, is_alive, start_time
from tinyvisor.runtime.records import Records


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "web.live"


def test_the_next_one_finds_it(directory: Path) -> None:
    before = Records(directory)
    before.update("web", service={"state": 1}, container={"id": 7})
    before.update("web", service={"state": 2})
    before.update("_runtime", view=None)
    found = Records(directory)
    assert found.names() == ("web",)
    assert (found.get("web", "service"), found.get("web", "container")) == ({"state": 2}, {"id": 7})
    assert found.get("web", "nothing") is found.get("nobody", "service") is None


def test_a_section_goes_with_the_change_of_another(directory: Path) -> None:
    records = Records(directory)
    records.update("web", service={"state": "running"}, container={"id": 7})
    records.update("web", service={"state": "exited"}, container=None)
    assert json.loads((directory / "web.json").read_text()).keys() == {"format", "boot", "service"}


def test_another_boot_s_are_nothing(directory: Path) -> None:
    Records(directory, boot="before").update("web", service={})
    assert Records(directory, boot="now").names() == ()


def test_only_the_owner_may_look(directory: Path) -> None:
    directory.mkdir(mode=0o755)
    Records(directory).update("web", service={"secret": "x"})
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "web.json").stat().st_mode) == 0o600


def test_a_directory_of_others_is_refused(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(HostError, match="only its owner"):
        Records(directory)


def test_what_is_torn_or_of_another_format_is_strange(directory: Path) -> None:
    Records(directory).update("web", service={})
    (directory / "torn.json").write_text('{"format": 1, "bo')
    (directory / "later.json").write_text('{"format": 2}')
    found = Records(directory)
    assert found.names() == ("web",)
    assert [path.name for path in found.strange] == ["later.json", "torn.json"]


def test_a_write_that_fails_leaves_what_was_there_and_is_told_once(directory: Path) -> None:
    records, told = Records(directory), list[str]()
    records.on_problem = told.append
    records.update("web", service={"n": 1})
    (directory / "web.new").mkdir()  # root writes anywhere else
    records.try_update("web", service={"n": 2})
    records.try_update("web", service={"n": 3})
    assert len(told) == 1
    assert "web.json" in told[0]
    assert Records(directory).get("web", "service") == {"n": 1}
    (directory / "web.new").rmdir()
    records.try_update("web", container={"id": 1})
    assert Records(directory).get("web", "service") == {"n": 3}


def test_forget_and_remove(directory: Path) -> None:
    records = Records(directory)
    records.update("a", service={})
    records.update("b", service={})
    records.forget("a")
    records.forget("a")
    assert Records(directory).names() == ("b",)
    records.clear()
    assert not list(directory.iterdir())
    records.remove()
    assert not directory.exists()


def test_a_process_is_recognised() -> None:
    me = identify(os.getpid())
    assert is_alive(me)
    assert not is_alive(me | {"boot": "another"})
    assert not is_alive(me | {"start": me["start"] - 1}), "its number has been given anew"
    assert not is_alive({})


def test_a_zombie_is_not_alive() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        found = identify(process.pid)
        assert is_alive(found)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert start_time(process.pid) == found["start"]
        assert not is_alive(found)


def test_more_of_a_section_is_added_to_the_one_that_is_meant(tmp_path: Path) -> None:
    records = Records(tmp_path, "now")
    records.stage("web", container={"id": 7, "spec": {"name": "web"}})
    assert not (tmp_path / "web.json").exists()
    assert records.extend("web", "container", {"id": 7}, pid=70)
    for other in (70, 0):
        assert not records.extend("web", "container", {"id": other}, pid=71)
    assert not records.extend("web", "service", {"id": 7}, pid=72)
    assert not records.extend("gone", "container", {"id": 7}, pid=73)
    records.update("web")
    found = Records(tmp_path, "now")
    assert found.extend("web", "container", {"id": 7}, exit=None)
    assert found.get("web", "container") == {"id": 7, "spec": {"name": "web"}, "pid": 70, "exit": None}
    records.stage("db", container={"id": 8})
    assert records.extend("db", "container", {"id": 8}, pid=80)
    assert records.get("db", "container") == {"id": 8, "pid": 80}
