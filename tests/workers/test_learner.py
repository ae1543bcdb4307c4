"""Learner: which rows it learns from, how often, and what it leaves behind."""

import copy
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from sfrl.algorithms import actor_critic
from sfrl.envs import OBS
from sfrl.ipc.index_queue import unpack
from sfrl.ipc.mailbox import Mailbox
from sfrl.ipc.messages import CheckpointRequest, LearnerReport
from sfrl.ipc.shared_memory import Stopped
from sfrl.ipc.topology import LEARNER, Role
from sfrl.maths.vtrace import vtrace
from sfrl.nets.distributions import Categorical
from sfrl.parameters.weights import WeightsReader
from sfrl.records import checkpoint
from sfrl.records.metrics import RunMetrics
from sfrl.run.roles import make_learner
from sfrl.workers.learner import LearnerError
from sfrl.workers.worker import worker_loop
from tests.actors import Actors
from tests.leaves import drawn

T, N = 6, 4  # rollout length, environments per split
SMALL = {
    "env": "CartPole-v1",
    "frameskip": 1,
    "num_workers": 2,
    "num_splits": 2,
    "envs_per_worker": 2 * N,
    "slots_per_split": 1,
    "rollout_length": T,
    "batch_size": T * N,
    "minibatches": 2,
    "epochs": 2,
    "reward_clip": "none",
    "model": "mlp",
    "precision": "float32",
    "learning_rate": 0.01,
    "lr_schedule": "constant",
}
MEMORIES = [
    {},
    {"rnn": "gru", "rnn_size": 5},
    {"rnn": "lstm", "rnn_size": 4, "rnn_layers": 2},
]
SAVED = [{}, {"normalize_returns": True, "normalize_obs": True, **MEMORIES[2]}]
ONE_UPDATE = {"batch_size": 2 * T * N, "minibatches": 1, "epochs": 1}


class Bench:
    """A learner on its own: slots come from `fill`, what it says is read by the test."""

    def __init__(self, shared, resume_path=None):
        self.shared = shared
        self.buffer = shared.buffer
        self.reports = Mailbox()
        self.requests = Mailbox()
        self.learner = make_learner(shared, self.reports, self.requests, resume_path)
        self.model = self.learner.model

    def fill(self, *slots, seed=0):
        """Random experience whose actions the learner's present policy finds likely enough."""
        buffer = self.buffer
        for slot in slots:
            rng = np.random.default_rng([seed, slot])
            for leaf in buffer.spec.leaves:
                buffer.obs[leaf.name][slot] = drawn(leaf, T + 1, N, rng=rng)
            buffer.actions[slot] = rng.integers(2, size=(T, N))
            log_probs = math.log(0.5) + rng.normal(scale=0.1, size=(T, N))
            if "log_probs" in buffer.acted:
                buffer.acted["log_probs"][slot] = log_probs
            rng.normal(size=(T, N))
            buffer.rewards[slot] = rng.normal(size=(T, N))
            ended = rng.random((T, N)) < 0.2
            ended[1:] &= ~ended[:-1]
            buffer.terminated[slot] = ended & (rng.random((T, N)) < 0.5)
            buffer.truncated[slot] = ended & ~buffer.terminated[slot]
            buffer.valid[slot, 0] = True
            buffer.valid[slot, 1:] = ~ended
            buffer.policy_version[slot] = self.learner.learner_steps

    def send(self, *slots):
        """Put full slots into the learner's queue, as the workers that fill them do."""
        addresses = self.shared.topology.slots
        for slot in slots:
            sender = Role("rollout", addresses.rollout[addresses.split[slot]])
            queue, producer = self.shared.channels.outbox(sender, LEARNER)
            queue.put(self.buffer.message(slot, T), producer)

    def train(self, *slots):
        """One training batch; the statistics reported on it."""
        self.begin(*slots)
        assert self.returned() == list(slots)
        self.learner.report()
        report = self.reports.get_all()[-1]
        assert isinstance(report, LearnerReport)
        return report.metrics

    def begin(self, *slots):
        """A training batch, as long as nothing has to be waited for."""
        self.learner._next_report_s = math.inf  # by `train`, when all is there
        self.learner.begin(list(slots))
        while self.learner.is_training:
            self.learner._train_on_next()

    def returned(self):
        """The slots that the learner has given back since the last call."""
        messages = [m for queue in self.shared.channels.replies for m in queue.get_many(100)]
        assert all(unpack(message)[1] == T for message in messages)
        return [unpack(message)[0] for message in messages]

    def weights(self):
        return copy.deepcopy(self.model.state_dict())


@pytest.fixture
def make_bench(make_shared):
    return lambda **settings: Bench(make_shared(**SMALL | settings))


