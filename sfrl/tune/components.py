"""How fast each component is on this machine, alone: what the tuner and the benchmarks measure.

`emulator` and `simulation` start processes of their own. `rollout`, `inference` and `learner` work
where they are called, the last two with torch, and leave their shared memory behind. They are meant
for a process of their own, where several may follow each other:

    [acting] = in_child(inference, config, spec, batch_sizes=(32,), seconds=1.0)

Every measurement uses the run's own classes, with its niceness, pinning and number of threads. The
wall-clock ones assume that nothing else runs on the cores they need.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.synchronize import Barrier
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfrl import envs
from sfrl.envs import OBS, EnvSpec
from sfrl.envs.atari import load_rom
from sfrl.ipc.mailbox import Mailbox
from sfrl.ipc.messages import CheckpointRequest, Report
from sfrl.ipc.topology import Role, make_topology
from sfrl.records.timing import ROLLOUT_STAGES
from sfrl.run.roles import (
    Shared,
    make_learner,
    make_policy_worker,
    make_rollout_worker,
    make_shared,
    pin_and_nice,
)
from sfrl.run.spawning import pythons_own_found
from sfrl.settings.config import Config
from sfrl.settings.machine import available_cores
from sfrl.tune.children import SPAWN, in_children
from sfrl.workers.rollout_worker import Split
from sfrl.workers.worker import WAIT_TIMEOUT_S, Worker

Precision = Literal["float32", "bfloat16"]
ROWS = 8  # of a trajectory, which a policy worker acts on with the same weights
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")

_WARM_UP = 0.25  # of a window


class Simulation(NamedTuple):
    decisions_per_s: tuple[float, ...]  # of all rollout workers together, one value per window
    core_us: float  # processor time of a decision, microseconds of one core


class Rollout(NamedTuple):
    env_us: float  # of a split step, in its environments; mean
    python_us: float  # of a split step, beside its environments: row, messages, reports; mean
    copy_us: float  # of these, about: the copy of the observations into the slot; mean


class Inference(NamedTuple):
    precision: Precision
    batch_size: int
    batch_us: float  # a policy worker's whole step: rows in, network, sampling, rows out; median
    host_us: float  # processor time of the host for it; median


class Learning(NamedTuple):
    precision: Precision
    decision_us: float  # all epochs of a training batch and its publication, per decision; median


# --- environments ---


def emulator(config: Config, seconds: float, windows: int = 1) -> tuple[float, ...]:
    """ALE's act() alone, on every core: frames/s of all together, one value per window.

    Raises:
        ValueError: `config.env` is no Atari game.
    """
    game = envs.atari_game(config.env)
    if game is None:
        raise ValueError(f"env={config.env} is no Atari game: it has no emulator of its own")
    counts = _count_together(
        [partial(_emulate, config, game, i) for i in range(available_cores())], seconds, windows
    )
    return _total_rates(counts)


def simulation(config: Config, seconds: float, windows: int = 1) -> Simulation:
    """The run's rollout workers with random actions: no network, no buffer, no queue.

    The ceiling of every other rate: `num_workers` processes at once, each with the run's splits, of
    which one is served while the others step. Steps that only reset are no decisions.
    """
    counts = _count_together(
        [partial(_simulate, config, i) for i in range(config.num_workers)], seconds, windows
    )
    decisions = sum(window.num_done for worker in counts for window in worker)
    cpu_s = sum(window.cpu_s for worker in counts for window in worker)
    return Simulation(_total_rates(counts), cpu_s / decisions * 1e6)


def rollout(
    config: Config, spec: EnvSpec, seconds: float, ready: Callable[[], object] = lambda: None
) -> Rollout:
    """A rollout worker's split step where actions and free slots are there at once.

    In a run on few cores this cannot be seen: a message wakes a process of higher priority, and the
    rollout worker's clock goes on while that has the core.

    Args:
        ready: called when all is made and the measurement begins.
    """
    shape = config.num_splits, config.envs_per_split, config.rollout_length
    shared = make_shared(_one_worker(config, *shape), spec)
    _fill(shared)
    reports: Mailbox[Report] = Mailbox()
    worker = make_rollout_worker(shared, 0, reports)
    [requests], [replies] = shared.channels.action_requests, shared.channels.replies
    [trajectories], num_slots = shared.channels.trajectories, shared.buffer.num_slots
    env_seconds = shared.progress.stage_seconds(Role("rollout", 0))
    env_step = ROLLOUT_STAGES.index("env_step")
    times: list[tuple[float, float]] = []  # of a split step: in the environments, beside them
    ready()
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        for message in requests.get_many(num_slots):
            replies.put(message)
        for message in trajectories.get_many(num_slots):
            replies.put(message)  # (slot, T): as the learner gives it back
        reports.get_all()
        start_s, start_env_s = time.perf_counter(), float(env_seconds[env_step])
        while not worker.step():  # environments that step in threads
            worker.wait(WAIT_TIMEOUT_S)
        env_s = float(env_seconds[env_step]) - start_env_s
        times.append((env_s, time.perf_counter() - start_s - env_s))
    env_us, python_us = np.mean(np.array(times) * 1e6, axis=0).tolist()
    copy_us = sum(_copy_us(rows[0, 0].copy(), rows) for rows in shared.buffer.obs.values())
    worker.close()
    return Rollout(env_us, python_us, copy_us)


def _copy_us(obs: NDArray[Any], rows: NDArray[Any]) -> float:
    """The copy of a leaf [N, *shape] into one row after the other of rows [S, T+1, N, ...]."""
    rows = rows.reshape(-1, *obs.shape)
    start_s = time.perf_counter()
    for row in rows:
        row[:] = obs
    return (time.perf_counter() - start_s) / len(rows) * 1e6


def _emulate(config: Config, game: str, index: int) -> Callable[[], int]:
    pin_and_nice(config, index)
    ale = load_rom(game, index, config.sticky_actions)
    buttons = ale.getMinimalActionSet()
    rng = np.random.default_rng(index)

    def step() -> int:
        """One decision."""
        button = buttons[int(rng.integers(len(buttons)))]
        for _ in range(config.frameskip):
            ale.act(button)
        if ale.game_over():
            ale.reset_game()
        return config.frameskip

    return step


def _simulate(config: Config, index: int) -> Callable[[], int]:
    pin_and_nice(config, index)
    slots = make_topology(config).slots
    splits = deque(Split(split, config) for split in slots.splits_of(index))
    rng = np.random.default_rng(index)
    for split in splits:
        split.env.send(envs.random_actions(split.env.actions, split.obs, rng))

    def step() -> int:
        """Finish the split that has stepped longest, and send it on."""
        split = splits[0]
        splits.rotate(-1)
        result = split.env.recv()
        num_resets = int(split.ended.sum())
        split.ended = result.ended
        split.env.send(envs.random_actions(split.env.actions, result.obs, rng))
        return config.envs_per_split - num_resets

    return step


class _Window(NamedTuple):
    num_done: int
    wall_s: float
    cpu_s: float  # of all threads of the process


def _count_together(
    makers: Sequence[Callable[[], Callable[[], int]]], seconds: float, windows: int
) -> list[list[_Window]]:
    """[makers][windows]: what the steps that they make count, at the same time, after warm-up."""
    with pythons_own_found():  # by multiprocessing's resource tracker, which starts with the first
        start = SPAWN.Barrier(len(makers))
    return in_children([partial(_count, make, start, seconds, windows) for make in makers])


def _count(
    make_step: Callable[[], Callable[[], int]], start: Barrier, seconds: float, windows: int
) -> list[_Window]:
    step = make_step()
    start.wait()
    return [_window(step, s) for s in (_WARM_UP * seconds, *[seconds] * windows)][1:]


def _window(step: Callable[[], int], seconds: float) -> _Window:
    num_done, cpu_s, start_s = 0, time.process_time(), time.perf_counter()
    while (wall_s := time.perf_counter() - start_s) < seconds:
        num_done += step()
    return _Window(num_done, wall_s, time.process_time() - cpu_s)


def _total_rates(counts: list[list[_Window]]) -> tuple[float, ...]:
    """[windows] counts per second of all processes together."""
    return tuple(
        sum(window.num_done / window.wall_s for window in simultaneous)
        for simultaneous in zip(*counts, strict=True)
    )


# --- networks ---


def inference(
    config: Config,
    spec: EnvSpec,
    batch_sizes: Sequence[int],
    seconds: float,
    precisions: Sequence[Precision] = PRECISIONS,
    num_envs: int | None = None,
    ready: Callable[[], object] = lambda: None,
) -> list[Inference]:
    """A policy worker's step on a batch, for every batch size and precision, in `seconds` in all.

    Every `ROWS` steps it counts its weights as new: what it keeps of images is made with the
    weights that it has (sfrl/nets/convolve.py). In a run that happens about once a trajectory,
    which would take too long here.

    The batches are measured in turn, so that a busy moment hits all of them alike.

    Args:
        num_envs: rows of a request, of which every batch size is a multiple; None: of the batch.
        ready: called when all is made and the measurement begins.
    """
    cases = [(precision, size) for precision in precisions for size in batch_sizes]
    all_shared = []
    for precision, size in cases:
        n = num_envs or size
        one = _one_worker(_in_precision(config, precision), size // n, n, ROWS)
        all_shared.append(make_shared(dataclasses.replace(one, policy_batch_size=size), spec))
    reports: Mailbox[Report] = Mailbox()
    requests: Mailbox[CheckpointRequest] = Mailbox()
    model = make_learner(all_shared[0], reports, requests, None).model  # the same in all cases
    for (precision, _), shared in zip(cases, all_shared, strict=True):
        shared.weights.acts_in_bfloat16 = precision == "bfloat16"
        shared.weights.publish(model, 0)
    steps = [_inference_step(shared) for shared in all_shared]
    ready()
    times = _time_in_turn(steps, seconds)
    return [
        Inference(*case, wall_s / ROWS * 1e6, host_s / ROWS * 1e6)
        for case, (wall_s, host_s) in zip(cases, times, strict=True)
    ]


def learner(
    config: Config, spec: EnvSpec, seconds: float, precisions: Sequence[Precision] = PRECISIONS
) -> list[Learning]:
    """The learner's training batch of full slots of made-up experience, in `seconds` in all.

    But two training batches at least, of which the first, which warms up, is not counted.
    """
    configs = [_in_precision(config, p) for p in precisions]
    times = _time_in_turn([_learner_step(make_shared(c, spec)) for c in configs], seconds)
    decisions = config.slots_per_batch * config.rollout_length * config.envs_per_split
    return [
        Learning(precision, wall_s / decisions * 1e6)
        for precision, (wall_s, _) in zip(precisions, times, strict=True)
    ]


def _in_precision(config: Config, precision: Precision) -> Config:
    return dataclasses.replace(config, precision=precision, debug_buffers=False)


def _one_worker(config: Config, num_splits: int, num_envs: int, num_rows: int) -> Config:
    """The same model and environments, for one worker of each kind, with `num_envs` per split."""
    return dataclasses.replace(
        config,
        num_workers=1,
        num_policy_workers=1,
        num_splits=num_splits,
        envs_per_worker=num_splits * num_envs,
        policy_batch_size=num_envs,
        rollout_length=num_rows,
        minibatches=1,
        batch_size=num_envs * num_rows,
        debug_buffers=False,
    )


def _inference_step(shared: Shared) -> Callable[[], None]:
    """All rows, one after the other, since images that stay cost less; weights are published."""
    worker = make_policy_worker(shared, 0)
    _fill(shared)
    [requests], [replies] = shared.channels.action_requests, shared.channels.replies
    slots = shared.topology.slots
    first_slots = [slots.of_split(split)[0] for split in slots.splits_of(0)]

    def step() -> None:
        worker.environments.renewals += 1
        for t in range(shared.config.rollout_length):
            for slot in first_slots:
                requests.put(shared.buffer.message(slot, t))
            num_answered = 0
            while num_answered < len(first_slots):  # on a GPU one step begins it, the next answers
                _work(worker)
                num_answered += len(replies.get_many(len(first_slots)))

    return step


def _learner_step(shared: Shared) -> Callable[[], None]:
    reports: Mailbox[Report] = Mailbox()
    requests: Mailbox[CheckpointRequest] = Mailbox()
    learner = make_learner(shared, reports, requests, None)
    _fill(shared)
    batch = range(shared.config.slots_per_batch)

    def step() -> None:
        shared.buffer.policy_version[:] = shared.progress.learner_steps  # no row is too old
        for slot in batch:
            shared.channels.trajectories[0].put(shared.buffer.message(slot, 0))
        num_back = 0
        while num_back < len(batch):
            _work(learner)
            queues = shared.channels.replies
            num_back += sum(len(queue.get_many(shared.buffer.num_slots)) for queue in queues)
        reports.get_all()

    return step


def _work(worker: Worker) -> None:
    while not worker.step():
        worker.wait(1.0)


def _fill(shared: Shared) -> None:
    """Give all slots experience that a learner can take: random observations and rewards.

    From step to step of a trajectory a rectangle of an image changes, 2% of it, about as much as in
    Atari's games: on some processors it decides what a convolution costs (sfrl/nets/convolve.py).
    """
    buffer, rng = shared.buffer, np.random.default_rng(0)
    for leaf in shared.env.leaves:
        rows = buffer.obs[leaf.name]
        if leaf.kind == "choice":
            rows[:] = rng.integers(leaf.sizes, size=rows.shape)
        elif leaf.kind == "mask":
            rows[:] = True
        elif leaf.dtype == "uint8":
            rows[:] = rng.integers(256, size=rows.shape, dtype=np.uint8)
        else:
            rows[:] = rng.standard_normal(rows.shape)
        if leaf.kind == "image":
            height, width = rows.shape[-2:]
            for t in range(1, rows.shape[1]):
                y, x = rng.integers(height), rng.integers(width)
                part = np.s_[..., y : y + math.ceil(height / 7), x : x + math.ceil(width / 7)]
                changed = rows[:, t][part].copy()
                rows[:, t] = rows[:, t - 1]
                rows[:, t][part] = changed
    actions = shared.env.actions
    for row in buffer.actions.reshape(-1, *buffer.actions.shape[2:]):  # [N, *shape] each
        row[:] = envs.random_actions(actions, {OBS: row}, rng)
    buffer.rewards[:] = rng.standard_normal(buffer.rewards.shape)
    buffer.valid[:] = True


def _time_in_turn(steps: Sequence[Callable[[], None]], seconds: float) -> list[tuple[float, float]]:
    """Median seconds of each step, by the clock and of processor time.

    The first round warms up and is not counted.
    """
    times: list[list[tuple[float, float]]] = [[] for _ in steps]
    end_s = math.inf
    while not times[0] or time.perf_counter() < end_s:
        for step, taken in zip(steps, times, strict=True):
            start_s, host_s = time.perf_counter(), time.process_time()
            step()
            taken.append((time.perf_counter() - start_s, time.process_time() - host_s))
        if end_s == math.inf:
            end_s = time.perf_counter() + seconds
            times = [[] for _ in steps]
    medians = [np.median(taken, axis=0).tolist() for taken in times]
    return [(wall_s, host_s) for wall_s, host_s in medians]
