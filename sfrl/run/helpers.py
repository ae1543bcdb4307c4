"""What rollout workers' environments start: known while they live, for a worker may be killed."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from sfrl.ipc.topology import Role
from sfrl.run.spawning import terminate

_LOOK_S = 1.0


class Helpers:
    """The programs and forks of each worker, as they were at the last look.

    After its death they are orphans, which nothing ties to it. What has left it before, to run in
    the background on purpose (`setsid -f`, a daemon), is none of them and is left alone.
    """

    def __init__(self) -> None:
        self._known: dict[Role, dict[int, psutil.Process]] = {}
        self._next_look_s = 0.0  # on the monotonic clock

    def look(self, workers: Mapping[Role, BaseProcess]) -> None:
        """Once a second, whenever it is called. Some 20 us for each thread of the workers."""
        now = time.monotonic()
        if now < self._next_look_s:
            return
        self._next_look_s = now + _LOOK_S
        for role, worker in workers.items():
            before, found = self._known.get(role, {}), {}
            assert worker.pid is not None
            for pid in _below(worker.pid):
                with suppress(psutil.NoSuchProcess):
                    found[pid] = before.get(pid) or psutil.Process(pid)
            if worker.exitcode is None:  # else it may have died before they were read
                self._known[role] = found

    def terminate(self, role: Role) -> None:
        """The worker has died. A process that has got the number of one of them is spared."""
        terminate(list(self._known.pop(role, {}).values()))


def _below(pid: int) -> list[int]:
    """All generations. psutil would read of every process on the machine, for each worker."""
    found: list[int] = []
    with suppress(OSError):  # it has ended since
        for thread in os.listdir(f"/proc/{pid}/task"):
            children = Path(f"/proc/{pid}/task/{thread}/children").read_text()
            for child in map(int, children.split()):
                found += [child, *_below(child)]
    return found
