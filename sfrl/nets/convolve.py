"""Layers with a relu that leave out what need not be multiplied, on processors without AMX.

An image is nearly the one of the decision before: an output is that one's and what the changes add.
A learner has both in its minibatch; where a policy acts, the layers keep each environment's last
ones (`Environments`). And a relu makes about half of an output 0, and with it half of the gradient
that comes back. Nothing is approximated, and all of it is float32, whatever the precision is: so
convolutions take less time than in bfloat16 with AVX-512. Matrix units, AMX, multiply for less;
there torch's convolutions are kept (docs/experiments.md, "Convolutions that skip zeros").
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sfrl.nets.images import pixel_blocks

_WIDTH = torch.backends.cpu.get_cpu_capability()  # of its vectors
PAYS = _WIDTH.startswith("AVX") and not torch.cpu._is_amx_tile_supported()
HAS_EXTENSION = False
if _WIDTH.startswith("AVX"):  # it is made for AVX2, and must not be loaded where there is none
    try:
        from sfrl.nets import _sparse_conv
    except ImportError:  # it could not be built
        pass
    else:
        HAS_EXTENSION = True
_SAMPLE = 5  # images
_LITTLE = 0.4  # of the numbers
_MANY = 0.5  # likewise, of a linear layer
_SIDE = 64  # of which inputs and outputs of a linear layer must be multiples


class Environments:
    """Those that a network acts for, by number from 0 on.

    Attributes:
        rows: of each row of the next batch the environment, [B] int32, none twice; None: the rows
            are of no environments here.
        renewals: goes up whenever the weights may have changed.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.rows: NDArray[np.int32] | None = None
        self.renewals = 0


