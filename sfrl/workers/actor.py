"""Actor: a rollout worker and its own policy worker, in turn, in one process."""

from __future__ import annotations

from sfrl.workers.policy_worker import PolicyWorker
from sfrl.workers.rollout_worker import RolloutWorker


class Actor:
    """Steps environments and chooses their actions (IMPALA, arXiv:1802.01561, section 3).

    The two talk as they do from process to process, by slots and queues: whoever restarts, reads
    accounts or checks owners sees no difference. Only the learner is elsewhere, and only its free
    slots are worth a sleep.
    """

    def __init__(self, rollout: RolloutWorker, policy: PolicyWorker) -> None:
        self.rollout = rollout
        self.policy = policy

    def step(self) -> bool:
        self.rollout.timer.begin()
        has_stepped = self.rollout.step()
        self.policy.timer.begin()
        return self.policy.step() or has_stepped

    def wait(self, timeout_s: float) -> None:
        self.rollout.timer.begin()
        self.rollout.wait(timeout_s)

    def close(self) -> None:
        self.policy.close()
        self.rollout.close()
