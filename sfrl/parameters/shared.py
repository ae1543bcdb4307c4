"""Weights that several learners own together: a block in shared memory, which all of them edit.

HOGWILD! (Niu et al. 2011, arXiv:1106.5730) showed that such edits need no lock where each touches
few coordinates; A3C (Mnih et al. 2016, arXiv:1602.01783) does the same with networks, whose every
update touches all. Both add each component in one instruction. Here torch adds whole vectors, so
that two updates at the same time may lose more of each other than there.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sfrl.ipc.shared_memory import StopFlag
from sfrl.nets.model import Network
from sfrl.parameters.block import ParameterBlock
from sfrl.parameters.central import Target, clip_gradients
from sfrl.parameters.parameters import Edit, Step
from sfrl.parameters.weights import Weights
from sfrl.settings.config import Config

_DECAY = 0.99  # of RMSprop's mean of squares


class SharedParameters:
    """One learner's way to the block: `Parameters`.

    `model` is its own copy, which acts and whose gradients are computed; `pull` makes it what the
    block is now. A step edits the block alone:

        g = decay * g + (1 - decay) * d^2
        theta = theta - rate * d / sqrt(g + eps)

    with the gradient d, and eps inside the root (arXiv:1602.01783, equation S2). With --optimizer=
    sgd it is theta - rate * d. The first learner renews the target.
    """

    def __init__(
        self,
        config: Config,
        model: Network,
        block: ParameterBlock,
        index: int,
        stop: StopFlag,
        target_weights: Weights | None = None,
    ) -> None:
        self.model = model
        self._block = block
        self._is_first = index == 0
        networks = model.networks()
        self._parameters = [parameter for network in networks for parameter in network]
        ends = [0, *accumulate(sum(p.numel() for p in network) for network in networks)]
        self._parts = [slice(*pair) for pair in pairwise(ends)]  # of each network
        self._factors = config.rate_factors
        self._networks = networks
        if self._is_first and not block.is_ready:
            memory = torch.from_numpy(block.create(ends[-1]))
        else:
            block.wait_until_ready(stop)
            memory = torch.from_numpy(block.attach(ends[-1]))
        self._weights, squares = memory
        self._squares = squares if config.optimizer_statistics == "shared" else squares.clone()
        self._first_squares = squares  # what a private copy begins with
        # The model whose parameters are the block's: what edits parameters in place edits them.
        self.shared_model = copy.deepcopy(model).requires_grad_(False)
        shared = [p for network in self.shared_model.networks() for p in network]
        self._pairs = list(zip(self._parameters, shared, strict=True))
        places = self._weights.split([p.numel() for p in self._parameters])
        for (own, parameter), place in zip(self._pairs, places, strict=True):
            parameter.data = place.view(own.shape)
            if not block.is_ready:
                parameter.copy_(own.detach())
        self._lock: AbstractContextManager[None] = (
            block.update_lock if config.updates == "locked" else nullcontext()
        )
        self._max_grad_norm = config.max_grad_norm
        self._eps = config.optimizer_eps
        self._is_rmsprop = config.optimizer == "rmsprop"
        self._learning_rate = config.learning_rate
        self._target = Target(config, self.shared_model, target_weights, renews=self._is_first)

    @property
    def target(self) -> nn.Module | None:
        return self._target.model

    @torch.no_grad()
    def pull(self) -> None:
        with self._lock:
            for own, shared in self._pairs:
                own.copy_(shared)

    def step(
        self,
        loss: Tensor,
        after_update: Edit,
        reach: Tensor | None = None,
        has_rows: Tensor | bool = True,
    ) -> Step:
        """The gradient is that of `model`; the step, and what edits after it, are the block's."""
        self.drop_gradients()
        loss.backward()
        grad_norm = clip_gradients(self._networks, self._max_grad_norm)
        applied = torch.isfinite(loss.detach()) & torch.isfinite(grad_norm) & has_rows
        if applied:
            gradient = torch.cat(
                [
                    torch.zeros(p.numel()) if p.grad is None else p.grad.reshape(-1)
                    for p in self._parameters
                ]
            )
            with self._lock:
                self._edit(gradient)
                after_update(self.shared_model, applied)
        return Step(applied, grad_norm)

    @torch.no_grad()
    def _edit(self, gradient: Tensor) -> None:
        for part, factor in zip(self._parts, self._factors, strict=True):
            weights, change, rate = self._weights[part], gradient[part], self._learning_rate
            if self._is_rmsprop:
                squares = self._squares[part]
                squares.mul_(_DECAY).addcmul_(change, change, value=1 - _DECAY)
                weights.addcdiv_(change, (squares + self._eps).sqrt_(), value=-rate * factor)
            else:
                weights.add_(change, alpha=-rate * factor)

    def drop_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def set_learning_rate(self, learning_rate: float) -> None:
        self._learning_rate = learning_rate

    def publish(self, version: int) -> None:
        """Let the others begin, if this is the first time; renew the target if it is due."""
        self._block.set_ready()
        if self.target is not None:
            with self._lock:
                _copy_buffers(self.model, self.shared_model)
                self._target.follow(version)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the block's, whoever asks. Only the buffers are its own."""
        _copy_buffers(self.model, self.shared_model)
        with self._lock:
            weights = self.shared_model.state_dict()
            state: dict[str, Any] = {
                # Not `deepcopy`, which copies the whole block, whose views they are.
                "model": {name: tensor.clone() for name, tensor in weights.items()},
                "optimizer": {"squares": self._squares.clone()},
            }
        return state | self._target.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.shared_model.load_weights(state["model"])
        _copy_buffers(self.shared_model, self.model)
        squares = state["optimizer"]["squares"]
        are_squares = squares.isfinite().all() and (squares >= 0).all()
        if squares.shape != self._squares.shape or not are_squares:
            raise ValueError(
                f"squares {list(squares.shape)} of weights {list(self._squares.shape)}"
            )
        self._squares.copy_(squares)
        self._first_squares.copy_(squares)
        self._target.load_state(state)


@torch.no_grad()
def _copy_buffers(source: nn.Module, destination: nn.Module) -> None:
    """No step edits them, and the block has none."""
    for mine, new in zip(destination.buffers(), source.buffers(), strict=True):
        mine.copy_(new)
