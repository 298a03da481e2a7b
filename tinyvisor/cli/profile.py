"""`tinyvisor profile`: seccomp profiles learned from what programs do, tried, and compared."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import click

from tinyvisor.cli.run import FILE, OPTIONS, RunCommand, build_spec, with_options
from tinyvisor.cli.trace import run_traced
from tinyvisor.errors import ConfigError, ConfigProblem, TinyvisorError
from tinyvisor.learned import Learned, describe, differences, of_profile
from tinyvisor.profile import KILL, Profile, default_profile_text, parse_profile, read_profile_text
from tinyvisor.trace import End, Event, Syscall, from_json

REFUSED = 1
MAX_LISTED = 20
_command = click.argument("command", metavar="COMMAND [ARGUMENT]...", nargs=-1, type=click.UNPROCESSED)
_settings: dict[str, Any] = {"allow_interspersed_args": False, "help_option_names": ["--help"]}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def profile() -> None:
    """Make seccomp profiles from what programs do; try and compare them.

    A profile is the OCI's (and Docker's) JSON: use it with --security-opt seccomp=FILE.
    """


@profile.command(cls=RunCommand, context_settings=_settings)
@click.option("-o", "--output", type=FILE, metavar="FILE", help="Default: stdout; then the command's goes to stderr.")
@click.option("--merge", is_flag=True, help="Add to what FILE allows already.")
@click.option("--from", "source", type=FILE, metavar="TRACE", help="Learn from what trace --json wrote, and run nothing.")
@with_options(OPTIONS)
@_command
def learn(command: tuple[str, ...], output: Path | None, merge: bool, source: Path | None, **options: Any) -> int:
    """Run COMMAND in a container, like `run`, and write a profile that allows just what it did.

    What it tried in vain stays in vain. Threads race: learn from several runs with --merge. Exits as `run` does.
    """
    if bool(command) == bool(source):
        raise click.UsageError("give a COMMAND, or --from with what trace --json wrote")
    if merge and output is None:
        raise click.UsageError("--merge adds to a file: give -o FILE, too")
    if output is not None and not os.access(output.absolute().parent, os.W_OK):
        raise TinyvisorError(f"{output} can't be written: its directory is missing or read-only")
    learned, code = Learned(), 0
    if merge and output is not None and output.exists():
        learned = of_profile(_read(output), **_here())
    if source is not None:
        _add_trace(source, learned)
    else:
        spec = build_spec(command, options, os.environ, tty=options["tty"], stdin_open=options["interactive"])
        code = run_traced(spec, learned.add, options, stdout=None if output else 2)
        if not spec.no_new_privs:
            from tinyvisor.runtime.seccomp import NEEDED

            for name in NEEDED:
                learned.allow(name)
    for name in sorted(learned.foreign):
        click.echo(f"tinyvisor: {name} can't be allowed by a profile for this machine", err=True)
    if not learned.allowed:
        raise TinyvisorError("nothing was learned: the command did nothing that is to be allowed")
    _write(output, json.dumps(learned.document(_architecture()), indent=2) + "\n")
    return code


@profile.command(cls=RunCommand, context_settings=_settings)
@with_options(OPTIONS)
@click.argument("profile_file", metavar="PROFILE", type=FILE)
@_command
def check(command: tuple[str, ...], profile_file: Path, **options: Any) -> int:
    """Run COMMAND in a container under PROFILE, and list what was refused; not what PROFILE itself answers with ENOSYS.

    Exits with COMMAND's code; where that is 0 and something was refused, with 1.
    """
    command = command[1:] if command[:1] == ("--",) else command
    if not command:
        raise click.UsageError("give a COMMAND")
    spec = build_spec(command, options, os.environ, tty=options["tty"], stdin_open=options["interactive"])
    spec = spec.with_(seccomp=profile_file.absolute())

    from tinyvisor.runtime.filters import filter_for
    from tinyvisor.runtime.tracer import this_machine

    filter, machine = filter_for(spec), this_machine()
    assert filter is not None
    missing = of_profile(_read(profile_file), **_here()).missing  # by its author's will, so that a libc falls back
    refused = Refusals(_decider(filter, machine, missing))
    wanted = ",".join(name for name in machine.numbers if name not in filter.passes) or "none"
    code = run_traced(spec, refused.add, options, filter=wanted)
    for line in refused.lines():
        click.echo(f"tinyvisor: {line}", err=True)
    return code or (REFUSED if refused.counts else 0)


@profile.command()
@click.argument("one", metavar="A")
@click.argument("other", metavar="B")
def diff(one: str, other: str) -> int:
    """List what profile B allows and A doesn't (+), and the other way round (-). "default" is our own profile.

    Exits with 0 where they allow a container without capabilities the same, else with 1.
    """
    lines = differences(_named(one), _named(other), **_here())
    for line in lines:
        click.echo(line)
    return 1 if lines else 0


class Refusals:
    """What a profile refused, counted.

    Attributes:
        counts: (name with its deciding arguments, the answer) → how often.
    """

    def __init__(self, decide: Callable[[Syscall], str | None]) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._decide = decide
        self._first: dict[tuple[str, str], Syscall] = {}

    def add(self, event: Event) -> None:
        if isinstance(event, End):
            if event.signal == 31:  # SIGSYS: its last call is told as one that never returned
                self.counts["(a call that kills)", "SIGSYS"] += 1
        elif isinstance(event, Syscall) and (answer := self._decide(event)) is not None:
            key = (_shown(event), answer)
            self.counts[key] += 1
            self._first.setdefault(key, event)

    def lines(self) -> list[str]:
        found = []
        for (name, answer), count in self.counts.most_common(MAX_LISTED):
            first = self._first.get((name, answer))
            example = f", first in pid {first.pid}: {first.describe()}" if first else ""
            found.append(f"refused {name} with {answer}, {count} time{'s' * (count != 1)}{example}")
        if len(self.counts) > MAX_LISTED:
            found.append(f"and {len(self.counts) - MAX_LISTED} more kinds of calls")
        return found


def _shown(call: Syscall) -> str:
    probe = Learned()
    probe.add(Syscall(time=0, pid=0, tid=0, name=call.name, raw=call.raw, result=0))
    return describe(*next(iter(probe.cases()), (call.name, ())))


def _decider(filter: Any, machine: Any, missing: Collection[str]) -> Callable[[Syscall], str | None]:
    """Says with what the profile answered a call; None where it let it through."""
    import errno

    from tinyvisor.runtime.seccomp import decide

    def answer(call: Syscall) -> str | None:
        if call.name not in machine.numbers or call.name in missing or (not call.errno and call.result is not None):
            return None
        action = decide(filter, machine, call.name, call.raw)
        if action.lets_through():
            return None
        if action == ("notify", KILL):
            return "kill_process"
        if action.kind in ("errno", "notify"):
            return errno.errorcode.get(action.data, str(action.data)) if call.errno else None
        return action.kind

    return answer


def _here() -> dict[str, Any]:
    from tinyvisor.runtime.host import kernel_version
    from tinyvisor.runtime.tracer import this_machine

    return {"arch": this_machine().docker, "kernel": kernel_version(os.uname().release)}


def _architecture() -> str:
    return f"SCMP_ARCH_{os.uname().machine.upper()}"


def _named(name: str) -> Profile:
    return parse_profile(default_profile_text()) if name == "default" else _read(Path(name))


def _read(path: Path) -> Profile:
    try:
        return parse_profile(read_profile_text(path))
    except OSError as exc:
        raise TinyvisorError(f"{path}: {exc.strerror}") from None
    except ValueError as exc:
        raise TinyvisorError(f"{path}: {exc}") from None


def _add_trace(path: Path, learned: Learned) -> None:
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    learned.add(from_json(line))
                except ValueError as exc:
                    raise ConfigError([ConfigProblem(path, number, 1, "", f"no line of trace --json: {exc}")]) from None
    except OSError as exc:
        raise TinyvisorError(f"{path}: {exc.strerror}") from None


def _write(path: Path | None, text: str) -> None:
    """Whole or not at all."""
    if path is None:
        sys.stdout.write(text)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as exc:
        temporary.unlink(missing_ok=True)
        raise TinyvisorError(f"{path} can't be written: {exc.strerror}") from None
