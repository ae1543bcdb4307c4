"""Encoders: what turns observations into features. `make_encoder` knows them by name.

An encoder is called with (obs [B, *shape], dtype) and returns features [B, F], computed in dtype;
of several leaves obs is a dict. docs/adding-a-model.md shows how to bring your own.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfrl.envs import Leaf
from sfrl.envs.classes import class_at
from sfrl.nets.choose import CNN_SIZES, JOINT_SIZE, MLPS, MODELS, encoder_of, seen
from sfrl.nets.convolve import Convolution, Linear, convolve_blocks
from sfrl.nets.images import BLOCK

HIDDEN_GAIN = math.sqrt(2)
# About what averaging takes: the mean of four outputs of a relu has a smaller root mean square than
# each of them, by a factor of 1 where they are equal, and of 1.43 where they are independent.
_POOLED_SCALE = 1.5


def make_encoder(name: str, leaves: tuple[Leaf, ...]) -> nn.Module:
    """A fresh encoder of these leaves; see `sfrl.nets.model.make_encoders` for what is raised."""
    leaves = seen(leaves)
    if ":" in name:
        shapes: Any = {leaf.name.removeprefix("obs."): leaf.shape for leaf in leaves}
        if len(leaves) == 1:
            shapes = leaves[0].shape
        return UserEncoder(class_at("model", name, nn.Module, "torch.nn.Module")(shapes), leaves)
    if name not in MODELS:
        raise ValueError(
            f"model={name!r} is none of {', '.join(MODELS)}; "
            f"name an encoder of your own as module:Class"
        )
    if len(leaves) > 1:
        return JointEncoder(name, leaves)
    if name not in MLPS and leaves[0].kind not in ("image", "choice"):
        raise ValueError(
            f"model={name} needs images [C, H, W], but observations are {list(leaves[0].shape)}; "
            f"choose --model=norm_mlp"
        )
    return _leaf_encoder(name, leaves[0])


def _leaf_encoder(name: str, leaf: Leaf) -> nn.Module:
    if leaf.kind == "choice":
        return Embedding(leaf.sizes)
    built_in: dict[str, Callable[[tuple[int, ...], float], nn.Module]] = {
        "a3c_cnn": A3CCNN,
        "nature_cnn": NatureCNN,
        "pooled_cnn": PooledCNN,
        "impala_resnet": ImpalaResNet,
        "small_cnn": SmallCNN,
        "mlp": MLP,
        "norm_mlp": NormMLP,
        "flat": Flat,
    }
    return built_in[name](leaf.shape, leaf.scale)


class CenteredCNN(nn.Module):
    """An encoder whose filters have weights that sum to 0, at the start and after every step.

    The inputs of a filter are pixels or come from a relu, hardly any of them negative. What they
    have in common, a flat background above all, gives its weights gradients of one sign; Adam moves
    them together, and many filters end up below 0 for good (docs/experiments.md). Weights that sum
    to 0 do not see it, but at the borders of a padded image. The rule is that of Centered Weight
    Normalization (Huang et al. 2017, ICCV) without its scaling, kept by projection.
    """

    @torch.no_grad()
    def center_weights(self, share: Tensor | float = 1.0) -> None:
        """Take from the weights of every filter, or row of a linear layer, a share of their mean.

        Args:
            share: all of it, or 0 to change nothing.
        """
        for parameter in self.parameters():
            if parameter.ndim > 1:  # weights [filters, ...], not biases
                means = parameter.mean(tuple(range(1, parameter.ndim)), keepdim=True)
                parameter.sub_(means * share)


class NatureCNN(CenteredCNN):
    """Three convolutions and a layer of 512 (Mnih et al. 2015, doi:10.1038/nature14236).

    The first, 8x8 with stride 4, is a 2x2 convolution with stride 1 over 4x4 blocks of pixels taken
    as channels: the same sums, of the 64 channels that matrix units want instead of 4.
    """

    def __init__(
        self,
        obs_shape: tuple[int, ...],
        obs_scale: float = 255.0,
        filters: tuple[int, ...] = (32, 64, 64),  # of the convolutions; the third may be missing
        num_features: int = 512,
        averages: bool = False,  # the last image over squares of 2x2 places
    ) -> None:
        super().__init__()
        self.obs_scale = obs_scale
        channels, height, width = obs_shape
        if min(height, width) < (least := CNN_SIZES["nature_cnn"]):
            raise ValueError(
                f"this network needs images of at least {least}x{least} pixels, "
                f"got {height}x{width}; "
                f"choose --model=impala_resnet or --model=norm_mlp"
            )
        self.conv1 = Convolution(BLOCK**2 * channels, filters[0], 2)
        self.conv2 = Convolution(filters[0], filters[1], 4, stride=2)
        height, width = (((size // 4 - 1) - 4) // 2 + 1 for size in (height, width))
        self.conv3 = None
        if len(filters) > 2:
            self.conv3 = Convolution(filters[1], filters[2], 3)
            height, width = height - 2, width - 2
        self.averages = averages
        if averages:
            height, width = (height + 1) // 2, (width + 1) // 2
        self.linear = Linear(filters[-1] * height * width, num_features)
        init_orthogonal(self, HIDDEN_GAIN)

    def forward(self, obs: Tensor, dtype: torch.dtype) -> Tensor:
        # Each layer has a relu.
        weight, bias = self.conv1.weight, self.conv1.bias
        x = convolve_blocks(obs, weight, bias, self.conv1.kept, dtype, self.obs_scale)
        x = self.conv2(x, dtype)
        if self.conv3 is not None:
            x = self.conv3(x, dtype)
        if self.averages:
            x = F.avg_pool2d(x, 2, ceil_mode=True) * _POOLED_SCALE
        # Flattened in the order of channels_last, the one it lies in; no copy.
        features: Tensor = self.linear(x.permute(0, 2, 3, 1).flatten(1).to(dtype))
        return features


class A3CCNN(NatureCNN):
    """Two convolutions and a layer of 256 (Mnih et al. 2016, arXiv:1602.01783, section 8).

    A third of NatureCNN's work.
    """

    def __init__(self, obs_shape: tuple[int, ...], obs_scale: float = 255.0) -> None:
        super().__init__(obs_shape, obs_scale, filters=(16, 32), num_features=256)


class PooledCNN(NatureCNN):
    """NatureCNN with the output of its third convolution averaged over squares of 2x2 places.

    Of 84x84 pixels 16 places are left of 49, and the layer of 512 has a third of its weights.
    Trumpp et al. 2025 (arXiv:2503.05546) average over all places. With squares of 2x2 a frame of
    Atari's games teaches as much, and takes less time (docs/experiments.md, "Average pooling").
    """

    def __init__(self, obs_shape: tuple[int, ...], obs_scale: float = 255.0) -> None:
        super().__init__(obs_shape, obs_scale, averages=True)


class LayerNorm(nn.LayerNorm):
    """With weights and results in the input's precision, as the copy that acts has them.

    Under autocast they would be float32: the weights on a CPU, both on a GPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dtype == x.dtype:
            return super().forward(x)
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class SmallCNN(nn.Module):
    """Two convolutions of 3x3 and a layer of 128, for images of few cells, such as grids.

    They keep the place of each cell: nothing is pooled. An image comes in units of its own largest
    number: a grid's codes are small beside the 255 that its space allows, and the biases, which are
    learned at the same rate, would drown them (docs/experiments.md).
    """

    def __init__(self, obs_shape: tuple[int, ...], obs_scale: float = 255.0) -> None:
        super().__init__()
        self.obs_scale = obs_scale
        channels, height, width = obs_shape
        if min(height, width) < (least := CNN_SIZES["small_cnn"]):
            raise ValueError(
                f"this network needs images of at least {least}x{least} pixels, "
                f"got {height}x{width}; choose --model=norm_mlp"
            )
        self.conv1 = nn.Conv2d(channels, 16, 3)
        self.conv2 = nn.Conv2d(16, 32, 3)
        self.linear = nn.Linear(32 * (height - 4) * (width - 4), 128)
        self.norm = LayerNorm(128)
        init_orthogonal(self, HIDDEN_GAIN)

    def forward(self, obs: Tensor, dtype: torch.dtype) -> Tensor:
        x = obs.to(dtype)
        if self.obs_scale != 1:
            x = x / x.abs().amax((1, 2, 3), keepdim=True).clamp(min=self.obs_scale / 255)
        x = self.conv2(self.conv1(x).relu_()).relu_()
        return F.relu(self.norm(self.linear(x.flatten(1))))


