"""Runs the attacks of `attacks` in containers of a spec, one after the other, and says what each came to. Written on anyio alone.

The programs run in the container's own root: of an image that lies, its python3 and its /bin/sh may lie, too.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tinyvisor.attacks import ATTACKS, Attack, program
from tinyvisor.errors import ContainerError, LaunchError
from tinyvisor.runtime import Runtime
from tinyvisor.runtime.syscall_numbers import NUMBERS
from tinyvisor.spec import Spec
from tinyvisor.state import Result

TIMEOUT = 30.0
"""Seconds that an attack may take."""
OUTPUT = 1 << 20
"""Bytes that it may print."""
MAX_DETAIL = 300
"""Characters that are shown of what was reached."""

LIMITS: tuple[tuple[str, str], ...] = (
    ("pids_limit", "processes"), ("mem_limit", "memory"), ("cpus", "CPU time per time"), ("timeout", "time"),
)  # fmt: skip
"""Fields of `Spec` without which a container may use up the host's: what each limits."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one attack came to.

    Attributes:
        attack: its name.
        result: ``held``; ``open``: it reached something; ``not run``: nothing is known.
        wall: what should hold it.
        detail: what was reached, or why it was not run; printable, one line.
    """

    attack: str
    result: Literal["held", "open", "not run"]
    wall: str
    detail: str = ""

    def to_json(self) -> dict[str, str]:
        """A JSON-ready dict with the field names above."""
        return asdict(self)


async def audit(runtime: Runtime, spec: Spec, attacks: Sequence[Attack] = ATTACKS) -> AsyncIterator[Finding]:
    """Tries each attack in a container of its own that is `spec`'s but for the command, and yields what it came to.

    The spec's volumes are there and are not written to. A network that it shares with another service is left out.

    Raises:
        HostError, SpecError: as `Runtime.run`; the container can't be started here.
    Cancellation: kills what runs.
    """
    for attack in attacks:
        yield await _try(runtime, spec, attack)


def unlimited(spec: Spec) -> tuple[str, ...]:
    """What the spec has no limit for, as ``"memory (mem_limit)"``."""
    return tuple(f"{what} ({name})" for name, what in LIMITS if getattr(spec, name) is None)


async def _try(runtime: Runtime, spec: Spec, attack: Attack) -> Finding:
    changes: dict[str, Any] = {
        "command": program(attack, NUMBERS.get(os.uname().machine, {})),
        "name": "audit", "timeout": TIMEOUT, "cpu_time": None, "output_limit": OUTPUT, "tty": False, "stdin_open": False,
    }  # fmt: skip
    if spec.network_mode.startswith("service:"):
        changes["network_mode"] = "none"
    try:
        result = await runtime.run(spec.with_(**changes), capture_stdout=True, capture_stderr=True)
    except LaunchError as exc:
        missing = f"needs {'python3' if attack.language == 'python' else '/bin/sh'}, which the root does not have"
        return Finding(attack.name, "not run", attack.wall, missing if exc.step.startswith("exec ") else _line(exc.problem))
    except ContainerError as exc:
        return Finding(attack.name, "not run", attack.wall, _line(exc.problem))
    return judge(attack, result)


def judge(attack: Attack, result: Result) -> Finding:
    """What a program's output means."""
    lines = (result.stdout or b"").decode(errors="replace").splitlines()
    reached = [line.removeprefix("open: ") for line in lines if line.startswith("open: ")]
    if reached:
        return Finding(attack.name, "open", attack.wall, _line("; ".join(dict.fromkeys(reached))))
    if lines[-1:] == ["held"] and result.status == "ok":
        return Finding(attack.name, "held", attack.wall)
    said = (result.stderr or b"").decode(errors="replace").strip().splitlines()[-1:]
    return Finding(attack.name, "not run", attack.wall, _line(": ".join([result.reason or result.describe(), *said])))


def _line(text: str) -> str:
    plain = "".join(char if char.isprintable() else "?" for char in text)  # a container's words
    return plain if len(plain) <= MAX_DETAIL else plain[:MAX_DETAIL] + "…"
