"""DQN: what a window's first action is to be worth, how much is explored, the learner's pace."""

import copy
import itertools
import json
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch

from sfrl import envs
from sfrl.algorithms import make_algorithm
from sfrl.commands import train as cli
from sfrl.envs import ACTION_MASK, OBS, ActionSpec, EnvSpec, Leaf
from sfrl.experience.minibatch import Minibatch
from sfrl.experience.replay import Replay
from sfrl.parameters.model_size import model_size
from sfrl.records import checkpoint, memory_file
from sfrl.records.timing import StageTimer
from sfrl.run import limits
from sfrl.run.trainer import Trainer
from sfrl.settings.algorithms import make_config
from sfrl.settings.config import ConfigError
from sfrl.settings.defaults import defaults_for
from sfrl.settings.dqn import DQNConfig
from sfrl.workers.learner import Learner
from tests.leaves import vector
from tests.runs import run_training

C, D, A = 6, 4, 3  # windows, numbers in an observation, actions
MASK = Leaf(ACTION_MASK, "mask", (A,), "bool")


def make(*leaves, **settings):
    torch.manual_seed(0)
    config = DQNConfig(model="norm_mlp", reward_clip="none", run_dir="x", **settings)
    algorithm = make_algorithm(
        config, EnvSpec("vector", (vector(D), *leaves), ActionSpec(choices=(A,)), 1)
    )
    model, target = algorithm.make_model(), algorithm.make_model()
    with torch.no_grad():  # as different as after some training
        for parameter in [*model.parameters(), *target.parameters()]:
            parameter.add_(0.3 * torch.randn_like(parameter))
        for network in (model, target):
            network.head.weight.normal_()
    return algorithm, model, target


def windows(n):
    """The second one's first step ends its episode; the third's is cut off."""
    torch.manual_seed(n)
    terminated = torch.zeros(n, C, dtype=torch.bool)
    valid = torch.ones(n + 1, C, dtype=torch.bool)
    terminated[0, 1] = True
    valid[1, 1] = valid[1, 2] = False
    ends = torch.full((C,), n)
    ends[1:3] = 1
    return Minibatch(
        obs={OBS: torch.randn(2, C, D)},
        valid=valid,
        rnn_state=None,
        acted={"actions": torch.randint(A, (n, C))},
        rewards=torch.randn(n, C),
        terminated=terminated,
        policy_version=torch.zeros(n, C, dtype=torch.int64),
        ends=ends,
    )


def values_of(model, obs):
    return model.unroll({OBS: obs.unsqueeze(0)}, None, torch.ones(1, len(obs), dtype=torch.bool))[0]


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize(("n", "double"), [(1, True), (3, True), (3, False)])
def test_the_first_action_moves_towards_rewards_and_the_targets_value(n, double, dueling):
    algorithm, model, target = make(gamma=0.9, n_step=n, double=double, dueling=dueling)
    plain, batch = copy.deepcopy(model), windows(n)
    loss = algorithm.loss(model, target, batch, torch.tensor(0))
    loss.total.backward()

    begin, end = batch.obs[OBS]
    with torch.no_grad():
        at_end = values_of(target, end)
        chooser = values_of(model, end) if double else at_end
        targets = torch.zeros(C)
        for i in range(C):
            discount = 1.0
            for t in range(batch.ends[i]):
                targets[i] += discount * batch.rewards[t, i]
                discount *= 0.0 if batch.terminated[t, i] else 0.9
            targets[i] += discount * at_end[i, chooser[i].argmax()]
    assert not torch.equal(values_of(model, end).argmax(1), at_end.argmax(1)), "double matters"
    values = values_of(plain, begin)[torch.arange(C), batch.acted["actions"][0]]
    (0.5 * (values - targets).square()).mean().backward()
    torch.testing.assert_close(loss.targets, targets)
    for (name, p), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, expected.grad, rtol=1e-3, atol=1e-5, msg=name)
    assert all(p.grad is None for p in target.parameters())
    assert loss.statistics.keys() == set(DQNConfig.STATISTICS)


def test_dueling_values_are_a_states_and_what_actions_add_to_their_mean():
    algorithm, model, _ = make(dueling=True)
    features = torch.randn(5, model.num_features)
    state = torch.nn.functional.linear(features, model.state_head.weight, model.state_head.bias)
    torch.testing.assert_close(model.values(features).mean(1, keepdim=True), state)
    numbers = sum(tensor.numel() for tensor in model.state_dict().values())
    assert model_size(algorithm.config, algorithm.env) == numbers


