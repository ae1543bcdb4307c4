"""A trained policy that plays, and the screens that show it: a video file and a window."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import imageio_ffmpeg
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from sfrl import envs
from sfrl.envs.vec_env import Actions
from sfrl.policy import Policy, playing_options
from sfrl.settings.config import Config

_DEFAULT_FPS = 30.0  # of a Gymnasium environment that names none

# libx264 in yuv420p is what every player plays; it needs even sizes. A palette of its own for
# each picture keeps a game's few colours exact, and ffmpeg can write a GIF as its pictures come.
# Without -gifflags it leaves out what is as in the picture before, but takes one of a single colour
# to be that one. So a GIF of Pong is 2.7 times as large (0.6 KB a picture).
_VIDEO_OPTIONS: dict[str, dict[str, Any]] = {  # ffmpeg's, by the file's ending
    ".mp4": {
        "codec": "libx264",
        "quality": 8,
        "output_params": ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2"],
    },
    ".gif": {
        "codec": "gif",
        "pix_fmt_out": "pal8",
        "quality": None,
        "output_params": [
            "-filter_complex",
            "split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1:dither=none",
            *("-gifflags", "0"),
        ],
    },
}


class Decision(NamedTuple):
    outputs: Mapping[str, Tensor]  # of `Policy.outputs`, [1, ...]
    actions: Actions  # [1, *ActionSpec.shape]


class Moment(NamedTuple):
    """An episode as a spectator sees it: at its start, and after each decision."""

    score: float  # the episode's return so far, unclipped
    steps: int  # decisions so far
    picture: NDArray[np.uint8] | None  # [H, W, 3], the game's own; None without `render`
    decision: Decision | None = None  # which it leads to; None at the end, and without `explain`


class Player:
    """Plays episodes by a policy.

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
        explain: bool = False,  # tell what each decision is made by
        show_every: int = 1,  # of how many moments one is drawn and explained, beside the last
    ) -> None:
        """Raises ValueError if the environment cannot be made, or the weights do not fit it."""
        make_env(config, seed, render=render).close()  # here, where it is told if it can't be shown
        self.config = config
        self.policy = Policy(config, weights)
        self.seed = seed
        self.deterministic = deterministic
        self.render = render
        self.explain = explain
        self.show_every = show_every

    def begin(self, index: int) -> tuple[envs.VecEnv, torch.Generator]:
        """Episode `index`'s environment, not reset yet, and what its actions are drawn with."""
        state = np.random.SeedSequence([self.seed, index]).generate_state(2)
        env_seed, action_seed = (int(word) >> 1 for word in state)
        env = make_env(self.config, env_seed, render=self.render)
        return env, torch.Generator().manual_seed(action_seed)

    def episode(self, index: int, max_steps: int = 0) -> Iterator[Moment]:
        """Play episode `index`, or its first `max_steps` decisions if that is not 0."""
        new_env, generator = self.begin(index)
        with closing(new_env) as env:
            obs = env.reset()  # leaf -> [1, *shape]
            memory: Tensor | None = None
            score, steps, ended = 0.0, 0, False
            while True:
                ended = ended or steps == max_steps > 0
                is_shown = ended or steps % self.show_every == 0
                picture = env.render() if self.render and is_shown else None
                if ended:
                    yield Moment(score, steps, picture)
                    return
                outputs = self.policy.outputs(obs, memory) if self.explain and is_shown else None
                actions, memory = self.policy.decide(
                    obs, memory, deterministic=self.deterministic, generator=generator
                )
                decision = None if outputs is None else Decision(outputs, actions)
                yield Moment(score, steps, picture, decision)
                env.send(actions)
                result = env.recv()
                obs = result.obs
                score += float(result.rewards[0])
                steps += 1
                ended = bool(result.scored[0])


def make_env(config: Config, seed: int, *, render: bool) -> envs.VecEnv:
    """One environment as in training, except that a lost life does not end the episode."""
    return envs.make_vec_env(config.env, 1, seed, playing_options(config), render=render)


