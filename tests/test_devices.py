"""The BPF program that says which devices can be opened, run by a simulator of our own. That the kernel takes it and does the
same: tests/kernel/test_attacks.py."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from tinyvisor.runtime.devices import ALLOWED, controller_rules, program

BLOCK, CHARACTER = 1, 2
MAKE_NODE, READ, WRITE = 1, 2, 4


def allows(kind: int, access: int, major: int, minor: int) -> bool:
    """Executes it: eBPF instruction set, kernel Documentation/bpf/standardization/instruction-set.rst."""
    context = struct.pack("=III", access << 16 | kind, major, minor)
    code = [struct.unpack("=BBhi", program()[at : at + 8]) for at in range(0, len(program()), 8)]
    registers = [0] * 11
    at = 0
    while True:
        operation, operands, offset, value = code[at]
        to, source = operands & 15, operands >> 4
        at += 1
        match operation:
            case 0x61:  # 32 bits from memory
                assert source == 1, "nothing but the context can be read"
                (registers[to],) = struct.unpack_from("=I", context, offset)
            case 0xBF:
                registers[to] = registers[source]
            case 0x57:
                registers[to] &= value
            case 0x77:
                registers[to] >>= value
            case 0xB7:
                registers[to] = value
            case 0x15 | 0x55 | 0xA5 | 0x25:
                left = registers[to]
                if {0x15: left == value, 0x55: left != value, 0xA5: left < value, 0x25: left > value}[operation]:
                    assert offset >= 0, "no loops"
                    at += offset
            case 0x95:
                return registers[0] == 1
            case _:
                raise AssertionError(f"{operation:#x}")


def test_what_every_container_needs() -> None:
    for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, 0), (136, 4095)):
        for access in (READ, WRITE, READ | WRITE):
            assert allows(CHARACTER, access, major, minor)
            assert not allows(BLOCK, access, major, minor)


def test_what_none_needs() -> None:
    for major, minor in (
        (1, 1),
        (1, 2),
        (1, 4),
        (1, 6),
        (1, 11),
        (4, 0),
        (5, 1),
        (5, 3),
        (10, 200),
        (10, 229),
        (10, 232),
        (137, 0),
    ):
        assert not allows(CHARACTER, READ, major, minor)
    assert not allows(BLOCK, READ, 8, 0)


def test_the_controller_has_the_same_list() -> None:
    rules = list(controller_rules())
    assert rules[0] == ("devices.deny", "a"), "nothing is left of what was allowed"
    assert {file for file, _ in rules[1:]} == {"devices.allow"}
    lines = [line.split() for _, line in rules[1:]]
    assert [line for line in lines if line[2] == "m"] == [["b", "*:*", "m"], ["c", "*:*", "m"]]
    opened = {line[1] for line in lines if line[2] == "rw" and line[0] == "c"}
    assert len(opened) == len(lines) - 2
    assert opened == {"1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:2", "136:*"}


@given(st.sampled_from([BLOCK, CHARACTER]), st.integers(1, 7), st.integers(0, 4095), st.integers(0, 2**20 - 1))
def test_nothing_else(kind: int, access: int, major: int, minor: int) -> None:
    known = any(major == allowed and first <= minor <= last for allowed, first, last in ALLOWED)
    assert allows(kind, access, major, minor) == (access == MAKE_NODE or (kind == CHARACTER and known))
