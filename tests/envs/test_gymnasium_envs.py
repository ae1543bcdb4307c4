"""Gymnasium environments: against SyncVectorEnv, and how observations are laid out."""

import re
from functools import partial, reduce
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import ClipReward, NormalizeObservation, NormalizeReward

from sfrl import envs
from sfrl.settings.actor_critic import ActorCriticConfig
from sfrl.workers.rollout_worker import Split


class Counting(gymnasium.Env):
    """Three steps long; the observation is a given array plus 1 per step, the reward the action."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, first_obs, start=0, render_mode=None, bounds=None):
        low, high = (0, 255) if first_obs.dtype == np.uint8 else (-np.inf, np.inf)
        low, high = bounds or (low, high)
        low, high = (np.asarray(b, first_obs.dtype) for b in (low, high))
        low, high = (np.broadcast_to(b, first_obs.shape) for b in (low, high))
        self.observation_space = Box(low, high, first_obs.shape, first_obs.dtype)
        self.action_space = Discrete(3, start=start)
        self.first_obs = first_obs
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.num_steps = 0
        return self.first_obs, {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.num_steps += 1
        obs = self.first_obs + np.asarray(self.num_steps, self.first_obs.dtype)
        return obs, float(action), self.num_steps == 3, False, {}

    def render(self):
        return np.full((4, 6, 3), self.num_steps, np.uint8)


class Invisible(Counting):
    metadata = {"render_modes": []}  # noqa: RUF012


class OfType(Counting):
    """Wants what its action space samples."""

    def __init__(self, first_obs, dtype):
        super().__init__(first_obs)
        self.action_space = Discrete(3, start=5, dtype=dtype)

    def step(self, action):
        assert type(action) is type(self.action_space.sample())
        return super().step(action)


class Draws(gymnasium.Env):
    """The observation is drawn: by the generator of its own, and from both spaces."""

    def __init__(self):
        self.action_space = Discrete(100_000)
        self.observation_space = Box(0, 100_000, (3,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.step(0)[0], {}

    def step(self, action):
        drawn = self.np_random.integers(100_000), self.action_space.sample()
        return np.array([*drawn, self.observation_space.sample()[0]]), 1.0, False, False, {}


class DrawsToo(gymnasium.ObservationWrapper):
    """Adds what it draws from an action space of its own, which hides the environment's."""

    def __init__(self, env):
        super().__init__(env)
        self.action_space = Discrete(100_000)

    def observation(self, observation):
        return (observation + self.action_space.sample()) / 2


def register(env_id, *args, env_class=Counting, max_episode_steps=None, **kwargs):
    gymnasium.registry.pop(env_id, None)
    gymnasium.register(
        env_id, lambda **k: env_class(*args, **kwargs, **k), max_episode_steps=max_episode_steps
    )


def step(env, *actions):
    env.send(np.array(actions))
    return env.recv()


