"""Who sends slot indices to whom: every queue of a run."""

from __future__ import annotations

from typing import NamedTuple

from sfrl.ipc import index_queue
from sfrl.ipc.index_queue import IndexQueue, QueueKind, make_index_queue
from sfrl.ipc.shared_memory import StopFlag
from sfrl.ipc.topology import Role, Topology
from sfrl.records.timing import Kind

Outbox = tuple[IndexQueue, int]
"""Where a role puts its messages to another one: (queue, producer), `queue.put(message, producer)`.

A plain tuple, because the loops unpack it for every message: a NamedTuple takes 30 ns more.
"""


class Channels(NamedTuple):
    """The queues between rollout workers (W), policy workers (P) and learners (L).

    Each role reads one of them, and is a producer of those that the roles it sends to read. Those
    that one process reads ring one doorbell, that of its first role's queue.
    Messages are packed (slot, t, generation). See index_queue for the interface.
    """

    topology: Topology
    action_requests: list[IndexQueue]
    """[P], from rollout workers: row t of the slot waits for actions."""
    replies: list[IndexQueue]
    """[W], from policy workers: row t has its actions; from a learner, with t = T: the slot is
    free."""
    trajectories: list[IndexQueue]
    """[L], from rollout workers: the slot is full."""

    def inbox(self, role: Role) -> IndexQueue:
        """The queue that it reads."""
        match role.kind:
            case "rollout":
                return self.replies[role.index]
            case "policy":
                return self.action_requests[role.index]
            case "learner":
                return self.trajectories[role.index]

    def outbox(self, sender: Role, receiver: Role) -> Outbox:
        return self.inbox(receiver), self.topology.producer(sender, receiver)

    def replies_by_slot(self, sender: Role) -> list[Outbox]:
        """[S], to the rollout worker that fills the slot."""
        slots, workers = self.topology.slots, self.topology.of_kind("rollout")
        outboxes = [self.outbox(sender, worker) for worker in workers]
        return [outboxes[slots.rollout[split]] for split in slots.split]

    def wake_all(self) -> None:
        """Let every sleeping consumer see the stop flag."""
        for queue in self.all():
            queue.wake()

    def unlink(self) -> None:
        for queue in self.all():
            queue.unlink()

    def all(self) -> list[IndexQueue]:
        return [*self.action_requests, *self.replies, *self.trajectories]


def make_channels(topology: Topology, queue_kind: QueueKind, stop: StopFlag) -> Channels:
    """Queues that cannot be full: each has room for every slot there is, twice.

    Once for a worker, and once for what was on its way to the one that died before it. More of the
    dead may have asked a policy worker that is stopped: then their successor waits for room.
    """

    inboxes: dict[Role, IndexQueue] = {}
    for first, members in topology.processes.items():
        for role in members:
            sizes = topology.num_producers(role.kind), _room(topology)
            bell = inboxes[first] if role != first else None
            inboxes[role] = make_index_queue(queue_kind, _name(role), *sizes, stop, bell=bell)

    def queues(kind: Kind) -> list[IndexQueue]:
        return [inboxes[role] for role in topology.of_kind(kind)]

    return Channels(topology, queues("policy"), queues("rollout"), queues("learner"))


def nbytes(topology: Topology, queue_kind: QueueKind) -> int:
    """Shared memory that the queues of a run take, in bytes."""
    return sum(
        count * index_queue.nbytes(queue_kind, topology.num_producers(kind), _room(topology))
        for kind, count in topology.counts.items()
    )


def _name(receiver: Role) -> str:
    """Of its queue: what is in it."""
    match receiver.kind:
        case "rollout":
            return f"replies-{receiver.index}"
        case "policy":
            return f"action-requests-{receiver.index}"
        case "learner":
            return f"trajectories-{receiver.index}"


def _room(topology: Topology) -> int:
    return 2 * len(topology.slots.split)
