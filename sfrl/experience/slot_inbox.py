"""Full slots come in, and go back to their splits: whoever takes them owns them in between."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from sfrl.experience.trajectory_buffer import Owner, TrajectoryBuffer
from sfrl.ipc.channels import Channels
from sfrl.ipc.index_queue import unpack
from sfrl.ipc.progress import Progress
from sfrl.ipc.topology import LEARNER, Role


class SlotInbox:
    """A learner's end of its queue of trajectories.

        rollout worker --(slot, T)--> take -> ... -> give_back --(slot, T)--> rollout worker

    Attributes:
        queue: what comes in.
        waiting: full slots that have come and that nobody has taken.
    """

    def __init__(
        self,
        buffer: TrajectoryBuffer,
        channels: Channels,
        progress: Progress,
        learner: Role = LEARNER,
    ) -> None:
        self.buffer = buffer
        self.queue = channels.inbox(learner)
        self.waiting: deque[int] = deque()
        self._replies = channels.replies_by_slot(learner)
        self._progress = progress

    def take(self, num_slots: int) -> list[int]:
        """The oldest `num_slots` full slots, which are the caller's then; [] if there are fewer.

        Messages to a learner that has died, with the worker that filled the slot, are dropped.
        """
        messages = map(unpack, self.queue.get_many(self.buffer.num_slots))
        self.waiting.extend(m.slot for m in messages if self.buffer.is_current(m))
        if len(self.waiting) < num_slots:
            return []
        slots = [self.waiting.popleft() for _ in range(num_slots)]
        for slot in slots:
            self.buffer.check_owner(slot, Owner.LEARNER)
        return slots

    def give_back(self, slots: Iterable[int]) -> None:
        """Each goes to its split, which fills it again: nothing of it may be read any more."""
        buffer = self.buffer
        for slot in slots:
            self._progress.learned_steps[slot] += int(buffer.valid[slot, :-1].sum())
            buffer.transfer(slot, Owner.LEARNER, Owner.FREE)
            message = buffer.message(slot, buffer.spec.rollout_length)
            buffer.released[slot] = buffer.generation[slot]
            queue, producer = self._replies[slot]
            queue.put(message, producer)
