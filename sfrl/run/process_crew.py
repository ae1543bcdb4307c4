"""Every worker of a run in a process of its own."""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from functools import partial
from multiprocessing import connection
from multiprocessing.context import SpawnProcess

from sfrl.envs.logs import own_logger
from sfrl.ipc.index_queue import LockFreeQueue
from sfrl.ipc.mailbox import Mailbox
from sfrl.ipc.messages import CheckpointRequest, Failure, Report
from sfrl.ipc.topology import Role
from sfrl.records.timing import LEARNER_STAGES, Kind
from sfrl.run.child import run_child
from sfrl.run.crew import SAVING_TOLD_AGAIN_S, SAVING_TOLD_S, WorkerError, tell_of_saving
from sfrl.run.helpers import Helpers
from sfrl.run.limits import memory_shortage_explained
from sfrl.run.restarts import MAX_REPEATS, RestartHistory
from sfrl.run.roles import Shared, make_members, pin_and_nice
from sfrl.run.spawning import kill, spawn, wait_for_end
from sfrl.run.watchdog import Watchdog
from sfrl.workers.members import Members
from sfrl.workers.worker import worker_loop

log = own_logger(__name__)

_POLL_S = 0.05  # how long the trainer sleeps between looks at its children
_KILL_S = 2.0  # for a killed process to end
_TRAIN = LEARNER_STAGES.index("train")
_UNKILLABLE = "it does not even end when it is killed: the kernel waits, for a disk or a driver"

Body = Callable[[Shared, Role, Mailbox[Report], Mailbox[CheckpointRequest], str | None], None]
"""What a process does, told its first role; the checkpoint to resume comes last."""


