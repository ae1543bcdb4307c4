"""Deep Q-network with many actors: action values, drawn again and again from a memory.

The processes are appo's. What they play goes into a memory in the learner's process, from which
minibatches are drawn uniformly. How many for each decision is a setting; whoever is ahead waits.
Each environment keeps a final epsilon of its own (Horgan et al. 2018, arXiv:1803.00933).
"""

from sfrl.systems.system import System

SYSTEM = System(
    name="dqn",
    purpose="few decisions from slow environments; one Discrete action",
    paper="Mnih et al. 2015, doi:10.1038/nature14236",
    algorithm="dqn",
)
