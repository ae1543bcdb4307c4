"""V-trace against slow transcriptions of the papers' sums."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from sfrl.maths.vtrace import vtrace

GAMMA = 0.97


class Batch(NamedTuple):
    log_rhos: Tensor
    discounts: Tensor
    rewards: Tensor
    values: Tensor
    valid: Tensor


def random_batch(num_steps: int, batch_size: int, *, on_policy: bool = False) -> Batch:
    """Episodes end at random: terminated (discount 0) or truncated, each followed by a reset row.

    The rows that only reset hold values that must never be read.
    """
    generator = torch.Generator().manual_seed(7 * num_steps + batch_size)
    log_rhos = torch.randn(num_steps, batch_size, generator=generator) * (not on_policy)
    discounts = torch.full((num_steps, batch_size), GAMMA)
    rewards = torch.randn(num_steps, batch_size, generator=generator)
    values = torch.randn(num_steps + 1, batch_size, generator=generator)
    valid = torch.ones(num_steps, batch_size, dtype=torch.bool)
    ends = torch.rand(num_steps, batch_size, generator=generator)
    for b in range(batch_size):
        for t in range(num_steps):
            ended = t > 0 and valid[t - 1, b] and ends[t - 1, b] < 0.4
            if ended:
                valid[t, b] = False
                rewards[t, b], log_rhos[t, b], discounts[t, b] = math.nan, math.nan, math.inf
            elif ends[t, b] < 0.2:
                discounts[t, b] = 0.0
    return Batch(log_rhos, discounts, rewards, values, valid)


def slow_vs(
    batch: Batch, t: int, b: int, *, rho_clip: float, c_clip: float, lambda_: float
) -> float:
    """The sum of IMPALA's equation 1 for one x_s, term by term, in Python floats."""
    log_rhos, discounts, rewards, values, valid = (x[:, b].tolist() for x in batch)
    total = values[t]
    weight = 1.0  # gamma^{k-t} * prod c_i for i in [t, k)
    for k in range(t, len(rewards)):
        if not valid[k]:
            break
        rho = math.exp(log_rhos[k])
        delta = min(rho_clip, rho) * (rewards[k] + discounts[k] * values[k + 1] - values[k])
        total += weight * delta
        weight *= discounts[k] * lambda_ * min(c_clip, rho)
    return total


@pytest.mark.parametrize(("num_steps", "batch_size"), [(1, 3), (2, 5), (7, 4), (32, 16)])
@pytest.mark.parametrize(
    ("rho_clip", "c_clip", "lambda_"), [(1.0, 1.0, 1.0), (2.0, 0.7, 0.9), (math.inf, 1.5, 0.0)]
)
def test_matches_the_sum_of_the_paper(
    num_steps: int, batch_size: int, rho_clip: float, c_clip: float, lambda_: float
) -> None:
    batch = random_batch(num_steps, batch_size)
    clips = {"rho_clip": rho_clip, "c_clip": c_clip, "lambda_": lambda_}
    result = vtrace(*batch, **clips)

    for b in range(batch_size):
        vs = [slow_vs(batch, t, b, **clips) for t in range(num_steps)]
        vs.append(batch.values[-1, b].item())
        for t in range(num_steps):
            value, next_value = batch.values[t, b].item(), batch.values[t + 1, b].item()
            advantage, rho = 0.0, 0.0
            if batch.valid[t, b]:
                rho = min(rho_clip, batch.log_rhos[t, b].exp().item())
                bootstrap = lambda_ * vs[t + 1] + (1 - lambda_) * next_value
                discount = batch.discounts[t, b].item()
                advantage = batch.rewards[t, b].item() + discount * bootstrap - value
            assert result.vs[t, b].item() == pytest.approx(vs[t], rel=1e-4, abs=1e-4)
            assert result.advantages[t, b].item() == pytest.approx(advantage, rel=1e-4, abs=1e-4)
            assert result.clipped_rhos[t, b].item() == pytest.approx(rho, rel=1e-4)


def test_random_batches_cover_every_case() -> None:
    """The comparison above proves little if its inputs miss a side of a clip or an ending."""
    batch = random_batch(32, 16)
    rhos = batch.log_rhos[batch.valid].exp()
    assert (rhos < 0.7).any()
    assert ((rhos > 1.0) & (rhos < 2.0)).any()
    assert (rhos > 2.0).any()
    assert (batch.discounts == 0.0).any()
    truncated = batch.valid[:-1] & ~batch.valid[1:] & (batch.discounts[:-1] > 0)
    assert truncated.any()


def test_on_policy_lambda_one_is_the_n_step_return() -> None:
    batch = random_batch(9, 6, on_policy=True)
    vs = vtrace(*batch).vs
    for b in range(6):
        n_step_return = batch.values[-1, b].item()
        for t in reversed(range(9)):
            if batch.valid[t, b]:
                n_step_return = batch.rewards[t, b] + batch.discounts[t, b] * n_step_return
            else:
                n_step_return = batch.values[t, b]  # the episode before bootstraps here
            assert vs[t, b].item() == pytest.approx(float(n_step_return), rel=1e-4, abs=1e-4)


def test_on_policy_advantages_are_gae_lambda() -> None:
    batch = random_batch(20, 5, on_policy=True)
    lambda_ = 0.9
    result = vtrace(*batch, lambda_=lambda_)
    for b in range(5):
        gae = 0.0
        for t in reversed(range(20)):
            if batch.valid[t, b]:
                discount, value = batch.discounts[t, b].item(), batch.values[t, b].item()
                delta = batch.rewards[t, b].item() + discount * batch.values[t + 1, b].item()
                gae = delta - value + discount * lambda_ * gae
            else:
                gae = 0.0
            assert result.advantages[t, b].item() == pytest.approx(gae, rel=1e-4, abs=1e-4)
    assert (result.clipped_rhos[batch.valid] == 1).all()


def test_truncated_step_bootstraps_from_the_final_observation_and_no_further() -> None:
    values = torch.tensor([[1.0], [5.0], [7.0], [9.0]])  # row 1 is the final observation
    valid = torch.tensor([[True], [False], [True]])
    rewards = torch.tensor([[2.0], [1000.0], [3.0]])
    result = vtrace(torch.zeros(3, 1), torch.full((3, 1), 0.5), rewards, values, valid)
    torch.testing.assert_close(result.vs, torch.tensor([[2.0 + 0.5 * 5.0], [5.0], [3.0 + 4.5]]))


@pytest.mark.parametrize("name", Batch._fields)
def test_shape_mismatch_raises_instead_of_broadcasting(name: str) -> None:
    batch = random_batch(6, 4)
    narrow = batch._replace(**{name: getattr(batch, name)[:, :1]})
    with pytest.raises(ValueError, match=r"must be \["):
        vtrace(*narrow)


def test_values_without_bootstrap_row_raise() -> None:
    batch = random_batch(6, 4)
    with pytest.raises(ValueError, match=r"values must be \[7, 4\]"):
        vtrace(*batch._replace(values=batch.values[:-1]))


def test_low_precision_values_raise() -> None:
    batch = random_batch(6, 4)
    with pytest.raises(ValueError, match=r"values must be \[7, 4\] torch\.float32"):
        vtrace(*batch._replace(values=batch.values.bfloat16()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_gpu_result_equals_cpu_result() -> None:
    batch = random_batch(32, 16)
    on_gpu = vtrace(*(x.cuda() for x in batch), lambda_=0.9)
    for gpu, cpu in zip(on_gpu, vtrace(*batch, lambda_=0.9), strict=True):
        torch.testing.assert_close(gpu.cpu(), cpu)
