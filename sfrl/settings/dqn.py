from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from sfrl import envs
from sfrl.settings.fields import USUAL, Count, NotNegative, Positive, Share, at_least, at_most
from sfrl.settings.q_values import QConfig
from sfrl.settings.replay import ReplayConfig


# A dataclass takes the fields of its first base last: those of `ReplayConfig` are to prevail.
@dataclass(frozen=True, kw_only=True)
class DQNConfig(ReplayConfig, QConfig):
    """Deep Q-network (--system=dqn)."""

    ALGORITHM = "dqn"

    system: str = "dqn"
    double: bool = True
    """The model chooses the action whose value, by the target network, a target ends with (van
    Hasselt et al. 2016, arXiv:1509.06461). Without it the target network does both."""
    epsilon_frames: Annotated[int, at_least(0), USUAL] = 1_000_000
    """Emulated frames over which the probability of a random action falls from 1 to a final value
    of each environment."""
    final_epsilon: Share = 0.4
    """The largest final probability of a random action, that of the first environment."""
    epsilon_spread: NotNegative = 7.0
    """In the end environment i of N has --final-epsilon to the power of 1 + i / (N - 1) times this
    (Horgan et al. 2018, arXiv:1803.00933); a single one has the middle. 0: all have the same."""

    n_step: Annotated[Count, at_most(100)] = 3
    target_every: Count = 500
    learning_starts: Count = 20_000
    updates_per_decision: Positive = 0.0625
    envs_per_worker: Count = 8
    batch_size: Count = 128
    learning_rate: Positive = 2.5e-4
    lr_schedule: Literal["linear", "root", "constant"] = "constant"
    optimizer_eps: Positive = 1.5e-4
    max_grad_norm: Positive = 10.0

    @classmethod
    def defaults_in(cls, spec: envs.EnvSpec, given: Mapping[str, object]) -> dict[str, object]:
        if spec.kind == "atari":
            return {}
        return {
            "epsilon_frames": 20_000,
            "learning_starts": 1_000,
            "updates_per_decision": 0.25,
            "replay_size": 100_000,
            "learning_rate": 1e-3,
            "optimizer_eps": 1e-8,
        }

    def exploration(self, env_frames: float) -> NDArray[np.float32]:
        """[splits, N]: all begin at 1 and fall in a line to a final value of their own."""
        number = self.splits * self.envs_per_split
        place = np.arange(number) / (number - 1) if number > 1 else np.array([0.5])
        final = self.final_epsilon ** (1 + self.epsilon_spread * place)
        progress = min(1.0, env_frames / self.epsilon_frames) if self.epsilon_frames else 1.0
        epsilons = (1 - progress * (1 - final)).astype(np.float32)
        return epsilons.reshape(self.splits, self.envs_per_split)
