"""Any Gymnasium id, N copies in one thread."""

import inspect
import json
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from functools import cache
from itertools import islice
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.spaces import Space
from numpy.typing import NDArray

from sfrl.envs.forks import end_if_forked
from sfrl.envs.logs import own_logger
from sfrl.envs.masks import (
    LATE_MASK,
    MASK_METHOD,
    MaskPlace,
    check_choices,
    mask_leaf,
    mask_place,
    read_mask,
    without_choice,
)
from sfrl.envs.names import UnsupportedEnvError, in_one_line, what_it_needs, wrapper_of
from sfrl.envs.options import EnvOptions, Wrapper, parse_wrappers
from sfrl.envs.pictures import picture
from sfrl.envs.rules import PARTS, EnvError, LeafRules, NonFiniteError, Rules, not_finite
from sfrl.envs.spaces import ActionLayout, in_short, observation_parts
from sfrl.envs.vec_env import (
    ACTION_MASK,
    Actions,
    EnvSpec,
    EnvState,
    Leaf,
    Observations,
    StepResult,
    env_seeds,
)

log = own_logger(__name__)

MAX_INFO = 32  # numbers of all `info`s that are taken
_MAX_TOLD = 2 * MAX_INFO  # of one `info`: a warning names those that are not taken
INFO_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_MAX_RESETS = 20  # in a row; that every second one fails is survived

Env: TypeAlias = gymnasium.Env[Any, Any]


