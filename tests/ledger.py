"""A learner that checks instead of training: every row of Ledger tells what it must be."""

from collections import Counter

import numpy as np
import torch

from sfrl.algorithms import make_algorithm
from sfrl.envs import OBS
from sfrl.experience.minibatch import LearnerSlots
from sfrl.experience.slot_inbox import SlotInbox
from sfrl.ipc.topology import Role
from sfrl.records.timing import LEARNER_STAGES, StageTimer
from sfrl.run.roles import Shared
from sfrl.systems import SYSTEMS
from tests.tiny_envs import is_final, successor


class CheckingLearner:
    """Takes, gathers and returns slots as the learner does; instead of training it checks them.

    Its weights stay what they are, but it publishes them again with each new version.
    """

    device = torch.device("cpu")

    @property
    def parameters(self):
        """Those of a policy worker in its process, which `pull`s nothing."""
        return self

    def pull(self):
        pass

    def __init__(self, shared: Shared, index: int = 0) -> None:
        role = Role("learner", index)
        self.config, self.buffer, self.progress = shared.config, shared.buffer, shared.progress
        self.weights = shared.weights
        self.is_alone = shared.topology.counts["learner"] == 1
        self.slots = SlotInbox(shared.buffer, shared.channels, shared.progress, role)
        self.inbox = self.slots.queue
        self.timer = StageTimer(LEARNER_STAGES, shared.progress.stage_seconds(role))
        self.rows = LearnerSlots(shared.buffer, 1, torch.device("cpu"))
        torch.manual_seed(0)
        self.model = make_algorithm(shared.config, shared.env).make_model()
        self.updates = shared.progress.updates[index]
        self.num_rows = 0
        self.num_decisions = 0  # rows that did not only reset
        self.split_of = shared.topology.slots.split  # [S]
        self.last_rows = {}  # split -> row T of its slot before
        self.filled = Counter()  # (slot, generation) -> times received
        self.actions_seen = Counter()
        self.identities = {}  # split -> [N, 2], the halves of the seeds
        self._publish()

    def step(self):
        slots = self.slots.take(self.config.slots_per_batch)
        for slot in slots:
            self.filled[slot, int(self.buffer.generation[slot])] += 1
            num_envs = self.buffer.spec.num_envs
            self.rows.load([slot])
            self.rows.take()
            rows = self.rows.gather(torch.full((num_envs,), slot), torch.arange(num_envs))
            self._check(slot, rows)
            self.slots.give_back([slot])
        if slots:
            self.updates[0] += 1
            self.timer.lap("train")  # by which the crew knows that something was learned
            self._publish()
        return bool(slots)

    def _publish(self):
        if self.is_alone:
            self.weights.publish(self.model, self.progress.learner_steps)

    def _check(self, slot, rows):
        obs, valid = rows.obs[OBS].numpy(), rows.valid.numpy()
        actions = rows.acted["actions"].numpy()
        next_rows, rewards, terminated, _ = successor(obs[:-1], actions)
        np.testing.assert_array_equal(obs[1:], next_rows)
        np.testing.assert_array_equal(rows.rewards.numpy(), rewards)
        np.testing.assert_array_equal(rows.terminated.numpy(), terminated)
        np.testing.assert_array_equal(valid, ~is_final(obs))
        assert (rows.acted["log_probs"] < 0).all()
        assert (rows.policy_version <= self.progress.learner_steps).all()
        assert (rows.policy_version.diff(dim=0) >= 0).all()
        if SYSTEMS[self.config.system].pull == "unroll":
            assert (rows.policy_version == rows.policy_version[0]).all(), "new weights in an unroll"

        split = self.split_of[slot]
        if not self.buffer.starts[slot]:
            np.testing.assert_array_equal(obs[0], self.last_rows[split])
        self.last_rows[split] = obs[-1]
        self.identities[split] = obs[0, :, :2]
        self.actions_seen.update(actions.ravel().tolist())
        self.num_rows += actions.size
        self.num_decisions += int(valid[:-1].sum())

    @property
    def learner_steps(self):
        return self.progress.learner_steps

    def wait(self, timeout_s, others=()):
        self.inbox.wait(timeout_s, others)
        self.waited()

    def waited(self):
        self.timer.lap("wait_trajectories")

    def close(self):
        pass
