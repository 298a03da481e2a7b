"""Ranges are taken by locks in a file: real files, no root needed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tinyvisor.errors import HostError
from tinyvisor.runtime.idmap import IDS, Ranges
from tinyvisor.runtime.leases import FILE, Leases, Slot


def ranges(count: int, first: int = 1 << 20) -> Ranges:
    return Ranges(((first, count * IDS),), ((first + 7, count * IDS),), "a test")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def ids(*slots: Slot) -> list[int]:
    return [(slot.uid - (1 << 20)) // IDS for slot in slots]


def test_no_two_supervisors_have_one(run: Path) -> None:
    first, second = Leases(run, ranges(4)), Leases(run, ranges(4))
    taken = [first.take(), second.take(), second.take(), first.take()]
    assert ids(*taken) == [0, 1, 2, 3]
    assert [slot.gid - slot.uid for slot in taken] == [7] * 4
    for leases in (first, second):
        with pytest.raises(
            HostError, match=r"all 4 ranges of 65536 ids \(a test\) are in use .*; add ranges .*userns_mode: host"
        ):
            leases.take()
    first.close()
    assert ids(second.take(), second.take()) == [3, 0]
    second.close()
    assert (run / FILE).stat().st_mode & 0o777 == 0o600


def test_what_was_given_back_is_the_next_one(run: Path) -> None:
    leases, other = Leases(run, ranges(4)), Leases(run, ranges(4))
    slots = [leases.take(), leases.take()]
    leases.give_back(slots[0])
    assert leases.take() is slots[0]
    for slot in slots:
        leases.give_back(slot)
    assert ids(other.take()) == [2], "it stays the first one's, to be had again without a lock"
    leases.close()
    other.close()


def test_a_lock_ends_with_its_last_holder(run: Path) -> None:
    """The launcher has the file, too, and its containers may live a moment longer than the supervisor."""
    leases, other = Leases(run, ranges(1)), Leases(run, ranges(1))
    leases.take()
    launcher = os.dup(leases.fd)
    leases.close()
    with pytest.raises(HostError):
        other.take()
    os.close(launcher)
    assert ids(other.take()) == [0]
    other.close()


def test_ranges_that_overlap_by_a_change_of_the_files(run: Path) -> None:
    before, after = Leases(run, ranges(2)), Leases(run, ranges(4, (1 << 20) - 100))
    before.take()
    before.take()
    assert after.take().uid == (1 << 20) - 100 + 3 * IDS, "the others have ids of somebody's"
    before.close()
    after.close()


def test_kill_9_gives_all_back(run: Path) -> None:
    code = f"""
import signal, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from tests.test_leases import Leases, ranges
leases = Leases(Path({str(run)!r}), ranges(2))
leases.take(), leases.take()
print("ready", flush=True)
signal.pause()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        leases = Leases(run, ranges(2))
        with pytest.raises(HostError):
            leases.take()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert ids(leases.take(), leases.take()) == [0, 1]
        leases.close()
    finally:
        process.kill()
        process.communicate()


def test_a_directory_that_others_can_write(run: Path) -> None:
    run.mkdir()
    run.chmod(0o777)
    with pytest.raises(HostError, match="only its owner"):
        Leases(run, ranges(1))


def test_a_link_is_not_followed(run: Path, tmp_path: Path) -> None:
    run.mkdir(mode=0o700)
    (run / FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        Leases(run, ranges(1))
    assert not (tmp_path / "elsewhere").exists()
