"""The C++ extension (csrc/module.cpp); index_queue.LockFreeQueue is how Python uses it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

def memory_bytes(num_producers: int, capacity: int) -> int:
    """Size of the shared memory that a queue needs; a multiple of 64."""

class RingQueue:
    """A handle on the queue in `memory`: zeros at first, then whatever other handles left there.

    Raises:
        ValueError: `capacity` is no power of two, or `memory` is too small or not 64-byte aligned.
    """

    def __init__(
        self,
        memory: NDArray[np.uint64],  # contiguous, at least memory_bytes() long
        num_producers: int,
        capacity: int,  # messages per producer
        stop: NDArray[np.uint32],  # [1]
        spin_us: float = 0.0,
        bell: NDArray[np.uint64] | None = None,  # the memory of the queue whose bell is rung
    ) -> None: ...
    def put(self, message: int, producer: int) -> bool:
        """False: full. Raises IndexError if there is no such producer."""

    def put_many(self, messages: NDArray[np.uint64], producer: int) -> bool:
        """All of them, or none and False."""

    def get_many(self, max_messages: int) -> list[int]: ...
    def recent(self, producer: int) -> list[int]:
        """The last messages of a producer that puts no more, oldest first, taken or not."""

    def wait(self, timeout_s: float, others: Sequence[RingQueue] = ()) -> bool:
        """True: there is a message, here or in `others`. False: time is up, or the stop word is
        set."""

    def wake(self) -> None: ...