def real_fps(config: Config) -> float:
    """Decisions per second at the speed that the game is meant to be seen at."""
    return envs.fps(config.env, config.env_options) or _DEFAULT_FPS


class VideoError(OSError):
    """The video cannot be written."""


class Screen(Protocol):
    def show(self, picture: NDArray[np.uint8]) -> None:
        """Show the next picture, [H, W, 3]; one of another size than the first is fitted to it."""

    def close(self) -> None: ...


def _fit(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """As large as `size` (width, height) allows, between black bars; itself if it has that size."""
    height, width, _ = picture.shape
    if (width, height) == size:
        return np.ascontiguousarray(picture)
    return np.asarray(ImageOps.pad(Image.fromarray(picture), size))


class Video:
    """A video file that grows by a picture at a time; there is none before the first."""

    def __init__(self, path: str, fps: float, quality: int | None = None) -> None:
        """`quality` of an .mp4 is between 1, the smallest file, and 10; None: near the best."""
        self.path = path
        self.fps = fps
        self._quality = quality
        self._size = (0, 0)  # width, height
        self._writer: Generator[None, NDArray[np.uint8] | None, None] | None = None
        self._pictures = 0  # in it

    def show(self, picture: NDArray[np.uint8]) -> None:
        if self._writer is None:
            height, width, _ = picture.shape
            self._size = (width, height)
            options = _VIDEO_OPTIONS[Path(self.path).suffix]
            if self._quality is not None:
                options = {**options, "quality": self._quality}
            self._writer = imageio_ffmpeg.write_frames(
                self.path, self._size, fps=self.fps, macro_block_size=1, **options
            )
            self._writer.send(None)
        try:
            self._writer.send(_fit(picture, self._size))
        except OSError as error:
            self._writer = None
            width, height = self._size
            raise VideoError(
                f"video={self.path}, with pictures of {width}x{height}, could not be written, for "
                f"the reason that ffmpeg gives above"
            ) from error
        self._pictures += 1

    def close(self) -> None:
        """Raises VideoError: the file is not whole, as on a disk that has become full.

        Not where another exception is on its way, which tells more.
        """
        if self._writer is None:
            return
        self._writer.close()  # tells of nothing that ffmpeg could not write
        self._writer = None
        if sys.exc_info()[0] is not None:
            return
        try:
            found, _ = imageio_ffmpeg.count_frames_and_secs(self.path)
        except RuntimeError:  # it is no film
            found = 0
        if found < self._pictures:
            raise VideoError(
                f"video={self.path} has {found} of {self._pictures} pictures: there may be no room "
                f"where it lies"
            )


class Window:
    """A window that shows `fps` pictures a second. Raises ValueError if there is no display."""

    def __init__(self, title: str, fps: float) -> None:
        import pygame

        self.title = title
        self.fps = fps
        self._pygame = pygame
        self._clock = pygame.time.Clock()
        try:
            pygame.display.init()
        except pygame.error as error:
            raise ValueError(f"window=True: {error}; use --video=FILE.mp4") from error
        if pygame.display.get_driver() == "offscreen":  # SDL's last resort: drawn, never shown
            raise ValueError("window=True needs a display, and none is set; use --video=FILE.mp4")

    def show(self, picture: NDArray[np.uint8]) -> None:
        pygame = self._pygame
        if not pygame.display.get_surface():
            height, width, _ = picture.shape
            # Not only the first time: Gymnasium's own games quit pygame when they are closed.
            pygame.display.init()
            pygame.display.set_mode((width, height), pygame.SCALED | pygame.RESIZABLE)
            pygame.display.set_caption(self.title)
        surface = pygame.display.get_surface()
        size = surface.get_size()
        surface.blit(pygame.image.frombuffer(_fit(picture, size), size, "RGB"), (0, 0))
        pygame.display.flip()
        if pygame.event.get(pygame.QUIT):
            signal.raise_signal(signal.SIGINT)
        self._clock.tick(self.fps)

    def close(self) -> None:
        self._pygame.quit()
