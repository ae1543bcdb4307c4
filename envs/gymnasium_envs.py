"""Any Gymnasium id with Box observations and Discrete actions, N copies in one thread."""

import re
import textwrap
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Space, Text, Tuple, flatdim
from numpy.typing import NDArray

from sfrl.envs.forks import end_if_forked
from sfrl.envs.logs import own_logger
from sfrl.envs.names import UnsupportedEnvError, what_it_needs
from sfrl.envs.pictures import picture
from sfrl.envs.rules import EnvError, NonFiniteError, Rules
from sfrl.envs.vec_env import (
    EnvKind,
    EnvSpec,
    EnvState,
    ObsArray,
    OnNan,
    StepResult,
    env_seeds,
    obs_scale,
)

log = own_logger(__name__)

MAX_INFO = 32  # numbers of an `info` that are taken
INFO_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_PICTURE_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA or a stack of four
_MIN_PICTURE = 8  # pixels of a side; below it an array of floats is no picture
_MAX_RESETS = 20  # in a row; that every second one fails is survived

Env: TypeAlias = gymnasium.Env[NDArray[np.generic], int]


class GymnasiumVecEnv:
    """A `VecEnv` of any Gymnasium environment.

    Observations become what the networks expect:

    - A uint8 or bool array of shape [H, W], [H, W, C] or [C, H, W] is an image, and becomes
      [C, H, W] of uint8. `_channel_axis` tells which axis is C.
    - So is one of three axes of other numbers, if its space has one pair of bounds and it looks
      like a picture: it becomes [C, H, W] of float32.
    - A Box of another kind is flattened to a float32 vector [D].

    What is no plain case is told in `EnvSpec.reading`.

    Networks divide images, and all that has two axes or more or is uint8, by the largest number
    that its space allows (`obs_scale`). Vectors of other types stay as they are.

    The steps run in `recv`, one environment after the other. This is
    gymnasium.vector.SyncVectorEnv with AutoresetMode.NEXT_STEP at half the overhead (18 us
    against 38 us a step for 16 environments that do nothing), because it gathers no infos
    and converts while it copies.

    A step with NaN or infinity in its observation or reward ends the episode before it: the
    observation is that of the step before, the reward 0, and the episode counts as truncated.
    After a reset with NaN or infinity the environment is reset once more.

    Raises:
        ValueError: a space is not supported, or `render` with an environment that can't.
        EnvError: later, in `reset` or `recv`: an environment broke the rules (rules.py).
        NonFiniteError: with on_nan="stop": it gave NaN or infinity.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        seed: int,
        *,
        on_nan: OnNan = "skip",
        render: bool = False,
        stepping: NDArray[np.int64] | None = None,
    ) -> None:
        self.stepping = np.full(1, -1, np.int64) if stepping is None else stepping
        self._envs = []
        for i in range(num_envs):
            self.stepping[0] = i
            self._envs.append(_make(env_id, render))
        self.stepping[0] = -1
        own_space = self._envs[0].observation_space
        space, self._to_agent = _observation_layout(env_id, own_space)
        assert isinstance(own_space, Box)
        actions = _discrete(env_id, self._envs[0].action_space)
        self._rules = Rules(env_id, own_space, int(actions.n))

        self.num_envs = num_envs
        self.observation_space: Box = space
        self.action_space = Discrete(actions.n)
        self.frameskip = 1
        self._num_actions = int(actions.n)
        # As the space samples them: np.int64, mostly, on which Gymnasium's users call `item`.
        self._own_actions = list(np.arange(actions.n, dtype=actions.dtype) + actions.start)
        self._seeds = env_seeds(seed, num_envs)
        self._actions = [0] * num_envs
        self._ended = [False] * num_envs  # the next step only resets
        self._on_nan = on_nan
        self._num_nans = 0
        self._num_steps = 0
        self._last_obs = self._empty_obs()
        self._infos: list[dict[str, Any]] = [{}] * num_envs  # of the last steps

    def reset(self) -> ObsArray:
        obs = self._empty_obs()
        for i, (env, seed) in enumerate(zip(self._envs, self._seeds, strict=True)):
            _seed_spaces(env, seed)
            self._reset_one(i, env, obs, seed)
        self.stepping[0] = -1
        self._ended = [False] * self.num_envs
        self._last_obs = obs
        return obs

    def _reset_one(self, i: int, env: Env, obs: ObsArray, seed: int | None = None) -> None:
        """Start an episode, the first one of several tries that does not begin with NaN."""
        for _ in range(_MAX_RESETS):
            self._try_reset(i, env, obs, seed)
            if np.isfinite(obs[i]).all():
                return
            seed = None  # with the same one it would begin in the same way
            problem = f"NaN or infinity: its first observation is {obs[i].reshape(-1)!r:.100}"
            error = self._rules.error(problem, i, self._num_steps)
            self._warn_or_stop(error, "it is reset once more")
        raise self._rules.error(
            f"NaN or infinity in its first observation after {_MAX_RESETS} resets in a row",
            i,
            self._num_steps,
        )

    def _try_reset(self, i: int, env: Env, obs: ObsArray, seed: int | None) -> None:
        self.stepping[0] = i
        rules, step = self._rules, self._num_steps
        try:
            observation, _ = env.reset(seed=seed)
        except Exception as error:
            error.add_note(f"in the reset of {rules.env_id}, env {i}, at step {step}")
            raise
        end_if_forked()
        rules.spaces(env.observation_space, _discrete(rules.env_id, env.action_space), i)
        obs[i] = self._to_agent(rules.observation(observation, i, step))

    def send(self, actions: NDArray[np.int64]) -> None:
        self._actions = actions.tolist()
        if min(self._actions) < 0 or max(self._actions) >= self._num_actions:
            raise ValueError(f"actions {self._actions} must lie in 0..{self._num_actions - 1}")

    def recv(self) -> StepResult:
        obs = self._empty_obs()
        rewards = np.zeros(self.num_envs, np.float32)
        terminated = np.zeros(self.num_envs, np.bool_)
        truncated = np.zeros(self.num_envs, np.bool_)
        self._num_steps += 1
        rules, step, infos = self._rules, self._num_steps, self._infos
        for i, env in enumerate(self._envs):
            if self._ended[i]:
                self._reset_one(i, env, obs)
                continue
            self.stepping[0] = i
            action = self._own_actions[self._actions[i]]
            try:
                observation, reward, is_terminated, is_truncated, infos[i] = env.step(action)
            except Exception as error:
                error.add_note(f"in step {step} of {rules.env_id}, env {i}, with action {action}")
                raise
            end_if_forked()
            try:
                rewards[i], terminated[i], truncated[i] = rules.outcome(
                    reward, is_terminated, is_truncated, i, step
                )
            except OverflowError as error:  # an int beyond all floats
                raise rules.error("its reward is too large for a float", i, step) from error
            obs[i] = self._to_agent(rules.observation(observation, i, step))
        self.stepping[0] = -1
        is_image = obs.dtype == np.uint8
        if not (np.isfinite(rewards).all() and (is_image or np.isfinite(obs).all())):
            self._cut_nans(obs, rewards, terminated, truncated)
        rules.bounds(obs, step)
        self._ended = (terminated | truncated).tolist()
        self._last_obs = obs
        return StepResult(obs, rewards, terminated, truncated)

    def _cut_nans(
        self,
        obs: ObsArray,
        rewards: NDArray[np.float32],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
    ) -> None:
        """End the episodes in which NaN or infinity came up before they did. Edits all four."""
        is_finite = np.isfinite(rewards) & np.isfinite(obs).reshape(self.num_envs, -1).all(axis=1)
        for i in np.flatnonzero(~is_finite).tolist():
            problem = (
                f"NaN or infinity: reward {rewards[i]}, observation {obs[i].reshape(-1)!r:.100}"
            )
            error = self._rules.error(problem, i, self._num_steps)
            self._warn_or_stop(error, "the episode was cut off before it")
            obs[i], rewards[i] = self._last_obs[i], 0.0
            terminated[i], truncated[i] = False, True

    def _warn_or_stop(self, error: EnvError, remedy: str) -> None:
        if self._on_nan == "stop":
            raise NonFiniteError(error)
        self._num_nans += 1
        if self._num_nans & (self._num_nans - 1) == 0:  # the 1st, 2nd, 4th, 8th, ...
            log.warning("%s; %s (so far: %d)", error, remedy, self._num_nans)

    def episode_info(self, env: int) -> dict[str, float]:
        return _numbers(self._infos[env])

    def state(self) -> None:
        """Gymnasium's environments tell nothing of their state."""

    def load_state(self, state: EnvState) -> None:
        raise NotImplementedError("Gymnasium's environments take no state")

    def render(self) -> NDArray[np.uint8]:
        rendered: object = self._envs[0].render()
        try:
            return picture(rendered)
        except ValueError as error:
            raise self._rules.error(str(error), 0, self._num_steps) from error

    def close(self) -> None:
        for env in self._envs:
            env.close()

    def _empty_obs(self) -> ObsArray:
        shape = (self.num_envs, *self.observation_space.shape)
        return np.empty(shape, self.observation_space.dtype)


