"""Messages of sd_notify: what they mean, and a listener that hears them in the mock clock's time."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.bench import ALWAYS, bench, service
from tests.fake_runtime import OK, Script, failure
from tinyvisor.listener import MAX_BEFORE_NEWLINE, RATE
from tinyvisor.notify import MAX_STATUS, NOT_FOR_US, REFUSED, Notification, parse
from tinyvisor.spec import Dependency, Healthcheck, RestartPolicy
from tinyvisor.state import HealthChanged, NotifyRefused, ServiceBackoff, ServiceFailed

pytestmark = pytest.mark.anyio
NEEDS_IT = {"a": Dependency(condition="service_healthy")}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


# ---- what a message means ----


@pytest.mark.parametrize(
    ("message", "meaning"),
    [
        (b"READY=1", Notification(ready=True)),
        (b"READY=1\nSTATUS=up\nWATCHDOG=1\n", Notification(ready=True, status="up", alive=True)),
        (b"STOPPING=1", Notification(stopping=True)),
        (b"STATUS=", Notification(status="")),
        (b"STATUS=a=b", Notification(status="a=b")),
        ("STATUS=\x1b[2Jü\u202e".encode(), Notification(status="?[2Jü?")),
        (b"STATUS=" + b"x" * 1000, Notification(status="x" * MAX_STATUS)),
        (b"WATCHDOG=trigger", Notification(failed=True)),
        (b"WATCHDOG_USEC=2500000", Notification(watchdog=2.5)),
        (b"EXTEND_TIMEOUT_USEC=500", Notification(extends=0.0005)),
        (b"MAINPID=1\nMAINPID=2\nFDSTORE=1", Notification(refused=("MAINPID", "FDSTORE"))),
        (b"\xff", Notification(problem=NOT_FOR_US)),
        (b"READY=1\0", Notification(problem=NOT_FOR_US)),
    ],
)
def test_meanings(message: bytes, meaning: Notification) -> None:
    assert parse(message) == meaning


@pytest.mark.parametrize(
    "message",
    [
        b"", b"\n\n", b"READY=0", b"READY=11", b"READY", b"ready=1", b" READY=1", b"READY =1", b"WATCHDOG=2", b"X=1", b"=",
        b"WATCHDOG_USEC=999", b"WATCHDOG_USEC=-5", b"WATCHDOG_USEC=1e9", b"WATCHDOG_USEC=", b"RELOADING=1", b"BARRIER=1",
        b"EXTEND_TIMEOUT_USEC=infinity", b"EXTEND_TIMEOUT_USEC=1" + b"0" * 15,
        "WATCHDOG_USEC=٣٣٣٣".encode(), b"WATCHDOG_USEC=" + b"9" * 4000,
    ],
)  # fmt: skip
def test_what_makes_no_sense_says_nothing(message: bytes) -> None:
    assert parse(message) == Notification()


@given(
    st.binary(max_size=500)
    | st.lists(st.sampled_from(["READY=1", "STATUS=x", "MAINPID=", "\n", "\0", "="])).map(lambda parts: "".join(parts).encode())
)
def test_nothing_that_comes_is_an_error_or_grows(message: bytes) -> None:
    found = parse(message)
    assert len(found.status or "") <= MAX_STATUS
    assert (found.status or "").isprintable()
    assert set(found.refused) <= REFUSED.keys()
    assert len(set(found.refused)) == len(found.refused)


# ---- readiness ----


async def test_who_needs_it_healthy_waits_for_its_message() -> None:
    scripts = {"a": [Script(says=((1, b"STATUS=loading"), (5, b"READY=1\nSTATUS=serving"), (6, b"READY=1")))]}
    b = bench(service("a", ready_notify=True), service("b", depends_on=NEEDS_IT), scripts=scripts)
    await b.run_until(10)
    assert b.runtime.times("launch", "b") == [5]
    assert b.of(HealthChanged) == [HealthChanged("a", "healthy", "")]
    assert {item.name: item.status for item in b.supervisor.summaries()} == {"a": "serving", "b": ""}


async def test_who_says_that_it_stops_is_not_healthy_any_more() -> None:
    scripts = {"a": [Script(says=((1, b"READY=1"), (2, b"STOPPING=1"), (3, b"READY=1"), (3, b"STOPPING=1")))]}
    b = bench(service("a", ready_notify=True), scripts=scripts)
    health: list[str] = []
    async with b.live():
        for _ in range(3):
            await trio.sleep(1.5)
            health.append(b.supervisor.summaries()[0].health)
    assert health == ["healthy", "starting", "starting"]
    assert len(b.of(HealthChanged)) == 1


@pytest.mark.parametrize(
    ("newline", "ready"),
    [
        (((2, b"\n"),), 2),
        (((1, b"abc"), (3, b"def\nghi")), 3),
        (((1, b"abc"), (2, b"")), None),
        (((1, b"x" * MAX_BEFORE_NEWLINE), (2, b"\n")), None),
    ],
)
async def test_ready_by_a_newline(newline: tuple[tuple[float, bytes], ...], ready: float | None) -> None:
    scripts = {"a": [Script(newline=newline)]}
    b = bench(service("a", ready_fd=3), service("b", depends_on=NEEDS_IT), scripts=scripts)
    await b.run_until(10)
    assert b.runtime.times("launch", "b") == ([] if ready is None else [ready])
    assert [event.health for event in b.of(HealthChanged)] == ["unhealthy" if ready is None else "healthy"]


async def test_who_will_never_be_ready_may_be_started_again() -> None:
    scripts = {"a": [Script(newline=((1, b""),)), Script(newline=((1, b"\n"),))]}
    b = bench(service("a", ready_fd=3, on_unhealthy="restart"), scripts=scripts)
    await b.run_until(10)
    assert [event.reason for event in b.of(HealthChanged)] == ["it closed its ready_fd without a newline", ""]
    assert len(b.runtime.times("launch", "a")) == 2


# ---- a start that takes too long ----

NEVER = {"ready_notify": Script(), "ready_fd": Script(), "ready_log": Script(output=((1, "stdout", b"not yet\n"),))}


@pytest.mark.parametrize("way", NEVER)
async def test_who_is_not_ready_in_time_has_failed_to_start(way: str) -> None:
    """As one that crashes: the policy says what follows."""
    given: dict[str, Any] = {way: {"ready_notify": True, "ready_fd": 3, "ready_log": "^ready"}[way]}
    b = bench(service("a", start_timeout=30.0, **given), scripts={"a": [NEVER[way]]})
    with trio.fail_after(60):
        summaries = await b.run()
    assert [event.reason for event in b.of(ServiceFailed)] == ["it was not ready within 30.0s"]
    assert (summaries["a"].state, b.runtime.times("stop", "a")) == ("failed", [30])

    b = bench(service("a", ALWAYS, start_timeout=30.0, **given), scripts={"a": [NEVER[way]]})
    await b.run_until(65)
    assert [event.reason for event in b.of(ServiceBackoff)] == ["it was not ready within 30.0s"] * 2
    assert b.runtime.times("stop", "a")[:2] == pytest.approx([30, 60.1])


async def test_who_will_never_be_ready_is_told_so_when_its_time_is_over() -> None:
    b = bench(service("a", start_timeout=30.0, ready_fd=3), scripts={"a": [Script(newline=((1, b""),))]})
    await b.run()
    assert [event.reason for event in b.of(ServiceFailed)] == [
        "it was not ready within 30.0s: it closed its ready_fd without a newline"
    ]


async def test_who_is_ready_in_time_may_do_what_it_likes() -> None:
    """Also what it says later, or a healthcheck that has not passed yet, is not this limit's business."""
    says = ((29.0, b"READY=1"), (40.0, b"STOPPING=1"))
    slow: Any = lambda seconds, command: (0.0, failure() if seconds < 200 else OK, b"")  # noqa: E731
    check = Healthcheck(test=("x",), start_period=300, start_interval=50)
    b = bench(
        service("a", ready_notify=True, start_timeout=30.0),
        service("b", ready_notify=True, start_timeout=30.0, healthcheck=check),
        service("c", healthcheck=check, start_timeout=30.0),
        scripts={"a": [Script(says=says)], "b": [Script(says=((1.0, b"READY=1"),), exec=slow)], "c": [Script(exec=slow)]},
    )
    await b.run_until(250)
    assert sorted(event.name for event in b.of(HealthChanged) if event.health == "healthy") == ["a", "b", "c"]
    assert not b.of(ServiceFailed)


