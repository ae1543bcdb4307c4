"""LearnerSlots: trajectories are gathered whole, whatever their dtype."""

import numpy as np
import pytest
import torch

from sfrl.envs import OBS, Leaf
from sfrl.experience.minibatch import LearnerSlots, Minibatch
from sfrl.experience.trajectory_buffer import SlotSpec, TrajectoryBuffer
from sfrl.settings.config import RowField
from tests.leaves import choice, vector

S, T, N, H = 3, 4, 5, 2


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((4, 6, 6), "uint8"), ((3, 5, 7), "uint8"), ((7,), "float32"), ((3,), "int64")],
)
@pytest.mark.parametrize("rnn_size", [0, H])
def test_a_minibatch_is_the_chosen_trajectories_in_their_order(shape, dtype, rnn_size):
    others = (vector(3, "obs.speeds"), choice(2, 9, name="obs.room"))
    leaves = (Leaf(OBS, "vector", shape, dtype), *others)
    acted = {"actions": RowField("int64"), "torques": RowField("float32", (2,))}
    buffer = TrajectoryBuffer(S, SlotSpec(T, N, leaves, acted, rnn_size))
    rng = np.random.default_rng(0)
    names = ["valid", "rewards", "terminated", "policy_version", *["rnn_state"] * bool(rnn_size)]
    assert {*names, "rnn_state", "obs", "acted", "ends"} == {*Minibatch._fields}
    # `ends` are of windows alone.
    fields = {name: getattr(buffer, name) for name in names} | buffer.obs | buffer.acted
    for field in fields.values():
        field[...] = rng.integers(256, size=field.shape)
    slots, envs = np.array([2, 0, 2, 1]), np.array([4, 1, 0, 4])
    gatherer = LearnerSlots(buffer, num_slots=S, device=torch.device("cpu"))
    assert gatherer.load([2, 0, 1]) == [2, 0, 1], "on a CPU slots are read where they are"
    gatherer.take()
    minibatch = gatherer.gather(torch.from_numpy(slots), torch.from_numpy(envs))
    gathered = minibatch._asdict() | minibatch.obs | minibatch.acted
    for i, (slot, env) in enumerate(zip(slots, envs, strict=True)):
        for name, field in fields.items():
            got = gathered[name]
            if name == "rnn_state":
                expected, column = field[slot, env], got[i]
            elif name == "policy_version":
                expected, column = field[slot], got[:, i]
            else:
                expected, column = field[slot, :, env], got[:, i]
            np.testing.assert_array_equal(column.numpy(), expected)
            assert column.numpy().dtype == expected.dtype
    assert (minibatch.rnn_state is None) == (rnn_size == 0)
    for name, leaf in minibatch.obs.items():
        buffer.obs[name][...] = 0
        assert leaf.any(), "a copy"
