"""How an environment is made: arguments, wrappers, stacks, and what networks see beside."""

import subprocess
import sys
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.wrappers import FrameStackObservation

from sfrl import envs
from sfrl.envs import EnvOptions, UnknownEnvError, UnsupportedEnvError, areas
from sfrl.envs.options import parse_kwargs, parse_wrappers

END = 4  # steps of an episode


class Numbered(gymnasium.Env):
    """Everything that is observed tells the episode and the step; `scale` times, to see kwargs."""

    def __init__(self, scale=1, has_mask=False, render_mode=None):
        self.scale, self.has_mask, self.episode = scale, has_mask, -1
        spaces = {
            "grey": Box(0, 255, (9, 7), np.uint8),
            "colour": Box(0, 255, (8, 9, 3), np.uint8),
            "numbers": Box(-np.inf, np.inf, (2,), np.float32),
            "choice": Discrete(50),
        }
        if has_mask:
            spaces["action_mask"] = Box(0, 1, (3,), np.int8)
        self.observation_space = Dict(spaces)
        self.action_space = Discrete(3)

    def _obs(self):
        number = self.scale * (10 * self.episode + self.t)
        pixels = np.arange(8 * 9 * 3).reshape(8, 9, 3) + number
        obs = {
            "grey": (pixels.reshape(-1)[:63].reshape(9, 7)).astype(np.uint8),
            "colour": pixels.astype(np.uint8),
            "numbers": np.array([number, -number], np.float32),
            "choice": number % 50,
        }
        if self.has_mask:
            obs["action_mask"] = np.array([1, self.t % 2, 0], np.int8)
        return obs

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self._obs(), {}

    def step(self, action):
        self.t += 1
        return self._obs(), self.t + action / 10, self.t == END, False, {}


class Plus(gymnasium.ObservationWrapper):
    """Adds to the numbers, and alone sees them."""

    def __init__(self, env, number=1, fails=False):
        if fails:
            raise RuntimeError("as it was told")
        super().__init__(env)
        inner = env.observation_space
        self.observation_space = inner["numbers"] if isinstance(inner, Dict) else inner
        self.number = number

    def observation(self, obs):
        numbers = obs["numbers"] if isinstance(obs, dict) else 10 * obs
        return numbers + np.float32(self.number)


def not_an_env(env):
    return 3


gymnasium.register("Numbered-v0", Numbered)
HERE = "tests.envs.test_options"


def play(env, num_steps=3 * END, seed=0):
    """The observations, and what was done and came of it, of each step."""
    rng = np.random.default_rng(seed)
    rows = [({k: v.copy() for k, v in env.reset().items()}, None, None)]
    for _ in range(num_steps):
        actions = rng.integers(3, size=env.num_envs)
        env.send(actions.copy())
        result = env.recv()
        rows.append(({k: v.copy() for k, v in result.obs.items()}, actions, result))
    return rows


@pytest.mark.parametrize(
    ("text", "values"),
    [("", {}), (" ", {}), ('{"continuous": true, "a": [1, 2]}', {"continuous": True, "a": [1, 2]})],
)
def test_arguments_are_read_from_json(text, values):
    assert parse_kwargs(text) == values


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1]", "must be a JSON object, such as .* and is a list"),
        ("continuous=true", "must be a JSON object, such as .*Expecting value"),
        ('{"id": "Pong"}', "must not have 'id', which sfrl sets itself"),
    ],
)
def test_what_are_no_arguments_is_refused(text, problem):
    with pytest.raises(ValueError, match=problem):
        parse_kwargs(text)


