"""Tells which processes have stopped getting on: by what they do, not by a side thread's word."""

from __future__ import annotations

import time

import numpy as np
import psutil
from numpy.typing import NDArray

from sfrl.envs.logs import own_logger
from sfrl.ipc.progress import Progress
from sfrl.ipc.topology import Role
from sfrl.records.timing import COMPONENT_STAGES, LEARNER_STAGES, POLICY_STAGES, is_waiting
from sfrl.settings.config import Config

log = own_logger(__name__)

# A look that comes later than this after the one before counts as this much: the trainer itself
# was stopped or the machine asleep, and the workers have had no more time than it.
LONGEST_LOOK_S = 1.0
_LAP_S = 1.0  # a process that waits ends two laps in this time
_SUSPICIOUS_S = 0.2  # so long a step is worth a look at the process's state
_SUSPENSION_S = 10.0  # of a stopped process or a slow disk, after which the log tells
_AWAITED = {
    "wait_actions": "actions",
    "wait_slot": "a free slot",
    "wait_requests": "requests for actions",
    "wait_trajectories": "full slots",
}
START_LIMIT_S = 120.0  # until it has done its first work: imports, emulators, a first compilation


class Watchdog:
    """Notices workers that hang.

    Every worker ends a lap of its `StageTimer` at least twice a second while it waits, and after
    every step of its environments, inference, minibatch or checkpoint. One whose times stand still
    for too long hangs, unless it was stopped (SIGSTOP), waits for a disk, or saves a checkpoint:
    file systems of user space (FUSE) let it wait in what looks like sleep.

    Waiting counts as life, so it also notices when all of them wait for each other (`deadlock`).
    """

    def __init__(self, config: Config, progress: Progress) -> None:
        self._config = config
        self._progress = progress
        self._processes: dict[Role, psutil.Process] = {}
        self._seen: dict[Role, bytes] = {}  # what it had done at the last look
        self._still_s: dict[Role, float] = {}  # for how long that has not changed
        self._suspended_s: dict[Role, float] = {}  # likewise, while it was stopped
        self._first: dict[Role, bytes] = {}  # what its predecessor had done
        self._last_look_s = time.monotonic()
        self._moved = (-1, -1)  # decisions and updates, when one of them had last moved
        self._standing_s = 0.0  # for how long none has
        self._waited: dict[Role, NDArray[np.float64]] = {}  # by then, in each stage

    def watch(self, role: Role, pid: int) -> None:
        """Begin with a process, or with the one that takes its place."""
        self._processes[role] = psutil.Process(pid)
        if role.has_envs:
            self._progress.stepping[role.index] = -1
        self._seen[role] = self._first[role] = self._done(role)
        self._still_s[role] = self._suspended_s[role] = 0.0

    def forget(self, role: Role) -> None:
        """It has ended, and waits to be started again."""
        del self._processes[role]

    def stalled(self) -> dict[Role, str]:
        """Those that hang, and what to say of them."""
        now = time.monotonic()
        passed_s = min(now - self._last_look_s, LONGEST_LOOK_S)
        self._last_look_s = now
        # One that goes on now ends a lap that tells all of that time as a wait: count anew.
        some_stopped = any(self._suspended_s[role] for role in self._processes)
        found = {}
        for role in self._processes:
            done = self._done(role)
            if done != self._seen[role]:
                self._seen[role], self._still_s[role] = done, 0.0
                self._suspended_s[role] = 0.0
                continue
            # Asked at every look, so that no part of the time in which it was stopped counts.
            if self._still_s[role] >= _SUSPICIOUS_S and self._is_suspended(role):
                self._count_suspension(role)
                continue
            if some_stopped and self._config.updates == "locked":
                continue  # it may wait for the lock that the stopped one has
            self._still_s[role] += passed_s
            limit_s, flag = self._limit(role)
            if self._still_s[role] >= limit_s:
                found[role] = f"{self._place(role)} for {limit_s:g} s{flag}"
        self._count_standstill(passed_s, some_stopped=some_stopped)
        return found

    def _count_standstill(self, passed_s: float, *, some_stopped: bool) -> None:
        progress = self._progress
        moved = (progress.total_env_steps, progress.learner_steps)
        is_other_crew = self._processes.keys() != self._waited.keys()
        if moved != self._moved or some_stopped or is_other_crew:
            self._moved, self._standing_s = moved, 0.0
            self._waited = {role: progress.stage_seconds(role).copy() for role in self._processes}
        else:
            self._standing_s += passed_s

    def deadlock(self) -> str | None:
        """What each waits for, if all have done so for `stall_timeout`; as of the last look.

        Then a slot or a message is lost, or the limits of several waits exclude each other. One
        that is stopped, works or starts does not wait: the others wait for it. Work that goes on,
        such as a long step of an environment, is in no stage's time yet.
        """
        limit_s = self._config.stall_timeout
        all_work = self._processes.keys() == self._progress.topology.processes.keys()
        if self._standing_s < limit_s or not all_work:
            return None
        waits = []
        for role, before in self._waited.items():
            if self._still_s[role] > _LAP_S or self._stepping(role) is not None:
                return None
            grown = self._progress.stage_seconds(role) - before
            stage = COMPONENT_STAGES[role.kind][int(grown.argmax())]
            if not is_waiting(stage) or grown.max() < limit_s / 2:
                return None
            waits.append(f"{role.name} for {_AWAITED[stage]}")
        return (
            f"no decision and no update for {limit_s:g} s (stall_timeout={limit_s:g}), since all "
            f"wait for each other: {', '.join(waits)}"
        )

    def _count_suspension(self, role: Role) -> None:
        """It may last as long as it likes, but not in silence."""
        before_s = self._suspended_s[role]
        self._suspended_s[role] += self._still_s[role]
        self._still_s[role] = 0.0
        if before_s < _SUSPENSION_S <= self._suspended_s[role]:
            log.warning(
                "%s (pid %d) has been stopped, or has waited for a disk, for %g s; the run waits "
                "for it (kill -CONT wakes what was stopped)",
                *(role.name, self._processes[role].pid, _SUSPENSION_S),
            )

    def _limit(self, role: Role) -> tuple[float, str]:
        config = self._config
        has_envs = role.has_envs
        if self._stepping(role) is not None:
            text = f" (env_timeout={config.env_timeout:g}; raise --env-timeout if it takes as long)"
            return config.env_timeout, text
        flag = "env_timeout" if has_envs else "stall_timeout"
        timeout_s: float = getattr(config, flag)
        if not self._has_worked(role):
            limit_s = max(START_LIMIT_S, timeout_s)
            return limit_s, f" (raise --{flag.replace('_', '-')} above {limit_s:g} to wait longer)"
        if has_envs:
            return timeout_s, f" (env_timeout={timeout_s:g})"
        remedy = "raise it if a single minibatch takes as long"
        return timeout_s, f" (stall_timeout={timeout_s:g}; {remedy})"

    def _has_worked(self, role: Role) -> bool:
        """Networks: once the first minibatch or inference is done, which warms much up."""
        match role.kind:
            case "rollout":
                return self._seen[role] != self._first[role]
            case "policy":
                work = POLICY_STAGES.index("forward")
            case "learner":
                work = LEARNER_STAGES.index("train")
        return bool(self._progress.laps(role)[work] > 0)

    def _place(self, role: Role) -> str:
        if (step := self._stepping(role)) is not None:
            # The first lap ends when the first split's are made; later it may be a reset as well.
            laps = self._progress.laps(role).tobytes()
            has_made = not self._first[role].startswith(laps)
            doing = "in a step of" if has_made else "making"
            return f"has been {doing} env {step[1]} of its split {step[0]}, {self._config.env},"
        if not self._has_worked(role):
            return "has not begun to work"
        return "has not got on"

    def _stepping(self, role: Role) -> tuple[int, int] | None:
        """The split of a rollout worker, and its environment, that steps now."""
        if not role.has_envs:
            return None
        steps = self._progress.stepping[role.index]
        for split in np.flatnonzero(steps >= 0):
            return int(split), int(steps[split])
        return None

    def _done(self, role: Role) -> bytes:
        members = self._progress.topology.processes[role]
        done = b"".join(self._progress.laps(member).tobytes() for member in members)
        if role.has_envs:
            done += self._progress.stepping[role.index].tobytes()
        return done

    def _is_suspended(self, role: Role) -> bool:
        learners = self._progress.topology.learners_in(role)
        if any(self._progress.saving[learner.index] for learner in learners):
            return True
        try:
            status = self._processes[role].status()
        except psutil.NoSuchProcess:
            return True  # it has died: its sentinel tells
        return status in (
            psutil.STATUS_STOPPED,
            psutil.STATUS_TRACING_STOP,
            psutil.STATUS_DISK_SLEEP,
        )
