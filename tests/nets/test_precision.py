"""The same batch in float32 on a CPU and in the arithmetic that runs use: how far apart they are.

On a GPU and on a CPU alike, since both may choose bfloat16.
"""

import pytest
import torch

from sfrl.nets.distributions import Categorical
from tests.workers.test_learner import Bench, T

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
# Largest difference of log-probabilities, and of values and targets relative to their deviation;
# and 1 less the cosine between gradients. bfloat16 keeps 8 bits of every activation: on a CPU it
# came to 0.027, 0.025, 0.017 and 0.004. Convolutions in float32 on a GPU may keep 11 (TF32).
TOLERANCES = {"bfloat16": (0.1, 0.1, 0.02), "float32": (0.03, 0.03, 1e-3)}
N = 4
PONG = {
    "env": "Pong",
    "num_workers": 1,
    "num_splits": 1,
    "envs_per_worker": N,
    "rollout_length": T,
    "batch_size": T * N,
    "minibatches": 1,
    "epochs": 1,
    "loss": "vtrace",
}


def outcome(shared):
    """Log-probabilities, values, V-trace targets and the gradient of one minibatch."""
    bench = Bench(shared)
    learner, model = bench.learner, bench.model
    with torch.no_grad():
        model.policy_head.weight.mul_(1000)  # noise looks all alike to it
    bench.fill(0)
    places = torch.stack([torch.zeros(N, dtype=torch.int64), torch.arange(N)]).to(learner.device)
    learner.experience.load([0])
    learner.experience.take()
    batch = learner.experience.gather(*places)
    logits, values = model.unroll(batch.obs, None, batch.valid)
    log_probs = Categorical(logits[:-1]).log_prob(batch.acted["actions"])
    loss = learner.algorithm.loss_of(model, batch, logits, values, batch.valid[:-1])
    loss.total.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    return [x.detach().float().cpu() for x in (log_probs, values, loss.targets, gradient)]


@pytest.mark.parametrize("model", ["nature_cnn", "pooled_cnn"])
@pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("cpu", "bfloat16"),
        pytest.param("cuda", "bfloat16", marks=needs_gpu),
        pytest.param("cuda", "float32", marks=needs_gpu),
    ],
)
def test_a_batch_gives_nearly_the_same_as_in_float32_on_a_cpu(
    make_shared, device, precision, model
):
    settings = {**PONG, "model": model}
    exact = outcome(make_shared(**settings, device="cpu", precision="float32"))
    rounded = outcome(make_shared(**settings, device=device, precision=precision))
    log_prob_limit, value_limit, angle_limit = TOLERANCES[precision]
    assert exact[0].exp().std() > 0.1, "probabilities that differ"
    assert (exact[0] - rounded[0]).abs().max() < log_prob_limit
    for one, other in zip(exact[1:3], rounded[1:3], strict=True):
        assert (one - other).abs().max() < value_limit * one.std()
    cosine = torch.nn.functional.cosine_similarity(exact[3], rounded[3], dim=0)
    assert cosine > 1 - angle_limit
    assert not torch.equal(exact[0], rounded[0]), "it really was computed another way"
