"""What everyone but the networks must know of an algorithm, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sfrl.envs import EnvSpec
from sfrl.settings.config import Config


class RowField(NamedTuple):
    """What acting writes into a row of a slot for each environment, besides others, by a name."""

    dtype: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class AlgorithmSpec:
    """One algorithm. Its networks, how it acts and what it learns from are in sfrl/algorithms/."""

    acted: Callable[[EnvSpec], Mapping[str, RowField]]
    """Fields of a row that acting writes; `actions` is one of them."""
    statistics: tuple[str, ...]
    """What it tells of an update, besides what the learner tells itself, the most telling first:
    a line for people has the third, a panel the first four. See docs/metrics.md."""
    head_size: Callable[[Config, int, int], int]
    """Numbers in its heads, of (config, features, actions)."""


def _actor_critic_acts(env: EnvSpec) -> dict[str, RowField]:
    return {
        "actions": RowField("int64"),
        "log_probs": RowField("float32"),  # of the action under the policy that took it
    }


def _actor_critic_heads(config: Config, num_features: int, num_actions: int) -> int:
    normalizer = 2 if config.normalize_returns else 0
    return linear_size(num_features, num_actions) + linear_size(num_features, 1) + normalizer


ALGORITHMS = {
    "actor_critic": AlgorithmSpec(
        acted=_actor_critic_acts,
        statistics=(
            "policy_loss",
            "value_loss",
            "entropy",
            "rho_clipped_fraction",
            "ppo_clipped_fraction",
            "approx_kl",
            "explained_variance",
        ),
        head_size=_actor_critic_heads,
    )
}


def linear_size(inputs: int, outputs: int) -> int:
    """Numbers in a linear layer."""
    return (inputs + 1) * outputs
