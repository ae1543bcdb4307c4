"""Rows are kept for long, and minibatches drawn from all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
        self._split_of = split_of
        self._num_envs = buffer.spec.num_envs
        self._starts = buffer.starts
        num_splits = max(split_of) + 1
        self._num_columns = num_splits * self._num_envs
        self._length = length = spec.capacity // self._num_columns  # L
        self._leaves, self._acted = tuple(buffer.obs), tuple(buffer.acted)
        arrays = {n: getattr(buffer, n) for n in ("valid", "rewards", "terminated")}
        arrays |= buffer.obs | buffer.acted
        self._shared = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self._versions = torch.from_numpy(buffer.policy_version)  # [S, T]
        self._rows = {  # name -> [L, columns, ...]; the kernel gives memory as it is written
            name: torch.zeros(
                (length, self._num_columns, *field.shape[3:]), dtype=field.dtype, device=device
            )
            for name, field in self._shared.items()
        }
        self._rows["policy_version"] = torch.zeros(
            (length, self._num_columns), dtype=torch.int64, device=device
        )
        # What windows are drawn by is known on the host.
        self._written = np.zeros(num_splits, np.int64)  # rows before the newest one, ever
        self._is_acted = np.zeros((length, self._num_columns), np.bool_)
        self._is_valid = np.zeros_like(self._is_acted)
        self._is_start = np.zeros_like(self._is_acted)
        self._num_decisions = self._num_starts = 0  # in the memory
        self._num_taken = 0  # decisions of the slots loaded last
        # Minibatches for each decision, and what of one is due: sums of floats would drift.
        self._ratio, self._due = Fraction(str(spec.updates_per_decision)), Fraction(0)
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
        self._num_taken = int(self._shared["valid"][self._loaded, :-1].sum())

    def _copy(self, slot: int) -> None:
        split, length = self._split_of[slot], self._length
        columns = slice(split * self._num_envs, (split + 1) * self._num_envs)
        first = int(self._written[split])
        if self._starts[slot] and first:
            first += 1  # no action was taken from the row that is there, nor leads it here
        num_rows = len(self._versions[slot])
        places = np.arange(first, first + num_rows + 1) % length
        rows = torch.from_numpy(places)
        for name, field in self._shared.items():
            ring, new = self._rows[name], field[slot]
            ring[rows[: len(new)].to(ring.device), columns] = new.to(ring.device)
        versions = self._versions[slot].unsqueeze(1).to(self._window.device)
        self._rows["policy_version"][rows[:-1].to(versions.device), columns] = versions

        self._written[split] = first + num_rows
        self._num_decisions -= self._count(places, columns)
        self._is_valid[places, columns] = self._shared["valid"][slot].numpy()
        self._is_acted[places[:-1], columns] = True
        self._is_acted[places[-1], columns] = False
        self._num_decisions += self._count(places, columns)
        self._find_starts(places, columns)

    def _count(self, places: NDArray[np.int64], columns: slice) -> int:
        return int((self._is_valid[places, columns] & self._is_acted[places, columns]).sum())

    def _find_starts(self, places: NDArray[np.int64], columns: slice) -> None:
        """Of the windows that have one of these rows."""
        span = self.spec.window
        begins = np.arange(places[0] - span + 1, places[0] + len(places))
        of_windows = (begins[:, np.newaxis] + np.arange(span)) % self._length  # [rows, n]
        begins %= self._length
        self._num_starts -= int(self._is_start[begins, columns].sum())
        is_whole = self._is_acted[of_windows, columns].all(axis=1)
        self._is_start[begins, columns] = is_whole & self._is_valid[begins, columns]
        self._num_starts += int(self._is_start[begins, columns].sum())

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

        def windows(name: str, places: Tensor = places[:-1]) -> Tensor:
            field = self._rows[name].flatten(0, 1)  # whole rows at once: no numbers one by one
            chosen: Tensor = field.index_select(0, places.flatten()).unflatten(0, places.shape)
            return chosen

        return Minibatch(
            obs={name: windows(name, places) for name in self._leaves},
            valid=windows("valid", places),
            rnn_state=None,
            acted={name: windows(name) for name in self._acted},
            rewards=windows("rewards"),
            terminated=windows("terminated"),
            policy_version=windows("policy_version"),
        )

    _STATE = ("written", "is_acted", "is_valid", "is_start")
    _NUMBERS = ("num_decisions", "num_starts")

    def state(self) -> dict[str, Any]:
        """Only rows that have been written."""
        number = min(int(self._written.max()) + 1, self._length)
        rows = {name: ring[:number].cpu().numpy().copy() for name, ring in self._rows.items()}
        own = {name: getattr(self, f"_{name}").copy() for name in self._STATE}
        numbers = {name: getattr(self, f"_{name}") for name in self._NUMBERS}
        return {"rows": rows, "due": str(self._due), **own, **numbers}

    def load_state(self, state: dict[str, Any]) -> None:
        for name, rows in state["rows"].items():
            self._rows[name][: len(rows)] = torch.from_numpy(rows)
        for name in self._STATE:
            getattr(self, f"_{name}")[:] = state[name]
        for name in self._NUMBERS:
            setattr(self, f"_{name}", state[name])
        self._due = Fraction(state["due"])