async def test_a_start_may_ask_for_more_time() -> None:
    """From then on, and never for less than it had; once it is ready, that is over."""
    says = ((1.0, b"EXTEND_TIMEOUT_USEC=1000000"), (29.0, b"EXTEND_TIMEOUT_USEC=20000000"))
    b = bench(service("a", ready_notify=True, start_timeout=30.0), scripts={"a": [Script(says=says)]})
    await b.run()
    assert [event.reason for event in b.of(ServiceFailed)] == ["it was not ready within 49.0s"]
    assert not b.of(NotifyRefused)
    says = ((1.0, b"READY=1"), (2.0, b"EXTEND_TIMEOUT_USEC=1"))
    b = bench(service("a", ready_notify=True, start_timeout=30.0), scripts={"a": [Script(says=says)]})
    await b.run_until(100)
    assert not b.of(ServiceFailed)


async def test_a_start_may_take_for_ever() -> None:
    b = bench(service("a", ready_notify=True, start_timeout=None), scripts={"a": [Script(says=((86400.0, b"READY=1"),))]})
    await b.run_until(86401)
    assert [event.health for event in b.of(HealthChanged)] == ["healthy"]


# ---- the watchdog ----


def pings(*times: float) -> tuple[tuple[float, bytes], ...]:
    return tuple((time, b"WATCHDOG=1") for time in times)


