"""Images -> blocks of pixels, the first input of NatureCNN."""

from __future__ import annotations

import torch
from torch import Tensor

try:
    from sfrl.nets import _images
except ImportError:  # it could not be built
    HAS_EXTENSION = False
else:
    HAS_EXTENSION = True

BLOCK = 4


def pixel_blocks(images: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, C, H, W] -> `dtype` [B, 16*C, H//4, W//4] in channels_last: pixels of 4x4 blocks.

    Channels are ordered (c, row in block, column in block). Rows and columns that fill no block are
    dropped, as by a convolution with stride 4. Of uint8 on a CPU it is one pass in C++, where the
    extension could be built, but not in a network that is exported.
    """
    batch_size, channels = images.shape[:2]
    height, width = images.shape[2] // BLOCK, images.shape[3] // BLOCK
    is_ours = images.dtype == torch.uint8 and dtype in (torch.float32, torch.bfloat16)
    is_here = HAS_EXTENSION and images.device.type == "cpu"
    if is_here and is_ours and not torch.compiler.is_exporting():  # a graph has torch's operations
        shape = (batch_size, height, width, BLOCK * BLOCK * channels)
        pixels, blocks = images.contiguous().numpy(), torch.empty(shape, dtype=dtype)
        if dtype == torch.bfloat16:
            _images.blocks_bfloat16(pixels, blocks.view(torch.uint16).numpy())
        else:
            _images.blocks_float32(pixels, blocks.numpy())
        return blocks.permute(0, 3, 1, 2)
    values = images.to(dtype)[..., : BLOCK * height, : BLOCK * width]
    blocks = values.reshape(batch_size, channels, height, BLOCK, width, BLOCK)
    blocks = blocks.permute(0, 2, 4, 1, 3, 5).reshape(batch_size, height, width, -1)
    return blocks.permute(0, 3, 1, 2)