class ImpalaResNet(CenteredCNN):
    """IMPALA's deep network without the LSTM (Espeholt et al. 2018, arXiv:1802.01561, figure 3)."""

    def __init__(self, obs_shape: tuple[int, ...], obs_scale: float = 255.0) -> None:
        super().__init__()
        in_channels, height, width = obs_shape
        self.sections = nn.Sequential()
        for channels, input_scale in ((16, 1 / obs_scale), (32, 1.0), (32, 1.0)):
            self.sections.append(_ImpalaSection(in_channels, channels, input_scale))
            in_channels, height, width = channels, (height + 1) // 2, (width + 1) // 2
        self.linear = nn.Linear(32 * height * width, 256)
        init_orthogonal(self, HIDDEN_GAIN)
        for block in self.modules():
            if isinstance(block, _ResidualBlock):
                # Blocks start as the identity; otherwise six of them make features of size 25.
                nn.init.zeros_(block.conv2.weight)

    def forward(self, obs: Tensor, dtype: torch.dtype) -> Tensor:
        x = obs.contiguous(memory_format=torch.channels_last).to(dtype)
        x = self.sections(x).relu_()
        return F.relu(self.linear(x.permute(0, 2, 3, 1).flatten(1)))


class _ImpalaSection(nn.Module):
    """Convolution, pooling that halves the image, and two residual blocks."""

    def __init__(self, in_channels: int, channels: int, input_scale: float) -> None:
        super().__init__()
        self.input_scale = input_scale
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.blocks = nn.Sequential(_ResidualBlock(channels), _ResidualBlock(channels))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight.to(x.dtype) * self.input_scale  # fewer numbers than the image
        x = F.conv2d(x, weight, self.conv.bias, padding=1)
        outputs: Tensor = self.blocks(F.max_pool2d(x, 3, stride=2, padding=1))
        return outputs


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.conv2(self.conv1(x.relu()).relu_())
        return x + residual


