"""Jobs and results as bytes, and the frames in which a Dask worker and its node's process exchange them. Pure.

A record is two lengths, a JSON object, and the bytes that belong to it; records stand one after the other. Nothing here is
pickled: what a container has written is data to everybody that it passes.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, Final

from tinyvisor.errors import SpecError
from tinyvisor.job import Job
from tinyvisor.spec import Blkio, Spec, SyscallRule, Tmpfs, Ulimit, Volume
from tinyvisor.state import Result, Violation

HEADER: Final = struct.Struct("!IB8s")
"""Of a frame: bytes after it, its kind, whose it is."""

OPEN, JOBS, TAKEN, CLOSE = 1, 2, 3, 4
"""To the node: a session begins; records of jobs; so many bytes of results have left the worker; a session ends."""
READY, REFUSED, RESULT, UNFIT, CLOSED, ROOT, BACK = 16, 17, 18, 19, 20, 21, 22
"""From the node: it runs; it can't, and why; a record of a result; it can't enforce what a job asks for; nothing of a session
is left; a record that says how it stands with a root; a record of a job that it gives back."""

NOBODY: Final = bytes(8)
"""Whose the frames are that belong to no session."""

_LENGTHS: Final = struct.Struct("!II")
_COUNT: Final = struct.Struct("!Q")


def frame(kind: int, session: bytes = NOBODY, payload: bytes = b"") -> bytes:
    """One frame."""
    return HEADER.pack(len(payload), kind, session) + payload


def pack_count(count: int) -> bytes:
    """A number of bytes, as the payload of `TAKEN`."""
    return _COUNT.pack(count)


def unpack_count(payload: bytes) -> int:
    """The number in `pack_count`."""
    return int(_COUNT.unpack(payload)[0])


def pack(record: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> bytes:
    """One record; `unpack` gives back as many blobs, each as it was."""
    head = json.dumps({**record, "blobs": [len(blob) for blob in blobs]}).encode()
    return b"".join((_LENGTHS.pack(len(head), sum(map(len, blobs))), head, *blobs))


def unpack(data: bytes) -> Iterator[tuple[dict[str, Any], list[bytes]]]:
    """The records of `data`.

    Raises:
        ValueError: that is not what they are.
    """
    at = 0
    while at < len(data):
        try:
            length, rest = _LENGTHS.unpack_from(data, at)
        except struct.error as error:
            raise ValueError(f"a torn record: {error}") from None
        at += _LENGTHS.size
        end = at + length + rest
        if end > len(data):
            raise ValueError("a torn record")
        record = json.loads(data[at : at + length])
        at += length
        blobs = []
        for size in record.pop("blobs"):
            blobs.append(data[at : at + size])
            at += size
        if at != end:
            raise ValueError("a record whose lengths don't fit")
        yield record, blobs


# --- Specs. ---


def _default(item: Any) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


_DEFAULTS: Final = tuple((item.name, _default(item)) for item in fields(Spec) if item.name != "command")
_SENT: Final = ("rootfs", "seccomp")
_LISTS: Final = ("volumes", "tmpfs", "on_syscall")
_SETS: Final = ("namespaces", "cpuset", "capabilities", "root_capabilities")
_TUPLES: Final = ("group_add", "masked_paths", "readonly_paths")


def encode_spec(spec: Spec, sent: Collection[Path] = ()) -> str:
    """All that `spec` says but its command, as JSON.

    Args:
        sent: paths of which the content goes to the node: they are not in it.

    Raises:
        SpecError: it has secrets, which stay here.
    """
    found: dict[str, Any] = {}
    if spec.secrets:
        raise SpecError("secrets", "are not sent to other nodes")
    for name, default in _DEFAULTS:
        value = getattr(spec, name)
        if value is default or value == default or (name in _SENT and sent and value in sent):
            continue
        found[name] = _plain(name, value)
    return json.dumps(found)


def _plain(name: str, value: Any) -> Any:
    if name in _SETS:
        return sorted(value)
    if name in _LISTS:
        return [asdict(item) | ({"source": str(item.source)} if isinstance(item, Volume) else {}) for item in value]
    if name == "ulimits":
        return {key: [ulimit.soft, ulimit.hard] for key, ulimit in value.items()}
    if name == "blkio":
        return asdict(value)
    if name == "environment":
        return dict(value)
    return str(value) if isinstance(value, Path) else value


@functools.lru_cache(maxsize=256)
def decode_spec(text: str) -> Spec:
    """The spec of `encode_spec`, with a command that stands for others. The same text gives the same object.

    Raises:
        SpecError, TypeError, ValueError: no spec says that.
    """
    found = json.loads(text)
    for name, value in found.items():
        if name in _SETS:
            found[name] = frozenset(value)
        elif name in _TUPLES:
            found[name] = tuple(value)
    if "volumes" in found:
        found["volumes"] = tuple(Volume(**{**item, "source": Path(item["source"])}) for item in found["volumes"])
    if "tmpfs" in found:
        found["tmpfs"] = tuple(Tmpfs(**item) for item in found["tmpfs"])
    if "on_syscall" in found:
        found["on_syscall"] = tuple(SyscallRule(**{**item, "args": tuple(item["args"])}) for item in found["on_syscall"])
    if "ulimits" in found:
        found["ulimits"] = {key: Ulimit(*pair) for key, pair in found["ulimits"].items()}
    if found.get("blkio") is not None:
        found["blkio"] = Blkio(**{key: _pairs(value) for key, value in found["blkio"].items()})
    if "rootfs" in found:
        found["rootfs"] = Path(found["rootfs"])
    if "seccomp" in found and found["seccomp"] != "unconfined":
        found["seccomp"] = Path(found["seccomp"])
    return Spec(command=("-",), **found)


def _pairs(value: Any) -> Any:
    return tuple((device, rate) for device, rate in value) if isinstance(value, list) else value


# --- Jobs and results. ---


def encode_job(key: int, job: Spec | Job, contents: Mapping[Path, bytes | str]) -> bytes:
    """The record of a job.

    Args:
        key: what its result is called by.
        contents: of the host's files that it names; text is the digest of one that was sent as `encode_piece`, and of a root
            or a profile it is always that.
    """
    spec = job if isinstance(job, Spec) else job.spec
    record: dict[str, Any] = {"key": key, "command": spec.command, "spec": encode_spec(spec, contents)}
    for name in _SENT:
        if (value := getattr(spec, name)) in contents:
            record[name] = contents[value]
    blobs: list[bytes] = []

    def stated(value: bytes | Path) -> str | None:
        content = value if isinstance(value, bytes) else contents[value]
        if isinstance(content, str):
            return content
        blobs.append(content)
        return None

    if isinstance(job, Job):
        if job.stdin is not None:
            record["stdin"] = [stated(job.stdin)]
        if job.files:
            record["files"] = {path: stated(value) for path, value in job.files.items()}
        if job.collect:
            record["collect"] = job.collect
    return pack(record, blobs)


def encode_piece(digest: str, piece: bytes, *, last: bool, root: bool = False) -> bytes:
    """The record of a piece of a file, or of a root's tarball, which follows the one before it."""
    return pack({"piece": digest, "last": last, "root": root}, [piece])


