"""When tinyvisor is PID 1 of a container itself: it has its own launcher be that, as an init, and goes on as its child.

PID 1 inherits every orphan of the container, must reap them, and gets no signal that it has no handler for. The launcher does
that (`tinyvisor-launcher init`) in some kilobytes; a supervisor that waited for any child would take the launcher's own away.
"""

from __future__ import annotations

import os
import sys

from tinyvisor import interpreter


def leave() -> None:
    """Does not return where this process is PID 1: the same command runs on below an init, which ends as that does.

    Raises:
        HostError: the launcher is missing.
    """
    if os.getpid() != 1:
        return
    from tinyvisor.runtime.launcher import launcher_path

    sys.stdout.flush()
    words = interpreter.command("tinyvisor", *sys.argv[1:])
    os.execv(launcher_path(), ["tinyvisor-init", "init", "--", *words])
