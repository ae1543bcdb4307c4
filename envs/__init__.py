"""Environments by name. `make_vec_env("Pong", ...)`, `make_vec_env("CartPole-v1", ...)`.

    names.py           what a name means, and what is said of one that means nothing
    vec_env.py         the interface VecEnv, and its records
    options.py         EnvOptions: how an environment is made
    atari.py           Atari games: ALE, and screen.py's pictures
    atari_env.py       a game as a Gymnasium environment
    gymnasium_envs.py  every other Gymnasium id, N in one thread
    vector_envs.py     what is a vector already: Gymnasium's, EnvPool's, classes of users
    spaces.py          what their observations and actions become
    masks.py           which actions they allow
    pictures.py        what those show, for videos
    rules.py           what those must keep to, checked at every step
    forks.py           ends the forks of an environment that come back out of it
    layers.py          stacks of observations, around any VecEnv
    observe_last.py    the last action and reward, likewise
    translation.py     all of this for an environment that someone else steps
    latency.py         Latency-v0, an environment that waits
    logs.py            loggers that no environment can silence

The folder lies at the top level of the repository, where users look for it; `sfrl/envs` is a link
to it, and in an installed package it is a folder of sfrl's. Nothing here imports torch, or anything
else of sfrl.
"""

import dataclasses
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfrl.envs.atari import CONSOLE_FPS, FRAMESKIP, AtariVecEnv, describe_atari
from sfrl.envs.atari_env import AtariEnv
from sfrl.envs.gymnasium_envs import (
    GymnasiumVecEnv,
    describe_gymnasium,
    gymnasium_fps,
    make_gymnasium,
    numbers_in,
)
from sfrl.envs.layers import FrameStack, Shrink, has_larger, is_ready, shrinking, stacking
from sfrl.envs.names import (
    TrainsOnImportError,
    UnknownEnvError,
    UnsupportedEnvError,
    atari_game,
    gymnasium_id,
    in_one_line,
    is_same,
)
from sfrl.envs.observe_last import ObserveLast, observing_last
from sfrl.envs.options import DEFAULT_OPTIONS, EnvOptions, parse_kwargs, parse_wrappers
from sfrl.envs.rules import EnvError, NonFiniteError
from sfrl.envs.translation import Translation, spaces_of
from sfrl.envs.vec_env import (
    ACTION_MASK,
    OBS,
    ActionSpec,
    Bounds,
    EnvKind,
    EnvSpec,
    Leaf,
    Observations,
    StepResult,
    VecEnv,
    random_actions,
)
from sfrl.envs.vector_envs import find_vectors

__all__ = [
    "ACTION_MASK",
    "OBS",
    "ActionSpec",
    "Bounds",
    "EnvError",
    "EnvKind",
    "EnvOptions",
    "EnvSpec",
    "Leaf",
    "NonFiniteError",
    "Observations",
    "StepResult",
    "TrainsOnImportError",
    "Translation",
    "UnknownEnvError",
    "UnsupportedEnvError",
    "VecEnv",
    "atari_game",
    "describe",
    "find_vectors",
    "fps",
    "gymnasium_id",
    "in_one_line",
    "is_ready",
    "is_same",
    "make_env",
    "make_vec_env",
    "numbers_in",
    "parse_kwargs",
    "parse_wrappers",
    "random_actions",
    "translation",
]


