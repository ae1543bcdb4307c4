"""A run's folder as one plain record, `Run`, for commands and pages; the run may still live."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Literal

from sfrl.records import run_folder
from sfrl.records.checkpoint import latest_paths
from sfrl.records.metrics import EPISODE_WINDOW, Record
from sfrl.records.run_folder import BEGUN, FAILED, LAST_CHECKPOINT, RUNS, RunFolderError
from sfrl.settings.algorithms import MAX_CHARACTERS, MAX_CONFIG_BYTES
from sfrl.systems import DEFAULT_SYSTEM

# Of a longer metrics.jsonl so many records are read, evenly spread over the file: 100 runs of
# 10,000 records take 1.2 GB, of which JSON alone would need 15 s.
MOST_RECORDS = 300
METRICS = "metrics.jsonl"
_MEAN_LINE = 1800  # bytes of a record
_LAST = 3  # records, at the end, that are always read: the last two intervals
_MAX_LINE = 1 << 16  # no record is longer, but a stranger's
_MAX_LOG = 1 << 16  # bytes of log.txt's end
_CHUNK = 1 << 13  # bytes: of a line's end and the whole line after it
_MAX_NUMBER = 1e300
_LEAST_S = 1e-3  # of an interval
_TIME = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", re.M)
_START = re.compile(rf"{_TIME.pattern}{BEGUN}", re.M)

State = Literal["live", "ended", "failed", "killed"]


@dataclass(frozen=True)
class Run:
    """What is in the folder at one moment.

    Attributes:
        folder: absolute.
        settings: what config.json has; {} if it is missing or damaged.
        records: of metrics.jsonl, as `read_records` gives them.
        log: the end of log.txt, from the last start on.
        checkpoints: those that --resume goes on from, newest first.
        is_live: whether a trainer has the folder.
    """

    folder: Path
    settings: Mapping[str, object]
    records: Sequence[Record]
    log: str
    checkpoints: Sequence[Path]
    is_live: bool

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def env(self) -> str:
        return str(self.settings.get("env", "?"))

    @property
    def system(self) -> str:
        """That of a config.json which does not name one is of a version that had one alone."""
        return str(self.settings.get("system", DEFAULT_SYSTEM if self.settings else "?"))

    @property
    def state(self) -> State:
        """killed: the log tells neither of an end in order nor of a failure."""
        if self.is_live:
            return "live"
        if FAILED in self.log:
            return "failed"
        return "ended" if LAST_CHECKPOINT in self.log or not self.log else "killed"

    @property
    def messages(self) -> list[str]:
        """Of the log, oldest first, without date and time; some have several lines."""
        return [text.strip() for text in _TIME.split(self.log) if text.strip()]

    @property
    def last(self) -> Record:
        """The newest record; {} if there is none."""
        return self.records[-1] if self.records else {}

    def number(self, name: str) -> float:
        """A setting; 0 if it is missing or none."""
        value = self.settings.get(name)
        return value if isinstance(value, int | float) else 0

    def latest(self, name: str) -> float | None:
        """What the newest record has of it."""
        return self.last.get(name)

    def values(self, name: str) -> list[float]:
        """Oldest first, without those that are null."""
        return [value for record in self.records if (value := record.get(name)) is not None]

    @cached_property
    def interval(self) -> tuple[Record, Record]:
        return last_interval(self.records)

    def curve(self, metric: str) -> list[tuple[float, float]]:
        """Pairs of a metric and the score, oldest first.

        It begins where `EPISODE_WINDOW` episodes have ended, if they have.
        """
        scored = [
            (record, x, score)
            for record in self.records
            if (x := record.get(metric)) is not None
            and (score := record.get("episode_return_mean")) is not None
        ]
        whole = [point for point in scored if (point[0].get("episodes") or 0) >= EPISODE_WINDOW]
        return [(x, score) for _, x, score in whole or scored]

    def quarter(self, name: str, index: int = -1) -> float | None:
        """Mean over the time of a quarter of the run, the last one unless another is named.

        None: it has no value there.
        """
        weighted = [
            (value, seconds)
            for record, seconds in self._quarters[index]
            if (value := record.get(name)) is not None
        ]
        total_s = sum(seconds for _, seconds in weighted)
        return sum(value * seconds for value, seconds in weighted) / total_s if weighted else None

    @cached_property
    def _quarters(self) -> list[list[tuple[Record, float]]]:
        """Of the records from the first one on in which something was learned, with their seconds.

        A run's last interval may be short, and mostly its last checkpoint.
        """
        times = [0.0, *(record["time_s"] or 0.0 for record in self.records)]
        seconds = (max(now - before, _LEAST_S) for before, now in pairwise(times))
        timed = list(zip(self.records, seconds, strict=True))
        learned = (i for i, record in enumerate(self.records) if record.get("total_loss"))
        first = next(learned, len(timed))
        ends = [first + (len(timed) - first) * quarter // 4 for quarter in range(5)]
        return [timed[start:end] for start, end in pairwise(ends)]


def seconds_between(before: Record, record: Record) -> float:
    return (record.get("time_s") or 0.0) - (before.get("time_s") or 0.0)


def find(name: str = "") -> Path:
    """The folder of a run: named, or by its name in runs/, or the newest there.

    Raises:
        RunFolderError: there is none; or it is not a run's, or not to be read.
    """
    if not name:
        return newest()
    path = Path(run_folder.expanded("RUN", name))
    found = next((folder for folder in (path, RUNS / path) if folder.is_dir()), None)
    if found is None:
        near = difflib.get_close_matches(name, [run.name for run in _folders(RUNS)], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "sfrl list tells which there are"
        raise RunFolderError(f"{name} is no folder, and no run in {RUNS}/; {hint}")
    if not run_folder.holds_a_run(found):
        raise RunFolderError(
            f"{name} is not a run's folder, for nothing of a run is in it; sfrl list tells which "
            f"there are"
        )
    return found.absolute()


def find_all(names: Sequence[str] = ()) -> list[Run]:
    """Those that are named, as `find` has it, or the runs in a folder that is named; all of runs/
    if none is.

    Raises:
        RunFolderError: a name means none, or there is no run.
    """
    runs: list[Run] = []
    for name in names or [str(RUNS)]:
        path = Path(run_folder.expanded("RUN", name))
        if path.is_dir() and not run_folder.holds_a_run(path):
            runs += read_all(path)
        elif names:
            runs.append(read(find(name)))
    if not runs:
        raise RunFolderError(f"no run in {', '.join(names) or f'{RUNS}/'}; train one first")
    return list({run.folder: run for run in runs}.values())


def newest(root: Path = RUNS) -> Path:
    """The run that was started last. Raises RunFolderError if there is none."""
    folders = _folders(root)
    if not folders:
        raise RunFolderError(f"no run in {root}/; train one first, or name its folder")
    return folders[-1].absolute()


def read_all(root: Path = RUNS) -> list[Run]:
    """The runs in a folder, in the order of their starts.

    Raises:
        RunFolderError: there is no such folder.
    """
    if not root.is_dir():
        raise RunFolderError(f"{root} is no folder; name one that holds runs")
    runs = []
    for folder in _folders(root):
        with suppress(OSError, RunFolderError):  # it is gone, or what is in it is no run's
            runs.append(read(folder))
    return runs


def _folders(root: Path) -> list[Path]:
    started_ns = {}
    for folder in root.glob("*/"):
        with suppress(OSError, RunFolderError):
            if run_folder.holds_a_run(folder):
                config = folder / "config.json"
                path = config if config.is_file() else folder
                started_ns[folder] = path.stat().st_mtime_ns
    return sorted(started_ns, key=lambda folder: (started_ns[folder], folder))


def last_interval(records: Sequence[Record]) -> tuple[Record, Record]:
    """The newest record of a whole interval, after the one before it; {} where there is none.

    A run's last interval may be short, and mostly its last checkpoint.
    """
    intervals = [*pairwise([{}, *records[-_LAST:]])] or [({}, {})]
    seconds = [seconds_between(*interval) for interval in intervals]
    is_short = len(seconds) > 1 and seconds[-1] < seconds[-2] / 2
    return intervals[-2 if is_short else -1]


def read(folder: Path, most_records: int = MOST_RECORDS) -> Run:
    """What is in the folder now.

    Args:
        most_records: see `read_records`.

    Raises:
        RunFolderError: something in it is no file (a link, a pipe), or it cannot be looked into.
    """
    run_folder.check(folder)
    return Run(
        folder=folder.absolute(),
        settings=_settings(folder / "config.json"),
        records=read_records(folder / METRICS, most_records),
        log=_last_start(_end_of(folder / "log.txt", _MAX_LOG)),
        checkpoints=latest_paths(folder),
        is_live=run_folder.is_locked(folder),
    )


def _settings(path: Path) -> dict[str, object]:
    """As the file has them: `Config` would refuse those of another version of sfrl."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            return {}
        settings = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(settings, dict):
        return {}
    kinds = (str, int, float, bool)
    return {
        name: value
        for name, value in settings.items()
        if isinstance(value, kinds) and len(str(value)) <= MAX_CHARACTERS
    }


