"""Every space of Gymnasium's: leaves hold what was sampled, actions lie in their space."""

import logging
import re
from math import inf

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    Graph,
    MultiBinary,
    MultiDiscrete,
    OneOf,
    Sequence,
    Space,
    Text,
    Tuple,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from sfrl import envs
from sfrl.envs.spaces import ActionLayout


class Samples(gymnasium.Env):
    """Gives samples of its observation space, and keeps them and the actions that it gets."""

    def __init__(self, observation_space: Space, action_space: Space):
        self.observation_space, self.action_space = observation_space, action_space
        self.actions, self.observations = [], []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.actions.append(action)
        return self._sample(), 0.0, len(self.actions) % 3 == 0, False, {}

    def _sample(self):
        self.observations.append(self.observation_space.sample())
        return self.observations[-1]


def make(observation_space=None, action_space=None, num_envs=2, env_class=Samples, **given):
    """Copies of an environment with these spaces; each has a copy of them of its own."""
    observation_space = Box(-1, 1, (2,)) if observation_space is None else observation_space
    action_space = Discrete(2) if action_space is None else action_space
    gymnasium.registry.pop("Samples-v0", None)

    def make_one():
        return env_class(*map(copied, (observation_space, action_space)))

    gymnasium.register("Samples-v0", make_one, order_enforce=False)
    return envs.make_vec_env("Samples-v0", num_envs, seed=0, options=envs.EnvOptions(**given))


def copied(space: Space) -> Space:
    if isinstance(space, Dict):
        return Dict({key: copied(part) for key, part in space.spaces.items()}, sort_keys=False)
    if isinstance(space, Tuple):
        return Tuple([copied(part) for part in space.spaces])
    if isinstance(space, Discrete):
        return Discrete(space.n, start=space.start, dtype=space.dtype)
    if isinstance(space, MultiDiscrete):
        return MultiDiscrete(space.nvec, dtype=space.dtype, start=space.start)
    if isinstance(space, MultiBinary):
        return MultiBinary(space.shape)
    return Box(space.low, space.high, dtype=space.dtype) if isinstance(space, Box) else space


def flat(space: Space, value) -> list[np.ndarray]:
    """The leaves of a sample in order, with choices from 0 on, flattened: the slow way."""
    if isinstance(space, Dict):
        return [leaf for key in space for leaf in flat(space[key], value[key])]
    if isinstance(space, Tuple):
        return [leaf for part, v in zip(space, value, strict=True) for leaf in flat(part, v)]
    return [(np.asarray(value) - getattr(space, "start", 0)).ravel().astype(np.float32)]


# --- spaces at random ---


@st.composite
def boxes(draw):
    dtype = draw(st.sampled_from(["float32", "float64", "int32", "int64", "uint8", "bool"]))
    shape = tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
    ends = st.sampled_from([-inf, -3.0, -0.5, 0.0, 1.0, 2.5, inf])
    if dtype == "bool":
        return Box(0, 1, shape, np.bool_)
    if dtype == "uint8":
        return Box(draw(st.integers(0, 5)), draw(st.integers(6, 255)), shape, np.uint8)
    if dtype.startswith("int"):
        return Box(draw(st.integers(-9, 0)), draw(st.integers(0, 9)), shape, dtype)
    count = int(np.prod(shape))
    pairs = [sorted(draw(st.tuples(ends, ends))) for _ in range(count)]
    pairs = [pair if pair[0] < pair[1] else [-1.0, 1.0] for pair in pairs]  # of equal ones, none
    low, high = (np.array(bounds, dtype).reshape(shape) for bounds in zip(*pairs, strict=True))
    return Box(low, high, dtype=dtype)


