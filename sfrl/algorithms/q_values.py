"""Values of actions: the network that has them, and how it acts and explores by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from sfrl.algorithms.algorithm import Acted, Loss
from sfrl.envs import ACTION_MASK, EnvSpec, Leaf
from sfrl.experience.minibatch import Minibatch
from sfrl.maths import losses
from sfrl.nets.distributions import EpsilonGreedy
from sfrl.nets.encoders import init_orthogonal
from sfrl.nets.model import Network, make_encoders
from sfrl.settings.q_values import QConfig

C = TypeVar("C", bound=QConfig)


class QNetwork(Network):
    """The value of each action: the discounted rewards that follow it, in units of the reward.

    With `dueling` one head has the value of the state, and the other what actions are better or
    worse than their mean (Wang et al. 2016, arXiv:1511.06581, equation 9).
    """

    def __init__(
        self,
        encoder: nn.Module,
        leaves: tuple[Leaf, ...],
        num_actions: int,
        *,
        dueling: bool = False,
        **parts: Any,  # of `Network`
    ) -> None:
        super().__init__(encoder, leaves, **parts)
        self.head = nn.Linear(self.num_features, num_actions)
        init_orthogonal(self.head, gain=0.01)  # no action begins as the best by much
        self.state_head = nn.Linear(self.num_features, 1) if dueling else None
        if self.state_head is not None:
            init_orthogonal(self.state_head, gain=0.01)

    def values(self, features: Tensor) -> Tensor:
        """[..., F] -> [..., A]."""
        values: Tensor = self.head(features)
        if self.state_head is None:
            return values
        of_state: Tensor = self.state_head(features)
        return of_state + values - values.mean(dim=-1, keepdim=True)

    @torch.inference_mode()
    def step(
        self, obs: Mapping[str, Tensor], rnn_state: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Values [B, A] float32 of leaves [B, *shape], and the recurrent state. No gradients."""
        [features], rnn_state = self.step_features(obs, rnn_state)
        return self.values(features), rnn_state

    def unroll(self, obs: Mapping[str, Tensor], rnn_state: Tensor | None, valid: Tensor) -> Tensor:
        """Values [T+1, B, A] of trajectories; the arguments are those of `unroll_features`."""
        [features] = self.unroll_features(obs, rnn_state, valid)
        return self.values(features)


class QLearning(Generic[C]):
    """What all that learn the values of actions have in common: a network, and how it acts."""

    def __init__(self, config: C, env: EnvSpec) -> None:
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
            dueling=config.dueling,
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
        assert exploration is not None, "`Config.exploration` gives them"
        policy = EpsilonGreedy(values, exploration, obs.get(ACTION_MASK))
        return Acted({"actions": policy.sample(generator)}, rnn_state)

    def greedy(self, model: QNetwork, obs: dict[str, Tensor], rnn_state: Tensor | None) -> Acted:
        values, rnn_state = model.step(obs, rnn_state)
        return Acted({"actions": allowed(values, obs).argmax(dim=-1)}, rnn_state)

    def outputs(
        self, model: QNetwork, obs: dict[str, Tensor], rnn_state: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        [features], rnn_state = model.step_features(obs, rnn_state)
        values = allowed(model.values(features), obs)
        return {"action": values.argmax(dim=-1), "q_values": values}, rnn_state

    def after_update(self, model: QNetwork, batch: Minibatch, loss: Loss, applied: Tensor) -> None:
        model.center_weights(applied)
        model.update_normalizers(batch.obs, batch.shown & applied)


def allowed(values: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
    """Values [..., A], the lowest ones for what a mask forbids."""
    mask = obs.get(ACTION_MASK)
    return values if mask is None else values.masked_fill(~mask, torch.finfo(values.dtype).min)


@torch.no_grad()
def q_statistics(
    loss: Tensor, values: Tensor, all_values: Tensor, returns: Tensor, mask: Tensor
) -> dict[str, Tensor]:
    """`QConfig.STATISTICS` of rows [...], whose actions' values were to be `returns`.

    Args:
        all_values: [..., A].
    """
    return {
        "value_loss": loss.detach(),
        "explained_variance": losses.explained_variance(values, returns, mask),
        "action_value": losses.masked_mean(values, mask),
        "greedy_fraction": losses.masked_mean((values >= all_values.amax(dim=-1)).float(), mask),
    }
