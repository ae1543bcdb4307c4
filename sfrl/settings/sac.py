from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sfrl import envs
from sfrl.settings.fields import Positive, Share, linear_size
from sfrl.settings.replay import ReplayConfig

HIDDEN = 256  # units in each of the two hidden layers of policy and critics


@dataclass(frozen=True, kw_only=True)
class SACConfig(ReplayConfig):
    """Soft actor-critic (--system=sac)."""

    ALGORITHM = "sac"
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

    system: str = "sac"
    tau: Share = 0.005
    """How far the target critics follow the critics at each optimizer step."""
    target_entropy: float = -1.0
    """Entropy per number of an action, in nats, that the temperature is to bring the policy to;
    of actions between -1 and 1."""

    # The published ones (Haarnoja et al. 2018, arXiv:1812.05905), which clip no gradient.
    action_bounds: Literal["clip", "tanh"] = "tanh"
    reward_clip: Literal["sign", "none"] = "none"
    learning_rate: Positive = 3e-4
    lr_schedule: Literal["linear", "root", "constant"] = "constant"
    optimizer_eps: Positive = 1e-8
    max_grad_norm: Positive = 1e6

    @classmethod
    def defaults_in(cls, spec: envs.EnvSpec, given: Mapping[str, object]) -> dict[str, object]:
        if spec.kind == "vector":  # policy and critics have hidden layers of their own
            return {"model": "flat"}
        return {"replay_size": 50_000}

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
        problems = super().problems_in(spec)
        if not spec.actions.low or spec.actions.choices:
            problems.append(
                f"system={self.system} must have a Box of actions, and an action of {self.env} is "
                f"{spec.actions.in_words}; use system=appo"
            )
        elif min(spec.actions.num_bounds) < 2:
            problems.append(
                f"system={self.system} must have a low and a high bound of each number of an "
                f"action, and {self.env} lacks one (1e10 and more is none): the policy would "
                f"follow its critics without a limit; let its action_space say all bounds, or use "
                f"system=appo"
            )
        return problems

    def problems(self) -> list[str]:
        problems = super().problems()
        if self.action_bounds != "tanh":
            problems.append(
                f"action_bounds={self.action_bounds} must be tanh: clipped actions have no density "
                f"at the bounds, and sac computes the entropy from it"
            )
        return problems