def describe_gymnasium(env_id: str) -> EnvSpec:
    """The spec of a Gymnasium id; makes one environment to see its spaces.

    Raises:
        ValueError: a space is not supported.
    """
    env = _make(env_id, render=False)
    own_space = env.observation_space
    space, _ = _observation_layout(env_id, own_space)
    assert isinstance(own_space, Box)
    reading = _reading(env_id, own_space, space)
    num_actions = int(_discrete(env_id, env.action_space).n)
    statistics = tuple(type(layer).__name__ for layer in _layers(env) if _has_statistics(layer))
    env.close()
    kind: EnvKind = "image" if len(space.shape) == 3 else "vector"
    dtype, scale = str(space.dtype), obs_scale(space)
    return EnvSpec(kind, space.shape, dtype, num_actions, 1, scale, statistics, reading)


def _make(env_id: str, render: bool) -> Env:
    try:
        env: Env = gymnasium.make(env_id, disable_env_checker=True)
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        if (text := what_it_needs(env_id, error)) is None:
            raise
        raise UnsupportedEnvError(text) from error
    if not render:
        return env
    env.close()
    # Asked first: an environment that can't be shown may take no render_mode at all.
    render_modes = env.metadata.get("render_modes") or []
    for mode in ("rgb_array", "rgb_array_list"):
        if mode in render_modes:
            return gymnasium.make(env_id, disable_env_checker=True, render_mode=mode)
    raise ValueError(f"{env_id} can't be shown: its {render_modes=} lack 'rgb_array'")