class Kept:
    """What a layer made of each environment's last image.

    While the weights stay, an output is the last one and what the changes add. torch makes the
    first one.

    Attributes:
        pays: whether images change little; whoever has seen that they do not asks again when the
            weights are renewed.
    """

    def __init__(self, environments: Environments) -> None:
        self.environments = environments
        self._layer: _sparse_conv.Kept | _sparse_conv.KeptBlocks | None = None
        self._renewals = -1
        self._pays = True

    @property
    def pays(self) -> bool:
        return self._pays or self._renewals != self.environments.renewals

    def convolve(self, images: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        """`convolve` of float32 images, `convolve_blocks` of uint8 ones, without gradients."""
        assert self.environments.rows is not None, "see `Convolution.kept`"
        is_blocks = images.dtype == torch.uint8
        x = (images.contiguous() if is_blocks else _channels_last(images)).numpy()
        weights = _channels_last(weight).numpy()
        if self._layer is None:
            make = _sparse_conv.KeptBlocks if is_blocks else _sparse_conv.Kept
            self._layer = make(self.environments.count, weights, x[0], stride)
        if self._renewals != self.environments.renewals:
            self._layer.renew(weights)
            self._renewals = self.environments.renewals
            self._pays = True
        out = torch.empty(len(x), *self._layer.output_shape)
        if not self._layer.forward(x, self.environments.rows, out.numpy()):
            whole = pixel_blocks(images, torch.float32) if is_blocks else images
            out = _channels_last(F.conv2d(whole, weight, bias, stride))
            self._layer.keep(x, self.environments.rows, out.numpy())
            out.relu_()
        self._pays = self._layer.changes < _LITTLE * x.size
        return out.permute(0, 3, 1, 2)


class Convolution(nn.Conv2d):
    """torch's layer, without padding, and a relu behind it, by `convolve`."""

    _kept: Kept | None = None

    def keep(self, environments: Environments) -> bool:
        """To act: keep what is made of these environments' images, where that pays; say whether.

        Not of pixels that can be NaN, which would stay.
        """
        if self.multiplies_changes:
            self._kept = Kept(environments)
        return self._kept is not None

    @property
    def multiplies_changes(self) -> bool:
        """Whether it learns and acts in float32, from what changes, if little does."""
        fits = HAS_EXTENSION and _has_lanes(self.weight)
        return PAYS and fits and self.weight.device.type == "cpu"

    @property
    def kept(self) -> Kept | None:
        """For the next batch; None: its rows are of no environments that are kept."""
        kept = self._kept
        return kept if kept and kept.environments.rows is not None and kept.pays else None

    def forward(self, input: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """
        Args:
            dtype: of the network's arithmetic; where changes are multiplied it is float32.
        """
        return convolve(input, self.weight, self.bias, self.stride[0], self.kept, dtype)


class Linear(nn.Linear):
    """torch's layer, and a relu behind it, by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def convolve(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int = 1,
    kept: Kept | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`F.relu(F.conv2d(images, weight, bias, stride))`.

    Results and gradients are those of torch but for the order of sums. They take the less time, the
    more an image is like the one before it, and the more of the output's gradient is 0. They cannot
    be differentiated again. NaN and infinity of an image may reach those after it.

    Args:
        images: [B, C, H, W], best in channels_last.
        weight: [O, C, K, K].
        bias: [O], or none.
        kept: of the layer, where it acts.
        dtype: in which torch computes, where it does; ours is float32, of float32 images alone.
    """
    is_float32 = images.dtype == torch.float32
    if kept is not None and bias is not None and is_float32:
        return kept.convolve(images, weight, bias, stride)
    skips_zeros = bias is not None and is_float32 and _skips_zeros(images, weight)
    little = skips_zeros and _changes_little(images)
    if not skips_zeros or (dtype != torch.float32 and not little):
        bias = None if bias is None else bias.to(dtype)
        return F.conv2d(images.to(dtype), weight.to(dtype), bias, stride).relu_()
    assert bias is not None
    if not little:
        result: Tensor = _ByZeros.apply(images, weight, bias, stride)  # type: ignore[no-untyped-call]
        return result
    changes = _sparse_conv.Changes(_channels_last(images).numpy(), len(weight))
    return _by_changes(images, weight, bias, stride, changes)


def convolve_blocks(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kept: Kept | None = None,
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
) -> Tensor:
    """`convolve(pixel_blocks(images, dtype), weight / scale, bias)`.

    Where images in uint8 change little, no blocks are made: changes are listed from the pixels.

    Args:
        images: [B, C, H, W].
        weight: [O, 16*C, K, K].
        bias: [O], or none.
        kept, dtype: as `convolve` has them.
        scale: of the pixels; it is put on the weights, which are fewer.
    """
    if kept is not None and bias is not None:
        return kept.convolve(images, weight / scale, bias, 1)
    is_uint8 = images.dtype == torch.uint8
    if bias is not None and is_uint8 and _skips_zeros(images, weight) and _changes_little(images):
        changes = _sparse_conv.Changes.of_blocks(images.contiguous().numpy(), len(weight))
        return _by_changes(images, weight / scale, bias, 1, changes)
    return convolve(pixel_blocks(images, dtype), weight.to(dtype) / scale, bias, dtype=dtype)


def _by_changes(
    images: Tensor, weight: Tensor, bias: Tensor, stride: int, changes: _sparse_conv.Changes
) -> Tensor:
    result: Tensor = _ByChanges.apply(images, weight, bias, stride, changes)  # type: ignore[no-untyped-call]
    return result


def _skips_zeros(images: Tensor, weight: Tensor) -> bool:
    return _learns_here(images, weight) and _has_lanes(weight)


def _learns_here(images: Tensor, weight: Tensor) -> bool:
    """Whether this may be a learner's minibatch, of its model or of a target."""
    return (
        PAYS
        and HAS_EXTENSION
        and not torch.is_inference_mode_enabled()  # in which a policy acts
        and not torch.compiler.is_exporting()
        and weight.dtype == torch.float32
        and images.device.type == "cpu"
    )


def _has_lanes(weight: Tensor) -> bool:
    """Whether filters and channels fill the extension's vectors."""
    filters, channels, _, _ = weight.shape
    return filters % 8 == channels % 8 == 0


def linear(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.relu(F.linear(rows, weight, bias))`, as `convolve` is of `F.conv2d`.

    Args:
        rows: [B, K].
        weight: [O, K].
        bias: [O].
    """
    skips = _learns_here(rows, weight) and all(size % _SIDE == 0 for size in weight.shape)
    if not skips or rows.dtype != torch.float32 or not _changes_little(rows, _MANY):
        return F.linear(rows, weight, bias).relu_()
    result: Tensor = _Linear.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
    return result


class _Linear(torch.autograd.Function):
    """Output and gradient of the weights from the changes; that of the rows by the zeros."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.changes = _sparse_conv.RowChanges(rows.detach().contiguous().numpy())
        out = torch.empty(len(rows), len(weight))
        weights, biases = (x.detach().contiguous().numpy() for x in (weight, bias))
        _sparse_conv.linear_forward(ctx.changes, weights, biases, out.numpy())
        ctx.save_for_backward(weight, out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, out, out_grad = (x.detach().contiguous() for x in (*ctx.saved_tensors, grad))
        outs = out_grad.numpy(), out.numpy()
        rows_grad = None
        if ctx.needs_input_grad[0]:
            rows_grad = torch.empty(len(out), weight.shape[1])
            _sparse_conv.linear_rows_grad(*outs, weight.numpy(), rows_grad.numpy())
        weight_grad, bias_grad = torch.empty_like(weight), torch.empty(len(weight))
        grads = weight_grad.numpy(), bias_grad.numpy()
        _sparse_conv.linear_weights_grad(ctx.changes, *outs, *grads)
        return rows_grad, weight_grad, bias_grad


class _ByChanges(torch.autograd.Function):
    """Output and gradient of the weights from the changes; that of the images by the zeros."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor,
        stride: int,
        changes: _sparse_conv.Changes,
    ) -> Tensor:
        ctx.stride, ctx.changes = stride, changes
        batch_size, *sides, _ = changes.shape
        filters, size = len(weight), weight.shape[2]
        height, width = ((side - size) // stride + 1 for side in sides)
        last = torch.empty(batch_size, height, width, filters)
        weights = _channels_last(weight).numpy()
        changes.forward(weights, bias.detach().numpy(), last.numpy(), stride)
        out = last.permute(0, 3, 1, 2)
        ctx.save_for_backward(weight, out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, out, out_grad = (_channels_last(x) for x in (*ctx.saved_tensors, grad))
        images_grad = None
        if ctx.needs_input_grad[0]:
            images_grad = _images_grad(out_grad, out, weight, ctx.changes.shape, ctx.stride)
        weight_grad, bias_grad = torch.empty_like(weight), torch.empty(len(weight))
        grads = weight_grad.numpy(), bias_grad.numpy()
        ctx.changes.weights_grad(out_grad.numpy(), out.numpy(), *grads, ctx.stride)
        return images_grad, weight_grad.permute(0, 3, 1, 2), bias_grad, None, None


class _ByZeros(torch.autograd.Function):
    """torch's output; gradients by the zeros of the output's."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        ctx.stride = stride
        out = F.conv2d(images, weight, bias, stride).relu_()
        ctx.save_for_backward(images, weight, out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, out, out_grad = (_channels_last(x) for x in (*ctx.saved_tensors, grad))
        images_grad = None
        if ctx.needs_input_grad[0]:
            images_grad = _images_grad(out_grad, out, weight, images.shape, ctx.stride)
        weight_grad, bias_grad = torch.empty_like(weight), torch.empty(len(weight))
        grads = weight_grad.numpy(), bias_grad.numpy()
        outs = out_grad.numpy(), out.numpy()
        _sparse_conv.weights_grad(images.numpy(), *outs, *grads, ctx.stride)
        return images_grad, weight_grad.permute(0, 3, 1, 2), bias_grad, None


def _images_grad(
    out_grad: Tensor, out: Tensor, weight: Tensor, shape: tuple[int, ...], stride: int
) -> Tensor:
    """The gradient of the images, [B, C, H, W].

    Args:
        out_grad, out: [B, H', W', O].
        weight: [O, K, K, C].
        shape: B, H, W, C.
    """
    images_grad = torch.empty(shape)
    outs, weights = (out_grad.numpy(), out.numpy()), weight.numpy()
    _sparse_conv.images_grad(*outs, weights, images_grad.numpy(), stride)
    return images_grad.permute(0, 3, 1, 2)


def _changes_little(images: Tensor, share: float = _LITTLE) -> bool:
    """Whether fewer numbers differ from those of the image before, by a sample."""
    sample = images[:_SAMPLE]
    changes = (sample[1:] != sample[:-1]).count_nonzero().item()
    return changes < share * sample[1:].numel()


def _channels_last(x: Tensor) -> Tensor:
    """[B, C, H, W] -> contiguous [B, H, W, C], without a copy where it lies so already."""
    return x.detach().permute(0, 2, 3, 1).contiguous()
