"""Networks without heads, which are the algorithms': encoders and optional GRUs.

Only the encoder computes in low precision: under `torch.autocast` in the learner, whose parameters
are float32, and with bfloat16 parameters in the copy that acts (`Network.inference_copy`). Both
round the same weights in the same places. GRU, heads and everything they return are float32.

The encoders are in encoders.py. docs/adding-a-model.md shows how to bring your own.
"""

from __future__ import annotations

import copy
import math
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from sfrl.nets.encoders import CenteredCNN, make_encoder


class Network(nn.Module):
    """Features of an observation for the heads of an algorithm: encoders and, if asked for, GRUs.

    One encoder serves all heads, or the value has one of its own. Observations are [*, *obs_shape]
    as the environment gives them: uint8 or float32 [C, H, W] for images, any real dtype for the
    rest.

    Recurrent state: zeros before an episode's first observation, else what the GRU made of the
    observation before. After a row that is not valid (an episode's final observation, see
    sfrl/maths/vtrace.py) the next episode begins: `unroll_features` resets the state there by
    itself, and whoever calls `step_features` multiplies the state by `valid` of the row just shown
    before keeping it. With two encoders there are two GRUs, and the state holds that of the policy,
    then that of the value.

    Attributes:
        state_size: H, the size of the recurrent state; 0 without a GRU.
        num_features: F, the size of what heads are given.
        precision: of the encoders' arithmetic.
    """

    def __init__(
        self,
        encoder: nn.Module,  # (obs [B, *obs_shape], dtype) -> features [B, F], computed in dtype
        obs_shape: tuple[int, ...],
        *,
        obs_is_image: bool,
        value_encoder: nn.Module | None = None,  # None: `encoder` serves both
        rnn_size: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.value_encoder = value_encoder
        self.obs_shape = obs_shape
        self.obs_is_image = obs_is_image
        self.state_size = rnn_size if value_encoder is None else 2 * rnn_size
        self.precision = torch.float32
        self._casts_weights = False
        num_features = _num_features(encoder, obs_shape, obs_is_image)
        if value_encoder is not None:  # its lazy layers, if there are any, get their sizes now
            _num_features(value_encoder, obs_shape, obs_is_image)
        self.core = _make_gru(num_features, rnn_size) if rnn_size else None
        is_shared = value_encoder is None or not rnn_size
        self.value_core = None if is_shared else _make_gru(num_features, rnn_size)
        self.num_features = rnn_size or num_features
        self.center_weights()

    def step_features(
        self,
        obs: Tensor,  # [B, *obs_shape]
        rnn_state: Tensor | None = None,  # [B, H]; None: zeros
        *,
        needs_value: bool = True,
    ) -> tuple[list[Tensor], Tensor | None]:
        """To act: features [B, F] float32 for the policy and for the value, one if they share.

        And the recurrent state after this observation [B, H]; None without a GRU. If it needs no
        value, those for the policy alone, unless the value's GRU has to see the observation.
        """
        features = self._encode(obs, needs_value=needs_value or self.core is not None)
        return self._remember(features, rnn_state)

    def unroll_features(
        self,
        obs: Tensor,  # [T+1, B, *obs_shape]
        rnn_state: Tensor | None,  # [B, H] before row 0; None: zeros
        valid: Tensor,  # [T+1, B] bool; row T is not read
    ) -> list[Tensor]:
        """To learn: features [T+1, B, F] of trajectories, as `step_features`.

        The encoders see all (T+1) * B rows at once; only a GRU, if there is one, walks the time.
        """
        rows = self._encode(obs.flatten(0, 1))
        features = [f.unflatten(0, obs.shape[:2]) for f in rows]  # [T+1, B, F] each
        if self.core is None:
            return features
        outputs = []
        for t in range(len(obs)):
            if t > 0 and rnn_state is not None:
                rnn_state = rnn_state * valid[t - 1].unsqueeze(1)
            output, rnn_state = self._remember([f[t] for f in features], rnn_state)
            outputs.append(output)
        return [torch.stack(rows) for rows in zip(*outputs, strict=True)]

    def _remember(
        self, features: list[Tensor], rnn_state: Tensor | None
    ) -> tuple[list[Tensor], Tensor | None]:
        """One step of the GRUs, if there are any: features [B, F] each, and the state after it."""
        if self.core is None:
            return features, rnn_state
        if self.value_core is None:
            rnn_state = self.core(features[0], rnn_state)
            return [rnn_state], rnn_state
        states = [None, None] if rnn_state is None else rnn_state.chunk(2, dim=1)
        cores = (self.core, self.value_core)
        outputs = [core(f, state) for core, f, state in zip(cores, features, states, strict=True)]
        return outputs, torch.cat(outputs, dim=1)

    def _encode(self, obs: Tensor, *, needs_value: bool = True) -> list[Tensor]:
        """[B, *obs_shape] -> [B, F] float32 for the policy and for the value; one if they share."""
        is_pixels = obs.dtype in (torch.uint8, torch.float32)
        if obs.shape[1:] != self.obs_shape or (self.obs_is_image and not is_pixels):
            kind = "uint8 or float32" if self.obs_is_image else "real numbers"
            raise ValueError(
                f"observations must be [B, *{list(self.obs_shape)}] {kind}, "
                f"got {list(obs.shape)} {obs.dtype}"
            )
        encoders = [self.encoder]
        if needs_value and self.value_encoder is not None:
            encoders.append(self.value_encoder)
        if not self._casts_weights:
            return [encoder(obs, self.precision).float() for encoder in encoders]
        # The cache of cast weights, each of which is used once, would outlive a graph's capture.
        with torch.autocast(obs.device.type, self.precision, cache_enabled=False):
            return [encoder(obs, self.precision).float() for encoder in encoders]

    def networks(self) -> list[list[nn.Parameter]]:
        """The parameters of each network that shares none with another; here it is one.

        Their gradients are clipped apart: a large error of the value does not shorten the
        policy's step.
        """
        return [list(self.parameters())]

    def center_weights(self, share: Tensor | float = 1.0) -> None:
        """Of all `CenteredCNN`. It edits parameters in place: never between a forward pass and its
        backward pass.

        Args:
            share: all of the mean, or 0 to change nothing.
        """
        for module in self.modules():
            if isinstance(module, CenteredCNN):
                module.center_weights(share)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take those of a checkpoint.

        Raises:
            ValueError: they are not this model's, or have NaN or infinity where it computes.
        """
        self.load_state_dict(weights)
        for name, parameter in self.named_parameters():  # buffers of a user's may have infinity
            if not parameter.isfinite().all():
                raise ValueError(f"{name} has NaN or infinity")

    def learn_in(self, precision: torch.dtype) -> None:
        """Have the encoders compute in `precision`; parameters and gradients stay float32."""
        self.precision = precision
        self._casts_weights = precision != torch.float32

    def inference_copy(self, precision: torch.dtype) -> Self:
        """A copy to act with, its encoders' parameters in `precision`, without gradients.

        Load new weights by copying this model's `state_dict` into the copy's, entry by entry.
        """
        model = copy.deepcopy(self).requires_grad_(False).eval()
        for encoder in (model.encoder, model.value_encoder):
            if encoder is not None:
                encoder.to(precision)
        model.precision, model._casts_weights = precision, False
        return model


def check_rnn_size(weights: Mapping[str, Tensor], rnn_size: int) -> None:
    """See that a model with this GRU is no larger than a checkpoint's weights, before one is made.

    What else decides on its size is the environment and the code.

    Raises:
        ValueError: the weights are of a GRU of another size.
    """
    gru = weights.get("core.weight_hh")
    found = 0 if gru is None else gru.shape[-1]
    if found != rnn_size or (gru is not None and gru.shape != (3 * rnn_size, rnn_size)):
        raise ValueError(f"rnn_size={rnn_size} is not that of its weights, {found}")


def make_encoders(
    name: str,
    obs_shape: Sequence[int],
    *,
    obs_is_image: bool,
    obs_scale: float | None = None,
    num_encoders: int = 1,
) -> tuple[nn.Module, nn.Module | None]:
    """Fresh encoders on the CPU, float32, initialized from torch's global generator.

    Args:
        name: "a3c_cnn", "nature_cnn", "impala_resnet", "mlp", "norm_mlp", or your own as
            "module:Class".
        obs_is_image: observations are pixels, uint8 or float32; for the CNNs, [C, H, W].
        obs_scale: encoders divide observations by it. None: 255 for images, 1 for the rest.
        num_encoders: two, if the value has one of its own.

    Raises:
        ValueError: no such encoder, or one that does not fit these observations.
    """
    shape = tuple(obs_shape)
    if obs_scale is None:
        obs_scale = 255.0 if obs_is_image else 1.0
    encoders = [make_encoder(name, shape, obs_is_image, obs_scale) for _ in range(num_encoders)]
    return encoders[0], encoders[1] if num_encoders > 1 else None


def try_model(
    name: str,
    obs_shape: Sequence[int],
    precisions: Sequence[str],
    *,
    rnn_size: int = 0,
    **settings: Any,  # of `make_encoders`
) -> None:
    """See that a user's encoder can act and learn: on zeros, on the CPU, in all the precisions.

    Raises:
        ValueError: one line, that says what is wrong, and where.
    """
    precision = "float32"
    try:
        encoder, value_encoder = make_encoders(name, obs_shape, **settings)
        is_image = bool(settings["obs_is_image"])
        model = Network(
            encoder,
            tuple(obs_shape),
            obs_is_image=is_image,
            value_encoder=value_encoder,
            rnn_size=rnn_size,
        )
        obs = torch.zeros(3, 2, *obs_shape, dtype=torch.uint8 if is_image else torch.float32)
        valid = torch.ones(3, 2, dtype=torch.bool)
        for precision in precisions:
            dtype: torch.dtype = getattr(torch, precision)
            with torch.inference_mode():
                model.inference_copy(dtype).step_features(obs[0])
            model.learn_in(dtype)
            features = model.unroll_features(obs, None, valid)
            torch.stack([f.sum() for f in features]).sum().backward()
    except Exception as error:  # of any kind: it is the user's code that runs here
        place = traceback.extract_tb(error.__traceback__)
        if (
            isinstance(error, ValueError)
            and Path(place[-1].filename).parent == Path(__file__).parent
        ):
            text = str(error)
        else:
            module = sys.modules.get(name.partition(":")[0])
            users = [f for f in place if f.filename == getattr(module, "__file__", None)]
            where = f" ({users[-1].filename}, line {users[-1].lineno})" if users else ""
            text = f"{type(error).__name__} in {precision}: {' '.join(str(error).split())}{where}"
        prefix = f"model={name}"
        raise ValueError(text if text.startswith(prefix) else f"{prefix}: {text}") from error


@torch.no_grad()
def _num_features(encoder: nn.Module, obs_shape: tuple[int, ...], obs_is_image: bool) -> int:
    dtype = torch.uint8 if obs_is_image else torch.float32
    features: object = encoder(torch.zeros(2, *obs_shape, dtype=dtype), torch.float32)
    got = type(features).__name__
    if isinstance(features, Tensor):
        got = f"{list(features.shape)} {str(features.dtype).removeprefix('torch.')}"
        is_batch = features.ndim == 2 and len(features) == 2 and features.shape[1] > 0
        if is_batch and features.is_floating_point():
            return features.shape[1]
    raise ValueError(
        f"an encoder must map [B, *{list(obs_shape)}] to features [B, F], floats; "
        f"with B=2 it returned {got}"
    )


def _make_gru(input_size: int, rnn_size: int) -> nn.GRUCell:
    gru = nn.GRUCell(input_size, rnn_size)
    for weight in (gru.weight_ih, gru.weight_hh):
        for gate in weight.data.chunk(3):
            nn.init.orthogonal_(gate)
    nn.init.zeros_(gru.bias_ih)
    nn.init.zeros_(gru.bias_hh)
    return gru


def pick_precision(model: Network, obs: Tensor, repeats: int = 5) -> torch.dtype:
    """torch.bfloat16 where `model` acts clearly faster in it than in float32, else torch.float32.

    On a GPU: where it has it, since small batches there take the time of starting kernels, and
    tell nothing of large ones. On a CPU it is measured with obs [B, *obs_shape]: those with matrix
    units for bfloat16 take a third of the time, others emulate it. A few tens of milliseconds for
    an Atari batch.
    """
    if obs.is_cuda:
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float32
    copies = {dtype: model.inference_copy(dtype) for dtype in (torch.float32, torch.bfloat16)}
    seconds = dict.fromkeys(copies, math.inf)
    for _ in range(1 + repeats):  # the first one warms up, and is never the fastest
        for dtype, actor in copies.items():  # in turns, so that a busy moment hits both
            start = time.perf_counter()
            with torch.inference_mode():
                actor.step_features(obs)
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    is_faster = seconds[torch.bfloat16] < 0.9 * seconds[torch.float32]
    return torch.bfloat16 if is_faster else torch.float32
