import math

import pytest
import torch
from torch import distributions
from torch.distributions import Categorical as Reference

from sfrl.envs import ActionSpec
from sfrl.nets.distributions import (
    Categorical,
    Choices,
    Distribution,
    EpsilonGreedy,
    Gaussian,
    Joint,
    SquashedGaussian,
    make_distribution,
)

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


def test_epsilon_greedy_explores_among_the_allowed_alone() -> None:
    values = torch.tensor([9.0, 1.0, 2.0, 0.0])  # the best one is forbidden
    mask = torch.tensor([False, True, True, True])
    policy = EpsilonGreedy(
        values.expand(60_000, 4), torch.full((60_000,), 0.6), mask.expand(60_000, 4)
    )
    frequencies = policy.sample(torch.Generator().manual_seed(8)).bincount(minlength=4) / 60_000
    torch.testing.assert_close(frequencies, torch.tensor([0, 0.2, 0.6, 0.2]), atol=0.01, rtol=0)
    assert frequencies[0] == 0
    one = EpsilonGreedy(values.expand(4, 4), torch.full((4,), 0.6), mask.expand(4, 4))
    probs = one.log_prob(torch.arange(4)).exp()
    torch.testing.assert_close(probs, torch.tensor([0, 0.2, 0.6, 0.2]))
    torch.testing.assert_close(one.entropy(), Reference(probs=probs).entropy().expand(4))
    assert (one.mode() == 2).all()


def random_mask(*shape: int) -> torch.Tensor:
    """Half are allowed, and the first always."""
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(9)) < 0.5
    mask[..., 0] = True
    return mask


def assert_gradients_match(
    ours: list[torch.Tensor], theirs: list[torch.Tensor], of: list[torch.Tensor]
) -> None:
    """Of each result in `ours`, weighted by row, to all of `of`, as of its pair in `theirs`."""
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-5)
        weights = torch.linspace(-1, 1, mine.numel()).view(mine.shape)
        gradients, expected = (
            torch.autograd.grad(
                (result * weights).sum(), of, retain_graph=True, materialize_grads=True
            )
            for result in (mine, reference)
        )
        torch.testing.assert_close(gradients, expected, atol=1e-5, rtol=1e-5)


def test_masked_categorical_is_the_one_over_what_is_allowed() -> None:
    logits, mask = random_logits(64, 6).requires_grad_(), random_mask(64, 6)
    policy = Categorical(logits, mask)
    actions = policy.sample(torch.Generator().manual_seed(10))
    assert mask.gather(1, actions[:, None]).all()
    assert mask.gather(1, policy.mode()[:, None]).all()
    rows = [Reference(logits=logits[i][mask[i]]) for i in range(64)]
    places = [int(mask[i, : actions[i]].sum()) for i in range(64)]  # among the allowed
    assert_gradients_match(
        [policy.log_prob(actions), policy.entropy()],
        [
            torch.stack([r.log_prob(torch.tensor(p)) for r, p in zip(rows, places, strict=True)]),
            torch.stack([r.entropy() for r in rows]),
        ],
        [logits],
    )


@pytest.mark.parametrize("allowed", [[], [2], [0, 2, 4]])
def test_masks_make_no_nan(allowed: list[int]) -> None:
    """Of one choice of 5, and of two of 3 and 2: none is allowed, none of the second, some."""
    logits = torch.tensor([300.0, -300.0, 0.0, 80.0, 0.0]).requires_grad_()
    mask = torch.isin(torch.arange(5), torch.tensor(allowed))
    for policy in (Categorical(logits, mask), Choices(logits, (3, 2), mask)):
        action = policy.sample(torch.Generator().manual_seed(11))
        assert (action < (5 if action.dim() == 0 else torch.tensor([3, 2]))).all()
        for result in (policy.log_prob(action), policy.entropy()):
            [gradient] = torch.autograd.grad(result, logits, retain_graph=True)
            assert result.isfinite()
            assert gradient.isfinite().all()
    greedy = EpsilonGreedy(logits.detach(), torch.tensor(0.5), mask)
    assert greedy.entropy().isfinite()
    many = Choices(logits.detach().expand(1000, 5), (3, 2), mask.expand(1000, 5))
    actions = many.sample(torch.Generator().manual_seed(11))
    assert (actions < torch.tensor([3, 2])).all(), "padding is never chosen"
    if not allowed:
        assert (actions == 0).all()


