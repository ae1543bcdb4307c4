"""SlotInbox: the oldest slots first, whole batches alone, and back to the right worker."""

import pytest

from sfrl.experience.slot_inbox import SlotInbox
from sfrl.experience.trajectory_buffer import Owner, OwnershipError
from sfrl.ipc.index_queue import unpack

T = 4
SETTINGS = {
    "env": "CartPole-v1",
    "frameskip": 1,
    "model": "mlp",
    "num_workers": 2,
    "num_splits": 1,
    "envs_per_worker": 2,
    "slots_per_split": 3,
    "rollout_length": T,
    "batch_size": 2 * T,
    "minibatches": 1,
    "debug_buffers": True,
}


@pytest.fixture
def shared(make_shared):
    return make_shared(**SETTINGS)


def fill(shared, slot):
    """As its rollout worker does."""
    shared.buffer.transfer(slot, Owner.FREE, Owner.ROLLOUT_WORKER)
    shared.buffer.generation[slot] += 1
    shared.buffer.valid[slot] = True
    shared.buffer.transfer(slot, Owner.ROLLOUT_WORKER, Owner.LEARNER)
    shared.channels.trajectories[0].put(shared.buffer.message(slot, T), slot // 3)


def test_slots_are_taken_in_whole_batches(shared):
    inbox = SlotInbox(shared.buffer, shared.channels, shared.progress)
    fill(shared, 1)
    assert inbox.take(2) == []
    assert list(inbox.waiting) == [1]
    for slot in (4, 0):
        fill(shared, slot)
    taken = inbox.take(2)
    assert taken[0] == 1
    assert [*taken, *inbox.waiting] in ([1, 4, 0], [1, 0, 4]), "the queue serves workers in turn"


def test_slots_go_back_to_their_workers_and_are_counted(shared):
    inbox = SlotInbox(shared.buffer, shared.channels, shared.progress)
    for slot in (1, 4):
        fill(shared, slot)
    shared.buffer.valid[4, 0, 0] = False  # of a row that only resets
    inbox.give_back(inbox.take(2))
    for worker, slot in ((0, 1), (1, 4)):
        [message] = shared.channels.replies[worker].get_many(10)
        assert unpack(message) == (slot, T, 1)
        assert not shared.buffer.is_filled[slot]
    assert shared.progress.learned_steps[[1, 4]].tolist() == [2 * T, 2 * T - 1]


def test_a_slot_of_somebody_else_is_not_given_away(shared):
    inbox = SlotInbox(shared.buffer, shared.channels, shared.progress)
    with pytest.raises(OwnershipError, match="LEARNER uses slot 2"):
        inbox.give_back([2])
