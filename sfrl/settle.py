"""A run's settings, made of what the user has set: by flags of train.py or arguments of `train`."""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sfrl import envs
from sfrl.records import checkpoint, run_folder
from sfrl.records.start import Change
from sfrl.run import limits
from sfrl.run.description import describe
from sfrl.settings import synonyms
from sfrl.settings.algorithms import (
    default_config,
    foreign_problems,
    load_config,
    type_problems,
    user_settings,
)
from sfrl.settings.config import Config, ConfigError
from sfrl.settings.defaults import defaults_for, resolve, usual_model
from sfrl.settings.environment import env_options, meaning, option_problems
from sfrl.settings.fields import settings_of, shown
from sfrl.tune.tuner import tune

_OF_NO_DEFAULT = ("env", "system", "run_dir", "resume", "config")  # which run it is


def settle(given: Mapping[str, Any], signals: Sequence[int] = ()) -> tuple[Config, envs.EnvSpec]:
    """The complete, checked settings of a run, and its environment.

    Args:
        given: what the user has set, by the names of `Config`. The rest comes from the run that is
            resumed or the file that is named, or is what learns in this kind of environment.
        signals: with one in it the look at the environment is given up.

    Raises:
        ConfigError: the settings cannot work, or there is no such environment.
        run_folder.RunFolderError: the folder holds a run, or what no run has; or `~` means none.
        ValueError: the environment cannot be trained.
        checkpoint.CheckpointError: there is nothing to resume.
        Stopped: there was a signal while the environment was looked at.
    """
    if problems := type_problems(given, user_settings(), synonyms.OF_PYTHON):
        raise ConfigError("\n".join(problems))
    # Here: the user's code, which `model` imports, may go elsewhere.
    runs = run_folder.started_in() / run_folder.RUNS
    saved = saved_settings(given)
    with _source_told(given):
        config, spec = _settled(given, saved, signals)
    return _with_run_dir(config, runs), dataclasses.replace(spec, frameskip=config.frameskip)


def _settled(
    given: Mapping[str, Any], saved: Config | None, signals: Sequence[int]
) -> tuple[Config, envs.EnvSpec]:
    """All but the name of a new folder."""
    problems = []
    unfit: ConfigError | None = None
    try:
        defaults, spec = defaults_of(given, saved, signals)
    except envs.UnknownEnvError as error:
        problems.append(str(error))  # and go on, to tell of the other problems at once
        defaults = saved or default_config(given)
    except ConfigError as error:
        unfit = error  # mostly of what is told below
        defaults = saved or default_config(given)
    if not given.get("serial", defaults.serial) and multiprocessing.current_process().daemon:
        problems.append(
            "serial=False needs workers, and this process may start none, being daemonic as those "
            "of multiprocessing.Pool are; use concurrent.futures.ProcessPoolExecutor"
        )
    refused = foreign_problems(given, defaults.system)
    if saved is not None:
        refused = _conflicts(saved, given) | refused
    problems += refused.values()
    own = {name: value for name, value in given.items() if name not in refused}
    try:
        kept = {"system": defaults.system, "config": defaults.config}
        config = dataclasses.replace(defaults, **own | kept)
        if not problems and unfit is None:
            config = config.without_unused(spec, given=own)
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    if unfit is not None:
        raise unfit
    if config.run_dir:
        run_dir = Path(run_folder.expanded("run_dir", config.run_dir)).absolute()
        config = dataclasses.replace(config, run_dir=str(run_dir))
    if saved is not None and config.model == "auto":
        config = dataclasses.replace(config, model=saved.model)
    return resolve(config, spec), spec


@contextmanager
def _source_told(given: Mapping[str, Any]) -> Iterator[None]:
    """A problem may be that of a setting which the user has not typed."""
    try:
        yield
    except ConfigError as error:
        if not given.get("config"):
            raise
        note = f"what was not set here is as in config={shown(given['config'])}"
        raise ConfigError(f"{error}\n{note}") from error


def defaults_of(
    given: Mapping[str, Any], saved: Config | None, signals: Sequence[int] = ()
) -> tuple[Config, envs.EnvSpec]:
    """What stands where nothing is given, and the environment. Its frameskip is not settled yet.

    Raises as `settle` does, and envs.UnknownEnvError; ConfigError if it is given what cannot be
    known to be an environment's options.
    """
    if problems := option_problems(given):
        raise ConfigError("\n".join(problems))
    values = {**(vars(saved) if saved else {}), **given}
    env = values.get("env", Config.env)
    timeout_s = values.get("env_timeout", Config.env_timeout)
    if not timeout_s > 0:  # which is refused later, with all other problems
        timeout_s = Config.env_timeout
    is_serial = values.get("serial", Config.serial)
    spec = describe(env, env_options(values), timeout_s, signals, is_serial=is_serial)
    if saved is not None:
        return saved, spec
    return defaults_for(env, given, spec), spec


