"""python -m tests.fuzz [--seconds N] [--keep] [TARGET…]: fuzzes the launcher with libFuzzer, one target after another.

What makes one fail is written to the working directory; a name in corpus/TARGET/ makes it a test for ever. --keep puts what was
found on the way there, as few inputs as reach the same code.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz.build import TARGETS, build, find_clang
from tests.fuzz.run import Crash, fuzz


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together (default %(default)s)")
    parser.add_argument("--keep", action="store_true", help="put what is found into tests/fuzz/corpus")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    options = parser.parse_args()
    targets = options.targets or TARGETS
    if unknown := set(targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    clang = find_clang()
    if clang is None:
        parser.error("no clang with libFuzzer; apt install clang libclang-rt-dev")
    failed = False
    with tempfile.TemporaryDirectory() as directory:
        for target, program in build(Path(directory), targets, clang=clang).items():
            keep = Path(__file__).parent / "corpus" / target if options.keep else None
            try:
                print(f"{target}: {fuzz(program, target, max(1, options.seconds // len(targets)), keep=keep)}", flush=True)
            except Crash as crash:
                failed = True
                print(crash, file=sys.stderr)
                if crash.input is not None:
                    Path(f"crash-{target}").write_bytes(crash.input)
                    print(f"the input is in crash-{target}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main())
