"""What the fuzzers begin with: inputs written by the encoders that they are written by in earnest, from the plans of configs/ and
from one of every step. They are made anew each time, and so are always of this version of the wire; corpus/ has what was found.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import struct
from collections.abc import Sequence
from pathlib import Path

from hatch_build import ROOT
from tests.test_configs import GROUP, PASSWD, VIEW, v1, v2
from tests.test_steps import CLASSES
from tests.test_steps import sample as sample_step
from tests.test_wire import FDS, REFUSED
from tests.test_wire import sample as sample_launch
from tinyvisor.config import load
from tinyvisor.profile import default_profile_text, parse_profile
from tinyvisor.runtime import keeper
from tinyvisor.runtime import launcher as wire
from tinyvisor.runtime import steps as s
from tinyvisor.runtime.cgroup import Layout, limit_writes
from tinyvisor.runtime.identity import resolve
from tinyvisor.runtime.idmap import DEFAULT_RANGES, auto_map
from tinyvisor.runtime.launcher import EMPTY, Section
from tinyvisor.runtime.plan import Limits, plan
from tinyvisor.runtime.seccomp import MACHINES, Filter, compile_profile
from tinyvisor.runtime.steps import KEPT, NAMESPACE_FLAGS, Step
from tinyvisor.spec import Spec

MESSAGE, ANSWERS, FILE = range(3)
_FRAME = struct.Struct("=BBHI")
_MAGIC_AND_VERSION = struct.Struct("=IH")
_KEPT = keeper._MESSAGE
NAMES = 9  # fds of a request: the socket, stdio, and what steps may name


def frame(kind: int, data: bytes, fds: int = 0) -> bytes:
    """See kernel.h."""
    return _FRAME.pack(kind, fds, 0, len(data)) + data


def frames(data: bytes) -> list[tuple[int, int, bytes]]:
    """(kind, fds, bytes) of each, read as kernel.c does."""
    found = []
    while len(data) >= _FRAME.size:
        kind, fds, _, size = _FRAME.unpack_from(data)
        found.append((kind % 3, fds, data[_FRAME.size : _FRAME.size + size]))
        data = data[_FRAME.size + size :]
    return found


def renewed(data: bytes) -> bytes:
    """An input of corpus/, with requests of an older version of the wire made ones of this version."""
    parts = []
    for kind, fds, content in frames(data):
        if len(content) >= wire._REQUEST.size:
            magic, version = _MAGIC_AND_VERSION.unpack_from(content)
            if magic == wire.MAGIC and 0 < version < wire.VERSION:
                content = _MAGIC_AND_VERSION.pack(magic, wire.VERSION) + content[_MAGIC_AND_VERSION.size :]
        parts.append(frame(kind, content, fds))
    return b"".join(parts)


def request(type: int, sections: Sequence[Section] = (), *, fds: int = 0, id: int = 7, **more: int) -> bytes:
    return frame(MESSAGE, wire.encode_request(type, id, sections, fds=fds, **more), fds)


# ---- plans ----


def _plan(spec: Spec, layout: Layout, seccomp: Filter) -> list[Section]:
    made = plan(
        spec, limits=Limits(layout, tuple(limit_writes(spec, layout, device=lambda path: "8:0"))), view=VIEW, seccomp=seccomp,
        identity=resolve(spec.user, spec.group_add, PASSWD, GROUP), ids=auto_map(*DEFAULT_RANGES[0]),
        idmapped=frozenset(("/usr", "/etc", "/dev")),
    )  # fmt: skip
    return [EMPTY, *map(wire.encode, (made.init, made.workload, made.cleanup))]


@functools.cache
def plans() -> dict[str, list[Section]]:
    """Those of configs/, as in golden/, but all with a filter of three instructions: the real one is in one of them only."""
    profile = parse_profile(default_profile_text())
    found = {}
    for name, service in load([ROOT / "configs"], environ={}).services.items():
        for version, layout in (("v1", v1()), ("v2", v2())):
            found[f"{name}-{version}"] = _plan(service.spec, layout, Filter(bytes(24), 4, ()))
    real = compile_profile(profile, MACHINES["x86_64"], capabilities=frozenset())
    found["filter"] = _plan(Spec(command=("true",), name="web"), v2(), real)
    return found


def every_step() -> dict[str, bytes]:
    """A request for each kind of step that has nothing else in it, in the first section that it may be in."""
    found = {}
    for kind in CLASSES:
        section = 3 if kind.op in (60, 61) else 2 if kind.op >= 40 else 0 if kind.op in (9, 31, 35) else 1
        steps: list[Step] = [_with_slot(sample_step(kind), section)]
        if kind is s.UserNamespace:
            steps.insert(0, s.Ids((1, 2), (3, 4), 5, "0 0 1", "0 0 1"))
        sections = [wire.encode(steps) if number == section else EMPTY for number in range(4)]
        type_ = wire.PREPARE if section == 0 else wire.LAUNCH
        found[f"step-{kind.op}"] = request(type_, sections, fds=NAMES)
    return found


def _with_slot(step: Step, section: int) -> Step:
    """`sample_step`'s numbers are too large for a slot."""
    slot = KEPT | 1 if section == 3 else 4
    assert dataclasses.is_dataclass(step)
    slots = {field.name: slot for field in dataclasses.fields(step) if field.name in ("slot", "ids")}
    return dataclasses.replace(step, **slots)


