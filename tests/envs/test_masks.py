"""Action masks, wherever an environment has them and in whatever form."""

from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from sfrl import envs
from sfrl.envs.masks import observed_masks, read_mask
from sfrl.envs.spaces import ActionLayout

A = np.array
BOX = Box(-1, 1, (2,))
PAIR = Tuple((Discrete(2), Discrete(3)))
DEEP = Dict({"z": Discrete(2), "a": Tuple((BOX, MultiDiscrete([3, 2]))), "b": MultiBinary(2)})
DEEP_MASK = [1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1]  # of a, of b, of z


def has_mask(spec):
    return any(leaf.kind == "mask" for leaf in spec.leaves)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.float32, np.int64])
@pytest.mark.parametrize(
    ("space", "mask", "expected"),
    [
        (Discrete(3), [1, 0, 1], [1, 0, 1]),
        (Discrete(3, start=7), (1, 0, 1), [1, 0, 1]),
        (MultiDiscrete([2, 3]), [0, 1, 1, 0, 1], [0, 1, 1, 0, 1]),
        (MultiDiscrete([2, 3]), [[0, 1], [1, 0, 1]], [0, 1, 1, 0, 1]),
        (MultiDiscrete([[2, 1], [1, 2]]), [[[0, 1], [1]], [[1], [1, 0]]], [0, 1, 1, 1, 1, 0]),
        (PAIR, [0, 1, 1, 0, 1], [0, 1, 1, 0, 1]),
        (PAIR, ([0, 1], [1, 0, 1]), [0, 1, 1, 0, 1]),
        (
            Dict({"b": Discrete(2), "a": Discrete(3)}),
            {"b": [0, 1], "a": [1, 1, 0]},
            [1, 1, 0, 0, 1],
        ),
        (DEEP, DEEP_MASK, DEEP_MASK),
        (DEEP, {"z": [0, 1], "b": [[1, 1], [0, 1]], "a": (None, [[1, 0, 1], [0, 1]])}, DEEP_MASK),
        (Dict(a=BOX, z=Discrete(2)), {"z": [0, 1]}, [0, 1]),
    ],
)
def test_a_mask_is_read_flat_or_in_the_structure_of_the_action_space(space, mask, expected, dtype):
    def typed(value):
        if isinstance(value, dict):
            return {key: typed(part) for key, part in value.items()}
        if value is None or isinstance(value[0], int):
            return value if value is None else A(value, dtype)
        return type(value)(map(typed, value))

    layout = ActionLayout("X-v0", space)
    for given in (mask, typed(mask)):
        assert read_mask(given, layout).dtype == np.bool_
        assert read_mask(given, layout).tolist() == [bool(part) for part in expected]


@pytest.mark.parametrize(
    ("space", "masks"),
    [
        (PAIR, MultiBinary(5)),
        (PAIR, Tuple((MultiBinary(2), MultiBinary((1, 3))))),
        (MultiDiscrete([2, 3]), Tuple((MultiBinary(2), Box(0, 1, (3,), np.int8)))),
        (DEEP, Dict(z=MultiBinary(2), b=MultiBinary((2, 2)), a=Tuple((BOX, MultiBinary(5))))),
    ],
)
def test_a_mask_in_an_observation_has_its_arrays_in_the_order_in_which_it_is_read(space, masks):
    masks.seed(1)
    for _ in range(9):
        mask, arrays = masks.sample(), []
        for path, part in observed_masks(masks, space):
            array = {"action_mask": mask}
            for key in path:
                array = array[key]
            assert part.contains(array)
            arrays.append(array.reshape(-1))
        assert np.concatenate(arrays).tolist() == [*read_mask(mask, ActionLayout("X-v0", space))]


