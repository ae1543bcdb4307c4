"""Environments that are vectors already: Gymnasium's, EnvPool's, and classes that are `VecEnv`s.

    "Id-v0"               an id that is registered with a `vector_entry_point` alone
    "envpool:Pong-v5"     a task of EnvPool's
    "my_module:MyVecEnv"  a class that has what `VecEnv` has

A vector steps all its environments at once, so the watchdog is told of environment 0 for all.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from numpy.typing import NDArray

from sfrl.envs.forks import end_if_forked
from sfrl.envs.gymnasium_envs import (
    arguments_of,
    has_statistics,
    layers,
    misfit,
    numbers_in,
)
from sfrl.envs.masks import (
    LATE_MASK,
    MASK_METHOD,
    check_choices,
    is_observed,
    mask_leaf,
    read_mask,
    without_choice,
)
from sfrl.envs.names import (
    UnknownEnvError,
    UnsupportedEnvError,
    gymnasium_id,
    nearest,
    vec_env_class,
)
from sfrl.envs.options import DEFAULT_OPTIONS, EnvOptions
from sfrl.envs.pictures import picture
from sfrl.envs.rules import EnvError, LeafRules, NonFiniteError, Rules, not_finite
from sfrl.envs.spaces import ActionLayout, in_short, observation_parts
from sfrl.envs.vec_env import (
    ACTION_MASK,
    VEC_ENV_METHODS,
    Actions,
    ActionSpec,
    EnvSpec,
    EnvState,
    Leaf,
    Observations,
    StepResult,
    VecEnv,
    env_seeds,
    random_actions,
)

Vector: TypeAlias = gymnasium.vector.VectorEnv[Any, Any, Any]
Infos: TypeAlias = dict[str, Any]

ENVPOOL = "envpool:"
# What EnvPool tells of every step, and is no news at an end: of Atari's lives none are left there.
_OF_THE_POOL = frozenset({"env_id", "elapsed_step", "reward", "terminated", "lives"})
# What one of a class must have once it is made.
_MEMBERS = (*VEC_ENV_METHODS, *VecEnv.__annotations__, "leaves")
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "actions": (lambda value: isinstance(value, ActionSpec), "an ActionSpec"),
    "leaves": (
        lambda value: isinstance(value, tuple) and all(isinstance(leaf, Leaf) for leaf in value),
        "a tuple of Leaf",
    ),
    "frameskip": (lambda value: isinstance(value, int) and value >= 1, "a whole number from 1 on"),
}


class Vectors(Protocol):
    """What makes the vectors that a name means."""

    own: frozenset[str]  # arguments that are sfrl's, and not the user's

    def make(
        self,
        num_envs: int,
        seed: int,
        options: EnvOptions,
        *,
        render: bool,
        stepping: NDArray[np.int64] | None,
    ) -> VecEnv: ...

    def make_own(self, options: EnvOptions) -> Vector | VecEnv:
        """A vector of one, as it is."""

    def describe(self, options: EnvOptions) -> EnvSpec: ...

    def fps(self, options: EnvOptions) -> float | None: ...


def find_vectors(name: str) -> Vectors | None:
    """What makes a vector of that name, None if its environments are made one by one.

    Imports the module that is named. Raises as `gymnasium_id` does.
    """
    if name.startswith(ENVPOOL):
        return _Pools(name.removeprefix(ENVPOOL))
    if (found := vec_env_class(name)) is not None:
        return _Classes(name, found)
    env_id = gymnasium_id(name)
    spec = gymnasium.registry[env_id]
    if spec.entry_point is None and spec.vector_entry_point is not None:
        return _Registered(env_id)
    return None


def _fitted(
    vectors: _Gymnasiums | _Classes,
    make: Callable[..., Any],
    kwargs: dict[str, Any],
    takes: Callable[[], Iterable[str]],
) -> Any:
    """What is made with arguments of the user's. Raises UnsupportedEnvError if they do not fit."""
    try:
        return make(**kwargs)
    except TypeError as error:
        if not kwargs:
            raise
        others = [name for name in takes() if name not in vectors.own]
        raise misfit(vectors.name, kwargs, error, others) from error


