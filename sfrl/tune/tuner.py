"""Picks the settings of the system, not those of learning, for this machine, environment and model.

GA3C (Babaeizadeh et al. 2017, arXiv:1611.06256, section 4) anneals its numbers of processes during
training. Here the parts are measured alone, in seconds, and throughput.py tells what any
arrangement of them comes to. What was measured is cached; the choice is made from it at each start,
so that it fits whatever flags are given.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfrl.envs import EnvSpec
from sfrl.envs.logs import printable
from sfrl.ipc.shared_memory import shm_shortage
from sfrl.records.bottleneck import BOTTLENECKS
from sfrl.run.roles import shared_bytes
from sfrl.run.spawning import pythons_own_found
from sfrl.settings.config import Config, ConfigError
from sfrl.settings.defaults import ENVS_IN_BATCH, training_batch
from sfrl.settings.machine import available_memory, machine, usable_cores
from sfrl.systems import SYSTEMS
from sfrl.tune import children, components
from sfrl.tune.throughput import Costs, Rates, is_crowded, predict

TIME_LIMIT_S = 20  # of the whole measurement
_MEASURED = 5  # to be raised when costs that were kept before mean something else

_ENVS = (2, 8)  # of a split step that is timed: two points of a line
# What there is to choose: see `arrangements`.
_ARRANGED = ("num_workers", "num_splits", "envs_per_worker", "num_policy_workers", "torch_threads")
_BATCHES = (8, 32, 64)  # of an inference that is timed
_THREADS = (2, 4, 8)  # of the learner, where there are cores for them
# Of learning, what threads divide among them: between what two cores measure in float32 and in
# bfloat16. Below two cores, for the estimate of what twice as many would give.
_PARALLEL = 0.75
_CLEARLY = 1.5  # a precision that is so many times as fast in acting is faster in learning, too
_MINIBATCH = 256  # decisions that a timed learner takes, at most
_MAX_CACHE_BYTES = 8 << 20
_MARGIN = 0.01  # predictions closer than this are equal
_CROWD_GAINS = 1.1  # times the frames/s: for less, threads of the learner do not share cores
# What each environment beyond the fewest adds to the frames that a score takes, in parts of them,
# and for how many training batches there are environments, at most
# (docs/experiments.md, "The same curve on any number of cores").
_FRAMES_PER_ENV = 0.003
_MAX_BATCHES = 8
HELPS = 1.05  # times the frames/s: what brings less is not advised
# Microseconds of a GPU, for the estimate of what one would give: small next to any environment. The
# two processes that drive it are not counted, hence "up to".
_GPU_BATCH_US, _GPU_ROW_US, _GPU_LEARN_US = 150.0, 1.0, 10.0
_ROLLOUT_BYTES, _NETWORK_BYTES = 200 << 20, 600 << 20  # of a process's own memory


def _num_envs(config: Config) -> int:
    return config.num_workers * config.envs_per_worker


def choose(candidates: Sequence[Config], costs: Costs, cores: float) -> Config:
    """The one that is soonest at a score: its frames/s, by how many frames it needs.

    Of equals the one with the fewest environments, for the least policy lag.

    Ties are broken in this order:

    1. the fewest threads of the learner and the fewest splits, for the largest inferences;
    2. the most workers, so that one has work while others wait; the fewest, if all of them wait for
       the networks.
    """
    rates = [predict(config, costs, cores) for config in candidates]
    extra_envs = np.array([_num_envs(config) for config in candidates])
    extra_envs -= extra_envs.min()
    worth = np.array([rate.expected for rate in rates]) / (1 + _FRAMES_PER_ENV * extra_envs)
    worth[[is_crowded(config, costs, cores) for config in candidates]] /= _CROWD_GAINS
    enough = (1 - _MARGIN) * worth.max()

    def rank(case: tuple[Config, Rates]) -> tuple[int, ...]:
        config, rate = case
        waits_for_networks = rate.bottleneck in ("inference", "learning")
        workers = config.num_workers if waits_for_networks else -config.num_workers
        processes = config.num_policy_workers, config.torch_threads
        return _num_envs(config), *processes, config.num_splits, workers

    cases = zip(candidates, rates, worth >= enough, strict=True)
    best, _ = min(((config, rate) for config, rate, is_good in cases if is_good), key=rank)
    return dataclasses.replace(best, precision=costs.precision)


def arrangements(config: Config, fixed: Collection[str], cores: float) -> list[Config]:
    """What there is to choose from: `config` with other processes, splits and environments.

    A training batch is what learns best with so many environments (`training_batch`), in optimizer
    steps of as many decisions, unless flags say what it is. There are environments for at least one
    of `config`'s, and for 8 at most, since policy lag grows with their number; and all slots hold
    at least two, so that workers have slots to fill while the learner keeps some. If flags leave
    nothing of the kind there are as many environments as in `config`.
    """
    follows = not {"batch_size", "minibatches"} & set(fixed)
    config_batch = config.batch_size * config.minibatches
    in_batch = config_batch // config.rollout_length
    wanted = max(in_batch, ENVS_IN_BATCH)
    sizes = [n for n in range(1, min(wanted, 128) + 1) if wanted % n == 0]
    most = math.ceil(cores)
    options: list[Sequence[int]] = [
        # Not all: on a machine of many cores that would take seconds at the start.
        [w for w in range(1, most + 1) if w <= 4 or most % w == 0 or w >= most - 2],
        # What splits gain that go on while others wait for an environment is not in the model.
        (1, 2, 3) if config.threads_per_worker == 1 else (config.num_splits,),
        sorted({n * s for n in sizes for s in (1, 2, 3)}),
        range(1, max(1, min(most // 2, 4)) + 1),
        # Two may share cores with others. Of more each has one of its own: this alone is measured.
        [1, *(k for k in _THREADS if k <= max(min(int(cores), 2), most - 2))],
    ]
    values = [
        (getattr(config, name),) if name in fixed else option
        for name, option in zip(_ARRANGED, options, strict=True)
    ]
    found: list[Config] = []
    as_many: list[Config] = []
    for w, s, n, p, k in itertools.product(*values):
        if n % s or ("envs_per_worker" not in fixed and wanted % (n // s)):
            continue
        changes = dict(zip(_ARRANGED, (w, s, n, p, k), strict=True))
        if follows:
            changes |= training_batch(
                SYSTEMS[config.system],
                num_workers=w,
                num_splits=s,
                envs_per_worker=n,
                rollout_length=config.rollout_length,
                step=config.batch_size,
                least_envs=in_batch,
            )
        with suppress(ConfigError):  # its slots do not make up a training batch
            candidate = dataclasses.replace(config, **changes)
            batch = candidate.batch_size * candidate.minibatches
            round_size = w * n * config.rollout_length
            least = max(2 * batch / config.slots_per_split, config_batch if follows else 0)
            is_step = candidate.batch_size == config.batch_size
            if is_step and least <= round_size <= _MAX_BATCHES * batch:
                found.append(candidate)
            elif w * n == _num_envs(config):
                as_many.append(candidate)
    return found or as_many or [config]


class Outlook(NamedTuple):
    """What a run comes to, by the costs of its parts."""

    decisions_per_s: float
    limit: str
    """What limits it, in words."""
    shares: dict[str, float]
    """Of the work, by part; they add up to 1."""
    gains: dict[str, float]
    """Times the frames/s, at most, by what would help; the largest first."""


def outlook(
    config: Config,
    costs: Costs,
    cores: float,
    candidates: Sequence[Config],
    candidates_of_more: Sequence[Config],
) -> Outlook:
    """Of `config`, chosen from `candidates`; `candidates_of_more` are those on twice the cores."""
    rates, n = predict(config, costs, cores), config.envs_per_split
    core_us = {"environments": costs.env_us, "the workers' Python": costs.split_us / n}
    if not costs.on_gpu:
        learn_us = costs.learn_us * (
            costs.parallel + (1 - costs.parallel) * config.torch_threads
        )  # of all its threads, waiting for each other included
        core_us |= {"acting": costs.batch_us / n + costs.row_us, "learning": learn_us}
    limit = BOTTLENECKS[rates.bottleneck]
    if rates.bottleneck == "learning":
        limit += ", which is one process"
    shares = {part: us / sum(core_us.values()) for part, us in core_us.items()}
    of_more = choose(candidates_of_more, costs, 2 * cores)
    gains = {"twice the cores": predict(of_more, costs, 2 * cores).expected / rates.expected}
    if not costs.on_gpu:
        instant = costs._replace(
            batch_us=_GPU_BATCH_US, row_us=_GPU_ROW_US, learn_us=_GPU_LEARN_US, on_gpu=True
        )
        best = predict(choose(candidates, instant, cores), instant, cores).expected
        gains["a GPU"] = best / rates.expected
    in_order = sorted(gains, key=gains.__getitem__, reverse=True)
    return Outlook(rates.expected, limit, shares, {what: gains[what] for what in in_order})


def describe(
    config: Config,
    costs: Costs,
    cores: float,
    candidates: Sequence[Config],
    candidates_of_more: Sequence[Config],
    frameskip: int,
) -> str:
    """One line: the settings, what they should come to, what limits them and what would help most.

    Args:
        candidates: what `config` was chosen from.
        candidates_of_more: the same on twice the cores.
    """
    known = outlook(config, costs, cores, candidates, candidates_of_more)
    shares = ", ".join(f"{share:.0%} {part}" for part, share in known.shares.items())
    gains = known.gains
    helps = [f"{w} up to {gains[w]:.1f} times the frames/s" for w in gains if gains[w] >= HELPS]
    idle = [what for what in gains if gains[what] < HELPS]
    advice = [f"what would help most: {', '.join(helps)}"] if helps else []
    advice += [f"{' and '.join(idle)} would not help"] if idle else []
    frames_per_s = known.decisions_per_s * frameskip
    workers = _count(config.num_workers, "worker")
    return (
        f"tuned for {cores:g} cores: {workers} x {_count(config.envs_per_worker, 'env')}, "
        f"{_count(config.num_splits, 'split')}, "
        f"{_count(config.num_policy_workers, 'policy worker')}, "
        f"{_count(config.torch_threads, 'learner thread')}, {config.precision}; "
        f"{frames_per_s:,.0f} frames/s expected: {1e6 / 60 / frames_per_s:.1f} minutes per million "
        f"frames; {known.limit} (work: {shares}); {'; '.join(advice)}"
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


# --- the machine ---


def _fits_memory(config: Config, spec: EnvSpec) -> bool:
    shared = sum(shared_bytes(config, spec))
    others = config.num_workers * _ROLLOUT_BYTES + (config.num_policy_workers + 1) * _NETWORK_BYTES
    return not shm_shortage(shared, "") and shared + others < available_memory()


# --- the measurement ---


def measure_costs(
    config: Config, spec: EnvSpec, cores: float, fixed: Collection[str] = ()
) -> Costs:
    """What this environment and this model cost on this machine, in the faster precision.

    As in a run all cores are busy meanwhile: threads of a core share its units, and all cores the
    memory. One process measures networks, and one on each of the others measures environments. For
    a second thread of the learner, which is measured last, one is left from four cores on; on fewer
    it waits for the environments' end. With less than two cores one follows the other.

    No process makes more environments than the user wants in one, and no more processes make them
    than he wants workers: each may need memory, a licence or a device.

    Args:
        fixed: names of the user's own settings.

    Raises:
        children.MeasureError: something failed, or took longer than `TIME_LIMIT_S`.
    """
    at_once = cores >= 2
    sizes, num_others = _measured_environments(config, fixed, cores)
    with children.time_limit(TIME_LIMIT_S):
        with pythons_own_found():  # by multiprocessing's resource tracker
            start = children.SPAWN.Barrier(num_others + 1 if at_once else 1)
        waits = at_once and _shares_a_core(cores)
        stepping = [partial(_measure_environments, config, spec, sizes, start, waits)] * num_others
        networks = partial(_measure_networks, config, spec, start, waits, cores)
        together: list[Callable[[], Any]] = [networks, *stepping]
        if at_once:
            of_networks, *of_environments = children.in_children(together)
        else:
            of_networks, *of_environments = (children.in_child(body) for body in together)
    env_us, split_us = np.mean(of_environments, axis=0).tolist()
    return Costs(env_us, split_us, **of_networks._asdict())


def _shares_a_core(cores: float) -> bool:
    """Whether the learner's second thread and environments do."""
    return cores < _THREADS[0] + 2


