import numpy as np
from numpy.typing import NDArray

class Changes:
    """How each image differs from the one before it."""

    def __init__(
        self,
        images: NDArray[np.float32],  # [B, H, W, C], contiguous, likewise all others
        filters: int,  # that will see them
    ) -> None: ...
    @staticmethod
    def of_blocks(
        images: NDArray[
            np.uint8
        ],  # [B, C/16, 4H, 4W], as blocks [B, H, W, C]; further pixels are left out
        filters: int,
    ) -> Changes: ...
    @property
    def shape(self) -> tuple[int, int, int, int]: ...  # B, H, W, C
    def forward(
        self,
        weights: NDArray[np.float32],  # [O, K, K, C]
        bias: NDArray[np.float32],  # [O]
        out: NDArray[np.float32],  # [B, H', W', O], behind the relu
        stride: int,
    ) -> None: ...
    def weights_grad(
        self,
        out_grad: NDArray[np.float32],  # [B, H', W', O]
        out: NDArray[np.float32],  # as `forward` made it
        grad: NDArray[np.float32],  # [O, K, K, C]
        bias_grad: NDArray[np.float32],  # [O]
        stride: int,
    ) -> None: ...

class Kept:
    """A convolution, with the last image of each environment and what was made of it."""

    def __init__(
        self,
        environments: int,
        weights: NDArray[np.float32],  # [O, K, K, C]; for their shape alone
        image: NDArray[np.float32],  # [H, W, C], likewise
        stride: int,
    ) -> None: ...
    @property
    def output_shape(self) -> tuple[int, int, int]: ...  # H', W', O
    @property
    def changes(self) -> int:
        """Numbers in which the images of the last `forward` differed from those before them."""
    def renew(self, weights: NDArray[np.float32]) -> None:
        """Compute with these; what was kept is forgotten."""
    def forward(
        self,
        images: NDArray[np.float32],  # [B, H, W, C]
        environments: NDArray[np.int32],  # [B], none twice
        out: NDArray[np.float32],  # [B, H', W', O], behind the relu
    ) -> bool:
        """False, with nothing done, if nothing is kept of one of the environments."""
    def keep(
        self,
        images: NDArray[np.float32],
        environments: NDArray[np.int32],
        sums: NDArray[np.float32],  # what weights and bias make of the images, before the relu
    ) -> None: ...

class KeptBlocks:
    """`Kept` of uint8 images, as blocks: see `Changes.of_blocks`."""

    def __init__(
        self,
        environments: int,
        weights: NDArray[np.float32],
        image: NDArray[np.uint8],  # [C/16, 4H, 4W]
        stride: int,
    ) -> None: ...
    @property
    def output_shape(self) -> tuple[int, int, int]: ...
    @property
    def changes(self) -> int: ...
    def renew(self, weights: NDArray[np.float32]) -> None: ...
    def forward(
        self,
        images: NDArray[np.uint8],  # [B, C/16, 4H, 4W]
        environments: NDArray[np.int32],
        out: NDArray[np.float32],
    ) -> bool: ...
    def keep(
        self,
        images: NDArray[np.uint8],
        environments: NDArray[np.int32],
        sums: NDArray[np.float32],
    ) -> None: ...

def images_grad(
    out_grad: NDArray[np.float32],  # [B, H', W', O]
    out: NDArray[np.float32],  # [B, H', W', O], behind the relu
    weights: NDArray[np.float32],  # [O, K, K, C]
    grad: NDArray[np.float32],  # [B, H, W, C]
    stride: int,
) -> None: ...
def weights_grad(
    images: NDArray[np.float32],  # [B, H, W, C]
    out_grad: NDArray[np.float32],  # [B, H', W', O]
    out: NDArray[np.float32],  # [B, H', W', O], behind the relu
    grad: NDArray[np.float32],  # [O, K, K, C]
    bias_grad: NDArray[np.float32],  # [O]
    stride: int,
) -> None: ...

class RowChanges:
    """How each row of a linear layer differs from the one before it."""

    def __init__(self, rows: NDArray[np.float32]) -> None: ...  # [B, K]

def linear_forward(
    changes: RowChanges,
    weights: NDArray[np.float32],  # [O, K]
    bias: NDArray[np.float32],  # [O]
    out: NDArray[np.float32],  # [B, O], behind the relu
) -> None: ...
def linear_weights_grad(
    changes: RowChanges,
    out_grad: NDArray[np.float32],  # [B, O]
    out: NDArray[np.float32],  # [B, O], as `linear_forward` made it
    grad: NDArray[np.float32],  # [O, K]
    bias_grad: NDArray[np.float32],  # [O]
) -> None: ...
def linear_rows_grad(
    out_grad: NDArray[np.float32],  # [B, O]
    out: NDArray[np.float32],  # [B, O], behind the relu
    weights: NDArray[np.float32],  # [O, K]
    grad: NDArray[np.float32],  # [B, K]
) -> None: ...
