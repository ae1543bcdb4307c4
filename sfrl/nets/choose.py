"""Which encoder each leaf of an observation gets. Without torch, since settings ask as well."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from sfrl.envs import Leaf

MODELS = (
    *("a3c_cnn", "nature_cnn", "pooled_cnn", "impala_resnet", "small_cnn"),
    *("mlp", "norm_mlp", "flat"),
)
MLPS = ("mlp", "norm_mlp", "flat")
CNN_SIZES = {  # the CNNs, and the least side of their images: below it convolutions leave nothing
    "a3c_cnn": 36,
    "nature_cnn": 36,
    "pooled_cnn": 36,
    "impala_resnet": 1,
    "small_cnn": 5,
}
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


def encoder_of(model: str, leaf: Leaf) -> str:
    """One of MODELS, or "embedding". What `model` cannot encode, such as a vector beside the images
    of a CNN, has the encoder that is usual for it."""
    if leaf.kind == "choice":
        return "embedding"
    if model in MLPS:
        return model
    return model if _fits(model, leaf) else usual_encoder(leaf)


def usual_encoder(leaf: Leaf) -> str:
    """The one that a leaf has unless --model says otherwise; of an image, the first that fits."""
    return next((name for name in ("nature_cnn", "small_cnn") if _fits(name, leaf)), "norm_mlp")


def _fits(cnn: str, leaf: Leaf) -> bool:
    return leaf.kind == "image" and min(leaf.shape[1:]) >= CNN_SIZES[cnn]
