"""n-step Q: what it explores, what it learns from, and the target that it bootstraps from."""

import dataclasses

import numpy as np
import pytest
import torch

from sfrl import envs
from sfrl.algorithms import make_algorithm
from sfrl.envs import OBS
from sfrl.experience.minibatch import Minibatch
from sfrl.ipc.mailbox import Mailbox
from sfrl.ipc.messages import CheckpointRequest
from sfrl.maths.returns import n_step_returns
from sfrl.records.metrics import RunMetrics
from sfrl.run.roles import make_learner, make_policy_worker
from sfrl.settings.config import ConfigError
from sfrl.settings.n_step_q import NStepQConfig
from sfrl.show.player import Player

T, N = 8, 4  # rollout length, environments per split
SETTINGS = {
    "env": "CartPole-v1",
    "frameskip": 1,
    "model": "norm_mlp",
    "num_workers": 1,
    "num_splits": 2,
    "envs_per_worker": 2 * N,
    "rollout_length": T,
    "batch_size": T * N,
    "minibatches": 2,
    "epochs": 1,
    "reward_clip": "none",
    "precision": "float32",
    "lr_schedule": "constant",
    "target_every": 4,
}


@pytest.fixture
def config(tmp_path):
    return NStepQConfig(**SETTINGS, run_dir=str(tmp_path))


@pytest.fixture
def algorithm(config):
    torch.manual_seed(0)
    return make_algorithm(config, envs.describe("CartPole-v1"))


def rows(seed=0):
    """A minibatch of 5 trajectories with ends of both kinds."""
    generator = torch.Generator().manual_seed(seed)
    terminated = torch.zeros(T, 5, dtype=torch.bool)
    valid = torch.ones(T + 1, 5, dtype=torch.bool)
    terminated[2, 1] = True
    valid[3, 1] = valid[5, 2] = False  # the second was cut off
    return Minibatch(
        obs={OBS: torch.randn(T + 1, 5, 4, generator=generator)},
        valid=valid,
        rnn_state=None,
        acted={"actions": torch.randint(2, (T, 5), generator=generator)},
        rewards=torch.randn(T, 5, generator=generator),
        terminated=terminated,
        policy_version=torch.zeros(T, 5, dtype=torch.int64),
    )


def test_epsilons_fall_to_a_value_of_each_environment(config):
    before, half, after = (config.exploration(frames) for frames in (0, 2_000_000, 10**9))
    assert before.shape == (2, N)
    assert (before == 1).all()
    assert (np.abs(after[..., None] - [0.1, 0.01, 0.5]).min(axis=-1) < 1e-6).all()
    np.testing.assert_allclose(half, (1 + after) / 2, rtol=1e-6)
    sizes = {"envs_per_worker": 20_000, "batch_size": 10_000 * T, "policy_batch_size": 10_000}
    many = NStepQConfig(**SETTINGS | sizes)
    values, counts = np.unique(many.exploration(10**9).round(6), return_counts=True)
    np.testing.assert_allclose(values, [0.01, 0.1, 0.5])
    np.testing.assert_allclose(counts / 20_000, [0.3, 0.4, 0.3], atol=0.02)


def test_the_loss_is_that_of_returns_bootstrapped_from_the_target(algorithm):
    model, target, batch = algorithm.make_model(), algorithm.make_model(), rows()
    with torch.no_grad():
        for network in (model, target):
            network.head.weight.mul_(100)
    version = torch.tensor(0)
    loss = algorithm.loss(model, target, batch, version)
    returns = n_step_returns(
        batch.rewards,
        0.99 * (~batch.terminated).float(),
        target.unroll(batch.obs, None, batch.valid).amax(-1).detach(),
        batch.valid[:-1],
    )
    values = model.unroll(batch.obs, None, batch.valid)[:-1]
    taken = torch.where(batch.acted["actions"] == 1, values[..., 1], values[..., 0])
    mask = batch.valid[:-1]
    expected = 0.5 * (taken - returns)[mask].square().mean()
    torch.testing.assert_close(loss.targets, returns)
    torch.testing.assert_close(loss.total, expected)
    assert loss.statistics.keys() == set(NStepQConfig.STATISTICS)
    greedy = (taken == values.amax(-1))[mask].float().mean()
    torch.testing.assert_close(loss.statistics["greedy_fraction"], greedy)
    loss.total.backward()
    assert all(parameter.grad is None for parameter in target.parameters())


