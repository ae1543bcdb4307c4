"""A learner that checks instead of training: every row of Ledger tells what it must be."""

from collections import Counter

import numpy as np
import torch

from sfrl.experience.trajectory_buffer import Owner
from sfrl.ipc.mailbox import Mailbox
from sfrl.nets.model import make_model
from sfrl.run.roles import Shared
from sfrl.workers.learner import Learner, Minibatch
from tests.tiny_envs import is_final, successor


class CheckingLearner(Learner):
    """Takes, gathers and returns slots as the learner does; instead of training it checks them."""

    num_rows = 0
    num_decisions = 0  # rows that did not only reset

    def __init__(self, *args):
        super().__init__(*args)
        self.last_rows = {}  # split -> row T of its slot before
        self.filled = Counter()  # (slot, generation) -> times received
        self.actions_seen = Counter()
        self.identities = {}  # split -> [N, 2], the halves of the seeds

    def train(self, slots):
        for slot in slots:
            self.filled[slot, int(self.buffer.generation[slot])] += 1
            self.buffer.check_owner(slot, Owner.LEARNER)
            num_envs = self.buffer.spec.num_envs
            rows = self.slots.gather(torch.full((num_envs,), slot), torch.arange(num_envs))
            self._check(slot, rows)
            self._release([slot])
        self.progress.learner_steps += 1
        self.publish()

    def _check(self, slot, minibatch):
        rows = Minibatch(*(None if field is None else field.numpy() for field in minibatch))
        next_rows, rewards, terminated, _ = successor(rows.obs[:-1], rows.actions)
        np.testing.assert_array_equal(rows.obs[1:], next_rows)
        np.testing.assert_array_equal(rows.rewards, rewards)
        np.testing.assert_array_equal(rows.terminated, terminated)
        np.testing.assert_array_equal(rows.valid, ~is_final(rows.obs))
        assert (rows.log_probs < 0).all()
        assert (rows.policy_version <= self.learner_steps).all()
        assert (np.diff(rows.policy_version, axis=0) >= 0).all()

        split = slot // self.config.slots_per_split
        if not self.buffer.starts[slot]:
            np.testing.assert_array_equal(rows.obs[0], self.last_rows[split])
        self.last_rows[split] = rows.obs[-1]
        self.identities[split] = rows.obs[0, :, :2]
        self.actions_seen.update(rows.actions.ravel().tolist())
        self.num_rows += rows.actions.size
        self.num_decisions += int(rows.valid[:-1].sum())


def make_checking_learner(shared: Shared, reports: Mailbox, requests: Mailbox) -> CheckingLearner:
    torch.manual_seed(0)
    model = make_model("mlp", (5,), shared.num_actions, obs_is_image=False)
    learner = CheckingLearner(
        shared.config,
        model,
        torch.float32,
        shared.buffer,
        shared.channels,
        shared.weights,
        shared.progress,
        reports,
        requests,
        shared.stop,
    )
    learner.publish()
    return learner