# ---- targets ----


def _requests() -> dict[str, bytes]:
    found = {f"plan-{name}": request(wire.LAUNCH, sections, fds=NAMES) for name, sections in plans().items()}
    prepare = wire.encode([s.Directory("/t/x"), s.Bind(0, "/t/x", 1, "")]), EMPTY, EMPTY, wire.encode([s.Remove(KEPT, "x", "")])
    by_memfd = wire.encode_request(wire.LAUNCH, 8, plans()["web-v2"], fds=NAMES, flags=wire.BODY_IN_MEMFD)
    size = wire._REQUEST.size
    return found | every_step() | {
        "everything": frame(MESSAGE, sample_launch(), FDS),
        "memfd": frame(MESSAGE, by_memfd[:size], NAMES + 1) + frame(FILE, by_memfd[size:]),
        "prepare": request(wire.PREPARE, prepare, fds=2, flags=wire.KEEP_FDS),
        "run": request(wire.RUN, (EMPTY, EMPTY, wire.encode([s.Exec(("a",), ())])), fds=3),
        "kill": request(wire.KILL, pid=1001) + request(wire.KILL, flags=wire.ASK),
    }  # fmt: skip


def _requests_and_garbage() -> dict[str, bytes]:
    garbage = {f"refused-{name.replace(' ', '-')}": frame(MESSAGE, data, FDS) for name, (data, _) in REFUSED.items()}
    return _requests() | garbage


def _answers(seed: int, size: int = 400) -> bytes:
    """Mostly that calls succeed."""
    rng = random.Random(seed)
    return frame(ANSWERS, bytes(rng.randrange(256) if rng.randrange(4) == 0 else 0 for _ in range(size)))


def _launched(*steps: Step, section: int = 1) -> bytes:
    return request(wire.LAUNCH, [wire.encode(steps) if number == section else EMPTY for number in range(4)], fds=4)