async def test_a_watchdog_that_runs_out_is_a_failure_to_be_restarted() -> None:
    b = bench(service("a", ALWAYS, watchdog=3), scripts={"a": [Script(says=pings(1, 2, 4)), Script(says=pings(*range(1, 99)))]})
    await b.run_until(30)
    assert b.runtime.times("stop", "a")[0] == 7
    assert [event.reason for event in b.of(ServiceBackoff)] == ["it has sent no WATCHDOG=1 for 3.0s"]
    assert len(b.runtime.times("launch", "a")) == 2


async def test_without_a_restart_policy_it_has_failed() -> None:
    b = bench(service("a", watchdog=3))
    await b.run()
    assert (b.took, b.of(ServiceFailed)) == (3, [ServiceFailed("a", "it has sent no WATCHDOG=1 for 3.0s")])


@pytest.mark.parametrize(
    ("says", "ready_notify", "ends"),
    [
        (((10, b"READY=1"),), True, 13),  # it begins once it is ready
        (((1, b"WATCHDOG=1"),), True, None),
        (((1, b"WATCHDOG_USEC=7000000"),), False, 7),
        (((1, b"WATCHDOG=trigger"), (2, b"WATCHDOG=trigger")), False, 1),
        (((1, b"STOPPING=1"),), False, None),  # its end is another matter
        (((1, b"STATUS=fine"),), False, 3),
    ],
)
async def test_when_a_watchdog_runs_out(says: Any, ready_notify: bool, ends: float | None) -> None:
    b = bench(service("a", watchdog=3, ready_notify=ready_notify, start_timeout=None), scripts={"a": [Script(says=says)]})
    await b.run_until(100)
    assert b.runtime.times("stop", "a") == [100 if ends is None else ends]


async def test_a_watchdog_is_bounded_by_the_restarts_there_are() -> None:
    b = bench(service("a", RestartPolicy(condition="on-failure", max_attempts=2), watchdog=1))
    await b.run()
    assert len(b.runtime.times("launch", "a")) == 3
    assert "gave up after 2 restarts" in b.of(ServiceFailed)[0].reason


# ---- a container that means no good ----


async def test_what_is_refused_is_told_once() -> None:
    says = tuple((1, message) for message in (b"FDSTORE=1", b"MAINPID=1", b"\xff", b"FDSTORE=1\nMAINPID=7", b"\0"))
    b = bench(service("a", ready_notify=True), scripts={"a": [Script(says=says)]})
    await b.run_until(5)
    assert [event.what for event in b.of(NotifyRefused)] == ["FDSTORE", "MAINPID", "a message"]


async def test_a_flood_is_heard_at_a_bounded_rate_and_changes_nothing_for_others() -> None:
    heard = RATE * 20
    says = tuple((0.0, b"STATUS=%d" % number) for number in range(heard * 10))
    b = bench(
        service("a", watchdog=1000), service("b", ready_notify=True),
        scripts={"a": [Script(says=says)], "b": [Script(says=((7, b"READY=1"),))]},
    )  # fmt: skip
    await b.run_until(19)
    status = {item.name: item.status for item in b.supervisor.summaries()}["a"]
    assert int(status) <= heard
    assert b.of(HealthChanged) == [HealthChanged("b", "healthy", "")]
