"""Asynchronous one-step Q-learning: a target is one reward and the best value after it.

The processes act with the block as it is at each decision, not with a copy kept for an unroll:
what follows one decision does not depend on the policy of the next.

Against async-qn: rewards travel back one decision at a time, without what later actions did.
"""

from sfrl.systems.bundles import DEFAULTS, FIXED, RMSPROP
from sfrl.systems.system import Fixed, System

SYSTEM = System(
    name="async-q1",
    purpose="as async-qn, with targets of one reward",
    paper="Mnih et al. 2016, arXiv:1602.01783, algorithm 1",
    algorithm="n_step_q",
    layout="bundles",
    defaults=DEFAULTS,
    fixed=FIXED | {"optimizer": RMSPROP, "targets": Fixed("one-step", "it is one-step Q-learning")},
)