def _steps() -> dict[str, bytes]:
    found = {name: data for name, data in _requests().items() if name not in ("kill", "memfd", "run")}
    parked = (EMPTY, wire.encode([s.Init(0, 0, 15, 0, "x")]), wire.encode([s.Session()]))
    listener = wire.encode([s.Init(s.INIT_REFUSALS, 0, 15, 0, "x")]), wire.encode([s.Seccomp(bytes(24), 8, "")])
    found |= {
        "parked": request(wire.LAUNCH, parked, fds=4, flags=wire.PARK) + _requests()["run"],
        "listener": request(wire.LAUNCH, (EMPTY, *listener), fds=4),
        "path": _launched(s.Exec(("x",), (("PATH", "/a:/b::"),)), section=2),
        "long-strings": _launched(s.Mount("tmpfs", "/x", "x" * 4096, 0), s.Directory("x/" * 2500)),
        "long-times": _launched(s.Init(0, 2**64 - 1, 15, 2**64 - 1, "x"), s.CpuTime(KEPT, "cpu.stat", 2**64 - 1, 2**64 - 1, "")),
        "oom-score-of-20-digits": request(
            wire.LAUNCH, (EMPTY, wire.encode([s.RootTmpfs(1, 1, 0)]), wire.encode([s.OomScoreAdj(-(2**63))])), fds=4
        ),
        "join": _launched(s.Join(NAMESPACE_FLAGS["user"] | NAMESPACE_FLAGS["net"], "x", NAMESPACE_FLAGS["net"])),
        "two-id-maps": request(wire.PREPARE, (wire.encode([s.IdMap(0, "0 0 1", "0 0 1")] * 2),)),
    }
    found["exec"] = request(wire.LAUNCH, plans()["tick-v1"], fds=NAMES, flags=wire.EXEC, other=3, pid=1001)
    some = sorted(found)[::5]
    found |= {
        f"{name}-neutral": frame(ANSWERS, bytes(300)) + found[name] for name in ("everything", "plan-web-v2", "listener", "path")
    }
    return found | {f"{name}-failing": found[name] + _answers(number) for number, name in enumerate(some)}


def _sessions() -> dict[str, bytes]:
    made = _requests()
    whole = made["prepare"] + made["plan-web-v2"] + made["plan-tick-v1"] + made["kill"] + made["run"] + made["memfd"]
    twins = b"".join(request(wire.LAUNCH, plans()["hog-v2"], fds=NAMES, id=number) for number in range(1, 4))
    other = request(wire.LAUNCH, plans()["tick-v2"], fds=NAMES, id=20, other=7, pid=1001, flags=wire.EXEC)
    found = {
        "whole": whole, "twins": twins, "exec": made["plan-web-v2"] + other, "garbage": frame(MESSAGE, b"x" * 60, 3),
        **{name: made[name] for name in ("prepare", "kill", "run", "memfd", "plan-web-v2")},
    }  # fmt: skip
    return (
        found
        | {f"answers-{number}": _answers(number) + whole for number in range(4)}
        | {f"neutral-{name}": frame(ANSWERS, bytes(600)) + data for name, data in found.items()}
    )


def _refusal(number: int) -> bytes:
    """Answers: nobody has ended, and of signals, commands and refusals there is one refusal, of this system call."""
    call = bytes(16) + struct.pack("=II", number, MACHINES["x86_64"].audit) + bytes(56)
    return bytes([0, 7, 0, 0, 1, 1, 0, 0, 1, 0]) + call + bytes(1)


