"""How many numbers a model has, without torch: for the check of memory before anything starts."""

from __future__ import annotations

import math

from sfrl.envs import EnvSpec, Leaf
from sfrl.nets.choose import JOINT_SIZE, MODELS, MemorySpec, encoder_of, seen
from sfrl.settings.config import Config
from sfrl.settings.fields import linear_size


def model_size(config: Config, spec: EnvSpec) -> int:
    """Numbers in the `state_dict` of the run's model; of an encoder that is not built in, none."""
    leaves = seen(spec.leaves)
    encoder, features = _encoders(config.model, leaves)
    memory = _memory(config.memory, features) if config.memory else 0
    heads = config.head_size(config.rnn_size or features, spec.actions)
    normalizers = 0
    if config.normalize_obs:
        normalizers = sum(2 * leaf.shape[0] + 1 for leaf in leaves if leaf.kind == "vector")
    return config.num_encoders * (encoder + memory) + heads + normalizers


def _memory(memory: MemorySpec, num_inputs: int) -> int:
    gates = 3 if memory.kind == "gru" else 4
    inputs = [num_inputs] + [memory.size] * (memory.layers - 1)
    return sum(gates * memory.size * (size + memory.size + 2) for size in inputs)


def _encoders(model: str, leaves: tuple[Leaf, ...]) -> tuple[int, int]:
    """Their numbers, and how many features they give."""
    if model not in MODELS:
        return 0, 0
    sizes = [_encoder(encoder_of(model, leaf), leaf) for leaf in leaves]
    if len(sizes) == 1:
        return sizes[0]
    numbers, features = (sum(column) for column in zip(*sizes, strict=True))
    return numbers + linear_size(features, JOINT_SIZE) + 2 * JOINT_SIZE, JOINT_SIZE


def _encoder(model: str, leaf: Leaf) -> tuple[int, int]:
    obs_shape = leaf.shape
    if model == "embedding":
        return 64 * sum(leaf.sizes) + linear_size(64, 64) + 2 * 2 * 64, 64
    if model == "flat":
        return 0, math.prod(obs_shape)
    if model in ("mlp", "norm_mlp"):
        norms = 2 * 2 * 64 if model == "norm_mlp" else 0
        return linear_size(math.prod(obs_shape), 64) + linear_size(64, 64) + norms, 64
    channels, height, width = obs_shape
    if model == "small_cnn":
        cells = (height - 4) * (width - 4)
        convolutions = _conv(channels, 16, 3) + _conv(16, 32, 3)
        return convolutions + linear_size(32 * cells, 128) + 2 * 128, 128
    if model == "impala_resnet":
        size = 0
        for section in (16, 32, 32):
            size += _conv(channels, section, 3) + 4 * _conv(section, section, 3)
            channels, height, width = section, (height + 1) // 2, (width + 1) // 2
        return size + linear_size(channels * height * width, 256), 256
    filters, features = ((16, 32), 256) if model == "a3c_cnn" else ((32, 64, 64), 512)
    height, width = (((side // 4 - 1) - 4) // 2 + 1 for side in (height, width))
    size = _conv(channels, filters[0], 8) + _conv(filters[0], filters[1], 4)
    if len(filters) > 2:
        size += _conv(filters[1], filters[2], 3)
        height, width = height - 2, width - 2
    if model == "pooled_cnn":
        height, width = (height + 1) // 2, (width + 1) // 2
    return size + linear_size(filters[-1] * height * width, features), features


def _conv(channels: int, filters: int, side: int) -> int:
    return linear_size(channels * side**2, filters)
