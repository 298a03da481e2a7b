"""`tinyvisor trace`: a command in a container with its system calls shown, as strace -f does; or attached to what runs."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import click

from tinyvisor.cli.run import FILE, RUNNING, TELLING, RunCommand, build_spec, container_options, with_options
from tinyvisor.cli.summary import format_plain
from tinyvisor.errors import TinyvisorError
from tinyvisor.spec import Spec
from tinyvisor.trace import Event, Summary, format_line, to_json

SEPARATED = "tinyvisor.cli.trace.separated"


class TraceCommand(RunCommand):
    """Knows whether there was a ``--``: without one, the argument is a service or a process."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else None
        rest = super().parse_args(ctx, args[:])
        ctx.meta[SEPARATED] = at is not None and list(ctx.params["words"]) == args[at + 1 :]
        return rest


SHOWN = (
    click.option("-e", "expressions", multiple=True, metavar="EXPR", help="trace=%file,%network,execve,!futex as in strace."),
    click.option("-f", "--follow-forks", is_flag=True, expose_value=False, help="Always so; for those who are used to it."),
    click.option("-c", "--summary", is_flag=True, help="Counts, errors and times per call instead of the calls."),
    click.option("--files", is_flag=True, help="A table of paths that were read, written, missed; and lines for a config."),
    click.option("--net", is_flag=True, help="A table of addresses that were tried; and lines for a config."),
    click.option("--json", "as_json", is_flag=True, help="JSON Lines."),
    click.option("-o", "--output", type=FILE, metavar="FILE", help="Instead of stderr; - is stdout."),
    click.option("-s", "--string-limit", type=click.IntRange(min=0), default=32, help="Bytes shown of strings. Default: 32."),
    click.option("-T", "--syscall-times", is_flag=True, help="Show the time spent in each call."),
    click.option("--timestamps", is_flag=True, help="Show when, in seconds from the first call."),
    click.option("--seccomp-bpf", is_flag=True, help="Stop at nothing else; hides calls that the profile refuses."),
)
"""What is shown, and how."""


@click.command(cls=TraceCommand, context_settings={"allow_interspersed_args": False, "help_option_names": ["--help"]})
@with_options(SHOWN)
@click.option("-p", "--project-name", metavar="NAME", help="Of SERVICE. Default: the one that runs from this directory.")
@with_options((*RUNNING[:1], *container_options("--env"), *RUNNING[1:]))
@click.argument("words", metavar="-- COMMAND [ARGUMENT]... | SERVICE | PID", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def trace(context: click.Context, /, words: tuple[str, ...], **options: Any) -> int:
    """Run a command in a container, like `run`, and show every system call of all its processes; or attach to a running
    service or process until it ends or Ctrl-C comes, which leaves it running.

    Exits as `run` does; attached, with 0. Needs python-ptrace: pip install 'tinyvisor[trace]'.
    """
    filter = _filter(options)
    if options["summary"] and (options["files"] or options["net"]):
        raise click.UsageError("--summary, or --files and --net: they are different tables")
    if context.meta[SEPARATED]:
        return _run(words, filter, options)
    if len(words) > 1:
        raise click.UsageError("put -- before the command: tinyvisor trace [OPTIONS] -- COMMAND [ARGUMENT]...")
    _refuse_what_makes_a_container(context)
    return _attach(words[0], filter, options)


def _filter(options: Mapping[str, Any]) -> str:
    """strace's -e: ``trace=…`` or just the names; the last one counts."""
    expressions: Sequence[str] = options["expressions"]
    for text in expressions:
        name, equals, _ = text.partition("=")
        if equals and name != "trace":
            raise click.BadParameter(f'"{name}=" is not known; expected trace=CALLS', param_hint="-e")
    if expressions:
        return expressions[-1]
    return ",".join(name for name, option in (("%file", "files"), ("%network", "net")) if options[option]) or "all"


ATTACHING = frozenset(
    (
        "expressions", "summary", "files", "net", "as_json", "output", "string_limit", "syscall_times", "timestamps",
        "project_name", "words",
    )
)  # fmt: skip
"""Parameters that make sense for what runs already."""


def _refuse_what_makes_a_container(context: click.Context) -> None:
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") == click.core.ParameterSource.COMMANDLINE
        if given and parameter.name not in ATTACHING:
            raise click.UsageError(f"{parameter.opts[0]} is for a new container; put -- before the command to start one")


# ---- what is shown ----


class Report(NamedTuple):
    """Takes events; `close` says what is left to say."""

    add: Callable[[Event], None]
    close: Callable[[], None]


@contextlib.contextmanager
def opened(path: Path | None) -> Any:
    """Where it goes: a file, stdout, or stderr. Raises TinyvisorError where it can't."""
    if path is None:
        yield sys.stderr
    elif str(path) == "-":
        yield sys.stdout
    else:
        try:
            file = open(path, "w", encoding="utf-8", opener=_private)  # noqa: SIM115 - closed below
        except OSError as exc:
            raise TinyvisorError(f"{path} can't be written: {exc.strerror}") from None
        with file:
            yield file


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)  # it has what passwords look like


