"""`sfrl diagnose`: what is wrong with a run, in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from sfrl.commands import EXIT_FOUND
from sfrl.commands.answers import Args, answer, only_name, print_json, show
from sfrl.envs.logs import printable
from sfrl.runs import reader
from sfrl.runs.diagnosis import RULES, diagnose

# About all of a day's, in half a second: a mean over fewer would miss what lasts for one.
_MOST_RECORDS = 20_000


def main(argv: Sequence[str], prog: str) -> int:
    text = (
        f"What is wrong with a run, live or finished: a folder, or its name in runs/; the newest "
        f"there if none is named. The exit code is {EXIT_FOUND} if there is something."
    )
    return answer(argv, prog, Args(), text, _diagnose)


def _diagnose(args: Args) -> int:
    run = reader.read(reader.find(only_name(args.runs)), _MOST_RECORDS)
    found = diagnose(run)
    if args.json:
        findings = [finding._asdict() for finding in found]
        print_json({"run": str(run.folder), "state": run.state, "findings": findings})
        return EXIT_FOUND if found else 0
    show(Text(printable(f"{run.name}: {run.env}, {run.system}, {run.state}")))
    if not run.records:
        show(Text("it has recorded nothing yet"))
    elif not found:
        show(Text(f"none of {len(RULES)} rules finds anything wrong"))
    for finding in found:
        text = Text("\n").append(finding.name, style="bold red").append(f": {finding.what}\n")
        for label in ("figure", "rule", "remedy"):
            line = printable(getattr(finding, label))
            text.append(f"  {'try' if label == 'remedy' else label:8}", style="dim")
            text.append(f"{line}\n" if label != "remedy" else line)
        show(text)
    return EXIT_FOUND if found else 0