def _measured_environments(
    config: Config, fixed: Collection[str], cores: float
) -> tuple[list[int], int]:
    """How many environments a timed split has, largest first, and how many processes time them."""
    most = config.envs_per_worker if "envs_per_worker" in fixed else max(_ENVS)
    sizes = sorted({min(max(_ENVS), most), min(min(_ENVS), max(1, most // 2))}, reverse=True)
    num_processes = max(1, math.ceil(cores) - (1 if _shares_a_core(cores) else 2))
    if "num_workers" in fixed:
        num_processes = min(num_processes, config.num_workers)
    return sizes, num_processes


def _network_us(costs: _NetworkCosts) -> float:
    """Per decision."""
    return costs.batch_us / 32 + costs.row_us + costs.learn_us


def _measure_environments(
    config: Config, spec: EnvSpec, sizes: Sequence[int], start: Barrier, learner_waits: bool
) -> tuple[float, float]:
    """e and p of `throughput`: of a decision, and of a split step beside its decisions.

    Args:
        sizes: of the splits, largest first; of a single one all is taken for the decisions'.
    """
    large, *small = sizes
    steps = [components.rollout(_one_split(config, large), spec, 0.6, start.wait)]
    steps += [components.rollout(_one_split(config, size), spec, 0.4) for size in small]
    if learner_waits:
        start.wait()
    return _line(sizes, [step.env_us + step.python_us for step in steps])


class _NetworkCosts(NamedTuple):
    """In one precision, as `Costs` has them."""

    batch_us: float
    row_us: float
    learn_us: float
    precision: components.Precision
    on_gpu: bool
    parallel: float


def _measure_networks(
    config: Config, spec: EnvSpec, start: Barrier, learner_waits: bool, cores: float
) -> _NetworkCosts:
    """In the faster of the precisions that there are to choose from.

    Args:
        learner_waits: for its second thread's core, until the environments have been measured.
    """
    import torch

    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    precisions: Sequence[components.Precision] = components.PRECISIONS
    if config.precision != "auto":
        precisions = (config.precision,)
    elif not spec.has_pixels:
        precisions = ("float32",)  # vectors would be rounded to 8 bits themselves
    elif on_gpu:  # as `pick_precision` decides
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        precisions = ("bfloat16",) if has_bfloat16 else ("float32",)
    elif not machine()["cpu_bfloat16"]:
        precisions = ("float32",)
    trajectories = max(1, min(config.batch_size, _MINIBATCH) // config.rollout_length)
    alone = _one_split(config, 1)
    acting = components.inference(alone, spec, _BATCHES, 0.3, precisions, ready=start.wait)
    one_batch = dataclasses.replace(_one_split(config, trajectories), torch_threads=1)
    learning = components.learner(one_batch, spec, 0.4, _in_question(acting))
    costs = []
    for learned in learning:
        acted_us = [i.batch_us for i in acting if i.precision == learned.precision]
        row_us, batch_us = _line(_BATCHES, acted_us)
        parts_us = (batch_us, row_us, learned.decision_us)
        costs.append(_NetworkCosts(*parts_us, learned.precision, on_gpu, 0.0))
    best = min(costs, key=_network_us)
    if learner_waits:
        start.wait()
    if on_gpu or cores < _THREADS[0]:
        return best._replace(parallel=0.0 if on_gpu else _PARALLEL)
    two_threads = dataclasses.replace(one_batch, torch_threads=2)
    [shared] = components.learner(two_threads, spec, 0.3, (best.precision,))
    parallel = min(max(0.0, 2 - 2 * shared.decision_us / best.learn_us), 1.0)
    return best._replace(parallel=parallel)


def _in_question(acting: Sequence[components.Inference]) -> list[components.Precision]:
    """The precisions that may still be the faster one, once acting has been timed.

    Learning is what takes longest to time. To time it in a much slower precision would be in vain.
    """
    largest = {i.precision: i.batch_us for i in acting if i.batch_size == max(_BATCHES)}
    most_us = _CLEARLY * min(largest.values())
    return [precision for precision, batch_us in largest.items() if batch_us < most_us]


def _one_split(config: Config, num_envs: int) -> Config:
    """One worker with one split, whose slot is a training batch of one minibatch."""
    return dataclasses.replace(
        config,
        num_workers=1,
        num_policy_workers=1,
        num_splits=1,
        envs_per_worker=num_envs,
        policy_batch_size=num_envs,
        batch_size=num_envs * config.rollout_length,
        minibatches=1,
    )


def _line(sizes: Sequence[int], times_us: Sequence[float]) -> tuple[float, float]:
    """Slope and intercept of the line with the least relative error, both above 0.

    The intercept would be below 0 if a larger size cost more for each of its items than a smaller
    one, as it may in a busy moment. Then the best line through the origin stands for it, as it does
    for a single size.
    """
    weights = 1 / np.array(times_us)
    if len(sizes) == 1:
        return times_us[0] / sizes[0], 0.01
    slope, intercept = np.polyfit(sizes, times_us, 1, w=weights).tolist()
    if intercept < 0:
        slope, intercept = _factor(np.array(sizes) * weights), 0.0
    elif slope < 0:
        slope, intercept = 0.0, _factor(weights)
    return max(slope, 0.01), max(intercept, 0.01)


def _factor(shares: NDArray[np.float64]) -> float:
    """The factor that brings `shares` nearest to 1, by least squares."""
    return float(shares.sum() / (shares @ shares))


# --- the start of a run ---


def tune(config: Config, fixed: Collection[str], spec: EnvSpec) -> Config:
    """`config` with the system's settings that suit this machine best, and with `tuned`.

    Settings in `fixed` stay: the user's. If the measurement fails all do: training then meets the
    same fault, if it is one, and reports it in its own way. `tuned` says what was decided and why,
    for the run's log.
    """
    if config.replay is not None:  # throughput.py models slots that are learned from in order
        note = "not tuned: with a memory the learner's updates_per_decision set the pace"
        return dataclasses.replace(config, tuned=note)
    if not SYSTEMS[config.system].is_tuned:
        note = f"not tuned: the model of costs is not of system={config.system}'s processes"
        return dataclasses.replace(config, tuned=note)
    if {*fixed} >= {*_ARRANGED}:
        note = "not tuned: flags say how many processes, threads and environments there are"
        return dataclasses.replace(config, tuned=note)
    cores, cached = usable_cores(), read_cache()
    key = cache_key(config, cores, fixed)
    costs = cached.get(key) if config.tune == "cached" else None
    if costs is None:
        told = f"measuring {config.env} on this machine; --tune=off starts without"
        print(printable(told), file=sys.stderr)
        try:
            costs = measure_costs(config, spec, cores, fixed)
        except children.MeasureError as error:
            note = f"not tuned, the defaults stay, as with --tune=off: {error}"
            return dataclasses.replace(config, tuned=note)
        _write_cache({**cached, key: costs})
    chosen, candidates, of_more = _chosen(config, fixed, spec, costs, cores)
    note = describe(chosen, costs, cores, candidates, of_more, spec.frameskip)
    return dataclasses.replace(chosen, tuned=note)


def kept_outlook(config: Config, fixed: Collection[str], spec: EnvSpec) -> Outlook | None:
    """Of the arrangement that `tune` finds for `config`; None if no costs are kept for it."""
    cores = usable_cores()
    costs = read_cache().get(cache_key(config, cores, fixed))
    if costs is None:
        return None
    chosen, candidates, of_more = _chosen(config, fixed, spec, costs, cores)
    return outlook(chosen, costs, cores, candidates, of_more)


def _chosen(
    config: Config, fixed: Collection[str], spec: EnvSpec, costs: Costs, cores: float
) -> tuple[Config, list[Config], list[Config]]:
    """The arrangement, those it is chosen from, and those on twice the cores."""
    found = arrangements(config, fixed, cores)
    candidates = [c for c in found if _fits_memory(c, spec)] or [config]
    of_more = arrangements(config, fixed, 2 * cores)
    return choose(candidates, costs, cores), candidates, of_more


def _say(text: str) -> None:
    print(printable(f"sfrl: {text}"), file=sys.stderr)


def cache_path() -> Path | None:
    """None: this user has no folder of his own, as in a container without HOME."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(root):  # as the standard says
        root = os.path.expanduser("~/.cache")
    return Path(root, "sfrl", "tuning.json") if os.path.isabs(root) else None


def cache_key(config: Config, cores: float, fixed: Collection[str] = ()) -> str:
    """All that the costs depend on."""
    settings = {n: value for n, value in dataclasses.asdict(config).items() if n in config.COSTS}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    key = {"measured": _MEASURED, **machine(), "cores": cores, "visible": visible, **settings}
    if (wanted := _measured_environments(config, fixed, cores)) != _measured_environments(
        config, (), cores
    ):
        key["environments"] = wanted
    return json.dumps(key, sort_keys=True)


def read_cache() -> dict[str, Costs]:
    path = cache_path()
    if path is None:
        return {}
    try:
        size = path.stat().st_size
        if not path.is_file() or size > _MAX_CACHE_BYTES:
            raise ValueError(f"it is no file, or has more than {_MAX_CACHE_BYTES} bytes")
        cached = {key: Costs(**values) for key, values in json.loads(path.read_text()).items()}
        for costs in cached.values():
            if problem := costs.problem():
                raise ValueError(problem)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        _say(f"{path} cannot be read and will be replaced: {error}")
        return {}
    return cached


def _write_cache(cached: dict[str, Costs]) -> None:
    path = cache_path()
    if path is None:
        _say("the measurement is not kept: this user has no home (HOME is not an absolute path)")
        return
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({key: c._asdict() for key, c in cached.items()}, indent=2))
        os.replace(temporary, path)  # whole, or not at all
    except OSError as error:
        _say(f"the measurement cannot be kept in {path}: {error}")
