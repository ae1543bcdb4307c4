"""n-step Q-learning: action values learned from the rewards of whole trajectories.

Algorithm S3 of Mnih et al. 2016 (arXiv:1602.01783), in batches: acting is epsilon-greedy with an
epsilon of each environment's own, and a target network, a copy of the model that is renewed now and
then, gives the value where a trajectory ends.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfrl.algorithms.algorithm import Acted, Loss
from sfrl.envs import EnvSpec
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
        obs_shape: tuple[int, ...],
        num_actions: int,
        *,
        obs_is_image: bool,
        rnn_size: int = 0,
    ) -> None:
        super().__init__(encoder, obs_shape, obs_is_image=obs_is_image, rnn_size=rnn_size)
        self.head = nn.Linear(self.num_features, num_actions)
        init_orthogonal(self.head, gain=0.01)  # no action begins as the best by much

    @torch.inference_mode()
    def step(self, obs: Tensor, rnn_state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Values [B, A] float32 of obs [B, *obs_shape], and the recurrent state. No gradients."""
        [features], rnn_state = self.step_features(obs, rnn_state)
        return self.head(features), rnn_state

    def unroll(self, obs: Tensor, rnn_state: Tensor | None, valid: Tensor) -> Tensor:
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
        is_image = len(env.obs_shape) == 3
        encoder, _ = make_encoders(
            config.model, env.obs_shape, obs_is_image=is_image, obs_scale=env.obs_scale
        )
        return QNetwork(
            encoder,
            env.obs_shape,
            env.num_actions,
            obs_is_image=is_image,
            rnn_size=config.rnn_size,
        )

    def act(
        self,
        model: QNetwork,
        obs: Tensor,
        rnn_state: Tensor | None,
        epsilon: Tensor | None,
        generator: torch.Generator,
    ) -> Acted:
        values, rnn_state = model.step(obs, rnn_state)
        assert epsilon is not None, "`NStepQConfig.epsilons` gives them"
        return Acted({"actions": EpsilonGreedy(values, epsilon).sample(generator)}, rnn_state)

    def greedy(self, model: QNetwork, obs: Tensor, rnn_state: Tensor | None) -> Acted:
        values, rnn_state = model.step(obs, rnn_state)
        return Acted({"actions": values.argmax(dim=-1)}, rnn_state)

    def loss(
        self, model: QNetwork, target: QNetwork | None, batch: Minibatch, version: Tensor
    ) -> Loss:
        assert target is not None, "`NStepQConfig.target_period` asks for one"
        config = self.config
        lag = version - batch.policy_version
        mask = batch.valid[:-1] & (lag <= config.max_policy_lag)
        with torch.no_grad():
            best = target.unroll(batch.obs, batch.rnn_state, batch.valid).amax(dim=-1)  # [T+1, C]
            returns = n_step_returns(
                losses.shape_rewards(batch.rewards, config.reward_clip, config.reward_scale),
                # As in V-trace: a truncated step bootstraps from the row after it.
                discounts=config.gamma * (~batch.terminated).float(),
                values=best,
                valid=batch.valid[:-1],
            )
        all_values = model.unroll(batch.obs, batch.rnn_state, batch.valid)[:-1]
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

    def after_update(self, model: QNetwork, loss: Loss, applied: Tensor) -> None:
        model.center_weights(applied)
