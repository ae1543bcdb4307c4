"""How far the run is and what its processes do: counters in shared memory, one writer each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sfrl.shared_memory import SharedArray

_MAX_STAGES = 8


class Progress:
    """Counters that the trainer, the learner's schedule and the checkpoints read without asking.

    Attributes:
        frameskip: emulated frames per decision.
        env_steps: [W+1] int64, decisions; entry i is written by rollout worker i alone, the last
            one holds those of earlier starts of the run. Rows that only reset are not counted.
        learner: [1] int64, optimizer steps; written by the learner.

    Components are numbered rollout workers first, then policy workers, then the learner.
    """

    def __init__(self, num_workers: int, num_policy_workers: int, frameskip: int) -> None:
        self.frameskip = frameskip
        num_components = num_workers + num_policy_workers + 1
        self._env_steps = SharedArray("env-steps", (num_workers + 1,), np.int64)
        self._learner = SharedArray("learner-steps", (1,), np.int64)
        self._stages = SharedArray("stage-seconds", (num_components, _MAX_STAGES), np.float64)

    @property
    def total_env_steps(self) -> int:
        return int(self._env_steps.array.sum())

    @property
    def env_frames(self) -> int:
        return self.total_env_steps * self.frameskip

    @property
    def env_steps(self) -> NDArray[np.int64]:
        return self._env_steps.array

    @property
    def learner_steps(self) -> int:
        return int(self._learner.array[0])

    @learner_steps.setter
    def learner_steps(self, value: int) -> None:
        self._learner.array[0] = value

    def stage_seconds(self, component: int | slice, stages: Sequence[str]) -> NDArray[np.float64]:
        """[len(stages)], the row of one component, which alone writes it; a slice gives more."""
        return self._stages.array[component, : len(stages)]

    def unlink(self) -> None:
        for segment in (self._env_steps, self._learner, self._stages):
            segment.unlink()
