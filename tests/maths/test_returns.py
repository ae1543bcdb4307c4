"""n-step returns, against a slow transcription of their definition."""

import pytest
import torch

from sfrl.maths.returns import n_step_returns

T, B = 7, 50


def by_definition(rewards, discounts, values, valid, t):
    """G_t of one column: rewards forward from t, until the episode or the trajectory ends."""
    total, weight = 0.0, 1.0
    for step in range(t, len(rewards)):
        if not valid[step]:
            return total + weight * values[step]
        total += weight * rewards[step]
        weight *= discounts[step]
    return total + weight * values[-1]


def test_returns_are_those_of_the_definition():
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(T, B, generator=generator)
    values = torch.randn(T + 1, B, generator=generator)
    discounts = 0.9 * (torch.rand(T, B, generator=generator) > 0.2).float()
    valid = torch.rand(T, B, generator=generator) > 0.2
    returns = n_step_returns(rewards, discounts, values, valid)
    for t in range(T):
        for b in range(B):
            columns = (x[:, b].tolist() for x in (rewards, discounts, values, valid))
            assert returns[t, b].item() == pytest.approx(by_definition(*columns, t), abs=1e-5)


def test_what_is_not_valid_may_hold_anything():
    rewards, values = torch.ones(3, 1), torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    valid = torch.tensor([[True], [False], [True]])
    rewards[1] = torch.nan
    returns = n_step_returns(rewards, torch.full((3, 1), 0.5), values, valid)
    assert returns.flatten().tolist() == [1 + 0.5 * 2, 2, 1 + 0.5 * 4]


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"rewards \[3, 2\].*\[T\+1, B\]"):
        n_step_returns(
            torch.zeros(3, 2), torch.zeros(3, 1), torch.zeros(4, 2), torch.ones(3, 2).bool()
        )
