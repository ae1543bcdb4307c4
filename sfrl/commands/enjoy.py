"""`sfrl enjoy`: an agent plays, in a window, a film or for its scores alone."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import sys
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import gymnasium
import numpy as np

from sfrl import envs
from sfrl.commands import EXIT_FAILURE, EXIT_USAGE
from sfrl.envs.logs import printable
from sfrl.records import checkpoint, run_folder
from sfrl.run.description import describe
from sfrl.settings import synonyms
from sfrl.settings.algorithms import config_from
from sfrl.settings.flags import parse_flags

if TYPE_CHECKING:
    from sfrl.show.evaluation import Outcome
    from sfrl.show.player import Player, Screen

REFUSALS = (ValueError, MemoryError, checkpoint.CheckpointError, gymnasium.error.Error)
VIDEO_ENDINGS = (".mp4", ".gif")


@dataclass(frozen=True, kw_only=True)
class AgentArgs:
    """Who plays."""

    run_dir: str = ""
    """The run's folder. Empty: the newest one in runs/."""
    checkpoint: str = "latest"
    """latest, best, or the path of a checkpoint, which may be of any run."""
    deterministic: bool = False
    """Take the likeliest action. By default actions are sampled, as in training."""


@dataclass(frozen=True, kw_only=True)
class EpisodeArgs:
    """What is played."""

    episodes: int = 10
    """Whole games to play: a lost life does not end one."""
    seed: int = 0
    """The same seed gives the same episodes."""
    num_envs: int = 16
    """Most environments that are played at once, where nothing is shown: actions are chosen for all
    of them together. Episodes are the same with any number of them."""
    max_steps: int = 0
    """Cut each episode off after this many decisions; its score so far counts. 0: never."""


@dataclass(frozen=True, kw_only=True)
class ScreenArgs:
    """How it is shown."""

    video: str = ""
    """Write all pictures to this file, FILE.mp4 or FILE.gif. Empty: no video."""
    window: bool = False
    """Show the game in a window. Closing it is like Ctrl-C: the episode does not count."""
    fps: float = 0.0
    """Pictures per second, of video and window. 0: the game's real speed."""


@dataclass(frozen=True, kw_only=True)
class Args(ScreenArgs, EpisodeArgs, AgentArgs):
    def check(self) -> None:
        """Raises ValueError: the text lists every problem."""
        problems = [
            f"{name}={getattr(self, name)} must be at least {low}"
            for name, low in {"episodes": 1, "num_envs": 1, "seed": 0, "max_steps": 0}.items()
            if getattr(self, name) < low
        ]
        if not 0 <= self.fps < math.inf:  # NaN fails too
            problems.append(f"fps={self.fps} must be above 0, or 0 for the game's real speed")
        if self.video:
            path = Path(self.video)
            if path.suffix not in VIDEO_ENDINGS:
                problems.append(
                    f"video={path} must end in {' or '.join(VIDEO_ENDINGS)}, its two formats"
                )
            try:
                run_folder.file_to_write("video", self.video, is_replaced=True)
            except run_folder.RunFolderError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("\n".join(problems))


def main(argv: Sequence[str], prog: str) -> int:
    """Run `sfrl enjoy` with these arguments; returns its exit code.

    Args:
        prog: what the user has called, for `--help` and errors.
    """
    signals = _note_signals()
    with ExitStack() as stack:
        try:
            started_in = run_folder.started_in()  # an environment may go elsewhere
            args = parse_flags(argv, Args(), synonyms.OF_ENJOY, prog, "Watch an agent play.")
            paths = {name: getattr(args, name) for name in ("run_dir", "checkpoint", "video")}
            paths = {name: run_folder.expanded(name, path) for name, path in paths.items()}
            args = dataclasses.replace(args, **paths)
            args.check()
            player, screens = _prepare(args, stack)
        except REFUSALS as error:
            print(printable(f"{prog}: {error}"), file=sys.stderr)
            return EXIT_USAGE
        if signals:  # nothing was played, and a film that is there is an older one
            return 128 + signals[0]
        # `_prepare` has imported torch.
        from sfrl.show.player import VideoError

        try:
            summary = _summary(_play(player, screens, args, signals))
            stack.close()  # only now is there a film
            has_film = args.video and (started_in / args.video).exists()
            _tell(json.dumps(summary | {"video": args.video if has_film else None}))
        except (envs.EnvError, gymnasium.error.Error, VideoError, _UnreadError) as error:
            print(printable(f"{prog}: {error}"), file=sys.stderr)
            with suppress(VideoError):  # one problem is told
                stack.close()
            return EXIT_FAILURE
    return 0


