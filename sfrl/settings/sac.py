from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from sfrl import envs
from sfrl.settings.config import Config
from sfrl.settings.experience import ReplaySpec
from sfrl.settings.fields import Count, Positive, Share, at_least, at_most, linear_size

HIDDEN = 256  # units in each of the two hidden layers of policy and critics


@dataclass(frozen=True, kw_only=True)
class SACConfig(Config):
    """Soft actor-critic (--algorithm=sac)."""

    STATISTICS = (
        "policy_loss",
        "value_loss",
        "entropy",
        "temperature",
        "action_value",
        "explained_variance",
    )
    SHOWN = ("value_loss", "entropy", "temperature", "action_value")
    HEADLINE = "action_value"

    algorithm: Literal["sac"] = "sac"
    replay_size: Count = 1_000_000
    """Rows that the memory holds, of all environments together; then the oldest are replaced."""
    learning_starts: Count = 2_000
    """Decisions in the memory before learning begins. Those of a new run are random until then."""
    updates_per_decision: Positive = 1.0
    """Optimizer steps for each decision, of one minibatch from the memory each. Workers wait if
    they are ahead."""
    n_step: Annotated[Count, at_most(100)] = 1
    """Rewards in a target before the critics' own estimate."""
    tau: Share = 0.005
    """How far the target critics follow the critics at each optimizer step."""
    target_entropy: float = -1.0
    """Entropy per number of an action, in nats, that the temperature is to bring the policy to;
    of actions between -1 and 1."""

    # The published ones (Haarnoja et al. 2018, arXiv:1812.05905), which clip no gradient. Few
    # environments and small slots, so that updates are spread evenly over the decisions.
    action_bounds: Literal["clip", "tanh"] = "tanh"
    reward_clip: Literal["sign", "none"] = "none"
    envs_per_worker: Count = 4
    num_splits: Count = 1
    rollout_length: Count = 4
    batch_size: Count = 256
    minibatches: Count = 1
    epochs: Count = 1
    max_policy_lag: Annotated[int, at_least(0)] = 1_000_000_000
    learning_rate: Positive = 3e-4
    lr_schedule: Literal["linear", "constant"] = "constant"
    optimizer_eps: Positive = 1e-8
    max_grad_norm: Positive = 1e6

    @classmethod
    def defaults_in(cls, spec: envs.EnvSpec, given: Mapping[str, object]) -> dict[str, object]:
        if spec.kind == "vector":  # policy and critics have hidden layers of their own
            return {"model": "flat"}
        return {"replay_size": 50_000}

    @property
    def replay(self) -> ReplaySpec:
        return ReplaySpec(
            self.replay_size, self.learning_starts, self.updates_per_decision, self.n_step
        )

    @property
    def num_encoders(self) -> int:
        """The second one is the target critics'."""
        return 2

    @property
    def rate_factors(self) -> tuple[float, ...]:
        """Of policy, critics and temperature."""
        return (1.0, 1.0, 1.0)

    def exploration(self, env_frames: float) -> NDArray[np.float32]:
        """All actions are random at first, and none is later."""
        is_random = env_frames < self.learning_starts * self.frameskip
        return np.full((self.splits, self.envs_per_split), is_random, np.float32)

    def head_size(self, num_features: int, actions: envs.ActionSpec) -> int:
        def layers(inputs: int, outputs: int) -> int:
            hidden = linear_size(inputs, HIDDEN) + linear_size(HIDDEN, HIDDEN)
            return hidden + linear_size(HIDDEN, outputs)

        numbers = actions.num_numbers
        policy = layers(num_features, 2 * numbers)
        return policy + 4 * layers(num_features + numbers, 1) + 1  # critics, targets; temperature

    def problems_in(self, spec: envs.EnvSpec) -> list[str]:
        if spec.actions.low and not spec.actions.choices:
            return []
        return [
            f"algorithm=sac is for actions of a Box, and {self.env} has "
            f"{len(spec.actions.choices)} choices and {spec.actions.num_numbers} numbers; use "
            f"algorithm=actor_critic"
        ]

    def problems(self) -> list[str]:
        problems = super().problems()
        if self.action_bounds != "tanh":
            problems.append(
                f"action_bounds={self.action_bounds} must be tanh: clipped actions have no density "
                f"at the bounds, and sac computes the entropy from it"
            )
        if self.rnn != "none":
            problems.append(
                f"rnn={self.rnn} must be none: sac learns from single decisions; leave it out, or "
                f"use algorithm=actor_critic"
            )
        problems += [
            f"{name}={getattr(self, name)} must be 1: it is of trajectories that are learned from "
            f"in order, and sac draws from a memory; use updates_per_decision"
            for name in ("epochs", "minibatches")
            if getattr(self, name) != 1
        ]
        return [*problems, *self._replay_problems()]

    def _replay_problems(self) -> list[str]:
        columns = self.num_workers * self.envs_per_worker
        if min(columns, self.rollout_length, self.n_step) < 1:
            return []  # has been reported, and divides by nothing
        # In each environment's ring a slot, a window and the newest row have to find room.
        least = columns * (self.rollout_length + self.n_step + 2)
        if self.replay_size < least:
            return [
                f"replay_size={self.replay_size} must be at least {least}, so that each of "
                f"{columns} environments (num_workers * envs_per_worker) has room for a slot "
                f"(rollout_length={self.rollout_length}) and n_step={self.n_step} more rows; try "
                f"replay_size={max(least, type(self).replay_size)}"
            ]
        # Episodes of one step have as many rows that only reset.
        most = columns * ((self.replay_size // columns - 1) // 2)
        if self.learning_starts > most:
            return [
                f"learning_starts={self.learning_starts} must be at most {most}, the decisions "
                f"that replay_size={self.replay_size} has room for in any case, beside rows that "
                f"only reset; lower it, or try replay_size="
                f"{columns * (2 * -(-self.learning_starts // columns) + 1)}"
            ]
        return []
