"""Who there is in a run, and whose each slot is: roles, their rows and links, and the slot map.

Made once from the settings. Whoever needs an address asks here: nobody else computes one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sfrl.records.timing import COMPONENT_STAGES, Kind
from sfrl.settings.config import Config
from sfrl.systems import SYSTEMS

# Who sends to whom, by kind: the receiver -> the senders, in the order of its queue's producers.
_SENDERS: dict[Kind, tuple[Kind, ...]] = {
    "rollout": ("policy", "learner"),
    "policy": ("rollout",),
    "learner": ("rollout",),
}


@dataclass(frozen=True, slots=True)
class Role:
    """One worker of a run; a key of dicts. What its kind's class is, `run/roles.py` knows."""

    kind: Kind
    index: int  # among those of its kind

    @property
    def name(self) -> str:
        """In logs and process titles; a process has that of its first role."""
        return self.kind if self == LEARNER else f"{self.kind}-{self.index}"

    @property
    def has_envs(self) -> bool:
        return self.kind == "rollout"

    @property
    def is_restartable(self) -> bool:
        """Whether another may take the place of a process whose first role it is.

        The others have what nobody else has. Whoever shares a rollout worker's process serves it
        alone, and has nothing of others.
        """
        return self.kind == "rollout"


LEARNER = Role("learner", 0)
"""The first one, which most systems have alone."""


class SlotMap(NamedTuple):
    """Whose each slot is. Tuples of integers, which the hot loops look up without computing.

    A split owns a fixed pool of slots, is stepped by one rollout worker and served by one policy
    worker. All splits have the same sizes.
    """

    split: tuple[int, ...]  # [S], the split that owns the slot
    rollout: tuple[int, ...]  # [splits], the index of its rollout worker
    policy: tuple[int, ...]  # [splits], the index of its policy worker
    slots_per_split: int
    envs_per_split: int

    def of_split(self, split: int) -> range:
        """Its pool of slots."""
        first = split * self.slots_per_split
        return range(first, first + self.slots_per_split)

    def splits_of(self, worker: int) -> list[int]:
        """Those that rollout worker `worker` steps."""
        return [split for split, owner in enumerate(self.rollout) if owner == worker]

    def of_worker(self, worker: int) -> list[int]:
        """The slots that rollout worker `worker` fills."""
        return [slot for split in self.splits_of(worker) for slot in self.of_split(split)]

    def columns(self, slot: int) -> range:
        """[N], the numbers of its environments among all those of the run."""
        first = self.split[slot] * self.envs_per_split
        return range(first, first + self.envs_per_split)


class Topology(NamedTuple):
    """All roles of a run, and their addresses in queues and counters."""

    counts: Mapping[Kind, int]  # roles of each kind
    slots: SlotMap
    processes: Mapping[Role, tuple[Role, ...]]
    """Who shares a process, in the order of their turns, by the first of them, whose name, mailbox
    and end are the process's."""

    @property
    def roles(self) -> list[Role]:
        """In the order of their rows."""
        return [role for kind in COMPONENT_STAGES for role in self.of_kind(kind)]

    @property
    def num_roles(self) -> int:
        return sum(self.counts.values())

    def of_kind(self, kind: Kind) -> list[Role]:
        return [Role(kind, index) for index in range(self.counts[kind])]

    def process_of(self, role: Role) -> Role:
        """The first role of its process."""
        return next(first for first, members in self.processes.items() if role in members)

    def learners_in(self, process: Role) -> list[Role]:
        """Of those who share the process with this first role."""
        return [role for role in self.processes[process] if role.kind == "learner"]

    def learner_of(self, role: Role) -> Role:
        """Who learns from what this rollout or policy worker does."""
        return Role("learner", role.index if self.counts["learner"] > 1 else 0)

    @property
    def acts_elsewhere(self) -> bool:
        """Whether weights cross from the learner's process to another."""
        return self.process_of(Role("policy", 0)) != self.process_of(LEARNER)

    def row(self, role: Role) -> int:
        """Where its times are in `Progress`."""
        return self._position(role, tuple(COMPONENT_STAGES))

    def num_producers(self, receiver: Kind) -> int:
        """Of the queue that each role of kind `receiver` reads."""
        return sum(self.counts[kind] for kind in _SENDERS[receiver])

    def producer(self, sender: Role, receiver: Role) -> int:
        """The number of `sender` among the producers of that queue."""
        return self._position(sender, _SENDERS[receiver.kind])

    def _position(self, role: Role, kinds: tuple[Kind, ...]) -> int:
        """In a list of all roles of these kinds."""
        assert role.kind in kinds, f"{role.name} is none of {kinds}"
        assert 0 <= role.index < self.counts[role.kind], f"there is no {role.name}"
        return sum(self.counts[kind] for kind in kinds[: kinds.index(role.kind)]) + role.index


def make_topology(config: Config) -> Topology:
    """Splits are dealt to rollout workers in blocks, to policy workers in turn."""
    splits = range(config.splits)
    rollout = tuple(split // config.num_splits for split in splits)
    slots = SlotMap(
        split=tuple(slot // config.slots_per_split for slot in range(config.num_slots)),
        rollout=rollout,
        policy=rollout
        if config.has_actors
        else tuple(split % config.num_policy_workers for split in splits),
        slots_per_split=config.slots_per_split,
        envs_per_split=config.envs_per_split,
    )
    counts: dict[Kind, int] = {
        "rollout": config.num_workers,
        "policy": config.num_policies,
        "learner": config.num_learners,
    }
    return Topology(counts, slots, _processes(config, counts))


def _processes(config: Config, counts: Mapping[Kind, int]) -> dict[Role, tuple[Role, ...]]:
    """As the system's layout says; with --serial all roles have one."""
    rollouts, policies, learners = (
        [Role(kind, index) for index in range(counts[kind])] for kind in COMPONENT_STAGES
    )
    groups: list[tuple[Role, ...]]
    if config.serial:
        groups = [(*learners, *policies, *rollouts)]
    else:
        match SYSTEMS[config.system].layout:
            case "separate":
                groups = [(role,) for role in (*rollouts, *policies, *learners)]
            case "actors":
                groups = [*zip(rollouts, policies, strict=True), tuple(learners)]
            case "central":
                groups = [*((role,) for role in rollouts), (*learners, *policies)]
            case "bundles":
                groups = [*zip(rollouts, policies, learners, strict=True)]
    return {group[0]: group for group in groups}
