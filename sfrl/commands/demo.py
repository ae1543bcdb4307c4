"""`sfrl demo`: some minutes of training, and a page that shows what came of them."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium

from sfrl import envs
from sfrl.api import train
from sfrl.commands import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE
from sfrl.commands.train import read_more_flags
from sfrl.envs import EnvSpec
from sfrl.envs.logs import printable
from sfrl.records import run_folder
from sfrl.records.checkpoint import CheckpointError
from sfrl.run.crew import WorkerError
from sfrl.run.filming import check_shown
from sfrl.run.trainer import Summary
from sfrl.runs import reader
from sfrl.settings.config import Config
from sfrl.settings.machine import machine
from sfrl.settle import settle
from sfrl.trial.training import Training
from sfrl.trial.verdict import Trial, limit_of
from sfrl.tune.tuner import HELPS, Outlook, kept_outlook

_FAILURES = (
    *(WorkerError, CheckpointError, ValueError, MemoryError, OSError),  # of the run
    *(envs.EnvError, gymnasium.error.Error),  # of the films
)
_SECONDS = 300.0
_MIDDLE = 0.4  # of them, where the second film is due
_RECORDS = 100  # of the curve
_START = 0.03  # of them that the start may take, before the first checkpoint's time runs


@dataclass(frozen=True, kw_only=True)
class Args:
    """The page."""

    file: str = ""
    """FILE.html. Empty: demo.html in the run's folder."""


def main(argv: Sequence[str], prog: str) -> int:
    """Run `sfrl demo` with these arguments; returns its exit code.

    Args:
        prog: what the user has called, for `--help` and errors.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def say(text: str) -> None:
        print(printable(f"{prog}: {text}"), file=sys.stderr)

    try:
        file, given = _read(argv, prog)
        config, spec = settle(given)
        check_shown(config)
    except (ValueError, MemoryError, gymnasium.error.Error) as error:
        run_folder.remove_empty()
        say(str(error))
        return EXIT_USAGE
    except KeyboardInterrupt:
        run_folder.remove_empty()
        return EXIT_INTERRUPTED
    try:
        summary = train(**given | {"run_dir": config.run_dir})
        outlook = kept_outlook(config, given, spec) if config.tune != "off" else None
        say("filming")
        file = file or Path(summary.run_dir, run_folder.DEMO)
        facts = _write(file, summary, config, spec, outlook)
    except _FAILURES as error:
        say(str(error))
        return EXIT_FAILURE
    except KeyboardInterrupt:
        say("stopped, without a page")
        return EXIT_INTERRUPTED
    say(f"open {file.absolute().as_uri()} in a browser")
    try:
        print(json.dumps(facts), flush=True)
    except OSError as error:  # a full disk, or a reader that has gone
        say(f"the summary cannot be written: {error}")
        return EXIT_FAILURE
    return 0


def _read(argv: Sequence[str], prog: str) -> tuple[Path | None, dict[str, Any]]:
    """The page's file, None if none is named, and the settings of the run.

    Raises:
        ValueError: they cannot work.
    """
    text = (
        "Train for five minutes (--train-seconds), and write one HTML file: films of the agent "
        "before, meanwhile and at the end, its curve, the machine, what limited it."
    )
    args, given = read_more_flags(argv, Args(), prog, text)
    given.setdefault("train_seconds", _SECONDS)
    if not given["train_seconds"] > 0:
        raise ValueError("train_seconds=0 has no end, and a demo needs one; name the seconds")
    if given.get("resume"):
        raise ValueError("resume=True is not for sfrl demo: it shows a run from its beginning")
    given.setdefault("checkpoint_seconds", (_MIDDLE - _START) * given["train_seconds"])
    given.setdefault("report_seconds", given["train_seconds"] / _RECORDS)
    if not args.file:
        return None, given
    return run_folder.file_to_write("file", args.file, is_replaced=True), given


def _write(
    file: Path, summary: Summary, config: Config, spec: EnvSpec, outlook: Outlook | None
) -> dict[str, object]:
    """Films, page; returns the figures for programs."""
    from sfrl.demo.moments import moments
    from sfrl.demo.page import number, page

    run = reader.read(Path(summary.run_dir))
    shown = moments(run.folder, spec, _MIDDLE * config.train_seconds)
    known: dict[str, Any] = {"training": Training([*run.records], None, False), "outlook": outlook}
    trial = Trial(config.env, summary.seconds, "", config=config, **known)
    limit, rate = limit_of(trial), trial.curve and trial.curve.frames_per_s
    minutes, score = summary.seconds / 60, summary.episode_return_mean
    figures = {
        "environment": config.env,
        "score": "no episode ended" if score is None else f"{number(score)}, mean of 100 episodes",
        "minutes": f"{minutes:.1f}, start-up included",
        "frames": f"{summary.env_frames:,}",
        "frames/s": (f"{rate:,.0f} while it learned; " if rate else "")
        + f"{summary.frames_per_s:,.0f} with start-up",
        "limit": limit or "not known",
    }
    if outlook is not None and (helps := _helps(outlook)):
        figures["what would help"] = helps
    text = page(
        title=f"{config.env}: {minutes:.0f} minutes of sfrl" if minutes >= 1.5 else config.env,
        lead=f"One agent, trained on this machine from nothing: {summary.env_frames:,} frames in "
        f"{minutes:.1f} minutes.",
        moments=shown,
        curve=[(seconds / 60, score) for seconds, score in run.curve("time_s")],
        figures=figures,
        machine=_machine(),
        command=shlex.join(["sfrl", "train", "--resume", f"--run-dir={run.folder}"]),
    )
    run_folder.write_whole(file, text.encode())
    return {
        "file": str(file),
        "run_dir": summary.run_dir,
        "minutes": round(minutes, 2),
        "env_frames": summary.env_frames,
        "frames_per_s": rate and round(rate, 1),
        "episode_return_mean": score,
        "limit": limit,
    }


def _helps(outlook: Outlook) -> str:
    return ", ".join(
        f"{what}: up to {gain:.1f} times the frames/s"
        for what, gain in outlook.gains.items()
        if gain >= HELPS
    )


def _machine() -> dict[str, str]:
    facts = machine()
    versions = facts["versions"]
    assert isinstance(versions, Mapping)
    return {
        "processor": str(facts["cpu"]),
        "cores": str(facts["cores"]),
        "GPU": str(facts["gpu"] or "none"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "commit": str(facts["commit"] or "none: installed"),
    }
