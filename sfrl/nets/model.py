"""Networks without heads, which are the algorithms': encoders and an optional memory.

Only the encoder computes in low precision: under `torch.autocast` in the learner, whose parameters
are float32, and with bfloat16 parameters in the copy that acts (`Network.inference_copy`). Both
round the same weights in the same places; layers that multiply changes alone (convolve.py) round
none. Normalization of observations, memory, heads and everything they return are float32.

The encoders are in encoders.py. docs/adding-a-model.md shows how to bring your own.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from sfrl.envs import Leaf
from sfrl.envs.classes import ClassError
from sfrl.nets.choose import MemorySpec, seen
from sfrl.nets.convolve import Convolution, Environments
from sfrl.nets.encoders import CenteredCNN, UserEncoder, example, lower, make_encoder
from sfrl.nets.normalizer import RunningNorm
from sfrl.nets.pieces import Observations, encode_in_pieces
from sfrl.nets.recurrent import Memory


class Network(nn.Module):
    """Features of an observation for the heads of an algorithm: encoders and, if asked for, memory.

    One encoder serves all heads, or the value has one of its own. Observations are the leaves by
    name, [*, *shape] in their own dtypes, as the environment gives them.

    Recurrent state: zeros before an episode's first observation, else what the memory made of the
    observation before. After a row that is not valid (an episode's final observation, see
    sfrl/maths/vtrace.py) the next episode begins: `unroll_features` resets the state there by
    itself, and whoever calls `step_features` multiplies the state by `valid` of the row just shown
    before keeping it. With two encoders there are two memories, and the state holds that of the
    policy, then that of the value.

    Attributes:
        state_size: H, the size of the recurrent state; 0 without a memory.
        num_features: F, the size of what heads are given.
        precision: of the encoders' arithmetic.
    """

    def __init__(
        self,
        encoder: nn.Module,  # (obs, dtype) -> features [B, F], computed in dtype; see `_encode`
        leaves: tuple[Leaf, ...],
        *,
        value_encoder: nn.Module | None = None,  # None: `encoder` serves both
        memory: MemorySpec | None = None,
        normalize_obs: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.value_encoder = value_encoder
        self.leaves = seen(leaves)
        vectors = [leaf for leaf in self.leaves if leaf.kind == "vector" and normalize_obs]
        self._normalized = [leaf.name for leaf in vectors]
        self.normalizers = nn.ModuleList(RunningNorm(leaf.shape[0]) for leaf in vectors)
        self.precision = torch.float32
        self._casts_weights, self._threads = False, 1
        num_features = _num_features(encoder, self.leaves)
        if value_encoder is not None:  # its lazy layers, if there are any, get their sizes now
            _num_features(value_encoder, self.leaves)
        self.core: Memory | None = None
        self.value_core: Memory | None = None
        self.num_features, self.state_size = num_features, 0
        if memory is not None:
            self.core = Memory(memory.kind, num_features, memory.size, memory.layers)
            self.num_features, self.state_size = memory.size, self.core.state_size
            if value_encoder is not None:
                self.value_core = Memory(memory.kind, num_features, memory.size, memory.layers)
                self.state_size *= 2
        self.center_weights()

    def step_features(
        self,
        obs: Mapping[str, Tensor],  # leaf -> [B, *shape]
        rnn_state: Tensor | None = None,  # [B, H]; None: zeros
        *,
        needs_value: bool = True,
    ) -> tuple[list[Tensor], Tensor | None]:
        """To act: features [B, F] float32 for the policy and for the value, one if they share.

        And the recurrent state after this observation [B, H]; None without a memory. If it needs no
        value, those for the policy alone, unless the value's memory has to see the observation.
        """
        features = self._encode(obs, needs_value=needs_value or self.core is not None)
        if self.core is None:
            return features, rnn_state
        cores = self._cores()
        states = [None] * len(cores) if rnn_state is None else rnn_state.chunk(len(cores), dim=1)
        steps = [core.step(f, s) for core, f, s in zip(cores, features, states, strict=True)]
        return [outputs for outputs, _ in steps], torch.cat([state for _, state in steps], dim=1)

    def unroll_features(
        self,
        obs: Mapping[str, Tensor],  # leaf -> [T+1, B, *shape]
        rnn_state: Tensor | None,  # [B, H] before row 0; None: zeros
        valid: Tensor,  # [T+1, B] bool; row T is not read
    ) -> list[Tensor]:
        """To learn: features [T+1, B, F] of trajectories, as `step_features`.

        The encoders see all (T+1) * B rows at once; only a memory, if there is one, walks the time.
        """
        # A trajectory after the other: an image is then most like the row before it.
        rows = self._encode(
            {name: leaf.transpose(0, 1).flatten(0, 1) for name, leaf in obs.items()}
        )
        in_turn = [f.unflatten(0, valid.T.shape).transpose(0, 1) for f in rows]
        features = [f.contiguous() for f in in_turn]  # [T+1, B, F] each; what follows is faster so
        if self.core is None:
            return features
        cores = self._cores()
        states = [None] * len(cores) if rnn_state is None else rnn_state.chunk(len(cores), dim=1)
        return [
            core.unroll(f, s, valid) for core, f, s in zip(cores, features, states, strict=True)
        ]

    def _cores(self) -> list[Memory]:
        return [core for core in (self.core, self.value_core) if core is not None]

    def _encode(self, obs: Mapping[str, Tensor], *, needs_value: bool = True) -> list[Tensor]:
        """Leaves [B, *shape] -> [B, F] float32 for the policy and for the value; one if they share.

        An encoder of a single leaf is given that, one of several the dict.
        """
        inputs = {leaf.name: self._checked(leaf, obs[leaf.name]) for leaf in self.leaves}
        for name, normalizer in zip(self._normalized, self.normalizers, strict=True):
            inputs[name] = normalizer(inputs[name])
        given = inputs if len(inputs) > 1 else next(iter(inputs.values()))
        encoders = [self.encoder]
        if needs_value and self.value_encoder is not None:
            encoders.append(self.value_encoder)
        if self._threads == 1:
            return [self._features(encoder, given) for encoder in encoders]
        return [
            encode_in_pieces(partial(self._features, e), given, e.parameters(), self._threads)
            for e in encoders
        ]

    def _features(self, encoder: nn.Module, given: Observations) -> Tensor:
        if not self._casts_weights:
            features: Tensor = encoder(given, self.precision).float()
            return features
        leaf = given if isinstance(given, Tensor) else next(iter(given.values()))
        # The cache of cast weights, each of which is used once, would outlive a graph's capture.
        with torch.autocast(leaf.device.type, self.precision, cache_enabled=False):
            features = encoder(given, self.precision).float()
            return features

    @staticmethod
    def _checked(leaf: Leaf, obs: Tensor) -> Tensor:
        if obs.shape[1:] != leaf.shape or obs.dtype != getattr(torch, leaf.dtype):
            raise ValueError(
                f"observations {leaf.name} must be [B, *{list(leaf.shape)}] {leaf.dtype}, "
                f"got {list(obs.shape)} {obs.dtype}"
            )
        return obs

    def update_normalizers(self, obs: Mapping[str, Tensor], mask: Tensor) -> None:
        """Let the means and deviations follow leaves [T, B, *shape] where mask [T, B] is true."""
        for name, normalizer in zip(self._normalized, self.normalizers, strict=True):
            assert isinstance(normalizer, RunningNorm)
            normalizer.update(obs[name], mask)

    def networks(self) -> list[list[nn.Parameter]]:
        """The parameters of each network that shares none with another; here it is one.

        Their gradients are clipped apart: a large error of the value does not shorten the
        policy's step.
        """
        return [list(self.parameters())]

    def matrices(self) -> list[nn.Parameter]:
        """Weights [outputs, ...] of the encoders' linear layers and convolutions."""
        encoders = [e for e in (self.encoder, self.value_encoder) if e is not None]
        layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        weights = [m.weight for e in encoders for m in e.modules() if isinstance(m, layers)]
        return [w for w in weights if isinstance(w, nn.Parameter)]  # none that is computed

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

    def learn_in(self, precision: torch.dtype, threads: int = 1) -> None:
        """Have the encoders compute in `precision`; parameters and gradients stay float32.

        Args:
            threads: that take some of the rows each, on a CPU. A user's encoder has one: it may
                write to itself, draw random numbers, or detach what it gives.
        """
        self.precision, self._threads = precision, 1 if self._is_users() else threads
        self._casts_weights = precision != torch.float32

    def inference_copy(self, precision: torch.dtype) -> Self:
        """A copy to act with, its encoders' parameters in `precision`, without gradients.

        Load new weights by copying this model's `state_dict` into the copy's, entry by entry.
        """
        model = copy.deepcopy(self).requires_grad_(False).eval()
        for encoder in (model.encoder, model.value_encoder):
            if encoder is not None:
                lower(encoder, precision)
        model.precision, model._casts_weights, model._threads = precision, False, 1
        return model

    def keep_images(self, environments: Environments) -> bool:
        """Of a copy to act with: have layers keep what they make of each environment's last image.

        Not those of a user's encoder, which may call one twice. Tell `environments` whose images
        the next batch has, and when weights were loaded.

        Returns:
            Whether any layer does.
        """
        is_on_cpu = next(self.parameters()).device.type == "cpu"
        are_pixels = all(leaf.dtype == "uint8" for leaf in self.leaves if leaf.kind == "image")
        layers: list[Convolution] = []
        if is_on_cpu and are_pixels and not self._is_users():
            layers = [layer for layer in self.modules() if isinstance(layer, Convolution)]
        return sum(layer.keep(environments) for layer in layers) > 0  # each of them is asked

    def _is_users(self) -> bool:
        """Whether an encoder is a user's."""
        return any(isinstance(module, UserEncoder) for module in self.modules())


