"""What every worker is to whoever runs it, and the loop of a process around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sfrl.ipc.index_queue import IndexQueue
from sfrl.ipc.shared_memory import StopFlag, Stopped
from sfrl.records.timing import StageTimer

WAIT_TIMEOUT_S = 0.5


class Loop(Protocol):
    """What `worker_loop` runs."""

    def step(self) -> bool:
        """Do what is ready, without waiting; say whether anything was."""

    def wait(self, timeout_s: float) -> None:
        """Sleep until something is ready. Raises Stopped once the run is stopping."""

    def close(self) -> None:
        """Finish: called once, also when the run is stopping."""


class Worker(Loop, Protocol):
    """One role of the run. The same object has a process, shares one, or runs in the serial loop.

    Attributes:
        inbox: what others send it.
        timer: where its time goes.
    """

    inbox: IndexQueue
    timer: StageTimer

    def wait(self, timeout_s: float, others: Sequence[IndexQueue] = ()) -> None:
        """Sleep until something is ready, or comes to `others`, in the same process."""

    def waited(self) -> None:
        """Count the time since the last lap as one in which it waited."""


def worker_loop(worker: Loop, stop: StopFlag) -> None:
    """The loop of every process: work while there is work, sleep while there is none.

    A worker that failed is not closed: what its environment does then must not delay the report.
    """
    try:
        while not stop.is_set:
            if not worker.step():
                worker.wait(WAIT_TIMEOUT_S)
    except Stopped:
        pass
    worker.close()
