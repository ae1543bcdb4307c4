"""Videos of a run that goes on (--video-every), played and filmed by a process of its own.

It lives while it films, and takes only the time that nobody else wants: the newest checkpoint plays
some episodes, and videos/ in the run's folder gets the last one that ended, and the best one if
that is another.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sfrl import envs
from sfrl.callbacks.callback import Callback, RunStart
from sfrl.envs.logs import own_logger, printable
from sfrl.records.metrics import Record
from sfrl.run.apart import Apart, EndedError, apart, give_way
from sfrl.run.child import die_with_parent
from sfrl.run.watchdog import START_LIMIT_S
from sfrl.settings.config import Config

if TYPE_CHECKING:
    from sfrl.show.player import Player

log = own_logger(__name__)

_EPISODES = 5  # of each interval, at most
_SHARE = 0.2  # of the interval, after which no further episode begins
_MOST_PLAYED_S = 600.0  # of an episode, at the speed at which it is watched: 2 MB of Pong
_TOLD_S = 1.0  # for what a process has told that has ended


class Film(NamedTuple):
    path: str
    score: float


class Filming(Callback):
    """Once in `video_every` seconds, when a checkpoint has been written, films what it plays."""

    def __init__(self, config: Config, signals: Sequence[int] = ()) -> None:
        """Look whether the environment can be shown, in a process of its own.

        Args:
            signals: the look is given up once there is one in it.

        Raises:
            ValueError: it cannot.
            MemoryError: the process could not be started.
            Stopped: there is a signal.
        """
        check_shown(config, signals)
        self._every_s = config.video_every
        self._next_s = self._limit_s = 0.0  # on the monotonic clock: the next start; the end
        self._stack = ExitStack()  # ends the process
        self._child: Apart | None = None

    def begin(self, run: RunStart) -> None:
        self._run_dir = run.run_dir
        self._next_s = time.monotonic() + self._every_s

    def checkpoint(self, path: Path) -> None:
        self._look()
        now = time.monotonic()
        if self._child is not None or now < self._next_s:
            return
        self._next_s += self._every_s * (1 + (now - self._next_s) // self._every_s)
        self._limit_s = now + max(self._every_s, START_LIMIT_S)
        what = "sfrl.run.filming:film", "film", "films", str(self._run_dir), self._every_s
        try:
            self._child = self._stack.enter_context(apart(*what))
        except (MemoryError, OSError) as error:  # no process, or no file left
            log.warning("no video: %s", error)

    def report(self, record: Record) -> None:
        self._look()

    def end(self) -> None:
        self._look()
        self._end()

    def _look(self) -> None:
        """Take what a process that has ended tells, and end one that goes on and on."""
        if self._child is None:
            return
        if self._child.process.poll() is None:
            if time.monotonic() > self._limit_s:
                self._end()
                log.warning("no video: its process took more than the interval, and was ended")
            return
        try:
            films = self._child.receive(_TOLD_S)
        except EndedError as error:
            log.warning("no video: the process that films %s", printable(str(error)))
        else:
            told = ", ".join(f"{film.path} (score {film.score:g})" for film in films)
            log.info("video: %s", told)
        self._end()

    def _end(self) -> None:
        self._stack.close()
        if self._child is not None:
            self._child = None
            _remove_unfinished(self._run_dir / "videos")


def check_shown(config: Config, signals: Sequence[int] = ()) -> None:
    """Raises ValueError if the environment gives no pictures; else as `Filming`."""
    given = (config.env, dataclasses.asdict(config.env_options))
    with apart("sfrl.run.filming:show", "look", f"shows {config.env}", *given) as child:
        try:
            problem = child.receive(max(START_LIMIT_S, config.env_timeout), signals)
        except EndedError as error:
            problem = f"its process {error}"
        except TimeoutError:
            problem = "it took too long"
    if problem is not None:
        raise ValueError(f"env={config.env} cannot be filmed: {problem}")


def _remove_unfinished(videos: Path) -> None:
    with suppress(OSError):  # the folder, or its disk, is gone
        for path in videos.glob("unfinished-*.mp4"):
            path.unlink()


# --- in the child ---


def show(sender: connection.Connection, parent: int, env: str, options: dict[str, Any]) -> None:
    """Send None if there is a picture, or why there is none."""
    die_with_parent(parent)
    sender.send(picture_problem(env, envs.EnvOptions(**options)))


def picture_problem(env: str, options: envs.EnvOptions) -> str | None:
    """Why the environment gives no picture; None: it gives one. It is made here."""
    try:
        with closing(envs.make_vec_env(env, 1, 0, options, render=True)) as made:
            made.reset()
            made.render()
    except (ValueError, envs.EnvError) as error:
        return " ".join(str(error).split())
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # of code that is not ours
        return envs.in_one_line(error)
    return None


def film(sender: connection.Connection, parent: int, run_dir: str, every_s: float) -> None:
    """Film what the newest checkpoint plays, and send the films, the latest first."""
    die_with_parent(parent)
    give_way()  # ffmpeg as well
    import torch

    from sfrl.records import checkpoint
    from sfrl.settings.algorithms import config_from
    from sfrl.show.player import Player, real_fps

    torch.set_num_threads(1)
    state, path = checkpoint.load_latest(run_dir)
    config = config_from(state["config"], str(path))
    frames = int(state["counters"]["env_frames"])
    fps = real_fps(config)
    player = Player(config, state["model"], seed=frames, render=True)
    videos = Path(run_dir, "videos")
    videos.mkdir(exist_ok=True)
    takes = _play(player, fps, videos, time.monotonic() + _SHARE * every_s)
    latest, best = takes[-1], max(reversed(takes), key=lambda take: take.score)
    films = []
    for name, take in [("latest", latest), ("best", best)][: 1 if best is latest else 2]:
        to = videos / f"{frames:012d}-{name}.mp4"
        os.replace(take.path, to)
        films.append(Film(str(to), take.score))
    _remove_unfinished(videos)
    sender.send(films)


def _play(player: Player, fps: float, folder: Path, end_s: float) -> list[Film]:
    """Films of some episodes, in their order; none begins after `end_s`, on the monotonic clock,
    but the first."""
    from sfrl.show.player import Video

    takes: list[Film] = []
    for index in range(_EPISODES):
        path = str(folder / f"unfinished-{index}.mp4")
        with closing(Video(path, fps)) as video:
            for moment in player.episode(index, math.ceil(_MOST_PLAYED_S * fps)):
                assert moment.picture is not None
                video.show(moment.picture)
        takes.append(Film(path, moment.score))
        if time.monotonic() > end_s:
            break
    return takes