LEAVES = st.one_of(
    boxes(),
    st.builds(
        lambda n, start, dtype: Discrete(n, start=start, dtype=dtype),
        *(st.integers(1, 9), st.integers(-9, 9), st.sampled_from([np.int64, np.int32])),
    ),
    st.lists(st.integers(1, 5), min_size=1, max_size=4).map(MultiDiscrete),
    st.lists(st.integers(1, 5), min_size=2, max_size=2).map(
        lambda n: MultiDiscrete([n, n], start=[[-1, 2], [0, 7]])
    ),
    st.lists(st.integers(1, 3), min_size=1, max_size=2).map(MultiBinary),
)
SPACES = st.recursive(
    LEAVES,
    lambda part: st.one_of(
        st.dictionaries(st.sampled_from("zyxab"), part, min_size=1, max_size=3).map(Dict),
        st.lists(part, min_size=1, max_size=3).map(Tuple),
    ),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(SPACES, SPACES, st.sampled_from(["clip", "tanh"]))
def test_random_spaces_hold_what_was_sampled_and_get_what_they_allow(
    observation_space, action_space, bounds
):
    env = make(observation_space, action_space, bounds=bounds)
    assert env.leaves == envs.describe("Samples-v0").leaves
    rng = np.random.default_rng(0)
    copies = [env.unwrapped for env in env._envs]
    rows = [env.reset()]
    first = len(copies[0].observations) - 1  # `leaves` has reset it once before
    actions = []
    for _ in range(5):
        actions.append(envs.random_actions(env.actions, rows[-1], rng))
        env.send(actions[-1])
        rows.append(env.recv().obs)
    for i, copy in enumerate(copies):
        for row, sample in zip(rows, copy.observations[first * (i == 0) :], strict=True):
            for leaf, expected in zip(
                env.leaves, flat(copy.observation_space, sample), strict=True
            ):
                assert row[leaf.name].dtype == leaf.dtype
                assert row[leaf.name][i].shape == leaf.shape
                got = row[leaf.name][i]
                if leaf.kind != "image":  # whose axes have other tests
                    np.testing.assert_array_equal(got.astype(np.float32), expected)
                np.testing.assert_array_equal(np.sort(got.ravel()), np.sort(expected))
        taken = [row[i] for step, row in enumerate(actions) if step != 3]  # it only reset
        num_choices = len(env.actions.choices)
        for own, row in zip(copy.actions, taken, strict=True):
            own_choices = [
                part
                for part, (_, leaf) in zip(flat(action_space, own), env._layout.leaves, strict=True)
                if not isinstance(leaf, Box)
            ]
            expected = row.reshape(-1)[:num_choices]
            np.testing.assert_array_equal(np.concatenate([[], *own_choices]), expected)
    again = make(observation_space, action_space).reset()
    for name, array in rows[0].items():
        np.testing.assert_array_equal(array, again[name])


# --- observations ---


def test_leaves_are_named_by_the_way_to_them_in_the_spaces_order():
    space = Dict(
        {
            "z": Discrete(3),
            "arm": Dict(
                {"b": Box(-1, 1, (2,)), "a": Tuple([MultiBinary(2), MultiDiscrete([2, 3])])}
            ),
            "camera": Box(0, 255, (12, 10, 3), np.uint8),
        }
    )
    env = make(space)
    assert env.leaves == (
        envs.Leaf("obs.arm.a.0", "vector", (2,), "uint8"),
        envs.Leaf("obs.arm.a.1", "choice", (2,), "int32", sizes=(2, 3)),
        envs.Leaf("obs.arm.b", "vector", (2,), "float32"),
        envs.Leaf("obs.camera", "image", (3, 12, 10), "uint8", 255.0),
        envs.Leaf("obs.z", "choice", (1,), "int32", sizes=(3,)),
    )
    assert envs.describe("Samples-v0").kind == "image"
    assert list(env.reset()) == [leaf.name for leaf in env.leaves]


BOX = Box(-1, 1, (2,))
MANY = Discrete(2**20 + 1)


@pytest.mark.parametrize(
    ("space", "text"),
    [
        (Dict(a=BOX, t=Text(4)), r"observation_space\['t'\] is Text.*FilterObservation.*\[\"a\"\]"),
        (Dict(a=Dict(t=Text(4))), r"observation_space\['a'\]\['t'\] is Text.*ObservationWrapper"),
        (Tuple([BOX, Sequence(Discrete(2))]), r"observation_space\[1\] is Sequence"),
        (Graph(BOX, None), "observation_space is Graph.*; supported is Box, Discrete, Multi"),
        (OneOf([BOX, BOX]), "observation_space is OneOf.*ObservationWrapper of yours"),
        (Dict(), "observation_space is an empty Dict; at least one number or choice is needed"),
        (Dict(a=Tuple([])), r"observation_space\['a'\] is an empty Tuple; leave it out"),
        (Box(0, 1, (0, 3)), "observation_space is Box.*, which is empty; at least one number or"),
        (Dict(a=Box(0, 1, (0, 3))), r"observation_space\['a'\] is Box.*empty; leave it out"),
        (
            Dict(n=MANY),
            r"observation_space\['n'\] is Discrete\(1048577\).* 1048577 values in all, ",
        ),
        (MultiDiscrete([2**19, 2**19, 1]), "1048577 values in all, .*; give it as numbers, in a B"),
        (
            Dict({"a.b": BOX, "a": Dict(b=BOX)}),
            r"observation\['a'\]\['b'\] and observation\['a\.b'\] are both named .*rename",
        ),
        (Dict({1: BOX, "1": BOX}), "are both named 'obs.1'"),
    ],
)
def test_an_observation_that_is_not_supported_is_told_with_its_place(space, text):
    with pytest.raises(envs.UnsupportedEnvError, match=f"^Samples-v0: .*{text}") as refusal:
        make(space)
    with pytest.raises(envs.UnsupportedEnvError) as described:
        envs.describe("Samples-v0")
    assert str(described.value) == str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_line_that_leaves_a_leaf_out_works_as_printed():
    space = Dict(image=Box(0, 255, (7, 7, 3), np.uint8), direction=Discrete(4), mission=Text(9))
    with pytest.raises(envs.UnsupportedEnvError) as refusal:
        make(space)
    text = str(refusal.value)
    [wrappers] = re.findall("--wrappers='(.*)'", text)
    spec = envs.describe("Samples-v0", envs.EnvOptions(wrappers=wrappers))
    assert {leaf.name for leaf in spec.leaves} == {"obs.direction", "obs.image"}


WRONG = Dict(n=Discrete(3, start=5), m=MultiDiscrete([2, 3]), b=MultiBinary(2), x=Box(-1, 1, (2,)))
GOOD = {"n": 5, "m": [0, 1], "b": [0, 1], "x": np.zeros(2, np.float32)}


class Gives(Samples):
    given = GOOD

    def _sample(self):
        return self.given


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"n": 8}, r"its observation\['n'\] is 8, and its observation_space says Discrete\(3, sta"),
        ({"n": 4}, r"its observation\['n'\] is 4"),
        ({"n": 2**63 - 1}, r"its observation\['n'\] is 9223372036854775807"),
        ({"n": 5.0}, r"its observation\['n'\] is float64\[\]"),
        ({"n": np.array([5])}, r"its observation\['n'\] is int64\[1\]"),
        ({"m": [0, 3]}, r"its observation\['m'\] is \[0, 3\], and its .* says MultiDiscrete"),
        ({"m": [-1, 0]}, r"its observation\['m'\] is \[-1, 0\]"),
        ({"b": [0, 2]}, r"its observation\['b'\] is \[0, 2\], and its .* says MultiBinary"),
        ({"b": np.array([-1, 0])}, r"its observation\['b'\] is \[-1, 0\]"),
        ({"x": np.zeros(3)}, r"its observation\['x'\] is float64\[3\], .* says float32\[2\]"),
        ({"x": [[1], [1, 2]]}, r"its observation\['x'\] is no array"),
    ],
)
def test_a_leaf_outside_its_space_is_an_error(change, text, monkeypatch):
    env = make(WRONG, env_class=Gives)
    env.reset()
    monkeypatch.setattr(Gives, "given", GOOD | change)
    env.send(np.zeros(2, np.int64))
    with pytest.raises(envs.EnvError, match=f"^Samples-v0, env 0, step 1: {text}"):
        env.recv()


