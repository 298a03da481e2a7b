"""systemd's side of a supervisor: what it is told (sd_notify), and the units that ask for it.

A word that can't be sent is no reason to fail: whoever listens there may be gone, and the containers are not.
Source: sd_notify(3), sd_watchdog_enabled(3), systemd.service(5), systemd.resource-control(5) (Delegate=).
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections import Counter
from collections.abc import Iterable, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from tinyvisor.cli.project import default_paths
from tinyvisor.errors import TinyvisorError
from tinyvisor.spec import check_name
from tinyvisor.state import ServiceSummary

if TYPE_CHECKING:
    from tinyvisor.control import Feed
    from tinyvisor.supervisor import Supervisor

STATUS_PERIOD: Final = 0.2
"""Seconds between two words about how the services stand, at least."""

STOP_PERIOD: Final = 5.0
"""Seconds between two words that the stop, which the services' own grace periods bound, takes a little longer."""


class Notifier:
    """Tells systemd, where that has started us and wants to know.

    Args:
        environ: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are taken out of it: they are for us alone.

    Attributes:
        watchdog: seconds between two signs of life; None where nobody waits for any.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        microseconds, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address if address.startswith("/") else ""
        self.watchdog: float | None = None
        if self._address and microseconds.isdecimal() and pid in ("", str(os.getpid())):
            self.watchdog = int(microseconds) / 2_000_000

    def __bool__(self) -> bool:
        return bool(self._address)

    def tell(self, *words: str) -> None:
        """Sends ``"READY=1"`` and the like."""
        if self._address:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto("\n".join(words).encode(), self._address)


async def keep_telling(notifier: Notifier, supervisor: Supervisor, feed: Feed) -> None:
    """Tells when all runs, how it stands after every change, that we live, and that we stop. Until cancelled."""
    import trio

    if not notifier:
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tell_ready, notifier, supervisor)
        nursery.start_soon(_tell_status, notifier, supervisor, feed)
        if notifier.watchdog is not None:
            nursery.start_soon(_tell_alive, notifier, notifier.watchdog)


async def _tell_ready(notifier: Notifier, supervisor: Supervisor) -> None:
    summaries = await supervisor.wait(until="running")
    notifier.tell("READY=1", f"STATUS={status(summaries)}")


async def _tell_status(notifier: Notifier, supervisor: Supervisor, feed: Feed) -> None:
    import trio

    with feed.listen() as listener:
        while await listener.take():
            if supervisor.stopping:
                break
            notifier.tell(f"STATUS={status(supervisor.summaries())}")
            with trio.move_on_after(STATUS_PERIOD):
                await supervisor.wait_stopping()
    await supervisor.wait_stopping()
    notifier.tell("STOPPING=1", f"STATUS=stopping: {status(supervisor.summaries())}")
    while True:
        notifier.tell(f"EXTEND_TIMEOUT_USEC={int(3 * STOP_PERIOD * 1_000_000)}")
        await trio.sleep(STOP_PERIOD)


async def _tell_alive(notifier: Notifier, period: float) -> None:
    """From the loop that does the work: what is stuck there is not alive."""
    import trio

    while True:
        notifier.tell("WATCHDOG=1")
        await trio.sleep(period)


def status(summaries: Iterable[ServiceSummary]) -> str:
    """One line: how many are what."""
    counts = Counter(summary.state for summary in summaries)
    return ", ".join(f"{count} {state}" for state, count in counts.most_common()) or "no services"


# ---- units ----


@click.command("systemd")
@click.option("--user", is_flag=True, help="For an ordinary user's own systemd.")
@click.option("--template", is_flag=True, help="For tinyvisor@NAME.service, with its files in /etc/tinyvisor/NAME.")
@click.option("-p", "--project-name", metavar="NAME", help="Default: the directory's name.")
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=click.Path(path_type=Path, exists=True))
def systemd(user: bool, template: bool, project_name: str | None, paths: Sequence[Path]) -> None:
    """Print a systemd unit that runs a project.

    \b
    tinyvisor systemd -p web configs/ > /etc/systemd/system/web.service
    tinyvisor systemd --template > /etc/systemd/system/tinyvisor@.service
    tinyvisor systemd --user -p web configs/ > ~/.config/systemd/user/web.service

    Then systemctl daemon-reload and systemctl enable --now web. All other commands act on it as on what up -d has started.
    """
    if template and (paths or project_name):
        raise click.UsageError("--template takes no name and no paths: they come with the unit's instance")
    if template:
        name, words = "%i", ["%E/tinyvisor/%i"]
    else:
        found = [path.absolute() for path in paths or default_paths()]
        name = project_name or _name_of(found[0])
        check_name("project", name)
        words = [str(path) for path in found]
    click.echo(unit(program(), name, words, user=user), nl=False)


def _name_of(path: Path) -> str:
    """As `config` names a project: by its directory; configs/ by the one around it would be a surprise."""
    return path.name if path.is_dir() else path.parent.name


def program() -> list[str]:
    """The words that start this very installation."""
    beside = Path(sys.executable).with_name("tinyvisor")
    return [str(beside)] if beside.exists() else [sys.executable, "-m", "tinyvisor"]


def unit(program: Sequence[str], name: str, paths: Sequence[str], *, user: bool) -> str:
    """The unit's text.

    Raises:
        TinyvisorError: a path that a unit can't have.
    """
    start = _quoted([*program, "up", "--linger", "-p", name, "--", *paths])
    reload = _quoted([*program, "reload", "-p", name])
    target = "default.target" if user else "multi-user.target"
    return f"""\
[Unit]
Description=tinyvisor: {name}
Documentation=man:tinyvisor(1)
{"" if user else "Wants=network-online.target" + chr(10) + "After=network-online.target local-fs.target" + chr(10)}
[Service]
Type=notify
ExecStart={start}
ExecReload={reload}
# A cgroup of its own, whose subtree systemd leaves alone: every container gets one below it.
Delegate=yes
# Containers are stopped by the supervisor, in order; what is left after that is systemd's to kill.
KillMode=mixed
WatchdogSec=30
Restart=on-failure
TasksMax=infinity
LimitNOFILE=1048576

[Install]
WantedBy={target}
"""


def _quoted(words: Sequence[str]) -> str:
    """Source: systemd.service(5), COMMAND LINES; ``%i`` and ``%E`` are ours and stay."""
    return " ".join(map(_quoted_word, words))


def _quoted_word(word: str) -> str:
    if not word.isprintable():
        raise TinyvisorError(f"{word!r}: a unit can't have such a path")
    if word in ("%i", "%E/tinyvisor/%i"):
        return word
    found = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{found}"' if not found or set(found) & set(" '\";") else found
