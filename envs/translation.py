"""Between an environment itself and the networks, for who steps it in a loop of his own.

A run has layers around its environments that do this (spaces.py, rules.py, layers.py,
observe_last.py), and keep what they remember from row to row. Here the caller keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Space
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from numpy.typing import NDArray

from sfrl.envs.layers import first_frames, push, shrunk, stacked, taps_of
from sfrl.envs.masks import is_observed, observed_masks, read_mask
from sfrl.envs.observe_last import LAST_ACTION, LAST_REWARD, flat_actions, nothing_yet
from sfrl.envs.options import EnvOptions
from sfrl.envs.rules import EnvError, LeafRules, Rules
from sfrl.envs.spaces import ActionLayout, Part, Path, in_short, observation_parts, where_is
from sfrl.envs.vec_env import (
    ACTION_MASK,
    Actions,
    ActionSpec,
    EnvSpec,
    Leaf,
    Observations,
    VecEnv,
)
from sfrl.envs.vector_envs import Vector


class Spaces(NamedTuple):
    """What one environment is seen and steered by."""

    name: str
    observation: Space[Any]
    action: Space[Any]
    parts: list[Part]  # of an observation; a mask is none


class Seen(NamedTuple):
    """Observations as networks take them."""

    obs: Observations  # leaf -> [N, *shape]
    frames: Observations  # what `Translation.see` is to be given with the next ones
    is_single: bool  # the caller gave one observation, and no batch


def spaces_of(name: str, env: gymnasium.Env[Any, Any] | Vector | VecEnv) -> Spaces:
    """Of an environment, or of each in a vector. A `VecEnv` has no spaces, but leaves: there an
    observation is a dict of them, and an action what the policy decides, as it is."""
    if isinstance(env, gymnasium.vector.VectorEnv):
        observation, action = env.single_observation_space, env.single_action_space
    elif isinstance(env, gymnasium.Env):
        observation, action = env.observation_space, env.action_space
    else:
        return _spaces_of_leaves(name, env.leaves, env.actions)
    parts = observation_parts(name, observation, has_mask=is_observed(observation))
    return Spaces(name, observation, action, parts)


def _spaces_of_leaves(name: str, leaves: tuple[Leaf, ...], actions: ActionSpec) -> Spaces:
    spaces = {leaf.name: _space_of(leaf) for leaf in leaves}
    parts = [
        Part(leaf, spaces[leaf.name], (leaf.name,), None, "")
        for leaf in leaves
        if leaf.kind != "mask"
    ]
    action: Space[Any]
    if actions.is_single:
        action = Discrete(actions.choices[0])
    elif actions.low:
        action = Box(-np.inf, np.inf, actions.shape, np.float32)
    else:
        action = MultiDiscrete(np.array(actions.choices, np.int64))
    return Spaces(name, Dict(dict(spaces)), action, parts)


def _space_of(leaf: Leaf) -> Box[Any] | MultiDiscrete[Any]:
    if leaf.kind == "choice":
        return MultiDiscrete(np.array(leaf.sizes, np.int64), dtype=np.dtype(np.int32))
    high = {"float32": np.inf, "uint8": 255, "bool": 1}[leaf.dtype]
    return Box(-np.inf if leaf.dtype == "float32" else 0, high, leaf.shape, np.dtype(leaf.dtype))


class _GivenRules(Rules):
    def error(self, problem: str, env: int, step: int) -> EnvError:
        return EnvError(f"{self.env_id}, observation {env}: {problem}")


class Translation:
    """Of an environment's observations to leaves, and of rows of actions to its own.

    It stands for all layers that lie around the environment in a run, and holds nothing that
    changes. Exported networks have the same in torch (sfrl/graph.py).

    Attributes:
        spaces, layout: what the environment shows and takes.
        taps: of each image that is made smaller, what makes its rows and its columns.
    """

    def __init__(self, spec: EnvSpec, spaces: Spaces, options: EnvOptions) -> None:
        """
        Args:
            spec: what a run has of the environment, with all layers.
        """
        self.spec, self.spaces, self._options = spec, spaces, options
        self.layout = ActionLayout(spaces.name, spaces.action, options.bounds)
        rules = _GivenRules(spaces.name, spaces.observation, spaces.action)
        self._leaf_rules = [LeafRules(rules, part) for part in spaces.parts]
        self._masks_observed: list[Path] = []  # where in an observation its masks are
        if is_observed(spaces.observation):
            of_masks = observed_masks(spaces.observation[ACTION_MASK], spaces.action)
            self._masks_observed = [path for path, _ in of_masks]
        self._has_mask = any(leaf.kind == "mask" for leaf in spec.leaves)
        own = tuple(part.leaf for part in spaces.parts)
        size = options.image_size if spec.kind != "atari" else 0
        self.taps = taps_of(own, size) if size else {}

    def see(
        self,
        observation: Any,
        frames: Observations | None,
        actions: Actions | None,
        begins: NDArray[np.bool_] | None,
        reward: Any,
        action_mask: Any,
    ) -> Seen:
        """What the networks are to be given of one observation, or of a batch of N.

        Args:
            observation: as the environment gives it, or a vector of N environments.
            frames, actions: the frames of the observations before, and what was then decided; None
                before the first ones.
            begins: [N], where an episode begins; None: nowhere, but everywhere at the first.
            reward: of the steps between, N or one; None: not known.
            action_mask: N masks or one, if they are not within the observation.

        Raises:
            ValueError: something is missing, or does not fit; the text says what.
        """
        rows, is_single = self._rows(observation)
        size = len(rows)
        if begins is None:
            begins = np.full(size, actions is None)
        for what, number in (
            ("state", size if actions is None else len(actions)),
            ("episode_start", len(begins)),
        ):
            if number != size:
                raise ValueError(
                    f"{what} is of a batch of {number}, and obs of a batch of {size}; "
                    f"give as many, or state=None where all episodes begin"
                )
        obs = shrunk(self._read(rows), self.taps)
        if self._has_mask:
            obs[ACTION_MASK] = self._masks(rows, is_single, action_mask)
        elif action_mask is not None:
            raise ValueError(f"{self.spaces.name} has no action masks; leave action_mask out")
        if (stack := self._options.frame_stack) > 1:
            if frames:
                frames = {name: of_leaf.copy() for name, of_leaf in frames.items()}
                push(frames, obs, begins)
            else:
                frames = first_frames(obs, stack)
            obs = stacked(obs, frames)
        if self._options.observe_last:
            obs |= self._last(size, actions, begins, reward)
        # In the order of the spec's leaves, a mask last.
        obs = {leaf.name: obs[leaf.name] for leaf in self.spec.leaves}
        return Seen(obs, frames or {}, is_single)

    def _rows(self, observation: Any) -> tuple[list[Any], bool]:
        """The observations one by one, and whether there was one alone. Raises ValueError."""
        sizes = {self._batch_size(part, observation) for part in self.spaces.parts}
        if sizes == {None}:
            self._check_masks(observation, None)
            return [observation], True
        if len(sizes) > 1 or 0 in sizes:
            raise ValueError(
                f"{self.spaces.name}: {in_short(observation)} is neither an observation of "
                f"{in_short(self.spaces.observation)} nor a batch of one or more"
            )
        (size,) = sizes
        assert size is not None
        self._check_masks(observation, size)
        return list(iterate(batch_space(self.spaces.observation, size), observation)), False

    def _check_masks(self, observation: Any, size: int | None) -> None:
        """Raises ValueError: one of a batch, or of a single observation (None), is not there."""
        for path in self._masks_observed:
            mask = observation
            try:
                for key in path:
                    mask = mask[key]
            except (KeyError, IndexError, TypeError) as error:
                raise ValueError(
                    f"{self.spaces.name}: {in_short(observation)} lacks {where_is(path)}, which "
                    f"its observations have"
                ) from error
            if size is not None and np.shape(mask)[:1] != (size,):
                raise ValueError(
                    f"{where_is(path)} of shape {np.shape(mask)} is not of {size} observations"
                )

    @staticmethod
    def _batch_size(part: Part, observation: Any) -> int | None:
        """None: it is a single one, or none at all, which reading tells."""
        try:
            for key in part.path:
                observation = observation[key]
            shape = np.shape(observation)
        except (KeyError, IndexError, TypeError, ValueError):
            return None
        return shape[0] if len(shape) == len(part.space.shape or ()) + 1 else None

    def _read(self, rows: Sequence[Any]) -> Observations:
        """Raises ValueError."""
        obs: Observations = {}
        try:
            for rule, part in zip(self._leaf_rules, self.spaces.parts, strict=True):
                leaf = part.leaf
                obs[leaf.name] = np.empty((len(rows), *leaf.shape), leaf.dtype)
                for i, row in enumerate(rows):
                    obs[leaf.name][i] = rule.read(row, i, 0)
        except EnvError as error:
            raise ValueError(str(error)) from error
        for name, array in obs.items():
            if not np.isfinite(array).all():
                raise ValueError(
                    f"{self.spaces.name}: {name} has NaN or infinity, on which nobody can act"
                )
        return obs

    def _masks(self, rows: Sequence[Any], is_single: bool, given: Any) -> NDArray[np.bool_]:
        """[N, choices in all]. Raises ValueError."""
        if self._masks_observed:
            given = [row[ACTION_MASK] for row in rows]
        elif given is None:
            raise ValueError(
                f"{self.spaces.name} says which actions are legal, and the network was trained on "
                f"it: give action_mask=info['action_mask'], or env.action_masks()"
            )
        elif is_single:
            given = [given]
        if len(given) != len(rows):
            raise ValueError(f"action_mask has {len(given)} rows for {len(rows)} observations")
        return np.stack([read_mask(mask, self.layout) for mask in given])

    def _last(
        self,
        size: int,
        actions: Actions | None,
        begins: NDArray[np.bool_],
        reward: Any,
    ) -> Observations:
        """The leaves of `observe_last`. Raises ValueError."""
        last = nothing_yet(size, self.spec.actions)
        if actions is None:
            return last
        if reward is None or np.shape(reward) not in ((), (size,)):
            raise ValueError(
                f"reward={reward!r:.60} must be what the step before each of the {size} "
                f"observations has paid: with observe_last networks see it"
            )
        last[LAST_ACTION][:] = flat_actions(self.spec.actions, actions)
        last[LAST_REWARD][:, 0] = reward
        for array in last.values():
            array[begins] = 0.0
        return last

    def own(self, actions: Actions, *, is_single: bool) -> Any:
        """The environment's own action of rows [N, *ActionSpec.shape]; of a batch, N of them as its
        space has them in a vector of N environments."""
        actions_of_each = self.layout.own(actions)
        if is_single:
            return actions_of_each[0]
        space, size = self.spaces.action, len(actions_of_each)
        empty: Any = create_empty_array(space, size)
        return concatenate(space, actions_of_each, empty)