@pytest.mark.parametrize("targets", ["one-step", "sarsa"])
def test_targets_of_one_reward_and_what_follows_written_out(config, targets):
    config = dataclasses.replace(config, targets=targets)
    algorithm = make_algorithm(config, envs.describe("CartPole-v1"))
    model, target, batch = algorithm.make_model(), algorithm.make_model(), rows()
    with torch.no_grad():
        target.head.weight.mul_(100)
        following = target.unroll(batch.obs, None, batch.valid)
    batch.terminated[T - 1, 4] = True
    loss = algorithm.loss(model, target, batch, torch.tensor(0))
    values = model.unroll(batch.obs, None, batch.valid).detach()
    assert torch.equal(loss.mask, batch.valid[:-1]), "no row is dropped for its age"
    actions, errors = batch.acted["actions"], []
    for t in range(T):
        for column in range(5):
            # What was chosen after the last row nobody knows; after an end nobody asks.
            is_last = targets == "sarsa" and t == T - 1 and not batch.terminated[t, column]
            if is_last or not batch.valid[t, column]:
                continue
            next_values = following[t + 1, column]
            # The step that was cut off, too: the row after it shows what follows.
            expected = batch.rewards[t, column]
            if not batch.terminated[t, column]:
                chosen = next_values.argmax() if targets == "one-step" else actions[t + 1, column]
                expected = expected + 0.99 * next_values[chosen]
            torch.testing.assert_close(loss.targets[t, column], expected)
            errors.append(values[t, column, actions[t, column]] - expected)
    assert len(errors) == 5 * T - 2 - (4 if targets == "sarsa" else 0)
    torch.testing.assert_close(loss.total, 0.5 * torch.stack(errors).square().mean())
    assert not batch.terminated[4, 2]
    assert not batch.valid[5, 2]


def test_sarsa_needs_a_next_decision_in_the_trajectory(config):
    sizes = {"rollout_length": 1, "batch_size": N}
    with pytest.raises(ConfigError, match="rollout_length=1 must be at least 2 with targets=sarsa"):
        dataclasses.replace(config, targets="sarsa", **sizes)


def test_rows_older_than_max_policy_lag_are_not_learned_from(algorithm):
    model, target, batch = algorithm.make_model(), algorithm.make_model(), rows()
    version = torch.tensor(algorithm.config.lag_limit + 1)
    batch.policy_version[3:] = 1
    assert torch.equal(
        algorithm.loss(model, target, batch, version).mask,
        batch.valid[:-1] & (torch.arange(T) >= 3)[:, None],
    )


def learner_of(shared, resume_path=None):
    reports, requests = Mailbox(), Mailbox()
    return make_learner(shared, reports, requests, resume_path), reports, requests


def train(learner, slots, seed):
    buffer = learner.slots.buffer
    rng = np.random.default_rng(seed)
    for slot in slots:
        buffer.obs[OBS][slot] = rng.normal(size=(T + 1, N, 4))
        buffer.actions[slot] = rng.integers(2, size=(T, N))
        buffer.rewards[slot] = rng.normal(size=(T, N))
        buffer.valid[slot] = True
    learner.begin(list(slots))
    while learner.is_training:
        learner._train_on_next()


def equal(model, other):
    return all(
        torch.equal(one, two)
        for one, two in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_the_target_is_renewed_every_so_many_steps_and_saved(make_shared):
    shared = make_shared(**SETTINGS, system="n-step-q")
    learner, reports, requests = learner_of(shared)
    target = learner.parameters.target
    assert equal(target, learner.model)
    train(learner, (0, 1), seed=0)
    assert learner.learner_steps == 2
    assert not equal(target, learner.model)
    train(learner, (0, 1), seed=1)
    assert learner.learner_steps == 4
    assert equal(target, learner.model)
    train(learner, (0, 1), seed=2)
    requests.put(CheckpointRequest(RunMetrics().state(), None))
    learner.step()
    *_, saved = reports.get_all()

    again, _, _ = learner_of(make_shared(**SETTINGS, system="n-step-q"), saved.path)
    assert equal(again.model, learner.model)
    assert equal(again.parameters.target, target)
    for one in (learner, again):
        train(one, (0, 1), seed=3)
        assert equal(one.parameters.target, one.model), "at step 8 of the run"
    assert equal(again.model, learner.model)


def test_environments_explore_as_much_as_their_epsilons_say(make_shared):
    shared = make_shared(**SETTINGS | {"epsilon_frames": 0}, system="n-step-q")
    learner, _, _ = learner_of(shared)
    with torch.no_grad():
        learner.model.head.weight.zero_()
        learner.model.head.bias[:] = torch.tensor([0.0, 1.0])
    learner.publish()
    policy = make_policy_worker(shared, 0)
    policy.generator.manual_seed(0)
    epsilons = torch.from_numpy(shared.config.exploration(0))
    obs, splits = torch.zeros(2 * N, 4), torch.arange(2)
    policy._exploration[:-1].copy_(epsilons)
    policy.weights.refresh(policy.model)
    num_draws = 3000
    draws = [policy._act({OBS: obs}, splits, torch.empty(0))["actions"] for _ in range(num_draws)]
    others = (torch.stack(draws) == 0).float().mean(0)  # half of the random actions
    expected = epsilons.flatten() / 2
    deviations = (expected * (1 - expected) / num_draws).sqrt()
    assert ((others - expected).abs() < 4.5 * deviations).all()


def test_the_player_is_greedy_or_explores_as_little_as_any(config):
    torch.manual_seed(0)
    weights = make_algorithm(config, envs.describe("CartPole-v1")).make_model().state_dict()
    player = Player(config, weights, seed=0)
    assert player.policy._exploration.item() == pytest.approx(config.exploration(10**9).min())
    endless = dataclasses.replace(config, train_frames=0)
    assert (
        Player(endless, weights, seed=0).policy._exploration.item()
        == player.policy._exploration.item()
    )
    moments = list(Player(config, weights, seed=0, deterministic=True).episode(0))
    assert moments[-1].steps > 5
