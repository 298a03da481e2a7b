"""Runs targets: over inputs, and on from there by libFuzzer. Without rights: as nobody, where we are root. All paths are
relative: what is above the place may be closed to nobody.
"""

from __future__ import annotations

import hashlib
import os
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.fuzz.seeds import found, seeds
from tests.launcher_harness import SANITIZER

NOBODY = 65534
MAX_INPUT = 16384
LIMITS = ("-timeout=60", "-rss_limit_mb=2048", "-detect_leaks=0")
"""Seconds for one input: by the wall, and a busy machine is no failure; kernel.c counts calls. MiB."""
_PROGRESS = re.compile(r"#\d+\t")


class Crash(Exception):
    """A target did what it must not: the sanitizer's or the target's words; `input` is what made it."""

    def __init__(self, target: str, text: str, input: bytes | None) -> None:
        super().__init__(f"{target}:\n{text}")
        self.target, self.text, self.input = target, text, input


@contextmanager
def workplace() -> Iterator[Path]:
    """A directory that is nobody's, where nobody can get at it."""
    with tempfile.TemporaryDirectory(prefix="tinyvisor-fuzz-") as name:
        directory = Path(name)
        if os.geteuid() == 0:
            os.chown(directory, NOBODY, NOBODY)
        yield directory


def _no_core() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _run(command: Sequence[str], place: Path, timeout: float) -> tuple[int, str]:
    rights = {"user": NOBODY, "group": NOBODY, "extra_groups": ()} if os.geteuid() == 0 else {}
    environment = {**os.environ, **SANITIZER, "TMPDIR": "."}
    if not shutil.which("llvm-symbolizer") and (symbolizer := shutil.which("addr2line")):
        environment["ASAN_SYMBOLIZER_PATH"] = symbolizer
    ended = subprocess.run(
        command, cwd=place, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=timeout, check=False, preexec_fn=_no_core, **rights,
    )  # type: ignore[call-overload]  # fmt: skip
    return ended.returncode, ended.stdout.decode(errors="replace")


def _put(directory: Path, inputs: Mapping[str, bytes]) -> list[str]:
    directory.mkdir()
    directory.chmod(0o777)
    for name, data in inputs.items():
        directory.joinpath(name).write_bytes(data)
    return [f"{directory.name}/{name}" for name in inputs]


def _copy(program: Path, place: Path) -> str:
    shutil.copy(program, place)
    return f"./{program.name}"


def all_inputs(target: str) -> dict[str, bytes]:
    """The seeds, and what was found."""
    return seeds(target) | found(target)


def _crash(target: str, text: str, place: Path) -> Crash:
    left = sorted(place.glob("crash-*")) + sorted(place.glob("timeout-*")) + sorted(place.glob("oom-*"))
    words = "\n".join(line for line in text.splitlines() if not _PROGRESS.match(line))
    return Crash(target, words, left[0].read_bytes() if left else None)


def replay(program: Path, target: str, inputs: Mapping[str, bytes], *, timeout: float = 300) -> None:
    """Runs it over each input.

    Raises:
        Crash: at one of them, the last that is named in the text.
    """
    with workplace() as place:
        copy = _copy(program, place)
        status, text = _run([copy, *LIMITS, *_put(place / "inputs", inputs)], place, timeout)
        if status:
            raise _crash(target, text, place)


def fuzz(program: Path, target: str, seconds: int, *, keep: Path | None = None) -> str:
    """Lets libFuzzer change inputs for so long; what it says at the end.

    Args:
        keep: where the smallest set of inputs that reaches the same goes, in place of what is there.

    Raises:
        Crash: it found something.
    """
    with workplace() as place:
        copy = _copy(program, place)
        _put(place / "new", {})
        _put(place / "inputs", all_inputs(target))
        limits = [*LIMITS, f"-max_len={MAX_INPUT}", "-print_final_stats=1"]
        status, text = _run([copy, f"-max_total_time={seconds}", *limits, "new", "inputs"], place, seconds + 300)
        if status:
            raise _crash(target, text, place)
        if keep is not None:
            _put(place / "seeds", seeds(target))
            _put(place / "kept", {})
            # By what is reached, not by how often: else there would be ten times as many.
            merge = [copy, "-merge=1", "-use_counters=0", *limits, "kept", "seeds", "inputs", "new"]
            status, merged = _run(merge, place, 600)
            if status:
                raise _crash(target, merged, place)
            known = set(seeds(target).values())
            _replace(keep, (data for path in sorted((place / "kept").iterdir()) if (data := path.read_bytes()) not in known))
        return "\n".join(line for line in text.splitlines() if "DONE" in line or line.startswith("stat::"))


def _replace(directory: Path, inputs: Iterable[bytes]) -> None:
    """Those with a name of their own stay."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        if len(path.name) == 12:
            path.unlink()
    for data in inputs:
        (directory / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
