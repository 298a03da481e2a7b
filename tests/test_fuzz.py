"""The launcher's sources under sanitizers, with a kernel that does nothing (tests/fuzz): every input that is known, and then some
seconds of libFuzzer, where there is a clang. `python -m tests.fuzz` for longer.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from hatch_build import SOURCES
from tests import launcher_harness as harness
from tests.fuzz.build import CALLS, HARMLESS, TARGETS, UnsafeError, build, find_clang
from tests.fuzz.run import Crash, all_inputs, fuzz, replay
from tests.fuzz.seeds import MESSAGE, NAMES, every_step, frames, seeds
from tests.test_steps import CLASSES
from tests.test_wire import check_all, decode_steps
from tinyvisor.runtime import launcher as wire

sanitized = harness.sanitized

SECONDS = {"request": 1, "steps": 5, "launcher": 5, "init": 2, "keeper": 1, "arguments": 2}


class Built(NamedTuple):
    directory: Path
    clang: str | None
    programs: dict[str, Path]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    clang = find_clang()
    if clang is None and not (shutil.which("gcc") and shutil.which("nm")):
        pytest.skip("no compiler; apt install clang libclang-rt-dev, or gcc")
    directory = tmp_path_factory.mktemp("fuzz")
    return Built(directory, clang, build(directory, clang=clang))


@pytest.mark.parametrize("target", TARGETS)
def test_every_known_input_ends_well(built: Built, target: str) -> None:
    replay(built.programs[target], target, all_inputs(target))


@pytest.mark.parametrize("target", TARGETS)
def test_some_seconds_of_fuzzing_find_nothing(built: Built, target: str) -> None:
    if built.clang is None:
        if os.environ.get("TINYVISOR_MUST_WORK") == "1":
            pytest.fail("no clang with libFuzzer", pytrace=False)
        pytest.skip("no clang with libFuzzer; apt install clang libclang-rt-dev")
    assert "stat::number_of_executed_units" in fuzz(built.programs[target], target, SECONDS[target])


# ---- they can fail ----


class Planted(NamedTuple):
    """A mistake: what stands in the source, what in its place, and who finds it with the inputs that are known."""

    target: str
    file: str
    right: str
    wrong: str


PLANTED = {
    "string past the end": Planted(
        "request", "wire.c", "out->size[i] >= (size_t)(next - p) || p[out->size[i]] != 0", "p[out->size[i]] != 0"
    ),
    "slot of no fd": Planted("request", "wire.c", "slot < (uint64_t)fds;", "slot <= (uint64_t)fds;"),
    "several listeners": Planted("init", "wire.c", "CMSG_LEN(sizeof *fd)", "sizeof control"),
    "no room for digits": Planted("steps", "workload.c", "char text[24]", "char text[16]"),
    "fds of an empty message": Planted("keeper", "keeper.c", "size >= 0 ? CMSG_FIRSTHDR", "size > 0 ? CMSG_FIRSTHDR"),
    "reports past the end": Planted("init", "refusals.c", "if (i == MAX_REFUSED)", "if (i > MAX_REFUSED)"),
    "kills all of the host": Planted("init", "init.c", "scope == SCOPE_ALL && !init->exec", "scope == SCOPE_ALL"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_found(built: Built, tmp_path: Path, name: str) -> None:
    target, file, right, wrong = PLANTED[name]
    sources = tmp_path / "launcher"
    shutil.copytree(SOURCES, sources)
    text = (sources / file).read_text()
    assert text.count(right) == 1
    (sources / file).write_text(text.replace(right, wrong))
    programs = build(tmp_path, [target], clang=built.clang, sources=sources, known=built.directory)
    with pytest.raises(Crash):
        replay(programs[target], target, all_inputs(target))


def test_what_would_reach_the_machine_is_not_linked(built: Built, tmp_path: Path) -> None:
    sources = tmp_path / "launcher"
    shutil.copytree(SOURCES, sources)
    with (sources / "steps.c").open("a") as file:
        file.write("int reboot(int how);\nint step_reboot(void);\nint step_reboot(void) { return reboot(1); }\n")
    with pytest.raises(UnsafeError, match=r"steps\.c\.o calls reboot"):
        build(tmp_path, ["request"], clang=built.clang, sources=sources, known=built.directory)


def test_nothing_that_reaches_the_kernel_is_harmless() -> None:
    assert not HARMLESS & set(CALLS)


# ---- what is reached ----


def test_every_kind_of_step_has_an_input_that_is_accepted(sanitized: Path) -> None:
    inputs = {name: frames(data)[0][2] for name, data in every_step().items()}
    wrong = dict(zip(inputs, check_all(sanitized, list(inputs.values()), NAMES), strict=True))
    assert {name: answer for name, answer in wrong.items() if answer[0]} == {}
    reached = {op for request in inputs.values() for op, _, _ in decode_steps(request[wire._REQUEST.size :])}
    assert reached == {kind.op for kind in CLASSES}
    assert seeds("steps").keys() > inputs.keys()


def test_real_plans_are_accepted(sanitized: Path) -> None:
    plans = {name: frames(data)[0][2] for name, data in seeds("steps").items() if re.fullmatch(r"plan-\w+(-v[12])?", name)}
    assert len(plans) > 10
    assert all(answer[0] == 0 for answer in check_all(sanitized, list(plans.values()), NAMES))


def test_every_kind_of_request_and_message_has_an_input() -> None:
    messages = [
        data
        for name in ("launcher", "steps")
        for input in seeds(name).values()
        for kind, _, data in frames(input)
        if kind == MESSAGE
    ]
    requests = [wire._REQUEST.unpack_from(data) for data in messages if data[:4] == wire.MAGIC.to_bytes(4, "little")]
    assert {request[2] for request in requests} == {wire.PREPARE, wire.LAUNCH, wire.KILL, wire.RUN}
    flags = 0
    for request in requests:
        flags |= request[4]
    assert flags == wire.BODY_IN_MEMFD | wire.KEEP_FDS | wire.PARK | wire.EXEC | wire.ASK


def test_the_corpus_is_small() -> None:
    directory = Path(__file__).parent / "fuzz" / "corpus"
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == set(TARGETS)
    assert sum(path.stat().st_size for path in files) < 300 << 10