def check_memory(weights: Mapping[str, Tensor], memory: MemorySpec | None) -> None:
    """See that a model with this memory is no larger than a checkpoint's weights, before one is
    made.

    What else decides on its size is the environment and the code.

    Raises:
        ValueError: the weights are of a memory of another kind or size.
    """
    found = [tuple(w.shape) for name, w in weights.items() if name.startswith("core.weight_hh")]
    expected = []
    if memory is not None:
        gates = 3 if memory.kind == "gru" else 4
        expected = [(gates * memory.size, memory.size)] * memory.layers
    if found != expected:
        size = found[0][-1] if found and found[0] else 0
        asked = f"rnn_size={memory.size}" if memory else "rnn_size=0"
        if memory and size == memory.size:
            asked = f"rnn={memory.kind} with rnn_layers={memory.layers}"
        raise ValueError(f"{asked} is not that of its weights, {size}")


def make_encoders(
    name: str, leaves: tuple[Leaf, ...], *, num_encoders: int = 1, normalize_obs: bool = False
) -> tuple[nn.Module, nn.Module | None]:
    """Fresh encoders on the CPU, float32, initialized from torch's global generator.

    Args:
        name: one of choose.py's MODELS, or your own as "module:Class". Leaves that it is not for
            get the usual ones.
        num_encoders: two, if the value has one of its own.
        normalize_obs: vectors come normalized, and are not to be scaled.

    Raises:
        ValueError: no such encoder, or one that does not fit these observations.
    """
    if normalize_obs:
        leaves = tuple(
            dataclasses.replace(leaf, scale=1.0) if leaf.kind == "vector" else leaf
            for leaf in leaves
        )
    encoders = [make_encoder(name, leaves) for _ in range(num_encoders)]
    return encoders[0], encoders[1] if num_encoders > 1 else None


