"""The command line of train.py: flags over defaults, or over a saved run's settings."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import tyro

import envs
from sfrl import checkpoint
from sfrl.config import Config, ConfigError
from sfrl.crew import WorkerError
from sfrl.defaults import defaults_for, resolve
from sfrl.trainer import Trainer

EXIT_FAILURE = 1
EXIT_USAGE = 2
RUNS = Path("runs")


def train(argv: Sequence[str]) -> int:
    """Run `train.py` with these arguments; returns its exit code."""
    try:
        trainer = Trainer(parse(argv))
    except (ValueError, MemoryError, checkpoint.CheckpointError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return EXIT_USAGE
    try:
        summary = trainer.run()
    except WorkerError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return EXIT_FAILURE
    print(json.dumps(dataclasses.asdict(summary)))
    return 0


def parse(argv: Sequence[str]) -> Config:
    """The complete, checked settings of a run. Leaves with exit code 2 on an unknown flag.

    Raises:
        ConfigError, envs.UnknownEnvError: the settings cannot work.
        checkpoint.CheckpointError: there is nothing to resume.
    """
    # What the defaults depend on must be known before the flags are read for good.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--env")
    first.add_argument("--loss", default=Config.loss)
    first.add_argument("--run-dir", "--run_dir")
    first.add_argument("--resume", action="store_true")
    known, _ = first.parse_known_args(argv)
    if known.resume:
        run_dir = Path(known.run_dir) if known.run_dir else checkpoint.newest_run(RUNS, known.env)
        defaults = dataclasses.replace(
            Config.load(run_dir / "config.json"), run_dir=str(run_dir), train_seconds=0.0
        )
    else:
        defaults = defaults_for(known.env or Config.env, known.loss)
    config = tyro.cli(
        Config, args=list(argv), default=defaults, description="Train an agent. See README.md."
    )
    return _with_run_dir(resolve(config, envs.describe(config.env, config.frameskip)))


def _with_run_dir(config: Config) -> Config:
    """Name the run's folder, and see that no other run's is written over."""
    if config.run_dir:
        if not config.resume and (Path(config.run_dir) / "config.json").exists():
            raise ConfigError(
                f"run_dir={config.run_dir} already holds a run; add --resume to go on with it, or "
                f"name another folder"
            )
        return config
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in config.env)
    run_dir = RUNS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    number = 2
    while run_dir.exists():
        run_dir = run_dir.with_name(f"{run_dir.name.rpartition('~')[0] or run_dir.name}~{number}")
        number += 1
    return dataclasses.replace(config, run_dir=str(run_dir))
