from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from sfrl.settings.fields import USUAL, Count, Positive, Settings, Share, at_least, at_most

# Of minibatches and of epochs: the learner has a row of numbers for each minibatch of each epoch.
_Steps = Annotated[Count, at_most(1000)]


class ReplaySpec(NamedTuple):
    """A memory that minibatches are drawn from."""

    capacity: int  # rows, those that only reset included
    min_size: int  # decisions in it before learning begins
    updates_per_decision: float
    window: int = 1  # decisions that are drawn together


@dataclass(frozen=True, kw_only=True)
class ExperienceSettings(Settings):
    """What is learned from."""

    rollout_length: Count = 32
    """Decisions per trajectory (T)."""
    slots_per_split: Count = 2
    """Trajectory slots a split owns. More let it run ahead of the learner, at more policy lag."""
    batch_size: Annotated[Count, USUAL] = 256
    """Decisions per optimizer step; whole trajectories, so a multiple of --rollout-length."""
    minibatches: _Steps = 4
    """Optimizer steps per epoch: one training batch is batch_size * minibatches decisions."""
    epochs: _Steps = 2
    """Passes over each training batch."""
    max_policy_lag: Annotated[int, at_least(0)] = 0
    """Rows whose policy is more optimizer steps behind than this are masked and counted. 0: than
    the steps of 25 rounds of all environments, however many there are."""
    forced_lag: Annotated[int, at_least(0)] = 0
    """Act with weights this many optimizer steps older than the newest, to see what lag does
    (docs/lag.md)."""
    gamma: Annotated[Share, USUAL] = 0.99
    """Discount per decision."""
    reward_clip: Literal["sign", "none"] = "sign"
    """What the learner makes of rewards; logged scores are never clipped."""
    reward_scale: Positive = 1.0
    """Factor on rewards in the learner, after clipping."""

    @property
    def replay(self) -> ReplaySpec | None:
        """None: what slots hold is learned from in their order, and forgotten."""
        return None
