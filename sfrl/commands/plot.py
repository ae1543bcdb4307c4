"""`sfrl plot`: learning curves as a picture."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sfrl.commands import answers
from sfrl.commands.answers import answer, print_json
from sfrl.envs.logs import printable
from sfrl.envs.names import is_installed
from sfrl.records import run_folder
from sfrl.runs import reader
from sfrl.runs.comparison import compare

_ENDINGS = (".png", ".pdf", ".svg")


@dataclass(frozen=True, kw_only=True)
class Args(answers.Args):
    """The picture."""

    file: str = ""
    """The picture, FILE.png, .pdf or .svg. Empty: score.png in the run's folder, or here if there
    are several runs."""


def main(argv: Sequence[str], prog: str) -> int:
    text = (
        "Score against minutes, frames and decisions: of runs, or folders of runs; of the newest "
        "run in runs/ if none is named. Those that differ in their seeds alone share a color."
    )
    return answer(argv, prog, Args(), text, _plot, "[RUN ...]")


def check_picture(name: str, path: Path) -> None:
    """Raises ValueError, which names the argument, if nothing can be drawn into such a file."""
    if path.suffix not in _ENDINGS:
        raise ValueError(f"{name}={path} must end in {', '.join(_ENDINGS)}, its formats")


def _plot(args: Args) -> int:
    if not is_installed("matplotlib"):
        raise ValueError('it needs matplotlib: pip install "sfrl[plots]"')
    runs = reader.find_all(args.runs or [str(reader.newest())])
    young = [run for run in runs if not run.values("episode_return_mean")]
    if len(young) == len(runs):
        raise ValueError(f"{young[0].folder} has no score yet: no episode has ended")
    for run in young:
        print(printable(f"{run.folder} is left out: it has no score yet"), file=sys.stderr)
    runs = [run for run in runs if run not in young]
    path = Path(run_folder.expanded("file", args.file)) if args.file else Path(run_folder.SCORE)
    if not args.file and len(runs) == 1:
        path = runs[0].folder / path
    check_picture("file", path)
    from sfrl.runs import plot  # and matplotlib

    plot.draw(compare(runs), path)
    if args.json:
        print_json({"file": str(path.absolute()), "runs": [str(run.folder) for run in runs]})
    else:
        print(path)
    return 0