def test_steps_equal_gymnasiums_sync_vector_env():
    env = envs.make_vec_env("CartPole-v1", 4, seed=3)
    reference = SyncVectorEnv(
        [lambda: gymnasium.make("CartPole-v1", max_episode_steps=30)] * 4,
        autoreset_mode=AutoresetMode.NEXT_STEP,
    )
    env._envs = [gymnasium.make("CartPole-v1", max_episode_steps=30) for _ in range(4)]
    expected, _ = reference.reset(seed=env._seeds)
    np.testing.assert_array_equal(env.reset()["obs"], expected)
    rng = np.random.default_rng(0)
    num_ended = np.zeros(2, np.int64)  # terminated, truncated
    for _ in range(500):
        actions = rng.integers(2, size=4)
        expected, *outcome, _ = reference.step(actions)
        result = step(env, *actions)
        np.testing.assert_array_equal(result.obs["obs"], expected)
        for ours, theirs in zip(result[1:4], outcome, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        num_ended += [result.terminated.sum(), result.truncated.sum()]
    assert (num_ended > 3).all()
    assert result.obs["obs"].dtype == np.float32
    assert [array.dtype for array in result[1:4]] == [np.float32, np.bool_, np.bool_]


def test_the_row_after_an_episode_ignores_its_action_and_carries_the_first_observation():
    register("Counting-v0", np.zeros((2,), np.float32))
    env = envs.make_vec_env("Counting-v0", 1, seed=0)
    assert env.reset()["obs"].tolist() == [[0, 0]]
    rows = [step(env, 2) for _ in range(6)]
    assert [row.obs["obs"][0, 0] for row in rows] == [1, 2, 3, 0, 1, 2]
    assert [row.rewards[0] for row in rows] == [2, 2, 2, 0, 2, 2]
    assert [row.terminated[0] for row in rows] == [False, False, True, False, False, False]


def test_the_time_limit_truncates_with_the_final_observation():
    register("Counting-v0", np.zeros((2,), np.float32), max_episode_steps=2)
    env = envs.make_vec_env("Counting-v0", 1, seed=0)
    env.reset()
    rows = [step(env, 1) for _ in range(5)]
    assert [row.truncated[0] for row in rows] == [False, True, False, False, True]
    assert not any(row.terminated[0] for row in rows)
    assert [row.obs["obs"][0, 0] for row in rows] == [1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("shape", "dtype", "kind", "agent_shape"),
    [
        ((10, 5), np.uint8, "image", (1, 10, 5)),
        ((10, 5, 1), np.uint8, "image", (1, 10, 5)),
        ((10, 5, 3), np.uint8, "image", (3, 10, 5)),
        ((4, 10, 5), np.uint8, "image", (4, 10, 5)),
        ((128,), np.uint8, "vector", (128,)),
        ((3,), np.float64, "vector", (3,)),
        ((), np.float32, "vector", (1,)),
        ((10, 5, 1), np.float32, "vector", (50,)),
    ],
)
def test_observations_are_laid_out_as_described(shape, dtype, kind, agent_shape):
    first_obs = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    register("Counting-v0", first_obs)
    spec = envs.describe("Counting-v0")
    agent_dtype = "uint8" if dtype == np.uint8 else "float32"
    scale = 255.0 if dtype == np.uint8 else 1.0
    leaf = envs.Leaf("obs", kind, agent_shape, agent_dtype, scale)
    assert spec == envs.EnvSpec(kind, (leaf,), envs.ActionSpec((3,)), frameskip=1)

    env = envs.make_vec_env("Counting-v0", 2, seed=0)
    assert env.leaves == spec.leaves
    channel_last = len(shape) == 3 and kind == "image" and shape[0] > shape[2]
    expected = np.moveaxis(first_obs, -1, 0) if channel_last else first_obs.reshape(agent_shape)
    for obs, added in ((env.reset()["obs"], 0), (step(env, 0, 0).obs["obs"], 1)):
        assert obs.dtype == agent_dtype
        assert obs.flags.c_contiguous
        np.testing.assert_array_equal(obs, [expected + added] * 2)


@pytest.mark.parametrize(
    ("shape", "dtype", "bounds", "scale"),
    [
        ((10, 10, 4), np.uint8, (0, 1), 1.0),
        ((10, 10, 4), np.uint8, (0, 10), 10.0),
        ((10, 10), np.float32, (0, 255), 255.0),
        ((10, 10, 3), np.float64, (-1, 1), 1.0),
        ((10, 10, 3), np.float32, (-0.5, 0.5), 0.5),
        ((2, 3), np.int32, (0, 9), 9.0),
        ((128,), np.uint8, (0, 255), 255.0),
        ((4,), np.float32, (-1000, 1000), 1.0),
        ((10, 10), np.float32, (0, np.inf), 1.0),
        ((10, 10), np.float32, (-np.finfo(np.float32).max, np.finfo(np.float32).max), 1.0),
        ((2, 3), np.int64, (np.iinfo(np.int64).min, np.iinfo(np.int64).max), 1.0),
        ((1, 2), np.float32, (np.zeros((1, 2)), np.array([[1.0, 1e4]])), 1.0),
    ],
)
def test_images_are_scaled_by_the_bounds_of_their_space(shape, dtype, bounds, scale):
    register("Counting-v0", np.zeros(shape, dtype), bounds=bounds)
    assert envs.describe("Counting-v0").leaves[0].scale == scale
    env = envs.make_vec_env("Counting-v0", 1, seed=0)
    env.reset()
    assert step(env, 1).obs["obs"].max() == 1  # rows stay as the environment gave them


@pytest.mark.parametrize(("value", "warnings"), [(1, 0), (200, 1)])
def test_pixels_beyond_the_bounds_that_scale_them_are_told(value, warnings, caplog):
    register("Counting-v0", np.full((6, 5, 2), value - 1, np.uint8), bounds=(0, 1))
    env = envs.make_vec_env("Counting-v0", 1, seed=0)
    env.reset()
    step(env, 1)
    assert len(caplog.records) == warnings
    assert all("is 200, outside its observation_space" in r.message for r in caplog.records)


def test_results_stay_the_callers_own():
    register("Counting-v0", np.zeros((2,), np.float32))
    env = envs.make_vec_env("Counting-v0", 1, seed=0)
    env.reset()
    first = step(env, 1)
    step(env, 2)
    assert first.obs["obs"].tolist() == [[1, 1]]
    assert first.rewards.tolist() == [1]


def test_actions_of_a_space_that_starts_elsewhere_are_shifted():
    register("Counting-v0", np.zeros((2,), np.float32), start=5)
    env = envs.make_vec_env("Counting-v0", 1, seed=0)
    assert env.actions == envs.ActionSpec((3,))
    env.reset()
    assert step(env, 2).rewards == [7]
    with pytest.raises(ValueError, match=r"0\.\.2"):
        env.send(np.array([3]))


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_actions_are_what_the_action_space_samples(dtype):
    register("Counting-v0", np.zeros((2,), np.float32), env_class=OfType, dtype=dtype)
    env = envs.make_vec_env("Counting-v0", 2, seed=0)
    env.reset()
    assert step(env, 2, 0).rewards.tolist() == [7, 5]


@pytest.mark.parametrize("make", [lambda: Draws(), lambda: DrawsToo(Draws())])
def test_spaces_are_seeded_as_the_environments_are(make):
    def draws(seed):
        gymnasium.registry.pop("Draws-v0", None)
        gymnasium.register("Draws-v0", make)
        env = envs.make_vec_env("Draws-v0", 3, seed=seed)
        rows = [env.reset()["obs"], step(env, 0, 0, 0).obs["obs"]]
        np.testing.assert_array_equal(env.reset()["obs"], rows[0])
        return np.array(rows)

    first = draws(0)
    np.testing.assert_array_equal(first, draws(0))
    both = np.concatenate([first, draws(1)])
    assert len(np.unique(both)) == both.size, "the draws of all copies and generators differ"


clipped = partial(ClipReward, min_reward=-1, max_reward=1)


class Fixed(NormalizeObservation):
    """By numbers that were found before."""

    def __init__(self, env):
        super().__init__(env)
        self.update_running_mean = False


@pytest.mark.parametrize(
    ("wrappers", "statistics"),
    [
        ([NormalizeObservation], ("NormalizeObservation",)),
        ([NormalizeObservation, NormalizeReward], ("NormalizeReward", "NormalizeObservation")),
        ([NormalizeReward, clipped], ("NormalizeReward",)),
        ([Fixed], ()),
        ([clipped], ()),
    ],
)
def test_statistics_that_are_neither_shared_nor_saved_are_found(wrappers, statistics):
    gymnasium.registry.pop("Wrapped-v0", None)
    gymnasium.register(
        "Wrapped-v0", lambda: reduce(lambda e, wrap: wrap(e), wrappers, CartPoleEnv())
    )
    assert envs.describe("Wrapped-v0").statistics == statistics


def test_environments_have_seeds_of_their_own_that_the_seed_decides():
    def start(seed):
        return envs.make_vec_env("CartPole-v1", 2, seed=seed).reset()["obs"]

    np.testing.assert_array_equal(start(0), start(0))
    assert len(np.unique(np.concatenate([start(0), start(1)]), axis=0)) == 4


def test_render_shows_the_environments_own_picture():
    register("Counting-v0", np.zeros((2,), np.float32))
    env = envs.make_vec_env("Counting-v0", 1, seed=0, render=True)
    env.reset()
    step(env, 0)
    np.testing.assert_array_equal(env.render(), np.ones((4, 6, 3), np.uint8))
    env.close()


def test_an_environment_that_cannot_be_shown_is_named():
    register("Counting-v0", np.zeros((2,), np.float32), env_class=Invisible)
    with pytest.raises(ValueError, match="Counting-v0 can't be shown"):
        envs.make_vec_env("Counting-v0", 1, seed=0, render=True)


def test_cartpole_renders_without_a_display():
    env = envs.make_vec_env("CartPole-v1", 1, seed=0, render=True)
    env.reset()
    picture = env.render()
    assert picture.shape == (400, 600, 3)
    assert len(np.unique(picture)) > 1
    env.close()


def spaces_of_every_kind() -> dict[str, spaces.Space]:
    number, vector = spaces.Discrete(3), spaces.Box(-1, 1, (2,))
    made = [
        *(number, vector, spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3), spaces.Text(4)),
        *(spaces.Dict(a=number), spaces.Tuple([number, vector]), spaces.OneOf([number, vector])),
        *(spaces.Sequence(number), spaces.Graph(number, None)),
    ]
    return {type(space).__name__: space for space in made}