class GymnasiumVecEnv:
    """A `VecEnv` of any Gymnasium environment.

    `spaces.py` says which leaves an observation has, and what becomes of actions; `masks.py`, where
    an environment says which actions it allows. `rules.py` checks what it gives.

    The steps run in `recv`, one environment after the other; with `options.threads` they begin in
    `send`, that many at a time, and `recv` gathers them in order. Without threads this is
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
        options: EnvOptions,
        *,
        render: bool = False,
        stepping: NDArray[np.int64] | None = None,
    ) -> None:
        self.stepping = np.full(1, -1, np.int64) if stepping is None else stepping
        self._envs = []
        for i in range(num_envs):
            self.stepping[0] = i
            self._envs.append(make_gymnasium(env_id, options, render))
        self.stepping[0] = -1
        first = self._envs[0]
        self._layout = ActionLayout(env_id, first.action_space, options.bounds)
        self.actions = self._layout.spec
        self._mask_place: MaskPlace | None = mask_place(env_id, first, self.actions)
        parts = observation_parts(
            env_id, first.observation_space, has_mask=self._mask_place == "observation"
        )
        # The leaves but a mask, of which only a reset tells.
        self.observed = tuple(part.leaf for part in parts)
        self._rules = Rules(env_id, first.observation_space, first.action_space)
        self._leaf_rules = [LeafRules(self._rules, part) for part in parts]
        self._floats = [leaf.name for leaf in self.observed if leaf.dtype == "float32"]
        # An `info` may have a mask: whether it does shows when the first of all is there.
        self._not_begun: Sequence[Future[Any] | None] = (None,) * num_envs
        self._awaits_info = self._mask_place is None

        self.num_envs = num_envs
        self.frameskip = 1
        self._seeds = env_seeds(seed, num_envs)
        self._actions: list[Any] = []
        self._ended = [False] * num_envs  # the next step only resets
        self._on_nan = options.on_nan
        self._threads = _threads(options.threads) if options.threads > 1 else None
        self._begun: list[Future[Any]] = []  # with threads: what each environment does now
        self._num_nans = 0
        self._num_steps = 0
        self._last_obs = self._empty_obs()
        self._infos: list[dict[str, Any]] = [{}] * num_envs  # of the last steps

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """Those of the spaces, and a mask. Before the first `reset`, one is made for it."""
        if self._awaits_info and self.actions.choices:
            self._look_for_mask(_first_info(self._envs[0], self._seeds[0]))
        return self.observed if self._mask_place is None else (*self.observed, self._mask)

    @property
    def _mask(self) -> Leaf:
        return mask_leaf(self.actions)

    def _look_for_mask(self, info: object) -> None:
        self._awaits_info = False
        if isinstance(info, dict) and ACTION_MASK in info:
            check_choices(self._rules.env_id, self.actions, "info")
            self._mask_place = "info"

    def _refuse_late_mask(self, i: int) -> None:
        check_choices(self._rules.env_id, self.actions, "info")
        raise self._rules.error(LATE_MASK, i, self._num_steps)

    def reset(self) -> Observations:
        obs = self._empty_obs()
        for env, seed in zip(self._envs, self._seeds, strict=True):
            _seed_spaces(env, seed)
            if self._threads is not None:
                self._begin(env.reset, seed=seed)
        begun = self._begun or self._not_begun
        for i, (env, seed) in enumerate(zip(self._envs, self._seeds, strict=True)):
            self._reset_one(i, env, obs, seed, begun[i])
        self.stepping[0] = -1
        self._begun = []
        self._ended = [False] * self.num_envs
        self._check_masks(obs)
        self._last_obs = obs
        return obs

    def _reset_one(
        self,
        i: int,
        env: Env,
        obs: Observations,
        seed: int | None = None,
        begun: Future[Any] | None = None,  # the first try
    ) -> None:
        """Start an episode, the first one of several tries that does not begin with NaN."""
        for _ in range(_MAX_RESETS):
            self._try_reset(i, env, obs, seed, begun)
            if all(np.isfinite(obs[name][i]).all() for name in self._floats):
                return
            begun = seed = None  # with the same one it would begin in the same way
            problem = f"NaN or infinity: its first observation is {self._shown(obs, i)}"
            problem = not_finite(problem, *(obs[name][i] for name in self._floats))
            error = self._rules.error(problem, i, self._num_steps)
            self._warn_or_stop(error, "it is reset once more")
        raise self._rules.error(
            f"NaN or infinity in its first observation after {_MAX_RESETS} resets in a row",
            i,
            self._num_steps,
        )

    def _try_reset(
        self, i: int, env: Env, obs: Observations, seed: int | None, begun: Future[Any] | None
    ) -> None:
        self.stepping[0] = i
        rules, step = self._rules, self._num_steps
        try:
            result = env.reset(seed=seed) if begun is None else begun.result()
        except Exception as error:
            error.add_note(f"in the reset of {rules.env_id}, env {i}, at step {step}")
            raise
        end_if_forked()
        rules.parts("reset", result, i, step)
        observation, info = result
        rules.spaces(i, observation_space=env.observation_space, action_space=env.action_space)
        for leaf in self._leaf_rules:
            obs[leaf.name][i] = leaf.read(observation, i, step)
        if self._awaits_info:
            self._look_for_mask(info)
        if self._mask_place is not None:
            self._read_mask(i, obs, observation, info)
        elif isinstance(info, dict) and ACTION_MASK in info:
            self._refuse_late_mask(i)

    def send(self, actions: Actions) -> None:
        self._actions = self._layout.own(actions)
        if self._threads is not None:
            for i, env in enumerate(self._envs):
                if self._ended[i]:
                    self._begin(env.reset, seed=None)
                else:
                    self._begin(env.step, self._actions[i])
            self.stepping[0] = 0

    def _begin(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        assert self._threads is not None
        self._begun.append(self._threads.submit(_call, call, *args, **kwargs))

    def is_ready(self) -> bool:
        """Whether all have stepped; `stepping` is the first that has not."""
        for i, future in enumerate(self._begun):
            if not future.done():
                self.stepping[0] = i
                return False
        return True

    def recv(self) -> StepResult:
        obs = self._empty_obs()
        rewards = np.zeros(self.num_envs, np.float32)
        terminated = np.zeros(self.num_envs, np.bool_)
        truncated = np.zeros(self.num_envs, np.bool_)
        self._num_steps += 1
        rules, step, infos = self._rules, self._num_steps, self._infos
        leaves = [(obs[leaf.name], leaf.read) for leaf in self._leaf_rules]
        begun = self._begun or self._not_begun
        for i, env in enumerate(self._envs):
            if self._ended[i]:
                self._reset_one(i, env, obs, begun=begun[i])
                continue
            self.stepping[0] = i
            action = self._actions[i]
            future = begun[i]
            try:
                result = env.step(action) if future is None else future.result()
            except Exception as error:
                error.add_note(
                    f"in step {step} of {rules.env_id}, env {i}, with action {in_short(action)}"
                )
                if "unpack" in str(error):  # by a wrapper of Gymnasium's, as its time limit
                    error.add_note(f"a step must return {', '.join(PARTS['step'])}")
                raise
            end_if_forked()
            rules.parts("step", result, i, step)
            observation, reward, is_terminated, is_truncated, infos[i] = result
            try:
                rewards[i], terminated[i], truncated[i] = rules.outcome(
                    reward, is_terminated, is_truncated, i, step
                )
            except OverflowError as error:  # an int beyond all floats
                raise rules.error("its reward is too large for a float", i, step) from error
            for rows, read in leaves:
                rows[i] = read(observation, i, step)
            if self._mask_place is not None:
                is_last = bool(terminated[i] or truncated[i])
                self._read_mask(i, obs, observation, infos[i], may_lack=is_last)
            elif isinstance(infos[i], dict) and ACTION_MASK in infos[i]:
                self._refuse_late_mask(i)
        self.stepping[0] = -1
        self._begun = []
        is_finite = np.isfinite(rewards).all()
        if not (is_finite and all(np.isfinite(obs[name]).all() for name in self._floats)):
            self._cut_nans(obs, rewards, terminated, truncated)
        for leaf in self._leaf_rules:
            leaf.bounds(obs[leaf.name], step)
        has_ended = terminated | truncated
        self._check_masks(obs, has_ended)
        self._ended = has_ended.tolist()
        self._last_obs = obs
        return StepResult(obs, rewards, terminated, truncated)

    def _cut_nans(
        self,
        obs: Observations,
        rewards: NDArray[np.float32],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
    ) -> None:
        """End the episodes in which NaN or infinity came up before they did. Edits all four."""
        is_finite = np.isfinite(rewards)
        for name in self._floats:
            is_finite &= np.isfinite(obs[name]).reshape(self.num_envs, -1).all(axis=1)
        for i in np.flatnonzero(~is_finite).tolist():
            problem = f"NaN or infinity: reward {rewards[i]}, observation {self._shown(obs, i)}"
            problem = not_finite(problem, rewards[i], *(obs[name][i] for name in self._floats))
            error = self._rules.error(problem, i, self._num_steps)
            self._warn_or_stop(error, "the episode was cut off before it")
            rewards[i], terminated[i], truncated[i] = 0.0, False, True
            for name, rows in obs.items():
                rows[i] = self._last_obs[name][i]

    def _shown(self, obs: Observations, i: int) -> str:
        """The observation of copy i, in short: the first of the leaves that are not finite."""
        bad = [name for name in self._floats if not np.isfinite(obs[name][i]).all()]
        name = bad[0] if bad else self.observed[0].name
        shown = f"{obs[name][i].reshape(-1)!r:.100}"
        return shown if len(self.observed) == 1 else f"{name} {shown}"

    def _warn_or_stop(self, error: EnvError, remedy: str) -> None:
        if self._on_nan == "stop":
            raise NonFiniteError(error)
        self._num_nans += 1
        if self._num_nans & (self._num_nans - 1) == 0:  # the 1st, 2nd, 4th, 8th, ...
            log.warning("%s; %s (so far: %d)", error, remedy, self._num_nans)

    def _read_mask(
        self, i: int, obs: Observations, observation: Any, info: Any, *, may_lack: bool = False
    ) -> None:
        """Write the mask of copy i. At an episode's end, where there may be none, all is legal."""
        masks = obs.get(ACTION_MASK)
        if masks is None:
            masks = obs[ACTION_MASK] = np.ones((self.num_envs, *self._mask.shape), np.bool_)
        if self._mask_place == "method":
            value = self._envs[i].get_wrapper_attr(MASK_METHOD)()
        else:
            source = observation if self._mask_place == "observation" else info
            value = source.get(ACTION_MASK) if isinstance(source, dict) else None
        if value is None and may_lack:
            masks[i] = True
            return
        try:
            masks[i] = read_mask(value, self._layout)
        except ValueError as error:
            raise self._rules.error(str(error), i, self._num_steps) from error

    def _check_masks(self, obs: Observations, has_ended: NDArray[np.bool_] | None = None) -> None:
        """Raises EnvError if a choice has no legal action. At an episode's end, all get legal."""
        if self._mask_place is None:
            return
        masks: NDArray[np.bool_] = obs[ACTION_MASK]
        for i, choice in np.argwhere(without_choice(masks, self.actions)).tolist():
            if has_ended is None or not has_ended[i]:
                whole = {leaf.name: obs[leaf.name][i] for leaf in self.observed}
                raise self._rules.error(
                    f"its action mask allows none of the {self.actions.choices[choice]} values of "
                    f"choice {choice}, and must allow one; its observation is {in_short(whole)}",
                    i,
                    self._num_steps,
                )
            end = sum(self.actions.choices[: choice + 1])
            masks[i, end - self.actions.choices[choice] : end] = True

    def episode_info(self, env: int) -> dict[str, float]:
        return numbers_in(self._infos[env])

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
        for future in self._begun:
            future.cancel()
        wait(self._begun)
        for env in self._envs:
            env.close()

    def _empty_obs(self) -> Observations:
        leaves = self.observed if self._mask_place is None else (*self.observed, self._mask)
        return {leaf.name: np.empty((self.num_envs, *leaf.shape), leaf.dtype) for leaf in leaves}


