"""`tinyvisor ps` as it is mostly asked for, without click, whose import takes longer than all the rest of it.

`services.ps` is the same command with all of its options, and its help; what is said here is what it says.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tinyvisor.cli.summary import format_plain, ps_rows
from tinyvisor.client import Client, find_project
from tinyvisor.errors import TinyvisorError

INTERRUPTED = 130


def ps(words: Sequence[str]) -> int | None:
    """The exit code; None where the words are click's to understand."""
    asked = _parse(words)
    if asked is None:
        return None
    project, as_json, services = asked
    try:
        found = Client(find_project(project, Path.cwd())).get("/v1/services", {"service": services})
    except TinyvisorError as error:
        print(f"tinyvisor: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    print(json.dumps(found, indent=2) if as_json else format_plain(ps_rows(found)))
    return 0


def _parse(words: Sequence[str]) -> tuple[str | None, bool, list[str]] | None:
    """Project, --json, services."""
    project, as_json, services = None, False, []
    rest = iter(words)
    for word in rest:
        if word in ("-p", "--project-name"):
            project = next(rest, None)
            if project is None:
                return None
        elif word == "--json":
            as_json = True
        elif word.startswith("-"):
            return None
        else:
            services.append(word)
    return project, as_json, services
