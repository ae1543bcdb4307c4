"""Returns of trajectories, as pure functions of [T, B] tensors."""

import torch
from torch import Tensor


@torch.no_grad()
def n_step_returns(
    rewards: Tensor,  # [T, B]
    discounts: Tensor,  # [T, B] gamma, or 0 where the episode ended at step t
    values: Tensor,  # [T+1, B] of the states; row T is the bootstrap
    valid: Tensor,  # [T, B] bool; False on rows that show an ended episode's final observation
) -> Tensor:
    """Discounted rewards up to the trajectory's end, and the value there [T, B].

    Algorithm S3 of Mnih et al. 2016 (arXiv:1602.01783): G_t = r_t + discount_t * G_{t+1} and
    G_T = values[T], so that row t looks T - t steps ahead. A row that is not valid shows the final
    observation of an episode that was cut off: G is its value there, from which the step before
    bootstraps, and nothing flows back from the next episode.

    Raises:
        ValueError: shapes disagree; unchecked, a [T, 1] argument would broadcast silently.
    """
    if not rewards.shape == discounts.shape == valid.shape == values[1:].shape:
        raise ValueError(
            f"rewards {list(rewards.shape)}, discounts {list(discounts.shape)} and valid "
            f"{list(valid.shape)} must be [T, B], and values {list(values.shape)} [T+1, B]"
        )
    returns = torch.empty_like(rewards)
    following = values[-1]
    for t in reversed(range(len(rewards))):
        following = torch.where(valid[t], rewards[t] + discounts[t] * following, values[t])
        returns[t] = following
    return returns


@torch.no_grad()
def one_step_returns(
    rewards: Tensor,  # [T, B]
    discounts: Tensor,  # [T, B] gamma, or 0 where the episode ended at step t
    next_values: Tensor,  # [T, B] of the states that follow
) -> Tensor:
    """One reward, and the value of what follows [T, B] (arXiv:1602.01783, algorithms 1 and S2).

    Raises:
        ValueError: shapes disagree; unchecked, a [T, 1] argument would broadcast silently.
    """
    if not rewards.shape == discounts.shape == next_values.shape:
        raise ValueError(
            f"rewards {list(rewards.shape)}, discounts {list(discounts.shape)} and next values "
            f"{list(next_values.shape)} must be [T, B]"
        )
    return rewards + discounts * next_values


@torch.no_grad()
def window_returns(
    rewards: Tensor,  # [n, B]
    discounts: Tensor,  # [n, B] gamma, or 0 where the episode ended at step t
    valid: Tensor,  # [n, B] bool
    ends: Tensor,  # [B] int64 from 1 to n: the row that is not valid, else n
    end_values: Tensor,  # [B] of the states in the rows `ends`
) -> Tensor:
    """Of the first rows alone: discounted rewards up to the rows `ends`, and the value there [B].

    Raises:
        ValueError: as `n_step_returns`.
    """
    values = rewards.new_zeros(len(rewards) + 1, *end_values.shape)
    values.scatter_(0, ends.unsqueeze(0), end_values.unsqueeze(0))
    return n_step_returns(rewards, discounts, values, valid)[0]
