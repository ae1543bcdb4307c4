"""`sfrl.load` and `Policy.act`: an environment of one's own sees the actions of the training's."""

from contextlib import closing
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import concatenate, create_empty_array
from numpy.testing import assert_equal

import sfrl
from sfrl import envs
from sfrl.envs.atari import Game
from sfrl.envs.gymnasium_envs import _seed_spaces
from sfrl.envs.vec_env import ACTION_MASK, env_seeds
from sfrl.policy import Policy, PolicyState, playing_options
from tests.fresh import fresh_policy, weights_of
from tests.runs import TINY
from tests.test_spaces import settings_of

NUM_STEPS = 14  # three episodes and more


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """On busy cores, threads that wait for each other take seconds."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with `runs/cartpole`, a run of `sfrl.train`."""
    folder = tmp_path_factory.mktemp("trained")
    settings: dict[str, Any] = {}
    for name, value in (flag.removeprefix("--").split("=") for flag in TINY):
        is_number = value.replace(".", "").isdigit()
        settings[name.replace("-", "_")] = float(value) if is_number else value
    sfrl.train(**settings, serial=True, train_frames=500, run_dir=folder / "runs/cartpole")
    return folder


class Own:
    """An environment as a user steps it, beside the same one as runs step it."""

    def __init__(self, policy: Policy, seed: int) -> None:
        config = policy.config
        self.policy, self.env = policy, policy.make_env()
        self.vec_env = envs.make_vec_env(config.env, 1, seed, playing_options(config))
        own_seed = env_seeds(seed, 1)[0]
        _seed_spaces(self.env, own_seed)
        self.in_run = self.vec_env.reset()
        self.obs, self.info = self.env.reset(seed=own_seed)
        self.reward, self.begins = 0.0, True

    def step(self, action: Any, rows: np.ndarray) -> None:
        """Both; the first observation of the next episode follows the last one at once."""
        self.begins = False
        self.obs, reward, terminated, truncated, self.info = self.env.step(action)
        self.reward = float(reward)
        self.vec_env.send(rows)
        result = self.vec_env.recv()
        self.in_run = result.obs
        assert self.reward == pytest.approx(float(result.rewards[0]))
        assert (terminated, truncated) == (result.terminated[0], result.truncated[0])
        if terminated or truncated:
            self.obs, self.info = self.env.reset()
            self.vec_env.send(rows)
            self.in_run = self.vec_env.recv().obs
            self.begins = True

    @property
    def more(self) -> dict[str, Any]:
        has_mask = self.policy.spec.leaves[-1].kind == "mask" and ACTION_MASK in self.info
        return {"action_mask": self.info[ACTION_MASK]} if has_mask else {}


def recorded(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> list[envs.Observations]:
    """What its network is given."""
    given: list[envs.Observations] = []
    decide = policy.decide

    def decide_and_record(obs: envs.Observations, *args: Any, **options: Any) -> Any:
        given.append(obs)
        return decide(obs, *args, **options)

    monkeypatch.setattr(policy, "decide", decide_and_record)
    return given


@pytest.mark.parametrize("case", range(0, 200, 10))
def test_any_environment_is_seen_and_steered_as_in_training(case, monkeypatch):
    """One by one and as a batch of two, whose episodes end at different times."""
    policy = fresh_policy(**settings_of(case))
    given = recorded(policy, monkeypatch)
    pair = [Own(policy, seed) for seed in (1, 2)]
    states: list[PolicyState | None] = [None, None]
    of_both: PolicyState | None = None
    space = policy.observation_space
    for _ in range(NUM_STEPS):
        given.clear()
        actions = []
        for i, own in enumerate(pair):
            state = None if own.begins else states[i]
            action, states[i] = policy.act(
                own.obs, state, deterministic=True, reward=own.reward, **own.more
            )
            assert policy.action_space.contains(action)
            actions.append(action)
            assert_equal(given[i], own.in_run)
        batch = concatenate(space, [own.obs for own in pair], create_empty_array(space, 2))
        masks = [own.info[ACTION_MASK] for own in pair] if pair[0].more else None
        both, of_both = policy.act(
            batch,
            of_both,
            deterministic=True,
            episode_start=[own.begins for own in pair],
            reward=[own.reward for own in pair],
            action_mask=masks,
        )
        first, second, joint = given
        assert_close(joint, {n: np.concatenate([first[n], second[n]]) for n in first})
        as_space = policy.action_space
        apart = concatenate(as_space, actions, create_empty_array(as_space, 2))
        assert_close(both, apart)
        rows = [state.actions for state in states if state is not None]
        np.testing.assert_allclose(of_both.actions, np.concatenate(rows), rtol=1e-4, atol=1e-5)
        if of_both.memory is not None:
            memory = np.concatenate([state.memory for state in states if state is not None])
            np.testing.assert_allclose(of_both.memory, memory, rtol=1e-4, atol=1e-5)
        for own, action, own_rows in zip(pair, actions, rows, strict=True):
            own.step(action, own_rows)
    for own in pair:
        own.env.close()
        own.vec_env.close()


def assert_close(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        ours, theirs = ([x[key] for key in sorted(x)] for x in (ours, theirs))
    if isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one, other)
        return
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("system", "env", "settings"),
    [
        ("appo", "CartPole-v1", {"rnn": "lstm", "rnn_size": 8, "model": "mlp"}),
        ("appo", "Pendulum-v1", {"normalize_obs": True, "model": "norm_mlp"}),
        ("impala", "tests.tiny_envs:Catch-v0", {"model": "small_cnn"}),
        ("n-step-q", "CartPole-v1", {"rnn": "gru", "rnn_size": 8, "model": "mlp"}),
        ("dqn", "CartPole-v1", {"model": "mlp", "normalize_obs": True}),
        ("sac", "tests.tiny_envs:Pointer-v0", {"model": "flat"}),
    ],
)
def test_every_algorithm_acts_drawn_by_seed_and_deterministically(system, env, settings):
    def played(seed: int, *, deterministic: bool) -> list[Any]:
        policy = fresh_policy(seed=0, system=system, env=env, **settings)
        policy = Policy(policy.config, weights_of(policy.config), seed=seed)
        actions, state = [], None
        with closing(policy.make_env()) as own:
            obs, _ = own.reset(seed=0)
            for _ in range(9):
                action, state = policy.act(obs, state, deterministic=deterministic)
                assert own.action_space.contains(action)
                actions.append(np.asarray(action).tolist())
                obs, _, terminated, truncated, _ = own.step(action)
                if terminated or truncated:
                    (obs, _), state = own.reset(), None
        return actions

    assert played(1, deterministic=True) == played(2, deterministic=True)
    assert played(1, deterministic=False) == played(1, deterministic=False)
    if system not in ("dqn", "n-step-q"):  # which hardly ever explore in the end
        assert played(1, deterministic=False) != played(2, deterministic=False)


