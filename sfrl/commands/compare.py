"""`sfrl compare`: several runs in a table, grouped over seeds."""

from __future__ import annotations

from collections.abc import Sequence

from sfrl.commands.answers import Args, answer, print_json, show, table
from sfrl.runs import reader
from sfrl.runs.comparison import Group, Mean, compare


def main(argv: Sequence[str], prog: str) -> int:
    text = (
        "Runs beside each other: folders, names in runs/, or folders of runs; all of runs/ if none "
        "is named. Runs that differ in their seeds alone are one line, with their mean and a "
        "bootstrap interval of 95%."
    )
    return answer(argv, prog, Args(), text, _compare, "[RUN ...]")


def _compare(args: Args) -> int:
    groups = compare(reader.find_all(args.runs))
    if args.json:
        print_json({"groups": [_as_json(group) for group in groups]})
        return 0
    rows = [
        [
            *(group.label, str(len(group.runs))),
            *(_told(group.score), _told(group.best)),
            *(_told(group.score_there), f"{group.frames:,}"),
            *(_told(group.minutes, ".1f"), _told(group.frames_per_s, ",.0f")),
        ]
        for group in groups
    ]
    columns = ["runs", "seeds", "score", "best", "score at", "frames", "minutes", "frames/s"]
    show(table(columns, rows))
    return 0


def _told(mean: Mean | None, form: str = ".4g") -> str:
    if mean is None:
        return "-"
    if mean.low is None or mean.high is None:
        return format(mean.mean, form)
    return f"{mean.mean:{form}} [{mean.low:{form}}, {mean.high:{form}}]"


def _as_json(group: Group) -> dict[str, object]:
    means = {
        name: value and value._asdict()
        for name, value in group._asdict().items()
        if value is None or isinstance(value, Mean)
    }
    runs = [{"folder": str(run.folder), "seed": run.settings.get("seed")} for run in group.runs]
    return {
        "env": group.env,
        "settings": group.settings,
        "runs": runs,
        "frames": group.frames,
        **means,
    }