def same(weights, others):
    return all(torch.equal(weights[name], others[name]) for name in weights)


# --- which rows count ---


@pytest.mark.parametrize("settings", [{}, {"loss": "vtrace"}, {"normalize_returns": True}])
def test_rows_older_than_max_policy_lag_have_no_influence(make_bench, settings):
    outcomes = []
    for old_data in (0, 1):
        bench = make_bench(**ONE_UPDATE, max_policy_lag=3, **settings)
        bench.learner.progress.learner_steps = 10
        bench.fill(0, 1)
        buffer = bench.buffer
        buffer.policy_version[0] = [6, 6, 7, 8, 9, 10]  # the first two rows are too old
        for field in (buffer.rewards, buffer.acted["log_probs"], buffer.obs[OBS]):
            field[0, :2] += old_data
        buffer.actions[0, :2] = old_data
        metrics = bench.train(0, 1)
        assert metrics["dropped_rows"] == buffer.valid[0, :2].sum() > 0
        assert metrics["policy_lag_max"] == 4
        outcomes.append(bench.weights())
    assert same(*outcomes)


def test_rows_of_max_policy_lag_are_learned_from(make_bench):
    outcomes = []
    for reward in (0, 1):
        bench = make_bench(**ONE_UPDATE, max_policy_lag=3)
        bench.learner.progress.learner_steps = 10
        bench.fill(0, 1)
        bench.buffer.policy_version[0] = 7
        bench.buffer.rewards[0, 1] += reward
        assert bench.train(0, 1)["dropped_rows"] == 0
        outcomes.append(bench.weights())
    assert not same(*outcomes)


@pytest.mark.parametrize("settings", [{}, {"normalize_returns": True}])
def test_rows_that_only_reset_have_no_influence(make_bench, settings):
    outcomes = []
    for junk in (0, 1):
        bench = make_bench(**ONE_UPDATE, **settings)
        bench.fill(0, 1)
        only_resets = np.flatnonzero(~bench.buffer.valid[:2, :-1].ravel())
        assert len(only_resets) > 3
        for field in (bench.buffer.rewards, *bench.buffer.acted.values()):
            field[:2].reshape(-1)[only_resets] = junk
        bench.train(0, 1)
        outcomes.append(bench.weights())
    assert same(*outcomes)


def test_a_batch_without_any_row_to_learn_from_is_survived(make_bench):
    bench = make_bench(**ONE_UPDATE)
    bench.fill(0, 1)
    bench.buffer.valid[:2] = False
    before = bench.weights()
    metrics = bench.train(0, 1)
    assert "policy_lag_mean" not in metrics
    assert same(before, bench.weights())


# --- the loss ---


def test_targets_bootstrap_where_an_episode_is_cut_but_not_where_it_terminates(make_bench):
    bench = make_bench(gamma=0.5, trace_lambda=1.0)
    bench.fill(0)
    buffer, model, learner = bench.buffer, bench.model, bench.learner
    buffer.terminated[0], buffer.truncated[0], buffer.valid[0] = False, False, True
    buffer.terminated[0, 2, 1] = True  # environment 0 goes on, 1 terminates,
    buffer.truncated[0, 2, 2] = True  # 2 is truncated in the middle, 3 on the last row
    buffer.truncated[0, 5, 3] = True
    buffer.valid[0, 3, 1:3] = False
    buffer.valid[0, 6, 3] = False
    buffer.rewards[0, 3, 1:3] = 77  # of rows that only reset: must not be seen

    batch = learner.experience.gather(torch.zeros(N, dtype=torch.int64), torch.arange(N))
    logits, values = model.unroll(batch.obs, None, batch.valid)
    policy = Categorical(logits.detach()[:-1])
    acted = batch.acted | {"log_probs": policy.log_prob(batch.acted["actions"])}
    batch = batch._replace(acted=acted)
    vs = learner.algorithm.loss_of(model, batch, logits, values, batch.valid[:-1]).targets

    r, v = batch.rewards, values.detach()
    last_two = r[4] + 0.5 * (r[5] + 0.5 * v[6])
    expected = [
        r[0] + 0.5 * (r[1] + 0.5 * (r[2] + 0.5 * (r[3] + 0.5 * last_two))),
        r[0] + 0.5 * (r[1] + 0.5 * r[2]),
        r[0] + 0.5 * (r[1] + 0.5 * (r[2] + 0.5 * v[3])),
        r[0] + 0.5 * (r[1] + 0.5 * (r[2] + 0.5 * (r[3] + 0.5 * last_two))),
    ]
    for i in range(N):
        torch.testing.assert_close(vs[0, i], expected[i][i])
    torch.testing.assert_close(vs[4], last_two)
    torch.testing.assert_close(vs[3, 1:3], v[3, 1:3])


