"""What lies around a `VecEnv` of any kind and changes what is observed."""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sfrl.envs.areas import Taps, area_taps, shrink
from sfrl.envs.vec_env import (
    ACTION_MASK,
    Actions,
    EnvSpec,
    EnvState,
    Leaf,
    Observations,
    StepResult,
    VecEnv,
)


class Layer:
    """A `VecEnv` around another, which does all that a layer does not do itself."""

    def __init__(self, env: VecEnv) -> None:
        self.env = env
        self.num_envs = env.num_envs
        self.actions = env.actions
        self.frameskip = env.frameskip
        self.stepping = env.stepping
        self._ended = np.zeros(env.num_envs, np.bool_)  # the next step is no decision

    def is_ready(self) -> bool:
        return is_ready(self.env)

    def send(self, actions: Actions) -> None:
        self.env.send(actions)

    def episode_info(self, env: int) -> dict[str, float]:
        return self.env.episode_info(env)

    def render(self) -> NDArray[np.uint8]:
        return self.env.render()

    def close(self) -> None:
        self.env.close()


def is_ready(env: VecEnv) -> bool:
    """Whether `recv` has nothing to wait for; of one that cannot tell: yes."""
    ask = getattr(env, "is_ready", None)
    return ask is None or ask()


class Shrink(Layer):
    """Images of at most `size` pixels in their longest side: larger ones become means of areas.

    Both sides shrink alike, and a pixel between two new ones counts for each by its share. Numbers
    of uint8 are rounded.
    """

    def __init__(self, env: VecEnv, size: int) -> None:
        super().__init__(env)
        self._size = size

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        return _shrunk(self.env.leaves, self._size)

    def reset(self) -> Observations:
        return self._shrink(self.env.reset())

    def recv(self) -> StepResult:
        result = self.env.recv()
        return result._replace(obs=self._shrink(result.obs))

    def _shrink(self, obs: Observations) -> Observations:
        return shrunk(obs, self._taps)

    @cached_property
    def _taps(self) -> dict[str, list[Taps]]:
        return taps_of(self.env.leaves, self._size)

    def state(self) -> EnvState | None:
        return self.env.state()

    def load_state(self, state: EnvState) -> None:
        self.env.load_state(state)


def taps_of(leaves: tuple[Leaf, ...], size: int) -> dict[str, list[Taps]]:
    """Of each leaf that shrinks, what makes its rows and its columns."""
    return {
        new.name: [area_taps(*side) for side in zip(old.shape[1:], new.shape[1:], strict=True)]
        for old, new in zip(leaves, _shrunk(leaves, size), strict=True)
        if old.shape != new.shape
    }


def shrunk(obs: Observations, taps: dict[str, list[Taps]]) -> Observations:
    """Observations with the leaves that have taps made smaller."""
    return {**obs, **{name: shrink(obs[name], *of_leaf) for name, of_leaf in taps.items()}}


def has_larger(leaves: tuple[Leaf, ...], size: int) -> bool:
    """Whether `Shrink` would change any of them."""
    return leaves != _shrunk(leaves, size)


def shrinking(spec: EnvSpec, size: int) -> EnvSpec:
    """What `Shrink` makes of an environment."""
    leaves = _shrunk(spec.leaves, size)
    told = [spec.reading] if spec.reading else []
    for old, new in zip(spec.leaves, leaves, strict=True):
        if new.shape != old.shape:
            (height, width), (rows, columns) = old.shape[1:], new.shape[1:]
            told.append(
                f"images of {height}x{width} ({old.name}) become {rows}x{columns}: "
                f"image_size={size} is the longest side, and 0 leaves them as they are"
            )
    return dataclasses.replace(spec, leaves=leaves, reading=". ".join(told))


def _shrunk(leaves: tuple[Leaf, ...], size: int) -> tuple[Leaf, ...]:
    def side(pixels: int, longest: int) -> int:
        return max(1, round(pixels * min(1.0, size / longest)))

    return tuple(
        leaf
        if leaf.kind != "image"
        else dataclasses.replace(
            leaf,
            shape=(leaf.shape[0], *(side(p, max(leaf.shape[1:])) for p in leaf.shape[1:])),
        )
        for leaf in leaves
    )


class FrameStack(Layer):
    """Observations with the ones before them, the oldest first, along their first axis.

    At an episode's start they are all the first. As gymnasium.wrappers.FrameStackObservation with
    padding_type="reset", but for all environments at once, and it leaves a mask as it is.

    Who keeps a leaf with `frames` for long (replay.py) may rely on this: from row to row all of
    them move up by one, or the older ones are zeros or copies of the newest.
    """

    def __init__(self, env: VecEnv, size: int) -> None:
        super().__init__(env)
        self._size = size
        self._frames: dict[str, NDArray[np.generic]] = {}  # [N, size, *leaf.shape], by leaf

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        return _stacked(self.env.leaves, self._size)

    def reset(self) -> Observations:
        obs = self.env.reset()
        self._ended[:] = False
        self._frames = first_frames(obs, self._size)
        return stacked(obs, self._frames)

    def recv(self) -> StepResult:
        result = self.env.recv()
        push(self._frames, result.obs, self._ended)
        self._ended = result.ended
        return result._replace(obs=stacked(result.obs, self._frames))

    def state(self) -> EnvState | None:
        if (state := self.env.state()) is None:
            return None
        frames = {name: frames.copy() for name, frames in self._frames.items()}
        return {"env": state, "frames": frames, "ended": self._ended.copy()}

    def load_state(self, state: EnvState) -> None:
        self.env.load_state(state["env"])
        self._frames = {name: frames.copy() for name, frames in state["frames"].items()}
        self._ended = state["ended"].copy()


def first_frames(obs: Observations, size: int) -> Observations:
    """At episodes' starts: [N, size, *shape] of each leaf but a mask."""
    return {
        name: np.repeat(newest[:, np.newaxis], size, axis=1)
        for name, newest in obs.items()
        if name != ACTION_MASK
    }


def push(frames: Observations, obs: Observations, begins: NDArray[np.bool_]) -> None:
    """Edit the frames: the oldest go, and `obs` come; all are the first where an episode begins."""
    for name, of_leaf in frames.items():
        newest = obs[name]
        of_leaf[:, :-1] = of_leaf[:, 1:]
        of_leaf[:, -1] = newest
        of_leaf[begins] = newest[begins, np.newaxis]


def stacked(obs: Observations, frames: Observations) -> Observations:
    """Observations [N, size * shape[0], ...] of the frames; a mask as it is in `obs`."""
    joined = {
        name: of_leaf.reshape(len(of_leaf), -1, *of_leaf.shape[3:])
        for name, of_leaf in frames.items()
    }
    return {name: joined.get(name, array) for name, array in obs.items()}


def stacking(spec: EnvSpec, size: int) -> EnvSpec:
    """What `FrameStack` makes of an environment."""
    return dataclasses.replace(spec, leaves=_stacked(spec.leaves, size))


def _stacked(leaves: tuple[Leaf, ...], size: int) -> tuple[Leaf, ...]:
    return tuple(
        leaf
        if leaf.kind == "mask"
        else dataclasses.replace(
            leaf,
            shape=(size * leaf.shape[0], *leaf.shape[1:]),
            sizes=size * leaf.sizes,
            frames=size if leaf.frames == 1 else 1,  # a stack of stacks is none
        )
        for leaf in leaves
    )