def tuned(config: Config, given: Mapping[str, Any], spec: envs.EnvSpec) -> Config:
    """`config` as it suits this machine; what is given stays.

    The tuner arranges it, if it is to; and it is made to fit into shared memory.
    """
    if config.resume:
        return config
    is_settled = config.config and "tune" not in given
    if config.tune != "off" and not config.serial and not is_settled:
        config = tune(config, given, spec)
    config, change = limits.fitted(config, given, spec)
    if change:
        print(f"sfrl: {change}", file=sys.stderr)
    return config


def changes(
    config: Config, untuned: Config, given: Mapping[str, Any], spec: envs.EnvSpec
) -> dict[str, Change]:
    """The settings that are not what the environment and the system alone would have had here,
    untuned.

    Args:
        untuned: `config` before `tuned`.
        given: what the user has set.
    """
    usual = defaults_for(config.env, {"system": config.system}, spec)
    if usual.model == "auto":
        usual = dataclasses.replace(usual, model=usual_model(usual, spec))
    changed: dict[str, Change] = {}
    untold = {*_OF_NO_DEFAULT, *config.unused_in(spec)}
    for name, setting in settings_of(type(config)).items():
        value, default = getattr(config, name), getattr(usual, name)
        if value == default or setting.is_note or name in untold:
            continue
        if value != getattr(untuned, name):
            by = "tuner"
        elif name in given:
            by = "flag"
        elif config.resume:
            by = "earlier start"
        else:
            by = "config file" if config.config else "other settings"
        changed[name] = {"default": default, "by": by}
    return changed


def saved_settings(given: Mapping[str, Any]) -> Config | None:
    """Those of the run that is to go on, or of the file that a new one is to begin with.

    The time limit of a run that goes on was its earlier start's alone.

    Raises as `settle` does.
    """
    if not given.get("resume"):
        return _settings_in(given["config"]) if given.get("config") else None
    if given.get("run_dir"):
        run_dir = Path(run_folder.expanded("run_dir", given["run_dir"]))
    else:
        run_dir = checkpoint.newest_run(run_folder.RUNS, given.get("env"))
    run_folder.check(run_dir)
    saved = checkpoint.saved_config(run_dir)
    return dataclasses.replace(saved, run_dir=str(run_dir), train_seconds=0.0)


def _settings_in(file: str) -> Config:
    """What a new run takes over: all but what is of the other run's folder and its tuner."""
    path = Path(run_folder.expanded("config", file)).absolute()
    return dataclasses.replace(
        load_config(path), config=str(path), run_dir="", resume=False, tuned=""
    )


def _conflicts(saved: Config, given: Mapping[str, Any]) -> dict[str, str]:
    """What to say of each that is given, and changes what the rest depends on.

    Of a run that goes on that is what its checkpoint depends on; model=auto is the saved one. Of a
    file it is the system and the preset, since others have other settings.
    """
    if not given.get("resume"):
        of_file = {"system": saved.system, "preset": saved.preset}
        return {
            name: f"{name}={given[name]} differs from the {value} whose settings "
            f"config={shown(given['config'])} has; leave one of the two out"
            for name, value in of_file.items()
            if given.get(name, value) != value
        }
    of_both = {}
    if given.get("config"):
        of_both["config"] = (
            f"config={shown(given['config'])} begins a new run, and resume goes on with an earlier "
            f"one, as it was set; leave one of the two out"
        )
    values = dataclasses.asdict(saved)
    if "env" in given and envs.is_same(given["env"], saved.env):
        values["env"] = given["env"]
    fixed = {name: values[name] for name in saved.FIXED_ON_RESUME if name in values}
    return {
        name: f"{name}={given[name]} differs from the saved run's {value}, on which its checkpoint "
        f"depends; leave it out, or start a new run without resume"
        for name, value in fixed.items()
        if meaning(name, given.get(name, value)) != meaning(name, value)
        and (name, given[name]) != ("model", "auto")
    } | of_both


def _with_run_dir(config: Config, runs: Path) -> Config:
    """Name the run's folder, and see that no other run's is written over."""
    if config.run_dir:
        if not config.resume:
            run_folder.check_unused(Path(config.run_dir))
            run_folder.check_new(Path(config.run_dir))
        return config
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in config.env)
    name = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    run_dir, number = runs / name, 2
    while True:
        try:
            run_folder.make(run_dir)  # here, so that it is ours: runs may start together
        except FileExistsError:
            run_dir, number = runs / f"{name}~{number}", number + 1
        else:
            return dataclasses.replace(config, run_dir=str(run_dir))
