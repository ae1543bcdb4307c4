"""Images made smaller: a pixel is the mean of an area. In C++ or in NumPy, to the same bytes.

Areas are those of OpenCV's INTER_AREA, whose pixels are the same or one step off. Exported networks
have the order of float32 operations that is here, and so the same bytes (sfrl/graph.py).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from sfrl.envs import _areas
except ImportError:  # it could not be built
    HAS_EXTENSION = False
else:
    HAS_EXTENSION = True

Taps = tuple[NDArray[np.int32], NDArray[np.float32]]  # indices and weights, [taps, size] each


def area_taps(length: int, size: int) -> Taps:
    """Which of `length` pixels make each of `size`, and with which weights.

    A pixel covers length / size of the old ones, the outer two in part. Edges closer than 0.001 to
    a whole number count as whole, as in OpenCV.
    """
    scale = length / size
    taps: list[list[tuple[int, float]]] = []
    for i in range(size):
        start, end = i * scale, i * scale + scale
        width = min(scale, length - start)
        last = min(math.floor(end), length - 1)
        first = min(math.ceil(start), last)
        covered = [(pixel, 1.0 / width) for pixel in range(first, last)]
        if first - start > 1e-3:
            covered.insert(0, (first - 1, (first - start) / width))
        if end - last > 1e-3:
            covered.append((last, min(end - last, 1.0, width) / width))
        taps.append(covered)
    num_taps = max(map(len, taps))
    table = np.array([covered + [(0, 0.0)] * (num_taps - len(covered)) for covered in taps])
    indices, weights = np.moveaxis(table, (0, 1, 2), (2, 1, 0))
    return (
        np.ascontiguousarray(indices.astype(np.int32)),
        np.ascontiguousarray(weights.astype(np.float32)),
    )


def shrink(images: NDArray[Any], rows: Taps, columns: Taps) -> NDArray[Any]:
    """[..., H, W] -> [..., h, w]: rows first, then columns. Numbers of uint8 are rounded."""
    small = np.empty((*images.shape[:-2], rows[0].shape[1], columns[0].shape[1]), images.dtype)
    if HAS_EXTENSION and images.dtype == np.uint8:
        _areas.shrink(images, small, *rows, *columns)
    else:
        _shrink(images, small, rows, columns)
    return small


def _shrink(images: NDArray[Any], small: NDArray[Any], rows: Taps, columns: Taps) -> None:
    lines: Any = sum(images.take(i, -2) * w[:, np.newaxis] for i, w in zip(*rows, strict=True))
    means: Any = sum(lines.take(i, -1) * w for i, w in zip(*columns, strict=True))
    small[...] = np.rint(means) if small.dtype == np.uint8 else means