class _Gymnasiums:
    """Makes vectors that have Gymnasium's interface."""

    name: str
    own: frozenset[str]
    checks_bounds = True
    repeats_rewards = False  # the last one, with the first observation of the next episode
    seeds_at_reset = True  # or else when they are made

    def vector(
        self, num_envs: int, seed: int, kwargs: dict[str, Any], *, render: bool = False
    ) -> Vector:
        raise NotImplementedError

    def frameskip(self, vector: Vector) -> int:
        return 1

    def make(
        self,
        num_envs: int,
        seed: int,
        options: EnvOptions,
        *,
        render: bool,
        stepping: NDArray[np.int64] | None,
    ) -> VecEnv:
        return GymnasiumVector(self, num_envs, seed, options, render=render, stepping=stepping)

    def make_own(self, options: EnvOptions) -> Vector:
        return self.vector(1, 0, options.kwargs)

    def describe(self, options: EnvOptions) -> EnvSpec:
        with closing(GymnasiumVector(self, 1, 0, options)) as env:
            return env.spec()

    def fps(self, options: EnvOptions) -> float | None:
        vector = self.vector(1, 0, options.kwargs)
        fps = vector.metadata.get("render_fps")
        vector.close()
        return None if fps is None else float(fps)


@dataclass(frozen=True)
class _Registered(_Gymnasiums):
    """An id with a `vector_entry_point`."""

    name: str
    own = frozenset({"num_envs", "vectorization_mode", "autoreset_mode", "render_mode"})

    def vector(
        self, num_envs: int, seed: int, kwargs: dict[str, Any], *, render: bool = False
    ) -> Vector:
        make = partial(self._made, num_envs)
        vector: Vector = _fitted(self, make, kwargs, lambda: arguments_of(self._entry_point))
        more: dict[str, Any] = {}
        if self._is_same_step(vector) and self._takes("autoreset_mode"):
            more["autoreset_mode"] = AutoresetMode.NEXT_STEP
        if render:
            modes = vector.metadata.get("render_modes") or []
            if "rgb_array" not in modes or not self._takes("render_mode"):
                vector.close()
                raise ValueError(
                    f"{self.name} can't be shown: its metadata['render_modes'] lack 'rgb_array', "
                    f"or its vector_entry_point takes no render_mode"
                )
            more["render_mode"] = "rgb_array"
        if more:
            vector.close()
            vector = self._made(num_envs, **kwargs, **more)
        if self._is_same_step(vector):
            vector.close()
            raise UnsupportedEnvError(
                f"{self.name}: its metadata['autoreset_mode'] is SAME_STEP, where an environment "
                f"has begun the next episode before its last observation is seen; make it "
                f"NEXT_STEP or DISABLED, or let its vector_entry_point heed autoreset_mode"
            )
        return vector

    def _is_same_step(self, vector: Vector) -> bool:
        return _autoreset_mode(self.name, vector) is AutoresetMode.SAME_STEP

    def _made(self, num_envs: int, **kwargs: Any) -> Vector:
        vector: Vector = gymnasium.make_vec(
            self.name, num_envs, vectorization_mode="vector_entry_point", **kwargs
        )
        if vector.num_envs != num_envs:
            vector.close()
            raise UnsupportedEnvError(
                f"{self.name}: its vector has num_envs={vector.num_envs}, and {num_envs} were "
                f"asked for; its vector_entry_point must heed num_envs"
            )
        return vector

    @property
    def _entry_point(self) -> Any:
        return gymnasium.registry[self.name].vector_entry_point

    def _takes(self, parameter: str) -> bool:
        entry_point = self._entry_point
        if isinstance(entry_point, str):
            entry_point = gymnasium.envs.registration.load_env_creator(entry_point)
        parameters = inspect.signature(entry_point).parameters
        takes_any = any(other.kind is other.VAR_KEYWORD for other in parameters.values())
        return parameter in parameters or takes_any


