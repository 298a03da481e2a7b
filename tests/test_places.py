"""Where things live, for root and for others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyvisor import places


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CACHE_HOME", places.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def found() -> tuple[str, ...]:
    return tuple(str(find()) for find in (places.run_directory, places.log_directory, places.cache_directory))


def test_of_root(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(places, "in_user_namespace", lambda: False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/elsewhere")
    system = ("/run/tinyvisor", "/var/log/tinyvisor", "/var/cache/tinyvisor")
    assert found() == system
    monkeypatch.setenv(places.VARIABLE, "1000:1000")  # sudo -E: root of the host is no user's root
    assert (found(), places.owner(), places.privileged(), places.can_live()) == (system, None, True, True)


def test_of_a_user(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    own = ("/run/user/1000/tinyvisor", f"{home}/.local/state/tinyvisor", f"{home}/.cache/tinyvisor")
    assert (found(), places.can_live()) == (own, True)
    monkeypatch.setattr("os.geteuid", lambda: 0)  # in its user namespace
    monkeypatch.setattr(places, "in_user_namespace", lambda: True)
    monkeypatch.setenv(places.VARIABLE, "1000:1001")
    assert (found(), places.owner(), places.privileged(), places.can_live()) == (own, (1000, 1001), False, True)
    for name, directory in (("XDG_RUNTIME_DIR", "/r"), ("XDG_STATE_HOME", "/s"), ("XDG_CACHE_HOME", "/c")):
        monkeypatch.setenv(name, directory)
    assert found() == ("/r/tinyvisor", "/s/tinyvisor", "/c/tinyvisor")


def test_root_of_a_container_with_a_user_namespace_is_root(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(places, "in_user_namespace", lambda: True)
    for value in ("", "x:1", "1000", ":"):
        monkeypatch.setenv(places.VARIABLE, value)
        assert (places.owner(), found()[0], places.can_live()) == (None, "/run/tinyvisor", False)
