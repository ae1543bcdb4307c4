"""What the commands that ask about runs have in common: `sfrl status`, `list`, `diagnose`, ..."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from sfrl.commands import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE
from sfrl.envs.logs import printable
from sfrl.records.run_folder import RunFolderError
from sfrl.settings.flags import parse_flags

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

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
    argv: Sequence[str],
    prog: str,
    defaults: T,
    description: str,
    work: Callable[[T], int],
    names: str = "[RUN]",
) -> int:
    """Run a command with these arguments; returns its exit code.

    Args:
        prog: what the user has called, for `--help` and errors.
        defaults: of the flags; `runs` has the arguments that are none.
        work: what it does. ValueError is the user's fault, OSError the disk's.
        names: how --help writes the arguments that are no flags.
    """
    # The program's handler, until here, gives nobody the time to end in order.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        called = f"{prog} {names}"
        return work(parse_flags(argv, defaults, _NAMES, called, description, names="runs"))
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
