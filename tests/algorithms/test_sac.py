"""SAC: its loss is that of the paper, its memory sets the pace, and it learns."""

import copy
import importlib.metadata

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from sfrl import envs
from sfrl.algorithms import make_algorithm
from sfrl.commands import train as cli
from sfrl.envs import ActionSpec, EnvSpec, Leaf
from sfrl.experience.minibatch import Minibatch
from sfrl.ipc.mailbox import Mailbox
from sfrl.ipc.messages import CheckpointRequest
from sfrl.parameters.model_size import model_size
from sfrl.records.metrics import RunMetrics
from sfrl.run import limits
from sfrl.run.roles import make_learner, make_policy_worker
from sfrl.settings.config import ConfigError
from sfrl.settings.sac import SACConfig
from sfrl.tune import tuner
from tests.runs import run_training
from tests.test_learning import greedy_return

D, A, C = 3, 2, 6  # numbers of an observation and of an action, windows
TWO = ActionSpec(low=(-2.0,) * A, high=(2.0,) * A)


def make(actions=TWO, leaf=None, **settings):
    leaf = leaf or Leaf("obs", "vector", (D,), "float32")
    spec = EnvSpec("vector", (leaf,), actions, 1)
    settings = {"env": "Pendulum-v1", "frameskip": 1, "model": "flat", "run_dir": "x", **settings}
    algorithm = make_algorithm(SACConfig(**settings), spec)
    torch.manual_seed(0)
    model = algorithm.make_model()
    with torch.no_grad():  # as different as after some training
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return algorithm, model


@pytest.mark.parametrize("model", ["flat", "mlp", "tests.faulty_encoder:Lazy"])
def test_targets_begin_as_what_they_follow(model):
    leaf = Leaf("obs", "vector", (D,), "float32")
    config = SACConfig(env="Pendulum-v1", frameskip=1, model=model, run_dir="x")
    made = make_algorithm(config, EnvSpec("vector", (leaf,), TWO, 1)).make_model()
    for target, followed in (
        (made.value_encoder, made.encoder),
        (made.target_critics, made.critics),
    ):
        torch.testing.assert_close(
            dict(target.state_dict()), dict(followed.state_dict()), rtol=0, atol=0
        )


def windows(n=1, seed=0):
    """The second one's first step ends its episode; the third's is cut off."""
    torch.manual_seed(seed)
    terminated = torch.zeros(n, C, dtype=torch.bool)
    valid = torch.ones(n + 1, C, dtype=torch.bool)
    terminated[0, 1] = True
    valid[1, 1] = valid[1, 2] = False
    ends = torch.full((C,), n)
    ends[1:3] = 1
    return Minibatch(
        obs={"obs": torch.randn(2, C, D)},
        valid=valid,
        rnn_state=None,
        acted={"actions": torch.randn(n, C, A)},
        rewards=torch.randn(n, C),
        terminated=terminated,
        policy_version=torch.zeros(n, C, dtype=torch.int64),
        ends=ends,
    )


def q_values(critics, obs, actions):
    """[2, B]"""
    x, outputs = torch.cat([obs, actions], dim=1), []
    for k in range(2):
        y = x
        for i in range(3):
            y = F.linear(y, critics.weights[i][k].T, critics.biases[i][k, 0])
            y = y.relu() if i < 2 else y
        outputs.append(y[:, 0])
    return torch.stack(outputs)


def policy_of(model, obs):
    mean, log_std = model.actor(obs).chunk(2, dim=1)
    return TransformedDistribution(Normal(mean, log_std.clamp(-20, 2).exp()), TanhTransform())