def test_wrappers_are_read_with_their_arguments():
    text = ' A{"shape": [84, 84], "of": {"x": [1]}} ;my.module:B;C{"sign": ";"}; '
    assert parse_wrappers(text) == [
        ("A", {"shape": (84, 84), "of": {"x": (1,)}}),
        ("my.module:B", {}),
        ("C", {"sign": ";"}),
    ]
    assert parse_wrappers("") == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("A B", "must have ';' after A, and has 'B'"),
        ("A[84]", r"must have ';' after A, and has '\[84\]'"),
        ('A{"shape": }', "must have a whole JSON object after A"),
        ("A;;B", "must be names of gymnasium.wrappers or module:Class.* has ';B'"),
        ("(A)", r"must be names .* has '\(A\)'"),
    ],
)
def test_what_are_no_wrappers_is_refused(text, problem):
    with pytest.raises(ValueError, match=problem):
        parse_wrappers(text)


def test_an_environment_is_made_with_its_arguments_and_wrapped_from_the_inside():
    options = EnvOptions(
        kwargs={"scale": 2},
        wrappers=f'{HERE}:Plus{{"number": 5}};{HERE}:Plus;ReshapeObservation{{"shape": [1, 2]}}',
    )
    assert envs.describe("Numbered-v0", options).leaves[0].shape == (2,)
    env = envs.make_vec_env("Numbered-v0", 2, 0, options)
    (first, *_), (second, *_) = play(env, 1)
    assert first["obs"].tolist() == [[51, 51]] * 2  # 10 * (0 + 5) + 1
    assert second["obs"].tolist() == [[71, 31]] * 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kwargs": {"scales": 2}}, 'env_kwargs={"scales": 2}: .*unexpected.*it takes scale, has_'),
        ({"wrappers": "GrayscaleObservatio"}, "unknown; did you mean GrayscaleObservation"),
        ({"wrappers": f"{HERE}:Pluss"}, f"unknown; did you mean {HERE}:Plus"),
        ({"wrappers": "nowhere.at_all:Plus"}, "there is no module 'nowhere.at_all' to import"),
        ({"wrappers": f'{HERE}:Plus{{"fails":true}}'}, f"{HERE}:Plus failed: .*as it was told"),
        ({"wrappers": "GrayscaleObservation"}, "the wrapper GrayscaleObservation failed: "),
        ({"wrappers": "TimeLimit"}, "'max_episode_steps'; it takes max_episode_steps$"),
        ({"wrappers": "math:sin"}, "the wrapper math:sin failed: TypeError: must be real number, "),
        ({"wrappers": f"{HERE}:not_an_env"}, "not_an_env gives 3, and must give an environment"),
    ],
)
def test_what_cannot_be_made_is_told_in_a_line(options, text):
    with pytest.raises(UnsupportedEnvError, match=text) as caught:
        envs.describe("Numbered-v0", EnvOptions(**options))
    assert "\n" not in str(caught.value)
    assert "gymnasium_envs.py" not in str(caught.value), "a place of sfrl's, where nothing is wrong"
    with pytest.raises(UnsupportedEnvError, match=text):
        envs.make_vec_env("Numbered-v0", 1, 0, EnvOptions(**options))


@pytest.mark.parametrize(
    "option",
    [
        *({"kwargs": {"a": 1}}, {"wrappers": "A"}, {"frame_stack": 4}, {"threads": 2}),
        {"image_size": 64},
    ],
)
def test_atari_games_have_none_of_these(option):
    for make in (envs.describe, lambda *args: envs.make_vec_env(args[0], 1, 0, args[1])):
        with pytest.raises(UnsupportedEnvError, match="is not for Atari games, and Pong is one"):
            make("Pong", EnvOptions(**option))


# --- smaller images ---


def means_of_areas(image, height, width):
    """[h, w], the mean of each part of [H, W]: of 12 times as many pixels, so that all divide."""
    times = height * width
    fine = image.astype(np.float64).repeat(times, axis=0).repeat(times, axis=1)
    rows, columns = fine.shape[0] // height, fine.shape[1] // width
    return fine.reshape(height, rows, width, columns).mean((1, 3))