@pytest.mark.parametrize(
    ("name", "correction"),
    [
        *(("appo", "vtrace"), ("appo", "none"), ("vtrace", "vtrace"), ("vtrace", "one-step")),
        *(("vtrace", "epsilon"), ("vtrace", "none"), ("appo", "decoupled"), ("appo", "impact")),
        ("appo", "filter"),
    ],
)
def test_the_loss_is_the_one_that_was_asked_for(make_bench, monkeypatch, name, correction):
    monkeypatch.setattr(actor_critic, "_LEAST_PROBABILITY", 0.3)  # large enough to be seen
    clip = 0.05 if correction == "filter" else 0.1  # twice the total variation that it leaves
    coefs = {"ppo_clip": clip, "entropy_coef": 0.1, "value_coef": 0.7}
    bench = make_bench(loss=name, correction=correction, normalize_advantages=False, **coefs)
    bench.fill(0)
    batch = bench.learner.experience.gather(torch.zeros(N, dtype=torch.int64), torch.arange(N))
    logits, values = bench.model.unroll(batch.obs, None, batch.valid)
    mask = batch.valid[:-1]
    between = None
    if correction in ("decoupled", "impact"):  # far enough from the one that acted to be clipped
        between = batch.acted["log_probs"] + torch.linspace(-1.5, 1.5, T * N).reshape(T, N)
    loss = bench.learner.algorithm.loss_of(bench.model, batch, logits, values, mask, between)
    vs = loss.targets

    policy = torch.distributions.Categorical(logits=logits[:-1])
    log_probs = policy.log_prob(batch.acted["actions"])
    ratios = (log_probs - batch.acted["log_probs"]).exp()
    assert ((ratios[mask] - 1).abs() > 0.1).any()
    weights = torch.ones_like(ratios)
    if correction in ("vtrace", "decoupled", "filter"):
        weights = ratios
    around, counts = ratios, 1.0  # pi / the policy that it is clipped around; a row's weight
    if between is not None:
        aged = (between - batch.acted["log_probs"]).exp()  # the policy between / mu
        if correction == "impact":
            weights = aged
            around = (1 / aged).clamp(max=2) * ratios
        else:
            around, counts = ratios / aged, aged
    returns = vtrace(
        weights.log(), 0.99 * (~batch.terminated), batch.rewards, values, mask, lambda_=0.95
    )
    advantages = returns.advantages
    weighted = correction in ("vtrace", "one-step")
    least = 0.3 if correction == "epsilon" else 0.0
    scores = (log_probs.exp() + least).log()
    surrogates = {
        "appo": counts * torch.minimum(around * advantages, around.clamp(0.9, 1.1) * advantages),
        "vtrace": (ratios.clamp(max=1) if weighted else 1.0) * scores * advantages,
    }
    if correction == "filter":
        pulls_away = (ratios - 1) * advantages > 0
        assert (ratios - 1)[mask].abs().mean() > clip, "all that pull away are left out"
        surrogates["appo"] = torch.where(pulls_away, 0.0, ratios * advantages)
    torch.testing.assert_close(vs, returns.vs)
    expected = {
        "policy_loss": -surrogates[name][mask].mean(),
        "value_loss": 0.5 * (values[:-1] - vs)[mask].square().mean(),
        "entropy": policy.entropy()[mask].mean(),
    }
    for term, value in expected.items():
        torch.testing.assert_close(loss.statistics[term], value.detach())
    total = expected["policy_loss"] + 0.7 * expected["value_loss"] - 0.1 * expected["entropy"]
    torch.testing.assert_close(loss.total, total)


@pytest.mark.parametrize("correction", ["decoupled", "impact"])
def test_ppo_clips_around_the_target_network(make_bench, correction):
    coefs = {"ppo_clip": 0.1, "entropy_coef": 0.0, "value_coef": 0.0}
    bench = make_bench(correction=correction, normalize_advantages=False, **coefs)
    bench.fill(0)
    learner = bench.learner
    batch = learner.experience.gather(torch.zeros(N, dtype=torch.int64), torch.arange(N))
    target = learner.parameters.target
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    logits = target.unroll(batch.obs, None, batch.valid)[0][:-1]
    between = torch.distributions.Categorical(logits=logits).log_prob(batch.acted["actions"])
    unrolled = bench.model.unroll(batch.obs, None, batch.valid)
    mask = batch.valid[:-1]
    version = torch.zeros((), dtype=torch.int64)
    loss = learner.algorithm.loss(bench.model, target, batch, version)
    expected = learner.algorithm.loss_of(bench.model, batch, *unrolled, mask, between.detach())
    torch.testing.assert_close(loss.total, expected.total)
    around = between
    if correction == "impact":
        around = torch.maximum(between, batch.acted["log_probs"] - np.log(2))
    log_probs = torch.distributions.Categorical(logits=unrolled[0][:-1]).log_prob(
        batch.acted["actions"]
    )
    is_clipped = ((log_probs - around).exp() - 1).abs() > 0.1
    share = is_clipped[mask].float().mean()
    assert (
        share
        != (((log_probs - batch.acted["log_probs"]).exp() - 1).abs() > 0.1)[mask].float().mean()
    )
    torch.testing.assert_close(loss.statistics["ppo_clipped_fraction"], share)
    assert 0 < share < 1
    torch.testing.assert_close(loss.reach, (1 - share) ** 2)


