"""Environments that break the rules are told by name, copy and step."""

import logging
from decimal import Decimal
from fractions import Fraction

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from sfrl import envs
from sfrl.envs import EnvError, NonFiniteError
from sfrl.envs.rules import LeafRules, Rules
from sfrl.envs.spaces import observation_parts

NUM_GOOD_STEPS = 3


class Breaks(gymnasium.Env):
    """Each step gives what it should until step `NUM_GOOD_STEPS`, then what `fault` says."""

    def __init__(self, fault: object = None) -> None:
        self.observation_space = Box(-10, 10, (2,), np.float32)
        self.action_space = Discrete(2)
        self.fault = fault
        self.num_steps = self.num_resets = 0

    def reset(self, *, seed=None, options=None):
        self.num_resets += 1
        return np.full(2, self.num_resets, np.float32), {}

    def step(self, action):
        self.num_steps += 1
        good = (np.full(2, self.num_steps / 8, np.float32), 1.0, False, False, {})
        if self.num_steps <= NUM_GOOD_STEPS or self.fault is None:
            return good
        place, value = self.fault
        return (*good[:place], value, *good[place + 1 :])


gymnasium.register("Breaks-v0", Breaks)
gymnasium.register("Limited-v0", Breaks, max_episode_steps=9)


def play(fault, *, copy=1, **settings):
    """The results of two copies, one of which breaks, over twice the good steps."""
    env = envs.make_vec_env("Breaks-v0", 2, seed=0, options=envs.EnvOptions(**settings))
    env._envs[copy].unwrapped.fault = fault
    obs = env.reset()["obs"].copy()
    results = []
    for _ in range(2 * NUM_GOOD_STEPS):
        env.send(np.zeros(2, np.int64))
        result = env.recv()
        results.append((obs, result._replace(obs=result.obs["obs"].copy())))
        obs = results[-1][1].obs
    return results


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ((0, np.zeros(3, np.float32)), r"observation is float32\[3\], .* says float32\[2\]"),
        ((0, np.float32(1)), r"observation is float32\[\]"),
        ((0, np.array(["a", "b"])), r"observation is <U1\[2\], .* says float32\[2\]"),
        ((0, None), r"observation is object\[\]"),
        ((1, None), "reward is None, and must be a number"),
        ((1, np.ones(2)), r"reward is array\(\[1\., 1\.\]\), and .*; return float\(reward\)"),
        ((1, torch.ones(2)), r"reward is tensor\(\[1\., 1\.\]\), and must be a number"),
        ((1, "1"), "reward is '1', and must be a number"),
        ((1, 10**400), "reward is too large for a float"),
        ((1, np.array(10**5000, object)), "reward is too large for a float"),
        ((1, np.array("1")), "reward is array.*, and must be a number"),
        ((1, np.complex64(1)), "reward is np.complex64.*, and must be a number"),
        ((2, None), r"terminated is None, not a bool; return bool\(terminated\)"),
        ((2, np.array([True, False])), r"terminated is array\(\[.*\]\), not a bool"),
        ((3, 1), r"truncated is 1, not a bool; return bool\(truncated\)"),
        ((3, {}), r"truncated is \{\}, not a bool"),
    ],
)
def test_a_broken_rule_is_told_by_copy_and_step(fault, text):
    with pytest.raises(EnvError, match=f"Breaks-v0, env 1, step 4: its {text}"):
        play(fault)


@pytest.mark.parametrize(
    ("method", "result", "text"),
    [
        (
            "reset",
            np.zeros(2),
            r"step 0: its reset returned \[0. 0.\], and must return ",
        ),
        (
            "step",
            (np.zeros(2), 1.0, True, {}),
            r"step 1: its step returned \(array.*, and must return ",
        ),
        ("step", None, "step 1: its step returned None, and must return observation, reward, "),
    ],
)
def test_an_old_interface_is_told_as_what_must_be_returned(method, result, text, monkeypatch):
    monkeypatch.setattr(Breaks, method, lambda *_, **__: result)
    with pytest.raises(EnvError, match=f"Breaks-v0, env 0, {text}"):
        play(None)


def test_an_old_interface_in_a_time_limit_is_told_as_well(monkeypatch):
    monkeypatch.setattr(Breaks, "step", lambda *_: (np.zeros(2), 1.0, True, {}))
    env = envs.make_vec_env("Limited-v0", 1, seed=0)
    env.reset()
    env.send(np.zeros(1, np.int64))
    with pytest.raises(ValueError, match="not enough values to unpack") as caught:
        env.recv()
    parts = "observation, reward, terminated, truncated, info"
    assert caught.value.__notes__[-1] == f"a step must return {parts}"


