"""`tinyvisor run`: options in docker run's words → `Spec`; `tinyvisor.cli.foreground` runs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from tinyvisor.cli.failures import ExitCodes
from tinyvisor.cli.parsed import Option, Parsed
from tinyvisor.cli.project import read_variables
from tinyvisor.cli.values import environment, parse_namespaces, parse_storage
from tinyvisor.errors import SpecError
from tinyvisor.spec import RootMethod, SeccompAction, Spec, SyscallRule, Tmpfs, Ulimit, Volume, parse_capability, parse_signal
from tinyvisor.state import Exit, Violation
from tinyvisor.units import parse_duration, parse_size

OURS = 125
TELLING = frozenset({"time_limit", "memory_limit", "output_limit", "pids_limit", "seccomp", "sandbox_error"})
"""Verdicts that the exit code alone does not show."""

_F = TypeVar("_F", bound=Callable[..., Any])


class RunCommand(click.Command):
    """Failures of ours are 125, whatever they are, so that they are not taken for the command's."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if parent is not None and isinstance(parent.obj, ExitCodes):
            parent.obj.ours, parent.obj.passes_on = OURS, True
        return super().make_context(info_name, args, parent, **extra)


def _volume(text: str) -> Volume:
    from tinyvisor.config import parse_volume  # pydantic, YAML: only where a volume is asked for

    return parse_volume(text, Path.cwd())


def _tmpfs(text: str) -> Tmpfs:
    from tinyvisor.config import parse_tmpfs

    return parse_tmpfs(text)


def _ulimit(text: str) -> tuple[str, Ulimit]:
    from tinyvisor.config import parse_ulimit

    return parse_ulimit(text)


def _cpuset(text: str) -> frozenset[int]:
    from tinyvisor.config import parse_cpuset

    return parse_cpuset(text)


def _capabilities(added: tuple[str, ...], dropped: tuple[str, ...]) -> frozenset[str]:
    if not added:  # of none, nothing can be dropped
        return frozenset()
    from tinyvisor.config import parse_capabilities

    return parse_capabilities(added, dropped)


def _security(text: str) -> tuple[str, Any]:
    from tinyvisor.config import parse_security

    return parse_security(text, Path.cwd())


def _rule(text: str) -> SyscallRule:
    names, _, action = text.partition("=")
    action, _, read = action.partition(":")
    try:
        path, address = (read, "") if read.startswith("/") else ("", read)
        return SyscallRule(syscall=names, action=action, path=path, address=address)
    except SpecError as error:
        raise ValueError(error.problem) from None


SIZE = Parsed("size", parse_size)
DURATION = Parsed("duration", parse_duration)
FILE = click.Path(path_type=Path)

_ROOT = (
    click.option("--hostname", "-h", metavar="NAME", help="Default: the container's name."),
    click.option("--rootfs", type=FILE, metavar="DIR|TAR", help="Default: /usr and the like of this host, read-only."),
    click.option("--read-only", is_flag=True, help="No writable layer."),
    click.option("--root-method", type=click.Choice(get_args(RootMethod)), help="Default: pivot."),
    click.option("--storage-opt", multiple=True, type=Parsed("opt", parse_storage), help="size=256m, inodes=65536."),
    click.option("--volume", "-v", multiple=True, type=Parsed("source:target[:ro]", _volume), help="Bind mount."),
    click.option("--tmpfs", multiple=True, type=Parsed("path[:options]", _tmpfs), help="/path:size=64m,mode=1777"),
    click.option("--shm-size", type=SIZE, help="Of /dev/shm. Default: 64m."),
)
_RIGHTS = (
    click.option("--env-file", multiple=True, type=FILE, metavar="FILE", help="Lines of VAR=VALUE."),
    click.option("--workdir", "-w", metavar="DIR", help="Default: /."),
    click.option("--user", "-u", metavar="USER[:GROUP]", help="Names or numbers, as known inside. Default: root."),
    click.option("--cap-add", multiple=True, type=Parsed("capability", parse_capability), help="Default: none."),
    click.option("--cap-drop", multiple=True, type=Parsed("capability", parse_capability), help="After ALL was added."),
    click.option(
        "--security-opt",
        multiple=True,
        type=Parsed("option", _security),
        help="seccomp=FILE, seccomp=unconfined, landlock=unconfined, network=new, no-new-privileges:false, "
        "proc-opts=hidepid=2,subset=pid.",
    ),
    click.option(
        "--seccomp-action", type=click.Choice(get_args(SeccompAction)), help="On a refused system call; it is then told of."
    ),
    click.option(
        "--on-syscall",
        multiple=True,
        type=Parsed("names=action", _rule),
        help="connect=deny, %ipc=log, open=deny:/etc/* where traced.",
    ),
    click.option("--pids-limit", type=click.IntRange(min=1), metavar="N", help="Processes and threads at most."),
    click.option("--memory", "-m", type=SIZE, help="64m; with no swap on top."),
    click.option("--cpus", type=float, metavar="N", help="CPU time per wall time: 1.5."),
    click.option("--cpuset-cpus", type=Parsed("cpus", _cpuset), help="0-2,4."),
    click.option("--ulimit", multiple=True, type=Parsed("name=soft[:hard]", _ulimit), help="nofile=1024:2048."),
    click.option("--oom-score-adj", type=click.IntRange(-1000, 1000), metavar="N"),
    click.option("--network", type=click.Choice(["none", "host"]), help="Default: none, loopback only."),
    click.option(
        "--namespaces",
        type=Parsed("names", parse_namespaces),
        help="All to make new (pid,mount,uts), or changes to the default (+user,-ipc).",
    ),
    click.option(
        "--userns",
        type=click.Choice(["auto", "host", "keep-id"]),
        help="Ids: a range of its own (auto, the default), the host's, or our user's kept.",
    ),
    click.option("--timeout", type=DURATION, help="Kill everything after 90s, 1m30s."),
)


