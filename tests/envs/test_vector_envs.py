"""Environments that are vectors already: rows as VecEnv has them, whatever the vector does."""

import dataclasses
import gc
import json
import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

from sfrl import envs
from sfrl.envs.gymnasium_envs import GymnasiumVecEnv
from sfrl.envs.rules import EnvError, NonFiniteError
from sfrl.settings.config import ConfigError
from sfrl.settings.defaults import defaults_for, resolve
from tests import vectors

ROOT = Path(__file__).parents[2]
HERE = "tests.vectors:"


def step(env, actions):
    env.send(np.asarray(actions))
    return env.recv()


def check_rows(env, num_steps, ticks, length, rng=None):
    """Every row is one of `Ticks`'s, in NEXT_STEP; returns how many episodes ended."""
    rng = rng or np.random.default_rng(0)
    obs = env.reset()
    t, ended, num_ended = np.zeros(env.num_envs), np.zeros(env.num_envs, bool), 0
    lengths = length(obs).copy()
    assert (ticks(obs) == 0).all()
    for _ in range(num_steps):
        actions = envs.random_actions(env.actions, obs, rng)
        obs, rewards, terminated, truncated, _ = step(env, actions)
        t = np.where(ended, 0, t + 1)
        lengths = np.where(ended, length(obs), lengths)
        np.testing.assert_array_equal(ticks(obs), t)
        np.testing.assert_array_equal(length(obs), lengths)  # the final one is still the episode's
        np.testing.assert_array_equal(rewards, np.where(ended, 0, actions + 1))
        is_over = t == lengths
        np.testing.assert_array_equal(terminated, is_over & (lengths % 2 == 0))
        np.testing.assert_array_equal(truncated, is_over & (lengths % 2 == 1))
        ended = terminated | truncated
        num_ended += ended.sum()
    return num_ended


@pytest.mark.parametrize("env_id", ["Ticks-v0", "Disabled-v0", "Switched-v0", "Passes-v0"])
def test_rows_are_those_of_next_step_in_every_mode(env_id):
    with closing(envs.make_vec_env(HERE + env_id, 3, seed=1)) as env:
        num_ended = check_rows(env, 100, lambda obs: obs["obs"][:, 0], lambda obs: obs["obs"][:, 1])
        assert num_ended > 40
        assert env.leaves[0].dtype == env.reset()["obs"].dtype == "float32"


@pytest.mark.parametrize("env_id", ["Nested-v0", "NestedDisabled-v0"])
def test_nested_observations_and_masks_are_those_of_the_copies_one_by_one(env_id):
    with closing(envs.make_vec_env(HERE + env_id, 3, seed=1)) as env:
        assert [leaf.kind for leaf in env.leaves] == ["choice", "vector", "image", "mask"]
        assert envs.describe(HERE + env_id).leaves == env.leaves
        seen = []

        def ticks(obs):
            t = obs["obs.tick.0"][:, 0]
            seen.append(obs["action_mask"])
            np.testing.assert_array_equal(obs["obs.picture"][:, 1, 2, 3], t)
            np.testing.assert_array_equal(obs["action_mask"], np.arange(3) == t[:, None] % 3)
            return t

        assert check_rows(env, 60, ticks, lambda obs: obs["obs.tick.1"][:, 1]) > 20


