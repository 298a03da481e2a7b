"""Everything that touches the kernel; usable alone. This is its only door."""

from tinyvisor.runtime.container import Container
from tinyvisor.runtime.engine import Runtime, open_runtime
from tinyvisor.runtime.stdio import PIPE, STDOUT

__all__ = ("PIPE", "STDOUT", "Container", "Runtime", "open_runtime")