@pytest.mark.parametrize("n", [1, 3])
def test_loss_and_gradients_are_those_of_the_paper(n):
    algorithm, model = make(gamma=0.9, n_step=n, target_entropy=-0.5)
    plain, batch = copy.deepcopy(model), windows(n)
    torch.manual_seed(1)
    loss = algorithm.loss(model, None, batch, torch.tensor(0))
    loss.total.backward()

    torch.manual_seed(1)
    noise = torch.randn(C, A), torch.randn(C, A)
    alpha = plain.log_temperature.exp()
    obs, rewards, targets = batch.obs["obs"], batch.rewards, torch.zeros(C)

    def draw(obs, noise):
        policy = policy_of(plain, obs)
        raw = policy.base_dist.loc + policy.base_dist.scale * noise
        return raw.tanh(), policy.log_prob(raw.tanh()).sum(dim=1)

    with torch.no_grad():
        for i in range(C):  # each window to its end, or that of its episode
            target, discount = 0.0, 1.0
            for t in range(n):
                target += discount * rewards[t, i]
                discount *= 0.0 if batch.terminated[t, i] else 0.9
                if t + 1 == n or not batch.valid[t + 1, i]:
                    assert batch.ends[i] == t + 1
                    action, log_prob = draw(obs[1, i : i + 1], noise[0][i])
                    q = q_values(plain.target_critics, obs[1, i : i + 1], action).min()
                    target += discount * (q - alpha * log_prob[0])
                    break
            targets[i] = target
    torch.testing.assert_close(loss.targets, targets, rtol=1e-4, atol=1e-4)

    taken = q_values(plain.critics, obs[0], batch.acted["actions"][0].tanh())
    (0.5 * (taken - targets).square().mean(dim=1).sum()).backward()  # J_Q of each
    actions, log_probs = draw(obs[0], noise[1])
    fixed = copy.deepcopy(plain.critics).requires_grad_(False)
    q = q_values(fixed, obs[0], actions).min(dim=0).values
    (alpha.detach() * log_probs - q).mean().backward()  # J_pi
    (-alpha * (log_probs.detach() - 0.5 * A).mean()).backward()  # J(alpha), entropy of -0.5 each
    for (name, p), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (p.grad is None) == (expected.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, expected.grad, rtol=1e-3, atol=1e-5, msg=name)
    assert model.log_temperature.grad != 0
    assert loss.statistics.keys() == set(SACConfig.STATISTICS)
    entropy = -log_probs.detach().mean()
    torch.testing.assert_close(loss.statistics["entropy"], entropy, rtol=1e-3, atol=1e-4)


def test_rows_that_are_not_to_count_change_nothing():
    algorithm, model = make(max_policy_lag=5)
    totals = []
    for other in (0.0, 100.0):
        batch = windows()
        batch.policy_version[0, 3] = -6
        batch.rewards[0, 3] += other
        batch.obs["obs"][:, 3] += other
        torch.manual_seed(1)
        loss = algorithm.loss(model, None, batch, torch.tensor(0))
        totals.append(loss.total.item())
        assert loss.mask[0].tolist() == [True] * 3 + [False] + [True] * 2
    assert totals[0] == totals[1]
    batch.policy_version[:] = -6
    loss = algorithm.loss(model, None, batch, torch.tensor(0))
    assert loss.total == 0
    loss.total.backward()
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("target", "sign"), [(-10.0, 1), (10.0, -1)])
def test_the_temperature_moves_towards_the_target_entropy(target, sign):
    """More entropy than is asked for makes it cheaper."""
    algorithm, model = make(target_entropy=target)
    algorithm.loss(model, None, windows(), torch.tensor(0)).total.backward()
    assert model.log_temperature.grad.sign() == sign


def test_targets_follow_the_critics_by_tau_and_stay_if_a_step_is_left_out():
    leaf = Leaf("obs", "image", (1, 10, 5), "uint8", 255.0)
    algorithm, model = make(leaf=leaf, model="impala_resnet", tau=0.25)
    pairs = ((model.target_critics, model.critics), (model.value_encoder, model.encoder))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.center_weights()
    batch = windows()._replace(obs={"obs": torch.zeros(2, C, 1, 10, 5, dtype=torch.uint8)})
    before = [[p.clone() for p in targets.parameters()] for targets, _ in pairs]
    loss = algorithm.loss(model, None, batch, torch.tensor(0))
    loss.total.backward()
    assert model.encoder.linear.weight.grad.any(), "the critics train it"
    algorithm.after_update(model, batch, loss, torch.tensor(False))
    for (targets, _), old in zip(pairs, before, strict=True):
        assert all(torch.equal(*both) for both in zip(targets.parameters(), old, strict=True))
    algorithm.after_update(model, batch, loss, torch.tensor(True))
    for (targets, sources), old in zip(pairs, before, strict=True):
        for t, s, o in zip(targets.parameters(), sources.parameters(), old, strict=True):
            torch.testing.assert_close(t, 0.75 * o + 0.25 * s)
            assert not t.requires_grad