class _UnreadError(OSError):
    """Nobody reads what is printed, or there is no room for it."""


def _tell(text: str) -> None:
    """Raises _UnreadError."""
    try:
        print(text, flush=True)
    except OSError as error:
        raise _UnreadError(f"the scores cannot be printed: {error.strerror}") from error


def _summary(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """What the last line holds; of several episodes a line for people is printed as well."""
    from sfrl.show import evaluation

    returns = [outcome.score for outcome in outcomes]
    lengths = [outcome.steps for outcome in outcomes]
    interval = evaluation.mean_interval(returns)
    if interval is not None:
        _tell(
            f"score {np.mean(returns):.4g}, 95% interval {interval[0]:.4g} to {interval[1]:.4g}; "
            f"{len(returns)} episodes of {min(lengths)} to {max(lengths)} decisions, "
            f"{np.mean(lengths):.4g} on average"
        )
    return {
        "episodes": len(returns),
        "episode_return_mean": float(np.mean(returns)) if returns else None,
        "episode_return_interval": interval,
        "episode_return_std": float(np.std(returns)) if returns else None,
        "episode_returns": returns,
        "episode_length_mean": float(np.mean(lengths)) if lengths else None,
        "episode_lengths": lengths,
    }


def _prepare(args: Args, stack: ExitStack) -> tuple[Player, list[Screen]]:
    """The player and the screens, which `stack` closes.

    Raises:
        ValueError, checkpoint.CheckpointError: something is missing, damaged or does not fit.
    """
    # Here, because torch takes seconds to import and a mistyped flag should not have to wait.
    import torch

    from sfrl.policy import find_checkpoint
    from sfrl.show.player import Player, Video, Window, real_fps

    video_path = Path(args.video).absolute()  # before an environment may go elsewhere
    state, path = find_checkpoint(args.run_dir, args.checkpoint)
    config = config_from(state["config"], str(path))
    describe(config.env, config.env_options, config.env_timeout)  # tells why it cannot be made
    print(printable(f"{config.env} by {path}"), file=sys.stderr)
    torch.set_num_threads(1)  # one observation at a time is too little work to share
    player = Player(
        config,
        state["model"],
        seed=args.seed,
        deterministic=args.deterministic,
        render=bool(args.video) or args.window,
    )
    fps = args.fps or real_fps(config)
    screens: list[Screen] = []
    if args.window:
        screens.append(Window(f"{config.env}: {path}", fps))
    if args.video:
        screens.append(Video(str(video_path), fps))
    for screen in screens:
        stack.callback(screen.close)
    return player, screens


def _play(player: Player, screens: list[Screen], args: Args, signals: list[int]) -> list[Outcome]:
    """The episodes from the first on, until the number asked for, or a signal, is reached."""
    from sfrl.show.evaluation import evaluate

    outcomes: list[Outcome] = []
    with closing(
        _shown(player, screens, args)
        if screens
        else evaluate(player, args.episodes, args.num_envs, args.max_steps)
    ) as steps:
        while not signals and (new := next(steps, None)) is not None:
            for outcome in new:
                outcomes.append(outcome)
                what = f"{outcome.score:g} in {outcome.steps} decisions"
                _tell(f"episode {len(outcomes)}: {what}")
    return outcomes


def _shown(player: Player, screens: list[Screen], args: Args) -> Generator[list[Outcome]]:
    """One episode after the other on the screens; as `evaluate` otherwise."""
    from sfrl.show.evaluation import Outcome

    for index in range(args.episodes):
        for moment in player.episode(index, args.max_steps):
            if moment.picture is not None:
                for screen in screens:
                    screen.show(moment.picture)
            yield []
        yield [Outcome(moment.score, moment.steps)]


def _note_signals() -> list[int]:
    """Let Ctrl-C and SIGTERM only be noted in the list returned; a second one kills."""
    received: list[int] = []

    def note(signum: int, _frame: FrameType | None) -> None:
        received.append(signum)
        signal.signal(signum, signal.SIG_DFL)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, note)
    return received
