"""Soft actor-critic: a policy that earns rewards and stays as random as it is told to.

Haarnoja et al. 2018 (arXiv:1812.05905): twin critics of actions, target critics that follow them,
a policy that is moved along the critics' gradient, and a temperature, the price of entropy, that
is learned as well. It learns from a memory of what any policy did.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sfrl.algorithms.algorithm import Acted, Loss
from sfrl.envs import ActionSpec, EnvSpec, Leaf
from sfrl.experience.minibatch import Minibatch
from sfrl.maths import losses
from sfrl.maths.returns import window_returns
from sfrl.nets.distributions import SquashedGaussian, make_distribution
from sfrl.nets.encoders import HIDDEN_GAIN, init_orthogonal
from sfrl.nets.heads import TwinCritics
from sfrl.nets.model import Network, make_encoders
from sfrl.settings.sac import HIDDEN, SACConfig

_LOG_STD = (-20.0, 2.0)
_MOST = 1 - 1e-6  # of a random number between -1 and 1, which atanh takes to 7


class SACNetwork(Network):
    """Policy, critics, target critics and temperature.

    The critics' loss trains the encoder; the policy takes what that makes of observations. The
    second encoder is the target critics', and follows the first one as they follow the critics.
    """

    def __init__(
        self,
        encoder: nn.Module,
        leaves: tuple[Leaf, ...],
        actions: ActionSpec,
        *,
        target_encoder: nn.Module,
        normalize_obs: bool = False,
    ) -> None:
        super().__init__(encoder, leaves, value_encoder=target_encoder, normalize_obs=normalize_obs)
        target_encoder.load_state_dict(encoder.state_dict())  # whose lazy layers have sizes now
        self.actions = actions
        num_features, num_numbers = self.num_features, actions.num_numbers
        self.actor = nn.Sequential(
            *(nn.Linear(num_features, HIDDEN), nn.ReLU()),
            *(nn.Linear(HIDDEN, HIDDEN), nn.ReLU()),
            nn.Linear(HIDDEN, 2 * num_numbers),
        )
        init_orthogonal(self.actor, HIDDEN_GAIN)
        init_orthogonal(self.actor[-1], gain=0.01)  # it begins with means 0 and deviations 1
        self.critics = TwinCritics(num_features + num_numbers, HIDDEN)
        self.target_critics = copy.deepcopy(self.critics)
        self.log_temperature = nn.Parameter(torch.zeros(()))
        target_encoder.requires_grad_(False)
        self.target_critics.requires_grad_(False)

    def policy(self, features: Tensor) -> SquashedGaussian:
        """Over the actions, of features [..., F]."""
        mean, log_std = self.actor(features).chunk(2, dim=-1)
        log_std = log_std.clamp(*_LOG_STD)
        policy = make_distribution(self.actions, mean, log_std, None, "tanh")
        assert isinstance(policy, SquashedGaussian)
        return policy

    @torch.inference_mode()
    def step(self, obs: Mapping[str, Tensor]) -> SquashedGaussian:
        """The policy for leaves [B, *shape]. No gradients."""
        [features], _ = self.step_features(obs, needs_value=False)
        return self.policy(features)

    def networks(self) -> list[list[nn.Parameter]]:
        """Policy, critics, temperature."""
        critics = [*self.encoder.parameters(), *self.critics.parameters()]
        return [[*self.actor.parameters()], critics, [self.log_temperature]]

    @torch.no_grad()
    def follow(self, share: Tensor) -> None:
        """Move the targets by this share of the way to the critics."""
        assert self.value_encoder is not None
        pairs = ((self.target_critics, self.critics), (self.value_encoder, self.encoder))
        for targets, sources in pairs:
            for target, source in zip(targets.parameters(), sources.parameters(), strict=True):
                target.lerp_(source, share)


class SAC:
    def __init__(self, config: SACConfig, env: EnvSpec) -> None:
        self.config = config
        self.env = env

    def make_model(self) -> SACNetwork:
        config, env = self.config, self.env
        encoder, target_encoder = make_encoders(
            config.model, env.leaves, num_encoders=2, normalize_obs=config.normalize_obs
        )
        assert target_encoder is not None
        return SACNetwork(
            encoder,
            env.leaves,
            env.actions,
            target_encoder=target_encoder,
            normalize_obs=config.normalize_obs,
        )

    def act(
        self,
        model: SACNetwork,
        obs: dict[str, Tensor],
        rnn_state: Tensor | None,
        exploration: Tensor | None,
        generator: torch.Generator,
    ) -> Acted:
        assert exploration is not None, "`SACConfig.exploration` gives them"
        policy = model.step(obs)
        drawn = policy.sample(generator)
        # Evenly between the bounds.
        random = torch.empty_like(drawn).uniform_(-_MOST, _MOST, generator=generator).atanh_()
        return Acted({"actions": torch.where(exploration.unsqueeze(-1) > 0, random, drawn)}, None)

    def greedy(self, model: SACNetwork, obs: dict[str, Tensor], rnn_state: Tensor | None) -> Acted:
        return Acted({"actions": model.step(obs).mode()}, None)

    def outputs(
        self, model: SACNetwork, obs: dict[str, Tensor], rnn_state: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        [features], _ = model.step_features(obs, needs_value=False)
        policy = model.policy(features)
        return {"action": policy.mode(), "mean": policy.mean, "log_std": policy.log_std}, None

    def loss(self, model: SACNetwork, target: None, batch: Minibatch, version: Tensor) -> Loss:
        """Of the first row of each window; the others lead to its target."""
        config = self.config
        lag = version - batch.policy_version
        mask = batch.valid[:-1] & (lag <= config.lag_limit)  # [n, C]
        first = mask[0]
        features, target_features = model.unroll_features(batch.obs, None, batch.shown)
        temperature = model.log_temperature.exp()
        policy = model.policy(features[0].detach())
        assert batch.ends is not None, "a memory gives windows"
        with torch.no_grad():
            at_end = model.policy(features[1])
            raw = at_end.rsample()
            values = model.target_critics(target_features[1], raw.tanh())
            returns = window_returns(
                losses.shape_rewards(batch.rewards, config.reward_clip, config.reward_scale),
                # A truncated step bootstraps from the row after it, which is not valid.
                discounts=config.gamma * (~batch.terminated).float(),
                valid=batch.valid[:-1],
                ends=batch.ends,
                end_values=values.amin(dim=0) - temperature * at_end.log_prob_of_action(raw),
            )
        taken = batch.acted["actions"][0].tanh()
        values = model.critics(features[0], taken)  # [2, C]
        targets = returns.expand_as(values)
        value_loss = 2 * losses.value_loss(values, targets, first.expand_as(values))

        raw = policy.rsample()
        log_probs = policy.log_prob_of_action(raw)  # [C]
        improved = model.critics(features[0].detach(), raw.tanh(), frozen=True).amin(dim=0)
        policy_loss = losses.masked_mean(temperature.detach() * log_probs - improved, first)
        entropy = -losses.masked_mean(log_probs.detach(), first)
        # 0 while a mask leaves nothing to measure the entropy of.
        excess = (entropy - config.target_entropy * policy.mean.shape[-1]) * first.any()
        total = value_loss + policy_loss + temperature * excess

        with torch.no_grad():
            value = values.mean(dim=0)
            statistics = {
                "policy_loss": policy_loss.detach(),
                "value_loss": value_loss.detach(),
                "entropy": entropy,
                "temperature": temperature.detach(),
                "action_value": losses.masked_mean(value, first),
                "explained_variance": losses.explained_variance(value, returns, first),
            }
        return Loss(total, statistics, returns, mask)

    def after_update(
        self, model: SACNetwork, batch: Minibatch, loss: Loss, applied: Tensor
    ) -> None:
        model.center_weights(applied)
        model.follow(self.config.tau * applied)
        model.update_normalizers(batch.obs, batch.shown & applied)
