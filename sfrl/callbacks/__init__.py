"""Who is told what happens in a run: Weights & Biases, Trackio, or classes of the user's own.

`--log-to` and `--prometheus` name them, and `sfrl.train` takes objects as well. They live in the
trainer's process.
"""

from __future__ import annotations

from sfrl.callbacks.background import BackgroundLogger
from sfrl.callbacks.callback import Callback, RunStart
from sfrl.envs.classes import class_at
from sfrl.envs.names import in_one_line, is_installed

__all__ = ["BackgroundLogger", "Callback", "RunStart", "make_callbacks"]

# What --log-to may name: the package, which is an extra of its name as well, and our class for it.
_SERVICES = {
    "trackio": "sfrl.callbacks.trackio:TrackioLogger",
    "wandb": "sfrl.callbacks.wandb:WandbLogger",
}


def make_callbacks(log_to: str, prometheus: int = 0) -> list[Callback]:
    """Those that these settings name. Imports none of the services.

    Raises:
        ValueError: one is unknown, is not installed, or cannot be made; the port is taken.
    """
    callbacks = [_make(name.strip()) for name in log_to.split(",") if name.strip()]
    if prometheus:
        from sfrl.callbacks.prometheus import Exporter

        callbacks.append(Exporter(prometheus))
    return callbacks


def _make(name: str) -> Callback:
    if name in _SERVICES and not is_installed(name):
        raise ValueError(
            f"log_to={name} needs the package {name}, which is not installed: "
            f'pip install "sfrl[{name}]"'
        )
    if name not in _SERVICES and ":" not in name:
        raise ValueError(
            f"log_to={name} must be one of {', '.join(_SERVICES)}, or a class of your own, named "
            f"as module:Class"
        )
    cls = class_at("log_to", _SERVICES.get(name, name), Callback, "sfrl.Callback")
    try:
        return cls()
    except Exception as error:  # the user's code may raise anything
        raise ValueError(
            f"log_to={name}: it is made without arguments, and cannot be ({in_one_line(error)})"
        ) from error