class HasSpaces(gymnasium.Env):
    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        return self.observation_space.sample(), 0.0, False, False, {}


def table_of_spaces() -> list[list[str]]:
    """README's rows: the names of spaces, and yes, no or flattened as observation and as action."""
    table = (Path(__file__).parents[2] / "README.md").read_text().split("| space |")[1]
    rows = table.split("\n\n")[0].splitlines()[2:]
    return [row.strip("|").split("|") for row in rows]


@pytest.mark.parametrize(("row", "column"), [("observations", 1), ("actions", 2)])
def test_spaces_are_supported_as_the_readme_says(row, column, monkeypatch):
    known = spaces_of_every_kind()
    said = {name: r[column] for r in table_of_spaces() for name in re.findall(r"`(\w+)`", r[0])}
    assert sorted(said) == sorted(known)
    for name, space in known.items():

        def make(space=space):
            others = {"observations": known["Box"], "actions": known["Discrete"]}
            return HasSpaces(*(others | {row: space}).values())

        monkeypatch.setitem(gymnasium.registry, "HasSpaces-v0", EnvSpec("HasSpaces-v0", make))
        if re.match(r" (yes|no)\b", said[name])[1] == "no":
            with pytest.raises(envs.UnsupportedEnvError, match=f"{row[:-1]}_space is {name}"):
                envs.describe("HasSpaces-v0")
            continue
        env = envs.make_vec_env("HasSpaces-v0", 2, seed=0)
        env.send(envs.random_actions(env.actions, env.reset(), np.random.default_rng(0)))
        assert list(env.recv().obs) == [leaf.name for leaf in envs.describe("HasSpaces-v0").leaves]


