"""Asynchronous n-step Q-learning: A3C's processes and block, with values of actions.

Each process plays an unroll with a copy of the shared values, epsilon-greedily, with epsilons of
its own environments, and learns from the rewards up to its end. The target network is shared as
well: the first process renews it.

Against n-step-q: many learners, each with the gradient of its own unroll, instead of one.
"""

from sfrl.systems.bundles import DEFAULTS, FIXED, RMSPROP
from sfrl.systems.system import Fixed, System

SYSTEM = System(
    name="async-qn",
    purpose="action values by many learners at once; one Discrete action",
    paper="Mnih et al. 2016, arXiv:1602.01783, algorithm S3",
    algorithm="n_step_q",
    layout="bundles",
    pull="unroll",
    defaults=DEFAULTS,
    fixed=FIXED | {"optimizer": RMSPROP, "targets": Fixed("n-step", "it is n-step Q-learning")},
)
