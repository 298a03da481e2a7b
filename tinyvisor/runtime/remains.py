"""What those leave behind who were killed: removed by whoever begins next, before it makes anything itself. Synchronous."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tinyvisor.errors import SpecError
from tinyvisor.places import privileged, shared_files, shared_projects
from tinyvisor.runtime.live import Live
from tinyvisor.runtime.projectlock import unclaimed
from tinyvisor.spec import check_name


def forget_remains(directory: Path, project: str) -> None:
    """What is left of a project of which nothing runs."""
    Live.forget_remains(directory, project)
    close_to_groups(project)


def close_to_groups(project: str) -> None:
    """Removes what a killed supervisor has left for groups. Its launcher, too, knows nothing of that."""
    for path in shared_files(project) if privileged() else ():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def close_the_gone_to_groups(locks: Path) -> None:
    """The same of projects that may never be started again. Their launchers have removed all else, the locks included."""
    for project in shared_projects() if privileged() else ():
        with contextlib.suppress(SpecError):  # nothing of ours is called so
            check_name("project", project)
            with unclaimed(locks, project) as is_gone:
                if is_gone:
                    close_to_groups(project)
