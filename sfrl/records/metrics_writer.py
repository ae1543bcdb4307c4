"""Records on disk: metrics.jsonl and TensorBoard events, which grow and go on after a resume."""

import json
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from sfrl.records.metrics import Record, finite
from sfrl.records.run_folder import is_at, open_new, open_to_append, reopened_to_append

_MAX_LINE = 1 << 20  # bytes of a record in metrics.jsonl, at most


class MetricsWriter:
    """Appends records to `metrics.jsonl` and to TensorBoard event files in `run_dir`.

    Each record is on disk when `write` returns, so a killed run loses none. In TensorBoard the
    x axis is `env_frames`, and names without a component stand under `run/`.

    Args:
        run_dir: created if missing.
        resume_frames: `env_frames` of the checkpoint that the run goes on from. Records beyond it
            tell of frames that will be played again: they leave metrics.jsonl, and TensorBoard is
            told to hide them, so both hold one curve. None: every record stays.
        is_ours: whether the folder is still this run's: no other's files are written.
        settings: shown by TensorBoard's HParams page, beside the last value of each number. Of a
            run that went on it shows those of the first start.
    """

    def __init__(
        self,
        run_dir: Path | str,
        *,
        resume_frames: int | None = None,
        is_ours: Callable[[], bool] = lambda: True,
        settings: Mapping[str, str | float] = MappingProxyType({}),
    ) -> None:
        # Imported here because it takes 0.3 s, and only the trainer's process ever writes.
        # (tensorboardX and torch.utils.tensorboard would import torch.)
        from tensorboard.compat.proto import event_pb2, summary_pb2  # type: ignore[import-untyped]
        from tensorboard.plugins.hparams import (  # type: ignore[import-untyped]
            metadata,
            plugin_data_pb2,
        )
        from tensorboard.summary.writer import record_writer  # type: ignore[import-untyped]

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._histogram = summary_pb2.HistogramProto
        start = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
        for name, value in settings.items():
            _set(start.hparams[name], value)
        self._settings = summary_pb2.Summary.Value(
            tag=metadata.SESSION_START_INFO_TAG,
            metadata=metadata.create_summary_metadata(
                plugin_data_pb2.HParamsPluginData(session_start_info=start)
            ),
            tensor=metadata.NULL_TENSOR,
        )
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
            session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            # TensorBoard hides the events of this step and later that came before this one.
            self._add_event(resume_frames + 1, session_log=session)

    def _new_events_file(self) -> "GrowingFile":
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        return GrowingFile(self._run_dir / name, is_ours=self._is_ours)

    def _begin_events(self, file: "GrowingFile") -> None:
        # TensorBoard's own writer has a thread, which dies of a full disk.
        self._events_file, self._events = file, self._make_writer(file)
        try:
            self._add_event(None, file_version="brain.Event:2")
            self._add_event(0, summary=self._summary(value=[self._settings]))
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
        record = {name: finite(value) for name, value in record.items()}
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


def _set(field: Any, value: str | float) -> None:
    """Fill a protobuf `Value`, which has a field for each type."""
    if isinstance(value, bool):
        field.bool_value = value
    elif isinstance(value, str):
        field.string_value = value.encode(errors="replace").decode()  # paths may be no UTF-8
    else:
        field.number_value = value


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
