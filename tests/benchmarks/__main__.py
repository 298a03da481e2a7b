"""``python -m tests.benchmarks``: the table, and on request JSON, a plot, the floor's parts, or how it scales.

Rounds are interleaved: every contender once in each round, in turning order, so that a busy moment of the machine hits
all alike. Ratios are taken within a round; everything printed is a median over the rounds.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import trio

from tests.benchmarks.cluster import measure_cluster
from tests.benchmarks.contenders import RUN_PROCESS, Contender, Sample, open_contenders
from tests.benchmarks.floor import EVERYTHING, PARTS, Floor, open_floor
from tests.benchmarks.memory import idle_memory
from tests.benchmarks.scale import FDS, add_options, chosen_sizes, measure_scale
from tests.benchmarks.supervision import measure_supervision
from tests.benchmarks.tracing import measure_tracing
from tests.benchmarks.usual import have_a_usual_host, have_ranges

AT_ONCE = (1, 16)
SETTLE = 0.2  # seconds: the kernel takes network namespaces down in the background, on the next one's account
ROUND_LIMIT = 300.0  # seconds for one contender in one round

Rows = list[dict[str, Any]]


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:<40}\r", end="", file=sys.stderr, flush=True)


async def _round(contenders: list[Contender], count: int, concurrency: int) -> dict[str, Sample]:
    samples: dict[str, Sample] = {}
    for contender in contenders:
        await trio.sleep(SETTLE)
        with trio.fail_after(ROUND_LIMIT):
            samples[contender.name] = await contender.measure(max(concurrency, int(count * contender.share)), concurrency)
    return samples


async def compare(contenders: list[Contender], *, count: int, concurrency: int, rounds: int) -> Rows:
    """A row for each contender: medians over the rounds.

    Returns:
        dicts of ``name``, ``concurrency``, ``wall`` (seconds per container), ``rate`` (containers per second),
        ``ratio`` (of wall, to the floor), ``process_ratio`` (to `trio.run_process`, or None), ``cpu`` (seconds of Python per
        container, or None), ``walls`` (each round's).
    """
    contenders = [contender for contender in contenders if contender.takes_part(concurrency)]
    await _round(contenders, max(1, count // 10), concurrency)  # warms caches
    order, taken = list(contenders), []
    for number in range(rounds):
        _progress(f"{concurrency} at once: round {number + 1} of {rounds}")
        taken.append(await _round(order, count, concurrency))
        order.append(order.pop(0))
    rows = []
    for name in (contender.name for contender in contenders):
        walls = [samples[name].wall for samples in taken]
        wall = statistics.median(walls)
        cpus = [cpu for samples in taken if (cpu := samples[name].cpu) is not None]
        ratios = [ratio for samples in taken if (ratio := process_ratio(samples, name)) is not None]
        rows.append(
            {
                "name": name,
                "concurrency": concurrency,
                "wall": wall,
                "rate": 1 / wall,
                "ratio": statistics.median(samples[name].wall / samples["floor"].wall for samples in taken),
                "process_ratio": statistics.median(ratios) if ratios else None,
                "cpu": statistics.median(cpus) if cpus else None,
                "walls": walls,
            }
        )
    return rows


def process_ratio(samples: dict[str, Sample], name: str) -> float | None:
    """Of a contender's wall in one round to that of `trio.run_process`: of its own turns with it, or else of the round's."""
    sample = samples[name]
    process = sample.process
    if process is None and RUN_PROCESS in samples:
        process = samples[RUN_PROCESS].wall
    return None if process is None else sample.wall / process


def break_down(floor: Floor, *, count: int, rounds: int) -> Rows:
    """What each part of a container costs: the median over the rounds of the difference that leaving it out makes.

    Returns:
        dicts of ``part`` and ``wall`` (seconds); the whole first, and last what is left with every part out.
    """
    variants = sorted({(), EVERYTHING, *(part for pair in PARTS.values() for part in pair)})
    walls: dict[tuple[str, ...], list[float]] = {variant: [] for variant in variants}
    for number in range(rounds):
        _progress(f"parts: round {number + 1} of {rounds}")
        for variant, wall in zip(variants, floor.variants(count, variants), strict=True):
            walls[variant].append(wall)
    rows: Rows = [{"part": "everything", "wall": statistics.median(walls[()])}]
    for part, (without, reference) in PARTS.items():
        differences = [kept - left for kept, left in zip(walls[reference], walls[without], strict=True)]
        rows.append({"part": part, "wall": statistics.median(differences)})
    rows.append({"part": "rest: clone, root, /usr, vfork, wait", "wall": statistics.median(walls[EVERYTHING])})
    return rows


def print_rows(rows: Rows) -> None:
    """The table of `compare`, slowest last."""
    title = "one at a time" if rows[0]["concurrency"] == 1 else f"{rows[0]['concurrency']} at once"
    print(f"\n{title:<20}{'ms each':>10}{'per second':>12}{'x floor':>10}{'x process':>11}{'Python ms':>11}")
    for row in rows:
        cpu = "" if row["cpu"] is None else f"{row['cpu'] * 1e3:.3f}"
        process = "" if row["process_ratio"] is None else f"{row['process_ratio']:.2f}"
        print(f"{row['name']:<20}{row['wall'] * 1e3:>10.3f}{row['rate']:>12.0f}{row['ratio']:>10.2f}{process:>11}{cpu:>11}")


def print_parts(rows: Rows) -> None:
    """The table of `break_down`."""
    whole = rows[0]["wall"]
    print(f"\n{'the floor, one at a time':<40}{'ms':>10}{'share':>9}")
    for row in rows:
        print(f"{row['part']:<40}{row['wall'] * 1e3:>10.3f}{row['wall'] / whole:>9.1%}")


def plot(rows: Rows, file: Path) -> None:
    """Bars of both tables, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(AT_ONCE), figsize=(11, 4))
    for axis, concurrency in zip(axes, AT_ONCE, strict=True):
        shown = [row for row in rows if row["concurrency"] == concurrency]
        names = [row["name"] for row in shown]
        colours = ["#999999" if name == "floor" else "#1f77b4" if name.startswith("tinyvisor") else "#d0d0d0" for name in names]
        one = concurrency == 1
        values = [row["wall"] * 1e3 if one else row["rate"] for row in shown]
        bars = axis.barh(names, values, color=colours)
        axis.bar_label(bars, fmt="%.2f" if one else "%.0f", padding=3)
        axis.margins(x=0.15)
        axis.invert_yaxis()
        axis.set_title("one at a time: ms per container" if one else f"{concurrency} at once: containers per second")
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, dpi=150)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="tinyvisor against the kernel's own price")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default 7)")
    parser.add_argument("--count", type=int, default=400, help="containers a round (default 400; twice that for 16 at once)")
    parser.add_argument(
        "--memory", type=int, default=1000, metavar="N", help="idle containers to weigh, 0 for none (default 1000)"
    )
    parser.add_argument("--breakdown", action="store_true", help="the floor alone, part by part")
    parser.add_argument("--trace", action="store_true", help="what a tracer costs, ours and strace")
    parser.add_argument("--cluster", action="store_true", help="a batch on Dask beside one without; --count jobs in each round")
    parser.add_argument("--supervision", action="store_true", help="services by the thousand, restarts, logs; supervisord, s6")
    parser.add_argument("--services", type=int, default=1000, metavar="N", help="for --supervision (default 1000)")
    parser.add_argument("--only", metavar="NAMES", help="contenders besides the floor, by commas: tinyvisor,bwrap")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw them (needs matplotlib)")
    add_options(parser)
    options = parser.parse_args()
    try:
        options.sizes = chosen_sizes(options)
    except ValueError as exc:
        parser.error(str(exc))
    if options.rounds < 1 or options.count < 10 or options.memory < 0:
        parser.error("expected --rounds of 1 or more, --count of 10 or more, --memory of 0 or more")
    return options