def _last_start(log: str) -> str:
    """The lines of the run's last start, if it is known where that begins."""
    starts = [match.start() for match in _START.finditer(log)]
    return log[starts[-1] :] if starts else log


def _end_of(path: Path, size: int) -> str:
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - size))
            return file.read(size).decode(errors="replace")
    except OSError:
        return ""


def read_records(path: Path, most: int | None = None) -> list[Record]:
    """Of a metrics.jsonl, oldest first; [] if there is no such file.

    A last line that is being written, or was cut, is left out, and so is what is no record.

    Args:
        most: about so many at most, evenly spread over the file, the first and the last `_LAST`
            included (1: these alone); None: all.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return []
    try:
        size = os.fstat(descriptor).st_size
        if most is None or size <= most * _MEAN_LINE:
            lines: Iterable[bytes] = _all_lines(descriptor, size)
        else:
            lines = _some_lines(descriptor, size, most)
        return [record for line in lines if (record := _record(line))]
    finally:
        os.close(descriptor)


def value_at(path: Path, metric: str, frames: float) -> float | None:
    """A metric when a run had so many frames, from its metrics.jsonl; None where it has none.

    It is looked for by halves: the file may be long, and `read_records` leaves most of it out.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        low, high = 0, os.fstat(descriptor).st_size
        while high - low > _MAX_LINE:
            middle = (low + high) // 2
            record = next(_records_from(descriptor, middle), None)
            if record is not None and (record["env_frames"] or 0) <= frames:
                low = middle
            else:
                high = middle
        start = max(0, low - _MAX_LINE)  # some before: a resumed run begins without a score
        records = _records_from(descriptor, start, 3 * _MAX_LINE)
        until = takewhile(lambda record: (record["env_frames"] or 0) <= frames, records)
        values = [value for record in until if (value := record.get(metric)) is not None]
        return values[-1] if values else None
    finally:
        os.close(descriptor)


