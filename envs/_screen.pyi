from typing import Any

import numpy as np
from numpy.typing import NDArray

class Screen:
    def __init__(
        self,
        column_indices: NDArray[np.int32],  # [num_taps, 84], likewise the other three
        column_weights: NDArray[np.float32],
        row_indices: NDArray[np.int32],
        row_weights: NDArray[np.float32],
        height: int,
        width: int,
    ) -> None: ...
    def learn_colors(self, frame: NDArray[np.uint8], grey: NDArray[np.uint8]) -> None: ...
    def set_frame(self, which: int, frame: NDArray[np.uint8]) -> bool: ...
    def draw(self, picture: NDArray[Any]) -> None: ...