def try_model(
    name: str,
    leaves: tuple[Leaf, ...],
    precisions: Sequence[str],
    *,
    memory: MemorySpec | None = None,
    **settings: Any,  # of `make_encoders`
) -> None:
    """See that a user's encoder can act and learn: on zeros, on the CPU, in all the precisions.

    Raises:
        ValueError: one line, that says what is wrong, and where.
    """
    precision = "float32"
    try:
        encoder, value_encoder = make_encoders(name, leaves, **settings)
        model = Network(encoder, leaves, value_encoder=value_encoder, memory=memory)
        obs = {leaf.name: example(leaf, 3, 2) for leaf in leaves}
        valid = torch.ones(3, 2, dtype=torch.bool)
        for precision in precisions:
            dtype: torch.dtype = getattr(torch, precision)
            with torch.inference_mode():
                model.inference_copy(dtype).step_features({n: rows[0] for n, rows in obs.items()})
            model.learn_in(dtype)
            features = model.unroll_features(obs, None, valid)
            torch.stack([f.sum() for f in features]).sum().backward()
        _check_whole_numbers(model)
    except Exception as error:  # of any kind: it is the user's code that runs here
        place = traceback.extract_tb(error.__traceback__)
        is_ours = Path(place[-1].filename).parent == Path(__file__).parent
        if isinstance(error, ClassError) or (isinstance(error, ValueError) and is_ours):
            text = str(error)
        else:
            module = sys.modules.get(name.partition(":")[0])
            users = [f for f in place if f.filename == getattr(module, "__file__", None)]
            where = f" ({users[-1].filename}, line {users[-1].lineno})" if users else ""
            text = f"{type(error).__name__} in {precision}: {' '.join(str(error).split())}{where}"
        prefix = f"model={name}"
        raise ValueError(text if text.startswith(prefix) else f"{prefix}: {text}") from error


