import numpy as np
from numpy.typing import NDArray

def shrink(
    images: NDArray[np.uint8],  # [..., H, W], contiguous, likewise `small`
    small: NDArray[np.uint8],  # [..., h, w]
    row_indices: NDArray[np.int32],  # [taps, h]
    row_weights: NDArray[np.float32],
    column_indices: NDArray[np.int32],  # [taps, w]
    column_weights: NDArray[np.float32],
) -> None: ...
