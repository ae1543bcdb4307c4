"""Who sends slot indices to whom: every queue of a run."""

from __future__ import annotations

from typing import NamedTuple

from sfrl.ipc import index_queue
from sfrl.ipc.index_queue import IndexQueue, make_index_queue, resolve_queue_kind
from sfrl.ipc.shared_memory import StopFlag
from sfrl.settings.config import Config


class Channels(NamedTuple):
    """The queues between rollout workers (W), policy workers (P) and the learner.

    Messages are packed (slot, t, generation). See index_queue for the interface.
    """

    action_requests: list[IndexQueue]
    """[P]; producer w is rollout worker w: row t of the slot waits for actions."""
    replies: list[IndexQueue]
    """[W]; producer p < P is policy worker p: row t has its actions; producer P is the learner,
    with t = T: the slot is free."""
    trajectories: IndexQueue
    """Producer w is rollout worker w: the slot is full."""

    def wake_all(self) -> None:
        """Let every sleeping consumer see the stop flag."""
        for queue in self.all():
            queue.wake()

    def unlink(self) -> None:
        for queue in self.all():
            queue.unlink()

    def all(self) -> list[IndexQueue]:
        return [*self.action_requests, *self.replies, self.trajectories]


def make_channels(config: Config, stop: StopFlag) -> Channels:
    """Queues that cannot be full: each has room for every slot there is, twice.

    Once for a worker, and once for what was on its way to the one that died before it. More of the
    dead may have asked a policy worker that is stopped: then their successor waits for room.
    """
    kind, room = resolve_queue_kind(config.queue), _room(config)
    requests, replies, [trajectories] = (
        [make_index_queue(kind, name, num_producers, room, stop) for name in names]
        for names, num_producers in _queues(config)
    )
    return Channels(requests, replies, trajectories)


def nbytes(config: Config) -> int:
    """Shared memory that the queues of a run take, in bytes."""
    kind, room = resolve_queue_kind(config.queue), _room(config)
    return sum(len(names) * index_queue.nbytes(kind, n, room) for names, n in _queues(config))


def _queues(config: Config) -> list[tuple[list[str], int]]:
    """As `Channels` has them: names, and the number of producers of each."""
    workers, policies = config.num_workers, config.num_policy_workers
    return [
        ([f"action-requests-{p}" for p in range(policies)], workers),
        ([f"replies-{w}" for w in range(workers)], policies + 1),
        (["trajectories"], workers),
    ]


def _room(config: Config) -> int:
    return 2 * config.num_slots
