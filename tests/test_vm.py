"""tests/vm's own part: which kernel is taken, and what is made of how a guest ends. Here a shell stands in for the guest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.vm import __main__ as vm


def test_the_newest_generic_kernel_is_taken(tmp_path: Path) -> None:
    assert vm.newest_kernel(tmp_path) is None
    for release in ("6.1.0-9-amd64", "6.1.0-50-amd64", "6.1.0-51-cloud-amd64", "6.1.0-52-rt-amd64", "5.10.0-99-amd64"):
        (tmp_path / f"vmlinuz-{release}").touch()
    assert vm.newest_kernel(tmp_path) == tmp_path / "vmlinuz-6.1.0-50-amd64"


def test_the_selection_is_of_tests_that_are_there() -> None:
    ids = [line for line in (vm.ROOT / vm.SELECTION).read_text().splitlines() if line.startswith("tests/")]
    for file, _, name in (id.partition("::") for id in ids):
        assert f"def {name}(" in (vm.ROOT / file).read_text() or not name
    assert len(set(ids)) == len(ids) > 10


@pytest.mark.parametrize(
    "guest, status, said",
    [
        ("echo guest ended with 0", 0, "status 0"),
        ("echo 1 failed; echo guest ended with 1", 1, "1 failed"),
        ("echo 'Kernel panic'", 1, "the guest died"),
        ("echo booting; exec sleep 60", 1, "the guest did not end within 1 s"),
        ("echo quote: guest ended with 0; echo guest ended with 2; sleep 60", 2, "status 2"),
    ],
)
def test_the_end_of_a_guest(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], guest: str, status: int, said: str
) -> None:
    monkeypatch.setattr(vm, "newest_kernel", lambda: Path("vmlinuz"))
    monkeypatch.setattr(vm, "command", lambda kernel, arguments: ["sh", "-c", guest])
    monkeypatch.setattr(vm, "BUDGET", 1.0)
    fds = os.listdir("/proc/self/fd")
    assert vm.run([]) == status
    captured = capfdbinary.readouterr()
    assert said in (captured.out + captured.err).decode()
    assert os.listdir("/proc/self/fd") == fds


@pytest.mark.parametrize("must_work, status", [("1", 1), ("", 0)])
def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], must_work: str, status: int
) -> None:
    monkeypatch.setenv("TINYVISOR_MUST_WORK", must_work)
    monkeypatch.setattr(vm, "newest_kernel", lambda: None)
    assert vm.main() == status
    assert "apt-get install linux-image-amd64" in capsys.readouterr().err
