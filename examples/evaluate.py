"""Code evaluation as a web handler does it, in asyncio: a client that goes away takes its container with it.

Usage: python examples/evaluate.py   (as root)
"""

from __future__ import annotations

import asyncio
from typing import Any

from tinyvisor import Limits, Runtime, open_runtime

LIMITS = Limits(memory="128m", pids=16, wall="10s", output="64k")


async def evaluate(runtime: Runtime, code: str) -> dict[str, Any]:
    """What a POST handler would return; the framework cancels it when the client disconnects."""
    result = await runtime.run(
        ["python3", "main.py"], files={"main.py": code.encode()}, limits=LIMITS, capture_stdout=True, capture_stderr=True
    )
    return {"status": result.status, "stdout": (result.stdout or b"").decode(errors="replace"), "reason": result.reason}


async def main() -> None:
    async with open_runtime() as runtime:
        answers = await asyncio.gather(
            evaluate(runtime, "print(6 * 7)"),
            evaluate(runtime, "raise SystemExit(3)"),
            evaluate(runtime, "while True: print('spam' * 1000)"),
            evaluate(runtime, "import os\nwhile True: os.fork()"),
        )
        for answer in answers:
            print(answer["status"], answer["stdout"][:2].strip() if answer["status"] == "ok" else answer["reason"])

        request = asyncio.create_task(evaluate(runtime, "import time\ntime.sleep(1000)"))
        await asyncio.sleep(0.2)
        request.cancel()  # the client has gone away
        await asyncio.gather(request, return_exceptions=True)
        print("cancelled:", request.cancelled(), "containers left:", len(runtime.containers))


if __name__ == "__main__":
    asyncio.run(main())
