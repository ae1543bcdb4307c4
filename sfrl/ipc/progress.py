"""How far the run is and what its processes do: counters in shared memory, one writer each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sfrl.ipc.shared_memory import Field, SharedArray, segment_bytes
from sfrl.ipc.topology import Role, Topology
from sfrl.records.timing import COMPONENT_STAGES, Kind

_MAX_STAGES = 8
_COUNTS = ("env_steps", "begun_steps", "learned_steps", "restarts")


class Progress:
    """Counters that the trainer, the learner's schedule and the checkpoints read without asking.

    Attributes:
        topology: whose they are.
        frameskip: emulated frames per decision.
        env_steps: [S+1] int64, decisions; entry s counts those ever written into slot s, by its
            rollout worker, the last one those of earlier starts of the run. Rows that only reset
            are not counted.
        begun_steps: [S] int64, `env_steps` when the present filling of the slot began.
        learned_steps: [S] int64, decisions that the learner has received in the slot and given
            back, whether it trained on them or dropped them.
        stepping: [W, splits of a worker] int64, the environment that steps now, counted from 0 in
            its split; -1 between steps.
        restarts: [W] int64, how often the rollout worker was started again; the trainer counts.
        updates: [L, 3] int64, optimizer steps that the learner has applied, those it has skipped,
            and rows it has dropped; those of earlier starts are in the first one's.
        saving: [L] int64, whether the learner writes a checkpoint, which takes as long as the disk
            does.
    """

    def __init__(self, topology: Topology, frameskip: int) -> None:
        self.topology = topology
        self.frameskip = frameskip
        self._segments = {name: SharedArray(name, *f) for name, f in _fields(topology).items()}
        self._bind()
        self.stepping[:] = -1

    def _bind(self) -> None:
        # SharedArray.array is NDArray[Any]: the dtypes below are those of `_fields`.
        self.env_steps: NDArray[np.int64] = self._segments["env-steps"].array
        self.begun_steps: NDArray[np.int64] = self._segments["begun-steps"].array
        self.learned_steps: NDArray[np.int64] = self._segments["learned-steps"].array
        self.stepping: NDArray[np.int64] = self._segments["stepping"].array
        self.restarts: NDArray[np.int64] = self._segments["restarts"].array
        self.updates: NDArray[np.int64] = self._segments["updates"].array
        self.saving: NDArray[np.int64] = self._segments["saving"].array
        self._stages: NDArray[np.float64] = self._segments["stage-seconds"].array

    @property
    def total_env_steps(self) -> int:
        return int(self.env_steps.sum())

    @property
    def env_frames(self) -> int:
        return self.total_env_steps * self.frameskip

    def discarded_steps(self, is_filled: NDArray[np.bool_]) -> int:
        """Decisions of this start that were lost with a worker: a partly filled slot per split.

        Args:
            is_filled: [S], a filling has begun and has not been given back by the learner.
        """
        pending = np.where(is_filled, self.env_steps[:-1] - self.begun_steps, 0)
        return int((self.env_steps[:-1] - self.learned_steps - pending).sum())

    @property
    def learner_steps(self) -> int:
        """Optimizer steps of all learners since the run began: the version of the policy."""
        return int(self.updates[:, 0].sum())

    @learner_steps.setter
    def learner_steps(self, value: int) -> None:
        self.updates[:, 0] = 0
        self.updates[0, 0] = value

    @property
    def is_saving(self) -> bool:
        """Whether a learner writes a checkpoint."""
        return bool(self.saving.any())

    def stage_seconds(self, role: Role) -> NDArray[np.float64]:
        """[stages of its kind], the row of one worker, which alone writes it."""
        return self.laps(role)[: len(COMPONENT_STAGES[role.kind])]

    def stage_totals(self) -> dict[Kind, NDArray[np.float64]]:
        """kind -> [its workers, its stages], as they are now."""
        return {
            kind: np.stack([self.stage_seconds(role) for role in self.topology.of_kind(kind)])
            for kind in COMPONENT_STAGES
        }

    def state(self) -> dict[str, NDArray[np.int64]]:
        """The counts of slots; not the times, which go on by the clock."""
        return {name: getattr(self, name).copy() for name in _COUNTS}

    def load_state(self, state: dict[str, NDArray[np.int64]]) -> None:
        for name in _COUNTS:
            getattr(self, name)[:] = state[name]

    def laps(self, role: Role) -> NDArray[np.float64]:
        """All times of one worker: they change with every lap of its timer."""
        laps: NDArray[np.float64] = self._stages[self.topology.row(role)]
        return laps

    def unlink(self) -> None:
        for segment in self._segments.values():
            segment.unlink()

    def __getstate__(self) -> tuple[Topology, int, dict[str, SharedArray]]:
        return self.topology, self.frameskip, self._segments

    def __setstate__(self, state: tuple[Topology, int, dict[str, SharedArray]]) -> None:
        self.topology, self.frameskip, self._segments = state
        self._bind()


def nbytes(topology: Topology) -> int:
    """Shared memory that the counters of a run take, in bytes."""
    return segment_bytes(*_fields(topology).values())


def _fields(topology: Topology) -> dict[str, Field]:
    slots, workers = len(topology.slots.split), topology.counts["rollout"]
    learners = topology.counts["learner"]
    return {
        "env-steps": ((slots + 1,), np.int64),
        "begun-steps": ((slots,), np.int64),
        "learned-steps": ((slots,), np.int64),
        "stepping": ((workers, len(topology.slots.splits_of(0))), np.int64),
        "restarts": ((workers,), np.int64),
        "updates": ((learners, 3), np.int64),
        "saving": ((learners,), np.int64),
        "stage-seconds": ((topology.num_roles, _MAX_STAGES), np.float64),
    }
