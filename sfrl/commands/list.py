"""`sfrl list`: the runs in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sfrl.commands.answers import Args, answer, columns_of, only_name, print_json, table
from sfrl.commands.answers import show as shown
from sfrl.records import run_folder
from sfrl.runs import reader
from sfrl.runs.figures import figures


def main(argv: Sequence[str], prog: str) -> int:
    text = "The runs in a folder, runs/ unless another is named, in the order of their starts."
    return answer(argv, prog, Args(), text, _list, "[FOLDER]")


def _list(args: Args) -> int:
    name = only_name(args.runs)
    root = Path(run_folder.expanded("folder", name)) if name else run_folder.RUNS
    facts = [figures(run) for run in reader.read_all(root)]
    if args.json:
        print_json({"folder": str(root.absolute()), "runs": facts})
    elif facts:
        rows = [columns_of(run) for run in facts]
        shown(table(list(rows[0]), [list(row.values()) for row in rows]))
    else:
        print(f"no runs in {root}/")
    return 0
