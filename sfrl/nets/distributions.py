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


class EpsilonGreedy:
    """The best of A actions by their values, or with probability epsilon any of them.

    values are [..., A] float32, epsilon [...] float32; actions are [...] int64.
    """

    def __init__(self, values: Tensor, epsilon: Tensor) -> None:
        self.values = values
        self.epsilon = epsilon

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        draws = torch.empty_like(self.values).uniform_(generator=generator)
        explores = torch.empty_like(self.epsilon).uniform_(generator=generator) < self.epsilon
        return torch.where(explores, draws.argmax(dim=-1), self.mode())

    def mode(self) -> Tensor:
        return self.values.argmax(dim=-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        probs = self.epsilon / self.values.shape[-1]
        return torch.where(actions == self.mode(), probs + 1 - self.epsilon, probs).log()

    def entropy(self) -> Tensor:
        num_others = self.values.shape[-1] - 1
        other = self.epsilon / self.values.shape[-1]
        best = other + 1 - self.epsilon
        return -(torch.xlogy(best, best) + num_others * torch.xlogy(other, other))
