from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from sfrl import envs
from sfrl.settings.fields import USUAL, at_least
from sfrl.settings.q_values import QConfig

# What epsilons become, and how many environments have each (Mnih et al. 2016, section 5.1).
_FINAL_EPSILONS = (0.1, 0.01, 0.5)
_SHARES = (0.4, 0.3, 0.3)


@dataclass(frozen=True, kw_only=True)
class NStepQConfig(QConfig):
    """Action values from trajectories (--system=n-step-q, async-qn, async-q1, async-sarsa1)."""

    ALGORITHM = "n_step_q"

    system: str = "n-step-q"
    epsilon_frames: Annotated[int, at_least(0), USUAL] = 4_000_000
    """Emulated frames over which the probability of a random action falls from 1 to 0.1, 0.01 or
    0.5, which is drawn for each environment."""

    targets: Literal["n-step", "one-step", "sarsa"] = "n-step"
    """What values learn to be. n-step: the rewards up to the trajectory's end, and the best value
    there; one-step: one reward and the best value after it; sarsa: one reward and the value of the
    action that was chosen after it."""

    @classmethod
    def defaults_in(cls, spec: envs.EnvSpec, given: Mapping[str, object]) -> dict[str, object]:
        if spec.kind == "atari":
            return {}
        return {"epsilon_frames": 50_000, "batch_size": 128}

    def exploration(self, env_frames: float) -> NDArray[np.float32]:
        """[splits, N]: all begin at 1 and fall in a line to a final value of their own."""
        final = _final_epsilons(self.seed, self.splits, self.envs_per_split)
        progress = min(1.0, env_frames / self.epsilon_frames) if self.epsilon_frames else 1.0
        return (1 - progress * (1 - final)).astype(np.float32)

    def problems(self) -> list[str]:
        problems = super().problems()
        if self.targets == "sarsa" and self.rollout_length == 1:
            problems.append(
                "rollout_length=1 must be at least 2 with targets=sarsa: what is chosen after the "
                "last decision of a trajectory is not in it"
            )
        return problems


@cache
def _final_epsilons(seed: int, *shape: int) -> NDArray[np.float32]:
    rng = np.random.default_rng([seed, len(_SHARES)])
    return rng.choice(np.array(_FINAL_EPSILONS, np.float32), size=shape, p=_SHARES)