@pytest.mark.parametrize(
    ("space", "mask"),
    [
        (Discrete(3), [1, 0]),
        (Discrete(3), [1, 0, 2]),
        (Discrete(3), [1, 0, np.nan]),
        (Discrete(3), ["1", "0", "1"]),
        (Discrete(3), None),
        (Discrete(3), {"a": [1, 0, 1]}),
        (PAIR, ([1, 1, 1], [1, 1])),
        (PAIR, ([1, 1], [1, 1, 1], [1])),
        (PAIR, [[1, 1], None]),
        (Dict(a=Discrete(2)), {"b": [1, 1]}),
        (Dict(a=Discrete(2)), {"a": None}),
        (DEEP, {"z": [0, 1], "b": [1, 1, 0, 1], "a": 3}),
    ],
)
def test_what_is_no_mask_is_told(space, mask):
    with pytest.raises(ValueError, match=r"its action mask is .*; it must be \d+ booleans, or num"):
        read_mask(mask, ActionLayout("X-v0", space))


class Masked(gymnasium.Env):
    """A clock: at step t, of four, action t % 3 alone is legal. Says so as `place` tells."""

    place = "info"
    length = 4
    last = None  # the mask of an episode's last step; none if "none", as always if None
    is_truncated = False
    masks: dict[int, object] = {}  # noqa: RUF012  other ones, by step

    def __init__(self):
        time = Box(0, 9, (1,), np.float32)
        self.action_space = Discrete(3)
        self.observation_space = time
        if self.place == "observation":
            self.observation_space = Dict(time=time, action_mask=MultiBinary(3))
        if self.place == "method":
            self.action_masks = self._mask

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._told()

    def step(self, action):
        assert action == self.time % 3, "an illegal action"
        self.time += 1
        is_last = self.time == self.length
        observation, info = self._told()
        ends = (is_last and not self.is_truncated, is_last and self.is_truncated)
        return observation, 1.0, *ends, info

    def _mask(self):
        if self.time == self.length and self.last is not None:
            return self.last
        return self.masks.get(self.time, np.arange(3) == self.time % 3)

    def _told(self):
        mask = self._mask()
        time = np.full(1, self.time, np.float32)
        if self.place == "observation":
            return {"time": time, "action_mask": mask}, {}
        has_none = self.place in ("method", "none") or isinstance(mask, str)
        return time, {} if has_none else {"action_mask": mask}


gymnasium.register("Masked-v0", Masked, order_enforce=False)


def rows(num_steps=9, env_id="Masked-v0", **settings):
    """The masks and the results of two copies played by what the masks allow."""
    env = envs.make_vec_env(env_id, 2, seed=0, options=envs.EnvOptions(**settings))
    obs, rng = env.reset(), np.random.default_rng(0)
    masks = [obs["action_mask"].copy()]
    for _ in range(num_steps):
        env.send(envs.random_actions(env.actions, obs, rng))
        obs = env.recv().obs
        masks.append(obs["action_mask"].copy())
    return env, masks


@pytest.mark.parametrize("place", ["info", "observation", "method"])
@pytest.mark.parametrize("is_truncated", [False, True])
def test_a_mask_is_found_wherever_it_is(place, is_truncated, monkeypatch):
    monkeypatch.setattr(Masked, "place", place)
    monkeypatch.setattr(Masked, "is_truncated", is_truncated)
    spec = envs.describe("Masked-v0")
    env, masks = rows()
    assert has_mask(spec)
    assert spec.leaves == env.leaves
    assert env.leaves[-1] == envs.Leaf("action_mask", "mask", (3,), "bool")
    assert len(env.leaves) == 2
    assert envs.make_vec_env("Masked-v0", 1, seed=0).leaves == spec.leaves  # before a reset
    for step, mask in enumerate(masks):
        assert mask.tolist() == [(np.arange(3) == (step % 5) % 3).tolist()] * 2


@pytest.mark.parametrize("place", ["info", "observation", "method"])
@pytest.mark.parametrize("is_truncated", [False, True])
@pytest.mark.parametrize("last", [np.zeros(3, np.int8), "none"])
def test_where_an_episode_ends_nothing_need_be_legal(place, is_truncated, last, monkeypatch):
    if place != "info" and isinstance(last, str):
        last = np.zeros(3, np.int8)
    monkeypatch.setattr(Masked, "place", place)
    monkeypatch.setattr(Masked, "is_truncated", is_truncated)
    monkeypatch.setattr(Masked, "last", last)
    _, masks = rows()
    assert masks[4].all()
    assert [mask[0].sum() for mask in masks] == [1, 1, 1, 1, 3, 1, 1, 1, 1, 3]


