"""What a live runtime takes over from the one before it: its containers, until somebody adopts them."""

from __future__ import annotations

import functools
import os

from tinyvisor.errors import SpecError
from tinyvisor.runtime import launcher as wire
from tinyvisor.runtime.cgroup import CgroupTree, remove_cgroup
from tinyvisor.runtime.container import Container, Host
from tinyvisor.runtime.launcher import shielded
from tinyvisor.runtime.launches import Launches
from tinyvisor.runtime.leases import Leases
from tinyvisor.runtime.live import Live


class Adoption:
    """Containers that were left.

    Attributes:
        waiting: for somebody to adopt them, by name.
    """

    def __init__(self) -> None:
        self.waiting: dict[str, Container] = {}
        self._never_started: list[Container] = []

    def take_over(self, live: Live, host: Host, launches: Launches, leases: Leases, tree: CgroupTree) -> None:
        """The containers of the supervisor before us; those that never started are ended, and so is what nobody waits for any
        more.

        Args:
            host: whom the containers ask from now on.
        """
        for name in live.recorded():
            container = live.adopt(name, host, leases, launches.make_again)
            never_started = live.never_started(container)
            if never_started:
                self._never_started.append(container)
            else:
                self.waiting[name] = container
            container.call_when_gone(functools.partial(launches.give_back, container.ids))
            if container.gone:
                continue
            launches.add(container)
            if not container.pid:
                launches.world.launcher.send(wire.encode_request(wire.KILL, container.id, flags=wire.ASK))
            if never_started:
                launches.kill(container)
        live.forget_strangers()
        self._end_unrecorded(tree, launches)

    def _end_unrecorded(self, tree: CgroupTree, launches: Launches) -> None:
        """Runs of the supervisor before us, which nobody waits for any more and whose ids we are about to give to others."""
        for path in tree.paths:
            with os.scandir(path) as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            for name in names:
                if name not in self.waiting and name not in launches.names:
                    remove_cgroup(f"{path}/{name}")

    async def end_never_started(self, live: Live) -> None:
        """Their names are free then."""
        while self._never_started:
            container = self._never_started[-1]
            await shielded(container.wait_gone)
            live.forget(container)
            container.close()
            live.drop(container)
            self._never_started.pop()

    async def adopt(self, name: str) -> Container:
        """Raises `SpecError` where none of that name waits."""
        if name not in self.waiting:
            raise SpecError("name", f'no container "{name}" was left to be adopted')
        return self.waiting.pop(name)

    def close(self) -> None:
        """Nobody has adopted them."""
        while self.waiting:
            self.waiting.popitem()[1].close()
