"""Jobs and results on their way to a node and back."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvisor.cluster import frames
from tinyvisor.cluster.node import Store
from tinyvisor.errors import SpecError
from tinyvisor.job import Job
from tinyvisor.spec import Blkio, Secret, Spec, SyscallRule, Tmpfs, Ulimit, Volume
from tinyvisor.state import Result, Violation

FULL = Spec(
    command=("a", "\udcff", "ü"), name="n", environment={"A": "b", "Ü": "\n"}, working_dir="/w", user="1:2",
    group_add=("3",), hostname="h", rootfs=Path("/roots/a"), root_method="chroot", read_only=True, storage_size=1 << 20,
    storage_inodes=7, volumes=(Volume(Path("/a"), "/b", True),), tmpfs=(Tmpfs("/t", size=9, mode=0o700),),
    namespaces=frozenset({"pid", "mount"}), userns_mode="host", network_mode="host", pids_limit=3, mem_limit=1 << 20, cpus=0.5,
    cpuset=frozenset({0, 2}), blkio=Blkio(weight=100, read_bps=(("/dev/sda", 5),)), ulimits={"nofile": Ulimit(5, -1)},
    shm_size=4096, capabilities=frozenset({"CHOWN"}), no_new_privs=False, seccomp=Path("/p.json"), seccomp_action="kill",
    landlock="unconfined", new_network=True,
    on_syscall=(
        SyscallRule(syscall="%network", action="log", args=("0 == 1",)), SyscallRule(syscall="open", action="deny", path="/x"),
    ), masked_paths=("/proc/x",),
    readonly_paths=(), umask=0o77, oom_score_adj=5, stop_signal=2, stop_grace_period=1.5, orphan_grace_period=0.5,
    signal_group=True, timeout=2.5, cpu_time=1.25, output_limit=77, notify_socket=True, watchdog=0.5, notification_fd=5,
    proc_opts="hidepid=2",
)  # fmt: skip


def nowhere(digest: str) -> Path:
    raise AssertionError(digest)


def test_a_spec_arrives_as_it_was() -> None:
    plain = {item.name for item in fields(Spec) if getattr(FULL, item.name) == getattr(Spec(command=("x",)), item.name)}
    assert plain == {"tty", "stdin_open", "secrets"}, "a field that the test does not know"
    for spec in (FULL, Spec(command=("true",)), FULL.with_(seccomp="unconfined")):
        assert frames.decode_spec(frames.encode_spec(spec)).with_(command=spec.command) == spec


def test_secrets_stay_here() -> None:
    with pytest.raises(SpecError, match="not sent to other nodes"):
        frames.encode_spec(FULL.with_(secrets=(Secret(target="x", content=b"word"),)))


def test_alike_specs_are_one_text_and_one_object() -> None:
    texts = {frames.encode_spec(FULL.with_(command=(word,))) for word in "abc"}
    assert len(texts) == 1
    assert frames.decode_spec(*texts) is frames.decode_spec(*texts)


def test_a_job_arrives_with_its_files(tmp_path: Path) -> None:
    path = tmp_path / "data"
    job = Job(spec=FULL, id="x", stdin=path, files={"a": b"\0\xff", "b": path, "c": b""}, collect=("out", "*.c"))
    ((record, blobs),) = frames.unpack(frames.encode_job(5, job, {path: b"contents"}))
    key, found = frames.decode_job(record, blobs, nowhere, nowhere)
    assert key == 5
    assert (found.spec, found.stdin, found.collect) == (FULL, b"contents", ("out", "*.c"))
    assert found.files == {"a": b"\0\xff", "b": b"contents", "c": b""}
    ((record, blobs),) = frames.unpack(frames.encode_job(6, FULL, {}))
    assert frames.decode_job(record, blobs, nowhere, nowhere) == (6, Job(spec=FULL))
    ((record, blobs),) = frames.unpack(frames.encode_job(7, job, {path: "d1gest"}))
    _, found = frames.decode_job(record, blobs, tmp_path.joinpath, nowhere)
    assert found.stdin == tmp_path / "d1gest"
    assert found.files == {"a": b"\0\xff", "b": tmp_path / "d1gest", "c": b""}


def test_a_file_that_comes_in_pieces_is_there_when_it_is_whole_and_right(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    whole = hashlib.sha256(b"one two").hexdigest()
    for digest, there in ((whole, True), ("0" * 64, False)):
        for piece, last in ((b"one ", False), (b"two", True)):
            assert not store.path(digest).exists()
            ((record, blobs),) = frames.unpack(frames.encode_piece(digest, piece, last=last))
            store.add(record["piece"], blobs[0], last=record["last"])
        assert store.path(digest).exists() == there
    assert [path.name for path in (tmp_path / "store").iterdir()] == [whole]
    assert store.path(whole).read_bytes() == b"one two"


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"stdout": b"", "stderr": b"\xff\0"},
        {"stderr": b"e", "files": {"a/b": b"1", "c": b""}, "uncollected": {"x": "a link"}},
        {"status": "signaled", "exit_code": None, "signal": 9, "limits_enforced": ("timeout",), "held_up_by": ("a[1]",)},
        {"status": "seccomp", "violations": (Violation("mount", "EPERM", 3), Violation("", "", 1))},
    ],
)
def test_a_result_arrives_as_it_was(more: dict[str, Any]) -> None:
    job = Job(spec=FULL, id="x")
    values: dict[str, Any] = {"status": "ok", "exit_code": 0, "wall": 0.123456789, "reason": "r"} | more
    result = Result(**values, id="x", job=job)
    ((record, blobs),) = frames.unpack(frames.encode_result(7, result, 0.5))
    assert (record["key"], record["took"]) == (7, 0.5)
    assert frames.decode_result(record, blobs, job) == result
    assert frames.decode_result(record, blobs, job).to_json() == result.to_json()


@given(st.lists(st.lists(st.binary(max_size=20), max_size=3), max_size=5), st.data())
def test_torn_records_are_found(blobs: list[list[bytes]], data: st.DataObject) -> None:
    whole = b"".join(frames.pack({"n": number}, each) for number, each in enumerate(blobs))
    assert [(record["n"], found) for record, found in frames.unpack(whole)] == list(enumerate(blobs))
    if whole:
        cut = data.draw(st.integers(1, len(whole) - 1))
        whole_ones: list[int] = []
        with contextlib.suppress(ValueError):
            for record, found in frames.unpack(whole[:cut]):
                assert found == blobs[record["n"]]
                whole_ones.append(record["n"])
        assert len(whole_ones) < len(blobs)