class NormMLP(nn.Module):
    """Two layers of 64, each normalized (Ba et al. 2016, arXiv:1607.06450), then ReLU.

    Images are flattened. Without the normalization a value network that has to reach returns of
    hundreds drives its layers to where they no longer tell states apart (docs/experiments.md).
    """

    def __init__(self, obs_shape: tuple[int, ...], obs_scale: float) -> None:
        super().__init__()
        self.obs_scale = obs_scale
        self.linear1 = nn.Linear(math.prod(obs_shape), 64)
        self.norm1 = LayerNorm(64)
        self.linear2 = nn.Linear(64, 64)
        self.norm2 = LayerNorm(64)
        init_orthogonal(self, HIDDEN_GAIN)

    def forward(self, obs: Tensor, dtype: torch.dtype) -> Tensor:
        x = _scaled(obs, dtype, self.obs_scale).flatten(1)
        x = self.norm1(self.linear1(x)).relu()
        return F.relu(self.norm2(self.linear2(x)))


class MLP(nn.Module):
    """Two tanh layers of 64 (Schulman et al. 2017, arXiv:1707.06347). Images are flattened."""

    def __init__(self, obs_shape: tuple[int, ...], obs_scale: float) -> None:
        super().__init__()
        self.obs_scale = obs_scale
        self.linear1 = nn.Linear(math.prod(obs_shape), 64)
        self.linear2 = nn.Linear(64, 64)
        init_orthogonal(self, HIDDEN_GAIN)

    def forward(self, obs: Tensor, dtype: torch.dtype) -> Tensor:
        x = _scaled(obs, dtype, self.obs_scale).flatten(1)
        x = self.linear1(x).tanh()
        return torch.tanh(self.linear2(x))


class Flat(nn.Module):
    """The numbers as they are, for heads with hidden layers of their own."""

    def __init__(self, obs_shape: tuple[int, ...], obs_scale: float) -> None:
        super().__init__()
        self.obs_scale = obs_scale

    def forward(self, obs: Tensor, dtype: torch.dtype) -> Tensor:
        return _scaled(obs, dtype, self.obs_scale).flatten(1)


class Embedding(nn.Module):
    """Two layers of 64 as in `NormMLP`, the first one of choices: each has a row of a table."""

    offsets: Tensor

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        starts = [0, *itertools.accumulate(sizes)][:-1]
        self.register_buffer("offsets", torch.tensor(starts), persistent=False)
        self.table = nn.Embedding(sum(sizes), 64)
        self.norm1 = LayerNorm(64)
        self.linear2 = nn.Linear(64, 64)
        self.norm2 = LayerNorm(64)
        init_orthogonal(self, HIDDEN_GAIN)

    def forward(self, obs: Tensor, dtype: torch.dtype) -> Tensor:
        table = self.table.weight.to(dtype)
        x = F.embedding(obs + self.offsets, table).sum(dim=1)  # [B, K] -> [B, 64]
        x = self.norm1(x).relu()
        return F.relu(self.norm2(self.linear2(x)))


