"""The network: an encoder, an optional GRU, a policy head and a value head.

Only the encoder computes in low precision: under `torch.autocast` in the learner, whose parameters
are float32, and with bfloat16 parameters in the copy that acts (`ActorCritic.inference_copy`). Both
round the same weights in the same places. GRU, heads and everything they return are float32.

The encoders are in encoders.py. docs/adding-a-model.md shows how to bring your own.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sfrl.encoders import CenteredCNN, init_orthogonal, make_encoder
from sfrl.losses import masked_mean


class PolicyOutput(NamedTuple):
    logits: Tensor  # [B, A] float32
    values: Tensor  # [B] float32, in units of the reward
    rnn_state: Tensor | None  # [B, H] float32 after this observation; None without a GRU


class ActorCritic(nn.Module):
    """Policy and value of an observation, on one shared encoder.

    Observations are [*, *obs_shape] as the environment gives them: uint8 [C, H, W] for images,
    any real dtype for the rest. Initialization is orthogonal, with gain 0.01 for the policy head,
    so that all actions start about equally likely, and 1 for the value head.

    Recurrent state: zeros before an episode's first observation, else what the GRU made of the
    observation before. After a row that is not valid (an episode's final observation, see
    sfrl/vtrace.py) the next episode begins: `unroll` resets the state there by itself, and whoever
    calls `step` multiplies the state by `valid` of the row just shown before keeping it.
    """

    def __init__(
        self,
        encoder: nn.Module,  # (obs [B, *obs_shape], dtype) -> features [B, F], computed in dtype
        obs_shape: tuple[int, ...],
        num_actions: int,
        *,
        obs_is_image: bool,
        rnn_size: int = 0,
        normalize_returns: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.obs_shape = obs_shape
        self.obs_is_image = obs_is_image
        self.rnn_size = rnn_size  # 0: no GRU
        self._encoder_dtype = torch.float32
        num_features = _num_features(encoder, obs_shape, obs_is_image)
        self.core = _make_gru(num_features, rnn_size) if rnn_size else None
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
            if self.core is not None:
                features = rnn_state = self.core(features, rnn_state)
            return PolicyOutput(self.policy_head(features), self.value_head(features), rnn_state)

    def unroll(
        self,
        obs: Tensor,  # [T+1, B, *obs_shape]
        rnn_state: Tensor | None,  # [B, H] before row 0; None: zeros
        valid: Tensor,  # [T+1, B] bool; row T is not read
    ) -> tuple[Tensor, Tensor]:
        """To learn: logits [T+1, B, A] and values [T+1, B] of trajectories, both float32.

        The encoder sees all (T+1) * B rows at once; only the GRU, if there is one, walks the time.
        """
        features = self._encode(obs.flatten(0, 1)).unflatten(0, obs.shape[:2])  # [T+1, B, F]
        with torch.autocast(obs.device.type, enabled=False):
            if self.core is not None:
                outputs = []
                for t in range(len(features)):
                    if t > 0 and rnn_state is not None:
                        rnn_state = rnn_state * valid[t - 1].unsqueeze(1)
                    rnn_state = self.core(features[t], rnn_state)
                    outputs.append(rnn_state)
                features = torch.stack(outputs)  # [T+1, B, H]
            return self.policy_head(features), self.value_head(features)

    def _encode(self, obs: Tensor) -> Tensor:
        """[B, *obs_shape] -> [B, F] float32."""
        if obs.shape[1:] != self.obs_shape or (self.obs_is_image and obs.dtype != torch.uint8):
            kind = "uint8" if self.obs_is_image else "real numbers"
            raise ValueError(
                f"observations must be [B, *{list(self.obs_shape)}] {kind}, "
                f"got {list(obs.shape)} {obs.dtype}"
            )
        device_type = obs.device.type
        is_autocast = torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type) if is_autocast else self._encoder_dtype
        features: Tensor = self.encoder(obs, dtype)
        return features.float()

    def normalize_returns(self, returns: Tensor) -> Tensor:
        """Values or targets in the units that the value loss uses; any shape."""
        return self.value_head.normalize(returns)

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
        self.value_head.update_stats(vs, mask & was_applied)

    def _center_weights(self, share: Tensor | float = 1.0) -> None:
        for module in self.encoder.modules():
            if isinstance(module, CenteredCNN):
                module.center_weights(share)

    def inference_copy(self, dtype: torch.dtype) -> ActorCritic:
        """A copy to act with, its encoder's parameters in `dtype`, without gradients.

        Load new weights by copying this model's `state_dict` into the copy's, entry by entry.
        """
        model = copy.deepcopy(self).requires_grad_(False).eval()
        model.encoder.to(dtype)
        model._encoder_dtype = dtype
        return model


class ValueHead(nn.Module):
    """Linear value function; if it normalizes, of normalized returns, as in PopArt.

    van Hasselt et al. 2016, arXiv:1602.07714. With n the linear layer's output, V = std * n + mean
    is what `forward` returns, so all that calls it works in units of the reward. mean and std are
    of the targets, exponentially averaged: the last 1 / beta updates count. They are buffers, hence
    published and saved together with the weights that they belong to.
    """

    mean: Tensor
    std: Tensor
    weight: Tensor  # 1 - (1 - beta)^updates; undoes the average's pull towards its initial 0

    BETA = 3e-3
    MIN_STD = 1e-2  # constant returns (no reward yet) must not blow up noise

    def __init__(self, num_features: int, normalize_returns: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, 1)
        self.normalizes = normalize_returns
        if normalize_returns:
            self.register_buffer("mean", torch.tensor(0.0))
            self.register_buffer("std", torch.tensor(1.0))
            self.register_buffer("weight", torch.tensor(0.0))

    def forward(self, features: Tensor) -> Tensor:
        """[*, F] -> [*]."""
        outputs: Tensor = self.linear(features).squeeze(-1)
        return outputs * self.std + self.mean if self.normalizes else outputs

    def normalize(self, returns: Tensor) -> Tensor:
        return (returns - self.mean) / self.std if self.normalizes else returns

    @torch.no_grad()
    def update_stats(self, returns: Tensor, mask: Tensor) -> None:
        """Move mean and std, and rescale the layer so that `forward` keeps its results."""
        if not self.normalizes:
            return
        batch_mean = masked_mean(returns, mask)
        batch_var = masked_mean((returns - batch_mean).square(), mask)
        beta = self.BETA * mask.any()  # an empty mask moves nothing
        new_weight = self.weight + beta * (1 - self.weight)
        rate = beta / new_weight.clamp(min=self.BETA)  # 1 at the first update
        shift = batch_mean - self.mean
        new_mean = self.mean + rate * shift
        # Of a mixture: (1 - rate) parts of the past, rate parts of this batch.
        new_var = (1 - rate) * self.std.square() + rate * batch_var + rate * (1 - rate) * shift**2
        new_std = new_var.sqrt().clamp(min=self.MIN_STD)

        scale = self.std / new_std  # 1 where nothing moves: then the layer stays, bit for bit
        self.linear.weight.mul_(scale)
        self.linear.bias.mul_(scale).add_((self.mean - new_mean) / new_std)
        self.mean.copy_(new_mean)
        self.std.copy_(new_std)
        self.weight.copy_(new_weight)


def make_model(
    name: str,
    obs_shape: Sequence[int],
    num_actions: int,
    *,
    obs_is_image: bool,
    rnn_size: int = 0,
    normalize_returns: bool = False,
) -> ActorCritic:
    """A fresh model on the CPU, float32, initialized from torch's global generator.

    Args:
        name: "a3c_cnn", "nature_cnn", "impala_resnet", "mlp", or your own as "module:Class".
        obs_is_image: observations are uint8 pixels; for the CNNs, [C, H, W].
        rnn_size: width of a GRU between encoder and heads; 0 for none.

    Raises:
        ValueError: no such encoder, or one that does not fit these observations.
    """
    shape = tuple(obs_shape)
    return ActorCritic(
        make_encoder(name, shape, obs_is_image),
        shape,
        num_actions,
        obs_is_image=obs_is_image,
        rnn_size=rnn_size,
        normalize_returns=normalize_returns,
    )


@torch.no_grad()
def _num_features(encoder: nn.Module, obs_shape: tuple[int, ...], obs_is_image: bool) -> int:
    dtype = torch.uint8 if obs_is_image else torch.float32
    features: object = encoder(torch.zeros(2, *obs_shape, dtype=dtype), torch.float32)
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2:
        got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            f"an encoder must map [B, *{list(obs_shape)}] to features [B, F]; "
            f"with B=2 it returned {got}"
        )
    return features.shape[1]


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
