"""What a service says of itself on its NOTIFY_SOCKET. Pure.

The words are sd_notify(3)'s. They come from inside a container, so nothing of a message is more than that service's own word:
which process speaks does not matter, none is looked for, and no file descriptor is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

MAX_STATUS: Final = 200
"""Characters of a status that are kept."""

REFUSED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "MAINPID": "the main process is the one that was started, whatever a process inside says",
        "MAINPIDFD": "the main process is the one that was started, whatever a process inside says",
        "FDSTORE": "file descriptors of a container's are not kept",
    }
)
"""What is not done, and why."""

NOT_FOR_US: Final = "not UTF-8 without NUL"


@dataclass(frozen=True, slots=True)
class Notification:
    """One message.

    Attributes:
        ready, stopping: ``READY=1``, ``STOPPING=1``.
        status: what ``STATUS=`` says, one line; None: nothing.
        alive: ``WATCHDOG=1``.
        failed: ``WATCHDOG=trigger``: it says itself that it hangs.
        watchdog: seconds, as ``WATCHDOG_USEC=`` says; None: nothing.
        extends: seconds from now that its start may take at least, as ``EXTEND_TIMEOUT_USEC=`` says; None: nothing. Its stop
            has ``stop_grace_period``, whatever it says.
        refused: keys that were in it and that are in `REFUSED`.
        problem: it can't be read, because of this; empty: it can.
    """

    ready: bool = False
    stopping: bool = False
    status: str | None = None
    alive: bool = False
    failed: bool = False
    watchdog: float | None = None
    extends: float | None = None
    refused: tuple[str, ...] = ()
    problem: str = ""


def parse(message: bytes) -> Notification:
    """What a message says; unknown keys and lines that make no sense are passed over, as systemd does."""
    try:
        text = message.decode()
    except UnicodeDecodeError:
        return Notification(problem=NOT_FOR_US)
    if "\0" in text:
        return Notification(problem=NOT_FOR_US)
    found: dict[str, Any] = {}
    refused: dict[str, None] = {}
    for line in text.split("\n"):
        key, _, value = line.partition("=")
        if key in REFUSED:
            refused[key] = None
        else:
            _note(found, key, value)
    if "status" in found:  # once, of however many
        found["status"] = one_line(found["status"])
    return Notification(**found, refused=tuple(refused))


def _note(found: dict[str, Any], key: str, value: str) -> None:
    match key, value:
        case "READY", "1":
            found["ready"] = True
        case "STOPPING", "1":
            found["stopping"] = True
        case "STATUS", _:
            found["status"] = value
        case "WATCHDOG", "1":
            found["alive"] = True
        case "WATCHDOG", "trigger":
            found["failed"] = True
        case "WATCHDOG_USEC", _ if (seconds := _seconds(value)) is not None and seconds >= 0.001:
            found["watchdog"] = seconds
        case "EXTEND_TIMEOUT_USEC", _ if (seconds := _seconds(value)) is not None:
            found["extends"] = seconds


def _seconds(microseconds: str) -> float | None:
    """None where it is no number, or one of more than 30 years."""
    if not (microseconds.isascii() and microseconds.isdigit()) or int(microseconds[:19]) >= 10**15:
        return None
    return int(microseconds[:19]) / 1e6


def one_line(text: str) -> str:
    """`text` without what could move a terminal's cursor, `MAX_STATUS` characters at most."""
    return "".join(char if char.isprintable() else "?" for char in text[:MAX_STATUS])
