"""A user's encoder, as docs/adding-a-model.md describes it: `--model=tests.tiny_encoder:Tiny`."""

import time

import torch
from setproctitle import getproctitle
from torch import Tensor, nn


class Tiny(nn.Sequential):
    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__(nn.Conv2d(obs_shape[0], 8, 8, stride=8), nn.ReLU(), nn.Flatten())


class Counting(nn.Sequential):
    """Counts its passes in a buffer, which no encoder should have."""

    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__(nn.Linear(obs_shape[0], 8), nn.Tanh())
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes = self.passes + 1
        return super().forward(x)


class HangsWhenLearning(nn.Sequential):
    """One linear layer, whose tenth pass with gradients does not end."""

    num_passes = 0

    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__(nn.Linear(obs_shape[0], 8), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        if self.is_the_one():
            self.num_passes += 1
            if self.num_passes == 10:
                time.sleep(3600)
        return super().forward(x)

    def is_the_one(self) -> bool:
        return torch.is_grad_enabled()


class HangsWhenActing(HangsWhenLearning):
    """The same without gradients, in the policy worker; the other two only try it once."""

    def is_the_one(self) -> bool:
        return torch.is_inference_mode_enabled()


class FindsNoMemory(HangsWhenLearning):
    """What torch does when the GPU's memory is full, in the learner's process."""

    def forward(self, x: Tensor) -> Tensor:
        if self.is_the_one() and getproctitle() == "sfrl learner":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(x)


class Vector(nn.Sequential):
    """A network whose checkpoint takes a few kB."""

    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__(nn.Linear(obs_shape[0], 4), nn.Tanh())