def encode_drop(digest: str) -> bytes:
    """The record that a file is not needed any more."""
    return pack({"drop": digest})


def encode_recall() -> bytes:
    """The record that asks for the jobs that were not begun."""
    return pack({"recall": True})


def encode_back(key: int) -> bytes:
    """The record of a job that was not begun, and won't be."""
    return pack({"back": key})


def encode_root(digest: str, **more: Any) -> bytes:
    """To the node: the record of a root that jobs need. From it, with its `state`: ``"here"``, ``"missing"``, whereupon its
    tarball is sent, or why it can't be had."""
    return pack({"root": digest, **more})


def decode_job(
    record: Mapping[str, Any], blobs: Sequence[bytes], stored: Callable[[str], Path], root: Callable[[str], Path]
) -> tuple[int, Job]:
    """Key and job of a record.

    Args:
        stored: gives the file of a digest.
        root: gives the directory of a root's.
    """
    rest = iter(blobs)

    def content(digest: str | None) -> bytes | Path:
        return next(rest) if digest is None else stored(digest)

    stdin = content(record["stdin"][0]) if "stdin" in record else None
    files = {path: content(digest) for path, digest in record.get("files", {}).items()}
    sent = {name: of(record[name]) for name, of in (("rootfs", root), ("seccomp", stored)) if name in record}
    spec = decode_spec(record["spec"]).with_(command=tuple(record["command"]), **sent)
    return record["key"], Job(spec=spec, stdin=stdin, files=files, collect=tuple(record.get("collect", ())))


_PLAIN: Final = tuple(
    item.name for item in fields(Result) if item.name not in ("id", "stdout", "stderr", "files", "uncollected", "job")
)


def encode_result(key: int, result: Result, took: float) -> bytes:
    """The record of a result, all but `id` and `job`.

    Args:
        took: seconds that it had a slot.
    """
    record: dict[str, Any] = {"key": key, "took": took, "of": {name: getattr(result, name) for name in _PLAIN}}
    record["of"]["violations"] = [asdict(item) for item in result.violations]
    blobs = []
    for name in ("stdout", "stderr"):
        content = getattr(result, name)
        if content is not None:
            record[name] = True
            blobs.append(content)
    if result.files:
        record["files"] = list(result.files)
        blobs += result.files.values()
    if result.uncollected:
        record["uncollected"] = dict(result.uncollected)
    return pack(record, blobs)


def decode_result(record: Mapping[str, Any], blobs: Sequence[bytes], job: Any) -> Result:
    """The result of a record, as `job`'s."""
    rest = iter(blobs)
    stdout = next(rest) if record.get("stdout") else None
    stderr = next(rest) if record.get("stderr") else None
    files = dict(zip(record.get("files", ()), rest, strict=True))
    of: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in record["of"].items()}
    of["violations"] = tuple(map(Violation.from_json, of.get("violations", ())))
    return Result(
        **of,
        id=job.id if isinstance(job, Job) else "",
        stdout=stdout,
        stderr=stderr,
        files=files,
        uncollected=record.get("uncollected", {}),
        job=job,
    )
