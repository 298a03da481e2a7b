"""What the next supervisor has to know: one small JSON file for each container, in a directory that only its owner can read.

A file has sections, each with an owner: ``container`` is the runtime's, ``service`` the supervisor's. It is written whole, by
rename, and without fsync: it is about processes of this boot, and the page cache lives as long as they do. Names that begin
with ``_`` are of the project; no container can be called so.

What is found is of use only in the boot that it was written in.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tinyvisor.processes import boot_id
from tinyvisor.runtime.projectlock import private_directory

FORMAT: Final = 1
"""What a file says it is. Fields may come; one that goes, or means something else, is another format."""

RUNTIME: Final = "_runtime"
SUPERVISOR: Final = "_supervisor"

Section = Mapping[str, Any]


class Records:
    """The files in `directory`, which is made where it is missing; read once, then written only.

    Args:
        boot: this boot's id.

    Attributes:
        strange: files that this version can't read.
        on_problem: told of a file that can't be written.

    Raises:
        HostError: others could write to it.
    """

    def __init__(self, directory: Path, boot: str | None = None) -> None:
        private_directory(directory)
        directory.chmod(0o700)  # environments are in there
        self.directory = directory
        self.on_problem: Callable[[str], None] = lambda text: None
        boot = boot_id() if boot is None else boot
        self._head = {"format": json.dumps(FORMAT), "boot": json.dumps(boot)}
        self._prefix = f"{directory}/"
        self._failing = False
        self._texts: dict[str, dict[str, str]] = {}  # sections as they are written: much less memory than what they say
        self.strange: list[Path] = []
        for path in sorted(directory.glob("*.json")):
            content = _read(path)
            if content is None:
                self.strange.append(path)
            elif content.get("boot") == boot:
                self._texts[path.stem] = {**{section: json.dumps(value) for section, value in content.items()}, **self._head}

    def names(self) -> tuple[str, ...]:
        """Containers that something is known of."""
        return tuple(name for name in self._texts if not name.startswith("_"))

    def get(self, name: str, section: str) -> Section | None:
        text = self._texts.get(name, {}).get(section)
        return None if text is None else json.loads(text)

    def update(self, name: str, **sections: Section | None) -> None:
        """Changes sections of a file; None takes one away.

        Raises:
            OSError: it can't be written. What is there is what was there before, and the next update writes this, too.
        """
        texts = self._texts.get(name)
        if texts is None:
            texts = self._texts[name] = dict(self._head)
        for section, value in sections.items():
            if value is None:
                texts.pop(section, None)
            else:
                texts[section] = json.dumps(value)
        # By the shortest way: it is done several times in each start.
        temporary = f"{self._prefix}{name}.new"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            data = ("{" + ",\n ".join([f'"{section}": {text}' for section, text in texts.items()]) + "}\n").encode()
            if os.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(fd)
        os.rename(temporary, f"{self._prefix}{name}.json")

    def try_update(self, name: str, **sections: Section | None) -> None:
        """As `update`; that it can't be written is told once, and nothing is stopped for it."""
        try:
            self.update(name, **sections)
        except OSError as error:
            if not self._failing:
                self.on_problem(f"{self.directory}/{name}.json: {error.strerror}; should the supervisor die now, the next one"
                                " finds an older state")  # fmt: skip
            self._failing = True
        else:
            self._failing = False

    def forget(self, name: str) -> None:
        self._texts.pop(name, None)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.directory / f"{name}.json")

    def clear(self) -> None:
        """Forgets everything, and what earlier boots have left."""
        self._texts.clear()
        for path in self.directory.iterdir():
            path.unlink()

    def remove(self) -> None:
        """As if it had never been."""
        self._texts.clear()
        shutil.rmtree(self.directory, ignore_errors=True)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None
