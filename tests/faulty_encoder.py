"""Encoders of a user's that cannot work: `--model=tests.faulty_encoder:Class`; and one that can."""

import threading

import torch
from torch import Tensor, nn


class NoSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()


class RaisesWhenMade(nn.Module):
    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__()
        raise KeyError("width")


class TakesOthers(nn.Sequential):
    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__(nn.Linear(8, 64))


class FailsInForward(nn.Module):
    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> object:
        return self.features(x.flatten(1))

    def features(self, x: Tensor) -> object:
        raise AttributeError("there are no features")


class ReturnsTwo(FailsInForward):
    def features(self, x: Tensor) -> object:
        return x, x


class ReturnsRows(FailsInForward):
    def features(self, x: Tensor) -> object:
        return x[:1]


class ReturnsNothing(FailsInForward):
    def features(self, x: Tensor) -> object:
        return x[:, :0]


class ReturnsWhole(FailsInForward):
    def features(self, x: Tensor) -> object:
        return x.long()


class KnowsOneType(FailsInForward):
    """Of numbers: it fails in the policy worker, whose parameters may be bfloat16."""

    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__(obs_shape)
        self.linear = nn.LazyLinear(8)

    def features(self, x: Tensor) -> object:
        return self.linear(x.float())


class CannotBeCopied(FailsInForward):
    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__(obs_shape)
        self.lock = threading.Lock()

    def features(self, x: Tensor) -> object:
        return x


class CannotLearn(FailsInForward):
    """It writes over what the backward pass needs."""

    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__(obs_shape)
        self.linear = nn.LazyLinear(8)

    def features(self, x: Tensor) -> object:
        return torch.sigmoid(self.linear(x)).mul_(2)


class HasPrimes(FailsInForward):
    """A table of whole numbers, too large for float32."""

    def __init__(self, obs_shape: tuple[int, ...], persistent: bool = True) -> None:
        super().__init__(obs_shape)
        self.linear = nn.LazyLinear(8)
        self.register_buffer("primes", torch.tensor([2, 2**31 - 1]), persistent=persistent)

    def features(self, x: Tensor) -> object:
        return self.linear(x)


class KeepsPrimes(HasPrimes):
    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__(obs_shape, persistent=False)


class Lazy(nn.Sequential):
    """It finds the sizes of its layers by itself, and works."""

    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__(nn.LazyLinear(32), nn.Tanh(), nn.LazyLinear(16), nn.Tanh())