def test_random_actions_are_spread_evenly_between_the_bounds():
    algorithm, model = make()
    obs = {"obs": torch.zeros(5000, D)}
    generator = torch.Generator().manual_seed(0)
    acted = algorithm.act(model, obs, None, torch.ones(5000), generator).fields["actions"]
    assert acted.isfinite().all()
    even = acted.tanh().sort(dim=0).values  # as many everywhere
    expected = torch.linspace(-1, 1, 5000).unsqueeze(1).expand(5000, A)
    torch.testing.assert_close(even, expected, atol=0.05, rtol=0)
    greedy = algorithm.greedy(model, obs, None).fields["actions"]
    assert torch.equal(greedy, model.step(obs).mean)


def test_actions_are_random_until_learning_starts():
    config = SACConfig(learning_starts=100, frameskip=4, run_dir="x", num_splits=2)
    assert config.exploration(399).tolist() == [[1, 1]] * 2 * config.num_workers
    assert not config.exploration(400).any()


def test_muon_needs_an_encoder_with_weights():
    flags = ["--env=Pendulum-v1", "--system=sac", "--run-dir=x", "--optimizer=muon"]
    with pytest.raises(ConfigError, match=r"optimizer=muon .* model=flat has none; use adam"):
        cli.parse([*flags, "--model=flat"])
    assert cli.parse([*flags, "--model=norm_mlp"]).optimizer == "muon"


@pytest.mark.parametrize("model", ["flat", "norm_mlp"])
def test_the_size_of_the_model_is_known_without_it(model):
    algorithm, network = make(model=model)
    numbers = sum(tensor.numel() for tensor in network.state_dict().values())
    assert model_size(algorithm.config, algorithm.env) == numbers


