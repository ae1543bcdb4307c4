"""HOGWILD!: many processes add their gradients to one block of weights, and nobody locks it.

The idea is of stochastic gradient descent at large: an update that touches few numbers seldom meets
another. Here the gradients are A3C's, which touch them all; what is left is a plain step, the
gradient times the learning rate, without statistics of past ones.

Against a3c: no means of squares, so that the learning rate has to fit the size of the gradients.
"""

from sfrl.systems.bundles import DEFAULTS, FIXED
from sfrl.systems.system import Fixed, System

SYSTEM = System(
    name="hogwild",
    purpose="what A3C is without its optimizer: plain steps into shared weights",
    paper="Niu et al. 2011, arXiv:1106.5730",
    algorithm="actor_critic",
    layout="bundles",
    defaults=DEFAULTS | {"learning_rate": 0.1},
    fixed=FIXED
    | {
        "optimizer": Fixed("sgd", "it is stochastic gradient descent"),
        "updates": Fixed("racy", "it has no lock"),
        "loss": Fixed("vtrace", "its policy gradient, which is the plain one if nothing is late"),
        "normalize_returns": Fixed(False, "it edits the weights of all by what one has seen"),
    },
)
