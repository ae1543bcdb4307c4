"""V-trace returns (IMPALA) with an optional lambda; a pure function of tensors."""

from typing import NamedTuple

import torch
from torch import Tensor


class VTraceReturns(NamedTuple):
    """All [T, B] float32. Rows that are not valid have vs = V(x), advantages and rhos of 0."""

    vs: Tensor  # targets of the value function
    advantages: Tensor  # q - V, without rho
    clipped_rhos: Tensor  # min(rho_clip, rho), the weights of the policy gradient


@torch.no_grad()
def vtrace(
    log_rhos: Tensor,  # [T, B] log pi(a|x) - log mu(a|x)
    discounts: Tensor,  # [T, B] gamma, or 0 where the episode terminated at step t
    rewards: Tensor,  # [T, B]
    values: Tensor,  # [T+1, B] V(x_t); row T is the bootstrap value
    valid: Tensor,  # [T, B] bool, False on rows that only reset the environment
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
    lambda_: float = 1.0,
) -> VTraceReturns:
    """V-trace targets, IMPALA section 4.1 (Espeholt et al. 2018, arXiv:1802.01561).

    pi is the policy in training, mu the one that acted. With c_t = lambda * min(c_clip, rho_t):

        delta_t = min(rho_clip, rho_t) * (r_t + discount_t * V(x_{t+1}) - V(x_t))
        vs_t    = V(x_t) + delta_t + discount_t * c_t * (vs_{t+1} - V(x_{t+1}))
        q_t     = r_t + discount_t * (lambda * vs_{t+1} + (1 - lambda) * V(x_{t+1}))

    On-policy with both clips >= 1, vs is the n-step Bellman target for lambda = 1, and
    `advantages` is GAE(lambda) (arXiv:1506.02438) for any lambda.

    A row that is not valid carries the last observation of an episode, and its action only
    resets. There rho = c = 0, hence vs = V: the step before it bootstraps from the value of the
    true final observation, and nothing of the next episode flows back past it. That is all a
    truncated step needs; a terminated one has a discount of 0. Rewards, log_rhos and discounts
    of such rows are never read, whatever they hold.

    Raises:
        ValueError: shapes disagree (unchecked, a [T, 1] argument would broadcast silently), or a
            tensor is not float32 (`valid`: bool).
    """
    _check_arguments(log_rhos, discounts, rewards, values, valid)
    rhos = log_rhos.exp().masked_fill(~valid, 0.0)
    discounts = discounts.masked_fill(~valid, 0.0)
    td_errors = (rewards + discounts * values[1:] - values[:-1]).masked_fill(~valid, 0.0)
    clipped_rhos = rhos.clamp(max=rho_clip)
    cs = lambda_ * rhos.clamp(max=c_clip)

    vs_minus_v = _discounted_sums(clipped_rhos * td_errors, discounts * cs)
    next_vs_minus_v = torch.cat([vs_minus_v[1:], torch.zeros_like(values[:1])])  # vs_T = V(x_T)
    # q - V in differences only: r + discount * vs - V would round at the size of vs.
    advantages = td_errors + discounts * lambda_ * next_vs_minus_v
    return VTraceReturns(values[:-1] + vs_minus_v, advantages, clipped_rhos)


def _discounted_sums(deltas: Tensor, decays: Tensor) -> Tensor:
    """sums_t = deltas_t + decays_t * sums_{t+1}, with sums_T = 0; all [T, B].

    Doubles the span of each partial sum instead of walking T steps: log2(T) passes. Measured on
    one CPU thread at T=32, B=16 / T=32, B=128 / T=128, B=16: 95 / 110 / 150 us, against
    105 / 112 / 410 us for an in-place loop over rows. On a GPU 20 kernels replace 32.
    """
    sums, decays = deltas.clone(), decays.clone()
    span = 1  # sums[t] covers deltas[t : t + span], decays[t] the product of as many decays
    while span < len(sums):
        # Each right-hand side is a new tensor, complete before the overlapping write begins.
        sums[:-span] += decays[:-span] * sums[span:]
        decays[:-span] = decays[:-span] * decays[span:]
        span *= 2
    return sums


def _check_arguments(
    log_rhos: Tensor, discounts: Tensor, rewards: Tensor, values: Tensor, valid: Tensor
) -> None:
    if rewards.ndim != 2 or len(rewards) == 0:
        raise ValueError(f"rewards must be [T, B] with T >= 1, got {list(rewards.shape)}")
    num_steps, batch_size = rewards.shape
    expected = {
        "log_rhos": (log_rhos, num_steps, torch.float32),
        "discounts": (discounts, num_steps, torch.float32),
        "rewards": (rewards, num_steps, torch.float32),
        "values": (values, num_steps + 1, torch.float32),
        "valid": (valid, num_steps, torch.bool),
    }
    for name, (tensor, rows, dtype) in expected.items():
        if tensor.shape != (rows, batch_size) or tensor.dtype != dtype:
            raise ValueError(
                f"{name} must be [{rows}, {batch_size}] {dtype} to go with rewards "
                f"{list(rewards.shape)}, got {list(tensor.shape)} {tensor.dtype}"
            )
