"""Soft actor-critic with many actors: a policy that stays as random as it may, from a memory.

The processes and the memory are dqn's. Twin critics value actions of a Box, the policy moves along
their gradient, and a temperature, which is learned as well, sets the price of randomness.
"""

from sfrl.systems.system import System

SYSTEM = System(
    name="sac",
    purpose="few decisions from slow simulators; actions of a Box",
    paper="Haarnoja et al. 2018, arXiv:1812.05905",
    algorithm="sac",
)
