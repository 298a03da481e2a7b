"""The tables of attacks in SECURITY.md, out of the package and the tests: `python -m tests.attack_table` writes them anew."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

from tinyvisor.attacks import ATTACKS, NAKED, PROFILES

ROOT = Path(__file__).resolve().parents[1]
SECURITY = ROOT / "SECURITY.md"
TESTS = ROOT / "tests/kernel/test_attacks.py"
BEGIN = "<!-- attacks: written by python -m tests.attack_table -->\n"
END = "<!-- end of attacks -->\n"


def tables() -> str:
    """What stands between `BEGIN` and `END`."""
    audit = [("attack", "what it tries", "what holds it", "may succeed with")]
    for attack in ATTACKS:
        opened = [profile for profile in PROFILES if profile in attack.open_in and profile != NAKED and ", " not in profile]
        audit.append(
            (attack.name, attack.tries, attack.wall, ", ".join(opened) or ("nothing" if NAKED in attack.open_in else "—"))
        )
    others = [("attack", "what it tries, and what comes of it"), *_of_tests()]
    return f"{_format(audit)}\n{_format(others)}"


def _of_tests() -> Iterator[tuple[str, str]]:
    for node in ast.parse(TESTS.read_text()).body:
        if isinstance(node, ast.AsyncFunctionDef) and node.name.startswith("test_"):
            said = ast.get_docstring(node)
            assert said, f"{node.name}: what does it try?"
            yield node.name.removeprefix("test_").replace("_", " "), " ".join(said.split())


def _format(rows: Sequence[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:], ""])


def renewed(text: str) -> str:
    """SECURITY.md with the tables as they are now."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + tables() + END + rest.split(END)[1]


if __name__ == "__main__":
    SECURITY.write_text(renewed(SECURITY.read_text()))
