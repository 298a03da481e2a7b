"""Finds a cluster, or makes one on this machine. Everything that waits here can be interrupted."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tinyvisor.errors import HostError, SpecError, TinyvisorError

LOCAL: Final = re.compile(r"local:([1-9][0-9]{0,3})")
ADDRESS: Final = re.compile(r"(tcp|tls|ws|wss|ucx)://\S+")
PATIENCE: Final = "30s"
"""How long a scheduler may take to answer."""


@dataclass(frozen=True, slots=True)
class Place:
    """A cluster, as ``--cluster`` names it; one of these is set.

    Attributes:
        local: workers to start on this machine.
        address: of a scheduler.
        file: that a scheduler has written (``--scheduler-file``).
    """

    local: int = 0
    address: str = ""
    file: Path | None = None


def parse_place(text: str) -> Place:
    """``"local:4"``, ``"tcp://host:8786"``, ``"tls://host:8786"``, or a scheduler file.

    Raises:
        ValueError: it is none of them.
    """
    if match := LOCAL.fullmatch(text):
        return Place(local=int(match[1]))
    if ADDRESS.fullmatch(text):
        return Place(address=text)
    if "://" in text or text.startswith("local:") or not text:
        raise ValueError(f'"{text}" is no cluster; expected local:N, tcp://HOST:PORT, tls://HOST:PORT or a scheduler file')
    return Place(file=Path(text))


@dataclass(frozen=True, slots=True)
class Credentials:
    """PEM files for TLS in both directions.

    Attributes:
        ca: who may have signed the other side's certificate.
        certificate, key: our own.
    """

    ca: Path
    certificate: Path
    key: Path


def check_installed() -> None:
    """Raises HostError where distributed is not installed; imports nothing."""
    if importlib.util.find_spec("distributed") is None:
        raise HostError("--cluster needs distributed, which is not installed", "pip install 'tinyvisor[cluster]'")


@contextlib.contextmanager
def connected(place: Place, credentials: Credentials | None = None) -> Iterator[Any]:
    """A `distributed.Client` of the cluster. Workers that were started for it end with it.

    Raises:
        HostError: distributed is not installed.
        TinyvisorError: the scheduler can't be reached; the credentials are no good.
    """
    check_installed()
    import distributed

    for name in tuple(logging.root.manager.loggerDict):
        if name.startswith(("distributed", "tornado", "asyncio")):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what concerns a user is told by us
    target: Any = _address(place)
    security = _security(credentials)
    if target.startswith("tls:") and security is None and not distributed.Security().tls_client_cert:
        raise TinyvisorError(f"{target} wants certificates; give --tls-ca-file, --tls-cert and --tls-key")
    with contextlib.ExitStack() as stack:
        try:
            if place.local:
                security = security or distributed.Security.temporary()  # other users can connect to the loopback interface
                target = stack.enter_context(_local_cluster(place.local, security))
            client = stack.enter_context(
                distributed.Client(target, security=security, timeout=PATIENCE, set_as_default=False, name="tinyvisor-batch")
            )
        except (ImportError, OSError, RuntimeError, TimeoutError, TypeError, ValueError) as error:
            where = target if isinstance(target, str) else f"{place.local} workers on this machine"
            raise TinyvisorError(f"the cluster can't be reached: {where}: {_line(error)}") from None
        yield client


@contextlib.contextmanager
def _safe_path() -> Iterator[None]:
    """Workers, and whatever else multiprocessing starts, are run with -c, which looks for modules in the working directory first:
    whoever can write a json.py there would be root with us."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        del os.environ["PYTHONSAFEPATH"]
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before


QUIET: Final[dict[str, Any]] = {
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.tick.interval": "1s",
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.scheduler.work-stealing": False,
    "distributed.worker.profile.enabled": False,
}
"""What Dask watches of itself takes some percent of a CPU in every process; nobody looks at it here."""


@contextlib.contextmanager
def _local_cluster(workers: int, security: Any) -> Iterator[Any]:
    import dask
    import distributed

    with (
        _safe_path(),
        dask.config.set(QUIET),
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=max(1, len(os.sched_getaffinity(0)) // workers),
            memory_limit=0,  # jobs have limits of their own, and a worker holds bounded results
            dashboard_address=None,
            worker_dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # its HTTP server is there even so, else on port 8787
            host="127.0.0.1",
            security=security,
            silence_logs=logging.CRITICAL,
        ) as cluster,
    ):
        yield cluster


def _address(place: Place) -> str:
    """A scheduler's; read from its file by us, for a client waits for ever until there is one."""
    if place.file is None:
        return place.address
    try:
        return str(json.loads(place.file.read_bytes())["address"])
    except OSError as error:
        raise TinyvisorError(f"{place.file} can't be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise TinyvisorError(f"{place.file} was not written by a scheduler (--scheduler-file)") from None


def _security(credentials: Credentials | None) -> Any:
    import distributed

    if credentials is None:
        return None
    try:
        security = distributed.Security(
            require_encryption=True,
            tls_ca_file=str(credentials.ca),
            **{f"tls_{role}_cert": str(credentials.certificate) for role in ("client", "scheduler", "worker")},
            **{f"tls_{role}_key": str(credentials.key) for role in ("client", "scheduler", "worker")},
        )
        security.get_connection_args("client")  # reads them
    except (OSError, ValueError) as error:
        raise SpecError("tls", f"the certificates can't be used: {_line(error)}") from None
    return security


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
