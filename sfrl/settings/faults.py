from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from sfrl.settings.fields import Seconds, Settings, at_least


@dataclass(frozen=True, kw_only=True)
class FaultSettings(Settings):
    """Faults."""

    max_worker_restarts: Annotated[int, at_least(0)] = 10
    """A rollout worker that dies or hangs is started again, after a delay that grows if it fails
    again soon. After this many restarts of one worker within an hour the run ends."""
    env_timeout: Seconds = 60.0
    """Seconds after which the start, a reset or a step of an environment is given up, and its
    worker started again."""
    on_nan: Literal["skip", "stop"] = "skip"
    """NaN or infinity from an environment. skip: its episode is cut off before, with a warning.
    stop: the run ends. Neither ever reaches the learner."""
    stall_timeout: Seconds = 10.0
    """Seconds without a minibatch or an inference done after which a learner or policy worker with
    work to do counts as hanging, and the run ends."""
