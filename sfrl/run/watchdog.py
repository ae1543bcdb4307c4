"""Tells which processes have stopped getting on: by what they do, not by a side thread's word."""

from __future__ import annotations

import time

import numpy as np
import psutil

from sfrl.envs.logs import own_logger
from sfrl.ipc.progress import Progress
from sfrl.records.timing import LEARNER_STAGES, POLICY_STAGES
from sfrl.settings.config import Config

log = own_logger(__name__)

# A look that comes later than this after the one before counts as this much: the trainer itself
# was stopped or the machine asleep, and the workers have had no more time than it.
LONGEST_LOOK_S = 1.0
_SUSPICIOUS_S = 0.2  # so long a step is worth a look at the process's state
_SUSPENSION_S = 10.0  # of a stopped process or a slow disk, after which the log tells
START_LIMIT_S = 120.0  # until it has done its first work: imports, emulators, a first compilation


def component_names(config: Config) -> list[str]:
    """In the order in which `Progress` numbers them."""
    return [
        *(f"rollout-{i}" for i in range(config.num_workers)),
        *(f"policy-{i}" for i in range(config.num_policy_workers)),
        "learner",
    ]


class Watchdog:
    """Notices workers that hang.

    Every worker ends a lap of its `StageTimer` at least twice a second while it waits, and after
    every step of its environments, inference, minibatch or checkpoint. One whose times stand still
    for too long hangs, unless it was stopped (SIGSTOP), waits for a disk, or saves a checkpoint:
    file systems of user space (FUSE) let it wait in what looks like sleep.
    """

    def __init__(self, config: Config, progress: Progress) -> None:
        self._config = config
        self._progress = progress
        self._names = component_names(config)
        self._processes: dict[str, psutil.Process] = {}
        self._seen: dict[str, bytes] = {}  # component -> what it had done at the last look
        self._still_s: dict[str, float] = {}  # component -> for how long that has not changed
        self._suspended_s: dict[str, float] = {}  # component -> likewise, while it was stopped
        self._first: dict[str, bytes] = {}  # component -> what its forerunner had done
        self._last_look_s = time.monotonic()

    def watch(self, name: str, pid: int) -> None:
        """Begin with a process, or with the one that takes its place."""
        self._processes[name] = psutil.Process(pid)
        if name.startswith("rollout"):
            self._progress.stepping[self._names.index(name)] = -1
        self._seen[name] = self._first[name] = self._done(name)
        self._still_s[name] = self._suspended_s[name] = 0.0

    def forget(self, name: str) -> None:
        """It has ended, and waits to be started anew."""
        del self._processes[name]

    def stalled(self) -> dict[str, str]:
        """Components that hang, and what to say of them."""
        now = time.monotonic()
        passed_s = min(now - self._last_look_s, LONGEST_LOOK_S)
        self._last_look_s = now
        found = {}
        for name in self._processes:
            done = self._done(name)
            if done != self._seen[name]:
                self._seen[name], self._still_s[name] = done, 0.0
                self._suspended_s[name] = 0.0
                continue
            # Asked at every look, so that no part of the time in which it was stopped counts.
            if self._still_s[name] >= _SUSPICIOUS_S and self._is_suspended(name):
                self._count_suspension(name)
                continue
            self._still_s[name] += passed_s
            limit_s, flag = self._limit(name)
            if self._still_s[name] >= limit_s:
                found[name] = f"{self._place(name)} for {limit_s:g} s{flag}"
        return found

    def _count_suspension(self, name: str) -> None:
        """It may last as long as it likes, but not in silence."""
        before_s = self._suspended_s[name]
        self._suspended_s[name] += self._still_s[name]
        self._still_s[name] = 0.0
        if before_s < _SUSPENSION_S <= self._suspended_s[name]:
            log.warning(
                "%s (pid %d) has been stopped, or has waited for a disk, for %g s; the run waits "
                "for it (kill -CONT wakes what was stopped)",
                *(name, self._processes[name].pid, _SUSPENSION_S),
            )

    def _limit(self, name: str) -> tuple[float, str]:
        config = self._config
        if name.startswith("rollout") and self._stepping(name) is not None:
            text = f" (env_timeout={config.env_timeout:g}; raise --env-timeout if it takes as long)"
            return config.env_timeout, text
        flag = "env_timeout" if name.startswith("rollout") else "stall_timeout"
        timeout_s: float = getattr(config, flag)
        if not self._has_worked(name):
            limit_s = max(START_LIMIT_S, timeout_s)
            return limit_s, f" (raise --{flag.replace('_', '-')} above {limit_s:g} to wait longer)"
        if name.startswith("rollout"):
            return timeout_s, f" (env_timeout={timeout_s:g})"
        remedy = "raise it if a single minibatch takes as long"
        return timeout_s, f" (stall_timeout={timeout_s:g}; {remedy})"

    def _has_worked(self, name: str) -> bool:
        """Networks: once the first minibatch or inference is done, which warms much up."""
        if name.startswith("rollout"):
            return self._seen[name] != self._first[name]
        is_learner = name == "learner"
        work = LEARNER_STAGES.index("train") if is_learner else POLICY_STAGES.index("forward")
        return bool(self._progress.laps(self._names.index(name))[work] > 0)

    def _place(self, name: str) -> str:
        if (step := self._stepping(name)) is not None:
            # The first lap ends when the first split's are made; later it may be a reset as well.
            laps = self._progress.laps(self._names.index(name)).tobytes()
            has_made = not self._first[name].startswith(laps)
            doing = "in a step of" if has_made else "making"
            return f"has been {doing} env {step[1]} of its split {step[0]}, {self._config.env},"
        if not self._has_worked(name):
            return "has not begun to work"
        return "has not got on"

    def _stepping(self, name: str) -> tuple[int, int] | None:
        """The split of a rollout worker, and its environment, that steps now."""
        if not name.startswith("rollout"):
            return None
        steps = self._progress.stepping[self._names.index(name)]
        for split in np.flatnonzero(steps >= 0):
            return int(split), int(steps[split])
        return None

    def _done(self, name: str) -> bytes:
        component = self._names.index(name)
        done = self._progress.laps(component).tobytes()
        return done + self._progress.stepping[component].tobytes() if "rollout" in name else done

    def _is_suspended(self, name: str) -> bool:
        if name == "learner" and self._progress.is_saving:
            return True
        try:
            status = self._processes[name].status()
        except psutil.NoSuchProcess:
            return True  # it has died: its sentinel tells
        return status in (
            psutil.STATUS_STOPPED,
            psutil.STATUS_TRACING_STOP,
            psutil.STATUS_DISK_SLEEP,
        )
