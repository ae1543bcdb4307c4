"""What environments show, in all layouts, becomes pictures or one clear error."""

import numpy as np
import pytest
import torch

from sfrl.envs.pictures import picture

RED = np.full((20, 30, 3), (255, 0, 0), np.uint8)
GREY = np.full((20, 30), 51, np.uint8)


@pytest.mark.parametrize(
    ("rendered", "expected"),
    [
        (RED, RED),
        (np.dstack([RED, GREY]), RED),
        (RED.tolist(), RED),
        (torch.from_numpy(RED), RED),
        (RED.transpose(2, 0, 1), RED),
        (RED.astype(np.int64), RED),
        (RED.astype(bool), RED),
        (RED / 255, RED),
        ((RED / 255).astype(np.float16) * 1.0005, RED),
        ([GREY, RED], RED),
        (GREY, GREY),
        (GREY[..., np.newaxis], GREY),
        (GREY[np.newaxis], GREY),
        (GREY / 255, GREY),
        (np.full((3, 3, 4), (1, 2, 3, 4), np.uint8), np.full((3, 3, 3), (1, 2, 3))),
    ],
)
def test_every_layout_becomes_the_same_picture(rendered, expected):
    result = picture(rendered)
    assert result.dtype == np.uint8
    expected = expected if expected.ndim == 3 else np.dstack([expected] * 3)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("rendered", "text"),
    [
        (None, r"render\(\) gives None; supported is an array \[H, W\]"),
        ("+--+\n|  |", "gives '.*; supported is"),
        ([], r"gives float64\[0\]; supported"),
        (object(), "gives <object object"),
        ([[1, 2], [3]], "gives no array: .*; supported is"),
        (np.zeros((2, 20, 30, 3), np.uint8), r"gives uint8\[2, 20, 30, 3\]; supported"),
        (np.zeros((4, 84, 84), np.uint8), r"gives uint8\[4, 84, 84\]"),
        (np.zeros((0, 30, 3), np.uint8), r"gives uint8\[0, 30, 3\]"),
        (RED + 1.0, r"float64 from 1.0 to 256.0; supported is 0..255 for whole numbers"),
        (RED.astype(np.float32), r"float32 from 0.0 to 255.0; .*picture.astype\(np.uint8\)"),
        (RED.astype(np.int64) * 2, "int64 from 0 to 510"),
        (-GREY.astype(np.int16), "int16 from -51 to -51"),
        (GREY * np.nan, "float64 from nan to nan"),
    ],
)
def test_what_is_no_picture_is_told(rendered, text):
    with pytest.raises(ValueError, match=text):
        picture(rendered)