SIZES = [(3, 3, 2), (11,) * 5, (2, 7, 1), (4,)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("masked", [False, True])
def test_choices_are_one_categorical_each(sizes: tuple[int, ...], masked: bool) -> None:
    logits = random_logits(3, 20, sum(sizes)).requires_grad_()
    masks = [random_mask(3, 20, size) for size in sizes]
    policy = Choices(logits, sizes, torch.cat(masks, dim=-1) if masked else None)
    each = [
        Reference(logits=part.masked_fill(~mask, -1e20) if masked else part)
        for part, mask in zip(logits.split(sizes, dim=-1), masks, strict=True)
    ]
    actions = policy.sample(torch.Generator().manual_seed(12))
    assert actions.shape == (3, 20, len(sizes))
    assert actions.dtype == torch.int64
    if masked:
        for k, mask in enumerate(masks):
            assert mask.gather(-1, actions[..., k : k + 1]).all()
    assert_gradients_match(
        [policy.log_prob(actions), policy.entropy()],
        [
            torch.stack([one.log_prob(actions[..., k]) for k, one in enumerate(each)]).sum(0),
            torch.stack([one.entropy() for one in each]).sum(0),
        ],
        [logits],
    )
    modes = torch.stack([one.probs.argmax(-1) for one in each], dim=-1)
    assert torch.equal(policy.mode(), modes)


def test_choices_are_sampled_by_their_probabilities_and_independently() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5, -0.5])
    policy = Choices(logits.expand(100_000, 5), (3, 2))
    first, second = policy.sample(torch.Generator().manual_seed(13)).unbind(-1)
    together = (2 * first + second).bincount(minlength=6).view(3, 2) / 100_000
    expected = logits[:3].softmax(0)[:, None] * logits[3:].softmax(0)
    torch.testing.assert_close(together, expected, atol=0.006, rtol=0)


