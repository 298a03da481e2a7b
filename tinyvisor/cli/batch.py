"""`tinyvisor batch`: options, then `tinyvisor.cli.batchrun`, which runs the jobs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from tinyvisor.cli.parsed import Option, Parsed
from tinyvisor.cli.run import CONTAINER, DURATION, FILE, SIZE, container_fields, with_options
from tinyvisor.errors import ConfigError, TinyvisorError
from tinyvisor.spec import Spec
from tinyvisor.state import Status

if TYPE_CHECKING:
    from tinyvisor.cluster.connect import Credentials, Place
    from tinyvisor.jobs import Draft


def parse_concurrency(text: str) -> int:
    """``"8"``, or ``"150%"`` of the CPUs that we may use."""
    match = re.fullmatch(r"([0-9]{1,6})(%?)", text.strip())
    if match is None or not int(match[1]):
        raise ValueError(f'"{text}" is not a number of jobs; expected one such as 8, or 200% of the CPUs')
    return max(1, int(match[1]) * cpus() // 100) if match[2] else int(match[1])


def check_concurrency(text: str) -> str:
    """`text`, where `parse_concurrency` takes it: whose CPUs a percentage is of shows later."""
    parse_concurrency(text)
    return text.strip()


def parse_statuses(text: str) -> frozenset[str]:
    """``"time_limit,signaled"``."""
    found = frozenset(filter(None, (word.strip() for word in text.split(","))))
    known = [status for status in get_args(Status) if status not in ("ok", "unknown")]
    for status in sorted(found.difference(known)):
        raise ValueError(f'"{status}" is not a status; expected some of {", ".join(known)}')
    return found


def parse_report(text: str) -> Path:
    """A path that ends in .html or .md."""
    if not text.endswith((".html", ".md")):
        raise ValueError(f'"{text}" is neither a .html nor a .md file')
    return Path(text)


def _parse_place(text: str) -> Place:
    from tinyvisor.cluster.connect import parse_place

    return parse_place(text)


def cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))


TLS = ("tls_ca_file", "tls_cert", "tls_key")

OPTIONS: tuple[Option, ...] = (
    click.option("--each", metavar="COMMAND", help="Run COMMAND for every argument, {} being the argument."),
    click.option("--jobs", "-j", type=Parsed("n|n%", check_concurrency), help="At once (per node). Default: one per CPU."),
    click.option("--memory-budget", type=SIZE, help="The memory limits of running jobs together stay below (per node)."),
    click.option("--cluster", type=Parsed("where", _parse_place), help="Run on Dask: tcp://HOST:PORT, FILE or local:N."),
    click.option("--tls-ca-file", type=FILE, metavar="PEM", help="Of the cluster's certificates."),
    click.option("--tls-cert", type=FILE, metavar="PEM", help="Ours, for the cluster."),
    click.option("--tls-key", type=FILE, metavar="PEM", help="Of --tls-cert."),
    click.option("--retries", type=click.IntRange(min=0), default=0, metavar="N", help="More attempts after sandbox_error."),
    click.option("--retry-on", type=Parsed("status,...", parse_statuses), default=frozenset(), help="And after these."),
    click.option("--fail-fast", is_flag=True, help="The first job that is not ok ends the batch."),
    click.option("--results", type=FILE, metavar="FILE", help="A line of JSON per finished job; - is stdout."),
    click.option("--resume", is_flag=True, help="Skip the jobs that --results has already."),
    click.option("--output-dir", type=FILE, metavar="DIR", help="ID.out, ID.err, and what was collected below ID/."),
    click.option("--report", type=Parsed("file.html|.md", parse_report), help="Counts, slowest, histograms."),
    click.option("--skip-invalid", is_flag=True, help="Report bad jobs and run the others."),
    click.option("--verbose", is_flag=True, help="A line for every job, not only for those that fail."),
    click.option("--quiet", "-q", is_flag=True, help="Nothing but errors."),
    click.option("--defaults", type=FILE, metavar="FILE", help="YAML: what jobs say that say nothing else."),
    *CONTAINER,
    click.option("--cpu-time", type=DURATION, help="Kill everything after so much CPU time."),
    click.option("--output-limit", type=SIZE, help="Of stdout and stderr each; more is killed. Default: 1m."),
)


@click.command(context_settings={"help_option_names": ["--help"]})
@with_options(OPTIONS)
@click.argument("inputs", metavar="[JOBS|ARGUMENT]...", nargs=-1)
def batch(inputs: tuple[str, ...], **options: Any) -> int:
    """Run many jobs, each in a container of its own.

    JOBS are YAML files (a list of jobs, or jobs: and defaults:), JSON Lines, or - for JSON Lines on stdin, which run as they
    come. A job has the keys of a service's container and id, stdin, files, collect, repeat; the options say what jobs are
    that say nothing else. Files are checked as a whole before anything starts.

    With --each COMMAND the arguments, or lines of stdin, are put into COMMAND: {} whole, {.} without extension, {/} the last
    part, {//} the directory, {/.} the last part without extension, {#} the job's number. No shell sees them.

    With --cluster the jobs run on the workers of a Dask cluster, each of which needs tinyvisor: files, roots and profiles are
    this machine's, volumes are the nodes'. local:N is N workers on this machine.

    A job counts as done for --resume when its id and all it says, defaults included, are as they were. Ctrl-C kills what runs
    and starts nothing more.

    Exits with 0 when all jobs are ok, 1 when some are not, 2 when the input, the options or this host are at fault.
    """
    _check_options(inputs, options)

    from tinyvisor.cli.batchrun import Inputs, Settings, run_batch
    from tinyvisor.jobs import Reader

    reader = Reader(_base(options), environ=os.environ, warn=_warn(options["quiet"]), memory_budget=options["memory_budget"])
    found = Inputs(reader, inputs, template=_template(options["each"]), skip_invalid=options["skip_invalid"])
    concurrency = parse_concurrency(options["jobs"]) if options["jobs"] else cpus()
    return run_batch(found, Settings.of(options, concurrency=concurrency, credentials=_credentials(options)))


def _check_options(inputs: tuple[str, ...], options: Mapping[str, Any]) -> None:
    if not inputs and options["each"] is None:
        raise click.UsageError("name a file of jobs, - for stdin, or a command with --each")
    if options["resume"] and options["results"] is None:
        raise click.UsageError("--resume needs --results FILE")
    if options["each"] is None and inputs.count("-") > 1:
        raise click.UsageError("stdin can be read only once")
    if options["verbose"] and options["quiet"]:
        raise click.UsageError("--verbose and --quiet exclude each other")
    given = [options[name] is not None for name in TLS]
    if any(given) and (not all(given) or options["cluster"] is None):
        raise click.UsageError("--tls-ca-file, --tls-cert and --tls-key go together, and with --cluster")


def _credentials(options: Mapping[str, Any]) -> Credentials | None:
    if options["tls_key"] is None:
        return None
    from tinyvisor.cluster.connect import Credentials

    return Credentials(*(options[name] for name in TLS))


def _base(options: Mapping[str, Any]) -> Draft:
    """What the options say, and below it what --defaults says."""
    from tinyvisor.jobs import Draft, Invalid, Reader

    fields = {
        name: value
        for name, value in container_fields(options, os.environ).items()
        if value is not False and value not in ((), {}, frozenset())
    }
    fields |= {name: options[name] for name in ("cpu_time", "output_limit") if options[name] is not None}
    Spec(command=("-",), **fields)  # for its checks
    base = Draft(fields=fields)
    if options["defaults"] is None:
        return base
    found = Reader(environ=os.environ, warn=_warn(options["quiet"])).defaults(options["defaults"])
    if isinstance(found, Invalid):
        raise ConfigError(list(found.problems))
    return base.over(found)


def _template(text: str | None) -> Any:
    from tinyvisor.jobs import Template

    try:
        return None if text is None else Template(text)
    except ValueError as exc:
        raise TinyvisorError(f"--each: {exc}") from None


def _warn(quiet: bool) -> Any:
    from tinyvisor.cli.project import warn

    return (lambda text: None) if quiet else warn
