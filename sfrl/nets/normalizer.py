"""Observations in units of their own running mean and deviation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningNorm(nn.Module):
    """Each number of a vector, less its mean and divided by its deviation, both of what was seen.

    Rows in slots stay as the environment gave them: the learner computes mean and deviation, and
    acting knows them from the published weights. The last `MEMORY` rows count, so that they follow
    a policy which gets elsewhere (the pairwise update of Chan et al. 1979, with a bounded count).
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    MEMORY = 1e6  # rows
    LIMIT = 10.0  # deviations; what is beyond counts as that far
    # The least deviation, and what of the mean is added to it: a number that has never changed
    # becomes nearly 0, and not its rounding errors.
    EPSILON = 1e-4
    PRECISION = 1e-5
    # Numbers count as no further from the mean than so many deviations, so that a single glitch is
    # not all, and as no larger than this, so that squares are finite.
    MAX_GROWTH = 30.0
    LARGEST = 1e15

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """[*, D] -> [*, D] float32."""
        return ((x.float() - self.mean) / self._deviation()).clamp(-self.LIMIT, self.LIMIT)

    def _deviation(self) -> Tensor:
        least = self.EPSILON + self.PRECISION * self.mean.abs()
        return (self.variance + least.square()).sqrt()

    @torch.no_grad()
    def update(self, x: Tensor, mask: Tensor) -> None:
        """Of x [..., D] the rows in which mask [...] is true. It reads no result."""
        x = torch.where(mask.unsqueeze(-1), x, self.mean)  # of other rows nothing, not even NaN
        reach = torch.where(self.count > 0, self.MAX_GROWTH * self._deviation(), self.LARGEST)
        x = x.clamp(-self.LARGEST, self.LARGEST)
        x = (x - self.mean).clamp(-reach, reach)  # from the mean: less is lost in rounding
        weight = mask.unsqueeze(-1).float()
        number = weight.sum()
        share = number.clamp(min=1)
        axes = tuple(range(x.ndim - 1))
        delta = (x * weight).sum(axes) / share
        variance = ((x - delta).square() * weight).sum(axes) / share
        rate = number / (self.count + number).clamp(min=1)  # 1 at the first update, 0 without rows
        spread = self.variance + rate * (variance - self.variance)
        self.variance.copy_(spread + rate * (1 - rate) * delta.square())
        self.mean.add_(rate * delta)
        self.count.copy_((self.count + number).clamp(max=self.MEMORY))
