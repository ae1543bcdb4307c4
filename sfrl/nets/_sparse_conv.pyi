import numpy as np
from numpy.typing import NDArray

def images_grad(
    out_grad: NDArray[np.float32],  # [B, H', W', O], contiguous, likewise the others
    weights: NDArray[np.float32],  # [O, K, K, C]
    grad: NDArray[np.float32],  # [B, H, W, C], zeros
    stride: int,
) -> None: ...
def weights_grad(
    images: NDArray[np.float32],  # [B, H, W, C]
    out_grad: NDArray[np.float32],  # [B, H', W', O]
    grad: NDArray[np.float32],  # [O, K, K, C]
    stride: int,
) -> None: ...
