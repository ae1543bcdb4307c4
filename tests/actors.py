"""Rollout and policy workers that gather real experience in this thread."""

from sfrl.ipc.index_queue import unpack
from sfrl.ipc.mailbox import Mailbox
from sfrl.run.roles import Shared, make_policy_worker, make_rollout_worker
from sfrl.workers.learner import Learner


class Actors:
    """The workers of a run except for the learner, who has published its weights before.

    With --serial, where nothing is published, it is the one that they are given.
    """

    def __init__(self, shared: Shared, learner: Learner | None = None) -> None:
        topology = shared.topology
        self.trajectories = shared.channels.trajectories[0]
        self.policy_workers = [
            make_policy_worker(shared, role.index, learner) for role in topology.of_kind("policy")
        ]
        self.rollout_workers = [
            make_rollout_worker(shared, role.index, Mailbox())
            for role in topology.of_kind("rollout")
        ]

    def collect(self, num_slots: int) -> list[int]:
        """The next full slots, which are the caller's from then on; no more than there are."""
        slots: list[int] = []
        while len(slots) < num_slots:
            steps = [worker.step() for worker in self.policy_workers + self.rollout_workers]
            full = self.trajectories.get_many(num_slots - len(slots))
            assert full or any(steps), f"{len(slots)} slots are full, and nothing is left to do"
            slots += [unpack(message)[0] for message in full]
        return slots
