"""Every trajectory is trained on `epochs` times, in the order in which slots come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sfrl.experience.minibatch import LearnerSlots
from sfrl.experience.trajectory_buffer import TrajectoryBuffer
from sfrl.settings.config import Config


class Fifo(LearnerSlots):
    """`epochs` passes over the slots of a training batch, in `minibatches` each."""

    def __init__(self, config: Config, buffer: TrajectoryBuffer, device: torch.device) -> None:
        super().__init__(buffer, config.slots_per_batch, device)
        self.num_chosen = config.batch_size // config.rollout_length
        self._epochs, self._minibatches = config.epochs, config.minibatches
        self._num_envs = buffer.spec.num_envs

    def orders(self, places: list[int], rng: np.random.Generator) -> NDArray[np.int64]:
        """[epochs * minibatches, 2, C]: the (slot, environment) of every trajectory once per epoch.

        In random order.
        """
        columns = np.array([(place, env) for place in places for env in range(self._num_envs)])
        orders = []
        for _ in range(self._epochs):
            rng.shuffle(columns)
            orders += np.split(columns.T.copy(), self._minibatches, axis=1)
        return np.stack(orders)

    def state(self) -> dict[str, Any]:
        """Nothing: between two training batches it holds no rows."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        pass
