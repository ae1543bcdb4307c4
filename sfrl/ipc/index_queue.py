"""Queues of slot indices between processes: many producers, one consumer.

Two kinds with one interface. "lock-free" is the C++ extension: one wait-free ring per producer and
a doorbell that the consumer sleeps on (csrc/index_queue.hpp has the algorithm). "faster-fifo" is
what runs where the extension could not be built; it locks a mutex, so a process killed inside a
put or get blocks the others for good.
"""

from __future__ import annotations

import importlib.util
import time
from collections import deque
from collections.abc import Sequence
from queue import Empty, Full
from typing import Literal, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from sfrl.ipc.shared_memory import Field, SharedArray, StopFlag, Stopped, segment_bytes

try:
    from sfrl.ipc._index_queue import RingQueue, memory_bytes
except ImportError as error:
    _extension_error: str | None = str(error)
else:
    _extension_error = None

_HAS_FASTER_FIFO = importlib.util.find_spec("faster_fifo") is not None

QueueKind = Literal["lock-free", "faster-fifo"]


_SLOT_BITS, _T_BITS, _GENERATION_BITS = 20, 20, 24


class Message(NamedTuple):
    """Row `t` of `slot`, in the filling of it that `generation` numbers."""

    slot: int
    t: int
    generation: int  # modulo 2^24: what is older than that many fillings has long been read


def pack(slot: int, t: int, generation: int) -> int:
    """One 64-bit message. `slot` and `t` are below 2^20 (settings/config.py sees to it)."""
    generation &= (1 << _GENERATION_BITS) - 1
    return (slot << _T_BITS | t) << _GENERATION_BITS | generation


def unpack(message: int) -> Message:
    """What `pack` was given, `generation` modulo 2^24."""
    row = message >> _GENERATION_BITS
    generation = message & (1 << _GENERATION_BITS) - 1
    return Message(row >> _T_BITS, row & (1 << _T_BITS) - 1, generation)


class QueueFullError(Exception):
    """A queue has no room. Capacities follow from the number of slots, so this is a bug of ours."""


class IndexQueue(Protocol):
    """Unsigned 64-bit messages from several producers to one consumer.

    The producers are numbered; one process at a time puts as one of them, one process at a time
    consumes. What a producer wrote to shared memory before a put is visible to whoever gets that
    message. Picklable while a process is spawned.
    """

    def put(self, message: int, producer: int = 0) -> None:
        """Never blocks.

        Raises:
            QueueFullError: `capacity` messages of this producer wait already.
            IndexError: there is no such producer.
        """

    def put_many(self, messages: NDArray[np.uint64], producer: int = 0) -> None:
        """`put` for all of [n] messages, or for none if they do not all fit."""

    def get_many(self, max_messages: int) -> list[int]:
        """What is there now, at most `max_messages`; never blocks. In order per producer.

        faster-fifo may hold back some for the next call (it receives 5 kB at a time).
        """

    def wait(self, timeout_s: float, others: Sequence[Self] = ()) -> bool:
        """Sleep until a message is there (True) or `timeout_s` have passed (False).

        Args:
            others: queues of the same consumer, which were made with this one as their `bell`: a
                message in one of them counts as well.

        Raises:
            Stopped: the stop flag is set, at the call or while it sleeps (seen within 0.1 s,
                or at once after `wake`).
        """

    def recent(self, producer: int) -> list[int]:
        """The last `capacity` messages of a producer that puts no more, oldest first, taken or not.

        Tells what a killed process had put before it died.

        Raises:
            NotImplementedError: faster-fifo keeps no messages, and survives no kill either.
        """

    def wake(self) -> None:
        """Let a sleeping consumer look at the stop flag now. For any process."""

    def state(self) -> NDArray[np.uint64]:
        """All that waits in the queue, while nobody uses it; for a queue of the same sizes.

        Raises:
            NotImplementedError: faster-fifo shows nothing of itself.
        """

    def load_state(self, state: NDArray[np.uint64]) -> None:
        """Restore the `state` of a queue of the same size."""

    def unlink(self) -> None:
        """Remove what the queue keeps in /dev/shm; for the process that made it."""


