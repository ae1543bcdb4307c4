"""Versioned weights, from the learner to the policy workers: never torn, never locked."""

from __future__ import annotations

import copy
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sfrl.ipc.shared_memory import (
    Field,
    SharedArray,
    StopFlag,
    Stopped,
    segment_bytes,
    segment_path,
)

if TYPE_CHECKING:  # the trainer and the rollout workers hold a Weights, too, without torch
    import torch
    from torch import nn

# Places in the header.
_PUBLISHED, _STARTED, _VERSIONS, _BFLOAT16 = 0, 1, slice(2, 4), 4
_HEADER: Field = ((5,), np.int64)
_POLL_S = 0.01  # only at start, while the learner builds its model


class Weights:
    """A model's parameters and buffers in shared memory: one writer, any number of readers.

    There are two copies and two counters. For publication k the writer sets `started` to k, fills
    copy k % 2 and then sets `published` to k; readers copy the published one out. Publication k+1
    goes to the other copy and only k+2 overwrites this one, so a reader that afterwards finds
    `started` at most k+1 has read it whole; else it reads again. The writer never waits.

    What this relies on is that stores become visible in program order, which x86-64 guarantees, and
    that an aligned 64-bit store is not torn.

    The trainer makes the object without knowing the model, since it does not import torch; the
    learner, who does know it, allocates the copies with its first `publish`. All values are stored
    as float32.
    """

    def __init__(self, name: str = "weights") -> None:
        self._header = SharedArray(f"{name}-header", *_HEADER)
        self._path = segment_path(name)
        self._copies: torch.Tensor | None = None  # [2, number of values] float32

    @property
    def is_published(self) -> bool:
        """Whether there are any to read."""
        return bool(self._header.array[_PUBLISHED])

    @property
    def acts_in_bfloat16(self) -> bool:
        """Whether encoders act in bfloat16. The learner decides before it publishes first."""
        return bool(self._header.array[_BFLOAT16])

    @acts_in_bfloat16.setter
    def acts_in_bfloat16(self, value: bool) -> None:
        self._header.array[_BFLOAT16] = value

    def publish(self, model: nn.Module, version: int) -> None:
        """Make `model`'s present weights, of learner step `version`, the ones that readers get."""
        import torch

        tensors = list(model.state_dict().values())
        if self._copies is None:
            size, is_first = sum(t.numel() for t in tensors), not self.is_published
            if is_first:  # a writer may have been killed in the midst of this
                self._path.unlink(missing_ok=True)
            self._copies = self._attach(size, create=is_first)
            _pin_for(tensors[0], self._copies)
        header = self._header.array
        publication = int(header[_PUBLISHED]) + 1
        header[_STARTED] = publication
        target = self._copies[publication % 2]
        if tensors[0].is_cuda:  # gathered there: one copy, and one wait, instead of many
            target.copy_(torch.cat([tensor.flatten().float() for tensor in tensors]))
        else:
            for tensor, place in zip(tensors, _places(target, tensors), strict=True):
                place.copy_(tensor)
        header[_VERSIONS][publication % 2] = version
        header[_PUBLISHED] = publication

    def unlink(self) -> None:
        self._header.unlink()
        self._path.unlink(missing_ok=True)

    def _attach(self, size: int, *, create: bool) -> torch.Tensor:
        import torch

        return torch.from_numpy(SharedArray(self._path, *_copies(size), create=create).array)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_copies": None}


class WeightsSource(Protocol):
    """Where a policy worker's weights come from.

    Attributes:
        version: learner step of the weights last read; -1 before the first.
    """

    version: int

    def refresh(self, model: nn.Module) -> bool:
        """Load the newest weights into `model` if there are newer ones; say whether there were."""


class WeightsReader:
    """One reader's place in the sequence of publications: a `WeightsSource`."""

    def __init__(self, weights: Weights) -> None:
        self.version = -1
        self._weights = weights
        self._publication = 0

    def wait_for_first(self, stop: StopFlag) -> None:
        """Return once there are weights. Raises Stopped if the run stops before."""
        while not self._weights.is_published:
            if stop.is_set:
                raise Stopped
            time.sleep(_POLL_S)

    def refresh(self, model: nn.Module) -> bool:
        header = self._weights._header.array
        if int(header[_PUBLISHED]) == self._publication:
            return False
        tensors = list(model.state_dict().values())
        if self._weights._copies is None:
            size = sum(t.numel() for t in tensors)
            self._weights._copies = self._weights._attach(size, create=False)
            _pin_for(tensors[0], self._weights._copies)
        while True:
            publication = int(header[_PUBLISHED])
            source = self._weights._copies[publication % 2].to(tensors[0].device)
            for tensor, place in zip(tensors, _places(source, tensors), strict=True):
                tensor.copy_(place)
            version = int(header[_VERSIONS][publication % 2])
            if int(header[_STARTED]) <= publication + 1:
                break  # not overwritten meanwhile: whole
        self._publication, self.version = publication, version
        return True


class OlderWeights:
    """Those of `source`, but a number of optimizer steps older: a `WeightsSource`.

    To see what policy lag does (--forced-lag). Older by one publication more where none is of just
    that step; the first ones serve until there are some that are old enough.
    """

    def __init__(self, source: WeightsSource, steps: int) -> None:
        self.version = -1
        self._source, self._steps = source, steps
        self._newest: nn.Module | None = None
        self._history: deque[tuple[int, dict[str, torch.Tensor]]] = deque()

    def refresh(self, model: nn.Module) -> bool:
        if self._newest is None:
            self._newest = copy.deepcopy(model)
        if self._source.refresh(self._newest):
            state = {name: value.clone() for name, value in self._newest.state_dict().items()}
            self._history.append((self._source.version, state))
        while len(self._history) > 1 and self._history[1][0] <= self._source.version - self._steps:
            self._history.popleft()
        version, state = self._history[0]
        if version == self.version:
            return False
        for name, value in model.state_dict().items():
            value.copy_(state[name])
        self.version = version
        return True


def nbytes(size: int) -> int:
    """Shared memory that the weights of a model of `size` numbers take, in bytes."""
    return segment_bytes(_HEADER, _copies(size))


def _copies(size: int) -> Field:
    return (2, size), np.float32


def _pin_for(tensor: torch.Tensor, copies: torch.Tensor) -> None:
    if tensor.is_cuda:
        from sfrl.nets import cuda

        cuda.pin(copies.numpy())


def _places(flat: torch.Tensor, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Views of `flat`, one for each tensor, of its shape."""
    parts = flat.split([t.numel() for t in tensors])
    return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]
