"""A block of shared memory with the weights that several learners have together. No torch."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from sfrl.ipc.file_lock import FileLock
from sfrl.ipc.shared_memory import (
    Field,
    SharedArray,
    StopFlag,
    Stopped,
    segment_bytes,
    segment_path,
)

_HEADER: Field = ((1,), np.int64)  # whether there are weights
_POLL_S = 0.01  # only at start


class ParameterBlock:
    """Where the weights are, and RMSprop's means of squares.

    The trainer makes the object without knowing the model; the first learner, who does, allocates
    the memory and fills it once. Whoever comes later finds it as it is.
    """

    def __init__(self) -> None:
        self.update_lock = FileLock("updates-lock")
        self.saving_lock = FileLock("saving-lock")
        self._header = SharedArray("block-header", *_HEADER)
        self._path = segment_path("block")

    @property
    def is_ready(self) -> bool:
        """Whether it has weights to learn from."""
        return bool(self._header.array[0])

    def set_ready(self) -> None:
        self._header.array[0] = 1

    def wait_until_ready(self, stop: StopFlag) -> None:
        """Raises Stopped if the run stops before."""
        while not self.is_ready:
            if stop.is_set:
                raise Stopped
            time.sleep(_POLL_S)

    def create(self, size: int) -> NDArray[np.float32]:
        """[2, size] float32, zeros: parameters, and means of squares."""
        self._path.unlink(missing_ok=True)  # of a first learner that was killed in the midst of it
        return SharedArray(self._path, *_block(size)).array

    def attach(self, size: int) -> NDArray[np.float32]:
        """What `create` has made."""
        return SharedArray(self._path, *_block(size), create=False).array


def nbytes(size: int) -> int:
    """Shared memory that the block of a model of `size` numbers takes, in bytes."""
    return segment_bytes(_HEADER, _block(size))


def _block(size: int) -> Field:
    return (2, size), np.float32
