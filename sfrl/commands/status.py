"""`sfrl status`: how a run stands."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from sfrl.commands.answers import (
    Args,
    answer,
    clock,
    columns_of,
    only_name,
    print_json,
    show,
    table,
    told,
)
from sfrl.envs.logs import printable
from sfrl.runs import reader
from sfrl.runs.figures import figures


def main(argv: Sequence[str], prog: str) -> int:
    text = "How a run stands: a folder, or its name in runs/; the newest there if none is named."
    return answer(argv, prog, Args(), text, _status)


def _status(args: Args) -> int:
    run = reader.read(reader.find(only_name(args.runs)))
    facts = figures(run)
    if args.json:
        print_json(facts)
        return 0
    columns = columns_of(facts)
    show(table(list(columns), [list(columns.values())]))
    lines = [f"folder      {run.folder}"]
    age_s, checkpoint = facts["checkpoint_age_s"], facts["checkpoint"]
    lines.append(
        f"checkpoint  {checkpoint}, {clock(age_s)} old" if checkpoint else "checkpoint  none yet"
    )
    if facts["seconds_left"] is not None:
        lines.append(f"time left   {clock(facts['seconds_left'])}")
    shares = {
        name.partition("/")[0]: share
        for name, share in run.last.items()
        if name.endswith("/working")
    }
    if shares:
        lines.append(
            "working     "
            + ", ".join(f"{name} {told(share, '{:.0%}')}" for name, share in shares.items())
        )
    if facts["limit"]:
        lines.append(f"limit       {facts['limit']}")
    if facts["tuned"]:
        lines.append(f"tuner       {facts['tuned']}")
    show(Text(printable("\n".join(lines))))
    return 0
