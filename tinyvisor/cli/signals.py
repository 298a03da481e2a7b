"""Which signals a command heeds."""

from __future__ import annotations

import signal

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def heeded(numbers: tuple[signal.Signals, ...]) -> list[signal.Signals]:
    """Those that our caller did not want ignored, as nohup and a shell's ``&`` do."""
    return [number for number in numbers if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN]
