"""How many numbers a model has, without torch: for the check of memory before anything starts."""

from __future__ import annotations

import math

from sfrl.envs import EnvSpec
from sfrl.settings.config import Config
from sfrl.settings.defaults import MODELS
from sfrl.settings.fields import linear_size


def model_size(config: Config, spec: EnvSpec) -> int:
    """Numbers in the `state_dict` of the run's model; of an encoder that is not built in, none."""
    encoder, features = _encoder(config.model, spec.obs_shape)
    hidden = config.rnn_size or features
    gru = 3 * config.rnn_size * (features + config.rnn_size + 2) if config.rnn_size else 0
    heads = config.head_size(hidden, spec.num_actions)
    return config.num_encoders * (encoder + gru) + heads


def _encoder(model: str, obs_shape: tuple[int, ...]) -> tuple[int, int]:
    """Its numbers, and how many features it gives."""
    if model not in MODELS:
        return 0, 0
    if model in ("mlp", "norm_mlp"):
        norms = 2 * 2 * 64 if model == "norm_mlp" else 0
        return linear_size(math.prod(obs_shape), 64) + linear_size(64, 64) + norms, 64
    channels, height, width = obs_shape
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
    return size + linear_size(filters[-1] * height * width, features), features


def _conv(channels: int, filters: int, side: int) -> int:
    return linear_size(channels * side**2, filters)
