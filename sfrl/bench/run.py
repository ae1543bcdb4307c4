"""A run's processes at work, with or without the learner: how fast, and where the time goes."""

from __future__ import annotations

import itertools
import pickle
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import psutil
from numpy.typing import NDArray

from sfrl.envs import EnvSpec
from sfrl.experience.slot_inbox import SlotInbox
from sfrl.ipc.mailbox import Mailbox
from sfrl.ipc.messages import CheckpointRequest, LearnerReport, Report
from sfrl.ipc.shared_memory import MIB, unlink_segments
from sfrl.ipc.topology import LEARNER, Role
from sfrl.records.timing import (
    COMPONENT_STAGES,
    LEARNER_STAGES,
    Kind,
    StageTimer,
    is_waiting,
    shares,
)
from sfrl.run.crew import WorkerError
from sfrl.run.process_crew import Body, ProcessCrew
from sfrl.run.roles import Shared, make_learner, make_shared
from sfrl.run.trainer import STOP_TIMEOUT_S
from sfrl.settings.config import Config
from sfrl.settings.machine import available_cores
from sfrl.tune.children import MeasureError, interrupts_deferred
from sfrl.tune.components import Precision
from sfrl.workers.worker import worker_loop

WARM_UP_BATCHES = 2
_INDEX_BYTES = 8  # of a message in an index queue


class RunFigures(NamedTuple):
    """What some windows of a run show. Where it says core, it is processor time of one core."""

    decisions_per_s: tuple[float, ...]
    """One value per window."""
    shares: dict[str, dict[str, float]]
    """[component][stage], wall-clock time of its processes; each component's add up to 1."""
    core_us: dict[str, float]
    """Microseconds per decision by "component/stage", "trainer" and "idle" (or other programs);
    they add up to what all cores have for it. See `_core_us`."""
    inference_us: float
    """A policy worker's microseconds per decision, wall-clock, without its waiting."""
    learner_us: float | None
    """The learner's likewise, all epochs and the publication. None: it trained on nothing."""
    refresh_us: float | None
    """A policy worker's microseconds per publication, to look for and load new weights."""
    messages_per_s: float
    message_bytes: float
    """Mean, over index queues and mailboxes."""
    lag_mean: float | None
    """Policy lag in optimizer steps, over all rows trained on."""
    lag_max: float | None
    memory_mib: float
    """PSS of all processes together."""
    precision: Precision
    """In which the networks ran."""


class Recycler:
    """A worker in the learner's place: gives every full slot straight back, unread."""

    def __init__(self, shared: Shared) -> None:
        self.slots = SlotInbox(shared.buffer, shared.channels, shared.progress)
        self.timer = StageTimer(LEARNER_STAGES, shared.progress.stage_seconds(LEARNER))

    def step(self) -> bool:
        slots = self.slots.take(1)
        self.slots.give_back(slots)
        self.timer.lap("gather")
        return bool(slots)

    def wait(self, timeout_s: float) -> None:
        self.slots.queue.wait(timeout_s)
        self.timer.lap("wait_trajectories")

    def close(self) -> None:
        """Nothing to finish."""


def recycler_body(
    shared: Shared,
    first: Role,
    reports: Mailbox[Report],
    requests: Mailbox[CheckpointRequest],
    resume_path: str | None,
) -> None:
    """A learner's process that publishes its first weights and never trains."""
    make_learner(shared, reports, requests, resume_path)
    worker_loop(Recycler(shared), shared.stop)


def measure_run(
    config: Config,
    spec: EnvSpec,
    seconds: float,
    windows: int,
    python_us: float,  # of a split step in the rollout worker, from `components.rollout`
    bodies: Mapping[Kind, Body] | None = None,  # see `ProcessCrew`
) -> RunFigures:
    """All processes of a run, once every slot has been filled and a few batches trained on.

    One window more than asked for: the first one still warms up.
    """
    warm_up_rows = config.num_slots * config.rollout_length * config.envs_per_split
    warm_up_rows += WARM_UP_BATCHES * config.batch_size * config.minibatches
    with _started(config, spec, bodies) as (shared, crew):
        while shared.progress.total_env_steps < warm_up_rows:
            crew.advance()
        _advance(crew, seconds)
        readings, reports = [_Reading.of(shared, crew)], []
        for _ in range(windows):
            reports += _advance(crew, seconds)
            readings.append(_Reading.of(shared, crew))
        valid_fraction = float(shared.buffer.valid.mean())
        precision: Precision = "bfloat16" if shared.weights.acts_in_bfloat16 else "float32"
        return _figures(config, readings, reports, valid_fraction, python_us, precision)


@contextmanager
def _started(
    config: Config,
    spec: EnvSpec,
    bodies: Mapping[Kind, Body] | None,
) -> Iterator[tuple[Shared, ProcessCrew]]:
    """A run's processes; ended, and their memory removed, however the block is left."""
    try:
        shared = make_shared(config, spec)
        crew = ProcessCrew(shared, bodies)
        try:
            with interrupts_deferred():
                crew.start(None)
            yield shared, crew
        finally:
            failures = crew.stop(STOP_TIMEOUT_S)
        if failures:
            raise WorkerError("\n".join(failures))
    finally:
        unlink_segments()


def _advance(crew: ProcessCrew, seconds: float) -> list[Report]:
    """What the workers report in this time."""
    crew.take_reports()
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        crew.advance()
    return crew.take_reports()


