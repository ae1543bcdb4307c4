"""n-step Q-learning: action values learned from the rewards of whole trajectories.

Algorithm S3 of Mnih et al. 2016 (arXiv:1602.01783), in batches: acting is epsilon-greedy with an
epsilon of each environment's own, and a target network, a copy of the model that is renewed now and
then, gives the value where a trajectory ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sfrl.algorithms.algorithm import Acted, Loss
from sfrl.envs import ACTION_MASK, EnvSpec, Leaf
from sfrl.experience.minibatch import Minibatch
from sfrl.maths import losses
from sfrl.maths.returns import n_step_returns
from sfrl.nets.distributions import EpsilonGreedy
from sfrl.nets.encoders import init_orthogonal
from sfrl.nets.model import Network, make_encoders
from sfrl.settings.n_step_q import NStepQConfig


class QNetwork(Network):
    """The value of each action: the discounted rewards that follow it, in units of the reward."""

    def __init__(
        self,
        encoder: nn.Module,
        leaves: tuple[Leaf, ...],
        num_actions: int,
        **parts: Any,  # of `Network`
    ) -> None:
        super().__init__(encoder, leaves, **parts)
        self.head = nn.Linear(self.num_features, num_actions)
        init_orthogonal(self.head, gain=0.01)  # no action begins as the best by much

    @torch.inference_mode()
    def step(
        self, obs: Mapping[str, Tensor], rnn_state: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Values [B, A] float32 of leaves [B, *shape], and the recurrent state. No gradients."""
        [features], rnn_state = self.step_features(obs, rnn_state)
        return self.head(features), rnn_state

    def unroll(self, obs: Mapping[str, Tensor], rnn_state: Tensor | None, valid: Tensor) -> Tensor:
        """Values [T+1, B, A] of trajectories; the arguments are those of `unroll_features`."""
        [features] = self.unroll_features(obs, rnn_state, valid)
        values: Tensor = self.head(features)
        return values


class NStepQ:
    def __init__(self, config: NStepQConfig, env: EnvSpec) -> None:
        self.config = config
        self.env = env

    def make_model(self) -> QNetwork:
        config, env = self.config, self.env
        normalize_obs = config.normalize_obs
        encoder, _ = make_encoders(config.model, env.leaves, normalize_obs=normalize_obs)
        return QNetwork(
            encoder,
            env.leaves,
            env.actions.num_logits,
            memory=config.memory,
            normalize_obs=normalize_obs,
        )

    def act(
        self,
        model: QNetwork,
        obs: dict[str, Tensor],
        rnn_state: Tensor | None,
        exploration: Tensor | None,
        generator: torch.Generator,
    ) -> Acted:
        values, rnn_state = model.step(obs, rnn_state)
        assert exploration is not None, "`NStepQConfig.exploration` gives them"
        policy = EpsilonGreedy(values, exploration, obs.get(ACTION_MASK))
        return Acted({"actions": policy.sample(generator)}, rnn_state)

    def greedy(self, model: QNetwork, obs: dict[str, Tensor], rnn_state: Tensor | None) -> Acted:
        values, rnn_state = model.step(obs, rnn_state)
        return Acted({"actions": _allowed(values, obs).argmax(dim=-1)}, rnn_state)

    def loss(
        self, model: QNetwork, target: QNetwork | None, batch: Minibatch, version: Tensor
    ) -> Loss:
        assert target is not None, "`NStepQConfig.target_period` asks for one"
        config = self.config
        lag = version - batch.policy_version
        mask = batch.valid[:-1] & (lag <= config.max_policy_lag)
        with torch.no_grad():
            best = target.unroll(batch.obs, batch.rnn_state, batch.valid)
            best = _allowed(best, batch.obs).amax(dim=-1)  # [T+1, C]
            returns = n_step_returns(
                losses.shape_rewards(batch.rewards, config.reward_clip, config.reward_scale),
                # As in V-trace: a truncated step bootstraps from the row after it.
                discounts=config.gamma * (~batch.terminated).float(),
                values=best,
                valid=batch.valid[:-1],
            )
        all_values = model.unroll(batch.obs, batch.rnn_state, batch.valid)
        all_values = _allowed(all_values, batch.obs)[:-1]
        values = all_values.gather(-1, batch.acted["actions"].unsqueeze(-1)).squeeze(-1)
        total = losses.value_loss(values, returns, mask)
        with torch.no_grad():
            statistics = {
                "value_loss": total.detach(),
                "explained_variance": losses.explained_variance(values, returns, mask),
                "action_value": losses.masked_mean(values, mask),
                "greedy_fraction": losses.masked_mean(
                    (values >= all_values.amax(dim=-1)).float(), mask
                ),
            }
        return Loss(total, statistics, returns, mask)

    def after_update(self, model: QNetwork, batch: Minibatch, loss: Loss, applied: Tensor) -> None:
        model.center_weights(applied)
        model.update_normalizers(batch.obs, batch.valid & applied)


def _allowed(values: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
    """Values [..., A], the lowest ones for what a mask forbids."""
    mask = obs.get(ACTION_MASK)
    return values if mask is None else values.masked_fill(~mask, torch.finfo(values.dtype).min)