def test_images_become_means_of_areas_with_their_longest_side_as_told():
    options = EnvOptions(image_size=6, frame_stack=2)
    env = envs.make_vec_env("Numbered-v0", 2, 0, options)
    spec = envs.describe("Numbered-v0", options)
    assert env.leaves == spec.leaves
    assert "images of 8x9 (obs.colour) become 5x6: image_size=6 is the longest side" in spec.reading
    shapes = {leaf.name: leaf.shape for leaf in env.leaves}
    assert shapes["obs.colour"] == (6, 5, 6)  # from 8x9, two of them
    assert shapes["obs.grey"] == (2, 6, 5)  # from 9x7
    assert shapes["obs.numbers"] == (4,)
    plain = play(envs.make_vec_env("Numbered-v0", 2, 0))
    for (obs, *_), (whole, *_) in zip(play(env), plain, strict=True):
        for name, (height, width) in {"obs.colour": (5, 6), "obs.grey": (6, 5)}.items():
            newest = obs[name][1][-len(whole[name][1]) :]
            assert newest.dtype == np.uint8
            for small, image in zip(newest, whole[name][1], strict=True):
                assert np.abs(small - means_of_areas(image, height, width)).max() <= 0.5 + 1e-4


@pytest.mark.parametrize(("height", "width"), [(120, 160), (97, 96), (240, 7), (96, 200)])
def test_areas_from_the_extension_are_numpys(height, width, monkeypatch):
    images = np.random.default_rng(0).integers(256, size=(2, 3, height, width), dtype=np.uint8)
    images[0] = 255
    taps = areas.area_taps(height, min(height, 72)), areas.area_taps(width, min(width, 96))
    assert areas.HAS_EXTENSION
    small = areas.shrink(images, *taps)
    monkeypatch.setattr(areas, "HAS_EXTENSION", False)
    np.testing.assert_array_equal(small, areas.shrink(images, *taps))
    assert (small[0] == 255).all()
    floats = areas.shrink(images.astype(np.float32), *taps)
    assert floats.dtype == np.float32
    np.testing.assert_array_equal(small, floats.round())


@pytest.mark.parametrize("size", [0, 9, 96])
def test_images_that_are_small_enough_stay_as_they_are(size):
    env = envs.make_vec_env("Numbered-v0", 2, 0, EnvOptions(image_size=size))
    plain = play(envs.make_vec_env("Numbered-v0", 2, 0))
    for (obs, *_), (whole, *_) in zip(play(env), plain, strict=True):
        np.testing.assert_array_equal(obs["obs.colour"], whole["obs.colour"])


# --- stacks ---


def test_stacks_are_gymnasiums():
    options = EnvOptions(frame_stack=3)
    env = envs.make_vec_env("Numbered-v0", 2, 0, options)
    rows = play(env)
    spec = envs.describe("Numbered-v0", options)
    assert env.leaves == spec.leaves
    shapes = {leaf.name: leaf.shape for leaf in spec.leaves}
    assert shapes == {
        "obs.choice": (3,),
        "obs.colour": (9, 8, 9),
        "obs.grey": (3, 9, 7),
        "obs.numbers": (6,),
    }
    assert next(leaf for leaf in spec.leaves if leaf.name == "obs.choice").sizes == (50,) * 3
    reference = FrameStackObservation(Numbered(), 3, padding_type="reset")
    has_ended = True
    for obs, actions, _ in rows:
        if has_ended:
            theirs, has_ended = reference.reset()[0], False
        else:
            theirs, _, has_ended, _, _ = reference.step(actions[1])
        for copy in range(2):
            expected = {
                "obs.choice": theirs["choice"],
                "obs.colour": theirs["colour"].transpose(0, 3, 1, 2).reshape(9, 8, 9),
                "obs.grey": theirs["grey"],
                "obs.numbers": theirs["numbers"].reshape(6),
            }
            for name, array in expected.items():
                np.testing.assert_array_equal(obs[name][copy], array)