@pytest.mark.parametrize("given", [{k: GOOD[k] for k in "mbx"}, None, np.zeros(2), (1, 2)])
def test_a_missing_key_is_an_error(given, monkeypatch):
    monkeypatch.setattr(Gives, "given", given)
    text = r"its observation is .*, without '\w', and its observation_space has observation\['\w'\]"
    with pytest.raises(envs.EnvError, match=text):
        make(WRONG, env_class=Gives).reset()


def test_nan_in_any_float_leaf_cuts_the_episode_off(monkeypatch, caplog):
    env = make(WRONG, env_class=Gives)
    first = env.reset()
    monkeypatch.setattr(Gives, "given", GOOD | {"n": 7, "x": np.array([0, np.nan], np.float32)})
    env.send(np.zeros(2, np.int64))
    with caplog.at_level(logging.WARNING):
        result = env.recv()
    assert result.truncated.all()
    assert [result.obs[name].tolist() for name in first] == [a.tolist() for a in first.values()]
    assert "observation obs.x array([ 0., nan]" in caplog.text


def test_a_leaf_outside_its_bounds_is_told_by_its_place(monkeypatch, caplog):
    env = make(WRONG, env_class=Gives)
    env.reset()
    monkeypatch.setattr(Gives, "given", GOOD | {"x": np.array([0, 2], np.float32)})
    env.send(np.zeros(2, np.int64))
    env.recv()
    assert "element 1 of its observation['x'] is 2, outside its observation_space" in caplog.text


