"""Convolutions whose gradients skip zeros, where a processor multiplies float32 in AVX2 alone.

A relu makes about half of an output 0, and with it half of the gradient that comes back. There the
gradients of weights and inputs need half of the multiplications; they are two thirds of a
convolution's work. Wider vectors, and units for bfloat16, multiply zeros cheaply; there torch's
gradients are kept (docs/experiments.md).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_WIDTH = torch.backends.cpu.get_cpu_capability()  # of its vectors
PAYS = _WIDTH == "AVX2"
HAS_EXTENSION = False
if _WIDTH.startswith("AVX"):  # it is made for AVX2, and must not be loaded where there is none
    try:
        from sfrl.nets import _sparse_conv
    except ImportError:  # it could not be built
        pass
    else:
        HAS_EXTENSION = True


def convolve(images: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    """`F.conv2d(images, weight, bias, stride)`, for a relu to follow.

    Gradients are those of torch but for the order of sums. In the backward pass they take the less
    time, the more of the output's gradient is 0; they cannot be differentiated again.

    Args:
        images: [B, C, H, W], best in channels_last.
        weight: [O, C, K, K].
        bias: [O], or none.
    """
    if _skips_zeros(images, weight):
        result: Tensor = _Convolution.apply(images, weight, bias, stride)  # type: ignore[no-untyped-call]
        return result
    return F.conv2d(images, weight, bias, stride)


def _skips_zeros(images: Tensor, weight: Tensor) -> bool:
    filters, channels, size, _ = weight.shape
    return (
        PAYS
        and HAS_EXTENSION
        and torch.is_grad_enabled()
        and weight.requires_grad
        and images.dtype == weight.dtype == torch.float32
        and images.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and filters % 8 == 0
        and size * channels % 32 == 0
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, stride: int
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride = stride
        return F.conv2d(images, weight, bias, stride)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = (_channels_last(saved) for saved in ctx.saved_tensors)
        out_grad = _channels_last(grad)
        images_grad = weight_grad = bias_grad = None
        if ctx.needs_input_grad[0]:
            images_grad = torch.zeros_like(images)
            _sparse_conv.images_grad(
                out_grad.numpy(), weight.numpy(), images_grad.numpy(), ctx.stride
            )
            images_grad = images_grad.permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            weight_grad = torch.empty_like(weight)
            _sparse_conv.weights_grad(
                images.numpy(), out_grad.numpy(), weight_grad.numpy(), ctx.stride
            )
            weight_grad = weight_grad.permute(0, 3, 1, 2)
        if ctx.needs_input_grad[2]:
            bias_grad = out_grad.sum((0, 1, 2))
        return images_grad, weight_grad, bias_grad, None


def _channels_last(x: Tensor) -> Tensor:
    """[B, C, H, W] -> contiguous [B, H, W, C], without a copy where it lies so already."""
    return x.detach().permute(0, 2, 3, 1).contiguous()
