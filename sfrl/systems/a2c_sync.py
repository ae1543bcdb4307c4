"""Synchronous advantage actor-critic: a round of all environments, then an update, then a round.

The baseline that asynchronous systems were made against. Nobody works on while the learner learns,
and the learner waits for the slowest environment of each round; in return no row is older than the
weights that learn from it, and V-trace's corrections are all 1: they are plain returns.

Against impala: the same loss, and policies are never late; a step that takes long holds up all.
"""

from sfrl.systems.system import Fixed, System

SYSTEM = System(
    name="a2c-sync",
    purpose="the synchronous baseline: no policy lag; rounds as slow as their slowest step",
    paper="Mnih et al. 2016, arXiv:1602.01783, without its asynchrony",
    algorithm="actor_critic",
    is_synchronous=True,
    defaults={"num_splits": 1},  # nobody works while another split's actions are computed
    fixed={
        "loss": Fixed("vtrace", "its policy gradient, which on-policy is the plain one"),
        "epochs": Fixed(1, "after one pass the rows are of an older policy"),
        "minibatches": Fixed(1, "after one step the other rows would be of an older policy"),
        "slots_per_split": Fixed(1, "with a second slot a split would go on meanwhile"),
    },
)
