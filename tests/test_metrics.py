"""What Prometheus is told, and the dashboard that shows it."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import wait_all_tasks_blocked

from tests.bench import ALWAYS, service
from tests.fake_runtime import Script
from tests.kernel.command import ROOT, tinyvisor
from tests.test_control import Rig, read_all, request, rig
from tests.test_control import anyio_backend as anyio_backend
from tinyvisor.control import MAX_SCRAPES, SCRAPE_PATIENCE
from tinyvisor.metrics import BUCKETS, Histogram, Tally
from tinyvisor.spec import Healthcheck
from tinyvisor.state import Exit, LogLost, ServiceExited, ServiceStarted, StopHeldUp

pytestmark = pytest.mark.anyio
OOM = Exit(status="memory_limit", signal=9, oom_killed=True, cpu_user=3.0, cpu_system=1.0)


async def scraped(r: Rig) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Values by name of the sample and labels (but the project's)."""
    answer = await r.raw(request("GET", "/metrics"))
    head, _, text = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"text/plain" in head
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text.decode()):
        assert family.documentation
        for sample in family.samples:
            labels = {key: value for key, value in sample.labels.items() if key != "project"}
            found.setdefault(sample.name, {})[tuple(sorted(labels.items()))] = sample.value
    return found


def of(container: str, name: str = "", **more: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({"container": container, "service": name or container, **more}.items()))


async def test_what_is_told(tmp_path: Path) -> None:
    scripts = {"a": [Script(seconds=1, exit=OOM, launch_seconds=0.03), Script(launch_seconds=0.03)]}
    check = Healthcheck(test=("x",), interval=1)
    async with rig(tmp_path, service("a", ALWAYS), service("b", scale=2, healthcheck=check), scripts=scripts) as r:
        await trio.sleep(30)
        found = await scraped(r)
        assert found["tinyvisor_service_state"][of("a", state="running")] == 1
        assert found["tinyvisor_service_state"][of("a", state="failed")] == 0
        assert found["tinyvisor_service_restarts_total"] == {of("a"): 1, of("b-1", "b"): 0, of("b-2", "b"): 0}
        assert found["tinyvisor_service_cpu_seconds_total"][of("a")] == 4 + 2, "of the one that has ended, too"
        assert found["tinyvisor_service_oom_kills_total"][of("a")] == 1
        assert found["tinyvisor_service_memory_bytes"][of("b-1", "b")] == 4096
        assert found["tinyvisor_service_pids"][of("b-2", "b")] == 2
        assert found["tinyvisor_service_health"][of("b-1", "b", health="healthy")] == 1
        assert of("a", health="healthy") not in found["tinyvisor_service_health"]
        assert found["tinyvisor_service_exits_total"] == {of("a", status="memory_limit"): 1}
        assert found["tinyvisor_launch_seconds_count"] == {(): 4}
        assert found["tinyvisor_launch_seconds_bucket"][(("le", "0.05"),)] == 4
        assert found["tinyvisor_launch_seconds_bucket"][(("le", "0.02"),)] == 2
        assert found["tinyvisor_control_clients"] == {(): 1}
        assert found["process_resident_memory_bytes"][()] > 1 << 20


async def test_without_prometheus_client_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    async with rig(tmp_path, service("a")) as r:
        assert await r.ask("GET", "/metrics") == (
            501,
            {"problems": ["metrics need prometheus-client: pip install 'tinyvisor[metrics]'"]},
        )


