"""Where else a run's records go: a service such as Weights & Biases, or a class of the user's own.

`--log-to` names them. A logger lives in the trainer's process, and hears of a run when it begins,
at each report, and when it has ended.
"""

from __future__ import annotations

import importlib
import importlib.util

from sfrl.envs.classes import class_at
from sfrl.loggers.background import BackgroundLogger
from sfrl.loggers.logger import Logger, RunStart

__all__ = ["BackgroundLogger", "Logger", "RunStart", "make_loggers"]

# What --log-to may name: the package, which is an extra of its name as well, and our class for it.
_SERVICES = {
    "trackio": "sfrl.loggers.trackio:TrackioLogger",
    "wandb": "sfrl.loggers.wandb:WandbLogger",
}


def make_loggers(names: str) -> list[Logger]:
    """Those that `names`, the setting log_to, lists. Imports none of the services.

    Raises:
        ValueError: one is unknown, is not installed, or cannot be made.
    """
    return [_make(name.strip()) for name in names.split(",") if name.strip()]


def _make(name: str) -> Logger:
    if name in _SERVICES and importlib.util.find_spec(name) is None:
        raise ValueError(
            f"log_to={name} needs the package {name}, which is not installed: "
            f'pip install "sfrl[{name}]"'
        )
    if name not in _SERVICES and ":" not in name:
        raise ValueError(
            f"log_to={name} must be one of {', '.join(_SERVICES)}, or a class of your own, named "
            f"as module:Class"
        )
    cls = class_at("log_to", _SERVICES.get(name, name), Logger, "sfrl.loggers.Logger")
    return cls()
