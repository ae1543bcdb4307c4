import pytest
import torch
from torch.distributions import Categorical as Reference

from sfrl.nets.distributions import Categorical, EpsilonGreedy

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


EPSILONS = torch.tensor([0.0, 0.1, 0.5, 1.0])


def epsilon_greedy(num_rows: int = 1) -> tuple[EpsilonGreedy, torch.Tensor]:
    """Over 5 actions for each of 4 epsilons, and the probabilities [4, 5]."""
    values = random_logits(4, 5)
    probs = EPSILONS[:, None] / 5 + torch.zeros(4, 5)
    probs[torch.arange(4), values.argmax(1)] += 1 - EPSILONS
    return EpsilonGreedy(values.expand(num_rows, 4, 5), EPSILONS.expand(num_rows, 4)), probs


def test_epsilon_greedy_has_the_probabilities_it_is_named_after() -> None:
    policy, probs = epsilon_greedy()
    reference = Reference(probs=probs)
    for action in range(5):
        actions = torch.full((1, 4), action)
        expected = probs[:, action].log()
        torch.testing.assert_close(policy.log_prob(actions)[0], expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(policy.entropy()[0], reference.entropy(), atol=1e-6, rtol=1e-5)
    assert policy.mode()[0, :3].tolist() == probs[:3].argmax(1).tolist()


def test_epsilon_greedy_samples_follow_the_probabilities() -> None:
    policy, probs = epsilon_greedy(num_rows=100_000)
    actions = policy.sample(torch.Generator().manual_seed(7))
    frequencies = torch.stack([(actions == a).float().mean(0) for a in range(5)], dim=1)
    deviations = (probs * (1 - probs) / 100_000).sqrt()
    assert ((frequencies - probs).abs() <= 4.5 * deviations).all()
    assert (actions[:, 0] == policy.mode()[:, 0]).all(), "epsilon 0 never explores"
