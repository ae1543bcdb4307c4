"""What an algorithm is to the workers: how it acts, and what it learns from."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sfrl.experience.minibatch import Minibatch
from sfrl.nets.model import Network


class Acted(NamedTuple):
    """What acting on B observations gives."""

    fields: dict[str, Tensor]
    """Name -> [B, ...], as `Config.acted` declares them; `actions` in the space's dtype."""
    rnn_state: Tensor | None
    """[B, H] float32 after these observations; None without a memory."""


class Loss(NamedTuple):
    """Of one minibatch."""

    total: Tensor
    """Scalar, with gradient."""
    statistics: dict[str, Tensor]
    """Name -> scalar without gradient, as `Config.STATISTICS` declares them."""
    targets: Tensor
    """[T, C], what the values were to be; of windows [C]."""
    mask: Tensor
    """[T, C] bool, the rows that were learned from."""
    reach: Tensor | None = None
    """Scalar without gradient, 0 to 1: see `Parameters.step`. None: 1."""


class Algorithm(Protocol):
    """One object in each process that acts or learns. It holds settings, no weights.

    A model that it is given is one that its `make_model` has made, or an inference copy of that.
    """

    def make_model(self) -> Network:
        """Fresh, on the CPU, float32, initialized from torch's global generator.

        Raises:
            ValueError: no such encoder, or one that does not fit the observations.
        """

    def act(
        self,
        model: Any,
        obs: dict[str, Tensor],  # leaf -> [B, *shape]
        rnn_state: Tensor | None,  # [B, H]; None: zeros
        exploration: Tensor | None,  # [B], how strongly to explore, see `Config.exploration`
        generator: torch.Generator,  # on their device
    ) -> Acted:
        """As in training. No gradients; it takes no time of the host's but to start its kernels."""

    def greedy(self, model: Any, obs: dict[str, Tensor], rnn_state: Tensor | None) -> Acted:
        """The best action that it knows, as `act`; `fields` has `actions` alone."""

    def outputs(
        self, model: Any, obs: dict[str, Tensor], rnn_state: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """All that the network says of observations, and the recurrent state of the network alone.

        By name, in this order: `action`, that of `greedy`; then what it was chosen by, of choices
        `logits` [B, num_logits], of numbers `mean` and `log_std` [B, D], or `q_values` [B, A]; and
        `value` [B], where there is one. What a mask forbids has the lowest logit or value. It can
        be exported: gradients are as the caller has them.
        """

    def loss(self, model: Any, target: Any, batch: Minibatch, version: Tensor) -> Loss:
        """Of a minibatch; it reads no result, so that it can be captured as a CUDA graph.

        Args:
            target: an earlier state of the model, if the settings ask for one; else None.
            version: scalar int64, updates applied to the model.
        """

    def after_update(self, model: Any, batch: Minibatch, loss: Loss, applied: Tensor) -> None:
        """Edit the model in place after an optimizer step of this minibatch; no output may jump.

        Args:
            applied: scalar bool. False: the step was left out, and nothing is to change.
        """
