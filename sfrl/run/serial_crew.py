"""All workers of a run in this thread: `--serial`."""

from __future__ import annotations

import logging
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from sfrl.envs.forks import end_if_forked, forks_noticed
from sfrl.envs.logs import own_logger
from sfrl.ipc.index_queue import LockFreeQueue
from sfrl.ipc.mailbox import Mailbox
from sfrl.ipc.messages import CheckpointRequest, Notice, Report
from sfrl.ipc.shared_memory import ShortageError, Stopped
from sfrl.records import checkpoint
from sfrl.run.crew import SAVING_TOLD_AGAIN_S, SAVING_TOLD_S, WorkerError, tell_of_saving
from sfrl.run.roles import Shared, make_learner, make_policy_worker, make_rollout_worker
from sfrl.run.spawning import one_thread_each
from sfrl.workers.worker import Worker

log = own_logger(__name__)

_SAVING_LOOK_S = 0.5  # how often a serial run sees whether there is something to tell


class SerialCrew:
    """All workers in this thread, in turn: the same seed gives the same weights, bit for bit.

    So does a run that was interrupted, where the environments can tell their state: a checkpoint
    then has that of all workers, slots and queues between two rounds. What a memory holds is beside
    the run's last one.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._mailbox: Mailbox[Report] = Mailbox()
        self._requests: Mailbox[CheckpointRequest] = Mailbox()
        self._workers: list[Worker] = []
        self._is_working = self._is_killed = False
        self._ending_since_s: float | None = None  # on the monotonic clock
        self._has_stopped = threading.Event()
        self._settings = ExitStack()  # of this process, as long as environments live in it

    def start(self, resume_path: str | None) -> None:
        threading.Thread(target=self._tell_of_saving, name="saving", daemon=True).start()
        with self._working():
            self._start(resume_path)

    def _start(self, resume_path: str | None) -> None:
        import torch

        shared = self._shared
        topology = shared.topology
        # What the learner sets is the caller's, too (`sfrl.train`): it has its own back at the end.
        self._settings.callback(torch.set_num_threads, torch.get_num_threads())
        gpus = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
        self._settings.enter_context(torch.random.fork_rng(gpus))
        self._learners = [
            make_learner(shared, self._mailbox, self._requests, resume_path, role.index)
            for role in topology.of_kind("learner")
        ]
        self._learner = self._learners[0]
        self._policies = [
            make_policy_worker(shared, role.index, self._learners[topology.learner_of(role).index])
            for role in topology.of_kind("policy")
        ]
        self._settings.enter_context(one_thread_each())  # NumPy's own has started with more
        self._settings.enter_context(forks_noticed(self._tell_of_fork))
        self._rollouts = [
            make_rollout_worker(shared, role.index, self._mailbox)
            for role in topology.of_kind("rollout")
        ]
        if resume_path is not None:
            saved = checkpoint.load(resume_path)
            why = None
            of_memory = self._learner.memory_env_steps
            if self._learner.lacks_memory:  # rows of which the workers' go on
                why = "belong to a memory that is not there"
            elif of_memory not in (None, saved["counters"]["env_steps"]):
                why = "go on from rows that are not in the memory, which is older"
            elif saved.get("workers") is None:
                several = len(self._learners) > 1
                why = "are not saved beside several learners" if several else "could not be saved"
            if why is not None:
                log.info("environments %s; they start again, from other seeds", why)
            else:
                try:
                    self._load_state(checkpoint.arrays_of(saved["workers"]))
                except checkpoint.MISMATCHES as error:
                    raise checkpoint.CheckpointError(
                        f"{resume_path} has the workers of a run with other sizes, or of none "
                        f"({type(error).__name__}: {checkpoint.in_one_line(error)}); resume with "
                        f"the settings it began with"
                    ) from error
            torch.set_rng_state(saved["rng"]["torch"])  # the policy workers' models drew from it
        # Only now: what could not be restored must not be saved over what it came from.
        self._workers = [*self._learners, *self._policies, *self._rollouts]
        self._learner.workers_state = self._state

    def _state(self) -> dict[str, Any] | None:
        """Between two rounds, as a checkpoint holds it.

        None if an environment cannot report its own state, or if there are several learners: their
        own copies of the weights are in no checkpoint.
        """
        shared = self._shared
        if len(self._learners) > 1:
            return None
        rollouts = [worker.state() for worker in self._rollouts]
        if None in rollouts or not isinstance(self._learner.inbox, LockFreeQueue):
            return None
        state: dict[str, Any] = checkpoint.tensors_of(
            {
                "rollouts": rollouts,
                "policies": [worker.state() for worker in self._policies],
                "full_slots": list(self._learner.slots.waiting),
                "buffer": shared.buffer.state(),
                "progress": shared.progress.state(),
                "queues": [queue.state() for queue in shared.channels.all()],
            }
        )
        return state

    def _load_state(self, state: dict[str, Any]) -> None:
        shared = self._shared
        parts: list[tuple[Any, Any]] = [
            *zip(self._rollouts, state["rollouts"], strict=True),
            *zip(self._policies, state["policies"], strict=True),
            *zip(shared.channels.all(), state["queues"], strict=True),
            (shared.buffer, state["buffer"]),
            (shared.progress, state["progress"]),
        ]
        for part, saved in parts:
            part.load_state(saved)
        self._learner.slots.waiting.extend(state["full_slots"])
        for learner in self._learners:
            learner.parameters.pull()  # its policy has these weights, and does not ask for them

    def advance(self) -> None:
        """One round: every worker does what is ready."""
        progressed = [True]
        try:
            # All of them, so no generator: any() would stop at the first that did something.
            with self._working():
                progressed = [self._turn(worker) for worker in self._workers]
            if not any(progressed):
                raise WorkerError("serial run: no worker has anything to do; a slot is lost")
        except BaseException:  # in the middle of a round, from which no run could go on
            self._learner.workers_state = lambda: None
            raise

    def _turn(self, worker: Worker) -> bool:
        """A step; of the learner a training batch, as long as others wait for its weights.

        Each one's timer leaves out the others' time.
        """
        worker.timer.begin()
        progressed = worker.step()
        for learner in self._learners:
            learner.timer.begin()
            while learner.is_training:
                learner.step()
        return progressed

    def take_reports(self) -> list[Report]:
        return self._mailbox.get_all()

    def request_checkpoint(self, request: CheckpointRequest) -> bool:
        return self._requests.put(request)

    def stop(self, timeout_s: float) -> list[str]:
        self._shared.stop.set()
        self.expect_end()
        try:
            with self._working(), ExitStack() as stack:  # each is closed, whatever another one does
                for worker in reversed(self._workers):  # the learner first, that saves
                    stack.callback(self._close, worker)
        finally:
            self._has_stopped.set()
            self._settings.close()
        return ["serial run: it was given up by a second signal"] if self._is_killed else []

    def _close(self, worker: Worker) -> None:
        if not self._is_killed:
            worker.close()

    def expect_end(self) -> None:
        """Nothing is replaced here."""
        if self._ending_since_s is None:
            self._ending_since_s = time.monotonic()

    def kill(self) -> None:
        """Leave whatever a worker is doing now, by an exception."""
        self._is_killed = True
        if self._is_working:
            raise _Killed

    @contextmanager
    def _working(self) -> Iterator[None]:
        """For where environments and networks work in this process.

        An environment's `sys.exit()` is a fault like others: it must not end the trainer. Nor must
        a fork of its own become a second one.
        """
        try:
            self._is_working = True
            try:
                yield
            finally:
                self._is_working = False
            end_if_forked()
        except _Killed:
            pass
        except BaseException as error:
            end_if_forked(error)
            if isinstance(
                error, Stopped | ShortageError | WorkerError | checkpoint.CheckpointError
            ):
                raise  # the user needs no traceback of these
            raise WorkerError(f"serial run:\n{traceback.format_exc()}") from error

    def _tell_of_fork(self, text: str) -> None:
        """In the fork, which has none of the threads that write the log."""
        self._mailbox.put(Notice(logging.WARNING, text))

    def _tell_of_saving(self) -> None:
        """In a thread of its own: the one that saves cannot tell."""
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # the main thread's
        next_tell_s = SAVING_TOLD_S
        while not self._has_stopped.wait(_SAVING_LOOK_S):
            if self._ending_since_s is not None and self._shared.progress.is_saving:
                seconds = time.monotonic() - self._ending_since_s
                if seconds >= next_tell_s:
                    next_tell_s = seconds + SAVING_TOLD_AGAIN_S
                    tell_of_saving(self._shared, seconds)

    @property
    def dropped_reports(self) -> int:
        return self._mailbox.dropped


class _Killed(BaseException):
    """The user has given up. No environment catches it, as it might KeyboardInterrupt."""
