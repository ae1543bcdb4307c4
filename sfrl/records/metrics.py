"""One record of numbers per reporting interval: to metrics.jsonl and to TensorBoard.

docs/metrics.md explains every name that appears in a record.
"""

import json
import math
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import BinaryIO, NotRequired, Self, TypedDict

import numpy as np
from numpy.typing import NDArray

from sfrl.envs.gymnasium_envs import INFO_NAME, MAX_INFO
from sfrl.records.run_folder import is_at, open_new, open_to_append, reopened_to_append
from sfrl.records.timing import COMPONENT_STAGES, Kind, is_waiting, shares
from sfrl.settings.actor_critic import ActorCriticConfig

EPISODE_WINDOW = 100  # the score is the mean of this many episodes, as in the literature

_MAX_LINE = 1 << 20  # bytes of a record in metrics.jsonl, at most
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
                `MAX_INFO` names count.
        """
        self._episodes += 1
        self._returns.append(float(episode_return))
        self._lengths.append(int(length))
        for name, value in info.items():
            if name in self._infos or len(self._infos) < MAX_INFO:
                self._infos.setdefault(name, deque(maxlen=EPISODE_WINDOW)).append(value)
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
            dropped_reports: reports that did not fit into their queue, of this start so far.
            worker_restarts: rollout workers started anew, of this start so far.
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
        return {f"{component}/{stage}": _finite(share) for stage, share in fractions.items()}


class MetricsWriter:
    """Appends records to `metrics.jsonl` and to TensorBoard event files in `run_dir`.

    Each record is on disk when `write` returns, so a killed run loses none. In TensorBoard the
    x axis is `env_frames`, and names without a component stand under `run/`.

    Args:
        run_dir: created if missing.
        resume_frames: `env_frames` of the checkpoint that the run goes on from. Records beyond it
            tell of frames that will be played anew: they leave metrics.jsonl, and TensorBoard is
            told to hide them, so both hold one curve. None: every record stays.
        is_ours: whether the folder is still this run's: no other's files are written.
    """

    def __init__(
        self,
        run_dir: Path | str,
        *,
        resume_frames: int | None = None,
        is_ours: Callable[[], bool] = lambda: True,
    ) -> None:
        # Imported here because it takes 0.3 s, and only the trainer's process ever writes.
        # (tensorboardX and torch.utils.tensorboard would import torch.)
        from tensorboard.compat.proto import event_pb2, summary_pb2  # type: ignore[import-untyped]
        from tensorboard.summary.writer import record_writer  # type: ignore[import-untyped]

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._histogram = summary_pb2.HistogramProto
        run_dir = Path(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        lines_path = run_dir / "metrics.jsonl"
        if lines_path.exists():
            _cut_lines(lines_path, resume_frames)
        self._is_ours = is_ours
        self._lines = GrowingFile(lines_path, separator=b"\n", is_ours=is_ours)
        self._make_writer = record_writer.RecordWriter
        self._run_dir = run_dir
        try:
            self._begin_events(self._new_events_file())
        except OSError:
            self._lines.close()
            raise
        if resume_frames is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            # TensorBoard hides the events of this step and later that came before this one.
            self._add_event(resume_frames + 1, session_log=start)

    def _new_events_file(self) -> "GrowingFile":
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        return GrowingFile(self._run_dir / name, is_ours=self._is_ours)

    def _begin_events(self, file: "GrowingFile") -> None:
        # TensorBoard's own writer has a thread, which dies of a full disk.
        self._events_file, self._events = file, self._make_writer(file)
        try:
            self._add_event(None, file_version="brain.Event:2")
        except OSError:
            file.close()
            raise

    def write(self, record: Record, policy_lag_counts: Sequence[int] | None = None) -> None:
        """Append one record. Files that were deleted come back with what they held.


        Args:
            record: as `RunMetrics.record` builds it. NaN and infinity become null.
            policy_lag_counts: [max lag + 1] rows of the interval by their policy lag.

        Raises:
            TypeError: a value is not a plain number.
            OSError: the disk is full, say. The record waits, and is written with a later one.
        """
        record = {name: _finite(value) for name, value in record.items()}
        line = json.dumps(record, allow_nan=False) + "\n"
        try:
            self._lines.write(line.encode())
        finally:  # the other file may lie elsewhere, or have room for its record
            self._write_events(record, policy_lag_counts)

    def _write_events(self, record: Record, policy_lag_counts: Sequence[int] | None) -> None:
        if self._events_file.is_cut:  # it may end within a record, beyond which nobody would read
            new = self._new_events_file()
            self._events_file.close()
            self._begin_events(new)
        step = record["env_frames"]
        values = [
            self._summary.Value(tag=name if "/" in name else f"run/{name}", simple_value=value)
            for name, value in record.items()
            if value is not None
        ]
        if policy_lag_counts is not None and sum(policy_lag_counts) > 0:
            histogram = self._lag_histogram(policy_lag_counts)
            values.append(self._summary.Value(tag="run/policy_lag", histo=histogram))
        self._add_event(step, summary=self._summary(value=values))

    def discard(self) -> None:
        """Remove what it has written."""
        self._lines.remove()
        self._events_file.remove()

    def close(self) -> None:
        self._lines.close()
        self._events_file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _add_event(self, step: float | int | None, **content: object) -> None:
        event = self._event(wall_time=time.time(), step=step, **content)
        self._events.write(event.SerializeToString())

    def _lag_histogram(self, counts: Sequence[int]) -> object:
        lags = np.arange(len(counts))
        weights = np.asarray(counts)
        seen = lags[weights > 0]
        return self._histogram(
            min=seen[0],
            max=seen[-1],
            num=weights.sum(),
            sum=(weights * lags).sum(),
            sum_squares=(weights * lags**2).sum(),
            bucket_limit=lags + 0.5,  # right edges: bucket i holds lag i alone
            bucket=weights,
        )


class GrowingFile:
    """A file that grows by whole records, or not at all if the disk is full.

    Records that could not be written wait in memory, the newest `MAX_WAITING` of them, and go first
    at the next `write`. What others do to the file is respected: it may be deleted, moved away or
    cut (as logrotate's copytruncate does) at any time.

    Args:
        separator: with what every record ends. Given, a piece of a record that is left where others
            have cut the file is removed.
        is_ours: whether the folder is still this run's: see `reopened_to_append`.
    """

    MAX_WAITING = 10_000

    def __init__(
        self,
        path: Path,
        separator: bytes = b"",
        is_ours: Callable[[], bool] = lambda: True,
    ) -> None:
        self._path = path
        self._is_ours = is_ours
        self._separator = separator
        self._file: BinaryIO = open_to_append(path)
        self._size = self._file.seek(0, os.SEEK_END)  # as far as is known
        self._is_torn = False  # there may be a part of a record beyond `_size`
        self._waiting: deque[bytes] = deque(maxlen=self.MAX_WAITING)

    @property
    def is_cut(self) -> bool:
        """Whether it is shorter than what was written."""
        return os.fstat(self._file.fileno()).st_size < self._size

    def write(self, record: bytes) -> None:
        """Raises OSError if the disk does not take it now."""
        self._waiting.append(record)
        while self._waiting:
            self._append(self._waiting[0])
            self._waiting.popleft()

    def _append(self, record: bytes) -> None:
        if self.is_cut:
            self._size = self._end_of_records()
            self._file.truncate(self._size)
        elif self._is_torn:
            self._file.truncate(self._size)
        self._file = reopened_to_append(self._path, self._file, self._is_ours)
        self._size, self._is_torn = self._file.seek(0, os.SEEK_END), True
        written = 0
        while written < len(record):
            written += self._file.write(record[written:])
        self._size, self._is_torn = self._size + written, False

    def _end_of_records(self) -> int:
        """In what others have left of the file."""
        size = self._file.seek(0, os.SEEK_END)
        if not self._separator:
            return size
        start = max(0, size - _MAX_LINE)
        self._file.seek(start)
        return start + self._file.read(_MAX_LINE).rfind(self._separator) + len(self._separator)

    def remove(self) -> None:
        if is_at(self._path, self._file.fileno()):
            self._path.unlink()

    def close(self) -> None:
        """A file without one whole record is removed."""
        if self._size == 0:
            self.remove()
        self._file.close()


def _cut_lines(path: Path, resume_frames: int | None) -> None:
    """Drop a last line cut short by a kill, and the records beyond `resume_frames`.

    The file is read line by line, for a run of a month has a gigabyte, and written again only where
    more must go than its end.
    """
    good_bytes, is_good_beyond = 0, False  # before the first bad line, and whether more follows it
    is_good_so_far = True
    for line in _lines_of(path):
        is_kept = _is_kept(line, resume_frames)
        is_good_so_far &= is_kept
        is_good_beyond |= is_kept and not is_good_so_far
        good_bytes += len(line) if is_good_so_far else 0
    if not is_good_beyond:
        if good_bytes < path.stat().st_size:
            with open_to_append(path) as file:
                file.truncate(good_bytes)
        return
    temporary = path.with_name(f"{path.name}.tmp")
    with open_new(temporary) as file:
        file.writelines(line for line in _lines_of(path) if _is_kept(line, resume_frames))
    os.replace(temporary, path)


def _lines_of(path: Path) -> Iterator[bytes]:
    """With their ends. One that is far too long comes in pieces: there may be anything in it."""
    with path.open("rb") as file:
        while line := file.readline(_MAX_LINE):
            yield line


def _is_kept(line: bytes, resume_frames: int | None) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        frames = json.loads(line)["env_frames"]
        return resume_frames is None or bool(frames <= resume_frames)
    except (ValueError, TypeError, KeyError, RecursionError):  # not a record, or no text
        return False


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator > 0 else None


def _finite(value: float | int | None) -> float | int | None:
    return value if value is not None and math.isfinite(value) else None
