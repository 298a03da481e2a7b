"""CPUs and memory of a node, and what of them the jobs that run there may use. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

_PARTS: Final = 1000
"""Of a CPU. Whole numbers: what is taken and given back comes to nothing again."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one job may use.

    Attributes:
        cpus: thousandths of a CPU.
        memory: bytes.
    """

    cpus: int
    memory: int


class Queue(Protocol):
    """The jobs of one batch."""

    @property
    def running(self) -> int:
        """How many run."""

    def head(self) -> Share | None:
        """Of the job that is to start next; None where none is to."""

    def start(self, share: Share) -> None:
        """Starts it; `Room.give_back` says when it has ended."""


class Room:
    """What is free, for all batches of a node together. The one that runs the fewest jobs is the next to start one; where that
    has no room the others wait, too, or small jobs would for ever pass a large one.

    Args:
        cpus: what jobs may use at once, > 0.
        memory: bytes, or None: it does not matter.
    """

    def __init__(self, cpus: float, memory: int | None) -> None:
        self._cpus, self._memory = round(cpus * _PARTS), memory
        self._running = self._used_cpus = self._used_memory = 0
        self._queues: list[Queue] = []

    def join(self, queue: Queue) -> None:
        """A batch begins."""
        self._queues.insert(0, queue)

    def leave(self, queue: Queue) -> None:
        """A batch has ended."""
        self._queues.remove(queue)
        self.fill()

    def fill(self) -> None:
        """Starts what there is room for."""
        while True:
            heads = [(queue.running, number, share) for number, queue in enumerate(self._queues) if (share := queue.head())]
            if not heads:
                return
            _, number, share = min(heads, key=lambda head: head[:2])
            if not self._fits(share):
                return
            self._running += 1
            self._used_cpus += share.cpus
            self._used_memory += share.memory
            queue = self._queues.pop(number)
            self._queues.append(queue)  # of those that run as many, the one that started one last comes last
            queue.start(share)

    def share(self, cpus: float | None, memory: int | None, slots: int) -> Share:
        """Of a job.

        Args:
            cpus, memory: what it says; None is one of `slots`, and no memory.
        """
        return Share(self._cpus // slots if cpus is None else round(cpus * _PARTS), memory or 0)

    def _fits(self, share: Share) -> bool:
        if not self._running:  # one that is larger than the node runs alone
            return True
        return self._used_cpus + share.cpus <= self._cpus and (
            self._memory is None or self._used_memory + share.memory <= self._memory
        )

    def give_back(self, share: Share) -> None:
        """A job has ended."""
        self._running -= 1
        self._used_cpus -= share.cpus
        self._used_memory -= share.memory
        self.fill()
