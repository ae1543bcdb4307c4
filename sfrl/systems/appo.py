"""Sample Factory's: every part in a process of its own, nobody waits, V-trace and PPO's clip.

Rollout workers step environments and hold no network. Policy workers answer the requests of all of
them in batches, always with the newest weights, so that a trajectory may begin with one policy and
end with another. One learner trains on trajectories as they come; V-trace corrects for the policies
that acted, and PPO's clipped ratio allows several passes over each trajectory.

Rows stay where they are, in shared memory: only their numbers go through queues.
"""

from sfrl.systems.system import System

SYSTEM = System(
    name="appo",
    purpose="the fastest way to a good policy on one machine; for every kind of action",
    paper="Petrenko et al. 2020, arXiv:2006.11751",
    algorithm="actor_critic",
    is_tuned=True,
)