class ProcessCrew:
    """Every worker in a process of its own, started by spawn and watched by its sentinel.

    A rollout worker that dies or hangs is started again, since others can tell what it had
    (`RolloutWorker`). A policy worker or the learner has what nobody else has: then the run ends.
    """

    def __init__(self, shared: Shared, bodies: Mapping[Kind, Body] | None = None) -> None:
        """The bodies replace what processes do whose first role is of that kind (the benchmarks do
        that)."""
        self._shared = shared
        self._own_bodies = bodies or {}
        self._mailboxes: dict[Role, Mailbox[Report]] = {
            role: Mailbox() for role in shared.topology.processes
        }
        self._requests: Mailbox[CheckpointRequest] = Mailbox()
        self._received: deque[Report] = deque()
        self._failures: dict[Role, Failure] = {}  # what it said last
        self._bodies: dict[Role, Callable[[], None]] = {}
        self._processes: dict[Role, SpawnProcess] = {}
        self._watchdog = Watchdog(shared.config, shared.progress)
        self._helpers = Helpers()
        self._histories: defaultdict[Role, RestartHistory] = defaultdict(RestartHistory)
        self._due_s: dict[Role, float] = {}  # who waits to be started again -> until when
        self._steps_before: dict[Role, int] = {}  # restarted, and no decision yet -> those before
        self._is_killed = self._is_ending = False
        self._told: set[Role] = set()  # whose end has been told

    def start(self, resume_path: str | None) -> None:
        """Raises RuntimeError if nobody would learn of a worker's end."""
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            raise RuntimeError(
                "SIGCHLD is ignored in this process, so that nobody would learn of a worker's end; "
                "first call signal.signal(signal.SIGCHLD, signal.SIG_DFL) in the main thread"
            )
        for role in self._mailboxes:
            self._bodies[role] = self._body(role, resume_path)
        learners_in = self._shared.topology.learners_in
        for role in sorted(self._mailboxes, key=lambda role: not learners_in(role)):  # take longest
            self._spawn(role)

    def _body(self, role: Role, resume_path: str | None) -> Callable[[], None]:
        """What its process does."""
        body = self._own_bodies.get(role.kind, members_body)
        return partial(body, self._shared, role, self._mailboxes[role], self._requests, resume_path)

    def _spawn(self, role: Role) -> None:
        try:
            process = spawn(
                run_child,
                role.name,
                self._mailboxes[role],
                self._bodies[role],
                name=f"sfrl {role.name}",
                one_thread=role.has_envs,
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
        connection.wait([process.sentinel for process in self._processes.values()], _POLL_S)
        # Not only those whose sentinel tells: helpers that an environment has started hold it open,
        # and an environment may close it.
        ended = [role for role, process in self._processes.items() if process.exitcode is not None]
        if self._is_ending:
            return
        for role in ended:
            self._helpers.terminate(role)
        self._helpers.look({r: p for r, p in self._processes.items() if r.has_envs})
        if not ended:
            time.sleep(max(0.0, _POLL_S - (time.monotonic() - start_s)))
        self._receive()
        failures = {role: self._how_it_ended(role) for role in ended}
        for role, complaint in self._watchdog.stalled().items():
            if role not in failures:
                process = self._processes[role]
                text = f"{role.name} (pid {process.pid}) {complaint}"
                if not kill([process], _KILL_S):
                    raise WorkerError(f"{text}; {_UNKILLABLE}")
                failures[role] = self._with_traceback(role, text)
        self._told.update(failures)
        fatal = [text for role, text in failures.items() if not self._can_restart(role, ended)]
        if fatal:
            raise WorkerError("\n".join(fatal))
        if not failures and (deadlock := self._watchdog.deadlock()):
            raise WorkerError(deadlock)
        for role, text in failures.items():
            is_kill = role in ended and self._processes[role].exitcode == -signal.SIGKILL
            self._restart_later(role, text, is_kill=is_kill)
        self._restart_those_due()

    def _can_restart(self, role: Role, ended: Collection[Role]) -> bool:
        is_lock_free = isinstance(self._shared.channels.inbox(role), LockFreeQueue)
        if not role.is_restartable or not is_lock_free:
            return False  # a process killed in faster-fifo leaves its lock locked
        if role in self._failures and self._failures[role].ends_run:
            return False
        # Restart it if others have killed it, or if it has worked already. Whatever fails or hangs
        # before its first decision would fail again.
        was_killed = role in ended and (self._processes[role].exitcode or 0) < 0
        return was_killed or self._env_steps(role) > 0

    def _restart_later(self, role: Role, why: str, *, is_kill: bool) -> None:
        """Nobody waits meanwhile: the run goes on with the others, and may be stopped.

        Args:
            is_kill: by others, as often as they like: it says nothing about the worker.
        """
        now_s, history = time.monotonic(), self._histories[role]
        delay_s = history.failed(now_s, why)
        if history.num_repeats >= MAX_REPEATS and not (self._has_learned() or is_kill):
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
        log.warning("%s; starting it again%s (restart %d)", why, when, len(history.causes))
        self._failures.pop(role, None)
        self._told.discard(role)
        for learner in self._shared.topology.learners_in(role):
            self._shared.progress.saving[learner.index] = False
        del self._processes[role]
        self._watchdog.forget(role)
        self._due_s[role] = now_s + delay_s

    def _has_learned(self) -> bool:
        """In this start of the run."""
        progress = self._shared.progress
        learners = progress.topology.of_kind("learner")
        return any(progress.stage_seconds(role)[_TRAIN] > 0 for role in learners)

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
        """Decisions of a rollout worker and its predecessors."""
        slots = self._shared.topology.slots.of_worker(role.index)
        return int(self._shared.progress.env_steps[slots].sum())

    def _how_it_ended(self, role: Role) -> str:
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
            for process in self._processes.values():
                if process.exitcode is None and process.pid is not None:
                    os.kill(process.pid, signal.SIGCONT)  # who was stopped is to save, or to end
            return self._wait_for_the_end(timeout_s)
        finally:
            for role, process in self._processes.items():
                process.kill()  # one that lives would keep us from ending
                if process.exitcode != 0:
                    self._helpers.terminate(role)

    def _wait_for_the_end(self, timeout_s: float) -> list[str]:
        shared, complaints = self._shared, []
        started_s = last_saving_s = time.monotonic()
        for role, process in self._processes.items():  # the learner first, that saves
            limit_s = self._stop_limit_s(role, timeout_s)
            next_tell_s = started_s + SAVING_TOLD_S
            while process.exitcode is None and not self._is_killed:
                now = time.monotonic()
                if self._saves(role):
                    last_saving_s = now
                    if now >= next_tell_s:
                        next_tell_s = now + SAVING_TOLD_AGAIN_S
                        tell_of_saving(shared, now - started_s)
                elif now - last_saving_s >= limit_s:
                    break
                wait_for_end(process, _POLL_S)
            if process.exitcode is None:
                if not self._is_killed:
                    log.warning("%s did not stop within %.0f s; killing it", role.name, limit_s)
                if not kill([process], _KILL_S):
                    complaints.append(f"{role.name} (pid {process.pid}) {_UNKILLABLE}")
        self._receive()
        for role, process in self._processes.items():
            if not process.exitcode:
                continue
            if self._is_killed or not role.is_restartable:
                complaints.append(self._how_it_ended(role))
            elif role not in self._told:
                # While the run goes on it would be replaced; now nobody waits for its work.
                log.warning("%s, while the run was stopping", self._how_it_ended(role))
        return complaints

    def _saves(self, role: Role) -> bool:
        learners = self._shared.topology.learners_in(role)
        return any(self._shared.progress.saving[learner.index] for learner in learners)

    def _stop_limit_s(self, role: Role, timeout_s: float) -> float:
        """The learner looks up after a minibatch, and what it has learned is to be saved."""
        shared = self._shared
        if shared.topology.learners_in(role) and shared.progress.learner_steps > 0:
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
        """Of the processes there are: not of those that wait to be started again."""
        return {r: process.pid for r, process in self._processes.items() if process.pid is not None}

    @property
    def dropped_reports(self) -> int:
        return sum(mailbox.dropped for mailbox in self._mailboxes.values())


def members_body(
    shared: Shared,
    first: Role,
    reports: Mailbox[Report],
    requests: Mailbox[CheckpointRequest],
    resume_path: str | None,
) -> None:
    """The workers of one process, made and run until the run stops."""
    members = shared.topology.processes[first]
    has_network = any(role.kind != "rollout" for role in members)
    if first.has_envs:
        pin_and_nice(shared.config, first.index)
    with memory_shortage_explained(shared.config) if has_network else nullcontext():
        workers = make_members(shared, members, reports, requests, resume_path)
        worker_loop(workers[0] if len(workers) == 1 else Members(workers), shared.stop)
