"""The algorithms by name, and settings by name, from a user or a file, before they are a `Config`.

What is wrong with names and types is told here; what is wrong with values, by `Config`.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfrl import __version__
from sfrl.envs.logs import printable
from sfrl.settings.actor_critic import ActorCriticConfig
from sfrl.settings.config import Config, ConfigError
from sfrl.settings.dqn import DQNConfig
from sfrl.settings.fields import Setting, settings_of
from sfrl.settings.n_step_q import NStepQConfig
from sfrl.settings.replay import ReplayConfig
from sfrl.settings.sac import SACConfig
from sfrl.systems import DEFAULT_SYSTEM, SYSTEMS

ALGORITHMS: dict[str, type[Config]] = {
    cls.ALGORITHM: cls for cls in (ActorCriticConfig, NStepQConfig, DQNConfig, SACConfig)
}
_RNN_SIZE = 128
# Files from when a run had an algorithm: which system that is. Those of before have neither.
_SYSTEM_OF = {"actor_critic": "appo", "n_step_q": "n-step-q", "sac": "sac"}

STARTS = "starts"
"""The key of a config.json that is no setting: how each start came about (records/start.py)."""
MAX_CONFIG_BYTES = 1 << 20  # of a config.json
MAX_CHARACTERS = 4096  # of a setting, in a file that may be a stranger's: the longest path
_MAX_NAME = 80  # of what may be a misspelled setting


def make_config(values: Mapping[str, Any]) -> Config:
    """The settings of a run, of its system's algorithm, which has them all. Raises ConfigError.

    Where a training batch is a round of environments, its size follows, unless it is given.
    """
    system = SYSTEMS[values.get("system", DEFAULT_SYSTEM)]
    fixed = {name: setting.value for name, setting in system.fixed.items()}
    values, cls = {**fixed, **values, "system": system.name}, class_of(system.name)
    if "batch_size" not in values and (system.is_synchronous or system.layout == "bundles"):
        names = ("envs_per_worker", "rollout_length", "num_workers")
        sizes = [values.get(name, getattr(cls, name)) for name in names]
        values["batch_size"] = math.prod(sizes if system.is_synchronous else sizes[:2])
    return cls(**values)


def class_of(system: str) -> type[Config]:
    """That of its algorithm."""
    return ALGORITHMS[SYSTEMS[system].algorithm]


def default_config(given: Mapping[str, Any]) -> Config:
    """That of the system that is given, with a memory if one is asked for."""
    system = SYSTEMS[given.get("system", DEFAULT_SYSTEM)]
    memory = recurrence_of(system.name, given)
    return make_config({"system": system.name, **system.defaults, **memory})


def recurrence_of(system: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Kind and size of `rnn`, where one of them asks for it and the system can have it: what is
    given goes before."""
    asks = given.get("rnn", "none") != "none" or given.get("rnn_size", 0) != 0
    can = not issubclass(class_of(system), ReplayConfig)
    return {"rnn": "gru", "rnn_size": _RNN_SIZE} if asks and can else {}


def all_settings() -> dict[str, Setting]:
    """The settings of all algorithms, by name."""
    settings: dict[str, Setting] = {}
    for cls in reversed(ALGORITHMS.values()):
        settings |= settings_of(cls)
    return {**settings, "system": settings["system"]._replace(choices=tuple(SYSTEMS))}


def user_settings() -> dict[str, Setting]:
    """Those that a user may set."""
    return {name: setting for name, setting in all_settings().items() if not setting.is_note}