def gaussian_parameters(log_std_shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(14)
    mean = torch.randn(5, 7, 3, generator=generator)
    log_std = 0.5 * torch.randn(log_std_shape, generator=generator)
    return mean.requires_grad_(), log_std.requires_grad_()


@pytest.mark.parametrize("log_std_shape", [(3,), (5, 7, 3)])
def test_gaussian_matches_torch(log_std_shape: tuple[int, ...]) -> None:
    mean, log_std = gaussian_parameters(log_std_shape)
    policy = Gaussian(mean, log_std)
    reference = distributions.Independent(distributions.Normal(mean, log_std.exp()), 1)
    actions = policy.sample(torch.Generator().manual_seed(15))
    assert not actions.requires_grad
    assert_gradients_match(
        [policy.log_prob(actions), policy.entropy()],
        [reference.log_prob(actions), reference.entropy()],
        [mean, log_std],
    )
    assert torch.equal(policy.mode(), mean)


def test_gaussian_samples_have_its_moments() -> None:
    mean, log_std = torch.tensor([1.0, -2.0]), torch.tensor([0.3, -1.0])
    policy = Gaussian(mean.expand(200_000, 2), log_std)
    actions = policy.sample(torch.Generator().manual_seed(16))
    torch.testing.assert_close(actions.mean(0), mean, atol=0.015, rtol=0)
    torch.testing.assert_close(actions.T.cov(), log_std.mul(2).exp().diag(), atol=0.03, rtol=0)


def test_gradients_reach_the_parameters_through_rsample() -> None:
    mean, log_std = gaussian_parameters((5, 7, 3))
    raw = Gaussian(mean, log_std).rsample(torch.Generator().manual_seed(17))
    to_mean, to_log_std = torch.autograd.grad(raw.sum(), [mean, log_std])
    torch.testing.assert_close(to_mean, torch.ones_like(mean))
    torch.testing.assert_close(to_log_std, raw - mean)


class SoftplusTransform(distributions.transforms.SoftplusTransform):
    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return -torch.nn.functional.softplus(-x)


TRANSFORMS = {
    0: distributions.transforms.identity_transform,
    1: SoftplusTransform(),
    2: distributions.transforms.TanhTransform(cache_size=1),
}
NUM_BOUNDS = torch.tensor([2.0, 1.0, 0.0])


def test_density_of_a_squashed_action_matches_torch() -> None:
    mean, log_std = gaussian_parameters((5, 7, 3))
    policy = SquashedGaussian(mean, log_std, NUM_BOUNDS)
    raw = policy.sample(torch.Generator().manual_seed(18))
    reference = []
    for d, transform in enumerate(TRANSFORMS[int(n)] for n in NUM_BOUNDS):
        normal = distributions.Normal(mean[..., d], log_std[..., d].exp())
        squashed = distributions.TransformedDistribution(normal, [transform])
        reference.append(squashed.log_prob(transform(raw[..., d])))
    assert_gradients_match(
        [policy.log_prob_of_action(raw), policy.log_prob(raw)],
        [torch.stack(reference).sum(0), Gaussian(mean, log_std).log_prob(raw)],
        [mean, log_std],
    )


@pytest.mark.parametrize("x", [-20.0, -9.0, -1e-3, 0.0, 1.0, 9.0, 20.0])
def test_log_slopes_hold_far_out(x: float) -> None:
    raw = torch.full((3,), x).requires_grad_()
    policy = SquashedGaussian(raw.detach(), torch.zeros(3), NUM_BOUNDS)
    slopes = policy.log_prob(raw) - policy.log_prob_of_action(raw)
    wide = raw.detach().double()
    of_tanh = -2 * wide[0].cosh().log()
    of_softplus = -(-wide[1]).exp().log1p()
    torch.testing.assert_close(slopes, (of_tanh + of_softplus).float(), atol=1e-5, rtol=1e-6)
    [gradient] = torch.autograd.grad(policy.log_prob_of_action(raw), raw)
    expected = torch.stack([2 * wide[0].tanh(), -(-wide[1]).sigmoid(), wide[2] * 0]).float()
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("std", [0.05, 0.3, 1.0, 3.0])
def test_entropy_of_squashed_actions_is_the_integral(std: float) -> None:
    """And so are its gradients. The rule of 40,001 points is in float64."""
    mean = torch.linspace(-5, 5, 21)[:, None].expand(21, 3).clone().requires_grad_()
    log_std = torch.full((21, 3), math.log(std)).requires_grad_()
    z = torch.linspace(-9, 9, 40_001, dtype=torch.float64)
    weights = (-z * z / 2).softmax(0)
    x = mean.double()[..., None] + log_std.double().exp()[..., None] * z
    softplus = torch.nn.functional.softplus
    tanh = 2 * (math.log(2) - x[:, 0] - softplus(-2 * x[:, 0], threshold=1e9))
    slopes = (tanh - softplus(-x[:, 1], threshold=1e9)) @ weights
    reference = Gaussian(mean, log_std).entropy() + slopes
    entropy = SquashedGaussian(mean, log_std, NUM_BOUNDS).entropy()
    torch.testing.assert_close(entropy, reference.float(), atol=3e-4, rtol=0)
    for ours, theirs in zip(
        torch.autograd.grad(entropy.sum(), [mean, log_std]),
        torch.autograd.grad(reference.sum(), [mean, log_std]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=3e-3, rtol=0)


def test_entropy_of_squashed_actions_is_what_samples_say() -> None:
    mean, log_std = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([1.0, 0.0, -1.0])
    policy = SquashedGaussian(mean.expand(400_000, 3), log_std, NUM_BOUNDS)
    raw = policy.sample(torch.Generator().manual_seed(19))
    surprises = -policy.log_prob_of_action(raw)
    error = surprises.std().item() / math.sqrt(400_000)
    assert policy.entropy()[0].item() == pytest.approx(surprises.mean().item(), abs=4 * error)


INF = math.inf
ONE_CHOICE = ActionSpec(choices=(5,))
CHOICES = ActionSpec(choices=(3, 2))
NUMBERS = ActionSpec(low=(-1.0, 0.0, -INF, -1e10), high=(1.0, INF, 3.0, INF))
BOTH = ActionSpec(choices=(3, 2), low=(-1.0, 0.0), high=(1.0, INF))
CHOICE_AND_NUMBER = ActionSpec(choices=(4,), low=(-INF,), high=(INF,))


def distribution(
    spec: ActionSpec, *, rounded: bool = False, dtype: torch.dtype = torch.float32
) -> Distribution:
    """Of parameters that are exact in bfloat16, if `rounded`."""
    parameters = random_logits(6, spec.num_logits + spec.num_numbers)
    log_std = torch.linspace(-1, 0, spec.num_numbers)
    if rounded:
        parameters, log_std = parameters.bfloat16(), log_std.bfloat16()
    mask = torch.cat([random_mask(6, size) for size in spec.choices], 1) if spec.choices else None
    return make_distribution(
        spec, parameters.to(dtype), log_std.to(dtype) if spec.low else None, mask, "tanh"
    )


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        (ONE_CHOICE, Categorical),
        (CHOICES, Choices),
        (NUMBERS, SquashedGaussian),
        (BOTH, Joint),
        (CHOICE_AND_NUMBER, Joint),
    ],
)
def test_each_action_space_has_its_distribution(spec: ActionSpec, kind: type) -> None:
    policy = distribution(spec)
    assert type(policy) is kind
    actions = policy.sample(torch.Generator().manual_seed(20))
    again = distribution(spec).sample(torch.Generator().manual_seed(20))
    assert torch.equal(actions, again)
    for of_rows in (actions, policy.mode()):
        assert of_rows.shape == (6, *spec.shape)
        assert of_rows.dtype == getattr(torch, spec.dtype)
    assert policy.log_prob(actions).shape == policy.entropy().shape == (6,)