class _Reading(NamedTuple):
    """All counters at one moment, or what they grew by between two."""

    seconds: float
    decisions: int
    learner_steps: int
    stage_seconds: dict[Kind, NDArray[np.float64]]
    """component -> [stages], wall-clock, over its processes."""
    core_seconds: dict[str, float]
    """component, or trainer -> processor time of its processes."""

    @classmethod
    def of(cls, shared: Shared, crew: ProcessCrew) -> _Reading:
        progress = shared.progress
        return cls(
            time.monotonic(),
            progress.total_env_steps,
            progress.learner_steps,
            {kind: totals.sum(axis=0) for kind, totals in progress.stage_totals().items()},
            _core_seconds(crew),
        )

    def since(self, earlier: _Reading) -> _Reading:
        return _Reading(
            self.seconds - earlier.seconds,
            self.decisions - earlier.decisions,
            self.learner_steps - earlier.learner_steps,
            {c: s - earlier.stage_seconds[c] for c, s in self.stage_seconds.items()},
            {c: s - earlier.core_seconds[c] for c, s in self.core_seconds.items()},
        )


def _core_seconds(crew: ProcessCrew) -> dict[str, float]:
    seconds = defaultdict(float, trainer=time.process_time())
    for role, pid in crew.pids.items():
        times = psutil.Process(pid).cpu_times()
        seconds[role.kind] += times.user + times.system
    return seconds


def _memory_mib() -> float:
    this = psutil.Process()
    pss = [p.memory_full_info().pss for p in (this, *this.children(recursive=True))]
    return sum(pss) / MIB


def _figures(
    config: Config,
    readings: list[_Reading],
    reports: list[Report],
    valid_fraction: float,  # of the rows: the others are no decisions
    python_us: float,
    precision: Precision,
) -> RunFigures:
    windows = [after.since(before) for before, after in itertools.pairwise(readings)]
    spent = readings[-1].since(readings[0])
    if spent.decisions == 0:
        raise MeasureError(f"no decision within {spent.seconds:.1f} s; raise --seconds")
    split_steps = spent.decisions / valid_fraction / config.envs_per_split
    batches = spent.learner_steps / (config.epochs * config.minibatches)
    batch_rows = config.batch_size * config.minibatches
    refreshes = batches * config.num_policies
    inference_s, learner_s = _work_seconds(spent, "policy"), _work_seconds(spent, "learner")
    # A request and its reply for every split step; for every slot, that it is full and free.
    messages = 2 * split_steps * (1 + 1 / config.rollout_length)
    num_bytes = _INDEX_BYTES * messages + sum(len(pickle.dumps(report)) for report in reports)
    lag_mean, lag_max = _policy_lag(reports)
    return RunFigures(
        decisions_per_s=tuple(window.decisions / window.seconds for window in windows),
        shares={
            component: shares(stages, np.zeros(len(stages)), spent.stage_seconds[component])
            for component, stages in COMPONENT_STAGES.items()
        },
        core_us=_core_us(spent, python_us * split_steps / spent.decisions),
        inference_us=sum(inference_s.values()) / spent.decisions * 1e6,
        learner_us=sum(learner_s.values()) / (batches * batch_rows) * 1e6 if batches else None,
        refresh_us=inference_s["refresh_weights"] / refreshes * 1e6 if refreshes else None,
        messages_per_s=(messages + len(reports)) / spent.seconds,
        message_bytes=num_bytes / (messages + len(reports)),
        lag_mean=lag_mean,
        lag_max=lag_max,
        memory_mib=_memory_mib(),
        precision=precision,
    )


def _work_seconds(spent: _Reading, component: Kind) -> dict[str, float]:
    """Wall-clock seconds by stage, without those of waiting."""
    stages = zip(COMPONENT_STAGES[component], spent.stage_seconds[component].tolist(), strict=True)
    return {stage: seconds for stage, seconds in stages if not is_waiting(stage)}


def _core_us(spent: _Reading, python_us: float) -> dict[str, float]:
    """`RunFigures.core_us`; `python_us` per decision are the rollout worker's own.

    A network's processor time is divided among its working stages by their wall-clock time. That
    would not do for rollout workers: they lose their core to the networks, which run at higher
    priority, in the very moment that they send them a message. Of theirs the environments have what
    they took by the clock, unless that leaves the worker less than it takes alone.
    """
    core_us = {c: s / spent.decisions * 1e6 for c, s in spent.core_seconds.items()}
    env_us = _work_seconds(spent, "rollout")["env_step"] / spent.decisions * 1e6
    env_us = min(env_us, max(core_us["rollout"] - python_us, 0.0))
    parts = {"rollout/env_step": env_us, "rollout/store": core_us["rollout"] - env_us}
    networks: tuple[Kind, ...] = ("policy", "learner")
    for component in networks:
        work_s = _work_seconds(spent, component)
        total_s = sum(work_s.values())
        for stage, seconds in work_s.items():
            weight = seconds / total_s if total_s else 1 / len(work_s)
            parts[f"{component}/{stage}"] = weight * core_us[component]
    parts["trainer"] = core_us["trainer"]
    available_us = available_cores() * spent.seconds / spent.decisions * 1e6
    return {**parts, "idle": available_us - sum(parts.values())}


def _policy_lag(reports: list[Report]) -> tuple[float | None, float | None]:
    """Mean and maximum over the rows that these reports are about."""
    learner = [report for report in reports if isinstance(report, LearnerReport)]
    counts = np.sum([report.lag_counts for report in learner], axis=0)
    if not np.any(counts):
        return None, None
    mean = float(np.average(np.arange(len(counts)), weights=counts))
    return mean, max(report.metrics.get("policy_lag_max", 0.0) for report in learner)