def type_problems(
    values: Mapping[str, object],
    settings: Mapping[str, Setting],
    synonyms: Mapping[str, str] | None = None,
) -> list[str]:
    """What is wrong with the names and types of `values`.

    Args:
        settings: those that there are.
        synonyms: what to do instead of a setting of another name (synonyms.py).
    """
    problems = []
    for name, value in values.items():
        if name not in settings:
            text = str(name)  # a checkpoint of a stranger's may have a number
            hint = " or ".join(nearest(text, settings))
            remedy = f"did you mean {hint}?" if hint else "remove it"
            remedy = (synonyms or {}).get(text.lower(), remedy)
            problems.append(f"unknown setting {name!r:.80}; {remedy}")
            continue
        if isinstance(value, str) and len(value) > MAX_CHARACTERS:
            problems.append(f"{name} has {len(value)} characters, and must be a name or a path")
            continue
        if isinstance(value, str) and value != printable(value):
            problems.append(f"{name}={value!r:.80} has characters that are no text")
            continue
        expected = settings[name].type
        accepted = (int, float) if expected is float else expected
        if not isinstance(value, accepted) or isinstance(value, bool) != (expected is bool):
            is_number = expected is str and isinstance(value, int | float)
            remedy = f": write {str(value)!r}" if is_number and type(value) is not bool else ""
            problems.append(f"{name}={value!r:.80} must be of type {expected.__name__}{remedy}")
        elif name == "system" and (problem := settings[name].problem(value)):
            problems.append(problem)  # the class depends on it, before the class can tell
    return problems


def foreign_problems(values: Mapping[str, object], system: str) -> dict[str, str]:
    """What to say of each of `values` that only other systems have."""
    problems = {}
    for name in values:
        owners = [other for other in SYSTEMS if name in settings_of(class_of(other))]
        if system not in owners:
            problems[name] = (
                f"{name} is a setting of system={_listed(owners)}; leave it out with "
                f"system={system}"
            )
    return problems


def _listed(names: list[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def nearest(name: str, names: Mapping[str, object]) -> list[str]:
    """At most three that are spelled like it."""
    return difflib.get_close_matches(name[:_MAX_NAME], names, n=3, cutoff=0.5)


# --- on disk ---


def load_config(path: Path) -> Config:
    """Raises ConfigError if the file is no config: what is wrong with which field."""
    values, starts = _read(path)
    version = starts[-1].get("version", __version__) if starts else __version__
    other = f" (of sfrl {version!s:.40}, and this is {__version__})"
    return config_from(values, str(path) + (other if version != __version__ else ""))


def load_starts(path: Path) -> list[dict[str, Any]]:
    """Those in a config.json, none in one of before they were kept. Raises ConfigError."""
    return _read(path)[1]


def _read(path: Path) -> tuple[object, list[dict[str, Any]]]:
    """The settings in a config.json, as they stand there, and its starts. Raises ConfigError."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"more than {MAX_CONFIG_BYTES} bytes are no settings")
        if not path.is_file():  # a pipe would be waited for without end
            raise ValueError("it is no file; name a run's config.json")
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_object)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path} cannot be read as a config: {reason}") from error
    if not isinstance(values, dict):
        return values, []
    starts = values.pop(STARTS, [])
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise ConfigError(
            f"{path}: {STARTS}={starts!r:.40} must be a list of objects, one for each start of the "
            f"run; remove it"
        )
    return values, starts


def config_from(values: object, origin: str) -> Config:
    """Settings as `dataclasses.asdict` gave them. Raises ConfigError, naming `origin`."""
    if not isinstance(values, dict):
        raise ConfigError(f"{origin} must hold an object of settings, not {values!r:.40}")
    if "threads_per_worker" in values and "env_kwargs" not in values:
        values = {**values, "threads_per_worker": 1}  # files from when it changed nothing
    else:
        values = dict(values)
    if "rnn" not in values and values.get("rnn_size") != 0 and "rnn_size" in values:
        values["rnn"] = "gru"  # files from when there was no other
    if "system" not in values and "algorithm" in values:
        values["system"] = _SYSTEM_OF.get(values.pop("algorithm"), DEFAULT_SYSTEM)
    values.setdefault("image_size", 0)  # files from when images stayed as they were
    problems = type_problems(values, all_settings())
    if not problems:
        system = values.get("system", DEFAULT_SYSTEM)
        problems = [*foreign_problems(values, system).values()]
    if problems:
        raise ConfigError("\n".join(f"{origin}: {problem}" for problem in problems))
    try:
        return make_config(values)
    except ConfigError as error:
        raise ConfigError(f"in {origin}:\n{error}") from error


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object. Of two values of one name, programs take this one or that."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("it has two values of one name")
    return values
