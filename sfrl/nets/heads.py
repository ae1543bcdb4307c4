"""Heads that need more than a linear layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sfrl.maths.losses import masked_mean


class ValueHead(nn.Module):
    """Linear value function; if it normalizes, in units of the returns' size.

    The size is the root mean square of the targets, exponentially averaged: the last 1 / BETA
    updates count. V = size / REACH * linear(features) is what `forward` returns, so all that calls
    it works in units of the reward. When the size moves the layer is rescaled, so that no value
    changes, as in PopArt (van Hasselt et al. 2016, arXiv:1602.07714). There the unit is the
    deviation from a running mean; this has no mean, for two reasons. The deviation falls to nothing
    where returns become constant, and the layer grows without bound; the size falls only where
    returns become 0. And a critic that knows the mean of all returns before it can tell states
    apart gives the end of an episode, whose value is 0, the advantage of the whole mean: where
    rewards are negative the policy learns to die (docs/experiments.md).

    The size and its weight are buffers, hence published and saved with the layer they belong to.
    """

    size: Tensor
    weight: Tensor  # 1 - (1 - BETA)^updates; undoes the average's pull towards its initial 1

    BETA = 3e-3
    # Returns below 1 are learned as they are. Where few rows come before a reward the root mean
    # square is a small part of it, and the layer would have to put out hundreds for these rows.
    MIN_SIZE = 1.0
    # What the layer has to put out for a return of the usual size. Its first outputs, of size 1,
    # then are small next to returns, like the policy's first preferences.
    REACH = 10.0
    # Targets beyond so many sizes, the initial 1 included, count as that many: a single glitch is
    # not all, and returns of a million from the start are caught up with within ten updates.
    MAX_GROWTH = 30.0

    def __init__(self, num_features: int, normalize_returns: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, 1)
        self.normalizes = normalize_returns
        if normalize_returns:
            self.register_buffer("size", torch.tensor(1.0))
            self.register_buffer("weight", torch.tensor(0.0))

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: object
    ) -> None:
        """Also that of format 3, whose layer was written around a mean and a deviation."""
        if (std := state_dict.pop(f"{prefix}std", None)) is not None:
            mean = state_dict.pop(f"{prefix}mean")
            size = (mean.square() + std.square()).sqrt().clamp(min=self.MIN_SIZE)
            unit = size / self.REACH
            weight, bias = state_dict[f"{prefix}linear.weight"], state_dict[f"{prefix}linear.bias"]
            state_dict[f"{prefix}linear.weight"] = weight * std / unit
            state_dict[f"{prefix}linear.bias"] = (bias * std + mean) / unit
            state_dict[f"{prefix}size"] = size
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, features: Tensor) -> Tensor:
        """[*, F] -> [*]."""
        outputs: Tensor = self.linear(features).squeeze(-1)
        return outputs * (self.size / self.REACH) if self.normalizes else outputs

    def normalize(self, returns: Tensor, size: float = 1.0) -> Tensor:
        """Returns of the usual size become as large as `size`."""
        return returns * (size / self.size) if self.normalizes else returns

    @torch.no_grad()
    def update_size(self, returns: Tensor, mask: Tensor) -> None:
        """Move the size, and rescale the layer so that `forward` keeps its results.

        An empty mask moves nothing, nor do targets that are not finite.
        """
        if not self.normalizes:
            return
        limit = self.MAX_GROWTH * self.size
        square = masked_mean(returns.clamp(-limit, limit).square(), mask)
        beta = self.BETA * (mask.any() & square.isfinite())
        new_weight = self.weight + beta * (1 - self.weight)
        rate = beta / new_weight.clamp(min=self.BETA)  # 1 at the first update
        change = rate * (square.nan_to_num(0, 0, 0) - self.size.square())
        new_size = (self.size.square() + change).sqrt().clamp(min=self.MIN_SIZE)

        scale = self.size / new_size  # 1 where nothing moves: then the layer stays, bit for bit
        self.linear.weight.mul_(scale)
        self.linear.bias.mul_(scale)
        self.size.copy_(new_size)
        self.weight.copy_(new_weight)


class TwinCritics(nn.Module):
    """Two networks of their own that value an action, with two hidden layers each.

    Their layers lie in one tensor each, so that both are computed at once.
    """

    def __init__(self, num_inputs: int, hidden: int) -> None:
        super().__init__()
        sizes = ((num_inputs, hidden), (hidden, hidden), (hidden, 1))
        self.weights = nn.ParameterList(torch.empty(2, *size) for size in sizes)
        self.biases = nn.ParameterList(torch.zeros(2, 1, outputs) for _, outputs in sizes)
        for weight, gain in zip(self.weights, (math.sqrt(2), math.sqrt(2), 1.0), strict=True):
            for one in weight:
                nn.init.orthogonal_(one, gain)

    def forward(self, features: Tensor, actions: Tensor, *, frozen: bool = False) -> Tensor:
        """[*, F] and [*, D] -> [2, *]. `frozen`: gradients reach the inputs alone."""
        x = torch.cat([features, actions], dim=-1)
        shape = x.shape[:-1]
        x = x.flatten(0, -2).expand(2, -1, -1)
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if frozen:
                weight, bias = weight.detach(), bias.detach()
            x = torch.baddbmm(bias, x, weight)
            if i < last:
                x = x.relu()
        return x.view(2, *shape)
