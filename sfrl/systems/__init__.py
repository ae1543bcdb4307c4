"""The systems by name. Each is a file of its own: the idea, the paper, and the choices.

The differences between these files are what has changed from one system to the next.
"""

from sfrl.systems import (
    a2c_sync,
    a3c,
    appo,
    async_q1,
    async_qn,
    async_sarsa1,
    dqn,
    hogwild,
    impala,
    n_step_q,
    sac,
    seed,
)
from sfrl.systems.system import System as System

_MODULES = (
    *(appo, impala, seed, a2c_sync, a3c, hogwild),
    *(n_step_q, async_qn, async_q1, async_sarsa1, dqn, sac),
)
SYSTEMS: dict[str, System] = {module.SYSTEM.name: module.SYSTEM for module in _MODULES}
DEFAULT_SYSTEM = appo.SYSTEM.name
