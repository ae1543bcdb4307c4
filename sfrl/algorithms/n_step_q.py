"""Action values learned from trajectories: n-step Q, one-step Q, Sarsa.

Algorithms S3, 1 and S2 of Mnih et al. 2016 (arXiv:1602.01783), in batches: acting is epsilon-greedy
with an epsilon of each environment's own, and a target network, a copy of the model that is renewed
now and then, gives the value of what comes after the rewards of a target.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfrl.algorithms.algorithm import Loss
from sfrl.algorithms.q_values import QLearning, QNetwork, allowed, q_statistics
from sfrl.experience.minibatch import Minibatch
from sfrl.maths import losses
from sfrl.maths.returns import n_step_returns, one_step_returns
from sfrl.settings.n_step_q import NStepQConfig


class NStepQ(QLearning[NStepQConfig]):
    def loss(
        self, model: QNetwork, target: QNetwork | None, batch: Minibatch, version: Tensor
    ) -> Loss:
        assert target is not None, "`NStepQConfig.target_period` asks for one"
        config = self.config
        lag = version - batch.policy_version
        mask = learned = batch.valid[:-1] & (lag <= config.lag_limit)
        with torch.no_grad():
            of_target = target.unroll(batch.obs, batch.rnn_state, batch.valid)
            of_target = allowed(of_target, batch.obs)  # [T+1, C, A]
            rewards = losses.shape_rewards(batch.rewards, config.reward_clip, config.reward_scale)
            # As in V-trace: a truncated step bootstraps from the row after it.
            discounts = config.gamma * (~batch.terminated).float()
            match config.targets:
                case "n-step":
                    best, valid = of_target.amax(dim=-1), batch.valid[:-1]
                    returns = n_step_returns(rewards, discounts, best, valid)
                case "one-step":
                    returns = one_step_returns(rewards, discounts, of_target[1:].amax(dim=-1))
                case "sarsa":
                    # What the policy chose next, also for a final observation. What it chose after
                    # the last row is in the next trajectory: that row is not learned from, unless
                    # its episode ended there.
                    chosen = _of(of_target[1:-1], batch.acted["actions"][1:])
                    following = torch.cat([chosen, torch.zeros_like(rewards[:1])])
                    returns = one_step_returns(rewards, discounts, following)
                    is_last = torch.arange(len(mask), device=mask.device) == len(mask) - 1
                    learned = mask & (~is_last[:, None] | batch.terminated)
        all_values = model.unroll(batch.obs, batch.rnn_state, batch.valid)
        all_values = allowed(all_values, batch.obs)[:-1]
        values = _of(all_values, batch.acted["actions"])
        total = losses.value_loss(values, returns, learned)
        statistics = q_statistics(total, values, all_values, returns, learned)
        return Loss(total, statistics, returns, mask)


def _of(values: Tensor, actions: Tensor) -> Tensor:
    """Of values [T, C, A] those of the actions [T, C]."""
    return values.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
