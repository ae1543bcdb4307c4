"""Asynchronous one-step Sarsa: a target is one reward and the value of the action chosen next.

Against async-q1: values are those of the policy that explores, not of the greedy one; where
exploring is dangerous, it learns to keep away.
"""

from sfrl.systems.bundles import DEFAULTS, FIXED, RMSPROP
from sfrl.systems.system import Fixed, System

SYSTEM = System(
    name="async-sarsa1",
    purpose="as async-q1, valuing the policy that explores",
    paper="Mnih et al. 2016, arXiv:1602.01783, algorithm S2",
    algorithm="n_step_q",
    layout="bundles",
    defaults=DEFAULTS,
    fixed=FIXED | {"optimizer": RMSPROP, "targets": Fixed("sarsa", "it is Sarsa")},
)
