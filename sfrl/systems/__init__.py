"""The systems by name. Each is a file of its own: the idea, the paper, and the choices.

The differences between these files are what has changed from one system to the next.
"""

from sfrl.systems import a2c_sync, appo, dqn, impala, n_step_q, sac, seed
from sfrl.systems.system import System as System

_MODULES = (appo, impala, seed, a2c_sync, n_step_q, dqn, sac)
SYSTEMS: dict[str, System] = {module.SYSTEM.name: module.SYSTEM for module in _MODULES}
DEFAULT_SYSTEM = appo.SYSTEM.name
