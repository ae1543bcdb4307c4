"""Several workers of one process, in turn: an actor's two, or a learner and its policy workers."""

from __future__ import annotations

from collections.abc import Sequence

from sfrl.workers.worker import Worker


class Members:
    """They talk as they do from process to process, by slots and queues.

    Whoever restarts, reads accounts or checks owners sees no difference. Their queues ring one
    doorbell, so that a message to any of them ends their sleep.

    Args:
        workers: in the order of their turns; the first one says how long all may sleep.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = workers

    def step(self) -> bool:
        """One step of each. Each one's timer leaves out the others' time."""
        steps = []
        for worker in self.workers:
            worker.timer.begin()
            steps.append(worker.step())
        return any(steps)

    def wait(self, timeout_s: float) -> None:
        first, *others = self.workers
        for worker in self.workers:
            worker.timer.begin()
        first.wait(timeout_s, [other.inbox for other in others])
        for other in others:
            other.waited()

    def close(self) -> None:
        for worker in reversed(self.workers):
            worker.close()
