"""Which project the commands `up`, `config` and `plan` mean, and the options they share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from tinyvisor.errors import ConfigError, TinyvisorError
from tinyvisor.spec import NAME, Project

SUFFIXES = (".yaml", ".yml")
DEFAULTS = (Path("configs"), Path("tinyvisor.yaml"))

_F = TypeVar("_F", bound=Callable[..., Any])


def project_options(function: _F) -> _F:
    """Adds the options that say which project is meant."""
    for option in (
        click.option("-p", "--project-name", metavar="NAME", help="Default: the directory's name."),
        click.option(
            "--env-file", type=click.Path(path_type=Path), metavar="FILE", help="Variables that go before those of .env."
        ),
        click.option(
            "--profile",
            "profiles",
            multiple=True,
            metavar="NAME",
            help="Services with this profile, too; * is all. Default: TINYVISOR_PROFILES, with commas.",
        ),
    ):
        function = option(function)
    return function


def paths_argument(function: _F) -> _F:
    """Adds PATH…"""
    return click.argument("paths", metavar="[PATH]...", nargs=-1, type=click.Path(path_type=Path))(function)


def load_project(paths: Sequence[Path], name: str | None, env_file: Path | None, profiles: Sequence[str] = ()) -> Project:
    """Reads and checks the project.

    Raises:
        ConfigError: with every problem found.
        TinyvisorError: there is nothing to read.
    """
    from tinyvisor.config import load

    environ = dict(os.environ)
    if env_file is not None:
        environ = read_variables(env_file, environ) | environ
    profiles = profiles or [item.strip() for item in environ.get("TINYVISOR_PROFILES", "").split(",") if item.strip()]
    return load(paths or default_paths(), environ=environ, name=name, profiles=profiles, warn=warn)


def split_words(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Paths, and names of services: what could be one, and is neither a file nor a directory with YAML files in it."""
    paths, names = [], []
    for word in words:
        path = Path(word)
        is_name = NAME.fullmatch(word) and path.suffix not in SUFFIXES
        if not is_name or path.is_file() or (path.is_dir() and any(item.suffix in SUFFIXES for item in path.iterdir())):
            paths.append(path)
        else:
            names.append(word)
    return paths, names


def check_services(
    names: Sequence[str], project: Project, paths: Sequence[Path], with_all_profiles: Callable[[], Project]
) -> None:
    """Raises:
    TinyvisorError: one of `names` is nothing of `project`, which `paths` describe.
    """
    known = {*project.services, *project.instances}
    for name in names:
        if name not in known:
            from tinyvisor.config import near

            with suppress(ConfigError):
                everything = with_all_profiles()
                if name in everything.services or name in everything.instances:
                    raise TinyvisorError(f'"{name}" has a profile that is not active; give it with --profile')
            where = ", ".join(map(str, paths))
            raise TinyvisorError(f'there is no file or directory "{name}", and no such service in {where}{near(name, known)}')


def read_variables(file: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of an --env-file.

    Raises:
        TinyvisorError: it can't be read, or a line makes no sense.
    """
    from tinyvisor.config import read_env_file

    try:
        return read_env_file(file, environ)
    except ValueError as exc:
        raise TinyvisorError(str(exc)) from None


def default_paths() -> Sequence[Path]:
    """What is meant where no path is given: configs/, else tinyvisor.yaml."""
    for path in DEFAULTS:
        if path.exists():
            return (path,)
    raise TinyvisorError("there is no configs/ and no tinyvisor.yaml here; name a file or a directory of YAML files")


def warn(text: str) -> None:
    """A line on stderr."""
    click.echo(f"tinyvisor: {text}", err=True)
