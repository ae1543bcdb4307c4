"""Where each process's time goes: seconds by stage, in shared memory.

A worker's loop is a cycle of stages. Each ends with one `lap`, so every moment between two laps
belongs to exactly one stage and the shares of a process add up to 1. The trainer reads the totals
while they grow; the difference between two readings is what happened in between.
"""

from collections.abc import Sequence
from time import perf_counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Stages in the order of the loop. Names that start with "wait" are time spent on others.
ROLLOUT_STAGES = ("wait_actions", "wait_slot", "env_step", "store")
POLICY_STAGES = ("wait_requests", "gather", "forward", "scatter", "refresh_weights")
LEARNER_STAGES = ("wait_trajectories", "gather", "train", "publish", "checkpoint")

Kind = Literal["rollout", "policy", "learner"]
"""Of worker: what a process does. Metrics call it the component."""

COMPONENT_STAGES: dict[Kind, tuple[str, ...]] = {
    "rollout": ROLLOUT_STAGES,
    "policy": POLICY_STAGES,
    "learner": LEARNER_STAGES,
}


def is_waiting(stage: str) -> bool:
    """Whether the stage is time spent waiting for another process."""
    return stage.startswith("wait")


class StageTimer:
    """Adds the time between laps to the stages of one process.

    Args:
        stages: the names of the process's stages, e.g. `ROLLOUT_STAGES`.
        totals: [len(stages)] float64, seconds; a row of a shared-memory array that only this
            timer writes. Readers need no lock: an aligned float64 is stored in one piece.

    Raises:
        ValueError: `totals` has another shape or dtype.
        TypeError: `totals` is not contiguous.
    """

    def __init__(self, stages: Sequence[str], totals: NDArray[np.float64]) -> None:
        if totals.shape != (len(stages),) or totals.dtype != np.float64:
            raise ValueError(
                f"totals is {totals.dtype}{list(totals.shape)}; "
                f"{len(stages)} stages need float64[{len(stages)}]"
            )
        self._index = {stage: index for index, stage in enumerate(stages)}
        # Adding to an element takes 0.3 us through an array and 0.2 us through a memoryview.
        self._totals = totals.data.cast("B").cast("d")
        self._last = perf_counter()

    def begin(self) -> None:
        """Leave out the time since the previous lap: it was another's, in the same process."""
        self._last = perf_counter()

    def lap(self, stage: str) -> None:
        """Add the time since the previous lap (or since construction) to `stage`."""
        now = perf_counter()
        self._totals[self._index[stage]] += now - self._last
        self._last = now


def shares(
    stages: Sequence[str],
    before: NDArray[np.float64],  # [..., len(stages)] seconds, an earlier reading of the totals
    after: NDArray[np.float64],  # likewise, the later reading
) -> dict[str, float]:
    """The fraction of the time between two readings that went to each stage.

    Leading axes (processes of one kind) are summed. The fractions add up to 1; all are NaN if no
    lap ended in between, which happens when one stage outlasts the interval.
    """
    spent = (after - before).reshape(-1, len(stages)).sum(axis=0)
    total = spent.sum()
    fractions = spent / total if total > 0 else np.full(len(stages), np.nan)
    return dict(zip(stages, fractions.tolist(), strict=True))