def test_a_mask_is_not_stacked_and_stays_the_last_leaf():
    options = EnvOptions(kwargs={"has_mask": True}, frame_stack=2, observe_last=True)
    env = envs.make_vec_env("Numbered-v0", 2, 0, options)
    plain = envs.make_vec_env("Numbered-v0", 2, 0, EnvOptions(kwargs={"has_mask": True}))
    assert env.leaves == envs.describe("Numbered-v0", options).leaves
    assert env.leaves[-1] == plain.leaves[-1]
    for (obs, *_), (expected, *_) in zip(play(env), play(plain), strict=True):
        np.testing.assert_array_equal(obs["action_mask"], expected["action_mask"])
        assert {leaf.name: obs[leaf.name].shape[1:] for leaf in env.leaves} == {
            leaf.name: leaf.shape for leaf in env.leaves
        }


# --- the last action and reward ---


@pytest.mark.parametrize("frame_stack", [1, 2])
def test_the_last_action_and_reward_are_seen_but_not_at_an_episodes_start(frame_stack):
    options = EnvOptions(observe_last=True, frame_stack=frame_stack)
    env = envs.make_vec_env("Numbered-v0", 2, 0, options)
    assert env.leaves == envs.describe("Numbered-v0", options).leaves
    only_resets = True
    for obs, actions, result in play(env):
        if only_resets:
            assert not obs["last_action"].any()
            assert not obs["last_reward"].any()
        else:
            np.testing.assert_array_equal(obs["last_action"], np.eye(3)[actions])
            np.testing.assert_array_equal(obs["last_reward"][:, 0], result.rewards)
            assert result.rewards.all()
        only_resets = result is not None and result.terminated.all()


@pytest.mark.parametrize("between", ["send and recv", "steps"])
def test_a_game_goes_on_from_its_state_with_the_last_action(between):
    options = EnvOptions(observe_last=True, max_episode_frames=60)
    env, other = (envs.make_vec_env("Pong", 2, seed, options) for seed in (0, 1))
    play(env, 14)
    other.reset()
    if between == "send and recv":
        env.send(np.array([1, 2]))
    other.load_state(env.state())
    if between == "send and recv":
        ours, theirs = env.recv(), other.recv()
        for name in ours.obs:
            np.testing.assert_array_equal(ours.obs[name], theirs.obs[name])
        assert ours.obs["last_action"].any()
    num_ends = 0
    for actions in np.random.default_rng(0).integers(3, size=(40, 2)):
        env.send(actions)
        other.send(actions)
        ours, theirs = env.recv(), other.recv()
        num_ends += ours.truncated.sum()
        for name in ours.obs:
            np.testing.assert_array_equal(ours.obs[name], theirs.obs[name])
    assert num_ends > 2


def test_numbers_and_several_choices_are_seen_as_they_were_given():
    from sfrl.envs.observe_last import flat_actions
    from sfrl.envs.vec_env import ActionSpec

    spec = ActionSpec(choices=(2, 3), low=(-1.0,), high=(1.0,))
    flat = flat_actions(spec, np.array([[1, 0, 0.5], [0, 2, -3]], np.float32))
    assert flat.tolist() == [[0, 1, 1, 0, 0, 0.5], [1, 0, 0, 0, 1, -3]]


# --- names ---


def test_an_environment_that_waits_has_a_short_name():
    assert envs.gymnasium_id("Latency") == "Latency-v0"
    env = envs.make_vec_env("latency", 1, 0, EnvOptions(kwargs={"mean_ms": 0}))
    assert [leaf.shape for leaf in env.leaves] == [(4,)]
    with pytest.raises(ValueError, match="mean_ms=-1 must lie between"):
        envs.make_vec_env("Latency", 1, 0, EnvOptions(kwargs={"mean_ms": -1}))


