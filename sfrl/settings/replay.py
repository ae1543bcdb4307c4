"""The settings of algorithms that draw minibatches from a memory of past decisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sfrl.settings.config import Config
from sfrl.settings.experience import ReplaySpec
from sfrl.settings.fields import USUAL, Count, Positive, at_most

_ATARI_FRAMES = 4
_USUAL_SIZE = 100_000


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(Config):
    """A memory of past decisions."""

    replay_size: Annotated[Count, USUAL] = 1_000_000
    """Rows that the memory holds, of all environments together; then the oldest are replaced."""
    learning_starts: Count = 2_000
    """Decisions in the memory before learning begins. Until then those of a new run are random with
    sac, and as --epsilon-frames says with dqn."""
    updates_per_decision: Positive = 1.0
    """Optimizer steps for each decision, of one minibatch from the memory each. Workers wait if
    they are ahead."""
    n_step: Annotated[Count, at_most(100)] = 1
    """Rewards in a target before the network's own estimate."""

    # Few environments and small slots, so that updates are spread evenly over the decisions.
    envs_per_worker: Count = 4
    num_splits: Count = 1
    rollout_length: Count = 4
    minibatches: Count = 1
    epochs: Count = 1
    max_policy_lag: Count = 1_000_000_000  # of its rows the oldest are as old as the memory is long

    @property
    def replay(self) -> ReplaySpec:
        return ReplaySpec(
            self.replay_size, self.learning_starts, self.updates_per_decision, self.n_step
        )

    def problems(self) -> list[str]:
        of_rnn = {"rnn": "none", "rnn_size": 0}
        problems = [p for p in super().problems() if p.partition("=")[0] not in of_rnn]
        problems += [
            f"{name}={getattr(self, name)} must be {no}: {self.system} learns from single "
            f"decisions; leave it out, or use system=appo"
            for name, no in of_rnn.items()
            if getattr(self, name) != no
        ]
        problems += [
            f"{name}={getattr(self, name)} must be 1: it is of trajectories that are learned from "
            f"in order, and {self.system} draws from a memory; use updates_per_decision"
            for name in ("epochs", "minibatches")
            if getattr(self, name) != 1
        ]
        return [*problems, *self._replay_problems()]

    def _replay_problems(self) -> list[str]:
        columns = self.num_workers * self.envs_per_worker
        if min(columns, self.rollout_length, self.n_step) < 1:
            return []  # has been reported, and divides by nothing
        # In each environment's ring a slot, a window and the newest row have to find room, and the
        # frames that a stack looks back, before its first row and after its last.
        history = max(_ATARI_FRAMES, self.frame_stack) - 1
        least = columns * (self.rollout_length + self.n_step + 2 + 2 * history)
        if self.replay_size < least:
            return [
                f"replay_size={self.replay_size} must be at least {least}, so that each of "
                f"{columns} environments (num_workers * envs_per_worker) has room for a slot "
                f"(rollout_length={self.rollout_length}) and n_step={self.n_step} more rows; try "
                f"replay_size={max(least, _USUAL_SIZE)}"
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