@pytest.mark.parametrize("method", ["appo", "vtrace", "filter"])
def test_muon_stays_where_ppo_clips_all_rows(make_bench, method):
    settings = {"correction": method} if method == "filter" else {"loss": method}
    bench = make_bench(**ONE_UPDATE, optimizer="muon", **settings)
    bench.fill(0, 1)
    bench.buffer.acted["log_probs"] -= 5  # each action has become far likelier
    before = bench.weights()
    bench.train(0, 1)
    stayed = [n for n, p in bench.model.named_parameters() if torch.equal(p, before[n])]
    matrices = {id(p) for p in bench.model.matrices()}
    names = [n for n, p in bench.model.named_parameters() if id(p) in matrices]
    assert stayed == (names if method == "appo" else [])


@pytest.mark.parametrize("method", ["appo", "vtrace"])
@pytest.mark.parametrize("optimizer", ["adam", "muon", "rmsprop"])
def test_weights_stay_where_all_rows_are_too_old(make_bench, optimizer, method):
    bench = make_bench(**ONE_UPDATE, optimizer=optimizer, loss=method, max_policy_lag=3)
    bench.fill(0, 1)
    bench.train(0, 1)  # now it has momentum
    before = bench.weights()
    bench.learner.progress.learner_steps = 10
    bench.fill(0, 1)
    bench.buffer.policy_version[:2] = 6
    metrics = bench.train(0, 1)
    assert metrics["dropped_rows"] > 0
    assert "entropy" not in metrics, "there are no rows that it could be of"
    assert bench.learner.learner_steps == 10
    assert same(bench.weights(), before)


def loss_of_two_arms(bench, rewards, value=0.0, entropy_coef=0.0):
    """The loss without the value's part, and the logits [T+1, N, 2] that it is of.

    They were drawn equally often; the policy in training has come to prefer the first a bit.
    """
    bench.fill(0)
    batch = bench.learner.experience.gather(torch.zeros(N, dtype=torch.int64), torch.arange(N))
    actions = torch.arange(T * N).reshape(T, N) % 2
    ones, halves = torch.ones((T + 1, N)), torch.full((T, N), 0.5)
    batch = batch._replace(
        acted={"actions": actions, "log_probs": halves.log()},
        rewards=torch.tensor(rewards).float()[actions],
        terminated=torch.ones_like(actions, dtype=torch.bool),
        valid=ones.bool(),
    )
    logits = torch.tensor([0.52, 0.48]).log().repeat(T + 1, N, 1).requires_grad_()
    bench.learner.algorithm.config = dataclasses.replace(
        bench.shared.config, entropy_coef=entropy_coef, value_coef=0.0
    )
    mask = batch.valid[:-1]
    return bench.learner.algorithm.loss_of(bench.model, batch, logits, value * ones, mask), logits


def ascent_of_two_arms(bench, rewards, value=0.0):
    """Which way their logits are moved, [2]."""
    loss, logits = loss_of_two_arms(bench, rewards, value)
    loss.total.backward()
    return -logits.grad.sum(dim=(0, 1))


@pytest.mark.parametrize("loss", ["appo", "vtrace"])
@pytest.mark.parametrize("normalize_advantages", [False, True])
@pytest.mark.parametrize(("rewards", "sign"), [((1, 1), 0), ((1, 0), 1), ((0, 1), -1)])
def test_off_policy_only_rewards_move_the_policy(
    make_bench, loss, normalize_advantages, rewards, sign
):
    bench = make_bench(loss=loss, normalize_advantages=normalize_advantages)
    # Where both arms pay the same the critic knows it, or, with normalization, nothing.
    is_equal = rewards == (1, 1)
    ascent = ascent_of_two_arms(bench, rewards, 0.0 if normalize_advantages or not is_equal else 1)
    if is_equal:
        torch.testing.assert_close(ascent, torch.zeros(2), rtol=0, atol=1e-6)
    else:
        assert ascent[0].sign() == sign
        assert ascent.sum().item() == pytest.approx(0, abs=1e-6)
        assert abs(ascent[0]) > 0.1


