"""n-step Q-learning: action values learned from the rewards of whole trajectories.

Algorithm S3 of Mnih et al. 2016 (arXiv:1602.01783), in batches: acting is epsilon-greedy with an
epsilon of each environment's own, and a target network, a copy of the model that is renewed now and
then, gives the value where a trajectory ends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfrl.algorithms.algorithm import Loss
from sfrl.algorithms.q_values import QLearning, QNetwork, allowed, q_statistics
from sfrl.experience.minibatch import Minibatch
from sfrl.maths import losses
from sfrl.maths.returns import n_step_returns
from sfrl.settings.n_step_q import NStepQConfig


class NStepQ(QLearning[NStepQConfig]):
    def loss(
        self, model: QNetwork, target: QNetwork | None, batch: Minibatch, version: Tensor
    ) -> Loss:
        assert target is not None, "`NStepQConfig.target_period` asks for one"
        config = self.config
        lag = version - batch.policy_version
        mask = batch.valid[:-1] & (lag <= config.max_policy_lag)
        with torch.no_grad():
            best = target.unroll(batch.obs, batch.rnn_state, batch.valid)
            best = allowed(best, batch.obs).amax(dim=-1)  # [T+1, C]
            returns = n_step_returns(
                losses.shape_rewards(batch.rewards, config.reward_clip, config.reward_scale),
                # As in V-trace: a truncated step bootstraps from the row after it.
                discounts=config.gamma * (~batch.terminated).float(),
                values=best,
                valid=batch.valid[:-1],
            )
        all_values = model.unroll(batch.obs, batch.rnn_state, batch.valid)
        all_values = allowed(all_values, batch.obs)[:-1]
        values = all_values.gather(-1, batch.acted["actions"].unsqueeze(-1)).squeeze(-1)
        total = losses.value_loss(values, returns, mask)
        statistics = q_statistics(total, values, all_values, returns, mask)
        return Loss(total, statistics, returns, mask)
