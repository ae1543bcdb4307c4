"""Environments by name. `make_vec_env("Pong", ...)`, `make_vec_env("CartPole-v1", ...)`.

    vec_env.py         the interface VecEnv, and its records StepResult and EnvSpec
    atari.py           Atari games: ALE, and screen.py's pictures
    gymnasium_envs.py  every other Gymnasium id, N in one thread
    rules.py           what those must keep to, checked at every step
    forks.py           ends the forks of an environment that come back out of it
    logs.py            loggers that no environment can silence

Nothing here imports torch or sfrl.
"""

import difflib
import importlib

import ale_py  # noqa: F401  registers its games with Gymnasium
import gymnasium
import numpy as np
from numpy.typing import NDArray

from envs.atari import FRAMESKIP, AtariVecEnv, describe_atari
from envs.gymnasium_envs import GymnasiumVecEnv, describe_gymnasium
from envs.rules import EnvError, NonFiniteError
from envs.vec_env import EnvKind, EnvSpec, ObsArray, OnNan, StepResult, VecEnv, obs_scale

__all__ = [
    "EnvError",
    "EnvKind",
    "EnvSpec",
    "NonFiniteError",
    "ObsArray",
    "StepResult",
    "UnknownEnvError",
    "VecEnv",
    "describe",
    "env_kind",
    "gymnasium_id",
    "make_vec_env",
    "obs_scale",
]

# The single-player games as ALE registers them: {"MsPacman": "ms_pacman", ...}.
ATARI_GAMES: dict[str, str] = {
    spec.name: spec.kwargs["game"]
    for spec in gymnasium.registry.values()
    if spec.namespace == "ALE"
}


class UnknownEnvError(ValueError):
    """No Atari game and no Gymnasium id has this name."""


def make_vec_env(
    name: str,
    num_envs: int,
    seed: int,
    *,
    frameskip: int | None = None,
    sticky_actions: float = 0.0,
    episodic_life: bool = False,
    max_episode_frames: int = 108_000,
    on_nan: OnNan = "skip",
    render: bool = False,
    stepping: NDArray[np.int64] | None = None,
) -> VecEnv:
    """Make `num_envs` copies of an environment; env i is seeded by (`seed`, i).

    `name` is an Atari game ("Pong", "mspacman"), which stands for the settings in atari.py,
    or a Gymnasium id ("CartPole-v1"), with the module that registers it where needed
    ("my_module:MyEnv-v0"). ALE's own ids ("ALE/Pong-v5", "PongNoFrameskip-v4") mean the game.

    `max_episode_frames` (30 minutes of play) concerns Atari only; the length of another
    environment's episodes is its registration's `max_episode_steps`. `on_nan` says what becomes of
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
    env_id = gymnasium_id(name)
    if frameskip not in (None, 1) or sticky_actions or episodic_life:
        raise ValueError(
            f"{frameskip=}, {sticky_actions=}, {episodic_life=}: these are for Atari games; "
            f"leave them out for {name}"
        )
    return GymnasiumVecEnv(env_id, num_envs, seed, on_nan=on_nan, render=render, stepping=stepping)


def describe(name: str, frameskip: int | None = None) -> EnvSpec:
    """What a network must know of the environment. Raises as `make_vec_env` does."""
    game = atari_game(name)
    if game is not None:
        return describe_atari(game, FRAMESKIP if frameskip is None else frameskip)
    return describe_gymnasium(gymnasium_id(name))


def env_kind(name: str) -> EnvKind:
    """Whether a name means an Atari game, another environment with images, or vectors."""
    return "atari" if atari_game(name) is not None else describe(name).kind


def atari_game(name: str) -> str | None:
    """The ROM id that a name means, None if it is no Atari name."""
    spec = gymnasium.registry.get(name)
    if spec is not None and spec.entry_point == "ale_py.env:AtariEnv":
        game: str = spec.kwargs["game"]
        return game
    games = {game.lower(): rom for game, rom in ATARI_GAMES.items()}
    return games.get(name.lower().replace("_", ""))


def gymnasium_id(name: str) -> str:
    """The registered id that a name means, once its module, if it names one, is imported."""
    module, _, env_id = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # the module is there; something it imports is not
            raise UnknownEnvError(f"{name}: there is no module {module!r} to import") from error
    if env_id not in gymnasium.registry:
        nearest = _nearest_names(env_id)
        hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
        raise UnknownEnvError(
            f"{name!r} is neither an Atari game nor a Gymnasium id; {hint}"
            "An environment of your own is named module:Id-v0, so that it gets registered"
        )
    return env_id


def _nearest_names(env_id: str) -> list[str]:
    """At most three Atari games and three Gymnasium ids that are spelled like `env_id`."""
    ids = [
        spec.id for spec in gymnasium.registry.values() if spec.entry_point != "ale_py.env:AtariEnv"
    ]
    bare_name = env_id.rpartition("/")[2].partition("-v")[0]
    nearest = []
    for wanted, known in ((bare_name, list(ATARI_GAMES)), (env_id, ids)):
        spelling = {name.lower(): name for name in known}
        nearest += [spelling[m] for m in difflib.get_close_matches(wanted.lower(), spelling)]
    return nearest
