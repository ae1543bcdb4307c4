"""The one place where experience lives: trajectory slots in shared memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfrl.envs import EnvSpec, Leaf
from sfrl.ipc.index_queue import Message, pack, unpack
from sfrl.ipc.messages import EndsRun
from sfrl.ipc.shared_memory import Field, SharedArray, segment_bytes
from sfrl.settings.config import Config, RowField


class Owner(IntEnum):
    """Who may write a slot. Tracked only with `debug=True`."""

    ROLLOUT_WORKER = 0
    POLICY_WORKER = 1
    LEARNER = 2
    FREE = 3


class SlotSpec(NamedTuple):
    """One slot: T steps of N environments."""

    rollout_length: int
    num_envs: int
    leaves: tuple[Leaf, ...]  # of an observation
    acted: Mapping[str, RowField]  # what the algorithm writes when it acts
    state_size: int = 0  # of the recurrent state


def slot_spec(config: Config, env: EnvSpec) -> SlotSpec:
    """The slots of a run in an environment that looks like `env`."""
    return SlotSpec(
        config.rollout_length,
        config.envs_per_split,
        env.leaves,
        config.acted(env),
        config.acting_state_size(env),
    )


class OwnershipError(EndsRun):
    """A slot was written or handed over by somebody who does not own it."""


class TrajectoryBuffer:
    """Trajectory slots in shared memory. Processes exchange slot indices, never arrays.

    A slot holds T steps of N environments (one split) and has one owner at a time. Ownership moves
    with its index, so no access takes a lock:

        rollout worker -> trajectories -> learner -> replies -> rollout worker

    While it waits for actions, the rollout worker lends row t to one policy worker. Every split
    owns a fixed pool of slots, so the slots of a dead worker can be told without asking anyone.
    Queue put and get are the only synchronization: write the row first, then put the index.

    A slot's fillings are numbered: its generation. Every message carries it, so that the answer to
    a worker that has died is not taken for one to the worker that fills the slot now.

    Fields, one contiguous array each (S slots):
        obs               {name: [S, T+1, N, *shape]}  the leaves of observations, in their own
                                                   dtypes; row T is only there for its value, V(x_T)
        acted             {name: [S, T, N, ...]}   what the policy worker has written: actions, and
                                                   what else `Config.acted` names
        rewards           [S, T, N]    float32, as the environment gave them
        terminated        [S, T, N]    bool, the step ended the episode; `truncated`: it was cut
        valid             [S, T+1, N]  bool, False on rows that show an ended episode's final
                                       observation: their action is ignored, they only reset
        policy_version    [S, T]       int64, learner step of the weights that acted
        rnn_state         [S, N, H]    float32, the recurrent state before row 0
        starts            [S]          bool, row 0 is the first of new environments: no state yet
        generation        [S]          int64, fillings begun; the rollout worker counts
        released          [S]          int64, the last one that the learner has given back

    With `debug`, free slots are filled with poison (NaN, -1, 0xFF) that must still be there when
    the slot is next taken, and every hand-over is checked against the recorded owner.

    Raises:
        ValueError: a size is below 1 (`state_size`: below 0).
        ShortageError: /dev/shm has less room than `nbytes`.
    """

    def __init__(self, num_slots: int, spec: SlotSpec, *, debug: bool = False) -> None:
        if min(num_slots, spec.rollout_length, spec.num_envs) < 1 or spec.state_size < 0:
            raise ValueError(f"sizes must be at least 1: {num_slots=}, {spec=}")
        self.num_slots = num_slots
        self.spec = spec
        self.debug = debug
        fields = _fields(num_slots, spec)
        self._segments = {name: SharedArray(name, *fields[name]) for name in fields}
        self._bind()
        if debug:
            self._owners[:] = Owner.FREE
            for slot in range(num_slots):
                self._poison(slot)

    def _bind(self) -> None:
        # SharedArray.array is NDArray[Any]: the dtypes below are those of `_fields`.
        self.obs: dict[str, NDArray[Any]] = {
            leaf.name: self._segments[leaf.name].array for leaf in self.spec.leaves
        }
        self.acted: dict[str, NDArray[Any]] = {
            name: self._segments[name].array for name in self.spec.acted
        }
        self.actions = self.acted["actions"]
        self.rewards: NDArray[np.float32] = self._segments["rewards"].array
        self.terminated: NDArray[np.bool_] = self._segments["terminated"].array
        self.truncated: NDArray[np.bool_] = self._segments["truncated"].array
        self.valid: NDArray[np.bool_] = self._segments["valid"].array
        self.policy_version: NDArray[np.int64] = self._segments["policy_version"].array
        self.rnn_state: NDArray[np.float32] = self._segments["rnn_state"].array
        self.starts: NDArray[np.bool_] = self._segments["starts"].array
        self.generation: NDArray[np.int64] = self._segments["generation"].array
        self.released: NDArray[np.int64] = self._segments["released"].array
        self._owners: NDArray[np.uint8] = self._segments["owners"].array

    def message(self, slot: int, t: int) -> int:
        """What to put into a queue: row `t` of the slot in its present filling."""
        return pack(slot, t, int(self.generation[slot]))

    def is_current(self, message: Message) -> bool:
        """Whether the slot is still in the filling that the message is about."""
        return unpack(self.message(message.slot, message.t)) == message

    @property
    def is_filled(self) -> NDArray[np.bool_]:
        """[S], a filling has begun that the learner has not given back."""
        filled: NDArray[np.bool_] = self.generation != self.released
        return filled

    def reclaim(self, slot: int) -> None:
        """Make a dead worker's slot free, with a generation of its own: no message is about it."""
        self.generation[slot] += 1
        if self.debug:
            self._poison(slot)
            self._owners[slot] = Owner.FREE

    def transfer(self, slot: int, giver: Owner, taker: Owner) -> None:
        """Record that `giver` hands the slot (or lends its row) to `taker`. Call before the put.

        Raises:
            OwnershipError: with debug, if `giver` does not own the slot, or if somebody wrote to
                it while it was free.
        """
        if not self.debug:
            return
        self.check_owner(slot, giver)
        if giver is Owner.FREE:
            self._check_poison(slot)
        elif taker is Owner.FREE:
            self._poison(slot)
        self._owners[slot] = taker

    def check_owner(self, slot: int, owner: Owner) -> None:
        """Before a write. Raises OwnershipError, with debug, if `owner` does not own the slot."""
        if self.debug and self._owners[slot] != owner:
            raise OwnershipError(
                f"{owner.name} uses slot {slot}, which belongs to {Owner(self._owners[slot]).name}"
            )

    def _poison(self, slot: int) -> None:
        for name in (*self.obs, *_POISONED, *self.acted):
            self._bytes(name, slot)[...] = _POISON_BYTE

    def _check_poison(self, slot: int) -> None:
        for name in (*self.obs, *_POISONED, *self.acted):
            if (self._bytes(name, slot) != _POISON_BYTE).any():
                raise OwnershipError(f"{name} of slot {slot} was written while the slot was free")

    def _bytes(self, name: str, slot: int) -> NDArray[np.uint8]:
        array: NDArray[np.uint8] = self._segments[name].array[slot].view(np.uint8)
        return array

    def state(self) -> dict[str, NDArray[Any]]:
        return {name: segment.array.copy() for name, segment in self._segments.items()}

    def load_state(self, state: dict[str, NDArray[Any]]) -> None:
        for name, segment in self._segments.items():
            segment.array[:] = state[name]

    def unlink(self) -> None:
        for segment in self._segments.values():
            segment.unlink()

    def __getstate__(self) -> tuple[int, SlotSpec, bool, dict[str, SharedArray]]:
        return self.num_slots, self.spec, self.debug, self._segments

    def __setstate__(self, state: tuple[int, SlotSpec, bool, dict[str, SharedArray]]) -> None:
        self.num_slots, self.spec, self.debug, self._segments = state
        self._bind()