def make_report(out: TextIO, options: dict[str, Any]) -> Report:
    """How the options want events shown."""
    if options["files"] or options["net"]:
        return _accesses_report(out, options)
    if options["summary"]:
        summary = Summary()

        def close() -> None:
            print(json.dumps(summary.to_json(), indent=2) if options["as_json"] else summary.table(), file=out, flush=True)

        return Report(summary.add, close)
    if options["as_json"]:
        return Report(lambda event: print(to_json(event), file=out), out.flush)
    start: list[float] = []

    def show(event: Event) -> None:
        start[:] = start or [getattr(event, "time", 0.0)]
        print(format_line(event, durations=options["syscall_times"], timestamps=options["timestamps"], start=start[0]), file=out)

    return Report(show, out.flush)


def _on_host(path: str) -> str | None:
    real = os.path.realpath(path)
    return real if os.path.exists(real) else None


def _accesses_report(out: TextIO, options: Mapping[str, Any]) -> Report:
    from tinyvisor.accesses import Addresses, Files

    files, addresses = Files() if options["files"] else None, Addresses() if options["net"] else None

    def add(event: Event) -> None:
        if files is not None:
            files.add(event)
        if addresses is not None:
            addresses.add(event)

    def close() -> None:
        if options["as_json"]:
            found = {"files": files.to_json() if files else None, "addresses": addresses.to_json() if addresses else None}
            text = json.dumps({key: value for key, value in found.items() if value is not None}, indent=2)
        else:
            tables = [format_plain(part.rows()) for part in (files, addresses) if part is not None]
            lines = [*(files.lines(_on_host) if files else ()), *(addresses.lines() if addresses else ())]
            text = "\n\n".join([*tables, "\n".join(["# for a service's file:", *lines])])
        print(text, file=out, flush=True)

    return Report(add, close)


async def consume(events: AsyncIterator[Event], add: Callable[[Event], None]) -> None:
    """All of them. Raises TinyvisorError where they can't be written."""
    try:
        async for event in events:
            add(event)
    except OSError as exc:
        raise TinyvisorError(f"the trace can't be written: {exc.strerror}") from None


# ---- running ----


def _run(words: tuple[str, ...], filter: str, options: dict[str, Any]) -> int:
    spec = build_spec(words, options, os.environ, tty=options["tty"], stdin_open=options["interactive"])
    with opened(options["output"]) as out:
        report = make_report(out, options)
        shown = {"seccomp_bpf": options["seccomp_bpf"], **_told(options)}
        code = run_traced(spec, report.add, options, filter=filter, **shown)
        report.close()
    return code


def run_traced(
    spec: Spec, add: Callable[[Event], None], options: dict[str, Any], *, stdout: int | None = None, **tracing: Any
) -> int:
    """Runs a container in the foreground, as `run` does, and hands its events to `add`; the exit code.

    Args:
        options: those of `RUNNING`.
        stdout: what the command gets for it, instead of ours.
        tracing: of `Runtime.trace`.
    """
    import trio

    from tinyvisor.cli.foreground import run_foreground
    from tinyvisor.runtime import Container, Runtime

    @contextlib.asynccontextmanager
    async def open_traced(runtime: Runtime, spec: Spec, **streams: Any) -> AsyncIterator[Container]:
        if stdout is not None and not spec.tty:
            streams["stdout"] = stdout
        async with runtime.trace(spec, **tracing, **streams) as (container, events):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(consume, events, add)
                yield container

    ended = run_foreground(spec, result=options["result"], stop_timeout=options["stop_timeout"], opener=open_traced)
    if isinstance(ended, int):
        return ended
    if ended.status in TELLING:
        click.echo(f"tinyvisor: {ended.reason or ended.describe()}", err=True)
    return ended.returncode


def _attach(target: str, filter: str, options: dict[str, Any]) -> int:
    pids, trees = _processes(target, options["project_name"])

    import trio

    from tinyvisor.cli.signals import ENDING, heeded
    from tinyvisor.runtime import attached

    async def run(report: Report) -> None:
        with trio.open_signal_receiver(*heeded(ENDING)) as signals:
            async with attached(filter, pids=pids, trees=trees, **_told(options)) as events:
                click.echo(f"tinyvisor: attached to {target}; Ctrl-C lets go of it", err=True)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_let_go_on, signals, events, nursery.cancel_scope)
                    await consume(events, report.add)
                    nursery.cancel_scope.cancel()

    with opened(options["output"]) as out:
        report = make_report(out, options)
        trio.run(run, report)
        report.close()
    return 0


async def _let_go_on(signals: AsyncIterator[int], events: Any, scope: Any) -> None:
    """At the first, what is to be told still comes, for a bounded time; at the second it is lost."""
    import trio

    from tinyvisor.runtime.tracer import DETACH_PATIENCE

    asked = False
    async for _ in signals:
        if asked:
            scope.cancel()
        asked, scope.deadline = True, trio.current_time() + DETACH_PATIENCE
        await events.let_go()


def _told(options: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked of the tracer, besides which calls."""
    text = not (options["as_json"] or options["files"] or options["net"])
    return {"string_limit": options["string_limit"], "summary": options["summary"], "interleaved": text}


def _processes(target: str, project_name: str | None) -> tuple[list[int], list[int]]:
    """What to seize: (processes, those whose descendants)."""
    if not target.isdecimal():
        from tinyvisor.cli.services import client_for

        pids = [item["pid"] for item in client_for(project_name).get(f"/v1/services/{target}") if item["pid"]]
        if not pids:
            raise TinyvisorError(f'service "{target}" is not running')
        return [], pids
    try:
        comm = Path(f"/proc/{target}/comm").read_text()
    except OSError:
        raise TinyvisorError(f"there is no process {target}") from None
    return ([], [int(target)]) if comm.startswith("tinyvisor-init") else ([int(target)], [])
