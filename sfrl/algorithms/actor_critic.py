"""Actor-critic with V-trace: PPO's clipped ratio (appo) or IMPALA's policy gradient (vtrace)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sfrl.algorithms.algorithm import Acted, Loss
from sfrl.envs import EnvSpec
from sfrl.experience.minibatch import Minibatch
from sfrl.maths import losses
from sfrl.maths.vtrace import vtrace
from sfrl.nets.distributions import Categorical
from sfrl.nets.encoders import init_orthogonal
from sfrl.nets.heads import ValueHead
from sfrl.nets.model import Network, make_encoders
from sfrl.settings.actor_critic import ActorCriticConfig


class PolicyOutput(NamedTuple):
    logits: Tensor  # [B, A] float32
    values: Tensor  # [B] float32, in units of the reward
    rnn_state: Tensor | None  # [B, H] float32 after this observation; None without a GRU


class ActorCriticNetwork(Network):
    """Policy and value of an observation, on one shared encoder or on one each.

    Initialization is orthogonal, with gain 0.01 for the policy head, so that all actions start
    about equally likely, and 1 for the value head.
    """

    def __init__(
        self,
        encoder: nn.Module,
        obs_shape: tuple[int, ...],
        num_actions: int,
        *,
        obs_is_image: bool,
        value_encoder: nn.Module | None = None,
        rnn_size: int = 0,
        normalize_returns: bool = False,
    ) -> None:
        super().__init__(
            encoder,
            obs_shape,
            obs_is_image=obs_is_image,
            value_encoder=value_encoder,
            rnn_size=rnn_size,
        )
        self.policy_head = nn.Linear(self.num_features, num_actions)
        self.value_head = ValueHead(self.num_features, normalize_returns)
        init_orthogonal(self.policy_head, gain=0.01)
        init_orthogonal(self.value_head, gain=1.0)

    @torch.inference_mode()
    def step(self, obs: Tensor, rnn_state: Tensor | None = None) -> PolicyOutput:
        """Of obs [B, *obs_shape] and rnn_state [B, H] (None: zeros). No gradients."""
        features, rnn_state = self.step_features(obs, rnn_state)
        return PolicyOutput(self.policy_head(features[0]), self.value_head(features[-1]), rnn_state)

    @torch.inference_mode()
    def preferences(
        self, obs: Tensor, rnn_state: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`step` without the values, which nobody needs to act: logits and recurrent state."""
        features, rnn_state = self.step_features(obs, rnn_state, needs_value=False)
        return self.policy_head(features[0]), rnn_state

    def unroll(self, obs: Tensor, rnn_state: Tensor | None, valid: Tensor) -> tuple[Tensor, Tensor]:
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

    def make_model(self) -> ActorCriticNetwork:
        config, env = self.config, self.env
        return make_model(
            config.model,
            env.obs_shape,
            env.num_actions,
            obs_is_image=len(env.obs_shape) == 3,
            obs_scale=env.obs_scale,
            value_encoder=config.value_encoder,
            rnn_size=config.rnn_size,
            normalize_returns=config.normalize_returns,
        )

    def act(
        self,
        model: ActorCriticNetwork,
        obs: Tensor,
        rnn_state: Tensor | None,
        epsilon: Tensor | None,
        generator: torch.Generator,
    ) -> Acted:
        logits, rnn_state = model.preferences(obs, rnn_state)
        policy = Categorical(logits)
        actions = policy.sample(generator)
        return Acted({"actions": actions, "log_probs": policy.log_prob(actions)}, rnn_state)

    def greedy(self, model: ActorCriticNetwork, obs: Tensor, rnn_state: Tensor | None) -> Acted:
        logits, rnn_state = model.preferences(obs, rnn_state)
        return Acted({"actions": Categorical(logits).mode()}, rnn_state)

    def loss(
        self, model: ActorCriticNetwork, target: None, batch: Minibatch, version: Tensor
    ) -> Loss:
        logits, values = model.unroll(batch.obs, batch.rnn_state, batch.valid)
        lag = version - batch.policy_version  # [T, C], updates since the row's policy
        mask = batch.valid[:-1] & (lag <= self.config.max_policy_lag)
        return self.loss_of(model, batch, logits, values, mask)

    def loss_of(
        self,
        model: ActorCriticNetwork,
        batch: Minibatch,
        logits: Tensor,  # [T+1, C, A] float32
        values: Tensor,  # [T+1, C] float32
        mask: Tensor,  # [T, C] bool, the rows to learn from
    ) -> Loss:
        config = self.config
        policy = Categorical(logits[:-1])
        log_probs = policy.log_prob(batch.acted["actions"])  # [T, C]
        behavior_log_probs = batch.acted["log_probs"]
        log_rhos = log_probs.detach() - behavior_log_probs
        returns = vtrace(
            log_rhos,
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
        if config.normalize_advantages:
            advantages = losses.normalize_advantages(advantages, mask)
        # PPO's ratio corrects for the behavior policy itself; V-trace's gradient needs rho.
        if config.loss == "appo":
            policy_loss = losses.ppo_policy_loss(
                log_probs, behavior_log_probs, advantages, mask, config.ppo_clip
            )
        else:
            policy_loss = losses.vtrace_policy_loss(
                log_probs, returns.clipped_rhos, advantages, mask
            )
        normalize = model.normalize_returns
        value_loss = losses.value_loss(normalize(values[:-1]), normalize(returns.vs), mask)
        entropy = losses.masked_mean(policy.entropy(), mask)
        total = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy

        with torch.no_grad():
            rhos = log_rhos.exp()
            clipped = {
                "rho_clipped_fraction": rhos > config.rho_clip,
                "ppo_clipped_fraction": (rhos - 1).abs() > config.ppo_clip,
            }
            statistics = {
                "policy_loss": policy_loss.detach(),
                "value_loss": value_loss.detach(),
                "entropy": entropy.detach(),
                **{n: losses.masked_mean(rows.float(), mask) for n, rows in clipped.items()},
                # Of KL(behavior || target).
                "approx_kl": losses.masked_mean(rhos - 1 - log_rhos, mask),
                "explained_variance": losses.explained_variance(values[:-1], returns.vs, mask),
            }
        return Loss(total, statistics, returns.vs, mask)

    def after_update(self, model: ActorCriticNetwork, loss: Loss, applied: Tensor) -> None:
        model.after_optimizer_step(loss.targets, loss.mask, applied)


def make_model(
    name: str,
    obs_shape: tuple[int, ...],
    num_actions: int,
    *,
    obs_is_image: bool,
    obs_scale: float | None = None,
    value_encoder: str = "shared",
    rnn_size: int = 0,
    normalize_returns: bool = False,
) -> ActorCriticNetwork:
    """A fresh model on the CPU; see `sfrl.nets.model.make_encoders` for what is raised.

    Args:
        rnn_size: width of a GRU between encoder and heads; 0 for none.
    """
    encoder, value = make_encoders(
        name,
        obs_shape,
        obs_is_image=obs_is_image,
        obs_scale=obs_scale,
        num_encoders=2 if value_encoder == "separate" else 1,
    )
    return ActorCriticNetwork(
        encoder,
        tuple(obs_shape),
        num_actions,
        obs_is_image=obs_is_image,
        value_encoder=value,
        rnn_size=rnn_size,
        normalize_returns=normalize_returns,
    )
