"""What a child process tells the trainer, and the trainer the learner: all of no fixed size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from sfrl.records.metrics import MetricsState


class EpisodeEnded(NamedTuple):
    """The game's own score, unclipped, and the length in decisions."""

    episode_return: float
    length: int
    env_index: int  # among all environments of the run, as in `SlotMap.columns`
    info: Mapping[str, float] = {}  # the numbers in its last `info`; nobody edits it


class LearnerReport(NamedTuple):
    """One training batch: means over its optimizer steps, and totals since the start."""

    metrics: dict[str, float]
    lag_counts: list[int]  # rows by policy lag, the last bin holds all above


class CheckpointSaved(NamedTuple):
    path: str
    best_score: float | None  # that of best.pt, if this one was kept as such, too
    is_last: bool = False  # it answers the request for the run's last one


class CheckpointFailed(NamedTuple):
    """The disk did not take it; those that were there still are."""

    reason: str
    what: str = "the checkpoint"  # or best.pt


class Notice(NamedTuple):
    """A line for the log, at a level of `logging`."""

    level: int
    text: str


class EndsRun(RuntimeError):
    """Another process in the place of the one that raises it would fail alike: none is started."""


class Failure(NamedTuple):
    """What a child says before it exits with code 1."""

    traceback: str
    ends_run: bool  # the user wants no other process in its place


Report = EpisodeEnded | LearnerReport | CheckpointSaved | CheckpointFailed | Notice | Failure
"""What a child tells the trainer."""


class CheckpointRequest(NamedTuple):
    """The trainer to the learner. `best_score` is set if the weights are to be kept as the best.

    After the run's last checkpoint the learner trains no more: it would be lost.
    """

    metrics: MetricsState
    best_score: float | None
    is_last: bool = False