@contextlib.contextmanager
def serving_metrics(rig: Rig) -> Iterator[int]:
    """The port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        rig.nursery.start_soon(rig.control.serve_metrics, listener)
        yield listener.getsockname()[1]


async def test_a_port_has_metrics_and_nothing_else(tmp_path: Path) -> None:
    async with rig(tmp_path, service("a")) as r:
        with serving_metrics(r) as port:
            idle = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(MAX_SCRAPES + 3)]
            await wait_all_tasks_blocked()
            assert (await r.ask("GET", "/v1/project"))[0] == 200, "they take no client's place"
            for path, status in (("/metrics", b"200"), ("/v1/services", b"404"), ("/v1/down", b"405")):
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    await stream.send_all(request("GET", path))
                    assert (await read_all(stream)).startswith(b"HTTP/1.1 " + status)
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(request("POST", "/v1/services/stop", b"{}"))
                assert (await read_all(stream)).startswith(b"HTTP/1.1 404")
            for each in idle:
                await each.aclose()
            assert r.bench.states() == {"a": "running"}


async def test_slow_scrapes_hold_no_place_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither those that ask for nothing, which make room at once, nor those that have asked and take their time."""
    forever = trio.Event()

    async def never(*_: object) -> None:
        await forever.wait()

    async with rig(tmp_path, service("a")) as r:
        with serving_metrics(r) as port:
            slow = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(MAX_SCRAPES)]
            with monkeypatch.context() as patch:
                patch.setattr("tinyvisor.control._Client.send_whole", never)
                for each in slow:
                    await each.send_all(request("GET", "/metrics"))
                async with await trio.open_tcp_stream("127.0.0.1", port) as refused:
                    with contextlib.suppress(trio.BrokenResourceError):  # a reset: its request was not read
                        await refused.send_all(request("GET", "/metrics"))
                        assert await read_all(refused) == b""
                await trio.sleep(SCRAPE_PATIENCE + 1)
            for each in slow:
                assert await read_all(each) == b""
                await each.aclose()
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(request("GET", "/metrics"))
                assert (await read_all(stream)).startswith(b"HTTP/1.1 200")


def test_histogram() -> None:
    histogram = Histogram()
    for seconds in (0.0, BUCKETS[0], 0.3, 1000.0):
        histogram.observe(seconds)
    found = dict(histogram.cumulative())
    assert (found["0.001"], found["0.2"], found["0.5"], found["10.0"], found["+Inf"]) == (2, 2, 3, 3, 4)
    assert histogram.total == pytest.approx(1000.301)


def test_tally() -> None:
    tally = Tally()
    for event in (
        ServiceStarted("a", 1, 0.1),
        ServiceExited("a", OOM),
        ServiceExited("a", OOM),
        StopHeldUp("a", ("x[1]",)),
        LogLost("a", 7, 100, "full"),
    ):
        tally.event(event)
    assert (tally.oom_kills["a"], tally.held_up["a"], tally.lost_lines["a"]) == (2, 1, 7)
    assert tally.exits == {("a", "memory_limit"): 2}


async def test_dashboard_names_what_there_is(tmp_path: Path) -> None:
    dashboard = json.loads((ROOT / "tinyvisor/grafana.json").read_text())
    assert json.loads(tinyvisor("metrics", "--grafana").stdout) == dashboard
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions += [item.get("query", "") for item in dashboard["templating"]["list"]]
    named = set(re.findall(r"\b(?:tinyvisor|process)_\w+", " ".join(expressions)))
    labels = set(re.findall(r"(\w+)=~?\"|by \(([^)]*)\)|\{\{(\w+)\}\}", " ".join(expressions)))
    used = {word for found in labels for part in found for word in re.findall(r"\w+", part)}
    async with rig(tmp_path, service("a", ALWAYS), scripts={"a": [Script(seconds=1, exit=OOM), Script()]}) as r:
        await trio.sleep(30)
        told = await scraped(r)
        r.bench.events.clear()
        for event in (StopHeldUp("a", ("x[1]",)), LogLost("a", 1, 1, "")):
            r.control._tally.event(event)  # type: ignore[union-attr]
        told |= await scraped(r)
    missing = named - set(told) - {"tinyvisor_service_health"}  # of which this project tells nothing
    assert not missing
    known: Any = {key for samples in told.values() for sample in samples for key, _ in sample}
    assert used <= known | {"project", "health", "le"}
