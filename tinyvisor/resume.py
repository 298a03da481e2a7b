"""What of an instance of a service the next supervisor goes on from. Pure.

Times are seconds of the kernel's monotonic clock, which all processes of one boot share; a supervisor's own clock starts
anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from tinyvisor import stored
from tinyvisor.errors import TinyvisorError
from tinyvisor.health import UNKNOWN, Health
from tinyvisor.policy import NEW, Exited, LaunchFailed, NotReady, Phase, ServiceEvent, StartRequested, State
from tinyvisor.spec import Service
from tinyvisor.state import Exit

WITH_CONTAINER: Final[frozenset[Phase]] = frozenset({"starting", "running", "stopping"})
"""Where there may be one; there is none in any other phase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """All that `runner.Runner` would not find out by itself; its attributes of these names.

    Attributes:
        seen: generations of what it depends on, when it was launched.
        greeted: its post_start hooks are over.
        last, wall, cpu, memory_peak: of all its containers that have ended, as in `ServiceSummary`.
    """

    group: str
    service: Service
    state: State = NEW
    health: Health = UNKNOWN
    has_begun: bool = False
    stop_wanted: bool = False
    leaving: bool = False
    generation: int = 0
    seen: Mapping[str, int] = field(default_factory=dict)
    greeted: bool = False
    armed_at: float = 0.0
    fired_at: float | None = None
    last: Exit | None = None
    wall: float = 0.0
    cpu: float = 0.0
    memory_peak: int | None = None


def encode(**values: Any) -> dict[str, Any]:
    """A `Standing` as JSON, but for `service`, which is most of it and does not change."""
    return {name: stored.to_json(value) for name, value in values.items() if value and value != _DEFAULTS[name]}


def decode(name: str, content: Any, service: Any) -> Standing:
    """Raises `TinyvisorError` where this version can't make anything of it."""
    try:
        return stored.from_json(Standing, {**content, "service": service})
    except (ValueError, KeyError, TypeError) as exc:
        raise TinyvisorError(f"{name}: what its supervisor has left makes no sense to this version of tinyvisor: {exc}") from None


_DEFAULTS: Final = {item.name: item.default for item in fields(Standing)}


def shifted(state: State, by: float) -> State:
    """The same by a clock that is `by` seconds ahead; times that mean nothing in its phase are 0."""
    started_at = state.started_at + by if state.phase in ("running", "stopping") else 0.0
    due = state.due + by if state.phase == "backoff" else 0.0
    return replace(state, started_at=started_at, due=due, starts=tuple(start + by for start in state.starts))


def next_event(standing: Standing, *, has_container: bool) -> ServiceEvent | None:
    """What has happened to it while nobody looked, or is to happen now that somebody does.

    Who was stopped by a command stays so. Who was stopped, or was to be, only because the supervisor was ending is started: it
    is wanted again.
    """
    phase, then = standing.state.phase, standing.state.then
    if phase in WITH_CONTAINER and not has_container:
        match phase:
            case "starting":
                return NotReady()
            case "stopping":
                return LaunchFailed("stopped before it had started")
        return Exited(Exit(status="sandbox_error", reason="its end was not recorded"))
    if standing.stop_wanted or standing.leaving:
        return None
    return StartRequested() if phase == "stopped" or (phase == "stopping" and then == "stop") else None
