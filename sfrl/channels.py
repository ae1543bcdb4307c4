"""Who sends slot indices to whom: every queue of a run."""

from __future__ import annotations

from typing import NamedTuple

from sfrl.config import Config
from sfrl.index_queue import IndexQueue, make_index_queue, resolve_queue_kind
from sfrl.shared_memory import StopFlag


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
    kind = resolve_queue_kind(config.queue)
    workers, policies, room = config.num_workers, config.num_policy_workers, 2 * config.num_slots
    return Channels(
        action_requests=[
            make_index_queue(kind, f"action-requests-{p}", workers, room, stop)
            for p in range(policies)
        ],
        replies=[
            make_index_queue(kind, f"replies-{w}", policies + 1, room, stop) for w in range(workers)
        ],
        trajectories=make_index_queue(kind, "trajectories", workers, room, stop),
    )