def describe_gymnasium(env_id: str, options: EnvOptions) -> EnvSpec:
    """The spec of a Gymnasium id; makes one environment to see its spaces.

    It is reset if it tells of no mask otherwise, since its `info` may.

    Raises:
        ValueError: a space is not supported, its `info` has a mask that is none, or there is a mask
            and nothing to forbid.
    """
    env = make_gymnasium(env_id, options, render=False)
    layout = ActionLayout(env_id, env.action_space)
    place: MaskPlace | None = mask_place(env_id, env, layout.spec)
    parts = observation_parts(env_id, env.observation_space, has_mask=place == "observation")
    statistics = tuple(type(layer).__name__ for layer in layers(env) if has_statistics(layer))
    leaves = tuple(part.leaf for part in parts)
    if place is None:
        info = _first_info(env)
        if isinstance(info, dict) and ACTION_MASK in info:
            place = "info"
            check_choices(env_id, layout.spec, place)
            try:
                read_mask(info[ACTION_MASK], layout)
            except ValueError as error:
                raise UnsupportedEnvError(f"{env_id}: {error}") from error
    if place is not None:
        leaves = (*leaves, mask_leaf(layout.spec))
    env.close()
    return EnvSpec(
        "image" if any(leaf.kind == "image" for leaf in leaves) else "vector",
        leaves,
        layout.spec,
        frameskip=1,
        statistics=statistics,
        reading=". ".join(part.reading for part in parts if part.reading),
    )