def _layers(env: object) -> Iterator[object]:
    """An environment's wrappers, from the outermost on, and what they wrap."""
    while isinstance(env, gymnasium.Env | gymnasium.vector.VectorEnv):
        yield env
        env = getattr(env, "env", None)


def _has_statistics(layer: object) -> bool:
    """Whether it normalizes by what it has seen, as Gymnasium's wrappers and their copies do."""
    has_some = any(type(value).__name__ == "RunningMeanStd" for value in vars(layer).values())
    return has_some and bool(getattr(layer, "update_running_mean", True))  # no fixed ones


def _seed_spaces(env: Env, seed: int) -> None:
    """Those of every wrapper too: an environment may draw from its own, which it alone sees.

    The seeds differ from `seed`, with which `reset` makes `np_random`: it would draw the same.
    """
    seeds = dict(zip(("action_space", "observation_space"), env_seeds(seed, 2), strict=True))
    for layer in _layers(env):
        for name, space_seed in seeds.items():
            space = getattr(layer, name, None)
            if isinstance(space, Space):
                space.seed(space_seed)


def _observation_layout(
    env_id: str, space: Space[NDArray[np.generic]]
) -> tuple[Box, Callable[[NDArray[np.generic]], NDArray[np.generic]]]:
    """The observation space as the agent sees it, and the view that turns an observation so."""
    if not isinstance(space, Box) or 0 in space.shape:
        raise UnsupportedEnvError(
            f"{env_id} has observation space {_in_short(space)}; supported is Box (an array), not "
            f"empty. {_advice(space)}".rstrip()
        )
    shape, is_pixels = space.shape, space.dtype in (np.uint8, np.bool_)
    if is_pixels and len(shape) > 3:
        raise UnsupportedEnvError(
            f"{env_id} has images of shape {shape}; supported are [H, W], [H, W, C] and "
            "[C, H, W]. To stack images, make them grey first"
        )
    low, high = float(space.low.min()), float(space.high.max())
    is_uniform = bool((space.low == low).all() and (space.high == high).all())
    is_image = (is_pixels and len(shape) > 1) or (
        is_uniform and np.isfinite((low, high)).all() and _is_picture(env_id, space)
    )
    if not is_image:
        if not is_pixels and (len(shape) < 2 or not is_uniform):
            low, high = -np.inf, np.inf  # bounds of single numbers say little of their usual size
        size = int(np.prod(shape))
        return Box(low, high, (size,), np.float32), lambda obs: np.asarray(obs).reshape(size)
    dtype = np.uint8 if is_pixels else np.float32
    if len(shape) == 2:
        return Box(low, high, (1, *shape), dtype), lambda obs: obs[np.newaxis]
    if _channel_axis(env_id, space) == 0:
        return Box(low, high, shape, dtype), lambda obs: obs
    return Box(low, high, (shape[2], *shape[:2]), dtype), lambda obs: obs.transpose(2, 0, 1)


