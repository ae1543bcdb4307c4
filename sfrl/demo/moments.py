"""The agent at three moments of a run, each with a film of how it plays."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfrl.algorithms import make_algorithm
from sfrl.envs import EnvSpec
from sfrl.records import checkpoint
from sfrl.records.metrics import EPISODE_WINDOW
from sfrl.settings.algorithms import config_from
from sfrl.settings.config import Config
from sfrl.show.player import Player, Video, real_fps

_FILM_S = 30.0  # of a film, as one watches it
_QUALITY = 5  # at which this of an Atari game has 0.1 MB, and of larger pictures below 1 MB


class Moment(NamedTuple):
    """How the agent is after some time.

    Attributes:
        score: the run's, mean of the last 100 episodes; None: none had ended.
        film: an .mp4 file.
        film_score: the return of the episode in the film, as far as it goes.
        is_whole: the film has the whole episode.
    """

    minutes: float
    frames: int
    score: float | None
    film: bytes
    film_score: float
    is_whole: bool


def moments(run_dir: Path, spec: EnvSpec, middle_s: float) -> list[Moment]:
    """Before learning, near `middle_s` seconds, and at the end; the middle one if it was kept.

    Raises:
        checkpoint.CheckpointError: there is no checkpoint, or it is damaged.
        envs.EnvError, gymnasium.error.Error: the environment fails.
        show.player.VideoError: a film cannot be written.
    """
    last, path = checkpoint.load_latest(run_dir)
    config = config_from(last["config"], str(path))
    earlier = [checkpoint.load(other) for other in checkpoint.latest_paths(run_dir) if other < path]
    middle = sorted(earlier, key=lambda state: abs(state["metrics"]["time_s"] - middle_s))[:1]
    torch.manual_seed(config.seed)
    untrained = make_algorithm(config, spec).make_model().state_dict()
    return [
        _moment(config, untrained, 0.0, 0, None),
        *(_of_checkpoint(config, state) for state in [*middle, last]),
    ]


def _of_checkpoint(config: Config, state: Mapping[str, Any]) -> Moment:
    metrics = state["metrics"]
    returns = metrics["episode_returns"][-EPISODE_WINDOW:]
    score = sum(returns) / len(returns) if returns else None
    frames = int(state["counters"]["env_frames"])
    return _moment(config, state["model"], metrics["time_s"] / 60, frames, score)


def _moment(
    config: Config, weights: Mapping[str, Tensor], minutes: float, frames: int, score: float | None
) -> Moment:
    """All play the same episode, as far as what they do lets it be the same."""
    fps = real_fps(config)
    most = math.ceil(_FILM_S * fps)
    player = Player(config, weights, seed=config.seed, render=True)
    with tempfile.TemporaryDirectory(prefix="sfrl-demo-") as folder:
        path = Path(folder, "film.mp4")
        with closing(Video(str(path), fps, _QUALITY)) as video:
            for seen in player.episode(0, most):
                assert seen.picture is not None
                video.show(seen.picture)
        film = path.read_bytes()
    return Moment(minutes, frames, score, film, seen.score, seen.steps < most)