@pytest.mark.parametrize("double", [False, True])
def test_a_forbidden_action_is_neither_a_targets_best_nor_taken(double):
    algorithm, model, target = make(MASK, double=double, epsilon_frames=0)
    batch = windows(3)
    with torch.no_grad():
        for network in (model, target):
            network.head.bias[0] = 1000.0
    mask = torch.ones(2, C, A, dtype=torch.bool)
    batch.obs[ACTION_MASK] = mask
    assert algorithm.loss(model, target, batch, torch.tensor(0)).targets[0] > 900
    mask[1, :, 0] = False
    assert algorithm.loss(model, target, batch, torch.tensor(0)).targets.abs().max() < 100
    obs = {name: leaf[1] for name, leaf in batch.obs.items()}
    assert (algorithm.greedy(model, obs, None).fields["actions"] != 0).all()
    always, generator = torch.ones(C), torch.Generator().manual_seed(0)
    for _ in range(20):
        assert (algorithm.act(model, obs, None, always, generator).fields["actions"] != 0).all()


def test_epsilons_fall_to_horgans_spread_over_all_environments():
    sizes = {"num_workers": 2, "envs_per_worker": 4, "num_splits": 2, "run_dir": "x"}
    config = DQNConfig(**sizes, epsilon_frames=1000)
    assert (config.exploration(0) == 1).all()
    final = config.exploration(1000)
    assert final.shape == (4, 2)
    expected = 0.4 ** (1 + 7 * np.arange(8) / 7)
    np.testing.assert_allclose(final.flatten(), expected, rtol=1e-5)
    np.testing.assert_allclose(config.exploration(500), (1 + final) / 2, rtol=1e-6)
    same = DQNConfig(**sizes, epsilon_spread=0.0)
    np.testing.assert_allclose(same.exploration(10**9), 0.4)
    alone = DQNConfig(num_workers=1, envs_per_worker=1, run_dir="x")
    np.testing.assert_allclose(alone.exploration(10**9), 0.4**4.5, rtol=1e-4)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ("--env=Pendulum-v1", "system=dqn must have one Discrete to choose from, and an action"),
        ("--rnn=gru", "rnn=gru must be none: dqn learns from single decisions"),
        ("--epochs=2", "epochs=2 must be 1: it is of trajectories that are learned from in order"),
        ("--replay-size=20", "replay_size=20 must be at least"),
        ("--tau=0.1", "tau is a setting of system=sac; leave it out with system=dqn"),
    ],
)
def test_what_dqn_is_not_for_is_refused_with_a_remedy(flags, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refusal:
        cli.parse(["--env=CartPole-v1", "--system=dqn", *flags.split()])
    assert problem in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("env", "slowed"),
    [
        ("Latency", {"updates_per_decision": 0.5, "batch_size": 8}),
        ("CartPole-v1", {"updates_per_decision": 2.0, "batch_size": 1024}),
    ],
    ids=["slow environments", "a slow learner"],
)
def test_what_is_drawn_for_each_decision_is_what_was_asked_for(tmp_path, env, slowed):
    """Whoever is slower: nobody waits for ever, and the other one waits."""
    settings = {"train_frames": 1500, "learning_starts": 300, **slowed}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    ended = run_training(tmp_path / "run", f"--env={env}", "--system=dqn", *flags)
    assert ended.code == 0, ended.stderr
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert memory_file.path_in(tmp_path / "run").is_file()
    learned_from = last["env_steps"] - 300
    assert last["learner_steps"] / learned_from == pytest.approx(
        slowed["updates_per_decision"], rel=0.1
    )


def test_a_memory_is_written_at_the_end_and_filled_again_without_it(tmp_path, caplog):
    """As after a kill, or with other sizes."""
    settings = {
        **defaults_for("CartPole-v1", {"system": "dqn"}).__dict__,
        "learning_starts": 300,
        "replay_size": 2000,
        "updates_per_decision": 0.2,
        "serial": True,
        "run_dir": str(tmp_path),
        "model": "norm_mlp",
        "num_workers": 1,
    }

    def steps_until(frames, **changed):
        caplog.clear()
        Trainer(make_config(settings | {"train_frames": frames} | changed)).run()
        return checkpoint.load_latest(tmp_path).state["counters"]["learner_steps"]

    path = memory_file.path_in(tmp_path)
    steps = steps_until(1000)
    assert steps == pytest.approx(0.2 * 700, abs=10)
    again = steps_until(1400, resume=True)
    assert f"the memory goes on from {path}" in caplog.text
    assert again - steps == pytest.approx(0.2 * 400, abs=10)
    older = "environments go on from rows that are not in the memory, which is older"
    assert older not in caplog.text
    assert steps_until(1500, resume=True, replay_size=3000) == again, "it is too young to learn"
    again = steps_until(1600, resume=True)
    assert f"the memory goes on from {path}" in caplog.text
    assert older in caplog.text
    path.write_bytes(path.read_bytes()[:-1000])
    refilled = steps_until(2000, resume=True)
    assert f"{path} is not used: it cannot be read (BadZipFile" in caplog.text
    assert refilled - again == pytest.approx(0.2 * 100, abs=10)
    content = path.read_bytes()
    steps_until(2100, resume=True, replay_size=3000)
    assert f"{path} is not used: is_acted is (250, 8) and must be (375, 8)" in caplog.text
    assert path.read_bytes() == content, "until the new one is large enough to learn from"
    path.unlink()
    steps_until(2200, resume=True, replay_size=3000)
    assert "memory goes on" not in caplog.text
    assert path.is_file()


