"""What limits the throughput of a run, and how it is said: by panel, tuner and whoever asks."""

from __future__ import annotations

from typing import Literal

from sfrl.records.metrics import Record
from sfrl.records.timing import COMPONENT_STAGES

Bottleneck = Literal["cores", "environments", "python", "rollout", "inference", "learning"]

BOTTLENECKS: dict[Bottleneck, str] = {
    "cores": "limited by the cores",
    "environments": "limited by the environments",
    "python": "limited by the workers' Python",
    "rollout": "limited by the workers' wait for actions",
    "inference": "limited by the policy workers",
    "learning": "limited by the learner",
}

_ALWAYS = 0.8  # of its time: a component that works as much hardly waits for the others
_OF_COMPONENT: dict[str, Bottleneck] = {
    "policy": "inference",
    "learner": "learning",
}


def bottleneck_of(record: Record) -> Bottleneck | None:
    """By where the time of the record's interval went (docs/metrics.md); None: not known yet.

    The component that never waits is the one that all others wait for; if those are the rollout
    workers, it is the environments or what is done beside them, whichever takes longer. Several
    that never wait are kept from working by each other, for lack of cores. If all wait, what the
    rollout workers wait for most tells: for slots, which the learner keeps, or for actions.
    """
    if all(record.get(f"{name}/working") is None for name in COMPONENT_STAGES):
        return None
    busy = _never_wait(record)
    if len(busy) > 1:
        return "cores"
    if busy == ["rollout"]:
        steps, working = (record.get(f"rollout/{what}") for what in ("env_step", "working"))
        is_beside = steps is not None and working is not None and steps < working / 2
        return "python" if is_beside else "environments"
    if busy:
        return _OF_COMPONENT[busy[0]]
    if record.get("policy/working") is None:
        return None  # it still starts, and who waits for it does so no longer than that
    slots, actions = (record.get(f"rollout/wait_{what}") or 0.0 for what in ("slot", "actions"))
    return "learning" if slots > actions else "rollout"


def limit_of(record: Record, *, is_serial: bool) -> str | None:
    """What `bottleneck_of` says, in words; None: not known yet."""
    bottleneck = bottleneck_of(record)
    if bottleneck == "cores" and is_serial:  # each works whenever it is its turn
        return "limited by one thread, which does all in turn (--serial)"
    return bottleneck and BOTTLENECKS[bottleneck]


def limiting_components(record: Record) -> list[str]:
    """Those that `bottleneck_of` means: the one, or those that lack cores; [] if not known yet."""
    bottleneck = bottleneck_of(record)
    if bottleneck in (None, "cores"):
        return _never_wait(record)
    of_bottleneck = {limit: component for component, limit in _OF_COMPONENT.items()}
    return [of_bottleneck.get(bottleneck, "rollout")]


def _never_wait(record: Record) -> list[str]:
    return [name for name in COMPONENT_STAGES if (record.get(f"{name}/working") or 0) >= _ALWAYS]
