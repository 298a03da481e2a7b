"""The wire format: what Python encodes the launcher decodes, and what is not well-formed it refuses.

The launcher's `check` mode decodes requests from stdin and does nothing with them. All of it runs against a build with
AddressSanitizer and UBSan, in which a read past a request's end is a crash.
"""

from __future__ import annotations

import dataclasses
import errno
import random
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests import launcher_harness as harness
from tests.launcher_harness import header, raw_step
from tests.test_steps import CLASSES
from tinyvisor.errors import InternalError
from tinyvisor.runtime import launcher as wire
from tinyvisor.runtime import steps as s
from tinyvisor.runtime.launcher import EMPTY, Section
from tinyvisor.runtime.steps import KEPT, Step

sanitized = harness.sanitized

FDS = 8
MAX_KEPT = 32
MAX_STEPS = 1024
REFUSALS = {errno.EBADMSG, errno.ENOSYS, errno.EINVAL, errno.EBADF, errno.EPROTONOSUPPORT, errno.E2BIG}
IN_INIT, IN_WORKLOAD, IN_CLEANUP = [*range(1, 9), *range(10, 26)], range(40, 60), range(60, 62)
LAUNCHER_OPS = (6, 7, 8, 9, 10, 11, 15)

# ---- what decodes ----


