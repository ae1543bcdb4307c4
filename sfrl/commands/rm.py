"""`sfrl rm`: deletes runs, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sfrl.commands import EXIT_FAILURE, answers
from sfrl.commands.answers import answer, clock, print_json, told
from sfrl.envs.logs import printable
from sfrl.records import run_folder
from sfrl.records.run_folder import RunFolderError
from sfrl.runs import reader
from sfrl.runs.reader import Run


@dataclass(frozen=True, kw_only=True)
class Args(answers.Args):
    """The deletion."""

    yes: bool = False
    """Delete without asking."""


def main(argv: Sequence[str], prog: str) -> int:
    text = (
        "Delete runs: folders, or names in runs/. What a run has not written stays, and so does "
        "the folder then."
    )
    return answer(argv, prog, Args(), text, _rm, "RUN ...")


def _rm(args: Args) -> int:
    if not args.runs:
        raise RunFolderError("name the runs to be deleted; sfrl list tells which there are")
    runs = {folder: _to_delete(folder) for folder in map(reader.find, args.runs)}
    if not args.yes and not _agrees(list(runs.values()), args):
        print("nothing was deleted", file=sys.stderr)
        return EXIT_FAILURE
    left = {str(folder): run_folder.remove(folder) for folder in runs}
    if args.json:
        print_json(
            {"removed": list(left), "left": [path for paths in left.values() for path in paths]}
        )
        return 0
    for folder, paths in left.items():
        others = f"; left, for sfrl has not written it: {', '.join(paths)}" if paths else ""
        print(printable(f"deleted {folder}{others}"))
        if f"{folder}/wandb" in paths:
            print("(in wandb/ is what wandb has written; `wandb sync` sends what is not sent yet)")
    return 0


def _to_delete(folder: Path) -> Run:
    """Raises RunFolderError: the run lives, or its folder leads elsewhere or is a stranger's."""
    if folder.is_symlink():
        raise RunFolderError(f"{folder} is a link; name the folder itself, {folder.resolve()}")
    if not run_folder.has_records(folder):
        raise RunFolderError(
            f"{folder} has checkpoints alone, and nothing says whose they are; delete it yourself"
        )
    run = reader.read(folder)
    if run.is_live:
        raise RunFolderError(f"{folder} is a live run; stop it first, by Ctrl-C or SIGTERM")
    return run


def _agrees(runs: Sequence[Run], args: Args) -> bool:
    """Raises ValueError if nobody can be asked."""
    if args.json or not sys.stdin.isatty():
        raise ValueError("nobody can be asked here whether to delete; add --yes")
    for run in runs:
        frames = told(run.latest("env_frames"), "{:,}")
        what = f"{run.env}, {frames} frames, {clock(run.latest('time_s'))}"
        print(printable(f"{run.folder}: {what}"))
    print(f"delete {'it' if len(runs) == 1 else f'all {len(runs)}'}? [y/N]", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