def test_lists_are_as_good_as_tuples(monkeypatch):
    monkeypatch.setattr(Breaks, "reset", lambda *_, **__: [np.zeros(2, np.float32), {}])
    monkeypatch.setattr(Breaks, "step", lambda *_: [np.zeros(2, np.float32), 1.0, False, False, {}])
    assert play(None)[-1][1].rewards.tolist() == [1, 1]


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_reward_beyond_float32_is_told_so(caplog):
    with caplog.at_level(logging.WARNING):
        play((1, 1e39))
    text = "reward inf, observation array([0.5, 0.5], dtype=float32) (in float32 all beyond 3.4e38"
    assert text in caplog.records[0].getMessage()


def rules_of(space):
    (part,) = observation_parts("Breaks-v0", space)
    return LeafRules(Rules("Breaks-v0", space, Discrete(2)), part)


def test_a_larger_integer_is_no_pixel():
    rules = rules_of(Box(0, 255, (2, 2), np.uint8))
    with pytest.raises(EnvError, match=r"is uint16\[2, 2\], .* says uint8"):
        rules.read(np.zeros((2, 2), np.uint16), 0, 1)


def test_numbers_for_a_vector_may_be_of_another_size():
    rules = rules_of(Box(0, 255, (2,), np.int32))
    assert rules.read(np.zeros(2, np.int64), 0, 1).tolist() == [0, 0]


def test_numbers_of_other_types_are_taken():
    for fault in ((0, [1, 2]), (0, np.ones(2)), (1, np.int8(1)), (1, True), (2, np.bool_(False))):
        assert play(fault)[-1][1].rewards.tolist() == [1, 1]


@pytest.mark.parametrize("of", [np.array, torch.tensor])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_arrays_and_tensors_of_one_element_are_what_is_in_them(of, shape):
    def result(place, value):
        return play((place, of(np.full(shape, value).tolist())))[NUM_GOOD_STEPS][1]

    assert result(1, 2.5).rewards.tolist() == [1, 2.5]
    assert result(1, 3).rewards.tolist() == [1, 3]
    for value in (False, True):
        assert result(2, value).terminated.tolist() == [False, value]
        assert result(3, value).truncated.tolist() == [False, value]


@pytest.mark.parametrize(
    "reward", [torch.tensor(2.5, requires_grad=True), Decimal("2.5"), Fraction(5, 2)]
)
def test_whatever_float_makes_a_number_is_a_reward(reward):
    assert play((1, reward))[-1][1].rewards.tolist() == [1, 2.5]


BAD_VALUES = [
    (0, np.array([0, np.nan], np.float32)),
    (0, np.array([np.inf, 0], np.float32)),
    (1, float("nan")),
    (1, float("-inf")),
]


@pytest.mark.parametrize("fault", BAD_VALUES)
def test_nan_cuts_its_episode_off_before(caplog, fault):
    with caplog.at_level(logging.WARNING):
        results = play(fault)
    for obs, result in results:
        assert np.isfinite(result.obs).all()
        assert np.isfinite(result.rewards).all()
        assert result.obs[0, 0] == obs[0, 0] + 1 / 8 or obs[0, 0] == 1, "the other copy goes on"
    obs, cut = results[NUM_GOOD_STEPS]
    np.testing.assert_array_equal(cut.obs[1], obs[1])
    assert (cut.rewards[1], cut.terminated[1], cut.truncated[1]) == (0, False, True)
    _, after = results[NUM_GOOD_STEPS + 1]
    assert after.obs[1].tolist() == [2, 2], "the second reset"
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings[0].startswith("Breaks-v0, env 1, step 4: NaN or infinity: reward ")
    assert warnings[0].endswith("; the episode was cut off before it (so far: 1)")


@pytest.mark.parametrize("fault", BAD_VALUES)
def test_nan_stops_the_worker_if_asked(fault):
    with pytest.raises(EnvError, match="Breaks-v0, env 0, step 4: NaN or infinity"):
        play(fault, copy=0, on_nan="stop")


def test_an_observation_outside_its_space_is_told_once(caplog):
    with caplog.at_level(logging.WARNING):
        results = play((0, np.array([0, 11], np.float32)))
    assert results[-1][1].obs[1, 1] == 11
    (record,) = caplog.records
    text = "Breaks-v0, env 1, step 4: element 1 of its observation is 11, outside its observation_"
    assert record.getMessage().startswith(text)


