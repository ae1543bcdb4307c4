"""The C++ extension (csrc/images.cpp); images.pixel_blocks is how Python uses it."""

import numpy as np
from numpy.typing import NDArray

def blocks_float32(images: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """images [B, C, H, W] -> out [B, H//4, W//4, 16*C]."""

def blocks_bfloat16(images: NDArray[np.uint8], out: NDArray[np.uint16]) -> None:
    """The same; `out` holds the bits."""