def test_a_memory_is_read_after_the_weights_are_there_and_the_watchdog_hears_of_it(
    tmp_path, monkeypatch
):
    settings = {**defaults_for("CartPole-v1", {"system": "dqn"}).__dict__, "model": "norm_mlp"}
    sizes = {"learning_starts": 300, "replay_size": 2000, "serial": True, "num_workers": 1}
    settings |= {**sizes, "run_dir": str(tmp_path)}
    Trainer(make_config(settings | {"train_frames": 600})).run()
    events = []

    def noting(owner, name, text=None):
        original = getattr(owner, name)

        def noted(self, *args):
            events.append(text or args[0])
            return original(self, *args)

        monkeypatch.setattr(owner, name, noted)

    noting(Learner, "publish", "publish")
    noting(Replay, "load_state", "load")
    noting(StageTimer, "lap")
    Trainer(make_config(settings | {"train_frames": 700, "resume": True})).run()
    begins = events.index("publish")
    assert events[begins : begins + 3] == ["publish", "load", "checkpoint"]


def read(run_dir, learner_steps):
    with memory_file.opened(run_dir, learner_steps) as saved:
        return {name: np.concatenate(list(blocks)) for name, blocks in saved.arrays.items()}


def test_no_flipped_bit_of_its_file_is_more_than_an_error_that_says_so(tmp_path):
    path = memory_file.path_in(tmp_path)
    path.parent.mkdir()
    memory_file.save(tmp_path, {"written": np.arange(3), "is_valid": np.ones((2, 2), bool)}, 5, 9)
    whole = path.read_bytes()
    outcomes = Counter()
    for place, bit in itertools.product(range(len(whole)), range(0, 8, 2)):
        flipped = whole[place] ^ 1 << bit
        path.write_bytes(whole[:place] + bytes([flipped]) + whole[place + 1 :])
        try:
            read(tmp_path, 5)  # what nobody reads, such as a date, may be anything
        except memory_file.MemoryFileError as error:
            outcomes[type(error.__cause__)] += 1
    assert outcomes[zipfile.BadZipFile] > 100
    assert {RuntimeError, KeyError} <= outcomes.keys(), "an encrypted one, and another name"


def test_a_memory_of_another_checkpoint_is_not_used(tmp_path):
    memory_file.path_in(tmp_path).parent.mkdir()
    memory_file.save(tmp_path, {"written": np.arange(3)}, 5, 9)
    assert read(tmp_path, 5)["written"].tolist() == [0, 1, 2]
    with pytest.raises(memory_file.MemoryFileError, match="of optimizer step 5, the checkpoint of"):
        read(tmp_path, 6)


def test_a_memory_of_stacks_is_counted_with_each_frame_once(make_shared, monkeypatch):
    monkeypatch.setattr(limits, "available_memory", lambda: 0)
    # A frame, how far back three others are, an action, a reward, two bits, and a version.
    size = 1_000_000 * (84 * 84 + 3 + 8 + 4 + 2 + 8) / 2**20
    with pytest.raises(
        limits.ShortageError, match=f"{size:,.0f} MiB of a memory of 1,000,000 rows"
    ):
        make_shared(env="Pong", system="dqn", num_workers=1, device="cpu")


def test_defaults_are_those_of_the_environments_kind():
    atari = make_config({"system": "dqn", "run_dir": "x"})
    assert (atari.replay_size, atari.n_step, atari.target_every) == (1_000_000, 3, 500)
    spec = envs.describe("CartPole-v1")
    assert DQNConfig.defaults_in(spec, {})["replay_size"] == 100_000
