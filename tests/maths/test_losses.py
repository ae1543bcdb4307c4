import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sfrl.maths.losses import (
    explained_variance,
    filtered_policy_loss,
    masked_mean,
    normalize_advantages,
    ppo_policy_loss,
    value_loss,
    vtrace_policy_loss,
    weight_statistics,
)

PPO_CLIP = 0.2
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "ppo": lambda x, behavior, weights, mask: ppo_policy_loss(x, behavior, weights, mask, PPO_CLIP),
    "filter": lambda x, behavior, weights, mask: filtered_policy_loss(
        x, behavior, weights, mask, 0.05
    ),
    "vtrace": lambda x, rhos, weights, mask: vtrace_policy_loss(x, rhos, weights, mask),
    "value": lambda x, _, targets, mask: value_loss(x, targets, mask),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def random_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, behavior log-probabilities, advantages or targets: [T, B] float64; and a mask.

    The ratios exp(x - behavior) lie below, within and above the clip.
    """
    generator = torch.Generator().manual_seed(0)
    x, noise, weights = torch.randn(3, 8, 5, dtype=torch.float64, generator=generator)
    mask = torch.rand(8, 5, generator=generator) < 0.7
    return x, x + 0.3 * noise, weights, mask


@each_loss
def test_gradient_equals_finite_differences(loss: Callable[..., Tensor]) -> None:
    x, behavior, weights, mask = random_inputs()
    assert torch.autograd.gradcheck(
        lambda x: loss(x, behavior, weights, mask), x.requires_grad_(), raise_exception=True
    )


def test_ppo_gradient_is_the_ratio_gradient_inside_the_clip_and_zero_beyond() -> None:
    x, behavior, advantages, mask = random_inputs()
    x.requires_grad_()
    ppo_policy_loss(x, behavior, advantages, mask, PPO_CLIP).backward()
    ratios = (x.detach() - behavior).exp()
    beyond = ((ratios > 1 + PPO_CLIP) & (advantages > 0)) | (
        (ratios < 1 - PPO_CLIP) & (advantages < 0)
    )
    assert (beyond & mask).any()
    assert (~beyond & mask & ((ratios - 1).abs() > PPO_CLIP)).any()
    expected = torch.where(mask & ~beyond, -ratios * advantages / mask.sum(), 0.0)
    torch.testing.assert_close(x.grad, expected)


def test_ppo_loss_is_the_clipped_surrogate() -> None:
    ratios = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.1]])
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0, 2.0]])
    objective = (1.2 - 1.5 + 0.5 - 0.8 + 2.2) / 5
    loss = ppo_policy_loss(
        ratios.log(), torch.zeros(1, 5), advantages, torch.ones(1, 5).bool(), PPO_CLIP
    )
    assert loss.item() == pytest.approx(-objective)


@pytest.mark.parametrize(("most_variation", "is_filtered"), [(0.21, False), (0.19, True)])
def test_filter_drops_what_pulls_away_while_the_batch_is_too_far(most_variation, is_filtered):
    ratios = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.0]])  # the total variation is 0.2
    x = ratios.log().requires_grad_()
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0, 2.0]])
    ones = torch.ones(1, 5).bool()
    filtered_policy_loss(x, torch.zeros(1, 5), advantages, ones, most_variation).backward()
    kept = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0]]) if is_filtered else 1.0
    torch.testing.assert_close(x.grad, -ratios * advantages * kept / 5)


def test_vtrace_and_value_gradients_equal_their_formulas() -> None:
    x, rhos, weights, mask = random_inputs()
    x.requires_grad_()
    (policy_gradient,) = torch.autograd.grad(vtrace_policy_loss(x, rhos, weights, mask), x)
    expected = torch.where(mask, -rhos * weights / mask.sum(), 0.0)
    torch.testing.assert_close(policy_gradient, expected)
    (value_gradient,) = torch.autograd.grad(value_loss(x, weights, mask), x)
    expected = torch.where(mask, (x.detach() - weights) / mask.sum(), 0.0)
    torch.testing.assert_close(value_gradient, expected)


@each_loss
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_masked_rows_change_no_loss_and_get_zero_gradient(
    loss: Callable[..., Tensor], poison: float
) -> None:
    x, behavior, weights, mask = random_inputs()
    clean = loss(x, behavior, weights, mask)
    x, behavior, weights = (a.masked_fill(~mask, poison) for a in (x, behavior, weights))
    x.requires_grad_()
    poisoned = loss(x, behavior, weights, mask)
    poisoned.backward()
    assert poisoned.item() == clean.item()
    assert x.grad is not None
    assert (x.grad[~mask] == 0).all()
    assert (x.grad[mask].isfinite()).all()


@each_loss
def test_empty_mask_gives_zero_loss_and_zero_gradient(loss: Callable[..., Tensor]) -> None:
    x, behavior, weights, mask = random_inputs()
    x.requires_grad_()
    result = loss(x, behavior, weights, torch.zeros_like(mask))
    result.backward()
    assert result.item() == 0.0
    assert x.grad is not None
    assert (x.grad == 0).all()


@each_loss
def test_only_the_network_output_gets_a_gradient(loss: Callable[..., Tensor]) -> None:
    x, behavior, weights, mask = random_inputs()
    inputs = [a.requires_grad_() for a in (x, behavior, weights)]
    loss(*inputs, mask).backward()
    assert x.grad is not None
    assert behavior.grad is None
    assert weights.grad is None


@each_loss
def test_broadcastable_shapes_raise(loss: Callable[..., Tensor]) -> None:
    x, behavior, weights, mask = random_inputs()
    with pytest.raises(ValueError, match="shapes must be equal"):
        loss(x, behavior, weights, mask[:, :1])
    with pytest.raises(ValueError, match="shapes must be equal"):
        loss(x, behavior, weights[:1], mask)


def test_normalized_advantages_have_mean_zero_and_deviation_one_over_the_mask() -> None:
    _, _, advantages, mask = random_inputs()
    expected = advantages[mask]
    expected = (expected - expected.mean()) / expected.std(correction=0)
    shifted = (7 + 3 * advantages).masked_fill(~mask, math.nan)
    normalized, deviation = normalize_advantages(shifted, mask)
    torch.testing.assert_close(deviation, 3 * advantages[mask].std(correction=0))
    torch.testing.assert_close(normalized[mask], expected)
    assert (normalized[~mask] == 0).all()


def test_a_deviation_below_the_least_counts_as_the_least() -> None:
    mask = torch.ones(2, 2, dtype=torch.bool)
    advantages = torch.tensor([[1.0, 3.0], [1.0, 3.0]])
    for least, size in ((0.5, 1.0), (4.0, 0.25)):
        normalized, deviation = normalize_advantages(advantages, mask, least)
        assert deviation == 1
        torch.testing.assert_close(normalized, size * torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]))


def test_normalized_advantages_of_empty_or_constant_input_are_zero() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert (normalize_advantages(torch.full((2, 3), 4.0), mask)[0] == 0).all()
    assert (normalize_advantages(torch.randn(2, 3), ~mask)[0] == 0).all()


def test_masked_mean_counts_only_the_mask() -> None:
    x = torch.tensor([[1.0, 2.0, 6.0]])
    assert masked_mean(x, torch.tensor([[True, True, False]])).item() == 1.5


def test_explained_variance_is_one_if_perfect_zero_if_constant_and_ignores_masked_rows() -> None:
    _, _, targets, mask = random_inputs()
    targets = targets.masked_fill(~mask, math.nan)
    assert explained_variance(targets + 5, targets, mask).item() == pytest.approx(1.0)
    assert explained_variance(torch.zeros_like(targets), targets, mask).item() == 0.0
    assert explained_variance(-targets, targets, mask).item() == pytest.approx(-3.0)
    assert explained_variance(targets, torch.ones_like(targets), mask).item() == 0.0
    assert explained_variance(targets, targets, torch.zeros_like(mask)).item() == 0.0


def test_weights_vary_and_count_as_fewer_rows_whatever_their_scale_and_masked_rows() -> None:
    weights = torch.tensor([[1.0, 2.0, 3.0], [4.0, torch.inf, torch.nan]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    expected = (1 + 2 + 3 + 4) ** 2 / (4 * (1 + 4 + 9 + 16))
    variance, size = weight_statistics(weights.log(), mask)
    assert variance.item() == pytest.approx(1.25)
    assert size.item() == pytest.approx(expected)
    for factor in (-60.0, 60.0):  # the squares of the weights would be 0, or infinite
        _, size = weight_statistics(weights.log() + factor, mask)
        assert size.item() == pytest.approx(expected, rel=1e-4)


def test_equal_weights_count_as_all_rows_and_a_single_one_as_one() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    equal = weight_statistics(torch.zeros(2, 3), mask)
    assert [value.item() for value in equal] == pytest.approx([0.0, 1.0])
    nothing = weight_statistics(torch.zeros(2, 3), torch.zeros_like(mask))
    assert [value.item() for value in nothing] == [0.0, 0.0]
    one = torch.full((2, 3), -torch.inf)
    one[0, 0] = 0.0
    assert [value.item() for value in weight_statistics(one, mask)] == pytest.approx(
        [3 / 16, 1 / 4]
    )


def test_the_epsilon_correction_bounds_the_gradient_of_what_is_next_to_impossible() -> None:
    """d log(p + e) / d log p = p / (p + e), by which each row's weight is multiplied."""
    log_probs = torch.tensor([[0.5, 1e-6, 1e-12]]).log().requires_grad_()
    ones, mask = torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool)
    (gradient,) = torch.autograd.grad(
        vtrace_policy_loss(log_probs, ones, ones, mask, least_probability=1e-6), log_probs
    )
    expected = torch.tensor([[1.0, 0.5, 1e-6]])
    torch.testing.assert_close(-3 * gradient, expected, rtol=1e-4, atol=1e-9)
    hidden = torch.tensor([[0.5, torch.inf, torch.nan]]).requires_grad_()
    loss = vtrace_policy_loss(hidden, ones, ones, mask.clone().fill_(False), 1e-6)
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert not gradient.any()
