"""The systems by name. Each is a file of its own: the idea, the paper, and the choices.

The differences between these files are what has changed from one system to the next.
"""

from sfrl.systems import appo, dqn, impala, n_step_q, sac
from sfrl.systems.system import System as System

SYSTEMS = {system.name: system for system in (m.SYSTEM for m in (appo, impala, n_step_q, dqn, sac))}
DEFAULT_SYSTEM = appo.SYSTEM.name