class LockFreeQueue:
    """An `IndexQueue` on the C++ extension. See csrc/index_queue.hpp."""

    def __init__(
        self,
        name: str,
        num_producers: int,
        capacity: int,  # a power of two
        stop: StopFlag,
        spin_us: float = 0.0,
        bell: LockFreeQueue | None = None,
        memory: SharedArray | None = None,  # of the same queue in another process
    ) -> None:
        self.name = name
        self.num_producers = num_producers
        self.capacity = capacity
        self._stop = stop
        self._spin_us = spin_us
        self._bell = bell
        self._memory = memory or SharedArray(f"queue-{name}", *self.field(num_producers, capacity))
        self._rings = RingQueue(
            self._memory.array,
            num_producers,
            capacity,
            stop.word,
            spin_us,
            None if bell is None else bell._memory.array,
        )

    @staticmethod
    def field(num_producers: int, capacity: int) -> Field:
        return (memory_bytes(num_producers, capacity) // 8,), np.uint64

    def __reduce__(self) -> tuple[type[LockFreeQueue], tuple[object, ...]]:
        # The memory crosses by name; the extension object is made again over it.
        sizes = (self.name, self.num_producers, self.capacity)
        return LockFreeQueue, (*sizes, self._stop, self._spin_us, self._bell, self._memory)

    def put(self, message: int, producer: int = 0) -> None:
        if not self._rings.put(message, producer):
            raise QueueFullError(_full_text(self.name, self.capacity, producer))

    def put_many(self, messages: NDArray[np.uint64], producer: int = 0) -> None:
        if not self._rings.put_many(messages, producer):
            raise QueueFullError(_full_text(self.name, self.capacity, producer))

    def get_many(self, max_messages: int) -> list[int]:
        return self._rings.get_many(max_messages)

    def wait(self, timeout_s: float, others: Sequence[LockFreeQueue] = ()) -> bool:
        is_ready = self._rings.wait(timeout_s, [other._rings for other in others])
        if self._stop.is_set:
            raise Stopped
        return is_ready

    def recent(self, producer: int) -> list[int]:
        return self._rings.recent(producer)

    def wake(self) -> None:
        self._rings.wake()

    def state(self) -> NDArray[np.uint64]:
        state: NDArray[np.uint64] = self._memory.array.copy()
        return state

    def load_state(self, state: NDArray[np.uint64]) -> None:
        self._memory.array[:] = state

    def unlink(self) -> None:
        self._memory.unlink()


class FasterFifoQueue:
    """An `IndexQueue` on one faster-fifo queue, which all producers share.

    faster-fifo knows no wake-up without a message, so `wait` takes short naps and looks at the
    stop flag, and at other queues, between them.
    """

    NAP_S = 0.05
    NAP_BETWEEN_QUEUES_S = 0.001  # a message to another one waits so long
    _BYTES_PER_MESSAGE = 16  # 8 of its own, and faster-fifo writes the length before each

    def __init__(self, name: str, num_producers: int, capacity: int, stop: StopFlag) -> None:
        self.name = name
        self.num_producers = num_producers
        self.capacity = capacity
        self._stop = stop
        import faster_fifo  # there is no wheel of it for the newest Pythons

        self._fifo = faster_fifo.Queue(
            max_size_bytes=self._max_bytes(num_producers, capacity),
            dumps=_to_bytes,
            loads=_from_bytes,
        )
        self._received: deque[int] = deque()  # the consumer's: taken out of the fifo by `wait`

    @classmethod
    def _max_bytes(cls, num_producers: int, capacity: int) -> int:
        return num_producers * capacity * cls._BYTES_PER_MESSAGE

    @classmethod
    def field(cls, num_producers: int, capacity: int) -> Field:
        """Of multiprocessing's heap, which may take twice as much."""
        return (2 * cls._max_bytes(num_producers, capacity),), np.uint8

    def put(self, message: int, producer: int = 0) -> None:
        self._put([message], producer)

    def put_many(self, messages: NDArray[np.uint64], producer: int = 0) -> None:
        self._put(messages.tolist(), producer)

    def _put(self, messages: list[int], producer: int) -> None:
        if not 0 <= producer < self.num_producers:
            raise IndexError(f"producer {producer} of a queue with {self.num_producers} producers")
        try:
            self._fifo.put_many(messages, block=False)
        except Full:
            raise QueueFullError(_full_text(self.name, self.capacity, producer)) from None

    def get_many(self, max_messages: int) -> list[int]:
        if len(self._received) < max_messages:
            self._receive(max_messages - len(self._received), timeout_s=0.0)
        return [self._received.popleft() for _ in range(min(max_messages, len(self._received)))]

    def wait(self, timeout_s: float, others: Sequence[FasterFifoQueue] = ()) -> bool:
        deadline_s = time.monotonic() + timeout_s
        while not self._stop.is_set:
            left_s = deadline_s - time.monotonic()
            for other in others:
                other._receive_first(0.0)
            is_ready = any(other._received for other in others)
            nap_s = min(max(left_s, 0.0), self.NAP_BETWEEN_QUEUES_S if others else self.NAP_S)
            self._receive_first(0.0 if is_ready else nap_s)
            if is_ready or self._received or left_s <= 0.0:
                return is_ready or bool(self._received)
        raise Stopped

    def _receive_first(self, timeout_s: float) -> None:
        if not self._received:
            self._receive(1, timeout_s)

    def _receive(self, max_messages: int, timeout_s: float) -> None:
        try:
            self._received.extend(
                self._fifo.get_many(
                    block=timeout_s > 0.0, timeout=timeout_s, max_messages_to_get=max_messages
                )
            )
        except Empty:
            return

    def recent(self, producer: int) -> list[int]:
        raise NotImplementedError("faster-fifo keeps no messages")

    def wake(self) -> None:
        """Nothing to do: the consumer looks every `NAP_S`."""

    def state(self) -> NDArray[np.uint64]:
        raise NotImplementedError("faster-fifo shows nothing of itself")

    def load_state(self, state: NDArray[np.uint64]) -> None:
        raise NotImplementedError("faster-fifo shows nothing of itself")

    def unlink(self) -> None:
        """Nothing to do: the memory has no name."""


def resolve_queue_kind(flag: Literal["auto", "lock-free", "faster-fifo"]) -> QueueKind:
    """The kind that `flag` means on this installation; "auto" prefers lock-free.

    Raises:
        ValueError: what it means is not installed.
    """
    if flag == "faster-fifo" and _HAS_FASTER_FIFO:
        return "faster-fifo"
    if flag == "faster-fifo":
        raise ValueError(f"queue={flag} needs the package faster-fifo; install it, or leave it out")
    if _extension_error is None:
        return "lock-free"
    if flag == "lock-free":
        raise ValueError(
            f"queue={flag} needs the extension sfrl.ipc._index_queue ({_extension_error}); install "
            f"a C++17 compiler, run `pip install -e .` again, or use --queue=faster-fifo"
        )
    if not _HAS_FASTER_FIFO:
        raise ValueError(
            f"there is no queue: the extension sfrl.ipc._index_queue could not be built "
            f"({_extension_error}), and faster-fifo is not installed; install a C++17 compiler and "
            f"run `pip install -e .` again"
        )
    return "faster-fifo"


def installed_kinds() -> list[QueueKind]:
    """Those that there are, the best first."""
    kinds: list[QueueKind] = ["lock-free"] if _extension_error is None else []
    return [*kinds, "faster-fifo"] if _HAS_FASTER_FIFO else kinds


def make_index_queue(
    kind: QueueKind,
    name: str,
    num_producers: int,
    capacity: int,
    stop: StopFlag,
    spin_us: float = 0.0,
    bell: IndexQueue | None = None,
) -> IndexQueue:
    """A new, empty queue with room for at least `capacity` waiting messages per producer.

    `spin_us` is how long a lock-free `wait` looks before it sleeps: for machines with cores to
    spare; with few it takes the core from the producer it waits for.

    `bell` is another queue of the same consumer, of the same kind, for one that waits for both.
    """
    capacity = _rounded(capacity)
    if kind == "lock-free":
        assert bell is None or isinstance(bell, LockFreeQueue)
        return LockFreeQueue(name, num_producers, capacity, stop, spin_us, bell)
    return FasterFifoQueue(name, num_producers, capacity, stop)


def nbytes(kind: QueueKind, num_producers: int, capacity: int) -> int:
    """Shared memory that such a queue takes, in bytes."""
    queue = LockFreeQueue if kind == "lock-free" else FasterFifoQueue
    return segment_bytes(queue.field(num_producers, _rounded(capacity)))


def _rounded(capacity: int) -> int:
    """What the rings need: the next power of two."""
    return 1 << (capacity - 1).bit_length()


def _full_text(name: str, capacity: int, producer: int) -> str:
    return f"queue {name!r} is full: its capacity is {capacity} messages, {producer=}"


# Without these faster-fifo pickles each message. Module functions, as the queue itself is pickled.
def _to_bytes(message: int) -> bytes:
    return message.to_bytes(8, "little")


def _from_bytes(data: bytes) -> int:
    return int.from_bytes(data, "little")
