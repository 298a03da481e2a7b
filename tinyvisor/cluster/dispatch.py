"""Which node gets which job, how many at once, and what becomes of the jobs of a node that is lost. Pure.

Jobs are not assigned ahead: a node that has room takes the next ones. It is given as many as keep it busy until it can be
heard of again, so that the cost of a message is shared by many jobs of a millisecond, and by none of ten minutes. Where they
turn out longer than those before them, it gives back what it has not begun.

A lost node says nothing of which of its jobs was to blame. What it had runs again elsewhere, in company; what was there when
a second node was lost runs alone on a node; and what is alone on the third is given up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

INTERVAL: Final = 0.5
"""Seconds between two messages of a node at least, while it has enough to do."""
MESSAGES: Final = 200
"""Messages a second of all nodes together at most: some hundreds are what one scheduler can do."""
MOST: Final = 2000
"""Jobs that a node has at most, whatever their length, unless it has more slots."""
MOST_LOSSES: Final = 3
"""Nodes that a job may take with it."""
SHARE: Final = 0.3
"""Of the newest jobs in what is thought of the length of jobs."""
BRIEFEST: Final = 1e-4
"""Seconds that a job takes at least: a bound to what a node is given."""


@dataclass(slots=True, eq=False)
class Ticket:
    """A job on its way.

    Attributes:
        key: unique in a batch.
        again: it may be run again where it isn't known whether it has run.
        losses: nodes that were lost with it.
        cpus, memory: what it may use of a node: CPUs, and bytes; 0 where it doesn't say.
    """

    key: int
    job: Any
    again: bool = True
    losses: int = 0
    cpus: float = 0.0
    memory: int = 0


@dataclass(slots=True)
class Node:
    """A node that takes jobs.

    Attributes:
        slots: jobs that it runs at once, of those that do not say what they use.
        label: what people call it.
        cpus, memory: what its running jobs stay within; 0: nobody knows.
        held: the jobs that it has, by key.
        load: slots that they take.
        mean: seconds that a job has a slot for, lately; None before the first result.
        draining: it takes nothing but suspects, one at a time.
        finished: results so far.
    """

    name: str
    slots: int
    label: str = ""
    cpus: float = 0.0
    memory: int = 0
    held: dict[int, Ticket] = field(default_factory=dict)
    load: float = 0.0
    mean: float | None = None
    draining: bool = False
    finished: int = 0

    def size(self, ticket: Ticket) -> float:
        """Slots that a job takes here: those that could not run beside it. At least one, and at most all."""
        size = 1.0
        if ticket.cpus and self.cpus:
            size = max(size, self.slots * ticket.cpus / self.cpus)
        if ticket.memory and self.memory:
            size = max(size, self.slots * ticket.memory / self.memory)
        return min(size, self.slots)

    def give(self, ticket: Ticket) -> None:
        """It has one more job."""
        self.held[ticket.key] = ticket
        self.load += self.size(ticket)

    def take_back(self, key: int) -> Ticket | None:
        """It has the job no more; None where it had not."""
        ticket = self.held.pop(key, None)
        if ticket is not None:
            self.load = self.load - self.size(ticket) if self.held else 0.0
        return ticket


@dataclass(frozen=True, slots=True)
class Verdict:
    """A job that is not run again: its status, and why."""

    ticket: Ticket
    status: str
    reason: str


class Dispatch:
    """The jobs of one batch and the nodes that run them.

    Attributes:
        nodes: by name.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self._ready: deque[Ticket] = deque()
        self._suspects: deque[Ticket] = deque()

    # Nodes.

    def join(self, name: str, slots: int, label: str = "", *, cpus: float = 0.0, memory: int = 0) -> Node:
        """A node takes jobs from now on. It is thought to be as fast as the others, slot by slot."""
        known = [node.mean for node in self.nodes.values() if node.mean is not None]
        mean = sum(known) / len(known) if known else None
        node = self.nodes[name] = Node(name, slots, label or name, cpus, memory, mean=mean)
        self._choose_drain()
        return node

    def lose(self, name: str) -> list[Verdict]:
        """A node is gone, with whatever it was doing. Gives the jobs that are not run again; the others are ready."""
        node = self.nodes.pop(name)
        alone = len(node.held) == 1
        verdicts = []
        for ticket in node.held.values():
            ticket.losses += 1
            if not ticket.again:
                verdicts.append(Verdict(ticket, "unknown", f"{node.label} was lost while it may have been running"))
            elif alone and ticket.losses >= MOST_LOSSES:
                reason = f"{ticket.losses} nodes were lost while it was running, the last one with nothing else: {node.label}"
                verdicts.append(Verdict(ticket, "sandbox_error", reason))
            elif ticket.losses >= MOST_LOSSES - 1:
                self._suspects.append(ticket)
            else:
                self._ready.appendleft(ticket)
        self._choose_drain()
        return verdicts

    def leave(self, name: str) -> list[Verdict]:
        """A node takes no more jobs and has killed those that it had, which is nobody's fault. Gives those that must not be run
        again for sure."""
        node = self.nodes.pop(name)
        verdicts = []
        for ticket in node.held.values():
            if ticket.again:
                self._ready.appendleft(ticket)
            else:
                verdicts.append(Verdict(ticket, "unknown", f"{node.label} gave up while it may have been running"))
        self._choose_drain()
        return verdicts

    def _choose_drain(self) -> None:
        """One node runs the suspects, as long as there are any."""
        draining = [node for node in self.nodes.values() if node.draining]
        if not self._suspects:
            for node in draining:
                node.draining = bool(node.held)  # one that is alone stays so
        elif not draining and self.nodes:
            min(self.nodes.values(), key=lambda node: len(node.held)).draining = True

    @property
    def interval(self) -> float:
        """Seconds between two messages of a node: the longer, the more nodes there are."""
        return max(INTERVAL, len(self.nodes) / MESSAGES)

    # Jobs.

    def capacity(self, node: Node) -> int:
        """Slots that the jobs of a node are to take: its own, as often as it will run jobs in the next two intervals."""
        if node.mean is None:
            return node.slots
        return max(node.slots, min(MOST, int(node.slots * (1 + 2 * self.interval / max(node.mean, BRIEFEST)))))

    @property
    def wanted(self) -> int:
        """How many more jobs the nodes have room for."""
        room = sum(max(0, self.capacity(node) - node.load) for node in self.nodes.values() if not node.draining)
        return max(0, int(room) - len(self._ready))

    @property
    def idle(self) -> bool:
        """There is no job anywhere."""
        return not (self._ready or self._suspects or any(node.held for node in self.nodes.values()))

    @property
    def waiting(self) -> bool:
        """There are jobs that no node has."""
        return bool(self._ready or self._suspects)

    def add(self, ticket: Ticket) -> None:
        """A new job."""
        self._ready.append(ticket)

    def take(self, name: str) -> Iterator[Ticket]:
        """Jobs for a node, as many as it has room for; each is its own once it was given."""
        node = self.nodes[name]
        if node.draining:
            if not node.held and self._suspects:
                ticket = self._suspects.popleft()
                node.give(ticket)
                yield ticket
            return
        while self._ready and (not node.held or node.load + node.size(self._ready[0]) <= self.capacity(node)):
            ticket = self._ready.popleft()
            node.give(ticket)
            yield ticket

    def has_room(self, name: str) -> bool:
        """Whether `take` would give something were there enough jobs."""
        node = self.nodes[name]
        return not node.held if node.draining else node.load < self.capacity(node)

    def should_return(self, name: str) -> bool:
        """Whether jobs that a node has not begun would begin elsewhere now. For one from which nothing has come for a while."""
        node = self.nodes[name]
        others = (other for other in self.nodes.values() if other is not node and not other.draining)
        return node.load > node.slots and not self.waiting and any(other.load < other.slots for other in others)

    def give_back(self, name: str, key: int) -> None:
        """A node has not begun a job, and will not. How long jobs take there is not known any more."""
        node = self.nodes[name]
        ticket = node.take_back(key)
        if ticket is not None:
            self._ready.append(ticket)
            node.mean = None

    def finish(self, name: str, key: int) -> Ticket | None:
        """A result has come; None where the job is not that node's."""
        node = self.nodes[name]
        ticket = node.take_back(key)
        if ticket is not None:
            node.finished += 1
            if node.draining:
                self._choose_drain()
        return ticket

    def learn(self, name: str, took: list[float]) -> None:
        """How long jobs had their slots, of one message."""
        if took:
            node, latest = self.nodes[name], sum(took) / len(took)
            node.mean = latest if node.mean is None else (1 - SHARE) * node.mean + SHARE * latest
