"""One step after the other, within the time that there is: describe, play, train."""

from __future__ import annotations

import os
import shlex
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium

from sfrl.ipc.shared_memory import Stopped
from sfrl.settings.config import Config, ConfigError
from sfrl.settings.defaults import caveats
from sfrl.settle import settle
from sfrl.trial.look import look
from sfrl.trial.training import Training, train_for
from sfrl.trial.verdict import Trial
from sfrl.tune.tuner import kept_outlook

LEAST_S = 5.0
_LOOK = 0.2  # of the time is for random play
_HANGS = 0.4  # of the time, after which one step counts as hanging
_LEAST_TIMEOUT_S = 3.0
_END_S = 2.0  # for the run's end, and what comes after it
_LEAST_TRAINING_S = 6.0
_TUNED_FROM_S = 30.0  # a new environment is measured for about 10 seconds
_RECORDS = 60  # of the training run
_LATE = 0  # no signal has this number


def try_out(
    given: Mapping[str, Any],
    seconds: float,
    signals: list[int],
    say: Callable[[str], object],
) -> Trial:
    """Look at the environment, let it play at random, and train.

    Args:
        given: what the user has set, by the names of `Config`; `env` is among it. With `run_dir`
            the training run is kept there.
        seconds: for all of it, about.
        signals: those that the caller notes.
        say: told what comes next, in a line.

    Raises:
        MemoryError: a process could not be started.
        Stopped: there is a signal.
    """
    start_s, load = time.monotonic(), os.getloadavg()[0]
    env = given["env"]
    settings: dict[str, Any] = {
        "env_timeout": min(Config.env_timeout, max(_LEAST_TIMEOUT_S, _HANGS * seconds))
    }
    if seconds < _TUNED_FROM_S:
        settings["tune"] = "off"
    settings |= {"report_seconds": max(0.2, seconds / _RECORDS), **given}

    def trial(**known: Any) -> Trial:
        return Trial(env, time.monotonic() - start_s, _command(given), load, **known)

    with _folder(given) as run_dir:
        settings["run_dir"] = str(run_dir)
        say(f"looking at {env}")
        try:
            with _time_limit(seconds, signals):
                config, spec = settle(settings, signals)
        except Stopped:
            if signals:
                raise
            return trial(reason=f"it was not imported and made within {seconds:g} s")
        except (ValueError, gymnasium.error.Error) as error:
            return trial(reason=str(error), is_usage=isinstance(error, ConfigError))
        known: dict[str, Any] = {
            "config": config,
            "spec": spec,
            "caveats": tuple(caveats(env, spec)),
        }
        say(f"playing at random for {_LOOK * seconds:.0f} s at most")
        seen = look(config, _LOOK * seconds, config.env_timeout, signals)
        known["look"] = seen
        if seen.is_fatal:
            fatal = next(problem.text for problem in seen.problems if problem.is_fatal)
            return trial(reason=fatal, **known)
        left_s = max(_LEAST_TRAINING_S, start_s + seconds - _END_S - time.monotonic())
        say(f"training for {left_s:.0f} s, start-up included")
        training = train_for(settings, Path(config.run_dir), left_s, signals)
        known |= {"training": training}
        if config.tune != "off":
            known["outlook"] = kept_outlook(config, settings, spec)
        if training.problem is None and not training.records:
            text = (
                f"the machine was too slow to begin training within {left_s:.0f} s; raise --seconds"
            )
            return trial(reason=text, is_machines=True, **known)
        return trial(reason=_reason(training), is_machines=training.is_machines, **known)


def _reason(training: Training) -> str | None:
    """Of a traceback, which is indented, what comes before it and after it."""
    if training.problem is None:
        return None
    lines = [line for line in training.problem.splitlines() if line.strip()]
    if "Traceback (most recent call last):" not in lines:
        return " ".join(lines)
    last = max(i for i, line in enumerate(lines) if line.startswith(" "))
    return f"training ended: {lines[0].removesuffix(':')}: {', '.join(lines[last + 1 :])}"


def _command(given: Mapping[str, Any]) -> str:
    """What trains as it was tried."""
    flags = [_flag(name, value) for name, value in given.items() if name != "run_dir"]
    return shlex.join(["sfrl", "train", *flags])


def _flag(name: str, value: object) -> str:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag}={value}"


@contextmanager
def _folder(given: Mapping[str, Any]) -> Iterator[Path]:
    """The training run's, which goes with the block unless the user has named it."""
    if "run_dir" in given:
        yield Path(given["run_dir"])
        return
    with tempfile.TemporaryDirectory(prefix="sfrl-try-", ignore_cleanup_errors=True) as folder:
        yield Path(folder, "run")


@contextmanager
def _time_limit(seconds: float, signals: list[int]) -> Iterator[None]:
    """What heeds `signals` in the block is given up after the time, as if there were one."""
    timer = threading.Timer(seconds, signals.append, (_LATE,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        while _LATE in signals:
            signals.remove(_LATE)
