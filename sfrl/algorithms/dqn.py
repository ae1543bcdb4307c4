"""Deep Q-network: action values learned from a memory of what any policy did.

Mnih et al. 2015 (doi:10.1038/nature14236). A minibatch has windows of `n_step` decisions, drawn
from the memory; the value of the first action moves towards the rewards of the window and the value
that the target network gives to its end. With `double` the model says which action is best there
(van Hasselt et al. 2016, arXiv:1509.06461).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfrl.algorithms.algorithm import Loss
from sfrl.algorithms.q_values import QLearning, QNetwork, allowed, q_statistics
from sfrl.experience.minibatch import Minibatch
from sfrl.maths import losses
from sfrl.maths.returns import window_returns
from sfrl.settings.dqn import DQNConfig


class DQN(QLearning[DQNConfig]):
    def loss(
        self, model: QNetwork, target: QNetwork | None, batch: Minibatch, version: Tensor
    ) -> Loss:
        """Of the first row of each window; the others lead to its target."""
        assert target is not None, "`DQNConfig.target_period` asks for one"
        assert batch.ends is not None, "a memory gives windows"
        config = self.config
        lag = version - batch.policy_version
        mask = batch.valid[:-1] & (lag <= config.lag_limit)  # [n, C]
        first = mask[0]
        with torch.no_grad():
            at_end = _values(target, batch, row=1)
            chooser = _values(model, batch, row=1) if config.double else at_end
            best = chooser.argmax(dim=-1, keepdim=True)
            returns = window_returns(
                losses.shape_rewards(batch.rewards, config.reward_clip, config.reward_scale),
                discounts=config.gamma * (~batch.terminated).float(),
                valid=batch.valid[:-1],
                ends=batch.ends,
                end_values=at_end.gather(-1, best).squeeze(-1),
            )
        all_values = _values(model, batch, row=0)
        actions = batch.acted["actions"][0]
        values = all_values.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        total = losses.value_loss(values, returns, first)
        statistics = q_statistics(total, values, all_values, returns, first)
        return Loss(total, statistics, returns, mask)


def _values(model: QNetwork, batch: Minibatch, row: int) -> Tensor:
    """[C, A], the lowest for what a mask forbids, of row 0 or of the last one."""
    obs = {name: leaf[row : row + 1] for name, leaf in batch.obs.items()}
    return allowed(model.unroll(obs, None, batch.shown[row : row + 1]), obs)[0]
