"""`sfrl try ENV`: a verdict on an environment in a minute. docs/try.md tells how to read it.

`try` is a word of Python's own: this module is imported by its name alone, by sfrl/__main__.py.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfrl.commands import EXIT_FAILURE, EXIT_FOUND, EXIT_USAGE
from sfrl.commands.train import read_more_flags
from sfrl.envs.logs import printable
from sfrl.ipc.shared_memory import Stopped
from sfrl.records import run_folder
from sfrl.run.signals import signals_to
from sfrl.trial.facts import facts
from sfrl.trial.page import page
from sfrl.trial.steps import LEAST_S, try_out
from sfrl.trial.verdict import Trial

_OURS = {
    "train_seconds": "--seconds is the time for all",
    "resume": "a trial begins anew",
}
_STDOUT = "-"


@dataclass(frozen=True, kw_only=True)
class Args:
    """The trial."""

    seconds: float = 60.0
    """For all of it."""
    json: str = ""
    """Write the facts as JSON to this file. Without a name, print them instead of the page."""


def main(argv: Sequence[str], prog: str) -> int:
    """Run `sfrl try` with these arguments; returns its exit code.

    Args:
        prog: what the user has called, for `--help` and errors.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of others, in a terminal that lacks them
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        args, given = _read(argv, prog)
    except ValueError as error:
        print(printable(f"{prog}: {error}"), file=sys.stderr)
        return EXIT_USAGE
    signals: list[int] = []

    def say(text: str) -> None:
        print(printable(f"{prog}: {text}"), file=sys.stderr)

    with signals_to(signals.append):
        try:
            trial = try_out(given, args.seconds, signals, say)
        except Stopped:
            return 128 + (signals[0] if signals else signal.SIGINT)
        except (MemoryError, OSError) as error:
            say(str(error))
            return EXIT_FAILURE
    try:
        _tell(trial, args.json)
    except OSError as error:  # a full disk, or a reader that has gone
        say(f"the verdict cannot be written: {error}")
        return EXIT_FAILURE
    return _code(trial)


def _tell(trial: Trial, json_file: str) -> None:
    """The page, or with --json alone the facts instead."""
    text = json.dumps(facts(trial)) if json_file else ""
    print(text if json_file == _STDOUT else page(trial), flush=True)
    if json_file not in ("", _STDOUT):
        run_folder.write_whole(Path(json_file), f"{text}\n".encode())


def _code(trial: Trial) -> int:
    if trial.is_usage:
        return EXIT_USAGE
    if trial.is_machines:
        return EXIT_FAILURE
    return 0 if trial.verdict == "fine" else EXIT_FOUND


def _read(argv: Sequence[str], prog: str) -> tuple[Args, Mapping[str, Any]]:
    """Raises ValueError if the flags cannot work."""
    text = (
        "What an environment is, whether it keeps the rules, how fast it trains. The exit code is "
        "0 if it can be trained and keeps the rules, 3 if not, 2 if a flag or a name is wrong, 1 "
        "if the machine has failed."
    )
    flags = list(argv)
    env = [f"--env={flags.pop(0)}"] if flags and not flags[0].startswith("-") else []
    for index, (flag, after) in enumerate(zip(flags, [*flags[1:], "--"], strict=False)):
        if flag == "--json" and after.startswith("--"):
            flags[index] = f"--json={_STDOUT}"
    args, given = read_more_flags([*env, *flags], Args(), f"{prog} ENV", text)
    if "env" not in given:
        raise ValueError("an environment is missing; name it first: sfrl try CartPole-v1")
    if not LEAST_S <= args.seconds < math.inf:
        raise ValueError(f"--seconds={args.seconds:g} must be at least {LEAST_S:g}, and finite")
    if refused := [f"{name} is not for sfrl try: {_OURS[name]}" for name in _OURS if name in given]:
        raise ValueError("; ".join(refused))
    if args.json not in ("", _STDOUT):
        file = run_folder.file_to_write("json", args.json, is_replaced=True)
        args = dataclasses.replace(args, json=str(file))
    return args, given
