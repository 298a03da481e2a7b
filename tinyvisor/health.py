"""Whether what runs is well: what a probe, and a line of output, mean. Pure, as `policy`.

Source: compose-spec 05-services.md#healthcheck; moby daemon/health.go for the start period, which the first success ends.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from tinyvisor.spec import Healthcheck, Service

Status = Literal["", "starting", "healthy", "unhealthy"]
"""Empty: nobody asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How one container is.

    Attributes:
        status: see `Status`.
        failures: probes failed in a row that count.
        passed: a probe has succeeded, or there are none.
        ready: it has said so (by a line of output, a message, a newline on an fd), or need not.
        began: it was ready at some time.
        reason: in ``unhealthy``: why, one line.
    """

    status: Status = ""
    failures: int = 0
    passed: bool = True
    ready: bool = True
    began: bool = True
    reason: str = ""

    @property
    def well(self) -> bool:
        return self.status in ("", "healthy")


UNKNOWN: Final = Health()
"""Of what does not run, or does not say."""


def at_start(service: Service) -> Health:
    """The health of a container that has just started."""
    if not service.tells_health:
        return UNKNOWN
    need_not_say = not service.tells_ready
    return Health(status="starting", passed=service.healthcheck is None, ready=need_not_say, began=need_not_say)


def became_ready(health: Health) -> Health:
    """After it has said so."""
    after = replace(health, ready=True, began=True)
    return _settled(after) if health.status == "starting" else after


def withdrew(health: Health) -> Health:
    """After it has said that it is stopping: nobody is to start because of it any more."""
    after = replace(health, ready=False)
    return _settled(after) if health.status == "healthy" else after


def gave_up_looking(health: Health, reason: str) -> Health:
    """It will not be listened for any more."""
    return replace(health, status="unhealthy", reason=reason)


def judge(check: Healthcheck, health: Health, *, passed: bool, why: str, elapsed: float) -> Health:
    """After a probe.

    Args:
        why: it has failed, one line.
        elapsed: seconds from the container's start to the probe's end.
    """
    if passed:
        return _settled(replace(health, failures=0, passed=True))
    if not health.passed and elapsed < check.start_period:
        return health
    health = replace(health, failures=min(health.failures + 1, check.retries))
    if health.failures < check.retries:
        return health
    times = "once" if health.failures == 1 else f"{health.failures} times in a row"
    return replace(health, status="unhealthy", reason=f"its healthcheck failed {times}: {why}")


def delay(check: Healthcheck, health: Health, *, elapsed: float) -> float:
    """Seconds from now, `elapsed` seconds after the container's start, to the next probe."""
    in_start_period = not health.passed and elapsed < check.start_period
    return check.start_interval if in_start_period else check.interval


def _settled(health: Health) -> Health:
    return replace(health, status="healthy" if health.passed and health.ready else "starting", reason="")