def container_options(*env: str) -> tuple[Callable[[_F], _F], ...]:
    """The options that say what the container is.

    Args:
        env: the names of the one that sets a variable.
    """
    variable = click.option(*env, "env", multiple=True, metavar="VAR[=VALUE]", help="VAR alone is taken from here.")
    return (*_ROOT, variable, *_RIGHTS)


CONTAINER: tuple[Option, ...] = container_options("--env", "-e")
"""What the container is; `batch` has these, too."""

RUNNING = (
    click.option("--name", metavar="NAME", help="Default: run-PID."),
    click.option("--stop-signal", type=Parsed("signal", parse_signal), help="What is passed on for TERM."),
    click.option("--stop-timeout", type=DURATION, help="After TERM, kill when so long has passed. Default: never."),
    click.option("--interactive", "-i", is_flag=True, help="Pass our stdin on; otherwise it is /dev/null."),
    click.option("--tty", "-t", is_flag=True, help="A terminal of its own."),
    click.option("--result", type=FILE, metavar="FILE", help="Write how it ended and what it used, as JSON."),
    click.option("--rm", is_flag=True, hidden=True, expose_value=False),  # docker's: it is what is done anyway
)
"""How it is run in the foreground."""

OPTIONS: tuple[Option, ...] = (*RUNNING[:1], *CONTAINER, *RUNNING[1:])


def with_options(options: Sequence[Callable[[_F], _F]]) -> Callable[[_F], _F]:
    """Adds options to a command, in this order."""

    def decorate(function: _F) -> _F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@click.command(cls=RunCommand, context_settings={"allow_interspersed_args": False, "help_option_names": ["--help"]})
@with_options(OPTIONS)
@click.argument("command", metavar="COMMAND [ARGUMENT]...", nargs=-1, required=True, type=click.UNPROCESSED)
def run(command: tuple[str, ...], result: Path | None, interactive: bool, tty: bool, **options: Any) -> int:
    """Run one command in a container, like docker run --rm.

    Options end where COMMAND begins. INT, TERM, HUP, QUIT, USR1 and USR2 are passed on to it.

    Exits with the command's code, or 128 + the signal that ended it; 125 when the fault is tinyvisor's or the options',
    126 when COMMAND can't be executed, 127 when it is not there.
    """
    spec = build_spec(command, options, os.environ, tty=tty, stdin_open=interactive)

    from tinyvisor.cli.foreground import run_foreground

    ended = run_foreground(spec, result=result, stop_timeout=options["stop_timeout"])
    if isinstance(ended, int):
        return ended
    if ended.status in TELLING:
        click.echo(f"tinyvisor: {_reason(ended)}", err=True)
    for line in map(_told, ended.violations):
        click.echo(f"tinyvisor: seccomp: {line}", err=True)
    return ended.returncode


def _told(item: Violation) -> str:
    what = f"{item.syscall} {item.answer}" if item.syscall else "other calls"
    return f"{what}, {item.count} time{'s' * (item.count > 1)}"


def _reason(exit: Exit) -> str:
    return exit.reason or exit.describe()


RENAMED = {
    "hostname": "hostname", "rootfs": "rootfs", "read_only": "read_only", "root_method": "root_method", "workdir": "working_dir",
    "user": "user", "pids_limit": "pids_limit", "memory": "mem_limit", "cpus": "cpus", "cpuset_cpus": "cpuset",
    "network": "network_mode", "namespaces": "namespaces", "userns": "userns_mode", "timeout": "timeout",
    "stop_signal": "stop_signal",
    "seccomp_action": "seccomp_action", "stop_timeout": "stop_grace_period", "shm_size": "shm_size",
    "oom_score_adj": "oom_score_adj",
}  # fmt: skip
"""option → field of `Spec`, where the value is taken as it is."""
_OPTION_OF = {field: f"--{option.replace('_', '-')}" for option, field in RENAMED.items()} | {"environment": "--env"}
"""What was typed for a field."""


def build_spec(
    command: tuple[str, ...], options: Mapping[str, Any], environ: Mapping[str, str], *, tty: bool, stdin_open: bool
) -> Spec:
    """The container that the options ask for.

    Raises:
        SpecError: they make no sense together.
    """
    name = options["name"] or f"run-{os.getpid()}"
    try:
        return Spec(command=command, name=name, tty=tty, stdin_open=stdin_open, **container_fields(options, environ))
    except SpecError as error:
        raise SpecError(_OPTION_OF.get(error.field, error.field), error.problem) from None


def container_fields(options: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a `Spec` that the options of `CONTAINER` give."""
    fields = {field: options[option] for option, field in RENAMED.items() if options.get(option) is not None}
    if options["rootfs"] is not None:
        fields["rootfs"] = options["rootfs"].absolute()
    return {
        "environment": _environment(options, environ),
        "volumes": options["volume"],
        "tmpfs": options["tmpfs"],
        "ulimits": dict(options["ulimit"]),
        "capabilities": _capabilities(options["cap_add"], options["cap_drop"]),
        "on_syscall": options["on_syscall"],
        **dict(options["storage_opt"]),
        **dict(options["security_opt"]),
        **fields,
    }


def _environment(options: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in options["env_file"]:
        found |= read_variables(file, environ)
    return found | environment(options["env"], environ)