def _first_info(env: Env, seed: int = 0) -> object:
    """What its first reset says, None if it fails: the run will tell of that, where it counts."""
    _seed_spaces(env, seed)
    try:
        _, info = env.reset(seed=seed)
    except Exception:  # an environment may raise anything
        info = None
    end_if_forked()
    return info


def gymnasium_fps(env_id: str, options: EnvOptions) -> float | None:
    """As its metadata says."""
    with closing(make_gymnasium(env_id, options, render=False)) as env:
        fps = env.metadata.get("render_fps")
    return float(fps) if fps else None


def make_gymnasium(env_id: str, options: EnvOptions, render: bool = False) -> Env:
    """The environment itself, in its wrappers. Raises ValueError."""
    env = _bare(env_id, options.kwargs)
    modes = ("rgb_array", "rgb_array_list")
    if render and env.render_mode not in modes:
        env.close()
        # Asked first: an environment that can't be shown may take no render_mode at all.
        render_modes = env.metadata.get("render_modes") or []
        mode = next((mode for mode in modes if mode in render_modes), None)
        if mode is None:
            raise ValueError(f"{env_id} can't be shown: its {render_modes=} lack 'rgb_array'")
        env = _bare(env_id, {**options.kwargs, "render_mode": mode})
    for wrapper in parse_wrappers(options.wrappers):
        env = _wrapped(env_id, env, wrapper)
    return env


