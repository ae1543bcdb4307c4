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

from sfrl.config import Config, ConfigError

__all__ = ["Config", "ConfigError"]
