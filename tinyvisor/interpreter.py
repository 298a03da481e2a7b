"""Modules of ours run by another interpreter."""

from __future__ import annotations

import sys


def command(module: str, *arguments: str) -> list[str]:
    """The words that run `module` as ``python -m`` does, with modules looked for where we look for them.

    ``python -m`` looks in the working directory first: whoever can write a json.py there would be root with us.
    """
    code = f"import sys; sys.path[:] = {sys.path!r}; import runpy; runpy.run_module({module!r}, run_name='__main__')"
    return [sys.executable, "-P", "-c", code, *arguments]
