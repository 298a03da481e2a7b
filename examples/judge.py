"""A tiny judge: compiles a solution once, runs it against many inputs at once, and says what came of each.

Usage: python examples/judge.py [SOLUTION.c|SOLUTION.py]   (as root; without one it judges a solution of its own)
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path

import anyio

from tinyvisor import Limits, Result, open_runtime

TESTS = [(f"{n} {n * n}\n", f"{n + n * n}\n") for n in range(20)]  # input, expected output: the sum of two numbers
IN_C = '#include <stdio.h>\nint main(void) { int a, b; scanf("%d %d", &a, &b); printf("%d\\n", a == 7 ? 0 : a + b); }\n'
IN_PYTHON = "a, b = map(int, input().split())\nprint(0 if a == 7 else a + b)\n"
LIMITS = Limits(memory="64m", pids=10, wall="5s", cpu_time="1s", output="1m")
WORDS = {"time_limit": "TLE", "memory_limit": "MLE", "output_limit": "OLE"}


def verdict(result: Result, expected: str) -> str:
    if result.status != "ok":
        return WORDS.get(result.status, "RE")
    return "AC" if (result.stdout or b"").split() == expected.encode().split() else "WA"


async def judge(source: bytes, language: str) -> list[str]:
    verdicts = [""] * len(TESTS)
    build = ["gcc", "-O2", "-o", "program", "main.c"] if language == "c" else ["python3", "-m", "py_compile", "main.py"]
    command = ["./program"] if language == "c" else ["python3", "main.py"]
    async with open_runtime() as rt, rt.working_directory(size="64m") as directory:
        limits = Limits(memory="512m", pids=30, wall="30s", output="64k")
        built = await rt.run(
            build, files={f"main.{language}": source}, limits=limits, working_directory=directory, capture_stderr=True
        )
        if built.status != "ok":
            sys.exit(f"CE: {built.reason}\n{(built.stderr or b'').decode(errors='replace')}")

        async def run(number: int) -> None:
            given, expected = TESTS[number]
            result = await rt.run(
                command, stdin=given.encode(), limits=LIMITS, working_directory=directory, capture_stdout=True, user="nobody"
            )
            verdicts[number] = verdict(result, expected)

        async with anyio.create_task_group() as group:
            for number in range(len(TESTS)):
                group.start_soon(run, number)
    return verdicts


if __name__ == "__main__":
    if len(sys.argv) > 1:
        solution = Path(sys.argv[1])
        found = anyio.run(judge, solution.read_bytes(), solution.suffix[1:])
    else:
        found = anyio.run(judge, *((IN_C.encode(), "c") if shutil.which("gcc") else (IN_PYTHON.encode(), "py")))
    print(*found)
    print(", ".join(f"{count} {word}" for word, count in Counter(found).most_common()))