@pytest.mark.parametrize(
    ("normalize_returns", "size", "least", "most"),
    [(True, 1.0, 0.1, 1.0), (True, 1e-3, 1e-4, 1e-2), (False, 1e-3, 0.1, 1.0)],
)
def test_advantages_of_no_size_are_not_blown_up(make_bench, normalize_returns, size, least, most):
    """Nor are returns: both are then the noise of a critic that has seen no reward."""
    bench = make_bench(normalize_returns=normalize_returns)
    ascent = ascent_of_two_arms(bench, (size, 0.0))
    assert least < ascent[0] < most


@pytest.mark.parametrize(
    ("settings", "size", "share"),
    [
        ({}, 0.0, 1.0),
        ({"normalize_returns": True}, 0.0, 0.1),
        ({"normalize_returns": True}, 0.04, 0.4),
        ({"normalize_returns": True}, 1.0, 1.0),
        ({"normalize_returns": True, "normalize_advantages": False}, 0.0, 1.0),
    ],
)
def test_the_entropy_bonus_falls_with_what_there_is_to_learn(make_bench, settings, size, share):
    """The deviation of the two arms' advantages is half of `size`; from 0.05 on it is whole."""
    loss, _ = loss_of_two_arms(make_bench(**settings), (size, 0.0), entropy_coef=0.5)
    bonus = loss.statistics["policy_loss"] - loss.total
    assert (bonus / loss.statistics["entropy"]).item() == pytest.approx(0.5 * share, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({"reward_clip": "sign"}, np.sign),
        ({"reward_scale": 0.25}, lambda rewards: 0.25 * rewards),
        ({"reward_clip": "sign", "reward_scale": 0.25}, lambda rewards: 0.25 * np.sign(rewards)),
    ],
)
def test_rewards_are_clipped_then_scaled(make_bench, settings, shape):
    by_learner, by_hand = make_bench(**settings), make_bench()
    by_learner.fill(0, 1)
    by_learner.buffer.rewards[0, 0] = 0
    by_hand.fill(0, 1)
    by_hand.buffer.rewards[:2] = shape(by_learner.buffer.rewards[:2])
    untouched = by_learner.buffer.rewards.copy()
    by_learner.train(0, 1)
    by_hand.train(0, 1)
    assert same(by_learner.weights(), by_hand.weights())
    np.testing.assert_array_equal(by_learner.buffer.rewards, untouched)


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_first_update_on_fresh_experience_is_on_policy(make_bench, memory):
    bench = make_bench(**memory, **ONE_UPDATE)
    with torch.no_grad():
        bench.model.policy_head.weight.mul_(100)
    bench.learner.publish()
    actors = Actors(bench.shared)
    fresh, stale = actors.collect(2), actors.collect(2)
    metrics = bench.train(*fresh)
    assert metrics["approx_kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["ppo_clipped_fraction"] == 0
    assert metrics["policy_lag_max"] == 0
    metrics = bench.train(*stale)
    assert metrics["approx_kl"] > 1e-4
    assert metrics["policy_lag_mean"] == metrics["policy_lag_max"] == 1


def test_normalized_returns_keep_the_value_loss_in_proportion(make_bench):
    losses = {}
    for normalize in (False, True):
        bench = make_bench(normalize_returns=normalize)
        for seed in range(3):
            bench.fill(0, 1, seed=seed)
            bench.buffer.rewards[:2] *= 1000
            losses[normalize] = bench.train(0, 1)["value_loss"]
    assert losses[False] > 1e4
    assert losses[True] < 10
    assert bench.model.value_head.size > 100


@pytest.mark.parametrize("value_encoder", ["shared", "separate"])
@pytest.mark.parametrize("glitch", [1e12, 1e18, 1e20, -1e30, 3e38])
@pytest.mark.parametrize("when", [0, 5])
def test_one_absurd_reward_does_no_lasting_harm(make_bench, value_encoder, glitch, when):
    """Not even in the very first batch, when nothing is known of the usual ones."""

    def trained(glitch):
        bench = make_bench(**ONE_UPDATE, normalize_returns=True, value_encoder=value_encoder)
        for seed in range(20):
            bench.fill(0, 1, seed=seed)
            bench.buffer.rewards[:2] *= 1000
            if seed == when and glitch is not None:
                bench.buffer.rewards[0, 0, 0] = glitch
            last = bench.train(0, 1)
        return bench, last

    (spared, usual), (hit, last) = trained(None), trained(glitch)
    assert all(tensor.isfinite().all() for tensor in hit.weights().values())
    assert hit.model.value_head.size < 3 * spared.model.value_head.size
    assert last["value_loss"] < 10 * usual["value_loss"]
    assert last["skipped_steps"] <= 1


# --- the update ---


def test_gradients_are_scaled_down_to_max_grad_norm(make_bench):
    bench = make_bench(**ONE_UPDATE, max_grad_norm=0.01)
    bench.fill(0, 1)
    assert bench.train(0, 1)["grad_norm"] > 0.1
    norms = torch.stack([p.grad.norm() for p in bench.model.parameters()])
    assert norms.norm() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("field", ["rewards", "obs"])
@pytest.mark.parametrize("normalize_returns", [False, True])
def test_a_non_finite_loss_skips_the_step(make_bench, field, normalize_returns):
    bench = make_bench(**ONE_UPDATE, normalize_returns=normalize_returns)
    bench.fill(0, 1)
    bench.train(0, 1)
    before, steps = bench.weights(), bench.learner.learner_steps
    bench.fill(0, 1)
    fields = vars(bench.buffer) | bench.buffer.obs
    fields[field][0, 0] = np.inf
    metrics = bench.train(0, 1)
    assert same(before, bench.weights())
    assert metrics["skipped_steps"] == 1
    assert metrics["learner_steps"] == bench.learner.learner_steps == steps
    bench.fill(0, 1)
    metrics = bench.train(0, 1)
    assert not same(before, bench.weights())
    assert metrics["skipped_steps"] == 1
    assert metrics["learner_steps"] == steps + 1


def test_many_non_finite_losses_in_a_row_end_the_run(make_bench):
    bench = make_bench(**ONE_UPDATE, max_skipped_steps=3)
    for is_finite in (False, False, True, False, False):
        bench.fill(0, 1)
        if not is_finite:
            bench.buffer.rewards[0, 0] = np.nan
        bench.train(0, 1)
    bench.buffer.rewards[0, 0] = np.nan
    with pytest.raises(LearnerError, match=r"3 optimizer steps in a row .*max_skipped_steps=3"):
        bench.train(0, 1)


def test_the_linear_learning_rate_follows_the_frames_of_all_starts(make_bench):
    bench = make_bench(lr_schedule="linear", learning_rate=0.01, train_frames=1000)
    progress = bench.shared.progress
    progress.frameskip = 4
    for earlier_steps, steps, expected in [(0, 0, 0.01), (0, 50, 0.008), (150, 50, 0.002)]:
        progress.env_steps[-1], progress.env_steps[0] = earlier_steps, steps
        bench.fill(0, 1)
        assert bench.train(0, 1)["learning_rate"] == pytest.approx(expected)
        assert bench.learner.parameters.optimizer.param_groups[0]["lr"] == pytest.approx(expected)
    progress.env_steps[0] = 2000
    assert bench.learner.learning_rate() == 0


@pytest.mark.parametrize(
    ("frames", "expected"), [(0, 0.01), (750_000, 0.005), (2_000_000, 0.01 / 3)]
)
def test_a_learning_rate_falls_with_the_root_of_the_frames(make_bench, frames, expected):
    bench = make_bench(lr_schedule="root", learning_rate=0.01, train_frames=0)
    bench.shared.progress.frameskip = 4
    bench.shared.progress.env_steps[0] = frames // 4
    bench.fill(0, 1)
    assert bench.train(0, 1)["learning_rate"] == pytest.approx(expected)


def test_a_constant_learning_rate_stays(make_bench):
    bench = make_bench(lr_schedule="constant", learning_rate=0.01)
    bench.shared.progress.env_steps[0] = 10**9
    bench.fill(0, 1)
    assert bench.train(0, 1)["learning_rate"] == 0.01


# --- slots, minibatches, versions ---


def test_every_trajectory_is_used_once_per_epoch_and_slots_return_after_the_last(make_bench):
    bench = make_bench(epochs=3)
    buffer = bench.buffer
    bench.fill(0, 3)  # of workers 0 and 1
    for slot, t, env in itertools.product((0, 3), range(T + 1), range(N)):
        buffer.obs[OBS][slot, t, env] = [slot, env, t, 0]
    minibatches = []
    unroll = bench.model.unroll

    def recorded(leaves, rnn_state, valid):
        obs = leaves[OBS]
        assert (obs[..., 2] == torch.arange(T + 1)[:, None]).all(), "rows in order of time"
        assert (obs[..., :2] == obs[0, :, :2]).all(), "of one environment and slot"
        minibatches.append([(int(slot), int(env)) for slot, env in obs[0, :, :2]])
        assert bench.returned() == [], "slots are still in use"
        return unroll(leaves, rnn_state, valid)

    bench.model.unroll = recorded
    bench.train(0, 3)  # sees that they are returned
    assert len(minibatches) == 3 * 2
    everything = sorted(itertools.product((0, 3), range(N)))
    epochs = [a + b for a, b in zip(minibatches[::2], minibatches[1::2], strict=True)]
    assert [sorted(epoch) for epoch in epochs] == [everything] * 3
    assert epochs[0] != epochs[1] != epochs[2]


def test_training_begins_when_a_whole_batch_is_there(make_bench):
    bench = make_bench()
    bench.fill(0, 1, 2, 3)
    bench.send(1)
    assert not bench.learner.step()
    assert bench.learner.learner_steps == 0
    bench.send(0, 2, 3)
    for steps in range(1, 9):
        assert bench.learner.step(), "a minibatch"
        assert bench.learner.learner_steps == steps
        assert len(bench.returned()) == (0 if steps % 4 else 2), "after the last one"
    assert not bench.learner.step()


def test_reports_are_sent_at_most_five_times_a_second(make_bench, monkeypatch):
    """And nothing of the batches between them is lost."""
    now = [100.0]
    monkeypatch.setattr("sfrl.workers.learner.time.monotonic", lambda: now[0])
    bench = make_bench(**ONE_UPDATE)
    num_reports = []
    for seconds in (0.0, 0.1, 0.05, 0.06, 0.1):
        now[0] += seconds
        bench.fill(0, 1)
        bench.learner.begin([0, 1])
        bench.learner._train_on_next()
        num_reports.append(len(bench.reports.get_all()))
        bench.returned()
    assert num_reports == [1, 0, 0, 1, 0]
    bench.learner.report()
    [report] = bench.reports.get_all()
    assert report.metrics["learner_steps"] == 5
    assert sum(report.lag_counts) == bench.buffer.valid[:2, :-1].sum(), "of the last batch alone"


def test_results_may_be_looked_at_a_batch_later(make_bench, monkeypatch):
    """As on a GPU, which still trains when the host has launched all of a batch."""
    monkeypatch.setattr("sfrl.workers.learner.REPORT_INTERVAL_S", 0.0)
    at_once, later = make_bench(), make_bench()
    later.learner._runs_ahead = True
    laps, lap = [], later.learner.timer.lap
    monkeypatch.setattr(later.learner.timer, "lap", lambda stage: laps.append(stage) or lap(stage))
    for bench in (at_once, later):
        bench.fill(0, 1, 2, 3)
        bench.buffer.rewards[2, 0, 1] = np.nan  # in one of two minibatches
        for slots in ([0, 1], [2, 3]):
            bench.learner.begin(slots)
            while bench.learner.is_training:
                bench.learner._train_on_next()
    assert [len(bench.reports.get_all()) for bench in (at_once, later)] == [2, 1]
    assert later.returned() == [0, 1]
    assert later.learner.learner_steps == 4
    reader = WeightsReader(later.shared.weights)
    model = later.model.inference_copy(torch.float32)
    reader.refresh(model)
    assert reader.version == 4
    assert later.learner.step(), "finishes what it has begun"
    assert not later.learner.step()
    assert later.returned() == [2, 3]
    assert later.learner.learner_steps == at_once.learner.learner_steps == 6
    assert later.learner.skipped_steps == at_once.learner.skipped_steps == 2
    assert laps.count("train") == 2 * 8, "each minibatch is launched, and waited for by itself"
    reader.refresh(model)
    assert reader.version == 6
    assert same(model.state_dict(), later.model.state_dict())
    assert same(at_once.weights(), later.weights())


def test_filters_of_a_cnn_sum_to_0_after_every_optimizer_step(make_bench):
    bench = make_bench(env="Pong", frameskip=4, model="a3c_cnn", learning_rate=0.001)
    encoder = bench.model.encoder
    before = bench.weights()
    bench.fill(0, 1)
    bench.train(0, 1)
    for layer in (encoder.conv1, encoder.conv2, encoder.linear):
        assert layer.weight.flatten(1).sum(1).abs().max() < 1e-5
    assert not same(before, bench.weights())


def test_the_published_weights_are_the_models_with_learner_steps_as_version(make_bench):
    bench = make_bench(normalize_returns=True)
    reader = WeightsReader(bench.shared.weights)
    for steps in (0, 4, 8):
        assert bench.learner.learner_steps == steps
        model = bench.model.inference_copy(torch.float32)
        for tensor in model.state_dict().values():
            tensor.zero_()
        assert reader.refresh(model)
        assert reader.version == steps
        assert same(model.state_dict(), bench.model.state_dict())
        bench.fill(0, 1)
        bench.train(0, 1)


# --- checkpoints ---


@pytest.mark.parametrize("optimizer", ["adam", "muon", "rmsprop"])
@pytest.mark.parametrize(
    "settings", [{}, {"normalize_returns": True, "normalize_obs": True, **MEMORIES[2]}]
)
def test_after_a_checkpoint_is_loaded_the_next_update_is_equal_bit_for_bit(
    make_bench, make_shared, optimizer, settings
):
    settings = {**SMALL, **settings, "optimizer": optimizer}
    first = Bench(make_shared(**settings))
    first.fill(0, 1, seed=1)
    first.buffer.policy_version[0, 0] = -1000
    first.train(0, 1)
    first.fill(0, 1, seed=2)
    first.train(0, 1)
    first.requests.put(CheckpointRequest(RunMetrics().state(), None))
    first.learner.step()
    *_, saved = first.reports.get_all()

    second = Bench(make_shared(**settings), saved.path)
    assert second.learner.learner_steps == first.learner.learner_steps == 8
    assert same(first.weights(), second.weights())
    metrics = []
    for bench in (first, second):
        bench.fill(0, 1, seed=3)
        metrics.append(bench.train(0, 1))
    assert metrics[0] == metrics[1]
    assert metrics[0]["dropped_rows"] > 0
    assert same(first.weights(), second.weights())


def test_the_last_checkpoint_is_written_when_the_run_stops(make_bench):
    bench = make_bench()
    bench.shared.progress.env_steps[0] = 123
    for score in (7.5, 7.0, None):
        bench.requests.put(CheckpointRequest(RunMetrics().state(), score))
    bench.learner.close()
    *_, saved, best = bench.reports.get_all()
    assert (saved.best_score, best.best_score) == (None, 7.5)
    state = checkpoint.load(saved.path)
    assert state["counters"]["env_steps"] == 123
    assert same(state["model"], bench.model.state_dict())
    run_dir = bench.shared.config.run_dir
    assert checkpoint.find(run_dir, "latest").path.name in saved.path
    assert checkpoint.find(run_dir, "best").state["score"] == 7.5


def test_a_checkpoint_counts_what_no_report_has_told(make_bench):
    bench = make_bench(**ONE_UPDATE, max_policy_lag=3)
    bench.learner.progress.learner_steps = 10
    bench.fill(0, 1)
    bench.buffer.policy_version[:2] = 0
    bench.begin(0, 1)
    assert bench.learner.dropped_rows == 0
    dropped_rows = bench.learner.state()["counters"]["dropped_rows"]
    assert dropped_rows == bench.buffer.valid[:2, :-1].sum()


def test_after_its_last_checkpoint_the_learner_trains_no_more(make_bench):
    """The request may arrive before the word that the run is stopping."""
    bench = make_bench()
    bench.fill(0, 1)
    bench.learner.slots.waiting.extend([0, 1])
    bench.requests.put(CheckpointRequest(RunMetrics().state(), None, is_last=True))
    with pytest.raises(Stopped):
        bench.learner.step()
    assert list(bench.learner.slots.waiting) == [0, 1]
    saved = checkpoint.load_latest(bench.shared.config.run_dir).state
    assert saved["counters"]["learner_steps"] == bench.learner.learner_steps == 0


def test_a_stopping_run_does_not_wait_for_the_rest_of_a_training_batch(make_bench):
    """A batch can outlast the trainer's patience; the final checkpoint must still be written."""
    bench = make_bench(epochs=50)
    bench.fill(0, 1)
    bench.learner.slots.waiting.extend([0, 1])
    unroll = bench.model.unroll
    seen = []

    def stop_in_the_third(obs, rnn_state, valid):
        seen.append(obs)
        if len(seen) == 3:
            bench.requests.put(CheckpointRequest(RunMetrics().state(), None))
            bench.shared.stop.set()
        return unroll(obs, rnn_state, valid)

    bench.model.unroll = stop_in_the_third
    worker_loop(bench.learner, bench.shared.stop)
    assert bench.learner.learner_steps == 3
    assert bench.returned() == [0, 1]
    saved = checkpoint.load_latest(bench.shared.config.run_dir).state
    assert saved["counters"]["learner_steps"] == 3


def test_a_warm_up_takes_a_whole_minibatch_and_changes_nothing(make_shared):
    bench = Bench(make_shared(**SMALL | {"debug_buffers": True, "rnn": "gru", "rnn_size": 8}))
    before = copy.deepcopy(bench.learner.state())
    sizes = []
    bench.model.encoder.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    bench.learner.warm_up()
    assert sizes == [(T + 1) * N]  # a minibatch of T * N decisions, and the rows that bootstrap
    after = bench.learner.state()
    for name, value in before["model"].items():
        assert torch.equal(after["model"][name], value)
    assert after["optimizer"]["state"] == {}
    assert after["rng"]["numpy"] == before["rng"]["numpy"]
    assert torch.equal(after["rng"]["torch"], before["rng"]["torch"])
    assert after["counters"] == before["counters"]
    assert all(parameter.grad is None for parameter in bench.model.parameters())
