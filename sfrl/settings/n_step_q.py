from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from sfrl import envs
from sfrl.settings.config import Config
from sfrl.settings.fields import Count, at_least

# What epsilons become, and how many environments have each (Mnih et al. 2016, section 5.1).
_FINAL_EPSILONS = (0.1, 0.01, 0.5)
_SHARES = (0.4, 0.3, 0.3)


@dataclass(frozen=True, kw_only=True)
class NStepQConfig(Config):
    """n-step Q-learning (--algorithm=n_step_q)."""

    STATISTICS = ("value_loss", "explained_variance", "action_value", "greedy_fraction")
    SHOWN = STATISTICS
    HEADLINE = "action_value"

    algorithm: Literal["n_step_q"] = "n_step_q"
    target_every: Count = 100
    """The target network becomes a copy of the model every so many optimizer steps, at the end of
    the training batch that reaches them."""
    epsilon_frames: Annotated[int, at_least(0)] = 4_000_000
    """Emulated frames over which the probability of a random action falls from 1 to 0.1, 0.01 or
    0.5, which is drawn for each environment."""

    @classmethod
    def defaults_in(cls, spec: envs.EnvSpec, given: Mapping[str, object]) -> dict[str, object]:
        if spec.kind == "atari":
            return {}
        return {"epsilon_frames": 50_000}

    def problems_in(self, spec: envs.EnvSpec) -> list[str]:
        if spec.actions.is_single:
            return []
        return [
            f"algorithm=n_step_q must have one Discrete to choose from, and an action of "
            f"{self.env} is {_in_words(spec.actions)}; use algorithm=actor_critic"
        ]

    @property
    def target_period(self) -> int:
        return self.target_every

    def exploration(self, env_frames: float) -> NDArray[np.float32]:
        """[splits, N]: all begin at 1 and fall in a line to a final value of their own."""
        final = _final_epsilons(self.seed, self.splits, self.envs_per_split)
        progress = min(1.0, env_frames / self.epsilon_frames) if self.epsilon_frames else 1.0
        return (1 - progress * (1 - final)).astype(np.float32)


def _in_words(actions: envs.ActionSpec) -> str:
    """As a user knows the space: Gymnasium's names."""
    choices, numbers = len(actions.choices), actions.num_numbers
    if not numbers:
        return f"{choices} choices (MultiDiscrete, MultiBinary, or a Dict or Tuple)"
    if not choices:
        return f"a Box of {numbers}"
    return f"a Dict or Tuple of a Box of {numbers} and {choices} choices"


@cache
def _final_epsilons(seed: int, *shape: int) -> NDArray[np.float32]:
    rng = np.random.default_rng([seed, len(_SHARES)])
    return rng.choice(np.array(_FINAL_EPSILONS, np.float32), size=shape, p=_SHARES)
