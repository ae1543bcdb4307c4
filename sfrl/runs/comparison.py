"""Several runs beside each other: grouped over seeds, with what differs and how sure it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sfrl.runs.reader import METRICS, Run, value_at
from sfrl.settings.algorithms import config_from
from sfrl.settings.config import ConfigError
from sfrl.settings.environment import meaning
from sfrl.settings.fields import settings_of
from sfrl.settings.reports import ReportSettings

_SAMPLES = 10_000
# In which runs of one group may differ.
_OF_A_RUN = {
    *("seed", "run_dir", "resume", "train_seconds"),
    *("config", "tune", "tuned"),  # what they have set counts, not who has set it
    *settings_of(ReportSettings),
}


class Mean(NamedTuple):
    """Over the seeds of a group.

    Attributes:
        low, high: 95% of 10,000 bootstrap samples of the seeds lie between; None with one seed.
    """

    mean: float
    low: float | None
    high: float | None


class Group(NamedTuple):
    """Runs that differ in nothing but their seeds.

    Attributes:
        settings: those in which it differs from other groups of its environment.
        score: mean return of the last 100 episodes, at the end of each run.
        frames: which all runs of this environment have reached.
        score_there: the score when each run had so many frames.
    """

    env: str
    settings: dict[str, object]
    runs: list[Run]
    score: Mean | None
    best: Mean | None
    frames: int
    score_there: Mean | None
    minutes: Mean | None
    frames_per_s: Mean | None

    @property
    def label(self) -> str:
        return " ".join([self.env, *(f"{name}={value}" for name, value in self.settings.items())])


def compare(runs: Sequence[Run]) -> list[Group]:
    """In the order of the groups' first runs, one environment after the other."""
    groups = []
    for env in dict.fromkeys(run.env for run in runs):
        alike = [run for run in runs if run.env == env]
        settings = [_settings_of(run) for run in alike]
        names = differing_settings(settings)
        frames = int(min(run.latest("env_frames") or 0 for run in alike))
        members: dict[tuple[object, ...], tuple[dict[str, object], list[Run]]] = {}
        for run, values in zip(alike, settings, strict=True):
            meanings = tuple(meaning(name, values.get(name)) for name in names)
            own = {name: values.get(name) for name in names}
            members.setdefault(meanings, (own, []))[1].append(run)
        groups += [_group(env, own, group, frames) for own, group in members.values()]
    return groups


def differing_settings(runs: Sequence[Mapping[str, object]]) -> list[str]:
    """The names of those that are not the same in all runs, in the order of config.json."""
    names = dict.fromkeys(name for settings in runs for name in settings)
    return [
        name
        for name in names
        if name not in _OF_A_RUN and len({meaning(name, run.get(name)) for run in runs}) > 1
    ]


def _settings_of(run: Run) -> Mapping[str, object]:
    """Also those that were not there yet when it began; as they are, if no run could have them."""
    try:
        return dataclasses.asdict(config_from(dict(run.settings), str(run.folder)))
    except ConfigError:
        return run.settings


def _group(env: str, settings: dict[str, object], runs: list[Run], frames: int) -> Group:
    times = [run.latest("time_s") for run in runs]
    return Group(
        env,
        settings,
        runs,
        score=mean_of([run.latest("episode_return_mean") for run in runs]),
        best=mean_of([run.latest("best_episode_return_mean") for run in runs]),
        frames=frames,
        score_there=mean_of([score_at(run, frames) for run in runs]),
        minutes=mean_of([None if time is None else time / 60 for time in times]),
        frames_per_s=mean_of([run.latest("frames_per_s_average") for run in runs]),
    )


def score_at(run: Run, frames: int) -> float | None:
    """The score of the last record with so many frames, or fewer; None if it has none."""
    return value_at(run.folder / METRICS, "episode_return_mean", frames)


def mean_of(values: Sequence[float | None]) -> Mean | None:
    """None: one of them is missing, and the mean of the others would flatter."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    if len(known) == 1:
        return Mean(known[0], None, None)
    rng = np.random.default_rng(0)  # the same runs have the same interval
    samples = rng.choice(np.array(known, np.float64), (_SAMPLES, len(known))).mean(axis=1)
    low, high = np.percentile(samples, (2.5, 97.5)).tolist()
    return Mean(sum(known) / len(known), low, high)