class Checker:
    """The launcher in `check` mode: one process that answers request after request."""

    def __init__(self, path: Path, fds: int) -> None:
        self._process = subprocess.Popen(
            [path, "check", str(fds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=harness.SANITIZER, bufsize=0,
        )  # fmt: skip

    def __call__(self, request: bytes) -> tuple[int, int]:
        """(errno, bytes understood)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        data = memoryview(len(request).to_bytes(4, "little") + request)
        while data:
            data = data[self._process.stdin.write(data) :]
        answer = self._process.stdout.readline()
        assert answer, self.close()
        error, offset = answer.split()
        return int(error), int(offset)

    def close(self) -> str:
        _, errors = self._process.communicate()
        return errors.decode()


def check_all(path: Path, requests: Sequence[bytes], fds: int = FDS) -> list[tuple[int, int]]:
    """All at once, for thousands. A crash is an AssertionError with the sanitizer's report."""
    data = b"".join(len(request).to_bytes(4, "little") + request for request in requests)
    run = subprocess.run([path, "check", str(fds)], input=data, capture_output=True, env=harness.SANITIZER, check=False)
    answers = [(int(error), int(offset)) for error, offset in (line.split() for line in run.stdout.splitlines())]
    crashed = requests[len(answers)].hex() if len(answers) < len(requests) else ""
    assert run.returncode == 0, f"{run.stderr.decode()}\nat {crashed}"
    assert len(answers) == len(requests)
    for (error, offset), request in zip(answers, requests, strict=True):
        assert error == 0 or error in REFUSALS
        assert offset <= len(request)
        assert error or offset == len(request)
    return answers


@pytest.fixture(scope="module")
def check(sanitized: Path) -> Iterator[Checker]:
    checker = Checker(sanitized, FDS)
    yield checker
    assert checker.close() == ""


def decode_steps(body: bytes) -> list[tuple[int, tuple[int, ...], tuple[bytes, ...]]]:
    """A reader of steps that shares nothing with the writer."""
    found = []
    while body:
        op, ints, strings, length = struct.unpack_from("=HBBI", body)
        numbers = struct.unpack_from(f"={ints}Q", body, 8)
        at, texts = 8 + 8 * ints, []
        for _ in range(strings):
            size = int.from_bytes(body[at : at + 4], "little")
            assert body[at + 4 + size] == 0
            texts.append(body[at + 4 : at + 4 + size])
            at += 5 + size
        assert at == length
        found.append((op, numbers, tuple(texts)))
        body = body[length:]
    return found


def as_bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


# ---- strategies ----

U64 = st.integers(0, 2**64 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.text("\udc80\udcffa", max_size=5)
WORD = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


def values(kind: type[Step], field: dataclasses.Field[object], fds: int) -> st.SearchStrategy[object]:
    """For one field of a step class, by its type and, for slots, its name."""
    if field.name in ("slot", "ids"):
        kept = st.integers(KEPT, KEPT | MAX_KEPT - 1)
        return kept | st.integers(0, fds - 1) if fds else kept
    strategies: dict[str, st.SearchStrategy[object]] = {
        "int": st.integers(-(2**31), 2**31 - 1) if kind in (s.OomScoreAdj, s.Rlimit) and field.name != "resource" else U64,
        "str": TEXT,
        "bytes": st.binary(max_size=60),
        "bool": st.booleans(),
        "frozenset[int]": st.frozensets(st.integers(0, 300), min_size=1, max_size=5),
        "tuple[int, int]": st.tuples(U64, U64),
        "tuple[int, ...]": st.lists(st.integers(0, 2**32 - 1), max_size=4).map(tuple),
        "tuple[str, ...]": st.lists(WORD, min_size=1, max_size=5).map(tuple),
        "tuple[tuple[str, str], ...]": st.lists(st.tuples(WORD, WORD), max_size=4).map(tuple),
    }
    if kind is s.Node and str(field.type) == "int":
        return st.integers(0, 0o777)
    return strategies[str(field.type)]


def step_of(kind: type[Step], fds: int = FDS) -> st.SearchStrategy[Step]:
    assert dataclasses.is_dataclass(kind)
    return st.builds(kind, **{field.name: values(kind, field, fds) for field in dataclasses.fields(kind)})


def some_steps(ops: Sequence[int], fds: int = FDS) -> st.SearchStrategy[list[Step]]:
    kinds = [kind for kind in CLASSES if kind.op in ops]
    return st.lists(st.sampled_from(kinds).flatmap(lambda kind: step_of(kind, fds)), max_size=8)


NO_STEPS = st.builds(list[Step])
LAUNCHES = st.tuples(NO_STEPS, some_steps(IN_INIT), some_steps(IN_WORKLOAD), some_steps(IN_CLEANUP, 0))
PREPARES = st.tuples(some_steps(LAUNCHER_OPS), NO_STEPS, NO_STEPS, some_steps(IN_CLEANUP, 0))


def encoded(sections: Sequence[Sequence[Step]]) -> list[Section]:
    return [wire.encode(section) for section in sections]


def launch_of(*sections: Section, fds: int = FDS) -> bytes:
    return wire.encode_request(wire.LAUNCH, 7, sections, fds=fds)


def sample() -> bytes:
    """A request with every kind of step that a launch can have."""
    init: list[Step] = [
        s.Unshare(0x20000), s.RootTmpfs(1 << 24, 100, 3), s.RootTree(4, 1, "/"), s.RootOverlay(5, 1, 2, 3, "/"),
        s.Directory("/a"), s.Link("/b", "c"),
        s.File("/d", b"\0e\0", 0o600, True), s.Mount("proc", "/proc", "", 7), s.Bind(6, "/f", 1, ""),
        s.BindTemplate("/t/g", "/g", 0), s.Mask("/h"), s.ReadOnly("/i"), s.Remount("/", 1), s.Hostname("j"), s.LoopbackUp(),
        s.Network(),
        s.CgroupMake(KEPT, "k", ""), s.CgroupWrite(KEPT | 31, "l", "m", True, ""), s.CgroupInto(KEPT, "n", ""),
        s.Pty(0, 0, 24, 80), s.UserNamespace(0x20000), s.DetachWorld(), s.Init(1, 2, 15, 3, "o"),
        s.CpuTime(KEPT, "w", 1, 2, ""), s.Enter("/x"), s.Ids((1, 2), (3, 4), 5, "0 0 1", "0 0 1"), s.Owner(True), s.Devpts(5),
        s.Socket(2, 1), s.Counter(KEPT, "y", ""),
    ]  # fmt: skip
    workload: list[Step] = [
        s.CgroupJoin(KEPT, "p", ""), s.Session(), s.Rlimit(7, 1, 2, ""), s.OomScoreAdj(-5), s.Affinity(frozenset({0})),
        s.PassFd(5, 3),
        s.CloseFds(), s.Umask(0o22), s.BoundingSet(0), s.SetIdentity(1, 2, (3, 4)), s.Capabilities(1 << 40, 1, ("BPF",)),
        s.NoNewPrivs(),
        s.WorkingDir("/"), s.Keyring(), s.EnterUser(), s.Landlock(2, 1, ("/tmp", "/run"), ()),
        s.Seccomp(bytes(16), 4, ""), s.Exec(("q", "r"), (("S", "t"),)),
    ]  # fmt: skip
    cleanup = [s.Read(KEPT, "u", ""), s.Remove(KEPT | 1, "v", "")]
    return launch_of(EMPTY, wire.encode(init), wire.encode(workload), wire.encode(cleanup))


# ---- well-formed ----

SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


@SLOW
@given(sections=LAUNCHES)
def test_launches_are_accepted(check: Checker, sections: Sequence[Sequence[Step]]) -> None:
    request = launch_of(*encoded(sections))
    assert check(request) == (0, len(request))


@SLOW
@given(sections=PREPARES)
def test_prepares_are_accepted(check: Checker, sections: Sequence[Sequence[Step]]) -> None:
    request = wire.encode_request(wire.PREPARE, 7, encoded(sections), fds=FDS, flags=wire.KEEP_FDS)
    assert check(request) == (0, len(request))


@SLOW
@given(steps=st.lists(st.sampled_from(CLASSES).flatmap(step_of), max_size=8))
def test_steps_survive_encoding(steps: list[Step]) -> None:
    section = wire.encode(steps)
    assert section.steps == len(steps)
    assert decode_steps(section.body) == [(step.op, step.numbers(), tuple(map(as_bytes, step.strings()))) for step in steps]


def test_sections_add_up() -> None:
    first, second = [s.DetachWorld(), s.Hostname("a")], [s.LoopbackUp()]
    assert wire.encode(first) + wire.encode(second) == wire.encode([*first, *second])


def test_the_sample_has_every_step(sanitized: Path) -> None:
    request = sample()
    assert check_all(sanitized, [request]) == [(0, len(request))]
    ops = {op for op, _, _ in decode_steps(request[wire._REQUEST.size :])}
    assert ops == {kind.op for kind in CLASSES} - {s.Node.op, s.Join.op, s.Unmount.op, s.IdMap.op}


def test_kill_is_accepted_and_is_small(check: Checker) -> None:
    request = wire.encode_request(wire.KILL, 2**64 - 1, pid=2**32 - 1)
    assert len(request) == wire._REQUEST.size
    assert check(request)[0] == errno.EBADF  # it says that no fd comes with it, and the checker was told 8
    assert check(header(type=wire.KILL, fds=FDS))[0] == 0


def test_as_many_steps_as_there_may_be(check: Checker) -> None:
    one = wire.encode([s.DetachWorld()])
    assert check(launch_of(EMPTY, Section(MAX_STEPS, one.body * MAX_STEPS)))[0] == 0
    assert check(launch_of(EMPTY, Section(MAX_STEPS + 1, one.body * (MAX_STEPS + 1))))[0] == errno.E2BIG
    session = wire.encode([s.Session()])
    half = Section(MAX_STEPS // 2, session.body * (MAX_STEPS // 2))
    assert check(launch_of(EMPTY, Section(MAX_STEPS // 2, one.body * (MAX_STEPS // 2)), half))[0] == 0
    assert check(launch_of(EMPTY, Section(MAX_STEPS // 2, one.body * (MAX_STEPS // 2)), half + session))[0] == errno.E2BIG


def test_as_long_as_it_may_be(check: Checker) -> None:
    empty = launch_of(EMPTY, EMPTY, wire.encode([s.WorkingDir("")]))
    room = wire.MAX_REQUEST - len(empty)
    request = launch_of(EMPTY, EMPTY, wire.encode([s.WorkingDir("x" * room)]))
    assert len(request) == wire.MAX_REQUEST
    assert check(request) == (0, wire.MAX_REQUEST)
    with pytest.raises(ValueError, match="too large: 4194305 bytes"):
        launch_of(EMPTY, EMPTY, wire.encode([s.WorkingDir("x" * (room + 1))]))


def test_long_requests_say_that_they_come_by_memfd() -> None:
    flags = struct.Struct("=IHHII")
    short = launch_of(EMPTY, EMPTY, wire.encode([s.WorkingDir("x")]))
    long = launch_of(EMPTY, EMPTY, wire.encode([s.WorkingDir("x" * wire.MAX_INLINE)]))
    assert flags.unpack_from(short)[4] == 0
    assert flags.unpack_from(long)[4] == wire.BODY_IN_MEMFD


# ---- not well-formed ----

STEP = raw_step(s.DetachWorld.op)
WORKING_DIR = raw_step(s.WorkingDir.op, (), (b"/",))
LONG_STEP = WORKING_DIR[:4] + (len(WORKING_DIR) + 1).to_bytes(4, "little") + WORKING_DIR[8:] + b"\0"


def with_body(body: bytes, init: int = 0, workload: int = 0, cleanup: int = 0, **other: int) -> bytes:
    length = other.pop("length", wire._REQUEST.size + len(body))
    return header(length=length, counts=(0, init, workload, cleanup), fds=FDS, **other) + body


REFUSED: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", errno.EBADMSG),
    "one byte": (b"T", errno.EBADMSG),
    "zeros": (bytes(64), errno.EBADMSG),
    "text": (b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n" * 2, errno.EBADMSG),
    "short header": (header(fds=FDS)[:-1], errno.EBADMSG),
    "wrong magic": (header(magic=0x54595654, fds=FDS), errno.EBADMSG),
    "version 0": (header(version=0, fds=FDS), errno.EPROTONOSUPPORT),
    "next version": (header(version=wire.VERSION + 1, fds=FDS), errno.EPROTONOSUPPORT),
    "type 0": (header(type=0, fds=FDS), errno.EINVAL),
    "type 5": (header(type=5, fds=FDS), errno.EINVAL),
    "type 65535": (header(type=65535, fds=FDS), errno.EINVAL),
    "unknown flag": (header(flags=16, fds=FDS), errno.EINVAL),
    "prepare's flag in a launch": (header(flags=wire.KEEP_FDS, fds=FDS), errno.EINVAL),
    "launch's flag in a run": (header(type=wire.RUN, flags=wire.PARK, fds=FDS), errno.EINVAL),
    "parked exec": (header(flags=wire.PARK | wire.EXEC, fds=FDS), errno.EINVAL),
    "init section in a run": (with_body(STEP, init=1, type=wire.RUN), errno.EINVAL),
    "all flags": (header(flags=2**32 - 1, fds=FDS), errno.EINVAL),
    "other number of fds": (header(fds=FDS + 1), errno.EBADF),
    "length 0": (header(length=0, fds=FDS), errno.EBADMSG),
    "length too short": (with_body(STEP, init=1, length=wire._REQUEST.size + len(STEP) - 1), errno.EBADMSG),
    "length too long": (with_body(STEP, init=1, length=wire._REQUEST.size + len(STEP) + 1), errno.EBADMSG),
    "length 2**32-1": (with_body(STEP, init=1, length=2**32 - 1), errno.EBADMSG),
    "trailing byte": (with_body(STEP + b"\0", init=1), errno.EBADMSG),
    "trailing step": (with_body(STEP * 2, init=1), errno.EBADMSG),
    "body without steps": (with_body(bytes(8)), errno.EBADMSG),
    "fewer steps than counted": (with_body(STEP, init=2), errno.EBADMSG),
    "counts that add up to too much": (with_body(b"", init=1, workload=65535), errno.EBADMSG),
    "count too large": (with_body(STEP, init=65535), errno.E2BIG),
    "launcher section in a launch": (header(counts=(1, 0, 0, 0), fds=FDS, length=48 + len(STEP)) + STEP, errno.EINVAL),
    "steps in a kill": (with_body(STEP, init=1, type=wire.KILL), errno.EINVAL),
    "init section in a prepare": (with_body(STEP, init=1, type=wire.PREPARE), errno.EINVAL),
    "unknown step 0": (with_body(raw_step(0), init=1), errno.ENOSYS),
    "unknown step in a gap": (with_body(raw_step(39), init=1), errno.ENOSYS),
    "unknown step past the end": (with_body(raw_step(62), init=1), errno.ENOSYS),
    "unknown step 65535": (with_body(raw_step(65535), init=1), errno.ENOSYS),
    "workload's step in init": (with_body(raw_step(s.Session.op), init=1), errno.EINVAL),
    "init's step in the workload": (with_body(STEP, workload=1), errno.EINVAL),
    "clean-up step in init": (with_body(raw_step(60, [KEPT], [b"x"]), init=1), errno.EINVAL),
    "init's step in clean-up": (with_body(STEP, cleanup=1), errno.EINVAL),
    "too few numbers": (with_body(raw_step(1), init=1), errno.EINVAL),
    "too many numbers": (with_body(raw_step(1, [1, 2]), init=1), errno.EINVAL),
    "too few strings": (with_body(raw_step(18), init=1), errno.EINVAL),
    "too many strings": (with_body(raw_step(18, (), [b"a", b"b"]), init=1), errno.EINVAL),
    "numbers that are not there": (with_body(raw_step(1, ints=1), init=1), errno.EBADMSG),
    "strings that are not there": (with_body(raw_step(18, count=1), init=1), errno.EBADMSG),
    "step shorter than its header": (with_body(raw_step(16, length=7), init=1), errno.EBADMSG),
    "step of length 0": (with_body(raw_step(16, length=0), init=1), errno.EBADMSG),
    "step longer than the request": (with_body(raw_step(16, length=9), init=1), errno.EBADMSG),
    "step of length 2**32-1": (with_body(raw_step(16, length=2**32 - 1), init=1), errno.EBADMSG),
    "step with bytes behind its strings": (with_body(LONG_STEP, workload=1), errno.EBADMSG),
    "string without NUL": (with_body(WORKING_DIR[:-1] + b"x", workload=1), errno.EBADMSG),
    "string longer than its step": (with_body(WORKING_DIR[:8] + b"\x02" + WORKING_DIR[9:], workload=1), errno.EBADMSG),
    "string of size 2**32-1": (with_body(WORKING_DIR[:8] + b"\xff" * 4 + WORKING_DIR[12:], workload=1), errno.EBADMSG),
    "slot of no fd": (with_body(raw_step(4, [FDS, 0]), init=1), errno.EBADF),
    "slot past 32 bits": (with_body(raw_step(4, [2**32, 0]), init=1), errno.EBADF),
    "kept slot that can't be": (with_body(raw_step(4, [KEPT | MAX_KEPT, 0]), init=1), errno.EBADF),
    "kept slot past 32 bits": (with_body(raw_step(4, [2**63 | KEPT, 0]), init=1), errno.EBADF),
    "request's own slot in clean-up": (with_body(raw_step(60, [0], [b"x"]), cleanup=1), errno.EBADF),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(check: Checker, name: str) -> None:
    request, error = REFUSED[name]
    assert check(request)[0] == error


def test_a_launch_needs_its_socket_and_stdio(sanitized: Path) -> None:
    for fds in range(5):
        assert check_all(sanitized, [header(fds=fds)], fds) == [(errno.EBADF, 0) if fds < 4 else (0, wire._REQUEST.size)]


def test_a_run_needs_its_stdio(sanitized: Path) -> None:
    for fds in range(4):
        expected = [(errno.EBADF, 0) if fds < 3 else (0, wire._REQUEST.size)]
        assert check_all(sanitized, [header(type=wire.RUN, fds=fds)], fds) == expected


def test_the_refusal_says_where(check: Checker) -> None:
    good = wire.encode([s.DetachWorld(), s.Hostname("here")]).body
    assert check(with_body(good + raw_step(99), init=3)) == (errno.ENOSYS, wire._REQUEST.size + len(good))


def fixed_up(request: bytes) -> bytes:
    """With the right length in the header, so that the decoder looks further."""
    return request[:8] + len(request).to_bytes(4, "little") + request[12:]


def test_every_truncation_is_refused(sanitized: Path) -> None:
    request = sample()
    cut = [request[:size] for size in range(len(request))]
    assert all(error for error, _ in check_all(sanitized, cut))
    assert all(error for error, _ in check_all(sanitized, [fixed_up(part) for part in cut[12:]]))


def test_no_corrupted_byte_is_fatal(sanitized: Path) -> None:
    request = sample()
    changes = (*(1 << bit for bit in range(8)), 0xFF, 0x7F)
    corrupted = []
    for at in range(len(request)):
        for change in changes:
            corrupted.append(request[:at] + bytes([request[at] ^ change]) + request[at + 1 :])
    answers = check_all(sanitized, corrupted)
    assert any(error for error, _ in answers)
    assert any(not error for error, _ in answers)  # a changed letter of a string is another string


def test_no_removed_or_doubled_byte_is_accepted(sanitized: Path) -> None:
    request = sample()
    body = range(wire._REQUEST.size, len(request))
    shorter = [fixed_up(request[:at] + request[at + 1 :]) for at in body]
    longer = [fixed_up(request[:at] + request[at : at + 1] + request[at:]) for at in body]
    assert all(error for error, _ in check_all(sanitized, shorter + longer))


@SLOW
@given(data=st.binary(max_size=300), init=st.integers(0, 20), workload=st.integers(0, 20))
def test_garbage_behind_a_header_is_refused(check: Checker, data: bytes, init: int, workload: int) -> None:
    assume(data or init or workload)
    error, offset = check(with_body(data, init=init, workload=workload))
    assert error in REFUSALS
    assert offset <= wire._REQUEST.size + len(data)


def mutated(random: random.Random, corpus: Sequence[bytes]) -> bytes:
    """Some of the bytes changed, swapped, cut or spliced with another's; mostly with a header that fits."""
    request = bytearray(random.choice(corpus))
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(request))
        match random.randrange(6):
            case 0:
                request[at] = random.randrange(256)
            case 1:
                request[at : at + 4] = random.choice((b"\0\0\0\0", b"\xff" * 4, b"\0\0\0\x80", b"\1\0\0\0"))
            case 2:
                del request[at : at + random.randrange(1, 20)]
            case 3:
                other = random.choice(corpus)
                request[at:] = other[random.randrange(len(other)) :]
            case 4:
                request[at:at] = random.randbytes(random.randrange(1, 20))
            case _:
                start = 12 + random.randrange(36)  # in the header: ids, counts, fds
                request[start : start + 1] = random.randbytes(1)
        if len(request) < 16:
            request += bytes(16)
    return fixed_up(bytes(request)) if random.randrange(8) else bytes(request)


def test_fuzz(sanitized: Path) -> None:
    """Five seconds of it, the same each time as far as they reach; what is accepted is changed further."""
    rng = random.Random(3)
    start, corpus, kept = time.monotonic(), [sample(), *(request for request, _ in REFUSED.values() if request)], 0
    while time.monotonic() < start + 5:
        batch = [mutated(rng, corpus) for _ in range(4000)]
        for (error, _), request in zip(check_all(sanitized, batch), batch, strict=True):
            if not error and len(request) < 8192 and kept < 400:
                corpus.append(request)
                kept += 1
    assert kept > 50


# ---- events ----


def event(*, magic: int = wire.MAGIC, version: int = wire.VERSION, length: int = 0, data: bytes = b"") -> bytes:
    return wire._EVENT.pack(magic, version, wire.REFUSED, 5, -1, 7, length, 0) + data


def test_events_decode() -> None:
    assert wire.decode_event(event(length=3, data=b"abc")) == wire.Event(wire.REFUSED, 5, -1, 7, b"abc")


GARBLED = [b"", event()[:-1], event(magic=1), event(version=wire.VERSION + 1), event(length=1), event(data=b"x")]


@pytest.mark.parametrize("message", GARBLED)
def test_garbled_events_are_bugs(message: bytes) -> None:
    with pytest.raises(InternalError):
        wire.decode_event(message)


def test_short_reports_are_bugs() -> None:
    with pytest.raises(InternalError):
        wire.decode_gone(bytes(wire._GONE.size - 1))


@pytest.mark.parametrize("kinds", [0, 1, 16])
def test_refused_calls_in_a_report(kinds: int) -> None:
    """Only as many entries as are in use; the flag is the sixteenth."""
    entries = b"".join(wire._REFUSED.pack(number, 0xFFFF, 3) for number in range(16))
    times = 1_500_000_000, 9_500_000_000
    data = wire._GONE.pack(7, 0, 0, 0, 16 | 1, 9, *times, 99, kinds, entries, 0, 0, 1_000_000, 2_000_000) + b"counters"
    gone = wire.decode_gone(data)
    assert gone.refused == tuple((number, 0xFFFF, 3) for number in range(kinds))
    assert (gone.refused_in_all, gone.killed_for_refused, gone.exited, gone.status, gone.wall) == (99, True, True, 9, 1.5)
    assert gone.ended == 9.5
    assert (gone.user, gone.system, gone.counters) == (1.0, 2.0, b"counters")
