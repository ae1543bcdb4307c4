"""What the trainer knows of its workers, wherever they are."""

from __future__ import annotations

from typing import Protocol

from sfrl.envs.logs import own_logger
from sfrl.ipc.messages import CheckpointRequest, Report
from sfrl.ipc.shared_memory import MIB
from sfrl.records import checkpoint
from sfrl.run.roles import Shared

log = own_logger(__name__)

# Of the last checkpoint, after which the log tells that it is being written, and tells it again.
SAVING_TOLD_S = 2.0
SAVING_TOLD_AGAIN_S = 10.0


class WorkerError(RuntimeError):
    """A component failed; the text has its name, how it ended, and its traceback."""


class Crew(Protocol):
    """All workers of a run, as the trainer sees them."""

    def start(self, resume_path: str | None) -> None:
        """Build the workers; the learner loads the checkpoint `resume_path`, if given."""

    def advance(self) -> None:
        """Let the workers work for a moment. Raises WorkerError once one of them has failed."""

    def take_reports(self) -> list[Report]:
        """What the workers have said since the last call, in order for each of them."""

    def request_checkpoint(self, request: CheckpointRequest) -> bool:
        """Whether the learner will see the request."""

    def stop(self, timeout_s: float) -> list[str]:
        """End all workers; the learner serves its last checkpoint request before it goes.

        That takes as long as the disk does: while the learner saves, no timeout ends it, but `kill`
        does. Whatever is raised, no process is left.

        Returns:
            What happened to each that failed, or that was killed because it took longer; except for
            rollout workers, of whom a run that ends needs nothing more: the log tells of them.
        """

    def expect_end(self) -> None:
        """From now on nothing that ends is replaced, or fails the run before `stop` does.

        A signal to the whole process group ends what environments depend on as well, such as their
        simulators. For signal handlers.
        """

    def kill(self) -> None:
        """End all work at once, and save nothing. For the impatient user's second Ctrl-C.

        Called by signal handlers, in the thread that has called the other functions.
        """

    @property
    def dropped_reports(self) -> int: ...


def tell_of_saving(shared: Shared, seconds: float) -> None:
    log.warning(
        "the last checkpoint is being written, for %.0f s so far (%.1f MiB); a second Ctrl-C "
        "gives it up",
        *(seconds, checkpoint.unfinished_bytes(shared.config.run_dir) / MIB),
    )