# --- settings ---


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (
            "--action-bounds=clip",
            "action_bounds=clip must be tanh: clipped actions have no density",
        ),
        ("--rnn=gru", "rnn=gru must be none: sac learns from single decisions"),
        ("--epochs=2 --batch-size=100", "epochs=2 must be 1: it is of trajectories"),
        ("--replay-size=20", "replay_size=20 must be at least 52, so that each of 4 environ"),
        ("--replay-size=400", "learning_starts=2000 must be at most 196, the decisions that"),
        (
            "--env=CartPole-v1",
            "must have a Box of actions, and an action of CartPole-v1 is a Discrete",
        ),
        ("--target-every=5", "target_every is a setting of system=n-step-q, "),
    ],
)
def test_what_sac_is_not_for_is_refused_with_a_remedy(flags, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refusal:
        cli.parse(["--env=Pendulum-v1", "--system=sac", *flags.split()])
    assert problem in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


def test_each_setting_that_sac_is_not_for_is_refused_in_a_line_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refusal:
        cli.parse(["--env=Pendulum-v1", "--system=sac", "--rnn=gru", "--rnn-size=8"])
    rnn, size = str(refusal.value).splitlines()
    assert rnn.startswith("rnn=gru must be none: sac learns from single decisions; leave it out")
    assert size.startswith("rnn_size=8 must be 0: sac learns from single decisions; leave it out")


def test_remedies_of_the_memorys_size_work():
    for settings in ({"replay_size": 20}, {"replay_size": 400}):
        with pytest.raises(ConfigError) as refusal:
            SACConfig(**settings, num_workers=1, run_dir="x")
        size = int(str(refusal.value).rpartition("replay_size=")[2])
        SACConfig(replay_size=size, num_workers=1, run_dir="x")


def test_the_tuner_leaves_it_alone_and_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = cli.parse(["--env=Pendulum-v1", "--system=sac"])
    tuned = tuner.tune(config, {}, envs.describe("Pendulum-v1"))
    assert "not tuned: with a memory" in tuned.tuned
    assert tuned.num_workers == config.num_workers


def test_a_memory_that_is_too_large_is_refused_before_the_start(make_shared, monkeypatch):
    monkeypatch.setattr(limits, "available_memory", lambda: 700 << 20)
    monkeypatch.setattr(limits, "machine", lambda: {"gpu": None})
    settings = {"env": "Pendulum-v1", "system": "sac", "frameskip": 1, "model": "flat"}
    # A row has 3 numbers, 1 action and a reward of 4 bytes, 2 bits in a byte each, and a version.
    text = r"286 MiB of a memory of 10,000,000 rows .* lower --replay-size=10000000,"
    with pytest.raises(limits.ShortageError, match=text):
        make_shared(**settings, replay_size=10_000_000, num_workers=8, envs_per_worker=8)
    text = r"1 processes, .* 5,722 MiB of a memory of 200,000,000 rows"
    with pytest.raises(limits.ShortageError, match=text):
        make_shared(**settings, replay_size=200_000_000, num_workers=1, serial=True)
    monkeypatch.setattr(limits, "machine", lambda: {"gpu": "H200"})
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2.13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    make_shared(**settings, replay_size=200_000_000, num_workers=1, serial=True)  # which has it
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not limits._finds_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert limits._finds_gpu()
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2.13.0+cpu")
    assert not limits._finds_gpu()
    with pytest.raises(limits.ShortageError, match=text):
        make_shared(**settings, replay_size=200_000_000, num_workers=1, serial=True, device="cpu")


# --- the learner ---

SMALL = {
    "env": "Pendulum-v1",
    "system": "sac",
    "frameskip": 1,
    "model": "flat",
    "num_workers": 1,
    "batch_size": 32,
    "replay_size": 1000,
    "learning_starts": 30,
    "updates_per_decision": 0.5,
}


def fill(shared, slot, seed):
    buffer, rng = shared.buffer, np.random.default_rng(seed)
    buffer.obs["obs"][slot] = rng.normal(size=buffer.obs["obs"].shape[1:])
    buffer.actions[slot] = rng.normal(size=buffer.actions.shape[1:])
    buffer.rewards[slot] = rng.normal(size=buffer.rewards.shape[1:])
    buffer.valid[slot] = True
    buffer.starts[slot] = seed == 0


def trained(learner, shared, seeds):
    """The weights after a slot of each seed, and how many steps each made."""
    steps = []
    for seed in seeds:
        fill(shared, seed % 2, seed)
        before = learner.learner_steps
        learner.begin([seed % 2])
        while learner.is_training:
            learner._train_on_next()
        [replies] = shared.channels.replies
        assert len(replies.get_many(9)) == 1
        steps.append(learner.learner_steps - before)
    return copy.deepcopy(learner.model.state_dict()), steps


def test_slots_go_back_at_once_and_none_is_taken_while_updates_are_due(make_shared):
    shared = make_shared(**SMALL)
    learner = make_learner(shared, Mailbox(), Mailbox(), None)
    [replies] = shared.channels.replies
    for seed in range(2):  # 16 decisions each
        fill(shared, seed, seed)
        learner.slots.waiting.append(seed)
    assert learner.step()
    assert learner.learner_steps == 0, "too few decisions"
    assert len(replies.get_many(9)) == 1
    assert learner.step()
    assert len(replies.get_many(9)) == 1, "before its 8 updates are made"
    learner.slots.waiting.append(0)
    for steps in range(2, 9):
        assert learner.step()
        assert (learner.learner_steps, list(learner.slots.waiting)) == (steps, [0])
    learner.step()
    assert not learner.slots.waiting
    policy = make_policy_worker(shared, 0)
    assert policy.weights.refresh(policy.model)
    assert policy.weights.version == 8


def test_after_a_resume_it_is_filled_again_before_learning_goes_on(make_shared):
    shared, reports, requests = make_shared(**SMALL), Mailbox(), Mailbox()
    learner = make_learner(shared, reports, requests, None)
    before, steps = trained(learner, shared, range(4))
    assert steps == [0, 8, 8, 8]
    requests.put(CheckpointRequest(RunMetrics().state(), None))
    learner.step()
    *_, saved = reports.get_all()
    again = make_learner(shared, Mailbox(), Mailbox(), saved.path)
    assert all(torch.equal(before[name], w) for name, w in again.model.state_dict().items())
    weights, steps = trained(again, shared, range(4, 7))
    assert steps == [0, 8, 8]
    assert not torch.equal(weights["critics.weights.0"], before["critics.weights.0"])


@pytest.mark.slow
def test_it_learns_where_to_point(tmp_path):
    """The middle, always, has -0.77; random pointing has less than -1."""
    ended = run_training(
        tmp_path / "run",
        *("--env=tests.tiny_envs:Pointer-v0", "--system=sac", "--serial", "--reward-scale=10"),
        *(
            "--learning-starts=200",
            "--train-frames=1000",
            "--learning-rate=0.001",
            "--batch-size=64",
        ),
    )
    assert ended.code == 0, ended.stderr
    assert greedy_return(tmp_path / "run") > -0.25