def _told_axis(env_id: str, space: Box) -> int | None:
    """What `channel_axis` says, 0 or 2; None if it says nothing. Raises UnsupportedEnvError."""
    told: object = getattr(space, "channel_axis", None)
    if told is None:
        return None
    if not isinstance(told, int | np.integer) or told not in (0, 2, -1):
        raise UnsupportedEnvError(
            f"{env_id}: observation_space.channel_axis={told!r:.60} must be 0 or 2, the axis of "
            f"an image's channels; set it to one of them, or leave it out"
        )
    return int(told) % 3


def _channel_axis(env_id: str, space: Box) -> int:
    """Of an image with three axes: 0 or 2, as its `channel_axis` says, or else as its shape does.

    The axis that is unlike two others of one size; if there is none, the smaller one.
    """
    first, middle, last = space.shape
    if (told := _told_axis(env_id, space)) is not None:
        return told
    if first == middle:
        return 2
    return 0 if middle == last or first < last else 2


def _is_picture(env_id: str, space: Box) -> bool:
    if len(space.shape) != 3:
        return False
    axis = _channel_axis(env_id, space)
    sides = space.shape[1:] if axis == 0 else space.shape[:2]
    is_told = _told_axis(env_id, space) is not None
    return is_told or (space.shape[axis] in _PICTURE_CHANNELS and min(sides) >= _MIN_PICTURE)


def _reading(env_id: str, own: Box, space: Box) -> str:
    """What was assumed of observations, and how to have them read otherwise; "" if it is plain."""
    what = f"{env_id}: observations {own.shape} of {own.dtype}"
    if len(own.shape) < 2:
        return ""
    if len(space.shape) != 3:
        axes = len(own.shape)
        remedy = "; as an image they need three axes, [H, W, C] or [C, H, W]"
        if axes == 3:
            remedy = (
                "; if they are images, give their space one pair of finite bounds, such as 0 and "
                "1, and set observation_space.channel_axis to 0 or 2, the axis of the channels"
            )
        return f"{what} are flattened to a vector of {space.shape[0]} numbers{remedy}"
    if len(own.shape) == 2 or _told_axis(env_id, own) is not None:
        return ""
    channels, height, width = space.shape
    if channels in _PICTURE_CHANNELS and channels < min(height, width):
        return ""
    axis = _channel_axis(env_id, own)
    return (
        f"{what} are read as {channels} channels of {height}x{width} pixels, since the "
        f"{'first' if axis == 0 else 'last'} axis looks like that of the channels; if it is the "
        f"other one, set observation_space.channel_axis = {2 - axis}, or = {axis} to say that this "
        f"is right"
    )


