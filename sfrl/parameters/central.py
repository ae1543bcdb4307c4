"""Weights that one learner owns: its optimizer makes new ones, and publishes them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sfrl.nets.model import Network
from sfrl.parameters.optimizer import (
    Muon,
    load_portable_state,
    make_optimizer,
    portable_state,
    set_learning_rate,
)
from sfrl.parameters.parameters import Edit, Step
from sfrl.parameters.weights import Weights, WeightsReader
from sfrl.settings.config import Config


class Target:
    """An earlier state of the weights, renewed every `config.target_period` steps, or none.

    With `config.target_decay` it is a moving average of them instead.

    Attributes:
        model: it, without gradients; None: the algorithm has none.
    """

    def __init__(
        self, config: Config, source: Network, weights: Weights | None, *, renews: bool = True
    ) -> None:
        """
        Args:
            source: whose state it is.
            weights: where it is published; None: there is no target.
            renews: whether this learner does. The others read what it has published.
        """
        self.model: Network | None = None
        self._source, self._weights, self._renews = source, weights, renews
        self._every = config.target_period
        self._decay = config.target_decay
        self._version = 0
        if weights is not None:
            self.model = copy.deepcopy(source).requires_grad_(False)
            self._reader = WeightsReader(weights)
            if renews and not weights.is_published:
                weights.publish(self.model, 0)  # which takes its memory: not later
            self._reader.refresh(self.model)  # of a first learner that has died, it may be another
            self._version = max(self._reader.version, 0)

    @torch.no_grad()
    def average(self) -> None:
        """After a step: move on by 1 - decay of the way to the model, if it is an average."""
        if self.model is None or not self._decay:
            return
        for mine, new in zip(self.model.parameters(), self._source.parameters(), strict=True):
            mine.lerp_(new, 1 - self._decay)
        buffers = zip(self.model.buffers(), self._source.buffers(), strict=True)
        for buffer, newest in buffers:
            buffer.copy_(newest)

    def follow(self, version: int) -> None:
        """Renew it if the steps applied so far, `version`, have passed a multiple of its period."""
        if self.model is None or self._weights is None:
            return
        if self._renews and version // self._every > self._version // self._every:
            self._version = version
            self._weights.publish(self.model if self._decay else self._source, version)
        self._reader.refresh(self.model)

    def state(self) -> dict[str, Any]:
        return {} if self.model is None else {"target": self.model.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        if self.model is not None and self._weights is not None:
            # A run that had none, before --correction asked for one, goes on with the model's.
            self.model.load_weights(state.get("target", state["model"]))
            self._version = state["counters"]["learner_steps"]
            self._weights.publish(self.model, self._version)


class CentralParameters:
    """A model's parameters, its optimizer, and where the weights are published: `Parameters`."""

    def __init__(
        self,
        config: Config,
        model: Network,
        weights: Weights | None,  # None: nobody acts with them in another process
        target_weights: Weights | None = None,  # where the target's are published
    ) -> None:
        self.model = model
        self.weights = weights
        self._target = Target(config, model, target_weights)
        self._max_grad_norm = config.max_grad_norm
        self._networks = model.networks()
        self.optimizer = make_optimizer(config, self._networks, model.matrices())
        is_adam, device = isinstance(self.optimizer, torch.optim.Adam), self._networks[0][0].device
        self._skips_on_device = is_adam and device.type == "cuda"

    @property
    def target(self) -> nn.Module | None:
        return self._target.model

    def pull(self) -> None:
        """Nothing: the model's are the newest."""

    def step(
        self,
        loss: Tensor,
        after_update: Edit,
        reach: Tensor | None = None,
        has_rows: Tensor | bool = True,
    ) -> Step:
        """On a GPU it reads no result, so that it can be captured as a CUDA graph.

        RMSprop's cannot: it has no `found_inf`, so that the host has to branch, as on a CPU.
        """
        self.drop_gradients()
        loss.backward()
        grad_norm = clip_gradients(self._networks, self._max_grad_norm)
        applied = torch.isfinite(loss.detach()) & torch.isfinite(grad_norm) & has_rows
        if isinstance(self.optimizer, Muon):
            self.optimizer.reach = 1.0 if reach is None else reach
        if self._skips_on_device:
            # As torch.amp.GradScaler tells a fused Adam, on the device, to leave everything alone.
            self.optimizer.found_inf = (~applied).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif applied:
            self.optimizer.step()
        after_update(self.model, applied)
        self._target.average()
        return Step(applied, grad_norm)

    def drop_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def set_learning_rate(self, learning_rate: float) -> None:
        set_learning_rate(self.optimizer, learning_rate)

    def publish(self, version: int) -> None:
        if self.weights is not None:
            self.weights.publish(self.model, version)
        self._target.follow(version)

    def state(self) -> dict[str, Any]:
        state = {"model": self.model.state_dict(), "optimizer": portable_state(self.optimizer)}
        return state | self._target.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_weights(state["model"])
        load_portable_state(self.optimizer, state["optimizer"])
        self._target.load_state(state)


def clip_gradients(networks: Sequence[Sequence[nn.Parameter]], max_norm: float) -> Tensor:
    """Scale each network's gradient down to `max_norm`; returns the norm of all before."""
    norms = [nn.utils.clip_grad_norm_(network, max_norm) for network in networks]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
