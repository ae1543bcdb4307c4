"""`sfrl try ENV`: a verdict on an environment in a minute. docs/try.md tells how to read it.

`try` is a word of Python's own: this module is imported by its name alone, by sfrl/__main__.py.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfrl.commands import EXIT_FAILURE, EXIT_FOUND, EXIT_USAGE
from sfrl.commands.train import read_flags
from sfrl.envs.logs import printable
from sfrl.ipc.shared_memory import Stopped
from sfrl.run.signals import signals_to
from sfrl.trial.facts import facts
from sfrl.trial.page import page
from sfrl.trial.steps import LEAST_S, try_out
from sfrl.trial.verdict import Trial

_OURS = {
    "train_seconds": "--seconds is the time for all",
    "resume": "a trial begins anew",
}


def main(argv: Sequence[str], prog: str) -> int:
    """Run `sfrl try` with these arguments; returns its exit code.

    Args:
        prog: what the user has called, for `--help` and errors.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of others, in a terminal that lacks them
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        options, given = _read(argv, prog)
    except (ValueError, argparse.ArgumentError) as error:
        print(printable(f"{prog}: {error}"), file=sys.stderr)
        return EXIT_USAGE
    signals: list[int] = []

    def say(text: str) -> None:
        print(printable(f"{prog}: {text}"), file=sys.stderr)

    with signals_to(signals.append):
        try:
            trial = try_out(given, options.seconds, signals, say)
        except Stopped:
            return 128 + (signals[0] if signals else signal.SIGINT)
        except (MemoryError, OSError) as error:
            say(str(error))
            return EXIT_FAILURE
    try:
        _tell(trial, options.json)
    except OSError as error:  # a full disk, or a reader that has gone
        say(f"the verdict cannot be written: {error}")
        return EXIT_FAILURE
    return _code(trial)


def _tell(trial: Trial, json_file: str | None) -> None:
    """The page, or with --json alone the facts instead."""
    text = json.dumps(facts(trial)) if json_file is not None else ""
    print(text if json_file == "-" else page(trial), flush=True)
    if json_file not in (None, "-"):
        Path(json_file).write_text(text + "\n")


def _code(trial: Trial) -> int:
    if trial.is_usage:
        return EXIT_USAGE
    if trial.is_machines:
        return EXIT_FAILURE
    return 0 if trial.verdict == "fine" else EXIT_FOUND


def _read(argv: Sequence[str], prog: str) -> tuple[argparse.Namespace, Mapping[str, Any]]:
    """Raises ValueError or argparse.ArgumentError if the flags cannot work."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s ENV [options] [any flag of sfrl train]",
        description="What an environment is, whether it keeps the rules, how fast it trains.",
        epilog="Exit codes: 0 it can be trained and keeps the rules, 3 not so, 2 a flag or a name "
        "is wrong, 1 the machine failed.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="for all of it (60)")
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the facts as JSON to the file; alone, print them instead of the page",
    )
    flags = list(argv)
    # Taken by hand: argparse would also look for it among the values of flags it does not know.
    env = [f"--env={flags.pop(0)}"] if flags and not flags[0].startswith("-") else []
    options, flags = parser.parse_known_args(flags)
    given = read_flags([*env, *flags], prog)
    if "env" not in given:
        raise ValueError("an environment is missing; name it first: sfrl try CartPole-v1")
    if not LEAST_S <= options.seconds < math.inf:
        raise ValueError(f"--seconds={options.seconds:g} must be at least {LEAST_S:g}, and finite")
    if refused := [f"{name} is not for sfrl try: {_OURS[name]}" for name in _OURS if name in given]:
        raise ValueError("; ".join(refused))
    if options.json not in (None, "-"):
        file = Path(options.json)
        place = file if file.exists() else file.parent
        if file.is_dir() or not os.access(place, os.W_OK):
            raise ValueError(f"{file} cannot be written; name a file in a folder of yours")
    return options, given