@pytest.mark.parametrize("place", ["info", "observation", "method"])
@pytest.mark.parametrize(
    ("step", "mask", "text"),
    [
        (2, [0, 0, 0], "allows none of the 3 values of choice 0, and must allow one; its observ"),
        (0, [0, 0, 0], "allows none of the 3 values of choice 0, and must allow one; its observ"),
        (2, [1, 1], r"is \[1, 1\]; it must be 3 booleans"),
        (2, None, "is None; it must be 3 booleans"),
    ],
)
def test_a_wrong_mask_is_told_by_copy_and_step(place, step, mask, text, monkeypatch):
    monkeypatch.setattr(Masked, "place", place)
    monkeypatch.setattr(Masked, "masks", {step: mask})
    with pytest.raises(
        envs.EnvError, match=f"^Masked-v0, env 0, step {step}: its action mask {text}"
    ):
        rows()


class Longer(Masked):
    length = 5


def two_lengths(num_envs, mode):
    return SyncVectorEnv([Masked, Longer][:num_envs], autoreset_mode=mode)


for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED):
    gymnasium.register(f"Masked{mode.name}-v0", vector_entry_point=partial(two_lengths, mode=mode))


@pytest.mark.parametrize("place", ["info", "observation"])
@pytest.mark.parametrize("mode", ["NEXT_STEP", "DISABLED"])
def test_a_vector_is_given_legal_actions_alone(mode, place, monkeypatch):
    """Also in the step that an environment of a DISABLED one plays unseen."""
    monkeypatch.setattr(Masked, "place", place)
    _, masks = rows(40, env_id=f"Masked{mode}-v0")
    for copy, length in enumerate((4, 5)):
        for step, mask in enumerate(masks):
            time = step % (length + 1)
            assert mask[copy].tolist() == (np.arange(3) == time % 3).tolist()


class Late(Masked):
    """Gives no mask in its first `late` infos. Its episodes are rows 0-4, 5-9, ..."""

    late = 1
    num_infos = 0

    def step(self, action):
        return super().step(self.time % 3)

    def _told(self):
        self.num_infos += 1
        observation, info = super()._told()
        return observation, info if self.num_infos > self.late else {}


def late_vector(num_envs, mode):
    return SyncVectorEnv([Late] * num_envs, autoreset_mode=mode)


gymnasium.register("Late-v0", Late, order_enforce=False)
for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED):
    gymnasium.register(f"Late{mode.name}-v0", vector_entry_point=partial(late_vector, mode=mode))


@pytest.mark.parametrize("late", [1, 3, 4, 5])
@pytest.mark.parametrize(
    ("env_id", "threads"),
    [("Late-v0", 1), ("Late-v0", 2), ("LateNEXT_STEP-v0", 1), ("LateDISABLED-v0", 1)],
)
def test_a_mask_that_the_first_reset_lacks_is_told(env_id, threads, late, monkeypatch):
    """Else it would be ignored, and what it forbids be done."""
    monkeypatch.setattr(Late, "late", late)
    env = envs.make_vec_env(env_id, 1, seed=0, options=envs.EnvOptions(threads=threads))
    assert "action_mask" not in env.reset()
    for _ in range(late - 1):
        env.send(np.zeros(1, np.int64))
        env.recv()
    env.send(np.zeros(1, np.int64))
    with pytest.raises(
        envs.EnvError,
        match=rf"^{env_id}, env 0, step {late}: .* the first reset's had none; give a mask with",
    ):
        env.recv()


def test_a_mask_alone_is_no_observation():
    class Blind(gymnasium.Env):
        observation_space = Dict(action_mask=MultiBinary(3))
        action_space = Discrete(3)

    gymnasium.registry.pop("MaskAlone-v0", None)
    gymnasium.register("MaskAlone-v0", Blind)
    with pytest.raises(envs.UnsupportedEnvError, match="'action_mask' alone"):
        envs.describe("MaskAlone-v0")