# --- actions ---


@pytest.mark.parametrize(
    ("space", "spec", "shape", "dtype"),
    [
        (Discrete(3, start=4), envs.ActionSpec((3,)), (), "int64"),
        (MultiDiscrete([4]), envs.ActionSpec((4,)), (), "int64"),
        (Dict(a=Discrete(5)), envs.ActionSpec((5,)), (), "int64"),
        (MultiDiscrete([[2, 3], [4, 5]]), envs.ActionSpec((2, 3, 4, 5)), (4,), "int64"),
        (MultiBinary(3), envs.ActionSpec((2, 2, 2)), (3,), "int64"),
        (
            Dict({"z": Discrete(2), "a": Box(-1, 2, (2,)), "m": Tuple([MultiDiscrete([3, 4])])}),
            *(envs.ActionSpec((3, 4, 2), (-1.0, -1.0), (2.0, 2.0)), (5,), "float32"),
        ),
        (Box(-1, 1, ()), envs.ActionSpec((), (-1.0,), (1.0,)), (1,), "float32"),
        (Box(0, inf, (1,)), envs.ActionSpec((), (0.0,), (inf,)), (1,), "float32"),
        (Box(-1e10, 9e9, (1,), np.float64), envs.ActionSpec((), (-inf,), (9e9,)), (1,), "float32"),
        (Box(-(2**62), 7, (1,), np.int64), envs.ActionSpec((), (-inf,), (7.0,)), (1,), "float32"),
    ],
)
def test_actions_are_choices_and_then_numbers(space, spec, shape, dtype):
    layout = ActionLayout("X-v0", space)
    assert layout.spec == spec
    assert (layout.spec.shape, layout.spec.dtype) == (shape, dtype)


def own(space, rows, bounds="clip"):
    layout = ActionLayout("X-v0", space, bounds)
    actions = layout.own(np.array(rows, layout.spec.dtype))
    assert all(space.contains(action) for action in actions)
    return actions


def test_actions_have_the_structure_and_types_of_the_space():
    space = Dict(
        {
            "z": Discrete(2, start=-1, dtype=np.int32),
            "a": Box(-1, 2, (1, 2), np.float64),
            "m": Tuple([MultiDiscrete([3, 4], dtype=np.int8, start=[5, 6]), MultiBinary(2)]),
        }
    )
    (action,) = own(space, [[2, 3, 1, 0, 1, -9, 0]])
    assert list(action) == ["a", "m", "z"]
    assert (action["z"], type(action["z"])) == (0, np.int32)
    assert (action["a"].tolist(), action["a"].dtype) == ([[-1.0, 0.5]], np.float64)
    assert (action["m"][0].tolist(), action["m"][0].dtype) == ([7, 9], np.int8)
    assert (action["m"][1].tolist(), action["m"][1].dtype) == ([1, 0], np.int8)


MIXED_BOUNDS = Box(np.array([-2, 0, -inf, -inf]), np.array([4, inf, 1, inf]), dtype=np.float64)


