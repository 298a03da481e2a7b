"""The attacks of `tinyvisor audit`: their programs are programs; what output means; SECURITY.md's tables of them."""

from __future__ import annotations

import subprocess

import pytest

from tests.attack_table import SECURITY, renewed
from tinyvisor.attacks import ATTACKS, NAKED, PROFILES, Attack, program
from tinyvisor.audit import MAX_DETAIL, Finding, judge, unlimited
from tinyvisor.runtime.syscall_numbers import NUMBERS
from tinyvisor.spec import Spec
from tinyvisor.state import Result


def test_the_tables_are_up_to_date() -> None:
    text = SECURITY.read_text()
    assert renewed(text) == text, "python -m tests.attack_table writes them anew"


def test_names_and_profiles() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
    for attack in ATTACKS:
        assert attack.open_in <= PROFILES.keys() - {"default"}, attack.name
    for fields in PROFILES.values():
        Spec(command=("true",), **fields)


@pytest.mark.parametrize("machine", sorted(NUMBERS))
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_programs_are_programs(attack: Attack, machine: str) -> None:
    words = program(attack, NUMBERS[machine])
    if attack.language == "python":
        compile(words[-1], attack.name, "exec")
    else:
        subprocess.run([words[0], "-n", *words[1:]], check=True)


@pytest.mark.parametrize(
    "result, found, detail",
    [
        (Result(status="ok", exit_code=0, stdout=b"held\n"), "held", ""),
        (Result(status="ok", exit_code=0, stdout=b"open: a\nopen: b\nopen: a\nheld\n"), "open", "a; b"),
        (Result(status="time_limit", reason="killed", stdout=b"open: a\n"), "open", "a"),
        (Result(status="ok", exit_code=0, stdout=b"held\nand more\n"), "not run", "exit 0"),
        (Result(status="ok", exit_code=0, stdout=b""), "not run", "exit 0"),
        (Result(status="nonzero_exit", exit_code=1, stdout=b"held\n", stderr=b"a\nno module\n"), "not run", "exit 1: no module"),
        (Result(status="ok", exit_code=0, stdout=b"open: \x1b[2J\xff\n"), "open", "?[2J\ufffd"),
        (Result(status="ok", exit_code=0, stdout=b"open: " + b"x" * 999), "open", "x" * MAX_DETAIL + "…"),
    ],
)
def test_what_output_means(result: Result, found: str, detail: str) -> None:
    attack = Attack("name", "tries", "wall", "")
    assert judge(attack, result) == Finding("name", found, "wall", detail)  # type: ignore[arg-type]


def test_what_has_no_limit() -> None:
    assert unlimited(Spec(command=("true",), pids_limit=1, cpus=1)) == ("memory (mem_limit)", "time (timeout)")


def test_the_profile_without_walls_is_one() -> None:
    assert NAKED in PROFILES
    assert sum(NAKED in attack.open_in for attack in ATTACKS) > len(ATTACKS) / 2
