"""What limits the throughput of a run, and how it is said: by panel, tuner and whoever asks."""

from __future__ import annotations

from typing import Literal

from sfrl.records.metrics import Record
from sfrl.records.timing import COMPONENT_STAGES

Bottleneck = Literal["cores", "environments", "rollout", "inference", "learning"]

BOTTLENECKS: dict[Bottleneck, str] = {
    "cores": "limited by the cores",
    "environments": "limited by the environments",
    "rollout": "limited by the workers' wait for actions",
    "inference": "limited by the policy workers",
    "learning": "limited by the learner",
}

_ALWAYS = 0.8  # of its time: a component that works as much hardly waits for the others
_OF_COMPONENT: dict[str, Bottleneck] = {
    "rollout": "environments",
    "policy": "inference",
    "learner": "learning",
}


def bottleneck_of(record: Record) -> Bottleneck | None:
    """By where the time of the record's interval went (docs/metrics.md); None: not known yet.

    The component that never waits is the one that all others wait for. Several that never wait are
    kept from working by each other, for lack of cores. If all of them wait, what the rollout
    workers wait for most tells: for slots, which the learner keeps, or for actions.
    """
    working = {name: record.get(f"{name}/working") for name in COMPONENT_STAGES}
    known = {name: share for name, share in working.items() if share is not None}
    if not known:
        return None
    busy = [name for name, share in known.items() if share >= _ALWAYS]
    if len(busy) > 1:
        return "cores"
    if busy:
        return _OF_COMPONENT[busy[0]]
    slots, actions = (record.get(f"rollout/wait_{what}") or 0.0 for what in ("slot", "actions"))
    return "learning" if slots > actions else "rollout"
