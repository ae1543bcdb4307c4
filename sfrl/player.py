"""Player: a trained network that plays whole episodes in the environment it was trained in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import NamedTuple

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import envs
from sfrl import distributions
from sfrl.config import Config
from sfrl.model import make_model

_DEFAULT_FPS = 30.0  # of a Gymnasium environment that names none
_CONSOLE_FPS = 60.0  # of the Atari 2600


class Moment(NamedTuple):
    """An episode as a spectator sees it: at its start, and after each decision."""

    score: float  # the episode's return so far, unclipped
    steps: int  # decisions so far
    picture: NDArray[np.uint8] | None  # [H, W, 3], the game's own; None without `render`


class Player:
    """Acts with the weights of a checkpoint, in float32 on the CPU.

    Each episode has an environment of its own, seeded by (`seed`, episode). So an episode depends
    neither on how the ones before it ended nor on whether they were cut off.
    """

    def __init__(
        self,
        config: Config,  # of the run that trained the weights
        weights: Mapping[str, Tensor],  # a checkpoint's "model"
        *,
        seed: int,
        deterministic: bool = False,  # take the likeliest action rather than sample
        render: bool = False,
    ) -> None:
        """Raises ValueError if the weights do not fit the model that `config` describes."""
        spec = envs.describe(config.env, config.frameskip)
        model = make_model(
            config.model,
            spec.obs_shape,
            spec.num_actions,
            obs_is_image=spec.obs_dtype == "uint8",
            rnn_size=config.rnn_size,
            normalize_returns=config.normalize_returns,
        )
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f"the weights do not fit model={config.model} for {config.env}; play them with the "
                f"code of the environment and the model that they were trained with. {error}"
            ) from error
        self.config = config
        self.model = model.inference_copy(torch.float32)
        self.seed = seed
        self.deterministic = deterministic
        self.render = render

    def episode(self, index: int, max_steps: int = 0) -> Iterator[Moment]:
        """Play episode `index`, or its first `max_steps` decisions if that is not 0."""
        state = np.random.SeedSequence([self.seed, index]).generate_state(2)
        env_seed, action_seed = (int(word) >> 1 for word in state)
        generator = torch.Generator().manual_seed(action_seed)
        with closing(make_env(self.config, env_seed, render=self.render)) as env:
            obs = env.reset()  # [1, *obs_shape]
            rnn_state: Tensor | None = None
            score, steps, ended = 0.0, 0, False
            yield Moment(score, steps, env.render() if self.render else None)
            while not ended and (steps < max_steps or max_steps == 0):
                logits, _, rnn_state = self.model.step(torch.from_numpy(obs), rnn_state)
                actions = (
                    logits.argmax(dim=-1)
                    if self.deterministic
                    else distributions.sample(logits, generator)
                )
                env.send(actions.numpy())
                obs, rewards, terminated, truncated = env.recv()
                score += float(rewards[0])
                steps += 1
                ended = bool(terminated[0] or truncated[0])
                yield Moment(score, steps, env.render() if self.render else None)


def make_env(config: Config, seed: int, *, render: bool) -> envs.VecEnv:
    """One environment as in training, except that a lost life does not end the episode."""
    return envs.make_vec_env(
        config.env,
        1,
        seed,
        frameskip=config.frameskip,
        sticky_actions=config.sticky_actions,
        episodic_life=False,
        max_episode_frames=config.max_episode_frames,
        render=render,
    )


def real_fps(config: Config) -> float:
    """Decisions per second at the speed that the game is meant to be seen at."""
    if envs.env_kind(config.env) == "atari":
        return _CONSOLE_FPS / config.frameskip
    with closing(gymnasium.make(config.env, disable_env_checker=True)) as env:
        return float(env.metadata.get("render_fps") or _DEFAULT_FPS)
