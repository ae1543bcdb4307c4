"""What only happens on a GPU: graphs, batches in flight, pinned memory, checkpoints that move.

The same classes are tested on a CPU in test_learner.py and test_policy_worker.py; test_precision.py
tests both.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfrl.envs import OBS
from sfrl.ipc.messages import CheckpointRequest
from sfrl.nets import cuda
from sfrl.nets.distributions import Categorical
from sfrl.parameters.weights import WeightsReader
from sfrl.records.metrics import RunMetrics
from sfrl.run.roles import make_policy_worker
from sfrl.workers.inference import GpuBatch
from tests.actors import Actors
from tests.runs import finish, training
from tests.workers.test_learner import MEMORIES, ONE_UPDATE, SMALL, Bench, same

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
ON_GPU = {**SMALL, "device": "cuda"}


class LooksAtItsInput(nn.Sequential):
    """A user's encoder that waits for the GPU, which no graph can: `--model=tests.test_gpu:...`."""

    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__(nn.Linear(obs_shape[0], 8), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.0 if x.sum().item() > 0 else 0.5)


UNCAPTURABLE = "tests.test_gpu:LooksAtItsInput"


def train(bench: Bench, batches: int) -> None:
    for seed in range(batches):
        bench.fill(0, 1, seed=seed)
        bench.begin(0, 1)
        bench.learner.finish()
        bench.returned()
    bench.learner.report()


# --- the learner ---


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "appo"},
        {"loss": "vtrace"},
        {"loss": "appo", "normalize_returns": True, "rnn": "lstm", "rnn_size": 5},
        {"loss": "vtrace", "normalize_returns": True, "rnn": "lstm", "rnn_size": 5},
        {"system": "n-step-q", "target_every": 4},
    ],
    ids=str,
)
def test_a_graph_trains_as_its_kernels_do_one_by_one(make_shared, settings):
    with_graph = Bench(make_shared(**ON_GPU | settings))
    without = Bench(make_shared(**ON_GPU | settings, cuda_graphs="off"))
    on_cpu = Bench(make_shared(**SMALL | settings))
    for bench in (with_graph, without, on_cpu):
        train(bench, batches=4)  # of 4 minibatches each: captured in the first
    assert with_graph.learner._update.is_captured
    assert not without.learner._update.is_captured
    # Adam makes of the last bits of a gradient near 0 a step of its own.
    for other, limit in ((without, 1e-4), (on_cpu, 5e-3)):
        for name, weights in with_graph.weights().items():
            expected = other.weights()[name].to(weights.device)
            torch.testing.assert_close(weights, expected, rtol=0, atol=limit)
    reports = [bench.reports.get_all() for bench in (with_graph, without)]
    for one, other in zip(*reports, strict=True):
        assert one.lag_counts == other.lag_counts
        for name, value in one.metrics.items():
            assert value == pytest.approx(other.metrics[name], rel=1e-2, abs=1e-3), name


def test_a_graph_skips_a_step_that_is_not_finite(make_shared):
    bench = Bench(make_shared(**ON_GPU | ONE_UPDATE, normalize_returns=True))
    train(bench, batches=6)
    assert bench.learner._update.is_captured
    before, steps = bench.weights(), bench.learner.learner_steps
    state = {
        k: v.clone() for k, v in bench.learner.parameters.optimizer.state_dict()["state"][0].items()
    }
    bench.fill(0, 1)
    bench.buffer.rewards[0, 0] = np.nan
    bench.begin(0, 1)
    bench.learner.finish()
    assert same(before, bench.weights())
    for name, value in bench.learner.parameters.optimizer.state_dict()["state"][0].items():
        assert torch.equal(value, state[name]), name
    assert (bench.learner.skipped_steps, bench.learner.learner_steps) == (1, steps)
    train(bench, batches=1)
    assert not same(before, bench.weights())
    assert bench.learner.learner_steps == steps + 1


def test_the_learning_rate_reaches_a_graph(make_shared):
    bench = Bench(
        make_shared(**ON_GPU | ONE_UPDATE | {"lr_schedule": "linear", "train_frames": 100})
    )
    train(bench, batches=6)
    assert bench.learner._update.is_captured
    bench.shared.progress.env_steps[0] = 100  # the end of the schedule
    before = bench.weights()
    train(bench, batches=2)
    assert same(before, bench.weights())


def test_slots_go_back_when_the_gpu_has_copied_them(make_shared):
    bench = Bench(make_shared(**ON_GPU))
    bench.fill(0, 1, 2, 3)
    bench.begin(0, 1)
    assert bench.returned() == [0, 1]
    assert bench.learner.learner_steps == 0, "not looked at yet"
    bench.begin(2, 3)
    assert bench.returned() == [2, 3]
    assert bench.learner.learner_steps == 4
    assert bench.learner.step(), "finishes what it has begun"
    assert bench.learner.learner_steps == 8
    reader = WeightsReader(bench.shared.weights)
    model = bench.model.inference_copy(torch.float32)
    for tensor in model.state_dict().values():
        tensor.zero_()
    assert reader.refresh(model)
    assert same(model.state_dict(), bench.model.state_dict())


