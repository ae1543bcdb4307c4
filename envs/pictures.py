"""What `render()` gives, in whatever layout, as a picture [H, W, 3] of uint8."""

import numpy as np
from numpy.typing import NDArray

_FORMATS = "supported is an array [H, W], [H, W, 1], [H, W, 3], [H, W, 4], [1, H, W] or [3, H, W]"
_ROUNDING = 1e-3  # so far beyond 0..1 a float may be


def picture(rendered: object) -> NDArray[np.uint8]:
    """The picture in `rendered`, of a list of them the last. Transparency is dropped.

    Raises:
        ValueError: there is none in it; the text says why.
    """
    if isinstance(rendered, list | tuple) and rendered and isinstance(rendered[-1], np.ndarray):
        rendered = rendered[-1]  # of render_mode="rgb_array_list": those since it was last called
    try:
        array: NDArray[np.generic] = np.asarray(rendered)
    except (ValueError, TypeError) as error:  # ragged lists, tensors on a GPU
        raise ValueError(f"render() gives no array: {error}; {_FORMATS}") from error
    if array.dtype.kind not in "buif":
        raise ValueError(f"render() gives {rendered!r:.60}; {_FORMATS}")
    shape = list(array.shape)
    if array.ndim == 2:
        array = array[..., np.newaxis]
    elif array.ndim == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.size == 0:
        raise ValueError(f"render() gives {array.dtype}{shape}; {_FORMATS}")
    pixels = _bytes(array[..., :3])
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))  # grey has a channel for all three


def _bytes(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return np.asarray(array, np.uint8)
    kind = array.dtype.kind
    top = 255 if kind in "ui" else 1
    low, high = array.min(), array.max()
    slack = _ROUNDING if kind == "f" else 0
    if not (-slack <= low and high <= top + slack):  # nor if one of them is NaN
        raise ValueError(
            f"render() gives {array.dtype} from {low} to {high}; supported is 0..255 for whole "
            f"numbers and 0..1 for others: for 0..255 return picture.astype(np.uint8)"
        )
    pixels: NDArray[np.uint8] = np.rint(np.clip(array, 0, top) * (255 / top)).astype(np.uint8)
    return pixels
