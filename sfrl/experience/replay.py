"""Rows are kept for long, and minibatches drawn from all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfrl.experience.frames import NO_FRAME, apart, look_back, newest_of
from sfrl.experience.minibatch import Minibatch
from sfrl.experience.trajectory_buffer import TrajectoryBuffer
from sfrl.settings.experience import ReplaySpec


class Replay:
    """A ring of rows for each environment (a column); what is drawn are windows of them, uniformly.

    The rows of a slot are copied out, and the slot goes back at once. For each decision in it
    `updates_per_decision` minibatches are due, a fraction of one is carried over. While they are
    trained on no slot is taken; workers then run out of free ones and wait: this limits the rate.

    A window has n+1 rows that followed one another, of which the last one is only looked at. In
    each column the newest row, row T of its last slot, has an observation and no action yet. It
    lies before the oldest one, and stays if a restarted worker's first slot comes next, which
    begins behind it. So one rule keeps windows apart from the ring's seam, from restarts and from
    rows never written: all rows but the last were acted on. And the first one is `valid`; of later
    ones `Minibatch` tells what is.

    Of a stack of frames a row keeps the newest alone, and how many rows back the others are: they
    are stacked when the row is drawn. The older frames of a restarted worker's first row get rows
    of their own, which nobody has acted on.

    Rows lie where the learner computes, in the process's own memory or a GPU's.
    """

    are_copies = True

    def __init__(
        self,
        spec: ReplaySpec,
        batch_size: int,
        buffer: TrajectoryBuffer,
        split_of: Sequence[int],  # [S]
        device: torch.device,
    ) -> None:
        self.spec = spec
        self.num_chosen = batch_size
        self._device = device
        self._split_of = split_of
        self._num_envs = buffer.spec.num_envs
        self._starts = buffer.starts
        num_splits = max(split_of) + 1
        self._num_columns = num_splits * self._num_envs
        self._length = length = spec.capacity // self._num_columns  # L
        self._leaves, self._acted = tuple(buffer.obs), tuple(buffer.acted)
        self._frames = {leaf.name: leaf.frames for leaf in buffer.spec.leaves if leaf.frames > 1}
        self._history = max(self._frames.values(), default=1) - 1  # rows that a stack looks back
        arrays = {n: getattr(buffer, n) for n in ("valid", "rewards", "terminated")}
        self._slots = arrays | buffer.obs | buffer.acted  # name -> [S, T (+1), N, ...]
        self._versions = buffer.policy_version  # [S, T]
        rows = {name: (array.shape[3:], array.dtype) for name, array in self._slots.items()}
        rows["policy_version"] = (), np.dtype(np.int64)
        for name, frames in self._frames.items():
            shape, dtype = rows[name]
            rows[name] = (shape[0] // frames, *shape[1:]), dtype
            rows[_distances(name)] = (frames - 1,), np.dtype(np.uint8)
        # name -> [L * columns + 1, ...], row by row; the last one stays 0.
        self._rows = {
            name: _zeros((length * self._num_columns + 1, *shape), dtype, device)
            for name, (shape, dtype) in rows.items()
        }
        # What windows are drawn by is known on the host.
        self._written = np.zeros(num_splits, np.int64)  # rows before the newest one, ever
        self._is_acted = np.zeros((length, self._num_columns), np.bool_)
        self._is_valid = np.zeros_like(self._is_acted)
        self._is_start = np.zeros_like(self._is_acted)
        self._reach = np.zeros((length, self._num_columns), np.uint8)  # how far stacks look back
        self._num_decisions = self._num_starts = 0  # in the memory
        self._num_taken = 0  # decisions of the slots loaded last
        # Minibatches for each decision, and what of one is due: sums of floats would drift. Saved
        # as two integers of 64 bits.
        ratio = Fraction(str(spec.updates_per_decision))
        self._ratio, self._due = ratio.limit_denominator(10**9), Fraction(0)
        self._loaded: list[int] = []
        self._window = torch.arange(spec.window + 1, device=device).unsqueeze(1)  # [n+1, 1]

    @property
    def num_decisions(self) -> int:
        """In the memory now."""
        return self._num_decisions

    def load(self, slots: Sequence[int]) -> list[int]:
        self._loaded = list(slots)
        return self._loaded

    def take(self) -> None:
        for slot in self._loaded:
            self._copy(slot)
        self._num_taken = int(self._slots["valid"][self._loaded, :-1].sum())

    def _copy(self, slot: int) -> None:
        split, length, history = self._split_of[slot], self._length, self._history
        columns = slice(split * self._num_envs, (split + 1) * self._num_envs)
        num_rows = len(self._versions[slot])
        first = int(self._written[split])
        num_older = 0  # rows for the older frames of row 0
        if self._starts[slot]:
            # No action was taken from the row that is there, nor leads it here.
            first += history + (first > 0)
            num_older = history
        places = np.arange(first - num_older, first + num_rows + 1) % length
        rows, older = places[num_older:], places[:num_older]
        reach = np.zeros((num_rows + 1, self._num_envs), np.uint8)
        for name, array in self._slots.items():
            new = array[slot]
            if name in self._frames:
                new, distances = self._without_older_frames(name, new, older, rows[0], columns)
                self._write(_distances(name), rows, columns, distances)
                known = np.where(distances == NO_FRAME, 0, distances)
                reach = np.maximum(reach, known.max(axis=-1))
            self._write(name, rows[: len(new)], columns, new)
        versions = np.repeat(self._versions[slot][:, np.newaxis], self._num_envs, axis=1)
        self._write("policy_version", rows[:-1], columns, versions)

        self._written[split] = first + num_rows
        self._num_decisions -= self._count(places, columns)
        self._is_valid[rows, columns] = self._slots["valid"][slot]
        self._is_valid[older, columns] = False
        self._is_acted[rows[:-1], columns] = True
        self._is_acted[[*older, rows[-1]], columns] = False
        self._reach[rows, columns] = reach
        self._num_decisions += self._count(places, columns)
        self._find_starts(places, columns)

    def _without_older_frames(
        self, name: str, stacks: NDArray[Any], older: NDArray[np.int64], row: int, columns: slice
    ) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """[T+1, N, ...] as rows keep them, and their distances; row 0's older ones are written.

        Args:
            older: the rows for these, if a worker begins.
            row: where row 0 is, or lies already.
        """
        number = self._frames[name]
        if len(older):
            self._write(name, older[-(number - 1) :], columns, apart(stacks[0], number)[:-1])
            first = np.tile(np.arange(number - 1, 0, -1, dtype=np.uint8), (self._num_envs, 1))
        else:
            first = self._ring(_distances(name))[row, columns].cpu().numpy()
        return newest_of(stacks, number), look_back(stacks, number, first)

    def _ring(self, name: str) -> Tensor:
        """[L, columns, ...]"""
        return self._rows[name][:-1].view(
            self._length, self._num_columns, *self._rows[name].shape[1:]
        )

    def _write(self, name: str, rows: NDArray[np.int64], columns: slice, new: NDArray[Any]) -> None:
        self._ring(name)[torch.from_numpy(rows).to(self._device), columns] = torch.from_numpy(
            np.ascontiguousarray(new)
        ).to(self._device)

    def _count(self, places: NDArray[np.int64], columns: slice) -> int:
        return int((self._is_valid[places, columns] & self._is_acted[places, columns]).sum())

    def _find_starts(self, places: NDArray[np.int64], columns: slice) -> None:
        """Of the windows that have one of these rows, the newest ones, or whose stacks had."""
        span, length = self.spec.window, self._length
        number = min(span - 1 + len(places) + self._history, length)
        # The latest ones after the newest row, which are the oldest, and those before it.
        ages = np.arange(number) - self._history  # how much older than the newest row
        begins = (places[-1] - ages) % length
        of_windows = (begins[:, np.newaxis] + np.arange(span)) % length  # [rows, n]
        self._num_starts -= int(self._is_start[begins, columns].sum())
        is_start = self._is_acted[of_windows, columns].all(axis=1) & self._is_valid[begins, columns]
        is_start &= (ages % length)[:, np.newaxis] + self._reach[begins, columns] < length
        self._is_start[begins, columns] = is_start
        self._num_starts += int(is_start.sum())

    def orders(self, places: list[int], rng: np.random.Generator) -> NDArray[np.int64]:
        """Each is (row, column) of the first rows of windows. None is due before there is enough.

        `places`: those of the slots do not matter, since all of the memory is drawn from.
        """
        number = 0
        if self._num_decisions >= self.spec.min_size and self._num_starts:
            self._due += self._num_taken * self._ratio
            number = math.floor(self._due)
            self._due -= number
        chosen = self._draw(number * self.num_chosen, rng)
        return chosen.reshape(2, number, self.num_chosen).swapaxes(0, 1)

    def _draw(self, number: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """[2, number] of rows and columns, each where a window starts, all with the same chance."""
        filled = min(int(self._written.max()), self._length)
        drawn = np.empty((2, 0), np.int64)
        while drawn.shape[1] < number:
            tried = rng.integers([[filled], [self._num_columns]], size=(2, number))
            drawn = np.concatenate([drawn, tried[:, self._is_start[tried[0], tried[1]]]], axis=1)
        return drawn[:, :number]

    def gather(self, first: Tensor, second: Tensor) -> Minibatch:
        """Windows that begin at row first[i] of column second[i]."""
        rows = (first + self._window) % self._length  # [n+1, C]
        places = rows * self._num_columns + second
        valid = self._chosen("valid", places)
        ends = 1 + valid[1:-1].long().cumprod(dim=0).sum(dim=0)
        shown = torch.stack([places[0], places.gather(0, ends.unsqueeze(0))[0]])
        return Minibatch(
            obs={name: self._observed(name, shown) for name in self._leaves},
            valid=valid,
            rnn_state=None,
            acted={name: self._chosen(name, places[:-1]) for name in self._acted},
            rewards=self._chosen("rewards", places[:-1]),
            terminated=self._chosen("terminated", places[:-1]),
            policy_version=self._chosen("policy_version", places[:-1]),
            ends=ends,
        )

    def _chosen(self, name: str, places: Tensor) -> Tensor:
        """[*places, ...]: whole rows at once, no numbers one by one."""
        rows = self._rows[name].index_select(0, places.flatten())
        chosen: Tensor = rows.unflatten(0, places.shape)
        return chosen

    def _observed(self, name: str, places: Tensor) -> Tensor:
        if name not in self._frames:
            return self._chosen(name, places)
        distances = self._chosen(_distances(name), places).long()  # [*places, frames - 1]
        newest = places.unsqueeze(-1)
        size = self._length * self._num_columns
        older = (newest - distances * self._num_columns) % size
        older = older.where(distances != NO_FRAME, size)  # the row of zeros
        stacks = self._chosen(name, torch.cat([older, newest], dim=-1))
        observed: Tensor = stacks.flatten(places.ndim, places.ndim + 1)
        return observed

    _STATE = ("written", "is_acted", "is_valid", "reach")

    def state(self) -> dict[str, Any]:
        """Only rows that have been written. Arrays may be the memory's own."""
        number = self._num_written(self._written)
        rows = {_row(name): self._ring(name)[:number].cpu().numpy() for name in self._rows}
        own = {name: getattr(self, f"_{name}") for name in self._STATE}
        due = np.array([self._due.numerator, self._due.denominator])
        return {**rows, **own, "due": due}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, also with windows of another length.

        Args:
            state: an array may come in blocks, which are read one after the other.

        Raises ValueError if it is another memory's, and KeyError if a part is missing; nothing
        counts as written then.
        """
        own = {name: getattr(self, f"_{name}") for name in self._STATE}
        saved = {name: np.concatenate(list(_blocks(state[name]))) for name in own}
        for name, array in own.items():
            if saved[name].shape != array.shape:
                raise ValueError(f"{name} is {saved[name].shape} and must be {array.shape}")
        numerator, denominator = np.concatenate(list(_blocks(state["due"]))).tolist()
        due = Fraction(numerator, denominator)
        number = self._num_written(saved["written"])
        for name in self._rows:
            self._load_rows(name, number, _blocks(state[_row(name)]))
        self._due = due
        for name, array in own.items():
            array[:] = saved[name]
        self._num_decisions = int((self._is_valid & self._is_acted).sum())
        for split, written in enumerate(self._written.tolist()):
            columns = slice(split * self._num_envs, (split + 1) * self._num_envs)
            self._find_starts(np.arange(written + 1, written + 1 + self._length), columns)

    def _load_rows(self, name: str, number: int, blocks: Iterable[NDArray[Any]]) -> None:
        ring, first = self._ring(name), 0
        for block in blocks:
            last = first + len(block)
            if block.shape[1:] != ring.shape[1:] or last > number:
                raise ValueError(
                    f"{_row(name)} is {block.shape}, of {number} rows of {ring.shape[1:]}"
                )
            ring[first:last] = torch.from_numpy(block)
            first = last
        if first < number:
            raise ValueError(f"{_row(name)} has {first} rows, and must have {number}")

    def _num_written(self, written: NDArray[np.int64]) -> int:
        """Rows of the ring, of all columns, in which there may be something."""
        return min(int(written.max()) + 1, self._length)


def _blocks(rows: NDArray[Any] | Iterable[NDArray[Any]]) -> Iterable[NDArray[Any]]:
    return [rows] if isinstance(rows, np.ndarray) else rows


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any], device: torch.device) -> Tensor:
    """Of NumPy's, on a CPU: the kernel gives it memory as it is written, and torch writes all."""
    if device.type == "cpu":
        return torch.from_numpy(np.zeros(shape, dtype))
    return torch.zeros(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, device=device)


def _distances(name: str) -> str:
    """What a leaf's frames.distances are called among the rows."""
    return f"{name} distances"


def _row(name: str) -> str:
    """What it is called in a saved state."""
    return f"row {name}"
