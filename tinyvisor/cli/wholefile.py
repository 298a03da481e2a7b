"""A file that a command writes when all is over: whole or not at all, and with no doubt about its place before anything runs."""

from __future__ import annotations

import os
from pathlib import Path

from tinyvisor.errors import TinyvisorError


def check_place(path: Path) -> None:
    """Whether it can be written, as far as that is known before.

    Raises:
        TinyvisorError: its directory is not there, or can't be written; or it is a directory itself.
    """
    if path.is_dir():
        raise TinyvisorError(f"{path} can't be written: it is a directory")
    if not os.access(path.absolute().parent, os.W_OK):
        raise TinyvisorError(f"{path} can't be written: its directory is missing or read-only")


def write_whole(path: Path, text: str) -> None:
    """Writes `text` to `path`, whole or not at all.

    Raises:
        TinyvisorError: it can't be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as exc:
        temporary.unlink(missing_ok=True)
        raise TinyvisorError(f"{path} can't be written: {exc.strerror}") from exc
