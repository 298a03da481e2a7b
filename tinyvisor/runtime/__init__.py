"""Everything that touches the kernel; usable alone. This is its only door."""

from tinyvisor.runtime.container import Container
from tinyvisor.runtime.engine import Runtime, open_runtime, run
from tinyvisor.runtime.stdio import PIPE, STDOUT
from tinyvisor.runtime.tracer import Events, attached
from tinyvisor.runtime.workspace import Workspace

__all__ = ("PIPE", "STDOUT", "Container", "Events", "Runtime", "Workspace", "attached", "open_runtime", "run")
