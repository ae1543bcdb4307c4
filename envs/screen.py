"""What an agent sees of an Atari screen: grey, max-pooled, 84x84. Any of it in C++ or in NumPy.

The resize is OpenCV's INTER_AREA (what Gymnasium and ALE use), in the same order of float32
operations, so that all of them give the same bytes.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sfrl.envs.areas import area_taps

try:
    from sfrl.envs._screen import Screen as _CppScreen
except ImportError:  # it could not be built
    HAS_EXTENSION = False
else:
    HAS_EXTENSION = True

SIZE = 84

Frame = NDArray[np.uint8]  # [height, width] palette indices, as ALE's getScreen gives them


class Screen(Protocol):
    """The screen of one game; it may keep what does not change from picture to picture."""

    def learn_colors(self, frame: Frame, grey: NDArray[np.uint8]) -> None:
        """Learn the palette from a frame in both forms, [height, width] each."""

    def set_frame(self, which: int, frame: Frame) -> bool:
        """Frame 0 or 1 of the two that are pooled.

        Returns:
            Whether all of its colors are known; if not, it must be set again.
        """

    def draw(self, picture: NDArray[np.uint8]) -> None:
        """The brighter of the two frames, pixel by pixel, resized into `picture` [84, 84]."""


class NumpyScreen:
    """The same as the C++ one, without memory of the picture before, and much slower."""

    def __init__(
        self,
        column_indices: NDArray[np.int32],
        column_weights: NDArray[np.float32],
        row_indices: NDArray[np.int32],
        row_weights: NDArray[np.float32],
        height: int,
        width: int,
    ) -> None:
        self._columns = list(zip(column_indices, column_weights, strict=True))
        self._rows = list(zip(row_indices, row_weights, strict=True))
        self._grey_of = np.full(256, -1, np.int16)
        self._frames = np.zeros((2, height, width), np.int16)  # grey

    def learn_colors(self, frame: Frame, grey: NDArray[np.uint8]) -> None:
        self._grey_of[frame] = grey

    def set_frame(self, which: int, frame: Frame) -> bool:
        self._frames[which] = self._grey_of[frame]
        return bool(self._frames[which].min() >= 0)

    def draw(self, picture: NDArray[np.uint8]) -> None:
        pooled = self._frames.max(axis=0).astype(np.float32)
        narrow = sum(pooled[:, indices] * weights for indices, weights in self._columns)
        small = sum(narrow[indices] * weights[:, None] for indices, weights in self._rows)
        np.rint(small, out=picture, casting="unsafe")


def make_screen(height: int, width: int) -> Screen:
    """For frames of [height, width]."""
    taps = (*area_taps(width, SIZE), *area_taps(height, SIZE))
    return (_CppScreen if HAS_EXTENSION else NumpyScreen)(*taps, height, width)
