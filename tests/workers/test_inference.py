"""How what a GPU has acted crosses to the host: all fields in one row of bytes."""

import numpy as np
import torch

from sfrl.settings.config import RowField
from sfrl.workers.inference import packed, unpacked

ACTED = {
    "masks": RowField("bool", (3,)),
    "actions": RowField("int64"),
    "torques": RowField("float32", (2,)),
}


def test_a_field_gets_the_dtype_that_was_declared():
    """Bytes of another one would be read as other numbers."""
    acted = {"actions": RowField("int64")}
    results = unpacked(packed({"actions": torch.arange(5, dtype=torch.int32)}, acted), acted, 5)
    assert results["actions"].tolist() == list(range(5))


def test_what_is_unpacked_is_what_was_packed():
    fields = {
        "masks": torch.rand(5, 3) > 0.5,
        "actions": torch.arange(5) * 2**40,
        "torques": torch.randn(5, 2),
    }
    results = unpacked(packed(fields, ACTED), ACTED, 5)
    assert results.keys() == fields.keys()
    for name, values in fields.items():
        np.testing.assert_array_equal(results[name], values.numpy())
        assert results[name].dtype == ACTED[name].dtype