async def _measure(options: argparse.Namespace, floor: Floor, scratch: Path) -> dict[str, Any]:
    rows: Rows = []
    async with open_contenders(floor, scratch) as contenders:
        if options.only:
            chosen = {"floor", *options.only.split(",")}
            contenders = [contender for contender in contenders if contender.name in chosen]
        for concurrency in AT_ONCE:
            count = options.count * (2 if concurrency > 1 else 1)
            part = await compare(contenders, count=count, concurrency=concurrency, rounds=options.rounds)
            print_rows(part)
            rows += part
    found: dict[str, Any] = {"results": rows}
    if options.memory:
        with trio.fail_after(ROUND_LIMIT):
            weighed = await idle_memory(options.memory)
        found["memory"] = weighed
        print(
            f"\nidle, {options.memory} containers: {weighed['per_container'] / 1024:.1f} KB each (launcher and init), "
            f"{weighed['python_per_container'] / 1024:.1f} KB each in Python; launcher {weighed['launcher'] / 1024:.0f} KB"
        )
    return found


def main() -> int:
    """Returns the exit status: 2 where this host can't do it."""
    options = _parse()
    if os.geteuid() != 0:
        print("the benchmarks need root", file=sys.stderr)
        return 2
    machine = {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    found: dict[str, Any] = {"machine": machine}
    if options.trace:
        found["trace"] = trio.run(measure_tracing, options.rounds)
        return _write(options.json, found)
    if options.cluster:
        with tempfile.TemporaryDirectory(prefix="tinyvisor-benchmarks-") as scratch:
            found["cluster"] = trio.run(measure_cluster, options.count, options.rounds, Path(scratch))
        return _write(options.json, found)
    if options.supervision:
        have_a_usual_host()
        with tempfile.TemporaryDirectory(prefix="tinyvisor-benchmarks-") as scratch:
            found["supervision"] = trio.run(measure_supervision, options.services, Path(scratch))
        return _write(options.json, found)
    with open_floor() as floor, tempfile.TemporaryDirectory(prefix="tinyvisor-benchmarks-") as scratch:
        if options.scale:
            have_ranges(options.sizes.idle + FDS)
            measure = functools.partial(measure_scale, floor=floor, rounds=options.rounds, scratch=Path(scratch))
            found["scale"] = trio.run(measure, options.sizes)
        elif options.breakdown:
            found["parts"] = break_down(floor, count=options.count, rounds=options.rounds)
            print_parts(found["parts"])
        else:
            found |= trio.run(_measure, options, floor, Path(scratch))
    if options.plot and "results" in found:
        plot(found["results"], options.plot)
    return _write(options.json, found)


def _write(file: Path | None, found: dict[str, Any]) -> int:
    if file:
        file.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
