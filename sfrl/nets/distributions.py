"""The categorical distribution over a discrete action space, as pure functions of its logits.

logits are [..., A] float32 and unnormalized; log-probabilities are logits as well. Several times
faster at these sizes than torch.distributions, which validates and allocates on each call.
"""

import torch
from torch import Tensor


def sample(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One action for each row, [...] int64; `generator` is on the device of `logits`.

    The Gumbel-max trick: with E_a ~ Exponential(1), argmax_a(logits_a - log E_a) has the
    probabilities softmax(logits). It takes no normalization and no sync with a GPU.
    """
    exponentials = torch.empty_like(logits).exponential_(generator=generator)
    return (logits - exponentials.log_()).argmax(dim=-1)


def log_prob(logits: Tensor, actions: Tensor) -> Tensor:
    """log pi(action), [...]; `actions` is [...] int64."""
    return logits.log_softmax(dim=-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats, [...]."""
    log_probs = logits.log_softmax(dim=-1)
    return -(log_probs.exp() * log_probs).sum(dim=-1)
