"""An agent that plays for those who watch: the process of its own that a page's panel shows.

It tells what it does in JSON: {"waiting": why nothing plays yet}, {"problem": why nothing more will
come}, or a `_Frame`'s fields. It takes only the time that nobody else wants.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from enum import EnumType
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray
from PIL import Image

from sfrl import envs
from sfrl.envs.spaces import choice_sizes
from sfrl.envs.vec_env import Actions
from sfrl.records import checkpoint
from sfrl.records.checkpoint import CheckpointError
from sfrl.records.metrics import rounded
from sfrl.run.apart import give_way
from sfrl.run.child import die_with_parent
from sfrl.run.filming import picture_problem
from sfrl.settings.algorithms import config_from

if TYPE_CHECKING:
    from sfrl.policy import Policy
    from sfrl.show.player import Moment

_MOST_FPS = 30  # pictures a second
_MOST_PLAYED_S = 600.0  # of an episode; the newest checkpoint then begins another
_PAUSE_S = 1.0  # at the end of an episode, to see how it ended; between two looks for a checkpoint
_MOST_SCORES = 10  # of episodes that have ended
_MOST_BARS = 20  # of a choice's values, the likeliest; and of numbers
_LOWEST = np.finfo(np.float32).min  # an action's value that a mask has set
_MOST_SIDE = 640  # pixels of a picture
_MOST_COLORS = 256  # of a drawn picture, which PNG keeps exact and small
_JPEG_QUALITY = 85


class _Choice(NamedTuple):
    name: str  # "" where there is one alone
    bars: list[tuple[str, float | None]]  # probabilities, or values; None: a mask forbids it
    rest: float | None  # the probability of all others together; None: these are all, or values
    taken: str  # the name of what was decided


class _Number(NamedTuple):
    """As the environment has it."""

    name: str
    low: float | None  # None: no bound
    high: float | None
    mean: float
    below: float  # a standard deviation below the mean, within the bounds
    above: float
    taken: float


class _Frame(NamedTuple):
    """A moment of an episode, and what was decided then."""

    episode: int  # from 1 on
    score: float  # so far
    steps: int
    frames: int  # of the checkpoint that plays
    scores: list[float]  # of the last episodes that have ended
    picture: str | None  # base64
    picture_type: str
    no_picture: str | None  # why there is none
    value: float | None  # of what is seen, in units of the reward; None: not known, or the end
    are_values: bool  # of actions, rather than probabilities
    choices: list[dict[str, object]]  # `_Choice`; [] at the end
    numbers: list[dict[str, object]]  # `_Number`


def play(sender: connection.Connection, parent: int, run_dir: str) -> None:
    """Send what the newest checkpoint plays, episode after episode, without end."""
    die_with_parent(parent)
    give_way()
    _leave_the_terminal()
    play_on(sender, Path(run_dir))


def _leave_the_terminal() -> None:
    """Linux shares the cores evenly between terminals (autogroups), whatever the priorities of
    what runs in each: a training in another one would lose half of a core to this process."""
    os.setsid()
    with suppress(OSError):  # a kernel without them, or a sandbox
        Path("/proc/self/autogroup").write_text("19")


def play_on(sender: connection.Connection, run_dir: Path) -> None:
    """`play`, in this process as it is, until there is a problem."""
    try:
        _play(sender, run_dir)
    except (CheckpointError, ValueError, envs.EnvError) as error:
        _tell(sender, {"problem": " ".join(str(error).split())})


def _play(sender: connection.Connection, run_dir: Path) -> None:
    while not (paths := checkpoint.latest_paths(run_dir)):
        _tell(sender, {"waiting": "The run has no checkpoint yet."})
        time.sleep(_PAUSE_S)
    agent, newest = _Agent(run_dir), paths[0]
    scores: deque[float] = deque(maxlen=_MOST_SCORES)
    for index in itertools.count():
        next_s = time.monotonic()
        for moment in agent.player.episode(index, math.ceil(_MOST_PLAYED_S * agent.fps)):
            if moment.decision is not None:
                _tell(sender, agent.frame(index + 1, moment, [*scores])._asdict())
            next_s += 1 / agent.fps
            now = time.monotonic()
            time.sleep(max(0.0, next_s - now))
            next_s = max(next_s, now)  # what is late is not caught up with
        scores.append(moment.score)
        _tell(sender, agent.frame(index + 1, moment, [*scores])._asdict())
        time.sleep(_PAUSE_S)
        if (paths := checkpoint.latest_paths(run_dir)) and paths[0] != newest:
            agent, newest = _Agent(run_dir), paths[0]


def _tell(sender: connection.Connection, told: Mapping[str, object]) -> None:
    sender.send(json.dumps(rounded(told), allow_nan=False))


class _Agent:
    """The newest checkpoint that can be read, and how what it does is told.

    Raises:
        CheckpointError: there is none.
        ValueError: its environment cannot be made, or the weights do not fit it.
    """

    def __init__(self, run_dir: Path) -> None:
        import torch

        from sfrl.show.player import Player, real_fps

        torch.set_num_threads(1)
        state, path = checkpoint.load_latest(run_dir)
        config = config_from(state["config"], str(path))
        self.frames = int(state["counters"]["env_frames"])
        self.fps = real_fps(config)
        self.no_picture = picture_problem(config.env, config.env_options)
        self.player = Player(
            config,
            state["model"],
            seed=self.frames,
            render=self.no_picture is None,
            explain=True,
            show_every=math.ceil(self.fps / _MOST_FPS),
        )
        policy = self.player.policy
        self._layout = policy.translation.layout
        self._labels = list(_labels(policy))  # of each choice: its name, and its values'
        self._number_names = [
            name
            for path, leaf in self._layout.leaves
            if isinstance(leaf, Box)
            for name in _names(path, "number", int(np.prod(leaf.shape)))
        ][:_MOST_BARS]

    def frame(self, episode: int, moment: Moment, scores: list[float]) -> _Frame:
        decision = moment.decision
        choices: list[_Choice] = []
        numbers: list[_Number] = []
        outputs: dict[str, NDArray[np.float32]] = {}
        if decision is not None:
            outputs = {name: output[0].numpy() for name, output in decision.outputs.items()}
            taken = decision.actions.reshape(-1)
            choices, numbers = [*self._choices(outputs, taken)], [*self._numbers(outputs, taken)]
        value = outputs.get("value")
        picture, picture_type = None, ""
        if moment.picture is not None:
            picture, picture_type = _encoded(moment.picture)
        return _Frame(
            episode,
            moment.score,
            moment.steps,
            self.frames,
            scores,
            picture,
            picture_type,
            self.no_picture,
            None if value is None else float(value),
            "q_values" in outputs,
            [choice._asdict() for choice in choices],
            [number._asdict() for number in numbers],
        )

    def _choices(
        self, outputs: Mapping[str, NDArray[np.float32]], row: Actions
    ) -> Iterator[_Choice]:
        given = outputs.get("q_values", outputs.get("logits"))
        if given is None:
            return
        are_values = "q_values" in outputs
        each = np.split(given.astype(np.float64), np.cumsum(self._layout.spec.choices)[:-1])
        for (name, labels), heights, taken in zip(self._labels, each, row.tolist(), strict=False):
            if not are_values:
                likely = np.exp(heights - heights.max())
                heights = likely / likely.sum()
            shown = np.sort(np.argsort(-heights, kind="stable")[:_MOST_BARS])
            is_all = are_values or len(shown) == len(labels)
            rest = None if is_all else float(1 - heights[shown].sum())
            bars = [(labels[i], float(heights[i]) if heights[i] > _LOWEST else None) for i in shown]
            yield _Choice(name, bars, rest, labels[int(taken)])

    def _numbers(
        self, outputs: Mapping[str, NDArray[np.float32]], row: Actions
    ) -> Iterator[_Number]:
        if "mean" not in outputs:
            return
        mean, std = outputs["mean"], np.exp(outputs["log_std"])
        taken = row[-len(mean) :]
        own = self._layout.numbers(np.stack([mean, mean - std, mean + std, taken]))
        spec = self._layout.spec
        for column in zip(self._number_names, spec.low, spec.high, *own.tolist(), strict=False):
            yield _Number(*column)


def _labels(policy: Policy) -> Iterator[tuple[str, list[str]]]:
    layout = policy.translation.layout
    if layout.spec.is_single and (names := _action_names(policy)):
        yield "", names
        return
    for path, leaf in layout.leaves:
        sizes = choice_sizes(leaf)
        starts = np.broadcast_to(getattr(leaf, "start", 0), leaf.shape or ()).reshape(-1)
        names = [""] if layout.spec.is_single else _names(path, "choice", len(sizes))
        for name, size, start in zip(names, sizes, starts.tolist(), strict=False):
            yield name, [str(start + i) for i in range(size)]


def _names(path: Sequence[object], what: str, count: int) -> list[str]:
    """Of the choices or numbers in a leaf of the action space."""
    name = " ".join(map(str, path)) or what
    return [f"{name} {i}" for i in range(count)] if count > 1 else [name]


def _action_names(policy: Policy) -> list[str]:
    """As the environment calls its actions, in one of the ways that are usual; [] if it does not.

    Those are ALE's method, and MiniGrid's enumeration.
    """
    with closing(policy.make_env()) as env:
        own = getattr(env, "unwrapped", env)
        meanings = getattr(own, "get_action_meanings", None)
        if callable(meanings):
            names = [str(meaning) for meaning in meanings()]
        else:
            kind = getattr(own, "actions", None)
            names = list(kind.__members__) if isinstance(kind, EnumType) else []
    return names if len(names) == policy.spec.actions.choices[0] else []


def _encoded(picture: NDArray[np.uint8]) -> tuple[str, str]:
    """In base64, and its type."""
    image = Image.fromarray(picture)
    image.thumbnail((_MOST_SIDE, _MOST_SIDE))
    is_drawn = image.getcolors(_MOST_COLORS) is not None
    kind = "png" if is_drawn else "jpeg"
    file = io.BytesIO()
    image.save(file, kind, **({} if is_drawn else {"quality": _JPEG_QUALITY}))
    return base64.b64encode(file.getvalue()).decode(), f"image/{kind}"
