import multiprocessing
from collections.abc import Iterator

import numpy as np
import pytest

from sfrl.experience.trajectory_buffer import (
    Owner,
    OwnershipError,
    SlotSpec,
    TrajectoryBuffer,
    nbytes,
)
from sfrl.ipc import shared_memory
from sfrl.settings.config import RowField
from tests.leaves import choice, image

ACTED = {"actions": RowField("int64"), "goals": RowField("int16", (2,))}
LEAVES = (image(1, 2, 4), choice(3, 9, name="obs.room"))
SPEC = SlotSpec(5, 3, LEAVES, ACTED, state_size=7)


@pytest.fixture
def buffer() -> Iterator[TrajectoryBuffer]:
    buffer = TrajectoryBuffer(4, SPEC)
    yield buffer
    buffer.unlink()


@pytest.fixture
def debug_buffer() -> Iterator[TrajectoryBuffer]:
    buffer = TrajectoryBuffer(4, SPEC, debug=True)
    yield buffer
    buffer.unlink()


def test_fields_have_the_documented_shapes(buffer):
    assert buffer.obs.keys() == {"obs", "obs.room"}
    assert buffer.obs["obs"].shape == (4, 6, 3, 1, 2, 4)
    assert buffer.obs["obs"].dtype == np.uint8
    assert buffer.obs["obs.room"].shape == (4, 6, 3, 2)
    assert buffer.obs["obs.room"].dtype == np.int32
    assert buffer.acted["goals"].shape == (4, 5, 3, 2)
    assert buffer.acted["goals"].dtype == np.int16
    for name in ("actions", "rewards", "terminated", "truncated"):
        assert getattr(buffer, name).shape == (4, 5, 3), name
    assert buffer.valid.shape == (4, 6, 3)
    assert buffer.policy_version.shape == (4, 5)
    assert buffer.rnn_state.shape == (4, 3, 7)


def test_nbytes_is_what_the_segments_take(buffer):
    files = [segment.path.stat() for segment in buffer._segments.values()]
    assert nbytes(4, SPEC) == sum(file.st_blocks * 512 for file in files)


def _write_from_child(buffer: TrajectoryBuffer) -> None:
    buffer.obs["obs"][2, 1] = 7
    buffer.rewards[3, 4, 2] = -1.5


def test_a_child_writes_into_the_same_memory(buffer):
    child = multiprocessing.get_context("spawn").Process(target=_write_from_child, args=(buffer,))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert (buffer.obs["obs"][2, 1] == 7).all()
    assert buffer.rewards[3, 4, 2] == -1.5
    assert buffer.obs["obs"].sum() == 7 * 3 * 2 * 4


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        TrajectoryBuffer(0, SPEC)
    with pytest.raises(ValueError, match="rollout_length=0"):
        TrajectoryBuffer(1, SPEC._replace(rollout_length=0))


def test_too_small_shm_is_refused_with_needed_and_available_mib():
    num_slots = shared_memory.shutil.disk_usage("/dev/shm").total // (6 * 3 * 8) + 1
    with pytest.raises(MemoryError, match=r"needs \d+ MiB .* has \d+ MiB available"):
        TrajectoryBuffer(num_slots, SPEC)


def test_unlink_leaves_nothing_in_shm(buffer):
    buffer.unlink()
    assert not [s.path for s in buffer._segments.values() if s.path.exists()]


class TestDebug:
    def test_a_slot_goes_round_its_owners(self, debug_buffer):
        debug_buffer.transfer(1, Owner.FREE, Owner.ROLLOUT_WORKER)
        debug_buffer.transfer(1, Owner.ROLLOUT_WORKER, Owner.POLICY_WORKER)
        debug_buffer.transfer(1, Owner.POLICY_WORKER, Owner.ROLLOUT_WORKER)
        debug_buffer.transfer(1, Owner.ROLLOUT_WORKER, Owner.LEARNER)
        debug_buffer.check_owner(1, Owner.LEARNER)
        debug_buffer.transfer(1, Owner.LEARNER, Owner.FREE)

    def test_handing_over_what_one_does_not_own_is_detected(self, debug_buffer):
        debug_buffer.transfer(1, Owner.FREE, Owner.ROLLOUT_WORKER)
        with pytest.raises(OwnershipError, match=r"LEARNER uses slot 1, .* ROLLOUT_WORKER"):
            debug_buffer.transfer(1, Owner.LEARNER, Owner.FREE)

    def test_writing_what_one_does_not_own_is_detected(self, debug_buffer):
        debug_buffer.transfer(1, Owner.FREE, Owner.ROLLOUT_WORKER)
        debug_buffer.check_owner(1, Owner.ROLLOUT_WORKER)
        with pytest.raises(OwnershipError, match="POLICY_WORKER uses slot 1"):
            debug_buffer.check_owner(1, Owner.POLICY_WORKER)

    @pytest.mark.parametrize(
        "field", ["obs", "obs.room", "actions", "goals", "rewards", "policy_version"]
    )
    def test_a_write_to_a_free_slot_is_detected_when_it_is_taken(self, debug_buffer, field):
        fields = vars(debug_buffer) | debug_buffer.obs | debug_buffer.acted
        fields[field][2, 3] = 0
        with pytest.raises(OwnershipError, match=f"{field} of slot 2 was written while"):
            debug_buffer.transfer(2, Owner.FREE, Owner.ROLLOUT_WORKER)

    def test_a_freed_slot_is_poisoned(self, debug_buffer):
        debug_buffer.transfer(0, Owner.FREE, Owner.ROLLOUT_WORKER)
        debug_buffer.rewards[0] = 1.0
        debug_buffer.transfer(0, Owner.ROLLOUT_WORKER, Owner.LEARNER)
        debug_buffer.transfer(0, Owner.LEARNER, Owner.FREE)
        assert np.isnan(debug_buffer.rewards[0]).all()
        assert (debug_buffer.actions[0] == -1).all()