# 0xFF bytes are NaN as float32 and -1 as int64: learning from them cannot go unnoticed.
_POISON_BYTE = 0xFF
_POISONED = ("rewards", "policy_version")


def nbytes(num_slots: int, spec: SlotSpec) -> int:
    """Shared memory that a buffer of these sizes takes, in bytes."""
    return segment_bytes(*_fields(num_slots, spec).values())


def row_bytes(spec: SlotSpec) -> int:
    """What a memory keeps of one row of one environment, in bytes: of a stack its newest frame."""
    names = {*spec.acted, "rewards", "terminated", "valid", "policy_version"}
    fields = [field for name, field in _fields(1, spec).items() if name in names]
    size = sum(math.prod(shape[3:]) * np.dtype(dtype).itemsize for shape, dtype in fields)
    for leaf in spec.leaves:
        size += math.prod(leaf.shape) // leaf.frames * np.dtype(leaf.dtype).itemsize
        size += leaf.frames - 1  # how far back the others are
    return size


def _fields(num_slots: int, spec: SlotSpec) -> dict[str, Field]:
    step = (num_slots, spec.rollout_length, spec.num_envs)
    row = (num_slots, spec.rollout_length + 1, spec.num_envs)
    return {
        **{leaf.name: ((*row, *leaf.shape), leaf.dtype) for leaf in spec.leaves},
        **{name: ((*step, *field.shape), field.dtype) for name, field in spec.acted.items()},
        "rewards": (step, np.float32),
        "terminated": (step, np.bool_),
        "truncated": (step, np.bool_),
        "valid": (row, np.bool_),
        "policy_version": (step[:2], np.int64),
        "rnn_state": ((num_slots, spec.num_envs, spec.state_size), np.float32),
        "starts": ((num_slots,), np.bool_),
        "generation": ((num_slots,), np.int64),
        "released": ((num_slots,), np.int64),
        "owners": ((num_slots,), np.uint8),
    }
