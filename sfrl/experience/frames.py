"""Observations that are stacks of the last frames: each frame is kept once, and stacked again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

NO_FRAME = 255  # in place of a distance: zeros


def newest_of(stacks: NDArray[Any], frames: int) -> NDArray[Any]:
    """[..., N, frames * f, *rest] -> the last f of each, which is what a row adds."""
    return stacks[:, :, -(stacks.shape[2] // frames) :]


def apart(stack: NDArray[Any], frames: int) -> NDArray[Any]:
    """[N, frames * f, *rest] -> [frames, N, f, *rest]."""
    return np.moveaxis(stack.reshape(len(stack), frames, -1, *stack.shape[2:]), 1, 0)


def look_back(stacks: NDArray[Any], frames: int, first: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """How many rows back each older frame of a stack was the newest one; NO_FRAME where it is 0s.

    Args:
        stacks: [T+1, N, frames * f, *rest], of rows that followed one another.
        first: [N, frames - 1], those of row 0, the oldest frame first.

    Returns:
        [T+1, N, frames - 1].

    Raises:
        ValueError: the older frames of a row are neither those of the row before it nor zeros or
            copies of the newest, as where an episode begins.
    """
    num_rows, num_envs = stacks.shape[:2]
    flat = stacks.reshape(num_rows, num_envs, frames, -1)
    if flat.dtype == np.uint8 and flat.shape[-1] % 8 == 0:
        flat = flat.view(np.uint64)  # eight pixels are compared at a time
    goes_on = (flat[1:, :, :-1] == flat[:-1, :, 1:]).all(axis=(2, 3))  # [T, N]
    found = np.empty((num_rows, num_envs, frames - 1), np.uint8)
    found[0] = first
    moved = np.zeros((num_envs, frames), np.uint8)  # the last one, the newest frame, is 0 back
    for t in range(1, num_rows):
        moved[:, :-1] = found[t - 1]
        found[t] = np.where(moved[:, 1:] == NO_FRAME, NO_FRAME, moved[:, 1:] + 1)
        for env in np.flatnonzero(~goes_on[t - 1]).tolist():
            found[t, env] = _at_start(flat[t, env])
    return found


def _at_start(stack: NDArray[Any]) -> NDArray[np.uint8]:
    """Of a row [frames, F] that does not go on from the one before it."""
    older, last = stack[:-1], stack[-1]
    is_empty = ~older.any(axis=1)
    if not (is_empty | (older == last).all(axis=1)).all():
        raise ValueError("the frames of a stack are neither the last ones nor those of a start")
    return np.where(is_empty, NO_FRAME, 0).astype(np.uint8)
