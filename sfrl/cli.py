"""The command line of train.py: flags over defaults, or over a saved run's settings."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import gymnasium

import envs
from sfrl import checkpoint, run_folder, synonyms
from sfrl.config import CHOICES, DEFAULTS, Config, ConfigError
from sfrl.crew import WorkerError
from sfrl.defaults import defaults_for, resolve
from sfrl.description import describe
from sfrl.flags import parse_flags, read_flags, whole_number
from sfrl.output import own_output
from sfrl.shared_memory import Stopped
from sfrl.trainer import Trainer, signals_to
from sfrl.tuner import tune

EXIT_FAILURE = 1
EXIT_USAGE = 2
RUNS = Path("runs")

# What the saved weights, the optimizer's state and the frame counter depend on.
FIXED_ON_RESUME = (
    *("env", "frameskip", "model", "value_encoder", "rnn_size"),
    *("normalize_returns", "optimizer"),
)


def train(argv: Sequence[str]) -> int:
    """Run `train.py` with these arguments; returns its exit code."""
    started_s = time.monotonic()
    signals: list[int] = []

    def note(signum: int) -> None:
        """Nothing has started: what is being set up is finished or, the second time, given up."""
        if signals:
            sys.exit(EXIT_FAILURE if sys.exception() else 0)  # what is being told stays an error
        signals.append(signum)

    with signals_to(note):
        try:
            config, spec = parse_and_describe(argv, signals)
            if not signals:
                with signals_to(lambda _: sys.exit(0)), own_output():
                    config = tuned(config, argv, spec)
            trainer = Trainer(config, signals, started_s, spec)
        except Stopped:  # by a signal, while the environment was looked at
            return 0
        except (
            ValueError,
            MemoryError,
            checkpoint.CheckpointError,
            gymnasium.error.Error,  # the environment misses a package, or its id is outdated
        ) as error:
            print(f"train.py: {error}", file=sys.stderr)
            return EXIT_USAGE
        if signals:
            return 0
        try:
            with own_output(last_line_follows=True) as output:
                summary = trainer.run(output)
        except (WorkerError, checkpoint.CheckpointError, run_folder.RunFolderError) as error:
            print(f"train.py: {error}", file=sys.stderr)
            return EXIT_FAILURE
        except OSError as error:
            if error.filename is None:
                raise  # no file that the user could do something about
            print(f"train.py: the run's folder cannot be written: {error}", file=sys.stderr)
            return EXIT_FAILURE
        try:
            print(json.dumps(dataclasses.asdict(summary)), flush=True)
        except OSError as error:  # a full disk, or a reader that has gone
            print(f"train.py: the run's summary cannot be written: {error}", file=sys.stderr)
            return EXIT_FAILURE
        return 0


def tuned(config: Config, argv: Sequence[str], spec: envs.EnvSpec) -> Config:
    """`config` as the tuner arranges it for this machine, with the flags in `argv` respected."""
    if config.tune == "off" or config.serial or config.resume:
        return config
    return tune(config, read_flags(argv, DEFAULTS, CHOICES, synonyms.OF_TRAIN), spec)


def parse(argv: Sequence[str]) -> Config:
    """The settings of `parse_and_describe` alone."""
    return parse_and_describe(argv)[0]


def parse_and_describe(
    argv: Sequence[str], signals: Sequence[int] = ()
) -> tuple[Config, envs.EnvSpec]:
    """The complete, checked settings of a run, and its environment. `--help` prints and leaves.

    Args:
        signals: with one in it the look at the environment is given up.

    Raises:
        ConfigError: the settings cannot work, or there is no such environment.
        run_folder.RunFolderError: the folder holds a run, or what no run has.
        ValueError: the environment cannot be trained.
        checkpoint.CheckpointError: there is nothing to resume.
        Stopped: there was a signal while the environment was looked at.
    """
    flags = read_flags(argv, DEFAULTS, CHOICES, synonyms.OF_TRAIN)
    saved = _saved_settings(flags) if "resume" in flags else None
    runs = RUNS.absolute()  # here: the user's code, which --model imports, may go elsewhere
    problems = []
    try:
        spec = _describe(flags, saved, signals)
        defaults = saved or defaults_for(
            flags.get("env", Config.env),
            flags.get("loss", Config.loss),  # type: ignore[arg-type]  # read_flags has checked it
            max(whole_number(flags["num_workers"]), 1) if "num_workers" in flags else None,
            spec,
        )
    except envs.UnknownEnvError as error:
        problems.append(str(error))  # and go on, to tell of the other problems at once
        defaults = Config()
    unchecked = parse_flags(
        argv,
        _UncheckedConfig(**dataclasses.asdict(defaults)),
        prog="train.py",
        description="Train an agent. See README.md.",
    )
    try:
        config = Config(**dataclasses.asdict(unchecked))
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    if config.run_dir:
        config = dataclasses.replace(config, run_dir=str(Path(config.run_dir).absolute()))
    config = resolve(config, spec)
    if saved is not None:
        _check_resumable(saved, config)
    return _with_run_dir(config, runs), dataclasses.replace(spec, frameskip=config.frameskip)


def _describe(flags: dict[str, str], saved: Config | None, signals: Sequence[int]) -> envs.EnvSpec:
    """The run's environment; an Atari game's frameskip is not settled yet."""
    given = saved or Config()
    timeout_s = float(flags.get("env_timeout", given.env_timeout))
    if not timeout_s > 0:  # which is refused later, with all other problems
        timeout_s = Config.env_timeout
    return describe(flags.get("env", given.env), None, timeout_s, signals)


class _UncheckedConfig(Config):
    """What tyro makes: it would wrap a ConfigError, and break its lines."""

    def __post_init__(self) -> None:
        pass


def _saved_settings(flags: dict[str, str]) -> Config:
    """Those of the run that is to go on. A time limit was that of its earlier start alone."""
    if flags.get("run_dir"):
        run_dir = Path(flags["run_dir"])
    else:
        run_dir = checkpoint.newest_run(RUNS, flags.get("env"))
    run_folder.check(run_dir)
    saved = checkpoint.saved_config(run_dir)
    return dataclasses.replace(saved, run_dir=str(run_dir), train_seconds=0.0)


def _check_resumable(saved: Config, config: Config) -> None:
    """Raises ConfigError if a flag changes what the checkpoint depends on."""
    problems = [
        f"{name}={getattr(config, name)} differs from the saved run's {getattr(saved, name)}, on "
        f"which its checkpoint depends; leave the flag out, or start a new run without --resume"
        for name in FIXED_ON_RESUME
        if getattr(config, name) != getattr(saved, name)
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _with_run_dir(config: Config, runs: Path) -> Config:
    """Name the run's folder, and see that no other run's is written over."""
    if config.run_dir:
        if not config.resume:
            run_folder.check_new(Path(config.run_dir))
        return config
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in config.env)
    name = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    run_dir, number = runs / name, 2
    while True:
        try:
            run_dir.mkdir(parents=True)  # here, so that it is ours: runs may start together
        except FileExistsError:
            run_dir, number = runs / f"{name}~{number}", number + 1
        else:
            return dataclasses.replace(config, run_dir=str(run_dir))
