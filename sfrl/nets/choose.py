"""Which encoder each leaf of an observation gets. Without torch, since settings ask as well."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from sfrl.envs import Leaf

MODELS = ("a3c_cnn", "nature_cnn", "impala_resnet", "small_cnn", "mlp", "norm_mlp", "flat")
MLPS = ("mlp", "norm_mlp", "flat")
SMALL_MIN_SIZE = 5  # of small_cnn's images
CNN_MIN_SIZE = 36  # pixels: below, the strided convolutions of the first two leave nothing
JOINT_SIZE = 128  # features of several leaves together


class MemorySpec(NamedTuple):
    """The memory between encoder and heads."""

    kind: Literal["gru", "lstm"]
    size: int  # of each layer
    layers: int = 1

    @property
    def state_size(self) -> int:
        """Numbers in the state of an environment: an LSTM has cells besides outputs."""
        return self.layers * self.size * (2 if self.kind == "lstm" else 1)


def seen(leaves: Iterable[Leaf]) -> tuple[Leaf, ...]:
    """Those that have an encoder. A mask has none: it only forbids actions."""
    return tuple(leaf for leaf in leaves if leaf.kind != "mask")


def is_large_image(leaf: Leaf) -> bool:
    return leaf.kind == "image" and min(leaf.shape[1:]) >= CNN_MIN_SIZE


def encoder_of(model: str, leaf: Leaf) -> str:
    """One of MODELS, or "embedding". What `model` cannot encode, such as a vector beside the images
    of a CNN, has the encoder that is usual for it."""
    if leaf.kind == "choice":
        return "embedding"
    if model in MLPS:
        return model
    fits = is_large_image(leaf) if model in ("a3c_cnn", "nature_cnn") else leaf.kind == "image"
    return model if fits else usual_encoder(leaf)


def usual_encoder(leaf: Leaf) -> str:
    """The one that a leaf has unless --model says otherwise."""
    if is_large_image(leaf):
        return "nature_cnn"
    is_small_image = leaf.kind == "image" and min(leaf.shape[1:]) >= SMALL_MIN_SIZE
    return "small_cnn" if is_small_image else "norm_mlp"
