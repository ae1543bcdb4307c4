"""Batches of observations and their forward passes: on a CPU at once, on a GPU in flight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfrl.nets import cuda
from sfrl.settings.config import RowField

Act = Callable[[dict[str, Tensor], Tensor, Tensor], dict[str, Tensor]]
"""(obs: leaf -> [R * N, *shape], splits [R] int64, valid [R, N] bool) -> name -> [R * N, ...], what
acting writes into the rows of R requests of splits with N environments each."""

Rows = dict[str, list[Tensor]]
"""Leaf -> [N, *shape] of each request, in shared memory."""

Results = dict[str, NDArray[Any]]
"""Name -> [at least R * N, ...]."""


class Batch(Protocol):
    """One forward pass after another: rows are loaded, computing begins, the result is read."""

    def load(self, rows: Rows, splits: Tensor, valid: Tensor) -> None:
        """splits and valid: see `Act`."""

    def compute(self) -> None:
        """Begin; a CPU also ends it."""

    def result(self) -> Results:
        """Once it is there; valid until the next `compute`."""


class HostBatch:
    """On a CPU."""

    def __init__(self, act: Act) -> None:
        self._act = act

    def load(self, rows: Rows, splits: Tensor, valid: Tensor) -> None:
        obs = {name: r[0] if len(r) == 1 else torch.cat(r) for name, r in rows.items()}
        self._inputs = obs, splits, valid

    def compute(self) -> None:
        self._result = self._act(*self._inputs)

    def result(self) -> Results:
        return {name: values.numpy() for name, values in self._result.items()}


class GpuBatch:
    """On a GPU, which copies rows straight from shared memory.

    The numbers of requests are rounded up to a power of two, and each of these sizes is one CUDA
    graph, from pixels to sampled actions. Padding rows are computed for a dummy split,
    the one after the last. All batches compute on the same stream, one after the other; copies have
    one of their own, and so reach the next batch while this one computes.
    """

    def __init__(
        self,
        act: Act,
        acted: Mapping[str, RowField],  # what it gives
        obs: Mapping[str, Tensor],  # leaf -> [S, T+1, N, *shape], the shared memory
        max_requests: int,
        num_splits: int,  # the index of the split that does not exist
        device: torch.device,
        copies: torch.cuda.Stream,
        graphs: cuda.Graphs,
    ) -> None:
        self._acted = acted
        self._num_envs = n = next(iter(obs.values())).shape[2]
        self._obs = {
            name: torch.zeros((max_requests, *rows.shape[2:]), dtype=rows.dtype, device=device)
            for name, rows in obs.items()
        }
        self._places = {name: list(places) for name, places in self._obs.items()}
        self._nobody = num_splits
        self._host_splits = torch.full((max_requests,), num_splits, pin_memory=True)
        self._host_valid = torch.ones((max_requests, n), dtype=torch.bool, pin_memory=True)
        self._splits, self._valid = self._host_splits.to(device), self._host_valid.to(device)
        self._copies, self._copied = copies, torch.cuda.Event()
        self._done = cuda.sleeping_event()
        self._passes: dict[int, cuda.Graphed] = {}
        self._results: dict[int, Tensor] = {}  # in pinned memory
        for size in batch_sizes(max_requests):
            own = {name: places[:size].flatten(0, 1) for name, places in self._obs.items()}
            inputs = own, self._splits[:size], self._valid[:size]
            self._passes[size] = cuda.Graphed(partial(self._packed, act, *inputs), graphs)
            num_bytes = size * n * sum(bytes_of(field) for field in acted.values())
            self._results[size] = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        self._size = 0

    def _packed(self, act: Act, obs: dict[str, Tensor], splits: Tensor, valid: Tensor) -> Tensor:
        return packed(act(obs, splits, valid), self._acted)

    def load(self, rows: Rows, splits: Tensor, valid: Tensor) -> None:
        r = len(next(iter(rows.values())))
        self._size = next(size for size in self._passes if size >= r)
        with torch.cuda.stream(self._copies):
            for name, places in self._places.items():
                for place, row in zip(places, rows[name], strict=False):
                    place.copy_(row, non_blocking=True)
            self._copied.record()
        torch.cuda.current_stream().wait_event(self._copied)
        if splits.numel():
            self._host_splits[:r], self._host_splits[r:] = splits, self._nobody
            self._splits.copy_(self._host_splits, non_blocking=True)
        if valid.numel():
            self._host_valid[:r] = valid
            self._valid.copy_(self._host_valid, non_blocking=True)

    def compute(self) -> None:
        output = self._passes[self._size]()
        self._results[self._size].copy_(output, non_blocking=True)
        self._done.record()

    def result(self) -> Results:
        self._done.synchronize()
        return unpacked(self._results[self._size], self._acted, self._size * self._num_envs)


def packed(fields: Mapping[str, Tensor], acted: Mapping[str, RowField]) -> Tensor:
    """All fields in one row of bytes: one copy for all. Those of the widest numbers come first."""
    parts = []
    for name in _by_width(acted):
        values = fields[name].to(getattr(torch, acted[name].dtype))
        parts.append(values.contiguous().view(torch.uint8).flatten())
    return torch.cat(parts)


def unpacked(content: Tensor, acted: Mapping[str, RowField], num_rows: int) -> Results:
    """What `packed` had, on the host: views of its bytes."""
    results, start = {}, 0
    for name in _by_width(acted):
        end = start + num_rows * bytes_of(acted[name])
        values = content.numpy()[start:end].view(acted[name].dtype)
        results[name] = values.reshape(num_rows, *acted[name].shape)
        start = end
    return results


def _by_width(acted: Mapping[str, RowField]) -> list[str]:
    """So that each lies at a multiple of its numbers' size."""
    return sorted(acted, key=lambda name: (-np.dtype(acted[name].dtype).itemsize, name))


def bytes_of(field: RowField) -> int:
    """Of one environment."""
    return math.prod(field.shape) * np.dtype(field.dtype).itemsize


def batch_sizes(max_requests: int) -> list[int]:
    """Numbers of requests for which there is a graph: 1, 2, 4, ... and `max_requests`."""
    powers = [1 << i for i in range(max_requests.bit_length())]
    return [size for size in powers if size < max_requests] + [max_requests]