class _Pools(_Gymnasiums):
    """A task of EnvPool's. Its thread runs while the worker's waits, and not besides it."""

    own = frozenset(
        {
            *("task_id", "env_type", "num_envs", "batch_size", "num_threads", "seed"),
            *("gym_reset_return_info", "render_mode"),
        }
    )
    checks_bounds = False  # some of its spaces say the smallest positive number for the lowest
    repeats_rewards = True  # those of dm_control
    seeds_at_reset = False

    def __init__(self, task: str) -> None:
        self.name, self._task = ENVPOOL + task, task
        try:
            self._envpool = importlib.import_module("envpool")
        except ModuleNotFoundError as error:
            raise UnknownEnvError(
                f'{self.name} needs the package {error.name}: pip install "sfrl[envpool]"'
            ) from error
        known = self._envpool.list_all_envs()
        if task not in known:
            meant = " or ".join(ENVPOOL + other for other in nearest(task, known))
            hint = f"did you mean {meant}?" if meant else "envpool.list_all_envs() tells which are"
            raise UnknownEnvError(f"{self.name}: EnvPool has no task {task!r}; {hint}")

    def vector(
        self, num_envs: int, seed: int, kwargs: dict[str, Any], *, render: bool = False
    ) -> Vector:
        make = partial(
            self._envpool.make,
            self._task,
            env_type="gymnasium",
            num_envs=num_envs,
            seed=seed,
            num_threads=1,
            **({"render_mode": "rgb_array"} if render else {}),
        )
        make_spec = self._envpool.make_spec
        pool = _fitted(self, make, kwargs, lambda: make_spec(self._task).config._fields)
        if (players := int(pool.config["max_num_players"])) > 1:
            pool.close()
            raise UnsupportedEnvError(
                f"{self.name} has {players} players, and one is supported: take another task"
            )
        return pool  # type: ignore[no-any-return]

    def frameskip(self, vector: Any) -> int:
        """Atari's; of the others, Gymnasium's own count a decision as one step."""
        is_atari = "repeat_action_probability" in vector.config
        return int(vector.config["frame_skip"]) if is_atari else 1


