"""What updates tell of themselves, summed where they are computed and read now and then."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_REPORTED_LAG = 127  # the histogram's last bin holds all lags from here on


class UpdateStatistics:
    """Sums over updates, on their device; nothing here waits for a GPU but `take` and `count`.

    Means are over the updates in which every statistic is finite: what was skipped must not hide
    the rest.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self._names = tuple(names)
        self._sums = torch.zeros(len(self._names) + 1, device=device)  # the last one counts
        self._dropped_rows = torch.zeros((), dtype=torch.int64, device=device)
        self._lag_sum, self._lag_max = (torch.zeros_like(self._dropped_rows) for _ in range(2))
        self._lag_counts = torch.zeros(MAX_REPORTED_LAG + 1, dtype=torch.int64, device=device)
        # Steps applied and skipped since `count` was called, and those skipped in a row.
        self._steps = torch.zeros(3, dtype=torch.int64, device=device)

    def add(
        self, values: dict[str, Tensor], applied: Tensor, has_rows: Tensor | bool = True
    ) -> None:
        """One update: name -> scalar for all the names, and whether it changed the weights.

        Without a row to learn from it was neither a step nor a skipped one, and has no statistics.

        Raises:
            KeyError: a name is missing, or is none that was announced.
        """
        if values.keys() != set(self._names):
            raise KeyError(f"statistics {sorted(values)} are not those announced, {self._names}")
        row = torch.stack([*(values[name] for name in self._names), torch.ones_like(self._sums[0])])
        self._sums += torch.where(row.isfinite().all() & has_rows, row, 0.0)
        taken, skipped = applied.long(), (~applied & has_rows).long()
        self._steps += torch.stack([taken, skipped, skipped])
        self._steps[2] *= 1 - taken

    def add_rows(self, lag: Tensor, valid: Tensor, mask: Tensor) -> None:
        """The rows of the update, [T, C] each: their policy lag; valid ones; those learned from."""
        known = torch.where(valid, lag, 0)
        self._dropped_rows += (valid & ~mask).sum()
        self._lag_sum += known.sum()
        torch.maximum(self._lag_max, known.max(), out=self._lag_max)
        bins = known.clamp(0, MAX_REPORTED_LAG).flatten()  # `bincount` would wait for a GPU
        self._lag_counts.scatter_add_(0, bins, valid.flatten().long())

    def count(self) -> tuple[int, int, int]:
        """Steps applied and skipped since the last call, and how many were skipped last in a row.

        Waits for a GPU.
        """
        applied, skipped, in_a_row = self._steps.tolist()
        self._steps[:2] = 0
        return applied, skipped, in_a_row

    def take(self) -> tuple[dict[str, float], int, list[int]]:
        """Means by name, rows dropped, rows by policy lag; all begin again. Waits for a GPU.

        The means are those of the names and `policy_lag_mean`, `policy_lag_max`, without those of
        which there is nothing.
        """
        *sums, num_updates = self._sums.tolist()
        means = {}
        if num_updates:
            means = {n: total / num_updates for n, total in zip(self._names, sums, strict=True)}
        dropped_rows, lag_counts = int(self._dropped_rows), self._lag_counts.tolist()
        if num_rows := sum(lag_counts):  # else every row only reset
            means["policy_lag_mean"] = int(self._lag_sum) / num_rows
            means["policy_lag_max"] = float(self._lag_max)
        for tensor in (
            *(self._sums, self._dropped_rows, self._lag_sum, self._lag_max, self._lag_counts),
        ):
            tensor.zero_()
        return means, dropped_rows, lag_counts
