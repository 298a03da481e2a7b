"""What containers print, made harmless for a terminal. Pure.

They are not trusted with it: of the control characters and escape sequences, tabs and colours are let through, nothing else.
"""

from __future__ import annotations

import re
from typing import Final

RESET: Final = "\x1b[0m"

_PLAIN: Final = re.compile(rb"[\t -~]*")
_PLAIN_LINES: Final = bytes(range(ord(" "), 0x7F)) + b"\t\n"
_CONTROL: Final = (
    r"(?P<colour>\x1b\[[0-9;:]*m)"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: cursor, erase, modes, reports
    r"|(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"  # OSC, DCS, SOS, PM, APC: title, clipboard
    r"|\x1b[ -/]*[0-~]?"  # other escapes, and the start of anything unfinished
    r"|(?P<return>\r)"
    r"|[\x00-\x08\x0a-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"  # C0 but tab, DEL, C1, and what reorders a line
)


def clean(line: bytes, *, colour: bool) -> str:
    """`line`, made harmless for a terminal. Colours stay where `colour`, and end with the line."""
    if _PLAIN.fullmatch(line):
        return line.decode("ascii")
    text = line.rstrip(b"\r\n").decode("utf-8", "replace")
    coloured = False

    def keep(match: re.Match[str]) -> str:
        nonlocal coloured
        if match["colour"] is not None and colour:
            coloured = True
            return match[0]
        return " " if match["return"] is not None else ""

    text = re.sub(_CONTROL, keep, text)  # compiled at the first use: `ps` mostly has none
    return text + RESET if coloured else text


def clean_lines(lines: bytes, *, colour: bool) -> bytes:
    """`clean` of each of `lines`, in UTF-8."""
    if not lines.translate(None, _PLAIN_LINES):
        return lines
    return "\n".join(clean(line, colour=colour) for line in lines.split(b"\n")).encode("utf-8", "replace")
