"""sfrl: reinforcement learning at full speed on one workstation.

    from sfrl import train
    summary = train(env="CartPole-v1", train_frames=100_000)

    rollout worker --(slot, t)--> policy worker <--weights-- learner
      envs, no net <--actions----  batched inference          updates
           |  ^                                                |  ^
           |  +---------------- free slots --------------------+  |
           +------------------- full slots -----------------------+

All experience lives in one TrajectoryBuffer in shared memory; only indices of its slots travel,
through lock-free queues. The folders, each of which imports only from those below it:

    commands/    flags become settings, errors become exit codes
    bench/       what limits this machine;  trial/  a verdict on an environment
    demo/        a short run as one page;  web/  a page that shows runs
    tune/        finds the fastest arrangement for this machine
    run/         processes: trainer, crews, watchdog; alone knows all workers
    show/        panel, output, player;  policy.py, export.py  saved weights, elsewhere
    workers/     rollout worker, policy worker, learner: a module and a loop (`step`) each
    algorithms/  what is learned, and how it acts: actor_critic, n_step_q, ...
    experience/  slots, and the minibatches made of them
    parameters/  weights, optimizer, publication
    ipc/         queues, mailboxes, counters, addresses in shared memory
    callbacks/   who is told what happens in a run
    runs/        what a run tells afterwards: read, diagnosed, compared, drawn
    records/     metrics, checkpoints, the run's folder
    settings/    groups of settings and their rules, one file for each algorithm
    nets/        encoders, distributions;  maths/  V-trace, returns, losses
    envs/        Atari and Gymnasium behind one interface

docs/architecture.md has the same picture, and the reasons.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfrl.api import train
    from sfrl.callbacks.callback import Callback
    from sfrl.policy import Policy, load
    from sfrl.records.checkpoint import CheckpointError
    from sfrl.run.crew import WorkerError
    from sfrl.run.trainer import Summary
    from sfrl.settings.config import ConfigError

__version__ = "0.1.0"  # pyproject.toml takes it from here

_PUBLIC = {
    "Callback": "sfrl.callbacks.callback",
    "CheckpointError": "sfrl.records.checkpoint",
    "ConfigError": "sfrl.settings.config",
    "Policy": "sfrl.policy",
    "Summary": "sfrl.run.trainer",
    "WorkerError": "sfrl.run.crew",
    "load": "sfrl.policy",
    "train": "sfrl.api",
}

__all__ = [
    "Callback",
    "CheckpointError",
    "ConfigError",
    "Policy",
    "Summary",
    "WorkerError",
    "__version__",
    "load",
    "train",
]


def __getattr__(name: str) -> object:
    """On demand: every worker process imports this package and none needs these."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