class AtItsBounds(gymnasium.Env):
    """Gives the ends of its space in turn, and after 4 steps what is a little beyond."""

    observation_space = Box(np.array([-np.pi, 0.3]), np.array([np.pi, 1e300]), dtype=np.float64)
    action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.num_steps = 0
        return self.observation_space.low, {}

    def step(self, action):
        self.num_steps += 1
        ends = (self.observation_space.low, np.array([np.pi, 0.3]))
        observation = ends[self.num_steps % 2]
        assert self.observation_space.contains(observation)
        return observation * (1.000001 if self.num_steps > 4 else 1), 1.0, False, False, {}


gymnasium.register("AtItsBounds-v0", AtItsBounds)


def test_an_observation_at_the_bounds_of_its_space_is_within_them(caplog):
    env = envs.make_vec_env("AtItsBounds-v0", 1, seed=0)
    env.reset()
    for _ in range(4):
        env.send(np.zeros(1, np.int64))
        env.recv()
    assert not caplog.records
    env.send(np.zeros(1, np.int64))
    env.recv()
    assert "element 0 of its observation is 3.1416" in caplog.text


class Gaps(gymnasium.Env):
    """Episodes of 3 steps, of which two in three begin with a value that is none."""

    observation_space = Box(-10, 10, (2,), np.float32)
    action_space = Discrete(2)
    num_resets = 0
    gaps = (0, 1)  # of each 3 resets

    def reset(self, *, seed=None, options=None):
        is_gap = self.num_resets % 3 in self.gaps
        self.num_resets, self.num_steps = self.num_resets + 1, 0
        return np.array([0, np.inf if is_gap else self.num_resets], np.float32), {}

    def step(self, action):
        self.num_steps += 1
        return np.full(2, self.num_steps, np.float32), 1.0, self.num_steps == 3, False, {}


gymnasium.register("Gaps-v0", Gaps)


def test_an_episode_that_begins_with_nan_is_passed_over(caplog):
    env = envs.make_vec_env("Gaps-v0", 2, seed=0)
    with caplog.at_level(logging.WARNING):
        first = env.reset()
        rows = []
        for _ in range(8):
            env.send(np.zeros(2, np.int64))
            rows.append(env.recv())
    assert first["obs"].tolist() == [[0, 3], [0, 3]]
    assert [row.obs["obs"][1].tolist() for row in rows[:4]] == [[1, 1], [2, 2], [3, 3], [0, 6]]
    assert [row.rewards[1] for row in rows] == [1, 1, 1, 0] * 2
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 4, "of 12, the 1st, 2nd, 4th and 8th"
    assert warnings[0].startswith(
        "Gaps-v0, env 0, step 0: NaN or infinity: its first observation is "
    )
    beyond = "(in float32 all beyond 3.4e38 is infinite)"
    assert warnings[0].endswith(f"{beyond}; it is reset once more (so far: 1)")


def test_nan_at_every_reset_is_an_error(monkeypatch):
    monkeypatch.setattr(Gaps, "gaps", (0, 1, 2))
    text = "Gaps-v0, env 0, step 0: NaN or infinity in its first observation after 20 resets"
    with pytest.raises(EnvError, match=text):
        envs.make_vec_env("Gaps-v0", 2, seed=0).reset()


def test_nan_at_a_reset_ends_the_run_if_it_is_to():
    with pytest.raises(NonFiniteError, match="Gaps-v0, env 0, step 0: NaN or infinity: its"):
        envs.make_vec_env("Gaps-v0", 2, seed=0, options=envs.EnvOptions(on_nan="stop")).reset()


@pytest.mark.parametrize(
    ("name", "space"), [("observation_space", Box(0, 1, (2,))), ("action_space", Discrete(3))]
)
def test_spaces_must_stay(name, space):
    env = envs.make_vec_env("Breaks-v0", 2, seed=0)
    env.reset()
    setattr(env._envs[1].unwrapped, name, space)
    with pytest.raises(EnvError, match=rf"Breaks-v0, env 1: its {name} .* must stay"):
        env.reset()


def test_what_an_environment_raises_tells_where(monkeypatch):
    def raising(self, *args, **kwargs):
        raise KeyError("ball")

    monkeypatch.setattr(Breaks, "step", raising)
    env = envs.make_vec_env("Breaks-v0", 2, seed=0)
    env.reset()
    env.send(np.zeros(2, np.int64))
    with pytest.raises(KeyError, match="ball") as caught:
        env.recv()
    assert caught.value.__notes__ == ["in step 1 of Breaks-v0, env 0, with action 0"]
    monkeypatch.setattr(Breaks, "reset", raising)
    with pytest.raises(KeyError, match="ball") as caught:
        env.reset()
    assert caught.value.__notes__ == ["in the reset of Breaks-v0, env 0, at step 1"]