class GymnasiumVector:
    """A `VecEnv` of a vector with Gymnasium's interface, which steps in `recv`.

    Of the autoreset modes NEXT_STEP is ours. With DISABLED an environment that has ended is reset
    in the step after it: before it, since a vector may refuse to step it, and after it, since it
    must not have stepped. SAME_STEP cannot be: there is no row in which it waits.

    A vector's environments are not reset one by one, so NaN and infinity end the worker, whatever
    `on_nan` is: an `EnvError`, or with "stop" a `NonFiniteError`.

    Raises:
        ValueError: a space or the mode is not supported, or `render` with a vector that can't.
        EnvError: later, in `reset` or `recv`: an environment broke the rules.
    """

    def __init__(
        self,
        vectors: _Gymnasiums,
        num_envs: int,
        seed: int,
        options: EnvOptions = DEFAULT_OPTIONS,
        *,
        render: bool = False,
        stepping: NDArray[np.int64] | None = None,
    ) -> None:
        self.stepping = np.full(1, -1, np.int64) if stepping is None else stepping
        self.num_envs = num_envs
        self._seed = env_seeds(seed, 1)[0]
        self._make: Callable[[], Vector] = lambda: vectors.vector(
            num_envs, self._seed, options.kwargs, render=render
        )
        self._seeds_at_reset = vectors.seeds_at_reset
        self._repeats_rewards = vectors.repeats_rewards
        self.stepping[0] = 0
        self._vector: Vector | None = self._make()
        self.stepping[0] = -1
        self._resets = _autoreset_mode(vectors.name, self._vector) is AutoresetMode.DISABLED
        self.frameskip = vectors.frameskip(self._vector)
        space, action_space = (
            self._vector.single_observation_space,
            self._vector.single_action_space,
        )
        self._layout = ActionLayout(vectors.name, action_space, options.bounds)
        self.actions = self._layout.spec
        self._rules = Rules(vectors.name, space, action_space)
        self._space = batch_space(space, num_envs)
        if has_mask := is_observed(space):
            check_choices(vectors.name, self.actions, "observation")
        parts = observation_parts(vectors.name, space, has_mask=has_mask)
        self._leaf_rules = [LeafRules(self._rules, part) for part in parts]
        self._bounds = self._leaf_rules if vectors.checks_bounds else []
        self._reading = ". ".join(part.reading for part in parts if part.reading)
        self._on_nan = options.on_nan
        self._num_steps = 0
        self._actions: list[Any] = []
        self._ended = np.zeros(num_envs, np.bool_)  # the next step only resets
        self._is_fresh = True
        first, self._infos = self._started()
        self._mask_place = "observation" if has_mask else ""
        if not has_mask and ACTION_MASK in self._infos:
            check_choices(vectors.name, self.actions, "info")
            self._mask_place = "info"
        if not self._mask_place and hasattr(self._vector, MASK_METHOD):
            raise UnsupportedEnvError(
                f"{vectors.name} has a method {MASK_METHOD}(), which a vector is not asked for; "
                f"give masks as {ACTION_MASK!r} in a Dict observation or in infos"
            )
        own = tuple(part.leaf for part in parts)
        self.leaves = (*own, mask_leaf(self.actions)) if self._mask_place else own
        self._first = first

    def spec(self) -> EnvSpec:
        return EnvSpec(
            _kind(self.leaves),
            self.leaves,
            self.actions,
            frameskip=self.frameskip,
            statistics=tuple(
                type(layer).__name__ for layer in layers(self._vector) if has_statistics(layer)
            ),
            reading=self._reading,
        )

    def _started(self) -> tuple[Any, Infos]:
        """The first observations of the episodes that the seed gives."""
        vector = self._open()
        self.stepping[0] = 0
        with _told(f"in the reset of {self._rules.env_id}"):
            started: tuple[Any, Infos] = vector.reset(
                seed=self._seed if self._seeds_at_reset else None
            )
        end_if_forked()
        self._rules.parts("reset", started, 0, 0)
        self.stepping[0] = -1
        return started

    def _open(self) -> Vector:
        assert self._vector is not None, "it was closed"
        return self._vector

    def reset(self) -> Observations:
        if not self._is_fresh:
            if not self._seeds_at_reset:
                self.close()
                self._vector = self._make()
            self._first, self._infos = self._started()
        self._is_fresh = False
        self._ended = np.zeros(self.num_envs, np.bool_)
        obs = self._read(self._first, self._infos)
        self._check(obs, np.zeros(self.num_envs, np.float32), self._ended)
        return obs

    def send(self, actions: Actions) -> None:
        self._actions = self._layout.own(actions)

    def recv(self) -> StepResult:
        vector = self._open()
        self._num_steps += 1
        to_reset = self._ended if self._resets and self._ended.any() else None
        self.stepping[0] = 0
        with _told(f"in step {self._num_steps} of {self._rules.env_id}"):
            if to_reset is not None:
                began = vector.reset(options={"reset_mask": to_reset.copy()})
                self._make_legal(to_reset, *began)
            result = vector.step(self._batch(self._actions))
            end_if_forked()
            self._rules.parts("step", result, 0, self._num_steps)
            observations, *outcome, infos = result
            rewards = self._column("rewards", outcome[0], np.float32)
            terminated = self._column("terminations", outcome[1], np.bool_)
            truncated = self._column("truncations", outcome[2], np.bool_)
            may_lack = terminated | truncated
            if self._resets:  # then what it shows of these is of no use: they are reset below
                may_lack |= self._ended
            obs = self._read(observations, infos, may_lack)
            if to_reset is not None:
                observations, own_infos = vector.reset(options={"reset_mask": to_reset.copy()})
                first = self._read(observations, own_infos, ~to_reset)
                for name, rows in first.items():
                    obs[name][to_reset] = rows[to_reset]
                for column in (rewards, terminated, truncated):
                    column[to_reset] = 0
        self.stepping[0] = -1
        ended = terminated | truncated
        if self._ended.any():
            if self._repeats_rewards:
                rewards[self._ended & (np.asarray(infos["elapsed_step"]) == 0)] = 0
            self._check_reset(rewards, ended)
        self._check(obs, rewards, ended)
        self._ended, self._infos = ended, infos
        return StepResult(obs, rewards, terminated, truncated)

    def _batch(self, actions: Sequence[Any]) -> Any:
        """As one value of the vector's action space."""
        space = self._layout.space
        batch: Any = create_empty_array(space, self.num_envs)
        return concatenate(space, actions, batch)

    def _make_legal(self, where: NDArray[np.bool_], observations: Any, infos: Infos) -> None:
        """The actions there: those sent were drawn at the ends of episodes, where all is legal."""
        if self._mask_place:
            obs = self._read(observations, infos, ~where)
            legal = self._layout.own(random_actions(self.actions, obs, np.random.default_rng(0)))
            for i in np.flatnonzero(where).tolist():
                self._actions[i] = legal[i]

    def _column(self, name: str, values: object, dtype: type[np.generic]) -> NDArray[Any]:
        array = np.asarray(values)
        kinds = "b" if dtype is np.bool_ else "biuf"
        if array.shape != (self.num_envs,) or array.dtype.kind not in kinds:
            raise self._rules.error(
                f"its {name} are {array.dtype}{list(array.shape)}, and must be "
                f"{np.dtype(dtype)}[{self.num_envs}]",
                0,
                self._num_steps,
            )
        return array.astype(dtype)

    def _read(
        self, observations: Any, infos: Infos, may_lack: NDArray[np.bool_] | None = None
    ) -> Observations:
        """The leaves of all. `may_lack`: where there may be no mask, [N]; all is legal there."""
        step, leaves = self._num_steps, self._leaf_rules
        if not self._mask_place and ACTION_MASK in infos:
            self._refuse_late_mask(infos)
        if len(leaves) == 1 and leaves[0].is_plain and not self._mask_place:
            return {leaves[0].name: leaves[0].read_all(observations, self.num_envs, step)}
        obs = {
            leaf.name: np.empty((self.num_envs, *leaf.shape), leaf.dtype) for leaf in self.leaves
        }
        rows = list(iterate(self._space, observations))
        if len(rows) != self.num_envs:
            problem = f"it gave {len(rows)} observations for {self.num_envs} environments"
            raise self._rules.error(problem, 0, step)
        for i, observation in enumerate(rows):
            for leaf in leaves:
                obs[leaf.name][i] = leaf.read(observation, i, step)
            if not self._mask_place:
                continue
            is_within = self._mask_place == "observation"
            mask = observation[ACTION_MASK] if is_within else _info_of(infos, i).get(ACTION_MASK)
            if mask is None and may_lack is not None and may_lack[i]:
                obs[ACTION_MASK][i] = True
                continue
            try:
                obs[ACTION_MASK][i] = read_mask(mask, self._layout)
            except ValueError as error:
                raise self._rules.error(str(error), i, step) from error
        return obs

    def _refuse_late_mask(self, infos: Infos) -> None:
        check_choices(self._rules.env_id, self.actions, "info")
        has_mask = (i for i in range(self.num_envs) if ACTION_MASK in _info_of(infos, i))
        raise self._rules.error(LATE_MASK, next(has_mask, 0), self._num_steps)

    def _check_reset(self, rewards: NDArray[np.float32], ended: NDArray[np.bool_]) -> None:
        """Raises EnvError if a step that had only to reset did more: the mode is another one."""
        for i in np.flatnonzero(self._ended & (ended | (rewards != 0))).tolist():
            raise self._rules.error(
                f"its episode had ended, so this step had only to reset, with reward 0; it gave "
                f"reward {rewards[i]:g} and ended={bool(ended[i])}: its metadata['autoreset_mode'] "
                f"is not what it does",
                i,
                self._num_steps,
            )

    def _check(
        self, obs: Observations, rewards: NDArray[np.float32], ended: NDArray[np.bool_]
    ) -> None:
        """Raises EnvError on NaN or infinity, and on masks that allow nothing."""
        step = self._num_steps
        is_finite = np.isfinite(rewards)
        for leaf in self._leaf_rules:
            if leaf.is_float:
                is_finite &= np.isfinite(obs[leaf.name]).reshape(self.num_envs, -1).all(axis=1)
        for i in np.flatnonzero(~is_finite).tolist():
            shown = in_short({name: rows[i] for name, rows in obs.items()})
            problem = not_finite(
                f"NaN or infinity: reward {rewards[i]}, observation {shown}",
                rewards[i],
                *(obs[leaf.name][i] for leaf in self._leaf_rules if leaf.is_float),
            )
            problem = f"{problem}; in a vector there is no way around it"
            error = self._rules.error(problem, i, step)
            raise NonFiniteError(error) if self._on_nan == "stop" else error
        for bounds in self._bounds:
            bounds.bounds(obs[bounds.name], step)
        if self._mask_place:
            self._check_masks(obs[ACTION_MASK], ended)

    def _check_masks(self, masks: NDArray[np.bool_], ended: NDArray[np.bool_]) -> None:
        for i in np.flatnonzero(without_choice(masks, self.actions).any(axis=1)).tolist():
            if not ended[i]:
                raise self._rules.error(
                    "its action mask allows none of a choice's values, and must allow one",
                    i,
                    self._num_steps,
                )
            masks[i] = True

    def episode_info(self, env: int) -> dict[str, float]:
        info = _info_of(self._infos, env)
        return numbers_in({name: info[name] for name in info if name not in _OF_THE_POOL})

    def state(self) -> None:
        """Vectors tell nothing of their state."""

    def load_state(self, state: EnvState) -> None:
        raise NotImplementedError("vectors take no state")

    def render(self) -> NDArray[np.uint8]:
        rendered: Any = self._open().render()
        try:
            return picture(rendered[0] if rendered is not None and len(rendered) else None)
        except ValueError as error:
            raise self._rules.error(str(error), 0, self._num_steps) from error

    def close(self) -> None:
        if self._vector is not None:
            self._vector.close()
        self._vector = None  # EnvPool's threads end with the last reference


