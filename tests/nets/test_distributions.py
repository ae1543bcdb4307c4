import pytest
import torch
from torch.distributions import Categorical as Reference

from sfrl.nets.distributions import Categorical

SHAPES = [(1, 2), (64, 6), (5, 3, 18)]


def random_logits(*shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", SHAPES)
def test_log_prob_and_entropy_match_torch(shape: tuple[int, ...]) -> None:
    logits = random_logits(*shape)
    reference = Reference(logits=logits)
    actions = reference.sample()
    torch.testing.assert_close(Categorical(logits).log_prob(actions), reference.log_prob(actions))
    torch.testing.assert_close(Categorical(logits).entropy(), reference.entropy())


def test_gradients_match_torch() -> None:
    logits = random_logits(64, 6)
    actions = torch.arange(64) % 6
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    (Categorical(ours).log_prob(actions) + Categorical(ours).entropy()).sum().backward()
    reference = Reference(logits=theirs)
    (reference.log_prob(actions) + reference.entropy()).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_log_probs_serve_as_logits() -> None:
    logits = random_logits(8, 4)
    actions = torch.arange(8) % 4
    torch.testing.assert_close(
        Categorical(logits.log_softmax(-1)).log_prob(actions),
        Categorical(logits).log_prob(actions),
    )


def test_samples_follow_the_probabilities() -> None:
    """Chi-square with 5 degrees of freedom; 25.7 is its 99.99% quantile, and the seed is fixed."""
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0, -4.0, 0.5])
    num_samples = 200_000
    actions = Categorical(logits.expand(num_samples, 6)).sample(torch.Generator().manual_seed(3))
    observed = actions.bincount(minlength=6).double()
    expected = num_samples * logits.double().softmax(-1)
    assert ((observed - expected) ** 2 / expected).sum().item() < 25.7


def test_rows_are_sampled_independently() -> None:
    actions = Categorical(torch.zeros(2, 50_000, 2)).sample(torch.Generator().manual_seed(4))
    agreement = (actions[0] == actions[1]).float().mean().item()
    assert agreement == pytest.approx(0.5, abs=0.01)  # 4.5 standard deviations


def test_impossible_action_is_never_sampled() -> None:
    logits = torch.tensor([0.0, -torch.inf]).expand(10_000, 2)
    assert (Categorical(logits).sample(torch.Generator().manual_seed(5)) == 0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_sample_has_one_action_per_row_and_repeats_with_the_seed(shape: tuple[int, ...]) -> None:
    logits = random_logits(*shape)
    first, second = (Categorical(logits).sample(torch.Generator().manual_seed(6)) for _ in range(2))
    assert first.shape == shape[:-1]
    assert first.dtype == torch.int64
    assert torch.equal(first, second)
