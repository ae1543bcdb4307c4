"""Weights & Biases (wandb.ai): --log-to=wandb."""

from __future__ import annotations

import os
from typing import Any

from sfrl.callbacks.background import BackgroundLogger, id_of
from sfrl.callbacks.callback import RunStart
from sfrl.records.metrics import Record

# Each is less than what the end of a run waits (`END_S`). Records wait while it connects.
_INIT_TIMEOUT_S = 10
_FINISH_TIMEOUT_S = 10


class WandbLogger(BackgroundLogger):
    """wandb's variables count, such as WANDB_PROJECT, WANDB_ENTITY and WANDB_MODE.

    Without a key, or without a network at the start, the run is written into its folder's wandb/,
    from where `wandb sync` sends it. If the network goes later, wandb's own process writes on, and
    what it has not sent soon after the run's end stays there as well.
    """

    def connect(self, run: RunStart) -> None:
        import wandb

        self._remedy = f"`wandb sync` sends it from {run.run_dir}/wandb"
        options: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", "sfrl"),
            "dir": run.run_dir,
            "id": id_of(run),
            "name": run.run_dir.name,
            "group": run.env,
            "config": {**run.settings, "starts": run.starts},
            "resume": "allow",
            "reinit": "create_new",  # beside one that the calling program has begun
            "settings": wandb.Settings(
                console="off",  # stdout and stderr are the run's
                silent=True,
                init_timeout=_INIT_TIMEOUT_S,
                finish_timeout=_FINISH_TIMEOUT_S,
                finish_timeout_raises=True,
            ),
        }
        try:
            self._run = wandb.init(**options)
        except wandb.Error as error:
            text = str(error).partition("\n")[0].rstrip(".")
            self.tell(f"{text}; written offline: {self._remedy}")
            # wandb's process still holds the name of the one that could not begin.
            own = {"id": f"{options['id']}-{len(run.starts)}", "mode": "offline"}
            self._run = wandb.init(**options | own)
        # Not wandb's steps, which must grow: a run that goes on begins at its checkpoint.
        self._run.define_metric("env_frames")
        self._run.define_metric("*", step_metric="env_frames")

    def send(self, record: Record) -> None:
        self._run.log({name: value for name, value in record.items() if value is not None})

    def finish(self) -> None:
        try:
            self._run.finish()
        except TimeoutError:
            self.tell(f"not all was sent within {_FINISH_TIMEOUT_S} s of the end: {self._remedy}")