@pytest.mark.parametrize("optimizer", ["adam", "muon", "rmsprop"])
@pytest.mark.parametrize(("first", "second"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_checkpoint_goes_on_on_another_device(make_shared, first, second, optimizer):
    settings = {**SMALL, "optimizer": optimizer}
    before = Bench(make_shared(**settings, device=first))
    train(before, batches=3)
    before.requests.put(CheckpointRequest(RunMetrics().state(), None))
    before.learner.step()
    *_, saved = before.reports.get_all()
    after = Bench(make_shared(**settings, device=second), saved.path)
    assert after.learner.learner_steps == before.learner.learner_steps == 12
    for bench in (before, after):
        train(bench, batches=3)
    assert after.learner._update.is_captured == (second == "cuda" and optimizer != "rmsprop")
    for name, weights in before.weights().items():
        torch.testing.assert_close(weights.cpu(), after.weights()[name].cpu(), rtol=0, atol=5e-3)


# --- the policy worker ---


def actors_on_gpu(make_shared, **settings) -> tuple[Bench, Actors]:
    bench = Bench(make_shared(**ON_GPU | settings))
    with torch.no_grad():
        bench.model.policy_head.weight.mul_(100)  # probabilities far from uniform
    bench.learner.publish()
    return bench, Actors(bench.shared)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("cuda_graphs", ["auto", "off"])
def test_the_learner_finds_the_probabilities_that_were_acted_with(make_shared, memory, cuda_graphs):
    bench, actors = actors_on_gpu(make_shared, **memory, cuda_graphs=cuda_graphs)
    slots_of = bench.learner.experience
    for _ in range(16):
        for slot in actors.collect(4):
            (place,) = slots_of.load([slot])
            slots_of.take()
            envs = torch.arange(bench.buffer.spec.num_envs, device="cuda")
            rows = slots_of.gather(torch.full_like(envs, place), envs)
            logits, _ = bench.model.unroll(rows.obs, rows.rnn_state, rows.valid)
            log_probs = Categorical(logits[:-1]).log_prob(rows.acted["actions"])
            torch.testing.assert_close(log_probs, rows.acted["log_probs"], rtol=1e-3, atol=1e-4)
            bench.learner.slots.give_back([slot])


def test_a_captured_batch_samples_from_the_policy_and_anew_each_time(make_shared):
    bench, _ = actors_on_gpu(make_shared)
    worker = make_policy_worker(bench.shared, 0)
    batch = worker._batches[0]
    assert isinstance(batch, GpuBatch)
    assert all(graphed.is_captured for graphed in batch._passes.values()), "by the warm-up"
    obs = torch.from_numpy(bench.buffer.obs[OBS])
    bench.fill(0)
    row, nothing = obs[0, 0], torch.empty(0)
    with torch.inference_mode(), torch.cuda.stream(worker._stream):
        worker.weights.refresh(worker.model)
    draws = []
    for _ in range(2000):
        with torch.inference_mode(), torch.cuda.stream(worker._stream):
            batch.load({OBS: [row]}, nothing, nothing)
            batch.compute()
            draws.append(batch.result()["actions"].copy())
    actions = np.stack(draws)  # [2000, N]
    assert len({draw.tobytes() for draw in draws}) > 1, "replays differ"
    with torch.no_grad():
        probs = bench.model.step({OBS: row.cuda()}).logits.softmax(-1).cpu().numpy()  # [N, A]
    observed = np.stack([(actions == a).sum(axis=0) for a in range(probs.shape[1])], axis=1)
    expected = len(actions) * probs
    chi_square = ((observed - expected) ** 2 / expected).sum(axis=1)
    assert (chi_square < 20).all(), "1 degree of freedom: below 20 but once in 100,000"


def test_the_seed_decides_what_is_drawn(make_shared):
    draws = []
    for seed in (1, 1, 2):
        bench, actors = actors_on_gpu(make_shared, seed=seed)
        (slot,) = actors.collect(1)
        draws.append(bench.buffer.actions[slot].copy())
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


# --- what does not fit ---


def test_what_cannot_be_captured_is_told_once_and_runs(make_shared, caplog):
    bench = Bench(make_shared(**ON_GPU | {"model": UNCAPTURABLE}))
    train(bench, batches=3)
    assert not bench.learner._update.is_captured
    assert bench.learner.learner_steps == 12
    told = [r.message for r in caplog.records if "cannot be captured" in r.message]
    assert len(told) == 1
    assert "the learner's minibatch" in told[0]


def test_memory_that_cannot_be_pinned_is_told(caplog):
    array = np.zeros(1 << 20, np.uint8)
    cuda.pin(array)
    cuda.pin(array)
    assert not caplog.records
    cuda.pin(array[4096:])  # it is already, under another address
    assert "could not be pinned" in caplog.text
    torch.zeros(8, device="cuda").sum().item()  # no error is left behind


# --- whole runs ---


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--env=Pong"],
        ["--env=Pong", "--cuda-graphs=off", "--loss=vtrace"],
        ["--env=Pong", "--rnn-size=32", "--precision=float32"],
        ["--env=CartPole-v1", "--serial"],
        ["--env=CartPole-v1", f"--model={UNCAPTURABLE}"],
        ["--env=CartPole-v1", "--optimizer=rmsprop", "--policy-devices=cpu"],
    ],
    ids=" ".join,
)
def test_a_run_on_a_gpu_trains_and_ends_well(tmp_path: Path, flags):
    run_dir = tmp_path / "run"
    limits = ["--train-frames=40000", "--train-seconds=60", "--device=cuda", "--num-workers=2"]
    with training(run_dir, *limits, *flags) as process:
        ended = finish(process)
    assert ended.code == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.summary["env_frames"] >= 40_000
    told = "cannot be captured" in ended.stderr
    assert told == (UNCAPTURABLE in " ".join(flags) or "--optimizer=rmsprop" in flags), ended.stderr