@pytest.mark.parametrize("heavy_tail", [False, True])
def test_it_waits_as_long_as_it_is_told_on_average(monkeypatch, heavy_tail):
    delays = []
    monkeypatch.setattr("sfrl.envs.latency.time", SimpleNamespace(sleep=delays.append))
    env = gymnasium.make("Latency-v0", mean_ms=3, heavy_tail=heavy_tail).unwrapped
    for seed in range(5):
        env.reset(seed=seed)
        for _ in range(4000):
            env.step(0)
            env.steps_beyond_terminated = None
    assert np.mean(delays) == pytest.approx(3e-3, rel=0.1)
    assert (max(delays) > 0.03) == heavy_tail
    assert min(delays) == pytest.approx(1.5e-3 if heavy_tail else 3e-3, rel=1e-2)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("MiniGrid-DoorKey-8x8-v0", "minigrid", "minigrid"),
        ("BabyAI-GoToObj-v0", "minigrid", "minigrid"),
        ("MinAtar/Breakout-v1", "minatar.gym", "minatar"),
        ("VizdoomBasic-v1", "vizdoom.gymnasium_wrapper", "vizdoom"),
        ("dm_control/cheetah-run-v0", "shimmy", "dm-control"),
        ("highway-v0", "highway_env", "highway"),
        ("lane-keeping-v0", "highway_env", "highway"),
    ],
)
def test_an_id_of_a_package_says_how_to_name_and_install_it(name, module, extra):
    """In a process of its own, where no such package is imported."""
    code = f"from sfrl import envs; envs.gymnasium_id({name!r})"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    last = ended.stderr.splitlines()[-1]
    assert f"name it as {module}:{name}" in last
    try:
        __import__(module.partition(".")[0])
    except ModuleNotFoundError:
        assert f'pip install "sfrl[{extra}]"' in last
        with pytest.raises(UnknownEnvError, match=rf'pip install "sfrl\[{extra}\]"'):
            envs.gymnasium_id(f"{module}:{name}")


def test_a_module_that_registers_when_told_is_told(tmp_path, monkeypatch):
    (tmp_path / "tells.py").write_text(
        "import gymnasium\n"
        "def register_envs():\n"
        "    gymnasium.register('Told/Id-v0', 'tests.envs.test_options:Numbered')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert envs.gymnasium_id("tells:Told/Id-v0") == "Told/Id-v0"
    assert envs.gymnasium_id("tells:Told/Id-v0") == "Told/Id-v0"  # and not once more
    with pytest.raises(UnknownEnvError):  # whose function of this name is for others
        envs.gymnasium_id("gymnasium:Told/Id-v1")


def test_a_text_among_other_observations_is_left_out_by_a_wrapper():
    class WithText(Numbered):
        def __init__(self):
            super().__init__()
            self.observation_space = Dict(
                image=self.observation_space["colour"],
                mission=gymnasium.spaces.Text(9),
                nested=Dict(text=gymnasium.spaces.Text(9), number=Discrete(3)),
                place=Discrete(4),
            )

        def reset(self, *, seed=None, options=None):
            image = np.zeros((8, 9, 3), np.uint8)
            return {"image": image, "mission": "go", "nested": {}, "place": 1}, {}

    gymnasium.registry.pop("WithText-v0", None)
    gymnasium.register("WithText-v0", WithText)
    wrapper = 'FilterObservation{"filter_keys":["image","place"]}'
    with pytest.raises(UnsupportedEnvError) as caught:
        envs.describe("WithText-v0")
    assert "'mission'" in str(caught.value)
    assert f"--wrappers='{wrapper}' leaves it out" in str(caught.value)
    options = EnvOptions(wrappers=wrapper)
    leaves = envs.describe("WithText-v0", options).leaves
    assert [leaf.name for leaf in leaves] == ["obs.image", "obs.place"]
    assert set(envs.make_vec_env("WithText-v0", 1, 0, options).reset()) == {
        "obs.image",
        "obs.place",
    }