class _told:
    """Adds a note to what is raised in the block."""

    def __init__(self, note: str) -> None:
        self._note = note

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None and not isinstance(error, EnvError):
            error.add_note(self._note)


def _autoreset_mode(name: str, vector: Vector) -> AutoresetMode:
    mode: object = vector.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        vector.close()
        raise UnsupportedEnvError(
            f"{name}: its metadata['autoreset_mode'] is {mode!r:.60}, and must be one of "
            f"gymnasium.vector.AutoresetMode, NEXT_STEP or DISABLED"
        )
    return mode


def _info_of(infos: Infos, env: int) -> Infos:
    """What a vector's infos say of one: arrays [N], beside which "_name" says who has any."""
    return {
        name: values[env]
        for name, values in infos.items()
        if isinstance(values, np.ndarray)
        and values.ndim
        and len(values) > env
        and (f"_{name}" not in infos or infos[f"_{name}"][env])
        and not name.startswith("_")
    }


def _kind(leaves: tuple[Leaf, ...]) -> Any:
    return "image" if any(leaf.kind == "image" for leaf in leaves) else "vector"


# --- classes ---


@dataclass(frozen=True)
class _Classes:
    """A class that has what `VecEnv` has, made with (num_envs, seed)."""

    name: str
    found: Callable[..., Any]
    own = frozenset({"num_envs", "seed", "render"})

    def make(
        self,
        num_envs: int,
        seed: int,
        options: EnvOptions,
        *,
        render: bool,
        stepping: NDArray[np.int64] | None,
    ) -> VecEnv:
        """Bounds and NaN are its own affair."""
        self._check_members(self.found, VEC_ENV_METHODS)
        if render and "render" not in inspect.signature(self.found).parameters:
            raise ValueError(f"{self.name} can't be shown: its constructor takes no render=True")
        if stepping is not None:
            stepping[0] = 0
        shown = {"render": True} if render else {}
        make = partial(self.found, num_envs, seed, **shown)
        env = _fitted(self, make, options.kwargs, lambda: arguments_of(self.found))
        self._check_members(env, _MEMBERS)
        for member, (fits, rule) in _RULES.items():
            if not fits(value := getattr(env, member)):
                raise UnsupportedEnvError(
                    f"{self.name}: its {member} is {in_short(value)}, and must be {rule}"
                )
        if env.num_envs != num_envs:
            raise UnsupportedEnvError(
                f"{self.name}: its num_envs is {env.num_envs}, and {num_envs} were asked for"
            )
        if stepping is not None:
            stepping[0] = -1
            env.stepping = stepping
        return env  # type: ignore[no-any-return]  # as seen above

    def _check_members(self, owner: object, members: tuple[str, ...]) -> None:
        if missing := [member for member in members if not hasattr(owner, member)]:
            raise UnsupportedEnvError(
                f"{self.name} has no {', '.join(missing)}; it must have what VecEnv has "
                f"(docs/adding-an-environment.md)"
            )

    def make_own(self, options: EnvOptions) -> VecEnv:
        return self.make(1, 0, options, render=False, stepping=None)

    def describe(self, options: EnvOptions) -> EnvSpec:
        """Resets it once, to see that the observations are those that its leaves say."""
        env = self.make(1, 0, options, render=False, stepping=None)
        with closing(env):
            obs = env.reset()
            told = {leaf.name: f"{leaf.dtype}{[1, *leaf.shape]}" for leaf in env.leaves}
            given = {name: f"{array.dtype}{[*array.shape]}" for name, array in obs.items()}
            if given != told:
                raise UnsupportedEnvError(
                    f"{self.name}: reset() gives {given}, and its leaves say {told}"
                )
            return EnvSpec(_kind(env.leaves), env.leaves, env.actions, frameskip=env.frameskip)

    def fps(self, options: EnvOptions) -> float | None:
        fps = getattr(self.found, "metadata", {}).get("render_fps")
        return None if fps is None else float(fps)
