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
    norm.update(torch.full((5, 3, 2), torch.nan), torch.zeros(5, 3, dtype=torch.bool))
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


def test_a_constant_is_0_however_large() -> None:
    norm, constants = RunningNorm(4), torch.tensor([0.0, 1000.3, 5000.7, -123456.7])
    for _ in range(12):
        norm.update(constants.expand(33, 16, 4), torch.rand(33, 16) < 0.97)
        assert norm(constants).abs().max() < 0.2


def test_a_glitch_is_not_all_that_counts() -> None:
    norm = RunningNorm(2)
    everything = torch.ones(1000, dtype=torch.bool)
    norm.update(torch.randn(1000, 2), everything)
    for size in (1e3, 3e19, 3.4e38):
        rows = torch.randn(1000, 2)
        rows[7, 0] = size
        norm.update(rows, everything)
        assert 0.5 < norm.variance[0] < 50
        assert torch.isfinite(norm(rows)).all()
        assert norm(rows)[7, 0] == norm.LIMIT
    norm = RunningNorm(1)  # and as the first of all
    norm.update(torch.tensor([[1.0], [3e38]]), torch.ones(2, dtype=torch.bool))
    assert torch.isfinite(norm.variance).all()


def test_a_number_that_begins_to_change_is_followed() -> None:
    norm = RunningNorm(1)
    everything = torch.ones(100, dtype=torch.bool)
    for _ in range(10):
        norm.update(torch.full((100, 1), 3.0), everything)
    for _ in range(10):
        norm.update(3 + torch.randn(100, 1), everything)
    assert 0.3 < norm.variance < 1
