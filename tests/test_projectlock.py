"""Who holds a project, and what becomes of the lock of one that is gone."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tinyvisor.errors import HostError, SpecError, TinyvisorError
from tinyvisor.runtime.cgroup import Layout, Swept, sweep
from tinyvisor.runtime.projectlock import ProjectLock


def test_a_project_runs_once(tmp_path: Path) -> None:
    with ProjectLock(tmp_path, "web") as lock:
        assert lock.fd >= 0
        assert not os.get_inheritable(lock.fd)
        with (
            pytest.raises(TinyvisorError, match=rf"project web is already running \(pid {os.getpid()}\)"),
            ProjectLock(tmp_path, "web"),
        ):
            pass
        with ProjectLock(tmp_path, "other"):
            pass
    assert list(tmp_path.iterdir()) == []
    with ProjectLock(tmp_path, "web"):
        pass


def test_a_lock_name_can_not_leave_the_directory(tmp_path: Path) -> None:
    with pytest.raises(SpecError):
        ProjectLock(tmp_path, "../web")


def test_a_lock_that_was_inherited_outlives_us(tmp_path: Path) -> None:
    with ProjectLock(tmp_path, "web") as lock:
        heir = subprocess.Popen(["sleep", "60"], pass_fds=[lock.fd])
    try:
        assert (tmp_path / "web.lock").exists()
        with pytest.raises(TinyvisorError, match="already running"), ProjectLock(tmp_path, "web"):
            pass
    finally:
        heir.kill()
        heir.wait()
    with ProjectLock(tmp_path, "web"):
        pass


def test_a_kept_lock_file_is_swept_later(tmp_path: Path) -> None:
    with ProjectLock(tmp_path, "web") as lock:
        lock.keep = True
    assert sweep(Layout(), tmp_path) == Swept(removed=("web",))
    assert list(tmp_path.iterdir()) == []


def test_a_symlink_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "web.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"), ProjectLock(tmp_path, "web"):
        pass
    assert not (tmp_path / "precious").exists()


def test_a_lock_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    with pytest.raises(HostError, match="only its owner"), ProjectLock(tmp_path / "run", "web"):
        pass


def test_locks_taken_and_given_up_at_once_never_overlap(tmp_path: Path) -> None:
    held, overlaps, taken = [0], [0], [0]

    def work() -> None:
        for _ in range(200):
            try:
                with ProjectLock(tmp_path, "web"):
                    held[0] += 1
                    overlaps[0] += held[0] != 1
                    taken[0] += 1
                    held[0] -= 1
            except TinyvisorError:
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == [0]
    assert taken[0] >= 200
    assert list(tmp_path.iterdir()) == []


def test_a_run_waits_for_a_sweeper(tmp_path: Path) -> None:
    sweeper = ProjectLock(tmp_path, "web")
    sweeper.__enter__()
    os.pwrite(sweeper.fd, b"sweep 1234567890\n", 0)
    timer = threading.Timer(0.3, sweeper.__exit__, (None, None, None))
    timer.start()
    started = time.monotonic()
    with ProjectLock(tmp_path, "web"):
        assert time.monotonic() - started > 0.2
    timer.join()
