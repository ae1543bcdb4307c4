"""The slots of a training batch, where the learner computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sfrl.experience.trajectory_buffer import TrajectoryBuffer
from sfrl.nets import cuda


class Minibatch(NamedTuple):
    """C whole trajectories, time first. obs and valid have one row more than the rest.

    Windows of a memory have only the observations that their first rows are learned from.
    """

    obs: dict[str, Tensor]  # leaf -> [T+1, C, *shape]; of windows [2, C, *shape]: rows 0 and `ends`
    valid: Tensor  # [T+1, C] bool
    rnn_state: Tensor | None  # [C, H] before row 0
    acted: dict[str, Tensor]  # name -> [T, C, ...], as `Config.acted` declares them
    rewards: Tensor  # [T, C] raw
    terminated: Tensor  # [T, C] bool
    policy_version: Tensor  # [T, C] int64
    ends: Tensor | None = None  # [C] int64, of windows: the first row after 0 not `valid`, else T

    @property
    def shown(self) -> Tensor:
        """Which rows of `obs` are valid: [T+1, C], of windows [2, C]."""
        if self.ends is None:
            return self.valid
        return torch.cat([self.valid[:1], self.valid.gather(0, self.ends.unsqueeze(0))])


class LearnerSlots:
    """What minibatches are gathered from: shared memory itself, or whole slots on a GPU.

    To a GPU slots are copied on a stream of their own, one copy for each field and slot, while it
    may still train on the batch before; no row is gathered on the host. Every observation
    is copied to the GPU twice, for the policy worker as well, but by DMA: no process waits for it
    (estimated, docs/architecture.md: 2.4 of some 50 GB/s).
    """

    def __init__(self, buffer: TrajectoryBuffer, num_slots: int, device: torch.device) -> None:
        """`num_slots`: of a training batch."""
        names = ["valid", "rewards", "terminated", "policy_version"]
        if buffer.spec.state_size > 0:
            names.append("rnn_state")
        self._leaves, self._acted = tuple(buffer.obs), tuple(buffer.acted)
        arrays = {name: getattr(buffer, name) for name in names} | buffer.obs | buffer.acted
        self._shared = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self.are_copies = device.type != "cpu"
        self._fields = self._shared
        if self.are_copies:
            for array in arrays.values():
                cuda.pin(array)
            shapes = {name: (num_slots, *field.shape[1:]) for name, field in self._shared.items()}
            self._staged, self._fields = (
                {
                    name: torch.zeros(shape, dtype=self._shared[name].dtype, device=device)
                    for name, shape in shapes.items()
                }
                for _ in range(2)
            )
            self._uploads = torch.cuda.Stream(device)
            self._uploaded, self._taken = cuda.sleeping_event(), torch.cuda.Event()

    def load(self, slots: Sequence[int]) -> list[int]:
        """Begin to copy these slots, where there is something to copy.

        Returns:
            Indices to pass to `gather` once `take` has run.
        """
        if not self.are_copies:
            return list(slots)
        with torch.cuda.stream(self._uploads):
            self._uploads.wait_event(self._taken)
            for place, slot in enumerate(slots):
                for name, field in self._shared.items():
                    self._staged[name][place].copy_(field[slot], non_blocking=True)
            self._uploaded.record()
        return list(range(len(slots)))

    def take(self) -> None:
        """Make the slots loaded last those to gather from.

        When this returns copied slots are not read any more: they may go back to their splits.
        """
        if not self.are_copies:
            return
        self._uploaded.synchronize()
        for name, field in self._fields.items():
            field.copy_(self._staged[name])
        self._taken.record()

    def gather(self, slots: Tensor, envs: Tensor) -> Minibatch:
        """The trajectories (slots[i], envs[i]), [C] int64 each, in tensors of their own."""

        def columns(field: Tensor) -> Tensor:  # [S, T, N, ...] -> [T, C, ...]
            return field.transpose(0, 1)[:, slots, envs]

        def leaf(field: Tensor) -> Tensor:
            # A trajectory after the other in memory, as encoders see them (`unroll_features`).
            flat = _words(field)[slots, :, envs].view(field.dtype)
            return flat.reshape(*flat.shape[:2], *field.shape[3:]).transpose(0, 1)

        fields = self._fields
        return Minibatch(
            obs={name: leaf(fields[name]) for name in self._leaves},
            valid=columns(fields["valid"]),
            rnn_state=fields["rnn_state"][slots, envs] if "rnn_state" in fields else None,
            acted={name: columns(fields[name]) for name in self._acted},
            rewards=columns(fields["rewards"]),
            terminated=columns(fields["terminated"]),
            policy_version=fields["policy_version"].transpose(0, 1)[:, slots],
        )


def _words(obs: Tensor) -> Tensor:
    """[S, T, N, *obs_shape] -> [S, T, N, F]: four pixels at a time are gathered 4 times as fast."""
    flat = obs.flatten(3)
    is_bytes = flat.element_size() == 1 and flat.shape[3] % 4 == 0
    return flat.view(torch.int32) if is_bytes else flat