def _in_short(space: Space[Any]) -> str:
    """In one line; of a Dict or Tuple the parts' names, kinds and shapes."""
    if not isinstance(space, Dict | Tuple):
        return textwrap.shorten(str(space), 200, placeholder=" ...")  # a Box may show all bounds
    texts = [
        f"{key!r}: {type(part).__name__}{f' {part.shape} {part.dtype}' if part.shape else ''}"
        for key, part in _parts(space).items()
    ]
    return f"{type(space).__name__}({', '.join(texts)})"[:1000]


def _parts(space: Space[Any]) -> dict[Any, Space[Any]]:
    """What is in a Dict or Tuple; nothing is in others."""
    if isinstance(space, Dict):
        return dict(space.spaces)
    return dict(enumerate(space.spaces)) if isinstance(space, Tuple) else {}


def _images(space: Space[Any], path: str = "") -> Iterator[tuple[str, Box]]:
    """Those in it, however deep, that are supported, and what leads to them."""
    if isinstance(space, Box) and 0 not in space.shape:
        is_pixels, axes = space.dtype in (np.uint8, np.bool_), len(space.shape)
        if axes in (2, 3) or (axes > 3 and not is_pixels):
            yield path, space
    for key, part in _parts(space).items():
        yield from _images(part, f"{path}[{key!r}]")


def _advice(space: Space[Any]) -> str:
    """How to make a Box of it, with the line to write."""
    how = "Register a function that returns the environment in a wrapper: "
    if images := dict(_images(space)):
        path = max(images, key=lambda path: int(np.prod(images[path].shape)))
        return (
            f"{how}gymnasium.wrappers.TransformObservation(env, lambda obs: obs{path}, "
            f"env.observation_space{path}) shows the image alone"
        )
    flat = [key for key, part in _parts(space).items() if _is_vector(part)]
    if flat and isinstance(space, Dict):
        return (
            f"{how}gymnasium.wrappers.FlattenObservation("
            f"gymnasium.wrappers.FilterObservation(env, {flat})) makes a vector of these"
        )
    if _is_vector(space):
        return f"{how}gymnasium.wrappers.FlattenObservation(env) makes a vector of it"
    return f"{how}a gymnasium.ObservationWrapper of your own has to make an array of it"


def _is_vector(space: Space[Any]) -> bool:
    """Whether it makes a vector; the places of a text's letters in the alphabet say nothing."""
    if isinstance(space, Dict | Tuple):
        parts = _parts(space).values()
        return bool(parts) and all(map(_is_vector, parts))
    return space.is_np_flattenable and not isinstance(space, Text) and flatdim(space) > 0


def _numbers(info: object) -> dict[str, float]:
    """Those in an `info` that have plain names, `MAX_INFO` at most; the rest may be anything."""
    numbers: dict[str, float] = {}
    if not isinstance(info, dict):
        return numbers
    for name, value in islice(info.items(), 8 * MAX_INFO):
        is_number = isinstance(value, bool | int | float | np.integer | np.floating | np.bool_) or (
            isinstance(value, np.ndarray) and value.shape == () and value.dtype.kind in "biuf"
        )
        if not is_number or not isinstance(name, str) or not INFO_NAME.fullmatch(name):
            continue
        try:
            number = float(value)
        except OverflowError:  # an int beyond all floats
            continue
        if np.isfinite(number):
            numbers[name] = number
        if len(numbers) == MAX_INFO:
            break
    return numbers


def _discrete(env_id: str, space: Space[int]) -> Discrete:
    if not isinstance(space, Discrete):
        raise UnsupportedEnvError(
            f"{env_id} has action space {_in_short(space)}; supported is Discrete, into which a "
            "gymnasium.ActionWrapper of yours may turn it"
        )
    return space
