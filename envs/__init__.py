"""Environments by name. `make_vec_env("Pong", ...)`, `make_vec_env("CartPole-v1", ...)`.

    names.py           what a name means, and what is said of one that means nothing
    vec_env.py         the interface VecEnv, and its records
    atari.py           Atari games: ALE, and screen.py's pictures
    gymnasium_envs.py  every other Gymnasium id, N in one thread
    vector_envs.py     what is a vector already: Gymnasium's, EnvPool's, classes of users
    spaces.py          what their observations and actions become
    masks.py           which actions they allow
    pictures.py        what those show, for videos
    rules.py           what those must keep to, checked at every step
    forks.py           ends the forks of an environment that come back out of it
    logs.py            loggers that no environment can silence

The folder lies at the top level of the repository, where users look for it; `sfrl/envs` is a link
to it, and in an installed package it is a folder of sfrl's. Nothing here imports torch, or anything
else of sfrl.
"""

import numpy as np
from numpy.typing import NDArray

from sfrl.envs.atari import FRAMESKIP, AtariVecEnv, describe_atari
from sfrl.envs.gymnasium_envs import GymnasiumVecEnv, describe_gymnasium
from sfrl.envs.names import (
    TrainsOnImportError,
    UnknownEnvError,
    UnsupportedEnvError,
    atari_game,
    gymnasium_id,
    in_one_line,
)
from sfrl.envs.rules import EnvError, NonFiniteError
from sfrl.envs.vec_env import (
    ACTION_MASK,
    OBS,
    ActionSpec,
    Bounds,
    EnvKind,
    EnvSpec,
    Leaf,
    Observations,
    OnNan,
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
    "EnvSpec",
    "Leaf",
    "NonFiniteError",
    "Observations",
    "StepResult",
    "TrainsOnImportError",
    "UnknownEnvError",
    "UnsupportedEnvError",
    "VecEnv",
    "atari_game",
    "describe",
    "find_vectors",
    "gymnasium_id",
    "in_one_line",
    "make_vec_env",
    "random_actions",
]


def make_vec_env(
    name: str,
    num_envs: int,
    seed: int,
    *,
    frameskip: int | None = None,
    sticky_actions: float = 0.0,
    episodic_life: bool = False,
    max_episode_frames: int = 108_000,
    bounds: Bounds = "clip",
    on_nan: OnNan = "skip",
    render: bool = False,
    stepping: NDArray[np.int64] | None = None,
) -> VecEnv:
    """Make `num_envs` copies of an environment; env i is seeded by (`seed`, i).

    `name` is an Atari game ("Pong", "mspacman"), which stands for the settings in atari.py,
    or a Gymnasium id ("CartPole-v1"), with the module that registers it where needed
    ("my_module:MyEnv-v0"), or a vector of one of the kinds in vector_envs.py. ALE's own ids
    ("ALE/Pong-v5", "PongNoFrameskip-v4") mean the game.

    `max_episode_frames` (30 minutes of play) concerns Atari only; the length of another
    environment's episodes is its registration's `max_episode_steps`. `bounds` says how numbers of
    the policy's become actions within their bounds (`ActionSpec`). `on_nan` says what becomes of
    NaN and infinity, which no Atari game gives: "skip" cuts the episode off before. `frameskip`
    defaults to 4 for Atari, 1 otherwise. `render=True` is for one environment. `stepping` is what
    `VecEnv` has of this name, [1]; None: of its own.

    Raises:
        UnknownEnvError: no such name; the message lists the nearest ones.
        ValueError: a setting does not fit, or the environment's spaces are not supported.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs={num_envs} must be at least 1")
    if render and num_envs != 1:
        raise ValueError(f"render=True shows one environment, not num_envs={num_envs}")
    game = atari_game(name)
    if game is not None:
        return AtariVecEnv(
            game,
            num_envs,
            seed,
            frameskip=FRAMESKIP if frameskip is None else frameskip,
            sticky_actions=sticky_actions,
            episodic_life=episodic_life,
            max_episode_frames=max_episode_frames,
            render=render,
            stepping=stepping,
        )
    vectors = find_vectors(name)
    if (frameskip not in (None, 1) and vectors is None) or sticky_actions or episodic_life:
        raise ValueError(
            f"{frameskip=}, {sticky_actions=}, {episodic_life=}: these are for Atari games; "
            f"leave them out for {name}"
        )
    if vectors is not None:
        env = vectors.make(
            num_envs, seed, bounds=bounds, on_nan=on_nan, render=render, stepping=stepping
        )
        if frameskip not in (None, env.frameskip):
            env.close()
            raise ValueError(
                f"frameskip={frameskip} is for Atari games, and {name} has {env.frameskip} of its "
                f"own; leave it out"
            )
        return env
    return GymnasiumVecEnv(
        gymnasium_id(name),
        num_envs,
        seed,
        bounds=bounds,
        on_nan=on_nan,
        render=render,
        stepping=stepping,
    )


def describe(name: str, frameskip: int | None = None) -> EnvSpec:
    """What a network must know of the environment. Raises as `make_vec_env` does."""
    game = atari_game(name)
    if game is not None:
        return describe_atari(game, FRAMESKIP if frameskip is None else frameskip)
    vectors = find_vectors(name)
    return vectors.describe() if vectors else describe_gymnasium(gymnasium_id(name))