def _bare(env_id: str, kwargs: dict[str, Any]) -> Env:
    try:
        env: Env = gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        if (text := what_it_needs(env_id, error)) is None:
            raise
        raise UnsupportedEnvError(text) from error
    except TypeError as error:
        if not kwargs:
            raise
        takes = arguments_of(gymnasium.registry[env_id].entry_point)
        raise misfit(env_id, kwargs, error.__context__ or error, takes) from error
    return env


def misfit(
    name: str, kwargs: dict[str, Any], error: BaseException, takes: Sequence[str]
) -> Exception:
    """What is raised if an environment cannot be made with these arguments of the user's."""
    return UnsupportedEnvError(
        f"{name} cannot be made with env_kwargs={json.dumps(kwargs)}: {in_one_line(error)}"
        f"{_told(takes)}"
    )


def _told(takes: Sequence[str]) -> str:
    return f"; it takes {', '.join(takes)}" if takes else ""


def arguments_of(made_by: Any) -> list[str]:
    """What it takes, if that can be told."""
    if isinstance(made_by, str):
        made_by = load_env_creator(made_by)
    try:
        return list(inspect.signature(made_by).parameters)
    except (TypeError, ValueError):  # of what is written in C
        return []


def _wrapped(env_id: str, env: Env, wrapper: Wrapper) -> Env:
    made_by = wrapper_of(wrapper.name)
    where = f"{env_id}: the wrapper {wrapper.name}"
    try:
        outer: object = made_by(env, **wrapper.kwargs)
    except Exception as error:  # it may raise anything
        takes = arguments_of(made_by)[1:] if isinstance(error, TypeError) else []
        raise UnsupportedEnvError(f"{where} failed: {in_one_line(error)}{_told(takes)}") from error
    if not isinstance(outer, gymnasium.Env):
        raise UnsupportedEnvError(
            f"{where} gives {in_short(outer)}, and must give an environment (gymnasium.Env)"
        )
    return outer


@cache
def _threads(num_threads: int) -> ThreadPoolExecutor:
    """This process's, which all its environments share; those that are idle cost nothing."""
    return ThreadPoolExecutor(num_threads, "sfrl env")


def _call(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """In a thread. A fork has no other one: it must not wait here for more to do."""
    try:
        return call(*args, **kwargs)
    except BaseException as error:
        end_if_forked(error)
        raise
    finally:
        end_if_forked()


def layers(env: object) -> Iterator[object]:
    """An environment's wrappers, from the outermost on, and what they wrap."""
    while isinstance(env, gymnasium.Env | gymnasium.vector.VectorEnv):
        yield env
        env = getattr(env, "env", None)


def has_statistics(layer: object) -> bool:
    """Whether it normalizes by what it has seen, as Gymnasium's wrappers and their copies do."""
    has_some = any(type(value).__name__ == "RunningMeanStd" for value in vars(layer).values())
    return has_some and bool(getattr(layer, "update_running_mean", True))  # no fixed ones


def _seed_spaces(env: Env, seed: int) -> None:
    """Those of every wrapper too: an environment may draw from its own, which it alone sees.

    The seeds differ from `seed`, with which `reset` makes `np_random`: it would draw the same.
    """
    seeds = dict(zip(("action_space", "observation_space"), env_seeds(seed, 2), strict=True))
    for layer in layers(env):
        for name, space_seed in seeds.items():
            space = getattr(layer, name, None)
            if isinstance(space, Space):
                space.seed(space_seed)


def numbers_in(info: object) -> dict[str, float]:
    """Those in an `info` that have plain names, `_MAX_TOLD` at most; the rest may be anything."""
    numbers: dict[str, float] = {}
    if not isinstance(info, dict):
        return numbers
    for name, value in islice(info.items(), 4 * _MAX_TOLD):
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
        if len(numbers) == _MAX_TOLD:
            break
    return numbers
