"""Writes the checkpoints that the trainer asks for, in the process that has the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from numpy.typing import NDArray

from sfrl.envs.logs import own_logger
from sfrl.ipc.mailbox import DELIVERY_TIMEOUT_S, Mailbox
from sfrl.ipc.messages import CheckpointFailed, CheckpointRequest, CheckpointSaved, Report
from sfrl.ipc.progress import Progress
from sfrl.records import checkpoint, memory_file
from sfrl.records.metrics import LEARNER_COUNTERS
from sfrl.settings.config import Config

log = own_logger(__name__)


class CheckpointService:
    """One learner's. The trainer decides when, and which is the best.

    A request goes to all learners; the first that looks has it.
    """

    def __init__(
        self,
        config: Config,
        progress: Progress,
        requests: Mailbox[CheckpointRequest],
        reports: Mailbox[Report],
        state: Callable[[], dict[str, Any]],  # what a checkpoint holds, of the moment
        memory: Callable[[], dict[str, NDArray[Any]]],  # what is kept beside the last one
        index: int = 0,  # of the learner
        alone: AbstractContextManager[None] | None = None,  # no other learner writes meanwhile
    ) -> None:
        self._run_dir = config.run_dir
        self._keep = config.keep_checkpoints
        self._saving = progress.saving[index : index + 1]
        self._saving[0] = False  # of one that was killed in the midst of it
        self._alone = alone or nullcontext()
        self._requests = requests
        self._reports = reports
        self._state = state
        self._memory = memory

    def serve(self) -> CheckpointRequest | None:
        """Write what was asked for, if anything was; returns the request that was answered."""
        requests = self._requests.get_all()
        if not requests:
            return None
        request = requests[-1]  # the newest knows all that the earlier ones knew
        best_score = max((r.best_score for r in requests if r.best_score is not None), default=None)
        self._saving[0] = True  # the watchdog lets it wait for another one's disk, too
        with self._alone:
            self._serve(request, best_score)
        self._saving[0] = False
        return request

    def _serve(self, request: CheckpointRequest, best_score: float | None) -> None:
        state = self._state()
        # The trainer asked some batches ago: its counters are behind the weights saved here.
        counters = {name: state["counters"][name] for name in LEARNER_COUNTERS}
        state["metrics"] = {**request.metrics, "counters": counters}
        self._write(state, best_score, is_last=request.is_last)
        if request.is_last:
            self._write_memory(state["counters"])

    def _write(self, state: dict[str, Any], best_score: float | None, *, is_last: bool) -> None:
        frames = state["counters"]["env_frames"]
        what = "the checkpoint"
        try:
            path = checkpoint.save(self._run_dir, state, frames, keep=self._keep)
            self._tell(CheckpointSaved(str(path), None, is_last))
            if best_score is not None:
                what = "best.pt"
                checkpoint.save_best(self._run_dir, state, best_score)
                self._tell(CheckpointSaved(str(path), best_score))
        except (OSError, checkpoint.CheckpointError) as error:  # full, or returns rubbish
            reason = getattr(error, "strerror", None) or str(error)
            self._tell(CheckpointFailed(reason, what))

    def _write_memory(self, counters: Mapping[str, int]) -> None:
        """Of an algorithm that has one. A run goes on without it, and fills another."""
        if not (memory := self._memory()):
            return
        path = memory_file.path_in(self._run_dir)
        try:
            memory_file.save(
                self._run_dir, memory, counters["learner_steps"], counters["env_steps"]
            )
        except OSError as error:
            log.warning("%s cannot be written (%s); --resume will fill it again", path, error)

    def _tell(self, report: Report) -> None:
        """A report that must not be dropped: wait for room."""
        self._reports.put(report, DELIVERY_TIMEOUT_S)
