"""Weights that one learner owns: its optimizer makes new ones, and publishes them."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfrl.nets.model import Network
from sfrl.parameters.optimizer import (
    load_portable_state,
    make_optimizer,
    portable_state,
    set_learning_rate,
)
from sfrl.parameters.weights import Weights, WeightsReader
from sfrl.settings.config import Config


class Step(NamedTuple):
    """The outcome of an optimizer step, on the device."""

    applied: Tensor  # scalar bool; False: loss or gradient was not finite, nothing has changed
    grad_norm: Tensor  # scalar, of all networks together, before it was clipped


class CentralParameters:
    """A model's parameters, its optimizer, and where the weights are published.

    Attributes:
        target: an earlier state of the model, renewed every `config.target_period` steps, or None.
    """

    def __init__(
        self,
        config: Config,
        model: Network,
        weights: Weights | None,  # None: nobody acts with them in another process
        target_weights: Weights | None = None,  # where the target's are published
    ) -> None:
        self.model = model
        self.weights = weights
        self.target: Network | None = None
        self._target_weights = target_weights
        self._target_every = config.target_period
        if target_weights is not None:
            self.target = copy.deepcopy(model).requires_grad_(False)
            self._target_reader = WeightsReader(target_weights)
            self._target_version = 0
            target_weights.publish(self.target, 0)  # which takes its memory: not later
        self._max_grad_norm = config.max_grad_norm
        self._networks = model.networks()
        self.optimizer = make_optimizer(config, self._networks)

    def step(self, loss: Tensor) -> Step:
        """One optimizer step down the gradient of `loss`, unless one of them is not finite.

        It reads no result, so that it can be captured as a CUDA graph. RMSprop cannot: it has no
        `found_inf`, so that the host has to branch.
        """
        self.drop_gradients()
        loss.backward()
        grad_norm = self._clip_gradients()
        applied = torch.isfinite(loss.detach()) & torch.isfinite(grad_norm)
        if isinstance(self.optimizer, torch.optim.Adam):
            # As torch.amp.GradScaler tells a fused Adam, on the device, to leave everything alone.
            self.optimizer.found_inf = (~applied).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif applied:
            self.optimizer.step()
        return Step(applied, grad_norm)

    def _clip_gradients(self) -> Tensor:
        """Scale each network's gradient down to `max_grad_norm`; returns the norm of all before."""
        norms = [nn.utils.clip_grad_norm_(n, self._max_grad_norm) for n in self._networks]
        return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))

    def drop_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def set_learning_rate(self, learning_rate: float) -> None:
        """For the steps to come, those of a graph captured before included."""
        set_learning_rate(self.optimizer, learning_rate)

    def publish(self, version: int) -> None:
        """Make the present weights those that everybody acts with, and the target's if it is due.

        Args:
            version: optimizer steps applied so far.
        """
        if self.weights is not None:
            self.weights.publish(self.model, version)
        if self.target is None or self._target_weights is None:
            return
        if version // self._target_every > self._target_version // self._target_every:
            self._target_version = version
            self._target_weights.publish(self.model, version)
            self._target_reader.refresh(self.target)

    def state(self) -> dict[str, Any]:
        """For a checkpoint. Normalization statistics are buffers of the model."""
        state = {"model": self.model.state_dict(), "optimizer": portable_state(self.optimizer)}
        if self.target is not None:
            state["target"] = self.target.state_dict()
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint. Raises what `checkpoint.MISMATCHES` lists if it does not fit."""
        self.model.load_weights(state["model"])
        load_portable_state(self.optimizer, state["optimizer"])
        if self.target is not None and self._target_weights is not None:
            self.target.load_weights(state["target"])
            self._target_version = state["counters"]["learner_steps"]
            self._target_weights.publish(self.target, self._target_version)
