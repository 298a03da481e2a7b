"""`tinyvisor up`: options, then `tinyvisor.cli.session`, which runs the project."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tinyvisor.cli import pid1
from tinyvisor.cli.project import check_services, default_paths, load_project, project_options, split_words
from tinyvisor.errors import TinyvisorError
from tinyvisor.places import can_live, log_directory
from tinyvisor.spec import Project

if TYPE_CHECKING:
    from tinyvisor.cli.standby import Standby


@click.command()
@click.argument("words", metavar="[PATH|SERVICE]...", nargs=-1)
@project_options
@click.option(
    "--only", multiple=True, metavar="SERVICE", help="Start this one and what it depends on; the same as to name it like a PATH."
)
@click.option("-d", "--detach", is_flag=True, help="In the background: see ps, logs, down.")
@click.option(
    "--live/--no-live",
    default=None,
    help="With -d: whether containers outlive the daemon, and the next up -d takes them over. Default: yes.",
)
@click.option("--daemon-fd", type=int, hidden=True)
@click.option("--project-fd", type=int, hidden=True)
@click.option("--only-what-is-left", is_flag=True, hidden=True)
@click.option("--linger", is_flag=True, help="Go on while nothing runs, until tinyvisor down or a signal; -d does.")
@click.option(
    "--socket-group",
    metavar="GROUP",
    default="",
    envvar="TINYVISOR_SOCKET_GROUP",
    help="Let the members of GROUP give commands, too: that is as good as root. Only root can.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Metrics for Prometheus at http://127.0.0.1:PORT/metrics, for every user of this host.",
)
@click.option("--exit-code-from", metavar="SERVICE", help="Stop everything when SERVICE ends, and exit with its code.")
@click.option("--abort-on-container-failure", is_flag=True, help="Stop everything when a service fails for good.")
@click.option("--no-color", is_flag=True, help="No colours; the same as NO_COLOR=1.")
@click.option("--no-log-prefix", is_flag=True, help="Lines without their service's name.")
@click.option("--timestamps", is_flag=True, help="Lines with the time.")
@click.option(
    "--log-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="One log file per service. Default: /var/log/tinyvisor/PROJECT.",
)
def up(
    words: Sequence[str],
    project_name: str | None,
    env_file: Path | None,
    profiles: Sequence[str],
    only: Sequence[str],
    detach: bool,
    live: bool | None,
    daemon_fd: int | None,
    project_fd: int | None,
    only_what_is_left: bool,
    linger: bool,
    socket_group: str,
    metrics_port: int | None,
    exit_code_from: str | None,
    abort_on_container_failure: bool,
    no_color: bool,
    no_log_prefix: bool,
    timestamps: bool,
    log_dir: Path | None,
) -> int:
    """Start the services of a project and watch them until they end.

    PATH is a file or a directory of YAML files; without one configs/, else tinyvisor.yaml. With SERVICE only that one is
    started, and what it depends on; tinyvisor start starts others later. Ends by itself when nothing is left to run. Ctrl-C
    stops everything in order, a second one kills.

    The other commands act on it meanwhile, from any terminal. Started by systemd with Type=notify it tells it when all services
    run, and takes part in its watchdog: see tinyvisor systemd. As PID 1 of a container it has an init above itself.

    With -d it returns when all services run, and goes on until tinyvisor down, or a SIGTERM. Where the project runs already, its
    files are read anew, what has changed is changed, as by tinyvisor reload, and what somebody has stopped is started. Should the
    daemon be killed, its containers run on, and the next up -d takes them over; with --no-live they are killed with it.

    Exits with 0 when all went well, 1 when a service failed for good, 2 when the configuration or this host is at fault.
    """
    if detach and (exit_code_from or abort_on_container_failure):
        raise click.UsageError("-d does not go with --exit-code-from and --abort-on-container-failure")
    if live and not detach and daemon_fd is None:
        raise click.UsageError("--live goes with -d")
    paths: Sequence[Path]
    paths, names = split_words(words)
    only = [*only, *names]

    def with_all_profiles() -> Project:
        return load_project(paths, project_name, env_file, ["*"])

    if detach:
        from tinyvisor.cli.standby import Standby

        with Standby() as standby:
            project = load_project(paths, project_name, env_file, profiles)
            check_services(only, project, paths or default_paths(), with_all_profiles)
            if _is_running(project.name):
                standby.discard()
                return _reload(project.name, paths or default_paths(), only)
            survives = _is_left(project.name) or (can_live() if live is None else live)
            options = [
                *(["--live"] if survives else []),
                *(["--env-file", str(env_file.absolute())] if env_file is not None else []),
                *(word for profile in profiles for word in ("--profile", profile)),
                *(word for name in only for word in ("--only", name)),
                *(["--socket-group", socket_group] if socket_group else []),
                *(["--metrics-port", str(metrics_port)] if metrics_port is not None else []),
            ]
            return _detach(project, paths, log_dir, options, standby)
    pid1.leave()
    from tinyvisor.cli.daemon import take_over

    def load() -> Project:
        if only_what_is_left:  # by the daemon before; it is about to be stopped, and its files may be gone
            return Project(name=project_name or "", services={})
        return load_project(paths, project_name, env_file, profiles)

    project = load() if project_fd is None else take_over(project_fd)
    if not only_what_is_left:
        paths = paths or default_paths()
        check_services(only, project, paths, with_all_profiles)
    log_dir = _logs_of(project, log_dir)

    from tinyvisor.cli.outside import Outside

    outside = Outside(socket_group, metrics_port)
    if daemon_fd is not None:
        from tinyvisor.cli.daemon import run_daemon

        return run_daemon(
            project,
            log_dir=log_dir,
            word_fd=daemon_fd,
            reread=load,
            paths=paths,
            outside=outside,
            live=bool(live),
            only=only,
            as_left=only_what_is_left,
        )
    if _is_left(project.name):
        from tinyvisor.client import abandoned

        raise TinyvisorError(abandoned(project.name))

    from tinyvisor.cli.session import run_project
    from tinyvisor.cli.summary import print_summary
    from tinyvisor.runtime import rootless
    from tinyvisor.supervisor import exit_code
    from tinyvisor.view import Style, View

    colour = wants_colour(no_color)
    style = Style(colour=colour, prefix=not no_log_prefix, timestamps=timestamps)
    sys.stdout.flush()
    rootless.enter()
    with View(1, project.instances, log_dir=log_dir, style=style) as view:
        summaries = run_project(
            project,
            view,
            log_dir=log_dir,
            paths=paths,
            reread=load,
            outside=outside,
            only=only,
            exit_code_from=exit_code_from,
            abort_on_container_failure=abort_on_container_failure,
            linger=linger,
        )
    if not view.deaf:
        print_summary([asdict(summary) for summary in summaries], colour=colour)
    return exit_code(summaries, exit_code_from)


def _logs_of(project: Project, log_dir: Path | None) -> Path:
    return log_dir.absolute() if log_dir is not None else log_directory() / project.name


def _is_left(name: str) -> bool:
    from tinyvisor.client import is_abandoned

    return is_abandoned(name)


def _is_running(name: str) -> bool:
    from tinyvisor.client import is_running

    return is_running(name)


def _reload(name: str, paths: Sequence[Path], only: Sequence[str]) -> int:
    """What runs becomes as its files say now, and what is stopped is started, or of that `only`; returns when it runs.

    Raises:
        TinyvisorError: it runs from other files.
    """
    from tinyvisor.cli.services import Starting, reload_project, show_results
    from tinyvisor.client import Client

    client = Client(name)
    theirs = client.get("/v1/project").get("paths")
    if theirs != [os.path.normpath(path.absolute()) for path in paths]:
        others = ", ".join(theirs or ["elsewhere"])
        raise TinyvisorError(
            f'the project "{name}" is running already, from {others}; give another name with -p, or stop it with down'
        )
    if code := reload_project(client):
        return code
    services = {"service": list(only)}
    stopped = [item["name"] for item in client.get("/v1/services", services) if item["state"] == "stopped"]
    if stopped:
        show_results(client.post("/v1/services/start", {"services": stopped}))
    found = client.get("/v1/wait", services | {"until": "running"}, meanwhile=Starting(client, only).watch)
    return int(any(item["state"] == "failed" for item in found))


def _detach(project: Project, paths: Sequence[Path], log_dir: Path | None, options: Sequence[str], standby: Standby) -> int:
    """The same project once more, in a process of its own."""
    from tinyvisor.cli.daemon import start_daemon

    arguments = ["-p", project.name, "--log-dir", str(_logs_of(project, log_dir)), *options]
    arguments += ["--", *(str(path.absolute()) for path in paths or default_paths())]
    return start_daemon(arguments, project.name, _logs_of(project, log_dir), standby=standby, project=project)


def wants_colour(no_color: bool) -> bool:
    """Source: no-color.org."""
    return not no_color and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and sys.stdout.isatty()
