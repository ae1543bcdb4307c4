"""sfrl: reinforcement learning at full speed on one workstation.

    rollout worker --(slot, t)--> policy worker <--weights-- learner
      envs, no net <--actions----  batched inference          V-trace
           |  ^                                                |  ^
           |  +---------------- free slots --------------------+  |
           +------------------- full slots -----------------------+

All experience lives in one TrajectoryBuffer in shared memory; only indices of its slots travel,
through lock-free queues. One role, one module, one loop (`step`): rollout_worker.py,
policy_worker.py, learner.py. crew.py puts them in processes, trainer.py watches over them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfrl.config import Config, ConfigError

if TYPE_CHECKING:
    from sfrl.trainer import Summary, Trainer

__all__ = ["Config", "ConfigError", "Summary", "Trainer", "__version__"]

__version__ = "0.1.0"  # pyproject.toml takes it from here


def __getattr__(name: str) -> object:
    """Trainer on demand: every worker process imports this package and none needs it."""
    if name in ("Summary", "Trainer"):
        from sfrl import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
