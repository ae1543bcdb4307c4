"""What the commands that ask about runs have in common: `sfrl status`, `list`, `diagnose`, ..."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from sfrl.commands import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE
from sfrl.envs.logs import printable
from sfrl.records.bottleneck import BOTTLENECKS, bottleneck_of
from sfrl.records.run_folder import RunFolderError
from sfrl.settings.flags import parse_flags

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from sfrl.runs.reader import Run

    T = TypeVar("T", bound=DataclassInstance)

_PIPE_WIDTH = 160  # columns of a table that no terminal shows
_NAMES = {  # of other commands, for what is called RUN here
    "run_dir": "name the run without a flag: its folder, or its name in runs/",
}


@dataclass(frozen=True, kw_only=True)
class Args:
    """The answer."""

    runs: tuple[str, ...] = ()
    json: bool = False
    """Print a JSON object, in one line, for programs."""


def answer(
    argv: Sequence[str], prog: str, defaults: T, description: str, work: Callable[[T], int]
) -> int:
    """Run a command with these arguments; returns its exit code.

    Args:
        prog: what the user has called, for `--help` and errors.
        defaults: of the flags; `runs` has the arguments that are none.
        work: what it does. ValueError is the user's fault, OSError the disk's.
    """
    # The program's handler, until here, ends it as if all were done.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return work(parse_flags(argv, defaults, _NAMES, prog, description, names="runs"))
    except ValueError as error:
        print(printable(f"{prog}: {error}"), file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        print(printable(f"{prog}: {error}"), file=sys.stderr)
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def only_name(names: Sequence[str]) -> str:
    """That of the one run, or folder, that may be named; "" if none is.

    Raises:
        RunFolderError: there are several.
    """
    if len(names) > 1:
        raise RunFolderError(f"{' '.join(names)} are {len(names)} names; name one")
    return names[0] if names else ""


def print_json(value: object) -> None:
    print(json.dumps(value, allow_nan=False))


def show(what: RenderableType) -> None:
    """On stdout; wide where that is no terminal, so that nothing is cut or wrapped."""
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    Console(width=width, highlight=False).print(what)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """With numbers, in columns of which no cell is a word, to the right."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        is_number = all(row[index][:1] in "0123456789-" for row in rows)
        made.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))  # Text: a name may have brackets
    return made


def figures(run: Run) -> dict[str, object]:
    """Of a run as it is, for programs: `sfrl status` and `sfrl list`."""
    last = run.last
    left_s, limit = _seconds_left(run), bottleneck_of(run.last)
    return {
        "name": run.name,
        "folder": str(run.folder),
        "env": run.env,
        "system": run.system,
        "seed": run.settings.get("seed"),
        "state": run.state,
        "time_s": last.get("time_s"),
        "seconds_left": left_s,
        "env_frames": last.get("env_frames"),
        "frames_per_s": last.get("frames_per_s" if run.is_live else "frames_per_s_average"),
        "episodes": last.get("episodes"),
        "episode_return_mean": last.get("episode_return_mean"),
        "best_episode_return_mean": last.get("best_episode_return_mean"),
        "episode_length_mean": last.get("episode_length_mean"),
        "checkpoint": str(run.checkpoints[0]) if run.checkpoints else None,
        "checkpoint_age_s": _checkpoint_age_s(run),
        "tuned": run.settings.get("tuned") or None,
        "limit": limit and BOTTLENECKS[limit],
        "shares": {name: share for name, share in last.items() if name.endswith("/working")},
    }


def _checkpoint_age_s(run: Run) -> float | None:
    for path in run.checkpoints[:1]:
        with suppress(FileNotFoundError):  # a live run has removed it since
            return max(0.0, time.time() - path.stat().st_mtime)
    return None


def _seconds_left(run: Run) -> float | None:
    """Of a live run: to --train-frames at its average rate, or to --train-seconds.

    The latter count from a resumed run's start, which its records do not tell.
    """
    left, last = [], run.last
    frames, rate = run.number("train_frames"), last.get("frames_per_s_average")
    if frames and rate:
        left.append((frames - (last.get("env_frames") or 0)) / rate)
    if run.number("train_seconds") and not run.settings.get("resume"):
        left.append(run.number("train_seconds") - (last.get("time_s") or 0))
    return max(0.0, min(left)) if run.is_live and left else None


def told(value: object, form: str = "{}") -> str:
    """A value as people read it; "-" where there is none."""
    return "-" if value is None else form.format(value)


def clock(seconds: object) -> str:
    if not isinstance(seconds, int | float):
        return "-"
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{left:02d}"


def columns_of(facts: Mapping[str, object]) -> dict[str, str]:
    """What a line of a table tells of `figures`."""
    return {
        "run": told(facts["name"]),
        "state": told(facts["state"]),
        "env": told(facts["env"]),
        "system": told(facts["system"]),
        "score": told(facts["episode_return_mean"], "{:.4g}"),
        "best": told(facts["best_episode_return_mean"], "{:.4g}"),
        "frames": told(facts["env_frames"], "{:,}"),
        "time": clock(facts["time_s"]),
        "frames/s": told(facts["frames_per_s"], "{:,.0f}"),
    }
