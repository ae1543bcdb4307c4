"""How full slots become minibatches: each once or a few times in order, or drawn from a memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfrl.experience.fifo import Fifo
from sfrl.experience.minibatch import Minibatch
from sfrl.experience.replay import Replay
from sfrl.experience.trajectory_buffer import TrajectoryBuffer
from sfrl.ipc.topology import SlotMap
from sfrl.settings.config import Config


class Experience(Protocol):
    """What a learner trains on. Its slots are taken in, and each minibatch is gathered:

        places = load(slots)
        take()
        for chosen in orders(places, rng): gather(*chosen)

    Attributes:
        are_copies: minibatches are gathered from copies, so that slots may go back after `take`;
            else after the last minibatch.
        num_chosen: C, trajectories in a minibatch.
    """

    are_copies: bool
    num_chosen: int

    def load(self, slots: Sequence[int]) -> list[int]:
        """Begin to copy these slots, where that can be done while others are trained on.

        Returns:
            What to pass to `orders`.
        """

    def take(self) -> None:
        """The slots loaded last are there to gather from when this returns."""

    def orders(self, places: list[int], rng: np.random.Generator) -> NDArray[np.int64]:
        """[M, 2, C], the minibatches that are due for these slots, each as `gather` is told."""

    def gather(self, first: Tensor, second: Tensor) -> Minibatch:
        """The trajectories with these numbers, [C] int64 each, in tensors of their own.

        It reads no number on the host, so that it can be captured as a CUDA graph.
        """

    def state(self) -> dict[str, NDArray[Any]]:
        """All that decides what the next minibatches are, besides slots and `rng`; no copies."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Raises what `checkpoint.MISMATCHES` lists if it does not fit.

        Args:
            state: as `state` gives it; an array may come in blocks of rows, read as they are asked
                for.
        """


def make_experience(
    config: Config, buffer: TrajectoryBuffer, slots: SlotMap, device: torch.device
) -> Experience:
    if config.replay is None:
        return Fifo(config, buffer, device)
    return Replay(config.replay, config.batch_size, buffer, slots.split, device)