def test_pong_is_shown_and_played_as_in_training():
    policy = fresh_policy(env="Pong", frameskip=4, model="nature_cnn")
    rng, _ = seeding.np_random(3)
    in_run = np.zeros((4, 84, 84), np.uint8)
    game = Game.of("pong", policy.config.env_options, False, int(rng.integers(2**31)))
    game.restart(in_run)
    with closing(policy.make_env(render_mode="rgb_array")) as env:
        first, _ = obs, _ = env.reset(seed=3)
        for _ in range(30):
            assert_equal(obs, in_run)
            action, _ = policy.act(obs)
            obs, reward, *ends, _ = env.step(action)
            assert (reward, *ends) == game.step(int(action), in_run)[:3]
        assert not first[:3].any()  # which later steps have not written to
        assert env.render().shape == (210, 160, 3)
        assert policy.act(np.stack([obs, obs]))[0].shape == (2,)
        assert_equal(env.reset(seed=3)[0], first)
        with pytest.raises(ValueError, match="action 6 must lie in Discrete"):
            env.step(6)
        assert env.metadata["render_fps"] == 15


@pytest.mark.parametrize("name", ["CartPoles-v0", "NestedDisabled-v0"])
def test_a_vector_is_acted_in_as_it_is(name):
    policy = fresh_policy(env=f"tests.vectors:{name}", model="mlp")
    with closing(policy.make_env()) as env:
        obs, info = env.reset()
        state = None
        for _ in range(2):
            action, state = policy.act(obs, state, action_mask=info.get(ACTION_MASK))
            assert np.asarray(action).shape == (1,)
            obs, *_, info = env.step(action)


def test_a_vector_of_ones_own_class_shows_leaves_and_takes_what_is_decided():
    policy = fresh_policy(env="tests.vectors:Lights", model="mlp", frameskip=2)
    env = policy.make_env()
    obs = env.reset()
    action, state = policy.act(obs)
    env.send(action)
    assert policy.act(env.recv().obs, state)[0].shape == (1,)
    assert policy.act({"obs": obs["obs"][0]})[0] in (0, 1)


def test_episode_starts_that_cannot_be_written_to_are_read():
    """As those of JAX, and of np.broadcast_to."""
    policy = fresh_policy(env="CartPole-v1", model="mlp", rnn="gru", rnn_size=8)
    obs = np.ones((2, 4), np.float32)
    (_, fresh), (_, state) = policy.act(obs), policy.act(obs)
    _, state = policy.act(obs, state, episode_start=np.broadcast_to(np.True_, 2))
    torch.testing.assert_close(state.memory, fresh.memory)