def test_gymnasiums_own_vector_gives_what_it_gives_by_itself():
    env = envs.make_vec_env(HERE + "CartPoles-v0", 4, seed=3)
    reference = CartPoleVectorEnv(4, max_episode_steps=30)
    expected, _ = reference.reset(seed=env._seed)
    np.testing.assert_array_equal(env.reset()["obs"], expected)
    rng = np.random.default_rng(0)
    num_ended = np.zeros(2, int)
    for _ in range(300):
        actions = rng.integers(2, size=4)
        expected = reference.step(actions)
        result = step(env, actions)
        for ours, theirs in zip((result.obs["obs"], *result[1:4]), expected[:4], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        num_ended += [result.terminated.sum(), result.truncated.sum()]
    assert (num_ended > 3).all()
    np.testing.assert_array_equal(env.reset()["obs"], reference.reset(seed=env._seed)[0])
    env.close()
    env.close()


def test_a_vector_that_writes_into_the_same_array_again_leaves_earlier_observations_alone():
    with closing(envs.make_vec_env(HERE + "Shared-v0", 3, seed=1)) as env:
        first = env.reset()
        second = step(env, [0, 0, 0]).obs
        assert [obs["obs"][0, 0] for obs in (first, second)] == [0, 1]


def test_an_id_with_both_entry_points_is_made_the_usual_way():
    assert envs.find_vectors(HERE + "Both-v0") is None
    assert isinstance(envs.make_vec_env(HERE + "Both-v0", 1, seed=0), GymnasiumVecEnv)
    assert isinstance(envs.make_vec_env("CartPole-v1", 1, seed=0), GymnasiumVecEnv)


def test_the_infos_of_an_episodes_end_are_the_environments_own():
    with closing(envs.make_vec_env(HERE + "Ticks-v0", 3, seed=1)) as env:
        env.reset()
        for _ in range(20):
            result = step(env, [0, 0, 0])
            for i in np.flatnonzero(result.terminated | result.truncated):
                assert env.episode_info(i) == {"length": result.obs["obs"][i, 0]}


@pytest.mark.parametrize(
    ("env_id", "text"),
    [
        ("SameStep-v0", "SAME_STEP, where an environment has begun the next episode"),
        ("Swallows-v0", "or let its vector_entry_point heed autoreset_mode"),
        ("Blind-v0", "metadata['autoreset_mode'] is None, and must be one of"),
        ("Fixed-v0", "its vector has num_envs=2, and 1 were asked for"),
        ("Half", "Half has no episode_info, load_state, render; it must have what VecEnv has"),
        (
            "Misshapen",
            r"gives {'obs': 'float32[1, 2]'}, and its leaves say {'obs': 'float32[1, 3]'",
        ),
        ("Skipping", "its frameskip is 0, and must be a whole number from 1 on"),
        ("Blind", 'gymnasium.register("Blind-v0", vector_entry_point=Blind)'),
        ("Ticks", 'gymnasium.register("Ticks-v0", Ticks)'),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Gymnasium's, of the missing mode
def test_what_cannot_be_trained_is_refused_before_anything_starts(env_id, text):
    with pytest.raises(envs.UnsupportedEnvError, match=re.escape(text)) as caught:
        envs.describe(HERE + env_id)
    assert "\n" not in str(caught.value)


def test_a_class_that_makes_another_number_is_refused():
    envs.describe(HERE + "Lonely")
    with pytest.raises(envs.UnsupportedEnvError, match="num_envs is 1, and 2 were asked for"):
        envs.make_vec_env(HERE + "Lonely", 2, seed=0)


@pytest.mark.parametrize(
    ("env_id", "arguments"),
    [
        ("Ticks-v0", ("num_envs", "vectorization_mode", "autoreset_mode", "render_mode")),
        ("Lights", ("num_envs", "seed", "render")),
    ],
)
def test_an_argument_that_sfrl_sets_itself_is_refused(env_id, arguments):
    for argument in arguments:
        check_own(HERE + env_id, argument)


def check_own(name, argument):
    options = envs.EnvOptions(kwargs={argument: 3})
    text = f"{name}: env_kwargs must not have '{argument}', which sfrl sets itself; leave it out"
    for make in (envs.describe, lambda *args: envs.make_vec_env(args[0], 1, 0, args[1])):
        with pytest.raises(envs.UnsupportedEnvError, match=re.escape(text)):
            make(name, options)


@pytest.mark.parametrize(
    ("env_id", "takes"), [("Ticks-v0", "env_class, mode, kwargs"), ("Misshapen", "")]
)
def test_an_argument_that_does_not_fit_is_told_with_those_that_do(env_id, takes):
    with pytest.raises(envs.UnsupportedEnvError) as caught:
        envs.describe(HERE + env_id, envs.EnvOptions(kwargs={"lights": 3}))
    start = f'{env_id} cannot be made with env_kwargs={{"lights": 3}}: TypeError: '
    assert str(caught.value).removeprefix(HERE).startswith(start)
    assert "got an unexpected keyword argument 'lights'" in str(caught.value)
    assert str(caught.value).endswith(f"; it takes {takes}" if takes else "'lights'")


def test_a_setting_of_ataris_is_refused():
    with pytest.raises(ValueError, match="these are for Atari games"):
        envs.make_vec_env(HERE + "Ticks-v0", 1, 0, options=envs.EnvOptions(sticky_actions=0.25))
    of_a_saved_run = envs.EnvOptions(sticky_actions=0.25, episodic_life=True)
    assert envs.describe(HERE + "Ticks-v0", of_a_saved_run) == envs.describe(HERE + "Ticks-v0")
    with pytest.raises(ValueError, match=r"frameskip=4 is for Atari games.* has 2 of its own"):
        envs.make_vec_env(HERE + "Lights", 1, 0, options=envs.EnvOptions(frameskip=4))


@pytest.mark.parametrize(
    ("env_id", "on_nan", "error", "text"),
    [
        ("Liar-v0", "skip", EnvError, "had only to reset, with reward 0; it gave reward 1"),
        ("Nan-v0", "skip", EnvError, "env 0, step 2: NaN or infinity: reward nan"),
        ("Nan-v0", "stop", NonFiniteError, "env 0, step 2: NaN or infinity: reward nan"),
        ("Inf-v0", "skip", EnvError, "(in float32 all beyond 3.4e38 is infinite); in a vector"),
        ("Old-v0", "skip", EnvError, "env 0, step 1: its step returned (array"),
        ("Shape-v0", "skip", EnvError, r"float64[3], and its observation_space says float64[2]"),
        ("Few-v0", "skip", EnvError, "rewards are float64[3], and must be float32[2]"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_fault_ends_the_worker_and_names_its_place(env_id, on_nan, error, text):
    env = envs.make_vec_env(HERE + env_id, 2, seed=0, options=envs.EnvOptions(on_nan=on_nan))
    env.reset()

    def go_on():
        for _ in range(10):
            step(env, [0, 0])

    with pytest.raises(EnvError, match=re.escape(text)) as caught:
        go_on()
    assert type(caught.value) is error


def test_a_mask_that_is_missing_after_a_reset_is_told_so():
    """An action is taken there: it would be any."""
    with closing(envs.make_vec_env(HERE + "Forgetful-v0", 2, seed=0)) as env:
        rng = np.random.default_rng(0)

        def play(obs):
            for _ in range(10):
                env.send(envs.random_actions(env.actions, obs, rng))
                obs = env.recv().obs

        with pytest.raises(EnvError, match="its action mask is None; it must be"):
            play(env.reset())


def test_a_reset_that_returns_observations_alone_is_told_so():
    with pytest.raises(EnvError, match=r"its reset returned .*, and must return observation,"):
        envs.make_vec_env(HERE + "Older-v0", 2, seed=0)


def test_an_error_of_the_vectors_own_says_in_which_step():
    env = envs.make_vec_env(HERE + "RaisesTogether-v0", 2, seed=0)
    env.reset()
    step(env, [0, 0])
    with pytest.raises(OSError, match="no power") as caught:
        step(env, [0, 0])
    assert caught.value.__notes__ == ["in step 2 of RaisesTogether-v0"]
    assert env.stepping[0] == 0  # so the watchdog knows where it was


def test_the_watchdog_is_told_while_a_vector_is_made_and_steps(monkeypatch):
    stepping, seen = np.full(1, -1, np.int64), []
    for name in ("__init__", "reset", "step"):
        original = getattr(CartPoleVectorEnv, name)

        def told(*args, original=original, name=name, **kwargs):
            seen.append((name, int(stepping[0])))
            return original(*args, **kwargs)

        monkeypatch.setattr(CartPoleVectorEnv, name, told)
    env = envs.make_vec_env(HERE + "CartPoles-v0", 2, seed=0, stepping=stepping)
    env.reset()
    step(env, [0, 0])
    assert seen == [("__init__", 0), ("reset", 0), ("step", 0)]
    assert stepping[0] == -1


def test_a_vector_that_can_be_shown_is():
    with closing(envs.make_vec_env(HERE + "CartPoles-v0", 1, seed=0, render=True)) as env:
        env.reset()
        assert env.render().shape == (400, 600, 3)
    assert envs.fps(HERE + "CartPoles-v0") == 50
    assert envs.fps(HERE + "Sized-v0", envs.EnvOptions(kwargs={"size": 9})) == 50
    with pytest.raises(ValueError, match="its vector_entry_point takes no render_mode"):
        envs.make_vec_env(HERE + "Disabled-v0", 1, seed=0, render=True)
    with pytest.raises(ValueError, match="Half has no"):
        envs.make_vec_env(HERE + "Half", 1, seed=0, render=True)
    with pytest.raises(ValueError, match="can't be shown: its constructor takes no render=True"):
        envs.make_vec_env(HERE + "Lonely", 1, seed=0, render=True)


def test_a_class_that_is_a_vec_env_is_made_as_it_is():
    stepping = np.full(1, -1, np.int64)
    env = envs.make_vec_env(HERE + "Lights", 3, seed=5, stepping=stepping)
    assert type(env) is vectors.Lights
    assert (env.num_envs, env.seed) == (3, 5)
    assert env.stepping is stepping
    spec = envs.describe(HERE + "Lights")
    assert (spec.kind, spec.leaves, spec.actions) == ("vector", env.leaves, env.actions)
    assert spec.frameskip == 2


def test_the_frames_of_a_decision_are_the_vectors_own_unless_others_are_asked_for():
    config = defaults_for(HERE + "Lights")
    assert config.frameskip == 2
    spec = envs.describe(HERE + "Lights")
    resolve(config, spec)
    with pytest.raises(ConfigError, match="frameskip=1 is for Atari games"):
        resolve(dataclasses.replace(config, frameskip=1), spec)


def test_a_run_trains_on_a_vector_and_enjoy_plays_it(tmp_path):
    def run(script, *args):
        return subprocess.run(
            [sys.executable, ROOT / script, f"--run-dir={tmp_path / 'run'}", *args],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )

    trained = run("train.py", f"--env={HERE}CartPoles-v0", "--serial", "--train-frames=3000")
    assert trained.returncode == 0, trained.stderr
    played = run("enjoy.py", "--episodes=1", f"--video={tmp_path / 'a.gif'}")
    assert played.returncode == 0, played.stderr
    assert json.loads(played.stdout.splitlines()[-1])["episodes"] == 1


def test_the_class_of_the_guide_steps(tmp_path, monkeypatch):
    guide = (ROOT / "docs" / "adding-an-environment.md").read_text()
    [(text, module, name)] = re.findall(
        r"```python\n(# (\w+)\.py\n[^`]*class \w+:.*?)```.*?--env=(\S+)", guide, re.S
    )
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    spec = envs.describe(name)
    env = envs.make_vec_env(name, 3, seed=0)
    obs = env.reset()
    ended = np.zeros(3, bool)
    for _ in range(100):
        actions = envs.random_actions(env.actions, obs, np.random.default_rng(0))
        obs, rewards, terminated, truncated, _ = step(env, actions)
        assert {name: rows.shape[1:] for name, rows in obs.items()} == {
            leaf.name: leaf.shape for leaf in spec.leaves
        }
        assert not (ended & ((rewards != 0) | terminated | truncated)).any()
        ended = terminated | truncated
    env.close()


# --- EnvPool ---


@pytest.fixture
def envpool():
    return pytest.importorskip("envpool")


def test_without_envpool_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(envs.UnknownEnvError, match=re.escape('pip install "sfrl[envpool]"')):
        envs.describe("envpool:Pong-v5")


def test_a_task_that_there_is_not_is_refused_with_the_nearest(envpool):
    with pytest.raises(envs.UnknownEnvError, match="did you mean envpool:Pong-v5"):
        envs.describe("envpool:Pongg-v5")


def test_an_argument_of_a_pool_that_is_not_the_users_or_that_there_is_not_is_refused(envpool):
    own = ("task_id", "env_type", "num_envs", "batch_size", "num_threads", "seed", "render_mode")
    for argument in (*own, "gym_reset_return_info"):
        check_own("envpool:Pong-v5", argument)
    with pytest.raises(envs.UnsupportedEnvError) as caught:
        envs.describe("envpool:Pong-v5", envs.EnvOptions(kwargs={"noop": 3}))
    assert "got an unexpected keyword argument 'noop'" in str(caught.value)
    takes = str(caught.value).partition("; it takes ")[2].split(", ")
    assert {"noop_max", "stack_num"} <= set(takes)
    assert not set(own) & set(takes)


@pytest.mark.parametrize(
    ("task", "leaf", "choices", "numbers", "frameskip"),
    [
        ("Pong-v5", ("obs", "image", (4, 84, 84), "uint8"), (6,), 0, 4),
        ("CartPole-v1", ("obs", "vector", (4,), "float32"), (2,), 0, 1),
        ("HalfCheetah-v4", ("obs", "vector", (17,), "float32"), (), 6, 1),
        ("CheetahRun-v1", ("obs.position", "vector", (8,), "float32"), (), 6, 1),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Gymnasium's, of bounds that are rounded
def test_a_pool_has_leaves_and_rows_as_vec_env_says(
    envpool, task, leaf, choices, numbers, frameskip
):
    name = f"envpool:{task}"
    spec = envs.describe(name)
    first = spec.leaves[0]
    assert (first.name, first.kind, first.shape, first.dtype) == leaf
    assert (spec.actions.choices, spec.actions.num_numbers) == (choices, numbers)
    assert spec.frameskip == frameskip
    env = envs.make_vec_env(name, 3, seed=2)
    first = env.reset()
    obs, rng, ended, num_ended = first, np.random.default_rng(0), np.zeros(3, bool), 0
    for _ in range(1010 if task != "Pong-v5" else 900):
        obs, rewards, terminated, truncated, _ = step(
            env, envs.random_actions(env.actions, obs, rng)
        )
        assert {name: (rows.shape[1:], str(rows.dtype)) for name, rows in obs.items()} == {
            leaf.name: (leaf.shape, leaf.dtype) for leaf in spec.leaves
        }
        assert not (ended & ((rewards != 0) | terminated | truncated)).any()
        if task == "CartPole-v1":  # which ends beyond these bounds, and begins near 0
            beyond = (np.abs(obs["obs"][:, [0, 2]]) > (2.4, 0.2094)).any(axis=1)
            np.testing.assert_array_equal(beyond, terminated)
            assert (np.abs(obs["obs"][ended]) <= 0.05).all()
        ended = terminated | truncated
        num_ended += ended.sum()
    assert num_ended >= 1
    again = env.reset()  # of a pool whose seed counts where it is made
    for name, rows in first.items():
        np.testing.assert_array_equal(rows, again[name])
    env.close()


def test_seeds_make_the_episodes_and_closing_ends_the_threads(envpool):
    def first_rows(seed):
        with closing(envs.make_vec_env("envpool:CheetahRun-v1", 2, seed=seed)) as env:
            return env.reset()["obs.position"]

    def num_threads():
        gc.collect()
        return len(os.listdir("/proc/self/task"))

    before = num_threads()
    rows = first_rows(1)
    np.testing.assert_array_equal(rows, first_rows(1))
    assert (rows != first_rows(2)).any()
    assert not np.array_equal(rows[0], rows[1])
    env = envs.make_vec_env("envpool:CheetahRun-v1", 2, seed=0)
    assert num_threads() > before
    env.close()
    assert num_threads() == before


def test_a_reward_that_a_pool_repeats_when_it_resets_is_none(envpool):
    with closing(envs.make_vec_env("envpool:CheetahRun-v1", 2, seed=0)) as env:
        env.reset()
        rng = np.random.default_rng(0)
        has_ended = np.zeros(2, np.bool_)
        for _ in range(1003):
            env.send(rng.uniform(-1, 1, (2, 6)).astype(np.float32))
            result = env.recv()
            assert not result.rewards[has_ended].any()
            has_ended = result.ended
            if has_ended.any():
                assert result.rewards.any(), "what would be repeated"


def test_a_run_trains_on_a_pool_in_processes_of_its_own(envpool, tmp_path):
    command = [
        *(sys.executable, ROOT / "train.py", "--env=envpool:CartPole-v1", "--tune=off"),
        *(f"--run-dir={tmp_path / 'run'}", "--train-frames=3000", "--device=cpu"),
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
