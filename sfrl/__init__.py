"""sfrl: reinforcement learning at full speed on one workstation.

    from sfrl import train
    summary = train(env="CartPole-v1", train_frames=100_000)

    rollout worker --(slot, t)--> policy worker <--weights-- learner
      envs, no net <--actions----  batched inference          V-trace
           |  ^                                                |  ^
           |  +---------------- free slots --------------------+  |
           +------------------- full slots -----------------------+

All experience lives in one TrajectoryBuffer in shared memory; only indices of its slots travel,
through lock-free queues. One role, one module, one loop (`step`): rollout_worker.py,
policy_worker.py, learner.py. process_crew.py starts them, trainer.py watches over them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfrl.api import train
    from sfrl.records.checkpoint import CheckpointError
    from sfrl.run.crew import WorkerError
    from sfrl.run.trainer import Summary
    from sfrl.settings.config import ConfigError

__version__ = "0.1.0"  # pyproject.toml takes it from here

_PUBLIC = {
    "CheckpointError": "sfrl.records.checkpoint",
    "ConfigError": "sfrl.settings.config",
    "Summary": "sfrl.run.trainer",
    "WorkerError": "sfrl.run.crew",
    "train": "sfrl.api",
}

__all__ = ["CheckpointError", "ConfigError", "Summary", "WorkerError", "__version__", "train"]


def __getattr__(name: str) -> object:
    """On demand: every worker process imports this package and none needs these."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
