"""Loss terms as pure functions of [T, B] tensors and a bool mask of the rows that count.

A masked row adds nothing to a loss and gets a gradient of exactly 0, whatever it holds, NaN
included. A mask without any row gives 0 with zero gradients, never NaN. All results are scalars
(but the advantages of `normalize_advantages`, and `shape_rewards`) in the dtype of the inputs.
"""

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over the rows where mask is True; 0 if there is none.

    Raises:
        ValueError: the shapes differ; broadcast, the mean would be over too many rows.
    """
    _check_same_shape(x=x, mask=mask)
    return x.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def shape_rewards(rewards: Tensor, clip: str, scale: float) -> Tensor:
    """What is learned from: `clip` is "sign" or "none"; `scale` comes after it."""
    return (rewards.sign() if clip == "sign" else rewards) * scale


def ppo_policy_loss(
    log_probs: Tensor,  # log pi(a|x) of the policy in training
    behavior_log_probs: Tensor,  # log mu(a|x) at the time of acting; no gradient
    advantages: Tensor,  # no gradient
    mask: Tensor,
    ppo_clip: float,
) -> Tensor:
    """Clipped surrogate, PPO equation 7 (Schulman et al. 2017, arXiv:1707.06347), negated.

    -min(ratio * A, clamp(ratio, 1 - ppo_clip, 1 + ppo_clip) * A), ratio = pi / mu.
    """
    _check_same_shape(
        log_probs=log_probs,
        behavior_log_probs=behavior_log_probs,
        advantages=advantages,
        mask=mask,
    )
    # Masked before the products too: backward, masked_mean's 0 times an infinity would be NaN.
    ratios = (log_probs - behavior_log_probs.detach()).masked_fill(~mask, 0.0).exp()
    advantages = advantages.detach()
    clipped_ratios = ratios.clamp(1.0 - ppo_clip, 1.0 + ppo_clip)
    return -masked_mean(torch.minimum(ratios * advantages, clipped_ratios * advantages), mask)


def filtered_policy_loss(
    log_probs: Tensor,  # log pi(a|x) of the policy in training
    behavior_log_probs: Tensor,  # log mu(a|x) at the time of acting; no gradient
    advantages: Tensor,  # no gradient
    mask: Tensor,
    most_variation: float,
) -> Tensor:
    """-ratio * A, ratio = pi / mu, without the rows that would take the policy too far from mu.

    While the total variation of the batch, half the mean of |ratio - 1|, is above `most_variation`,
    rows whose gradient makes their |ratio - 1| larger have none. The idea of VACO's filter (Honari
    et al. 2026, arXiv:2603.01365), which is of the batch where PPO's clip is of a row.
    """
    _check_same_shape(
        log_probs=log_probs,
        behavior_log_probs=behavior_log_probs,
        advantages=advantages,
        mask=mask,
    )
    ratios = (log_probs - behavior_log_probs.detach()).masked_fill(~mask, 0.0).exp()
    changes = ratios.detach() - 1.0
    is_too_far = 0.5 * masked_mean(changes.abs(), mask) > most_variation
    goes_farther = changes * advantages > 0
    advantages = advantages.detach().masked_fill(goes_farther & is_too_far, 0.0)
    return -masked_mean(ratios * advantages, mask)


def vtrace_policy_loss(
    log_probs: Tensor,  # log pi(a|x) of the policy in training
    clipped_rhos: Tensor,  # min(rho_clip, pi / mu); no gradient
    advantages: Tensor,  # q - V, or the same normalized; no gradient
    mask: Tensor,
    least_probability: float = 0.0,
) -> Tensor:
    """Policy gradient with V-trace advantages, IMPALA section 4.2 (arXiv:1802.01561).

    -rho * A * log(pi(a|x) + least_probability). Whatever is subtracted from A must be weighted by
    rho as well: under the behavior policy the score function alone has an expectation other than 0,
    and a constant times it is a gradient that comes from no reward.
    """
    _check_same_shape(
        log_probs=log_probs, clipped_rhos=clipped_rhos, advantages=advantages, mask=mask
    )
    weights = (clipped_rhos * advantages).detach().masked_fill(~mask, 0.0)
    if least_probability:  # "epsilon-correction", IMPALA section 5.2.2
        log_probs = (log_probs.masked_fill(~mask, 0.0).exp() + least_probability).log()
    return -masked_mean(log_probs * weights, mask)


def value_loss(values: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Half the mean squared error; `targets` takes no gradient."""
    _check_same_shape(values=values, targets=targets, mask=mask)
    errors = (values - targets.detach()).masked_fill(~mask, 0.0)
    return 0.5 * masked_mean(errors.square(), mask)


def normalize_advantages(
    advantages: Tensor, mask: Tensor, least: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Shift and scale to mean 0 and standard deviation 1 over the mask; masked rows become 0.

    A deviation below `least`, in units of the reward, counts as `least`.

    Returns:
        The advantages, and the deviation that they had.
    """
    centered = (advantages - masked_mean(advantages, mask)).masked_fill(~mask, 0.0)
    deviation = masked_mean(centered.square(), mask).sqrt()
    return centered / (deviation.clamp(min=least) + 1e-8), deviation


def explained_variance(values: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(targets - values) / Var(targets) over the mask: 1 is perfect, 0 no better than a
    constant, negative worse. 0 where the targets do not vary.
    """
    _check_same_shape(values=values, targets=targets, mask=mask)

    def variance(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, mask)).square(), mask)

    target_variance = variance(targets)
    explained = 1.0 - variance(targets - values) / target_variance
    return explained.where(target_variance > 0, 0.0)


def weight_statistics(log_weights: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """How unequal importance weights are over the mask; (0, 0) where it has no row.

    Returns:
        Their variance, and the effective sample size in parts of all rows, which is
        (sum w)^2 / (n sum w^2) (Kish 1965; Owen 2013, section 9.3): 1 if all weigh the same.
    """
    _check_same_shape(log_weights=log_weights, mask=mask)
    largest = log_weights.masked_fill(~mask, -torch.inf).max()
    largest = largest.clamp(min=torch.finfo(largest.dtype).min)  # finite, where there is no row
    # In units of the largest: no square is infinite.
    weights = (log_weights - largest).masked_fill(~mask, -torch.inf).exp()
    num_rows = mask.sum().clamp(min=1)
    square, mean_square = (weights.sum() / num_rows).square(), weights.square().sum() / num_rows
    variance = (mean_square - square).clamp(min=0.0) * (2 * largest).exp()
    return variance, (square / mean_square).where(mean_square > 0, 0.0)


def _check_same_shape(**tensors: Tensor) -> None:
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"shapes must be equal, got {shapes}")