# --- load ---
def test_a_run_is_loaded_by_folder_name_and_path_and_acts(run, monkeypatch):
    monkeypatch.chdir(run)
    [path] = (run / "runs/cartpole/checkpoints").glob("latest-*.pt")
    policy = sfrl.load("runs/cartpole", seed=1)
    envs_of_vector = gymnasium.vector.SyncVectorEnv(
        [policy.make_env] * 3, autoreset_mode=AutoresetMode.SAME_STEP
    )
    obs, _ = envs_of_vector.reset(seed=0)
    state, starts, num_ended = None, np.zeros(3, bool), 0
    for _ in range(60):
        action, state = policy.act(obs, state, episode_start=starts)
        obs, _, terminated, truncated, _ = envs_of_vector.step(action)
        starts = terminated | truncated
        num_ended += starts.sum()
    envs_of_vector.close()
    assert num_ended >= 2
    action, _ = policy.act(obs, deterministic=True)
    for other in (sfrl.load(), sfrl.load(run / "runs/cartpole"), sfrl.load(checkpoint=path)):
        assert_equal(other.act(obs, deterministic=True)[0], action)
    with pytest.raises(sfrl.CheckpointError, match=r"best\.pt does not exist yet"):
        sfrl.load("runs/cartpole", checkpoint="best")
    with pytest.raises(ValueError, match="run_dir=nowhere is no folder"):
        sfrl.load("nowhere")


# --- refusals ---
@pytest.mark.parametrize(
    ("obs", "more", "text"),
    [
        (
            np.zeros(3, np.float32),
            {},
            r"CartPole-v1, observation 0: its observation is float32\[3\]",
        ),
        (np.zeros((2, 3), np.float32), {}, r"observation 0: its observation is float32\[3\]"),
        (np.zeros((0, 4), np.float32), {}, "nor a batch of one or more"),
        ("left", {}, "its observation is <U4"),
        (np.full(4, np.nan, np.float32), {}, "obs has NaN or infinity, on which nobody can act"),
        (
            np.zeros((2, 4), np.float32),
            {"episode_start": [True]},
            "episode_start is of a batch of 1, and",
        ),
        (np.zeros(4, np.float32), {"action_mask": [1, 1]}, "CartPole-v1 has no action masks"),
    ],
)
def test_what_does_not_fit_is_told(obs, more, text):
    policy = fresh_policy(env="CartPole-v1", model="mlp")
    with pytest.raises(ValueError, match=text):
        policy.act(obs, **more)


@pytest.mark.parametrize("is_single", [True, False])
def test_an_observation_without_its_mask_is_told_so(is_single):
    policy = fresh_policy(env="tests.tiny_envs:Mixed-v0", model="mlp")
    obs = gymnasium.make("tests.tiny_envs:Mixed-v0").reset(seed=0)[0]
    if not is_single:
        obs = {name: np.stack([part, part]) for name, part in obs.items()}
    mask = obs.pop("action_mask")
    for wrong in (obs, 3):
        with pytest.raises(ValueError, match=r"observation\['action_mask'\], which its obs"):
            policy.act(wrong)
    if not is_single:
        with pytest.raises(ValueError, match=r"of shape .* is not of 2 observations"):
            policy.act(obs | {"action_mask": mask[:1]})


def test_a_batch_with_a_mask_of_several_parts_is_acted_on():
    policy = fresh_policy(env="tests.test_export:Screens-v0", model="flat", frameskip=4)
    with closing(policy.make_env()) as env:
        space, rows = env.observation_space, [env.reset(seed=seed)[0] for seed in range(3)]
        obs = concatenate(space, rows, create_empty_array(space, 3))
        actions, _ = policy.act(obs)
        assert [len(part) for part in actions.values()] == [3, 3]
        obs["action_mask"]["button"] = obs["action_mask"]["button"][:2]
        with pytest.raises(ValueError, match=r"\['button'\] of shape \(2, 6\) is not of 3"):
            policy.act(obs)


def test_what_an_observation_alone_does_not_tell_is_asked_for():
    policy = fresh_policy(
        env="tests.tiny_envs:MaskedCatch-v0", model="small_cnn", observe_last=True
    )
    obs = np.zeros((10, 5), np.uint8)
    with pytest.raises(ValueError, match=r"give action_mask=info\['action_mask'\]"):
        policy.act(obs)
    with pytest.raises(ValueError, match="its action mask is"):
        policy.act(obs, action_mask=[1, 0])
    action, state = policy.act(obs, action_mask=[0, 1, 0])
    assert action == 1
    with pytest.raises(ValueError, match="reward=None must be what the step before"):
        policy.act(obs, state, action_mask=[0, 1, 0])
    with pytest.raises(ValueError, match="state is of a batch of 1, and obs of a batch of 2"):
        policy.act(np.stack([obs, obs]), state, action_mask=[[0, 1, 0]] * 2, reward=0)
    assert policy.act(obs, state, action_mask=[0, 0, 1], reward=1.0)[0] == 2
