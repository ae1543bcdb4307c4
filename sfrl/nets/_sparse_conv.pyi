import numpy as np
from numpy.typing import NDArray

def changes_forward(
    images: NDArray[np.float32],  # [B, H, W, C], contiguous, likewise the others
    weights: NDArray[np.float32],  # [O, K, K, C]
    bias: NDArray[np.float32],  # [O]
    out: NDArray[np.float32],  # [B, H', W', O]
    stride: int,
) -> None: ...
def changes_weights_grad(
    images: NDArray[np.float32],  # [B, H, W, C]
    out_grad: NDArray[np.float32],  # [B, H', W', O]
    grad: NDArray[np.float32],  # [O, K, K, C]
    stride: int,
) -> None: ...
def images_grad(
    out_grad: NDArray[np.float32],  # [B, H', W', O]
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
