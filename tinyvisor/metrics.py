"""What Prometheus is told of a project. Counting needs nothing; the text needs prometheus-client, the extra ``metrics``.

Counters go on over a service's containers: what a container has used is added up when it ends, so that an OOM kill between
two scrapes is not lost. Names and units: prometheus.io/docs/practices/naming.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, get_args

from tinyvisor.errors import TinyvisorError
from tinyvisor.policy import Phase
from tinyvisor.state import Event, LogLost, ServiceExited, ServiceStarted, ServiceSummary, Stats, StopHeldUp

if TYPE_CHECKING:
    from prometheus_client.core import Metric

BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds."""

HEALTH: Final = ("starting", "healthy", "unhealthy")


class NotInstalled(TinyvisorError):
    """prometheus-client is not there."""

    def __init__(self) -> None:
        super().__init__("metrics need prometheus-client: pip install 'tinyvisor[metrics]'")


@dataclass
class Histogram:
    """How often something took how long.

    Attributes:
        counts: of each of `BUCKETS`, and of what took longer than all.
        total: seconds.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    def cumulative(self) -> list[tuple[str, float]]:
        """As Prometheus has it."""
        found: list[tuple[str, float]] = []
        seen = 0
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), self.counts, strict=True):
            seen += count
            found.append((bound, seen))
        return found


class Tally:
    """What has happened so far. `event` gets every event of a supervisor."""

    def __init__(self) -> None:
        self.launches: Histogram = Histogram()
        self.exits: Counter[tuple[str, str]] = Counter()
        self.oom_kills: Counter[str] = Counter()
        self.held_up: Counter[str] = Counter()
        self.lost_lines: Counter[str] = Counter()

    def event(self, event: Event) -> None:
        match event:
            case ServiceStarted():
                self.launches.observe(event.seconds)
            case ServiceExited(name, exit):
                self.exits[name, exit.status] += 1
                self.oom_kills[name] += exit.oom_killed
            case StopHeldUp(name):
                self.held_up[name] += 1
            case LogLost(name, lines):
                self.lost_lines[name] += lines


def expose(
    project: str,
    summaries: Iterable[ServiceSummary],
    stats: Mapping[str, Stats],
    tally: Tally,
    *,
    clients: int,
    version: str,
) -> tuple[str, bytes]:
    """The text for Prometheus, and its content type.

    Args:
        stats: of what runs, by instance.
        clients: connections to the control API.

    Raises:
        NotInstalled: prometheus-client is not there.
    """
    try:
        from prometheus_client import CollectorRegistry, ProcessCollector
        from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
    except ImportError:
        raise NotInstalled from None
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected([*_services(project, list(summaries), stats, tally), *_own(project, tally, clients, version)]))
    ProcessCollector(registry=registry)  # of the daemon itself
    return CONTENT_TYPE_LATEST, generate_latest(registry)


class _Collected:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _services(project: str, summaries: list[ServiceSummary], stats: Mapping[str, Stats], tally: Tally) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    labels = ("project", "service", "container")
    of = {it.name: (project, it.service or it.name, it.name) for it in summaries}

    def family(kind: Any, name: str, help: str, values: Iterable[tuple[str, float | None]]) -> Metric:
        found = kind(f"tinyvisor_service_{name}", help, labels=labels)
        for instance, value in values:
            if value is not None and instance in of:
                found.add_metric(of[instance], value)
        return found  # type: ignore[no-any-return]

    def one_of(name: str, help: str, label: str, choices: Iterable[str], values: Mapping[str, str]) -> Metric:
        found = GaugeMetricFamily(f"tinyvisor_service_{name}", help, labels=(*labels, label))
        for instance, value in values.items():
            for choice in choices:
                found.add_metric((*of[instance], choice), float(choice == value))
        return found

    yield one_of("state", "1 for the state that it is in", "state", get_args(Phase), {it.name: it.state for it in summaries})
    yield one_of(
        "health", "1 for what its healthcheck says", "health", HEALTH, {it.name: it.health for it in summaries if it.health}
    )
    yield family(CounterMetricFamily, "restarts", "Launches after the first", ((it.name, it.restarts) for it in summaries))
    yield family(
        CounterMetricFamily,
        "cpu_seconds",
        "CPU time of all of its containers",
        ((it.name, it.cpu + _cpu(stats.get(it.name))) for it in summaries),
    )
    yield family(
        CounterMetricFamily,
        "oom_kills",
        "Containers that ended by the OOM killer, and kills in the one that runs",
        ((it.name, tally.oom_kills[it.name] + stats.get(it.name, Stats()).oom_kills) for it in summaries),
    )
    yield family(
        CounterMetricFamily,
        "pids_limit_hits",
        "Forks of the running container refused by pids_limit",
        ((name, it.pids_limit_hits) for name, it in stats.items()),
    )
    yield family(GaugeMetricFamily, "memory_bytes", "Memory now", ((name, it.memory) for name, it in stats.items()))
    yield family(
        GaugeMetricFamily, "memory_peak_bytes", "Memory at most so far", ((name, it.memory_peak) for name, it in stats.items())
    )
    yield family(GaugeMetricFamily, "pids", "Processes and threads now", ((name, it.pids) for name, it in stats.items()))
    yield family(CounterMetricFamily, "stops_held_up", "Stops that outlived the grace period", tally.held_up.items())
    yield family(CounterMetricFamily, "log_lines_lost", "Lines that could not be written to the log", tally.lost_lines.items())
    exits = CounterMetricFamily("tinyvisor_service_exits", "Ends of containers", labels=(*labels, "status"))
    for (name, status), count in tally.exits.items():
        if name in of:
            exits.add_metric((*of[name], status), count)
    yield exits


def _cpu(stats: Stats | None) -> float:
    return 0.0 if stats is None else (stats.cpu_user or 0.0) + (stats.cpu_system or 0.0)


def _own(project: str, tally: Tally, clients: int, version: str) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily

    launches = HistogramMetricFamily("tinyvisor_launch_seconds", "From the request to a running container", labels=("project",))
    launches.add_metric((project,), tally.launches.cumulative(), tally.launches.total)
    yield launches
    open_clients = GaugeMetricFamily("tinyvisor_control_clients", "Connections to the control API", labels=("project",))
    open_clients.add_metric((project,), clients)
    yield open_clients
    build = GaugeMetricFamily("tinyvisor_build_info", "1, with the version", labels=("project", "version"))
    build.add_metric((project, version), 1)
    yield build