def _check_whole_numbers(model: nn.Module) -> None:
    """Raises ValueError if float32, as which state travels, does not hold all of it."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            continue
        if tensor.is_complex() or not torch.equal(tensor.float().to(tensor.dtype), tensor):
            raise ValueError(
                f"its state travels as float32, which does not hold {name}; if that is the same "
                f"each time it is made, keep it out by register_buffer(..., persistent=False)"
            )


@torch.no_grad()
def _num_features(encoder: nn.Module, leaves: tuple[Leaf, ...]) -> int:
    examples = {leaf.name: example(leaf, 2) for leaf in leaves}
    given = examples if len(leaves) > 1 else examples[leaves[0].name]
    features: object = encoder(given, torch.float32)
    got = type(features).__name__
    if isinstance(features, Tensor):
        got = f"{list(features.shape)} {str(features.dtype).removeprefix('torch.')}"
        is_batch = features.ndim == 2 and len(features) == 2 and features.shape[1] > 0
        if is_batch and features.is_floating_point():
            return features.shape[1]
    shapes: Any = {leaf.name: [*leaf.shape] for leaf in leaves}
    if len(leaves) == 1:
        shapes = f"[B, *{list(leaves[0].shape)}]"
    raise ValueError(
        f"an encoder must map {shapes} to features [B, F], floats; with B=2 it returned {got}"
    )


def pick_precision(model: Network, obs: Mapping[str, Tensor], repeats: int = 5) -> torch.dtype:
    """torch.bfloat16 where `model` acts clearly faster in it than in float32, else torch.float32.

    On a GPU: where it has it, since small batches there take the time of starting kernels, and
    tell nothing of large ones. On a CPU it is measured with leaves [B, *shape]: those with matrix
    units for bfloat16 take a third of the time, others emulate it. Layers that multiply changes
    alone are float32 in both, so that the others decide. A few tens of milliseconds for an Atari
    batch.
    """
    if next(iter(obs.values())).is_cuda:
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float32
    copies = {dtype: model.inference_copy(dtype) for dtype in (torch.float32, torch.bfloat16)}
    batch_size = len(next(iter(obs.values())))
    for actor in copies.values():  # as in a run, where images change little
        environments = Environments(batch_size)
        environments.rows = np.arange(batch_size, dtype=np.int32)
        actor.keep_images(environments)
    seconds = dict.fromkeys(copies, math.inf)
    for _ in range(1 + repeats):  # the first one warms up, and is never the fastest
        for dtype, actor in copies.items():  # in turns, so that a busy moment hits both
            start = time.perf_counter()
            with torch.inference_mode():
                actor.step_features(obs)
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    is_faster = seconds[torch.bfloat16] < 0.9 * seconds[torch.float32]
    return torch.bfloat16 if is_faster else torch.float32
