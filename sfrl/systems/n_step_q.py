"""n-step Q-learning by batches: the values of actions, from whole trajectories in their order.

The processes are appo's. The learner learns what each action is worth from the rewards that
followed it, up to the end of its trajectory, and the value that a target network gives to that end.
Acting is epsilon-greedy; each environment keeps a final epsilon of its own, so that all of them
together explore widely. Nothing is remembered: a trajectory is learned from and forgotten.
"""

from sfrl.systems.system import System

SYSTEM = System(
    name="n-step-q",
    purpose="action values without a memory; one Discrete action",
    paper="Mnih et al. 2016, arXiv:1602.01783, algorithm S3",
    algorithm="n_step_q",
    is_tuned=True,
)