@pytest.mark.parametrize(
    "setting", [{"frameskip": 4}, {"sticky_actions": 0.25}, {"episodic_life": True}]
)
def test_settings_of_atari_are_refused(setting):
    with pytest.raises(ValueError, match="Atari"):
        envs.make_vec_env("CartPole-v1", 1, seed=0, options=envs.EnvOptions(**setting))


# --- readings that are assumed, and told ---


def space_of(shape, dtype, low=0.0, high=1.0, channel_axis=None):
    space = Box(low, high, shape, dtype)
    if channel_axis is not None:
        space.channel_axis = channel_axis
    return space


@pytest.mark.parametrize(
    ("space", "agent_shape", "agent_dtype", "scale", "told"),
    [
        (space_of((84, 84, 3), np.float32), (3, 84, 84), "float32", 1.0, ""),
        (space_of((3, 60, 80), np.float64, -1, 1), (3, 60, 80), "float32", 1.0, ""),
        (space_of((60, 80, 3), np.float32, 0, 255), (3, 60, 80), "float32", 255.0, ""),
        (space_of((60, 80, 3), np.int32, 0, 9), (3, 60, 80), "float32", 9.0, ""),
        (space_of((10, 10, 4), np.bool_), (4, 10, 10), "uint8", 1.0, ""),
        (space_of((10, 10), np.bool_), (1, 10, 10), "uint8", 1.0, ""),
        (space_of((84, 84, 4), np.uint8, 0, 255), (4, 84, 84), "uint8", 255.0, ""),
        (space_of((4, 84, 84), np.uint8, 0, 255), (4, 84, 84), "uint8", 255.0, ""),
        (space_of((8, 8, 111), np.bool_), (111, 8, 8), "uint8", 1.0, "as 111 channels of 8x8"),
        (space_of((8, 8, 111), np.uint8), (111, 8, 8), "uint8", 1.0, "111 channels of 8x8 pixels"),
        (space_of((6, 7, 20), np.uint8), (6, 7, 20), "uint8", 1.0, "channel_axis = 2, or = 0 to"),
        (space_of((6, 7, 20), np.uint8, channel_axis=2), (20, 6, 7), "uint8", 1.0, ""),
        (space_of((6, 7, 20), np.uint8, channel_axis=-1), (20, 6, 7), "uint8", 1.0, ""),
        (space_of((6, 7, 20), np.float32), (840,), "float32", 1.0, "flattened to a vector of 840"),
        (space_of((6, 7, 20), np.float32, channel_axis=2), (20, 6, 7), "float32", 1.0, ""),
        (space_of((84, 84, 3), np.float32, 0, np.inf), (21168,), "float32", 1.0, "finite bounds"),
        (space_of((5, 7), np.float32, -9, 9), (35,), "float32", 9.0, "to a vector of 35 numbers"),
        (space_of((5, 7, 1), np.float32, -9, 9, channel_axis=2), (1, 5, 7), "float32", 9.0, ""),
        (space_of((40, 16), np.float32), (1, 40, 16), "float32", 1.0, "a grey image of 40x16 pix"),
        (space_of((16, 40), np.int32, 0, 9), (1, 16, 40), "float32", 9.0, "they need one axis"),
        (
            space_of((40, 15), np.float32),
            (600,),
            "float32",
            1.0,
            "need sides of 16 and more, or three",
        ),
        (space_of((16, 16), np.float32, 0, np.inf), (256,), "float32", 1.0, "one pair of finite"),
        (space_of((15, 9), np.uint8), (1, 15, 9), "uint8", 1.0, ""),
        (space_of((2, 40, 39, 3), np.float32), (6, 40, 39), "float32", 1.0, ""),
        (space_of((2, 40, 39, 1), np.float64, 0, 255), (2, 40, 39), "float32", 255.0, ""),
        (space_of((2, 3, 9, 8), np.float32), (6, 9, 8), "float32", 1.0, ""),
        (space_of((2, 7, 8, 3), np.float32), (336,), "float32", 1.0, "channel_axis to 1 or 3, the"),
        (space_of((2, 7, 8, 3), np.float32, channel_axis=3), (6, 7, 8), "float32", 1.0, ""),
        (space_of((2, 9, 8, 3), np.float32, 0, np.inf), (432,), "float32", 1.0, "finite bounds"),
        (space_of((4,), np.float32), (4,), "float32", 1.0, ""),
        (space_of((4, 84, 80, 3), np.uint8, 0, 255), (12, 84, 80), "uint8", 255.0, ""),
        (space_of((2, 3, 84, 80), np.uint8, 0, 255), (6, 84, 80), "uint8", 255.0, ""),
        (space_of((5, 9, 8, 1), np.bool_), (5, 9, 8), "uint8", 1.0, ""),
        (space_of((2, 6, 7, 20), np.uint8), (12, 7, 20), "uint8", 1.0, "2 times 6 channels of 7x2"),
        (space_of((2, 6, 7, 20), np.uint8, channel_axis=3), (40, 6, 7), "uint8", 1.0, ""),
        (space_of((2, 6, 7, 20), np.uint8, channel_axis=-1), (40, 6, 7), "uint8", 1.0, ""),
        (space_of((2, 2, 3, 4, 5), np.uint8), (240,), "uint8", 1.0, "to a vector of 240 numbers"),
        (space_of((4,), np.bool_), (4,), "uint8", 1.0, ""),
        (space_of((4,), np.uint8, 0, 9), (4,), "uint8", 9.0, ""),
    ],
)
def test_what_is_assumed_of_observations_is_told(space, agent_shape, agent_dtype, scale, told):
    first_obs = np.zeros(space.shape, space.dtype)
    some = np.random.default_rng(0).random(space.shape) < 0.3  # so that no two axes are alike
    first_obs[some] = space.high.max() if np.isfinite(space.high.max()) else 5
    register("Counting-v0", first_obs, bounds=(0, 1))
    env_class = gymnasium.registry["Counting-v0"].entry_point

    def make():
        env = env_class()
        env.observation_space = space
        return env

    gymnasium.registry.pop("Counting-v0")
    gymnasium.register("Counting-v0", make)
    spec = envs.describe("Counting-v0")
    kind = "image" if len(agent_shape) == 3 else "vector"
    leaf = envs.Leaf("obs", kind, agent_shape, agent_dtype, scale)
    assert spec == envs.EnvSpec(kind, (leaf,), envs.ActionSpec((3,)), 1)
    assert told in spec.reading
    assert bool(told) == bool(spec.reading)
    env = envs.make_vec_env("Counting-v0", 2, seed=0)
    obs = env.reset()["obs"]
    assert (obs.shape, obs.dtype) == ((2, *agent_shape), agent_dtype)
    moved = kind == "image" and len(space.shape) > 2 and agent_shape[1:] != space.shape[-2:]
    expected = np.moveaxis(first_obs, -1, -3) if moved else first_obs
    expected = expected.reshape(agent_shape)
    np.testing.assert_array_equal(obs, [expected] * 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("told", [1, 3, -3, "last", 2.0, [2], np.arange(2)])
def test_a_channel_axis_that_is_none_is_refused_and_silences_nothing(told, dtype):
    env_id = "Counting-v0"
    register(env_id, np.zeros((6, 7, 20), dtype), bounds=(0, 1))
    env_class = gymnasium.registry[env_id].entry_point

    def make():
        env = env_class()
        env.observation_space = space_of((6, 7, 20), dtype, channel_axis=told)
        return env

    gymnasium.registry.pop(env_id)
    gymnasium.register(env_id, make)
    problem = re.escape(f"{env_id}: observation_space.channel_axis={told!r} must be 0 or 2")
    with pytest.raises(envs.UnsupportedEnvError, match=problem):
        envs.describe(env_id)


INFO = {
    "is_success": True,
    "count": np.int64(3),
    "array": np.array(2.5),
    "float32": np.float32(0.5),
    "nan": np.nan,
    "huge": 10**400,
    "text": "x",
    "vector": np.zeros(3),
    "complex": np.complex64(1),
    "\x1b[2J": 1,
    "n" * 1000: 1,
    3: 4,
    "nested": {"a": 1},
}


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        (INFO, {"is_success": 1.0, "count": 3.0, "array": 2.5, "float32": 0.5}),
        ({f"n{i}": i for i in range(10**6)}, {f"n{i}": i for i in range(64)}),
        ({"episode": {"r": 1.0, "l": 3, "t": 0.1}}, {}),
        (None, {}),
    ],
)
def test_numbers_in_the_info_at_an_episodes_end_are_told(info, expected):
    class Telling(Counting):
        def step(self, action):
            *outcome, _ = super().step(action)
            return *outcome, info if outcome[2] else {"early": 1.0}

    register("Telling-v0", np.zeros(2, np.float32), env_class=Telling)
    gymnasium.registry["Telling-v0"].disable_env_checker = True
    gymnasium.registry["Telling-v0"].order_enforce = False
    config = ActorCriticConfig(
        env="Telling-v0", num_splits=1, envs_per_worker=2, frameskip=1, batch_size=64
    )
    split = Split(0, config)
    for _ in range(2):
        for is_last in (False, False, True):
            split.env.send(np.zeros(2, np.int64))
            _, episodes = split.recv()
            assert [episode.info for episode in episodes] == [expected] * (2 * is_last)
        split.env.send(np.zeros(2, np.int64))
        assert split.recv()[1] == []
