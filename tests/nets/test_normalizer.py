"""Running normalization of observations: what numpy says of all rows that count."""

import numpy as np
import torch

from sfrl.nets.normalizer import RunningNorm


def test_mean_and_variance_are_those_of_all_rows_that_count() -> None:
    rng = np.random.default_rng(0)
    norm, seen = RunningNorm(3), []
    for _ in range(5):
        rows = rng.normal([1, -50, 0], [0.1, 20, 3], size=(7, 4, 3)).astype(np.float32)
        mask = rng.random((7, 4)) < 0.6
        norm.update(torch.from_numpy(rows), torch.from_numpy(mask))
        seen.append(rows[mask])
    rows = np.concatenate(seen)
    np.testing.assert_allclose(norm.mean, rows.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(norm.variance, rows.var(0), rtol=1e-3)
    expected = ((rows - rows.mean(0)) / rows.std(0)).clip(-norm.LIMIT, norm.LIMIT)
    np.testing.assert_allclose(norm(torch.from_numpy(rows)), expected, rtol=1e-3, atol=1e-3)


def test_no_rows_change_nothing() -> None:
    norm = RunningNorm(2)
    norm.update(torch.randn(5, 3, 2), torch.ones(5, 3, dtype=torch.bool))
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    norm.update(torch.randn(5, 3, 2), torch.zeros(5, 3, dtype=torch.bool))
    assert all(torch.equal(before[name], tensor) for name, tensor in norm.state_dict().items())


def test_what_was_seen_long_ago_is_forgotten() -> None:
    norm = RunningNorm(1)
    norm.MEMORY = 100
    everything = torch.ones(50, dtype=torch.bool)
    for mean in (0.0, 1000.0):
        for _ in range(40):
            norm.update(mean + torch.randn(50, 1), everything)
    assert norm.count == 100
    assert abs(norm.mean.item() - 1000) < 1
