"""What environments show and take, as records, and observations drawn for them."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfrl.envs import OBS, ActionSpec, Leaf


def image(*shape: int, scale: float = 255.0, name: str = OBS) -> Leaf:
    return Leaf(name, "image", shape, "uint8", scale)


def vector(size: int, name: str = OBS) -> Leaf:
    return Leaf(name, "vector", (size,), "float32")


def choice(*sizes: int, name: str = OBS) -> Leaf:
    return Leaf(name, "choice", (len(sizes),), "int32", sizes=sizes)


def discrete(num_actions: int) -> ActionSpec:
    return ActionSpec(choices=(num_actions,))


def drawn(leaf: Leaf, *leading: int, rng: np.random.Generator) -> NDArray[Any]:
    """[*leading, *shape] in the leaf's dtype; a mask allows everything."""
    shape = (*leading, *leaf.shape)
    if leaf.kind == "mask":
        return np.ones(shape, np.bool_)
    if leaf.kind == "choice":
        return rng.integers(leaf.sizes, size=shape, dtype=np.int32)
    if leaf.dtype == "uint8":
        return rng.integers(int(leaf.scale) + 1, size=shape, dtype=np.uint8)
    return rng.standard_normal(shape, np.float32)


def random_obs(leaves: tuple[Leaf, ...], *leading: int, seed: int = 1) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    return {leaf.name: torch.from_numpy(drawn(leaf, *leading, rng=rng)) for leaf in leaves}