@pytest.mark.parametrize(
    ("bounds", "raw", "expected"),
    [
        ("clip", [0, 0.5, 0.5, 9], [1, 1.5, 0.5, 9]),
        ("clip", [-0.5, -3, 3, -9], [-0.5, 0, 1, -9]),
        ("clip", [7, 3, -3, 0], [4, 4, -3, 0]),
        ("tanh", [0, 0, 0, 9], [1, np.log(2), 1 - np.log(2), 9]),
        ("tanh", [1, -1, 2, -9], [1 + 3 * np.tanh(1), np.log1p(np.exp(-1)), 1 - 2.126928, -9]),
        ("tanh", [80, 80, -80, 0], [4, 80, 1, 0]),
        ("tanh", [-80, -800, 800, 0], [-2, 0, -799, 0]),
    ],
)
def test_numbers_come_within_the_bounds_of_each_dimension(bounds, raw, expected):
    (action,) = own(MIXED_BOUNDS, [raw], bounds)
    np.testing.assert_allclose(action, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("bounds", ["clip", "tanh"])
@pytest.mark.parametrize(
    ("low", "high", "start"),
    [(5, inf, 6), (-inf, -5, -6), (0, inf, 1), (-0.5, inf, 0.5), (-1e3, inf, 0), (-inf, 1e3, 0)],
)
def test_the_first_actions_within_one_bound_are_not_the_bound(low, high, start, bounds):
    """Of a policy that has learned nothing yet, and draws from a Gaussian of mean 0."""
    draws = np.random.default_rng(0).standard_normal((500, 1))
    actions = np.concatenate(own(Box(low, high, (1,), np.float64), [[0], *draws], bounds))
    assert ((low < actions) & (actions < high)).mean() > 0.8
    assert len(np.unique(actions)) > 400
    if bounds == "clip":
        assert actions[0] == start


@pytest.mark.parametrize("bounds", ["clip", "tanh"])
@pytest.mark.parametrize(
    "space",
    [
        Box(-5, 5, (3,), np.int32),
        Box(0, 255, (3,), np.uint8),
        Box(0, 1, (3,), np.bool_),
        Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (3,), np.int64),
        Box(0, np.iinfo(np.uint64).max, (3,), np.uint64),
        Box(-inf, inf, (3,), np.float16),
        Box(-inf, inf, (3,), np.float32),
        Box(0.1, 0.7, (3,), np.float32),
        Box(-1e30, 1e30, (3,), np.float32),
    ],
)
def test_numbers_of_every_size_and_type_lie_in_the_space(space, bounds):
    own(space, [[0, 1, -1], [0.49, 0.51, -0.7], [1e9, -1e9, 1e38]], bounds)


def test_whole_numbers_are_rounded():
    actions = own(Box(-4, 4, (4,), np.int64), [[0.1, 0.2, -0.9, 5]])
    assert actions[0].tolist() == [0, 1, -4, 4]


@pytest.mark.parametrize(
    ("space", "text"),
    [
        (Dict(a=BOX, t=Text(4)), r"action_space\['t'\] is Text.*ActionWrapper of yours"),
        (OneOf([BOX, BOX]), "action_space is OneOf.*; supported is Box, Discrete, MultiDiscrete"),
        (Tuple([]), "action_space is an empty Tuple; at least one number or choice is needed"),
        (Box(0, 1, (0,)), "action_space is Box.*, which is empty"),
        (Dict(a=Discrete(2**24 + 1)), r"\['a'\] is Discrete\(16777217\), .* at most 16777216 val"),
    ],
)
def test_an_action_space_that_is_not_supported_is_told(space, text):
    with pytest.raises(envs.UnsupportedEnvError, match=f"^Samples-v0: .*{text}"):
        make(None, space)


@pytest.mark.parametrize(
    ("space", "rows", "text"),
    [
        (MultiDiscrete([2, 3]), [[0, 1], [0, 3]], r"\[\[0, 1\], \[0, 3\]\] must lie in 0\.\.n-1"),
        (MultiDiscrete([2, 3]), [[0, 1], [-1, 0]], r"must lie in 0\.\.n-1, where n is \(2, 3\)"),
        (Tuple([Discrete(2), BOX]), [[0, 0, 0], [np.nan, 0, 0]], "must lie in"),
        (Tuple([Discrete(2), BOX]), [[0, 0, 0], [0, np.inf, 0]], "must be finite numbers"),
        (BOX, [[0, 0], [0, np.nan]], r"actions .*nan.* must be finite numbers"),
        (MultiDiscrete([3]), [0, 3], r"must lie in"),
    ],
)
def test_actions_that_are_none_are_refused(space, rows, text):
    env = make(None, space)
    env.reset()
    with pytest.raises(ValueError, match=text):
        env.send(np.array(rows, env.actions.dtype))


def test_a_choice_of_very_many_is_not_listed():
    (action,) = own(Discrete(2**24, start=3), [2**24 - 1])
    assert (action, type(action)) == (2**24 + 2, np.int64)