@pytest.mark.parametrize("spec", [ONE_CHOICE, CHOICES, NUMBERS, BOTH])
def test_parameters_of_half_precision_are_computed_in_float32(spec: ActionSpec) -> None:
    half = distribution(spec, rounded=True, dtype=torch.bfloat16)
    wide = distribution(spec, rounded=True)
    actions = half.sample(torch.Generator().manual_seed(21))
    assert torch.equal(actions, wide.sample(torch.Generator().manual_seed(21)))
    assert half.log_prob(actions).dtype == half.entropy().dtype == torch.float32
    assert torch.equal(half.log_prob(actions), wide.log_prob(actions))
    assert torch.equal(half.entropy(), wide.entropy())


def test_joint_is_its_parts() -> None:
    parameters, log_std, mask = random_logits(6, 7), torch.zeros(2), random_mask(6, 5)
    mask[:, 3] = True
    policy = make_distribution(BOTH, parameters, log_std, mask, "tanh")
    choices = Choices(parameters[:, :5], (3, 2), mask)
    numbers = SquashedGaussian(parameters[:, 5:], log_std, torch.tensor([2.0, 1.0]))
    actions = policy.sample(torch.Generator().manual_seed(22))
    generator = torch.Generator().manual_seed(22)
    assert torch.equal(actions[:, :2], choices.sample(generator).float())
    assert torch.equal(actions[:, 2:], numbers.sample(generator))
    expected = choices.log_prob(actions[:, :2].long()) + numbers.log_prob(actions[:, 2:])
    assert torch.equal(policy.log_prob(actions), expected)
    assert torch.equal(policy.entropy(), choices.entropy() + numbers.entropy())
    assert torch.equal(policy.mode()[:, 2:], parameters[:, 5:])


def test_bounds_decide_the_entropy_of_numbers() -> None:
    parameters, log_std = random_logits(6, 4), torch.zeros(4)
    clipped = make_distribution(NUMBERS, parameters, log_std, None, "clip")
    assert type(clipped) is Gaussian
    squashed = make_distribution(NUMBERS, parameters, log_std, None, "tanh")
    expected = SquashedGaussian(parameters, log_std, torch.tensor([2.0, 1.0, 1.0, 0.0]))
    assert torch.equal(squashed.entropy(), expected.entropy())


def test_what_acted_in_inference_mode_first_can_learn() -> None:
    """In a serial run both are of one process, and constants are kept."""
    spec = ActionSpec(low=(-1.0, 0.0, 0.25), high=(1.0, INF, 0.5))  # of no other test
    parameters, log_std = random_logits(6, 3), torch.zeros(3)
    with torch.inference_mode():
        acting = make_distribution(spec, parameters, log_std, None, "tanh")
        raw = acting.sample(torch.Generator().manual_seed(23))
        acting.entropy()
    learning = make_distribution(spec, parameters.requires_grad_(), log_std, None, "tanh")
    (learning.entropy() + learning.log_prob(raw.clone())).sum().backward()
    assert parameters.grad is not None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("spec", [ONE_CHOICE, CHOICES, NUMBERS, BOTH])
def test_all_of_it_can_be_captured(spec: ActionSpec) -> None:
    """And a replay gives what the same calls give, of the parameters of that time."""
    parameters = random_logits(6, spec.num_logits + spec.num_numbers).cuda().requires_grad_()
    log_std = torch.zeros(spec.num_numbers, device="cuda")
    mask = torch.ones(6, spec.num_logits, dtype=torch.bool, device="cuda")
    generator = torch.Generator("cuda").manual_seed(24)

    def results() -> list[torch.Tensor]:
        policy = make_distribution(spec, parameters, log_std, mask, "tanh")
        actions = policy.sample(generator)
        log_prob, entropy = policy.log_prob(actions), policy.entropy()
        [gradient] = torch.autograd.grad((log_prob + entropy).sum(), parameters)
        return [policy.mode(), actions, log_prob, entropy, gradient]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        results()
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph, stream=stream):
        captured = results()
    with torch.no_grad():
        parameters.mul_(-0.5)
    generator.manual_seed(25)
    graph.replay()
    torch.cuda.synchronize()
    replayed = [result.clone() for result in captured]
    generator.manual_seed(25)
    for ours, theirs in zip(replayed, results(), strict=True):
        torch.testing.assert_close(ours, theirs)
