"""A user's encoder, as docs/adding-a-model.md describes it: `--model=tests.tiny_encoder:Tiny`."""

from torch import nn


class Tiny(nn.Sequential):
    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__(nn.Conv2d(obs_shape[0], 8, 8, stride=8), nn.ReLU(), nn.Flatten())
