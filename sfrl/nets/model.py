"""The networks: encoders, optional GRUs, a policy head and a value head.

Only the encoder computes in low precision: under `torch.autocast` in the learner, whose parameters
are float32, and with bfloat16 parameters in the copy that acts (`ActorCritic.inference_copy`). Both
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
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfrl.maths.losses import masked_mean
from sfrl.nets.encoders import CenteredCNN, init_orthogonal, make_encoder


class PolicyOutput(NamedTuple):
    logits: Tensor  # [B, A] float32
    values: Tensor  # [B] float32, in units of the reward
    rnn_state: Tensor | None  # [B, H] float32 after this observation; None without a GRU


class ActorCritic(nn.Module):
    """Policy and value of an observation, on one shared encoder or on one each.

    Observations are [*, *obs_shape] as the environment gives them: uint8 or float32 [C, H, W] for
    images, any real dtype for the rest. Initialization is orthogonal, with gain 0.01 for the policy
    head, so that all actions start about equally likely, and 1 for the value head.

    Recurrent state: zeros before an episode's first observation, else what the GRU made of the
    observation before. After a row that is not valid (an episode's final observation, see
    sfrl/maths/vtrace.py) the next episode begins: `unroll` resets the state there by itself, and
    whoever calls `step` multiplies the state by `valid` of the row just shown before keeping it.
    With two encoders there are two GRUs, and the state holds that of the policy, then that of the
    value.

    Attributes:
        state_size: H, the size of the recurrent state; 0 without a GRU.
    """

    def __init__(
        self,
        encoder: nn.Module,  # (obs [B, *obs_shape], dtype) -> features [B, F], computed in dtype
        obs_shape: tuple[int, ...],
        num_actions: int,
        *,
        obs_is_image: bool,
        value_encoder: nn.Module | None = None,  # None: `encoder` serves both
        rnn_size: int = 0,
        normalize_returns: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.value_encoder = value_encoder
        self.obs_shape = obs_shape
        self.obs_is_image = obs_is_image
        self.state_size = rnn_size if value_encoder is None else 2 * rnn_size
        self._encoder_dtype = torch.float32
        num_features = _num_features(encoder, obs_shape, obs_is_image)
        if value_encoder is not None:  # its lazy layers, if there are any, get their sizes now
            _num_features(value_encoder, obs_shape, obs_is_image)
        self.core = _make_gru(num_features, rnn_size) if rnn_size else None
        is_shared = value_encoder is None or not rnn_size
        self.value_core = None if is_shared else _make_gru(num_features, rnn_size)
        self.policy_head = nn.Linear(rnn_size or num_features, num_actions)
        self.value_head = ValueHead(rnn_size or num_features, normalize_returns)
        init_orthogonal(self.policy_head, gain=0.01)
        init_orthogonal(self.value_head, gain=1.0)
        self._center_weights()

    @torch.inference_mode()
    def step(self, obs: Tensor, rnn_state: Tensor | None = None) -> PolicyOutput:
        """To act: obs [B, *obs_shape], rnn_state [B, H] (None: zeros). No gradients."""
        features = self._encode(obs)
        with torch.autocast(obs.device.type, enabled=False):
            features, rnn_state = self._remember(features, rnn_state)
            return PolicyOutput(
                self.policy_head(features[0]), self.value_head(features[-1]), rnn_state
            )

    def unroll(
        self,
        obs: Tensor,  # [T+1, B, *obs_shape]
        rnn_state: Tensor | None,  # [B, H] before row 0; None: zeros
        valid: Tensor,  # [T+1, B] bool; row T is not read
    ) -> tuple[Tensor, Tensor]:
        """To learn: logits [T+1, B, A] and values [T+1, B] of trajectories, both float32.

        The encoders see all (T+1) * B rows at once; only a GRU, if there is one, walks the time.
        """
        rows = self._encode(obs.flatten(0, 1))
        features = [f.unflatten(0, obs.shape[:2]) for f in rows]  # [T+1, B, F] each
        with torch.autocast(obs.device.type, enabled=False):
            if self.core is not None:
                outputs = []
                for t in range(len(obs)):
                    if t > 0 and rnn_state is not None:
                        rnn_state = rnn_state * valid[t - 1].unsqueeze(1)
                    output, rnn_state = self._remember([f[t] for f in features], rnn_state)
                    outputs.append(output)
                features = [torch.stack(rows) for rows in zip(*outputs, strict=True)]
            return self.policy_head(features[0]), self.value_head(features[-1])

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

    def _encode(self, obs: Tensor) -> list[Tensor]:
        """[B, *obs_shape] -> [B, F] float32 for the policy and for the value; one if they share."""
        is_pixels = obs.dtype in (torch.uint8, torch.float32)
        if obs.shape[1:] != self.obs_shape or (self.obs_is_image and not is_pixels):
            kind = "uint8 or float32" if self.obs_is_image else "real numbers"
            raise ValueError(
                f"observations must be [B, *{list(self.obs_shape)}] {kind}, "
                f"got {list(obs.shape)} {obs.dtype}"
            )
        device_type = obs.device.type
        is_autocast = torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type) if is_autocast else self._encoder_dtype
        encoders = (self.encoder, self.value_encoder)
        return [encoder(obs, dtype).float() for encoder in encoders if encoder is not None]

    def networks(self) -> list[list[nn.Parameter]]:
        """The parameters of each network that shares none with another: one, or policy and value.

        Their gradients are clipped apart: a large error of the value does not shorten the
        policy's step.
        """
        if self.value_encoder is None:
            return [list(self.parameters())]
        of_value = (self.value_encoder, self.value_core, self.value_head)
        value = [p for module in of_value if module is not None for p in module.parameters()]
        names = {id(p) for p in value}
        return [[p for p in self.parameters() if id(p) not in names], value]

    def normalize_returns(self, returns: Tensor) -> Tensor:
        """Values or targets in the units that the value loss uses; any shape.

        With --normalize-returns that is the returns' size for a shared network, so that the value's
        gradient does not drown the policy's. A network of its own has the layer's outputs as unit:
        its gradient is then nearly always clipped, and no update counts for more than others.
        """
        unit = 1.0 if self.value_encoder is None else ValueHead.REACH
        return self.value_head.normalize(returns, unit)

    def after_optimizer_step(
        self, vs: Tensor, mask: Tensor, was_applied: Tensor | bool = True
    ) -> None:
        """Center the weights again, and let the return normalization follow the targets.

        It edits parameters in place: never call it between a forward pass and its backward pass.
        Normalization changes no output.

        Args:
            vs: [T, B], the targets of the step.
            mask: [T, B] bool, the rows that count.
            was_applied: scalar; False, and nothing changes.
        """
        self._center_weights(was_applied)
        self.value_head.update_size(vs, mask & was_applied)

    def _center_weights(self, share: Tensor | float = 1.0) -> None:
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

    def inference_copy(self, dtype: torch.dtype) -> ActorCritic:
        """A copy to act with, its encoder's parameters in `dtype`, without gradients.

        Load new weights by copying this model's `state_dict` into the copy's, entry by entry.
        """
        model = copy.deepcopy(self).requires_grad_(False).eval()
        for encoder in (model.encoder, model.value_encoder):
            if encoder is not None:
                encoder.to(dtype)
        model._encoder_dtype = dtype
        return model


class ValueHead(nn.Module):
    """Linear value function; if it normalizes, in units of the returns' size.

    The size is the root mean square of the targets, exponentially averaged: the last 1 / BETA
    updates count. V = size / REACH * linear(features) is what `forward` returns, so all that calls
    it works in units of the reward. When the size moves the layer is rescaled, so that no value
    changes, as in PopArt (van Hasselt et al. 2016, arXiv:1602.07714). There the unit is the
    deviation from a running mean; this has no mean, for two reasons. The deviation falls to nothing
    where returns become constant, and the layer grows without bound; the size falls only where
    returns become 0. And a critic that knows the mean of all returns before it can tell states
    apart gives the end of an episode, whose value is 0, the advantage of the whole mean: where
    rewards are negative the policy learns to die (docs/experiments.md).

    The size and its weight are buffers, hence published and saved with the layer they belong to.
    """

    size: Tensor
    weight: Tensor  # 1 - (1 - BETA)^updates; undoes the average's pull towards its initial 1

    BETA = 3e-3
    MIN_SIZE = 1e-2  # returns of 0 (no reward yet) must not blow up noise
    # What the layer has to put out for a return of the usual size. Its first outputs, of size 1,
    # then are small beside returns, like the policy's first preferences.
    REACH = 10.0
    # Targets beyond so many sizes, the initial 1 included, count as that many: a single glitch is
    # not all, and returns of a million from the start are caught up with within ten updates.
    MAX_GROWTH = 30.0

    def __init__(self, num_features: int, normalize_returns: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, 1)
        self.normalizes = normalize_returns
        if normalize_returns:
            self.register_buffer("size", torch.tensor(1.0))
            self.register_buffer("weight", torch.tensor(0.0))

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: object
    ) -> None:
        """Also that of format 3, whose layer was written around a mean and a deviation."""
        if (std := state_dict.pop(f"{prefix}std", None)) is not None:
            mean = state_dict.pop(f"{prefix}mean")
            size = (mean.square() + std.square()).sqrt().clamp(min=self.MIN_SIZE)
            unit = size / self.REACH
            weight, bias = state_dict[f"{prefix}linear.weight"], state_dict[f"{prefix}linear.bias"]
            state_dict[f"{prefix}linear.weight"] = weight * std / unit
            state_dict[f"{prefix}linear.bias"] = (bias * std + mean) / unit
            state_dict[f"{prefix}size"] = size
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, features: Tensor) -> Tensor:
        """[*, F] -> [*]."""
        outputs: Tensor = self.linear(features).squeeze(-1)
        return outputs * (self.size / self.REACH) if self.normalizes else outputs

    def normalize(self, returns: Tensor, size: float = 1.0) -> Tensor:
        """Returns of the usual size become as large as `size`."""
        return returns * (size / self.size) if self.normalizes else returns

    @torch.no_grad()
    def update_size(self, returns: Tensor, mask: Tensor) -> None:
        """Move the size, and rescale the layer so that `forward` keeps its results.

        An empty mask moves nothing, nor do targets that are not finite.
        """
        if not self.normalizes:
            return
        limit = self.MAX_GROWTH * self.size
        square = masked_mean(returns.clamp(-limit, limit).square(), mask)
        beta = self.BETA * (mask.any() & square.isfinite())
        new_weight = self.weight + beta * (1 - self.weight)
        rate = beta / new_weight.clamp(min=self.BETA)  # 1 at the first update
        change = rate * (square.nan_to_num(0, 0, 0) - self.size.square())
        new_size = (self.size.square() + change).sqrt().clamp(min=self.MIN_SIZE)

        scale = self.size / new_size  # 1 where nothing moves: then the layer stays, bit for bit
        self.linear.weight.mul_(scale)
        self.linear.bias.mul_(scale)
        self.size.copy_(new_size)
        self.weight.copy_(new_weight)


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


def make_model(
    name: str,
    obs_shape: Sequence[int],
    num_actions: int,
    *,
    obs_is_image: bool,
    obs_scale: float | None = None,
    value_encoder: str = "shared",
    rnn_size: int = 0,
    normalize_returns: bool = False,
) -> ActorCritic:
    """A fresh model on the CPU, float32, initialized from torch's global generator.

    Args:
        name: "a3c_cnn", "nature_cnn", "impala_resnet", "mlp", "norm_mlp", or your own as
            "module:Class".
        obs_is_image: observations are pixels, uint8 or float32; for the CNNs, [C, H, W].
        obs_scale: encoders divide observations by it. None: 255 for images, 1 for the rest.
        value_encoder: "shared", or "separate" for a second encoder (and GRU) of the value's own.
        rnn_size: width of a GRU between encoder and heads; 0 for none.

    Raises:
        ValueError: no such encoder, or one that does not fit these observations.
    """
    shape = tuple(obs_shape)
    if obs_scale is None:
        obs_scale = 255.0 if obs_is_image else 1.0
    num_encoders = 2 if value_encoder == "separate" else 1
    encoders = [make_encoder(name, shape, obs_is_image, obs_scale) for _ in range(num_encoders)]
    return ActorCritic(
        encoders[0],
        shape,
        num_actions,
        obs_is_image=obs_is_image,
        value_encoder=encoders[1] if num_encoders > 1 else None,
        rnn_size=rnn_size,
        normalize_returns=normalize_returns,
    )


def try_model(
    name: str,
    obs_shape: Sequence[int],
    num_actions: int,
    precisions: Sequence[str],
    **settings: Any,  # of `make_model`
) -> None:
    """See that a user's encoder can act and learn: on zeros, on the CPU, in all the precisions.

    Raises:
        ValueError: one line, that says what is wrong, and where.
    """
    precision = "float32"
    try:
        model = make_model(name, obs_shape, num_actions, **settings)
        obs_dtype = torch.uint8 if model.obs_is_image else torch.float32
        obs = torch.zeros(3, 2, *obs_shape, dtype=obs_dtype)  # [T+1, B, ...]
        valid = torch.ones(3, 2, dtype=torch.bool)
        for precision in precisions:
            dtype: torch.dtype = getattr(torch, precision)
            model.inference_copy(dtype).step(obs[0])
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                logits, values = model.unroll(obs, None, valid)
            (logits.sum() + values.sum()).backward()
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


def pick_precision(model: ActorCritic, obs: Tensor, repeats: int = 5) -> torch.dtype:
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
            actor.step(obs)
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    is_faster = seconds[torch.bfloat16] < 0.9 * seconds[torch.float32]
    return torch.bfloat16 if is_faster else torch.float32
