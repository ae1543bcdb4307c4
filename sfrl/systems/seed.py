"""SEED RL: one process has the network, and both acts and learns with it; no weights travel.

Rollout workers step environments and ask for every action. The process that learns answers: it
takes turns between one minibatch and all the requests that have come meanwhile, with the weights of
the last optimizer step. A trajectory thus begins with one policy and ends with another, as appo's
does, but no policy that acts is ever older than the last step, and there is one copy of the weights
to keep.

Against appo: who waits for an action waits for a minibatch as well, and two networks that could
work side by side on two cores take turns on one. SEED RL does both on one accelerator.
"""

from sfrl.systems.system import Fixed, System

SYSTEM = System(
    name="seed",
    purpose="acting is never behind learning; for an accelerator that does both",
    paper="Espeholt et al. 2020, arXiv:1910.06591",
    algorithm="actor_critic",
    layout="central",
    fixed={
        "loss": Fixed("vtrace", "its policy gradient, as IMPALA's"),
        "num_policy_workers": Fixed(1, "the learner's process has one, and one network"),
        "policy_devices": Fixed("", "it acts where it learns"),
    },
)