def make_vec_env(
    name: str,
    num_envs: int,
    seed: int,
    options: EnvOptions = DEFAULT_OPTIONS,
    *,
    render: bool = False,
    stepping: NDArray[np.int64] | None = None,
) -> VecEnv:
    """Make `num_envs` copies of an environment; env i is seeded by (`seed`, i).

    `name` is an Atari game ("Pong", "mspacman"), which stands for the settings in atari.py,
    or a Gymnasium id ("CartPole-v1"), with the module that registers it where needed
    ("my_module:MyEnv-v0"), or a vector of one of the kinds in vector_envs.py. ALE's own ids
    ("ALE/Pong-v5", "PongNoFrameskip-v4") mean the game.

    `render=True` is for one environment. `stepping` is what `VecEnv` has of this name, [1]; None:
    of its own.

    Raises:
        UnknownEnvError: no such name; the message lists the nearest ones.
        ValueError: a setting does not fit, or the environment's spaces are not supported.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs={num_envs} must be at least 1")
    if render and num_envs != 1:
        raise ValueError(f"render=True shows one environment, not num_envs={num_envs}")
    env: VecEnv
    game = atari_game(name)
    if game is not None:
        _check_for_atari(name, options)
        env = AtariVecEnv(game, num_envs, seed, options, render=render, stepping=stepping)
    elif (vectors := find_vectors(name)) is not None:
        _check_for_vectors(name, options, vectors.own)
        _check_for_others(name, dataclasses.replace(options, frameskip=None))
        env = vectors.make(num_envs, seed, options, render=render, stepping=stepping)
        if options.frameskip not in (None, env.frameskip):
            env.close()
            raise ValueError(
                f"frameskip={options.frameskip} is for Atari games, and {name} has "
                f"{env.frameskip} of its own; leave it out"
            )
    else:
        env_id = gymnasium_id(name)
        _check_for_others(name, options)
        env = GymnasiumVecEnv(env_id, num_envs, seed, options, render=render, stepping=stepping)
    if options.image_size and game is None:
        leaves = env.observed if isinstance(env, GymnasiumVecEnv) else env.leaves
        if has_larger(leaves, options.image_size):
            env = Shrink(env, options.image_size)
    if options.frame_stack > 1:
        env = FrameStack(env, options.frame_stack)
    return ObserveLast(env) if options.observe_last else env


def describe(name: str, options: EnvOptions = DEFAULT_OPTIONS) -> EnvSpec:
    """What a network must know of the environment. Raises as `make_vec_env` does.

    Settings that are for Atari alone are not looked at for another environment.
    """
    game = atari_game(name)
    if game is not None:
        _check_for_atari(name, options)
        spec = describe_atari(game, options.frameskip)
    elif (vectors := find_vectors(name)) is not None:
        _check_for_vectors(name, options, vectors.own)
        spec = vectors.describe(options)
    else:
        spec = describe_gymnasium(gymnasium_id(name), options)
    if options.image_size and game is None:
        spec = shrinking(spec, options.image_size)
    if options.frame_stack > 1:
        spec = stacking(spec, options.frame_stack)
    return observing_last(spec) if options.observe_last else spec


def make_env(name: str, options: EnvOptions = DEFAULT_OPTIONS, **kwargs: Any) -> Any:
    """The environment itself, which runs have layers around: with its wrappers, and no others.

    A `gymnasium.Env`. Of a vector: one of a single environment, a Gymnasium `VectorEnv` or, of a
    class of the user's, what that is.

    Args:
        kwargs: for the environment, beside those in `options`, such as render_mode="human".

    Raises:
        UnknownEnvError, ValueError: as `make_vec_env`.
    """
    game = atari_game(name)
    if game is not None:
        _check_for_atari(name, options)
        return AtariEnv(game, options, **kwargs)
    options = dataclasses.replace(options, kwargs={**options.kwargs, **kwargs})
    if (vectors := find_vectors(name)) is not None:
        return vectors.make_own(options)
    return make_gymnasium(gymnasium_id(name), options)


def translation(name: str, options: EnvOptions, spec: EnvSpec) -> Translation:
    """Between what `make_env` gives and networks. `spec` is what `describe` says."""
    with closing(make_env(name, options)) as env:
        return Translation(spec, spaces_of(name, env), options)


def fps(name: str, options: EnvOptions = DEFAULT_OPTIONS) -> float | None:
    """Decisions per second at the speed that it is meant to be seen at; None: it does not say."""
    if atari_game(name) is not None:
        return CONSOLE_FPS / (options.frameskip or FRAMESKIP)
    if (vectors := find_vectors(name)) is not None:
        return vectors.fps(options)
    return gymnasium_fps(gymnasium_id(name), options)


def _check_for_atari(name: str, options: EnvOptions) -> None:
    """Raises UnsupportedEnvError."""
    default = EnvOptions.image_size
    _refuse(
        name,
        "is not for Atari games",
        {
            "env_kwargs": (options.kwargs, {}, "they have settings of their own"),
            "wrappers": (options.wrappers, "", "they have settings of their own"),
            "image_size": (options.image_size or default, default, "their images are 84x84"),
            "frame_stack": (options.frame_stack, 1, "they are stacks of 4 already"),
            "threads_per_worker": (options.threads, 1, "they compute, and wait for nothing"),
        },
    )


def _check_for_vectors(name: str, options: EnvOptions, own: frozenset[str]) -> None:
    """Raises UnsupportedEnvError."""
    for argument in options.kwargs:
        if argument in own:
            raise UnsupportedEnvError(
                f"{name}: env_kwargs must not have {argument!r}, which sfrl sets itself; "
                f"leave it out"
            )
    _refuse(
        name,
        "is not for vector environments",
        {
            "wrappers": (options.wrappers, "", "a vector takes none of them"),
            "threads_per_worker": (options.threads, 1, "a vector steps all of its own at once"),
        },
    )


def _refuse(name: str, rule: str, others: dict[str, tuple[object, object, str]]) -> None:
    for setting, (value, neutral, reason) in others.items():
        if value != neutral:
            raise UnsupportedEnvError(
                f"{setting}={value} {rule}, and {name} is one: {reason}; leave it out"
            )


def _check_for_others(name: str, options: EnvOptions) -> None:
    """Raises ValueError."""
    frameskip, sticky_actions = options.frameskip, options.sticky_actions
    episodic_life = options.episodic_life
    if frameskip not in (None, 1) or sticky_actions or episodic_life:
        raise ValueError(
            f"{frameskip=}, {sticky_actions=}, {episodic_life=}: these are for Atari games; "
            f"leave them out for {name}"
        )
