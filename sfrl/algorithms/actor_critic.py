"""Actor-critic with V-trace: PPO's clipped ratio (appo) or IMPALA's policy gradient (vtrace)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfrl.algorithms.algorithm import Acted, Loss
from sfrl.envs import ACTION_MASK, ActionSpec, Bounds, EnvSpec, Leaf
from sfrl.experience.minibatch import Minibatch
from sfrl.maths import losses
from sfrl.maths.vtrace import vtrace
from sfrl.nets.distributions import (
    FORBIDDEN,
    Distribution,
    Gaussian,
    Joint,
    fill_forbidden,
    make_distribution,
)
from sfrl.nets.encoders import init_orthogonal
from sfrl.nets.heads import ValueHead
from sfrl.nets.model import Network, make_encoders
from sfrl.settings.actor_critic import ActorCriticConfig

# A deviation of advantages, in units of the reward; smaller ones are not blown up to 1. Noise would
# move the policy at random, and undo what a rare reward has taught (docs/experiments.md).
_LEAST_ADVANTAGE = 0.05
_IMPACT_CLIP = math.log(2)  # of mu / the target policy, the paper's rho
_LEAST_PROBABILITY = 1e-6  # of --correction=epsilon
# Which share of the entropy bonus is left where all advantages are 0. Alone it would undo as much.
_LEAST_BONUS = 0.1


class PolicyOutput(NamedTuple):
    logits: Tensor  # [B, A] float32, the policy's parameters: logits of choices, then means
    values: Tensor  # [B] float32, in units of the reward
    rnn_state: Tensor | None  # [B, H] float32 after this observation; None without a memory


class ActorCriticNetwork(Network):
    """Policy and value of an observation, on one shared encoder or on one each.

    Initialization is orthogonal, with gain 0.01 for the policy head, so that all actions start
    about equally likely, and 1 for the value head. The deviations of numbers are parameters of
    their own, the same for all observations (Schulman et al. 2015, arXiv:1502.05477).
    """

    def __init__(
        self,
        encoder: nn.Module,
        leaves: tuple[Leaf, ...],
        actions: ActionSpec,
        *,
        bounds: Bounds = "clip",
        normalize_returns: bool = False,
        **parts: Any,  # of `Network`
    ) -> None:
        super().__init__(encoder, leaves, **parts)
        self.actions = actions
        self.bounds = bounds
        self.policy_head = nn.Linear(self.num_features, actions.num_logits + actions.num_numbers)
        self.log_std = nn.Parameter(torch.zeros(actions.num_numbers)) if actions.low else None
        self.value_head = ValueHead(self.num_features, normalize_returns)
        init_orthogonal(self.policy_head, gain=0.01)
        init_orthogonal(self.value_head, gain=1.0)

    @torch.inference_mode()
    def step(self, obs: Mapping[str, Tensor], rnn_state: Tensor | None = None) -> PolicyOutput:
        """Of leaves [B, *shape] and rnn_state [B, H] (None: zeros). No gradients."""
        features, rnn_state = self.step_features(obs, rnn_state)
        return PolicyOutput(self.policy_head(features[0]), self.value_head(features[-1]), rnn_state)

    @torch.inference_mode()
    def preferences(
        self, obs: Mapping[str, Tensor], rnn_state: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`step` without the values, which nobody needs to act: logits and recurrent state."""
        features, rnn_state = self.step_features(obs, rnn_state, needs_value=False)
        return self.policy_head(features[0]), rnn_state

    def policy(self, logits: Tensor, obs: Mapping[str, Tensor]) -> Distribution:
        """Over the actions, of logits [..., A] and the observations [..., *shape] they are for."""
        mask = obs.get(ACTION_MASK)
        return make_distribution(self.actions, logits, self.log_std, mask, self.bounds)

    def unroll(
        self, obs: Mapping[str, Tensor], rnn_state: Tensor | None, valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """To learn: logits [T+1, B, A] and values [T+1, B] of trajectories, both float32.

        The arguments are those of `unroll_features`.
        """
        features = self.unroll_features(obs, rnn_state, valid)
        return self.policy_head(features[0]), self.value_head(features[-1])

    def networks(self) -> list[list[nn.Parameter]]:
        """One, or policy and value."""
        if self.value_encoder is None:
            return super().networks()
        of_value = (self.value_encoder, self.value_core, self.value_head)
        value = [p for module in of_value if module is not None for p in module.parameters()]
        names = {id(p) for p in value}
        return [[p for p in self.parameters() if id(p) not in names], value]

    def normalize_returns(self, returns: Tensor) -> Tensor:
        """Values or targets in the units that the value loss uses; any shape.

        With --normalize-returns that is the returns' size for a shared network, so that the value's
        gradient does not drown the policy's. A network of its own has the layer's outputs as unit:
        its gradient is then nearly always clipped, and no update counts for more than others.
        """
        unit = 1.0 if self.value_encoder is None else ValueHead.REACH
        return self.value_head.normalize(returns, unit)

    def after_optimizer_step(
        self, vs: Tensor, mask: Tensor, was_applied: Tensor | bool = True
    ) -> None:
        """Center the weights again, and let the return normalization follow the targets.

        It edits parameters in place: never call it between a forward pass and its backward pass.
        Normalization changes no output.

        Args:
            vs: [T, B], the targets of the step.
            mask: [T, B] bool, the rows that count.
            was_applied: scalar; False, and nothing changes.
        """
        self.center_weights(was_applied)
        self.value_head.update_size(vs, mask & was_applied)


class ActorCritic:
    """V-trace's targets and advantages; the policy's loss is as `config.loss` says."""

    def __init__(self, config: ActorCriticConfig, env: EnvSpec) -> None:
        self.config = config
        self.env = env
        self._num_noises = config.num_noises(env)
        # While nothing is rewarded advantages are the critic's noise alone.
        self._least_advantage = _LEAST_ADVANTAGE if config.normalize_returns else 0.0

    def make_model(self) -> ActorCriticNetwork:
        config, env = self.config, self.env
        return make_model(
            config.model,
            env.leaves,
            env.actions,
            bounds=config.action_bounds,
            value_encoder=config.value_encoder,
            memory=config.memory,
            normalize_obs=config.normalize_obs,
            normalize_returns=config.normalize_returns,
        )

    def act(
        self,
        model: ActorCriticNetwork,
        obs: dict[str, Tensor],
        rnn_state: Tensor | None,
        exploration: Tensor | None,
        generator: torch.Generator,
    ) -> Acted:
        memory, before = self._parts_of(model, obs, rnn_state)
        logits, memory = model.preferences(obs, memory)
        policy = model.policy(logits, obs)
        noise = None
        if before is None:
            actions = policy.sample(generator)
        else:
            assert isinstance(policy, Gaussian | Joint), "which have numbers"
            noise = self._noise(before, exploration, generator)
            actions = policy.sample(generator, noise)
        fields = {"actions": actions, "log_probs": policy.log_prob(actions)}
        return Acted(fields, _joined(memory, noise))

    def _parts_of(
        self, model: ActorCriticNetwork, obs: dict[str, Tensor], state: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """What acting keeps: the network's memory, [B, H], and the last noise, [B, D].

        Each is None if there is none to keep. Noise of zeros was not drawn: an episode begins, or
        the actions before were the likeliest.
        """
        if not self._num_noises:
            return state, None
        if state is None:
            first = next(iter(obs.values()))
            return None, torch.zeros(len(first), self._num_noises, device=first.device)
        return self._memory_of(model, state), state[:, -self._num_noises :]

    def _memory_of(self, model: ActorCriticNetwork, state: Tensor) -> Tensor | None:
        """The network's part of what acting keeps, [B, H]; None without a memory."""
        return state[:, : model.state_size] if model.state_size else None

    def _noise(
        self, before: Tensor, exploration: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """[B, D] of a standard Gaussian, which resembles `before` where that was drawn."""
        assert exploration is not None, "`ActorCriticConfig.exploration` gives the correlations"
        fresh = torch.empty_like(before)
        fresh.normal_(generator=generator)
        share = exploration.unsqueeze(1) * before.any(dim=1, keepdim=True)
        return share * before + (1 - share.square()).sqrt() * fresh

    def greedy(
        self, model: ActorCriticNetwork, obs: dict[str, Tensor], rnn_state: Tensor | None
    ) -> Acted:
        memory, noise = self._parts_of(model, obs, rnn_state)
        logits, memory = model.preferences(obs, memory)
        return Acted({"actions": model.policy(logits, obs).mode()}, _joined(memory, noise))

    def outputs(
        self, model: ActorCriticNetwork, obs: dict[str, Tensor], rnn_state: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        features, rnn_state = model.step_features(obs, rnn_state)
        parameters = model.policy_head(features[0])
        outputs = {"action": model.policy(parameters, obs).mode()}
        spec = model.actions
        logits, mean = parameters.split([spec.num_logits, spec.num_numbers], dim=-1)
        if spec.choices:
            outputs["logits"] = fill_forbidden(logits, obs.get(ACTION_MASK), FORBIDDEN)
        if model.log_std is not None:
            outputs |= {"mean": mean, "log_std": model.log_std.expand_as(mean)}
        return {**outputs, "value": model.value_head(features[-1])}, rnn_state

    def loss(
        self,
        model: ActorCriticNetwork,
        target: ActorCriticNetwork | None,  # the policy between, if `config.correction` has one
        batch: Minibatch,
        version: Tensor,
    ) -> Loss:
        state = None if batch.rnn_state is None else self._memory_of(model, batch.rnn_state)
        logits, values = model.unroll(batch.obs, state, batch.valid)
        lag = version - batch.policy_version  # [T, C], updates since the row's policy
        mask = batch.valid[:-1] & (lag <= self.config.lag_limit)
        between = None
        if target is not None:
            with torch.no_grad():
                logits_between = target.unroll(batch.obs, state, batch.valid)[0][:-1]
                obs = {name: leaf[:-1] for name, leaf in batch.obs.items()}
                policy = target.policy(logits_between, obs)
                between = policy.log_prob(batch.acted["actions"])
        return self.loss_of(model, batch, logits, values, mask, between)

    def loss_of(
        self,
        model: ActorCriticNetwork,
        batch: Minibatch,
        logits: Tensor,  # [T+1, C, A] float32
        values: Tensor,  # [T+1, C] float32
        mask: Tensor,  # [T, C] bool, the rows to learn from
        between: Tensor | None = None,  # [T, C] log-probabilities under the policy between
    ) -> Loss:
        config = self.config
        obs = {name: leaf[:-1] for name, leaf in batch.obs.items()}
        policy = model.policy(logits[:-1], obs)
        log_probs = policy.log_prob(batch.acted["actions"])  # [T, C]
        behavior_log_probs = batch.acted["log_probs"]
        log_rhos = log_probs.detach() - behavior_log_probs
        corrects = config.correction in ("vtrace", "decoupled", "impact", "filter")
        # The policy around which PPO clips, and how much a row counts.
        reference, row_weights = behavior_log_probs, None
        trace_rhos = log_rhos if corrects else torch.zeros_like(log_rhos)
        if between is not None:
            if config.correction == "impact":
                trace_rhos = between - behavior_log_probs
                reference = torch.maximum(between, behavior_log_probs - _IMPACT_CLIP)
            else:
                reference, row_weights = between, (between - behavior_log_probs).exp()
        returns = vtrace(
            trace_rhos,
            # `truncated` needs no term here: the row after it is invalid, which cuts the trace
            # there, and its value, of the episode's true final observation, is the bootstrap.
            discounts=config.gamma * (~batch.terminated).float(),
            rewards=losses.shape_rewards(batch.rewards, config.reward_clip, config.reward_scale),
            values=values.detach(),
            valid=batch.valid[:-1],
            rho_clip=config.rho_clip,
            c_clip=config.c_clip,
            lambda_=config.trace_lambda,
        )
        advantages = returns.advantages
        bonus: float | Tensor = config.entropy_coef
        if config.normalize_advantages:
            least = self._least_advantage
            advantages, deviation = losses.normalize_advantages(advantages, mask, least)
            if least:
                bonus = bonus * (deviation / least).clamp(_LEAST_BONUS, 1.0)
        # PPO's ratio corrects for the behavior policy itself; V-trace's gradient needs rho.
        if config.correction == "filter":
            policy_loss = losses.filtered_policy_loss(
                log_probs, behavior_log_probs, advantages, mask, config.ppo_clip / 2
            )
        elif config.loss == "appo":
            weighted = advantages if row_weights is None else advantages * row_weights
            policy_loss = losses.ppo_policy_loss(
                log_probs, reference, weighted, mask, config.ppo_clip
            )
        else:
            weights, floor = returns.clipped_rhos, 0.0
            if config.correction == "one-step":
                weights = log_rhos.exp().clamp(max=config.rho_clip)
            elif config.correction == "epsilon":
                floor = _LEAST_PROBABILITY
            policy_loss = losses.vtrace_policy_loss(log_probs, weights, advantages, mask, floor)
        normalize = model.normalize_returns
        value_loss = losses.value_loss(normalize(values[:-1]), normalize(returns.vs), mask)
        entropy = losses.masked_mean(policy.entropy(), mask)
        total = policy_loss + config.value_coef * value_loss - bonus * entropy

        with torch.no_grad():
            rhos = log_rhos.exp()
            ratios = rhos if between is None else (log_probs - reference).exp()
            rho_variance, effective_sample_size = losses.weight_statistics(log_rhos, mask)
            clipped = {
                "rho_clipped_fraction": rhos > config.rho_clip,
                "ppo_clipped_fraction": (ratios - 1).abs() > config.ppo_clip,
            }
            statistics = {
                "policy_loss": policy_loss.detach(),
                "value_loss": value_loss.detach(),
                "entropy": entropy.detach(),
                **{n: losses.masked_mean(rows.float(), mask) for n, rows in clipped.items()},
                "rho_variance": rho_variance,
                "effective_sample_size": effective_sample_size,
                # Of KL(behavior || target).
                "approx_kl": losses.masked_mean(rhos - 1 - log_rhos, mask),
                "explained_variance": losses.explained_variance(values[:-1], returns.vs, mask),
            }
            reach = None
            if config.loss == "appo" and config.correction != "filter":
                # The clip takes gradients away, and a step of Muon gets no shorter by that.
                reach = (1 - statistics["ppo_clipped_fraction"]).square()
        return Loss(total, statistics, returns.vs, mask, reach)

    def after_update(
        self, model: ActorCriticNetwork, batch: Minibatch, loss: Loss, applied: Tensor
    ) -> None:
        model.after_optimizer_step(loss.targets, loss.mask, applied)
        model.update_normalizers(batch.obs, batch.valid & applied)


def _joined(memory: Tensor | None, noise: Tensor | None) -> Tensor | None:
    """What acting keeps, of `ActorCritic._parts_of`'s parts."""
    if memory is None or noise is None:
        return noise if memory is None else memory
    return torch.cat([memory, noise], dim=1)


def make_model(
    name: str,
    leaves: tuple[Leaf, ...],
    actions: ActionSpec,
    *,
    value_encoder: str = "shared",
    normalize_obs: bool = False,
    **parts: Any,  # of `ActorCriticNetwork`
) -> ActorCriticNetwork:
    """A fresh model on the CPU; see `sfrl.nets.model.make_encoders` for what is raised."""
    encoder, value = make_encoders(
        name,
        leaves,
        num_encoders=2 if value_encoder == "separate" else 1,
        normalize_obs=normalize_obs,
    )
    return ActorCriticNetwork(
        encoder, leaves, actions, value_encoder=value, normalize_obs=normalize_obs, **parts
    )
