"""A3C: each process plays, acts and learns; all of them edit one block of weights, without a lock.

A process takes the weights as they are, plays an unroll of some decisions with that copy, computes
the gradient with it, and applies it to the block, whatever the others have made of that meanwhile.
That many play different episodes takes the place of a memory. RMSprop's means of squares are in the
block as well, with epsilon inside the root.

Against a2c-sync: nobody waits for anybody; a gradient is of weights that others have moved since.
Against impala: who plays also learns, so that nothing but weights is shared.
"""

from sfrl.systems.bundles import DEFAULTS, FIXED, RMSPROP
from sfrl.systems.system import Fixed, System

SYSTEM = System(
    name="a3c",
    purpose="actor-learners that share their weights and nothing else; slow environments",
    paper="Mnih et al. 2016, arXiv:1602.01783",
    algorithm="actor_critic",
    layout="bundles",
    pull="unroll",
    defaults=DEFAULTS,
    fixed=FIXED
    | {
        "optimizer": RMSPROP,
        "loss": Fixed(
            "vtrace", "its policy gradient, which is the plain one: a copy acts and learns"
        ),
        "normalize_returns": Fixed(False, "it edits the weights of all by what one has seen"),
    },
)
