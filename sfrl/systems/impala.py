"""IMPALA: actors carry the policy, frozen for an unroll; V-trace corrects for its age.

An actor is a process that steps environments and chooses their actions itself: there is no request
to wait for. At the start of each unroll it takes the newest weights and keeps them to its end, so
that one policy has made the whole trajectory. The learner takes trajectories as they come; by then
it has other weights, and V-trace weighs what an older policy did.

Against appo: each actor needs the network and a core's time for it, and batches are as small as its
environments are few; a GPU has nothing to do but learn.
"""

from sfrl.systems.system import Fixed, System

SYSTEM = System(
    name="impala",
    purpose="actors that need no policy worker; for cheap networks and slow environments",
    paper="Espeholt et al. 2018, arXiv:1802.01561",
    algorithm="actor_critic",
    layout="actors",
    pull="unroll",
    fixed={
        "loss": Fixed("vtrace", "its policy gradient corrects for the age of the policy"),
        "num_splits": Fixed(
            1, "splits share the actor's network, and one's unroll would begin within another's"
        ),
        "num_policy_workers": Fixed(1, "each actor has one of its own"),
    },
)