class JointEncoder(nn.Module):
    """An encoder for each leaf, and a normalized layer that joins what they give.

    Images alone are encoded in low precision; the rest costs little, and stays float32.
    """

    def __init__(self, name: str, leaves: tuple[Leaf, ...]) -> None:
        super().__init__()
        self.names = [leaf.name for leaf in leaves]
        self.encoders = nn.ModuleList(
            _leaf_encoder(encoder_of(name, leaf), leaf) for leaf in leaves
        )
        self.is_image = [leaf.kind == "image" for leaf in leaves]
        with torch.no_grad():
            examples = [example(leaf, 1) for leaf in leaves]
            sizes = [
                e(x, torch.float32).shape[1] for e, x in zip(self.encoders, examples, strict=True)
            ]
        self.joint = nn.Linear(sum(sizes), JOINT_SIZE)
        self.norm = nn.LayerNorm(JOINT_SIZE)
        init_orthogonal(self.joint, HIDDEN_GAIN)

    def forward(self, obs: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        features = []
        for name, encoder, is_image in zip(self.names, self.encoders, self.is_image, strict=True):
            with self._precision(obs[name], is_image):
                features.append(encoder(obs[name], dtype if is_image else torch.float32).float())
        with self._precision(features[0], is_image=False):
            return F.relu(self.norm(self.joint(torch.cat(features, dim=1))))

    def _precision(self, x: Tensor, is_image: bool) -> AbstractContextManager[None]:
        return nullcontext() if is_image else torch.autocast(x.device.type, enabled=False)

    def lower(self, precision: torch.dtype) -> None:
        """Have the parameters of images' encoders in `precision`."""
        for encoder, is_image in zip(self.encoders, self.is_image, strict=True):
            if is_image:
                lower(encoder, precision)


class UserEncoder(nn.Module):
    """A user's module. It gets observations as floats, scaled; images are centered as well.

    Choices come as whole numbers. Of several leaves it gets a dict, by the names that they have in
    the environment's Dict or Tuple.
    """

    def __init__(self, net: nn.Module, leaves: tuple[Leaf, ...]) -> None:
        super().__init__()
        self.net = net
        self.leaves = leaves

    def forward(self, obs: Tensor | Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        inputs: Any
        if isinstance(obs, Tensor):
            inputs = self._input(self.leaves[0], obs, dtype)
        else:
            inputs = {
                leaf.name.removeprefix("obs."): self._input(leaf, obs[leaf.name], dtype)
                for leaf in self.leaves
            }
        features: Tensor = self.net(inputs)
        return features

    @staticmethod
    def _input(leaf: Leaf, obs: Tensor, dtype: torch.dtype) -> Tensor:
        if leaf.kind == "choice":
            return obs.long()
        x = _scaled(obs, dtype, leaf.scale)
        if leaf.kind == "image":  # its filters' weights need not sum to 0
            x = x - x.mean(tuple(range(1, x.ndim)), keepdim=True)
        return x


def lower(encoder: nn.Module, precision: torch.dtype) -> None:
    """To act: have its parameters in `precision`, but where convolutions compute in float32."""
    if isinstance(encoder, JointEncoder):
        encoder.lower(precision)
        return
    layers = [m for m in encoder.modules() if isinstance(m, Convolution) and m.multiplies_changes]
    weights = [copy.deepcopy(layer.state_dict()) for layer in layers]
    encoder.to(precision)
    for layer, exact in zip(layers, weights, strict=True):
        layer.float().load_state_dict(exact)


def example(leaf: Leaf, *leading: int) -> Tensor:
    """A leaf of zeros, [*leading, *shape]."""
    return torch.zeros(*leading, *leaf.shape, dtype=getattr(torch, leaf.dtype))


def init_orthogonal(module: nn.Module, gain: float) -> None:
    """Every linear layer and convolution in `module`; biases become 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.orthogonal_(layer.weight, gain)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


def _scaled(obs: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
    return obs.to(dtype) if scale == 1 else obs.to(dtype) / scale
