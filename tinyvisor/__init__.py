"""The public API, re-exported; nothing else.

Names are loaded when they are first asked for: `tinyvisor --help` must not wait for an event loop to be imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyvisor.errors import (
        ConfigError,
        ContainerError,
        HostError,
        InternalError,
        LauncherDied,
        LaunchError,
        RunFailed,
        SpecError,
        TinyvisorError,
    )
    from tinyvisor.job import Job
    from tinyvisor.runtime import PIPE, STDOUT, Container, Events, Runtime, Workspace, open_runtime, run
    from tinyvisor.spec import (
        Backoff,
        Blkio,
        Dependency,
        Healthcheck,
        Hook,
        Http,
        Limits,
        Logging,
        Project,
        RestartPolicy,
        Schedule,
        Secret,
        Service,
        Spec,
        Tcp,
        Tmpfs,
        Ulimit,
        Volume,
    )
    from tinyvisor.state import Exit, Result, Stats

_HOME = {
    "tinyvisor.errors": (
        "ConfigError",
        "ContainerError",
        "HostError",
        "InternalError",
        "LaunchError",
        "LauncherDied",
        "RunFailed",
        "SpecError",
        "TinyvisorError",
    ),
    "tinyvisor.job": ("Job",),
    "tinyvisor.runtime": ("PIPE", "STDOUT", "Container", "Events", "Runtime", "Workspace", "open_runtime", "run"),
    "tinyvisor.spec": (
        "Backoff",
        "Blkio",
        "Dependency",
        "Healthcheck",
        "Hook",
        "Http",
        "Limits",
        "Logging",
        "Project",
        "RestartPolicy",
        "Schedule",
        "Secret",
        "Service",
        "Spec",
        "Tcp",
        "Tmpfs",
        "Ulimit",
        "Volume",
    ),
    "tinyvisor.state": ("Exit", "Result", "Stats"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = (
    "PIPE",
    "STDOUT",
    "Backoff",
    "Blkio",
    "ConfigError",
    "Container",
    "ContainerError",
    "Dependency",
    "Events",
    "Exit",
    "Healthcheck",
    "Hook",
    "HostError",
    "Http",
    "InternalError",
    "Job",
    "LaunchError",
    "LauncherDied",
    "Limits",
    "Logging",
    "Project",
    "RestartPolicy",
    "Result",
    "RunFailed",
    "Runtime",
    "Schedule",
    "Secret",
    "Service",
    "Spec",
    "SpecError",
    "Stats",
    "Tcp",
    "TinyvisorError",
    "Tmpfs",
    "Ulimit",
    "Volume",
    "Workspace",
    "open_runtime",
    "run",
)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'tinyvisor' has no attribute '{name}'")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
