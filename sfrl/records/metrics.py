"""One record of numbers per reporting interval: to metrics.jsonl and to TensorBoard.

docs/metrics.md explains every name that appears in a record.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from sfrl.envs.gymnasium_envs import INFO_NAME, MAX_INFO
from sfrl.envs.logs import own_logger
from sfrl.records.timing import COMPONENT_STAGES, Kind, is_waiting, shares
from sfrl.settings.actor_critic import ActorCriticConfig

log = own_logger(__name__)

EPISODE_WINDOW = 100  # the score is the mean of this many episodes, as in the literature

_DIGITS = 5  # of measurements, for programs
_MAX_COUNT = 1 << 62  # of what is counted, in a checkpoint that may be a stranger's

# What the learner reports of any algorithm; an algorithm's own names are in its specification. All
# are explained in docs/metrics.md.
LEARNER_MEANS = ("total_loss", "grad_norm", "learning_rate", "policy_lag_mean")
LEARNER_MAXIMA = ("policy_lag_max",)
LEARNER_COUNTERS = ("learner_steps", "dropped_rows", "skipped_steps")

Record = dict[str, float | int | None]
"""Name to value; None where there is nothing to tell yet."""


class MetricsState(TypedDict):
    """What a resumed run needs of its metrics. Plain types: it travels in the checkpoint."""

    time_s: float
    episodes: int
    episode_returns: list[float]
    episode_lengths: list[int]
    best_episode_return_mean: float | None
    counters: dict[str, int]
    episode_info: NotRequired[dict[str, list[float]]]  # older checkpoints have none


def metrics_problem(state: object) -> str | None:
    """What keeps `state` from being a `MetricsState`; None if it is one."""
    if not isinstance(state, dict):
        return f"a {type(state).__name__}, not a dict"
    rules: dict[str, Callable[[object], bool]] = {
        "time_s": _is_number,
        "episodes": _is_count,
        "episode_returns": _are_of_a_window,
        "episode_lengths": _are_of_a_window,
        "best_episode_return_mean": lambda value: value is None or _is_number(value),
        "counters": lambda value: (
            isinstance(value, dict)
            and value.keys() <= set(LEARNER_COUNTERS)
            and all(map(_is_count, value.values()))
        ),
    }
    if not _are_infos(state.get("episode_info", {})):
        return f"episode_info is {state['episode_info']!r:.40}"
    for name, holds in rules.items():
        if name not in state or not holds(state[name]):
            return f"{name} is {state.get(name)!r:.40}"
    return None


def _is_number(value: object) -> bool:
    """Also one that is of no great length when it is written out, as an int may be."""
    return (isinstance(value, float) and math.isfinite(value)) or _is_count(value, -_MAX_COUNT)


def _is_count(value: object, low: int = 0) -> bool:
    return isinstance(value, int) and low <= value < _MAX_COUNT


def _are_of_a_window(value: object) -> bool:
    return isinstance(value, list) and len(value) <= EPISODE_WINDOW and all(map(_is_number, value))


def _are_infos(value: object) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= MAX_INFO
        and all(isinstance(name, str) and INFO_NAME.fullmatch(name) for name in value)
        and all(map(_are_of_a_window, value.values()))
    )


class RunMetrics:
    """Gathers what the processes report; `record` sums up the interval since the previous one.

    Lives in the trainer.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        start_s: float | None = None,  # when the run began, by the clock; None: now
        statistics: Sequence[str] = ActorCriticConfig.STATISTICS,  # of its algorithm
    ) -> None:
        self._clock = clock
        self._means = (*statistics, *LEARNER_MEANS)
        self._start = clock() if start_s is None else start_s
        self._episodes = 0
        self._returns: deque[float] = deque(maxlen=EPISODE_WINDOW)
        self._lengths: deque[int] = deque(maxlen=EPISODE_WINDOW)
        self._infos: dict[str, deque[float]] = {}
        self._has_left_out = False
        self._best_return_mean: float | None = None
        self._counters = dict.fromkeys(LEARNER_COUNTERS, 0)
        # Of the interval:
        self._learner_stats: dict[str, list[float]] = {}
        self._last_time_s = 0.0
        self._last_env_frames = 0
        self._last_stage_totals: dict[Kind, NDArray[np.float64]] = {}

    def add_episode(
        self, episode_return: float, length: int, info: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        """Count a finished episode.

        Args:
            episode_return: sum of the rewards as the environment gave them (the game's score).
            length: decisions in the episode.
            info: numbers that the environment tells of it. Of all that ever come the first
                `MAX_INFO` names count; a warning tells of the others, once.
        """
        self._episodes += 1
        self._returns.append(float(episode_return))
        self._lengths.append(int(length))
        left_out = []
        for name, value in info.items():
            if name in self._infos or len(self._infos) < MAX_INFO:
                self._infos.setdefault(name, deque(maxlen=EPISODE_WINDOW)).append(value)
            else:
                left_out.append(name)
        if left_out and not self._has_left_out:
            self._has_left_out = True
            log.warning(
                "the environment's info has numbers of more names than the %d that become metrics; "
                "left out: %s",
                *(MAX_INFO, ", ".join(left_out)),
            )
        score, best = self.score, self._best_return_mean
        if score is not None and (best is None or score > best):
            self._best_return_mean = score

    @property
    def score(self) -> float | None:
        """Mean return of the last `EPISODE_WINDOW` episodes; None before there are so many."""
        return _mean(self._returns) if len(self._returns) == EPISODE_WINDOW else None

    def add_learner_stats(self, stats: Mapping[str, float]) -> None:
        """Take one report of the learner: its algorithm's statistics, and the `LEARNER_...` names.

        Means are averaged over the interval's reports and maxima maximized, both without
        non-finite values: a skipped step must not hide the good ones. Of a counter, the latest
        value is kept.

        Raises:
            KeyError: a name is not known, so docs/metrics.md cannot explain it.
        """
        for name, value in stats.items():
            if name in LEARNER_COUNTERS:
                self._counters[name] = int(value)
            elif name not in self._means + LEARNER_MAXIMA:
                raise KeyError(
                    f"learner statistic {name!r} is unknown; add it to the algorithm's "
                    f"specification and to docs/metrics.md"
                )
            elif math.isfinite(value):
                self._learner_stats.setdefault(name, []).append(float(value))

    def record(
        self,
        *,
        env_frames: int,
        env_steps: int,
        stage_totals: Mapping[Kind, NDArray[np.float64]],
        dropped_reports: int = 0,
        worker_restarts: int = 0,
        discarded_steps: int = 0,
        write_failures: int = 0,
    ) -> Record:
        """Sum up the interval since the previous record and begin the next one.

        Args:
            env_frames: emulated frames (frame skip counted) of the run so far.
            env_steps: decisions of the run so far.
            stage_totals: for each component, [processes, stages] seconds: the totals that its
                `StageTimer`s write.
            dropped_reports: reports that found no room in their mailbox, of this start so far.
            worker_restarts: rollout workers started again, of this start so far.
            discarded_steps: decisions lost with them, of this start so far.
            write_failures: checkpoints and records that the disk did not take, likewise.

        Returns:
            Always the same names in the same order, each explained in docs/metrics.md; then those
            of the environment, as they come up.
        """
        time_s = self._clock() - self._start
        interval_s = time_s - self._last_time_s
        record: Record = {
            "time_s": round(time_s, 3),
            "env_frames": int(env_frames),
            "env_steps": int(env_steps),
            "learner_steps": self._counters["learner_steps"],
            "frames_per_s": _ratio(env_frames - self._last_env_frames, interval_s),
            "frames_per_s_average": _ratio(env_frames, time_s),
            "episodes": self._episodes,
            "episode_return_mean": _mean(self._returns),
            "episode_return_min": min(self._returns, default=None),
            "episode_return_max": max(self._returns, default=None),
            "best_episode_return_mean": self._best_return_mean,
            "episode_length_mean": _mean(self._lengths),
        }
        for name in self._means:
            record[name] = _mean(self._learner_stats.get(name, ()))
        for name in LEARNER_MAXIMA:
            record[name] = max(self._learner_stats.get(name, ()), default=None)
        record["dropped_rows"] = self._counters["dropped_rows"]
        record["skipped_steps"] = self._counters["skipped_steps"]
        record["dropped_reports"] = int(dropped_reports)
        record["worker_restarts"] = int(worker_restarts)
        record["discarded_steps"] = int(discarded_steps)
        record["write_failures"] = int(write_failures)
        for component in COMPONENT_STAGES:
            record |= self._stage_shares(component, stage_totals.get(component))
        record |= {f"info/{name}": _mean(values) for name, values in self._infos.items()}

        self._learner_stats.clear()
        self._last_time_s = time_s
        self._last_env_frames = env_frames
        return record

    def state(self) -> MetricsState:
        """What `load_state` needs to go on."""
        return {
            "time_s": self._clock() - self._start,
            "episodes": self._episodes,
            "episode_returns": list(self._returns),
            "episode_lengths": list(self._lengths),
            "best_episode_return_mean": self._best_return_mean,
            "counters": dict(self._counters),
            "episode_info": {name: list(values) for name, values in self._infos.items()},
        }

    def load_state(self, state: MetricsState, *, env_frames: int) -> None:
        """Go on where a checkpoint left off; `env_frames` are the frames it counts."""
        self._start = self._clock() - state["time_s"]
        self._episodes = state["episodes"]
        self._returns = deque(state["episode_returns"], maxlen=EPISODE_WINDOW)
        self._lengths = deque(state["episode_lengths"], maxlen=EPISODE_WINDOW)
        self._best_return_mean = state["best_episode_return_mean"]
        self._infos = {
            name: deque(values, maxlen=EPISODE_WINDOW)
            for name, values in state.get("episode_info", {}).items()
        }
        self._counters |= state["counters"]
        self._last_time_s = state["time_s"]
        self._last_env_frames = env_frames

    def _stage_shares(self, component: Kind, totals: NDArray[np.float64] | None) -> Record:
        stages = COMPONENT_STAGES[component]
        fractions = dict.fromkeys(stages, math.nan)
        if totals is not None:
            totals = totals.copy()  # the processes go on writing it
            before = self._last_stage_totals.get(component, np.zeros_like(totals))
            fractions = shares(stages, before, totals)
            self._last_stage_totals[component] = totals
        waiting = sum(share for stage, share in fractions.items() if is_waiting(stage))
        fractions |= {"working": 1 - waiting, "waiting": waiting}
        return {f"{component}/{stage}": finite(share) for stage, share in fractions.items()}


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator > 0 else None


def finite(value: float | int | None) -> float | int | None:
    return value if value is not None and math.isfinite(value) else None


def rounded(value: object) -> object:
    """All floats to `_DIGITS` significant digits, in any depth; JSON has no NaN: None."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value
