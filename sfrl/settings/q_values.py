"""The settings of algorithms that learn the values of actions."""

from __future__ import annotations

from dataclasses import dataclass

from sfrl import envs
from sfrl.settings.config import Config
from sfrl.settings.fields import Count, linear_size


@dataclass(frozen=True, kw_only=True)
class QConfig(Config):
    """Values of actions."""

    STATISTICS = ("value_loss", "explained_variance", "action_value", "greedy_fraction")
    SHOWN = STATISTICS
    HEADLINE = "action_value"

    FIXED_ON_RESUME = (*Config.FIXED_ON_RESUME, "dueling")
    COSTS = (*Config.COSTS, "dueling")

    target_every: Count = 100
    """The target network becomes a copy of the model every so many optimizer steps, at the end of
    the training batch that reaches them."""
    dueling: bool = False
    """The network values states and, apart from that, how much better or worse each action is
    (Wang et al. 2016, arXiv:1511.06581)."""

    @property
    def target_period(self) -> int:
        return self.target_every

    def head_size(self, num_features: int, actions: envs.ActionSpec) -> int:
        of_state = linear_size(num_features, 1) if self.dueling else 0
        return super().head_size(num_features, actions) + of_state

    def problems_in(self, spec: envs.EnvSpec) -> list[str]:
        problems = super().problems_in(spec)
        if spec.actions.is_single:
            return problems
        return [
            *problems,
            f"system={self.system} must have one Discrete to choose from, and an action of "
            f"{self.env} is {spec.actions.in_words}; use system=appo",
        ]
