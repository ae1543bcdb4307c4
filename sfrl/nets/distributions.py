"""Distributions over actions, as objects made of what a head puts out.

Several times faster at these sizes than torch.distributions, which validates and allocates on each
call. Log-probabilities and entropies are float32, in nats.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Distribution(Protocol):
    """Over the actions of each row."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One action for each row; `generator` is on the device of the parameters."""

    def mode(self) -> Tensor:
        """The likeliest action of each row."""

    def log_prob(self, actions: Tensor) -> Tensor:
        """log pi(action) of each row."""

    def entropy(self) -> Tensor:
        """Of each row."""


class Categorical:
    """Over a discrete space, by logits [..., A] float32, unnormalized.

    Log-probabilities are logits as well. Actions are [...] int64.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """The Gumbel-max trick: with E_a ~ Exponential(1), argmax_a(logits_a - log E_a) has the
        probabilities softmax(logits). It takes no normalization and no sync with a GPU.
        """
        exponentials = torch.empty_like(self.logits).exponential_(generator=generator)
        return (self.logits - exponentials.log_()).argmax(dim=-1)

    def mode(self) -> Tensor:
        return self.logits.argmax(dim=-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        log_probs = self.logits.log_softmax(dim=-1)
        return log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        log_probs = self.logits.log_softmax(dim=-1)
        return -(log_probs.exp() * log_probs).sum(dim=-1)
