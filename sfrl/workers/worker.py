"""What every worker is to whoever runs it, and the loop of a process around it."""

from __future__ import annotations

from typing import Protocol

from sfrl.ipc.shared_memory import StopFlag, Stopped

WAIT_TIMEOUT_S = 0.5


class Worker(Protocol):
    """One role of the run. The same object runs in a process of its own or in the serial loop."""

    def step(self) -> bool:
        """Do what is ready, without waiting; say whether anything was."""

    def wait(self, timeout_s: float) -> None:
        """Sleep until something is ready. Raises Stopped once the run is stopping."""

    def close(self) -> None:
        """Finish: called once, also when the run is stopping."""


def worker_loop(worker: Worker, stop: StopFlag) -> None:
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
