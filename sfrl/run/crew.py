"""The workers of a run: each in a process of its own, or all in this thread."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol

from sfrl.envs.forks import end_if_forked, forks_noticed
from sfrl.envs.logs import own_logger
from sfrl.ipc.index_queue import LockFreeQueue
from sfrl.ipc.mailbox import Mailbox
from sfrl.ipc.messages import CheckpointRequest, Failure, Notice, Report
from sfrl.ipc.shared_memory import MIB, ShortageError, Stopped
from sfrl.ipc.topology import LEARNER, Role
from sfrl.records import checkpoint
from sfrl.run.child import run_child
from sfrl.run.helpers import Helpers
from sfrl.run.limits import memory_shortage_explained
from sfrl.run.restarts import MAX_REPEATS, RestartHistory
from sfrl.run.roles import (
    Shared,
    make_learner,
    make_policy_worker,
    make_rollout_worker,
    pin_and_nice,
)
from sfrl.run.spawning import descendants, one_thread_each, spawn, terminate
from sfrl.run.watchdog import Watchdog
from sfrl.workers.worker import Worker, worker_loop

log = own_logger(__name__)

POLL_S = 0.05  # how long the trainer sleeps between looks at its children
_KILL_S = 2.0  # for a killed process to end
_UNKILLABLE = "it does not even end when it is killed: the kernel waits, for a disk or a driver"
# Of the last checkpoint, after which the log tells that it is being written, and tells it again.
_SAVING_TOLD_S = 2.0
_SAVING_TOLD_AGAIN_S = 10.0
_SAVING_LOOK_S = 0.5  # how often a serial run sees whether there is something to tell


class WorkerError(RuntimeError):
    """A component failed; the text has its name, how it ended, and its traceback."""


LearnerBody = Callable[[Shared, Mailbox[Report], Mailbox[CheckpointRequest], str | None], None]
PolicyBody = Callable[[Shared, int], None]


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
            What happened to each that failed, or that was killed because it took longer; but for
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


class SerialCrew:
    """All workers in this thread, in turn: the same seed gives the same weights, bit for bit.

    So does a run that was interrupted, where the environments can tell their state: a checkpoint
    then has that of all workers, slots and queues between two rounds.
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
        # The learner first: it publishes the weights that the policy workers wait for.
        self._learner = make_learner(shared, self._mailbox, self._requests, resume_path)
        self._policies = [
            make_policy_worker(shared, role.index) for role in shared.topology.of_kind("policy")
        ]
        self._settings.enter_context(one_thread_each())  # NumPy's own has started with more
        self._settings.enter_context(forks_noticed(self._tell_of_fork))
        self._rollouts = [
            make_rollout_worker(shared, role.index, self._mailbox)
            for role in shared.topology.of_kind("rollout")
        ]
        if resume_path is not None:
            saved = checkpoint.load(resume_path)
            if saved.get("workers") is None:
                log.info("environments could not be saved; they start anew, from other seeds")
            else:
                try:
                    self._load_state(checkpoint.arrays_of(saved["workers"]))
                except checkpoint.MISFITS as error:
                    raise checkpoint.CheckpointError(
                        f"{resume_path} has the workers of a run with other sizes, or of none "
                        f"({type(error).__name__}: {checkpoint.in_one_line(error)}); resume with "
                        f"the settings it began with"
                    ) from error
            torch.set_rng_state(saved["rng"]["torch"])  # the policy workers' models drew from it
        # Only now: what could not be restored must not be saved over what it came from.
        self._workers = [self._learner, *self._policies, *self._rollouts]
        self._learner.workers_state = self._state

    def _state(self) -> dict[str, Any] | None:
        """Between two rounds, as a checkpoint holds it; None if there is something untold in it."""
        shared = self._shared
        rollouts = [worker.state() for worker in self._rollouts]
        if None in rollouts or not isinstance(shared.channels.trajectories, LockFreeQueue):
            return None
        state: dict[str, Any] = checkpoint.tensors_of(
            {
                "rollouts": rollouts,
                "policies": [worker.state() for worker in self._policies],
                "full_slots": list(self._learner.inbox.waiting),
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
        self._learner.inbox.waiting.extend(state["full_slots"])

    def advance(self) -> None:
        """One round: every worker does what is ready."""
        progressed = [True]
        try:
            # All of them, so no generator: any() would stop at the first that did something.
            with self._working():
                progressed = [self._turn(worker) for worker in self._workers]
            if not any(progressed):
                raise WorkerError("serial run: no worker has anything to do; a slot is lost")
        except BaseException:  # in the middle of a round, of which nobody could go on
            self._learner.workers_state = lambda: None
            raise

    def _turn(self, worker: Worker) -> bool:
        """A step; of the learner a training batch, as long as others wait for its weights."""
        progressed = worker.step()
        while self._learner.is_training:
            self._learner.step()
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
                raise  # who reads of these needs no place in our code
            raise WorkerError(f"serial run:\n{traceback.format_exc()}") from error

    def _tell_of_fork(self, text: str) -> None:
        """In the fork, which has none of the threads that write the log."""
        self._mailbox.put(Notice(logging.WARNING, text))

    def _tell_of_saving(self) -> None:
        """In a thread of its own: the one that saves cannot tell."""
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # the main thread's
        next_tell_s = _SAVING_TOLD_S
        while not self._has_stopped.wait(_SAVING_LOOK_S):
            if self._ending_since_s is not None and self._shared.progress.is_saving:
                seconds = time.monotonic() - self._ending_since_s
                if seconds >= next_tell_s:
                    next_tell_s = seconds + _SAVING_TOLD_AGAIN_S
                    _tell_of_saving(self._shared, seconds)

    @property
    def dropped_reports(self) -> int:
        return self._mailbox.dropped


class _Killed(BaseException):
    """The user has given up. No environment catches it, as it might KeyboardInterrupt."""


class ProcessCrew:
    """Every worker in a process of its own, started by spawn and watched by its sentinel.

    A rollout worker that dies or hangs is started anew, since others can tell what it had
    (`RolloutWorker`). A policy worker or the learner has what nobody else has: then the run ends.
    """

    def __init__(
        self,
        shared: Shared,
        learner_body: LearnerBody | None = None,
        policy_body: PolicyBody | None = None,
    ) -> None:
        """The bodies replace what those processes do (the benchmarks do that)."""
        self._shared = shared
        self._learner_body = learner_body or _learner_body
        self._policy_body = policy_body or _policy_body
        self._mailboxes: dict[Role, Mailbox[Report]] = {
            role: Mailbox() for role in shared.topology.roles
        }
        self._requests: Mailbox[CheckpointRequest] = Mailbox()
        self._received: deque[Report] = deque()
        self._failures: dict[Role, Failure] = {}  # what it said last
        self._bodies: dict[Role, Callable[[], None]] = {}
        self._processes: dict[Role, SpawnProcess] = {}
        self._watchdog = Watchdog(shared.config, shared.progress)
        self._helpers = Helpers()
        self._histories: defaultdict[Role, RestartHistory] = defaultdict(RestartHistory)
        self._due_s: dict[Role, float] = {}  # who waits to be started anew -> until when
        self._learner_steps_before = shared.progress.learner_steps
        self._steps_before: dict[Role, int] = {}  # restarted, and no decision yet -> those before
        self._is_killed = self._is_ending = False
        self._told: set[Role] = set()  # whose end has been told

    def start(self, resume_path: str | None) -> None:
        for role in self._mailboxes:
            self._bodies[role] = self._body(role, resume_path)
        for role in (LEARNER, *self._mailboxes):  # it takes longest
            if role not in self._processes:
                self._spawn(role)

    def _body(self, role: Role, resume_path: str | None) -> Callable[[], None]:
        """What its process does."""
        shared, mailbox = self._shared, self._mailboxes[role]
        match role.kind:
            case "rollout":
                return partial(_rollout_body, shared, role.index, mailbox)
            case "policy":
                return partial(self._policy_body, shared, role.index)
            case "learner":
                return partial(self._learner_body, shared, mailbox, self._requests, resume_path)

    def _spawn(self, role: Role) -> None:
        try:
            process = spawn(
                run_child,
                role.name,
                self._mailboxes[role],
                self._bodies[role],
                name=f"sfrl {role.name}",
                one_thread=role.kind == "rollout",
            )
        except OSError as error:
            raise WorkerError(
                f"{role.name} could not be started: {error}; the machine may be out of memory or "
                f"at its limit of processes (ulimit -u)"
            ) from error
        self._processes[role] = process
        assert process.pid is not None
        self._watchdog.watch(role, process.pid)

    def advance(self) -> None:
        """Sleep, but no longer than until a process ends: none ends before `stop`."""
        start_s = time.monotonic()
        connection.wait([process.sentinel for process in self._processes.values()], POLL_S)
        # Not only those whose sentinel tells: helpers that an environment has started hold it open,
        # and an environment may close it.
        ended = [role for role, process in self._processes.items() if process.exitcode is not None]
        if self._is_ending:
            return
        for role in ended:
            self._helpers.terminate(role)
        self._helpers.look({r: p for r, p in self._processes.items() if r.kind == "rollout"})
        if not ended:
            time.sleep(max(0.0, POLL_S - (time.monotonic() - start_s)))
        self._receive()
        failures = {role: self._obituary(role) for role in ended}
        for role, complaint in self._watchdog.stalled().items():
            if role not in failures:
                process = self._processes[role]
                text = f"{role.name} (pid {process.pid}) {complaint}"
                if not _killed(process):
                    raise WorkerError(f"{text}; {_UNKILLABLE}")
                failures[role] = self._with_traceback(role, text)
        self._told.update(failures)
        fatal = [text for role, text in failures.items() if not self._can_restart(role, ended)]
        if fatal:
            raise WorkerError("\n".join(fatal))
        for role, text in failures.items():
            is_kill = role in ended and self._processes[role].exitcode == -signal.SIGKILL
            self._restart_later(role, text, is_kill=is_kill)
        self._restart_those_due()

    def _can_restart(self, role: Role, ended: Collection[Role]) -> bool:
        is_lock_free = isinstance(self._shared.channels.trajectories, LockFreeQueue)
        if not role.is_restartable or not is_lock_free:
            return False  # a process killed in faster-fifo leaves its lock locked
        if role in self._failures and self._failures[role].ends_run:
            return False
        # What fails or hangs before its first decision does so every time; but for a kill by others
        # a worker is not to blame.
        was_killed = role in ended and (self._processes[role].exitcode or 0) < 0
        return was_killed or self._env_steps(role) > 0

    def _restart_later(self, role: Role, why: str, *, is_kill: bool) -> None:
        """Nobody waits meanwhile: the run goes on with the others, and may be stopped.

        Args:
            is_kill: by others, who may do so as often as they like, for all that it tells.
        """
        now_s, history = time.monotonic(), self._histories[role]
        delay_s = history.failed(now_s, why)
        has_learned = self._shared.progress.learner_steps > self._learner_steps_before
        if history.num_repeats >= MAX_REPEATS and not (has_learned or is_kill):
            raise WorkerError(
                f"{role.name} failed {MAX_REPEATS} times in a row in the same way, before anything "
                f"was learned:\n{why}"
            )
        limit = self._shared.config.max_worker_restarts
        if len(history.causes) > limit:
            causes = "\n".join(dict.fromkeys(history.causes))
            raise WorkerError(
                f"{role.name} failed {limit + 1} times within an hour "
                f"(max_worker_restarts={limit}):\n{causes}"
            )
        when = f" in {delay_s:g} s" if delay_s else ""
        log.warning("%s; starting it anew%s (restart %d)", why, when, len(history.causes))
        self._failures.pop(role, None)
        self._told.discard(role)
        del self._processes[role]
        self._watchdog.forget(role)
        self._due_s[role] = now_s + delay_s

    def _restart_those_due(self) -> None:
        now_s = time.monotonic()
        for role in [role for role, due_s in self._due_s.items() if due_s <= now_s]:
            del self._due_s[role]
            self._shared.progress.restarts[role.index] += 1
            self._histories[role].restarted()
            self._steps_before[role] = self._env_steps(role)
            self._spawn(role)
        for role in [r for r, before in self._steps_before.items() if self._env_steps(r) > before]:
            del self._steps_before[role]
            self._histories[role].worked(now_s)

    def _env_steps(self, role: Role) -> int:
        """Decisions of a rollout worker and its forerunners."""
        slots = self._shared.topology.slots.of_worker(role.index)
        return int(self._shared.progress.env_steps[slots].sum())

    def _obituary(self, role: Role) -> str:
        process = self._processes[role]
        code = process.exitcode or 0
        known = {-number.value: number.name for number in signal.Signals}
        how = f"exited with {code}" if code >= 0 else f"was killed by {known.get(code, code)}"
        return self._with_traceback(role, f"{role.name} (pid {process.pid}) {how}")

    def _with_traceback(self, role: Role, text: str) -> str:
        failure = self._failures.get(role)
        return f"{text}:\n{failure.traceback}" if failure else text

    def _receive(self) -> None:
        for role, mailbox in self._mailboxes.items():
            for report in mailbox.get_all():
                if isinstance(report, Failure):
                    self._failures[role] = report
                self._received.append(report)

    def take_reports(self) -> list[Report]:
        self._receive()
        return [self._received.popleft() for _ in range(len(self._received))]

    def request_checkpoint(self, request: CheckpointRequest) -> bool:
        return self._requests.put(request)

    def stop(self, timeout_s: float) -> list[str]:
        try:
            self._shared.stop.set()
            self._shared.channels.wake_all()
            return self._wait_for_the_end(timeout_s)
        finally:
            for role, process in self._processes.items():
                process.kill()  # one that lives would keep us from ending
                if process.exitcode != 0:
                    self._helpers.terminate(role)

    def _wait_for_the_end(self, timeout_s: float) -> list[str]:
        started_s = last_saving_s = time.monotonic()
        complaints = []
        for role, process in self._processes.items():  # the learner first, that saves
            limit_s = self._stop_limit_s(role, timeout_s)
            next_tell_s = started_s + _SAVING_TOLD_S
            while process.exitcode is None and not self._is_killed:
                now = time.monotonic()
                if role.kind == "learner" and self._shared.progress.is_saving:
                    last_saving_s = now
                    if now >= next_tell_s:
                        next_tell_s = now + _SAVING_TOLD_AGAIN_S
                        _tell_of_saving(self._shared, now - started_s)
                elif now - last_saving_s >= limit_s:
                    break
                process.join(POLL_S)  # not longer: see `advance`
            if process.exitcode is None:
                if not self._is_killed:
                    log.warning("%s did not stop within %.0f s; killing it", role.name, limit_s)
                if not _killed(process):
                    complaints.append(f"{role.name} (pid {process.pid}) {_UNKILLABLE}")
        self._receive()
        for role, process in self._processes.items():
            if not process.exitcode:
                continue
            if self._is_killed or not role.is_restartable:
                complaints.append(self._obituary(role))
            elif role not in self._told:
                # While the run goes on it would be replaced; now nobody waits for its work.
                log.warning("%s, while the run was stopping", self._obituary(role))
        return complaints

    def _stop_limit_s(self, role: Role, timeout_s: float) -> float:
        """The learner looks up after a minibatch, and what it has learned is to be saved."""
        shared = self._shared
        if role.kind == "learner" and shared.progress.learner_steps > 0:
            return max(timeout_s, shared.config.stall_timeout)
        return timeout_s

    def expect_end(self) -> None:
        self._is_ending = True

    def kill(self) -> None:
        self._is_killed = True
        for process in self._processes.values():
            process.kill()

    @property
    def pids(self) -> dict[Role, int]:
        """Of the processes there are: not of those that wait to be started anew."""
        return {r: process.pid for r, process in self._processes.items() if process.pid is not None}

    @property
    def dropped_reports(self) -> int:
        return sum(mailbox.dropped for mailbox in self._mailboxes.values())


def _tell_of_saving(shared: Shared, seconds: float) -> None:
    log.warning(
        "the last checkpoint is being written, for %.0f s so far (%.1f MiB); a second Ctrl-C "
        "gives it up",
        *(seconds, checkpoint.unfinished_bytes(shared.config.run_dir) / MIB),
    )


def _killed(process: SpawnProcess) -> bool:
    """Kill it, and terminate what it has started; whether it has ended then."""
    orphans = []
    if process.pid and process.is_alive():
        os.kill(process.pid, signal.SIGSTOP)  # or it starts more of them while they are listed
        orphans = descendants(process.pid)
    process.kill()
    process.join(_KILL_S)
    terminate(orphans)
    return process.exitcode is not None


def _learner_body(
    shared: Shared,
    reports: Mailbox[Report],
    requests: Mailbox[CheckpointRequest],
    resume_path: str | None,
) -> None:
    with memory_shortage_explained(shared.config):
        worker_loop(make_learner(shared, reports, requests, resume_path), shared.stop)


def _policy_body(shared: Shared, index: int) -> None:
    with memory_shortage_explained(shared.config):
        worker_loop(make_policy_worker(shared, index), shared.stop)


def _rollout_body(shared: Shared, index: int, reports: Mailbox[Report]) -> None:
    pin_and_nice(shared.config, index)
    worker_loop(make_rollout_worker(shared, index, reports), shared.stop)