def _inits() -> dict[str, bytes]:
    listener = wire._EVENT.pack(wire.MAGIC, wire.VERSION, 0, 7, 0, 0, 0, 0)
    real = compile_profile(parse_profile(default_profile_text()), MACHINES["x86_64"], capabilities=frozenset())
    commands = b"".join(frame(MESSAGE, wire.encode_signal(number, scope)) for number in (1, 15, 64) for scope in range(3))
    program = frame(MESSAGE, listener + real.program, 1)
    # No two words are alloted, flags, a page, not many yet; and so on until the workload is there.
    start = bytes([0, 0x80]) + bytes(22)
    found = {
        "many-kinds": program + frame(ANSWERS, start + b"".join(map(_refusal, range(20)))),
        "many-refusals": program + frame(ANSWERS, start[:3] + b"\1" + start[4:] + b"".join(map(_refusal, range(12)))),
        **{
            f"answer-{answer:x}": frame(MESSAGE, listener + struct.pack("=HBBI", 6, 0, 0, 0x7FC00000 | answer), 1)
            + frame(ANSWERS, start + _refusal(0) * 2)
            for answer in (1, 0xFFFE, 0xFFFF)
        },
        "commands": commands, "program": program + commands + frame(ANSWERS, b"\0\x80"),
        "several-listeners": frame(MESSAGE, listener + real.program, 2) + frame(ANSWERS, b"\0\x80"),
        "long-time": frame(ANSWERS, b"\0\x60\0\0\0" + b"\xff" * 16),
    }  # fmt: skip
    for flags in range(0, 256, 5):
        found[f"flags-{flags}"] = (program if flags & 128 else b"") + commands + frame(ANSWERS, bytes([0, flags]))
    for seed in range(6):
        rng = random.Random(seed)
        answers = bytes([0, 0xFF & ~seed]) + bytes(rng.choice((0, 0, 1, 9, 13, 255)) for _ in range(600))
        found[f"answers-{seed}"] = program + commands + frame(ANSWERS, answers)
    return found


def _keepers() -> dict[str, bytes]:
    def say(type_: int, id: int = 0, kind: int = 0, fds: int = 0) -> bytes:
        return frame(MESSAGE, _KEPT.pack(wire.MAGIC, keeper.VERSION, type_, id, kind, fds), fds)

    put = say(keeper._PUT, 5, 0x876, 3) + say(keeper._PUT, 6, 0x9, 1) + say(keeper._PUT, 0, 0x43, 2)
    drop, all_, end = say(keeper._DROP, 5), say(keeper._LIST), say(keeper._END)
    many = b"".join(say(keeper._PUT, number, 0x76543210, 8) for number in range(12))
    found = {
        "empty-with-fds": frame(MESSAGE, b"", 8) + put,
        "put": put,
        "drop": put + drop,
        "list": put + all_,
        "end": put + drop + all_ + end,
        "many": many + all_ + drop,
    }
    return (
        found
        | {f"answers-{seed}": many + put + drop + all_ + end + _answers(seed, 200) for seed in range(3)}
        | {"neutral": frame(ANSWERS, bytes(200)) + put + drop + all_ + end}
    )


def _arguments() -> dict[str, bytes]:
    lines = (
        "init -- sh -c true", "init -g -s -p 9 -t 5 -- true", "init -p 64 -t 2147483647 true", "init -p x -- true", "init",
        "init -t", "init -z", "init -t 99999999999999999999 -- a", "steps", "check 4", "serve 3 77", "serve 3 77 title",
        "serve-nested 3 77 title", "keep 3 77 title", "keep-nested 3 77 title", "serve x y", "", "nothing",
    )  # fmt: skip
    found = {}
    for number, line in enumerate(lines):
        words = b"".join(word.encode() + b"\0" for word in ("tinyvisor-launcher", *line.split()))
        found[f"line-{number}"] = frame(MESSAGE, words)
        found[f"line-{number}-neutral"] = frame(MESSAGE, words) + frame(ANSWERS, bytes(120))
        found[f"line-{number}-failing"] = frame(MESSAGE, words) + _answers(number, 120)
    return found


def seeds(target: str) -> dict[str, bytes]:
    """By name."""
    makers = {
        "request": _requests_and_garbage, "steps": _steps, "launcher": _sessions, "init": _inits, "keeper": _keepers,
        "arguments": _arguments,
    }  # fmt: skip
    return makers[target]()


def found(target: str) -> dict[str, bytes]:
    """What is in corpus/, by file name."""
    directory = Path(__file__).parent / "corpus" / target
    return {path.name: renewed(path.read_bytes()) for path in sorted(directory.iterdir())} if directory.is_dir() else {}