def test_an_environment_that_cannot_be_reset_is_described_all_the_same(monkeypatch):
    def raising(self, **_):
        raise KeyError("level")

    monkeypatch.setattr(Masked, "reset", raising)
    assert not has_mask(envs.describe("Masked-v0"))
    with pytest.raises(KeyError, match="level"):
        envs.make_vec_env("Masked-v0", 1, seed=0).reset()


class OfNumbers(Masked):
    """Has a mask all the same."""

    def __init__(self):
        super().__init__()
        self.action_space = Dict(a=BOX, b=Box(0, 9, (), np.int32))

    def step(self, action):
        return super().step(self.time % 3)


def of_numbers(num_envs, place="info"):
    class Vector(SyncVectorEnv):
        if place == "method":
            action_masks = Masked._mask

    return Vector([OfNumbers] * num_envs)


gymnasium.register("OfNumbers-v0", OfNumbers, order_enforce=False)
gymnasium.register("OfNumbersVector-v0", vector_entry_point=of_numbers)


@pytest.mark.parametrize(
    ("env_id", "place", "text"),
    [
        ("OfNumbers-v0", "observation", "the key 'action_mask' in its observation_space"),
        ("OfNumbers-v0", "method", r"a method action_masks\(\)"),
        ("OfNumbers-v0", "info", "'action_mask' in its info"),
        ("OfNumbersVector-v0", "observation", "the key 'action_mask' in its observation_space"),
        ("OfNumbersVector-v0", "info", "'action_mask' in its info"),
    ],
)
def test_a_mask_of_numbers_is_refused(env_id, place, text, monkeypatch):
    """Else what it forbids would be done."""
    monkeypatch.setattr(Masked, "place", place)
    with pytest.raises(
        envs.UnsupportedEnvError,
        match=f"^{env_id} has {text}, and its actions are 3 numbers of a Box; .*leave it out",
    ):
        envs.describe(env_id)
    with pytest.raises(envs.UnsupportedEnvError, match=text):
        envs.make_vec_env(env_id, 2, seed=0).reset()


def test_a_late_mask_of_numbers_is_refused(monkeypatch):
    monkeypatch.setattr(Masked, "masks", {0: "none"})
    env = envs.make_vec_env("OfNumbers-v0", 2, seed=0)
    env.reset()
    env.send(np.zeros((2, 3), np.float32))
    with pytest.raises(envs.UnsupportedEnvError, match="'action_mask' in its info"):
        env.recv()


def test_a_method_of_a_vector_is_refused(monkeypatch):
    monkeypatch.setattr(Masked, "place", "none")
    options = envs.EnvOptions(kwargs={"place": "method"})
    with pytest.raises(envs.UnsupportedEnvError, match=r"action_masks\(\), which a vector is not"):
        envs.describe("OfNumbersVector-v0", options)


def test_numbers_without_a_mask_are_reset_as_often_as_asked(monkeypatch):
    """By whom the seed is given: what an object has played before may decide what it plays next."""
    monkeypatch.setattr(Masked, "place", "none")
    seeds = []
    reset = Masked.reset
    monkeypatch.setattr(
        Masked,
        "reset",
        lambda self, *, seed=None, options=None: seeds.append(seed) or reset(self, seed=seed),
    )
    env = envs.make_vec_env("OfNumbers-v0", 2, seed=0)
    assert len(env.leaves) == 1
    env.reset()
    assert len(seeds) == 2


def test_taxi_never_moves_into_a_wall():
    env = envs.make_vec_env("Taxi-v4", 4, seed=0)
    obs, rng, ended = env.reset(), np.random.default_rng(0), np.zeros(4, bool)
    for _ in range(300):
        before = obs["obs"].copy()
        env.send(envs.random_actions(env.actions, obs, rng))
        result = env.recv()
        obs, is_home = result.obs, result.rewards == 20
        assert ((obs["obs"] != before) | ended[:, None] | is_home[:, None]).all()
        ended = result.ended