def _records_from(descriptor: int, start: int, size: int = _MAX_LINE) -> Iterator[Record]:
    """Those of whole lines within `size` bytes, of which the first begins at `start` or later."""
    first = max(0, start - 1)
    lines = os.pread(descriptor, start - first + size, first).split(b"\n")[:-1]
    for line in lines[start - first :]:  # before it is the end of a line, or nothing
        if record := _record(line):
            yield record


def _all_lines(descriptor: int, size: int) -> list[bytes]:
    return os.pread(descriptor, size, 0).split(b"\n")[:-1]  # the last has no end yet


def _some_lines(descriptor: int, size: int, most: int) -> Iterator[bytes]:
    """The first line, those that begin next after equal steps of the file, and the last ones.

    By `pread`: the trainer may cut the file meanwhile, which a memory map does not survive.
    """
    tail_at = max(0, size - _MAX_LINE)
    last = os.pread(descriptor, _MAX_LINE, tail_at).split(b"\n")[:-1][-_LAST:]
    first = os.pread(descriptor, _CHUNK, 0).split(b"\n")[0]
    if first not in last:
        yield first
    next_at = 0
    for index in range(1, most):
        position = size * index // most
        if position < next_at:
            continue  # within the line that was read last
        chunk = os.pread(descriptor, _CHUNK, position)
        _, _, after = chunk.partition(b"\n")
        line, end, _ = after.partition(b"\n")
        next_at = position + len(chunk) - len(after) + len(line)
        if end and line not in last:
            yield line
    yield from last


def _record(line: bytes) -> Record | None:
    """None: it is no record, which others may have put there."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or "time_s" not in record or "env_frames" not in record:
        return None
    for value in record.values():
        is_number = type(value) in (int, float) and -_MAX_NUMBER < value < _MAX_NUMBER
        if value is not None and not is_number:
            return None
    return record
